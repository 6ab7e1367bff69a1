//! The 22 queries (TPC-H specification, section 2.4) with its validation parameters.

/// The queries in the specification's order, also run by the tests and the benchmark.
pub const QUERIES: [(&str, &str); 22] = [
    ("q01", include_str!("q01.sql")),
    ("q02", include_str!("q02.sql")),
    ("q03", include_str!("q03.sql")),
    ("q04", include_str!("q04.sql")),
    ("q05", include_str!("q05.sql")),
    ("q06", include_str!("q06.sql")),
    ("q07", include_str!("q07.sql")),
    ("q08", include_str!("q08.sql")),
    ("q09", include_str!("q09.sql")),
    ("q10", include_str!("q10.sql")),
    ("q11", include_str!("q11.sql")),
    ("q12", include_str!("q12.sql")),
    ("q13", include_str!("q13.sql")),
    ("q14", include_str!("q14.sql")),
    ("q15", include_str!("q15.sql")),
    ("q16", include_str!("q16.sql")),
    ("q17", include_str!("q17.sql")),
    ("q18", include_str!("q18.sql")),
    ("q19", include_str!("q19.sql")),
    ("q20", include_str!("q20.sql")),
    ("q21", include_str!("q21.sql")),
    ("q22", include_str!("q22.sql")),
];

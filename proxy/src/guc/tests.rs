use super::*;

#[test]
fn only_what_differs_is_replayed() {
    let mut old = SettingMap::default();
    old.set("a", "SET a TO 1");
    old.set("b", "SET b TO 1");
    let mut new = SettingMap::default();
    new.set("b", "SET b TO 2");
    new.set("c", "SET c TO 1");
    assert_eq!(old.difference(&new), "RESET \"a\"; SET b TO 2; SET c TO 1");
    assert_eq!(new.difference(&new.clone()), "");
    assert!(new.same(&new.clone()));
}

#[test]
fn search_paths_are_read_as_postgres_reads_them() {
    let check = |value: &str, expected: &[&str]| assert_eq!(search_path(value, "ann"), expected);
    check("\"$user\", public", &["ann", "public"]);
    check("Public,\"My Schema\" , x", &["public", "My Schema", "x"]);
    check("", &[]);
    check("\"\"", &[]);
}

#[test]
fn values_cannot_break_out_of_their_quotes() {
    assert_eq!(
        set_statement("application_name", "a'b\\"),
        "SET \"application_name\" TO E'a''b\\\\'"
    );
    assert_eq!(set_statement("a.b", "x"), "SET \"a\".\"b\" TO 'x'");
    assert_eq!(
        set_statement("search_path", "a, \"B\""),
        "SET \"search_path\" TO 'a', 'B'"
    );
}

#[test]
fn durations_have_units() {
    use std::time::Duration;
    for (text, milliseconds) in [
        ("SET idle_session_timeout TO '300ms'", Some(300)),
        ("SET idle_session_timeout = 2500", Some(2_500)),
        ("SET x TO '1.5 s'", Some(1_500)),
        ("SET x TO '2min'", Some(120_000)),
        ("SET x TO '0'", None),
        ("SET x TO DEFAULT", None),
        ("SET x TO '5 weeks'", None),
        ("SET x TO '-1'", None),
        ("RESET x", None),
    ] {
        assert_eq!(
            duration(text),
            milliseconds.map(Duration::from_millis),
            "{text}"
        );
    }
}

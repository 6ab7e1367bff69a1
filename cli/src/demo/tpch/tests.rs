use std::collections::HashSet;

use super::{tables::TABLES, *};

fn answer(columns: &[&str], rows: &[&[Option<&str>]]) -> Answer {
    let owned = |value: &Option<&str>| value.map(str::to_owned);
    Answer {
        columns: columns.iter().map(|&name| name.to_owned()).collect(),
        rows: rows
            .iter()
            .map(|row| row.iter().map(owned).collect())
            .collect(),
    }
}

fn rows(name: &str, scale: f64) -> tables::Rows {
    let table = TABLES
        .iter()
        .find(|table| table.name == name)
        .expect("a table");
    (table.rows)(scale)
}

#[test]
fn scales_are_within_bounds() {
    assert_eq!(scale("0.1").expect("accepted"), 0.1);
    assert_eq!(scale("1").expect("accepted"), 1.0);
    for text in ["", "x", "0", "-1", "0.0099", "0.012", "100.1", "inf", "NaN"] {
        scale(text).expect_err(text);
    }
}

#[test]
fn every_query_is_one_statement() {
    for (name, text) in QUERIES {
        let statement = text.trim_end().strip_suffix(';').expect(name);
        assert!(!statement.contains(';'), "{name}");
        // The tests split cases at empty lines.
        assert!(!statement.contains("\n\n"), "{name}");
    }
}

#[test]
fn tables_have_the_rows_of_the_specification() {
    let expected = [
        ("orders", 15_000),
        ("lineitem", 60_175),
        ("part", 2_000),
        ("partsupp", 8_000),
        ("customer", 1_500),
        ("supplier", 100),
        ("nation", 25),
        ("region", 5),
    ];
    for ((name, count), table) in expected.into_iter().zip(&TABLES) {
        assert_eq!(name, table.name);
        assert_eq!((table.rows)(0.01).count(), count, "{name}");
        if name != "lineitem" {
            assert_eq!((table.count)(0.01), count as i64, "{name}");
        }
    }
}

#[test]
fn rows_have_a_value_for_every_column() {
    for table in &TABLES {
        let row = (table.rows)(0.01).next().expect("a row");
        let fields = row
            .strip_suffix('|')
            .expect("the last field is ended, too")
            .split('|')
            .count();
        let prefix = table
            .definition
            .split('(')
            .nth(1)
            .and_then(|text| text.split('_').next());
        let prefix = format!("{}_", prefix.expect("a first column"));
        let (columns, _) = table
            .definition
            .split_once("primary key (")
            .unwrap_or((table.definition, ""));
        assert_eq!(columns.matches(&prefix).count(), fields, "{}", table.name);
    }
}

#[test]
fn scales_at_which_the_primary_key_fails_are_known() {
    let key = |row: String| -> Vec<String> { row.split('|').take(2).map(str::to_owned).collect() };
    for scale in [
        0.001, 0.005, 0.01, 0.0108, 0.012, 0.015, 0.016, 0.02, 0.024, 0.0241,
    ] {
        let all: Vec<_> = rows("partsupp", scale).map(key).collect();
        let distinct: HashSet<_> = all.iter().collect();
        let twice = distinct.len() < all.len();
        assert_eq!(tables::supplies_twice(scale), twice, "{scale}");
    }
}

#[test]
fn answers_are_compared_to_the_last_digit() {
    let expected = answer(
        &["a", "b"],
        &[&[Some("1"), None], &[Some("2"), Some("0.30")]],
    );
    let check =
        |columns: &[&str], rows: &[&[Option<&str>]]| answer(columns, rows).compare(&expected);
    assert_eq!(
        check(
            &["a", "b"],
            &[&[Some("1"), None], &[Some("2"), Some("0.30")]]
        ),
        Verdict::Equal
    );
    assert_eq!(
        check(
            &["a", "b"],
            &[&[Some("2"), Some("0.30")], &[Some("1"), None]]
        ),
        Verdict::OtherOrder
    );
    let cases: [(Verdict, &str); 4] = [
        (
            check(
                &["a", "b"],
                &[&[Some("1"), None], &[Some("2"), Some("0.3")]],
            ),
            "a row is (2, 0.3), expected (2, 0.30)",
        ),
        (
            check(&["a", "b"], &[&[Some("1"), None]]),
            "1 rows, expected 2",
        ),
        (check(&["a", "c"], &[]), "columns are a, c, expected a, b"),
        (
            check(&["a", "b"], &[&[Some("1"), None], &[Some("1"), None]]),
            "a row is (1, NULL), expected (2, 0.30)",
        ),
    ];
    for (verdict, how) in cases {
        assert_eq!(verdict, Verdict::Different(how.to_owned()));
    }
}

#[test]
fn one_bad_line_makes_a_bad_report() {
    let line = |rows, verdict| Line {
        name: "q01",
        tier: Some("gather".to_owned()),
        rows,
        duration: Duration::from_micros(1500),
        compared: Some(Compared {
            verdict,
            duration: Duration::from_millis(1),
        }),
    };
    let mut report = Report::new(true);
    report.add(line(Ok(4), Verdict::Equal));
    assert!(report.is_good());
    let bad = [
        line(
            Err("no".to_owned()),
            Verdict::Different("the query failed".to_owned()),
        ),
        line(Ok(4), Verdict::OtherOrder),
        line(Ok(4), Verdict::Different("how".to_owned())),
        line(Ok(4), Verdict::Failed("why".to_owned())),
    ];
    for line in bad {
        assert_eq!(line.to_json()["equal"], false);
        assert!(line.to_json()["error"].is_string());
        let mut report = Report::new(true);
        report.add(line);
        assert!(!report.is_good());
    }
}

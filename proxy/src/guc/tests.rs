use super::*;

fn map(entries: &[(&str, &str)]) -> SettingMap {
    let mut map = SettingMap::default();
    for (name, value) in entries {
        map.set(name, value, &format!("SET {name} TO {value}"));
    }
    map
}

#[test]
fn only_what_differs_is_replayed() {
    let old = map(&[("a", "1"), ("b", "1")]);
    let new = map(&[("b", "2"), ("c", "1")]);
    assert_eq!(old.difference(&new), "RESET \"a\"; SET b TO 2; SET c TO 1");
    assert_eq!(new.difference(&new.clone()), "");
    assert!(new.same(&new.clone()));
    assert_eq!(new.get("b"), Some("2"));
}

#[test]
fn settings_are_made_without_the_role() {
    let check = |old: &[(&str, &str)], new: &[(&str, &str)], expected: &str| {
        assert_eq!(map(old).difference(&map(new)), expected, "{old:?} {new:?}");
    };
    let (plain, ann) = (&[("a", "1")][..], &[("a", "1"), ("role", "ann")][..]);
    check(plain, ann, "SET role TO ann");
    check(ann, plain, "RESET ROLE");
    check(ann, ann, "");
    check(&[], ann, "SET a TO 1; SET role TO ann");
    let more = &[
        ("a", "1"),
        ("role", "ann"),
        ("session_replication_role", "replica"),
    ][..];
    let made = "SET session_replication_role TO replica; SET role TO ann";
    check(ann, more, &format!("RESET ROLE; {made}"));
    check(
        more,
        &[("role", "bob")],
        "RESET ROLE; RESET \"a\"; RESET \"session_replication_role\"; SET role TO bob",
    );
}

#[test]
fn switches_are_read_as_postgres_reads_them() {
    for on in ["on", "ON", "true", "t", "tr", "yes", "y", "1"] {
        assert!(is_on(on), "{on}");
    }
    for off in ["off", "false", "no", "0", "", "o", "truest"] {
        assert!(!is_on(off), "{off}");
    }
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
        ("300ms", Some(300)),
        (" 2500 ", Some(2_500)),
        ("1.5 s", Some(1_500)),
        ("2min", Some(120_000)),
        ("0", None),
        ("", None),
        ("5 weeks", None),
        ("-1", None),
        ("reset", None),
    ] {
        assert_eq!(
            duration(text),
            milliseconds.map(Duration::from_millis),
            "{text}"
        );
    }
}

#[test]
fn a_reset_of_all_leaves_the_role() {
    let initial = map(&[("a", "1")]);
    let reset = |old: &[(&str, &str)]| map(old).reset_all(&initial);
    assert!(reset(&[("a", "2"), ("b", "1")]).same(&initial));
    assert!(reset(&[("b", "1"), ("role", "ann")]).same(&map(&[("a", "1"), ("role", "ann")])));
    // Of a role that was given at login and taken back nothing is left.
    let given = map(&[("role", "ann")]);
    assert!(map(&[]).reset_all(&given).same(&map(&[])));
}

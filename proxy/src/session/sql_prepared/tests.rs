use super::{Kept, constant, expanded};

fn kept(text: &str, types: &[&str]) -> Kept {
    Kept {
        text: text.to_owned(),
        types: types.iter().map(|name| (*name).to_owned()).collect(),
    }
}

#[test]
fn arguments_that_a_server_must_compute() {
    for (text, sql_type) in [
        ("", "pg_catalog.text"),
        ("1 + 1", "pg_catalog.int4"),
        ("-1", "pg_catalog.int4"),
        ("1.5", "pg_catalog.int4"),
        ("1", "pg_catalog.bool"),
        ("0x10", "pg_catalog.int4"),
        ("1_000", "pg_catalog.int4"),
        ("E'a\\n'", "pg_catalog.text"),
        ("$$a$$", "pg_catalog.text"),
        ("'a' 'b'", "pg_catalog.text"),
        ("'a'\n'b'", "pg_catalog.text"),
        ("B'1'", "pg_catalog.bit"),
        ("now()", "pg_catalog.timestamptz"),
        ("true", "pg_catalog.bool"),
    ] {
        assert_eq!(constant(text, sql_type), None, "{text}");
    }
    assert_eq!(constant("NULL", "pg_catalog.int4"), Some(None));
    assert_eq!(
        constant("'it''s'", "pg_catalog.text"),
        Some(Some("it's".into()))
    );
    assert_eq!(constant("42", "pg_catalog.int8"), Some(Some("42".into())));
}

#[test]
fn parameters_in_strings_and_comments_stay() {
    let one = kept(
        "select '$1', \"$1\", $$ $1 $$ /* $1 */ from t where a = $1 -- $1",
        &["pg_catalog.int4"],
    );
    assert_eq!(
        expanded(&one, &[Some("5".into())]),
        "select '$1', \"$1\", $$ $1 $$ /* $1 */ from t where a = ('5'::pg_catalog.int4) -- $1"
    );
}

#[test]
fn values_cannot_end_their_string() {
    let one = kept("select f($2, $1)", &["pg_catalog.text", "public.\"T\""]);
    assert_eq!(
        expanded(&one, &[Some("a'); drop table t; --\\".into()), None]),
        "select f((NULL::public.\"T\"), (E'a''); drop table t; --\\\\'::pg_catalog.text))"
    );
}

#[test]
fn names_of_columns_stay() {
    let types = ["pg_catalog.int4", "pg_catalog.int4"];
    let values = [Some("1".into()), Some("2".into())];
    let text = |text: &str| expanded(&kept(text, &types), &values);
    let (one, two) = ("('1'::pg_catalog.int4)", "('2'::pg_catalog.int4)");
    assert_eq!(
        text("select $1, a, $2 from t"),
        format!("select {one} AS \"?column?\", a, {two} AS \"?column?\" from t")
    );
    assert_eq!(
        text("select $1 as x, f(a, $2) from t where a in (3, $1) limit $2"),
        format!("select {one} as x, f(a, {two}) from t where a in (3, {one}) limit 2")
    );
    assert_eq!(
        text("insert into t values (3, $1), ($2, 4)"),
        format!("insert into t values (3, {one}), ({two}, 4)")
    );
}

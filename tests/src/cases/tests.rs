use super::*;

#[test]
fn paragraphs_directives_and_data() {
    let cases = parse(
        "# a comment\n\n@setup\ncreate table t (a int)\n\nselect 1\n  from t\n\n\
         @copyin\ncopy t from stdin\n----\n1\n\n2\n----\n\n@reconnect\n",
    )
    .expect("valid");
    let kinds: Vec<&Kind> = cases.iter().map(|case| &case.kind).collect();
    assert_eq!(
        kinds,
        [&Kind::Setup, &Kind::Same, &Kind::Same, &Kind::Reconnect]
    );
    assert_eq!(cases[1].text, "select 1\n  from t");
    assert_eq!(cases[1].line, 6);
    assert_eq!(cases[2].copy, Some(CopyData::Text("1\n\n2\n".into())));
}

#[test]
fn order_by_counts_outside_of_parentheses() {
    assert!(has_outer_order_by("select a from t\nORDER BY a"));
    assert!(!has_outer_order_by(
        "select rank() over (order by a) from t"
    ));
    assert!(!has_outer_order_by("select ' order by ' from t"));
}

#[test]
fn parameters_have_type_format_and_value() {
    let found = parameters("int4=5 ~b:int8=7 text='it is' text").expect("valid");
    assert_eq!(found.len(), 4);
    assert!(!found[1].declared);
    assert!(found[1].binary);
    assert_eq!(found[2].value.as_deref(), Some("it is"));
    assert_eq!(found[3].value, None);
}

#[test]
fn mistakes_are_errors() {
    for text in [
        "@nonsense\nselect 1\n",
        "@setup\n\n",
        "@copyin\ncopy t from stdin\n",
    ] {
        assert!(parse(text).is_err(), "{text}");
    }
}

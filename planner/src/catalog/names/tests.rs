use super::*;

fn path(text: &str) -> Vec<String> {
    text.split_whitespace().map(str::to_owned).collect()
}

fn overload(schema: &str, min: usize, max: Option<usize>, safe: bool) -> Overload {
    Overload {
        schema: schema.to_owned(),
        arguments_min: min,
        arguments_max: max,
        safety: match safe {
            true => FunctionSafety::Safe,
            false => FunctionSafety::Unsafe(String::new()),
        },
    }
}

#[test]
fn a_call_means_the_functions_that_it_can_reach() {
    let mut catalog = Catalog::default();
    let all = vec![
        overload("a", 1, Some(1), true),
        overload("b", 1, Some(2), false),
        overload("c", 1, None, false),
    ];
    catalog.overloads.insert("f".to_owned(), all);
    let check = |search: &str, names: &[&str], arguments, expected: Option<bool>| {
        let found = catalog.call_safety(&path(search), names, arguments);
        let safe = found.map(|safety| *safety == FunctionSafety::Safe);
        assert_eq!(safe, expected, "{search}: {names:?} with {arguments}");
    };
    check("a", &["f"], 1, Some(true));
    check("a", &["f"], 2, None);
    check("b", &["f"], 1, Some(false));
    check("b", &["f"], 2, Some(false));
    check("b", &["f"], 3, None);
    check("a b", &["f"], 1, Some(false));
    check("b", &["a", "f"], 1, Some(true));
    check("a", &["b", "f"], 1, Some(false));
    check("a", &["db", "b", "f"], 1, Some(false));
    check("c", &["f"], 9, Some(false));
    check("c", &["f"], 0, None);
    check("d", &["f"], 1, None);
    check("a", &["g"], 1, None);
}

#[test]
fn what_is_built_in_comes_first_unless_the_path_says_otherwise() {
    let hiding = Hiding(HashSet::from([
        ("a".to_owned(), ObjectKind::Operator, "=".to_owned()),
        ("a".to_owned(), ObjectKind::Function, "now".to_owned()),
    ]));
    let now = |search: &str| {
        let path = path(search);
        let found = hiding.before(&path, ObjectKind::Function, "now");
        found.map(str::to_owned)
    };
    assert_eq!(now("a b"), None);
    assert_eq!(now("pg_catalog a"), None);
    assert_eq!(now("b pg_catalog a"), None);
    assert_eq!(now("a pg_catalog").as_deref(), Some("a"));
    assert_eq!(now("b a pg_catalog").as_deref(), Some("a"));
    assert_eq!(hiding.operator(&path("a pg_catalog")), Some(("a", "=")));
    assert_eq!(hiding.operator(&path("a")), None);
    assert!(hiding.is_empty(&path("a")));
    assert!(!hiding.is_empty(&path("a pg_catalog")));
}

use std::collections::HashSet;

use super::{Kind, Rows, function, is_system_column, judged, relation, unjudged};

#[test]
fn every_group_has_a_kind_and_no_member_twice() {
    let mut seen = HashSet::new();
    for (group, word) in judged() {
        let own = group.split(" of ").next().unwrap_or(group);
        let known = Kind::named(own).is_some()
            || own == "system-column"
            || own.starts_with("columns ")
            || own
                .strip_prefix("relations ")
                .is_some_and(|rows| Rows::named(rows).is_some());
        assert!(known, "no such kind: {group}");
        // Functions, relations and columns have names apart.
        let namespace = match own.split_once(' ') {
            Some(("columns", relations)) => relations,
            Some((first, _)) => first,
            None if own == "system-column" => own,
            None => "functions",
        };
        assert!(seen.insert((namespace, word)), "{word} is there twice");
        let count = word
            .split_once('/')
            .map(|(_, count)| count.parse::<usize>());
        assert!(!matches!(count, Some(Err(_))), "{word}");
    }
    assert!(seen.len() > 2000, "{}", seen.len());
}

#[test]
fn a_number_of_arguments_comes_before_the_name_alone() {
    assert_eq!(function("age", 1), Some(Kind::Home));
    assert_eq!(function("age", 2), Some(Kind::Same));
    assert_eq!(function("ts_rewrite", 0), Some(Kind::Query));
    assert_eq!(function("ts_rewrite", 3), Some(Kind::Same));
    assert_eq!(function("no_such_function", 1), None);
    assert_eq!(relation("pg_locks"), Some(Rows::Server));
    assert!(is_system_column("ctid") && !is_system_column("oid"));
}

#[test]
fn what_is_not_in_the_table_is_unjudged() {
    let names = ["lower", "pg_class", "pg_brand_new", "columns"];
    assert_eq!(unjudged(names.into_iter()), ["pg_brand_new"]);
}

/// Names of each kind that some version has.
fn of_servers(kind: &str) -> HashSet<&'static str> {
    let mut wanted = false;
    let mut names = HashSet::new();
    let lines = include_str!("servers.txt").lines();
    for line in lines.filter(|line| !line.starts_with('#')) {
        match line.strip_prefix("= ") {
            Some(heading) => wanted = heading.starts_with(kind),
            None if wanted => names.extend(line.split_whitespace()),
            None => {}
        }
    }
    names
}

/// Names that the table judges, of each kind.
fn of_table(kind: &str) -> HashSet<&'static str> {
    let of_kind = |group: &str| {
        let own = group.split(" of ").next().unwrap_or(group);
        match kind {
            "relation" => own.starts_with("relations "),
            _ => Kind::named(own).is_some(),
        }
    };
    let names = judged().filter(|(group, _)| of_kind(group));
    names
        .map(|(_, word)| word.split('/').next().unwrap_or(word))
        .collect()
}

#[test]
fn everything_that_a_version_has_is_judged_and_nothing_else() {
    for kind in ["function", "relation"] {
        let (servers, table) = (of_servers(kind), of_table(kind));
        let sorted = |names: HashSet<&'static str>| {
            let mut names: Vec<_> = names.into_iter().collect();
            names.sort();
            names
        };
        let unjudged = sorted(servers.difference(&table).copied().collect());
        assert!(unjudged.is_empty(), "no judgement on {kind}s {unjudged:?}");
        let nowhere = sorted(table.difference(&servers).copied().collect());
        assert!(nowhere.is_empty(), "no version has the {kind}s {nowhere:?}");
    }
}

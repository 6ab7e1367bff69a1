use super::*;

#[test]
fn the_same_seed_makes_the_same_statements() {
    for number in 0..50 {
        let (first, second) = (statement(7, number), statement(7, number));
        assert_eq!(first.text, second.text);
        assert_eq!(first.parameters, second.parameters);
    }
    assert_ne!(statement(7, 1).text, statement(8, 1).text);
}

#[test]
fn statements_cover_the_language() {
    let texts: Vec<String> = (0..3000).map(|number| statement(1, number).text).collect();
    let all = texts.join("\n");
    for word in [
        " left join ",
        " right join ",
        " full join ",
        " cross join ",
        " using (",
        "lateral (",
        "exists (",
        " not in (",
        "= any (",
        "with recursive",
        " union all ",
        " intersect ",
        " except ",
        " rows between",
        " range between",
        " groups between",
        " filter (where",
        "grouping sets",
        "rollup (",
        "cube (",
        "distinct on",
        "with ties",
        "nulls first",
        "nulls last",
        "array_agg(",
        "string_agg(",
        "percentile_cont(",
        "mode() ",
        " having ",
        "count(distinct ",
        "$1",
        " offset ",
        "row_number() over",
        "corr(",
        "stddev_pop(",
        " natural ",
        " window win",
        " over (win",
        ") filter (where",
        "collate \"C\"",
        "jsonb_each(",
        "jsonb_to_recordset(",
        "pg_type ",
        "information_schema.columns",
        "to_jsonb(",
        "own.task ",
        "log ",
        "scratch ",
        "::pair",
        "int4multirange(",
        "current_setting('test.began')",
        "'NaN'",
        " isnull)",
    ] {
        assert!(all.contains(word), "no statement has {word}");
    }
}

#[test]
fn about_a_tenth_is_mistaken_and_more_is_surrounded() {
    let statements: Vec<Statement> = (0..2000).map(|number| statement(1, number)).collect();
    let surrounded = statements.iter().filter(|it| !it.before.is_empty());
    assert!((200..600).contains(&surrounded.count()));
    let undone = |it: &&Statement| it.before.is_empty() != it.after.is_empty();
    assert_eq!(statements.iter().filter(undone).count(), 0);
    let wrong = statements.iter().filter(|it| it.text.contains("nosuch"));
    assert!(wrong.count() > 10);
}

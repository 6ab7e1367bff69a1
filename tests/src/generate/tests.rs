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
    ] {
        assert!(all.contains(word), "no statement has {word}");
    }
}

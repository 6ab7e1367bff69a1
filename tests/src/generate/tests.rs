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

/// What to cover, whether a statement has it, and how many of 2,000 have it at least.
type Covered = (&'static str, fn(&Statement) -> bool, usize);

const COVERED: [Covered; 46] = [
    ("smallint keys", |it| reads(it, &["tiny"]), 60),
    ("integer keys", |it| reads(it, &["product", "sparse"]), 60),
    ("bigint keys", |it| reads(it, &["account"]), 60),
    ("text keys", |it| reads(it, &["word"]), 60),
    ("varchar keys", |it| reads(it, &["title"]), 60),
    ("uuid keys", |it| reads(it, &["device"]), 60),
    ("date keys", |it| reads(it, &["daily"]), 60),
    ("timestamp keys", |it| reads(it, &["tick"]), 60),
    ("timestamptz keys", |it| reads(it, &["stamp"]), 60),
    (
        "more columns in a primary key",
        |it| reads(it, &["entry", "event"]),
        60,
    ),
    ("tables by range", |it| reads(it, &["reading", "visit"]), 60),
    ("tables by directory", |it| reads(it, &["region"]), 60),
    (
        "tables of a schema",
        |it| reads(it, &["own.task", "own.step"]),
        60,
    ),
    ("partitioned tables", |it| reads(it, &["log"]), 60),
    ("reference tables", |it| reads(it, &["country"]), 60),
    ("local tables", |it| reads(it, &["note"]), 60),
    ("temporary tables", |it| reads(it, &["scratch"]), 60),
    ("views", |it| reads(it, &["wealth", "busy"]), 60),
    ("views of another owner", |it| reads(it, &["kept"]), 60),
    (
        "functions in FROM",
        |it| {
            has(
                it,
                &["_series(", "_each", "unnest(", "_to_table(", "_to_record"],
            )
        },
        60,
    ),
    (
        "catalogs in FROM",
        |it| has(it, &["pg_type ", "pg_class ", "information_schema."]),
        20,
    ),
    ("LATERAL", |it| has(it, &[" lateral "]), 40),
    ("NATURAL JOIN", |it| has(it, &[" natural "]), 20),
    ("USING", |it| has(it, &[" using ("]), 20),
    ("WINDOW", |it| has(it, &[" window win"]), 60),
    ("FILTER of windows", filters_a_window, 20),
    (
        "GROUPS and EXCLUDE",
        |it| has(it, &[" groups between", " exclude "]),
        20,
    ),
    ("COLLATE", |it| has(it, &["collate \"", "COLLATE \""]), 20),
    (
        "whole rows",
        |it| has(it, &[".*)", "to_json(", "to_jsonb("]),
        60,
    ),
    ("subscripts", |it| has(it, &[")[1", ")[2", ")[3"]), 20),
    ("parts of rows", names_a_part, 60),
    (
        "parts of composites",
        |it| has(it, &[").a ", ").a)", ").b ", ").b)"]),
        20,
    ),
    ("NaN", |it| has(it, &["'NaN'"]) || binds(it, "NaN"), 20),
    (
        "infinities",
        |it| has(it, &["Infinity'"]) || binds(it, "Infinity") || binds(it, "-Infinity"),
        20,
    ),
    ("ranges", |it| has(it, &["int4range"]), 60),
    ("multiranges", |it| has(it, &["int4multirange"]), 40),
    ("composites", |it| has(it, &["::pair"]), 60),
    ("expressions in two spellings", spells_twice, 40),
    (
        "settings",
        |it| before(it, &["set "]) || before(it, &["select set_config("]),
        100,
    ),
    ("roles", |it| before(it, &["set role reader"]), 20),
    (
        "transactions",
        |it| before(it, &["begin", "start transaction"]),
        60,
    ),
    (
        "the clock",
        |it| has(it, &["now()", "current_timestamp"]),
        40,
    ),
    (
        "what a session knows of itself",
        |it| {
            has(
                it,
                &[
                    "current_user",
                    "session_user",
                    "current_setting(",
                    "current_schema",
                    "version()",
                ],
            )
        },
        20,
    ),
    (
        "grouping sets",
        |it| has(it, &["rollup (", "cube (", "grouping sets ("]),
        20,
    ),
    (
        "parameters",
        |it| it.parameters.as_ref().is_some_and(|all| !all.is_empty()),
        200,
    ),
    ("results in binary", |it| it.binary, 200),
];

fn has(statement: &Statement, words: &[&str]) -> bool {
    words.iter().any(|word| statement.text.contains(word))
}

fn before(statement: &Statement, words: &[&str]) -> bool {
    let starts = |text: &String| words.iter().any(|word| text.starts_with(word));
    statement.before.iter().any(starts)
}

fn binds(statement: &Statement, value: &str) -> bool {
    let mut parameters = statement.parameters.iter().flatten();
    parameters.any(|one| one.value.as_deref() == Some(value))
}

/// One of these relations stands in FROM.
fn reads(statement: &Statement, relations: &[&str]) -> bool {
    let places = ["from ", "join ", ", ", "("];
    let mut all = relations
        .iter()
        .flat_map(|name| places.map(|place| format!("{place}{name} ")));
    all.any(|words| statement.text.contains(&words))
}

/// `sum(x) filter (where ...) over`
fn filters_a_window(statement: &Statement) -> bool {
    statement.text.split(" filter (where").skip(1).any(|rest| {
        let mut depth = 1;
        let close = rest.find(|character| {
            depth += i32::from(character == '(') - i32::from(character == ')');
            depth == 0
        });
        close.is_some_and(|close| rest[close + 1..].starts_with(" over "))
    })
}

/// `(t1).x`, `(t1.*).x`
fn names_a_part(statement: &Statement) -> bool {
    statement.text.split('(').skip(1).any(|rest| {
        let alias = rest.find(|character: char| !character.is_ascii_alphanumeric());
        alias.is_some_and(|end| {
            let digits = rest[..end].bytes().any(|byte| byte.is_ascii_digit());
            let behind = &rest[end..];
            digits && (behind.starts_with(").") || behind.starts_with(".*)."))
        })
    })
}

/// Words that only the second spelling of a pair has.
fn spells_twice(statement: &Statement) -> bool {
    let rare = [
        "pg_catalog.",
        "UPPER ( ",
        " ~~ ",
        "btrim(",
        "ltrim(",
        "overlay(",
        "char_length(",
        "!=",
        " = some (",
        " isnull)",
        "timezone('UTC', ",
        "date_part(",
        "::int8",
        "mod(",
        "%3)",
        "substring(",
    ];
    has(statement, &rare) && has(statement, &["group by ", "order by "])
}

#[test]
fn what_is_to_be_covered_is_there_often_enough() {
    let statements: Vec<Statement> = (0..2000).map(|number| statement(1, number)).collect();
    let mut missing = Vec::new();
    for (what, covers, least) in COVERED {
        let found = statements.iter().filter(|it| covers(it)).count();
        eprintln!("{found:5} of 2000: {what}");
        if found < least {
            missing.push(format!("{what}: {found}, not {least}"));
        }
    }
    assert!(missing.is_empty(), "{missing:?}");
}

//! EXPLAIN of statements over several shards: the tier, the SQL of each shard, what was done.

use anyhow::{Context, Result, ensure};
use automator67_tests::{automator::Dev, batch::Batch, checks::Check, wire::Connection};
use serde_json::Value as Json;

use super::{column, fails, is_one};

pub const CHECKS: &[Check<Dev>] = &[
    ("explain names the tier", tiers),
    ("explain analyze tells what was done", analyze),
    ("explain in json", json),
    ("explain with parameters", parameters),
    ("explain in a transaction block", transaction_block),
    ("explain analyze of what fails", failures),
    ("explain obeys force_tier", force_tier),
    ("explain passes options on", options),
];

/// Distributed by another column than `points` is joined by: it has to be moved.
const MOVES: &str = "select p.v % 3 as rest, count(*), avg(m.points_id) from points p \
    join marks m on m.points_id = p.id where p.v <= 30 group by 1 order by 1";
const SCATTERS: &str = "select id, v from points order by v desc limit 3";
const MERGES: &str = "select v % 7 as rest, count(*), avg(v) from points group by 1 order by 1";
const GATHERS: &str = "select id, row_number() over (order by v) from points";

/// `marks` is distributed by its own id, not by that of the point it belongs to.
fn prepare(connection: &mut Connection) -> Result<()> {
    let made = connection.execute("select to_regclass('marks')")?;
    if made.is_some() {
        return Ok(());
    }
    connection.execute("create table marks (id bigint primary key, points_id bigint)")?;
    connection
        .execute("select create_distributed_table('marks', 'id', colocate_with => 'none')")?;
    connection.execute("insert into marks select i, i % 300 + 1 from generate_series(1, 600) i")?;
    Ok(())
}

fn open(dev: &Dev) -> Result<Connection> {
    let mut connection = dev.connect()?;
    prepare(&mut connection)?;
    Ok(connection)
}

fn lines(connection: &mut Connection, text: &str) -> Result<Vec<String>> {
    let rows = connection.rows(text)?.into_iter();
    rows.map(|row| {
        row.into_iter()
            .next()
            .flatten()
            .context("a line that is NULL")
    })
    .collect()
}

fn document(connection: &mut Connection, text: &str) -> Result<Json> {
    let lines = lines(connection, text)?;
    ensure!(lines.len() == 1, "{text}: {} rows", lines.len());
    serde_json::from_str(&lines[0]).with_context(|| lines[0].clone())
}

fn starts(lines: &[String], expected: &str) -> Result<()> {
    let first = lines.first().context("no lines")?;
    ensure!(first.starts_with(expected), "{first} instead of {expected}");
    Ok(())
}

fn holds(lines: &[String], expected: &str) -> Result<()> {
    let found = lines.iter().any(|line| line.contains(expected));
    ensure!(found, "no {expected:?} in\n{}", lines.join("\n"));
    Ok(())
}

fn count(lines: &[String], word: &str) -> usize {
    lines.iter().filter(|line| line.contains(word)).count()
}

/// Statements and the first words that EXPLAIN says of them.
const TIERS: &[(&str, &str)] = &[
    ("select * from points where id = 7", "Single on shard"),
    ("select * from words", "Single on shard"),
    (SCATTERS, "Scatter on shard1, shard2, shard3"),
    ("select * from points", "Scatter on shard1, shard2, shard3"),
    (MERGES, "Merge on shard1, shard2, shard3"),
    (MOVES, "Merge on shard1, shard2, shard3"),
    (GATHERS, "Gather on shard1"),
];

fn tiers(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    for (text, expected) in TIERS {
        let plan = lines(&mut connection, &format!("explain {text}"))?;
        starts(&plan, expected).context(*text)?;
        let plan = lines(&mut connection, &format!("explain analyze {text}"))?;
        starts(&plan, expected).context(*text)?;
    }
    let plan = lines(&mut connection, &format!("explain {SCATTERS}"))?;
    holds(
        &plan,
        "  Reason: distributed table \"points\" is not restricted to one key",
    )?;
    holds(&plan, "  Limit: 3")?;
    holds(&plan, " DESC")?;
    holds(&plan, "Seq Scan on points")?;
    ensure!(count(&plan, "->  Shard Scan on shard") == 3, "{plan:?}");
    ensure!(count(&plan, "estimated rows=") == 3, "{plan:?}");
    ensure!(count(&plan, "actual rows=") == 0, "{plan:?}");
    let plan = lines(&mut connection, &format!("explain {MERGES}"))?;
    holds(&plan, "  ->  Final on shard1")?;
    holds(&plan, "FROM parts a67")?;
    let plan = lines(&mut connection, &format!("explain {MOVES}"))?;
    ensure!(count(&plan, "->  Move ") == 1, "{plan:?}");
    holds(&plan, "pg_temp.a67_g")?;
    Ok(())
}

fn analyze(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    for (text, rows) in [(SCATTERS, 3), (MERGES, 7), (MOVES, 3)] {
        let frames = connection.simple(&format!("explain analyze {text}"))?;
        let tags: Vec<u8> = frames.iter().map(|frame| frame.tag).collect();
        let ends = tags.first() == Some(&b'T') && tags.ends_with(b"CZ");
        ensure!(ends, "{text}: {}", String::from_utf8_lossy(&tags));
        let between = &tags[1..tags.len() - 2];
        ensure!(between.iter().all(|tag| *tag == b'D'), "{text}: {tags:?}");
        let plan = column(&frames)?;
        let first = plan.first().context("no lines")?;
        ensure!(first.contains(&format!("actual rows={rows},")), "{first}");
        holds(&plan, " ms)")?;
        starts(&plan[plan.len() - 1..], "Total Time: ")?;
        is_one(&mut connection, "select count(*) from points", "300")?;
    }
    let plan = lines(&mut connection, &format!("explain analyze {MOVES}"))?;
    holds(&plan, "  Memory Bytes: ")?;
    holds(&plan, "  Spilled Bytes: 0")?;
    holds(&plan, "Parts In: parameters")?;
    let moved = plan.iter().find(|line| line.contains("->  Move "));
    let moved = moved.context("nothing is moved")?;
    ensure!(
        ["estimated rows=", "actual rows=", "bytes=", "time="]
            .iter()
            .all(|word| moved.contains(word)),
        "{moved}"
    );
    let plan = lines(&mut connection, &format!("explain analyze {GATHERS}"))?;
    holds(&plan, "->  Fetch points  (actual rows=300, ")?;
    holds(&plan, "WindowAgg")?;
    // A subquery that is answered before has a tier of its own.
    let inside = "select id from points where v > (select avg(points_id) from marks) + 140";
    for word in ["explain", "explain analyze"] {
        let plan = lines(&mut connection, &format!("{word} {inside}"))?;
        starts(&plan, "Merge on")?;
        holds(&plan, "  ->  Move subquery to every shard")?;
        holds(&plan, "        ->  Merge on shard1, shard2, shard3")?;
    }
    // Only the run tells that such averages cannot be made of parts.
    let single = "select avg(p.v::real) from points p join marks m on m.points_id = p.id";
    let plan = lines(&mut connection, &format!("explain analyze {single}"))?;
    starts(&plan, "Gather on shard1")?;
    ensure!(count(&plan, "->  Fetch ") == 2, "{plan:?}");
    // More rows than any buffer holds are thrown away.
    let many = "explain analyze select id, repeat('x', 1000) from points, generate_series(1, 100)";
    let plan = lines(&mut connection, many)?;
    ensure!(plan[0].contains("actual rows=30000,"), "{}", plan[0]);
    Ok(())
}

fn json(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    for (text, title) in TIERS {
        let word = title.split(' ').next().unwrap_or_default();
        for options in ["format json", "analyze, format json"] {
            let text = format!("explain ({options}) {text}");
            let document = document(&mut connection, &text)?;
            let plan = &document[0]["Plan"];
            let expected = format!("Automator67 {word}");
            ensure!(plan["Node Type"] == expected.as_str(), "{text}: {plan}");
            ensure!(
                plan["Plans"].as_array().is_some_and(|it| !it.is_empty()),
                "{plan}"
            );
            let shards = plan["Shards"].as_array().map_or(0, Vec::len);
            let expected = if ["Scatter", "Merge"].contains(&word) {
                3
            } else {
                1
            };
            ensure!(shards == expected, "{text}: {plan}");
        }
    }
    let text = format!("explain (analyze, format json) {MOVES}");
    let document = document(&mut connection, &text)?;
    let plan = &document[0]["Plan"];
    ensure!(plan["Actual Rows"] == 3, "{plan}");
    ensure!(document[0]["Total Time"].is_number(), "{document}");
    ensure!(
        plan["Memory Bytes"].as_u64().is_some_and(|it| it > 0),
        "{plan}"
    );
    let plans = plan["Plans"].as_array().context("no Plans")?;
    ensure!(plans[0]["Node Type"] == "Move", "{plan}");
    ensure!(
        plans[0]["Actual Rows"].is_number() && plans[0]["SQL"].is_string(),
        "{plan}"
    );
    let last = plans.last().context("no last plan")?;
    ensure!(last["Node Type"] == "Final", "{plan}");
    let scans = last["Plans"].as_array().context("no scans")?;
    let rows = scans.iter().filter_map(|scan| scan["Actual Rows"].as_u64());
    ensure!(scans.len() == 3 && rows.sum::<u64>() <= 9, "{plan}");
    let update = document_of_update(&mut connection)?;
    ensure!(update["Node Type"] == "Automator67 Multi", "{update}");
    Ok(())
}

fn document_of_update(connection: &mut Connection) -> Result<Json> {
    let text = "explain (format json) update points set v = v + 1 where v = -1";
    Ok(document(connection, text)?[0]["Plan"].take())
}

fn parameters(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    for (text, expected) in [
        ("select * from points where id = $1", "Single on shard"),
        (
            "select id from points where v > $1 order by v",
            "Scatter on",
        ),
        (
            "select v % 2, count(*) from points where v > $1 group by 1",
            "Merge on",
        ),
        (
            "select count(*) from points p join marks m on m.points_id = p.id where p.v > $1",
            "Merge on",
        ),
        (
            "select row_number() over () from points where v > $1",
            "Gather on",
        ),
    ] {
        for word in ["explain", "explain analyze"] {
            for limit in [0, 1] {
                let text = format!("{word} {text}");
                let batch = Batch::new()
                    .parse("", &text)
                    .bind("", "", &[Some("290")])
                    .describe('P', "")
                    .execute("", limit)
                    .sync();
                let frames = connection.batch(&batch)?;
                if let Some(error) = frames.iter().find(|frame| frame.tag == b'E') {
                    anyhow::bail!("{text}: {}", error.text());
                }
                starts(&column(&frames)?, expected).context(text)?;
            }
        }
    }
    is_one(&mut connection, "select count(*) from points", "300")
}

fn transaction_block(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    connection.execute("begin")?;
    connection.execute("insert into points values (1001, 1001)")?;
    for _ in 0..2 {
        let plan = lines(&mut connection, &format!("explain analyze {MOVES}"))?;
        starts(&plan, "Merge on")?;
        let plan = lines(&mut connection, "explain analyze select id from points")?;
        ensure!(plan[0].contains("actual rows=301,"), "{}", plan[0]);
        is_one(&mut connection, "select count(*) from points", "301")?;
    }
    connection.execute("rollback")?;
    is_one(&mut connection, "select count(*) from points", "300")?;
    // The executor makes no tables on shards in a read-only transaction.
    connection.execute("begin read only")?;
    for word in ["explain", "explain analyze"] {
        let plan = lines(&mut connection, &format!("{word} {MOVES}"))?;
        starts(&plan, "Gather on shard1")?;
    }
    connection.execute("commit")?;
    Ok(())
}

/// Errors on a shard, in the last statement, behind many rows, and in the client's own text.
const FAILURES: &[(&str, &str)] = &[
    ("select 1 / (id - 5) from points", "22012"),
    ("select 1 / (count(*) - 300) from points", "22012"),
    ("select id, 1 / (id - 299) from points order by id", "22012"),
    (
        "select v, repeat('x', 1000), 1 / (count(*) - (v = 299)::int) from points group by v order by v",
        "22012",
    ),
    ("select nope from points", "42703"),
    ("select count(nope) from points", "42703"),
];

fn failures(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    for (text, sqlstate) in FAILURES {
        let text = format!("explain analyze {text}");
        let (code, message) = connection.failure(&text)?;
        ensure!(code == *sqlstate, "{text}: {code} {message}");
        is_one(&mut connection, "select count(*) from points", "300")?;
        connection.execute("begin")?;
        fails(&mut connection, &text, sqlstate)?;
        fails(&mut connection, "select 1", "25P02")?;
        connection.execute("rollback")?;
        let rows = connection.rows("select id from points")?;
        ensure!(rows.len() == 300, "{text}: {} rows afterwards", rows.len());
    }
    // A position is one in the client's text.
    let text = "explain select nope from points";
    let frames = connection.simple(text)?;
    let error = frames.iter().find(|frame| frame.tag == b'E');
    let position = error.context("no error")?.field(b'P');
    ensure!(position.as_deref() == Some("16"), "{position:?}");
    Ok(())
}

fn force_tier(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    for (tier, scatters, merges) in [
        ("scatter", "Scatter on", "Merge on"),
        ("merge", "Gather on", "Merge on"),
        ("gather", "Gather on", "Gather on"),
    ] {
        connection.execute(&format!("set automator67.force_tier = '{tier}'"))?;
        for word in ["explain", "explain analyze"] {
            for (text, expected) in [(SCATTERS, scatters), (MERGES, merges), (MOVES, merges)] {
                let text = format!("{word} {text}");
                starts(&lines(&mut connection, &text)?, expected).context(tier)?;
                let batch = Batch::new().parse("", &text).bind("", "", &[]);
                let frames = connection.batch(&batch.execute("", 0).sync())?;
                starts(&column(&frames)?, expected).context(tier)?;
            }
        }
        connection.execute("reset automator67.force_tier")?;
        let plan = lines(&mut connection, &format!("explain {SCATTERS}"))?;
        starts(&plan, "Scatter on")?;
    }
    Ok(())
}

fn options(dev: &Dev) -> Result<()> {
    let mut connection = open(dev)?;
    let text = format!("explain (analyze, costs off, timing off, verbose) {SCATTERS}");
    let plan = lines(&mut connection, &text)?;
    ensure!(count(&plan, "cost=") == 0, "{plan:?}");
    holds(&plan, "Output: ")?;
    for format in ["yaml", "xml"] {
        let text = format!("explain (format {format}) {SCATTERS}");
        fails(&mut connection, &text, "0A000")?;
        let one = format!("explain (format {format}) select * from points where id = 1");
        let plan = lines(&mut connection, &one)?;
        ensure!(
            plan.len() == 1 && !plan[0].contains("Single on"),
            "{plan:?}"
        );
    }
    fails(
        &mut connection,
        &format!("explain (nonsense) {SCATTERS}"),
        "42601",
    )?;
    Ok(())
}

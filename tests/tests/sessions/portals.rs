//! Portals with row limits, cursors.

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wire::{Connection, Server},
};

use super::{column, fails, is_one};

pub const CHECKS: &[Check<Server>] = &[
    ("portal on one shard", on_one_shard),
    ("portal over all shards", over_all_shards),
    ("two portals in turn", two_portals),
    ("portals end with their transaction", portals_end),
    ("portals step by step, of reads and writes", every_step),
    ("cursors", cursors),
];

/// Reads a portal in steps of seven rows.
fn in_steps(connection: &mut Connection, text: &str, value: &str, count: usize) -> Result<()> {
    let start = Batch::new()
        .query("begin")
        .parse("", text)
        .bind("p", "", &[Some(value)]);
    connection.send(start.execute("p", 7).sync().bytes())?;
    connection.until_ready()?;
    let mut frames = connection.until_ready()?;
    let mut found = Vec::new();
    loop {
        found.extend(column(&frames)?);
        let shape = shape(&frames);
        if shape.ends_with("CZ") {
            break;
        }
        ensure!(shape.ends_with("DDDDDDDsZ"), "{text}: {shape}");
        frames = connection.batch(&Batch::new().execute("p", 7).sync())?;
    }
    connection.execute("commit")?;
    let expected: Vec<String> = (1..=count).map(|number| number.to_string()).collect();
    ensure!(found == expected, "{text}: {found:?}");
    Ok(())
}

fn on_one_shard(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let text = "select generate_series(1, 40) from points where id = $1";
    in_steps(&mut connection, text, "5", 40)?;
    in_steps(&mut connection, text, "6", 40)
}

fn over_all_shards(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    in_steps(
        &mut connection,
        "select id from points where id <= $1 order by id",
        "200",
        200,
    )
}

fn two_portals(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("begin")?;
    let batch = Batch::new()
        .parse("", "select id from points where id <= $1 order by id")
        .bind("all", "", &[Some("4")])
        .parse("", "select generate_series(1, 4) from points where id = $1")
        .bind("one", "", &[Some("4")])
        .sync();
    ensure!(shape(&connection.batch(&batch)?) == "1212Z");
    for step in ["1", "2", "3", "4"] {
        for portal in ["all", "one"] {
            let frames = connection.batch(&Batch::new().execute(portal, 1).sync())?;
            ensure!(
                shape(&frames) == "DsZ",
                "{portal} {step}: {}",
                shape(&frames)
            );
            ensure!(column(&frames)? == [step], "{portal}");
        }
    }
    connection.execute("commit")?;
    Ok(())
}

fn portals_end(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "select v from points where id >= $1",
        "select v from points where id = $1",
    ] {
        let batch = Batch::new()
            .parse("", text)
            .bind("p", "", &[Some("1")])
            .sync();
        ensure!(shape(&connection.batch(&batch)?) == "12Z");
        let frames = connection.batch(&Batch::new().execute("p", 0).sync())?;
        ensure!(shape(&frames) == "E(34000)Z", "{text}: {}", shape(&frames));
    }
    Ok(())
}

/// Five rows each, and what gives them again.
const FIVE_ROWS: &[&str] = &[
    "select v from points where id <= $1 order by id",
    "select generate_series(1, $1::integer) from points where id = 4",
    "select id from words, generate_series(1, $1::integer) where id = 1",
    "select generate_series(1, $1::integer)",
    "select v % 100, count(*) from points where id <= $1 group by 1 order by 1",
    "update points set v = v where id <= $1 returning id",
    "update points set v = v from words w where w.id = 1 and points.id <= $1 returning v",
    "with u as (update points set v = v where id <= $1 returning id) select id from u",
    "insert into notes select 100 + g, 'x' from generate_series(1, $1::integer) g returning id",
    "insert into points (id, v) select 900 + g, g from generate_series(1, $1::integer) g returning id",
    "delete from points where id <= $1 returning id",
];

/// Messages behind a Parse of `s`, and what they are answered with in autocommit and in a block.
type Step = (
    &'static str,
    fn(Batch) -> Batch,
    &'static [&'static str],
    &'static [&'static str],
);

fn bound(batch: Batch) -> Batch {
    batch.bind("p", "s", &[Some("5")])
}

fn other(batch: Batch) -> Batch {
    let text = "select id from points where id between $1 and 9 order by id";
    bound(batch.parse("o", text).bind("q", "o", &[Some("6")]))
}

const STEPS: &[Step] = &[
    (
        "twice",
        |batch| bound(batch).execute("p", 0).execute("p", 0).sync(),
        &["2DDDDDCCZ"],
        &["2DDDDDCCZ"],
    ),
    (
        "a limit, then all",
        |batch| {
            bound(batch)
                .execute("p", 2)
                .execute("p", 0)
                .execute("p", 3)
                .sync()
        },
        &["2DDsDDDCCZ"],
        &["2DDsDDDCCZ"],
    ),
    (
        "as many as there are",
        |batch| bound(batch).execute("p", 5).execute("p", 5).sync(),
        &["2DDDDDsCZ"],
        &["2DDDDDsCZ"],
    ),
    (
        "more than there are",
        |batch| bound(batch).execute("p", 6).execute("p", 6).sync(),
        &["2DDDDDCCZ"],
        &["2DDDDDCCZ"],
    ),
    (
        "over Syncs",
        |batch| {
            let batch = bound(batch).execute("p", 2).sync().execute("p", 2).sync();
            batch.execute("p", 0).sync()
        },
        &["2DDsZ", "E(34000)Z", "E(34000)Z"],
        &["2DDsZ", "DDsZ", "DCZ"],
    ),
    (
        "Describe and Close between",
        |batch| {
            let batch = bound(batch)
                .execute("p", 1)
                .describe('P', "p")
                .execute("p", 1);
            let batch = batch.describe('S', "s").close('P', "p").close('P', "p");
            batch.execute("p", 1).execute("p", 1).sync()
        },
        &["2DsTDstT33E(34000)Z"],
        &["2DsTDstT33E(34000)Z"],
    ),
    (
        "Close of the statement",
        |batch| {
            let batch = bound(batch)
                .close('S', "s")
                .execute("p", 1)
                .describe('P', "p");
            batch.execute("p", 0).bind("r", "s", &[Some("5")]).sync()
        },
        &["23DsTDDDDCE(26000)Z"],
        &["23DsTDDDDCE(26000)Z"],
    ),
    (
        "a simple query between",
        |batch| {
            let batch = bound(batch).execute("p", 1).query("select 7");
            batch.execute("p", 0).sync()
        },
        &["2DsTDCZ", "E(34000)Z"],
        &["2DsTDCZ", "DDDDCZ"],
    ),
    (
        "an error",
        |batch| {
            let batch = bound(batch).execute("p", 1).parse("x", "select 1/");
            let batch = batch
                .execute("p", 1)
                .query("select 7")
                .sync()
                .execute("p", 0);
            batch.sync()
        },
        &["2DsE(42601)Z", "E(34000)Z"],
        &["2DsE(42601)Z", "E(25P02)Z"],
    ),
    (
        "two in turn",
        |batch| {
            let batch = other(batch).execute("p", 1).execute("q", 2).execute("p", 1);
            let batch = batch
                .execute("q", 2)
                .execute("p", 0)
                .execute("q", 0)
                .close('P', "q");
            batch.execute("p", 0).sync()
        },
        &["122DsDDsDsDDsDDDCC3CZ"],
        &["122DsDDsDsDDsDDDCC3CZ"],
    ),
    (
        "the same name",
        |batch| bound(bound(batch)).execute("p", 0).sync(),
        &["2E(42P03)Z"],
        &["2E(42P03)Z"],
    ),
    (
        "never executed",
        |batch| bound(batch).describe('P', "p").close('P', "p").sync(),
        &["2T3Z"],
        &["2T3Z"],
    ),
];

fn every_step(server: &Server) -> Result<()> {
    for text in FIVE_ROWS {
        for (name, build, alone, in_block) in STEPS {
            for (block, expected) in [(false, alone), (true, in_block)] {
                let mut connection = Connection::open(server)?;
                if block {
                    connection.execute("begin")?;
                }
                connection.batch(&Batch::new().parse("s", text).sync())?;
                connection.send(build(Batch::new()).bytes())?;
                for expected in *expected {
                    let found = shape(&connection.until_ready()?);
                    ensure!(found == *expected, "{text}, {name}, {block}: {found}");
                }
                if block {
                    connection.execute("rollback")?;
                }
                restore(&mut connection)?;
            }
        }
    }
    Ok(())
}

fn restore(connection: &mut Connection) -> Result<()> {
    connection.execute("delete from notes where id > 100")?;
    connection.execute("delete from points where id > 900")?;
    connection.execute(
        "insert into points select i, i, '2024-01-01 00:00:00+00' from generate_series(1, 5) i
         on conflict do nothing",
    )?;
    Ok(())
}

fn cursors(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("begin")?;
    connection.execute("declare a cursor for select id from points order by id")?;
    connection
        .execute("declare b cursor for select generate_series(1, 9) from points where id = 2")?;
    let mut next = |text: &str| -> Result<Vec<String>> {
        let frames = connection.simple(text)?;
        column(&frames).with_context(|| format!("{text}: {}", shape(&frames)))
    };
    ensure!(next("fetch 2 from a")? == ["1", "2"]);
    ensure!(next("fetch 3 from b")? == ["1", "2", "3"]);
    ensure!(next("fetch 2 from a")? == ["3", "4"]);
    ensure!(next("fetch all from b")? == ["4", "5", "6", "7", "8", "9"]);
    ensure!(next("fetch all from a")?.len() == 296);
    ensure!(next("fetch a")?.is_empty());
    connection.execute("commit")?;
    fails(&mut connection, "fetch a", "34000")?;
    is_one(&mut connection, "select 1", "1")
}

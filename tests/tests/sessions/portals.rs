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

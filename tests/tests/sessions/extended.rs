//! Pipelines, prepared statements, Describe.

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wire::{Connection, Frame, Server},
};

use super::{column, fails, is_one, rows};

pub const CHECKS: &[Check<Server>] = &[
    ("a pipeline of writes", pipeline_of_writes),
    ("an error skips to Sync", error_skips_to_sync),
    ("an error at Execute skips", error_at_execute_skips),
    ("several Syncs", several_syncs),
    ("a pipeline of simple queries", simple_pipeline),
    ("mixed protocols in a transaction", mixed_transaction),
    ("Flush answers without Sync", flush),
    ("named statements on every key", named_on_every_key),
    ("the same name in many sessions", same_name),
    ("names are taken once", names_are_taken_once),
    ("a failed Parse leaves no name", failed_parse),
    ("unnamed is replaced", unnamed_is_replaced),
    ("Describe", describe),
    ("Describe of a portal in binary", describe_binary),
    ("wrong number of parameters", wrong_parameters),
    ("a changed table", changed_table),
    ("an empty query", empty_query),
];

fn shape_is(frames: &[Frame], expected: &str) -> Result<()> {
    let got = shape(frames);
    let errors: Vec<String> = frames.iter().filter_map(|it| it.field(b'M')).collect();
    let errors = if got.contains('E') {
        errors
    } else {
        Vec::new()
    };
    ensure!(got == expected, "{got} instead of {expected} {errors:?}");
    Ok(())
}

fn pipeline_of_writes(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let mut batch = Batch::new();
    for id in 1001..1101 {
        let id = id.to_string();
        batch = batch.run("insert into points values ($1, 1)", &[&id]);
    }
    let frames = connection.batch(&batch.sync())?;
    shape_is(&frames, &format!("{}Z", "12C".repeat(100)))?;
    is_one(
        &mut connection,
        "select count(*) from points where id > 1000",
        "100",
    )?;
    let mut batch = Batch::new();
    for id in 1001..1101 {
        let id = id.to_string();
        batch = batch.run("select id from points where id = $1", &[&id]);
    }
    let found = column(&connection.batch(&batch.sync())?)?;
    let expected: Vec<String> = (1001..1101).map(|id: i32| id.to_string()).collect();
    ensure!(found == expected, "{found:?}");
    let batch = Batch::new()
        .run("delete from points where id > $1", &["1000"])
        .sync();
    shape_is(&connection.batch(&batch)?, "12CZ")
}

/// All statements up to Sync are one transaction, also when they are on several shards.
fn error_skips_to_sync(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let mut batch = Batch::new();
    for id in ["2001", "2002", "2003", "2004", "2005"] {
        batch = batch.run("insert into points values ($1, 1)", &[id]);
    }
    batch = batch.run("select nothing from points where id = $1", &["1"]);
    batch = batch.run("insert into points values ($1, 1)", &["2006"]);
    let frames = connection.batch(&batch.sync())?;
    shape_is(&frames, &format!("{}E(42703)Z", "12C".repeat(5)))?;
    ensure!(frames.last().is_some_and(|ready| ready.body[..] == *b"I"));
    is_one(
        &mut connection,
        "select count(*) from points where id > 2000",
        "0",
    )
}

fn error_at_execute_skips(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new()
        .run("update points set v = v + 1000 where id = $1", &["1"])
        .run("select 1 / (v - v) from points where id = $1", &["2"])
        .run("update points set v = v + 1000 where id = $1", &["3"])
        .sync()
        .run("select v from points where id = $1", &["1"])
        .sync();
    let frames = connection.batch(&batch)?;
    shape_is(&frames, "12C12E(22012)Z")?;
    let frames = connection.until_ready()?;
    shape_is(&frames, "12DCZ")?;
    ensure!(column(&frames)? == ["1"], "{frames:?}");
    // In an explicit transaction the error spoils it until ROLLBACK.
    connection.execute("begin")?;
    let batch = Batch::new()
        .run("update points set v = v + 1000 where id = $1", &["1"])
        .run("select 1 / 0", &[])
        .sync()
        .run("select v from points where id = $1", &["2"])
        .sync();
    let frames = connection.batch(&batch)?;
    ensure!(shape(&frames).ends_with("E(22012)Z"), "{}", shape(&frames));
    ensure!(frames.last().is_some_and(|ready| ready.body[..] == *b"E"));
    shape_is(&connection.until_ready()?, "E(25P02)Z")?;
    connection.execute("rollback")?;
    is_one(&mut connection, "select v from points where id = 1", "1")
}

fn several_syncs(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new()
        .run("insert into points values ($1, 1)", &["3001"])
        .run("insert into points values ($1, 1)", &["3002"])
        .sync()
        .run("insert into points values ($1, 1)", &["3003"])
        .run("insert into points values ($1, 1)", &["3001"])
        .run("insert into points values ($1, 1)", &["3004"])
        .sync()
        .run("insert into points values ($1, 1)", &["3005"])
        .sync()
        .sync()
        .run("delete from points where id > $1 returning id", &["3000"])
        .sync();
    shape_is(&connection.batch(&batch)?, "12C12CZ")?;
    shape_is(&connection.until_ready()?, "12C12E(23505)Z")?;
    shape_is(&connection.until_ready()?, "12CZ")?;
    shape_is(&connection.until_ready()?, "Z")?;
    let frames = connection.until_ready()?;
    let mut deleted = column(&frames)?;
    deleted.sort();
    ensure!(deleted == ["3001", "3002", "3005"], "{deleted:?}");
    Ok(())
}

fn simple_pipeline(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let mut batch = Batch::new();
    for id in 1..=50 {
        batch = batch.query(&format!("select v from points where id = {id}"));
    }
    batch = batch
        .query("select nothing")
        .query("select count(*) from points");
    connection.send(batch.bytes())?;
    for id in 1..=50 {
        ensure!(
            column(&connection.until_ready()?)? == [id.to_string()],
            "{id}"
        );
    }
    shape_is(&connection.until_ready()?, "E(42703)Z")?;
    ensure!(column(&connection.until_ready()?)? == ["300"]);
    // Several statements in one query are one transaction, and the error ends the text.
    let frames = connection.simple(
        "update points set v = 0 where id = 1; update points set v = 0 where id = 2; select 1/0; select 1",
    )?;
    shape_is(&frames, "CCE(22012)Z")?;
    is_one(&mut connection, "select min(v) from points", "1")
}

fn mixed_transaction(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new()
        .query("begin")
        .run("update points set v = -1 where id = $1", &["1"])
        .sync()
        .query("update points set v = -2 where id = 2")
        .run(
            "select sum(v) from points where id in ($1, $2)",
            &["1", "2"],
        )
        .sync()
        .query("rollback")
        .run(
            "select sum(v) from points where id in ($1, $2)",
            &["1", "2"],
        )
        .sync();
    connection.send(batch.bytes())?;
    let mut sums = Vec::new();
    for _ in 0..6 {
        let frames = connection.until_ready()?;
        ensure!(!shape(&frames).contains('E'), "{}", shape(&frames));
        sums.extend(column(&frames)?);
    }
    ensure!(sums == ["-3", "3"], "{sums:?}");
    Ok(())
}

fn flush(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new()
        .run("select v from points where id = $1", &["7"])
        .flush();
    connection.send(batch.bytes())?;
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(connection.receive()?);
    }
    shape_is(&got, "12DC")?;
    let batch = Batch::new().run("select count(*) from points", &[]).flush();
    connection.send(batch.bytes())?;
    let mut got = Vec::new();
    for _ in 0..4 {
        got.push(connection.receive()?);
    }
    shape_is(&got, "12DC")?;
    ensure!(column(&got)? == ["300"]);
    shape_is(&connection.batch(&Batch::new().sync())?, "Z")
}

fn named_on_every_key(server: &Server) -> Result<()> {
    let mut connections = Vec::new();
    for _ in 0..4 {
        let mut connection = Connection::open(server)?;
        let batch = Batch::new()
            .parse("one", "select v from points where id = $1")
            .parse("all", "select count(*) from points where v <= $1")
            .parse("write", "update points set v = v where id = $1")
            .sync();
        shape_is(&connection.batch(&batch)?, "111Z")?;
        connections.push(connection);
    }
    for round in 1..=60 {
        let id = round.to_string();
        for connection in &mut connections {
            let value = [Some(id.as_str())];
            let batch = Batch::new().bind("", "one", &value).execute("", 0).sync();
            ensure!(
                column(&connection.batch(&batch)?)? == [id.clone()],
                "one {id}"
            );
            let batch = Batch::new().bind("", "all", &value).execute("", 0).sync();
            ensure!(
                column(&connection.batch(&batch)?)? == [id.clone()],
                "all {id}"
            );
            let batch = Batch::new().bind("", "write", &value).execute("", 0).sync();
            shape_is(&connection.batch(&batch)?, "2CZ")?;
        }
    }
    Ok(())
}

/// Sessions that share server connections do not share names.
fn same_name(server: &Server) -> Result<()> {
    let mut connections = Vec::new();
    for number in 0..8 {
        let mut connection = Connection::open(server)?;
        let text = format!("select {number}, v from points where id = $1");
        let batch = Batch::new().parse("same", &text).sync();
        shape_is(&connection.batch(&batch)?, "1Z")?;
        connections.push(connection);
    }
    for id in ["1", "2", "3", "4", "5", "6"] {
        for (number, connection) in connections.iter_mut().enumerate() {
            let batch = Batch::new()
                .bind("", "same", &[Some(id)])
                .execute("", 0)
                .sync();
            let got = rows(&connection.batch(&batch)?)?;
            ensure!(got == [[number.to_string(), id.to_owned()]], "{got:?}");
        }
    }
    Ok(())
}

fn names_are_taken_once(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let text = "select v from points where id = $1";
    let parse = |text| Batch::new().parse("name", text).sync();
    shape_is(&connection.batch(&parse(text))?, "1Z")?;
    shape_is(&connection.batch(&parse(text))?, "E(42P05)Z")?;
    shape_is(&connection.batch(&parse("select 'other'"))?, "E(42P05)Z")?;
    let use_it = Batch::new()
        .bind("", "name", &[Some("9")])
        .execute("", 0)
        .sync();
    ensure!(
        column(&connection.batch(&use_it)?)? == ["9"],
        "the first text stays"
    );
    let close = Batch::new().close('S', "name").sync();
    shape_is(&connection.batch(&close)?, "3Z")?;
    shape_is(&connection.batch(&close)?, "3Z")?;
    shape_is(&connection.batch(&use_it)?, "E(26000)Z")?;
    // Close and Parse in one batch.
    shape_is(&connection.batch(&parse("select 'other'"))?, "1Z")?;
    let batch = Batch::new()
        .close('S', "name")
        .parse("name", text)
        .bind("", "name", &[Some("8")]);
    let frames = connection.batch(&batch.execute("", 0).sync())?;
    shape_is(&frames, "312DCZ")?;
    ensure!(column(&frames)? == ["8"]);
    // Another session has names of its own.
    let mut other = Connection::open(server)?;
    shape_is(&other.batch(&use_it)?, "E(26000)Z")
}

fn failed_parse(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let parse = Batch::new()
        .parse("name", "select nothing from points where id = $1")
        .sync();
    shape_is(&connection.batch(&parse)?, "E(42703)Z")?;
    let bind = Batch::new()
        .bind("", "name", &[Some("1")])
        .execute("", 0)
        .sync();
    shape_is(&connection.batch(&bind)?, "E(26000)Z")?;
    let parse = Batch::new()
        .parse("name", "select v from points where id = $1")
        .sync();
    shape_is(&connection.batch(&parse)?, "1Z")?;
    // A statement prepared in a transaction that fails stays.
    connection.execute("begin")?;
    let parse = Batch::new()
        .parse("kept", "select v from points where id = $1")
        .sync();
    shape_is(&connection.batch(&parse)?, "1Z")?;
    fails(&mut connection, "select 1/0", "22012")?;
    connection.execute("rollback")?;
    let bind = Batch::new()
        .bind("", "kept", &[Some("4")])
        .execute("", 0)
        .sync();
    ensure!(column(&connection.batch(&bind)?)? == ["4"]);
    Ok(())
}

fn unnamed_is_replaced(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new()
        .parse("", "select 'first'")
        .parse("", "select 'second'");
    let frames = connection.batch(&batch.bind("", "", &[]).execute("", 0).sync())?;
    shape_is(&frames, "112DCZ")?;
    ensure!(column(&frames)? == ["second"]);
    let again = Batch::new().bind("", "", &[]).execute("", 0).sync();
    ensure!(
        column(&connection.batch(&again)?)? == ["second"],
        "it outlives Sync"
    );
    // A simple query destroys it.
    connection.execute("select v from points where id = 3")?;
    shape_is(&connection.batch(&again)?, "E(26000)Z")
}

fn parameter_types(frame: &Frame) -> Vec<u32> {
    let words = frame.body.get(2..).unwrap_or_default().chunks_exact(4);
    words
        .map(|word| word.iter().fold(0, |sum, byte| sum << 8 | u32::from(*byte)))
        .collect()
}

fn describe(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "select v, t from points where id = $1",
        "select v, t from points where id > $1",
    ] {
        let batch = Batch::new().parse("d", text).describe('S', "d").sync();
        let frames = connection.batch(&batch)?;
        shape_is(&frames, "1tTZ")?;
        ensure!(parameter_types(&frames[1]) == [20], "{frames:?}");
        ensure!(frames[2].body.starts_with(b"\0\x02v\0"), "{frames:?}");
        let batch = Batch::new().bind("p", "d", &[Some("1")]).describe('P', "p");
        let frames =
            connection.batch(&batch.execute("p", 1).close('P', "p").close('S', "d").sync())?;
        ensure!(
            ["2TDs33Z", "2TDC33Z"].contains(&shape(&frames).as_str()),
            "{text}: {}",
            shape(&frames)
        );
    }
    for (text, types) in [
        ("insert into points (id, v) values ($1, $2)", &[20, 23][..]),
        ("update points set v = $2 where id = $1", &[20, 23]),
        ("delete from points where v < $1", &[23]),
        ("set application_name = 'x'", &[]),
        ("begin", &[]),
    ] {
        let batch = Batch::new().parse("", text).describe('S', "").sync();
        let frames = connection.batch(&batch).context(text)?;
        shape_is(&frames, "1tnZ").context(text)?;
        ensure!(parameter_types(&frames[1]) == types, "{text}: {frames:?}");
    }
    let batch = Batch::new()
        .parse("", "insert into points values ($1, 0) returning v")
        .describe('S', "");
    shape_is(&connection.batch(&batch.sync())?, "1tTZ")?;
    let batch = Batch::new()
        .parse("", "show timezone")
        .describe('S', "")
        .sync();
    shape_is(&connection.batch(&batch)?, "1tTZ")
}

/// Format codes of Bind show in RowDescription and in the values.
fn describe_binary(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "select v, t from points where id = $1",
        "select v, t from points where id <= $1",
    ] {
        // One text parameter, result formats: binary, text.
        let body = b"\0\0\0\0\0\x01\0\0\0\x011\0\x02\0\x01\0\0";
        let batch = Batch::new()
            .parse("", text)
            .message(b'B', body)
            .describe('P', "");
        let frames = connection.batch(&batch.execute("", 0).sync())?;
        shape_is(&frames, "12TDCZ").context(text)?;
        let formats: Vec<u8> = [b"v\0", b"t\0"]
            .iter()
            .filter_map(|name| {
                let body = &frames[2].body;
                let at = body.windows(2).position(|window| window == *name)?;
                body.get(at + 2 + 17).copied()
            })
            .collect();
        ensure!(formats == [1, 0], "{text}: {:?}", frames[2]);
        ensure!(
            frames[3].body.starts_with(b"\0\x02\0\0\0\x04\0\0\0\x01"),
            "{text}: {:?}",
            frames[3]
        );
    }
    Ok(())
}

fn wrong_parameters(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let parse = Batch::new()
        .parse("w", "select v from points where id = $1")
        .sync();
    shape_is(&connection.batch(&parse)?, "1Z")?;
    for values in [&[][..], &[Some("1"), Some("2")]] {
        let batch = Batch::new().bind("", "w", values).execute("", 0).sync();
        shape_is(&connection.batch(&batch)?, "E(08P01)Z")?;
    }
    let batch = Batch::new()
        .bind("", "w", &[Some("one")])
        .execute("", 0)
        .sync();
    shape_is(&connection.batch(&batch)?, "E(22P02)Z")?;
    let batch = Batch::new().bind("", "w", &[None]).execute("", 0).sync();
    shape_is(&connection.batch(&batch)?, "2CZ")?;
    let batch = Batch::new().parse("", "select 1; select 2").sync();
    shape_is(&connection.batch(&batch)?, "E(42601)Z")?;
    is_one(&mut connection, "select 1", "1")
}

/// A statement whose result would have other columns than it was described with must not run.
fn changed_table(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "select * from points where id = $1",
        "select * from points where id <= $1",
    ] {
        let mut other = Connection::open(server)?;
        let batch = Batch::new()
            .parse("star", text)
            .describe('S', "star")
            .sync();
        shape_is(&connection.batch(&batch)?, "1tTZ")?;
        let bind = Batch::new()
            .bind("", "star", &[Some("1")])
            .execute("", 0)
            .sync();
        shape_is(&connection.batch(&bind)?, "2DCZ")?;
        other.execute("alter table points add column more text")?;
        let after = connection.batch(&bind);
        other.execute("alter table points drop column more")?;
        shape_is(&after?, "E(0A000)Z").context(text)?;
        connection.batch(&Batch::new().close('S', "star").sync())?;
    }
    Ok(())
}

fn empty_query(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    shape_is(&connection.simple("")?, "IZ")?;
    shape_is(&connection.simple(" ; -- nothing\n;")?, "IZ")?;
    let batch = Batch::new()
        .parse("", "")
        .bind("", "", &[])
        .describe('P', "")
        .execute("", 0);
    shape_is(&connection.batch(&batch.sync())?, "12nIZ")
}

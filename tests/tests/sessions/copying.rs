//! COPY that does not reach its end.

use anyhow::{Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wire::{Connection, Server},
};

use super::is_one;

pub const CHECKS: &[Check<Server>] = &[
    ("CopyFail", copy_fail),
    ("Sync in COPY", sync_in_copy),
    ("a bad row in COPY", bad_row),
    ("a client that leaves COPY", left_behind),
    ("a client that leaves COPY TO", left_reading),
    ("COPY in a transaction", in_transaction),
];

const COPY: &str = "copy points (id, v) from stdin";

/// Rows with ids from `first`, enough for every shard.
fn data(first: u32) -> Batch {
    let rows: String = (first..first + 60)
        .map(|id| format!("{id}\t{id}\n"))
        .collect();
    Batch::new().message(b'd', rows.as_bytes())
}

/// No row above the table's own is left. The lock waits for whoever still copies.
fn nothing_stayed(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("begin")?;
    connection.execute("lock table points in share row exclusive mode")?;
    is_one(
        &mut connection,
        "select count(*) from points where id > 300",
        "0",
    )?;
    connection.execute("commit")?;
    Ok(())
}

fn begin_copy(connection: &mut Connection) -> Result<()> {
    connection.send(Batch::new().query(COPY).bytes())?;
    let frame = connection.receive()?;
    ensure!(frame.tag == b'G', "{frame:?}");
    Ok(())
}

fn copy_fail(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    begin_copy(&mut connection)?;
    connection.send(data(5001).bytes())?;
    let frames = connection.batch(&Batch::new().message(b'f', b"no more\0"))?;
    ensure!(shape(&frames) == "E(57014)Z", "{}", shape(&frames));
    ensure!(
        frames[0]
            .field(b'M')
            .is_some_and(|it| it.contains("no more"))
    );
    is_one(&mut connection, "select 1", "1")?;
    nothing_stayed(server)
}

fn sync_in_copy(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    begin_copy(&mut connection)?;
    connection.send(data(5001).sync().flush().bytes())?;
    connection.send(data(5101).sync().message(b'c', b"").bytes())?;
    let frames = connection.until_ready()?;
    ensure!(
        shape(&frames) == "CZ" && frames[0].text() == "COPY 120",
        "{frames:?}"
    );
    is_one(
        &mut connection,
        "select count(*) from points where id > 300",
        "120",
    )?;
    // The extended protocol: the Sync before CopyDone is ignored as well.
    connection.execute("delete from points where id > 300")?;
    let batch = Batch::new().run(COPY, &[]).sync();
    connection.send(batch.bytes())?;
    let mut tags = Vec::new();
    for _ in 0..3 {
        tags.push(connection.receive()?.tag);
    }
    ensure!(tags == b"12G", "{tags:?}");
    connection.send(data(5001).message(b'c', b"").sync().bytes())?;
    let frames = connection.until_ready()?;
    ensure!(
        shape(&frames) == "CZ" && frames[0].text() == "COPY 60",
        "{frames:?}"
    );
    connection.execute("delete from points where id > 300")?;
    nothing_stayed(server)
}

fn bad_row(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for (line, sqlstate) in [
        ("5900\tseven\n", "22P02"),
        ("5900\n", "22P04"),
        ("5001\t1\n", "23505"),
        ("\\N\t1\n", "23502"),
    ] {
        begin_copy(&mut connection)?;
        let batch = data(5001).message(b'd', line.as_bytes()).bytes().to_vec();
        connection.send(&batch)?;
        connection.send(data(5101).message(b'c', b"").query("select 1").bytes())?;
        let frames = connection.until_ready()?;
        ensure!(
            shape(&frames) == format!("E({sqlstate})Z"),
            "{line}: {}",
            shape(&frames)
        );
        ensure!(shape(&connection.until_ready()?) == "TDCZ", "out of step");
    }
    nothing_stayed(server)
}

fn left_behind(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    begin_copy(&mut connection)?;
    connection.send(data(5001).bytes())?;
    drop(connection);
    let mut connection = Connection::open(server)?;
    begin_copy(&mut connection)?;
    connection.send(data(5101).bytes())?;
    connection.terminate()?;
    nothing_stayed(server)
}

fn left_reading(server: &Server) -> Result<()> {
    for text in [
        "copy (select repeat('x', 1000) from generate_series(1, 100000)) to stdout",
        "copy (select repeat('x', 1000) from points, generate_series(1, 1000)) to stdout",
    ] {
        let mut connection = Connection::open(server)?;
        connection.send(Batch::new().query(text).bytes())?;
        ensure!(connection.receive()?.tag == b'H', "{text}");
        ensure!(connection.receive()?.tag == b'd', "{text}");
        drop(connection);
    }
    nothing_stayed(server)
}

fn in_transaction(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("begin")?;
    begin_copy(&mut connection)?;
    connection.send(data(5001).message(b'c', b"").bytes())?;
    ensure!(shape(&connection.until_ready()?) == "CZ");
    is_one(&mut connection, "select count(*) from points", "360")?;
    begin_copy(&mut connection)?;
    let frames = connection.batch(&data(5101).message(b'f', b"why\0"))?;
    ensure!(frames.last().is_some_and(|ready| ready.body[..] == *b"E"));
    connection.execute("rollback")?;
    nothing_stayed(server)
}

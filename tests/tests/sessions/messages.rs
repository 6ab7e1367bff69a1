//! Which messages may come in which order, and what each is answered.

use std::time::Duration;

use anyhow::{Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wait,
    wire::{Connection, Frame, Server},
};

use super::{column, fails, is_one, rows};

pub const CHECKS: &[Check<Server>] = &[
    ("rows of a write in parts", write_in_parts),
    ("rows of writes in turn", writes_in_turn),
    ("a write by a portal runs once", runs_once),
    ("portals and savepoints", portals_and_savepoints),
    ("a query behind a batch", query_behind_batch),
    ("a query behind an error", query_behind_error),
    ("BEGIN in a batch, then a query", begin_in_batch),
    ("a batch is taken back whole", settings_in_batch),
    ("names given twice", names_given_twice),
    ("function calls", function_calls),
    ("COPY behind Flush", copy_behind_flush),
    ("a client that leaves COPY in a transaction", leaves_copy),
    ("EXECUTE of what Parse has made", execute_of_parsed),
    ("pg_prepared_statements", shown_prepared),
];

fn tags(frames: &[Frame]) -> Vec<String> {
    let complete = frames.iter().filter(|frame| frame.tag == b'C');
    complete.map(Frame::text).collect()
}

fn is(frames: &[Frame], expected: &str) -> Result<()> {
    let got = shape(frames);
    ensure!(got == expected, "{got} instead of {expected}");
    Ok(())
}

fn status(frames: &[Frame]) -> Option<char> {
    frames.last().map(|frame| char::from(frame.body[0]))
}

/// Reads a portal in parts of two rows; how many come with each, and the last tag.
fn in_parts(connection: &mut Connection, text: &str) -> Result<(Vec<String>, Vec<usize>, String)> {
    connection.execute("begin")?;
    let start = Batch::new().parse("", text).bind("parts", "", &[]);
    let mut frames = connection.batch(&start.execute("parts", 2).sync())?;
    let (mut rows, mut counts) = (Vec::new(), Vec::new());
    let tag = loop {
        let part = column(&frames)?;
        counts.push(part.len());
        rows.extend(part);
        if let Some(tag) = tags(&frames).pop() {
            break tag;
        }
        ensure!(shape(&frames).ends_with("sZ"), "{}", shape(&frames));
        frames = connection.batch(&Batch::new().execute("parts", 2).sync())?;
    };
    Ok((rows, counts, tag))
}

fn write_in_parts(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for (text, count, tag) in [
        (
            "update points set v = v + 1 where id <= 7 returning id",
            7,
            "UPDATE 1",
        ),
        (
            "update points set v = v + 1 where id <= 6 returning id",
            6,
            "UPDATE 0",
        ),
        (
            "delete from points where id between 11 and 15 returning id",
            5,
            "DELETE 1",
        ),
        (
            "insert into points values (901, 1), (902, 2), (903, 3) returning id",
            3,
            "INSERT 0 1",
        ),
        (
            "insert into points select id + 1000 from points where id <= 9 returning id",
            9,
            "INSERT 0 1",
        ),
        (
            "with w as (update points set v = 0 where id <= 5 returning id) select id from w",
            5,
            "SELECT 1",
        ),
        ("update words set word = word returning id", 2, "UPDATE 0"),
        ("update notes set note = note returning id", 1, "UPDATE 1"),
    ] {
        let (mut rows, counts, last) = in_parts(&mut connection, text)?;
        rows.sort();
        rows.dedup();
        ensure!(rows.len() == count, "{text}: {rows:?}");
        let full = counts.iter().rev().skip(1).all(|part| *part == 2);
        ensure!(full && last == tag, "{text}: {counts:?} {last}");
        let frames = connection.batch(&Batch::new().execute("parts", 0).sync())?;
        is(&frames, "CZ")?;
        ensure!(
            tags(&frames)[0].ends_with(" 0"),
            "{text}: {:?}",
            tags(&frames)
        );
        connection.execute("rollback")?;
    }
    is_one(&mut connection, "select count(*) from points", "300")
}

fn writes_in_turn(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("begin")?;
    let batch = Batch::new()
        .parse("", "update points set v = -1 where id <= 4 returning id")
        .bind("a", "", &[])
        .parse(
            "",
            "update points set v = -2 where id between 5 and 8 returning id",
        )
        .bind("b", "", &[])
        .parse("", "select id from points where id <= 4 order by id")
        .bind("", "", &[])
        .sync();
    is(&connection.batch(&batch)?, "121212Z")?;
    let mut found = Vec::new();
    for _ in 0..4 {
        for portal in ["a", "b", ""] {
            let frames = connection.batch(&Batch::new().execute(portal, 1).sync())?;
            is(&frames, "DsZ")?;
            found.extend(column(&frames)?);
        }
    }
    for portal in ["a", "b", ""] {
        let frames = connection.batch(&Batch::new().execute(portal, 1).sync())?;
        is(&frames, "CZ")?;
    }
    found.sort();
    ensure!(
        found == ["1", "1", "2", "2", "3", "3", "4", "4", "5", "6", "7", "8"],
        "{found:?}"
    );
    connection.execute("rollback")?;
    Ok(())
}

fn runs_once(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for (text, again) in [
        (
            "insert into points values (901, 0), (902, 0), (903, 0)",
            "E(55000)Z",
        ),
        (
            "insert into points values (904, 0), (905, 0), (906, 0) returning id",
            "CZ",
        ),
        ("insert into points values (907, 0)", "E(55000)Z"),
        ("insert into points values (908, 0) returning id", "CZ"),
        ("update points set v = v + 1 where id > 900", "E(55000)Z"),
        (
            "update points set v = v + 1 where id > 900 returning id",
            "CZ",
        ),
        ("insert into words values (901, 'w')", "E(55000)Z"),
        (
            "insert into points select id + 900 from points where id between 10 and 12",
            "E(55000)Z",
        ),
        ("set extra_float_digits = 1", "E(55000)Z"),
        ("select id from points where id > 900", "CZ"),
        ("select count(*) from points", "CZ"),
    ] {
        for portal in ["", "twice"] {
            connection.execute("begin")?;
            let start = Batch::new().parse("", text).bind(portal, "", &[]);
            let batch = start.execute(portal, 0).execute(portal, 0).sync();
            let frames = connection.batch(&batch)?;
            ensure!(
                shape(&frames).ends_with(again),
                "{text}: {}",
                shape(&frames)
            );
            if again == "CZ" {
                let last = tags(&frames).pop().unwrap_or_default();
                ensure!(last.ends_with(" 0"), "{text}: {last}");
            }
            connection.execute("rollback")?;
        }
        // Outside of a block: nothing stays of the batch, or all of it once.
        let start = Batch::new().parse("", text).bind("", "", &[]);
        let frames = connection.batch(&start.execute("", 0).execute("", 0).sync())?;
        ensure!(
            shape(&frames).ends_with(again),
            "{text}: {}",
            shape(&frames)
        );
    }
    let kept = "select count(*) from points where id > 900";
    is_one(&mut connection, kept, "4")?;
    connection.execute("delete from points where id > 900")?;
    Ok(())
}

fn portals_and_savepoints(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("begin")?;
    let text = "update points set v = v where id <= 6 returning id";
    let outer = Batch::new().parse("s", text).bind("outer", "s", &[]);
    is(
        &connection.batch(&outer.execute("outer", 2).sync())?,
        "12DDsZ",
    )?;
    connection.execute("savepoint a")?;
    let inner = Batch::new().bind("inner", "s", &[]).execute("inner", 2);
    is(&connection.batch(&inner.sync())?, "2DDsZ")?;
    connection.execute("rollback to a")?;
    let frames = connection.batch(&Batch::new().execute("outer", 2).sync())?;
    is(&frames, "DDsZ")?;
    let frames = connection.batch(&Batch::new().execute("inner", 2).sync())?;
    is(&frames, "E(34000)Z")?;
    connection.execute("rollback")?;
    Ok(())
}

fn query_behind_batch(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for insert in [
        "insert into points values (901, 0), (902, 0), (903, 0)",
        "insert into points values (904, 0)",
        "insert into notes values (901, 'x')",
    ] {
        let batch = Batch::new().run(insert, &[]);
        let count = "select (select count(*) from points where id > 900)
            + (select count(*) from notes where id > 900)";
        connection.send(batch.query(count).query("rollback").sync().bytes())?;
        let frames = connection.until_ready()?;
        is(&frames, "12CTDCZ")?;
        ensure!(column(&frames)? != ["0"], "{insert}: the query ran first");
        is(&connection.until_ready()?, "CZ")?;
        is(&connection.until_ready()?, "Z")?;
    }
    is_one(
        &mut connection,
        "select count(*) from points where id > 900",
        "4",
    )?;
    connection.execute("delete from points where id > 900")?;
    connection.execute("delete from notes where id > 900")?;
    Ok(())
}

fn query_behind_error(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for wrong in [
        "insert into points values (1, 0)",
        "select 1 / 0",
        "nonsense",
    ] {
        let batch = Batch::new()
            .run("insert into points values ($1, 0)", &["901"])
            .run(wrong, &[])
            .query("insert into points values (902, 0)")
            .message(b'F', b"\0\0\x03\xbd\0\0\0\0\0\0")
            .query("select 1")
            .sync()
            .query("select count(*) from points where id > 900");
        connection.send(batch.bytes())?;
        let frames = connection.until_ready()?;
        let got = shape(&frames);
        ensure!(
            got.starts_with("12C") && got.ends_with(")Z"),
            "{wrong}: {got}"
        );
        ensure!(
            !got.contains('T') && status(&frames) == Some('I'),
            "{wrong}: {got}"
        );
        let frames = connection.until_ready()?;
        ensure!(column(&frames)? == ["0"], "{wrong}: {}", shape(&frames));
    }
    Ok(())
}

fn begin_in_batch(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new().run("begin", &[]).query("savepoint x");
    let frames = connection.batch(&batch)?;
    is(&frames, "12CCZ")?;
    ensure!(status(&frames) == Some('T'), "{frames:?}");
    let batch = Batch::new()
        .run("update points set v = -1 where id <= $1", &["9"])
        .query("rollback to x");
    let frames = connection.batch(&batch)?;
    is(&frames, "12CCZ")?;
    ensure!(status(&frames) == Some('T'), "{frames:?}");
    let frames = connection.batch(&Batch::new().run("commit", &[]).query("select 1"))?;
    is(&frames, "12CTDCZ")?;
    ensure!(status(&frames) == Some('I'), "{frames:?}");
    is_one(&mut connection, "select min(v) from points", "1")
}

fn settings_in_batch(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let before = connection.execute("show timezone")?;
    let batch = Batch::new()
        .run("set timezone = 'Asia/Tokyo'", &[])
        .run("select 1 / 0", &[])
        .sync();
    let frames = connection.batch(&batch)?;
    ensure!(shape(&frames).ends_with("E(22012)Z"), "{}", shape(&frames));
    ensure!(
        connection.execute("show timezone")? == before,
        "SET was kept"
    );
    let batch = Batch::new()
        .run("set timezone = 'Asia/Tokyo'", &[])
        .run("update points set v = v where id <= 3", &[])
        .sync();
    is(&connection.batch(&batch)?, "12C12CZ")?;
    is_one(&mut connection, "show timezone", "Asia/Tokyo")?;
    let text = "select distinct current_setting('timezone') from points";
    is_one(&mut connection, text, "Asia/Tokyo")
}

fn names_given_twice(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let text = "select v from points where id = 1";
    let twice = Batch::new().parse("name", text).parse("name", text).sync();
    for _ in 0..2 {
        is(&connection.batch(&twice)?, "1E(42P05)Z")?;
        connection.batch(&Batch::new().close('S', "name").sync())?;
    }
    let batch = Batch::new()
        .parse("name", text)
        .close('S', "name")
        .parse("name", text)
        .bind("p", "name", &[])
        .bind("p", "name", &[])
        .sync();
    is(&connection.batch(&batch)?, "1312E(42P03)Z")?;
    connection.execute("prepare other as select 1")?;
    let batch = Batch::new().parse("other", text).sync();
    is(&connection.batch(&batch)?, "E(42P05)Z")
}

fn function_calls(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let create: &[u8] = b"\0\0\x03\xbd\0\x01\0\x01\0\x01\0\0\0\x04\xff\xff\xff\xff\0\x01";
    let frames = connection.batch(&Batch::new().message(b'F', create))?;
    is(&frames, "VZ")?;
    connection.execute("begin")?;
    let frames = connection.batch(&Batch::new().message(b'F', create))?;
    ensure!(
        shape(&frames) == "VZ" && status(&frames) == Some('T'),
        "{frames:?}"
    );
    connection.execute("rollback")?;
    // No function has this number.
    let wrong = Batch::new().message(b'F', b"\0\0\0\0\0\0\0\0\0\0");
    let frames = connection.batch(&wrong)?;
    ensure!(
        shape(&frames).starts_with("E(") && shape(&frames).ends_with(")Z"),
        "{frames:?}"
    );
    is(
        &connection.batch(&Batch::new().message(b'F', b"\0"))?,
        "E(08P01)Z",
    )?;
    connection.execute("begin")?;
    let frames = connection.batch(&wrong)?;
    ensure!(status(&frames) == Some('E'), "{frames:?}");
    is(
        &connection.batch(&Batch::new().message(b'F', create))?,
        "E(25P02)Z",
    )?;
    connection.execute("rollback")?;
    is_one(&mut connection, "select 1", "1")
}

fn copy_behind_flush(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for copy in ["copy points (id, v) from stdin", "copy notes from stdin"] {
        connection.send(Batch::new().run(copy, &[]).flush().bytes())?;
        let mut tags = Vec::new();
        for _ in 0..3 {
            tags.push(connection.receive()?.tag);
        }
        ensure!(tags == b"12G", "{copy}: {tags:?}");
        let data = Batch::new()
            .message(b'd', b"901\t1\n902\t2\n")
            .message(b'c', b"");
        connection.send(data.bytes())?;
        is(&connection.batch(&Batch::new().sync())?, "CZ")?;
        is_one(&mut connection, "select 1", "1")?;
    }
    connection.execute("delete from points where id > 900")?;
    connection.execute("delete from notes where id > 900")?;
    Ok(())
}

/// The server may think for a moment.
const AT_ONCE: Duration = Duration::from_secs(1);

fn leaves_copy(server: &Server) -> Result<()> {
    for (name, columns) in [
        ("points", "points (id, v)"),
        ("words", "words"),
        ("notes", "notes"),
    ] {
        for goodbye in [false, true] {
            let mut connection = Connection::open(server)?;
            connection.execute("begin")?;
            let copy = format!("copy {columns} from stdin");
            connection.send(Batch::new().query(&copy).bytes())?;
            ensure!(connection.receive()?.tag == b'G', "{copy}");
            let rows: String = (901..960).map(|id| format!("{id}\t1\n")).collect();
            connection.send(Batch::new().message(b'd', rows.as_bytes()).bytes())?;
            if goodbye {
                connection.terminate()?;
            } else {
                drop(connection);
            }
            let mut other = Connection::open(server)?;
            let lock = format!("begin; lock table {name} in exclusive mode nowait; commit");
            wait::until(&format!("{copy} to end"), AT_ONCE, || {
                let done = other.execute(&lock).is_ok();
                let _ = other.execute("rollback");
                done.then_some(())
            })?;
            is_one(
                &mut other,
                &format!("select count(*) from {name} where id > 900"),
                "0",
            )?;
        }
    }
    Ok(())
}

fn execute_of_parsed(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let batch = Batch::new()
        .parse("one", "select v from points where id = $1")
        .parse("many", "select count(*) from points where id <= $1")
        .parse("plain", "select 7")
        .parse("note", "select note from notes where id = $1")
        .sync();
    is(&connection.batch(&batch)?, "1111Z")?;
    is_one(&mut connection, "execute one(5)", "5")?;
    is_one(&mut connection, "execute many(1 + 2)", "3")?;
    is_one(&mut connection, "execute plain", "7")?;
    is_one(&mut connection, "execute note(1)", "first")?;
    fails(&mut connection, "execute one(1, 2)", "42601")?;
    for (text, expected) in [("execute many(4)", "4"), ("execute one(5)", "5")] {
        let batch = Batch::new().parse("", text).describe('S', "");
        let batch = batch.bind("", "", &[]).describe('P', "").execute("", 0);
        let frames = connection.batch(&batch.sync())?;
        is(&frames, "1tT2TDCZ")?;
        ensure!(column(&frames)? == [expected], "{text}");
    }
    connection.execute("deallocate one")?;
    fails(&mut connection, "execute one(5)", "26000")?;
    fails(&mut connection, "execute nothing", "26000")
}

/// A session's prepared statements are those that its client has made, by Parse and by PREPARE.
fn shown_prepared(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let shown = "select name, parameter_types::text, from_sql, statement from pg_prepared_statements \
                 order by name";
    let batch = Batch::new()
        .parse("many", "select count(*) from points where id > $1")
        .parse("note", "select note from notes where id = $1 or note = $2")
        .parse("", "select 1");
    is(&connection.batch(&batch.sync())?, "111Z")?;
    connection.execute("prepare by_id (bigint) as select v from points where id = $1")?;
    connection.execute("prepare \"o\"\"dd\\\" as select $1, $2::\"char\"; select 7")?;
    let all = [
        "by_id {bigint} t prepare by_id (bigint) as select v from points where id = $1",
        "many {bigint} f select count(*) from points where id > $1",
        "note {integer,text} f select note from notes where id = $1 or note = $2",
        "o\"dd\\ {text,\"\\\"char\\\"\"} t prepare \"o\"\"dd\\\" as select $1, $2::\"char\"; select 7",
    ];
    let rows_of = |connection: &mut Connection, text: &str| -> Result<Vec<String>> {
        let rows = rows(&connection.simple(text)?)?;
        Ok(rows.iter().map(|row| row.join(" ")).collect())
    };
    let found = rows_of(&mut connection, shown)?;
    ensure!(found == all, "{found:#?}");
    // Run once, and in a transaction, they are the same.
    is_one(&mut connection, "execute many (290)", "10")?;
    connection.execute("begin")?;
    is_one(&mut connection, "execute by_id (5)", "5")?;
    let found = rows_of(&mut connection, shown)?;
    ensure!(found == all, "{found:#?}");
    connection.execute("rollback")?;
    for text in [
        "select count(*) from pg_prepared_statements",
        "select count(p.name) from pg_catalog.pg_prepared_statements p",
        "with p as (select name from pg_prepared_statements) select count(*) from p",
        "select count(distinct name) from pg_prepared_statements, points where id < 4",
        "select sum(n) from (select 1 as n from only pg_prepared_statements where statement is not null) p",
    ] {
        is_one(&mut connection, text, "4")?;
    }
    connection.execute("deallocate many")?;
    connection.execute("deallocate by_id")?;
    is_one(
        &mut connection,
        "select string_agg(name, ' ' order by name) from pg_prepared_statements",
        "note o\"dd\\",
    )?;
    connection.execute("deallocate all")?;
    is_one(
        &mut connection,
        "select count(*) from pg_prepared_statements",
        "0",
    )?;
    fails(&mut connection, "execute note (1, 'x')", "26000")
}

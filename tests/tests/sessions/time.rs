//! A transaction has one time, on however many shards.

use anyhow::{Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wire::{Connection, Server},
};

use super::{column, is_one};

pub const CHECKS: &[Check<Server>] = &[
    ("defaults have one time", defaults),
    ("new values have one time", values),
    ("queries see one time", queries),
    ("batches have one time", batches),
    ("every transaction has its own time", own_time),
    ("what stands for the time is the client's", literal),
    ("rows of COPY have one time", copied),
    ("COPY fills in what it reads back", filled),
    ("rows of queries have one time", selected),
    ("rows of local tables have one time", local),
    ("rows of reference tables have one time", copies),
    ("the time is put where it is read", places),
];

fn begin(connection: &mut Connection) -> Result<()> {
    connection.execute("delete from stamps")?;
    connection.execute("begin")?;
    Ok(())
}

/// All rows have one time, that of the transaction that is open.
fn is_one_time(connection: &mut Connection, rows: &str) -> Result<()> {
    let count = "select count(distinct at) || ' ' || count(*) from stamps";
    is_one(connection, count, &format!("1 {rows}"))?;
    is_one(connection, "select bool_and(at = now()) from stamps", "t")
}

fn defaults(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for insert in [
        "insert into stamps (id) values (ID)",
        "insert into stamps (id, v) values (ID, 7)",
        "insert into stamps values (ID)",
        "insert into stamps (id, at) values (ID, default)",
        "insert into stamps (id, at) values (ID, now())",
        "insert into stamps (id, at) values (ID, current_timestamp) returning at",
        "insert into stamps (id) values (ID) on conflict do nothing",
        "insert into stamps (id) values (ID) returning id, at",
    ] {
        begin(&mut connection)?;
        for id in 1..=8 {
            let text = insert.replace("ID", &id.to_string());
            let frames = connection.simple(&text)?;
            ensure!(!shape(&frames).contains('E'), "{text}: {}", shape(&frames));
        }
        is_one_time(&mut connection, "8")?;
        connection.execute("savepoint s")?;
        connection.execute("insert into stamps (id) values (11), (12), (13), (14)")?;
        connection.execute("rollback to s")?;
        connection.execute("insert into stamps (id) values (21), (22), (23), (24)")?;
        is_one_time(&mut connection, "12")?;
        connection.execute("commit")?;
        is_one(
            &mut connection,
            "select count(distinct at) from stamps",
            "1",
        )?;
    }
    Ok(())
}

fn values(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for update in [
        "update stamps set at = now() where id = ID",
        "update stamps set at = current_timestamp, v = v + 1 where id = ID",
        "update stamps set at = now() where id = ID returning at",
        "with w as (select 1) update stamps set at = now() where id = ID",
        "insert into stamps (id, at) values (ID, '2020-01-01') on conflict (id) do update set at = now()",
    ] {
        begin(&mut connection)?;
        connection
            .execute("insert into stamps select i, '2020-01-01' from generate_series(1, 8) i")?;
        connection.execute("commit; begin")?;
        for id in 1..=8 {
            let text = update.replace("ID", &id.to_string());
            let frames = connection.simple(&text)?;
            ensure!(!shape(&frames).contains('E'), "{text}: {}", shape(&frames));
        }
        is_one_time(&mut connection, "8")?;
        connection.execute("commit")?;
    }
    Ok(())
}

fn queries(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for query in [
        "select now()::text from points where id = ID",
        "select now() from points where id = ID",
        "select transaction_timestamp() as t from points where id = ID for update",
        "select t from (select now() as t from points where id = ID) x",
        "select now() from points where id = ID and t <= now()",
        "select now()",
        "select max(now()) from points where id >= ID",
    ] {
        connection.execute("begin")?;
        let mut found = Vec::new();
        for id in 1..=8 {
            let frames = connection.simple(&query.replace("ID", &id.to_string()))?;
            ensure!(!shape(&frames).contains('E'), "{query}: {}", shape(&frames));
            found.extend(column(&frames)?);
        }
        found.dedup();
        ensure!(found.len() == 1, "{query}: {found:?}");
        connection.execute("commit")?;
    }
    Ok(())
}

fn batches(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for named in ["", "stamp"] {
        connection.execute("delete from stamps")?;
        let mut batch =
            Batch::new().parse(named, "insert into stamps (id) values ($1) returning at");
        for id in 1..=8 {
            let id = id.to_string();
            batch = batch.bind("", named, &[Some(&id)]).execute("", 0);
        }
        let mut found = column(&connection.batch(&batch.sync())?)?;
        found.dedup();
        ensure!(found.len() == 1, "{named:?}: {found:?}");
        connection.execute("delete from stamps")?;
        connection.execute("begin")?;
        for id in 1..=8 {
            let id = id.to_string();
            let batch = Batch::new().run("insert into stamps (id) values ($1)", &[&id]);
            let frames = connection.batch(&batch.sync())?;
            ensure!(shape(&frames) == "12CZ", "{}", shape(&frames));
        }
        is_one_time(&mut connection, "8")?;
        connection.execute("commit")?;
    }
    Ok(())
}

fn own_time(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("delete from stamps")?;
    for id in 1..=8 {
        connection.execute(&format!("insert into stamps (id) values ({id})"))?;
    }
    is_one(
        &mut connection,
        "select count(distinct at) from stamps",
        "8",
    )?;
    for id in 11..=14 {
        connection.execute("begin")?;
        connection.execute(&format!("insert into stamps (id) values ({id})"))?;
        connection.execute(&format!("insert into stamps (id) values ({})", id + 10))?;
        connection.execute("commit")?;
    }
    let text = "select count(distinct at) from stamps where id > 10";
    is_one(&mut connection, text, "4")
}

fn literal(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "select max('automator67:now' || left(id::text, 0)) from points",
        "select min('automator67:now'::text) from points where v > 0 and 'automator67:now' <> ''",
        "select 'automator67:now' from points order by id limit 1",
        "select 'automator67:now' from points where id = 2",
        "select distinct x from (select 'automator67:now' as x, id from points) y",
    ] {
        is_one(&mut connection, text, "automator67:now")?;
    }
    for write in [
        "insert into stamps (id, v) values (31, length('automator67:now')), (32, length('automator67:now')) returning 'automator67:now' as x",
        "update stamps set at = now() where v = length('automator67:now') returning 'automator67:now' as x",
        "delete from stamps where at <= now() and id > 30 returning 'automator67:now' as x",
    ] {
        let found = column(&connection.simple(write)?)?;
        ensure!(found == ["automator67:now"; 2], "{write}: {found:?}");
    }
    connection.execute("create table marks (id integer, x text default 'automator67:now')")?;
    connection.execute("insert into marks (id) select id from points where t < now() limit 3")?;
    connection.execute(
        "insert into marks select id, 'automator67:now' from points where t < now() limit 3",
    )?;
    is_one(
        &mut connection,
        "select string_agg(distinct x, ',') || count(*) from marks",
        "automator67:now6",
    )?;
    let copy = "copy (select 'automator67:now', now() = now() from points limit 1) to stdout";
    let frames = connection.simple(copy)?;
    let data = frames.iter().find(|frame| frame.tag == b'd');
    ensure!(
        data.is_some_and(|data| &data.body[..] == b"automator67:now\tt\n"),
        "{frames:?}"
    );
    connection.execute("drop table marks")?;
    connection.execute("update words set word = 'automator67:now'")?;
    is_one(
        &mut connection,
        "select min(word) from words",
        "automator67:now",
    )?;
    connection.execute("update words set word = case id when 1 then 'one' else 'two' end")?;
    Ok(())
}

/// Opens a transaction whose time is that of a shard that may be any.
fn begin_on(connection: &mut Connection, id: usize) -> Result<()> {
    begin(connection)?;
    connection.execute(&format!("insert into stamps (id) values ({id})"))?;
    Ok(())
}

/// Runs a COPY with these rows.
fn copy(connection: &mut Connection, text: &str, data: &[u8]) -> Result<()> {
    connection.send(Batch::new().query(text).bytes())?;
    let frame = connection.receive()?;
    ensure!(frame.tag == b'G', "{text}: {frame:?}");
    let frames = connection.batch(&Batch::new().message(b'd', data).message(b'c', b""))?;
    ensure!(shape(&frames) == "CZ", "{text}: {frames:?}");
    Ok(())
}

/// Rows with ids from 101.
fn lines() -> Vec<u8> {
    (101..=108).fold(Vec::new(), |mut data, id| {
        data.extend_from_slice(format!("{id}\n").as_bytes());
        data
    })
}

fn tuples() -> Vec<u8> {
    let mut data = b"PGCOPY\n\xff\r\n\0\0\0\0\0\0\0\0\0".to_vec();
    for id in 101..=108_i64 {
        data.extend_from_slice(b"\0\x01\0\0\0\x08");
        data.extend_from_slice(&id.to_be_bytes());
    }
    data.extend_from_slice(b"\xff\xff");
    data
}

fn copied(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let with_header = |header: &str| [header.as_bytes(), b"\n", &lines()].concat();
    for (text, data) in [
        ("copy stamps (id) from stdin", lines()),
        ("copy stamps (id) from stdin (format csv)", lines()),
        (
            "copy stamps (id) from stdin (format csv, header)",
            with_header("x"),
        ),
        (
            "copy stamps (id) from stdin (format csv, header match)",
            with_header("id"),
        ),
        (
            "copy stamps (id) from stdin (header match)",
            with_header("id"),
        ),
        ("copy stamps (id) from stdin (format binary)", tuples()),
    ] {
        for id in 1..=4 {
            begin_on(&mut connection, id)?;
            copy(&mut connection, text, &data)?;
            is_one_time(&mut connection, "9")?;
            connection.execute("rollback")?;
        }
        connection.execute("delete from stamps")?;
        copy(&mut connection, text, &data)?;
        let count = "select count(distinct at) || ' ' || count(*) from stamps";
        is_one(&mut connection, count, "1 8")?;
    }
    connection.execute("set datestyle = 'SQL, DMY'; set timezone = 'Asia/Kolkata'")?;
    begin_on(&mut connection, 1)?;
    copy(&mut connection, "copy stamps (id) from stdin", &lines())?;
    is_one_time(&mut connection, "9")?;
    connection.execute("rollback")?;
    Ok(())
}

/// Columns of many types, whose defaults read the time.
const FILLED: &str = r#"create table filled (id bigint primary key,
    day date default current_date,
    later timestamp(0) default localtimestamp + interval '1 day',
    label text default E'a\tb\\"c,' || extract(year from now()),
    nothing text default nullif(now()::text, now()::text),
    span tstzrange default tstzrange(now(), null),
    times timestamptz[] default array[now()])"#;
/// All of them as they should be.
const AS_DEFAULTED: &str = r#"select count(*) from filled where day = current_date
    and later = (localtimestamp + interval '1 day')::timestamp(0)
    and label = E'a\tb\\"c,' || extract(year from now()) and nothing is null
    and span = tstzrange(now(), null) and times = array[now()]"#;

fn filled(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute(FILLED)?;
    if connection.execute("show automator67.consistency").is_ok() {
        connection.execute("select create_distributed_table('filled', 'id')")?;
    }
    for (text, data) in [
        ("copy filled (id) from stdin", lines()),
        (
            "copy filled (id) from stdin (format csv, quote '''')",
            lines(),
        ),
        (
            "copy filled (id) from stdin (delimiter '|', null 'a')",
            lines(),
        ),
        ("copy filled (id) from stdin (format binary)", tuples()),
    ] {
        connection.execute("begin")?;
        copy(&mut connection, text, &data)?;
        is_one(&mut connection, AS_DEFAULTED, "8")?;
        connection.execute("rollback")?;
    }
    connection.execute("drop table filled")?;
    Ok(())
}

fn selected(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "insert into stamps (id) select i from generate_series(101, 108) i",
        "insert into stamps (id) select id + 100 from points where id <= 8",
        "insert into stamps (id) select id + 100 from points where id <= 8 order by v limit 8",
        "insert into stamps (id) select id + 100 from points where id <= 8 returning at",
        "insert into stamps (id, at) select id + 100, now() from points where id <= 8",
        "insert into stamps (id, at) select i, now() from generate_series(101, 108) i",
        "insert into stamps (id) select i from generate_series(101, 108) i on conflict do nothing",
    ] {
        for id in 1..=4 {
            begin_on(&mut connection, id)?;
            connection.execute(text)?;
            is_one_time(&mut connection, "9")?;
            connection.execute("rollback")?;
        }
    }
    for id in 1..=4 {
        begin_on(&mut connection, id)?;
        for id in 101..=108 {
            for text in [
                "insert into stamps (id) select id + 100 from points where id = ID",
                "insert into stamps (id) select ID from points where id = ID",
            ] {
                connection.execute(&text.replace("ID", &id.to_string()))?;
            }
        }
        is_one_time(&mut connection, "17")?;
        connection.execute("rollback")?;
    }
    Ok(())
}

fn local(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute(
        "create table local_stamps (id bigserial, at timestamptz default now(), \
         day date default now() + interval '1 day')",
    )?;
    for text in [
        "insert into local_stamps default values",
        "insert into local_stamps (id) values (1), (default)",
        "insert into local_stamps values (1, default), (2, now())",
        "insert into local_stamps as l values (1)",
        "insert into local_stamps (day, at) values (default, default) returning at, id",
        "insert into local_stamps (id) select id from points where id < 9",
        "insert into local_stamps (id) select i from generate_series(1, 3) i returning at",
        "with w as (select 7 as x) insert into local_stamps (id) select x from w",
        "insert into local_stamps select 1",
    ] {
        for id in 1..=4 {
            begin_on(&mut connection, id)?;
            connection.execute(text)?;
            let batch = Batch::new().run("insert into local_stamps (id) values ($1)", &["7"]);
            let frames = connection.batch(&batch.sync())?;
            ensure!(!shape(&frames).contains('E'), "{text}: {}", shape(&frames));
            copy(
                &mut connection,
                "copy local_stamps (id) from stdin",
                &lines(),
            )?;
            is_one(
                &mut connection,
                "select count(distinct at) || ' ' || count(distinct day) || ' ' || \
                 bool_and(at = (select max(at) from stamps)) from local_stamps",
                "1 1 true",
            )?;
            is_one(
                &mut connection,
                "select bool_and(at = now()) from local_stamps",
                "t",
            )?;
            connection.execute("rollback")?;
        }
    }
    connection.execute("drop table local_stamps")?;
    Ok(())
}

fn copies(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("alter table words add column at timestamptz")?;
    connection.execute("alter table words alter column at set default now()")?;
    for id in 1..=4 {
        begin_on(&mut connection, id)?;
        connection.execute("insert into words (id, word) values (7, 'seven')")?;
        connection.execute(
            "insert into words (id, word) select i, 'more' from generate_series(8, 9) i",
        )?;
        copy(&mut connection, "copy words (id) from stdin", &lines())?;
        let text = "select count(distinct w.at) || ' ' || bool_and(w.at = now()) \
             from words w join points p on p.id = ID where w.id > 2";
        for id in 1..=4 {
            is_one(
                &mut connection,
                &text.replace("ID", &id.to_string()),
                "1 true",
            )?;
        }
        connection.execute("rollback")?;
    }
    connection.execute("alter table words drop column at")?;
    Ok(())
}

/// Statements that say whether the time they read is that of the transaction's rows.
fn places(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("create view clocked as select id, now() as seen from points")?;
    for text in [
        "select bool_and(s.at = q.now) from stamps s, (select now()) q",
        "select bool_and(s.at = q.now) from stamps s, (select now() from notes) q",
        "select bool_and(s.at::date = q.now) from stamps s, (select now()::date from notes limit 1) q",
        "with q as (select current_timestamp from notes) \
         select bool_and(at = q.current_timestamp) from stamps, q",
        "select bool_and(s.at = c.seen) from stamps s, clocked c where c.id < 9",
        "select at = (select now()) from stamps order by id limit 1",
        "select n.now = s.at from \
         (select now(), count(*) from points group by now() order by now()) n, stamps s",
        "select (select now() from notes limit 1) = at from stamps",
    ] {
        for id in 1..=4 {
            begin_on(&mut connection, id)?;
            is_one(&mut connection, text, "t")?;
            connection.execute("rollback")?;
        }
    }
    for id in 1..=4 {
        begin_on(&mut connection, id)?;
        let at = connection.execute("select at from stamps")?;
        let frames = connection.simple("copy (select now() from notes) to stdout")?;
        let data = frames.iter().find(|frame| frame.tag == b'd');
        let text = data.map(|data| String::from_utf8_lossy(&data.body).trim_end().to_owned());
        ensure!(text == at, "{text:?} instead of {at:?}: {frames:?}");
        connection.execute("rollback")?;
    }
    connection.execute("drop view clocked")?;
    Ok(())
}

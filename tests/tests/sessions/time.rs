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
    connection.execute("update words set word = 'automator67:now'")?;
    is_one(
        &mut connection,
        "select min(word) from words",
        "automator67:now",
    )?;
    connection.execute("update words set word = case id when 1 then 'one' else 'two' end")?;
    Ok(())
}

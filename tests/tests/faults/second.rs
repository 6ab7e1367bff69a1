//! A second process on the same shards.

use std::{
    sync::{Barrier, atomic::Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{Automator, Dev},
    wait,
    wire::Connection,
};

use super::{Worker, failed, prepare};

/// How long the second process may plan with the schema before.
const CATCH_UP: Duration = Duration::from_secs(1);
/// How long a condition may take on a busy machine.
const PATIENCE: Duration = Duration::from_secs(30);

#[test]
fn a_second_process_follows() {
    second_process().expect("a second process");
}

#[test]
fn two_processes_place_a_new_value_once() {
    new_values().expect("both processes agree");
}

/// Both processes insert the same new values of a directory at the same time.
fn new_values() -> Result<()> {
    const VALUES: usize = 60;
    let dev = Dev::start(3)?;
    let mut one = dev.connect()?;
    one.execute("create table visits (place text, process integer)")?;
    let second = dev.second_proxy("second", "")?;
    one.execute("select create_distributed_table('visits', 'place', 'directory')")?;
    let mut two = Connection::open(&second.server)?;
    let placed = "select method from automator67.tables where name = 'visits'";
    follows(&mut two, placed, "directory")?;
    let barrier = Barrier::new(2);
    let insert = |connection: &mut Connection, process: usize| -> Result<()> {
        for value in 0..VALUES {
            barrier.wait();
            connection.execute(&format!(
                "insert into visits values ('p{value}', {process})"
            ))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let first = scope.spawn(|| insert(&mut one, 1));
        let second = insert(&mut two, 2);
        first.join().expect("no panic").and(second)
    })?;
    for connection in [&mut one, &mut two] {
        for value in 0..VALUES {
            let text = format!("select count(*) from visits where place = 'p{value}'");
            let count = connection.execute(&text)?;
            ensure!(count.as_deref() == Some("2"), "{text} answered {count:?}");
        }
    }
    // On the shards themselves: no value is on two, and each is where its entry says.
    let mut seen = Vec::new();
    for (shard, id) in dev.shards().iter().zip(1..) {
        let mut connection = Connection::open(&shard.server)?;
        for row in connection.rows("select place, count(*) from visits group by place")? {
            let [Some(place), Some(count)] = row.as_slice() else {
                continue;
            };
            let entry =
                format!("select shard = {id} from automator67.directory where value = '{place}'");
            let right = one.execute(&entry)?;
            ensure!(
                right.as_deref() == Some("t"),
                "{place} is on shard {id}: {right:?}"
            );
            ensure!(count == "2", "{place} has {count} rows on shard {id}");
            seen.push(place.clone());
        }
    }
    ensure!(seen.len() == VALUES, "{} values are on shards", seen.len());
    Ok(())
}

#[test]
fn a_process_that_lags_writes_nothing_beside() {
    lags().expect("rows where they belong");
}

/// A second process that does not come to read the catalog waits with statements on tables that the
/// first one changes, so it never works with what they were before.
fn lags() -> Result<()> {
    let dev = Dev::start(3)?;
    let mut one = dev.connect()?;
    one.execute("create table visits (id integer, note text, more integer)")?;
    one.execute("create table plain (id integer)")?;
    let second = dev.second_proxy("second", "")?;
    let mut two = Connection::open(&second.server)?;
    let mut other = Connection::open(&second.server)?;
    for text in ["insert into visits values (1)", "truncate visits"] {
        two.execute(text)?;
    }
    for (change, write, count) in [
        (
            "select create_distributed_table('visits', 'id')",
            "insert into visits select i, 'x', 1 from generate_series(1, 40) i",
            40,
        ),
        (
            "alter table visits drop column more",
            "insert into visits values (41, 'y'), (42, 'y')",
            42,
        ),
        (
            "create table late (id integer primary key); \
             select create_distributed_table('late', 'id')",
            "insert into late select generate_series(1, 40)",
            40,
        ),
    ] {
        other.execute("set automator67.failpoint = 'catalog.before_load=pause'")?;
        one.execute(change)?;
        std::thread::scope(|scope| -> Result<()> {
            let writer = scope.spawn(|| two.execute(write));
            let waits = "select count(*) from automator67.sessions where state = 'waiting'";
            wait::until(waits, PATIENCE, || {
                let active = other.execute(waits).ok()?;
                (active.as_deref() == Some("1")).then_some(())
            })?;
            // What has nothing to do with it does not wait.
            other.execute("insert into plain values (1)")?;
            ensure!(!writer.is_finished(), "{write} did not wait");
            other.execute("set automator67.failpoint = 'off'")?;
            writer.join().expect("no panic")?;
            Ok(())
        })?;
        let table = if write.contains("late") {
            "late"
        } else {
            "visits"
        };
        for key in 1..=count {
            let text = format!("select count(*) from {table} where id = {key}");
            let found = one.execute(&text)?;
            ensure!(found.as_deref() == Some("1"), "{text} answered {found:?}");
        }
    }
    Ok(())
}

/// `text` answers `expected` on the second process soon after now.
fn follows(connection: &mut Connection, text: &str, expected: &str) -> Result<()> {
    let start = Instant::now();
    wait::until(text, CATCH_UP, || {
        let got = connection.execute(text).ok()?;
        (got.as_deref() == Some(expected)).then_some(())
    })?;
    eprintln!("seen after {:?}: {text}", start.elapsed());
    Ok(())
}

fn second_process() -> Result<()> {
    let dev = Dev::start(3)?;
    prepare(dev.server())?;
    let second = dev.second_proxy("second", "")?;
    let mut one = dev.connect()?;
    let mut two = Connection::open(&second.server)?;
    follows(&mut two, "select count(*) from points", "300")?;
    one.execute("alter table points add column more integer default 7")?;
    follows(&mut two, "select sum(more) from points", "2100")?;
    one.execute("create table later (id bigint primary key, v integer)")?;
    follows(&mut two, "select count(*) from later", "0")?;
    one.execute("insert into later select i, i from generate_series(1, 100) i")?;
    follows(&mut two, "select count(*) from later", "100")?;
    one.execute("create view seen as select count(*) as n from later")?;
    follows(&mut two, "select n from seen", "100")?;
    // A local table does not become distributed while the second process reads and writes it.
    let reader = reader(&second, 100);
    let writer = writer(&second);
    let distribute = "select create_distributed_table('later', 'id')";
    let (code, _) = failed(&mut one, distribute)?.context("rows were moved")?;
    ensure!(code == "55006", "SQLSTATE {code}");
    let written = writer.finish()?;
    let reads = reader.finish()?;
    eprintln!("{reads} reads and {} writes meanwhile", written.len());
    drop(two);
    drop(second);
    wait::until(
        "the second process to be gone",
        Duration::from_secs(20),
        || one.execute(distribute).ok().map(drop),
    )?;
    let second = dev.second_proxy("second", "")?;
    let mut two = Connection::open(&second.server)?;
    let placed = "select placement from automator67.tables where name = 'later'";
    follows(&mut two, placed, "distributed")?;
    for connection in [&mut one, &mut two] {
        let found = connection.rows("select id from later where id > 1000 order by id")?;
        let found: Vec<i64> = found
            .into_iter()
            .filter_map(|row| row.into_iter().next()??.parse().ok())
            .collect();
        for id in &written {
            ensure!(found.contains(id), "row {id} was acknowledged and is lost");
            let text = format!("select v from later where id = {id}");
            ensure!(
                connection.execute(&text)?.is_some(),
                "row {id} is not where its key is"
            );
        }
    }
    one.execute("drop view seen")?;
    one.execute("drop table later")?;
    wait::until("the table to be gone", CATCH_UP, || {
        let (code, _) = failed(&mut two, "select count(*) from later").ok()??;
        (code == "42P01").then_some(())
    })
}

/// Every answer is the whole table or an error.
fn reader(second: &Automator, rows: i64) -> Worker<u64> {
    let server = second.server.clone();
    Worker::start(move |stop| {
        let mut connection = Connection::open(&server)?;
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let text = "select count(*), sum(v) from later where id <= 1000";
            if let Ok(answer) = connection.rows(text) {
                let row = answer.into_iter().next().context("no row")?;
                let expected = [rows, rows * (rows + 1) / 2].map(|it| Some(it.to_string()));
                ensure!(row == expected, "{text} answered {row:?}");
                count += 1;
            }
            let text = "select v from later where id = 42";
            if let Ok(answer) = connection.rows(text) {
                ensure!(
                    answer == [[Some("42".to_owned())]],
                    "{text} answered {answer:?}"
                );
            }
        }
        Ok(count)
    })
}

/// Inserts until told to stop; returns what was acknowledged.
fn writer(second: &Automator) -> Worker<Vec<i64>> {
    let server = second.server.clone();
    Worker::start(move |stop| {
        let mut connection = Connection::open(&server)?;
        let mut acknowledged = Vec::new();
        for id in 1001.. {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let text = format!("insert into later values ({id}, {id})");
            if failed(&mut connection, &text)?.is_none() {
                acknowledged.push(id);
            }
        }
        Ok(acknowledged)
    })
}

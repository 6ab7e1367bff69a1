//! Sessions that wait for each other on different shards: one of them is the victim, soon.

use std::{
    sync::Barrier,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use automator67_tests::{automator::Dev, checks, wire::Connection};

const LIMIT: Duration = Duration::from_secs(5);

#[test]
fn deadlocks_over_shards_end() {
    let dev = Dev::start(4).expect("dev starts");
    checks::run(
        &dev,
        &[
            ("circles of two to four", circles),
            ("writers of all rows", writers_of_all_rows),
            ("writers of a reference table", writers_of_copies),
        ],
    );
}

/// One key on each shard.
fn keys(connection: &mut Connection, count: usize) -> Result<Vec<i64>> {
    connection.execute("drop table if exists rings")?;
    connection.execute("create table rings (id bigint primary key, v int not null)")?;
    connection.execute("select create_distributed_table('rings', 'id')")?;
    connection.execute("insert into rings select g, 0 from generate_series(1, 100) g")?;
    let mut found: Vec<(String, i64)> = Vec::new();
    for id in 1..=100 {
        let plan = connection.execute(&format!("explain select v from rings where id = {id}"))?;
        let plan = plan.context("no plan")?;
        if found.iter().all(|(known, _)| *known != plan) {
            found.push((plan, id));
        }
    }
    ensure!(found.len() >= count, "keys of {} shards", found.len());
    Ok(found.into_iter().take(count).map(|(_, id)| id).collect())
}

fn circles(dev: &Dev) -> Result<()> {
    for size in 2..=4 {
        let keys = keys(&mut dev.connect()?, size)?;
        let barrier = Barrier::new(size);
        let started = Instant::now();
        let ends = std::thread::scope(|scope| {
            let sessions: Vec<_> = (0..size)
                .map(|at| {
                    let (own, next) = (keys[at], keys[(at + 1) % size]);
                    let barrier = &barrier;
                    scope.spawn(move || two_updates(dev, own, next, barrier))
                })
                .collect();
            let ends = sessions
                .into_iter()
                .map(|session| session.join().expect("no panic"));
            ends.collect::<Result<Vec<_>>>()
        })?;
        let victims = ends.iter().filter(|end| end.is_some()).count();
        ensure!(victims == 1, "{victims} victims of {size}: {ends:?}");
        ensure!(started.elapsed() < LIMIT, "took {:?}", started.elapsed());
    }
    Ok(())
}

/// The SQLSTATE and detail of the second update, if it failed.
fn two_updates(dev: &Dev, own: i64, next: i64, barrier: &Barrier) -> Result<Option<String>> {
    let mut connection = dev.connect()?;
    connection.execute("begin")?;
    connection.execute(&format!("update rings set v = v + 1 where id = {own}"))?;
    barrier.wait();
    let second = connection.execute(&format!("update rings set v = v + 1 where id = {next}"));
    match second {
        Ok(_) => {
            connection.execute("commit")?;
            Ok(None)
        }
        Err(error) => {
            let text = format!("{error:#}");
            ensure!(text.contains("40P01"), "{text}");
            connection.execute("rollback")?;
            Ok(Some(text))
        }
    }
}

/// Repeats a statement until it is no victim.
fn persist(connection: &mut Connection, text: &str) -> Result<()> {
    for _ in 0..50 {
        match connection.execute(text) {
            Ok(_) => return Ok(()),
            Err(error) if format!("{error:#}").contains("40P01") => {}
            Err(error) => return Err(error),
        }
    }
    bail!("a victim 50 times")
}

fn load(dev: &Dev, clients: i64, turns: i64, text: &str) -> Result<()> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..clients)
            .map(|_| {
                scope.spawn(move || {
                    let mut connection = dev.connect()?;
                    (0..turns).try_for_each(|_| persist(&mut connection, text))
                })
            })
            .collect();
        clients
            .into_iter()
            .try_for_each(|client| client.join().expect("no panic"))
    })
}

fn writers_of_all_rows(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    keys(&mut connection, 4)?;
    load(dev, 3, 5, "update rings set v = v + 1")?;
    let sum = connection.execute("select sum(v) from rings")?;
    ensure!(sum.as_deref() == Some("1500"), "{sum:?}");
    Ok(())
}

fn writers_of_copies(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    connection.execute("create table rates (id int primary key, v int not null)")?;
    connection.execute("select create_reference_table('rates')")?;
    connection.execute("insert into rates values (1, 0)")?;
    load(dev, 4, 25, "update rates set v = v + 1 where id = 1")?;
    for shard in dev.shards() {
        let value = Connection::open(&shard.server)?.execute("select v from rates")?;
        ensure!(value.as_deref() == Some("100"), "{}: {value:?}", shard.name);
    }
    Ok(())
}

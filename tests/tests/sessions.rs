//! What a session promises beside the answers to its statements. The same checks run on a plain
//! Postgres server first, so that what they expect is what Postgres does.

mod copying;
mod explains;
mod extended;
mod leaving;
mod limits;
mod messages;
mod operators;
mod portals;
mod settings;
mod state;
mod time;

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    checks::{self, Check},
    postgres::Plain,
    wait,
    wire::{Connection, Frame, Server, values},
};

/// A generous limit for what should happen at once.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn sessions_are_those_of_postgres() {
    let plain = Plain::start().expect("Postgres starts");
    prepare(&plain.server, false).expect("tables on plain Postgres");
    eprintln!("on plain Postgres");
    run_all(&plain.server);
    let dev = Dev::start(3).expect("dev starts");
    prepare(dev.server(), true).expect("tables on the proxy");
    eprintln!("on the proxy");
    run_all(dev.server());
}

#[test]
fn sessions_keep_to_their_limits() {
    let dev = Dev::start(3).expect("dev starts");
    prepare(dev.server(), true).expect("tables on the proxy");
    checks::run(
        &dev,
        &[
            operators::CHECKS,
            limits::CHECKS,
            explains::CHECKS,
            leaving::CHECKS,
        ]
        .concat(),
    );
}

fn run_all(server: &Server) {
    let all: Vec<Check<Server>> = [
        extended::CHECKS,
        portals::CHECKS,
        copying::CHECKS,
        messages::CHECKS,
        settings::CHECKS,
        state::CHECKS,
        time::CHECKS,
    ]
    .concat();
    checks::run(server, &all);
}

/// `points` has keys 1 to 300 on every shard, `words` is a reference table.
fn prepare(server: &Server, distribute: bool) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("create table points (id bigint primary key, v integer, t timestamptz)")?;
    connection.execute("create table words (id integer primary key, word text)")?;
    connection.execute("create table notes (id integer primary key, note text)")?;
    connection.execute(
        "create table stamps (id bigint primary key, at timestamptz default now(), v integer default 0)",
    )?;
    if distribute {
        connection.execute("select create_distributed_table('points', 'id')")?;
        connection.execute("select create_distributed_table('stamps', 'id')")?;
        connection.execute("select create_reference_table('words')")?;
    }
    connection.execute(
        "insert into points select i, i, '2024-01-01 00:00:00+00' from generate_series(1, 300) i",
    )?;
    connection.execute("insert into words values (1, 'one'), (2, 'two')")?;
    connection.execute("insert into notes values (1, 'first')")?;
    connection.terminate()
}

/// The rows among frames, as text.
fn rows(frames: &[Frame]) -> Result<Vec<Vec<String>>> {
    let data = frames.iter().filter(|frame| frame.tag == b'D');
    data.map(|frame| {
        let row = values(&frame.body)?.into_iter();
        Ok(row
            .map(|value| {
                value.map_or("NULL".into(), |it| {
                    String::from_utf8_lossy(&it).into_owned()
                })
            })
            .collect())
    })
    .collect()
}

/// The first column of the rows among frames.
fn column(frames: &[Frame]) -> Result<Vec<String>> {
    let rows = rows(frames)?.into_iter();
    rows.map(|row| row.into_iter().next().context("a row without columns"))
        .collect()
}

fn is_one(connection: &mut Connection, text: &str, expected: &str) -> Result<()> {
    let got = connection.execute(text)?;
    ensure!(
        got.as_deref() == Some(expected),
        "{text}: {got:?} instead of {expected}"
    );
    Ok(())
}

fn fails(connection: &mut Connection, text: &str, sqlstate: &str) -> Result<()> {
    let (code, message) = connection.failure(text)?;
    ensure!(code == sqlstate, "{text}: {code} {message}");
    Ok(())
}

/// Waits until `text` answers `expected`.
fn becomes(connection: &mut Connection, text: &str, expected: &str, limit: Duration) -> Result<()> {
    wait::until(text, limit, || {
        let got = connection.execute(text).ok()?;
        (got.as_deref() == Some(expected)).then_some(())
    })
}

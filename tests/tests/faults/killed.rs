//! The whole process group is killed or stopped, and starts again.

use std::{
    net::TcpListener,
    process::{Command, Stdio},
    sync::atomic::Ordering,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Dev},
    postgres, wait,
    wire::{Connection, Server},
};
use nix::sys::signal::Signal;

use super::{Worker, failed, prepare};

#[test]
fn no_acknowledged_row_is_lost_in_a_kill() {
    killed_under_load().expect("a kill under load");
}

/// Inserts rows from `first` until the server is gone; returns the ids that were acknowledged.
fn writer(server: Server, first: i64, several: bool) -> Worker<Vec<i64>> {
    Worker::start(move |stop| {
        let mut connection = Connection::open(&server)?;
        let mut acknowledged = Vec::new();
        for id in (first..).step_by(3) {
            if stop.load(Ordering::Relaxed) {
                break;
            }
            let ids = if several {
                vec![id, id + 1, id + 2]
            } else {
                vec![id]
            };
            let values: Vec<String> = ids.iter().map(|id| format!("({id}, 0)")).collect();
            let text = format!("insert into points values {}", values.join(", "));
            // A broken connection, or an error because a shard died first: not acknowledged.
            match failed(&mut connection, &text) {
                Ok(None) => acknowledged.extend(ids),
                Ok(Some(_)) => {}
                Err(_) => break,
            }
        }
        Ok(acknowledged)
    })
}

fn killed_under_load() -> Result<()> {
    let mut dev = Dev::start(3)?;
    prepare(dev.server())?;
    let mut expected = Vec::new();
    for round in 1..=3 {
        let writers: Vec<_> = (0..6)
            .map(|number| {
                let first = round * 100_000_000 + number * 1_000_000;
                writer(dev.server().clone(), first, number % 2 == 1)
            })
            .collect();
        let mut connection = dev.connect()?;
        let enough = format!("select count(*) > 200 from points where id > {round}00000000");
        wait::until("some rows", Duration::from_secs(60), || {
            (connection.execute(&enough).ok()?.as_deref() == Some("t")).then_some(())
        })?;
        dev = dev.kill_and_start()?;
        for writer in writers {
            expected.extend(writer.finish()?);
        }
        let mut connection = dev.connect()?;
        let found = connection.rows("select id from points where id > 1000")?;
        let found: std::collections::HashSet<i64> = found
            .into_iter()
            .filter_map(|row| row.into_iter().next()??.parse().ok())
            .collect();
        let lost: Vec<_> = expected.iter().filter(|id| !found.contains(id)).collect();
        eprintln!(
            "round {round}: {} acknowledged, {} found",
            expected.len(),
            found.len()
        );
        ensure!(
            lost.is_empty(),
            "round {round}: {} rows lost: {lost:?}",
            lost.len()
        );
    }
    Ok(())
}

#[test]
fn signals_stop_cleanly() {
    stopped().expect("stops");
}

fn stopped() -> Result<()> {
    let mut dev = Dev::start(2)?;
    prepare(dev.server())?;
    for signal in [Signal::SIGTERM, Signal::SIGINT] {
        // With sessions that are idle, in a transaction, and at work.
        let _idle = dev.connect()?;
        let mut open = dev.connect()?;
        open.execute("begin")?;
        open.execute("update points set v = -1 where id = 1")?;
        let server = dev.server().clone();
        let busy = Worker::start(move |_| {
            failed(&mut Connection::open(&server)?, "select pg_sleep(60)").map(|_| ())
        });
        dev = dev.stop_and_start(signal)?;
        // What it was told is not our matter; that it ended is.
        let _ = busy.finish();
        let mut connection = dev.connect()?;
        let v = connection.execute("select v from points where id = 1")?;
        ensure!(v.as_deref() == Some("1"), "after {signal}: {v:?}");
        let count = connection.execute("select count(*) from points")?;
        ensure!(count.as_deref() == Some("300"), "after {signal}: {count:?}");
    }
    Ok(())
}

#[test]
fn a_start_that_cannot_succeed_says_why() {
    clear_messages().expect("clear messages");
}

/// Runs `dev` on `directory`; it must fail, with these words on stderr.
fn refused(directory: &std::path::Path, sql: &str, words: &[&str]) -> Result<()> {
    let output = Command::new(automator::binary()?)
        .args([
            "dev",
            "--json",
            "--shards",
            "2",
            "--http",
            "127.0.0.1:0",
            "--sql",
            sql,
        ])
        .args(["--password", postgres::PASSWORD, "--data-dir"])
        .arg(directory)
        .stdin(Stdio::null())
        .output()?;
    let text = String::from_utf8_lossy(&output.stderr);
    eprintln!("{text}");
    ensure!(!output.status.success(), "it started");
    for word in words {
        ensure!(text.contains(word), "no {word:?} in {text}");
    }
    ensure!(!text.contains("panicked"), "{text}");
    Ok(())
}

fn clear_messages() -> Result<()> {
    let busy = TcpListener::bind("127.0.0.1:0")?;
    let address = busy.local_addr()?;
    let port = format!("port {}", address.port());
    let directory = postgres::directory()?;
    refused(
        &directory.path().join("dev"),
        &address.to_string(),
        &[&port, "in use", "--sql"],
    )?;
    let mut dev = Dev::start(2)?;
    prepare(dev.server())?;
    let data = dev.directory().join("dev");
    refused(
        &data,
        "127.0.0.1:0",
        &["another automator67 dev is running", "--data-dir"],
    )?;
    // A killed run leaves postmaster.pid files; one with another process's number as well.
    dev = dev.kill_and_replace(|data| {
        let file = data.join("shard1/postmaster.pid");
        let text = std::fs::read_to_string(&file).context("postmaster.pid is left behind")?;
        let rest: Vec<&str> = text.lines().skip(1).collect();
        std::fs::write(
            &file,
            format!("{}\n{}\n", std::process::id(), rest.join("\n")),
        )?;
        Ok(())
    })?;
    let log = dev.automator.group.log();
    ensure!(log.contains("stale"), "nothing about the stale file: {log}");
    let count = dev.connect()?.execute("select count(*) from points")?;
    ensure!(count.as_deref() == Some("300"), "{count:?}");
    // What only the proxy's own start finds out.
    let mut direct = Connection::open(&dev.shards()[0].server)?;
    direct.execute("create role stranger")?;
    direct.execute("alter schema automator67 owner to stranger")?;
    drop(direct);
    dev.automator.group.signal(Signal::SIGTERM)?;
    dev.automator.group.wait(Duration::from_secs(30))?;
    refused(&data, "127.0.0.1:0", &["of role \"stranger\""])
}

#[test]
fn defaults_of_a_role_are_not_those_of_the_proxy() {
    start_under_defaults().expect("a start under defaults");
}

/// What clients of the role begin with would keep the proxy from its own work.
fn start_under_defaults() -> Result<()> {
    let mut dev = Dev::start(2)?;
    prepare(dev.server())?;
    let mut connection = dev.connect()?;
    for default in [
        "default_transaction_read_only = on",
        "default_transaction_isolation = 'serializable'",
        "default_transaction_deferrable = on",
        "lock_timeout = '1ms'",
        "idle_in_transaction_session_timeout = '1ms'",
        "idle_session_timeout = '1s'",
    ] {
        connection.execute(&format!("alter role app set {default}"))?;
    }
    connection.terminate()?;
    dev = dev.kill_and_start()?;
    let second = dev.second_proxy("defaults", "")?;
    let options = "-c default_transaction_read_only=off -c default_transaction_isolation=read\\ committed \
        -c lock_timeout=0 -c idle_in_transaction_session_timeout=0 -c idle_session_timeout=0";
    let of = |server: &Server| {
        let mut server = server.clone();
        server.options = vec![("options".to_owned(), options.to_owned())];
        Connection::open(&server)
    };
    let (mut one, mut two) = (of(dev.server())?, of(&second.server)?);
    one.execute("create table numbered (id bigserial primary key, n integer)")?;
    one.execute("select create_distributed_table('numbered', 'id')")?;
    one.execute("insert into numbered (n) select g from generate_series(1, 300) g")?;
    wait::until("the other process", Duration::from_secs(5), || {
        two.execute("insert into numbered (n) values (1), (2), (3)")
            .ok()
    })?;
    let count = one.execute("select count(distinct id) from numbered")?;
    ensure!(count.as_deref() == Some("303"), "{count:?}");
    let (code, _) = dev.connect()?.failure("update numbered set n = 1")?;
    ensure!(code == "25006", "{code}");
    Ok(())
}

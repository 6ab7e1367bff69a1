//! Connections that the server has closed are never lent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Automator,
    postgres::{self, Plain},
    wait,
    wire::Connection,
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};

use super::{counter, proxy};

/// Connections that lie in the pool when the server goes away.
const IDLE: usize = 4;
const SOON: Duration = Duration::from_secs(60);

#[test]
fn no_connection_of_a_crashed_server_is_lent() {
    let plain = Plain::start().expect("Postgres starts");
    check(plain, |plain| {
        // One of its processes dies, so it ends all others and starts again by itself.
        let mut victim = Connection::open(&plain.server)?;
        let process = victim.execute("select pg_backend_pid()")?;
        let process: i32 = process.context("no process id")?.parse()?;
        kill(Pid::from_raw(process), Signal::SIGKILL)?;
        ensure!(victim.is_closed()?, "the victim lives");
        Ok(())
    })
    .expect("all statements succeed");
}

#[test]
fn no_connection_of_a_restarted_server_is_lent() {
    let plain = Plain::start().expect("Postgres starts");
    check(plain, |plain| {
        plain.stop(Signal::SIGINT)?;
        plain.start_again()
    })
    .expect("all statements succeed");
}

#[test]
fn no_connection_of_a_killed_server_is_lent() {
    let plain = Plain::start().expect("Postgres starts");
    check(plain, |plain| {
        plain.kill()?;
        plain.start_again()
    })
    .expect("all statements succeed");
}

fn check(mut plain: Plain, restart: impl FnOnce(&mut Plain) -> Result<()>) -> Result<()> {
    let directory = postgres::directory()?;
    let proxy = proxy(directory.path(), &plain.server, IDLE, "")?;
    let mut clients = fill_pool(&proxy)?;
    restart(&mut plain)?;
    wait::until("the server is back", SOON, || {
        let mut direct = Connection::open(&plain.server).ok()?;
        direct.execute("select 1").ok()
    })?;
    wait::until("the proxy knows", SOON, || {
        let up = counter(&proxy, "automator67_shard_up").ok()?;
        (up == 1).then_some(())
    })?;
    for client in &mut clients {
        client.execute("begin")?;
        client.execute("select 1")?;
    }
    for client in &mut clients {
        client.execute("commit")?;
    }
    Ok(())
}

/// Clients that have used all connections of the pool at once.
fn fill_pool(proxy: &Automator) -> Result<Vec<Connection>> {
    let mut clients = Vec::new();
    for _ in 0..IDLE {
        let mut client = Connection::open(&proxy.server)?;
        client.execute("begin")?;
        client.execute("select 1")?;
        clients.push(client);
    }
    for client in &mut clients {
        client.execute("commit")?;
    }
    Ok(clients)
}

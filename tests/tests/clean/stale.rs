//! Connections that the server has closed are never lent.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Automator,
    batch::Batch,
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
        begin(client)?;
    }
    for client in &mut clients {
        client.execute("commit")?;
    }
    Ok(())
}

/// Begins and takes a connection. That the server was away a moment ago may be said; that the
/// connection was lost may not.
fn begin(client: &mut Connection) -> Result<()> {
    let begun = wait::until("a statement runs", SOON, || {
        client.execute("begin").ok()?;
        match client.execute("select 1") {
            Err(error) if format!("{error:#}").contains("is not reachable") => {
                client.execute("rollback").ok()?;
                None
            }
            other => Some(other),
        }
    })?;
    begun.map(|_| ())
}

/// Clients that have used all connections of the pool at once.
fn fill_pool(proxy: &Automator) -> Result<Vec<Connection>> {
    let mut clients = Vec::new();
    for _ in 0..IDLE {
        let mut client = Connection::open(&proxy.server)?;
        begin(&mut client)?;
        clients.push(client);
    }
    for client in &mut clients {
        client.execute("commit")?;
    }
    Ok(clients)
}

/// The next statement's connection breaks before anything is sent.
const CUT: &str = "set automator67.failpoint = 'statement.before_send=1*return(cut)'";

#[test]
fn what_no_server_has_read_is_sent_again_once() {
    let plain = Plain::start().expect("Postgres starts");
    let directory = postgres::directory().expect("a directory");
    let proxy = proxy(directory.path(), &plain.server, IDLE, "").expect("the proxy starts");
    check_sending_again(&proxy).expect("statements");
}

fn check_sending_again(proxy: &Automator) -> Result<()> {
    let mut client = Connection::open(&proxy.server)?;
    client.execute("create table t (v integer)")?;
    client.execute(CUT)?;
    client.execute("insert into t values (1)")?;
    let batch = Batch::default()
        .parse("s", "insert into t values (2)")
        .bind("", "s", &[])
        .execute("", 0)
        .sync();
    for _ in 0..2 {
        client.execute(CUT)?;
        let frames = client.batch(&batch)?;
        let failed = frames.iter().find(|frame| frame.tag == b'E');
        ensure!(
            failed.is_none(),
            "{:?}",
            failed.and_then(|it| it.field(b'M'))
        );
        client.execute("deallocate s")?;
    }
    client.execute("begin")?;
    client.execute("insert into t values (3)")?;
    client.execute(CUT)?;
    let (code, _) = client.failure("insert into t values (4)")?;
    ensure!(code == "08006", "in a transaction: {code}");
    client.execute("rollback")?;
    let rows = client.execute("select string_agg(v::text, ' ' order by v) from t")?;
    ensure!(rows.as_deref() == Some("1 2 2"), "{rows:?}");
    Ok(())
}

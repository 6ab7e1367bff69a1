//! A server whose places are all taken by others: a statement waits for one.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Automator,
    postgres::{self, Plain},
    wait,
    wire::Connection,
};
use nix::sys::signal::Signal;

use super::{counter, proxy};

const SOON: Duration = Duration::from_secs(60);
const WAITS: &str = "automator67_pool_waits_total";

/// A server with few places, and a proxy with two clients, of which one holds the only connection
/// that there is room for.
struct Full {
    plain: Plain,
    proxy: Automator,
    holder: Connection,
    other: Connection,
    /// Connections of others, which have all places that are left.
    others: Vec<Connection>,
    _directory: tempfile::TempDir,
}

impl Full {
    fn start(wait_ms: u64) -> Result<Full> {
        let mut plain = Plain::start()?;
        let mut direct = Connection::open(&plain.server)?;
        direct.execute("alter system set max_connections = 25")?;
        direct.terminate()?;
        plain.stop(Signal::SIGINT)?;
        plain.start_again()?;
        let directory = postgres::directory()?;
        let more = format!("pool_wait_timeout_ms = {wait_ms}");
        let proxy = proxy(directory.path(), &plain.server, 2, &more)?;
        let mut holder = Connection::open(&proxy.server)?;
        let other = Connection::open(&proxy.server)?;
        holder.execute("begin")?;
        holder.execute("select 1")?;
        let mut full = Full {
            plain,
            proxy,
            holder,
            other,
            others: Vec::new(),
            _directory: directory,
        };
        full.fill()?;
        Ok(full)
    }

    /// Takes every place. The proxy's own connections come and go: it may take a while.
    fn fill(&mut self) -> Result<()> {
        while let Ok(connection) = Connection::open(&self.plain.server) {
            self.others.push(connection);
            ensure!(self.others.len() < 100, "the server is never full");
        }
        Ok(())
    }

    /// The other client's statement, in a thread of its own, when it has begun to wait.
    fn statement(&mut self) -> Result<std::thread::JoinHandle<Result<Option<String>>>> {
        let before = counter(&self.proxy, WAITS)?;
        let mut other = Connection::open(&self.proxy.server)?;
        std::mem::swap(&mut other, &mut self.other);
        let thread = std::thread::spawn(move || other.execute("select 7"));
        wait::until("a statement waits", SOON, || {
            (counter(&self.proxy, WAITS).ok()? > before).then_some(())
        })?;
        Ok(thread)
    }
}

fn ended(thread: std::thread::JoinHandle<Result<Option<String>>>) -> Result<()> {
    let answer = thread.join().ok().context("the thread has panicked")??;
    ensure!(answer.as_deref() == Some("7"), "{answer:?}");
    Ok(())
}

#[test]
fn a_statement_waits_for_a_place_on_the_server() {
    let mut full = Full::start(60_000).expect("servers start");
    let thread = full.statement().expect("a statement that waits");
    full.others.clear();
    ended(thread).expect("the statement gets the place");
}

#[test]
fn a_statement_takes_a_connection_that_comes_back() {
    let mut full = Full::start(60_000).expect("servers start");
    let thread = full.statement().expect("a statement that waits");
    full.holder.execute("commit").expect("commit");
    ended(thread).expect("the statement gets the connection");
}

#[test]
fn the_wait_for_a_place_has_an_end() {
    let mut full = Full::start(300).expect("servers start");
    let (code, message) = full.other.failure("select 7").expect("an error");
    assert_eq!(code, "53300", "{message}");
    assert_eq!(message, "too many connections to shard \"shard1\"");
    let up = counter(&full.proxy, "automator67_shard_up").expect("metrics");
    assert_eq!(up, 1, "a server that is full is not down");
    full.holder.execute("commit").expect("commit");
    let answer = full.other.execute("select 7").expect("a connection");
    assert_eq!(answer.as_deref(), Some("7"));
}

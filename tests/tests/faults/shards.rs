//! One shard is gone; everybody else goes on.

use std::{
    path::{Path, PathBuf},
    sync::{atomic::Ordering, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Automator},
    postgres::{self, Plain},
    wait,
    wire::{Connection, Server},
};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tempfile::TempDir;

use super::{Worker, failed, prepare};

const SECOND: Duration = Duration::from_secs(1);
/// Less than any time limit of the proxy: what fails in it has waited for none.
const AT_ONCE: Duration = Duration::from_millis(1900);

/// `automator67 serve` before three clusters that the test starts and stops itself.
struct Own {
    proxy: Automator,
    shards: Vec<Plain>,
    _directory: TempDir,
}

impl Own {
    fn start() -> Result<Own> {
        let shards = (0..3).map(|_| Plain::start()).collect::<Result<Vec<_>>>()?;
        let directory = postgres::directory()?;
        let file = configuration(directory.path(), &shards)?;
        let proxy = automator::serve(&file)?;
        prepare(&proxy.server)?;
        Ok(Own {
            proxy,
            shards,
            _directory: directory,
        })
    }

    /// For every shard, the first key that lives there.
    fn keys(&self) -> Result<Vec<String>> {
        let text = "select min(id) from only points";
        let of = |shard: &Plain| {
            Connection::open(&shard.server)?
                .execute(text)?
                .context("a shard without rows")
        };
        self.shards.iter().map(of).collect()
    }

    fn connect(&self) -> Result<Connection> {
        Connection::open(&self.proxy.server)
    }
}

fn configuration(directory: &Path, shards: &[Plain]) -> Result<PathBuf> {
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{}\"\npassword = \"{}\"\n",
        postgres::USER,
        postgres::PASSWORD
    );
    for (shard, name) in shards.iter().zip(["first", "second", "third"]) {
        let url = shard.server.url()?;
        text += &format!("[[shards]]\nname = \"{name}\"\nurl = \"{url}\"\n");
    }
    let file = directory.join("proxy.toml");
    std::fs::write(&file, text)?;
    Ok(file)
}

/// Reads one key until told to stop, and counts; no error is forgiven.
fn reader(server: Server, key: String) -> Worker<u64> {
    Worker::start(move |stop| {
        let mut connection = Connection::open(&server)?;
        let text = format!("select v from points where id = {key}");
        let mut count = 0;
        while !stop.load(Ordering::Relaxed) {
            let start = Instant::now();
            let got = connection.execute(&text)?;
            ensure!(got.as_deref() == Some(key.as_str()), "{text}: {got:?}");
            ensure!(
                start.elapsed() < Duration::from_secs(2),
                "{text} took {:?}",
                start.elapsed()
            );
            count += 1;
        }
        Ok(count)
    })
}

/// `text` fails with 08006 and the shard's name, at once.
fn fails_at_once(connection: &mut Connection, text: &str, limit: Duration) -> Result<()> {
    let start = Instant::now();
    let (code, message) =
        failed(connection, text)?.with_context(|| format!("{text} did not fail"))?;
    let took = start.elapsed();
    eprintln!("{code} after {took:?}: {text}: {message}");
    ensure!(
        code == "08006" && message.contains("third"),
        "{text}: {code} {message}"
    );
    ensure!(took < limit, "{text} failed after {took:?}");
    Ok(())
}

#[test]
fn a_killed_shard_hurts_only_its_own_rows() {
    killed_shard().expect("a killed shard");
}

fn killed_shard() -> Result<()> {
    let mut own = Own::start()?;
    let keys = own.keys()?;
    let others: Vec<_> = keys[..2]
        .iter()
        .map(|key| reader(own.proxy.server.clone(), key.clone()))
        .collect();
    let mut connection = own.connect()?;
    let single = format!("select v from points where id = {}", keys[2]);
    let single_write = format!("update points set v = v where id = {}", keys[2]);
    connection.execute(&single)?;
    terminated_backend(&own, &keys[2])?;
    // In the middle of a statement.
    let victim = reader_until_error(own.proxy.server.clone(), &keys[2]);
    own.shards[2].kill()?;
    let (code, message) = victim.finish()?;
    ensure!(
        code == "08006" && message.contains("third"),
        "a running statement: {code} {message}"
    );
    for text in [
        &single,
        &single_write,
        "select count(*) from points",
        "update points set v = v",
        "insert into words values (3, 'three')",
    ] {
        fails_at_once(&mut connection, text, AT_ONCE)?;
    }
    let mut fresh = own.connect()?;
    fails_at_once(&mut fresh, &single, AT_ONCE)?;
    for text in [
        "select word from words where id = 1",
        "select note from notes where id = 1",
        &format!("select v from points where id = {}", keys[0]),
        &format!("update points set v = v where id = {}", keys[1]),
    ] {
        let failed = failed(&mut connection, text)?;
        ensure!(failed.is_none(), "{text}: {failed:?}");
    }
    let down = connection.rows("select name from automator67.shards where not up")?;
    ensure!(down == [[Some("third".to_owned())]], "{down:?}");
    own.shards[2].start_again()?;
    let start = Instant::now();
    wait::until("the shard to be used again", Duration::from_secs(2), || {
        failed(&mut connection, &single)
            .ok()?
            .is_none()
            .then_some(())
    })?;
    eprintln!("in service {:?} after its return", start.elapsed());
    let count = connection.execute("select count(*) from points")?;
    ensure!(count.as_deref() == Some("300"), "{count:?}");
    for other in others {
        ensure!(other.finish()? > 0);
    }
    Ok(())
}

/// The last words of a server process end a connection of the proxy, and not the client's session.
fn terminated_backend(own: &Own, key: &str) -> Result<()> {
    let victim = reader_until_error(own.proxy.server.clone(), key);
    let mut admin = Connection::open(&own.shards[2].server)?;
    wait::until("a statement to be terminated", SECOND * 10, || {
        let text = "select count(pg_terminate_backend(pid)) from pg_stat_activity \
            where state = 'active' and query like '%pg_sleep(%' and pid <> pg_backend_pid()";
        let ended = admin.execute(text).ok()??;
        (ended != "0").then_some(())
    })?;
    let (code, message) = victim.finish()?;
    ensure!(
        code == "08006" && message == "connection to shard \"third\" was lost",
        "a terminated backend: {code} {message}"
    );
    Ok(())
}

/// The first error of a session that reads one key again and again; the session lives on.
fn reader_until_error(server: Server, key: &str) -> Worker<(String, String)> {
    let text = format!("select v, pg_sleep(0.05) from points where id = {key}");
    Worker::start(move |_| {
        let mut connection = Connection::open(&server)?;
        let error = loop {
            if let Some(error) = failed(&mut connection, &text)? {
                break error;
            }
        };
        let one = connection.execute("select word from words where id = 1")?;
        ensure!(
            one.as_deref() == Some("one"),
            "the session is not usable: {one:?}"
        );
        Ok(error)
    })
}

#[test]
fn a_silent_shard_is_found_out() {
    silent_shard().expect("a silent shard");
}

/// A stopped server accepts connections (the kernel does) and never answers.
fn silent_shard() -> Result<()> {
    let own = Own::start()?;
    let keys = own.keys()?;
    let mut connection = own.connect()?;
    let pids = own.shards[2].processes()?;
    let signal_all = |signal| -> Result<()> {
        for pid in &pids {
            let _ = kill(Pid::from_raw(*pid), signal);
        }
        Ok(())
    };
    signal_all(Signal::SIGSTOP)?;
    // More sessions than idle connections are there: some need a new one. On an old one, silence
    // cannot be told from a slow statement.
    let single = format!("select v from points where id = {}", keys[2]);
    let start = Instant::now();
    let (sender, outcomes) = mpsc::channel();
    for _ in 0..12 {
        let (sender, server, text) = (sender.clone(), own.proxy.server.clone(), single.clone());
        std::thread::spawn(move || {
            let outcome = Connection::open(&server).and_then(|mut it| failed(&mut it, &text));
            let _ = sender.send(outcome);
        });
    }
    let outcome = outcomes.recv_timeout(Duration::from_secs(5));
    let took = start.elapsed();
    let fresh = own
        .connect()
        .and_then(|mut it| fails_at_once(&mut it, &single, AT_ONCE));
    let others = failed(
        &mut connection,
        &format!("select v from points where id = {}", keys[0]),
    );
    signal_all(Signal::SIGCONT)?;
    let (code, message) = outcome
        .context("no answer within 5 s")??
        .context("an answer")?;
    eprintln!("{code} after {took:?}: {message}");
    ensure!(
        code == "08006" && message.contains("third"),
        "{code} {message}"
    );
    fresh.context("after the shard was found out")?;
    ensure!(others?.is_none(), "another shard");
    wait::until("the shard to be used again", Duration::from_secs(2), || {
        failed(&mut connection, &single)
            .ok()?
            .is_none()
            .then_some(())
    })
}

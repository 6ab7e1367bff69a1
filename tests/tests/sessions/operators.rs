//! What an operator sees and limits: clients that leave, views, metrics, logs.

use std::{
    io::{Read, Write},
    net::TcpStream,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{Dev, Shard},
    batch::Batch,
    checks::Check,
    wait,
    wire::Connection,
};

use super::{becomes, is_one};

pub const CHECKS: &[Check<Dev>] = &[
    ("a client that leaves", client_leaves),
    ("portals hold back", portals_hold_back),
    ("cursors hold back", cursors_hold_back),
    ("a slow reader holds back", slow_reader),
    ("pins", pins),
    ("views", views),
    ("metrics and health", metrics),
    ("the log tells no secrets", log_tells_no_secrets),
];

/// Statements that a shard runs with this text in them.
fn running(shard: &Shard, marker: &str) -> Result<String> {
    let mut connection = Connection::open(&shard.server)?;
    let text = format!(
        "select count(*) from pg_stat_activity where state <> 'idle' and pid <> pg_backend_pid() and query like '%{marker}%'"
    );
    connection.execute(&text)?.context("no count")
}

fn client_leaves(dev: &Dev) -> Result<()> {
    for (number, text) in [
        "select pg_sleep(60) /* leave_MARK */",
        "select pg_sleep(60) /* leave_MARK */ from points where id = 2",
        "select pg_sleep(60) /* leave_MARK */ from points where id = 3",
        "select count(*), pg_sleep(60), 'leave_MARK' from points",
    ]
    .iter()
    .enumerate()
    {
        for goodbye in [false, true] {
            let marker = format!("leave_{number}_{goodbye}");
            let text = text.replace("leave_MARK", &marker);
            let mut connection = dev.connect()?;
            connection.send(Batch::new().query(&text).bytes())?;
            let busy = || {
                dev.shards()
                    .iter()
                    .map(|it| running(it, &marker))
                    .collect::<Result<Vec<_>>>()
            };
            wait::until(&format!("{text} to run"), Duration::from_secs(5), || {
                busy().ok()?.iter().any(|count| count != "0").then_some(())
            })?;
            let start = Instant::now();
            if goodbye {
                connection.terminate()?;
            } else {
                drop(connection);
            }
            wait::until(&format!("{text} to end"), Duration::from_secs(2), || {
                busy().ok()?.iter().all(|count| count == "0").then_some(())
            })?;
            eprintln!("{marker} gone after {:?}", start.elapsed());
        }
    }
    Ok(())
}

/// Resident memory of the program under test in KiB.
fn resident(dev: &Dev) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", dev.automator.group.id()))?;
    let line = status
        .lines()
        .find(|line| line.starts_with("VmRSS:"))
        .context("no VmRSS")?;
    Ok(line
        .split_whitespace()
        .nth(1)
        .context("no value")?
        .parse()?)
}

const GROWTH_MAX_KIB: u64 = 64 * 1024;

fn grows_little(dev: &Dev, read: impl FnOnce(&mut Connection) -> Result<()>) -> Result<()> {
    let mut connection = dev.connect()?;
    is_one(&mut connection, "select count(*) from points", "300")?;
    let before = resident(dev)?;
    read(&mut connection)?;
    let growth = resident(dev)?.saturating_sub(before);
    eprintln!("grew by {growth} KiB");
    ensure!(growth < GROWTH_MAX_KIB, "grew by {growth} KiB");
    Ok(())
}

const LONG: &[&str] = &[
    "select i, repeat('x', 100) from generate_series(1, 10000000) i",
    "select i, repeat('x', 100) from points, generate_series(1, 10000000) i where id = 2",
    "select i, repeat('x', 100) from points, generate_series(1, 100000) i",
];

fn portals_hold_back(dev: &Dev) -> Result<()> {
    for text in LONG {
        grows_little(dev, |connection| {
            connection.execute("begin")?;
            let start = Batch::new().parse("", text).bind("p", "", &[]).sync();
            connection.batch(&start)?;
            for _ in 0..50 {
                let frames = connection.batch(&Batch::new().execute("p", 1000).sync())?;
                ensure!(
                    frames.len() == 1002 && frames[1000].tag == b's',
                    "{text}: {}",
                    frames.len()
                );
            }
            connection.execute("rollback")?;
            Ok(())
        })
        .context(*text)?;
    }
    Ok(())
}

fn cursors_hold_back(dev: &Dev) -> Result<()> {
    for text in LONG {
        grows_little(dev, |connection| {
            connection.execute("begin")?;
            connection.execute(&format!("declare long cursor for {text}"))?;
            for _ in 0..50 {
                let rows = connection.rows("fetch 1000 from long")?;
                ensure!(rows.len() == 1000, "{}", rows.len());
            }
            connection.execute("rollback")?;
            Ok(())
        })
        .context(*text)?;
    }
    Ok(())
}

const BLOCKED: &str = "select 1 from pg_stat_activity where wait_event = 'ClientWrite'";

/// A client that does not read stops its server instead of filling our memory.
fn slow_reader(dev: &Dev) -> Result<()> {
    for text in LONG {
        let mut connection = dev.connect()?;
        let before = resident(dev)?;
        connection.send(Batch::new().query(text).bytes())?;
        // Blocked on the client is what a server is once all buffers are full.
        wait::until("the server to wait", Duration::from_secs(20), || {
            dev.shards().iter().find_map(|shard| {
                let mut shard = Connection::open(&shard.server).ok()?;
                shard.execute(BLOCKED).ok()?
            })
        })
        .context(*text)?;
        let growth = resident(dev)?.saturating_sub(before);
        ensure!(growth < GROWTH_MAX_KIB, "{text}: grew by {growth} KiB");
        drop(connection);
        wait::until("the server to be free", Duration::from_secs(5), || {
            dev.shards()
                .iter()
                .all(|shard| {
                    let found =
                        Connection::open(&shard.server).and_then(|mut it| it.execute(BLOCKED));
                    matches!(found, Ok(None))
                })
                .then_some(())
        })
        .context(*text)?;
    }
    Ok(())
}

fn pins(dev: &Dev) -> Result<()> {
    let mut watcher = dev.connect()?;
    for (text, pinned) in [
        ("select 1", "f"),
        ("set timezone = 'UTC'", "f"),
        ("select pg_advisory_lock(68)", "t"),
        ("create temporary table pinned (id integer)", "t"),
        ("listen pins", "t"),
    ] {
        let mut server = dev.server().clone();
        server.options = vec![("application_name".into(), "pin".into())];
        let mut connection = Connection::open(&server)?;
        connection.execute(text)?;
        let look = "select pinned from automator67.sessions where application_name = 'pin'";
        is_one(&mut watcher, look, pinned).context(text)?;
        drop(connection);
        let gone = "select count(*) from automator67.sessions where application_name = 'pin'";
        becomes(&mut watcher, gone, "0", Duration::from_secs(5))?;
    }
    Ok(())
}

fn views(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    is_one(
        &mut connection,
        "select count(*) from automator67.shards",
        "3",
    )?;
    is_one(
        &mut connection,
        "select count(*) from automator67.shards where home and up",
        "1",
    )?;
    is_one(
        &mut connection,
        "select count(*) from automator67.pools where size < 1",
        "0",
    )?;
    is_one(
        &mut connection,
        "select count(*) from automator67.sessions where state = 'active'",
        "1",
    )?;
    let kinds = connection.rows("select * from automator67.tables order by 1")?;
    ensure!(kinds.len() >= 3, "{kinds:?}");
    let text = format!("{kinds:?}");
    for word in [
        "points",
        "words",
        "notes",
        "distributed",
        "reference",
        "local",
    ] {
        ensure!(text.contains(word), "no {word} in {text}");
    }
    Ok(())
}

/// The body of a page of the HTTP port.
fn page(dev: &Dev, path: &str) -> Result<String> {
    let address = dev.automator.http.trim_start_matches("http://");
    let mut stream = TcpStream::connect(address).with_context(|| address.to_owned())?;
    stream.set_read_timeout(Some(Duration::from_secs(10)))?;
    write!(
        stream,
        "GET {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n"
    )?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    ensure!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    Ok(answer)
}

fn metrics(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    connection.execute("select v from points where id = 1")?;
    connection.execute("select count(*) from points where v > 3 group by v % 2")?;
    connection.execute("update points set v = v where true")?;
    connection.execute("show timezone")?;
    ensure!(page(dev, "/healthz")?.contains("ok"));
    let text = page(dev, "/metrics")?;
    for tier in ["single", "multi", "gather", "proxy"] {
        let counted = text.lines().any(|line| {
            line.starts_with("automator67_statements_total")
                && line.contains(&format!("tier=\"{tier}\""))
                && !line.ends_with(" 0")
        });
        ensure!(counted, "no statement counted in tier {tier}");
        let bucket = format!("automator67_statement_seconds_bucket{{tier=\"{tier}\",le=");
        ensure!(text.contains(&bucket), "no histogram of tier {tier}");
    }
    for shard in dev.shards() {
        let line = format!("automator67_shard_up{{shard=\"{}\"}} 1", shard.name);
        ensure!(text.contains(&line), "no {line}");
    }
    Ok(())
}

fn log_tells_no_secrets(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let marker = "Zebra4711";
    connection.execute(&format!("select '{marker}' from points where id = 1"))?;
    connection.execute(&format!(
        "select count(*) from points where v::text <> '{marker}'"
    ))?;
    connection.simple(&format!("insert into points values ('{marker}', 1)"))?;
    connection.simple(&format!("selekt '{marker}'"))?;
    connection.simple(&format!("select '{marker}'::integer from points"))?;
    connection.simple(&format!(
        "copy points from stdin with (null '{marker}', delimiter 'xx')"
    ))?;
    connection.simple(&format!("do $$ begin raise notice '{marker}'; end $$"))?;
    connection.batch(
        &Batch::new()
            .run("select v from points where id = $1", &[marker])
            .sync(),
    )?;
    let mut server = dev.server().clone();
    server.password = marker.to_owned();
    ensure!(Connection::open(&server).is_err());
    server.user = marker.to_owned();
    ensure!(Connection::open(&server).is_err());
    let log = dev.automator.group.log();
    ensure!(
        !log.contains(&format!("'{marker}'")),
        "a literal is in the log: {log}"
    );
    for secret in [
        automator67_tests::postgres::PASSWORD,
        "open%20sesame",
        "SCRAM-SHA-256$",
    ] {
        ensure!(!log.contains(secret), "{secret} is in the log: {log}");
    }
    Ok(())
}

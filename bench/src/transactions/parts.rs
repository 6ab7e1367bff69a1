//! Where the time of a transfer goes: the disk's fsync, each step on one plain Postgres, each step
//! of a two-phase commit made by hand on the same two servers, and each step through the proxy.
//! One client, one driver.

use std::{
    fs::File,
    os::unix::fs::FileExt,
    time::{Duration, Instant},
};

use anyhow::Result;
use tokio_postgres::Client;

use super::{ACCOUNTS, Book, Ground, SHARDS, middle};
use crate::servers::connect;

const HEAD: &str = "| how | BEGIN | UPDATE | UPDATE | commit | of it | whole p50 | to plain |\n|---|---|---|---|---|---|---|---|";

/// Microseconds of each step of one transaction.
type Steps = Vec<f64>;

/// How the transfers run.
#[derive(Clone, Copy, PartialEq)]
enum Way {
    Plain,
    ByHand,
    Proxy,
}

const WAYS: [(Way, &str); 3] = [
    (Way::Plain, "plain Postgres"),
    (Way::ByHand, "two-phase commit by hand, two servers"),
    (Way::Proxy, "through the proxy"),
];

/// Measures all of them in turn.
pub fn measure(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    book.section("Where a transfer's time goes, one client, p50 in µs", HEAD);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    let mut fsync = Vec::new();
    let measured = ground.in_turn(WAYS.len() + 1, ground.common.rounds, |number| {
        match WAYS.get(number) {
            Some((way, _)) => runtime.block_on(transfers(ground, *way)),
            None => {
                fsync.push(flushes(ground)?);
                Ok(Vec::new())
            }
        }
    })?;
    let whole = |steps: &Steps| steps.iter().sum::<f64>();
    let plain = column(&measured[0], whole);
    for ((way, name), rounds) in WAYS.iter().zip(&measured) {
        let count = rounds.first().map_or(0, Vec::len);
        let steps: Vec<f64> = (0..count)
            .map(|step| column(rounds, |it| it[step]))
            .collect();
        let commit: f64 = column(rounds, |it| it[3..].iter().sum());
        let of_it = match way {
            Way::ByHand => format!(
                "PREPARE {:.0}, COMMIT {:.0}, COMMIT PREPARED {:.0}",
                steps[3], steps[4], steps[5]
            ),
            Way::Plain | Way::Proxy => String::new(),
        };
        let all = column(rounds, whole);
        book.line(format!(
            "| {name} | {:.0} | {:.0} | {:.0} | {commit:.0} | {of_it} | {all:.0} | {:.2} |",
            steps[0],
            steps[1],
            steps[2],
            all / plain
        ));
        book.rows.push(serde_json::json!({
            "load": "steps of a transfer", "server": name, "steps_microseconds": steps,
        }));
    }
    book.note(format!(
        "writing 8 kB over and fdatasync on this disk: p50 {:.0} µs",
        middle(&mut fsync)
    ));
    Ok(())
}

fn column(rounds: &[Steps], value: impl Fn(&Steps) -> f64) -> f64 {
    middle(&mut rounds.iter().map(value).collect::<Vec<_>>())
}

/// What a write-ahead log does at each commit.
fn flushes(ground: &Ground<'_>) -> Result<f64> {
    let path = ground.directory.path().join("flushed");
    let file = File::create(path)?;
    file.write_all_at(&vec![0; 16 << 20], 0)?;
    file.sync_all()?;
    let mut times = Vec::new();
    let started = Instant::now();
    while started.elapsed() < Duration::from_secs(1) {
        let place = (times.len() as u64 % 2048) * 8192;
        let asked = Instant::now();
        file.write_all_at(&[1; 8192], place)?;
        file.sync_data()?;
        times.push(asked.elapsed().as_secs_f64() * 1e6);
    }
    Ok(middle(&mut times))
}

/// Transfers for the length of a measurement: the median of each step.
async fn transfers(ground: &Ground<'_>, way: Way) -> Result<Steps> {
    let branches = &ground.new.branches;
    let each = ACCOUNTS / SHARDS;
    let first = match way {
        Way::Plain => connect(&ground.plain.login()).await?,
        Way::Proxy => connect(&ground.new.login()).await?,
        Way::ByHand => direct(ground, 0).await?,
    };
    let second = direct(ground, 1).await?;
    let length = Duration::from_secs(u64::from(ground.common.seconds));
    let started = Instant::now();
    let mut steps: Vec<Steps> = Vec::new();
    let mut number = 0;
    while started.elapsed() < length {
        number += 1;
        // Rows far from each other, in an order that is the same for all.
        let row = (number * 7919) % each + 1;
        let update = |branch: i64, sign: char| {
            format!(
                "UPDATE accounts SET balance = balance {sign} 1 WHERE branch = {branch} AND id = {row}"
            )
        };
        let texts = (update(branches[0], '-'), update(branches[1], '+'));
        let mut clock = Clock::default();
        if way == Way::ByHand {
            by_hand(&first, &second, &texts, number, &mut clock).await?;
        } else {
            for text in ["BEGIN", &texts.0, &texts.1, "COMMIT"] {
                clock.time(&first, text).await?;
            }
        }
        steps.push(clock.0);
    }
    let count = steps.first().map_or(0, Vec::len);
    Ok((0..count)
        .map(|step| column(&steps, |it| it[step]))
        .collect())
}

/// The servers that hold the proxy's first and second branch.
async fn direct(ground: &Ground<'_>, shard: usize) -> Result<Client> {
    let host = ground.directory.path().display().to_string();
    connect(&crate::servers::login(&host, ground.shards[shard].port)).await
}

#[derive(Default)]
struct Clock(Steps);

impl Clock {
    async fn time(&mut self, client: &Client, text: &str) -> Result<()> {
        let asked = Instant::now();
        client.simple_query(text).await?;
        self.0.push(asked.elapsed().as_secs_f64() * 1e6);
        Ok(())
    }
}

/// The same steps that the proxy takes, without it.
async fn by_hand(
    first: &Client,
    second: &Client,
    texts: &(String, String),
    number: usize,
    clock: &mut Clock,
) -> Result<()> {
    let gid = format!("hand_{}_{number}", std::process::id());
    // Numbers grow over all rounds.
    let now = std::time::UNIX_EPOCH.elapsed()?.as_micros();
    let note = format!("0, 0, {now}, '{{0,{now},{now}}}'");
    // A server's BEGIN goes with its first statement.
    clock.0.push(0.0);
    clock.time(first, &format!("BEGIN; {}", texts.0)).await?;
    clock.time(second, &format!("BEGIN; {}", texts.1)).await?;
    let prepare = format!("SELECT automator67.write_note({note}); PREPARE TRANSACTION '{gid}'");
    clock.time(second, &prepare).await?;
    let decide = format!(
        "SELECT pg_advisory_xact_lock(automator67.gid_lock('{gid}')); \
         SELECT automator67.write_note({note}); COMMIT"
    );
    clock.time(first, &decide).await?;
    let commit = format!("COMMIT PREPARED '{gid}'");
    clock.time(second, &commit).await?;
    Ok(())
}

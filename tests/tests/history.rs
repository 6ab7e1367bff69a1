//! Clients append to lists on four shards and read them, with and without faults; what they saw
//! must keep the promises of their level.
//!
//! `strong` does not promise that a read of several shards sees a distributed transaction wholly:
//! such reads are counted, and the count is told.
//!
//! `AUTOMATOR67_SECONDS` says how long each recording takes (4); `AUTOMATOR67_SEED` what the clients
//! choose, and every run tells its own (who comes first is left to chance);
//! `AUTOMATOR67_RECORDINGS` keeps those whose name (`Cuts Level(Strong)`) contains it.

mod recording;

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    given,
    history::{Anomaly, End, Finding, Key, Level, Transaction, Value, check},
    pair::Pair,
    wait,
    wire::Connection,
};
use recording::{KEYS, Recorder, Style};

const SHARDS: usize = 4;
const PATIENCE: Duration = Duration::from_secs(60);

/// What happens meanwhile.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Fault {
    None,
    /// A is killed and started again, over and over.
    Kills,
    /// Connections are cut at steps of A's commits.
    Cuts,
    /// The postmasters of shards are killed, one after the other.
    Shards,
}

/// A recording to be made.
#[derive(Debug, Clone, Copy)]
struct Recording {
    fault: Fault,
    style: Style,
    first_key: Key,
    seed: u64,
    length: Duration,
}

#[test]
fn histories_keep_the_promises_of_their_level() {
    histories().expect("histories");
}

fn histories() -> Result<()> {
    let seconds = std::env::var("AUTOMATOR67_SECONDS").map_or(Ok(4), |text| text.parse())?;
    let wanted = std::env::var("AUTOMATOR67_RECORDINGS").unwrap_or_default();
    let length = Duration::from_secs(seconds);
    let mut pair = Pair::start(SHARDS)?;
    let seed = given::seed("histories");
    let mut first_key = 0;
    make_lists(&pair)?;
    for (fault, style) in [
        (Fault::None, Style::Level(Level::Strong)),
        (Fault::None, Style::Level(Level::Snapshot)),
        (Fault::None, Style::Mixed),
        (Fault::Kills, Style::Level(Level::Strong)),
        (Fault::Kills, Style::Level(Level::Snapshot)),
        (Fault::Cuts, Style::Level(Level::Strong)),
        (Fault::Cuts, Style::Level(Level::Snapshot)),
        (Fault::Shards, Style::Mixed),
    ] {
        if !format!("{fault:?} {style:?}").contains(&wanted) {
            continue;
        }
        // Lists of its own for every recording: a list only grows, and a read has all of it.
        let recording = Recording {
            fault,
            style,
            first_key,
            seed: seed.wrapping_add(u64::from(first_key)),
            length,
        };
        let history =
            record(&mut pair, recording).with_context(|| format!("{fault:?}, {style:?}"))?;
        let last = lists(&pair, first_key)?;
        judge(&history, &last).with_context(|| format!("{fault:?}, {style:?}"))?;
        first_key += KEYS;
    }
    Ok(())
}

fn make_lists(pair: &Pair) -> Result<()> {
    let mut connection = pair.a.connect()?;
    connection.execute("create table lists (k int primary key, v bigint[] not null)")?;
    connection.execute("select create_distributed_table('lists', 'k')")?;
    let text = "insert into lists select g, '{}' from generate_series(0, 999) g";
    connection.execute(text)?;
    wait::until("B to know the table", PATIENCE, || {
        let count = pair.b.connect().ok()?.execute("select count(*) from lists");
        (count.ok()?.as_deref() == Some("1000")).then_some(())
    })
}

/// Runs the clients and the faults for a while; nothing is left prepared after it.
fn record(pair: &mut Pair, recording: Recording) -> Result<Vec<Transaction>> {
    let Recording { fault, length, .. } = recording;
    let recorder = Recorder::start(pair, recording);
    let start = Instant::now();
    let mut turn = 0;
    while start.elapsed() < length || turn == 0 {
        recorder.progress(50).with_context(|| context(pair))?;
        disturb(pair, fault, turn)?;
        turn += 1;
    }
    recorder.progress(50).with_context(|| context(pair))?;
    let history = recorder.finish()?;
    if fault == Fault::Cuts {
        pair.a.arm("off")?;
    }
    pair.wait_resolved()?;
    Ok(history)
}

/// Where to look when clients do not go on.
fn context(pair: &Pair) -> String {
    let (a, b) = (pair.a.log_end(), pair.b.log_end());
    format!("busy:\n{}\nlog of A:\n{a}\nlog of B:\n{b}", pair.busy())
}

fn disturb(pair: &mut Pair, fault: Fault, turn: usize) -> Result<()> {
    match fault {
        Fault::None => {}
        Fault::Kills => {
            pair.a.kill()?;
            pair.wait_resolved()?;
            pair.a.start_again()?;
        }
        Fault::Cuts => {
            let steps = [
                "commit.after_one_prepared",
                "commit.before_second_phase",
                "commit.commit_sent",
                "commit.one_second_sent",
            ];
            let step = steps[turn % steps.len()];
            pair.a.arm("off")?;
            pair.a.arm(&format!("{step}=5%return(cut)"))?;
        }
        Fault::Shards => pair.restart_shard(turn % SHARDS)?,
    }
    Ok(())
}

/// The lists as the shards hold them.
fn lists(pair: &Pair, first_key: Key) -> Result<BTreeMap<Key, Vec<Value>>> {
    let end = first_key + KEYS;
    let text = format!("select k, v from only lists where k >= {first_key} and k < {end}");
    let rows = pair.everywhere(&text)?;
    let lists = rows.into_iter().map(|(_, row)| {
        let [key, values] = &row[..] else {
            anyhow::bail!("{} columns", row.len());
        };
        Ok((key.parse()?, recording::values(values)?))
    });
    let lists = lists.collect::<Result<BTreeMap<_, _>>>()?;
    ensure!(lists.len() == KEYS as usize, "{} lists", lists.len());
    Ok(lists)
}

fn judge(history: &[Transaction], last: &BTreeMap<Key, Vec<Value>>) -> Result<()> {
    let findings = check(history, last);
    let ended = |end| history.iter().filter(|it| it.end == end).count();
    let mut counts: BTreeMap<(Anomaly, String), usize> = BTreeMap::new();
    for finding in &findings {
        let level = format!("{:?}", finding.level);
        *counts.entry((finding.anomaly, level)).or_default() += 1;
    }
    eprintln!(
        "{} committed, {} rolled back, {} unknown; found {counts:?}",
        ended(End::Committed),
        ended(End::Aborted),
        ended(End::Unknown),
    );
    let mut broken: Vec<&Finding> = findings
        .iter()
        .filter(|it| it.is_broken_promise())
        .collect();
    // The shortest tell the most.
    broken.sort_by_key(|finding| (finding.anomaly, finding.detail.len()));
    let told = broken.iter().take(5).map(ToString::to_string);
    let told: Vec<_> = told.collect();
    ensure!(
        broken.is_empty(),
        "{} broken promises of {counts:?}:\n{}",
        broken.len(),
        told.join("\n")
    );
    Ok(())
}

/// The checker must find what a recording hides.
#[test]
fn a_falsified_recording_is_found() {
    falsified().expect("a falsified recording");
}

fn falsified() -> Result<()> {
    let mut pair = Pair::start(2)?;
    make_lists(&pair)?;
    let recording = Recording {
        fault: Fault::None,
        style: Style::Level(Level::Snapshot),
        first_key: 0,
        seed: given::seed("a falsified history"),
        length: Duration::from_millis(500),
    };
    let history = record(&mut pair, recording)?;
    let last = lists(&pair, 0)?;
    judge(&history, &last)?;
    // One append of somebody who was told that it is there.
    let mut less = last.clone();
    less.values_mut().find_map(Vec::pop).context("no append")?;
    let told = judge(&history, &less).err().context("nobody noticed")?;
    ensure!(format!("{told:#}").contains("LostAppend"), "{told:#}");
    // An append on one shard, done with the shard's own hands.
    let mut connection = Connection::open(pair.shard(0))?;
    let text = "update only lists set v = v || 424242::bigint where k in \
                (select min(k) from only lists)";
    connection.execute(text)?;
    let told = judge(&history, &lists(&pair, 0)?).err();
    let told = told.context("nobody noticed")?;
    ensure!(
        format!("{told:#}").contains("424242 is nobody's"),
        "{told:#}"
    );
    Ok(())
}

//! One fault at one step of a commit, a rollback or a recovery, and what must hold after it.

use std::{fmt, time::Instant};

use anyhow::{Context, Result};
use automator67_tests::{pair::Pair, wait};

use super::{
    PATIENCE,
    clients::{Counter, Notes},
};

/// The steps that can be made to fail.
pub(super) const STEPS: [&str; 17] = [
    "commit.before_prepare",
    "commit.one_prepare_sent",
    "commit.after_one_prepared",
    "commit.after_prepare",
    "commit.before_commit",
    "commit.commit_sent",
    "commit.after_commit",
    "commit.before_second_phase",
    "commit.one_second_sent",
    "commit.after_one_second",
    "commit.after_second_phase",
    "commit.before_acknowledge",
    "rollback.before_prepared",
    "rollback.after_one",
    "recovery.before_lock",
    "recovery.after_lock",
    "recovery.after_resolve",
];

/// What happens at a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Fault {
    /// The proxy kills itself.
    Exit,
    /// The postmaster of a shard is killed.
    Kill(usize),
    /// The connection to the step's shard is cut.
    Cut,
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Fault::Exit => write!(f, "exit of A"),
            Fault::Kill(shard) => write!(f, "kill of shard s{shard}"),
            Fault::Cut => write!(f, "cut connections"),
        }
    }
}

impl Fault {
    /// The kinds take turns, and so do the shards that are killed.
    pub(super) fn of_turn(turn: usize, shards: usize) -> Fault {
        match turn % 3 {
            0 => Fault::Exit,
            1 => Fault::Kill(turn / 3 % shards),
            _ => Fault::Cut,
        }
    }
}

/// Gives A the fault at `step` under the clients' load, sees it happen, and waits until nothing
/// of it is left and both proxies work.
pub(super) fn strike(pair: &mut Pair, notes: &Notes, step: &str, fault: Fault) -> Result<()> {
    let start = Instant::now();
    notes.tell(format!("{fault} at {step}"));
    let recovery = step.starts_with("recovery.");
    pair.a.arm(&format!("{step}={}", action(pair, fault)?))?;
    if recovery {
        // What a process can end itself is no matter of recovery: B leaves something for A.
        pair.b.arm("commit.after_prepare=1*return(exit)")?;
        wait::until("B to exit", PATIENCE, || pair.b.ended().then_some(()))?;
    }
    match fault {
        Fault::Exit => {
            let what = format!("A to exit at {step}");
            wait::until(&what, PATIENCE, || pair.a.ended().then_some(()))?;
        }
        Fault::Kill(shard) => {
            let what = format!("shard s{shard} to be killed at {step}");
            wait::until(&what, PATIENCE, || pair.shard_ended(shard).then_some(()))?;
            pair.restart_shard(shard)?;
        }
        Fault::Cut if recovery => {}
        Fault::Cut => passed(notes, step)?,
    }
    if recovery {
        pair.b.start_again().context("start B again")?;
    }
    if fault != Fault::Exit {
        disarm(pair)?;
    }
    let resolved = pair.wait_resolved()?;
    if fault == Fault::Exit {
        // All that was B's work, with A down; B's clients went on.
        notes.progress(&[Counter::B], 10)?;
        pair.a.start_again().context("start A again")?;
    }
    notes.progress(&[Counter::A, Counter::B], 10)?;
    let took = start.elapsed();
    eprintln!("{step}: {fault}: resolved after {resolved:?}, all in {took:?}");
    Ok(())
}

/// A shard that has just come back may keep a session from being opened for a moment.
fn disarm(pair: &Pair) -> Result<()> {
    wait::until("A to take `off`", PATIENCE, || pair.a.arm("off").ok())
}

/// What the failpoint does, once or a few times.
fn action(pair: &Pair, fault: Fault) -> Result<String> {
    Ok(match fault {
        Fault::Exit => "1*return(exit)".to_owned(),
        Fault::Kill(shard) => format!("1*return(run:kill -9 {})", pair.postmaster(shard)?),
        Fault::Cut => "3*return(cut)".to_owned(),
    })
}

/// Waits until A must have passed the step more than three times.
fn passed(notes: &Notes, step: &str) -> Result<()> {
    if step.starts_with("rollback.") {
        notes.progress(&[Counter::Vetoes], 6)
    } else {
        notes.progress(&[Counter::EndsOfA], 60)
    }
}

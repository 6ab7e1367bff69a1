use std::{
    collections::HashSet,
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
};

use tokio::sync::Semaphore;

use super::{Ask, Identity, Numbers, Sequences, Source};
use crate::{
    error::{Report, sqlstate},
    process::lock,
};

/// A sequence in memory.
struct Fake {
    next: Mutex<i64>,
    step: i64,
    end: i64,
    blocks: bool,
    missing: bool,
    identity: Mutex<String>,
    draws: AtomicU64,
    failures: AtomicU64,
    /// A draw needs one of these.
    gate: Semaphore,
}

impl Default for Fake {
    fn default() -> Self {
        Fake {
            next: Mutex::new(1),
            step: 1,
            end: i64::MAX,
            blocks: true,
            missing: false,
            identity: Mutex::new("made".to_owned()),
            draws: AtomicU64::new(0),
            failures: AtomicU64::new(0),
            gate: Semaphore::new(1_000_000),
        }
    }
}

impl Source for Fake {
    async fn identity(&self, _: u32) -> Result<Option<Identity>, Report> {
        Ok((!self.missing).then(|| Identity {
            text: lock(&self.identity).clone(),
            blocks: self.blocks,
            step: self.step,
        }))
    }

    async fn draw(&self, _: u32, count: u64) -> Result<Vec<i64>, Report> {
        let permit = self.gate.acquire().await.expect("never closed");
        permit.forget();
        self.draws.fetch_add(1, Ordering::SeqCst);
        if self.failures.load(Ordering::SeqCst) > 0 {
            self.failures.fetch_sub(1, Ordering::SeqCst);
            return Err(Report::error(sqlstate::CONNECTION_FAILURE, "lost"));
        }
        let mut next = lock(&self.next);
        let distance = (self.end - *next) * self.step.signum();
        if distance < 0 {
            return Err(Report::error(sqlstate::SEQUENCE_LIMIT, "at its end"));
        }
        let left = distance / self.step.abs() + 1;
        let count = (count as i64).min(left);
        let values = (0..count).map(|at| *next + at * self.step).collect();
        *next += count * self.step;
        Ok(values)
    }
}

fn ask(count: usize) -> Ask {
    Ask {
        sequence: 1,
        count,
        epoch: 1,
        block: 10,
    }
}

async fn take(sequences: &Sequences<Fake>, count: usize) -> Vec<i64> {
    let taken = sequences.take(ask(count)).await.expect("values");
    taken.expect("in blocks")
}

fn draws(sequences: &Sequences<Fake>) -> u64 {
    sequences.source().draws.load(Ordering::SeqCst)
}

#[test]
fn values_at_the_ends_of_int8() {
    for (step, values) in [
        (1, vec![i64::MAX - 1, i64::MAX]),
        (-1, vec![i64::MIN + 1, i64::MIN]),
        (i64::MAX, vec![i64::MIN, -1, i64::MAX - 1]),
        (i64::MIN, vec![1, i64::MIN + 1]),
        (5, vec![3, 8, 100, 105, 2]),
    ] {
        let mut numbers = Numbers {
            step,
            ..Numbers::default()
        };
        numbers.add(&values);
        assert_eq!(numbers.count, values.len() as u64);
        let mut taken = Vec::new();
        numbers.take(values.len() + 5, &mut taken);
        assert_eq!(taken, values, "step {step}");
        assert!(numbers.runs.is_empty());
        numbers.give_back(&taken);
        let mut again = Vec::new();
        numbers.take(usize::MAX, &mut again);
        assert_eq!(again, values, "given back, step {step}");
    }
}

#[tokio::test]
async fn a_sequence_that_is_gone_or_cycles_is_asked_directly() {
    for fake in [
        Fake {
            missing: true,
            ..Fake::default()
        },
        Fake {
            blocks: false,
            ..Fake::default()
        },
    ] {
        let sequences = Sequences::new(fake);
        assert_eq!(sequences.take(ask(3)).await.expect("an answer"), None);
        assert_eq!(draws(&sequences), 0);
        let held = sequences.take_reserved(1, 5, "made");
        assert!(held.values().is_empty());
    }
}

#[tokio::test]
async fn a_failed_reservation_loses_nothing() {
    let sequences = Sequences::new(Fake::default());
    assert_eq!(take(&sequences, 4).await, [1, 2, 3, 4]);
    sequences.source().failures.store(1, Ordering::SeqCst);
    let failed = sequences.take(ask(20)).await.expect_err("connection lost");
    assert_eq!(failed.sqlstate, sqlstate::CONNECTION_FAILURE);
    assert_eq!(take(&sequences, 8).await, [5, 6, 7, 8, 9, 10, 11, 12]);
}

#[tokio::test]
async fn the_last_values_can_be_used() {
    let fake = Fake {
        next: Mutex::new(20),
        step: -3,
        end: 1,
        ..Fake::default()
    };
    let sequences = Sequences::new(fake);
    assert_eq!(take(&sequences, 5).await, [20, 17, 14, 11, 8]);
    // A statement that needs more than there are uses them up, as on one server.
    let failed = sequences.take(ask(3)).await.expect_err("at the end");
    assert_eq!(failed.sqlstate, sqlstate::SEQUENCE_LIMIT);
    let failed = sequences.take(ask(1)).await.expect_err("at the end");
    assert_eq!(failed.sqlstate, sqlstate::SEQUENCE_LIMIT);

    let fake = Fake {
        end: 7,
        ..Fake::default()
    };
    let sequences = Sequences::new(fake);
    for value in 1..=7 {
        assert_eq!(take(&sequences, 1).await, [value]);
    }
    assert!(sequences.take(ask(1)).await.is_err());
}

#[tokio::test]
async fn one_reservation_serves_all_who_wait() {
    let fake = Fake {
        gate: Semaphore::new(0),
        ..Fake::default()
    };
    let sequences = Arc::new(Sequences::new(fake));
    let waiting: Vec<_> = (0..10)
        .map(|_| {
            let sequences = sequences.clone();
            tokio::spawn(async move { take(&sequences, 1).await })
        })
        .collect();
    sequences.source().gate.add_permits(100);
    let mut seen = HashSet::new();
    for one in waiting {
        seen.extend(one.await.expect("no panic"));
    }
    assert_eq!(seen.len(), 10);
    assert_eq!(draws(&sequences), 1);
}

#[tokio::test]
async fn a_cancelled_wait_loses_nothing() {
    let fake = Fake {
        gate: Semaphore::new(0),
        ..Fake::default()
    };
    let sequences = Sequences::new(fake);
    {
        let waiting = sequences.take(ask(3));
        tokio::pin!(waiting);
        for _ in 0..10 {
            assert!(futures_pending(&mut waiting).await);
        }
    }
    sequences.source().gate.add_permits(100);
    assert_eq!(take(&sequences, 3).await, [1, 2, 3]);
    assert_eq!(draws(&sequences), 1, "the reservation under way was used");
}

/// Polls once, and lets other tasks run.
async fn futures_pending<F: Future>(waiting: &mut std::pin::Pin<&mut F>) -> bool {
    let pending = std::future::poll_fn(|context| {
        std::task::Poll::Ready(waiting.as_mut().poll(context).is_pending())
    });
    let pending = pending.await;
    tokio::task::yield_now().await;
    pending
}

#[tokio::test]
async fn changes_drop_what_is_reserved() {
    let sequences = Sequences::new(Fake::default());
    assert_eq!(take(&sequences, 2).await, [1, 2]);
    // Another epoch, the same sequence.
    let later = Ask { epoch: 2, ..ask(1) };
    assert_eq!(sequences.take(later).await.expect("values"), Some(vec![3]));
    *lock(&sequences.source().identity) = "restarted".to_owned();
    *lock(&sequences.source().next) = 500;
    // The epoch is what makes it look again.
    assert_eq!(take(&sequences, 1).await, [4]);
    let held = sequences.take_reserved(1, 1, "made");
    assert_eq!(held.values(), [5]);
    assert!(
        sequences
            .take_reserved(1, 1, "restarted")
            .values()
            .is_empty()
    );
    let later = Ask { epoch: 3, ..ask(1) };
    assert_eq!(
        sequences.take(later).await.expect("values"),
        Some(vec![500])
    );
    // Held from before the change: it does not come back.
    drop(held);
    assert_eq!(
        sequences.take(later).await.expect("values"),
        Some(vec![501])
    );
    let held = sequences.take_reserved(1, 3, "restarted");
    assert_eq!(held.values(), [502, 503, 504]);
    held.used(1);
    assert_eq!(
        sequences.take(later).await.expect("values"),
        Some(vec![503])
    );
    sequences.forget(Some(2));
    assert_eq!(
        sequences.take(later).await.expect("values"),
        Some(vec![504])
    );
    sequences.forget(None);
    assert_eq!(
        sequences.take(later).await.expect("values"),
        Some(vec![510])
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn many_takers_get_different_values() {
    let sequences = Arc::new(Sequences::new(Fake::default()));
    let takers: Vec<_> = (0..32)
        .map(|taker| {
            let sequences = sequences.clone();
            tokio::spawn(async move {
                let mut all = Vec::new();
                for round in 0..200 {
                    all.extend(take(&sequences, 1 + (taker + round) % 17).await);
                }
                all
            })
        })
        .collect();
    let (mut seen, mut count) = (HashSet::new(), 0);
    for taker in takers {
        let values = taker.await.expect("no panic");
        count += values.len();
        seen.extend(values);
    }
    assert_eq!(seen.len(), count);
}

#[test]
fn privileges_are_asked_anew_in_each_epoch() {
    let sequences = Sequences::new(Fake::default());
    assert!(!sequences.is_allowed("ann", 1, 1));
    sequences.allow("ann", 1, 1);
    assert!(sequences.is_allowed("ann", 1, 1));
    assert!(!sequences.is_allowed("bob", 1, 1));
    assert!(!sequences.is_allowed("ann", 2, 1));
    assert!(!sequences.is_allowed("ann", 1, 2));
    sequences.allow("bob", 1, 2);
    assert!(!sequences.is_allowed("ann", 1, 1));
}

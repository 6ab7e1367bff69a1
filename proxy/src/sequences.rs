//! Values of sequences, reserved from the home shard in blocks and handed out to all sessions of
//! this process.
//!
//! A block is a list of values that one statement on the home shard has drawn with `nextval`, so
//! no two proxies ever hold the same value, and nothing has to be agreed between them. What is
//! left of a block when the process ends is lost.

use std::{
    collections::{HashMap, HashSet, VecDeque},
    sync::{Arc, Mutex},
};

use metrics::Counter;
use tokio::sync::OwnedMutexGuard;

use crate::{
    error::{Report, sqlstate},
    process::lock,
};

mod home;

pub use home::HomeShard;

/// What a sequence was when its values were reserved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// Differs after every change but `nextval`.
    pub text: String,
    /// Its values may be reserved: it does not cycle, and server sessions cache none.
    pub blocks: bool,
    /// INCREMENT.
    pub step: i64,
}

/// Where values come from.
pub trait Source: Send + Sync + 'static {
    /// The sequence with this OID; `None` if there is none.
    fn identity(
        &self,
        sequence: u32,
    ) -> impl Future<Output = Result<Option<Identity>, Report>> + Send;

    /// Draws up to `count` values, at least one, in one step. Fewer come where a sequence is about
    /// to end: what it has left is shared.
    fn draw(
        &self,
        sequence: u32,
        count: u64,
    ) -> impl Future<Output = Result<Vec<i64>, Report>> + Send;
}

/// Values that follow each other.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Run {
    next: i64,
    count: u64,
}

/// Reserved values in the order in which they were drawn.
#[derive(Debug, Default)]
struct Numbers {
    runs: VecDeque<Run>,
    step: i64,
    count: u64,
}

impl Numbers {
    fn clear(&mut self) {
        self.runs.clear();
        self.count = 0;
    }

    /// Values of a sequence with this step come behind those that are there.
    fn add(&mut self, values: &[i64]) {
        for value in values {
            self.count += 1;
            let follows = self.runs.back().is_some_and(|run| {
                let length = i64::try_from(run.count).ok();
                let behind = length
                    .and_then(|length| self.step.checked_mul(length))
                    .and_then(|distance| run.next.checked_add(distance));
                behind == Some(*value)
            });
            match self.runs.back_mut().filter(|_| follows) {
                Some(run) => run.count += 1,
                None => self.runs.push_back(Run {
                    next: *value,
                    count: 1,
                }),
            }
        }
    }

    /// Takes up to `count` values.
    fn take(&mut self, count: usize, into: &mut Vec<i64>) {
        for _ in 0..count {
            let Some(run) = self.runs.front_mut() else {
                return;
            };
            into.push(run.next);
            run.count -= 1;
            self.count -= 1;
            match run.next.checked_add(self.step) {
                Some(next) if run.count > 0 => run.next = next,
                _ => {
                    self.runs.pop_front();
                }
            }
        }
    }

    /// Puts values that nobody has seen back to the front.
    fn give_back(&mut self, values: &[i64]) {
        for value in values.iter().rev() {
            self.count += 1;
            match self.runs.front_mut() {
                Some(run) if value.checked_add(self.step) == Some(run.next) => {
                    run.next = *value;
                    run.count += 1;
                }
                _ => self.runs.push_front(Run {
                    next: *value,
                    count: 1,
                }),
            }
        }
    }
}

/// One sequence.
#[derive(Default)]
struct Entry {
    state: Mutex<State>,
    /// Held by the task that asks the home shard: others wait for its values.
    work: Arc<tokio::sync::Mutex<()>>,
}

#[derive(Default)]
struct State {
    numbers: Numbers,
    identity: Option<Identity>,
    /// The identity was looked at in this epoch of the catalog.
    epoch: u64,
    /// Grows when values are dropped: those still held elsewhere are no good either.
    generation: u64,
}

impl State {
    fn drop_values(&mut self) {
        self.numbers.clear();
        self.generation += 1;
    }

    /// Takes what was found on the home shard in.
    fn identify(&mut self, found: Option<Identity>, epoch: u64) {
        let found = found.unwrap_or(Identity {
            text: String::new(),
            blocks: false,
            step: 1,
        });
        if self.identity.as_ref() != Some(&found) {
            self.drop_values();
            self.numbers.step = found.step;
        }
        self.identity = Some(found);
        self.epoch = epoch;
    }
}

/// A request for values.
#[derive(Debug, Clone, Copy)]
pub struct Ask {
    /// The sequence's OID on the home shard.
    pub sequence: u32,
    /// How many.
    pub count: usize,
    /// The catalog's epoch, as the session knows it.
    pub epoch: u64,
    /// How many to reserve at once.
    pub block: u64,
}

/// Values that were taken and go back if nobody uses them.
pub struct Held {
    entry: Arc<Entry>,
    values: Vec<i64>,
    generation: u64,
}

impl Held {
    /// The values.
    pub fn values(&self) -> &[i64] {
        &self.values
    }

    /// The first `count` are used; the others go back.
    pub fn used(mut self, count: usize) {
        self.values.drain(..count.min(self.values.len()));
    }

    fn keep(mut self) -> Vec<i64> {
        std::mem::take(&mut self.values)
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if self.values.is_empty() {
            return;
        }
        let mut state = lock(&self.entry.state);
        if state.generation == self.generation {
            state.numbers.give_back(&self.values);
        }
    }
}

/// What there is at once.
enum Step {
    /// All that was asked for.
    Done,
    /// Values of this sequence are not reserved.
    Direct,
    /// More must be reserved first.
    Reserve,
}

/// All sequences of the process.
pub struct Sequences<S> {
    source: Arc<S>,
    entries: Mutex<HashMap<u32, Arc<Entry>>>,
    /// Users who may draw from sequences, as of an epoch.
    allowed: Mutex<(u64, HashSet<(String, u32)>)>,
    blocks: Counter,
    reserved: Counter,
    handed_out: Counter,
}

impl<S: Source> Sequences<S> {
    /// Nothing is reserved yet.
    pub fn new(source: S) -> Self {
        Sequences {
            source: Arc::new(source),
            entries: Mutex::default(),
            allowed: Mutex::default(),
            blocks: metrics::counter!("automator67_sequence_blocks_total"),
            reserved: metrics::counter!("automator67_sequence_values_reserved_total"),
            handed_out: metrics::counter!("automator67_sequence_values_total"),
        }
    }

    /// Where values come from.
    pub fn source(&self) -> &S {
        &self.source
    }

    /// The next values; `None`: this sequence's are drawn one by one, from the home shard.
    /// Dropping the future loses nothing.
    pub async fn take(&self, ask: Ask) -> Result<Option<Vec<i64>>, Report> {
        let entry = self.entry(ask.sequence);
        let mut held = Held {
            entry: entry.clone(),
            values: Vec::with_capacity(ask.count),
            generation: 0,
        };
        loop {
            match take_step(&ask, &mut held) {
                Step::Done => {
                    self.handed_out.increment(ask.count as u64);
                    return Ok(Some(held.keep()));
                }
                Step::Direct => return Ok(None),
                Step::Reserve => {}
            }
            let missing = ask.count - held.values.len();
            if let Err(report) = self.refill(&entry, ask, missing as u64).await {
                if report.sqlstate == sqlstate::SEQUENCE_LIMIT {
                    // A statement that ran into the end has used up what it got.
                    held.values.clear();
                }
                return Err(report);
            }
        }
    }

    /// Up to `count` values that are reserved already, if the sequence is what `identity` says.
    pub fn take_reserved(&self, sequence: u32, count: usize, identity: &str) -> Held {
        let entry = self.entry(sequence);
        let mut held = Held {
            entry: entry.clone(),
            values: Vec::new(),
            generation: 0,
        };
        let mut state = lock(&entry.state);
        held.generation = state.generation;
        if state
            .identity
            .as_ref()
            .is_some_and(|known| known.blocks && known.text == identity)
        {
            state.numbers.take(count, &mut held.values);
        }
        drop(state);
        self.handed_out.increment(held.values.len() as u64);
        held
    }

    /// Drops what is reserved: of one sequence, or of all.
    pub fn forget(&self, sequence: Option<u32>) {
        for (oid, entry) in lock(&self.entries).iter() {
            if sequence.is_none_or(|sequence| sequence == *oid) {
                let mut state = lock(&entry.state);
                state.drop_values();
                state.identity = None;
            }
        }
    }

    /// True if the user was found to have the privilege to draw, in this epoch.
    pub fn is_allowed(&self, user: &str, sequence: u32, epoch: u64) -> bool {
        let allowed = lock(&self.allowed);
        allowed.0 == epoch && allowed.1.contains(&(user.to_owned(), sequence))
    }

    /// Remembers that the user has the privilege.
    pub fn allow(&self, user: &str, sequence: u32, epoch: u64) {
        let mut allowed = lock(&self.allowed);
        if allowed.0 != epoch {
            *allowed = (epoch, HashSet::new());
        }
        allowed.1.insert((user.to_owned(), sequence));
    }

    fn entry(&self, sequence: u32) -> Arc<Entry> {
        lock(&self.entries).entry(sequence).or_default().clone()
    }

    /// Waits until there is more, or until it is known that there is not. The home shard is asked
    /// by a task of its own, so that its answer is kept when the session that wanted it is gone.
    async fn refill(&self, entry: &Arc<Entry>, ask: Ask, missing: u64) -> Result<(), Report> {
        let guard = entry.work.clone().lock_owned().await;
        let task = Refill {
            source: self.source.clone(),
            entry: entry.clone(),
            ask,
            missing,
            blocks: self.blocks.clone(),
            reserved: self.reserved.clone(),
        };
        match tokio::spawn(task.run(guard)).await {
            Ok(result) => result,
            Err(error) => Err(Report::error(
                sqlstate::INTERNAL_ERROR,
                "values of a sequence could not be reserved",
            )
            .detail(error.to_string())),
        }
    }
}

fn take_step(ask: &Ask, held: &mut Held) -> Step {
    let entry = held.entry.clone();
    let mut state = lock(&entry.state);
    if state.generation != held.generation {
        held.values.clear();
        held.generation = state.generation;
    }
    let Some(identity) = state.identity.as_ref().filter(|_| state.epoch >= ask.epoch) else {
        return Step::Reserve;
    };
    if !identity.blocks {
        return Step::Direct;
    }
    let missing = ask.count - held.values.len();
    state.numbers.take(missing, &mut held.values);
    if held.values.len() == ask.count {
        Step::Done
    } else {
        Step::Reserve
    }
}

/// A reservation under way.
struct Refill<S> {
    source: Arc<S>,
    entry: Arc<Entry>,
    ask: Ask,
    missing: u64,
    blocks: Counter,
    reserved: Counter,
}

impl<S: Source> Refill<S> {
    async fn run(self, guard: OwnedMutexGuard<()>) -> Result<(), Report> {
        let result = self.reserve().await;
        drop(guard);
        result
    }

    async fn reserve(&self) -> Result<(), Report> {
        let sequence = self.ask.sequence;
        let known = {
            let state = lock(&self.entry.state);
            state.identity.is_some() && state.epoch >= self.ask.epoch
        };
        if !known {
            let found = self.source.identity(sequence).await?;
            lock(&self.entry.state).identify(found, self.ask.epoch);
        }
        let (generation, wanted) = {
            let state = lock(&self.entry.state);
            let blocks = state.identity.as_ref().is_some_and(|one| one.blocks);
            // Another session's reservation may have brought enough.
            let enough = !blocks || state.numbers.count >= self.missing;
            let missing = self.missing - state.numbers.count.min(self.missing);
            let wanted = if enough {
                0
            } else {
                missing.max(self.ask.block)
            };
            (state.generation, wanted)
        };
        if wanted == 0 {
            return Ok(());
        }
        let values = self.source.draw(sequence, wanted).await?;
        self.blocks.increment(1);
        self.reserved.increment(values.len() as u64);
        let mut state = lock(&self.entry.state);
        if state.generation == generation {
            state.numbers.add(&values);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;

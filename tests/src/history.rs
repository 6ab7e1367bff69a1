//! Checks recorded histories of lists that transactions append to and read.
//!
//! Every value is appended once, and a list only grows, so a read tells which appends it saw
//! and in what order: the versions of a key are the prefixes of its longest list. From that
//! follow the dependencies between transactions (Adya, "Weak Consistency", 1999; the inference
//! is that of Kingsbury and Alvaro, "Elle", VLDB 2020):
//!
//! - `ww`: one appended right after the other to the same key,
//! - `wr`: one read the version that the other made,
//! - `rw`: one read the version that the other's append follows.
//!
//! [`check`] finds what no history may have, [`Anomaly::allowed_at`] tells what a level does
//! not promise. `strong` with READ COMMITTED promises nothing about reads of several shards: a
//! statement may see a distributed transaction on one shard and not yet on another.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
};

mod cycles;

use cycles::{Edge, Graph, Kind};

/// Names a list.
pub type Key = u32;
/// What is appended: unique over a whole history.
pub type Value = u64;

/// What a transaction was promised.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Level {
    /// READ COMMITTED: each statement reads what is committed on each shard.
    Strong,
    /// One snapshot over all shards for the whole transaction.
    Snapshot,
}

/// How a transaction ended, as its client knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    /// COMMIT succeeded.
    Committed,
    /// It was rolled back for certain.
    Aborted,
    /// The answer to COMMIT was lost.
    Unknown,
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Step {
    /// `update lists set v = v || value where k = key`.
    Append(Key, Value),
    /// The whole list of a key.
    Read(Key, Vec<Value>),
}

/// What one client did between BEGIN and COMMIT.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    /// Names it in reports.
    pub id: usize,
    /// What it was promised.
    pub level: Level,
    /// How it ended.
    pub end: End,
    /// Its steps that were answered, in order.
    pub steps: Vec<Step>,
    /// When BEGIN was sent and when the end was known, on one clock. One whose client was told that it
    /// is not visible everywhere yet has no end.
    pub span: (u64, u64),
}

/// What went wrong; the names are those of the literature.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Anomaly {
    /// A value that nobody appended, or one that is there twice.
    Garbage,
    /// Two reads of a key that are no prefixes of one another: its writes have no order.
    Diverged,
    /// A transaction does not read its own appends.
    Internal,
    /// A committed append is not there in the end.
    LostAppend,
    /// Of a transaction's appends, a part is there in the end.
    TornWrite,
    /// G0: writes of transactions in a circle.
    WriteCycle,
    /// G1a: a read, or the end, has a value of a transaction that was rolled back.
    AbortedRead,
    /// G1b: a read ends amid the appends of another transaction.
    IntermediateRead,
    /// G1c: information flows in a circle.
    CircularFlow,
    /// A transaction's appends seen on one key and not on another.
    FracturedRead,
    /// A transaction read a key, and another's append came before its own.
    LostUpdate,
    /// G-single: reads of two moments.
    ReadSkew,
    /// A transaction that began after a commit was acknowledged did not see it.
    StaleRead,
}

impl Anomaly {
    /// True when `level` does not promise its absence.
    pub fn allowed_at(self, level: Level) -> bool {
        match self {
            Anomaly::FracturedRead | Anomaly::LostUpdate | Anomaly::ReadSkew => {
                level == Level::Strong
            }
            Anomaly::StaleRead
            | Anomaly::Garbage
            | Anomaly::Diverged
            | Anomaly::Internal
            | Anomaly::LostAppend
            | Anomaly::TornWrite
            | Anomaly::WriteCycle
            | Anomaly::AbortedRead
            | Anomaly::IntermediateRead
            | Anomaly::CircularFlow => false,
        }
    }
}

/// One anomaly, with the transactions to look at.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Finding {
    /// What it is.
    pub anomaly: Anomaly,
    /// The level of the transaction that was promised otherwise.
    pub level: Level,
    /// Transactions, keys and values.
    pub detail: String,
}

impl Finding {
    /// True when the level of its transaction promises that it cannot be.
    pub fn is_broken_promise(&self) -> bool {
        !self.anomaly.allowed_at(self.level)
    }
}

impl fmt::Display for Finding {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?} at {:?}: {}", self.anomaly, self.level, self.detail)
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "T{} {:?} {:?}", self.id, self.level, self.end)?;
        for step in &self.steps {
            match step {
                Step::Append(key, value) => write!(f, " a{key}:{value}")?,
                Step::Read(key, values) => write!(f, " r{key}:{values:?}")?,
            }
        }
        Ok(())
    }
}

impl Transaction {
    fn appends(&self) -> impl Iterator<Item = (Key, Value)> + '_ {
        self.steps.iter().filter_map(|step| match step {
            Step::Append(key, value) => Some((*key, *value)),
            Step::Read(..) => None,
        })
    }
}

/// A read of what others wrote: the list without the reader's own appends at its end.
struct Seen<'a> {
    /// The reader's place in the history.
    reader: usize,
    key: Key,
    values: &'a [Value],
}

/// A history, looked at from the side of its values.
struct Inquiry<'a> {
    transactions: &'a [Transaction],
    /// Which transaction appended a value, and to which key.
    writers: BTreeMap<Value, (usize, Key)>,
    /// For each key, its values in the order they were appended.
    orders: BTreeMap<Key, Vec<Value>>,
    /// For each value, its place in its key's order.
    places: BTreeMap<Value, usize>,
    findings: Vec<Finding>,
}

/// Finds every anomaly of a history; `last` has the lists after its end. An append of an unknown
/// end counts as committed when it was seen.
pub fn check(transactions: &[Transaction], last: &BTreeMap<Key, Vec<Value>>) -> Vec<Finding> {
    let mut inquiry = Inquiry {
        transactions,
        writers: BTreeMap::new(),
        orders: BTreeMap::new(),
        places: BTreeMap::new(),
        findings: Vec::new(),
    };
    inquiry.note_writers();
    inquiry.order(last);
    inquiry.ends(last);
    let seen = inquiry.reads();
    inquiry.dirty(&seen);
    inquiry.fractured(&seen);
    inquiry.lost_updates(&seen);
    inquiry.stale(&seen);
    inquiry.circles(&seen);
    inquiry.findings
}

impl<'a> Inquiry<'a> {
    fn find(&mut self, anomaly: Anomaly, level: Level, detail: String) {
        self.findings.push(Finding {
            anomaly,
            level,
            detail,
        });
    }

    fn note_writers(&mut self) {
        for (at, transaction) in self.transactions.iter().enumerate() {
            for (key, value) in transaction.appends() {
                if self.writers.insert(value, (at, key)).is_some() {
                    let detail = format!("the history appends {value} twice: {transaction}");
                    self.find(Anomaly::Garbage, transaction.level, detail);
                }
            }
        }
    }

    /// The longest list of each key is its order; every other must be a prefix of it.
    fn order(&mut self, last: &BTreeMap<Key, Vec<Value>>) {
        let mut orders = last.clone();
        let all = self.transactions;
        for (key, values) in all.iter().flat_map(committed_reads) {
            let order = orders.entry(key).or_default();
            if values.len() > order.len() {
                order.clone_from(values);
            }
        }
        for transaction in all {
            for (key, values) in committed_reads(transaction) {
                if !orders[&key].starts_with(values) {
                    let order = &orders[&key];
                    let detail = format!("key {key} was {order:?}, but {transaction}");
                    self.find(Anomaly::Diverged, transaction.level, detail);
                }
            }
        }
        for (key, values) in &orders {
            for (place, value) in values.iter().enumerate() {
                let known = self.writers.get(value).map(|(_, key)| key);
                let twice = self.places.insert(*value, place).is_some();
                if twice || known != Some(key) {
                    let why = if twice { "is twice" } else { "is nobody's" };
                    let detail = format!("{value} {why} in key {key}: {values:?}");
                    self.find(Anomaly::Garbage, Level::Strong, detail);
                }
            }
        }
        self.orders = orders;
    }

    /// What became of every transaction's appends.
    fn ends(&mut self, last: &BTreeMap<Key, Vec<Value>>) {
        let all: BTreeSet<Value> = last.values().flatten().copied().collect();
        for transaction in self.transactions {
            let (there, gone): (Vec<_>, Vec<_>) = transaction
                .appends()
                .partition(|(_, value)| all.contains(value));
            let anomaly = match transaction.end {
                End::Committed if !gone.is_empty() => Anomaly::LostAppend,
                End::Aborted if !there.is_empty() => Anomaly::AbortedRead,
                End::Unknown if !there.is_empty() && !gone.is_empty() => Anomaly::TornWrite,
                _ => continue,
            };
            let detail = format!(
                "in the end {there:?} (key, value) are there and {gone:?} not: {transaction}"
            );
            self.find(anomaly, transaction.level, detail);
        }
    }

    /// Every read of a transaction that counts, without its own appends.
    fn reads(&mut self) -> Vec<Seen<'a>> {
        let mut seen = Vec::new();
        for (reader, transaction) in self.transactions.iter().enumerate() {
            let mut own: BTreeMap<Key, Vec<Value>> = BTreeMap::new();
            for step in &transaction.steps {
                match step {
                    Step::Append(key, value) => own.entry(*key).or_default().push(*value),
                    Step::Read(key, values) => {
                        let own = own.get(key).map_or(&[][..], Vec::as_slice);
                        if !values.ends_with(own) {
                            let detail = format!("key {key} without {own:?}: {transaction}");
                            self.find(Anomaly::Internal, transaction.level, detail);
                        }
                        let others = values.len().saturating_sub(own.len());
                        seen.push(Seen {
                            reader,
                            key: *key,
                            values: &values[..others],
                        });
                    }
                }
            }
        }
        seen
    }

    fn counts(&self, at: usize) -> bool {
        let transaction = &self.transactions[at];
        match transaction.end {
            End::Committed => true,
            End::Aborted => false,
            End::Unknown => transaction
                .appends()
                .any(|(_, value)| self.places.contains_key(&value)),
        }
    }

    /// G1a and G1b. Also a transaction that was rolled back later must not have read such.
    fn dirty(&mut self, seen: &[Seen<'a>]) {
        for read in seen {
            let reader = &self.transactions[read.reader];
            for value in read.values {
                let Some((writer, _)) = self.writers.get(value) else {
                    let detail = format!("{value} of key {} is nobody's: {reader}", read.key);
                    self.find(Anomaly::Garbage, reader.level, detail);
                    continue;
                };
                let writer = &self.transactions[*writer];
                if writer.end == End::Aborted {
                    let key = read.key;
                    let detail = format!("{value} of key {key} in {reader}, written by {writer}");
                    self.find(Anomaly::AbortedRead, reader.level, detail);
                }
            }
            let Some((writer, _)) = read.values.last().and_then(|it| self.writers.get(it)) else {
                continue;
            };
            let writer = &self.transactions[*writer];
            let finally = writer.appends().filter(|(key, _)| *key == read.key).last();
            if finally.map(|(_, value)| value) != read.values.last().copied() {
                let detail = format!("key {} in {reader}, written by {writer}", read.key);
                self.find(Anomaly::IntermediateRead, reader.level, detail);
            }
        }
    }

    /// Two reads of one transaction, one with the other's appends and one without.
    fn fractured(&mut self, seen: &[Seen<'a>]) {
        for reads in seen.chunk_by(|one, other| one.reader == other.reader) {
            let reader = reads[0].reader;
            if !self.counts(reader) {
                continue;
            }
            let mut told = BTreeSet::new();
            for read in reads {
                let writers = read.values.iter().filter_map(|it| self.writers.get(it));
                let writers: BTreeSet<usize> = writers.map(|(writer, _)| *writer).collect();
                for writer in writers {
                    let Some((key, value)) = self.unseen(writer, read.key, reads) else {
                        continue;
                    };
                    if writer == reader || !told.insert(writer) {
                        continue;
                    }
                    let (level, seen) = (self.transactions[reader].level, read.key);
                    let detail = format!(
                        "saw key {seen} and not {value} of key {key} of one transaction: {} \
                         written by {}",
                        self.transactions[reader], self.transactions[writer]
                    );
                    self.find(Anomaly::FracturedRead, level, detail);
                }
            }
        }
    }

    /// An append of `writer`, to a key other than `besides`, that a read of that key lacks.
    fn unseen(&self, writer: usize, besides: Key, reads: &[Seen<'a>]) -> Option<(Key, Value)> {
        let others = self.transactions[writer]
            .appends()
            .filter(|(key, _)| *key != besides);
        others.into_iter().find(|(key, value)| {
            let of_key = reads.iter().filter(|read| read.key == *key);
            of_key.into_iter().any(|read| !read.values.contains(value))
        })
    }

    /// A transaction that read a version of a key and whose append is not the next.
    fn lost_updates(&mut self, seen: &[Seen<'a>]) {
        for read in seen {
            let reader = &self.transactions[read.reader];
            let first = reader.appends().find(|(key, _)| *key == read.key);
            let Some((_, value)) = first else { continue };
            let Some(place) = self.places.get(&value) else {
                continue;
            };
            if *place > read.values.len() {
                let between = &self.orders[&read.key][read.values.len()..*place];
                let detail = format!("{between:?} came between in key {}: {reader}", read.key);
                self.find(Anomaly::LostUpdate, reader.level, detail);
            }
        }
    }

    /// Reads that lack what was acknowledged before their transaction began.
    fn stale(&mut self, seen: &[Seen<'a>]) {
        for read in seen {
            let reader = &self.transactions[read.reader];
            let Some(order) = self.orders.get(&read.key) else {
                continue;
            };
            let lacking = order.iter().skip(read.values.len()).find(|value| {
                let writer = self
                    .writers
                    .get(value)
                    .map(|(at, _)| &self.transactions[*at]);
                writer.is_some_and(|it| it.end == End::Committed && it.span.1 < reader.span.0)
            });
            if let Some(value) = lacking {
                let detail = format!("{value} of key {} was acknowledged: {reader}", read.key);
                self.find(Anomaly::StaleRead, reader.level, detail);
            }
        }
    }

    fn circles(&mut self, seen: &[Seen<'a>]) {
        let graph = self.graph(seen);
        let writes = |edge: &Edge| edge.kind == Kind::Ww;
        let flows = |edge: &Edge| edge.kind != Kind::Rw;
        for circle in graph.circles(writes, writes) {
            self.find_circle(Anomaly::WriteCycle, circle);
        }
        for circle in graph.circles(|edge| edge.kind == Kind::Wr, flows) {
            self.find_circle(Anomaly::CircularFlow, circle);
        }
        // READ COMMITTED reads of two moments are no news.
        let all = self.transactions;
        let skews = |edge: &Edge| edge.kind == Kind::Rw && all[edge.from].level == Level::Snapshot;
        for circle in graph.circles(skews, flows) {
            self.find_circle(Anomaly::ReadSkew, circle);
        }
    }

    /// The level is that of the transaction which the circle's first edge leaves: with a read
    /// skew, it is the reader of two moments.
    fn find_circle(&mut self, anomaly: Anomaly, circle: Vec<Edge>) {
        let Some(first) = circle.first() else { return };
        let level = self.transactions[first.from].level;
        let edges = circle.iter().map(|edge| {
            let (from, to) = (&self.transactions[edge.from], &self.transactions[edge.to]);
            let (kind, key) = (edge.kind, edge.key);
            format!("T{} -{kind:?} on key {key}-> T{}", from.id, to.id)
        });
        let edges: Vec<_> = edges.collect();
        let members = circle.iter().map(|edge| &self.transactions[edge.from]);
        let members: Vec<_> = members.map(ToString::to_string).collect();
        let detail = format!("{}; where {}", edges.join(", "), members.join("; "));
        self.find(anomaly, level, detail);
    }

    fn graph(&self, seen: &[Seen<'a>]) -> Graph {
        let mut graph = Graph::new(self.transactions.len());
        let writer = |value: &Value| self.writers.get(value).map(|(at, _)| *at);
        for (key, order) in &self.orders {
            for pair in order.windows(2) {
                if let (Some(from), Some(to)) = (writer(&pair[0]), writer(&pair[1])) {
                    graph.add(from, to, Kind::Ww, *key);
                }
            }
        }
        for read in seen.iter().filter(|read| self.counts(read.reader)) {
            if let Some(from) = read.values.last().and_then(writer) {
                graph.add(from, read.reader, Kind::Wr, read.key);
            }
            let order = self.orders.get(&read.key).map_or(&[][..], Vec::as_slice);
            // The reader's own append after its read hides the next transaction's: that one
            // depends on the reader by `ww`.
            if let Some(to) = order.get(read.values.len()).and_then(writer) {
                graph.add(read.reader, to, Kind::Rw, read.key);
            }
        }
        graph
    }
}

/// What a transaction that did not fail read; of one that failed nothing is promised but that
/// it saw no dirt.
fn committed_reads(transaction: &Transaction) -> impl Iterator<Item = (Key, &Vec<Value>)> {
    let counts = transaction.end == End::Committed;
    let steps = transaction.steps.iter().filter(move |_| counts);
    steps.filter_map(|step| match step {
        Step::Read(key, values) => Some((*key, values)),
        Step::Append(..) => None,
    })
}

#[cfg(test)]
mod tests;

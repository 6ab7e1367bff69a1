//! Clients whose every step is written down.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
    time::Instant,
};

use anyhow::{Context, Result, anyhow, bail};
use automator67_tests::{
    history::{End, Key, Level, Step, Transaction, Value},
    pair::Pair,
    wait,
    wire::{Connection, Frame, Server, values as columns},
};
use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::{PATIENCE, Recording};

const CLIENTS: usize = 8;
/// How many lists one recording works on: few, so that clients meet.
pub(super) const KEYS: Key = 24;
/// After so many transactions a client logs in anew.
const TURNS: usize = 100;
/// The same for a client that is not at its own proxy.
const TURNS_ABROAD: usize = 10;

/// Which levels the clients have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Style {
    /// All the same.
    Level(Level),
    /// Each transaction its own.
    Mixed,
}

/// Threads that write down what they do.
pub(super) struct Recorder {
    shared: Arc<Shared>,
    threads: Vec<JoinHandle<Result<Vec<Transaction>>>>,
}

struct Shared {
    servers: [Server; 2],
    recording: Recording,
    stop: AtomicBool,
    next: AtomicU64,
    committed: [AtomicUsize; 2],
    /// One clock for all spans.
    start: Instant,
}

/// Why a transaction did not go on.
enum Broken {
    /// An ErrorResponse with this SQLSTATE.
    Refused(String),
    Lost,
    /// What no server may answer.
    Nonsense(anyhow::Error),
}

impl Recorder {
    /// The seed decides what the clients choose, not who comes first.
    pub(super) fn start(pair: &Pair, recording: Recording) -> Recorder {
        let shared = Arc::new(Shared {
            servers: [pair.a.server.clone(), pair.b.server.clone()],
            recording,
            stop: AtomicBool::new(false),
            next: AtomicU64::new(1),
            committed: Default::default(),
            start: Instant::now(),
        });
        let threads = (0..CLIENTS).map(|number| {
            let shared = shared.clone();
            std::thread::spawn(move || client(&shared, number))
        });
        Recorder {
            threads: threads.collect(),
            shared,
        }
    }

    /// Waits until each proxy has committed so many more, or a client gave up.
    pub(super) fn progress(&self, more: usize) -> Result<()> {
        for committed in &self.shared.committed {
            let goal = committed.load(Relaxed) + more;
            wait::until("transactions on both proxies", PATIENCE, || {
                let over = self.threads.iter().any(JoinHandle::is_finished);
                (committed.load(Relaxed) >= goal || over).then_some(())
            })?;
        }
        Ok(())
    }

    pub(super) fn finish(self) -> Result<Vec<Transaction>> {
        self.shared.stop.store(true, Relaxed);
        let mut history = Vec::new();
        for thread in self.threads {
            history.extend(thread.join().ok().context("a client panicked")??);
        }
        history.sort_by_key(|transaction| transaction.span);
        for (id, transaction) in history.iter_mut().enumerate() {
            transaction.id = id;
        }
        Ok(history)
    }
}

impl Shared {
    fn now(&self) -> u64 {
        u64::try_from(self.start.elapsed().as_nanos()).unwrap_or(u64::MAX)
    }

    fn connect(&self, number: usize) -> Result<Option<(usize, Connection)>> {
        let own = number % 2;
        let what = format!("a proxy that lets client {number} in");
        let connected = wait::until(&what, PATIENCE, || {
            if self.stop.load(Relaxed) {
                return Some(None);
            }
            let open = |at: usize| Some((at, Connection::open(&self.servers[at]).ok()?));
            open(own).or_else(|| open(1 - own)).map(Some)
        })?;
        let Some((at, mut connection)) = connected else {
            return Ok(None);
        };
        connection.set_read_limit(PATIENCE)?;
        Ok(Some((at, connection)))
    }
}

fn client(shared: &Shared, number: usize) -> Result<Vec<Transaction>> {
    let mut history = Vec::new();
    let client = u64::try_from(number)?;
    let mut random = StdRng::seed_from_u64(shared.recording.seed.wrapping_add(client));
    while let Some((at, mut connection)) = shared.connect(number)? {
        let turns = if at == number % 2 {
            TURNS
        } else {
            TURNS_ABROAD
        };
        for _ in 0..turns {
            if shared.stop.load(Relaxed) {
                return Ok(history);
            }
            let mut transaction = Transaction {
                id: 0,
                level: match shared.recording.style {
                    Style::Level(level) => level,
                    Style::Mixed => {
                        let levels = [Level::Strong, Level::Snapshot];
                        *levels.choose(&mut random).context("a level")?
                    }
                },
                end: End::Aborted,
                steps: Vec::new(),
                span: (shared.now(), 0),
            };
            let broken = run(shared, &mut connection, &mut random, &mut transaction);
            if transaction.span.1 == 0 {
                transaction.span.1 = shared.now();
            }
            if transaction.end == End::Committed {
                shared.committed[at].fetch_add(1, Relaxed);
            }
            history.push(transaction);
            match broken {
                Ok(()) => {}
                Err(Broken::Refused(_)) if connection.execute("rollback").is_ok() => {}
                Err(Broken::Refused(_) | Broken::Lost) => break,
                Err(Broken::Nonsense(error)) => return Err(error),
            }
        }
    }
    Ok(history)
}

fn run(
    shared: &Shared,
    connection: &mut Connection,
    random: &mut StdRng,
    transaction: &mut Transaction,
) -> Result<(), Broken> {
    let name = match transaction.level {
        Level::Strong => "strong",
        Level::Snapshot => "snapshot",
    };
    query(
        connection,
        &format!("set automator67.consistency = '{name}'"),
    )?;
    query(connection, "begin")?;
    // Half of all read several lists, in one statement or one by one.
    let only_reads = random.random_bool(0.5);
    let mut keys: Vec<Key> = (0..random.random_range(1..=4))
        .map(|_| shared.recording.first_key + random.random_range(0..KEYS))
        .collect();
    if random.random_bool(0.9) {
        // Mostly in order: circles of waiting take their time to be found.
        keys.sort_unstable();
    }
    if only_reads && random.random_bool(0.5) {
        keys.sort_unstable();
        keys.dedup();
        let list: Vec<_> = keys.iter().map(Key::to_string).collect();
        read(connection, transaction, &list.join(", "))?;
        keys.clear();
    }
    for key in keys {
        if only_reads || random.random_bool(0.3) {
            read(connection, transaction, &key.to_string())?;
        } else {
            let value = shared.next.fetch_add(1, Relaxed);
            let text = format!("update lists set v = v || {value}::bigint where k = {key}");
            // Noted before: an append whose answer is lost may be there when the end is unknown.
            transaction.steps.push(Step::Append(key, value));
            query(connection, &text)?;
        }
    }
    connection.notices.clear();
    match query(connection, "commit") {
        Ok(_) => {
            transaction.end = End::Committed;
            let late = |notice: &Frame| notice.field(b'C').as_deref() == Some("01000");
            if connection.notices.iter().any(late) {
                transaction.span.1 = u64::MAX;
            }
        }
        Err(Broken::Lost) => {
            transaction.end = End::Unknown;
            return Err(Broken::Lost);
        }
        Err(Broken::Refused(code)) => {
            if code == "08007" {
                transaction.end = End::Unknown;
            }
            return Err(Broken::Refused(code));
        }
        Err(other) => return Err(other),
    }
    Ok(())
}

/// Reads whole lists in one statement.
fn read(
    connection: &mut Connection,
    transaction: &mut Transaction,
    keys: &str,
) -> Result<(), Broken> {
    let text = format!("select k, v from lists where k in ({keys})");
    let rows = query(connection, &text)?;
    let wanted = keys.split(',').count();
    if rows.len() != wanted {
        let error = anyhow!("{text} answered {} rows: {rows:?}", rows.len());
        return Err(Broken::Nonsense(error));
    }
    for row in rows {
        let step = step(&row).map_err(Broken::Nonsense)?;
        transaction.steps.push(step);
    }
    Ok(())
}

fn step(row: &[String]) -> Result<Step> {
    let [key, list] = row else {
        bail!("{} columns", row.len());
    };
    Ok(Step::Read(key.parse()?, values(list)?))
}

/// The elements of an array of integers in text.
pub(super) fn values(text: &str) -> Result<Vec<Value>> {
    let inner = text.strip_prefix('{').and_then(|it| it.strip_suffix('}'));
    let inner = inner.with_context(|| format!("no array: {text}"))?;
    let values = inner.split(',').filter(|value| !value.is_empty());
    values.map(|value| Ok(value.parse()?)).collect()
}

fn query(connection: &mut Connection, text: &str) -> Result<Vec<Vec<String>>, Broken> {
    let frames = connection.simple(text).map_err(|_| Broken::Lost)?;
    let mut rows = Vec::new();
    for frame in &frames {
        match frame.tag {
            b'E' => return Err(Broken::Refused(frame.field(b'C').unwrap_or_default())),
            b'D' => {
                let row = columns(&frame.body).map_err(Broken::Nonsense)?;
                let row = row.into_iter().flatten();
                rows.push(
                    row.map(|it| String::from_utf8_lossy(&it).into_owned())
                        .collect(),
                );
            }
            _ => {}
        }
    }
    Ok(rows)
}

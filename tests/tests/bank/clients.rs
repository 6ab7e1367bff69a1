//! Clients that move money and clients that count it, through both proxies.

use std::{
    ops::ControlFlow,
    sync::{
        Arc, Mutex, MutexGuard,
        atomic::{AtomicBool, AtomicI64, AtomicUsize, Ordering::Relaxed},
    },
    thread::JoinHandle,
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    bank::{ACCOUNTS, Book, Outcome, TOTAL, Transfer},
    pair::Pair,
    wait,
    wire::{Connection, Server},
};
use rand::{Rng, SeedableRng, rngs::StdRng};

use super::{PATIENCE, Reasons, pay, refused};

const WRITERS: usize = 16;
/// After so many transactions a client logs in anew.
const TURNS: usize = 200;
/// The same for a client that is not at its own proxy.
const TURNS_ABROAD: usize = 10;

/// What a round waits for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Counter {
    /// Transfers that A acknowledged.
    A,
    /// Transfers that B acknowledged.
    B,
    /// Ends of any kind that clients of A saw.
    EndsOfA,
    /// Transfers that a deferred constraint refused at A.
    Vetoes,
}

/// What all clients share.
pub(super) struct Notes {
    seed: u64,
    servers: [Server; 2],
    stop: AtomicBool,
    next: AtomicI64,
    counters: [AtomicUsize; 4],
    sums: AtomicUsize,
    sums_of_each: AtomicUsize,
    reads_failed: Mutex<Reasons>,
    book: Mutex<Book>,
    last: AtomicI64,
    wrong: Mutex<Vec<String>>,
    fault: Mutex<String>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().expect("no thread panics with it")
}

impl Notes {
    pub(super) fn new(pair: &Pair, seed: u64) -> Notes {
        Notes {
            seed,
            servers: [pair.a.server.clone(), pair.b.server.clone()],
            stop: AtomicBool::new(false),
            next: AtomicI64::new(1000),
            counters: Default::default(),
            sums: AtomicUsize::new(0),
            sums_of_each: AtomicUsize::new(0),
            reads_failed: Mutex::default(),
            book: Mutex::default(),
            last: AtomicI64::new(0),
            wrong: Mutex::default(),
            fault: Mutex::default(),
        }
    }

    pub(super) fn book(&self) -> MutexGuard<'_, Book> {
        lock(&self.book)
    }

    /// Names the fault that is under way, for what goes wrong meanwhile.
    pub(super) fn tell(&self, fault: String) {
        *lock(&self.fault) = fault;
    }

    pub(super) fn count(&self, counter: Counter) -> usize {
        self.counters[counter as usize].load(Relaxed)
    }

    fn add(&self, counter: Counter) {
        self.counters[counter as usize].fetch_add(1, Relaxed);
    }

    /// Waits until each counter has grown by `more`; an error if something went wrong so far.
    pub(super) fn progress(&self, counters: &[Counter], more: usize) -> Result<()> {
        for counter in counters {
            let goal = self.count(*counter) + more;
            let what = format!("{counter:?} to grow by {more}");
            wait::until(&what, PATIENCE, || {
                (self.count(*counter) >= goal || !lock(&self.wrong).is_empty()).then_some(())
            })?;
        }
        self.nothing_wrong()
    }

    /// An error with all that clients saw and must not have seen.
    pub(super) fn nothing_wrong(&self) -> Result<()> {
        let wrong = lock(&self.wrong);
        let first = wrong.iter().take(10).cloned().collect::<Vec<_>>();
        ensure!(
            wrong.is_empty(),
            "{} things went wrong:\n{}",
            wrong.len(),
            first.join("\n")
        );
        Ok(())
    }

    pub(super) fn must_have_read(&self) -> Result<()> {
        let (one, other) = (self.sums.load(Relaxed), self.sums_of_each.load(Relaxed));
        ensure!(one > 0 && other > 0, "{one} sums, {other} one by one");
        Ok(())
    }

    pub(super) fn an_acknowledged(&self) -> Option<i64> {
        Some(self.last.load(Relaxed)).filter(|id| *id > 0)
    }

    pub(super) fn summary(&self) -> String {
        let book = self.book();
        format!(
            "{:?}; {} sums and {} one by one; A {}, B {}, vetoes {}; {:#?}; reads that failed {:#?}",
            book.counts(),
            self.sums.load(Relaxed),
            self.sums_of_each.load(Relaxed),
            self.count(Counter::A),
            self.count(Counter::B),
            self.count(Counter::Vetoes),
            book.reasons(),
            lock(&self.reads_failed),
        )
    }

    fn wrong(&self, what: String) {
        let fault = lock(&self.fault).clone();
        lock(&self.wrong).push(format!("{what} (during {fault})"));
    }

    /// A session at the client's own proxy, else at the other; `None` when it is time to stop.
    fn connect(&self, number: usize) -> Option<(usize, Connection)> {
        let own = number % 2;
        let connected = wait::until("a proxy that lets a client in", PATIENCE, || {
            if self.stop.load(Relaxed) {
                return Some(None);
            }
            let open = |at: usize| Some((at, Connection::open(&self.servers[at]).ok()?));
            open(own).or_else(|| open(1 - own)).map(Some)
        });
        match connected {
            Ok(connected) => {
                let (at, mut connection) = connected?;
                connection.set_read_limit(PATIENCE).ok()?;
                Some((at, connection))
            }
            Err(error) => {
                self.wrong(format!("client {number}: {error:#}"));
                None
            }
        }
    }

    fn note(&self, at: usize, transfer: Transfer, outcome: Outcome) {
        if outcome == Outcome::Acknowledged {
            self.add(if at == 0 { Counter::A } else { Counter::B });
            self.last.store(transfer.id, Relaxed);
        }
        if at == 0 {
            self.add(Counter::EndsOfA);
        }
        self.book().note(transfer, outcome);
    }

    /// What a client chooses by.
    fn random(&self, client: usize) -> StdRng {
        StdRng::seed_from_u64(self.seed ^ (client as u64) << 32)
    }

    fn new_transfer(&self, random: &mut StdRng) -> Transfer {
        let from = random.random_range(1..=ACCOUNTS);
        let to = (from + random.random_range(0..ACCOUNTS - 1)) % ACCOUNTS + 1;
        Transfer {
            id: self.next.fetch_add(1, Relaxed),
            from,
            to,
            // A sum that is off by one transfer tells which.
            amount: random.random_range(1..=1_000_000_000),
        }
    }
}

/// The threads of all clients.
pub(super) struct Clients {
    notes: Arc<Notes>,
    threads: Vec<JoinHandle<()>>,
}

impl Clients {
    pub(super) fn start(notes: &Arc<Notes>) -> Clients {
        notes.stop.store(false, Relaxed);
        let mut threads = Vec::new();
        let mut start = |body: fn(&Notes, usize), count| {
            for number in 0..count {
                let notes = notes.clone();
                threads.push(std::thread::spawn(move || body(&notes, number)));
            }
        };
        start(writer, WRITERS);
        start(vetoed_writer, 1);
        start(reader, 2);
        start(reader_of_each, 2);
        Clients {
            notes: notes.clone(),
            threads,
        }
    }

    pub(super) fn finish(self) -> Result<()> {
        self.notes.stop.store(true, Relaxed);
        for thread in self.threads {
            thread.join().ok().context("a client panicked")?;
        }
        self.notes.nothing_wrong()
    }
}

fn writer(notes: &Notes, number: usize) {
    let mut random = notes.random(number);
    while let Some((at, mut connection)) = notes.connect(number) {
        let turns = if at == number % 2 {
            TURNS
        } else {
            TURNS_ABROAD
        };
        for _ in 0..turns {
            let transfer = notes.new_transfer(&mut random);
            let outcome = move_money(&mut connection, &transfer, &[]);
            let good = outcome == Outcome::Acknowledged;
            notes.note(at, transfer, outcome);
            if notes.stop.load(Relaxed) || !(good || goes_on(&mut connection)) {
                break;
            }
        }
    }
}

/// True when a session works after a transfer failed in it.
fn goes_on(connection: &mut Connection) -> bool {
    connection.execute("rollback").is_ok()
}

/// Transfers that one shard refuses to prepare: the others have to roll back.
fn vetoed_writer(notes: &Notes, number: usize) {
    let mut random = notes.random(WRITERS + number);
    while let Some((at, mut connection)) = notes.connect(number) {
        let turns = if at == number % 2 {
            TURNS
        } else {
            TURNS_ABROAD
        };
        for _ in 0..turns {
            let transfer = notes.new_transfer(&mut random);
            let id = transfer.id;
            let veto = format!("insert into vetoes values ({id}), ({id})");
            let outcome = move_money(&mut connection, &transfer, &[&veto]);
            match &outcome {
                Outcome::Acknowledged => {
                    notes.wrong(format!("nobody refused {transfer:?}: {veto}"));
                }
                Outcome::Failed(why) if at == 0 && why.starts_with("23505") => {
                    notes.add(Counter::Vetoes);
                }
                Outcome::Failed(_) | Outcome::Unknown(_) => {}
            }
            notes.note(at, transfer, outcome);
            if notes.stop.load(Relaxed) || !goes_on(&mut connection) {
                break;
            }
        }
    }
}

/// One transfer, with further statements before its end.
fn move_money(connection: &mut Connection, transfer: &Transfer, further: &[&str]) -> Outcome {
    let Transfer {
        id,
        from,
        to,
        amount,
    } = *transfer;
    let (take, give) = (pay(from, -amount), pay(to, amount));
    let row = format!("insert into transfers values ({id}, {from}, {to}, {amount})");
    let mut steps = vec!["begin", take.as_str(), give.as_str(), row.as_str()];
    steps.extend(further);
    for step in steps {
        if let ControlFlow::Break(why) = statement(connection, step) {
            // COMMIT was not sent: whatever happened, it cannot have committed.
            return Outcome::Failed(why.unwrap_or_else(|lost| lost));
        }
    }
    match statement(connection, "commit") {
        ControlFlow::Continue(()) => Outcome::Acknowledged,
        ControlFlow::Break(Ok(why)) if why.starts_with("08007") => Outcome::Unknown(why),
        ControlFlow::Break(Ok(why)) => Outcome::Failed(why),
        ControlFlow::Break(Err(lost)) => Outcome::Unknown(lost),
    }
}

/// Goes on when the statement succeeded; else what refused it, or how the connection was lost.
fn statement(
    connection: &mut Connection,
    text: &str,
) -> ControlFlow<std::result::Result<String, String>> {
    let word = text.split_whitespace().next().unwrap_or_default();
    match refused(connection, text) {
        Ok(None) => ControlFlow::Continue(()),
        Ok(Some((code, message))) => {
            let message = no_numbers(&message);
            ControlFlow::Break(Ok(format!("{code} {message} at {word}")))
        }
        Err(error) => {
            let error = no_numbers(&format!("{error:#}"));
            ControlFlow::Break(Err(format!("connection lost at {word}: {error}")))
        }
    }
}

/// Reasons are counted: ids and names in them would make each its own.
fn no_numbers(text: &str) -> String {
    let words = text.split(' ');
    let words = words.map(|word| {
        let digits = word.bytes().filter(u8::is_ascii_digit).count();
        if digits > 2 { "N" } else { word }
    });
    words.collect::<Vec<_>>().join(" ")
}

/// All balances in one statement.
pub(super) fn sum(connection: &mut Connection) -> Result<i64> {
    let rows = connection.rows("select count(*), sum(balance) from accounts")?;
    let row = rows.into_iter().next().context("no row")?;
    let numbers: Vec<i64> = row
        .into_iter()
        .map(|it| Ok(it.context("null")?.parse()?))
        .collect::<Result<_>>()?;
    ensure!(numbers.len() == 2, "{numbers:?}");
    ensure!(numbers[0] == ACCOUNTS, "{} accounts", numbers[0]);
    Ok(numbers[1])
}

/// All balances, each in a statement of its own, in one transaction.
pub(super) fn sum_of_each(connection: &mut Connection) -> Result<i64> {
    let mut sum = 0;
    connection.execute("begin isolation level repeatable read")?;
    for id in 1..=ACCOUNTS {
        let text = format!("select balance from accounts where id = {id}");
        let balance = connection.execute(&text)?;
        sum += balance.context("an account is gone")?.parse::<i64>()?;
    }
    connection.execute("commit")?;
    Ok(sum)
}

fn reader(notes: &Notes, number: usize) {
    read(notes, number, "one statement", &notes.sums, sum);
}

fn reader_of_each(notes: &Notes, number: usize) {
    let counter = &notes.sums_of_each;
    read(notes, number, "one transaction", counter, sum_of_each);
}

fn read(
    notes: &Notes,
    number: usize,
    how: &str,
    counter: &AtomicUsize,
    sum: fn(&mut Connection) -> Result<i64>,
) {
    let level = "set automator67.consistency = 'snapshot'";
    while let Some((at, mut connection)) = notes.connect(number) {
        let proxy = if at == 0 { "A" } else { "B" };
        let mut body = || -> Result<()> {
            connection.execute(level)?;
            for _ in 0..TURNS {
                if notes.stop.load(Relaxed) {
                    return Ok(());
                }
                let sum = sum(&mut connection)?;
                counter.fetch_add(1, Relaxed);
                if sum != TOTAL {
                    let off = sum - TOTAL;
                    let suspects = notes.book().of_amount(off.abs());
                    notes.wrong(format!(
                        "a torn sum in {how} on {proxy}: {sum} instead of {TOTAL}, off by {off}; \
                         transfers of that amount: {suspects:?}"
                    ));
                }
            }
            Ok(())
        };
        if let Err(error) = body() {
            let reason = no_numbers(&format!("{error:#}"));
            *lock(&notes.reads_failed).entry(reason).or_default() += 1;
        }
    }
}

use rand::{Rng, SeedableRng, rngs::StdRng, seq::IndexedRandom};

use super::*;

/// One transaction in a line: `snapshot ok a1:10 r2:20,21`, with `ok`, `no` or `?` as its end.
/// Those in one text follow each other in time.
fn parse(text: &str) -> Vec<Transaction> {
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty());
    lines.enumerate().map(|(id, line)| one(id, line)).collect()
}

fn one(id: usize, line: &str) -> Transaction {
    let mut words = line.split_whitespace();
    let level = match words.next() {
        Some("strong") => Level::Strong,
        Some("snapshot") => Level::Snapshot,
        other => panic!("a level: {other:?}"),
    };
    let end = match words.next() {
        Some("ok") => End::Committed,
        Some("no") => End::Aborted,
        Some("?") => End::Unknown,
        other => panic!("an end: {other:?}"),
    };
    let steps = words.map(|word| {
        let (step, rest) = word.split_at(1);
        let (key, values) = rest.split_once(':').expect("a colon");
        let key = key.parse().expect("a key");
        match step {
            "a" => Step::Append(key, values.parse().expect("a value")),
            _ => Step::Read(key, list(values)),
        }
    });
    Transaction {
        id,
        level,
        end,
        steps: steps.collect(),
        // All at once, unless a test says otherwise.
        span: (0, 1),
    }
}

fn list(text: &str) -> Vec<Value> {
    let values = text.split(',').filter(|value| !value.is_empty());
    values
        .map(|value| value.parse().expect("a value"))
        .collect()
}

fn lists(text: &str) -> BTreeMap<Key, Vec<Value>> {
    let words = text.split_whitespace();
    words
        .map(|word| {
            let (key, values) = word.split_once(':').expect("a colon");
            (key.parse().expect("a key"), list(values))
        })
        .collect()
}

fn kinds(findings: &[Finding]) -> BTreeSet<Anomaly> {
    findings.iter().map(|finding| finding.anomaly).collect()
}

/// The history has these anomalies and no others.
#[track_caller]
fn finds(text: &str, last: &str, expected: &[Anomaly]) {
    let findings = check(&parse(text), &lists(last));
    let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
    let expected: BTreeSet<_> = expected.iter().copied().collect();
    assert_eq!(kinds(&findings), expected, "{told:#?}");
}

#[test]
fn clean_histories_are_silent() {
    finds("", "", &[]);
    finds("strong ok r1:", "", &[]);
    finds("strong ok a1:10 a1:11", "1:10,11", &[]);
    let text = "snapshot ok a1:10 a2:20 r1:10
                snapshot ok r1:10 r2:20 a2:21 r2:20,21
                snapshot no a1:12 r1:10,12
                snapshot ? a1:13 a2:23
                snapshot ? a1:14 a2:24
                snapshot ok r1:10,14 r2:20,21,24";
    finds(text, "1:10,14 2:20,21,24", &[]);
}

#[test]
fn garbage_is_found() {
    finds("strong ok a1:10", "1:10,99", &[Anomaly::Garbage]);
    finds(
        "strong ok a1:10\n strong ok r1:10",
        "1:10,10",
        &[Anomaly::Garbage],
    );
    // On the wrong key.
    let wrong = [Anomaly::Garbage];
    finds("strong ok a1:10", "2:10", &wrong);
    finds("strong ok a1:10 a1:10", "1:10", &wrong);
    finds("strong no r1:5", "", &wrong);
}

#[test]
fn reads_without_an_order_are_found() {
    let text = "strong ok a1:10
                strong ok a1:11
                strong ok r1:10,11
                strong ok r1:11";
    finds(text, "1:10,11", &[Anomaly::Diverged]);
    // The end itself is shorter than what was read: the append is lost as well.
    let lost = [Anomaly::LostAppend, Anomaly::Diverged];
    finds(
        "strong ok a1:10\nstrong ok a1:11\nstrong ok r1:10,11\nstrong ok r1:11",
        "1:10",
        &lost,
    );
}

#[test]
fn own_appends_are_read() {
    finds("strong ok a1:10 r1:", "1:10", &[Anomaly::Internal]);
    finds("strong no a1:10 r1:", "1:", &[Anomaly::Internal]);
    finds("strong no a1:10 a1:11 r1:10,11", "1:", &[]);
}

#[test]
fn lost_and_torn_appends_are_found() {
    finds("strong ok a1:10", "1:", &[Anomaly::LostAppend]);
    finds("strong ok a1:10 a2:20", "1:10", &[Anomaly::LostAppend]);
    finds("strong ? a1:10 a2:20", "1:10", &[Anomaly::TornWrite]);
    finds("strong ? a1:10 a2:20", "", &[]);
    finds("strong ? a1:10 a2:20", "1:10 2:20", &[]);
    finds("strong no a1:10", "1:10", &[Anomaly::AbortedRead]);
}

#[test]
fn g0_a_circle_of_writes() {
    let text = "strong ok a1:10 a2:20
                strong ok a1:11 a2:21";
    finds(text, "1:10,11 2:20,21", &[]);
    finds(text, "1:10,11 2:21,20", &[Anomaly::WriteCycle]);
    let three = "strong ok a1:10 a3:30
                 strong ok a1:11 a2:21
                 strong ok a2:22 a3:32";
    finds(three, "1:10,11 2:21,22 3:30,32", &[]);
    finds(three, "1:10,11 2:21,22 3:32,30", &[Anomaly::WriteCycle]);
}

#[test]
fn g1a_an_aborted_read() {
    let found = [Anomaly::AbortedRead];
    finds("strong no a1:10\nstrong no r1:10", "", &found);
    finds("strong no a1:10\nstrong no r1:", "", &[]);
    // Also in the middle of what was read.
    let text = "strong no a1:10
                strong ok a1:11
                strong no r1:10,11";
    finds(text, "1:11", &found);
}

#[test]
fn g1b_an_intermediate_read() {
    let text = "strong ok a1:10 a1:11
                strong ok r1:10";
    finds(
        text,
        "1:10,11",
        // The writer also comes after its reader: a flow backwards is no circle of flows.
        &[Anomaly::IntermediateRead],
    );
    finds("strong ok a1:10 a1:11\nstrong ok r1:10,11", "1:10,11", &[]);
    // Its own intermediate appends everybody may read.
    finds("strong ok a1:10 r1:10 a1:11", "1:10,11", &[]);
}

#[test]
fn g1c_information_in_a_circle() {
    let found = [Anomaly::CircularFlow];
    // Each read what the other wrote.
    let text = "strong ok a1:10 r2:20
                strong ok a2:20 r1:10";
    finds(text, "1:10 2:20", &found);
    // One read the other's write, which follows its own.
    let text = "strong ok a1:10 r2:20
                strong ok a1:11 a2:20";
    finds(text, "1:10,11 2:20", &found);
    let text = "strong ok a1:10
                strong ok a1:11 a2:20
                strong ok r2:20 r1:10,11";
    finds(text, "1:10,11 2:20", &[]);
}

#[test]
fn fractured_reads() {
    let write = "snapshot ok a1:10 a2:20\n";
    let skew = [Anomaly::FracturedRead, Anomaly::ReadSkew];
    finds(
        &format!("{write} snapshot ok r1:10 r2:"),
        "1:10 2:20",
        &skew,
    );
    finds(
        &format!("{write} snapshot ok r2: r1:10"),
        "1:10 2:20",
        &skew,
    );
    finds(&format!("{write} snapshot ok r1: r2:"), "1:10 2:20", &[]);
    finds(
        &format!("{write} snapshot ok r1:10 r2:20"),
        "1:10 2:20",
        &[],
    );
    // One of them behind another's append.
    let later = "snapshot ok a1:10 a2:20
                 snapshot ok a1:11
                 snapshot ok r1:10,11 r2:";
    finds(later, "1:10,11 2:20", &skew);
    // A level that does not promise it: found, and no broken promise.
    let text = format!("{write} strong ok r1:10 r2:");
    finds(&text, "1:10 2:20", &[Anomaly::FracturedRead]);
    let findings = check(&parse(&text), &lists("1:10 2:20"));
    assert!(findings.iter().all(|finding| !finding.is_broken_promise()));
    // What a rolled back reader saw counts for nothing here.
    finds(&format!("{write} snapshot no r1:10 r2:"), "1:10 2:20", &[]);
}

#[test]
fn lost_updates() {
    let text = "snapshot ok r1: a1:10
                snapshot ok r1: a1:11";
    finds(text, "1:10,11", &[Anomaly::LostUpdate, Anomaly::ReadSkew]);
    finds(
        "snapshot ok r1: a1:10\nsnapshot ok r1:10 a1:11",
        "1:10,11",
        &[],
    );
    // Appends that read nothing are no lost updates.
    finds("snapshot ok a1:10\nsnapshot ok a1:11", "1:10,11", &[]);
    let strong = "strong ok r1: a1:10
                  strong ok r1: a1:11";
    finds(strong, "1:10,11", &[Anomaly::LostUpdate]);
    let findings = check(&parse(strong), &lists("1:10,11"));
    assert!(findings.iter().all(|finding| !finding.is_broken_promise()));
}

#[test]
fn g_single_reads_of_two_moments() {
    let skew = [Anomaly::ReadSkew];
    // The same key twice.
    let text = "snapshot ok a1:10
                snapshot ok r1: r1:10";
    finds(text, "1:10", &skew);
    // Over a transaction that only one of the keys shows.
    let text = "snapshot ok a1:10
                snapshot ok r1:10 a2:20
                snapshot ok r2:20 r1:";
    finds(text, "1:10 2:20", &skew);
    // Two such edges are a write skew, which snapshots do not promise away.
    let text = "snapshot ok r1: a2:20
                snapshot ok r2: a1:10";
    finds(text, "1:10 2:20", &[]);
    // The level that counts is that of the reader.
    let text = "strong ok a1:10
                strong ok r1:10 a2:20
                snapshot ok r2:20 r1:";
    finds(text, "1:10 2:20", &skew);
    let text = "snapshot ok a1:10
                snapshot ok r1:10 a2:20
                strong ok r2:20 r1:";
    finds(text, "1:10 2:20", &[]);
}

#[test]
fn stale_reads() {
    let mut history = parse("strong ok a1:10\nstrong ok r1:");
    assert!(check(&history, &lists("1:10")).is_empty());
    history[1].span = (2, 3);
    let findings = check(&history, &lists("1:10"));
    assert_eq!(kinds(&findings), [Anomaly::StaleRead].into());
    // Nobody was told of it.
    history[0].end = End::Unknown;
    assert!(check(&history, &lists("1:10")).is_empty());
}

#[test]
fn a_finding_tells_where_to_look() {
    let text = "snapshot ok a1:10 a2:20
                snapshot ok r1:10 r2:";
    let findings = check(&parse(text), &lists("1:10 2:20"));
    let told: Vec<_> = findings.iter().map(ToString::to_string).collect();
    let fractured = "FracturedRead at Snapshot: saw key 1 and not 20 of key 2 of one transaction: \
                     T1 Snapshot Committed r1:[10] r2:[] \
                     written by T0 Snapshot Committed a1:10 a2:20";
    assert_eq!(told[0], fractured);
    assert!(
        told[1].contains("T1 -Rw on key 2-> T0, T0 -Wr on key 1-> T1"),
        "{}",
        told[1]
    );
}

/// How the simulated store is broken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Flaw {
    None,
    /// Reads see what is not committed.
    Dirty,
    /// A commit becomes visible on odd keys a moment later.
    Torn,
    /// A snapshot's write does not look whether somebody else wrote since.
    Blind,
    /// A rollback leaves its appends to odd keys.
    Undead,
    /// A commit forgets its appends to odd keys.
    Forgetful,
}

/// A store in memory: versions with commit times, rows locked by their writers.
struct Store {
    random: StdRng,
    flaw: Flaw,
    /// Value, writer and, once committed, when it became visible.
    lists: BTreeMap<Key, Vec<(Value, usize, Option<u64>)>>,
    now: u64,
}

struct Client {
    transaction: Transaction,
    began: u64,
    left: usize,
}

impl Store {
    fn visible(&self, key: Key, reader: usize, at: u64) -> Vec<Value> {
        let list = self.lists.get(&key).map_or(&[][..], Vec::as_slice);
        let seen = list.iter().filter(|(_, writer, committed)| {
            *writer == reader
                || self.flaw == Flaw::Dirty
                || committed.is_some_and(|committed| committed <= at)
        });
        seen.map(|(value, ..)| *value).collect()
    }

    /// One step; `true` when the transaction has to be rolled back.
    fn step(&mut self, client: &mut Client, value: Value) -> bool {
        let key = self.random.random_range(1..=4);
        let id = client.transaction.id;
        let snapshot = client.transaction.level == Level::Snapshot;
        if self.random.random_bool(0.5) {
            let at = if snapshot { client.began } else { self.now };
            let values = self.visible(key, id, at);
            client.transaction.steps.push(Step::Read(key, values));
            return false;
        }
        let list = self.lists.entry(key).or_default();
        let locked = list.iter().any(|(_, writer, committed)| {
            *writer != id && committed.is_none_or(|it| it > self.now)
        });
        let changed = list.iter().any(|(_, writer, committed)| {
            *writer != id && committed.is_some_and(|committed| committed > client.began)
        });
        if locked || (snapshot && changed && self.flaw != Flaw::Blind) {
            return true;
        }
        list.push((value, id, None));
        client.transaction.steps.push(Step::Append(key, value));
        false
    }

    fn commit(&mut self, id: usize) {
        self.now += 1;
        let now = self.now;
        for (key, list) in &mut self.lists {
            if self.flaw == Flaw::Forgetful && key % 2 == 1 {
                list.retain(|(_, writer, committed)| *writer != id || committed.is_some());
            }
            let late = u64::from(self.flaw == Flaw::Torn && key % 2 == 1) * 5;
            for (_, writer, committed) in list.iter_mut() {
                if *writer == id {
                    *committed = Some(now + late);
                }
            }
        }
    }

    fn roll_back(&mut self, id: usize) {
        self.now += 1;
        let now = self.now;
        for (key, list) in &mut self.lists {
            if self.flaw == Flaw::Undead && key % 2 == 1 {
                for (_, writer, committed) in list.iter_mut() {
                    if *writer == id {
                        *committed = Some(now);
                    }
                }
            }
            list.retain(|(_, writer, committed)| *writer != id || committed.is_some());
        }
    }
}

/// A history of random transactions in random order on a store with a flaw.
fn simulate(seed: u64, flaw: Flaw, levels: &[Level]) -> Vec<Finding> {
    let mut store = Store {
        random: StdRng::seed_from_u64(seed),
        flaw,
        lists: BTreeMap::new(),
        now: 1,
    };
    let mut history = Vec::new();
    let mut clients: Vec<Client> = Vec::new();
    let mut value = 0;
    for id in 0.. {
        while clients.len() < 4 && id + clients.len() < 400 {
            let random = &mut store.random;
            let level = *levels.choose(random).expect("a level");
            let known = random.random_bool(0.9);
            let end = if known { End::Committed } else { End::Unknown };
            clients.push(Client {
                transaction: Transaction {
                    id: history.len() + clients.len() + 1000 * id,
                    level,
                    end,
                    steps: Vec::new(),
                    span: (store.now, 0),
                },
                began: store.now,
                left: random.random_range(1..=5),
            });
        }
        if clients.is_empty() {
            break;
        }
        let at = store.random.random_range(0..clients.len());
        let client = &mut clients[at];
        value += 1;
        let conflict = client.left > 0 && store.step(client, value);
        let over = client.left == 0;
        client.left = client.left.saturating_sub(1);
        if conflict || over {
            let mut done = clients.swap_remove(at).transaction;
            if conflict || store.random.random_bool(0.1) {
                done.end = End::Aborted;
                store.roll_back(done.id);
            } else {
                store.commit(done.id);
            }
            done.span.1 = store.now;
            history.push(done);
        }
    }
    let lists = store.lists.iter();
    let last = lists.map(|(key, _)| (*key, store.visible(*key, usize::MAX, u64::MAX)));
    check(&history, &last.collect())
}

#[test]
fn a_correct_store_keeps_its_promises() {
    for seed in 0..300 {
        let levels = [Level::Strong, Level::Snapshot];
        let (one, other) = (&levels[..1], &levels[1..]);
        let levels = [one, other, &levels][usize::try_from(seed).expect("small") % 3];
        let findings = simulate(seed, Flaw::None, levels);
        let broken: Vec<_> = findings
            .iter()
            .filter(|it| it.is_broken_promise())
            .collect();
        let told: Vec<_> = broken.iter().map(ToString::to_string).collect();
        assert!(told.is_empty(), "seed {seed}: {told:#?}");
        let stale = kinds(&findings).contains(&Anomaly::StaleRead);
        assert!(!stale, "seed {seed}: {findings:#?}");
    }
}

#[test]
fn a_broken_store_is_caught() {
    let (strong, snapshot) = ([Level::Strong], [Level::Snapshot]);
    for (flaw, levels, expected) in [
        (Flaw::Dirty, strong, Anomaly::AbortedRead),
        (Flaw::Dirty, strong, Anomaly::IntermediateRead),
        (Flaw::Dirty, strong, Anomaly::CircularFlow),
        (Flaw::Torn, snapshot, Anomaly::FracturedRead),
        (Flaw::Torn, snapshot, Anomaly::ReadSkew),
        (Flaw::Blind, snapshot, Anomaly::LostUpdate),
        (Flaw::Undead, strong, Anomaly::AbortedRead),
        (Flaw::Forgetful, strong, Anomaly::LostAppend),
        (Flaw::Forgetful, strong, Anomaly::TornWrite),
    ] {
        let caught = (0..20).filter(|seed| {
            let findings = simulate(*seed, flaw, &levels);
            let broken = findings.iter().filter(|it| it.is_broken_promise());
            broken.into_iter().any(|it| it.anomaly == expected)
        });
        let caught = caught.count();
        assert!(caught >= 10, "{flaw:?}: {expected:?} in {caught} of 20");
    }
}

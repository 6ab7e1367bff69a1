//! Every statement of `tests/sql` on plain Postgres, on one shard and on three: same answers.

use std::{fmt::Write, path::Path};

use anyhow::Result;
use automator67_tests::{
    answer::{self, Event},
    automator::Dev,
    cases::{self, Case, CaseFile, Kind},
    play::{self, Mode, Played, Role, play},
    postgres::Plain,
    tpch,
    wire::{Connection, Server},
};

/// What the proxy with one shard is called in reports.
const ALONE: &str = "1 shard";
const MODES: [Mode; 3] = [Mode::Simple, Mode::Text, Mode::Binary];

/// Plain Postgres and the two proxies.
struct Peers {
    plain: Plain,
    one: Dev,
    three: Dev,
}

impl Peers {
    fn start() -> Result<Peers> {
        std::thread::scope(|scope| {
            let plain = scope.spawn(Plain::start);
            let one = scope.spawn(|| Dev::start(1));
            let three = Dev::start(3)?;
            Ok(Peers {
                plain: plain.join().expect("no panic")?,
                one: one.join().expect("no panic")?,
                three,
            })
        })
    }

    /// The proxies with the names that reports use.
    fn proxies(&self) -> [(&'static str, &Server); 2] {
        [
            (ALONE, self.one.server()),
            ("3 shards", self.three.server()),
        ]
    }
}

#[test]
fn every_case_answers_like_postgres() {
    let directory = Path::new("sql");
    let files = cases::read_all(directory).expect("case files are valid");
    let peers = Peers::start().expect("servers start");
    let mut report = String::new();
    let mut statements = 0;
    let icu = has_icu(&peers).expect("plain Postgres answers");
    for file in files.iter().filter(|file| icu || file.name != "icu.slt") {
        statements += count(file);
        for mode in MODES {
            compare_file(&peers, file, mode, &mut report).expect("servers answer");
        }
    }
    assert!(
        report.is_empty(),
        "{} differences in {statements} statements:\n{report}",
        report.matches("\n==").count()
    );
    let filtered = std::env::var_os("AUTOMATOR67_CASES").is_some();
    assert!(
        statements >= if filtered { 1 } else { 400 },
        "only {statements} statements"
    );
}

/// False for builds of Postgres without it.
fn has_icu(peers: &Peers) -> Result<bool> {
    let mut connection = Connection::open(&peers.plain.server)?;
    let known = "select exists (select from pg_collation where collname = 'en-x-icu')";
    Ok(connection.execute(known)?.as_deref() == Some("t"))
}

/// Statements whose answers are compared.
fn count(file: &CaseFile) -> usize {
    let same = file.cases.iter().filter(|case| case.kind == Kind::Same);
    same.count()
}

fn compare_file(peers: &Peers, file: &CaseFile, mode: Mode, report: &mut String) -> Result<()> {
    let proxies = peers.proxies();
    let (expected, found) = std::thread::scope(|scope| {
        let running = proxies.map(|(name, server)| {
            (
                name,
                scope.spawn(move || play(server, Role::Proxy, file, mode)),
            )
        });
        let expected = play(&peers.plain.server, Role::Plain, file, mode);
        let found = running.map(|(name, thread)| (name, thread.join().expect("no panic")));
        (expected, found)
    });
    let expected = expected?;
    for (name, found) in found {
        let found = found?;
        for ((case, expected), found) in file.cases.iter().zip(&expected).zip(&found) {
            if let Some(text) = judge(case, expected, found, name == ALONE) {
                write!(
                    report,
                    "\n== {}:{} on {name}, {mode:?}\n{}\n{text}",
                    file.name, case.line, case.text
                )?;
            }
        }
    }
    Ok(())
}

/// What is wrong with the proxy's answer `found`; `None` when it is right. `alone`: one shard has
/// everything, so it may answer what several refuse.
fn judge(case: &Case, expected: &Played, found: &Played, alone: bool) -> Option<String> {
    if let (Kind::Plain, Played::Answered(plain)) = (&case.kind, expected) {
        return failure(plain);
    }
    let found = match found {
        Played::Skipped => return None,
        Played::Lost(why) => return Some(format!("  lost: {why}\n")),
        Played::Answered(events) => events,
    };
    match (&case.kind, expected) {
        (Kind::Setup, Played::Answered(plain)) => failure(plain).or_else(|| failure(found)),
        (Kind::Proxy, _) => failure(found),
        (Kind::Refused(sqlstate), _) => match answer::failure(found) {
            Some(failure) if failure.sqlstate != *sqlstate => Some(not_refused(found)),
            Some(failure) if failure.hint.is_none() => Some(format!(
                "  refused without a hint:{}\n",
                answer::summary(found)
            )),
            None if !alone => Some(not_refused(found)),
            _ => None,
        },
        (Kind::Fails(sqlstate), _) => match answer::failure(found) {
            Some(failure) if failure.sqlstate == *sqlstate => None,
            _ => Some(format!("  not {sqlstate}:{}\n", answer::summary(found))),
        },
        (_, Played::Answered(plain)) => answer::difference(plain, found, case.ordered),
        (_, other) => Some(format!("  Postgres itself: {other:?}\n")),
    }
}

fn not_refused(found: &[Event]) -> String {
    format!("  not refused:{}\n", answer::summary(found))
}

fn failure(events: &[Event]) -> Option<String> {
    answer::failure(events).map(|_| format!("  failed:{}\n", answer::summary(events)))
}

#[test]
fn tpch_answers_like_postgres() {
    let peers = Peers::start().expect("servers start");
    let mut plain = Connection::open(&peers.plain.server).expect("login");
    tpch::load(&mut plain, false).expect("TPC-H loads into plain Postgres");
    let file = tpch_file().expect("the 22 queries");
    let mut report = String::new();
    for (name, server) in peers.proxies() {
        let mut connection = Connection::open(server).expect("login");
        tpch::load(&mut connection, true)
            .unwrap_or_else(|error| panic!("TPC-H loads into {name}: {error:#}"));
    }
    for mode in [Mode::Simple, Mode::Binary] {
        compare_tpch(&peers, &file, mode, &mut report).expect("servers answer");
    }
    assert!(report.is_empty(), "{report}");
}

fn tpch_file() -> Result<CaseFile> {
    let mut cases = Vec::new();
    for (name, text) in tpch::queries()? {
        let mut parsed = cases::parse(&text.replace("\n\n", "\n"))?;
        anyhow::ensure!(parsed.len() == 1, "{name} is not one statement");
        cases.append(&mut parsed);
    }
    Ok(CaseFile {
        name: "tpch".to_owned(),
        cases,
    })
}

fn compare_tpch(peers: &Peers, file: &CaseFile, mode: Mode, report: &mut String) -> Result<()> {
    let expected = play::replay(&peers.plain.server, Role::Plain, file, mode)?;
    for (name, server) in peers.proxies() {
        let found = play::replay(server, Role::Proxy, file, mode)?;
        for (number, (case, (expected, found))) in file
            .cases
            .iter()
            .zip(expected.iter().zip(&found))
            .enumerate()
        {
            if let Some(text) = judge(case, expected, found, name == ALONE) {
                write!(
                    report,
                    "\n== q{:02} on {name}, {mode:?}\n{text}",
                    number + 1
                )?;
            }
        }
    }
    Ok(())
}

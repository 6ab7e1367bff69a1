//! Generated statements on plain Postgres and on one, three and four shards, in every tier that
//! can be forced: same answers.
//!
//! `AUTOMATOR67_STATEMENTS` says how many, `AUTOMATOR67_SEED` which ones, `AUTOMATOR67_FIRST` the
//! number of the first, `AUTOMATOR67_DIFFERENCES` after how many differing statements it is enough,
//! `AUTOMATOR67_WITHOUT` what not to generate (`rows,spellings`: see `generate::Feature`). A difference
//! names seed and number: with these two and one statement it
//! runs again alone.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt::Write as _,
    io::{Read, Write as _},
    net::TcpStream,
    time::Instant,
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    answer::{self, Event, Failure, TypeNames},
    automator::{self, Dev},
    generate::{self, Statement, schema, setting},
    given::{self, number},
    postgres::Plain,
    wire::{self, Connection, Server},
};
use bytes::BytesMut;

/// The rows of the tables never change with the statements' seed.
const ROWS_SEED: u64 = 67;
const DEFAULT_SEED: u64 = 20_240_229;
const DEFAULT_STATEMENTS: u64 = 2000;
/// How many statements run between two comparisons.
const CHUNK: u64 = 250;
/// How many statements are sent before the first answer is read.
const PIPELINED: usize = 5;
const MOST_DIFFERENCES: u64 = 20;
const FORCED: [&str; 3] = ["gather", "merge", "scatter"];

/// Plain Postgres and the three clusters.
struct Peers {
    plain: Plain,
    clusters: Vec<(usize, Dev)>,
}

impl Peers {
    fn start() -> Result<Peers> {
        std::thread::scope(|scope| {
            let plain = scope.spawn(|| {
                let plain = Plain::start()?;
                set_up(&plain.server, false)?;
                anyhow::Ok(plain)
            });
            let clusters = [1, 3, 4].map(|shards| {
                scope.spawn(move || {
                    let dev = Dev::start(shards)?;
                    set_up(dev.server(), true)
                        .with_context(|| format!("tables on {shards} shards"))?;
                    anyhow::Ok((shards, dev))
                })
            });
            let clusters = clusters.into_iter();
            let clusters = clusters.map(|thread| thread.join().expect("no panic"));
            Ok(Peers {
                clusters: clusters.collect::<Result<_>>()?,
                plain: plain.join().expect("no panic")?,
            })
        })
    }

    /// Plain Postgres first.
    fn runners(&self) -> Result<Vec<Runner>> {
        let mut runners = vec![Runner::open("plain Postgres", &self.plain.server, None)?];
        for (shards, dev) in &self.clusters {
            let name = format!("{shards} shards");
            runners.push(Runner::open(&name, dev.server(), None)?);
            if *shards != 3 {
                continue;
            }
            for tier in FORCED {
                let name = format!("{name}, {tier} forced");
                runners.push(Runner::open(&name, dev.server(), Some(tier))?);
            }
        }
        Ok(runners)
    }
}

fn set_up(server: &Server, proxy: bool) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in schema::create() {
        connection.execute(text)?;
    }
    for text in schema::place().filter(|_| proxy) {
        connection.execute(text)?;
    }
    for text in schema::fill(ROWS_SEED) {
        connection.execute(&text)?;
    }
    for text in schema::VIEWS {
        connection.execute(text)?;
    }
    if !proxy {
        connection.execute("analyze")?;
    }
    connection.terminate()
}

/// One hash of all rows of each table.
fn contents(server: &Server) -> Result<Vec<String>> {
    let mut connection = session(server, None)?;
    let mut hashes = Vec::new();
    for table in schema::TABLES {
        let name = table.name;
        let rows = connection.rows(&format!("select t::text from {name} t order by 1"))?;
        hashes.push(format!("{name}: {rows:?}"));
    }
    connection.terminate()?;
    Ok(hashes)
}

/// What a server made of a statement, or how the connection was lost.
type Answer = Result<Vec<Event>, String>;

/// Runs statements on one server in one session.
struct Runner {
    name: String,
    server: Server,
    tier: Option<&'static str>,
    connection: Connection,
    types: TypeNames,
}

impl Runner {
    fn open(name: &str, server: &Server, tier: Option<&'static str>) -> Result<Runner> {
        let mut types = TypeNames::new();
        let mut connection = session(server, tier)?;
        for row in connection.rows("select oid, typname from pg_type where oid >= 16384")? {
            if let [Some(oid), Some(name)] = row.as_slice() {
                types.insert(oid.parse()?, name.clone());
            }
        }
        Ok(Runner {
            name: name.to_owned(),
            server: server.clone(),
            tier,
            connection,
            types,
        })
    }

    fn run(&mut self, statements: &[Statement]) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        for group in statements.chunks(PIPELINED) {
            match self.pipelined(group) {
                Ok(found) => answers.extend(found.into_iter().map(Ok)),
                Err(error) => answers.extend(self.one_by_one(group, &format!("{error:#}"))?),
            }
        }
        Ok(answers)
    }

    fn pipelined(&mut self, group: &[Statement]) -> Result<Vec<Vec<Event>>> {
        let mut bytes = BytesMut::new();
        for statement in group {
            bytes.extend_from_slice(&statement.messages()?);
        }
        self.connection.send(&bytes)?;
        group
            .iter()
            .map(|statement| {
                let mut events = Vec::new();
                for _ in 0..statement.answers() {
                    let frames = self.connection.until_ready()?;
                    events.extend(answer::events(&frames, &self.types)?);
                }
                Ok(events)
            })
            .collect()
    }

    /// Which statement of a pipeline that broke is to blame. All are, if each alone is answered.
    fn one_by_one(&mut self, group: &[Statement], why: &str) -> Result<Vec<Answer>> {
        let mut answers = Vec::new();
        for statement in group {
            self.connection = session(&self.server, self.tier)?;
            let found = self.pipelined(std::slice::from_ref(statement));
            let found = found.map(|mut found| found.pop().unwrap_or_default());
            answers.push(found.map_err(|error| format!("{error:#}")));
        }
        if answers.iter().all(Result::is_ok) {
            let numbers: Vec<u64> = group.iter().map(|statement| statement.number).collect();
            let text = format!("the pipeline of {numbers:?}, but none alone: {why}");
            answers = vec![Err(text); group.len()];
        }
        self.connection = session(&self.server, self.tier)?;
        Ok(answers)
    }
}

fn session(server: &Server, tier: Option<&str>) -> Result<Connection> {
    let mut connection = Connection::open(server)?;
    for text in setting::SESSION.iter().chain(&schema::OF_SESSION) {
        connection.execute(text)?;
    }
    if let Some(tier) = tier {
        connection.execute(&format!("set automator67.force_tier = '{tier}'"))?;
    }
    Ok(connection)
}

#[derive(Default)]
struct Report {
    seed: u64,
    statements: usize,
    ordered: usize,
    with_parameters: usize,
    with_rows: usize,
    errors: BTreeMap<String, usize>,
    refusals: BTreeMap<String, BTreeMap<String, usize>>,
    /// Answers that differ in this alone: see [`unfolded`].
    unfolded: usize,
    differences: Vec<String>,
    /// The numbers of the statements that differ.
    differing: BTreeSet<u64>,
}

impl Report {
    fn compare(&mut self, names: &[String], statements: &[Statement], answers: &[Vec<Answer>]) {
        self.statements += statements.len();
        for (index, statement) in statements.iter().enumerate() {
            let expected = match &answers[0][index] {
                Ok(answer) => answer,
                Err(why) => {
                    self.note(&names[0], statement, &format!("  lost: {why}"));
                    continue;
                }
            };
            let is_row = |event: &Event| matches!(event, Event::Row(_));
            self.ordered += usize::from(statement.ordered);
            self.with_parameters += usize::from(statement.parameters.is_some());
            self.with_rows += usize::from(expected.iter().any(is_row));
            if let Some(Failure {
                sqlstate, message, ..
            }) = answer::failure(expected)
            {
                let known = self.errors.entry(format!("{sqlstate} {message}"));
                *known.or_default() += 1;
                if std::env::var_os("AUTOMATOR67_SHOW_ERRORS").is_some() {
                    eprintln!("--- {message}: {}", statement.text);
                }
                if sqlstate == "57014" {
                    self.note(&names[0], statement, "  too slow to be of use");
                    continue;
                }
            }
            for (name, answers) in names.iter().zip(answers).skip(1) {
                match &answers[index] {
                    Err(why) => self.note(name, statement, &format!("  lost: {why}")),
                    Ok(found) => self.judge(name, statement, expected, found),
                }
            }
        }
    }

    fn judge(&mut self, name: &str, statement: &Statement, expected: &[Event], found: &[Event]) {
        let difference = answer::difference(expected, found, statement.ordered);
        let Some(difference) = difference else {
            return;
        };
        let Some(failure) = answer::failure(found) else {
            if answer::difference(&unfolded(expected, found), found, statement.ordered).is_none() {
                self.unfolded += 1;
                return;
            }
            return self.note(name, statement, &difference);
        };
        if !wire::is_refusal(&failure.sqlstate) {
            return self.note(name, statement, &difference);
        }
        let message = &failure.message;
        let told = format!("{} {message}", failure.sqlstate);
        let known = self.refusals.entry(name.to_owned()).or_default();
        *known.entry(told).or_default() += 1;
        if std::env::var_os("AUTOMATOR67_SHOW_REFUSALS").is_some() {
            eprintln!("--- {name} refuses {message}: {}", statement.text);
        }
        if failure.hint.is_none() {
            let what = format!("{difference}  refused without a hint");
            self.note(name, statement, &what);
        }
    }

    fn note(&mut self, name: &str, statement: &Statement, what: &str) {
        self.differing.insert(statement.number);
        let mut text = format!(
            "== seed {} statement {} on {name}\n",
            self.seed, statement.number
        );
        for line in statement.before.iter().chain([&statement.text]) {
            let _ = writeln!(text, "{line};");
        }
        if let Some(parameters) = &statement.parameters {
            let _ = writeln!(text, "  parameters (binary {}):", statement.binary);
            for parameter in parameters {
                let _ = writeln!(text, "    {parameter:?}");
            }
        }
        text.push_str(what);
        self.differences.push(text);
    }

    /// Refused runs of the server that refuses most, and errors of Postgres, in parts of one.
    fn rates(&self) -> (f64, f64) {
        let sum = |counts: &BTreeMap<String, usize>| counts.values().sum::<usize>();
        let refused = self.refusals.values().map(sum).max().unwrap_or(0);
        let rate = |count: usize| count as f64 / self.statements.max(1) as f64;
        (rate(refused), rate(sum(&self.errors)))
    }

    fn summary(&self, seconds: f64) -> String {
        let (refused, failed) = self.rates();
        let mut text = format!(
            "{} statements of seed {} in {seconds:.1} s; {:.2} % failed on Postgres, \
             at most {:.2} % refused, {} differences in {} statements\n",
            self.statements,
            self.seed,
            failed * 100.0,
            refused * 100.0,
            self.differences.len(),
            self.differing.len()
        );
        let _ = writeln!(
            text,
            "{} in an order, {} with parameters, {} return rows",
            self.ordered, self.with_parameters, self.with_rows
        );
        if self.unfolded > 0 {
            let _ = writeln!(text, "{} lack a type modifier", self.unfolded);
        }
        for (error, count) in &self.errors {
            let _ = writeln!(text, "  {count} x {error}");
        }
        for (name, refusals) in &self.refusals {
            let _ = writeln!(text, "refused on {name}:");
            for (refusal, count) in refusals {
                let _ = writeln!(text, "  {count} x {refusal}");
            }
        }
        text
    }
}

/// What Postgres would say before it plans: of a CASE or COALESCE that a constant decides it tells the
/// type modifier of the part that stays, where the statement as it is written has none.
fn unfolded(expected: &[Event], found: &[Event]) -> Vec<Event> {
    let mut described = found.iter().filter_map(|event| match event {
        Event::Columns(columns) => Some(columns),
        _ => None,
    });
    let mut events = expected.to_vec();
    for event in &mut events {
        let Event::Columns(columns) = event else {
            continue;
        };
        for (column, found) in columns
            .iter_mut()
            .zip(described.next().into_iter().flatten())
        {
            if found.typmod == -1 {
                column.typmod = -1;
            }
        }
    }
    events
}

/// Statements per tier since the program started.
fn tiers(dev: &Dev) -> Result<BTreeMap<String, u64>> {
    let mut stream = TcpStream::connect(("127.0.0.1", automator::port_of(&dev.automator.http)?))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let mut counts = BTreeMap::new();
    for line in text.lines() {
        let Some(rest) = line.strip_prefix("automator67_statements_total{") else {
            continue;
        };
        let tier = rest
            .split("tier=\"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let count: Option<u64> = rest.rsplit(' ').next().and_then(|count| count.parse().ok());
        if let (Some(tier), Some(count), true) = (tier, count, rest.contains("kind=\"select\"")) {
            *counts.entry(tier.to_owned()).or_default() += count;
        }
    }
    Ok(counts)
}

#[test]
fn generated_statements_answer_like_postgres() {
    let peers = Peers::start().expect("servers start");
    same_rows(&peers).expect("every server has the same rows");
    let mut runners = peers.runners().expect("logins");
    let names: Vec<String> = runners.iter().map(|runner| runner.name.clone()).collect();
    let mut report = Report {
        seed: given::seed_or("generated statements", DEFAULT_SEED),
        ..Report::default()
    };
    let start = Instant::now();
    let mut next = number("AUTOMATOR67_FIRST", 0);
    let end = next + number("AUTOMATOR67_STATEMENTS", DEFAULT_STATEMENTS);
    let enough = number("AUTOMATOR67_DIFFERENCES", MOST_DIFFERENCES);
    while next < end && (report.differing.len() as u64) < enough {
        let statements = next..end.min(next + CHUNK);
        next = statements.end;
        let statements: Vec<Statement> = statements
            .map(|number| generate::statement(report.seed, number))
            .collect();
        let answers = std::thread::scope(|scope| {
            let statements = &statements;
            let running: Vec<_> = runners
                .iter_mut()
                .map(|runner| scope.spawn(move || runner.run(statements)))
                .collect();
            let answers = running.into_iter();
            answers
                .map(|thread| thread.join().expect("no panic"))
                .collect::<Result<Vec<_>>>()
        });
        let answers = answers.expect("servers stay up");
        report.compare(&names, &statements, &answers);
    }
    let mut summary = report.summary(start.elapsed().as_secs_f64());
    for (shards, dev) in &peers.clusters {
        let tiers = tiers(dev).expect("metrics");
        let _ = writeln!(summary, "{shards} shards, SELECTs per tier: {tiers:?}");
    }
    eprintln!("{summary}");
    assert!(
        report.differences.is_empty(),
        "{}\n{summary}",
        report.differences.join("\n")
    );
    let (refused, failed) = report.rates();
    assert!(refused < 0.01, "too much is refused:\n{summary}");
    // Errors are answers, too: about a tenth, of which few come by chance.
    assert!(
        report.statements < 500 || (0.07..0.14).contains(&failed),
        "the generator makes too few or too many errors:\n{summary}"
    );
}

fn same_rows(peers: &Peers) -> Result<()> {
    let expected = contents(&peers.plain.server)?;
    for (shards, dev) in &peers.clusters {
        let found = contents(dev.server())?;
        for (expected, found) in expected.iter().zip(&found) {
            ensure!(
                expected == found,
                "{shards} shards:\n{found}\nnot\n{expected}"
            );
        }
    }
    Ok(())
}

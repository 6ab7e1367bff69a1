//! Generated writes and transactions on plain Postgres and on one, three and four shards: same
//! answers, same rows after them.
//!
//! `AUTOMATOR67_STATEMENTS` says how many run on all clusters together, `AUTOMATOR67_SEED` which
//! ones, `AUTOMATOR67_FIRST` the number of the first, of which the whole episode runs. A difference
//! names all of it, and the file with the statements that lead to it.

use std::{
    collections::BTreeMap,
    fmt::Write as _,
    ops::Range,
    path::{Path, PathBuf},
    time::Instant,
};

use anyhow::{Context, Result, bail};
use automator67_tests::{
    answer::{self, Event, TypeNames},
    automator::Dev,
    batch::Batch,
    changes::{
        self, EPISODE, Episode, Step,
        schema::{self, Table},
    },
    given::{self, number},
    postgres::Plain,
    wire::{self, Connection, Server},
};

const DEFAULT_SEED: u64 = 20_240_229;
const DEFAULT_STATEMENTS: u64 = 5000;
const CLUSTERS: [usize; 3] = [1, 3, 4];
/// Of one cluster.
const MOST_DIFFERENCES: usize = 10;
/// Keys of each table that are looked for one by one, the highest first: those have moved.
const KEYS_LOOKED_FOR: usize = 10;
/// Statements before a difference that its report shows.
const SHOWN: usize = 6;

/// A session, and what it takes to open it again.
struct Session {
    server: Server,
    connection: Connection,
}

impl Session {
    fn open(server: &Server) -> Result<Session> {
        let mut connection = Connection::open(server)?;
        connection.execute("set statement_timeout = '20s'")?;
        Ok(Session {
            server: server.clone(),
            connection,
        })
    }

    fn run(&mut self, step: &Step) -> Result<Vec<Event>> {
        let mut bytes = step.messages();
        if let Some(rows) = &step.rows {
            // Where COPY is refused these two are skipped (manual, "COPY Operations").
            let batch = Batch::new()
                .message(b'd', rows.as_bytes())
                .message(b'c', b"");
            bytes.extend_from_slice(batch.bytes());
        }
        self.connection.send(&bytes)?;
        let frames = self.connection.until_ready()?;
        self.connection.notices.clear();
        answer::events(&frames, &TypeNames::new())
    }

    fn contents(&mut self) -> Result<Vec<Vec<Event>>> {
        schema::contents()
            .map(|(_, text)| self.run_text(text))
            .collect()
    }

    fn run_text(&mut self, text: &str) -> Result<Vec<Event>> {
        let frames = self.connection.simple(text)?;
        answer::events(&frames, &TypeNames::new())
    }
}

/// One cluster, and a database of plain Postgres that follows it.
struct Pair {
    shards: usize,
    plain: Session,
    proxy: Session,
    /// Without the proxy: for the copies of the reference table.
    direct: Vec<Session>,
    _dev: Dev,
}

impl Pair {
    fn start(plain: &Server, shards: usize) -> Result<Pair> {
        let dev = Dev::start(shards)?;
        let mut server = plain.clone();
        server.database = format!("changes{shards}");
        Connection::open(plain)?.execute(&format!("create database {}", server.database))?;
        let mut pair = Pair {
            shards,
            plain: Session::open(&server)?,
            proxy: Session::open(dev.server())?,
            direct: Vec::new(),
            _dev: dev,
        };
        for text in schema::CREATE {
            pair.plain.connection.execute(text)?;
            pair.proxy.connection.execute(text)?;
        }
        for text in schema::COMPLETE {
            pair.plain.connection.execute(text)?;
        }
        for text in schema::PLACE {
            pair.proxy.connection.execute(text)?;
        }
        let direct = pair._dev.shards().iter();
        let direct = direct.map(|shard| Session::open(&shard.server));
        pair.direct = direct.collect::<Result<_>>()?;
        Ok(pair)
    }

    fn both(&mut self, text: &str) -> Result<()> {
        self.proxy
            .connection
            .execute(text)
            .with_context(|| format!("proxy, {} shards", self.shards))?;
        self.plain.connection.execute(text)?;
        Ok(())
    }

    fn open_again(&mut self) -> Result<()> {
        self.plain = Session::open(&self.plain.server)?;
        self.proxy = Session::open(&self.proxy.server)?;
        Ok(())
    }
}

/// What the statements of one cluster came to.
#[derive(Default)]
struct Report {
    seed: u64,
    shards: usize,
    statements: usize,
    with_rows: usize,
    errors: BTreeMap<String, usize>,
    refusals: BTreeMap<String, usize>,
    differences: Vec<String>,
}

/// One episode on one cluster.
struct Run<'a> {
    pair: &'a mut Pair,
    report: &'a mut Report,
    /// What ran since the reset, for people.
    script: Vec<String>,
    /// The numbers that rows have from sequences may differ from here on.
    numbers_differ: bool,
    open: bool,
}

impl Run<'_> {
    /// Runs the statements up to the first difference.
    fn episode(&mut self, episode: &Episode) -> Result<()> {
        for text in schema::RESET {
            self.pair.both(text)?;
        }
        for step in &episode.steps {
            self.report.statements += 1;
            if episode.guarded && self.open && !step.control {
                self.control("savepoint guard")?;
            }
            match self.step(step, episode.guarded) {
                Ok(None) => {}
                Ok(Some(difference)) => {
                    self.note(step.number, &step.script(), &difference)?;
                    return self.pair.both("rollback");
                }
                Err(error) => {
                    self.note(step.number, &step.script(), &format!("  lost: {error:#}"))?;
                    return self.pair.open_again();
                }
            }
        }
        let last = episode.steps.last().map_or(0, |step| step.number);
        if let Some(difference) = self.compare_contents()? {
            self.note(last, "(rows after the episode)", &difference)?;
        }
        Ok(())
    }

    fn control(&mut self, text: &str) -> Result<()> {
        self.script.push(format!("{text};"));
        self.pair.both(text)
    }

    /// Runs one statement on both; what differs.
    fn step(&mut self, step: &Step, guarded: bool) -> Result<Option<String>> {
        let mut found = self.pair.proxy.run(step).context("proxy")?;
        let failure = answer::failure(&found);
        let writes = ["insert", "merge"];
        let writes = writes.iter().any(|word| step.text.contains(word));
        // A statement that fails may have drawn some numbers or all; COPY draws them in blocks.
        self.numbers_differ |= writes && (failure.is_some() || step.shuffles_numbers);
        self.numbers_differ |= step.rows.is_some();
        if let Some(failure) = failure
            && wire::is_refusal(&failure.sqlstate)
        {
            if failure.hint.is_none() {
                let shown = answer::summary(&found);
                return Ok(Some(format!("  refused without a hint:{shown}")));
            }
            let message = &failure.message;
            let told = format!("{} {message}", failure.sqlstate);
            *self.report.refusals.entry(told).or_default() += 1;
            if std::env::var_os("AUTOMATOR67_SHOW_REFUSALS").is_some() {
                let shards = self.pair.shards;
                eprintln!("--- {shards} shards: {message}: {}", step.script());
            }
            self.script.push(format!("-- refused: {}", step.script()));
            if self.open && guarded && !step.control {
                self.control("rollback to savepoint guard")?;
            } else if self.open {
                self.control("rollback")?;
                self.open = false;
            }
            return Ok(None);
        }
        self.script.push(step.script());
        let mut expected = self.pair.plain.run(step).context("plain Postgres")?;
        if let Some(failure) = answer::failure(&expected) {
            let message = &failure.message;
            let told = format!("{} {message}", failure.sqlstate);
            *self.report.errors.entry(told).or_default() += 1;
            if std::env::var_os("AUTOMATOR67_SHOW_ERRORS").is_some() {
                eprintln!("--- {message}: {}", step.script());
            }
        }
        let rows = expected.iter().any(|event| matches!(event, Event::Row(_)));
        self.report.with_rows += usize::from(rows);
        let status = expected.last().cloned();
        self.mask(&mut expected);
        self.mask(&mut found);
        let difference = answer::difference(&expected, &found, step.ordered);
        if difference.is_some() {
            return Ok(difference);
        }
        self.open = status != Some(Event::Ready('I'));
        if guarded && !step.control && status == Some(Event::Ready('E')) {
            self.control("rollback to savepoint guard")?;
        }
        Ok(None)
    }

    /// Hides values that two servers need not agree on.
    fn mask(&self, events: &mut [Event]) {
        let mut hidden: Vec<usize> = Vec::new();
        for event in events {
            match event {
                Event::Columns(columns) => {
                    let is_hidden = |name: &str| {
                        let is_number = schema::NUMBERS.contains(&name);
                        schema::CLOCKS.contains(&name) || self.numbers_differ && is_number
                    };
                    let places = columns.iter().enumerate();
                    let places = places.filter(|(_, column)| is_hidden(&column.name));
                    hidden = places.map(|(place, _)| place).collect();
                }
                Event::Row(values) => {
                    for &place in &hidden {
                        values[place] = values[place].as_ref().map(|_| "*".into());
                    }
                }
                _ => {}
            }
        }
    }

    fn compare_contents(&mut self) -> Result<Option<String>> {
        let expected = self.pair.plain.contents()?;
        let found = self.pair.proxy.contents()?;
        let pairs = expected.into_iter().zip(found);
        for ((name, _), (mut expected, mut found)) in schema::contents().zip(pairs) {
            self.mask(&mut expected);
            self.mask(&mut found);
            if let Some(text) = first_other_rows(&expected, &found) {
                return Ok(Some(format!("  {name}:\n{text}")));
            }
        }
        self.compare_places()
    }

    /// Every shard has the same copy of the reference table, and rows are where their keys are
    /// looked for.
    fn compare_places(&mut self) -> Result<Option<String>> {
        let shown = |event: &Event| matches!(event, Event::Row(_));
        let expected = self.pair.plain.run_text(Table::Rates.contents())?;
        for (place, direct) in self.pair.direct.iter_mut().enumerate() {
            let found = direct.run_text(Table::Rates.contents())?;
            if let Some(text) = first_other_rows(&expected, &found) {
                return Ok(Some(format!("  copy on shard {}:\n{text}", place + 1)));
            }
        }
        if self.pair.shards == 1 {
            return Ok(None);
        }
        for (table, key) in schema::KEYS {
            let text = format!(
                "select {key}, count(*) from {table} group by {key} order by {key} desc limit {KEYS_LOOKED_FOR}"
            );
            for row in self.pair.plain.connection.rows(&text)? {
                let [Some(value), Some(count)] = row.as_slice() else {
                    bail!("{text}: {row:?}");
                };
                let text = format!("select 1 from {table} where {key} = '{value}'");
                let found = self.pair.proxy.run_text(&text)?;
                let found = found.iter().filter(|event| shown(event)).count();
                if found.to_string() != *count {
                    return Ok(Some(format!("  {found} rows, not {count}: {text}")));
                }
            }
        }
        Ok(None)
    }

    fn note(&mut self, number: u64, statement: &str, what: &str) -> Result<()> {
        let (seed, shards) = (self.report.seed, self.report.shards);
        let name = format!("changes-{seed}-{number}-{shards}.sql");
        let path = Path::new(env!("CARGO_TARGET_TMPDIR")).join(name);
        self.write_script(&path)?;
        let mut text = format!(
            "== seed {seed} statement {number} on {shards} shards (AUTOMATOR67_SEED={seed} \
             AUTOMATOR67_FIRST={} AUTOMATOR67_STATEMENTS={})\n-- all of it: {}\n",
            number - number % EPISODE,
            EPISODE * CLUSTERS.len() as u64,
            path.display()
        );
        let before = self.script.len().saturating_sub(SHOWN);
        for line in &self.script[before..] {
            let _ = writeln!(text, "{line}");
        }
        let _ = write!(text, "-- differs: {statement}\n{what}\n");
        self.report.differences.push(text);
        Ok(())
    }

    /// Everything from an empty database on, for psql.
    fn write_script(&self, path: &PathBuf) -> Result<()> {
        let mut text = String::new();
        for statement in schema::CREATE {
            let _ = writeln!(text, "{statement};");
        }
        text.push_str("-- without shards: \\set plain 1\n\\if :{?plain}\n");
        for statement in schema::COMPLETE {
            let _ = writeln!(text, "{statement};");
        }
        text.push_str("\\else\n");
        for statement in schema::PLACE {
            let _ = writeln!(text, "{statement};");
        }
        text.push_str("\\endif\n");
        for statement in schema::RESET {
            let _ = writeln!(text, "{statement};");
        }
        text.push_str(&self.script.join("\n"));
        text.push('\n');
        std::fs::create_dir_all(path.parent().context("a directory")?)?;
        std::fs::write(path, text)?;
        Ok(())
    }
}

/// Rows that only one of two results has, for people.
fn first_other_rows(expected: &[Event], found: &[Event]) -> Option<String> {
    if expected == found {
        return None;
    }
    let only = |these: &[Event], others: &[Event]| {
        let only = these.iter().filter(|event| !others.contains(event));
        let only: Vec<Event> = only.take(8).cloned().collect();
        answer::summary(&only)
    };
    Some(format!(
        "  Postgres alone: {}\n  proxy alone: {}",
        only(expected, found),
        only(found, expected)
    ))
}

impl Report {
    fn refused(&self) -> f64 {
        self.refusals.values().sum::<usize>() as f64 / self.statements.max(1) as f64
    }

    fn failed(&self) -> f64 {
        self.errors.values().sum::<usize>() as f64 / self.statements.max(1) as f64
    }

    fn summary(&self) -> String {
        let mut text = format!(
            "{} shards: {} statements of seed {}, {} return rows; {:.2} % failed on Postgres, \
             {:.2} % refused, {} differences\n",
            self.shards,
            self.statements,
            self.seed,
            self.with_rows,
            self.failed() * 100.0,
            self.refused() * 100.0,
            self.differences.len()
        );
        let mut sqlstates: BTreeMap<&str, usize> = BTreeMap::new();
        for (error, count) in &self.errors {
            *sqlstates.entry(&error[..5]).or_default() += count;
        }
        let _ = writeln!(text, "  errors: {sqlstates:?}");
        for (refusal, count) in &self.refusals {
            let _ = writeln!(text, "  refused {count} x {refusal}");
        }
        text
    }
}

/// Episodes `first` to `end` on one cluster.
fn episodes(plain: &Server, seed: u64, shards: usize, numbers: Range<u64>) -> Result<Report> {
    let mut pair = Pair::start(plain, shards).with_context(|| format!("{shards} shards"))?;
    let mut report = Report {
        seed,
        shards,
        ..Report::default()
    };
    for number in numbers {
        let episode = changes::episode(report.seed, number);
        let mut run = Run {
            pair: &mut pair,
            report: &mut report,
            script: Vec::new(),
            numbers_differ: false,
            open: false,
        };
        run.episode(&episode)
            .with_context(|| format!("episode {number} on {shards} shards"))?;
        if report.differences.len() >= MOST_DIFFERENCES {
            break;
        }
    }
    Ok(report)
}

fn all_clusters() -> Result<Vec<Report>> {
    let seed = given::seed_or("generated changes", DEFAULT_SEED);
    let plain = Plain::start()?;
    let first = number("AUTOMATOR67_FIRST", 0) / EPISODE;
    let statements = number("AUTOMATOR67_STATEMENTS", DEFAULT_STATEMENTS);
    let count = statements.div_ceil(EPISODE * CLUSTERS.len() as u64);
    std::thread::scope(|scope| {
        let server = &plain.server;
        let running = CLUSTERS.map(|shards| {
            scope.spawn(move || episodes(server, seed, shards, first..first + count))
        });
        let mut reports = Vec::new();
        for thread in running {
            match thread.join() {
                Ok(report) => reports.push(report?),
                Err(_) => bail!("a cluster's thread panicked"),
            }
        }
        Ok(reports)
    })
}

#[test]
fn generated_changes_leave_what_postgres_leaves() {
    let start = Instant::now();
    let reports = all_clusters().expect("servers stay up");
    let mut summary = format!("{:.1} s\n", start.elapsed().as_secs_f64());
    let mut differences = Vec::new();
    for report in &reports {
        summary.push_str(&report.summary());
        differences.extend(report.differences.iter().map(String::as_str));
    }
    eprintln!("{summary}");
    assert!(
        differences.is_empty(),
        "{}\n{summary}",
        differences.join("\n")
    );
    for report in &reports {
        assert!(report.refused() < 0.03, "too much is refused:\n{summary}");
        assert!(
            report.failed() < 0.2,
            "the generator makes too many errors:\n{summary}"
        );
    }
}

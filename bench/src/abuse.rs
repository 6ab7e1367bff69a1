//! What one client's strange or hostile load does to the others of the same proxy: very long
//! statements, very large values, connections that say nothing, wrong passwords, batches without end.
//!
//! A bystander asks for one row by its key, over and over, through a proxy with one serving thread.
//! Every load is bounded in count and in time. What is measured is written beside what it was and what
//! was asked for; nothing fails because of a figure.

mod bystander;
mod large;
mod logins;
mod pipeline;
mod point;
mod statements;

use std::{
    fs,
    path::Path,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result};
use automator67_tests::wire::{self, Closed, Connection};
use clap::{Args, ValueEnum};
use serde_json::{Value, json};

use crate::{
    Common, report,
    servers::{self, PASSWORD, Server, USER, psql},
};

const SHARDS: usize = 3;
const ACCOUNTS: u32 = 100_000;
/// Nobody waits longer for one message of a server; what had no answer by then has none.
const ANSWER_LIMIT: Duration = Duration::from_secs(180);
/// For how long memory may still be given back when all loads are over.
const REST: Duration = Duration::from_secs(10);
const RESIDENT_BYTES_MAX: u64 = 150 << 20;

/// What can be done to the proxy.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Abuse {
    /// Statements with very many parts.
    Statements,
    /// Many messages before one Sync.
    Pipeline,
    /// One very long text.
    Text,
    /// One very long line of COPY.
    Copy,
    /// Connections that say nothing.
    Silent,
    /// Wrong passwords.
    Passwords,
    /// None: what a point query costs.
    Point,
}

/// Its flags.
#[derive(Args)]
#[group(id = "abuse_flags")]
pub struct Flags {
    /// Only this abuse; may be given several times.
    #[arg(long, value_enum)]
    abuse: Vec<Abuse>,
}

/// Runs this part and keeps its report. `before` is an older binary.
pub fn run(common: &Common, flags: &Flags, before: Option<&Path>) -> Result<()> {
    let includes = |abuse| flags.abuse.is_empty() || flags.abuse.contains(&abuse);
    let ground = Ground::prepare(common)?;
    let mut book = Book::default();
    if includes(Abuse::Point) {
        point::measure(&ground, before, &mut book)?;
    }
    book.note(bystander::undisturbed(&ground)?);
    if includes(Abuse::Statements) {
        statements::measure(&ground, &mut book)?;
    }
    if includes(Abuse::Pipeline) {
        pipeline::measure(&ground, &mut book)?;
    }
    if includes(Abuse::Text) {
        large::text(&ground, &mut book)?;
    }
    if includes(Abuse::Copy) {
        large::copy_line(&ground, &mut book)?;
    }
    if includes(Abuse::Silent) {
        logins::silent(&ground, &mut book)?;
    }
    if includes(Abuse::Passwords) {
        logins::wrong_passwords(&ground, &mut book)?;
    }
    memory_at_rest(&ground, &mut book)?;
    book.keep(common)
}

/// All servers, with their tables.
struct Ground<'a> {
    common: &'a Common,
    proxy: Server,
    plain: Server,
    // What serves the proxy comes after it: it ends first.
    shards: Vec<Server>,
    directory: tempfile::TempDir,
}

impl<'a> Ground<'a> {
    fn prepare(common: &'a Common) -> Result<Self> {
        let directory = tempfile::Builder::new().prefix("a67abuse").tempdir()?;
        let path = directory.path();
        let plain = servers::postgres(&common.bin, path, "plain")?;
        let mut shards = Vec::new();
        for number in 1..=SHARDS {
            let name = format!("cluster{number}");
            shards.push(servers::postgres(&common.bin, path, &name)?);
        }
        let proxy = one_thread(&common.binary, path, USER, &shards)?;
        fill(common, plain.port, USER, false)?;
        fill(common, proxy.port, USER, true)?;
        Ok(Ground {
            common,
            proxy,
            plain,
            shards,
            directory,
        })
    }

    fn proxy(&self) -> wire::Server {
        wire::Server::tcp(self.proxy.port, USER, PASSWORD, USER)
    }

    fn plain(&self) -> wire::Server {
        wire::Server::tcp(self.plain.port, USER, PASSWORD, USER)
    }
}

fn one_thread(
    binary: &Path,
    directory: &Path,
    database: &str,
    shards: &[Server],
) -> Result<Server> {
    let shards: Vec<&Server> = shards.iter().collect();
    servers::automator67_with(binary, directory, database, &shards, &["--threads", "1"])
}

fn fill(common: &Common, port: u16, database: &str, distributed: bool) -> Result<()> {
    let mut texts = vec![
        "create table accounts (id bigint primary key, balance bigint not null)".to_owned(),
        "create table notes (id bigint primary key, note text not null)".to_owned(),
    ];
    if distributed {
        texts.push("select create_distributed_table('accounts', 'id')".to_owned());
        texts.push("select create_distributed_table('notes', 'id')".to_owned());
    }
    texts.push(format!(
        "insert into accounts select n, 0 from generate_series(1, {ACCOUNTS}) n"
    ));
    for text in texts {
        psql(&common.bin, port, database, &text)?;
    }
    Ok(())
}

/// How a server ended a load.
struct Answer {
    took: Duration,
    /// SQLSTATE and message, or what happened to the connection.
    error: Option<String>,
}

impl Answer {
    fn is_program_limit(&self) -> bool {
        let error = self.error.as_deref();
        error.is_some_and(|error| error.starts_with("54000"))
    }

    fn describe(&self) -> String {
        let took = duration(self.took);
        match &self.error {
            None => took,
            Some(error) => format!("{took}, {error}"),
        }
    }
}

/// Logs in, sends what `send` sends, and waits for ReadyForQuery.
fn ask(server: &wire::Server, send: impl FnOnce(&mut Connection) -> Result<()>) -> Result<Answer> {
    let mut connection = Connection::open(server)?;
    connection.set_read_limit(ANSWER_LIMIT)?;
    connection.sender()?.set_write_timeout(Some(ANSWER_LIMIT))?;
    let started = Instant::now();
    // A server may refuse before it has read all, so its words count whether or not all was sent.
    let sent = send(&mut connection);
    let error = match (last_words(&mut connection), sent) {
        (Ok(words), _) => words,
        (Err(_), Err(error)) | (Err(error), Ok(())) => Some(format!("{error:#}")),
    };
    let took = started.elapsed();
    Ok(Answer { took, error })
}

/// The error among the frames up to ReadyForQuery, or up to the end of the connection.
fn last_words(connection: &mut Connection) -> Result<Option<String>> {
    let mut words = None;
    loop {
        match connection.receive() {
            Ok(frame) if frame.tag == b'Z' => return Ok(words),
            Ok(frame) if frame.tag == b'E' => {
                let field = |code| frame.field(code).unwrap_or_default();
                words = Some(format!("{} {}", field(b'C'), field(b'M')));
            }
            Ok(_) => {}
            Err(error) if error.is::<Closed>() && words.is_some() => return Ok(words),
            Err(error) => return Err(error),
        }
    }
}

/// The least that is resident once all clients are gone.
fn memory_at_rest(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    let started = Instant::now();
    let mut least = u64::MAX;
    while started.elapsed() < REST {
        least = least.min(ground.proxy.resident_bytes()?);
        thread::sleep(Duration::from_millis(100));
    }
    book.row(
        "all of it: resident memory afterwards",
        "943 MB",
        mebibytes(least),
        "≤ 150 MiB",
        least <= RESIDENT_BYTES_MAX,
    );
    Ok(())
}

/// Everything that was measured.
#[derive(Default)]
struct Book {
    rows: Vec<Row>,
    notes: Vec<String>,
}

struct Row {
    load: String,
    then: String,
    now: String,
    target: String,
    met: bool,
}

impl Book {
    fn row(&mut self, load: &str, then: &str, now: String, target: &str, met: bool) {
        let row = Row {
            load: load.to_owned(),
            then: then.to_owned(),
            now,
            target: target.to_owned(),
            met,
        };
        eprintln!("{}", row.markdown());
        self.rows.push(row);
    }

    fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    fn keep(&self, common: &Common) -> Result<()> {
        let machine = report::machine(&common.bin, &[&common.binary]);
        let mut text = format!(
            "# What one client's load does to the others\n\n{}\n\nA bystander asks for one row by its \
             key, over and over, prepared, through the same proxy, which has one serving thread and \
             {SHARDS} local shards. Its longest wait counts, if nothing else is said. \"Then\" is the \
             version before these loads were looked at. Clients, proxy and all servers share the \
             processors.\n\n| load | then | now | target | |\n|---|---|---|---|---|\n",
            machine.join(" · ")
        );
        for row in &self.rows {
            text.push_str(&row.markdown());
            text.push('\n');
        }
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("- {note}\n"));
        }
        report::keep_text(&common.directory, "abuse.md", &text)?;
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|row| {
                json!({
                    "load": row.load, "then": row.then, "now": row.now, "target": row.target,
                    "met": row.met,
                })
            })
            .collect();
        let document = json!({"machine": machine, "rows": rows, "notes": self.notes});
        let path = common.directory.join("abuse.json");
        fs::write(path, serde_json::to_string_pretty(&document)?)?;
        Ok(())
    }
}

impl Row {
    fn markdown(&self) -> String {
        let met = if self.met { "met" } else { "not met" };
        let Row {
            load,
            then,
            now,
            target,
            ..
        } = self;
        format!("| {load} | {then} | {now} | {target} | {met} |")
    }
}

fn duration(duration: Duration) -> String {
    let milliseconds = duration.as_secs_f64() * 1e3;
    match milliseconds {
        ..1.0 => format!("{:.0} µs", milliseconds * 1e3),
        1.0..10.0 => format!("{milliseconds:.1} ms"),
        10.0..1e4 => format!("{milliseconds:.0} ms"),
        _ => format!("{:.0} s", milliseconds / 1e3),
    }
}

fn mebibytes(bytes: u64) -> String {
    format!("{} MiB", bytes >> 20)
}

fn middle<T: Copy + PartialOrd>(values: &mut [T]) -> Result<T> {
    values.sort_by(|a, b| a.partial_cmp(b).unwrap_or(std::cmp::Ordering::Equal));
    values
        .get(values.len() / 2)
        .copied()
        .context("nothing was measured")
}

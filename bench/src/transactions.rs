//! What transactions cost over three shards: the two-phase commit and where its time goes,
//! transactions of one shard, consistent reads, and INSERTs of many rows. Beside one plain Postgres
//! with the same settings, and beside an older binary where one is given.

mod inserts;
mod parts;
mod reads;
mod short;

use std::{
    fs,
    path::{Path, PathBuf},
};

use anyhow::{Context, Result, bail};
use serde_json::{Value, json};

use crate::{
    Common,
    load::{self, Figure, Load, Script, Target, median},
    report,
    servers::{self, Server, USER, psql},
};

const SHARDS: usize = 3;
/// On all shards together, the same number on each.
const ACCOUNTS: usize = 99_999;
/// Where the older binary keeps its tables, on the same servers.
const OLD_DATABASE: &str = "before";
/// Names of the servers under measurement.
const PLAIN: &str = "postgres";
const OLD: &str = "before";
const NEW: &str = "now";

/// Runs this part and keeps its report. `before` is an older binary.
pub fn run(common: &Common, before: Option<&Path>) -> Result<()> {
    let mut book = Book::default();
    book.note(format!("load of the machine before: {}", load_average()?));
    let ground = Ground::prepare(common, before)?;
    parts::measure(&ground, &mut book)?;
    short::transfers(&ground, &mut book)?;
    short::one_shard(&ground, &mut book)?;
    short::several_shards(&ground, &mut book)?;
    inserts::measure(&ground, &mut book)?;
    reads::measure(&ground, &mut book)?;
    ground.check_balances()?;
    book.note("all balances add up on every server at the end".to_owned());
    book.keep(common, before.is_some())
}

/// All servers, with their tables.
struct Ground<'a> {
    common: &'a Common,
    plain: Place,
    old: Option<Place>,
    new: Place,
    // What serves the places comes after them: the proxies end first.
    shards: Vec<Server>,
    directory: tempfile::TempDir,
}

/// One thing under measurement.
struct Place {
    name: &'static str,
    server: Server,
    database: &'static str,
    /// A value of `accounts.branch` on each shard, ascending by shard.
    branches: Vec<i64>,
}

impl Place {
    fn target<'a>(&'a self, options: &'a str) -> Target<'a> {
        Target {
            port: self.server.port,
            database: self.database,
            options,
            measured: &self.server,
        }
    }

    fn login(&self) -> String {
        let port = self.server.port;
        let login = servers::login("127.0.0.1", port);
        login.replace(
            &format!("dbname={USER}"),
            &format!("dbname={}", self.database),
        )
    }
}

impl<'a> Ground<'a> {
    fn prepare(common: &'a Common, before: Option<&Path>) -> Result<Self> {
        let directory = tempfile::Builder::new()
            .prefix("a67transactions")
            .tempdir()?;
        let path = directory.path();
        let plain = servers::postgres(&common.bin, path, "plain")?;
        let mut shards = Vec::new();
        for number in 1..=SHARDS {
            let name = format!("cluster{number}");
            shards.push(servers::postgres(&common.bin, path, &name)?);
        }
        let all: Vec<&Server> = shards.iter().collect();
        let proxy = |binary: &Path, database| servers::automator67(binary, path, database, &all);
        let mut new = Place {
            name: NEW,
            server: proxy(&common.binary, USER)?,
            database: USER,
            branches: Vec::new(),
        };
        new.branches = spread(common, &new, &all)?;
        fill(common, &new, true)?;
        let mut plain = Place {
            name: PLAIN,
            server: plain,
            database: USER,
            branches: new.branches.clone(),
        };
        plain.branches.sort_unstable();
        fill(common, &plain, false)?;
        let mut old = None;
        if let Some(binary) = before {
            for shard in &shards {
                let text = format!("create database {OLD_DATABASE}");
                psql(&common.bin, shard.port, "postgres", &text)?;
            }
            let mut place = Place {
                name: OLD,
                server: proxy(binary, OLD_DATABASE)?,
                database: OLD_DATABASE,
                branches: Vec::new(),
            };
            place.branches = spread(common, &place, &all)?;
            fill(common, &place, true)?;
            old = Some(place);
        }
        for server in shards.iter().chain([&plain.server]) {
            for text in ["vacuum (analyze)", "checkpoint"] {
                psql(&common.bin, server.port, USER, text)?;
            }
        }
        Ok(Ground {
            common,
            plain,
            old,
            new,
            shards,
            directory,
        })
    }

    /// Plain Postgres, the older binary where there is one, and the new one.
    fn places(&self) -> Vec<&Place> {
        let old = self.old.iter();
        [&self.plain]
            .into_iter()
            .chain(old)
            .chain([&self.new])
            .collect()
    }

    /// Files of pgbench commands.
    fn scripts(&self, name: &str, texts: &[String]) -> Result<Script> {
        let mut paths: Vec<PathBuf> = Vec::new();
        for (number, text) in texts.iter().enumerate() {
            let path = self.directory.path().join(format!("{name}-{number}.sql"));
            fs::write(&path, text)?;
            paths.push(path);
        }
        Ok(Script::Files(paths))
    }

    /// Every target once per round, the order turned round each time.
    fn alternate(&self, targets: &[(Load, Target<'_>)], rounds: usize) -> Result<Vec<Vec<Figure>>> {
        self.in_turn(targets.len(), rounds, |number| {
            let (load, target) = &targets[number];
            self.once(load, target)
        })
    }

    fn once(&self, load: &Load, target: &Target<'_>) -> Result<Figure> {
        let prefix = self.directory.path().join("latency");
        load::run(&self.common.bin, load, target, Some(&prefix))
    }

    fn in_turn<T>(
        &self,
        count: usize,
        rounds: usize,
        mut measure: impl FnMut(usize) -> Result<T>,
    ) -> Result<Vec<Vec<T>>> {
        let mut figures: Vec<Vec<T>> = (0..count).map(|_| Vec::new()).collect();
        for round in 0..rounds {
            for step in 0..count {
                let number = if round % 2 == 0 {
                    step
                } else {
                    count - 1 - step
                };
                figures[number].push(measure(number)?);
            }
        }
        Ok(figures)
    }

    /// Transfers neither make money nor lose it; other updates added the same everywhere they went,
    /// so only the transfers' column is summed up.
    fn check_balances(&self) -> Result<()> {
        for place in self.places() {
            let text = "select sum(balance) from accounts";
            let sum = psql(&self.common.bin, place.server.port, place.database, text)?;
            let expected = ACCOUNTS * 1000;
            if sum.trim() != expected.to_string() {
                bail!("{}: balances add up to {}", place.name, sum.trim());
            }
        }
        Ok(())
    }
}

/// Makes the distributed tables, and finds a branch on each shard.
fn spread(common: &Common, place: &Place, shards: &[&Server]) -> Result<Vec<i64>> {
    let ask = |text: &str| psql(&common.bin, place.server.port, place.database, text);
    tables(common, place)?;
    ask("select create_distributed_table('accounts', 'branch', colocate_with => 'none')")?;
    ask("select create_distributed_table('events', 'id', colocate_with => 'none')")?;
    ask("insert into accounts select n, 0, 0, 0, 0 from generate_series(1, 60) n")?;
    let mut branches = Vec::new();
    for shard in shards {
        let text = "select min(branch) from accounts";
        let branch = psql(&common.bin, shard.port, place.database, text)?;
        branches.push(branch.trim().parse().context("a shard without a branch")?);
    }
    ask("truncate accounts")?;
    Ok(branches)
}

fn tables(common: &Common, place: &Place) -> Result<()> {
    for text in [
        "create table accounts (branch bigint not null, id bigint not null, \
         balance bigint not null, visits bigint not null, score integer not null, \
         primary key (branch, id))",
        "create table events (id bigint primary key, kind integer not null, note text not null)",
    ] {
        psql(&common.bin, place.server.port, place.database, text)?;
    }
    Ok(())
}

fn fill(common: &Common, place: &Place, distributed: bool) -> Result<()> {
    if !distributed {
        tables(common, place)?;
    }
    let each = ACCOUNTS / SHARDS;
    let mut texts = Vec::new();
    for branch in &place.branches {
        texts.push(format!(
            "insert into accounts select {branch}, n, 1000, 0, (n * 7919 + {branch}) % 1000003 \
             from generate_series(1, {each}) n"
        ));
    }
    texts.push("create index on accounts (score)".to_owned());
    texts.push("create index on accounts (id)".to_owned());
    for text in texts {
        psql(&common.bin, place.server.port, place.database, &text)?;
    }
    Ok(())
}

/// What was asked for and what came of it.
struct Asked {
    text: String,
    figure: String,
    limit: String,
    met: bool,
}

/// Everything that was measured.
#[derive(Default)]
struct Book {
    asked: Vec<Asked>,
    /// Heading, then lines of a table with its own head.
    sections: Vec<(String, Vec<String>)>,
    rows: Vec<Value>,
    notes: Vec<String>,
}

/// The head of a table of loads.
const HEAD: &str = "| load | mode | clients | server | TPS | p50 µs | p99 µs | quietest p50 µs | proxy CPU µs | p50 to first | quietest to first | TPS to first |\n|---|---|---|---|---|---|---|---|---|---|---|---|";

impl Book {
    fn section(&mut self, title: &str, head: &str) {
        eprintln!("## {title}");
        self.sections
            .push((title.to_owned(), vec![head.to_owned()]));
    }

    fn line(&mut self, line: String) {
        eprintln!("{line}");
        if let Some((_, lines)) = self.sections.last_mut() {
            lines.push(line);
        }
    }

    fn note(&mut self, note: String) {
        eprintln!("{note}");
        self.notes.push(note);
    }

    /// The p50 of the last server beside that of the first.
    fn ask_p50(&mut self, text: String, figures: &[Vec<Figure>], limit: f64) {
        let (Some(first), Some(last)) = (figures.first(), figures.last()) else {
            return;
        };
        let quiet = quietest(last) / quietest(first);
        let text = format!("{text} (quietest rounds: {quiet:.2} x)");
        let times = ratio(last, first, |it| it.p50_microseconds);
        self.ask(text, times, limit, " x");
    }

    fn ask(&mut self, text: String, value: f64, limit: f64, unit: &str) {
        let asked = Asked {
            text,
            figure: format!("{value:.2}{unit}"),
            limit: format!("≤ {limit}{unit}"),
            met: value <= limit,
        };
        eprintln!(
            "asked: {}: {} {} {}",
            asked.text, asked.figure, asked.limit, asked.met
        );
        self.asked.push(asked);
    }

    /// One load on several servers. Ratios are medians of the rounds' ratios to the first server.
    fn load(
        &mut self,
        title: &str,
        mode: &str,
        clients: u32,
        names: &[&str],
        figures: &[Vec<Figure>],
    ) {
        for (number, (name, each)) in names.iter().zip(figures).enumerate() {
            let middle = median(each);
            let to_first = |value: fn(&Figure) -> f64| match number {
                0 => "–".to_owned(),
                _ => format!("{:.2}", ratio(each, &figures[0], value)),
            };
            let quiet_to_first = match number {
                0 => "–".to_owned(),
                _ => format!("{:.2}", quietest(each) / quietest(&figures[0])),
            };
            let cpu = match *name {
                PLAIN => "–".to_owned(),
                _ => format!("{:.1}", middle.cpu_microseconds),
            };
            self.line(format!(
                "| {title} | {mode} | {clients} | {name} | {:.0} | {:.0} | {:.0} | {:.0} | {cpu} | {} | {} | {} |",
                middle.tps,
                middle.p50_microseconds,
                middle.p99_microseconds,
                quietest(each),
                to_first(|it| it.p50_microseconds),
                quiet_to_first,
                to_first(|it| it.tps),
            ));
            self.rows.push(json!({
                "load": title, "mode": mode, "clients": clients, "server": name,
                "tps": middle.tps, "p50_microseconds": middle.p50_microseconds,
                "p99_microseconds": middle.p99_microseconds,
                "cpu_microseconds": middle.cpu_microseconds,
                "quietest_p50_microseconds": quietest(each),
                "tps_of_rounds": each.iter().map(|it| it.tps.round()).collect::<Vec<_>>(),
            }));
        }
    }

    fn keep(&self, common: &Common, compared: bool) -> Result<()> {
        let mut machine = report::machine(&common.bin, &[&common.binary]);
        machine.push(format!(
            "fsync on, {SHARDS} shards and plain Postgres on one disk"
        ));
        let mut text = format!(
            "# Transactions over {SHARDS} local shards\n\n{}\n\nMedians of {} alternating rounds \
             of {} s; ratios are medians of the rounds' ratios. The quietest round is the one with the lowest p50: \
             others used the machine meanwhile. CPU is the proxy's own processor \
             time per transaction. Clients, proxy and all servers share the processors.{}\n\n",
            machine.join(" · "),
            common.rounds,
            common.seconds,
            match compared {
                true => format!(" \"{OLD}\" is a binary from before two-phase commit."),
                false => String::new(),
            }
        );
        text.push_str("| what | figure | asked | |\n|---|---|---|---|\n");
        for asked in &self.asked {
            let met = if asked.met { "met" } else { "not met" };
            text.push_str(&format!(
                "| {} | {} | {} | {met} |\n",
                asked.text, asked.figure, asked.limit
            ));
        }
        for (title, lines) in &self.sections {
            text.push_str(&format!("\n## {title}\n\n{}\n", lines.join("\n")));
        }
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("- {note}\n"));
        }
        report::keep_text(&common.directory, "transactions.md", &text)?;
        let asked: Vec<Value> = self
            .asked
            .iter()
            .map(|it| json!({"what": it.text, "figure": it.figure, "asked": it.limit, "met": it.met}))
            .collect();
        let document = json!({
            "machine": machine, "asked": asked, "rows": self.rows, "notes": self.notes,
        });
        let path = common.directory.join("transactions.json");
        fs::write(path, serde_json::to_string_pretty(&document)?)?;
        Ok(())
    }
}

/// Of one, five and fifteen minutes: others' load disturbs the figures.
fn load_average() -> Result<String> {
    let text = fs::read_to_string("/proc/loadavg")?;
    Ok(text.split(' ').take(3).collect::<Vec<_>>().join(", "))
}

/// The median of the rounds' ratios: what disturbs a round disturbs both sides of it.
fn ratio(figures: &[Figure], base: &[Figure], value: fn(&Figure) -> f64) -> f64 {
    let pairs = figures.iter().zip(base);
    let mut ratios: Vec<f64> = pairs
        .map(|(ours, theirs)| value(ours) / value(theirs))
        .collect();
    middle(&mut ratios)
}

/// The p50 of the round that was disturbed least.
fn quietest(figures: &[Figure]) -> f64 {
    let all = figures.iter().map(|it| it.p50_microseconds);
    all.fold(f64::INFINITY, f64::min)
}

fn middle(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

//! TPC-H on three shards beside one plain Postgres with the same settings, rows and indexes: every
//! query in turn on both, and both answers compared to the last digit.

#[path = "../../cli/src/demo/tpch/compare.rs"]
mod compare;
mod data;
#[path = "../../cli/src/demo/tpch/queries.rs"]
mod queries;
mod session;
#[path = "../../cli/src/demo/tpch/tables.rs"]
mod tables;
mod written;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context, Result, ensure};
use tokio_postgres::SimpleQueryMessage;

use self::{
    compare::{Answer, Verdict},
    data::Loaded,
    queries::QUERIES,
    session::{Outcome, Session},
};
use crate::{
    Common,
    servers::{self, Dev, Server, login},
};

const SHARDS: usize = 3;

/// Flags of the TPC-H part.
#[derive(clap::Args)]
pub struct Flags {
    /// TPC-H's scale: at 1, 8.7 million rows.
    #[arg(long, value_name = "FACTOR", default_value_t = 1.0)]
    tpch_scale: f64,
    /// A query that takes longer is reported as such.
    #[arg(
        long,
        value_name = "SECONDS",
        default_value_t = 120,
        value_parser = clap::value_parser!(u64).range(1..=86_400)
    )]
    tpch_timeout: u64,
    /// Only these queries, as in "1,6,17".
    #[arg(long, value_name = "NUMBERS", value_delimiter = ',')]
    tpch_queries: Vec<usize>,
    /// A setting of our session, as in "automator67.force_tier=gather"; may be given several times.
    #[arg(long, value_name = "NAME=VALUE")]
    tpch_set: Vec<String>,
}

/// Everything that was found.
struct Run {
    scale: f64,
    timeout: Duration,
    rounds: usize,
    set: Vec<String>,
    plain_load: Loaded,
    ours_load: Loaded,
    differing_settings: Vec<String>,
    lines: Vec<Line>,
    proxy_peak_bytes: u64,
    own_peak_bytes: u64,
}

/// One query.
struct Line {
    name: &'static str,
    /// How it ran, or would have run.
    tier: String,
    /// What EXPLAIN said, if something else or nothing.
    explained: Option<String>,
    plain: Measured,
    ours: Measured,
    verdict: Verdict,
    /// Our processor time of the last run.
    cpu: Duration,
    /// What the last run added to the counters of bytes.
    bytes: BTreeMap<String, u64>,
}

/// What one side made of a query.
enum Measured {
    Finished { median: Duration, rows: usize },
    TimedOut,
    Failed(String),
}

/// Runs this part and keeps its report.
pub fn run(common: &Common, arguments: &Flags) -> Result<()> {
    check(arguments)?;
    let directory = tempfile::Builder::new().prefix("a67tpch").tempdir()?;
    let plain = servers::postgres(&common.bin, directory.path(), "plain")?;
    let dev = Dev::start(&common.binary, directory.path(), SHARDS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let run = runtime.block_on(measure(common, arguments, &plain, &dev))?;
    written::keep(&run, common)
}

fn check(arguments: &Flags) -> Result<()> {
    ensure!(
        (0.01..=100.0).contains(&arguments.tpch_scale)
            && !tables::supplies_twice(arguments.tpch_scale),
        "--tpch-scale must be between 0.01 and 100, and give no part a supplier twice"
    );
    ensure!(
        arguments
            .tpch_queries
            .iter()
            .all(|number| (1..=QUERIES.len()).contains(number)),
        "--tpch-queries must be between 1 and {}",
        QUERIES.len()
    );
    ensure!(
        arguments.tpch_set.iter().all(|pair| pair.contains('=')),
        "--tpch-set must be NAME=VALUE"
    );
    Ok(())
}

async fn measure(common: &Common, arguments: &Flags, plain: &Server, dev: &Dev) -> Result<Run> {
    let timeout = Duration::from_secs(arguments.tpch_timeout);
    let plain_login = login("127.0.0.1", plain.port);
    let our_login = login("127.0.0.1", dev.server.port);
    let differing_settings = differing_settings(&plain_login, &our_login, dev).await?;
    data::warm_up();
    eprintln!("loading TPC-H at scale {} into plain", arguments.tpch_scale);
    let servers = std::slice::from_ref(&plain_login);
    let plain_load = data::load(&plain_login, servers, arguments.tpch_scale, false).await?;
    eprintln!("loading the same into ours");
    let ours_load = data::load(&our_login, &dev.shards, arguments.tpch_scale, true).await?;

    let limit = format!("set statement_timeout = '{}s'", arguments.tpch_timeout);
    let mut ours_settings = vec![limit.clone()];
    ours_settings.extend(arguments.tpch_set.iter().filter_map(|pair| {
        let (name, value) = pair.split_once('=')?;
        Some(format!("set {name} = '{}'", value.replace('\'', "''")))
    }));
    let mut plain_session = Session::open(plain_login, vec![limit], timeout).await?;
    let mut our_session = Session::open(our_login, ours_settings, timeout).await?;
    let mut lines = Vec::new();
    for (number, (name, text)) in (1..).zip(QUERIES) {
        if !arguments.tpch_queries.is_empty() && !arguments.tpch_queries.contains(&number) {
            continue;
        }
        let query = Query { name, text };
        let both = (&mut plain_session, &mut our_session);
        let line = query.measure(both, dev, common.rounds).await?;
        eprintln!("{}", written::progress(&line));
        lines.push(line);
    }
    Ok(Run {
        scale: arguments.tpch_scale,
        timeout,
        rounds: common.rounds,
        set: arguments.tpch_set.clone(),
        plain_load,
        ours_load,
        differing_settings,
        lines,
        proxy_peak_bytes: dev.server.peak_resident_bytes()?,
        own_peak_bytes: servers::own_peak_resident_bytes()?,
    })
}

struct Query {
    name: &'static str,
    text: &'static str,
}

impl Query {
    /// One warm-up, then rounds, the sides in turn. A side that failed once is not asked again.
    async fn measure(
        &self,
        (plain, ours): (&mut Session, &mut Session),
        dev: &Dev,
        rounds: usize,
    ) -> Result<Line> {
        let explained = explained_tier(ours, self.text).await?;
        let mut tier = explained.clone();
        let mut plain_runs = Runs::default();
        let mut our_runs = Runs::default();
        let mut verdict = Verdict::Equal;
        let mut cpu = Duration::ZERO;
        let mut bytes = BTreeMap::new();
        for _ in 0..=rounds {
            if plain_runs.ended.is_none() {
                plain_runs.add(plain.answer(self.text).await?);
            }
            if our_runs.ended.is_none() {
                let counters = dev.byte_counters()?;
                let selects = dev.selects()?;
                let cpu_before = dev.server.cpu_microseconds()?;
                our_runs.add(ours.answer(self.text).await?);
                cpu = Duration::from_micros(
                    dev.server.cpu_microseconds()?.saturating_sub(cpu_before),
                );
                tier = ran_tier(&selects, &dev.selects()?).unwrap_or(tier);
                bytes = dev.byte_counters()?;
                for (name, value) in &mut bytes {
                    *value -= counters.get(name).copied().unwrap_or_default().min(*value);
                }
            }
            if verdict == Verdict::Equal {
                verdict = compared(self.text, &our_runs, &plain_runs);
            }
        }
        Ok(Line {
            name: self.name,
            explained: (explained != tier).then_some(explained),
            tier,
            plain: plain_runs.end(),
            ours: our_runs.end(),
            verdict,
            cpu,
            bytes,
        })
    }
}

/// One side's runs of a query.
#[derive(Default)]
struct Runs {
    durations: Vec<Duration>,
    answer: Answer,
    /// Why there are no more runs.
    ended: Option<Measured>,
}

impl Runs {
    fn add(&mut self, outcome: Outcome) {
        match outcome {
            Outcome::Answered(answer, duration) => {
                self.answer = answer;
                self.durations.push(duration);
            }
            Outcome::TimedOut => self.ended = Some(Measured::TimedOut),
            Outcome::Failed(reason) => self.ended = Some(Measured::Failed(reason)),
        }
    }

    /// The median without the warm-up.
    fn end(mut self) -> Measured {
        if let Some(ended) = self.ended {
            return ended;
        }
        let counted = self.durations.get_mut(1..).unwrap_or_default();
        counted.sort_unstable();
        match counted.get(counted.len() / 2) {
            Some(median) => Measured::Finished {
                median: *median,
                rows: self.answer.rows.len(),
            },
            None => Measured::Failed("it never ran".to_owned()),
        }
    }
}

fn compared(text: &str, ours: &Runs, plain: &Runs) -> Verdict {
    if plain.ended.is_some() {
        return Verdict::Failed("the plain Postgres did not answer".to_owned());
    }
    if ours.ended.is_some() {
        return Verdict::Different("no answer".to_owned());
    }
    let verdict = ours.answer.compare(&plain.answer);
    if verdict == Verdict::OtherOrder && only_ties_differ(text, &ours.answer, &plain.answer) {
        return Verdict::Equal;
    }
    verdict
}

/// True if two answers with the same rows are in the same order by what the query orders by.
/// Postgres itself answers the rows of a tie in any order.
fn only_ties_differ(text: &str, ours: &Answer, plain: &Answer) -> bool {
    let mut indexes = Vec::new();
    for name in order_columns(text) {
        match plain.columns.iter().position(|column| column == name) {
            Some(index) => indexes.push(index),
            None => return false,
        }
    }
    let keys = |answer: &Answer| -> Vec<Vec<Option<String>>> {
        let key = |row: &Vec<Option<String>>| indexes.iter().map(|&at| row[at].clone()).collect();
        answer.rows.iter().map(key).collect()
    };
    keys(ours) == keys(plain)
}

/// The names in the last ORDER BY, which in these queries is that of the whole query.
fn order_columns(text: &str) -> Vec<&str> {
    let Some((_, order)) = text.rsplit_once("order by") else {
        return Vec::new();
    };
    let order = order.split([';', ')']).next().unwrap_or(order);
    let order = order.split("limit").next().unwrap_or(order);
    order
        .split(',')
        .filter_map(|item| item.split_whitespace().next())
        .collect()
}

/// How the proxy says it runs a query: the first word of its EXPLAIN.
async fn explained_tier(ours: &mut Session, text: &str) -> Result<String> {
    Ok(match ours.answer(&format!("explain {text}")).await? {
        Outcome::Answered(answer, _) => {
            let first = answer.rows.first().and_then(|row| row.first()).cloned();
            let plan = first.flatten().context("an EXPLAIN without a line")?;
            let word = plan.split(|letter: char| !letter.is_alphanumeric()).next();
            word.unwrap_or_default().to_lowercase()
        }
        Outcome::TimedOut | Outcome::Failed(_) => "unknown".to_owned(),
    })
}

/// The tier that counted one SELECT more; none if the query failed before it counted.
fn ran_tier(before: &BTreeMap<String, u64>, after: &BTreeMap<String, u64>) -> Option<String> {
    let more = |&(tier, count): &(&String, &u64)| before.get(tier).is_none_or(|old| old < count);
    let (tier, _) = after.iter().filter(|(_, count)| **count > 0).find(more)?;
    Some(tier.clone())
}

/// Settings that cannot change how fast a query is, or what it answers.
const PLACES: [&str; 13] = [
    "cluster_name",
    "config_file",
    "data_directory",
    "external_pid_file",
    "hba_file",
    "ident_file",
    "listen_addresses",
    "port",
    "unix_socket_directories",
    "application_name",
    // A socket of this machine has none.
    "tcp_keepalives_count",
    "tcp_keepalives_idle",
    "tcp_keepalives_interval",
];

/// What is set otherwise on a shard, or in a session of the proxy, than on the plain server.
async fn differing_settings(plain: &str, ours: &str, dev: &Dev) -> Result<Vec<String>> {
    let expected = settings(plain).await?;
    let mut differing = Vec::new();
    let shards = dev.shards.iter().zip(1..);
    let shards = shards.map(|(login, number)| (format!("shard{number}"), login.as_str()));
    for (whose, login) in shards.chain([("session of the proxy".to_owned(), ours)]) {
        for (name, value) in settings(login).await? {
            let plain = expected.get(&name).map_or("absent", String::as_str);
            if plain != value && !PLACES.contains(&name.as_str()) {
                differing.push(format!("{whose}: {name} is {value:?}, plain {plain:?}"));
            }
        }
    }
    Ok(differing)
}

async fn settings(login: &str) -> Result<BTreeMap<String, String>> {
    let client = servers::connect(login).await?;
    let text = "select name, setting from pg_catalog.pg_settings";
    let messages = client.simple_query(text).await?;
    let pair = |message: SimpleQueryMessage| match message {
        SimpleQueryMessage::Row(row) => {
            let value = |index| row.get(index).unwrap_or_default().to_owned();
            Some((value(0), value(1)))
        }
        _ => None,
    };
    Ok(messages.into_iter().filter_map(pair).collect())
}

#[cfg(test)]
mod tests;

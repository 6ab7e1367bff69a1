//! Small figures of statements over three shards: what an aggregate costs us, what planning costs,
//! and how much later than the slowest shard a merged order comes.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use tokio_postgres::{Client, SimpleQueryMessage};

use crate::{
    Common, report,
    servers::{Dev, connect, login},
};

const SHARDS: usize = 3;
/// Asked for.
const AGGREGATE_MICROSECONDS: f64 = 300.0;
const PLANNING_MICROSECONDS: f64 = 2000.0;
const MERGE_RATIO: f64 = 1.5;

const AGGREGATE: &str = "select count(*), sum(x), avg(x) from t";
const INDEXED: &str = "select x, id from t order by x limit 20";
const SORTED: &str = "select y, id from t order by y limit 20";

/// `x` has an index, `y` has none. The other tables are for planning only, so they are small.
const TABLES: [&str; 12] = [
    "create table t (id bigint primary key, x integer not null, y integer not null)",
    "select create_distributed_table('t', 'id', colocate_with => 'none')",
    "create table kind (id integer primary key, name text not null)",
    "select create_reference_table('kind')",
    "create table author (id bigint primary key, kind integer not null)",
    "select create_distributed_table('author', 'id', colocate_with => 'none')",
    "create table book (id bigint, author bigint, price numeric(10,2) not null, \
     primary key (author, id))",
    "select create_distributed_table('book', 'author', colocate_with => 'author')",
    "insert into kind select n, 'kind ' || n from generate_series(1, 5) n",
    "insert into author select n, n % 5 + 1 from generate_series(1, 100) n",
    "insert into book select n, n % 100 + 1, n * 0.25 from generate_series(1, 300) n",
    "create index on t (x)",
];

const ROWS: &str = "insert into t select n, (n * 7919::bigint) % 1000003, \
                    (n * 104729::bigint) % 1000003 from generate_series(1, 150000) n";

/// Runs this part and keeps its report.
pub fn run(common: &Common) -> Result<()> {
    let directory = tempfile::Builder::new().prefix("a67scatter").tempdir()?;
    let dev = Dev::start(&common.binary, directory.path(), SHARDS)?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    let lines = runtime.block_on(measure(common, &dev))?;
    let machine = report::machine(&common.bin, &[&common.binary]);
    let mut text = format!(
        "# Statements over {SHARDS} local shards\n\n{}\n\nMedians of {} alternating rounds of {} s. \
         CPU is the proxy's own processor time per statement.\n\n",
        machine.join(" · "),
        common.rounds,
        common.seconds
    );
    text.push_str("| what | figure | asked | |\n|---|---|---|---|\n");
    for line in lines {
        text.push_str(&line);
        text.push('\n');
    }
    report::keep_text(&common.directory, "scatter.md", &text)
}

async fn measure(common: &Common, dev: &Dev) -> Result<Vec<String>> {
    let ours = connect(&login("127.0.0.1", dev.server.port)).await?;
    let shards = try_join_all(dev.shards.iter().map(|shard| connect(shard))).await?;
    for statement in TABLES.into_iter().chain([ROWS]) {
        ours.batch_execute(statement).await.context(statement)?;
    }
    for shard in &shards {
        shard.batch_execute("vacuum (analyze)").await?;
        shard.batch_execute("checkpoint").await?;
    }
    let bench = Bench {
        dev,
        ours,
        shards,
        rounds: common.rounds,
        length: Duration::from_secs(u64::from(common.seconds)),
    };
    let mut lines = bench.aggregate().await?;
    lines.extend(bench.planning().await?);
    lines.extend(bench.merged("with an index", INDEXED).await?);
    lines.extend(bench.merged("sorted by the shards", SORTED).await?);
    Ok(lines)
}

struct Bench<'a> {
    dev: &'a Dev,
    ours: Client,
    /// Past the proxy.
    shards: Vec<Client>,
    rounds: usize,
    /// Of one measurement.
    length: Duration,
}

/// One statement, many times.
#[derive(Clone, Copy)]
struct Figure {
    p50: f64,
    cpu: f64,
    /// How many of 100 statements found their plan in the cache.
    cached: f64,
}

impl Bench<'_> {
    async fn aggregate(&self) -> Result<Vec<String>> {
        let mut figures = Vec::new();
        for _ in 0..self.rounds {
            figures.push(self.repeat(|_| AGGREGATE.to_owned()).await?);
        }
        let cpu = middle(&figures, |it| it.cpu);
        let p50 = middle(&figures, |it| it.p50);
        let hits = middle(&figures, |it| it.cached);
        let tier = self.tier(AGGREGATE).await?;
        Ok(vec![
            line(
                &format!("CPU of `{AGGREGATE}`, {hits:.0} % plans from the cache, {tier}"),
                &format!("{cpu:.0} µs"),
                Some((cpu, AGGREGATE_MICROSECONDS, "µs")),
            ),
            line("its p50", &format!("{p50:.0} µs"), None),
        ])
    }

    /// A text that was never seen before against one that was, in turn.
    async fn planning(&self) -> Result<Vec<String>> {
        let text = |alias: &str| {
            format!(
                "select kind.name, count(*), sum(book.price) as {alias} from author \
                 join book on book.author = author.id join kind on kind.id = author.kind \
                 group by kind.name order by kind.name"
            )
        };
        let (mut cached, mut planned) = (Vec::new(), Vec::new());
        for round in 0..self.rounds {
            cached.push(self.repeat(|_| text("total")).await?);
            let unseen = |number| text(&format!("total_{round}_{number}"));
            planned.push(self.repeat(unseen).await?);
        }
        let more = |value: fn(&Figure) -> f64| middle(&planned, value) - middle(&cached, value);
        let (cpu, p50) = (more(|it| it.cpu), more(|it| it.p50));
        let all = middle(&cached, |it| it.cpu);
        let (difference, hits) = (-more(|it| it.cached), middle(&cached, |it| it.cached));
        let tier = self.tier(&text("total")).await?;
        // Without a cached plan on one side and none on the other, the difference says nothing.
        let compares = difference > 90.0;
        let asked = compares.then_some((cpu, PLANNING_MICROSECONDS, "µs"));
        Ok(vec![
            line(
                &format!("CPU of planning an aggregate of 3 tables, {tier}"),
                &match compares {
                    true => format!("{cpu:.0} µs"),
                    false => "not measured: such a plan is not cached".to_owned(),
                },
                asked,
            ),
            line(
                "what its p50 is longer than with a cached plan",
                &format!("{p50:.0} µs"),
                None,
            ),
            line(
                &format!("its CPU when asked again, {hits:.0} % plans from the cache"),
                &format!("{all:.0} µs"),
                None,
            ),
        ])
    }

    /// Through the proxy, and each shard directly, in turn; also all shards at once, which on a
    /// machine with fewer processors than shards takes longer than the slowest by itself.
    async fn merged(&self, how: &str, text: &str) -> Result<Vec<String>> {
        self.check_merged(text).await?;
        let mut through = Vec::new();
        let mut direct: Vec<Vec<f64>> = vec![Vec::new(); self.shards.len()];
        let mut at_once = Vec::new();
        for _ in 0..self.rounds {
            through.push(self.repeat(|_| text.to_owned()).await?);
            for (shard, times) in self.shards.iter().zip(&mut direct) {
                times.push(self.p50(std::slice::from_ref(shard), text).await?);
            }
            at_once.push(self.p50(&self.shards, text).await?);
        }
        let p50 = middle(&through, |it| it.p50);
        let cpu = middle(&through, |it| it.cpu);
        let slowest = direct
            .iter_mut()
            .map(|times| median(times))
            .fold(0.0, f64::max);
        let at_once = median(&mut at_once);
        let tier = self.tier(text).await?;
        Ok(vec![
            line(
                &format!("p50 of `{text}`, {how}, {tier}"),
                &format!(
                    "{p50:.0} µs, slowest shard {slowest:.0} µs, {:.2} x",
                    p50 / slowest
                ),
                Some((p50 / slowest, MERGE_RATIO, "x")),
            ),
            line(
                "the same beside all shards asked at once",
                &format!("{at_once:.0} µs, {:.2} x", p50 / at_once),
                None,
            ),
            line("its CPU", &format!("{cpu:.0} µs"), None),
        ])
    }

    /// The merged rows must be the first of all shards' rows.
    async fn check_merged(&self, text: &str) -> Result<()> {
        let mut expected = Vec::new();
        for shard in &self.shards {
            expected.extend(keys(&shard.simple_query(text).await?)?);
        }
        expected.sort_unstable();
        expected.truncate(20);
        let found = keys(&self.ours.simple_query(text).await?)?;
        if found != expected {
            bail!("{text}: {found:?}, expected {expected:?}");
        }
        Ok(())
    }

    /// How the proxy runs it: the first word of its EXPLAIN.
    async fn tier(&self, text: &str) -> Result<String> {
        let Ok(messages) = self.ours.simple_query(&format!("explain {text}")).await else {
            return Ok("not explained".to_owned());
        };
        let first = messages.iter().find_map(|message| match message {
            SimpleQueryMessage::Row(row) => row.get(0),
            _ => None,
        });
        let word =
            first.and_then(|plan| plan.split(|letter: char| !letter.is_alphanumeric()).next());
        Ok(word.unwrap_or_default().to_lowercase())
    }

    /// Statements through the proxy for the length of a measurement.
    async fn repeat(&self, text: impl Fn(usize) -> String) -> Result<Figure> {
        for _ in 0..3 {
            self.ours.simple_query(&text(0)).await?;
        }
        let mut times = Vec::new();
        let counters = self.dev.counters()?;
        let started = Instant::now();
        let cpu = self.dev.server.cpu_microseconds()?;
        while started.elapsed() < self.length || times.is_empty() {
            let text = text(times.len() + 1);
            let asked = Instant::now();
            self.ours.simple_query(&text).await?;
            times.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        let cpu = self.dev.server.cpu_microseconds()? - cpu;
        let now = self.dev.counters()?;
        let added = |name: &str| {
            let value = |counters: &BTreeMap<String, u64>| counters.get(name).copied();
            value(&now).unwrap_or_default() - value(&counters).unwrap_or_default()
        };
        let hits = added("plan_cache_hits") as f64;
        let plans = hits + added("plan_cache_misses") as f64;
        Ok(Figure {
            cached: 100.0 * hits / plans.max(1.0),
            cpu: cpu as f64 / times.len() as f64,
            p50: median(&mut times),
        })
    }

    /// The same statement directly on shards, all of them at once; a third of the time is enough.
    async fn p50(&self, shards: &[Client], text: &str) -> Result<f64> {
        let mut times = Vec::new();
        let started = Instant::now();
        while started.elapsed() < self.length / 3 || times.is_empty() {
            let asked = Instant::now();
            try_join_all(shards.iter().map(|shard| shard.simple_query(text))).await?;
            times.push(asked.elapsed().as_secs_f64() * 1e6);
        }
        Ok(median(&mut times))
    }
}

fn keys(messages: &[SimpleQueryMessage]) -> Result<Vec<i64>> {
    let mut keys = Vec::new();
    for message in messages {
        if let SimpleQueryMessage::Row(row) = message {
            keys.push(row.get(0).context("NULL")?.parse()?);
        }
    }
    Ok(keys)
}

fn line(what: &str, figure: &str, asked: Option<(f64, f64, &str)>) -> String {
    let (asked, met) = match asked {
        Some((value, limit, unit)) => {
            let met = if value <= limit { "met" } else { "not met" };
            (format!("≤ {limit} {unit}"), met)
        }
        None => (String::new(), ""),
    };
    let line = format!("| {what} | {figure} | {asked} | {met} |");
    eprintln!("{line}");
    line
}

fn middle(figures: &[Figure], value: fn(&Figure) -> f64) -> f64 {
    median(&mut figures.iter().map(value).collect::<Vec<_>>())
}

fn median(values: &mut [f64]) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or_default()
}

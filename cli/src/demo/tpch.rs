//! `automator67 demo tpch`: the TPC-H tables, loaded by COPY, and the 22 queries with the
//! specification's validation parameters. With `--compare`, a plain Postgres database gets the
//! same rows and must give the same answers, to the last digit.

mod compare;
mod load;
mod queries;
mod report;
mod tables;

use std::{
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use indicatif::{ProgressBar, ProgressStyle};
use tokio_postgres::{Client, SimpleQueryMessage};

use self::{
    compare::{Answer, Verdict},
    load::Loaded,
    queries::QUERIES,
    report::{Compared, Line, Report},
};
use crate::client::{self, Target};

/// 86,805 rows; the generator's arithmetic fails below that.
const SCALE_MIN: f64 = 0.01;
/// 870 million rows: what one program can load in a day.
const SCALE_MAX: f64 = 100.0;
const COMPARES_ITSELF: &str =
    "--compare names a shard or a proxy, it must be a plain Postgres database";

/// Flags of `automator67 demo tpch`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many rows: at 1, six million line items in a gigabyte.
    #[arg(long, value_name = "FACTOR", default_value = "0.1", value_parser = scale)]
    scale: f64,
    /// A plain Postgres database that gets the same rows and must give the same answers. It must
    /// sort text as the shards do.
    #[arg(long, value_name = "URL")]
    compare: Option<String>,
    /// Leave the schema "tpch" there at the end.
    #[arg(long)]
    keep: bool,
    /// Drop a schema "tpch" that is there already.
    #[arg(long)]
    replace: bool,
    #[command(flatten)]
    target: Target,
}

fn scale(text: &str) -> Result<f64> {
    let scale: f64 = text.parse()?;
    ensure!(
        (SCALE_MIN..=SCALE_MAX).contains(&scale),
        "it must be between {SCALE_MIN} and {SCALE_MAX}"
    );
    ensure!(
        !tables::supplies_twice(scale),
        "with that many suppliers, TPC-H has one twice for a part, against the primary key"
    );
    Ok(scale)
}

/// What kind of database takes part.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Proxy,
    Plain,
}

/// A database that takes part.
struct Database {
    kind: Kind,
    url: String,
    client: Client,
}

/// Runs `automator67 demo tpch`. Fails if a query did or an answer differs.
pub async fn run(arguments: &Arguments, json: bool) -> Result<ExitCode> {
    let proxy = Database::open(Kind::Proxy, arguments.target.url()?).await?;
    let plain = match &arguments.compare {
        Some(url) => Some(Database::open(Kind::Plain, url.clone()).await?),
        None => None,
    };
    let databases = || std::iter::once(&proxy).chain(&plain);
    for database in databases() {
        database.check_free(arguments.replace).await?;
    }
    if arguments.replace {
        for database in databases() {
            database.drop_schema().await?;
        }
    }
    let mut made = Vec::new();
    let done = async {
        for database in databases() {
            database.make_schema().await?;
            made.push(database);
        }
        load_and_query(arguments, &proxy, plain.as_ref(), json).await
    }
    .await;
    if !arguments.keep {
        for database in made {
            let dropped = database.drop_schema().await;
            // The first failure is the one to tell.
            if done.is_ok() {
                dropped?;
            }
        }
    }
    Ok(if done?.is_good() {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

async fn load_and_query(
    arguments: &Arguments,
    proxy: &Database,
    plain: Option<&Database>,
    json: bool,
) -> Result<Report> {
    let mut report = Report::new(plain.is_some());
    for database in std::iter::once(proxy).chain(plain) {
        let loaded = database.load(arguments.scale).await?;
        report::print_loaded(database.name(), &loaded, json);
    }
    let bar = ProgressBar::new(QUERIES.len() as u64);
    bar.set_style(ProgressStyle::with_template(
        "{msg} {wide_bar} {pos} of {len}",
    )?);
    for (name, text) in QUERIES {
        bar.set_message(name);
        let line = query(name, text, proxy, plain).await;
        if json {
            println!("{}", line.to_json());
        }
        report.add(line);
        bar.inc(1);
    }
    bar.finish_and_clear();
    report.print_end(json);
    Ok(report)
}

/// Runs one query everywhere.
async fn query(
    name: &'static str,
    text: &'static str,
    proxy: &Database,
    plain: Option<&Database>,
) -> Line {
    let tier = proxy.tier(text).await;
    let (answer, duration) = proxy.answer(text).await;
    let mut compared = None;
    if let Some(plain) = plain {
        let (expected, duration) = plain.answer(text).await;
        let verdict = match (&answer, expected) {
            (_, Err(error)) => Verdict::Failed(describe(error)),
            (Ok(answer), Ok(expected)) => answer.compare(&expected),
            (Err(_), Ok(_)) => Verdict::Different("the query failed".to_owned()),
        };
        compared = Some(Compared { verdict, duration });
    }
    Line {
        name,
        tier,
        rows: answer.map(|answer| answer.rows.len()).map_err(describe),
        duration,
        compared,
    }
}

fn describe(error: tokio_postgres::Error) -> String {
    client::describe(&error.into())
}

impl Database {
    async fn open(kind: Kind, url: String) -> Result<Database> {
        let client = client::connect(&url).await;
        let client = client.with_context(|| format!("{} cannot be used", kind.name()))?;
        Ok(Database { kind, url, client })
    }

    fn name(&self) -> &'static str {
        self.kind.name()
    }

    /// Refuses what would drop or mix somebody's tables, and a comparison of a database with itself.
    async fn check_free(&self, replace: bool) -> Result<()> {
        if self.kind == Kind::Plain {
            let shard = "select 1 from pg_catalog.pg_namespace where nspname = 'automator67'";
            let found = self.client.query_opt(shard, &[]).await?;
            ensure!(found.is_none(), COMPARES_ITSELF);
        }
        if self.has_schema().await? && !replace {
            bail!(
                "there is a schema \"tpch\" already in {}\ndrop it with --replace",
                self.name()
            );
        }
        Ok(())
    }

    async fn make_schema(&self) -> Result<()> {
        // It was not there a moment ago: the proxy made it.
        ensure!(
            self.kind == Kind::Proxy || !self.has_schema().await?,
            COMPARES_ITSELF
        );
        let made = self.client.batch_execute("create schema tpch").await;
        made.with_context(|| format!("could not make the schema \"tpch\" in {}", self.name()))?;
        self.client
            .batch_execute("set search_path to tpch")
            .await
            .context("could not set search_path")
    }

    async fn has_schema(&self) -> Result<bool> {
        let text = "select 1 from pg_catalog.pg_namespace where nspname = 'tpch'";
        Ok(self.client.query_opt(text, &[]).await?.is_some())
    }

    async fn drop_schema(&self) -> Result<()> {
        let dropped = self
            .client
            .batch_execute("drop schema if exists tpch cascade")
            .await;
        dropped.with_context(|| format!("could not drop the schema \"tpch\" of {}", self.name()))
    }

    async fn load(&self, scale: f64) -> Result<Loaded> {
        let failed = || format!("could not load TPC-H into {}", self.name());
        for table in &tables::TABLES {
            let mut statements = vec![table.definition.to_owned()];
            if self.kind == Kind::Proxy {
                statements.push(format!("select {}", table.placement));
            }
            for statement in statements {
                self.client
                    .batch_execute(&statement)
                    .await
                    .with_context(failed)?;
            }
        }
        let loaded = load::load(&self.url, scale).await.with_context(failed)?;
        let names = tables::TABLES.map(|table| table.name).join(", ");
        let analyze = self.client.batch_execute(&format!("analyze {names}")).await;
        analyze.with_context(failed)?;
        Ok(loaded)
    }

    /// The query's rows, and how long they took to come.
    async fn answer(&self, text: &str) -> (Result<Answer, tokio_postgres::Error>, Duration) {
        let started = Instant::now();
        let messages = self.client.simple_query(text).await;
        let duration = started.elapsed();
        (messages.map(Answer::new), duration)
    }

    /// How the proxy runs a query: the first word of its EXPLAIN. What it cannot explain has none.
    async fn tier(&self, text: &str) -> Option<String> {
        let messages = self.client.simple_query(&format!("explain {text}")).await;
        let plan = messages
            .ok()?
            .into_iter()
            .find_map(|message| match message {
                SimpleQueryMessage::Row(row) => row.get(0).map(str::to_owned),
                _ => None,
            })?;
        plan.split_whitespace().next().map(str::to_lowercase)
    }
}

impl Kind {
    fn name(self) -> &'static str {
        match self {
            Kind::Proxy => "the proxy",
            Kind::Plain => "the plain Postgres",
        }
    }
}

#[cfg(test)]
mod tests;

//! Measures the proxy beside plain Postgres and PgBouncer on this machine, in alternating rounds,
//! and keeps the run under `bench/runs/<date>/`.

mod abuse;
mod load;
mod report;
mod scatter;
mod servers;
mod tpch;
mod transactions;

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use clap::{Parser, ValueEnum};
use load::{Figure, Load, Script, Target, median};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use report::{Report, Row};
use servers::{PASSWORD, Server, USER, psql};

/// What can be measured by itself.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Part {
    /// Statements for one shard, COPY and idle clients, beside plain Postgres and PgBouncer.
    Peers,
    /// The 22 queries of TPC-H on three shards, beside plain Postgres.
    Tpch,
    /// Small figures of statements over three shards.
    Scatter,
    /// Transactions, consistent reads and large INSERTs over three shards, beside plain Postgres.
    Transactions,
    /// What one client's hostile load does to the others; only if it is asked for.
    Abuse,
}

/// Side by side with plain Postgres and PgBouncer.
#[derive(Parser)]
struct Arguments {
    /// Length of one measurement.
    #[arg(long, default_value_t = 5)]
    seconds: u32,
    /// Measurements of each kind; the median counts.
    #[arg(long, default_value_t = 3)]
    rounds: usize,
    /// pgbench's scale.
    #[arg(long, default_value_t = 10)]
    scale: u32,
    /// Idle connections for the memory figure.
    #[arg(long, default_value_t = 5000)]
    idle_clients: usize,
    /// The release binary.
    #[arg(long)]
    binary: PathBuf,
    /// Where runs are kept.
    #[arg(long, default_value = "bench/runs")]
    runs: PathBuf,
    /// The name of this run's folder.
    #[arg(long)]
    name: String,
    /// Measure only this; may be given several times.
    #[arg(long, value_enum)]
    only: Vec<Part>,
    /// An older release binary, for the comparisons that ask for one.
    #[arg(long)]
    before: Option<PathBuf>,
    #[command(flatten)]
    tpch: tpch::Flags,
    #[command(flatten)]
    abuse: abuse::Flags,
}

impl Arguments {
    fn includes(&self, part: Part) -> bool {
        self.only.is_empty() || self.only.contains(&part)
    }
}

/// Everything that is measured.
struct Field {
    bin: PathBuf,
    directory: tempfile::TempDir,
    clusters: Vec<Server>,
    pgbouncer: Server,
    one: Server,
    three: Server,
    arguments: Arguments,
}

fn main() -> Result<()> {
    let arguments = Arguments::parse();
    raise_open_files()?;
    let directory = arguments.runs.join(&arguments.name);
    let common = Common {
        bin: servers::postgres_bin()?,
        binary: arguments.binary.clone(),
        directory,
        rounds: arguments.rounds.max(1),
        seconds: arguments.seconds,
    };
    if arguments.includes(Part::Tpch) {
        tpch::run(&common, &arguments.tpch)?;
    }
    if arguments.includes(Part::Scatter) {
        scatter::run(&common)?;
    }
    if arguments.includes(Part::Transactions) {
        transactions::run(&common, arguments.before.as_deref())?;
    }
    if arguments.only.contains(&Part::Abuse) {
        abuse::run(&common, &arguments.abuse, arguments.before.as_deref())?;
    }
    if arguments.includes(Part::Peers) {
        peers(arguments, &common.directory)?;
    }
    Ok(())
}

/// What every part needs.
pub struct Common {
    /// Where Postgres' programs are.
    pub bin: PathBuf,
    /// The program under measurement.
    pub binary: PathBuf,
    /// Where the run is kept.
    pub directory: PathBuf,
    /// Measurements of each kind; the median counts.
    pub rounds: usize,
    /// Length of one measurement.
    pub seconds: u32,
}

fn peers(arguments: Arguments, directory: &Path) -> Result<()> {
    let mut report = Report::new();
    let field = set_up(arguments)?;
    one_shard(&field, &mut report)?;
    added_latency(&field, &mut report)?;
    three_shards(&field, &mut report)?;
    idle_clients(&field, &mut report)?;
    copy_in(&field, &mut report)?;
    report.keep(directory, &field.bin)
}

fn raise_open_files() -> Result<()> {
    let (_, hard) = getrlimit(Resource::RLIMIT_NOFILE)?;
    setrlimit(Resource::RLIMIT_NOFILE, hard, hard)?;
    Ok(())
}

fn set_up(arguments: Arguments) -> Result<Field> {
    let bin = servers::postgres_bin()?;
    let directory = tempfile::Builder::new().prefix("a67bench").tempdir()?;
    let mut clusters = Vec::new();
    // The first serves one-shard runs, the others are the shards of the distributed runs.
    for number in 0..4 {
        clusters.push(servers::postgres(
            &bin,
            directory.path(),
            &format!("cluster{number}"),
        )?);
    }
    initialise(&bin, clusters[0].port, arguments.scale)?;
    let pgbouncer = servers::pgbouncer(directory.path(), &clusters[0])?;
    let one = servers::automator67(&arguments.binary, directory.path(), USER, &[&clusters[0]])?;
    let shards: Vec<&Server> = clusters[1..].iter().collect();
    let three = servers::automator67(&arguments.binary, directory.path(), USER, &shards)?;
    distribute(&bin, three.port, arguments.scale)?;
    Ok(Field {
        bin,
        directory,
        clusters,
        pgbouncer,
        one,
        three,
        arguments,
    })
}

fn initialise(bin: &Path, port: u16, scale: u32) -> Result<()> {
    let output = Command::new(bin.join("pgbench"))
        .env("PGPASSWORD", PASSWORD)
        .args([
            "-i",
            "-q",
            "-s",
            &scale.to_string(),
            "-h",
            "127.0.0.1",
            "-U",
            USER,
        ])
        .args(["-p", &port.to_string(), USER])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("pgbench -i: {}", String::from_utf8_lossy(&output.stderr));
    }
    psql(
        bin,
        port,
        USER,
        "create table events (id bigint primary key, v text not null)",
    )?;
    Ok(())
}

fn distribute(bin: &Path, port: u16, scale: u32) -> Result<()> {
    initialise(bin, port, scale)?;
    psql(
        bin,
        port,
        USER,
        "select create_distributed_table('pgbench_accounts', 'aid')",
    )?;
    psql(
        bin,
        port,
        USER,
        "select create_distributed_table('events', 'id')",
    )?;
    Ok(())
}

/// One load against several servers, in turn, `rounds` times.
fn alternate(
    field: &Field,
    load: &Load,
    targets: &[(&str, u16, &Server)],
    log: bool,
) -> Result<Vec<(String, Figure)>> {
    let mut figures: Vec<Vec<Figure>> = vec![Vec::new(); targets.len()];
    let prefix = field.directory.path().join("latency");
    for _ in 0..field.arguments.rounds {
        for (target, kept) in targets.iter().zip(&mut figures) {
            let (_, port, measured) = target;
            kept.push(load::run(
                &field.bin,
                load,
                &Target::new(*port, measured),
                log.then_some(&*prefix),
            )?);
        }
    }
    Ok(targets
        .iter()
        .zip(&figures)
        .map(|((name, _, _), figures)| ((*name).to_owned(), median(figures)))
        .collect())
}

fn one_shard_targets(field: &Field) -> [(&'static str, u16, &Server); 3] {
    let plain = &field.clusters[0];
    [
        ("postgres", plain.port, plain),
        ("pgbouncer", field.pgbouncer.port, &field.pgbouncer),
        ("automator67", field.one.port, &field.one),
    ]
}

fn one_shard(field: &Field, report: &mut Report) -> Result<()> {
    for (script, name) in [
        (Script::Select, "select"),
        (Script::SimpleUpdate, "simple-update"),
    ] {
        for mode in ["simple", "extended", "prepared"] {
            for clients in [1, 16, 64] {
                let seconds = field.arguments.seconds;
                let load = Load {
                    script: script.clone(),
                    mode,
                    clients,
                    seconds,
                };
                let mut targets = one_shard_targets(field).to_vec();
                // PgBouncer before 1.21 does not keep named statements in transaction mode.
                if mode == "prepared" {
                    targets.retain(|(name, _, _)| *name != "pgbouncer");
                }
                let figures = alternate(field, &load, &targets, false)?;
                report.add(&format!("one shard, {name}"), mode, clients, figures);
            }
        }
    }
    Ok(())
}

fn added_latency(field: &Field, report: &mut Report) -> Result<()> {
    let seconds = field.arguments.seconds;
    let load = Load {
        script: Script::Select,
        mode: "simple",
        clients: 1,
        seconds,
    };
    let figures = alternate(field, &load, &one_shard_targets(field), true)?;
    let direct = figures[0].1.p50_microseconds;
    for (name, figure) in &figures[1..] {
        report.note(format!(
            "added p50 at one client: {name} {:.0} µs over {direct:.0} µs",
            figure.p50_microseconds - direct
        ));
    }
    Ok(())
}

fn three_shards(field: &Field, report: &mut Report) -> Result<()> {
    let accounts = 100_000 * field.arguments.scale;
    let events: Vec<String> = (1..=10).map(|row| format!("(:id{row}, 'event')")).collect();
    let draws: String = (1..=10)
        .map(|row| format!("\\set id{row} random(1, 4000000000000000)\n"))
        .collect();
    let scripts = [
        (
            "point select",
            format!(
                "\\set aid random(1, {accounts})\nSELECT abalance FROM pgbench_accounts WHERE aid = :aid;\n"
            ),
        ),
        (
            "point update",
            format!(
                "\\set aid random(1, {accounts})\nUPDATE pgbench_accounts SET abalance = abalance + 1 WHERE aid = :aid;\n"
            ),
        ),
        (
            "insert of 10 rows",
            format!("{draws}INSERT INTO events VALUES {};\n", events.join(", ")),
        ),
    ];
    let plain = &field.clusters[0];
    let targets = [
        ("postgres", plain.port, plain),
        ("automator67, one shard", field.one.port, &field.one),
        ("automator67, three shards", field.three.port, &field.three),
    ];
    for (name, text) in scripts {
        let path = field
            .directory
            .path()
            .join(format!("{}.sql", name.replace(' ', "-")));
        fs::write(&path, text)?;
        for mode in ["simple", "prepared"] {
            let seconds = field.arguments.seconds;
            let load = Load {
                script: Script::File(path.clone()),
                mode,
                clients: 16,
                seconds,
            };
            let figures = alternate(field, &load, &targets, false)?;
            report.add(&format!("three shards, {name}"), mode, 16, figures);
        }
    }
    Ok(())
}

fn idle_clients(field: &Field, report: &mut Report) -> Result<()> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()?;
    for (name, server) in [("pgbouncer", &field.pgbouncer), ("automator67", &field.one)] {
        let count = field.arguments.idle_clients;
        let port = server.port;
        let before = server.resident_bytes()?;
        let after = runtime.block_on(async {
            let config =
                format!("host=127.0.0.1 port={port} user={USER} password={PASSWORD} dbname={USER}");
            let mut clients = Vec::with_capacity(count);
            for _ in 0..count {
                let connected = tokio_postgres::connect(&config, tokio_postgres::NoTls).await;
                let (client, connection) = connected.context("an idle client")?;
                tokio::spawn(connection);
                clients.push(client);
            }
            // Every one has been of use once.
            for client in &clients {
                client.simple_query("select 1").await?;
            }
            server.resident_bytes()
        })?;
        let each = (after.saturating_sub(before)) / count as u64;
        report.note(format!(
            "memory of {count} idle clients: {name} {each} bytes each"
        ));
    }
    Ok(())
}

fn copy_in(field: &Field, report: &mut Report) -> Result<()> {
    let path = field.directory.path().join("copy.tsv");
    let mut text = String::new();
    for id in 1..=2_000_000u64 {
        text.push_str(&format!(
            "{id}\tevent number {id} of the file that is copied in\n"
        ));
    }
    fs::write(&path, text)?;
    let targets = [
        ("postgres", field.clusters[0].port),
        ("automator67, one shard", field.one.port),
        ("automator67, three shards", field.three.port),
    ];
    let mut times: Vec<Vec<Duration>> = vec![Vec::new(); targets.len()];
    for _ in 0..field.arguments.rounds {
        for ((_, port), times) in targets.iter().zip(&mut times) {
            psql(&field.bin, *port, USER, "truncate events")?;
            let start = Instant::now();
            let copy = format!("\\copy events from '{}'", path.display());
            psql(&field.bin, *port, USER, &copy)?;
            times.push(start.elapsed());
        }
    }
    let middle = |times: &mut Vec<Duration>| {
        times.sort();
        times[times.len() / 2].as_secs_f64()
    };
    let plain = middle(&mut times[0]);
    for ((name, _), times) in targets.iter().zip(&mut times) {
        let seconds = middle(times);
        report.note(format!(
            "COPY in of 2,000,000 rows: {name} {seconds:.2} s, {:.2} x plain",
            seconds / plain
        ));
    }
    let rows = psql(
        &field.bin,
        field.three.port,
        USER,
        "select count(*) from events",
    )?;
    if rows.trim() != "2000000" {
        bail!("COPY over three shards kept {} rows", rows.trim());
    }
    Ok(())
}

impl Row {
    /// Ratio of this row's figures to a named server's.
    pub fn ratio(&self, name: &str, value: fn(&Figure) -> f64) -> Option<f64> {
        let find = |wanted: &str| {
            self.figures
                .iter()
                .find(|(known, _)| known == wanted)
                .map(|(_, figure)| value(figure))
        };
        let ours = self.figures.last().map(|(_, figure)| value(figure))?;
        find(name)
            .filter(|theirs| *theirs > 0.0)
            .map(|theirs| ours / theirs)
    }
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory;

    use super::*;

    #[test]
    fn arguments_make_sense() {
        Arguments::command().debug_assert();
    }
}

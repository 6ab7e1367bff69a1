//! pgbench as the load, measured from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Child, Command, Output, Stdio},
};

use anyhow::{Context, Result, bail};

use crate::servers::{PASSWORD, Server, USER};

/// What pgbench runs.
#[derive(Debug, Clone)]
pub enum Script {
    /// `-S`
    Select,
    /// `-N`
    SimpleUpdate,
    /// `-f FILE`
    File(PathBuf),
    /// Several of them, drawn at random.
    Files(Vec<PathBuf>),
}

/// One run of pgbench.
#[derive(Debug, Clone)]
pub struct Load {
    /// What.
    pub script: Script,
    /// `simple`, `extended` or `prepared`.
    pub mode: &'static str,
    /// Connections.
    pub clients: u32,
    /// Length.
    pub seconds: u32,
}

/// What it measured.
#[derive(Debug, Clone, Copy, Default, PartialEq)]
pub struct Figure {
    /// Transactions per second.
    pub tps: f64,
    /// Processor time of the measured server per transaction.
    pub cpu_microseconds: f64,
    /// Median latency in microseconds, where asked for.
    pub p50_microseconds: f64,
    /// What 99 of 100 transactions do not exceed, where asked for.
    pub p99_microseconds: f64,
}

/// Where a load goes.
#[derive(Clone, Copy)]
pub struct Target<'a> {
    /// TCP port on 127.0.0.1.
    pub port: u16,
    /// The database.
    pub database: &'a str,
    /// Settings of the sessions, as libpq takes them.
    pub options: &'a str,
    /// Whose processor time counts.
    pub measured: &'a Server,
}

impl<'a> Target<'a> {
    /// The usual database, no settings.
    pub fn new(port: u16, measured: &'a Server) -> Self {
        Target {
            port,
            database: USER,
            options: "",
            measured,
        }
    }
}

/// Runs a load against a server. Latencies are logged in files that begin with `log`.
pub fn run(bin: &Path, load: &Load, target: &Target<'_>, log: Option<&Path>) -> Result<Figure> {
    let mut command = pgbench(bin, load, target);
    if let Some(prefix) = log {
        command
            .arg("-l")
            .arg(format!("--log-prefix={}", prefix.display()));
    }
    command.arg(target.database);
    let before = target.measured.cpu_microseconds()?;
    let output = command.output()?;
    let cpu = target.measured.cpu_microseconds()? - before;
    let (transactions, tps) = counted(&output)?;
    let (p50_microseconds, p99_microseconds) = log.map(latencies).transpose()?.unwrap_or_default();
    Ok(Figure {
        tps,
        cpu_microseconds: cpu as f64 / transactions,
        p50_microseconds,
        p99_microseconds,
    })
}

/// A load that runs beside another one.
pub struct Beside(Child);

impl Beside {
    /// Starts it; with `rate`, it keeps to that many transactions per second.
    pub fn start(bin: &Path, load: &Load, target: &Target<'_>, rate: Option<u32>) -> Result<Self> {
        let mut command = pgbench(bin, load, target);
        if let Some(rate) = rate {
            command.args(["-R", &rate.to_string()]);
        }
        command.arg(target.database);
        let child = command.stdout(Stdio::piped()).stderr(Stdio::piped());
        Ok(Beside(child.spawn()?))
    }

    /// Waits for its end. Transactions per second.
    pub fn finish(self) -> Result<f64> {
        Ok(counted(&self.0.wait_with_output()?)?.1)
    }
}

fn pgbench(bin: &Path, load: &Load, target: &Target<'_>) -> Command {
    let mut command = Command::new(bin.join("pgbench"));
    let options = format!("-c client_min_messages=error {}", target.options);
    command
        .env("PGPASSWORD", PASSWORD)
        .env("PGOPTIONS", options)
        .args(["-n", "-h", "127.0.0.1", "-U", USER])
        .args(["-p", &target.port.to_string()])
        .args(["-M", load.mode, "-c", &load.clients.to_string()])
        .args(["-j", if load.clients > 1 { "2" } else { "1" }])
        .args(["-T", &load.seconds.to_string()])
        .stdin(Stdio::null());
    match &load.script {
        Script::Select => {
            command.arg("-S");
        }
        Script::SimpleUpdate => {
            command.arg("-N");
        }
        Script::File(path) => {
            command.arg("-f").arg(path);
        }
        Script::Files(paths) => {
            for path in paths {
                command.arg("-f").arg(path);
            }
        }
    }
    command
}

/// Transactions, and how many of them per second.
fn counted(output: &Output) -> Result<(f64, f64)> {
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || errors.contains("aborted") {
        bail!("pgbench failed: {errors}");
    }
    let transactions = field(&text, "number of transactions actually processed: ")?;
    Ok((transactions, field(&text, "tps = ")?))
}

fn field(text: &str, name: &str) -> Result<f64> {
    let rest = text
        .split_once(name)
        .with_context(|| format!("no {name:?} in {text}"))?
        .1;
    let end = rest
        .find(|letter: char| !letter.is_ascii_digit() && letter != '.')
        .unwrap_or(rest.len());
    Ok(rest[..end].parse()?)
}

/// The median and the 99th percentile in pgbench's log files, which are removed.
fn latencies(prefix: &Path) -> Result<(f64, f64)> {
    let directory = prefix.parent().context("no directory")?;
    let name = prefix
        .file_name()
        .context("no name")?
        .to_string_lossy()
        .into_owned();
    let mut latencies: Vec<u64> = Vec::new();
    for entry in fs::read_dir(directory)?.flatten() {
        if !entry
            .file_name()
            .to_string_lossy()
            .starts_with(&format!("{name}."))
        {
            continue;
        }
        for line in fs::read_to_string(entry.path())?.lines() {
            latencies.extend(
                line.split(' ')
                    .nth(2)
                    .and_then(|time| time.parse::<u64>().ok()),
            );
        }
        fs::remove_file(entry.path())?;
    }
    latencies.sort_unstable();
    let at = |percent: usize| {
        let found = latencies.get(latencies.len() * percent / 100);
        found.context("pgbench logged nothing")
    };
    Ok((*at(50)? as f64, *at(99)? as f64))
}

/// The middle one of several figures, each column for itself.
pub fn median(figures: &[Figure]) -> Figure {
    let middle = |value: fn(&Figure) -> f64| {
        let mut values: Vec<f64> = figures.iter().map(value).collect();
        values.sort_by(f64::total_cmp);
        values.get(values.len() / 2).copied().unwrap_or_default()
    };
    Figure {
        tps: middle(|figure| figure.tps),
        cpu_microseconds: middle(|figure| figure.cpu_microseconds),
        p50_microseconds: middle(|figure| figure.p50_microseconds),
        p99_microseconds: middle(|figure| figure.p99_microseconds),
    }
}

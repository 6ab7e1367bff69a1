//! pgbench as the load, measured from outside.

use std::{
    fs,
    path::{Path, PathBuf},
    process::{Command, Stdio},
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
}

/// Runs a load against a server. `measured` is whose processor time counts.
pub fn run(
    bin: &Path,
    load: &Load,
    port: u16,
    measured: &Server,
    log: Option<&Path>,
) -> Result<Figure> {
    let mut command = Command::new(bin.join("pgbench"));
    command
        .env("PGPASSWORD", PASSWORD)
        .env("PGOPTIONS", "-c client_min_messages=error")
        .args(["-n", "-h", "127.0.0.1", "-U", USER, "-p", &port.to_string()])
        .args(["-M", load.mode, "-c", &load.clients.to_string()])
        .args([
            "-j",
            if load.clients > 1 { "2" } else { "1" },
            "-T",
            &load.seconds.to_string(),
        ])
        .stdin(Stdio::null());
    match &load.script {
        Script::Select => command.arg("-S"),
        Script::SimpleUpdate => command.arg("-N"),
        Script::File(path) => command.arg("-f").arg(path),
    };
    if let Some(prefix) = log {
        command
            .arg("-l")
            .arg(format!("--log-prefix={}", prefix.display()));
    }
    command.arg(USER);
    let before = measured.cpu_microseconds()?;
    let output = command.output()?;
    let cpu = measured.cpu_microseconds()? - before;
    let text = String::from_utf8_lossy(&output.stdout);
    let errors = String::from_utf8_lossy(&output.stderr);
    if !output.status.success() || errors.contains("aborted") {
        bail!("pgbench failed: {errors}");
    }
    let transactions: f64 = field(&text, "number of transactions actually processed: ")?;
    let tps = field(&text, "tps = ")?;
    let p50_microseconds = log.map(median_latency).transpose()?.unwrap_or_default();
    Ok(Figure {
        tps,
        cpu_microseconds: cpu as f64 / transactions,
        p50_microseconds,
    })
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

/// The median of the latencies in pgbench's log files, which are removed.
fn median_latency(prefix: &Path) -> Result<f64> {
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
    let middle = latencies
        .get(latencies.len() / 2)
        .context("pgbench logged nothing")?;
    Ok(*middle as f64)
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
    }
}

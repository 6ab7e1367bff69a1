//! The report of the TPC-H part: `tpch.md` for readers, `tpch.json` for programs.

use std::{fs, time::Duration};

use anyhow::Result;
use serde_json::{Value, json};

use super::{Line, Loaded, Measured, Run, SHARDS, Verdict};
use crate::{Common, report};

/// Asked of the totals: all equal, 18 without gather, as fast as plain, no query over twice.
const WITHOUT_GATHER: usize = 18;
const TOTAL_RATIO: f64 = 1.0;
const WORST_RATIO: f64 = 2.0;

/// Writes and shows the report.
pub fn keep(run: &Run, common: &Common) -> Result<()> {
    let machine = report::machine(&common.bin, &[&common.binary]);
    let text = markdown(run, &machine);
    report::keep_text(&common.directory, "tpch.md", &text)?;
    let path = common.directory.join("tpch.json");
    fs::write(path, serde_json::to_string_pretty(&json(run, &machine))?)?;
    Ok(())
}

/// One line for the terminal while the run goes on.
pub fn progress(line: &Line) -> String {
    format!(
        "{} {}: plain {}, ours {}, {}",
        line.name,
        line.tier,
        line.plain.text(),
        line.ours.text(),
        line.verdict_text()
    )
}

/// What the queries came to.
struct Totals {
    equal: usize,
    without_gather: usize,
    finished: usize,
    plain: Duration,
    ours: Duration,
    worst: Option<(f64, &'static str)>,
}

impl Totals {
    fn new(lines: &[Line]) -> Totals {
        let mut totals = Totals {
            equal: 0,
            without_gather: 0,
            finished: 0,
            plain: Duration::ZERO,
            ours: Duration::ZERO,
            worst: None,
        };
        for line in lines {
            totals.equal += usize::from(line.verdict == Verdict::Equal);
            let answered = line.ours.median().is_some();
            let cheap = line.tier != "gather" && line.tier != "unknown";
            totals.without_gather += usize::from(answered && cheap);
            let (Some(plain), Some(ours)) = (line.plain.median(), line.ours.median()) else {
                continue;
            };
            totals.finished += 1;
            totals.plain += plain;
            totals.ours += ours;
            let ratio = ours.as_secs_f64() / plain.as_secs_f64();
            if totals.worst.is_none_or(|(worst, _)| ratio > worst) {
                totals.worst = Some((ratio, line.name));
            }
        }
        totals
    }

    fn ratio(&self) -> Option<f64> {
        let plain = self.plain.as_secs_f64();
        (plain > 0.0).then(|| self.ours.as_secs_f64() / plain)
    }
}

fn markdown(run: &Run, machine: &[String]) -> String {
    let mut text = format!(
        "# TPC-H, scale {}, {SHARDS} local shards beside one plain Postgres\n\n{}\n\n",
        run.scale,
        machine.join(" · ")
    );
    text.push_str(&format!(
        "The same rows, indexes and settings on both. Each query ran on plain and on ours in turn, \
         once to warm up and {} more; the medians are below. Bytes are what one run added to the \
         counter of that name in `/metrics`, processor time is the proxy's own. Statement timeout: \
         {} s.\n\n",
        match run.rounds {
            1 => "1 time".to_owned(),
            rounds => format!("{rounds} times"),
        },
        run.timeout.as_secs()
    ));
    text.push_str(&table(&run.lines));
    text.push('\n');
    for line in totals(run) {
        text.push_str(&format!("- {line}\n"));
    }
    let failures: Vec<String> = run.lines.iter().flat_map(Line::failures).collect();
    if !failures.is_empty() {
        text.push_str("\nWhat went wrong:\n\n");
        for failure in failures {
            text.push_str(&format!("- {failure}\n"));
        }
    }
    text
}

fn table(lines: &[Line]) -> String {
    let mut counters: Vec<&String> = lines.iter().flat_map(|line| line.bytes.keys()).collect();
    counters.sort();
    counters.dedup();
    let mut text =
        "| query | tier | rows | plain ms | ours ms | ratio | equal | proxy CPU ms |".to_owned();
    for counter in &counters {
        text.push_str(&format!(" {} |", counter.replace('_', " ")));
    }
    text.push_str("\n|---|---|---|---|---|---|---|---|");
    text.push_str(&"---|".repeat(counters.len()));
    text.push('\n');
    for line in lines {
        text.push_str(&format!(
            "| {} | {} | {} | {} | {} | {} | {} | {:.0} |",
            line.name,
            line.tier,
            line.plain
                .rows()
                .or(line.ours.rows())
                .map_or("–".to_owned(), |rows| rows.to_string()),
            line.plain.text(),
            line.ours.text(),
            line.ratio()
                .map_or("–".to_owned(), |ratio| format!("{ratio:.2}")),
            line.verdict_text(),
            milliseconds(line.cpu)
        ));
        for counter in &counters {
            let value = line.bytes.get(*counter).copied().unwrap_or_default();
            text.push_str(&format!(" {value} |"));
        }
        text.push('\n');
    }
    text
}

fn totals(run: &Run) -> Vec<String> {
    let totals = Totals::new(&run.lines);
    let count = run.lines.len();
    let asked = |met: bool| if met { "met" } else { "not met" };
    let mut lines = vec![
        format!(
            "equal to the last digit: {} of {count} (asked: all, {})",
            totals.equal,
            asked(totals.equal == count)
        ),
        format!(
            "without gather: {} of {count} (asked: {WITHOUT_GATHER} of 22, {})",
            totals.without_gather,
            asked(totals.without_gather >= WITHOUT_GATHER)
        ),
    ];
    if let (Some(ratio), Some((worst, name))) = (totals.ratio(), totals.worst) {
        let all = totals.finished == count;
        lines.push(format!(
            "total of the {} queries that both finished: plain {:.0} ms, ours {:.0} ms, \
             {ratio:.2} x plain (asked of all {count}: {TOTAL_RATIO:.1}, {})",
            totals.finished,
            milliseconds(totals.plain),
            milliseconds(totals.ours),
            asked(all && ratio <= TOTAL_RATIO)
        ));
        lines.push(format!(
            "worst: {name}, {worst:.2} x plain (asked of all {count}: {WORST_RATIO:.1}, {})",
            asked(all && worst <= WORST_RATIO)
        ));
    }
    lines.push(format!("load of plain: {}", loaded(&run.plain_load)));
    lines.push(format!("load of ours: {}", loaded(&run.ours_load)));
    lines.push(format!(
        "most resident memory: the proxy {} MiB, the driver {} MiB (300 of them the \
         generator's text)",
        run.proxy_peak_bytes >> 20,
        run.own_peak_bytes >> 20
    ));
    if !run.set.is_empty() {
        lines.push(format!("set in our session: {}", run.set.join(", ")));
    }
    if run.differing_settings.is_empty() {
        lines.push("no setting differs from the plain server's".to_owned());
    }
    for setting in &run.differing_settings {
        lines.push(format!("another setting: {setting}"));
    }
    lines
}

fn loaded(load: &Loaded) -> String {
    format!(
        "{} rows, COPY {:.1} s, indexes {:.1} s, VACUUM ANALYZE {:.1} s",
        load.rows,
        load.copy.as_secs_f64(),
        load.index.as_secs_f64(),
        load.vacuum.as_secs_f64()
    )
}

fn json(run: &Run, machine: &[String]) -> Value {
    let load = |load: &Loaded| {
        json!({
            "rows": load.rows,
            "copy_milliseconds": milliseconds(load.copy),
            "index_milliseconds": milliseconds(load.index),
            "vacuum_milliseconds": milliseconds(load.vacuum),
        })
    };
    let side = |measured: &Measured| match measured {
        Measured::Finished { median, rows } => {
            json!({"milliseconds": milliseconds(*median), "rows": rows})
        }
        Measured::TimedOut => json!({"timed_out": true}),
        Measured::Failed(reason) => json!({"failed": reason}),
    };
    let lines: Vec<Value> = run
        .lines
        .iter()
        .map(|line| {
            json!({
                "query": line.name,
                "tier": line.tier,
                "explained": line.explained,
                "plain": side(&line.plain),
                "ours": side(&line.ours),
                "ratio": line.ratio(),
                "equal": line.verdict == Verdict::Equal,
                "cpu_milliseconds": milliseconds(line.cpu),
                "bytes": line.bytes,
            })
        })
        .collect();
    json!({
        "machine": machine,
        "scale": run.scale,
        "rounds": run.rounds,
        "timeout_seconds": run.timeout.as_secs(),
        "set": run.set,
        "differing_settings": run.differing_settings,
        "load": {"plain": load(&run.plain_load), "ours": load(&run.ours_load)},
        "queries": lines,
        "peak_resident_bytes": run.proxy_peak_bytes,
    })
}

impl Line {
    fn ratio(&self) -> Option<f64> {
        let plain = self.plain.median()?.as_secs_f64();
        let ours = self.ours.median()?.as_secs_f64();
        (plain > 0.0).then(|| ours / plain)
    }

    fn verdict_text(&self) -> &'static str {
        match &self.verdict {
            Verdict::Equal => "yes",
            Verdict::OtherOrder => "other order",
            Verdict::Different(_) if self.ours.median().is_none() => "no answer",
            Verdict::Different(_) => "**NO**",
            Verdict::Failed(_) => "unknown",
        }
    }

    fn failures(&self) -> Vec<String> {
        let side = |whose: &str, measured: &Measured| match measured {
            Measured::Finished { .. } => None,
            Measured::TimedOut => Some(format!("{}: {whose} took too long", self.name)),
            Measured::Failed(reason) => Some(format!("{}: {whose} failed: {reason}", self.name)),
        };
        let mut failures = Vec::new();
        failures.extend(side("plain", &self.plain));
        failures.extend(side("ours", &self.ours));
        if let Some(explained) = &self.explained {
            failures.push(match explained.as_str() {
                "unknown" => format!("{}: it cannot be explained", self.name),
                other => format!(
                    "{}: EXPLAIN says {other}, it ran as {}",
                    self.name, self.tier
                ),
            });
        }
        match &self.verdict {
            Verdict::Different(how) if self.ours.median().is_some() => {
                failures.push(format!("{}: the answers differ: {how}", self.name));
            }
            Verdict::OtherOrder => {
                failures.push(format!("{}: the rows are in another order", self.name));
            }
            Verdict::Failed(reason) => failures.push(format!("{}: {reason}", self.name)),
            Verdict::Equal | Verdict::Different(_) => {}
        }
        failures
    }
}

impl Measured {
    fn median(&self) -> Option<Duration> {
        match self {
            Measured::Finished { median, .. } => Some(*median),
            _ => None,
        }
    }

    fn rows(&self) -> Option<usize> {
        match self {
            Measured::Finished { rows, .. } => Some(*rows),
            _ => None,
        }
    }

    fn text(&self) -> String {
        match self {
            Measured::Finished { median, .. } => format!("{:.1}", milliseconds(*median)),
            Measured::TimedOut => "timeout".to_owned(),
            Measured::Failed(_) => "failed".to_owned(),
        }
    }
}

fn milliseconds(duration: Duration) -> f64 {
    duration.as_secs_f64() * 1000.0
}

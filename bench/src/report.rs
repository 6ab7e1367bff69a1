//! A run's table, on the terminal and kept.

use std::{fs, path::Path, process::Command};

use anyhow::Result;
use serde_json::json;

use crate::load::Figure;

/// One line: a load, and what each server made of it. Ours is the last.
pub struct Row {
    title: String,
    mode: String,
    clients: u32,
    /// Server and figure.
    pub figures: Vec<(String, Figure)>,
}

/// Everything that was measured.
#[derive(Default)]
pub struct Report {
    rows: Vec<Row>,
    notes: Vec<String>,
}

impl Report {
    /// Nothing yet.
    pub fn new() -> Self {
        Report::default()
    }

    /// Adds a line and shows it.
    pub fn add(&mut self, title: &str, mode: &str, clients: u32, figures: Vec<(String, Figure)>) {
        let row = Row {
            title: title.to_owned(),
            mode: mode.to_owned(),
            clients,
            figures,
        };
        eprintln!("{}", row.markdown());
        self.rows.push(row);
    }

    /// Adds a sentence and shows it.
    pub fn note(&mut self, text: String) {
        eprintln!("{text}");
        self.notes.push(text);
    }

    /// Writes `run.md` and `run.json`.
    pub fn keep(&self, directory: &Path, bin: &Path) -> Result<()> {
        let machine = machine(bin, &[Path::new("pgbouncer")]);
        let mut text = format!("# Benchmark run\n\n{}\n\n", machine.join(" · "));
        text.push_str("Medians of alternating rounds. CPU is the processor time of the named process per transaction (for Postgres: of the postmaster only, so it says nothing).\n\n");
        text.push_str("| load | mode | clients | server: TPS (CPU µs) | TPS to plain | TPS to PgBouncer | CPU to PgBouncer |\n|---|---|---|---|---|---|---|\n");
        for row in &self.rows {
            text.push_str(&row.markdown());
            text.push('\n');
        }
        text.push('\n');
        for note in &self.notes {
            text.push_str(&format!("- {note}\n"));
        }
        keep_text(directory, "run.md", &text)?;
        let rows: Vec<_> = self
            .rows
            .iter()
            .map(|row| {
                let figures: serde_json::Map<_, _> = row
                    .figures
                    .iter()
                    .map(|(name, figure)| {
                        let value = json!({
                            "tps": figure.tps,
                            "cpu_microseconds": figure.cpu_microseconds,
                        });
                        (name.clone(), value)
                    })
                    .collect();
                json!({"load": row.title, "mode": row.mode, "clients": row.clients, "servers": figures})
            })
            .collect();
        let document = json!({"machine": machine, "rows": rows, "notes": self.notes});
        fs::write(
            directory.join("run.json"),
            serde_json::to_string_pretty(&document)?,
        )?;
        Ok(())
    }
}

/// Shows a document and keeps it.
pub fn keep_text(directory: &Path, name: &str, text: &str) -> Result<()> {
    fs::create_dir_all(directory)?;
    println_out(text);
    fs::write(directory.join(name), text)?;
    Ok(())
}

#[allow(clippy::print_stdout)]
fn println_out(text: &str) {
    println!("{text}");
}

impl Row {
    fn markdown(&self) -> String {
        let figures: Vec<String> = self
            .figures
            .iter()
            .map(|(name, figure)| {
                if name == "postgres" {
                    format!("{name}: {:.0}", figure.tps)
                } else {
                    format!("{name}: {:.0} ({:.1})", figure.tps, figure.cpu_microseconds)
                }
            })
            .collect();
        let ratio =
            |value: Option<f64>| value.map_or("–".to_owned(), |ratio| format!("{ratio:.2}"));
        format!(
            "| {} | {} | {} | {} | {} | {} | {} |",
            self.title,
            self.mode,
            self.clients,
            figures.join(" · "),
            ratio(self.ratio("postgres", |figure| figure.tps)),
            ratio(self.ratio("pgbouncer", |figure| figure.tps)),
            ratio(self.ratio("pgbouncer", |figure| figure.cpu_microseconds)),
        )
    }
}

/// Processor, cores, memory, versions. No names, no paths.
pub fn machine(bin: &Path, programs: &[&Path]) -> Vec<String> {
    let cpu = fs::read_to_string("/proc/cpuinfo").unwrap_or_default();
    let model = cpu
        .lines()
        .find_map(|line| line.strip_prefix("model name"))
        .map_or("unknown processor", |rest| {
            rest.trim_start_matches([' ', '\t', ':'])
        });
    let cores = cpu
        .lines()
        .filter(|line| line.starts_with("processor"))
        .count();
    let version = |program: &Path| {
        let output = Command::new(program).arg("--version").output();
        output.map_or_else(
            |_| "unknown".to_owned(),
            |output| {
                String::from_utf8_lossy(&output.stdout)
                    .lines()
                    .next()
                    .unwrap_or("")
                    .to_owned()
            },
        )
    };
    let mut machine = vec![
        model.to_owned(),
        format!("{cores} cores"),
        version(&bin.join("postgres")),
    ];
    machine.extend(programs.iter().map(|program| version(program)));
    machine
}

//! What the demo prints: a table with a total, or JSON lines.

use std::time::Duration;

use comfy_table::{CellAlignment, Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Value, json};

use super::{compare::Verdict, load::Loaded};

/// One query.
pub struct Line {
    /// Its name.
    pub name: &'static str,
    /// How the proxy runs it, if it says so.
    pub tier: Option<String>,
    /// How many rows it answered, or why it did not.
    pub rows: Result<usize, String>,
    /// How long that took.
    pub duration: Duration,
    /// The same of the plain Postgres.
    pub compared: Option<Compared>,
}

/// A plain Postgres beside the proxy.
pub struct Compared {
    /// Whether the answers are equal.
    pub verdict: Verdict,
    /// How long it took to answer.
    pub duration: Duration,
}

/// All queries.
pub struct Report {
    compares: bool,
    lines: Vec<Line>,
}

/// Tells what a database was loaded with.
pub fn print_loaded(database: &str, loaded: &Loaded, json: bool) {
    let rows: u64 = loaded.tables.iter().map(|(_, rows)| rows).sum();
    if json {
        let tables = loaded.tables.iter().copied();
        let tables = tables.map(|(name, rows)| (name.to_owned(), Value::from(rows)));
        let loaded = json!({
            "loaded": database,
            "rows": rows,
            "tables": Value::Object(tables.collect()),
            "milliseconds": milliseconds(loaded.duration),
        });
        println!("{loaded}");
    } else {
        let seconds = loaded.duration.as_secs_f64();
        println!(
            "loaded {rows} rows into {} tables of {database} in {seconds:.1} s",
            loaded.tables.len()
        );
    }
}

impl Line {
    /// An error or a difference.
    fn complaint(&self) -> Option<String> {
        let verdict = self.compared.as_ref().map(|compared| &compared.verdict);
        match (&self.rows, verdict) {
            (Err(error), _) => Some(error.clone()),
            (Ok(_), None | Some(Verdict::Equal)) => None,
            (Ok(_), Some(Verdict::OtherOrder)) => {
                Some("the rows of the plain Postgres, in another order".to_owned())
            }
            (Ok(_), Some(Verdict::Different(how))) => Some(how.clone()),
            (Ok(_), Some(Verdict::Failed(error))) => Some(format!("the plain Postgres: {error}")),
        }
    }

    fn verdict(&self) -> &'static str {
        match (&self.rows, &self.compared) {
            (Err(_), _) => "failed",
            (Ok(_), None) => "",
            (Ok(_), Some(compared)) => match compared.verdict {
                Verdict::Equal => "equal",
                Verdict::OtherOrder => "other order",
                Verdict::Different(_) => "different",
                Verdict::Failed(_) => "not compared",
            },
        }
    }

    /// A JSON object: `equal` and `compare_milliseconds` only when compared, `error` only if one.
    pub fn to_json(&self) -> Value {
        let mut object = json!({
            "query": self.name,
            "rows": self.rows.as_ref().ok(),
            "milliseconds": milliseconds(self.duration),
            "tier": self.tier,
        });
        if let Some(compared) = &self.compared {
            object["equal"] = (compared.verdict == Verdict::Equal).into();
            object["compare_milliseconds"] = milliseconds(compared.duration);
        }
        if let Some(complaint) = self.complaint() {
            object["error"] = complaint.into();
        }
        object
    }
}

impl Report {
    /// None yet.
    pub fn new(compares: bool) -> Report {
        let lines = Vec::new();
        Report { compares, lines }
    }

    /// One more.
    pub fn add(&mut self, line: Line) {
        self.lines.push(line);
    }

    /// True if every query was answered, and as the plain Postgres answers it.
    pub fn is_good(&self) -> bool {
        self.lines.iter().all(|line| line.complaint().is_none())
    }

    /// Prints the end: everything, or in JSON the total of the lines that were printed already.
    pub fn print_end(&self, json: bool) {
        if json {
            println!("{}", self.total_json());
            return;
        }
        println!("{}", self.table());
        for line in &self.lines {
            if let Some(complaint) = line.complaint() {
                println!("{}: {complaint}", line.name);
            }
        }
        println!("{}", self.total());
    }

    fn table(&self) -> Table {
        let mut table = Table::new();
        table.load_preset(UTF8_FULL_CONDENSED);
        let mut header = vec!["query", "rows", "ms", "tier"];
        if self.compares {
            header.extend(["plain ms", "answer"]);
        }
        table.set_header(header);
        for line in &self.lines {
            let rows = line
                .rows
                .as_ref()
                .map_or_else(|_| "failed".to_owned(), usize::to_string);
            let tier = line.tier.clone().unwrap_or_default();
            let mut cells = vec![line.name.to_owned(), rows, shown(line.duration), tier];
            if let Some(compared) = &line.compared {
                cells.extend([shown(compared.duration), line.verdict().to_owned()]);
            }
            table.add_row(cells);
        }
        for (index, column) in table.column_iter_mut().enumerate() {
            if [1, 2, 4].contains(&index) {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        table
    }

    fn total(&self) -> String {
        let bad = self
            .lines
            .iter()
            .filter(|line| line.complaint().is_some())
            .count();
        let count = self.lines.len();
        let took = shown(self.duration());
        match (self.compares, bad) {
            (false, 0) => format!("total: {count} queries in {took} ms, none failed"),
            (false, _) => format!("total: {count} queries in {took} ms, {bad} failed"),
            (true, 0) => format!(
                "total: {count} queries in {took} ms, plain Postgres {} ms, all answers equal",
                shown(self.compare_duration())
            ),
            (true, _) => format!(
                "total: {count} queries in {took} ms, plain Postgres {} ms, {bad} failed or different",
                shown(self.compare_duration())
            ),
        }
    }

    fn total_json(&self) -> Value {
        let complaints = self.lines.iter().filter(|line| line.complaint().is_some());
        let failed = self.lines.iter().filter(|line| line.rows.is_err()).count();
        let mut total = json!({
            "queries": self.lines.len(),
            "milliseconds": milliseconds(self.duration()),
            "failed": failed,
        });
        if self.compares {
            total["different"] = (complaints.count() - failed).into();
            total["compare_milliseconds"] = milliseconds(self.compare_duration());
        }
        json!({ "total": total })
    }

    fn duration(&self) -> Duration {
        self.lines.iter().map(|line| line.duration).sum()
    }

    fn compare_duration(&self) -> Duration {
        let compared = self.lines.iter().filter_map(|line| line.compared.as_ref());
        compared.map(|compared| compared.duration).sum()
    }
}

fn shown(duration: Duration) -> String {
    format!("{:.1}", duration.as_secs_f64() * 1000.0)
}

/// With microseconds: more digits are noise.
fn milliseconds(duration: Duration) -> Value {
    ((duration.as_secs_f64() * 1_000_000.0).round() / 1000.0).into()
}

//! `automator67 shards`, `tables` and `db query`: rows on the terminal.

use anyhow::Result;
use comfy_table::{Table, presets::UTF8_FULL_CONDENSED};
use serde_json::{Map, Value};
use tokio_postgres::{SimpleColumn, SimpleQueryMessage, SimpleQueryRow};

use crate::client::Target;

/// Subcommands of `automator67 db`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Run SQL and show its rows.
    Query {
        /// One statement or several.
        sql: String,
        #[command(flatten)]
        target: Target,
    },
}

/// Lists the shards.
pub async fn shards(target: &Target, json: bool) -> Result<()> {
    show(target, "select * from automator67.shards order by id", json).await
}

/// Lists the tables.
pub async fn tables(target: &Target, json: bool) -> Result<()> {
    show(
        target,
        "select * from automator67.tables order by schema, name",
        json,
    )
    .await
}

/// Runs `automator67 db`.
pub async fn run(command: &Command, json: bool) -> Result<()> {
    match command {
        Command::Query { sql, target } => show(target, sql, json).await,
    }
}

async fn show(target: &Target, sql: &str, json: bool) -> Result<()> {
    let client = target.connect().await?;
    let mut result = Shown::default();
    for message in client.simple_query(sql).await? {
        match message {
            SimpleQueryMessage::RowDescription(columns) => {
                result.print(json);
                result = Shown {
                    names: columns.iter().map(name).collect(),
                    rows: Vec::new(),
                };
            }
            SimpleQueryMessage::Row(row) => result.rows.push(values(&row)),
            _ => {}
        }
    }
    result.print(json);
    Ok(())
}

/// One statement's rows.
#[derive(Default)]
struct Shown {
    names: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
}

impl Shown {
    fn print(&self, json: bool) {
        if self.names.is_empty() {
            return;
        }
        if json {
            for row in &self.rows {
                let value = |value: &Option<String>| value.clone().map_or(Value::Null, Value::from);
                let fields = self.names.iter().cloned().zip(row.iter().map(value));
                println!("{}", Value::Object(Map::from_iter(fields)));
            }
            return;
        }
        let mut table = Table::new();
        table
            .load_preset(UTF8_FULL_CONDENSED)
            .set_header(&self.names);
        for row in &self.rows {
            table.add_row(row.iter().map(|value| value.as_deref().unwrap_or("")));
        }
        println!("{table}");
    }
}

fn name(column: &SimpleColumn) -> String {
    column.name().to_owned()
}

fn values(row: &SimpleQueryRow) -> Vec<Option<String>> {
    (0..row.len())
        .map(|index| row.get(index).map(str::to_owned))
        .collect()
}

//! COPY of the generated rows, a few tables at once, with a bar each.

use std::{
    io::Cursor,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use indicatif::{MultiProgress, ProgressBar, ProgressStyle};
use tokio::task::JoinSet;

use super::tables::{TABLES, Table};
use crate::client;

/// More would only wait for each other on the disk.
const TABLES_AT_ONCE: usize = 2;
/// What one CopyData message holds. The driver keeps one of them, the socket the rest in bounds.
const CHUNK_BYTES: usize = 64 * 1024;
/// The longest row is a partsupp with some 230 bytes.
const ROW_BYTES: usize = 512;

/// What a load did.
pub struct Loaded {
    /// Tables and their rows.
    pub tables: Vec<(&'static str, u64)>,
    /// How long it took.
    pub duration: Duration,
}

/// Fills the tables, which exist and are empty.
pub async fn load(url: &str, scale: f64) -> Result<Loaded> {
    let started = Instant::now();
    let bars = MultiProgress::new();
    let mut tables = Vec::new();
    let mut waiting = TABLES.iter();
    // Dropped at a failure, it ends the others.
    let mut running = JoinSet::new();
    loop {
        while running.len() < TABLES_AT_ONCE {
            let Some(table) = waiting.next() else { break };
            let bar = bars.add(bar(table, scale)?);
            running.spawn(copy(table, url.to_owned(), scale, bar));
        }
        match running.join_next().await {
            Some(done) => tables.push(done??),
            None => break,
        }
    }
    bars.clear()?;
    Ok(Loaded {
        tables,
        duration: started.elapsed(),
    })
}

fn bar(table: &'static Table, scale: f64) -> Result<ProgressBar> {
    let style = ProgressStyle::with_template(
        "{msg:8} {wide_bar} {human_pos} of {human_len} rows, {elapsed}",
    )?;
    let bar = ProgressBar::new((table.count)(scale).max(0).unsigned_abs());
    Ok(bar.with_style(style).with_message(table.name))
}

async fn copy(
    table: &'static Table,
    url: String,
    scale: f64,
    bar: ProgressBar,
) -> Result<(&'static str, u64)> {
    let failed = || format!("COPY {}", table.name);
    let client = client::connect(&url).await?;
    let statement = format!("copy tpch.{} from stdin with (delimiter '|')", table.name);
    let sink = client.copy_in(&statement).await.with_context(failed)?;
    let mut sink = pin!(sink);
    let mut sent = 0;
    let mut shown = 0;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + ROW_BYTES);
    for row in (table.rows)(scale) {
        // `dbgen` ends the last field, too; COPY would take that for one more.
        chunk.extend_from_slice(row.strip_suffix('|').unwrap_or(&row).as_bytes());
        chunk.push(b'\n');
        sent += 1;
        if chunk.len() >= CHUNK_BYTES {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_BYTES + ROW_BYTES));
            sink.send(Cursor::new(full)).await.with_context(failed)?;
            bar.inc(sent - shown);
            shown = sent;
        }
    }
    sink.send(Cursor::new(chunk)).await.with_context(failed)?;
    let rows = sink.finish().await.with_context(failed)?;
    ensure!(
        rows == sent,
        "COPY {}: {sent} rows were sent, {rows} are said to be stored",
        table.name
    );
    bar.set_length(rows);
    bar.set_position(rows);
    bar.finish();
    Ok((table.name, rows))
}

//! Tables, rows, indexes and statistics, the same everywhere.

use std::{
    io::Cursor,
    pin::pin,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use futures_util::SinkExt;
use tokio_postgres::Client;

use super::tables::{TABLES, Table};
use crate::servers::connect;

/// What one CopyData message holds. The driver keeps one of them, the socket the rest in bounds.
const CHUNK_BYTES: usize = 64 * 1024;
/// The longest row is a partsupp with some 230 bytes.
const ROW_BYTES: usize = 512;

/// The usual indexes on foreign keys that no primary key begins with.
const INDEXES: [&str; 5] = [
    "create index on lineitem (l_partkey, l_suppkey)",
    "create index on orders (o_custkey)",
    "create index on partsupp (ps_suppkey)",
    "create index on customer (c_nationkey)",
    "create index on supplier (s_nationkey)",
];

/// What a load did.
pub struct Loaded {
    /// Rows of all tables.
    pub rows: u64,
    /// How long COPY took, with the primary keys.
    pub copy: Duration,
    /// How long the other indexes took.
    pub index: Duration,
    /// How long VACUUM ANALYZE and a checkpoint took.
    pub vacuum: Duration,
}

/// Makes the text that the generator takes its comments from, 300 MB, before anything is timed.
pub fn warm_up() {
    for table in &TABLES {
        (table.rows)(0.01).next();
    }
}

/// Makes and fills the tables; `placed` ones are distributed. `servers` are where the rows are in
/// the end.
pub async fn load(login: &str, servers: &[String], scale: f64, placed: bool) -> Result<Loaded> {
    let client = connect(login).await?;
    let started = Instant::now();
    let mut rows = 0;
    for table in &TABLES {
        client.batch_execute(table.definition).await?;
        if placed {
            let place = format!("select {}", table.placement);
            client.batch_execute(&place).await.context(place)?;
        }
        let about = (table.count)(scale);
        eprintln!("  {}: about {about} rows", table.name);
        let failed = || format!("COPY {}", table.name);
        rows += copy(&client, table, scale).await.with_context(failed)?;
    }
    let copy = started.elapsed();
    let started = Instant::now();
    for statement in INDEXES {
        client.batch_execute(statement).await.context(statement)?;
    }
    let index = started.elapsed();
    let started = Instant::now();
    for server in servers {
        let server = connect(server).await?;
        // No autovacuum and no writing of dirty pages during the queries.
        server.batch_execute("vacuum (analyze)").await?;
        server.batch_execute("checkpoint").await?;
    }
    Ok(Loaded {
        rows,
        copy,
        index,
        vacuum: started.elapsed(),
    })
}

async fn copy(client: &Client, table: &Table, scale: f64) -> Result<u64> {
    let statement = format!("copy {} from stdin with (delimiter '|')", table.name);
    let mut sink = pin!(client.copy_in(&statement).await?);
    let mut sent = 0;
    let mut chunk = Vec::with_capacity(CHUNK_BYTES + ROW_BYTES);
    for row in (table.rows)(scale) {
        // `dbgen` ends the last field, too; COPY would take that for one more.
        chunk.extend_from_slice(row.strip_suffix('|').unwrap_or(&row).as_bytes());
        chunk.push(b'\n');
        sent += 1;
        if chunk.len() >= CHUNK_BYTES {
            let full = std::mem::replace(&mut chunk, Vec::with_capacity(CHUNK_BYTES + ROW_BYTES));
            sink.send(Cursor::new(full)).await?;
        }
    }
    sink.send(Cursor::new(chunk)).await?;
    let stored = sink.finish().await?;
    ensure!(
        stored == sent,
        "{sent} rows were sent, {stored} are said to be stored"
    );
    Ok(stored)
}

//! INSERT of a thousand rows in one statement, as text and prepared.

use std::{
    sync::atomic::{AtomicI64, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use futures_util::future::try_join_all;
use tokio_postgres::{Client, Statement, types::ToSql};

use super::{Book, Ground, HEAD, Place};
use crate::{
    load::Figure,
    servers::{connect, psql},
};

const ROWS: usize = 1000;
/// Asked for.
const RATIO: f64 = 1.3;
const NOTE: &str = "one of a thousand rows";

/// On all places, at one client and at four.
pub fn measure(ground: &Ground<'_>, book: &mut Book) -> Result<()> {
    book.section("INSERT of 1,000 rows of 3 columns in one statement", HEAD);
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let places = ground.places();
    let names: Vec<&str> = places.iter().map(|place| place.name).collect();
    let next = AtomicI64::new(1);
    for mode in ["simple", "prepared"] {
        for clients in [1, 4] {
            let figures = ground.in_turn(places.len(), ground.common.rounds, |number| {
                let place = places[number];
                empty(ground, place)?;
                let length = Duration::from_secs(u64::from(ground.common.seconds));
                let prepared = mode == "prepared";
                runtime.block_on(insert(place, prepared, clients, length, &next))
            })?;
            let title = "insert of 1,000 rows";
            let count = u32::try_from(clients)?;
            book.load(title, mode, count, &names, &figures);
            let text =
                format!("p50 of an INSERT of 1,000 rows to plain, {mode}, clients: {clients}");
            book.ask_p50(text, &figures, RATIO);
        }
    }
    for place in &places {
        empty(ground, place)?;
    }
    Ok(())
}

fn empty(ground: &Ground<'_>, place: &Place) -> Result<()> {
    let (bin, port) = (&ground.common.bin, place.server.port);
    psql(bin, port, place.database, "truncate events")?;
    Ok(())
}

async fn insert(
    place: &Place,
    prepared: bool,
    clients: usize,
    length: Duration,
    next: &AtomicI64,
) -> Result<Figure> {
    let mut connections = Vec::new();
    for _ in 0..clients {
        let client = connect(&place.login()).await?;
        client
            .batch_execute("set client_min_messages = error")
            .await?;
        let statement = match prepared {
            true => Some(client.prepare(&with_parameters()).await?),
            false => None,
        };
        connections.push((client, statement));
    }
    // One for warming up.
    for (client, statement) in &connections {
        once(client, statement.as_ref(), next).await?;
    }
    let cpu = place.server.cpu_microseconds()?;
    let started = Instant::now();
    let work = connections.iter().map(async |(client, statement)| {
        let mut times = Vec::new();
        while started.elapsed() < length {
            times.push(once(client, statement.as_ref(), next).await?);
        }
        anyhow::Ok(times)
    });
    let mut times: Vec<f64> = try_join_all(work).await?.concat();
    let seconds = started.elapsed().as_secs_f64();
    let cpu = place.server.cpu_microseconds()? - cpu;
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times.get(times.len() * percent / 100).copied();
    Ok(Figure {
        tps: times.len() as f64 / seconds,
        cpu_microseconds: cpu as f64 / times.len() as f64,
        p50_microseconds: at(50).context("nothing was inserted")?,
        p99_microseconds: at(99).context("nothing was inserted")?,
    })
}

/// One statement; how many microseconds it took.
async fn once(client: &Client, statement: Option<&Statement>, next: &AtomicI64) -> Result<f64> {
    let first = next.fetch_add(ROWS as i64, Ordering::Relaxed);
    let ids: Vec<i64> = (first..).take(ROWS).collect();
    let inserted;
    let took;
    if let Some(statement) = statement {
        let kinds: Vec<i32> = (0..ROWS as i32).collect();
        let mut values: Vec<&(dyn ToSql + Sync)> = Vec::with_capacity(ROWS * 3);
        for (id, kind) in ids.iter().zip(&kinds) {
            values.extend([id as &(dyn ToSql + Sync), kind, &NOTE]);
        }
        let asked = Instant::now();
        inserted = client.execute(statement, &values).await?;
        took = asked.elapsed();
    } else {
        let rows: Vec<String> = ids
            .iter()
            .zip(0..)
            .map(|(id, kind)| format!("({id}, {kind}, '{NOTE}')"))
            .collect();
        let text = format!("INSERT INTO events VALUES {}", rows.join(", "));
        let asked = Instant::now();
        let messages = client.simple_query(&text).await?;
        took = asked.elapsed();
        inserted = messages
            .iter()
            .find_map(|message| match message {
                tokio_postgres::SimpleQueryMessage::CommandComplete(rows) => Some(*rows),
                _ => None,
            })
            .unwrap_or_default();
    }
    if inserted != ROWS as u64 {
        bail!("{inserted} rows were inserted");
    }
    Ok(took.as_secs_f64() * 1e6)
}

fn with_parameters() -> String {
    let rows: Vec<String> = (0..ROWS)
        .map(|row| format!("(${}, ${}, ${})", row * 3 + 1, row * 3 + 2, row * 3 + 3))
        .collect();
    format!("INSERT INTO events VALUES {}", rows.join(", "))
}

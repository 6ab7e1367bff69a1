//! A client that does what most clients do, and notes how long it waits.

use std::{
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use automator67_tests::{batch::Batch, wire::Connection};

use super::{ACCOUNTS, ANSWER_LIMIT, Ground, duration};

/// So that its connections, its statement and its plan are there already.
const WARM_UP: u32 = 200;
const UNDISTURBED: Duration = Duration::from_secs(3);

/// What it felt of a load.
pub struct Felt {
    /// The longest wait.
    pub max: Duration,
    /// What 99 of 100 waits do not exceed.
    pub p99: Duration,
    p50: Duration,
    count: usize,
    /// Why it could not go on.
    lost: Option<String>,
}

impl Felt {
    /// A figure, and that it was the last one if it was.
    pub fn describe(&self, figure: Duration) -> String {
        match &self.lost {
            None => duration(figure),
            Some(why) => format!("{}, then lost: {why}", duration(figure)),
        }
    }

    /// Whether a figure is within its limit, and nothing was lost.
    pub fn is_within(&self, figure: Duration, limit: Duration) -> bool {
        self.lost.is_none() && figure <= limit
    }
}

/// Runs a load beside the bystander.
pub fn beside<T>(ground: &Ground<'_>, load: impl FnOnce() -> Result<T>) -> Result<(T, Felt)> {
    let mut client = Connection::open(&ground.proxy()).context("the bystander's login")?;
    client.set_read_limit(ANSWER_LIMIT)?;
    let text = "select balance from accounts where id = $1";
    client.batch(&Batch::new().parse("point", text).sync())?;
    for number in 0..WARM_UP {
        point_query(&mut client, number)?;
    }
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let watch = scope.spawn(|| queries(&mut client, &over));
        let done = load();
        // The query that the load's end falls into still counts.
        over.store(true, Ordering::Release);
        let felt = watch.join().expect("the bystander does not panic")?;
        Ok((done?, felt))
    })
}

fn queries(client: &mut Connection, over: &AtomicBool) -> Result<Felt> {
    let mut waits = Vec::new();
    let mut lost = None;
    while lost.is_none() && !over.load(Ordering::Acquire) {
        let asked = Instant::now();
        lost = point_query(client, waits.len() as u32).err();
        waits.push(asked.elapsed());
    }
    waits.sort_unstable();
    let at = |percent: usize| {
        let last = waits.len().checked_sub(1)?;
        waits.get((waits.len() * percent / 100).min(last)).copied()
    };
    Ok(Felt {
        max: at(100).context("the bystander asked nothing")?,
        p99: at(99).unwrap_or_default(),
        p50: at(50).unwrap_or_default(),
        count: waits.len(),
        lost: lost.map(|error| format!("{error:#}")),
    })
}

fn point_query(client: &mut Connection, number: u32) -> Result<()> {
    let id = (number % ACCOUNTS + 1).to_string();
    let batch = Batch::new()
        .bind("", "point", &[Some(&id)])
        .execute("", 0)
        .sync();
    let frames = client.batch(&batch)?;
    if let Some(error) = frames.iter().find(|frame| frame.tag == b'E') {
        let field = |code| error.field(code).unwrap_or_default();
        bail!("{} {}", field(b'C'), field(b'M'));
    }
    Ok(())
}

/// What it feels of nothing.
pub fn undisturbed(ground: &Ground<'_>) -> Result<String> {
    let ((), felt) = beside(ground, || {
        thread::sleep(UNDISTURBED);
        Ok(())
    })?;
    Ok(format!(
        "the bystander by itself, {} queries: p50 {}, p99 {}, max {}",
        felt.count,
        duration(felt.p50),
        duration(felt.p99),
        felt.describe(felt.max)
    ))
}

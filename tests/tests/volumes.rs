//! Results and joins that are larger than the memory the proxy may take.

use std::fmt::Write;

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    wire::{self, Connection},
};

/// Rows of the large result; `make soak` takes more.
fn rows() -> u64 {
    let given = std::env::var("AUTOMATOR67_ROWS").ok();
    given
        .and_then(|rows| rows.parse().ok())
        .unwrap_or(5_000_000)
}

/// The most memory that the process has had, in KiB.
fn peak(dev: &Dev) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", dev.automator.group.id()))?;
    let line = status.lines().find(|line| line.starts_with("VmHWM:"));
    let number = line.and_then(|line| line.split_whitespace().nth(1));
    Ok(number.context("no VmHWM")?.parse()?)
}

/// Fills a distributed table of `rows` rows of about 100 bytes, each shard by itself: a SELECT
/// over all shards finds rows wherever they are.
fn fill(dev: &Dev, rows: u64) -> Result<()> {
    let mut connection = dev.connect()?;
    connection.execute("create table large (id bigint, v bigint, w text)")?;
    connection.execute("select create_distributed_table('large', 'id')")?;
    let count = dev.shards().len() as u64;
    std::thread::scope(|scope| {
        let fillers: Vec<_> = dev
            .shards()
            .iter()
            .enumerate()
            .map(|(position, shard)| {
                scope.spawn(move || -> Result<()> {
                    let mut direct = Connection::open(&shard.server)?;
                    direct.set_read_limit(std::time::Duration::from_secs(600))?;
                    direct.execute(&format!(
                        "insert into large select g, (g::bigint * 7919) % 1000003, repeat(chr(97 + (g % 26)::int), 70) \
                         from generate_series({position} + 1, {rows}, {count}) g"
                    ))?;
                    direct.execute("analyze large")?;
                    Ok(())
                })
            })
            .collect();
        fillers
            .into_iter()
            .try_for_each(|filler| filler.join().expect("no panic"))
    })
}

#[test]
fn a_large_result_in_order_takes_little_memory() {
    let dev = Dev::start(3).expect("servers start");
    let rows = rows();
    fill(&dev, rows).expect("rows are stored");
    let before = peak(&dev).expect("memory is known");
    let mut connection = dev.connect().expect("login");
    connection
        .set_read_limit(std::time::Duration::from_secs(600))
        .expect("a limit");
    let seen = in_order(&mut connection).expect("rows come in order");
    assert_eq!(seen, rows);
    let grown = peak(&dev).expect("memory is known") - before;
    assert!(grown < 100 << 10, "the proxy has grown by {grown} KiB");
}

/// Reads all rows; every one must not be before the one before it.
fn in_order(connection: &mut Connection) -> Result<u64> {
    let mut query = Vec::new();
    let text = "select id, v, w from large order by v desc, id";
    query.push(b'Q');
    query.extend((text.len() as u32 + 5).to_be_bytes());
    query.extend(text.as_bytes());
    query.push(0);
    connection.send(&query)?;
    let mut last: Option<(i64, i64)> = None;
    let mut seen = 0;
    loop {
        let frame = connection.receive()?;
        match frame.tag {
            b'D' => {
                let values = wire::values(&frame.body)?;
                let number = |index: usize| -> Result<i64> {
                    let bytes: &Option<bytes::Bytes> =
                        values.get(index).context("too few columns")?;
                    let bytes = bytes.as_ref().context("null")?;
                    Ok(std::str::from_utf8(bytes)?.parse()?)
                };
                let row = (-number(1)?, number(0)?);
                ensure!(
                    last.is_none_or(|last| last < row),
                    "{last:?} before {row:?}"
                );
                last = Some(row);
                seen += 1;
            }
            b'E' => anyhow::bail!("{}", frame.text()),
            b'Z' => return Ok(seen),
            _ => {}
        }
    }
}

#[test]
fn a_join_larger_than_its_memory_goes_through_files() {
    let dev = Dev::start(3).expect("servers start");
    let mut connection = dev.connect().expect("login");
    connection
        .set_read_limit(std::time::Duration::from_secs(300))
        .expect("a limit");
    for statement in [
        "create table large (id bigint, v bigint, w text)",
        "select create_distributed_table('large', 'id')",
        "insert into large select g, (g::bigint * 7919) % 300007, repeat(chr(97 + (g % 26)::int), 70) \
         from generate_series(1, 300000) g",
        "analyze large",
    ] {
        connection.execute(statement).expect(statement);
    }
    let mut text = String::new();
    // No side can be left out, and the texts are needed: more than 20 MB move.
    write!(
        text,
        "select count(*), sum(length(a.w)), min(b.w) from large a join large b on a.v = b.id \
         where b.w is not null and a.w <> b.w"
    )
    .expect("a text");
    let mut ask = |setting: &str| -> Result<Vec<Vec<Option<String>>>> {
        connection.execute("reset all")?;
        connection.execute(setting)?;
        connection.rows(&text)
    };
    let expected = ask("set automator67.force_tier = 'gather'").expect("an answer");
    let before = peak(&dev).expect("memory is known");
    let found = ask("set automator67.work_mem_bytes = '4MB'").expect("an answer");
    assert_eq!(found, expected);
    let grown = peak(&dev).expect("memory is known") - before;
    assert!(grown < 40 << 10, "the proxy has grown by {grown} KiB");
    let plan = connection
        .rows(&format!("explain analyze {text}"))
        .expect("a plan");
    let plan: Vec<String> = plan.into_iter().flatten().flatten().collect();
    let plan = plan.join("\n");
    assert!(plan.starts_with("Merge"), "{plan}");
    let spilled = plan
        .lines()
        .find_map(|line| line.trim().strip_prefix("Spilled Bytes: "));
    let spilled: u64 = spilled
        .and_then(|bytes| bytes.parse().ok())
        .expect("a number");
    assert!(
        spilled > 8 << 20,
        "only {spilled} bytes went to a file:\n{plan}"
    );
}

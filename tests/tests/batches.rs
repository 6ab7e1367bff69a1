//! Batches over several shards: answers in order, errors where they belong, one transaction.

use std::time::{Duration, Instant};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    batch::{Batch, shape},
    checks, wait,
    wire::{Connection, Frame},
};

const ROWS: usize = 200;

#[test]
fn batches_over_shards_answer_as_one_server_would() {
    let dev = Dev::start(2).expect("dev starts");
    prepare(&dev).expect("tables");
    checks::run(
        &dev,
        &[
            ("many reads", many_reads),
            ("unnamed statements, described portals", described),
            ("large rows", large_rows),
            ("large questions with large answers", large_questions),
            ("an error among reads", error_among_reads),
            ("an error at Bind", error_at_bind),
            ("an error after a savepoint", error_after_savepoint),
            ("a statement that no shard takes", error_at_parse),
            ("writes, and reads of them", writes_and_reads),
            ("a lock before a read", lock_before_read),
        ],
    );
}

fn prepare(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    for text in [
        "create table spread (id bigint primary key, v text)",
        "select create_distributed_table('spread', 'id')",
    ] {
        connection.execute(text)?;
    }
    let rows = format!("insert into spread select g, 'v' || g from generate_series(1, {ROWS}) g");
    connection.execute(&rows)?;
    for shard in dev.shards() {
        let mut shard = Connection::open(&shard.server)?;
        let count = shard.execute("select count(*) from spread")?;
        ensure!(count.as_deref() != Some("0"), "a shard without rows");
    }
    Ok(())
}

fn exchange(connection: &mut Connection, batch: &Batch) -> Result<Vec<Frame>> {
    let bytes = batch.bytes().to_vec();
    let mut writer = connection.writer()?;
    std::thread::scope(|scope| {
        scope.spawn(move || writer.send(&bytes));
        connection.until_ready()
    })
}

/// The first column of each DataRow.
fn values(frames: &[Frame]) -> Vec<String> {
    let rows = frames.iter().filter(|frame| frame.tag == b'D');
    rows.map(|row| String::from_utf8_lossy(&row.body[6..]).into_owned())
        .collect()
}

fn expect_values(frames: &[Frame], count: usize) -> Result<()> {
    let found = values(frames);
    let expected: Vec<_> = (0..count)
        .map(|number| format!("v{}", number % ROWS + 1))
        .collect();
    ensure!(found == expected, "{} of {count} rows", found.len());
    Ok(())
}

/// `count` reads of one row each, of keys on both shards.
fn reads(mut batch: Batch, count: usize) -> Batch {
    for number in 0..count {
        let id = (number % ROWS + 1).to_string();
        batch = batch.bind("", "by key", &[Some(&id)]).execute("", 0);
    }
    batch
}

const BY_KEY: &str = "select v from spread where id = $1";

fn many_reads(dev: &Dev) -> Result<()> {
    const MANY: usize = 40_000;
    let mut connection = dev.connect()?;
    let start = Instant::now();
    let batch = reads(Batch::new().parse("by key", BY_KEY), MANY).sync();
    let frames = exchange(&mut connection, &batch)?;
    let took = start.elapsed();
    ensure!(frames.len() == 3 * MANY + 2, "{} frames", frames.len());
    expect_values(&frames, MANY)?;
    // Two round trips to shards for each of them would take longer.
    ensure!(took < Duration::from_secs(10), "{took:?}");
    Ok(())
}

fn described(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let mut batch = Batch::new().parse("", BY_KEY);
    for number in 0..50 {
        let id = (number + 1).to_string();
        batch = batch
            .bind("", "", &[Some(&id)])
            .describe('P', "")
            .execute("", 0);
    }
    for number in 50..60 {
        let id = (number + 1).to_string();
        batch = batch.run(BY_KEY, &[&id]);
    }
    let frames = exchange(&mut connection, &batch.sync())?;
    let expected = format!("1{}{}Z", "2TDC".repeat(50), "12DC".repeat(10));
    ensure!(shape(&frames) == expected, "{}", shape(&frames));
    expect_values(&frames, 60)
}

/// What shards have to say fills all buffers on the way.
fn large_rows(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let text = "select repeat(v, 20000) from spread where id = $1";
    let mut batch = Batch::new().parse("large", text);
    for number in 0..1000 {
        let id = (number % ROWS + 1).to_string();
        batch = batch.bind("", "large", &[Some(&id)]).execute("", 0);
    }
    let frames = exchange(&mut connection, &batch.sync())?;
    let expected = format!("1{}Z", "2DC".repeat(1000));
    ensure!(shape(&frames) == expected, "{} frames", frames.len());
    for (number, value) in values(&frames).iter().enumerate() {
        let row = format!("v{}", number % ROWS + 1);
        ensure!(value.len() == 20_000 * row.len() && value.starts_with(&row));
    }
    Ok(())
}

fn goes_on(connection: &mut Connection) -> Result<()> {
    let batch = reads(Batch::new().parse("by key", BY_KEY), 10).sync();
    let frames = exchange(connection, &batch)?;
    expect_values(&frames, 10)?;
    let batch = Batch::new().close('S', "by key").sync();
    ensure!(shape(&exchange(connection, &batch)?) == "3Z");
    Ok(())
}

/// For one shard: neither it nor the proxy may wait until the other one listens.
fn large_questions(dev: &Dev) -> Result<()> {
    const STATEMENTS: usize = 300;
    let mut connection = dev.connect()?;
    connection.set_read_limit(Duration::from_secs(60))?;
    let question = "y".repeat(2500);
    let mut batch = Batch::new();
    for _ in 0..STATEMENTS {
        batch = batch.run("select repeat('x', 100000), length($1::text)", &[&question]);
    }
    let frames = exchange(&mut connection, &batch.sync())?;
    let whole = frames
        .iter()
        .filter(|frame| frame.tag == b'D' && frame.body.len() > 100_000);
    ensure!(whole.count() == STATEMENTS, "{}", shape(&frames));
    connection.terminate()
}

fn error_among_reads(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    // The keys behind and before it are on both shards.
    for at in [1, 2, 3, 30, 99, 100] {
        let text = "select v, 1 / (id - $2::int) from spread where id = $1";
        let mut batch = Batch::new().parse("divides", text);
        for id in 1..=100 {
            let (id, at) = (id.to_string(), at.to_string());
            batch = batch
                .bind("", "divides", &[Some(&id), Some(&at)])
                .execute("", 0);
        }
        let batch = batch.parse("behind", "select 1").sync();
        let frames = exchange(&mut connection, &batch)?;
        let expected = format!("1{}2E(22012)Z", "2DC".repeat(at - 1));
        ensure!(shape(&frames) == expected, "{at}: {}", shape(&frames));
        let frames = exchange(
            &mut connection,
            &Batch::new().bind("", "behind", &[]).sync(),
        )?;
        ensure!(shape(&frames) == "E(26000)Z", "{}", shape(&frames));
        let frames = exchange(&mut connection, &Batch::new().close('S', "divides").sync())?;
        ensure!(shape(&frames) == "3Z", "{}", shape(&frames));
        goes_on(&mut connection)?;
    }
    Ok(())
}

fn error_at_bind(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let text = "select v, $2::date from spread where id = $1";
    let mut batch = Batch::new().parse("dates", text);
    for id in 1..=20 {
        let date = if id == 11 { "no date" } else { "2026-01-01" };
        let id = id.to_string();
        batch = batch
            .bind("", "dates", &[Some(&id), Some(date)])
            .execute("", 0);
    }
    let frames = exchange(&mut connection, &batch.sync())?;
    let expected = format!("1{}E(22007)Z", "2DC".repeat(10));
    ensure!(shape(&frames) == expected, "{}", shape(&frames));
    goes_on(&mut connection)
}

fn error_after_savepoint(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    for text in [
        "begin",
        "update spread set v = 'changed' where id = 5",
        "savepoint s",
    ] {
        connection.execute(text)?;
    }
    let text = "select 1 / (id - 10) from spread where id = $1";
    let mut batch = Batch::new().parse("divides", text);
    for id in 1..=20 {
        let id = id.to_string();
        batch = batch.bind("", "divides", &[Some(&id)]).execute("", 0);
    }
    let frames = exchange(&mut connection, &batch.sync())?;
    let expected = format!("1{}2E(22012)Z", "2DC".repeat(9));
    ensure!(shape(&frames) == expected, "{}", shape(&frames));
    ensure!(frames.last().is_some_and(|frame| frame.body[..] == *b"E"));
    connection.execute("rollback to savepoint s")?;
    let batch = Batch::new().parse("by key", BY_KEY);
    let frames = exchange(&mut connection, &reads(batch, 10).sync())?;
    let found = values(&frames);
    ensure!(found[4] == "changed" && found[5] == "v6", "{found:?}");
    connection.execute("rollback")?;
    let v = connection.execute("select v from spread where id = 5")?;
    ensure!(v.as_deref() == Some("v5"), "{v:?}");
    Ok(())
}

/// One that is known here to be prepared, and is valid no longer.
fn error_at_parse(dev: &Dev) -> Result<()> {
    let (mut connection, mut other) = (dev.connect()?, dev.connect()?);
    connection.execute("create table brief (id bigint primary key, v text)")?;
    connection.execute("select create_distributed_table('brief', 'id')")?;
    let text = "select v from brief where id = $1";
    let batch = Batch::new().parse("brief", text).sync();
    ensure!(shape(&exchange(&mut connection, &batch)?) == "1Z");
    other.execute("drop table brief")?;
    let batch = reads(Batch::new().parse("by key", BY_KEY), 4);
    let batch = batch.bind("", "brief", &[Some("1")]).execute("", 0);
    let frames = exchange(&mut connection, &reads(batch, 4).sync())?;
    let expected = format!("1{}E(42P01)Z", "2DC".repeat(4));
    ensure!(shape(&frames) == expected, "{}", shape(&frames));
    let batch = Batch::new().close('S', "by key").sync();
    exchange(&mut connection, &batch)?;
    goes_on(&mut connection)
}

fn writes_and_reads(dev: &Dev) -> Result<()> {
    let mut connection = dev.connect()?;
    let mut other = dev.connect()?;
    let of_new = "select count(*) from spread where id > 1000";
    for fails in [true, false] {
        let mut batch = Batch::new()
            .parse("new", "insert into spread values ($1, 'new')")
            .parse("change", "update spread set v = v || $2 where id = $1")
            .parse("look", BY_KEY);
        for id in 1001..=1100 {
            let id = id.to_string();
            batch = batch
                .bind("", "new", &[Some(&id)])
                .execute("", 0)
                .bind("", "change", &[Some(&id), Some("er")])
                .execute("", 0)
                .bind("", "look", &[Some(&id)])
                .execute("", 0);
        }
        if fails {
            batch = batch.bind("", "new", &[Some("1001")]).execute("", 0);
        }
        let frames = exchange(&mut connection, &batch.sync())?;
        let end = if fails { "2E(23505)Z" } else { "Z" };
        let expected = format!("111{}{end}", "2C2C2DC".repeat(100));
        ensure!(shape(&frames) == expected, "{}", shape(&frames));
        ensure!(values(&frames).iter().all(|value| value == "newer"));
        let count = other.execute(of_new)?;
        let expected = if fails { "0" } else { "100" };
        ensure!(count.as_deref() == Some(expected), "{fails}: {count:?}");
        for name in ["new", "change", "look"] {
            exchange(&mut connection, &Batch::new().close('S', name).sync())?;
        }
    }
    connection.execute("delete from spread where id > 1000")?;
    goes_on(&mut connection)
}

/// Two keys on different shards.
fn apart(dev: &Dev) -> Result<[String; 2]> {
    let mut keys = Vec::new();
    for shard in dev.shards() {
        let mut shard = Connection::open(&shard.server)?;
        keys.push(shard.execute("select min(id) from spread")?);
    }
    match keys.as_slice() {
        [Some(first), Some(second)] => Ok([first.clone(), second.clone()]),
        other => anyhow::bail!("{other:?}"),
    }
}

/// What a lock protects is not read before the lock is there.
fn lock_before_read(dev: &Dev) -> Result<()> {
    let [locked, read] = apart(dev)?;
    let (mut holder, mut connection) = (dev.connect()?, dev.connect()?);
    holder.execute("begin")?;
    holder.execute(&format!(
        "select 1 from spread where id = {locked} for update"
    ))?;
    let batch = Batch::new()
        .run("select v from spread where id = $1 for update", &[&locked])
        .run(BY_KEY, &[&read])
        .sync();
    connection.send(batch.bytes())?;
    let mut shard = Connection::open(&dev.shards()[0].server)?;
    let waiting = "select count(*) from pg_stat_activity where wait_event_type = 'Lock'";
    wait::until("a waiting statement", Duration::from_secs(30), || {
        let count = shard.execute(waiting).ok()?;
        (count.as_deref() == Some("1")).then_some(())
    })?;
    holder.execute(&format!("update spread set v = 'late' where id = {read}"))?;
    holder.execute("commit")?;
    let frames = connection.until_ready().context("after the lock")?;
    let found = values(&frames);
    ensure!(found.get(1).is_some_and(|v| v == "late"), "{found:?}");
    connection.execute(&format!(
        "update spread set v = 'v{read}' where id = {read}"
    ))?;
    Ok(())
}

//! A table changes its placement while clients read and write it: nothing is lost, and every
//! answer is of one placement or the other, never of a half.

use std::sync::atomic::{AtomicBool, AtomicI64, Ordering::SeqCst};

use anyhow::{Context, Result, ensure};
use automator67_tests::{automator::Dev, wire::Connection};

const ROWS: i64 = 2_000;
const CLIENTS: i64 = 4;
const ROUNDS: usize = 2;

/// What the clients share.
#[derive(Default)]
struct Load {
    ended: AtomicBool,
    written: AtomicI64,
}

#[test]
fn moving_a_table_under_load_loses_nothing() {
    let dev = Dev::start(3).expect("dev starts");
    let load = Load::default();
    run(&dev, &load, &move_around).expect("no answer is wrong");
}

#[test]
fn splitting_and_placing_under_load_loses_nothing() {
    let dev = Dev::start(3).expect("dev starts");
    let load = Load::default();
    run(&dev, &load, &split_and_place).expect("no answer is wrong");
}

type Mover = dyn Fn(&mut Connection) -> Result<()>;

fn run(dev: &Dev, load: &Load, mover_body: &Mover) -> Result<()> {
    let mut mover = dev.connect()?;
    mover.execute("create table ledger (id bigint primary key, v bigint not null)")?;
    mover.execute("create view ledger_view as select v from ledger")?;
    mover.execute(&format!(
        "insert into ledger select g, 2 * g from generate_series(1, {ROWS}) g"
    ))?;
    std::thread::scope(|scope| {
        let clients: Vec<_> = (1..=CLIENTS)
            .map(|client| scope.spawn(move || read_and_write(dev, load, client)))
            .collect();
        let moved = mover_body(&mut mover);
        load.ended.store(true, SeqCst);
        for client in clients {
            client.join().expect("no panic")?;
        }
        moved
    })?;
    let written = load.written.load(SeqCst);
    ensure!(written > 0, "nobody has written");
    let count = mover.execute("select count(*) from ledger")?;
    ensure!(
        count == Some((ROWS + written).to_string()),
        "{count:?} rows after {written} acknowledged inserts"
    );
    Ok(())
}

fn move_around(mover: &mut Connection) -> Result<()> {
    for _ in 0..ROUNDS {
        mover.execute("select create_distributed_table('ledger', 'id')")?;
        mover.execute("select undistribute_table('ledger')")?;
        mover.execute("select create_reference_table('ledger')")?;
        mover.execute("select undistribute_table('ledger')")?;
    }
    mover.execute("select create_distributed_table('ledger', 'id')")?;
    Ok(())
}

/// Ranges are split, values of a directory change places, and the whole schema moves.
fn split_and_place(mover: &mut Connection) -> Result<()> {
    mover.execute("select create_distributed_table('ledger', 'id', 'range')")?;
    for (value, shard) in [(1000, 2), (500, 3), (1500, 1), (2500, 3), (2100, 2)] {
        mover.execute(&format!(
            "select automator67.split_range('ledger', {value}, 'shard{shard}')"
        ))?;
    }
    mover.execute("select undistribute_table('ledger')")?;
    mover.execute("select create_distributed_table('ledger', 'id', 'directory')")?;
    for value in 1..=30 {
        let shard = value % 3 + 1;
        mover.execute(&format!(
            "select automator67.place('ledger', {value}, 'shard{shard}')"
        ))?;
    }
    mover.execute("select undistribute_table('ledger')")?;
    mover.execute("select automator67.distribute_schema('public', 'shard3')")?;
    mover.execute("select automator67.undistribute_schema('public')")?;
    Ok(())
}

fn read_and_write(dev: &Dev, load: &Load, client: i64) -> Result<()> {
    let mut connection = dev.connect()?;
    let old = format!("select count(*), sum(v) from ledger where id <= {ROWS}");
    let mut turn = 0;
    while !load.ended.load(SeqCst) {
        turn += 1;
        let id = ROWS + turn * CLIENTS + client;
        connection.execute(&format!("insert into ledger values ({id}, 0)"))?;
        load.written.fetch_add(1, SeqCst);
        let own = connection.execute(&format!("select v from ledger where id = {id}"))?;
        ensure!(
            own.as_deref() == Some("0"),
            "row {id} is not there: {own:?}"
        );
        let count = connection.execute(&old).context("count")?;
        ensure!(count == Some(ROWS.to_string()), "{count:?} of {ROWS} rows");
        let sum = connection.execute("select sum(v) from ledger_view")?;
        ensure!(sum == Some((ROWS * (ROWS + 1)).to_string()), "sum {sum:?}");
        let one = turn % ROWS + 1;
        let doubled = connection.execute(&format!("select v from ledger where id = {one}"))?;
        ensure!(
            doubled == Some((2 * one).to_string()),
            "row {one}: {doubled:?}"
        );
    }
    connection.terminate()
}

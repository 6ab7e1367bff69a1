//! Global unique indexes while many clients write values that clash, through two proxies: no value
//! twice, and the index holds exactly what the table holds, also after a proxy was killed.

use std::{
    collections::BTreeMap,
    sync::atomic::{AtomicBool, AtomicU64, Ordering::SeqCst},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use automator67_tests::{
    automator::Dev,
    wait,
    wire::{Connection, Server},
};
use nix::sys::signal::Signal;
use rand::{Rng, SeedableRng, rngs::StdRng};

const CLIENTS: u64 = 64;
const VALUES: u32 = 120;
const IDS: u32 = 400;
/// So many statements or transactions each half of a run has at least: on a busy machine the first
/// connections take their time.
const WRITES_MIN: u64 = 200;
const LIMIT: Duration = Duration::from_secs(90);
/// Clashes, deadlocks, what a transaction is told that came too late, and that a connection to a
/// shard was long in coming, as it can be when a busy machine opens the first ones. Nothing of such
/// a transaction is there.
const EXPECTED: &[&str] = &["23505", "40P01", "40001", "08006", "53300"];

#[test]
fn no_value_is_there_twice() {
    let dev = Dev::start(3).expect("dev starts");
    run(&dev).expect("table and index agree");
}

#[test]
fn an_index_is_made_while_others_write() {
    let dev = Dev::start(3).expect("dev starts");
    make_under_load(&dev).expect("table and index agree");
    refuse_others(&dev).expect("nobody writes behind the index's back");
}

/// What the clients share.
#[derive(Default)]
struct Load {
    ended: AtomicBool,
    /// One of the proxies was killed: its clients may lose their connections.
    killed: AtomicBool,
    done: AtomicU64,
    clashes: AtomicU64,
}

fn seconds() -> Duration {
    let given = std::env::var("AUTOMATOR67_SECONDS").ok();
    Duration::from_secs(given.and_then(|text| text.parse().ok()).unwrap_or(5))
}

fn run(dev: &Dev) -> Result<()> {
    let mut one = dev.connect()?;
    one.execute("create table people (id bigint primary key, email text, note integer)")?;
    one.execute("select create_distributed_table('people', 'id')")?;
    one.execute("insert into people select g, 'e' || g, 0 from generate_series(1, 60) g")?;
    one.execute("select automator67.create_unique_index('people', 'email')")?;
    let first = dev.second_proxy("first", "")?;
    let mut second = dev.second_proxy("second", "")?;
    wait_for_index(&first.server)?;
    wait_for_index(&second.server)?;

    let load = Load::default();
    play([&first.server, &second.server], &load, |_| Ok(()))?;
    compare(dev).context("after two proxies")?;
    let (done, clashes) = (load.done.load(SeqCst), load.clashes.load(SeqCst));
    eprintln!("{done} writes, {clashes} refused");
    ensure!(done > 0 && clashes > 0, "the clients have not clashed");

    let load = Load::default();
    let server = second.server.clone();
    play([&first.server, &server], &load, |load| {
        load.killed.store(true, SeqCst);
        second.group.signal_all(Signal::SIGKILL)?;
        second.group.wait(Duration::from_secs(10))?;
        Ok(())
    })?;
    let view = "select count(*) from automator67.transactions";
    wait::until(
        "prepared transactions to end",
        Duration::from_secs(30),
        || (one.execute(view).ok()?.as_deref() == Some("0")).then_some(()),
    )?;
    compare(dev).context("after one proxy was killed")
}

fn wait_for_index(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    wait::until("the index", Duration::from_secs(10), || {
        let count = connection.execute("select count(*) from automator67.unique_indexes");
        (count.ok()?.as_deref() == Some("1")).then_some(())
    })
}

/// Clients write; in the middle, `middle` happens.
fn play(
    servers: [&Server; 2],
    load: &Load,
    middle: impl FnOnce(&Load) -> Result<()>,
) -> Result<()> {
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|number| {
                let server = servers[(number % 2) as usize];
                scope.spawn(move || {
                    let result = write(server, load, number);
                    let gone = number % 2 == 1 && load.killed.load(SeqCst);
                    result.or_else(|error| if gone { Ok(()) } else { Err(error) })
                })
            })
            .collect();
        let half = || {
            let (started, done) = (Instant::now(), load.done.load(SeqCst));
            wait::until("clients to write", LIMIT, || {
                let enough = load.done.load(SeqCst) >= done + WRITES_MIN;
                (enough && started.elapsed() >= seconds() / 2).then_some(())
            })
        };
        let result = half().and_then(|()| middle(load)).and_then(|()| half());
        load.ended.store(true, SeqCst);
        for client in clients {
            client.join().expect("no panic")?;
        }
        result
    })
}

fn write(server: &Server, load: &Load, number: u64) -> Result<()> {
    let mut random = StdRng::seed_from_u64(number);
    let mut connection = Connection::open(server)?;
    while !load.ended.load(SeqCst) {
        let id = |random: &mut StdRng| random.random_range(1..=IDS);
        let value = |random: &mut StdRng| format!("'e{}'", random.random_range(0..VALUES));
        let (a, b) = (id(&mut random), id(&mut random));
        let (v, w) = (value(&mut random), value(&mut random));
        let statements = match random.random_range(0..9) {
            0 | 1 => vec![format!("insert into people values ({a}, {v}, 0)")],
            2 => vec![format!(
                "insert into people values ({a}, {v}, 0), ({b}, {w}, 0), ({}, null, 0)",
                id(&mut random)
            )],
            3 => vec![format!("update people set email = {v} where id = {a}")],
            4 => vec![format!("update people set email = {v} where email = {w}")],
            5 => vec![format!("delete from people where email = {v}")],
            6 => vec![
                "begin".to_owned(),
                format!("delete from people where id = {a}"),
                format!("insert into people values ({a}, {v}, 1)"),
                format!("update people set email = {w} where id = {b}"),
                "commit".to_owned(),
            ],
            7 => vec![
                "begin".to_owned(),
                format!(
                    "insert into people values ({a}, {v}, 2) on conflict (id) do update set email = excluded.email"
                ),
                "savepoint s".to_owned(),
                format!("update people set email = null where id in ({a}, {b})"),
                "rollback to s".to_owned(),
                if random.random() {
                    "commit"
                } else {
                    "rollback"
                }
                .to_owned(),
            ],
            _ => vec![format!("select id from people where email = {v}")],
        };
        for text in statements {
            let frames = connection.simple(&text)?;
            let Some(error) = frames.iter().find(|frame| frame.tag == b'E') else {
                continue;
            };
            load.clashes.fetch_add(1, SeqCst);
            let state = error.field(b'C').unwrap_or_default();
            if !EXPECTED.contains(&state.as_str()) {
                let field = |code| error.field(code).unwrap_or_default();
                bail!("{text}: {state} {} {}", field(b'M'), field(b'D'));
            }
            // Outside of a block this is a warning.
            connection.simple("rollback")?;
            break;
        }
        load.done.fetch_add(1, SeqCst);
    }
    connection.terminate()
}

/// Readers go on, writers wait or repeat; the index holds what was there and what came.
fn make_under_load(dev: &Dev) -> Result<()> {
    let mut one = dev.connect()?;
    one.execute("create table people (id bigint primary key, email text)")?;
    one.execute("select create_distributed_table('people', 'id')")?;
    one.execute("insert into people select g, 'e' || g from generate_series(1, 20000) g")?;
    let load = Load::default();
    std::thread::scope(|scope| {
        let writers: Vec<_> = (1..=4)
            .map(|number| {
                let load = &load;
                scope.spawn(move || insert(dev, load, number * 1_000_000))
            })
            .collect();
        let written = |count: u64| {
            let from = load.done.load(SeqCst);
            wait::until("writers", LIMIT, || {
                (load.done.load(SeqCst) >= from + count).then_some(())
            })
        };
        let result = written(50)
            .and_then(|()| one.execute("select automator67.create_unique_index('people', 'email')"))
            .and_then(|_| written(50));
        load.ended.store(true, SeqCst);
        for writer in writers {
            writer.join().expect("no panic")?;
        }
        result
    })?;
    compare(dev)
}

fn insert(dev: &Dev, load: &Load, first: u64) -> Result<()> {
    let mut connection = dev.connect()?;
    let mut id = first;
    while !load.ended.load(SeqCst) {
        id += 1;
        let frames = connection.simple(&format!("insert into people values ({id}, 'e{id}')"))?;
        if let Some(error) = frames.iter().find(|frame| frame.tag == b'E') {
            let state = error.field(b'C').unwrap_or_default();
            ensure!(state == "40001", "{state} {:?}", error.field(b'M'));
        }
        let read = connection.execute("select email from people where id = 7")?;
        ensure!(read.as_deref() == Some("e7"), "{read:?}");
        load.done.fetch_add(1, SeqCst);
    }
    connection.terminate()
}

/// Writes that the proxy does not see fail.
fn refuse_others(dev: &Dev) -> Result<()> {
    let mut shard = Connection::open(&dev.shards()[1].server)?;
    let (state, message) = shard.failure("insert into people values (-1, 'behind')")?;
    ensure!(state == "55000", "{state} {message}");
    let mut one = dev.connect()?;
    one.execute(
        "create function hidden() returns integer language plpgsql volatile as
         $$ begin execute 'insert into people values (-1, ''hidden'')'; return 1; end $$",
    )?;
    one.execute("select automator67.declare_safe('hidden')")?;
    let (state, message) = one.failure("select hidden()")?;
    ensure!(state == "40001", "{state} {message}");
    compare(dev)
}

/// The table's rows and the index's, each from all shards.
fn compare(dev: &Dev) -> Result<()> {
    let mut table = BTreeMap::new();
    let mut index = BTreeMap::new();
    for shard in dev.shards() {
        let mut connection = Connection::open(&shard.server)?;
        let rows = connection.rows("select email, id from people where email is not null")?;
        collect(&mut table, rows).context("rows of the table")?;
        let rows = connection.rows("select value, owner from automator67_index.index_1")?;
        collect(&mut index, rows).context("rows of the index")?;
        let left = connection.execute("select count(*) from automator67.index_change")?;
        ensure!(left.as_deref() == Some("0"), "{left:?} changes are left");
    }
    ensure!(!table.is_empty(), "no rows are left");
    let differs = |one: &BTreeMap<String, String>, other: &BTreeMap<String, String>| {
        let missing = one
            .iter()
            .filter(|(value, id)| other.get(*value) != Some(id));
        format!("{:?}", missing.take(10).collect::<Vec<_>>())
    };
    ensure!(
        table == index,
        "only in the table {}, only in the index {}",
        differs(&table, &index),
        differs(&index, &table)
    );
    let mut connection = dev.connect()?;
    for (value, id) in table.into_iter().take(200) {
        let found =
            connection.execute(&format!("select id from people where email = '{value}'"))?;
        ensure!(
            found == Some(id.clone()),
            "{value} is found at {found:?}, not at {id}"
        );
    }
    Ok(())
}

fn collect(all: &mut BTreeMap<String, String>, rows: Vec<Vec<Option<String>>>) -> Result<()> {
    for row in rows {
        let [Some(value), Some(id)] = row.as_slice() else {
            bail!("a row {row:?}");
        };
        if let Some(other) = all.insert(value.clone(), id.clone()) {
            bail!("{value} is there twice: {other} and {id}");
        }
    }
    Ok(())
}

//! Snapshots of several shards that are opened while others commit: one shard's is taken before a
//! commit, another's after a commit that has read the first one. The first commit used one shard
//! alone and has left no notes.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{pair::Pair, wait, wire::Connection};

const SHARDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

/// What follows a commit on the first shard, by who has seen it. `{0}` to `{2}` are keys on the
/// shards, `{n}` is the value that is written.
const FOLLOWERS: &[(&str, &[&str])] = &[
    (
        "read committed",
        &[
            "begin",
            "select v from points where id = {0}",
            "update points set v = {n} where id = {1}",
            "commit",
        ],
    ),
    (
        "repeatable read",
        &[
            "begin isolation level repeatable read",
            "select v from points where id = {0}",
            "update points set v = {n} where id = {1}",
            "commit",
        ],
    ),
    (
        "written before it is read",
        &[
            "begin",
            "update points set v = {n} where id = {1}",
            "select v from points where id = {0}",
            "commit",
        ],
    ),
    (
        "locked rows and savepoints",
        &[
            "begin",
            "savepoint a",
            "select v from points where id = {0} for update",
            "savepoint b",
            "update points set v = {n} where id = {1}",
            "release a",
            "commit",
        ],
    ),
    (
        "a statement of its own",
        &["update points set v = (select max(v) from points where id = {0}) where id = {1}"],
    ),
    (
        "statements over all shards",
        &[
            "begin",
            "insert into copies select {n}, max(v) from points",
            "update points set v = {n} where id = {1}",
            "commit",
        ],
    ),
    (
        "on two shards",
        &[
            "begin",
            "select v from points where id = {0}",
            "update points set v = {n} where id in ({1}, {2})",
            "commit",
        ],
    ),
    (
        "over a third shard",
        &[
            "begin",
            "select v from points where id = {0}",
            "update points set v = {n} where id = {2}",
            "commit",
            "begin",
            "select v from points where id = {2}",
            "update points set v = {n} where id = {1}",
            "commit",
        ],
    ),
    (
        "rolled back in part",
        &[
            "begin",
            "select v from points where id = {0}",
            "savepoint a",
            "update points set v = -1 where id = {2}",
            "rollback to a",
            "update points set v = {n} where id = {1}",
            "commit",
        ],
    ),
];

/// Who reads both: what it says first, how it begins, and how it ends.
const READERS: &[(&str, &str, &str)] = &[
    (
        "set automator67.consistency = 'snapshot'",
        "begin",
        "commit",
    ),
    (
        "select 1",
        "begin isolation level repeatable read",
        "commit",
    ),
    (
        "set automator67.consistency = 'snapshot'",
        "select 1",
        "select 1",
    ),
    (
        "set automator67.consistency = 'snapshot'",
        "begin read only",
        "rollback",
    ),
];

#[test]
fn what_a_commit_has_read_is_in_the_snapshot_that_shows_it() {
    let pair = Pair::start(SHARDS).expect("a pair of proxies");
    let keys = keys(&pair).expect("a key on each shard");
    let mut wrong = String::new();
    let mut value = 0;
    for (name, follower) in FOLLOWERS {
        for reader in READERS {
            value += 1;
            let told = follow(&pair, &keys, value, follower, *reader);
            if let Err(error) = told {
                pair.a.arm("off").expect("a proxy that answers");
                wrong += &format!("\n{name}, {reader:?}: {error:#}");
            }
        }
    }
    assert!(wrong.is_empty(), "{wrong}");
}

/// One key on each shard.
fn keys(pair: &Pair) -> Result<Vec<i64>> {
    let mut connection = pair.a.connect()?;
    for text in [
        "create table points (id bigint primary key, v bigint not null)",
        "select create_distributed_table('points', 'id')",
        "insert into points select g, 0 from generate_series(1, 60) g",
        "create table copies (id bigint primary key, v bigint)",
        "select create_distributed_table('copies', 'id')",
    ] {
        connection.execute(text)?;
    }
    let places = pair.places("points", "id")?;
    let key_on = |shard| places.iter().find(|(_, place)| **place == shard);
    let keys = (0..SHARDS).map(|shard| key_on(shard).map(|(key, _)| *key));
    let keys = keys.collect::<Option<_>>().context("a key on each shard")?;
    wait::until("B to know the tables", PATIENCE, || {
        let mut connection = pair.b.connect().ok()?;
        connection.execute("select count(*) from copies").ok()?
    })?;
    Ok(keys)
}

/// A reader's snapshot of the first shard is taken; then a commit there, and one on the second shard
/// that has seen the first; then the reader's snapshot of the second shard.
fn follow(
    pair: &Pair,
    keys: &[i64],
    value: i64,
    follower: &[&str],
    (set, begin, end): (&str, &str, &str),
) -> Result<()> {
    let ([first, second], b) = ([keys[0], keys[1]], &pair.b);
    let both = format!("select v from points where id in ({first}, {second}) order by id");
    let mut reader = pair.a.connect()?;
    reader.execute(set)?;
    // Its plan and its columns are known.
    let before = reader.rows(&both)?;
    let name = format!("reader {value}");
    reader.execute(&format!("set application_name = '{name}'"))?;
    pair.a.arm("snapshot.one_sent=1*pause")?;
    std::thread::scope(|scope| -> Result<()> {
        let reading = scope.spawn(|| -> Result<_> {
            reader.execute(begin)?;
            let rows = reader.rows(&both)?;
            reader.execute(end)?;
            Ok(rows)
        });
        let taken = format!(
            "select 1 from pg_stat_activity where application_name = '{name}' and \
             (state = 'idle in transaction' and query ~ 'commit_register' \
             or state = 'idle' and query = 'COMMIT')"
        );
        wait::until("the first snapshot", PATIENCE, || {
            let mut shard = Connection::open(pair.shard(0)).ok()?;
            shard.execute(&taken).ok()?
        })?;
        let written = write(b.connect()?, keys, value, follower);
        pair.a.arm("off")?;
        let rows = reading.join().expect("no panic")?;
        written?;
        let mut after = vec![Some(value.to_string()); 2];
        after.sort();
        let rows: Vec<_> = rows.into_iter().flatten().collect();
        ensure!(
            rows == after,
            "{rows:?} after {before:?}, and not {after:?}"
        );
        Ok(())
    })
}

fn write(mut connection: Connection, keys: &[i64], value: i64, follower: &[&str]) -> Result<()> {
    let [first, second, third] = keys else {
        anyhow::bail!("{} keys", keys.len());
    };
    connection.execute(&format!("update points set v = {value} where id = {first}"))?;
    for text in follower {
        let text = text
            .replace("{0}", &first.to_string())
            .replace("{1}", &second.to_string())
            .replace("{2}", &third.to_string())
            .replace("{n}", &value.to_string());
        connection.execute(&text).context(text)?;
    }
    Ok(())
}

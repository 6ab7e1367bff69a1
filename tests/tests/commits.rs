//! Commits over several shards whose proxy is slow, whose transaction's snapshots stay, and what
//! they leave behind.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{pair::Pair, wait, wire::Connection};

const SHARDS: usize = 3;
const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn commits_over_shards_are_told_and_forgotten() {
    let mut pair = Pair::start(SHARDS).expect("a pair of proxies");
    let keys = keys(&pair).expect("a key on each shard");
    overruled(&pair, &keys).expect("a proxy that stalls is overruled");
    held(&pair, &keys).expect("a snapshot waits for a commit in the middle");
    default_isolation(&pair, &keys).expect("snapshots that stay by default");
    old_notes(&mut pair).expect("old notes are removed");
}

/// One key on each shard.
fn keys(pair: &Pair) -> Result<Vec<i64>> {
    let mut connection = pair.a.connect()?;
    connection.execute("create table points (id bigint primary key, v int not null)")?;
    connection.execute("select create_distributed_table('points', 'id')")?;
    connection.execute("insert into points select g, 0 from generate_series(1, 60) g")?;
    let places = pair.places("points", "id")?;
    let key_on = |shard| places.iter().find(|(_, place)| **place == shard);
    let keys = (0..SHARDS).map(|shard| key_on(shard).map(|(key, _)| *key));
    let keys = keys.collect::<Option<_>>().context("a key on each shard")?;
    wait::until("B to know the table", PATIENCE, || {
        let count = pair
            .b
            .connect()
            .ok()?
            .execute("select count(*) from points");
        (count.ok()?.as_deref() == Some("60")).then_some(())
    })?;
    Ok(keys)
}

fn transfer(connection: &mut Connection, from: i64, to: i64) -> Result<()> {
    connection.execute("begin")?;
    connection.execute(&format!("update points set v = v - 1 where id = {from}"))?;
    connection.execute(&format!("update points set v = v + 1 where id = {to}"))?;
    connection.execute("commit")?;
    Ok(())
}

/// A stands still between the two phases for longer than B waits. B rolls the transaction back,
/// and A cannot commit it any more.
fn overruled(pair: &Pair, keys: &[i64]) -> Result<()> {
    pair.a.arm("commit.after_prepare=pause")?;
    let mut stalled = pair.a.connect()?;
    std::thread::scope(|scope| -> Result<()> {
        let committing = scope.spawn(|| transfer(&mut stalled, keys[1], keys[2]));
        wait::until("a prepared part", PATIENCE, || {
            (!pair.prepared(None).ok()?.is_empty()).then_some(())
        })?;
        wait::until("the recovery to end it", PATIENCE, || {
            pair.prepared(None).ok()?.is_empty().then_some(())
        })?;
        pair.a.arm("off")?;
        let ended = committing.join().expect("no panic");
        let error = format!("{:#}", ended.err().context("committed nevertheless")?);
        ensure!(
            error.contains("40001") && error.contains("its commit took too long"),
            "{error}"
        );
        Ok(())
    })?;
    let sum = "select sum(v) || ' ' || sum(abs(v)) from points";
    let sums = stalled.execute(sum)?;
    ensure!(sums.as_deref() == Some("0 0"), "{sums:?}");
    transfer(&mut stalled, keys[1], keys[2])?;
    let sums = stalled.execute(sum)?;
    ensure!(sums.as_deref() == Some("0 2"), "{sums:?}");
    Ok(())
}

/// A stands still between the anchor's COMMIT and the others'. A snapshot on B waits for that, and
/// sees all of it.
fn held(pair: &Pair, keys: &[i64]) -> Result<()> {
    let sum = "select sum(v) || ' ' || sum(abs(v)) from points";
    let mut strong = pair.b.connect()?;
    let mut snapshot = pair.b.connect()?;
    snapshot.execute("set automator67.consistency = 'snapshot'")?;
    let mut slow = pair.a.connect()?;
    pair.a.arm("commit.before_second_phase=pause")?;
    std::thread::scope(|scope| -> Result<()> {
        let committing = scope.spawn(|| transfer(&mut slow, keys[0], keys[1]));
        wait::until("a commit in the middle", PATIENCE, || {
            (strong.execute(sum).ok()?.as_deref() == Some("-1 3")).then_some(())
        })?;
        let reading = scope.spawn(|| snapshot.execute(sum));
        let waits = "select waitstart from pg_locks where not granted \
            and relation = 'automator67.fence'::regclass and waitstart is not null";
        let first = wait::until("the snapshot to wait", PATIENCE, || {
            pair.everywhere(waits).ok()?.pop()
        })?;
        // Each wait is short.
        wait::until("the snapshot to wait again", PATIENCE, || {
            pair.everywhere(waits)
                .ok()?
                .pop()
                .filter(|now| *now != first)
        })?;
        ensure!(!reading.is_finished(), "the snapshot did not wait");
        pair.a.arm("off")?;
        committing.join().expect("no panic")?;
        let sums = reading.join().expect("no panic")?;
        ensure!(sums.as_deref() == Some("0 2"), "{sums:?}");
        Ok(())
    })
}

/// Commits share rows of `automator67.commit_register`, which must not make transactions fail that
/// have nothing else in common: their snapshots are older than their commits.
fn default_isolation(pair: &Pair, keys: &[i64]) -> Result<()> {
    let rounds = 100;
    std::thread::scope(|scope| -> Result<()> {
        let sessions: Vec<_> = (0..4)
            .map(|session| {
                scope.spawn(move || -> Result<()> {
                    let proxy = if session % 2 == 0 { &pair.a } else { &pair.b };
                    let mut connection = proxy.connect()?;
                    connection.execute("set default_transaction_isolation = 'repeatable read'")?;
                    // A row of its own on each shard.
                    let ids: Vec<_> = keys.iter().map(|key| 1000 + session * 100 + key).collect();
                    for id in &ids {
                        connection.execute(&format!("insert into points values ({id}, 0)"))?;
                    }
                    let list = ids
                        .iter()
                        .map(i64::to_string)
                        .collect::<Vec<_>>()
                        .join(", ");
                    for round in 0..rounds {
                        let text = format!("update points set v = v + 1 where id in ({list})");
                        let updated = connection.execute(&text);
                        updated.with_context(|| format!("session {session}, round {round}"))?;
                    }
                    Ok(())
                })
            })
            .collect();
        sessions
            .into_iter()
            .try_for_each(|session| session.join().expect("no panic"))
    })?;
    let count = "select count(*) from points where v = 100";
    let count = pair.b.connect()?.execute(count)?;
    ensure!(count.as_deref() == Some("12"), "{count:?}");
    Ok(())
}

/// A proxy that starts removes the notes of slots that no shard has a new one of.
fn old_notes(pair: &mut Pair) -> Result<()> {
    for shard in 0..SHARDS {
        let mut connection = Connection::open(pair.shard(shard))?;
        connection.execute(
            "update automator67.commit_register set changed_at = now() - '2 days'::interval",
        )?;
        // One more slot, used on one shard a moment ago.
        connection.execute("select automator67.write_note(77, 5, 100, '{0,100,100,100}', '{}')")?;
        if shard > 0 {
            connection.execute("update automator67.commit_register set changed_at = now() - '2 days'::interval where proxy = 77")?;
        }
    }
    pair.b.kill()?;
    pair.b.start_again()?;
    let list = "select proxy, slot from automator67.commit_register order by 1, 2";
    wait::until("only the slot that was used to be left", PATIENCE, || {
        let left = pair.everywhere(list).ok()?;
        let rows: Vec<_> = left.iter().map(|(_, row)| row.join(" ")).collect();
        (rows == ["77 5", "77 5", "77 5"]).then_some(())
    })?;
    let mut reader = pair.b.connect()?;
    reader.execute("set automator67.consistency = 'snapshot'")?;
    let sums = reader.execute("select sum(v) from points")?;
    ensure!(sums.as_deref() == Some("1200"), "{sums:?}");
    Ok(())
}

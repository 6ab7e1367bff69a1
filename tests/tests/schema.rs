//! Changes of the schema beside each other and beside changes of where rows are, and what of them
//! every proxy is told.

use std::time::Duration;

use anyhow::{Context, Result, ensure};
use automator67_tests::{pair::Pair, wait, wire::Connection};

const PATIENCE: Duration = Duration::from_secs(20);

#[test]
fn changes_of_the_schema_go_on_side_by_side() {
    let pair = Pair::start(3).expect("a pair of proxies");
    told(&pair).expect("what every proxy is told");
    beside(&pair).expect("an open change holds up nobody");
    placed_beside(&pair).expect("placements wait for open changes");
    looked_at_again(&pair).expect("what has changed meanwhile is seen");
    both_place(&pair).expect("two that change and place");
}

fn epoch(pair: &Pair) -> Result<u64> {
    let mut home = Connection::open(pair.shard(0))?;
    let epoch = home.execute("select value from automator67.epoch")?;
    Ok(epoch.context("an epoch")?.parse()?)
}

/// Only what changes something that proxies know makes an epoch, one for each transaction.
fn told(pair: &Pair) -> Result<()> {
    let mut a = pair.a.connect()?;
    for (texts, epochs) in [
        (&["create table u (id int primary key, v text)"][..], 1),
        (&["create table if not exists u (id int)"], 0),
        (&["drop table if exists nobody"], 0),
        (&["create index if not exists u_pkey on u (id)"], 0),
        (&["alter table if exists nobody add column x int"], 0),
        (&["create schema if not exists public"], 0),
        (&["drop function if exists nobody()"], 0),
        (&["comment on table u is 'x'"], 0),
        (&["comment on column u.v is 'y'"], 0),
        (&["analyze u"], 0),
        (&["create role somebody"], 1),
        (&["alter role somebody password 'x'"], 0),
        (&["alter role somebody createdb"], 1),
        (
            &[
                "begin",
                "create table w (id int)",
                "alter table w add v int",
                "drop table w",
                "commit",
            ],
            1,
        ),
        (&["begin", "create table w (id int)", "rollback"], 0),
        (
            &[
                "begin",
                "savepoint s",
                "create table w (id int)",
                "rollback to s",
                "commit",
            ],
            0,
        ),
        (
            &[
                "begin",
                "insert into u values (1, 'x')",
                "drop table if exists nobody",
                "commit",
            ],
            1,
        ),
        (&["truncate u restart identity"], 0),
        (&["alter table u add column w int default 3"], 1),
    ] {
        let before = epoch(pair)?;
        for text in texts {
            a.execute(text).with_context(|| (*text).to_owned())?;
        }
        let made = epoch(pair)? - before;
        ensure!(made == epochs, "{texts:?} made {made} epochs");
    }
    let found = a.execute("insert into u (id) values (2) returning w")?;
    ensure!(found.as_deref() == Some("3"), "{found:?}");
    wait::until("B to know the column", PATIENCE, || {
        let found = pair
            .b
            .connect()
            .ok()?
            .execute("select w from u where id = 2");
        (found.ok()?.as_deref() == Some("3")).then_some(())
    })
}

/// Nobody waits for a transaction that has changed something else.
fn beside(pair: &Pair) -> Result<()> {
    let mut open = pair.a.connect()?;
    open.execute("create table with_default (id serial primary key)")?;
    open.execute("begin")?;
    open.execute("create table mine (id int primary key)")?;
    open.execute("alter table mine add column v int")?;
    // Its default is a part of what all read, and nobody waits for it.
    open.execute("alter table with_default add column v int")?;
    for proxy in [&pair.a, &pair.b] {
        let mut other = proxy.connect()?;
        other.execute("set lock_timeout = '5s'")?;
        for text in [
            "create table yours (id int primary key)",
            "create index on yours (id)",
            "create view seen as select id from yours",
            "drop view seen",
            "drop table yours",
        ] {
            other.execute(text).with_context(|| text.to_owned())?;
        }
    }
    for proxy in [&pair.a, &pair.b] {
        let behind = proxy.log().contains("does not follow");
        ensure!(!behind, "{}", proxy.log_end());
    }
    // It plans with what it has made itself.
    open.execute("insert into mine values (1, 2)")?;
    let found = open.execute("select v from mine")?;
    ensure!(found.as_deref() == Some("2"), "{found:?}");
    open.execute("commit")?;
    let found = pair.a.connect()?.execute("select v from mine")?;
    ensure!(found.as_deref() == Some("2"), "{found:?}");
    Ok(())
}

/// Sessions that wait for a lock on a relation of the home shard.
fn waiting(pair: &Pair) -> Option<()> {
    let text = "select 1 from pg_locks where not granted limit 1";
    Connection::open(pair.shard(0)).ok()?.execute(text).ok()??;
    Some(())
}

/// What a placement finds stays until its end; what it has found changes nobody meanwhile.
fn placed_beside(pair: &Pair) -> Result<()> {
    let mut open = pair.a.connect()?;
    open.execute("create table put (id bigint primary key, other bigint)")?;
    open.execute("begin")?;
    open.execute("create table refers (id bigint primary key references put)")?;
    std::thread::scope(|scope| -> Result<()> {
        let placing = scope.spawn(|| -> Result<(String, String)> {
            let mut placing = pair.b.connect()?;
            placing.failure("select create_distributed_table('put', 'other')")
        });
        wait::until("the placement to wait", PATIENCE, || waiting(pair))?;
        open.execute("commit")?;
        let (code, message) = placing.join().expect("no panic")?;
        ensure!(code == "0A000", "{code} {message}");
        Ok(())
    })?;
    // The other way round.
    let mut placing = pair.b.connect()?;
    placing.execute("begin")?;
    placing.execute("select create_distributed_table('put', 'id')")?;
    std::thread::scope(|scope| -> Result<()> {
        let changing = scope.spawn(|| pair.a.connect()?.execute("create table later (id int)"));
        wait::until("the change to wait", PATIENCE, || waiting(pair))?;
        placing.execute("commit")?;
        changing.join().expect("no panic")?;
        Ok(())
    })
}

/// A transaction that has changed something places a table that another one has changed.
fn looked_at_again(pair: &Pair) -> Result<()> {
    let mut other = pair.a.connect()?;
    other.execute("create table twice (id bigint primary key, v bigint)")?;
    let mut placing = pair.b.connect()?;
    placing.execute("begin")?;
    placing.execute("create table unrelated (id int)")?;
    other.execute("begin")?;
    other.execute("alter table twice add constraint twice_v unique (v)")?;
    std::thread::scope(|scope| -> Result<()> {
        let placed =
            scope.spawn(|| placing.failure("select create_distributed_table('twice', 'id')"));
        wait::until("the placement to wait", PATIENCE, || waiting(pair))?;
        other.execute("commit")?;
        let (code, message) = placed.join().expect("no panic")?;
        ensure!(
            code == "0A000" && message.contains("twice_v"),
            "{code} {message}"
        );
        Ok(())
    })
}

/// Migrations that make and place tables of their own, at the same time.
fn both_place(pair: &Pair) -> Result<()> {
    std::thread::scope(|scope| -> Result<()> {
        let sessions =
            [("one", &pair.a), ("two", &pair.b), ("three", &pair.a)].map(|(name, proxy)| {
                scope.spawn(move || -> Result<()> {
                    let mut session = proxy.connect()?;
                    for round in 0..5 {
                        session.execute("begin")?;
                        session.execute(&format!(
                            "create table {name}_{round} (id bigint primary key)"
                        ))?;
                        let place =
                            format!("select create_distributed_table('{name}_{round}', 'id')");
                        session.execute(&place)?;
                        session
                            .execute(&format!("insert into {name}_{round} values (1), (2), (3)"))?;
                        session.execute("commit")?;
                    }
                    Ok(())
                })
            });
        sessions
            .into_iter()
            .try_for_each(|session| session.join().expect("no panic"))
    })?;
    let count = "select count(*) from one_4, two_4, three_4";
    wait::until("A to know all tables", PATIENCE, || {
        let count = pair.a.connect().ok()?.execute(count).ok()??;
        (count == "27").then_some(())
    })
}

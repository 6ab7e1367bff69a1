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
    refused_by_rows(&pair).expect("what a row refuses is nowhere");
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

/// Tables of the schema `rowed` with their columns, constraints and indexes, and how many rows.
const SHAPE: &str = "
    select string_agg(one, '; ' order by one) from (
        select a.attrelid::regclass || ' ' || a.attname || ' ' || a.attnotnull || a.atthasdef
            || format_type(a.atttypid, a.atttypmod) as one
        from pg_attribute a where a.attnum > 0 and not a.attisdropped and a.attrelid in
            (select oid from pg_class where relnamespace = 'rowed'::regnamespace)
        union all
        select c.conrelid::regclass || ' ' || c.conname || pg_get_constraintdef(c.oid) || c.convalidated
        from pg_constraint c where c.connamespace = 'rowed'::regnamespace
        union all
        select i.indexrelid::regclass || ' ' || i.indisvalid || pg_get_indexdef(i.indexrelid)
        from pg_index i join pg_class r on r.oid = i.indexrelid
        where r.relnamespace = 'rowed'::regnamespace
    ) shape";

/// One row of one shard is against a change: no shard has made a part of it, whichever shard that is.
fn refused_by_rows(pair: &Pair) -> Result<()> {
    let mut a = pair.a.connect()?;
    for text in [
        "create schema rowed",
        "create domain rowed.d as integer",
        "create table rowed.other (id integer primary key, v integer, unique (id, v))",
        "create table rowed.t (id integer, n rowed.d, e text, span int4range)",
        "select create_distributed_table('rowed.other', 'id')",
        "select create_distributed_table('rowed.t', 'id')",
        "insert into rowed.other select g, g from generate_series(1, 40) g",
        "insert into rowed.t select g, g, g, int4range(g, g + 1) from generate_series(1, 40) g",
        "insert into rowed.t values (1, 1, 1), (2, 2, 2), (3, 3, 3), (4, 4, 4)",
    ] {
        a.execute(text).context(text)?;
    }
    // Each time another shard has the row.
    let mut refusing = std::collections::BTreeSet::new();
    for id in 1..=40 {
        let mut shards = 0..3;
        let place = shards.find(|shard| {
            let text = format!("select count(*) from rowed.t where id = {id}");
            let direct = Connection::open(pair.shard(*shard));
            direct
                .and_then(|mut direct| direct.execute(&text))
                .ok()
                .flatten()
                .as_deref()
                != Some("0")
        });
        if !refusing.insert(place) {
            continue;
        }
        a.execute("update rowed.t set n = id, e = id")?;
        a.execute(&format!(
            "update rowed.t set n = -1, e = null where id = {id}"
        ))?;
        refused_everywhere(pair, &mut a).with_context(|| format!("the row of {id}"))?;
    }
    ensure!(refusing.len() == 3, "{refusing:?}");
    a.execute("drop schema rowed cascade")?;
    Ok(())
}

fn refused_everywhere(pair: &Pair, a: &mut Connection) -> Result<()> {
    let shapes = || -> Result<Vec<Option<String>>> {
        let shards = (0..3).map(|shard| Connection::open(pair.shard(shard))?.execute(SHAPE));
        shards.collect()
    };
    let before = shapes()?;
    for (text, code) in [
        ("alter table rowed.t add check (n > 0)", "23514"),
        ("alter table rowed.t alter e set not null", "23502"),
        (
            "alter table rowed.t add x integer default 1, alter e set not null",
            "23502",
        ),
        (
            "alter table rowed.t alter e set not null, add column x integer",
            "23502",
        ),
        ("alter table rowed.t add x integer not null", "23502"),
        (
            "alter table rowed.t add x integer generated always as (10 / (n + 1)) stored",
            "22012",
        ),
        (
            "alter table rowed.t alter n type integer using 1 / (n + 1)",
            "22012",
        ),
        (
            "alter table rowed.t alter e type integer using coalesce(e, 'x')::integer",
            "22P02",
        ),
        (
            "alter table rowed.t alter n type smallint using n::integer * 40000 + 40001",
            "22003",
        ),
        (
            "alter table rowed.t add foreign key (id, n) references rowed.other (id, v)",
            "23503",
        ),
        ("alter table rowed.t add primary key (id)", "23505"),
        ("alter table rowed.t add unique (id)", "23505"),
        ("create unique index on rowed.t (id)", "23505"),
        (
            "create unique index if not exists tu on rowed.t (id, (id % 2))",
            "23505",
        ),
        (
            "alter table rowed.t add exclude using btree (id with =)",
            "23P01",
        ),
        ("create index on rowed.t ((1 / (n + 1)))", "22012"),
        ("alter domain rowed.d add check (value > 0)", "23514"),
        (
            "create table rowed.copied as select id, 1 / (n + 1) as x from rowed.t",
            "22012",
        ),
    ] {
        for block in [false, true] {
            if block {
                a.execute("begin")?;
                a.execute("create table rowed.beside (x integer)")?;
            }
            let (found, message) = a.failure(text)?;
            ensure!(found == code, "{text}: {found} {message}");
            if block {
                let end = a.simple("commit")?;
                ensure!(end[0].text() == "ROLLBACK", "{end:?}");
            }
            let after = shapes()?;
            ensure!(after == before, "{text}: {after:?} instead of {before:?}");
        }
    }
    Ok(())
}

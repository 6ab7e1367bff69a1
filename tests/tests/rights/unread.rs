//! What WITH names and nobody uses is not read: Postgres asks for no rights on it, unless it plans it.

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    postgres::Plain,
    wire::{Connection, Frame, hint_is_there, is_refusal},
};
use bytes::Bytes;

use super::{Cluster, PASSWORD, ROLES, as_role};

/// `{s}` may not be read: a distributed table, a reference table, a local table, a view, or a column.
const STATEMENTS: &[&str] = &[
    "with x as (select * from {s}) select count(*), sum(n) from fair",
    "with x as not materialized (select * from {s}) select count(*), sum(n) from fair",
    "with x as materialized (select * from {s}) select count(*), sum(n) from fair",
    "with x(v) as (select count(*) from {s} group by n) select max(n) from fair where id < 20",
    "with x as (select * from {s}) select n from fair where id = 7",
    "with x as (select * from {s}) select n, rank() over (order by id) from fair order by id limit 3",
    "with x as (select * from {s}) select distinct n from fair order by n",
    "with x as (select * from {s}) select one.n from fair one join fair other on one.n = other.id order by 1 limit 4",
    "with x as (select * from {s}) select count(*) from near",
    "with x as (select * from {s}) select 1",
    "with recursive x(c) as (select 1 union all select c + 1 from x where c < (select count(*) from {s})) select count(*), sum(n) from fair",
    "with recursive x(c) as (select n from {s} union all select c + 1 from x where c < 3) select n, lag(n) over (order by id) from fair order by id limit 3",
    "with recursive y as (select * from x), x as (select * from {s}) select count(*) from fair",
    "with recursive y(c) as (select 1 union all select c + 1 from y where c < (select count(*) from x)), x as (select * from {s}) select count(*) from fair",
    "with x as (select * from {s}), y as (select * from x) select sum(n) from fair",
    "with x as materialized (select * from {s}), y as (select * from x) select sum(n) from fair",
    "with x as (select * from {s}), y as (select * from x one, x other) select sum(n) from fair",
    "with recursive x(c) as (select n from {s} union all select c + 1 from x where c < 3), y as (select * from x) select sum(n) from fair",
    "with y as (with x as (select * from {s}) select id from fair) select count(*) from y",
    "select count(*) from fair where n in (with x as (select n from {s}) select n from fair where n < 3)",
    "select count(*) from (with x as (select n from {s}) select n from fair union select id from fair) u",
    "select n from fair where id = 3 union all (with x as (select n from {s}) select n from fair where id = 4)",
    "with x as (select one.n from {s} one join fair other on one.n = other.n where exists (select 1 from {s})) select max(id) from fair",
    "with x as (select n from {s} union select n from fair) select max(id) from fair",
    "with x as (select n from {s}), fair as (select * from x) select max(id) from public.fair",
    "with x as (select * from {s}) insert into fair select 1000, 1 from fair where id = 1 returning id",
    "with x as (select * from {s}) insert into fair values (1001, 1), (1002, 2)",
    "with x as (select * from {s}) update fair set n = 2 where id = 9",
    "with x as (select * from {s}) delete from fair where id = 10 returning n",
    "with x as (select * from {s}) select count(*) from x, fair",
    "with x as (select * from {s}) select (select max(n) from x), n from fair where id = 1",
    "with x as (select * from {s}) select count(*) from fair where exists (select from x)",
    "with recursive x(c) as (select n from {s} union select c + 1 from x where c < 3) select count(*) from x",
    "explain (costs off) with x as (select * from {s}) select n from fair where id = 7",
    "copy (with x as (select * from {s}) select count(*) from fair) to stdout",
    "create temporary table made as with x as (select * from {s}) select count(*) from fair",
];

const FORBIDDEN: &[&str] = &["hidden", "copied", "apart", "seen", "half"];

pub fn check(cluster: &Cluster, plain: &Plain) -> Result<()> {
    let mut owner = Connection::open(cluster.dev.server())?;
    let mut theirs = Connection::open(&plain.server)?;
    theirs.execute(&format!(
        "create role {} login password '{PASSWORD}'",
        ROLES[0]
    ))?;
    for (text, placed) in [
        (
            "create table fair (id integer primary key, n integer)",
            Some("select create_distributed_table('fair', 'id')"),
        ),
        (
            "create table hidden (id integer primary key, n integer)",
            Some("select create_distributed_table('hidden', 'id')"),
        ),
        (
            "create table half (id integer primary key, n integer)",
            Some("select create_distributed_table('half', 'id')"),
        ),
        (
            "create table copied (id integer primary key, n integer)",
            Some("select create_reference_table('copied')"),
        ),
        (
            "create table apart (id integer primary key, n integer)",
            None,
        ),
        (
            "create table near (id integer primary key, n integer)",
            None,
        ),
        ("create view seen as select * from hidden", None),
        (
            "insert into fair select g, g % 7 from generate_series(1, 60) g",
            None,
        ),
        (
            "insert into hidden select g, g % 7 from generate_series(1, 60) g",
            None,
        ),
        (
            "insert into copied select g, g % 7 from generate_series(1, 60) g",
            None,
        ),
        (
            "insert into apart select g, g % 7 from generate_series(1, 60) g",
            None,
        ),
        (
            "grant select, insert, update, delete on fair, near to low",
            None,
        ),
        ("grant select (id) on half to low", None),
    ] {
        theirs.execute(text)?;
        owner.execute(text)?;
        if let Some(placed) = placed {
            owner.execute(placed)?;
        }
    }
    let mut wrong = Vec::new();
    let mut refused = Vec::new();
    for statement in STATEMENTS {
        for forbidden in FORBIDDEN {
            let text = statement.replace("{s}", forbidden);
            let expected = outcome(
                &mut Connection::open(&as_role(&plain.server, "low"))?,
                &text,
            )?;
            let found = outcome(&mut cluster.through("low")?, &text)?;
            match &found {
                Told::Error(code) if is_refusal(code) && expected != found => refused.push(text),
                _ if expected == found => {}
                _ => wrong.push(format!(
                    "{text}\n  Postgres {expected:?}\n  proxy    {found:?}"
                )),
            }
        }
    }
    ensure!(
        wrong.is_empty(),
        "{} differ:\n{}",
        wrong.len(),
        wrong.join("\n")
    );
    ensure!(
        refused.len() <= REFUSED_MAX,
        "refused:\n{}",
        refused.join("\n")
    );
    Ok(())
}

/// Changes on one shard beside the name of a local table, which that shard may not have.
const REFUSED_MAX: usize = 2;

#[derive(Debug, PartialEq)]
enum Told {
    Rows(Vec<Bytes>),
    Error(String),
}

/// What a statement tells that is undone.
fn outcome(connection: &mut Connection, text: &str) -> Result<Told> {
    connection.execute("begin")?;
    let frames = connection.simple(text)?;
    connection.execute("rollback")?;
    if let Some(error) = frames.iter().find(|frame| frame.tag == b'E') {
        hint_is_there(error).with_context(|| text.to_owned())?;
        return Ok(Told::Error(error.field(b'C').unwrap_or_default()));
    }
    // Plans differ.
    let shown = |frame: &&Frame| matches!(frame.tag, b'D' | b'd') && !text.starts_with("explain");
    let rows = frames.iter().filter(shown);
    Ok(Told::Rows(rows.map(|frame| frame.body.clone()).collect()))
}

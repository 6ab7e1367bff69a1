//! What code does once for a statement, and what it defines, over several shards.

use anyhow::{Result, ensure};
use automator67_tests::{automator::Dev, wire::Connection};

fn refused(connection: &mut Connection, text: &str, part: &str) -> Result<()> {
    let (code, message) = connection.failure(text)?;
    ensure!(
        code == "0A000" && message.contains(part),
        "{text}: {code} {message}"
    );
    Ok(())
}

fn prepare(connection: &mut Connection) -> Result<()> {
    for text in [
        "create table t (a bigint primary key, n integer)",
        "select create_distributed_table('t', 'a')",
        "create function few() returns trigger language plpgsql as $$ begin
            if (select count(*) from fresh) > 2 then raise exception 'too many'; end if;
            return null; end $$",
    ] {
        connection.execute(text)?;
    }
    Ok(())
}

#[test]
fn a_trigger_for_each_statement_sees_all_its_rows_or_nothing_is_done() -> Result<()> {
    let dev = Dev::start(3)?;
    let mut session = Connection::open(dev.server())?;
    prepare(&mut session)?;
    session.execute(
        "create trigger totals after insert on t referencing new table as fresh
            for each statement execute function few()",
    )?;
    session.execute("create table from_here (a bigint)")?;
    session.execute("insert into from_here select generate_series(100, 110)")?;
    for text in [
        "insert into t values (1, 1), (2, 2), (3, 3)",
        "insert into t select a, 1 from from_here",
        "insert into t (a) select generate_series(1, 9)",
        "merge into t using from_here f on f.a = t.a when not matched then insert values (f.a, 1)",
        "with made as (select a from from_here) insert into t select a, 2 from made",
    ] {
        refused(&mut session, text, "once on every shard")?;
    }
    refused(&mut session, "copy t from stdin", "once on every shard")?;
    session.execute("insert into t values (1, 1)")?;
    session.execute("insert into t values (2, 1)")?;
    session.execute("update t set n = n + 1")?;
    let sum = session.execute("select sum(n) from t")?;
    ensure!(sum.as_deref() == Some("4"), "{sum:?}");
    // Row by row, but with all rows of the statement beside it.
    session.execute("drop trigger totals on t")?;
    session.execute(
        "create trigger each after update on t referencing new table as fresh
            for each row execute function few()",
    )?;
    refused(&mut session, "update t set n = 0", "once on every shard")?;
    session.execute("update t set n = 0 where a = 1")?;
    session.execute("insert into t values (3, 1), (4, 1), (5, 1)")?;
    Ok(())
}

#[test]
fn filled_tables_with_a_foreign_key_are_distributed_together() -> Result<()> {
    let dev = Dev::start(3)?;
    let mut session = Connection::open(dev.server())?;
    for text in [
        "create table parent (id bigint primary key)",
        "create table child (id bigint references parent, n integer)",
        "insert into parent select generate_series(1, 40)",
        "insert into child select i, i from generate_series(1, 40) i",
        "insert into child values (null, 0)",
    ] {
        session.execute(text)?;
    }
    let parent = "select create_distributed_table('parent', 'id')";
    let child = "select create_distributed_table('child', 'id', colocate_with => 'parent')";
    refused(&mut session, parent, "is referenced by rows")?;
    let alone = "select create_distributed_table('child', 'id')";
    refused(&mut session, alone, "could not be checked")?;
    // The child is forgotten.
    session.execute("begin")?;
    session.execute(parent)?;
    refused(&mut session, "commit", "is referenced by rows")?;
    // Its rows have lost what they refer to.
    session.execute("begin")?;
    session.execute(parent)?;
    let lost = session
        .execute("delete from parent where id in (7, 8, 9)")
        .and_then(|_| session.execute(child));
    ensure!(lost.is_err(), "orphans are taken");
    session.execute("rollback")?;
    session.execute("begin")?;
    session.execute(parent)?;
    session.execute(child)?;
    session.execute("commit")?;
    let count = session.execute("select count(*) from parent join child using (id)")?;
    ensure!(count.as_deref() == Some("40"), "{count:?}");
    let (code, _) = session.failure("delete from parent where id = 5")?;
    ensure!(code == "23503", "{code}");
    let (code, _) = session.failure("insert into child values (99, 1)")?;
    ensure!(code == "23503", "{code}");
    Ok(())
}

#[test]
fn functions_do_not_define_on_one_shard() -> Result<()> {
    let dev = Dev::start(3)?;
    let mut session = Connection::open(dev.server())?;
    for text in [
        "create function makes() returns void language plpgsql as $$ begin create type ct as (a int); end $$",
        "create function calls() returns void language sql as 'select makes()'",
        "create function stages() returns void language plpgsql as $$ begin
            create temporary table stage (a int); insert into stage values (1); end $$",
    ] {
        session.execute(text)?;
    }
    for text in [
        "select makes()",
        "select calls()",
        "do $$ begin perform makes(); end $$",
    ] {
        refused(&mut session, text, "changes the schema")?;
    }
    session.execute("do $$ begin create type ct as (a int); end $$")?;
    session.execute("create table of_ct (id int primary key, c ct)")?;
    // What a function makes for the session is known afterwards.
    session.execute("select stages()")?;
    session.execute("alter table stage add column b integer")?;
    session.execute("drop table stage")?;
    session.execute("drop table of_ct")?;
    session.execute("drop type ct")?;
    Ok(())
}

//! What one role does with objects of its own stops nobody else's work, and answers of the proxy tell
//! nothing of others' rows.

use std::time::Instant;

use anyhow::{Context, Result, bail, ensure};
use automator67_tests::{wait, wire::Connection};

use super::{Cluster, PATIENCE};

/// Changes of the schema behind the proxy's back make one table useless, not the catalog.
pub fn broken_keys(cluster: &Cluster) -> Result<()> {
    let mut mid = cluster.through("mid")?;
    for statement in [
        "create table mid.gone (id bigint primary key, n integer)",
        "select create_distributed_table('mid.gone', 'id')",
        "insert into mid.gone select g, g from generate_series(1, 20) g",
        "create table mid.turned (d date primary key, n integer)",
        "select create_distributed_table('mid.turned', 'd')",
        "insert into mid.turned select '2026-01-01'::date + g, g from generate_series(1, 20) g",
        "create table mid.spread (d date primary key, n integer)",
        "select create_distributed_table('mid.spread', 'd', 'range')",
        "create view mid.looks as select n from mid.gone",
    ] {
        mid.execute(statement)?;
    }
    let mut direct = cluster.directly(0, "mid")?;
    direct.execute("alter table mid.gone drop column id")?;
    direct.execute("alter table mid.turned alter d type text")?;
    direct.execute("create domain mid.day as date; alter table mid.spread alter d type mid.day")?;
    cluster.check_that_it_works("broken")?;
    let other = cluster.dev.second_proxy("broken", "")?;
    Connection::open(&other.server)?.execute("select count(*) from people")?;
    for statement in [
        "select n from mid.gone",
        "select n from mid.turned",
        "select n from mid.spread where d = '2026-01-01'",
        "select people.id from people join mid.gone on gone.n = people.id",
        "insert into mid.turned values ('2027-01-01', 1)",
        "update mid.gone set n = 1",
        "delete from mid.gone",
        "truncate mid.gone",
        "copy mid.turned to stdout",
        "explain select n from mid.turned",
        "select automator67.split_range('mid.spread', '2026-02-01')",
        "select automator67.create_unique_index('mid.gone', 'n')",
    ] {
        let (code, message) = mid.failure(statement)?;
        ensure!(code == "55000", "{statement}: {code} {message}");
        ensure!(message.contains("cannot be used"), "{statement}: {message}");
    }
    let (code, message) = mid.failure("select n from mid.looks")?;
    ensure!(code == "55000", "a view on it: {code} {message}");
    // Undone, brought home, dropped: each is a way out.
    direct.execute("alter table mid.turned alter d type date using d::date")?;
    mid.execute("create table mid.now (a integer)")?;
    let count = mid.execute("select count(*) from mid.turned")?;
    ensure!(count.as_deref() == Some("20"), "undone: {count:?}");
    // It quiets triggers, which only a superuser may.
    cluster
        .dev
        .connect()?
        .execute("select undistribute_table('mid.gone')")?;
    let count = wait::until("the other proxy to follow", PATIENCE, || {
        mid.execute("select count(n) from mid.looks").ok()
    })?;
    ensure!(count.as_deref() == Some("20"), "brought home: {count:?}");
    mid.execute("drop table mid.spread")?;
    cluster.check_that_it_works("mended")
}

/// Whoever may log in may make temporary objects. They mean nothing to others.
pub fn temporary(cluster: &Cluster) -> Result<()> {
    let mut low = cluster.directly(0, "low")?;
    low.execute(
        "create function pg_temp.count(text) returns bigint language sql as 'select 1::bigint -- people';
         create function pg_temp.lower(text) returns text volatile language plpgsql as
             'begin perform set_config(''x.y'', ''people'', false); return $1; end';
         create type pg_temp.odd as (a integer);
         create function pg_temp.same(pg_temp.odd, pg_temp.odd) returns boolean language plpgsql as
             'begin execute ''select 1 from people''; return true; end';
         create operator pg_temp.= (leftarg = pg_temp.odd, rightarg = pg_temp.odd, function = pg_temp.same);
         create function pg_temp.odd_text(pg_temp.odd) returns text language plpgsql as
             'begin execute ''select 1 from people''; return ''''; end';
         create cast (pg_temp.odd as text) with function pg_temp.odd_text(pg_temp.odd) as implicit;
         create aggregate pg_temp.abs(integer) (sfunc = int4pl, stype = integer);
         create domain pg_temp.few as integer check (pg_temp.count(value::text) = 1)",
    )?;
    cluster.check_that_it_works("temporary")?;
    let document = cluster
        .owner(0)?
        .execute("select automator67.catalog_document()")?
        .context("a document")?;
    let temporary = low.rows(
        "select oid::text from pg_proc where pronamespace = pg_my_temp_schema()
         union all select oid::text from pg_type where typnamespace = pg_my_temp_schema()",
    )?;
    ensure!(temporary.len() > 5, "{temporary:?}");
    for oid in temporary.iter().filter_map(|row| row[0].as_deref()) {
        let named = document
            .split(|letter: char| !letter.is_ascii_digit())
            .any(|number| number == oid);
        ensure!(!named, "oid {oid} is in the document");
    }
    let mut owner = cluster.dev.connect()?;
    let plan = owner.rows("explain select count(lower(email)) from people where email = 'e7'")?;
    ensure!(!plan.is_empty(), "no plan");
    let tier = owner.execute("select count(abs(note)) from people where lower(email) <> ''")?;
    ensure!(tier.as_deref() == Some("60"), "{tier:?}");
    // Those of a client of the proxy could read a part of a table.
    let mut mid = cluster.through("mid")?;
    for call in ["pg_temp.peek()", "1 operator(pg_temp.+) 1"] {
        let (code, message) = mid.failure(&format!("select {call}"))?;
        ensure!(code == "0A000", "{call}: {code} {message}");
    }
    Ok(())
}

/// A lock on a table does not stop the catalog: what cannot be read is refused, and comes back.
pub fn locked(cluster: &Cluster) -> Result<()> {
    let mut mid = cluster.through("mid")?;
    for statement in [
        "create table mid.lk (id bigint primary key, n integer)",
        "select create_distributed_table('mid.lk', 'id')",
        "create view mid.seen_lk as select * from mid.lk",
        "create function mid.body_lk() returns bigint begin atomic select count(*) from mid.lk; end",
    ] {
        mid.execute(statement)?;
    }
    for number in 0..30 {
        mid.execute(&format!(
            "create view mid.v{number} as select * from mid.lk"
        ))?;
    }
    let mut holder = cluster.directly(0, "mid")?;
    holder.execute("begin")?;
    holder.execute("lock table mid.lk in access exclusive mode")?;
    let began = Instant::now();
    cluster.check_that_it_works("locked")?;
    let other = cluster.dev.second_proxy("locked", "")?;
    Connection::open(&other.server)?.execute("select count(*) from people")?;
    ensure!(began.elapsed() < PATIENCE, "{:?}", began.elapsed());
    let refused = |mid: &mut Connection, statement: &str, code: &str| -> Result<()> {
        let mut last = String::new();
        let refused = wait::until("it to be refused", PATIENCE, || {
            let (is, message) = mid.failure(statement).ok()?;
            last = format!("{statement}: {is} {message}");
            (is == code).then_some(())
        });
        refused.context(last)
    };
    refused(&mut mid, "select * from mid.seen_lk", "55000")?;
    refused(&mut mid, "select mid.body_lk()", "0A000")?;
    holder.execute("rollback")?;
    wait::until("the view to come back", PATIENCE, || {
        mid.execute("select count(*) from mid.seen_lk").ok()
    })?;
    let (code, message) = mid.failure("select mid.body_lk()")?;
    ensure!(!message.contains("lock"), "{code} {message}");
    Ok(())
}

/// Tables join a group by range or directory only where its other owners agree.
pub fn groups(cluster: &Cluster) -> Result<()> {
    let mut owner = Connection::open(&cluster.proxy.server)?;
    owner.execute("create table rg (id bigint primary key)")?;
    owner.execute("select create_distributed_table('rg', 'id', 'range')")?;
    let mut mid = cluster.through("mid")?;
    mid.execute("create table mid.jr (d bigint primary key)")?;
    mid.execute("create table mid.jd (d text primary key)")?;
    for (table, group) in [("mid.jr", "rg"), ("mid.jd", "tenants")] {
        let (code, message) = mid.failure(&format!(
            "select create_distributed_table('{table}', 'd', colocate_with => 'public.{group}')"
        ))?;
        ensure!(code == "42501", "{table}: {code} {message}");
        ensure!(message.contains(group), "{table}: {message}");
    }
    owner.execute("select automator67.split_range('rg', '100')")?;
    owner.execute("select automator67.place('tenants', 'a secret name', 'shard2')")?;
    // By hash, and the own ones.
    mid.execute("create table mid.jh (d bigint primary key)")?;
    mid.execute(
        "select create_distributed_table('mid.jh', 'd', colocate_with => 'public.people')",
    )?;
    mid.execute("select create_distributed_table('mid.jr', 'd', 'range')")?;
    mid.execute("create table mid.jr2 (d bigint primary key)")?;
    mid.execute("select create_distributed_table('mid.jr2', 'd', colocate_with => 'mid.jr')")?;
    owner.execute("select automator67.split_range('mid.jr', '100')")?;
    Ok(())
}

/// Answers do not depend on values in tables that one may not read.
pub fn oracles(cluster: &Cluster) -> Result<()> {
    let mut owner = Connection::open(&cluster.proxy.server)?;
    owner.execute("create table ranged (id bigint primary key)")?;
    owner.execute("select create_distributed_table('ranged', 'id', 'range')")?;
    owner.execute("select automator67.split_range('ranged', '100')")?;
    let mut low = cluster.through("low")?;
    for (pattern, known, unknown) in [
        (
            "insert into public.tenants values ('{}', 1)",
            "a secret name",
            "another",
        ),
        (
            "insert into public.tenants values ('{}', 1), ('x', 2)",
            "a secret name",
            "another",
        ),
        (
            "explain insert into public.tenants values ('{}', 1)",
            "a secret name",
            "another",
        ),
        (
            "explain update public.tenants set n = 2 where name = '{}'",
            "a secret name",
            "another",
        ),
        (
            "select * from public.tenants where name = '{}'",
            "a secret name",
            "another",
        ),
        (
            "select automator67.split_range('public.ranged', '{}')",
            "100",
            "101",
        ),
        (
            "select automator67.place('public.tenants', '{}', 'shard1')",
            "a secret name",
            "another",
        ),
    ] {
        let one = low.failure(&pattern.replace("{}", known))?;
        let other = low.failure(&pattern.replace("{}", unknown))?;
        ensure!(one == other, "{pattern}: {one:?} and {other:?}");
        ensure!(one.0 == "42501", "{pattern}: {one:?}");
    }
    let found = owner.rows("select name from public.tenants where name = 'another'")?;
    ensure!(found.is_empty(), "{found:?}");
    Ok(())
}

/// What was checked is a function, not a name.
pub fn declared(cluster: &Cluster) -> Result<()> {
    let mut mid = cluster.through("mid")?;
    let counts = "language sql as 'select count(*) from public.people'";
    mid.execute(&format!(
        "create function mid.total() returns bigint {counts}"
    ))?;
    mid.execute("select automator67.declare_safe('total')")?;
    mid.execute("grant usage on schema mid to public")?;
    let refused = |connection: &mut Connection, statement: &str| -> Result<()> {
        let (code, message) = connection.failure(statement)?;
        ensure!(code == "0A000", "{statement}: {code} {message}");
        Ok(())
    };
    // It runs where it is called: whoever declared it has said so.
    let (code, _) = mid.failure("select mid.total()")?;
    ensure!(code == "42501", "mid may not read people: {code}");
    let mut owner = Connection::open(&cluster.proxy.server)?;
    let count = owner.execute("select mid.total()")?;
    ensure!(count.is_some(), "it was declared safe");
    owner.execute(&format!(
        "create function public.total() returns bigint {counts}"
    ))?;
    refused(&mut owner, "select public.total()")?;
    owner.execute("drop function public.total()")?;
    owner.execute("select mid.total()")?;
    // The same oid, another body.
    mid.execute(&format!(
        "create or replace function mid.total() returns bigint {}",
        counts.replace("count(*)", "1 + count(*)")
    ))?;
    refused(&mut owner, "select mid.total()")?;
    cluster.check_that_it_works("declared")?;
    let left = cluster
        .owner(0)?
        .execute("select count(*) from automator67.safe_function")?;
    let Some(left) = left else { bail!("no answer") };
    ensure!(left == "0", "{left} are not forgotten");
    Ok(())
}

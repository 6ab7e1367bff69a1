//! Every function of ours, called by a role without rights, with arguments of every shape, in every
//! way in which a function can be called.

use anyhow::{Result, ensure};
use automator67_tests::wire::Connection;

use super::Cluster;

/// What may run for everybody: it does nothing that its caller could not do.
const OPEN: &[&str] = &["a67_plain", "moment", "sequence_identity"];

/// Ways to call a function in schema `mid`. `{call}` is the call; each is rolled back when it fails
/// and committed when it does not.
const WAYS: &[(&str, &str)] = &[
    ("select", "select {call}"),
    ("from", "select * from {call} as f"),
    ("do", "do $$ begin perform {call}; end $$"),
    (
        "do, by name",
        "do $$ begin execute 'select ' || $q${call}$q$; end $$",
    ),
    (
        "prepare",
        "deallocate all; prepare p as select {call}; execute p",
    ),
    (
        "cursor",
        "declare c cursor with hold for select {call}; fetch all from c",
    ),
    ("copy", "copy (select {call}) to stdout"),
    (
        "function",
        "create function mid.f() returns text language sql as $$ select ({call})::text $$; select mid.f()",
    ),
    (
        "definer",
        "create function mid.g() returns void language plpgsql security definer as $$ begin perform {call}; end $$; select mid.g()",
    ),
    (
        "procedure",
        "create procedure mid.p() language plpgsql as $$ begin perform {call}; end $$; call mid.p()",
    ),
    (
        "view",
        "create view mid.v as select ({call})::text as x; select * from mid.v",
    ),
    (
        "materialized view",
        "create materialized view mid.m as select ({call})::text as x",
    ),
    (
        "trigger",
        "create table mid.t (a integer);
         create function mid.tf() returns trigger language plpgsql as $$ begin perform {call}; return new; end $$;
         create trigger tr before insert on mid.t for each row execute function mid.tf();
         insert into mid.t values (1)",
    ),
    (
        "deferred trigger",
        "create table mid.t (a integer);
         create function mid.tf() returns trigger language plpgsql as $$ begin perform {call}; return new; end $$;
         create constraint trigger tr after insert on mid.t deferrable initially deferred
            for each row execute function mid.tf();
         insert into mid.t values (1); set constraints all immediate",
    ),
    (
        "rule",
        "create table mid.t (a integer);
         create rule r as on insert to mid.t do also select {call};
         insert into mid.t values (1)",
    ),
    (
        "policy",
        "create table mid.t (a integer); insert into mid.t values (1);
         alter table mid.t enable row level security; alter table mid.t force row level security;
         create policy y on mid.t using (({call}) is not null);
         select * from mid.t",
    ),
    (
        "domain",
        "create domain mid.d as integer check (({call}) is null or value > 0); select 1::mid.d",
    ),
    (
        "cast",
        "create type mid.e as enum ('a');
         create function mid.ef(value mid.e) returns integer language plpgsql as $$ begin perform {call}; return 1; end $$;
         create cast (mid.e as integer) with function mid.ef(mid.e) as implicit;
         select 1 + 'a'::mid.e",
    ),
    (
        "operator",
        "create function mid.of(a integer, b text) returns integer language plpgsql as $$ begin perform {call}; return 1; end $$;
         create operator mid.=# (leftarg = integer, rightarg = text, function = mid.of);
         select 1 operator(mid.=#) 'x'::text",
    ),
    (
        "aggregate",
        "create function mid.af(a integer, b integer) returns integer language plpgsql as $$ begin perform {call}; return 1; end $$;
         create aggregate mid.agg(integer) (sfunc = mid.af, stype = integer, initcond = '0');
         select mid.agg(1)",
    ),
    (
        "default",
        "create table mid.t (a integer, b text default ({call})::text); insert into mid.t (a) values (1)",
    ),
    (
        "check",
        "create table mid.t (a integer check (({call}) is null or a > 0)); insert into mid.t values (1)",
    ),
    (
        "index",
        "create function mid.xf(a integer) returns integer language plpgsql immutable as $$ begin perform {call}; return a; end $$;
         create table mid.t (a integer); create index on mid.t (mid.xf(a)); insert into mid.t values (1)",
    ),
];

/// So many of them make nothing.
const SHORT: usize = 4;

/// What clients must not read: all of it, in one value.
const STATE: &str = "select md5(string_agg(line, ',' order by line)) from (
    select table_name || ' ' || query_to_xml(
        format('select * from %I.%I t order by t::text', table_schema, table_name), true, true, '')::text
        as line
    from information_schema.tables
    where table_schema in ('automator67', 'automator67_index') and table_type = 'BASE TABLE'
        and table_name <> 'session_backend'
    union all
    select oid::regprocedure::text || prosrc from pg_proc
    where pronamespace in ('automator67'::regnamespace)
    union all
    select nspname || nspowner::regrole::text from pg_namespace where nspname not like 'pg_%temp%'
    union all
    select rolname || rolsuper::text from pg_roles
) s";

pub fn all(cluster: &Cluster) -> Result<()> {
    for shard in 0..3 {
        let mut owner = cluster.owner(shard)?;
        let before = owner.execute(STATE)?;
        let mut mid = cluster.directly(shard, "mid")?;
        read_nothing(&mut owner, &mut mid)?;
        for call in calls(&mut owner)? {
            try_ways(&mut mid, &call, shard == 0)?;
        }
        attach(&mut owner, &mut mid)?;
        let after = owner.execute(STATE)?;
        ensure!(before == after, "something has changed on shard {shard}");
    }
    let mut mid = cluster.through("mid")?;
    for call in calls(&mut cluster.owner(0)?)? {
        try_ways(&mut mid, &call, true)?;
    }
    cluster.check_that_it_works("attempts")
}

/// Every function with nulls, with values, and with what could pass for a proof.
fn calls(owner: &mut Connection) -> Result<Vec<String>> {
    let rows = owner.rows(
        "select p.proname, (
            select string_agg(format_type(t, null), ';' order by n)
            from unnest(p.proargtypes::oid[]) with ordinality a(t, n)
        )
        from pg_proc p
        where p.pronamespace in ('automator67'::regnamespace)
            and p.prorettype <> 'trigger'::regtype
        order by p.oid",
    )?;
    let mut all = Vec::new();
    for row in rows {
        let name = row[0].clone().unwrap_or_default();
        if OPEN.contains(&name.as_str()) {
            continue;
        }
        let types: Vec<&str> = row[1].as_deref().unwrap_or_default().split(';').collect();
        let types: Vec<&str> = types.into_iter().filter(|it| !it.is_empty()).collect();
        let shape = |first: &str, value: &dyn Fn(&str) -> String| {
            let arguments: Vec<String> = types
                .iter()
                .enumerate()
                .map(|(place, of)| match place {
                    0 if *of == "text" => format!("{first}::text"),
                    _ => format!("{}::{of}", value(of)),
                })
                .collect();
            format!("automator67.{name}({})", arguments.join(", "))
        };
        let some = |of: &str| match of {
            "bigint" | "integer" | "oid" => "1".to_owned(),
            "regclass" => "'mid.mine'".to_owned(),
            "regnamespace" => "'mid'".to_owned(),
            "bigint[]" => "'{0,1,1}'".to_owned(),
            "oid[]" => "'{0}'".to_owned(),
            "text[]" => "'{e1}'".to_owned(),
            "uuid" => "'00000000-0000-0000-0000-000000000000'".to_owned(),
            "date" => "'2026-01-01'".to_owned(),
            _ if of.starts_with("timestamp") => "'2026-01-01'".to_owned(),
            _ => "'integer'".to_owned(),
        };
        all.push(shape("null", &|_| "null".to_owned()));
        all.push(shape("''", &some));
        all.push(shape("repeat('0', 64)", &some));
    }
    ensure!(all.len() > 50, "only {} calls", all.len());
    Ok(all)
}

/// Every way with what looks most like a proof, the short ones with the rest.
fn try_ways(mid: &mut Connection, call: &str, every: bool) -> Result<()> {
    let every = every && (call.contains("repeat(") || !call.contains("text"));
    let tried = if every { WAYS } else { &WAYS[..SHORT] };
    for (name, way) in tried {
        attempt(mid, name, &way.replace("{call}", call))?;
    }
    Ok(())
}

fn attempt(mid: &mut Connection, way: &str, text: &str) -> Result<()> {
    mid.execute("begin")?;
    let frames = mid.simple(text)?;
    let error = frames.iter().find(|frame| frame.tag == b'E');
    let code = error
        .and_then(|error| error.field(b'C'))
        .unwrap_or_default();
    let message = error
        .and_then(|error| error.field(b'M'))
        .unwrap_or_default();
    mid.simple("commit")?;
    // What is not a function that can be called so at all is refused before.
    let refused = [
        "42501", "0A000", "42601", "42809", "42P17", "42883", "42703", "26000", "0LP01",
    ];
    ensure!(
        refused.contains(&code.as_str()),
        "{way}: {text}\n{code:?} {message}"
    );
    let denied = message.contains("permission denied") || message.contains("reserved");
    ensure!(
        code != "42501" || denied,
        "{way}: {text}\n{code:?} {message}"
    );
    Ok(())
}

/// Nothing but what the docs list can be read.
fn read_nothing(owner: &mut Connection, mid: &mut Connection) -> Result<()> {
    mid.simple("create table mid.mine (id bigint primary key, email text)")?;
    let rows = owner.rows(
        "select c.oid::regclass::text, exists (
            select from aclexplode(c.relacl) a where a.grantee = 0 and a.privilege_type = 'SELECT')
        from pg_class c where c.relkind in ('r', 'v', 'S') and c.relnamespace in (
            'automator67'::regnamespace, 'automator67_index'::regnamespace)",
    )?;
    for row in rows {
        let name = row[0].clone().unwrap_or_default();
        for statement in [
            format!("select * from {name}"),
            format!("insert into {name} default values"),
            format!("delete from {name}"),
            format!("truncate {name}"),
            format!("lock table {name} in row exclusive mode"),
            format!("copy {name} to stdout"),
            format!("create table mid.r (like {name}, foreign key (a) references {name})"),
        ] {
            let reads = statement.starts_with("select") || statement.starts_with("copy");
            let open = row[1].as_deref() == Some("t");
            mid.execute("begin")?;
            let frames = mid.simple(&statement)?;
            let failed = frames.iter().any(|frame| frame.tag == b'E');
            mid.execute("rollback")?;
            ensure!(failed || open && reads, "{statement} did not fail");
            if open && name.ends_with("ranges") && !failed {
                let shown = frames.iter().any(|frame| frame.tag == b'D');
                ensure!(!shown, "values of other roles' keys are shown");
            }
        }
    }
    Ok(())
}

/// Trigger functions of ours do not work on a table of the caller's.
fn attach(owner: &mut Connection, mid: &mut Connection) -> Result<()> {
    let rows = owner.rows(
        "select p.proname from pg_proc p
         where p.pronamespace = 'automator67'::regnamespace and p.prorettype = 'trigger'::regtype",
    )?;
    ensure!(rows.len() > 1, "there are no trigger functions");
    for row in rows {
        let name = row[0].clone().unwrap_or_default();
        let (code, message) = mid.failure(&format!(
            "create trigger x after insert on mid.mine referencing new table as new_rows
             for each statement execute function automator67.{name}()"
        ))?;
        ensure!(code == "42501", "{name}: {code} {message}");
    }
    Ok(())
}

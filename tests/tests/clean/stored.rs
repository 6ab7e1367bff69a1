//! Built-in functions that keep something run from stored expressions as well, of which neither a
//! body nor a statement tells.

use anyhow::Result;
use automator67_tests::wire::Connection;

use super::{MEMBER, Place, report, states};

/// A way in which a stored expression comes to run.
struct Stored {
    name: &'static str,
    /// Makes it; `KEEP` is a call that gives a text, `TRY` one that gives a boolean.
    setup: &'static str,
    run: &'static str,
    cleanup: &'static str,
    /// The statement does not name what has it, so that what cannot be seen from outside is lost.
    unnamed: bool,
}

const fn named(
    name: &'static str,
    setup: &'static str,
    run: &'static str,
    cleanup: &'static str,
) -> Stored {
    Stored {
        name,
        setup,
        run,
        cleanup,
        unnamed: false,
    }
}

const fn unnamed(
    name: &'static str,
    setup: &'static str,
    run: &'static str,
    cleanup: &'static str,
) -> Stored {
    Stored {
        name,
        setup,
        run,
        cleanup,
        unnamed: true,
    }
}

const STORED: &[Stored] = &[
    named(
        "default",
        "create table t (v text default KEEP, w integer)",
        "insert into t (w) values (1)",
        "drop table t",
    ),
    named(
        "check",
        "create table t (v integer check (TRY))",
        "insert into t values (1)",
        "drop table t",
    ),
    named(
        "list of a view",
        "create view v as select KEEP as x",
        "select * from v",
        "drop view v",
    ),
    named(
        "condition of a view of a view",
        "create table t (v integer); insert into t values (1);
            create view v as select * from t where TRY; create view w as select * from v",
        "select * from w",
        "drop view w; drop view v; drop table t",
    ),
    named(
        "rule",
        "create table t (v integer); create rule r as on insert to t do also select KEEP",
        "insert into t values (1)",
        "drop table t",
    ),
    named(
        "condition of a rule",
        "create table t (v integer);
            create rule r as on insert to t where TRY do instead nothing",
        "insert into t values (1)",
        "drop table t",
    ),
    named(
        "policy",
        "create table t (v integer); insert into t values (1);
            alter table t enable row level security; create policy p on t using (TRY)",
        "select * from t",
        "drop table t",
    ),
    named(
        "policy for new rows",
        "create table t (v integer); alter table t enable row level security;
            create policy p on t for insert with check (TRY)",
        "insert into t values (1)",
        "drop table t",
    ),
    named(
        "condition of a trigger",
        "create table t (v integer);
            create function on_t() returns trigger language plpgsql as 'begin return new; end';
            create trigger t before insert on t for each row when (TRY) execute function on_t()",
        "insert into t values (1)",
        "drop table t; drop function on_t()",
    ),
    named(
        "condition of a partition's trigger",
        "create table p (v integer) partition by list (v);
            create table t partition of p default;
            create function on_t() returns trigger language plpgsql as 'begin return new; end';
            create trigger t before insert on t for each row when (TRY) execute function on_t()",
        "insert into p values (1)",
        "drop table p; drop function on_t()",
    ),
    named(
        "default of an argument",
        "create function given(x text default KEEP) returns text language sql as 'select $1'",
        "select given()",
        "drop function given(text)",
    ),
    named(
        "function in the condition of a trigger",
        "create table t (v integer);
            create function on_t() returns trigger language plpgsql as 'begin return new; end';
            create function own() returns boolean language plpgsql as
                'begin perform KEEP; return true; end';
            create trigger t before insert on t for each row when (own()) execute function on_t()",
        "insert into t values (1)",
        "drop table t; drop function on_t(); drop function own()",
    ),
    named(
        "function in a partition key",
        "create function own(x integer) returns integer immutable language plpgsql as
                'begin perform KEEP; return x; end';
            create table t (v integer) partition by list (own(v));
            create table u partition of t default",
        "insert into t values (1)",
        "drop table t; drop function own(integer)",
    ),
    named(
        "function in a parent's key",
        "create function own(x integer) returns integer immutable language plpgsql as
                'begin perform KEEP; return x; end';
            create table t (v integer) partition by list (own(v));
            create table u partition of t for values in (1)",
        "insert into u values (1)",
        "drop table t; drop function own(integer)",
    ),
    named(
        "function in an index, while planning",
        "create function own() returns integer immutable language plpgsql as
                'begin perform KEEP; return 1; end';
            create table t (v integer); create index i on t (v) where own() = 1",
        "explain select * from t",
        "drop table t; drop function own()",
    ),
    named(
        "function in an index, while planning a foreign key's check",
        "create function own() returns integer immutable language plpgsql as
                'begin perform KEEP; return 1; end';
            create table p (v integer primary key); create index i on p (v) where own() = 1;
            insert into p values (1); create table t (v integer references p)",
        "insert into t values (1)",
        "drop table t; drop table p; drop function own()",
    ),
    unnamed(
        "check of a domain",
        "create domain checked as integer check (TRY)",
        "select 1::checked",
        "drop domain checked",
    ),
    unnamed(
        "check of a domain, by JSON",
        "create domain checked as integer check (TRY); create type pair as (a checked)",
        "select json_populate_record(null::pair, '{\"a\": 1}')",
        "drop type pair; drop domain checked",
    ),
    unnamed(
        "default of a domain",
        "create domain given as text default KEEP; create table t (v given, w integer)",
        "insert into t (w) values (1)",
        "drop table t; drop domain given",
    ),
];

/// Those that take what the call itself is.
const OF_SETTINGS: &[Stored] = &[
    named(
        "aggregate",
        "create aggregate last_set(text, boolean)
            (sfunc = set_config, stype = text, initcond = 'app.tenant')",
        "select last_set('7', false)",
        "drop aggregate last_set(text, boolean)",
    ),
    named(
        "aggregate in a view",
        "create aggregate last_set(text, boolean)
            (sfunc = set_config, stype = text, initcond = 'app.tenant');
            create view v as select last_set('7', false) as x",
        "select * from v",
        "drop view v; drop aggregate last_set(text, boolean)",
    ),
];

/// ANALYZE takes settings back by itself.
const OF_LOCKS: &[Stored] = &[
    unnamed(
        "function in statistics",
        "create function own(x integer) returns integer immutable language plpgsql as
                'begin perform pg_advisory_lock(7); return x; end';
            create table t (v integer); insert into t values (1), (2);
            create statistics s on (own(v)), v from t; alter table t owner to member",
        "analyze t",
        "drop table t; drop function own(integer)",
    ),
    named(
        "operator",
        "create operator ## (function = pg_advisory_lock, rightarg = bigint)",
        "select ## 7::bigint",
        "drop operator ## (none, bigint)",
    ),
    named(
        "operator in a view",
        "create operator ## (function = pg_advisory_lock, rightarg = bigint);
            create view v as select (## 7::bigint)::text as x",
        "select * from v",
        "drop view v; drop operator ## (none, bigint)",
    ),
];

const OF_LIMITS: &[Stored] = &[
    named(
        "function of an extension in a default",
        "create table t (v real default set_limit(0.77), w integer)",
        "insert into t (w) values (1)",
        "drop table t",
    ),
    named(
        "function of an extension in a domain",
        "create domain checked as real check (set_limit(0.77) > 0)",
        "select 1::checked",
        "drop domain checked",
    ),
];

const OF_TABLES: &[Stored] = &[
    named(
        "search path of a function",
        "create function makes() returns void language plpgsql set search_path = pg_temp as
            'begin create table scratch as select 1 as x; end'",
        "select makes()",
        "drop function makes()",
    ),
    named(
        "search path that a function sets",
        "create function makes() returns void language plpgsql as
            'begin perform set_config(''search_path'', ''pg_temp'', true);
            create table scratch as select 1 as x; end'",
        "select makes()",
        "drop function makes()",
    ),
    named(
        "search path of the caller",
        "create function inner_one() returns void language plpgsql as
                'begin create table scratch as select 1 as x; end';
            create function makes() returns void language plpgsql set search_path = pg_temp as
                'begin perform public.inner_one(); end'",
        "select makes()",
        "drop function makes(); drop function inner_one()",
    ),
];

#[test]
fn state_from_stored_expressions() {
    let place = Place::start().expect("servers start");
    let mut failures = Vec::new();
    let mut check = |wanted: &str, stored: &Stored, keep: &str, boolean: &str| {
        // Inside of a string that is a body, quotes are double.
        let setup: String = stored
            .setup
            .split('\'')
            .enumerate()
            .map(|(at, part)| {
                let doubled = keep.replace('\'', "''");
                part.replace("KEEP", if at % 2 == 1 { &doubled } else { keep })
                    .replace("TRY", boolean)
            })
            .collect::<Vec<_>>()
            .join("'");
        let setup = format!("{setup}; grant all on all tables in schema public to public");
        let all = states();
        let state = all.iter().find(|state| state.name == wanted);
        let state = state.expect("known");
        let kept = !stored.unnamed || state.visible;
        let result = place.check(MEMBER, &setup, stored.run, state, kept);
        if let Err(error) = result {
            failures.push(format!("{wanted} by {}: {error:#}", stored.name));
        }
        if let Err(error) = cleanup(&place, stored.cleanup) {
            failures.push(format!("{}: {error:#}", stored.name));
        }
    };
    for stored in STORED {
        let call = "set_config('app.tenant', '7', false)";
        check("custom setting", stored, call, &format!("{call} = '7'"));
        // It waits until the session that had it before has ended.
        let call = "pg_advisory_lock(7)::text";
        check("advisory lock", stored, call, &format!("{call} = ''"));
    }
    for (wanted, list) in [
        ("custom setting", OF_SETTINGS),
        ("advisory lock", OF_LOCKS),
        ("similarity limit", OF_LIMITS),
        ("temporary table", OF_TABLES),
    ] {
        for stored in list {
            check(wanted, stored, "", "");
        }
    }
    report(failures);
}

fn cleanup(place: &Place, texts: &str) -> Result<()> {
    let mut root = Connection::open(&place.proxy.server)?;
    for text in texts.split("; ") {
        root.execute(text)?;
    }
    root.terminate()
}

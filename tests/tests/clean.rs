//! A connection goes back clean: whatever code inside a server has set for its session, the next
//! client of the same login sees none of it, and the client itself sees what it would see on one
//! Postgres. The pool has one connection, so that clients who come one after the other get the
//! same one.

mod full;
mod prepared;
mod stale;
mod stored;

use std::{
    io::{Read, Write},
    net::TcpStream,
    path::Path,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Automator},
    postgres::{DATABASE, PASSWORD, Plain, USER},
    wait,
    wire::{Connection, Server},
};

/// A login that row level security holds for.
const MEMBER: &str = "member";

const SOON: Duration = Duration::from_secs(60);

/// A kind of state.
struct State {
    name: &'static str,
    /// A statement of PL/pgSQL that makes it.
    code: String,
    /// One of SQL.
    sql: String,
    /// What a session sees of it.
    probe: &'static str,
    /// The proxy sees it from outside, so that it stays with the session even where nobody knows
    /// what has run.
    visible: bool,
}

/// A way in which code comes to run.
struct Route {
    name: &'static str,
    /// Makes it; `act` is the code's function.
    setup: &'static str,
    /// Makes the code run.
    run: &'static str,
    /// Takes it away.
    cleanup: &'static str,
}

/// `automator67 serve` before one server, with `pool_size` connections for each login.
fn proxy(directory: &Path, shard: &Server, pool_size: usize, more: &str) -> Result<Automator> {
    let text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n{more}\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n\
         [[users]]\nname = \"{MEMBER}\"\npassword = \"{PASSWORD}\"\n\
         [[shards]]\nname = \"shard1\"\nurl = \"{}\"\npool_size = {pool_size}\n",
        shard.url()?
    );
    let file = directory.join("clean.toml");
    std::fs::write(&file, text)?;
    automator::serve(&file)
}

/// The same server with another login.
fn login(server: &Server, user: &str) -> Server {
    Server {
        user: user.to_owned(),
        ..server.clone()
    }
}

/// Postgres with what all cases need, and a proxy before it.
struct Place {
    plain: Plain,
    proxy: Automator,
    _directory: tempfile::TempDir,
}

impl Place {
    fn start() -> Result<Place> {
        let plain = Plain::start()?;
        let mut root = Connection::open(&plain.server)?;
        for text in [
            format!("create role {MEMBER} login password '{PASSWORD}'"),
            format!("create role guest; grant guest to {MEMBER}"),
            "create extension dblink; create extension pg_trgm".to_owned(),
            "grant create, usage on schema public to public".to_owned(),
            format!("grant temporary, create on database {DATABASE} to public"),
            "create sequence counter; grant all on sequence counter to public".to_owned(),
            "create function last_value_of_session() returns text language plpgsql as
                'begin return lastval(); exception when others then return ''none''; end'"
                .to_owned(),
            "create function calm(x integer) returns integer language plpgsql as
                'begin perform set_config(''app.tenant'', ''1'', true); return x; end'"
                .to_owned(),
        ] {
            root.execute(&text)?;
        }
        let directory = automator67_tests::postgres::directory()?;
        let proxy = proxy(directory.path(), &plain.server, 1, "")?;
        Ok(Place {
            plain,
            proxy,
            _directory: directory,
        })
    }

    /// What happens when `run` makes `state` come about. `kept`: the session must see it afterwards.
    fn check(&self, user: &str, setup: &str, run: &str, state: &State, kept: bool) -> Result<()> {
        let mut root = Connection::open(&self.proxy.server)?;
        root.execute(setup).context("setup")?;
        root.terminate()?;
        let (direct, pooled) = (
            login(&self.plain.server, user),
            login(&self.proxy.server, user),
        );
        let mut one = Connection::open(&direct)?;
        let clean = one.execute(state.probe)?;
        one.simple(run)?;
        let dirty = one.execute(state.probe)?;
        ensure!(dirty != clean, "nothing happened: {dirty:?}");
        one.terminate()?;

        let mut first = Connection::open(&pooled)?;
        first.execute(run).context("the statement on the proxy")?;
        if kept {
            let seen = first.execute(state.probe)?;
            ensure!(
                seen == dirty,
                "its session sees {seen:?} instead of {dirty:?}"
            );
        }
        first.terminate()?;
        let mut second = Connection::open(&pooled)?;
        let seen = second.execute(state.probe)?;
        ensure!(seen != dirty, "the next client sees {seen:?}");
        second.terminate()
    }
}

fn states() -> Vec<State> {
    let state = |name, code: &str, sql: &str, probe, visible| State {
        name,
        code: code.to_owned(),
        sql: sql.to_owned(),
        probe,
        visible,
    };
    let performed = |name, call: &str, probe, visible| {
        let (code, sql) = (format!("perform {call}"), format!("select {call}"));
        state(name, &code, &sql, probe, visible)
    };
    let same = |name, text: &str, probe, visible| state(name, text, text, probe, visible);
    vec![
        same(
            "setting",
            "set work_mem = '7MB'",
            "select current_setting('work_mem')",
            true,
        ),
        performed(
            "set_config",
            "set_config('work_mem', '7MB', false)",
            "select current_setting('work_mem')",
            true,
        ),
        performed(
            "custom setting",
            "set_config('app.tenant', '7', false)",
            "select coalesce(current_setting('app.tenant', true), '')",
            false,
        ),
        same("role", "set role guest", "select current_user::text", true),
        same(
            "reset",
            "reset application_name; set application_name = 'other'",
            "select current_setting('application_name')",
            true,
        ),
        performed(
            "advisory lock",
            "pg_advisory_lock(7)",
            "select count(*) from pg_locks where locktype = 'advisory' and pid = pg_backend_pid()",
            true,
        ),
        same(
            "listen",
            "listen news",
            "select count(*) from pg_listening_channels()",
            true,
        ),
        same(
            "temporary table",
            "create temp table scratch as select 1 as x",
            "select count(*) from pg_class where relname = 'scratch' and pg_table_is_visible(oid)",
            true,
        ),
        same(
            "temporary view",
            "create temporary view scratch as select 1 as x",
            "select count(*) from pg_class where relname = 'scratch' and pg_table_is_visible(oid)",
            true,
        ),
        same(
            "temporary function",
            "create function pg_temp.helper() returns integer language sql as 'select 1'",
            "select count(*) from pg_proc where proname = 'helper' and pronamespace = pg_my_temp_schema()",
            true,
        ),
        state(
            "prepared statement",
            "execute 'prepare kept as select 1'",
            "prepare kept as select 1",
            "select count(*) from pg_prepared_statements where name = 'kept'",
            true,
        ),
        state(
            "held cursor",
            "execute 'declare kept cursor with hold for select 1'",
            "declare kept cursor with hold for select 1",
            "select count(*) from pg_cursors where name = 'kept'",
            true,
        ),
        performed("seed", "setseed(0.7)", "select random()", false),
        performed(
            "similarity limit",
            "set_limit(0.77)",
            "select show_limit()",
            true,
        ),
    ]
}

fn function(name: &str, code: &str) -> String {
    format!(
        "create or replace function {name}() returns integer language plpgsql as
         $body$ begin {code}; return 1; end $body$"
    )
}

fn report(failures: Vec<String>) {
    assert!(
        failures.is_empty(),
        "{} failed:\n{}",
        failures.len(),
        failures.join("\n")
    );
}

#[test]
fn every_state_from_every_kind_of_code() {
    let place = Place::start().expect("servers start");
    let mut failures = Vec::new();
    for state in states() {
        let (code, sql) = (&state.code, &state.sql);
        let in_sql = sql.replace("; ", ";");
        let kinds = [
            (
                "function",
                function("act", code),
                "select act()".to_owned(),
                true,
            ),
            (
                "procedure",
                format!(
                    "create or replace procedure act_in_procedure() language plpgsql as
                     $body$ begin {code}; end $body$"
                ),
                "call act_in_procedure()".to_owned(),
                true,
            ),
            (
                "block",
                "select 1".to_owned(),
                format!("do $do$ begin {code}; end $do$"),
                true,
            ),
            (
                "SQL function",
                format!(
                    "create or replace function act_in_sql() returns void language sql as
                     $body$ {in_sql} $body$"
                ),
                "select act_in_sql()".to_owned(),
                true,
            ),
            (
                "unknown text",
                "create or replace function act_on_text(what text) returns void language plpgsql
                 as $body$ begin execute what; end $body$"
                    .to_owned(),
                format!("select act_on_text($q${sql}$q$)"),
                state.visible,
            ),
        ];
        for (kind, setup, run, kept) in kinds {
            // A function in SQL is checked as a whole before it runs.
            if kind == "SQL function" && state.name == "temporary function" {
                continue;
            }
            if let Err(error) = place.check(MEMBER, &setup, &run, &state, kept) {
                failures.push(format!("{} from {kind}: {error:#}", state.name));
            }
        }
    }
    report(failures);
}

const ROUTES: &[Route] = &[
    Route {
        name: "function called by another",
        setup: "create function calls_it() returns integer language sql as 'select act()'",
        run: "select calls_it()",
        cleanup: "drop function calls_it()",
    },
    Route {
        name: "trigger on rows",
        setup: "create table t (v integer);
            create function on_t() returns trigger language plpgsql as
                'begin perform act(); return new; end';
            create trigger t before insert on t for each row execute function on_t()",
        run: "insert into t values (1)",
        cleanup: "drop table t; drop function on_t()",
    },
    Route {
        name: "trigger on statements, by COPY",
        setup: "create table t (v integer);
            create function on_t() returns trigger language plpgsql as
                'begin perform act(); return null; end';
            create trigger t after insert on t for each statement execute function on_t()",
        run: "with w as (insert into t select 1 returning v) select * from w",
        cleanup: "drop table t; drop function on_t()",
    },
    Route {
        name: "deferred trigger",
        setup: "create table t (v integer);
            create function on_t() returns trigger language plpgsql as
                'begin perform act(); return null; end';
            create constraint trigger t after insert on t initially deferred
                for each row execute function on_t()",
        run: "begin; insert into t values (1); commit",
        cleanup: "drop table t; drop function on_t()",
    },
    Route {
        name: "trigger reached by a foreign key",
        setup: "create table p (id integer primary key);
            create table t (id integer references p on delete cascade);
            create function on_t() returns trigger language plpgsql as
                'begin perform act(); return old; end';
            create trigger t before delete on t for each row execute function on_t();
            grant all on p, t to public;
            insert into p select generate_series(1, 9); insert into t select generate_series(1, 9)",
        run: "delete from p where id = (select min(id) from p)",
        cleanup: "drop table t, p; drop function on_t()",
    },
    Route {
        name: "trigger of a partition",
        setup: "create table p (v integer) partition by list (v);
            create table t partition of p default;
            create function on_t() returns trigger language plpgsql as
                'begin perform act(); return new; end';
            create trigger t before insert on t for each row execute function on_t()",
        run: "insert into p values (1)",
        cleanup: "drop table p; drop function on_t()",
    },
    Route {
        name: "default",
        setup: "create table t (v integer default act(), w integer)",
        run: "insert into t (w) values (1)",
        cleanup: "drop table t",
    },
    Route {
        name: "check",
        setup: "create table t (v integer check (act() = 1))",
        run: "insert into t values (1)",
        cleanup: "drop table t",
    },
    Route {
        name: "view of a view",
        setup: "create view v as select act() as x; create view w as select * from v",
        run: "select * from w",
        cleanup: "drop view w; drop view v",
    },
    Route {
        name: "rule",
        setup: "create table t (v integer); create table u (v integer default act(), w integer);
            create rule r as on insert to t do also insert into u (w) values (1)",
        run: "insert into t values (1)",
        cleanup: "drop table t; drop table u",
    },
    Route {
        name: "policy",
        setup: "create table t (v integer); insert into t values (1);
            alter table t enable row level security;
            create policy p on t using (act() = 1)",
        run: "select * from t",
        cleanup: "drop table t",
    },
    Route {
        name: "operator",
        setup: "create function act_on(a integer, b integer) returns integer language sql as
                'select act()';
            create operator <+> (function = act_on, leftarg = integer, rightarg = integer)",
        run: "select 1 <+> 2",
        cleanup: "drop operator <+> (integer, integer); drop function act_on(integer, integer)",
    },
    Route {
        name: "cast",
        setup: "create type kind as (v integer);
            create function as_number(kind) returns integer language sql as 'select act()';
            create cast (kind as integer) with function as_number(kind) as implicit",
        run: "select row(1)::kind::integer",
        cleanup: "drop cast (kind as integer); drop function as_number(kind); drop type kind",
    },
    Route {
        name: "domain",
        setup: "create domain checked as integer check (act() = 1)",
        run: "select 1::checked",
        cleanup: "drop domain checked",
    },
    Route {
        name: "aggregate",
        setup: "create function act_next(a integer, b integer) returns integer language sql as
                'select act()';
            create aggregate total (integer) (sfunc = act_next, stype = integer, initcond = 0)",
        run: "select total(x) from generate_series(1, 3) x",
        cleanup: "drop aggregate total (integer); drop function act_next(integer, integer)",
    },
    Route {
        name: "function of the same transaction",
        setup: "select 1",
        run: "begin;
            create function fresh() returns integer language plpgsql as
                'begin return act(); end';
            select fresh(); drop function fresh(); commit",
        cleanup: "select 1",
    },
    Route {
        name: "PREPARE",
        setup: "select 1",
        run: "prepare p as select act(); execute p; deallocate p",
        cleanup: "select 1",
    },
    Route {
        name: "cursor",
        setup: "select 1",
        run: "begin; declare c cursor for select act(); fetch c; commit",
        cleanup: "select 1",
    },
    Route {
        name: "event trigger",
        setup: "create function on_ddl() returns event_trigger language plpgsql as
                'begin if current_user <> ''app'' then perform act(); end if; end';
            create event trigger e on ddl_command_end execute function on_ddl()",
        run: "drop table if exists made; create table made ()",
        cleanup: "drop event trigger e; drop function on_ddl(); drop table made",
    },
];

#[test]
fn state_from_every_route() {
    let place = Place::start().expect("servers start");
    let mut failures = Vec::new();
    let mut root = Connection::open(&place.proxy.server).expect("login");
    for wanted in ["custom setting", "advisory lock"] {
        for unknown in [false, true] {
            let all = states();
            let state = all
                .iter()
                .find(|state| state.name == wanted)
                .expect("known");
            let code = if unknown {
                // The text is not in the body.
                "execute (select text from texts)".to_owned()
            } else {
                state.code.clone()
            };
            root.execute("drop table if exists texts").expect("texts");
            root.execute("create table texts (text text)")
                .expect("texts");
            root.execute("grant all on texts to public").expect("texts");
            let text = state.sql.replace('\'', "''");
            root.execute(&format!("insert into texts values ('{text}')"))
                .expect("texts");
            root.execute(&function("act", &code)).expect("act");
            for route in ROUTES {
                let setup = format!(
                    "{}; grant all on all tables in schema public to public",
                    route.setup
                );
                let result =
                    place.check(MEMBER, &setup, route.run, state, !unknown || state.visible);
                if let Err(error) = result {
                    failures.push(format!("{wanted} by {} ({unknown}): {error:#}", route.name));
                }
                if let Err(error) = cleanup(&place, route) {
                    failures.push(format!("{}: {error:#}", route.name));
                }
            }
        }
    }
    report(failures);
}

fn cleanup(place: &Place, route: &Route) -> Result<()> {
    let mut direct = Connection::open(&place.plain.server)?;
    let made = direct.execute("select count(*) from pg_class where relname = 'made'")?;
    direct.terminate()?;
    let mut root = Connection::open(&place.proxy.server)?;
    if made.as_deref() == Some("0") && route.cleanup.contains("made") {
        root.execute("create table made ()")?;
    }
    for text in route.cleanup.split("; ") {
        root.execute(text)?;
    }
    root.terminate()
}

#[test]
fn a_statement_that_fails_may_leave_something_all_the_same() {
    let place = Place::start().expect("servers start");
    let locks = states();
    let locks = locks.iter().find(|state| state.name == "advisory lock");
    let probe = locks.expect("known").probe;
    let check = || -> Result<()> {
        let mut client = Connection::open(&place.proxy.server)?;
        client.execute(&function(
            "act",
            "execute 'select pg_advisory' || '_lock(7)'",
        ))?;
        let (code, _) = client.failure("select act() / 0")?;
        ensure!(code == "22012", "{code}");
        let seen = client.execute(probe)?;
        ensure!(seen.as_deref() == Some("1"), "the lock is lost: {seen:?}");
        client.terminate()?;
        let mut other = Connection::open(&place.proxy.server)?;
        let seen = other.execute(probe)?;
        ensure!(seen.as_deref() == Some("0"), "the lock is left: {seen:?}");
        Ok(())
    };
    check().expect("locks");
}

#[test]
fn values_of_sequences_stay_with_their_session() {
    let place = Place::start().expect("servers start");
    for (kind, setup, run) in [
        (
            "function",
            function("act", "perform nextval('counter')"),
            "select act()",
        ),
        (
            "block",
            "select 1".to_owned(),
            "do 'begin perform nextval(''counter''); end'",
        ),
    ] {
        check_sequences(&place, &setup, run).expect(kind);
    }
}

fn check_sequences(place: &Place, setup: &str, run: &str) -> Result<()> {
    const LAST: &str = "select last_value_of_session()";
    let mut client = Connection::open(&place.proxy.server)?;
    let mut other = Connection::open(&place.proxy.server)?;
    client.execute(setup)?;
    client.execute("begin")?;
    client.execute(run)?;
    let seen = client.execute(LAST)?;
    ensure!(seen.as_deref() != Some("none"), "its own value is lost");
    client.execute("commit")?;
    let seen = other.execute(LAST)?;
    ensure!(
        seen.as_deref() == Some("none"),
        "the next client sees {seen:?}"
    );
    Ok(())
}

#[test]
fn what_no_command_takes_back_ends_with_the_connection() {
    let place = Place::start().expect("servers start");
    let server = &place.plain.server;
    let port = server.port().expect("a port");
    let far =
        format!("host=127.0.0.1 port={port} dbname={DATABASE} user={USER} password='{PASSWORD}'");
    let call = format!("dblink_connect('far', $c${far}$c$)");
    let state = State {
        name: "dblink",
        code: format!("perform {call}"),
        sql: format!("select {call}"),
        probe: "select coalesce(array_length(dblink_get_connections(), 1), 0)",
        visible: false,
    };
    let mut failures = Vec::new();
    let dynamic = "create or replace function act_on_text(what text) returns void
        language plpgsql as $body$ begin execute what; end $body$";
    let on_text = format!("select act_on_text($q${}$q$)", state.sql);
    for (kind, setup, run, kept) in [
        ("text", "select 1".to_owned(), state.sql.clone(), true),
        (
            "function",
            function("act", &state.code),
            "select act()".to_owned(),
            true,
        ),
        ("unknown text", dynamic.to_owned(), on_text, false),
    ] {
        if let Err(error) = place.check(USER, &setup, &run, &state, kept) {
            failures.push(format!("{kind}: {error:#}"));
        }
    }
    report(failures);
}

/// The value of a counter, over all its labels.
fn counter(proxy: &Automator, name: &str) -> Result<u64> {
    let mut stream = TcpStream::connect(("127.0.0.1", automator::port_of(&proxy.http)?))?;
    stream.write_all(b"GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n")?;
    let mut text = String::new();
    stream.read_to_string(&mut text)?;
    let lines = text.lines().filter(|line| line.starts_with(name));
    let values = lines.filter_map(|line| line.rsplit(' ').next()?.parse::<u64>().ok());
    Ok(values.sum())
}

const RESETS: &str = "automator67_connections_reset_total";
const CLOSED: &str = "automator67_connections_closed_total";

#[test]
fn only_statements_that_may_leave_something_pay() {
    let place = Place::start().expect("servers start");
    check_costs(&place).expect("costs");
}

/// The process of the home shard that the session is served by.
const PROCESS: &str = "select pid from pg_stat_activity where pid = pg_backend_pid()";

fn check_costs(place: &Place) -> Result<()> {
    let mut client = Connection::open(&place.proxy.server)?;
    let mut other = Connection::open(&place.proxy.server)?;
    for text in [
        "create table t (id integer primary key, v integer default calm(3), check (calm(v) > 0))",
        "create function on_t() returns trigger language plpgsql as
            'begin update u set n = n + 1; perform calm(1); return new; end'",
        "create table u (n integer)",
        "create trigger t before insert on t for each row execute function on_t()",
        "create view v as select calm(v) as v from t",
        "create function unknown(what text) returns void language plpgsql as
            'begin execute what; end'",
    ] {
        client.execute(text)?;
    }
    let before = (
        counter(&place.proxy, RESETS)?,
        counter(&place.proxy, CLOSED)?,
    );
    let process = client.execute(PROCESS)?;
    for id in 0..10 {
        client.execute(&format!("insert into t (id) values ({id})"))?;
        client.execute(&format!("update t set v = 5 where id = {id}"))?;
        client.execute("select * from v")?;
        client.execute("do 'begin perform calm(1); end'")?;
        client.execute("select pg_advisory_xact_lock(1)")?;
        other.execute("select calm(1), random()")?;
    }
    let after = (
        counter(&place.proxy, RESETS)?,
        counter(&place.proxy, CLOSED)?,
    );
    ensure!(before == after, "resets and closes: {before:?}, {after:?}");
    // dblink is there, so code that is not known might have used it.
    client.execute("select unknown('select 1')")?;
    // It is closed beside what the client does.
    wait::until("the connection is closed", SOON, || {
        let closed = counter(&place.proxy, CLOSED).ok()?;
        (closed == before.1 + 1).then_some(())
    })?;
    client.execute("drop extension dblink")?;
    let process_after = client.execute(PROCESS)?;
    ensure!(process != process_after, "the connection was not closed");
    for _ in 0..3 {
        client.execute("select unknown('select 1')")?;
        let same = other.execute(PROCESS)?;
        ensure!(same == process_after, "a reset is no reason to close");
    }
    ensure!(counter(&place.proxy, RESETS)? == before.0 + 3);
    ensure!(counter(&place.proxy, CLOSED)? == before.1 + 1);
    Ok(())
}

#[test]
fn a_session_can_let_go_of_what_it_kept() {
    let place = Place::start().expect("servers start");
    check_letting_go(&place).expect("letting go");
}

/// After DISCARD ALL the session needs its connection no longer, so that others get it.
fn check_letting_go(place: &Place) -> Result<()> {
    let mut client = Connection::open(&place.proxy.server)?;
    client.execute(&function(
        "act",
        "perform set_config('app.tenant', '7', false), setseed(0.5)",
    ))?;
    client.execute("select act()")?;
    let seen = client.execute("select current_setting('app.tenant')")?;
    ensure!(seen.as_deref() == Some("7"), "{seen:?}");
    client.execute("discard all")?;
    let mut other = Connection::open(&place.proxy.server)?;
    let seen = other.execute("select current_setting('app.tenant', true)")?;
    ensure!(seen.as_deref() != Some("7"), "{seen:?}");
    let pinned = other.execute("select count(*) from automator67.sessions where pinned")?;
    ensure!(pinned.as_deref() == Some("0"), "{pinned:?}");
    Ok(())
}

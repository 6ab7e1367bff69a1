//! Cancelling, settings, notices, notifications, locks, temporary tables.

use std::time::Instant;

use anyhow::{Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wait, wire,
    wire::{Connection, Server},
};

use super::{SOON, becomes, column, fails, is_one};

pub const CHECKS: &[Check<Server>] = &[
    ("cancel a sleep", cancel_sleep),
    ("cancel on all shards", cancel_on_all_shards),
    ("ParameterStatus", parameter_status),
    ("startup settings", startup_settings),
    ("notices", notices),
    ("LISTEN and NOTIFY", notifications),
    ("a session signals itself", own_signals),
    ("what DEALLOCATE and DISCARD leave", deallocated),
    ("settings of interleaved sessions", interleaved_settings),
    ("settings and rollback", settings_and_rollback),
    ("DISCARD ALL and RESET ALL", discard),
    ("advisory locks", advisory_locks),
    ("temporary tables", temporary_tables),
];

fn cancelled(connection: &mut Connection, server: &Server, text: &str) -> Result<()> {
    connection.send(Batch::new().query(text).bytes())?;
    // A request that comes before its statement hits nothing; the statement gets a moment to
    // be seen by a second session.
    let mut other = Connection::open(server)?;
    is_one(&mut other, "select 1", "1")?;
    let start = Instant::now();
    connection.set_read_limit(std::time::Duration::from_millis(300))?;
    let first = wait::until("57014", SOON, || {
        wire::cancel(server, connection.process, &connection.secret).ok()?;
        connection.until_ready().ok()
    })?;
    connection.set_read_limit(std::time::Duration::from_secs(60))?;
    ensure!(
        shape(&first).ends_with("E(57014)Z"),
        "{text}: {}",
        shape(&first)
    );
    eprintln!("cancelled after {:?}: {text}", start.elapsed());
    Ok(())
}

fn cancel_sleep(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for text in [
        "select pg_sleep(30)",
        "select pg_sleep(30) from points where id = 1",
        "select pg_sleep(30) from points where id = 2",
        "select count(*), pg_sleep(30) from points",
    ] {
        cancelled(&mut connection, server, text)?;
        is_one(&mut connection, "select count(*) from points", "300")?;
    }
    Ok(())
}

fn cancel_on_all_shards(server: &Server) -> Result<()> {
    let mut holder = Connection::open(server)?;
    holder.execute("begin")?;
    holder.execute("update points set v = v where true")?;
    let mut connection = Connection::open(server)?;
    cancelled(&mut connection, server, "update points set v = v + 1")?;
    is_one(&mut connection, "select 1", "1")?;
    connection.execute("begin")?;
    cancelled(&mut connection, server, "update points set v = v + 1")?;
    fails(&mut connection, "select 1", "25P02")?;
    connection.execute("rollback")?;
    holder.execute("rollback")?;
    is_one(&mut connection, "select sum(v) from points", "45150")
}

fn parameter_status(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for name in [
        "server_version",
        "client_encoding",
        "DateStyle",
        "TimeZone",
        "standard_conforming_strings",
        "integer_datetimes",
        "is_superuser",
        "session_authorization",
        "application_name",
        "in_hot_standby",
    ] {
        ensure!(
            connection.parameters.contains_key(name),
            "no {name} at login"
        );
    }
    let before = connection.parameters["TimeZone"].clone();
    for (text, name, value) in [
        ("set application_name = 'cats'", "application_name", "cats"),
        ("set time zone 'Asia/Tokyo'", "TimeZone", "Asia/Tokyo"),
        ("set datestyle = 'German'", "DateStyle", "German, DMY"),
        ("begin", "TimeZone", "Asia/Tokyo"),
        ("set timezone = 'Europe/Oslo'", "TimeZone", "Europe/Oslo"),
        ("rollback", "TimeZone", "Asia/Tokyo"),
        (
            "begin; set local timezone = 'Asia/Tashkent'; commit",
            "TimeZone",
            "Asia/Tokyo",
        ),
        (
            "select set_config('TimeZone', 'Asia/Kolkata', false)",
            "TimeZone",
            "Asia/Kolkata",
        ),
        ("reset timezone", "TimeZone", &before),
    ] {
        connection.execute(text)?;
        let got = &connection.parameters[name];
        ensure!(got == value, "{text}: {name} is {got}");
    }
    Ok(())
}

fn startup_settings(server: &Server) -> Result<()> {
    let mut server = server.clone();
    server.options = [
        ("application_name", "start"),
        ("TimeZone", "Asia/Tokyo"),
        (
            "options",
            "-c statement_timeout=12s -c extra_float_digits=0",
        ),
    ]
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .to_vec();
    let mut connection = Connection::open(&server)?;
    ensure!(connection.parameters["TimeZone"] == "Asia/Tokyo");
    ensure!(connection.parameters["application_name"] == "start");
    is_one(
        &mut connection,
        "select t::text from points where id = 5",
        "2024-01-01 09:00:00+09",
    )?;
    is_one(
        &mut connection,
        "select max(t)::text from points",
        "2024-01-01 09:00:00+09",
    )?;
    is_one(&mut connection, "show statement_timeout", "12s")?;
    connection.execute("set timezone = 'UTC'")?;
    connection.execute("reset timezone")?;
    is_one(&mut connection, "show timezone", "Asia/Tokyo")?;
    server.options = vec![("no_such_setting".into(), "1".into())];
    let error = Connection::raw(&server)?.login(&server)?;
    let code = error.and_then(|error| error.field(b'C'));
    ensure!(code.as_deref() == Some("42704"), "{code:?}");
    Ok(())
}

fn notices(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("do $$ begin raise notice 'hello %', 1; raise warning 'beware'; end $$")?;
    connection.execute("drop table if exists nowhere")?;
    let told: Vec<_> = connection
        .notices
        .iter()
        .map(|it| {
            (
                it.field(b'V').unwrap_or_default(),
                it.field(b'M').unwrap_or_default(),
            )
        })
        .collect();
    let expected = [
        ("NOTICE", "hello 1"),
        ("WARNING", "beware"),
        ("NOTICE", "table \"nowhere\" does not exist, skipping"),
    ]
    .map(|(severity, text)| (severity.to_owned(), text.to_owned()));
    ensure!(told == expected, "{told:?}");
    Ok(())
}

fn notifications(server: &Server) -> Result<()> {
    let mut listener = Connection::open(server)?;
    let mut speaker = Connection::open(server)?;
    listener.execute("listen news")?;
    speaker.execute("notify news, 'first'")?;
    // It comes without being asked for.
    let frame = listener.receive()?;
    ensure!(
        frame.tag == b'A' && frame.body.ends_with(b"news\0first\0"),
        "{frame:?}"
    );
    ensure!(
        frame.body.starts_with(&speaker.process.to_be_bytes()),
        "{frame:?} is not of {}",
        speaker.process
    );
    speaker.execute("begin")?;
    speaker.execute("select pg_notify('news', 'second')")?;
    speaker.execute("rollback")?;
    speaker.execute("begin")?;
    speaker.execute("notify news, 'third'")?;
    speaker.execute("commit")?;
    let frame = listener.receive()?;
    ensure!(
        frame.tag == b'A' && frame.body.ends_with(b"news\0third\0"),
        "{frame:?}"
    );
    listener.execute("notify news, 'own'")?;
    ensure!(listener.notifications.len() == 1, "one's own notification");
    let own = &listener.notifications[0].body;
    ensure!(own.starts_with(&listener.process.to_be_bytes()), "{own:?}");
    listener.execute("unlisten *")?;
    speaker.execute("notify news, 'fourth'")?;
    is_one(&mut listener, "select 1", "1")?;
    ensure!(listener.notifications.len() == 1, "UNLISTEN");
    Ok(())
}

fn own_signals(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let pid = connection.process;
    for text in [
        "select pg_cancel_backend(pg_backend_pid())",
        "select 1, pg_catalog.pg_cancel_backend(pg_backend_pid()::integer) as done, pg_sleep(60)",
        "select pg_cancel_backend(pg_backend_pid()) from points where id = 5",
        "select pg_cancel_backend(pg_backend_pid()) from points",
        &format!("select pg_cancel_backend({pid})"),
    ] {
        fails(&mut connection, text, "57014")?;
        connection.execute("begin")?;
        fails(&mut connection, text, "57014")?;
        fails(&mut connection, "select 1", "25P02")?;
        connection.execute("rollback")?;
        is_one(&mut connection, "select count(*) from points", "300")?;
    }
    for text in [
        "select pg_terminate_backend(pg_backend_pid())".to_owned(),
        "select pg_terminate_backend(PID)".to_owned(),
    ] {
        let mut connection = Connection::open(server)?;
        let text = text.replace("PID", &connection.process.to_string());
        connection.send(Batch::new().query(&text).bytes())?;
        let mut frame = connection.receive()?;
        // What it begins to answer does not matter.
        while matches!(frame.tag, b'T' | b'D') {
            frame = connection.receive()?;
        }
        ensure!(
            frame.field(b'C').as_deref() == Some("57P01"),
            "{text}: {frame:?}"
        );
        ensure!(connection.is_closed()?, "{text}: the session goes on");
    }
    Ok(())
}

/// The proxy's own prepared statements, which open snapshots and commit, outlive what a client says of
/// its own, and statements that are prepared anew.
fn deallocated(server: &Server) -> Result<()> {
    for pin in [
        "listen mine",
        "create temporary table mine (id integer)",
        "prepare mine as select 1",
        "select pg_advisory_lock(68)",
        "declare mine cursor with hold for select 1",
    ] {
        for end in [
            "deallocate all",
            "deallocate prepare all",
            "discard plans",
            "discard temp",
            "discard sequences",
            "discard all",
        ] {
            let mut connection = Connection::open(server)?;
            connection.execute("set automator67.consistency = 'snapshot'")?;
            connection.execute(pin)?;
            reads_and_writes(&mut connection)?;
            connection.execute(end)?;
            reads_and_writes(&mut connection)?;
            connection.execute("prepare another as select 2")?;
            is_one(&mut connection, "execute another", "2")?;
            connection.execute("deallocate all")?;
            fails(&mut connection, "execute another", "26000")?;
            reads_and_writes(&mut connection)?;
        }
    }
    Ok(())
}

/// Statements over all shards, of both protocols, in transactions and outside.
fn reads_and_writes(connection: &mut Connection) -> Result<()> {
    let count = "select count(*) from points where id <= $1";
    for _ in 0..2 {
        is_one(connection, "select count(*) from points", "300")?;
        let batch = Batch::new().parse("", count).bind("", "", &[Some("7")]);
        let frames = connection.batch(&batch.execute("", 0).sync())?;
        ensure!(column(&frames)? == ["7"], "{}", shape(&frames));
    }
    connection.execute("begin")?;
    is_one(connection, "select count(*) from points", "300")?;
    connection.execute("update points set v = v where id <= 9")?;
    connection.execute("commit")?;
    Ok(())
}

fn interleaved_settings(server: &Server) -> Result<()> {
    let zones = [
        ("Asia/Tokyo", "2024-01-01 09:00:00+09"),
        ("America/New_York", "2023-12-31 19:00:00-05"),
        ("UTC", "2024-01-01 00:00:00+00"),
    ];
    let mut sessions = Vec::new();
    for (zone, expected) in zones {
        let mut connection = Connection::open(server)?;
        connection.execute(&format!("set timezone = '{zone}'"))?;
        sessions.push((connection, expected));
    }
    for id in 1..=30 {
        for (connection, expected) in &mut sessions {
            let text = format!("select t::text from points where id = {id}");
            is_one(connection, &text, expected)?;
            is_one(connection, "select min(t)::text from points", expected)?;
            let count = format!("select count(*) from points where t::text = '{expected}'");
            is_one(connection, &count, "300")?;
        }
    }
    Ok(())
}

fn settings_and_rollback(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("set statement_timeout = '11s'")?;
    for id in 1..=6 {
        connection.execute("begin")?;
        connection.execute("set statement_timeout = '22s'")?;
        connection.execute("savepoint s")?;
        connection.execute("set statement_timeout = '33s'")?;
        let text =
            format!("select current_setting('statement_timeout') from points where id = {id}");
        is_one(&mut connection, &text, "33s")?;
        connection.execute("rollback to s")?;
        is_one(&mut connection, &text, "22s")?;
        fails(&mut connection, "select 1/0", "22012")?;
        connection.execute("commit")?;
        is_one(&mut connection, &text, "11s")?;
        is_one(&mut connection, "show statement_timeout", "11s")?;
    }
    Ok(())
}

fn discard(server: &Server) -> Result<()> {
    for reset in ["discard all", "reset all"] {
        let mut connection = Connection::open(server)?;
        connection.execute("set timezone = 'Asia/Tokyo'")?;
        connection.execute("set statement_timeout = '11s'")?;
        connection.execute("create temporary table mine (id integer)")?;
        connection.execute("prepare p as select 1")?;
        connection.execute(reset)?;
        is_one(&mut connection, "show statement_timeout", "0")?;
        ensure!(connection.parameters["TimeZone"] != "Asia/Tokyo", "{reset}");
        for id in 1..=6 {
            let text =
                format!("select current_setting('statement_timeout') from points where id = {id}");
            is_one(&mut connection, &text, "0")?;
        }
        let all = reset == "discard all";
        let table = connection.simple("select * from mine")?;
        ensure!(
            (shape(&table) == "E(42P01)Z") == all,
            "{reset}: {}",
            shape(&table)
        );
        let prepared = connection.simple("execute p")?;
        ensure!(
            (shape(&prepared) == "E(26000)Z") == all,
            "{reset}: {}",
            shape(&prepared)
        );
        connection.execute("begin")?;
        fails(&mut connection, "discard all", "25001")?;
        connection.execute("rollback")?;
    }
    Ok(())
}

fn advisory_locks(server: &Server) -> Result<()> {
    let mut holder = Connection::open(server)?;
    let mut other = Connection::open(server)?;
    let try_it = "select pg_try_advisory_lock(67)";
    holder.execute("select pg_advisory_lock(67)")?;
    holder.execute("select count(*) from points")?;
    is_one(&mut other, try_it, "f")?;
    is_one(&mut holder, "select pg_advisory_unlock(67)", "t")?;
    is_one(&mut other, try_it, "t")?;
    is_one(&mut holder, try_it, "f")?;
    // It goes with its session, said goodbye or not.
    drop(other);
    becomes(&mut holder, try_it, "t", SOON)?;
    holder.terminate()?;
    let mut other = Connection::open(server)?;
    becomes(&mut other, try_it, "t", SOON)
}

fn temporary_tables(server: &Server) -> Result<()> {
    let mut owner = Connection::open(server)?;
    let mut other = Connection::open(server)?;
    owner.execute("create temporary table mine (id integer)")?;
    owner.execute("insert into mine values (1), (2)")?;
    is_one(&mut owner, "select count(*) from points", "300")?;
    is_one(&mut owner, "select count(*) from mine", "2")?;
    for _ in 0..10 {
        fails(&mut other, "select count(*) from mine", "42P01")?;
    }
    other.execute("create temporary table mine (id integer)")?;
    is_one(&mut other, "select count(*) from mine", "0")?;
    is_one(&mut owner, "select count(*) from mine", "2")?;
    drop(owner);
    other.terminate()?;
    let mut third = Connection::open(server)?;
    let left = "select count(*) from pg_class where relname = 'mine'";
    becomes(&mut third, left, "0", SOON)
}

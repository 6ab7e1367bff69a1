//! Settings in every form, on every shard, on whichever connection serves.

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    batch::{Batch, shape},
    checks::Check,
    wire::{Connection, Server},
};

use super::{column, fails, is_one};

pub const CHECKS: &[Check<Server>] = &[
    ("DateStyle in parts", date_style),
    ("set_config in every form", set_config),
    ("set_config of bound values", bound_set_config),
    ("set_config for the transaction", local_set_config),
    ("set_config is reported", reported),
    ("set_config that fails", failed_set_config),
    ("modes and savepoints", modes_and_savepoints),
    ("modes that are taken back", modes_taken_back),
    ("modes of the session", modes_of_session),
    ("settings of the role", settings_of_role),
    ("settings of role and database in every scope", every_scope),
    ("resets of what the startup packet gave", startup_values),
    ("switches of the startup packet", switches),
    ("a role beside resets", role_beside_resets),
    ("custom settings of others are unknown", unknown_settings),
    ("comments before commands", commented),
    ("modes behind a query", modes_behind_a_query),
];

/// Every row of every shard sees the value, and so does the home shard.
fn everywhere(connection: &mut Connection, name: &str, value: &str) -> Result<()> {
    is_one(
        connection,
        &format!("select current_setting('{name}', true)"),
        value,
    )?;
    let seen = format!("current_setting('{name}', true)");
    is_one(
        connection,
        &format!("select count(*) from points where {seen} = '{value}'"),
        "300",
    )?;
    for id in 1..=6 {
        is_one(
            connection,
            &format!("select {seen} from points where id = {id}"),
            value,
        )?;
    }
    if name == "statement_timeout" {
        // Servers may be configured differently: a change of several shards may not ask for it.
        return Ok(());
    }
    let update = format!("update points set v = v where {seen} = '{value}'");
    let frames = connection.simple(&update)?;
    let tag = frames[0].text();
    ensure!(tag == "UPDATE 300", "{name} = {value}: {tag}");
    Ok(())
}

fn date_style(server: &Server) -> Result<()> {
    for parts in [
        &["set datestyle = 'sql'", "set datestyle = 'dmy'"][..],
        &["set datestyle = 'dmy'", "set datestyle = 'sql'"],
        &[
            "select set_config('datestyle', 'sql', false)",
            "set datestyle to dmy",
        ],
        &[
            "set datestyle to dmy",
            "select set_config('DateStyle', 'sq' || 'l', false)",
        ],
        &[
            "begin",
            "set datestyle = 'sql'",
            "set datestyle = 'dmy'",
            "commit",
        ],
    ] {
        let mut connection = Connection::open(server)?;
        for part in parts {
            connection.execute(part)?;
        }
        ensure!(
            connection.parameters["DateStyle"] == "SQL, DMY",
            "{parts:?}"
        );
        everywhere(&mut connection, "datestyle", "SQL, DMY")?;
        let text =
            "select distinct '2024-02-03'::date::text || coalesce(min(id)::text, '') from points";
        is_one(&mut connection, text, "03/02/20241")?;
    }
    Ok(())
}

fn set_config(server: &Server) -> Result<()> {
    for (text, name, value) in [
        (
            "select set_config('app.user', 'ann', false)",
            "app.user",
            "ann",
        ),
        (
            "select set_config('app.user', 'a' || 'n', false)",
            "app.user",
            "an",
        ),
        (
            "select set_config('app.' || 'user', 'b', 1 = 2)",
            "app.user",
            "b",
        ),
        (
            "select upper(set_config('app.user', 'c', false))",
            "app.user",
            "c",
        ),
        (
            "select 1, set_config('app.user', 'd', false) as u, now()",
            "app.user",
            "d",
        ),
        (
            "select set_config('app.a', '1', false), set_config('app.b', '2', false)",
            "app.b",
            "2",
        ),
        (
            "select set_config('app.a', '1', false), set_config('app.b', '2', false)",
            "app.a",
            "1",
        ),
        (
            "select set_config('app.user', 'x', false), set_config('app.user', 'e', false)",
            "app.user",
            "e",
        ),
        (
            "select case when true then set_config('app.user', 'f', false) end",
            "app.user",
            "f",
        ),
        (
            "select set_config('app.user', note, false) from notes where id = 1",
            "app.user",
            "first",
        ),
        (
            "select set_config(name, '77', false) from pg_settings where name = 'extra_float_digits' and false",
            "extra_float_digits",
            "1",
        ),
        (
            "select set_config(name, '2', false) from pg_settings where name = 'extra_float_digits'",
            "extra_float_digits",
            "2",
        ),
        (
            "select pg_catalog.set_config('APP.User', 'g', false)",
            "app.user",
            "g",
        ),
        (
            "select set_config('app.user', (select 'h'), false) where true",
            "app.user",
            "h",
        ),
        (
            "select set_config('TimeZone', 'Asia/' || 'Tokyo', false), 2",
            "timezone",
            "Asia/Tokyo",
        ),
        (
            "select set_config('search_path', 'pg_catalog, ' || 'public', false), 2",
            "search_path",
            "pg_catalog, public",
        ),
    ] {
        for block in [false, true] {
            let mut connection = Connection::open(server)?;
            if block {
                connection.execute("begin")?;
                connection.execute("select count(*) from points")?;
            }
            connection.execute(text)?;
            everywhere(&mut connection, name, value)?;
            if block {
                connection.execute("commit")?;
                everywhere(&mut connection, name, value)?;
            }
        }
    }
    Ok(())
}

fn bound_set_config(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let text = "select set_config('app.user', $1, false)";
    let frames = connection.batch(&Batch::new().run(text, &["ann"]).sync())?;
    ensure!(column(&frames)? == ["ann"], "{}", shape(&frames));
    everywhere(&mut connection, "app.user", "ann")?;
    let text = "select set_config($1, $2, $3)";
    let batch = Batch::new()
        .parse("set", text)
        .bind("", "set", &[Some("app.user"), Some("bob"), Some("f")])
        .describe('P', "")
        .execute("", 0);
    let frames = connection.batch(&batch.sync())?;
    ensure!(shape(&frames) == "12TDCZ", "{}", shape(&frames));
    everywhere(&mut connection, "app.user", "bob")?;
    connection.execute("begin")?;
    let local = [Some("app.user"), Some("eve"), Some("true")];
    connection.batch(&Batch::new().bind("", "set", &local).execute("", 0).sync())?;
    everywhere(&mut connection, "app.user", "eve")?;
    connection.execute("rollback")?;
    everywhere(&mut connection, "app.user", "bob")
}

/// As PostgREST and policies on rows use it.
fn local_set_config(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for end in ["commit", "rollback"] {
        connection.execute("begin")?;
        connection.execute(
            "select set_config('search_path', 'public', true), set_config('request.method', 'GET', true)",
        )?;
        everywhere(&mut connection, "request.method", "GET")?;
        everywhere(&mut connection, "search_path", "public")?;
        connection.execute(end)?;
        everywhere(&mut connection, "search_path", "\"$user\", public")?;
        let left =
            "select count(*) from points where current_setting('request.method', true) = 'GET'";
        is_one(&mut connection, left, "0")?;
    }
    connection.execute("begin")?;
    connection.execute("savepoint s")?;
    connection.execute("select set_config('app.' || 'x', 'inner', false)")?;
    connection.execute("rollback to s")?;
    let left = "select count(*) from points where current_setting('app.x', true) = 'inner'";
    is_one(&mut connection, left, "0")?;
    connection.execute("commit")?;
    is_one(&mut connection, left, "0")
}

fn reported(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for (text, name, value) in [
        (
            "select set_config('TimeZone', 'Asia/' || 'Tokyo', false)",
            "TimeZone",
            "Asia/Tokyo",
        ),
        (
            "select set_config('application_name', 'a', false), set_config('datestyle', 'German', false)",
            "DateStyle",
            "German, DMY",
        ),
        ("select 1", "application_name", "a"),
    ] {
        connection.execute(text)?;
        ensure!(
            connection.parameters[name] == value,
            "{text}: {}",
            connection.parameters[name]
        );
    }
    Ok(())
}

fn failed_set_config(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let before = connection.execute("show timezone")?.unwrap_or_default();
    for (text, sqlstate) in [
        (
            "select set_config('timezone', 'Asia/Tokyo', false), 1 / (random() * 0)::int",
            "22012",
        ),
        (
            "select set_config('timezone', 'no' || 'where', false)",
            "22023",
        ),
        (
            "select set_config('no_such_setting_' || 'at_all', '1', false)",
            "42704",
        ),
        ("select set_config(null, '1', false)", "22004"),
    ] {
        fails(&mut connection, text, sqlstate)?;
        everywhere(&mut connection, "timezone", &before)?;
    }
    Ok(())
}

fn modes_and_savepoints(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for touch in [
        None,
        Some("select count(*) from points"),
        Some("select v from points where id = 1"),
    ] {
        for mode in [
            "set transaction read only",
            "set transaction_read_only = on",
            "set local transaction_read_only = on",
            "select set_config('transaction_read_only', 'on', true)",
        ] {
            connection.execute("begin")?;
            if let Some(touch) = touch {
                connection.execute(touch)?;
            }
            connection.execute("savepoint s")?;
            connection.execute(mode)?;
            fails(&mut connection, "update points set v = v", "25006")?;
            connection.execute("rollback to s")?;
            for text in [
                "insert into points values (901, 1), (902, 1), (903, 1)",
                "update points set v = v where id = 5",
                "insert into points select id + 900 from points where id between 5 and 9",
            ] {
                let frames = connection.simple(text)?;
                ensure!(
                    shape(&frames) == "CZ",
                    "{mode} {touch:?} {text}: {}",
                    shape(&frames)
                );
            }
            connection.execute("rollback")?;
        }
    }
    Ok(())
}

fn modes_taken_back(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for first in ["begin read only", "begin; set transaction read only"] {
        connection.execute(first)?;
        connection.execute("set transaction read write")?;
        let text = "insert into points select id + 900 from points where id between 5 and 9";
        let frames = connection.simple(text)?;
        ensure!(shape(&frames) == "CZ", "{first}: {}", shape(&frames));
        connection.execute("rollback")?;
    }
    Ok(())
}

fn modes_of_session(server: &Server) -> Result<()> {
    for (texts, name, value) in [
        (
            &[
                "set session characteristics as transaction read only, isolation level repeatable read",
                "set default_transaction_isolation = 'read committed'",
            ][..],
            "default_transaction_isolation",
            "read committed",
        ),
        (
            &["select set_config('default_transaction_read_only', 'on', false)"],
            "default_transaction_read_only",
            "on",
        ),
        (
            &["select set_config('default_transaction_read_only', 'o' || 'n', false)"],
            "default_transaction_read_only",
            "on",
        ),
    ] {
        let mut connection = Connection::open(server)?;
        for text in texts {
            connection.execute(text)?;
        }
        let seen = format!("select distinct current_setting('{name}') from points");
        is_one(&mut connection, &seen, value)?;
        for text in [
            "update points set v = v",
            "update points set v = v where id = 5",
            "insert into points select id + 900 from points where id between 5 and 9",
        ] {
            fails(&mut connection, text, "25006")?;
        }
    }
    Ok(())
}

fn settings_of_role(server: &Server) -> Result<()> {
    let mut owner = Connection::open(server)?;
    let user = &server.user;
    for (name, value) in [
        ("timezone", "Asia/Tokyo"),
        ("app.tenant", "seven"),
        ("statement_timeout", "77s"),
        ("search_path", "pg_catalog, public"),
        ("datestyle", "SQL, DMY"),
    ] {
        // Connections of before are there.
        let mut warm = Vec::new();
        for _ in 0..3 {
            let mut connection = Connection::open(server)?;
            connection.execute("begin")?;
            connection.execute("select count(*) from points")?;
            warm.push(connection);
        }
        let before = owner.execute(&format!("select current_setting('{name}', true)"))?;
        warm.clear();
        let given = match name {
            "search_path" | "datestyle" => value.to_owned(),
            _ => format!("'{value}'"),
        };
        owner.execute(&format!("alter role {user} set {name} = {given}"))?;
        for _ in 0..3 {
            let mut connection = Connection::open(server)?;
            everywhere(&mut connection, name, value)?;
            connection.execute(&format!("reset {name}"))?;
            everywhere(&mut connection, name, value)?;
        }
        owner.execute(&format!("alter role {user} reset {name}"))?;
        for _ in 0..3 {
            let mut connection = Connection::open(server)?;
            let text = format!("select distinct current_setting('{name}', true) from points");
            let found = connection.execute(&text)?;
            let gone = found == before || found.as_deref().is_none_or(str::is_empty);
            ensure!(gone, "{name}: {found:?} instead of {before:?}");
        }
    }
    Ok(())
}

fn with(server: &Server, options: &[(&str, &str)]) -> Server {
    let mut server = server.clone();
    let given = options.iter();
    server.options = given
        .map(|(name, value)| ((*name).to_owned(), (*value).to_owned()))
        .collect();
    server
}

/// The more special scope wins, and the startup packet wins over all.
fn every_scope(server: &Server) -> Result<()> {
    let (user, database) = (&server.user, &server.database);
    let mut owner = Connection::open(server)?;
    let scopes = [
        format!("role all in database {database}"),
        format!("database {database}"),
        format!("role {user}"),
        format!("role current_user in database {database}"),
    ];
    for (number, scope) in scopes.iter().enumerate().skip(1) {
        let value = format!("scope {number}");
        owner.execute(&format!("alter {scope} set app.scope to '{value}'"))?;
        for reset in [
            "reset app.scope",
            "reset all",
            "discard all",
            "set app.scope to default",
        ] {
            let mut connection = Connection::open(server)?;
            everywhere(&mut connection, "app.scope", &value)?;
            connection.execute("set app.scope = 'own'")?;
            everywhere(&mut connection, "app.scope", "own")?;
            connection.execute(reset)?;
            everywhere(&mut connection, "app.scope", &value)?;
        }
        let given = with(server, &[("options", "-c app.scope=given")]);
        everywhere(&mut Connection::open(&given)?, "app.scope", "given")?;
    }
    owner.execute(&format!(
        "alter role {user} set application_name = 'of the role'"
    ))?;
    let connection = Connection::open(server)?;
    ensure!(connection.parameters["application_name"] == "of the role");
    owner.execute(&format!("alter role {user} set timezone from current"))?;
    for scope in &scopes {
        owner.execute(&format!("alter {scope} reset all"))?;
    }
    let mut connection = Connection::open(server)?;
    ensure!(connection.parameters["application_name"].is_empty());
    let text = "select count(*) from points where current_setting('app.scope', true) <> ''";
    is_one(&mut connection, text, "0")?;
    for (text, sqlstate) in [
        (format!("alter role {user} set no_such_thing = 1"), "42704"),
        (
            format!("alter role {user} set timezone = 'nowhere'"),
            "22023",
        ),
        (
            format!("alter role {user} set shared_buffers = '1GB'"),
            "55P02",
        ),
        (
            format!("alter role {user} set server_version = '1'"),
            "55P02",
        ),
        (
            "alter role no_such_role set timezone = 'UTC'".to_owned(),
            "42704",
        ),
        (
            "alter database no_such_database set timezone = 'UTC'".to_owned(),
            "3D000",
        ),
        (
            format!("alter role {user} in database no_such_database reset all"),
            "3D000",
        ),
    ] {
        fails(&mut owner, &text, sqlstate)?;
    }
    Ok(())
}

/// RESET goes back to it, also where nothing was set since, and the next client of the connection has
/// the role's own.
fn startup_values(server: &Server) -> Result<()> {
    let user = &server.user;
    let mut owner = Connection::open(server)?;
    owner.execute(&format!("alter role {user} set timezone = 'Asia/Tokyo'"))?;
    owner.execute(&format!(
        "alter role {user} set default_transaction_read_only = on"
    ))?;
    for options in [
        &[
            ("TimeZone", "Europe/Rome"),
            ("default_transaction_read_only", "off"),
        ][..],
        &[(
            "options",
            "-c timezone=Europe/Rome --default-transaction-read-only=off",
        )],
        &[
            ("TIMEZONE", "Europe/Rome"),
            (
                "options",
                "-ctimezone=UTC -c default_transaction_read_only=off",
            ),
        ],
    ] {
        for resets in [
            &["reset timezone", "reset default_transaction_read_only"][..],
            &[
                "set timezone to default",
                "set session default_transaction_read_only to default",
            ],
            &[
                "set time zone local",
                "reset \"Default_Transaction_Read_Only\"",
            ],
            &["reset all"],
            &["discard all"],
            &[
                "begin",
                "reset timezone",
                "reset default_transaction_read_only",
                "rollback",
            ],
            &[
                "begin",
                "set timezone to default",
                "set default_transaction_read_only to default",
                "commit",
            ],
            &[
                "set timezone = 'UTC'",
                "set default_transaction_read_only = on",
                "reset all",
            ],
        ] {
            let mut connection = Connection::open(&with(server, options))?;
            for reset in resets {
                connection.execute(reset)?;
            }
            everywhere(&mut connection, "timezone", "Europe/Rome")
                .with_context(|| format!("{resets:?}"))?;
            ensure!(
                connection.parameters["TimeZone"] == "Europe/Rome",
                "{resets:?}"
            );
            connection.execute("update points set v = v where id = 3")?;
            connection.terminate()?;
            for _ in 0..3 {
                let mut next = Connection::open(server)?;
                is_one(&mut next, "show timezone", "Asia/Tokyo")?;
                is_one(
                    &mut next,
                    "select count(*) from points where current_setting('TimeZone') = 'Asia/Tokyo'",
                    "300",
                )?;
                fails(&mut next, "update points set v = v where id = 3", "25006")?;
            }
        }
    }
    let mut owner = Connection::open(&with(server, &[("default_transaction_read_only", "off")]))?;
    owner.execute(&format!("alter role {user} reset all"))?;
    Ok(())
}

fn switches(server: &Server) -> Result<()> {
    for (options, name, value) in [
        ("-e", "datestyle", "ISO, DMY"),
        ("-S 4096", "work_mem", "4MB"),
        ("  -cwork_mem=8MB   -c  timezone=UTC ", "work_mem", "8MB"),
        ("-c work_mem=8MB --work-mem=9MB", "work_mem", "9MB"),
        ("-c app.x=a\\\\b\\ c", "app.x", "a\\b c"),
        ("-c app.x=a=b", "app.x", "a=b"),
        ("--App.X=''", "app.x", "''"),
        (
            "-c search_path=pg_catalog,\\ public",
            "search_path",
            "pg_catalog, public",
        ),
    ] {
        let mut connection = Connection::open(&with(server, &[("options", options)]))?;
        is_one(&mut connection, &format!("show {name}"), value)?;
        let text =
            format!("select count(*) from points where current_setting('{name}') = $${value}$$");
        is_one(&mut connection, &text, "300")?;
    }
    for (options, sqlstate) in [
        ("-c", "42601"),
        ("-c work_mem", "42601"),
        ("--work-mem", "42601"),
        ("-c work_mem=8MB public", "42601"),
        ("search_path=public", "42601"),
        ("-x", "42601"),
        ("-c no_such_thing=1", "42704"),
        ("-c timezone=nowhere", "22023"),
        ("-c shared_buffers=1", "55P02"),
        ("-c statement_timeout=-1", "22023"),
    ] {
        let server = with(server, &[("options", options)]);
        let error = Connection::raw(&server)?.login(&server)?;
        let code = error.and_then(|error| error.field(b'C'));
        ensure!(code.as_deref() == Some(sqlstate), "{options}: {code:?}");
    }
    Ok(())
}

/// RESET ALL leaves the role as it is, DISCARD ALL does not; on whichever connection serves.
fn role_beside_resets(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    connection.execute("drop role if exists stage")?;
    connection.execute("create role stage")?;
    connection.execute("grant select on points to stage")?;
    let is_role = |connection: &mut Connection, role: &str| -> Result<()> {
        is_one(connection, "select current_user", role)?;
        let rows = format!("select count(*) from points where current_user = '{role}'");
        is_one(connection, &rows, "300")
    };
    let login = server.user.as_str();
    for (resets, role) in [
        (&["reset all"][..], "stage"),
        (&["discard all"], login),
        (&["reset all", "discard all"], login),
        (&["begin", "reset all", "commit"], "stage"),
        (&["begin", "reset all", "rollback"], "stage"),
        (&["reset all", "reset role"], login),
        (&["reset session authorization"], login),
        (&["create temporary table kept ()", "discard all"], login),
    ] {
        connection.execute("set role stage")?;
        connection.execute("set work_mem = '8MB'")?;
        for reset in resets {
            connection.execute(reset)?;
        }
        is_role(&mut connection, role)?;
        // The next clients of the connections are not that role.
        for _ in 0..3 {
            let mut other = Connection::open(server)?;
            is_role(&mut other, login)?;
            other.terminate()?;
        }
        connection.execute("reset role")?;
    }
    connection.execute("revoke select on points from stage")?;
    connection.execute("drop role stage")?;
    connection.terminate()
}

/// A server knows a custom setting from its first use on: empty, where it was unknown. What one session
/// has made is unknown to others, on all shards.
fn unknown_settings(server: &Server) -> Result<()> {
    let value = "coalesce(current_setting('app.known', true), 'unknown')";
    let texts = [
        format!("select {value}"),
        format!("select string_agg(distinct {value}, ' ') from points"),
        format!("select {value} from points where id = 5"),
        format!("select max(v) from (select {value} as v from points group by 1) s"),
        format!(
            "select string_agg(distinct {value}, ' ') from points join notes n on n.id < points.v"
        ),
    ];
    let all = |connection: &mut Connection, expected: &str| -> Result<()> {
        for text in &texts {
            is_one(connection, text, expected)?;
            let frames = connection.batch(&Batch::new().run(text, &[]).sync())?;
            ensure!(column(&frames)? == [expected], "{text}");
        }
        Ok(())
    };
    for round in 0..3 {
        let mut maker = Connection::open(server)?;
        all(&mut maker, "unknown")?;
        match round {
            0 => maker.execute("set app.known = 'made'")?,
            1 => maker.execute("select set_config('app.known', 'made', false)")?,
            _ => maker.execute("set \"APP\".\"known\" = 'made'")?,
        };
        all(&mut maker, "made")?;
        let mut other = Connection::open(server)?;
        all(&mut other, "unknown")?;
        fails(&mut other, "show app.known", "42704")?;
        fails(
            &mut other,
            "select current_setting('app.known') from points",
            "42704",
        )?;
        // In a transaction that has come to the shards before.
        other.execute("begin")?;
        other.execute("set local app.known = 'mine'")?;
        all(&mut other, "mine")?;
        other.execute("rollback")?;
        all(&mut other, "")?;
        is_one(&mut other, "show app.known", "")?;
        maker.execute("reset app.known")?;
        all(&mut maker, "")?;
    }
    Ok(())
}
/// What a statement does is not read from its first letters.
fn commented(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for lock in ["lock points", "/* a */ lock points", "-- a\n lock points"] {
        fails(&mut connection, lock, "25P01")?;
        connection.execute("begin")?;
        connection.execute(lock)?;
        connection.execute("rollback")?;
    }
    for (text, expected) in [
        ("/* reset */ set timezone to default", "SET"),
        ("-- reset\nset work_mem to default", "SET"),
        ("/* set */ reset timezone", "RESET"),
    ] {
        let frames = connection.simple(text)?;
        let tag = frames.iter().find(|frame| frame.tag == b'C');
        ensure!(
            tag.is_some_and(|tag| tag.text() == expected),
            "{text}: {frames:?}"
        );
    }
    connection.execute("create table drawn (id bigserial primary key, v integer)")?;
    if connection.execute("show automator67.consistency").is_ok() {
        connection.execute("select create_distributed_table('drawn', 'id')")?;
    }
    connection.execute("insert into drawn (v) values (1)")?;
    connection.execute("discard /* sequences */ plans")?;
    is_one(&mut connection, "select currval('drawn_id_seq')", "1")?;
    connection.execute("/* plans */ discard sequences")?;
    fails(&mut connection, "select currval('drawn_id_seq')", "55000")?;
    connection.execute("drop table drawn")?;
    Ok(())
}

fn modes_behind_a_query(server: &Server) -> Result<()> {
    let mut connection = Connection::open(server)?;
    for end in ["rollback", "commit and chain; rollback"] {
        connection.execute("begin")?;
        connection.execute("select v from points where id = 1")?;
        connection.execute("set transaction read only -- from here on")?;
        for id in 2..=5 {
            connection.execute(&format!("select v from points where id = {id}"))?;
        }
        is_one(&mut connection, "select count(*) from points", "300")?;
        connection.execute("savepoint s")?;
        fails(
            &mut connection,
            "update points set v = v where id = 1",
            "25006",
        )?;
        connection.execute("rollback to s")?;
        for command in end.split("; ") {
            connection.execute(command)?;
            if command.ends_with("chain") {
                fails(
                    &mut connection,
                    "update points set v = v where id = 7",
                    "25006",
                )?;
            }
        }
    }
    fails(
        &mut connection,
        "set transaction_isolation = 'none'",
        "22023",
    )
}

//! Numbers that two processes hand out at once: each of them once.

use std::{collections::HashSet, time::Duration};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    checks, wait,
    wire::{Connection, Frame, Server, cancel},
};

/// Clients of both processes together.
const CLIENTS: usize = 64;
/// Rounds of each client.
const ROUNDS: usize = 6;
/// How soon the other process knows of a change.
const SOON: Duration = Duration::from_secs(5);

#[test]
fn sequences_are_shared_by_processes() {
    let dev = Dev::start(3).expect("dev starts");
    checks::run(
        &dev,
        &[
            ("64 clients of two processes", many_clients),
            ("setval reaches the other process", setval_reaches_the_other),
            ("the last values of two processes", last_values),
            ("users without the privilege", privileges),
            ("a client that leaves while it waits", waits_for_a_lock),
        ],
    );
}

/// The other process sees the table.
fn sees(connection: &mut Connection, table: &str) -> Result<()> {
    wait::until(table, SOON, || {
        let text = format!("select count(*) from {table}");
        connection.execute(&text).ok().flatten().map(drop)
    })?;
    Ok(())
}

fn many_clients(dev: &Dev) -> Result<()> {
    let second = dev.second_proxy("numbers", "")?;
    let mut one = dev.connect()?;
    one.execute("create table numbers (id bigserial primary key, client integer, way text)")?;
    one.execute("select create_distributed_table('numbers', 'id')")?;
    sees(&mut Connection::open(&second.server)?, "numbers")?;
    let servers = [dev.server(), &second.server];
    std::thread::scope(|scope| {
        let clients: Vec<_> = (0..CLIENTS)
            .map(|client| {
                let server = servers[client % 2];
                scope.spawn(move || insert(server, client))
            })
            .collect();
        let ends = clients
            .into_iter()
            .map(|client| client.join().expect("no panic"));
        ends.collect::<Result<Vec<()>>>()
    })?;
    let counts = one.execute("select count(*) || ' ' || count(distinct id) from numbers")?;
    let expected = CLIENTS * ROUNDS * (1 + 3 + 5 + 4 + 1);
    ensure!(
        counts == Some(format!("{expected} {expected}")),
        "rows and different numbers: {counts:?}, not {expected}"
    );
    Ok(())
}

/// One round: a row, three, five by COPY, four by a query, one with a number drawn before.
fn insert(server: &Server, client: usize) -> Result<()> {
    let mut connection = Connection::open(server)?;
    let mut seen: HashSet<i64> = HashSet::new();
    for round in 0..ROUNDS {
        let row = format!("({client}, 'row')");
        let text = format!("insert into numbers (client, way) values {row} returning id");
        let id = connection.execute(&text)?.context("no id")?;
        ensure!(seen.insert(id.parse()?), "{id} twice");
        connection.execute(&format!(
            "insert into numbers (client, way) values {row}, {row}, {row}"
        ))?;
        copy(&mut connection, &format!("{client}\tcopy\n").repeat(5))?;
        connection.execute(&format!(
            "insert into numbers (client, way) select {client}, 'query' from generate_series(1, 4)"
        ))?;
        let drawn = connection.execute("select nextval('numbers_id_seq')")?;
        let drawn = drawn.context("no value")?;
        ensure!(
            seen.insert(drawn.parse()?),
            "{drawn} twice in round {round}"
        );
        let now = connection.execute("select currval('numbers_id_seq')")?;
        ensure!(
            now.as_deref() == Some(drawn.as_str()),
            "currval {now:?}, nextval {drawn}"
        );
        connection.execute(&format!(
            "insert into numbers (id, client, way) values ({drawn}, {client}, 'drawn')"
        ))?;
    }
    Ok(())
}

/// COPY with these rows.
fn copy(connection: &mut Connection, rows: &str) -> Result<()> {
    let mut bytes = message(b'Q', b"copy numbers (client, way) from stdin\0")?;
    bytes.extend(message(b'd', rows.as_bytes())?);
    bytes.extend(message(b'c', b"")?);
    connection.send(&bytes)?;
    let answer = connection.until_ready()?;
    let failed = answer.iter().find(|frame| frame.tag == b'E');
    ensure!(
        failed.is_none(),
        "{}",
        failed.map_or(String::new(), Frame::text)
    );
    Ok(())
}

fn message(tag: u8, body: &[u8]) -> Result<Vec<u8>> {
    let mut bytes = vec![tag];
    bytes.extend(u32::try_from(body.len() + 4)?.to_be_bytes());
    bytes.extend(body);
    Ok(bytes)
}

fn setval_reaches_the_other(dev: &Dev) -> Result<()> {
    let second = dev.second_proxy("setting", "")?;
    let mut one = dev.connect()?;
    one.execute("create table counted (id bigserial primary key, n integer)")?;
    one.execute("select create_distributed_table('counted', 'id')")?;
    let mut two = Connection::open(&second.server)?;
    sees(&mut two, "counted")?;
    let insert = "insert into counted (n) values (1) returning id";
    // Both hold a block.
    for _ in 0..3 {
        one.execute(insert)?;
        two.execute(insert)?;
    }
    for (change, least) in [
        ("select setval('counted_id_seq', 100000)", 100_000),
        ("alter sequence counted_id_seq restart with 200000", 200_000),
        (
            "begin; select setval('counted_id_seq', 300000); commit",
            300_000,
        ),
    ] {
        one.execute(change)?;
        let own = one.execute(insert)?.context("no id")?;
        ensure!(own.parse::<i64>()? >= least, "{own} after {change}");
        wait::until(change, SOON, || {
            let id = two.execute(insert).ok()??;
            (id.parse::<i64>().ok()? >= least).then_some(())
        })?;
    }
    Ok(())
}

/// Two processes use a sequence up to its end; what they hold is used, and then both are told.
fn last_values(dev: &Dev) -> Result<()> {
    let second = dev.second_proxy("ending", "")?;
    let mut one = dev.connect()?;
    one.execute("create table ending (id bigserial primary key, n integer)")?;
    one.execute("select create_distributed_table('ending', 'id')")?;
    one.execute("alter sequence ending_id_seq maxvalue 301")?;
    let mut two = Connection::open(&second.server)?;
    sees(&mut two, "ending")?;
    let insert = "insert into ending (n) values (1)";
    let mut refused = 0;
    for turn in 0..700 {
        let connection = if turn % 2 == 0 { &mut one } else { &mut two };
        if let Err(error) = connection.execute(insert) {
            let text = format!("{error:#}");
            ensure!(text.contains("reached maximum value"), "{text}");
            refused += 1;
        }
    }
    let rows = one.execute("select count(*) || ' ' || max(id) from ending")?;
    ensure!(rows.as_deref() == Some("301 301"), "{rows:?}");
    ensure!(refused == 700 - 301, "{refused} refused");
    Ok(())
}

fn privileges(dev: &Dev) -> Result<()> {
    let mut one = dev.connect()?;
    one.execute("create table guarded (id bigserial primary key, n integer)")?;
    one.execute(
        "create table open_ids (id bigint generated always as identity primary key, n integer)",
    )?;
    one.execute("select create_distributed_table('guarded', 'id')")?;
    one.execute("select create_distributed_table('open_ids', 'id')")?;
    let role = "create role clerk login password 'clerk password'";
    for shard in dev.shards() {
        // The role is the same on every shard.
        Connection::open(&shard.server)?.execute(role)?;
    }
    one.execute("grant select, insert on guarded, open_ids to clerk")?;
    let second = dev.second_proxy(
        "clerk",
        "[[users]]\nname = \"clerk\"\npassword = \"clerk password\"\n",
    )?;
    let mut server = second.server.clone();
    server.user = "clerk".to_owned();
    server.password = "clerk password".to_owned();
    // Another user has reserved values already.
    let mut owner = Connection::open(&second.server)?;
    sees(&mut owner, "guarded")?;
    let insert = "insert into guarded (n) values (1) returning id";
    owner.execute(insert)?;
    let mut clerk = Connection::open(&server)?;
    for text in [
        insert,
        "insert into guarded (n) values (1), (2)",
        "select nextval('guarded_id_seq')",
        "copy guarded (n) from stdin",
    ] {
        let error = clerk.execute(text).err().context("not refused")?;
        let error = format!("{error:#}");
        ensure!(
            error.contains("permission denied for sequence"),
            "{text}: {error}"
        );
    }
    // Rows of an identity column need no privilege on its sequence.
    clerk.execute("insert into open_ids (n) values (1), (2)")?;
    one.execute("grant usage on sequence guarded_id_seq to clerk")?;
    wait::until("the grant", SOON, || clerk.execute(insert).ok().map(drop))?;
    one.execute("revoke usage on sequence guarded_id_seq from clerk")?;
    wait::until("the revocation", SOON, || {
        clerk.execute(insert).err().map(drop)
    })?;
    Ok(())
}

/// A reservation waits for a lock; the client that wanted it gives up; nothing is lost.
fn waits_for_a_lock(dev: &Dev) -> Result<()> {
    let mut one = dev.connect()?;
    one.execute("create table locked (id bigserial primary key, n integer)")?;
    one.execute("select create_distributed_table('locked', 'id')")?;
    let insert = "insert into locked (n) values (1) returning id";
    // The first value, and then a block of two.
    one.execute("set automator67.sequence_block = 2")?;
    for expected in ["1", "2", "3"] {
        let id = one.execute(insert)?;
        ensure!(id.as_deref() == Some(expected), "{id:?}");
    }
    let mut holder = Connection::open(&dev.shards()[0].server)?;
    holder.execute("begin")?;
    // As an ALTER SEQUENCE of an open transaction does.
    holder.execute("alter sequence locked_id_seq owned by locked.id")?;
    one.execute("set statement_timeout = 0")?;
    let (process, secret) = (one.process, one.secret.clone());
    std::thread::scope(|scope| -> Result<()> {
        let waiting = scope.spawn(|| one.execute(insert).map_err(|error| format!("{error:#}")));
        let mut watcher = Connection::open(&dev.shards()[0].server)?;
        wait::until("a reservation that waits", SOON, || {
            let text = "select count(*) from pg_locks where not granted";
            let waits = watcher.execute(text).ok()??;
            (waits == "1").then_some(())
        })?;
        cancel(dev.server(), process, &secret)?;
        let error = waiting.join().expect("no panic").err();
        let error = error.context("not cancelled")?;
        ensure!(error.contains("canceling statement"), "{error}");
        Ok(())
    })?;
    holder.execute("commit")?;
    let id = one.execute(insert)?;
    ensure!(id.as_deref() == Some("4"), "{id:?}");
    Ok(())
}

//! Who gets in, and what those cost that do not: crowds that stay silent, wrong passwords.

use std::{
    io::{Read, Write},
    net::TcpListener,
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Automator, Dev},
    checks, postgres, wait,
    wire::{Connection, Server},
};

#[test]
fn logins_have_limits() {
    let dev = Dev::start(1).expect("dev starts");
    checks::run(
        &dev,
        &[
            ("a silent crowd", silent_crowd),
            ("a crowd that begins to speak", speaking_crowd),
            ("sessions are those logged in", sessions_max),
            ("wrong passwords", wrong_passwords),
            ("roles see their own", roles_see_their_own),
            ("no password in the process list", password_is_hidden),
            (
                "a shard that asks for the password",
                shard_asks_for_password,
            ),
        ],
    );
}

#[test]
fn clients_do_not_know_what_shards_want_to_hear() {
    let dev = Dev::start(2).expect("dev starts");
    checks::run(&dev, &[("a shard password", shard_password)]);
}

/// What a client logs in with is of use at the proxy only; what the proxy logs in with, on shards only.
fn shard_password(dev: &Dev) -> Result<()> {
    let mut owner = dev.connect()?;
    owner.execute("create role ann login password 'inside'")?;
    owner.execute("create schema ann authorization ann")?;
    let user = "[[users]]\nname = \"ann\"\npassword = \"at the door\"\n";
    let more = format!("{user}shard_password = \"inside\"\n");
    let proxy = dev.second_proxy("doors", &more)?;
    let ann = |server: &Server, password: &str| Server {
        user: "ann".to_owned(),
        password: password.to_owned(),
        ..server.clone()
    };
    let mut connection = Connection::open(&ann(&proxy.server, "at the door"))?;
    for text in [
        "create table ann.spread (id bigint primary key, v integer)",
        "select create_distributed_table('ann.spread', 'id')",
        "begin",
        "insert into ann.spread select g, g from generate_series(1, 20) g",
        "update ann.spread set v = v + 1",
        "commit",
    ] {
        connection.execute(text).context(text)?;
    }
    one(&mut connection, "select sum(v) from ann.spread", "230")?;
    let refused = |server: &Server| -> Result<()> {
        let error = Connection::raw(server)?.login(server)?;
        let code = error.and_then(|error| error.field(b'C'));
        ensure!(code.as_deref() == Some("28P01"), "{code:?}");
        Ok(())
    };
    refused(&ann(&proxy.server, "inside")).context("the proxy")?;
    for shard in dev.shards() {
        refused(&ann(&shard.server, "at the door")).context("a shard")?;
        let mut direct = Connection::open(&ann(&shard.server, "inside"))?;
        one(&mut direct, "select current_user", "ann")?;
        let count = direct.execute("select count(*) from ann.spread")?;
        ensure!(count.as_deref() != Some("0"), "a shard without rows");
    }
    Ok(())
}

fn serve(dev: &Dev, name: &str, sql: &str) -> Result<Automator> {
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n{sql}\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{}\"\npassword = \"{}\"\n",
        postgres::USER,
        postgres::PASSWORD
    );
    for shard in dev.shards() {
        let url = shard.server.url()?;
        text += &format!("[[shards]]\nname = \"{}\"\nurl = \"{url}\"\n", shard.name);
    }
    let file: PathBuf = dev.directory().join(format!("{name}.toml"));
    std::fs::write(&file, text)?;
    automator::serve(&file)
}

fn one(connection: &mut Connection, text: &str, expected: &str) -> Result<()> {
    let got = connection.execute(text)?;
    ensure!(got.as_deref() == Some(expected), "{text}: {got:?}");
    Ok(())
}

/// In views, as in pg_stat_activity: a role's own rows and those of roles it is a member of.
fn roles_see_their_own(dev: &Dev) -> Result<()> {
    let mut owner = dev.connect()?;
    for role in ["ann", "bob", "watcher"] {
        owner.execute(&format!("create role {role} login password '{role}'"))?;
    }
    owner.execute("grant pg_monitor to watcher")?;
    owner.execute("create table everybody (id bigint primary key)")?;
    owner.execute("select create_distributed_table('everybody', 'id')")?;
    let users: String = ["ann", "bob", "watcher"]
        .map(|name| format!("[[users]]\nname = \"{name}\"\npassword = \"{name}\"\n"))
        .concat();
    let proxy = dev.second_proxy("roles", &users)?;
    let log_in = |name: &str| {
        let mut server = proxy.server.clone();
        (server.user, server.password) = (name.to_owned(), name.to_owned());
        Connection::open(&server)
    };
    let (mut ann, mut bob, mut watcher) = (log_in("ann")?, log_in("bob")?, log_in("watcher")?);
    bob.execute("select 1")?;
    let list = "select string_agg(distinct username, ',' order by username) from automator67.";
    let (sessions, pools) = (format!("{list}sessions"), format!("{list}pools"));
    one(&mut ann, &sessions, "ann")?;
    one(&mut ann, &pools, "ann")?;
    let places =
        "select count(*) from automator67.shards where host is not null or port is not null";
    one(&mut ann, places, "0")?;
    one(
        &mut ann,
        "select count(*) from automator67.shards where up",
        "1",
    )?;
    one(&mut watcher, &sessions, "ann,bob,watcher")?;
    one(&mut watcher, places, "1")?;
    // The role that is in force counts.
    owner.execute("grant bob to watcher")?;
    watcher.execute("begin")?;
    watcher.execute("set local role bob")?;
    one(&mut watcher, &sessions, "bob")?;
    watcher.execute("rollback")?;
    let mut owner = Connection::open(&proxy.server)?;
    one(&mut owner, &sessions, "ann,app,bob,watcher")?;
    // Beside rows of shards.
    owner.execute("insert into everybody select generate_series(1, 10)")?;
    one(
        &mut owner,
        "select count(*) from automator67.shards, everybody",
        "10",
    )
}

fn password_is_hidden(dev: &Dev) -> Result<()> {
    let process = dev.automator.group.id();
    let line = std::fs::read(format!("/proc/{process}/cmdline"))?;
    let line = String::from_utf8_lossy(&line).into_owned();
    ensure!(line.contains("--data-dir"), "{line}");
    ensure!(!line.contains(postgres::PASSWORD), "{line}");
    Ok(())
}

/// What a proxy sends to a server that asks for authentication `code`; `None`: nothing.
fn asked(dev: &Dev, code: u8, parameters: &str) -> Result<(Option<u8>, String)> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let port = listener.local_addr()?.port();
    let server = std::thread::spawn(move || -> Result<Option<u8>> {
        let (mut client, _) = listener.accept()?;
        let mut packet = [0; 1000];
        ensure!(client.read(&mut packet)? > 8, "no startup packet");
        // Only an md5 password needs a salt.
        let salt: &[u8] = if code == 5 { &[1, 2, 3, 4] } else { &[] };
        client.write_all(&[b'R', 0, 0, 0, 8 + salt.len() as u8, 0, 0, 0, code])?;
        client.write_all(salt)?;
        let mut tag = [0];
        Ok((client.read(&mut tag)? > 0).then_some(tag[0]))
    });
    let file = dev.directory().join("impostor.toml");
    let text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"app\"\npassword = \"secret\"\n[[shards]]\nname = \"one\"\n\
         url = \"postgres://app:secret@127.0.0.1:{port}/app?sslmode=disable{parameters}\"\n"
    );
    std::fs::write(&file, text)?;
    let error = automator::serve(&file).err().context("it started")?;
    let sent = server.join().expect("the server's thread")?;
    Ok((sent, format!("{error:#}")))
}

fn shard_asks_for_password(dev: &Dev) -> Result<()> {
    for (code, words) in [(3, "in the clear"), (5, "md5"), (0, "did not ask")] {
        let (sent, error) = asked(dev, code, "")?;
        ensure!(sent.is_none(), "{code}: it sent {sent:?}");
        ensure!(
            error.contains(words) && error.contains("require_auth"),
            "{error}"
        );
    }
    let (sent, _) = asked(dev, 3, "&require_auth=password")?;
    ensure!(sent == Some(b'p'), "{sent:?}");
    let (sent, _) = asked(dev, 5, "&require_auth=!password")?;
    ensure!(sent == Some(b'p'), "{sent:?}");
    Ok(())
}

fn crowd(server: &Server, size: usize) -> Result<Vec<Connection>> {
    (0..size).map(|_| Connection::raw(server)).collect()
}

/// How many of them the proxy has closed within a while.
fn closed(crowd: &mut [Connection]) -> Result<usize> {
    let mut count = 0;
    for connection in crowd {
        connection.set_read_limit(Duration::from_millis(1))?;
        count += usize::from(connection.is_closed()?);
    }
    Ok(count)
}

fn silent_crowd(dev: &Dev) -> Result<()> {
    let limits = "sessions_max = 20\nlogins_per_address_max = 10";
    let proxy = serve(dev, "silent", limits)?;
    let mut silent = crowd(&proxy.server, 200)?;
    let mut session = Connection::open(&proxy.server)?;
    ensure!(session.execute("select 1")?.as_deref() == Some("1"));
    // Those that stay are the last.
    wait::until("the crowd to leave", Duration::from_secs(30), || {
        (closed(&mut silent[..190]).ok()? == 190).then_some(())
    })?;
    ensure!(closed(&mut silent[190..])? == 0, "too many had to leave");
    ensure!(session.execute("select 1")?.as_deref() == Some("1"));
    Ok(())
}

/// All of them have sent the startup packet; the oldest makes room for one that logs in.
fn speaking_crowd(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "speaking", "sessions_max = 20\nlogins_max = 30")?;
    let mut crowd = crowd(&proxy.server, 60)?;
    for connection in &mut crowd {
        // The oldest may be closed already.
        let _ = connection.send(b"\0\0\0\x1f\0\x03\0\0user\0app\0database\0app\0\0");
    }
    let mut session = Connection::open(&proxy.server)?;
    ensure!(session.execute("select 1")?.as_deref() == Some("1"));
    wait::until("the oldest to leave", Duration::from_secs(30), || {
        (closed(&mut crowd).ok()? >= 30).then_some(())
    })
}

fn sessions_max(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "sessions", "sessions_max = 2")?;
    let silent = crowd(&proxy.server, 5)?;
    let first = Connection::open(&proxy.server)?;
    let second = Connection::open(&proxy.server)?;
    let mut third = Connection::raw(&proxy.server)?;
    let refused = third.login(&proxy.server)?;
    let code = refused.and_then(|error| error.field(b'C'));
    ensure!(code.as_deref() == Some("53300"), "{code:?}");
    drop(first);
    wait::until("a place", Duration::from_secs(10), || {
        Connection::open(&proxy.server).ok()
    })?;
    drop((second, silent));
    Ok(())
}

fn wrong_passwords(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "wrong", "")?;
    let mut wrong = proxy.server.clone();
    wrong.password = "wrong".to_owned();
    let refused = |server: &Server| -> Result<Duration> {
        let mut connection = Connection::raw(server)?;
        let start = Instant::now();
        let error = connection.login(server)?;
        let code = error.and_then(|error| error.field(b'C'));
        ensure!(code.as_deref() == Some("28P01"), "{code:?}");
        Ok(start.elapsed())
    };
    for _ in 0..5 {
        refused(&wrong)?;
    }
    let sixth = refused(&wrong)?;
    ensure!(sixth >= Duration::from_millis(400), "{sixth:?}");
    let mut nobody = wrong.clone();
    nobody.user = "nobody".to_owned();
    let seventh = refused(&nobody)?;
    ensure!(seventh >= Duration::from_millis(800), "{seventh:?}");
    // Many at once wait beside each other, and a right password does not wait at all.
    std::thread::scope(|scope| -> Result<()> {
        let many: Vec<_> = (0..30).map(|_| scope.spawn(|| refused(&wrong))).collect();
        let start = Instant::now();
        let mut connection = Connection::open(&proxy.server)?;
        ensure!(connection.execute("select 1")?.as_deref() == Some("1"));
        ensure!(
            start.elapsed() < Duration::from_secs(1) + sixth,
            "{:?}",
            start.elapsed()
        );
        for one in many {
            one.join().expect("a client's thread")?;
        }
        Ok(())
    })?;
    let told = |log: &str| {
        let lines = log.lines().filter(|line| line.contains("login refused"));
        let left_out = lines
            .clone()
            .filter(|line| line.contains("suppressed="))
            .count();
        (lines.count(), left_out)
    };
    wait::until(
        "a line about what was left out",
        Duration::from_secs(10),
        || (told(&proxy.group.log()).1 > 0).then_some(()),
    )?;
    let (lines, _) = told(&proxy.group.log());
    ensure!(lines < 30, "{lines} lines for 37 wrong passwords");
    Ok(())
}

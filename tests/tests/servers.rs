//! Servers that are not what the configuration says, or lack what statements will need: refused at the
//! start with the line to change, and never used when they come back as somebody else.

use std::{
    fs::{self, Permissions},
    os::unix::fs::PermissionsExt,
    path::Path,
    process::{Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Automator},
    postgres::{self, PASSWORD, Plain, USER},
    wait,
    wire::{Connection, Server},
};
use nix::sys::signal::Signal;
use tempfile::TempDir;

const PATIENCE: Duration = Duration::from_secs(60);

/// Three servers, a table on them, and a place for configurations.
struct Servers {
    plain: Vec<Plain>,
    directory: TempDir,
}

impl Servers {
    fn start(settings: &[&str]) -> Result<Servers> {
        let binaries = postgres::binaries()?;
        let plain = (0..3).map(|_| Plain::of(&binaries, settings));
        Ok(Servers {
            plain: plain.collect::<Result<_>>()?,
            directory: postgres::directory()?,
        })
    }

    /// A configuration with the shards `s1`, `s2` ... on these servers.
    fn file(&self, servers: &[&Server], more: &str) -> Result<std::path::PathBuf> {
        let mut text = format!(
            "{more}[http]\nlisten = \"127.0.0.1:0\"\n\
             [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n"
        );
        for (number, server) in (1..).zip(servers) {
            let url = server.url()?;
            text += &format!("[[shards]]\nname = \"s{number}\"\nurl = \"{url}\"\n");
        }
        let file = self.directory.path().join("servers.toml");
        fs::write(&file, text)?;
        fs::set_permissions(&file, Permissions::from_mode(0o600))?;
        Ok(file)
    }

    fn server(&self, number: usize) -> &Server {
        &self.plain[number - 1].server
    }

    fn serve(&self, order: [usize; 3], more: &str) -> Result<Automator> {
        let servers = order.map(|number| self.server(number));
        automator::serve(&self.file(&servers, more)?)
    }

    /// What a start that is refused says.
    fn refusal(&self, order: [usize; 3], more: &str) -> Result<String> {
        let servers = order.map(|number| self.server(number));
        refusal(&self.file(&servers, more)?)
    }

    fn directly(&self, number: usize) -> Result<Connection> {
        Connection::open(self.server(number))
    }
}

const ANY_PORT: &str = "[sql]\nlisten = \"127.0.0.1:0\"\nhealth_interval_ms = 50\n";

fn refusal(file: &Path) -> Result<String> {
    let mut command = Command::new(automator::binary()?);
    command.args(["serve", "--config"]).arg(file);
    command.stdout(Stdio::null()).stderr(Stdio::piped());
    let mut child = command.env("NO_COLOR", "1").spawn()?;
    let ended = wait::until("the start to be refused", PATIENCE, || {
        child.try_wait().ok().flatten()
    });
    if ended.is_err() {
        child.kill()?;
    }
    let output = child.wait_with_output()?;
    ended?;
    ensure!(!output.status.success(), "it started");
    Ok(String::from_utf8_lossy(&output.stderr).into_owned())
}

fn says(told: &str, words: &[&str]) -> Result<()> {
    for word in words {
        ensure!(told.contains(word), "no {word:?} in: {told}");
    }
    Ok(())
}

#[test]
fn servers_are_who_they_should_be() {
    let mut servers = Servers::start(&[]).expect("servers");
    doubled(&servers).expect("one server given twice");
    busy(&servers).expect("a busy port");
    swapped(&servers).expect("swapped servers");
    unlike(&servers).expect("servers that differ");
    returned(&mut servers).expect("servers that come back as others");
}

#[test]
fn servers_with_default_settings_are_refused_with_the_line_to_change() {
    let servers = Servers::start(&["max_prepared_transactions=0"]).expect("servers");
    let told = servers.refusal([1, 2, 3], ANY_PORT).expect("a refusal");
    let words = [
        "\"s1\"",
        "\"s2\"",
        "\"s3\"",
        "max_prepared_transactions = 100",
    ];
    says(&told, &words).expect("what to change");
    let prefer = format!("{ANY_PORT}[transactions]\ntwo_phase = \"prefer\"\n");
    let proxy = servers.serve([1, 2, 3], &prefer).expect("a start");
    let mut connection = Connection::open(&proxy.server).expect("a login");
    connection.execute("select 1").expect("an answer");
}

/// A role that is no superuser places its own tables, and is told what it lacks where that is more.
#[test]
fn owners_place_their_tables() {
    let servers = Servers::start(&[]).expect("servers");
    owners(&servers).expect("tables of an owner");
}

fn owners(servers: &Servers) -> Result<()> {
    let own = format!("{ANY_PORT}[[users]]\nname = \"own\"\npassword = \"{PASSWORD}\"\n");
    for number in 1..=3 {
        let mut directly = servers.directly(number)?;
        directly.execute(&format!("create role own login password '{PASSWORD}'"))?;
        directly.execute("create schema own authorization own")?;
    }
    let proxy = servers.serve([1, 2, 3], &own)?;
    let login = Server {
        user: "own".to_owned(),
        ..proxy.server.clone()
    };
    let mut client = Connection::open(&login)?;
    for name in ["plain", "copied", "told", "child"] {
        client.execute(&format!(
            "create table {name} (id bigint primary key, v int)"
        ))?;
        client.execute(&format!(
            "insert into {name} select g, g from generate_series(1, 50) g"
        ))?;
    }
    client.execute("select create_distributed_table('plain', 'id')")?;
    client.execute("select create_reference_table('copied')")?;
    let counts = "select (select count(*) from plain) + (select count(*) from copied)";
    ensure!(
        client.execute(counts)?.as_deref() == Some("100"),
        "rows were lost"
    );
    client.execute("select undistribute_table('plain')")?;
    ensure!(
        client.execute(counts)?.as_deref() == Some("100"),
        "rows were lost"
    );
    client.execute(
        "create function own.note() returns trigger language plpgsql as 'begin return new; end'",
    )?;
    client.execute(
        "create trigger note before insert on told for each row execute function own.note()",
    )?;
    client.execute("select automator67.declare_safe('note')")?;
    client.execute("alter table child add foreign key (v) references copied (id)")?;
    for table in ["told", "child"] {
        let frames = client.simple(&format!("select create_distributed_table('{table}', 'id')"))?;
        let error = frames
            .iter()
            .find(|frame| frame.tag == b'E')
            .context("no error")?;
        let field = |code| error.field(code).unwrap_or_default();
        ensure!(
            field(b'C') == "42501",
            "{table}: {} {}",
            field(b'C'),
            field(b'M')
        );
        says(
            &field(b'H'),
            &["GRANT SET ON PARAMETER session_replication_role TO \"own\""],
        )?;
    }
    for number in 1..=3 {
        servers
            .directly(number)?
            .execute("grant set on parameter session_replication_role to own")?;
    }
    client.execute("select create_distributed_table('told', 'id')")?;
    let count = client.execute("select count(*) from told")?;
    ensure!(count.as_deref() == Some("50"), "{count:?}");
    Ok(())
}

/// Nothing is written to any server by a start that is refused.
fn untouched(servers: &Servers) -> Result<()> {
    for number in 1..=3 {
        let schema = "select to_regnamespace('automator67')";
        let found = servers.directly(number)?.execute(schema)?;
        ensure!(found.is_none(), "{found:?} on server {number}");
    }
    Ok(())
}

fn doubled(servers: &Servers) -> Result<()> {
    for order in [[1, 1, 2], [1, 2, 1], [2, 3, 3]] {
        let told = servers.refusal(order, ANY_PORT)?;
        says(&told, &["are the same database of the same server"])?;
        let twice = |number| order.iter().filter(|it| **it == number).count() == 2;
        for (place, _) in (1..).zip(order).filter(|(_, number)| twice(*number)) {
            says(&told, &[&format!("\"s{place}\"")])?;
        }
    }
    untouched(servers)
}

/// A start that fails has not fixed the number of shards.
fn busy(servers: &Servers) -> Result<()> {
    let taken = std::net::TcpListener::bind("127.0.0.1:0")?;
    let port = format!("[sql]\nlisten = \"{}\"\n", taken.local_addr()?);
    let told = servers.refusal([1, 2, 3], &port)?;
    says(&told, &["could not listen on"])?;
    untouched(servers)
}

/// The first start says who is who.
fn swapped(servers: &Servers) -> Result<()> {
    let proxy = servers.serve([1, 2, 3], ANY_PORT)?;
    let mut client = Connection::open(&proxy.server)?;
    client.execute("create table t (id bigint primary key)")?;
    client.execute("select create_distributed_table('t', 'id')")?;
    client.execute("insert into t select generate_series(1, 60)")?;
    drop(proxy);
    for (order, which, is) in [
        ([1, 3, 2], "s2", "s3"),
        ([2, 1, 3], "s1", "s2"),
        ([3, 2, 1], "s1", "s3"),
        ([2, 3, 1], "s1", "s2"),
    ] {
        let told = servers.refusal(order, ANY_PORT)?;
        let (which, is) = (format!("shard \"{which}\""), format!("is shard \"{is}\""));
        says(&told, &[&which, &is, "change that:"])?;
    }
    let foreign = Plain::start()?;
    let mut connection = Connection::open(&foreign.server)?;
    connection.execute("create schema automator67")?;
    connection
        .execute("create table automator67.identity as select 'deadbeef' as cluster, 2 as shard")?;
    let order = [servers.server(1), &foreign.server, servers.server(3)];
    let told = refusal(&servers.file(&order, ANY_PORT)?)?;
    says(&told, &["\"s2\"", "shard 2 of another cluster, deadbeef"])?;
    let proxy = servers.serve([1, 2, 3], ANY_PORT)?;
    let count = Connection::open(&proxy.server)?.execute("select count(*) from t")?;
    ensure!(count.as_deref() == Some("60"), "{count:?}");
    Ok(())
}

fn unlike(servers: &Servers) -> Result<()> {
    let mixed = format!("{ANY_PORT}mixed_versions = true\n");
    let mut third = servers.directly(3)?;
    third.execute("create extension pgcrypto")?;
    let told = servers.refusal([1, 2, 3], ANY_PORT)?;
    says(
        &told,
        &[
            "pgcrypto",
            "on shard \"s1\": create extension pgcrypto",
            "mixed_versions",
        ],
    )?;
    drop(servers.serve([1, 2, 3], &mixed)?);
    third.execute("drop extension pgcrypto")?;
    drop(servers.serve([1, 2, 3], ANY_PORT)?);
    // Another cluster, on databases that sort in different ways.
    let mut other: Vec<Server> = Vec::new();
    for number in 1..=3 {
        let locale = if number == 2 { "C" } else { "C.UTF-8" };
        servers.directly(number)?.execute(&format!(
            "create database other template template0 lc_collate '{locale}' lc_ctype '{locale}'"
        ))?;
        let mut server = servers.server(number).clone();
        server.database = "other".to_owned();
        other.push(server);
    }
    let all: Vec<&Server> = other.iter().collect();
    let told = refusal(&servers.file(&all, ANY_PORT)?)?;
    says(
        &told,
        &["collate is C.UTF-8 on shard \"s1\" and C on shard \"s2\""],
    )?;
    let mut owner = servers.directly(1)?;
    owner.execute(&format!("create role weak login password '{PASSWORD}'"))?;
    other[0].user = "weak".to_owned();
    let told = refusal(&servers.file(&[&other[0]], ANY_PORT)?)?;
    says(
        &told,
        &[
            "role \"weak\"",
            "grant create on database \"other\" to \"weak\"",
        ],
    )
}

/// While the proxy runs, two servers stop and come back in each other's place.
fn returned(servers: &mut Servers) -> Result<()> {
    let proxy = servers.serve([1, 2, 3], ANY_PORT)?;
    let mut client = Connection::open(&proxy.server)?;
    exchange(servers)?;
    // Not one row is answered from the wrong place meanwhile.
    let count = "select count(*) from t";
    let told = wait::until("the servers to be recognised", PATIENCE, || {
        let frames = client.simple(count).ok()?;
        let error = frames.iter().find(|frame| frame.tag == b'E');
        let error = error.expect("a count of strange servers");
        let told = error.field(b'D').unwrap_or_default();
        told.contains("is shard").then_some(told)
    })?;
    ensure!(
        told.contains("The server of shard \"s2\" is shard \"s3\"")
            || told.contains("The server of shard \"s3\" is shard \"s2\""),
        "{told}"
    );
    exchange(servers)?;
    wait::until("the right servers", PATIENCE, || {
        let found = client.execute(count).ok()??;
        (found == "60").then_some(())
    })
}

/// The second and the third server, each at the other's address.
fn exchange(servers: &mut Servers) -> Result<()> {
    let [_, second, third] = &mut servers.plain[..] else {
        anyhow::bail!("three servers");
    };
    second.stop(Signal::SIGINT).context("stop the second")?;
    third.stop(Signal::SIGINT).context("stop the third")?;
    std::mem::swap(&mut second.server, &mut third.server);
    second.start_again()?;
    third.start_again()
}

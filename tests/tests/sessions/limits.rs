//! `automator67 serve`: its pool limit, and TLS.

use std::{
    path::PathBuf,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::{self, Automator, Dev},
    batch::{Batch, shape},
    checks::Check,
    postgres,
    wire::{Connection, Server},
};

use super::is_one;

pub const CHECKS: &[Check<Dev>] = &[
    ("more clients than connections", more_clients),
    ("the wait has a limit", wait_limit),
    ("a statement's time counts while it waits", wait_is_timed),
    ("small pool, many sessions", small_pool),
    ("pg_dump", pg_dump),
    ("TLS is required", tls_required),
    ("TLS of dev", tls_of_dev),
];

/// `automator67 serve` on the shards of `dev`.
fn serve(dev: &Dev, name: &str, pool_size: usize, sql: &str) -> Result<Automator> {
    let mut text = format!(
        "[sql]\nlisten = \"127.0.0.1:0\"\nthreads = 1\n{sql}\n[http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{}\"\npassword = \"{}\"\n",
        postgres::USER,
        postgres::PASSWORD
    );
    for shard in dev.shards() {
        text += &format!(
            "[[shards]]\nname = \"{}\"\nurl = \"{}\"\npool_size = {pool_size}\n",
            shard.name,
            shard.server.url()?
        );
    }
    let file: PathBuf = dev.directory().join(format!("{name}.toml"));
    std::fs::write(&file, text)?;
    automator::serve(&file)
}

fn more_clients(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "more", 2, "pool_wait_timeout_ms = 30000")?;
    let clients: Vec<_> = (0..12)
        .map(|number| {
            let server = proxy.server.clone();
            std::thread::spawn(move || -> Result<()> {
                let mut connection = Connection::open(&server)?;
                for id in 1..=20 {
                    let text = format!("select v, pg_sleep(0.002) from points where id = {id}");
                    is_one(&mut connection, &text, &id.to_string())?;
                    is_one(&mut connection, "select count(*) from points", "300")?;
                    let id = 300 - number;
                    connection.execute(&format!("update points set v = v where id = {id}"))?;
                }
                Ok(())
            })
        })
        .collect();
    for client in clients {
        client.join().expect("a client's thread")?;
    }
    let mut connection = Connection::open(&proxy.server)?;
    is_one(
        &mut connection,
        "select count(*) from automator67.pools where size <> 2",
        "0",
    )?;
    let waits = connection.execute("select sum(waits) from automator67.pools")?;
    ensure!(waits.as_deref() != Some("0"), "nobody waited");
    Ok(())
}

fn wait_limit(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "limit", 2, "pool_wait_timeout_ms = 400")?;
    let mut holders = Vec::new();
    for _ in 0..2 {
        let mut holder = Connection::open(&proxy.server)?;
        holder.execute("begin")?;
        holder.execute("select v from points where id = 1")?;
        holders.push(holder);
    }
    let mut connection = Connection::open(&proxy.server)?;
    let start = Instant::now();
    let frames = connection.simple("select v from points where id = 1")?;
    let waited = start.elapsed();
    ensure!(shape(&frames) == "E(53300)Z", "{}", shape(&frames));
    ensure!(frames[0].field(b'H').is_some(), "no hint: {frames:?}");
    ensure!(
        frames[0].field(b'S').as_deref() == Some("ERROR"),
        "{frames:?}"
    );
    ensure!(
        waited >= Duration::from_millis(380) && waited < Duration::from_secs(3),
        "{waited:?}"
    );
    // In the extended protocol and in a pipeline too.
    let batch = Batch::new()
        .run("select v from points where id = $1", &["1"])
        .sync();
    ensure!(shape(&connection.batch(&batch)?).ends_with("E(53300)Z"));
    for mut holder in holders {
        holder.execute("commit")?;
    }
    is_one(&mut connection, "select v from points where id = 1", "1")
}

fn wait_is_timed(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "timed", 1, "pool_wait_timeout_ms = 30000")?;
    let mut connection = Connection::open(&proxy.server)?;
    connection.execute("set statement_timeout = '400ms'")?;
    let mut holder = Connection::open(&proxy.server)?;
    holder.execute("begin")?;
    holder.execute("select count(*) from points")?;
    for text in [
        "select v from points where id = 1",
        "select v from points where id = 2",
        "update points set v = v where id = 3",
        "select count(*) from points",
    ] {
        let start = Instant::now();
        let frames = connection.simple(text)?;
        ensure!(shape(&frames) == "E(57014)Z", "{text}: {}", shape(&frames));
        let waited = start.elapsed();
        ensure!(waited < Duration::from_secs(5), "{text}: {waited:?}");
    }
    let batch = Batch::new().run("select v from points where id = $1", &["1"]);
    let frames = connection.batch(&batch.sync())?;
    ensure!(shape(&frames).ends_with("E(57014)Z"), "{}", shape(&frames));
    holder.execute("commit")?;
    is_one(&mut connection, "select v from points where id = 1", "1")
}

/// It begins with settings of its own, by `set_config` for a row of `pg_settings`.
fn pg_dump(dev: &Dev) -> Result<()> {
    let text = postgres::client(dev.server(), "pg_dump", &["--schema-only", "-t", "words"])?;
    ensure!(text.contains("CREATE TABLE public.words"), "{text}");
    Ok(())
}

/// Settings, statements and transactions of many sessions on one server connection per shard.
fn small_pool(dev: &Dev) -> Result<()> {
    let proxy = serve(dev, "small", 1, "")?;
    let mut sessions = Vec::new();
    for number in 0..10 {
        let mut connection = Connection::open(&proxy.server)?;
        connection.execute(&format!("set timezone = 'Etc/GMT-{number}'"))?;
        connection.execute(&format!("set application_name = 'app{number}'"))?;
        let batch = Batch::new().parse(
            "same",
            &format!("select {number}, v from points where id = $1"),
        );
        connection.batch(&batch.sync())?;
        sessions.push(connection);
    }
    for id in 1..=12 {
        for (number, connection) in sessions.iter_mut().enumerate() {
            let hour = format!("2024-01-01 {number:02}:00:00+{number:02}");
            is_one(
                connection,
                &format!("select t::text from points where id = {id}"),
                &hour,
            )?;
            let name =
                format!("select current_setting('application_name') from points where id = {id}");
            is_one(connection, &name, &format!("app{number}"))?;
            is_one(connection, "select max(t)::text from points", &hour)?;
            let value = id.to_string();
            let batch = Batch::new()
                .bind("", "same", &[Some(&value)])
                .execute("", 0)
                .sync();
            ensure!(super::column(&connection.batch(&batch)?)? == [number.to_string()]);
        }
    }
    Ok(())
}

fn psql(server: &Server, options: &str) -> Result<String> {
    let text = "select ssl from pg_stat_ssl where pid = pg_backend_pid() union all select true";
    postgres::client(
        server,
        "psql",
        &["-XAtd", options, "-c", "\\conninfo", "-c", text],
    )
}

fn tls_of_dev(dev: &Dev) -> Result<()> {
    for options in [
        "sslmode=require",
        "sslmode=require channel_binding=require",
        "sslmode=require ssl_max_protocol_version=TLSv1.2 channel_binding=require",
    ] {
        let answer = psql(dev.server(), options).context(options)?;
        ensure!(answer.contains("SSL connection"), "{options}: {answer}");
    }
    let answer = psql(dev.server(), "sslmode=disable")?;
    ensure!(!answer.contains("SSL connection"), "{answer}");
    Ok(())
}

fn tls_required(dev: &Dev) -> Result<()> {
    let tls =
        "[sql.tls]\ncertificate = \"dev/certificate.pem\"\nkey = \"dev/key.pem\"\nrequired = true";
    let proxy = serve(dev, "tls", 2, tls)?;
    let mut connection = Connection::raw(&proxy.server)?;
    let error = connection
        .login(&proxy.server)?
        .context("plaintext is let in")?;
    ensure!(error.field(b'C').as_deref() == Some("28000"), "{error:?}");
    ensure!(connection.is_closed()?);
    let answer = psql(&proxy.server, "sslmode=require channel_binding=require")?;
    ensure!(answer.contains("SSL connection"), "{answer}");
    ensure!(psql(&proxy.server, "sslmode=disable").is_err());
    let root = dev.directory().join("dev/certificate.pem");
    let options = format!("sslmode=verify-ca sslrootcert={}", root.display());
    ensure!(psql(&proxy.server, &options)?.contains("SSL connection"));
    Ok(())
}

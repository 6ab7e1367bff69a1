//! `automator67 dev`: Postgres shards on this machine and the proxy before them, from nothing, in
//! one command. Everything lives under one data directory:
//!
//! | entry | what |
//! |---|---|
//! | `lock` | held by the running process, holds its pid |
//! | `dev.json` | what the directory was made with |
//! | `password`, `certificate.pem`, `key.pem` | the login and TLS of the proxy |
//! | `state.json` | URLs of the running process |
//! | `shard1`, `shard1.log`, ... | a Postgres cluster each, and what it logs |
//! | `sockets` | the shards' sockets, if the path is short enough for one |

mod account;
mod binaries;
mod certificate;
mod cluster;
mod directory;
mod postmaster;
mod run_postgres;
mod shards;

use std::{
    net::{SocketAddr, TcpListener},
    path::PathBuf,
};

use anyhow::{Context, Result, bail, ensure};
use automator67_control::Metrics;
use automator67_proxy::settings::{ShardAuth, ShardHost, ShardSettings, ShardTls, User};
use tokio_util::sync::CancellationToken;

use self::{
    account::Account, binaries::Binaries, cluster::Cluster, directory::Directory, shards::Shards,
};
use crate::{
    config::{self, HTTP_LISTEN, SQL_LISTEN, Served},
    serve::Running,
    server_url,
    stop::Stop,
};

pub use self::{
    directory::{State, default_path},
    run_postgres::{RunPostgres, become_postgres},
};

/// The one login: a superuser of the shards, so that every statement can be tried.
const USER: &str = "app";
/// The one database.
const DATABASE: &str = "app";
/// More would not start: each shard takes 200 connections' worth of memory and processes.
const SHARDS_MAX: usize = 32;

/// Flags of `automator67 dev`.
#[derive(clap::Args)]
pub struct Arguments {
    /// How many Postgres shards; a directory keeps the number it was made with.
    #[arg(long, value_name = "N")]
    shards: Option<usize>,
    /// Where everything is kept [default: automator67/dev in the user's data directory].
    #[arg(long, env = "AUTOMATOR67_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
    /// The password of the login; without it one is generated at the first start and kept.
    #[arg(long, env = "AUTOMATOR67_PASSWORD", hide_env_values = true)]
    password: Option<String>,
    /// A file with the password of the login.
    #[arg(long, value_name = "FILE", conflicts_with = "password")]
    password_file: Option<PathBuf>,
    /// Where clients connect. Port 0 takes a free one.
    #[arg(long, env = "AUTOMATOR67_SQL", value_name = "HOST:PORT", default_value = SQL_LISTEN)]
    sql: SocketAddr,
    /// Where /metrics and /healthz are. Port 0 takes a free one.
    #[arg(long, env = "AUTOMATOR67_HTTP", value_name = "HOST:PORT", default_value = HTTP_LISTEN)]
    http: SocketAddr,
    /// The directory of initdb and postgres, if not the one on PATH or the newest installed.
    #[arg(long, env = "AUTOMATOR67_POSTGRES_BIN", value_name = "DIR")]
    postgres_bin: Option<PathBuf>,
    /// Threads that serve clients [default: half the cores].
    #[arg(long, env = "AUTOMATOR67_THREADS", value_name = "N")]
    threads: Option<usize>,
}

/// Runs `automator67 dev`.
pub async fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let signals = Stop::on_signal()?;
    let binaries = Binaries::find(arguments.postgres_bin.as_deref())?;
    let account = Account::for_postgres()?;
    let path = arguments.data_dir.clone().map_or_else(default_path, Ok)?;
    let directory = Directory::open(&path, account.as_ref())?;
    directory.settle(arguments.shards, &binaries)?;
    binaries.check_runs_as(account.as_ref(), directory.path())?;
    check_free(arguments.sql, "--sql")?;
    check_free(arguments.http, "--http")?;
    let sockets = directory.sockets(account.as_ref())?;
    let clusters = (1..=directory.shard_count())
        .map(|number| Cluster::new(number, &directory, &sockets, &binaries, account.as_ref()))
        .collect();
    let mut shards = Shards::new(clusters);
    let outcome = serve(arguments, &directory, &mut shards, &signals, json).await;
    shards.stop(&signals.hurry).await;
    directory.forget_state();
    match outcome {
        // An end that was asked for is a good one, also in the middle of starting.
        Err(_) if signals.stop.is_cancelled() => Ok(()),
        other => other,
    }
}

/// From the first look at the clusters until the stop. The caller stops the shards.
async fn serve(
    arguments: &Arguments,
    directory: &Directory,
    shards: &mut Shards,
    signals: &Stop,
    json: bool,
) -> Result<()> {
    let stop = signals.stop.clone();
    let password = unless_stopped(&stop, prepare(arguments, directory, shards)).await?;
    unless_stopped(&stop, shards.start(&password)).await?;
    let metrics = Metrics::install()?;
    let served = served(arguments, directory, shards, &password)?;
    let running = Running::start(served, metrics, stop.clone()).await?;
    let state = State {
        sql: format!(
            "postgres://{USER}:{}@{}/{DATABASE}",
            server_url::encode(&password),
            running.sql()
        ),
        http: format!("http://{}", running.http()),
        pid: std::process::id(),
    };
    directory.write_state(&state)?;
    announce(&state, directory, shards, json);
    shards.supervise(&stop, &password).await;
    running.wait().await;
    Ok(())
}

/// Clusters that exist, none of them running, with the password that is returned.
async fn prepare(
    arguments: &Arguments,
    directory: &Directory,
    shards: &mut Shards,
) -> Result<String> {
    shards.end_left_over().await?;
    let wanted = match &arguments.password_file {
        Some(file) => Some(config::password_of_file(file)?),
        None => arguments.password.clone(),
    };
    let password = directory.password(wanted.as_deref())?;
    shards.make_clusters(&password.wanted).await?;
    if password.must_be_set {
        shards.set_password(&password.wanted).await?;
        directory.keep_password(&password.wanted)?;
    }
    Ok(password.wanted)
}

async fn unless_stopped<T>(
    stop: &CancellationToken,
    work: impl Future<Output = Result<T>>,
) -> Result<T> {
    // Dropping the work kills nothing that must finish: a cluster counts only after its last
    // step, and servers that were started are stopped by the caller.
    tokio::select! {
        done = work => done,
        () = stop.cancelled() => bail!("stopped while starting"),
    }
}

/// Looks before anything is started whether a port can be had, for a message that helps.
fn check_free(address: SocketAddr, flag: &str) -> Result<()> {
    match TcpListener::bind(address) {
        Ok(_) => Ok(()),
        Err(error) if error.kind() == std::io::ErrorKind::AddrInUse => bail!(
            "port {} on {} is in use by another process\nchoose another port with {flag} {}:PORT (0 takes a free one)",
            address.port(),
            address.ip(),
            address.ip()
        ),
        Err(error) => Err(error).with_context(|| format!("could not listen on {address} ({flag})")),
    }
}

fn served(
    arguments: &Arguments,
    directory: &Directory,
    shards: &Shards,
    password: &str,
) -> Result<Served> {
    let user = User {
        name: USER.to_owned(),
        password: password.to_owned(),
        shard_password: password.to_owned(),
    };
    let shard = |cluster: &Cluster| ShardSettings {
        name: cluster.name.clone(),
        host: ShardHost::Unix(cluster.sockets.clone()),
        port: cluster.port,
        database: DATABASE.to_owned(),
        admin_user: USER.to_owned(),
        admin_password: password.to_owned(),
        auth: ShardAuth::ANY,
        tls: ShardTls::Disable,
        tls_root: None,
        pool_size_max: config::pool_size(),
    };
    let shards = shards.clusters().iter().map(shard).collect();
    let mut settings = config::without_file(vec![user], shards);
    settings.listen = arguments.sql;
    settings.database = DATABASE.to_owned();
    settings.tls = Some(certificate::keep(directory.path())?);
    if let Some(threads) = arguments.threads {
        ensure!(threads > 0, "--threads must be at least 1");
        settings.threads = threads;
    }
    Ok(Served {
        settings,
        http: arguments.http,
    })
}

fn announce(state: &State, directory: &Directory, shards: &Shards, json: bool) {
    if json {
        let shard = |cluster: &Cluster| {
            serde_json::json!({
                "name": cluster.name,
                "socket_directory": cluster.sockets,
                "port": cluster.port,
                "log": cluster.log,
            })
        };
        let shards: Vec<_> = shards.clusters().iter().map(shard).collect();
        let line = serde_json::json!({
            "sql": state.sql,
            "http": state.http,
            "pid": state.pid,
            "data_dir": directory.path(),
            "shards": shards,
        });
        println!("{line}");
        return;
    }
    println!("sql    {}", state.sql);
    println!("http   {}   /metrics /healthz", state.http);
    println!("data   {}", directory.path().display());
    println!(
        "       {} Postgres shards, one log each beside them",
        shards.clusters().len()
    );
    println!();
    println!("psql \"{}\"", state.sql);
    println!("Ctrl-C stops everything; the data stays.");
}

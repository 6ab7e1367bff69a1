//! The proxy and the HTTP port, until told to stop.

use std::{net::SocketAddr, path::PathBuf};

use anyhow::Result;
use automator67_control::{Control, Metrics};
use automator67_proxy::Proxy;
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use tokio_util::sync::CancellationToken;

use crate::{
    config::{self, Overrides, Served},
    stop::Stop,
};

/// Flags of `automator67 serve`.
#[derive(clap::Args)]
pub struct Arguments {
    /// The configuration, like automator67.example.toml.
    #[arg(long, env = "AUTOMATOR67_CONFIG", value_name = "FILE")]
    config: PathBuf,
    #[command(flatten)]
    overrides: Overrides,
}

/// Runs `automator67 serve`.
pub async fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let served = config::load(&arguments.config, &arguments.overrides)?;
    let signals = Stop::on_signal()?;
    let metrics = Metrics::install()?;
    let database = served.settings.database.clone();
    let shards = served.settings.shards.len();
    let running = Running::start(served, metrics, signals.stop.clone()).await?;
    let (sql, http) = (running.sql(), running.http());
    let sql_url = format!("postgres://{sql}/{database}");
    let http_url = format!("http://{http}");
    if json {
        let pid = std::process::id();
        println!(
            "{}",
            serde_json::json!({"sql": sql_url, "http": http_url, "pid": pid})
        );
    } else {
        println!("sql   {sql_url}   ({shards} shards)");
        println!("http  {http_url}   /metrics /healthz");
    }
    running.wait().await;
    Ok(())
}

/// A client and each server connection is an open file: as many as the administrator allows.
fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE)
        .and_then(|(_, hard)| setrlimit(Resource::RLIMIT_NOFILE, hard, hard));
    if let Err(error) = raised {
        tracing::warn!(%error, "could not raise the limit of open files");
    }
}

/// Both ports, open.
pub struct Running {
    proxy: Proxy,
    control: Control,
}

impl Running {
    /// Opens both. A start that `stop` interrupts ends early. One that fails does not cancel `stop`,
    /// which says that somebody asked for the end.
    pub async fn start(
        served: Served,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Result<Running> {
        raise_file_limit();
        let stop = stop.child_token();
        let control = Control::start(served.http, metrics, stop.clone()).await?;
        let proxy = tokio::select! {
            proxy = Proxy::start(served.settings, stop.clone()) => proxy,
            () = stop.cancelled() => anyhow::bail!("stopped while starting"),
        };
        match proxy {
            Ok(proxy) => Ok(Running { proxy, control }),
            Err(error) => {
                stop.cancel();
                control.wait().await;
                Err(error.into())
            }
        }
    }

    /// Where SQL clients connect.
    pub fn sql(&self) -> SocketAddr {
        self.proxy.address()
    }

    /// Where /metrics is.
    pub fn http(&self) -> SocketAddr {
        self.control.address()
    }

    /// Waits until both have ended, after the stop.
    pub async fn wait(self) {
        self.proxy.wait().await;
        self.control.wait().await;
    }
}

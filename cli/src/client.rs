//! What client commands share: which server they mean, and how its errors read.

use std::path::PathBuf;

use anyhow::{Context, Result};
use tokio_postgres::{Client, NoTls};

use crate::dev::{State, default_path};

/// Which running server a command talks to.
#[derive(clap::Args)]
pub struct Target {
    /// The server's URL [default: that of the running `automator67 dev`].
    #[arg(
        long,
        env = "AUTOMATOR67_URL",
        hide_env_values = true,
        value_name = "URL"
    )]
    url: Option<String>,
    /// The data directory of `automator67 dev`, if not the default one.
    #[arg(long, env = "AUTOMATOR67_DATA_DIR", value_name = "DIR")]
    data_dir: Option<PathBuf>,
}

impl Target {
    /// The URL.
    pub fn url(&self) -> Result<String> {
        match &self.url {
            Some(url) => Ok(url.clone()),
            None => Ok(self.state()?.sql),
        }
    }

    /// What the running `automator67 dev` says of itself.
    pub fn state(&self) -> Result<State> {
        let path = self.data_dir.clone().map_or_else(default_path, Ok)?;
        State::read(&path)
    }

    /// Connects.
    pub async fn connect(&self) -> Result<Client> {
        connect(&self.url()?).await
    }
}

/// Connects to a URL.
pub async fn connect(url: &str) -> Result<Client> {
    let (client, connection) = tokio_postgres::connect(url, NoTls)
        .await
        .context("could not connect")?;
    tokio::spawn(async move {
        if let Err(error) = connection.await {
            tracing::debug!(%error, "connection ended");
        }
    });
    Ok(client)
}

/// An error with everything the server said about it.
pub fn describe(error: &anyhow::Error) -> String {
    let mut text = format!("{error:#}");
    let server = error
        .chain()
        .find_map(|cause| cause.downcast_ref::<tokio_postgres::Error>())
        .and_then(tokio_postgres::Error::as_db_error);
    if let Some(server) = server {
        let details = [("detail", server.detail()), ("hint", server.hint())];
        for (name, value) in details {
            if let Some(value) = value {
                text.push_str(&format!("\n{name}: {value}"));
            }
        }
    }
    text
}

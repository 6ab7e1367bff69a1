//! `automator67 url`: the URLs of the running `automator67 dev`, for scripts.

use anyhow::Result;
use clap::ValueEnum;

use crate::client::Target;

/// Flags of `automator67 url`.
#[derive(clap::Args)]
pub struct Arguments {
    /// Which.
    service: Service,
    #[command(flatten)]
    target: Target,
}

#[derive(Clone, Copy, ValueEnum)]
enum Service {
    /// For psql and drivers.
    Sql,
    /// For /metrics and /healthz.
    Http,
}

/// Runs `automator67 url`.
pub fn run(arguments: &Arguments, json: bool) -> Result<()> {
    let state = arguments.target.state()?;
    let url = match arguments.service {
        Service::Sql => state.sql,
        Service::Http => state.http,
    };
    if json {
        println!("{}", serde_json::json!({ "url": url }));
    } else {
        println!("{url}");
    }
    Ok(())
}

//! Known data sets.

mod tpch;

use std::process::ExitCode;

use anyhow::Result;

/// Subcommands of `automator67 demo`.
#[derive(clap::Subcommand)]
pub enum Command {
    /// Load TPC-H and run its 22 queries.
    Tpch(tpch::Arguments),
}

/// Runs `automator67 demo`.
pub async fn run(command: &Command, json: bool) -> Result<ExitCode> {
    match command {
        Command::Tpch(arguments) => tpch::run(arguments, json).await,
    }
}

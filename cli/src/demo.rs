//! Known data sets.

use std::process::ExitCode;

use anyhow::Result;

/// Subcommands of `automator67 demo`.
#[derive(clap::Subcommand)]
pub enum Command {}

/// Runs `automator67 demo`.
pub async fn run(command: &Command, _json: bool) -> Result<ExitCode> {
    match *command {}
}

//! `automator67`: arguments, configuration, local shards and client commands around the proxy.
//!
//! - [`dev`] runs Postgres shards and the proxy on this machine
//! - [`serve`] runs the proxy before servers that exist
//! - [`url`], [`query`], [`demo`] are clients of a running one

#![expect(
    clippy::print_stdout,
    reason = "what a command answers goes to standard output"
)]

mod arguments;
mod client;
mod config;
mod demo;
mod dev;
mod query;
mod serve;
mod server_url;
mod stop;
mod telemetry;
mod url;

use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};

use crate::telemetry::LogFormat;

/// One Postgres-wire database over many Postgres servers.
#[derive(Parser)]
#[command(name = "automator67", version)]
struct Arguments {
    #[command(subcommand)]
    command: Command,
    #[command(flatten)]
    shared: Shared,
}

/// Flags that every command takes.
#[derive(Args)]
struct Shared {
    /// Answer in JSON.
    #[arg(long, global = true)]
    json: bool,
    /// What to log: a level (error, warn, info, debug), or `target=level` pairs with commas.
    #[arg(long, global = true, env = "AUTOMATOR67_LOG", value_name = "FILTER")]
    log: Option<String>,
    /// How log lines are written to standard error.
    #[arg(
        long,
        global = true,
        env = "AUTOMATOR67_LOG_FORMAT",
        default_value = "text"
    )]
    log_format: LogFormat,
}

#[derive(Subcommand)]
enum Command {
    /// Run local Postgres shards and the proxy before them.
    Dev(dev::Arguments),
    /// Run the proxy before Postgres servers that exist already.
    Serve(serve::Arguments),
    /// Print a URL of the running `automator67 dev`.
    Url(url::Arguments),
    /// List the shards.
    Shards(client::Target),
    /// List the tables and where their rows are.
    Tables(client::Target),
    /// Talk to the database.
    #[command(subcommand)]
    Db(query::Command),
    /// Load a known data set and run its queries.
    #[command(subcommand)]
    Demo(demo::Command),
    /// Become the Postgres server of a local shard.
    #[command(hide = true)]
    RunPostgres(dev::RunPostgres),
}

fn main() -> ExitCode {
    if let Err(error) = arguments::hide_password() {
        eprintln!("automator67: could not take the password off the command line: {error}");
        return ExitCode::FAILURE;
    }
    let Arguments { command, shared } = Arguments::parse();
    match run(command, &shared) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("automator67: {}", client::describe(&error));
            ExitCode::FAILURE
        }
    }
}

fn run(command: Command, shared: &Shared) -> anyhow::Result<ExitCode> {
    if let Command::RunPostgres(arguments) = command {
        return Err(dev::become_postgres(&arguments));
    }
    telemetry::log(shared.log.as_deref(), shared.log_format)?;
    // `block_on` keeps its future on this thread, which is the parent of the local shards: they
    // are told when their parent thread ends, so it must live as long as the process.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()?;
    let json = shared.json;
    let done = |()| ExitCode::SUCCESS;
    match command {
        Command::Dev(arguments) => runtime.block_on(dev::run(&arguments, json)).map(done),
        Command::Serve(arguments) => runtime.block_on(serve::run(&arguments, json)).map(done),
        Command::Url(arguments) => url::run(&arguments, json).map(done),
        Command::Shards(target) => runtime.block_on(query::shards(&target, json)).map(done),
        Command::Tables(target) => runtime.block_on(query::tables(&target, json)).map(done),
        Command::Db(command) => runtime.block_on(query::run(&command, json)).map(done),
        Command::Demo(command) => runtime.block_on(demo::run(&command, json)),
        Command::RunPostgres(_) => unreachable!("handled above"),
    }
}

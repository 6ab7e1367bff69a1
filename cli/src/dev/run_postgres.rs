//! What a local shard's process does before it becomes Postgres: it gives up root and asks to be
//! told when its parent dies. It is our own program, because between fork and exec only calls
//! that the compiler cannot check would be possible.

use std::{ffi::OsString, os::unix::process::CommandExt, path::PathBuf, process::Command};

use anyhow::{Context, Result, ensure};
use nix::{
    sys::{prctl, signal::Signal},
    unistd::{Gid, Pid, Uid, getppid, setgid, setgroups, setuid},
};

/// Flags of `automator67 run-postgres`.
#[derive(clap::Args)]
pub struct RunPostgres {
    /// The process whose end is ours.
    #[arg(long)]
    parent: i32,
    /// Become this user first.
    #[arg(long, requires = "gid")]
    uid: Option<u32>,
    /// And this group.
    #[arg(long, requires = "uid")]
    gid: Option<u32>,
    /// The server program.
    program: PathBuf,
    /// Its arguments.
    #[arg(last = true)]
    arguments: Vec<OsString>,
}

/// Turns this process into Postgres. Returns only when that fails.
pub fn become_postgres(arguments: &RunPostgres) -> anyhow::Error {
    match prepare(arguments) {
        Ok(()) => {
            let mut command = Command::new(&arguments.program);
            let error = command.args(&arguments.arguments).exec();
            anyhow::Error::new(error)
                .context(format!("could not run {}", arguments.program.display()))
        }
        Err(error) => error,
    }
}

fn prepare(arguments: &RunPostgres) -> Result<()> {
    if let (Some(uid), Some(gid)) = (arguments.uid, arguments.gid) {
        setgroups(&[]).context("could not leave root's groups")?;
        setgid(Gid::from_raw(gid)).context("could not change the group")?;
        setuid(Uid::from_raw(uid)).context("could not change the user")?;
    }
    // After setuid, which would undo it. SIGINT is Postgres's fast shutdown: clients are
    // disconnected and a checkpoint is written (manual, "Shutting Down the Server").
    prctl::set_pdeathsig(Signal::SIGINT).context("could not watch the parent process")?;
    // It may have died before the line above.
    ensure!(
        getppid() == Pid::from_raw(arguments.parent),
        "the parent process has ended"
    );
    Ok(())
}

//! The process that runs the tests is killed: what it has started ends.

use std::{fs, path::Path, process::Command, time::Duration};

use anyhow::{Context, Result, ensure};
use automator67_tests::{
    automator::Dev,
    postgres::{self, Plain},
    process::Group,
    wait,
};
use nix::sys::signal::Signal;

/// Names the file to which the process that will be killed writes what it has started.
const TOLD: &str = "AUTOMATOR67_TO_BE_KILLED";
const LIMIT: Duration = Duration::from_secs(120);

#[test]
fn a_killed_test_leaves_no_server() {
    match std::env::var_os(TOLD) {
        None => kill_a_test().expect("nothing is left"),
        Some(file) => start_and_wait(Path::new(&file)).expect("servers start"),
    }
}

fn kill_a_test() -> Result<()> {
    let directory = postgres::directory()?;
    let file = directory.path().join("started");
    let mut command = Command::new(std::env::current_exe()?);
    command
        .args(["--exact", "faults::orphans::a_killed_test_leaves_no_server"])
        .env(TOLD, &file);
    let mut test = Group::start(&mut command, &directory.path().join("log"))?;
    let started = wait::until("another test to start servers", LIMIT, || {
        fs::read_to_string(&file).ok()
    })
    .with_context(|| test.log())?;
    let (processes, directories): (Vec<&str>, Vec<&str>) = started
        .lines()
        .partition(|line| line.parse::<i32>().is_ok());
    ensure!(processes.len() >= 4, "started: {started}");
    ensure!(
        processes.iter().all(|id| is_alive(id)),
        "not all of them run: {started}"
    );
    test.signal(Signal::SIGKILL)?;
    test.wait(LIMIT)?;
    wait::until("all that it had started to end", LIMIT, || {
        let left = processes.iter().any(|id| is_alive(id));
        (!left).then_some(())
    })?;
    for directory in directories {
        fs::remove_dir_all(directory)?;
    }
    Ok(())
}

/// A process that has ended and that nobody has waited for yet is not alive.
fn is_alive(id: &str) -> bool {
    let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
    let state = status.rsplit(')').next().unwrap_or_default().trim_start();
    !state.is_empty() && !state.starts_with('Z')
}

/// Starts one server of each kind, tells, and never ends.
fn start_and_wait(file: &Path) -> Result<()> {
    let (plain, dev) = (Plain::start()?, Dev::start(2)?);
    let mut started: Vec<String> = plain.processes()?.iter().map(i32::to_string).collect();
    started.push(dev.automator.group.id().to_string());
    for shard in dev.shards() {
        started.push(shard.postmaster()?.to_string());
    }
    for directory in [plain.directory(), dev.directory()] {
        started.push(directory.display().to_string());
    }
    let written = file.with_extension("new");
    fs::write(&written, started.join("\n"))?;
    fs::rename(&written, file)?;
    loop {
        std::thread::park();
    }
}

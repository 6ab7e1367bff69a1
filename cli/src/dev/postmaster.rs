//! A Postgres server that a killed run left behind, found by its `postmaster.pid` (manual,
//! "Database File Layout").

use std::{
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    errno::Errno,
    sys::signal::{Signal, kill},
    unistd::Pid,
};

/// What a fast shutdown may take before it becomes an immediate one, and that before we give up.
const PATIENCE: [(Signal, Duration); 2] = [
    (Signal::SIGINT, Duration::from_secs(30)),
    (Signal::SIGQUIT, Duration::from_secs(10)),
];
const LOOK_AGAIN: Duration = Duration::from_millis(20);

/// A starting server creates the file and fills it a moment later.
const EMPTY: Duration = Duration::from_secs(2);

/// Sees to it that no server runs on `data` and that no stale file keeps one from starting.
/// Says what it did.
pub async fn end_left_over(data: &Path) -> Result<Option<String>> {
    if !filled(data).await? {
        let file = data.join("postmaster.pid");
        fs::remove_file(&file).with_context(|| format!("could not remove {}", file.display()))?;
        return Ok(Some(format!(
            "removed an empty {}: its server was killed while it started",
            file.display()
        )));
    }
    let Some(pid) = pid(data)? else {
        return Ok(None);
    };
    if is_server_of(pid, data) {
        end(pid, data).await?;
        return Ok(Some(format!(
            "stopped the Postgres server (process {pid}) that an earlier run left on {}",
            data.display()
        )));
    }
    let file = data.join("postmaster.pid");
    if is_alive(pid) {
        // Another process has the number now, and Postgres would take that for its server. Should
        // children of the old server still be there, their shared memory keeps a new one out.
        fs::remove_file(&file).with_context(|| format!("could not remove {}", file.display()))?;
        return Ok(Some(format!(
            "removed a stale {}: process {pid} is not its server",
            file.display()
        )));
    }
    // Postgres replaces a file whose process is gone, after looks of its own.
    Ok(Some(format!(
        "{} is stale: its server (process {pid}) did not stop cleanly and will recover",
        file.display()
    )))
}

/// False: the file is empty, and no server that could fill it is there.
async fn filled(data: &Path) -> Result<bool> {
    let file = data.join("postmaster.pid");
    let started = Instant::now();
    while fs::metadata(&file).is_ok_and(|found| found.len() == 0) {
        if !any_server_of(data)? {
            return Ok(false);
        }
        if started.elapsed() > EMPTY {
            break;
        }
        tokio::time::sleep(LOOK_AGAIN).await;
    }
    Ok(true)
}

fn any_server_of(data: &Path) -> Result<bool> {
    for process in fs::read_dir("/proc").context("could not read /proc")? {
        let name = process.context("could not read /proc")?.file_name();
        let pid = name.to_str().and_then(|name| name.parse().ok());
        if pid.is_some_and(|pid| is_server_of(Pid::from_raw(pid), data)) {
            return Ok(true);
        }
    }
    Ok(false)
}

fn pid(data: &Path) -> Result<Option<Pid>> {
    let path = data.join("postmaster.pid");
    let text = match fs::read_to_string(&path) {
        Ok(text) => text,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(None),
        Err(error) => {
            return Err(error).with_context(|| format!("could not read {}", path.display()));
        }
    };
    let first = text.lines().next().unwrap_or_default().trim();
    match first.parse() {
        Ok(number) if number > 1 => Ok(Some(Pid::from_raw(number))),
        _ => bail!(
            "{} does not begin with a process id\nif no Postgres server runs on {}, remove that file",
            path.display(),
            data.display()
        ),
    }
}

/// True for a process that is called postgres and was started on this directory. A process's
/// arguments can be read by everybody; its directory or program cannot, in many containers.
fn is_server_of(pid: Pid, data: &Path) -> bool {
    let line = fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
    let mut arguments = line.split(|byte| *byte == 0);
    let program = arguments.next().unwrap_or_default();
    program.ends_with(b"postgres")
        && arguments.any(|argument| argument == data.as_os_str().as_encoded_bytes())
}

fn is_alive(pid: Pid) -> bool {
    kill(pid, None) != Err(Errno::ESRCH)
}

async fn end(pid: Pid, data: &Path) -> Result<()> {
    for (signal, patience) in PATIENCE {
        // It may be on its way out already, told by the kernel that its parent had died.
        let _ = kill(pid, signal);
        let since = Instant::now();
        while since.elapsed() < patience {
            if !is_server_of(pid, data) {
                return Ok(());
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
    bail!(
        "the Postgres server (process {pid}) on {} does not stop",
        PathBuf::from(data).display()
    )
}

#[cfg(test)]
mod tests;

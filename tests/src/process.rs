//! Child processes in a group of their own, which never outlive their owner, even if it is killed.

use std::{
    fs::File,
    io::{Read, Write},
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::Duration,
};

use anyhow::{Context, Result};
use nix::{
    sys::signal::{Signal, killpg},
    unistd::{Gid, Pid, Uid, User},
};

use crate::wait;

/// The account that Postgres runs as, when we are root (Postgres refuses to be root).
#[derive(Debug, Clone, Copy)]
pub struct Account {
    uid: Uid,
    gid: Gid,
}

impl Account {
    /// `postgres`, else `nobody`; `None` when we are not root.
    pub fn for_postgres() -> Result<Option<Account>> {
        if !Uid::effective().is_root() {
            return Ok(None);
        }
        let user = match User::from_name("postgres")? {
            Some(user) => user,
            None => User::from_name("nobody")?.context("no account to run Postgres as")?,
        };
        Ok(Some(Account {
            uid: user.uid,
            gid: user.gid,
        }))
    }

    /// Gives a file or directory to the account.
    pub fn own(self, path: &Path) -> Result<()> {
        std::os::unix::fs::chown(path, Some(self.uid.as_raw()), Some(self.gid.as_raw()))
            .with_context(|| format!("chown {}", path.display()))
    }
}

/// Lets `command` run as `account`.
pub fn run_as(command: &mut Command, account: Option<Account>) {
    if let Some(account) = account {
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
}

/// A child and everything it started in its process group.
#[derive(Debug)]
pub struct Group {
    child: Child,
    watch: Watch,
    log: PathBuf,
}

impl Group {
    /// Starts `command` in a new process group; stderr goes to the file `log`.
    pub fn start(command: &mut Command, log: &Path) -> Result<Group> {
        let stderr = File::create(log).with_context(|| format!("create {}", log.display()))?;
        let mut child = command
            .stdin(Stdio::null())
            .stderr(stderr)
            .process_group(0)
            .spawn()
            .with_context(|| format!("start {command:?}"))?;
        let watch = Watch::over(child.id());
        let watch = watch.inspect_err(|_| {
            let _ = child.kill();
        })?;
        Ok(Group {
            child,
            watch,
            log: log.to_owned(),
        })
    }

    /// The first process's id, which is the group's as well.
    pub fn id(&self) -> u32 {
        self.child.id()
    }

    /// The child, for its standard output.
    pub fn child(&mut self) -> &mut Child {
        &mut self.child
    }

    /// What was written to stderr so far.
    pub fn log(&self) -> String {
        let mut text = String::new();
        if let Ok(mut file) = File::open(&self.log) {
            let _ = file.read_to_string(&mut text);
        }
        text
    }

    /// True when the first process has ended.
    pub fn ended(&mut self) -> bool {
        !matches!(self.child.try_wait(), Ok(None))
    }

    /// Sends a signal to the first process alone.
    pub fn signal(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        nix::sys::signal::kill(id, signal).with_context(|| format!("send {signal}"))
    }

    /// Sends a signal to the whole group.
    pub fn signal_all(&self, signal: Signal) -> Result<()> {
        let id = Pid::from_raw(i32::try_from(self.child.id())?);
        killpg(id, signal).with_context(|| format!("send {signal} to the group"))
    }

    /// Waits until the first process has ended and returns its exit code.
    pub fn wait(&mut self, limit: Duration) -> Result<Option<i32>> {
        let child = &mut self.child;
        wait::until("a process to end", limit, || {
            child.try_wait().ok().flatten()
        })
        .map(|status| status.code())
    }
}

impl Drop for Group {
    fn drop(&mut self) {
        if !self.ended() {
            let _ = self.signal(Signal::SIGINT);
            let _ = self.wait(Duration::from_secs(10));
        }
        let _ = self.signal_all(Signal::SIGKILL);
        let _ = self.child.wait();
        self.watch.end();
    }
}

/// A shell that ends a group when we are gone, however we went: nobody else has the other end of
/// the pipe that it reads from. It is in a group of its own, because a test is killed by its group.
#[derive(Debug)]
struct Watch(Child);

/// A line is a farewell; the end of the file is not. The same signals as in [`Group`]'s drop.
const WATCH: &str = r#"read -r farewell && exit
kill -INT "$1" && timeout 10 tail --pid="$1" -f /dev/null
kill -KILL -- "-$1""#;

impl Watch {
    fn over(group: u32) -> Result<Watch> {
        let shell = Command::new("sh")
            .args(["-c", WATCH, "watch", &group.to_string()])
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .process_group(0)
            .spawn()
            .context("start a watch over a child")?;
        Ok(Watch(shell))
    }

    fn end(&mut self) {
        if let Some(mut pipe) = self.0.stdin.take() {
            let _ = pipe.write_all(b"\n");
        }
        let _ = self.0.wait();
    }
}

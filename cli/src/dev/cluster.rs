//! One local shard: a Postgres cluster, made, started and asked whether it is ready.

use std::{
    fs::{self, File, OpenOptions, Permissions},
    io::{Read, Seek, SeekFrom},
    os::unix::fs::{OpenOptionsExt, PermissionsExt},
    path::{Path, PathBuf},
    process::{Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use nix::{
    sys::signal::{Signal, kill},
    unistd::Pid,
};
use tokio::{io::AsyncWriteExt, process::Child};
use tokio_postgres::{NoTls, error::SqlState};

use super::{
    DATABASE, USER,
    account::Account,
    binaries::Binaries,
    directory::{Directory, private_directory, write_private},
    postmaster,
};

/// The first shard's number in the name of its socket is one more.
const PORT_BASE: u16 = 5432;
/// A server that recovers from a kill may take its time; it says so in its log.
const READY_TIMEOUT: Duration = Duration::from_secs(600);
/// For how long a start that meets the remains of a killed server is tried again.
const REMAINS_TIMEOUT: Duration = Duration::from_secs(30);
const LOOK_AGAIN: Duration = Duration::from_millis(25);
/// What the end of a log may hold when it is shown.
const LOG_TAIL_BYTES: u64 = 4096;

/// A local shard.
#[derive(Debug, Clone)]
pub struct Cluster {
    /// `shard1` and so on.
    pub name: String,
    /// The number in its socket's name.
    pub port: u16,
    /// The directory of its socket.
    pub sockets: PathBuf,
    /// What it logs.
    pub log: PathBuf,
    data: PathBuf,
    binaries: Binaries,
    account: Option<Account>,
}

impl Cluster {
    /// Number `number` of a data directory, not looked at yet.
    pub fn new(
        number: usize,
        directory: &Directory,
        sockets: &Path,
        binaries: &Binaries,
        account: Option<&Account>,
    ) -> Cluster {
        let name = format!("shard{number}");
        Cluster {
            port: PORT_BASE + number as u16,
            sockets: sockets.to_owned(),
            log: directory.path().join(format!("{name}.log")),
            data: directory.path().join(&name),
            binaries: binaries.clone(),
            account: account.cloned(),
            name,
        }
    }

    /// True once it was made completely.
    pub fn exists(&self) -> bool {
        self.data.exists()
    }

    /// See [`postmaster::end_left_over`].
    pub async fn end_left_over(&self) -> Result<Option<String>> {
        postmaster::end_left_over(&self.data)
            .await
            .with_context(|| self.name.clone())
    }

    /// Makes it. It gets its name last, so a cluster of that name is whole.
    pub async fn make(&self, password: &str) -> Result<()> {
        let new = self.data.with_extension("new");
        if new.exists() {
            fs::remove_dir_all(&new)
                .with_context(|| format!("could not remove {}", new.display()))?;
        }
        private_directory(&new, self.account.as_ref())?;
        // A file of the account's own: it may not open a pipe of ours as /dev/stdin.
        let password_file = self.data.with_file_name(format!("{}-password", self.name));
        write_private(&password_file, password)?;
        if let Some(account) = &self.account {
            account.own(&password_file)?;
        }
        let mut initdb = self.command("initdb");
        initdb
            .args(["--username", USER])
            .arg("--pwfile")
            .arg(&password_file)
            .args(["--auth-local=scram-sha-256", "--auth-host=scram-sha-256"])
            .args([
                "--locale",
                "C.UTF-8",
                "--encoding",
                "UTF8",
                "--no-instructions",
            ])
            .arg("--pgdata")
            .arg(&new);
        let made = self.run_with_input(initdb, "").await;
        fs::remove_file(&password_file)
            .with_context(|| format!("could not remove {}", password_file.display()))?;
        made?;
        fs::rename(&new, &self.data).with_context(|| format!("could not name {}", new.display()))
    }

    /// Sets the password of the login while no server runs, so that no other password is needed.
    pub async fn set_password(&self, password: &str) -> Result<()> {
        let mut single_user = self.command("postgres");
        single_user
            .args(["--single", "-D"])
            .arg(&self.data)
            .arg("postgres");
        let quoted = password.replace('\'', "''");
        let statement = format!("alter role {USER} password '{quoted}'\n");
        self.run_with_input(single_user, &statement).await
    }

    /// Starts the server and waits until it answers; the database is there then.
    pub async fn start(&self, password: &str) -> Result<Child> {
        let since = Instant::now();
        loop {
            let log_start = fs::metadata(&self.log).map_or(0, |facts| facts.len());
            let mut child = self.spawn()?;
            let ended = match self.ready(&mut child, password).await {
                Ok(Readiness::Ready) => return Ok(child),
                Ok(Readiness::Ended(status)) => status,
                Err(error) => {
                    self.signal(&child, Signal::SIGINT);
                    // Its failure was told already.
                    let _ = child.wait().await;
                    return Err(error);
                }
            };
            let log = self.log_since(log_start);
            // Children of a killed server hold its shared memory for a moment.
            let remains = log.contains("pre-existing shared memory block");
            if !remains || since.elapsed() > REMAINS_TIMEOUT {
                bail!(
                    "{} did not start ({ended}); its log {} ends with\n{}",
                    self.name,
                    self.log.display(),
                    log.trim_end()
                );
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    }

    /// Sends a signal, if it is still running.
    pub fn signal(&self, child: &Child, signal: Signal) {
        if let Some(pid) = child.id().and_then(|pid| i32::try_from(pid).ok()) {
            // It may have ended by itself meanwhile.
            let _ = kill(Pid::from_raw(pid), signal);
        }
    }

    /// The server's process, by way of `automator67 run-postgres`, in a process group of its own:
    /// Ctrl-C in a terminal goes to us alone. Must be called on the main thread.
    fn spawn(&self) -> Result<Child> {
        let failed = || format!("could not start {}", self.name);
        let own = std::env::current_exe().context("could not find this program")?;
        let log = OpenOptions::new()
            .create(true)
            .append(true)
            // It has statements in it.
            .mode(0o600)
            .open(&self.log)
            .with_context(|| format!("could not open {}", self.log.display()))?;
        log.set_permissions(Permissions::from_mode(0o600))
            .with_context(failed)?;
        let mut command = tokio::process::Command::new(own);
        command
            .arg("run-postgres")
            .args(["--parent", &std::process::id().to_string()]);
        if let Some(account) = &self.account {
            command
                .args(["--uid", &account.uid.to_string()])
                .args(["--gid", &account.gid.to_string()]);
        }
        command
            .arg(self.binaries.program("postgres"))
            .args(["--", "-D"])
            .arg(&self.data)
            .arg("-k")
            .arg(&self.sockets)
            .args(["-p", &self.port.to_string()])
            .args(["-c", &format!("cluster_name={}", self.name)])
            .args(["-c", "listen_addresses="])
            .args(["-c", "max_prepared_transactions=100"])
            .args(["-c", "max_connections=200"])
            .args(["-c", "shared_buffers=128MB"])
            .args(["-c", "logging_collector=off"])
            .current_dir(&self.sockets)
            .process_group(0)
            .stdin(Stdio::null())
            .stdout(log.try_clone().with_context(failed)?)
            .stderr(log);
        command.spawn().with_context(failed)
    }

    async fn ready(&self, child: &mut Child, password: &str) -> Result<Readiness> {
        let since = Instant::now();
        loop {
            if let Some(status) = child.try_wait()? {
                return Ok(Readiness::Ended(status));
            }
            match self.try_database(password).await {
                Ok(()) => return Ok(Readiness::Ready),
                Err(error) if is_starting(&error) => {}
                Err(error) => {
                    return Err(error).with_context(|| format!("{} refuses our login", self.name));
                }
            }
            ensure!(
                since.elapsed() < READY_TIMEOUT,
                "{} is not ready after {} s; see {}",
                self.name,
                READY_TIMEOUT.as_secs(),
                self.log.display()
            );
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    /// Connects, and makes the database if this is the first time.
    async fn try_database(&self, password: &str) -> Result<(), tokio_postgres::Error> {
        let mut config = tokio_postgres::Config::new();
        config
            .host_path(&self.sockets)
            .port(self.port)
            .user(USER)
            .password(password)
            .dbname("postgres")
            .connect_timeout(Duration::from_secs(5));
        let (client, connection) = config.connect(NoTls).await?;
        let connection = tokio::spawn(connection);
        let made = make_database(&client).await;
        drop(client);
        // The connection ends with its client; its own result says nothing more.
        let _ = connection.await;
        made
    }

    /// A program of Postgres, run as the account, where the account may be.
    fn command(&self, program: &str) -> Command {
        let mut command = Command::new(self.binaries.program(program));
        if let Some(account) = &self.account {
            account.apply(&mut command);
        }
        command.current_dir(&self.sockets);
        command
    }

    async fn run_with_input(&self, command: Command, input: &str) -> Result<()> {
        let program = command.get_program().to_string_lossy().into_owned();
        let failed = || format!("{}: could not run {program}", self.name);
        let mut child = tokio::process::Command::from(command)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .process_group(0)
            .kill_on_drop(true)
            .spawn()
            .with_context(failed)?;
        if let Some(mut stdin) = child.stdin.take() {
            // One that has ended before it read everything says why below.
            let _ = stdin.write_all(input.as_bytes()).await;
        }
        let output = child.wait_with_output().await.with_context(failed)?;
        let errors = String::from_utf8_lossy(&output.stderr);
        // A failed statement does not fail a single-user server.
        let refused = ["ERROR:", "FATAL:", "PANIC:"]
            .iter()
            .any(|level| errors.contains(level));
        ensure!(
            output.status.success() && !refused,
            "{}: {program} failed: {}",
            self.name,
            errors.trim()
        );
        Ok(())
    }

    fn log_since(&self, start: u64) -> String {
        let read = || -> std::io::Result<Vec<u8>> {
            let mut file = File::open(&self.log)?;
            let end = file.metadata()?.len();
            file.seek(SeekFrom::Start(
                start.max(end.saturating_sub(LOG_TAIL_BYTES)),
            ))?;
            let mut bytes = Vec::new();
            file.read_to_end(&mut bytes)?;
            Ok(bytes)
        };
        String::from_utf8_lossy(&read().unwrap_or_default()).into_owned()
    }
}

enum Readiness {
    Ready,
    Ended(std::process::ExitStatus),
}

/// No socket yet, or "the database system is starting up".
fn is_starting(error: &tokio_postgres::Error) -> bool {
    match error.code() {
        Some(code) => *code == SqlState::CANNOT_CONNECT_NOW,
        None => true,
    }
}

async fn make_database(client: &tokio_postgres::Client) -> Result<(), tokio_postgres::Error> {
    let known = client
        .query_opt("select 1 from pg_database where datname = $1", &[&DATABASE])
        .await?;
    if known.is_none() {
        client
            .batch_execute(&format!("create database {DATABASE}"))
            .await?;
    }
    Ok(())
}

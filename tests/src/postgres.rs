//! A plain Postgres cluster of our own: the expected answer to every statement.

use std::{
    fs,
    net::TcpListener,
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::Command,
    time::Duration,
};

use anyhow::{Context, Result, bail, ensure};
use nix::{sys::signal::Signal, unistd::Uid};
use tempfile::TempDir;

use crate::{
    process::{Account, Group, run_as},
    wait,
    wire::{Connection, Server},
};

/// The role that every test logs in as.
pub const USER: &str = "app";
/// Its password.
pub const PASSWORD: &str = "open sesame";
/// The database that every test uses.
pub const DATABASE: &str = "app";
const START_LIMIT: Duration = Duration::from_secs(60);

/// Every directory that holds `initdb`, `postgres` and `pg_ctl`: those of the system's packages, and
/// those that `scripts/setup` has fetched.
pub fn all_binaries() -> Result<Vec<PathBuf>> {
    let mut all: Vec<PathBuf> = installed()?.into_iter().map(|(_, one)| one).collect();
    for entry in fs::read_dir(fetched()?).into_iter().flatten() {
        all.push(entry?.path().join("bin"));
    }
    all.retain(|directory| is_complete(directory));
    if all.is_empty() {
        all.push(binaries()?);
    }
    Ok(all)
}

/// The directory that holds `initdb`, `postgres` and `pg_ctl`: of the major version that
/// `AUTOMATOR67_POSTGRES` names, else of the newest that Debian has installed, else on PATH.
pub fn binaries() -> Result<PathBuf> {
    if let Some(major) = std::env::var_os("AUTOMATOR67_POSTGRES") {
        return of_major(&major.to_string_lossy());
    }
    if let Some((_, newest)) = installed()?.into_iter().max() {
        return Ok(newest);
    }
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path)
        .find(|directory| is_complete(directory))
        .context("no Postgres binaries found: apt-get install postgresql")
}

/// Debian's, else what `scripts/setup` has fetched.
fn of_major(major: &str) -> Result<PathBuf> {
    let debian = installed()?.into_iter();
    let mut debian = debian.filter(|(number, _)| number.to_string() == major);
    if let Some((_, directory)) = debian.next() {
        return Ok(directory);
    }
    let fetched = fetched()?.join(major).join("bin");
    ensure!(
        is_complete(&fetched),
        "no Postgres {major} in {}: scripts/setup test, or scripts/setup soak",
        fetched.display()
    );
    Ok(fetched)
}

/// As in `scripts/setup`: the account that runs Postgres for root cannot enter root's home.
fn fetched() -> Result<PathBuf> {
    let folder = match Uid::effective().is_root() {
        true => PathBuf::from("/var/cache/automator67"),
        false => cache()?,
    };
    Ok(folder.join("postgresql"))
}

/// Where `scripts/setup` keeps what it installs for tests.
pub fn cache() -> Result<PathBuf> {
    if let Some(path) = std::env::var_os("AUTOMATOR67_CACHE") {
        return Ok(path.into());
    }
    let home = std::env::var_os("HOME").context("HOME is not set")?;
    Ok(PathBuf::from(home).join(".cache/automator67"))
}

/// Major versions and directories below Debian's.
fn installed() -> Result<Vec<(u32, PathBuf)>> {
    let mut found: Vec<(u32, PathBuf)> = Vec::new();
    for entry in fs::read_dir("/usr/lib/postgresql").into_iter().flatten() {
        let version = entry?.path();
        let number = version
            .file_name()
            .and_then(|name| name.to_str()?.parse().ok());
        if let Some(number) = number
            && is_complete(&version.join("bin"))
        {
            found.push((number, version.join("bin")));
        }
    }
    Ok(found)
}

fn is_complete(directory: &Path) -> bool {
    ["initdb", "postgres", "pg_ctl"]
        .iter()
        .all(|name| directory.join(name).exists())
}

/// A port that was free a moment ago.
pub fn free_port() -> Result<u16> {
    Ok(TcpListener::bind("127.0.0.1:0")?.local_addr()?.port())
}

/// A directory under the system's temporary one, short enough for sockets, that other accounts
/// may enter.
pub fn directory() -> Result<TempDir> {
    let directory = tempfile::Builder::new().prefix("a67").tempdir_in("/tmp")?;
    fs::set_permissions(directory.path(), fs::Permissions::from_mode(0o755))?;
    Ok(directory)
}

/// One running server; it stops, and its files go, when this is dropped.
#[derive(Debug)]
pub struct Plain {
    /// How to reach it.
    pub server: Server,
    // Dropped first: the server stops before its directory goes.
    group: Group,
    directory: TempDir,
    binaries: PathBuf,
    settings: Vec<String>,
}

impl Plain {
    /// Makes a cluster with the role, password and database that `automator67 dev` has as well.
    pub fn start() -> Result<Plain> {
        Plain::of(&binaries()?, &[])
    }

    /// The same by the programs of one directory, with further settings, like `name=value`.
    pub fn of(binaries: &Path, settings: &[&str]) -> Result<Plain> {
        let settings: Vec<String> = settings.iter().map(|it| (*it).to_owned()).collect();
        let directory = directory()?;
        let account = Account::for_postgres()?;
        if let Some(account) = account {
            account.own(directory.path())?;
        }
        let data = directory.path().join("data");
        make_cluster(binaries, directory.path(), &data, account)?;
        let port = free_port()?;
        let group = start_server(binaries, directory.path(), &settings, port, account)?;
        let server = Server::tcp(port, USER, PASSWORD, "postgres");
        let mut plain = Plain {
            server,
            group,
            directory,
            binaries: binaries.to_owned(),
            settings,
        };
        plain.make_database()?;
        Ok(plain)
    }

    /// Where its files are.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Kills every process of the server at once.
    pub fn kill(&mut self) -> Result<()> {
        self.group.signal_all(Signal::SIGKILL)?;
        self.group.wait(Duration::from_secs(10))?;
        Ok(())
    }

    /// Ends it with a signal, as `pg_ctl stop` does.
    pub fn stop(&mut self, signal: Signal) -> Result<()> {
        self.group.signal(signal)?;
        self.group.wait(START_LIMIT)?;
        Ok(())
    }

    /// Starts it again on the same data and port, and waits until it answers.
    pub fn start_again(&mut self) -> Result<()> {
        let directory = self.directory.path();
        let account = Account::for_postgres()?;
        let port = self.server.port()?;
        self.group = start_server(&self.binaries, directory, &self.settings, port, account)?;
        self.wait()?;
        Ok(())
    }

    /// The process ids of the postmaster and its children.
    pub fn processes(&self) -> Result<Vec<i32>> {
        let postmaster = i32::try_from(self.group.id())?;
        let path = format!("/proc/{postmaster}/task/{postmaster}/children");
        let children = fs::read_to_string(&path).with_context(|| path)?;
        let children = children.split_whitespace().map(str::parse);
        let mut all = vec![postmaster];
        for child in children {
            all.push(child?);
        }
        Ok(all)
    }

    fn wait(&self) -> Result<Connection> {
        wait::until("Postgres to start", START_LIMIT, || {
            Connection::open(&self.server).ok()
        })
        .with_context(|| self.group.log())
    }

    fn make_database(&mut self) -> Result<()> {
        let mut connection = self.wait()?;
        connection.execute(&format!("create database {DATABASE}"))?;
        self.server.database = DATABASE.to_owned();
        Ok(())
    }
}

/// A program of a directory, with the libraries that came with it.
fn program(binaries: &Path, name: &str) -> Command {
    let mut command = Command::new(binaries.join(name));
    let libraries = binaries.with_file_name("lib");
    if libraries.join("libpq.so.5").exists() {
        command.env("LD_LIBRARY_PATH", libraries);
    }
    command
}

fn make_cluster(
    binaries: &Path,
    directory: &Path,
    data: &Path,
    account: Option<Account>,
) -> Result<()> {
    let password = directory.join("password");
    fs::write(&password, PASSWORD)?;
    if let Some(account) = account {
        account.own(&password)?;
    }
    let mut command = program(binaries, "initdb");
    command
        .current_dir(directory)
        .arg("-D")
        .arg(data)
        .args(["-U", USER, "-A", "scram-sha-256", "-E", "UTF8"])
        .args(["--locale=C.UTF-8", "--no-sync"])
        .arg(format!("--pwfile={}", password.display()));
    run_as(&mut command, account);
    let output = command.output().context("run initdb")?;
    ensure!(
        output.status.success(),
        "initdb failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(())
}

fn start_server(
    binaries: &Path,
    directory: &Path,
    settings: &[String],
    port: u16,
    account: Option<Account>,
) -> Result<Group> {
    let mut command = program(binaries, "postgres");
    command
        .current_dir(directory)
        .arg("-D")
        .arg(directory.join("data"))
        .args(["-p", &port.to_string(), "-k"])
        .arg(directory)
        .args(["-c", "listen_addresses=127.0.0.1", "-c", "fsync=off"])
        .args(["-c", "max_prepared_transactions=100"]);
    for setting in settings {
        command.args(["-c", setting]);
    }
    run_as(&mut command, account);
    Group::start(&mut command, &directory.join("log"))
}

/// Runs a client program of Postgres (`psql`, `pgbench`) against `server`; returns its output.
pub fn client(server: &Server, program: &str, arguments: &[&str]) -> Result<String> {
    let mut command = Command::new(binaries()?.join(program));
    command.args(arguments).env("PGCONNECT_TIMEOUT", "10");
    for (name, value) in server.environment() {
        command.env(name, value);
    }
    let output = command.output().with_context(|| format!("run {program}"))?;
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    if !output.status.success() {
        bail!(
            "{program} {arguments:?} failed: {}{text}",
            String::from_utf8_lossy(&output.stderr)
        );
    }
    Ok(text)
}

//! The servers under measurement: Postgres clusters, the proxy, its peer.

use std::{
    fs,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use nix::{
    sys::signal::{Signal, kill},
    unistd::{Pid, User, chown, geteuid},
};

/// Role, database and password everywhere.
pub const USER: &str = "app";
/// The password.
pub const PASSWORD: &str = "bench";

/// A child that is stopped when dropped.
pub struct Server {
    child: Child,
    signal: Signal,
    /// TCP port on 127.0.0.1.
    pub port: u16,
}

impl Server {
    /// Microseconds of processor time so far, user and system, all threads.
    pub fn cpu_microseconds(&self) -> Result<u64> {
        let stat = fs::read_to_string(format!("/proc/{}/stat", self.child.id()))?;
        let after_name = stat
            .rsplit_once(')')
            .context("no name in /proc/pid/stat")?
            .1;
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks: u64 = fields[11].parse::<u64>()? + fields[12].parse::<u64>()?;
        // USER_HZ is 100 on every Linux we run on.
        Ok(ticks * 10_000)
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status
            .lines()
            .find(|line| line.starts_with("VmRSS:"))
            .context("no VmRSS")?;
        let kilobytes: u64 = line
            .split_whitespace()
            .nth(1)
            .context("no number")?
            .parse()?;
        Ok(kilobytes * 1024)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let pid = Pid::from_raw(self.child.id() as i32);
        let _ = kill(pid, self.signal);
        let _ = self.child.wait();
    }
}

/// The newest Postgres of the usual places.
pub fn postgres_bin() -> Result<PathBuf> {
    let mut found: Vec<PathBuf> = fs::read_dir("/usr/lib/postgresql")
        .context("no Postgres below /usr/lib/postgresql: apt-get install postgresql")?
        .flatten()
        .map(|entry| entry.path().join("bin"))
        .filter(|path| path.join("initdb").exists())
        .collect();
    found.sort();
    found
        .pop()
        .context("no Postgres below /usr/lib/postgresql: apt-get install postgresql")
}

/// Makes a command run as an account that Postgres accepts.
pub fn unprivileged(command: &mut Command) -> Result<&mut Command> {
    if geteuid().is_root() {
        let account = User::from_name("postgres")?.context("no account postgres")?;
        command.uid(account.uid.as_raw()).gid(account.gid.as_raw());
    }
    Ok(command)
}

/// Gives a path to that account.
pub fn hand_over(path: &Path) -> Result<()> {
    if geteuid().is_root() {
        let account = User::from_name("postgres")?.context("no account postgres")?;
        chown(path, Some(account.uid), Some(account.gid))?;
    }
    Ok(())
}

fn run(command: &mut Command) -> Result<()> {
    let output = command.stdin(Stdio::null()).output()?;
    if !output.status.success() {
        bail!("{command:?}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(())
}

/// A free TCP port.
pub fn free_port() -> Result<u16> {
    Ok(std::net::TcpListener::bind("127.0.0.1:0")?
        .local_addr()?
        .port())
}

/// Initialises and starts a cluster with default settings, reachable by TCP and by a socket in
/// `directory`.
pub fn postgres(bin: &Path, directory: &Path, name: &str) -> Result<Server> {
    let data = directory.join(name);
    let password_file = directory.join("password");
    fs::write(&password_file, PASSWORD)?;
    hand_over(directory)?;
    hand_over(&password_file)?;
    let mut initdb = Command::new(bin.join("initdb"));
    initdb
        .args([
            "-U",
            USER,
            "-A",
            "scram-sha-256",
            "--locale=C.UTF-8",
            "-E",
            "UTF8",
            "-D",
        ])
        .arg(&data)
        .arg(format!("--pwfile={}", password_file.display()))
        .current_dir(directory);
    run(unprivileged(&mut initdb)?)?;
    let port = free_port()?;
    let mut postgres = Command::new(bin.join("postgres"));
    postgres
        .arg("-D")
        .arg(&data)
        .args(["-p", &port.to_string(), "-k"])
        .arg(directory)
        .args([
            "-c",
            "listen_addresses=127.0.0.1",
            "-c",
            "max_connections=200",
        ])
        .args([
            "-c",
            "max_prepared_transactions=100",
            "-c",
            "logging_collector=off",
        ])
        .current_dir(directory)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(directory.join(format!("{name}.log")))?);
    let child = unprivileged(&mut postgres)?.spawn()?;
    let server = Server {
        child,
        signal: Signal::SIGINT,
        port,
    };
    wait_for(
        || psql(bin, port, "postgres", "select 1").is_ok(),
        "a Postgres cluster",
    )?;
    psql(bin, port, "postgres", &format!("create database {USER}"))?;
    Ok(server)
}

/// PgBouncer in transaction mode before one cluster.
pub fn pgbouncer(directory: &Path, cluster: &Server) -> Result<Server> {
    let port = free_port()?;
    let users = directory.join("pgbouncer.users");
    fs::write(&users, format!("\"{USER}\" \"{PASSWORD}\"\n"))?;
    let config = directory.join("pgbouncer.ini");
    fs::write(
        &config,
        format!(
            "[databases]\n{USER} = host={} port={} dbname={USER} user={USER} password={PASSWORD}\n\
             [pgbouncer]\nlisten_addr = 127.0.0.1\nlisten_port = {port}\nunix_socket_dir =\n\
             auth_type = scram-sha-256\nauth_file = {}\npool_mode = transaction\n\
             default_pool_size = 20\nmax_client_conn = 10000\n\
             ignore_startup_parameters = options\n",
            directory.display(),
            cluster.port,
            users.display()
        ),
    )?;
    hand_over(&users)?;
    hand_over(&config)?;
    let mut command = Command::new("pgbouncer");
    command
        .arg("-q")
        .arg(&config)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    let child = unprivileged(&mut command)?
        .spawn()
        .context("pgbouncer does not start: apt-get install pgbouncer")?;
    let server = Server {
        child,
        signal: Signal::SIGINT,
        port,
    };
    wait_for(
        || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
        "pgbouncer",
    )?;
    Ok(server)
}

/// The proxy before some clusters, with the same number of server connections as the peer.
pub fn automator67(binary: &Path, directory: &Path, clusters: &[&Server]) -> Result<Server> {
    let port = free_port()?;
    let mut config = format!(
        "[sql]\nlisten = \"127.0.0.1:{port}\"\ndatabase = \"{USER}\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n"
    );
    let socket = directory.display().to_string().replace('/', "%2F");
    for (number, cluster) in (1..).zip(clusters) {
        config.push_str(&format!(
            "[[shards]]\nname = \"shard{number}\"\n\
             url = \"postgres://{USER}:{PASSWORD}@{socket}:{}/{USER}\"\npool_size = 20\n",
            cluster.port
        ));
    }
    let path = directory.join(format!("automator67-{port}.toml"));
    fs::write(&path, config)?;
    let child = Command::new(binary)
        .args(["serve", "--config"])
        .arg(&path)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(
            directory.join(format!("automator67-{port}.log")),
        )?)
        .process_group(0)
        .spawn()
        .with_context(|| format!("{} does not start", binary.display()))?;
    let server = Server {
        child,
        signal: Signal::SIGTERM,
        port,
    };
    wait_for(
        || std::net::TcpStream::connect(("127.0.0.1", port)).is_ok(),
        "automator67",
    )?;
    Ok(server)
}

/// Runs statements; an error ends the run.
pub fn psql(bin: &Path, port: u16, database: &str, text: &str) -> Result<String> {
    let output = Command::new(bin.join("psql"))
        .env("PGPASSWORD", PASSWORD)
        .args([
            "-X",
            "-q",
            "-A",
            "-t",
            "-v",
            "ON_ERROR_STOP=1",
            "-h",
            "127.0.0.1",
            "-U",
            USER,
        ])
        .args(["-p", &port.to_string(), "-d", database, "-c", text])
        .stdin(Stdio::null())
        .output()?;
    if !output.status.success() {
        bail!("{text}: {}", String::from_utf8_lossy(&output.stderr));
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}

fn wait_for(ready: impl Fn() -> bool, what: &str) -> Result<()> {
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(60) {
        if ready() {
            return Ok(());
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    bail!("{what} did not become ready")
}

//! The servers under measurement: Postgres clusters, the proxy, its peer.

use std::{
    collections::BTreeMap,
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::TcpStream,
    os::unix::process::CommandExt,
    path::{Path, PathBuf},
    process::{Child, ChildStdout, Command, Stdio},
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
    /// Microseconds of processor time so far, user and system, all threads. The scheduler counts
    /// them exactly; the ticks of `/proc/pid/stat` are too coarse for statements that mostly wait.
    pub fn cpu_microseconds(&self) -> Result<u64> {
        let mut nanoseconds = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let counted = fs::read_to_string(thread?.path().join("schedstat"))?;
            let ran = counted.split_whitespace().next();
            nanoseconds += ran.context("an empty schedstat")?.parse::<u64>()?;
        }
        Ok(nanoseconds / 1000)
    }

    /// Resident memory in bytes.
    pub fn resident_bytes(&self) -> Result<u64> {
        memory(&self.child.id().to_string(), "VmRSS:")
    }

    /// The most resident memory there ever was, in bytes.
    pub fn peak_resident_bytes(&self) -> Result<u64> {
        memory(&self.child.id().to_string(), "VmHWM:")
    }

    /// From now on [`Server::peak_resident_bytes`] is the most from now on (proc(5), `clear_refs`).
    pub fn forget_peak(&self) -> Result<()> {
        let path = format!("/proc/{}/clear_refs", self.child.id());
        fs::write(&path, "5").with_context(|| path)
    }
}

/// The most resident memory this program ever had, in bytes.
pub fn own_peak_resident_bytes() -> Result<u64> {
    memory("self", "VmHWM:")
}

fn memory(process: &str, name: &str) -> Result<u64> {
    let status = fs::read_to_string(format!("/proc/{process}/status"))?;
    let line = status
        .lines()
        .find(|line| line.starts_with(name))
        .with_context(|| format!("no {name}"))?;
    let kilobytes: u64 = line
        .split_whitespace()
        .nth(1)
        .context("no number")?
        .parse()?;
    Ok(kilobytes * 1024)
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
pub fn automator67(
    binary: &Path,
    directory: &Path,
    database: &str,
    clusters: &[&Server],
) -> Result<Server> {
    automator67_with(binary, directory, database, clusters, &[])
}

/// The same, with arguments of its own.
pub fn automator67_with(
    binary: &Path,
    directory: &Path,
    database: &str,
    clusters: &[&Server],
    arguments: &[&str],
) -> Result<Server> {
    let port = free_port()?;
    let mut config = format!(
        "[sql]\nlisten = \"127.0.0.1:{port}\"\ndatabase = \"{database}\"\n\
         [http]\nlisten = \"127.0.0.1:0\"\n\
         [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n"
    );
    let socket = directory.display().to_string().replace('/', "%2F");
    for (number, cluster) in (1..).zip(clusters) {
        config.push_str(&format!(
            "[[shards]]\nname = \"shard{number}\"\n\
             url = \"postgres://{USER}:{PASSWORD}@{socket}:{}/{database}\"\npool_size = 20\n",
            cluster.port
        ));
    }
    let path = directory.join(format!("automator67-{port}.toml"));
    fs::write(&path, config)?;
    let log = directory.join(format!("automator67-{port}.log"));
    let child = Command::new(binary)
        .args(["serve", "--config"])
        .arg(&path)
        .args(arguments)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(fs::File::create(&log)?)
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
    )
    .with_context(|| fs::read_to_string(&log).unwrap_or_default())?;
    Ok(server)
}

/// `automator67 dev`: the proxy and the shards it started.
pub struct Dev {
    /// The proxy.
    pub server: Server,
    /// Host and port of `/metrics`.
    http: String,
    /// How each shard is reached directly, the home shard first.
    pub shards: Vec<String>,
    /// Held open: the program may say more.
    _stdout: BufReader<ChildStdout>,
}

impl Dev {
    /// Starts it on an empty directory below `directory`, which Postgres' account can enter.
    pub fn start(binary: &Path, directory: &Path, shards: usize) -> Result<Dev> {
        hand_over(directory)?;
        let log = directory.join("dev.log");
        let mut child = Command::new(binary)
            .args(["dev", "--json", "--shards", &shards.to_string()])
            .arg("--data-dir")
            .arg(directory.join("dev"))
            .args(["--sql", "127.0.0.1:0", "--http", "127.0.0.1:0"])
            .args(["--password", PASSWORD])
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(fs::File::create(&log)?)
            .process_group(0)
            .spawn()
            .with_context(|| format!("{} does not start", binary.display()))?;
        let stdout = child.stdout.take();
        let mut server = Server {
            child,
            signal: Signal::SIGTERM,
            port: 0,
        };
        let mut stdout = BufReader::new(stdout.context("no standard output")?);
        let mut line = String::new();
        stdout.read_line(&mut line)?;
        let state: serde_json::Value = serde_json::from_str(&line).with_context(|| {
            let log = fs::read_to_string(&log).unwrap_or_default();
            format!("automator67 dev did not become ready: {line}{log}")
        })?;
        let text = |name: &str| state[name].as_str().with_context(|| format!("no {name}"));
        server.port = port_of(text("sql")?)?;
        let http = text("http")?.trim_start_matches("http://").to_owned();
        let shards = state["shards"].as_array().context("no shards")?;
        let shards = shards
            .iter()
            .map(|shard| {
                let host = shard["socket_directory"].as_str();
                let host = host.context("no socket directory")?;
                let port = shard["port"].as_u64().context("no port")?;
                Ok(login(host, port))
            })
            .collect::<Result<_>>()?;
        Ok(Dev {
            server,
            http,
            shards,
            _stdout: stdout,
        })
    }

    /// All counters, by what lies between `automator67_` and `_total` in their names; the values of
    /// all labels added up.
    pub fn counters(&self) -> Result<BTreeMap<String, u64>> {
        let mut counters = BTreeMap::new();
        for (name, _, value) in self.metrics()? {
            *counters.entry(name).or_default() += value;
        }
        Ok(counters)
    }

    /// How many SELECTs ran in each tier.
    pub fn selects(&self) -> Result<BTreeMap<String, u64>> {
        let mut tiers = BTreeMap::new();
        for (name, labels, value) in self.metrics()? {
            if name != "statements" || !labels.contains("kind=\"select\"") {
                continue;
            }
            let tier = labels.split("tier=\"").nth(1);
            if let Some(tier) = tier.and_then(|rest| rest.split('"').next()) {
                *tiers.entry(tier.to_owned()).or_default() += value;
            }
        }
        Ok(tiers)
    }

    /// Counters with their labels as they are written.
    fn metrics(&self) -> Result<Vec<(String, String, u64)>> {
        let mut stream = TcpStream::connect(&self.http)?;
        let request = "GET /metrics HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n";
        stream.write_all(request.as_bytes())?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        let mut counters = Vec::new();
        for line in answer.lines() {
            let Some((name, value)) = line.rsplit_once(' ') else {
                continue;
            };
            let (name, labels) = name.split_once('{').unwrap_or((name, ""));
            let short = name
                .strip_prefix("automator67_")
                .and_then(|rest| rest.strip_suffix("_total"));
            if let (Some(short), Ok(value)) = (short, value.parse::<f64>()) {
                counters.push((short.to_owned(), labels.to_owned(), value as u64));
            }
        }
        Ok(counters)
    }

    /// The counters of bytes. Whatever has that word in its name is one.
    pub fn byte_counters(&self) -> Result<BTreeMap<String, u64>> {
        let mut counters = self.counters()?;
        counters.retain(|name, _| name.split('_').any(|word| word == "bytes"));
        Ok(counters)
    }
}

/// What the driver needs to log in.
pub fn login(host: &str, port: impl std::fmt::Display) -> String {
    format!("host={host} port={port} user={USER} password={PASSWORD} dbname={USER}")
}

/// Logs in. The connection ends with its client.
pub async fn connect(login: &str) -> Result<tokio_postgres::Client> {
    let connected = tokio_postgres::connect(login, tokio_postgres::NoTls).await;
    let (client, connection) = connected.context("could not log in")?;
    tokio::spawn(connection);
    Ok(client)
}

fn port_of(url: &str) -> Result<u16> {
    let address = url.rsplit_once('@').map_or(url, |(_, rest)| rest);
    let address = address.split('/').next().unwrap_or(address);
    let port = address.rsplit_once(':').context("no port")?.1;
    Ok(port.parse()?)
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

//! Builds and runs the program under test.

use std::{
    fs::Permissions,
    io::{BufRead, BufReader},
    os::unix::fs::PermissionsExt,
    path::{Path, PathBuf},
    process::{Command, Stdio},
    sync::{OnceLock, mpsc},
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use serde_json::Value;
use tempfile::TempDir;

use crate::{
    postgres::{self, DATABASE, PASSWORD, USER},
    process::Group,
    wire::{Connection, Host, Server},
};

const START_LIMIT: Duration = Duration::from_secs(120);

/// The program under test: `AUTOMATOR67_BIN`, or what cargo builds now beside this test.
pub fn binary() -> Result<PathBuf> {
    static BINARY: OnceLock<std::result::Result<PathBuf, String>> = OnceLock::new();
    BINARY
        .get_or_init(|| match std::env::var_os("AUTOMATOR67_BIN") {
            Some(path) => Ok(path.into()),
            None => build().map_err(|error| format!("{error:#}")),
        })
        .clone()
        .map_err(anyhow::Error::msg)
}

fn build() -> Result<PathBuf> {
    let test = std::env::current_exe()?;
    let profile = test
        .parent()
        .and_then(Path::parent)
        .context("the test binary does not lie in target/<profile>/deps")?;
    let target = profile.parent().context("target/<profile>")?;
    let mut command = Command::new(std::env::var_os("CARGO").unwrap_or_else(|| "cargo".into()));
    command
        .args(["build", "--quiet", "--package", "automator67"])
        .args([
            "--bin",
            "automator67",
            "--features",
            "failpoints",
            "--target-dir",
        ])
        .arg(target);
    if profile.ends_with("release") {
        command.arg("--release");
    }
    let output = command.output().context("run cargo build")?;
    ensure!(
        output.status.success(),
        "cargo build failed: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(profile.join("automator67"))
}

/// A running `automator67 dev` or `automator67 serve`.
#[derive(Debug)]
pub struct Automator {
    /// Where clients connect.
    pub server: Server,
    /// The base URL of the HTTP port.
    pub http: String,
    /// The shards that `dev` started, reached directly.
    pub shards: Vec<Shard>,
    /// The process and all it started.
    pub group: Group,
}

/// `automator67 dev` with a data directory of its own.
#[derive(Debug)]
pub struct Dev {
    /// The process.
    pub automator: Automator,
    shards: usize,
    directory: TempDir,
}

impl Dev {
    /// Starts it on an empty directory with `shards` shards.
    pub fn start(shards: usize) -> Result<Dev> {
        let directory = postgres::directory()?;
        let automator = start_dev(directory.path(), shards)?;
        Ok(Dev {
            automator,
            shards,
            directory,
        })
    }

    /// Kills the whole process group at once, and starts again on the same directory.
    pub fn kill_and_start(self) -> Result<Dev> {
        self.kill_and_replace(|_| Ok(()))
    }

    /// The same, with a change to the data directory in between.
    pub fn kill_and_replace(self, change: impl FnOnce(&Path) -> Result<()>) -> Result<Dev> {
        let mut dev = self;
        dev.automator.group.signal_all(Signal::SIGKILL)?;
        dev.automator.group.wait(Duration::from_secs(10))?;
        change(&dev.directory.path().join("dev"))?;
        dev.start_again()
    }

    /// Stops it with `signal` and starts it again; the exit code must be 0.
    pub fn stop_and_start(self, signal: Signal) -> Result<Dev> {
        let mut dev = self;
        dev.automator.group.signal(signal)?;
        let code = dev.automator.group.wait(Duration::from_secs(30))?;
        ensure!(code == Some(0), "exit code {code:?} after {signal}");
        dev.start_again()
    }

    fn start_again(self) -> Result<Dev> {
        let automator = start_dev(self.directory.path(), self.shards)?;
        Ok(Dev {
            automator,
            shards: self.shards,
            directory: self.directory,
        })
    }

    /// The server under test.
    pub fn server(&self) -> &Server {
        &self.automator.server
    }

    /// The data directory's parent, for further files.
    pub fn directory(&self) -> &Path {
        self.directory.path()
    }

    /// Another proxy on the same shards, with further lines of configuration.
    pub fn second_proxy(&self, name: &str, more: &str) -> Result<Automator> {
        let mut text = format!(
            "[sql]\nlisten = \"127.0.0.1:0\"\nshard_connect_timeout_ms = 30000\n\
             [http]\nlisten = \"127.0.0.1:0\"\n\
             [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n{more}"
        );
        for shard in self.shards() {
            let (name, url) = (&shard.name, shard.server.url()?);
            text += &format!("[[shards]]\nname = \"{name}\"\nurl = \"{url}\"\n");
        }
        let file = self.directory().join(format!("{name}.toml"));
        std::fs::write(&file, text)?;
        serve(&file)
    }

    /// Logs in.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(self.server()).with_context(|| self.automator.group.log())
    }

    /// The shards behind the proxy, the home shard first.
    pub fn shards(&self) -> &[Shard] {
        &self.automator.shards
    }
}

/// A shard of [`Dev`].
#[derive(Debug, Clone)]
pub struct Shard {
    /// Its name in messages.
    pub name: String,
    /// How to reach it without the proxy.
    pub server: Server,
}

impl Shard {
    /// The process id of its postmaster.
    pub fn postmaster(&self) -> Result<i32> {
        let mut connection = Connection::open(&self.server)?;
        let directory = connection
            .execute("show data_directory")?
            .context("no data directory")?;
        let file = std::fs::read_to_string(Path::new(&directory).join("postmaster.pid"))?;
        let line = file.lines().next().context("empty postmaster.pid")?;
        Ok(line.trim().parse()?)
    }
}

fn shard(value: &Value) -> Result<Shard> {
    let directory = value["socket_directory"]
        .as_str()
        .context("socket_directory")?;
    let port = value["port"].as_u64().context("port")?;
    let port = u16::try_from(port)?;
    let mut server = Server::tcp(port, USER, PASSWORD, DATABASE);
    server.host = Host::Unix(directory.into(), port);
    Ok(Shard {
        name: value["name"].as_str().context("name")?.to_owned(),
        server,
    })
}

fn start_dev(directory: &Path, shards: usize) -> Result<Automator> {
    let mut command = Command::new(binary()?);
    command
        .args(["dev", "--json", "--shards", &shards.to_string()])
        .arg("--data-dir")
        .arg(directory.join("dev"))
        .args(["--sql", "127.0.0.1:0", "--http", "127.0.0.1:0"])
        .args(["--password", PASSWORD])
        .arg("--postgres-bin")
        .arg(postgres::binaries()?);
    start(command, &directory.join("dev.log"))
}

/// Starts `automator67 serve --config FILE`; the file holds passwords and is closed to others.
pub fn serve(config: &Path) -> Result<Automator> {
    std::fs::set_permissions(config, Permissions::from_mode(0o600))?;
    let mut command = Command::new(binary()?);
    command.args(["serve", "--json", "--config"]).arg(config);
    start(command, &config.with_extension("log"))
}

fn start(mut command: Command, log: &Path) -> Result<Automator> {
    command.stdout(Stdio::piped()).env("NO_COLOR", "1");
    let mut group = Group::start(&mut command, log)?;
    let output = group.child().stdout.take().context("no stdout")?;
    let (sender, receiver) = mpsc::channel();
    // Reads to the end, so that the child never blocks on a full pipe.
    std::thread::spawn(move || {
        for line in BufReader::new(output).lines().map_while(Result::ok) {
            if let Ok(value) = serde_json::from_str::<Value>(&line)
                && value.get("sql").is_some()
            {
                let _ = sender.send(value);
            }
        }
    });
    let urls = receiver
        .recv_timeout(START_LIMIT)
        .with_context(|| format!("automator67 did not start: {}", group.log()))?;
    let sql = urls["sql"].as_str().context("no sql URL")?;
    let http = urls["http"].as_str().unwrap_or_default().to_owned();
    let shards = urls["shards"].as_array().into_iter().flatten();
    let shards = shards.map(shard).collect::<Result<_>>()?;
    Ok(Automator {
        server: Server::tcp(port_of(sql)?, USER, PASSWORD, DATABASE),
        http,
        shards,
        group,
    })
}

/// The port in `scheme://user:password@host:port/path` or `host:port`.
pub fn port_of(url: &str) -> Result<u16> {
    let authority = url.split_once("://").map_or(url, |(_, rest)| rest);
    let authority = authority.split(['/', '?']).next().unwrap_or(authority);
    let (_, port) = authority.rsplit_once(':').context("no port in the URL")?;
    Ok(port.parse()?)
}

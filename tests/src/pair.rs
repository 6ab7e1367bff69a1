//! Two proxies on the same shards, and the faults that a test gives them.
//!
//! The shards are plain clusters of the test's own, so that it can kill a postmaster and start
//! it again; each proxy keeps its port over a restart, so that clients find it again.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
    time::{Duration, Instant, SystemTime, UNIX_EPOCH},
};

use anyhow::{Context, Result, ensure};
use nix::sys::signal::Signal;
use tempfile::TempDir;

use crate::{
    automator::{self, Automator},
    postgres::{self, DATABASE, PASSWORD, Plain, USER},
    wait,
    wire::{Connection, Server},
};

/// How long a prepared transaction may outlive the fault that left it.
pub const RESOLVE_LIMIT: Duration = Duration::from_secs(10);
const END_LIMIT: Duration = Duration::from_secs(20);

/// A prepared transaction found on a shard.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Prepared {
    /// The shard's name.
    pub shard: String,
    /// Its global identifier.
    pub gid: String,
    /// When it was prepared, in the shard's words.
    pub since: String,
}

/// One of the two proxies: its port stays the same over restarts.
#[derive(Debug)]
pub struct Proxy {
    /// Where clients connect, also while it is down.
    pub server: Server,
    file: PathBuf,
    running: Option<Automator>,
}

impl Proxy {
    fn start(directory: &Path, name: &str, shards: &[Plain]) -> Result<Proxy> {
        let port = postgres::free_port()?;
        let mut text = format!(
            "[sql]\nlisten = \"127.0.0.1:{port}\"\nshard_connect_timeout_ms = 10000\n[http]\nlisten = \"127.0.0.1:0\"\n\
             [[users]]\nname = \"{USER}\"\npassword = \"{PASSWORD}\"\n"
        );
        for (number, shard) in shards.iter().enumerate() {
            let (name, url) = (shard_name(number), shard.server.url()?);
            text += &format!("[[shards]]\nname = \"{name}\"\nurl = \"{url}\"\n");
        }
        let file = directory.join(format!("{name}.toml"));
        fs::write(&file, text)?;
        let mut proxy = Proxy {
            server: Server::tcp(port, USER, PASSWORD, DATABASE),
            file,
            running: None,
        };
        proxy.start_again()?;
        Ok(proxy)
    }

    /// Starts it on the same port; it must not run.
    pub fn start_again(&mut self) -> Result<()> {
        self.running = None;
        self.running = Some(automator::serve(&self.file)?);
        Ok(())
    }

    /// Kills it at once.
    pub fn kill(&mut self) -> Result<()> {
        let running = self.running.as_mut().context("the proxy does not run")?;
        running.group.signal_all(Signal::SIGKILL)?;
        running.group.wait(END_LIMIT)?;
        self.running = None;
        Ok(())
    }

    /// True when it was started and its process has ended since.
    pub fn ended(&mut self) -> bool {
        self.running
            .as_mut()
            .is_none_or(|running| running.group.ended())
    }

    /// What it wrote to stderr since its last start.
    pub fn log(&self) -> String {
        fs::read_to_string(self.file.with_extension("log")).unwrap_or_default()
    }

    /// The last lines of its log.
    pub fn log_end(&self) -> String {
        let log = self.log();
        let lines: Vec<_> = log.lines().collect();
        lines[lines.len().saturating_sub(15)..].join("\n")
    }

    /// Logs in.
    pub fn connect(&self) -> Result<Connection> {
        Connection::open(&self.server)
    }

    /// Arms one failpoint of the whole process: `NAME=ACTION`, or `off` for all.
    pub fn arm(&self, failpoint: &str) -> Result<()> {
        let text = format!("set automator67.failpoint = '{failpoint}'");
        self.connect()?
            .execute(&text)
            .context("arm a failpoint (is the program built with the feature `failpoints`?)")?;
        Ok(())
    }
}

fn shard_name(number: usize) -> String {
    format!("s{number}")
}

/// The shards and the two proxies before them.
#[derive(Debug)]
pub struct Pair {
    /// The proxy that gets the faults.
    pub a: Proxy,
    /// The proxy that goes on.
    pub b: Proxy,
    shards: Vec<Plain>,
    data: Vec<PathBuf>,
    _directory: TempDir,
}

impl Pair {
    /// Starts `shards` empty clusters, then the proxies.
    pub fn start(shards: usize) -> Result<Pair> {
        let shards = std::thread::scope(|scope| {
            let starts: Vec<_> = (0..shards).map(|_| scope.spawn(Plain::start)).collect();
            let starts = starts.into_iter();
            starts
                .map(|start| start.join().expect("no panic"))
                .collect::<Result<Vec<_>>>()
        })?;
        let mut data = Vec::new();
        for shard in &shards {
            let found = Connection::open(&shard.server)?.execute("show data_directory")?;
            data.push(PathBuf::from(found.context("no data directory")?));
        }
        let directory = postgres::directory()?;
        let a = Proxy::start(directory.path(), "a", &shards)?;
        let b = Proxy::start(directory.path(), "b", &shards)?;
        Ok(Pair {
            a,
            b,
            shards,
            data,
            _directory: directory,
        })
    }

    /// How many shards there are.
    pub fn shard_count(&self) -> usize {
        self.shards.len()
    }

    /// A shard's name in configuration and messages.
    pub fn shard_name(&self, shard: usize) -> String {
        shard_name(shard)
    }

    /// Where a shard is reached without a proxy.
    pub fn shard(&self, shard: usize) -> &Server {
        &self.shards[shard].server
    }

    /// The process id of a shard's postmaster, to be killed.
    pub fn postmaster(&self, shard: usize) -> Result<i32> {
        let processes = self.shards[shard].processes()?;
        processes.first().copied().context("no postmaster")
    }

    /// True when a shard's postmaster has died.
    pub fn shard_ended(&self, shard: usize) -> bool {
        // A zombie is dead; `children` of a dead process cannot be read.
        self.postmaster(shard).is_ok_and(|id| {
            let status = fs::read_to_string(format!("/proc/{id}/stat")).unwrap_or_default();
            let state = status.rsplit(')').next().unwrap_or_default();
            state.trim_start().starts_with('Z') || state.is_empty()
        })
    }

    /// Kills what is left of a shard and starts it again on the same data and port.
    pub fn restart_shard(&mut self, shard: usize) -> Result<()> {
        self.shards[shard].kill()?;
        // Backends outlive their postmaster for a moment, and the next one refuses to start
        // while they hold its shared memory; each works in the data directory.
        let data = &self.data[shard];
        wait::until("a killed shard's backends to end", END_LIMIT, || {
            (!works_in(data)).then_some(())
        })?;
        self.shards[shard].start_again()
    }

    /// The prepared transactions of the program on every shard, of before `moment` if given.
    pub fn prepared(&self, before: Option<SystemTime>) -> Result<Vec<Prepared>> {
        let mut found = Vec::new();
        let mut text = "select gid, prepared from pg_prepared_xacts \
                        where starts_with(gid, 'a67_')"
            .to_owned();
        if let Some(moment) = before {
            let seconds = moment.duration_since(UNIX_EPOCH)?.as_secs_f64();
            text += &format!(" and prepared < to_timestamp({seconds:.6})");
        }
        for (number, shard) in self.shards.iter().enumerate() {
            let rows = Connection::open(&shard.server)?.rows(&text)?;
            for row in rows {
                let mut row = row.into_iter().map(Option::unwrap_or_default);
                found.push(Prepared {
                    shard: shard_name(number),
                    gid: row.next().unwrap_or_default(),
                    since: row.next().unwrap_or_default(),
                });
            }
        }
        Ok(found)
    }

    /// Waits until no prepared transaction of before now is left; returns how long that took.
    pub fn wait_resolved(&self) -> Result<Duration> {
        let start = Instant::now();
        // What was under way at the fault may still arrive at a shard for a moment.
        let moment = SystemTime::now() + Duration::from_millis(300);
        let mut left = Vec::new();
        wait::until(
            "prepared transactions to be resolved",
            RESOLVE_LIMIT,
            || {
                left = self.prepared(Some(moment)).ok()?;
                // Nothing new can be of before the moment once it has passed.
                (left.is_empty() && SystemTime::now() > moment).then_some(())
            },
        )
        .with_context(|| {
            let each = left.iter().map(|it| {
                let (shard, gid, since) = (&it.shard, &it.gid, &it.since);
                format!("{gid} on {shard} since {since}")
            });
            let each: Vec<_> = each.collect();
            format!("{} left: {}", left.len(), each.join("; "))
        })?;
        Ok(start.elapsed())
    }

    /// The rows of one query on every shard: for each, the shard's number and its columns.
    pub fn everywhere(&self, text: &str) -> Result<Vec<(usize, Vec<String>)>> {
        let mut all = Vec::new();
        for (number, shard) in self.shards.iter().enumerate() {
            let rows = Connection::open(&shard.server)?.rows(text)?;
            all.extend(rows.into_iter().map(|row| {
                let row = row.into_iter().map(Option::unwrap_or_default);
                (number, row.collect())
            }));
        }
        Ok(all)
    }

    /// What every shard has prepared, and its sessions that wait or work the longest.
    pub fn busy(&self) -> String {
        let text = "select * from (select 'prepared', gid, (now() - prepared)::text, '', '' \
                    from pg_prepared_xacts order by prepared limit 5) p union all \
                    select * from (select state, coalesce(wait_event, ''), \
                    (clock_timestamp() - xact_start)::text, pg_blocking_pids(pid)::text, \
                    pid || ' ' || left(query, 120) from pg_stat_activity \
                    where backend_type = 'client backend' and state <> 'idle' \
                    and pid <> pg_backend_pid() order by xact_start limit 6) a";
        match self.everywhere(text) {
            Ok(rows) => {
                let rows = rows.into_iter();
                let rows = rows.map(|(shard, row)| format!("s{shard}: {}", row.join(" | ")));
                rows.collect::<Vec<_>>().join("\n")
            }
            Err(error) => format!("{error:#}"),
        }
    }

    /// Which shard holds each value of an integer column.
    pub fn places(&self, table: &str, column: &str) -> Result<BTreeMap<i64, usize>> {
        let rows = self.everywhere(&format!("select {column} from only {table}"))?;
        let mut places = BTreeMap::new();
        for (shard, row) in rows {
            let value = row.first().context("no column")?.parse()?;
            let before = places.insert(value, shard);
            ensure!(
                before.is_none(),
                "{table}.{column} {value} is on {} and on {}",
                shard_name(before.unwrap_or_default()),
                shard_name(shard)
            );
        }
        Ok(places)
    }
}

/// True while a process has `directory` as its working directory.
fn works_in(directory: &Path) -> bool {
    let Ok(processes) = fs::read_dir("/proc") else {
        return false;
    };
    processes
        .filter_map(|entry| fs::read_link(entry.ok()?.path().join("cwd")).ok())
        .any(|cwd| cwd == directory)
}

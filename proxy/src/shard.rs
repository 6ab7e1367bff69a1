//! A shard as the whole process sees it: where it is, and whether it is up.

use std::{
    collections::HashMap,
    io,
    sync::{
        Arc, Mutex, OnceLock, Weak,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    time::Duration,
};

use automator67_planner::catalog::ShardId;
use metrics::Gauge;
use tokio::sync::{Semaphore, SemaphorePermit};
use tokio_util::sync::CancellationToken;

use crate::{
    error::{Report, sqlstate},
    process::lock,
    server::{self, BackendKey, ConnectError, call::Key},
    settings::{ShardHost, ShardSettings},
    tls,
    two_phase::Ability,
    types::Types,
};

/// Most logins at a time on one shard.
const LOGINS_MAX: usize = 16;

/// Who a server is: which shard of which cluster.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Identity {
    /// The cluster's name.
    pub cluster: String,
    /// The shard's number there.
    pub shard: ShardId,
}

impl Identity {
    /// In words, for who knows the names of one cluster's shards.
    pub fn describe(&self, names: &[String], cluster: &str) -> String {
        let Identity {
            cluster: own,
            shard,
        } = self;
        let index = (*shard as usize).checked_sub(1);
        match index.and_then(|index| names.get(index)) {
            Some(name) if own == cluster => format!("shard \"{name}\" of cluster {own}"),
            _ => format!("shard {shard} of another cluster, {own}"),
        }
    }
}

/// A shard and its health. Shared by all threads.
pub struct Shard {
    /// Its number in the catalog.
    pub id: ShardId,
    /// Names of all shards, in the order of their numbers.
    pub names: Arc<[String]>,
    /// How to reach it.
    pub settings: ShardSettings,
    /// TLS towards it.
    pub connector: Option<tokio_rustls::TlsConnector>,
    /// Limit for connecting and for unacknowledged data.
    pub connect_timeout: Duration,
    /// Pairs of its types and those of the home shard; `None` for the home shard itself.
    pub types: Option<Types>,
    up: AtomicBool,
    returns: AtomicU64,
    last_error: Mutex<String>,
    logins: Semaphore,
    two_phase: Mutex<Ability>,
    proof_key: Mutex<Option<Key>>,
    /// Its server processes that this proxy is connected to.
    backends: Mutex<HashMap<i32, Weak<BackendKey>>>,
    /// The name of the cluster, once that is known.
    cluster: OnceLock<String>,
    /// The server has been told who it is.
    stamped: AtomicBool,
    up_gauge: Gauge,
}

impl Shard {
    /// A shard that is taken to be up until something shows otherwise. `home` is the home shard,
    /// where that is another one.
    pub fn new(
        id: ShardId,
        names: &Arc<[String]>,
        settings: ShardSettings,
        connect_timeout: Duration,
        home: Option<&Arc<Shard>>,
    ) -> Result<Self, tls::TlsError> {
        let connector = tls::shard_connector(&settings)?;
        let up_gauge = metrics::gauge!("automator67_shard_up", "shard" => settings.name.clone());
        up_gauge.set(1.0);
        Ok(Shard {
            id,
            names: names.clone(),
            settings,
            connector,
            connect_timeout,
            types: home.cloned().map(Types::new),
            up: AtomicBool::new(true),
            returns: AtomicU64::new(0),
            last_error: Mutex::default(),
            logins: Semaphore::new(LOGINS_MAX),
            two_phase: Mutex::new(Ability::Unknown),
            proof_key: Mutex::default(),
            backends: Mutex::default(),
            cluster: OnceLock::new(),
            stamped: AtomicBool::new(false),
            up_gauge,
        })
    }

    /// A connection to a server process is there.
    pub fn note_backend(&self, key: &Arc<BackendKey>) {
        let mut backends = lock(&self.backends);
        backends.retain(|_, known| known.strong_count() > 0);
        backends.insert(key.pid(), Arc::downgrade(key));
    }

    /// The process id of the session that a server process works for, or has worked for last.
    pub fn session_of(&self, pid: i32) -> Option<i32> {
        let key = lock(&self.backends).get(&pid)?.upgrade()?;
        Some(key.session.load(Ordering::Relaxed)).filter(|session| *session != 0)
    }

    /// False from the first failed connection until the health loop reaches it again.
    pub fn is_up(&self) -> bool {
        self.up.load(Ordering::Relaxed)
    }

    /// How often it came up again.
    pub fn returns(&self) -> u64 {
        self.returns.load(Ordering::Relaxed)
    }

    /// Why it is down; empty when it is up.
    pub fn last_error(&self) -> String {
        self.last_error
            .lock()
            .map(|error| error.clone())
            .unwrap_or_default()
    }

    /// Waits until fewer than [`LOGINS_MAX`] others log in; the login is over when the answer is
    /// dropped. A crowd of clients that all come at once would slow every login down until none
    /// ends in time and the shard looks dead.
    pub async fn login(&self) -> Option<SemaphorePermit<'_>> {
        // It is never closed.
        self.logins.acquire().await.ok()
    }

    /// Whether it can prepare transactions.
    pub fn two_phase(&self) -> Ability {
        lock(&self.two_phase).clone()
    }

    /// Notes whether it can prepare transactions.
    pub fn set_two_phase(&self, ability: Ability) {
        *lock(&self.two_phase) = ability;
    }

    /// The key of proofs for its functions; `None` before it was set up.
    pub fn proof_key(&self) -> Option<Key> {
        *lock(&self.proof_key)
    }

    /// Notes the key.
    pub fn set_proof_key(&self, key: Key) {
        *lock(&self.proof_key) = Some(key);
    }

    /// Notes whose it is.
    pub fn belongs_to(&self, cluster: &str) {
        self.cluster.get_or_init(|| cluster.to_owned());
    }

    /// Who its server must be; `None` before the catalog has said so.
    pub fn identity(&self) -> Option<Identity> {
        let cluster = self.cluster.get()?.clone();
        Some(Identity {
            cluster,
            shard: self.id,
        })
    }

    /// Notes that its server has been told who it is.
    pub fn set_stamped(&self) {
        self.stamped.store(true, Ordering::Relaxed);
    }

    /// Whether a server that says this of itself is the one that has this shard's rows. One that says
    /// nothing may be new, until it has been told.
    pub fn recognise(&self, found: Option<&Identity>) -> Result<(), String> {
        let Some(expected) = self.identity() else {
            return Ok(());
        };
        let stranger = match found {
            Some(found) if *found == expected => return Ok(()),
            None if !self.stamped.load(Ordering::Relaxed) => return Ok(()),
            Some(found) => found.describe(&self.names, &expected.cluster),
            None => "no shard of any cluster".to_owned(),
        };
        Err(format!(
            "the server of shard \"{}\" is {stranger}",
            self.settings.name
        ))
    }

    /// Notes that it could not be reached, or no longer answers.
    pub fn mark_down(&self, cause: &str) {
        if self.up.swap(false, Ordering::Relaxed) {
            tracing::warn!(shard = self.settings.name, cause, "shard is down");
            self.up_gauge.set(0.0);
        }
        if let Ok(mut error) = self.last_error.lock() {
            cause.clone_into(&mut error);
        }
    }

    fn mark_up(&self) {
        if !self.up.swap(true, Ordering::Relaxed) {
            tracing::info!(shard = self.settings.name, "shard is up again");
            self.up_gauge.set(1.0);
            self.returns.fetch_add(1, Ordering::Relaxed);
            // It may have come back with other settings.
            self.set_two_phase(Ability::Unknown);
            if let Some(types) = &self.types {
                types.forget();
            }
            if let Ok(mut error) = self.last_error.lock() {
                error.clear();
            }
        }
    }

    /// The error of a statement that needs this shard while it cannot be reached.
    pub fn unreachable(&self, cause: &str) -> Report {
        let name = &self.settings.name;
        Report::error(sqlstate::CONNECTION_FAILURE, format!("shard \"{name}\" is not reachable"))
            .detail(format!("{} ({}).", capitalised(cause), self.address()))
            .hint("Statements that do not need this shard keep working; it is used again as soon as it answers.")
    }

    /// The error of a statement whose server connection broke under it.
    pub fn broken(&self, cause: &str) -> Report {
        let name = &self.settings.name;
        Report::error(
            sqlstate::CONNECTION_FAILURE,
            format!("connection to shard \"{name}\" was lost"),
        )
        .detail(format!("{}.", capitalised(cause)))
        .hint("If the statement was writing, look whether it took effect before you repeat it.")
    }

    /// Where it listens, for people.
    pub fn address(&self) -> String {
        match &self.settings.host {
            ShardHost::Unix(directory) => {
                format!("{}/.s.PGSQL.{}", directory.display(), self.settings.port)
            }
            ShardHost::Tcp(host) => format!("{host}:{}", self.settings.port),
        }
    }
}

fn capitalised(text: &str) -> String {
    let mut letters = text.chars();
    match letters.next() {
        Some(first) => first.to_uppercase().chain(letters).collect(),
        None => String::new(),
    }
}

/// Looks at the shard every `interval`, more often while it is down.
pub async fn watch_health(
    shard: std::sync::Arc<Shard>,
    interval: Duration,
    stop: CancellationToken,
) {
    let mut kept = None;
    loop {
        let wait = if shard.is_up() {
            interval
        } else {
            interval.min(DOWN_INTERVAL)
        };
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(wait) => {}
        }
        match tokio::time::timeout(shard.connect_timeout, server::probe(&shard, &mut kept)).await {
            Ok(Ok(())) => shard.mark_up(),
            // A server that answers, even with an error of its own, is reachable; one that is
            // starting up or shutting down is not of use yet.
            Ok(Err(ConnectError::Server(report))) if !report.sqlstate.starts_with("57P") => {
                shard.mark_up();
            }
            Ok(Err(error)) => shard.mark_down(&error.to_string()),
            Err(_) => shard.mark_down("no answer in time"),
        }
    }
}

/// How often a shard that is down is looked at.
const DOWN_INTERVAL: Duration = Duration::from_millis(400);

/// Makes a dead peer an error instead of a silence: data that stays unacknowledged for `limit`
/// ends the connection, and an idle one is asked every second.
pub fn guard_against_silence(stream: &tokio::net::TcpStream, limit: Duration) -> io::Result<()> {
    let socket = socket2::SockRef::from(stream);
    let probes = socket2::TcpKeepalive::new()
        .with_time(Duration::from_secs(1))
        .with_interval(Duration::from_secs(1))
        .with_retries(2);
    socket.set_tcp_keepalive(&probes)?;
    socket.set_tcp_user_timeout(Some(limit))
}

//! What all sessions share: settings, shards, the catalog, cancel keys, the list of sessions.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    time::SystemTime,
};

use automator67_planner::catalog::ShardId;
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    error::{Report, sqlstate},
    gate::Gate,
    lobby::Lobby,
    memory::Memory,
    neighbours::Neighbours,
    plan_cache::PlanCache,
    planners::Planners,
    pool::{PoolState, Pools},
    scram::Verifier,
    sequences::{HomeShard, Sequences},
    server::{self, BackendKey},
    session::{Greetings, KnownStatements},
    settings::{Settings, User},
    shard::Shard,
    store::Store,
    telemetry::Telemetry,
    tls::ServerTls,
    two_phase::TwoPhase,
    wrong_passwords::WrongPasswords,
};

/// The process.
pub struct Process {
    /// As given.
    pub settings: Settings,
    /// Shards in the order of their ids, which count from 1.
    pub shards: Vec<Arc<Shard>>,
    /// The catalog.
    pub store: Store,
    /// TLS towards clients.
    pub tls: Option<ServerTls>,
    /// Who may log in.
    pub logins: HashMap<String, Login>,
    /// Reserved values of sequences.
    pub sequences: Sequences<HomeShard>,
    /// Metrics.
    pub telemetry: Telemetry,
    /// Makes up salts for users that do not exist.
    pub secret: [u8; 32],
    /// Names of transactions over several shards.
    pub two_phase: TwoPhase,
    /// Clients that are not logged in yet.
    pub lobby: Arc<Lobby>,
    /// Makes the next wrong password take longer.
    pub wrong_passwords: WrongPasswords,
    /// What sessions hold of large messages.
    pub memory: Arc<Memory>,
    /// Plan long texts.
    pub planners: Planners,
    /// Closed for tables that move.
    pub gate: Arc<Gate>,
    /// Other proxies, whose gates close as well.
    pub neighbours: Neighbours,
    /// Tasks that outlive their session: cancel requests.
    pub tasks: TaskTracker,
    sessions: Mutex<HashMap<i32, Arc<SessionCard>>>,
    session_count: AtomicUsize,
    next_session: AtomicU64,
    threads: Mutex<Vec<Arc<Thread>>>,
}

/// A user and what checks the password.
pub struct Login {
    /// Name and password, for the shards.
    pub user: Arc<User>,
    /// For clients.
    pub verifier: Verifier,
}

/// One serving thread.
pub struct Thread {
    /// Its server connections.
    pub pools: Pools,
    /// Its plans.
    pub plans: Mutex<PlanCache>,
    /// What its clients are greeted with.
    pub greetings: Mutex<Greetings>,
    /// Statements that its sessions have prepared.
    pub statements: Mutex<KnownStatements>,
}

/// What others may see of a session, and what a CancelRequest needs.
pub struct SessionCard {
    /// Number of the session in this process.
    pub id: u64,
    /// What BackendKeyData said.
    pub pid: i32,
    /// The rest of the cancel key.
    pub secret: i32,
    /// The role.
    pub user: String,
    /// Where the client is.
    pub client: String,
    /// Since when.
    pub connected_at: SystemTime,
    /// What changes.
    pub activity: Mutex<Activity>,
    /// What the statement under way names, see [`Gate`]; 0 when there is none.
    pub names: AtomicU64,
    /// Wakes a statement that waits for something that is not a shard.
    pub cancelled: tokio::sync::Notify,
    /// Ends the session when its statement is done.
    pub end: CancellationToken,
    /// Why it is woken, if that is to end a deadlock.
    pub deadlock: Mutex<Option<String>>,
}

/// What a session is doing.
#[derive(Clone, Default)]
pub struct Activity {
    /// Server connections in use.
    pub keys: Vec<Arc<BackendKey>>,
    /// A cancel request has read `keys`: these connections are not lent again.
    pub tainted: bool,
    /// `application_name`.
    pub application_name: String,
    /// `idle`, `active`, `idle in transaction`, `waiting` for a table that changes ...
    pub state: &'static str,
    /// Kind of the current or last statement.
    pub statement_kind: &'static str,
    /// Tier of the current or last statement.
    pub tier: &'static str,
    /// Keeps its connections.
    pub pinned: bool,
    /// Statements so far.
    pub statements: u64,
}

impl Process {
    /// Puts the parts together.
    pub fn new(
        settings: Settings,
        shards: Vec<Arc<Shard>>,
        store: Store,
        tls: Option<ServerTls>,
        two_phase: TwoPhase,
        neighbours: Neighbours,
    ) -> Self {
        let logins = settings.users.iter().filter_map(login).collect();
        let sequences = Sequences::new(HomeShard::new(shards[0].clone()));
        Process {
            sequences,
            memory: Memory::new(settings.memory_bytes_max),
            lobby: Lobby::new(settings.logins_max, settings.logins_per_address_max),
            wrong_passwords: WrongPasswords::default(),
            planners: Planners::new(&settings),
            settings,
            shards,
            store,
            tls,
            logins,
            telemetry: Telemetry::new(),
            secret: rand::random(),
            two_phase,
            gate: Arc::default(),
            neighbours,
            tasks: TaskTracker::new(),
            sessions: Mutex::default(),
            session_count: AtomicUsize::new(0),
            next_session: AtomicU64::new(1),
            threads: Mutex::default(),
        }
    }

    /// The shard with this id.
    pub fn shard(&self, id: ShardId) -> Result<&Arc<Shard>, Report> {
        (id as usize)
            .checked_sub(1)
            .and_then(|index| self.shards.get(index))
            .ok_or_else(|| {
                Report::error(
                    sqlstate::CONNECTION_FAILURE,
                    format!("shard {id} is not in this proxy's configuration"),
                )
                .hint("Add the shard to the configuration and restart this proxy.")
            })
    }

    /// The home shard.
    pub fn home(&self) -> &Arc<Shard> {
        &self.shards[0]
    }

    /// Adds a serving thread.
    pub fn add_thread(&self) -> Arc<Thread> {
        let settings = &self.settings;
        let thread = Arc::new(Thread {
            pools: Pools::new(settings.threads, settings.pool_wait_timeout),
            plans: Mutex::new(PlanCache::new(settings.plan_cache_entries_max)),
            greetings: Mutex::default(),
            statements: Mutex::default(),
        });
        lock(&self.threads).push(thread.clone());
        thread
    }

    /// Pools of all threads, added up.
    pub fn pools(&self) -> Vec<PoolState> {
        let mut all: Vec<PoolState> = Vec::new();
        for state in lock(&self.threads)
            .iter()
            .flat_map(|thread| thread.pools.report())
        {
            let same =
                |other: &&mut PoolState| other.shard == state.shard && other.user == state.user;
            match all.iter_mut().find(same) {
                None => all.push(state),
                Some(sum) => {
                    sum.size_max += state.size_max;
                    sum.idle += state.idle;
                    sum.active += state.active;
                    sum.waiting += state.waiting;
                    sum.waits += state.waits;
                    sum.waited += state.waited;
                }
            }
        }
        all.sort_by(|a, b| (&a.shard, &a.user).cmp(&(&b.shard, &b.user)));
        all
    }

    /// Takes a place for a session, or says that there is none.
    pub fn admit(self: &Arc<Self>) -> Result<Place, Report> {
        let count = self.session_count.fetch_add(1, Ordering::Relaxed);
        let place = Place {
            process: self.clone(),
        };
        if count >= self.settings.sessions_max {
            return Err(Report::error(
                sqlstate::TOO_MANY_CONNECTIONS,
                "sorry, too many clients already",
            )
            .detail(format!("sessions_max is {}.", self.settings.sessions_max))
            .hint("Close idle connections or raise sessions_max."));
        }
        self.telemetry.sessions.set((count + 1) as f64);
        Ok(place)
    }

    /// Lists a session so that it can be seen and cancelled.
    pub fn list_session(
        &self,
        user: &str,
        client: String,
        end: CancellationToken,
    ) -> Arc<SessionCard> {
        let mut sessions = lock(&self.sessions);
        let pid = loop {
            let pid = rand::random_range(1..=i32::MAX);
            if !sessions.contains_key(&pid) {
                break pid;
            }
        };
        let card = Arc::new(SessionCard {
            id: self.next_session.fetch_add(1, Ordering::Relaxed),
            pid,
            secret: rand::random(),
            user: user.to_owned(),
            client,
            connected_at: SystemTime::now(),
            activity: Mutex::new(Activity {
                state: "idle",
                ..Activity::default()
            }),
            names: AtomicU64::new(0),
            cancelled: tokio::sync::Notify::new(),
            end,
            deadlock: Mutex::default(),
        });
        sessions.insert(pid, card.clone());
        card
    }

    /// Takes a session off the list.
    pub fn unlist_session(&self, card: &SessionCard) {
        lock(&self.sessions).remove(&card.pid);
        card.names.store(0, Ordering::SeqCst);
    }

    /// All sessions.
    pub fn sessions(&self) -> Vec<Arc<SessionCard>> {
        let mut all: Vec<_> = lock(&self.sessions).values().cloned().collect();
        all.sort_by_key(|card| card.id);
        all
    }

    /// Passes a CancelRequest on to the shards that work for that session. A wrong key is ignored,
    /// as the protocol asks.
    pub async fn cancel(&self, pid: i32, secret: &[u8]) {
        let card = self.session(pid);
        if let Some(card) = card.filter(|card| card.secret.to_be_bytes() == *secret) {
            self.interrupt(&card).await;
        }
    }

    /// The session of a process id.
    pub fn session(&self, pid: i32) -> Option<Arc<SessionCard>> {
        lock(&self.sessions).get(&pid).cloned()
    }

    /// Ends the statement that a session runs, on the shards that work for it.
    pub async fn interrupt(&self, card: &SessionCard) {
        let keys = {
            let mut activity = lock(&card.activity);
            activity.tainted = !activity.keys.is_empty();
            activity.keys.clone()
        };
        card.cancelled.notify_waiters();
        for key in keys {
            if let Err(error) = server::cancel(&key).await {
                tracing::warn!(shard = key.shard.settings.name, %error, "could not pass a cancel request on");
            }
        }
    }
}

fn login(user: &User) -> Option<(String, Login)> {
    let text = postgres_protocol::password::scram_sha_256(user.password.as_bytes());
    let verifier = Verifier::parse(&text)?;
    Some((
        user.name.clone(),
        Login {
            user: Arc::new(user.clone()),
            verifier,
        },
    ))
}

/// A session's place among `sessions_max`; free again when dropped.
pub struct Place {
    process: Arc<Process>,
}

impl Drop for Place {
    fn drop(&mut self) {
        let left = self.process.session_count.fetch_sub(1, Ordering::Relaxed) - 1;
        self.process.telemetry.sessions.set(left as f64);
    }
}

/// Locks, also after another thread panicked: every value here is whole between two locks.
pub fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

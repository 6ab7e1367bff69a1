//! Server connections of one thread, per shard and user: bounded, lent for a transaction, waited
//! for in turn.

use std::{
    collections::{HashMap, VecDeque},
    ops::{Deref, DerefMut},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::{Duration, Instant},
};

use automator67_planner::catalog::ShardId;
use metrics::{Counter, Histogram};
use tokio::sync::oneshot;

use crate::{
    error::{Report, sqlstate},
    server::{self, ConnectError, Server},
    settings::User,
    shard::Shard,
};

/// Connections to one shard as one user, on one thread.
pub struct Pool {
    shard: Arc<Shard>,
    user: User,
    size_max: usize,
    wait_timeout: Duration,
    state: Mutex<State>,
    waits: Counter,
    wait_seconds: Histogram,
}

/// A connection that was lent this short a time ago is not asked whether the server has closed it:
/// whoever had it would have seen that.
const TRUSTED: Duration = Duration::from_millis(1);
/// First and longest pause before a shard that has no place for another connection is asked again.
const FULL_PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

#[derive(Default)]
struct State {
    idle: Vec<Idle>,
    /// Idle, lent and being opened.
    open: usize,
    waiters: VecDeque<oneshot::Sender<Lease>>,
    /// Those who may open a connection, on a shard that has no place for it.
    refused: VecDeque<oneshot::Sender<Server>>,
    waits: u64,
    waited: Duration,
    /// Connections that logged in under another one are closed when they come back.
    generation: u64,
}

struct Idle {
    server: Server,
    since: Instant,
}

/// Why a connection could not be opened.
enum OpenError {
    /// The shard has no place for another one, in its own words.
    Full(String),
    Failed(Report),
}

impl From<Report> for OpenError {
    fn from(report: Report) -> Self {
        OpenError::Failed(report)
    }
}

/// What a pool looks like now, for `automator67.pools`.
#[derive(Debug, Clone, PartialEq)]
pub struct PoolState {
    /// The shard's name.
    pub shard: String,
    /// The role.
    pub user: String,
    /// Most connections it may have.
    pub size_max: usize,
    /// Connections nobody uses.
    pub idle: usize,
    /// Connections lent or being opened.
    pub active: usize,
    /// Statements in the queue.
    pub waiting: usize,
    /// Statements that ever queued.
    pub waits: u64,
    /// How long they waited, in sum.
    pub waited: Duration,
}

/// A lent connection, or the right to open one. Goes back to its pool when dropped; a connection
/// in the middle of something is closed instead.
pub struct Lease {
    server: Option<Server>,
    /// `None` once the slot was given back.
    pool: Option<Arc<Pool>>,
    /// Of the pool, when it was lent.
    generation: u64,
}

impl Pool {
    fn new(shard: Arc<Shard>, user: User, size_max: usize, wait_timeout: Duration) -> Self {
        let name = shard.settings.name.clone();
        Pool {
            size_max,
            wait_timeout,
            state: Mutex::default(),
            waits: metrics::counter!("automator67_pool_waits_total", "shard" => name.clone()),
            wait_seconds: metrics::histogram!("automator67_pool_wait_seconds", "shard" => name),
            shard,
            user,
        }
    }

    /// Borrows a connection: an idle one, a new one, or the next one that comes back.
    pub async fn checkout(self: &Arc<Self>) -> Result<Lease, Report> {
        if !self.shard.is_up() {
            return Err(self.shard.unreachable(&self.shard.last_error()));
        }
        let mut lease = match self.take_or_queue() {
            Ok(lease) => lease,
            Err(turn) => {
                let mut lease = self.wait(turn).await?;
                if lease.server.as_mut().is_some_and(Server::went_stale) {
                    lease.server = None;
                }
                lease
            }
        };
        if lease.server.is_none() {
            // The slot stays ours; a fresh connection takes a dead one's place.
            lease.server = Some(self.open_or_take().await?);
        }
        Ok(lease)
    }

    /// An idle connection, where there is one: nothing to wait for.
    pub fn take_idle(self: &Arc<Self>) -> Option<Lease> {
        if !self.shard.is_up() {
            return None;
        }
        self.lend_idle(&mut self.lock())
    }

    fn lend_idle(self: &Arc<Self>, state: &mut State) -> Option<Lease> {
        while let Some(Idle { mut server, since }) = state.idle.pop() {
            let heard = server.went_stale();
            if !heard && (since.elapsed() < TRUSTED || !server.was_closed()) {
                return Some(self.lease(Some(server), state));
            }
            state.open -= 1;
        }
        None
    }

    fn lease(self: &Arc<Self>, server: Option<Server>, state: &State) -> Lease {
        Lease {
            server,
            pool: Some(self.clone()),
            generation: state.generation,
        }
    }

    fn take_or_queue(self: &Arc<Self>) -> Result<Lease, oneshot::Receiver<Lease>> {
        let mut state = self.lock();
        if let Some(lease) = self.lend_idle(&mut state) {
            return Ok(lease);
        }
        if state.open < self.size_max {
            state.open += 1;
            return Ok(self.lease(None, &state));
        }
        let (sender, turn) = oneshot::channel();
        state.waiters.push_back(sender);
        state.waits += 1;
        Err(turn)
    }

    async fn wait(&self, turn: oneshot::Receiver<Lease>) -> Result<Lease, Report> {
        let start = Instant::now();
        self.waits.increment(1);
        let result = tokio::time::timeout(self.wait_timeout, turn).await;
        self.wait_seconds.record(start.elapsed().as_secs_f64());
        self.lock().waited += start.elapsed();
        match result {
            Ok(Ok(lease)) => Ok(lease),
            Ok(Err(_)) | Err(_) => Err(self.exhausted()),
        }
    }

    fn exhausted(&self) -> Report {
        Report::error(
            sqlstate::TOO_MANY_CONNECTIONS,
            format!("all connections to shard \"{}\" are in use", self.shard.settings.name),
        )
        .detail(format!(
            "Waited {} ms for one of {} connections of user \"{}\".",
            self.wait_timeout.as_millis(),
            self.size_max,
            self.user.name
        ))
        .hint("Keep transactions short, or raise the shard's pool_size (and the server's max_connections).")
    }

    /// Opens a connection. Where the shard has no place for it, tries again, and takes one that
    /// comes back meanwhile.
    async fn open_or_take(&self) -> Result<Server, Report> {
        let start = Instant::now();
        let mut pause = FULL_PAUSE.0;
        loop {
            let cause = match self.open().await {
                Ok(server) => return Ok(server),
                Err(OpenError::Failed(report)) => return Err(report),
                Err(OpenError::Full(cause)) => cause,
            };
            if pause == FULL_PAUSE.0 {
                self.waits.increment(1);
            }
            let left = self.wait_timeout.saturating_sub(start.elapsed());
            if left.is_zero() {
                return Err(self.full(&cause));
            }
            let (sender, turn) = oneshot::channel();
            {
                let mut state = self.lock();
                // Those who have gone on without an answer.
                state.refused.retain(|sender| !sender.is_closed());
                state.refused.push_back(sender);
            }
            if let Ok(Ok(mut server)) = tokio::time::timeout(pause.min(left), turn).await
                && !server.went_stale()
            {
                return Ok(server);
            }
            pause = (pause * 2).min(FULL_PAUSE.1);
        }
    }

    fn full(&self, cause: &str) -> Report {
        let name = &self.shard.settings.name;
        Report::error(
            sqlstate::TOO_MANY_CONNECTIONS,
            format!("too many connections to shard \"{name}\""),
        )
        .detail(format!(
            "The shard has refused another connection for {} ms: {cause}.",
            self.wait_timeout.as_millis()
        ))
        .hint("Close other connections to the shard, or raise its max_connections above what its users' pools and others need together.")
    }

    /// Opens a connection when it is this login's turn; see [`Shard::login`].
    async fn open(&self) -> Result<Server, OpenError> {
        let turn = tokio::time::timeout(self.wait_timeout, self.shard.login());
        let _turn = turn.await.map_err(|_| self.exhausted())?;
        // Those before us may have found that nobody answers.
        if !self.shard.is_up() {
            return Err(self.shard.unreachable(&self.shard.last_error()).into());
        }
        match server::connect(&self.shard, &self.user).await {
            Ok(server) => Ok(server),
            Err(ConnectError::Server(report))
                if report.sqlstate == sqlstate::TOO_MANY_CONNECTIONS =>
            {
                Err(OpenError::Full(report.message))
            }
            Err(ConnectError::Server(report)) if !report.sqlstate.starts_with("57P") => {
                let name = &self.shard.settings.name;
                let detail = format!("Shard \"{name}\" refused the connection.");
                Err(OpenError::Failed(Report {
                    detail: Some(report.detail.clone().unwrap_or(detail)),
                    ..*report
                }))
            }
            Err(error) => {
                self.shard.mark_down(&error.to_string());
                Err(self.shard.unreachable(&error.to_string()).into())
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection, or the right to open one, to the first in the queue that still waits.
    fn give_back(self: &Arc<Self>, server: Option<Server>, generation: u64) {
        let now = self.lock().generation;
        let server = server.filter(|_| generation == now);
        let server = server.and_then(|server| self.give_to_refused(server));
        let mut lease = Lease {
            server,
            pool: Some(self.clone()),
            generation: now,
        };
        loop {
            let mut state = self.lock();
            let Some(waiter) = state.waiters.pop_front() else {
                match lease.server.take() {
                    Some(server) => state.idle.push(Idle {
                        server,
                        since: Instant::now(),
                    }),
                    None => state.open -= 1,
                }
                lease.pool = None;
                return;
            };
            drop(state);
            match waiter.send(lease) {
                Ok(()) => return,
                Err(unwanted) => lease = unwanted,
            }
        }
    }

    /// Gives a connection to who has the right to one but found no place for it on the shard.
    fn give_to_refused(&self, server: Server) -> Option<Server> {
        let mut server = server;
        loop {
            let Some(refused) = self.lock().refused.pop_front() else {
                return Some(server);
            };
            match refused.send(server) {
                Ok(()) => return None,
                Err(unwanted) => server = unwanted,
            }
        }
    }

    /// What logs in from now on begins with other settings: nobody gets what has logged in before.
    fn retire(&self) {
        let mut state = self.lock();
        state.generation += 1;
        let idle = std::mem::take(&mut state.idle);
        state.open -= idle.len();
    }

    fn report(&self) -> PoolState {
        let state = self.lock();
        PoolState {
            shard: self.shard.settings.name.clone(),
            user: self.user.name.clone(),
            size_max: self.size_max,
            idle: state.idle.len(),
            active: state.open - state.idle.len(),
            waiting: state
                .waiters
                .iter()
                .filter(|waiter| !waiter.is_closed())
                .count(),
            waits: state.waits,
            waited: state.waited,
        }
    }
}

/// Takes back what is left of a client's statements, then gives the connection back.
pub async fn clean(lease: Lease) {
    let mut lease = lease;
    let shard = lease.shard.settings.name.clone();
    let limit = lease.shard.connect_timeout;
    if !lease.residue.lasting
        && let Ok(Ok(())) = tokio::time::timeout(limit, lease.reset()).await
    {
        metrics::counter!("automator67_connections_reset_total", "shard" => shard).increment(1);
        return;
    }
    // What no command takes back, or none did in time, ends with the connection.
    metrics::counter!("automator67_connections_closed_total", "shard" => shard).increment(1);
    lease.close();
}

impl Lease {
    /// The connection.
    fn server(&self) -> &Server {
        self.server
            .as_ref()
            .expect("a lease leaves checkout with a connection")
    }

    /// Closes the connection instead of giving it back; its slot is free at once.
    pub fn close(mut self) {
        self.server = None;
    }
}

impl Deref for Lease {
    type Target = Server;

    fn deref(&self) -> &Server {
        self.server()
    }
}

impl DerefMut for Lease {
    fn deref_mut(&mut self) -> &mut Server {
        self.server
            .as_mut()
            .expect("a lease leaves checkout with a connection")
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if let Some(pool) = self.pool.take() {
            let server = self.server.take().filter(Server::is_clean);
            pool.give_back(server, self.generation);
        }
    }
}

/// All pools of one thread.
pub struct Pools {
    pools: Mutex<HashMap<(ShardId, String), Arc<Pool>>>,
    threads: usize,
    wait_timeout: Duration,
}

impl Pools {
    /// No pools yet; each is made at its first use. `threads` share each shard's limit.
    pub fn new(threads: usize, wait_timeout: Duration) -> Self {
        Pools {
            pools: Mutex::default(),
            threads,
            wait_timeout,
        }
    }

    /// The pool of `user` on `shard`.
    pub fn pool(&self, shard: &Arc<Shard>, user: &User) -> Arc<Pool> {
        let mut pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let size_max = shard.settings.pool_size_max.div_ceil(self.threads).max(1);
        pools
            .entry((shard.id, user.name.clone()))
            .or_insert_with(|| {
                Arc::new(Pool::new(
                    shard.clone(),
                    user.clone(),
                    size_max,
                    self.wait_timeout,
                ))
            })
            .clone()
    }

    /// Closes a user's connections, those that are lent when they come back.
    pub fn retire(&self, user: &str) {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        let of_user = pools.iter().filter(|((_, name), _)| name == user);
        of_user.for_each(|(_, pool)| pool.retire());
    }

    /// The state of each.
    pub fn report(&self) -> Vec<PoolState> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.values().map(|pool| pool.report()).collect()
    }
}

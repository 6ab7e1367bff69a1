//! Server connections of one thread, per shard and user: bounded, lent for a transaction, waited
//! for in turn.

use std::{
    collections::{HashMap, VecDeque},
    ops::{Deref, DerefMut},
    pin::Pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use automator67_planner::catalog::ShardId;
use metrics::{Counter, Histogram};
use tokio::{
    io::{AsyncRead, ReadBuf},
    sync::oneshot,
};

use crate::{
    error::{Report, sqlstate},
    server::{self, ConnectError, Server},
    settings::User,
    shard::Shard,
    wire::Stream,
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

#[derive(Default)]
struct State {
    idle: Vec<Server>,
    /// Idle, lent and being opened.
    open: usize,
    waiters: VecDeque<oneshot::Sender<Lease>>,
    waits: u64,
    waited: Duration,
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
            Err(turn) => self.wait(turn).await?,
        };
        let stale = lease.server.as_mut().is_none_or(went_stale);
        if stale {
            // The slot stays ours; a fresh connection takes the dead one's place.
            lease.server = None;
            lease.server = Some(self.open().await?);
        }
        Ok(lease)
    }

    fn take_or_queue(self: &Arc<Self>) -> Result<Lease, oneshot::Receiver<Lease>> {
        let mut state = self.lock();
        if let Some(server) = state.idle.pop() {
            return Ok(Lease {
                server: Some(server),
                pool: Some(self.clone()),
            });
        }
        if state.open < self.size_max {
            state.open += 1;
            return Ok(Lease {
                server: None,
                pool: Some(self.clone()),
            });
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

    /// Opens a connection when it is this login's turn; see [`Shard::login`].
    async fn open(&self) -> Result<Server, Report> {
        let turn = tokio::time::timeout(self.wait_timeout, self.shard.login());
        let _turn = turn.await.map_err(|_| self.exhausted())?;
        // Those before us may have found that nobody answers.
        if !self.shard.is_up() {
            return Err(self.shard.unreachable(&self.shard.last_error()));
        }
        match server::connect(&self.shard, &self.user).await {
            Ok(server) => Ok(server),
            Err(ConnectError::Server(report)) if !report.sqlstate.starts_with("57P") => {
                let name = &self.shard.settings.name;
                let detail = format!("Shard \"{name}\" refused the connection.");
                Err(Report {
                    detail: Some(report.detail.clone().unwrap_or(detail)),
                    ..*report
                })
            }
            Err(error) => {
                self.shard.mark_down(&error.to_string());
                Err(self.shard.unreachable(&error.to_string()))
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Gives a connection, or the right to open one, to the first in the queue that still waits.
    fn give_back(self: &Arc<Self>, server: Option<Server>) {
        let mut lease = Lease {
            server,
            pool: Some(self.clone()),
        };
        loop {
            let mut state = self.lock();
            let Some(waiter) = state.waiters.pop_front() else {
                match lease.server.take() {
                    Some(server) => state.idle.push(server),
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

/// An idle connection on which something has arrived was closed, or is being closed, by the
/// server.
fn went_stale(server: &mut Server) -> bool {
    let mut space = [0; 64];
    let mut buffer = ReadBuf::new(&mut space);
    let mut context = Context::from_waker(Waker::noop());
    let polled = match &mut server.wire.stream {
        Stream::Tcp(stream) => Pin::new(stream).poll_read(&mut context, &mut buffer),
        Stream::Unix(stream) => Pin::new(stream).poll_read(&mut context, &mut buffer),
        Stream::TlsClient(stream) => Pin::new(stream).poll_read(&mut context, &mut buffer),
        Stream::TlsServer(_) | Stream::Closed => return true,
    };
    match polled {
        Poll::Pending => false,
        Poll::Ready(Ok(())) if !buffer.filled().is_empty() => {
            // A notice or a changed parameter is kept for whoever reads next; an error is a
            // farewell.
            let farewell = buffer.filled()[0] == b'E';
            server.wire.input.extend_from_slice(buffer.filled());
            farewell || !matches!(buffer.filled()[0], b'S' | b'N')
        }
        Poll::Ready(_) => true,
    }
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
            pool.give_back(self.server.take().filter(Server::is_clean));
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

    /// The state of each.
    pub fn report(&self) -> Vec<PoolState> {
        let pools = self.pools.lock().unwrap_or_else(PoisonError::into_inner);
        pools.values().map(|pool| pool.report()).collect()
    }
}

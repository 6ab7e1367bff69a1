//! Accepts clients and gives each to a serving thread; starts and stops everything.

use std::{net::SocketAddr, sync::Arc, time::Duration};

use thiserror::Error;
use tokio::{
    net::{TcpListener, TcpSocket, TcpStream},
    sync::mpsc,
};
use tokio_util::{sync::CancellationToken, task::TaskTracker};

use crate::{
    deadlock,
    error::Failure,
    failpoint,
    lobby::Guest,
    log_budget::LogBudget,
    login, neighbours,
    planners::PLANNING_STACK_BYTES,
    process::{Process, Thread},
    requirements, session,
    settings::Settings,
    shard::{self, Shard},
    store,
    tls::{ServerTls, TlsError},
    two_phase::{self, TwoPhase},
};

/// Connections that wait to be accepted.
const BACKLOG: u32 = 1024;
/// Accepted connections that wait for their thread.
const ACCEPTED_MAX: usize = 1024;
/// How long nothing is accepted after an accept that failed: mostly there are no files left, and
/// trying again at once would fail again.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
/// How long sessions may take to say goodbye.
const FAREWELL: Duration = Duration::from_secs(3);

/// Why the proxy could not start.
#[derive(Debug, Error)]
pub enum StartError {
    /// No shards in the settings.
    #[error("no shards are configured")]
    NoShards,
    /// A login whose own schema would be the catalog's.
    #[error(
        "the user name \"{0}\" is reserved: its schema on the search path would be the catalog's"
    )]
    ReservedUser(String),
    /// TLS files.
    #[error(transparent)]
    Tls(#[from] TlsError),
    /// The catalog.
    #[error(transparent)]
    Catalog(#[from] store::StoreError),
    /// The port.
    #[error("could not listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
    /// A thread.
    #[error("could not start a thread: {0}")]
    Thread(std::io::Error),
}

/// A client that was accepted.
struct Accepted {
    stream: TcpStream,
    peer: SocketAddr,
    guest: Guest,
}

/// A running proxy.
pub struct Proxy {
    address: SocketAddr,
    tracker: TaskTracker,
    threads: Vec<std::thread::JoinHandle<()>>,
    stop: CancellationToken,
}

impl Proxy {
    /// Migrates the catalog, loads it, and begins to accept clients. Ends when `stop` is cancelled.
    pub async fn start(settings: Settings, stop: CancellationToken) -> Result<Proxy, StartError> {
        if let Some(user) = settings
            .users
            .iter()
            .find(|user| user.name == "automator67")
        {
            return Err(StartError::ReservedUser(user.name.clone()));
        }
        let shards = shards(&settings)?;
        let tls = settings.tls.as_ref().map(ServerTls::load).transpose()?;
        let home = shards.first().ok_or(StartError::NoShards)?.clone();
        // What may fail without having changed anything comes first.
        let socket = bind(settings.listen)?;
        requirements::check(&shards, &settings).await?;
        let cluster = store::set_up(&home, &settings).await?;
        for shard in &shards {
            shard.belongs_to(&cluster.name);
            // One that cannot be reached yet is asked again by the recovery.
            two_phase::ensure(shard).await;
        }
        let (neighbours, listening) = neighbours::listen(&home).await?;
        let (store, follow) = store::follow(home, stop.clone()).await?;
        let tracker = TaskTracker::new();
        tracker.spawn(follow);
        for shard in &shards {
            tracker.spawn(shard::watch_health(
                shard.clone(),
                settings.health_interval,
                stop.clone(),
            ));
        }
        let listen = |cause| StartError::Listen {
            address: settings.listen,
            cause,
        };
        let listener = socket.listen(BACKLOG).map_err(listen)?;
        let address = listener.local_addr().map_err(listen)?;
        let count = settings.threads.max(1);
        let process = Arc::new(Process::new(
            settings,
            shards,
            store,
            tls,
            TwoPhase::new(cluster),
            neighbours,
        ));
        let mut threads = Vec::with_capacity(count);
        let mut doors = Vec::with_capacity(count);
        for number in 0..count {
            let (door, accepted) = mpsc::channel(ACCEPTED_MAX);
            doors.push(door);
            threads.push(serve_on_thread(
                number,
                process.clone(),
                accepted,
                stop.clone(),
            )?);
        }
        failpoint::start();
        tracker.spawn(two_phase::recover(process.clone(), stop.clone()));
        tracker.spawn(neighbours::attend(listening, process.clone(), stop.clone()));
        tracker.spawn(deadlock::watch(process.clone(), stop.clone()));
        tracker.spawn(every_second(process.clone(), stop.clone()));
        tracker.spawn(accept(process.clone(), listener, doors, stop.clone()));
        tracker.close();
        Ok(Proxy {
            address,
            tracker,
            threads,
            stop,
        })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end.
    pub async fn wait(self) {
        self.stop.cancelled().await;
        self.tracker.wait().await;
        let threads = self.threads;
        let joined = tokio::task::spawn_blocking(move || {
            threads.into_iter().all(|thread| thread.join().is_ok())
        });
        if !joined.await.unwrap_or(false) {
            tracing::error!("a serving thread ended in a panic");
        }
    }
}

/// Takes the port. Clients are refused until it listens.
fn bind(address: SocketAddr) -> Result<TcpSocket, StartError> {
    let socket = match address {
        SocketAddr::V4(_) => TcpSocket::new_v4(),
        SocketAddr::V6(_) => TcpSocket::new_v6(),
    };
    let bound = socket.and_then(|socket| {
        // The connections of a proxy that has just ended are not in the way.
        socket.set_reuseaddr(true)?;
        socket.bind(address)?;
        Ok(socket)
    });
    bound.map_err(|cause| StartError::Listen { address, cause })
}

fn shards(settings: &Settings) -> Result<Vec<Arc<Shard>>, TlsError> {
    let names: Arc<[String]> = settings.shards.iter().map(|it| it.name.clone()).collect();
    let mut shards: Vec<Arc<Shard>> = Vec::with_capacity(settings.shards.len());
    for (id, shard) in (1..).zip(&settings.shards) {
        let timeout = settings.shard_connect_timeout;
        let shard = Shard::new(id, &names, shard.clone(), timeout, shards.first())?;
        shards.push(Arc::new(shard));
    }
    Ok(shards)
}

async fn accept(
    process: Arc<Process>,
    listener: TcpListener,
    doors: Vec<mpsc::Sender<Accepted>>,
    stop: CancellationToken,
) {
    let mut next = 0;
    let (turned_away, failed) = (LogBudget::default(), LogBudget::default());
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => return,
            accepted = listener.accept() => accepted,
        };
        match accepted {
            Ok((stream, peer)) => {
                let guest = process.lobby.enter(peer.ip());
                let client = Accepted {
                    stream,
                    peer,
                    guest,
                };
                // A full door means that this thread cannot keep up: the client is let go, and
                // sees a closed connection.
                if doors[next].try_send(client).is_err()
                    && let Some(suppressed) = turned_away.line()
                {
                    tracing::warn!(
                        suppressed,
                        "a client was turned away: too many are logging in"
                    );
                }
                next = (next + 1) % doors.len();
            }
            Err(error) => {
                if let Some(suppressed) = failed.line() {
                    tracing::error!(%error, suppressed, "could not accept a client");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// One thread with a runtime of its own: a client and its server connections stay on one core.
fn serve_on_thread(
    number: usize,
    process: Arc<Process>,
    accepted: mpsc::Receiver<Accepted>,
    stop: CancellationToken,
) -> Result<std::thread::JoinHandle<()>, StartError> {
    let thread = process.add_thread();
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(StartError::Thread)?;
    std::thread::Builder::new()
        .name(format!("serve-{number}"))
        // Short texts can be deep, too, and are planned here.
        .stack_size(PLANNING_STACK_BYTES)
        .spawn(move || runtime.block_on(serve(process, thread, accepted, stop)))
        .map_err(StartError::Thread)
}

async fn serve(
    process: Arc<Process>,
    thread: Arc<Thread>,
    mut accepted: mpsc::Receiver<Accepted>,
    stop: CancellationToken,
) {
    let sessions = TaskTracker::new();
    loop {
        let client = tokio::select! {
            () = stop.cancelled() => break,
            client = accepted.recv() => client,
        };
        let Some(mut client) = client else { break };
        // The accepting runtime registered the socket; this thread's runtime takes it over.
        let moved = client.stream.into_std().and_then(TcpStream::from_std);
        let Ok(stream) = moved else { continue };
        if stream.set_nodelay(true).is_err() {
            continue;
        }
        client.stream = stream;
        sessions.spawn(greet(process.clone(), thread.clone(), client, stop.clone()));
    }
    sessions.close();
    if tokio::time::timeout(FAREWELL, sessions.wait())
        .await
        .is_err()
    {
        tracing::warn!("some sessions were ended in the middle of a statement");
    }
    process.tasks.close();
}

async fn greet(
    process: Arc<Process>,
    thread: Arc<Thread>,
    client: Accepted,
    stop: CancellationToken,
) {
    let Accepted {
        stream,
        peer,
        guest,
    } = client;
    // Nobody is logged in yet: dropping the conversation leaves nothing behind.
    let hello = tokio::select! {
        biased;
        () = guest.shown_out() => {
            if let Some(suppressed) = process.lobby.made_room.line() {
                tracing::info!(%peer, suppressed, "a client that was not logged in made room for others");
            }
            return;
        }
        hello = Box::pin(login::welcome(&process, stream, peer, &guest)) => hello,
    };
    drop(guest);
    let Some(mut hello) = hello else { return };
    let place = match process.admit() {
        Ok(place) => place,
        Err(report) => {
            login::refuse(&mut hello.wire, Failure::from(report)).await;
            return;
        }
    };
    session::serve(process, thread, hello, peer.to_string(), stop).await;
    drop(place);
}

/// What is due every second: the lobby is swept, log lines that were left out are told of, figures go
/// to `/metrics`.
async fn every_second(process: Arc<Process>, stop: CancellationToken) {
    let mut tick = tokio::time::interval(Duration::from_secs(1));
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => {}
        }
        process.lobby.sweep();
        if let Some(suppressed) = process.lobby.refused.left_out() {
            tracing::info!(suppressed, "login refused");
        }
        if let Some(suppressed) = process.lobby.made_room.left_out() {
            tracing::info!(
                suppressed,
                "a client that was not logged in made room for others"
            );
        }
        metrics::gauge!("automator67_memory_held_bytes").set(process.memory.held() as f64);
        for pool in process.pools() {
            let labels = [("shard", pool.shard), ("user", pool.user)];
            metrics::gauge!("automator67_pool_connections_max", &labels).set(pool.size_max as f64);
            metrics::gauge!("automator67_pool_connections_idle", &labels).set(pool.idle as f64);
            metrics::gauge!("automator67_pool_connections_active", &labels).set(pool.active as f64);
            metrics::gauge!("automator67_pool_queue", &labels).set(pool.waiting as f64);
        }
    }
}

//! All local shards: started together, watched, stopped together.

use std::time::{Duration, Instant};

use anyhow::Result;
use futures_util::future::{join_all, select_all, try_join_all};
use nix::sys::signal::Signal;
use tokio::process::Child;
use tokio_util::sync::CancellationToken;

use super::cluster::Cluster;

/// First and longest pause before a shard that died is started again.
const RESTART: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(30));
/// A shard that ran for this long begins with the first pause again.
const STEADY: Duration = Duration::from_secs(60);
/// How long a fast shutdown may take; then it becomes an immediate one, which loses nothing
/// committed either, but makes the next start recover.
const FAST_SHUTDOWN: Duration = Duration::from_secs(30);

/// The shards and their servers' processes. Processes are started on the thread that calls: it
/// must be the main one, whose end is theirs.
pub struct Shards {
    clusters: Vec<Cluster>,
    running: Vec<Option<Running>>,
}

struct Running {
    child: Child,
    since: Instant,
    pause: Duration,
}

impl Shards {
    /// None of them running.
    pub fn new(clusters: Vec<Cluster>) -> Shards {
        let running = clusters.iter().map(|_| None).collect();
        Shards { clusters, running }
    }

    /// In the order of their numbers; the first is the home shard.
    pub fn clusters(&self) -> &[Cluster] {
        &self.clusters
    }

    /// Sees to it that no server of an earlier run is there.
    pub async fn end_left_over(&self) -> Result<()> {
        let told = try_join_all(self.clusters.iter().map(Cluster::end_left_over)).await?;
        for what in told.into_iter().flatten() {
            tracing::warn!("{what}");
        }
        Ok(())
    }

    /// Makes those that do not exist yet.
    pub async fn make_clusters(&self, password: &str) -> Result<()> {
        let missing = self.clusters.iter().filter(|cluster| !cluster.exists());
        let make = async |cluster: &Cluster| {
            tracing::info!(shard = cluster.name, "making a Postgres cluster");
            cluster.make(password).await
        };
        try_join_all(missing.map(make)).await?;
        Ok(())
    }

    /// Sets the login's password while none of them is running.
    pub async fn set_password(&self, password: &str) -> Result<()> {
        tracing::info!("setting the password on every shard");
        let set = |cluster| Cluster::set_password(cluster, password);
        try_join_all(self.clusters.iter().map(set)).await?;
        Ok(())
    }

    /// Starts all. Those that did start are there to be stopped, also when one did not.
    pub async fn start(&mut self, password: &str) -> Result<()> {
        let start = |cluster| Cluster::start(cluster, password);
        let started = join_all(self.clusters.iter().map(start)).await;
        let mut outcome = Ok(());
        for (running, started) in self.running.iter_mut().zip(started) {
            match started {
                Ok(child) => *running = Some(Running::new(child, RESTART.0)),
                Err(error) => outcome = outcome.and(Err(error)),
            }
        }
        outcome
    }

    /// Starts those again that die, until `stop`.
    pub async fn supervise(&mut self, stop: &CancellationToken, password: &str) {
        loop {
            let died = self
                .running
                .iter_mut()
                .enumerate()
                .filter_map(|(index, running)| running.as_mut().map(|it| (index, it)))
                .map(|(index, it)| Box::pin(async move { (index, it.child.wait().await) }));
            // Waiting for a child may be given up and begun again at any time.
            let ((index, status), ..) = tokio::select! {
                () = stop.cancelled() => return,
                died = select_all(died) => died,
            };
            let cluster = &self.clusters[index];
            let status = status.map_or_else(|error| error.to_string(), |status| status.to_string());
            tracing::error!(shard = cluster.name, status, log = %cluster.log.display(), "a shard's server ended");
            let mut pause = match self.running[index].take() {
                Some(died) if died.since.elapsed() < STEADY => died.pause,
                _ => RESTART.0,
            };
            let child = loop {
                tokio::select! {
                    () = stop.cancelled() => return,
                    () = tokio::time::sleep(pause) => {}
                }
                pause = (pause * 2).min(RESTART.1);
                let started = tokio::select! {
                    () = stop.cancelled() => return,
                    started = self.clusters[index].start(password) => started,
                };
                match started {
                    Ok(child) => break child,
                    Err(error) => tracing::error!("{error:#}"),
                }
            };
            tracing::info!(shard = self.clusters[index].name, "started again");
            self.running[index] = Some(Running::new(child, pause));
        }
    }

    /// Stops all; `hurry` cuts the waiting short.
    pub async fn stop(&mut self, hurry: &CancellationToken) {
        let stops =
            self.clusters
                .iter()
                .zip(&mut self.running)
                .map(|(cluster, running)| async move {
                    if let Some(running) = running {
                        stop(cluster, &mut running.child, hurry).await;
                    }
                });
        join_all(stops).await;
    }
}

async fn stop(cluster: &Cluster, child: &mut Child, hurry: &CancellationToken) {
    cluster.signal(child, Signal::SIGINT);
    let stopped = tokio::select! {
        _ = child.wait() => true,
        () = tokio::time::sleep(FAST_SHUTDOWN) => false,
        () = hurry.cancelled() => false,
    };
    if !stopped {
        tracing::warn!(shard = cluster.name, "stopping the server at once");
        cluster.signal(child, Signal::SIGQUIT);
        // Postgres itself kills what does not end within 5 s of an immediate shutdown.
        let _ = child.wait().await;
    }
}

impl Running {
    fn new(child: Child, pause: Duration) -> Running {
        Running {
            child,
            since: Instant::now(),
            pause,
        }
    }
}

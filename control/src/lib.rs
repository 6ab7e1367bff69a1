//! The HTTP port: `/metrics` for Prometheus and `/healthz` for whoever restarts us.
//!
//! Metrics are recorded through the `metrics` facade everywhere else; [`Metrics`] is where they
//! come together. Nothing here touches a session.

use std::{net::SocketAddr, time::Duration};

use axum::{Router, extract::State, http::header, response::IntoResponse, routing::get};
use metrics_exporter_prometheus::{BuildError, Matcher, PrometheusBuilder, PrometheusHandle};
use thiserror::Error;
use tokio::{net::TcpListener, task::JoinHandle};
use tokio_util::sync::CancellationToken;

/// Upper bounds of the buckets of every histogram whose name ends in `_seconds`: 50 µs doubled
/// up to 10 s.
const SECONDS_BUCKETS: [f64; 19] = [
    0.00005, 0.0001, 0.0002, 0.0004, 0.0008, 0.0016, 0.0032, 0.0064, 0.0128, 0.0256, 0.0512,
    0.1024, 0.2048, 0.4096, 0.8192, 1.6384, 3.2768, 6.5536, 10.0,
];
/// How often samples of histograms are folded into their buckets, scraped or not.
const UPKEEP_INTERVAL: Duration = Duration::from_secs(5);

/// Why the HTTP port could not be opened.
#[derive(Debug, Error)]
pub enum StartError {
    /// The recorder of metrics.
    #[error("could not set up the metrics: {0}")]
    Metrics(#[from] BuildError),
    /// The port.
    #[error("could not listen on {address}: {cause}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        cause: std::io::Error,
    },
}

/// All metrics of the process.
#[derive(Clone)]
pub struct Metrics(PrometheusHandle);

impl Metrics {
    /// Becomes the process's recorder. Handles made before this record nothing, so it comes first.
    pub fn install() -> Result<Metrics, StartError> {
        let seconds = Matcher::Suffix("_seconds".to_owned());
        let handle = PrometheusBuilder::new()
            .set_buckets_for_metric(seconds, &SECONDS_BUCKETS)?
            .install_recorder()?;
        Ok(Metrics(handle))
    }
}

/// The open HTTP port.
#[derive(Debug)]
pub struct Control {
    address: SocketAddr,
    server: JoinHandle<()>,
}

impl Control {
    /// Opens the port and serves it until `stop` is cancelled.
    pub async fn start(
        listen: SocketAddr,
        metrics: Metrics,
        stop: CancellationToken,
    ) -> Result<Control, StartError> {
        let failed = |cause| StartError::Listen {
            address: listen,
            cause,
        };
        let listener = TcpListener::bind(listen).await.map_err(failed)?;
        let address = listener.local_addr().map_err(failed)?;
        let server = tokio::spawn(serve(listener, metrics, stop));
        Ok(Control { address, server })
    }

    /// Where it listens.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Waits for the end.
    pub async fn wait(self) {
        if let Err(error) = self.server.await {
            tracing::error!(%error, "the HTTP port ended in a panic");
        }
    }
}

async fn serve(listener: TcpListener, metrics: Metrics, stop: CancellationToken) {
    let upkeep = tokio::spawn(fold_samples(metrics.clone(), stop.clone()));
    let server = axum::serve(listener, routes(metrics)).with_graceful_shutdown({
        let stop = stop.clone();
        async move { stop.cancelled().await }
    });
    // A scraper that keeps its connection open must not keep the process from ending.
    let ended = tokio::select! {
        ended = server => ended,
        () = linger(&stop) => Ok(()),
    };
    if let Err(error) = ended {
        tracing::error!(%error, "the HTTP port stopped");
    }
    upkeep.abort();
}

/// The time that open HTTP connections get after the stop.
async fn linger(stop: &CancellationToken) {
    stop.cancelled().await;
    tokio::time::sleep(Duration::from_secs(1)).await;
}

async fn fold_samples(metrics: Metrics, stop: CancellationToken) {
    let mut tick = tokio::time::interval(UPKEEP_INTERVAL);
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            _ = tick.tick() => metrics.0.run_upkeep(),
        }
    }
}

fn routes(metrics: Metrics) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/metrics", get(render))
        .with_state(metrics)
}

async fn render(State(metrics): State<Metrics>) -> impl IntoResponse {
    let exposition = [(header::CONTENT_TYPE, "text/plain; version=0.0.4")];
    (exposition, metrics.0.render())
}

#[cfg(test)]
mod tests;

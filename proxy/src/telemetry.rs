//! Metrics, with handles made once. Names end in their unit.

use std::time::Duration;

use metrics::{Counter, Gauge, Histogram};

/// How a statement ran, as metrics, EXPLAIN and `automator67.sessions` name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Tier {
    /// One shard.
    Single,
    /// Writes or DDL on several shards.
    Multi,
    /// Rows of several shards, as they come or in order.
    Scatter,
    /// Partial results of several shards, put together.
    Merge,
    /// Rows copied to the home shard.
    Gather,
    /// Answered by the proxy.
    Proxy,
}

impl Tier {
    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Tier::Single => "single",
            Tier::Multi => "multi",
            Tier::Scatter => "scatter",
            Tier::Merge => "merge",
            Tier::Gather => "gather",
            Tier::Proxy => "proxy",
        }
    }
}

/// Kinds of statements that have a counter of their own; the rest is `other`.
const KINDS: [&str; 9] = [
    "select",
    "insert",
    "update",
    "delete",
    "copy",
    "ddl",
    "transaction",
    "set",
    "other",
];

/// Handles of the process.
pub struct Telemetry {
    /// Sessions now.
    pub sessions: Gauge,
    /// Bytes from shards to clients.
    pub bytes_to_clients: Counter,
    /// Bytes that gather moved to the home shard.
    pub bytes_gathered: Counter,
    /// Bytes that shards have sent as their parts of an answer.
    pub bytes_scattered: Counter,
    /// Bytes of relations that were moved to every shard.
    pub bytes_moved: Counter,
    /// Plans found in the cache.
    pub plan_hits: Counter,
    /// Plans made.
    pub plan_misses: Counter,
    /// Refused logins.
    pub login_failures: Counter,
    /// Failed statements.
    pub errors: Counter,
    /// Deadlocks over several shards that were ended.
    pub deadlocks: Counter,
    statements: Vec<Vec<Counter>>,
    seconds: Vec<Histogram>,
}

const TIERS: [Tier; 6] = [
    Tier::Single,
    Tier::Multi,
    Tier::Scatter,
    Tier::Merge,
    Tier::Gather,
    Tier::Proxy,
];

impl Telemetry {
    /// Registers everything.
    pub fn new() -> Self {
        let statements = |tier: &Tier| {
            let counter = |kind: &&'static str| metrics::counter!("automator67_statements_total", "tier" => tier.name(), "kind" => *kind);
            KINDS.iter().map(counter).collect()
        };
        let seconds = |tier: &Tier| metrics::histogram!("automator67_statement_seconds", "tier" => tier.name());
        Telemetry {
            sessions: metrics::gauge!("automator67_sessions"),
            bytes_to_clients: metrics::counter!("automator67_bytes_to_clients_total"),
            bytes_gathered: metrics::counter!("automator67_bytes_gathered_total"),
            bytes_scattered: metrics::counter!("automator67_bytes_scattered_total"),
            bytes_moved: metrics::counter!("automator67_bytes_moved_total"),
            plan_hits: metrics::counter!("automator67_plan_cache_hits_total"),
            plan_misses: metrics::counter!("automator67_plan_cache_misses_total"),
            login_failures: metrics::counter!("automator67_login_failures_total"),
            errors: metrics::counter!("automator67_statement_errors_total"),
            deadlocks: metrics::counter!("automator67_deadlocks_total"),
            statements: TIERS.iter().map(statements).collect(),
            seconds: TIERS.iter().map(seconds).collect(),
        }
    }

    /// Counts a statement.
    pub fn statement(&self, tier: Tier, kind: &str, took: Duration) {
        let tier = tier as usize;
        let kind = KINDS
            .iter()
            .position(|known| *known == kind)
            .unwrap_or(KINDS.len() - 1);
        self.statements[tier][kind].increment(1);
        self.seconds[tier].record(took.as_secs_f64());
    }
}

impl Default for Telemetry {
    fn default() -> Self {
        Telemetry::new()
    }
}

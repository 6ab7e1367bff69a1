//! Transactions over several shards after a crash: what shards need for them, how they are named,
//! and the loop that ends what a proxy or a shard has left unfinished.
//!
//! One shard, the anchor, decides: its own transaction holds the lock on the name and inserts the
//! row `automator67.decision`, and its COMMIT is that of all. The others are prepared before. So
//! who finds a prepared part looks at the anchor: while the lock is held, its transaction has not
//! ended; after that, the row is there or will never be. No proxy keeps a log of its own, and any
//! proxy can do this for any other.

use std::{
    collections::{HashMap, HashSet},
    sync::{
        Arc, Mutex,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use automator67_planner::catalog::ShardId;
use tokio::time::Instant;
use tokio_postgres::{Client, error::SqlState};
use tokio_util::sync::CancellationToken;

use crate::{
    failpoint,
    process::{Process, lock},
    shard::Shard,
    store::{self, StoreError},
};

mod name;

pub use name::Name;

/// How often shards are asked for prepared transactions.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// One statement on one shard.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Younger ones are most likely being ended by their own session.
const LEAVE_ALONE: Duration = Duration::from_secs(1);
/// Every so many looks, decisions that a crash has left are removed.
const SWEEP_EVERY: u64 = 15;
const SWEEP_ROWS_MAX: i64 = 10_000;
/// The longest list of finished decisions between two looks; the sweep finds the rest.
const FINISHED_MAX: usize = 100_000;

const PREPARED: &str = "select gid, owner, extract(epoch from prepared)::float8, \
    extract(epoch from clock_timestamp() - prepared)::float8 from pg_catalog.pg_prepared_xacts \
    where database = current_database() and starts_with(gid, $1) order by prepared";
const TRY_LOCK: &str = "select pg_catalog.pg_try_advisory_xact_lock(hashtextextended($1, 67))";
const WAIT_FOR_LOCK: &str = "select pg_catalog.pg_advisory_xact_lock(hashtextextended($1, 67))";
const DECIDED: &str = "select exists (select from automator67.decision where gid = $1)";

/// What a process knows of its transactions over several shards.
pub struct TwoPhase {
    cluster: String,
    proxy: u32,
    next: AtomicU64,
    /// By anchor: transactions of which no shard has a prepared part any more.
    finished: Mutex<HashMap<ShardId, Vec<String>>>,
    wake: tokio::sync::Notify,
}

/// A prepared part of a transaction on a shard.
#[derive(Debug, Clone)]
pub struct Part {
    /// Where.
    pub shard: ShardId,
    /// The name, as the shard has it.
    pub gid: String,
    /// The role that prepared it.
    pub owner: String,
    /// Since when, in seconds since 1970, by the shard's clock.
    pub prepared_at: f64,
    /// Seconds since then.
    pub age: f64,
}

impl TwoPhase {
    /// For the catalog named `cluster`.
    pub fn new(cluster: String) -> Self {
        TwoPhase {
            cluster,
            proxy: rand::random(),
            next: AtomicU64::new(1),
            finished: Mutex::default(),
            wake: tokio::sync::Notify::new(),
        }
    }

    /// A new name for a transaction.
    pub fn name(&self, anchor: ShardId, parts: &[ShardId]) -> Name {
        Name {
            cluster: self.cluster.clone(),
            proxy: self.proxy,
            number: self.next.fetch_add(1, Ordering::Relaxed),
            anchor,
            parts: parts.to_vec(),
        }
    }

    /// This proxy's number.
    pub fn proxy(&self) -> u32 {
        self.proxy
    }

    /// A name that no other session of any proxy has.
    pub fn private_name(&self, session: u64) -> String {
        format!("p{:08x}s{session:x}", self.proxy)
    }

    /// No shard has a part of it any more: its decision can go.
    pub fn finish(&self, anchor: ShardId, gid: String) {
        let mut finished = lock(&self.finished);
        let gids = finished.entry(anchor).or_default();
        if gids.len() < FINISHED_MAX {
            gids.push(gid);
        }
    }

    /// Something was left to the recovery.
    pub fn look_now(&self) {
        self.wake.notify_one();
    }

    fn prefix(&self) -> String {
        format!("{}{}_", name::PREFIX, self.cluster)
    }
}

/// Whether a shard can prepare transactions, as far as is known.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ability {
    /// Not asked yet.
    Unknown,
    /// Yes.
    Ready,
    /// No: `max_prepared_transactions` is 0. It can be the anchor.
    DecideOnly,
    /// It has not what is needed, and why.
    Unable(String),
}

/// Gives a shard what it needs, once, and finds out whether it can prepare transactions.
pub async fn ensure(shard: &Arc<Shard>) -> Ability {
    let known = shard.two_phase();
    if known != Ability::Unknown {
        return known;
    }
    match tokio::time::timeout(STATEMENT_TIMEOUT * 2, store::set_up_shard(shard)).await {
        Ok(Ok(0)) => shard.set_two_phase(Ability::DecideOnly),
        Ok(Ok(_)) => shard.set_two_phase(Ability::Ready),
        Ok(Err(error @ StoreError::Connect(..))) => {
            tracing::debug!(shard = shard.settings.name, %error, "not asked for two-phase commit");
        }
        Ok(Err(error)) => {
            tracing::warn!(shard = shard.settings.name, %error, "two-phase commit could not be set up");
            shard.set_two_phase(Ability::Unable(error.to_string()));
        }
        Err(_) => {}
    }
    shard.two_phase()
}

/// Ends unfinished transactions until `stop`.
pub async fn recover(process: Arc<Process>, stop: CancellationToken) {
    let mut recovery = Recovery::default();
    for look in 0.. {
        recovery.look(&process, look).await;
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
            // What was left a moment ago is old enough a moment later.
            () = process.two_phase.wake.notified() => tokio::time::sleep(LEAVE_ALONE).await,
        }
    }
}

/// Prepared parts on all shards that answer, and what is to become of each: `committing` while
/// its transaction has not ended, `in doubt` while its anchor cannot be asked.
pub async fn list(process: &Process) -> Vec<(Part, &'static str)> {
    let mut recovery = Recovery::default();
    let mut all = Vec::new();
    for shard in process.shards.iter().filter(|shard| shard.is_up()) {
        for part in recovery.parts(process, shard).await.unwrap_or_default() {
            let mut state = "in doubt";
            if let Some(mut anchor) = recovery.anchor(process, &part.gid).await
                && let Ok(verdict) = timely(ended(&mut anchor, &part.gid)).await
            {
                state = match verdict {
                    None => "committing",
                    Some(true) => "committed",
                    Some(false) => "rolled back",
                };
                recovery.keep(&part.gid, anchor);
            }
            all.push((part, state));
        }
    }
    all
}

/// Connections, opened when they are needed and kept.
#[derive(Default)]
struct Recovery {
    clients: HashMap<ShardId, Client>,
}

impl Recovery {
    async fn look(&mut self, process: &Arc<Process>, look: u64) {
        let mut parts: Vec<Part> = Vec::new();
        let mut all_answered = true;
        // Before the parts are listed: a decision that is there now has had all its parts prepared.
        let sweep = look % SWEEP_EVERY == SWEEP_EVERY - 1;
        let old = if sweep {
            self.old_decisions(process).await
        } else {
            HashMap::new()
        };
        for shard in &process.shards {
            if !shard.is_up() || ensure(shard).await == Ability::Unknown {
                all_answered = false;
                continue;
            }
            match self.parts(process, shard).await {
                Ok(found) => parts.extend(found),
                Err(error) => {
                    all_answered = false;
                    tracing::debug!(shard = shard.settings.name, %error, "could not list prepared transactions");
                }
            }
        }
        metrics::gauge!("automator67_prepared_transactions").set(parts.len() as f64);
        let oldest = parts.iter().map(|part| part.age).fold(0.0, f64::max);
        metrics::gauge!("automator67_prepared_transaction_oldest_seconds").set(oldest);
        for part in &parts {
            if part.age >= LEAVE_ALONE.as_secs_f64() {
                self.resolve(process, part).await;
            }
        }
        self.remove_finished(process).await;
        if all_answered {
            self.sweep(process, old, &parts).await;
        }
    }

    /// Runs one query on a shard; a connection that fails is not kept.
    async fn parts(
        &mut self,
        process: &Process,
        shard: &Arc<Shard>,
    ) -> Result<Vec<Part>, StoreError> {
        let client = self.client(shard).await?;
        let rows = timely(client.query(PREPARED, &[&process.two_phase.prefix()])).await?;
        self.clients.insert(shard.id, client);
        Ok(rows
            .iter()
            .map(|row| Part {
                shard: shard.id,
                gid: row.get(0),
                owner: row.get(1),
                prepared_at: row.get(2),
                age: row.get(3),
            })
            .collect())
    }

    /// A connection, out of those that are kept.
    async fn client(&mut self, shard: &Arc<Shard>) -> Result<Client, StoreError> {
        if let Some(client) = self
            .clients
            .remove(&shard.id)
            .filter(|one| !one.is_closed())
        {
            return Ok(client);
        }
        let (client, connection) = store::connect(shard).await?;
        // It ends with its client.
        tokio::spawn(connection);
        Ok(client)
    }

    /// A connection to the anchor of a transaction.
    async fn anchor(&mut self, process: &Process, gid: &str) -> Option<Client> {
        let name = Name::parse(gid)?;
        let shard = process.shard(name.anchor).ok()?;
        self.client(shard).await.ok()
    }

    fn keep(&mut self, gid: &str, anchor: Client) {
        if let Some(name) = Name::parse(gid) {
            self.clients.insert(name.anchor, anchor);
        }
    }

    /// Ends one part as its anchor says, if that has ended.
    async fn resolve(&mut self, process: &Arc<Process>, part: &Part) {
        let Some(mut anchor) = self.anchor(process, &part.gid).await else {
            return;
        };
        failpoint::reach("recovery.before_lock", None).await;
        let commit = match timely(ended(&mut anchor, &part.gid)).await {
            Ok(Some(commit)) => commit,
            Ok(None) => {
                self.keep(&part.gid, anchor);
                return;
            }
            Err(error) => {
                tracing::debug!(gid = part.gid, %error, "could not ask the anchor");
                return;
            }
        };
        self.keep(&part.gid, anchor);
        failpoint::reach("recovery.after_lock", None).await;
        let Ok(shard) = process.shard(part.shard) else {
            return;
        };
        match finish_part(process, shard, &part.gid, Some(&part.owner), commit).await {
            Ok(()) => {
                let outcome = if commit { "committed" } else { "rolled back" };
                tracing::info!(
                    gid = part.gid,
                    shard = shard.settings.name,
                    outcome,
                    "ended a prepared transaction"
                );
                let label = if commit { "commit" } else { "rollback" };
                metrics::counter!("automator67_recovered_transactions_total", "outcome" => label)
                    .increment(1);
                failpoint::reach("recovery.after_resolve", None).await;
            }
            Err(error) => {
                tracing::warn!(gid = part.gid, shard = shard.settings.name, %error, "could not end a prepared transaction");
            }
        }
    }

    async fn remove_finished(&mut self, process: &Process) {
        let finished = std::mem::take(&mut *lock(&process.two_phase.finished));
        for (anchor, gids) in finished {
            if let Ok(shard) = process.shard(anchor) {
                // What cannot be removed now, the sweep finds.
                let _ = self.remove(shard, &gids).await;
            }
        }
    }

    async fn remove(&mut self, shard: &Arc<Shard>, gids: &[String]) -> Result<(), StoreError> {
        let client = self.client(shard).await?;
        let text = "delete from automator67.decision where gid = any($1)";
        timely(client.execute(text, &[&gids])).await?;
        self.clients.insert(shard.id, client);
        Ok(())
    }

    /// Decisions that are older than any commit takes, by anchor.
    async fn old_decisions(&mut self, process: &Process) -> HashMap<ShardId, Vec<String>> {
        let mut old = HashMap::new();
        let text = "select gid from automator67.decision \
            where decided_at < clock_timestamp() - interval '1 minute' limit $1";
        for shard in process.shards.iter().filter(|shard| shard.is_up()) {
            let Ok(client) = self.client(shard).await else {
                continue;
            };
            if let Ok(rows) = timely(client.query(text, &[&SWEEP_ROWS_MAX])).await {
                old.insert(shard.id, rows.iter().map(|row| row.get(0)).collect());
                self.clients.insert(shard.id, client);
            }
        }
        old
    }

    /// Removes old decisions of which no shard has a part.
    async fn sweep(
        &mut self,
        process: &Process,
        old: HashMap<ShardId, Vec<String>>,
        parts: &[Part],
    ) {
        let open: HashSet<&str> = parts.iter().map(|part| part.gid.as_str()).collect();
        for (anchor, gids) in old {
            let done: Vec<String> = gids
                .into_iter()
                .filter(|gid| !open.contains(gid.as_str()))
                .collect();
            if let (Ok(shard), false) = (process.shard(anchor), done.is_empty()) {
                let _ = self.remove(shard, &done).await;
            }
        }
    }
}

/// How the anchor's transaction has ended; `None`: it has not.
async fn ended(anchor: &mut Client, gid: &str) -> Result<Option<bool>, tokio_postgres::Error> {
    let transaction = anchor.transaction().await?;
    let free: bool = transaction.query_one(TRY_LOCK, &[&gid]).await?.get(0);
    let verdict = if free {
        Some(transaction.query_one(DECIDED, &[&gid]).await?.get(0))
    } else {
        None
    };
    transaction.rollback().await?;
    Ok(verdict)
}

/// How the anchor's transaction has ended, waiting for that until `deadline`; `None`: it cannot be
/// known yet.
pub async fn outcome(shard: &Arc<Shard>, gid: &str, deadline: Instant) -> Option<bool> {
    let ask = async {
        loop {
            if let Ok(verdict) = ask_for_outcome(shard, gid).await {
                return verdict;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout_at(deadline, ask).await.ok()
}

async fn ask_for_outcome(shard: &Arc<Shard>, gid: &str) -> Result<bool, StoreError> {
    let (mut client, connection) = store::connect(shard).await?;
    tokio::spawn(connection);
    let transaction = client.transaction().await?;
    transaction.query_one(WAIT_FOR_LOCK, &[&gid]).await?;
    Ok(transaction.query_one(DECIDED, &[&gid]).await?.get(0))
}

/// COMMIT PREPARED or ROLLBACK PREPARED until it is done, at most until `deadline`.
pub async fn finish_surely(
    process: &Process,
    shard: &Arc<Shard>,
    gid: &str,
    commit: bool,
    deadline: Instant,
) -> bool {
    let finish = async {
        while finish_part(process, shard, gid, None, commit)
            .await
            .is_err()
        {
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout_at(deadline, finish).await.is_ok()
}

/// Ends a part. One that is not there any more was ended by somebody else, in the same way.
async fn finish_part(
    process: &Process,
    shard: &Arc<Shard>,
    gid: &str,
    owner: Option<&str>,
    commit: bool,
) -> Result<(), StoreError> {
    let verb = if commit { "COMMIT" } else { "ROLLBACK" };
    let text = format!("{verb} PREPARED {}", crate::guc::quote_literal(gid));
    let (client, connection) = store::connect(shard).await?;
    tokio::spawn(connection);
    let error = match timely(client.batch_execute(&text)).await {
        Ok(()) => return Ok(()),
        Err(error) => error,
    };
    match code(&error) {
        Some(state) if *state == SqlState::UNDEFINED_OBJECT => Ok(()),
        Some(state) if *state == SqlState::INSUFFICIENT_PRIVILEGE => {
            // Only a superuser ends what another role has prepared.
            let owner = owner.and_then(|name| process.logins.get(name));
            let Some(login) = owner else {
                return Err(error);
            };
            let (client, connection) =
                store::connect_as(shard, &login.user.name, &login.user.password).await?;
            tokio::spawn(connection);
            timely(client.batch_execute(&text)).await
        }
        _ => Err(error),
    }
}

fn code(error: &StoreError) -> Option<&SqlState> {
    match error {
        StoreError::Postgres(error) => error.code(),
        _ => None,
    }
}

async fn timely<T>(
    work: impl Future<Output = Result<T, tokio_postgres::Error>>,
) -> Result<T, StoreError> {
    match tokio::time::timeout(STATEMENT_TIMEOUT, work).await {
        Ok(result) => Ok(result?),
        Err(_) => Err(StoreError::Timeout),
    }
}

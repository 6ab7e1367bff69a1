//! Transactions over several shards after a crash: what shards need for them, how they are named,
//! and the loop that ends what a proxy or a shard has left unfinished.
//!
//! One shard, the anchor, decides: its own transaction takes the lock on the name and writes the
//! transaction's number into `automator67.commit_register`, and its COMMIT is that of all. The
//! others are prepared before. So who finds a prepared part looks at the anchor: while the lock is
//! held, the transaction may still commit; when it can be taken, the number is there, or whoever
//! looks writes it down as rolled back, which the transaction cannot take back. No proxy keeps a
//! log of its own, and any proxy can do this for any other.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
    time::Duration,
};

use automator67_planner::catalog::ShardId;
use tokio::time::Instant;
use tokio_postgres::{Client, Transaction, error::SqlState, types::ToSql};
use tokio_util::sync::CancellationToken;

use crate::{
    failpoint,
    process::Process,
    server::call::Key,
    shard::Shard,
    store::{self, StoreError},
};

mod name;
mod register;

pub use name::{Name, fits};
pub use register::{MOMENT, Moments, Note, SEEN, Seen, Turn, behind, past};

/// How often shards are asked for prepared transactions.
const LOOK_INTERVAL: Duration = Duration::from_secs(2);
/// One statement on one shard.
const STATEMENT_TIMEOUT: Duration = Duration::from_secs(5);
/// Younger ones are most likely being ended by their own session.
const LEAVE_ALONE: Duration = Duration::from_secs(1);
/// Those of another proxy that are not decided may still be: a shard may be slow to prepare.
const UNDECIDED: Duration = Duration::from_secs(4);
/// Every so many looks, at the first one, too, old notes are removed.
const SWEEP_EVERY: u64 = 1800;

const PREPARED: &str = "select gid, owner, extract(epoch from prepared)::float8, \
    extract(epoch from clock_timestamp() - prepared)::float8 from pg_catalog.pg_prepared_xacts \
    where database = current_database() and starts_with(gid, $1) order by prepared";
const TRY_LOCK: &str = "select pg_try_advisory_xact_lock(automator67.gid_lock($1))";
const WAIT_FOR_LOCK: &str = "select pg_advisory_xact_lock(automator67.gid_lock($1))";
const DECIDED: &str = "select number, committed from automator67.commit_register \
    where proxy = $1 and slot = $2";
const ROLLED_BACK: &str = "insert into automator67.commit_register as known \
    (proxy, slot, number, committed, last) values ($1, $2, $3, false, '{}') \
    on conflict (proxy, slot) do update set number = excluded.number, committed = false, \
    changed_at = excluded.changed_at where known.number < excluded.number";

/// Foreign names that were logged; beyond it the log is silent about new ones.
const FOREIGN_MAX: usize = 1000;

/// The catalog and its shards, as all proxies know them.
pub struct Cluster {
    /// 8 hexadecimal digits.
    pub name: String,
    /// What proxies sign names with.
    pub key: Key,
    /// Since when they do, in seconds since 1970. Older names have no digest.
    pub signed_since: f64,
}

/// What a process knows of its transactions over several shards.
pub struct TwoPhase {
    cluster: Cluster,
    proxy: u32,
    slots: register::Slots,
    wake: tokio::sync::Notify,
}

/// A prepared part of a transaction on a shard.
#[derive(Debug, Clone)]
pub struct Part {
    /// Where.
    pub shard: ShardId,
    /// The name, as the shard has it.
    pub gid: String,
    /// What it says.
    pub name: Name,
    /// The role that prepared it.
    pub owner: String,
    /// Since when, in seconds since 1970, by the shard's clock.
    pub prepared_at: f64,
    /// Seconds since then.
    pub age: f64,
}

impl TwoPhase {
    /// For this cluster.
    pub fn new(cluster: Cluster) -> Self {
        TwoPhase {
            cluster,
            proxy: rand::random(),
            slots: register::Slots::default(),
            wake: tokio::sync::Notify::new(),
        }
    }

    /// A slot to commit in.
    pub fn turn(&self) -> Turn {
        self.slots.take()
    }

    /// The name of a transaction.
    pub fn name(&self, number: u64, anchor: ShardId, parts: &[ShardId]) -> Name {
        Name {
            cluster: self.cluster.name.clone(),
            proxy: self.proxy,
            number,
            anchor,
            parts: parts.to_vec(),
        }
    }

    /// What a shard is told as the name.
    pub fn gid(&self, name: &Name, shard: ShardId) -> String {
        name.signed(&self.cluster.key, shard)
    }

    /// Reads what a shard has prepared, at this second since 1970. `None`: no proxy has.
    fn read(&self, gid: &str, shard: ShardId, prepared_at: f64) -> Option<Name> {
        Name::parse_signed(gid, &self.cluster.key, shard).or_else(|| {
            let old = prepared_at < self.cluster.signed_since;
            old.then(|| Name::parse(gid))?
        })
    }

    /// This proxy's number.
    pub fn proxy(&self) -> u32 {
        self.proxy
    }

    /// Something was left to the recovery.
    pub fn look_now(&self) {
        self.wake.notify_one();
    }

    fn prefix(&self) -> String {
        format!("{}{}_", name::PREFIX, self.cluster.name)
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

/// Prepared parts on all shards that answer, and what is to become of each: `undecided` or
/// `committing` while its transaction has not ended, `in doubt` while its anchor cannot be asked.
pub async fn list(process: &Process) -> Vec<(Part, &'static str)> {
    let mut recovery = Recovery::default();
    let mut all = Vec::new();
    for shard in process.shards.iter().filter(|shard| shard.is_up()) {
        for part in recovery.parts(process, shard).await.unwrap_or_default() {
            let mut state = "in doubt";
            if let Some(mut anchor) = recovery.anchor(process, &part.name).await
                && let Ok(verdict) = timely(ended(&mut anchor, &part.name, false)).await
            {
                state = match verdict {
                    Verdict::Open => "committing",
                    Verdict::Undecided => "undecided",
                    Verdict::Committed => "committed",
                    Verdict::RolledBack => "rolled back",
                };
                recovery.keep(&part.name, anchor);
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
    /// Names that no proxy has made, and that were logged.
    foreign: HashSet<String>,
}

impl Recovery {
    async fn look(&mut self, process: &Arc<Process>, look: u64) {
        let mut parts: Vec<Part> = Vec::new();
        let mut all_answered = true;
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
        if all_answered && look.is_multiple_of(SWEEP_EVERY) {
            self.sweep(process, &parts).await;
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
        let mut parts = Vec::new();
        for row in &rows {
            let (gid, prepared_at): (String, f64) = (row.get(0), row.get(2));
            let name = process.two_phase.read(&gid, shard.id, prepared_at);
            let Some(name) = name.filter(|name| name.parts.contains(&shard.id)) else {
                self.note_foreign(shard, gid);
                continue;
            };
            parts.push(Part {
                shard: shard.id,
                gid,
                name,
                owner: row.get(1),
                prepared_at,
                age: row.get(3),
            });
        }
        Ok(parts)
    }

    /// Somebody has prepared a transaction under a name like ours. It is left to them.
    fn note_foreign(&mut self, shard: &Shard, gid: String) {
        if self.foreign.len() < FOREIGN_MAX && !self.foreign.contains(&gid) {
            tracing::warn!(
                shard = shard.settings.name,
                gid,
                "a prepared transaction that no proxy of this cluster has made is left alone"
            );
            self.foreign.insert(gid);
        }
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
    async fn anchor(&mut self, process: &Process, name: &Name) -> Option<Client> {
        let shard = process.shard(name.anchor).ok()?;
        self.client(shard).await.ok()
    }

    fn keep(&mut self, name: &Name, anchor: Client) {
        self.clients.insert(name.anchor, anchor);
    }

    /// Ends one part as its anchor says, if that has ended.
    async fn resolve(&mut self, process: &Arc<Process>, part: &Part) {
        let name = &part.name;
        let own = name.proxy == process.two_phase.proxy;
        if own && process.two_phase.slots.is_under_way(name.number) {
            return;
        }
        let seal = own || part.age >= UNDECIDED.as_secs_f64();
        let Some(mut anchor) = self.anchor(process, name).await else {
            return;
        };
        failpoint::reach("recovery.before_lock", None).await;
        let commit = match timely(ended(&mut anchor, name, seal)).await {
            Ok(Verdict::Committed) => true,
            Ok(Verdict::RolledBack) => false,
            Ok(Verdict::Open | Verdict::Undecided) => {
                self.keep(name, anchor);
                return;
            }
            Err(error) => {
                tracing::debug!(gid = part.gid, %error, "could not ask the anchor");
                return;
            }
        };
        self.keep(name, anchor);
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

    /// Removes the notes of slots that nobody has used for long, from all shards.
    async fn sweep(&mut self, process: &Process, parts: &[Part]) {
        let open: Vec<i64> = parts
            .iter()
            .map(|part| i64::from(part.name.proxy))
            .collect();
        // A slot is as old as its newest note on any shard.
        let mut removable: HashMap<(i64, i32), bool> = HashMap::new();
        let list = format!(
            "select proxy, slot, changed_at < clock_timestamp() - {} \
            from automator67.commit_register",
            register::REMOVABLE
        );
        for shard in &process.shards {
            let Ok(client) = self.client(shard).await else {
                return;
            };
            let Ok(rows) = timely(client.query(&list, &[])).await else {
                return;
            };
            self.clients.insert(shard.id, client);
            for row in &rows {
                let proxy = row.get(0);
                let old = row.get::<_, bool>(2) && !open.contains(&proxy);
                let all = removable.entry((proxy, row.get(1))).or_insert(true);
                *all &= old;
            }
        }
        removable.retain(|_, removable| *removable);
        let (proxies, slots): (Vec<i64>, Vec<i32>) = removable.into_keys().unzip();
        if proxies.is_empty() {
            return;
        }
        let remove = "delete from automator67.commit_register where (proxy, slot) in \
            (select * from unnest($1::bigint[], $2::integer[]))";
        for shard in &process.shards {
            // What cannot be removed now is when the proxy looks again.
            if let Ok(client) = self.client(shard).await
                && timely(client.execute(remove, &[&proxies, &slots]))
                    .await
                    .is_ok()
            {
                self.clients.insert(shard.id, client);
            }
        }
    }
}

/// How a transaction has ended, as its anchor knows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It has not, or it has and left nothing.
    Open,
    /// Not so far.
    Undecided,
    Committed,
    RolledBack,
}

/// How the transaction has ended. With `seal`, one that the anchor knows nothing of is noted as
/// rolled back there: it cannot commit any more. A proxy that is slow may be about to.
async fn ended(
    anchor: &mut Client,
    name: &Name,
    seal: bool,
) -> Result<Verdict, tokio_postgres::Error> {
    let transaction = anchor.transaction().await?;
    let free: bool = transaction
        .query_one(TRY_LOCK, &[&name.to_string()])
        .await?
        .get(0);
    let verdict = if free {
        verdict(&transaction, name, seal).await?
    } else {
        Verdict::Open
    };
    transaction.commit().await?;
    Ok(verdict)
}

/// The same, behind the lock on the name.
async fn verdict(
    transaction: &Transaction<'_>,
    name: &Name,
    seal: bool,
) -> Result<Verdict, tokio_postgres::Error> {
    let (proxy, slot) = (i64::from(name.proxy), register::slot_of(name.number) as i32);
    let number = name.number as i64;
    let row = transaction.query_opt(DECIDED, &[&proxy, &slot]).await?;
    let known = row.map(|row| (row.get::<_, i64>(0), row.get(1)));
    Ok(match known {
        Some((known, true)) if known == number => Verdict::Committed,
        Some((known, false)) if known == number => Verdict::RolledBack,
        // Its slot was used again, so it had ended.
        Some((known, _)) if known > number => Verdict::Open,
        _ if seal => {
            let values: [&(dyn ToSql + Sync); 3] = [&proxy, &slot, &number];
            transaction.execute(ROLLED_BACK, &values).await?;
            Verdict::RolledBack
        }
        _ => Verdict::Undecided,
    })
}

/// True: the transaction is committed; false: it is not, and never will be; waits until that is
/// known, at most until `deadline`. `None`: it cannot be known yet.
pub async fn outcome(shard: &Arc<Shard>, name: &Name, deadline: Instant) -> Option<bool> {
    let ask = async {
        loop {
            match ask_for_outcome(shard, name).await {
                Ok(Verdict::Committed) => return true,
                Ok(Verdict::RolledBack) => return false,
                Ok(Verdict::Open | Verdict::Undecided) | Err(_) => {}
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    };
    tokio::time::timeout_at(deadline, ask).await.ok()
}

async fn ask_for_outcome(shard: &Arc<Shard>, name: &Name) -> Result<Verdict, StoreError> {
    let (mut client, connection) = store::connect(shard).await?;
    tokio::spawn(connection);
    let transaction = client.transaction().await?;
    transaction
        .query_one(WAIT_FOR_LOCK, &[&name.to_string()])
        .await?;
    let verdict = verdict(&transaction, name, true).await?;
    transaction.commit().await?;
    Ok(verdict)
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
                store::connect_as(shard, &login.user.name, &login.user.shard_password).await?;
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

//! Deadlocks over several shards. Each shard sees only its own waits: a session that waits on one
//! shard for another, which waits on a second shard for the first, would wait for ever.
//!
//! While two sessions or more are in transactions on several shards, the shards are asked who
//! waits for whom. A circle that is seen twice is real; its youngest session is the victim.

use std::{
    collections::{BTreeMap, HashMap, HashSet, hash_map::Entry},
    sync::Arc,
    time::Duration,
};

use automator67_planner::catalog::ShardId;
use tokio_util::sync::CancellationToken;

use crate::{
    process::{Process, SessionCard, lock},
    server::{self, BackendKey},
    shard::Shard,
    store::{self, StoreError},
};

/// How often the shards are asked. Two looks and a cancel request fit well into 1.5 s.
const LOOK_INTERVAL: Duration = Duration::from_millis(400);
const LOOK_TIMEOUT: Duration = Duration::from_millis(700);
const WAITS: &str = "select a.pid, b.pid from pg_catalog.pg_stat_activity a, \
    pg_catalog.unnest(pg_catalog.pg_blocking_pids(a.pid)) b (pid) where a.wait_event_type = 'Lock'";

/// In the place of a shard: the wait is for a table whose definition changes, in this process.
const GATE: ShardId = 0;

/// A session waits for others on a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wait {
    shard: ShardId,
    /// Who waits, and for whom: numbers of sessions.
    waiter: u64,
    holder: u64,
}

/// Looks for deadlocks until `stop`.
pub async fn watch(process: Arc<Process>, stop: CancellationToken) {
    let mut looks = Looks::default();
    let mut suspects: HashSet<Vec<u64>> = HashSet::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let sessions = process.sessions();
        let several = sessions.iter().filter(|card| is_on_several(card)).count();
        if several < 2 && process.gate.waits().is_empty() {
            suspects.clear();
            continue;
        }
        let waits = looks.at(&process, &sessions).await;
        let mut seen = HashSet::new();
        for circle in circles(&waits) {
            let members = members(&circle);
            if suspects.contains(&members) {
                resolve(&process, &sessions, &circle).await;
            } else {
                seen.insert(members);
            }
        }
        suspects = seen;
    }
}

fn is_on_several(card: &SessionCard) -> bool {
    let activity = lock(&card.activity);
    let mut shards = activity.keys.iter().map(|key| key.shard.id);
    let first = shards.next();
    shards.any(|shard| Some(shard) != first)
}

/// Connections for asking, opened when they are needed.
#[derive(Default)]
struct Looks {
    clients: HashMap<ShardId, tokio_postgres::Client>,
}

impl Looks {
    /// Who waits for whom, among our sessions.
    async fn at(&mut self, process: &Process, sessions: &[Arc<SessionCard>]) -> Vec<Wait> {
        let mut owners: HashMap<(ShardId, i32), u64> = HashMap::new();
        for card in sessions {
            for key in &lock(&card.activity).keys {
                owners.insert((key.shard.id, key.pid()), card.id);
            }
        }
        let at_gate = process.gate.waits().into_iter();
        let mut waits: Vec<Wait> = at_gate
            .map(|(waiter, holder)| Wait {
                shard: GATE,
                waiter,
                holder,
            })
            .collect();
        for shard in process.shards.iter().filter(|shard| shard.is_up()) {
            let answer = tokio::time::timeout(LOOK_TIMEOUT, self.ask(shard)).await;
            let Ok(Ok(pairs)) = answer else {
                self.clients.remove(&shard.id);
                continue;
            };
            for (waiter, holder) in pairs {
                let session = |pid| owners.get(&(shard.id, pid)).copied();
                if let (Some(waiter), Some(holder)) = (session(waiter), session(holder)) {
                    waits.push(Wait {
                        shard: shard.id,
                        waiter,
                        holder,
                    });
                }
            }
        }
        waits
    }

    async fn ask(&mut self, shard: &Arc<Shard>) -> Result<Vec<(i32, i32)>, StoreError> {
        let client = match self.clients.entry(shard.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let (client, connection) = store::connect(shard).await?;
                // It ends with its client.
                tokio::spawn(connection);
                place.insert(client)
            }
        };
        let rows = client.query(WAITS, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// The circles among waits. Those of one shard alone are that shard's own to find.
fn circles(waits: &[Wait]) -> Vec<Vec<Wait>> {
    let mut from: BTreeMap<u64, Vec<&Wait>> = BTreeMap::new();
    for wait in waits {
        from.entry(wait.waiter).or_default().push(wait);
    }
    let mut found: Vec<Vec<Wait>> = Vec::new();
    for start in from.keys() {
        if found
            .iter()
            .any(|circle| circle.iter().any(|wait| wait.waiter == *start))
        {
            continue;
        }
        let mut path: Vec<&Wait> = Vec::new();
        let mut visited = HashSet::new();
        if follow(*start, *start, &from, &mut path, &mut visited)
            && path.iter().any(|wait| wait.shard != path[0].shard)
        {
            found.push(path.into_iter().cloned().collect());
        }
    }
    found
}

/// Extends `path`, which ends at `at`, until it comes back to `start`.
fn follow<'w>(
    start: u64,
    at: u64,
    from: &BTreeMap<u64, Vec<&'w Wait>>,
    path: &mut Vec<&'w Wait>,
    visited: &mut HashSet<u64>,
) -> bool {
    if !visited.insert(at) {
        return false;
    }
    for wait in from.get(&at).into_iter().flatten() {
        path.push(wait);
        if wait.holder == start || follow(start, wait.holder, from, path, visited) {
            return true;
        }
        path.pop();
    }
    false
}

/// The sessions of a circle, sorted.
fn members(circle: &[Wait]) -> Vec<u64> {
    let mut members: Vec<u64> = circle.iter().map(|wait| wait.waiter).collect();
    members.sort_unstable();
    members
}

/// Ends the wait of a circle's youngest session.
async fn resolve(process: &Process, sessions: &[Arc<SessionCard>], circle: &[Wait]) {
    let Some(wait) = circle.iter().max_by_key(|wait| wait.waiter) else {
        return;
    };
    let Some(card) = sessions.iter().find(|card| card.id == wait.waiter) else {
        return;
    };
    if wait.shard == GATE {
        *lock(&card.deadlock) = Some(describe(process, circle));
        process.telemetry.deadlocks.increment(1);
        card.cancelled.notify_waiters();
        return;
    }
    let key = {
        let mut activity = lock(&card.activity);
        let key = activity
            .keys
            .iter()
            .find(|key| key.shard.id == wait.shard)
            .cloned();
        // The cancel request may come late: the connection is not lent again.
        activity.tainted |= key.is_some();
        key
    };
    let Some(key) = key else {
        return;
    };
    *lock(&key.deadlock) = Some(describe(process, circle));
    process.telemetry.deadlocks.increment(1);
    tracing::info!(session = card.id, "deadlock over several shards");
    cancel(&key).await;
}

async fn cancel(key: &BackendKey) {
    if let Err(error) = server::cancel(key).await {
        tracing::warn!(shard = key.shard.settings.name, %error, "could not end a deadlock");
    }
}

fn describe(process: &Process, circle: &[Wait]) -> String {
    let name = |id: ShardId| {
        let shard = process.shard(id);
        shard.map_or_else(|_| id.to_string(), |shard| shard.settings.name.clone())
    };
    let lines: Vec<String> = circle
        .iter()
        .map(|wait| {
            if wait.shard == GATE {
                return format!(
                    "Session {} waits for a table that session {} changes.",
                    wait.waiter, wait.holder
                );
            }
            format!(
                "Session {} waits on shard \"{}\" for session {}.",
                wait.waiter,
                name(wait.shard),
                wait.holder
            )
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;

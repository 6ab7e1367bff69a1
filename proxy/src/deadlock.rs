//! Deadlocks over several shards. Each shard sees only its own waits: a session that waits on one
//! shard for another, which waits on a second shard for the first, would wait for ever.
//!
//! While sessions are in transactions on several shards, the shards are asked who waits for whom. A
//! circle that is seen twice is real; its youngest session is the victim. Where a session of
//! another proxy is in the way, the proxies tell each other, through the home shard, whose server
//! processes are whose; then a circle is seen three times, as what others tell is a little old, and
//! the proxy of the victim ends it.

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

const FORGET: &str = "delete from automator67.session_backend \
    where proxy = $1 or seen_at < clock_timestamp() - interval '1 minute'";
const TELL: &str = "insert into automator67.session_backend (proxy, session, shard, pid) \
    select $1, * from unnest($2::bigint[], $3::int[], $4::int[])";
/// Older than a few looks is of a proxy that sees nothing in its way any more.
const LEARN: &str = "select proxy, session, shard, pid from automator67.session_backend \
    where proxy <> $1 and seen_at > clock_timestamp() - interval '1200 ms'";

/// In the place of a shard: the wait is for a table whose definition changes, in this process.
const GATE: ShardId = 0;

/// A session of a proxy: its number there, and the proxy's.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
struct Member {
    session: u64,
    proxy: u32,
}

/// A session waits for others on a shard.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Wait {
    shard: ShardId,
    /// Who waits, and for whom.
    waiter: Member,
    holder: Member,
}

/// Looks for deadlocks until `stop`.
pub async fn watch(process: Arc<Process>, stop: CancellationToken) {
    let mut looks = Looks::default();
    let mut suspects: HashMap<Vec<Member>, u32> = HashMap::new();
    loop {
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(LOOK_INTERVAL) => {}
        }
        let sessions = process.sessions();
        let several = sessions.iter().filter(|card| is_on_several(card)).count();
        if several == 0 && process.gate.waits().is_empty() {
            suspects.clear();
            continue;
        }
        let waits = looks.at(&process, &sessions).await;
        let own = process.two_phase.proxy();
        let mut seen = HashMap::new();
        for circle in circles(&waits) {
            let members = members(&circle);
            let foreign = members.iter().any(|member| member.proxy != own);
            let times = suspects.get(&members).copied().unwrap_or(0) + 1;
            if times < if foreign { 3 } else { 2 } {
                seen.insert(members, times);
                continue;
            }
            let victim = circle.iter().max_by_key(|wait| wait.waiter);
            if let Some(wait) = victim.filter(|wait| wait.waiter.proxy == own) {
                resolve(&process, &sessions, wait, &circle).await;
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
    /// Who waits for whom, among our sessions and, where these are in each other's way, those of
    /// other proxies.
    async fn at(&mut self, process: &Process, sessions: &[Arc<SessionCard>]) -> Vec<Wait> {
        let proxy = process.two_phase.proxy();
        let own = |session| Member { session, proxy };
        let mut owners: HashMap<(ShardId, i32), Member> = HashMap::new();
        for card in sessions {
            for key in &lock(&card.activity).keys {
                owners.insert((key.shard.id, key.pid()), own(card.id));
            }
        }
        let at_gate = process.gate.waits().into_iter();
        let mut waits: Vec<Wait> = at_gate
            .map(|(waiter, holder)| Wait {
                shard: GATE,
                waiter: own(waiter),
                holder: own(holder),
            })
            .collect();
        let mut pairs: Vec<(ShardId, i32, i32)> = Vec::new();
        for shard in process.shards.iter().filter(|shard| shard.is_up()) {
            let answer = tokio::time::timeout(LOOK_TIMEOUT, self.ask(shard)).await;
            let Ok(Ok(found)) = answer else {
                self.clients.remove(&shard.id);
                continue;
            };
            pairs.extend(
                found
                    .into_iter()
                    .map(|(waiter, holder)| (shard.id, waiter, holder)),
            );
        }
        let strangers = pairs.iter().any(|(shard, waiter, holder)| {
            let known = |pid: &i32| owners.contains_key(&(*shard, *pid));
            known(waiter) != known(holder)
        });
        if strangers {
            let told = self.tell_and_learn(process, proxy, &owners);
            match tokio::time::timeout(LOOK_TIMEOUT, told).await {
                Ok(Ok(others)) => owners.extend(others),
                Ok(Err(_)) | Err(_) => {
                    self.clients.remove(&process.home().id);
                }
            }
        }
        for (shard, waiter, holder) in pairs {
            let member = |pid| owners.get(&(shard, pid)).copied();
            if let (Some(waiter), Some(holder)) = (member(waiter), member(holder)) {
                waits.push(Wait {
                    shard,
                    waiter,
                    holder,
                });
            }
        }
        waits
    }

    /// Tells other proxies whose server processes are whose, and learns it from them.
    async fn tell_and_learn(
        &mut self,
        process: &Process,
        proxy: u32,
        own: &HashMap<(ShardId, i32), Member>,
    ) -> Result<Vec<((ShardId, i32), Member)>, StoreError> {
        let client = self.client(process.home()).await?;
        let sessions: Vec<i64> = own.values().map(|member| member.session as i64).collect();
        let shards: Vec<i32> = own.keys().map(|(shard, _)| *shard as i32).collect();
        let pids: Vec<i32> = own.keys().map(|(_, pid)| *pid).collect();
        let me = i64::from(proxy);
        client.execute(FORGET, &[&me]).await?;
        client
            .execute(TELL, &[&me, &sessions, &shards, &pids])
            .await?;
        let rows = client.query(LEARN, &[&me]).await?;
        let others = rows.iter().map(|row| {
            let (proxy, session): (i64, i64) = (row.get(0), row.get(1));
            let (shard, pid): (i32, i32) = (row.get(2), row.get(3));
            let member = Member {
                session: session as u64,
                proxy: proxy as u32,
            };
            ((shard as ShardId, pid), member)
        });
        Ok(others.collect())
    }

    async fn client(
        &mut self,
        shard: &Arc<Shard>,
    ) -> Result<&mut tokio_postgres::Client, StoreError> {
        Ok(match self.clients.entry(shard.id) {
            Entry::Occupied(known) => known.into_mut(),
            Entry::Vacant(place) => {
                let (client, connection) = store::connect(shard).await?;
                // It ends with its client.
                tokio::spawn(connection);
                place.insert(client)
            }
        })
    }

    async fn ask(&mut self, shard: &Arc<Shard>) -> Result<Vec<(i32, i32)>, StoreError> {
        let client = self.client(shard).await?;
        let rows = client.query(WAITS, &[]).await?;
        Ok(rows.iter().map(|row| (row.get(0), row.get(1))).collect())
    }
}

/// The circles among waits. Those of one shard alone are that shard's own to find.
fn circles(waits: &[Wait]) -> Vec<Vec<Wait>> {
    let mut from: BTreeMap<Member, Vec<&Wait>> = BTreeMap::new();
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
    start: Member,
    at: Member,
    from: &BTreeMap<Member, Vec<&'w Wait>>,
    path: &mut Vec<&'w Wait>,
    visited: &mut HashSet<Member>,
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
fn members(circle: &[Wait]) -> Vec<Member> {
    let mut members: Vec<Member> = circle.iter().map(|wait| wait.waiter).collect();
    members.sort_unstable();
    members
}

/// Ends the wait of a circle's youngest session, which is ours.
async fn resolve(process: &Process, sessions: &[Arc<SessionCard>], wait: &Wait, circle: &[Wait]) {
    let Some(card) = sessions.iter().find(|card| card.id == wait.waiter.session) else {
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
    let own = process.two_phase.proxy();
    let session = |member: Member| match member.proxy == own {
        true => member.session.to_string(),
        false => format!("{} of another proxy", member.session),
    };
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
                    session(wait.waiter),
                    session(wait.holder)
                );
            }
            format!(
                "Session {} waits on shard \"{}\" for session {}.",
                session(wait.waiter),
                name(wait.shard),
                session(wait.holder)
            )
        })
        .collect();
    lines.join("\n")
}

#[cfg(test)]
mod tests;

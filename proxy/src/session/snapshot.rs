//! One snapshot on all shards, for REPEATABLE READ transactions and for
//! `automator67.consistency = 'snapshot'`.
//!
//! Every shard opens its snapshot while the fence is held on all of them in the mode that commits
//! over several shards conflict with: no such commit is under way then, so each is in all of the
//! snapshots or in none. The fence is given back by the end of a subtransaction, which leaves the
//! snapshot in place. Openers do not wait for each other, and one-shard commits for neither.

use std::time::{Duration, Instant};

use automator67_planner::{catalog::ShardId, plan::Plan};

use super::Session;
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    relay,
    settings::Consistency,
};

/// LOCK takes no snapshot, SELECT does.
const TRY_FENCE: &str = "SAVEPOINT automator67_fence; \
    LOCK TABLE automator67.fence IN SHARE MODE NOWAIT; SELECT 1";
const WAIT_FOR_FENCE: &str = "SAVEPOINT automator67_fence; SET LOCAL lock_timeout = '400ms'; \
    LOCK TABLE automator67.fence IN SHARE MODE; SELECT 1";
const LEAVE_FENCE: &str =
    "ROLLBACK TO SAVEPOINT automator67_fence; RELEASE SAVEPOINT automator67_fence";

/// How often the fence is tried before it is waited for, and the first pause in between: commits
/// hold it for some milliseconds.
const ATTEMPTS: u32 = 3;
const FIRST_PAUSE: Duration = Duration::from_micros(700);

/// How long a snapshot waits for the fence in all, and between two tries.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);

/// What a transaction sees of other shards.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum View {
    /// Each statement sees what is committed on each of its shards.
    #[default]
    Committed,
    /// One snapshot of all shards, to be opened at the first touch of any.
    Wanted,
    /// It is open.
    Open,
    /// SERIALIZABLE: what a shard cannot see of others, it cannot order.
    OneShard,
}

/// Isolation levels that mean something here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Isolation {
    ReadCommitted,
    RepeatableRead,
    Serializable,
}

/// The view of a transaction that begins with these options, where the session's default is the
/// statement `default`; and what is to be added to the options.
pub fn view_of(
    options: &str,
    default: Option<&str>,
    consistency: Consistency,
) -> (View, &'static str) {
    let named = isolation(options).or_else(|| default.and_then(isolation));
    match (named, consistency) {
        (Some(Isolation::Serializable), _) => (View::OneShard, ""),
        (Some(Isolation::RepeatableRead), _) => (View::Wanted, ""),
        (None, Consistency::Snapshot) => (View::Wanted, " ISOLATION LEVEL REPEATABLE READ"),
        (Some(Isolation::ReadCommitted) | None, _) => (View::Committed, ""),
    }
}

/// The level that is named last.
fn isolation(text: &str) -> Option<Isolation> {
    let text = text.to_uppercase();
    let levels = [
        ("SERIALIZABLE", Isolation::Serializable),
        ("REPEATABLE READ", Isolation::RepeatableRead),
        ("READ COMMITTED", Isolation::ReadCommitted),
        ("READ UNCOMMITTED", Isolation::ReadCommitted),
    ];
    let found = levels
        .into_iter()
        .filter_map(|(name, level)| text.rfind(name).map(|place| (place, level)));
    found
        .max_by_key(|(place, _)| *place)
        .map(|(_, level)| level)
}

impl Session {
    /// A statement outside of a transaction block that reads from several shards gets a snapshot
    /// of its own, where the session asks for that.
    pub(super) fn want_snapshot_for(&mut self, plan: &Plan) {
        let reads = matches!(plan, Plan::Scatter(_) | Plan::Gather(_) | Plan::CopyOut(_));
        if reads
            && self.settings.own.consistency == Consistency::Snapshot
            && !self.transaction.is_explicit()
            && !self.links.iter().any(|link| link.begun)
        {
            self.begin_implicit_view();
        }
    }

    /// Opens the transaction's snapshot on every shard that can be reached.
    pub(super) async fn open_snapshots(&mut self) -> Outcome {
        self.transaction.view = View::Open;
        let mut shards = Vec::new();
        for shard in self.all_shards() {
            match self.idle_link(shard).await {
                Ok(_) => shards.push(shard),
                // The transaction can do without it, until it needs it.
                Err(failure) if failure.sqlstate() == sqlstate::CONNECTION_FAILURE => {}
                Err(failure) => return Err(failure),
            }
        }
        if let [shard] = shards[..] {
            self.queue_begin_with(shard, "");
            return self.begun(&shards, None).await;
        }
        if !self.try_fence(&shards).await? {
            self.wait_for_fence(&shards).await?;
        }
        self.queue_everywhere(&shards, LEAVE_FENCE);
        for link in &mut self.links {
            // The answer is read with that of the next statement.
            relay::send(&mut link.server).await?;
        }
        Ok(())
    }

    /// On all shards at once, without waiting for commits that are under way; false: some are, each
    /// time it was tried.
    async fn try_fence(&mut self, shards: &[ShardId]) -> Outcome<bool> {
        let mut pause = FIRST_PAUSE;
        for attempt in 1.. {
            for shard in shards {
                self.queue_begin_with(*shard, TRY_FENCE);
            }
            match self.begun(shards, None).await {
                Ok(()) => break,
                Err(failure) if failure.sqlstate() == sqlstate::LOCK_NOT_AVAILABLE => {}
                Err(failure) => return Err(failure),
            }
            self.queue_everywhere(shards, "ROLLBACK");
            self.begun(shards, None).await?;
            if attempt == ATTEMPTS {
                return Ok(false);
            }
            tokio::time::sleep(pause).await;
            pause *= 2;
        }
        Ok(true)
    }

    /// Waits for the fence, for short times: who waits on one shard keeps commits waiting on others.
    async fn wait_for_fence(&mut self, shards: &[ShardId]) -> Outcome {
        let deadline = Instant::now() + PATIENCE;
        while !self.wait_in_order(shards).await? {
            self.rollback_links_of_snapshot(shards).await?;
            if Instant::now() > deadline {
                return Err(Report::error(
                    sqlstate::LOCK_NOT_AVAILABLE,
                    "no snapshot of all shards could be opened in time",
                )
                .detail(
                    "A transaction over several shards is being committed, or waits to be ended.",
                )
                .hint("Look at automator67.transactions, and try again.")
                .into());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// Shard by shard in the order in which commits take the fence, too; false: one took too long.
    async fn wait_in_order(&mut self, shards: &[ShardId]) -> Outcome<bool> {
        for shard in shards {
            self.queue_begin_with(*shard, WAIT_FOR_FENCE);
            match self.begun(&[*shard], Some(*shard)).await {
                Ok(()) => {}
                Err(failure) if failure.sqlstate() == sqlstate::LOCK_NOT_AVAILABLE => {
                    return Ok(false);
                }
                Err(failure) => return Err(failure),
            }
        }
        Ok(true)
    }

    /// Gives back what was got of the fence.
    async fn rollback_links_of_snapshot(&mut self, shards: &[ShardId]) -> Outcome {
        for link in self.links.iter_mut().filter(|link| link.begun) {
            link.server.query("ROLLBACK", false);
            link.begun = false;
        }
        self.begun(shards, None).await
    }

    /// A shard that joins when the snapshot is open already would show another moment.
    pub(super) fn allow_to_join(&self, index: usize) -> Outcome {
        let others = || {
            self.links
                .iter()
                .enumerate()
                .any(|(place, link)| link.begun && link.used && place != index)
        };
        match self.transaction.view {
            View::Open => Err(Report::error(
                "40001",
                "could not extend the transaction's snapshot to another shard",
            )
            .detail("The shard could not be reached when the snapshot was opened.")
            .hint("Repeat the transaction.")
            .into()),
            View::OneShard if others() => Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "a serializable transaction cannot use several shards",
            )
            .detail("No shard sees what a transaction has read on another one.")
            .hint("Use REPEATABLE READ and SELECT ... FOR UPDATE, or keep to one shard.")
            .into()),
            View::Committed | View::Wanted | View::OneShard => Ok(()),
        }
    }

    fn queue_begin_with(&mut self, shard: ShardId, more: &str) {
        let home = shard == self.home();
        let mut text = self.transaction.begin_statements(home);
        if !more.is_empty() {
            text.push_str("; ");
            text.push_str(more);
        }
        let settings = self.settings.map.clone();
        if let Some(index) = self.link_position(shard) {
            let link = &mut self.links[index];
            link.begun = true;
            link.used = true;
            link.server.settings = settings;
            link.server.query(&text, false);
        }
    }

    fn queue_everywhere(&mut self, shards: &[ShardId], text: &str) {
        for link in &mut self.links {
            if shards.contains(&link.server.shard_id()) {
                link.server.query(text, false);
            }
        }
    }

    /// Sends what is queued and reads the answers, of all shards or of one.
    async fn begun(&mut self, shards: &[ShardId], only: Option<ShardId>) -> Outcome {
        for link in &mut self.links {
            relay::send(&mut link.server).await?;
        }
        let mut failure: Option<Failure> = None;
        for link in &mut self.links {
            let shard = link.server.shard_id();
            if !shards.contains(&shard) || only.is_some_and(|only| only != shard) {
                continue;
            }
            relay::exchange(&mut self.client, &mut link.server).await?;
            if let Some(frame) = link.server.hidden_error.take() {
                failure.get_or_insert(Failure::Shard(frame));
            }
        }
        failure.map_or(Ok(()), Err)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn levels_give_views() {
        let snapshot = Consistency::Snapshot;
        let strong = Consistency::Strong;
        let repeatable = " ISOLATION LEVEL REPEATABLE READ";
        for (options, default, consistency, view) in [
            ("", None, strong, View::Committed),
            ("", None, snapshot, View::Wanted),
            (repeatable, None, strong, View::Wanted),
            (
                " isolation level serializable",
                None,
                snapshot,
                View::OneShard,
            ),
            (
                " ISOLATION LEVEL READ COMMITTED",
                None,
                snapshot,
                View::Committed,
            ),
            (
                " ISOLATION LEVEL READ UNCOMMITTED",
                None,
                snapshot,
                View::Committed,
            ),
            (
                "",
                Some("SET default_transaction_isolation TO 'repeatable read'"),
                strong,
                View::Wanted,
            ),
            (
                " ISOLATION LEVEL READ COMMITTED",
                Some("SET x TO 'serializable'"),
                strong,
                View::Committed,
            ),
            (
                " ISOLATION LEVEL SERIALIZABLE ISOLATION LEVEL REPEATABLE READ",
                None,
                strong,
                View::Wanted,
            ),
        ] {
            assert_eq!(
                view_of(options, default, consistency).0,
                view,
                "{options:?} {default:?}"
            );
        }
    }
}

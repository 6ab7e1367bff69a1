//! One snapshot on all shards, for REPEATABLE READ transactions and for
//! `automator67.consistency = 'snapshot'`.
//!
//! All shards open theirs at once, and tell which commits over several shards they have seen, see
//! [`register`](crate::two_phase). Where one has seen a commit that another one has not seen its
//! part of, the other opens a new snapshot, until there is none. Nobody waits for anybody.

use std::time::{Duration, Instant};

use automator67_planner::{catalog::ShardId, plan::Plan};

use super::Session;
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    relay,
    settings::Consistency,
    two_phase::{self, Ability, Seen},
};

/// How long shards are asked for snapshots that agree. A commit comes to all of its shards within
/// milliseconds, unless a connection breaks meanwhile.
const PATIENCE: Duration = Duration::from_secs(10);
/// Pauses between two looks, growing.
const PAUSES: (Duration, Duration) = (Duration::from_micros(100), Duration::from_millis(20));

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
        if self.all_shards().len() == 1 {
            self.transaction.view = View::Committed;
            return Ok(());
        }
        self.transaction.view = View::Open;
        let mut shards = Vec::new();
        for shard in self.all_shards() {
            match self.idle_link(shard).await {
                Ok(_) => {
                    self.can_tell_commits(shard).await?;
                    shards.push(shard);
                }
                // The transaction can do without it, until it needs it.
                Err(failure) if failure.sqlstate() == sqlstate::CONNECTION_FAILURE => {}
                Err(failure) => return Err(failure),
            }
        }
        for shard in &shards {
            self.queue_snapshot(*shard);
        }
        let mut seen = self.snapshots_of(&shards).await?;
        let started = Instant::now();
        let mut pause = PAUSES.0;
        loop {
            let behind = two_phase::behind(&seen);
            if behind.is_empty() {
                return Ok(());
            }
            if started.elapsed() > PATIENCE {
                return Err(no_snapshot());
            }
            metrics::counter!("automator67_snapshots_opened_again_total")
                .increment(behind.len() as u64);
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
            for shard in &behind {
                if let Some(index) = self.link_position(*shard) {
                    self.links[index].server.query("ROLLBACK", false);
                }
                self.queue_snapshot(*shard);
            }
            seen.retain(|(shard, _)| !behind.contains(shard));
            seen.extend(self.snapshots_of(&behind).await?);
        }
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

    /// A shard that could not be given what it needs for that tells nothing.
    async fn can_tell_commits(&mut self, shard: ShardId) -> Outcome {
        let shard = self.process.shard(shard)?.clone();
        match two_phase::ensure(&shard).await {
            Ability::Unable(why) => Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "a snapshot of all shards cannot be opened",
            )
            .detail(format!("Shard \"{}\" could not be set up: {why}.", shard.settings.name))
            .hint("Use READ COMMITTED and the consistency \"strong\", or let the shard's admin create the schema automator67 there.")
            .into()),
            Ability::Unknown | Ability::Ready | Ability::DecideOnly => Ok(()),
        }
    }

    fn queue_snapshot(&mut self, shard: ShardId) {
        self.take_turn();
        let begin = self.transaction.begin_statements(shard == self.home());
        let settings = self.settings.map.clone();
        if let Some(index) = self.link_position(shard) {
            let link = &mut self.links[index];
            link.begun = true;
            link.used = true;
            link.server.settings = settings;
            link.server.query(&begin, false);
            link.server.query(two_phase::SEEN, true);
        }
    }

    /// Sends what is queued, to all of them before any answer is read.
    async fn snapshots_of(&mut self, shards: &[ShardId]) -> Outcome<Vec<(ShardId, Seen)>> {
        for shard in shards {
            if let Some(index) = self.link_position(*shard) {
                relay::send(&mut self.links[index].server).await?;
            }
        }
        let mut all = Vec::new();
        for shard in shards {
            let Some(index) = self.link_position(*shard) else {
                continue;
            };
            let server = &mut self.links[index].server;
            let mut seen = Seen::default();
            let mut understood = true;
            let read = relay::collect(&mut self.client, server, |_, frame| {
                understood &= frame.tag != b'D' || seen.note(frame.body());
                Ok(())
            });
            read.await?;
            self.hidden_error(index)?;
            if !understood {
                return Err(no_snapshot());
            }
            all.push((*shard, seen));
        }
        Ok(all)
    }
}

fn no_snapshot() -> Failure {
    Report::error(
        sqlstate::LOCK_NOT_AVAILABLE,
        "no snapshot of all shards could be opened in time",
    )
    .detail("A transaction over several shards is committed on one and not yet on another.")
    .hint("Look at automator67.transactions, and try again.")
    .into()
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

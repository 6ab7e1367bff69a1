//! One snapshot on all shards, for REPEATABLE READ transactions and for
//! `automator67.consistency = 'snapshot'`.
//!
//! All shards open theirs at once, and tell which commits over several shards they have seen, see
//! [`register`](crate::two_phase). Where one has seen a commit that another one has not seen its
//! part of, all are opened again. So readers and commits do not wait for each other. Only where
//! there are so many commits that some is always between its parts, they are held for a moment.

use std::{
    sync::Arc,
    time::{Duration, Instant},
};

use automator67_planner::{
    catalog::ShardId,
    plan::{Isolation, Plan},
};
use tokio_postgres::error::SqlState;

use super::Session;
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    failpoint,
    server::{Answer, Own, relay},
    settings::Consistency,
    shard::Shard,
    store,
    two_phase::{self, Ability, Moments, Seen},
};

/// How often snapshots are opened before commits are held, and the first pause between, which
/// doubles: a commit comes to all of its shards within a millisecond or two.
const ATTEMPTS: u32 = 8;
const FIRST_PAUSE: Duration = Duration::from_micros(50);
/// How long it is tried to hold commits, and the pause between two tries. One that broke off in the
/// middle is ended by the recovery.
const PATIENCE: Duration = Duration::from_secs(10);
const PAUSE: Duration = Duration::from_millis(20);
/// Commits take the same lock in a mode that conflicts with this one. It is held by a connection of
/// the shard's owner: no client may lock that table.
const HOLD_COMMITS: &str = "begin; set local lock_timeout = '200ms'; \
    lock table automator67.fence in share mode";

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

/// The view of a transaction that begins at a level, where the session's default is the statement
/// `default`; and the level that it is to begin with where it says none.
pub fn view_of(
    level: Option<Isolation>,
    default: Option<&str>,
    consistency: Consistency,
) -> (View, Option<Isolation>) {
    match (level.or_else(|| default.and_then(named)), consistency) {
        (Some(Isolation::Serializable), _) => (View::OneShard, None),
        (Some(Isolation::RepeatableRead), _) => (View::Wanted, None),
        (None, Consistency::Snapshot) => (View::Wanted, Some(Isolation::RepeatableRead)),
        (Some(Isolation::ReadCommitted | Isolation::ReadUncommitted) | None, _) => {
            (View::Committed, None)
        }
    }
}

/// The level that a SET names last.
fn named(text: &str) -> Option<Isolation> {
    let text = text.to_uppercase();
    let found = Isolation::ALL
        .into_iter()
        .filter_map(|level| text.rfind(level.name()).map(|place| (place, level)));
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
        let mut past = Moments::default();
        let mut pause = FIRST_PAUSE;
        for attempt in 0..ATTEMPTS {
            if attempt > 0 {
                self.take_back(&shards).await?;
                tokio::time::sleep(pause).await;
                pause *= 2;
            }
            for shard in &shards {
                self.queue_snapshot(*shard);
            }
            let all = self.snapshots_of(&shards).await?;
            if self.belong_together(&all, &past) {
                return Ok(());
            }
            two_phase::past(&all, &mut past);
            metrics::counter!("automator67_snapshots_opened_again_total").increment(1);
        }
        self.open_while_commits_are_held(&shards, &past).await
    }

    /// Whether these snapshots do. If so, what the transaction reads it reads in them.
    fn belong_together(&mut self, all: &[(ShardId, Seen)], past: &Moments) -> bool {
        let together = two_phase::behind(all, past).is_empty();
        if together {
            let moments = &mut self.transaction.moments;
            for (shard, seen) in all {
                moments.reach(*shard, seen.moment());
            }
        }
        together
    }

    /// Commits take the lock for their parts first, and on the lowest shard last.
    async fn open_while_commits_are_held(&mut self, shards: &[ShardId], past: &Moments) -> Outcome {
        metrics::counter!("automator67_snapshots_that_held_commits_total").increment(1);
        let started = Instant::now();
        while !self.hold_commits_and_open(shards, past).await? {
            self.take_back(shards).await?;
            if started.elapsed() > PATIENCE {
                return Err(no_snapshot());
            }
            tokio::time::sleep(PAUSE).await;
        }
        Ok(())
    }

    /// False: a commit is in the middle for too long.
    async fn hold_commits_and_open(&mut self, shards: &[ShardId], past: &Moments) -> Outcome<bool> {
        // The locks go with their connections.
        let mut held = Vec::new();
        for shard in shards.iter().rev() {
            match hold_commits(self.process.shard(*shard)?).await? {
                Some(fence) => held.push(fence),
                None => return Ok(false),
            }
        }
        for shard in shards {
            self.queue_snapshot(*shard);
        }
        let all = self.snapshots_of(shards).await?;
        Ok(self.belong_together(&all, past))
    }

    /// Ends what was begun on these shards; the answers are read with the next ones.
    async fn take_back(&mut self, shards: &[ShardId]) -> Outcome {
        self.transaction.forget_clock();
        for link in &mut self.links {
            if link.begun && shards.contains(&link.server.shard_id()) {
                link.begun = false;
                link.server.query("ROLLBACK", Answer::Hidden);
                relay::send(&mut link.server).await?;
            }
        }
        Ok(())
    }

    /// A statement that reads from these shards, and from no other, may bring the transaction to
    /// them that it is.
    pub(super) fn may_open_with_statement(&self, shards: &[ShardId]) -> bool {
        self.transaction.view == View::Wanted
            && self.transaction.is_open()
            && !self.transaction.goes_on()
            && shards.contains(&self.home())
            && !self.links.iter().any(|link| link.begun)
    }

    /// Queues the opening of a snapshot on every shard that can be reached, for the statement on some
    /// of them that follows. The others only tell what they know: a commit there may have read what
    /// these shards must not miss.
    pub(super) async fn begin_with_statement(
        &mut self,
        shards: &[ShardId],
    ) -> Outcome<Vec<ShardId>> {
        self.transaction.view = View::Open;
        let mut asked = Vec::new();
        for shard in self.all_shards() {
            match self.idle_link(shard).await {
                Ok(_) => {
                    self.can_tell_commits(shard).await?;
                    asked.push(shard);
                }
                Err(failure)
                    if failure.sqlstate() == sqlstate::CONNECTION_FAILURE
                        && !shards.contains(&shard) => {}
                Err(failure) => return Err(failure),
            }
        }
        for shard in &asked {
            self.queue_snapshot(*shard);
        }
        Ok(asked)
    }

    /// Whether the snapshots that were queued belong together. If not, what follows is thrown away,
    /// and nothing is begun.
    pub(super) async fn began_together(&mut self, shards: &[ShardId]) -> Outcome<bool> {
        let mut all = Vec::new();
        for shard in shards {
            if let Some(index) = self.link_position(*shard) {
                all.push((*shard, self.seen(index).await?));
            }
        }
        if self.belong_together(&all, &Moments::default()) {
            return Ok(true);
        }
        metrics::counter!("automator67_snapshots_opened_again_total").increment(1);
        self.throw_away(shards).await?;
        self.note_ended();
        self.take_back(shards).await?;
        self.throw_away(shards).await?;
        self.transaction.view = View::Wanted;
        Ok(false)
    }

    async fn throw_away(&mut self, shards: &[ShardId]) -> Outcome {
        for shard in shards {
            if let Some(index) = self.link_position(*shard) {
                self.drain_link(index).await?;
                self.links[index].server.hidden_error = None;
            }
        }
        Ok(())
    }

    /// A statement may have been sent with its COMMIT, which an error skips.
    pub(super) fn note_ended(&mut self) {
        for link in &mut self.links {
            let server = &link.server;
            link.begun &= !(server.is_answered() && server.status == b'I');
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

    /// Queues BEGIN, and the question what the snapshot has seen.
    fn queue_snapshot(&mut self, shard: ShardId) {
        self.take_turn();
        self.transaction.note_joined(shard);
        let begin = self.transaction.begin_statements(shard == self.home());
        let settings = self.settings.map.clone();
        if let Some(index) = self.link_position(shard) {
            let link = &mut self.links[index];
            link.begun = true;
            link.used = true;
            link.server.settings = settings;
            if begin == Own::BeginSnapshot.text() {
                link.server.execute_own(Own::BeginSnapshot, Answer::Hidden);
            } else {
                link.server.query(&begin, Answer::Hidden);
            }
            link.server.execute_own(Own::Seen, Answer::Shown);
        }
    }

    /// Sends what is queued, to all of them before any answer is read.
    async fn snapshots_of(&mut self, shards: &[ShardId]) -> Outcome<Vec<(ShardId, Seen)>> {
        for shard in shards {
            if let Some(index) = self.link_position(*shard) {
                let server = &mut self.links[index].server;
                server.sync();
                relay::send(server).await?;
                failpoint::reach("snapshot.one_sent", None).await;
            }
        }
        let mut all = Vec::new();
        let mut failed = None;
        for shard in shards {
            let Some(index) = self.link_position(*shard) else {
                continue;
            };
            let seen = self.seen(index).await;
            self.drain_link(index).await?;
            // What came after an error failed because of it.
            self.links[index].server.hidden_error = None;
            match seen {
                Ok(seen) => all.push((*shard, seen)),
                Err(failure) => failed = failed.or(Some(failure)),
            }
        }
        failed.map_or(Ok(all), Err)
    }

    /// Reads the answer to that question.
    async fn seen(&mut self, index: usize) -> Outcome<Seen> {
        let mut seen = Seen::default();
        loop {
            let server = &mut self.links[index].server;
            if server.is_answered() {
                return Err(no_snapshot());
            }
            let frame = relay::next_answer(&mut self.client, server).await?;
            // An error of what came before says more.
            self.hidden_error(index)?;
            match frame {
                Some(frame) if frame.tag == b'D' && !seen.note(frame.body()) => {
                    return Err(no_snapshot());
                }
                Some(frame) if frame.tag == b'C' => return Ok(seen),
                Some(frame) if frame.tag == b'E' => return Err(Failure::Shard(frame.bytes)),
                Some(_) | None => {}
            }
        }
    }
}

/// Holds commits on a shard as long as the answer lives. `None`: one is in the middle for too long.
async fn hold_commits(shard: &Arc<Shard>) -> Outcome<Option<tokio_postgres::Client>> {
    let lost = |error: String| Failure::from(shard.broken(&error));
    let connected = store::connect(shard).await;
    let (client, connection) = connected.map_err(|error| lost(error.to_string()))?;
    tokio::spawn(connection);
    match client.batch_execute(HOLD_COMMITS).await {
        Ok(()) => Ok(Some(client)),
        Err(error) if error.code() == Some(&SqlState::LOCK_NOT_AVAILABLE) => Ok(None),
        Err(error) => Err(lost(error.to_string())),
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
        for (level, default, consistency, view) in [
            (None, None, strong, View::Committed),
            (None, None, snapshot, View::Wanted),
            (Some(Isolation::RepeatableRead), None, strong, View::Wanted),
            (
                Some(Isolation::Serializable),
                None,
                snapshot,
                View::OneShard,
            ),
            (
                Some(Isolation::ReadCommitted),
                None,
                snapshot,
                View::Committed,
            ),
            (
                Some(Isolation::ReadUncommitted),
                None,
                snapshot,
                View::Committed,
            ),
            (
                None,
                Some("SET default_transaction_isolation TO 'repeatable read'"),
                strong,
                View::Wanted,
            ),
            (
                Some(Isolation::ReadCommitted),
                Some("SET x TO 'serializable'"),
                strong,
                View::Committed,
            ),
        ] {
            assert_eq!(
                view_of(level, default, consistency).0,
                view,
                "{level:?} {default:?}"
            );
        }
    }
}

//! What a transaction notes of the shards that it has only read from: the moment in which it has
//! read there. So a snapshot that shows what it wrote also shows what it read, see
//! [`register`](crate::two_phase). One that used one shard alone notes nothing.

use automator67_planner::catalog::ShardId;

use super::{Step, no_slot, rolled_back};
use crate::{
    error::{Failure, Outcome},
    server::{Answer, call::Call, relay},
    session::{Session, snapshot::View},
    two_phase::{self, Ability, Moments},
};

impl Session {
    /// The moments of shards that the transaction has read from and not written to. It has ended
    /// where they cannot be told.
    pub(super) async fn moments_read(&mut self, writers: &[ShardId]) -> Outcome<Moments> {
        let read = self
            .links
            .iter()
            .filter(|link| link.begun && link.used && !link.wrote);
        let read: Vec<ShardId> = read.map(|link| link.server.shard_id()).collect();
        if writers.is_empty() || read.is_empty() {
            return Ok(Moments::default());
        }
        let moments = match self.can_note(writers, &read).await {
            Ok(false) => return Ok(Moments::default()),
            Ok(true) => self.moments_of(&read).await,
            Err(failure) => Err(failure),
        };
        if moments.is_err() {
            self.rollback_links().await?;
        }
        moments
    }

    /// False where a shard lacks what is needed for notes, and the proxy may not give it.
    async fn can_note(&mut self, writers: &[ShardId], read: &[ShardId]) -> Outcome<bool> {
        for shard in writers.iter().chain(read) {
            let shard = self.process.shard(*shard)?.clone();
            match two_phase::ensure(&shard).await {
                Ability::Ready | Ability::DecideOnly => {}
                Ability::Unable(_) => return Ok(false),
                Ability::Unknown => {
                    return Err(shard.unreachable("no answer before the commit").into());
                }
            }
        }
        Ok(true)
    }

    /// Those of the transaction's snapshots where these stay, else those of now.
    async fn moments_of(&mut self, shards: &[ShardId]) -> Outcome<Moments> {
        let mut moments = Moments::default();
        if self.transaction.view == View::Open {
            for shard in shards {
                moments.reach(*shard, self.transaction.moments.of(*shard));
            }
            return Ok(moments);
        }
        for shard in shards {
            if let Some(index) = self.link_position(*shard) {
                let server = &mut self.links[index].server;
                server.run(two_phase::MOMENT, Answer::Shown);
                server.sync();
                relay::send(server).await?;
            }
        }
        for shard in shards {
            let Some(index) = self.link_position(*shard) else {
                continue;
            };
            let rows = self.text_rows(index).await?;
            let moment = rows.into_iter().flatten().flatten().next();
            let moment = moment.and_then(|text| text.parse().ok());
            let unknown = || self.links[index].server.shard.broken("it tells no moment");
            moments.reach(*shard, moment.ok_or_else(unknown)?);
        }
        Ok(moments)
    }

    /// COMMIT on the only shard with changes, with a note of what was read on others.
    pub(super) async fn commit_with_note(&mut self, writer: ShardId, read: &Moments) -> Outcome {
        let turn = self.transaction.turn.take();
        let mut turn = turn.unwrap_or_else(|| self.process.two_phase.turn());
        let (Some(number), Some(index)) = (turn.begin(), self.link_position(writer)) else {
            self.rollback_links().await?;
            return Err(no_slot());
        };
        let note = turn.note(self.process.two_phase.proxy(), number, &[writer], read);
        let server = &mut self.links[index].server;
        server.call(&note.add_to(Call::to("note_commit")), Answer::Shown);
        server.run("COMMIT", Answer::Shown);
        server.sync();
        // What cannot be sent is noticed when the answer is read.
        let _ = relay::send(server).await;
        let step = self.answer_of(index, "COMMIT", true).await;
        self.links[index].begun = false;
        self.links[index].wrote = false;
        let failure = match step {
            Step::Done => {
                turn.committed(number, &[writer]);
                return Ok(());
            }
            // It may be committed, now or later: nobody uses the slot again.
            Step::Failed(failure @ Failure::Report(_)) => failure,
            Step::Failed(failure) => {
                turn.rolled_back();
                failure
            }
            Step::RolledBack => {
                turn.rolled_back();
                rolled_back(&self.shard_name(writer))
            }
        };
        self.rollback_links().await?;
        Err(failure)
    }
}

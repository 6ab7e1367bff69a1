//! A SELECT of ours on its way to shards, with the opening of their snapshots where that pays, and
//! its rows on their way back.

use automator67_planner::catalog::ShardId;

use crate::session::{
    Session,
    scatter::{Learned, without_position},
};
use crate::{
    error::{Failure, Outcome},
    failpoint,
    frame::Frame,
    message,
    server::{self, Answer, Own, relay},
    session::planning::Request,
    types,
};

/// What all shards are sent.
pub struct Select<'r> {
    pub text: &'r str,
    /// Of its columns.
    pub formats: &'r [i16],
    pub learned: &'r Learned,
}

impl Session {
    /// Sends a SELECT of ours to several shards, in one snapshot of all of them where that is wanted.
    /// `last`: it is all that the transaction does, if that is not the client's.
    pub(in crate::session) async fn send_selects(
        &mut self,
        shards: &[ShardId],
        select: &Select<'_>,
        last: bool,
        request: &Request<'_>,
    ) -> Outcome {
        // Asks the home shard where they are not known, which must not wait behind what is queued.
        self.types_for_shards(request).await?;
        if select.learned.is_quick() && self.may_open_with_statement(shards) {
            let sent = self.send_with_snapshots(shards, select, last, request);
            match Box::pin(sent).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(failure) => {
                    self.stop_parts(&self.all_shards()).await?;
                    return Err(failure);
                }
            }
        }
        for shard in shards {
            let sent = self.send_select(*shard, select.text, select.formats, request);
            if let Err(failure) = sent.await {
                self.stop_parts(shards).await?;
                return Err(failure);
            }
        }
        Ok(())
    }

    /// The statement goes along with the opening of the snapshots, for better or worse. False: they
    /// do not belong together.
    async fn send_with_snapshots(
        &mut self,
        shards: &[ShardId],
        select: &Select<'_>,
        last: bool,
        request: &Request<'_>,
    ) -> Outcome<bool> {
        let asked = self.begin_with_statement(shards).await?;
        for shard in &asked {
            let index = if shards.contains(shard) {
                self.queue_select(*shard, select.text, select.formats, request)
                    .await?
            } else {
                self.link(*shard).await?
            };
            let server = &mut self.links[index].server;
            if last {
                server.execute_own(Own::Commit, Answer::Hidden);
            }
            server.sync();
            relay::send(server).await?;
            failpoint::reach("snapshot.one_sent", None).await;
        }
        let together = self.began_together(&asked).await?;
        for shard in asked.iter().filter(|shard| !shards.contains(shard)) {
            if let Some(index) = self.link_position(*shard) {
                self.drain_link(index).await?;
            }
        }
        Ok(together)
    }

    /// Sends a SELECT of ours with the client's parameters; its rows are read later.
    pub(in crate::session) async fn send_select(
        &mut self,
        shard: ShardId,
        text: &str,
        formats: &[i16],
        request: &Request<'_>,
    ) -> Outcome {
        let index = self.queue_select(shard, text, formats, request).await?;
        let server = &mut self.links[index].server;
        server.sync();
        relay::send(server).await
    }

    /// Without Sync.
    async fn queue_select(
        &mut self,
        shard: ShardId,
        text: &str,
        formats: &[i16],
        request: &Request<'_>,
    ) -> Outcome<usize> {
        let parameter_types = self.types_for_shards(request).await?;
        let index = self.link(shard).await?;
        self.note_effects(index, request.planned.session)?;
        types::learn_for_shard(&self.links[index].server.shard, &parameter_types).await?;
        let server = &mut self.links[index].server;
        let parameters = request
            .bound
            .map_or(message::NO_PARAMETERS, |bound| bound.bind.parameters());
        server.parse(text, &parameter_types, Answer::Hidden);
        server.bind_with(parameters, formats);
        let binary = formats.iter().any(|format| *format != 0);
        server.execute("", 0, Answer::Shown, binary, None);
        Ok(index)
    }

    /// The next row of a shard that was sent a SELECT. `None`: that was all.
    pub(in crate::session) async fn next_row(&mut self, shard: ShardId) -> Outcome<Option<Frame>> {
        loop {
            let Some(index) = self.link_position(shard) else {
                return Ok(None);
            };
            let server = &mut self.links[index].server;
            if server.is_answered() {
                self.hidden_error(index).map_err(without_position)?;
                return Ok(None);
            }
            match relay::next_answer(&mut self.client, server).await? {
                Some(frame) if frame.tag == b'D' => return Ok(Some(frame)),
                Some(frame) if frame.tag == b'E' => {
                    self.drain_link(index).await?;
                    return Err(without_position(Failure::Shard(frame.bytes)));
                }
                Some(_) | None => {}
            }
        }
    }

    /// Stops what shards still do for a statement that has failed or has enough.
    pub(in crate::session) async fn stop_parts(&mut self, shards: &[ShardId]) -> Outcome {
        for shard in shards {
            let Some(index) = self.link_position(*shard) else {
                continue;
            };
            if self.links[index].server.is_answered() {
                continue;
            }
            let key = self.links[index].server.key.clone();
            if let Err(error) = server::cancel(&key).await {
                tracing::debug!(%error, "could not cancel a part of a statement");
            }
            self.drain_link(index).await?;
            self.links[index].server.hidden_error = None;
        }
        Ok(())
    }
}

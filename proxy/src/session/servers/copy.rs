//! COPY to a shard, and connections that are left in the middle of something.

use automator67_planner::catalog::ShardId;

use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    frame::Frame,
    server::{Answer, relay},
    session::Session,
};

impl Session {
    /// Starts COPY ... FROM STDIN on a shard.
    pub(in crate::session) async fn start_copy(
        &mut self,
        shard: ShardId,
        text: &str,
    ) -> Outcome<Frame> {
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        server.query(text, Answer::Shown);
        relay::send(server).await?;
        while !server.is_answered() {
            match relay::next_answer(&mut self.client, server).await? {
                Some(frame) if frame.tag == b'G' => {
                    server.copying = true;
                    self.hidden_error(index)?;
                    return Ok(frame);
                }
                Some(frame) if frame.tag == b'E' => {
                    self.drain_link(index).await?;
                    return Err(Failure::Shard(frame.bytes));
                }
                Some(_) | None => {}
            }
        }
        self.hidden_error(index)?;
        Err(Report::error(sqlstate::INTERNAL_ERROR, "a shard did not start COPY").into())
    }

    /// Sends COPY data.
    pub(in crate::session) async fn put_copy(&mut self, shard: ShardId, data: &[u8]) -> Outcome {
        if data.is_empty() {
            return Ok(());
        }
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        server.copy_data(data);
        relay::send_if_high(server).await
    }

    /// Ends COPY. Returns the number of rows.
    pub(in crate::session) async fn end_copy(&mut self, shard: ShardId) -> Outcome<u64> {
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        server.copy_done();
        server.copying = false;
        self.copied_rows(shard).await
    }

    /// Reads a connection's answers to their end and throws them away.
    pub(in crate::session) async fn drain_link(&mut self, index: usize) -> Outcome {
        let server = &mut self.links[index].server;
        while !server.is_answered() {
            relay::next_answer(&mut self.client, server).await?;
        }
        Ok(())
    }

    /// Gives up a connection in the middle of its answer; the shard stops its work.
    pub(in crate::session) fn abandon_link(&mut self, shard: ShardId) {
        if let Some(position) = self.link_position(shard) {
            self.links.remove(position).abandon(&self.process);
            self.transaction.doomed = true;
        }
    }

    /// Where the connection to a shard is among the session's links.
    pub(in crate::session) fn link_position(&self, shard: ShardId) -> Option<usize> {
        self.links
            .iter()
            .position(|link| link.server.shard_id() == shard)
    }
}

//! Statements of ours whose answers no client sees.

use automator67_planner::catalog::ShardId;
use bytes::BytesMut;

use crate::{
    error::{Failure, Outcome},
    message,
    server::{Answer, relay},
    session::Session,
    two_phase,
};

impl Session {
    /// Sends a statement of our own to one shard and throws its answer away.
    pub(in crate::session) async fn run_hidden(&mut self, shard: ShardId, text: &str) -> Outcome {
        let index = self.link(shard).await?;
        let server = &mut self.links[index].server;
        server.query(text, Answer::Hidden);
        relay::exchange(&mut self.client, server).await?;
        match self.links[index].server.hidden_error.take() {
            None => Ok(()),
            Some(frame) => Err(Failure::Shard(frame)),
        }
    }

    /// A statement of our own on several shards at once; answers unseen.
    pub(in crate::session) async fn run_hidden_on(
        &mut self,
        shards: &[ShardId],
        text: &str,
    ) -> Outcome {
        for shard in shards {
            let index = self.link(*shard).await?;
            let server = &mut self.links[index].server;
            server.query(text, Answer::Hidden);
            relay::send(server).await?;
        }
        let mut failure = None;
        for shard in shards {
            let Some(index) = self.link_position(*shard) else {
                continue;
            };
            relay::exchange(&mut self.client, &mut self.links[index].server).await?;
            if let Some(frame) = self.links[index].server.hidden_error.take() {
                failure.get_or_insert(Failure::Shard(frame));
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// Runs a statement, whose answer nobody needs, on every shard that has joined.
    pub(in crate::session) async fn everywhere(&mut self, text: &str) -> Outcome {
        for link in self.links.iter_mut().filter(|link| link.begun) {
            link.server.query(text, Answer::Hidden);
            relay::send(&mut link.server).await?;
        }
        for index in 0..self.links.len() {
            if self.links[index].begun {
                relay::exchange(&mut self.client, &mut self.links[index].server).await?;
                if let Some(frame) = self.links[index].server.hidden_error.take() {
                    return Err(Failure::Shard(frame));
                }
            }
        }
        Ok(())
    }

    /// A statement on every shard but home, answers unseen.
    pub(in crate::session) async fn run_elsewhere(&mut self, text: &str) -> Outcome {
        let others = self.other_shards();
        for shard in &others {
            let index = self.link(*shard).await?;
            self.links[index].wrote = true;
            self.links[index].server.query(text, Answer::Hidden);
            relay::send(&mut self.links[index].server).await?;
        }
        let mut failure = None;
        for shard in others {
            let Some(index) = self
                .links
                .iter()
                .position(|link| link.server.shard_id() == shard)
            else {
                continue;
            };
            let server = &mut self.links[index].server;
            match relay::exchange(&mut self.client, server).await {
                Ok(_) => {}
                Err(Failure::ClientGone) => return Err(Failure::ClientGone),
                Err(error) => {
                    failure.get_or_insert(error);
                    continue;
                }
            }
            if let Some(frame) = self.links[index].server.hidden_error.take() {
                let name = &self.links[index].server.shard.settings.name;
                failure.get_or_insert(on_shard(name, frame));
            }
        }
        failure.map_or(Ok(()), Err)
    }

    /// A shard that was away when the proxy started may not know the functions yet.
    pub(in crate::session) async fn set_up(&mut self, shard: ShardId) -> Outcome {
        let shard = self.process.shard(shard)?.clone();
        if shard.proof_key().is_none() {
            Box::pin(two_phase::ensure(&shard)).await;
        }
        Ok(())
    }
}

/// A shard's error with the shard's name in its detail.
fn on_shard(name: &str, mut frame: BytesMut) -> Failure {
    let body = &frame[crate::frame::HEADER_BYTES..];
    let detail = message::error_field(body, b'D').unwrap_or_default();
    let detail = format!("{detail} (On shard \"{name}\"; no shard was changed.)");
    message::put_field(&mut frame, b'D', detail.trim_start());
    message::forget_field(&mut frame, b'P');
    Failure::Shard(frame)
}

//! The client's messages, within bounds. One that is larger than `message_bytes_max`, or that does
//! not fit into `memory_bytes_max` beside those of other sessions, is read to its end and thrown
//! away piece by piece: the client is told, and the stream stays in step.

use tokio_util::sync::CancellationToken;

use super::{CLIENT_MESSAGES, Session, extended::End, shutting_down, unknown_message};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    frame::{self, FRAME_BYTES_MAX, Frame, FrameError},
    memory::UNCOUNTED_BYTES,
};

/// A large message is in memory several times: as it came, as a literal or parameter, as it is
/// planned, and as it goes to a shard.
pub const COPIES: usize = 4;

/// What a client has sent.
pub enum Incoming {
    /// A message.
    Message(Frame),
    /// One of this type that must not be held. It is gone.
    Refused(u8, Box<Report>),
}

/// What the client's bytes are so far.
enum Look {
    Message(Frame),
    Part,
    /// The message of this type and size must not be held.
    Refused(u8, usize, Box<Report>),
}

impl Session {
    /// The next whole message. `None`: the client has left.
    pub(super) async fn next_message(
        &mut self,
        stop: &CancellationToken,
    ) -> Outcome<Option<Incoming>> {
        loop {
            match self.look()? {
                Look::Message(frame) => return Ok(Some(Incoming::Message(frame))),
                Look::Refused(tag, size, report) => {
                    let whole = Box::pin(self.skip(size, stop)).await?;
                    return Ok(whole.then_some(Incoming::Refused(tag, report)));
                }
                Look::Part => {}
            }
            self.client.flush().await?;
            self.client.wire.shrink();
            let idle_links = self.links.iter().any(|link| link.is_pinned());
            if idle_links {
                self.wait_with_links(stop).await?;
                continue;
            }
            let limit = self.idle_limit();
            let filled = tokio::select! {
                biased;
                filled = self.client.wire.fill() => filled,
                () = stop.cancelled() => return Err(shutting_down()),
                report = super::idle_too_long(limit) => return Err(report.into()),
            };
            if !matches!(filled, Ok(count) if count > 0) {
                return Ok(None);
            }
        }
    }

    /// Throws so many bytes away. False: the client has left.
    async fn skip(&mut self, size: usize, stop: &CancellationToken) -> Outcome<bool> {
        self.client.flush().await?;
        let skipped = tokio::select! {
            biased;
            skipped = self.client.wire.skip(size) => skipped,
            () = stop.cancelled() => return Err(shutting_down()),
        };
        Ok(matches!(skipped, Ok(true)))
    }

    /// The client's next message while it copies in.
    pub(super) async fn copy_message(&mut self) -> Outcome<Incoming> {
        loop {
            match self.look()? {
                Look::Message(frame) => return Ok(Incoming::Message(frame)),
                Look::Refused(tag, size, report) => {
                    return match self.client.wire.skip(size).await {
                        Ok(true) => Ok(Incoming::Refused(tag, report)),
                        Ok(false) | Err(_) => Err(Failure::ClientGone),
                    };
                }
                Look::Part => {}
            }
            match self.client.wire.fill().await {
                Ok(count) if count > 0 => {}
                _ => return Err(Failure::ClientGone),
            }
        }
    }

    fn look(&mut self) -> Outcome<Look> {
        let limit = self.process.settings.message_bytes_max;
        let input = &mut self.client.wire.input;
        let report = match frame::take(input, limit) {
            Ok(Some(frame)) => return Ok(Look::Message(frame)),
            taken => {
                if let Some(tag) = input.first()
                    && !CLIENT_MESSAGES.contains(tag)
                {
                    // Its length means nothing: waiting for that many bytes would be waiting
                    // forever.
                    return Err(unknown_message(*tag).into());
                }
                match taken {
                    Err(FrameError::TooLarge { length, .. }) if length <= FRAME_BYTES_MAX => {
                        too_large(length, limit)
                    }
                    Err(error) => return Err(Report::protocol(error.to_string()).into()),
                    Ok(_) if input.len() <= UNCOUNTED_BYTES => {
                        if self.batch.is_empty() {
                            self.share.release();
                        }
                        return Ok(Look::Part);
                    }
                    Ok(_) => match self.share.grow_to(COPIES * input.len()) {
                        Ok(()) => return Ok(Look::Part),
                        Err(report) => report,
                    },
                }
            }
        };
        // A message is not held without its header.
        let header = frame::peek(&self.client.wire.input, FRAME_BYTES_MAX);
        let header = header.map_err(|error| Report::protocol(error.to_string()))?;
        let (tag, size) = header.ok_or_else(|| Report::protocol("invalid message length"))?;
        Ok(Look::Refused(tag, size, Box::new(report)))
    }

    /// Answers a message that was thrown away as a server answers one that fails.
    pub(super) async fn refuse_message(&mut self, tag: u8, report: Box<Report>) -> Outcome {
        self.share.release();
        match tag {
            b'Q' | b'F' => {
                if Box::pin(self.skips_query()).await? {
                    return Ok(());
                }
                let _ = self.tell(Err(Failure::Report(report)))?;
                Box::pin(self.fail_transaction()).await;
                self.ready().await
            }
            b'P' | b'B' | b'D' | b'E' | b'C' if self.skipping => Ok(()),
            b'P' | b'B' | b'D' | b'E' | b'C' => {
                // What came before it still runs, as it would have on a server.
                let result = Box::pin(self.work_off(End::Full)).await;
                let result = result.and(Err(Failure::Report(report)));
                Box::pin(self.fail_batch(result, End::Full)).await
            }
            // Left over from a COPY that failed on the server's side.
            b'd' | b'f' => Ok(()),
            // These have no body worth the name.
            _ => Err(Report::protocol("invalid message format").into()),
        }
    }
}

fn too_large(length: usize, limit: usize) -> Report {
    Report::error(
        sqlstate::PROGRAM_LIMIT_EXCEEDED,
        format!("message of {length} bytes exceeds the limit of {limit} bytes"),
    )
    .hint("Send it in parts, or raise message_bytes_max in [sql].")
}

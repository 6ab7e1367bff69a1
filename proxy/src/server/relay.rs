//! From a shard to the client: the shard's own bytes, frame by frame, without decoding them.

use std::{io, time::Duration};

use bytes::{Buf, BufMut, BytesMut};

use super::{Answer, Arrived, Expected, Server, Step};
use crate::{
    error::{Failure, Outcome, Report, SqlState, sqlstate},
    frame::{self, FRAME_BYTES_MAX, Frame, HEADER_BYTES},
    message,
    types::{self, Untranslated},
    wire::{OUTPUT_BYTES_HIGH, Wire},
};

/// What a client may send ahead while a statement runs; beyond it we stop reading.
const READ_AHEAD_BYTES_MAX: usize = 1 << 20;
/// A shard's answer is passed on in pieces of this size when more of it is slow to come.
const FLUSH_BYTES: usize = 8 * 1024;

/// The client's side of a session.
pub struct Client {
    /// The stream and its buffers.
    pub wire: Wire,
    /// Answers are kept: they are those of a part of the client's statement.
    pub captured: Option<Box<Captured>>,
}

/// The answer to a statement that the client has not sent itself.
#[derive(Default)]
pub struct Captured {
    /// DataRow bodies, one after the other, each behind its length.
    pub rows: BytesMut,
    /// How many.
    pub count: u64,
    /// Rows that command tags speak of.
    pub changed: u64,
    /// The last command tag.
    pub tag: String,
    /// ErrorResponse.
    pub error: Option<BytesMut>,
    /// Notices, which are the client's all the same.
    pub notices: BytesMut,
    /// What takes rows when they have become many.
    pub full: Option<TakeRows>,
}

/// Takes captured rows away.
pub type TakeRows = Box<dyn FnMut(&mut BytesMut) -> Outcome + Send>;

/// Captured rows are handed on in pieces of this size.
const CAPTURED_BYTES: usize = 1 << 20;

impl Captured {
    /// Takes whole messages from the client's output.
    pub fn take(&mut self, output: &mut BytesMut) -> Outcome {
        loop {
            let frame = frame::take(output, FRAME_BYTES_MAX + 1)
                .map_err(|error| Report::protocol(error.to_string()))?;
            let Some(frame) = frame else { break };
            match frame.tag {
                b'D' => {
                    self.count += 1;
                    self.rows.put_u32(frame.body().len() as u32);
                    self.rows.extend_from_slice(frame.body());
                }
                b'C' => {
                    let tag = message::command_tag(frame.body());
                    self.changed += message::tag_rows(tag).unwrap_or(0);
                    tag.clone_into(&mut self.tag);
                }
                b'E' => {
                    self.error.get_or_insert(frame.bytes);
                }
                b'N' | b'A' | b'S' => self.notices.extend_from_slice(&frame.bytes),
                _ => {}
            }
        }
        match &mut self.full {
            Some(full) if self.rows.len() > CAPTURED_BYTES => full(&mut self.rows),
            _ => Ok(()),
        }
    }
}

impl Client {
    /// Ends only when the client is gone. What it sends meanwhile is kept.
    pub async fn gone(&mut self) -> Failure {
        loop {
            if self.wire.input.len() > READ_AHEAD_BYTES_MAX {
                std::future::pending::<()>().await;
            }
            match self.wire.fill().await {
                Ok(0) | Err(_) => return Failure::ClientGone,
                Ok(_) => {}
            }
        }
    }

    /// Sends what is due.
    pub async fn flush(&mut self) -> Outcome {
        if let Some(captured) = &mut self.captured {
            return captured.take(&mut self.wire.output);
        }
        self.wire.flush().await.map_err(|_| Failure::ClientGone)
    }

    /// Sends what is due once it is more than a buffer's worth.
    pub async fn flush_if_high(&mut self) -> Outcome {
        if let Some(captured) = &mut self.captured {
            return captured.take(&mut self.wire.output);
        }
        self.wire
            .flush_if_high()
            .await
            .map_err(|_| Failure::ClientGone)
    }

    /// Where replies go.
    pub fn output(&mut self) -> &mut BytesMut {
        &mut self.wire.output
    }
}

/// How an exchange ended.
#[derive(Debug, Default)]
pub struct Relayed {
    /// An ErrorResponse was passed on, with this code.
    pub failed: Option<SqlState>,
    /// The shard waits for CopyData.
    pub copy_in: bool,
    /// How many ParseComplete were passed on.
    pub parsed: usize,
    /// A portal reached its row limit.
    pub suspended: bool,
    /// Bytes passed on.
    pub bytes: u64,
}

impl Relayed {
    /// An error that was passed on, as the failure that it is for us.
    pub fn told(&self) -> Outcome {
        self.failed.map_or(Ok(()), |code| Err(Failure::Told(code)))
    }
}

/// Waits for bytes from the shard, which meanwhile gets what is queued for it; the client leaving ends
/// the wait.
pub async fn fill(client: &mut Client, server: &mut Server) -> Outcome {
    // Dropping either future loses nothing: see `Wire::fill`.
    let filled = tokio::select! {
        biased;
        filled = server.wire.fill_and_send() => filled,
        gone = client.gone() => return Err(gone),
    };
    match filled {
        Ok(0) => Err(lost(server, "the server closed the connection")),
        Ok(_) => Ok(()),
        Err(error) => Err(lost(server, &error.to_string())),
    }
}

/// Sends what is queued for the shard: all of it, or if that is more than a buffer's worth, the first
/// part. [`fill`] sends the rest: a server that has much to say takes no more than its kernel holds
/// until it is listened to.
async fn start_send(server: &mut Server) -> Outcome {
    let queued = server.wire.output.len();
    let sent = match queued {
        0..=OUTPUT_BYTES_HIGH => server.wire.flush().await,
        _ => server.wire.start_flush().await,
    };
    was_sent(server, queued, sent)
}

/// Sends what is queued for the shard.
pub async fn send(server: &mut Server) -> Outcome {
    let queued = server.wire.output.len();
    let sent = server.wire.flush().await;
    was_sent(server, queued, sent)
}

/// Sends what is queued once it is more than a buffer's worth.
pub async fn send_if_high(server: &mut Server) -> Outcome {
    let queued = server.wire.output.len();
    let sent = server.wire.flush_if_high().await;
    was_sent(server, queued, sent)
}

fn was_sent(server: &mut Server, queued: usize, sent: io::Result<()>) -> Outcome {
    match sent {
        Ok(()) => Ok(()),
        Err(error) => {
            server.unread = server.wire.output.len() == queued;
            Err(lost(server, &error.to_string()))
        }
    }
}

fn lost(server: &mut Server, cause: &str) -> Failure {
    // A connection in this state is never lent again: something is still expected of it.
    server.owe(Step::Sync, Answer::Hidden);
    server.status = b'E';
    server.shard.broken(cause).into()
}

/// Sends what is queued and passes the answers on until none is due any more, or until the shard
/// waits for COPY data. ReadyForQuery is never passed on: the session writes its own.
pub async fn exchange(client: &mut Client, server: &mut Server) -> Outcome<Relayed> {
    start_send(server).await?;
    receive(client, server, 0).await
}

/// Passes the answers on until no more than `left` are due. What has arrived of those stays where it
/// is.
pub async fn receive(client: &mut Client, server: &mut Server, left: usize) -> Outcome<Relayed> {
    let mut relayed = Relayed::default();
    loop {
        let drained = drain(&mut client.wire.output, server, left, &mut relayed)?;
        if server.expected.len() <= left || relayed.copy_in {
            return Ok(relayed);
        }
        if client.wire.output.len() > FLUSH_BYTES {
            client.flush().await?;
        }
        match drained {
            Drained::OutputFull => {}
            Drained::InputEmpty => fill(client, server).await?,
            Drained::Untranslated(missing) => learn(client, server, missing).await?,
        }
    }
}

/// Why moving frames stopped.
enum Drained {
    /// What was moved must be sent first.
    OutputFull,
    /// No whole frame is left.
    InputEmpty,
    /// The next frame has OIDs that nobody knows yet.
    Untranslated(Untranslated),
}

/// Learns what the next frame needs to be passed on. A failure comes after the end of the
/// exchange, so that the connection is of use for a rollback.
async fn learn(client: &mut Client, server: &mut Server, missing: Untranslated) -> Outcome {
    match types::learn(&server.shard, missing).await {
        Ok(()) => Ok(()),
        Err(failure) => {
            throw_away(client, server).await?;
            Err(failure)
        }
    }
}

/// Reads the answers that are due and passes none of them on.
pub async fn throw_away(client: &mut Client, server: &mut Server) -> Outcome {
    let nothing_due = |due: &Expected| matches!(due, Expected::Local(_));
    server.expected.retain(|due| !nothing_due(due));
    for due in &mut server.expected {
        if let Expected::Answer { relay, .. } = due {
            *relay = false;
        }
    }
    while !server.expected.is_empty() {
        let output = &mut client.wire.output;
        pass_rows(output, server, false, &mut Relayed::default())?;
        let whole = if server.passing > 0 {
            None
        } else {
            take(server)?
        };
        match whole {
            None => fill(client, server).await?,
            Some(frame) if frame.tag == b'G' => {
                message::put_copy_fail(&mut server.wire.output, "the statement has failed");
                send(server).await?;
            }
            Some(frame) => {
                step(output, server, frame, false, &mut Relayed::default());
            }
        }
    }
    // The failure that is about to be told comes before it.
    server.hidden_error = None;
    Ok(())
}

/// Moves what has arrived before the last `left` answers: to `output`, or away.
fn drain(
    output: &mut BytesMut,
    server: &mut Server,
    left: usize,
    relayed: &mut Relayed,
) -> Outcome<Drained> {
    loop {
        if left > 0 && server.expected.len() <= left {
            return Ok(Drained::InputEmpty);
        }
        emit_local(output, server, relayed);
        if output.len() > OUTPUT_BYTES_HIGH {
            return Ok(Drained::OutputFull);
        }
        let relay = match server.expected.front() {
            Some(Expected::Answer { relay, .. }) => *relay,
            Some(Expected::Local(_)) => false,
            // Between statements: only notices and notifications can come.
            None => true,
        };
        if server.columns.is_none() {
            pass_rows(output, server, relay, relayed)?;
            if server.passing > 0 {
                return Ok(Drained::InputEmpty);
            }
        }
        let frame = match take_for_client(server)? {
            Arrived::Frame(frame) => frame,
            Arrived::Part => return Ok(Drained::InputEmpty),
            Arrived::Untranslated(missing) => return Ok(Drained::Untranslated(missing)),
        };
        let size = frame.bytes.len();
        if step(output, server, frame, relay, relayed) {
            relayed.bytes += size as u64;
        }
        if relayed.copy_in {
            return Ok(Drained::InputEmpty);
        }
    }
}

fn emit_local(output: &mut BytesMut, server: &mut Server, relayed: &mut Relayed) {
    while let Some(Expected::Local(bytes)) = server.expected.front() {
        relayed.parsed += usize::from(*bytes == message::PARSE_COMPLETE);
        output.extend_from_slice(bytes);
        server.expected.pop_front();
    }
}

fn take(server: &mut Server) -> Outcome<Option<Frame>> {
    loop {
        let taken = server.take_frame();
        let frame = taken.map_err(|error| lost(server, &error.to_string()))?;
        let Some(mut frame) = frame else {
            return Ok(None);
        };
        heed_farewell(server, &frame)?;
        if !is_secret(server, &mut frame) {
            return Ok(Some(frame));
        }
    }
}

fn take_for_client(server: &mut Server) -> Outcome<Arrived> {
    loop {
        let taken = server.take_for_client();
        let mut arrived = taken.map_err(|error| lost(server, &error.to_string()))?;
        if let Arrived::Frame(frame) = &mut arrived {
            heed_farewell(server, frame)?;
            if is_secret(server, frame) {
                continue;
            }
        }
        return Ok(arrived);
    }
}

/// What a server says beside the answer to a call of ours may show its parameters, if the session's
/// settings ask for that: notices are thrown away, and of an error is left what the function says.
fn is_secret(server: &Server, frame: &mut Frame) -> bool {
    if !server.is_calling() {
        return false;
    }
    if frame.tag == b'E' {
        let report = Report::of_frame(&frame.bytes);
        frame.bytes.clear();
        report.write(&mut frame.bytes);
    }
    frame.tag == b'N'
}

/// A FATAL error is the last word of this server connection, and not of the client's session.
fn heed_farewell(server: &mut Server, frame: &Frame) -> Outcome {
    if frame.tag != b'E' {
        return Ok(());
    }
    match message::error_field(frame.body(), b'V') {
        Some("FATAL" | "PANIC") => {
            let cause = message::error_field(frame.body(), b'M').unwrap_or_default();
            let lost = lost(server, cause);
            // What the session has asked for itself ends it.
            let asked = [
                sqlstate::TRANSACTION_TIMEOUT,
                sqlstate::IDLE_IN_TRANSACTION_TIMEOUT,
            ];
            let report = Report::of_body(frame.body());
            match asked.contains(&report.sqlstate.as_str()) {
                true => Err(Failure::Farewell(Box::new(report))),
                false => Err(lost),
            }
        }
        _ => Ok(()),
    }
}

/// Passes a run of DataRow and CopyData frames on in one piece, also the part of a large one that
/// has arrived so far.
fn pass_rows(
    output: &mut BytesMut,
    server: &mut Server,
    relay: bool,
    relayed: &mut Relayed,
) -> Outcome {
    let mut run = server.passing.min(server.wire.input.len());
    server.passing -= run;
    while server.passing == 0 {
        let header = frame::peek(&server.wire.input[run..], FRAME_BYTES_MAX + 1);
        let header = header.map_err(|error| lost(server, &error.to_string()))?;
        let Some((b'D' | b'd', size)) = header else {
            break;
        };
        let arrived = size.min(server.wire.input.len() - run);
        run += arrived;
        server.passing = size - arrived;
    }
    if relay {
        output.extend_from_slice(&server.wire.input[..run]);
        relayed.bytes += run as u64;
    }
    server.wire.input.advance(run);
    Ok(())
}

/// Handles one frame that is not a row. True when it was passed on.
fn step(
    output: &mut BytesMut,
    server: &mut Server,
    mut frame: Frame,
    relay: bool,
    relayed: &mut Relayed,
) -> bool {
    let front = match server.expected.front() {
        Some(Expected::Answer { step, .. }) => Some(*step),
        Some(Expected::Local(_)) | None => None,
    };
    if matches!(frame.tag, b'C' | b'I' | b's' | b'E' | b'Z') {
        server.columns = None;
    }
    let ends_front = match frame.tag {
        b'Z' => {
            server.status = frame.body().first().copied().unwrap_or(b'E');
            // What an error skipped is due no more.
            skip_to_ready(server);
            server.expected.pop_front();
            return false;
        }
        b'E' => {
            server.name_cause(&mut frame);
            let hidden = !relay && !matches!(front, Some(Step::Parse | Step::Columns { .. }));
            skip_to_ready(server);
            if hidden {
                server.hidden_error.get_or_insert(frame.bytes);
                return false;
            }
            let code = message::error_field(frame.body(), b'C').unwrap_or_default();
            relayed.failed.get_or_insert(SqlState::of(code));
            output.extend_from_slice(&frame.bytes);
            return true;
        }
        b'G' => {
            relayed.copy_in = relay;
            false
        }
        b's' => {
            relayed.suspended = true;
            front == Some(Step::Execute)
        }
        b'C' | b'I' => matches!(front, Some(Step::Execute | Step::CallExecute)),
        b'1' => {
            relayed.parsed += usize::from(relay);
            matches!(front, Some(Step::Parse | Step::CallParse))
        }
        b'2' => matches!(front, Some(Step::Bind | Step::CallBind)),
        b'3' => front == Some(Step::Close),
        b'T' if server.shape.is_some() => {
            server.shape = Some(Some(message::shape(frame.body())));
            matches!(front, Some(Step::Describe | Step::Columns { .. }))
        }
        b'T' if server.forget_tables => {
            message::forget_tables(&mut frame.bytes);
            front == Some(Step::Describe)
        }
        b'T' | b'n' => matches!(front, Some(Step::Describe | Step::Columns { .. })),
        // Notifications belong to the client whatever is under way.
        b'A' => {
            server.name_notifier(&mut frame);
            output.extend_from_slice(&frame.bytes);
            return true;
        }
        _ => false,
    };
    if relay {
        output.extend_from_slice(&frame.bytes);
    }
    if ends_front {
        server.expected.pop_front();
    }
    relay
}

/// After an error the server skips to the next Sync (or the end of a simple query): its
/// ReadyForQuery is the next answer.
fn skip_to_ready(server: &mut Server) {
    while let Some(front) = server.expected.front() {
        if matches!(
            front,
            Expected::Answer {
                step: Step::Query | Step::Sync | Step::CallSync,
                ..
            }
        ) {
            return;
        }
        server.expected.pop_front();
    }
}

/// Sends what is queued and gives every visible frame to `on_frame`, until no answer is due. A
/// shard's ErrorResponse becomes the failure, after the exchange has come to its end.
pub async fn collect(
    client: &mut Client,
    server: &mut Server,
    mut on_frame: impl FnMut(&mut BytesMut, Frame) -> Outcome,
) -> Outcome {
    send(server).await?;
    let mut failure = None;
    while !server.expected.is_empty() {
        let Some(frame) = next_answer(client, server).await? else {
            continue;
        };
        if frame.tag == b'E' {
            failure.get_or_insert(Failure::Shard(frame.bytes));
        } else if failure.is_none() {
            if let Err(error) = on_frame(&mut client.wire.output, frame) {
                failure = Some(error);
            }
            client.flush_if_high().await?;
        }
    }
    failure.map_or(Ok(()), Err)
}

/// The next frame, with the queue of expected answers kept up. `None`: the frame was not for us
/// (an answer nobody asked for, ReadyForQuery, or a notice that was passed on).
pub async fn next_answer(client: &mut Client, server: &mut Server) -> Outcome<Option<Frame>> {
    let frame = loop {
        emit_local(&mut client.wire.output, server, &mut Relayed::default());
        match take_for_client(server)? {
            Arrived::Frame(frame) => break frame,
            Arrived::Part => fill(client, server).await?,
            Arrived::Untranslated(missing) => learn(client, server, missing).await?,
        }
    };
    let relay = matches!(
        server.expected.front(),
        Some(Expected::Answer { relay: true, .. })
    );
    if matches!(frame.tag, b'D' | b'd') {
        return Ok(relay.then_some(frame));
    }
    if frame.tag == b'N' && relay {
        client.wire.output.extend_from_slice(&frame.bytes);
        return Ok(None);
    }
    // `step` writes into a buffer of its own what it would pass on.
    let mut visible = BytesMut::new();
    let mut relayed = Relayed::default();
    let passed = step(&mut visible, server, frame, relay, &mut relayed);
    if !passed || visible.len() < HEADER_BYTES {
        return Ok(None);
    }
    if visible[0] == b'A' {
        client.wire.output.extend_from_slice(&visible);
        return Ok(None);
    }
    Ok(Some(Frame {
        tag: visible[0],
        bytes: visible,
    }))
}

/// How long a step of a commit may take before its connection counts as lost.
const SETTLE_TIMEOUT: Duration = Duration::from_secs(60);

/// Sends what is queued and reads its answers, whether or not the client is still there: a commit
/// that has begun is not given up. Every frame but notices goes to `on_frame`.
pub async fn settle(
    output: &mut BytesMut,
    server: &mut Server,
    mut on_frame: impl FnMut(&mut BytesMut, Frame),
) -> Outcome {
    send(server).await?;
    let mut failure = None;
    while !server.expected.is_empty() {
        let Some(frame) = take(server)? else {
            let filled = tokio::time::timeout(SETTLE_TIMEOUT, server.wire.fill()).await;
            match filled {
                Ok(Ok(count)) if count > 0 => continue,
                Ok(Ok(_)) => return Err(lost(server, "the server closed the connection")),
                Ok(Err(error)) => return Err(lost(server, &error.to_string())),
                Err(_) => return Err(lost(server, "no answer in time")),
            }
        };
        if frame.tag == b'N' {
            output.extend_from_slice(&frame.bytes);
            continue;
        }
        let mut visible = BytesMut::new();
        let passed = step(&mut visible, server, frame, true, &mut Relayed::default());
        if !passed || visible.len() < HEADER_BYTES {
            continue;
        }
        match visible[0] {
            b'A' => output.extend_from_slice(&visible),
            b'E' => {
                failure.get_or_insert(Failure::Shard(visible));
            }
            tag => on_frame(
                output,
                Frame {
                    tag,
                    bytes: visible,
                },
            ),
        }
    }
    failure.map_or(Ok(()), Err)
}

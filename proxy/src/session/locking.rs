//! SELECT ... FOR UPDATE over several shards. Shards are asked one after the other, so that two
//! such statements mostly queue on the first, and only rows of the answer stay locked: where a
//! limit leaves rows of a shard over, their locks are given back by the end of a subtransaction.

use std::collections::VecDeque;

use automator67_planner::{catalog::ShardId, plan::Template};

use super::{
    Session,
    planning::Request,
    scatter::{Passing, Stream, Streaming, formats, insert, key_columns, malformed},
};
use crate::{
    error::{Outcome, Report, sqlstate},
    frame::Frame,
    message,
};

const MARK: &str = "SAVEPOINT automator67_rows";
const GIVE_BACK: &str =
    "ROLLBACK TO SAVEPOINT automator67_rows; RELEASE SAVEPOINT automator67_rows";
const KEEP: &str = "RELEASE SAVEPOINT automator67_rows";

/// Rows of one shard.
type Locked = VecDeque<Frame>;

impl Session {
    /// Locks the rows of the answer, then passes them on.
    pub(super) async fn lock_rows(
        &mut self,
        streaming: &Streaming<'_>,
        locking: &Template,
        request: &Request<'_>,
    ) -> Outcome {
        self.begin_implicit();
        let mut clause = String::new();
        request.render(locking, &|_, _| {}, &mut clause);
        let window = streaming.window;
        let limit = window.take.map(|take| take.saturating_add(window.skip));
        let locked = match limit {
            Some(limit) if !streaming.keys.is_empty() => {
                self.lock_first_rows(streaming, &clause, limit, request)
                    .await?
            }
            limit => {
                self.lock_any_rows(streaming, &clause, limit, request)
                    .await?
            }
        };
        self.pass_locked(streaming, locked, request).await
    }

    /// As many rows as are wanted, or all.
    async fn lock_any_rows(
        &mut self,
        streaming: &Streaming<'_>,
        clause: &str,
        limit: Option<u64>,
        request: &Request<'_>,
    ) -> Outcome<Vec<Locked>> {
        let mut left = limit;
        let mut all = Vec::with_capacity(streaming.shards.len());
        let mut bytes = 0;
        for shard in streaming.shards {
            let mut rows = Locked::new();
            if left != Some(0) {
                rows = self
                    .lock_on(streaming, *shard, clause, left, &mut bytes, request)
                    .await?;
                left = left.map(|left| left.saturating_sub(rows.len() as u64));
            }
            all.push(rows);
        }
        Ok(all)
    }

    /// The first rows in order: every shard locks as many as there could be, and gives back what is
    /// not among the first of all.
    async fn lock_first_rows(
        &mut self,
        streaming: &Streaming<'_>,
        clause: &str,
        limit: u64,
        request: &Request<'_>,
    ) -> Outcome<Vec<Locked>> {
        let mut all = Vec::with_capacity(streaming.shards.len());
        let mut bytes = 0;
        for shard in streaming.shards {
            self.run_hidden(*shard, MARK).await?;
            let rows = self
                .lock_on(streaming, *shard, clause, Some(limit), &mut bytes, request)
                .await?;
            all.push(rows);
        }
        let wanted = first_of(streaming, &all, limit)?;
        bytes = 0;
        for ((shard, rows), count) in streaming.shards.iter().zip(&mut all).zip(wanted) {
            if count == rows.len() {
                self.run_hidden(*shard, KEEP).await?;
                continue;
            }
            self.run_hidden(*shard, GIVE_BACK).await?;
            *rows = if count == 0 {
                Locked::new()
            } else {
                let count = Some(count as u64);
                self.lock_on(streaming, *shard, clause, count, &mut bytes, request)
                    .await?
            };
        }
        Ok(all)
    }

    async fn lock_on(
        &mut self,
        streaming: &Streaming<'_>,
        shard: ShardId,
        clause: &str,
        limit: Option<u64>,
        bytes: &mut usize,
        request: &Request<'_>,
    ) -> Outcome<Locked> {
        let limit = limit.map_or_else(String::new, |limit| format!(" LIMIT {limit}"));
        let text = format!("{}{limit}{clause}", streaming.text);
        let columns = streaming.learned.columns.len();
        let visible = columns.saturating_sub(streaming.rows.hidden);
        let (wrapped, _) = key_columns(streaming.rows, visible, &text, columns);
        let formats = formats(request, visible, columns + wrapped.extra);
        self.send_select(shard, &wrapped.text, &formats, request)
            .await?;
        let mut rows = Locked::new();
        while let Some(row) = self.next_row(shard).await? {
            *bytes += row.bytes.len();
            if *bytes > self.settings.own.work_bytes {
                self.stop_parts(&[shard]).await?;
                return Err(too_many(self.settings.own.work_bytes).into());
            }
            rows.push_back(row);
        }
        Ok(rows)
    }

    async fn pass_locked(
        &mut self,
        streaming: &Streaming<'_>,
        mut locked: Vec<Locked>,
        request: &Request<'_>,
    ) -> Outcome {
        let columns = streaming.learned.columns.len();
        let visible = columns.saturating_sub(streaming.rows.hidden);
        if request.bound.is_none() {
            let description = &streaming.learned.description;
            message::put_visible_columns(self.client.output(), description, visible);
        }
        let mut passing = Passing::new(streaming, visible);
        for part in in_order(streaming, &locked)? {
            let Some(row) = locked[part].pop_front() else {
                continue;
            };
            passing.note(part, &row);
            if !passing.is_full() {
                passing.pass(row, self.client.output());
                self.client.flush_if_high().await?;
            }
        }
        let tag = format!("SELECT {}", passing.passed);
        message::put_command_complete(self.client.output(), &tag);
        self.note_parts(&passing.parts);
        Ok(())
    }
}

/// Whose row comes next, for every row.
fn in_order(streaming: &Streaming<'_>, locked: &[Locked]) -> Outcome<Vec<usize>> {
    let columns = streaming.learned.columns.len();
    let visible = columns.saturating_sub(streaming.rows.hidden);
    let (_, key_columns) = key_columns(streaming.rows, visible, streaming.text, columns);
    let stream = |part: usize, at: usize| -> Outcome<Option<Stream>> {
        let Some(row) = locked[part].get(at) else {
            return Ok(None);
        };
        let keys = message::value_spans(row.body(), &key_columns).ok_or_else(malformed)?;
        let row = Frame {
            tag: row.tag,
            bytes: row.bytes.clone(),
        };
        Ok(Some(Stream { part, row, keys }))
    };
    let mut order = Vec::new();
    if streaming.keys.is_empty() {
        for (part, rows) in locked.iter().enumerate() {
            order.extend(std::iter::repeat_n(part, rows.len()));
        }
        return Ok(order);
    }
    let mut next = vec![0; locked.len()];
    let mut streams = Vec::with_capacity(locked.len());
    for part in 0..locked.len() {
        if let Some(stream) = stream(part, 0)? {
            insert(&mut streams, stream, streaming.keys)?;
        }
    }
    while let Some(first) = streams.pop() {
        order.push(first.part);
        next[first.part] += 1;
        if let Some(stream) = stream(first.part, next[first.part])? {
            insert(&mut streams, stream, streaming.keys)?;
        }
    }
    Ok(order)
}

/// How many of the first rows of all are each shard's.
fn first_of(streaming: &Streaming<'_>, locked: &[Locked], limit: u64) -> Outcome<Vec<usize>> {
    let mut counts = vec![0; locked.len()];
    let limit = usize::try_from(limit).unwrap_or(usize::MAX);
    for part in in_order(streaming, locked)?.into_iter().take(limit) {
        counts[part] += 1;
    }
    Ok(counts)
}

fn too_many(bytes_max: usize) -> Report {
    Report::error(
        sqlstate::LIMIT_EXCEEDED,
        format!("the locked rows take more than {bytes_max} bytes"),
    )
    .hint("Lock fewer rows or select fewer columns, or raise automator67.work_mem_bytes.")
}

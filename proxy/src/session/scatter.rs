//! The scatter tier: every shard runs one statement, and its rows go to the client as they come:
//! one shard's after the other's, or merged in order.
//!
//! Rows are never decoded. Values that ORDER BY compares come in binary, in columns behind the
//! client's, and are cut off again.

use std::{
    borrow::Cow,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
    time::{Duration, Instant},
};

use automator67_planner::{
    catalog::ShardId,
    normalise::LiteralClass,
    plan::{ColumnAt, Combine, Count, Piece, Rows, Scatter, ShardSet},
};
use bytes::BytesMut;

use super::{
    Session, gather::behind_view, merge::TypeNames, moving::MovedRelation, planning::Request,
    servers::Select,
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    frame::{Frame, HEADER_BYTES},
    guc, message,
    order::{self, Kernel, SortKey},
    telemetry::Tier,
};

/// The columns of what shards run, learned from the home shard once for each plan.
pub struct Learned {
    /// Which of the statement's integers are too large for int4: they give columns other types.
    large: Vec<usize>,
    /// RowDescription, as the home shard has it.
    pub description: BytesMut,
    /// Type and type modifier of each.
    pub columns: Vec<(u32, i32)>,
    /// For each: its collation compares bytes.
    pub bytewise: OnceLock<Vec<bool>>,
    /// Names of their types, where the last statement needs them.
    pub names: OnceLock<Vec<TypeNames>>,
    /// How long shards took for it lately, in microseconds.
    took: AtomicU64,
}

/// A statement of less is sent along with the opening of a snapshot: to do it again, when the
/// snapshot turns out to be none, costs less than to wait for that.
const QUICK: Duration = Duration::from_millis(3);

impl Learned {
    pub fn is_quick(&self) -> bool {
        u128::from(self.took.load(Ordering::Relaxed)) < QUICK.as_micros()
    }

    /// Shards took so long for it.
    pub fn took(&self, time: Duration) {
        let micros = u64::try_from(time.as_micros()).unwrap_or(u64::MAX);
        self.took.store(micros, Ordering::Relaxed);
    }
}

/// What a shard has done for a statement.
#[derive(Debug, Clone, Copy)]
pub struct Part {
    /// Which.
    pub shard: ShardId,
    /// Rows that came from it.
    pub rows: u64,
    /// Their bytes.
    pub bytes: u64,
    /// When its last row was there.
    pub milliseconds: f64,
}

/// What was done for a statement, for EXPLAIN ANALYZE.
#[derive(Debug, Clone, Default)]
pub struct Work {
    /// Which of the plan's ways was taken: 0 is its own, n the n-th of its others.
    pub way: usize,
    /// Relations that were moved, in the order of the plan's moves.
    pub moved: Vec<MovedRelation>,
    /// How many rows each of them was estimated to have.
    pub estimated: Vec<f64>,
    /// What each shard has sent.
    pub parts: Vec<Part>,
    /// The statement that made the answer of partial results, if there was one.
    pub last: Option<String>,
    /// Partial results were put into a temporary table on the home shard.
    pub table: bool,
    /// How long the last statement took.
    pub last_milliseconds: f64,
}

/// Rows that are about to be passed on.
pub(super) struct Streaming<'s> {
    pub rows: &'s Rows,
    pub keys: &'s [SortKey],
    pub window: Window,
    pub shards: &'s [ShardId],
    pub text: &'s str,
    pub learned: &'s Learned,
}

/// How a number of rows was given, read.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Window {
    pub skip: u64,
    pub take: Option<u64>,
}

/// Start and length of a value in a row; `None` is NULL.
pub(super) type ValueSpan = Option<(usize, usize)>;

/// A shard's rows in order, the first of them at hand.
pub(super) struct Stream {
    pub part: usize,
    pub row: Frame,
    /// Where the values that are compared are.
    pub keys: Vec<ValueSpan>,
}

impl Session {
    /// A SELECT of which every shard does its part.
    pub(super) async fn scatter(
        &mut self,
        scatter: &Scatter,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        if request.bound.is_some_and(|bound| bound.limit > 0) {
            // A portal that is read in parts lives on one server.
            return self.gather_instead(request).await;
        }
        self.work = Work::default();
        if request.planned.session.expands_views {
            self.check_views_on_home(request).await?;
        }
        if scatter.moves.is_empty() {
            return match self.scatter_in_place(scatter, request).await? {
                Some(tier) => Ok(tier),
                None => self.gather_instead(request).await,
            };
        }
        if self.reads_only() {
            // Shards make no tables there; the home shard has a way around that.
            return self.gather_instead(request).await;
        }
        let outer = self.choose_lasting(false, request)?;
        let result = self.scatter_with_moves(scatter, request).await;
        self.end_lasting(outer, result).await
    }

    async fn scatter_with_moves(
        &mut self,
        scatter: &Scatter,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        self.check_on_home(request).await?;
        let chosen = self.choose(scatter, request).await;
        let (way, choice) = chosen.map_err(|failure| behind_view(failure, request))?;
        let targets = match way.shards {
            ShardSet::Home => vec![self.home()],
            ShardSet::All | ShardSet::Keys(_) | ShardSet::Span(_) => self.all_shards(),
        };
        let moved = self
            .move_relations(&way.moves, &targets, &choice, request)
            .await;
        let moved = moved.map_err(|failure| behind_view(failure, request))?;
        self.work = Work {
            way: choice.way,
            moved,
            estimated: choice.rows.clone(),
            ..Work::default()
        };
        let done = self.scatter_in_place(way, request).await?;
        if done.is_none() {
            self.drop_moved(&way.moves, &targets).await?;
            return self.gather_instead(request).await;
        }
        // Temporary ones end with the transaction, which ends with the statement.
        if self.moves_last {
            self.drop_moved(&way.moves, &targets).await?;
        }
        Ok(Tier::Merge)
    }

    /// Every shard has what it needs. `None`: the columns' types do not allow it.
    async fn scatter_in_place(
        &mut self,
        scatter: &Scatter,
        request: &Request<'_>,
    ) -> Outcome<Option<Tier>> {
        let shards = self.shard_set(&scatter.shards, request).await?;
        if let ([shard], true) = (shards.as_slice(), scatter.moves.is_empty())
            && !self.has_other_clock(*shard, &request.planned.session)
        {
            self.run_text(request, request.text, *shard).await?;
            return Ok(Some(Tier::Single));
        }
        let text = self.shard_text(scatter, request).await?;
        let learned = self.learned(scatter, &text, request).await?;
        match &scatter.combine {
            Combine::Final(pieces) => {
                let done = self
                    .merge(pieces, &shards, &text, &learned, request)
                    .await?;
                Ok(done.map(|_| Tier::Merge))
            }
            Combine::Rows(rows) => {
                let window = self.window(rows, request)?;
                match sort_keys(
                    rows,
                    &learned,
                    &self.bytewise(&learned, rows, &text, request).await?,
                ) {
                    Some(keys) if rows.distinct.is_none() => {
                        let streaming = Streaming {
                            rows,
                            keys: &keys,
                            window,
                            shards: &shards,
                            text: &text,
                            learned: &learned,
                        };
                        if let Some(locking) = &rows.locking {
                            self.lock_rows(&streaming, locking, request).await?;
                            return Ok(Some(Tier::Scatter));
                        }
                        let parts = self.stream(&streaming, request).await?;
                        self.note_parts(&parts);
                        Ok(Some(Tier::Scatter))
                    }
                    _ if rows.locking.is_some() => Err(unordered().into()),
                    _ => {
                        let done = self
                            .merge_rows(rows, &shards, &text, &learned, request)
                            .await?;
                        Ok(done.map(|_| Tier::Merge))
                    }
                }
            }
        }
    }

    /// The same statement by way of the home shard.
    pub(super) async fn gather_instead(&mut self, request: &Request<'_>) -> Outcome<Tier> {
        let planned = self.plan_for_gather(request).await?;
        let request = request.with_plan(&planned);
        Box::pin(self.execute(&request)).await
    }

    /// What each shard runs.
    pub(super) async fn shard_text(
        &mut self,
        scatter: &Scatter,
        request: &Request<'_>,
    ) -> Outcome<String> {
        let text = self.sql(&scatter.statement, request).await?;
        Ok(match self.as_lasting(&text) {
            Cow::Borrowed(_) => text,
            Cow::Owned(lasting) => lasting,
        })
    }

    /// A template as SQL, with the transaction's time where it is read.
    pub(super) async fn sql(
        &mut self,
        template: &[Piece],
        request: &Request<'_>,
    ) -> Outcome<String> {
        let now = match template.contains(&Piece::Now) {
            true => self.quoted_time().await?,
            false => String::new(),
        };
        let mut text = String::new();
        let fill = |piece: &Piece, output: &mut String| {
            if *piece == Piece::Now {
                output.push_str(&now);
            }
        };
        request.render(template, &fill, &mut text);
        Ok(text)
    }

    /// The transaction's time as a text that a cast makes a time of. Like `now()` it is known when
    /// the statement runs, not before: what a planner folds can lose what a column is described by.
    pub(super) async fn quoted_time(&mut self) -> Outcome<String> {
        self.begin_implicit();
        let time = guc::quote_literal(&self.transaction_time().await?);
        Ok(format!("{time}::pg_catalog.text"))
    }

    /// The columns of a plan's shard statement.
    pub(super) async fn learned(
        &mut self,
        scatter: &Scatter,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Arc<Learned>> {
        let memo = &scatter.memo.0;
        let large = large_integers(request);
        if let Some(known) = memo.get()
            && let Ok(known) = known.clone().downcast::<Learned>()
            && known.large == large
        {
            return Ok(known);
        }
        if request.bound.is_none() {
            // What is wrong with the client's own text is said of that.
            self.check_on_home(request).await?;
        }
        let description = self.describe_text(text, request).await?;
        let columns = message::columns(&description[HEADER_BYTES..]).ok_or_else(|| {
            Report::error(sqlstate::INTERNAL_ERROR, "a shard's answer is malformed")
        })?;
        let learned = Arc::new(Learned {
            large,
            description,
            columns,
            bytewise: OnceLock::new(),
            names: OnceLock::new(),
            took: AtomicU64::new(0),
        });
        // Another session may have been quicker; both have learned the same.
        let _ = memo.set(learned.clone());
        Ok(learned)
    }

    /// Which columns compare as bytes; asked only where one holds text that is compared.
    pub(super) async fn bytewise(
        &mut self,
        learned: &Learned,
        rows: &Rows,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<bool>> {
        if let Some(known) = learned.bytewise.get() {
            return Ok(known.clone());
        }
        let visible = learned.columns.len().saturating_sub(rows.hidden);
        let collatable = rows.order.iter().any(|sort| {
            let (oid, _) = column_of(sort.column, visible, &learned.columns).unwrap_or((25, -1));
            COLLATABLE.contains(&oid)
        });
        let known = if collatable {
            self.ask_bytewise(&learned.columns, text, request).await?
        } else {
            vec![false; learned.columns.len()]
        };
        let _ = learned.bytewise.set(known.clone());
        Ok(known)
    }

    /// The home shard says by which collation each column compares.
    async fn ask_bytewise(
        &mut self,
        columns: &[(u32, i32)],
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Vec<bool>> {
        let tests: Vec<String> = columns
            .iter()
            .enumerate()
            .map(|(index, (oid, _))| match COLLATABLE.contains(oid) {
                true => format!("coalesce(({BYTEWISE_TEST}), false)")
                    .replace("$column", &format!("a67.c{}", index + 1)),
                false => "false".to_owned(),
            })
            .collect();
        let question = format!(
            "SELECT {} FROM {}",
            tests.join(", "),
            missing_row(text, columns.len())
        );
        let rows = self.ask_home(&question, request).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        Ok(row
            .iter()
            .map(|value| value.as_deref() == Some("t"))
            .collect())
    }

    /// Passes shards' rows on to the client.
    async fn stream(
        &mut self,
        streaming: &Streaming<'_>,
        request: &Request<'_>,
    ) -> Outcome<Vec<Part>> {
        let Streaming {
            rows,
            keys,
            shards,
            text,
            learned,
            window: _,
        } = *streaming;
        let visible = learned.columns.len().saturating_sub(rows.hidden);
        let (wrapped, key_columns) = key_columns(rows, visible, text, learned.columns.len());
        let formats = formats(request, visible, learned.columns.len() + wrapped.extra);
        let select = Select {
            text: &wrapped.text,
            formats: &formats,
            learned,
        };
        let started = Instant::now();
        self.send_selects(shards, &select, true, request).await?;
        if request.bound.is_none() {
            let output = self.client.output();
            message::put_visible_columns(output, &learned.description, visible);
        }
        let mut passing = Passing::new(streaming, visible);
        let result = if keys.is_empty() {
            self.concatenate(shards, &mut passing).await
        } else {
            self.merge_in_order(shards, keys, &key_columns, &mut passing)
                .await
        };
        // What a limit has left over is not much, unless something failed.
        match result {
            Ok(()) => {
                for shard in shards {
                    while self.next_row(*shard).await?.is_some() {}
                }
                self.note_ended();
            }
            Err(Failure::ClientGone) => return Err(Failure::ClientGone),
            Err(failure) => {
                self.stop_parts(shards).await?;
                return Err(failure);
            }
        }
        learned.took(started.elapsed());
        let tag = format!("SELECT {}", passing.passed);
        message::put_command_complete(self.client.output(), &tag);
        Ok(passing.parts)
    }

    async fn concatenate(&mut self, shards: &[ShardId], passing: &mut Passing) -> Outcome {
        for (part, shard) in shards.iter().enumerate() {
            while let Some(row) = self.next_row(*shard).await? {
                passing.note(part, &row);
                if passing.is_full() {
                    return Ok(());
                }
                let bytes = passing.pass(row, self.client.output());
                self.process.telemetry.bytes_to_clients.increment(bytes);
                self.client.flush_if_high().await?;
            }
        }
        Ok(())
    }

    async fn merge_in_order(
        &mut self,
        shards: &[ShardId],
        keys: &[SortKey],
        key_columns: &[usize],
        passing: &mut Passing,
    ) -> Outcome {
        let mut streams: Vec<Stream> = Vec::with_capacity(shards.len());
        for part in 0..shards.len() {
            if let Some(stream) = self.advance(shards, part, key_columns, passing).await? {
                insert(&mut streams, stream, keys)?;
            }
        }
        // The last of `streams` has the first row.
        while let Some(stream) = streams.pop() {
            if passing.is_full() && !passing.is_tied(&stream, keys)? {
                return Ok(());
            }
            let part = stream.part;
            passing.remember(&stream);
            let bytes = passing.pass(stream.row, self.client.output());
            self.process.telemetry.bytes_to_clients.increment(bytes);
            self.client.flush_if_high().await?;
            if let Some(next) = self.advance(shards, part, key_columns, passing).await? {
                insert(&mut streams, next, keys)?;
            }
        }
        Ok(())
    }

    async fn advance(
        &mut self,
        shards: &[ShardId],
        part: usize,
        key_columns: &[usize],
        passing: &mut Passing,
    ) -> Outcome<Option<Stream>> {
        let Some(row) = self.next_row(shards[part]).await? else {
            return Ok(None);
        };
        passing.note(part, &row);
        let keys = message::value_spans(row.body(), key_columns).ok_or_else(malformed)?;
        Ok(Some(Stream { part, row, keys }))
    }

    /// LIMIT and OFFSET as numbers.
    fn window(&self, rows: &Rows, request: &Request<'_>) -> Outcome<Window> {
        let read = |count: &Option<Count>, word: &str, code: &'static str| match count {
            None => Ok(None),
            Some(count) => match read_count(count, request)? {
                Some(number) if number < 0 => Err(Failure::from(Report::error(
                    code,
                    format!("{word} must not be negative"),
                ))),
                number => Ok(number.and_then(|number| u64::try_from(number).ok())),
            },
        };
        Ok(Window {
            take: read(&rows.count, "LIMIT", "2201W")?,
            skip: read(&rows.offset, "OFFSET", "2201X")?.unwrap_or(0),
        })
    }

    /// Metrics of what shards have sent.
    pub(super) fn note_parts(&mut self, parts: &[Part]) {
        self.work.parts = parts.to_vec();
        let bytes = parts.iter().map(|part| part.bytes).sum();
        self.process.telemetry.bytes_scattered.increment(bytes);
    }
}

/// The integers of a statement that are int8.
fn large_integers(request: &Request<'_>) -> Vec<usize> {
    let literals = request.literals.iter().enumerate();
    let large = literals.filter(|(_, literal)| {
        let text = request.whole.get(literal.start..literal.end).unwrap_or("");
        literal.class == LiteralClass::Integer && text.parse::<i32>().is_err()
    });
    large.map(|(slot, _)| slot).collect()
}

/// An item of FROM with one row, in which every column `a67.c1` to `a67.cN` of a statement is NULL:
/// what is asked of it is the columns' types. The statement is planned, as far as Postgres asks for
/// rights on what it names, and not run.
pub(super) fn missing_row(text: &str, columns: usize) -> String {
    let names: Vec<String> = (1..=columns).map(|number| format!("c{number}")).collect();
    format!(
        "(VALUES (1)) a67_one LEFT JOIN (SELECT * FROM ({text}) a67 ({}) LIMIT 0) a67 ON true",
        names.join(", ")
    )
}

/// Built-in types that have a collation: text, varchar, char, name, and arrays of them.
pub const COLLATABLE: &[u32] = &[19, 25, 1042, 1043, 1003, 1009, 1014, 1015];

/// True where a collation compares bytes. `C.UTF-8` orders by code point, which is the same. The
/// collation's name would be compared by the collation itself, which may not be able to search.
const BYTEWISE_TEST: &str = "CASE replace(pg_catalog.pg_collation_for($column) COLLATE \"C\", '\"', '') \
    WHEN 'C' THEN true WHEN 'POSIX' THEN true WHEN 'ucs_basic' THEN true \
    WHEN 'C.UTF-8' THEN true WHEN 'C.utf8' THEN true WHEN 'pg_c_utf8' THEN true \
    WHEN 'default' THEN (SELECT datcollate IN ('C', 'POSIX', 'C.UTF-8', 'C.utf8') \
        AND coalesce(to_jsonb(d) ->> 'datlocprovider', 'c') <> 'i' \
        FROM pg_catalog.pg_database d WHERE datname = pg_catalog.current_database()) END";

/// What is passed on, and what was.
pub(super) struct Passing {
    window: Window,
    pub passed: u64,
    seen: u64,
    ties: bool,
    visible: usize,
    /// The last row's keys, where later rows may be tied with it.
    last: Option<(Frame, Vec<ValueSpan>)>,
    pub parts: Vec<Part>,
    started: Instant,
}

impl Passing {
    pub fn new(streaming: &Streaming<'_>, visible: usize) -> Passing {
        let part = |shard: &ShardId| Part {
            shard: *shard,
            rows: 0,
            bytes: 0,
            milliseconds: 0.0,
        };
        Passing {
            window: streaming.window,
            passed: 0,
            seen: 0,
            ties: streaming.rows.ties,
            visible,
            last: None,
            parts: streaming.shards.iter().map(part).collect(),
            started: Instant::now(),
        }
    }

    pub fn note(&mut self, part: usize, row: &Frame) {
        let part = &mut self.parts[part];
        part.rows += 1;
        part.bytes += row.bytes.len() as u64;
        part.milliseconds = self.started.elapsed().as_secs_f64() * 1000.0;
    }

    pub fn is_full(&self) -> bool {
        self.window.take.is_some_and(|take| self.passed >= take)
    }

    /// Passes a row on, without what the client did not ask for. Returns the bytes.
    pub fn pass(&mut self, mut row: Frame, output: &mut BytesMut) -> u64 {
        self.seen += 1;
        if self.seen <= self.window.skip {
            return 0;
        }
        self.passed += 1;
        message::cut_row(&mut row.bytes, self.visible);
        output.extend_from_slice(&row.bytes);
        row.bytes.len() as u64
    }

    fn remember(&mut self, stream: &Stream) {
        let last = self.window.take.is_some_and(|take| self.passed + 1 == take);
        if self.ties && last && self.seen >= self.window.skip {
            let copy = Frame {
                tag: stream.row.tag,
                bytes: stream.row.bytes.clone(),
            };
            self.last = Some((copy, stream.keys.clone()));
        }
    }

    fn is_tied(&self, stream: &Stream, keys: &[SortKey]) -> Outcome<bool> {
        let Some((row, spans)) = self.last.as_ref().filter(|_| self.ties) else {
            return Ok(false);
        };
        let left = values(row, spans);
        let right = values(&stream.row, &stream.keys);
        let ordering = order::compare_keys(keys, &left, &right).map_err(|_| malformed())?;
        Ok(ordering.is_eq())
    }
}

fn values<'r>(row: &'r Frame, spans: &[Option<(usize, usize)>]) -> Vec<Option<&'r [u8]>> {
    let body = row.body();
    spans
        .iter()
        .map(|span| span.and_then(|(start, length)| body.get(start..start + length)))
        .collect()
}

/// Puts a stream where its row belongs: the first row last. Among equals the lower shard goes
/// first, so that the same rows come in the same order every time.
pub(super) fn insert(streams: &mut Vec<Stream>, stream: Stream, keys: &[SortKey]) -> Outcome {
    let new = values(&stream.row, &stream.keys);
    let (mut low, mut high) = (0, streams.len());
    while low < high {
        let middle = (low + high) / 2;
        let other = values(&streams[middle].row, &streams[middle].keys);
        let ordering = order::compare_keys(keys, &other, &new).map_err(|_| malformed())?;
        let other_first = ordering
            .then(streams[middle].part.cmp(&stream.part))
            .is_lt();
        if other_first {
            high = middle;
        } else {
            low = middle + 1;
        }
    }
    streams.insert(low, stream);
    Ok(())
}

/// A statement that also gives the compared columns in a format of ours.
pub struct Wrapped {
    pub text: String,
    pub extra: usize,
}

fn unordered() -> Report {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "rows of several shards cannot be locked in this order",
    )
    .detail("Values of a type in ORDER BY can only be compared by a server.")
    .hint("Order by other columns, or without FOR UPDATE.")
}

/// The statement, with compared columns behind the client's, and where those are.
pub fn key_columns(rows: &Rows, visible: usize, text: &str, count: usize) -> (Wrapped, Vec<usize>) {
    let mut extra: Vec<usize> = Vec::new();
    let columns = rows.order.iter().map(|sort| match sort.column {
        ColumnAt::Hidden(at) => visible + at,
        ColumnAt::Visible(at) => {
            extra.push(at);
            count + extra.len() - 1
        }
    });
    let columns: Vec<usize> = columns.collect();
    if extra.is_empty() {
        let text = text.to_owned();
        return (Wrapped { text, extra: 0 }, columns);
    }
    let names: Vec<String> = (1..=count).map(|number| format!("c{number}")).collect();
    let again: Vec<String> = extra.iter().map(|at| format!("a67.c{}", at + 1)).collect();
    let text = format!(
        "SELECT a67.*, {} FROM ({text}) a67 ({})",
        again.join(", "),
        names.join(", ")
    );
    let extra = extra.len();
    (Wrapped { text, extra }, columns)
}

/// The client's formats for its columns, binary for the others.
pub(super) fn formats(request: &Request<'_>, visible: usize, count: usize) -> Vec<i16> {
    (0..count)
        .map(|column| match request.bound {
            _ if column >= visible => 1,
            Some(bound) => bound.bind.result_format(column),
            None => 0,
        })
        .collect()
}

/// How rows compare; `None` where not every key can be compared here.
pub fn sort_keys(rows: &Rows, learned: &Learned, bytewise: &[bool]) -> Option<Vec<SortKey>> {
    let visible = learned.columns.len().checked_sub(rows.hidden)?;
    let key = |sort: &automator67_planner::plan::SortColumn| {
        let at = match sort.column {
            ColumnAt::Visible(at) => at,
            ColumnAt::Hidden(at) => visible + at,
        };
        let (oid, _) = learned.columns.get(at)?;
        Some(SortKey {
            kernel: Kernel::of_type(*oid, bytewise.get(at).copied().unwrap_or(false))?,
            descending: sort.descending,
            nulls_first: sort.nulls_first,
        })
    };
    rows.order.iter().map(key).collect()
}

/// Type and modifier of a column.
pub fn column_of(at: ColumnAt, visible: usize, columns: &[(u32, i32)]) -> Option<(u32, i32)> {
    let index = match at {
        ColumnAt::Visible(at) => at,
        ColumnAt::Hidden(at) => visible + at,
    };
    columns.get(index).copied()
}

/// A number of rows; `None` is NULL.
fn read_count(count: &Count, request: &Request<'_>) -> Outcome<Option<i64>> {
    let unreadable = || {
        Failure::from(Report::error(
            sqlstate::INVALID_TEXT_REPRESENTATION,
            "the number of rows cannot be read",
        ))
    };
    match count {
        Count::Number(number) => Ok(Some(*number)),
        Count::Literal(slot) => {
            let literal = request.literals.get(*slot).ok_or_else(unreadable)?;
            let text = literal.unquoted(request.whole);
            text.trim().parse().map(Some).map_err(|_| unreadable())
        }
        Count::Parameter(index) => {
            let bound = request.bound.ok_or_else(unreadable)?;
            let Some(value) = bound.bind.value(*index) else {
                return Ok(None);
            };
            if !bound.bind.is_binary(*index) {
                let text = std::str::from_utf8(value).map_err(|_| unreadable())?;
                return text.trim().parse().map(Some).map_err(|_| unreadable());
            }
            match value {
                [a, b] => Ok(Some(i64::from(i16::from_be_bytes([*a, *b])))),
                [a, b, c, d] => Ok(Some(i64::from(i32::from_be_bytes([*a, *b, *c, *d])))),
                _ => {
                    let value: [u8; 8] = value.try_into().map_err(|_| unreadable())?;
                    Ok(Some(i64::from_be_bytes(value)))
                }
            }
        }
    }
}

/// What an error says of a text that the client has not written means nothing to it: positions,
/// internal queries, and contexts that speak of relations of ours.
pub fn without_position(failure: Failure) -> Failure {
    match failure {
        Failure::Shard(mut frame) => {
            for code in *b"Ppq" {
                message::forget_field(&mut frame, code);
            }
            let context = message::error_field(&frame[HEADER_BYTES..], b'W');
            if context.is_some_and(|context| context.contains("a67_")) {
                message::forget_field(&mut frame, b'W');
            }
            Failure::Shard(frame)
        }
        other => other,
    }
}

pub fn malformed() -> Failure {
    Report::error(sqlstate::INTERNAL_ERROR, "a row of a shard is malformed").into()
}

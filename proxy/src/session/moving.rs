//! Relations that are moved to every shard for one statement: their rows are read first, held by
//! the proxy (in memory, then in a file), and copied to where they matter.

pub(super) mod staged;

use std::{
    borrow::Cow,
    collections::HashSet,
    io::{Read, Seek, SeekFrom},
    sync::{Arc, Mutex},
    time::{Duration, Instant},
};

use automator67_planner::{
    catalog::{Catalog, ShardId},
    key,
    plan::{FetchSource, Move, MoveRoute, Planned, ReductionValues, Scatter, ShardSet},
};
use bytes::{BufMut, Bytes, BytesMut};

use self::staged::{SPILL_BYTES, Staged, put_row, stage_rows, unwritten};
use super::{
    Session,
    extended::Bound,
    gather::behind_view,
    merge::ELEMENTS,
    planning::{Request, shard_of},
    scatter::{malformed, without_position},
    servers::exact::lossy_text,
};
use crate::{
    copy_rows,
    error::{Failure, Outcome, Report, sqlstate},
    frame::{Frame, HEADER_BYTES},
    message,
    process::lock,
    server::{
        Answer,
        call::Call,
        relay::{self, Captured},
    },
    types,
};

/// A choice between ways to move is made anew after this time: tables grow.
const CHOICE_AGE_MAX: Duration = Duration::from_secs(60);
/// More values than this are not worth to be sent as a condition.
const REDUCTION_VALUES_MAX: usize = 100_000;
/// A relation is not worth to be reduced that is not this many times larger than the values.
const REDUCTION_GAIN_MIN: f64 = 1.5;
/// Moved relations of more rows get their primary key and other indexes.
const INDEX_ROWS_MIN: u64 = 1000;
/// Which way to take, and in which order to move.
#[derive(Debug, Clone)]
pub struct Choice {
    /// 0 is the plan's own, n the n-th of its others.
    pub way: usize,
    /// The moves of that way, smallest first.
    order: Vec<usize>,
    /// Estimated rows of each move.
    pub rows: Vec<f64>,
    made: Instant,
}

/// What was moved.
#[derive(Debug, Clone, Default)]
pub struct MovedRelation {
    /// Rows that were read.
    pub rows: u64,
    /// Bytes that were read.
    pub bytes: u64,
    /// Bytes of them that went to a file.
    pub spilled: u64,
    /// Conditions from other relations that were used.
    pub reduced_by: Vec<String>,
    /// From the first message to the last row.
    pub milliseconds: f64,
}

/// The rows of one relation, by destination.
struct Load {
    /// One for all shards, or one for each.
    staged: Vec<Staged>,
    rows: u64,
    /// They are in COPY's binary format.
    binary: bool,
}

/// What is read of one relation.
struct Reading<'r> {
    one: &'r Move,
    text: &'r str,
    arrays: &'r [Bytes],
    targets: &'r [ShardId],
    bytes_max: u64,
}

/// Distinct values of a column, until they are too many.
struct Values {
    column: usize,
    found: Option<HashSet<Bytes>>,
}

impl Choice {
    /// The only way, in the order of the plan.
    pub fn only(moves: &[Move]) -> Choice {
        Choice {
            way: 0,
            order: (0..moves.len()).collect(),
            rows: Vec::new(),
            made: Instant::now(),
        }
    }
}

/// Where a session makes tables that nobody else sees. The number is one that nobody guesses, so
/// that nobody is there first.
pub(super) struct WorkSchema {
    number: i64,
    /// Shards that have it, in this transaction.
    open_on: Vec<ShardId>,
}

impl WorkSchema {
    /// One that no other session has.
    pub(super) fn new() -> Self {
        WorkSchema {
            number: rand::random(),
            open_on: Vec::new(),
        }
    }

    fn name(&self) -> String {
        format!("automator67_work_{:016x}", self.number)
    }
}

/// What the names of moved relations start with in a plan.
const MOVED: &str = "pg_temp.a67_";

impl Session {
    /// A shard that has used a temporary table cannot prepare its part of a transaction. Where that
    /// may come, moved relations are unlogged tables in a schema that is made for the statement;
    /// nobody else sees it before it is dropped.
    pub(super) fn as_lasting<'t>(&self, text: &'t str) -> Cow<'t, str> {
        if !self.moves_last || !text.contains("a67_") {
            return Cow::Borrowed(text);
        }
        let schema = self.work_schema.name();
        let text = text
            .replace(MOVED, &format!("{schema}.a67_"))
            .replace(
                "CREATE TEMPORARY TABLE a67_",
                &format!("CREATE UNLOGGED TABLE {schema}.a67_"),
            )
            .replace(" ON COMMIT DROP", "");
        Cow::Owned(text)
    }

    /// Decides how the moved relations of a statement are made. Returns what was decided for the
    /// statement around it.
    pub(super) fn choose_lasting(&mut self, writes: bool, request: &Request<'_>) -> Outcome<bool> {
        let outer = self.moves_last;
        self.moves_last |= writes || self.will_write || self.transaction.goes_on();
        // The name can only stand in a literal or a comment; it would not stay what it is.
        if self.moves_last && request.text.contains(MOVED) {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "the statement holds a name that the proxy uses for itself",
            )
            .hint("Write the text that starts with pg_temp.a67_ in two pieces.")
            .into());
        }
        Ok(outer)
    }

    /// The statement is over; `outer` was decided for the one around it. What was made for moved
    /// relations goes with the outermost one, or with the transaction, if that has failed.
    pub(super) async fn end_lasting<T>(&mut self, outer: bool, result: Outcome<T>) -> Outcome<T> {
        self.moves_last = outer;
        if outer {
            return result;
        }
        let close = Call::to("close_work").with(self.work_schema.number);
        let open_on = std::mem::take(&mut self.work_schema.open_on);
        let result = result?;
        for shard in open_on {
            self.call(shard, &close).await?;
        }
        Ok(result)
    }

    /// Lets tables be made in the work schema of these shards, until the statement ends.
    async fn open_work(&mut self, targets: &[ShardId]) -> Outcome {
        let open = Call::to("open_work").with(self.work_schema.number);
        for shard in targets {
            if !self.work_schema.open_on.contains(shard) {
                self.call(*shard, &open).await?;
                self.work_schema.open_on.push(*shard);
            }
        }
        Ok(())
    }

    /// The way to take for a statement that needs relations moved.
    pub(super) async fn choose<'p>(
        &mut self,
        scatter: &'p Scatter,
        request: &Request<'_>,
    ) -> Outcome<(&'p Scatter, Arc<Choice>)> {
        let known = scatter
            .choice
            .0
            .get_or_init(|| Arc::new(Mutex::new(None::<Arc<Choice>>)));
        let room = known.clone().downcast::<Mutex<Option<Arc<Choice>>>>();
        let room = room
            .map_err(|_| Report::error(sqlstate::INTERNAL_ERROR, "a plan's choice is not one"))?;
        let known = lock(&room).clone();
        let choice = match known.filter(|choice| choice.made.elapsed() < CHOICE_AGE_MAX) {
            Some(choice) => choice,
            None => {
                let choice = Arc::new(self.weigh(scatter, request).await?);
                *lock(&room) = Some(choice.clone());
                choice
            }
        };
        let way = match choice.way.checked_sub(1) {
            None => scatter,
            Some(other) => scatter.others.get(other).unwrap_or(scatter),
        };
        Ok((way, choice))
    }

    async fn weigh(&mut self, scatter: &Scatter, request: &Request<'_>) -> Outcome<Choice> {
        let simple = |one: &Move| one.reductions.is_empty();
        if scatter.others.is_empty() && scatter.moves.iter().all(simple) {
            return Ok(Choice::only(&scatter.moves));
        }
        let shards = self.process.shards.len() as f64;
        let mut known: Vec<(String, f64, f64)> = Vec::new();
        let mut best: Option<(f64, Choice)> = None;
        for (way, plan) in std::iter::once(scatter).chain(&scatter.others).enumerate() {
            let mut rows = Vec::with_capacity(plan.moves.len());
            let mut cost = 0.0;
            for one in &plan.moves {
                let (count, width) = self.estimate(one, &mut known, request).await?;
                let copies = if one.route.is_some() { 1.0 } else { shards };
                let reduced = if one.reductions.is_empty() { 1.0 } else { 0.3 };
                // Reading costs once, loading for each copy.
                cost += count * (width + 40.0) * (reduced * copies + 0.5);
                rows.push(count);
            }
            let mut order: Vec<usize> = (0..rows.len()).collect();
            order.sort_by(|a, b| rows[*a].total_cmp(&rows[*b]));
            if best.as_ref().is_none_or(|(other, _)| cost < *other) {
                let made = Instant::now();
                best = Some((
                    cost,
                    Choice {
                        way,
                        order,
                        rows,
                        made,
                    },
                ));
            }
        }
        best.map(|(_, choice)| choice)
            .ok_or_else(|| Report::error(sqlstate::INTERNAL_ERROR, "a plan without a way").into())
    }

    /// Rows and bytes per row of a relation that may be moved, as a shard estimates them.
    async fn estimate(
        &mut self,
        one: &Move,
        known: &mut Vec<(String, f64, f64)>,
        request: &Request<'_>,
    ) -> Outcome<(f64, f64)> {
        let select = self.sql(&one.fetch.select, request).await?;
        if one.query.is_some() {
            // Most make few rows of many; their plans are not known to one shard.
            return Ok((1000.0, 32.0));
        }
        if let Some((_, rows, width)) = known.iter().find(|(text, ..)| *text == select) {
            return Ok((*rows, *width));
        }
        let shards = match &one.fetch.from {
            FetchSource::Shards(ShardSet::Home) => 1.0,
            _ => self.process.shards.len() as f64,
        };
        let explained = format!("EXPLAIN {select}");
        let plan = self.ask_home(&explained, request).await?;
        let line = plan
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten());
        let (rows, width) = line
            .as_deref()
            .and_then(estimated)
            .unwrap_or((1000.0, 32.0));
        known.push((select, rows * shards, width));
        Ok((rows * shards, width))
    }

    /// Reads every relation and copies it to where its rows matter.
    pub(super) async fn move_relations(
        &mut self,
        moves: &[Move],
        targets: &[ShardId],
        choice: &Choice,
        request: &Request<'_>,
    ) -> Outcome<Vec<MovedRelation>> {
        self.begin_implicit();
        self.rename_kept().await?;
        let mut left = self.settings.own.gather_bytes_max;
        let mut done: Vec<MovedRelation> = vec![MovedRelation::default(); moves.len()];
        let mut loads: Vec<Option<Load>> = moves.iter().map(|_| None).collect();
        let mut values: Vec<Vec<Values>> = moves.iter().map(|_| Vec::new()).collect();
        for index in choice.order.iter().copied() {
            let started = Instant::now();
            values[index] = wanted_values(moves, index);
            let load = match &moves[index].query {
                Some(planned) => {
                    let answered = self
                        .answer_subquery(&moves[index], planned, &mut done[index], request)
                        .await;
                    answered.map_err(|failure| behind_view(failure, request))?
                }
                None => {
                    let (text, arrays) = self
                        .reduced(moves, index, &values, choice, &mut done[index], request)
                        .await?;
                    let reading = Reading {
                        one: &moves[index],
                        text: &text,
                        arrays: &arrays,
                        targets,
                        bytes_max: left,
                    };
                    let read = self
                        .read_relation(&reading, &mut values[index], &mut done[index], request)
                        .await;
                    read.map_err(|failure| behind_view(failure, request))?
                }
            };
            left = left.saturating_sub(done[index].bytes);
            self.process
                .telemetry
                .bytes_moved
                .increment(done[index].bytes);
            done[index].milliseconds = started.elapsed().as_secs_f64() * 1000.0;
            loads[index] = Some(load);
        }
        self.create_moved(moves, targets, request).await?;
        for (one, load) in moves.iter().zip(loads) {
            if let Some(load) = load {
                self.copy_relation(one, load, targets).await?;
            }
        }
        Ok(done)
    }

    /// Makes the temporary tables that moved rows go to.
    async fn create_moved(
        &mut self,
        moves: &[Move],
        targets: &[ShardId],
        request: &Request<'_>,
    ) -> Outcome {
        let mut creates = String::new();
        if !self.transaction.is_explicit() {
            // Compiling on every shard costs more than it gives where statistics are this young.
            creates.push_str("SET LOCAL jit = off; ");
        }
        for one in moves {
            let name = &one.fetch.temp_table;
            creates.push_str(&format!("DROP TABLE IF EXISTS pg_temp.{name}; "));
            if one.query.is_none() {
                creates.push_str(&self.sql(&one.fetch.create, request).await?);
                creates.push_str("; ");
            }
        }
        let creates = self.as_lasting(&creates).into_owned();
        if self.moves_last {
            self.open_work(targets).await?;
        }
        self.run_hidden_on(targets, &creates).await?;
        for one in moves.iter().filter(|one| one.query.is_some()) {
            let create = self.sql(&one.fetch.create, request).await?;
            let create = self.as_lasting(&create).into_owned();
            // Its columns are those of the subquery, which may have the client's parameters in it.
            for shard in targets {
                self.send_with_arrays(*shard, &create, false, &[], request)
                    .await?;
            }
            for shard in targets {
                while self.next_row(*shard).await?.is_some() {}
            }
        }
        Ok(())
    }

    /// Runs a subquery as a statement of its own and keeps its rows.
    async fn answer_subquery(
        &mut self,
        one: &Move,
        planned: &Planned,
        done: &mut MovedRelation,
        request: &Request<'_>,
    ) -> Outcome<Load> {
        let text = self.sql(&one.fetch.select, request).await?;
        // In the simple protocol values come as text, whatever they are.
        let binary = match request.bound {
            None if self.text_is_exact().await? => false,
            bound => {
                let description = self.describe_text(&text, request).await?;
                let columns = message::columns(&description[HEADER_BYTES..]);
                let types = columns.ok_or_else(malformed)?.into_iter();
                let types: Vec<u32> = types.map(|(oid, _)| oid).collect();
                let binary = bound.is_some() && types.iter().all(|oid| ELEMENTS.contains(oid));
                if !binary && self.text_loses(&types).await? {
                    return Err(lossy_text());
                }
                binary
            }
        };
        self.client.flush().await?;
        let staged = Arc::new(Mutex::new(Staged::default()));
        let (room, held_max) = (staged.clone(), self.settings.own.work_bytes);
        let captured = Captured {
            full: Some(Box::new(move |rows| {
                let mut staged = lock(&room);
                stage_rows(&mut staged, rows, binary)?;
                if staged.bytes() > held_max {
                    staged.spill().map_err(unwritten)?;
                }
                Ok(())
            })),
            ..Captured::default()
        };
        let outer = self.client.captured.replace(Box::new(captured));
        let bound = request.bound.map(|bound| Bound {
            bind: Arc::new(bound.bind.with_results_in(i16::from(binary))),
            ..bound.without_limit()
        });
        let inner = Request {
            planned,
            text: &text,
            whole: &text,
            literals: &[],
            catalog: request.catalog.clone(),
            bound: bound.as_ref(),
        };
        let result = Box::pin(self.execute(&inner)).await;
        let rest = self.client.flush().await;
        let captured = std::mem::replace(&mut self.client.captured, outer);
        let Some(mut captured) = captured else {
            return Err(malformed());
        };
        self.client.output().extend_from_slice(&captured.notices);
        if let (Err(Failure::Told(_)), Some(error)) = (&result, captured.error.take()) {
            return Err(without_position(Failure::Shard(error)));
        }
        result?;
        rest?;
        captured.full = None;
        let mut staged = std::mem::take(&mut *lock(&staged));
        done.rows = captured.count;
        stage_rows(&mut staged, &mut captured.rows, binary)?;
        done.bytes = staged.bytes() as u64 + staged.spilled;
        done.spilled = staged.spilled;
        Ok(Load {
            staged: vec![staged],
            rows: captured.count,
            binary,
        })
    }

    /// The tables are of no use any more.
    pub(super) async fn drop_moved(&mut self, moves: &[Move], targets: &[ShardId]) -> Outcome {
        if moves.is_empty() {
            return Ok(());
        }
        let names: Vec<String> = moves
            .iter()
            .map(|one| format!("pg_temp.{}", one.fetch.temp_table))
            .collect();
        let drop = format!("DROP TABLE IF EXISTS {}", names.join(", "));
        let drop = self.as_lasting(&drop).into_owned();
        self.run_hidden_on(targets, &drop).await
    }

    /// The SELECT of a relation with conditions from relations that are known already.
    async fn reduced(
        &mut self,
        moves: &[Move],
        index: usize,
        values: &[Vec<Values>],
        choice: &Choice,
        done: &mut MovedRelation,
        request: &Request<'_>,
    ) -> Outcome<(String, Vec<Bytes>)> {
        let one = &moves[index];
        let given = request
            .bound
            .map_or(0, |bound| bound.bind.parameter_count());
        let mut text = self.sql(&one.fetch.select, request).await?;
        let mut arrays = Vec::new();
        let mut used: Vec<&str> = Vec::new();
        let rows = choice.rows.get(index).copied().unwrap_or(0.0);
        for reduction in &one.reductions {
            if used.contains(&reduction.column.as_str()) {
                continue;
            }
            let (found, name) = match &reduction.values {
                ReductionValues::Moved(other, column) => {
                    let of = values[*other]
                        .iter()
                        .find(|values| values.column == *column);
                    let Some(found) = of.and_then(|values| values.found.as_ref()) else {
                        continue;
                    };
                    (found.clone(), moves[*other].fetch.relation.name.clone())
                }
                ReductionValues::Select(select) => {
                    let select = &self.sql(select, request).await?;
                    let Some(found) = self.select_values(select, rows, request).await? else {
                        continue;
                    };
                    (found, select.clone())
                }
            };
            if found.len() as f64 * REDUCTION_GAIN_MIN > rows {
                continue;
            }
            let word = if text.contains(" WHERE ") {
                "AND"
            } else {
                "WHERE"
            };
            let number = given + arrays.len() + 1;
            text.push_str(&format!(
                " {word} {} = ANY (${number}::{}[])",
                reduction.column, reduction.value_type.1
            ));
            arrays.push(array(&found, reduction.value_type.0));
            used.push(&reduction.column);
            done.reduced_by.push(name);
        }
        Ok((text, arrays))
    }

    /// Values of a relation that stays where it is; `None` when they are estimated to be too many.
    async fn select_values(
        &mut self,
        select: &str,
        rows: f64,
        request: &Request<'_>,
    ) -> Outcome<Option<HashSet<Bytes>>> {
        let explained = format!("EXPLAIN {select}");
        let plan = self.ask_home(&explained, request).await?;
        let line = plan
            .into_iter()
            .next()
            .and_then(|row| row.into_iter().next().flatten());
        let shards = self.all_shards();
        let estimate = line
            .as_deref()
            .and_then(estimated)
            .map_or(f64::MAX, |(rows, _)| rows);
        let estimate = estimate * shards.len() as f64;
        if estimate > REDUCTION_VALUES_MAX as f64 || estimate * REDUCTION_GAIN_MIN > rows {
            return Ok(None);
        }
        let mut found = HashSet::new();
        for shard in &shards {
            self.send_select(*shard, select, &[1], request).await?;
        }
        for shard in &shards {
            while let Some(row) = self.next_row(*shard).await? {
                let values = message::data_row(row.body()).ok_or_else(malformed)?;
                if let Some(Some(value)) = values.first() {
                    found.insert(Bytes::copy_from_slice(value));
                }
            }
        }
        Ok((found.len() <= REDUCTION_VALUES_MAX).then_some(found))
    }

    async fn read_relation(
        &mut self,
        reading: &Reading<'_>,
        values: &mut [Values],
        done: &mut MovedRelation,
        request: &Request<'_>,
    ) -> Outcome<Load> {
        let Reading { one, targets, .. } = *reading;
        let FetchSource::Shards(set) = &one.fetch.from else {
            return Err(Report::error(
                sqlstate::INTERNAL_ERROR,
                "a view of the proxy was to be moved",
            )
            .into());
        };
        self.refuse_lossy(&one.fetch).await?;
        let sources = self.shard_set(set, request).await?;
        for source in &sources {
            self.send_with_arrays(
                *source,
                reading.text,
                one.fetch.binary,
                reading.arrays,
                request,
            )
            .await?;
        }
        let count = if one.route.is_some() {
            targets.len()
        } else {
            1
        };
        let mut load = Load {
            staged: (0..count).map(|_| Staged::default()).collect(),
            rows: 0,
            binary: one.fetch.binary,
        };
        let catalog = request.catalog.clone();
        for source in &sources {
            while let Some(row) = self.next_row(*source).await? {
                done.rows += 1;
                done.bytes += row.bytes.len() as u64;
                if done.bytes > reading.bytes_max {
                    self.stop_parts(&sources).await?;
                    return Err(over_budget(one, self.settings.own.gather_bytes_max));
                }
                note_values(values, &row)?;
                let at = match &one.route {
                    None => Some(0),
                    Some(route) => destination(&row, route, one.fetch.binary, &catalog, targets)?,
                };
                let Some(at) = at else { continue };
                put_row(&mut load.staged[at].tail, &row, one.fetch.binary);
                load.rows += 1;
                if load.staged[at].tail.len() >= SPILL_BYTES {
                    load.staged[at].close_tail();
                    self.spill_if_large(&mut load, done)?;
                }
            }
        }
        Ok(load)
    }

    fn spill_if_large(&self, load: &mut Load, done: &mut MovedRelation) -> Outcome {
        let held: usize = load.staged.iter().map(Staged::bytes).sum();
        if held <= self.settings.own.work_bytes {
            return Ok(());
        }
        for staged in &mut load.staged {
            staged.spill().map_err(|error| {
                Report::error(
                    "58030",
                    format!("could not write a temporary file: {error}"),
                )
            })?;
        }
        done.spilled = load.staged.iter().map(|staged| staged.spilled).sum();
        Ok(())
    }

    async fn send_with_arrays(
        &mut self,
        shard: ShardId,
        text: &str,
        binary: bool,
        arrays: &[Bytes],
        request: &Request<'_>,
    ) -> Outcome {
        let parameter_types = self.types_for_shards(request).await?;
        let index = self.link(shard).await?;
        types::learn_for_shard(&self.links[index].server.shard, &parameter_types).await?;
        let server = &mut self.links[index].server;
        server.parse(text, &parameter_types, Answer::Hidden);
        server.bind_written(|body| {
            let bind = request.bound.map(|bound| &*bound.bind);
            message::put_parameters(body, bind, arrays.iter(), |body, array| {
                body.put_i32(array.len() as i32);
                body.put_slice(array);
            });
            body.put_i16(1);
            body.put_i16(i16::from(binary));
        });
        server.execute_unnamed(Answer::Shown);
        server.sync();
        relay::send(server).await
    }

    async fn copy_relation(&mut self, one: &Move, load: Load, targets: &[ShardId]) -> Outcome {
        let binary = load.binary;
        let format = if binary { " (FORMAT binary)" } else { "" };
        let copy = format!("COPY pg_temp.{} FROM STDIN{format}", one.fetch.temp_table);
        let copy = self.as_lasting(&copy).into_owned();
        for shard in targets {
            self.start_copy(*shard, &copy).await?;
            if binary {
                self.put_copy(*shard, copy_rows::BINARY_HEADER).await?;
            }
        }
        let routed = one.route.is_some();
        let rows = load.rows;
        for (position, mut staged) in load.staged.into_iter().enumerate() {
            let to: &[ShardId] = if routed {
                &targets[position..=position]
            } else {
                targets
            };
            self.copy_staged(&mut staged, to).await?;
        }
        for shard in targets {
            if binary {
                self.put_copy(*shard, copy_rows::BINARY_TRAILER).await?;
            }
            self.end_copy(*shard).await?;
        }
        let many = rows > INDEX_ROWS_MIN;
        let mut after = Vec::new();
        // That a key is unique also tells the shard how many rows a join makes.
        if let Some(primary_key) = &one.fetch.primary_key
            && (many || one.fetch.needs_key)
        {
            after.push(primary_key.clone());
        }
        if many && !one.looked_up_by.is_empty() {
            let columns = one.looked_up_by.join(", ");
            let table = &one.fetch.temp_table;
            after.push(format!("CREATE INDEX ON pg_temp.{table} ({columns})"));
        }
        // Without statistics even a small table makes a plan look so dear that it is compiled.
        if rows > 0 {
            after.push(format!("ANALYZE pg_temp.{}", one.fetch.temp_table));
        }
        if !after.is_empty() {
            let after = self.as_lasting(&after.join("; ")).into_owned();
            self.run_hidden_on(targets, &after).await?;
        }
        Ok(())
    }

    async fn copy_staged(&mut self, staged: &mut Staged, to: &[ShardId]) -> Outcome {
        if let Some(mut file) = staged.file.take() {
            let unread = |error: std::io::Error| {
                Failure::from(Report::error(
                    "58030",
                    format!("could not read a temporary file: {error}"),
                ))
            };
            file.seek(SeekFrom::Start(0)).map_err(unread)?;
            let mut piece = vec![0; SPILL_BYTES];
            loop {
                let count = file.read(&mut piece).map_err(unread)?;
                if count == 0 {
                    break;
                }
                for shard in to {
                    self.put_copy(*shard, &piece[..count]).await?;
                }
            }
        }
        staged.close_tail();
        for piece in staged.memory.drain(..) {
            for shard in to {
                for part in piece.chunks(copy_rows::COPY_CHUNK_BYTES) {
                    self.put_copy(*shard, part).await?;
                }
            }
        }
        Ok(())
    }
}

/// Columns of a relation whose values reduce others.
fn wanted_values(moves: &[Move], index: usize) -> Vec<Values> {
    let mut columns: Vec<usize> = Vec::new();
    for reduction in moves.iter().flat_map(|one| &one.reductions) {
        if let ReductionValues::Moved(of, column) = reduction.values
            && of == index
            && !columns.contains(&column)
        {
            columns.push(column);
        }
    }
    let values = columns.into_iter().map(|column| Values {
        column,
        found: Some(HashSet::new()),
    });
    values.collect()
}

fn note_values(values: &mut [Values], row: &Frame) -> Outcome {
    for wanted in values {
        let Some(found) = &mut wanted.found else {
            continue;
        };
        let spans = message::value_spans(row.body(), &[wanted.column]).ok_or_else(malformed)?;
        if let Some(Some((start, length))) = spans.first() {
            let value = &row.body()[*start..start + length];
            if !found.contains(value) {
                found.insert(Bytes::copy_from_slice(value));
            }
        }
        if found.len() > REDUCTION_VALUES_MAX {
            wanted.found = None;
        }
    }
    Ok(())
}

/// Where a routed row matters. Rows without a value match nothing; the home shard takes them. `None`:
/// on a shard that the statement does not run on, as no row of it matters.
fn destination(
    row: &Frame,
    route: &MoveRoute,
    binary: bool,
    catalog: &Catalog,
    targets: &[ShardId],
) -> Outcome<Option<usize>> {
    let spans = message::value_spans(row.body(), &[route.column]).ok_or_else(malformed)?;
    let shard = match spans.first().copied().flatten() {
        None => catalog.home(),
        Some((start, length)) => {
            let bytes = &row.body()[start..start + length];
            let value = if binary {
                key::from_binary(route.key_type, route.type_oid, bytes)
            } else {
                std::str::from_utf8(bytes)
                    .ok()
                    .and_then(|text| key::from_text(route.key_type, text))
            };
            let value = value.ok_or_else(malformed)?;
            shard_of(catalog, route.group, &value)?.ok_or_else(malformed)?
        }
    };
    Ok(targets.iter().position(|target| *target == shard))
}

/// Values as an array in binary format.
fn array(values: &HashSet<Bytes>, oid: u32) -> Bytes {
    let mut out = BytesMut::new();
    out.put_i32(i32::from(!values.is_empty()));
    out.put_i32(0);
    out.put_u32(oid);
    if !values.is_empty() {
        out.put_i32(values.len() as i32);
        out.put_i32(1);
        for value in values {
            out.put_i32(value.len() as i32);
            out.put_slice(value);
        }
    }
    out.freeze()
}

/// `Seq Scan on part  (cost=0.00..5443.00 rows=12121 width=4)`
fn estimated(line: &str) -> Option<(f64, f64)> {
    let number = |word: &str| -> Option<f64> {
        let rest = &line[line.find(word)? + word.len()..];
        let end = rest
            .find(|c: char| !c.is_ascii_digit() && c != '.')
            .unwrap_or(rest.len());
        rest[..end].parse().ok()
    };
    Some((number("rows=")?, number("width=")?))
}

fn over_budget(one: &Move, bytes_max: u64) -> Failure {
    Report::error(
        sqlstate::LIMIT_EXCEEDED,
        format!("statement would move more than {bytes_max} bytes between shards"),
    )
    .detail(format!(
        "Reached while reading \"{}\".",
        one.fetch.relation.name
    ))
    .hint("Restrict the statement, colocate the tables, or raise automator67.gather_max_bytes.")
    .into()
}

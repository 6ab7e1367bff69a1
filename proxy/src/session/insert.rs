//! INSERT over several shards: every value that must be the same everywhere, or be drawn once,
//! is computed once; then each row goes to the shard of its key.

use std::collections::HashMap;

use automator67_planner::{
    catalog::{KeyType, ShardId},
    explainable,
    key::{self, KeyValue},
    plan::{
        Fetch, FetchSource, InsertSelect, InsertSplit, Move, Piece, Plan, Planned, RowKey,
        SessionEffects, ShardSet, Template,
    },
};
use bytes::BytesMut;

mod arrays;

use self::arrays::Arrays;
use super::{
    Session,
    copy::Rule,
    execute::queue,
    moving::Choice,
    multi::{Pace, Tally, Task},
    planning::{Request, denied, whole_of},
    scatter::without_position,
    sequences::Drawing,
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc, message,
    server::{Answer, relay},
    telemetry::Tier,
};

/// Keys evaluated by one statement on the home shard.
const EVALUATED_MAX: usize = 1000;

/// Rows that are looked at before other clients of the thread have their turn.
const ROWS_AT_ONCE: usize = 1000;

/// Rows of an INSERT ... SELECT whose results are wanted: they pass through our memory.
const STAGED_ROWS_MAX: usize = 10_000;

/// Shards, and which rows of the input go there.
type Groups = Vec<(ShardId, Vec<usize>)>;

/// What fills the holes of a row.
struct Drawn {
    /// Per sequence, one value per row.
    sequences: Vec<Vec<String>>,
    /// Per row, the key as text, where it had to be evaluated.
    keys: Vec<Option<(KeyValue, String)>>,
    /// The transaction's timestamp, where some row stores it.
    now: String,
}

impl Session {
    /// INSERT ... VALUES.
    pub(super) async fn insert(
        &mut self,
        insert: &InsertSplit,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        if insert.check_first {
            self.check_on_home(request).await?;
        }
        let drawn = self.draw(insert, request).await?;
        let placed = self.place_rows(insert, request, &drawn).await?;
        let copies = placed.is_none();
        // A reference table: everything everywhere.
        let groups = placed.unwrap_or_else(|| {
            let all: Vec<usize> = (0..insert.rows.len()).collect();
            let shards = self.all_shards().into_iter();
            shards.map(|shard| (shard, all.clone())).collect()
        });
        let arrays = match request.bound {
            Some(bound) if groups.len() > 1 => Arrays::of(insert, bound),
            Some(_) | None => None,
        };
        let mut work: Vec<Task> = Vec::with_capacity(groups.len());
        for (shard, rows) in &groups {
            work.push(match (&arrays, request.bound) {
                (Some(arrays), Some(bound)) => arrays.task(*shard, rows, bound)?,
                _ => Task::new(*shard, render(insert, request, &drawn, rows)),
            });
        }
        if let ([task], false) = (work.as_slice(), self.transaction.is_open()) {
            self.run_text(request, &task.text, task.shard).await?;
            return Ok(Tier::Single);
        }
        self.begin_implicit();
        let tally = if copies {
            self.run_everywhere(&work, request, Pace::Copies).await?
        } else if insert.returning {
            let order = Order {
                rows: insert.rows.len(),
                kept: insert.one_result_per_row,
            };
            self.insert_returning(&order, request, &work, &groups)
                .await?
        } else if insert.suffix.is_empty() {
            self.run_everywhere(&work, request, Pace::AtOnce).await?
        } else {
            // ON CONFLICT may wait for rows that are there.
            self.run_everywhere(&work, request, Pace::FirstAlone)
                .await?
        };
        message::put_command_complete(self.client.output(), &tally.tag());
        Ok(Tier::Multi)
    }

    /// Asks for the rights on views that do not stand in what shards are sent.
    pub(super) async fn check_views_on_home(&mut self, request: &Request<'_>) -> Outcome {
        match request.planned.session.through_views {
            true => self.check_rights_on_home(request).await,
            false => Ok(()),
        }
    }

    /// EXPLAIN asks for the rights on all that a statement reads and writes, those of views and of
    /// their owners among them, and runs nothing.
    pub(super) async fn check_rights_on_home(&mut self, request: &Request<'_>) -> Outcome {
        let index = self.link(self.home()).await?;
        let text = format!("EXPLAIN (COSTS OFF) {}", explainable(request.text));
        let server = &mut self.links[index].server;
        let (types, parameters) = match request.bound {
            None => (&[][..], message::NO_PARAMETERS),
            Some(bound) => (&bound.types[..], bound.bind.parameters()),
        };
        server.parse(&text, types, Answer::Hidden);
        server.bind_with(parameters, &[]);
        server.execute_unnamed(Answer::Shown);
        server.sync();
        self.text_rows(index)
            .await
            .map(drop)
            .map_err(without_position)
    }

    async fn draw(&mut self, insert: &InsertSplit, request: &Request<'_>) -> Outcome<Drawn> {
        self.check_filling(&insert.table, &insert.sequences).await?;
        let mut sequences = Vec::with_capacity(insert.sequences.len());
        for (n, sequence) in insert.sequences.iter().enumerate() {
            sequences.push(self.draw_for_rows(insert, n, sequence).await?);
        }
        let mut drawn = Drawn {
            sequences,
            keys: vec![None; insert.rows.len()],
            now: String::new(),
        };
        if let Some(key_type) = insert.key_type {
            self.draw_keys(insert, key_type, request, &mut drawn)
                .await?;
        }
        let holds_now = |template: &Template| template.contains(&Piece::Now);
        if insert.rows.iter().any(|row| holds_now(&row.text)) || holds_now(&insert.suffix) {
            drawn.now = self.quoted_time().await?;
        }
        Ok(drawn)
    }

    /// A value for each row that takes one from the n-th sequence, and nothing for the others:
    /// a row that brings its own number leaves the sequence alone.
    async fn draw_for_rows(
        &mut self,
        insert: &InsertSplit,
        n: usize,
        sequence: &str,
    ) -> Outcome<Vec<String>> {
        let takes: Vec<bool> = insert.rows.iter().map(|row| row.takes(n)).collect();
        let count = takes.iter().filter(|takes| **takes).count();
        let mut values = self
            .draw_sequence(sequence, count, Drawing::Rows)
            .await?
            .into_iter();
        let value = |takes| if takes { values.next() } else { None };
        Ok(takes
            .into_iter()
            .map(value)
            .map(Option::unwrap_or_default)
            .collect())
    }

    /// Reads every row's key; what cannot be read with certainty is evaluated on the home shard.
    async fn draw_keys(
        &mut self,
        insert: &InsertSplit,
        key_type: KeyType,
        request: &Request<'_>,
        drawn: &mut Drawn,
    ) -> Outcome {
        let mut unread: Vec<(usize, String)> = Vec::new();
        for (row, insert_row) in insert.rows.iter().enumerate() {
            if row % ROWS_AT_ONCE == ROWS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            match &insert_row.key {
                None => {}
                Some(RowKey::Sequence(n)) => {
                    let text = drawn.sequences.get(*n).and_then(|values| values.get(row));
                    let value = text.and_then(|text| key::from_text(key_type, text));
                    let text = text.cloned().unwrap_or_default();
                    drawn.keys[row] = Some((value.ok_or_else(bad_key)?, text));
                }
                Some(RowKey::Source(source)) => {
                    match super::planning::read_key(key_type, source, request, None) {
                        Some(value) => drawn.keys[row] = Some((value, String::new())),
                        None => unread.push((row, expression(source, row, request, drawn))),
                    }
                }
            }
        }
        for chunk in unread.chunks(EVALUATED_MAX) {
            let values = self.evaluate(insert, key_type, chunk, request).await?;
            for ((row, _), value) in chunk.iter().zip(values) {
                drawn.keys[*row] = Some(value);
            }
        }
        Ok(())
    }

    /// Evaluates key expressions once, on the home shard. Each key comes in binary (to be hashed)
    /// and as text (to be stored).
    async fn evaluate(
        &mut self,
        insert: &InsertSplit,
        key_type: KeyType,
        expressions: &[(usize, String)],
        request: &Request<'_>,
    ) -> Outcome<Vec<(KeyValue, String)>> {
        let rows: Vec<String> = expressions
            .iter()
            .map(|(_, expression)| format!("(({expression})::{})", insert.key_sql_type))
            .collect();
        let text = format!(
            "select k, k::text from (values {}) as a67_keys(k)",
            rows.join(", ")
        );
        let home = self.home();
        let types = match request.bound {
            Some(_) => self.described_types(request).await?,
            None => std::sync::Arc::from([]),
        };
        let index = self.link(home).await?;
        let server = &mut self.links[index].server;
        let parameters = request
            .bound
            .map_or(message::NO_PARAMETERS, |b| b.bind.parameters());
        server.parse(&text, &types, Answer::Hidden);
        server.bind_with(parameters, &[1, 0]);
        server.execute_unnamed(Answer::Shown);
        server.sync();
        let mut values = Vec::with_capacity(expressions.len());
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'D' {
                values.push(evaluated(key_type, frame.body())?);
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        if values.len() == expressions.len() {
            Ok(values)
        } else {
            Err(bad_key().into())
        }
    }

    /// Rows by shard; `None` for reference tables.
    async fn place_rows(
        &mut self,
        insert: &InsertSplit,
        request: &Request<'_>,
        drawn: &Drawn,
    ) -> Outcome<Option<Groups>> {
        let Some(group) = insert.group else {
            return Ok(None);
        };
        if insert.key_type.is_none() {
            let shard = whole_of(&request.catalog, group)?;
            return Ok(Some(vec![(shard, (0..insert.rows.len()).collect())]));
        }
        let mut groups: Vec<(ShardId, Vec<usize>)> = Vec::new();
        for (row, key) in drawn.keys.iter().enumerate() {
            if row % ROWS_AT_ONCE == ROWS_AT_ONCE - 1 {
                tokio::task::yield_now().await;
            }
            let (value, _) = key.as_ref().ok_or_else(bad_key)?;
            let shard = self.owner(&request.catalog, group, value).await;
            let shard = shard.map_err(|failure| denied(failure, &insert.table.name))?;
            match groups.iter_mut().find(|(known, _)| *known == shard) {
                Some((_, rows)) => rows.push(row),
                None => groups.push((shard, vec![row])),
            }
        }
        groups.sort_unstable_by_key(|(shard, _)| *shard);
        Ok(Some(groups))
    }

    /// RETURNING in the order of the input, where each row comes back exactly once; otherwise
    /// shard by shard.
    async fn insert_returning(
        &mut self,
        order: &Order,
        request: &Request<'_>,
        work: &[Task],
        groups: &[(ShardId, Vec<usize>)],
    ) -> Outcome<Tally> {
        let mut tally = Tally::default();
        let mut rows: HashMap<usize, BytesMut> = HashMap::new();
        let mut rest: Vec<BytesMut> = Vec::new();
        let mut described = request.bound.is_some();
        let indexes = self.send_everywhere(work, request).await?;
        let mut failure = None;
        for (index, (_, places)) in indexes.into_iter().zip(groups) {
            let mut places = places.iter();
            let server = &mut self.links[index].server;
            let result = relay::collect(&mut self.client, server, |output, frame| {
                match frame.tag {
                    b'C' => tally.add(message::command_tag(frame.body())),
                    b'T' if !described => {
                        described = true;
                        output.extend_from_slice(&frame.bytes);
                    }
                    b'D' => match places.next().filter(|_| order.kept) {
                        Some(place) => {
                            rows.insert(*place, frame.bytes);
                        }
                        None => rest.push(frame.bytes),
                    },
                    _ => {}
                }
                Ok(())
            })
            .await;
            match result.and_then(|()| self.hidden_error(index)) {
                Ok(()) => {}
                Err(Failure::ClientGone) => return Err(Failure::ClientGone),
                Err(error) => {
                    failure.get_or_insert(error);
                }
            }
        }
        if let Some(failure) = failure {
            return Err(failure);
        }
        for row in 0..order.rows {
            if let Some(bytes) = rows.remove(&row) {
                self.client.output().extend_from_slice(&bytes);
                self.client.flush_if_high().await?;
            }
        }
        for bytes in rest {
            self.client.output().extend_from_slice(&bytes);
            self.client.flush_if_high().await?;
        }
        Ok(tally)
    }

    /// INSERT ... SELECT: the rows of the query stream from the home shard to their shards.
    pub(super) async fn insert_select(
        &mut self,
        insert: &InsertSelect,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        self.check_on_home(request).await?;
        self.begin_implicit();
        if self.transaction.read_only {
            let message = "cannot execute INSERT in a read-only transaction";
            return Err(Report::error(sqlstate::READ_ONLY_SQL_TRANSACTION, message).into());
        }
        self.check_filling(&insert.table, &insert.sequences).await?;
        let tier = match &*insert.query {
            Plan::Gather(gather) => {
                self.load_fetches(gather, request).await?;
                self.stage_drawing(insert, &gather.statement, request)
                    .await?;
                self.drop_fetches(gather).await?;
                Tier::Gather
            }
            Plan::Scatter(_) => {
                self.stage_answer(insert, request).await?;
                Tier::Merge
            }
            _ => {
                self.stage_drawing(insert, &insert.query_sql, request)
                    .await?;
                Tier::Multi
            }
        };
        let tag = match &insert.suffix {
            None => format!("INSERT 0 {}", self.spread_stage(insert, request).await?),
            Some(suffix) => self.insert_stage(insert, suffix, request).await?.tag(),
        };
        self.run_hidden(self.home(), "DROP TABLE pg_temp.a67_stage")
            .await?;
        message::put_command_complete(self.client.output(), &tag);
        Ok(tier)
    }

    /// Computes the query's rows on the home shard, with values of sequences in them.
    async fn stage_drawing(
        &mut self,
        insert: &InsertSelect,
        query: &Template,
        request: &Request<'_>,
    ) -> Outcome {
        let (query, held) = self.draw_in(query, &insert.sequences, request).await?;
        let rows = self.stage(&query, request).await?;
        self.rows_have_drawn(held, rows).await
    }

    /// Answers the query as a statement of its own; what is too large for memory goes through a
    /// file to the home shard.
    async fn stage_answer(&mut self, insert: &InsertSelect, request: &Request<'_>) -> Outcome {
        let text = self.sql(&insert.query_sql, request).await?;
        let planned = Planned {
            plan: (*insert.query).clone(),
            span: (0, text.len()),
            kind: "select",
            session: SessionEffects::default(),
            redefines: Vec::new(),
            ..request.planned.clone()
        };
        let stage = Move {
            fetch: Fetch {
                relation: insert.table.clone(),
                from: FetchSource::Shards(ShardSet::All),
                temp_table: "a67_stage".to_owned(),
                create: vec![Piece::Text(format!(
                    "CREATE TEMPORARY TABLE a67_stage ON COMMIT DROP AS {text} WITH NO DATA",
                ))],
                select: vec![Piece::Text(text)],
                columns: Vec::new(),
                binary: false,
                primary_key: None,
                needs_key: false,
            },
            query: Some(Box::new(planned)),
            looked_up_by: Vec::new(),
            route: None,
            reductions: Vec::new(),
        };
        let moves = [stage];
        let home = [self.home()];
        let outer = std::mem::replace(&mut self.will_write, true);
        let choice = Choice::only(&moves);
        let moved = self.move_relations(&moves, &home, &choice, request).await;
        self.will_write = outer;
        moved.map(|_| ())
    }

    /// Computes the query's rows on the home shard, once. Returns their number.
    async fn stage(&mut self, query: &str, request: &Request<'_>) -> Outcome<usize> {
        let index = self.link(self.home()).await?;
        self.note_effects(index, request.planned.session)?;
        let text = format!("CREATE TEMPORARY TABLE a67_stage ON COMMIT DROP AS {query}");
        queue(
            &mut self.links[index].server,
            &text,
            request.bound,
            Answer::Shown,
        );
        let mut rows = 0;
        relay::collect(
            &mut self.client,
            &mut self.links[index].server,
            |_, frame| {
                if frame.tag == b'C' {
                    rows = message::tag_rows(message::command_tag(frame.body())).unwrap_or(0);
                }
                Ok(())
            },
        )
        .await?;
        self.hidden_error(index)?;
        Ok(usize::try_from(rows).unwrap_or(usize::MAX))
    }

    /// Inserts staged rows by INSERT, because the statement wants to see conflicts or results.
    async fn insert_stage(
        &mut self,
        insert: &InsertSelect,
        suffix: &str,
        request: &Request<'_>,
    ) -> Outcome<Tally> {
        let rows = self
            .query_rows(self.home(), "SELECT * FROM pg_temp.a67_stage")
            .await?;
        if rows.len() > STAGED_ROWS_MAX {
            return Err(Report::error(
                sqlstate::LIMIT_EXCEEDED,
                format!("INSERT ... SELECT with RETURNING or ON CONFLICT is limited to {STAGED_ROWS_MAX} rows"),
            )
            .hint("Leave the clause out, or insert in parts.")
            .into());
        }
        let columns: Vec<String> = insert
            .columns
            .iter()
            .map(|name| guc::quote_identifier(name))
            .collect();
        let prefix = format!(
            "INSERT INTO {}.{} ({}) OVERRIDING SYSTEM VALUE VALUES ",
            guc::quote_identifier(&insert.table.schema),
            guc::quote_identifier(&insert.table.name),
            columns.join(", ")
        );
        let rule = Rule::of(insert, &request.catalog)?;
        let mut groups: Vec<(ShardId, Vec<usize>)> = Vec::new();
        for (position, row) in rows.iter().enumerate() {
            let owner = self.owner_of(rule, row, &request.catalog).await;
            let owner = owner.map_err(|failure| denied(failure, &insert.table.name))?;
            let owners = owner.map_or_else(|| self.all_shards(), |shard| vec![shard]);
            for shard in owners {
                match groups.iter_mut().find(|(known, _)| *known == shard) {
                    Some((_, places)) => places.push(position),
                    None => groups.push((shard, vec![position])),
                }
            }
        }
        groups.sort_unstable_by_key(|(shard, _)| *shard);
        let work: Vec<Task> = groups
            .iter()
            .map(|(shard, places)| {
                let values: Vec<String> =
                    places.iter().map(|place| literals(&rows[*place])).collect();
                Task::new(*shard, format!("{prefix}{} {suffix}", values.join(", ")))
            })
            .collect();
        let empty = work.is_empty();
        let work = if empty {
            groups.push((self.home(), Vec::new()));
            let text = nothing_inserted(insert, &columns, suffix);
            vec![Task::new(self.home(), text)]
        } else {
            work
        };
        if insert.group.is_none() && !empty {
            return self.run_everywhere(&work, request, Pace::Copies).await;
        }
        let order = Order {
            rows: rows.len(),
            kept: insert.one_result_per_row,
        };
        self.insert_returning(&order, request, &work, &groups).await
    }
}

/// A row of text values as SQL.
fn literals(row: &[Option<String>]) -> String {
    let values: Vec<String> = row
        .iter()
        .map(|value| {
            value
                .as_deref()
                .map_or("NULL".to_owned(), guc::quote_literal)
        })
        .collect();
    format!("({})", values.join(", "))
}

/// No rows came: the statement still describes its results and says that it inserted none.
fn nothing_inserted(insert: &InsertSelect, columns: &[String], suffix: &str) -> String {
    let table = format!(
        "{}.{}",
        guc::quote_identifier(&insert.table.schema),
        guc::quote_identifier(&insert.table.name)
    );
    let columns = columns.join(", ");
    format!(
        "INSERT INTO {table} ({columns}) OVERRIDING SYSTEM VALUE \
         SELECT {columns} FROM {table} WHERE false {suffix}"
    )
}

/// What is known about the order of RETURNING.
struct Order {
    /// Rows of the input.
    rows: usize,
    /// Each comes back exactly once.
    kept: bool,
}

fn render(insert: &InsertSplit, request: &Request<'_>, drawn: &Drawn, rows: &[usize]) -> String {
    let mut text = String::new();
    let nothing = |piece: &Piece, output: &mut String| {
        if *piece == Piece::Now {
            output.push_str(&drawn.now);
        }
    };
    request.render(&insert.prefix, &nothing, &mut text);
    for (position, row) in rows.iter().enumerate() {
        text.push_str(if position == 0 { " " } else { ", " });
        let fill = |piece: &Piece, output: &mut String| match piece {
            Piece::Sequence(n) => {
                let value = drawn.sequences.get(*n).and_then(|values| values.get(*row));
                output.push_str(value.map_or("NULL", String::as_str));
            }
            Piece::Key => match &drawn.keys[*row] {
                Some((KeyValue::Null, _)) => output.push_str("NULL"),
                Some((_, text)) => output.push_str(&guc::quote_literal(text)),
                None => output.push_str("NULL"),
            },
            Piece::Now => output.push_str(&drawn.now),
            Piece::Text(_) | Piece::Literal(_) => {}
        };
        if let Some(insert_row) = insert.rows.get(*row) {
            request.render(&insert_row.text, &fill, &mut text);
        }
    }
    request.render(&insert.suffix, &nothing, &mut text);
    text
}

/// The source of a row's key as SQL, to be evaluated by a server.
fn expression(
    source: &automator67_planner::plan::KeySource,
    row: usize,
    request: &Request<'_>,
    drawn: &Drawn,
) -> String {
    use automator67_planner::plan::KeySource;
    match source {
        KeySource::Expression(template) => {
            let mut text = String::new();
            let fill = |piece: &Piece, output: &mut String| match piece {
                Piece::Now => output.push_str("now()"),
                Piece::Sequence(n) => {
                    let value = drawn.sequences.get(*n).and_then(|values| values.get(row));
                    output.push_str(value.map_or("NULL", String::as_str));
                }
                Piece::Text(_) | Piece::Literal(_) | Piece::Key => {}
            };
            request.render(template, &fill, &mut text);
            text
        }
        KeySource::Literal { slot, negated } => {
            let literal = request.literals.get(*slot);
            let text = literal.and_then(|literal| request.whole.get(literal.start..literal.end));
            format!(
                "{}{}",
                if *negated { "-" } else { "" },
                text.unwrap_or("NULL")
            )
        }
        KeySource::Parameter { index, .. } => format!("${}", index + 1),
        KeySource::Constant(text) => guc::quote_literal(text),
        KeySource::Null => "NULL".to_owned(),
    }
}

/// A row of (key in binary, key as text).
fn evaluated(key_type: KeyType, body: &[u8]) -> Result<(KeyValue, String), Failure> {
    let row = message::data_row(body).ok_or_else(bad_key)?;
    let (Some(binary), Some(text)) = (row.first(), row.get(1)) else {
        return Err(bad_key().into());
    };
    let (Some(binary), Some(text)) = (binary, text) else {
        return Ok((KeyValue::Null, String::new()));
    };
    let oid = key::native_oid(key_type, binary.len()).ok_or_else(bad_key)?;
    let value = key::from_binary(key_type, oid, binary).ok_or_else(bad_key)?;
    Ok((value, String::from_utf8_lossy(text).into_owned()))
}

fn bad_key() -> Report {
    Report::error(
        sqlstate::INTERNAL_ERROR,
        "the value of a shard key could not be computed",
    )
}

//! Values of sequences in a session: drawn from the process's blocks, remembered for `currval` and
//! `lastval`.

use std::sync::Arc;

use automator67_planner::{
    catalog::QualifiedName,
    plan::{Piece, Planned, SequenceCall, SequenceFunction, SequenceUse, Template},
    sequences,
};

use super::{Session, extended::Bound, links::cancelled, planning::Request};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc,
    sequences::{Ask, Held},
    server::{BackendKey, SequenceOwner, call::Call},
    telemetry::Tier,
};

/// Values of a block that rows of a query may take while the home shard computes them.
const HELD_MAX: usize = 1000;

/// Where the session's statements have moved sequences on a server.
#[derive(Default)]
enum Servers {
    #[default]
    None,
    One(Arc<BackendKey>),
    Several,
}

/// The value that the session drew last from a sequence.
struct Value {
    sequence: u32,
    value: String,
}

/// What `currval` and `lastval` ask for.
#[derive(Default)]
pub struct Memory {
    values: Vec<Value>,
    /// The sequence of the value drawn last.
    last: Option<u32>,
    /// A server has moved sequences since: the values may no longer be the last ones.
    stale: Vec<u32>,
    last_is_stale: bool,
    servers: Servers,
}

impl Memory {
    fn note(&mut self, sequence: u32, value: &str) {
        let value = Value {
            sequence,
            value: value.to_owned(),
        };
        match self.values.iter_mut().find(|one| one.sequence == sequence) {
            Some(known) => *known = value,
            None => self.values.push(value),
        }
        self.stale.retain(|stale| *stale != sequence);
        self.last = Some(sequence);
        self.last_is_stale = false;
    }

    /// A statement on a server may have moved any sequence.
    pub fn moved_on(&mut self, server: &Arc<BackendKey>) {
        self.stale = self.values.iter().map(|one| one.sequence).collect();
        self.last_is_stale = true;
        self.servers = match &self.servers {
            Servers::None => Servers::One(server.clone()),
            Servers::One(known) if Arc::ptr_eq(known, server) => return,
            Servers::One(_) | Servers::Several => Servers::Several,
        };
    }

    fn value(&self, sequence: u32) -> Option<&str> {
        let known = self.values.iter().find(|one| one.sequence == sequence);
        known.map(|one| one.value.as_str())
    }

    /// What a server session with this key remembers is all that this session did on servers.
    pub fn is_on(&self, server: &Arc<BackendKey>, owner: SequenceOwner, session: u64) -> bool {
        match &self.servers {
            Servers::One(known) => {
                Arc::ptr_eq(known, server) && owner == SequenceOwner::Session(session)
            }
            Servers::None | Servers::Several => false,
        }
    }

    /// No statement of the session has moved a sequence on a server.
    pub fn never_on_a_server(&self) -> bool {
        matches!(self.servers, Servers::None)
    }
}

/// What a statement draws values for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Drawing {
    /// New rows: those of an identity column need no privilege.
    Rows,
    /// A call of `nextval`.
    Call,
}

/// A sequence whose values come in blocks.
#[derive(Clone)]
struct Shared {
    oid: u32,
    name: String,
    identity: bool,
}

/// How a call is answered.
enum Answer {
    /// With the value that the proxy knows.
    Value(String),
    /// Nothing was drawn by the proxy.
    Nothing,
}

impl Session {
    /// A sequence of placed tables by the text of its name.
    fn shared_sequence(&self, text: &str) -> Option<Shared> {
        let catalog = self.catalog();
        let path = &self.settings.search_path;
        let found = sequences::find(&catalog, path, self.temporary.objects(), text)?;
        found.placed.then(|| Shared {
            oid: found.relation.oid,
            name: found.relation.name.name.clone(),
            identity: found.identity,
        })
    }

    /// The next `count` values of a sequence.
    pub(super) async fn draw_sequence(
        &mut self,
        sequence: &str,
        count: usize,
        drawing: Drawing,
    ) -> Outcome<Vec<String>> {
        if count == 0 {
            return Ok(Vec::new());
        }
        let shared = self.shared_sequence(sequence);
        let values = match &shared {
            Some(shared) => self.draw_shared(shared, sequence, count, drawing).await?,
            None => None,
        };
        let values = match values {
            Some(values) => values,
            None => {
                let values = self.draw_at_home(sequence, count).await?;
                if shared.is_none()
                    && let Some(index) = self.link_position(self.home())
                {
                    self.memory.moved_on(&self.links[index].server.key);
                    self.transaction.drew |= self.transaction.is_open();
                }
                values
            }
        };
        if let (Some(shared), Some(last)) = (&shared, values.last()) {
            self.memory.note(shared.oid, last);
        }
        Ok(values)
    }

    /// From the process's blocks; `None`: not from there.
    async fn draw_shared(
        &mut self,
        shared: &Shared,
        sequence: &str,
        count: usize,
        drawing: Drawing,
    ) -> Outcome<Option<Vec<String>>> {
        if !(shared.identity && drawing == Drawing::Rows) {
            self.check_usage(shared).await?;
        }
        if self.transaction.catalog.is_some() || self.transaction.is_stale() {
            return self.draw_in_changed_schema(shared, sequence, count).await;
        }
        let ask = Ask {
            sequence: shared.oid,
            count,
            epoch: self.catalog().epoch,
            block: self.settings.own.sequence_block,
        };
        Ok(self.take(ask).await?.map(|values| texts(&values)))
    }

    async fn take(&mut self, ask: Ask) -> Outcome<Option<Vec<i64>>> {
        let (process, card) = (self.process.clone(), self.card.clone());
        // Dropping the future loses nothing: see `Sequences::take`.
        tokio::select! {
            biased;
            values = process.sequences.take(ask) => Ok(values?),
            gone = self.client.gone() => Err(gone),
            () = card.cancelled.notified() => Err(cancelled()),
        }
    }

    /// For a COPY, whose connections are all busy.
    pub(super) async fn draw_while_copying(
        &mut self,
        sequence: &str,
        block: u64,
    ) -> Outcome<String> {
        if let Some(shared) = self.shared_sequence(sequence)
            && self.transaction.catalog.is_none()
        {
            let ask = Ask {
                sequence: shared.oid,
                count: 1,
                epoch: self.catalog().epoch,
                block: self.settings.own.sequence_block.max(block),
            };
            let values = self.take(ask).await?;
            if let Some(value) = values.and_then(|values| values.first().copied()) {
                let value = value.to_string();
                self.memory.note(shared.oid, &value);
                return Ok(value);
            }
        }
        let values = self.draw_apart(sequence, 1).await?;
        let value = values.into_iter().next().unwrap_or_default();
        if let Some(shared) = self.shared_sequence(sequence) {
            self.memory.note(shared.oid, &value);
        }
        Ok(value)
    }

    /// Checks the privilege that rows of a COPY need.
    pub(super) async fn check_drawing(&mut self, sequence: &str) -> Outcome {
        match self.shared_sequence(sequence) {
            Some(shared) if !shared.identity => self.check_usage(&shared).await,
            _ => Ok(()),
        }
    }

    /// This transaction has changed the schema: only its own connection knows what the sequence
    /// is now, and may draw from it. Values that are reserved come first, if it has not changed.
    async fn draw_in_changed_schema(
        &mut self,
        shared: &Shared,
        sequence: &str,
        count: usize,
    ) -> Outcome<Option<Vec<String>>> {
        let text = format!("select automator67.sequence_identity({})", shared.oid);
        let identity = self.query_value(self.home(), &text).await?;
        let held = self.process.sequences.take_reserved(
            shared.oid,
            count,
            identity.as_deref().unwrap_or_default(),
        );
        let mut values = texts(held.values());
        held.used(count);
        let rest = count - values.len();
        if rest > 0 {
            values.extend(self.draw_at_home(sequence, rest).await?);
        }
        Ok(Some(values))
    }

    /// One `nextval` for each value, on the session's own connection.
    async fn draw_at_home(&mut self, sequence: &str, count: usize) -> Outcome<Vec<String>> {
        let home = self.home();
        let text = format!(
            "select nextval({}::regclass) from generate_series(1, {count})",
            guc::quote_literal(sequence)
        );
        let rows = self.query_rows(home, &text).await?;
        let session = self.card.id;
        if let Some(index) = self.link_position(home) {
            self.links[index].server.move_sequence(session);
        }
        Ok(rows
            .into_iter()
            .filter_map(|row| row.into_iter().next().flatten())
            .collect())
    }

    /// Blocks are shared by all users, so each must have the privilege that `nextval` asks for.
    async fn check_usage(&mut self, shared: &Shared) -> Outcome {
        let epoch = self.catalog().epoch;
        let user = self.user.name.clone();
        let own_role = self.settings.map.get("role").is_some() || self.transaction.has_settings();
        let changed = self.transaction.catalog.is_some() || self.transaction.is_stale();
        let allowed = if own_role || changed {
            let text = format!(
                "select has_sequence_privilege({}::oid, 'USAGE, UPDATE')",
                shared.oid
            );
            self.query_value(self.home(), &text).await?.as_deref() != Some("f")
        } else if self.process.sequences.is_allowed(&user, shared.oid, epoch) {
            true
        } else {
            let process = self.process.clone();
            let allowed = process
                .sequences
                .source()
                .may_draw(&user, shared.oid)
                .await?;
            if allowed {
                process.sequences.allow(&user, shared.oid, epoch);
            }
            allowed
        };
        if allowed {
            return Ok(());
        }
        Err(Report::error(
            sqlstate::INSUFFICIENT_PRIVILEGE,
            format!("permission denied for sequence {}", shared.name),
        )
        .into())
    }

    /// Columns that the proxy fills stand in what shards are sent, which then ask for INSERT on them,
    /// too. For a role that has the privilege on other columns only, Postgres fills them unasked.
    pub(super) async fn check_filling(
        &mut self,
        table: &QualifiedName,
        sequences: &[String],
    ) -> Outcome {
        let own_role = self.settings.map.get("role").is_some() || self.transaction.has_settings();
        let changed = self.transaction.catalog.is_some() || self.transaction.is_stale();
        if sequences.is_empty() || own_role || changed {
            return Ok(());
        }
        let catalog = self.catalog();
        let Some(relation) = catalog.relation(table) else {
            return Ok(());
        };
        let (user, epoch) = (self.user.name.clone(), catalog.epoch);
        if self
            .process
            .sequences
            .is_allowed(&user, relation.oid, epoch)
        {
            return Ok(());
        }
        let filled = relation.columns.iter().filter(|column| {
            let sequence = column.sequence.as_ref();
            sequence.is_some_and(|sequence| sequences.contains(sequence))
        });
        let filled: Vec<String> = filled
            .map(|column| guc::quote_literal(&column.name))
            .collect();
        let oid = relation.oid;
        let text = format!(
            "select c from pg_catalog.unnest(array[{}]::text[]) c \
             where not pg_catalog.has_column_privilege({oid}::oid, c, 'INSERT') \
             and pg_catalog.has_any_column_privilege({oid}::oid, 'INSERT') limit 1",
            filled.join(", ")
        );
        match self.query_value(self.home(), &text).await? {
            None => {
                self.process.sequences.allow(&user, oid, epoch);
                Ok(())
            }
            Some(column) => Err(not_filled(table, &column).into()),
        }
    }

    // ---- currval, lastval, nextval ----

    /// A statement with calls whose values the proxy knows, or draws.
    pub(super) async fn with_sequences(
        &mut self,
        uses: &SequenceUse,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let draws = uses
            .calls
            .iter()
            .any(|call| call.function == SequenceFunction::Next);
        if draws && self.reads_only() {
            let message = "cannot execute nextval() in a read-only transaction";
            return Err(Report::error(sqlstate::READ_ONLY_SQL_TRANSACTION, message).into());
        }
        let mut values = Vec::with_capacity(uses.calls.len());
        for call in &uses.calls {
            match self.value_of(call, uses).await? {
                Answer::Value(value) => values.push(value),
                Answer::Nothing if !draws && values.is_empty() => {
                    return self.without_known_values(uses, request).await;
                }
                Answer::Nothing => return Err(unknown_value()),
            }
        }
        let text = replaced(request, &uses.calls, &values)?;
        self.run_rewritten(&text, request).await
    }

    async fn value_of(&mut self, call: &SequenceCall, uses: &SequenceUse) -> Outcome<Answer> {
        let moved = &uses.moved;
        match call.function {
            SequenceFunction::Next => {
                let drawn = self.draw_sequence(&call.text, 1, Drawing::Call).await?;
                Ok(drawn
                    .into_iter()
                    .next()
                    .map_or(Answer::Nothing, Answer::Value))
            }
            SequenceFunction::Current => {
                let sequence = call.sequence.unwrap_or(0);
                let Some(value) = self.memory.value(sequence) else {
                    return Ok(Answer::Nothing);
                };
                let moves = moved.unknown || moved.sequences.contains(&sequence);
                if moves || self.memory.stale.contains(&sequence) {
                    return Err(unknown_value());
                }
                let value = value.to_owned();
                let shared = Shared {
                    oid: sequence,
                    name: call.text.clone(),
                    identity: false,
                };
                self.check_reading(&shared).await?;
                Ok(Answer::Value(value))
            }
            SequenceFunction::Last => {
                let value = self.memory.last.and_then(|last| self.memory.value(last));
                let Some(value) = value else {
                    return Ok(Answer::Nothing);
                };
                let moves = moved.unknown || !moved.sequences.is_empty();
                if moves || self.memory.last_is_stale {
                    return Err(unknown_value());
                }
                Ok(Answer::Value(value.to_owned()))
            }
        }
    }

    /// `currval` asks for USAGE or SELECT. Who has drawn values has had the first of them.
    async fn check_reading(&mut self, shared: &Shared) -> Outcome {
        let epoch = self.catalog().epoch;
        if self.settings.map.get("role").is_none()
            && self
                .process
                .sequences
                .is_allowed(&self.user.name, shared.oid, epoch)
        {
            return Ok(());
        }
        let text = format!(
            "select has_sequence_privilege({}::oid, 'USAGE, SELECT')",
            shared.oid
        );
        if self.query_value(self.home(), &text).await?.as_deref() == Some("f") {
            return Err(Report::error(
                sqlstate::INSUFFICIENT_PRIVILEGE,
                format!("permission denied for sequence {}", shared.name),
            )
            .into());
        }
        Ok(())
    }

    /// The proxy has drawn nothing that the statement asks for: only a server can know.
    async fn without_known_values(
        &mut self,
        uses: &SequenceUse,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        if self.memory.never_on_a_server() && !self.pinned {
            let undefined = uses.calls.iter().find_map(|call| match call.function {
                SequenceFunction::Current => Some(format!(
                    "currval of sequence \"{}\" is not yet defined in this session",
                    self.sequence_name(call)
                )),
                SequenceFunction::Last => {
                    Some("lastval is not yet defined in this session".to_owned())
                }
                SequenceFunction::Next => None,
            });
            let message = undefined.unwrap_or_default();
            return Err(Report::error(sqlstate::OBJECT_NOT_IN_STATE, message).into());
        }
        match &*uses.otherwise {
            Err(error) => Err(error.clone().into()),
            Ok(planned) => {
                let request = request.with_plan(planned);
                Box::pin(self.execute(&request)).await
            }
        }
    }

    fn sequence_name(&self, call: &SequenceCall) -> String {
        let catalog = self.catalog();
        let path = &self.settings.search_path;
        let found = sequences::find(&catalog, path, self.temporary.objects(), &call.text);
        found.map_or(call.text.clone(), |found| found.relation.name.name.clone())
    }

    /// Plans and runs a text in the place of the client's, with the client's parameters.
    pub(super) async fn run_rewritten(
        &mut self,
        text: &str,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let Some(bound) = request.bound else {
            loop {
                let prepared = self.plan_simple(text).await?;
                if !self.enter(prepared.names(), &prepared.catalog).await? {
                    continue;
                }
                let Some(planned) = prepared.statements.first() else {
                    return Err(not_rewritten());
                };
                let request = Request::simple(planned, &prepared, text);
                return Box::pin(self.execute(&request)).await;
            }
        };
        let types = match bound.bind.parameter_count() {
            0 => self.no_types.clone(),
            _ => self.described_types(request).await?,
        };
        loop {
            let statement = self.new_statement(text, &types).await?;
            let names = statement.prepared.names();
            if !self.enter(names, &statement.prepared.catalog).await? {
                continue;
            }
            let Some(planned) = statement.prepared.statements.first() else {
                return Err(not_rewritten());
            };
            let bound = Bound {
                bind: bound.bind.clone(),
                types: types.clone(),
                limit: bound.limit,
                portal: bound.portal.clone(),
                name: bound.name.clone(),
                statement: statement.clone(),
            };
            let request = statement.request(planned, Some(&bound));
            return Box::pin(self.execute(&request)).await;
        }
    }

    // ---- setval ----

    /// After `setval`: all proxies drop what they have reserved of the sequence.
    pub(super) async fn sequences_were_set(&mut self, planned: &Planned, text: &str) -> Outcome {
        if !planned.session.sets_sequence || !self.catalog().has_placed_relations {
            return Ok(());
        }
        let targets = match sequences::set_targets(text) {
            Some(targets) => targets
                .iter()
                .map(|target| format!("({target})::oid"))
                .collect::<Vec<_>>()
                .join(", "),
            None => "0::oid".to_owned(),
        };
        let home = self.home();
        let list = format!("select unnest(array[{targets}]::oid[])");
        let rows = self.query_rows(home, &list).await?;
        let oids: Vec<u32> = rows
            .iter()
            .filter_map(|row| row.first()?.as_deref()?.parse().ok())
            .collect();
        if oids.is_empty() {
            return Ok(());
        }
        // `setval` is not undone by a rollback: this process must not need the commit to know.
        for oid in &oids {
            self.process
                .sequences
                .forget(Some(*oid).filter(|oid| *oid != 0));
        }
        let known: Vec<String> = oids.iter().map(u32::to_string).collect();
        let note = Call::to("note_sequences_set").with(format!("{{{}}}", known.join(",")));
        self.call(home, &note).await?;
        if let Some(index) = self.link_position(home) {
            self.links[index].wrote = true;
        }
        self.change_schema().await
    }

    // ---- INSERT ... SELECT ----

    /// A query whose rows take values of sequences, as SQL: the first rows take values that are
    /// reserved.
    pub(super) async fn draw_in(
        &mut self,
        query: &Template,
        sequences: &[String],
        request: &Request<'_>,
    ) -> Outcome<(String, Vec<(u32, Held)>)> {
        let mut all: Vec<(u32, Held)> = Vec::new();
        let mut calls = Vec::with_capacity(sequences.len());
        for sequence in sequences {
            let call = format!("nextval({}::regclass)", guc::quote_literal(sequence));
            calls.push(call.clone());
            let Some(shared) = self.shared_sequence(sequence) else {
                continue;
            };
            if all.iter().any(|(oid, _)| *oid == shared.oid) {
                continue;
            }
            let text = format!("select automator67.sequence_identity({})", shared.oid);
            let identity = self.query_value(self.home(), &text).await?;
            let held = self.process.sequences.take_reserved(
                shared.oid,
                HELD_MAX,
                identity.as_deref().unwrap_or_default(),
            );
            let values = texts(held.values()).join(",");
            if let (Some(last), false) = (calls.last_mut(), held.values().is_empty()) {
                *last =
                    format!("coalesce(('{{{values}}}'::bigint[])[row_number() over ()], {call})");
            }
            all.push((shared.oid, held));
        }
        let now = match query.contains(&Piece::Now) {
            true => self.quoted_time().await?,
            false => String::new(),
        };
        let mut text = String::new();
        let fill = |piece: &Piece, output: &mut String| match piece {
            Piece::Sequence(n) => output.push_str(calls.get(*n).map_or("NULL", String::as_str)),
            Piece::Now => output.push_str(&now),
            Piece::Text(_) | Piece::Literal(_) | Piece::Key => {}
        };
        request.render(query, &fill, &mut text);
        Ok((text, all))
    }

    /// The query gave so many rows.
    pub(super) async fn rows_have_drawn(&mut self, all: Vec<(u32, Held)>, rows: usize) -> Outcome {
        for (oid, held) in all {
            if rows == 0 {
                continue;
            }
            let last = match held.values().get(rows - 1) {
                Some(value) => value.to_string(),
                None => {
                    let text = format!("select currval({oid}::regclass)");
                    let value = self.query_value(self.home(), &text).await?;
                    value.unwrap_or_default()
                }
            };
            held.used(rows);
            self.memory.note(oid, &last);
        }
        Ok(())
    }
}

/// The client's text with values in the place of calls.
fn replaced(request: &Request<'_>, calls: &[SequenceCall], values: &[String]) -> Outcome<String> {
    let (from, to) = request.planned.span;
    let whole = request.whole;
    let mut text = String::with_capacity(to - from + 32);
    let mut at = from;
    for (call, value) in calls.iter().zip(values) {
        let (start, end) = call.span;
        text.push_str(whole.get(at..start).ok_or_else(not_rewritten)?);
        text.push_str(&format!("'{value}'::bigint"));
        if call.names_column {
            text.push_str(&format!(" AS {}", call.function.name()));
        }
        at = end;
    }
    text.push_str(whole.get(at..to).ok_or_else(not_rewritten)?);
    Ok(text)
}

fn texts(values: &[i64]) -> Vec<String> {
    values.iter().map(i64::to_string).collect()
}

pub fn not_rewritten() -> Failure {
    Report::error(
        sqlstate::INTERNAL_ERROR,
        "the statement could not be planned again",
    )
    .into()
}

/// Neither the proxy nor a server is known to have the answer.
pub fn unknown_value() -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "the value of currval or lastval is not known here",
    )
    .detail("Values were drawn both by the proxy and by a server since.")
    .hint("Use INSERT ... RETURNING.")
    .into()
}

fn not_filled(table: &QualifiedName, column: &str) -> Report {
    Report::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        format!("permission denied for table {}", table.name),
    )
    .detail(format!(
        "The proxy gives column \"{column}\" its value, and needs INSERT on it for that."
    ))
    .hint(format!(
        "GRANT INSERT ({}) ON {}.{} to the role.",
        guc::quote_identifier(column),
        guc::quote_identifier(&table.schema),
        guc::quote_identifier(&table.name)
    ))
}

//! The extended protocol: Parse, Bind, Describe, Execute, Close are collected up to Sync or Flush.
//!
//! A batch whose statements all belong to one shard goes there in one write, and its answers come
//! back as they are (`forward`). Any other batch runs step by step (`step_by_step`), inside a
//! transaction that Sync commits.

use std::{
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    time::Instant,
};

use automator67_planner::{
    catalog::ShardId,
    plan::{Plan, SettingCommand},
};

use super::{
    Session,
    execute::aborted,
    planning::{Prepared, Request},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    frame::Frame,
    message::{self, Bind, Named, Parse},
    process::lock,
    relay,
    server::{Expected, Step, statement_name},
    telemetry::Tier,
    types,
};

/// A batch without Sync is worked off when it has grown to this.
const BATCH_STEPS_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A prepared statement of the session.
pub struct Statement {
    /// Names it on every server connection.
    pub id: u64,
    /// SQL.
    pub text: Arc<str>,
    /// Declared parameter types; 0 is unspecified.
    pub types: Arc<[u32]>,
    /// Its plan and what that was made with.
    pub prepared: Arc<Prepared>,
    /// Parameter types as the home shard described them.
    described: Mutex<Option<Arc<[u32]>>>,
    /// Its result columns as a client was told, see [`message::shape`].
    shape: Mutex<Option<u64>>,
    /// It was planned anew since: whether the columns are still the same must be looked up.
    reshaped: AtomicBool,
}

/// A portal of the session.
pub struct Portal {
    statement: Arc<Statement>,
    bind: Arc<Bind>,
    /// Where it is open, if it is open on a server.
    pub shard: Option<ShardId>,
}

/// A statement's parameters, for running it.
pub struct Bound {
    /// The client's Bind.
    pub bind: Arc<Bind>,
    /// Parameter types for Parse.
    pub types: Arc<[u32]>,
    /// Rows wanted; 0 is all.
    pub limit: i32,
    /// The portal's name.
    pub portal: String,
    statement: Arc<Statement>,
}

/// A message of a batch.
enum BatchStep {
    Parse(Parse),
    Bind(Arc<Bind>),
    Describe(Named),
    Execute { portal: String, limit: i32 },
    Close(Named),
}

/// Messages that wait for Sync.
#[derive(Default)]
pub struct Batch {
    steps: Vec<BatchStep>,
    bytes: usize,
}

/// What ended a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum End {
    Sync,
    Flush,
    Full,
}

impl Session {
    /// One message of the extended protocol.
    pub(super) async fn extended(&mut self, frame: Frame) -> Outcome {
        if self.skipping && frame.tag != b'S' {
            return Ok(());
        }
        let end = match frame.tag {
            b'S' | b'H' if !frame.body().is_empty() => {
                let end = if frame.tag == b'S' { End::Sync } else { End::Flush };
                let result = self.work_off(end).await;
                let malformed = Report::error(sqlstate::PROTOCOL_VIOLATION, "invalid message format");
                return self.fail_batch(result.and(Err(malformed.into())), end).await;
            }
            b'S' => End::Sync,
            b'H' => End::Flush,
            _ => {
                let size = frame.bytes.len();
                let step = decode(&frame);
                match step {
                    Ok(step) => {
                        self.batch.steps.push(step);
                        self.batch.bytes += size;
                    }
                    Err(failure) => {
                        // What came before it still runs, as it would have on a server.
                        let result = self.work_off(End::Full).await;
                        let result = result.and(Err(failure));
                        return self.fail_batch(result, End::Full).await;
                    }
                }
                if self.batch.steps.len() < BATCH_STEPS_MAX && self.batch.bytes < BATCH_BYTES_MAX {
                    return Ok(());
                }
                End::Full
            }
        };
        let result = self.work_off(end).await;
        self.fail_batch(result, end).await
    }

    /// Ends a batch: commits, or tells the failure and skips to Sync.
    async fn fail_batch(&mut self, result: Outcome, end: End) -> Outcome {
        let mut result = self.tell(result)?;
        if result.is_err() {
            self.skipping = true;
        }
        if end != End::Sync {
            return self.client.flush().await;
        }
        if std::mem::take(&mut self.sync_taken_by_copy) {
            // The Sync sent with the copy is not answered; the one after it is.
            return self.client.flush().await;
        }
        if result.is_ok() && !self.skipping {
            let committed = self.end_implicit().await;
            result = self.tell(committed)?;
        }
        if result.is_err() || self.skipping {
            self.fail_transaction().await;
        }
        self.skipping = false;
        if !self.transaction.is_open() {
            self.portals.clear();
        }
        self.ready().await
    }

    async fn work_off(&mut self, end: End) -> Outcome {
        let batch = std::mem::take(&mut self.batch);
        if self.skipping || batch.steps.is_empty() {
            return Ok(());
        }
        self.refresh_catalog().await?;
        self.judge_sql_prepared().await?;
        let result = self.run_batch(batch.steps, end).await;
        self.leave_gate();
        result
    }

    async fn run_batch(&mut self, steps: Vec<BatchStep>, end: End) -> Outcome {
        while let Some(forward) = self.forward_target(&steps, end).await {
            let names = forward.names();
            let Some(first) = forward.bound.first().filter(|_| names != 0) else {
                return self.forward(forward, steps, end).await;
            };
            if self.enter(names, &first.prepared.catalog.clone()).await? {
                return self.forward(forward, steps, end).await;
            }
        }
        self.step_by_step(steps).await
    }

    // ---- a whole batch to one shard ----

    /// Plans a batch; `Some` when one shard can have all of it.
    async fn forward_target(&mut self, steps: &[BatchStep], end: End) -> Option<Forward> {
        if self.transaction.is_failed() {
            return None;
        }
        let mut forward = Forward::default();
        let binds = steps.iter().any(|step| {
            matches!(
                step,
                BatchStep::Bind(_)
                    | BatchStep::Execute { .. }
                    | BatchStep::Describe(Named::Portal(_))
            )
        });
        if binds && end != End::Sync {
            return None;
        }
        for step in steps {
            match step {
                BatchStep::Parse(parse) => {
                    let taken = !parse.name.is_empty() && self.statements.contains_key(&parse.name);
                    if taken {
                        return None;
                    }
                    let statement = self.new_statement(&parse.text, &parse.parameter_types).ok()?;
                    if matches!(local_answer(&statement), Local::Known) {
                        return None;
                    }
                    forward.closed.retain(|closed| *closed != parse.name);
                    forward.statements.push((parse.name.clone(), statement.clone()));
                    forward.of_step.push(Some(statement));
                    continue;
                }
                BatchStep::Bind(bind) => {
                    let statement = self.find_for_forward(&forward, &bind.statement)?;
                    let shard = self.forward_shard(&statement, bind)?;
                    if *forward.shard.get_or_insert(shard) != shard {
                        return None;
                    }
                    forward.portals.push(bind.portal.clone());
                    forward.bound.push(statement.clone());
                    forward.of_step.push(Some(statement));
                    continue;
                }
                BatchStep::Execute { portal, .. } | BatchStep::Describe(Named::Portal(portal)) => {
                    if !forward.portals.contains(portal) {
                        let shard = self.portal_shard(portal)?;
                        if *forward.shard.get_or_insert(shard) != shard {
                            return None;
                        }
                    }
                }
                BatchStep::Describe(Named::Statement(name)) => {
                    let statement = self.find_for_forward(&forward, name)?;
                    if matches!(local_answer(&statement), Local::Known) {
                        return None;
                    }
                    forward.of_step.push(Some(statement));
                    continue;
                }
                BatchStep::Close(Named::Statement(name)) => forward.closed.push(name.clone()),
                BatchStep::Close(Named::Portal(_)) => {}
            }
            forward.of_step.push(None);
        }
        Some(forward)
    }

    /// The statement that has the name at this point of the batch.
    fn find_for_forward(&mut self, forward: &Forward, name: &str) -> Option<Arc<Statement>> {
        if forward.closed.iter().any(|closed| closed == name) {
            return None;
        }
        let new = forward
            .statements
            .iter()
            .rev()
            .find(|(known, _)| known == name);
        match new {
            Some((_, statement)) => Some(statement.clone()),
            None => self.statement_now(name).ok(),
        }
    }

    /// The one shard of a bound statement, if it has one and leaves nothing behind there.
    fn forward_shard(&self, statement: &Arc<Statement>, bind: &Arc<Bind>) -> Option<ShardId> {
        let [planned] = statement.prepared.statements.as_slice() else {
            return None;
        };
        if statement.reshaped.load(Ordering::Relaxed) {
            return None;
        }
        let Plan::Single(target) = &planned.plan else {
            return None;
        };
        let effects = planned.session;
        if effects.pins || effects.changes_catalog || effects.reads_sequence {
            return None;
        }
        let bound = Bound {
            bind: bind.clone(),
            types: statement.types.clone(),
            limit: 0,
            portal: String::new(),
            statement: statement.clone(),
        };
        let request = statement.request(planned, Some(&bound));
        self.resolve_now(target, &request).ok().flatten()
    }

    async fn forward(&mut self, forward: Forward, steps: Vec<BatchStep>, end: End) -> Outcome {
        let started = Instant::now();
        let shard = forward.shard.unwrap_or_else(|| self.any_copy());
        let index = self.link(shard).await?;
        for statement in &forward.bound {
            for planned in &statement.prepared.statements {
                self.note_effects(index, planned.session)?;
            }
        }
        for statement in forward.of_step.iter().flatten() {
            types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        }
        let uses = self.links[index].server.uses();
        let described = described_statement(&steps, &forward.of_step);
        self.links[index].server.shape = described.as_ref().map(|_| None);
        for (step, statement) in steps.into_iter().zip(forward.of_step) {
            self.forward_step(index, shard, step, statement);
        }
        self.links[index].server.sync();
        let result = self.exchange_with_copy(index, true).await;
        let relayed = result?;
        self.hidden_error(index)?;
        self.process
            .telemetry
            .bytes_to_clients
            .increment(relayed.bytes);
        for statement in &forward.bound {
            let kind = statement
                .prepared
                .statements
                .first()
                .map_or("other", |planned| planned.kind);
            self.process
                .telemetry
                .statement(Tier::Single, kind, started.elapsed());
        }
        self.note_forwarded(&forward.bound);
        let shape = self.links[index].server.shape.take();
        if let (Some(statement), Some(shape)) = (described, shape) {
            *lock(&statement.shape) = shape;
        }
        if !relayed.failed {
            if !self.transaction.is_open() && end == End::Sync {
                self.portals.clear();
            }
            return Ok(());
        }
        // Those behind the error were never parsed.
        for (name, statement) in forward.statements.iter().skip(relayed.parsed) {
            let unparsed = |known: &Arc<Statement>| Arc::ptr_eq(known, statement);
            if self.statements.get(name).is_some_and(unparsed) {
                self.statements.remove(name);
            }
        }
        self.forget_uncertain(index, uses).await?;
        Err(Failure::Told)
    }

    fn note_forwarded(&self, bound: &[Arc<Statement>]) {
        let mut activity = lock(&self.card.activity);
        activity.statements += bound.len() as u64;
        if let Some(planned) = bound
            .last()
            .and_then(|last| last.prepared.statements.first())
        {
            activity.statement_kind = planned.kind;
            activity.tier = Tier::Single.name();
        }
    }

    /// After a failed batch nobody knows which of its statements were prepared: none is.
    async fn forget_uncertain(&mut self, index: usize, uses: u64) -> Outcome {
        let server = &mut self.links[index].server;
        let ids = server.prepared_since(uses);
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            message::put_close(&mut server.wire.output, b'S', &statement_name(id));
            server.expect(Step::Close, false);
            server.forget_prepared(Some(id));
        }
        server.sync();
        relay::exchange(&mut self.client, server).await.map(|_| ())
    }

    /// Queues one message of the batch, with names as the server knows them.
    /// `statement` is the one that Parse, Bind and Describe mean.
    fn forward_step(
        &mut self,
        index: usize,
        shard: ShardId,
        step: BatchStep,
        statement: Option<Arc<Statement>>,
    ) {
        match (step, statement) {
            (BatchStep::Parse(parse), Some(statement)) => {
                self.statements
                    .insert(parse.name.clone(), statement.clone());
                let server = &mut self.links[index].server;
                if parse.name.is_empty() {
                    server.put_parse("", &parse.text, &statement.types);
                    server.expect(Step::Parse, true);
                    server.unnamed = Some(statement.id);
                } else if server.has_prepared(statement.id) {
                    server
                        .expected
                        .push_back(Expected::Local(message::PARSE_COMPLETE));
                } else {
                    server.prepare(statement.id, &statement.text, &statement.types, true);
                }
            }
            (BatchStep::Bind(bind), Some(statement)) => {
                let name = self.on_server(index, &bind.statement, &statement);
                let server = &mut self.links[index].server;
                message::put_bind(&mut server.wire.output, &bind.portal, &name, &bind.rest);
                server.expect(Step::Bind, true);
                let portal = Portal {
                    statement,
                    bind,
                    shard: Some(shard),
                };
                self.portals.insert(portal.bind.portal.clone(), portal);
            }
            (BatchStep::Describe(Named::Statement(name)), Some(statement)) => {
                let name = self.on_server(index, &name, &statement);
                let server = &mut self.links[index].server;
                message::put_describe(&mut server.wire.output, b'S', &name);
                server.expect(Step::Describe, true);
            }
            (BatchStep::Describe(Named::Portal(name)), _) => {
                let server = &mut self.links[index].server;
                message::put_describe(&mut server.wire.output, b'P', &name);
                server.expect(Step::Describe, true);
            }
            (BatchStep::Execute { portal, limit }, _) => {
                let (binary, statement) = self.rows_of(&portal);
                let server = &mut self.links[index].server;
                server.execute(&portal, limit, true, binary, statement);
            }
            (BatchStep::Close(named), _) => {
                let portal = self.close(named);
                let server = &mut self.links[index].server;
                match portal {
                    Some(portal) => {
                        message::put_close(&mut server.wire.output, b'P', &portal);
                        server.expect(Step::Close, true);
                    }
                    None => server
                        .expected
                        .push_back(Expected::Local(message::CLOSE_COMPLETE)),
                }
            }
            // `forward_target` gives each of these its statement.
            (BatchStep::Parse(_) | BatchStep::Bind(_), None)
            | (BatchStep::Describe(Named::Statement(_)), None) => {}
        }
    }

    /// Makes sure that a server connection has the statement; returns its name there.
    fn on_server(&mut self, index: usize, name: &str, statement: &Statement) -> String {
        let server = &mut self.links[index].server;
        if name.is_empty() {
            if server.unnamed != Some(statement.id) {
                server.put_parse("", &statement.text, &statement.types);
                server.expect(Step::Parse, false);
                server.unnamed = Some(statement.id);
            }
            return String::new();
        }
        if !server.has_prepared(statement.id) {
            server.prepare(statement.id, &statement.text, &statement.types, false);
        }
        statement_name(statement.id)
    }

    /// Forgets what is closed. A portal that is open on a server must be closed there.
    fn close(&mut self, named: Named) -> Option<String> {
        match named {
            Named::Statement(name) => {
                self.statements.remove(&name);
                None
            }
            Named::Portal(name) => {
                let open = self.portal_shard(&name).is_some();
                self.portals.remove(&name);
                self.cursors.remove(&name);
                open.then_some(name)
            }
        }
    }

    // ---- step by step ----

    async fn step_by_step(&mut self, steps: Vec<BatchStep>) -> Outcome {
        for step in steps {
            match step {
                BatchStep::Parse(parse) => {
                    let taken = !parse.name.is_empty() && self.statements.contains_key(&parse.name);
                    if taken {
                        return Err(Report::error(
                            sqlstate::DUPLICATE_PREPARED_STATEMENT,
                            format!("prepared statement \"{}\" already exists", parse.name),
                        )
                        .into());
                    }
                    self.refresh_catalog().await?;
                    let statement = self.new_statement(&parse.text, &parse.parameter_types)?;
                    if self.transaction.is_failed() && !statement.may_end_transaction() {
                        return Err(aborted());
                    }
                    self.parse_on_server(&statement).await?;
                    self.statements.insert(parse.name, statement);
                }
                BatchStep::Bind(bind) => self.bind(bind)?,
                BatchStep::Describe(Named::Statement(name)) => {
                    let statement = self.statement_now(&name)?;
                    self.describe(&statement, None).await?;
                }
                BatchStep::Describe(Named::Portal(name)) => self.describe_portal(&name).await?,
                BatchStep::Execute { portal, limit } => self.execute_portal(&portal, limit).await?,
                BatchStep::Close(named) => self.close_step(named).await?,
            }
            self.client.flush_if_high().await?;
        }
        Ok(())
    }

    /// Lets a server find what is wrong with a statement, or say ParseComplete.
    async fn parse_on_server(&mut self, statement: &Arc<Statement>) -> Outcome {
        if matches!(local_answer(statement), Local::Known) || self.transaction.is_failed() {
            self.client.output().extend_from_slice(message::PARSE_COMPLETE);
            return Ok(());
        }
        let index = self.link(self.describing_shard(statement)).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let server = &mut self.links[index].server;
        server.put_parse("", &statement.text, &statement.types);
        server.expect(Step::Parse, true);
        server.unnamed = Some(statement.id);
        server.sync();
        let relayed = relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)?;
        if relayed.failed { Err(Failure::Told) } else { Ok(()) }
    }

    fn bind(&mut self, bind: Arc<Bind>) -> Outcome {
        let statement = self.statement_now(&bind.statement)?;
        if self.transaction.is_failed() && !statement.may_end_transaction() {
            return Err(aborted());
        }
        let wanted = statement
            .prepared
            .statements
            .first()
            .map_or(0, |planned| planned.parameters);
        let wanted = wanted.max(statement.types.len());
        if bind.parameter_count() != wanted {
            return Err(Report::protocol(format!(
                "bind message supplies {} parameters, but prepared statement \"{}\" requires {wanted}",
                bind.parameter_count(),
                bind.statement
            ))
            .into());
        }
        self.portals.insert(
            bind.portal.clone(),
            Portal {
                statement,
                bind,
                shard: None,
            },
        );
        self.client
            .output()
            .extend_from_slice(message::BIND_COMPLETE);
        Ok(())
    }

    async fn describe_portal(&mut self, name: &str) -> Outcome {
        let open = self.portal_shard(name);
        if let Some(index) = open.and_then(|shard| self.link_position(shard)) {
            let server = &mut self.links[index].server;
            message::put_describe(&mut server.wire.output, b'P', name);
            server.expect(Step::Describe, true);
            server.sync();
            let relayed = relay::exchange(&mut self.client, server).await?;
            return if relayed.failed {
                Err(Failure::Told)
            } else {
                Ok(())
            };
        }
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        let (statement, bind) = (portal.statement.clone(), portal.bind.clone());
        self.describe(&statement, Some(&bind)).await
    }

    /// Describes a statement, or a portal, by asking a shard about the client's own text.
    async fn describe(&mut self, statement: &Arc<Statement>, bind: Option<&Bind>) -> Outcome {
        if matches!(local_answer(statement), Local::Known) {
            self.describe_locally(statement, bind.is_some());
            return Ok(());
        }
        if self.transaction.is_failed() {
            return Err(aborted());
        }
        let shard = self.describing_shard(statement);
        let index = self.link(shard).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let server = &mut self.links[index].server;
        server.put_parse("", &statement.text, &statement.types);
        server.expect(Step::Parse, false);
        server.unnamed = Some(statement.id);
        match bind {
            None => message::put_describe(&mut server.wire.output, b'S', ""),
            Some(bind) => {
                message::put_bind(&mut server.wire.output, "a67_describe", "", &bind.rest);
                server.expect(Step::Bind, false);
                message::put_describe(&mut server.wire.output, b'P', "a67_describe");
            }
        }
        server.expect(Step::Describe, true);
        if bind.is_some() {
            message::put_close(&mut server.wire.output, b'P', "a67_describe");
            server.expect(Step::Close, false);
        }
        server.sync();
        let mut shape = None;
        relay::collect(&mut self.client, server, |output, frame| {
            if frame.tag == b'T' {
                shape = Some(message::shape(frame.body()));
            }
            output.extend_from_slice(&frame.bytes);
            Ok(())
        })
        .await?;
        *lock(&statement.shape) = shape;
        statement.reshaped.store(false, Ordering::Relaxed);
        self.hidden_error(index)
    }

    /// A client reads rows by the columns it was told: a statement planned anew must have the same.
    async fn check_shape(&mut self, statement: &Arc<Statement>) -> Outcome {
        if !statement.reshaped.load(Ordering::Relaxed) || self.transaction.is_failed() {
            return Ok(());
        }
        let index = self.link(self.describing_shard(statement)).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let server = &mut self.links[index].server;
        server.put_parse("", &statement.text, &statement.types);
        server.expect(Step::Parse, false);
        server.unnamed = Some(statement.id);
        message::put_describe(&mut server.wire.output, b'S', "");
        server.expect(Step::Describe, true);
        server.sync();
        let mut shape = None;
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'T' {
                shape = Some(message::shape(frame.body()));
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        if shape != *lock(&statement.shape) {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "cached plan must not change result type",
            )
            .hint("Prepare the statement again.")
            .into());
        }
        statement.reshaped.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// A FETCH is known where its cursor is, everything else on the home shard.
    fn describing_shard(&self, statement: &Statement) -> ShardId {
        let planned = statement.prepared.statements.first();
        let cursor = match planned.map(|planned| &planned.plan) {
            Some(Plan::FetchCursor { name }) => self.cursor_shard(name),
            _ => None,
        };
        cursor.unwrap_or(self.home())
    }

    /// Statements that the proxy answers have no parameters, and rows only where they say so.
    fn describe_locally(&mut self, statement: &Statement, portal: bool) {
        let planned = statement.prepared.statements.first();
        if !portal {
            let count = planned.map_or(0, |planned| planned.parameters);
            message::framed(self.client.output(), b't', |body| {
                use bytes::BufMut;
                body.put_i16(count as i16);
                for index in 0..count {
                    let declared = statement.types.get(index).copied().filter(|oid| *oid != 0);
                    body.put_u32(declared.unwrap_or(25));
                }
            });
        }
        match planned.map(|planned| &planned.plan) {
            Some(Plan::Admin(call)) => {
                message::put_row_description(self.client.output(), &[(&call.column, 2278, 4)]);
            }
            Some(Plan::Setting(SettingCommand::ShowOwn { name })) => {
                message::put_row_description(self.client.output(), &[(name, 25, -1)]);
            }
            _ => self.client.output().extend_from_slice(message::NO_DATA),
        }
    }

    async fn execute_portal(&mut self, name: &str, limit: i32) -> Outcome {
        let started = Instant::now();
        let open = self.portal_shard(name);
        if let Some(index) = open.and_then(|shard| self.link_position(shard)) {
            let (binary, statement) = self.rows_of(name);
            let server = &mut self.links[index].server;
            server.execute(name, limit, true, binary, statement);
            server.sync();
            let relayed = relay::exchange(&mut self.client, server).await?;
            return if relayed.failed {
                Err(Failure::Told)
            } else {
                Ok(())
            };
        }
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        let (statement, bind) = (portal.statement.clone(), portal.bind.clone());
        self.refresh_catalog().await?;
        let mut statement = self.renewed(&statement)?;
        while !self.enter(statement.prepared.names(), &statement.prepared.catalog).await? {
            statement = self.renewed(&statement)?;
        }
        self.check_shape(&statement).await?;
        let Some(planned) = statement.prepared.statements.first() else {
            self.client.output().extend_from_slice(message::EMPTY_QUERY);
            return Ok(());
        };
        if runs_in_transaction(&planned.plan) {
            self.begin_implicit();
        }
        let mut bound = Bound {
            types: statement.types.clone(),
            limit,
            portal: name.to_owned(),
            statement: statement.clone(),
            bind,
        };
        let request = statement.request(planned, Some(&bound));
        if bound.bind.parameter_count() > 0
            && !matches!(planned.plan, Plan::Single(_) | Plan::Admin(_))
            && !self.transaction.is_failed()
        {
            let types = self.described_types(&request).await?;
            bound.types = types;
        }
        let request = statement.request(planned, Some(&bound));
        self.note_statement(&request);
        let tier = self.execute(&request).await?;
        self.count(&request, tier, started);
        Ok(())
    }

    /// Where a portal is open. SQL cursors are portals, too.
    fn portal_shard(&self, name: &str) -> Option<ShardId> {
        match self.portals.get(name) {
            Some(portal) => portal.shard,
            None => self.cursor_shard(name),
        }
    }

    async fn close_step(&mut self, named: Named) -> Outcome {
        let shard = match &named {
            Named::Portal(name) => self.portal_shard(name),
            Named::Statement(_) => None,
        };
        if let (Some(name), Some(shard)) = (self.close(named), shard)
            && let Some(index) = self.link_position(shard)
        {
            let server = &mut self.links[index].server;
            message::put_close(&mut server.wire.output, b'P', &name);
            server.expect(Step::Close, false);
            server.sync();
            relay::exchange(&mut self.client, server).await?;
        }
        self.client
            .output()
            .extend_from_slice(message::CLOSE_COMPLETE);
        Ok(())
    }

    // ---- statements ----

    fn new_statement(&mut self, text: &str, types: &[u32]) -> Outcome<Arc<Statement>> {
        let known = lock(&self.thread.statements).get(text, types);
        if let Some(known) = known
            && self.is_current(&known)
        {
            return Ok(known);
        }
        let types: Arc<[u32]> = Arc::from(types);
        let prepared = self.plan_text(text, &types)?;
        if prepared.statements.len() > 1 {
            return Err(Report::error(
                "42601",
                "cannot insert multiple commands into a prepared statement",
            )
            .into());
        }
        let statement = Arc::new(Statement {
            // After a change of the schema servers must not take it for the one they have.
            id: lock(&self.thread.statements).new_id(),
            text: Arc::from(text),
            types,
            prepared: Arc::new(prepared),
            described: Mutex::new(None),
            shape: Mutex::new(None),
            reshaped: AtomicBool::new(false),
        });
        if self.plans_like_others() {
            lock(&self.thread.statements).put(&statement);
        }
        Ok(statement)
    }

    /// True if a statement that any session has prepared is what this one would make of its text.
    fn is_current(&mut self, statement: &Statement) -> bool {
        let prepared = &statement.prepared;
        if !self.plans_like_others()
            || !Arc::ptr_eq(&prepared.catalog, &self.catalog())
            || prepared.search_path != self.settings.search_path
        {
            return false;
        }
        // Equal paths become one, so that comparing them again costs nothing.
        self.settings.search_path = prepared.search_path.clone();
        true
    }

    /// No schema change, temporary table or test setting of its own has a part in its plans.
    fn plans_like_others(&self) -> bool {
        self.transaction.catalog.is_none()
            && self.temporary_names.is_empty()
            && !self.settings.own.force_gather
    }

    /// A statement by name, with a plan of the current catalog.
    fn statement_now(&mut self, name: &str) -> Outcome<Arc<Statement>> {
        let statement = self.statements.get(name).cloned().ok_or_else(|| {
            let what = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{name}\" does not exist")
            };
            Report::error(sqlstate::INVALID_SQL_STATEMENT_NAME, what)
        })?;
        let renewed = self.renewed(&statement)?;
        if !Arc::ptr_eq(&renewed, &statement) {
            self.statements.insert(name.to_owned(), renewed.clone());
        }
        Ok(renewed)
    }

    /// The statement, planned again if the catalog or the search path has changed.
    fn renewed(&mut self, statement: &Arc<Statement>) -> Outcome<Arc<Statement>> {
        let catalog = self.catalog();
        let same_catalog = Arc::ptr_eq(&statement.prepared.catalog, &catalog);
        let same_path = Arc::ptr_eq(&statement.prepared.search_path, &self.settings.search_path);
        if same_catalog && same_path {
            return Ok(statement.clone());
        }
        let fresh = self.new_statement(&statement.text, &statement.types)?;
        let Some(shape) = *lock(&statement.shape) else {
            return Ok(fresh);
        };
        Ok(Arc::new(Statement {
            id: fresh.id,
            text: fresh.text.clone(),
            types: fresh.types.clone(),
            prepared: fresh.prepared.clone(),
            described: Mutex::new(None),
            shape: Mutex::new(Some(shape)),
            reshaped: AtomicBool::new(true),
        }))
    }

    /// Parameter types of a bound statement, as the home shard infers them; asked once.
    pub(super) async fn described_types(&mut self, request: &Request<'_>) -> Outcome<Arc<[u32]>> {
        let Some(bound) = request.bound else {
            return Ok(Arc::from([]));
        };
        if let Some(known) = lock(&bound.statement.described).clone() {
            return Ok(known);
        }
        let home = self.home();
        let index = self.link(home).await?;
        let server = &mut self.links[index].server;
        let statement = &bound.statement;
        message::put_parse(
            &mut server.wire.output,
            "",
            &statement.text,
            &statement.types,
        );
        server.expect(Step::Parse, false);
        message::put_describe(&mut server.wire.output, b'S', "");
        server.expect(Step::Describe, true);
        server.sync();
        server.unnamed = Some(statement.id);
        let mut types = None;
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b't' {
                types = message::parameter_types(frame.body());
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        let types: Arc<[u32]> = Arc::from(types.unwrap_or_default());
        *lock(&statement.described) = Some(types.clone());
        Ok(types)
    }

    /// Whether a portal's rows may come in binary, and the id of its prepared statement, if that
    /// has a name. A cursor of SQL may be binary.
    fn rows_of(&self, portal: &str) -> (bool, Option<u64>) {
        match self.portals.get(portal) {
            None => (true, None),
            Some(portal) => {
                let id = portal.statement.id;
                let named = !portal.bind.statement.is_empty();
                (portal.bind.wants_binary(), named.then_some(id))
            }
        }
    }

    /// Parameter types for a statement of ours that uses some of the client's parameters.
    pub(super) async fn types_for_shards(&mut self, request: &Request<'_>) -> Outcome<Arc<[u32]>> {
        match request.bound {
            None => Ok(Arc::from([])),
            Some(_) => self.described_types(request).await,
        }
    }
}

impl Statement {
    /// The statement as a request.
    pub fn request<'a>(
        &'a self,
        planned: &'a automator67_planner::plan::Planned,
        bound: Option<&'a Bound>,
    ) -> Request<'a> {
        Request {
            planned,
            text: &self.text,
            whole: &self.text,
            literals: &self.prepared.normalised.literals,
            catalog: self.prepared.catalog.clone(),
            bound,
        }
    }

    fn may_end_transaction(&self) -> bool {
        self.prepared
            .statements
            .first()
            .is_none_or(|planned| matches!(planned.plan, Plan::Transaction(_) | Plan::Empty))
    }
}

/// A batch that goes to one shard as it is.
#[derive(Default)]
struct Forward {
    shard: Option<ShardId>,
    /// What Parse adds.
    statements: Vec<(String, Arc<Statement>)>,
    /// Statements that were closed, and not parsed again.
    closed: Vec<String>,
    /// For each message the statement it means.
    of_step: Vec<Option<Arc<Statement>>>,
    portals: Vec<String>,
    bound: Vec<Arc<Statement>>,
}

impl Forward {
    /// What its statements name, see [`automator67_planner::names`].
    fn names(&self) -> u64 {
        self.bound.iter().fold(0, |names, statement| names | statement.prepared.names())
    }
}

/// The last statement (not portal) that a batch describes.
fn described_statement(
    steps: &[BatchStep],
    of_step: &[Option<Arc<Statement>>],
) -> Option<Arc<Statement>> {
    let describes = |step: &BatchStep| matches!(step, BatchStep::Describe(Named::Statement(_)));
    let at = steps.iter().rposition(describes)?;
    of_step.get(at).cloned().flatten()
}

/// Who can describe a statement.
enum Local {
    /// The proxy.
    Known,
    /// A server.
    AskServer,
}

fn local_answer(statement: &Statement) -> Local {
    match statement
        .prepared
        .statements
        .first()
        .map(|planned| &planned.plan)
    {
        // `SELECT set_config(...)` is a setting that has a row.
        Some(Plan::Setting(SettingCommand::Set { replay, .. })) if replay.starts_with("SELECT") => {
            Local::AskServer
        }
        None | Some(Plan::Empty | Plan::Transaction(_) | Plan::Setting(_) | Plan::Admin(_)) => {
            Local::Known
        }
        Some(_) => Local::AskServer,
    }
}

/// False for statements that must not, or need not, be inside a transaction of ours.
fn runs_in_transaction(plan: &Plan) -> bool {
    match plan {
        Plan::Transaction(_) | Plan::Setting(_) | Plan::Empty => false,
        // A server refuses a cursor that would end at once.
        Plan::DeclareCursor { .. } => false,
        Plan::Ddl(ddl) => !ddl.outside_transaction,
        _ => true,
    }
}

fn decode(frame: &Frame) -> Outcome<BatchStep> {
    Ok(match frame.tag {
        b'P' => BatchStep::Parse(message::parse(frame.body())?),
        b'B' => BatchStep::Bind(Arc::new(message::bind(frame.body())?)),
        b'D' => BatchStep::Describe(message::named(frame.body(), "DESCRIBE")?),
        b'C' => BatchStep::Close(message::named(frame.body(), "CLOSE")?),
        b'E' => {
            let (portal, limit) = message::execute(frame.body())?;
            BatchStep::Execute { portal, limit }
        }
        _ => {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "the function call protocol is not supported",
            )
            .hint("Call the function with SELECT.")
            .into());
        }
    })
}

fn no_portal(name: &str) -> Failure {
    Report::error(
        sqlstate::INVALID_CURSOR_NAME,
        format!("portal \"{name}\" does not exist"),
    )
    .into()
}

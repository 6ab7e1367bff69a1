//! Prepared statements: made by Parse, planned anew when the schema changes, described by a shard.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicBool, Ordering},
};

use automator67_planner::{
    catalog::ShardId,
    plan::{Plan, SettingCommand},
};

use super::{
    Session,
    execute::{aborted, ends_failed_transaction},
    extended::Bound,
    planning::{Prepared, Request},
};
use crate::{
    error::{Failure, Outcome, Report, Routine, sqlstate},
    frame::Frame,
    message::{self, Bind},
    process::lock,
    server::{Answer, Server, relay, statement_name},
    types,
};

/// A portal of ours, beside the client's.
const PROBE_PORTAL: &str = "a67_probe";

/// A prepared statement of the session.
pub struct Statement {
    /// Names it on every server connection.
    pub id: u64,
    /// Its name there.
    pub name: Arc<str>,
    /// SQL.
    pub text: Arc<str>,
    /// Declared parameter types; 0 is unspecified.
    pub types: Arc<[u32]>,
    /// Its plan and what that was made with.
    pub prepared: Arc<Prepared>,
    /// Parameter types as the home shard described them.
    described: Mutex<Option<Arc<[u32]>>>,
    /// A server has parsed it with this plan's schema: it is valid.
    pub parsed: AtomicBool,
    /// RowDescription or NoData, as the home shard described it.
    columns: Mutex<Option<Frame>>,
    /// Its result columns as a client was told, see [`message::shape`].
    pub shape: Mutex<Option<u64>>,
    /// It was planned anew since: whether the columns are still the same must be looked up.
    pub reshaped: AtomicBool,
}

impl Session {
    /// Lets a server find what is wrong with a statement, or say ParseComplete.
    pub(super) async fn parse_on_server(&mut self, statement: &Arc<Statement>) -> Outcome {
        if matches!(local_answer(statement), Local::Known) || self.transaction.is_failed() {
            self.client
                .output()
                .extend_from_slice(message::PARSE_COMPLETE);
            return Ok(());
        }
        let index = self.link(self.describing_shard(statement)).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let server = &mut self.links[index].server;
        server.parse_statement(
            statement.id,
            &statement.text,
            &statement.types,
            Answer::Shown,
        );
        server.sync();
        let relayed = relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)?;
        relayed.told()?;
        statement.parsed.store(true, Ordering::Relaxed);
        Ok(())
    }

    /// Lets a server read the parameters: a value that it cannot read is an error of Bind.
    pub(super) async fn bind_on_server(
        &mut self,
        statement: &Arc<Statement>,
        bind: &Bind,
    ) -> Outcome {
        let planned = statement.prepared.statements.first();
        // New rows are read by their shards anyway: no round trip more for them.
        let inserts = planned.is_some_and(|planned| matches!(planned.plan, Plan::Insert(_)));
        let skip = inserts || matches!(local_answer(statement), Local::Known);
        if skip || bind.parameter_count() == 0 || self.transaction.is_failed() {
            return Ok(());
        }
        let index = self.link(self.describing_shard(statement)).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let server = &mut self.links[index].server;
        if !server.has_unnamed(statement.id) {
            queue_parse(server, statement, None);
        }
        server.bind(PROBE_PORTAL, "", &bind.rest, Answer::Hidden);
        server.close_portal(PROBE_PORTAL, Answer::Hidden);
        server.sync();
        relay::exchange(&mut self.client, server).await?;
        let failed = self.links[index].server.hidden_error.take();
        failed.map_or(Ok(()), |frame| Err(Failure::Shard(frame)))
    }

    /// Describes a statement, or a portal, by asking a shard about the client's own text.
    pub(super) async fn describe(
        &mut self,
        statement: &Arc<Statement>,
        bind: Option<&Bind>,
    ) -> Outcome {
        if matches!(local_answer(statement), Local::Known) {
            self.describe_locally(statement, bind.is_some());
            return Ok(());
        }
        if self.transaction.is_failed() {
            return Err(aborted());
        }
        if let Some(bind) = bind
            && self.plans_like_others()
            && let Some(known) = lock(&statement.columns).as_ref()
        {
            let output = self.client.output();
            message::put_columns_in(output, known, |column| bind.result_format(column));
            return Ok(());
        }
        let shard = self.describing_shard(statement);
        let index = self.link(shard).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let planned = statement.prepared.statements.first();
        let in_place = self
            .described_in_place(planned.map(|planned| &planned.plan))
            .await?;
        let server = &mut self.links[index].server;
        queue_parse(server, statement, in_place.as_deref());
        match bind {
            None => server.describe_statement("", Answer::Shown),
            Some(bind) => {
                server.bind(PROBE_PORTAL, "", &bind.rest, Answer::Hidden);
                server.describe_portal(PROBE_PORTAL, Answer::Shown);
                server.close_portal(PROBE_PORTAL, Answer::Hidden);
            }
        }
        server.sync();
        let mut shape = None;
        let mut columns = None;
        relay::collect(&mut self.client, server, |output, frame| {
            if frame.tag == b'T' {
                shape = Some(message::shape(frame.body()));
            }
            output.extend_from_slice(&frame.bytes);
            if matches!(frame.tag, b'T' | b'n') {
                columns = Some(frame);
            }
            Ok(())
        })
        .await?;
        if planned.is_some_and(|planned| runs_on_several(&planned.plan)) {
            *lock(&statement.columns) = columns;
        }
        *lock(&statement.shape) = shape;
        statement.reshaped.store(false, Ordering::Relaxed);
        self.hidden_error(index)
    }

    /// Whether a statement returns rows, as the shard says that would describe it.
    pub(super) async fn has_columns(&mut self, statement: &Arc<Statement>) -> Outcome<bool> {
        let shape = self.ask_shape(statement).await?;
        Ok(shape.is_some())
    }

    /// A client reads rows by the columns it was told: a statement planned anew must have the same.
    pub(super) async fn check_shape(&mut self, statement: &Arc<Statement>) -> Outcome {
        if !statement.reshaped.load(Ordering::Relaxed) || self.transaction.is_failed() {
            return Ok(());
        }
        let shape = self.ask_shape(statement).await?;
        if shape != *lock(&statement.shape) {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "cached plan must not change result type",
            )
            .routine(Routine::RevalidateCachedQuery)
            .hint("Prepare the statement again.")
            .into());
        }
        statement.reshaped.store(false, Ordering::Relaxed);
        Ok(())
    }

    /// [`message::shape`] of a statement's columns; `None` where it has none.
    async fn ask_shape(&mut self, statement: &Arc<Statement>) -> Outcome<Option<u64>> {
        let index = self.link(self.describing_shard(statement)).await?;
        types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        let planned = statement.prepared.statements.first();
        let in_place = self
            .described_in_place(planned.map(|planned| &planned.plan))
            .await?;
        let server = &mut self.links[index].server;
        queue_parse(server, statement, in_place.as_deref());
        server.describe_statement("", Answer::Shown);
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
        Ok(shape)
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

    pub(super) async fn new_statement(
        &mut self,
        text: &str,
        types: &[u32],
    ) -> Outcome<Arc<Statement>> {
        let known = lock(&self.thread.statements).get(text, types);
        if let Some(known) = known
            && self.is_current(&known)
        {
            return Ok(known);
        }
        let types: Arc<[u32]> = Arc::from(types);
        let prepared = self.plan_text(text, &types).await?;
        if prepared.statements.len() > 1 {
            return Err(Report::error(
                sqlstate::SYNTAX_ERROR,
                "cannot insert multiple commands into a prepared statement",
            )
            .into());
        }
        // After a change of the schema servers must not take it for the one they have.
        let id = lock(&self.thread.statements).new_id();
        let statement = Arc::new(Statement {
            id,
            name: Arc::from(statement_name(id)),
            text: Arc::from(text),
            types,
            prepared: Arc::new(prepared),
            described: Mutex::new(None),
            columns: Mutex::new(None),
            parsed: AtomicBool::new(false),
            shape: Mutex::new(None),
            reshaped: AtomicBool::new(false),
        });
        if self.plans_like_others() {
            lock(&self.thread.statements).put(&statement);
        }
        Ok(statement)
    }

    /// A text that we cannot read is shown to the home shard: it says where the error is.
    pub(super) async fn explain_syntax(&mut self, failure: Failure, text: &str) -> Failure {
        if failure.sqlstate() != sqlstate::SYNTAX_ERROR {
            return failure;
        }
        let told = async {
            let index = self.link(self.home()).await?;
            let server = &mut self.links[index].server;
            server.parse(text, &[], Answer::Shown);
            server.sync();
            relay::collect(&mut self.client, server, |_, _| Ok(())).await
        };
        match told.await {
            Err(told) if told.sqlstate() == sqlstate::SYNTAX_ERROR => told,
            _ => failure,
        }
    }

    /// True if a statement that any session has prepared is what this one would make of its text.
    pub(super) fn is_current(&mut self, statement: &Statement) -> bool {
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
            && self.temporary.objects().is_empty()
            && self.settings.own.plans_like_others()
    }

    /// A statement by name, if it needs no other plan.
    pub(super) fn statement_as_planned(&self, name: &str) -> Option<Arc<Statement>> {
        let statement = self.statements.get(name)?;
        self.is_planned_now(statement).then(|| statement.clone())
    }

    /// Its catalog, search path and temporary objects are those of now.
    fn is_planned_now(&self, statement: &Statement) -> bool {
        let prepared = &statement.prepared;
        let temporary = self.temporary.objects();
        Arc::ptr_eq(&prepared.catalog, &self.catalog())
            && Arc::ptr_eq(&prepared.search_path, &self.settings.search_path)
            && (prepared.temporary.is_empty() && temporary.is_empty()
                || Arc::ptr_eq(&prepared.temporary, temporary))
    }

    /// A statement by name, with a plan of the current catalog.
    pub(super) async fn statement_now(&mut self, name: &str) -> Outcome<Arc<Statement>> {
        let statement = self.statements.get(name).cloned().ok_or_else(|| {
            let what = if name.is_empty() {
                "unnamed prepared statement does not exist".to_owned()
            } else {
                format!("prepared statement \"{name}\" does not exist")
            };
            Report::error(sqlstate::INVALID_SQL_STATEMENT_NAME, what)
        })?;
        let renewed = self.renewed(&statement).await?;
        if !Arc::ptr_eq(&renewed, &statement) {
            self.statements.insert(name.to_owned(), renewed.clone());
        }
        Ok(renewed)
    }

    /// The statement, planned again if the catalog, the search path or temporary objects have changed.
    pub(super) async fn renewed(&mut self, statement: &Arc<Statement>) -> Outcome<Arc<Statement>> {
        if self.is_planned_now(statement) {
            return Ok(statement.clone());
        }
        let fresh = self
            .new_statement(&statement.text, &statement.types)
            .await?;
        let Some(shape) = *lock(&statement.shape) else {
            return Ok(fresh);
        };
        Ok(Arc::new(Statement {
            id: fresh.id,
            name: fresh.name.clone(),
            text: fresh.text.clone(),
            types: fresh.types.clone(),
            prepared: fresh.prepared.clone(),
            described: Mutex::new(None),
            columns: Mutex::new(None),
            parsed: AtomicBool::new(false),
            shape: Mutex::new(Some(shape)),
            reshaped: AtomicBool::new(true),
        }))
    }

    /// Parameter types of a bound statement, as the home shard infers them; asked once.
    pub(super) async fn described_types(&mut self, request: &Request<'_>) -> Outcome<Arc<[u32]>> {
        match request.bound {
            None => Ok(Arc::from([])),
            Some(bound) => self.types_of(&bound.statement).await,
        }
    }

    /// Parameter types of a statement, as the home shard infers them; asked once.
    pub(super) async fn types_of(&mut self, statement: &Statement) -> Outcome<Arc<[u32]>> {
        if let Some(known) = lock(&statement.described).clone() {
            return Ok(known);
        }
        let home = self.home();
        let index = self.link(home).await?;
        let server = &mut self.links[index].server;
        queue_parse(server, statement, None);
        server.describe_statement("", Answer::Shown);
        server.sync();
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

    /// Types of its parameters, as far as they are known without asking.
    pub fn known_types(&self) -> Arc<[u32]> {
        let described = lock(&self.described).clone();
        described.unwrap_or_else(|| self.types.clone())
    }

    pub fn may_end_transaction(&self) -> bool {
        self.prepared
            .statements
            .first()
            .is_none_or(|planned| ends_failed_transaction(&planned.plan))
    }
}

/// Its columns are those of the client's text, whoever runs it.
fn runs_on_several(plan: &Plan) -> bool {
    matches!(
        plan,
        Plan::Scatter(_) | Plan::Gather(_) | Plan::Insert(_) | Plan::Multi(_)
    )
}

/// Who can describe a statement.
pub enum Local {
    /// The proxy.
    Known,
    /// A server.
    AskServer,
}

/// Who describes it.
pub fn local_answer(statement: &Statement) -> Local {
    match statement
        .prepared
        .statements
        .first()
        .map(|planned| &planned.plan)
    {
        // `SELECT set_config(...)` is a setting that has a row.
        Some(Plan::Setting(SettingCommand::SetConfig { .. } | SettingCommand::Configure(_))) => {
            Local::AskServer
        }
        None | Some(Plan::Empty | Plan::Transaction(_) | Plan::Setting(_) | Plan::Admin(_)) => {
            Local::Known
        }
        Some(_) => Local::AskServer,
    }
}

/// Parse of a client's statement, or of the text that stands for it.
pub(super) fn queue_parse(server: &mut Server, statement: &Statement, in_place: Option<&str>) {
    match in_place {
        None => server.parse_statement(
            statement.id,
            &statement.text,
            &statement.types,
            Answer::Hidden,
        ),
        Some(text) => server.parse(text, &statement.types, Answer::Hidden),
    }
}

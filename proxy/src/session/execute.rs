//! Each plan to the step that runs it, and the step for one shard.

use automator67_planner::{
    catalog::{MadeSettings, ShardId},
    plan::{Plan, Target, TransactionCommand},
};

use super::{
    Session,
    extended::Bound,
    incoming::Incoming,
    planning::{Request, Resolved},
    portals::{queue_bind, streams},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    failpoint, message,
    server::{
        Answer, Server,
        relay::{self, Relayed},
    },
    telemetry::Tier,
    types,
};

impl Session {
    /// Runs one statement to its CommandComplete. Returns the tier that answered it.
    pub(super) async fn execute(&mut self, request: &Request<'_>) -> Outcome<Tier> {
        self.expect_residue(request.planned.session.residue);
        if request.planned.session.pins && request.planned.kind == "ddl" {
            self.temporary.expect_change();
        }
        let indexed = request.planned.session.indexed && !self.transaction.is_failed();
        if indexed {
            // What it changes and what its indexes are told are one transaction.
            self.begin_implicit();
            Box::pin(self.borrow_for_indexes()).await?;
        }
        let before = self
            .settings_before(request.planned.session.residue, request)
            .await?;
        let tier = self.execute_plan(request).await?;
        if let Some(before) = before {
            Box::pin(self.adopt_settings(before)).await?;
        }
        if indexed {
            Box::pin(self.apply_index_changes()).await?;
        }
        if request.planned.session.sets_sequence {
            self.sequences_were_set(request.planned, request.text)
                .await?;
        }
        Ok(tier)
    }

    pub(super) async fn execute_plan(&mut self, request: &Request<'_>) -> Outcome<Tier> {
        let planned = request.planned;
        if self.transaction.is_failed() && !ends_failed_transaction(&planned.plan) {
            return Err(aborted());
        }
        if request.bound.is_some_and(|bound| bound.limit > 0)
            && !(streams(&planned.plan) && planned.session.residue.settings == MadeSettings::None)
        {
            return Box::pin(self.run_and_keep(request)).await;
        }
        self.want_snapshot_for(&planned.plan);
        let _timer = match &planned.plan {
            Plan::Scatter(_) | Plan::Gather(_) | Plan::InsertSelect(_) => self.start_timer(),
            _ => None,
        };
        if let Some(lookup) = &planned.lookup
            && Box::pin(self.run_by_index(lookup, request)).await?
        {
            return Ok(Tier::Single);
        }
        match &planned.plan {
            Plan::Empty => {
                self.client.output().extend_from_slice(message::EMPTY_QUERY);
                Ok(Tier::Proxy)
            }
            Plan::Single(target) => self.single(target, request).await,
            Plan::Multi(multi) => self.multi(multi, request).await,
            Plan::Insert(insert) => self.insert(insert, request).await,
            Plan::InsertSelect(insert) => self.insert_select(insert, request).await,
            Plan::Scatter(scatter) => self.scatter(scatter, request).await,
            Plan::Gather(gather) => self.gather(gather, request).await,
            Plan::CopyIn(copy) => self.copy_in(copy, request).await,
            Plan::CopyOut(copy) => self.copy_out(copy, request).await,
            Plan::Ddl(ddl) => self.ddl(ddl, request).await,
            Plan::CreateTableAs { home, elsewhere } => {
                self.create_table_as(home, elsewhere, request).await
            }
            plan @ (Plan::WithWrites(_) | Plan::KeyUpdate(_) | Plan::MergeSteps(_)) => {
                self.in_steps(plan, request).await
            }
            Plan::Admin(call) => self.admin(call, request).await,
            Plan::Transaction(command) => self.transaction_command(command).await,
            Plan::Setting(command) => self.setting(command, request).await,
            Plan::DeclareCursor { name, query, hold } => {
                if !hold && !self.transaction.is_open() {
                    // A server looks at the query first, and then refuses it.
                    self.run_single(request, self.home()).await?;
                    return Err(needs_block("DECLARE CURSOR"));
                }
                self.declare_cursor(name, query, *hold, request).await
            }
            Plan::FetchCursor { name } => self.fetch_cursor(name, request).await,
            Plan::CloseCursor { name } => self.close_cursor(name.as_deref(), request).await,
            Plan::Sequences(uses) => self.with_sequences(uses, request).await,
            Plan::Asker(calls) => self.with_asker(calls, request).await,
            Plan::Prepare(prepare) => self.prepare_in_sql(prepare, request).await,
            Plan::Deallocate { name } => self.deallocate_in_sql(name.as_deref(), request).await,
            Plan::Execute(execute) => self.execute_in_sql(execute, request).await,
            Plan::Explain(explain) => self.explain(explain, request).await,
        }
    }

    async fn single(&mut self, target: &Target, request: &Request<'_>) -> Outcome<Tier> {
        match target {
            Target::Home if self.has_other_clock(self.home(), &request.planned.session) => {
                return self.at_one_time(request).await;
            }
            Target::Home => self.run_single(request, self.home()).await?,
            Target::AnyCopy => self.run_on_any_copy(request).await?,
            Target::Key(route) => match self.resolve_surely(route, request).await? {
                Resolved::One(shard) if self.has_other_clock(shard, &request.planned.session) => {
                    return self.at_one_time(request).await;
                }
                Resolved::One(shard) => self.run_single(request, shard).await?,
                Resolved::Several(_) | Resolved::Unknown => {
                    let planned = self.plan_for_many(request).await?;
                    if matches!(planned.plan, Plan::Single(Target::Key(_))) {
                        return Err(unreadable_key());
                    }
                    let bound = self.bound_with_types(request).await?;
                    let request = Request {
                        bound: bound.as_ref(),
                        ..request.with_plan(&planned)
                    };
                    return Box::pin(self.execute_plan(&request)).await;
                }
            },
        }
        Ok(Tier::Single)
    }

    /// A statement on another shard than the one whose time is the transaction's.
    async fn at_one_time(&mut self, request: &Request<'_>) -> Outcome<Tier> {
        let planned = self.plan_for_time(request).await?;
        if matches!(planned.plan, Plan::Single(_)) {
            return Err(no_one_time());
        }
        let bound = self.bound_with_types(request).await?;
        let request = Request {
            bound: bound.as_ref(),
            ..request.with_plan(&planned)
        };
        Box::pin(self.execute_plan(&request)).await
    }

    /// The client's parameters with their types as a server sees them: a statement of ours may not
    /// say what they are.
    async fn bound_with_types(&mut self, request: &Request<'_>) -> Outcome<Option<Bound>> {
        let Some(bound) = request.bound else {
            return Ok(None);
        };
        let types = self.described_types(request).await?;
        Ok(Some(Bound {
            bind: bound.bind.clone(),
            types,
            limit: bound.limit,
            portal: bound.portal.clone(),
            name: bound.name.clone(),
            statement: bound.statement.clone(),
        }))
    }

    /// Any shard can answer: one that cannot be reached is passed over.
    async fn run_on_any_copy(&mut self, request: &Request<'_>) -> Outcome {
        let mut tried = Vec::new();
        loop {
            let shard = self.any_copy();
            match self.link(shard).await {
                Err(failure)
                    if failure.sqlstate() == sqlstate::CONNECTION_FAILURE
                        && !tried.contains(&shard)
                        && !self.transaction.is_open() =>
                {
                    tried.push(shard);
                }
                Err(failure) => return Err(failure),
                Ok(_) => return self.run_single(request, shard).await,
            }
        }
    }

    /// The client's statement on one shard, its answer passed on as it is.
    pub(super) async fn run_single(&mut self, request: &Request<'_>, shard: ShardId) -> Outcome {
        self.run_text(request, request.text, shard).await
    }

    /// `text` in the place of the client's statement on one shard.
    pub(super) async fn run_text(
        &mut self,
        request: &Request<'_>,
        text: &str,
        shard: ShardId,
    ) -> Outcome {
        let used = self.is_used(shard);
        let index = self.link(shard).await?;
        let (index, relayed) = match self.send_text(index, used, request, text).await {
            Ok(relayed) => (index, relayed),
            Err(failure) => match Box::pin(self.link_again(index)).await {
                Some(index) => {
                    let sent = Box::pin(self.send_text(index, used, request, text));
                    (index, sent.await?)
                }
                None => return Err(failure),
            },
        };
        self.process
            .telemetry
            .bytes_to_clients
            .increment(relayed.bytes);
        self.hidden_error(index)?;
        relayed.told()?;
        if let Some(bound) = request.bound {
            self.note_open(bound, shard);
        }
        if request.planned.session.changes_catalog {
            self.change_schema().await?;
        }
        Ok(())
    }

    async fn send_text(
        &mut self,
        index: usize,
        used: bool,
        request: &Request<'_>,
        text: &str,
    ) -> Outcome<Relayed> {
        self.links[index].used = used || request.planned.names != 0;
        self.note_effects(index, request.planned.session)?;
        types::learn_for_shard(&self.links[index].server.shard, request.parameter_types()).await?;
        let server = &mut self.links[index].server;
        queue(server, text, request.bound, Answer::Shown);
        failpoint::reach("statement.before_send", Some(server)).await;
        self.exchange_with_copy(index, request.bound.is_some())
            .await
    }

    /// An exchange in which the shard may ask for COPY data.
    pub(super) async fn exchange_with_copy(
        &mut self,
        index: usize,
        extended: bool,
    ) -> Outcome<Relayed> {
        let mut relayed = relay::exchange(&mut self.client, &mut self.links[index].server).await?;
        while relayed.copy_in {
            self.client.flush().await?;
            self.pass_copy_data(index, extended).await?;
            let more = relay::exchange(&mut self.client, &mut self.links[index].server).await?;
            relayed.failed = relayed.failed.or(more.failed);
            relayed.bytes += more.bytes;
            relayed.copy_in = more.copy_in;
        }
        Ok(relayed)
    }

    /// Passes the client's CopyData to one shard until CopyDone or CopyFail.
    async fn pass_copy_data(&mut self, index: usize, extended: bool) -> Outcome {
        loop {
            let frame = match self.copy_message().await? {
                Incoming::Message(frame) => frame,
                Incoming::Refused(b'd', report) => {
                    return self.refuse_copy_data(index, extended, report).await;
                }
                Incoming::Refused(tag, _) => return Err(unexpected_in_copy(tag)),
            };
            let server = &mut self.links[index].server;
            match frame.tag {
                b'd' | b'c' | b'f' => server.copy_message(&frame.bytes),
                // The server ignores these while it copies, too.
                b'H' | b'S' => continue,
                other => return Err(unexpected_in_copy(other)),
            }
            if frame.tag == b'd' {
                relay::send_if_high(server).await?;
                continue;
            }
            if extended {
                // The Sync of the batch was swallowed by the copy; the client sends another.
                self.sync_taken_by_copy = self.batch.is_synced();
                self.links[index].server.sync_behind_copy();
            }
            return Ok(());
        }
    }

    /// A piece of the client's data must not be held: the shard keeps nothing of the copy, and what
    /// follows is read to its end and not taken for something else.
    async fn refuse_copy_data(
        &mut self,
        index: usize,
        extended: bool,
        report: Box<Report>,
    ) -> Outcome {
        loop {
            match self.copy_message().await? {
                Incoming::Refused(b'd', _) => {}
                Incoming::Refused(tag, _) => return Err(unexpected_in_copy(tag)),
                Incoming::Message(frame) => match frame.tag {
                    b'd' | b'H' | b'S' => {}
                    b'c' | b'f' => break,
                    other => return Err(unexpected_in_copy(other)),
                },
            }
        }
        self.sync_taken_by_copy |= extended && self.batch.is_synced();
        let server = &mut self.links[index].server;
        server.copy_fail("a message is too large");
        if extended {
            server.sync_behind_copy();
        }
        relay::send(server).await?;
        relay::throw_away(&mut self.client, server).await?;
        Err(Failure::Report(report))
    }
}

/// Queues a statement: as a simple query, or with its parameters as one extended batch.
pub fn queue(server: &mut Server, text: &str, bound: Option<&Bound>, answer: Answer) {
    match bound {
        None => server.query(text, answer),
        Some(bound) => {
            server.parse(text, &bound.types, Answer::Hidden);
            queue_bind(server, &bound.portal, "", &bound.bind.rest, Answer::Hidden);
            let binary = bound.bind.wants_binary();
            server.execute(&bound.portal, bound.limit, answer, binary, None);
            server.sync();
        }
    }
}

/// The error of a statement that makes no sense outside of a transaction.
pub fn needs_block(command: &str) -> Failure {
    Report::error(
        sqlstate::NO_ACTIVE_SQL_TRANSACTION,
        format!("{command} can only be used in transaction blocks"),
    )
    .into()
}

/// What a failed transaction does not refuse.
pub fn ends_failed_transaction(plan: &Plan) -> bool {
    matches!(
        plan,
        Plan::Transaction(
            TransactionCommand::Commit { .. }
                | TransactionCommand::Rollback { .. }
                | TransactionCommand::RollbackTo(_)
                | TransactionCommand::Prepare
        ) | Plan::Empty
    )
}

/// The answer to everything else in a failed transaction.
pub fn aborted() -> Failure {
    Report::error(
        sqlstate::IN_FAILED_SQL_TRANSACTION,
        "current transaction is aborted, commands ignored until end of transaction block",
    )
    .into()
}

/// CopyData, CopyDone and CopyFail are all that may come during COPY FROM STDIN. After anything else
/// nobody knows where the client is: the session ends, as it does on a server. A client that says
/// goodbye has left.
pub fn unexpected_in_copy(tag: u8) -> Failure {
    if tag == b'X' {
        return Failure::ClientGone;
    }
    let message = format!("unexpected message type 0x{tag:02X} during COPY from stdin");
    Failure::Farewell(Box::new(Report::protocol(message)))
}

fn no_one_time() -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "the transaction's time cannot be put into the statement",
    )
    .detail("The transaction began on another shard, whose time is that of the transaction.")
    .hint("Run the statement first, or write the time into it.")
    .into()
}

pub fn unreadable_key() -> Failure {
    Report::error(sqlstate::FEATURE_NOT_SUPPORTED, "the value of the shard key cannot be determined")
        .detail("The statement compares the shard key with a value whose type or spelling the proxy does not know for certain.")
        .hint("Cast the parameter to the type of the shard key, or write the value in its plain form.")
        .into()
}

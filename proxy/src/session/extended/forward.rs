//! A batch whose statements all belong to one shard goes there in one write, and its answers come
//! back as they are.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use automator67_planner::{
    catalog::{MadeSettings, Residue, ShardId},
    plan::{Plan, Planned},
};

use super::{
    super::{
        Session,
        portals::{Progress, queue_bind},
        statements::{Local, Statement, local_answer, queue_parse},
    },
    BatchStep, Bound, End,
};
use crate::{
    error::{Failure, Outcome, sqlstate},
    failpoint,
    message::{self, Bind, Named},
    process::lock,
    server::{
        Answer,
        relay::{self, Relayed},
        statement_name,
    },
    telemetry::Tier,
    types,
};

/// A batch that goes to one shard as it is.
#[derive(Default)]
pub struct Forward {
    shard: Option<ShardId>,
    /// What Parse adds.
    statements: Vec<(String, Arc<Statement>)>,
    /// Statements that were closed, and not parsed again.
    closed: Vec<String>,
    /// For each message the statement it means.
    of_step: Vec<Option<Arc<Statement>>>,
    portals: Vec<String>,
    pub bound: Vec<Arc<Statement>>,
    /// The unnamed portal stays open behind the batch: it has a name of its own on the server.
    keeps_unnamed: bool,
}

impl Forward {
    /// What its statements name, see [`automator67_planner::names`].
    pub fn names(&self) -> u64 {
        self.bound
            .iter()
            .fold(0, |names, statement| names | statement.prepared.names())
    }

    /// The plans of what is executed.
    fn planned(&self) -> impl Iterator<Item = &Planned> {
        let statements = self.bound.iter();
        statements
            .flat_map(|statement| &statement.prepared.statements)
            .map(|planned| &**planned)
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

/// Why a batch does not go to one shard.
pub(super) enum Unforwarded {
    /// It runs step by step.
    Steps,
    /// Planning has been called off, and would be again.
    Stopped(Failure),
}

impl Unforwarded {
    fn of(failure: Failure) -> Unforwarded {
        let stops = [
            sqlstate::PROGRAM_LIMIT_EXCEEDED,
            sqlstate::QUERY_CANCELED,
            sqlstate::INSUFFICIENT_RESOURCES,
        ];
        match failure {
            Failure::ClientGone => Unforwarded::Stopped(failure),
            other if stops.contains(&other.sqlstate()) => Unforwarded::Stopped(other),
            _ => Unforwarded::Steps,
        }
    }
}

impl Session {
    /// Plans a batch that one shard can have all of.
    pub(super) async fn forward_target(
        &mut self,
        steps: &[BatchStep],
        end: End,
    ) -> Result<Forward, Unforwarded> {
        if self.transaction.is_failed() {
            return Err(Unforwarded::Steps);
        }
        let mut forward = Forward {
            keeps_unnamed: self.keeps_unnamed(steps, end),
            ..Forward::default()
        };
        let binds = steps.iter().any(|step| {
            matches!(
                step,
                BatchStep::Bind(_)
                    | BatchStep::Execute { .. }
                    | BatchStep::Describe(Named::Portal(_))
            )
        });
        if binds && end == End::Flush {
            return Err(Unforwarded::Steps);
        }
        for step in steps {
            match step {
                BatchStep::Parse(parse) => {
                    let again = |(name, _): &(String, Arc<Statement>)| *name == parse.name;
                    let again = !parse.name.is_empty() && forward.statements.iter().any(again);
                    if again || self.is_taken(&parse.name) {
                        return Err(Unforwarded::Steps);
                    }
                    let statement = self
                        .new_statement(&parse.text, &parse.parameter_types)
                        .await
                        .map_err(Unforwarded::of)?;
                    if matches!(local_answer(&statement), Local::Known) {
                        return Err(Unforwarded::Steps);
                    }
                    forward.closed.retain(|closed| *closed != parse.name);
                    forward
                        .statements
                        .push((parse.name.clone(), statement.clone()));
                    forward.of_step.push(Some(statement));
                    continue;
                }
                BatchStep::Bind(bind) => {
                    if self.refuse_taken_portal(&bind.portal).is_err() {
                        return Err(Unforwarded::Steps);
                    }
                    let statement = self.find_for_forward(&forward, &bind.statement).await?;
                    let shard = self.forward_shard(&statement, bind);
                    let shard = shard.ok_or(Unforwarded::Steps)?;
                    if *forward.shard.get_or_insert(shard) != shard {
                        return Err(Unforwarded::Steps);
                    }
                    forward.portals.push(bind.portal.clone());
                    forward.bound.push(statement.clone());
                    forward.of_step.push(Some(statement));
                    continue;
                }
                BatchStep::Execute { portal, .. } | BatchStep::Describe(Named::Portal(portal)) => {
                    // It was mostly bound by the message before.
                    if forward.portals.last() != Some(portal) && !forward.portals.contains(portal) {
                        let shard = self.portal_shard(portal).ok_or(Unforwarded::Steps)?;
                        if *forward.shard.get_or_insert(shard) != shard {
                            return Err(Unforwarded::Steps);
                        }
                    }
                }
                BatchStep::Describe(Named::Statement(name)) => {
                    let statement = self.find_for_forward(&forward, name).await?;
                    if matches!(local_answer(&statement), Local::Known) {
                        return Err(Unforwarded::Steps);
                    }
                    forward.of_step.push(Some(statement));
                    continue;
                }
                BatchStep::Close(Named::Statement(name)) => forward.closed.push(name.clone()),
                BatchStep::Close(Named::Portal(name)) => {
                    forward.portals.retain(|bound| bound != name);
                }
            }
            forward.of_step.push(None);
        }
        Ok(forward)
    }

    /// Statements of ours may take the unnamed portal of the server before the client is done with it.
    fn keeps_unnamed(&self, steps: &[BatchStep], end: End) -> bool {
        let in_parts = |step: &BatchStep| matches!(step, BatchStep::Execute { portal, limit } if portal.is_empty() && *limit > 0);
        let goes_on = self.transaction.is_explicit() || end != End::Sync;
        self.portal_shard("").is_some() || goes_on && steps.iter().any(in_parts)
    }

    /// What a portal of the batch is called on the server.
    fn forwarded_name<'n>(&self, name: &'n str, keeps_unnamed: bool) -> &'n str {
        if keeps_unnamed {
            self.name_there(name)
        } else {
            name
        }
    }

    /// The statement that has the name at this point of the batch.
    async fn find_for_forward(
        &mut self,
        forward: &Forward,
        name: &str,
    ) -> Result<Arc<Statement>, Unforwarded> {
        if forward.closed.iter().any(|closed| closed == name) {
            return Err(Unforwarded::Steps);
        }
        let new = forward
            .statements
            .iter()
            .rev()
            .find(|(known, _)| known == name);
        let planned = || self.statement_as_planned(name);
        match new.map(|(_, statement)| statement.clone()).or_else(planned) {
            Some(statement) => Ok(statement),
            None => self.statement_now(name).await.map_err(Unforwarded::of),
        }
    }

    /// The one shard of a bound statement, if it has one and leaves nothing behind there.
    pub(super) fn forward_shard(
        &self,
        statement: &Arc<Statement>,
        bind: &Arc<Bind>,
    ) -> Option<ShardId> {
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
        if effects.pins
            || effects.changes_catalog
            || effects.reads_sequence
            || effects.sets_sequence
            || effects.indexed
            || effects.residue.settings != MadeSettings::None
        {
            return None;
        }
        let bound = Bound {
            bind: bind.clone(),
            types: statement.types.clone(),
            limit: 0,
            portal: String::new(),
            name: String::new(),
            statement: statement.clone(),
        };
        let request = statement.request(planned, Some(&bound));
        let shard = self.resolve_now(target, &request).ok().flatten();
        shard.filter(|shard| !self.has_other_clock(*shard, &effects))
    }

    pub(super) async fn forward(
        &mut self,
        forward: Forward,
        steps: Vec<BatchStep>,
        end: End,
    ) -> Outcome {
        let started = Instant::now();
        if end == End::Full && forward.shard.is_some() {
            // What follows up to Sync is the same transaction.
            self.begin_implicit();
        }
        let shard = forward.shard.unwrap_or_else(|| self.any_copy());
        let used = self.is_used(shard);
        self.residue = Residue::NONE;
        for planned in forward.planned() {
            self.expect_residue(planned.session.residue);
        }
        let index = self.link(shard).await?;
        let described = described_statement(&steps, &forward.of_step);
        let describes = described.is_some();
        let mut index = index;
        let mut uses = self.links[index].server.uses();
        let mut sent = self
            .send_batch(index, used, &forward, &steps, describes)
            .await;
        if sent.is_err()
            && let Some(again) = Box::pin(self.link_again(index)).await
        {
            index = again;
            uses = self.links[index].server.uses();
            let batch = self.send_batch(index, used, &forward, &steps, describes);
            sent = Box::pin(batch).await;
        }
        let relayed = match sent {
            Ok(relayed) => relayed,
            Err(failure) => {
                self.forget_unparsed(&forward.statements);
                // It may be gone, and another one in its place.
                if self.links.get(index).is_some_and(|link| {
                    link.server.shard_id() == shard && link.server.is_answered()
                }) {
                    self.forget_uncertain(index, uses).await?;
                }
                return Err(failure);
            }
        };
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
        for (_, statement) in forward.statements.iter().take(relayed.parsed) {
            statement.parsed.store(true, Ordering::Relaxed);
        }
        if relayed.failed.is_none() {
            if !self.transaction.is_open() && end == End::Sync {
                self.portals.clear();
            }
            return Ok(());
        }
        // Those behind the error were never parsed.
        self.forget_statements(forward.statements.iter().skip(relayed.parsed));
        self.forget_uncertain(index, uses).await?;
        relayed.told()
    }

    /// Nobody knows how far a batch came: what no server is known to have parsed is not there.
    fn forget_unparsed(&mut self, statements: &[(String, Arc<Statement>)]) {
        let unparsed =
            |(_, statement): &&(String, Arc<Statement>)| !statement.parsed.load(Ordering::Relaxed);
        self.forget_statements(statements.iter().filter(unparsed));
    }

    fn forget_statements<'a>(
        &mut self,
        statements: impl Iterator<Item = &'a (String, Arc<Statement>)>,
    ) {
        for (name, statement) in statements {
            let same = |known: &Arc<Statement>| Arc::ptr_eq(known, statement);
            if self.statements.get(name).is_some_and(same) {
                self.statements.remove(name);
            }
        }
    }

    /// Sends the batch and passes the answers on.
    async fn send_batch(
        &mut self,
        index: usize,
        used: bool,
        forward: &Forward,
        steps: &[BatchStep],
        describes: bool,
    ) -> Outcome<Relayed> {
        let mut names_tables = false;
        for planned in forward.planned() {
            names_tables |= planned.names != 0;
            self.note_effects(index, planned.session)?;
        }
        self.links[index].used = used || names_tables;
        for statement in forward.of_step.iter().flatten() {
            types::learn_for_shard(&self.links[index].server.shard, &statement.types).await?;
        }
        self.links[index].server.shape = describes.then_some(None);
        for (step, statement) in steps.iter().zip(&forward.of_step) {
            self.forward_step(index, step, statement.as_ref(), forward.keeps_unnamed);
        }
        let server = &mut self.links[index].server;
        server.sync();
        failpoint::reach("statement.before_send", Some(server)).await;
        self.exchange_with_copy(index, true).await
    }

    pub(super) fn note_forwarded(&self, bound: &[Arc<Statement>]) {
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
    pub(super) async fn forget_uncertain(&mut self, index: usize, uses: u64) -> Outcome {
        let server = &mut self.links[index].server;
        let ids = server.prepared_since(uses);
        if ids.is_empty() {
            return Ok(());
        }
        for id in ids {
            server.close_statement(&statement_name(id), Answer::Hidden);
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
        step: &BatchStep,
        statement: Option<&Arc<Statement>>,
        keeps_unnamed: bool,
    ) {
        match (step, statement) {
            (BatchStep::Parse(parse), Some(statement)) => {
                self.statements
                    .insert(parse.name.clone(), statement.clone());
                let server = &mut self.links[index].server;
                if parse.name.is_empty() {
                    server.parse_statement(
                        statement.id,
                        &parse.text,
                        &statement.types,
                        Answer::Shown,
                    );
                } else if server.has_prepared(statement.id) {
                    server.owe_locally(message::PARSE_COMPLETE);
                } else {
                    server.prepare(
                        statement.id,
                        &statement.text,
                        &statement.types,
                        Answer::Shown,
                    );
                }
            }
            (BatchStep::Bind(bind), Some(statement)) => {
                let name = self.on_server(index, &bind.statement, statement);
                let there = self.forwarded_name(&bind.portal, keeps_unnamed);
                let server = &mut self.links[index].server;
                queue_bind(server, there, name, &bind.rest, Answer::Shown);
                let open = Progress::Open(server.shard_id());
                self.put_portal(statement.clone(), bind.clone());
                if !there.is_empty() {
                    self.set_progress(&bind.portal, open);
                }
            }
            (BatchStep::Describe(Named::Statement(name)), Some(statement)) => {
                let name = self.on_server(index, name, statement);
                let server = &mut self.links[index].server;
                server.describe_statement(name, Answer::Shown);
            }
            (BatchStep::Describe(Named::Portal(name)), _) => {
                let there = self.forwarded_name(name, keeps_unnamed);
                let server = &mut self.links[index].server;
                server.describe_portal(there, Answer::Shown);
            }
            (BatchStep::Execute { portal, limit }, _) => {
                let (binary, statement) = self.rows_of(portal);
                let there = self.forwarded_name(portal, keeps_unnamed);
                let server = &mut self.links[index].server;
                server.execute(there, *limit, Answer::Shown, binary, statement);
                if there.is_empty() {
                    self.set_progress(portal, Progress::Done);
                }
            }
            (BatchStep::Close(named), _) => {
                let portal = self.close(named.clone());
                let server = &mut self.links[index].server;
                match portal {
                    Some(portal) => {
                        server.close_portal(&portal, Answer::Shown);
                    }
                    None => server.owe_locally(message::CLOSE_COMPLETE),
                }
            }
            // `forward_target` gives each of these its statement.
            (BatchStep::Parse(_) | BatchStep::Bind(_), None)
            | (BatchStep::Describe(Named::Statement(_)), None) => {}
        }
    }

    /// Makes sure that a server connection has the statement; returns its name there.
    pub(super) fn on_server<'s>(
        &mut self,
        index: usize,
        name: &str,
        statement: &'s Statement,
    ) -> &'s str {
        let server = &mut self.links[index].server;
        if name.is_empty() {
            if !server.has_unnamed(statement.id) {
                queue_parse(server, statement, None);
            }
            return "";
        }
        if !server.has_prepared(statement.id) {
            server.prepare(
                statement.id,
                &statement.text,
                &statement.types,
                Answer::Hidden,
            );
        }
        &statement.name
    }
}

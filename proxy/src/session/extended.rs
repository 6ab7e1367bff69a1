//! The extended protocol: Parse, Bind, Describe, Execute, Close are collected up to Sync or Flush.
//!
//! A batch whose statements all belong to one shard goes there in one write, and its answers come
//! back as they are (`forward`). Any other batch runs step by step (`step_by_step`), inside a
//! transaction that Sync commits; statements of one shard each are then sent before the answers of
//! those before them have come (`ahead`).

mod ahead;
mod forward;

use std::{
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use automator67_planner::{catalog::ShardId, plan::Plan};

use self::forward::Unforwarded;
use super::{Session, execute::aborted, statements::Statement};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    frame::Frame,
    message::{self, Bind, Named, Parse},
    process::lock,
    relay,
    server::Step,
};

/// A batch without Sync is worked off when it has grown to this.
const BATCH_STEPS_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 1 << 20;

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
    /// What is bound.
    pub statement: Arc<Statement>,
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

impl Batch {
    /// No message waits.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }
}

/// What ended a batch.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum End {
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
                let end = if frame.tag == b'S' {
                    End::Sync
                } else {
                    End::Flush
                };
                let result = self.work_off(end).await;
                let malformed =
                    Report::error(sqlstate::PROTOCOL_VIOLATION, "invalid message format");
                return self
                    .fail_batch(result.and(Err(malformed.into())), end)
                    .await;
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
    pub(super) async fn fail_batch(&mut self, result: Outcome, end: End) -> Outcome {
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

    pub(super) async fn work_off(&mut self, end: End) -> Outcome {
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
        if self.parse_known(&steps) {
            return Ok(());
        }
        loop {
            let forward = match self.forward_target(&steps, end).await {
                Ok(forward) => forward,
                Err(Unforwarded::Steps) => break,
                Err(Unforwarded::Stopped(failure)) => return Err(failure),
            };
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

    /// A batch of nothing but Parse, all of statements that are known to be valid, needs no server.
    /// So preparing a statement never waits for a connection that others hold.
    fn parse_known(&mut self, steps: &[BatchStep]) -> bool {
        if self.transaction.is_failed() {
            return false;
        }
        let mut made = Vec::with_capacity(steps.len());
        for step in steps {
            let BatchStep::Parse(parse) = step else {
                return false;
            };
            let taken = !parse.name.is_empty() && self.statements.contains_key(&parse.name);
            let known = lock(&self.thread.statements).get(&parse.text, &parse.parameter_types);
            match known.filter(|known| known.parsed.load(Ordering::Relaxed)) {
                Some(known) if !taken && self.is_current(&known) => {
                    made.push((parse.name.clone(), known));
                }
                _ => return false,
            }
        }
        for (name, statement) in made {
            self.statements.insert(name, statement);
            self.client
                .output()
                .extend_from_slice(message::PARSE_COMPLETE);
        }
        true
    }

    // ---- step by step ----

    async fn step_by_step(&mut self, steps: Vec<BatchStep>) -> Outcome {
        let mut rest = steps.as_slice();
        while let Some((step, behind)) = rest.split_first() {
            let done = self.send_ahead(rest).await?;
            if done > 0 {
                rest = &rest[done..];
                continue;
            }
            rest = behind;
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
                    let made = self
                        .new_statement(&parse.text, &parse.parameter_types)
                        .await;
                    let statement = match made {
                        Ok(statement) => statement,
                        Err(failure) => {
                            return Err(self.explain_syntax(failure, &parse.text).await);
                        }
                    };
                    if self.transaction.is_failed() && !statement.may_end_transaction() {
                        return Err(aborted());
                    }
                    self.parse_on_server(&statement).await?;
                    self.statements.insert(parse.name.clone(), statement);
                }
                BatchStep::Bind(bind) => self.bind(bind.clone()).await?,
                BatchStep::Describe(Named::Statement(name)) => {
                    let statement = self.statement_now(name).await?;
                    self.describe(&statement, None).await?;
                }
                BatchStep::Describe(Named::Portal(name)) => self.describe_portal(name).await?,
                BatchStep::Execute { portal, limit } => self.execute_portal(portal, *limit).await?,
                BatchStep::Close(named) => self.close_step(named.clone()).await?,
            }
            self.client.flush_if_high().await?;
        }
        Ok(())
    }

    async fn bind(&mut self, bind: Arc<Bind>) -> Outcome {
        let statement = self.statement_now(&bind.statement).await?;
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
        self.check_shape(&statement).await?;
        self.bind_on_server(&statement, &bind).await?;
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
        let mut statement = self.renewed(&statement).await?;
        while !self
            .enter(statement.prepared.names(), &statement.prepared.catalog)
            .await?
        {
            statement = self.renewed(&statement).await?;
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

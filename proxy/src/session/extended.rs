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

use self::forward::Unforwarded;
use super::{
    Session,
    execute::aborted,
    statements::{Local, Statement, local_answer},
    unknown_message,
};
use crate::{
    error::{Outcome, Report, sqlstate},
    frame::Frame,
    message::{self, Bind, Named, Parse},
    process::lock,
};

/// A batch without Sync is worked off when it has grown to this.
const BATCH_STEPS_MAX: usize = 1000;
const BATCH_BYTES_MAX: usize = 1 << 20;

/// A statement's parameters, for running it.
pub struct Bound {
    /// The client's Bind.
    pub bind: Arc<Bind>,
    /// Parameter types for Parse.
    pub types: Arc<[u32]>,
    /// Rows wanted; 0 is all.
    pub limit: i32,
    /// What the portal is called on a server.
    pub portal: String,
    /// What the client calls it.
    pub name: String,
    /// What is bound.
    pub statement: Arc<Statement>,
}

impl Bound {
    /// The same to its end.
    pub fn without_limit(&self) -> Bound {
        Bound {
            bind: self.bind.clone(),
            types: self.types.clone(),
            limit: 0,
            portal: String::new(),
            name: String::new(),
            statement: self.statement.clone(),
        }
    }
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
    /// More than one of the statements that run now is in one transaction.
    several: bool,
    /// Sync has come behind what runs now.
    synced: bool,
}

impl Batch {
    /// No message waits.
    pub fn is_empty(&self) -> bool {
        self.steps.is_empty()
    }

    /// What runs now is in one transaction with other statements.
    pub fn has_several(&self) -> bool {
        self.several
    }

    /// A COPY that begins now reads the Sync that has come already.
    pub fn is_synced(&self) -> bool {
        self.synced
    }

    /// Takes the messages to run them.
    fn take(&mut self, end: End) -> Vec<BatchStep> {
        let steps = std::mem::take(&mut self.steps);
        let executes = |step: &&BatchStep| matches!(step, BatchStep::Execute { .. });
        *self = Batch {
            several: end != End::Sync || steps.iter().filter(executes).nth(1).is_some(),
            synced: end == End::Sync,
            ..Batch::default()
        };
        steps
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
        self.ready().await
    }

    pub(super) async fn work_off(&mut self, end: End) -> Outcome {
        let steps = self.batch.take(end);
        self.began = Instant::now();
        if self.skipping || steps.is_empty() {
            return Ok(());
        }
        self.refresh_catalog().await?;
        self.judge_sql_prepared().await?;
        let result = self.run_batch(steps, end).await;
        self.leave_gate();
        result
    }

    /// What has come before a query runs before it. True: there was an error, and everything up to
    /// Sync is skipped, queries as well.
    pub(super) async fn skips_query(&mut self) -> Outcome<bool> {
        if !self.batch.is_empty() {
            let result = self.work_off(End::Full).await;
            self.fail_batch(result, End::Full).await?;
        }
        Ok(self.skipping)
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

    /// Forgets what is closed. A portal that is open on a server must be closed there: what it is
    /// called.
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
                open.then(|| self.name_there(&name).to_owned())
            }
        }
    }

    /// A statement of this name exists.
    pub(super) fn is_taken(&self, name: &str) -> bool {
        !name.is_empty() && (self.statements.contains_key(name) || self.is_prepared_in_sql(name))
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
            let again = |(name, _): &(String, Arc<Statement>)| *name == parse.name;
            let taken =
                self.is_taken(&parse.name) || !parse.name.is_empty() && made.iter().any(again);
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
                BatchStep::Parse(parse) => self.parse(parse).await?,
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

    async fn parse(&mut self, parse: &Parse) -> Outcome {
        self.refresh_catalog().await?;
        let made = self
            .new_statement(&parse.text, &parse.parameter_types)
            .await;
        let statement = match made {
            Ok(statement) => statement,
            Err(failure) => {
                let told = self.explain_syntax(failure, &parse.text).await;
                return Err(self.unless_failed(told));
            }
        };
        if self.transaction.is_failed() && !statement.may_end_transaction() {
            return Err(aborted());
        }
        if self.is_taken(&parse.name) {
            // What is wrong with the text is said first.
            if matches!(local_answer(&statement), Local::AskServer) {
                self.has_columns(&statement).await?;
            }
            return Err(Report::error(
                sqlstate::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{}\" already exists", parse.name),
            )
            .into());
        }
        self.parse_on_server(&statement).await?;
        self.statements.insert(parse.name.clone(), statement);
        Ok(())
    }

    async fn bind(&mut self, bind: Arc<Bind>) -> Outcome {
        let statement = self.statement_now(&bind.statement).await?;
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
        if self.transaction.is_failed() && !statement.may_end_transaction() {
            return Err(aborted());
        }
        self.refuse_taken_portal(&bind.portal)?;
        self.check_shape(&statement).await?;
        self.bind_on_server(&statement, &bind).await?;
        self.put_portal(statement, bind);
        self.client
            .output()
            .extend_from_slice(message::BIND_COMPLETE);
        Ok(())
    }

    async fn close_step(&mut self, named: Named) -> Outcome {
        let shard = match &named {
            Named::Portal(name) => self.portal_shard(name),
            Named::Statement(_) => None,
        };
        if let Some(there) = self.close(named) {
            self.close_on(shard, &there).await?;
        }
        self.client
            .output()
            .extend_from_slice(message::CLOSE_COMPLETE);
        Ok(())
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
        other => return Err(unknown_message(other).into()),
    })
}

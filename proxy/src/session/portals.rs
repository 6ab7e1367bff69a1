//! Portals: where each of them stands, and what Execute does with it.
//!
//! Rows of a query come from the server on which its portal is open. Everything else runs to its end
//! at the first Execute, as on a server (`PORTAL_ONE_RETURNING` and others in Postgres's `pquery.c`):
//! what the client has not asked for yet waits here, and nothing ever runs twice.

use std::{collections::HashMap, sync::Arc, time::Instant};

use automator67_planner::{
    catalog::ShardId,
    plan::{Combine, Plan, Planned, SettingCommand, TransactionBlock},
};
use bytes::{Buf, BufMut, BytesMut};

use super::{
    Session,
    execute::aborted,
    extended::Bound,
    planning::Request,
    scatter::malformed,
    statements::{Local, Statement, local_answer},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    message::{self, Bind},
    server::{
        Answer, Server,
        relay::{self, Captured},
    },
    telemetry::Tier,
};

/// The client's unnamed portal, where it stays open on a server: statements of ours take the unnamed
/// one there.
const UNNAMED: &str = "a67_unnamed";

/// A portal of the session.
pub struct Portal {
    pub statement: Arc<Statement>,
    pub bind: Arc<Bind>,
    pub progress: Progress,
    /// How many savepoints there were when it was made: it ends with the last of them.
    pub depth: usize,
}

/// The session's portals by name. The unnamed one, which most batches use, needs no lookup.
#[derive(Default)]
pub struct Portals {
    unnamed: Option<Portal>,
    named: HashMap<String, Portal>,
}

impl Portals {
    /// The portal of this name; empty for the unnamed one.
    pub fn get(&self, name: &str) -> Option<&Portal> {
        match name {
            "" => self.unnamed.as_ref(),
            name => self.named.get(name),
        }
    }

    /// The same, to change it.
    pub fn get_mut(&mut self, name: &str) -> Option<&mut Portal> {
        match name {
            "" => self.unnamed.as_mut(),
            name => self.named.get_mut(name),
        }
    }

    fn insert(&mut self, name: &str, portal: Portal) {
        match name {
            "" => self.unnamed = Some(portal),
            name => {
                self.named.insert(name.to_owned(), portal);
            }
        }
    }

    /// Forgets one.
    pub fn remove(&mut self, name: &str) {
        match name {
            "" => self.unnamed = None,
            name => {
                self.named.remove(name);
            }
        }
    }

    /// Forgets all.
    pub fn clear(&mut self) {
        self.unnamed = None;
        self.named.clear();
    }

    /// A savepoint was released: what was made behind it is made before it now.
    pub fn rise_to(&mut self, depth: usize) {
        for portal in self.named.values_mut().chain(&mut self.unnamed) {
            portal.depth = portal.depth.min(depth);
        }
    }

    /// A savepoint was rolled back to: what was made behind it is gone.
    pub fn keep_to(&mut self, depth: usize) {
        self.unnamed.take_if(|portal| portal.depth > depth);
        self.named.retain(|_, portal| portal.depth <= depth);
    }
}

/// How far a portal has come.
pub enum Progress {
    /// Nothing of it has run.
    Bound,
    /// It is open on a server.
    Open(ShardId),
    /// It has run to its end; these rows were not asked for yet.
    Kept(Kept),
    /// It has run to its end, and all of its rows are told.
    Done,
}

/// Rows that wait to be asked for.
pub struct Kept {
    /// DataRow bodies, each behind its length.
    rows: BytesMut,
    /// The command tag for all of them.
    tag: String,
    /// The statement returns rows: a tag counts those that it comes with.
    returns: bool,
}

impl Kept {
    fn next_row(&mut self) -> Outcome<Option<BytesMut>> {
        let Some(length) = self.rows.first_chunk::<4>() else {
            return Ok(None);
        };
        let length = u32::from_be_bytes(*length) as usize;
        self.rows.advance(4);
        if self.rows.len() < length {
            return Err(malformed());
        }
        Ok(Some(self.rows.split_to(length)))
    }

    fn tag(&self, passed: u64) -> String {
        match self.tag.rsplit_once(' ') {
            Some((words, count)) if self.returns && count.parse::<u64>().is_ok() => {
                format!("{words} {passed}")
            }
            _ => self.tag.clone(),
        }
    }
}

impl Session {
    /// Makes a portal of which nothing has run.
    pub(super) fn put_portal(&mut self, statement: Arc<Statement>, bind: Arc<Bind>) {
        let portal = Portal {
            statement,
            progress: Progress::Bound,
            depth: self.transaction.depth(),
            bind: bind.clone(),
        };
        self.portals.insert(&bind.portal, portal);
    }

    /// Notes how far a portal has come.
    pub(super) fn set_progress(&mut self, name: &str, progress: Progress) {
        if let Some(portal) = self.portals.get_mut(name) {
            portal.progress = progress;
        }
    }

    /// A name is given once, to a portal or to a cursor.
    pub(super) fn refuse_taken_portal(&self, name: &str) -> Outcome {
        let taken = self.portals.get(name).is_some() || self.cursor_shard(name).is_some();
        if name.is_empty() || !taken {
            return Ok(());
        }
        Err(Report::error(
            sqlstate::DUPLICATE_CURSOR,
            format!("cursor \"{name}\" already exists"),
        )
        .into())
    }

    /// Execute of at most `limit` rows; 0 is all.
    pub(super) async fn execute_portal(&mut self, name: &str, limit: i32) -> Outcome {
        let limit = limit.max(0);
        let Some(portal) = self.portals.get_mut(name) else {
            return self.execute_cursor(name, limit).await;
        };
        let ends =
            matches!(portal.progress, Progress::Bound) && portal.statement.may_end_transaction();
        if self.transaction.is_failed() && !ends {
            return Err(aborted());
        }
        match &portal.progress {
            Progress::Bound => self.start_portal(name, limit).await,
            Progress::Open(shard) => {
                let shard = *shard;
                self.execute_on(shard, name, limit).await
            }
            Progress::Kept(_) => self.pass_kept(name, limit).await,
            Progress::Done => self.execute_again(name).await,
        }
    }

    /// SQL cursors are portals, too.
    async fn execute_cursor(&mut self, name: &str, limit: i32) -> Outcome {
        let shard = self.cursor_shard(name).ok_or_else(|| no_portal(name))?;
        if self.transaction.is_failed() {
            return Err(aborted());
        }
        self.execute_on(shard, name, limit).await
    }

    async fn start_portal(&mut self, name: &str, limit: i32) -> Outcome {
        let started = Instant::now();
        let portal = self.portals.get_mut(name).ok_or_else(|| no_portal(name))?;
        let (statement, bind) = (portal.statement.clone(), portal.bind.clone());
        portal.progress = Progress::Done;
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
        if self.runs_in_transaction(planned) {
            self.begin_implicit();
        }
        let mut bound = Bound {
            types: statement.types.clone(),
            limit,
            portal: on_server(name, limit).to_owned(),
            name: name.to_owned(),
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

    /// False for statements that must not, or need not, be inside a transaction of ours.
    fn runs_in_transaction(&self, planned: &Planned) -> bool {
        match &planned.plan {
            Plan::Transaction(_) | Plan::Empty => false,
            // It is taken back with the other statements of its batch.
            Plan::Setting(SettingCommand::DiscardAll) => false,
            Plan::Setting(_) => self.batch.has_several(),
            // A server refuses a cursor that would end at once.
            Plan::DeclareCursor { .. } => false,
            Plan::Ddl(ddl) => ddl.block == TransactionBlock::Inside,
            // Procedures and blocks may end their transaction.
            Plan::Single(_) if matches!(planned.kind, "call" | "do") => self.batch.has_several(),
            _ => true,
        }
    }

    /// A portal with a row limit stays open where it runs.
    pub(super) fn note_open(&mut self, bound: &Bound, shard: ShardId) {
        if bound.limit > 0 {
            self.set_progress(&bound.name, Progress::Open(shard));
        }
    }

    /// A portal that may still read what its statement has made stays.
    pub(super) fn is_open(&self, name: &str) -> bool {
        let portal = self.portals.get(name);
        portal.is_some_and(|portal| matches!(portal.progress, Progress::Open(_)))
    }

    async fn execute_on(&mut self, shard: ShardId, name: &str, limit: i32) -> Outcome {
        let index = self.link_position(shard).ok_or_else(|| no_portal(name))?;
        let (binary, statement) = self.rows_of(name);
        let there = self.name_there(name);
        let server = &mut self.links[index].server;
        server.execute(there, limit, Answer::Shown, binary, statement);
        server.sync();
        self.pass_answer_of(index).await
    }

    async fn pass_answer_of(&mut self, index: usize) -> Outcome {
        let server = &mut self.links[index].server;
        let relayed = relay::exchange(&mut self.client, server).await?;
        self.hidden_error(index)?;
        relayed.told()?;
        Ok(())
    }

    /// Runs a statement to its end, and tells the rows that are asked for.
    pub(super) async fn run_and_keep(&mut self, request: &Request<'_>) -> Outcome<Tier> {
        let Some(bound) = request.bound else {
            return self.execute_plan(request).await;
        };
        let whole = bound.without_limit();
        let inner = Request {
            bound: Some(&whole),
            ..request.with_plan(request.planned)
        };
        self.client.flush().await?;
        let bytes_max = self.settings.own.work_bytes;
        let outer = self.client.captured.replace(Box::new(Captured {
            full: Some(Box::new(move |rows| {
                if rows.len() > bytes_max {
                    return Err(too_many(bytes_max));
                }
                Ok(())
            })),
            ..Captured::default()
        }));
        let result = self.execute_plan(&inner).await;
        let rest = self.client.flush().await;
        let captured = std::mem::replace(&mut self.client.captured, outer);
        let mut captured = captured.ok_or_else(malformed)?;
        self.client.output().extend_from_slice(&captured.notices);
        if let (Err(Failure::Told(_)), Some(error)) = (&result, captured.error.take()) {
            return Err(Failure::Shard(error));
        }
        let tier = result?;
        rest?;
        let kept = Kept {
            rows: captured.rows,
            tag: captured.tag,
            returns: captured.count > 0,
        };
        if let Some(portal) = self.portals.get_mut(&bound.name) {
            portal.progress = Progress::Kept(kept);
            self.pass_kept(&bound.name, bound.limit).await?;
        }
        Ok(tier)
    }

    /// Tells the next rows of a portal that has run.
    async fn pass_kept(&mut self, name: &str, limit: i32) -> Outcome {
        let limit = u64::try_from(limit).unwrap_or(0);
        let mut passed = 0;
        let tag = loop {
            let Some(Portal {
                progress: Progress::Kept(kept),
                ..
            }) = self.portals.get_mut(name)
            else {
                return Err(no_portal(name));
            };
            if limit > 0 && passed == limit {
                let output = self.client.output();
                output.extend_from_slice(message::PORTAL_SUSPENDED);
                return Ok(());
            }
            let Some(row) = kept.next_row()? else {
                break kept.tag(passed);
            };
            passed += 1;
            message::framed(self.client.output(), b'D', |body| body.put_slice(&row));
            self.client.flush_if_high().await?;
        };
        message::put_command_complete(self.client.output(), &tag);
        self.set_progress(name, Progress::Done);
        Ok(())
    }

    /// A portal at its end has no more rows; one that never has any cannot run again.
    async fn execute_again(&mut self, name: &str) -> Outcome {
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        let statement = portal.statement.clone();
        let Some(planned) = statement.prepared.statements.first() else {
            self.client.output().extend_from_slice(message::EMPTY_QUERY);
            return Ok(());
        };
        if matches!(planned.plan, Plan::Empty) {
            self.client.output().extend_from_slice(message::EMPTY_QUERY);
            return Ok(());
        }
        if !self.returns_rows(&statement).await? {
            let message = format!("portal \"{name}\" cannot be run");
            return Err(Report::error(sqlstate::OBJECT_NOT_IN_STATE, message).into());
        }
        let tag = match planned.kind {
            "select" | "execute" => "SELECT 0".to_owned(),
            "insert" => "INSERT 0 0".to_owned(),
            "update" | "delete" | "merge" => format!("{} 0", planned.kind.to_uppercase()),
            "cursor" => "FETCH 0".to_owned(),
            "set" | "admin" => "SELECT 0".to_owned(),
            other => other.to_uppercase(),
        };
        message::put_command_complete(self.client.output(), &tag);
        Ok(())
    }

    async fn returns_rows(&mut self, statement: &Arc<Statement>) -> Outcome<bool> {
        if matches!(local_answer(statement), Local::Known) {
            let planned = statement.prepared.statements.first();
            return Ok(planned.is_some_and(|planned| {
                matches!(
                    planned.plan,
                    Plan::Admin(_) | Plan::Setting(SettingCommand::ShowOwn { .. })
                )
            }));
        }
        self.has_columns(statement).await
    }

    /// Describe of a portal.
    pub(super) async fn describe_portal(&mut self, name: &str) -> Outcome {
        let shard = self.portal_shard(name);
        if let Some(index) = shard.and_then(|shard| self.link_position(shard)) {
            let there = self.name_there(name);
            let server = &mut self.links[index].server;
            server.describe_portal(there, Answer::Shown);
            server.sync();
            return self.pass_answer_of(index).await;
        }
        let portal = self.portals.get(name).ok_or_else(|| no_portal(name))?;
        let (statement, bind) = (portal.statement.clone(), portal.bind.clone());
        self.describe(&statement, Some(&bind)).await
    }

    /// Where a portal is open. SQL cursors are portals, too.
    pub(super) fn portal_shard(&self, name: &str) -> Option<ShardId> {
        match self.portals.get(name) {
            Some(portal) => match portal.progress {
                Progress::Open(shard) => Some(shard),
                Progress::Bound | Progress::Kept(_) | Progress::Done => None,
            },
            None => self.cursor_shard(name),
        }
    }

    /// What a portal that is open on a server is called there.
    pub(super) fn name_there<'n>(&self, name: &'n str) -> &'n str {
        if name.is_empty() { UNNAMED } else { name }
    }

    /// Forgets the unnamed portal, as a simple query does.
    pub(super) async fn drop_unnamed(&mut self) -> Outcome {
        let shard = self.portal_shard("");
        self.portals.remove("");
        self.close_on(shard, UNNAMED).await
    }

    /// Closes a portal on the server where it is open.
    pub(super) async fn close_on(&mut self, shard: Option<ShardId>, there: &str) -> Outcome {
        let Some(index) = shard.and_then(|shard| self.link_position(shard)) else {
            return Ok(());
        };
        let server = &mut self.links[index].server;
        server.close_portal(there, Answer::Hidden);
        server.sync();
        relay::exchange(&mut self.client, server).await?;
        Ok(())
    }

    /// Whether a portal's rows may come in binary, and the id of its prepared statement, if that
    /// has a name. A cursor of SQL may be binary.
    pub(super) fn rows_of(&self, portal: &str) -> (bool, Option<u64>) {
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

/// The portal in which a statement runs on its server. One that is read to its end needs no name of
/// its own there.
fn on_server(name: &str, limit: i32) -> &str {
    match (name, limit) {
        (_, 0) => "",
        ("", _) => UNNAMED,
        (name, _) => name,
    }
}

/// Queues Bind. What was open under our name for the unnamed portal makes room.
pub fn queue_bind(server: &mut Server, portal: &str, statement: &str, rest: &[u8], answer: Answer) {
    if portal == UNNAMED {
        server.close_portal(UNNAMED, Answer::Hidden);
    }
    server.bind(portal, statement, rest, answer);
}

/// Its rows may come in parts from the server that has its portal.
pub fn streams(plan: &Plan) -> bool {
    match plan {
        Plan::Scatter(scatter) => match &scatter.combine {
            Combine::Rows(rows) => rows.locking.is_none(),
            Combine::Final(_) => true,
        },
        Plan::Single(_)
        | Plan::Gather(_)
        | Plan::FetchCursor { .. }
        | Plan::CopyIn(_)
        | Plan::CopyOut(_)
        | Plan::Transaction(_)
        | Plan::Empty => true,
        _ => false,
    }
}

pub fn no_portal(name: &str) -> Failure {
    Report::error(
        sqlstate::INVALID_CURSOR_NAME,
        format!("portal \"{name}\" does not exist"),
    )
    .into()
}

fn too_many(bytes_max: usize) -> Failure {
    Report::error(
        sqlstate::LIMIT_EXCEEDED,
        format!("the rows of the portal take more than {bytes_max} bytes"),
    )
    .detail("A statement that writes runs to its end before its rows are asked for in parts.")
    .hint("Ask for all rows at once, return fewer columns, or raise automator67.work_mem_bytes.")
    .into()
}

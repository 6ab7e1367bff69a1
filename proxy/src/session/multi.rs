//! Statements on several shards in one transaction: UPDATE and DELETE without a key, writes to
//! reference tables, schema changes.

use automator67_planner::{
    catalog::{QualifiedName, ShardId},
    plan::{Ddl, Multi, Plan, SessionEffects, ShardSet, Touches, TransactionBlock},
};

use super::{
    Session,
    execute::{needs_block, queue},
    extended::Bound,
    moving::Choice,
    planning::Request,
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    message,
    server::{Answer, call::Call, relay},
    telemetry::Tier,
    types,
};

/// What a shard is sent.
pub struct Task {
    /// Where.
    pub shard: ShardId,
    /// Its statement.
    pub text: String,
    /// Its parameters, if they are not the client's.
    pub bound: Option<Bound>,
}

impl Task {
    /// A statement with the client's parameters.
    pub fn new(shard: ShardId, text: String) -> Task {
        Task {
            shard,
            text,
            bound: None,
        }
    }
}

/// Whether the transaction has changed something.
const HAS_WRITTEN: &str = "SELECT pg_catalog.pg_current_xact_id_if_assigned() IS NOT NULL";

/// What the home shard has done.
#[derive(Default)]
struct Done {
    tag: String,
    /// The transaction has changed something there, with this statement or before.
    changed: bool,
}

/// Adds up what several shards report.
#[derive(Default)]
pub struct Tally {
    tag: Option<String>,
    rows: u64,
}

impl Tally {
    /// Takes one shard's command tag in.
    pub fn add(&mut self, tag: &str) {
        self.rows += message::tag_rows(tag).unwrap_or(0);
        self.tag.get_or_insert_with(|| tag.to_owned());
    }

    /// The tag for all of them: the first one's words with the sum of all counts.
    pub fn tag(&self) -> String {
        let Some(first) = &self.tag else {
            return String::new();
        };
        match (message::tag_rows(first), first.rsplit_once(' ')) {
            (Some(_), Some((words, _))) => format!("{words} {}", self.rows),
            _ => first.clone(),
        }
    }
}

/// In which order shards do their parts.
///
/// Two statements that change the same rows of several shards would each hold some and wait for
/// others, if all shards began at once. Where the first shard is done before the others begin,
/// the statements mostly queue there.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Pace {
    /// All together: new rows seldom wait for anything.
    AtOnce,
    /// The first, then all others.
    FirstAlone,
    /// The same, and every shard does the same: only the first one's answer counts.
    Copies,
}

/// What has been told of a statement that runs on several shards.
struct Run {
    tally: Tally,
    /// The client knows the columns.
    described: bool,
    /// Answers are copies of what was told.
    silent: bool,
}

impl Session {
    /// One statement on several shards.
    pub(super) async fn multi(&mut self, multi: &Multi, request: &Request<'_>) -> Outcome<Tier> {
        if multi.needs_block && !self.transaction.is_explicit() {
            return Err(needs_block("LOCK TABLE"));
        }
        let outer = self.choose_lasting(!multi.moves.is_empty(), request)?;
        let result = self.multi_with_moves(multi, request).await;
        self.end_lasting(outer, result).await
    }

    async fn multi_with_moves(&mut self, multi: &Multi, request: &Request<'_>) -> Outcome<Tier> {
        let shards = self.shard_set(&multi.shards, request).await?;
        if !multi.moves.is_empty() {
            self.refuse_read_only(request)?;
            self.check_on_home(request).await?;
            let choice = Choice::only(&multi.moves);
            self.move_relations(&multi.moves, &shards, &choice, request)
                .await?;
        }
        if multi.shards == ShardSet::Home && multi.sql.is_some() && request.bound.is_none() {
            // What is wrong with the client's own text is said of that.
            self.check_on_home(request).await?;
        }
        let text = match &multi.sql {
            None => request.text.to_owned(),
            Some(sql) => self.sql(sql, request).await?,
        };
        let text = self.as_lasting(&text).into_owned();
        let alone = multi.moves.is_empty() || !self.transaction.is_open();
        if let ([shard], true) = (shards.as_slice(), alone) {
            self.run_text(request, &text, *shard).await?;
            return Ok(Tier::Multi);
        }
        self.begin_implicit();
        if request.planned.session.changes_catalog {
            self.change_schema().await?;
        }
        let work: Vec<Task> = shards
            .into_iter()
            .map(|shard| Task::new(shard, text.clone()))
            .collect();
        let pace = if multi.copies {
            Pace::Copies
        } else {
            Pace::FirstAlone
        };
        let tally = self.run_everywhere(&work, request, pace).await?;
        let targets: Vec<ShardId> = work.into_iter().map(|task| task.shard).collect();
        self.drop_moved(&multi.moves, &targets).await?;
        message::put_command_complete(self.client.output(), &tally.tag());
        Ok(Tier::Multi)
    }

    /// The server's own error, before anything is moved for nothing.
    fn refuse_read_only(&self, request: &Request<'_>) -> Outcome {
        if !self.reads_only() {
            return Ok(());
        }
        let command = request.planned.kind.to_uppercase();
        let message = format!("cannot execute {command} in a read-only transaction");
        Err(Report::error(sqlstate::READ_ONLY_SQL_TRANSACTION, message).into())
    }

    /// Runs one text per shard; rows go to the client as they come.
    pub(super) async fn run_everywhere(
        &mut self,
        work: &[Task],
        request: &Request<'_>,
        pace: Pace,
    ) -> Outcome<Tally> {
        let mut run = Run {
            tally: Tally::default(),
            described: request.bound.is_some(),
            silent: false,
        };
        let alone = match pace {
            Pace::AtOnce => 0,
            Pace::FirstAlone | Pace::Copies => work.len().min(1),
        };
        let (first, others) = work.split_at(alone);
        self.run_at_once(first, request, &mut run).await?;
        run.silent = pace == Pace::Copies;
        self.run_at_once(others, request, &mut run).await?;
        Ok(run.tally)
    }

    async fn run_at_once(
        &mut self,
        work: &[Task],
        request: &Request<'_>,
        run: &mut Run,
    ) -> Outcome {
        let indexes = self.send_everywhere(work, request).await?;
        let mut failure = None;
        for index in indexes {
            let server = &mut self.links[index].server;
            let result = relay::collect(&mut self.client, server, |output, frame| {
                match frame.tag {
                    b'C' | b'D' if run.silent => {}
                    b'C' => run.tally.add(message::command_tag(frame.body())),
                    b'T' if run.described => {}
                    b'T' | b'D' => {
                        run.described = true;
                        output.extend_from_slice(&frame.bytes);
                    }
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
        failure.map_or(Ok(()), Err)
    }

    /// Borrows, queues and sends, for every shard, before any answer is waited for.
    pub(super) async fn send_everywhere(
        &mut self,
        work: &[Task],
        request: &Request<'_>,
    ) -> Outcome<Vec<usize>> {
        for task in work {
            let index = self.link(task.shard).await?;
            self.note_effects(index, request.planned.session)?;
            types::learn_for_shard(&self.links[index].server.shard, request.parameter_types())
                .await?;
        }
        let mut indexes = Vec::with_capacity(work.len());
        for task in work {
            // Already borrowed: this finds it and nothing else.
            let index = self.link(task.shard).await?;
            let bound = task.bound.as_ref().or(request.bound);
            queue(
                &mut self.links[index].server,
                &task.text,
                bound,
                Answer::Shown,
            );
            relay::send(&mut self.links[index].server).await?;
            indexes.push(index);
        }
        Ok(indexes)
    }

    // ---- schema changes ----

    /// DDL: on every shard or on none.
    pub(super) async fn ddl(&mut self, ddl: &Ddl, request: &Request<'_>) -> Outcome<Tier> {
        let text = ddl.sql.as_deref().unwrap_or(request.text);
        if ddl.home_only {
            self.run_text(request, text, self.home()).await?;
            return Ok(Tier::Single);
        }
        let alone = match ddl.block {
            TransactionBlock::Inside => false,
            TransactionBlock::Unneeded => !self.transaction.is_open(),
            TransactionBlock::Refused => true,
        };
        if alone {
            return self.ddl_shard_by_shard(text, request).await;
        }
        self.begin_implicit();
        let text = text.to_owned();
        for table in &request.planned.redefines {
            self.close_gate(table).await?;
        }
        for table in &ddl.must_be_empty {
            self.refuse_rows(table).await?;
        }
        let done = self.run_on_home(&text, request).await?;
        if !done.changed {
            // What is there already, or is not, is so on every shard.
            message::put_command_complete(self.client.output(), &done.tag);
            return Ok(Tier::Multi);
        }
        if request.planned.session.changes_catalog {
            let touches = self.touches(ddl, request);
            self.transaction.note_change(touches);
        }
        if ddl.checked_at_home {
            let unchecked = format!("SET LOCAL check_function_bodies = off; {text}");
            self.run_elsewhere(&unchecked).await?;
        } else {
            self.run_elsewhere(&text).await?;
        }
        if !request.catalog.unique_indexes.is_empty() {
            Box::pin(self.renew_unique_indexes()).await?;
        }
        message::put_command_complete(self.client.output(), &done.tag);
        if let Some(table) = &ddl.creates_table {
            let of_tenant = !request.catalog.tenants.is_empty();
            if of_tenant || self.settings.own.auto_distribute {
                self.refresh_catalog().await?;
            }
            let placed = of_tenant && self.place_with_schema(table).await?;
            if !placed && self.settings.own.auto_distribute {
                self.auto_distribute(table).await?;
            }
        }
        Ok(Tier::Multi)
    }

    /// What is made by the way, as the place of a new table, is not named by the statement.
    fn touches<'d>(&self, ddl: &'d Ddl, request: &Request<'_>) -> &'d Touches {
        let catalog = &request.catalog;
        let places = !catalog.tenants.is_empty() || self.settings.own.auto_distribute;
        match ddl.creates_table.is_some() && places || !catalog.unique_indexes.is_empty() {
            true => &Touches::Everything,
            false => &ddl.touches,
        }
    }

    /// Rows of a local table would be compared with the rows of the home shard alone.
    async fn refuse_rows(&mut self, table: &QualifiedName) -> Outcome {
        let name = super::admin::quoted(table);
        self.run_hidden(
            self.home(),
            &format!("LOCK TABLE ONLY {name} IN SHARE ROW EXCLUSIVE MODE"),
        )
        .await?;
        let probe = format!("select exists (select from {name})");
        if self.query_value(self.home(), &probe).await?.as_deref() != Some("t") {
            return Ok(());
        }
        let name = &table.name;
        Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("a foreign key from local table \"{name}\" to a distributed table is not supported"),
        )
        .detail(format!("\"{name}\" has rows, and each shard knows only its own rows of the other table."))
        .hint(format!("Distribute \"{name}\" first, colocated with the other table, or make that one a reference table."))
        .into())
    }

    /// Runs on the home shard, behind the lock on changes of where rows are; its errors and notices
    /// are the client's.
    async fn run_on_home(&mut self, text: &str, request: &Request<'_>) -> Outcome<Done> {
        self.set_up(self.home()).await?;
        let index = self.link(self.home()).await?;
        let server = &mut self.links[index].server;
        server.call(&Call::to("change_schema"), Answer::Hidden);
        queue(server, text, request.bound, Answer::Shown);
        // Not kept prepared: the change may fail, and this behind it.
        server.run(HAS_WRITTEN, Answer::Shown);
        server.sync();
        let mut done = Done::default();
        let collected = relay::collect(&mut self.client, server, |_, frame| {
            match frame.tag {
                // Ours come behind the client's.
                b'C' if done.tag.is_empty() => {
                    message::command_tag(frame.body()).clone_into(&mut done.tag);
                }
                b'D' => done.changed = frame.body().ends_with(b"t"),
                _ => {}
            }
            Ok(())
        });
        let collected = collected.await;
        let hidden = self.links[index].server.hidden_error.take();
        match (collected, hidden) {
            // What was in the way of the lock is why the rest has failed.
            (Err(failure), Some(frame))
                if failure.sqlstate() == sqlstate::IN_FAILED_SQL_TRANSACTION =>
            {
                return Err(Failure::Shard(frame));
            }
            (Err(failure), _) => return Err(failure),
            (Ok(()), Some(frame)) => return Err(Failure::Shard(frame)),
            (Ok(()), None) => {}
        }
        // Code may do what takes effect at the commit.
        done.changed |= matches!(done.tag.as_str(), "DO" | "CALL");
        self.links[index].wrote |= done.changed;
        Ok(done)
    }

    /// Statements that refuse a transaction block: shard by shard; a failure says how far it came.
    async fn ddl_shard_by_shard(&mut self, text: &str, request: &Request<'_>) -> Outcome<Tier> {
        if self.transaction.is_open() {
            let words: Vec<&str> = text.split_whitespace().take(2).collect();
            return Err(Report::error(
                sqlstate::ACTIVE_SQL_TRANSACTION,
                format!(
                    "{} cannot run inside a transaction block",
                    words.join(" ").to_uppercase()
                ),
            )
            .into());
        }
        let shards = self.all_shards();
        let mut done: Vec<String> = Vec::new();
        let mut tag = String::new();
        for (position, shard) in shards.iter().enumerate() {
            let name = self.process.shard(*shard)?.settings.name.clone();
            let result = if position == 0 {
                self.run_alone_on_home(text, request)
                    .await
                    .map(|home_tag| tag = home_tag)
            } else {
                self.run_hidden(*shard, text).await
            };
            if let Err(failure) = result {
                let rest: Vec<String> = self.shard_names(&shards[position + 1..]);
                return Err(stopped_at(&name, failure, &done, &rest));
            }
            done.push(name);
        }
        if request.planned.session.changes_catalog {
            self.announce_change().await?;
        }
        message::put_command_complete(self.client.output(), &tag);
        Ok(Tier::Multi)
    }

    /// The same on the home shard, whose errors and notices are the client's. Returns the command
    /// tag.
    async fn run_alone_on_home(&mut self, text: &str, request: &Request<'_>) -> Outcome<String> {
        let index = self.link(self.home()).await?;
        self.links[index].wrote = true;
        let server = &mut self.links[index].server;
        queue(server, text, request.bound, Answer::Shown);
        let mut tag = String::new();
        relay::collect(&mut self.client, server, |_, frame| {
            if frame.tag == b'C' {
                message::command_tag(frame.body()).clone_into(&mut tag);
            }
            Ok(())
        })
        .await?;
        self.hidden_error(index)?;
        Ok(tag)
    }

    /// The transaction changes the schema: from now on it plans with a snapshot of its own, and its
    /// commit tells every proxy. Sessions that change where rows are wait for it here, and it for
    /// them, before they hold any other lock.
    pub(super) async fn change_schema(&mut self) -> Outcome {
        if !self.transaction.is_open() {
            return self.announce_change().await;
        }
        let home = self.home();
        self.call(home, &Call::to("change_schema")).await?;
        self.transaction.note_change(&Touches::Everything);
        Ok(())
    }

    /// Tells every proxy, once the transaction commits, that the catalog has changed. Comes last: who
    /// else does waits for the commit.
    pub(super) async fn announce_change(&mut self) -> Outcome {
        let home = self.home();
        let announcement = self.transaction.announcement();
        let epoch = self.call_value(home, &announcement).await?;
        let epoch = epoch.and_then(|epoch| epoch.parse().ok()).unwrap_or(0);
        if self.transaction.is_open() {
            self.transaction.announced(epoch);
        } else {
            self.process.store.follow(epoch).await;
        }
        Ok(())
    }

    /// Loads the transaction's own snapshot if it has changed the schema since the last time, and the
    /// session's temporary objects if there may be others.
    pub(super) async fn refresh_catalog(&mut self) -> Outcome {
        // A failed transaction can only end, or go back to a savepoint, which loads it anew.
        if !self.transaction.is_failed() && self.transaction.is_stale() {
            self.reload_own_catalog().await?;
        }
        if self.temporary.matter() {
            Box::pin(self.refresh_temporary()).await?;
        }
        Ok(())
    }

    /// CREATE TABLE AS: rows on the home shard, the empty table elsewhere.
    pub(super) async fn create_table_as(
        &mut self,
        home: &Plan,
        elsewhere: &str,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        self.begin_implicit();
        self.change_schema().await?;
        // The other shards describe the new table from the tables they have, before rows move.
        self.run_elsewhere(elsewhere).await?;
        let mut planned = request.planned.clone();
        planned.plan = home.clone();
        planned.session = SessionEffects {
            changes_catalog: false,
            ..planned.session
        };
        let request = request.with_plan(&planned);
        Box::pin(self.execute(&request)).await
    }
}

/// The error of a statement that came only as far as shard `name`.
fn stopped_at(name: &str, failure: Failure, done: &[String], rest: &[String]) -> Failure {
    let list = |names: &[String]| {
        if names.is_empty() {
            "none".to_owned()
        } else {
            names.join(", ")
        }
    };
    let where_it_stands = format!(
        "Failed on shard \"{name}\"; succeeded on: {}; not tried on: {}.",
        list(done),
        list(rest)
    );
    match failure {
        Failure::Shard(mut frame) => {
            message::put_field(&mut frame, b'D', &where_it_stands);
            message::forget_field(&mut frame, b'P');
            Failure::Shard(frame)
        }
        Failure::Report(report) => Report {
            detail: Some(where_it_stands),
            ..*report
        }
        .into(),
        Failure::Told(_) | Failure::Farewell(_) | Failure::ClientGone => failure,
    }
}

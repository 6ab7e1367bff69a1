//! Transactions: BEGIN is lazy, a shard joins at its first touch; COMMIT and ROLLBACK go to all
//! that joined.

use std::{collections::BTreeMap, sync::Arc};

use automator67_planner::{
    catalog::{Catalog, DocumentError, ForeignKey, ShardId},
    plan::{Touches, TransactionCommand, TransactionModes},
};

use super::{
    Session, Settings,
    changed::Changed,
    execute::needs_block,
    snapshot::{self, View},
};
use crate::{
    error::{Failure, Outcome, Report, Severity, sqlstate},
    gate::Barrier,
    guc, message,
    neighbours::{Far, Until},
    server::{Answer, call::Call, relay},
    store::{self, Why},
    telemetry::Tier,
    two_phase::{Moments, Turn},
};

/// What lives as long as a transaction.
#[derive(Default)]
pub struct Transaction {
    state: State,
    /// What BEGIN, and SET TRANSACTION before any shard joined, have said.
    modes: TransactionModes,
    /// Those that a transaction before it handed on with AND CHAIN, which an error does not take back.
    chained: TransactionModes,
    /// Every shard is read only.
    pub read_only: bool,
    /// On the home shard only a subtransaction is read only, see [`Guard`].
    pub guard: Option<Guard>,
    savepoints: Vec<Savepoint>,
    /// Settings when it began, for ROLLBACK.
    settings_before: Option<Box<Settings>>,
    /// SET, SET LOCAL and SAVEPOINT so far, for shards that join later.
    log: Vec<String>,
    /// The snapshot with this transaction's own schema changes.
    pub catalog: Option<Arc<Catalog>>,
    /// It has changed the schema, and its commit is to tell every proxy.
    announce: bool,
    /// How often it has. Not taken back: each of its snapshots is another one.
    changes: u64,
    /// What it has changed.
    changed: Changed,
    /// The epoch that it has made, and its commit publishes.
    epoch: Option<u64>,
    /// What it sees of other shards.
    pub view: View,
    /// Those of its snapshots, where these stay.
    pub moments: Moments,
    /// Where it commits if it comes to use several shards.
    pub turn: Option<Turn>,
    /// It is implicit, and around several statements.
    block: bool,
    /// A shard's part was lost with its connection: nothing but ROLLBACK can follow.
    pub doomed: bool,
    /// What of the schema has changed since `catalog` was loaded.
    stale: Changed,
    /// Triggers do not fire in it for now.
    pub quiet: bool,
    /// It has drawn values from sequences on a server.
    pub drew: bool,
    /// What its statements so far have named, see [`names`](automator67_planner::names).
    pub touched: u64,
    /// It changes the placement or definition of tables.
    pub barriers: Vec<Barrier>,
    /// The same in other proxies.
    pub far: Vec<Far>,
    /// Temporary tables of gathers that something may still read.
    pub kept: Vec<String>,
    /// How many of those have got another name so far.
    pub renamed: u64,
    /// Foreign keys of local tables with rows to tables that it has distributed: those must follow.
    pub to_follow: Vec<ForeignKey>,
    /// The shard that joined first: its time is the transaction's.
    pub clock: Option<ShardId>,
    /// That time, once it was asked for.
    pub time: Option<String>,
    /// Settings that code has made in it, and their values.
    pub made_by_code: BTreeMap<String, String>,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
enum State {
    /// None.
    #[default]
    Idle,
    /// Around the statements of one query string or one extended batch.
    Implicit,
    /// After BEGIN.
    Open,
    /// After an error in an open one.
    Failed,
}

/// A gather makes temporary tables, which a read-only transaction cannot do. So on the home shard
/// the transaction is read-write with a savepoint, behind which all is read only. Releasing it
/// gives back the outer mode (`CommitSubTransaction` in Postgres's `xact.c` restores it).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Guard {
    /// Statements are refused what a read-only transaction is refused.
    Closed,
    /// A gather loads its tables.
    Lifted,
}

const CLOSE_GUARD: &str = "SAVEPOINT automator67_read_only; SET LOCAL transaction_read_only = on";
const LIFT_GUARD: &str = "RELEASE SAVEPOINT automator67_read_only";

struct Savepoint {
    name: String,
    settings: Settings,
    /// Length of the transaction's log with it.
    logged: usize,
    /// Its commit would tell of a changed schema, as of then.
    announce: bool,
    /// The transaction's modes, as of then.
    modes: TransactionModes,
    read_only: bool,
    guard: Option<Guard>,
}

impl Transaction {
    /// What ReadyForQuery says.
    pub fn status(&self) -> u8 {
        match self.state {
            State::Idle | State::Implicit => b'I',
            State::Open => b'T',
            State::Failed => b'E',
        }
    }

    /// How many savepoints there are.
    pub fn depth(&self) -> usize {
        self.savepoints.len()
    }

    /// Shards join with BEGIN.
    pub fn is_open(&self) -> bool {
        self.state != State::Idle
    }

    /// After BEGIN, or failed.
    pub fn is_explicit(&self) -> bool {
        matches!(self.state, State::Open | State::Failed)
    }

    /// More statements may follow in it.
    pub fn goes_on(&self) -> bool {
        self.state == State::Open || self.block
    }

    /// Only ROLLBACK (and COMMIT, which rolls back) are accepted.
    pub fn is_failed(&self) -> bool {
        self.state == State::Failed
    }

    /// What a joining shard runs first.
    pub fn begin_statements(&self, home: bool) -> String {
        let mut text = match self.guard.filter(|_| home) {
            None => format!("BEGIN{}", self.modes),
            Some(_) => {
                let modes = TransactionModes {
                    read_only: Some(false),
                    ..self.modes.clone()
                };
                format!("BEGIN{modes}; {CLOSE_GUARD}")
            }
        };
        for statement in &self.log {
            text.push_str("; ");
            text.push_str(statement);
        }
        text
    }

    /// It starts as its modes and the session's default say.
    fn start(&mut self, state: State, modes: TransactionModes, settings: &Settings) {
        self.state = state;
        self.modes = modes;
        if self.modes.read_only.is_none()
            && settings
                .map
                .get("default_transaction_read_only")
                .is_some_and(guc::is_on)
        {
            self.modes.read_only = Some(true);
        }
        self.read_only = self.modes.read_only == Some(true);
        self.guard = Some(Guard::Closed).filter(|_| self.read_only);
        if state == State::Open {
            self.consider_view(settings);
        }
        self.settings_before
            .get_or_insert_with(|| Box::new(settings.clone()));
    }

    /// Decides what the transaction is to see of other shards; before any of them has joined.
    pub fn consider_view(&mut self, settings: &Settings) {
        let default = settings.map.get("default_transaction_isolation");
        let consistency = settings.own.consistency;
        let (view, level) = snapshot::view_of(self.modes.isolation, default, consistency);
        self.view = view;
        self.modes.isolation = level.or(self.modes.isolation);
    }

    /// Its modes, with what was said after a shard had joined.
    fn modes_now(&self) -> TransactionModes {
        with_read_only(&self.modes, self.read_only)
    }

    /// A shard joins.
    pub fn note_joined(&mut self, shard: ShardId) {
        self.clock.get_or_insert(shard);
    }

    /// Those that have joined are sent away again.
    pub fn forget_clock(&mut self) {
        self.clock = None;
        self.time = None;
    }

    /// Settings when it began.
    pub fn settings_before(&self) -> Option<&guc::SettingMap> {
        self.settings_before.as_ref().map(|settings| &settings.map)
    }

    /// It has changed the schema.
    pub fn note_change(&mut self, touches: &Touches) {
        self.announce = true;
        self.changes += 1;
        self.changed.add(touches);
        self.stale.add(touches);
    }

    /// It has changed where rows are.
    pub fn note_placement(&mut self) {
        self.changed.add(&Touches::Everything);
        self.stale.add(&Touches::Everything);
    }

    /// The schema has changed since `catalog` was loaded.
    pub fn is_stale(&self) -> bool {
        self.stale != Changed::Nothing
    }

    /// The call that announces what it has changed.
    pub fn announcement(&self) -> Call {
        Call::to("bump").with_option(self.changed.names())
    }

    /// Its commit is to tell of a changed schema, or has.
    pub fn announces(&self) -> bool {
        self.announce || self.epoch.is_some()
    }

    /// Its commit is to tell of a changed schema, and nobody has done so yet.
    pub fn is_silent(&self) -> bool {
        self.announce && self.epoch.is_none()
    }

    /// It has made this epoch.
    pub fn announced(&mut self, epoch: u64) {
        self.epoch = Some(epoch);
    }

    /// The modes of a transaction that is chained to it by ROLLBACK: its own, but an error has taken
    /// them back, to those at the first savepoint if there is one, else to those it was chained with.
    fn modes_of_next(&self) -> TransactionModes {
        match (self.state, self.savepoints.first()) {
            (State::Failed, None) => self.chained.clone(),
            (State::Failed, Some(first)) => with_read_only(&first.modes, first.read_only),
            (State::Idle | State::Implicit | State::Open, _) => self.modes_now(),
        }
    }

    /// Something was set in it, perhaps the role.
    pub fn has_settings(&self) -> bool {
        !self.log.is_empty()
    }

    /// Nothing in [`Transaction::begin_statements`] can fail.
    pub fn begins_plainly(&self) -> bool {
        self.modes.is_empty() && self.log.is_empty()
    }
}

impl Session {
    /// BEGIN, COMMIT, SAVEPOINT ...
    pub(super) async fn transaction_command(
        &mut self,
        command: &TransactionCommand,
    ) -> Outcome<Tier> {
        match command {
            TransactionCommand::Begin { modes, start } => {
                self.begin(modes, *start).await?;
                Ok(Tier::Proxy)
            }
            TransactionCommand::SetTransaction(modes) => self.set_transaction(modes).await,
            TransactionCommand::SetConstraints { all, replay } => {
                self.set_constraints(*all, replay).await
            }
            TransactionCommand::Commit { chain } => self.commit(*chain).await,
            TransactionCommand::Rollback { chain } => self.rollback(*chain).await,
            TransactionCommand::Prepare => self.refuse_prepare().await,
            TransactionCommand::Savepoint(name) => self.savepoint(name).await,
            TransactionCommand::Release(name) => self.release(name).await,
            TransactionCommand::RollbackTo(name) => self.rollback_to(name).await,
        }
    }

    async fn begin(&mut self, modes: &TransactionModes, start: bool) -> Outcome {
        match self.transaction.state {
            State::Open | State::Failed => {
                self.notice(
                    Severity::Warning,
                    sqlstate::ACTIVE_SQL_TRANSACTION,
                    "there is already a transaction in progress",
                );
                // Its modes are made all the same.
                if !modes.is_empty() {
                    self.set_modes(modes).await?;
                }
            }
            State::Idle | State::Implicit => {
                self.transaction
                    .start(State::Open, modes.clone(), &self.settings);
            }
        }
        let tag = if start { "START TRANSACTION" } else { "BEGIN" };
        message::put_command_complete(self.client.output(), tag);
        Ok(())
    }

    /// Before the first shard joins: what an older snapshot does not show cannot be changed where
    /// snapshots stay.
    pub(super) fn take_turn(&mut self) {
        if self.transaction.turn.is_none() && !self.transaction.read_only {
            self.transaction.turn = Some(self.process.two_phase.turn());
        }
    }

    /// What runs now may not write: its transaction, or the one that would begin with it.
    pub(super) fn reads_only(&self) -> bool {
        let by_default = self.settings.map.get("default_transaction_read_only");
        self.transaction.read_only
            || (!self.transaction.is_open() && by_default.is_some_and(guc::is_on))
    }

    /// A transaction around one query string or batch, if none is open.
    pub(super) fn begin_implicit(&mut self) {
        if self.transaction.state == State::Idle {
            self.transaction
                .start(State::Implicit, TransactionModes::default(), &self.settings);
        }
    }

    /// The same, seeing of other shards what the session's settings say.
    pub(super) fn begin_implicit_view(&mut self) {
        self.begin_implicit();
        if self.transaction.view == View::Committed {
            self.transaction.consider_view(&self.settings);
        }
    }

    /// The same around several statements.
    pub(super) fn begin_implicit_block(&mut self) {
        self.begin_implicit_view();
        self.transaction.block = true;
    }

    async fn set_transaction(&mut self, modes: &TransactionModes) -> Outcome<Tier> {
        self.set_modes(modes).await?;
        message::put_command_complete(self.client.output(), "SET");
        Ok(Tier::Proxy)
    }

    async fn set_modes(&mut self, modes: &TransactionModes) -> Outcome {
        if !self.transaction.is_open() {
            self.notice(
                Severity::Warning,
                sqlstate::NO_ACTIVE_SQL_TRANSACTION,
                "SET TRANSACTION can only be used in transaction blocks",
            );
        } else if !self.transaction.savepoints.is_empty() && modes.isolation.is_some() {
            return Err(Report::error(
                sqlstate::ACTIVE_SQL_TRANSACTION,
                "SET TRANSACTION ISOLATION LEVEL must not be called in a subtransaction",
            )
            .into());
        } else if !self.transaction.savepoints.is_empty()
            && self.transaction.read_only
            && modes.read_only == Some(false)
        {
            return Err(Report::error(
                sqlstate::ACTIVE_SQL_TRANSACTION,
                "cannot set transaction read-write mode inside a read-only transaction",
            )
            .into());
        } else if !self.transaction.savepoints.is_empty()
            || self.links.iter().any(|link| link.begun)
        {
            // Behind a savepoint, so that going back to it takes the mode back.
            let text = format!("SET TRANSACTION{modes}");
            self.everywhere(&text).await?;
            self.transaction.log.push(text);
            self.transaction.read_only = modes.read_only.unwrap_or(self.transaction.read_only);
        } else {
            let modes = self.transaction.modes.with(modes);
            let state = self.transaction.state;
            self.transaction.start(state, modes, &self.settings);
        }
        Ok(())
    }

    /// SET CONSTRAINTS: on every shard that the transaction has come to, and on those that it comes to
    /// later. Names are looked up on one.
    async fn set_constraints(&mut self, all: bool, text: &str) -> Outcome<Tier> {
        if self.transaction.is_open() {
            if !all && !self.links.iter().any(|link| link.begun) {
                self.link(self.home()).await?;
            }
            self.everywhere(text).await?;
            self.transaction.log.push(text.to_owned());
        } else {
            self.notice(
                Severity::Warning,
                sqlstate::NO_ACTIVE_SQL_TRANSACTION,
                "SET CONSTRAINTS can only be used in transaction blocks",
            );
            if !all {
                self.run_hidden(self.home(), text).await?;
            }
        }
        message::put_command_complete(self.client.output(), "SET CONSTRAINTS");
        Ok(Tier::Proxy)
    }

    /// After SET LOCAL of the level of consistency: it must come before the first query.
    pub(super) fn change_view(&mut self) -> Outcome {
        if !self.transaction.is_explicit() {
            return Ok(());
        }
        if self.links.iter().any(|link| link.begun) {
            return Err(Report::error(
                sqlstate::ACTIVE_SQL_TRANSACTION,
                "SET LOCAL automator67.consistency must be called before any query",
            )
            .into());
        }
        self.transaction.consider_view(&self.settings);
        Ok(())
    }

    async fn commit(&mut self, chain: bool) -> Outcome<Tier> {
        match self.transaction.state {
            State::Failed => return self.rollback(chain).await,
            State::Idle | State::Implicit if chain => {
                return Err(needs_block("COMMIT AND CHAIN"));
            }
            State::Idle | State::Implicit => {
                self.warn_no_transaction();
            }
            State::Open => {}
        }
        if !self.transaction.to_follow.is_empty()
            && let Err(failure) = Box::pin(self.check_all_followed()).await
        {
            self.rollback_links().await?;
            return Err(failure);
        }
        let modes = self.transaction.modes_now();
        self.commit_links(true).await?;
        message::put_command_complete(self.client.output(), "COMMIT");
        self.chain(chain, modes);
        Ok(Tier::Proxy)
    }

    async fn rollback(&mut self, chain: bool) -> Outcome<Tier> {
        if !self.transaction.is_explicit() {
            if chain {
                return Err(needs_block("ROLLBACK AND CHAIN"));
            }
            self.warn_no_transaction();
        }
        let modes = self.transaction.modes_of_next();
        self.rollback_links().await?;
        message::put_command_complete(self.client.output(), "ROLLBACK");
        self.chain(chain, modes);
        Ok(Tier::Proxy)
    }

    /// PREPARE TRANSACTION. Like any failure of it, the refusal ends the transaction
    /// (`AbortCurrentTransaction` in Postgres's `xact.c`); where there is none, or one that has failed, it
    /// is a ROLLBACK.
    async fn refuse_prepare(&mut self) -> Outcome<Tier> {
        if matches!(self.transaction.state, State::Idle | State::Failed) {
            return self.rollback(false).await;
        }
        self.rollback_links().await?;
        Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            "prepared transactions are not supported",
        )
        .detail("The transaction is rolled back.")
        .hint("Use BEGIN and COMMIT.")
        .into())
    }

    fn chain(&mut self, chain: bool, modes: TransactionModes) {
        if chain {
            self.transaction
                .start(State::Open, modes.clone(), &self.settings);
            self.transaction.chained = modes;
        }
    }

    fn warn_no_transaction(&mut self) {
        self.notice(
            Severity::Warning,
            sqlstate::NO_ACTIVE_SQL_TRANSACTION,
            "there is no transaction in progress",
        );
    }

    /// Commits what the implicit transaction has done.
    pub(super) async fn end_implicit(&mut self) -> Outcome {
        if self.transaction.state == State::Implicit {
            self.commit_links(false).await
        } else {
            Ok(())
        }
    }

    /// After an error: an implicit transaction is rolled back, an open one waits for ROLLBACK.
    pub(super) async fn fail_transaction(&mut self) {
        for shard in self.all_shards() {
            // What cannot be ended loses its connection, and with it the copy.
            let _ = self.fail_copy(shard).await;
        }
        match self.transaction.state {
            State::Idle => {}
            State::Open => {
                self.transaction.state = State::Failed;
                self.let_go_of_locks().await;
            }
            State::Failed => {}
            State::Implicit => {
                // A shard that cannot even roll back loses its connection, which rolls back too.
                let _ = self.rollback_links().await;
            }
        }
    }

    /// The transaction is committed.
    pub(super) async fn settle(&mut self) {
        let epoch = self.transaction.epoch;
        for far in &mut self.transaction.far {
            far.until = epoch.map_or(Until::Now, Until::Epoch);
        }
        if let Some(epoch) = epoch
            && !self.process.store.follow(epoch).await
        {
            // Whoever plans with the snapshot that is there waits, this session as well.
            let barriers = std::mem::take(&mut self.transaction.barriers).into_iter();
            let barriers: Vec<Barrier> = barriers.map(Barrier::for_all).collect();
            let store = self.process.store.clone();
            self.process.tasks.spawn(async move {
                store.reach(epoch).await;
                drop(barriers);
            });
        }
        self.forget_transaction(true);
    }

    /// A server that fails gives locks back at once. So do the shards that have not failed: all of
    /// them, or those since the last savepoint, where the transaction may still go back to.
    async fn let_go_of_locks(&mut self) {
        let text = match self.transaction.savepoints.last() {
            None => "ROLLBACK".to_owned(),
            Some(last) => format!(
                "ROLLBACK TO SAVEPOINT {}",
                guc::quote_identifier(&last.name)
            ),
        };
        let ends = self.transaction.savepoints.is_empty();
        let idle = |link: &&mut super::Link| {
            let server = &link.server;
            link.begun && server.is_answered() && server.status == b'T'
        };
        for link in self.links.iter_mut().filter(idle) {
            link.server.query(&text, Answer::Hidden);
            // A connection that is lost lets go, too.
            let _ = relay::send(&mut link.server).await;
            if ends {
                link.begun = false;
                link.wrote = false;
            }
        }
        let busy = |link: &&mut super::Link| !link.server.is_answered();
        for link in self.links.iter_mut().filter(busy) {
            let output = &mut self.client.wire.output;
            let _ = relay::settle(output, &mut link.server, |_, _| {}).await;
            link.server.hidden_error = None;
        }
    }

    /// ROLLBACK on every shard that joined.
    pub(super) async fn rollback_links(&mut self) -> Outcome {
        for far in &mut self.transaction.far {
            far.until = Until::Now;
        }
        self.note_ended();
        for link in self.links.iter_mut().filter(|link| link.begun) {
            link.server.query("ROLLBACK", Answer::Shown);
            // What fails here ends the connection, and the shard rolls back by itself.
            let _ = relay::send(&mut link.server).await;
        }
        let begun = self.links.iter_mut().filter(|link| link.begun);
        for (position, link) in begun.enumerate() {
            link.begun = false;
            link.wrote = false;
            let ended = relay::collect(&mut self.client, &mut link.server, |output, frame| {
                // What was set is taken back alike everywhere.
                if position == 0 {
                    return message::pass_status(output, frame);
                }
                Ok(())
            });
            match ended.await {
                Err(Failure::ClientGone) => return Err(Failure::ClientGone),
                Err(_) | Ok(()) => link.server.hidden_error = None,
            }
        }
        let broken = |link: &super::Link| !link.server.is_answered();
        self.links.retain(|link| !broken(link));
        self.forget_transaction(false);
        Ok(())
    }

    /// Ends the transaction's own state; a rollback takes its settings back.
    pub(super) fn forget_transaction(&mut self, committed: bool) {
        let ended = std::mem::take(&mut self.transaction);
        self.temporary.end_transaction();
        self.portals.clear();
        self.end_cursors(committed);
        if let Some(hidden) = self.settings.hidden.take() {
            (self.settings.search_path, self.settings.own) = *hidden;
        }
        let Some(before) = ended.settings_before else {
            return;
        };
        if committed {
            return;
        }
        // The servers have rolled their settings back too.
        for link in &mut self.links {
            link.server.settings = before.map.clone();
        }
        self.settings = *before;
    }

    /// Lets the home shard make the tables of a gather in a read-only transaction.
    pub(super) async fn lift_guard(&mut self) -> Outcome {
        if !self.transaction.read_only {
            return Ok(());
        }
        if self.transaction.guard.is_none() || !self.transaction.savepoints.is_empty() {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "rows of several shards cannot be gathered at this place of a read-only transaction",
            )
            .detail("Gathering makes temporary tables on the home shard.")
            .hint("Begin with START TRANSACTION READ ONLY, and use no savepoint.")
            .into());
        }
        self.run_hidden(self.home(), LIFT_GUARD).await?;
        self.transaction.guard = Some(Guard::Lifted);
        Ok(())
    }

    /// The opposite: what runs next is the client's.
    pub(super) async fn close_guard(&mut self) -> Outcome {
        if self.transaction.guard == Some(Guard::Lifted) {
            self.run_hidden(self.home(), CLOSE_GUARD).await?;
            self.transaction.guard = Some(Guard::Closed);
        }
        Ok(())
    }

    async fn savepoint(&mut self, name: &str) -> Outcome<Tier> {
        self.require_transaction("SAVEPOINT")?;
        self.everywhere(&format!("SAVEPOINT {}", guc::quote_identifier(name)))
            .await?;
        self.transaction
            .log
            .push(format!("SAVEPOINT {}", guc::quote_identifier(name)));
        self.transaction.savepoints.push(Savepoint {
            name: name.to_owned(),
            settings: self.settings.clone(),
            logged: self.transaction.log.len(),
            announce: self.transaction.announce,
            modes: self.transaction.modes.clone(),
            read_only: self.transaction.read_only,
            guard: self.transaction.guard,
        });
        message::put_command_complete(self.client.output(), "SAVEPOINT");
        Ok(Tier::Proxy)
    }

    async fn release(&mut self, name: &str) -> Outcome<Tier> {
        self.require_transaction("RELEASE SAVEPOINT")?;
        let position = self.find_savepoint(name)?;
        self.everywhere(&format!(
            "RELEASE SAVEPOINT {}",
            guc::quote_identifier(name)
        ))
        .await?;
        self.transaction.savepoints.truncate(position);
        self.portals.rise_to(position);
        self.transaction
            .log
            .push(format!("RELEASE SAVEPOINT {}", guc::quote_identifier(name)));
        message::put_command_complete(self.client.output(), "RELEASE");
        Ok(Tier::Proxy)
    }

    /// Undoes everything since the savepoint, on every shard; a failed transaction is whole again.
    async fn rollback_to(&mut self, name: &str) -> Outcome<Tier> {
        self.require_transaction("ROLLBACK TO SAVEPOINT")?;
        let position = self.find_savepoint(name)?;
        if self.transaction.doomed {
            return Err(Report::error(
                sqlstate::IN_FAILED_SQL_TRANSACTION,
                "current transaction has lost a shard's part and can only be rolled back",
            )
            .hint("ROLLBACK and start over.")
            .into());
        }
        if self.transaction.state == State::Failed {
            self.transaction.state = State::Open;
        }
        self.everywhere(&format!(
            "ROLLBACK TO SAVEPOINT {}",
            guc::quote_identifier(name)
        ))
        .await?;
        self.transaction.savepoints.truncate(position + 1);
        self.portals.keep_to(position);
        let savepoint = &self.transaction.savepoints[position];
        self.settings = savepoint.settings.clone();
        self.transaction.log.truncate(savepoint.logged);
        self.transaction.announce = savepoint.announce;
        self.temporary.end_transaction();
        self.transaction.modes.clone_from(&savepoint.modes);
        self.transaction.read_only = savepoint.read_only;
        self.transaction.guard = savepoint.guard;
        for link in self.links.iter_mut().filter(|link| link.begun) {
            link.server.settings = self.settings.map.clone();
        }
        if self.transaction.catalog.is_some() {
            self.transaction.note_placement();
            self.reload_own_catalog().await?;
        }
        message::put_command_complete(self.client.output(), "ROLLBACK");
        Ok(Tier::Proxy)
    }

    fn find_savepoint(&self, name: &str) -> Outcome<usize> {
        let found = self
            .transaction
            .savepoints
            .iter()
            .rposition(|known| known.name == name);
        found.ok_or_else(|| {
            Report::error(
                sqlstate::INVALID_SAVEPOINT,
                format!("savepoint \"{name}\" does not exist"),
            )
            .into()
        })
    }

    fn require_transaction(&self, command: &str) -> Outcome {
        if self.transaction.is_explicit() {
            return Ok(());
        }
        Err(Report::error(
            sqlstate::NO_ACTIVE_SQL_TRANSACTION,
            format!("{command} can only be used in transaction blocks"),
        )
        .into())
    }

    /// Remembers a setting for shards that join the transaction later.
    pub(super) fn log_setting(&mut self, statement: &str) {
        if self.transaction.is_open() {
            self.transaction.log.push(statement.to_owned());
        }
    }

    /// Sends a notice of our own.
    pub(super) fn notice(&mut self, severity: Severity, sqlstate: &str, text: &str) {
        if severity == Severity::Warning && !self.settings.own.warnings {
            return;
        }
        Report {
            severity,
            ..Report::error(sqlstate, text)
        }
        .write(self.client.output());
    }

    /// Loads the catalog as this transaction sees it, from the home shard: what is new since the snapshot
    /// that it has, else the whole.
    pub(super) async fn reload_own_catalog(&mut self) -> Outcome {
        let known = self.process.store.catalog();
        let base = self.transaction.catalog.clone();
        let base = base.unwrap_or_else(|| known.clone());
        let news = match (base.since(), self.transaction.stale.names()) {
            (Some(since), Some(names)) => Some((since, names)),
            _ => None,
        };
        let mut newer = None;
        if let Some((since, names)) = news {
            let text = self.own_document(Some(since), Some(names)).await?;
            newer = base.newer(&text).map_err(unreadable)?;
        }
        let mut catalog = match newer {
            Some(catalog) => catalog,
            None => {
                let text = self.own_document(None, None).await?;
                Catalog::from_document(&text).map_err(unreadable)?
            }
        };
        store::note_read(&catalog, Why::Changed);
        #[cfg(feature = "failpoints")]
        self.compare_own(&catalog).await?;
        catalog.unjudged.clone_from(&known.unjudged);
        catalog.epoch += self.transaction.changes;
        self.transaction.catalog = Some(Arc::new(catalog));
        self.transaction.stale = Changed::Nothing;
        Ok(())
    }

    #[cfg(feature = "failpoints")]
    async fn compare_own(&mut self, catalog: &Catalog) -> Outcome {
        let first = self.own_document(None, None).await?;
        let again = self.own_document(None, None).await?;
        let read = |text: &str| Catalog::from_document(text).map_err(unreadable);
        match store::note_differences(catalog, &[read(&first)?, read(&again)?]) {
            None => Ok(()),
            Some(difference) => Err(Report::error(
                sqlstate::INTERNAL_ERROR,
                "the transaction's snapshot is not what the catalog says",
            )
            .detail(difference)
            .into()),
        }
    }

    async fn own_document(&mut self, since: Option<u64>, names: Option<String>) -> Outcome<String> {
        let call = Call::to("own_document");
        let call = call.with_option(since).with_option(names);
        let text = self.call_value(self.home(), &call).await?;
        Ok(text.unwrap_or_default())
    }
}

fn unreadable(error: DocumentError) -> Report {
    Report::error(sqlstate::INTERNAL_ERROR, "the catalog could not be read")
        .detail(error.to_string())
}

fn with_read_only(modes: &TransactionModes, read_only: bool) -> TransactionModes {
    let mut modes = modes.clone();
    if read_only != (modes.read_only == Some(true)) {
        modes.read_only = Some(read_only);
    }
    modes
}

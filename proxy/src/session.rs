//! A client's session: reads messages, plans statements, runs them, answers.
//!
//! `run` is the loop; `simple_query` and `extended` are the two ways a statement comes in;
//! `execute` sends each plan to the step that runs it. State is split by lifetime: the process
//! and its thread, the session, its transaction, and the request.

mod admin;
mod asker;
mod changed;
mod commit;
mod copy;
mod cursors;
mod execute;
mod explain;
mod extended;
mod fastpath;
mod gather;
mod greeting;
mod incoming;
mod insert;
mod known_statements;
mod links;
mod locking;
mod made_settings;
mod merge;
mod moves;
mod moving;
mod multi;
mod placeholders;
mod placement;
mod planning;
mod portals;
mod scatter;
mod sequences;
mod servers;
mod setting;
mod snapshot;
mod sql_prepared;
mod statements;
mod steps;
mod temporary;
mod timer;
mod transaction;
mod unique;
mod views;

pub use greeting::Greetings;
pub use known_statements::KnownStatements;

use std::{
    collections::{BTreeSet, HashMap},
    sync::Arc,
    time::{Duration, Instant},
};

use automator67_planner::{
    catalog::{Residue, ShardId},
    normalise::Normalised,
    plan::Plan,
};
use tokio_util::sync::CancellationToken;

use self::{
    cursors::Cursor, extended::Batch, incoming::Incoming, links::Link, planning::Request,
    portals::Portals, sql_prepared::SqlPrepared, statements::Statement, transaction::Transaction,
};
use crate::{
    error::{Failure, Outcome, Report, SqlState, sqlstate},
    frame::Frame,
    guc::{self, SettingMap},
    login::Hello,
    memory::Share,
    message,
    pool::Pool,
    process::{Activity, Process, SessionCard, Thread, lock},
    server::relay::Client,
    settings::{Consistency, User},
    telemetry::Tier,
};

/// `automator67.work_mem_bytes`, unless set.
const WORK_BYTES: usize = 256 << 20;

/// What `search_path` is when nobody has set it.
const DEFAULT_SEARCH_PATH: &str = "\"$user\", public";

/// One client's session.
pub struct Session {
    process: Arc<Process>,
    thread: Arc<Thread>,
    card: Arc<SessionCard>,
    user: Arc<User>,
    client: Client,
    /// What it holds of large messages.
    share: Share,
    settings: Settings,
    statements: HashMap<String, Arc<Statement>>,
    portals: Portals,
    cursors: HashMap<String, Cursor>,
    /// Messages of the extended protocol that wait for Sync.
    batch: Batch,
    transaction: Transaction,
    links: Vec<Link>,
    pools: Vec<(ShardId, Arc<Pool>)>,
    /// Parameter types of a simple query.
    no_types: Arc<[u32]>,
    /// Memory of the last simple query's literals, for the next one's.
    scratch: Normalised,
    /// Keeps its server connections between transactions.
    pinned: bool,
    /// What the statement that runs may leave in server sessions.
    residue: Residue,
    /// Its temporary objects on the home shard.
    temporary: temporary::Known,
    /// Names of the custom settings that it has ever made.
    placeholders: BTreeSet<String>,
    /// Statements made by PREPARE, and the epoch they were judged at.
    sql_prepared: Vec<SqlPrepared>,
    sql_prepared_epoch: u64,
    /// After an error in the extended protocol, messages up to Sync are skipped.
    skipping: bool,
    /// When the statement began that runs now, or ran last.
    began: Instant,
    /// A COPY in the extended protocol has taken the Sync that was sent with it.
    sync_taken_by_copy: bool,
    /// What shards did for the last statement of the scatter and merge tiers.
    work: scatter::Work,
    /// Relations that are moved for the statement are not temporary tables.
    moves_last: bool,
    /// Where those are.
    work_schema: moving::WorkSchema,
    /// What is answered now is written to shards afterwards.
    will_write: bool,
    /// The warning about several shards was given once for single statements.
    warned_several: bool,
    /// Values it has drawn from sequences.
    memory: sequences::Memory,
}

/// How long a transaction that has changed the schema may be idle: nobody else can change it meanwhile.
const SCHEMA_CHANGE_IDLE_MAX: Duration = Duration::from_secs(600);

/// Message types that a client may send after login.
const CLIENT_MESSAGES: &[u8] = b"QPBDECHSFXdcf";

fn unknown_message(tag: u8) -> Report {
    Report::protocol(format!("invalid frontend message type {tag}"))
}

/// Settings of the session.
#[derive(Clone)]
struct Settings {
    /// Made by the client, to be made on every connection it uses.
    map: SettingMap,
    /// What RESET ALL goes back to: the startup packet's.
    initial: SettingMap,
    /// Schemas of `search_path`, as in force now.
    search_path: Arc<Vec<String>>,
    /// The proxy's own, as in force now.
    own: OwnSettings,
    /// What SET LOCAL has hidden, until the transaction's end.
    hidden: Option<Box<(Arc<Vec<String>>, OwnSettings)>>,
}

/// Settings named `automator67.*`.
#[derive(Clone)]
struct OwnSettings {
    /// `automator67.auto_distribute = 'primary_key'`.
    auto_distribute: bool,
    /// `automator67.gather_max_bytes`.
    gather_bytes_max: u64,
    /// `automator67.force_tier`: no tier below it answers a SELECT.
    tier: automator67_planner::Tier,
    /// `automator67.own_schemas`.
    own_schemas: automator67_planner::OwnSchemas,
    /// `automator67.work_mem_bytes`: what one statement may hold in memory.
    work_bytes: usize,
    /// `automator67.consistency`.
    consistency: Consistency,
    /// `automator67.sequence_block`: values reserved at once.
    sequence_block: u64,
    /// `client_min_messages` lets warnings through.
    warnings: bool,
}

impl OwnSettings {
    /// Nothing in them changes what statements become.
    fn plans_like_others(&self) -> bool {
        self.tier == automator67_planner::Tier::Single
            && self.own_schemas == automator67_planner::OwnSchemas::Hidden
    }
}

/// Serves one client from its first byte to its last.
pub async fn serve(
    process: Arc<Process>,
    thread: Arc<Thread>,
    hello: Hello,
    peer: String,
    stop: CancellationToken,
) {
    let stop = stop.child_token();
    let card = process.list_session(&hello.user.name, peer, stop.clone());
    let mut session = Session::new(
        process,
        thread,
        card,
        hello.user,
        Client {
            wire: hello.wire,
            captured: None,
        },
    );
    let greeted = Box::pin(session.greet(hello.settings)).await;
    let result = match greeted {
        Ok(()) => session.run(&stop).await,
        Err(failure) => Err(failure),
    };
    if let Err(failure) = result {
        session.say_farewell(failure).await;
    }
    session.leave();
    session.client.wire.close().await;
}

impl Session {
    fn new(
        process: Arc<Process>,
        thread: Arc<Thread>,
        card: Arc<SessionCard>,
        user: Arc<User>,
        client: Client,
    ) -> Self {
        let settings = Settings {
            map: SettingMap::default(),
            initial: SettingMap::default(),
            search_path: Arc::new(guc::search_path(DEFAULT_SEARCH_PATH, &user.name)),
            own: OwnSettings {
                auto_distribute: false,
                gather_bytes_max: process.settings.gather_bytes_max,
                tier: automator67_planner::Tier::Single,
                own_schemas: automator67_planner::OwnSchemas::Hidden,
                work_bytes: WORK_BYTES,
                consistency: process.settings.consistency,
                sequence_block: process.settings.sequence_block,
                warnings: true,
            },
            hidden: None,
        };
        Session {
            share: Share::new(&process.memory),
            process,
            thread,
            card,
            user,
            client,
            settings,
            statements: HashMap::new(),
            portals: Portals::default(),
            cursors: HashMap::new(),
            batch: Batch::default(),
            transaction: Transaction::default(),
            links: Vec::new(),
            pools: Vec::new(),
            no_types: Arc::from([]),
            scratch: Normalised::default(),
            pinned: false,
            residue: Residue::NONE,
            temporary: temporary::Known::default(),
            placeholders: BTreeSet::new(),
            sql_prepared: Vec::new(),
            sql_prepared_epoch: 0,
            skipping: false,
            began: Instant::now(),
            sync_taken_by_copy: false,
            work: scatter::Work::default(),
            moves_last: false,
            work_schema: moving::WorkSchema::new(),
            will_write: false,
            warned_several: false,
            memory: sequences::Memory::default(),
        }
    }

    /// Reads and answers messages until the client or the process ends.
    async fn run(&mut self, stop: &CancellationToken) -> Outcome {
        loop {
            let frame = match self.next_message(stop).await? {
                None => return Ok(()),
                Some(Incoming::Message(frame)) => frame,
                Some(Incoming::Refused(tag, report)) => {
                    Box::pin(self.refuse_message(tag, report)).await?;
                    continue;
                }
            };
            match frame.tag {
                b'Q' | b'F' if self.is_behind_batch() && Box::pin(self.skips_query()).await? => {}
                b'Q' => self.simple_query(frame).await?,
                b'F' => Box::pin(self.function_call(frame)).await?,
                b'X' => return Ok(()),
                b'P' | b'B' | b'D' | b'E' | b'C' | b'H' | b'S' => {
                    Box::pin(self.extended(frame)).await?;
                }
                // Left over from a COPY that failed on the server's side.
                b'd' | b'c' | b'f' => {}
                other => return Err(unknown_message(other).into()),
            }
        }
    }

    /// How long the client may wait with its next message.
    fn idle_limit(&self) -> Option<Box<(Duration, Report)>> {
        let open = self.transaction.is_explicit();
        let (name, sqlstate, message) = if open {
            (
                "idle_in_transaction_session_timeout",
                sqlstate::IDLE_IN_TRANSACTION_TIMEOUT,
                "terminating connection due to idle-in-transaction timeout",
            )
        } else {
            (
                "idle_session_timeout",
                sqlstate::IDLE_SESSION_TIMEOUT,
                "terminating connection due to idle-session timeout",
            )
        };
        let report = Report::error(sqlstate, message);
        let asked = self.settings.map.get(name).and_then(guc::duration);
        let held_up = open && self.transaction.announces();
        match asked.filter(|limit| !held_up || *limit <= SCHEMA_CHANGE_IDLE_MAX) {
            Some(limit) => Some(Box::new((limit, report))),
            None if held_up => {
                let report = report
                    .detail(
                        "The transaction has changed the schema, and held up all others that do.",
                    )
                    .hint("Commit changes of the schema soon after they are made.");
                Some(Box::new((SCHEMA_CHANGE_IDLE_MAX, report)))
            }
            None => None,
        }
    }

    /// A simple query: zero, one or more statements, then ReadyForQuery.
    async fn simple_query(&mut self, frame: Frame) -> Outcome {
        let started = Instant::now();
        self.began = started;
        if !self.statements.is_empty() {
            self.statements.remove("");
        }
        let result = self.simple_statements(&frame, started).await;
        self.end_query(result).await
    }

    /// The end of a query or of a function call: it is committed, unless a transaction block is open.
    async fn end_query(&mut self, result: Outcome) -> Outcome {
        self.leave_gate();
        let ended = match self.tell(result)? {
            Ok(()) if !self.transaction.is_open() => Ok(()),
            Ok(()) => {
                // The client is not told that a statement is done before it is committed.
                let complete = message::split_complete(self.client.output());
                let ended = Box::pin(self.end_implicit()).await;
                if ended.is_ok() {
                    self.client.output().extend_from_slice(&complete);
                }
                ended
            }
            Err(_) => {
                Box::pin(self.fail_transaction()).await;
                Ok(())
            }
        };
        // A commit that failed is told as well; the transaction is over either way.
        let _ = self.tell(ended)?;
        self.ready().await
    }

    async fn simple_statements(&mut self, frame: &Frame, started: Instant) -> Outcome {
        let text = message::query(frame.body())?;
        if self.transaction.is_stale() || self.temporary.matter() {
            Box::pin(self.refresh_catalog()).await?;
        }
        if !self.sql_prepared.is_empty() {
            Box::pin(self.judge_sql_prepared()).await?;
        }
        let mut prepared = match self.plan_simple(text).await {
            Ok(prepared) => prepared,
            Err(failure) => {
                let told = Box::pin(self.explain_syntax(failure, text)).await;
                return Err(self.unless_failed(told));
            }
        };
        while !self.enter(prepared.names(), &prepared.catalog).await? {
            prepared = self.plan_simple(text).await?;
        }
        // What runs takes the unnamed portal.
        if !self.transaction.is_failed() && self.portals.get("").is_some() {
            Box::pin(self.drop_unnamed()).await?;
        }
        match prepared.statements.as_slice() {
            [] => self.client.output().extend_from_slice(message::EMPTY_QUERY),
            [planned] => {
                let request = Request::simple(planned, &prepared, text);
                self.statement(&request, started).await?;
                self.scratch = prepared.normalised;
            }
            several => {
                Box::pin(self.several_statements(text, &prepared, several)).await?;
            }
        }
        Ok(())
    }

    /// One statement of a simple query. The common case, a statement for one shard outside a
    /// transaction, takes no other way than this.
    async fn statement(&mut self, request: &Request<'_>, started: Instant) -> Outcome {
        self.note_statement(request);
        if request.planned.parameters > 0 && !matches!(request.planned.plan, Plan::Prepare(_)) {
            // There are no parameters in a simple query: the server says so.
            return Box::pin(self.run_single(request, self.home())).await;
        }
        if let Plan::Single(target) = &request.planned.plan
            && self.is_plain(request)
            && let Some(shard) = self.resolve_now(target, request)?
        {
            let result = self.run_single(request, shard).await;
            self.count(request, Tier::Single, started);
            return result;
        }
        let result = Box::pin(self.execute(request)).await;
        let tier = *result.as_ref().unwrap_or(&Tier::Proxy);
        self.count(request, tier, started);
        result.map(|_| ())
    }

    /// Several statements are one transaction, unless they say otherwise (manual, "Multiple
    /// Statements in a Simple Query").
    async fn several_statements(
        &mut self,
        text: &str,
        prepared: &planning::Prepared,
        several: &[Arc<automator67_planner::plan::Planned>],
    ) -> Outcome {
        for (position, planned) in several.iter().enumerate() {
            let started = Instant::now();
            let changed = self.transaction.catalog.is_some();
            // A statement after a change of schema, or after SET, is planned anew.
            self.refresh_catalog().await?;
            self.judge_sql_prepared().await?;
            let fresh = if position > 0 && (changed || prepared.depends_on_order) {
                Box::pin(self.replan(text, planned)).await?
            } else {
                planned.clone()
            };
            let request = Request::part(&fresh, prepared, text, self.catalog());
            if !matches!(fresh.plan, Plan::Transaction(_) | Plan::Empty) {
                self.begin_implicit_block();
            }
            self.note_statement(&request);
            let tier = Box::pin(self.execute(&request)).await?;
            self.count(&request, tier, started);
        }
        Ok(())
    }

    /// Something of an extended batch waits for Sync.
    fn is_behind_batch(&self) -> bool {
        self.skipping || !self.batch.is_empty()
    }

    /// A failed transaction refuses what is no syntax error with its own words.
    fn unless_failed(&self, failure: Failure) -> Failure {
        if self.transaction.is_failed() && failure.sqlstate() != sqlstate::SYNTAX_ERROR {
            return execute::aborted();
        }
        failure
    }

    /// Writes a failure for the client; what cannot be told ends the session.
    fn tell(&mut self, result: Outcome) -> Outcome<Outcome> {
        match result {
            Err(failure @ (Failure::Farewell(_) | Failure::ClientGone)) => Err(failure),
            Err(failure) => {
                self.process.telemetry.errors.increment(1);
                let code = SqlState::of(failure.sqlstate());
                let sqlstate = code.as_str();
                tracing::debug!(session = self.card.id, sqlstate, "statement failed");
                failure.write(self.client.output());
                Ok(Err(Failure::Told(code)))
            }
            Ok(()) => Ok(Ok(())),
        }
    }

    /// ReadyForQuery, with everything sent and connections given back.
    async fn ready(&mut self) -> Outcome {
        if !self.transaction.is_open() {
            self.portals.clear();
        }
        self.release_links().await;
        let status = self.transaction.status();
        self.note_state(status);
        message::put_ready(self.client.output(), status);
        self.client.flush().await
    }

    fn count(&self, request: &Request<'_>, tier: Tier, started: Instant) {
        self.process
            .telemetry
            .statement(tier, request.planned.kind, started.elapsed());
        if tier != Tier::Single {
            lock(&self.card.activity).tier = tier.name();
        }
    }

    fn note_statement(&mut self, request: &Request<'_>) {
        self.residue = Residue::NONE;
        self.expect_residue(request.planned.session.residue);
        let mut activity = lock(&self.card.activity);
        activity.state = "active";
        activity.statement_kind = request.planned.kind;
        activity.tier = Tier::Single.name();
        activity.statements += 1;
    }

    fn note_state(&self, status: u8) {
        let mut activity: std::sync::MutexGuard<'_, Activity> = lock(&self.card.activity);
        activity.pinned = self.pinned;
        activity.state = match status {
            b'I' => "idle",
            b'T' => "idle in transaction",
            _ => "idle in transaction (aborted)",
        };
    }

    async fn say_farewell(&mut self, failure: Failure) {
        let report = match failure {
            Failure::Report(report) | Failure::Farewell(report) => report,
            Failure::Shard(frame) => Box::new(Report::of_frame(&frame)),
            Failure::Told(_) | Failure::ClientGone => return,
        };
        report.fatal().write(self.client.output());
        // The client may be gone already; there is nobody left to tell.
        let _ = self.client.flush().await;
    }

    /// Frees everything at once: statements still running are cancelled.
    fn leave(&mut self) {
        self.process.unlist_session(&self.card);
        for link in self.links.drain(..) {
            link.abandon(&self.process);
        }
    }

    fn home(&self) -> ShardId {
        self.process.home().id
    }
}

/// Ends when a limit is over; without one, never.
async fn idle_too_long(limit: Option<Box<(Duration, Report)>>) -> Report {
    match limit {
        Some(limit) => {
            let (limit, report) = *limit;
            Box::pin(tokio::time::sleep(limit)).await;
            report
        }
        None => std::future::pending().await,
    }
}

fn shutting_down() -> Failure {
    terminated().into()
}

fn terminated() -> Report {
    Report::error(
        sqlstate::ADMIN_SHUTDOWN,
        "terminating connection due to administrator command",
    )
}

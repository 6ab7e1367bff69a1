//! A connection to a shard: logging in, and the queue of answers that are still to come.

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

use automator67_planner::catalog::{Residue, ShardId};
use bytes::{Buf, BufMut, BytesMut};
use postgres_protocol::authentication::{
    md5_hash,
    sasl::{ChannelBinding, ScramSha256},
};
use thiserror::Error;
use tokio::net::{TcpStream, UnixStream};

use crate::{
    call::{self, ALL_AS_TEXT},
    error::{Report, sqlstate},
    frame::{self, FRAME_BYTES_MAX, Frame, HEADER_BYTES},
    guc::SettingMap,
    message,
    process::lock,
    settings::{ShardHost, ShardTls, User},
    shard::{self, Identity, Shard},
    shard_auth::{AuthCheck, NotAllowed},
    tls, two_phase, types,
    wire::{Stream, Wire},
};

/// Statements kept prepared on one server connection.
const PREPARED_MAX: usize = 500;

/// Statements of the proxy's own that a server connection keeps prepared.
#[derive(Debug, Clone, Copy)]
pub enum Own {
    /// A transaction whose snapshot stays.
    BeginSnapshot,
    /// Which commits over several shards the snapshot has seen.
    Seen,
    /// COMMIT.
    Commit,
}

impl Own {
    /// Its text.
    pub fn text(self) -> &'static str {
        match self {
            Own::BeginSnapshot => "BEGIN ISOLATION LEVEL REPEATABLE READ",
            Own::Seen => two_phase::SEEN,
            Own::Commit => "COMMIT",
        }
    }
}

/// Why a server connection could not be opened.
#[derive(Debug, Error)]
pub enum ConnectError {
    /// No connection.
    #[error("{0}")]
    Io(#[from] io::Error),
    /// No answer in time.
    #[error("no answer in time")]
    Timeout,
    /// The server refuses us, in its own words.
    #[error("{}", .0.message)]
    Server(Box<Report>),
    /// The server said something we do not understand.
    #[error("unexpected answer: {0}")]
    Protocol(&'static str),
    /// The server asks for what it may not.
    #[error(transparent)]
    Auth(#[from] NotAllowed),
    /// It is the server of another shard, or of none.
    #[error("{0}")]
    Stranger(String),
    /// The server has no TLS and our settings demand it.
    #[error("server does not support TLS, but it was required")]
    TlsRequired,
}

/// What the server answers a message with, and whether the client may see it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Expected {
    /// The answer to a message that was sent.
    Answer {
        /// To which.
        step: Step,
        /// The client asked for it.
        relay: bool,
    },
    /// Nothing was sent: these bytes are due to the client at this point.
    Local(&'static [u8]),
}

/// A message that has an answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Step {
    /// Ends with ReadyForQuery.
    Query,
    /// ParseComplete.
    Parse,
    /// BindComplete.
    Bind,
    /// RowDescription or NoData.
    Describe,
    /// RowDescription or NoData of a portal that is about to run, for our own use: its rows come
    /// in binary and may hold OIDs.
    Columns {
        /// The prepared statement behind it, where it has a name on the server.
        statement: Option<u64>,
    },
    /// CommandComplete, EmptyQueryResponse or PortalSuspended.
    Execute,
    /// CloseComplete.
    Close,
    /// ReadyForQuery.
    Sync,
    /// The same of a call of a function of ours, see [`call`].
    CallParse,
    /// BindComplete.
    CallBind,
    /// CommandComplete.
    CallExecute,
    /// ReadyForQuery.
    CallSync,
}

impl Step {
    /// What the server says meanwhile may show a proof.
    fn is_of_call(self) -> bool {
        match self {
            Step::CallParse | Step::CallBind | Step::CallExecute | Step::CallSync => true,
            Step::Query
            | Step::Parse
            | Step::Bind
            | Step::Describe
            | Step::Columns { .. }
            | Step::Execute
            | Step::Close
            | Step::Sync => false,
        }
    }
}

/// What a CancelRequest for a server connection needs.
pub struct BackendKey {
    /// Where.
    pub shard: Arc<Shard>,
    /// Process id and secret, as BackendKeyData gave them.
    pub key: Box<[u8]>,
    /// Why its statement is being cancelled, if that is to end a deadlock.
    pub deadlock: Mutex<Option<String>>,
    /// Its statement is being cancelled because the client's takes too long.
    pub timed_out: AtomicBool,
    /// The process id of the session that has the connection, or had it last; 0 when there was none.
    pub session: AtomicI32,
}

impl BackendKey {
    fn new(shard: &Arc<Shard>, key: &[u8]) -> Self {
        BackendKey {
            shard: shard.clone(),
            key: key.into(),
            deadlock: Mutex::default(),
            timed_out: AtomicBool::new(false),
            session: AtomicI32::new(0),
        }
    }

    /// The server process.
    pub fn pid(&self) -> i32 {
        self.key
            .first_chunk()
            .map_or(0, |pid| i32::from_be_bytes(*pid))
    }
}

/// A logged-in connection to a shard.
pub struct Server {
    /// The stream and its buffers.
    pub wire: Wire,
    /// Where it leads.
    pub shard: Arc<Shard>,
    /// For cancelling.
    pub key: Arc<BackendKey>,
    /// ParameterStatus values of the login.
    pub parameters: Vec<(String, String)>,
    /// Settings in force on it, beyond the server's own.
    pub settings: SettingMap,
    /// Names of custom settings that sessions have made here, which the server knows from then on:
    /// empty, where others are unknown. True: it surely does.
    pub placeholders: BTreeMap<String, bool>,
    /// Answers still to come, in order.
    pub expected: VecDeque<Expected>,
    /// Transaction status of the last ReadyForQuery.
    pub status: u8,
    /// The statement in the unnamed slot.
    pub unnamed: Option<u64>,
    /// An error in an answer that nobody asked for.
    pub hidden_error: Option<BytesMut>,
    /// Its RowDescriptions speak of temporary tables.
    pub forget_tables: bool,
    /// Set where the last RowDescription's [`message::shape`] is to be kept.
    pub shape: Option<Option<u64>>,
    /// It waits for COPY data of ours.
    pub copying: bool,
    /// Bytes of a frame too large to wait for that are still to be passed on (or over).
    pub passing: usize,
    /// The session whose `nextval` calls this server session remembers; `None` when several.
    pub sequence_owner: SequenceOwner,
    /// It broke before a byte of what was queued last was sent: the server has read none of it.
    pub unread: bool,
    /// What statements may have left here that the next client must not see.
    pub residue: Residue,
    /// Code that is not known may have made or dropped prepared statements since they were made.
    pub doubtful: bool,
    /// Columns of the rows that are coming, where these must be rewritten for the client.
    pub columns: Option<types::Columns>,
    /// Prepared statements whose results never hold OIDs.
    plain: types::PlainStatements,
    prepared: HashMap<u64, u64>,
    uses: u64,
}

/// Whose `currval` a server session would answer.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SequenceOwner {
    /// No sequence was moved yet.
    Nobody,
    /// Only this session (its number) has moved sequences here.
    Session(u64),
    /// Several have.
    Mixed,
}

/// What the next bytes of a server are.
#[derive(Debug)]
pub enum Arrived {
    /// A whole frame.
    Frame(Frame),
    /// Not a whole frame yet.
    Part,
    /// A whole frame, left where it is: something in it must be learned first.
    Untranslated(types::Untranslated),
}

impl From<Option<Frame>> for Arrived {
    fn from(frame: Option<Frame>) -> Self {
        frame.map_or(Arrived::Part, Arrived::Frame)
    }
}

impl Server {
    /// The shard's number.
    pub fn shard_id(&self) -> ShardId {
        self.shard.id
    }

    /// True when nothing is under way, no transaction is open and nothing is left of one: it may be
    /// given to others.
    pub fn is_clean(&self) -> bool {
        self.is_idle() && !self.residue.stays()
    }

    /// True when nothing is under way and no transaction is open.
    pub fn is_idle(&self) -> bool {
        self.expected.is_empty()
            && self.passing == 0
            && self.status == b'I'
            && self.wire.input.is_empty()
            && self.wire.output.is_empty()
    }

    /// Notes that an answer is due.
    pub fn expect(&mut self, step: Step, relay: bool) {
        self.expected.push_back(Expected::Answer { step, relay });
    }

    /// Queues a simple query.
    pub fn query(&mut self, text: &str, relay: bool) {
        message::put_query(&mut self.wire.output, text);
        self.expect(Step::Query, relay);
        self.unnamed = None;
    }

    /// Queues Sync.
    pub fn sync(&mut self) {
        message::put_sync(&mut self.wire.output);
        self.expect(Step::Sync, false);
    }

    /// Notes a use of a prepared statement; true when it is prepared here already.
    pub fn has_prepared(&mut self, id: u64) -> bool {
        self.uses += 1;
        match self.prepared.get_mut(&id) {
            Some(last_use) => {
                *last_use = self.uses;
                true
            }
            None => false,
        }
    }

    /// Queues a Parse of statement `id` under its name on every server, and a Close of the least
    /// used one when there are too many.
    pub fn prepare(&mut self, id: u64, text: &str, types: &[u32], relay: bool) {
        if self.prepared.len() >= PREPARED_MAX
            && let Some(oldest) = self
                .prepared
                .iter()
                .min_by_key(|(_, used)| **used)
                .map(|(id, _)| *id)
        {
            self.prepared.remove(&oldest);
            self.plain.remove(&oldest);
            message::put_close(&mut self.wire.output, b'S', &statement_name(oldest));
            self.expect(Step::Close, false);
        }
        if self.residue.stays() {
            // Code may have made a statement of this name. It is no error if not.
            message::put_close(&mut self.wire.output, b'S', &statement_name(id));
            self.expect(Step::Close, false);
        }
        self.put_parse(&statement_name(id), text, types);
        self.expect(Step::Parse, relay);
        self.prepared.insert(id, self.uses);
        self.plain.remove(&id);
    }

    /// Queues a Parse, without noting that its answer is due. `types` are those of the home shard.
    pub fn put_parse(&mut self, name: &str, text: &str, types: &[u32]) {
        let foreign = self.shard.types.as_ref();
        match foreign.filter(|_| types.iter().any(|oid| *oid >= types::FIRST_USER_OID)) {
            None => message::put_parse(&mut self.wire.output, name, text, types),
            Some(foreign) => {
                let map = foreign.map();
                // A pair that was lost since it was looked for: no server knows the last OID.
                let translate = |oid: &u32| map.to_shard(*oid).unwrap_or(u32::MAX);
                let types: Vec<u32> = types.iter().map(translate).collect();
                message::put_parse(&mut self.wire.output, name, text, &types);
            }
        }
    }

    /// Queues Execute; its answer is due. The rows of a portal with results in `binary` may hold
    /// OIDs: unless its prepared statement is known to have none, its columns are asked for.
    pub fn execute(
        &mut self,
        portal: &str,
        limit: i32,
        relay: bool,
        binary: bool,
        statement: Option<u64>,
    ) {
        let known_plain = statement.is_some_and(|id| self.plain.contains(&id));
        if binary && !known_plain && self.shard.types.is_some() {
            message::put_describe(&mut self.wire.output, b'P', portal);
            self.expect(Step::Columns { statement }, false);
        }
        message::put_execute(&mut self.wire.output, portal, limit);
        self.expect(Step::Execute, relay);
    }

    /// Queues a statement of the proxy's own, without Sync. It is prepared at its first use.
    pub fn execute_own(&mut self, own: Own, relay: bool) {
        // Clients' statements count from 1.
        let id = u64::MAX - own as u64;
        let name = if self.residue.stays() {
            // Code may have given the name to another statement.
            self.put_parse("", own.text(), &[]);
            self.expect(Step::Parse, false);
            self.unnamed = None;
            String::new()
        } else {
            if !self.has_prepared(id) {
                self.prepare(id, own.text(), &[], false);
            }
            statement_name(id)
        };
        message::put_bind(&mut self.wire.output, "", &name, ALL_AS_TEXT);
        self.expect(Step::Bind, false);
        self.execute("", 0, relay, false, Some(id));
    }

    /// Shows a function of ours on this connection that the proxy calls it. Without the key the
    /// server refuses, with a hint.
    pub fn proof(&self, function: &str) -> String {
        let key = self.shard.proof_key();
        key.map_or_else(String::new, |key| {
            call::proof(&key, self.key.pid(), function)
        })
    }

    /// A call of a function of ours is being answered.
    pub fn is_calling(&self) -> bool {
        matches!(self.expected.front(), Some(Expected::Answer { step, .. }) if step.is_of_call())
    }

    /// Takes one whole frame that has arrived, with the OIDs of the home shard in it.
    pub fn take_for_client(&mut self) -> Result<Arrived, frame::FrameError> {
        let Some(foreign) = &self.shard.types else {
            return self.take_frame().map(Arrived::from);
        };
        let Some((tag, size)) = frame::peek(&self.wire.input, FRAME_BYTES_MAX + 1)? else {
            return Ok(Arrived::Part);
        };
        let Some(bytes) = self.wire.input.get_mut(..size) else {
            return Ok(Arrived::Part);
        };
        let wanted = matches!(
            self.expected.front(),
            Some(Expected::Answer { relay: true, .. })
                | Some(Expected::Answer {
                    step: Step::Columns { .. },
                    ..
                })
        );
        let translated = match (tag, &self.columns) {
            (b'T', _) if wanted => types::row_description(&foreign.map(), bytes).map(Some),
            (b't', _) if wanted => {
                types::parameter_description(&foreign.map(), bytes).map(|()| None)
            }
            (b'D', Some(columns)) => types::data_row(&foreign.map(), columns, bytes).map(|()| None),
            _ => Ok(None),
        };
        match translated {
            Ok(described) => {
                if let Some(described) = described {
                    self.note_columns(described);
                }
                self.take_frame().map(Arrived::from)
            }
            Err(missing) => Ok(Arrived::Untranslated(missing)),
        }
    }

    /// A description is about to be taken: the rows behind it have these columns.
    fn note_columns(&mut self, described: types::Described) {
        match self.expected.front() {
            Some(Expected::Answer {
                step: Step::Columns { statement },
                ..
            }) => {
                if let (Some(id), true) = (*statement, described.plain)
                    && self.prepared.contains_key(&id)
                {
                    self.plain.insert(id);
                }
                self.columns = described.columns;
            }
            Some(Expected::Answer {
                step: Step::Query, ..
            }) => self.columns = described.columns,
            _ => {}
        }
    }

    /// Forgets what was prepared: DEALLOCATE ALL or DISCARD ALL ran, or a Parse failed.
    pub fn forget_prepared(&mut self, id: Option<u64>) {
        match id {
            Some(id) => {
                self.prepared.remove(&id);
                self.plain.remove(&id);
            }
            None => {
                self.prepared.clear();
                self.plain.clear();
            }
        }
        self.unnamed = None;
    }

    /// Code may have made and dropped prepared statements: queues their end, so that what is used
    /// next is prepared again.
    pub fn end_doubtful(&mut self) {
        for id in self.prepared.keys() {
            message::put_close(&mut self.wire.output, b'S', &statement_name(*id));
            let step = Step::Close;
            self.expected
                .push_back(Expected::Answer { step, relay: false });
        }
        self.forget_prepared(None);
        self.doubtful = false;
    }

    /// Ids prepared here, most recent first, that a failed batch may have left unprepared.
    pub fn prepared_since(&self, uses: u64) -> Vec<u64> {
        self.prepared
            .iter()
            .filter(|(_, used)| **used > uses)
            .map(|(id, _)| *id)
            .collect()
    }

    /// Grows with every use of a prepared statement.
    pub fn uses(&self) -> u64 {
        self.uses
    }

    /// A statement that was cancelled by the proxy says why.
    pub fn name_cause(&self, frame: &mut Frame) {
        if message::error_field(frame.body(), b'C') != Some(sqlstate::QUERY_CANCELED) {
            return;
        }
        if let Some(detail) = lock(&self.key.deadlock).take() {
            frame.bytes.clear();
            Report::error(sqlstate::DEADLOCK_DETECTED, "deadlock detected")
                .detail(detail)
                .hint("Repeat the transaction.")
                .write(&mut frame.bytes);
        } else if self.key.timed_out.swap(false, Ordering::Relaxed) {
            frame.bytes.clear();
            let message = "canceling statement due to statement timeout";
            Report::error(sqlstate::QUERY_CANCELED, message).write(&mut frame.bytes);
        }
    }

    /// A notification has the process id of the session that sent it, where that is one of this proxy.
    pub fn name_notifier(&self, frame: &mut Frame) {
        let pid = frame.body().first_chunk().copied().map(i32::from_be_bytes);
        let session = pid.and_then(|pid| self.shard.session_of(pid));
        let place = frame.bytes.get_mut(HEADER_BYTES..HEADER_BYTES + 4);
        if let (Some(session), Some(place)) = (session, place) {
            place.copy_from_slice(&session.to_be_bytes());
        }
    }

    /// Takes back what statements may have left: all that DISCARD ALL does. What the proxy has
    /// prepared goes as well: code may have put something else in its place. Not for what is
    /// [`Residue::lasting`].
    pub async fn reset(&mut self) -> Result<(), ConnectError> {
        message::put_query(&mut self.wire.output, &format!("{RESET}{}", reseed()));
        self.wire.flush().await?;
        while login_frame(&mut self.wire).await?.tag != b'Z' {}
        self.forget_prepared(None);
        self.settings = SettingMap::default();
        self.is_reset();
        Ok(())
    }

    /// Notes that nothing is left of what statements have set.
    pub fn is_reset(&mut self) {
        self.sequence_owner = SequenceOwner::Nobody;
        self.residue = Residue::NONE;
        self.doubtful = false;
    }

    /// Takes one whole frame that has arrived.
    pub fn take_frame(&mut self) -> Result<Option<Frame>, frame::FrameError> {
        frame::take(&mut self.wire.input, FRAME_BYTES_MAX + 1)
    }

    /// Notes that `session` moves a sequence here.
    pub fn move_sequence(&mut self, session: u64) {
        self.sequence_owner = match self.sequence_owner {
            SequenceOwner::Nobody => SequenceOwner::Session(session),
            SequenceOwner::Session(owner) if owner == session => SequenceOwner::Session(session),
            SequenceOwner::Session(_) | SequenceOwner::Mixed => SequenceOwner::Mixed,
        };
    }
}

/// A server session back to what it was after the login.
const RESET: &str = "SET SESSION AUTHORIZATION DEFAULT; RESET ROLE; RESET ALL; CLOSE ALL; \
    DEALLOCATE ALL; \
    UNLISTEN *; SELECT pg_catalog.pg_advisory_unlock_all(); DISCARD TEMP; DISCARD SEQUENCES; ";

/// Makes what `random()` gives unforeseeable again: no other command undoes `setseed`.
pub fn reseed() -> String {
    let seed: f64 = rand::random_range(-1.0..=1.0);
    format!("SELECT pg_catalog.setseed({seed})")
}

/// The name of a prepared statement on every server connection.
pub fn statement_name(id: u64) -> String {
    format!("a67_{id}")
}

/// Opens a connection and logs in.
pub async fn connect(shard: &Arc<Shard>, user: &User) -> Result<Server, ConnectError> {
    match tokio::time::timeout(shard.connect_timeout, open(shard, user)).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

/// Asks for a sign of life on a connection that is kept for that. Without one, or when it has
/// broken, logs in as the shard's admin.
pub async fn probe(shard: &Arc<Shard>, kept: &mut Option<Server>) -> Result<(), ConnectError> {
    if let Some(mut server) = kept.take()
        && answers(&mut server).await.is_ok()
    {
        *kept = Some(server);
        return Ok(());
    }
    let user = User {
        name: shard.settings.admin_user.clone(),
        password: shard.settings.admin_password.clone(),
        shard_password: shard.settings.admin_password.clone(),
    };
    *kept = Some(connect(shard, &user).await?);
    Ok(())
}

/// Sends Sync, which costs a server next to nothing, and waits for ReadyForQuery.
async fn answers(server: &mut Server) -> Result<(), ConnectError> {
    message::put_sync(&mut server.wire.output);
    server.wire.flush().await?;
    while login_frame(&mut server.wire).await?.tag != b'Z' {}
    Ok(())
}

/// Asks the server behind `key` to stop what it does. Returns when it has passed the request on.
pub async fn cancel(key: &BackendKey) -> Result<(), ConnectError> {
    let request = async {
        let (mut wire, _) = dial(&key.shard).await?;
        wire.output.put_i32(8 + key.key.len() as i32);
        wire.output.put_i32(80_877_102);
        wire.output.extend_from_slice(&key.key);
        wire.flush().await?;
        // The server closes the connection after it has sent the signal.
        while wire.fill().await? > 0 {}
        Ok(())
    };
    match tokio::time::timeout(key.shard.connect_timeout, request).await {
        Ok(result) => result,
        Err(_) => Err(ConnectError::Timeout),
    }
}

async fn open(shard: &Arc<Shard>, user: &User) -> Result<Server, ConnectError> {
    let (mut wire, certificate_hash) = dial(shard).await?;
    put_startup(&mut wire.output, &user.name, &shard.settings.database);
    wire.flush().await?;
    let check = AuthCheck::new(shard.settings.auth);
    authenticate(&mut wire, user, check, certificate_hash).await?;
    let mut server = Server {
        wire,
        shard: shard.clone(),
        key: Arc::new(BackendKey::new(shard, &[0; 8])),
        parameters: Vec::new(),
        settings: SettingMap::default(),
        placeholders: BTreeMap::new(),
        expected: VecDeque::new(),
        status: b'I',
        unnamed: None,
        hidden_error: None,
        forget_tables: false,
        shape: None,
        copying: false,
        passing: 0,
        sequence_owner: SequenceOwner::Nobody,
        unread: false,
        residue: Residue::NONE,
        doubtful: false,
        columns: None,
        plain: types::PlainStatements::new(),
        prepared: HashMap::new(),
        uses: 0,
    };
    // Read behind what the login still has to say, which the server does not wait for either.
    if shard.identity().is_some() {
        message::put_query(&mut server.wire.output, IDENTITY);
        server.wire.flush().await?;
    }
    loop {
        let frame = login_frame(&mut server.wire).await?;
        match frame.tag {
            b'Z' => break,
            b'K' => {
                server.key = Arc::new(BackendKey::new(shard, frame.body()));
                shard.note_backend(&server.key);
            }
            b'S' => {
                let mut reader = message::Reader::new(frame.body());
                if let (Ok(name), Ok(value)) = (reader.string(), reader.string()) {
                    server.parameters.push((name.to_owned(), value.to_owned()));
                }
            }
            _ => {}
        }
    }
    if shard.identity().is_some() {
        let found = read_identity(&mut server.wire).await?;
        shard
            .recognise(found.as_ref())
            .map_err(ConnectError::Stranger)?;
    }
    Ok(server)
}

/// What a server has been told of itself; see [`Shard::recognise`].
pub const IDENTITY: &str = "SELECT cluster, shard FROM automator67.identity";

/// The answer to that. A server that has no such table has been told nothing.
async fn read_identity(wire: &mut Wire) -> Result<Option<Identity>, ConnectError> {
    let mut found = None;
    loop {
        let frame = next_frame(wire).await?;
        match frame.tag {
            b'D' => {
                let values = message::data_row(frame.body()).unwrap_or_default();
                let text = |index: usize| std::str::from_utf8(values.get(index).copied()??).ok();
                found = text(0).zip(text(1)).and_then(|(cluster, shard)| {
                    let shard = shard.parse().ok()?;
                    let cluster = cluster.to_owned();
                    Some(Identity { cluster, shard })
                });
            }
            b'E' => {
                let report = Report::of_body(frame.body());
                let unknown = [sqlstate::UNDEFINED_TABLE, sqlstate::INVALID_SCHEMA_NAME];
                if !unknown.contains(&report.sqlstate.as_str()) {
                    return Err(ConnectError::Server(Box::new(report)));
                }
            }
            b'Z' => return Ok(found),
            _ => {}
        }
    }
}

/// Connects, with TLS where the settings ask for it. Returns the hash of the server's certificate
/// for channel binding.
pub async fn dial(shard: &Shard) -> Result<(Wire, Option<Vec<u8>>), ConnectError> {
    let host = match &shard.settings.host {
        ShardHost::Unix(directory) => {
            let path = directory.join(format!(".s.PGSQL.{}", shard.settings.port));
            return Ok((
                Wire::new(Stream::Unix(UnixStream::connect(path).await?)),
                None,
            ));
        }
        ShardHost::Tcp(host) => host,
    };
    let mut stream = TcpStream::connect((host.as_str(), shard.settings.port)).await?;
    stream.set_nodelay(true)?;
    shard::guard_against_silence(&stream, shard.connect_timeout)?;
    let Some(connector) = &shard.connector else {
        return Ok((Wire::new(Stream::Tcp(stream)), None));
    };
    if !offers_tls(&mut stream).await? {
        return match shard.settings.tls {
            ShardTls::Disable | ShardTls::Prefer => Ok((Wire::new(Stream::Tcp(stream)), None)),
            ShardTls::Require | ShardTls::VerifyCa | ShardTls::VerifyFull => {
                Err(ConnectError::TlsRequired)
            }
        };
    }
    let name = rustls_pki_types::ServerName::try_from(host.clone())
        .map_err(|_| ConnectError::Protocol("host name is not valid for TLS"))?;
    let stream = connector.connect(name, stream).await?;
    let hash = stream
        .get_ref()
        .1
        .peer_certificates()
        .and_then(|all| all.first())
        .map(|first| tls::end_point_hash(first));
    Ok((Wire::new(Stream::TlsClient(Box::new(stream))), hash))
}

async fn offers_tls(stream: &mut TcpStream) -> Result<bool, ConnectError> {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    stream.write_all(&[0, 0, 0, 8, 4, 210, 22, 47]).await?;
    match stream.read_u8().await? {
        b'S' => Ok(true),
        b'N' => Ok(false),
        _ => Err(ConnectError::Protocol("answer to SSLRequest")),
    }
}

fn put_startup(output: &mut BytesMut, user: &str, database: &str) {
    let start = output.len();
    output.put_i32(0);
    output.put_i32(3 << 16);
    let parameters = [
        ("user", user),
        ("database", database),
        ("client_encoding", "UTF8"),
        // Tables with a global unique index take writes from no one else.
        ("automator67.proxy", "on"),
    ];
    for (name, value) in parameters {
        message::put_string(output, name);
        message::put_string(output, value);
    }
    output.put_u8(0);
    let length = (output.len() - start) as i32;
    output[start..start + 4].copy_from_slice(&length.to_be_bytes());
}

async fn authenticate(
    wire: &mut Wire,
    user: &User,
    mut check: AuthCheck,
    certificate_hash: Option<Vec<u8>>,
) -> Result<(), ConnectError> {
    let mut scram: Option<ScramSha256> = None;
    loop {
        let frame = login_frame(wire).await?;
        if frame.tag != b'R' {
            return Err(ConnectError::Protocol("message before authentication"));
        }
        let mut body = frame.body();
        if body.len() < 4 {
            return Err(ConnectError::Protocol("authentication message"));
        }
        check.heed(body)?;
        let bad = |_| ConnectError::Protocol("SCRAM message");
        match body.get_i32() {
            0 => return Ok(()),
            3 => put_password(wire, user.shard_password.as_bytes()),
            5 => {
                let salt = body
                    .first_chunk::<4>()
                    .ok_or(ConnectError::Protocol("authentication salt"))?;
                let hash = md5_hash(user.name.as_bytes(), user.shard_password.as_bytes(), *salt);
                put_password(wire, hash.as_bytes());
            }
            10 => {
                let (mechanism, binding) = choose_mechanism(body, certificate_hash.clone());
                let conversation = ScramSha256::new(user.shard_password.as_bytes(), binding);
                message::framed(&mut wire.output, b'p', |out| {
                    message::put_string(out, mechanism);
                    out.put_i32(conversation.message().len() as i32);
                    out.extend_from_slice(conversation.message());
                });
                scram = Some(conversation);
            }
            11 => {
                let mut conversation = scram
                    .take()
                    .ok_or(ConnectError::Protocol("SCRAM message"))?;
                let challenge = body.to_vec();
                // Thousands of hashes: the thread's clients do not wait for them.
                let answered = tokio::task::spawn_blocking(move || {
                    conversation.update(&challenge).map(|()| conversation)
                });
                let conversation = answered.await.map_err(io::Error::other)?.map_err(bad)?;
                let reply = conversation.message();
                message::framed(&mut wire.output, b'p', |out| out.extend_from_slice(reply));
                scram = Some(conversation);
            }
            12 => {
                let conversation = scram
                    .as_mut()
                    .ok_or(ConnectError::Protocol("SCRAM message"))?;
                conversation.finish(body).map_err(bad)?;
            }
            _ => return Err(ConnectError::Protocol("unsupported authentication method")),
        }
        wire.flush().await?;
    }
}

fn choose_mechanism(
    offered: &[u8],
    certificate_hash: Option<Vec<u8>>,
) -> (&'static str, ChannelBinding) {
    let plus = offered
        .split(|byte| *byte == 0)
        .any(|name| name == b"SCRAM-SHA-256-PLUS");
    match certificate_hash {
        Some(hash) if plus => (
            "SCRAM-SHA-256-PLUS",
            ChannelBinding::tls_server_end_point(hash),
        ),
        Some(_) => ("SCRAM-SHA-256", ChannelBinding::unrequested()),
        None => ("SCRAM-SHA-256", ChannelBinding::unsupported()),
    }
}

fn put_password(wire: &mut Wire, password: &[u8]) {
    message::framed(&mut wire.output, b'p', |body| {
        body.extend_from_slice(password);
        body.put_u8(0);
    });
}

/// The next frame of the login; an ErrorResponse is an error.
async fn login_frame(wire: &mut Wire) -> Result<Frame, ConnectError> {
    let frame = next_frame(wire).await?;
    if frame.tag == b'E' {
        return Err(ConnectError::Server(Box::new(Report::of_body(
            frame.body(),
        ))));
    }
    Ok(frame)
}

async fn next_frame(wire: &mut Wire) -> Result<Frame, ConnectError> {
    loop {
        let taken = frame::take(&mut wire.input, FRAME_BYTES_MAX)
            .map_err(|_| ConnectError::Protocol("malformed frame"))?;
        match taken {
            Some(frame) => return Ok(frame),
            None => {
                if wire.fill().await? == 0 {
                    return Err(io::Error::from(io::ErrorKind::UnexpectedEof).into());
                }
            }
        }
    }
}

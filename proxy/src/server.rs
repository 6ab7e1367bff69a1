//! A connection to a shard, and the answers that are still to come on it.
//!
//! `login` opens it, `queue` writes messages and notes what is due for each, `relay` sends them and
//! reads the answers, `call` calls functions of ours.

pub mod call;
mod idle;
mod login;
mod queue;
pub mod relay;

pub use login::{IDENTITY, cancel, connect, dial, probe};
pub use queue::{Answer, Own};

use std::{
    collections::{BTreeMap, HashMap, VecDeque},
    io,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicI32, Ordering},
    },
};

use automator67_planner::catalog::{Residue, ShardId};
use bytes::BytesMut;
use thiserror::Error;

use self::login::login_frame;
use crate::{
    error::{Report, sqlstate},
    frame::{self, FRAME_BYTES_MAX, Frame, HEADER_BYTES},
    guc::SettingMap,
    message,
    process::lock,
    shard::Shard,
    shard_auth::NotAllowed,
    types,
    wire::Wire,
};

/// Statements kept prepared on one server connection.
const PREPARED_MAX: usize = 500;

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
    wire: Wire,
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
    expected: VecDeque<Expected>,
    /// Transaction status of the last ReadyForQuery.
    pub status: u8,
    /// The statement in the unnamed slot.
    unnamed: Option<u64>,
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

//! Runs the steps of a case on one server, and sees which of them wait.

use std::{
    collections::BTreeMap,
    sync::mpsc::{self, Receiver, Sender},
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use bytes::BytesMut;
use postgres_protocol::message::frontend;

use super::{Action, Case, Entry, File, Keys, Preparation, Seen, Transcript};
use crate::{
    answer::{self, TypeNames},
    play::{self, Mode},
    wire::{self, Closed, Connection, Frame, Server},
};

/// A step that stands behind a lock for so long waits for another session, and is not just late.
const WAITING: Duration = Duration::from_millis(20);
/// A step that neither answers nor waits for a lock for so long is told as silent.
const SILENT: Duration = Duration::from_secs(10);
/// No answer takes longer.
const ANSWER_LIMIT: Duration = Duration::from_secs(20);
/// What a session calls itself, with its number.
const APPLICATION: &str = "isolation session ";

/// A server, and the Postgres servers where its sessions may wait for locks.
#[derive(Debug, Clone)]
pub struct Observed {
    /// Where sessions connect.
    pub server: Server,
    /// Itself, when it is a plain Postgres; else the shards.
    pub postgres: Vec<Server>,
    /// It understands where rows are placed.
    pub proxy: bool,
}

/// Runs every case of `file`; an error is told in place of its transcript.
pub fn play(
    on: &Observed,
    file: &File,
    keys: &Keys,
    mode: Mode,
) -> Result<Vec<Result<Transcript>>> {
    play::clear(&on.server)?;
    let observers = on.postgres.iter().map(Connection::open);
    let mut player = Player {
        on,
        keys,
        mode,
        connection: Connection::open(&on.server)?,
        observers: observers.collect::<Result<_>>()?,
        sessions: BTreeMap::new(),
        transcript: Vec::new(),
    };
    player.prepare(&file.once)?;
    Ok(file.cases.iter().map(|case| player.play(case)).collect())
}

struct Player<'a> {
    on: &'a Observed,
    keys: &'a Keys,
    mode: Mode,
    /// For what is before the steps.
    connection: Connection,
    observers: Vec<Connection>,
    sessions: BTreeMap<u8, Session>,
    transcript: Transcript,
}

impl Player<'_> {
    fn prepare(&mut self, preparations: &[Preparation]) -> Result<()> {
        for preparation in preparations {
            match preparation {
                Preparation::Sql(text) => self.connection.execute(&self.keys.fill(text))?,
                Preparation::Placement(text) if self.on.proxy => self.connection.execute(text)?,
                Preparation::Placement(_) => None,
            };
        }
        Ok(())
    }

    fn play(&mut self, case: &Case) -> Result<Transcript> {
        self.prepare(&case.setup).context("setup")?;
        self.transcript.clear();
        for step in &case.steps {
            if !self.sessions.contains_key(&step.session) {
                let session = Session::open(&self.on.server, step.session)?;
                self.sessions.insert(step.session, session);
            }
        }
        let played = (0..case.steps.len()).try_for_each(|index| self.step(case, index));
        let ended = self.end();
        played.and(ended)?;
        Ok(std::mem::take(&mut self.transcript))
    }

    fn step(&mut self, case: &Case, index: usize) -> Result<()> {
        let step = &case.steps[index];
        match &step.action {
            Action::Run { text, .. } => {
                self.answer(step.session)?;
                let bytes = message(&self.keys.fill(text), self.mode)?;
                let session = self.session(step.session)?;
                session.orders.send(Order::Send(bytes))?;
                session.pending = Some(index);
                return self.settle(Some(step.session));
            }
            Action::Await => self.answer(step.session)?,
            Action::Close => {
                let session = self.sessions.remove(&step.session);
                let session = session.context("no such session")?;
                session.orders.send(Order::Close)?;
                let _ = session.answers.recv_timeout(ANSWER_LIMIT);
            }
            Action::Cancel => {
                let server = &self.on.server;
                let session = self.sessions.get_mut(&step.session);
                let session = session.context("no such session")?;
                wire::cancel(server, session.process, &session.secret)?;
                self.answer(step.session)?;
            }
            Action::Closed => {
                let session = self.sessions.remove(&step.session);
                let session = session.context("no such session")?;
                session.orders.send(Order::Read)?;
                match session.answers.recv_timeout(SILENT) {
                    Ok(answer) => self.note(index, answer?)?,
                    Err(_) => self.transcript.push(Entry {
                        step: index,
                        seen: Seen::Silent,
                    }),
                }
            }
        }
        self.settle(None)
    }

    fn session(&mut self, number: u8) -> Result<&mut Session> {
        self.sessions.get_mut(&number).context("no such session")
    }

    /// Waits for the answer of `number`, if it has one to give.
    fn answer(&mut self, number: u8) -> Result<()> {
        let session = self.session(number)?;
        let Some(step) = session.pending else {
            return Ok(());
        };
        let Ok(answer) = session.answers.recv_timeout(ANSWER_LIMIT) else {
            bail!("session {number} does not answer");
        };
        session.pending = None;
        self.note(step, answer?)
    }

    fn note(&mut self, step: usize, answer: Answer) -> Result<()> {
        let events = answer::events(&answer.frames, &TypeNames::new())?;
        let seen = Seen::Answered(events, answer.closed);
        self.transcript.push(Entry { step, seen });
        Ok(())
    }

    /// Looks until every session has answered or waits for a lock. What `fresh`, which has just
    /// begun, does comes first in the transcript; then the others' answers, by number.
    fn settle(&mut self, fresh: Option<u8>) -> Result<()> {
        let start = Instant::now();
        let mut blocked_since: BTreeMap<u8, Instant> = BTreeMap::new();
        let mut answers: BTreeMap<u8, (usize, Answer)> = BTreeMap::new();
        loop {
            for (number, session) in &mut self.sessions {
                if let Some(step) = session.pending
                    && let Ok(answer) = session.answers.try_recv()
                {
                    session.pending = None;
                    answers.insert(*number, (step, answer?));
                }
            }
            let blocked = self.blocked(fresh)?;
            blocked_since.retain(|number, _| blocked.contains(number));
            for number in blocked {
                blocked_since.entry(number).or_insert_with(Instant::now);
            }
            let mut pending = self.pending();
            if pending.all(|(number, _)| {
                let since = blocked_since.get(&number);
                since.is_some_and(|since| since.elapsed() > WAITING)
            }) || start.elapsed() > SILENT
            {
                break;
            }
            std::thread::sleep(Duration::from_millis(2));
        }
        if let Some(fresh) = fresh {
            let waiting = self.pending().find(|(number, _)| *number == fresh);
            if let Some((step, answer)) = answers.remove(&fresh) {
                self.note(step, answer)?;
            } else if let Some((_, step)) = waiting {
                let waits = blocked_since.contains_key(&fresh);
                let seen = if waits { Seen::Waits } else { Seen::Silent };
                self.transcript.push(Entry { step, seen });
            }
        }
        answers
            .into_values()
            .try_for_each(|(step, answer)| self.note(step, answer))
    }

    fn pending(&self) -> impl Iterator<Item = (u8, usize)> {
        self.sessions
            .iter()
            .filter_map(|(number, session)| Some((*number, session.pending?)))
    }

    /// The sessions of which a server process waits for another. A process that belongs to no
    /// session works for `fresh`.
    fn blocked(&mut self, fresh: Option<u8>) -> Result<Vec<u8>> {
        if self.pending().next().is_none() {
            return Ok(Vec::new());
        }
        let mut blocked = Vec::new();
        for observer in &mut self.observers {
            let names = observer.rows(
                "select application_name from pg_stat_activity where backend_type = 'client backend' \
                 and (cardinality(pg_blocking_pids(pid)) > 0 \
                 or cardinality(pg_safe_snapshot_blocking_pids(pid)) > 0)",
            )?;
            for name in names.into_iter().flatten().flatten() {
                let number = name.strip_prefix(APPLICATION);
                let number = number.and_then(|number| number.parse().ok());
                blocked.extend(number.or(fresh));
            }
        }
        Ok(blocked)
    }

    /// Makes every session as new, or ends it. One that still waits is cancelled.
    fn end(&mut self) -> Result<()> {
        let mut silent = Vec::new();
        for (number, mut session) in std::mem::take(&mut self.sessions) {
            if session.pending.is_some() {
                silent.push(number);
                wire::cancel(&self.on.server, session.process, &session.secret)?;
                let _ = session.answers.recv_timeout(ANSWER_LIMIT);
            } else if session.renew() {
                self.sessions.insert(number, session);
            }
        }
        if silent.is_empty() {
            return Ok(());
        }
        bail!("without an answer at the end: sessions {silent:?}")
    }
}

/// One statement as a message.
fn message(text: &str, mode: Mode) -> Result<BytesMut> {
    let mut bytes = BytesMut::new();
    match mode {
        Mode::Simple => frontend::query(text, &mut bytes)?,
        Mode::Text => play::put_extended(&mut bytes, text, &[], Vec::new(), 0)?,
        Mode::Binary => play::put_extended(&mut bytes, text, &[], Vec::new(), 1)?,
    }
    Ok(bytes)
}

/// A session with a thread of its own.
struct Session {
    process: u32,
    secret: Vec<u8>,
    orders: Sender<Order>,
    answers: Receiver<Result<Answer>>,
    /// The step that has no answer yet.
    pending: Option<usize>,
}

enum Order {
    /// Sends a statement and reads its answer.
    Send(BytesMut),
    /// Reads until the server closes the connection.
    Read,
    /// Closes the connection without a word.
    Close,
}

/// What came until ReadyForQuery, or until the connection was closed.
struct Answer {
    frames: Vec<Frame>,
    closed: bool,
}

impl Session {
    fn open(server: &Server, number: u8) -> Result<Session> {
        let mut server = server.clone();
        let name = format!("{APPLICATION}{number}");
        server.options.push(("application_name".to_owned(), name));
        let mut connection = Connection::open(&server)?;
        connection.set_read_limit(ANSWER_LIMIT * 2)?;
        let (process, secret) = (connection.process, connection.secret.to_vec());
        let (orders, todo) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        std::thread::spawn(move || obey(connection, &todo, &done));
        Ok(Session {
            process,
            secret,
            orders,
            answers,
            pending: None,
        })
    }

    /// Ends its transaction and forgets its settings; false when it cannot.
    fn renew(&mut self) -> bool {
        ["rollback", "discard all"].iter().all(|text| {
            let sent = message(text, Mode::Simple)
                .is_ok_and(|bytes| self.orders.send(Order::Send(bytes)).is_ok());
            sent && matches!(
                self.answers.recv_timeout(ANSWER_LIMIT),
                Ok(Ok(answer)) if !answer.closed && answer.frames.iter().all(|it| it.tag != b'E')
            )
        })
    }
}

fn obey(mut connection: Connection, orders: &Receiver<Order>, answers: &Sender<Result<Answer>>) {
    for order in orders {
        let answer = match order {
            Order::Send(bytes) => connection.send(&bytes).and_then(|()| read(&mut connection)),
            Order::Read => read(&mut connection),
            Order::Close => break,
        };
        if answers.send(answer).is_err() {
            break;
        }
    }
    // Closed before the player hears of it: it waits for the channel's end.
    drop(connection);
}

fn read(connection: &mut Connection) -> Result<Answer> {
    let mut frames = Vec::new();
    loop {
        let frame = match connection.receive() {
            Ok(frame) => frame,
            Err(error) if error.is::<Closed>() => {
                return Ok(Answer {
                    frames,
                    closed: true,
                });
            }
            Err(error) => return Err(error),
        };
        let tag = frame.tag;
        if !matches!(tag, b'N' | b'A' | b'S') {
            frames.push(frame);
        }
        if tag == b'Z' {
            return Ok(Answer {
                frames,
                closed: false,
            });
        }
    }
}

//! Other proxies of the same shards. A plan says where rows are and what a table looks like; so a change
//! of that keeps statements away from the table not only here (see [`crate::gate`]), but in every proxy.
//!
//! Each proxy has a connection to the home shard for this, on which they talk by NOTIFY:
//!
//! | message | from | means |
//! |---|---|---|
//! | `close N bits ...` | who changes tables | keep statements on tables with these [`names::bits`] away |
//! | `closed P N` | each other | there is none under way any more, for message N of the server process P |
//! | `busy P N` | any other | there are some that do not end |
//! | `open N epoch` | who has changed them | go on, with the catalog of this epoch where one is given |
//! | `open N ?` | the same | go on when what has become of the change is known |
//!
//! Who changes tables waits for all that are connected. A proxy that loses its connection is not waited
//! for: it has lost sight of the catalog as well.

use std::{
    collections::{HashMap, HashSet},
    future::poll_fn,
    sync::{Arc, atomic::Ordering::SeqCst},
    time::{Duration, Instant},
};

use automator67_planner::names;
use tokio::sync::{mpsc, oneshot};
use tokio_postgres::AsyncMessage;
use tokio_util::sync::CancellationToken;

use crate::{
    gate::Barrier,
    process::Process,
    shard::Shard,
    store::{self, StoreError},
};

/// The name of every proxy's connection for this.
const NAME: &str = "automator67 neighbour";
/// How long a proxy waits for statements of its own that are under way.
const IDLE_WAIT: Duration = Duration::from_secs(10);
const LOOK_AGAIN: Duration = Duration::from_millis(2);
/// How often it is looked whether those that are waited for are still there.
const LOOK_AFTER: Duration = Duration::from_secs(1);
/// Tables stay closed so long after who closed them is gone: what it has left prepared is ended first.
const LEFT_WAIT: Duration = Duration::from_secs(5);
/// Pause between attempts to reach the home shard again.
const RETRY: Duration = Duration::from_secs(1);
/// Messages that wait to be read; more of them wait on the connection.
const NOTES_MAX: usize = 1024;

/// Talks to the other proxies.
pub struct Neighbours {
    asks: mpsc::UnboundedSender<Ask>,
}

/// Why tables could not be closed everywhere.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Unclosed {
    /// Another proxy has statements on them that do not end.
    Busy,
    /// There is no connection to the home shard.
    Lost,
}

/// The gate of every other proxy is closed as long as this lives.
#[derive(Debug)]
pub struct Far {
    number: u64,
    /// What the others must know before it opens.
    pub until: Until,
    asks: mpsc::UnboundedSender<Ask>,
}

/// What a proxy must know before statements may go on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Until {
    /// Nothing: nothing has changed.
    Now,
    /// The catalog of this epoch.
    Epoch(u64),
    /// What has become of a transaction whose commit was not answered: recovery ends it.
    Decided,
}

impl Until {
    /// As it stands in a message.
    fn text(self) -> String {
        match self {
            Until::Now => "0".to_owned(),
            Until::Epoch(epoch) => epoch.to_string(),
            Until::Decided => "?".to_owned(),
        }
    }

    fn of(text: &str) -> Until {
        match text.parse() {
            Ok(0) => Until::Now,
            Ok(epoch) => Until::Epoch(epoch),
            Err(_) => Until::Decided,
        }
    }
}

impl Drop for Far {
    fn drop(&mut self) {
        let (number, until) = (self.number, self.until);
        // At the end of the process there is nobody to be told.
        let _ = self.asks.send(Ask::Open { number, until });
    }
}

/// What sessions, and waits of our own, ask for.
#[derive(Debug)]
enum Ask {
    Close {
        tables: Vec<u64>,
        answer: oneshot::Sender<Result<Option<Far>, Unclosed>>,
    },
    Open {
        number: u64,
        until: Until,
    },
    /// Statements on tables that another proxy changes have ended, or not.
    Waited {
        key: Key,
        idle: bool,
    },
}

impl Neighbours {
    /// Keeps statements of other proxies away from tables. `None`: there is no other proxy.
    pub async fn close(&self, tables: Vec<u64>) -> Result<Option<Far>, Unclosed> {
        let (answer, answered) = oneshot::channel();
        let _ = self.asks.send(Ask::Close { tables, answer });
        answered.await.unwrap_or(Err(Unclosed::Lost))
    }
}

/// Who closes tables, by its server process, and the number of its message.
type Key = (i32, u64);

/// A close of ours that others have not answered yet.
struct Pending {
    waited_for: HashSet<i32>,
    answer: oneshot::Sender<Result<Option<Far>, Unclosed>>,
}

/// Tables that another proxy changes.
struct Held {
    barrier: Barrier,
    /// Since when its proxy is gone.
    left: Option<Instant>,
}

/// The connection on which proxies talk.
struct Line {
    client: tokio_postgres::Client,
    /// Messages of others: server process and text.
    notes: mpsc::Receiver<(i32, String)>,
    channel: String,
    pid: i32,
}

impl Line {
    async fn connect(home: &Arc<Shard>) -> Result<Line, StoreError> {
        let (client, mut connection) = store::connect(home).await?;
        let (sender, notes) = mpsc::channel(NOTES_MAX);
        tokio::spawn(async move {
            while let Some(Ok(message)) = poll_fn(|context| connection.poll_message(context)).await
            {
                if let AsyncMessage::Notification(note) = message {
                    let note = (note.process_id(), note.payload().to_owned());
                    if sender.send(note).await.is_err() {
                        return;
                    }
                }
            }
        });
        let row = client
            .query_one(
                "select automator67.channel() || '_gate', pg_backend_pid()",
                &[],
            )
            .await?;
        let channel: String = row.get(0);
        let text = format!("set application_name = '{NAME}'; listen {channel}");
        client.batch_execute(&text).await?;
        Ok(Line {
            client,
            notes,
            channel,
            pid: row.get(1),
        })
    }

    async fn say(&self, text: &str) -> Result<(), StoreError> {
        let parameters: &[&(dyn tokio_postgres::types::ToSql + Sync)] = &[&self.channel, &text];
        self.client
            .execute("select pg_notify($1, $2)", parameters)
            .await?;
        Ok(())
    }

    /// The server processes of all other proxies. Only the owner of our schemas has such a connection.
    async fn others(&self) -> Result<HashSet<i32>, StoreError> {
        let rows = self
            .client
            .query(
                "select pid from pg_stat_activity where datname = current_database() \
                 and usename = current_user and application_name = $1 and pid <> $2",
                &[&NAME, &self.pid],
            )
            .await?;
        Ok(rows.iter().map(|row| row.get(0)).collect())
    }
}

/// Connected, and not attended to yet. From here on others wait for this proxy.
pub struct Listening {
    line: Line,
    asks: mpsc::UnboundedReceiver<Ask>,
}

/// Connects, before the first catalog is loaded: what others change behind that is told here.
pub async fn listen(home: &Arc<Shard>) -> Result<(Neighbours, Listening), StoreError> {
    let line = Line::connect(home).await?;
    let (sender, asks) = mpsc::unbounded_channel();
    Ok((Neighbours { asks: sender }, Listening { line, asks }))
}

/// Answers other proxies, and passes on what sessions ask of them, until `stop`.
pub async fn attend(listening: Listening, process: Arc<Process>, stop: CancellationToken) {
    let Listening { line, mut asks } = listening;
    let mut desk = Desk {
        process,
        pending: HashMap::new(),
        held: HashMap::new(),
        last: 0,
    };
    let mut line = Some(line);
    loop {
        let result = tokio::select! {
            () = stop.cancelled() => return,
            result = desk.serve(&mut line, &mut asks) => result,
        };
        if let Err(error) = result {
            tracing::warn!(%error, "lost the connection to the other proxies");
        }
        line = None;
        for (_, pending) in desk.pending.drain() {
            let _ = pending.answer.send(Err(Unclosed::Lost));
        }
        tokio::select! {
            () = stop.cancelled() => return,
            () = tokio::time::sleep(RETRY) => {}
        }
    }
}

struct Desk {
    process: Arc<Process>,
    /// Closes of ours, by their numbers.
    pending: HashMap<u64, Pending>,
    /// Closes of others.
    held: HashMap<Key, Held>,
    /// How many closes of ours there were.
    last: u64,
}

impl Desk {
    async fn serve(
        &mut self,
        line: &mut Option<Line>,
        asks: &mut mpsc::UnboundedReceiver<Ask>,
    ) -> Result<(), StoreError> {
        let line = match line {
            Some(line) => line,
            None => line.insert(Line::connect(self.process.home()).await?),
        };
        let mut look = tokio::time::interval(LOOK_AFTER);
        loop {
            tokio::select! {
                ask = asks.recv() => match ask {
                    Some(ask) => self.asked(ask, line).await?,
                    None => return Ok(()),
                },
                note = line.notes.recv() => match note {
                    Some((pid, text)) if pid != line.pid => self.heard(pid, &text, line).await?,
                    Some(_) => {}
                    // What broke it is the error of the next question.
                    None => line.client.batch_execute("select 1").await?,
                },
                _ = look.tick() => self.look(line).await?,
            }
        }
    }

    async fn asked(&mut self, ask: Ask, line: &Line) -> Result<(), StoreError> {
        match ask {
            Ask::Close { tables, answer } => {
                let waited_for = line.others().await?;
                if waited_for.is_empty() {
                    let _ = answer.send(Ok(None));
                    return Ok(());
                }
                self.last += 1;
                let bits: Vec<String> = tables.iter().map(u64::to_string).collect();
                line.say(&format!("close {} {}", self.last, bits.join(" ")))
                    .await?;
                let pending = Pending { waited_for, answer };
                self.pending.insert(self.last, pending);
            }
            Ask::Open { number, until } => {
                self.pending.remove(&number);
                line.say(&format!("open {number} {}", until.text())).await?;
            }
            Ask::Waited { key, idle } => {
                let word = if idle { "closed" } else { "busy" };
                if !idle {
                    self.held.remove(&key);
                }
                line.say(&format!("{word} {} {}", key.0, key.1)).await?;
            }
        }
        Ok(())
    }

    /// A message of the proxy with the server process `pid`. What is none says nothing.
    async fn heard(&mut self, pid: i32, text: &str, line: &Line) -> Result<(), StoreError> {
        let words: Vec<&str> = text.split(' ').collect();
        let number = |word: &str| word.parse::<u64>().ok();
        let own = line.pid.to_string();
        match words[..] {
            ["close", close, ref tables @ ..] => {
                let tables: Option<Vec<u64>> = tables.iter().map(|bits| number(bits)).collect();
                if let Some((close, tables)) = number(close).zip(tables) {
                    self.close_for((pid, close), tables);
                }
            }
            ["open", close, until] => {
                let held = number(close).and_then(|close| self.held.remove(&(pid, close)));
                if let Some(held) = held {
                    self.open(held, Until::of(until));
                }
            }
            ["closed", to, close] if to == own => {
                if let Some(close) = number(close) {
                    self.answered(close, Some(pid));
                }
            }
            ["busy", to, close] if to == own => {
                let pending = number(close).and_then(|close| self.pending.remove(&close));
                if let Some(pending) = pending {
                    let _ = pending.answer.send(Err(Unclosed::Busy));
                    line.say(&format!("open {close} {}", Until::Now.text()))
                        .await?;
                }
            }
            _ => {}
        }
        Ok(())
    }

    /// Lets our statements go on, not before the change is known here.
    fn open(&self, held: Held, until: Until) {
        let process = self.process.clone();
        tokio::spawn(async move {
            match until {
                Until::Now => {}
                Until::Epoch(epoch) => process.store.reach(epoch).await,
                Until::Decided => tokio::time::sleep(LEFT_WAIT).await,
            }
            drop(held.barrier);
        });
    }

    /// Closes our gate for another proxy, and tells it when no statement is under way any more.
    fn close_for(&mut self, key: Key, tables: Vec<u64>) {
        let barrier = self.process.gate.close_for_all(tables.clone());
        self.held.insert(
            key,
            Held {
                barrier,
                left: None,
            },
        );
        let (process, asks) = (self.process.clone(), self.process.neighbours.asks.clone());
        tokio::spawn(async move {
            let idle = tokio::time::timeout(IDLE_WAIT, idle(&process, &tables)).await;
            let idle = idle.is_ok();
            let _ = asks.send(Ask::Waited { key, idle });
        });
    }

    /// A close of ours was answered by a proxy, or those that are gone need not be waited for.
    fn answered(&mut self, number: u64, by: Option<i32>) {
        let Some(pending) = self.pending.get_mut(&number) else {
            return;
        };
        if let Some(by) = by {
            pending.waited_for.remove(&by);
        }
        if !pending.waited_for.is_empty() {
            return;
        }
        let far = Far {
            number,
            until: Until::Now,
            asks: self.process.neighbours.asks.clone(),
        };
        if let Some(pending) = self.pending.remove(&number) {
            // Nobody waits for it any more: it opens again at once.
            let _ = pending.answer.send(Ok(Some(far)));
        }
    }

    /// Looks who is gone.
    async fn look(&mut self, line: &Line) -> Result<(), StoreError> {
        if self.pending.is_empty() && self.held.is_empty() {
            return Ok(());
        }
        let others = line.others().await?;
        let numbers: Vec<u64> = self.pending.keys().copied().collect();
        for number in numbers {
            if let Some(pending) = self.pending.get_mut(&number) {
                pending.waited_for.retain(|pid| others.contains(pid));
            }
            self.answered(number, None);
        }
        self.held.retain(|(pid, _), held| {
            if others.contains(pid) {
                held.left = None;
                return true;
            }
            held.left.get_or_insert_with(Instant::now).elapsed() < LEFT_WAIT
        });
        Ok(())
    }
}

/// Ends when no session has a statement under way that names one of these tables.
async fn idle(process: &Process, tables: &[u64]) {
    let sessions = process.sessions();
    for card in sessions {
        let busy = |table: &u64| names::may_name(card.names.load(SeqCst), *table);
        while tables.iter().any(busy) {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }
}

//! Keeps statements away from tables whose rows are about to move.
//!
//! A plan says on which shards a table's rows are. A statement that was planned before a move and
//! reaches a shard after it would read a part of the rows, or write one where nobody looks. So a
//! move closes the gate for its tables, waits for the statements that are under way, and opens it
//! again when its transaction has ended and the new catalog is there. A statement first shows what
//! it names, then looks at the gate, then at the catalog: whatever comes in between, one of the
//! two sees the other.

use std::sync::{
    Arc, Mutex,
    atomic::{AtomicU64, AtomicUsize, Ordering::SeqCst},
};

use automator67_planner::names;
use tokio::sync::Notify;

use crate::process::lock;

/// One for the process.
#[derive(Default)]
pub struct Gate {
    closed: Mutex<Vec<Closed>>,
    count: AtomicUsize,
    /// How many closes were for all sessions.
    nobodies: AtomicU64,
    opened: Notify,
    /// Sessions that wait, each with those it waits for.
    waiting: Mutex<Vec<(u64, Vec<u64>)>>,
}

/// Tables that a session's transaction moves.
struct Closed {
    session: u64,
    /// [`names::bits`] of each.
    tables: Vec<u64>,
}

impl Gate {
    /// True if a statement of `session` must wait. Its transaction has `touched` tables before:
    /// of those it holds locks, and whoever wants to move them waits for it.
    pub fn bars(&self, session: u64, statement: u64, touched: u64) -> bool {
        if self.count.load(SeqCst) == 0 {
            return false;
        }
        !self.barring(session, statement, touched).is_empty()
    }

    /// The sessions that `session` must wait for.
    fn barring(&self, session: u64, statement: u64, touched: u64) -> Vec<u64> {
        let bars =
            |table: &u64| names::may_name(statement, *table) && !names::may_name(touched, *table);
        let closed = lock(&self.closed);
        let others = closed.iter().filter(|closed| closed.session != session);
        others
            .filter(|closed| closed.tables.iter().any(bars))
            .map(|closed| closed.session)
            .collect()
    }

    /// Who waits, and for whom.
    pub fn waits(&self) -> Vec<(u64, u64)> {
        let waiting = lock(&self.waiting);
        let pairs = waiting
            .iter()
            .flat_map(|(session, others)| others.iter().map(|other| (*session, *other)));
        pairs.collect()
    }

    /// Closes it for some tables, until the result is dropped.
    pub fn close(self: &Arc<Self>, session: u64, tables: Vec<u64>) -> Barrier {
        let mut closed = lock(&self.closed);
        closed.push(Closed { session, tables });
        self.count.store(closed.len(), SeqCst);
        Barrier {
            gate: self.clone(),
            session,
        }
    }

    /// The same for all sessions.
    pub fn close_for_all(self: &Arc<Self>, tables: Vec<u64>) -> Barrier {
        self.close(self.nobody(), tables)
    }

    /// A number that no session has: those count from 1.
    fn nobody(&self) -> u64 {
        u64::MAX - self.nobodies.fetch_add(1, SeqCst)
    }

    /// Ends when the statement is barred no more.
    pub async fn wait(&self, session: u64, statement: u64, touched: u64) {
        loop {
            let opened = self.opened.notified();
            tokio::pin!(opened);
            // From here on no opening is missed.
            opened.as_mut().enable();
            let others = self.barring(session, statement, touched);
            if others.is_empty() {
                return;
            }
            let _waiting = Waiting::new(self, session, others);
            opened.await;
        }
    }
}

/// A session is on the list of those that wait as long as this lives.
struct Waiting<'g> {
    gate: &'g Gate,
    session: u64,
}

impl<'g> Waiting<'g> {
    fn new(gate: &'g Gate, session: u64, others: Vec<u64>) -> Self {
        lock(&gate.waiting).push((session, others));
        Waiting { gate, session }
    }
}

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        lock(&self.gate.waiting).retain(|(session, _)| *session != self.session);
    }
}

/// The gate is closed as long as this lives.
pub struct Barrier {
    gate: Arc<Gate>,
    session: u64,
}

impl Barrier {
    /// The same for the session that has closed it, too.
    pub fn for_all(mut self) -> Barrier {
        let mut closed = lock(&self.gate.closed);
        let nobody = self.gate.nobody();
        let own = closed.iter_mut().find(|one| one.session == self.session);
        if let Some(own) = own {
            own.session = nobody;
            self.session = nobody;
        }
        drop(closed);
        self
    }
}

impl Drop for Barrier {
    fn drop(&mut self) {
        let mut closed = lock(&self.gate.closed);
        if let Some(position) = closed.iter().position(|one| one.session == self.session) {
            closed.swap_remove(position);
        }
        self.gate.count.store(closed.len(), SeqCst);
        drop(closed);
        self.gate.opened.notify_waiters();
    }
}

#[cfg(test)]
mod tests;

//! What planning a text may cost. The planner has no clock: whoever asked for a plan calls it off
//! from outside, and every walk and every loop counts its steps here and looks whether it should
//! go on.
//!
//! Past the limit walks go no further and proofs fail, so that planning ends soon; what came out
//! of it is thrown away ([`plan()`](crate::plan()) answers 54000).

use std::{
    cell::Cell,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use crate::{
    normalise::{TokenKind, tokens},
    plan::PlanError,
};

/// Copies of a text that are there at one time, beside what its tokens take.
const TEXT_COPIES: usize = 8;

/// Memory that a token takes while its text is planned: its part of the grammar's tree, of that in
/// transit and of the one in this process. Measured with 50,000 terms, rows, calls and statements,
/// and 2,000 joins: the sums are between 0.8 and 2 times what these took at their peaks.
fn bytes_of(token: TokenKind) -> usize {
    match token {
        TokenKind::Number | TokenKind::String | TokenKind::Parameter => 1_000,
        TokenKind::Word | TokenKind::QuotedIdentifier => 2_000,
        TokenKind::Operator | TokenKind::Punctuation(';') => 2_500,
        TokenKind::Punctuation('(' | '[') => 3_000,
        TokenKind::Punctuation(_) => 0,
    }
}

/// Limits of one plan, and what it has taken of them so far.
#[derive(Debug)]
pub struct Budget {
    steps: Cell<u64>,
    steps_max: u64,
    bytes: Cell<usize>,
    bytes_max: usize,
    called_off: Arc<AtomicBool>,
    excess: Cell<Option<Excess>>,
}

/// Which limit was passed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Excess {
    /// More steps than were given.
    Steps,
    /// More memory than was given.
    Memory,
    /// Nobody waits for the plan any more.
    CalledOff,
}

impl Budget {
    /// `steps_max` counts nodes of trees and the like, of which some millions are done in a second;
    /// `bytes_max` is compared with an estimate, of what trees take. Planning ends soon
    /// after `called_off` is true.
    pub fn new(steps_max: u64, bytes_max: usize, called_off: Arc<AtomicBool>) -> Budget {
        Budget {
            steps: Cell::new(0),
            steps_max,
            bytes: Cell::new(0),
            bytes_max,
            called_off,
            excess: Cell::new(None),
        }
    }

    /// No limits.
    pub fn unlimited() -> Budget {
        Budget::new(u64::MAX, usize::MAX, Arc::default())
    }

    /// Steps so far.
    pub fn steps(&self) -> u64 {
        self.steps.get()
    }

    /// The limit that was passed, if one was.
    pub fn excess(&self) -> Option<Excess> {
        self.excess.get()
    }

    /// Counts steps. False: there is no use in going on.
    pub(crate) fn spend(&self, steps: usize) -> bool {
        let steps = u64::try_from(steps).unwrap_or(u64::MAX);
        let all = self.steps.get().saturating_add(steps);
        self.steps.set(all);
        if all > self.steps_max {
            self.excess.set(self.excess.get().or(Some(Excess::Steps)));
        } else if self.called_off.load(Ordering::Relaxed) {
            self.excess
                .set(self.excess.get().or(Some(Excess::CalledOff)));
        }
        self.excess.get().is_none()
    }

    /// Counts memory that is kept to the end. False: there is no use in going on.
    pub(crate) fn hold(&self, bytes: usize) -> bool {
        let all = self.bytes.get().saturating_add(bytes);
        self.bytes.set(all);
        if all > self.bytes_max {
            self.excess.set(self.excess.get().or(Some(Excess::Memory)));
        }
        self.excess.get().is_none()
    }

    /// Counts what the tree of a text takes. The grammar cannot be interrupted, so this is asked
    /// before it is.
    pub(crate) fn hold_tree(&self, text: &str) -> bool {
        let list = tokens(text);
        let bytes: usize = list.iter().map(|token| bytes_of(token.kind)).sum();
        self.spend(list.len()) && self.hold(bytes + text.len() * TEXT_COPIES)
    }

    /// The same of a tree that is dropped at once.
    pub(crate) fn has_room_for(&self, text: &str) -> bool {
        let held = self.bytes.get();
        let room = self.hold_tree(text);
        self.bytes.set(held);
        room
    }

    /// 54000 where a limit was passed.
    pub(crate) fn check(&self) -> Result<(), PlanError> {
        match self.excess.get() {
            None => Ok(()),
            Some(_) => Err(PlanError::new("54000", "statement is too complex to plan")),
        }
    }
}

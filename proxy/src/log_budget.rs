//! Log lines that somebody outside can cause: so many a second are written, the rest is counted.

use std::{
    sync::Mutex,
    time::{Duration, Instant},
};

use crate::process::lock;

/// Lines of one kind that are written in a second.
const LINES_MAX: u32 = 5;
const SECOND: Duration = Duration::from_secs(1);

/// What is left of this second's lines of one kind.
#[derive(Default)]
pub struct LogBudget {
    state: Mutex<State>,
}

#[derive(Default)]
struct State {
    since: Option<Instant>,
    written: u32,
    left_out: u64,
}

impl LogBudget {
    /// Whether a line may be written now. `Some`: it may, and so many were left out since the last
    /// one; the inner `None` is none.
    pub fn line(&self) -> Option<Option<u64>> {
        self.line_at(Instant::now())
    }

    fn line_at(&self, now: Instant) -> Option<Option<u64>> {
        let mut state = lock(&self.state);
        if state.since.is_none_or(|since| now - since >= SECOND) {
            state.since = Some(now);
            state.written = 0;
        }
        if state.written == LINES_MAX {
            state.left_out += 1;
            return None;
        }
        state.written += 1;
        Some(Some(std::mem::take(&mut state.left_out)).filter(|left_out| *left_out > 0))
    }

    /// Lines that were left out and that nobody was told of yet.
    pub fn left_out(&self) -> Option<u64> {
        let left_out = std::mem::take(&mut lock(&self.state).left_out);
        Some(left_out).filter(|left_out| *left_out > 0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_flood_is_counted() {
        let budget = LogBudget::default();
        let start = Instant::now();
        for _ in 0..LINES_MAX {
            assert_eq!(budget.line_at(start), Some(None));
        }
        for _ in 0..7 {
            assert_eq!(budget.line_at(start), None);
        }
        assert_eq!(budget.line_at(start + SECOND), Some(Some(7)));
        assert_eq!(budget.line_at(start + SECOND), Some(None));
        assert_eq!(budget.left_out(), None);
    }
}

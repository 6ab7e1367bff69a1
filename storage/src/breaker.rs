//! A circuit breaker: a provider that keeps failing is left alone for a while, then tried with one call.
//! Pure: the time is an argument.

use std::time::Duration;

use tokio::time::Instant;

/// So many failures in a row open it.
const FAILURES_MAX: u32 = 5;
/// First and longest time that it stays open; each failed trial doubles it.
const OPEN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A trial that nobody has told the end of, is over after so long.
const TRIAL: Duration = Duration::from_secs(30);

/// Whether a provider is called.
#[derive(Debug, Clone, Default)]
pub struct Breaker {
    failures: u32,
    state: State,
}

#[derive(Debug, Clone, Copy, Default)]
enum State {
    /// Calls go through.
    #[default]
    Closed,
    /// None does, until then. It stayed open for so long this time.
    Open { until: Instant, lasting: Duration },
    /// One has gone through, at that moment.
    Trying { since: Instant, lasting: Duration },
}

impl Breaker {
    /// Whether a call may be made now, without making one.
    pub fn admits(&self, now: Instant) -> bool {
        match self.state {
            State::Closed => true,
            State::Open { until, .. } => now >= until,
            State::Trying { since, .. } => now >= since + TRIAL,
        }
    }

    /// Takes leave for a call, whose end must be told.
    pub fn enter(&mut self, now: Instant) -> bool {
        let admitted = self.admits(now);
        match self.state {
            State::Open { lasting, .. } | State::Trying { lasting, .. } if admitted => {
                self.state = State::Trying {
                    since: now,
                    lasting,
                };
            }
            _ => {}
        }
        admitted
    }

    /// A call has succeeded.
    pub fn succeeded(&mut self) {
        *self = Breaker::default();
    }

    /// A call has failed in a way that is the provider's.
    pub fn failed(&mut self, now: Instant) {
        self.failures += 1;
        let open = |lasting| State::Open {
            until: now + lasting,
            lasting,
        };
        match self.state {
            State::Closed if self.failures >= FAILURES_MAX => self.state = open(OPEN.0),
            State::Trying { lasting, .. } => self.state = open((lasting * 2).min(OPEN.1)),
            State::Closed | State::Open { .. } => {}
        }
    }

    /// `closed`, `open` or `half-open`, for people.
    pub fn name(&self, now: Instant) -> &'static str {
        match self.state {
            State::Closed => "closed",
            State::Open { until, .. } if now < until => "open",
            State::Open { .. } | State::Trying { .. } => "half-open",
        }
    }
}

#[cfg(test)]
mod tests;

//! `statement_timeout` for statements that are many steps on many shards: shards time each step by
//! itself, so the whole is timed here.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::task::JoinHandle;

use super::Session;
use crate::{process::lock, server};

/// A step may begin between two looks: what comes late is stopped by the next one.
const AGAIN: Duration = Duration::from_millis(50);

/// Ends with the statement.
pub struct Timer(JoinHandle<()>);

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

impl Session {
    /// Starts to time a statement, if the session has asked for a limit.
    pub(super) fn start_timer(&self) -> Option<Timer> {
        let limit = self.settings.map.get("statement_timeout").and_then(limit)?;
        let card = self.card.clone();
        let watch = async move {
            tokio::time::sleep(limit).await;
            loop {
                let keys = {
                    let mut activity = lock(&card.activity);
                    // A cancel request may come late: the connections are not lent again.
                    activity.tainted = !activity.keys.is_empty();
                    activity.keys.clone()
                };
                for key in keys {
                    key.timed_out.store(true, Ordering::Relaxed);
                    if let Err(error) = server::cancel(&key).await {
                        tracing::debug!(%error, "could not end a statement that takes too long");
                    }
                }
                tokio::time::sleep(AGAIN).await;
            }
        };
        Some(Timer(self.process.tasks.spawn(watch)))
    }
}

/// The time in `SET statement_timeout TO '1s'`; `None` for none.
fn limit(replay: &str) -> Option<Duration> {
    let (_, value) = replay
        .rsplit_once(" TO ")
        .or_else(|| replay.rsplit_once('='))?;
    let value = value.trim().trim_end_matches(';').trim_matches('\'').trim();
    let digits = value
        .find(|c: char| !c.is_ascii_digit() && c != '.')
        .unwrap_or(value.len());
    let number: f64 = value[..digits].parse().ok()?;
    let milliseconds = match value[digits..].trim() {
        "" | "ms" => 1.0,
        "us" => 0.001,
        "s" => 1000.0,
        "min" => 60_000.0,
        "h" => 3_600_000.0,
        "d" => 86_400_000.0,
        _ => return None,
    };
    let limit = number * milliseconds;
    (1.0..1e12)
        .contains(&limit)
        .then(|| Duration::from_secs_f64(limit / 1000.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reads_what_set_takes() {
        let cases = [
            ("SET statement_timeout TO '400ms'", Some(400)),
            ("SET statement_timeout TO 1500", Some(1500)),
            ("SET statement_timeout TO '2 s'", Some(2000)),
            ("SET statement_timeout = '1.5min'", Some(90_000)),
            ("SET statement_timeout TO 0", None),
            ("SET statement_timeout TO DEFAULT", None),
            ("SET statement_timeout TO '1 parsec'", None),
        ];
        for (replay, milliseconds) in cases {
            let expected = milliseconds.map(Duration::from_millis);
            assert_eq!(limit(replay), expected, "{replay}");
        }
    }
}

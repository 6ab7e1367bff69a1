//! `statement_timeout` for statements that are many steps on many shards: shards time each step by
//! itself, so the whole is timed here.

use std::{sync::atomic::Ordering, time::Duration};

use tokio::task::JoinHandle;

use super::Session;
use crate::{guc, process::lock, server};

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
        let limit = self
            .settings
            .map
            .get("statement_timeout")
            .and_then(guc::duration)?;
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

//! Waits for a condition, never for a fixed time.

use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Calls `look` until it returns a value; an error names `what` when `limit` has passed.
pub fn until<T>(what: &str, limit: Duration, mut look: impl FnMut() -> Option<T>) -> Result<T> {
    let start = Instant::now();
    loop {
        if let Some(value) = look() {
            return Ok(value);
        }
        if start.elapsed() > limit {
            bail!("waited {limit:?} in vain for {what}");
        }
        std::thread::sleep(Duration::from_millis(5));
    }
}

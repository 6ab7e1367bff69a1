//! What all sessions together hold of large messages and of rows on their way.
//!
//! Only buffers above [`UNCOUNTED_BYTES`] are counted, so that ordinary messages touch nothing that
//! sessions share.

use std::sync::{
    Arc,
    atomic::{AtomicUsize, Ordering},
};

use crate::error::{Report, sqlstate};

/// A buffer up to this size is not counted.
pub const UNCOUNTED_BYTES: usize = 64 * 1024;
/// Shares grow in steps of this size.
const STEP_BYTES: usize = 256 * 1024;

/// The process's memory for large messages, `[sql] memory_bytes_max`.
pub struct Memory {
    bytes_max: usize,
    held: AtomicUsize,
}

impl Memory {
    /// All of it free.
    pub fn new(bytes_max: usize) -> Arc<Self> {
        Arc::new(Memory {
            bytes_max,
            held: AtomicUsize::new(0),
        })
    }

    /// What is held now.
    pub fn held(&self) -> usize {
        self.held.load(Ordering::Relaxed)
    }
}

/// A session's part of the memory; free again when dropped.
pub struct Share {
    memory: Arc<Memory>,
    bytes: usize,
}

impl Share {
    /// Nothing yet.
    pub fn new(memory: &Arc<Memory>) -> Self {
        Share {
            memory: memory.clone(),
            bytes: 0,
        }
    }

    /// Makes the share at least `bytes` large. What all sessions together may not hold is refused
    /// with 53200, and the share stays as it was.
    pub fn grow_to(&mut self, bytes: usize) -> Result<(), Report> {
        if bytes <= self.bytes {
            return Ok(());
        }
        let more = bytes.next_multiple_of(STEP_BYTES) - self.bytes;
        let fits = |held: usize| {
            held.checked_add(more)
                .filter(|sum| *sum <= self.memory.bytes_max)
        };
        let held = &self.memory.held;
        if held
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits)
            .is_err()
        {
            return Err(Report::error(sqlstate::OUT_OF_MEMORY, "out of memory")
                .detail(format!(
                    "All sessions together may hold {} bytes of large messages and rows.",
                    self.memory.bytes_max
                ))
                .hint("Repeat it later, send less at once, or raise memory_bytes_max in [sql]."));
        }
        self.bytes += more;
        Ok(())
    }

    /// Gives it back.
    pub fn release(&mut self) {
        if self.bytes > 0 {
            self.memory.held.fetch_sub(self.bytes, Ordering::Relaxed);
            self.bytes = 0;
        }
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        self.release();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_end_at_the_limit_and_come_back() {
        let memory = Memory::new(4 * STEP_BYTES);
        let (mut one, mut other) = (Share::new(&memory), Share::new(&memory));
        one.grow_to(3 * STEP_BYTES - 1).expect("it fits");
        one.grow_to(10).expect("it is larger already");
        assert_eq!(memory.held(), 3 * STEP_BYTES);
        let refused = other.grow_to(STEP_BYTES + 1).expect_err("it does not fit");
        assert_eq!(refused.sqlstate, sqlstate::OUT_OF_MEMORY);
        assert!(other.grow_to(usize::MAX / 2).is_err());
        other.grow_to(STEP_BYTES).expect("just so");
        drop(one);
        other.release();
        assert_eq!(memory.held(), 0);
    }
}

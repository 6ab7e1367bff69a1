//! Prepared statements of a thread's sessions: the same text with the same types is one statement
//! on every server connection, whoever prepared it, and is planned once.

use std::{collections::HashMap, sync::Arc};

use super::statements::Statement;

const COUNT_MAX: usize = 10_000;
const BYTES_MAX: usize = 32 << 20;
/// Longer texts are not remembered: they seldom come again.
const TEXT_BYTES_MAX: usize = 16 << 10;

/// Statements by text, bounded: when full, all are forgotten. A forgotten one gets a new number,
/// and servers drop the old one in time.
#[derive(Default)]
pub struct KnownStatements {
    by_text: HashMap<Arc<str>, Vec<Arc<Statement>>>,
    count: usize,
    bytes: usize,
    last_id: u64,
}

impl KnownStatements {
    /// The latest statement of this text and these parameter types.
    pub fn get(&self, text: &str, types: &[u32]) -> Option<Arc<Statement>> {
        let of_text = self.by_text.get(text)?;
        of_text.iter().find(|one| *one.types == *types).cloned()
    }

    /// A number that no other statement has.
    pub fn new_id(&mut self) -> u64 {
        self.last_id += 1;
        self.last_id
    }

    /// Remembers a statement, in the place of an older one with its text and types.
    pub fn put(&mut self, statement: &Arc<Statement>) {
        let size = statement.text.len();
        if size > TEXT_BYTES_MAX {
            return;
        }
        if self.count >= COUNT_MAX || self.bytes + size > BYTES_MAX {
            self.by_text.clear();
            (self.count, self.bytes) = (0, 0);
        }
        let of_text = self.by_text.entry(statement.text.clone()).or_default();
        match of_text.iter_mut().find(|one| one.types == statement.types) {
            Some(older) => *older = statement.clone(),
            None => {
                of_text.push(statement.clone());
                self.count += 1;
                self.bytes += size;
            }
        }
    }
}

//! Plans by normalised text, bounded in number and in bytes: two generations, of which the older is
//! dropped when the younger is full, so that what is used stays.

use std::{collections::HashMap, sync::Arc};

use automator67_planner::plan::Planned;

/// Longer texts are not kept: a few of them would drop all others.
pub const CACHED_TEXT_BYTES_MAX: usize = 64 << 10;
/// All plans of one thread, in bytes, as far as [`bytes_of`] knows.
const CACHE_BYTES_MAX: usize = 64 << 20;
/// A plan without what depends on its text's length.
const PLAN_BYTES: usize = 1 << 10;
/// A plan's bytes for each of its text. A row of an INSERT takes most: `(1,2)` becomes five pieces
/// of 32 bytes, three of them with text of their own.
const PLAN_BYTES_OF_A_TEXT_BYTE: usize = 64;

/// What a plan of a text takes, at most.
fn bytes_of(text: &str) -> usize {
    PLAN_BYTES + text.len() * PLAN_BYTES_OF_A_TEXT_BYTE
}

/// What a plan depends on beside the text.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Surroundings {
    /// The effective search path.
    pub search_path: Arc<Vec<String>>,
    /// Declared parameter types.
    pub parameter_types: Arc<[u32]>,
}

struct Entry {
    surroundings: Surroundings,
    plan: Arc<Planned>,
}

/// Plans of one thread for one epoch of the catalog.
pub struct PlanCache {
    epoch: u64,
    entries_max: usize,
    young: HashMap<String, Entry>,
    /// Bytes of the young ones.
    young_bytes: usize,
    old: HashMap<String, Entry>,
}

impl PlanCache {
    /// Keeps about `entries_max` plans.
    pub fn new(entries_max: usize) -> Self {
        PlanCache {
            epoch: 0,
            entries_max,
            young: HashMap::new(),
            young_bytes: 0,
            old: HashMap::new(),
        }
    }

    /// The plan of `normalised`, if it is known for this epoch and these surroundings.
    pub fn get(
        &mut self,
        epoch: u64,
        normalised: &str,
        surroundings: &Surroundings,
    ) -> Option<Arc<Planned>> {
        if self.epoch != epoch {
            self.epoch = epoch;
            self.young.clear();
            self.young_bytes = 0;
            self.old.clear();
            return None;
        }
        if let Some(entry) = self.young.get(normalised) {
            return (entry.surroundings == *surroundings).then(|| entry.plan.clone());
        }
        let (text, entry) = self.old.remove_entry(normalised)?;
        let plan = (entry.surroundings == *surroundings).then(|| entry.plan.clone());
        self.insert(text, entry);
        plan
    }

    /// Remembers a plan, unless its text is too long.
    pub fn put(&mut self, normalised: &str, surroundings: Surroundings, plan: Arc<Planned>) {
        if normalised.len() > CACHED_TEXT_BYTES_MAX {
            return;
        }
        self.insert(normalised.to_owned(), Entry { surroundings, plan });
    }

    fn insert(&mut self, text: String, entry: Entry) {
        let bytes = bytes_of(&text);
        if self.young.len() >= self.entries_max.div_ceil(2)
            || self.young_bytes + bytes > CACHE_BYTES_MAX / 2
        {
            self.old = std::mem::take(&mut self.young);
            self.young_bytes = 0;
        }
        if self.young.insert(text, entry).is_none() {
            self.young_bytes += bytes;
        }
    }
}

#[cfg(test)]
mod tests;

//! Plans by normalised text, bounded: two generations, of which the older is dropped when the
//! younger is full, so that what is used stays.

use std::{collections::HashMap, sync::Arc};

use automator67_planner::plan::Planned;

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
    old: HashMap<String, Entry>,
}

impl PlanCache {
    /// Keeps about `entries_max` plans.
    pub fn new(entries_max: usize) -> Self {
        PlanCache {
            epoch: 0,
            entries_max,
            young: HashMap::new(),
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

    /// Remembers a plan.
    pub fn put(&mut self, normalised: &str, surroundings: Surroundings, plan: Arc<Planned>) {
        self.insert(normalised.to_owned(), Entry { surroundings, plan });
    }

    fn insert(&mut self, text: String, entry: Entry) {
        if self.young.len() >= self.entries_max.div_ceil(2) {
            self.old = std::mem::take(&mut self.young);
        }
        self.young.insert(text, entry);
    }
}

//! What of the schema a transaction has changed, as far as the snapshot tells of it.

use std::collections::BTreeSet;

use automator67_planner::plan::Touches;

use crate::server::call::text_array;

/// More names are read as fast in whole, and need not be kept.
const NAMES_MAX: usize = 200;

/// Grows only: what a savepoint takes back is read once more.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub enum Changed {
    #[default]
    Nothing,
    /// Nothing but relations of these names.
    Relations(BTreeSet<String>),
    Everything,
}

impl Changed {
    pub fn add(&mut self, touches: &Touches) {
        let mut names = match std::mem::take(self) {
            Changed::Nothing => BTreeSet::new(),
            Changed::Relations(names) => names,
            Changed::Everything => {
                *self = Changed::Everything;
                return;
            }
        };
        *self = match touches {
            Touches::Relations(more) => {
                names.extend(more.iter().cloned());
                Changed::Relations(names)
            }
            Touches::Everything => Changed::Everything,
        };
        if matches!(self, Changed::Relations(names) if names.len() > NAMES_MAX) {
            *self = Changed::Everything;
        }
    }

    /// The names as a text array. `None`: they do not say all.
    pub fn names(&self) -> Option<String> {
        match self {
            Changed::Relations(names) => {
                Some(text_array(names.iter().map(|name| Some(name.as_str()))))
            }
            Changed::Nothing | Changed::Everything => None,
        }
    }
}

//! How the rows of a colocation group are split, where not by hash.

use std::{cmp::Ordering, collections::HashMap};

use super::{KeyType, ShardId};
use crate::key::{self, KeyValue};

/// The rule of one group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Split {
    /// By ranges of the key.
    Ranges(Ranges),
    /// Every value of the key has a shard of its own choice.
    Directory {
        /// How values are read.
        key_type: KeyType,
        /// Shards by [`key::canonical`] form.
        entries: HashMap<String, ShardId>,
    },
    /// All rows on one shard.
    Whole(ShardId),
}

/// Where a row belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Owner {
    /// On this shard.
    Shard(ShardId),
    /// The snapshot has no shard for the value, of which this is the canonical form. A later one
    /// may have.
    Unassigned(String),
    /// The catalog has no ring or no range.
    Nowhere,
}

impl Owner {
    pub(super) fn of(shard: Option<ShardId>) -> Owner {
        shard.map_or(Owner::Nowhere, Owner::Shard)
    }
}

/// Ranges without a gap: each begins with its first value and ends before the next one's. The
/// first has no beginning, the last no end.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ranges {
    /// In order; only the first has `None`.
    starts: Vec<(Option<KeyValue>, ShardId)>,
}

impl Ranges {
    /// Ranges by their first values, in any order. `None`: they leave a gap, or two begin alike.
    pub fn new(mut starts: Vec<(Option<KeyValue>, ShardId)>) -> Option<Ranges> {
        starts.sort_by(|(one, _), (other, _)| compare_starts(one.as_ref(), other.as_ref()));
        let distinct = starts
            .windows(2)
            .all(|pair| compare_starts(pair[0].0.as_ref(), pair[1].0.as_ref()) == Ordering::Less);
        let whole = starts.first().is_some_and(|(start, _)| start.is_none());
        (distinct && whole).then_some(Ranges { starts })
    }

    /// The shard of a value's range.
    pub fn shard_of(&self, value: &KeyValue) -> Option<ShardId> {
        let at = self.place(value).checked_sub(1)?;
        self.starts.get(at).map(|(_, shard)| *shard)
    }

    /// The range that holds a value: its first value, its shard, and the first value behind it.
    pub fn around(
        &self,
        value: &KeyValue,
    ) -> Option<(Option<&KeyValue>, ShardId, Option<&KeyValue>)> {
        let next = self.place(value);
        let (start, shard) = self.starts.get(next.checked_sub(1)?)?;
        let end = self.starts.get(next).and_then(|(start, _)| start.as_ref());
        Some((start.as_ref(), *shard, end))
    }

    /// Shards of all ranges that can hold a value from `lower` to `upper`, both included; `None` is
    /// without an end. In order, none twice. A span that is empty still has the shard of its ends.
    pub fn between(&self, lower: Option<&KeyValue>, upper: Option<&KeyValue>) -> Vec<ShardId> {
        let first = lower.map_or(0, |value| self.place(value).saturating_sub(1));
        let end = upper.map_or(self.starts.len(), |value| self.place(value));
        let end = end.max(first + 1).min(self.starts.len());
        let mut shards: Vec<ShardId> = self.starts[first.min(end)..end]
            .iter()
            .map(|(_, shard)| *shard)
            .collect();
        shards.sort_unstable();
        shards.dedup();
        shards
    }

    /// How many ranges a shard has.
    pub fn count(&self, shard: ShardId) -> usize {
        self.starts.iter().filter(|(_, one)| *one == shard).count()
    }

    /// How many ranges begin at or before a value.
    fn place(&self, value: &KeyValue) -> usize {
        self.starts.partition_point(|(start, _)| {
            compare_starts(start.as_ref(), Some(value)) != Ordering::Greater
        })
    }
}

fn compare_starts(one: Option<&KeyValue>, other: Option<&KeyValue>) -> Ordering {
    match (one, other) {
        (None, None) => Ordering::Equal,
        (None, Some(_)) => Ordering::Less,
        (Some(_), None) => Ordering::Greater,
        (Some(one), Some(other)) => key::compare(one, other),
    }
}

#[cfg(test)]
mod tests;

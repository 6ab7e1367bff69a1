//! The ring: which shard a token belongs to.
//!
//! Every shard owns many points (virtual nodes), stored explicitly in the catalog. A token belongs
//! to the first point at or after it, around the end to the first. A new shard's points therefore
//! take keys from all others and move none between them.

use crate::{catalog::ShardId, key};

/// Points sorted by token. The default is empty and owns nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Ring {
    points: Vec<(i64, ShardId)>,
}

impl Ring {
    /// The ring of stored points, in any order.
    pub fn new(mut points: Vec<(i64, ShardId)>) -> Ring {
        points.sort_unstable();
        Ring { points }
    }

    /// The points of shards and their weights: `weight * virtual_nodes` each, at least one, at the
    /// token of `"<shard id>:<i>"`. Sorted, no token twice.
    pub fn build(shards: &[(ShardId, f64)], virtual_nodes: u32) -> Vec<(i64, ShardId)> {
        let mut points = Vec::new();
        for (shard, weight) in shards {
            // A cast from f64 saturates, so a senseless weight cannot wrap.
            let nodes = (weight * f64::from(virtual_nodes)).round().max(1.0) as u32;
            points
                .extend((0..nodes).map(|i| (key::hash(format!("{shard}:{i}").as_bytes()), *shard)));
        }
        points.sort_unstable();
        points.dedup_by_key(|(token, _)| *token);
        points
    }

    /// The shard a token belongs to; `None` when the ring is empty.
    pub fn shard_of(&self, token: i64) -> Option<ShardId> {
        let at = self.points.partition_point(|(point, _)| *point < token);
        self.points
            .get(at)
            .or_else(|| self.points.first())
            .map(|(_, shard)| *shard)
    }
}

#[cfg(test)]
mod tests;

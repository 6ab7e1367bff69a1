//! The verbs of talking to shards: which there are, asking them, running on them, reading rows of them.

mod ask;
mod copy;
pub mod exact;
mod run;
mod select;

pub(in crate::session) use select::Select;

use automator67_planner::catalog::ShardId;

use super::Session;

impl Session {
    /// Every shard, home first: DDL takes its first locks there, so that two sessions that change
    /// the schema wait for each other in one order.
    pub(in crate::session) fn all_shards(&self) -> Vec<ShardId> {
        self.process.shards.iter().map(|shard| shard.id).collect()
    }

    /// Every shard but home.
    pub(in crate::session) fn other_shards(&self) -> Vec<ShardId> {
        let home = self.home();
        let shards = self.all_shards().into_iter();
        shards.filter(|shard| *shard != home).collect()
    }

    /// A shard that can answer what every shard can: one the session uses anyway, else the home
    /// shard, else any that is up.
    pub(in crate::session) fn any_copy(&self) -> ShardId {
        let clock = self.transaction.clock;
        let begun = |link: &&super::links::Link| link.begun;
        let mut links = self.links.iter().filter(begun);
        let shards = || links.clone().map(|link| link.server.shard_id());
        if let Some(shard) = shards().find(|shard| Some(*shard) == clock) {
            return shard;
        }
        if let Some(link) = links.next() {
            return link.server.shard_id();
        }
        let shards = &self.process.shards;
        shards
            .iter()
            .find(|shard| shard.is_up())
            .map_or(self.home(), |shard| shard.id)
    }

    pub(in crate::session) fn shard_name(&self, shard: ShardId) -> String {
        self.process
            .shard(shard)
            .map_or_else(|_| shard.to_string(), |shard| shard.settings.name.clone())
    }

    pub(in crate::session) fn shard_names(&self, shards: &[ShardId]) -> Vec<String> {
        shards
            .iter()
            .filter_map(|shard| self.process.shard(*shard).ok())
            .map(|shard| shard.settings.name.clone())
            .collect()
    }
}

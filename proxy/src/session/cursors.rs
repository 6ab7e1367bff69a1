//! SQL cursors: each lives on one shard, that of its rows or the home shard.

use automator67_planner::{
    catalog::ShardId,
    plan::{Plan, Target},
};

use super::{
    Session,
    execute::unreadable_key,
    links::Link,
    planning::{Request, Resolved},
};
use crate::{error::Outcome, message, telemetry::Tier};

/// A cursor that DECLARE has made.
pub struct Cursor {
    shard: ShardId,
    /// WITH HOLD.
    held: bool,
    /// The transaction that made it has committed.
    kept: bool,
}

impl Session {
    /// DECLARE.
    pub(super) async fn declare_cursor(
        &mut self,
        name: &str,
        query: &Plan,
        held: bool,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let (shard, tier) = match query {
            Plan::Single(target) => {
                let shard = match target {
                    Target::Home => self.home(),
                    Target::AnyCopy => self.any_copy(),
                    Target::Key(route) => match self.resolve_surely(route, request).await? {
                        Resolved::One(shard) => shard,
                        Resolved::Several(_) | Resolved::Unknown => {
                            let planned = self.plan_for_many(request).await?;
                            if matches!(&planned.plan, Plan::DeclareCursor { query, .. } if matches!(**query, Plan::Single(Target::Key(_))))
                            {
                                return Err(unreadable_key());
                            }
                            let request = request.with_plan(&planned);
                            return Box::pin(self.execute(&request)).await;
                        }
                    },
                };
                self.run_single(request, shard).await?;
                (shard, Tier::Single)
            }
            Plan::Gather(gather) => {
                self.gather_for_cursor(gather, request).await?;
                (self.home(), Tier::Gather)
            }
            _ => return Err(unreadable_key()),
        };
        let kept = !self.transaction.is_open();
        self.cursors
            .insert(name.to_owned(), Cursor { shard, held, kept });
        Ok(tier)
    }

    /// FETCH and MOVE.
    pub(super) async fn fetch_cursor(
        &mut self,
        name: &str,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let shard = self.cursor_shard(name).unwrap_or(self.home());
        self.run_single(request, shard).await?;
        Ok(Tier::Single)
    }

    /// CLOSE; `None` is ALL.
    pub(super) async fn close_cursor(
        &mut self,
        name: Option<&str>,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        if let Some(name) = name {
            let cursor = self.cursors.remove(name);
            let shard = cursor.map_or(self.home(), |cursor| cursor.shard);
            self.run_single(request, shard).await?;
            return Ok(Tier::Single);
        }
        self.cursors.clear();
        let open = |link: &Link| link.begun || link.is_pinned();
        let links = self.links.iter().filter(|link| open(link));
        let shards: Vec<ShardId> = links.map(|link| link.server.shard_id()).collect();
        for shard in shards {
            self.run_hidden(shard, "CLOSE ALL").await?;
        }
        message::put_command_complete(self.client.output(), "CLOSE CURSOR ALL");
        Ok(Tier::Proxy)
    }

    /// Where a cursor is.
    pub(super) fn cursor_shard(&self, name: &str) -> Option<ShardId> {
        self.cursors.get(name).map(|cursor| cursor.shard)
    }

    /// A transaction ends: its cursors end with it, except those that are held.
    pub(super) fn end_cursors(&mut self, committed: bool) {
        self.cursors
            .retain(|_, cursor| cursor.kept || cursor.held && committed);
        self.cursors
            .values_mut()
            .for_each(|cursor| cursor.kept = true);
    }
}

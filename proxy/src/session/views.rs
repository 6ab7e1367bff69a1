//! Rows of the views that only the proxy can fill.

use std::time::UNIX_EPOCH;

use automator67_planner::plan::ProxyView;

use super::Session;
use crate::{
    error::Outcome,
    guc,
    process::{Process, lock},
    settings::ShardHost,
    two_phase::{self, Part},
};

type Row = Vec<Option<String>>;

/// Whose rows the session's role may see, as in `pg_stat_activity`: its own and those of roles that
/// it is a member of.
enum Seen {
    /// Members of `pg_read_all_stats` (superusers and `pg_monitor` among them) and the owners of the
    /// catalog.
    All,
    /// Those of these roles.
    Of(Vec<String>),
}

impl Seen {
    fn is_all(&self) -> bool {
        matches!(self, Seen::All)
    }

    fn has(&self, role: &str) -> bool {
        match self {
            Seen::All => true,
            Seen::Of(roles) => roles.iter().any(|known| known == role),
        }
    }
}

impl Session {
    /// All rows of a view, in the order of [`ProxyView::columns`].
    pub(super) async fn view_rows(&mut self, view: ProxyView) -> Outcome<Vec<Row>> {
        Ok(match view {
            ProxyView::Shards => {
                let seen = self.roles_seen().await?;
                self.shard_rows(&seen)
            }
            ProxyView::Pools => {
                let seen = self.roles_seen().await?;
                self.pool_rows(&seen)
            }
            ProxyView::Sessions => {
                let seen = self.roles_seen().await?;
                self.session_rows(&seen)
            }
            ProxyView::PreparedStatements => self.prepared_rows().await?,
            ProxyView::Transactions => {
                let process = self.process.clone();
                let parts = two_phase::list(&process).await;
                parts
                    .iter()
                    .map(|part| transaction_row(&process, part))
                    .collect()
            }
        })
    }

    /// Asks the home shard for the rights of the role that is in force, which is the only one that
    /// knows them.
    async fn roles_seen(&mut self) -> Outcome<Seen> {
        let owns = |shard: &std::sync::Arc<crate::shard::Shard>| {
            shard.settings.admin_user == self.user.name
        };
        if self.process.shards.iter().any(owns) {
            return Ok(Seen::All);
        }
        let users = self.process.logins.keys();
        let users: Vec<String> = users.map(|name| guc::quote_literal(name)).collect();
        let text = format!(
            "select null, pg_catalog.pg_has_role('pg_read_all_stats', 'USAGE') \
             union all select rolname, false from pg_catalog.pg_roles \
             where pg_catalog.pg_has_role(oid, 'USAGE') and rolname::text in ({})",
            users.join(", ")
        );
        let rows = self.query_rows(self.home(), &text).await?;
        let all = |row: &Row| row.get(1).cloned().flatten().as_deref() == Some("t");
        if rows.iter().any(all) {
            return Ok(Seen::All);
        }
        let roles = rows.into_iter().filter_map(|row| row.into_iter().next()?);
        Ok(Seen::Of(roles.collect()))
    }

    fn shard_rows(&self, seen: &Seen) -> Vec<Row> {
        let home = self.home();
        let row = |shard: &std::sync::Arc<crate::shard::Shard>| {
            let host = match &shard.settings.host {
                ShardHost::Unix(directory) => directory.display().to_string(),
                ShardHost::Tcp(host) => host.clone(),
            };
            let error = Some(shard.last_error()).filter(|error| !error.is_empty());
            vec![
                Some(shard.id.to_string()),
                Some(shard.settings.name.clone()),
                Some(host).filter(|_| seen.is_all()),
                Some(shard.settings.port.to_string()).filter(|_| seen.is_all()),
                Some(shard.settings.database.clone()),
                boolean(shard.id == home),
                boolean(shard.is_up()),
                error.filter(|_| seen.is_all()),
            ]
        };
        self.process.shards.iter().map(row).collect()
    }

    fn pool_rows(&self, seen: &Seen) -> Vec<Row> {
        let row = |pool: crate::pool::PoolState| {
            vec![
                Some(pool.shard),
                Some(pool.user),
                Some(pool.size_max.to_string()),
                Some(pool.idle.to_string()),
                Some(pool.active.to_string()),
                Some(pool.waiting.to_string()),
                Some(pool.waits.to_string()),
                Some(pool.waited.as_secs_f64().to_string()),
            ]
        };
        let pools = self.process.pools().into_iter();
        pools.filter(|pool| seen.has(&pool.user)).map(row).collect()
    }

    fn session_rows(&self, seen: &Seen) -> Vec<Row> {
        let row = |card: std::sync::Arc<crate::process::SessionCard>| {
            let activity = lock(&card.activity).clone();
            let shards: Vec<&str> = activity
                .keys
                .iter()
                .map(|key| key.shard.settings.name.as_str())
                .collect();
            let connected = card
                .connected_at
                .duration_since(UNIX_EPOCH)
                .unwrap_or_default();
            vec![
                Some(card.pid.to_string()),
                Some(card.user.clone()),
                Some(activity.application_name),
                Some(card.client.clone()),
                Some(activity.state.to_owned()),
                Some(activity.statement_kind.to_owned()),
                Some(activity.tier.to_owned()),
                Some(shards.join(", ")),
                boolean(activity.pinned),
                Some(timestamp(connected.as_secs())),
                Some(activity.statements.to_string()),
            ]
        };
        let sessions = self.process.sessions().into_iter();
        let sessions = sessions.filter(|card| seen.has(&card.user));
        sessions.map(row).collect()
    }
}

fn transaction_row(process: &Process, (part, state): &(Part, &str)) -> Row {
    let name = |id| {
        let shard = process.shard(id);
        shard.map_or_else(|_| id.to_string(), |shard| shard.settings.name.clone())
    };
    let anchor = Some(name(part.name.anchor));
    vec![
        Some(part.gid.clone()),
        Some(name(part.shard)),
        anchor,
        Some((*state).to_owned()),
        Some(timestamp(part.prepared_at as u64)),
        Some(format!("{:.3}", part.age)),
        Some(part.owner.clone()),
    ]
}

fn boolean(value: bool) -> Option<String> {
    Some(if value { "t" } else { "f" }.to_owned())
}

/// Seconds since 1970 in ISO 8601 (days to civil date: Howard Hinnant, "chrono-Compatible
/// Low-Level Date Algorithms").
fn timestamp(seconds: u64) -> String {
    let (days, rest) = (seconds / 86_400, seconds % 86_400);
    let z = days + 719_468;
    let era = z / 146_097;
    let day_of_era = z % 146_097;
    let year_of_era =
        (day_of_era - day_of_era / 1460 + day_of_era / 36_524 - day_of_era / 146_096) / 365;
    let day_of_year = day_of_era - (365 * year_of_era + year_of_era / 4 - year_of_era / 100);
    let month_index = (5 * day_of_year + 2) / 153;
    let day = day_of_year - (153 * month_index + 2) / 5 + 1;
    let month = if month_index < 10 {
        month_index + 3
    } else {
        month_index - 9
    };
    let year = year_of_era + era * 400 + u64::from(month <= 2);
    format!(
        "{year:04}-{month:02}-{day:02} {:02}:{:02}:{:02}+00",
        rest / 3600,
        rest / 60 % 60,
        rest % 60
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn timestamps_are_iso() {
        assert_eq!(timestamp(0), "1970-01-01 00:00:00+00");
        assert_eq!(timestamp(951_782_399), "2000-02-28 23:59:59+00");
        assert_eq!(timestamp(951_782_400), "2000-02-29 00:00:00+00");
        assert_eq!(timestamp(1_795_219_199), "2026-11-20 23:59:59+00");
    }
}

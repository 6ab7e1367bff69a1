//! PREPARE and EXECUTE as SQL. Such statements live on the home shard, and are right only as long
//! as the tables they name are where they were.

use automator67_planner::plan::Plan;

use super::{Session, planning::Request};
use crate::{
    error::{Outcome, Severity},
    guc, message,
    telemetry::Tier,
};

/// A statement that PREPARE has made.
pub struct SqlPrepared {
    name: String,
    /// The whole PREPARE.
    text: String,
}

impl Session {
    /// PREPARE.
    pub(super) async fn prepare_in_sql(
        &mut self,
        name: &str,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        self.run_single(request, self.home()).await?;
        if self.sql_prepared.is_empty() {
            self.sql_prepared_epoch = request.catalog.epoch;
        }
        self.sql_prepared.retain(|one| one.name != name);
        self.sql_prepared.push(SqlPrepared {
            name: name.to_owned(),
            text: request.text.to_owned(),
        });
        Ok(Tier::Single)
    }

    /// DEALLOCATE; `None` is ALL.
    pub(super) async fn deallocate_in_sql(
        &mut self,
        name: Option<&str>,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        // Drivers also deallocate this way what they have prepared by Parse.
        let parsed = match name {
            Some(name) => self.statements.remove(name).is_some(),
            None => {
                self.statements.retain(|name, _| name.is_empty());
                self.sql_prepared.is_empty()
            }
        };
        if parsed {
            let all = if name.is_none() { " ALL" } else { "" };
            message::put_command_complete(self.client.output(), &format!("DEALLOCATE{all}"));
            return Ok(Tier::Proxy);
        }
        self.run_single(request, self.home()).await?;
        self.sql_prepared
            .retain(|one| name.is_some_and(|name| name != one.name));
        Ok(Tier::Single)
    }

    /// After a change of the catalog: statements that may no longer run on the home shard alone
    /// are forgotten, so that EXECUTE fails instead of reading a part of the rows.
    pub(super) async fn judge_sql_prepared(&mut self) -> Outcome {
        let epoch = self.catalog().epoch;
        if self.sql_prepared.is_empty() || self.sql_prepared_epoch == epoch {
            return Ok(());
        }
        if self.transaction.is_failed() {
            return Ok(());
        }
        for one in std::mem::take(&mut self.sql_prepared) {
            let planned = self.plan_simple(&one.text);
            let still = planned.is_ok_and(|prepared| {
                let mut plans = prepared.statements.iter().map(|planned| &planned.plan);
                plans.all(|plan| matches!(plan, Plan::Prepare { .. }))
            });
            if still {
                self.sql_prepared.push(one);
                continue;
            }
            let name = guc::quote_identifier(&one.name);
            self.run_hidden(self.home(), &format!("DEALLOCATE {name}"))
                .await?;
            let text = format!(
                "prepared statement \"{}\" was deallocated because its tables are on several shards now",
                one.name
            );
            self.notice(Severity::Warning, "01000", &text);
        }
        self.sql_prepared_epoch = epoch;
        Ok(())
    }
}

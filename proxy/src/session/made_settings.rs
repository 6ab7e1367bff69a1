//! Settings that code in a server has made (`set_config` in a function, SET in a DO block): they are
//! looked for before and after the statement, and made on every other shard, as SET of a client is.
//!
//! No view shows custom settings (`app.tenant`), so their names must be known: from the text of the
//! code, or of the statement that calls it (`catalog/residue/settings` in the planner).

use std::collections::{BTreeMap, BTreeSet};

use automator67_planner::{
    catalog::{MadeSettings, Residue, ShardId, custom_names, is_custom_name},
    plan::Plan,
};

use super::{
    Session,
    planning::Request,
    setting::{is_refused_by_call, own_by_call},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc,
};

/// Those that `pg_settings` does not show, and code may make.
const UNSHOWN: &[&str] = &["role", "session_authorization", "transaction_read_only"];

/// Kinds of statements that may run in a transaction: procedures and blocks may end theirs.
const CAN_BE_TAKEN_BACK: &[&str] = &["select", "insert", "update", "delete"];

/// Names and values, as SHOW tells them.
type Values = BTreeMap<String, String>;

/// What a session's settings are before a statement that may make some.
pub(super) struct Before {
    values: Values,
    /// Those that it may make, and that `pg_settings` may not show.
    names: BTreeSet<String>,
}

impl Session {
    /// To be asked before a statement runs, and handed to [`Session::adopt_settings`] after it.
    pub(super) async fn settings_before(
        &mut self,
        residue: Residue,
        request: &Request<'_>,
    ) -> Outcome<Option<Before>> {
        if residue.settings == MadeSettings::None || self.transaction.is_failed() {
            return Ok(None);
        }
        let mut names = names_in(request);
        let known = match residue.settings {
            MadeSettings::None | MadeSettings::Named => true,
            MadeSettings::ByCaller => !names.is_empty(),
            MadeSettings::Computed => false,
        };
        let cursor = matches!(request.planned.plan, Plan::DeclareCursor { .. });
        if (!known || cursor) && self.process.shards.len() > 1 {
            return Err(unknown_settings(cursor));
        }
        let catalog = self.catalog();
        names.extend(catalog.residues.custom_settings().iter().cloned());
        names.extend(self.settings.map.names().map(str::to_owned));
        if CAN_BE_TAKEN_BACK.contains(&request.planned.kind) {
            self.begin_implicit();
        }
        let values = self.settings_on(self.home(), names.iter()).await?;
        Ok(Some(Before { values, names }))
    }

    /// What the statement has made is made on every other shard.
    pub(super) async fn adopt_settings(&mut self, before: Before) -> Outcome {
        let ran_on: Vec<ShardId> = self
            .links
            .iter()
            .filter(|link| link.begun || !self.transaction.is_open())
            .map(|link| link.server.shard_id())
            .collect();
        let Before { values, mut names } = before;
        names.extend(values.keys().cloned());
        let mut made = Values::new();
        let mut makers = BTreeSet::new();
        for shard in ran_on {
            for (name, value) in self.settings_on(shard, names.iter()).await? {
                self.note_placeholder(&name);
                // Where a custom one is unknown elsewhere, it is empty.
                if values.get(&name).map_or("", String::as_str) == value {
                    continue;
                }
                makers.insert(shard);
                if *made.entry(name.clone()).or_insert_with(|| value.clone()) != value {
                    return Err(different_settings(&name));
                }
            }
        }
        if let Some(name) = made.keys().find(|name| is_refused_by_call(name)) {
            return Err(own_by_call(name));
        }
        let local = self.transaction.is_open();
        for (name, value) in made {
            self.make_elsewhere(&name, &value, local, &makers).await?;
            if local {
                self.transaction.made_by_code.insert(name, value);
            }
        }
        Ok(())
    }

    /// After COMMIT: what code has made for longer than the transaction is the session's.
    pub(super) async fn keep_settings(&mut self, made: Values) -> Outcome {
        let home = self.home();
        if made.is_empty() || self.link_position(home).is_none() {
            return Ok(());
        }
        let now = self.settings_on(home, made.keys()).await?;
        for (name, value) in made {
            if now.get(&name) == Some(&value) {
                self.make_elsewhere(&name, &value, false, &BTreeSet::from([home]))
                    .await?;
            }
        }
        Ok(())
    }

    /// All settings that the server session was given, and those of these names.
    async fn settings_on(
        &mut self,
        shard: ShardId,
        names: impl Iterator<Item = &String>,
    ) -> Outcome<Values> {
        let names: Vec<String> = names
            .map(String::as_str)
            .chain(UNSHOWN.iter().copied())
            .map(guc::quote_literal)
            .collect();
        let text = format!(
            "SELECT pg_catalog.lower(name), pg_catalog.current_setting(name)
             FROM pg_catalog.pg_settings WHERE source = 'session'
             UNION SELECT n, pg_catalog.current_setting(n, true)
             FROM pg_catalog.unnest(ARRAY[{}]::pg_catalog.text[]) n",
            names.join(", ")
        );
        let rows = self.query_rows(shard, &text).await?;
        let pair = |row: Vec<Option<String>>| {
            let mut row = row.into_iter();
            Some((row.next()??, row.next()??))
        };
        Ok(rows.into_iter().filter_map(pair).collect())
    }
}

/// Names of custom settings in a statement and its parameters.
fn names_in(request: &Request<'_>) -> BTreeSet<String> {
    let parameters = request.bound.into_iter().flat_map(|bound| {
        let values = (0..bound.bind.parameter_count()).filter_map(|at| bound.bind.value(at));
        // A text looks alike in both formats.
        let texts = values.filter_map(|value| std::str::from_utf8(value).ok());
        texts.filter(|text| is_custom_name(text))
    });
    custom_names(request.text)
        .into_iter()
        .chain(parameters.map(str::to_lowercase))
        .collect()
}

fn unknown_settings(cursor: bool) -> Failure {
    let hint = match cursor {
        true => "Call the code with SELECT before the cursor is declared.",
        false => {
            "Name the setting in the code, or in the statement that calls it; or call set_config \
             from the client."
        }
    };
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        "code that makes settings whose names are not known is not supported with several shards",
    )
    .detail("A setting holds on every shard, and a server does not tell which code has made.")
    .hint(hint)
    .into()
}

fn different_settings(name: &str) -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("code has made \"{name}\" another value on one shard than on another"),
    )
    .hint("Make the setting in a statement of its own.")
    .into()
}

//! SET and friends: checked by a server once, then kept by the session and made again wherever
//! its statements run.

use std::{collections::BTreeSet, sync::Arc};

use automator67_planner::{
    OwnSchemas, Tier as Floor,
    catalog::ShardId,
    plan::{ConfigArgument, ConfigCall, Discarded, SettingCommand},
};

use super::{DEFAULT_SEARCH_PATH, Session, planning::Request};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    failpoint,
    guc::{self, SettingMap},
    message,
    process::lock,
    server::{Answer, relay, reseed},
    settings::Consistency,
    telemetry::Tier,
};

const BYTES_HINT: &str = "Give a number of bytes, or one with kB, MB or GB.";
/// What the proxy's own settings start with.
pub(super) const OWN: &str = "automator67.";
/// Settings that change what later texts mean, or who sends them: those are known from the text of
/// SET, not from values.
const NOT_BY_CALL: &[&str] = &["standard_conforming_strings", "session_authorization"];
/// Everything back to the server's own values.
const RESET_ALL: &str = "RESET ALL";
/// Most values of a sequence that are reserved at once, unless one statement needs more.
const SEQUENCE_BLOCK_MAX: u64 = 1_000_000;

impl Session {
    /// A connection with other settings than the session's.
    pub(super) async fn link_with(&mut self, shard: u32, settings: SettingMap) -> Outcome<usize> {
        let wanted = std::mem::replace(&mut self.settings.map, settings);
        let index = self.link(shard).await;
        self.settings.map = wanted;
        index
    }

    /// SET, RESET, DISCARD.
    pub(super) async fn setting(
        &mut self,
        command: &SettingCommand,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        match command {
            SettingCommand::Set {
                name,
                replay,
                value,
                local,
            } => {
                let made = (name.as_str(), replay.as_str(), value.as_deref());
                self.set(made, *local, request).await?;
            }
            SettingCommand::SetConfig {
                name,
                replay,
                value,
                local,
            } => {
                let made = (name.as_str(), replay.as_str(), Some(value.as_str()));
                self.set(made, *local, request).await?;
            }
            SettingCommand::Characteristics(settings) => {
                self.run_setting(request).await?;
                self.log_setting(request.text);
                for (name, value) in settings {
                    let replay = guc::set_statement(name, value);
                    self.set_own_or_map(name, &replay, Some(value))?;
                }
                self.settings_are_made();
            }
            SettingCommand::Configure(calls) => self.configure(calls, request).await?,
            SettingCommand::Reset { name, local, tag } => {
                self.reset_one(name, *local, tag, request).await?;
            }
            SettingCommand::ResetAll => {
                let reset = self.settings.map.reset_all(&self.settings.initial);
                let before = std::mem::replace(&mut self.settings.map, reset);
                self.reset_own();
                self.run_reset((None, RESET_ALL), "RESET", before).await?;
            }
            SettingCommand::DiscardAll => self.discard_all().await?,
            SettingCommand::Discard(what) => {
                self.temporary.expect_change();
                self.run_single(request, self.home()).await?;
                if *what == Discarded::Sequences {
                    self.memory = super::sequences::Memory::default();
                }
            }
            SettingCommand::ShowOwn { name } => self.show_own(name, request)?,
        }
        Ok(Tier::Proxy)
    }

    /// SET of a name, with what makes it again and its value.
    async fn set(
        &mut self,
        (name, replay, value): (&str, &str, Option<&str>),
        local: bool,
        request: &Request<'_>,
    ) -> Outcome {
        let own = name.starts_with(OWN);
        if !own {
            check_encoding(name, value)?;
            self.run_setting(request).await?;
            self.note_placeholder(name);
            self.log_setting(replay);
        }
        match (own, local) {
            (_, true) => self.set_locally(name, replay, value)?,
            (true, false) => self.set_own_or_map(name, replay, value)?,
            (false, false) => {
                self.keep_setting(name, replay, value).await?;
                self.settings_are_made();
            }
        }
        if own {
            if name == "automator67.consistency" && local {
                self.change_view()?;
            }
            message::put_command_complete(self.client.output(), "SET");
        }
        Ok(())
    }

    /// RESET of a name, and SET ... TO DEFAULT.
    async fn reset_one(
        &mut self,
        name: &str,
        local: bool,
        tag: &str,
        request: &Request<'_>,
    ) -> Outcome {
        if name.starts_with(OWN) {
            if local {
                self.set_locally(name, "", None)?;
            } else {
                self.reset(name);
            }
            message::put_command_complete(self.client.output(), tag);
            return Ok(());
        }
        if local {
            self.run_setting(request).await?;
            self.log_setting(&format!(
                "SET LOCAL {} TO DEFAULT",
                guc::quote_setting(name)
            ));
            return self.set_locally(name, "", None);
        }
        let before = self.settings.map.clone();
        self.reset(name);
        if name == "session_authorization" {
            // The role goes with it, as in Postgres.
            self.settings.map.take_back("role", &SettingMap::default());
        }
        let reset = (Some(name), request.text);
        self.run_reset(reset, tag, before).await?;
        self.log_setting(request.text);
        Ok(())
    }

    /// Remembers a setting that was made. DateStyle takes its value in parts: what it has become is
    /// asked for.
    async fn keep_setting(&mut self, name: &str, replay: &str, value: Option<&str>) -> Outcome {
        if name != "datestyle" {
            return self.set_own_or_map(name, replay, value);
        }
        let shard = self.any_copy();
        let whole = self.query_value(shard, "SHOW datestyle").await?;
        let whole = whole.unwrap_or_default();
        self.set_own_or_map(name, &guc::set_statement(name, &whole), Some(&whole))
    }

    /// A SELECT that calls `set_config`: it runs on the home shard, and what it has set there is made
    /// on the others.
    async fn configure(&mut self, calls: &[ConfigCall], request: &Request<'_>) -> Outcome {
        self.begin_implicit();
        let named = self.named_settings(calls, request).await?;
        if let Some((name, _)) = named.iter().find(|(name, _)| is_refused_by_call(name)) {
            return Err(own_by_call(name));
        }
        let home = self.home();
        self.run_single(request, home).await?;
        let values: Vec<String> = named
            .iter()
            .map(|(name, _)| {
                let name = guc::quote_literal(name);
                format!("pg_catalog.current_setting({name}, true)")
            })
            .collect();
        let text = format!("SELECT {}", values.join(", "));
        let rows = self.query_rows(home, &text).await?;
        let values = rows.into_iter().next().unwrap_or_default();
        for ((name, local), value) in named.iter().zip(values) {
            if let Some(value) = value {
                self.make_elsewhere(name, &value, *local, &BTreeSet::from([home]))
                    .await?;
            }
        }
        Ok(())
    }

    /// Which settings calls of `set_config` make, and whether for the transaction only.
    async fn named_settings(
        &mut self,
        calls: &[ConfigCall],
        request: &Request<'_>,
    ) -> Outcome<Vec<(String, bool)>> {
        let arguments = calls.iter().flat_map(|call| [&call.name, &call.local]);
        let asked: Vec<String> = arguments
            .clone()
            .filter_map(|argument| match argument {
                ConfigArgument::Known(_) => None,
                ConfigArgument::Expression(text) => Some(format!("({text})::text")),
            })
            .collect();
        let mut answers = Vec::new().into_iter();
        if !asked.is_empty() {
            let text = format!("SELECT {}", asked.join(", "));
            let rows = self.ask_home(&text, request).await?;
            answers = rows.into_iter().next().unwrap_or_default().into_iter();
        }
        let mut values = arguments.map(|argument| match argument {
            ConfigArgument::Known(text) => Some(text.clone()),
            ConfigArgument::Expression(_) => answers.next().flatten(),
        });
        let mut named = Vec::with_capacity(calls.len());
        while let (Some(name), Some(local)) = (values.next(), values.next()) {
            // Without a name it is an error, which the server tells.
            if let Some(name) = name {
                let local = local.as_deref().is_some_and(guc::is_on);
                named.push((name.to_lowercase(), local));
            }
        }
        Ok(named)
    }

    /// A setting that a statement has made on some shards, for every other one.
    pub(super) async fn make_elsewhere(
        &mut self,
        name: &str,
        value: &str,
        local: bool,
        made_on: &BTreeSet<ShardId>,
    ) -> Outcome {
        check_encoding(name, Some(value))?;
        let scope = if local { "true" } else { "false" };
        let replay = guc::config_statement(name, value, scope);
        let in_use = |link: &&super::Link| link.begun || link.is_pinned();
        let others = self.links.iter().filter(in_use);
        let others: Vec<u32> = others.map(|link| link.server.shard_id()).collect();
        for shard in others.into_iter().filter(|one| !made_on.contains(one)) {
            self.run_hidden(shard, &replay).await?;
        }
        self.note_placeholder(name);
        self.log_setting(&replay);
        if local {
            return self.set_locally(name, &replay, Some(value));
        }
        self.set_own_or_map(name, &replay, Some(value))?;
        self.settings_are_made();
        Ok(())
    }

    /// The statement itself, on every connection of the transaction, or on one server outside of
    /// one: its error, its tag and its ParameterStatus are the client's.
    async fn run_setting(&mut self, request: &Request<'_>) -> Outcome {
        let home = self.any_copy();
        let begun: Vec<u32> = self
            .links
            .iter()
            .filter(|link| link.begun || link.is_pinned())
            .map(|link| link.server.shard_id())
            .filter(|shard| *shard != home)
            .collect();
        self.run_single(request, home).await?;
        for shard in begun {
            self.run_hidden(shard, request.text).await?;
        }
        Ok(())
    }

    /// After SET ran everywhere, the connections in use have the new settings.
    fn settings_are_made(&mut self) {
        for link in &mut self.links {
            link.server.settings = self.settings.map.clone();
        }
    }

    /// RESET: the client's own statement (whose error, for a name that does not exist, is the
    /// client's), then whatever brings the connection to the session's settings: a server does not
    /// know the startup packet's values. The client sees the parameters that have changed. A reset is
    /// of one name, or of all.
    async fn run_reset(
        &mut self,
        (name, text): (Option<&str>, &str),
        tag: &str,
        before: SettingMap,
    ) -> Outcome {
        let wanted = self.settings.map.clone();
        let first = self.any_copy();
        let first = self.link_open_or_with(first, before).await?;
        for index in 0..self.links.len() {
            let in_use = self.links[index].begun || self.links[index].is_pinned();
            if index != first && !in_use {
                continue;
            }
            let server = &mut self.links[index].server;
            server.query(text, Answer::Shown);
            // What the session began with is as much gone there as what it has made since.
            let nothing = SettingMap::default();
            match name {
                Some(name) => server.settings.take_back(name, &nothing),
                None => server.settings = server.settings.reset_all(&nothing),
            }
            let difference = server.settings.difference(&wanted);
            if !difference.is_empty() {
                server.query(&difference, Answer::Shown);
            }
            server.settings = wanted.clone();
            relay::collect(&mut self.client, server, |output, frame| {
                if index == first && frame.tag == b'S' {
                    output.extend_from_slice(&frame.bytes);
                }
                Ok(())
            })
            .await?;
            self.hidden_error(index)?;
        }
        message::put_command_complete(self.client.output(), tag);
        Ok(())
    }

    async fn link_open_or_with(&mut self, shard: u32, settings: SettingMap) -> Outcome<usize> {
        match self.link_position(shard) {
            Some(index) if self.links[index].begun || !self.transaction.is_open() => Ok(index),
            Some(_) | None => self.link_with(shard, settings).await,
        }
    }

    async fn discard_all(&mut self) -> Outcome {
        if self.transaction.is_open() {
            return Err(Report::error(
                sqlstate::ACTIVE_SQL_TRANSACTION,
                "DISCARD ALL cannot run inside a transaction block",
            )
            .into());
        }
        let initial = self.settings.initial.clone();
        let before = std::mem::replace(&mut self.settings.map, initial);
        self.reset_own();
        self.statements.clear();
        self.portals.clear();
        self.cursors.clear();
        self.temporary = super::temporary::Known::default();
        self.sql_prepared.clear();
        self.memory = super::sequences::Memory::default();
        if self.pinned {
            // What pinned the session is discarded with everything else.
            for index in 0..self.links.len() {
                let server = &mut self.links[index].server;
                server.query("DISCARD ALL", Answer::Shown);
                relay::collect(&mut self.client, server, message::pass_status).await?;
                self.hidden_error(index)?;
                let server = &mut self.links[index].server;
                server.settings = SettingMap::default();
                server.forget_prepared(None);
                if server.residue.stays() && !server.residue.lasting {
                    server.query(&reseed(), Answer::Hidden);
                    relay::exchange(&mut self.client, server).await?;
                    self.hidden_error(index)?;
                    self.links[index].server.is_reset();
                }
            }
            self.unpin();
            // What is left on others goes with the connection.
            self.links.retain(|link| link.server.is_clean());
        }
        self.run_reset((None, RESET_ALL), "DISCARD ALL", before)
            .await
    }

    fn show_own(&mut self, name: &str, request: &Request<'_>) -> Outcome {
        let own = &self.settings.own;
        let value = match name {
            "automator67.auto_distribute" => {
                if own.auto_distribute {
                    "primary_key".to_owned()
                } else {
                    "off".to_owned()
                }
            }
            "automator67.gather_max_bytes" => own.gather_bytes_max.to_string(),
            "automator67.work_mem_bytes" => own.work_bytes.to_string(),
            "automator67.sequence_block" => own.sequence_block.to_string(),
            "automator67.force_tier" => match own.tier {
                Floor::Single => "auto",
                Floor::Scatter => "scatter",
                Floor::Merge => "merge",
                Floor::Gather => "gather",
            }
            .to_owned(),
            "automator67.own_schemas" => match own.own_schemas {
                OwnSchemas::Hidden => "hidden",
                OwnSchemas::Shown => "shown",
            }
            .to_owned(),
            "automator67.consistency" => own.consistency.name().to_owned(),
            other => {
                return Err(Report::error(
                    "42704",
                    format!("unrecognized configuration parameter \"{other}\""),
                )
                .into());
            }
        };
        if request.bound.is_none() {
            message::put_row_description(self.client.output(), &[(name, 25, -1)]);
        }
        message::put_text_row(self.client.output(), &[Some(&value)]);
        message::put_command_complete(self.client.output(), "SHOW");
        Ok(())
    }

    /// Remembers a setting, and reads those that mean something to the proxy.
    pub(super) fn set_own_or_map(
        &mut self,
        name: &str,
        replay: &str,
        value: Option<&str>,
    ) -> Outcome {
        let value_text = value.unwrap_or("");
        if name.starts_with(OWN) {
            // No server knows the proxy's own.
            return self.set_own(name, value_text);
        }
        match name {
            "search_path" => {
                let initial = self.settings.initial.get(name);
                let path = value.or(initial).unwrap_or(DEFAULT_SEARCH_PATH);
                self.settings.search_path = Arc::new(guc::search_path(path, &self.user.name));
            }
            "client_min_messages" => {
                let quiet = ["error", "fatal", "panic"];
                self.settings.own.warnings = !quiet.contains(&value_text.to_lowercase().as_str());
            }
            "application_name" => {
                lock(&self.card.activity).application_name = value_text.to_owned();
            }
            _ => {}
        }
        self.settings.map.set(name, value_text, replay);
        Ok(())
    }

    /// One of the proxy's own settings; no text is its default.
    fn set_own(&mut self, name: &str, value_text: &str) -> Outcome {
        match name {
            "automator67.auto_distribute" => {
                self.settings.own.auto_distribute = match value_text {
                    "primary_key" => true,
                    "" | "off" | "none" => false,
                    _ => {
                        return Err(invalid_value(
                            name,
                            value_text,
                            "Available values: primary_key, off.",
                        ));
                    }
                };
            }
            "automator67.gather_max_bytes" => {
                self.settings.own.gather_bytes_max =
                    bytes(value_text).ok_or_else(|| invalid_value(name, value_text, BYTES_HINT))?;
            }
            "automator67.work_mem_bytes" => {
                let given = bytes(value_text).and_then(|bytes| usize::try_from(bytes).ok());
                self.settings.own.work_bytes =
                    given.ok_or_else(|| invalid_value(name, value_text, BYTES_HINT))?;
            }
            "automator67.sequence_block" => {
                let given = value_text.trim().parse().ok();
                let given = given.filter(|count| (1..=SEQUENCE_BLOCK_MAX).contains(count));
                self.settings.own.sequence_block = given.ok_or_else(|| {
                    invalid_value(name, value_text, "Give a number from 1 to 1000000.")
                })?;
            }
            "automator67.force_tier" => {
                self.settings.own.tier = match value_text {
                    "scatter" => Floor::Scatter,
                    "merge" => Floor::Merge,
                    "gather" => Floor::Gather,
                    "" | "auto" => Floor::Single,
                    _ => {
                        return Err(invalid_value(
                            name,
                            value_text,
                            "Available values: auto, scatter, merge, gather.",
                        ));
                    }
                };
            }
            "automator67.own_schemas" => {
                self.settings.own.own_schemas = match value_text {
                    "shown" => OwnSchemas::Shown,
                    "" | "hidden" => OwnSchemas::Hidden,
                    _ => {
                        return Err(invalid_value(
                            name,
                            value_text,
                            "Available values: hidden, shown.",
                        ));
                    }
                };
            }
            "automator67.consistency" => {
                self.settings.own.consistency = if value_text.is_empty() {
                    self.process.settings.consistency
                } else {
                    let level = Consistency::named(&value_text.to_lowercase());
                    level.ok_or_else(|| {
                        let names = Consistency::ALL.map(Consistency::name);
                        let hint = format!("Available values: {}.", names.join(", "));
                        invalid_value(name, value_text, &hint)
                    })?
                };
            }
            "automator67.failpoint" if failpoint::configure(value_text) => return Ok(()),
            _ => {
                return Err(Report::error(
                    "42704",
                    format!("unrecognized configuration parameter \"{name}\""),
                )
                .into());
            }
        }
        Ok(())
    }

    /// SET LOCAL: in force until the transaction's end, and not on other connections' behalf.
    fn set_locally(&mut self, name: &str, replay: &str, value: Option<&str>) -> Outcome {
        if !self.transaction.is_open() {
            return Ok(());
        }
        let map = self.settings.map.clone();
        let hidden = (self.settings.search_path.clone(), self.settings.own.clone());
        self.settings.hidden.get_or_insert(Box::new(hidden));
        let result = self.set_own_or_map(name, replay, value);
        self.settings.map = map;
        result
    }

    fn reset(&mut self, name: &str) {
        self.settings.map.take_back(name, &self.settings.initial);
        match name {
            "search_path" => {
                let path = self.settings.map.get(name).unwrap_or(DEFAULT_SEARCH_PATH);
                self.settings.search_path = Arc::new(guc::search_path(path, &self.user.name));
            }
            "automator67.auto_distribute" => self.settings.own.auto_distribute = false,
            "automator67.gather_max_bytes" => {
                self.settings.own.gather_bytes_max = self.process.settings.gather_bytes_max;
            }
            "automator67.force_tier" => self.settings.own.tier = Floor::Single,
            "automator67.own_schemas" => self.settings.own.own_schemas = OwnSchemas::Hidden,
            "automator67.work_mem_bytes" => self.settings.own.work_bytes = super::WORK_BYTES,
            "automator67.consistency" => {
                self.settings.own.consistency = self.process.settings.consistency;
            }
            "automator67.sequence_block" => {
                self.settings.own.sequence_block = self.process.settings.sequence_block;
            }
            "client_min_messages" => self.settings.own.warnings = true,
            _ => {}
        }
    }

    fn reset_own(&mut self) {
        for name in [
            "search_path",
            "automator67.auto_distribute",
            "automator67.gather_max_bytes",
            "automator67.work_mem_bytes",
            "automator67.sequence_block",
            "automator67.force_tier",
            "automator67.own_schemas",
            "automator67.consistency",
            "client_min_messages",
        ] {
            self.reset(name);
        }
    }
}

/// What no call of `set_config` can set.
pub(super) fn is_refused_by_call(name: &str) -> bool {
    name.starts_with(OWN) || NOT_BY_CALL.contains(&name)
}

pub(super) fn own_by_call(name: &str) -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("\"{name}\" cannot be set by this call of set_config"),
    )
    .hint("Use SET.")
    .into()
}

/// Text keys are hashed as the client's bytes, so equal keys must be equal bytes.
pub(super) fn check_encoding(name: &str, value: Option<&str>) -> Outcome {
    let Some(value) = value.filter(|_| name == "client_encoding") else {
        return Ok(());
    };
    let plain: String = value.chars().filter(char::is_ascii_alphanumeric).collect();
    if matches!(
        plain.to_lowercase().as_str(),
        "utf8" | "unicode" | "sqlascii"
    ) {
        return Ok(());
    }
    Err(Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!("client_encoding \"{value}\" is not supported"),
    )
    .hint("Use UTF8.")
    .into())
}

fn invalid_value(name: &str, value: &str, hint: &str) -> Failure {
    Report::error(
        sqlstate::INVALID_PARAMETER_VALUE,
        format!("invalid value for parameter \"{name}\": \"{value}\""),
    )
    .hint(hint)
    .into()
}

/// A number of bytes, with an optional unit of Postgres's.
fn bytes(text: &str) -> Option<u64> {
    let text = text.trim();
    let digits = text
        .trim_end_matches(|letter: char| letter.is_ascii_alphabetic())
        .trim_end();
    let factor = match text[digits.len()..].trim() {
        "" | "B" => 1,
        "kB" => 1 << 10,
        "MB" => 1 << 20,
        "GB" => 1 << 30,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

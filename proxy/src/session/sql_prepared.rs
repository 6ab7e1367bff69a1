//! PREPARE and EXECUTE as SQL. A statement that needs the home shard alone lives there, as long as
//! the tables it names are where they were. Any other is kept as text: EXECUTE puts its parameters
//! in, and the text is planned and run like one that the client has sent.

use automator67_planner::{
    catalog::ShardId,
    normalise::{TokenKind, tokens},
    plan::{Execute, Plan, Prepare, SessionEffects},
};

use super::{Session, planning::Request};
use crate::{
    error::{Outcome, Report, Severity, sqlstate},
    guc, message,
    telemetry::Tier,
};

/// A statement that PREPARE has made.
pub struct SqlPrepared {
    name: String,
    /// The whole PREPARE.
    text: String,
    /// The query string that it was in.
    source: String,
    /// What EXECUTE runs, if that is not on the home shard.
    kept: Option<Kept>,
    /// What it does where it lives on the home shard.
    effects: SessionEffects,
}

/// A statement as text.
#[derive(Clone)]
struct Kept {
    /// Behind AS.
    text: String,
    /// Names of the parameters' types.
    types: Vec<String>,
}

impl Session {
    /// PREPARE.
    pub(super) async fn prepare_in_sql(
        &mut self,
        prepare: &Prepare,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let name = &prepare.name;
        let known = self.sql_prepared.iter().any(|one| one.name == *name);
        if known || self.statements.contains_key(name) {
            return Err(Report::error(
                sqlstate::DUPLICATE_PREPARED_STATEMENT,
                format!("prepared statement \"{name}\" already exists"),
            )
            .into());
        }
        let kept = match &prepare.text {
            None => {
                self.run_single(request, self.home()).await?;
                None
            }
            Some(text) => {
                let home = self.home();
                self.run_hidden(home, request.text).await?;
                let types = self.take_from_home(name).await?;
                message::put_command_complete(self.client.output(), "PREPARE");
                let text = text.clone();
                Some(Kept { text, types })
            }
        };
        if self.sql_prepared.is_empty() {
            self.sql_prepared_epoch = request.catalog.epoch;
        }
        self.sql_prepared.push(SqlPrepared {
            name: name.clone(),
            text: request.text.to_owned(),
            source: request.whole.to_owned(),
            kept,
            effects: request.planned.session,
        });
        Ok(Tier::Single)
    }

    /// PREPARE has made a statement of this name.
    pub(super) fn is_prepared_in_sql(&self, name: &str) -> bool {
        self.sql_prepared.iter().any(|one| one.name == name)
    }

    /// The session's statements as `pg_prepared_statements` shows them: name, text, types of the
    /// parameters, made by PREPARE.
    pub(super) async fn prepared_rows(&mut self) -> Outcome<Vec<Vec<Option<String>>>> {
        let mut rows = Vec::new();
        let named = self.statements.iter().filter(|(name, _)| !name.is_empty());
        let parsed: Vec<_> = named
            .map(|(name, one)| (name.clone(), one.clone()))
            .collect();
        for (name, statement) in parsed {
            let types = self.types_of(&statement).await?;
            let types: Vec<String> = types.iter().map(u32::to_string).collect();
            rows.push(prepared_row(name, &statement.text, &types, false));
        }
        for index in 0..self.sql_prepared.len() {
            let one = &self.sql_prepared[index];
            let (name, source) = (one.name.clone(), one.source.clone());
            let types = match &one.kept {
                Some(kept) => kept.types.clone(),
                None => self.types_at_home(&name).await?,
            };
            rows.push(prepared_row(name, &source, &types, true));
        }
        rows.extend(self.prepared_by_code().await?);
        Ok(rows)
    }

    /// Those that a function or a block has made by PREPARE, on the connection that the session keeps
    /// since.
    async fn prepared_by_code(&mut self) -> Outcome<Vec<Vec<Option<String>>>> {
        let home = self.home();
        let kept = |index: usize| self.links[index].is_pinned();
        if !self.link_position(home).is_some_and(kept) {
            return Ok(Vec::new());
        }
        let text = "select name, statement, parameter_types::pg_catalog.oid[]::text, from_sql
             from pg_catalog.pg_prepared_statements where from_sql and name !~ '^a67_'";
        let mut rows = self.query_rows(home, text).await?;
        rows.retain(|row| match row.first() {
            Some(Some(name)) => !self.is_prepared_in_sql(name),
            _ => false,
        });
        Ok(rows)
    }

    /// A statement that the client has made by Parse.
    async fn kept_of_parsed(&mut self, name: &str) -> Outcome<Option<Kept>> {
        let Some(statement) = self.statements.get(name).cloned() else {
            return Ok(None);
        };
        let types = self.types_of(&statement).await?;
        let list: Vec<String> = types.iter().map(u32::to_string).collect();
        let text = format!(
            "select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname)
             from pg_catalog.unnest('{{{}}}'::pg_catalog.oid[]) with ordinality u (type, place)
             join pg_catalog.pg_type t on t.oid = u.type
             join pg_catalog.pg_namespace n on n.oid = t.typnamespace
             order by u.place",
            list.join(",")
        );
        let rows = if list.is_empty() {
            Vec::new()
        } else {
            self.query_rows(self.home(), &text).await?
        };
        Ok(Some(Kept {
            text: statement.text.to_string(),
            types: first_values(rows),
        }))
    }

    /// Parameter types of a statement that the home shard has prepared.
    async fn types_at_home(&mut self, name: &str) -> Outcome<Vec<String>> {
        let text = format!(
            "select pg_catalog.quote_ident(n.nspname) || '.' || pg_catalog.quote_ident(t.typname)
             from pg_catalog.pg_prepared_statements p
             cross join lateral pg_catalog.unnest(p.parameter_types) with ordinality u (type, place)
             join pg_catalog.pg_type t on t.oid = u.type
             join pg_catalog.pg_namespace n on n.oid = t.typnamespace
             where p.name = {} order by u.place",
            guc::quote_literal(name)
        );
        Ok(first_values(self.query_rows(self.home(), &text).await?))
    }

    /// The same; then the home shard forgets it.
    async fn take_from_home(&mut self, name: &str) -> Outcome<Vec<String>> {
        let home = self.home();
        let types = match self.types_at_home(name).await {
            Ok(types) => types,
            Err(failure) => {
                // The statement is still there: nobody else must find it.
                if let Some(index) = self.link_position(home) {
                    self.links[index].server.status = b'E';
                }
                return Err(failure);
            }
        };
        let name = guc::quote_identifier(name);
        self.run_hidden(home, &format!("DEALLOCATE {name}")).await?;
        Ok(types)
    }

    /// EXECUTE, or EXPLAIN of one.
    pub(super) async fn execute_in_sql(
        &mut self,
        execute: &Execute,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        let found = self
            .sql_prepared
            .iter()
            .find(|one| one.name == execute.name);
        let (kept, effects) = match found {
            Some(one) => (one.kept.clone(), one.effects),
            None => {
                let kept = self.kept_of_parsed(&execute.name).await?;
                (kept, SessionEffects::default())
            }
        };
        let Some(kept) = kept else {
            return self.execute_at_home(effects, request).await;
        };
        let (given, wanted) = (execute.arguments.len(), kept.types.len());
        if given != wanted {
            return Err(Report::error(
                sqlstate::SYNTAX_ERROR,
                format!(
                    "wrong number of parameters for prepared statement \"{}\"",
                    execute.name
                ),
            )
            .detail(format!("Expected {wanted} parameters but got {given}."))
            .into());
        }
        let values = self.argument_values(execute, &kept, request).await?;
        let text = format!("{}{}", execute.prefix, expanded(&kept, &values));
        self.run_rewritten(&text, request).await
    }

    async fn execute_at_home(
        &mut self,
        effects: SessionEffects,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        self.expect_residue(effects.residue);
        let mut planned = request.planned.clone();
        let session = &mut planned.session;
        session.moves_sequence |= effects.moves_sequence;
        session.reads_sequence |= effects.reads_sequence;
        let known = request.with_plan(&planned);
        let before = self.settings_before(effects.residue, request).await?;
        self.run_single(&known, self.home()).await?;
        if let Some(before) = before {
            self.adopt_settings(before).await?;
        }
        if planned.session.pins {
            // CREATE TEMPORARY TABLE AS EXECUTE
            self.temporary.expect_change();
        }
        if effects.sets_sequence {
            // Which one is in the text of PREPARE, with parameters: all may be meant.
            planned.session.sets_sequence = true;
            self.sequences_were_set(&planned, "select setval(null, 1)")
                .await?;
        }
        Ok(Tier::Single)
    }

    /// The parameters as text: strings and NULL as they stand, everything else as the home shard
    /// computes it, once.
    async fn argument_values(
        &mut self,
        execute: &Execute,
        kept: &Kept,
        request: &Request<'_>,
    ) -> Outcome<Vec<Option<String>>> {
        let plain: Vec<Option<Option<String>>> = execute
            .arguments
            .iter()
            .zip(&kept.types)
            .map(|(text, sql_type)| constant(text, sql_type))
            .collect();
        if let Some(values) = plain.iter().cloned().collect() {
            return Ok(values);
        }
        let targets: Vec<String> = execute
            .arguments
            .iter()
            .zip(&kept.types)
            .map(|(text, sql_type)| format!("({text}\n)::{sql_type}"))
            .collect();
        let home: ShardId = self.home();
        let index = self.link(home).await?;
        self.note_effects(index, request.planned.session)?;
        let rows = self
            .query_rows(home, &format!("select {}", targets.join(", ")))
            .await?;
        let row = rows.into_iter().next().unwrap_or_default();
        if row.len() == kept.types.len() {
            Ok(row)
        } else {
            Err(Report::error(
                sqlstate::INTERNAL_ERROR,
                "the parameters of EXECUTE could not be computed",
            )
            .into())
        }
    }

    /// What a server describes in the place of an EXECUTE.
    pub(super) async fn described_in_place(
        &mut self,
        plan: Option<&Plan>,
    ) -> Outcome<Option<String>> {
        let Some(Plan::Execute(execute)) = plan else {
            return Ok(None);
        };
        let mut in_sql = self.sql_prepared.iter();
        let kept = match in_sql.find(|one| one.name == execute.name) {
            Some(one) => one.kept.clone(),
            None => self.kept_of_parsed(&execute.name).await?,
        };
        Ok(kept.map(|kept| {
            let values = vec![None; kept.types.len()];
            format!("{}{}", execute.prefix, expanded(&kept, &values))
        }))
    }

    /// DEALLOCATE; `None` is ALL.
    pub(super) async fn deallocate_in_sql(
        &mut self,
        name: Option<&str>,
        request: &Request<'_>,
    ) -> Outcome<Tier> {
        // Drivers also deallocate this way what they have prepared by Parse.
        let here = match name {
            Some(name) => {
                let count = self.sql_prepared.len();
                self.sql_prepared
                    .retain(|one| one.name != name || one.kept.is_none());
                count != self.sql_prepared.len() || self.statements.remove(name).is_some()
            }
            None => {
                self.statements.retain(|name, _| name.is_empty());
                self.sql_prepared.retain(|one| one.kept.is_none());
                // Code may have prepared some that only the server knows.
                self.sql_prepared.is_empty() && !self.pinned
            }
        };
        if here {
            let all = if name.is_none() { " ALL" } else { "" };
            message::put_command_complete(self.client.output(), &format!("DEALLOCATE{all}"));
            return Ok(Tier::Proxy);
        }
        let home = self.home();
        self.run_single(request, home).await?;
        self.sql_prepared
            .retain(|one| name.is_some_and(|name| name != one.name));
        if name.is_none()
            && let Some(index) = self.link_position(home)
        {
            self.links[index].server.forget_prepared(None);
        }
        Ok(Tier::Single)
    }

    /// After a change of the catalog: statements that may no longer run on the home shard alone
    /// are kept as text from now on.
    pub(super) async fn judge_sql_prepared(&mut self) -> Outcome {
        let epoch = self.catalog().epoch;
        if self.sql_prepared.is_empty() || self.sql_prepared_epoch == epoch {
            return Ok(());
        }
        if self.transaction.is_failed() {
            return Ok(());
        }
        for mut one in std::mem::take(&mut self.sql_prepared) {
            if one.kept.is_none() && !self.still_at_home(&mut one).await? {
                continue;
            }
            self.sql_prepared.push(one);
        }
        self.sql_prepared_epoch = epoch;
        Ok(())
    }

    /// Looks at a statement of the home shard again; false if it is lost.
    async fn still_at_home(&mut self, one: &mut SqlPrepared) -> Outcome<bool> {
        let planned = match self.plan_simple(&one.text).await {
            Ok(prepared) => prepared.statements.into_iter().next(),
            Err(_) => None,
        };
        let text = match planned.as_ref().map(|planned| &planned.plan) {
            Some(Plan::Prepare(Prepare { text: None, .. })) => return Ok(true),
            Some(Plan::Prepare(Prepare { text, .. })) => text.clone(),
            _ => None,
        };
        let types = self.take_from_home(&one.name).await?;
        match text {
            Some(text) => {
                one.kept = Some(Kept { text, types });
                Ok(true)
            }
            None => {
                let text = format!(
                    "prepared statement \"{}\" was deallocated because it is not supported on several shards",
                    one.name
                );
                self.notice(Severity::Warning, "01000", &text);
                Ok(false)
            }
        }
    }
}

fn prepared_row(name: String, text: &str, types: &[String], from_sql: bool) -> Vec<Option<String>> {
    let element = |name: &String| name.replace('\\', "\\\\").replace('"', "\\\"");
    let types: Vec<String> = types
        .iter()
        .map(|name| format!("\"{}\"", element(name)))
        .collect();
    vec![
        Some(name),
        Some(text.to_owned()),
        Some(format!("{{{}}}", types.join(","))),
        Some(from_sql.to_string()),
    ]
}

fn first_values(rows: Vec<Vec<Option<String>>>) -> Vec<String> {
    let values = rows.into_iter();
    values
        .filter_map(|row| row.into_iter().next().flatten())
        .collect()
}

/// The value of an argument that needs no server: a plain string or NULL, or an integer for a type
/// that takes it as it is.
fn constant(text: &str, sql_type: &str) -> Option<Option<String>> {
    let list = tokens(text);
    let [token] = list.as_slice() else {
        return None;
    };
    let spelled = text.get(token.start..token.end)?;
    match token.kind {
        TokenKind::Word if spelled.eq_ignore_ascii_case("null") => Some(None),
        TokenKind::String => {
            let inside = spelled.strip_prefix('\'')?.strip_suffix('\'')?;
            // A string that goes on in another line is one token, too.
            let plain = inside.replace("''", "");
            (!plain.contains('\'')).then(|| Some(inside.replace("''", "'")))
        }
        TokenKind::Number => {
            let integers = ["pg_catalog.int2", "pg_catalog.int4", "pg_catalog.int8"];
            let digits = spelled.bytes().all(|byte| byte.is_ascii_digit());
            (digits && integers.contains(&sql_type)).then(|| Some(spelled.to_owned()))
        }
        _ => None,
    }
}

/// The statement with values in the place of its parameters.
fn expanded(kept: &Kept, values: &[Option<String>]) -> String {
    let list = tokens(&kept.text);
    let mut text = String::with_capacity(kept.text.len() + 32 * values.len());
    let mut at = 0;
    for (position, token) in list.iter().enumerate() {
        if token.kind != TokenKind::Parameter {
            continue;
        }
        let number = kept.text[token.start + 1..token.end].parse::<usize>().ok();
        let index = number.and_then(|number| number.checked_sub(1));
        let (Some(value), Some(sql_type)) = (
            index.and_then(|index| values.get(index)),
            index.and_then(|index| kept.types.get(index)),
        ) else {
            continue;
        };
        text.push_str(&kept.text[at..token.start]);
        let before = position.checked_sub(1).and_then(|before| list.get(before));
        let limits = before.is_some_and(|token| {
            let word = &kept.text[token.start..token.end];
            word.eq_ignore_ascii_case("limit") || word.eq_ignore_ascii_case("offset")
        });
        match value {
            None => text.push_str(&format!("(NULL::{sql_type})")),
            Some(value)
                if limits
                    && !value.is_empty()
                    && value.bytes().all(|byte| byte.is_ascii_digit()) =>
            {
                text.push_str(value);
            }
            Some(value) => {
                text.push_str(&format!("({}::{sql_type})", guc::quote_literal(value)));
            }
        }
        at = token.end;
        if is_bare_target(&kept.text, &list, position) {
            text.push_str(" AS \"?column?\"");
        }
    }
    text.push_str(&kept.text[at..]);
    text
}

/// A parameter that is a column of the result by itself: its name would be that of the cast.
fn is_bare_target(
    text: &str,
    list: &[automator67_planner::normalise::Token],
    position: usize,
) -> bool {
    let word = |at: Option<usize>| {
        at.and_then(|at| list.get(at))
            .map(|token| text[token.start..token.end].to_lowercase())
    };
    let depth = list[position].depth;
    let before = word(position.checked_sub(1));
    let after = word(Some(position + 1));
    let ends = after
        .as_deref()
        .is_none_or(|after| matches!(after, "," | "from" | ")" | ";" | "union" | "where"));
    if !ends {
        return false;
    }
    match before.as_deref() {
        Some("select" | "returning") => true,
        // The list that it belongs to begins with SELECT and not in brackets of its own.
        Some(",") => {
            let behind = list[..position].iter().rev();
            let mut same = behind.take_while(|token| token.depth >= depth);
            let clause = same.find_map(|token| {
                let word = text[token.start..token.end].to_lowercase();
                let begins = matches!(
                    word.as_str(),
                    "select"
                        | "returning"
                        | "from"
                        | "where"
                        | "by"
                        | "values"
                        | "set"
                        | "on"
                        | "having"
                        | "limit"
                        | "offset"
                        | "in"
                );
                (token.depth == depth && begins).then_some(word)
            });
            matches!(clause.as_deref(), Some("select" | "returning"))
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests;

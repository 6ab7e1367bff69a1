//! Statements that run as several in one transaction: writes inside WITH, and changes of shard
//! keys. Rows in between are few enough to stand in the next statement's text.

use std::collections::HashSet;

use automator67_planner::plan::{KeyUpdate, MergeSteps, NewValue, Plan, WithPart, WithWrites};

use super::{Session, extended::Bound, planning::Request, scatter::malformed};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    frame::HEADER_BYTES,
    guc, message,
    server::relay::Captured,
    telemetry::Tier,
};

/// Rows and bytes that may stand in a text.
const ROWS_MAX: usize = 20_000;
const BYTES_MAX: usize = 8 << 20;

/// The answer to a step.
struct Rows {
    names: Vec<String>,
    /// As `format_type` names them.
    types: Vec<String>,
    rows: Vec<Vec<Option<String>>>,
    /// What the command tag says.
    changed: u64,
}

impl Session {
    /// Runs the steps of a statement.
    pub(super) async fn in_steps(&mut self, plan: &Plan, request: &Request<'_>) -> Outcome<Tier> {
        self.begin_implicit();
        // What the steps do asks for other rights than the statement does.
        self.check_on_home(request).await?;
        self.check_rights_on_home(request).await?;
        // What one step has moved, a later one may have to prepare.
        let outer = std::mem::replace(&mut self.will_write, true);
        let result = match plan {
            Plan::WithWrites(with) => self.with_writes(with, request).await,
            Plan::KeyUpdate(update) => self.key_update(update, request).await,
            Plan::MergeSteps(merge) => self.merge_steps(merge, request).await,
            _ => Err(malformed()),
        };
        self.will_write = outer;
        result
    }

    /// Writes inside WITH, then the statement that reads what they return.
    async fn with_writes(&mut self, with: &WithWrites, request: &Request<'_>) -> Outcome<Tier> {
        for relation in &with.no_cascades {
            if self.has_cascades(relation).await? {
                return Err(Report::error(
                    sqlstate::FEATURE_NOT_SUPPORTED,
                    "writes inside WITH are not supported over several shards",
                )
                .detail(format!(
                    "A foreign key to {relation} changes rows of other tables by itself."
                ))
                .hint("Use two statements in one transaction.")
                .into());
            }
        }
        let mut parts: Vec<String> = Vec::new();
        for part in &with.parts {
            if !part.writes {
                parts.push(part.text.clone());
                continue;
            }
            let text = with_prefix(&parts, &part.body);
            let rows = self.step(&text, part.returns, request).await?;
            if part.returns {
                parts.push(as_values(part, &rows));
            }
        }
        let text = with_prefix(&parts, &with.main);
        Box::pin(self.run_rewritten(&text, request)).await?;
        Ok(Tier::Multi)
    }

    /// Rows are deleted where they are and inserted where their new keys belong.
    async fn key_update(&mut self, update: &KeyUpdate, request: &Request<'_>) -> Outcome<Tier> {
        self.refuse_triggers(&update.relation).await?;
        self.check_moving(&update.relation).await?;
        let cascades = self.has_cascades(&update.relation).await?;
        let rows = self.step(&update.delete, true, request).await?;
        if cascades || self.is_referenced(&update.relation).await? && keeps_keys(update, &rows) {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "this change of a shard key is not supported",
            )
            .detail("Rows of other tables refer to the table, and rows would be deleted and inserted again.")
            .hint("Change only keys that do change, with foreign keys that have no action of their own.")
            .into());
        }
        let text = insertion(update, &rows);
        Box::pin(self.run_rewritten(&text, request)).await?;
        message::split_complete(self.client.output());
        let tag = format!("UPDATE {}", rows.rows.len());
        message::put_command_complete(self.client.output(), &tag);
        Ok(Tier::Multi)
    }

    /// A MERGE: its source is read, rows that match are changed, others are inserted.
    async fn merge_steps(&mut self, merge: &MergeSteps, request: &Request<'_>) -> Outcome<Tier> {
        let rows = self.step(&merge.source, true, request).await?;
        let numbers: Vec<usize> = (0..rows.rows.len()).collect();
        let source = as_source(merge, &rows, &numbers);
        let text = format!(
            "SELECT DISTINCT {}.a67_row FROM {} JOIN {source} ON ({})",
            merge.source_name, merge.target, merge.condition
        );
        let found = self.step(&text, true, request).await?;
        let matched: HashSet<usize> = found
            .rows
            .iter()
            .filter_map(|row| row.first()?.as_ref()?.parse().ok())
            .collect();
        let mut changed = 0;
        if !merge.matched.is_empty() {
            let text = format!(
                "MERGE INTO {} USING {source} ON ({}){}",
                merge.target, merge.condition, merge.matched
            );
            changed += self.step(&text, false, request).await?.changed;
        }
        let others: Vec<usize> = numbers
            .into_iter()
            .filter(|row| !matched.contains(row))
            .collect();
        let source = as_source(merge, &rows, &others);
        let mut before: Vec<&str> = Vec::new();
        for clause in &merge.inserts {
            let mut conditions: Vec<String> = before
                .iter()
                .map(|condition| format!("({condition}) IS NOT TRUE"))
                .collect();
            conditions.extend(
                clause
                    .condition
                    .iter()
                    .map(|condition| format!("({condition})")),
            );
            if let (Some((target, values)), false) = (&clause.insert, others.is_empty()) {
                let text = format!(
                    "INSERT INTO {target} SELECT {} FROM {source}{}{}",
                    values.join(", "),
                    if conditions.is_empty() { "" } else { " WHERE " },
                    conditions.join(" AND ")
                );
                changed += self.step(&text, false, request).await?.changed;
            }
            match &clause.condition {
                Some(condition) => before.push(condition),
                None => break,
            }
        }
        message::put_command_complete(self.client.output(), &format!("MERGE {changed}"));
        Ok(Tier::Multi)
    }

    /// A foreign key to the table changes rows of others by itself.
    async fn has_cascades(&mut self, relation: &str) -> Outcome<bool> {
        let actions = "(confdeltype not in ('a', 'r') or confupdtype not in ('a', 'r'))";
        self.has_keys_to(relation, actions).await
    }

    async fn is_referenced(&mut self, relation: &str) -> Outcome<bool> {
        self.has_keys_to(relation, "true").await
    }

    async fn has_keys_to(&mut self, relation: &str, condition: &str) -> Outcome<bool> {
        let text = format!(
            "select 1 from pg_catalog.pg_constraint \
             where contype = 'f' and confrelid = {}::regclass and {condition} limit 1",
            guc::quote_literal(relation)
        );
        Ok(self.query_value(self.home(), &text).await?.is_some())
    }

    /// Triggers would see a DELETE and an INSERT.
    async fn refuse_triggers(&mut self, relation: &str) -> Outcome {
        let text = format!(
            "select tgname from pg_catalog.pg_trigger \
             where tgrelid = {}::regclass and not tgisinternal limit 1",
            guc::quote_literal(relation)
        );
        match self.query_value(self.home(), &text).await? {
            None => Ok(()),
            Some(name) => Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                "changing the shard key of a table with triggers is not supported",
            )
            .detail(format!(
                "Trigger \"{name}\" would see a DELETE and an INSERT."
            ))
            .hint("Delete the row and insert it again.")
            .into()),
        }
    }

    /// Rows that change their shard are read whole, deleted, and inserted, with the rights of who asks.
    async fn check_moving(&mut self, relation: &str) -> Outcome {
        let text = format!(
            "select pg_catalog.has_table_privilege(r.oid, 'DELETE') and not exists ( \
                select from pg_catalog.pg_attribute a \
                where a.attrelid = r.oid and a.attnum > 0 and not a.attisdropped and not ( \
                    pg_catalog.has_column_privilege(r.oid, a.attnum, 'SELECT') \
                    and (a.attgenerated <> '' or pg_catalog.has_column_privilege(r.oid, a.attnum, 'INSERT')))) \
             from (select {}::regclass::oid) r(oid)",
            guc::quote_literal(relation)
        );
        if self.query_value(self.home(), &text).await?.as_deref() == Some("t") {
            return Ok(());
        }
        Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            "changing the shard key needs more rights than UPDATE",
        )
        .detail("Rows are deleted where they are and inserted where they belong, with the rights of who asks.")
        .hint(format!("GRANT SELECT, INSERT, DELETE ON {relation} to the role, or let a role that has them do it."))
        .into())
    }

    /// Runs one step and keeps its rows.
    async fn step(&mut self, text: &str, returns: bool, request: &Request<'_>) -> Outcome<Rows> {
        let (mut names, mut types) = (Vec::new(), Vec::new());
        if returns {
            let description = self.describe_text(text, request).await?;
            let body = &description[HEADER_BYTES..];
            names = message::column_names(body).ok_or_else(malformed)?;
            let columns = message::columns(body).ok_or_else(malformed)?;
            types = self.names_of_types(&columns).await?;
        }
        self.client.flush().await?;
        let outer = self.client.captured.replace(Box::new(Captured {
            full: Some(Box::new(|rows| {
                if rows.len() > BYTES_MAX {
                    return Err(too_many());
                }
                Ok(())
            })),
            ..Captured::default()
        }));
        let bound = request.bound.map(|bound| Bound {
            bind: std::sync::Arc::new(bound.bind.with_results_in(0)),
            ..bound.without_limit()
        });
        let inner = Request {
            bound: bound.as_ref(),
            ..request.with_plan(request.planned)
        };
        let result = Box::pin(self.run_rewritten(text, &inner)).await;
        let rest = self.client.flush().await;
        let captured = std::mem::replace(&mut self.client.captured, outer);
        let mut captured = captured.ok_or_else(malformed)?;
        self.client.output().extend_from_slice(&captured.notices);
        if let (Err(Failure::Told(_)), Some(error)) = (&result, captured.error.take()) {
            return Err(super::scatter::without_position(Failure::Shard(error)));
        }
        result?;
        rest?;
        if captured.count > ROWS_MAX as u64 {
            return Err(too_many());
        }
        Ok(Rows {
            names,
            types,
            rows: kept_rows(&captured.rows).ok_or_else(malformed)?,
            changed: captured.changed,
        })
    }

    async fn names_of_types(&mut self, columns: &[(u32, i32)]) -> Outcome<Vec<String>> {
        let list: Vec<String> = columns
            .iter()
            .map(|(oid, modifier)| format!("format_type({oid}, {modifier})"))
            .collect();
        if list.is_empty() {
            return Ok(Vec::new());
        }
        let text = format!("select {}", list.join(", "));
        let rows = self.query_rows(self.home(), &text).await?;
        let row = rows.into_iter().next().unwrap_or_default();
        row.into_iter().collect::<Option<_>>().ok_or_else(malformed)
    }
}

/// DataRow bodies, each behind its length.
fn kept_rows(mut bytes: &[u8]) -> Option<Vec<Vec<Option<String>>>> {
    let mut rows = Vec::new();
    while let Some((length, rest)) = bytes.split_first_chunk::<4>() {
        let length = usize::try_from(u32::from_be_bytes(*length)).ok()?;
        let (row, rest) = rest.split_at_checked(length)?;
        let values = message::data_row(row)?.into_iter();
        let text = |value: Option<&[u8]>| value.map(|v| String::from_utf8_lossy(v).into_owned());
        rows.push(values.map(text).collect());
        bytes = rest;
    }
    Some(rows)
}

fn with_prefix(parts: &[String], statement: &str) -> String {
    if parts.is_empty() {
        return statement.to_owned();
    }
    let own = statement.trim_start();
    let has_with = own
        .get(..5)
        .is_some_and(|word| word.to_lowercase().starts_with("with") && !word.ends_with('_'));
    if has_with {
        // WITH inside of WITH: the outer names stay visible in brackets only.
        return format!("WITH {}, {}", parts.join(", "), own[4..].trim_start());
    }
    format!("WITH {} {statement}", parts.join(", "))
}

/// The part with its rows in the place of the statement that made them.
fn as_values(part: &WithPart, rows: &Rows) -> String {
    let names = rows.names.iter().enumerate().map(|(at, name)| {
        let name = part.columns.get(at).unwrap_or(name);
        guc::quote_identifier(name)
    });
    let names: Vec<String> = names.collect();
    let body = values_query(rows);
    format!(
        "{} ({}) AS ({body})",
        guc::quote_identifier(&part.name),
        names.join(", ")
    )
}

/// Rows as a SELECT, in their types.
fn values_query(rows: &Rows) -> String {
    let typed = |value: &str| -> Vec<String> {
        let types = rows.types.iter().enumerate();
        types
            .map(|(at, name)| format!("{value}{}::{name}", value_number(value, at)))
            .collect()
    };
    if rows.rows.is_empty() {
        format!("SELECT {} WHERE false", typed("NULL").join(", "))
    } else {
        let columns: Vec<String> = (1..=rows.names.len()).map(|at| format!("c{at}")).collect();
        let lines: Vec<String> = rows.rows.iter().map(|row| line(row)).collect();
        format!(
            "SELECT {} FROM (VALUES {}) AS v ({})",
            typed("c").join(", "),
            lines.join(", "),
            columns.join(", ")
        )
    }
}

fn value_number(value: &str, at: usize) -> String {
    match value {
        "c" => (at + 1).to_string(),
        _ => String::new(),
    }
}

/// Values as text, so that the columns of VALUES are text.
fn line(row: &[Option<String>]) -> String {
    let values = row.iter().map(|value| match value {
        None => "NULL::text".to_owned(),
        Some(value) => format!("{}::text", guc::quote_literal(value)),
    });
    format!("({})", values.collect::<Vec<_>>().join(", "))
}

/// Rows of a source as an item of FROM, with their numbers.
fn as_source(merge: &MergeSteps, rows: &Rows, chosen: &[usize]) -> String {
    let mut numbered = Rows {
        names: rows.names.clone(),
        types: rows.types.clone(),
        rows: Vec::with_capacity(chosen.len()),
        changed: 0,
    };
    numbered.names.push("a67_row".to_owned());
    numbered.types.push("integer".to_owned());
    for number in chosen {
        let mut row = rows.rows[*number].clone();
        row.push(Some(number.to_string()));
        numbered.rows.push(row);
    }
    let names = numbered
        .names
        .iter()
        .map(|name| guc::quote_identifier(name));
    format!(
        "({}) AS {} ({})",
        values_query(&numbered),
        merge.source_name,
        names.collect::<Vec<_>>().join(", ")
    )
}

/// Some row has the key it had before.
fn keeps_keys(update: &KeyUpdate, rows: &Rows) -> bool {
    rows.rows.iter().any(|row| {
        let old = row.get(update.old_key).cloned().flatten();
        match &update.new_key {
            NewValue::Returned(at) => row.get(*at).cloned().flatten() == old,
            NewValue::Text(text) => old.is_some_and(|old| guc::quote_literal(&old) == *text),
        }
    })
}

fn insertion(update: &KeyUpdate, rows: &Rows) -> String {
    let names: Vec<String> = update
        .columns
        .iter()
        .map(|(name, _)| guc::quote_identifier(name))
        .collect();
    let head = format!("INSERT INTO {} ({})", update.table, names.join(", "));
    let returning = &update.returning;
    if rows.rows.is_empty() {
        let nothing = vec!["NULL"; names.len()];
        return format!(
            "{head} OVERRIDING SYSTEM VALUE SELECT {} WHERE false {returning}",
            nothing.join(", ")
        );
    }
    let value = |row: &[Option<String>], value: &NewValue| match value {
        NewValue::Text(text) => text.clone(),
        NewValue::Returned(at) => match row.get(*at) {
            Some(Some(text)) => {
                let sql_type = rows.types.get(*at).map_or("text", String::as_str);
                format!("{}::{sql_type}", guc::quote_literal(text))
            }
            _ => "NULL".to_owned(),
        },
    };
    let lines = rows.rows.iter().map(|row| {
        let values = update.columns.iter().map(|(_, new)| value(row, new));
        format!("({})", values.collect::<Vec<_>>().join(", "))
    });
    format!(
        "{head} OVERRIDING SYSTEM VALUE VALUES {} {returning}",
        lines.collect::<Vec<_>>().join(", ")
    )
}

fn too_many() -> Failure {
    Report::error(
        sqlstate::LIMIT_EXCEEDED,
        format!("a statement in several steps is limited to {ROWS_MAX} rows and {BYTES_MAX} bytes in between"),
    )
    .hint("Run it in parts.")
    .into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_become_values() {
        let part = WithPart {
            name: "gone".to_owned(),
            columns: vec!["k".to_owned()],
            body: String::new(),
            text: String::new(),
            writes: true,
            returns: true,
        };
        let mut rows = Rows {
            names: vec!["id".to_owned(), "note".to_owned()],
            types: vec!["integer".to_owned(), "character varying(5)".to_owned()],
            rows: vec![
                vec![Some("1".to_owned()), Some("it's".to_owned())],
                vec![Some("2".to_owned()), None],
            ],
            changed: 0,
        };
        assert_eq!(
            as_values(&part, &rows),
            "\"gone\" (\"k\", \"note\") AS (SELECT c1::integer, c2::character varying(5) FROM \
             (VALUES ('1'::text, 'it''s'::text), ('2'::text, NULL::text)) AS v (c1, c2))"
        );
        rows.rows.clear();
        assert_eq!(
            as_values(&part, &rows),
            "\"gone\" (\"k\", \"note\") AS (SELECT NULL::integer, NULL::character varying(5) WHERE false)"
        );
    }

    #[test]
    fn kept_rows_are_read_or_refused() {
        assert_eq!(kept_rows(&[]), Some(Vec::new()));
        assert_eq!(kept_rows(&[0, 0, 0, 9, 1]), None);
        let row = [0, 0, 0, 7, 0, 1, 0, 0, 0, 1, b'x'];
        assert_eq!(kept_rows(&row), Some(vec![vec![Some("x".to_owned())]]));
    }

    #[test]
    fn with_is_put_before_a_statement_once() {
        let parts = ["a AS (SELECT 1)".to_owned()];
        assert_eq!(with_prefix(&[], "SELECT 2"), "SELECT 2");
        assert_eq!(
            with_prefix(&parts, "SELECT 2"),
            "WITH a AS (SELECT 1) SELECT 2"
        );
        assert_eq!(
            with_prefix(&parts, "with b AS (SELECT 3) SELECT 2"),
            "WITH a AS (SELECT 1), b AS (SELECT 3) SELECT 2"
        );
    }
}

//! The functions that change where a table's rows live. Each is one transaction: locks on every
//! shard, the catalog, the rows.

mod foreign_keys;

use std::sync::Arc;

use automator67_planner::{
    catalog::{Catalog, KeyType, Placement, QualifiedName, Relation, RelationKind, ShardId},
    key,
    plan::{AdminCall, AdminFunction, Argument, Touches},
};

pub(super) use foreign_keys::Together;

use super::{
    Session,
    copy::{Rule, Spread},
    extended::Bound,
    placement::Method,
    planning::Request,
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc, message,
    server::call::Call,
    telemetry::Tier,
};

impl Session {
    /// `SELECT create_distributed_table(...)` and its like.
    pub(super) async fn admin(&mut self, call: &AdminCall, request: &Request<'_>) -> Outcome<Tier> {
        let given = |argument: &Argument| given(argument, request.bound);
        self.begin_implicit();
        self.hold_schema(&call.function).await?;
        self.refresh_catalog().await?;
        match &call.function {
            AdminFunction::CreateDistributedTable {
                table,
                column,
                distribution_type,
                colocate_with,
            } => {
                let kind = distribution_type.as_ref().map(given).transpose()?;
                let method = kind.as_deref().map(Method::of).transpose()?;
                let colocate_with = colocate_with.as_ref().map(given).transpose()?;
                let (table, column) = (given(table)?, given(column)?);
                let choice = Choice {
                    method,
                    colocate_with: colocate_with.as_deref(),
                };
                self.create_distributed_table(&table, &column, &choice)
                    .await?;
            }
            AdminFunction::CreateReferenceTable { table } => {
                self.create_reference_table(&given(table)?).await?;
            }
            AdminFunction::UndistributeTable { table } => {
                self.undistribute_table(&given(table)?).await?;
            }
            function @ (AdminFunction::CreateUniqueIndex { .. }
            | AdminFunction::DropUniqueIndex { .. }) => {
                Box::pin(self.administer_unique_index(function, request)).await?;
            }
            AdminFunction::DeclareSafe { function } => {
                let mark = Call::to("mark_safe").with(unquoted(&given(function)?));
                self.call(self.home(), &mark).await?;
            }
            AdminFunction::SplitRange {
                table,
                value,
                shard,
            } => {
                let shard = shard.as_ref().map(given).transpose()?;
                let (table, value) = (given(table)?, given(value)?);
                self.split_range(&table, &value, shard.as_deref()).await?;
            }
            AdminFunction::Place {
                table,
                value,
                shard,
            } => {
                let (table, value, shard) = (given(table)?, given(value)?, given(shard)?);
                self.place_value(&table, &value, &shard).await?;
            }
            AdminFunction::DistributeSchema { schema, shard } => {
                let shard = shard.as_ref().map(given).transpose()?;
                self.distribute_schema(&unquoted(&given(schema)?), shard.as_deref())
                    .await?;
            }
            AdminFunction::UndistributeSchema { schema } => {
                self.undistribute_schema(&unquoted(&given(schema)?)).await?;
            }
            AdminFunction::AddShard { .. } => {
                return Err(Report::error(
                    sqlstate::FEATURE_NOT_SUPPORTED,
                    "shards cannot be added while the proxy runs",
                )
                .hint("Start with the number of shards you need.")
                .into());
            }
        }
        if !request.catalog.unique_indexes.is_empty() {
            // Rows that were carried to another shard: their keys, and so the indexes, are the same.
            Box::pin(self.apply_index_changes()).await?;
        }
        self.transaction.note_placement();
        if request.bound.is_none() {
            message::put_row_description(self.client.output(), &[(&call.column, 2278, 4)]);
        }
        message::put_text_row(self.client.output(), &[Some("")]);
        message::put_command_complete(self.client.output(), "SELECT 1");
        Ok(Tier::Proxy)
    }

    /// What the function finds of the schema stays until the transaction ends. Two transactions that
    /// have changed the schema both would wait for each other here: what looks behind the table's own
    /// lock goes on without.
    async fn hold_schema(&mut self, function: &AdminFunction) -> Outcome {
        let looks_behind_lock = matches!(
            function,
            AdminFunction::CreateDistributedTable { .. }
                | AdminFunction::CreateReferenceTable { .. }
        );
        if !looks_behind_lock || !self.transaction.announces() {
            let home = self.home();
            self.call(home, &Call::to("hold_schema")).await?;
        }
        self.transaction.note_change(&Touches::Everything);
        Ok(())
    }

    /// After CREATE TABLE under `automator67.auto_distribute`: by the first column of the primary
    /// key, if it can be a shard key.
    pub(super) async fn auto_distribute(&mut self, table: &QualifiedName) -> Outcome {
        let catalog = self.catalog();
        let schema = Some(table.schema.as_str()).filter(|schema| !schema.is_empty());
        let relation = catalog.resolve(&self.settings.search_path, schema, &table.name);
        let Some(relation) = relation.filter(|r| r.placement == Placement::Local) else {
            return Ok(());
        };
        let Some(first) = relation.primary_key.first() else {
            return Ok(());
        };
        let column = relation.columns.iter().find(|column| column.name == *first);
        if column
            .and_then(|column| key::key_type_of(column.type_oid))
            .is_none()
        {
            return Ok(());
        }
        let (name, column) = (relation.name.clone(), first.clone());
        self.distribute(&name, &column, &Choice::default()).await?;
        self.transaction.note_placement();
        Ok(())
    }

    async fn create_distributed_table(
        &mut self,
        table: &str,
        given: &str,
        choice: &Choice<'_>,
    ) -> Outcome {
        let catalog = self.catalog();
        let relation = self.local_table(&catalog, table)?;
        // As it stands, or as an identifier would be read.
        let has = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let exact = Some(given.to_owned()).filter(|given| has(given));
        let column = exact.unwrap_or_else(|| unquoted(given));
        self.distribute(&relation.name, &column, choice).await
    }

    /// Locks a table that was local, and finds it as it is behind the lock.
    async fn lock_local_table(&mut self, table: &QualifiedName) -> Outcome<Arc<Catalog>> {
        self.close_gate(table).await?;
        self.lock_everywhere(&quoted(table), "ACCESS EXCLUSIVE")
            .await?;
        self.transaction.note_placement();
        self.refresh_catalog().await?;
        let catalog = self.catalog();
        self.local_table(&catalog, &quoted(table))?;
        Ok(catalog)
    }

    async fn distribute(
        &mut self,
        table: &QualifiedName,
        column: &str,
        choice: &Choice<'_>,
    ) -> Outcome {
        let catalog = self.lock_local_table(table).await?;
        let catalog = &*catalog;
        let relation = self.local_table(catalog, &quoted(table))?;
        let name = quoted(&relation.name);
        let position = relation
            .columns
            .iter()
            .position(|known| known.name == column);
        let position = position.ok_or_else(|| {
            Report::error(
                "42703",
                format!(
                    "column \"{column}\" of relation \"{}\" does not exist",
                    relation.name.name
                ),
            )
        })?;
        let key_column = &relation.columns[position];
        let key_type = key_column.key_type().map_err(|reason| {
            Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                format!("column \"{column}\" cannot be a shard key"),
            )
            .detail(format!("Its type is {}: {reason}.", key_column.sql_type))
            .hint("Choose a column of type smallint, integer, bigint, text, varchar, uuid, date, timestamp or timestamptz.")
        })?;
        let group = self.colocation_group(catalog, key_type, choice)?;
        let known = match &group {
            Group::Known(group) => Some(*group),
            Group::New | Group::Of(_) => None,
        };
        let together = Together {
            column: Some(column),
            group: known,
            by_hash: known
                .map_or(choice.method, |group| Some(Method::in_use(catalog, group)))
                .is_none_or(|method| method == Method::Hash),
            alone: choice.colocate_with == Some("none"),
            schema: None,
        };
        self.check_foreign_keys(catalog, relation, &together)
            .await?;
        if relation.inherits {
            return Err(inherits(relation));
        }
        self.check_unique_constraints(relation, column).await?;
        let home = self.home();
        let group = match group {
            Group::Known(group) => Some(group.to_string()),
            Group::New => None,
            Group::Of(call) => self.call_value(home, &call).await?,
        };
        let place = Call::to("place_distributed").with(&name).with(column);
        let place = place.with(type_name(key_type)).with_option(group);
        let group = self.call_value(home, &place).await?;
        let group: u32 = group.and_then(|group| group.parse().ok()).unwrap_or(0);
        self.transaction.note_placement();
        self.refresh_catalog().await?;
        let key_at = relation
            .columns
            .iter()
            .filter(|known| !known.generated)
            .position(|known| known.name == column)
            .unwrap_or(0);
        let rule = Rule::Key {
            column: key_at,
            key_type,
            group,
        };
        let catalog = self.catalog();
        self.spread_table(relation, rule, &catalog).await?;
        self.check_followers(relation).await
    }

    /// Moves the rows of a table that was local to where they belong now.
    pub(super) async fn spread_table(
        &mut self,
        relation: &Relation,
        rule: Rule,
        catalog: &Catalog,
    ) -> Outcome {
        let name = quoted(&relation.name);
        let probe = format!("select exists (select from only {name})");
        if self.query_value(self.home(), &probe).await?.as_deref() != Some("t") {
            return Ok(());
        }
        let columns = stored_columns(relation);
        self.quiet_triggers(&[relation]).await?;
        let source = format!("SELECT ctid, {columns} FROM ONLY {name}");
        let target = format!("{name} ({columns})");
        let mode = Spread::Move { table: &name };
        self.spread(&source, &target, rule, mode, catalog).await?;
        self.loud_triggers().await
    }

    async fn create_reference_table(&mut self, table: &str) -> Outcome {
        let known = self.local_table(&self.catalog(), table)?.name.clone();
        let catalog = self.lock_local_table(&known).await?;
        let relation = self.local_table(&catalog, &quoted(&known))?;
        if relation.inherits {
            return Err(inherits(relation));
        }
        let name = quoted(&relation.name);
        let place = Call::to("place_reference").with(&name);
        self.call(self.home(), &place).await?;
        let columns = stored_columns(relation);
        self.quiet_triggers(&[relation]).await?;
        let source = format!("SELECT {columns} FROM ONLY {name}");
        let target = format!("{name} ({columns})");
        self.spread(&source, &target, Rule::EveryShard, Spread::Copy, &catalog)
            .await?;
        self.loud_triggers().await
    }

    /// Back to a local table: all rows come home.
    async fn undistribute_table(&mut self, table: &str) -> Outcome {
        let catalog = self.catalog();
        let relation = self.find_any_table(&catalog, table)?;
        self.undistribute(relation).await
    }

    pub(super) async fn undistribute(&mut self, relation: &Relation) -> Outcome {
        let name = quoted(&relation.name);
        let distributed = match relation.placement {
            Placement::Local => {
                return Err(Report::error(
                    sqlstate::OBJECT_NOT_IN_STATE,
                    format!("table \"{}\" is not distributed", relation.name.name),
                )
                .hint("Nothing is to be done: its rows are on the home shard.")
                .into());
            }
            Placement::Reference => false,
            Placement::Distributed { .. } | Placement::Schema { .. } => true,
        };
        self.close_gate(&relation.name).await?;
        self.lock_everywhere(&name, "ACCESS EXCLUSIVE").await?;
        let catalog = self.catalog();
        let indexes = self
            .take_unique_indexes_off(&catalog, &relation.name)
            .await?;
        self.quiet_triggers(&[relation]).await?;
        if distributed {
            self.bring_home(relation).await?;
        }
        self.run_elsewhere(&format!("DELETE FROM ONLY {name}"))
            .await?;
        self.loud_triggers().await?;
        for statement in indexes {
            self.run_hidden(self.home(), &statement).await?;
            self.run_elsewhere(&statement).await?;
        }
        self.call(self.home(), &Call::to("unplace").with(&name))
            .await
    }

    async fn bring_home(&mut self, relation: &Relation) -> Outcome {
        let home = self.home();
        for shard in self.all_shards() {
            if shard != home {
                self.carry(relation, (shard, home), "true").await?;
            }
        }
        Ok(())
    }

    /// Copies the rows of a table that meet a condition from one shard to another.
    pub(super) async fn carry(
        &mut self,
        relation: &Relation,
        (from, to): (ShardId, ShardId),
        condition: &str,
    ) -> Outcome<u64> {
        let (name, columns) = (quoted(&relation.name), stored_columns(relation));
        let declare = format!(
            "DECLARE a67_rows NO SCROLL CURSOR FOR SELECT {columns} FROM ONLY {name} WHERE {condition}"
        );
        self.run_hidden(from, &declare).await?;
        self.start_copy(to, &format!("COPY {name} ({columns}) FROM STDIN"))
            .await?;
        loop {
            let rows = self.query_rows(from, "FETCH 5000 FROM a67_rows").await?;
            if rows.is_empty() {
                break;
            }
            let mut data = bytes::BytesMut::new();
            for row in &rows {
                let values = row.iter().map(|value| value.as_deref().map(str::as_bytes));
                crate::copy_rows::put_text_row(&mut data, values);
            }
            self.put_copy(to, &data).await?;
        }
        let count = self.end_copy(to).await?;
        self.note_rows(to, count);
        self.run_hidden(from, "CLOSE a67_rows").await?;
        Ok(count)
    }

    // ---- steps ----

    /// An ordinary table that can be used.
    pub(super) fn find_table<'c>(&self, catalog: &'c Catalog, text: &str) -> Outcome<&'c Relation> {
        let relation = self.find_any_table(catalog, text)?;
        check_usable(relation)?;
        Ok(relation)
    }

    fn find_any_table<'c>(&self, catalog: &'c Catalog, text: &str) -> Outcome<&'c Relation> {
        let (schema, name) = split_name(text);
        let found = catalog.resolve(&self.settings.search_path, schema.as_deref(), &name);
        let relation = found.ok_or_else(|| {
            Report::error(
                sqlstate::UNDEFINED_TABLE,
                format!("relation \"{text}\" does not exist"),
            )
        })?;
        if relation.kind != RelationKind::Table {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                format!("\"{}\" is not an ordinary table", relation.name.name),
            )
            .detail("Only ordinary tables can be distributed; partitioned and foreign tables, views and sequences cannot.")
            .hint("Distribute an ordinary table, or leave this one on the home shard.")
            .into());
        }
        Ok(relation)
    }

    fn local_table<'c>(&self, catalog: &'c Catalog, text: &str) -> Outcome<&'c Relation> {
        let relation = self.find_table(catalog, text)?;
        let what = match &relation.placement {
            Placement::Local => return Ok(relation),
            Placement::Reference => "a reference table".to_owned(),
            Placement::Distributed { key, .. } => format!("distributed by \"{key}\""),
            Placement::Schema { .. } => "on the shard of its schema".to_owned(),
        };
        Err(Report::error(
            sqlstate::OBJECT_NOT_IN_STATE,
            format!("table \"{}\" is already {what}", relation.name.name),
        )
        .hint("Call undistribute_table first.")
        .into())
    }

    /// Uniqueness over shards can be kept only where equal values meet on one shard.
    async fn check_unique_constraints(&mut self, relation: &Relation, column: &str) -> Outcome {
        let home = self.home();
        let rel = guc::quote_literal(&quoted(&relation.name));
        let text = format!(
            "select c.relname from pg_index i join pg_class c on c.oid = i.indexrelid
             where i.indrelid = {rel}::regclass and (i.indisunique or i.indisexclusion)
             and not exists (select from pg_attribute a where a.attrelid = i.indrelid
                 and a.attname = {} and a.attnum = any (i.indkey::int2[])) limit 1",
            guc::quote_literal(column)
        );
        if let Some(index) = self.query_value(home, &text).await? {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                format!("unique constraint \"{index}\" does not contain the shard key \"{column}\""),
            )
            .detail("Each shard could keep it only for its own rows.")
            .hint("Add the shard key to the constraint, choose another shard key, or drop the constraint.")
            .into());
        }
        self.check_policies(relation).await
    }

    /// Policies and rules would see one shard's rows.
    pub(super) async fn check_policies(&mut self, relation: &Relation) -> Outcome {
        let home = self.home();
        let rel = guc::quote_literal(&quoted(&relation.name));
        let text = format!(
            "select case when c.relrowsecurity then 'row level security' when c.relhasrules then 'rules'
                end from pg_class c where c.oid = {rel}::regclass"
        );
        if let Some(what) = self.query_value(home, &text).await? {
            return Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                format!(
                    "table \"{}\" has {what} and cannot be distributed",
                    relation.name.name
                ),
            )
            .into());
        }
        Ok(())
    }

    /// The colocation group of a new distributed table.
    fn colocation_group(
        &self,
        catalog: &Catalog,
        key_type: KeyType,
        choice: &Choice<'_>,
    ) -> Outcome<Group> {
        let type_name = type_name(key_type);
        let other = match (choice.colocate_with, choice.method) {
            (Some(other), _) if !matches!(other, "none" | "default") => other,
            (_, Some(Method::Range)) => {
                let shard = self.shard_for_range(catalog, None);
                return Ok(Group::Of(
                    Call::to("range_group").with(type_name).with(shard),
                ));
            }
            (_, Some(Method::Directory)) => {
                return Ok(Group::Of(Call::to("directory_group").with(type_name)));
            }
            (Some("none"), _) => return Ok(Group::New),
            _ => return Ok(Group::Of(Call::to("default_group").with(type_name))),
        };
        let (schema, name) = split_name(other);
        let relation = catalog.resolve(&self.settings.search_path, schema.as_deref(), &name);
        let Some(Placement::Distributed {
            key_type: theirs,
            colocation,
            ..
        }) = relation.map(|relation| &relation.placement)
        else {
            return Err(Report::error(
                sqlstate::INVALID_PARAMETER_VALUE,
                format!("\"{other}\" is not a distributed table"),
            )
            .hint("Distribute it first, or leave out colocate_with.")
            .into());
        };
        if let Some(relation) = relation {
            check_usable(relation)?;
        }
        let refuse = |why: String| {
            Err(Report::error(
                sqlstate::INVALID_PARAMETER_VALUE,
                format!("cannot colocate with \"{other}\""),
            )
            .detail(why)
            .hint("Leave out colocate_with, or name a table whose key has this type and is placed in this way.")
            .into())
        };
        if *theirs != key_type {
            return refuse("The shard keys have different types.".to_owned());
        }
        let method = Method::in_use(catalog, *colocation);
        if choice.method.is_some_and(|wanted| wanted != method) {
            return refuse(format!("It is distributed by {}.", method.name()));
        }
        Ok(Group::Known(*colocation))
    }

    /// Rows of these tables that move are neither inserted nor deleted as far as triggers and foreign
    /// keys are concerned. Tables that have none need no right for that.
    pub(super) async fn quiet_triggers(&mut self, tables: &[&Relation]) -> Outcome {
        let names = tables
            .iter()
            .map(|table| format!("{}::regclass", guc::quote_literal(&quoted(&table.name))));
        let names: Vec<String> = names.collect();
        let probe = format!(
            "select t.tgrelid::regclass from pg_trigger t \
             where t.tgrelid in ({}) and t.tgenabled <> 'A' limit 1",
            names.join(", ")
        );
        let Some(table) = self.query_value(self.home(), &probe).await? else {
            return Ok(());
        };
        let quiet = "SET LOCAL session_replication_role TO replica";
        match self.everywhere(quiet).await {
            Err(failure) if failure.sqlstate() == sqlstate::INSUFFICIENT_PRIVILEGE => {
                return Err(may_not_quiet(&table, &self.user.name));
            }
            other => other?,
        }
        self.transaction.quiet = true;
        Ok(())
    }

    pub(super) async fn loud_triggers(&mut self) -> Outcome {
        if !std::mem::take(&mut self.transaction.quiet) {
            return Ok(());
        }
        self.everywhere("SET LOCAL session_replication_role TO origin")
            .await
    }
}

/// The colocation group of a table that is about to be distributed.
enum Group {
    /// One that is there.
    Known(u32),
    /// One of its own.
    New,
    /// What this says: the default one, or one of its own that is split in another way.
    Of(Call),
}

/// How a table is to be distributed, as the client says it.
#[derive(Debug, Default)]
struct Choice<'a> {
    method: Option<Method>,
    colocate_with: Option<&'a str>,
}

/// The error of a role that may not move rows past triggers.
fn may_not_quiet(table: &str, role: &str) -> Failure {
    Report::error(
        sqlstate::INSUFFICIENT_PRIVILEGE,
        format!("permission denied to move rows of table {table}"),
    )
    .detail("It has triggers or foreign keys, which must not fire for rows that only move: that needs the right to set session_replication_role.")
    .hint(format!(
        "Distribute the table while it is empty or before it has those, or let a superuser run on every server: GRANT SET ON PARAMETER session_replication_role TO {} (Postgres 15 and later).",
        guc::quote_identifier(role)
    ))
    .into()
}

/// The error for a table of which nobody knows where its rows are.
pub(super) fn check_usable(relation: &Relation) -> Outcome {
    let Some(why) = &relation.unusable else {
        return Ok(());
    };
    Err(Report::error(
        sqlstate::OBJECT_NOT_IN_STATE,
        format!("relation \"{}\" cannot be used", relation.name.name),
    )
    .detail(why)
    .hint(
        "Undo the change of its shard key where it was made, call undistribute_table, or drop it.",
    )
    .into())
}

pub(super) fn inherits(relation: &Relation) -> Failure {
    Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!(
            "table \"{}\" takes part in inheritance and cannot be distributed",
            relation.name.name
        ),
    )
    .hint("Distribute ordinary tables without parents, children or partitions.")
    .into()
}

pub(super) fn given(argument: &Argument, bound: Option<&Bound>) -> Outcome<String> {
    let null = || {
        Failure::from(
            Report::error("22004", "argument must not be null")
                .hint("Give a table name, like 'users'."),
        )
    };
    match argument {
        Argument::Text(text) => text.clone().ok_or_else(null),
        Argument::Parameter(index) => {
            let value = bound
                .and_then(|bound| bound.bind.value(*index))
                .ok_or_else(null)?;
            String::from_utf8(value.to_vec()).map_err(|_| {
                Report::error("22021", "invalid byte sequence for encoding \"UTF8\"").into()
            })
        }
    }
}

/// `schema.table`, each part folded to lower case unless quoted.
fn split_name(text: &str) -> (Option<String>, String) {
    let mut quoted = false;
    let dot = text.char_indices().find(|(_, letter)| {
        quoted ^= *letter == '"';
        *letter == '.' && !quoted
    });
    match dot {
        Some((at, _)) => (Some(unquoted(&text[..at])), unquoted(&text[at + 1..])),
        None => (None, unquoted(text)),
    }
}

pub(super) fn unquoted(name: &str) -> String {
    let name = name.trim();
    match name
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
    {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}

pub(super) fn quoted(name: &QualifiedName) -> String {
    format!(
        "{}.{}",
        guc::quote_identifier(&name.schema),
        guc::quote_identifier(&name.name)
    )
}

/// The columns that hold values of their own, quoted.
fn stored_columns(relation: &Relation) -> String {
    let stored = relation.columns.iter().filter(|column| !column.generated);
    stored
        .map(|column| guc::quote_identifier(&column.name))
        .collect::<Vec<_>>()
        .join(", ")
}

pub(super) fn type_name(key_type: KeyType) -> &'static str {
    match key_type {
        KeyType::Integer => "integer",
        KeyType::Text => "text",
        KeyType::Uuid => "uuid",
        KeyType::Date => "date",
        KeyType::Timestamp => "timestamp",
        KeyType::TimestampTz => "timestamptz",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_are_read_as_regclass_reads_them() {
        let check = |text: &str, schema: Option<&str>, name: &str| {
            assert_eq!(
                split_name(text),
                (schema.map(str::to_owned), name.to_owned())
            );
        };
        check("Users", None, "users");
        check("app.Users", Some("app"), "users");
        check("\"My App\".\"U.s\"\"x\"", Some("My App"), "U.s\"x");
    }
}

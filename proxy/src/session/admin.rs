//! The functions that change where a table's rows live. Each is one transaction: locks on every
//! shard, the catalog, the rows.

use automator67_planner::{
    catalog::{Catalog, ForeignKey, KeyType, Placement, QualifiedName, Relation, RelationKind},
    key,
    plan::{AdminCall, AdminFunction, Argument},
};

use super::{Session, copy::Spread, extended::Bound, planning::Request};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc, message,
    telemetry::Tier,
};

impl Session {
    /// `SELECT create_distributed_table(...)` and its like.
    pub(super) async fn admin(&mut self, call: &AdminCall, request: &Request<'_>) -> Outcome<Tier> {
        let given = |argument: &Argument| given(argument, request.bound);
        self.begin_implicit();
        self.announce_change().await?;
        self.refresh_catalog().await?;
        match &call.function {
            AdminFunction::CreateDistributedTable {
                table,
                column,
                distribution_type,
                colocate_with,
            } => {
                let kind = distribution_type.as_ref().map(given).transpose()?;
                if let Some(kind) = kind.filter(|kind| kind != "hash") {
                    return Err(Report::error(
                        sqlstate::FEATURE_NOT_SUPPORTED,
                        format!("distribution by {kind} is not supported"),
                    )
                    .hint("Use 'hash'.")
                    .into());
                }
                let colocate_with = colocate_with.as_ref().map(given).transpose()?;
                let (table, column) = (given(table)?, given(column)?);
                self.create_distributed_table(&table, &column, colocate_with.as_deref())
                    .await?;
            }
            AdminFunction::CreateReferenceTable { table } => {
                self.create_reference_table(&given(table)?).await?;
            }
            AdminFunction::UndistributeTable { table } => {
                self.undistribute_table(&given(table)?).await?;
            }
            AdminFunction::DeclareSafe { function } => {
                let name = guc::quote_literal(&unquoted(&given(function)?));
                let text = format!("select automator67.mark_safe({name})");
                self.run_hidden(self.home(), &text).await?;
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
        self.transaction.stale = true;
        if request.bound.is_none() {
            message::put_row_description(self.client.output(), &[(&call.column, 2278, 4)]);
        }
        message::put_text_row(self.client.output(), &[Some("")]);
        message::put_command_complete(self.client.output(), "SELECT 1");
        Ok(Tier::Proxy)
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
        self.distribute(&catalog, relation, first, None).await?;
        self.transaction.stale = true;
        Ok(())
    }

    async fn create_distributed_table(
        &mut self,
        table: &str,
        given: &str,
        colocate_with: Option<&str>,
    ) -> Outcome {
        let catalog = self.catalog();
        let relation = self.local_table(&catalog, table)?;
        // As it stands, or as an identifier would be read.
        let has = |name: &str| relation.columns.iter().any(|column| column.name == name);
        let exact = Some(given.to_owned()).filter(|given| has(given));
        let column = exact.unwrap_or_else(|| unquoted(given));
        self.distribute(&catalog, relation, &column, colocate_with)
            .await
    }

    async fn distribute(
        &mut self,
        catalog: &Catalog,
        relation: &Relation,
        column: &str,
        colocate_with: Option<&str>,
    ) -> Outcome {
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
        self.check_foreign_keys(catalog, relation, column, colocate_with)
            .await?;
        if relation.inherits {
            return Err(inherits(relation));
        }
        self.check_unique_constraints(relation, column).await?;
        let group = self.colocation_group(catalog, key_type, colocate_with)?;
        self.close_gate(&relation.name).await?;
        self.lock_everywhere(&name).await?;
        let home = self.home();
        let place = format!(
            "select automator67.place_distributed({}, {}, '{}', {group})",
            guc::quote_literal(&name),
            guc::quote_literal(column),
            type_name(key_type),
        );
        self.run_hidden(home, &place).await?;
        let probe = format!("select exists (select from only {name})");
        if self.query_value(home, &probe).await?.as_deref() != Some("t") {
            return Ok(());
        }
        let columns = stored_columns(relation);
        let key_at = relation
            .columns
            .iter()
            .filter(|known| !known.generated)
            .position(|known| known.name == column)
            .unwrap_or(0);
        self.quiet_triggers().await?;
        let source = format!("SELECT ctid, {columns} FROM ONLY {name}");
        let target = format!("{name} ({columns})");
        let mode = Spread::Move { table: &name };
        self.spread(&source, &target, Some((key_at, key_type)), mode, catalog)
            .await?;
        self.loud_triggers().await
    }

    async fn create_reference_table(&mut self, table: &str) -> Outcome {
        let catalog = self.catalog();
        let relation = self.local_table(&catalog, table)?;
        if relation.inherits {
            return Err(inherits(relation));
        }
        let name = quoted(&relation.name);
        self.close_gate(&relation.name).await?;
        self.lock_everywhere(&name).await?;
        let place = format!(
            "select automator67.place_reference({})",
            guc::quote_literal(&name)
        );
        self.run_hidden(self.home(), &place).await?;
        let columns = stored_columns(relation);
        self.quiet_triggers().await?;
        let source = format!("SELECT {columns} FROM ONLY {name}");
        let target = format!("{name} ({columns})");
        self.spread(&source, &target, None, Spread::Copy, &catalog)
            .await?;
        self.loud_triggers().await
    }

    /// Back to a local table: all rows come home.
    async fn undistribute_table(&mut self, table: &str) -> Outcome {
        let catalog = self.catalog();
        let relation = self.find_table(&catalog, table)?;
        let name = quoted(&relation.name);
        let distributed = match relation.placement {
            Placement::Local => {
                return Err(Report::error(
                    sqlstate::OBJECT_NOT_IN_STATE,
                    format!("table \"{}\" is not distributed", relation.name.name),
                )
                .into());
            }
            Placement::Reference => false,
            Placement::Distributed { .. } => true,
        };
        self.close_gate(&relation.name).await?;
        self.lock_everywhere(&name).await?;
        self.quiet_triggers().await?;
        if distributed {
            self.bring_home(relation, &name).await?;
        }
        self.run_elsewhere(&format!("DELETE FROM ONLY {name}"))
            .await?;
        self.loud_triggers().await?;
        let remove = format!("select automator67.unplace({})", guc::quote_literal(&name));
        self.run_hidden(self.home(), &remove).await
    }

    async fn bring_home(&mut self, relation: &Relation, name: &str) -> Outcome {
        let home = self.home();
        let columns = stored_columns(relation);
        for shard in self.all_shards() {
            if shard == home {
                continue;
            }
            let declare =
                format!("DECLARE a67_rows NO SCROLL CURSOR FOR SELECT {columns} FROM ONLY {name}");
            self.run_hidden(shard, &declare).await?;
            self.start_copy(home, &format!("COPY {name} ({columns}) FROM STDIN"))
                .await?;
            loop {
                let rows = self.query_rows(shard, "FETCH 5000 FROM a67_rows").await?;
                if rows.is_empty() {
                    break;
                }
                let mut data = bytes::BytesMut::new();
                for row in &rows {
                    let values = row.iter().map(|value| value.as_deref().map(str::as_bytes));
                    crate::copy_rows::put_text_row(&mut data, values);
                }
                self.put_copy(home, &data).await?;
            }
            self.end_copy(home).await?;
            self.run_hidden(shard, "CLOSE a67_rows").await?;
        }
        Ok(())
    }

    // ---- steps ----

    fn find_table<'c>(&self, catalog: &'c Catalog, text: &str) -> Outcome<&'c Relation> {
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

    fn colocation_group(
        &self,
        catalog: &Catalog,
        key_type: KeyType,
        colocate_with: Option<&str>,
    ) -> Outcome<String> {
        match colocate_with {
            // A new group.
            Some("none") => Ok("null".to_owned()),
            None | Some("default") => Ok(format!(
                "automator67.default_group('{}')",
                type_name(key_type)
            )),
            Some(other) => {
                let (schema, name) = split_name(other);
                let relation =
                    catalog.resolve(&self.settings.search_path, schema.as_deref(), &name);
                match relation.map(|relation| &relation.placement) {
                    Some(Placement::Distributed {
                        key_type: theirs,
                        colocation,
                        ..
                    }) => {
                        if *theirs == key_type {
                            return Ok(colocation.to_string());
                        }
                        Err(Report::error(
                            sqlstate::INVALID_PARAMETER_VALUE,
                            format!("cannot colocate with \"{other}\""),
                        )
                        .detail("The shard keys have different types.")
                        .into())
                    }
                    _ => Err(Report::error(
                        sqlstate::INVALID_PARAMETER_VALUE,
                        format!("\"{other}\" is not a distributed table"),
                    )
                    .into()),
                }
            }
        }
    }

    /// Foreign keys must find what they refer to on the row's own shard.
    async fn check_foreign_keys(
        &mut self,
        catalog: &Catalog,
        relation: &Relation,
        column: &str,
        colocate_with: Option<&str>,
    ) -> Outcome {
        for key in &catalog.foreign_keys {
            if key.table == relation.name {
                check_reference(catalog, relation, column, colocate_with, key)?;
            }
            if key.referenced_table == relation.name && key.table != relation.name {
                self.check_referencing(catalog, relation, key).await?;
            }
        }
        Ok(())
    }

    /// A local table that refers to this one must be empty: its rows could not be checked any
    /// more, and those they refer to are about to move.
    async fn check_referencing(
        &mut self,
        catalog: &Catalog,
        relation: &Relation,
        key: &ForeignKey,
    ) -> Outcome {
        let other = catalog.relation(&key.table);
        let Some(other) = other.filter(|other| other.placement == Placement::Local) else {
            return Ok(());
        };
        let probe = format!("select exists (select from {})", quoted(&other.name));
        if self.query_value(self.home(), &probe).await?.as_deref() != Some("t") {
            return Ok(());
        }
        Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("table \"{}\" is referenced by rows of \"{}\"", relation.name.name, other.name.name),
        )
        .detail(format!("Foreign key \"{}\" of the local table \"{}\".", key.name, other.name.name))
        .hint("Distribute tables before they are filled, or drop the constraint and add it again when both are distributed.")
        .into())
    }

    /// Locks the table on every shard, home first. A shard that does not have it is an error.
    /// Rows that move are neither inserted nor deleted as far as triggers and foreign keys are
    /// concerned.
    async fn quiet_triggers(&mut self) -> Outcome {
        self.everywhere("SET LOCAL session_replication_role TO replica")
            .await
    }

    async fn loud_triggers(&mut self) -> Outcome {
        self.everywhere("SET LOCAL session_replication_role TO origin")
            .await
    }
}

/// Where a table about to be distributed may refer to: a reference table, or a table of the same
/// group by its shard key.
fn check_reference(
    catalog: &Catalog,
    relation: &Relation,
    column: &str,
    colocate_with: Option<&str>,
    key: &ForeignKey,
) -> Outcome {
    let referenced = catalog.relation(&key.referenced_table);
    let Some(referenced) = referenced.filter(|other| other.name != relation.name) else {
        return Ok(());
    };
    let pairs_keys = |their_key: &str| {
        key.columns
            .iter()
            .zip(&key.referenced_columns)
            .any(|(ours, theirs)| ours == column && theirs == their_key)
    };
    match &referenced.placement {
        Placement::Reference => Ok(()),
        Placement::Distributed { key: their_key, .. }
            if pairs_keys(their_key) && colocate_with != Some("none") =>
        {
            Ok(())
        }
        Placement::Distributed { .. } | Placement::Local => Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("foreign key \"{}\" could not be checked on the shards", key.name),
        )
        .detail(format!("It refers to \"{}\", whose rows are not on the shard of the referring row.", referenced.name.name))
        .hint("Make that table a reference table, or distribute both by the columns of the foreign key.")
        .into()),
    }
}

fn inherits(relation: &Relation) -> Failure {
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

fn given(argument: &Argument, bound: Option<&Bound>) -> Outcome<String> {
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

fn unquoted(name: &str) -> String {
    let name = name.trim();
    match name
        .strip_prefix('"')
        .and_then(|name| name.strip_suffix('"'))
    {
        Some(inner) => inner.replace("\"\"", "\""),
        None => name.to_lowercase(),
    }
}

fn quoted(name: &QualifiedName) -> String {
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

fn type_name(key_type: KeyType) -> &'static str {
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

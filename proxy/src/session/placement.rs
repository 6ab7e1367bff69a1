//! Placement by ranges of the key, by a directory of its values, and by schema.

use std::sync::Arc;

use automator67_planner::{
    catalog::{Catalog, KeyType, Placement, QualifiedName, Relation, RelationKind, ShardId, Split},
    key::{self, KeyValue},
};

use super::{
    Session,
    admin::{Together, check_usable, inherits, quoted},
    copy::{Rule, sql_type},
};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc,
    server::call::Call,
};

const DUPLICATE_OBJECT: &str = "42710";
const UNDEFINED_OBJECT: &str = "42704";
const UNDEFINED_SCHEMA: &str = "3F000";

/// How the values of a key say where rows are.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Method {
    /// By their hash.
    Hash,
    /// By ranges.
    Range,
    /// Each by its entry.
    Directory,
}

impl Method {
    /// The method of this name.
    pub fn of(name: &str) -> Outcome<Method> {
        match name {
            "hash" => Ok(Method::Hash),
            "range" => Ok(Method::Range),
            "directory" => Ok(Method::Directory),
            other => Err(Report::error(
                sqlstate::FEATURE_NOT_SUPPORTED,
                format!("distribution by {other} is not supported"),
            )
            .hint("Use 'hash', 'range' or 'directory'.")
            .into()),
        }
    }

    /// The method of a group of distributed tables.
    pub fn in_use(catalog: &Catalog, group: u32) -> Method {
        match catalog.splits.get(&group) {
            Some(Split::Ranges(_)) => Method::Range,
            Some(Split::Directory { .. }) => Method::Directory,
            Some(Split::Whole(_)) | None => Method::Hash,
        }
    }

    /// Its name.
    pub fn name(self) -> &'static str {
        match self {
            Method::Hash => "hash",
            Method::Range => "range",
            Method::Directory => "directory",
        }
    }
}

impl Session {
    // ---- ranges ----

    /// The shard for a new range: with the fewest of the group's ranges, then of all.
    pub(super) fn shard_for_range(&self, catalog: &Catalog, group: Option<u32>) -> ShardId {
        let count = |shard: ShardId, only: Option<u32>| -> usize {
            let groups = catalog.splits.iter();
            groups
                .filter(|(group, _)| only.is_none_or(|only| only == **group))
                .map(|(_, split)| match split {
                    Split::Ranges(ranges) => ranges.count(shard),
                    Split::Directory { .. } | Split::Whole(_) => 0,
                })
                .sum()
        };
        let own = |shard| group.map_or(0, |group| count(shard, Some(group)));
        let shards = catalog.shards.iter().map(|shard| shard.id);
        let fewest = shards.min_by_key(|shard| (own(*shard), count(*shard, None), *shard));
        fewest.unwrap_or_else(|| self.home())
    }

    /// The range that holds a value ends before it, and a new one begins with it.
    pub(super) async fn split_range(
        &mut self,
        table: &str,
        value: &str,
        shard: Option<&str>,
    ) -> Outcome {
        let catalog = self.catalog();
        let relation = self.find_table(&catalog, table)?;
        let (key_type, group) = keyed(relation, &catalog, Method::Range)?;
        let Some(Split::Ranges(ranges)) = catalog.splits.get(&group) else {
            return Err(not_distributed_by(relation, Method::Range));
        };
        self.check_group_owner(&catalog, group).await?;
        let value = self.key_value(key_type, value).await?;
        let to = match shard {
            Some(name) => shard_named(&catalog, name)?,
            None => self.shard_for_range(&catalog, Some(group)),
        };
        let Some((start, from, end)) = ranges.around(&value) else {
            return Err(not_distributed_by(relation, Method::Range));
        };
        let first = key::canonical(key_type, &value);
        if start.is_some_and(|start| key::compare(start, &value).is_eq()) {
            return Err(Report::error(
                DUPLICATE_OBJECT,
                format!(
                    "a range of \"{}\" begins at \"{first}\" already",
                    relation.name.name
                ),
            )
            .hint("Look at automator67.ranges.")
            .into());
        }
        let members = self.lock_group(&catalog, group).await?;
        let start = Call::to("start_range").with(group).with(&first).with(to);
        self.call(self.home(), &start).await?;
        let condition = |column: &str| {
            let key = comparable(key_type, column);
            let first = typed(key_type, &first);
            match end {
                Some(end) => {
                    let end = typed(key_type, &key::canonical(key_type, end));
                    format!("{key} >= {first} AND {key} < {end}")
                }
                None => format!("{key} >= {first}"),
            }
        };
        self.move_rows(&members, (from, to), &condition).await
    }

    // ---- directory ----

    /// Says where the rows of a value are, and brings them there.
    pub(super) async fn place_value(&mut self, table: &str, value: &str, shard: &str) -> Outcome {
        let catalog = self.catalog();
        let relation = self.find_table(&catalog, table)?;
        let (key_type, group) = keyed(relation, &catalog, Method::Directory)?;
        self.check_group_owner(&catalog, group).await?;
        let value = self.key_value(key_type, value).await?;
        let to = shard_named(&catalog, shard)?;
        let members = self.lock_group(&catalog, group).await?;
        let canonical = key::canonical(key_type, &value);
        let place = Call::to("place_value")
            .with(group)
            .with(&canonical)
            .with(to);
        let former = self.call_value(self.home(), &place).await?;
        // A value that had no shard has no rows.
        let Some(from) = former.and_then(|shard| shard.parse().ok()) else {
            return Ok(());
        };
        let condition = |column: &str| {
            let (key, value) = (comparable(key_type, column), typed(key_type, &canonical));
            format!("{key} = {value}")
        };
        self.move_rows(&members, (from, to), &condition).await
    }

    // ---- schemas ----

    /// All tables of a schema, and those it will have, come to one shard.
    pub(super) async fn distribute_schema(&mut self, schema: &str, shard: Option<&str>) -> Outcome {
        let catalog = self.catalog();
        check_schema(&catalog, schema)?;
        if catalog.tenants.contains_key(schema) {
            return Err(Report::error(
                sqlstate::OBJECT_NOT_IN_STATE,
                format!("schema \"{schema}\" is already distributed"),
            )
            .hint("Call automator67.undistribute_schema first.")
            .into());
        }
        let shard = match shard {
            Some(name) => shard_named(&catalog, name)?,
            None => self.shard_for_schema(&catalog),
        };
        let tables = tables_of(&catalog, schema)?;
        let together = Together {
            column: None,
            group: None,
            by_hash: false,
            alone: false,
            schema: Some(schema),
        };
        for table in &tables {
            self.check_foreign_keys(&catalog, table, &together).await?;
            self.check_policies(table).await?;
        }
        self.lock_tables(&tables).await?;
        let add = Call::to("add_tenant")
            .with(guc::quote_identifier(schema))
            .with(shard);
        let group = self.call_value(self.home(), &add).await?;
        let group = group.and_then(|group| group.parse().ok()).unwrap_or(0);
        for table in tables {
            self.place_in(table, (group, shard), &catalog).await?;
        }
        Ok(())
    }

    /// All its tables are local again, and so are those to come.
    pub(super) async fn undistribute_schema(&mut self, schema: &str) -> Outcome {
        let catalog = self.catalog();
        check_schema(&catalog, schema)?;
        let Some(group) = catalog.tenants.get(schema) else {
            return Err(Report::error(
                sqlstate::OBJECT_NOT_IN_STATE,
                format!("schema \"{schema}\" is not distributed"),
            )
            .hint("Call undistribute_table for those of its tables that are distributed.")
            .into());
        };
        for table in catalog.members(*group) {
            self.undistribute(table).await?;
        }
        let remove = Call::to("remove_tenant").with(guc::quote_identifier(schema));
        self.call(self.home(), &remove).await
    }

    /// After CREATE TABLE: a table of a distributed schema belongs to the schema's shard. False:
    /// it is not one.
    pub(super) async fn place_with_schema(&mut self, table: &QualifiedName) -> Outcome<bool> {
        let catalog: Arc<Catalog> = self.catalog();
        let schema = Some(table.schema.as_str()).filter(|schema| !schema.is_empty());
        let relation = catalog.resolve(&self.settings.search_path, schema, &table.name);
        let Some(relation) = relation.filter(|relation| {
            relation.placement == Placement::Local
                && relation.kind == RelationKind::Table
                && !relation.inherits
        }) else {
            return Ok(false);
        };
        let Some(group) = catalog.tenants.get(&relation.name.schema).copied() else {
            return Ok(false);
        };
        let Some(shard) = catalog.whole(group) else {
            return Ok(false);
        };
        let together = Together {
            column: None,
            group: Some(group),
            by_hash: false,
            alone: false,
            schema: None,
        };
        self.check_foreign_keys(&catalog, relation, &together)
            .await?;
        self.lock_tables(&[relation]).await?;
        self.place_in(relation, (group, shard), &catalog).await?;
        self.transaction.note_placement();
        Ok(true)
    }

    async fn place_in(
        &mut self,
        relation: &Relation,
        (group, shard): (u32, ShardId),
        catalog: &Catalog,
    ) -> Outcome {
        let place = Call::to("place_with_schema")
            .with(quoted(&relation.name))
            .with(group);
        self.call(self.home(), &place).await?;
        if shard == self.home() {
            return Ok(());
        }
        self.spread_table(relation, Rule::Whole(shard), catalog)
            .await
    }

    /// The shard with the fewest distributed schemas.
    fn shard_for_schema(&self, catalog: &Catalog) -> ShardId {
        let count = |shard: ShardId| {
            let groups = catalog.tenants.values();
            groups
                .filter(|group| catalog.whole(**group) == Some(shard))
                .count()
        };
        let shards = catalog.shards.iter().map(|shard| shard.id);
        let fewest = shards.min_by_key(|shard| (count(*shard), *shard));
        fewest.unwrap_or_else(|| self.home())
    }

    // ---- steps ----

    /// Before anything is told about a group's values. Postgres checks it again where they change.
    async fn check_group_owner(&mut self, catalog: &Catalog, group: u32) -> Outcome {
        let members = catalog.members(group);
        if let Some(unusable) = members.iter().find(|table| table.unusable.is_some()) {
            check_usable(unusable)?;
        }
        let oids: Vec<String> = members.iter().map(|table| table.oid.to_string()).collect();
        let text = format!(
            "select c.relname from pg_class c where c.oid = any ('{{{}}}'::oid[])
             and not pg_has_role(session_user, c.relowner, 'USAGE') limit 1",
            oids.join(",")
        );
        match self.query_value(self.home(), &text).await? {
            None => Ok(()),
            Some(table) => Err(Report::error(
                sqlstate::INSUFFICIENT_PRIVILEGE,
                format!("must be owner of table {table}"),
            )
            .into()),
        }
    }

    /// Keeps everyone away from the tables of a group.
    async fn lock_group<'c>(
        &mut self,
        catalog: &'c Catalog,
        group: u32,
    ) -> Outcome<Vec<&'c Relation>> {
        let members = catalog.members(group);
        self.lock_tables(&members).await?;
        Ok(members)
    }

    async fn lock_tables(&mut self, tables: &[&Relation]) -> Outcome {
        for table in tables {
            self.close_gate(&table.name).await?;
        }
        for table in tables {
            self.lock_everywhere(&quoted(&table.name), "ACCESS EXCLUSIVE")
                .await?;
        }
        Ok(())
    }

    /// Moves rows of some tables; the condition is made of each one's key column.
    async fn move_rows(
        &mut self,
        tables: &[&Relation],
        (from, to): (ShardId, ShardId),
        condition: &(dyn Fn(&str) -> String + Sync),
    ) -> Outcome {
        if from == to {
            return Ok(());
        }
        self.quiet_triggers(tables).await?;
        for table in tables {
            let Placement::Distributed { key, .. } = &table.placement else {
                continue;
            };
            let condition = condition(&guc::quote_identifier(key));
            let count = self.carry(table, (from, to), &condition).await?;
            let delete = format!("DELETE FROM ONLY {} WHERE {condition}", quoted(&table.name));
            self.run_hidden(from, &delete).await?;
            self.note_rows(from, count);
        }
        self.loud_triggers().await
    }

    /// A value of a key, as the home shard reads it where we do not.
    async fn key_value(&mut self, key_type: KeyType, text: &str) -> Outcome<KeyValue> {
        let sql_type = sql_type(key_type);
        let value = match key::from_text(key_type, text) {
            Some(value) => Some(value),
            None => {
                let probe = format!("select ({}::{sql_type})::text", guc::quote_literal(text));
                let canonical = self.query_value(self.home(), &probe).await?;
                canonical.and_then(|text| key::from_text(key_type, &text))
            }
        };
        // Only what can be written down again can be a part of the catalog.
        let written = value.filter(|value| {
            let canonical = key::canonical(key_type, value);
            key::from_text(key_type, &canonical).is_some()
        });
        written.ok_or_else(|| {
            Report::error(
                sqlstate::INVALID_PARAMETER_VALUE,
                format!("\"{text}\" cannot be used as a value of type {sql_type} here"),
            )
            .hint("Write dates as YYYY-MM-DD, in the years 1 to 9999.")
            .into()
        })
    }
}

/// The key's type and the group of a table that is distributed by this method.
fn keyed(relation: &Relation, catalog: &Catalog, method: Method) -> Outcome<(KeyType, u32)> {
    match &relation.placement {
        Placement::Distributed {
            key_type,
            colocation,
            ..
        } if Method::in_use(catalog, *colocation) == method => Ok((*key_type, *colocation)),
        _ => Err(not_distributed_by(relation, method)),
    }
}

fn not_distributed_by(relation: &Relation, method: Method) -> Failure {
    let name = &relation.name.name;
    let method = method.name();
    Report::error(
        sqlstate::OBJECT_NOT_IN_STATE,
        format!("table \"{name}\" is not distributed by {method}"),
    )
    .hint(format!(
        "Write: SELECT create_distributed_table('{name}', 'column', '{method}')"
    ))
    .into()
}

fn shard_named(catalog: &Catalog, name: &str) -> Outcome<ShardId> {
    let shard = catalog.shards.iter().find(|shard| shard.name == name);
    shard.map(|shard| shard.id).ok_or_else(|| {
        Report::error(UNDEFINED_OBJECT, format!("shard \"{name}\" does not exist"))
            .hint("Look at automator67.shards.")
            .into()
    })
}

fn check_schema(catalog: &Catalog, schema: &str) -> Outcome {
    if !catalog.schemas.iter().any(|known| known == schema) {
        return Err(Report::error(
            UNDEFINED_SCHEMA,
            format!("schema \"{schema}\" does not exist"),
        )
        .into());
    }
    if schema.starts_with("pg_") || matches!(schema, "information_schema" | "automator67") {
        return Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("schema \"{schema}\" cannot be distributed"),
        )
        .detail("It belongs to the system.")
        .hint("Create a schema for the tables, and distribute that.")
        .into());
    }
    Ok(())
}

/// The tables of a schema, if all of them can be on another shard.
fn tables_of<'c>(catalog: &'c Catalog, schema: &str) -> Outcome<Vec<&'c Relation>> {
    let mut tables: Vec<&Relation> = Vec::new();
    for relation in catalog.relations.values() {
        if relation.name.schema != schema {
            continue;
        }
        match relation.kind {
            RelationKind::Table if relation.inherits => return Err(inherits(relation)),
            RelationKind::Table => tables.push(relation),
            RelationKind::View | RelationKind::Sequence => continue,
            RelationKind::Partitioned | RelationKind::MaterializedView | RelationKind::Foreign => {
                return Err(Report::error(
                    sqlstate::FEATURE_NOT_SUPPORTED,
                    format!("schema \"{schema}\" cannot be distributed"),
                )
                .detail(format!(
                    "It contains \"{}\", which is a partitioned table, a materialized view or a foreign table.",
                    relation.name.name
                ))
                .hint("Move it to another schema first: ALTER ... SET SCHEMA.")
                .into());
            }
        }
        if relation.placement != Placement::Local {
            return Err(Report::error(
                sqlstate::OBJECT_NOT_IN_STATE,
                format!("table \"{}\" is already placed", relation.name.name),
            )
            .hint("Call undistribute_table first.")
            .into());
        }
    }
    tables.sort_by(|one, other| one.name.cmp(&other.name));
    Ok(tables)
}

/// A key column as ranges compare it.
fn comparable(key_type: KeyType, column: &str) -> String {
    match key_type {
        KeyType::Text => format!("rtrim({column}::text, ' ') COLLATE pg_catalog.\"C\""),
        _ => column.to_owned(),
    }
}

fn typed(key_type: KeyType, canonical: &str) -> String {
    format!("{}::{}", guc::quote_literal(canonical), sql_type(key_type))
}

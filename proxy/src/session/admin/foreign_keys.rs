//! Foreign keys of a table that is about to be placed: what they compare must be on one shard, and what
//! they do must leave rows where they belong.

use automator67_planner::catalog::{Catalog, ForeignKey, Placement, QualifiedName, Relation};

use super::quoted;
use crate::{
    error::{Outcome, Report, sqlstate},
    guc,
    session::{Session, placement::Method},
};

impl Session {
    /// Foreign keys must find what they refer to on the row's own shard.
    pub(in crate::session) async fn check_foreign_keys(
        &mut self,
        catalog: &Catalog,
        relation: &Relation,
        together: &Together<'_>,
    ) -> Outcome {
        if let Some(column) = together.column {
            self.refuse_assigned_key(catalog, relation, column).await?;
        }
        for key in &catalog.foreign_keys {
            if key.table == relation.name {
                check_reference(catalog, relation, together, key)?;
            }
            let moves_too = together.schema == Some(key.table.schema.as_str());
            if key.referenced_table == relation.name && key.table != relation.name && !moves_too {
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
        if self.transaction.is_explicit() {
            self.lock_everywhere(&quoted(&other.name), "ACCESS EXCLUSIVE")
                .await?;
            self.transaction.to_follow.push(key.clone());
            return Ok(());
        }
        Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("table \"{}\" is referenced by rows of \"{}\"", relation.name.name, other.name.name),
        )
        .detail(format!("Foreign key \"{}\" of the local table \"{}\".", key.name, other.name.name))
        .hint(format!("Distribute both in one transaction, the referenced one first: BEGIN, \"{}\", \"{}\", COMMIT.", relation.name.name, other.name.name))
        .into())
    }

    /// Rows that were left behind when the table they refer to was distributed have followed it: on
    /// every shard each finds what it refers to.
    pub(super) async fn check_followers(&mut self, relation: &Relation) -> Outcome {
        let mut keys = self.transaction.to_follow.clone();
        keys.retain(|key| key.table == relation.name);
        for key in keys {
            let columns = |list: &[String], of: &str| -> String {
                let names = list
                    .iter()
                    .map(|name| format!("{of}.{}", guc::quote_identifier(name)));
                names.collect::<Vec<_>>().join(", ")
            };
            let (own, theirs) = (
                columns(&key.columns, "c"),
                columns(&key.referenced_columns, "p"),
            );
            let probe = format!(
                "select exists (select from only {} c where ({own}) is not null
                    and not exists (select from {} p where ({theirs}) = ({own})))",
                quoted(&key.table),
                quoted(&key.referenced_table)
            );
            for shard in self.all_shards() {
                if self.query_value(shard, &probe).await?.as_deref() == Some("t") {
                    let (name, other) = (&key.table.name, &key.referenced_table.name);
                    return Err(Report::error(
                        "23503",
                        format!("table \"{name}\" has rows that refer to none of \"{other}\""),
                    )
                    .detail(format!("Foreign key \"{}\".", key.name))
                    .into());
                }
            }
        }
        Ok(())
    }

    /// Before COMMIT: no local table may be left with rows that refer to a table which was distributed
    /// in this transaction.
    pub(in crate::session) async fn check_all_followed(&mut self) -> Outcome {
        let keys = std::mem::take(&mut self.transaction.to_follow);
        if keys.is_empty() {
            return Ok(());
        }
        self.refresh_catalog().await?;
        let catalog = self.catalog();
        let is_local = |name: &QualifiedName| {
            let relation = catalog.relation(name);
            relation.is_some_and(|one| one.placement == Placement::Local)
        };
        for key in keys {
            if !is_local(&key.table) || is_local(&key.referenced_table) {
                continue;
            }
            let probe = format!("select exists (select from {})", quoted(&key.table));
            if self.query_value(self.home(), &probe).await?.as_deref() == Some("t") {
                let (name, other) = (&key.table.name, &key.referenced_table.name);
                return Err(Report::error(
                    sqlstate::FEATURE_NOT_SUPPORTED,
                    format!("table \"{other}\" is referenced by rows of \"{name}\""),
                )
                .detail(format!(
                    "Foreign key \"{}\" of a local table. The transaction was rolled back.",
                    key.name
                ))
                .hint(format!(
                    "Distribute \"{name}\" in the same transaction, after \"{other}\"."
                ))
                .into());
            }
        }
        Ok(())
    }

    /// What a foreign key does by itself, a server does to the row where it is: a row with another shard
    /// key would be on the wrong shard. Groups of NULL keys would be on several.
    async fn refuse_assigned_key(
        &mut self,
        catalog: &Catalog,
        relation: &Relation,
        column: &str,
    ) -> Outcome {
        let is_reference = |key: &ForeignKey| {
            let referenced = catalog.relation(&key.referenced_table);
            referenced.is_some_and(|one| one.placement == Placement::Reference)
        };
        let keys = catalog.foreign_keys.iter();
        let copies: Vec<String> = keys
            .filter(|key| key.table == relation.name && is_reference(key))
            .map(|key| guc::quote_literal(&key.name))
            .collect();
        let column = guc::quote_literal(column);
        let probe = format!(
            "select f.conname
            from pg_catalog.pg_constraint f
            join pg_catalog.pg_attribute a on a.attrelid = f.conrelid and a.attname = {column}
            where f.contype = 'f' and f.conrelid = {}::pg_catalog.regclass
                and a.attnum = any (f.conkey)
                and (
                    (f.confdeltype = 'd' or f.confdeltype = 'n' and not a.attnotnull)
                        and (f.confdelsetcols is null or a.attnum = any (f.confdelsetcols))
                    or f.confupdtype = 'd' or f.confupdtype = 'n' and not a.attnotnull
                    or f.confupdtype = 'c' and f.conname = any (array[{}]::text[])
                )
            order by f.conname limit 1",
            guc::quote_literal(&quoted(&relation.name)),
            copies.join(", ")
        );
        let Some(name) = self.query_value(self.home(), &probe).await? else {
            return Ok(());
        };
        Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("foreign key \"{name}\" would assign shard key {column}"),
        )
        .detail("A server would do it to the row where it is, and the row would belong on another shard.")
        .hint("Let it have no action on that column (RESTRICT, ON DELETE CASCADE, ON DELETE SET NULL (other columns)), make the column NOT NULL, or distribute by another column.")
        .into())
    }
}

/// What a table about to be placed is placed together with.
pub(in crate::session) struct Together<'a> {
    /// Its shard key.
    pub(in crate::session) column: Option<&'a str>,
    /// Its colocation group, if that exists.
    pub(in crate::session) group: Option<u32>,
    /// The group is one by hash.
    pub(in crate::session) by_hash: bool,
    /// It will be alone in a new group.
    pub(in crate::session) alone: bool,
    /// All tables of this schema come to the same shard.
    pub(in crate::session) schema: Option<&'a str>,
}

/// Where a table about to be distributed may refer to: a reference table, or a table of the same
/// group by its shard key.
fn check_reference(
    catalog: &Catalog,
    relation: &Relation,
    together: &Together<'_>,
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
            .any(|(ours, theirs)| Some(ours.as_str()) == together.column && theirs == their_key)
    };
    let allowed = match &referenced.placement {
        Placement::Reference => true,
        Placement::Distributed {
            key: their_key,
            colocation,
            ..
        } => {
            // Tables by hash have equal keys together in every group.
            let by_hash = together.by_hash && Method::in_use(catalog, *colocation) == Method::Hash;
            pairs_keys(their_key)
                && !together.alone
                && (by_hash || together.group == Some(*colocation))
        }
        Placement::Schema { colocation } => together.group == Some(*colocation),
        Placement::Local => together.schema == Some(referenced.name.schema.as_str()),
    };
    if allowed {
        return Ok(());
    }
    Err(Report::error(
        sqlstate::FEATURE_NOT_SUPPORTED,
        format!(
            "foreign key \"{}\" could not be checked on the shards",
            key.name
        ),
    )
    .detail(format!(
        "It refers to \"{}\", whose rows are not on the shard of the referring row.",
        referenced.name.name
    ))
    .hint(
        "Make that table a reference table, or distribute both by the columns of the foreign key.",
    )
    .into())
}

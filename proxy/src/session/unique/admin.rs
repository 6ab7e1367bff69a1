//! Making and dropping global unique indexes. Each is one transaction over all shards.

use automator67_planner::{
    catalog::{Catalog, Placement, QualifiedName, Relation, UniqueIndex},
    plan::AdminFunction,
};

use super::{Changes, in_words_of_table};
use crate::{
    error::{Failure, Outcome, Report, sqlstate},
    guc,
    server::call::Call,
    session::{
        Session,
        admin::{given, quoted, type_name, unquoted},
        planning::Request,
    },
};

/// Rows are read in pieces of so many.
const ROWS: usize = 5000;

impl Session {
    /// `SELECT automator67.create_unique_index(...)`, `SELECT automator67.drop_unique_index(...)`.
    pub(in crate::session) async fn administer_unique_index(
        &mut self,
        function: &AdminFunction,
        request: &Request<'_>,
    ) -> Outcome {
        match function {
            AdminFunction::CreateUniqueIndex {
                table,
                column,
                name,
            } => {
                let table = given(table, request.bound)?;
                let column = given(column, request.bound)?;
                let name = name
                    .as_ref()
                    .map(|name| given(name, request.bound))
                    .transpose()?;
                self.create_unique_index(&table, &column, name.as_deref())
                    .await
            }
            AdminFunction::DropUniqueIndex { name } => {
                let name = given(name, request.bound)?;
                self.drop_unique_index(&name).await
            }
            _ => Ok(()),
        }
    }

    /// Writers wait until it is there; readers go on.
    async fn create_unique_index(
        &mut self,
        table: &str,
        given: &str,
        name: Option<&str>,
    ) -> Outcome {
        let catalog = self.catalog();
        let relation = self.find_table(&catalog, table)?;
        let index = proposed(&catalog, relation, given, name)?;
        let (key, key_type) = indexable(relation, &index)?;
        let table = quoted(&relation.name);
        self.lock_everywhere(&table, "SHARE ROW EXCLUSIVE").await?;
        let place = Call::to("place_unique_index")
            .with(&index.name)
            .with(&table);
        let place = place.with(&index.column).with(type_name(key_type));
        let id = self.call_value(self.home(), &place).await?;
        let id: u32 = id
            .and_then(|id| id.parse().ok())
            .ok_or_else(|| Report::error(sqlstate::INTERNAL_ERROR, "the index has no number"))?;
        let make = Call::to("a67_make_index").with(id).with(&index.name);
        let make = make.with(&table).with(&index.column).with(key);
        self.call_everywhere(&make).await?;
        let index = UniqueIndex { id, ..index };
        let mut built = (*catalog).clone();
        built.unique_indexes = vec![index.clone()];
        self.fill_unique_index(&index, key, &built).await
    }

    /// Brings the values of the rows that are there to their shards. They are read with the
    /// client's own rights: policies, casts and the like may be somebody's code.
    async fn fill_unique_index(
        &mut self,
        index: &UniqueIndex,
        key: &str,
        catalog: &Catalog,
    ) -> Outcome {
        let id = index.id;
        let column = guc::quote_identifier(&index.column);
        for shard in self.all_shards() {
            let declare = format!(
                "DECLARE a67_rows NO SCROLL CURSOR FOR \
                 SELECT automator67.a67_plain({column}), automator67.a67_plain({}) \
                 FROM ONLY {} WHERE {column} IS NOT NULL",
                guc::quote_identifier(key),
                quoted(&index.table)
            );
            self.run_hidden(shard, &declare).await?;
            loop {
                let fetch = format!("FETCH {ROWS} FROM a67_rows");
                let rows = self.query_rows(shard, &fetch).await?;
                if rows.is_empty() {
                    break;
                }
                let mut changes = Changes::default();
                for mut row in rows {
                    row.insert(0, Some(id.to_string()));
                    row.push(Some("1".to_owned()));
                    changes.add(row);
                }
                for ((shard, id), part) in changes.by_shard(catalog)? {
                    for call in part.calls(id) {
                        let written = self.write_index(shard, &call, index, catalog).await;
                        written.map_err(|failure| not_unique(failure, index, catalog))?;
                    }
                }
            }
            self.run_hidden(shard, "CLOSE a67_rows").await?;
        }
        Ok(())
    }

    async fn drop_unique_index(&mut self, given: &str) -> Outcome {
        let catalog = self.catalog();
        let indexes = &catalog.unique_indexes;
        let exact = indexes.iter().find(|index| index.name == given);
        let folded = || indexes.iter().find(|index| index.name == unquoted(given));
        let index = exact.or_else(folded).ok_or_else(|| {
            Report::error(
                "42704",
                format!("global unique index \"{given}\" does not exist"),
            )
            .hint("See automator67.unique_indexes.")
        })?;
        self.close_gate(&index.table).await?;
        self.lock_everywhere(&quoted(&index.table), "ACCESS EXCLUSIVE")
            .await?;
        self.remove_unique_index(index).await
    }

    /// The table is locked on every shard.
    async fn remove_unique_index(&mut self, index: &UniqueIndex) -> Outcome {
        let drop = Call::to("a67_drop_index").with(index.id);
        self.call_everywhere(&drop).await?;
        let unplace = Call::to("unplace_unique_index").with(index.id);
        self.call(self.home(), &unplace).await
    }

    /// Before a table's rows come home: its indexes are removed. Returns the statements that make
    /// ordinary ones of them.
    pub(in crate::session) async fn take_unique_indexes_off(
        &mut self,
        catalog: &Catalog,
        table: &QualifiedName,
    ) -> Outcome<Vec<String>> {
        let mut statements = Vec::new();
        for index in &catalog.unique_indexes {
            if index.table == *table {
                self.remove_unique_index(index).await?;
                statements.push(format!(
                    "CREATE UNIQUE INDEX {} ON {} ({})",
                    guc::quote_identifier(&index.name),
                    quoted(table),
                    guc::quote_identifier(&index.column)
                ));
            }
        }
        Ok(statements)
    }

    /// After a change of the schema: indexes follow their tables and columns.
    pub(in crate::session) async fn renew_unique_indexes(&mut self) -> Outcome {
        self.call_everywhere(&Call::to("a67_renew_indexes")).await?;
        let forget = Call::to("forget_unique_indexes");
        self.call(self.home(), &forget).await
    }
}

/// The index that is asked for, without a number.
fn proposed(
    catalog: &Catalog,
    relation: &Relation,
    given: &str,
    name: Option<&str>,
) -> Outcome<UniqueIndex> {
    let taken = |name: &str| catalog.unique_indexes.iter().any(|one| one.name == name);
    let column = relation
        .column(given)
        .map_or_else(|| unquoted(given), |column| column.name.clone());
    let name = match name {
        Some(name) => unquoted(name),
        None => {
            let base = format!("{}_{column}_key", relation.name.name);
            let numbered = (1..).map(|number| format!("{base}{number}"));
            let mut names = std::iter::once(base.clone()).chain(numbered);
            names.find(|name| !taken(name)).unwrap_or(base)
        }
    };
    if taken(&name) {
        return Err(
            Report::error("42P07", format!("relation \"{name}\" already exists"))
                .hint("See automator67.unique_indexes.")
                .into(),
        );
    }
    if name.is_empty() || name.len() > 63 {
        return Err(Report::error(
            "42622",
            format!("name \"{name}\" is not 1 to 63 bytes long"),
        )
        .hint("Give the index a name.")
        .into());
    }
    Ok(UniqueIndex {
        id: 0,
        name,
        table: relation.name.clone(),
        column,
    })
}

/// The shard key of the table, and how values of the column are hashed.
fn indexable<'r>(
    relation: &'r Relation,
    index: &UniqueIndex,
) -> Outcome<(&'r str, automator67_planner::catalog::KeyType)> {
    let table = &relation.name.name;
    let Placement::Distributed { key, .. } = &relation.placement else {
        return Err(Report::error(
            sqlstate::OBJECT_NOT_IN_STATE,
            format!("table \"{table}\" is not distributed"),
        )
        .hint("Use CREATE UNIQUE INDEX: every shard that has rows of it has all of them.")
        .into());
    };
    let Some(column) = relation.column(&index.column) else {
        return Err(Report::error(
            "42703",
            format!(
                "column \"{}\" of relation \"{table}\" does not exist",
                index.column
            ),
        )
        .into());
    };
    if column.name == *key {
        return Err(Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("column \"{key}\" is the shard key"),
        )
        .hint("Use CREATE UNIQUE INDEX: rows with the same key are on the same shard.")
        .into());
    }
    let key_type = column.key_type().map_err(|_| {
        Report::error(
            sqlstate::FEATURE_NOT_SUPPORTED,
            format!("column \"{}\" cannot have a global unique index", column.name),
        )
        .detail(format!("Its type is {}.", column.sql_type))
        .hint("Such a column is not generated, has a deterministic collation, and is of type smallint, integer, bigint, text, varchar, uuid, date, timestamp or timestamptz without a precision.")
    })?;
    Ok((key, key_type))
}

/// A clash between rows that were there before, in the server's words.
fn not_unique(failure: Failure, index: &UniqueIndex, catalog: &Catalog) -> Failure {
    match in_words_of_table(failure, index, catalog) {
        Failure::Report(report) if report.sqlstate == super::UNIQUE_VIOLATION => Report {
            message: format!("could not create unique index \"{}\"", index.name),
            detail: report
                .detail
                .as_ref()
                .map(|detail| detail.replace(") already exists.", ") is duplicated.")),
            ..*report
        }
        .into(),
        other => other,
    }
}

//! Global unique indexes: statements that change one, statements that one finds a row for, and
//! what cannot be done beside one.

use pg_query::{
    NodeEnum,
    protobuf::{self, OnConflictAction},
};

use crate::{
    analysis::Analysis,
    catalog::{Catalog, Placement, Relation, UniqueIndex},
    facts::ColumnId,
    plan::{IndexLookup, Plan, PlanError},
    route::Statement,
    scope,
    statement::Draft,
    tree::{self, Child, nodes, strings},
};

/// The schema that has the indexes' values.
const SCHEMA: &str = "automator67_index";
/// Functions that bring indexes up to date begin with this.
const FUNCTIONS: &str = "a67_";

/// The indexes of a table.
pub(crate) fn of_table<'a>(
    catalog: &'a Catalog,
    relation: &'a Relation,
) -> impl Iterator<Item = &'a UniqueIndex> {
    let indexes = catalog.unique_indexes.iter();
    indexes.filter(|index| index.table == relation.name)
}

/// The statement may change rows of a table that has an index.
pub(crate) fn changes(statement: &Statement<'_>, plan: &Plan) -> bool {
    let catalog = statement.catalog;
    if catalog.unique_indexes.is_empty() {
        return false;
    }
    match plan {
        // What it does is not in its text.
        Plan::Execute { .. } => return true,
        Plan::Prepare { .. } | Plan::Ddl(_) | Plan::Admin(_) => return false,
        _ => {}
    }
    let known = |range: &Option<protobuf::RangeVar>| {
        range
            .as_ref()
            .and_then(|range| scope::find_known(catalog, statement.context, range))
    };
    let indexed = |range| known(range).is_some_and(|one| of_table(catalog, one).next().is_some());
    let reaches = |range| known(range).is_some_and(|one| catalog.indexed.contains(&one.name));
    let mut found = false;
    tree::walk(statement.node, &mut |child| {
        let Child::Node(node) = child else { return };
        found |= match node {
            NodeEnum::InsertStmt(insert) if insert.on_conflict_clause.is_none() => {
                indexed(&insert.relation)
            }
            NodeEnum::InsertStmt(insert) => reaches(&insert.relation),
            NodeEnum::UpdateStmt(update) => reaches(&update.relation),
            NodeEnum::DeleteStmt(delete) => reaches(&delete.relation),
            NodeEnum::MergeStmt(merge) => reaches(&merge.relation),
            NodeEnum::CopyStmt(copy) => copy.is_from && indexed(&copy.relation),
            NodeEnum::TruncateStmt(_) => true,
            _ => false,
        };
    });
    found
}

/// Refuses what an index cannot do, and what would spoil it.
pub(crate) fn refuse(statement: &Statement<'_>) -> Result<(), PlanError> {
    let mut result = Ok(());
    tree::walk(statement.node, &mut |child| {
        if result.is_err() {
            return;
        }
        result = match child {
            Child::Node(NodeEnum::FuncCall(call)) => match strings(&call.funcname).last() {
                Some(name) if name.starts_with(FUNCTIONS) => Err(PlanError::new(
                    "42501",
                    format!("permission denied for function {name}"),
                )
                .detail("It is for the proxy itself.")),
                _ => Ok(()),
            },
            Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range)
                if range.schemaname == SCHEMA =>
            {
                Err(
                    PlanError::new("42501", format!("permission denied for schema {SCHEMA}"))
                        .detail("The proxy keeps the values of global unique indexes there."),
                )
            }
            Child::Node(NodeEnum::InsertStmt(insert)) => refuse_conflict(statement, insert),
            _ => Ok(()),
        };
    });
    result
}

/// The server knows nothing of the index, so it cannot go on with another row.
fn refuse_conflict(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
) -> Result<(), PlanError> {
    let relation = insert
        .relation
        .as_ref()
        .and_then(|range| scope::find_known(statement.catalog, statement.context, range));
    let (Some(relation), Some(conflict)) = (relation, &insert.on_conflict_clause) else {
        return Ok(());
    };
    let mut indexes = of_table(statement.catalog, relation);
    let index = match &conflict.infer {
        None if conflict.action() == OnConflictAction::OnconflictNothing => indexes.next(),
        None => None,
        Some(infer) => {
            let columns: Vec<&str> = nodes(&infer.index_elems)
                .filter_map(|node| match node {
                    NodeEnum::IndexElem(element) => Some(element.name.as_str()),
                    _ => None,
                })
                .collect();
            indexes.find(|index| {
                infer.conname == index.name || columns.as_slice() == [index.column.as_str()]
            })
        }
    };
    let Some(index) = index else { return Ok(()) };
    let detail = format!(
        "Global unique index \"{}\" on \"{}\" is on other shards than the rows.",
        index.name, index.column
    );
    let key = match &relation.placement {
        Placement::Distributed { key, .. } => key.as_str(),
        Placement::Local | Placement::Reference | Placement::Schema { .. } => "",
    };
    Err(
        PlanError::unsupported("ON CONFLICT cannot use a global unique index")
            .detail(detail)
            .hint(format!(
                "Name columns of a unique constraint that includes \"{key}\", or insert and handle error 23505."
            )),
    )
}

/// Finds the one row that the statement can be about. The statement must be one that a shard can
/// run as it is, over its own rows.
pub(crate) fn look_up(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    draft: &Draft,
) -> Option<IndexLookup> {
    let catalog = statement.catalog;
    if catalog.unique_indexes.is_empty() || !runs_as_it_is(&draft.plan) {
        return None;
    }
    let [one] = analysis.occurrences.as_slice() else {
        return None;
    };
    let relation = one.found.distributed()?;
    let blocked = analysis.strange
        || analysis.writes_in_with
        || !analysis.view_uses.is_empty()
        || analysis.traits.home.is_some();
    if blocked || !is_plain(statement.node) {
        return None;
    }
    of_table(catalog, relation).find_map(|index| {
        let column = relation
            .columns
            .iter()
            .position(|column| column.name == index.column)?;
        let key_type = relation.columns[column].key_type().ok()?;
        let values = analysis.values_of(ColumnId {
            occurrence: 0,
            column,
        })?;
        let [value] = &*values else {
            return None;
        };
        let (source, same) = statement.key_source(value);
        (same || !draft.reusable).then_some(IndexLookup {
            index: index.id,
            key_type,
            source,
        })
    })
}

fn runs_as_it_is(plan: &Plan) -> bool {
    match plan {
        Plan::Scatter(scatter) => {
            scatter.moves.is_empty() && matches!(scatter.combine, crate::plan::Combine::Rows(_))
        }
        Plan::Multi(multi) => multi.sql.is_none() && multi.moves.is_empty() && !multi.copies,
        _ => false,
    }
}

/// Reads or changes rows of one table: no row of it, no row of the answer.
fn is_plain(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::SelectStmt(select) => {
            let one = matches!(select.from_clause.as_slice(),
                [only] if matches!(&only.node, Some(NodeEnum::RangeVar(_))));
            one && select.with_clause.is_none()
                && select.larg.is_none()
                && select.group_clause.is_empty()
                && select.having_clause.is_none()
        }
        NodeEnum::UpdateStmt(update) => {
            update.with_clause.is_none() && update.from_clause.is_empty()
        }
        NodeEnum::DeleteStmt(delete) => {
            delete.with_clause.is_none() && delete.using_clause.is_empty()
        }
        _ => false,
    }
}

//! Triggers that are to see all rows of a statement at once: for each statement, or with transition
//! tables. Over several shards each would fire once per shard, with that shard's rows.

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::assigned_columns,
    catalog::{Change, Placement, Relation, StatementTrigger},
    plan::{Plan, PlanError},
    route::Statement,
    scope,
    tree::{self, Child, nodes},
};

/// Refuses a statement that would fire such a trigger on several shards.
pub(crate) fn refuse(statement: &Statement<'_>, plan: &Plan) -> Result<(), PlanError> {
    if statement.catalog.shards.len() < 2 || is_on_one_shard(plan) {
        return Ok(());
    }
    let mut result = Ok(());
    tree::walk(statement.node, &mut |child| {
        if let (Child::Node(node), Ok(())) = (child, &result) {
            result = refuse_node(statement, node);
        }
    });
    match statement.node {
        // Its tables are not nodes that a query has.
        NodeEnum::TruncateStmt(truncate) => nodes(&truncate.relations)
            .filter_map(|node| match node {
                NodeEnum::RangeVar(range) => Some(range),
                _ => None,
            })
            .try_for_each(|range| refuse_range(statement, range, &[Change::Truncate])),
        _ => result,
    }
}

/// Whatever the values are.
fn is_on_one_shard(plan: &Plan) -> bool {
    match plan {
        Plan::Insert(insert) => insert.group.is_none() || insert.rows.len() < 2,
        Plan::Multi(_)
        | Plan::InsertSelect(_)
        | Plan::CopyIn(_)
        | Plan::WithWrites(_)
        | Plan::KeyUpdate(_)
        | Plan::MergeSteps(_) => false,
        _ => true,
    }
}

fn refuse_node(statement: &Statement<'_>, node: &NodeEnum) -> Result<(), PlanError> {
    use Change::{Delete, Insert, Update};
    let (range, changes): (&Option<protobuf::RangeVar>, &[Change]) = match node {
        NodeEnum::InsertStmt(insert) => match &insert.on_conflict_clause {
            Some(conflict) if !assigned_columns(&conflict.target_list).is_empty() => {
                (&insert.relation, &[Insert, Update])
            }
            _ => (&insert.relation, &[Insert]),
        },
        NodeEnum::UpdateStmt(update) => (&update.relation, &[Update]),
        NodeEnum::DeleteStmt(delete) => (&delete.relation, &[Delete]),
        NodeEnum::MergeStmt(merge) => (&merge.relation, &[Insert, Update, Delete]),
        NodeEnum::CopyStmt(copy) if copy.is_from => (&copy.relation, &[Insert]),
        _ => return Ok(()),
    };
    match range {
        Some(range) => refuse_range(statement, range, changes),
        None => Ok(()),
    }
}

fn refuse_range(
    statement: &Statement<'_>,
    range: &protobuf::RangeVar,
    changes: &[Change],
) -> Result<(), PlanError> {
    let relation = scope::find_known(statement.catalog, statement.context, range);
    let fires = |relation: &Relation| -> Option<StatementTrigger> {
        let mut triggers = relation.statement_triggers.iter();
        let fires = |one: &&StatementTrigger| one.changes.iter().any(|it| changes.contains(it));
        triggers.find(fires).cloned()
    };
    let split = relation.filter(|one| matches!(one.placement, Placement::Distributed { .. }));
    let Some((relation, trigger)) = split.and_then(|one| Some((one, fires(one)?))) else {
        return Ok(());
    };
    Err(PlanError::unsupported(format!(
        "trigger \"{}\" of \"{}\" would fire once on every shard",
        trigger.name, relation.name.name
    ))
    .detail("It is to see all rows of the statement at once, and each shard has its own.")
    .hint("Restrict the statement to one shard key, insert rows one by one, or use a trigger FOR EACH ROW without transition tables."))
}

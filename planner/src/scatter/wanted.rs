//! How many rows of a subquery are wanted, where the statement around it does no more than to take
//! the first of them: `SELECT a FROM (SELECT ... ORDER BY b) s LIMIT 5`.

use pg_query::{NodeEnum, protobuf};

use super::{Limits, clauses::Base, limits};
use crate::{
    analysis::{Analysis, Block, Role},
    plan::Count,
    tree::{self, Child, inner, nodes},
};

/// A limit for a SELECT that has none, as it would stand behind LIMIT.
pub(super) fn limit(base: &Base<'_>, analysis: &Analysis<'_>, block: &Block<'_>) -> Option<String> {
    let outer = block.parent.map(|parent| &analysis.blocks[parent])?;
    let plain = outer.role == Role::Statement
        && analysis.traits.volatile.is_none()
        && takes_first(outer.select, block.select)
        && can_be_limited(block.select);
    if !plain {
        return None;
    }
    match limits(base, outer.select)? {
        Limits { ties: true, .. } => None,
        Limits {
            count: Some(Count::Number(count)),
            offset: None,
            ..
        } => Some(count.to_string()),
        Limits {
            count: Some(Count::Number(count)),
            offset: Some(Count::Number(offset)),
            ..
        } => Some(count.checked_add(offset)?.to_string()),
        Limits {
            count: Some(Count::Parameter(index)),
            offset: None,
            ..
        } => Some(format!("${}", index + 1)),
        _ => None,
    }
}

/// Every row of the subquery is a row of the statement, in the same order.
fn takes_first(outer: &protobuf::SelectStmt, subquery: &protobuf::SelectStmt) -> bool {
    let [from] = outer.from_clause.as_slice() else {
        return false;
    };
    let Some(NodeEnum::RangeSubselect(range)) = &from.node else {
        return false;
    };
    let same = matches!(inner(&range.subquery),
        Some(NodeEnum::SelectStmt(select)) if std::ptr::eq(&**select, subquery));
    // A function may give no row, or many.
    let mut calls = false;
    for target in nodes(&outer.target_list) {
        tree::walk(target, &mut |child| {
            calls |= matches!(
                child,
                Child::Node(NodeEnum::FuncCall(_)) | Child::Select(_) | Child::Strange
            );
        });
    }
    same && !calls
        && outer.with_clause.is_none()
        && outer.where_clause.is_none()
        && outer.group_clause.is_empty()
        && outer.having_clause.is_none()
        && outer.distinct_clause.is_empty()
        && outer.window_clause.is_empty()
        && outer.sort_clause.is_empty()
        && outer.locking_clause.is_empty()
}

fn can_be_limited(select: &protobuf::SelectStmt) -> bool {
    select.limit_count.is_none()
        && select.limit_offset.is_none()
        && select.locking_clause.is_empty()
        && !select.sort_clause.is_empty()
}

//! Which rows must meet: the proof that shards can answer their parts alone.
//!
//! One occurrence of a distributed table, the anchor, tells where each row of the statement's FROM
//! is made. Others can stay where they are if their rows matter only beside rows of the anchor
//! with the same shard key.

use std::collections::{BTreeMap, BTreeSet};

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::{Analysis, Role, keeps_groups_unless_limited},
    facts::ColumnId,
    route::{distributed, group},
    scope::{self, Meaning},
    tree::{Child, children, nodes},
};

/// A way to run a statement on all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Anchored {
    /// The occurrence that tells rows apart.
    pub(crate) anchor: usize,
    /// Distributed occurrences that are read where they are, the anchor among them.
    pub(crate) stay: BTreeSet<usize>,
    /// Distributed occurrences of which every shard needs all rows that matter.
    pub(crate) moved: BTreeSet<usize>,
    /// Rows of different shards never meet in a group, a window or DISTINCT of the statement.
    pub(crate) whole: bool,
}

/// Ways to answer one statement that are weighed against each other.
pub(crate) const WAYS_MAX: usize = 6;

/// The first ways that move something, and all that move nothing, without those that come to the
/// same.
pub(crate) fn anchors(analysis: &Analysis<'_>) -> Vec<Anchored> {
    let plain = analysis
        .blocks
        .first()
        .is_some_and(|block| block.role == Role::Statement && !is_set_operation(block.select));
    if !plain {
        return Vec::new();
    }
    let all = distributed(analysis);
    let mut found: Vec<Anchored> = Vec::new();
    for anchor in all.iter().copied() {
        let Some(key) = analysis.key_of(anchor) else {
            continue;
        };
        if found.iter().any(|other| other.stay.contains(&anchor)) || !is_kept(analysis, anchor, key)
        {
            continue;
        }
        let linked = |other: &usize| {
            *other == anchor || !is_opaque(analysis, *other) && colocated(analysis, *other, anchor)
        };
        // Of many ways only one that moves nothing is of use.
        if found.len() >= WAYS_MAX && !all.iter().all(linked) {
            continue;
        }
        let mut stay: BTreeSet<usize> = all.iter().copied().filter(linked).collect();
        keep_places_together(analysis, &all, &mut stay);
        if !stay.contains(&anchor) {
            continue;
        }
        let moved = all
            .iter()
            .copied()
            .filter(|one| !stay.contains(one))
            .collect();
        let whole = is_complete(analysis, 0, key);
        found.push(Anchored {
            anchor,
            stay,
            moved,
            whole,
        });
    }
    found
}

fn is_set_operation(select: &protobuf::SelectStmt) -> bool {
    select.op() > protobuf::SetOperation::SetopNone
}

fn colocated(analysis: &Analysis<'_>, one: usize, other: usize) -> bool {
    let group = |index: usize| {
        analysis.occurrences[index]
            .found
            .distributed()
            .and_then(group)
    };
    group(one) == group(other) && analysis.linked(one, other)
}

/// Every row that an occurrence gives reaches the statement's FROM as it is, or as a part of a
/// group of rows with the same key.
fn is_kept(analysis: &Analysis<'_>, anchor: usize, key: ColumnId) -> bool {
    let one = &analysis.occurrences[anchor];
    let Some(mut at) = one.block else {
        return false;
    };
    let mut scope = one.scope;
    loop {
        let block = &analysis.blocks[at];
        if scope != block.scope {
            // The nullable side of an outer join: rows of the other side come without it, too.
            return false;
        }
        match (block.role, block.parent) {
            (Role::Statement, None) => return true,
            (Role::From, Some(parent)) => {
                if !is_complete(analysis, at, key) || !block.select.locking_clause.is_empty() {
                    return false;
                }
                scope = block.outer_scope;
                at = parent;
            }
            _ => return false,
        }
    }
}

/// Rows with different keys never meet in what a SELECT does with the rows of its FROM.
fn is_complete(analysis: &Analysis<'_>, block: usize, key: ColumnId) -> bool {
    let block = &analysis.blocks[block];
    let select = block.select;
    if is_set_operation(select) {
        return false;
    }
    let equal = analysis.equal_columns(key);
    let is_key = |node: &NodeEnum| {
        let meaning = scope::meaning_of(&analysis.items, &block.names, node);
        matches!(meaning, Meaning::Column(column) if equal.contains(&column))
    };
    let ungrouped = select.group_clause.is_empty() && has_aggregate(analysis, select);
    let plain_distinct =
        !select.distinct_clause.is_empty() && nodes(&select.distinct_clause).next().is_none();
    let shows_key = || {
        let outputs = analysis.outputs(select, &block.names).unwrap_or_default();
        let mut columns = outputs.iter().filter_map(|output| output.column);
        columns.any(|column| equal.contains(&column))
    };
    // A limit at the top is the caller's to put together.
    let limited = block.role != Role::Statement
        && (select.limit_count.is_some() || select.limit_offset.is_some());
    !limited
        && !ungrouped
        && keeps_groups_unless_limited(select, &is_key)
        && (!plain_distinct || shows_key())
}

/// A SELECT has an aggregate of its own, or HAVING, which makes one group of all rows.
pub(crate) fn has_aggregate(analysis: &Analysis<'_>, select: &protobuf::SelectStmt) -> bool {
    let mut found = select.having_clause.is_some();
    let parts = nodes(&select.target_list).chain(nodes(&select.sort_clause));
    let parts = parts
        .chain(nodes(&select.distinct_clause))
        .chain(nodes(&select.window_clause));
    parts.for_each(|node| found |= holds_aggregate(analysis, node));
    found
}

/// An aggregate stands in an expression, not in a subquery of it.
pub(crate) fn holds_aggregate(analysis: &Analysis<'_>, node: &NodeEnum) -> bool {
    if is_aggregate(analysis, node) {
        return true;
    }
    let mut found = false;
    if let NodeEnum::SubLink(link) = node {
        let tested = link.testexpr.as_ref().and_then(|node| node.node.as_ref());
        return tested.is_some_and(|node| holds_aggregate(analysis, node));
    }
    children(node, &mut |child| {
        if let Child::Node(node) = child {
            found |= holds_aggregate(analysis, node);
        }
    });
    found
}

/// A node is a call of an aggregate, and not of one as a window function.
pub(crate) fn is_aggregate(analysis: &Analysis<'_>, node: &NodeEnum) -> bool {
    match node {
        NodeEnum::FuncCall(call) => {
            let names = crate::tree::strings(&call.funcname);
            let known = |name: &&str| analysis.catalog.aggregates.contains(*name);
            call.over.is_none()
                && (call.agg_within_group
                    || call.agg_star
                    || call.agg_filter.is_some()
                    || call.agg_distinct
                    || !call.agg_order.is_empty()
                    || names.last().is_some_and(known))
        }
        NodeEnum::JsonObjectAgg(_) | NodeEnum::JsonArrayAgg(_) => true,
        _ => false,
    }
}

/// An occurrence is inside of something whose rows are not looked through.
fn is_opaque(analysis: &Analysis<'_>, occurrence: usize) -> bool {
    let mut at = analysis.occurrences[occurrence].block;
    while let Some(block) = at {
        if analysis.blocks[block].role == Role::Opaque {
            return true;
        }
        at = analysis.blocks[block].parent;
    }
    analysis.occurrences[occurrence].block.is_none()
}

/// A place that is used many times has one text: all of its uses stay, or none.
fn keep_places_together(analysis: &Analysis<'_>, all: &[usize], stay: &mut BTreeSet<usize>) {
    let place = |one: &usize| {
        let occurrence = &analysis.occurrences[*one];
        (occurrence.text, occurrence.range.location)
    };
    let mut uses: BTreeMap<(usize, i32), Vec<usize>> = BTreeMap::new();
    for one in all {
        uses.entry(place(one)).or_default().push(*one);
    }
    for same in uses.values() {
        if !same.iter().all(|one| stay.contains(one)) {
            same.iter().for_each(|one| {
                stay.remove(one);
            });
        }
    }
}

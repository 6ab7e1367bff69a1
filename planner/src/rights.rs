//! Rights that no shard would ask for: on what is ours, and on views whose text stands in for them.

use pg_query::{NodeEnum, protobuf};

use crate::{
    normalise::{TokenKind, tokens},
    plan::PlanError,
    route::Statement,
    scope,
    tree::{self, Child, inner, nodes},
    write,
};

/// Schemas of the proxy's own begin with it.
const OURS: &str = "automator67";

/// Refuses to change or lock what the proxy keeps for itself: a login may be a superuser, or the role
/// that owns it, whom no server would refuse.
pub(crate) fn refuse_ours(statement: &Statement<'_>) -> Result<(), PlanError> {
    let mut written: Vec<&protobuf::RangeVar> = Vec::new();
    let mut named: Vec<&protobuf::RangeVar> = Vec::new();
    let mut locks = false;
    let node = match statement.node {
        NodeEnum::PrepareStmt(prepare) => inner(&prepare.query).unwrap_or(statement.node),
        node => node,
    };
    match node {
        NodeEnum::TruncateStmt(truncate) => written.extend(ranges(&truncate.relations)),
        NodeEnum::LockStmt(lock) => written.extend(ranges(&lock.relations)),
        _ => tree::walk(node, &mut |child| match child {
            Child::Node(NodeEnum::CopyStmt(copy)) if copy.is_from => {
                written.extend(&copy.relation);
            }
            Child::Node(NodeEnum::SelectStmt(select)) => locks |= !select.locking_clause.is_empty(),
            Child::Select(select) => locks |= !select.locking_clause.is_empty(),
            Child::Node(NodeEnum::RangeVar(range)) => named.push(range),
            Child::Node(node) => written.extend(write::target_of(node)),
            Child::Range(_) | Child::Strange => {}
        }),
    }
    if locks {
        written.extend(named);
    }
    match written.iter().find(|range| is_ours(statement, range)) {
        None => Ok(()),
        Some(range) => Err(PlanError::new(
            "42501",
            format!("permission denied for table {}", range.relname),
        )
        .detail("It is the proxy's own.")
        .hint("Use the functions that docs/sql.md lists; the proxy writes there itself.")),
    }
}

fn ranges(list: &[pg_query::Node]) -> impl Iterator<Item = &protobuf::RangeVar> {
    nodes(list).filter_map(|node| match node {
        NodeEnum::RangeVar(range) => Some(range),
        _ => None,
    })
}

fn is_ours(statement: &Statement<'_>, range: &protobuf::RangeVar) -> bool {
    let ours = |schema: &str| schema == OURS || schema.starts_with("automator67_");
    if !range.schemaname.is_empty() {
        return ours(&range.schemaname);
    }
    match scope::find_known(statement.catalog, statement.context, range) {
        Some(relation) => ours(&relation.name.schema),
        // Our tables are not in the catalog.
        None => {
            statement.context.search_path.iter().any(|it| ours(it))
                && !statement
                    .context
                    .temporary
                    .names()
                    .any(|name| name == range.relname)
        }
    }
}

/// The statement names views on placed tables. Where their texts stand in for them, no server asks for
/// the rights on them, or for those of their owners.
pub(crate) fn through_views(statement: &Statement<'_>, node: &NodeEnum) -> bool {
    if !statement.catalog.has_placed_relations {
        return false;
    }
    let mut found = false;
    tree::walk(node, &mut |child| {
        if let Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) = child {
            found |= scope::find_known(statement.catalog, statement.context, range)
                .is_some_and(scope::is_view_on_placed);
        }
    });
    found
}

/// What EXPLAIN takes of a statement: of COPY, its query.
pub fn explainable(text: &str) -> &str {
    let list = tokens(text);
    let copies = list
        .first()
        .is_some_and(|first| text[first.start..first.end].eq_ignore_ascii_case("copy"));
    let open = list
        .iter()
        .position(|token| token.kind == TokenKind::Punctuation('('));
    let (true, Some(open)) = (copies, open) else {
        return text;
    };
    let mut depth = 0;
    let close = list[open..].iter().find(|token| {
        match token.kind {
            TokenKind::Punctuation('(') => depth += 1,
            TokenKind::Punctuation(')') => depth -= 1,
            _ => {}
        }
        depth == 0
    });
    close.map_or(text, |close| &text[list[open].end..close.start])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn explain_takes_the_query_of_a_copy() {
        for (text, query) in [
            ("select (1)", "select (1)"),
            (
                "copy (select (1), ')') to stdout (format csv)",
                "select (1), ')'",
            ),
            (
                "/* ( */ COPY ( with a as (select 1) table a ) TO STDOUT",
                " with a as (select 1) table a ",
            ),
            ("copy t to stdout", "copy t to stdout"),
            ("copy (select 1", "copy (select 1"),
        ] {
            assert_eq!(explainable(text), query);
        }
    }
}

//! Subqueries that are answered on their own, before the statement around them: their rows are
//! then moved like those of a relation.

use std::collections::HashSet;

use pg_query::protobuf;

use super::{
    clauses::{self, Base, Span},
    separable::{Anchored, has_aggregate},
    wanted,
};
use crate::{
    analysis::{Analysis, CLIENT_TEXT, Role, RowOrder},
    catalog::{Column, Placement, QualifiedName, Relation, RelationKind},
    holes, parse,
    plan::{Fetch, FetchSource, Move, Planned, ShardSet},
    route::Statement,
    scope::{Found, MOVED_SCHEMA},
    sql::identifier,
    statement,
};

/// Relations that are looked at in about the time that a node of a tree takes elsewhere.
const LOOKS_OF_A_STEP: usize = 16;
/// Arms of UNION, INTERSECT and EXCEPT. All but the last are a subquery of their own, in which that
/// is so again: more of them are read as tables.
const ARMS_MAX: usize = 64;

/// A subquery with a plan of its own.
pub(crate) struct Subquery {
    /// Where it stands in the statement's text. The same text is the same subquery: what Postgres takes
    /// for equal expressions stays equal.
    pub(crate) spans: Vec<Span>,
    /// Occurrences of relations in it.
    pub(crate) occurrences: HashSet<usize>,
    /// What its rows are for the statement around it. Columns are `c1`, `c2` ...
    pub(crate) relation: Relation,
    /// The names of its columns there.
    labels: Vec<String>,
    text: String,
    plan: Planned,
}

impl Subquery {
    /// What stands in its places.
    pub(crate) fn replacements(&self) -> impl Iterator<Item = (Span, String)> {
        let text = self.replacement();
        self.spans.iter().map(move |span| (*span, text.clone()))
    }

    fn replacement(&self) -> String {
        let columns: Vec<String> = self
            .relation
            .columns
            .iter()
            .zip(&self.labels)
            .map(|(column, label)| format!("{} AS {}", column.name, identifier(label)))
            .collect();
        format!(
            "SELECT {} FROM {MOVED_SCHEMA}.{}",
            columns.join(", "),
            self.relation.name.name
        )
    }

    pub(crate) fn into_move(self) -> Move {
        let temp_table = self.relation.name.name.clone();
        let columns: Vec<String> = self
            .relation
            .columns
            .iter()
            .map(|column| column.name.clone())
            .collect();
        Move {
            fetch: Fetch {
                relation: QualifiedName {
                    schema: String::new(),
                    name: "subquery".to_owned(),
                },
                from: FetchSource::Shards(ShardSet::All),
                create: holes::template(&format!(
                    "CREATE TEMPORARY TABLE {temp_table} ({}) ON COMMIT DROP AS {} WITH NO DATA",
                    columns.join(", "),
                    self.text
                )),
                select: holes::template(&self.text),
                columns,
                binary: false,
                primary_key: None,
                needs_key: false,
                temp_table,
            },
            query: Some(Box::new(self.plan)),
            looked_up_by: Vec::new(),
            route: None,
            reductions: Vec::new(),
        }
    }
}

/// The outermost subqueries that can be answered on their own, and should be: none of their rows
/// stay where they are, and they make fewer of many.
pub(super) fn find(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    anchored: Option<&Anchored>,
) -> Vec<Subquery> {
    let budget = analysis.budget();
    let worth = |index: usize| {
        // Every SELECT is looked at beside every relation.
        let looked = budget.spend(1 + analysis.occurrences.len() / LOOKS_OF_A_STEP);
        looked && index > 0 && is_worth_it(analysis, index, anchored)
    };
    find_all(statement, analysis, &worth)
}

/// The outermost subqueries of a write that read anything that is not on every shard.
pub(crate) fn find_in_write(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Vec<Subquery> {
    let elsewhere = |one: &usize| match analysis.occurrences[*one].found {
        Found::Known(relation) => relation.placement != Placement::Reference,
        Found::Unread(relation) => relation.placement == Placement::Local,
        Found::Proxy(_) | Found::Home => true,
    };
    let worth = |index: usize| {
        let role = analysis.blocks[index].role;
        matches!(role, Role::From | Role::Arm | Role::Expression)
            && occurrences(analysis, index).iter().any(elsewhere)
    };
    find_all(statement, analysis, &worth)
}

fn find_all(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    worth: &dyn Fn(usize) -> bool,
) -> Vec<Subquery> {
    let mut found: Vec<Subquery> = Vec::new();
    // Where they stand, each with its place in `found`.
    let mut blocks: Vec<(usize, usize)> = Vec::new();
    let arms = analysis.blocks.iter().filter(|one| one.role == Role::Arm);
    if arms.count() > ARMS_MAX {
        return Vec::new();
    }
    for index in 0..analysis.blocks.len() {
        let block = &analysis.blocks[index];
        let known = |(other, _): &&(usize, usize)| {
            is_inside(analysis, index, *other)
                || std::ptr::eq(analysis.blocks[*other].select, block.select)
        };
        if block.correlated || block.text != CLIENT_TEXT || !worth(index) {
            continue;
        }
        if let Some((_, at)) = blocks.iter().find(known) {
            found[*at].occurrences.extend(occurrences(analysis, index));
            continue;
        }
        let Some(query) = subquery(statement, analysis, index, found.len() + 1) else {
            continue;
        };
        let same = |one: &Subquery| one.text == query.text && one.labels == query.labels;
        let at = match found.iter().position(same) {
            Some(at) => {
                found[at].spans.extend(query.spans);
                found[at].occurrences.extend(query.occurrences);
                at
            }
            None => {
                found.push(query);
                found.len() - 1
            }
        };
        blocks.push((index, at));
    }
    found
}

fn is_worth_it(analysis: &Analysis<'_>, index: usize, anchored: Option<&Anchored>) -> bool {
    let block = &analysis.blocks[index];
    let inside = occurrences(analysis, index);
    let is_distributed = |one: &usize| analysis.occurrences[*one].found.distributed().is_some();
    if !inside.iter().any(is_distributed) {
        return false;
    }
    let Some(anchored) = anchored else {
        return matches!(block.role, Role::From | Role::Arm | Role::Expression);
    };
    let moved = inside.iter().all(|one| !anchored.stay.contains(one));
    moved
        && match block.role {
            Role::Expression => true,
            Role::From => makes_fewer(analysis, block.select),
            Role::Statement | Role::Arm | Role::Opaque => false,
        }
}

fn makes_fewer(analysis: &Analysis<'_>, select: &protobuf::SelectStmt) -> bool {
    !select.group_clause.is_empty()
        || !select.distinct_clause.is_empty()
        || select.limit_count.is_some()
        || select.op() > protobuf::SetOperation::SetopNone
        || has_aggregate(analysis, select)
}

/// A SELECT is that one, or inside of it.
fn is_inside(analysis: &Analysis<'_>, mut index: usize, outer: usize) -> bool {
    loop {
        if index == outer {
            return true;
        }
        match analysis.blocks[index].parent {
            Some(parent) => index = parent,
            None => return false,
        }
    }
}

fn occurrences(analysis: &Analysis<'_>, block: usize) -> HashSet<usize> {
    let all = analysis.occurrences.iter().enumerate();
    all.filter(|(_, one)| one.block.is_some_and(|at| is_inside(analysis, at, block)))
        .map(|(index, _)| index)
        .collect()
}

fn subquery(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    index: usize,
    number: usize,
) -> Option<Subquery> {
    // Every shard describes the rows from tables that it has.
    let mut inside = occurrences(analysis, index).into_iter();
    if inside.any(|one| analysis.occurrences[one].found.is_temporary()) {
        return None;
    }
    let block = &analysis.blocks[index];
    let base = Base {
        source: statement.source(),
        literals: Vec::new(),
        budget: statement.context.budget,
    };
    let span = match block.role {
        Role::Arm => clauses::select_extent(&base, block.select)
            .or_else(|| clauses::arm_extent(&base, statement.span, block.select))?,
        _ => clauses::select_extent(&base, block.select)?,
    };
    // Rows without columns cannot be copied.
    let (columns, labels) = columns(analysis, index).filter(|(columns, _)| !columns.is_empty())?;
    let mut text = base.text(span).to_owned();
    if let Some(limit) = wanted::limit(&base, analysis, block) {
        text.push_str(&format!(" LIMIT {limit}"));
    }
    statement.context.budget.hold_tree(&text).then_some(())?;
    let node = parse::parse_one(&text)?;
    let inner = statement.rewritten(&text, &node);
    let plan = statement::plan_subquery(&inner, RowOrder::Seen)?;
    let name = format!("a67_q{number}");
    Some(Subquery {
        spans: vec![span],
        occurrences: occurrences(analysis, index),
        relation: Relation {
            name: QualifiedName {
                schema: MOVED_SCHEMA.to_owned(),
                name,
            },
            oid: 0,
            kind: RelationKind::Table,
            placement: Placement::Reference,
            columns,
            primary_key: Vec::new(),
            view_definition: None,
            reads_numbers: false,
            reads_placed: false,
            unsafe_writes: None,
            unsafe_reads: None,
            statement_triggers: Vec::new(),
            unusable: None,
            inherits: false,
        },
        labels,
        text,
        plan,
    })
}

/// The columns of a SELECT, if they are known, and their names.
fn columns(analysis: &Analysis<'_>, index: usize) -> Option<(Vec<Column>, Vec<String>)> {
    let block = &analysis.blocks[index];
    let mut select = block.select;
    let mut names = &block.names;
    // The names of a set operation are those of its first arm, which is the next block.
    let mut at = index;
    while select.op() > protobuf::SetOperation::SetopNone {
        at += 1;
        let arm = analysis.blocks.get(at)?;
        if arm.role != Role::Arm {
            return None;
        }
        (select, names) = (arm.select, &arm.names);
    }
    let set_operation = at != index;
    let mut columns = Vec::new();
    let mut labels = Vec::new();
    for (position, output) in analysis.outputs(select, names)?.into_iter().enumerate() {
        let stored = output.column.filter(|_| !set_operation).and_then(|column| {
            match analysis.occurrences[column.occurrence].found {
                Found::Known(relation) => relation.columns.get(column.column),
                Found::Unread(_) | Found::Proxy(_) | Found::Home => None,
            }
        });
        columns.push(Column {
            name: format!("c{}", position + 1),
            type_oid: stored.map_or(0, |column| column.type_oid),
            sql_type: stored.map_or_else(String::new, |column| column.sql_type.clone()),
            collate: stored.map_or_else(String::new, |column| column.collate.clone()),
            not_null: stored.is_some_and(|column| column.not_null),
            default: None,
            generated: false,
            identity_always: None,
            sequence: None,
            portable_binary: false,
            nondeterministic: stored.is_some_and(|column| column.nondeterministic),
        });
        labels.push(output.name);
    }
    Some((columns, labels))
}

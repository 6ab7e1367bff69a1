//! When two expressions of one SELECT are the same.
//!
//! Postgres compares trees whose names are resolved (`equal()` in `src/backend/nodes/equalfuncs.c`):
//! to it `t.b % 2` is `b % 2`, and so they have one form here. It takes more for equal than this
//! does, `b IN (1, 2)` and `b = ANY (ARRAY[1, 2])` among them. So equal forms are a proof, and
//! different ones are none of anything: who asks must be right there, too.

use std::collections::HashMap;

use pg_query::{NodeEnum, protobuf};

use super::clauses::shape;
use crate::{
    analysis::Analysis,
    catalog::Relation,
    facts::ColumnId,
    scope::{self, Found, Meaning},
    tree::{self, Child, strings},
};

/// How a printed tree begins and ends a column reference. A string in it has escaped quotes, which
/// these do not meet.
const REFERENCE: &str = "ColumnRef(ColumnRef { fields: [Node { node: Some(String(String { sval: \"";
const REFERENCE_END: &str = "location:  })";
/// What has names of its own.
const SUBQUERY: &str = "SelectStmt(SelectStmt {";

/// What the references of the statement's own level mean.
pub(super) struct Forms {
    /// The stored columns, by the reference's shape.
    columns: HashMap<String, ColumnId>,
    /// What all references to one output of an item of FROM have in common, by the reference's shape.
    meant: HashMap<String, String>,
    /// The shapes that are those of parts of rows: `(t).x`.
    parts: Vec<String>,
}

impl Forms {
    pub(super) fn of(analysis: &Analysis<'_>, select: &protobuf::SelectStmt) -> Forms {
        let mut columns = HashMap::new();
        let mut meant = HashMap::new();
        tree::walk_select(select, &mut |child| {
            let Child::Node(node @ (NodeEnum::ColumnRef(_) | NodeEnum::AIndirection(_))) = child
            else {
                return;
            };
            if let Some(column) = stored(analysis, node) {
                let shape = shape(node);
                meant.insert(shape.clone(), format!("{column:?}"));
                columns.insert(shape, column);
            } else if let Some((item, at)) = output(analysis, node) {
                meant.insert(shape(node), format!("output {at} of {item}"));
            }
        });
        let is_part = |shape: &&String| !shape.starts_with(REFERENCE);
        let parts = meant.keys().filter(is_part).cloned().collect();
        Forms {
            columns,
            meant,
            parts,
        }
    }

    /// The stored column that a reference means.
    pub(super) fn column(&self, node: &NodeEnum) -> Option<ColumnId> {
        self.columns.get(&shape(node)).copied()
    }

    /// A node is `(t).x`, a column.
    pub(super) fn is_part(&self, node: &NodeEnum) -> bool {
        matches!(node, NodeEnum::AIndirection(_)) && self.meant.contains_key(&shape(node))
    }

    /// What equal expressions have in common.
    pub(super) fn form(&self, node: &NodeEnum) -> String {
        let mut shape = shape(node);
        if shape.contains(SUBQUERY) {
            return shape;
        }
        for part in &self.parts {
            shape = shape.replace(part, &self.meant[part]);
        }
        let mut form = String::with_capacity(shape.len());
        let mut rest = shape.as_str();
        while let Some(start) = rest.find(REFERENCE) {
            let Some(length) = rest[start..].find(REFERENCE_END) else {
                break;
            };
            let end = start + length + REFERENCE_END.len();
            form.push_str(&rest[..start]);
            let reference = &rest[start..end];
            form.push_str(self.meant.get(reference).map_or(reference, String::as_str));
            rest = &rest[end..];
        }
        form.push_str(rest);
        form
    }
}

/// The column that a reference is, with its own type: what USING made of columns of two types is
/// neither of them.
fn stored(analysis: &Analysis<'_>, node: &NodeEnum) -> Option<ColumnId> {
    let names = &analysis.blocks.first()?.names;
    if !analysis.budget().spend(names.visible.items.len()) {
        return None;
    }
    if let NodeEnum::ColumnRef(reference) = node
        && let [name] = strings(&reference.fields).as_slice()
    {
        let mut merged = names.visible.merged.iter();
        if merged.any(|one| one.name == *name && !one.keeps_type) {
            return None;
        }
    }
    match scope::meaning_of(&analysis.items, names, node) {
        Meaning::Column(column) => Some(column),
        Meaning::Constant(..) | Meaning::Item(_) | Meaning::Star | Meaning::Unknown => None,
    }
}

/// The output of an item of FROM that a reference is.
fn output(analysis: &Analysis<'_>, node: &NodeEnum) -> Option<(usize, usize)> {
    let names = &analysis.blocks.first()?.names;
    if !analysis.budget().spend(names.visible.items.len()) {
        return None;
    }
    scope::output_of(&analysis.items, names, node)
}

/// The relation that a column is one of.
pub(super) fn relation<'t>(analysis: &Analysis<'t>, column: ColumnId) -> Option<&'t Relation> {
    match analysis.occurrences[column.occurrence].found {
        Found::Known(relation) => Some(relation),
        Found::Unread(_) | Found::Proxy(_) | Found::Home => None,
    }
}

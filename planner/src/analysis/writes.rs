//! INSERT, UPDATE, DELETE and MERGE: their targets, and the queries around them.

use std::rc::Rc;

use pg_query::{NodeEnum, protobuf};

use super::{Analysis, Place};
use crate::{
    facts::ColumnId,
    scope::{Names, Output, Visible},
    tree::{self, Child, inner, nodes, strings},
};

impl<'t> Analysis<'t> {
    pub(super) fn update(&mut self, update: &'t protobuf::UpdateStmt, place: &Place<'t>) {
        let inside = self.with(&update.with_clause, place);
        let scope = self.facts.scope(Some(inside.scope));
        let target = self.target(&update.relation, scope);
        let names = self.names_of_from(&update.from_clause, scope, &inside, target);
        if let Some(condition) = inner(&update.where_clause) {
            self.condition(condition, scope, &names, &inside.env);
            self.note_filters(condition, scope, &names);
        }
        self.visit_all(&update.target_list, scope, &names, &inside);
        self.returning(&update.returning_clause, scope, &names, &inside);
        self.unused(&update.with_clause, &inside);
    }

    pub(super) fn delete(&mut self, delete: &'t protobuf::DeleteStmt, place: &Place<'t>) {
        let inside = self.with(&delete.with_clause, place);
        let scope = self.facts.scope(Some(inside.scope));
        let target = self.target(&delete.relation, scope);
        let names = self.names_of_from(&delete.using_clause, scope, &inside, target);
        if let Some(condition) = inner(&delete.where_clause) {
            self.condition(condition, scope, &names, &inside.env);
            self.note_filters(condition, scope, &names);
        }
        self.returning(&delete.returning_clause, scope, &names, &inside);
        self.unused(&delete.with_clause, &inside);
    }

    /// MERGE joins like `source LEFT JOIN target`: its condition says nothing about source rows.
    /// With NOT MATCHED BY SOURCE it is a full join, and says nothing at all.
    pub(super) fn merge(&mut self, merge: &'t protobuf::MergeStmt, place: &Place<'t>) {
        let inside = self.with(&merge.with_clause, place);
        let scope = self.facts.scope(Some(inside.scope));
        let nullable = self.facts.scope(Some(scope));
        let target = self.target(&merge.relation, nullable);
        let source = match inner(&merge.source_relation) {
            Some(node) => self.item_of_from(node, scope, &inside, &Visible::default()),
            None => Visible::default(),
        };
        let visible = target.and(source);
        let names = Rc::new(Names {
            visible,
            outer: Some(inside.outer.clone()),
        });
        let by_source = nodes(&merge.merge_when_clauses).any(|node| {
            matches!(node, NodeEnum::MergeWhenClause(when)
                if when.match_kind() == protobuf::MergeMatchKind::MergeWhenNotMatchedBySource)
        });
        if let Some(condition) = inner(&merge.join_condition) {
            if by_source {
                self.visit(condition, scope, &names, &inside.env);
            } else {
                self.condition(condition, nullable, &names, &inside.env);
            }
        }
        self.visit_all(&merge.merge_when_clauses, scope, &names, &inside);
        for node in nodes(&merge.merge_when_clauses) {
            if let NodeEnum::MergeWhenClause(when) = node
                && when.command_type() == protobuf::CmdType::CmdInsert
            {
                self.merge_insert(merge, when, scope, &names);
            }
        }
        self.returning(&merge.returning_clause, scope, &names, &inside);
        self.unused(&merge.with_clause, &inside);
    }

    /// The new rows of a MERGE are one more occurrence of the target, with the key they are given.
    fn merge_insert(
        &mut self,
        merge: &'t protobuf::MergeStmt,
        when: &'t protobuf::MergeWhenClause,
        scope: usize,
        names: &Names,
    ) {
        let visible = self.target(&merge.relation, scope);
        let occurrence = visible
            .items
            .first()
            .and_then(|item| self.items[*item].occurrence);
        let Some(occurrence) = occurrence else { return };
        self.occurrences[occurrence].inserted = true;
        let Some((key, column)) = self.named_key(occurrence) else {
            return;
        };
        let position = match when.target_list.as_slice() {
            [] => Some(column),
            list => assigned_columns(list)
                .iter()
                .position(|(name, _)| *name == key),
        };
        let value = position
            .and_then(|at| when.values.get(at))
            .and_then(|one| one.node.as_ref());
        if let Some(value) = value {
            self.column_equals(ColumnId { occurrence, column }, value, scope, names);
        }
    }

    /// The shard key of a distributed table: its name, and which column it is.
    fn named_key(&self, occurrence: usize) -> Option<(&'t str, usize)> {
        let ColumnId { column, .. } = self.key_of(occurrence)?;
        let relation = self.occurrences[occurrence].found.distributed()?;
        Some((&relation.columns.get(column)?.name, column))
    }

    /// The rows of an INSERT have the keys that its query gives them.
    pub(super) fn insert(&mut self, insert: &'t protobuf::InsertStmt, place: &Place<'t>) {
        let inside = self.with(&insert.with_clause, place);
        let scope = self.facts.scope(Some(inside.scope));
        let target = self.target(&insert.relation, scope);
        if let Some(occurrence) = target
            .items
            .first()
            .and_then(|one| self.items[*one].occurrence)
        {
            self.occurrences[occurrence].inserted = true;
        }
        let names = Rc::new(Names {
            visible: target,
            outer: Some(inside.outer.clone()),
        });
        let query = inner(&insert.select_stmt);
        if let Some(query) = query {
            let place = Place {
                scope,
                ..inside.clone()
            };
            let outputs = self.query(query, &place);
            self.inserted_key(insert, query, outputs, &names.visible, scope);
        }
        if let Some(conflict) = &insert.on_conflict_clause {
            let mut below = Vec::new();
            tree::conflict_children(conflict, &mut |child| below.push(child));
            // `excluded` has the target's columns.
            let excluded = self.excluded(&names.visible);
            let visible = names.visible.clone().and(excluded);
            let names = Rc::new(Names {
                visible,
                outer: names.outer.clone(),
            });
            for child in below {
                match child {
                    Child::Node(node) => self.visit(node, scope, &names, &inside.env),
                    _ => self.strange = true,
                }
            }
        }
        self.returning(&insert.returning_clause, scope, &names, &inside);
        self.unused(&insert.with_clause, &inside);
    }

    fn excluded(&mut self, target: &Visible) -> Visible {
        let columns = target
            .items
            .first()
            .and_then(|item| self.items[*item].columns.clone());
        let unknown = |output: Output<'t>| Output {
            column: None,
            ..output
        };
        let columns = columns.map(|columns| columns.into_iter().map(unknown).collect());
        let mut visible = self.derived(&None, "excluded", columns);
        visible.merged.clear();
        visible
            .items
            .iter()
            .for_each(|item| self.items[*item].qualified_only = true);
        visible
    }

    /// Facts about the key of new rows: it is a column or a constant of the query.
    fn inserted_key(
        &mut self,
        insert: &'t protobuf::InsertStmt,
        query: &'t NodeEnum,
        outputs: Option<Vec<Output<'t>>>,
        target: &Visible,
        scope: usize,
    ) {
        let occurrence = target
            .items
            .first()
            .and_then(|item| self.items[*item].occurrence);
        let Some(occurrence) = occurrence else { return };
        let Some((key, column)) = self.named_key(occurrence) else {
            return;
        };
        let position = match insert.cols.as_slice() {
            [] => Some(column),
            columns => nodes(columns).position(|node| {
                matches!(node, NodeEnum::ResTarget(target)
                    if target.name == key && target.indirection.is_empty())
            }),
        };
        let Some(position) = position else { return };
        let key = ColumnId { occurrence, column };
        if let NodeEnum::SelectStmt(select) = query
            && !select.values_lists.is_empty()
        {
            let cells: Option<Vec<&'t NodeEnum>> = nodes(&select.values_lists)
                .map(|row| match row {
                    NodeEnum::List(row) => row.items.get(position)?.node.as_ref(),
                    _ => None,
                })
                .collect();
            if let Some(cells) = cells {
                self.one_of(key, &cells, scope, self.text);
            }
            return;
        }
        let output = outputs.and_then(|outputs| outputs.into_iter().nth(position));
        match output.map(|output| (output.column, output.constant)) {
            Some((Some(column), _)) => self.columns_equal(scope, key, column),
            Some((None, Some(value))) => self.equals_given(key, value, self.text, scope),
            Some((None, None)) | None => {}
        }
    }

    fn target(&mut self, range: &'t Option<protobuf::RangeVar>, scope: usize) -> Visible {
        let Some(range) = range else {
            self.strange = true;
            return Visible::default();
        };
        let found = self.find(range);
        let occurrence = self.occurrence(range, found, scope);
        self.occurrences[occurrence].written = true;
        self.occurrence_item(occurrence)
    }

    fn returning(
        &mut self,
        clause: &'t Option<protobuf::ReturningClause>,
        scope: usize,
        names: &Rc<Names>,
        place: &Place<'t>,
    ) {
        let Some(clause) = clause else { return };
        // `WITH (OLD AS o)` gives more names for the target; nothing is concluded from them.
        for node in nodes(&clause.exprs) {
            self.target_or_expression(node, scope, names, &place.env);
        }
    }

    fn visit_all(
        &mut self,
        list: &'t [pg_query::Node],
        scope: usize,
        names: &Rc<Names>,
        place: &Place<'t>,
    ) {
        for node in nodes(list) {
            self.visit(node, scope, names, &place.env);
        }
    }
}

/// The names of the columns that an INSERT lists.
pub(crate) fn listed_columns(insert: &protobuf::InsertStmt) -> Vec<&str> {
    nodes(&insert.cols)
        .filter_map(|node| match node {
            NodeEnum::ResTarget(target) => Some(target.name.as_str()),
            _ => None,
        })
        .collect()
}

/// The names of indirections, as in `SET (a, b) = ...`; unused columns are left out.
pub(crate) fn assigned_columns(targets: &[pg_query::Node]) -> Vec<(&str, Option<&NodeEnum>)> {
    nodes(targets)
        .filter_map(|node| match node {
            NodeEnum::ResTarget(target) => Some((target.name.as_str(), inner(&target.val))),
            _ => None,
        })
        .collect()
}

/// True when a list names no columns twice and none of their parts.
pub(crate) fn plain_columns(insert: &protobuf::InsertStmt) -> bool {
    nodes(&insert.cols).all(
        |node| matches!(node, NodeEnum::ResTarget(target) if strings(&target.indirection).is_empty() && target.indirection.is_empty()),
    )
}

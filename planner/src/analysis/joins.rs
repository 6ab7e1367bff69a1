//! JOIN: which facts its condition gives, and to which side.

use std::rc::Rc;

use pg_query::protobuf::{self, JoinType};

use super::{Analysis, Place};
use crate::{
    facts::ColumnId,
    scope::{self, Found, Item, Lookup, Meaning, Merged, Names, Visible},
    tree::{inner, strings},
};

impl<'t> Analysis<'t> {
    /// The condition of an inner join is a fact of the scope around it. That of an outer join is
    /// one of a scope that holds the nullable side alone: rows of the other side come out whether
    /// it is met or not. FULL JOIN gives no facts at all.
    pub(super) fn join(
        &mut self,
        join: &'t protobuf::JoinExpr,
        scope: usize,
        place: &Place<'t>,
        prior: &Visible,
    ) -> Visible {
        let inside = |facts: &mut crate::facts::Facts| facts.scope(Some(scope));
        let (left_scope, right_scope, condition_scope) = match join.jointype() {
            JoinType::JoinInner => (scope, scope, Some(scope)),
            JoinType::JoinLeft => {
                let nullable = inside(&mut self.facts);
                (scope, nullable, Some(nullable))
            }
            JoinType::JoinRight => {
                let nullable = inside(&mut self.facts);
                (nullable, scope, Some(nullable))
            }
            _ => (inside(&mut self.facts), inside(&mut self.facts), None),
        };
        let (first_item, first_occurrence) = (self.items.len(), self.occurrences.len());
        let left = match inner(&join.larg) {
            Some(node) => self.item_of_from(node, left_scope, place, prior),
            None => Visible::default(),
        };
        let seen = prior.clone().and(left.clone());
        let right = match inner(&join.rarg) {
            Some(node) => self.item_of_from(node, right_scope, place, &seen),
            None => Visible::default(),
        };
        let merged = self.merged_columns(join, &left, &right, condition_scope);
        let mut visible = left.and(right);
        visible.merged.extend(merged);
        let names = Rc::new(Names {
            visible: visible.clone(),
            outer: Some(place.outer.clone()),
        });
        match (inner(&join.quals), condition_scope) {
            (Some(condition), Some(facts)) => {
                self.condition(condition, facts, &names, &place.env);
                self.note_filters(condition, facts, &names);
            }
            (Some(condition), None) => self.visit(condition, scope, &names, &place.env),
            (None, _) => {}
        }
        if let Some(alias) = &join.alias {
            // It hides what is inside; all of that may be meant by it.
            self.occurrences[first_occurrence..]
                .iter_mut()
                .for_each(|one| one.whole = true);
            debug_assert!(first_item <= self.items.len());
            return self.derived(&Some(alias.clone()), "", None);
        }
        if let Some(alias) = &join.join_using_alias {
            let item = Item {
                name: alias.aliasname.clone(),
                schema: None,
                columns: None,
                occurrence: None,
                view_use: None,
                text: self.text,
                block: self.block,
                qualified_only: true,
            };
            let alias = self.item(item);
            visible = visible.and(alias);
        }
        visible
    }

    /// USING and NATURAL: equal columns become one.
    fn merged_columns(
        &mut self,
        join: &'t protobuf::JoinExpr,
        left: &Visible,
        right: &Visible,
        condition_scope: Option<usize>,
    ) -> Vec<Merged> {
        let names = if join.is_natural {
            for item in left.items.iter().chain(&right.items) {
                if let Some(occurrence) = self.items[*item].occurrence {
                    self.occurrences[occurrence].whole = true;
                }
            }
            match self.common_columns(left, right) {
                Some(names) => names,
                None => {
                    // Any name may have become a merged one.
                    self.hide_columns(left, right);
                    return Vec::new();
                }
            }
        } else {
            strings(&join.using_clause)
                .into_iter()
                .map(str::to_owned)
                .collect()
        };
        let all: Vec<usize> = left.items.iter().chain(&right.items).copied().collect();
        let mut merged = Vec::with_capacity(names.len());
        for name in names {
            self.note_name(&name);
            let side = |visible: &Visible| match scope::lookup(&self.items, visible, &name) {
                Lookup::One(Meaning::Column(column)) => Some(column),
                _ => None,
            };
            let (left, right) = (side(left), side(right));
            if let (Some(left), Some(right), Some(scope)) = (left, right, condition_scope) {
                self.columns_equal(scope, left, right);
            }
            let column: Option<ColumnId> = match join.jointype() {
                JoinType::JoinInner | JoinType::JoinLeft => left,
                JoinType::JoinRight => right,
                _ => None,
            };
            merged.push(Merged {
                name,
                items: all.clone(),
                column,
                keeps_type: self.are_of_one_type(left, right),
            });
        }
        merged
    }

    fn are_of_one_type(&self, left: Option<ColumnId>, right: Option<ColumnId>) -> bool {
        let of = |column: Option<ColumnId>| {
            let ColumnId { occurrence, column } = column?;
            match self.occurrences[occurrence].found {
                Found::Known(relation) | Found::Unread(relation) => relation.columns.get(column),
                Found::Proxy(_) | Found::Home => None,
            }
        };
        match (of(left), of(right)) {
            (Some(left), Some(right)) => {
                left.sql_type == right.sql_type && left.collate == right.collate
            }
            _ => false,
        }
    }

    /// Names that both sides have; `None` when some column's name is not known.
    fn common_columns(&self, left: &Visible, right: &Visible) -> Option<Vec<String>> {
        let mut names = Vec::new();
        for item in &left.items {
            for output in self.items[*item].columns.as_ref()? {
                let known = names.contains(&output.name);
                match scope::lookup(&self.items, right, &output.name) {
                    Lookup::None => {}
                    Lookup::One(_) if known => {}
                    Lookup::One(_) => names.push(output.name.clone()),
                    Lookup::Unsure => return None,
                }
            }
        }
        let known = right
            .items
            .iter()
            .all(|item| self.items[*item].columns.is_some());
        known.then_some(names)
    }

    fn hide_columns(&mut self, left: &Visible, right: &Visible) {
        for item in left.items.iter().chain(&right.items) {
            self.items[*item].columns = None;
        }
    }
}

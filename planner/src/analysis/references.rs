//! What a column reference needs of the relations that it may mean, and how it is written when
//! those have other names.
//!
//! A name is a column, a row of something in FROM, or a function that is called with one (`t.f` is
//! `f(t)`; the manual, "Composite Type Arguments"). Where it is not certain which, all columns that
//! it could need are there.

use pg_query::{NodeEnum, protobuf};

use super::{Analysis, Naming, Reference, WholeRow};
use crate::{
    builtins,
    scope::{self, Called, Meaning, Names, Owner},
    tree::{inner, strings},
};

impl<'t> Analysis<'t> {
    pub(super) fn column(
        &mut self,
        column: &'t protobuf::ColumnRef,
        names: &Names,
        naming: Naming,
    ) {
        let fields = strings(&column.fields);
        for name in &fields {
            self.note_name(name);
        }
        // Every item may be asked whether it has a column of the name.
        if !self.budget().spend(names.visible.items.len()) {
            return;
        }
        match scope::owner(&self.items, names, column) {
            Owner::Item(item) => self.mark_correlated(self.items[item].block),
            Owner::Level => {}
            Owner::Unknown => self.mark_correlated(None),
        }
        let starred = fields.len() < column.fields.len();
        let qualifiers = fields.len().saturating_sub(if starred { 1 } else { 2 });
        let mut reference = Reference {
            text: self.text,
            location: usize::try_from(column.location).unwrap_or(0),
            qualifiers,
            table_of: None,
            whole_row: None,
            argument_of: None,
            naming,
        };
        match scope::meaning(&self.items, names, column) {
            Meaning::Star => {
                for item in names.visible.items.clone() {
                    self.mark_whole(item);
                }
            }
            Meaning::Item(item) if starred => {
                self.mark_whole(item);
                reference.table_of = self.items[item].occurrence;
            }
            Meaning::Item(item) => {
                self.mark_whole(item);
                reference.whole_row = self.row_of(item);
            }
            Meaning::Column(column) if fields.len() > 1 => {
                reference.table_of = Some(column.occurrence);
            }
            Meaning::Unknown if !starred => self.unknown(column, names, &mut reference),
            Meaning::Column(_) | Meaning::Constant(..) | Meaning::Unknown => {}
        }
        if qualifiers > 0 || reference.whole_row.is_some() || reference.table_of.is_some() {
            self.references.push(reference);
        }
    }

    /// `(t).x` and `(t.*).x` are the column, `(t).*` is all of them; true where it is one of those.
    /// Any other name behind a value may be that of a function, as in `t.f`.
    pub(super) fn part(&mut self, part: &'t protobuf::AIndirection, names: &Names) -> bool {
        let is_column = scope::part(&self.items, names, part).is_some();
        for name in strings(&part.indirection)
            .into_iter()
            .skip(usize::from(is_column))
        {
            self.note_row_call(name);
            self.traits.note_call(self.lookup(), &[name], 1);
        }
        self.note_system_column(part, is_column);
        let Some(item) = scope::item_of_part(&self.items, names, part) else {
            return false;
        };
        let all = scope::is_all(part);
        if !(is_column || all) {
            return false;
        }
        if all {
            self.mark_whole(item);
        }
        for name in strings(&part.indirection) {
            self.note_name(name);
        }
        self.mark_correlated(self.items[item].block);
        self.qualified_row(part, item);
        true
    }

    /// `(t).ctid`
    fn note_system_column(&mut self, part: &protobuf::AIndirection, is_column: bool) {
        let of_name = matches!(inner(&part.arg), Some(NodeEnum::ColumnRef(_)));
        let first = strings(&part.indirection).first().copied();
        let named = first.filter(|name| builtins::is_system_column(name));
        if let (Some(name), true, false) = (named, of_name, is_column) {
            let known = &mut self.traits.system_column;
            known.get_or_insert_with(|| name.to_owned());
        }
    }

    /// `(public.t.*).x`: the row is written differently when its table is renamed.
    fn qualified_row(&mut self, part: &protobuf::AIndirection, item: usize) {
        let Some(NodeEnum::ColumnRef(row)) = inner(&part.arg) else {
            return;
        };
        let fields = strings(&row.fields);
        if fields.len() < row.fields.len() {
            self.references.push(Reference {
                text: self.text,
                location: usize::try_from(row.location).unwrap_or(0),
                qualifiers: fields.len() - 1,
                table_of: self.items[item].occurrence,
                whole_row: None,
                argument_of: None,
                naming: Naming::Inside,
            });
        }
    }

    /// No column that is known: a row, a call, or a column of something that is not looked through.
    fn unknown(&mut self, column: &protobuf::ColumnRef, names: &Names, reference: &mut Reference) {
        match strings(&column.fields).as_slice() {
            [name] => self.mark_possible_rows(names, name, reference.naming),
            [.., function] => match scope::called_with(&self.items, names, column) {
                Called::With(item) => {
                    self.mark_whole(item);
                    self.traits.note_call(self.lookup(), &[*function], 1);
                    self.note_row_call(function);
                    reference.whole_row = self.row_of(item);
                    reference.argument_of = Some((*function).to_owned());
                }
                Called::Unsure => self.note_row_call(function),
                Called::Not => {}
            },
            [] => {}
        }
    }

    fn row_of(&self, item: usize) -> Option<WholeRow> {
        let item = &self.items[item];
        let relation = item.occurrence.map(WholeRow::Relation);
        relation.or(item.view_use.map(WholeRow::View))
    }

    fn mark_whole(&mut self, item: usize) {
        if let Some(occurrence) = self.items[item].occurrence {
            self.occurrences[occurrence].whole = true;
        }
    }

    /// An item of FROM has the name of what may also be a column: of something whose columns are
    /// not known, or of a level further out.
    fn mark_possible_rows(&mut self, names: &Names, name: &str, naming: Naming) {
        let mut level = Some(names);
        while let Some(names) = level {
            let has_column = |item: &usize| {
                let mut columns = self.items[*item].columns.iter().flatten();
                columns.any(|column| column.name == name)
            };
            if names.visible.items.iter().any(has_column) {
                return;
            }
            for item in names.visible.items.clone() {
                if self.items[item].name == name && self.row_of(item).is_some() {
                    self.mark_whole(item);
                    // Its type would be that of what stands for the relation.
                    if naming != Naming::Inside {
                        self.doubtful_row.get_or_insert_with(|| name.to_owned());
                    }
                }
            }
            level = names.outer.as_deref();
        }
    }

    /// `t.f`, and `t.count`: aggregates are called in this way, too.
    fn note_row_call(&mut self, function: &str) {
        self.hidden_aggregate |= self.catalog.aggregates.contains(function);
    }
}

/// The reference that gives an output without an alias its name (`FigureColname`).
pub(super) fn named_by(node: &NodeEnum) -> Option<&protobuf::ColumnRef> {
    match node {
        NodeEnum::ColumnRef(column) => Some(column),
        NodeEnum::TypeCast(cast) => named_by(inner(&cast.arg)?),
        NodeEnum::CollateClause(clause) => named_by(inner(&clause.arg)?),
        NodeEnum::CaseExpr(case) => named_by(inner(&case.defresult)?),
        NodeEnum::AIndirection(part) if strings(&part.indirection).is_empty() => {
            named_by(inner(&part.arg)?)
        }
        _ => None,
    }
}

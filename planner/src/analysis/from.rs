//! FROM: relations, views, CTEs, subqueries and functions, and the names they give.

use std::rc::Rc;

use pg_query::{Node, NodeEnum, protobuf};

use super::{
    Analysis, CLIENT_TEXT, Cte, OCCURRENCES_MAX, Occurrence, Place, Role, ViewUse, named, renamed,
    renamed_by,
};
use crate::{
    catalog::Relation,
    facts::ColumnId,
    scope::{self, Found, Item, Names, Output, Visible},
    tree::{inner, nodes},
};

/// Memory of a column that an item of FROM gives, with its name.
const OUTPUT_BYTES: usize = 128;
/// Items of FROM that are copied in about the time that a node takes.
const ITEMS_OF_A_STEP: usize = 64;

impl<'t> Analysis<'t> {
    pub(super) fn names_of_from(
        &mut self,
        from: &'t [Node],
        scope: usize,
        place: &Place<'t>,
        start: Visible,
    ) -> Rc<Names> {
        let mut visible = start;
        for node in nodes(from) {
            let added = self.item_of_from(node, scope, place, &visible);
            visible = visible.and(added);
        }
        Rc::new(Names {
            visible,
            outer: Some(place.outer.clone()),
        })
    }

    /// One item of FROM. `prior` are those to its left, which LATERAL sees.
    pub(super) fn item_of_from(
        &mut self,
        node: &'t NodeEnum,
        scope: usize,
        place: &Place<'t>,
        prior: &Visible,
    ) -> Visible {
        let lateral = || {
            Rc::new(Names {
                visible: prior.clone(),
                outer: Some(place.outer.clone()),
            })
        };
        // What joins make of `prior` is copied on every level.
        if !self.budget().spend(1 + prior.items.len() / ITEMS_OF_A_STEP) {
            return Visible::default();
        }
        match node {
            NodeEnum::RangeVar(range) => self.relation(range, scope, place),
            NodeEnum::RangeSubselect(range) => {
                let outer = if range.lateral {
                    lateral()
                } else {
                    place.outer.clone()
                };
                let inside = Place {
                    scope,
                    outer,
                    env: place.env.clone(),
                    role: Role::From,
                };
                let first = self.occurrences.len();
                let outputs = inner(&range.subquery).and_then(|node| self.query(node, &inside));
                self.derived(&range.alias, "", outputs.map(|outputs| own(outputs, first)))
            }
            NodeEnum::JoinExpr(join) => self.join(join, scope, place, prior),
            NodeEnum::RangeTableSample(sample) => {
                let first = self.occurrences.len();
                let visible = match inner(&sample.relation) {
                    Some(node) => self.item_of_from(node, scope, place, prior),
                    None => Visible::default(),
                };
                self.occurrences[first..]
                    .iter_mut()
                    .for_each(|one| one.sampled = true);
                let names = lateral();
                nodes(&sample.args).for_each(|arg| self.visit(arg, scope, &names, &place.env));
                visible
            }
            other => {
                // Functions, XMLTABLE, JSON_TABLE: LATERAL by nature, columns not known.
                let names = lateral();
                self.visit_children(other, scope, &names, &place.env);
                let alias = match other {
                    NodeEnum::RangeFunction(range) => &range.alias,
                    NodeEnum::RangeTableFunc(range) => &range.alias,
                    NodeEnum::JsonTable(table) => &table.alias,
                    _ => {
                        self.strange = true;
                        &None
                    }
                };
                let (name, columns) = self.function_columns(other, &names);
                self.derived(alias, &name, columns)
            }
        }
    }

    /// A relation, a view or a CTE by its name.
    pub(super) fn relation(
        &mut self,
        range: &'t protobuf::RangeVar,
        scope: usize,
        place: &Place<'t>,
    ) -> Visible {
        if range.schemaname.is_empty() {
            let mut env = place.env.clone();
            while let Some(entry) = env {
                if entry.name == range.relname {
                    return self.cte(&entry, range, scope);
                }
                env = entry.previous.clone();
            }
        }
        let found = self.find(range);
        if matches!(found, Found::Home) && self.catalog.unjudged.contains(&range.relname) {
            self.traits.note_unjudged(&range.relname);
        }
        if let Found::Known(relation) = found
            && scope::is_view_on_placed(relation)
        {
            return self.view(relation, range, scope);
        }
        let occurrence = self.occurrence(range, found, scope);
        self.occurrence_item(occurrence)
    }

    /// Names in a view's text are all qualified, but for those of system catalogs.
    pub(super) fn find(&self, range: &protobuf::RangeVar) -> Found<'t> {
        match self.text == CLIENT_TEXT {
            true => scope::find_in(self.catalog, self.context, range),
            false => scope::find(self.catalog, self.context.moved, &[], range),
        }
    }

    pub(super) fn occurrence(
        &mut self,
        range: &'t protobuf::RangeVar,
        found: Found<'t>,
        scope: usize,
    ) -> usize {
        self.too_large |= self.occurrences.len() >= OCCURRENCES_MAX;
        let renamed = range
            .alias
            .as_ref()
            .is_some_and(|alias| !alias.colnames.is_empty());
        self.occurrences.push(Occurrence {
            range,
            found,
            text: self.text,
            scope,
            written: false,
            inserted: false,
            sampled: false,
            whole: renamed,
            filters: Vec::new(),
            block: self.block,
        });
        self.occurrences.len() - 1
    }

    pub(super) fn occurrence_item(&mut self, occurrence: usize) -> Visible {
        let Occurrence { range, found, .. } = self.occurrences[occurrence];
        let columns: Option<Vec<Output<'t>>> = match found {
            Found::Known(relation) | Found::Unread(relation) => {
                let output = |(column, definition): (usize, &crate::catalog::Column)| Output {
                    name: definition.name.clone(),
                    column: Some(ColumnId { occurrence, column }),
                    constant: None,
                };
                Some(relation.columns.iter().enumerate().map(output).collect())
            }
            Found::Proxy(view) => {
                Some(view.columns().iter().map(|(name, _)| named(name)).collect())
            }
            Found::Home => None,
        };
        let schema = match (&range.alias, found) {
            (None, Found::Known(relation) | Found::Unread(relation)) => {
                Some(relation.name.schema.clone())
            }
            (None, Found::Proxy(view)) => Some(view.schema().to_owned()),
            _ => None,
        };
        let name = range
            .alias
            .as_ref()
            .map_or(&range.relname, |alias| &alias.aliasname)
            .clone();
        self.item(Item {
            name,
            schema,
            columns: renamed(columns, &range.alias),
            occurrence: Some(occurrence),
            view_use: None,
            qualified_only: false,
            text: self.text,
            block: self.block,
        })
    }

    pub(super) fn item(&mut self, item: Item<'t>) -> Visible {
        let columns = item.columns.as_ref().map_or(0, Vec::len);
        self.budget().hold(columns * OUTPUT_BYTES);
        self.items.push(item);
        Visible {
            items: vec![self.items.len() - 1],
            merged: Vec::new(),
        }
    }

    pub(super) fn derived(
        &mut self,
        alias: &Option<protobuf::Alias>,
        name: &str,
        outputs: Option<Vec<Output<'t>>>,
    ) -> Visible {
        let name = alias
            .as_ref()
            .map_or(name, |alias| &alias.aliasname)
            .to_owned();
        self.item(Item {
            name,
            schema: None,
            columns: renamed(outputs, alias),
            occurrence: None,
            view_use: None,
            qualified_only: false,
            text: self.text,
            block: self.block,
        })
    }

    /// Every SELECT from the current one up to `outer`, which is not one of them, needs what is
    /// given outside of it.
    pub(super) fn mark_correlated(&mut self, outer: Option<usize>) {
        let mut at = self.block;
        while let Some(block) = at.filter(|_| at != outer) {
            self.blocks[block].correlated = true;
            at = self.blocks[block].parent;
        }
    }

    fn cte(&mut self, entry: &Cte<'t>, range: &'t protobuf::RangeVar, scope: usize) -> Visible {
        self.mark_correlated(entry.block);
        entry.uses.any.set(true);
        if !self.unread {
            entry.uses.read.set(true);
        }
        let outputs = match &entry.body {
            Some(body) if !self.too_large => {
                self.too_large |= self.facts.len() >= OCCURRENCES_MAX;
                let outer = body.outer.clone();
                let inside = Place {
                    scope,
                    outer,
                    env: entry.previous.clone(),
                    role: Role::From,
                };
                let outputs = inner(&body.cte.ctequery).and_then(|node| self.query(node, &inside));
                renamed_by(outputs, &body.cte.aliascolnames)
            }
            Some(_) => None,
            None => entry.columns.clone(),
        };
        self.derived(&range.alias, &range.relname, outputs)
    }

    fn view(
        &mut self,
        relation: &'t Relation,
        range: &'t protobuf::RangeVar,
        scope: usize,
    ) -> Visible {
        let Some((view, node)) = self.views.of(relation) else {
            self.strange = true;
            return self.derived(&range.alias, &range.relname, None);
        };
        let view_use = self.view_uses.len();
        self.view_uses.push(ViewUse {
            range,
            text: self.text,
            view,
            relation,
        });
        self.too_large |= self.view_uses.len() >= OCCURRENCES_MAX;
        let text = std::mem::replace(&mut self.text, view);
        let inside = Place {
            scope,
            outer: Rc::new(Names::default()),
            env: None,
            role: Role::From,
        };
        let outputs = if self.too_large {
            None
        } else {
            self.query(node, &inside)
        };
        // The view's columns have names of their own.
        let outputs = outputs.filter(|outputs| outputs.len() == relation.columns.len());
        let outputs = relation
            .columns
            .iter()
            .enumerate()
            .map(|(at, column)| Output {
                name: column.name.clone(),
                ..outputs
                    .as_ref()
                    .map(|outputs| outputs[at].clone())
                    .unwrap_or_default()
            });
        let columns = renamed(Some(outputs.collect()), &range.alias);
        let constants_text = self.text;
        self.text = text;
        let alias = range.alias.as_ref();
        self.item(Item {
            name: alias
                .map_or(&range.relname, |alias| &alias.aliasname)
                .clone(),
            schema: alias.is_none().then(|| relation.name.schema.clone()),
            columns,
            occurrence: None,
            view_use: Some(view_use),
            qualified_only: false,
            text: constants_text,
            block: self.block,
        })
    }
}

/// A LATERAL subquery may give nothing for a row, and its outputs are NULL then: what is a column
/// around it is not the same column as its output.
fn own<'t>(mut outputs: Vec<Output<'t>>, first: usize) -> Vec<Output<'t>> {
    for output in &mut outputs {
        output.column = output.column.filter(|column| column.occurrence >= first);
    }
    outputs
}

//! The texts of the views that a statement reads placed tables through.

use std::collections::HashMap;

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::CLIENT_TEXT,
    catalog::{Catalog, QualifiedName, Relation},
    parse,
    plan::PlanError,
    scope::{self, Found},
    statement::Context,
    tree::{self, Child},
};

/// Parsed definitions, numbered from 1; 0 is the client's own text.
#[derive(Debug, Default)]
pub(crate) struct Views<'t> {
    list: Vec<View<'t>>,
    numbers: HashMap<&'t QualifiedName, usize>,
}

#[derive(Debug)]
struct View<'t> {
    definition: &'t str,
    node: NodeEnum,
}

impl<'t> Views<'t> {
    /// All views on placed tables that a statement names, and those that they name.
    pub(crate) fn load(
        catalog: &'t Catalog,
        context: &Context<'_>,
        node: &NodeEnum,
    ) -> Result<Views<'t>, PlanError> {
        let mut views = Views::default();
        views.add_from(catalog, context.search_path, node)?;
        let mut at = 0;
        while at < views.list.len() {
            let node = views.list[at].node.clone();
            // Definitions are printed with an empty search path.
            views.add_from(catalog, &[], &node)?;
            at += 1;
        }
        Ok(views)
    }

    /// A view's number and tree.
    pub(crate) fn of(&self, relation: &Relation) -> Option<(usize, &NodeEnum)> {
        let number = *self.numbers.get(&relation.name)?;
        Some((number, &self.list[number - 1].node))
    }

    /// A view's text.
    pub(crate) fn text(&self, number: usize) -> &'t str {
        self.list[number - 1].definition
    }

    fn add_from(
        &mut self,
        catalog: &'t Catalog,
        search_path: &[String],
        node: &NodeEnum,
    ) -> Result<(), PlanError> {
        let mut failure = None;
        tree::walk(node, &mut |child| {
            let range: &protobuf::RangeVar = match child {
                Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) => range,
                _ => return,
            };
            if let Found::Known(relation) = scope::find(catalog, &[], search_path, range)
                && scope::is_view_on_placed(relation)
                && let Err(error) = self.add(relation)
            {
                failure.get_or_insert(error);
            }
        });
        failure.map_or(Ok(()), Err)
    }

    fn add(&mut self, relation: &'t Relation) -> Result<(), PlanError> {
        if self.numbers.contains_key(&relation.name) {
            return Ok(());
        }
        crate::route::refuse_unusable(relation)?;
        let definition = relation.view_definition.as_deref().unwrap_or_default();
        let definition = definition.trim().trim_end_matches(';');
        let Some(node) = parse::parse_one(definition) else {
            return Err(PlanError::unsupported(format!(
                "the definition of view \"{}\" cannot be read",
                relation.name.name
            )));
        };
        self.list.push(View { definition, node });
        self.numbers
            .insert(&relation.name, self.list.len() + CLIENT_TEXT);
        Ok(())
    }
}

//! Views of users that read sizes, estimates and counters from the catalogs.

use std::collections::HashSet;

use pg_query::{
    NodeEnum,
    protobuf::{self, SetOperation},
};

use super::{is_whole, name_of};
use crate::{
    analysis::{Analysis, CLIENT_TEXT, Occurrence},
    builtins::{self, Kind},
    catalog::{Catalog, Relation},
    functions::output_name,
    parse,
    route::Statement,
    scope::Found,
    splice::Edits,
    sql::identifier,
    tree::{self, Child, inner, nodes, strings},
};

/// How many views may be made of each other.
const DEPTH_MAX: usize = 16;

/// Where a view has numbers.
enum Numbers {
    /// In outputs of these names.
    In(HashSet<String>),
    /// In what decides about its rows, or somewhere.
    Anywhere,
}

/// A view's text stands in for it, wherever it is named. `None`: that cannot be written.
pub(super) fn expand(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Option<String> {
    let source = statement.source();
    let mut edits = Edits::default();
    let mut seen = HashSet::new();
    for one in &analysis.occurrences {
        let Some(view) = number_view(one).filter(|_| one.text == CLIENT_TEXT) else {
            continue;
        };
        let range = one.range;
        // A view in WITH that is used twice stands there once.
        if !seen.insert(range.location) {
            continue;
        }
        let span = source.name(usize::try_from(range.location).ok()?)?;
        let definition = view.view_definition.as_deref()?;
        let definition = definition.trim().trim_end_matches(';');
        let alias = match range.alias {
            Some(_) => String::new(),
            None => format!(" {}", identifier(name_of(range))),
        };
        edits.replace(span, format!("({definition}){alias}"));
    }
    edits.apply(statement.text, statement.span)
}

/// Some number is read through a view.
pub(super) fn are_read(catalog: &Catalog, analysis: &Analysis<'_>) -> bool {
    let through = |one: &Occurrence<'_>| {
        let Some(view) = number_view(one) else {
            return false;
        };
        match numbers_of(catalog, view, 0) {
            Numbers::Anywhere => true,
            Numbers::In(outputs) => {
                let renamed = one.range.alias.as_ref();
                let renamed = renamed.is_some_and(|alias| !alias.colnames.is_empty());
                !outputs.is_empty() && (renamed || is_whole(analysis, one))
                    || outputs.iter().any(|name| analysis.names.contains_key(name))
            }
        }
    };
    analysis.occurrences.iter().any(through)
}

fn number_view<'t>(one: &Occurrence<'t>) -> Option<&'t Relation> {
    match one.found {
        Found::Known(relation) => Some(relation).filter(|relation| relation.reads_numbers),
        Found::Unread(_) | Found::Proxy(_) | Found::Home => None,
    }
}

fn numbers_of(catalog: &Catalog, view: &Relation, depth: usize) -> Numbers {
    let definition = view.view_definition.as_deref().unwrap_or_default();
    let definition = definition.trim().trim_end_matches(';');
    match parse::parse_one(definition) {
        Some(NodeEnum::SelectStmt(select)) if depth < DEPTH_MAX => {
            outputs(catalog, &select, depth).map_or(Numbers::Anywhere, Numbers::In)
        }
        Some(_) | None => Numbers::Anywhere,
    }
}

/// The outputs with numbers; `None` if they are not the only place.
fn outputs(
    catalog: &Catalog,
    select: &protobuf::SelectStmt,
    depth: usize,
) -> Option<HashSet<String>> {
    let simple = select.op() <= SetOperation::SetopNone
        && select.with_clause.is_none()
        && nodes(&select.from_clause).all(is_plain_source);
    let words = words_of_numbers(catalog, select, depth)?;
    let mut rest = select.clone();
    rest.target_list.clear();
    let decides = has_number(&NodeEnum::SelectStmt(Box::new(rest)), &words);
    if !simple || decides {
        return None;
    }
    let mut found = HashSet::new();
    for node in nodes(&select.target_list) {
        let NodeEnum::ResTarget(target) = node else {
            return None;
        };
        let value = inner(&target.val)?;
        if !has_number(value, &words) {
            continue;
        }
        found.insert(match target.name.is_empty() {
            true => output_name(value)?,
            false => target.name.clone(),
        });
    }
    Some(found)
}

/// Relations, and joins of them.
fn is_plain_source(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::RangeVar(_) => true,
        NodeEnum::JoinExpr(join) => [&join.larg, &join.rarg]
            .into_iter()
            .all(|side| inner(side).is_some_and(is_plain_source)),
        _ => false,
    }
}

/// Names of columns that are numbers where a query reads them.
fn words_of_numbers(
    catalog: &Catalog,
    select: &protobuf::SelectStmt,
    depth: usize,
) -> Option<HashSet<String>> {
    let mut words = HashSet::new();
    let mut known = true;
    tree::walk_select(select, &mut |child| {
        let (Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range)) = child else {
            return;
        };
        if let Some((_, columns)) = builtins::summed_columns(&range.relname) {
            words.extend(columns.iter().map(|name| (*name).to_owned()));
        }
        let schema = Some(range.schemaname.as_str()).filter(|schema| !schema.is_empty());
        let view = catalog.resolve(&[], schema, &range.relname);
        if let Some(view) = view.filter(|view| view.reads_numbers) {
            match numbers_of(catalog, view, depth + 1) {
                Numbers::In(outputs) => words.extend(outputs),
                Numbers::Anywhere => known = false,
            }
        }
    });
    known.then_some(words)
}

/// A column of such a name, a whole row, or a size.
fn has_number(node: &NodeEnum, words: &HashSet<String>) -> bool {
    let mut found = false;
    tree::walk(node, &mut |child| match child {
        Child::Node(NodeEnum::ColumnRef(column)) => {
            let names = strings(&column.fields);
            // Servers print a whole row as `t.*`.
            let whole = names.len() < column.fields.len();
            found |= whole || names.last().is_some_and(|name| words.contains(*name));
        }
        Child::Node(NodeEnum::FuncCall(call)) => {
            let name = strings(&call.funcname).last().copied().unwrap_or_default();
            found |= builtins::function(name, call.args.len()) == Some(Kind::Size);
        }
        _ => {}
    });
    found
}

//! Joins whose rows are on different shards: some relations are moved to every shard, so that they
//! are there like reference tables, and the statement over those runs where the others are.

use std::collections::BTreeSet;

use pg_query::{NodeEnum, protobuf::SubLinkType};

use super::{Anchored, in_place, separable, subqueries};
use crate::{
    analysis::{self, Analysis, Role},
    catalog::{Catalog, Placement, QualifiedName, Relation, Split},
    facts::ColumnId,
    gather, holes, parse,
    plan::{
        Combine, Fetch, Memo, Move, MoveRoute, Piece, Reduction, ReductionValues, Rows, Scatter,
        ShardSet, Template,
    },
    route::{Statement, group},
    scope::{Found, MOVED_SCHEMA},
    sql::{identifier, qualified},
    statement::Context,
    views::Views,
};

/// The plan with everything moved that cannot stay with the anchor. Without an anchor, everything
/// is a subquery of its own, and the statement over their rows runs on the home shard.
pub(super) fn scatter(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    anchored: Option<&Anchored>,
    reason: &str,
) -> Option<Scatter> {
    // What is not read is where it is named without being moved, but for a local table's name.
    let known = |found: Found<'_>| match found {
        Found::Known(_) => true,
        Found::Unread(relation) => relation.placement != Placement::Local,
        Found::Proxy(_) | Found::Home => false,
    };
    if !analysis.occurrences.iter().all(|one| known(one.found)) {
        return None;
    }
    let queries = subqueries::find(statement, analysis, anchored);
    let inside = |index: usize| {
        queries
            .iter()
            .any(|query| query.occurrences.contains(&index))
    };
    let is_local = |index: usize| match analysis.occurrences[index].found {
        Found::Known(relation) => relation.placement == Placement::Local,
        Found::Unread(_) | Found::Proxy(_) | Found::Home => false,
    };
    let chosen = |index: usize| match anchored {
        Some(anchored) => !inside(index) && (anchored.moved.contains(&index) || is_local(index)),
        None => false,
    };
    let left =
        |index: usize| analysis.occurrences[index].found.distributed().is_some() && !inside(index);
    if anchored.is_none() && (queries.is_empty() || (0..analysis.occurrences.len()).any(left)) {
        return None;
    }
    let replaced: Vec<_> = queries
        .iter()
        .flat_map(subqueries::Subquery::replacements)
        .collect();
    let fetched = gather::fetch(statement, analysis, views, &chosen, &replaced).ok()?;
    let mut relations: Vec<Relation> = fetched
        .list
        .iter()
        .zip(&fetched.occurrences)
        .map(|(fetch, uses)| as_moved(analysis, fetch, *uses.first()?))
        .collect::<Option<_>>()?;
    relations.extend(queries.iter().map(|query| query.relation.clone()));
    let budget = statement.context.budget;
    budget.hold_tree(&fetched.text).then_some(())?;
    let node = parse::parse_one(&fetched.text)?;
    let context = Context {
        moved: &relations,
        ..*statement.context
    };
    let mut scatter = match anchored {
        Some(_) => plan_again(statement, &context, &fetched.text, &node, reason)?,
        None => at_home(&fetched.text, reason),
    };
    // Parts of groups are made by all columns that are needed, so none has to follow from a key.
    let groups = matches!(scatter.combine, Combine::Rows(_));
    scatter.moves = fetched
        .list
        .iter()
        .zip(&fetched.occurrences)
        .map(|(fetch, uses)| Move {
            fetch: Fetch {
                needs_key: fetch.needs_key && groups,
                select: select(analysis, fetch, uses),
                ..fetch.clone()
            },
            query: None,
            looked_up_by: looked_up_by(analysis, fetch, uses),
            route: anchored
                .and_then(|anchored| route(statement.catalog, analysis, anchored, fetch, uses)),
            reductions: Vec::new(),
        })
        .collect();
    if let Some(anchored) = anchored {
        for index in 0..scatter.moves.len() {
            let reductions = reductions(analysis, anchored, &fetched, index);
            scatter.moves[index].reductions = reductions;
        }
    }
    scatter
        .moves
        .extend(queries.into_iter().map(|query| query.into_move()));
    Some(scatter)
}

/// A statement whose relations are all there.
fn at_home(text: &str, reason: &str) -> Scatter {
    Scatter {
        moves: Vec::new(),
        others: Vec::new(),
        shards: ShardSet::Home,
        statement: holes::template(text),
        combine: Combine::Rows(Rows::default()),
        reason: reason.to_owned(),
        memo: Memo::default(),
        choice: Memo::default(),
    }
}

/// The statement over moved relations, planned as if those were reference tables.
fn plan_again(
    statement: &Statement<'_>,
    context: &Context<'_>,
    text: &str,
    node: &NodeEnum,
    reason: &str,
) -> Option<Scatter> {
    let views = Views::load(statement.catalog, context, node).ok()?;
    let analysis = analysis::analyse(statement.catalog, context, &views, node).ok()?;
    let rewritten = Statement {
        catalog: statement.catalog,
        context,
        text,
        span: (0, text.len()),
        node,
        normalised: None,
        parameters: statement.parameters.clone(),
    };
    let anchors = separable::anchors(&analysis);
    let anchored = anchors.iter().find(|anchored| anchored.moved.is_empty())?;
    in_place(&rewritten, &analysis, anchored, reason).map(|(scatter, _)| scatter)
}

/// What a fetched relation is while the statement runs.
pub(crate) fn as_moved(
    analysis: &Analysis<'_>,
    fetch: &Fetch,
    occurrence: usize,
) -> Option<Relation> {
    let (Found::Known(relation) | Found::Unread(relation)) = analysis.occurrences[occurrence].found
    else {
        return None;
    };
    let mut moved = relation.clone();
    moved.name = QualifiedName {
        schema: MOVED_SCHEMA.to_owned(),
        name: fetch.temp_table.clone(),
    };
    moved.placement = Placement::Reference;
    moved.kind = crate::catalog::RelationKind::Table;
    moved.view_definition = None;
    moved.columns = fetch
        .columns
        .iter()
        .map(|name| relation.column(name).cloned())
        .collect::<Option<_>>()?;
    Some(moved)
}

fn column_id(analysis: &Analysis<'_>, occurrence: usize, name: &str) -> Option<ColumnId> {
    let Found::Known(relation) = analysis.occurrences[occurrence].found else {
        return None;
    };
    let column = relation
        .columns
        .iter()
        .position(|column| column.name == name)?;
    Some(ColumnId { occurrence, column })
}

/// Types of which equal values are the same bytes.
const SAME_BYTES: &[u32] = &[16, 20, 21, 23, 25, 1043, 1082, 1083, 1114, 1184, 2950];

/// What is read. Of equal rows one is enough where they are only asked whether they are there.
fn select(analysis: &Analysis<'_>, fetch: &Fetch, uses: &[usize]) -> Template {
    let asked = |occurrence: &usize| {
        let block = analysis.occurrences[*occurrence]
            .block
            .map(|at| &analysis.blocks[at]);
        block.is_some_and(|block| {
            let select = block.select;
            matches!(
                block.link,
                Some(SubLinkType::ExistsSublink | SubLinkType::AnySublink)
            ) && select.group_clause.is_empty()
                && select.limit_count.is_none()
                && select.limit_offset.is_none()
                && !separable::has_aggregate(analysis, select)
                && analysis.traits.volatile.is_none()
                && !super::has_window(select)
        })
    };
    let Some(Found::Known(relation)) = uses.first().map(|one| analysis.occurrences[*one].found)
    else {
        return fetch.select.clone();
    };
    let same_bytes = |name: &String| {
        let column = relation.column(name);
        column
            .is_some_and(|column| SAME_BYTES.contains(&column.type_oid) && !column.nondeterministic)
    };
    let has_key = !relation.primary_key.is_empty()
        && relation
            .primary_key
            .iter()
            .all(|name| fetch.columns.contains(name));
    if has_key || !uses.iter().all(asked) || !fetch.columns.iter().all(same_bytes) {
        return fetch.select.clone();
    }
    let mut select = fetch.select.clone();
    if let Some(Piece::Text(text)) = select.first_mut() {
        *text = text.replacen("SELECT ", "SELECT DISTINCT ", 1);
    }
    select
}

/// Columns that rows of a subquery are found by, where it runs for every row around it.
pub(crate) fn looked_up_by(analysis: &Analysis<'_>, fetch: &Fetch, uses: &[usize]) -> Vec<String> {
    let repeated = |occurrence: usize| {
        let mut at = analysis.occurrences[occurrence].block;
        while let Some(block) = at.map(|index| &analysis.blocks[index]) {
            if block.role == Role::Expression && block.correlated {
                return true;
            }
            at = block.parent;
        }
        false
    };
    let block_of = |occurrence: usize| analysis.occurrences[occurrence].block;
    let is_found_by = |name: &&String| {
        uses.iter()
            .copied()
            .filter(|one| repeated(*one))
            .any(|one| {
                column_id(analysis, one, name).is_some_and(|column| {
                    let equal = analysis.equal_columns(column);
                    equal
                        .iter()
                        .any(|other| block_of(other.occurrence) != block_of(one))
                })
            })
    };
    let columns = fetch.columns.iter().filter(is_found_by);
    columns.map(|name| identifier(name)).collect()
}

/// The column by which all uses of a fetched relation are joined with the anchor's key.
fn route(
    catalog: &Catalog,
    analysis: &Analysis<'_>,
    anchored: &Anchored,
    fetch: &Fetch,
    uses: &[usize],
) -> Option<MoveRoute> {
    route_by_key(catalog, analysis, anchored.anchor, fetch, uses)
}

/// The column by which all uses of a fetched relation equal the shard key of an occurrence, and
/// where its values belong.
pub(crate) fn route_by_key(
    catalog: &Catalog,
    analysis: &Analysis<'_>,
    occurrence: usize,
    fetch: &Fetch,
    uses: &[usize],
) -> Option<MoveRoute> {
    let relation = analysis.occurrences[occurrence].found.distributed()?;
    let (key_type, group) = group(relation)?;
    // A value that the snapshot has no shard for may have one by now.
    if matches!(catalog.splits.get(&group), Some(Split::Directory { .. })) {
        return None;
    }
    let (column, type_oid) = equal_to(analysis, analysis.key_of(occurrence)?, fetch, uses)?;
    Some(MoveRoute {
        column,
        type_oid,
        key_type,
        group,
    })
}

fn equal_to(
    analysis: &Analysis<'_>,
    key: ColumnId,
    fetch: &Fetch,
    uses: &[usize],
) -> Option<(usize, u32)> {
    let Found::Known(relation) = analysis.occurrences[*uses.first()?].found else {
        return None;
    };
    let (index, name) = fetch.columns.iter().enumerate().find(|(_, name)| {
        uses.iter().all(|occurrence| {
            column_id(analysis, *occurrence, name)
                .is_some_and(|column| analysis.equal_columns(column).contains(&key))
        })
    })?;
    Some((index, relation.column(name)?.type_oid))
}

/// Other relations whose values say which rows of a fetched one matter.
fn reductions(
    analysis: &Analysis<'_>,
    anchored: &Anchored,
    fetched: &gather::Fetched,
    index: usize,
) -> Vec<Reduction> {
    let mut found = Vec::new();
    let (fetch, uses) = (&fetched.list[index], &fetched.occurrences[index]);
    let [only] = uses.as_slice() else {
        return found;
    };
    for name in &fetch.columns {
        let Some(column) = column_id(analysis, *only, name) else {
            continue;
        };
        // In the order of the text: which reduction comes first is a part of the plan.
        let equal = analysis.equal_columns(column);
        let equal: BTreeSet<ColumnId> = equal.into_iter().collect();
        for other in equal {
            if other.occurrence == *only {
                continue;
            }
            let reduction = reduction(analysis, anchored, fetched, name, other, index);
            found.extend(reduction.filter(|new| !found.contains(new)));
        }
    }
    found
}

fn reduction(
    analysis: &Analysis<'_>,
    anchored: &Anchored,
    fetched: &gather::Fetched,
    name: &str,
    other: ColumnId,
    index: usize,
) -> Option<Reduction> {
    let occurrence = &analysis.occurrences[other.occurrence];
    let Found::Known(relation) = occurrence.found else {
        return None;
    };
    let column = relation.columns.get(other.column)?;
    let values = if anchored.stay.contains(&other.occurrence) {
        if occurrence.filters.is_empty() || !column.portable_binary {
            return None;
        }
        ReductionValues::Select(holes::template(&format!(
            "SELECT DISTINCT {} FROM {} WHERE {}",
            identifier(&column.name),
            qualified(&relation.name),
            gather::conditions(&occurrence.filters)
        )))
    } else {
        let at = fetched
            .occurrences
            .iter()
            .position(|uses| uses.contains(&other.occurrence))?;
        let fetch = &fetched.list[at];
        let of = fetch
            .columns
            .iter()
            .position(|other| *other == column.name)?;
        if at == index || !fetch.binary {
            return None;
        }
        ReductionValues::Moved(at, of)
    };
    Some(Reduction {
        column: identifier(name),
        value_type: (column.type_oid, column.sql_type.clone()),
        values,
    })
}

//! Changes of rows by rows that are elsewhere: those are moved to every shard first, and the
//! change over those runs where its rows are.

use pg_query::NodeEnum;

use super::{inserts, main_target, ordered, returns_rows, write};
use crate::{
    analysis::{self, Analysis, Role},
    catalog::{Catalog, Placement, Relation},
    gather, holes, parse,
    plan::{Fetch, Move, MoveRoute, Multi, Plan, PlanError, ShardSet, Target},
    route::{self, Statement},
    scatter::{
        as_moved, looked_up_by, route_by_key,
        subqueries::{self, Subquery},
    },
    scope::Found,
    statement::{Context, Draft},
    views::Views,
};

/// The plan of a write to `target`, a distributed or reference table, with everything moved that
/// is not where the rows are that it changes. `None`: nothing can be gained by moving.
pub(super) fn by_moving(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    target: usize,
    kind: &'static str,
) -> Option<Draft> {
    let hindered = !statement.context.moved.is_empty()
        || analysis.strange
        || analysis.writes_in_with
        || analysis.traits.home.is_some()
        || analysis.traits.volatile.is_some()
        || analysis.traits.statement_clock;
    let known = |found: Found<'_>| matches!(found, Found::Known(_) | Found::Unread(_));
    if hindered || !analysis.occurrences.iter().all(|one| known(one.found)) {
        return None;
    }
    let merged = matches!(statement.node, NodeEnum::MergeStmt(merge) if inserts(merge));
    let queries = if merged {
        Vec::new()
    } else {
        subqueries::find_in_write(statement, analysis)
    };
    let inside = |index: usize| {
        let mut queries = queries.iter();
        queries.any(|query| query.occurrences.contains(&index))
    };
    let together = |index: usize| route::not_colocated(analysis, &[index, target]).is_none();
    let stays = |index: usize| {
        let one = &analysis.occurrences[index];
        let copied = match one.found {
            Found::Known(relation) => relation.placement == Placement::Reference,
            // Nobody asks which of its rows are there.
            Found::Unread(relation) => relation.placement != Placement::Local,
            Found::Proxy(_) | Found::Home => false,
        };
        one.written || copied || !merged && analysis.linked(index, target) && together(index)
    };
    let chosen = |index: usize| !inside(index) && !stays(index);
    let replaced: Vec<_> = queries
        .iter()
        .flat_map(subqueries::Subquery::replacements)
        .collect();
    let fetched = gather::fetch(statement, analysis, views, &chosen, &replaced).ok()?;
    if fetched.list.is_empty() && queries.is_empty() {
        return None;
    }
    let mut relations = Vec::new();
    let mut moves = Vec::new();
    for (fetch, uses) in fetched.list.iter().zip(&fetched.occurrences) {
        let mut relation = as_moved(analysis, fetch, *uses.first()?)?;
        let route = if merged {
            Some(route(statement.catalog, analysis, target, fetch, uses)?)
        } else {
            None
        };
        if let Some(route) = &route {
            join(&mut relation, analysis, target, route)?;
        }
        relations.push(relation);
        moves.push(Move {
            fetch: fetch.clone(),
            query: None,
            looked_up_by: looked_up_by(analysis, fetch, uses),
            route,
            reductions: Vec::new(),
        });
    }
    relations.extend(queries.iter().map(|query| query.relation.clone()));
    moves.extend(queries.into_iter().map(Subquery::into_move));
    plan_again(statement, &fetched.text, &relations, moves, kind)
}

/// The statement over moved relations, planned as if those were reference tables.
fn plan_again(
    statement: &Statement<'_>,
    text: &str,
    relations: &[Relation],
    moves: Vec<Move>,
    kind: &'static str,
) -> Option<Draft> {
    statement.context.budget.hold_tree(text).then_some(())?;
    let node = parse::parse_one(text)?;
    let context = Context {
        moved: relations,
        ..*statement.context
    };
    let rewritten = Statement {
        catalog: statement.catalog,
        context: &context,
        text,
        span: (0, text.len()),
        node: &node,
        normalised: None,
        parameters: statement.parameters.clone(),
    };
    if !computed_alike(&rewritten).ok()? {
        return None;
    }
    let draft = write(&rewritten).ok()?;
    let multi = match draft.plan {
        Plan::Multi(multi) => Multi {
            sql: Some(multi.sql.unwrap_or_else(|| holes::template(text))),
            moves,
            ..multi
        },
        Plan::Single(Target::Key(route)) => Multi {
            shards: ShardSet::Keys(route),
            sql: Some(holes::template(text)),
            returning: returns_rows(&node),
            copies: false,
            needs_block: false,
            moves,
        },
        _ => return None,
    };
    let effects = draft.session;
    Some(Draft::new(Plan::Multi(multi), kind).session(effects))
}

/// What every shard computes from moved rows must come out the same everywhere: nothing that
/// depends on the order in which rows are read. What is computed for one changed row is computed
/// on one shard only.
fn computed_alike(statement: &Statement<'_>) -> Result<bool, PlanError> {
    let views = Views::load(statement.catalog, statement.context, statement.node)?;
    let analysis = analysis::analyse(statement.catalog, statement.context, &views, statement.node)?;
    let target = main_target(statement, &analysis);
    let copies =
        target.is_some_and(|target| analysis.occurrences[target].found.distributed().is_none());
    let mut blocks = analysis.blocks.iter();
    Ok(blocks.all(|block| {
        let own_row = block.correlated && !copies;
        let opaque = block.role == Role::Opaque;
        !opaque && (own_row || !ordered(block.select))
    }))
}

/// The column of a MERGE's source that new rows take their key from.
fn route(
    catalog: &Catalog,
    analysis: &Analysis<'_>,
    target: usize,
    fetch: &Fetch,
    uses: &[usize],
) -> Option<MoveRoute> {
    let range = analysis.occurrences[target].range;
    let new_rows = analysis
        .occurrences
        .iter()
        .position(|one| one.inserted && std::ptr::eq(one.range, range))?;
    route_by_key(catalog, analysis, new_rows, fetch, uses)
}

/// A moved relation whose rows are where rows of the target with the same key are.
fn join(
    relation: &mut Relation,
    analysis: &Analysis<'_>,
    target: usize,
    route: &MoveRoute,
) -> Option<()> {
    let target = analysis.occurrences[target].found.distributed()?;
    let mut placement = target.placement.clone();
    if let Placement::Distributed { key, .. } = &mut placement {
        relation.columns.get(route.column)?.name.clone_into(key);
    }
    relation.placement = placement;
    Some(())
}

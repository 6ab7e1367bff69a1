//! The scatter and merge tiers: one statement for every shard, and how their rows are put
//! together.
//!
//! `separable` finds which shards' rows must meet. Where rows of different shards never meet, the
//! shards' rows are the answer ([`rows`]); where they meet only in groups, shards make parts of
//! groups and a last statement puts those together ([`aggregates`]). Everything that is computed is
//! computed by Postgres, from the client's own words.

mod aggregates;
pub(crate) mod clauses;
mod forms;
mod moving;
mod rows;
pub(crate) mod separable;
pub(crate) mod subqueries;
mod wanted;

use pg_query::{NodeEnum, protobuf};

pub(crate) use self::moving::{as_moved, looked_up_by, route_by_key};
use self::{
    clauses::{Base, Clauses, Composed, Edit},
    separable::{Anchored, WAYS_MAX},
};
use crate::{
    analysis::{Analysis, Block, Occurrence, Role, RowOrder},
    holes,
    plan::{Combine, Count, Memo, Piece, Scatter, ShardSet},
    route::{self, Statement},
    tree::{inner, nodes},
    views::Views,
};

/// The ways to answer a SELECT from all shards: one without moving rows of tables if there is
/// one, else all that move some. The flag: the plan holds for other literals, too.
pub(crate) fn scatter(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    reason: &str,
) -> Option<(Scatter, bool)> {
    // A temporary table is on one server, whatever else has its name.
    let temporary = |one: &Occurrence<'_>| one.found.is_temporary();
    if !is_movable(analysis) || analysis.occurrences.iter().any(temporary) {
        return None;
    }
    if analysis.traits.clocks.is_empty() {
        return ways(statement, analysis, views, reason);
    }
    at_one_time(statement, analysis, &|statement, analysis, views| {
        ways(statement, analysis, views, reason)
    })
}

/// Finds a way.
type Way<'w> = &'w dyn Fn(&Statement<'_>, &Analysis<'_>, &Views<'_>) -> Option<(Scatter, bool)>;

/// The way to answer a statement that asks what time it is: one transaction has one time, on
/// however many shards.
fn at_one_time(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    way: Way<'_>,
) -> Option<(Scatter, bool)> {
    if analysis.traits.clocks.iter().any(|clock| clock.in_view) {
        return None;
    }
    let text = with_one_clock(statement, analysis)?;
    statement.context.budget.hold_tree(&text).then_some(())?;
    let node = crate::parse::parse_one(&text)?;
    let statement = statement.rewritten(&text, &node);
    let views = Views::load(statement.catalog, statement.context, &node).ok()?;
    let order = analysis.order;
    let mut analysis =
        crate::analysis::analyse(statement.catalog, statement.context, &views, &node).ok()?;
    analysis.order = order;
    let (scatter, _) = way(&statement, &analysis, &views)?;
    Some((scatter, false))
}

/// The way to lock rows of several shards: each shard locks its own.
pub(crate) fn locking(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    reason: &str,
) -> Option<(Scatter, bool)> {
    let first = analysis.blocks.first()?;
    let mut others = analysis.blocks.iter().skip(1);
    let locked_inside = others.any(|block| !block.select.locking_clause.is_empty());
    // A lock on one copy of a reference table's row says nothing to those who use another.
    let copies = analysis.occurrences.iter().any(|one| {
        one.found.placed().is_some() && one.found.distributed().is_none() && is_locked(first, one)
    });
    let elsewhere = |one: &Occurrence<'_>| route::at_home(one.found).is_some();
    let hindered = !can_be_anywhere(analysis)
        || locked_inside
        || copies
        || analysis.occurrences.iter().any(elsewhere);
    if hindered {
        return None;
    }
    if !analysis.traits.clocks.is_empty() {
        return at_one_time(statement, analysis, &|statement, analysis, _| {
            locking(statement, analysis, reason)
        });
    }
    let anchors = separable::anchors(analysis);
    let anchored = anchors.iter().find(|anchored| anchored.moved.is_empty())?;
    let (scatter, reusable) = in_place(statement, analysis, anchored, reason)?;
    let rows = matches!(&scatter.combine, Combine::Rows(rows)
        if rows.distinct.is_none() && rows.locking.is_some());
    rows.then_some((scatter, reusable))
}

/// The locking clause of a SELECT means this relation, too.
fn is_locked(block: &Block<'_>, one: &Occurrence<'_>) -> bool {
    let range = one.range;
    let name = range
        .alias
        .as_ref()
        .map_or(range.relname.as_str(), |alias| alias.aliasname.as_str());
    nodes(&block.select.locking_clause).any(|node| match node {
        NodeEnum::LockingClause(clause) => {
            clause.locked_rels.is_empty()
                || nodes(&clause.locked_rels)
                    .any(|node| matches!(node, NodeEnum::RangeVar(named) if named.relname == name))
        }
        _ => true,
    })
}

/// The statement with one value for the transaction's time. Outputs keep their names.
pub(crate) fn with_one_clock(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Option<String> {
    let base = Base {
        source: statement.source(),
        literals: Vec::new(),
        budget: statement.context.budget,
    };
    let mut edits = Vec::new();
    for clock in &analysis.traits.clocks {
        let span = base.source.call(clock.location)?;
        edits.push(Edit::new(
            span,
            format!("({}{})", holes::now(), clock.casts),
        ));
    }
    let holds_clock = |node: &NodeEnum| {
        let mut found = false;
        crate::tree::walk(node, &mut |child| {
            if let crate::tree::Child::Node(node) = child {
                found |= crate::functions::clock_of(node).is_some();
            }
        });
        found
    };
    for (index, block) in analysis.blocks.iter().enumerate() {
        let unnamed: Vec<(usize, &NodeEnum)> = nodes(&block.select.target_list)
            .enumerate()
            .filter_map(|(at, node)| match node {
                NodeEnum::ResTarget(target) if target.name.is_empty() => {
                    inner(&target.val).map(|value| (at, value))
                }
                _ => None,
            })
            .filter(|(_, value)| holds_clock(value))
            .collect();
        if unnamed.is_empty() {
            continue;
        }
        // Where the end of an output is only known for the statement itself.
        if index > 0 {
            return None;
        }
        let clauses = clauses::clauses(&base, statement.span, block.select)?;
        for (at, value) in unnamed {
            let name = crate::functions::output_name(value)?;
            let (_, end) = *clauses.targets.get(at)?;
            let label = format!(" AS {}", crate::sql::identifier(&name));
            edits.push(Edit::new((end, end), label));
        }
    }
    edits.sort_by_key(|edit| edit.span);
    let mut text = Composed::default();
    text.part(&base, statement.span, &edits);
    match text.pieces.as_slice() {
        [Piece::Text(text)] => Some(text.clone()),
        _ => None,
    }
}

/// The same for a statement that does not ask what time it is.
fn ways(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    reason: &str,
) -> Option<(Scatter, bool)> {
    if analysis.order == RowOrder::Seen && shows_inner_order(analysis) {
        let whole = moving::scatter(statement, analysis, views, None, reason)?;
        return Some((whole, false));
    }
    let anchors = separable::anchors(analysis);
    let at_home = |one: &Occurrence<'_>| route::at_home(one.found).is_some();
    let local = analysis.occurrences.iter().any(at_home);
    let plain = anchors.iter().find(|anchored| anchored.moved.is_empty());
    if let (Some(anchored), false) = (plain, local)
        && let Some(found) = in_place(statement, analysis, anchored, reason)
    {
        return Some(found);
    }
    let ways = anchors.iter().take(WAYS_MAX);
    let mut ways: Vec<Scatter> = ways
        .filter_map(|anchored| moving::scatter(statement, analysis, views, Some(anchored), reason))
        .collect();
    if ways.is_empty() {
        ways.extend(moving::scatter(statement, analysis, views, None, reason));
    }
    if ways.is_empty() {
        return None;
    }
    let mut first = ways.remove(0);
    first.others = ways;
    Some((first, false))
}

/// Rows come in the order that a subquery in FROM gives them: nothing above it sorts them, or puts
/// them together. Postgres keeps that order, also for LIMIT and DISTINCT ON.
fn shows_inner_order(analysis: &Analysis<'_>) -> bool {
    let passes_on = |block: &Block<'_>| {
        let select = block.select;
        let distinct = nodes(&select.distinct_clause).next().is_none();
        select.sort_clause.is_empty()
            && select.group_clause.is_empty()
            && (select.distinct_clause.is_empty() || !distinct)
            && !separable::has_aggregate(analysis, select)
    };
    let mut shown = vec![false; analysis.blocks.len()];
    for (index, block) in analysis.blocks.iter().enumerate() {
        // Outer ones come first.
        shown[index] = match (block.role, block.parent) {
            (Role::Statement, None) => true,
            (Role::From, Some(parent)) => shown[parent] && passes_on(&analysis.blocks[parent]),
            _ => false,
        };
        if shown[index] && block.role == Role::From && !block.select.sort_clause.is_empty() {
            return true;
        }
    }
    false
}

/// The plan where every shard has what it needs.
fn in_place(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    anchored: &Anchored,
    reason: &str,
) -> Option<(Scatter, bool)> {
    let NodeEnum::SelectStmt(select) = statement.node else {
        return None;
    };
    let base = base(statement);
    let (shards, same_keys) = shards(statement, analysis, anchored);
    let composed = compose(analysis, &base, statement.span, select, anchored)?;
    let scatter = Scatter {
        moves: Vec::new(),
        others: Vec::new(),
        shards,
        statement: holes::in_pieces(composed.statement),
        combine: composed.combine,
        reason: reason.to_owned(),
        memo: Memo::default(),
        choice: Memo::default(),
    };
    let positions = analysis.positions || has_positions(select);
    let reusable = composed.reusable && same_keys && !positions;
    Some((scatter, reusable))
}

/// Nothing in the statement has to happen on one certain shard, or once.
fn is_movable(analysis: &Analysis<'_>) -> bool {
    !analysis.locks && can_be_anywhere(analysis)
}

/// The same of a statement that may lock rows.
fn can_be_anywhere(analysis: &Analysis<'_>) -> bool {
    let traits = &analysis.traits;
    // What is computed once in a subquery or in FROM would be computed once on each shard.
    let once = traits.volatile.is_some()
        && (analysis.blocks.len() > 1 || analysis.blocks.iter().any(has_function));
    !once
        && traits.home.is_none()
        && !analysis.strange
        && !analysis.outer_aggregate
        && !analysis.hidden_aggregate
        && !analysis.writes_in_with
        && !traits.pins
        && !traits.writes
        && !traits.set_config
        && !traits.moves_sequence
        && !traits.reads_sequence
        && traits.system_column.is_none()
        && !traits.statement_clock
        && !analysis.occurrences.iter().any(|one| one.sampled)
}

/// A function stands in FROM.
fn has_function(block: &Block<'_>) -> bool {
    let mut found = false;
    for node in nodes(&block.select.from_clause) {
        crate::tree::walk(node, &mut |child| {
            found |= matches!(child, crate::tree::Child::Node(NodeEnum::RangeFunction(_)));
        });
    }
    found
}

/// What shards run, and what becomes of their rows.
struct Composition {
    /// Other literals would be composed alike.
    reusable: bool,
    statement: Vec<Piece>,
    combine: Combine,
}

fn compose(
    analysis: &Analysis<'_>,
    base: &Base<'_>,
    span: (usize, usize),
    select: &protobuf::SelectStmt,
    anchored: &Anchored,
) -> Option<Composition> {
    let clauses = clauses::clauses(base, span, select)?;
    let grouped = !select.group_clause.is_empty() || separable::has_aggregate(analysis, select);
    let forms = forms::Forms::of(analysis, select);
    if anchored.whole || !grouped && !has_window(select) {
        let volatile = analysis.traits.volatile.is_some();
        return rows::compose(base, &clauses, select, &forms, anchored.whole, volatile);
    }
    if grouped {
        return aggregates::compose(analysis, base, &clauses, select, &forms);
    }
    None
}

/// A window function of the SELECT's own.
fn has_window(select: &protobuf::SelectStmt) -> bool {
    fn holds(node: &NodeEnum) -> bool {
        let mut found = matches!(node, NodeEnum::FuncCall(call) if call.over.is_some());
        crate::tree::children(node, &mut |child| {
            if let crate::tree::Child::Node(node) = child {
                found |= holds(node);
            }
        });
        found
    }
    let mut parts = nodes(&select.target_list).chain(nodes(&select.sort_clause));
    parts.any(holds)
}

/// The client's text; its literals where all of them are known.
fn base<'t>(statement: &Statement<'t>) -> Base<'t> {
    let literals = statement.normalised.map_or_else(Vec::new, |normalised| {
        let all = normalised.literals.iter().enumerate();
        all.map(|(slot, literal)| (literal.start, literal.end, slot))
            .collect()
    });
    Base {
        source: statement.source(),
        literals,
        budget: statement.context.budget,
    }
}

/// The shards whose rows can matter.
fn shards(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    anchored: &Anchored,
) -> (ShardSet, bool) {
    crate::route::shards(statement, analysis, anchored.anchor)
}

/// `ORDER BY 1`: another number would make another plan.
fn has_positions(select: &protobuf::SelectStmt) -> bool {
    let lists = nodes(&select.sort_clause).chain(nodes(&select.group_clause));
    let mut lists = lists.chain(nodes(&select.distinct_clause));
    lists.any(|node| match node {
        NodeEnum::SortBy(sort) => matches!(inner(&sort.node), Some(NodeEnum::AConst(_))),
        NodeEnum::GroupingSet(_) => true,
        other => matches!(other, NodeEnum::AConst(_)),
    })
}

/// LIMIT and OFFSET, where they are numbers or parameters.
#[derive(Debug, Default)]
struct Limits {
    count: Option<Count>,
    offset: Option<Count>,
    ties: bool,
}

fn limits(base: &Base<'_>, select: &protobuf::SelectStmt) -> Option<Limits> {
    let read = |node: Option<&NodeEnum>| match node {
        None => Some(None),
        Some(node) if crate::tree::is_null(node) => Some(None),
        Some(node) => count(base, node).map(Some),
    };
    Some(Limits {
        count: read(inner(&select.limit_count))?,
        offset: read(inner(&select.limit_offset))?,
        ties: select.limit_option() == protobuf::LimitOption::WithTies,
    })
}

fn count(base: &Base<'_>, node: &NodeEnum) -> Option<Count> {
    use protobuf::a_const::Val;
    let number = match node {
        NodeEnum::ParamRef(parameter) => {
            let index = usize::try_from(parameter.number).ok()?.checked_sub(1)?;
            return Some(Count::Parameter(index));
        }
        NodeEnum::AConst(constant) => match constant.val.as_ref()? {
            Val::Ival(number) => i64::from(number.ival),
            Val::Fval(number) => number.fval.parse().ok()?,
            _ => return None,
        },
        _ => return None,
    };
    let at = clauses::location(node).and_then(|at| usize::try_from(at).ok());
    let literal = at.and_then(|at| {
        let found = base
            .literals
            .binary_search_by_key(&at, |(start, ..)| *start);
        found.ok().map(|index| base.literals[index].2)
    });
    let count = match literal {
        Some(slot) => Count::Literal(slot),
        None => Count::Number(number),
    };
    (number >= 0).then_some(count)
}

/// ` LIMIT` for one shard: as many rows as can be among those that are wanted of all.
fn shard_limit(limits: &Limits) -> Vec<Piece> {
    let Some(count) = &limits.count else {
        return Vec::new();
    };
    let mut pieces = Vec::new();
    let open = if limits.ties {
        " FETCH FIRST ("
    } else {
        " LIMIT ("
    };
    pieces.push(Piece::Text(open.to_owned()));
    put_count(&mut pieces, count);
    if let Some(offset) = &limits.offset {
        pieces.push(Piece::Text(" + ".to_owned()));
        put_count(&mut pieces, offset);
    }
    let close = if limits.ties { ") ROWS WITH TIES" } else { ")" };
    pieces.push(Piece::Text(close.to_owned()));
    pieces
}

fn put_count(pieces: &mut Vec<Piece>, count: &Count) {
    match count {
        Count::Number(number) => pieces.push(Piece::Text(format!("{number}::bigint"))),
        Count::Literal(slot) => {
            pieces.push(Piece::Literal(*slot));
            pieces.push(Piece::Text("::bigint".to_owned()));
        }
        Count::Parameter(index) => pieces.push(Piece::Text(format!("${}::bigint", index + 1))),
    }
}

/// The shape of a tree has a literal in it.
fn holds_literal(shape: &str) -> bool {
    shape.contains("AConst(")
}

/// The parts of a WITH clause come before the word SELECT.
fn has_with(clauses: &Clauses, base: &Base<'_>) -> bool {
    base.text(clauses.head).len() > "select".len()
}

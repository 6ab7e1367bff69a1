//! INSERT of a query's rows.

use pg_query::{NodeEnum, protobuf};

use super::{draws, key_of, target_columns, without_length};
use crate::{
    analysis::{self, Analysis, RowOrder},
    catalog::{Column, Placement, Relation},
    clock, gather, holes, parse,
    plan::{
        Combine, Gather, InsertSelect, Multi, Plan, PlanError, SessionEffects, ShardSet, Target,
    },
    route::{self, Statement, Verdict},
    scatter,
    scope::Found,
    splice::Source,
    sql::identifier,
    statement::{self, Draft, Reach},
    tree::{inner, nodes, strings},
    views::Views,
    write,
};

/// INSERT ... SELECT, or VALUES with more than rows: whole on one shard if all of it is there,
/// else computed on the home shard and spread from there.
pub(super) fn insert_query(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Result<Draft, PlanError> {
    write::refuse_key_changes(statement, analysis).or_else(|error| match relation.placement {
        // A reference table is no obstacle here: every shard gets all rows.
        Placement::Reference if !analysis.writes_in_with => Ok(()),
        _ => Err(error),
    })?;
    write::refuse_assigned_defaults(statement, relation)?;
    let columns = given_columns(insert, relation);
    let filled_at_home = relation.columns.iter().enumerate().any(|(at, column)| {
        let given = columns
            .as_ref()
            .is_some_and(|columns| columns.contains(&at));
        // A time that is another shard's is put in where the rows are computed.
        let timed = || {
            statement.context.reach == Reach::OneTime
                && write::default_reads_clock(statement.catalog, column)
        };
        !given
            && (draws(column)
                || timed()
                || write::default_traits(statement.catalog, column)
                    .home
                    .is_some())
    });
    let distributed = relation.placement != Placement::Reference;
    if !filled_at_home
        && distributed
        && let Verdict::Key(route, reusable) = route::verdict(statement, analysis)?
    {
        if write::needs_one_time(statement, analysis) {
            let sql = write::with_one_clock(statement, analysis)?.unwrap_or_default();
            return Ok(write::timed(ShardSet::Keys(route), sql, "insert"));
        }
        let left_out = |at: usize| columns.as_ref().is_none_or(|given| !given.contains(&at));
        let session = SessionEffects {
            reads_clock: relation.columns.iter().enumerate().any(|(at, column)| {
                left_out(at) && write::default_reads_clock(statement.catalog, column)
            }),
            ..SessionEffects::default()
        };
        let plan = Plan::Single(Target::Key(route));
        return Ok(Draft::new(plan, "insert")
            .reusable(reusable)
            .session(session));
    }
    refuse(statement, insert, analysis, relation)?;
    if !filled_at_home
        && distributed
        && let Some(draft) = in_place(statement, insert, analysis, relation)
    {
        return Ok(draft);
    }
    let columns = columns.ok_or_else(|| not_listed(relation))?;
    spread(statement, insert, analysis, relation, &columns)
}

/// Every shard inserts what it selects: the new rows have the keys of rows that are there.
fn in_place(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Option<Draft> {
    let target = write::main_target(statement, analysis)?;
    let tables = route::distributed(analysis);
    let linked = |index: &usize| analysis.linked(*index, target);
    let traits = &analysis.traits;
    let uneven = |column: &Column| {
        let traits = write::default_traits(statement.catalog, column);
        traits.volatile.is_some() || !traits.clocks.is_empty() || traits.statement_clock
    };
    let hindered = analysis.writes_in_with
        || insert.with_clause.is_some()
        || traits.volatile.is_some()
        || traits.statement_clock
        || traits.home.is_some()
        || relation.columns.iter().any(uneven)
        || tables.len() < 2
        || route::not_colocated(analysis, &tables).is_some()
        || !tables.iter().all(linked)
        || analysis
            .occurrences
            .iter()
            .any(|one| route::at_home(one.found).is_some());
    if hindered || !is_split_like_its_rows(statement, insert)? {
        return None;
    }
    let sql = write::with_one_clock(statement, analysis).ok()?;
    let multi = Multi {
        shards: ShardSet::All,
        sql,
        returning: write::returns_rows(statement.node),
        copies: false,
        needs_block: false,
        moves: Vec::new(),
    };
    Some(
        Draft::new(Plan::Multi(multi), "insert").session(SessionEffects {
            writes: true,
            ..SessionEffects::default()
        }),
    )
}

/// The query's rows are those that every shard finds by itself.
fn is_split_like_its_rows(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
) -> Option<bool> {
    let (from, to) = query_span(statement, insert)?;
    let text = statement.text.get(from..to)?;
    let node = parse::parse_one(text)?;
    let query = statement.rewritten(text, &node);
    let views = Views::load(query.catalog, query.context, &node).ok()?;
    let mut analysis = analysis::analyse(query.catalog, query.context, &views, &node).ok()?;
    analysis.order = order_of(statement);
    let (scatter, _) = scatter::scatter(&query, &analysis, &views, "")?;
    Some(match &scatter.combine {
        Combine::Rows(rows) => {
            let limited = rows.count.is_some() || rows.offset.is_some();
            scatter.moves.is_empty() && rows.distinct.is_none() && !limited
        }
        Combine::Final(_) => false,
    })
}

fn refuse(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Result<(), PlanError> {
    super::refuse_conflict(statement, insert, analysis, relation)?;
    if assigns_parts(insert) {
        return Err(PlanError::unsupported(format!(
            "INSERT ... SELECT into a part of a column of \"{}\" is not supported over several shards",
            relation.name.name
        ))
        .hint("Select whole values, as ARRAY[...] or ROW(...), or insert with VALUES."));
    }
    let clause = if insert.with_clause.is_some() && analysis.writes_in_with {
        "a write inside WITH"
    } else if suffix_selects(statement, insert) {
        "a subquery behind its query"
    } else {
        return Ok(());
    };
    Err(PlanError::unsupported(format!(
        "INSERT ... SELECT with {clause} into \"{}\" is not supported over several shards",
        relation.name.name
    ))
    .hint("Run the SELECT first, and insert its rows with INSERT ... VALUES."))
}

/// A target is an element of an array, or a field.
fn assigns_parts(insert: &protobuf::InsertStmt) -> bool {
    nodes(&insert.cols)
        .any(|node| matches!(node, NodeEnum::ResTarget(target) if !target.indirection.is_empty()))
}

/// ON CONFLICT or RETURNING has a subquery.
fn suffix_selects(statement: &Statement<'_>, insert: &protobuf::InsertStmt) -> bool {
    let source = statement.source();
    let Some(start) = suffix_start(&source, statement, insert) else {
        return false;
    };
    (source.token_from(start)..source.tokens.len()).any(|at| source.is_word(at, "select"))
}

/// Where ON CONFLICT or RETURNING begins.
fn suffix_start(
    source: &Source<'_>,
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
) -> Option<usize> {
    if let Some(conflict) = &insert.on_conflict_clause {
        return usize::try_from(conflict.location).ok();
    }
    insert
        .returning_clause
        .as_ref()
        .filter(|one| !one.exprs.is_empty())?;
    // RETURNING is a reserved word: the last one outside of brackets begins the clause.
    let tokens = source.tokens.iter().enumerate().rev();
    let mut words = tokens.filter(|(at, token)| {
        token.depth == 0 && token.end <= statement.span.1 && source.is_word(*at, "returning")
    });
    words.next().map(|(_, token)| token.start)
}

pub(super) fn not_listed(relation: &Relation) -> PlanError {
    PlanError::unsupported(format!(
        "INSERT into \"{}\" without a column list is not supported here",
        relation.name.name
    ))
    .detail("How many columns the query has is not known before it runs.")
    .hint("List the columns behind the table's name.")
}

/// Columns that the query gives values for, in its order; `None` when it cannot be known.
pub(super) fn given_columns(
    insert: &protobuf::InsertStmt,
    relation: &Relation,
) -> Option<Vec<usize>> {
    let columns = target_columns(insert, relation)?;
    if !insert.cols.is_empty() {
        return Some(columns);
    }
    let width = width(inner(&insert.select_stmt)?)?;
    columns.get(..width).map(<[usize]>::to_vec)
}

fn width(node: &NodeEnum) -> Option<usize> {
    let NodeEnum::SelectStmt(select) = node else {
        return None;
    };
    select_width(select)
}

fn select_width(select: &protobuf::SelectStmt) -> Option<usize> {
    if let Some(left) = &select.larg {
        return select_width(left);
    }
    if let Some(NodeEnum::List(row)) = nodes(&select.values_lists).next() {
        return Some(row.items.len());
    }
    let starred = nodes(&select.target_list).any(|node| match node {
        NodeEnum::ResTarget(target) => match inner(&target.val) {
            Some(NodeEnum::ColumnRef(column)) => {
                strings(&column.fields).len() < column.fields.len()
            }
            Some(NodeEnum::AIndirection(expr)) => {
                strings(&expr.indirection).len() < expr.indirection.len()
                    && expr
                        .indirection
                        .iter()
                        .any(|one| matches!(one.node, Some(NodeEnum::AStar(_))))
            }
            _ => false,
        },
        _ => true,
    });
    (!starred).then_some(select.target_list.len())
}

/// The query computed on the home shard, in the table's types, with the defaults of the columns
/// that it leaves out.
fn spread(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    relation: &Relation,
    given: &[usize],
) -> Result<Draft, PlanError> {
    let failure = || {
        PlanError::unsupported(
            "this form of INSERT ... SELECT is not supported over several shards",
        )
    };
    let span = query_span(statement, insert).ok_or_else(failure)?;
    let reads_elsewhere = analysis.occurrences.iter().any(|one| {
        !one.written && (one.found.distributed().is_some() || matches!(one.found, Found::Proxy(_)))
    });
    let reason = format!(
        "rows for \"{}\" are computed before they are spread",
        relation.name.name
    );
    let with = with_span(statement, insert);
    let own = statement.text.get(span.0..span.1).ok_or_else(failure)?;
    let query_text = format!("{with}{own}");
    let wrap = |query: &str| wrapped(statement, relation, given, query);
    let order = order_of(statement);
    let timed = |text: &str| clock::one_time(text).ok_or_else(failure);
    let (query, query_sql) = if !reads_elsewhere {
        let sql = timed(&wrap(&query_text)?)?;
        (Plan::Single(Target::Home), sql)
    } else if let Some(plan) = answered(statement, &wrap(&query_text)?, order) {
        (plan, timed(&wrap(&query_text)?)?)
    } else {
        let fetched = gathered(statement, &query_text)?;
        let sql = timed(&wrap(&fetched.text)?)?;
        let gather = Gather {
            fetches: fetched.list,
            statement: sql.clone(),
            reason,
        };
        (Plan::Gather(gather), sql)
    };
    let columns = target_list(relation, given);
    let key = key_of(relation);
    let key_column = key.and_then(|(key, _)| columns.iter().position(|one| one.name == key.name));
    let session = SessionEffects {
        moves_sequence: analysis.traits.moves_sequence || columns.iter().any(|one| draws(one)),
        ..SessionEffects::default()
    };
    let plan = InsertSelect {
        table: relation.name.clone(),
        query: Box::new(query),
        query_sql,
        columns: columns.iter().map(|column| column.name.clone()).collect(),
        key_column,
        key_type: key.map(|(_, key_type)| key_type),
        group: relation.placement.group(),
        suffix: suffix_start(&statement.source(), statement, insert)
            .and_then(|start| statement.text.get(start..statement.span.1))
            .map(str::to_owned),
        one_result_per_row: super::one_result_per_row(insert),
        sequences: defaulted(relation, given)
            .filter_map(|column| column.sequence.clone())
            .collect(),
    };
    Ok(Draft::new(Plan::InsertSelect(plan), "insert").session(session))
}

/// The order of new rows is that of what RETURNING gives.
fn order_of(statement: &Statement<'_>) -> RowOrder {
    match write::returns_rows(statement.node) {
        true => RowOrder::Seen,
        false => RowOrder::Unseen,
    }
}

/// The query with a plan of its own, where that is cheaper than to gather what it reads.
fn answered(statement: &Statement<'_>, text: &str, order: RowOrder) -> Option<Plan> {
    let node = parse::parse_one(text)?;
    let query = statement.rewritten(text, &node);
    match statement::plan_subquery(&query, order)?.plan {
        plan @ Plan::Scatter(_) => Some(plan),
        _ => None,
    }
}

/// What the query reads is gathered.
fn gathered(statement: &Statement<'_>, text: &str) -> Result<gather::Fetched, PlanError> {
    let failure = || {
        PlanError::unsupported(
            "this form of INSERT ... SELECT is not supported over several shards",
        )
    };
    let node = parse::parse_one(text).ok_or_else(failure)?;
    let query = statement.rewritten(text, &node);
    let views = Views::load(query.catalog, query.context, &node)?;
    let analysis = analysis::analyse(query.catalog, query.context, &views, &node)?;
    gather::fetch_all(&query, &analysis, &views)
}

/// The columns of new rows: those given, then those with a default. The shard key is always one of
/// them, as it says where a row belongs.
fn target_list<'r>(relation: &'r Relation, given: &[usize]) -> Vec<&'r Column> {
    let listed = given.iter().map(|at| &relation.columns[*at]);
    listed.chain(defaulted(relation, given)).collect()
}

fn defaulted<'r>(relation: &'r Relation, given: &[usize]) -> impl Iterator<Item = &'r Column> {
    let key = key_of(relation).map(|(key, _)| key.name.as_str());
    let omitted: Vec<&Column> = relation
        .columns
        .iter()
        .enumerate()
        .filter(|(at, column)| {
            !given.contains(at)
                && !column.generated
                && (column.default.is_some()
                    || column.sequence.is_some()
                    || key == Some(column.name.as_str()))
        })
        .map(|(_, column)| column)
        .collect();
    omitted.into_iter()
}

fn wrapped(
    statement: &Statement<'_>,
    relation: &Relation,
    given: &[usize],
    query: &str,
) -> Result<String, PlanError> {
    let mut targets: Vec<String> = given
        .iter()
        .enumerate()
        .map(|(at, column)| {
            let column = &relation.columns[*column];
            format!(
                "(c{})::{} AS {}",
                at + 1,
                without_length(&column.sql_type),
                identifier(&column.name)
            )
        })
        .collect();
    if given.iter().any(|at| relation.columns[*at].generated) {
        return Err(PlanError::new(
            "428C9",
            "cannot insert a non-DEFAULT value into a generated column",
        ));
    }
    let mut sequences = 0;
    for column in defaulted(relation, given) {
        write::default_traits(statement.catalog, column).refuse_unsafe(statement.catalog)?;
        let value = match (&column.sequence, &column.default) {
            (Some(_), _) => {
                sequences += 1;
                holes::next(sequences - 1)
            }
            (None, Some(default)) => format!("({default})"),
            (None, None) => "NULL".to_owned(),
        };
        targets.push(format!(
            "({value})::{} AS {}",
            without_length(&column.sql_type),
            identifier(&column.name)
        ));
    }
    let names: Vec<String> = (1..=given.len())
        .map(|number| format!("c{number}"))
        .collect();
    Ok(format!(
        "SELECT {} FROM ({query}) AS a67_q({})",
        targets.join(", "),
        names.join(", ")
    ))
}

/// The bytes of the query: from behind the table's name, alias, columns and OVERRIDING to the end.
pub(super) fn query_span(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
) -> Option<(usize, usize)> {
    let source = statement.source();
    let (_, list_end) = column_list(statement, insert)?;
    let mut at = source.token_from(list_end);
    if source.is_word(at, "overriding") {
        at += 3;
    }
    let start = source.tokens.get(at)?.start;
    let end = suffix_start(&source, statement, insert).unwrap_or(statement.span.1);
    (start < end).then_some((start, end))
}

/// The bytes of the list of columns with its brackets, or where it would be.
pub(super) fn column_list(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
) -> Option<(usize, usize)> {
    let source = statement.source();
    let range = insert.relation.as_ref()?;
    let (_, name_end) = source.name(usize::try_from(range.location).ok()?)?;
    let mut start = name_end;
    let mut at = source.token_from(name_end);
    if range.alias.is_some() {
        at += usize::from(source.is_word(at, "as"));
        start = source.tokens.get(at)?.end;
        at += 1;
    }
    if insert.cols.is_empty() {
        return Some((start, start));
    }
    if !source.is_mark(at, '(') {
        return None;
    }
    Some((start, source.tokens[source.closing(at)?].end))
}

/// `WITH ... ` where it stands before INSERT.
fn with_span<'a>(statement: &Statement<'a>, insert: &protobuf::InsertStmt) -> &'a str {
    if insert.with_clause.is_none() {
        return "";
    }
    let source = statement.source();
    let range = insert
        .relation
        .as_ref()
        .and_then(|range| usize::try_from(range.location).ok());
    let Some(name) = range.and_then(|location| source.token_at(location)) else {
        return "";
    };
    // INSERT INTO name
    let start = name.checked_sub(2).and_then(|at| source.tokens.get(at));
    start.map_or("", |token| &statement.text[statement.span.0..token.start])
}

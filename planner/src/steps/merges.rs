//! MERGE cut into its source, its matched actions and its inserts.

use pg_query::{
    NodeEnum,
    protobuf::{self, CmdType, MergeMatchKind},
};

use super::{span, writing};
use crate::{
    analysis::{self, Analysis},
    catalog::{Relation, RelationKind},
    parse,
    plan::{MergeInsert, MergeSteps, Plan},
    route::Statement,
    scope::Found,
    splice::Source,
    sql::{identifier, qualified},
    statement::Draft,
    tree::{inner, nodes},
    views::Views,
    write,
};

/// The column that numbers the rows of a source.
const ROW_NUMBER: &str = "a67_row";

/// The plan in steps of a MERGE into a distributed or reference table.
pub(super) fn steps(statement: &Statement<'_>, merge: &protobuf::MergeStmt) -> Option<Draft> {
    let views = Views::load(statement.catalog, statement.context, statement.node).ok()?;
    let analysis =
        analysis::analyse(statement.catalog, statement.context, &views, statement.node).ok()?;
    let target = write::main_target(statement, &analysis)?;
    let relation = match analysis.occurrences[target].found {
        Found::Known(relation) => relation,
        Found::Unread(_) | Found::Proxy(_) | Found::Home => return None,
    };
    if !can_be_cut(statement, &analysis, relation) || !merge.returning_clause.iter().all(empty) {
        return None;
    }
    let source = statement.source();
    let first = source.token_at(statement.span.0)?;
    let end = source.token_from(statement.span.1);
    let depth = source.tokens.get(first)?.depth;
    let top: Vec<usize> = (first..end)
        .filter(|at| source.tokens[*at].depth == depth)
        .collect();
    let word = |name: &str, from: usize| {
        let mut words = top.iter().copied().filter(|at| *at > from);
        words.find(|at| source.is_word(*at, name))
    };
    let using = word("using", first)?;
    let on = joined_on(&source, &top, using)?;
    let starts: Vec<usize> = top
        .iter()
        .copied()
        .filter(|at| *at > on && begins_clause(&source, *at))
        .collect();
    let clauses: Vec<&protobuf::MergeWhenClause> = nodes(&merge.merge_when_clauses)
        .filter_map(|node| match node {
            NodeEnum::MergeWhenClause(clause) => Some(clause.as_ref()),
            _ => None,
        })
        .collect();
    if starts.len() != clauses.len() {
        return None;
    }
    let text = |from: usize, to: usize| {
        span(&source, from, to).and_then(|(from, to)| statement.text.get(from..to))
    };
    let mut matched = String::new();
    let mut inserts = Vec::new();
    for (at, clause) in clauses.iter().enumerate() {
        let close = starts.get(at + 1).copied().unwrap_or(end);
        match clause.match_kind() {
            MergeMatchKind::MergeWhenMatched => {
                matched.push(' ');
                matched.push_str(text(starts[at], close)?);
            }
            MergeMatchKind::MergeWhenNotMatchedByTarget => {
                inserts.push(insert(&source, clause, relation, starts[at], close)?);
            }
            _ => return None,
        }
    }
    let into = if source.is_word(first + 1, "into") {
        2
    } else {
        1
    };
    let plan = MergeSteps {
        target: text(first + into, using)?.to_owned(),
        source: format!("SELECT * FROM {}", text(using + 1, on)?),
        source_name: identifier(source_name(inner(&merge.source_relation)?)?),
        condition: text(on + 1, *starts.first()?)?.to_owned(),
        matched,
        inserts,
    };
    parse::parse_one(&plan.source)?;
    Some(Draft::new(Plan::MergeSteps(plan), "merge").session(writing()))
}

fn empty(clause: &protobuf::ReturningClause) -> bool {
    clause.exprs.is_empty()
}

fn can_be_cut(statement: &Statement<'_>, analysis: &Analysis<'_>, relation: &Relation) -> bool {
    let traits = &analysis.traits;
    // What was cut is not cut again.
    let whole = !statement.own_text().contains(ROW_NUMBER);
    whole
        && relation.kind == RelationKind::Table
        && traits.system_column.is_none()
        && statement.context.moved.is_empty()
        && !analysis.writes_in_with
        && !analysis.strange
        && relation.unsafe_writes.is_none()
        && traits.volatile.is_none()
        && traits.home.is_none()
        && traits.clocks.is_empty()
        && !traits.statement_clock
}

/// The word ON between the source and the condition: not that of a join, which is in brackets.
fn joined_on(source: &Source<'_>, top: &[usize], using: usize) -> Option<usize> {
    let mut words = top.iter().copied().filter(|at| *at > using);
    words.find(|at| source.is_word(*at, "on"))
}

/// `WHEN MATCHED` or `WHEN NOT MATCHED`.
fn begins_clause(source: &Source<'_>, at: usize) -> bool {
    let negated = usize::from(source.is_word(at + 1, "not"));
    source.is_word(at, "when") && source.is_word(at + 1 + negated, "matched")
}

fn source_name(node: &NodeEnum) -> Option<&str> {
    let alias = match node {
        NodeEnum::RangeVar(range) => {
            let alias = range.alias.as_ref();
            return Some(alias.map_or(range.relname.as_str(), |alias| alias.aliasname.as_str()));
        }
        NodeEnum::RangeSubselect(select) => select.alias.as_ref(),
        NodeEnum::RangeFunction(function) => function.alias.as_ref(),
        _ => None,
    };
    alias.map(|alias| alias.aliasname.as_str())
}

fn insert(
    source: &Source<'_>,
    clause: &protobuf::MergeWhenClause,
    relation: &Relation,
    start: usize,
    end: usize,
) -> Option<MergeInsert> {
    let depth = source.tokens.get(start)?.depth;
    let top = (start..end).filter(|at| source.tokens[*at].depth == depth);
    // `THEN INSERT` or `THEN DO NOTHING`: the last THEN of its depth.
    let actions = ["insert", "do"];
    let then = top
        .clone()
        .filter(|at| source.is_word(*at, "then"))
        .rfind(|at| actions.iter().any(|word| source.is_word(at + 1, word)))?;
    let condition = match inner(&clause.condition) {
        None => None,
        // WHEN NOT MATCHED AND condition THEN; PostgreSQL 17 also says BY TARGET.
        Some(_) => {
            let and = top.clone().find(|at| source.is_word(*at, "and"))?;
            let (from, to) = span(source, and + 1, then)?;
            Some(source.text.get(from..to)?.to_owned())
        }
    };
    if clause.command_type() == CmdType::CmdNothing {
        return Some(MergeInsert {
            condition,
            insert: None,
        });
    }
    let values = top
        .clone()
        .find(|at| *at > then && source.is_word(*at, "values"))?;
    // DEFAULT VALUES and OVERRIDING have forms of their own.
    if !source.is_mark(values + 1, '(') || source.is_word(values - 1, "value") {
        return None;
    }
    let listed: Vec<&str> = nodes(&clause.target_list)
        .map(|node| match node {
            NodeEnum::ResTarget(target) if target.indirection.is_empty() => {
                Some(target.name.as_str())
            }
            _ => None,
        })
        .collect::<Option<_>>()?;
    let columns: Vec<&str> = if listed.is_empty() {
        let columns = relation.columns.iter().map(|column| column.name.as_str());
        columns.take(clause.values.len()).collect()
    } else {
        listed
    };
    let texts = list(source, values + 1)?;
    if texts.len() != clause.values.len() || texts.len() != columns.len() {
        return None;
    }
    let mut names = Vec::new();
    let mut given = Vec::new();
    for ((name, text), node) in columns.iter().zip(texts).zip(nodes(&clause.values)) {
        if !matches!(node, NodeEnum::SetToDefault(_)) {
            names.push(identifier(name));
            given.push(text);
        }
    }
    (!names.is_empty()).then(|| MergeInsert {
        condition,
        insert: Some((
            format!("{} ({})", qualified(&relation.name), names.join(", ")),
            given,
        )),
    })
}

/// The elements of a list in brackets.
fn list(source: &Source<'_>, open: usize) -> Option<Vec<String>> {
    let close = source.closing(open)?;
    let depth = source.tokens.get(open + 1)?.depth;
    let mut parts = Vec::new();
    let mut at = open + 1;
    for token in open + 1..=close {
        let comma = source.is_mark(token, ',') && source.tokens[token].depth == depth;
        if token == close || comma {
            let (from, to) = span(source, at, token)?;
            parts.push(source.text.get(from..to)?.to_owned());
            at = token + 1;
        }
    }
    Some(parts)
}

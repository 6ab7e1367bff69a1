//! Statements that run as several: writes inside WITH, and changes of shard keys.

use std::collections::HashSet;

mod merges;

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::{self, assigned_columns},
    catalog::{Placement, Relation},
    parse,
    plan::{KeyUpdate, NewValue, Plan, SessionEffects, WithPart, WithWrites},
    route::Statement,
    scope::Found,
    splice::Source,
    sql::{identifier, qualified},
    statement::Draft,
    tree::{self, Child, inner, is_null, nodes},
    views::Views,
    write,
};

/// The statement as several, where it cannot run as one over several shards.
pub(crate) fn steps(statement: &Statement<'_>) -> Option<Draft> {
    if let Some(with) = with_clause(statement.node) {
        let writes = nodes(&with.ctes).any(
            |node| matches!(node, NodeEnum::CommonTableExpr(cte) if is_write(inner(&cte.ctequery))),
        );
        return writes.then(|| with_writes(statement, with)).flatten();
    }
    match statement.node {
        NodeEnum::UpdateStmt(update) => key_update(statement, update),
        NodeEnum::MergeStmt(merge) if merge.with_clause.is_none() => {
            merges::steps(statement, merge)
        }
        _ => None,
    }
}

fn with_clause(node: &NodeEnum) -> Option<&protobuf::WithClause> {
    match node {
        NodeEnum::SelectStmt(select) => select.with_clause.as_ref(),
        NodeEnum::InsertStmt(insert) => insert.with_clause.as_ref(),
        NodeEnum::UpdateStmt(update) => update.with_clause.as_ref(),
        NodeEnum::DeleteStmt(delete) => delete.with_clause.as_ref(),
        _ => None,
    }
}

fn is_write(node: Option<&NodeEnum>) -> bool {
    matches!(
        node,
        Some(NodeEnum::InsertStmt(_) | NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_))
    )
}

fn kind_of(node: &NodeEnum) -> &'static str {
    match node {
        NodeEnum::InsertStmt(_) => "insert",
        NodeEnum::UpdateStmt(_) => "update",
        NodeEnum::DeleteStmt(_) => "delete",
        _ => "select",
    }
}

fn writing() -> SessionEffects {
    SessionEffects {
        writes: true,
        ..SessionEffects::default()
    }
}

// ---- writes inside WITH ----

fn with_writes(statement: &Statement<'_>, with: &protobuf::WithClause) -> Option<Draft> {
    let source = statement.source();
    let mut parts = Vec::new();
    let mut end = 0;
    for node in nodes(&with.ctes) {
        let NodeEnum::CommonTableExpr(cte) = node else {
            return None;
        };
        let (part, close) = with_part(&source, cte)?;
        parts.push(part);
        end = close;
    }
    let main = statement
        .text
        .get(source.tokens.get(end)?.end..statement.span.1)?;
    let before = source.token_at(statement.span.0)?;
    // Whatever follows, WITH must come first.
    if !source.is_word(before, "with") || with.recursive {
        return None;
    }
    let no_cascades = apart(statement, &parts, main)?;
    let plan = WithWrites {
        parts,
        main: main.trim_start().to_owned(),
        no_cascades,
    };
    let draft = Draft::new(Plan::WithWrites(plan), kind_of(statement.node));
    Some(draft.session(writing()))
}

/// A part, and the token that closes its brackets.
fn with_part(source: &Source<'_>, cte: &protobuf::CommonTableExpr) -> Option<(WithPart, usize)> {
    let start = source.token_at(usize::try_from(cte.location).ok()?)?;
    let mut at = start + 1;
    if source.is_mark(at, '(') {
        at = source.closing(at)? + 1;
    }
    if !source.is_word(at, "as") {
        return None;
    }
    at += 1;
    if source.is_word(at, "not") {
        at += 1;
    }
    if source.is_word(at, "materialized") {
        at += 1;
    }
    if !source.is_mark(at, '(') || cte.search_clause.is_some() || cte.cycle_clause.is_some() {
        return None;
    }
    let close = source.closing(at)?;
    let body = source
        .text
        .get(source.tokens.get(at)?.end..source.tokens.get(close)?.start)?;
    let query = inner(&cte.ctequery)?;
    let columns = nodes(&cte.aliascolnames).map(|node| match node {
        NodeEnum::String(name) => Some(name.sval.clone()),
        _ => None,
    });
    let part = WithPart {
        name: cte.ctename.clone(),
        columns: columns.collect::<Option<_>>()?,
        body: body.trim().to_owned(),
        text: source
            .text
            .get(source.tokens.get(start)?.start..source.tokens.get(close)?.end)?
            .to_owned(),
        writes: is_write(Some(query)),
        returns: write::returns_rows(query),
    };
    Some((part, close))
}

/// One after the other comes to the same as all on one snapshot: nothing that a part writes is
/// touched by another part or by the statement itself. Gives the tables whose foreign keys must
/// not change rows elsewhere. `None`: it does not come to the same.
fn apart(statement: &Statement<'_>, parts: &[WithPart], main: &str) -> Option<Vec<String>> {
    let mut touched: Vec<HashSet<String>> = Vec::new();
    let bodies = parts.iter().map(|part| part.body.as_str());
    for text in bodies.chain([main]) {
        touched.push(names(statement, &parse::parse_one(text)?)?);
    }
    let ctes: HashSet<&str> = parts.iter().map(|part| part.name.as_str()).collect();
    let mut no_cascades = Vec::new();
    for (index, part) in parts.iter().enumerate().filter(|(_, part)| part.writes) {
        let node = parse::parse_one(&part.body)?;
        let range = write::target_of(&node)?;
        let written = range.relname.as_str();
        let others = touched
            .iter()
            .enumerate()
            .filter(|(other, _)| *other != index);
        let mut seen = others.flat_map(|(_, names)| names.iter());
        if ctes.contains(written) || seen.any(|name| name == written) {
            return None;
        }
        let schema = Some(range.schemaname.as_str()).filter(|schema| !schema.is_empty());
        let catalog = statement.catalog;
        let relation = catalog.resolve(statement.context.search_path, schema, written)?;
        let mut keys = catalog.foreign_keys.iter();
        if keys.any(|key| key.referenced_table == relation.name) {
            no_cascades.push(qualified(&relation.name));
        }
    }
    Some(no_cascades)
}

/// The relations that a statement names, also through views. `None`: it cannot be known.
fn names(statement: &Statement<'_>, node: &NodeEnum) -> Option<HashSet<String>> {
    let mut found = HashSet::new();
    let mut strange = false;
    // New rows do not look at others of their table.
    let inserted = match node {
        NodeEnum::InsertStmt(insert) if insert.on_conflict_clause.is_none() => {
            let mut query = insert.clone();
            query.relation = None;
            Some(NodeEnum::InsertStmt(query))
        }
        _ => None,
    };
    let node = inserted.as_ref().unwrap_or(node);
    tree::walk(node, &mut |child| match child {
        Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) => {
            found.insert(range.relname.clone());
        }
        Child::Strange => strange = true,
        Child::Node(_) | Child::Select(_) => {}
    });
    let views = statement.catalog.relations.values();
    for relation in views {
        let is_view = relation.view_definition.is_some();
        if is_view && found.contains(&relation.name.name) {
            return None;
        }
    }
    (!strange).then_some(found)
}

// ---- changes of shard keys ----

fn key_update(statement: &Statement<'_>, update: &protobuf::UpdateStmt) -> Option<Draft> {
    let views = Views::load(statement.catalog, statement.context, statement.node).ok()?;
    let analysis =
        analysis::analyse(statement.catalog, statement.context, &views, statement.node).ok()?;
    let target = write::main_target(statement, &analysis)?;
    let relation = match analysis.occurrences[target].found {
        Found::Known(relation) => relation,
        Found::Unread(_) | Found::Proxy(_) | Found::Home => return None,
    };
    let Placement::Distributed { key, .. } = &relation.placement else {
        return None;
    };
    let assigned = assigned_columns(&update.target_list);
    let changes_key = assigned.iter().any(|(name, _)| name == key);
    let hindered = !changes_key
        || analysis.writes_in_with
        || !statement.context.moved.is_empty()
        || analysis.traits.volatile.is_some()
        || analysis.traits.home.is_some()
        || analysis.traits.statement_clock
        || analysis.traits.system_column.is_some()
        || relation.unsafe_writes.is_some();
    if hindered {
        return None;
    }
    let source = statement.source();
    let parts = update_parts(&source, statement, update)?;
    let range = update.relation.as_ref()?;
    let own = range
        .alias
        .as_ref()
        .map_or(range.relname.as_str(), |alias| alias.aliasname.as_str());
    let mut returned: Vec<String> = Vec::new();
    let mut columns = Vec::new();
    for column in relation.columns.iter().filter(|column| !column.generated) {
        let value = match assigned.iter().position(|(name, _)| *name == column.name) {
            None => {
                returned.push(format!("{}.{}", identifier(own), identifier(&column.name)));
                NewValue::Returned(returned.len() - 1)
            }
            Some(at) => new_value(
                &source,
                assigned[at].1?,
                parts.values.get(at)?,
                relation,
                column,
                &mut returned,
            )?,
        };
        columns.push((column.name.clone(), value));
    }
    let old_key = returned.len();
    returned.push(format!("{}.{}", identifier(own), identifier(key)));
    let (_, new_key) = columns.iter().find(|(name, _)| name == key)?.clone();
    let returns = write::returns_rows(statement.node);
    if returns && (!update.from_clause.is_empty() || shows_images(update, relation, own)) {
        return None;
    }
    let text = |(from, to): (usize, usize)| statement.text.get(from..to).unwrap_or_default();
    let mut delete = format!("DELETE FROM {}", text(parts.table));
    if let Some(from) = parts.from {
        delete.push_str(&format!(" USING {}", text(from)));
    }
    delete.push_str(&format!(" {}", text(parts.condition)));
    delete.push_str(&format!(" RETURNING {}", returned.join(", ")));
    parse::parse_one(&delete)?;
    let plan = KeyUpdate {
        delete,
        table: format!("{} AS {}", qualified(&relation.name), identifier(own)),
        relation: qualified(&relation.name),
        columns,
        returning: text(parts.returning).to_owned(),
        old_key,
        new_key,
    };
    Some(Draft::new(Plan::KeyUpdate(plan), "update").session(writing()))
}

/// RETURNING may show the row as it was: `old.a`, or by a name that WITH gives it. Where rows are
/// deleted and inserted again, new ones have no such row.
fn shows_images(update: &protobuf::UpdateStmt, relation: &Relation, own: &str) -> bool {
    let Some(clause) = &update.returning_clause else {
        return false;
    };
    let mut shown = !clause.options.is_empty();
    for node in nodes(&clause.exprs) {
        tree::walk(node, &mut |child| {
            if let Child::Node(NodeEnum::ColumnRef(column)) = child {
                let names = tree::strings(&column.fields);
                let image = matches!(names.first(), Some(name @ (&"old" | &"new")) if *name != own);
                let is_column = column.fields.len() == 1
                    && names
                        .first()
                        .is_some_and(|name| relation.column(name).is_some());
                shown |= image && !is_column;
            }
        });
    }
    shown
}

/// What an assignment gives the new row.
fn new_value(
    source: &Source<'_>,
    node: &NodeEnum,
    span: &(usize, usize),
    relation: &Relation,
    column: &crate::catalog::Column,
    returned: &mut Vec<String>,
) -> Option<NewValue> {
    let text = source.text.get(span.0..span.1)?;
    // Strings have no type of their own: the column's input reads them.
    let string = matches!(node, NodeEnum::AConst(constant)
        if matches!(constant.val, Some(protobuf::a_const::Val::Sval(_))));
    if string || is_null(node) || matches!(node, NodeEnum::SetToDefault(_)) {
        return Some(NewValue::Text(text.to_owned()));
    }
    match node {
        NodeEnum::MultiAssignRef(_) => return None,
        NodeEnum::ParamRef(_) => {
            let sql_type = &relation.column(&column.name)?.sql_type;
            let plain = sql_type.split('(').next().unwrap_or(sql_type);
            returned.push(format!("({text})::{plain}"));
        }
        _ => returned.push(format!("({text})")),
    }
    Some(NewValue::Returned(returned.len() - 1))
}

type Span = (usize, usize);

/// Where the parts of an UPDATE are.
struct UpdateParts {
    /// The table, with ONLY and alias.
    table: Span,
    /// Each assigned value.
    values: Vec<Span>,
    /// Behind FROM.
    from: Option<Span>,
    /// `WHERE ...`
    condition: Span,
    /// `RETURNING ...`
    returning: Span,
}

fn update_parts(
    source: &Source<'_>,
    statement: &Statement<'_>,
    update: &protobuf::UpdateStmt,
) -> Option<UpdateParts> {
    let first = source.token_at(statement.span.0)?;
    let end = source.token_from(statement.span.1);
    let depth = source.tokens.get(first)?.depth;
    let top: Vec<usize> = (first..end)
        .filter(|at| source.tokens[*at].depth == depth)
        .collect();
    let word = |name: &str, from: usize| {
        let mut words = top.iter().copied().filter(|at| *at >= from);
        words.find(|at| source.is_word(*at, name))
    };
    if !source.is_word(first, "update") {
        return None;
    }
    let set = word("set", first)?;
    let returning = match write::returns_rows(statement.node) {
        true => top
            .iter()
            .rev()
            .copied()
            .find(|at| source.is_word(*at, "returning"))?,
        false => end,
    };
    let condition = match inner(&update.where_clause) {
        // The last one of its depth: FROM has no WHERE outside of brackets.
        Some(_) => word("where", set)?,
        None => returning,
    };
    let from = match update.from_clause.is_empty() {
        true => None,
        false => Some(from_word(source, &top, set, condition)?),
    };
    let values_end = from.unwrap_or(condition);
    let mut values = Vec::new();
    let mut at = set + 1;
    for token in set + 1..=values_end {
        let comma = source.is_mark(token, ',') && source.tokens[token].depth == depth;
        if token == values_end || comma {
            // column = value, without parts of columns
            if !source.is_mark(at + 1, '=') && source.spelled(at + 1) != "=" {
                return None;
            }
            values.push(span(source, at + 2, token)?);
            at = token + 1;
        }
    }
    let part = |from: usize, to: usize| span(source, from, to).unwrap_or((0, 0));
    Some(UpdateParts {
        table: span(source, first + 1, set)?,
        values,
        from: match from {
            Some(from) => Some(span(source, from + 1, condition)?),
            None => None,
        },
        condition: part(condition, returning),
        returning: part(returning, end),
    })
}

/// FROM, not that of `IS DISTINCT FROM`.
fn from_word(source: &Source<'_>, top: &[usize], set: usize, condition: usize) -> Option<usize> {
    let mut words = top
        .iter()
        .copied()
        .filter(|at| *at > set && *at < condition);
    words.find(|at| source.is_word(*at, "from") && !source.is_word(at - 1, "distinct"))
}

fn span(source: &Source<'_>, from: usize, to: usize) -> Option<Span> {
    let (first, last) = (
        source.tokens.get(from)?,
        source.tokens.get(to.checked_sub(1)?)?,
    );
    (from < to).then_some((first.start, last.end))
}

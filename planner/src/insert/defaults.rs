//! New rows of a local table in a transaction whose time is another server's: defaults that read
//! the time are written out, and the statement is planned like one that was given so.

use pg_query::protobuf;

use super::{select, values::Values, without_length};
use crate::{
    analysis::Analysis,
    catalog::{Placement, Relation, RelationKind},
    parse,
    plan::PlanError,
    route::Statement,
    scope::Found,
    splice::Edits,
    sql::identifier,
    statement::{Draft, Reach},
    write,
};

/// The plan of an INSERT into a table of the home shard.
pub(super) fn insert_at_home(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    analysis: &Analysis<'_>,
    target: Option<usize>,
) -> Result<Draft, PlanError> {
    let local = target.and_then(|target| match analysis.occurrences[target].found {
        Found::Known(relation) => Some(relation),
        Found::Unread(_) | Found::Proxy(_) | Found::Home => None,
    });
    let filled = local.map_or_else(Vec::new, |relation| filled(statement, insert, relation));
    let Some(relation) = local.filter(|_| !filled.is_empty()) else {
        return write::write(statement);
    };
    let elsewhere = analysis
        .occurrences
        .iter()
        .any(|one| one.found.distributed().is_some() || matches!(one.found, Found::Proxy(_)));
    if statement.context.reach != Reach::OneTime && !elsewhere {
        let mut draft = write::write(statement)?;
        draft.session.reads_clock = true;
        return Ok(draft);
    }
    let text = written_out(statement, insert, relation, &filled)?;
    let node = parse::parse_one(&text).ok_or_else(not_understood)?;
    write::write(&statement.rewritten(&text, &node))
}

/// Columns whose default reads the time, where some row leaves them to it: their places in the
/// table.
fn filled(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    relation: &Relation,
) -> Vec<usize> {
    if relation.placement != Placement::Local || relation.kind == RelationKind::View {
        return Vec::new();
    }
    let values = Values::of(insert, relation);
    let given = match &values {
        Some(values) if values.is_wrong() => return Vec::new(),
        Some(_) => None,
        None => select::given_columns(insert, relation),
    };
    let left_out = |at: usize| match (&values, &given) {
        (Some(values), _) => values.uses_default(at),
        (None, Some(given)) => !given.contains(&at),
        (None, None) => true,
    };
    let columns = relation.columns.iter().enumerate();
    columns
        .filter(|(at, column)| {
            left_out(*at) && write::default_reads_clock(statement.catalog, column)
        })
        .map(|(at, _)| at)
        .collect()
}

fn written_out(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    relation: &Relation,
    filled: &[usize],
) -> Result<String, PlanError> {
    match Values::of(insert, relation) {
        Some(values) => in_rows(statement, &values, relation, filled).ok_or_else(not_understood),
        None => in_query(statement, insert, relation, filled),
    }
}

/// The default of a column, as an expression.
fn default_of(relation: &Relation, column: usize) -> String {
    format!("({})", write::default_text(&relation.columns[column]))
}

fn in_rows(
    statement: &Statement<'_>,
    values: &Values<'_>,
    relation: &Relation,
    filled: &[usize],
) -> Option<String> {
    let source = statement.source();
    let spans = values.spans(&source, statement.span)?;
    let width = values.rows.first().map_or(0, Vec::len);
    let given = &values.columns[..width];
    let added: Vec<usize> = filled
        .iter()
        .copied()
        .filter(|at| !given.contains(at))
        .collect();
    let mut edits = Edits::default();
    let names = |columns: &[usize]| {
        let names = columns
            .iter()
            .map(|at| identifier(&relation.columns[*at].name));
        names.collect::<Vec<_>>().join(", ")
    };
    let defaults: Vec<String> = added.iter().map(|at| default_of(relation, *at)).collect();
    if width == 0 {
        let start = source.tokens.get(source.token_from(spans.head_end))?.start;
        let rows = format!("({}) VALUES ({})", names(&added), defaults.join(", "));
        edits.replace((start, spans.rows_end), rows);
        return edits.apply(statement.text, statement.span);
    }
    if !added.is_empty() {
        match spans.column_list_end {
            Some(end) => edits.replace((end, end), format!(", {}", names(&added))),
            None => {
                let all = [given, added.as_slice()].concat();
                edits.replace(
                    (spans.head_end, spans.head_end),
                    format!(" ({})", names(&all)),
                );
            }
        }
    }
    for (cells, spans) in values.rows.iter().zip(&spans.rows) {
        for (position, span) in spans.iter().enumerate() {
            let default = matches!(cells[position], pg_query::NodeEnum::SetToDefault(_));
            if default && filled.contains(&given[position]) {
                edits.replace(*span, default_of(relation, given[position]));
            }
        }
        if let (Some((_, end)), false) = (spans.last(), added.is_empty()) {
            edits.replace((*end, *end), format!(", {}", defaults.join(", ")));
        }
    }
    edits.apply(statement.text, statement.span)
}

fn in_query(
    statement: &Statement<'_>,
    insert: &protobuf::InsertStmt,
    relation: &Relation,
    filled: &[usize],
) -> Result<String, PlanError> {
    let given = select::given_columns(insert, relation);
    let given = given.ok_or_else(|| select::not_listed(relation))?;
    let query = select::query_span(statement, insert).ok_or_else(not_understood)?;
    let names = select::column_list(statement, insert).ok_or_else(not_understood)?;
    let text = |(from, to)| statement.text.get(from..to).ok_or_else(not_understood);
    let all = given.iter().chain(filled);
    let columns: Vec<String> = all
        .map(|at| identifier(&relation.columns[*at].name))
        .collect();
    let labels: Vec<String> = (1..=given.len())
        .map(|number| format!("c{number}"))
        .collect();
    let cast = |(at, label): (&usize, &String)| {
        let sql_type = without_length(&relation.columns[*at].sql_type);
        format!("({label})::{sql_type}")
    };
    let cells = given.iter().zip(&labels).map(cast);
    let defaults = filled.iter().map(|at| default_of(relation, *at));
    let cells: Vec<String> = cells.chain(defaults).collect();
    Ok(format!(
        "{} ({}) {}SELECT {} FROM ({}) AS a67_q({}) {}",
        text((statement.span.0, names.0))?,
        columns.join(", "),
        text((names.1, query.0))?,
        cells.join(", "),
        text(query)?,
        labels.join(", "),
        text((query.1, statement.span.1))?,
    ))
}

fn not_understood() -> PlanError {
    PlanError::unsupported("the transaction's time cannot be put into the statement")
        .detail("The default of a column reads it, and the transaction began on another shard.")
        .hint("Give the column a value in the statement.")
}

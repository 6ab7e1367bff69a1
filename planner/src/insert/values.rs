//! The rows of INSERT ... VALUES, in the tree and in the text.

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::{self, plain_columns},
    catalog::Relation,
    insert::target_columns,
    plan::PlanError,
    splice::Source,
    tree::{self, Child, nodes, strings},
};

/// Rows of constants and expressions.
#[derive(Debug)]
pub(super) struct Values<'t> {
    /// The columns that cells are for, by their places in the table.
    pub(super) columns: Vec<usize>,
    /// Cells. One empty row for DEFAULT VALUES.
    pub(super) rows: Vec<Vec<&'t NodeEnum>>,
    range: &'t protobuf::RangeVar,
    listed: bool,
    wrong: bool,
    width: usize,
}

/// Where the parts of the statement are in its text.
#[derive(Debug)]
pub(super) struct Spans {
    /// Behind the table's name and alias, and the column list if there is one.
    pub(super) head_end: usize,
    /// Of the column list's closing bracket.
    pub(super) column_list_end: Option<usize>,
    /// Per row, per cell.
    pub(super) rows: Vec<Vec<(usize, usize)>>,
    /// Behind the last row.
    pub(super) rows_end: usize,
}

impl<'t> Values<'t> {
    /// The rows of an INSERT; `None` when they come from a query.
    pub(super) fn of(insert: &'t protobuf::InsertStmt, relation: &Relation) -> Option<Values<'t>> {
        let range = insert.relation.as_ref()?;
        let rows: Vec<Vec<&'t NodeEnum>> = match insert.select_stmt.as_ref() {
            None => vec![Vec::new()],
            Some(node) => {
                let Some(NodeEnum::SelectStmt(select)) = &node.node else {
                    return None;
                };
                let plain = !select.values_lists.is_empty()
                    && select.sort_clause.is_empty()
                    && select.limit_count.is_none()
                    && select.limit_offset.is_none()
                    && select.with_clause.is_none()
                    && select.locking_clause.is_empty();
                if !plain {
                    return None;
                }
                nodes(&select.values_lists)
                    .map(|row| match row {
                        NodeEnum::List(list) => nodes(&list.items).collect(),
                        _ => Vec::new(),
                    })
                    .collect()
            }
        };
        let listed = !insert.cols.is_empty();
        let columns = target_columns(insert, relation);
        let width = rows.first().map_or(0, Vec::len);
        let given = insert.select_stmt.is_some();
        let wrong = match &columns {
            None => true,
            Some(columns) => {
                let repeated = columns
                    .iter()
                    .enumerate()
                    .any(|(at, c)| columns[..at].contains(c));
                let fits = if listed {
                    width == columns.len()
                } else {
                    width <= columns.len()
                };
                (repeated && plain_columns(insert))
                    || (given && (!fits || width == 0))
                    || rows.iter().any(|row| row.len() != width)
            }
        };
        let columns = columns.unwrap_or_default();
        Some(Values {
            columns,
            rows,
            range,
            listed,
            wrong,
            width,
        })
    }

    /// The server refuses it for certain: a column that does not exist or is named twice, or too
    /// many or too few values.
    pub(super) fn is_wrong(&self) -> bool {
        self.wrong
    }

    /// Some row leaves the column to its default.
    pub(super) fn uses_default(&self, column: usize) -> bool {
        match self.columns[..self.width.min(self.columns.len())]
            .iter()
            .position(|one| *one == column)
        {
            None => true,
            Some(position) => self
                .rows
                .iter()
                .any(|row| matches!(row[position], NodeEnum::SetToDefault(_))),
        }
    }

    /// Where everything is. `None` when the text is not of the plain form.
    pub(super) fn spans(&self, source: &Source<'_>, span: (usize, usize)) -> Option<Spans> {
        let location = usize::try_from(self.range.location).ok()?;
        let (_, name_end) = source.name(location)?;
        let mut at = source.token_from(name_end);
        let mut head_end = name_end;
        if self.range.alias.is_some() {
            if source.is_word(at, "as") {
                at += 1;
            }
            head_end = source.tokens.get(at)?.end;
            at += 1;
        }
        let mut column_list_end = None;
        if self.listed {
            if !source.is_mark(at, '(') {
                return None;
            }
            let close = source.closing(at)?;
            column_list_end = Some(source.tokens[close].start);
            head_end = source.tokens[close].end;
            at = close + 1;
        }
        if source.is_word(at, "overriding") {
            at += 3;
        }
        if self.width == 0 {
            let plain = source.is_word(at, "default") && source.is_word(at + 1, "values");
            let rows_end = source.tokens.get(at + 1)?.end;
            return plain.then(|| Spans {
                head_end,
                column_list_end,
                rows: vec![Vec::new()],
                rows_end,
            });
        }
        if !source.is_word(at, "values") {
            return None;
        }
        at += 1;
        let mut rows = Vec::with_capacity(self.rows.len());
        let rows_end;
        loop {
            if !source.is_mark(at, '(') {
                return None;
            }
            let close = source.closing(at)?;
            rows.push(cells(source, at, close));
            if !source.is_mark(close + 1, ',') {
                rows_end = source.tokens[close].end;
                break;
            }
            at = close + 2;
        }
        let same = rows.len() == self.rows.len()
            && rows
                .iter()
                .zip(&self.rows)
                .all(|(spans, cells)| spans.len() == cells.len())
            && rows_end <= span.1;
        same.then_some(Spans {
            head_end,
            column_list_end,
            rows,
            rows_end,
        })
    }
}

/// The bytes of each cell between two brackets.
fn cells(source: &Source<'_>, open: usize, close: usize) -> Vec<(usize, usize)> {
    let depth = source.tokens[open].depth + 1;
    let mut cells = Vec::new();
    let mut first = open + 1;
    for at in open + 1..=close {
        let separates =
            at == close || (source.is_mark(at, ',') && source.tokens[at].depth == depth);
        if separates && at > first {
            cells.push((source.tokens[first].start, source.tokens[at - 1].end));
        }
        if separates {
            first = at + 1;
        }
    }
    cells
}

/// A row with a set-returning function in it is as many rows, each with a key of its own.
pub(super) fn refuse_sets(cell: &NodeEnum) -> Result<(), PlanError> {
    let mut set = None;
    tree::walk(cell, &mut |child| {
        if let Child::Node(NodeEnum::FuncCall(call)) = child {
            let name = strings(&call.funcname).last().copied();
            set = set.or(name.filter(|name| analysis::is_set_returning(name)));
        }
    });
    match set {
        None => Ok(()),
        Some(name) => Err(PlanError::unsupported(format!(
            "set-returning function \"{name}\" cannot give the shard key of a row"
        ))
        .hint("Use INSERT ... SELECT.")),
    }
}

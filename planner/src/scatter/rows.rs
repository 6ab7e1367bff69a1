//! Shards' rows that are rows of the answer: concatenated, or merged in order.

use pg_query::{
    NodeEnum,
    protobuf::{self, SortByDir, SortByNulls},
};

use super::{
    Composition,
    clauses::{self, Base, Clauses, Composed, Span},
    forms::Forms,
    limits, shard_limit,
};
use crate::{
    analysis::is_star,
    functions,
    plan::{ColumnAt, Combine, Distinct, Rows, SortColumn},
    tree::{inner, nodes, strings},
};

/// The statement for each shard, with hidden columns for what ORDER BY and DISTINCT ON compare.
/// `whole`: rows of different shards are never equal in DISTINCT.
pub(super) fn compose(
    base: &Base<'_>,
    clauses: &Clauses,
    select: &protobuf::SelectStmt,
    forms: &Forms,
    whole: bool,
    volatile: bool,
) -> Option<Composition> {
    let plain_distinct = !whole
        && !select.distinct_clause.is_empty()
        && nodes(&select.distinct_clause).next().is_none();
    // DISTINCT sorts by what it shows, and where rows meet a server sorts them.
    let mut columns = Columns::new(base, clauses, select, forms, volatile || plain_distinct)?;
    columns.closed = plain_distinct;
    let mut order = Vec::with_capacity(clauses.sorts.len());
    for (node, span) in nodes(&select.sort_clause).zip(&clauses.sorts) {
        let NodeEnum::SortBy(sort) = node else {
            return None;
        };
        order.push(columns.sort(sort, *span)?);
    }
    let distinct = match (whole, select.distinct_clause.is_empty()) {
        (true, _) | (_, true) => None,
        (false, false) => Some(columns.distinct(select)?),
    };
    if !distinct.iter().all(|distinct| fits(distinct, &order)) {
        return None;
    }
    let limits = limits(base, select)?;
    let mut statement = Composed::default();
    statement
        .part(base, clauses.head, &[])
        .word(" ")
        .part(base, clauses.distinct, &[])
        .word(" ");
    for (index, target) in clauses.targets.iter().enumerate() {
        statement.word(if index > 0 { ", " } else { "" });
        statement.part(base, *target, &[]);
    }
    for (index, hidden) in columns.hidden.iter().enumerate() {
        statement.word(", ").part(base, *hidden, &[]);
        statement.word(&format!(" AS a67_h{index}"));
    }
    for part in [clauses.body, clauses.grouping, clauses.order] {
        if part.1 > part.0 {
            statement.word(" ").part(base, part, &[]);
        }
    }
    let mut locking = Composed::default();
    let (from, to) = clauses.locking;
    if to > from {
        if limits.ties {
            return None;
        }
        locking.word(" ").part(base, clauses.locking, &[]);
    } else {
        statement.pieces.extend(shard_limit(&limits));
    }
    Some(Composition {
        reusable: columns.reusable,
        statement: statement.pieces,
        combine: Combine::Rows(Rows {
            hidden: columns.hidden.len(),
            order,
            distinct,
            count: limits.count,
            offset: limits.offset,
            ties: limits.ties,
            locking: Some(locking.pieces).filter(|pieces| !pieces.is_empty()),
        }),
    })
}

/// ORDER BY begins with what DISTINCT ON has (`transformDistinctOnClause` in Postgres's
/// `parse_clause.c`): a server has seen that, here it may lack the proof.
fn fits(distinct: &Distinct, order: &[SortColumn]) -> bool {
    let Distinct::On(columns) = distinct else {
        return true;
    };
    let begins = order
        .iter()
        .take_while(|sort| columns.contains(&sort.column));
    let found = |column: &ColumnAt| begins.clone().any(|sort| sort.column == *column);
    begins.clone().count() == order.len() || columns.iter().all(found)
}

/// The outputs of a SELECT, and the hidden ones that are put behind them.
struct Columns<'s, 't> {
    base: &'s Base<'t>,
    forms: &'s Forms,
    targets: Vec<Target>,
    /// Outputs are not computed a second time.
    once: bool,
    /// Nothing may be added.
    closed: bool,
    hidden: Vec<Span>,
    hidden_forms: Vec<String>,
    /// No two expressions were taken for equal because of their literals.
    reusable: bool,
}

/// An output.
struct Target {
    name: Option<String>,
    form: String,
    star: bool,
    /// Its expression.
    span: Option<Span>,
}

impl<'s, 't> Columns<'s, 't> {
    fn new(
        base: &'s Base<'t>,
        clauses: &Clauses,
        select: &protobuf::SelectStmt,
        forms: &'s Forms,
        once: bool,
    ) -> Option<Columns<'s, 't>> {
        let mut targets = Vec::with_capacity(clauses.targets.len());
        for (node, span) in nodes(&select.target_list).zip(&clauses.targets) {
            let NodeEnum::ResTarget(target) = node else {
                return None;
            };
            let value = inner(&target.val)?;
            let star = is_star(node);
            let name = match target.name.as_str() {
                _ if star => None,
                "" => functions::output_name(value),
                name => Some(name.to_owned()),
            };
            targets.push(Target {
                name,
                form: forms.form(value),
                star,
                span: clauses::expression_of(base, *span, target),
            });
        }
        Some(Columns {
            base,
            forms,
            targets,
            once,
            closed: false,
            hidden: Vec::new(),
            hidden_forms: Vec::new(),
            reusable: true,
        })
    }

    fn sort(&mut self, sort: &protobuf::SortBy, span: Span) -> Option<SortColumn> {
        if !sort.use_op.is_empty() {
            return None;
        }
        let descending = sort.sortby_dir() == SortByDir::SortbyDesc;
        let nulls_first = match sort.sortby_nulls() {
            SortByNulls::SortbyNullsFirst => true,
            SortByNulls::SortbyNullsLast => false,
            _ => descending,
        };
        Some(SortColumn {
            column: self.column(inner(&sort.node)?, span)?,
            descending,
            nulls_first,
        })
    }

    /// Where the value of an element of ORDER BY or DISTINCT ON is; `within` is its text. Values
    /// that are compared come once more, in a format of ours.
    fn column(&mut self, node: &NodeEnum, within: Span) -> Option<ColumnAt> {
        if let NodeEnum::AConst(constant) = node {
            let Some(protobuf::a_const::Val::Ival(position)) = &constant.val else {
                return None;
            };
            let index = usize::try_from(position.ival).ok()?.checked_sub(1)?;
            if self.targets.iter().any(|target| target.star) {
                return Some(ColumnAt::Visible(index));
            }
            return self.output(index);
        }
        let bare = match node {
            NodeEnum::ColumnRef(column) => match strings(&column.fields).as_slice() {
                [name] if column.fields.len() == 1 => Some(*name),
                _ => None,
            },
            _ => None,
        };
        let wanted = self.forms.form(node);
        let named = |target: &Target| bare.is_some() && target.name.as_deref() == bare;
        let output = self.targets.iter().position(named);
        let same = || {
            let found = self.targets.iter().position(|target| target.form == wanted);
            found.inspect(|_| self.reusable &= !super::holds_literal(&wanted))
        };
        match output.or_else(same) {
            Some(index) => self.output(index),
            None if self.closed => None,
            None => {
                let span = clauses::extent(self.base, within, node)?;
                Some(self.hide(span, wanted))
            }
        }
    }

    /// The value of an output.
    fn output(&mut self, index: usize) -> Option<ColumnAt> {
        let target = self.targets.get(index)?;
        if !self.once {
            let (span, form) = (target.span?, target.form.clone());
            return Some(self.hide(span, form));
        }
        let starred = self.targets[..index].iter().any(|target| target.star);
        (!starred).then_some(ColumnAt::Visible(index))
    }

    fn hide(&mut self, span: Span, form: String) -> ColumnAt {
        let known = self.hidden_forms.iter().position(|known| *known == form);
        if let Some(index) = known {
            self.reusable &= !super::holds_literal(&form);
            return ColumnAt::Hidden(index);
        }
        self.hidden.push(span);
        self.hidden_forms.push(form);
        ColumnAt::Hidden(self.hidden.len() - 1)
    }

    fn distinct(&mut self, select: &protobuf::SelectStmt) -> Option<Distinct> {
        let on: Vec<&NodeEnum> = nodes(&select.distinct_clause).collect();
        if on.is_empty() {
            return Some(Distinct::Rows);
        }
        // With other literals they may be columns of ORDER BY, or be none any more.
        let literal = |node: &&NodeEnum| super::holds_literal(&self.forms.form(node));
        self.reusable &= !on.iter().any(literal);
        // Which row of a group is kept is told by ORDER BY, which starts with the same columns.
        let all = (0, self.base.source.text.len());
        let columns: Option<Vec<ColumnAt>> = on.iter().map(|node| self.column(node, all)).collect();
        columns.map(Distinct::On)
    }
}

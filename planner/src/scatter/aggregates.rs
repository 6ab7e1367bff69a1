//! Groups that have rows on several shards: each shard makes a part of every group, and a last
//! statement over the parts makes the groups, and all that is done with them.
//!
//! The last statement is the client's own, with aggregates replaced by what puts their parts
//! together, and everything else that rows are grouped by replaced by a column of the parts.
//!
//! A part is of one group of the client's: it is grouped by nothing else. A column that is not
//! certain to have one value in each group ends it; the statement is gathered then.

use std::collections::HashSet;

use pg_query::{NodeEnum, protobuf};

use super::{
    Composition,
    clauses::{self, Base, Clauses, Composed, Edit, Span},
    forms::{self, Forms},
    has_with,
    separable::is_aggregate,
};
use crate::{
    analysis::{Analysis, is_star, listed},
    facts::ColumnId,
    functions, holes,
    plan::{Combine, FinalPiece, Piece, Template},
    scope::{self, Lookup},
    sql::identifier,
    tree::{Child, children, inner, nodes, strings},
};

/// Aggregates whose parts are put together by the same aggregate.
const SAME: &[&str] = &[
    "min", "max", "bool_and", "bool_or", "every", "bit_and", "bit_or", "bit_xor",
];

/// Aggregates of which DISTINCT values may come from anywhere: NULLs do not count in them.
const DISTINCT: &[&str] = &[
    "count", "sum", "avg", "min", "max", "bool_and", "bool_or", "every", "bit_and", "bit_or",
];

/// What shards run, and the last statement.
pub(super) fn compose(
    analysis: &Analysis<'_>,
    base: &Base<'_>,
    clauses: &Clauses,
    select: &protobuf::SelectStmt,
    forms: &Forms,
) -> Option<Composition> {
    let mut split = Split::new(analysis, base, select, forms);
    for (node, span) in nodes(&select.group_clause).zip(&clauses.groups) {
        split.group(node, *span, clauses, select)?;
    }
    split.named = split.columns.len();
    if split.sets && !split.expressions.is_empty() {
        // Servers before 18 do not take such an expression for the group's value in HAVING.
        return None;
    }
    split.targets(clauses, select)?;
    let within = (clauses.grouping.0, clauses.order.1.max(clauses.grouping.1));
    let having = select
        .having_clause
        .as_deref()
        .and_then(|node| node.node.as_ref());
    for node in having.into_iter().chain(nodes(&select.window_clause)) {
        split.walk(node, within)?;
    }
    for (node, span) in nodes(&select.sort_clause).zip(&clauses.sorts) {
        let NodeEnum::SortBy(sort) = node else {
            return None;
        };
        let sorted = inner(&sort.node)?;
        if !split.is_output(sorted) {
            split.walk(sorted, *span)?;
        }
    }
    for node in nodes(&select.distinct_clause) {
        if !split.is_output(node) {
            split.walk(node, clauses.distinct)?;
        }
    }
    if has_with(clauses, base) && split.subqueries {
        return None;
    }
    split.finish(clauses, select)
}

/// A column of the parts.
struct Column {
    /// What it is on a shard.
    text: Template,
    form: String,
    /// Groups have one value of it.
    key: bool,
}

/// What a name in GROUP BY means.
enum Listed<'s> {
    Column,
    Output(&'s NodeEnum),
}

struct Split<'s, 't> {
    analysis: &'s Analysis<'t>,
    base: &'s Base<'t>,
    forms: &'s Forms,
    outputs: Vec<Option<String>>,
    columns: Vec<Column>,
    edits: Vec<Edit>,
    /// Forms of what the client groups by, other than plain columns.
    expressions: Vec<String>,
    /// Stored columns that the client groups by.
    grouped: HashSet<ColumnId>,
    /// How many columns are what the client groups by.
    named: usize,
    /// Grouping sets: a column that is none of them has no value in a group.
    sets: bool,
    subqueries: bool,
}

impl<'s, 't> Split<'s, 't> {
    fn new(
        analysis: &'s Analysis<'t>,
        base: &'s Base<'t>,
        select: &protobuf::SelectStmt,
        forms: &'s Forms,
    ) -> Split<'s, 't> {
        let outputs = nodes(&select.target_list).map(|node| match node {
            NodeEnum::ResTarget(target) if !target.name.is_empty() => Some(target.name.clone()),
            NodeEnum::ResTarget(target) => functions::output_name(inner(&target.val)?),
            _ => None,
        });
        Split {
            analysis,
            base,
            forms,
            outputs: outputs.collect(),
            columns: Vec::new(),
            edits: Vec::new(),
            expressions: Vec::new(),
            grouped: HashSet::new(),
            named: 0,
            sets: nodes(&select.group_clause).any(|n| matches!(n, NodeEnum::GroupingSet(_))),
            subqueries: false,
        }
    }

    /// ORDER BY and DISTINCT ON mean an output by a bare name or a number.
    fn is_output(&self, node: &NodeEnum) -> bool {
        match node {
            NodeEnum::AConst(_) => true,
            NodeEnum::ColumnRef(column) => {
                let names = strings(&column.fields);
                let named = |output: &Option<String>| output.as_deref() == names.first().copied();
                names.len() == 1 && column.fields.len() == 1 && self.outputs.iter().any(named)
            }
            _ => false,
        }
    }

    /// Notes an element of GROUP BY, before outputs are looked at, and puts its column in its place.
    fn group(
        &mut self,
        node: &NodeEnum,
        span: Span,
        clauses: &Clauses,
        select: &protobuf::SelectStmt,
    ) -> Option<()> {
        let mut each = |list: &[pg_query::Node]| {
            nodes(list).try_for_each(|node| self.group(node, span, clauses, select))
        };
        match node {
            NodeEnum::GroupingSet(set) => each(&set.content),
            // `(a, b)` is a list here, `ROW(a, b)` a value.
            NodeEnum::RowExpr(row)
                if row.row_format() == protobuf::CoercionForm::CoerceImplicitCast =>
            {
                each(&row.args)
            }
            NodeEnum::AConst(_) => {
                // A position: the output is what rows are grouped by.
                let meant = listed(select, node);
                if std::ptr::eq(meant, node) {
                    return None;
                }
                self.group_output(meant, clauses, select).map(|_| ())
            }
            NodeEnum::ColumnRef(column) => {
                let name = self.base.source.name(place(node)?)?;
                let at = match self.listed(column, select)? {
                    Listed::Column => self.group_key(node, name),
                    Listed::Output(meant) => self.group_output(meant, clauses, select)?,
                };
                self.put(name, at);
                Some(())
            }
            other => {
                let span = clauses::extent(self.base, span, other)?;
                let at = self.group_key(other, span);
                self.put(span, at);
                Some(())
            }
        }
    }

    /// A bare name is a column of FROM first, then an output (the manual, GROUP BY). `None`: it is
    /// not certain which.
    fn listed<'n>(
        &self,
        column: &protobuf::ColumnRef,
        select: &'n protobuf::SelectStmt,
    ) -> Option<Listed<'n>> {
        let names = strings(&column.fields);
        let [name] = names.as_slice() else {
            return (names.len() == column.fields.len()).then_some(Listed::Column);
        };
        let visible = &self.analysis.blocks[0].names.visible;
        let found = scope::lookup(&self.analysis.items, visible, name);
        let at = self.outputs.iter().position(|o| o.as_deref() == Some(name));
        let output = match at.and_then(|at| nodes(&select.target_list).nth(at)) {
            Some(NodeEnum::ResTarget(target)) => Some(inner(&target.val)?),
            _ => None,
        };
        match (found, output) {
            (Lookup::One(_), _) | (Lookup::Unsure, None) => Some(Listed::Column),
            (Lookup::None, Some(output)) => Some(Listed::Output(output)),
            // Whichever it is, it is the same.
            (Lookup::Unsure, Some(NodeEnum::ColumnRef(output))) => {
                (strings(&output.fields) == [*name]).then_some(Listed::Column)
            }
            (Lookup::None, None) | (Lookup::Unsure, Some(_)) => None,
        }
    }

    /// The column of an output that rows are grouped by.
    fn group_output(
        &mut self,
        meant: &NodeEnum,
        clauses: &Clauses,
        select: &protobuf::SelectStmt,
    ) -> Option<usize> {
        let mut targets = nodes(&select.target_list).zip(&clauses.targets);
        let (target, span) = targets.find_map(|(node, span)| match node {
            NodeEnum::ResTarget(target)
                if inner(&target.val).is_some_and(|v| std::ptr::eq(v, meant)) =>
            {
                Some((target, *span))
            }
            _ => None,
        })?;
        if self.holds_aggregate(meant) {
            return None;
        }
        let span = clauses::expression_of(self.base, span, target)?;
        Some(self.group_key(meant, span))
    }

    /// The column of something that the client groups by.
    fn group_key(&mut self, node: &NodeEnum, span: Span) -> usize {
        let form = self.forms.form(node);
        self.grouped.extend(self.forms.column(node));
        if !matches!(node, NodeEnum::ColumnRef(_)) && !self.forms.is_part(node) {
            self.expressions.push(form.clone());
        }
        self.key(self.part(span), form)
    }

    /// A column of the parts takes the place of a part of the client's text.
    fn put(&mut self, span: Span, at: usize) {
        self.edits.push(Edit::new(span, format!("a67.c{}", at + 1)));
    }

    fn holds_aggregate(&self, node: &NodeEnum) -> bool {
        super::separable::holds_aggregate(self.analysis, node)
    }

    fn part(&self, span: Span) -> Template {
        let mut text = Composed::default();
        text.part(self.base, span, &[]);
        text.pieces
    }

    /// The column that has a key; made if it is not there yet.
    fn key(&mut self, text: Template, form: String) -> usize {
        self.known_key(&form).unwrap_or_else(|| {
            self.columns.push(Column {
                text,
                form,
                key: true,
            });
            self.columns.len() - 1
        })
    }

    fn known_key(&self, form: &str) -> Option<usize> {
        let mut columns = self.columns.iter();
        columns.position(|column| column.key && column.form == form)
    }

    fn partial(&mut self, text: Template) -> usize {
        self.columns.push(Column {
            text,
            form: String::new(),
            key: false,
        });
        self.columns.len() - 1
    }

    fn targets(&mut self, clauses: &Clauses, select: &protobuf::SelectStmt) -> Option<()> {
        let mut targets = nodes(&select.target_list).zip(&clauses.targets).enumerate();
        targets.try_for_each(|(index, (node, span))| {
            let NodeEnum::ResTarget(target) = node else {
                return None;
            };
            if is_star(node) {
                return None;
            }
            let value = inner(&target.val)?;
            let expression = clauses::expression_of(self.base, *span, target)?;
            if !self.replace_group(value, expression) {
                self.walk(value, *span)?;
            }
            if target.name.is_empty() {
                let name = self.outputs[index].clone()?;
                let label = format!(" AS {}", identifier(&name));
                self.edits.push(Edit::new((span.1, span.1), label));
            }
            Some(())
        })
    }

    /// Puts the column of a group's value in the place of an expression that rows are grouped by.
    fn replace_group(&mut self, node: &NodeEnum, span: Span) -> bool {
        if self.expressions.is_empty() {
            return false;
        }
        let form = self.forms.form(node);
        let known = self.expressions.contains(&form);
        let Some(at) = self.known_key(&form).filter(|_| known) else {
            return false;
        };
        self.put(span, at);
        true
    }

    /// Replaces what the last statement cannot compute from the parts.
    fn walk(&mut self, node: &NodeEnum, within: Span) -> Option<()> {
        if is_aggregate(self.analysis, node) {
            let NodeEnum::FuncCall(call) = node else {
                return None;
            };
            return self.aggregate(call);
        }
        if !self.expressions.is_empty()
            && !matches!(node, NodeEnum::ColumnRef(_))
            && self.expressions.contains(&self.forms.form(node))
        {
            let span = clauses::extent(self.base, within, node)?;
            return self.replace_group(node, span).then_some(());
        }
        match node {
            NodeEnum::ColumnRef(reference) => {
                if strings(&reference.fields).len() < reference.fields.len() {
                    return None;
                }
                let span = self.base.source.name(place(node)?)?;
                self.column(node, span)
            }
            NodeEnum::AIndirection(_) if self.forms.is_part(node) => {
                let span = clauses::extent(self.base, within, node)?;
                self.column(node, span)
            }
            NodeEnum::SubLink(_) => {
                // It may read what every shard has, but nothing of the rows that are grouped.
                self.subqueries = true;
                let mut own = true;
                crate::tree::walk(node, &mut |child| {
                    own &= !matches!(child, Child::Node(NodeEnum::ColumnRef(_)));
                });
                let reads = self.analysis.occurrences.iter().any(|one| {
                    one.found.distributed().is_some() && one.block.is_some_and(|block| block != 0)
                });
                (own && !reads).then_some(())
            }
            _ => {
                let mut below = Vec::new();
                children(node, &mut |child| below.push(child));
                below.into_iter().try_for_each(|child| match child {
                    Child::Node(node) => self.walk(node, within),
                    Child::Select(_) | Child::Range(_) | Child::Strange => None,
                })
            }
        }
    }

    /// Puts the column of the parts that a column of FROM became in its place.
    fn column(&mut self, node: &NodeEnum, span: Span) -> Option<()> {
        let form = self.forms.form(node);
        if self.known_key(&form).is_none() && (self.sets || !self.depends_on_key(node)) {
            return None;
        }
        let at = self.key(self.part(span), form);
        self.put(span, at);
        Some(())
    }

    /// The client groups by the primary key of the relation that a column is one of (the manual,
    /// GROUP BY: functional dependency).
    fn depends_on_key(&self, node: &NodeEnum) -> bool {
        let Some(column) = self.forms.column(node) else {
            return false;
        };
        let Some(relation) = forms::relation(self.analysis, column) else {
            return false;
        };
        let is_grouped = |name: &String| {
            let at = relation.columns.iter().position(|one| one.name == *name);
            at.is_some_and(|at| {
                self.grouped.contains(&ColumnId {
                    occurrence: column.occurrence,
                    column: at,
                })
            })
        };
        !relation.primary_key.is_empty() && relation.primary_key.iter().all(is_grouped)
    }

    fn aggregate(&mut self, call: &protobuf::FuncCall) -> Option<()> {
        let name = match strings(&call.funcname).as_slice() {
            [name] | ["pg_catalog", name] => (*name).to_owned(),
            _ => return None,
        };
        let plain = call.agg_order.is_empty()
            && !call.agg_within_group
            && !call.func_variadic
            && !self.analysis.catalog.functions.contains_key(&name);
        if !plain {
            return None;
        }
        let whole = self.call_span(call)?;
        let pieces = if call.agg_distinct {
            self.distinct(call, &name)?
        } else {
            self.parts(call, &name, whole)?
        };
        self.edits.push(Edit {
            span: whole,
            pieces: vec![Piece::Text(pieces)],
        });
        Some(())
    }

    /// `name(...) FILTER (...)`
    fn call_span(&self, call: &protobuf::FuncCall) -> Option<Span> {
        let source = &self.base.source;
        let start = usize::try_from(call.location).ok()?;
        let (_, end) = source.call(start)?;
        let behind = source.token_from(end);
        if call.agg_filter.is_none() {
            return Some((start, end));
        }
        if !source.is_word(behind, "filter") || !source.is_mark(behind + 1, '(') {
            return None;
        }
        let close = source.closing(behind + 1)?;
        Some((start, source.tokens[close].end))
    }

    fn parts(&mut self, call: &protobuf::FuncCall, name: &str, whole: Span) -> Option<String> {
        if SAME.contains(&name) {
            let at = self.partial(self.part(whole));
            return Some(format!("{name}(a67.c{})", at + 1));
        }
        match name {
            "count" => {
                let at = self.partial(self.part(whole));
                Some(format!("coalesce(sum(a67.c{}), 0)::bigint", at + 1))
            }
            "sum" => {
                let at = self.partial(self.part(whole));
                Some(format!("sum(a67.c{})::{}", at + 1, holes::type_name(at)))
            }
            "avg" => {
                let named = self
                    .base
                    .source
                    .name(usize::try_from(call.location).ok()?)?;
                let mut other = |name: &str| {
                    let mut text = Composed::default();
                    text.part(self.base, whole, &[Edit::new(named, name)]);
                    self.partial(text.pieces)
                };
                let sum = other("pg_catalog.sum");
                let count = other("pg_catalog.count");
                Some(holes::average(sum, count))
            }
            _ => None,
        }
    }

    /// Rows are also grouped by the values, so that each comes at most once from every shard.
    fn distinct(&mut self, call: &protobuf::FuncCall, name: &str) -> Option<String> {
        let [argument] = call.args.as_slice() else {
            return None;
        };
        let argument = argument.node.as_ref()?;
        if !DISTINCT.contains(&name) || matches!(argument, NodeEnum::RowExpr(_)) {
            return None;
        }
        let source = &self.base.source;
        let start = source.token_at(usize::try_from(call.location).ok()?)?;
        let open = (start..start + 4).find(|at| source.is_mark(*at, '('))?;
        let close = source.closing(open)?;
        if !source.is_word(open + 1, "distinct") {
            return None;
        }
        let span = (
            source.tokens.get(open + 2)?.start,
            source.tokens.get(close - 1)?.end,
        );
        let mut text = Composed::default();
        if call.agg_filter.is_some() {
            let filter = (source.tokens.get(close + 3)?.start, self.call_span(call)?.1);
            let last = source.token_from(filter.1).checked_sub(2)?;
            let condition = (filter.0, source.tokens.get(last)?.end);
            let word = source.is_word(close + 3, "where");
            let condition = (source.tokens.get(close + 4)?.start, condition.1);
            if !word {
                return None;
            }
            text.word("CASE WHEN ")
                .part(self.base, condition, &[])
                .word(" THEN ")
                .part(self.base, span, &[])
                .word(" END");
        } else {
            text.part(self.base, span, &[]);
        }
        let printed = format!("distinct {:?}", text.pieces);
        let at = self.key_of_distinct(text.pieces, printed);
        Some(format!("{name}(DISTINCT a67.c{})", at + 1))
    }

    /// Not one of the client's groups: the last statement does not group by it.
    fn key_of_distinct(&mut self, text: Template, form: String) -> usize {
        self.key(text, form)
    }

    fn finish(mut self, clauses: &Clauses, select: &protobuf::SelectStmt) -> Option<Composition> {
        self.edits.sort_by_key(|edit| edit.span);
        self.edits
            .dedup_by(|a, b| a.span == b.span && a.pieces == b.pieces);
        let base = self.base;
        let mut shard = Composed::default();
        shard.part(base, clauses.head, &[]).word(" ");
        for (index, column) in self.columns.iter().enumerate() {
            shard.word(if index > 0 { ", " } else { "" });
            shard.pieces.extend(column.text.iter().cloned());
            shard.word(&format!(" AS c{}", index + 1));
        }
        if self.columns.is_empty() {
            return None;
        }
        shard.word(" ").part(base, clauses.body, &[]);
        let keys: Vec<usize> = (0..self.columns.len())
            .filter(|at| self.columns[*at].key)
            .collect();
        if !keys.is_empty() {
            let list: Vec<String> = keys.iter().map(|at| (at + 1).to_string()).collect();
            shard.word(&format!(" GROUP BY {}", list.join(", ")));
        }
        let mut last = Composed::default();
        last.word("SELECT ")
            .part(base, clauses.distinct, &self.edits)
            .word(" ");
        for (index, target) in clauses.targets.iter().enumerate() {
            last.word(if index > 0 { ", " } else { "" });
            last.part(base, *target, &self.edits);
        }
        let mut pieces = holes::in_last(last.pieces);
        pieces.push(FinalPiece::Piece(Piece::Text(" FROM ".to_owned())));
        pieces.push(FinalPiece::Rows);
        let mut rest = Composed::default();
        self.put_grouping(&mut rest, clauses, select);
        for part in [clauses.order, clauses.limit] {
            rest.word(" ").part(base, part, &self.edits);
        }
        pieces.extend(holes::in_last(rest.pieces));
        let literal = |form: &String| super::holds_literal(form);
        Some(Composition {
            reusable: !self.expressions.iter().any(literal),
            statement: merged(shard.pieces),
            combine: Combine::Final(pieces),
        })
    }

    /// GROUP BY, HAVING and WINDOW. Columns that depend on the client's groups are grouped by, too.
    fn put_grouping(&self, rest: &mut Composed, clauses: &Clauses, select: &protobuf::SelectStmt) {
        let (start, end) = clauses.grouping;
        rest.word(" ");
        let Some(last) = clauses.groups.last().filter(|_| !self.sets) else {
            rest.part(self.base, (start, end), &self.edits);
            return;
        };
        rest.part(self.base, (start, last.1), &self.edits);
        let grouped = |column: &&usize| {
            let (at, column) = (**column, &self.columns[**column]);
            at >= self.named && column.key && !column.form.starts_with("distinct ")
        };
        let all: Vec<usize> = (0..self.columns.len()).collect();
        for at in all.iter().filter(grouped) {
            rest.word(&format!(", a67.c{}", at + 1));
        }
        rest.part(self.base, (last.1, end), &self.edits);
        debug_assert!(!select.group_clause.is_empty());
    }
}

/// Where a node says that it is.
fn place(node: &NodeEnum) -> Option<usize> {
    clauses::location(node).and_then(|at| usize::try_from(at).ok())
}

/// Texts that stand side by side become one.
fn merged(pieces: Template) -> Template {
    let mut text = Composed::default();
    for piece in pieces {
        match piece {
            Piece::Text(part) => {
                text.word(&part);
            }
            other => text.pieces.push(other),
        }
    }
    text.pieces
}

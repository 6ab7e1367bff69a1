//! Expressions: what a condition proves, what a column reference means, what hangs inside.

use std::{collections::HashMap, rc::Rc};

use pg_query::{
    NodeEnum,
    protobuf::{self, AExprKind, SubLinkType},
};

use super::{Analysis, CLIENT_TEXT, Env, Filter, Naming, Place, Role, bare_name};
use crate::{
    catalog::KeyType,
    facts::{self, ColumnId, Constant, elements, is_equality},
    filter, functions,
    scatter::separable::is_aggregate,
    scope::{self, Meaning, Names, Output, Owner},
    tree::{self, Child, conjuncts, inner, nodes, strings},
};

/// One side of a comparison.
enum Operand<'t> {
    Column(ColumnId),
    /// A constant that a subquery in FROM gives, and the text it is in.
    Given(&'t NodeEnum, usize),
    Other(&'t NodeEnum),
}

impl<'t> Analysis<'t> {
    // ---- conditions ----

    /// A condition that holds for every row that matters in `scope`.
    pub(super) fn condition(
        &mut self,
        condition: &'t NodeEnum,
        scope: usize,
        names: &Rc<Names>,
        env: &Env<'t>,
    ) {
        for conjunct in conjuncts(condition) {
            match conjunct {
                NodeEnum::SubLink(link) => self.sublink(link, scope, names, env, true),
                NodeEnum::AExpr(expr) => {
                    self.comparison(expr, scope, names);
                    self.visit(conjunct, scope, names, env);
                }
                other => self.visit(other, scope, names, env),
            }
        }
    }

    fn comparison(&mut self, expr: &'t protobuf::AExpr, scope: usize, names: &Names) {
        if !is_equality(&expr.name) {
            self.limits(expr, scope, names);
            return;
        }
        let (Some(left), Some(right)) = (inner(&expr.lexpr), inner(&expr.rexpr)) else {
            return;
        };
        match expr.kind() {
            AExprKind::AexprOp => self.equality(left, right, scope, names),
            AExprKind::AexprIn | AExprKind::AexprOpAny => {
                let Operand::Column(column) = self.operand(left, names) else {
                    return;
                };
                let Some(values) = elements(right) else {
                    return;
                };
                self.one_of(column, &values, scope, self.text);
            }
            _ => {}
        }
    }

    /// `key < 5`, `5 <= key`, `key BETWEEN 1 AND 5`.
    fn limits(&mut self, expr: &'t protobuf::AExpr, scope: usize, names: &Names) {
        let (Some(left), Some(right)) = (inner(&expr.lexpr), inner(&expr.rexpr)) else {
            return;
        };
        match expr.kind() {
            AExprKind::AexprOp => {
                let Some(above) = facts::limit(&expr.name) else {
                    return;
                };
                if let Operand::Column(column) = self.operand(left, names) {
                    self.limit(column, right, scope, above);
                } else if let Operand::Column(column) = self.operand(right, names) {
                    self.limit(column, left, scope, !above);
                }
            }
            AExprKind::AexprBetween => {
                let (Operand::Column(column), Some(ends)) =
                    (self.operand(left, names), elements(right))
                else {
                    return;
                };
                if let [lower, upper] = ends.as_slice() {
                    self.limit(column, lower, scope, true);
                    self.limit(column, upper, scope, false);
                }
            }
            _ => {}
        }
    }

    /// Strings have the order of their collation, which ranges do not know.
    fn limit(&mut self, column: ColumnId, value: &NodeEnum, scope: usize, above: bool) {
        let Some(family) = self
            .family(column)
            .filter(|family| *family != KeyType::Text)
        else {
            return;
        };
        let types = self.context.parameter_types;
        match facts::constant(value, family, types, self.text == CLIENT_TEXT) {
            None | Some(Constant::Null) => {}
            Some(value) => self.facts.limit(scope, column, value, above),
        }
    }

    fn equality(&mut self, left: &'t NodeEnum, right: &'t NodeEnum, scope: usize, names: &Names) {
        if let (NodeEnum::RowExpr(left), NodeEnum::RowExpr(right)) = (left, right) {
            if left.args.len() == right.args.len() {
                for (left, right) in nodes(&left.args).zip(nodes(&right.args)) {
                    self.equality(left, right, scope, names);
                }
            }
            return;
        }
        if let Operand::Column(column) = self.operand(left, names) {
            self.column_equals(column, right, scope, names);
        } else if let Operand::Column(column) = self.operand(right, names) {
            self.column_equals(column, left, scope, names);
        }
    }

    /// A column has the value of an expression.
    pub(super) fn column_equals(
        &mut self,
        column: ColumnId,
        value: &'t NodeEnum,
        scope: usize,
        names: &Names,
    ) {
        match self.operand(value, names) {
            Operand::Column(other) => self.columns_equal(scope, column, other),
            Operand::Given(value, text) => self.equals_given(column, value, text, scope),
            Operand::Other(value) => self.one_of(column, &[value], scope, self.text),
        }
    }

    fn operand(&self, node: &'t NodeEnum, names: &Names) -> Operand<'t> {
        match scope::meaning_of(&self.items, names, node) {
            Meaning::Column(column) => Operand::Column(column),
            Meaning::Constant(item, output) => {
                let item = &self.items[item];
                let constant = item
                    .columns
                    .as_ref()
                    .and_then(|columns| columns[output].constant);
                constant.map_or(Operand::Other(node), |value| {
                    Operand::Given(value, item.text)
                })
            }
            Meaning::Item(_) | Meaning::Star | Meaning::Unknown => Operand::Other(node),
        }
    }

    /// Two columns are equal; a fact only where they hash alike.
    pub(super) fn columns_equal(&mut self, scope: usize, left: ColumnId, right: ColumnId) {
        if let (Some(family), Some(other)) = (self.family(left), self.family(right))
            && family == other
        {
            self.facts.equal(scope, left, right);
        }
    }

    pub(super) fn one_of(
        &mut self,
        column: ColumnId,
        values: &[&'t NodeEnum],
        scope: usize,
        text: usize,
    ) {
        let Some(family) = self.family(column) else {
            return;
        };
        let types = self.context.parameter_types;
        let constants: Option<Vec<_>> = values
            .iter()
            .map(|value| facts::constant(value, family, types, text == CLIENT_TEXT))
            .collect();
        if let Some(constants) = constants.filter(|constants| !constants.is_empty()) {
            self.facts.one_of(scope, column, constants);
        }
    }

    /// A constant that a subquery gives has a type of its own before it is compared: a plain
    /// string is text, and so is a parameter without a type.
    pub(super) fn equals_given(
        &mut self,
        column: ColumnId,
        value: &'t NodeEnum,
        text: usize,
        scope: usize,
    ) {
        let Some(family) = self.family(column) else {
            return;
        };
        if self.keeps_type(value, family) {
            self.one_of(column, &[value], scope, text);
        }
    }

    fn keeps_type(&self, value: &NodeEnum, family: KeyType) -> bool {
        use protobuf::a_const::Val;
        match value {
            NodeEnum::TypeCast(_) => true,
            NodeEnum::AConst(constant) => match constant.val {
                Some(Val::Sval(_)) => family == KeyType::Text,
                Some(Val::Ival(_) | Val::Fval(_)) => family == KeyType::Integer,
                _ => false,
            },
            NodeEnum::ParamRef(parameter) => {
                let index = usize::try_from(parameter.number)
                    .unwrap_or(0)
                    .wrapping_sub(1);
                self.context
                    .parameter_types
                    .get(index)
                    .is_some_and(|oid| *oid != 0)
            }
            _ => false,
        }
    }

    // ---- walking ----

    /// An expression that proves nothing; what is inside counts.
    pub(super) fn visit(
        &mut self,
        node: &'t NodeEnum,
        scope: usize,
        names: &Rc<Names>,
        env: &Env<'t>,
    ) {
        if !self.budget().spend(1) {
            return;
        }
        match node {
            NodeEnum::SubLink(link) => self.sublink(link, scope, names, env, false),
            NodeEnum::SelectStmt(select) => {
                let place = Place {
                    scope,
                    outer: names.clone(),
                    env: env.clone(),
                    role: Role::Expression,
                };
                self.select(select, &place);
            }
            NodeEnum::AIndirection(part) if self.part(part, names) => {
                for node in nodes(&part.indirection) {
                    self.visit(node, scope, names, env);
                }
            }
            NodeEnum::ColumnRef(column) => {
                self.traits
                    .note(self.lookup(), node, self.text != CLIENT_TEXT);
                let part = self.naming.is_some_and(|one| std::ptr::eq(one, column));
                let naming = if part { Naming::Part } else { Naming::Inside };
                self.column(column, names, naming);
            }
            _ => {
                self.traits
                    .note(self.lookup(), node, self.text != CLIENT_TEXT);
                self.outer_aggregate |= self.belongs_outside(node, names);
                self.visit_children(node, scope, names, env);
            }
        }
    }

    /// An aggregate over columns of outer levels alone is one of those levels (manual, "Aggregate
    /// Expressions").
    fn belongs_outside(&self, node: &NodeEnum, names: &Names) -> bool {
        let nested = self
            .block
            .is_some_and(|block| self.blocks[block].parent.is_some());
        if !nested || !is_aggregate(self, node) {
            return false;
        }
        let (mut any, mut own) = (false, false);
        tree::walk(node, &mut |child| {
            if let Child::Node(NodeEnum::ColumnRef(column)) = child {
                any = true;
                let owner = scope::owner(&self.items, names, column);
                own |= matches!(owner, Owner::Item(item) if self.items[item].block == self.block);
            }
        });
        any && !own
    }

    pub(super) fn visit_children(
        &mut self,
        node: &'t NodeEnum,
        scope: usize,
        names: &Rc<Names>,
        env: &Env<'t>,
    ) {
        let mut below = Vec::new();
        tree::children(node, &mut |child| below.push(child));
        for child in below {
            match child {
                Child::Node(node) => self.visit(node, scope, names, env),
                Child::Select(select) => {
                    let place = Place {
                        scope,
                        outer: names.clone(),
                        env: env.clone(),
                        role: Role::Expression,
                    };
                    self.select(select, &place);
                }
                Child::Range(_) | Child::Strange => self.strange = true,
            }
        }
    }

    fn sublink(
        &mut self,
        link: &'t protobuf::SubLink,
        scope: usize,
        names: &Rc<Names>,
        env: &Env<'t>,
        conjunct: bool,
    ) {
        let names_operator = link.oper_name.iter().any(|name| name.node.is_some());
        if names_operator {
            let operator = strings(&link.oper_name).last().map_or("", |name| *name);
            self.traits.note_operator(self.catalog, operator);
        }
        let tested = inner(&link.testexpr);
        if let Some(tested) = tested {
            self.visit(tested, scope, names, env);
        }
        let inside = self.facts.scope(Some(scope));
        let place = Place {
            scope: inside,
            outer: names.clone(),
            env: env.clone(),
            role: Role::Expression,
        };
        self.link = Some(link.sub_link_type());
        let outputs = inner(&link.subselect).and_then(|node| self.query(node, &place));
        let equality = !names_operator || is_equality(&link.oper_name);
        let (Some(tested), Some(outputs), SubLinkType::AnySublink, true) =
            (tested, outputs, link.sub_link_type(), equality)
        else {
            return;
        };
        let tested: Vec<&'t NodeEnum> = match tested {
            NodeEnum::RowExpr(row) => nodes(&row.args).collect(),
            other => vec![other],
        };
        if tested.len() != outputs.len() {
            return;
        }
        // `x IN (SELECT y ...)`: inside, only rows with y = x can have an influence on the result.
        // Where it is a condition, there also is such a row.
        for (tested, output) in tested.into_iter().zip(outputs) {
            if let (Operand::Column(left), Some(right)) =
                (self.operand(tested, names), output.column)
            {
                // A row whose column is NULL has an influence on NOT IN as well.
                if conjunct || self.is_not_null(right) {
                    self.columns_equal(inside, left, right);
                }
                if conjunct {
                    self.columns_equal(scope, left, right);
                }
            }
        }
    }

    fn is_not_null(&self, column: ColumnId) -> bool {
        match self.occurrences[column.occurrence].found {
            scope::Found::Known(relation) | scope::Found::Unread(relation) => {
                relation.columns[column.column].not_null
            }
            scope::Found::Proxy(_) | scope::Found::Home => false,
        }
    }

    // ---- filters ----

    /// Conditions of a query level that can already be tested where a relation's rows are.
    pub(super) fn note_filters(&mut self, condition: &'t NodeEnum, scope: usize, names: &Names) {
        for conjunct in conjuncts(condition) {
            if !self.budget().spend(names.visible.items.len()) {
                return;
            }
            if let Some((occurrence, sql)) = self.filter(conjunct, scope, names) {
                self.occurrences[occurrence].filters.push(Filter {
                    sql,
                    node: Some(conjunct),
                });
                continue;
            }
            for (occurrence, sql) in self.implied(conjunct, scope, names) {
                self.occurrences[occurrence]
                    .filters
                    .push(Filter { sql, node: None });
            }
        }
    }

    /// A condition on the columns of one occurrence, as SQL.
    fn filter(&self, node: &NodeEnum, scope: usize, names: &Names) -> Option<(usize, String)> {
        let mut columns = Vec::new();
        let column = |reference: &protobuf::ColumnRef| {
            let Meaning::Column(column) = scope::meaning(&self.items, names, reference) else {
                return None;
            };
            columns.push(column);
            match self.occurrences[column.occurrence].found {
                scope::Found::Known(relation) | scope::Found::Unread(relation) => {
                    relation.columns.get(column.column)
                }
                scope::Found::Proxy(_) | scope::Found::Home => None,
            }
        };
        let sql = filter::render(node, self.catalog, column)?;
        let first = columns.first()?.occurrence;
        let one = columns.iter().all(|column| column.occurrence == first);
        (one && self.occurrences[first].scope == scope).then_some((first, sql))
    }

    /// What follows from `a OR b` for one occurrence: its part of `a`, or its part of `b`.
    fn implied(&self, node: &NodeEnum, scope: usize, names: &Names) -> Vec<(usize, String)> {
        let NodeEnum::BoolExpr(expr) = node else {
            return Vec::new();
        };
        if expr.boolop() != protobuf::BoolExprType::OrExpr {
            return Vec::new();
        }
        let arms: Vec<Vec<(usize, String)>> = nodes(&expr.args)
            .map(|arm| {
                let parts = conjuncts(arm).into_iter();
                parts
                    .filter_map(|part| self.filter(part, scope, names))
                    .collect()
            })
            .collect();
        let mut found = Vec::new();
        for (occurrence, _) in arms.first().into_iter().flatten() {
            if found.iter().any(|(known, _)| known == occurrence) {
                continue;
            }
            let arms: Vec<String> = arms
                .iter()
                .map(|arm| {
                    let own = arm.iter().filter(|(other, _)| other == occurrence);
                    let own: Vec<&str> = own.map(|(_, sql)| sql.as_str()).collect();
                    own.join(" AND ")
                })
                .collect();
            if arms.iter().all(|arm| !arm.is_empty()) {
                let arms: Vec<String> = arms.iter().map(|arm| format!("({arm})")).collect();
                found.push((*occurrence, format!("({})", arms.join(" OR "))));
            }
        }
        found
    }

    // ---- outputs ----

    /// The columns that a SELECT gives. Where rows are grouped, cut or numbered, a condition on an
    /// output is not one on the stored rows, unless the output tells groups apart.
    pub(crate) fn outputs(
        &self,
        select: &'t protobuf::SelectStmt,
        names: &Names,
    ) -> Option<Vec<Output<'t>>> {
        let mut outputs = Vec::with_capacity(select.target_list.len());
        for node in nodes(&select.target_list) {
            let NodeEnum::ResTarget(target) = node else {
                return None;
            };
            let value = inner(&target.val)?;
            let mut output = Output::default();
            if let NodeEnum::ColumnRef(column) = value {
                match scope::meaning(&self.items, names, column) {
                    Meaning::Star => {
                        outputs.extend(self.star(names)?);
                        continue;
                    }
                    Meaning::Item(item) if column.fields.len() > strings(&column.fields).len() => {
                        outputs.extend(self.items[item].columns.clone()?);
                        continue;
                    }
                    Meaning::Column(column) => output.column = Some(column),
                    Meaning::Constant(item, at) if self.items[item].text == self.text => {
                        let columns = self.items[item].columns.as_ref();
                        output.constant = columns.and_then(|columns| columns[at].constant);
                    }
                    Meaning::Unknown if column.fields.len() > strings(&column.fields).len() => {
                        return None;
                    }
                    Meaning::Constant(..) | Meaning::Item(_) | Meaning::Unknown => {}
                }
            } else if is_constant(value) {
                output.constant = Some(value);
            } else if is_star(node) {
                outputs.extend(self.columns_of_row(value, names)?);
                continue;
            } else if let Meaning::Column(column) = scope::meaning_of(&self.items, names, value) {
                output.column = Some(column);
            }
            output.name = match target.name.as_str() {
                "" => functions::output_name(value)?,
                name => name.to_owned(),
            };
            outputs.push(output);
        }
        // Mostly there is nothing that a column would have to keep apart.
        if !keeps_groups(select, &|_| false) {
            let mut kept: HashMap<ColumnId, bool> = HashMap::new();
            for output in &mut outputs {
                output.column = output.column.filter(|column| {
                    *kept.entry(*column).or_insert_with(|| {
                        self.budget().spend(select.target_list.len());
                        keeps_groups(select, &|node| self.is_column(node, names, *column))
                    })
                });
            }
        }
        Some(outputs)
    }

    fn is_column(&self, node: &NodeEnum, names: &Names, column: ColumnId) -> bool {
        scope::meaning_of(&self.items, names, node) == Meaning::Column(column)
    }

    /// `(t).*`; not of a value that a row holds.
    fn columns_of_row(&self, value: &NodeEnum, names: &Names) -> Option<Vec<Output<'t>>> {
        let NodeEnum::AIndirection(part) = value else {
            return None;
        };
        let item = scope::item_of_part(&self.items, names, part)?;
        scope::is_all(part).then(|| self.items[item].columns.clone())?
    }

    /// `*`: merged columns first, then the others, item by item.
    fn star(&self, names: &Names) -> Option<Vec<Output<'t>>> {
        if !names.visible.merged.is_empty() {
            return None;
        }
        let mut outputs = Vec::new();
        for item in &names.visible.items {
            if !self.items[*item].qualified_only {
                outputs.extend(self.items[*item].columns.clone()?);
            }
        }
        Some(outputs)
    }
}

fn is_constant(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::AConst(_) | NodeEnum::ParamRef(_) => true,
        NodeEnum::TypeCast(cast) => {
            matches!(
                inner(&cast.arg),
                Some(NodeEnum::AConst(_) | NodeEnum::ParamRef(_))
            )
        }
        _ => false,
    }
}

/// Leaving out rows by a condition on a column leaves the result for the other rows as it is:
/// rows with different values never meet in a group, a window, or a limited number.
///
/// `is_column` tells whether a node is that column. DISTINCT keeps what it shows, so the caller
/// has made sure that the column is an output where there is one.
pub(crate) fn keeps_groups(
    select: &protobuf::SelectStmt,
    is_column: &dyn Fn(&NodeEnum) -> bool,
) -> bool {
    let limited = select.limit_count.is_some() || select.limit_offset.is_some();
    !limited && keeps_groups_unless_limited(select, is_column)
}

/// The same, whatever LIMIT and OFFSET say.
pub(crate) fn keeps_groups_unless_limited(
    select: &protobuf::SelectStmt,
    is_column: &dyn Fn(&NodeEnum) -> bool,
) -> bool {
    // DISTINCT is a list with one empty node, DISTINCT ON one of expressions.
    // A number in these lists is a position; in PARTITION BY it is a number.
    let is_listed = |node: &NodeEnum| is_column(listed(select, node));
    let is_shown = |node: &NodeEnum| shown(select, node).is_some_and(is_column);
    let mut on = nodes(&select.distinct_clause).peekable();
    let distinct = on.peek().is_none() || on.any(is_shown);
    let groups = select.group_clause.is_empty() && select.having_clause.is_none()
        || nodes(&select.group_clause).any(is_listed);
    let grouping_sets = nodes(&select.group_clause).any(|n| matches!(n, NodeEnum::GroupingSet(_)));
    distinct && groups && !grouping_sets && windows_keep(select, is_column)
}

/// What an element of GROUP BY, ORDER BY or DISTINCT ON stands for: `1` is the first output.
pub(crate) fn listed<'s>(select: &'s protobuf::SelectStmt, node: &'s NodeEnum) -> &'s NodeEnum {
    let NodeEnum::AConst(constant) = node else {
        return node;
    };
    let Some(protobuf::a_const::Val::Ival(position)) = &constant.val else {
        return node;
    };
    let starred = nodes(&select.target_list).any(is_star);
    let position = usize::try_from(position.ival)
        .ok()
        .and_then(|at| at.checked_sub(1));
    let target = position.and_then(|at| nodes(&select.target_list).nth(at));
    match target {
        Some(NodeEnum::ResTarget(target)) if !starred => inner(&target.val).unwrap_or(node),
        _ => node,
    }
}

/// What an element of DISTINCT ON stands for: a bare name is an output's first, then a column's
/// (`findTargetlistEntrySQL92` in `src/backend/parser/parse_clause.c`). `None` where an output may
/// have that name or not.
fn shown<'s>(select: &'s protobuf::SelectStmt, node: &'s NodeEnum) -> Option<&'s NodeEnum> {
    let Some(name) = bare_name(node) else {
        return Some(listed(select, node));
    };
    for target in nodes(&select.target_list).filter(|target| !is_star(target)) {
        let NodeEnum::ResTarget(target) = target else {
            return None;
        };
        let value = inner(&target.val)?;
        let named = match target.name.as_str() {
            "" => functions::output_name(value)? == name,
            label => label == name,
        };
        if named {
            return Some(value);
        }
    }
    Some(node)
}

/// `*`, `t.*`, `(t.c).*`; not `t.c[1]`.
pub(crate) fn is_star(target: &NodeEnum) -> bool {
    let NodeEnum::ResTarget(target) = target else {
        return false;
    };
    let last = match inner(&target.val) {
        Some(NodeEnum::ColumnRef(column)) => column.fields.last(),
        Some(NodeEnum::AIndirection(part)) => part.indirection.last(),
        _ => None,
    };
    let last = last.and_then(|node| node.node.as_ref());
    matches!(last, Some(NodeEnum::AStar(_)))
}

/// Every window of a SELECT is of rows with one value of a column.
fn windows_keep(select: &protobuf::SelectStmt, is_column: &dyn Fn(&NodeEnum) -> bool) -> bool {
    let parted = |window: &protobuf::WindowDef| {
        window.refname.is_empty() && nodes(&window.partition_clause).any(is_column)
    };
    let mut definitions = nodes(&select.window_clause);
    let defined = definitions.all(|node| matches!(node, NodeEnum::WindowDef(w) if parted(w)));
    let mut inline = true;
    for node in nodes(&select.target_list).chain(nodes(&select.sort_clause)) {
        tree::walk(node, &mut |child| match child {
            Child::Node(NodeEnum::FuncCall(call)) => {
                if let Some(window) = &call.over {
                    // `OVER name` and `OVER (name ...)`: the definitions are judged above.
                    inline &=
                        !window.name.is_empty() || !window.refname.is_empty() || parted(window);
                }
            }
            Child::Node(NodeEnum::JsonObjectAgg(_) | NodeEnum::JsonArrayAgg(_)) => inline = false,
            _ => {}
        });
    }
    defined && inline
}

//! The children of every node that a query can hold, and small readers of nodes.
//!
//! Everything the planner proves rests on having seen the whole tree: a node type that is not
//! listed here is reported by [`Child::Strange`], and then nothing is proved.

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, a_const},
};

/// Something that hangs below a node.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Child<'t> {
    /// An expression, a target, a join, a statement ...
    Node(&'t NodeEnum),
    /// An arm of a set operation.
    Select(&'t protobuf::SelectStmt),
    /// A relation where no node wraps it: the target of a write.
    Range(&'t protobuf::RangeVar),
    /// A node type that queries are not known to hold.
    Strange,
}

type Visit<'v, 't> = &'v mut dyn FnMut(Child<'t>);

/// Calls `visit` for `node` and everything below it, parents first.
pub(crate) fn walk<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    walk_child(Child::Node(node), visit);
}

/// Calls `visit` for everything below a SELECT, parents first.
pub(crate) fn walk_select<'t>(select: &'t protobuf::SelectStmt, visit: Visit<'_, 't>) {
    walk_child(Child::Select(select), visit);
}

fn walk_child<'t>(child: Child<'t>, visit: Visit<'_, 't>) {
    visit(child);
    match child {
        Child::Node(node) => children(node, &mut |child| walk_child(child, visit)),
        Child::Select(select) => select_children(select, &mut |child| walk_child(child, visit)),
        Child::Range(_) | Child::Strange => {}
    }
}

/// Calls `visit` for what hangs directly below a node.
pub(crate) fn children<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    match node {
        NodeEnum::SelectStmt(_)
        | NodeEnum::InsertStmt(_)
        | NodeEnum::UpdateStmt(_)
        | NodeEnum::DeleteStmt(_)
        | NodeEnum::MergeStmt(_)
        | NodeEnum::MergeWhenClause(_)
        | NodeEnum::CommonTableExpr(_)
        | NodeEnum::OnConflictClause(_)
        | NodeEnum::InferClause(_) => statement_children(node, visit),
        NodeEnum::ExplainStmt(_)
        | NodeEnum::DeclareCursorStmt(_)
        | NodeEnum::CopyStmt(_)
        | NodeEnum::CreateTableAsStmt(_)
        | NodeEnum::CallStmt(_)
        | NodeEnum::ExecuteStmt(_) => command_children(node, visit),
        NodeEnum::RangeSubselect(_)
        | NodeEnum::RangeFunction(_)
        | NodeEnum::RangeTableSample(_)
        | NodeEnum::RangeTableFunc(_)
        | NodeEnum::RangeTableFuncCol(_)
        | NodeEnum::JoinExpr(_)
        | NodeEnum::JsonTable(_)
        | NodeEnum::JsonTableColumn(_) => from_children(node, visit),
        NodeEnum::JsonObjectConstructor(_)
        | NodeEnum::JsonArrayConstructor(_)
        | NodeEnum::JsonArrayQueryConstructor(_)
        | NodeEnum::JsonObjectAgg(_)
        | NodeEnum::JsonArrayAgg(_)
        | NodeEnum::JsonKeyValue(_)
        | NodeEnum::JsonValueExpr(_)
        | NodeEnum::JsonIsPredicate(_)
        | NodeEnum::JsonFuncExpr(_)
        | NodeEnum::JsonArgument(_)
        | NodeEnum::JsonBehavior(_)
        | NodeEnum::JsonTablePathSpec(_)
        | NodeEnum::JsonParseExpr(_)
        | NodeEnum::JsonScalarExpr(_)
        | NodeEnum::JsonSerializeExpr(_)
        | NodeEnum::XmlExpr(_)
        | NodeEnum::XmlSerialize(_) => document_children(node, visit),
        _ => expression_children(node, visit),
    }
}

fn one<'t>(node: &'t Option<Box<Node>>, visit: Visit<'_, 't>) {
    if let Some(node) = node.as_ref().and_then(|node| node.node.as_ref()) {
        visit(Child::Node(node));
    }
}

fn many<'t>(nodes: &'t [Node], visit: Visit<'_, 't>) {
    for node in nodes.iter().filter_map(|node| node.node.as_ref()) {
        visit(Child::Node(node));
    }
}

fn with<'t>(clause: &'t Option<protobuf::WithClause>, visit: Visit<'_, 't>) {
    if let Some(clause) = clause {
        many(&clause.ctes, visit);
    }
}

fn returning<'t>(clause: &'t Option<protobuf::ReturningClause>, visit: Visit<'_, 't>) {
    if let Some(clause) = clause {
        many(&clause.exprs, visit);
    }
}

fn target<'t>(relation: &'t Option<protobuf::RangeVar>, visit: Visit<'_, 't>) {
    if let Some(relation) = relation {
        visit(Child::Range(relation));
    }
}

/// What hangs directly below a SELECT.
pub(crate) fn select_children<'t>(select: &'t protobuf::SelectStmt, visit: Visit<'_, 't>) {
    with(&select.with_clause, visit);
    for arm in [&select.larg, &select.rarg].into_iter().flatten() {
        visit(Child::Select(arm));
    }
    many(&select.from_clause, visit);
    one(&select.where_clause, visit);
    many(&select.values_lists, visit);
    many(&select.target_list, visit);
    many(&select.distinct_clause, visit);
    many(&select.group_clause, visit);
    one(&select.having_clause, visit);
    many(&select.window_clause, visit);
    many(&select.sort_clause, visit);
    one(&select.limit_offset, visit);
    one(&select.limit_count, visit);
}

fn statement_children<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    match node {
        NodeEnum::SelectStmt(select) => select_children(select, visit),
        NodeEnum::InsertStmt(insert) => {
            with(&insert.with_clause, visit);
            target(&insert.relation, visit);
            many(&insert.cols, visit);
            one(&insert.select_stmt, visit);
            if let Some(conflict) = &insert.on_conflict_clause {
                conflict_children(conflict, visit);
            }
            returning(&insert.returning_clause, visit);
        }
        NodeEnum::UpdateStmt(update) => {
            with(&update.with_clause, visit);
            target(&update.relation, visit);
            many(&update.target_list, visit);
            many(&update.from_clause, visit);
            one(&update.where_clause, visit);
            returning(&update.returning_clause, visit);
        }
        NodeEnum::DeleteStmt(delete) => {
            with(&delete.with_clause, visit);
            target(&delete.relation, visit);
            many(&delete.using_clause, visit);
            one(&delete.where_clause, visit);
            returning(&delete.returning_clause, visit);
        }
        NodeEnum::MergeStmt(merge) => {
            with(&merge.with_clause, visit);
            target(&merge.relation, visit);
            one(&merge.source_relation, visit);
            one(&merge.join_condition, visit);
            many(&merge.merge_when_clauses, visit);
            returning(&merge.returning_clause, visit);
        }
        NodeEnum::MergeWhenClause(when) => {
            one(&when.condition, visit);
            many(&when.target_list, visit);
            many(&when.values, visit);
        }
        NodeEnum::CommonTableExpr(cte) => {
            one(&cte.ctequery, visit);
            if let Some(cycle) = &cte.cycle_clause {
                one(&cycle.cycle_mark_value, visit);
                one(&cycle.cycle_mark_default, visit);
            }
        }
        NodeEnum::OnConflictClause(conflict) => conflict_children(conflict, visit),
        NodeEnum::InferClause(infer) => infer_children(infer, visit),
        _ => visit(Child::Strange),
    }
}

fn command_children<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    match node {
        NodeEnum::ExplainStmt(explain) => one(&explain.query, visit),
        NodeEnum::DeclareCursorStmt(declare) => one(&declare.query, visit),
        NodeEnum::CopyStmt(copy) => one(&copy.query, visit),
        NodeEnum::CreateTableAsStmt(create) => one(&create.query, visit),
        NodeEnum::ExecuteStmt(execute) => many(&execute.params, visit),
        NodeEnum::CallStmt(call) => {
            if let Some(call) = &call.funccall {
                many(&call.args, visit);
            }
        }
        _ => visit(Child::Strange),
    }
}

/// What hangs directly below ON CONFLICT.
pub(crate) fn conflict_children<'t>(
    conflict: &'t protobuf::OnConflictClause,
    visit: Visit<'_, 't>,
) {
    if let Some(infer) = &conflict.infer {
        infer_children(infer, visit);
    }
    many(&conflict.target_list, visit);
    one(&conflict.where_clause, visit);
}

fn infer_children<'t>(infer: &'t protobuf::InferClause, visit: Visit<'_, 't>) {
    many(&infer.index_elems, visit);
    one(&infer.where_clause, visit);
}

fn from_children<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    match node {
        NodeEnum::RangeSubselect(range) => one(&range.subquery, visit),
        NodeEnum::RangeFunction(range) => many(&range.functions, visit),
        NodeEnum::RangeTableSample(range) => {
            one(&range.relation, visit);
            many(&range.args, visit);
            one(&range.repeatable, visit);
        }
        NodeEnum::RangeTableFunc(range) => {
            one(&range.docexpr, visit);
            one(&range.rowexpr, visit);
            many(&range.namespaces, visit);
            many(&range.columns, visit);
        }
        NodeEnum::RangeTableFuncCol(column) => {
            one(&column.colexpr, visit);
            one(&column.coldefexpr, visit);
        }
        NodeEnum::JoinExpr(join) => {
            one(&join.larg, visit);
            one(&join.rarg, visit);
            one(&join.quals, visit);
        }
        NodeEnum::JsonTable(table) => {
            json_value(&table.context_item, visit);
            if let Some(path) = &table.pathspec {
                one(&path.string, visit);
            }
            many(&table.passing, visit);
            many(&table.columns, visit);
            json_behavior(&table.on_error, visit);
        }
        NodeEnum::JsonTableColumn(column) => {
            if let Some(path) = &column.pathspec {
                one(&path.string, visit);
            }
            many(&column.columns, visit);
            json_behavior(&column.on_empty, visit);
            json_behavior(&column.on_error, visit);
        }
        _ => visit(Child::Strange),
    }
}

fn json_value<'t>(value: &'t Option<Box<protobuf::JsonValueExpr>>, visit: Visit<'_, 't>) {
    if let Some(value) = value {
        one(&value.raw_expr, visit);
        one(&value.formatted_expr, visit);
    }
}

fn json_behavior<'t>(behavior: &'t Option<Box<protobuf::JsonBehavior>>, visit: Visit<'_, 't>) {
    if let Some(behavior) = behavior {
        one(&behavior.expr, visit);
    }
}

fn json_aggregate<'t>(
    aggregate: &'t Option<Box<protobuf::JsonAggConstructor>>,
    visit: Visit<'_, 't>,
) {
    if let Some(aggregate) = aggregate {
        one(&aggregate.agg_filter, visit);
        many(&aggregate.agg_order, visit);
        if let Some(window) = &aggregate.over {
            window_children(window, visit);
        }
    }
}

fn document_children<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    match node {
        NodeEnum::JsonObjectConstructor(json) => {
            many(&json.exprs, visit);
        }
        NodeEnum::JsonArrayConstructor(json) => {
            many(&json.exprs, visit);
        }
        NodeEnum::JsonArrayQueryConstructor(json) => {
            one(&json.query, visit);
        }
        NodeEnum::JsonObjectAgg(json) => {
            json_aggregate(&json.constructor, visit);
            if let Some(pair) = &json.arg {
                one(&pair.key, visit);
                json_value(&pair.value, visit);
            }
        }
        NodeEnum::JsonArrayAgg(json) => {
            json_aggregate(&json.constructor, visit);
            json_value(&json.arg, visit);
        }
        NodeEnum::JsonKeyValue(pair) => {
            one(&pair.key, visit);
            json_value(&pair.value, visit);
        }
        NodeEnum::JsonValueExpr(value) => {
            one(&value.raw_expr, visit);
            one(&value.formatted_expr, visit);
        }
        NodeEnum::JsonIsPredicate(json) => one(&json.expr, visit),
        NodeEnum::JsonFuncExpr(json) => {
            json_value(&json.context_item, visit);
            one(&json.pathspec, visit);
            many(&json.passing, visit);
            json_behavior(&json.on_empty, visit);
            json_behavior(&json.on_error, visit);
        }
        NodeEnum::JsonArgument(argument) => json_value(&argument.val, visit),
        NodeEnum::JsonBehavior(behavior) => one(&behavior.expr, visit),
        NodeEnum::JsonTablePathSpec(path) => one(&path.string, visit),
        NodeEnum::JsonParseExpr(json) => {
            json_value(&json.expr, visit);
        }
        NodeEnum::JsonScalarExpr(json) => {
            one(&json.expr, visit);
        }
        NodeEnum::JsonSerializeExpr(json) => {
            json_value(&json.expr, visit);
        }
        NodeEnum::XmlExpr(xml) => {
            many(&xml.named_args, visit);
            many(&xml.args, visit);
        }
        NodeEnum::XmlSerialize(xml) => {
            one(&xml.expr, visit);
        }
        _ => visit(Child::Strange),
    }
}

fn window_children<'t>(window: &'t protobuf::WindowDef, visit: Visit<'_, 't>) {
    many(&window.partition_clause, visit);
    many(&window.order_clause, visit);
    one(&window.start_offset, visit);
    one(&window.end_offset, visit);
}

fn expression_children<'t>(node: &'t NodeEnum, visit: Visit<'_, 't>) {
    match node {
        NodeEnum::AConst(_)
        | NodeEnum::ColumnRef(_)
        | NodeEnum::ParamRef(_)
        | NodeEnum::AStar(_)
        | NodeEnum::String(_)
        | NodeEnum::Integer(_)
        | NodeEnum::Float(_)
        | NodeEnum::Boolean(_)
        | NodeEnum::BitString(_)
        | NodeEnum::SetToDefault(_)
        | NodeEnum::CurrentOfExpr(_)
        | NodeEnum::SqlvalueFunction(_)
        | NodeEnum::RangeVar(_)
        | NodeEnum::JsonFormat(_)
        | NodeEnum::MergeSupportFunc(_)
        | NodeEnum::TypeName(_)
        | NodeEnum::LockingClause(_) => {}
        NodeEnum::AExpr(expr) => {
            one(&expr.lexpr, visit);
            one(&expr.rexpr, visit);
        }
        NodeEnum::BoolExpr(expr) => many(&expr.args, visit),
        NodeEnum::FuncCall(call) => call_children(call, visit),
        NodeEnum::TypeCast(cast) => {
            one(&cast.arg, visit);
        }
        NodeEnum::ResTarget(target) => {
            many(&target.indirection, visit);
            one(&target.val, visit);
        }
        NodeEnum::MultiAssignRef(assign) => one(&assign.source, visit),
        NodeEnum::SubLink(link) => {
            one(&link.testexpr, visit);
            one(&link.subselect, visit);
        }
        NodeEnum::CaseExpr(case) => {
            one(&case.arg, visit);
            many(&case.args, visit);
            one(&case.defresult, visit);
        }
        NodeEnum::CaseWhen(when) => {
            one(&when.expr, visit);
            one(&when.result, visit);
        }
        NodeEnum::CoalesceExpr(expr) => many(&expr.args, visit),
        NodeEnum::MinMaxExpr(expr) => many(&expr.args, visit),
        NodeEnum::NullTest(test) => one(&test.arg, visit),
        NodeEnum::BooleanTest(test) => one(&test.arg, visit),
        NodeEnum::RowExpr(row) => many(&row.args, visit),
        NodeEnum::GroupingFunc(call) => many(&call.args, visit),
        NodeEnum::GroupingSet(set) => many(&set.content, visit),
        NodeEnum::NamedArgExpr(argument) => one(&argument.arg, visit),
        NodeEnum::CollateClause(clause) => one(&clause.arg, visit),
        NodeEnum::AArrayExpr(array) => many(&array.elements, visit),
        NodeEnum::AIndirection(expr) => {
            one(&expr.arg, visit);
            many(&expr.indirection, visit);
        }
        NodeEnum::AIndices(indices) => {
            one(&indices.lidx, visit);
            one(&indices.uidx, visit);
        }
        NodeEnum::List(list) => many(&list.items, visit),
        NodeEnum::SortBy(sort) => one(&sort.node, visit),
        NodeEnum::WindowDef(window) => window_children(window, visit),
        NodeEnum::IndexElem(element) => one(&element.expr, visit),
        NodeEnum::DefElem(element) => one(&element.arg, visit),
        _ => visit(Child::Strange),
    }
}

fn call_children<'t>(call: &'t protobuf::FuncCall, visit: Visit<'_, 't>) {
    many(&call.args, visit);
    many(&call.agg_order, visit);
    one(&call.agg_filter, visit);
    if let Some(window) = &call.over {
        window_children(window, visit);
    }
}

// ---- readers ----

/// The node in a box.
pub(crate) fn inner(node: &Option<Box<Node>>) -> Option<&NodeEnum> {
    node.as_ref()?.node.as_ref()
}

/// The strings of a list of String nodes; others are left out.
pub(crate) fn strings(nodes: &[Node]) -> Vec<&str> {
    nodes
        .iter()
        .filter_map(|node| match &node.node {
            Some(NodeEnum::String(string)) => Some(string.sval.as_str()),
            _ => None,
        })
        .collect()
}

/// The nodes of a list.
pub(crate) fn nodes(nodes: &[Node]) -> impl Iterator<Item = &NodeEnum> {
    nodes.iter().filter_map(|node| node.node.as_ref())
}

/// The text of a constant of any type; `None` for NULL and for other nodes.
pub(crate) fn constant_text(node: &NodeEnum) -> Option<String> {
    match node {
        NodeEnum::AConst(constant) => match constant.val.as_ref()? {
            a_const::Val::Ival(value) => Some(value.ival.to_string()),
            a_const::Val::Fval(value) => Some(value.fval.clone()),
            a_const::Val::Boolval(value) => Some(value.boolval.to_string()),
            a_const::Val::Sval(value) => Some(value.sval.clone()),
            a_const::Val::Bsval(value) => Some(value.bsval.clone()),
        },
        NodeEnum::TypeCast(cast) => constant_text(inner(&cast.arg)?),
        NodeEnum::String(string) => Some(string.sval.clone()),
        NodeEnum::Integer(integer) => Some(integer.ival.to_string()),
        NodeEnum::Float(float) => Some(float.fval.clone()),
        NodeEnum::Boolean(boolean) => Some(boolean.boolval.to_string()),
        _ => None,
    }
}

/// True for the bare key word NULL.
pub(crate) fn is_null(node: &NodeEnum) -> bool {
    matches!(node, NodeEnum::AConst(constant) if constant.isnull)
}

/// The highest `$n` below a node.
pub(crate) fn parameters(node: &NodeEnum) -> usize {
    let mut highest = 0;
    walk(node, &mut |child| {
        if let Child::Node(NodeEnum::ParamRef(parameter)) = child {
            highest = highest.max(usize::try_from(parameter.number).unwrap_or(0));
        }
    });
    highest
}

/// The conjuncts of a condition.
pub(crate) fn conjuncts(node: &NodeEnum) -> Vec<&NodeEnum> {
    match node {
        NodeEnum::BoolExpr(expr) if expr.boolop() == protobuf::BoolExprType::AndExpr => {
            nodes(&expr.args).flat_map(conjuncts).collect()
        }
        other => vec![other],
    }
}

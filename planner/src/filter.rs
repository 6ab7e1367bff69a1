//! Conditions that are simple enough to be tested where rows are stored, before they are copied.

use pg_query::{
    NodeEnum,
    protobuf::{self, AExprKind, a_const::Val},
};

use crate::{
    catalog::{Catalog, Column},
    sql::{identifier, literal},
    tree::{self, Child, inner, nodes, strings},
};

/// Types from here on are not built in; their operators may be anything.
const FIRST_USER_OID: u32 = 16384;

/// The condition as SQL over unqualified columns. `None` when it is more than comparisons of
/// columns of built-in types with constants, joined by AND, OR and NOT.
pub(crate) fn render<'c>(
    node: &NodeEnum,
    catalog: &Catalog,
    mut column: impl FnMut(&protobuf::ColumnRef) -> Option<&'c Column>,
) -> Option<String> {
    let mut own = true;
    tree::walk(node, &mut |child| {
        if let Child::Node(NodeEnum::FuncCall(call)) = child {
            let name = strings(&call.funcname).last().copied().unwrap_or_default();
            own &= !catalog.functions.contains_key(name);
        }
    });
    own.then(|| condition(node, &mut column))?
}

type Resolve<'r, 'c> = &'r mut dyn FnMut(&protobuf::ColumnRef) -> Option<&'c Column>;

fn condition(node: &NodeEnum, column: Resolve<'_, '_>) -> Option<String> {
    match node {
        NodeEnum::BoolExpr(expr) => {
            let parts: Option<Vec<String>> = nodes(&expr.args)
                .map(|arg| condition(arg, column))
                .collect();
            let parts = parts?;
            match expr.boolop() {
                protobuf::BoolExprType::AndExpr => Some(format!("({})", parts.join(" AND "))),
                protobuf::BoolExprType::OrExpr => Some(format!("({})", parts.join(" OR "))),
                protobuf::BoolExprType::NotExpr => Some(format!("(NOT {})", parts.first()?)),
                protobuf::BoolExprType::Undefined => None,
            }
        }
        NodeEnum::NullTest(test) if !test.argisrow => {
            let operand = column_name(inner(&test.arg)?, column)?;
            match test.nulltesttype() {
                protobuf::NullTestType::IsNull => Some(format!("({operand} IS NULL)")),
                protobuf::NullTestType::IsNotNull => Some(format!("({operand} IS NOT NULL)")),
                protobuf::NullTestType::Undefined => None,
            }
        }
        NodeEnum::AExpr(expr) => comparison(expr, column),
        _ => None,
    }
}

fn comparison(expr: &protobuf::AExpr, column: Resolve<'_, '_>) -> Option<String> {
    let names = strings(&expr.name);
    let [operator] = names.as_slice() else {
        return None;
    };
    let (left, right) = (inner(&expr.lexpr)?, inner(&expr.rexpr)?);
    match expr.kind() {
        AExprKind::AexprOp if matches!(*operator, "=" | "<>" | "<" | "<=" | ">" | ">=") => {
            if let Some(name) = column_name(left, column) {
                let right = match column_name(right, column) {
                    Some(other) => other,
                    None => constant(right)?,
                };
                return Some(format!("({name} {operator} {right})"));
            }
            let name = column_name(right, column)?;
            Some(format!("({} {operator} {name})", constant(left)?))
        }
        AExprKind::AexprLike => {
            let word = match *operator {
                "~~" => "LIKE",
                "!~~" => "NOT LIKE",
                _ => return None,
            };
            Some(format!(
                "({} {word} {})",
                column_name(left, column)?,
                constant(right)?
            ))
        }
        AExprKind::AexprIn => {
            let word = if *operator == "=" { "IN" } else { "NOT IN" };
            let name = column_name(left, column)?;
            let NodeEnum::List(list) = right else {
                return None;
            };
            let values: Option<Vec<String>> = nodes(&list.items).map(constant).collect();
            Some(format!("({name} {word} ({}))", values?.join(", ")))
        }
        AExprKind::AexprBetween | AExprKind::AexprNotBetween => {
            let word = if expr.kind() == AExprKind::AexprBetween {
                "BETWEEN"
            } else {
                "NOT BETWEEN"
            };
            let name = column_name(left, column)?;
            let NodeEnum::List(list) = right else {
                return None;
            };
            let bounds: Option<Vec<String>> = nodes(&list.items).map(constant).collect();
            match bounds?.as_slice() {
                [low, high] => Some(format!("({name} {word} {low} AND {high})")),
                _ => None,
            }
        }
        _ => None,
    }
}

/// Functions of strings that compute the same from the same, whatever the settings.
const PLAIN_FUNCTIONS: &[&str] = &[
    "substring",
    "substr",
    "left",
    "right",
    "length",
    "char_length",
];

/// A column, or a plain function of one with constants behind it.
fn column_name(node: &NodeEnum, column: Resolve<'_, '_>) -> Option<String> {
    if let NodeEnum::FuncCall(call) = node {
        let names = strings(&call.funcname);
        let (["pg_catalog", name] | [name]) = names.as_slice() else {
            return None;
        };
        let plain = call.agg_order.is_empty()
            && call.agg_filter.is_none()
            && call.over.is_none()
            && !call.agg_distinct
            && !call.agg_star
            && !call.func_variadic;
        if !plain || !PLAIN_FUNCTIONS.contains(name) {
            return None;
        }
        let mut arguments = nodes(&call.args);
        let first = column_name(arguments.next()?, column)?;
        let rest: Vec<String> = arguments.map(constant).collect::<Option<_>>()?;
        let all: Vec<String> = std::iter::once(first).chain(rest).collect();
        return Some(format!("pg_catalog.{name}({})", all.join(", ")));
    }
    let NodeEnum::ColumnRef(reference) = node else {
        return None;
    };
    let column = column(reference)?;
    (column.type_oid < FIRST_USER_OID).then(|| identifier(&column.name))
}

/// A literal, a parameter, a typed literal, and sums of those.
fn constant(node: &NodeEnum) -> Option<String> {
    match node {
        NodeEnum::AConst(value) => match value.val.as_ref()? {
            Val::Ival(number) => Some(signed(&number.ival.to_string())),
            Val::Fval(number) => Some(signed(&number.fval)),
            Val::Sval(string) => Some(literal(&string.sval)),
            Val::Boolval(value) => Some(value.boolval.to_string()),
            Val::Bsval(_) => None,
        },
        NodeEnum::ParamRef(parameter) => Some(format!("${}", parameter.number)),
        NodeEnum::TypeCast(cast) => {
            let type_name = plain_type(cast.type_name.as_ref()?)?;
            let value = inner(&cast.arg)?;
            matches!(value, NodeEnum::AConst(_) | NodeEnum::ParamRef(_))
                .then(|| constant(value).map(|value| format!("{value}::{type_name}")))?
        }
        NodeEnum::AExpr(expr) if expr.kind() == AExprKind::AexprOp => {
            let names = strings(&expr.name);
            let operator = names.first().filter(|name| matches!(**name, "+" | "-"))?;
            let left = constant(inner(&expr.lexpr)?)?;
            let right = constant(inner(&expr.rexpr)?)?;
            Some(format!("({left} {operator} {right})"))
        }
        _ => None,
    }
}

fn signed(number: &str) -> String {
    if number.starts_with('-') {
        format!("({number})")
    } else {
        number.to_owned()
    }
}

/// A built-in type without parts.
pub(crate) fn is_plain_type(name: &protobuf::TypeName) -> bool {
    plain_type(name).is_some()
}

/// Types whose literals mean the same on every server of one cluster with the same settings.
fn plain_type(name: &protobuf::TypeName) -> Option<String> {
    if !name.array_bounds.is_empty() || name.setof || name.pct_type {
        return None;
    }
    let names = strings(&name.names);
    let (["pg_catalog", word] | [word]) = names.as_slice() else {
        return None;
    };
    let known = matches!(
        *word,
        "int2"
            | "int4"
            | "int8"
            | "numeric"
            | "float4"
            | "float8"
            | "text"
            | "varchar"
            | "date"
            | "timestamp"
            | "timestamptz"
            | "time"
            | "uuid"
            | "bool"
            | "interval"
    );
    if !known {
        return None;
    }
    // INTERVAL '3' MONTH carries its unit as a type modifier: a mask of fields.
    let fields = match name.typmods.as_slice() {
        [] => return Some((*word).to_owned()),
        [fields] if *word == "interval" => fields.node.as_ref()?,
        _ => return None,
    };
    let NodeEnum::AConst(mask) = fields else {
        return None;
    };
    let Some(Val::Ival(mask)) = &mask.val else {
        return None;
    };
    let unit = match mask.ival {
        2 => "month",
        4 => "year",
        8 => "day",
        1024 => "hour",
        2048 => "minute",
        4096 => "second",
        _ => return None,
    };
    Some(format!("interval {unit}"))
}

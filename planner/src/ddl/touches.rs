//! What of the snapshot is another one behind a change of the schema.
//!
//! An allow-list: what is not on it may touch everything. What is on it adds to the relations that it
//! names and drops nothing, by types, operators and functions that are built in, so that no code of
//! users runs along with it.

use pg_query::{
    NodeEnum,
    protobuf::{self, AlterTableType as Command, ConstrType, Constraint, ObjectType},
};

use super::BUILT_IN_BTREE;
use crate::{
    builtins::{self, Kind},
    catalog::{ObjectKind, Relation, RelationKind},
    plan::Touches,
    route::Statement,
    scope,
    tree::{self, Child, inner, nodes, strings},
};

pub(super) fn touches(statement: &Statement<'_>) -> Touches {
    // A temporary type may be what the name of a built-in one means.
    if statement.catalog.unseen_code || !statement.context.temporary.is_empty() {
        return Touches::Everything;
    }
    let range = match statement.node {
        // The snapshot says nothing of rights.
        NodeEnum::GrantStmt(_)
        | NodeEnum::GrantRoleStmt(_)
        | NodeEnum::AlterDefaultPrivilegesStmt(_) => return Touches::Relations(Vec::new()),
        NodeEnum::CreateStmt(create) if is_plain_table(statement, create) => &create.relation,
        NodeEnum::AlterTableStmt(alter) if is_addition(statement, alter) => &alter.relation,
        NodeEnum::IndexStmt(index) if is_built_in_index(statement, index) => &index.relation,
        NodeEnum::CreateSeqStmt(sequence) => &sequence.sequence,
        _ => return Touches::Everything,
    };
    let names = range.iter().map(|range| range.relname.clone());
    Touches::Relations(names.collect())
}

/// It has columns and constraints of its own, and nothing of others.
fn is_plain_table(statement: &Statement<'_>, create: &protobuf::CreateStmt) -> bool {
    let columns: Vec<&protobuf::ColumnDef> = nodes(&create.table_elts)
        .filter_map(|node| match node {
            NodeEnum::ColumnDef(column) => Some(column.as_ref()),
            _ => None,
        })
        .collect();
    let sorts = |name: &str| {
        let mut named = columns.iter().filter(|column| column.colname == name);
        named.any(|column| sorts(column))
    };
    let alone = create.inh_relations.is_empty()
        && create.partbound.is_none()
        && create.partspec.is_none()
        && create.of_typename.is_none()
        && create.access_method.is_empty();
    alone
        && nodes(&create.table_elts).all(|node| match node {
            NodeEnum::ColumnDef(column) => is_plain_column(statement, column),
            NodeEnum::Constraint(constraint) => is_plain(statement, constraint, &sorts),
            _ => false,
        })
}

/// It adds to a table, which has no relatives.
fn is_addition(statement: &Statement<'_>, alter: &protobuf::AlterTableStmt) -> bool {
    let Some(relation) = known_table(statement, alter.relation.as_ref()) else {
        return false;
    };
    let sorts = |name: &str| has_sorted(relation, name);
    alter.objtype() == ObjectType::ObjectTable
        && nodes(&alter.cmds).all(|node| {
            let NodeEnum::AlterTableCmd(command) = node else {
                return false;
            };
            match (command.subtype(), inner(&command.def)) {
                (Command::AtAddColumn, Some(NodeEnum::ColumnDef(column))) => {
                    is_plain_column(statement, column)
                }
                (Command::AtAddConstraint, Some(NodeEnum::Constraint(constraint))) => {
                    is_plain(statement, constraint, &sorts)
                }
                (Command::AtColumnDefault, value) => {
                    value.is_none_or(|value| is_built_in(statement, value))
                }
                (Command::AtSetNotNull | Command::AtDropNotNull, None) => true,
                _ => false,
            }
        })
}

fn is_built_in_index(statement: &Statement<'_>, index: &protobuf::IndexStmt) -> bool {
    let Some(relation) = known_table(statement, index.relation.as_ref()) else {
        return false;
    };
    let mut columns = nodes(&index.index_params);
    matches!(index.access_method.as_str(), "" | "btree")
        && columns.all(|node| match node {
            NodeEnum::IndexElem(element) => {
                element.expr.is_none()
                    && element.opclass.is_empty()
                    && has_sorted(relation, &element.name)
            }
            _ => false,
        })
        && inner(&index.where_clause).is_none_or(|node| is_built_in(statement, node))
}

/// A table behind which is no code that could do anything.
fn known_table<'t>(
    statement: &Statement<'t>,
    range: Option<&protobuf::RangeVar>,
) -> Option<&'t Relation> {
    let relation = scope::find_known(statement.catalog, statement.context, range?)?;
    let safe = relation.unsafe_reads.is_none() && relation.unsafe_writes.is_none();
    let table = relation.kind == RelationKind::Table && !relation.inherits;
    (safe && table && relation.unusable.is_none()).then_some(relation)
}

fn has_sorted(relation: &Relation, name: &str) -> bool {
    let column = relation.column(name);
    column.is_some_and(|column| BUILT_IN_BTREE.contains(&column.type_oid))
}

// ---- columns and constraints ----

/// Types that are built in, by what the parser calls them.
const TYPES: &[&str] = &[
    "bit", "box", "bytea", "char", "cidr", "circle", "inet", "json", "jsonpath", "line", "lseg",
    "macaddr", "macaddr8", "money", "name", "oid", "path", "point", "polygon", "regclass",
    "tsquery", "tsvector", "varbit", "xml",
];
/// Those of them that a btree sorts by its own functions.
const SORTED: &[&str] = &[
    "bool",
    "bpchar",
    "date",
    "float4",
    "float8",
    "int2",
    "int4",
    "int8",
    "interval",
    "jsonb",
    "numeric",
    "text",
    "time",
    "timestamp",
    "timestamptz",
    "timetz",
    "uuid",
    "varchar",
];
/// Not types, but what stands for one and a sequence.
const SERIAL: &[&str] = &[
    "bigserial",
    "serial",
    "serial2",
    "serial4",
    "serial8",
    "smallserial",
];

fn is_plain_column(statement: &Statement<'_>, column: &protobuf::ColumnDef) -> bool {
    let of_type = column.type_name.as_ref();
    let serial = of_type
        .is_some_and(|of| matches!(strings(&of.names)[..], [name] if SERIAL.contains(&name)));
    let own = |_: &str| sorts(column);
    (serial || of_type.is_some_and(|of| is_built_in_type(statement, of)))
        && column.fdwoptions.is_empty()
        && nodes(&column.constraints).all(|node| match node {
            NodeEnum::Constraint(constraint) => is_plain(statement, constraint, &own),
            _ => false,
        })
}

fn sorts(column: &protobuf::ColumnDef) -> bool {
    let of_type = column.type_name.as_ref();
    let name = of_type.and_then(|of| strings(&of.names).pop());
    let array = of_type.is_none_or(|of| !of.array_bounds.is_empty());
    name.is_some_and(|name| SORTED.contains(&name) || SERIAL.contains(&name)) && !array
}

/// `sorts` says it of columns by name; of a column's own constraint, which names none, of that.
fn is_plain(
    statement: &Statement<'_>,
    constraint: &Constraint,
    sorts: &dyn Fn(&str) -> bool,
) -> bool {
    match constraint.contype() {
        ConstrType::ConstrNull
        | ConstrType::ConstrNotnull
        | ConstrType::ConstrIdentity
        | ConstrType::ConstrAttrDeferrable
        | ConstrType::ConstrAttrNotDeferrable
        | ConstrType::ConstrAttrDeferred
        | ConstrType::ConstrAttrImmediate => true,
        ConstrType::ConstrDefault | ConstrType::ConstrCheck | ConstrType::ConstrGenerated => {
            inner(&constraint.raw_expr).is_some_and(|node| is_built_in(statement, node))
        }
        ConstrType::ConstrPrimary | ConstrType::ConstrUnique => {
            let keys = strings(&constraint.keys);
            let keys = if keys.is_empty() { vec![""] } else { keys };
            constraint.indexname.is_empty()
                && !constraint.without_overlaps
                && keys.into_iter().all(sorts)
        }
        ConstrType::ConstrForeign => {
            let keys = strings(&constraint.fk_attrs);
            let keys = if keys.is_empty() { vec![""] } else { keys };
            !constraint.fk_with_period && keys.into_iter().all(sorts)
        }
        _ => false,
    }
}

fn is_built_in_type(statement: &Statement<'_>, of: &protobuf::TypeName) -> bool {
    let known = |name: &str| SORTED.contains(&name) || TYPES.contains(&name);
    let path = statement.context.search_path;
    let hiding = &statement.catalog.hiding;
    !of.setof
        && !of.pct_type
        && match strings(&of.names)[..] {
            ["pg_catalog", name] => known(name),
            [name] => known(name) && hiding.before(path, ObjectKind::Type, name).is_none(),
            _ => false,
        }
}

// ---- expressions ----

/// It is made of what is built in, and changes nothing.
fn is_built_in(statement: &Statement<'_>, node: &NodeEnum) -> bool {
    let mut built_in = true;
    tree::walk(node, &mut |child| {
        built_in &= match child {
            Child::Node(node) => is_built_in_step(statement, node),
            Child::Select(_) | Child::Range(_) | Child::Strange => false,
        };
    });
    built_in
}

fn is_built_in_step(statement: &Statement<'_>, node: &NodeEnum) -> bool {
    match node {
        NodeEnum::FuncCall(call) => is_built_in_call(statement, call),
        NodeEnum::TypeCast(cast) => {
            let of_type = cast.type_name.as_ref();
            of_type.is_some_and(|of| is_built_in_type(statement, of))
        }
        // Operators that are not built in are told by `unseen_code`.
        NodeEnum::AExpr(_)
        | NodeEnum::AConst(_)
        | NodeEnum::AArrayExpr(_)
        | NodeEnum::BoolExpr(_)
        | NodeEnum::BooleanTest(_)
        | NodeEnum::CaseExpr(_)
        | NodeEnum::CaseWhen(_)
        | NodeEnum::CoalesceExpr(_)
        | NodeEnum::ColumnRef(_)
        | NodeEnum::List(_)
        | NodeEnum::MinMaxExpr(_)
        | NodeEnum::NullTest(_)
        | NodeEnum::SqlvalueFunction(_) => true,
        _ => false,
    }
}

fn is_built_in_call(statement: &Statement<'_>, call: &protobuf::FuncCall) -> bool {
    let name = match strings(&call.funcname)[..] {
        ["pg_catalog", name] | [name] => name,
        _ => return false,
    };
    let harmless = match builtins::function(name, call.args.len()) {
        Some(Kind::Same | Kind::TransactionTime | Kind::StatementTime) => true,
        Some(Kind::CallTime | Kind::Random) => true,
        Some(Kind::Sequence) => name == "nextval",
        _ => false,
    };
    harmless && !statement.catalog.functions.contains_key(name)
}

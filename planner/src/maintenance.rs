//! Calls that keep house for tables and are of use only where all shards make them.

use pg_query::{NodeEnum, protobuf};

use crate::{
    plan::{Multi, Plan, ShardSet},
    route::Statement,
    statement::Draft,
    tree::{inner, nodes, strings},
};

/// Functions that may be called on every shard with the same words, and give the same everywhere.
const ALIKE: &[&str] = &["pg_stat_reset", "pg_stat_reset_single_table_counters"];

/// The plan of a SELECT that is nothing but such a call, with constants.
pub(crate) fn everywhere(
    statement: &Statement<'_>,
    select: &protobuf::SelectStmt,
) -> Option<Draft> {
    let catalog = statement.catalog;
    if catalog.shards.len() == 1 || !catalog.has_placed_relations {
        return None;
    }
    let call = only_output(select)?;
    let plain = nodes(&call.args).all(is_constant);
    (plain && is_alike(call)).then(|| {
        let multi = Multi {
            shards: ShardSet::All,
            sql: None,
            returning: true,
            copies: true,
            needs_block: false,
            moves: Vec::new(),
        };
        Draft::new(Plan::Multi(multi), "select").writes()
    })
}

fn is_alike(call: &protobuf::FuncCall) -> bool {
    let names = strings(&call.funcname);
    matches!(names.as_slice(), [name] | ["pg_catalog", name] if ALIKE.contains(name))
}

/// The call of `SELECT call(...)`.
fn only_output(select: &protobuf::SelectStmt) -> Option<&protobuf::FuncCall> {
    let mut outputs = nodes(&select.target_list);
    let (Some(NodeEnum::ResTarget(target)), None) = (outputs.next(), outputs.next()) else {
        return None;
    };
    let alone = protobuf::SelectStmt {
        target_list: Vec::new(),
        limit_option: 0,
        op: 0,
        ..select.clone()
    } == protobuf::SelectStmt::default();
    match inner(&target.val)? {
        NodeEnum::FuncCall(call) if alone => Some(call),
        _ => None,
    }
}

/// `'t'`, `'t'::regclass`: a name, which every shard looks up by itself.
fn is_constant(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::AConst(value) => {
            matches!(value.val, Some(protobuf::a_const::Val::Sval(_)))
        }
        NodeEnum::TypeCast(cast) => inner(&cast.arg).is_some_and(is_constant),
        _ => false,
    }
}

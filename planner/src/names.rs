//! Which relations a statement names, as far as a few bits can tell: enough to find out quickly
//! that a statement has nothing to do with a table whose rows are about to move.

use pg_query::NodeEnum;

use crate::{
    key,
    plan::Plan,
    tree::{self, Child},
};

/// Two of 64 bits, by the name without its schema.
pub fn bits(name: &str) -> u64 {
    let hash = key::hash(name.as_bytes()) as u64;
    (1 << (hash & 63)) | (1 << ((hash >> 6) & 63))
}

/// True if a statement with `names` may name the relation of `bits`.
pub fn may_name(names: u64, bits: u64) -> bool {
    names & bits == bits
}

/// The bits of every relation that a statement reads or writes. Changes of the schema have none:
/// they wait for each other.
pub(crate) fn of(node: &NodeEnum, plan: &Plan) -> u64 {
    match plan {
        Plan::Empty
        | Plan::Ddl(_)
        | Plan::CreateTableAs { .. }
        | Plan::Admin(_)
        | Plan::Transaction(_)
        | Plan::Setting(_)
        | Plan::FetchCursor { .. }
        | Plan::CloseCursor { .. }
        | Plan::Prepare(_)
        | Plan::Deallocate { .. } => return 0,
        // What it names is not in its text.
        Plan::Execute(_) => return u64::MAX,
        _ => {}
    }
    if matches!(node, NodeEnum::VariableShowStmt(_)) {
        return 0;
    }
    let mut names = 0;
    tree::walk(node, &mut |child| match child {
        Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) => {
            names |= bits(&range.relname);
        }
        Child::Strange => names = u64::MAX,
        Child::Node(_) | Child::Select(_) => {}
    });
    names
}

//! CALL and triggers: code that runs inside a server.

use pg_query::protobuf;

use super::refuse_function;
use crate::{
    catalog::{FunctionSafety, Placement},
    functions::{Lookup, Traits},
    plan::PlanError,
    route::Statement,
    scope,
    statement::Draft,
    tree::{self, Child, nodes, strings},
};

/// CALL runs on the home shard.
pub(super) fn call(
    statement: &Statement<'_>,
    call: &protobuf::CallStmt,
) -> Result<Draft, PlanError> {
    let mut traits = Traits::default();
    if let Some(call) = &call.funccall {
        let names = strings(&call.funcname);
        traits.note_temporary(&names);
        traits.note_call(Lookup::of(statement), &names, call.args.len());
        for node in nodes(&call.args) {
            tree::walk(node, &mut |child| {
                if let Child::Node(node) = child {
                    traits.note(Lookup::of(statement), node, false);
                }
            });
        }
    }
    traits.refuse_unsafe(statement.catalog)?;
    let mut draft = Draft::home("call").writes();
    draft.session.pins = traits.pins;
    draft.session.moves_sequence = traits.moves_sequence;
    draft.session.reads_sequence = traits.reads_sequence;
    Ok(draft)
}

/// CREATE TRIGGER on a placed table: its function runs on the shard of the row.
pub(super) fn trigger(
    statement: &Statement<'_>,
    trigger: &protobuf::CreateTrigStmt,
) -> Result<(), PlanError> {
    let catalog = statement.catalog;
    let relation = trigger
        .relation
        .as_ref()
        .and_then(|range| scope::find_known(catalog, statement.context, range))
        .filter(|relation| relation.placement != Placement::Local);
    if relation.is_none() {
        return Ok(());
    }
    let names = strings(&trigger.funcname);
    let mut traits = Traits::default();
    traits.note_temporary(&names);
    traits.refuse_unsafe(catalog)?;
    let name = names.last().map_or("", |name| *name);
    match catalog.call_safety(statement.context.search_path, &names, 0) {
        None | Some(FunctionSafety::Safe) => Ok(()),
        Some(FunctionSafety::HomeOnly(why)) if catalog.telling.contains(name) => {
            Err(PlanError::unsupported(format!(
                "a trigger of a distributed or reference table cannot call \"{name}\""
            ))
            .detail(why)
            .hint(
                "Send the notification from the application, or from a trigger of a local table.",
            ))
        }
        Some(FunctionSafety::HomeOnly(why) | FunctionSafety::Unsafe(why)) => {
            Err(refuse_function(name, why))
        }
    }
}

//! DO, CALL and triggers: code that runs inside a server.

use pg_query::{NodeEnum, protobuf};

use super::{broadcast, refuse_function};
use crate::{
    catalog::{FunctionSafety, Placement},
    functions::{Traits, calls_temporary},
    plan::PlanError,
    route::Statement,
    scope,
    statement::Draft,
    tree::{self, Child, constant_text, inner, nodes, strings},
};

/// Words of commands that change the schema.
const DEFINES: &[&str] = &[
    "create", "alter", "drop", "grant", "revoke", "comment", "reindex",
];
/// Words of commands that change rows or sequences.
const CHANGES: &[&str] = &[
    "insert", "update", "delete", "merge", "truncate", "copy", "nextval", "setval", "perform",
];

/// DO. Its code is judged by its words, strings and comments included.
pub(super) fn block(
    statement: &Statement<'_>,
    block: &protobuf::DoStmt,
) -> Result<Draft, PlanError> {
    let (language, code) = block_code(block);
    let code = code.to_lowercase();
    let words: Vec<&str> = code
        .split(|letter: char| !(letter.is_alphanumeric() || letter == '_' || letter == '$'))
        .filter(|word| !word.is_empty())
        .collect();
    let has = |list: &[&str]| words.iter().any(|word| list.contains(word));
    let temporary = calls_temporary(&code).then(|| "It calls a temporary function.".to_owned());
    let touches = touches(statement, &words)
        .or(temporary)
        .filter(|_| statement.catalog.has_placed_relations);
    if has(DEFINES) {
        if !has(CHANGES) {
            return Ok(broadcast(false));
        }
        return Err(PlanError::unsupported(
            "DO that changes both the schema and rows is not supported",
        )
        .detail("The schema changes on every shard, rows on some.")
        .hint("Use a block for each."));
    }
    if let Some(why) = touches {
        return Err(PlanError::unsupported(
            "DO that may read or write distributed tables is not supported",
        )
        .detail(why)
        .hint("Run the statements themselves."));
    }
    if language != "plpgsql" && language != "sql" && statement.catalog.has_placed_relations {
        return Err(
            PlanError::unsupported(format!("DO in language {language} is not supported"))
                .hint("Use plpgsql."),
        );
    }
    Ok(Draft::home("do").writes())
}

/// A block's language and its text.
pub(crate) fn block_code(block: &protobuf::DoStmt) -> (String, String) {
    let mut code = String::new();
    let mut language = "plpgsql".to_owned();
    for node in nodes(&block.args) {
        let NodeEnum::DefElem(option) = node else {
            continue;
        };
        let value = inner(&option.arg)
            .and_then(constant_text)
            .unwrap_or_default();
        match option.defname.as_str() {
            "as" => code = value,
            "language" => language = value,
            _ => {}
        }
    }
    (language, code)
}

/// Why code with these words may reach placed tables, as a sentence.
fn touches(statement: &Statement<'_>, words: &[&str]) -> Option<String> {
    let catalog = statement.catalog;
    if words.contains(&"execute") {
        return Some("It runs statements that are not known before.".to_owned());
    }
    let placed = catalog
        .relations
        .values()
        .filter(|relation| relation.placement != Placement::Local || relation.reads_placed)
        .find(|relation| words.contains(&relation.name.name.to_lowercase().as_str()));
    if let Some(relation) = placed {
        return Some(format!("It names \"{}\".", relation.name.name));
    }
    words.iter().find_map(|word| {
        let mut traits = Traits::default();
        traits.note_call(catalog, word, 0);
        traits.unsafe_call.map(|(_, why)| why)
    })
}

/// CALL runs on the home shard.
pub(super) fn call(
    statement: &Statement<'_>,
    call: &protobuf::CallStmt,
) -> Result<Draft, PlanError> {
    let mut traits = Traits::default();
    if let Some(call) = &call.funccall {
        let names = strings(&call.funcname);
        traits.note_temporary(&names);
        let name = names.last().map_or("", |name| *name);
        traits.note_call(statement.catalog, name, call.args.len());
        for node in nodes(&call.args) {
            tree::walk(node, &mut |child| {
                if let Child::Node(node) = child {
                    traits.note(statement.catalog, node, false);
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
    match catalog.functions.get(name) {
        None | Some(FunctionSafety::Safe) => Ok(()),
        Some(FunctionSafety::HomeOnly(why) | FunctionSafety::Unsafe(why)) => {
            Err(refuse_function(name, why))
        }
    }
}

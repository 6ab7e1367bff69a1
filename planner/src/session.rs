//! Transactions, settings, notifications: what a session keeps beside its tables.

use pg_query::{
    NodeEnum,
    protobuf::{self, DiscardMode, TransactionStmtKind as Kind, VariableSetKind},
};

use crate::{
    analysis::Analysis,
    normalise::tokens,
    plan::{Plan, PlanError, SessionEffects, SettingCommand, TransactionCommand},
    route::Statement,
    sql::{identifier, literal},
    statement::Draft,
    tree::{self, Child, constant_text, inner, nodes, strings},
};

/// Settings that change what a text means to the planner, so that they must be seen.
const MEANINGFUL: &[&str] = &[
    "search_path",
    "client_encoding",
    "standard_conforming_strings",
    "role",
    "session_authorization",
];

/// The plan of a statement about the session.
pub(crate) fn session(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    match statement.node {
        NodeEnum::TransactionStmt(command) => transaction(command),
        NodeEnum::VariableSetStmt(set) => variable_set(statement, set),
        NodeEnum::VariableShowStmt(show) => Ok(variable_show(&show.name)),
        NodeEnum::DiscardStmt(discard) => Ok(match discard.target() {
            DiscardMode::DiscardAll => setting(SettingCommand::DiscardAll),
            _ => setting(SettingCommand::Discard),
        }),
        NodeEnum::ListenStmt(_) => Ok(Draft::home("listen").session(pinned())),
        NodeEnum::UnlistenStmt(_) => Ok(Draft::home("listen")),
        NodeEnum::NotifyStmt(_) => Ok(Draft::home("notify").writes()),
        NodeEnum::LoadStmt(_) => Ok(Draft::home("other").session(pinned())),
        NodeEnum::ConstraintsSetStmt(set) => {
            let all = set.constraints.is_empty();
            let replay = replay(statement);
            let command = TransactionCommand::SetConstraints { all, replay };
            Ok(Draft::new(Plan::Transaction(command), "transaction"))
        }
        _ => Ok(Draft::home("other")),
    }
}

fn pinned() -> SessionEffects {
    SessionEffects {
        pins: true,
        ..SessionEffects::default()
    }
}

fn setting(command: SettingCommand) -> Draft {
    Draft::new(Plan::Setting(command), "set")
}

// ---- transactions ----

fn transaction(command: &protobuf::TransactionStmt) -> Result<Draft, PlanError> {
    let plan = |command| Ok(Draft::new(Plan::Transaction(command), "transaction").reusable(true));
    match command.kind() {
        kind @ (Kind::TransStmtBegin | Kind::TransStmtStart) => {
            let (options, read_only) = options(&command.options);
            let start = kind == Kind::TransStmtStart;
            plan(TransactionCommand::Begin {
                options,
                read_only,
                start,
            })
        }
        Kind::TransStmtCommit => plan(TransactionCommand::Commit {
            chain: command.chain,
        }),
        Kind::TransStmtRollback => plan(TransactionCommand::Rollback {
            chain: command.chain,
        }),
        Kind::TransStmtSavepoint => plan(TransactionCommand::Savepoint(
            command.savepoint_name.clone(),
        )),
        Kind::TransStmtRelease => plan(TransactionCommand::Release(command.savepoint_name.clone())),
        Kind::TransStmtRollbackTo => plan(TransactionCommand::RollbackTo(
            command.savepoint_name.clone(),
        )),
        Kind::TransStmtPrepare
        | Kind::TransStmtCommitPrepared
        | Kind::TransStmtRollbackPrepared
        | Kind::Undefined => Err(
            PlanError::unsupported("prepared transactions are not supported")
                .hint("Use BEGIN and COMMIT."),
        ),
    }
}

/// Transaction modes as text that follows BEGIN or SET TRANSACTION.
fn options(list: &[pg_query::Node]) -> (String, bool) {
    let mut text = String::new();
    let mut read_only = false;
    for node in nodes(list) {
        let NodeEnum::DefElem(option) = node else {
            continue;
        };
        let value = inner(&option.arg)
            .and_then(constant_text)
            .unwrap_or_default();
        let on = matches!(value.as_str(), "1" | "true" | "on");
        match option.defname.as_str() {
            "transaction_isolation" => {
                text.push_str(&format!(" ISOLATION LEVEL {}", value.to_uppercase()));
            }
            "transaction_read_only" => {
                read_only = on;
                text.push_str(if on { " READ ONLY" } else { " READ WRITE" });
            }
            "transaction_deferrable" => {
                text.push_str(if on { " DEFERRABLE" } else { " NOT DEFERRABLE" });
            }
            _ => {}
        }
    }
    (text, read_only)
}

// ---- settings ----

fn variable_set(
    statement: &Statement<'_>,
    set: &protobuf::VariableSetStmt,
) -> Result<Draft, PlanError> {
    let name = set.name.to_lowercase();
    refuse_setting(&name, set)?;
    match set.kind() {
        VariableSetKind::VarSetMulti => set_several(statement, set),
        VariableSetKind::VarResetAll => Ok(setting(SettingCommand::ResetAll)),
        VariableSetKind::VarReset => Ok(setting(SettingCommand::Reset { name, local: false })),
        VariableSetKind::VarSetDefault => Ok(setting(SettingCommand::Reset {
            name,
            local: set.is_local,
        })),
        VariableSetKind::VarSetValue => {
            let value = value_text(&name, &set.args);
            if let Some(mode) = transaction_mode(&name, &value) {
                let read_only = mode == " READ ONLY";
                let command = TransactionCommand::SetTransaction {
                    options: mode,
                    read_only,
                };
                return Ok(Draft::new(Plan::Transaction(command), "transaction"));
            }
            let replay = replay(statement);
            let command = SettingCommand::Set {
                name,
                replay,
                value: Some(value),
                local: set.is_local,
            };
            Ok(setting(command))
        }
        VariableSetKind::VarSetCurrent | VariableSetKind::Undefined => Ok(Draft::home("set")),
    }
}

fn refuse_setting(name: &str, set: &protobuf::VariableSetStmt) -> Result<(), PlanError> {
    let sets = set.kind() == VariableSetKind::VarSetValue;
    if name == "session_authorization" && sets {
        return Err(
            PlanError::unsupported("SET SESSION AUTHORIZATION is not supported")
                .hint("Log in as that user."),
        );
    }
    if name == "standard_conforming_strings" && sets {
        return refuse_escapes(&value_text(name, &set.args));
    }
    Ok(())
}

/// Backslashes in plain strings are letters: the proxy reads texts that way.
fn refuse_escapes(value: &str) -> Result<(), PlanError> {
    let on = ["on", "true", "yes", "1", "t", "tr", "tru", "y", "ye"];
    if on.contains(&value.to_lowercase().as_str()) {
        return Ok(());
    }
    Err(
        PlanError::unsupported("standard_conforming_strings cannot be turned off")
            .hint("Write E'...' for strings with escapes."),
    )
}

/// Settings that are really modes of the current transaction.
fn transaction_mode(name: &str, value: &str) -> Option<String> {
    let on = matches!(value.to_lowercase().as_str(), "on" | "true" | "yes" | "1");
    Some(match name {
        "transaction_isolation" => format!(" ISOLATION LEVEL {}", value.to_uppercase()),
        "transaction_read_only" => (if on { " READ ONLY" } else { " READ WRITE" }).to_owned(),
        "transaction_deferrable" => (if on { " DEFERRABLE" } else { " NOT DEFERRABLE" }).to_owned(),
        _ => return None,
    })
}

/// SET TRANSACTION, SET SESSION CHARACTERISTICS.
fn set_several(
    statement: &Statement<'_>,
    set: &protobuf::VariableSetStmt,
) -> Result<Draft, PlanError> {
    match set.name.as_str() {
        "TRANSACTION" => {
            let (options, read_only) = options(&set.args);
            let command = TransactionCommand::SetTransaction { options, read_only };
            Ok(Draft::new(Plan::Transaction(command), "transaction"))
        }
        "SESSION CHARACTERISTICS" => {
            let mut replay = Vec::new();
            let mut first = None;
            for node in nodes(&set.args) {
                let NodeEnum::DefElem(option) = node else {
                    continue;
                };
                let value = inner(&option.arg)
                    .and_then(constant_text)
                    .unwrap_or_default();
                let value = match value.as_str() {
                    "1" => "on".to_owned(),
                    "0" => "off".to_owned(),
                    _ => value,
                };
                let name = format!("default_{}", option.defname);
                replay.push(format!("SET {name} TO {}", literal(&value).trim_start()));
                first.get_or_insert((name, value));
            }
            let Some((name, value)) = first else {
                return Ok(Draft::home("set"));
            };
            let replay = replay.join("; ");
            let command = SettingCommand::Set {
                name,
                replay,
                value: Some(value),
                local: false,
            };
            Ok(setting(command))
        }
        _ if statement.catalog.has_placed_relations => Err(PlanError::unsupported(
            "SET TRANSACTION SNAPSHOT is not supported over several shards",
        )),
        _ => Ok(Draft::home("transaction")),
    }
}

/// The value as plain text; of lists, as SHOW gives it.
fn value_text(name: &str, args: &[pg_query::Node]) -> String {
    let values: Vec<String> = nodes(args)
        .map(|node| constant_text(node).unwrap_or_default())
        .map(|value| match name {
            "search_path" => quoted_if_needed(&value),
            _ => value,
        })
        .collect();
    values.join(", ")
}

fn quoted_if_needed(name: &str) -> String {
    let plain = name.starts_with(|letter: char| letter.is_ascii_lowercase() || letter == '_')
        && name
            .chars()
            .all(|letter| letter.is_ascii_lowercase() || letter.is_ascii_digit() || letter == '_');
    if plain {
        name.to_owned()
    } else {
        identifier(name)
    }
}

/// The statement in a form that can stand before others: without comments.
fn replay(statement: &Statement<'_>) -> String {
    let own = statement.own_text();
    let list = tokens(own);
    let words: Vec<&str> = list
        .iter()
        .map(|token| &own[token.start..token.end])
        .collect();
    words.join(" ")
}

fn variable_show(name: &str) -> Draft {
    let name = name.to_lowercase();
    if name.starts_with("automator67.") {
        return setting(SettingCommand::ShowOwn { name });
    }
    Draft::home("show")
}

// ---- set_config ----

/// `SELECT set_config('name', 'value', local)`, perhaps beside constants and `current_setting`:
/// SET, with a row as its answer.
pub(crate) fn constant_set_config(select: &protobuf::SelectStmt) -> Option<Draft> {
    let plain = select.from_clause.is_empty()
        && select.where_clause.is_none()
        && select.with_clause.is_none()
        && select.larg.is_none();
    if !plain {
        return None;
    }
    let mut found = None;
    for target in nodes(&select.target_list) {
        let NodeEnum::ResTarget(target) = target else {
            return None;
        };
        match inner(&target.val)? {
            NodeEnum::AConst(_) => {}
            NodeEnum::FuncCall(call) => match strings(&call.funcname).as_slice() {
                ["current_setting"] | ["pg_catalog", "current_setting"]
                    if nodes(&call.args).all(|node| matches!(node, NodeEnum::AConst(_))) => {}
                ["set_config"] | ["pg_catalog", "set_config"]
                    if call.args.len() == 3 && found.is_none() =>
                {
                    found = Some(call);
                }
                _ => return None,
            },
            _ => return None,
        }
    }
    let call = found?;
    let mut arguments = nodes(&call.args).map(|node| match node {
        NodeEnum::AConst(_) | NodeEnum::TypeCast(_) => constant_text(node),
        _ => None,
    });
    let (name, value) = (arguments.next()??.to_lowercase(), arguments.next()??);
    let local = matches!(
        arguments.next()??.as_str(),
        "true" | "t" | "on" | "1" | "yes"
    );
    if name == "standard_conforming_strings"
        || name == "session_authorization"
        || name.starts_with("automator67.")
    {
        return None;
    }
    let replay = format!(
        "SELECT pg_catalog.set_config({}, {}, {local})",
        literal(&name),
        literal(&value)
    );
    let command = SettingCommand::Set {
        name,
        replay,
        value: Some(value),
        local,
    };
    Some(setting(command))
}

/// Other calls of `set_config` stay on one connection of the home shard; where they could change
/// what later texts mean, they are refused.
pub(crate) fn refuse_set_config(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<(), PlanError> {
    if !analysis.traits.set_config {
        return Ok(());
    }
    let mut refused = false;
    tree::walk(statement.node, &mut |child| {
        if let Child::Node(NodeEnum::FuncCall(call)) = child
            && strings(&call.funcname).last() == Some(&"set_config")
        {
            let name = nodes(&call.args).next().and_then(constant_text);
            refused |= name.is_none_or(|name| {
                MEANINGFUL.contains(&name.to_lowercase().as_str())
                    || name.to_lowercase().starts_with("automator67.")
            });
        }
    });
    if refused {
        return Err(
            PlanError::unsupported("set_config with this setting is not supported here")
                .detail("The proxy must know the setting to understand later statements.")
                .hint("Use SET, or SELECT set_config('name', 'value', false) alone."),
        );
    }
    Ok(())
}

/// Defaults of roles and databases that the proxy would not see.
pub(crate) fn refuse_default(set: Option<&protobuf::VariableSetStmt>) -> Result<(), PlanError> {
    let Some(set) = set else { return Ok(()) };
    let name = set.name.to_lowercase();
    if set.kind() == VariableSetKind::VarSetValue && MEANINGFUL.contains(&name.as_str()) {
        return Err(
            PlanError::unsupported(format!("{name} cannot be set for a role or database"))
                .detail("The proxy must know the setting to understand statements.")
                .hint("Use SET in the session, or options in the connection string."),
        );
    }
    Ok(())
}

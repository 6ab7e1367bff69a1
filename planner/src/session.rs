//! Transactions, settings, notifications: what a session keeps beside its tables.

use pg_query::{
    NodeEnum,
    protobuf::{self, DiscardMode, TransactionStmtKind as Kind, VariableSetKind},
};

use crate::{
    analysis::Analysis,
    normalise::tokens,
    plan::{
        ConfigArgument, ConfigCall, Discarded, Isolation, Plan, PlanError, SessionEffects,
        SettingCommand, TransactionCommand, TransactionModes,
    },
    route::Statement,
    sql::{identifier, literal},
    statement::Draft,
    tree::{self, Child, constant_text, inner, nodes, strings},
};

/// Settings that sessions cannot begin with: the proxy reads texts in one way only.
const REFUSED_DEFAULTS: &[&str] = &[
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
            DiscardMode::DiscardPlans => setting(SettingCommand::Discard(Discarded::Plans)),
            DiscardMode::DiscardSequences => setting(SettingCommand::Discard(Discarded::Sequences)),
            DiscardMode::DiscardTemp => setting(SettingCommand::Discard(Discarded::Temporary)),
            DiscardMode::Undefined => Draft::home("other"),
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
        kind @ (Kind::TransStmtBegin | Kind::TransStmtStart) => plan(TransactionCommand::Begin {
            modes: modes(&command.options)?,
            start: kind == Kind::TransStmtStart,
        }),
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
        Kind::TransStmtPrepare => plan(TransactionCommand::Prepare),
        Kind::TransStmtCommitPrepared | Kind::TransStmtRollbackPrepared | Kind::Undefined => Err(
            PlanError::unsupported("prepared transactions are not supported")
                .hint("Use BEGIN and COMMIT."),
        ),
    }
}

/// The modes that BEGIN or SET TRANSACTION says.
fn modes(list: &[pg_query::Node]) -> Result<TransactionModes, PlanError> {
    let mut modes = TransactionModes::default();
    for node in nodes(list) {
        let NodeEnum::DefElem(option) = node else {
            continue;
        };
        let value = inner(&option.arg)
            .and_then(constant_text)
            .unwrap_or_default();
        set_mode(&mut modes, &option.defname, &value)?;
    }
    Ok(modes)
}

/// Settings that are really modes of the current transaction. False: it is none of them.
fn set_mode(modes: &mut TransactionModes, name: &str, value: &str) -> Result<bool, PlanError> {
    let on = matches!(value.to_lowercase().as_str(), "on" | "true" | "yes" | "1");
    match name {
        "transaction_isolation" => modes.isolation = Some(isolation(value)?),
        "transaction_read_only" => modes.read_only = Some(on),
        "transaction_deferrable" => modes.deferrable = Some(on),
        _ => return Ok(false),
    }
    Ok(true)
}

fn isolation(value: &str) -> Result<Isolation, PlanError> {
    let mut levels = Isolation::ALL.into_iter();
    let level = levels.find(|level| level.name().eq_ignore_ascii_case(value));
    level.ok_or_else(|| {
        let message = format!("invalid value for parameter \"transaction_isolation\": \"{value}\"");
        PlanError::new("22023", message).hint(
            "Available values: serializable, repeatable read, read committed, read uncommitted.",
        )
    })
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
        VariableSetKind::VarReset => Ok(setting(SettingCommand::Reset {
            name,
            local: false,
            tag: "RESET",
        })),
        VariableSetKind::VarSetDefault => Ok(setting(SettingCommand::Reset {
            name,
            local: set.is_local,
            tag: "SET",
        })),
        VariableSetKind::VarSetValue => {
            let value = value_text(&name, &set.args);
            let mut modes = TransactionModes::default();
            if set_mode(&mut modes, &name, &value)? {
                let command = TransactionCommand::SetTransaction(modes);
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

/// SET TRANSACTION, SET SESSION CHARACTERISTICS.
fn set_several(
    statement: &Statement<'_>,
    set: &protobuf::VariableSetStmt,
) -> Result<Draft, PlanError> {
    match set.name.as_str() {
        "TRANSACTION" => {
            let command = TransactionCommand::SetTransaction(modes(&set.args)?);
            Ok(Draft::new(Plan::Transaction(command), "transaction"))
        }
        "SESSION CHARACTERISTICS" => {
            let mut settings = Vec::new();
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
                settings.push((format!("default_{}", option.defname), value));
            }
            Ok(setting(SettingCommand::Characteristics(settings)))
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
    let command = SettingCommand::SetConfig {
        name,
        replay,
        value,
        local,
    };
    Some(setting(command))
}

/// A SELECT for the home shard that calls `set_config`: which settings the calls make, so that they
/// can be made on other shards, too. `None`: it calls it nowhere.
pub(crate) fn configure(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<Option<Draft>, PlanError> {
    if !analysis.traits.set_config {
        return Ok(None);
    }
    let equal = equal_columns(statement.node);
    let mut calls = Vec::new();
    let mut known = true;
    tree::walk(statement.node, &mut |child| {
        if let Child::Node(NodeEnum::FuncCall(call)) = child
            && strings(&call.funcname).last() == Some(&"set_config")
        {
            match config_call(statement, call, &equal) {
                Some(call) => calls.push(call),
                None => known = false,
            }
        }
    });
    let meaningful = calls.iter().any(|call| match &call.name {
        ConfigArgument::Known(name) => is_refused(name),
        ConfigArgument::Expression(_) => false,
    });
    if !known || calls.is_empty() || meaningful {
        return Err(refused_config());
    }
    Ok(Some(setting(SettingCommand::Configure(calls))))
}

/// Settings that no client may make by a call: texts would mean something else then.
fn is_refused(name: &str) -> bool {
    let name = name.to_lowercase();
    name.starts_with("automator67.")
        || ["standard_conforming_strings", "session_authorization"].contains(&name.as_str())
}

fn refused_config() -> PlanError {
    PlanError::unsupported("set_config with this setting is not supported here")
        .detail("The proxy must know the setting to make it on every shard.")
        .hint("Use SET, or SELECT set_config('name', 'value', false) alone.")
}

fn config_call(
    statement: &Statement<'_>,
    call: &protobuf::FuncCall,
    equal: &[(String, String)],
) -> Option<ConfigCall> {
    let [name, _, local] = call.args.as_slice() else {
        return None;
    };
    let (name, local) = (name.node.as_ref()?, local.node.as_ref()?);
    let spans = argument_spans(statement, call);
    let argument = |node: &NodeEnum, at: usize| match (constant_text(node), column_of(node)) {
        (Some(text), _) => Some(ConfigArgument::Known(text)),
        (None, Some(column)) => {
            let found = equal.iter().find(|(known, _)| *known == column);
            found.map(|(_, value)| ConfigArgument::Known(value.clone()))
        }
        (None, None) if has_columns(node) => None,
        (None, None) => {
            let (from, to) = *spans.as_ref()?.get(at)?;
            let text = statement.text.get(from..to)?;
            Some(ConfigArgument::Expression(text.to_owned()))
        }
    };
    Some(ConfigCall {
        name: argument(name, 0)?,
        local: argument(local, 2)?,
    })
}

/// The bytes of a call's arguments.
fn argument_spans(
    statement: &Statement<'_>,
    call: &protobuf::FuncCall,
) -> Option<Vec<(usize, usize)>> {
    let source = statement.source();
    let (_, end) = source.call(usize::try_from(call.location).ok()?)?;
    let first = source.token_at(usize::try_from(call.location).ok()?)?;
    let open = (first..).find(|index| source.is_mark(*index, '('))?;
    let depth = source.tokens[open].depth;
    let inside = source.tokens.iter().enumerate().skip(open + 1);
    let inside = inside.take_while(|(_, token)| token.end < end);
    let commas = inside
        .filter(|(index, token)| token.depth == depth + 1 && source.is_mark(*index, ','))
        .map(|(_, token)| (token.start, token.end));
    let mut spans = Vec::new();
    let mut from = source.tokens[open].end;
    for (start, behind) in commas {
        spans.push((from, start));
        from = behind;
    }
    spans.push((from, end - 1));
    Some(spans)
}

fn column_of(node: &NodeEnum) -> Option<String> {
    match node {
        NodeEnum::ColumnRef(column) => Some(strings(&column.fields).last()?.to_string()),
        _ => None,
    }
}

/// An expression of which each row has a value of its own.
fn has_columns(node: &NodeEnum) -> bool {
    let mut found = false;
    tree::walk(node, &mut |child| {
        found |= matches!(
            child,
            Child::Node(NodeEnum::ColumnRef(_) | NodeEnum::SubLink(_)) | Child::Select(_)
        );
    });
    found
}

/// Columns that have one constant value in all rows of a SELECT from one relation: `WHERE c = 'x'`.
fn equal_columns(node: &NodeEnum) -> Vec<(String, String)> {
    let NodeEnum::SelectStmt(select) = node else {
        return Vec::new();
    };
    let single = select.from_clause.len() == 1 && select.larg.is_none();
    let condition = inner(&select.where_clause).filter(|_| single);
    let terms = condition.map(tree::conjuncts).unwrap_or_default();
    let equal = terms.into_iter().filter_map(|term| {
        let NodeEnum::AExpr(expression) = term else {
            return None;
        };
        let is_equality =
            expression.kind() == protobuf::AExprKind::AexprOp && strings(&expression.name) == ["="];
        let (left, right) = (inner(&expression.lexpr)?, inner(&expression.rexpr)?);
        let pair = match (column_of(left), column_of(right)) {
            (Some(column), None) => (column, constant_text(right)?),
            (None, Some(column)) => (column, constant_text(left)?),
            _ => return None,
        };
        is_equality.then_some(pair)
    });
    equal.collect()
}

/// Writes that call `set_config` would make a setting on their shard only.
pub(crate) fn refuse_set_config(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<(), PlanError> {
    if analysis.traits.set_config && statement.catalog.shards.len() > 1 {
        return Err(refused_config());
    }
    Ok(())
}

/// Defaults of roles and databases that the proxy would not see.
pub(crate) fn refuse_default(set: Option<&protobuf::VariableSetStmt>) -> Result<(), PlanError> {
    let Some(set) = set else { return Ok(()) };
    let name = set.name.to_lowercase();
    if set.kind() == VariableSetKind::VarSetValue && REFUSED_DEFAULTS.contains(&name.as_str()) {
        return Err(
            PlanError::unsupported(format!("{name} cannot be set for a role or database"))
                .detail("The proxy must know the setting to understand statements.")
                .hint("Use SET in the session, or options in the connection string."),
        );
    }
    Ok(())
}

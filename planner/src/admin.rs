//! `SELECT create_distributed_table(...)` and the other functions that the proxy answers.

use pg_query::{NodeEnum, protobuf};

use crate::{
    plan::{AdminCall, AdminFunction, Argument, Plan, PlanError},
    route::Statement,
    session,
    statement::Draft,
    tree::{self, Child, constant_text, inner, is_null, nodes, strings},
};

/// The plan of a SELECT that calls one of the proxy's functions, and nothing else.
pub(crate) fn call(
    statement: &Statement<'_>,
    select: &protobuf::SelectStmt,
) -> Result<Option<Draft>, PlanError> {
    if let Some(draft) = session::constant_set_config(select) {
        return Ok(Some(draft));
    }
    let Some((name, target, call)) = only_target(select) else {
        return refuse_inside(statement);
    };
    if !select.from_clause.is_empty() || select.where_clause.is_some() {
        return Err(
            PlanError::unsupported(format!("{name} cannot be called for rows of a query"))
                .hint(format!("Write: SELECT {name}(...)")),
        );
    }
    debug_assert!(statement.span.0 <= statement.span.1);
    let column = if target.name.is_empty() {
        name.to_owned()
    } else {
        target.name.clone()
    };
    let plan = Plan::Admin(AdminCall {
        function: admin_function(name, call)?,
        column,
    });
    Ok(Some(Draft::new(plan, "admin").changes_catalog()))
}

/// The call that is all that a SELECT selects.
fn only_target(
    select: &protobuf::SelectStmt,
) -> Option<(&'static str, &protobuf::ResTarget, &protobuf::FuncCall)> {
    let [target] = select.target_list.as_slice() else {
        return None;
    };
    let Some(NodeEnum::ResTarget(target)) = &target.node else {
        return None;
    };
    let NodeEnum::FuncCall(call) = inner(&target.val)? else {
        return None;
    };
    let name = function(&strings(&call.funcname))?;
    Some((name, target, call))
}

/// No server has these functions: one that is called beside other things would be an error that
/// tells nothing.
fn refuse_inside(statement: &Statement<'_>) -> Result<Option<Draft>, PlanError> {
    let text = statement.own_text().to_ascii_lowercase();
    let named = ANYWHERE.iter().chain(OWN);
    if !named.into_iter().any(|name| text.contains(name)) {
        return Ok(None);
    }
    let mut found = None;
    tree::walk(statement.node, &mut |child| {
        if let Child::Node(NodeEnum::FuncCall(call)) = child {
            found = found.or(function(&strings(&call.funcname)));
        }
    });
    match found {
        Some(name) => Err(PlanError::unsupported(format!(
            "{name} cannot be called beside other expressions"
        ))
        .hint(format!("Use a statement for each call: SELECT {name}(...)"))),
        None => Ok(None),
    }
}

/// Functions that are found without their schema, too.
const ANYWHERE: &[&str] = &[
    "create_distributed_table",
    "create_reference_table",
    "undistribute_table",
];
const OWN: &[&str] = &[
    "add_shard",
    "declare_safe",
    "create_unique_index",
    "drop_unique_index",
    "split_range",
    "place",
    "distribute_schema",
    "undistribute_schema",
];

fn function(names: &[&str]) -> Option<&'static str> {
    let (schema, name) = match names {
        [name] => (None, *name),
        [schema, name] => (Some(*schema), *name),
        _ => return None,
    };
    if let Some(known) = ANYWHERE.iter().find(|known| **known == name) {
        let ours = matches!(schema, None | Some("public" | "pg_catalog" | "automator67"));
        return ours.then_some(known);
    }
    let own = |known: &&&str| **known == name && schema == Some("automator67");
    OWN.iter().find(own).copied()
}

fn admin_function(
    name: &'static str,
    call: &protobuf::FuncCall,
) -> Result<AdminFunction, PlanError> {
    let mut arguments = Arguments::of(name, call)?;
    let function = match name {
        "create_distributed_table" => AdminFunction::CreateDistributedTable {
            table: arguments.take(&["table_name", "table", "relation"])?,
            column: arguments.take(&["distribution_column", "column"])?,
            distribution_type: arguments.optional(&["distribution_type"]),
            colocate_with: arguments.optional(&["colocate_with"]),
        },
        "create_reference_table" => AdminFunction::CreateReferenceTable {
            table: arguments.take(&["table_name", "table", "relation"])?,
        },
        "undistribute_table" => AdminFunction::UndistributeTable {
            table: arguments.take(&["table_name", "table", "relation"])?,
        },
        "split_range" => AdminFunction::SplitRange {
            table: arguments.take(&["table_name", "table", "relation"])?,
            value: arguments.take(&["value"])?,
            shard: arguments.optional(&["shard"]),
        },
        "place" => AdminFunction::Place {
            table: arguments.take(&["table_name", "table", "relation"])?,
            value: arguments.take(&["value"])?,
            shard: arguments.take(&["shard"])?,
        },
        "distribute_schema" => AdminFunction::DistributeSchema {
            schema: arguments.take(&["schema_name", "schema"])?,
            shard: arguments.optional(&["shard"]),
        },
        "undistribute_schema" => AdminFunction::UndistributeSchema {
            schema: arguments.take(&["schema_name", "schema"])?,
        },
        "add_shard" => AdminFunction::AddShard {
            name: arguments.take(&["name"])?,
            url: arguments.take(&["url"])?,
        },
        "create_unique_index" => AdminFunction::CreateUniqueIndex {
            table: arguments.take(&["table_name", "table", "relation"])?,
            column: arguments.take(&["column_name", "column"])?,
            name: arguments.optional(&["index_name", "name"]),
        },
        "drop_unique_index" => AdminFunction::DropUniqueIndex {
            name: arguments.take(&["index_name", "name"])?,
        },
        _ => AdminFunction::DeclareSafe {
            function: arguments.take(&["function", "name"])?,
        },
    };
    // How many shards there are is not a table's business.
    if name == "create_distributed_table" {
        arguments.optional(&["shard_count"]);
    }
    if arguments.left.is_empty() {
        Ok(function)
    } else {
        Err(arguments.wrong())
    }
}

struct Arguments {
    function: &'static str,
    /// In order; with its name where it has one.
    left: Vec<(Option<String>, Argument)>,
}

impl Arguments {
    fn of(function: &'static str, call: &protobuf::FuncCall) -> Result<Self, PlanError> {
        let mut left = Vec::with_capacity(call.args.len());
        for node in nodes(&call.args) {
            let (name, value) = match node {
                NodeEnum::NamedArgExpr(named) => (Some(named.name.clone()), inner(&named.arg)),
                other => (None, Some(other)),
            };
            let value = value.and_then(argument).ok_or_else(|| {
                PlanError::unsupported(format!("an argument of {function} is not a constant"))
                    .hint("Give constants or parameters.")
            })?;
            left.push((name, value));
        }
        Ok(Arguments { function, left })
    }

    /// The argument of one of these names, or the first without a name.
    fn optional(&mut self, names: &[&str]) -> Option<Argument> {
        let named = self
            .left
            .iter()
            .position(|(name, _)| name.as_deref().is_some_and(|name| names.contains(&name)));
        let at = named.or_else(|| self.left.iter().position(|(name, _)| name.is_none()))?;
        Some(self.left.remove(at).1)
    }

    fn take(&mut self, names: &[&str]) -> Result<Argument, PlanError> {
        self.optional(names).ok_or_else(|| self.wrong())
    }

    fn wrong(&self) -> PlanError {
        let usage = match self.function {
            "create_distributed_table" => {
                "create_distributed_table('table', 'column' [, 'hash' | 'range' | 'directory'] [, colocate_with => 'other'])"
            }
            "create_reference_table" => "create_reference_table('table')",
            "undistribute_table" => "undistribute_table('table')",
            "split_range" => "automator67.split_range('table', 'value' [, 'shard'])",
            "place" => "automator67.place('table', 'value', 'shard')",
            "distribute_schema" => "automator67.distribute_schema('schema' [, 'shard'])",
            "undistribute_schema" => "automator67.undistribute_schema('schema')",
            "add_shard" => "automator67.add_shard('name', 'url')",
            "create_unique_index" => {
                "automator67.create_unique_index('table', 'column' [, 'name'])"
            }
            "drop_unique_index" => "automator67.drop_unique_index('name')",
            _ => "automator67.declare_safe('function')",
        };
        PlanError::new(
            "42883",
            format!("wrong arguments for function {}", self.function),
        )
        .hint(format!("Write: SELECT {usage}"))
    }
}

pub(crate) fn argument(node: &NodeEnum) -> Option<Argument> {
    match node {
        NodeEnum::ParamRef(parameter) => {
            let index = usize::try_from(parameter.number).ok()?.checked_sub(1)?;
            Some(Argument::Parameter(index))
        }
        NodeEnum::TypeCast(cast) => argument(inner(&cast.arg)?),
        NodeEnum::AConst(_) if is_null(node) => Some(Argument::Text(None)),
        NodeEnum::AConst(_) => constant_text(node).map(|text| Argument::Text(Some(text))),
        _ => None,
    }
}

//! Tables, constraints and indexes.

use pg_query::{
    NodeEnum,
    protobuf::{self, AlterTableType as Command, ConstrType, Constraint, DropBehavior, ObjectType},
};

use crate::{
    catalog::{Placement, QualifiedName, Relation},
    functions::{Lookup, Traits},
    plan::{Ddl, Plan, PlanError, Touches, TransactionBlock},
    route::{Statement, group},
    scope,
    statement::Draft,
    tree::{self, Child, inner, nodes, strings},
    unique,
};

/// CREATE TABLE. A new table is a local one.
pub(super) fn create(
    statement: &Statement<'_>,
    create: &protobuf::CreateStmt,
) -> Result<Draft, PlanError> {
    for node in nodes(&create.inh_relations) {
        if let NodeEnum::RangeVar(parent) = node {
            refuse_child(statement, parent)?;
        }
    }
    let name = create.relation.as_ref().map(|range| QualifiedName {
        schema: range.schemaname.clone(),
        name: range.relname.clone(),
    });
    let creates_table = name.filter(|_| create.partbound.is_none());
    let ddl = Ddl {
        block: TransactionBlock::Inside,
        sql: None,
        home_only: false,
        creates_table,
        must_be_empty: Vec::new(),
        checked_at_home: false,
        touches: Touches::Everything,
    };
    Ok(Draft::new(Plan::Ddl(ddl), "ddl").changes_catalog())
}

fn refuse_child(statement: &Statement<'_>, parent: &protobuf::RangeVar) -> Result<(), PlanError> {
    match placed(statement, Some(parent)) {
        Some(parent) => Err(PlanError::unsupported(format!(
            "\"{}\" cannot have children or partitions",
            parent.name.name
        ))
        .detail("It is a distributed or reference table.")
        .hint("Undistribute it first: SELECT undistribute_table('...')")),
        None => Ok(()),
    }
}

fn placed<'a>(
    statement: &Statement<'a>,
    range: Option<&protobuf::RangeVar>,
) -> Option<&'a Relation> {
    scope::find_known(statement.catalog, statement.context, range?)
        .filter(|relation| relation.placement != Placement::Local)
}

fn key(relation: &Relation) -> Option<&str> {
    match &relation.placement {
        Placement::Distributed { key, .. } => Some(key),
        Placement::Local | Placement::Reference | Placement::Schema { .. } => None,
    }
}

/// CREATE INDEX. Uniqueness is checked by each shard for its own rows.
pub(super) fn index(
    statement: &Statement<'_>,
    index: &protobuf::IndexStmt,
) -> Result<(), PlanError> {
    let Some(relation) = placed(statement, index.relation.as_ref()) else {
        return Ok(());
    };
    let columns: Vec<&str> = nodes(&index.index_params)
        .filter_map(|node| match node {
            NodeEnum::IndexElem(element) if element.expr.is_none() => Some(element.name.as_str()),
            _ => None,
        })
        .collect();
    refuse_volatile(statement, relation, statement.node)?;
    if index.unique {
        refuse_unique(relation, &columns, "a unique index")
    } else {
        Ok(())
    }
}

/// Expressions of indexes are immutable: nothing to look for but functions that read tables.
fn refuse_volatile(
    statement: &Statement<'_>,
    relation: &Relation,
    node: &NodeEnum,
) -> Result<(), PlanError> {
    let NodeEnum::IndexStmt(index) = node else {
        return Ok(());
    };
    let mut traits = Traits::default();
    let condition = inner(&index.where_clause).into_iter();
    for node in nodes(&index.index_params).chain(condition) {
        note(statement, node, &mut traits);
    }
    refuse_traits(statement, relation, &traits)
}

fn refuse_traits(
    statement: &Statement<'_>,
    relation: &Relation,
    traits: &Traits,
) -> Result<(), PlanError> {
    traits.refuse_unsafe(statement.catalog)?;
    match &traits.home {
        Some(why) => Err(PlanError::unsupported(format!(
            "an expression on \"{}\" would be computed by each shard for itself",
            relation.name.name
        ))
        .detail(why)
        .hint("Let the client compute it, into a column that is written with each row.")),
        None => Ok(()),
    }
}

fn refuse_unique(relation: &Relation, columns: &[&str], what: &str) -> Result<(), PlanError> {
    match key(relation) {
        Some(key) if !columns.contains(&key) => Err(PlanError::unsupported(format!(
            "{what} on distributed table \"{}\" must include shard key \"{key}\"",
            relation.name.name
        ))
        .detail("Each shard can check uniqueness of its own rows only.")
        .hint(match (columns, what.starts_with("an exclusion")) {
            ([column], false) => format!(
                "Add \"{key}\" to its columns, or make it unique over all shards: SELECT automator67.create_unique_index('{}', '{column}')",
                relation.name.name
            ),
            _ => format!("Add \"{key}\" to its columns."),
        })),
        _ => Ok(()),
    }
}

/// ALTER TABLE.
pub(super) fn alter(
    statement: &Statement<'_>,
    alter: &protobuf::AlterTableStmt,
) -> Result<Draft, PlanError> {
    let range = alter.relation.as_ref();
    let known = range.and_then(|one| scope::find_known(statement.catalog, statement.context, one));
    let (mut concurrently, mut must_be_empty) = (false, Vec::new());
    for node in nodes(&alter.cmds) {
        let NodeEnum::AlterTableCmd(command) = node else {
            continue;
        };
        attach(statement, command)?;
        if alter.objtype() == ObjectType::ObjectType {
            attribute(statement, command)?;
        }
        concurrently |=
            matches!(inner(&command.def), Some(NodeEnum::PartitionCmd(one)) if one.concurrent);
        match known {
            Some(relation) if relation.placement != Placement::Local => {
                alter_placed(statement, relation, command)?;
            }
            Some(relation) if leads_to_split(statement, relation, command)? => {
                must_be_empty.push(relation.name.clone());
            }
            _ => {}
        }
    }
    let ddl = Ddl {
        block: TransactionBlock::refused_if(concurrently),
        sql: None,
        home_only: false,
        creates_table: None,
        must_be_empty,
        checked_at_home: false,
        touches: Touches::Everything,
    };
    Ok(Draft::new(Plan::Ddl(ddl), "ddl").changes_catalog())
}

/// A local table gets a foreign key to a table whose rows are on several shards: rows of its own
/// would be compared with the home shard's.
fn leads_to_split(
    statement: &Statement<'_>,
    relation: &Relation,
    command: &protobuf::AlterTableCmd,
) -> Result<bool, PlanError> {
    let own = inner(&command.def);
    let constraints: Vec<&Constraint> = match own {
        Some(NodeEnum::Constraint(constraint)) => vec![constraint],
        Some(NodeEnum::ColumnDef(column)) => nodes(&column.constraints)
            .filter_map(|node| match node {
                NodeEnum::Constraint(constraint) => Some(constraint.as_ref()),
                _ => None,
            })
            .collect(),
        _ => Vec::new(),
    };
    let mut leads = false;
    for key in constraints {
        let split = placed(statement, key.pktable.as_ref())
            .filter(|to| to.placement != Placement::Reference);
        let Some(to) = split.filter(|_| key.contype() == ConstrType::ConstrForeign) else {
            continue;
        };
        leads = true;
        if key.skip_validation {
            let (from, to) = (&relation.name.name, &to.name.name);
            return Err(PlanError::unsupported(format!(
                "a foreign key from local table \"{from}\" to \"{to}\" that is not valid is not supported"
            ))
            .detail(format!("The rows of \"{to}\" are on several shards, which do not see those of \"{from}\"."))
            .hint(format!(
                "Distribute \"{from}\" first, with colocate_with => '{to}', or make \"{to}\" a reference table."
            )));
        }
    }
    Ok(leads)
}

/// A change of a row type that goes on to the columns of tables OF it, which may be shard keys.
fn attribute(
    statement: &Statement<'_>,
    command: &protobuf::AlterTableCmd,
) -> Result<(), PlanError> {
    let changes = matches!(
        command.subtype(),
        Command::AtDropColumn | Command::AtAlterColumnType
    );
    if !changes || command.behavior() != DropBehavior::DropCascade {
        return Ok(());
    }
    let name = command.name.as_str();
    let keeps =
        |relation: &&Relation| key(relation) == Some(name) || has_index(statement, relation, name);
    match statement.catalog.relations.values().find(keeps) {
        None => Ok(()),
        Some(relation) => Err(PlanError::unsupported(format!(
            "changing attribute \"{name}\" with CASCADE is not supported"
        ))
        .detail(format!(
            "It could change the column of that name of \"{}\", which says where rows are.",
            relation.name.name
        ))
        .hint("Leave CASCADE out, or undistribute the tables of this type first.")),
    }
}

/// The kinds of constraints that a new column has.
pub(super) fn constraints(command: &protobuf::AlterTableCmd) -> impl Iterator<Item = ConstrType> {
    let column = match inner(&command.def) {
        Some(NodeEnum::ColumnDef(column)) => Some(column),
        _ => None,
    };
    column.into_iter().flat_map(|column| {
        nodes(&column.constraints).filter_map(|node| match node {
            NodeEnum::Constraint(constraint) => Some(constraint.contype()),
            _ => None,
        })
    })
}

fn attach(statement: &Statement<'_>, command: &protobuf::AlterTableCmd) -> Result<(), PlanError> {
    let other = match inner(&command.def) {
        Some(NodeEnum::PartitionCmd(partition)) => partition.name.as_ref(),
        Some(NodeEnum::RangeVar(parent)) => Some(parent),
        _ => None,
    };
    match (command.subtype(), other) {
        (Command::AtAttachPartition | Command::AtAddInherit, Some(other)) => {
            refuse_child(statement, other)
        }
        _ => Ok(()),
    }
}

fn alter_placed(
    statement: &Statement<'_>,
    relation: &Relation,
    command: &protobuf::AlterTableCmd,
) -> Result<(), PlanError> {
    let table = &relation.name.name;
    let of_key = key(relation) == Some(command.name.as_str());
    let refuse = |what: String, hint: &str| Err(PlanError::unsupported(what).hint(hint));
    match command.subtype() {
        Command::AtDropColumn | Command::AtAlterColumnType | Command::AtDropNotNull if of_key => {
            refuse(
                format!(
                    "shard key \"{}\" of \"{table}\" cannot be changed",
                    command.name
                ),
                "Undistribute the table first: SELECT undistribute_table('...')",
            )
        }
        Command::AtAlterColumnType if has_index(statement, relation, &command.name) => refuse(
            format!(
                "column \"{}\" of \"{table}\" has a global unique index and cannot have another type",
                command.name
            ),
            "Drop the index first: SELECT automator67.drop_unique_index('...')",
        ),
        Command::AtDisableTrigAll | Command::AtDisableTrigUser
            if unique::of_table(statement.catalog, relation)
                .next()
                .is_some() =>
        {
            refuse(
                format!(
                    "triggers of \"{table}\" keep a global unique index and cannot be disabled"
                ),
                "Name the trigger, or drop the index first: SELECT automator67.drop_unique_index('...')",
            )
        }
        Command::AtAlterColumnType => match inner(&command.def) {
            Some(NodeEnum::ColumnDef(column)) => {
                let mut traits = Traits::default();
                if let Some(using) = inner(&column.raw_default) {
                    note(statement, using, &mut traits);
                }
                refuse_uneven(statement, relation, &traits)
            }
            _ => Ok(()),
        },
        Command::AtAddColumn => match inner(&command.def) {
            Some(NodeEnum::ColumnDef(column)) => add_column(statement, relation, column),
            _ => Ok(()),
        },
        Command::AtAddConstraint => match inner(&command.def) {
            Some(NodeEnum::Constraint(constraint)) => {
                add_constraint(statement, relation, constraint, None)
            }
            _ => Ok(()),
        },
        Command::AtEnableRowSecurity | Command::AtForceRowSecurity => refuse(
            "row security on distributed and reference tables is not supported".to_owned(),
            "Use privileges, or a view.",
        ),
        Command::AtAddInherit | Command::AtAttachPartition | Command::AtAddOf => refuse(
            format!("\"{table}\" cannot have parents, children or partitions"),
            "Undistribute the table first: SELECT undistribute_table('...')",
        ),
        Command::AtAddIdentity => refuse(
            format!("adding identity to a column of \"{table}\" is not supported"),
            "Each shard would number its own rows. Create the table with it.",
        ),
        _ => Ok(()),
    }
}

fn has_index(statement: &Statement<'_>, relation: &Relation, column: &str) -> bool {
    unique::of_table(statement.catalog, relation).any(|index| index.column == column)
}

fn note(statement: &Statement<'_>, node: &NodeEnum, traits: &mut Traits) {
    tree::walk(node, &mut |child| {
        if let Child::Node(node) = child {
            traits.note(Lookup::of(statement), node, false);
        }
    });
}

/// A value that existing rows get at once, computed by each shard for its own.
fn refuse_uneven(
    statement: &Statement<'_>,
    relation: &Relation,
    traits: &Traits,
) -> Result<(), PlanError> {
    refuse_traits(statement, relation, traits)?;
    let copies = relation.placement == Placement::Reference && traits.volatile.is_some();
    if copies || traits.statement_clock || !traits.clocks.is_empty() {
        return Err(PlanError::unsupported(format!(
            "existing rows of \"{}\" would get different values on different shards",
            relation.name.name
        ))
        .hint("Add the column without a default, fill it with UPDATE, then set the default."));
    }
    Ok(())
}

fn add_column(
    statement: &Statement<'_>,
    relation: &Relation,
    column: &protobuf::ColumnDef,
) -> Result<(), PlanError> {
    let type_name = column
        .type_name
        .as_ref()
        .map(|name| strings(&name.names))
        .unwrap_or_default();
    let serial = matches!(
        type_name.last(),
        Some(&("serial" | "serial2" | "serial4" | "serial8" | "bigserial" | "smallserial"))
    );
    let constraints = || {
        nodes(&column.constraints).filter_map(|node| match node {
            NodeEnum::Constraint(constraint) => Some(constraint.as_ref()),
            _ => None,
        })
    };
    let identity = constraints().any(|one| one.contype() == ConstrType::ConstrIdentity);
    if serial || identity {
        return Err(PlanError::unsupported(format!(
            "adding a serial or identity column to \"{}\" is not supported",
            relation.name.name
        ))
        .detail("Each shard would number its own rows.")
        .hint("Add a plain column, fill it, then create a sequence and make it the default."));
    }
    for constraint in constraints() {
        match constraint.contype() {
            ConstrType::ConstrDefault => {
                let mut traits = Traits::default();
                if let Some(value) = inner(&constraint.raw_expr) {
                    note(statement, value, &mut traits);
                }
                refuse_uneven(statement, relation, &traits)?;
            }
            _ => add_constraint(statement, relation, constraint, Some(&column.colname))?,
        }
    }
    Ok(())
}

/// A new constraint of a placed table. `column` is the one it stands behind.
fn add_constraint(
    statement: &Statement<'_>,
    relation: &Relation,
    constraint: &Constraint,
    column: Option<&str>,
) -> Result<(), PlanError> {
    match constraint.contype() {
        // USING INDEX: the index was looked at when it was made.
        ConstrType::ConstrPrimary | ConstrType::ConstrUnique if constraint.indexname.is_empty() => {
            let mut columns = strings(&constraint.keys);
            columns.extend(column);
            refuse_unique(relation, &columns, "a primary key or unique constraint")
        }
        ConstrType::ConstrExclusion if key(relation).is_some() => {
            let columns: Vec<&str> = exclusion_columns(constraint);
            refuse_unique(relation, &columns, "an exclusion constraint")
        }
        ConstrType::ConstrForeign => foreign_key(statement, relation, constraint, column),
        ConstrType::ConstrCheck => {
            let mut traits = Traits::default();
            if let Some(condition) = inner(&constraint.raw_expr) {
                note(statement, condition, &mut traits);
            }
            refuse_traits(statement, relation, &traits)
        }
        _ => Ok(()),
    }
}

/// Columns that an exclusion constraint compares by `=`.
fn exclusion_columns(constraint: &Constraint) -> Vec<&str> {
    nodes(&constraint.exclusions)
        .filter_map(|node| {
            let NodeEnum::List(pair) = node else {
                return None;
            };
            let mut parts = nodes(&pair.items);
            let (Some(NodeEnum::IndexElem(element)), Some(NodeEnum::List(operator))) =
                (parts.next(), parts.next())
            else {
                return None;
            };
            (strings(&operator.items).last() == Some(&"=")).then_some(element.name.as_str())
        })
        .collect()
}

/// What the foreign key does by itself gives a row another shard key. The key of a row that is referred
/// to does not change where it has a shard key too.
fn assigns(
    constraint: &Constraint,
    column: Option<&str>,
    relation: &Relation,
    shard_key: &str,
    referenced: &Relation,
) -> bool {
    let mut columns = strings(&constraint.fk_attrs);
    columns.extend(column);
    if !columns.contains(&shard_key) {
        return false;
    }
    let nullable = relation
        .columns
        .iter()
        .any(|one| one.name == shard_key && !one.not_null);
    let sets = |action: &str| action == "d" || action == "n" && nullable;
    let set_on_delete = strings(&constraint.fk_del_set_cols);
    let deletes = sets(&constraint.fk_del_action)
        && (set_on_delete.is_empty() || set_on_delete.contains(&shard_key));
    let cascades = constraint.fk_upd_action == "c" && referenced.placement == Placement::Reference;
    deletes || cascades || sets(&constraint.fk_upd_action)
}

/// A foreign key is checked by each shard against its own rows: these must be all there are.
fn foreign_key(
    statement: &Statement<'_>,
    relation: &Relation,
    constraint: &Constraint,
    column: Option<&str>,
) -> Result<(), PlanError> {
    let range = constraint.pktable.as_ref();
    let referenced =
        range.and_then(|range| scope::find_known(statement.catalog, statement.context, range));
    let Some(referenced) = referenced else {
        return Ok(());
    };
    let (from, to) = (&relation.name.name, &referenced.name.name);
    let refuse = |why: String, hint: String| {
        Err(PlanError::unsupported(format!(
            "a foreign key from \"{from}\" to \"{to}\" is not supported"
        ))
        .detail(why)
        .hint(hint))
    };
    if let Some(shard_key) = key(relation)
        && assigns(constraint, column, relation, shard_key, referenced)
    {
        return Err(PlanError::unsupported(format!(
            "a foreign key that assigns shard key \"{shard_key}\" of \"{from}\" is not supported"
        ))
        .detail("A server would do it to the row where it is, and the row would belong on another shard.")
        .hint("Let it have no action on that column: RESTRICT, ON DELETE CASCADE, ON DELETE SET NULL (other columns)."));
    }
    match (&relation.placement, &referenced.placement) {
        (Placement::Local, _) | (_, Placement::Reference) => Ok(()),
        (_, Placement::Local) => refuse(
            format!("The rows of \"{to}\" are on the home shard alone."),
            format!(
                "Make it a reference table, or distribute it too: SELECT create_reference_table('{to}')"
            ),
        ),
        (Placement::Schema { colocation: from }, Placement::Schema { colocation: to })
            if from == to =>
        {
            Ok(())
        }
        (Placement::Schema { .. }, _) | (_, Placement::Schema { .. }) => refuse(
            format!("The rows of \"{to}\" are on another shard."),
            "Keep both tables in one schema, or make that table a reference table.".to_owned(),
        ),
        (Placement::Reference, Placement::Distributed { .. }) => refuse(
            format!("\"{from}\" has a copy on every shard, \"{to}\" a part of its rows."),
            "Distribute both tables by the same key.".to_owned(),
        ),
        (Placement::Distributed { key, .. }, Placement::Distributed { key: other, .. }) => {
            if group(relation) != group(referenced) {
                return refuse(
                    "The tables are not colocated.".to_owned(),
                    format!("Distribute \"{from}\" with colocate_with => '{to}'."),
                );
            }
            let mut columns = strings(&constraint.fk_attrs);
            columns.extend(column);
            let primary: Vec<&str> = referenced.primary_key.iter().map(String::as_str).collect();
            let referenced = match constraint.pk_attrs.as_slice() {
                [] => primary,
                list => strings(list),
            };
            let pairs = columns.iter().zip(&referenced);
            if pairs
                .into_iter()
                .any(|(from, to)| from == key && to == other)
            {
                return Ok(());
            }
            refuse(
                "It does not compare the shard keys of both tables.".to_owned(),
                match key == other {
                    true => format!("Include \"{key}\" on both sides of the foreign key."),
                    false => format!("Include \"{key}\" and \"{other}\" in the foreign key."),
                },
            )
        }
    }
}

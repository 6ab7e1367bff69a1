//! UPDATE, DELETE and MERGE: on one shard, on all shards that have a part of the rows, or on the
//! home shard.

mod moving;

use pg_query::{
    NodeEnum,
    protobuf::{self, CmdType},
};

use crate::{
    analysis::{self, Analysis, Occurrence, assigned_columns},
    builtins,
    catalog::{Catalog, Column, Placement, Relation},
    clock,
    functions::{Lookup, Traits},
    gather, parse,
    plan::{Multi, Plan, PlanError, ShardSet, Target, Template},
    route::{self, Statement, Verdict, distributed},
    scope::Found,
    statement::{Draft, Reach, Tier, effects, sentence},
    tree::{self, Child, nodes, strings},
    views::Views,
};

const RESTRICT: &str =
    "Restrict every distributed table in the statement to one shard key by equality.";
const LINK: &str = "Join every distributed table with the changed one by their shard keys, or restrict each to one shard key.";

/// The plan of a write.
pub(crate) fn write(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    let (catalog, context) = (statement.catalog, statement.context);
    let views = Views::load(catalog, context, statement.node)?;
    let analysis = analysis::analyse(catalog, context, &views, statement.node)?;
    let kind = kind_of(statement.node);
    route::refuse_unsafe(catalog, &analysis)?;
    crate::session::refuse_set_config(statement, &analysis)?;
    let Some(target) = main_target(statement, &analysis) else {
        return Err(PlanError::unsupported(
            "the statement has no target that is understood",
        ));
    };
    refuse_writes(catalog, &analysis)?;
    let found = analysis.occurrences[target].found;
    let effects = effects(&analysis);
    let draft = match found.placed() {
        None => write_at_home(statement, &analysis, &views, kind)?,
        Some(relation) if relation.placement == Placement::Reference => {
            let moved = || moving::by_moving(statement, &analysis, &views, target, kind);
            match write_copies(statement, &analysis, relation, kind) {
                Err(error) => moved()
                    .or_else(|| on_the_only_shard(statement, &analysis, kind))
                    .ok_or(error)?,
                Ok(draft) => draft,
            }
        }
        Some(relation) => {
            let moved = || moving::by_moving(statement, &analysis, &views, target, kind);
            match write_distributed(statement, &analysis, target, relation, kind) {
                Err(error) => moved()
                    .or_else(|| on_the_only_shard(statement, &analysis, kind))
                    .ok_or(error)?,
                Ok(draft) => draft,
            }
        }
    };
    Ok(draft.session(effects))
}

/// A change that several shards could not make alike: one shard has everything that it needs. New rows
/// may need values of the proxy's.
fn on_the_only_shard(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    kind: &'static str,
) -> Option<Draft> {
    let alone = statement.catalog.shards.len() == 1
        && statement.context.tier == Tier::Single
        && statement.context.reach == Reach::Single;
    let changes = matches!(
        statement.node,
        NodeEnum::UpdateStmt(_) | NodeEnum::DeleteStmt(_)
    );
    let mut occurrences = analysis.occurrences.iter();
    let proxy = occurrences.any(|one| matches!(one.found, Found::Proxy(_)));
    (alone && changes && !proxy && !analysis.writes_in_with).then(|| Draft::home(kind))
}

fn kind_of(node: &NodeEnum) -> &'static str {
    match node {
        NodeEnum::InsertStmt(_) => "insert",
        NodeEnum::UpdateStmt(_) => "update",
        NodeEnum::DeleteStmt(_) => "delete",
        NodeEnum::MergeStmt(_) => "merge",
        _ => "other",
    }
}

pub(crate) fn target_of(node: &NodeEnum) -> Option<&protobuf::RangeVar> {
    match node {
        NodeEnum::InsertStmt(insert) => insert.relation.as_ref(),
        NodeEnum::UpdateStmt(update) => update.relation.as_ref(),
        NodeEnum::DeleteStmt(delete) => delete.relation.as_ref(),
        NodeEnum::MergeStmt(merge) => merge.relation.as_ref(),
        _ => None,
    }
}

/// The occurrence of the relation that the statement itself, not its WITH, changes.
pub(crate) fn main_target(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Option<usize> {
    let range = target_of(statement.node)?;
    analysis
        .occurrences
        .iter()
        .position(|one| std::ptr::eq(one.range, range))
}

/// Errors for relations that cannot be written without going behind the proxy's back.
pub(crate) fn refuse_writes(catalog: &Catalog, analysis: &Analysis<'_>) -> Result<(), PlanError> {
    for one in analysis.occurrences.iter().filter(|one| one.written) {
        if catalog.shards.len() > 1 {
            refuse_system_catalog(one)?;
        }
        if !catalog.has_placed_relations {
            continue;
        }
        match one.found {
            Found::Known(relation) | Found::Unread(relation) => refuse_write(relation)?,
            Found::Proxy(view) => {
                return Err(PlanError::new(
                    "42501",
                    format!("cannot write to {}.{}", view.schema(), view.name()),
                ));
            }
            Found::Home => {}
        }
    }
    Ok(())
}

/// Each server has its own system catalog. Large objects are the home shard's.
fn refuse_system_catalog(written: &Occurrence<'_>) -> Result<(), PlanError> {
    let range = written.range;
    let of_server = match range.schemaname.as_str() {
        "pg_catalog" | "information_schema" => true,
        "" => builtins::relation(&range.relname).is_some() && range.relname.starts_with("pg_"),
        _ => false,
    };
    let large_objects = range.relname.starts_with("pg_largeobject");
    if !matches!(written.found, Found::Home) || !of_server || large_objects {
        return Ok(());
    }
    let hint = match range.relname.as_str() {
        "pg_settings" => "Use SET, or SELECT set_config(...).",
        _ => "Use the statement that changes what the catalog describes.",
    };
    Err(PlanError::unsupported(format!(
        "writing to \"{}\" is not supported over several shards",
        range.relname
    ))
    .detail("Each server has its own, and one would change alone.")
    .hint(hint))
}

/// The error for a relation whose writes would reach other tables by themselves.
pub(crate) fn refuse_write(relation: &Relation) -> Result<(), PlanError> {
    crate::route::refuse_unusable(relation)?;
    if let Some(danger) = &relation.unsafe_writes {
        return Err(PlanError::unsupported(format!(
            "writing to table \"{}\" is not supported",
            relation.name.name
        ))
        .detail(&danger.why)
        .hint(&danger.hint));
    }
    if relation.kind == crate::catalog::RelationKind::View && relation.reads_placed {
        return Err(PlanError::unsupported(format!(
            "cannot write through view \"{}\"",
            relation.name.name
        ))
        .detail("The view reads distributed or reference tables.")
        .hint("Write to the table itself."));
    }
    Ok(())
}

/// The error for a write inside WITH that is not on one shard.
pub(crate) fn with_over_several_shards(reason: &str) -> PlanError {
    PlanError::unsupported("writes inside WITH are not supported over several shards")
        .detail(sentence(reason))
        .hint(RESTRICT)
}

/// WITH may write to tables that are on the home shard alone, if nothing else is involved.
pub(crate) fn refuse_writes_in_with(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<(), PlanError> {
    refuse_writes(statement.catalog, analysis)?;
    let copies = analysis
        .occurrences
        .iter()
        .find(|one| one.written && one.found.placed().is_some());
    match copies {
        Some(one) => Err(with_over_several_shards(&format!(
            "reference table \"{}\" has a copy on every shard",
            one.range.relname
        ))),
        None => Ok(()),
    }
}

/// On the shard of a key, nothing may make a row belong to another one, and reference tables must
/// not be changed on one shard alone.
pub(crate) fn refuse_key_changes(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<(), PlanError> {
    refuse_writes(statement.catalog, analysis)?;
    let reference = |relation: &&Relation| relation.placement == Placement::Reference;
    let written = analysis.occurrences.iter().filter(|one| one.written);
    if let Some(relation) = written
        .clone()
        .filter_map(|one| one.found.placed())
        .find(reference)
    {
        return Err(with_over_several_shards(&format!(
            "reference table \"{}\" has a copy on every shard",
            relation.name.name
        )));
    }
    let mut result = Ok(());
    tree::walk(statement.node, &mut |child| {
        let Child::Node(node) = child else { return };
        let writes = matches!(
            node,
            NodeEnum::UpdateStmt(_) | NodeEnum::InsertStmt(_) | NodeEnum::MergeStmt(_)
        );
        if !writes || result.is_err() {
            return;
        }
        let occurrence = target_of(node).and_then(|range| {
            analysis
                .occurrences
                .iter()
                .position(|one| std::ptr::eq(one.range, range))
        });
        let Some(occurrence) = occurrence else { return };
        let Some(relation) = analysis.occurrences[occurrence].found.distributed() else {
            return;
        };
        result = refuse_assignments(statement, analysis, node, occurrence, relation);
        if result.is_ok() && !std::ptr::eq(node, statement.node) {
            result = refuse_shard_defaults(node, relation);
        }
    });
    result
}

/// An INSERT inside WITH runs as it is, on one shard: it must not draw from sequences there.
fn refuse_shard_defaults(node: &NodeEnum, relation: &Relation) -> Result<(), PlanError> {
    let draws = relation
        .columns
        .iter()
        .any(|column| column.sequence.is_some() || default_text(column).contains("nextval"));
    if matches!(node, NodeEnum::InsertStmt(_) | NodeEnum::MergeStmt(_)) && draws {
        return Err(PlanError::unsupported(format!(
            "this form of INSERT into \"{}\" is not supported",
            relation.name.name
        ))
        .detail("A column's default draws from a sequence, which is on the home shard.")
        .hint("Use a plain INSERT."));
    }
    Ok(())
}

/// A column's default, or nothing.
pub(crate) fn default_text(column: &Column) -> &str {
    column.default.as_deref().unwrap_or("")
}

/// What a column's default does.
pub(crate) fn default_traits(catalog: &Catalog, column: &Column) -> Traits {
    let mut traits = Traits::default();
    if column.sequence.is_some() || column.identity_always.is_some() {
        traits.note_word(catalog, "nextval");
    }
    match parse::parse_expression(&format!(
        "({})",
        column.default.as_deref().unwrap_or("NULL")
    )) {
        Some(node) => tree::walk(&node, &mut |child| {
            if let Child::Node(node) = child {
                traits.note(Lookup::printed(catalog), node, true);
            }
        }),
        // What cannot be read may do anything.
        None => traits.note_word(catalog, "nextval"),
    }
    traits
}

/// A column's default reads the transaction's time.
pub(crate) fn default_reads_clock(catalog: &Catalog, column: &Column) -> bool {
    let may = !column.generated && clock::may_read(default_text(column));
    may && !default_traits(catalog, column).clocks.is_empty()
}

fn write_at_home(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    views: &Views<'_>,
    kind: &'static str,
) -> Result<Draft, PlanError> {
    let elsewhere = analysis
        .occurrences
        .iter()
        .any(|one| one.found.distributed().is_some() || matches!(one.found, Found::Proxy(_)));
    if !elsewhere {
        refuse_writes_in_with(statement, analysis)?;
        if needs_one_time(statement, analysis) {
            let sql = with_one_clock(statement, analysis)?.unwrap_or_default();
            return Ok(timed(ShardSet::Home, sql, kind));
        }
        return Ok(Draft::home(kind).reusable(!analysis.traits.set_config));
    }
    let reason = "a table of the home shard is changed by rows of a distributed table";
    if analysis.writes_in_with {
        return Err(with_over_several_shards(reason));
    }
    let gather = gather::gather(statement, analysis, views, reason.to_owned())?;
    Ok(Draft::new(Plan::Gather(gather), kind))
}

/// It reads the transaction's time where another clock goes.
pub(crate) fn needs_one_time(statement: &Statement<'_>, analysis: &Analysis<'_>) -> bool {
    statement.context.reach == Reach::OneTime
        && analysis.traits.clocks.iter().any(|clock| !clock.in_view)
}

/// A statement with the transaction's time in it.
pub(crate) fn timed(shards: ShardSet, sql: Template, kind: &'static str) -> Draft {
    let multi = Multi {
        shards,
        sql: Some(sql),
        returning: true,
        copies: false,
        needs_block: false,
        moves: Vec::new(),
    };
    Draft::new(Plan::Multi(multi), kind)
}

// ---- distributed tables ----

fn write_distributed(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    target: usize,
    relation: &Relation,
    kind: &'static str,
) -> Result<Draft, PlanError> {
    if let Some(why) = &analysis.traits.home
        && statement.catalog.shards.len() > 1
    {
        return Err(of_server(relation, why));
    }
    refuse_key_changes(statement, analysis)?;
    refuse_positioned(statement.node)?;
    refuse_shard_defaults_of_merge(statement.node, relation)?;
    refuse_assigned_defaults(statement, relation)?;
    let tables = distributed(analysis);
    let reason = match route::verdict(statement, analysis)? {
        Verdict::Key(route, _) if needs_one_time(statement, analysis) => {
            let sql = with_one_clock(statement, analysis)?.unwrap_or_default();
            return Ok(timed(ShardSet::Keys(route), sql, kind));
        }
        Verdict::Key(route, reusable) => {
            return Ok(Draft::new(Plan::Single(Target::Key(route)), kind).reusable(reusable));
        }
        Verdict::AnyCopy | Verdict::Home => return Err(unlinked(relation, "", analysis)),
        Verdict::Many(reason) => reason,
    };
    let blocked = analysis.strange
        || analysis.traits.home.is_some()
        || route::not_colocated(analysis, &tables).is_some()
        || analysis
            .occurrences
            .iter()
            .any(|one| route::at_home(one.found).is_some() || matches!(one.found, Found::Proxy(_)));
    if blocked {
        return Err(unlinked(relation, &reason, analysis));
    }
    if analysis.writes_in_with {
        return Err(with_over_several_shards(&reason));
    }
    let pivot = pivot(statement.node, &tables, analysis, target);
    if let Some(stray) = tables.iter().find(|index| !analysis.linked(**index, pivot)) {
        let one = &analysis.occurrences[*stray];
        let reason = if one.written {
            "changed and new rows are not joined with the source by the shard keys".to_owned()
        } else {
            format!(
                "\"{}\" is not joined with it by the shard keys",
                one.range.relname
            )
        };
        return Err(unlinked(relation, &reason, analysis));
    }
    refuse_uneven(statement.node, analysis)?;
    let (shards, _) = route::shards(statement, analysis, decisive(statement.node, target, pivot));
    let sql = with_one_clock(statement, analysis)?;
    let returning = returns_rows(statement.node);
    // Outside of slots in a route, the text goes as it is: the plan holds for other literals.
    let reusable =
        sql.is_none() && shards == ShardSet::All && statement.context.reach == Reach::Single;
    let multi = Multi {
        shards,
        sql,
        returning,
        copies: false,
        needs_block: false,
        moves: Vec::new(),
    };
    let draft = Draft::new(Plan::Multi(multi), kind).reusable(reusable);
    Ok(draft.lookup(statement, analysis))
}

fn unlinked(relation: &Relation, reason: &str, analysis: &Analysis<'_>) -> PlanError {
    let error = PlanError::unsupported(format!(
        "this change of distributed table \"{}\" is not supported over several shards",
        relation.name.name
    ));
    let error = match &analysis.traits.system_column {
        Some(column) => error.hint(format!(
            "Every shard has values of its own in {column}: name the rows by their primary key."
        )),
        None => error.hint(LINK),
    };
    if reason.is_empty() {
        error
    } else {
        error.detail(sentence(reason))
    }
}

/// The error for a change of rows, wherever they are, with what only the home shard can do.
pub(crate) fn of_server(relation: &Relation, why: &str) -> PlanError {
    PlanError::unsupported(format!(
        "this change of \"{}\" calls what belongs to one server",
        relation.name.name
    ))
    .detail(why)
    .hint("Call it in a statement of its own, before or after the change, in one transaction.")
}

/// Assignments to the shard key, other than of the value it has.
fn refuse_assignments(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    node: &NodeEnum,
    occurrence: usize,
    relation: &Relation,
) -> Result<(), PlanError> {
    let Placement::Distributed { key, .. } = &relation.placement else {
        return Ok(());
    };
    let change = || {
        PlanError::unsupported(format!(
            "changing shard key \"{key}\" of \"{}\" is not supported",
            relation.name.name
        ))
        .detail("The row would have to move to another shard.")
        .hint("Delete the row and insert it again.")
    };
    let same = |value: Option<&NodeEnum>, excluded: bool| match value {
        Some(NodeEnum::ColumnRef(column)) => {
            let fields = strings(&column.fields);
            let range = analysis.occurrences[occurrence].range;
            let own = range
                .alias
                .as_ref()
                .map_or(&range.relname, |alias| &alias.aliasname);
            match fields.as_slice() {
                [name] => *name == key.as_str() && target_is_alone(node),
                [table, name] => {
                    *name == key.as_str()
                        && (*table == own.as_str() || (excluded && *table == "excluded"))
                }
                _ => false,
            }
        }
        Some(value) => is_known_key(statement, analysis, occurrence, value),
        None => false,
    };
    let assigned: Vec<(&str, Option<&NodeEnum>, bool)> = match node {
        NodeEnum::UpdateStmt(update) => {
            let list = assigned_columns(&update.target_list);
            list.into_iter()
                .map(|(name, value)| (name, value, false))
                .collect()
        }
        NodeEnum::InsertStmt(insert) => match &insert.on_conflict_clause {
            Some(conflict) => {
                let list = assigned_columns(&conflict.target_list);
                list.into_iter()
                    .map(|(name, value)| (name, value, true))
                    .collect()
            }
            None => Vec::new(),
        },
        NodeEnum::MergeStmt(merge) => merged_columns(merge)
            .into_iter()
            .map(|(name, value)| (name, value, false))
            .collect(),
        _ => Vec::new(),
    };
    for (name, value, excluded) in assigned {
        if name == key && !same(value, excluded) {
            return Err(change());
        }
    }
    Ok(())
}

/// `ON CONFLICT DO UPDATE SET key = ...`, other than of the value it has.
pub(crate) fn refuse_new_keys(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Result<(), PlanError> {
    match main_target(statement, analysis) {
        Some(target) => refuse_assignments(statement, analysis, statement.node, target, relation),
        None => Ok(()),
    }
}

/// No other relation could be meant by an unqualified column.
fn target_is_alone(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::UpdateStmt(update) => update.from_clause.is_empty(),
        NodeEnum::InsertStmt(_) => true,
        _ => false,
    }
}

/// The one value that the row's key is known to have. A literal is compared by its value, so it
/// must be a parameter or a literal of the text itself.
fn is_known_key(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    occurrence: usize,
    value: &NodeEnum,
) -> bool {
    use crate::facts::{Constant, constant};
    let Some(relation) = analysis.occurrences[occurrence].found.distributed() else {
        return false;
    };
    let Some((key_type, _)) = route::group(relation) else {
        return false;
    };
    let types = statement.context.parameter_types;
    let Some(value) = constant(value, key_type, types, true) else {
        return false;
    };
    match (analysis.key_values(occurrence).as_deref(), value) {
        (Some([Constant::Parameter(known)]), Constant::Parameter(index)) => *known == index,
        // Two literals in a normalised text have slots of their own, and another text with the
        // same form could have two different ones.
        (Some([Constant::Literal { text: known, .. }]), Constant::Literal { text, .. }) => {
            statement.normalised.is_none() && *known == text
        }
        _ => false,
    }
}

fn refuse_positioned(node: &NodeEnum) -> Result<(), PlanError> {
    let mut positioned = false;
    tree::walk(node, &mut |child| {
        positioned |= matches!(child, Child::Node(NodeEnum::CurrentOfExpr(_)));
    });
    if positioned {
        return Err(PlanError::unsupported(
            "WHERE CURRENT OF is not supported on distributed and reference tables",
        )
        .hint("Use the primary key."));
    }
    Ok(())
}

fn refuse_shard_defaults_of_merge(node: &NodeEnum, relation: &Relation) -> Result<(), PlanError> {
    match node {
        NodeEnum::MergeStmt(merge) if inserts(merge) => refuse_shard_defaults(node, relation),
        _ => Ok(()),
    }
}

fn inserts(merge: &protobuf::MergeStmt) -> bool {
    nodes(&merge.merge_when_clauses).any(|node| {
        matches!(node, NodeEnum::MergeWhenClause(when) if when.command_type() == CmdType::CmdInsert)
    })
}

/// `SET x = DEFAULT` where the default draws from a sequence or is computed by one server.
pub(crate) fn refuse_assigned_defaults(
    statement: &Statement<'_>,
    relation: &Relation,
) -> Result<(), PlanError> {
    let reference = relation.placement == Placement::Reference;
    for (name, value) in assigned_anywhere(statement.node) {
        let default = matches!(value, Some(NodeEnum::SetToDefault(_)) | None);
        let Some(column) = relation.column(name).filter(|_| default) else {
            continue;
        };
        let traits = default_traits(statement.catalog, column);
        let uneven = reference
            && (traits.volatile.is_some() || !traits.clocks.is_empty() || traits.statement_clock);
        if traits.home.is_some() || traits.unsafe_call.is_some() || uneven {
            return Err(PlanError::unsupported(format!(
                "setting column \"{name}\" to its default is not supported"
            ))
            .detail("The default would be computed on each shard by itself.")
            .hint("Write the value into the statement."));
        }
    }
    Ok(())
}

/// What the UPDATE actions of a MERGE assign.
fn merged_columns(merge: &protobuf::MergeStmt) -> Vec<(&str, Option<&NodeEnum>)> {
    nodes(&merge.merge_when_clauses)
        .filter_map(|node| match node {
            NodeEnum::MergeWhenClause(when) if when.command_type() == CmdType::CmdUpdate => {
                Some(assigned_columns(&when.target_list))
            }
            _ => None,
        })
        .flatten()
        .collect()
}

fn assigned_anywhere(node: &NodeEnum) -> Vec<(&str, Option<&NodeEnum>)> {
    match node {
        NodeEnum::UpdateStmt(update) => assigned_columns(&update.target_list),
        NodeEnum::InsertStmt(insert) => insert
            .on_conflict_clause
            .as_ref()
            .map(|conflict| assigned_columns(&conflict.target_list))
            .unwrap_or_default(),
        NodeEnum::MergeStmt(merge) => merged_columns(merge),
        _ => Vec::new(),
    }
}

/// The occurrence whose rows say on which shard a part of the work is done: the target's, or for
/// MERGE the source's, as every source row is looked at once.
fn pivot(node: &NodeEnum, tables: &[usize], analysis: &Analysis<'_>, target: usize) -> usize {
    let source = tables
        .iter()
        .find(|index| !analysis.occurrences[**index].written);
    match (node, source) {
        (NodeEnum::MergeStmt(_), Some(source)) => *source,
        _ => target,
    }
}

/// The occurrence without a row of which a shard has nothing to do. The condition of a MERGE that
/// inserts says which rows match, not which are looked at: those of the source all are.
fn decisive(node: &NodeEnum, target: usize, pivot: usize) -> usize {
    match node {
        NodeEnum::MergeStmt(merge) if inserts(merge) => pivot,
        _ => target,
    }
}

/// What each shard would compute differently.
fn refuse_uneven(node: &NodeEnum, analysis: &Analysis<'_>) -> Result<(), PlanError> {
    let traits = &analysis.traits;
    if let Some(column) = &traits.system_column {
        return Err(PlanError::unsupported(format!(
            "system column \"{column}\" is not supported over several shards"
        ))
        .hint(RESTRICT));
    }
    if traits.statement_clock {
        return Err(PlanError::unsupported(
            "the time of the statement or of the call is not supported in writes over several shards",
        )
        .detail("Every shard has a clock of its own.")
        .hint("Use now(), which is one time for all shards."));
    }
    if let Some(name) = &traits.volatile
        && has_subquery(node)
    {
        return Err(PlanError::unsupported(format!(
            "volatile function \"{name}\" beside a subquery is not supported in writes over several shards"
        ))
        .detail("Every shard would compute a value of its own.")
        .hint("Compute the value first, and write it into the statement."));
    }
    Ok(())
}

fn has_subquery(node: &NodeEnum) -> bool {
    let mut found = false;
    tree::walk(node, &mut |child| {
        found |= matches!(
            child,
            Child::Node(NodeEnum::SelectStmt(_)) | Child::Select(_)
        );
    });
    found
}

pub(crate) fn returns_rows(node: &NodeEnum) -> bool {
    let clause = match node {
        NodeEnum::InsertStmt(insert) => &insert.returning_clause,
        NodeEnum::UpdateStmt(update) => &update.returning_clause,
        NodeEnum::DeleteStmt(delete) => &delete.returning_clause,
        NodeEnum::MergeStmt(merge) => &merge.returning_clause,
        _ => &None,
    };
    clause
        .as_ref()
        .is_some_and(|clause| !clause.exprs.is_empty())
}

/// The statement with every reading of the transaction's timestamp replaced by one value for all
/// shards; `None` when it has none.
pub(crate) fn with_one_clock(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
) -> Result<Option<Template>, PlanError> {
    let clocks = &analysis.traits.clocks;
    if clocks.iter().all(|clock| clock.in_view) {
        return Ok(None);
    }
    let template = clock::one_time(statement.own_text());
    let template = template.ok_or_else(|| {
        PlanError::unsupported("the statement's use of now() is not understood")
            .hint("Write the time into the statement.")
    })?;
    Ok(Some(template))
}

// ---- reference tables ----

fn write_copies(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    relation: &Relation,
    kind: &'static str,
) -> Result<Draft, PlanError> {
    refuse_positioned(statement.node)?;
    refuse_assigned_defaults(statement, relation)?;
    refuse_uneven_copies(statement, analysis, relation)?;
    let sql = with_one_clock(statement, analysis)?;
    let reusable = sql.is_none();
    let returning = returns_rows(statement.node);
    let multi = Multi {
        shards: ShardSet::All,
        sql,
        returning,
        copies: true,
        needs_block: false,
        moves: Vec::new(),
    };
    Ok(Draft::new(Plan::Multi(multi), kind).reusable(reusable))
}

/// Every shard must come to the same rows from its own copies.
fn refuse_uneven_copies(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    relation: &Relation,
) -> Result<(), PlanError> {
    refuse_uneven_traits(statement, analysis, relation, &analysis.traits)
}

/// The same, with what is known about functions given apart.
pub(crate) fn refuse_uneven_traits(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    relation: &Relation,
    traits: &Traits,
) -> Result<(), PlanError> {
    let refuse = |detail: String| {
        PlanError::unsupported(format!(
            "this change of reference table \"{}\" is not supported",
            relation.name.name
        ))
        .detail(detail)
        .hint("A reference table has a copy on every shard: write values into the statement that every shard computes alike.")
    };
    if analysis.strange {
        return Err(refuse(
            "The statement has parts that are not looked into.".to_owned(),
        ));
    }
    if analysis.writes_in_with {
        return Err(refuse("It writes inside WITH.".to_owned()));
    }
    let other = analysis.occurrences.iter().find(
        |one| !matches!(one.found, Found::Known(known) | Found::Unread(known) if known.placement == Placement::Reference),
    );
    if let Some(one) = other {
        return Err(refuse(format!(
            "It reads \"{}\", which is not a reference table.",
            one.range.relname
        )));
    }
    if let Some(why) = &traits.home {
        return Err(refuse(why.clone()));
    }
    if let Some(name) = &traits.volatile {
        return Err(refuse(format!("Function \"{name}\" is volatile.")));
    }
    if traits.statement_clock {
        return Err(refuse("Every shard has a clock of its own.".to_owned()));
    }
    if let Some(column) = &traits.system_column {
        return Err(refuse(format!(
            "Copies have different values of system column \"{column}\"."
        )));
    }
    if let Some(what) = depends_on_order(statement.node) {
        return Err(refuse(format!(
            "The result of {what} can depend on the order in which a shard reads its copy."
        )));
    }
    Ok(())
}

/// Aggregates whose result depends on the order of their input.
const ORDERED_AGGREGATES: &[&str] = &[
    "array_agg",
    "string_agg",
    "json_agg",
    "jsonb_agg",
    "json_object_agg",
    "jsonb_object_agg",
    "xmlagg",
    "first_value",
    "last_value",
    "nth_value",
    "row_number",
    "lag",
    "lead",
    "ntile",
];

/// The result of a SELECT can depend on the order in which rows are read.
fn ordered(select: &protobuf::SelectStmt) -> bool {
    let node = NodeEnum::SelectStmt(Box::new(select.clone()));
    depends_on_order(&node).is_some()
}

fn depends_on_order(node: &NodeEnum) -> Option<&'static str> {
    let mut what = None;
    if let NodeEnum::UpdateStmt(update) = node
        && !update.from_clause.is_empty()
    {
        return Some("UPDATE ... FROM");
    }
    let mut select = |select: &protobuf::SelectStmt| {
        if select.limit_count.is_some() || select.limit_offset.is_some() {
            what = Some("LIMIT");
        }
        if select
            .distinct_clause
            .iter()
            .any(|node| node.node.is_some())
        {
            what = Some("DISTINCT ON");
        }
    };
    let mut aggregate = false;
    tree::walk(node, &mut |child| match child {
        Child::Node(NodeEnum::SelectStmt(inner)) => select(inner),
        Child::Select(inner) => select(inner),
        Child::Node(NodeEnum::FuncCall(call)) => {
            let names = strings(&call.funcname);
            aggregate |= names
                .last()
                .is_some_and(|name| ORDERED_AGGREGATES.contains(name));
        }
        _ => {}
    });
    what.or(aggregate.then_some("an aggregate"))
}

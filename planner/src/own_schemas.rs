//! The proxy's own schemas are not there for who looks at the system catalogs: a client sees what one
//! Postgres would have.
//!
//! In a SELECT that runs on the home shard, catalogs are read without what is in those schemas. Views
//! and functions of users read the catalogs as they are, and so does every other statement.

use std::collections::{BTreeMap, HashSet};

use pg_query::{NodeEnum, protobuf};

use crate::{
    analysis::{self, Analysis, CLIENT_TEXT, Occurrence},
    builtins, holes,
    plan::{Plan, PlanError, ShardSet, Target},
    route::Statement,
    scope::Found,
    splice::Edits,
    sql::identifier,
    statement::Draft,
    tree::{self, Child, strings},
    views::Views,
    write,
};

/// Whether a session sees the proxy's own schemas in the system catalogs.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub enum OwnSchemas {
    /// It does not.
    #[default]
    Hidden,
    /// It does.
    Shown,
}

const INFORMATION_SCHEMA: &str = "information_schema";

/// Their names, as a regular expression.
const NAMES: &str = "'^automator67(_|$)'";

/// Triggers that keep global unique indexes have such names.
const TRIGGERS: &str = "'^a67_'";

/// How a row of a catalog tells that it is of such a schema.
#[derive(Clone, Copy)]
enum By {
    /// A column has the schema's name.
    Name(&'static str),
    /// A column has the schema's OID.
    Schema(&'static str),
    /// A column has the OID of a relation of the schema.
    Relation(&'static str),
}

/// A SELECT for the home shard, with other texts in the places of system catalogs.
pub(crate) fn hide(statement: &Statement<'_>, draft: Draft) -> Result<Draft, PlanError> {
    let hides = statement.context.own_schemas == OwnSchemas::Hidden;
    if !hides || !matches!(draft.plan, Plan::Single(Target::Home)) || !names_catalog(statement) {
        return Ok(draft);
    }
    let views = Views::load(statement.catalog, statement.context, statement.node)?;
    let analysis = analysis::analyse(statement.catalog, statement.context, &views, statement.node)?;
    let Some(text) = without_own(statement, &analysis) else {
        return Ok(draft);
    };
    let hidden = write::timed(ShardSet::Home, holes::template(&text), draft.kind);
    Ok(hidden.session(draft.session))
}

fn names_catalog(statement: &Statement<'_>) -> bool {
    let NodeEnum::SelectStmt(select) = statement.node else {
        return false;
    };
    let mut found = false;
    tree::walk_select(select, &mut |child| {
        if let Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) = child {
            found |= of(range).is_some();
        }
    });
    found && select.into_clause.is_none()
}

/// `None`: nothing is to be hidden, or it is not certain how.
fn without_own(statement: &Statement<'_>, analysis: &Analysis<'_>) -> Option<String> {
    let mut edits = Edits::default();
    let replaced = replace(statement, analysis, None, &mut edits)?;
    if replaced == 0 {
        return None;
    }
    let text = edits.apply(statement.text, statement.span)?;
    crate::parse::parse_one(&text)?;
    Some(text)
}

/// Puts subqueries in the places of catalogs. Beside sums, some have one already: those that stand at
/// `summed`. How many; `None`: it is not certain how.
pub(crate) fn replace(
    statement: &Statement<'_>,
    analysis: &Analysis<'_>,
    summed: Option<&HashSet<i32>>,
    edits: &mut Edits,
) -> Option<usize> {
    if analysis.locks || analysis.writes_in_with || analysis.strange {
        return None;
    }
    let system = analysis.names.keys();
    let system = system.filter(|name| builtins::is_system_column(name));
    let mut system: Vec<&str> = system.map(String::as_str).collect();
    system.sort_unstable();
    let source = statement.source();
    // What WITH is used for twice stands there once.
    let mut replacements = BTreeMap::new();
    for one in &analysis.occurrences {
        let done = summed.is_some_and(|done| done.contains(&one.range.location));
        let Some(by) = hidden_of(one).filter(|_| !done) else {
            continue;
        };
        // Beside `*`, system columns would be columns of their own.
        let plain = system.is_empty() || !one.whole && !has_natural_join(statement.node);
        if !plain || !one.range.inh || one.text != CLIENT_TEXT {
            return None;
        }
        let (start, end) = source.name(usize::try_from(one.range.location).ok()?)?;
        let text = subquery(one.range, by, &system);
        // `TABLE pg_class` is a whole SELECT.
        let (start, text) = match source.word_before(start, "table") {
            Some(table) => (table, format!("SELECT * FROM {text}")),
            None => (start, text),
        };
        replacements.insert((start, end), (one.range, text));
    }
    let mut bare = HashSet::new();
    let count = replacements.len();
    for (span, (range, text)) in replacements {
        edits.replace(span, text);
        if range.alias.is_none() {
            bare.insert((range.schemaname.as_str(), range.relname.as_str()));
        }
    }
    for column in qualified_columns(statement.node, &bare) {
        let name = strings(&column.fields).last().copied().unwrap_or_default();
        // Sums have replaced those.
        if summed.is_some() && builtins::is_summed_column(name) {
            continue;
        }
        let location = usize::try_from(column.location).ok()?;
        edits.replace(source.qualifiers(location, 1)?, "");
    }
    Some(count)
}

/// References with a schema, which a subquery has none of: `pg_catalog.pg_class.oid`.
fn qualified_columns<'t>(
    node: &'t NodeEnum,
    relations: &HashSet<(&str, &str)>,
) -> Vec<&'t protobuf::ColumnRef> {
    let mut found = Vec::new();
    tree::walk(node, &mut |child| {
        if let Child::Node(NodeEnum::ColumnRef(column)) = child
            && let [schema, relation, ..] = strings(&column.fields).as_slice()
            && column.fields.len() > 2
            && relations.contains(&(*schema, *relation))
        {
            found.push(column);
        }
    });
    found
}

/// What holds for rows of a catalog, under another name, that are to be seen.
pub(crate) fn condition(
    statement: &Statement<'_>,
    range: &protobuf::RangeVar,
    row: &str,
) -> Option<String> {
    let hides = statement.context.own_schemas == OwnSchemas::Hidden;
    let by = of(range).filter(|_| hides)?;
    Some(conditions(&range.relname, by, row))
}

fn hidden_of(one: &Occurrence<'_>) -> Option<By> {
    match one.found {
        Found::Home => of(one.range),
        Found::Known(_) | Found::Unread(_) | Found::Proxy(_) => None,
    }
}

fn has_natural_join(node: &NodeEnum) -> bool {
    let mut found = false;
    tree::walk(node, &mut |child| {
        if let Child::Node(NodeEnum::JoinExpr(join)) = child {
            found |= join.is_natural;
        }
    });
    found
}

/// The catalog without rows of the proxy's schemas, with the system columns that are asked for.
fn subquery(range: &protobuf::RangeVar, by: By, system: &[&str]) -> String {
    let columns: String = system
        .iter()
        .map(|name| format!("a67_h.{name}, "))
        .collect();
    let schema = match range.schemaname.as_str() {
        "" => "pg_catalog",
        schema => schema,
    };
    let relation = identifier(&range.relname);
    let alias = match range.alias {
        Some(_) => String::new(),
        None => format!(" {relation}"),
    };
    let conditions = conditions(&range.relname, by, "a67_h");
    format!("(SELECT {columns}a67_h.* FROM {schema}.{relation} a67_h WHERE {conditions}){alias}")
}

fn conditions(relation: &str, by: By, row: &str) -> String {
    let schemas = format!(
        "(SELECT a67_n.oid FROM pg_catalog.pg_namespace a67_n \
         WHERE a67_n.nspname::text OPERATOR(pg_catalog.~) {NAMES})"
    );
    let of_schema = match by {
        By::Name(column) => {
            format!("{row}.{column}::text OPERATOR(pg_catalog.!~) {NAMES}")
        }
        By::Schema(column) => {
            format!("{row}.{column} OPERATOR(pg_catalog.<>) ALL (ARRAY{schemas})")
        }
        By::Relation(column) => format!(
            "{row}.{column} OPERATOR(pg_catalog.<>) ALL (ARRAY(SELECT a67_c.oid \
             FROM pg_catalog.pg_class a67_c \
             WHERE a67_c.relnamespace OPERATOR(pg_catalog.=) ANY (ARRAY{schemas})))"
        ),
    };
    let trigger = match relation {
        "pg_trigger" => "tgname",
        "triggers" | "triggered_update_columns" => "trigger_name",
        _ => return of_schema,
    };
    format!("{of_schema} AND {row}.{trigger}::text OPERATOR(pg_catalog.!~) {TRIGGERS}")
}

/// How rows of the proxy's schemas are told in a catalog that has some.
fn of(range: &protobuf::RangeVar) -> Option<By> {
    let name = range.relname.as_str();
    match range.schemaname.as_str() {
        INFORMATION_SCHEMA => of_information_schema(name),
        "" | "pg_catalog" => of_catalog(name),
        _ => None,
    }
}

fn of_catalog(name: &str) -> Option<By> {
    Some(match name {
        "pg_namespace" => By::Name("nspname"),
        "pg_class" => By::Schema("relnamespace"),
        "pg_proc" => By::Schema("pronamespace"),
        "pg_type" => By::Schema("typnamespace"),
        "pg_constraint" => By::Schema("connamespace"),
        "pg_attribute" => By::Relation("attrelid"),
        "pg_attrdef" => By::Relation("adrelid"),
        "pg_index" => By::Relation("indrelid"),
        "pg_rewrite" => By::Relation("ev_class"),
        "pg_sequence" => By::Relation("seqrelid"),
        "pg_trigger" => By::Relation("tgrelid"),
        "pg_tables"
        | "pg_views"
        | "pg_matviews"
        | "pg_indexes"
        | "pg_sequences"
        | "pg_rules"
        | "pg_policies"
        | "pg_stats"
        | "pg_stat_all_tables"
        | "pg_stat_user_tables"
        | "pg_stat_all_indexes"
        | "pg_stat_user_indexes"
        | "pg_statio_all_tables"
        | "pg_statio_user_tables"
        | "pg_statio_all_indexes"
        | "pg_statio_user_indexes"
        | "pg_statio_all_sequences"
        | "pg_statio_user_sequences"
        | "pg_stat_user_functions"
        | "pg_stat_xact_all_tables"
        | "pg_stat_xact_user_tables" => By::Name("schemaname"),
        _ => return None,
    })
}

fn of_information_schema(name: &str) -> Option<By> {
    let column = match name {
        "schemata" => "schema_name",
        "tables"
        | "columns"
        | "views"
        | "table_constraints"
        | "table_privileges"
        | "column_privileges"
        | "role_table_grants"
        | "role_column_grants"
        | "key_column_usage"
        | "constraint_column_usage"
        | "constraint_table_usage"
        | "column_udt_usage"
        | "column_domain_usage"
        | "column_options"
        | "view_routine_usage" => "table_schema",
        "referential_constraints" | "check_constraints" => "constraint_schema",
        "routines" | "routine_privileges" | "role_routine_grants" => "routine_schema",
        "parameters" => "specific_schema",
        "sequences" => "sequence_schema",
        "triggers" | "triggered_update_columns" => "event_object_schema",
        "view_table_usage" | "view_column_usage" => "view_schema",
        "usage_privileges" | "role_usage_grants" | "data_type_privileges" | "element_types" => {
            "object_schema"
        }
        _ => return None,
    };
    Some(By::Name(column))
}

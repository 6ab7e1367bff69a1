//! CREATE TABLE AS, SELECT INTO, CREATE MATERIALIZED VIEW: the rows on the home shard, the empty
//! table everywhere.

use pg_query::{
    NodeEnum,
    protobuf::{self, ObjectType},
};

use crate::{
    analysis::{self, Analysis},
    cursor, ddl, gather, parse,
    plan::{Plan, PlanError, SessionEffects, Target},
    route::{self, Statement, Verdict},
    scope::Found,
    statement::Draft,
    tree::inner,
    views::Views,
};

/// CREATE TABLE AS and CREATE MATERIALIZED VIEW.
pub(crate) fn create(
    statement: &Statement<'_>,
    create: &protobuf::CreateTableAsStmt,
) -> Result<Draft, PlanError> {
    let range = create.into.as_ref().and_then(|into| into.rel.as_ref());
    let (Some(query), Some(range)) = (inner(&create.query), range) else {
        return Ok(Draft::home("ddl"));
    };
    ddl::refuse_reserved(statement)?;
    if let NodeEnum::ExecuteStmt(execute) = query {
        if ddl::is_temporary(range) {
            let plan = cursor::execute_behind(statement, execute)?;
            return Ok(Draft {
                plan,
                ..ddl::at_home()
            });
        }
        return Err(
            PlanError::unsupported("CREATE TABLE AS EXECUTE is not supported")
                .hint("Write the query itself, or make a temporary table."),
        );
    }
    let materialized = create.objtype() == ObjectType::ObjectMatview;
    place(statement, query, range, materialized, || {
        without_data(statement)
    })
}

/// SELECT ... INTO.
pub(crate) fn select_into(
    statement: &Statement<'_>,
    select: &protobuf::SelectStmt,
) -> Result<Draft, PlanError> {
    let range = select
        .into_clause
        .as_ref()
        .and_then(|into| into.rel.as_ref());
    let Some(range) = range else {
        return Ok(Draft::home("ddl"));
    };
    ddl::refuse_reserved(statement)?;
    place(statement, statement.node, range, false, || {
        created_empty(statement, range)
    })
}

/// `SELECT a INTO t FROM b` -> `CREATE TABLE t AS SELECT a FROM b WITH NO DATA`.
fn created_empty(statement: &Statement<'_>, range: &protobuf::RangeVar) -> Option<String> {
    let source = statement.source();
    let (name_start, name_end) = source.name(usize::try_from(range.location).ok()?)?;
    let mut at = source.token_at(name_start)?;
    // INTO [UNLOGGED] [TABLE] name
    for word in ["table", "unlogged", "into"] {
        if source.is_word(at.checked_sub(1)?, word) {
            at -= 1;
        }
    }
    if !source.is_word(at, "into") {
        return None;
    }
    let unlogged = if range.relpersistence == "u" {
        "UNLOGGED "
    } else {
        ""
    };
    let last = source.token_from(statement.span.1).checked_sub(1)?;
    let (start, end) = (statement.span.0, source.tokens[last].end);
    let before = statement.text.get(start..source.tokens[at].start)?;
    let behind = statement.text.get(name_end..end)?;
    let name = &statement.text[name_start..name_end];
    Some(format!(
        "CREATE {unlogged}TABLE {name} AS {before}{behind} WITH NO DATA"
    ))
}

fn place(
    statement: &Statement<'_>,
    query: &NodeEnum,
    range: &protobuf::RangeVar,
    materialized: bool,
    elsewhere: impl FnOnce() -> Option<String>,
) -> Result<Draft, PlanError> {
    refuse_tenant(statement, range, materialized)?;
    let (catalog, context) = (statement.catalog, statement.context);
    let views = Views::load(catalog, context, query)?;
    let analysis = analysis::analyse(catalog, context, &views, query)?;
    crate::session::refuse_set_config(statement, &analysis)?;
    let temporary = ddl::is_temporary(range);
    if !temporary && catalog.shards.len() > 1 {
        refuse_temporary(&analysis)?;
    }
    if temporary {
        ddl::refuse_hiding(catalog, &range.relname)?;
    }
    let verdict = route::verdict(statement, &analysis)?;
    refuse(&analysis, &verdict, materialized, temporary)?;
    let home = match verdict {
        Verdict::AnyCopy | Verdict::Home => None,
        // The new table is on the home shard, so that is where its rows must come to.
        Verdict::Key(..) => Some("the new table is on the home shard".to_owned()),
        Verdict::Many(reason) => Some(reason),
    };
    let home = match home {
        None if temporary => return Ok(ddl::at_home()),
        None => Plan::Single(Target::Home),
        Some(reason) => Plan::Gather(gather::gather(statement, &analysis, &views, reason)?),
    };
    if temporary {
        return Ok(Draft::new(home, "ddl").session(ddl::at_home().session));
    }
    let elsewhere = elsewhere().filter(|text| parse::parse_one(text).is_some());
    let elsewhere = elsewhere.ok_or_else(|| {
        PlanError::unsupported("this form of CREATE TABLE AS is not supported")
            .hint("Write: CREATE TABLE name AS SELECT ...")
    })?;
    let plan = Plan::CreateTableAs {
        home: Box::new(home),
        elsewhere,
    };
    let session = SessionEffects {
        moves_sequence: analysis.traits.moves_sequence,
        sets_sequence: analysis.traits.sets_sequence,
        reads_sequence: analysis.traits.reads_sequence,
        ..SessionEffects::default()
    };
    Ok(Draft::new(plan, "ddl").session(session).changes_catalog())
}

/// The other shards make the empty table by the same text.
fn refuse_temporary(analysis: &Analysis<'_>) -> Result<(), PlanError> {
    let mut occurrences = analysis.occurrences.iter();
    let temporary = occurrences.find(|one| one.found.is_temporary());
    let Some(one) = temporary else {
        return Ok(());
    };
    Err(PlanError::unsupported(format!(
        "CREATE TABLE AS from temporary table \"{}\" is not supported",
        one.range.relname
    ))
    .detail("Temporary tables are on the home shard alone.")
    .hint("Make a temporary table, or CREATE TABLE and then INSERT ... SELECT."))
}

/// The table's rows would be made on the home shard, and belong to the schema's.
fn refuse_tenant(
    statement: &Statement<'_>,
    range: &protobuf::RangeVar,
    materialized: bool,
) -> Result<(), PlanError> {
    let (catalog, path) = (statement.catalog, statement.context.search_path);
    let first = path.iter().find(|schema| catalog.schemas.contains(schema));
    let schema = match range.schemaname.as_str() {
        "" => first.map_or("", String::as_str),
        given => given,
    };
    if materialized || ddl::is_temporary(range) || !catalog.tenants.contains_key(schema) {
        return Ok(());
    }
    Err(PlanError::unsupported(format!(
        "CREATE TABLE AS in distributed schema \"{schema}\" is not supported"
    ))
    .hint("Create the table, then INSERT ... SELECT."))
}

fn refuse(
    analysis: &Analysis<'_>,
    verdict: &Verdict,
    materialized: bool,
    temporary: bool,
) -> Result<(), PlanError> {
    let elsewhere = matches!(verdict, Verdict::Key(..) | Verdict::Many(_));
    if materialized && elsewhere {
        return Err(PlanError::unsupported(
            "materialized views of distributed tables are not supported",
        )
        .hint("Use CREATE TABLE AS, or a view."));
    }
    if analysis.writes_in_with && elsewhere {
        return Err(PlanError::unsupported(
            "writes inside WITH are not supported over several shards",
        ));
    }
    let proxy = analysis
        .occurrences
        .iter()
        .any(|one| matches!(one.found, Found::Proxy(_)));
    if proxy && !temporary {
        return Err(PlanError::unsupported(
            "a table of rows that the proxy has can only be a temporary one",
        )
        .hint("Write: CREATE TEMPORARY TABLE name AS ..."));
    }
    Ok(())
}

/// The client's text with `WITH NO DATA`.
fn without_data(statement: &Statement<'_>) -> Option<String> {
    let source = statement.source();
    let behind = source.token_from(statement.span.1);
    let last = behind.checked_sub(1)?;
    let text = |to: usize| statement.text.get(statement.span.0..to);
    if source.is_word(last, "data") && last >= 2 {
        if source.is_word(last - 1, "no") {
            return text(source.tokens[last].end).map(str::to_owned);
        }
        if source.is_word(last - 1, "with") {
            let head = text(source.tokens[last - 1].start)?;
            return Some(format!("{head}WITH NO DATA"));
        }
    }
    Some(format!("{} WITH NO DATA", text(source.tokens[last].end)?))
}

//! Changes of the schema go to every shard, so that all shards have every table; what would break
//! the placement of rows is refused.

use pg_query::{
    NodeEnum,
    protobuf::{self, DropBehavior, ObjectType, ReindexObjectType},
};

use crate::{
    analysis,
    catalog::{Catalog, Placement, QualifiedName, RelationKind, is_temporary_schema},
    functions::unsafe_function,
    gather::folded,
    normalise::{TokenKind, tokens},
    plan::{Ddl, Multi, Plan, PlanError, SessionEffects, ShardSet, Touches, TransactionBlock},
    route::{self, Statement},
    scope::{self, Found},
    sql::identifier,
    statement::Draft,
    tree::{self, Child, inner, nodes, strings},
    views::Views,
    write,
};

mod block;
mod everywhere;
mod names;
mod procedure;
mod table;
mod touches;

pub(crate) use block::block_code;

use self::everywhere::Reach;

/// Refuses a change of the schema that an event trigger would go along with, whose function does not
/// see all rows.
pub(crate) fn refuse_event_trigger(statement: &Statement<'_>) -> Result<(), PlanError> {
    let catalog = statement.catalog;
    let Some((name, why)) = &catalog.unsafe_event_trigger else {
        return Ok(());
    };
    if !catalog.has_placed_relations || fires_no_event_trigger(statement.node) {
        return Ok(());
    }
    Err(PlanError::unsupported(format!(
        "event trigger \"{name}\" may read or write distributed tables"
    ))
    .detail(why)
    .hint(format!(
        "ALTER EVENT TRIGGER {} DISABLE; or, if its function touches no distributed or reference table: select automator67.declare_safe('f')",
        identifier(name)
    )))
}

/// The manual, "Event Trigger Firing Matrix".
fn fires_no_event_trigger(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::CreateEventTrigStmt(_)
        | NodeEnum::AlterEventTrigStmt(_)
        | NodeEnum::VacuumStmt(_)
        | NodeEnum::TruncateStmt(_)
        | NodeEnum::ClusterStmt(_) => true,
        NodeEnum::DropStmt(drop) => drop.remove_type() == ObjectType::ObjectEventTrigger,
        _ => false,
    }
}

/// The plan of a change of the schema, or of any statement that is not a query.
pub(crate) fn ddl(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    let mut draft = plan(statement)?;
    if draft.session.changes_catalog
        && let Plan::Ddl(ddl) = &mut draft.plan
    {
        ddl.touches = touches::touches(statement);
    }
    Ok(draft)
}

fn plan(statement: &Statement<'_>) -> Result<Draft, PlanError> {
    match statement.node {
        NodeEnum::DoStmt(block) => return block::block(statement, block),
        NodeEnum::CallStmt(call) => return procedure::call(statement, call),
        NodeEnum::TruncateStmt(truncate) => return truncate_tables(statement, truncate),
        NodeEnum::LockStmt(lock) => return lock_tables(statement, lock),
        NodeEnum::RefreshMatViewStmt(refresh) => return refresh_view(statement, refresh),
        NodeEnum::VacuumStmt(vacuum) => return Ok(vacuum_tables(statement, vacuum)),
        NodeEnum::ReindexStmt(reindex) => return Ok(reindex_tables(statement, reindex)),
        NodeEnum::ClusterStmt(cluster) => {
            let range = cluster.relation.as_ref();
            if range.is_some_and(|range| names::is_temporary(statement, range)) {
                return Ok(Draft::home("ddl").writes());
            }
            // Of a partitioned table each part is done by itself.
            let block = match range {
                Some(_) => TransactionBlock::Unneeded,
                None => TransactionBlock::Refused,
            };
            return Ok(broadcast(block).keeps_catalog());
        }
        _ if is_of_large_object(statement.node) => return Ok(Draft::home("ddl").writes()),
        _ => {}
    }
    refuse_reserved(statement)?;
    refuse_kind(statement)?;
    if names::are_of_session(statement)? {
        return Ok(at_home());
    }
    match everywhere::reach(statement.node) {
        Reach::Everywhere => {}
        Reach::Home => return Ok(Draft::home("ddl").writes()),
        Reach::Unjudged if statement.catalog.shards.len() > 1 => return Err(unjudged()),
        Reach::Unjudged => return Ok(Draft::home("ddl").writes()),
    }
    match statement.node {
        NodeEnum::CreateStmt(create) => table::create(statement, create),
        NodeEnum::AlterTableStmt(alter) => table::alter(statement, alter),
        NodeEnum::IndexStmt(index) => {
            table::index(statement, index)?;
            let draft = broadcast(TransactionBlock::refused_if(index.concurrent));
            Ok(if is_plain_index(statement, index) {
                draft.keeps_catalog()
            } else {
                draft
            })
        }
        NodeEnum::CreateFunctionStmt(_) => {
            Ok(broadcast(TransactionBlock::Inside).checked_at_home())
        }
        NodeEnum::CreateTrigStmt(trigger) => {
            procedure::trigger(statement, trigger)?;
            Ok(broadcast(TransactionBlock::Inside))
        }
        NodeEnum::RuleStmt(rule) => {
            refuse_rule(statement, rule)?;
            Ok(broadcast(TransactionBlock::Inside))
        }
        NodeEnum::DropStmt(drop) => Ok(broadcast(TransactionBlock::refused_if(drop.concurrent))),
        NodeEnum::CommentStmt(_) => Ok(broadcast(TransactionBlock::Inside).keeps_catalog()),
        NodeEnum::AlterRoleStmt(alter) if only_logs_in(alter) => {
            Ok(broadcast(TransactionBlock::Inside).keeps_catalog())
        }
        NodeEnum::AlterSystemStmt(_)
        | NodeEnum::CreateTableSpaceStmt(_)
        | NodeEnum::DropTableSpaceStmt(_) => Ok(broadcast(TransactionBlock::Refused)),
        _ => Ok(broadcast(TransactionBlock::Inside)),
    }
}

fn unjudged() -> PlanError {
    PlanError::unsupported("this statement is not supported over several shards")
        .detail("It is not known to do the same on every server.")
        .hint("Run it on the servers themselves.")
}

/// Large objects are on the home shard.
fn is_of_large_object(node: &NodeEnum) -> bool {
    let kind = match node {
        NodeEnum::GrantStmt(grant) => grant.objtype(),
        NodeEnum::CommentStmt(comment) => comment.objtype(),
        NodeEnum::SecLabelStmt(label) => label.objtype(),
        NodeEnum::AlterOwnerStmt(alter) => alter.object_type(),
        _ => return false,
    };
    kind == ObjectType::ObjectLargeobject
}

/// It changes how the role logs in, and nothing of what it may.
fn only_logs_in(alter: &protobuf::AlterRoleStmt) -> bool {
    let mut options = nodes(&alter.options);
    options.all(|option| match option {
        NodeEnum::DefElem(option) => {
            matches!(
                option.defname.as_str(),
                "password" | "validUntil" | "connectionlimit"
            )
        }
        _ => false,
    })
}

/// Types that have a built-in class of operators for a btree: `boolean` to `jsonb`.
const BUILT_IN_BTREE: [u32; 21] = [
    16, 17, 18, 19, 20, 21, 23, 25, 26, 700, 701, 1042, 1043, 1082, 1083, 1114, 1184, 1266, 1700,
    2950, 3802,
];

/// The snapshot of the catalog is the same before and after it: it runs no code of an expression or of
/// a class of operators of the user's.
fn is_plain_index(statement: &Statement<'_>, index: &protobuf::IndexStmt) -> bool {
    let range = index.relation.as_ref();
    let known = range.and_then(|one| scope::find_known(statement.catalog, statement.context, one));
    let plain = |name: &str| {
        let columns = known.into_iter().flat_map(|relation| &relation.columns);
        let mut named = columns.filter(|column| column.name == name);
        named.any(|column| BUILT_IN_BTREE.contains(&column.type_oid))
    };
    let of_columns = nodes(&index.index_params).all(|node| match node {
        NodeEnum::IndexElem(element) => {
            element.expr.is_none() && element.opclass.is_empty() && plain(&element.name)
        }
        _ => false,
    });
    let btree = matches!(index.access_method.as_str(), "" | "btree");
    of_columns && btree && !index.unique && index.where_clause.is_none()
}

/// Defines or removes something, and runs nothing of what it names.
pub(crate) fn runs_nothing(node: &NodeEnum) -> bool {
    matches!(
        node,
        NodeEnum::CreateFunctionStmt(_)
            | NodeEnum::AlterFunctionStmt(_)
            | NodeEnum::CreateTrigStmt(_)
            | NodeEnum::CreateEventTrigStmt(_)
            | NodeEnum::CreateStmt(_)
            | NodeEnum::CreateSeqStmt(_)
            | NodeEnum::CreateDomainStmt(_)
            | NodeEnum::CreateCastStmt(_)
            | NodeEnum::CreatePolicyStmt(_)
            | NodeEnum::AlterPolicyStmt(_)
            | NodeEnum::CreateRoleStmt(_)
            | NodeEnum::DefineStmt(_)
            | NodeEnum::ViewStmt(_)
            | NodeEnum::RuleStmt(_)
            | NodeEnum::DropStmt(_)
            | NodeEnum::GrantStmt(_)
            | NodeEnum::GrantRoleStmt(_)
            | NodeEnum::CommentStmt(_)
            | NodeEnum::RenameStmt(_)
            | NodeEnum::AlterOwnerStmt(_)
            | NodeEnum::AlterObjectSchemaStmt(_)
    )
}

fn broadcast(block: TransactionBlock) -> Draft {
    let ddl = Ddl {
        block,
        sql: None,
        home_only: false,
        creates_table: None,
        must_be_empty: Vec::new(),
        checked_at_home: false,
        touches: Touches::Everything,
    };
    Draft::new(Plan::Ddl(ddl), "ddl").changes_catalog()
}

/// For temporary objects, which live in one server session.
pub(crate) fn at_home() -> Draft {
    let ddl = Ddl {
        block: TransactionBlock::Inside,
        sql: None,
        home_only: true,
        creates_table: None,
        must_be_empty: Vec::new(),
        checked_at_home: false,
        touches: Touches::Everything,
    };
    Draft::new(Plan::Ddl(ddl), "ddl").session(SessionEffects {
        pins: true,
        writes: true,
        ..SessionEffects::default()
    })
}

impl Draft {
    fn keeps_catalog(mut self) -> Self {
        self.session.changes_catalog = false;
        self
    }

    fn checked_at_home(mut self) -> Self {
        if let Plan::Ddl(ddl) = &mut self.plan {
            ddl.checked_at_home = true;
        }
        self
    }
}

// ---- names ----

/// The schema of the proxy's own catalog, and names of tables that gather makes.
pub(crate) fn refuse_reserved(statement: &Statement<'_>) -> Result<(), PlanError> {
    let text = statement.own_text();
    let list = tokens(text);
    let name = |at: usize| {
        let token = list.get(at)?;
        matches!(token.kind, TokenKind::Word | TokenKind::QuotedIdentifier)
            .then(|| folded(&text[token.start..token.end]))
    };
    for at in 0..list.len() {
        let Some(word) = name(at) else { continue };
        let qualifies = list
            .get(at + 1)
            .is_some_and(|next| next.kind == TokenKind::Punctuation('.'));
        let of_schema =
            (at.saturating_sub(3)..at).any(|before| name(before).as_deref() == Some("schema"));
        if (word == "automator67" || word == "automator67_index")
            && (qualifies || of_schema)
            && changes(statement.node)
        {
            return Err(
                PlanError::new("42501", format!("permission denied for schema {word}"))
                    .detail("The proxy keeps its catalog there."),
            );
        }
        if word.starts_with("a67_") {
            return Err(
                PlanError::new("42501", format!("name \"{word}\" is reserved"))
                    .detail("Names that start with a67_ are the proxy's."),
            );
        }
    }
    Ok(())
}

/// A new view, table or function may read the proxy's schema; nothing may change it.
fn changes(node: &NodeEnum) -> bool {
    match node {
        NodeEnum::ViewStmt(view) => of_proxy(&view.view),
        NodeEnum::CreateTableAsStmt(create) => {
            of_proxy(&create.into.as_ref().and_then(|into| into.rel.clone()))
        }
        NodeEnum::SelectStmt(select) => of_proxy(
            &select
                .into_clause
                .as_ref()
                .and_then(|into| into.rel.clone()),
        ),
        NodeEnum::CreateFunctionStmt(function) => {
            strings(&function.funcname).first() == Some(&"automator67")
        }
        _ => true,
    }
}

fn of_proxy(range: &Option<protobuf::RangeVar>) -> bool {
    range
        .as_ref()
        .is_some_and(|range| range.schemaname == "automator67")
}

/// A temporary table hides others of its name; the planner would not know.
pub(crate) fn refuse_hiding(catalog: &Catalog, name: &str) -> Result<(), PlanError> {
    let hidden = catalog.relations.values().find(|relation| {
        relation.name.name == name
            && (relation.placement != Placement::Local || scope::is_view_on_placed(relation))
    });
    match hidden {
        None => Ok(()),
        Some(_) => Err(PlanError::unsupported(format!(
            "a temporary relation cannot have the name of \"{name}\""
        ))
        .detail("It would hide a distributed or reference table, or a view on one.")
        .hint("Use another name.")),
    }
}

/// CREATE TEMPORARY, or in the schema of temporary tables.
pub(crate) fn is_temporary(range: &protobuf::RangeVar) -> bool {
    range.relpersistence == "t" || is_temporary_schema(&range.schemaname)
}

/// The distributed and reference tables that a statement changes.
pub(crate) fn redefined(statement: &Statement<'_>) -> Vec<QualifiedName> {
    let path = statement.context.search_path;
    // Statements go on beside a new index; writers wait for it on the servers. A unique one changes
    // what ON CONFLICT means.
    if matches!(statement.node, NodeEnum::IndexStmt(index) if !index.unique) {
        return Vec::new();
    }
    // What changes no definition of rows goes on beside them.
    if matches!(
        statement.node,
        NodeEnum::GrantStmt(_) | NodeEnum::AlterOwnerStmt(_) | NodeEnum::SecLabelStmt(_)
    ) {
        return Vec::new();
    }
    let subjects = names::subjects(statement.node);
    subjects
        .iter()
        .filter(|name| name.is_relation())
        .filter_map(|name| {
            let schema = Some(name.schema.as_str()).filter(|schema| !schema.is_empty());
            statement.catalog.resolve(path, schema, &name.name)
        })
        .filter(|relation| relation.placement != Placement::Local)
        .map(|relation| relation.name.clone())
        .collect()
}

fn is_relation(kind: ObjectType) -> bool {
    matches!(
        kind,
        ObjectType::ObjectTable
            | ObjectType::ObjectView
            | ObjectType::ObjectSequence
            | ObjectType::ObjectIndex
            | ObjectType::ObjectMatview
            | ObjectType::ObjectForeignTable
    )
}

/// A temporary view would read placed tables on the home shard alone.
fn refuse_temporary_view(
    statement: &Statement<'_>,
    view: &protobuf::ViewStmt,
) -> Result<(), PlanError> {
    let Some(query) = inner(&view.query) else {
        return Ok(());
    };
    let views = Views::load(statement.catalog, statement.context, query)?;
    let analysis = analysis::analyse(statement.catalog, statement.context, &views, query)?;
    let placed = analysis
        .occurrences
        .iter()
        .any(|one| one.found.placed().is_some() || matches!(one.found, Found::Proxy(_)));
    if placed || analysis.strange {
        return Err(PlanError::unsupported(
            "temporary views of distributed and reference tables are not supported",
        )
        .hint("Create a view that is not temporary, or use WITH."));
    }
    Ok(())
}

// ---- what is refused whole ----

fn refuse_kind(statement: &Statement<'_>) -> Result<(), PlanError> {
    let refuse = |what: &str, hint: &str| {
        Err(PlanError::unsupported(format!("{what} is not supported")).hint(hint))
    };
    match statement.node {
        NodeEnum::CreatedbStmt(_) | NodeEnum::DropdbStmt(_) => refuse(
            "creating or dropping databases through the proxy",
            "One proxy serves one database. Connect to the servers themselves.",
        ),
        NodeEnum::CreateSubscriptionStmt(_)
        | NodeEnum::AlterSubscriptionStmt(_)
        | NodeEnum::DropSubscriptionStmt(_) => refuse(
            "logical replication through the proxy",
            "Connect to the servers themselves.",
        ),
        NodeEnum::AlterRoleSetStmt(alter) => crate::session::refuse_default(alter.setstmt.as_ref()),
        NodeEnum::AlterDatabaseSetStmt(alter) => {
            crate::session::refuse_default(alter.setstmt.as_ref())
        }
        NodeEnum::CreatePolicyStmt(policy) => {
            let range = policy.table.as_ref();
            let relation = range
                .and_then(|range| scope::find_known(statement.catalog, statement.context, range))
                .filter(|relation| relation.placement != Placement::Local);
            match relation {
                Some(_) => refuse(
                    "row security on distributed and reference tables",
                    "Use privileges, or a view.",
                ),
                None => Ok(()),
            }
        }
        _ => Ok(()),
    }
}

/// Rules rewrite statements inside a server, where the proxy does not see it.
fn refuse_rule(statement: &Statement<'_>, rule: &protobuf::RuleStmt) -> Result<(), PlanError> {
    let mut placed = false;
    let mut look = |range: &protobuf::RangeVar| {
        let known = scope::find_known(statement.catalog, statement.context, range);
        placed |= known.is_some_and(|relation| {
            relation.placement != Placement::Local || relation.reads_placed
        });
    };
    if let Some(range) = &rule.relation {
        look(range);
    }
    let condition = inner(&rule.where_clause).into_iter();
    for node in nodes(&rule.actions).chain(condition) {
        tree::walk(node, &mut |child| match child {
            Child::Node(NodeEnum::RangeVar(range)) | Child::Range(range) => look(range),
            _ => {}
        });
    }
    if placed {
        return Err(PlanError::unsupported(
            "rules that involve distributed or reference tables are not supported",
        )
        .hint("Use a trigger, or do it in the application."));
    }
    Ok(())
}

// ---- statements on whole tables ----

fn truncate_tables(
    statement: &Statement<'_>,
    truncate: &protobuf::TruncateStmt,
) -> Result<Draft, PlanError> {
    let catalog = statement.catalog;
    let ranges: Vec<&protobuf::RangeVar> = ranges(&truncate.relations);
    let known = |range: &&protobuf::RangeVar| scope::find_known(catalog, statement.context, range);
    for relation in ranges.iter().filter_map(known) {
        if catalog.has_placed_relations && relation.placement != Placement::Local {
            write::refuse_write(relation)?;
        }
    }
    let placed = ranges
        .iter()
        .filter_map(known)
        .any(|relation| relation.placement != Placement::Local);
    let cascades = truncate.behavior() == DropBehavior::DropCascade && catalog.has_placed_relations;
    let lasts = |range: &&protobuf::RangeVar| !names::is_temporary(statement, range);
    let unknown = ranges
        .iter()
        .any(|range| known(range).filter(|_| lasts(range)).is_none());
    if !placed && (!cascades || unknown) {
        let draft = Draft::home("truncate").writes();
        return Ok(if truncate.restart_seqs && catalog.has_placed_relations {
            draft.changes_catalog()
        } else {
            draft
        });
    }
    if unknown && !statement.context.temporary.is_empty() {
        return Err(PlanError::unsupported(
            "one statement cannot change temporary and other relations",
        )
        .hint("Use a statement for each."));
    }
    let draft = everywhere("truncate", false);
    Ok(if truncate.restart_seqs {
        draft.changes_catalog()
    } else {
        draft
    })
}

fn lock_tables(statement: &Statement<'_>, lock: &protobuf::LockStmt) -> Result<Draft, PlanError> {
    let placed = ranges(&lock.relations).into_iter().any(|range| {
        scope::find_known(statement.catalog, statement.context, range).is_some_and(|relation| {
            relation.placement != Placement::Local || scope::is_view_on_placed(relation)
        })
    });
    Ok(if placed {
        everywhere("lock", true)
    } else {
        Draft::home("lock").writes()
    })
}

fn everywhere(kind: &'static str, needs_block: bool) -> Draft {
    let multi = Multi {
        shards: ShardSet::All,
        sql: None,
        returning: false,
        copies: true,
        needs_block,
        moves: Vec::new(),
    };
    Draft::new(Plan::Multi(multi), kind).writes()
}

fn ranges(list: &[pg_query::Node]) -> Vec<&protobuf::RangeVar> {
    nodes(list)
        .filter_map(|node| match node {
            NodeEnum::RangeVar(range) => Some(range),
            _ => None,
        })
        .collect()
}

/// The rows of a materialized view are on the home shard.
fn refresh_view(
    statement: &Statement<'_>,
    refresh: &protobuf::RefreshMatViewStmt,
) -> Result<Draft, PlanError> {
    let catalog = statement.catalog;
    let relation = refresh
        .relation
        .as_ref()
        .and_then(|range| scope::find_known(catalog, statement.context, range));
    if let Some(relation) = relation.filter(|_| catalog.has_placed_relations) {
        write::refuse_write(relation)?;
    }
    let definition = relation
        .filter(|relation| relation.kind == RelationKind::MaterializedView && relation.reads_placed)
        .and_then(|relation| relation.view_definition.as_deref());
    let Some(definition) = definition else {
        return Ok(Draft::home("refresh").writes());
    };
    let refused = || {
        PlanError::unsupported(
            "materialized views of distributed tables cannot be refreshed through the proxy",
        )
        .hint("Use CREATE TABLE AS, or a view.")
    };
    let node = crate::parse::parse_one(definition.trim_end_matches(';')).ok_or_else(refused)?;
    let context = crate::statement::Context {
        search_path: &[],
        ..*statement.context
    };
    let views = Views::load(catalog, &context, &node)?;
    let analysis = analysis::analyse(catalog, &context, &views, &node)?;
    route::refuse_unsafe(catalog, &analysis)?;
    if analysis.strange || !route::distributed(&analysis).is_empty() {
        return Err(refused());
    }
    Ok(Draft::home("refresh").writes())
}

fn vacuum_tables(statement: &Statement<'_>, vacuum: &protobuf::VacuumStmt) -> Draft {
    let unknown = nodes(&vacuum.rels).any(|node| match node {
        NodeEnum::VacuumRelation(one) => one.relation.as_ref().is_some_and(|range| {
            scope::find_known(statement.catalog, statement.context, range).is_none()
                || names::is_temporary(statement, range)
        }),
        _ => false,
    });
    if unknown {
        // A temporary table, a system catalog, or an error.
        return Draft::home("vacuum").writes();
    }
    broadcast(TransactionBlock::refused_if(vacuum.is_vacuumcmd)).keeps_catalog()
}

fn reindex_tables(statement: &Statement<'_>, reindex: &protobuf::ReindexStmt) -> Draft {
    let concurrently = nodes(&reindex.params)
        .any(|node| matches!(node, NodeEnum::DefElem(option) if option.defname == "concurrently"));
    let many = !matches!(
        reindex.kind(),
        ReindexObjectType::ReindexObjectIndex | ReindexObjectType::ReindexObjectTable
    );
    let range = reindex.relation.as_ref();
    if range.is_some_and(|range| names::is_temporary(statement, range)) {
        return Draft::home("ddl").writes();
    }
    // Of a partitioned table or index each part is done by itself.
    let block = match concurrently || many {
        true => TransactionBlock::Refused,
        false => TransactionBlock::Unneeded,
    };
    broadcast(block).keeps_catalog()
}

/// The error for a function of a trigger or a block that is not safe.
fn refuse_function(name: &str, why: &str) -> PlanError {
    unsafe_function(name, why)
}

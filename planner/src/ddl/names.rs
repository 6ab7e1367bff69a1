//! What a change of the schema is about: something of the session, which lives on the home shard, or
//! something that every shard has.

use pg_query::{
    Node, NodeEnum,
    protobuf::{self, ObjectType},
};

use super::{is_relation, refuse_hiding, refuse_temporary_view};
use crate::{
    catalog::is_temporary_schema,
    plan::PlanError,
    route::Statement,
    tree::{self, Child, inner, nodes, strings},
};

/// A name as it stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    kind: Kind,
    pub(super) schema: String,
    pub(super) name: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Tables, views, sequences, indexes.
    Relation,
    Type,
    /// Functions, operators ...: temporary ones are found by their schema only.
    Other,
}

impl Name {
    pub(super) fn is_relation(&self) -> bool {
        self.kind == Kind::Relation
    }
}

/// A table, view, sequence or index of the session.
pub(super) fn is_temporary(statement: &Statement<'_>, range: &protobuf::RangeVar) -> bool {
    is_of_session(statement, &name_of_range(range))
}

/// True if the statement makes or changes something that lives in one server session. A name that
/// nobody knows is an error everywhere.
pub(super) fn are_of_session(statement: &Statement<'_>) -> Result<bool, PlanError> {
    if let Some(range) = made(statement.node).filter(|range| makes_temporary(statement, range)) {
        refuse_hiding(statement.catalog, &range.relname)?;
        if let NodeEnum::ViewStmt(view) = statement.node {
            refuse_temporary_view(statement, view)?;
        }
        return Ok(true);
    }
    let subjects = subjects(statement.node);
    let of_session = |name: &&Name| is_of_session(statement, name);
    let temporary = subjects.iter().filter(of_session).count();
    if temporary > 0 {
        if let NodeEnum::RenameStmt(rename) = statement.node {
            refuse_hiding(statement.catalog, &rename.newname)?;
        }
        return match temporary == subjects.len() {
            true => Ok(true),
            false => Err(PlanError::unsupported(
                "one statement cannot change temporary and other objects",
            )
            .hint("Use a statement for each.")),
        };
    }
    if !uses_temporary(statement) {
        return Ok(false);
    }
    // Postgres makes such a view a temporary one.
    if let NodeEnum::ViewStmt(view) = statement.node {
        let name = view
            .view
            .as_ref()
            .map_or("", |range| range.relname.as_str());
        refuse_hiding(statement.catalog, name)?;
        refuse_temporary_view(statement, view)?;
        return Ok(true);
    }
    if statement.catalog.shards.len() < 2 {
        return Ok(false);
    }
    Err(
        PlanError::unsupported("an object of all sessions cannot be made of temporary ones")
            .detail("Temporary objects are on the home shard alone.")
            .hint("Make it a temporary one, too, or use objects that are not temporary."),
    )
}

/// CREATE TEMPORARY, or in the schema of temporary tables.
pub(super) fn makes_temporary(statement: &Statement<'_>, range: &protobuf::RangeVar) -> bool {
    let path = statement.context.search_path;
    let first = path.first().is_some_and(|first| is_temporary_schema(first));
    super::is_temporary(range) || range.schemaname.is_empty() && first
}

fn made(node: &NodeEnum) -> Option<&protobuf::RangeVar> {
    match node {
        NodeEnum::CreateStmt(create) => create.relation.as_ref(),
        NodeEnum::ViewStmt(view) => view.view.as_ref(),
        NodeEnum::CreateSeqStmt(sequence) => sequence.sequence.as_ref(),
        NodeEnum::CompositeTypeStmt(composite) => composite.typevar.as_ref(),
        _ => None,
    }
}

fn is_of_session(statement: &Statement<'_>, name: &Name) -> bool {
    let (catalog, context) = (statement.catalog, statement.context);
    if is_temporary_schema(&name.schema) {
        return true;
    }
    let (path, known) = (context.search_path, context.temporary);
    match name.kind {
        Kind::Relation => known.has_relation(catalog, path, &name.schema, &name.name),
        Kind::Type => known.has_type(&name.schema, &name.name),
        Kind::Other => false,
    }
}

/// A relation or type in the statement is a temporary one.
fn uses_temporary(statement: &Statement<'_>) -> bool {
    if statement.context.temporary.is_empty() {
        return false;
    }
    let mut found = false;
    let mut look = |name: Name| found |= is_of_session(statement, &name);
    match statement.node {
        NodeEnum::CreateStmt(create) => {
            nodes(&create.inh_relations)
                .filter_map(|node| named(node, Kind::Relation, 0))
                .for_each(&mut look);
            for node in nodes(&create.table_elts) {
                match node {
                    NodeEnum::TableLikeClause(like) => range(&like.relation).for_each(&mut look),
                    NodeEnum::ColumnDef(column) => of_type(&column.type_name).for_each(&mut look),
                    _ => {}
                }
            }
        }
        NodeEnum::CreateFunctionStmt(function) => {
            of_type(&function.return_type).for_each(&mut look);
            for node in nodes(&function.parameters) {
                if let NodeEnum::FunctionParameter(parameter) = node {
                    of_type(&parameter.arg_type).for_each(&mut look);
                }
            }
        }
        NodeEnum::ViewStmt(view) => {
            if let Some(query) = inner(&view.query) {
                tree::walk(query, &mut |child| match child {
                    Child::Node(NodeEnum::RangeVar(one)) | Child::Range(one) => {
                        look(name_of_range(one));
                    }
                    Child::Node(NodeEnum::TypeCast(cast)) => {
                        of_type(&cast.type_name).for_each(&mut look);
                    }
                    _ => {}
                });
            }
        }
        _ => {}
    }
    found
}

/// What a statement makes, changes or drops, as far as it can be temporary.
pub(super) fn subjects(node: &NodeEnum) -> Vec<Name> {
    match node {
        NodeEnum::IndexStmt(index) => range(&index.relation).collect(),
        NodeEnum::AlterTableStmt(alter) => {
            let of_type = alter.objtype() == ObjectType::ObjectType;
            let kind = if of_type { Kind::Type } else { Kind::Relation };
            range(&alter.relation)
                .map(|name| Name { kind, ..name })
                .collect()
        }
        NodeEnum::AlterSeqStmt(alter) => range(&alter.sequence).collect(),
        NodeEnum::CreateTrigStmt(trigger) => range(&trigger.relation).collect(),
        NodeEnum::RuleStmt(rule) => range(&rule.relation).collect(),
        NodeEnum::CreatePolicyStmt(policy) => range(&policy.table).collect(),
        NodeEnum::AlterPolicyStmt(policy) => range(&policy.table).collect(),
        NodeEnum::CreateStatsStmt(stats) => {
            // Temporary ones may be of a table that is not: estimates of the home shard alone.
            let own = from_strings(Kind::Other, strings(&stats.defnames));
            match own.filter(|name| is_temporary_schema(&name.schema)) {
                Some(own) => vec![own],
                None => named_all(&stats.relations, Kind::Relation, 0),
            }
        }
        NodeEnum::RenameStmt(rename) => {
            let kind = rename.rename_type();
            either(&rename.relation, &rename.object, kind)
        }
        NodeEnum::AlterObjectSchemaStmt(alter) => {
            either(&alter.relation, &alter.object, alter.object_type())
        }
        NodeEnum::AlterOwnerStmt(alter) => {
            either(&alter.relation, &alter.object, alter.object_type())
        }
        NodeEnum::CommentStmt(comment) => either(&None, &comment.object, comment.objtype()),
        NodeEnum::SecLabelStmt(label) => either(&None, &label.object, label.objtype()),
        NodeEnum::DropStmt(drop) => {
            let (kind, behind) = shape(drop.remove_type());
            named_all(&drop.objects, kind, behind)
        }
        NodeEnum::GrantStmt(grant) => {
            let (kind, behind) = shape(grant.objtype());
            named_all(&grant.objects, kind, behind)
        }
        other => of_other(other),
    }
}

/// Types, and what is found by its schema only.
fn of_other(node: &NodeEnum) -> Vec<Name> {
    let (kind, list): (Kind, &[Node]) = match node {
        NodeEnum::CreateFunctionStmt(function) => (Kind::Other, &function.funcname),
        NodeEnum::AlterFunctionStmt(alter) => match &alter.func {
            Some(function) => (Kind::Other, &function.objname),
            None => return Vec::new(),
        },
        NodeEnum::DefineStmt(define) => (Kind::Other, &define.defnames),
        NodeEnum::CreateConversionStmt(create) => (Kind::Other, &create.conversion_name),
        NodeEnum::CreateOpClassStmt(create) => (Kind::Other, &create.opclassname),
        NodeEnum::CreateOpFamilyStmt(create) => (Kind::Other, &create.opfamilyname),
        // In the schema of temporary objects only where that is said.
        NodeEnum::CreateEnumStmt(create) => (Kind::Other, &create.type_name),
        NodeEnum::CreateRangeStmt(create) => (Kind::Other, &create.type_name),
        NodeEnum::CreateDomainStmt(create) => (Kind::Other, &create.domainname),
        NodeEnum::AlterEnumStmt(alter) => (Kind::Type, &alter.type_name),
        NodeEnum::AlterDomainStmt(alter) => (Kind::Type, &alter.type_name),
        NodeEnum::AlterTypeStmt(alter) => (Kind::Type, &alter.type_name),
        _ => return Vec::new(),
    };
    from_strings(kind, strings(list)).into_iter().collect()
}

/// A relation where it stands as one, else an object of a kind.
fn either(
    relation: &Option<protobuf::RangeVar>,
    object: &Option<Box<Node>>,
    of: ObjectType,
) -> Vec<Name> {
    if relation.is_some() {
        return range(relation).collect();
    }
    let (kind, behind) = shape(of);
    let object = inner(object).and_then(|node| named(node, kind, behind));
    object.into_iter().collect()
}

/// What names of a kind of object mean, and how many names are behind the one that counts.
fn shape(of: ObjectType) -> (Kind, usize) {
    match of {
        ObjectType::ObjectType | ObjectType::ObjectDomain => (Kind::Type, 0),
        ObjectType::ObjectColumn
        | ObjectType::ObjectTabconstraint
        | ObjectType::ObjectTrigger
        | ObjectType::ObjectRule
        | ObjectType::ObjectPolicy => (Kind::Relation, 1),
        kind if is_relation(kind) => (Kind::Relation, 0),
        _ => (Kind::Other, 0),
    }
}

fn named_all(list: &[Node], kind: Kind, behind: usize) -> Vec<Name> {
    nodes(list)
        .filter_map(|node| named(node, kind, behind))
        .collect()
}

fn named(node: &NodeEnum, kind: Kind, behind: usize) -> Option<Name> {
    let mut parts = match node {
        NodeEnum::RangeVar(range) => return Some(name_of_range(range)),
        NodeEnum::TypeName(name) => strings(&name.names),
        NodeEnum::List(list) => strings(&list.items),
        NodeEnum::ObjectWithArgs(object) => strings(&object.objname),
        // A schema.
        NodeEnum::String(name) => vec![name.sval.as_str(), ""],
        _ => return None,
    };
    parts.truncate(parts.len().saturating_sub(behind));
    from_strings(kind, parts)
}

fn from_strings(kind: Kind, mut parts: Vec<&str>) -> Option<Name> {
    let name = parts.pop()?.to_owned();
    let schema = parts.pop().unwrap_or_default().to_owned();
    Some(Name { kind, schema, name })
}

fn name_of_range(range: &protobuf::RangeVar) -> Name {
    Name {
        kind: Kind::Relation,
        schema: range.schemaname.clone(),
        name: range.relname.clone(),
    }
}

fn range(range: &Option<protobuf::RangeVar>) -> impl Iterator<Item = Name> {
    range.iter().map(name_of_range)
}

fn of_type(name: &Option<protobuf::TypeName>) -> impl Iterator<Item = Name> {
    let parts = name.as_ref().map(|name| strings(&name.names));
    parts
        .and_then(|parts| from_strings(Kind::Type, parts))
        .into_iter()
}

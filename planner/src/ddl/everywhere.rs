//! Which statements do the same on every server, and why they cannot differ.

use pg_query::{NodeEnum, protobuf::ObjectType};

/// Where a change of the schema runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Reach {
    /// On every shard, with the same outcome.
    Everywhere,
    /// On the home shard: what it names is there alone.
    Home,
    /// Nobody has judged it.
    Unjudged,
}

/// The judgement on a statement that defines, changes or removes something.
pub(super) fn reach(node: &NodeEnum) -> Reach {
    if let Some(kind) = named_kind(node)
        && kind == ObjectType::ObjectLargeobject
    {
        // Large objects are rows of the home shard's own tables, made by functions that run there.
        return Reach::Home;
    }
    match node {
        // What is made is in the statement's own words. Names mean the same everywhere, as every
        // shard has had the same definitions; types, defaults and checks were looked at where rows
        // are concerned (`table`, `procedure`).
        NodeEnum::CreateSchemaStmt(_)
        | NodeEnum::CreateStmt(_)
        | NodeEnum::CreateSeqStmt(_)
        | NodeEnum::CreateDomainStmt(_)
        | NodeEnum::CreateEnumStmt(_)
        | NodeEnum::CreateRangeStmt(_)
        | NodeEnum::CompositeTypeStmt(_)
        | NodeEnum::CreateFunctionStmt(_)
        | NodeEnum::CreateTrigStmt(_)
        | NodeEnum::CreateEventTrigStmt(_)
        | NodeEnum::CreateCastStmt(_)
        | NodeEnum::CreateConversionStmt(_)
        | NodeEnum::CreateTransformStmt(_)
        | NodeEnum::CreateOpClassStmt(_)
        | NodeEnum::CreateOpFamilyStmt(_)
        | NodeEnum::CreatePolicyStmt(_)
        | NodeEnum::CreateStatsStmt(_)
        | NodeEnum::DefineStmt(_)
        | NodeEnum::ViewStmt(_)
        | NodeEnum::RuleStmt(_) => Reach::Everywhere,
        // An index has each shard's own rows; unique ones were looked at.
        NodeEnum::IndexStmt(_) => Reach::Everywhere,
        // The same change of what is the same.
        NodeEnum::AlterTableStmt(_)
        | NodeEnum::AlterSeqStmt(_)
        | NodeEnum::AlterDomainStmt(_)
        | NodeEnum::AlterEnumStmt(_)
        | NodeEnum::AlterTypeStmt(_)
        | NodeEnum::AlterFunctionStmt(_)
        | NodeEnum::AlterEventTrigStmt(_)
        | NodeEnum::AlterOperatorStmt(_)
        | NodeEnum::AlterOpFamilyStmt(_)
        | NodeEnum::AlterPolicyStmt(_)
        | NodeEnum::AlterStatsStmt(_)
        | NodeEnum::AlterTsdictionaryStmt(_)
        | NodeEnum::AlterTsconfigurationStmt(_)
        | NodeEnum::AlterObjectDependsStmt(_)
        | NodeEnum::AlterObjectSchemaStmt(_)
        | NodeEnum::AlterOwnerStmt(_)
        | NodeEnum::RenameStmt(_)
        | NodeEnum::CommentStmt(_)
        | NodeEnum::SecLabelStmt(_)
        | NodeEnum::DropStmt(_) => Reach::Everywhere,
        // Roles and rights are on every server, as clients log in to each. What a role owns is the
        // same on each but for its large objects.
        NodeEnum::CreateRoleStmt(_)
        | NodeEnum::AlterRoleStmt(_)
        | NodeEnum::AlterRoleSetStmt(_)
        | NodeEnum::DropRoleStmt(_)
        | NodeEnum::GrantStmt(_)
        | NodeEnum::GrantRoleStmt(_)
        | NodeEnum::AlterDefaultPrivilegesStmt(_)
        | NodeEnum::DropOwnedStmt(_)
        | NodeEnum::ReassignOwnedStmt(_) => Reach::Everywhere,
        // The servers have the same files of extensions and libraries (docs/operations.md). Where one
        // lacks them it says so, and nothing is made on the others.
        NodeEnum::CreateExtensionStmt(_)
        | NodeEnum::AlterExtensionStmt(_)
        | NodeEnum::AlterExtensionContentsStmt(_)
        | NodeEnum::CreatePlangStmt(_)
        | NodeEnum::CreateAmStmt(_) => Reach::Everywhere,
        // Foreign servers are defined by an address, and nothing is asked there now.
        NodeEnum::CreateFdwStmt(_)
        | NodeEnum::AlterFdwStmt(_)
        | NodeEnum::CreateForeignServerStmt(_)
        | NodeEnum::AlterForeignServerStmt(_)
        | NodeEnum::CreateUserMappingStmt(_)
        | NodeEnum::AlterUserMappingStmt(_)
        | NodeEnum::DropUserMappingStmt(_)
        | NodeEnum::CreateForeignTableStmt(_) => Reach::Everywhere,
        // Asks the foreign server for tables, once from each shard: the same answer unless its tables
        // change at that moment.
        NodeEnum::ImportForeignSchemaStmt(_) => Reach::Everywhere,
        // What leaves a shard is its share of the rows, which is what a subscriber of all shards wants.
        NodeEnum::CreatePublicationStmt(_) | NodeEnum::AlterPublicationStmt(_) => Reach::Everywhere,
        // Settings and places of a server or database, wanted on each. A shard whose database has
        // another name refuses it.
        NodeEnum::AlterDatabaseStmt(_)
        | NodeEnum::AlterDatabaseSetStmt(_)
        | NodeEnum::AlterDatabaseRefreshCollStmt(_)
        | NodeEnum::AlterCollationStmt(_)
        | NodeEnum::AlterSystemStmt(_)
        | NodeEnum::CreateTableSpaceStmt(_)
        | NodeEnum::DropTableSpaceStmt(_)
        | NodeEnum::AlterTableSpaceOptionsStmt(_)
        | NodeEnum::AlterTableMoveAllStmt(_) => Reach::Everywhere,
        _ => Reach::Unjudged,
    }
}

/// The kind of what a statement about rights, owners and comments names.
fn named_kind(node: &NodeEnum) -> Option<ObjectType> {
    Some(match node {
        NodeEnum::GrantStmt(grant) => grant.objtype(),
        NodeEnum::CommentStmt(comment) => comment.objtype(),
        NodeEnum::SecLabelStmt(label) => label.objtype(),
        NodeEnum::AlterOwnerStmt(alter) => alter.object_type(),
        _ => return None,
    })
}

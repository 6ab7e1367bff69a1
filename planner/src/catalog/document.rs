//! From the catalog document to a [`Catalog`].
//!
//! The document says what exists; everything concluded from it is concluded here, so that the SQL
//! stays short and a conclusion can be tested without a server.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::{
    Catalog, Column, DocumentError, ForeignKey, FunctionSafety, KeyType, Placement, QualifiedName,
    Ranges, Relation, RelationKind, Shard, ShardId, Split, UniqueIndex, portable,
    residue::{self, Residues, Routes, Rows, Sources},
    safety::{self, Names},
};
use crate::{key, ring::Ring};

/// Has the values of global unique indexes, which nobody names.
const INDEX_SCHEMA: &str = "automator67_index";

/// `automator67.catalog_document()`. Lists without members are null.
#[derive(Debug, Deserialize)]
struct Document {
    epoch: u64,
    shards: Option<Vec<Shard>>,
    ring: Option<Vec<(i64, ShardId)>>,
    schemas: Option<Vec<String>>,
    domains: Option<Vec<(u32, u32)>>,
    relations: Option<Vec<StoredRelation>>,
    view_reads: Option<Vec<(u32, u32)>>,
    foreign_keys: Option<Vec<StoredForeignKey>>,
    functions: Option<Vec<Function>>,
    volatile_functions: Option<Vec<String>>,
    aggregates: Option<Vec<String>>,
    /// Oids of those declared safe that are still what they were then.
    safe_functions: Option<Vec<u32>>,
    function_calls: Option<Vec<(u32, u32)>>,
    relation_calls: Option<Vec<(u32, u32)>>,
    operators: Option<Vec<(String, u32)>>,
    triggers: Option<Vec<Trigger>>,
    unique_indexes: Option<Vec<StoredUniqueIndex>>,
    /// Foreign keys that change referencing rows: their tables, and those they refer to.
    cascades: Option<Vec<(u32, u32)>>,
    splits: Option<Vec<StoredSplit>>,
    tenants: Option<Vec<(String, u32)>>,
    /// Ways in which functions run that nothing in a statement names.
    #[serde(default)]
    routes: Routes,
    /// Something could not be read, because somebody holds a lock.
    #[serde(default)]
    incomplete: bool,
}

/// A colocation group that is not split by hash.
#[derive(Debug, Deserialize)]
struct StoredSplit {
    group: u32,
    method: StoredMethod,
    key_type: Option<StoredKeyType>,
    shard: Option<ShardId>,
    /// First values of ranges; of the first one it is null.
    ranges: Option<Vec<(Option<String>, ShardId)>>,
    entries: Option<Vec<(String, ShardId)>>,
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredMethod {
    Range,
    Directory,
    Schema,
}

#[derive(Debug, Deserialize)]
struct StoredRelation {
    oid: u32,
    schema: String,
    name: String,
    kind: StoredKind,
    placement: Option<StoredPlacement>,
    #[serde(default)]
    columns: Vec<StoredColumn>,
    #[serde(default)]
    primary_key: Vec<i16>,
    #[serde(default)]
    reads_placed: bool,
    view: Option<String>,
    #[serde(default)]
    rules: bool,
    #[serde(default)]
    row_security: bool,
    #[serde(default)]
    inherits: bool,
}

impl StoredRelation {
    fn qualified_name(&self) -> QualifiedName {
        QualifiedName {
            schema: self.schema.clone(),
            name: self.name.clone(),
        }
    }
}

/// `pg_class.relkind`
#[derive(Debug, Clone, Copy, Deserialize)]
enum StoredKind {
    #[serde(rename = "r")]
    Table,
    #[serde(rename = "p")]
    Partitioned,
    #[serde(rename = "v")]
    View,
    #[serde(rename = "m")]
    MaterializedView,
    #[serde(rename = "S")]
    Sequence,
    #[serde(rename = "f")]
    Foreign,
}

#[derive(Debug, Deserialize)]
#[serde(tag = "kind", rename_all = "snake_case")]
enum StoredPlacement {
    Reference,
    Distributed {
        key: i16,
        key_type: StoredKeyType,
        colocation: u32,
    },
    Schema {
        colocation: u32,
    },
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "lowercase")]
enum StoredKeyType {
    Integer,
    Text,
    Uuid,
    Date,
    Timestamp,
    TimestampTz,
}

impl StoredKeyType {
    fn key_type(self) -> KeyType {
        match self {
            StoredKeyType::Integer => KeyType::Integer,
            StoredKeyType::Text => KeyType::Text,
            StoredKeyType::Uuid => KeyType::Uuid,
            StoredKeyType::Date => KeyType::Date,
            StoredKeyType::Timestamp => KeyType::Timestamp,
            StoredKeyType::TimestampTz => KeyType::TimestampTz,
        }
    }
}

impl StoredSplit {
    /// The error says what is wrong with it.
    fn read(self) -> Result<Split, String> {
        let unusable = |reason: &str| reason.to_owned();
        let key_type = self.key_type.map(StoredKeyType::key_type);
        let key_type = key_type.ok_or_else(|| unusable("its key has no type"));
        let split = match self.method {
            StoredMethod::Schema => Split::Whole(self.shard.ok_or_else(|| unusable("no shard"))?),
            StoredMethod::Directory => Split::Directory {
                key_type: key_type?,
                entries: self.entries.unwrap_or_default().into_iter().collect(),
            },
            StoredMethod::Range => {
                let key_type = key_type?;
                let read = |(start, shard): (Option<String>, ShardId)| match start {
                    None => Ok((None, shard)),
                    Some(text) => match key::from_text(key_type, &text) {
                        Some(value) => Ok((Some(value), shard)),
                        None => Err(unusable(&format!("\"{text}\" is no value of its key"))),
                    },
                };
                let ranges = self.ranges.unwrap_or_default().into_iter().map(read);
                let ranges = Ranges::new(ranges.collect::<Result<_, _>>()?);
                Split::Ranges(ranges.ok_or_else(|| unusable("its ranges leave a gap"))?)
            }
        };
        Ok(split)
    }
}

#[derive(Debug, Deserialize)]
struct StoredColumn {
    attnum: i16,
    name: String,
    #[serde(rename = "type")]
    type_oid: u32,
    sql_type: String,
    #[serde(default)]
    not_null: bool,
    default: Option<String>,
    #[serde(default)]
    generated: bool,
    identity: Option<Identity>,
    sequence: Option<String>,
    collate: Option<String>,
    #[serde(default)]
    nondeterministic: bool,
}

/// `pg_attribute.attidentity`
#[derive(Debug, Clone, Copy, PartialEq, Deserialize)]
enum Identity {
    #[serde(rename = "a")]
    Always,
    #[serde(rename = "d")]
    ByDefault,
}

#[derive(Debug, Deserialize)]
struct StoredForeignKey {
    name: String,
    table: u32,
    columns: Vec<i16>,
    referenced_table: u32,
    referenced_columns: Vec<i16>,
}

#[derive(Debug, Deserialize)]
struct StoredUniqueIndex {
    id: u32,
    name: String,
    relation: u32,
    column: i16,
}

/// A function that is not built in.
#[derive(Debug, Deserialize)]
pub(super) struct Function {
    pub oid: u32,
    pub name: String,
    pub language: String,
    /// The extension it belongs to.
    pub extension: Option<String>,
    /// Of functions in SQL and PL/pgSQL; none of those that could not be read.
    pub body: Option<String>,
}

#[derive(Debug, Deserialize)]
struct Trigger {
    relation: u32,
    name: String,
    function: u32,
    /// `pg_trigger.tgtype`
    #[serde(rename = "type")]
    events: i32,
    /// Its arguments, each ended by `\000`.
    arguments: String,
}

impl Trigger {
    /// Runs before a row is inserted or updated and may change it
    /// (`src/include/catalog/pg_trigger.h`).
    fn changes_rows(&self) -> bool {
        const ROW: i32 = 1;
        const BEFORE: i32 = 2;
        const INSERT: i32 = 4;
        const UPDATE: i32 = 16;
        self.events & (ROW | BEFORE) == ROW | BEFORE && self.events & (INSERT | UPDATE) != 0
    }
}

/// Reads a document and draws all conclusions.
pub(super) fn load(json: &str) -> Result<Catalog, DocumentError> {
    let mut document: Document = serde_json::from_str(json)?;
    let domains: HashMap<u32, u32> = document
        .domains
        .take()
        .unwrap_or_default()
        .into_iter()
        .collect();
    let mut stored = document.relations.take().unwrap_or_default();
    stored.retain(|relation| relation.schema != INDEX_SCHEMA);
    let mut relations = stored
        .iter()
        .map(|stored| (stored.oid, relation(stored, &domains)))
        .collect::<HashMap<u32, Relation>>();
    let splits = splits(&mut document, &mut relations);
    let foreign_keys = foreign_keys(document.foreign_keys.take().unwrap_or_default(), &stored);

    let declared = document.safe_functions.take().unwrap_or_default();
    let declared = declared.into_iter().collect();
    let functions = document.functions.take().unwrap_or_default();
    let names = names(&relations, declared);
    let calls = document.function_calls.take().unwrap_or_default();
    let verdicts = safety::judge(&functions, &calls, &names);

    for stored in &stored {
        if let Some(relation) = relations.get_mut(&stored.oid) {
            let (writes, reads) = own_dangers(stored, relation);
            relation.unsafe_writes = writes;
            relation.unsafe_reads = reads;
        }
    }
    mark_foreign_keys(&mut relations, &foreign_keys);
    for trigger in document.triggers.iter().flatten() {
        mark_trigger(&mut relations, trigger, &functions, &verdicts, &names);
    }
    for (relation, function) in document.relation_calls.iter().flatten() {
        if let Some(relation) = relations.get_mut(relation) {
            mark_call(relation, verdicts.get(function));
        }
    }
    mark_views(
        &mut relations,
        document.view_reads.as_deref().unwrap_or_default(),
    );

    let residues = residues(&document, &stored, &functions, &calls);
    let unique_indexes = unique_indexes(&document, &stored);
    let indexed = indexed(&unique_indexes, &document, &stored);
    let placed = |relation: &Relation| relation.placement != Placement::Local;
    Ok(Catalog {
        residues,
        unjudged: HashSet::new(),
        unique_indexes,
        indexed,
        epoch: document.epoch,
        shards: document.shards.unwrap_or_default(),
        ring: Ring::new(document.ring.unwrap_or_default()),
        splits,
        incomplete: document.incomplete,
        tenants: document.tenants.into_iter().flatten().collect(),
        has_placed_relations: relations.values().any(placed),
        functions: functions_by_name(&functions, &verdicts),
        volatile_functions: document.volatile_functions.into_iter().flatten().collect(),
        aggregates: document.aggregates.into_iter().flatten().collect(),
        operators: operators(document.operators.unwrap_or_default(), &verdicts),
        relations: relations
            .into_values()
            .map(|relation| (relation.name.clone(), relation))
            .collect(),
        foreign_keys,
        schemas: document.schemas.unwrap_or_default(),
    })
}

fn residues(
    document: &Document,
    stored: &[StoredRelation],
    functions: &[Function],
    calls: &[(u32, u32)],
) -> Residues {
    let relations = stored.iter().map(|relation| {
        let kind = relation.kind;
        let view = matches!(kind, StoredKind::View | StoredKind::MaterializedView);
        Rows {
            oid: relation.oid,
            name: &relation.name,
            calls_when_read: view || relation.row_security,
        }
    });
    let triggers = document.triggers.iter().flatten();
    residue::judge(&Sources {
        functions,
        calls,
        operators: document.operators.as_deref().unwrap_or_default(),
        relations: relations.collect(),
        triggers: triggers.map(|one| (one.relation, one.function)).collect(),
        relation_calls: document.relation_calls.as_deref().unwrap_or_default(),
        view_reads: document.view_reads.as_deref().unwrap_or_default(),
        routes: &document.routes,
    })
}

/// Reads how groups are split. Tables of a group whose split cannot be read are of no use.
fn splits(document: &mut Document, relations: &mut HashMap<u32, Relation>) -> HashMap<u32, Split> {
    let mut splits = HashMap::new();
    for stored in document.splits.take().into_iter().flatten() {
        let group = stored.group;
        match stored.read() {
            Ok(split) => {
                splits.insert(group, split);
            }
            Err(why) => {
                let of_group = |one: &&mut Relation| one.placement.group() == Some(group);
                for relation in relations.values_mut().filter(of_group) {
                    mark(&mut relation.unusable, || {
                        format!("The split of colocation group {group} is not usable: {why}.")
                    });
                }
            }
        }
    }
    splits
}

fn relation(stored: &StoredRelation, domains: &HashMap<u32, u32>) -> Relation {
    let columns: Vec<Column> = stored
        .columns
        .iter()
        .map(|it| column(it, domains))
        .collect();
    let (placement, unusable) = placement(stored, &columns);
    let kind = match stored.kind {
        StoredKind::Table => RelationKind::Table,
        StoredKind::Partitioned => RelationKind::Partitioned,
        StoredKind::View => RelationKind::View,
        StoredKind::MaterializedView => RelationKind::MaterializedView,
        StoredKind::Sequence => RelationKind::Sequence,
        StoredKind::Foreign => RelationKind::Foreign,
    };
    Relation {
        name: QualifiedName {
            schema: stored.schema.clone(),
            name: stored.name.clone(),
        },
        oid: stored.oid,
        kind,
        placement,
        columns,
        primary_key: column_names(stored, &stored.primary_key),
        view_definition: stored.view.clone(),
        // A table with a rule that leads to a placed one is not a view; see `own_dangers`.
        reads_placed: stored.reads_placed
            && matches!(kind, RelationKind::View | RelationKind::MaterializedView),
        unsafe_writes: None,
        unsafe_reads: None,
        unusable: unusable.or_else(|| unreadable(stored)),
        inherits: stored.inherits,
    }
}

/// A view that leads to placed tables, and nobody knows how.
fn unreadable(stored: &StoredRelation) -> Option<String> {
    let view = matches!(stored.kind, StoredKind::View | StoredKind::MaterializedView);
    (view && stored.reads_placed && stored.view.is_none()).then(|| {
        "Its definition could not be read: somebody holds a lock on a table in it.".to_owned()
    })
}

fn column(stored: &StoredColumn, domains: &HashMap<u32, u32>) -> Column {
    let drawn_from = || stored.default.as_deref().and_then(sequence_of_default);
    Column {
        name: stored.name.clone(),
        type_oid: stored.type_oid,
        sql_type: stored.sql_type.clone(),
        collate: stored
            .collate
            .as_ref()
            .map_or(String::new(), |name| format!(" COLLATE {name}")),
        not_null: stored.not_null,
        default: stored.default.clone(),
        generated: stored.generated,
        identity_always: stored.identity.map(|identity| identity == Identity::Always),
        sequence: stored.sequence.clone().or_else(drawn_from),
        portable_binary: portable::is_portable(domains, stored.type_oid),
        nondeterministic: stored.nondeterministic,
    }
}

/// The sequence of a default that is exactly `nextval('...'::regclass)`.
fn sequence_of_default(default: &str) -> Option<String> {
    let name = default
        .strip_prefix("nextval('")?
        .strip_suffix("'::regclass)")?;
    // What is left must be the inside of one string: a quote in it is doubled.
    let plain = name.replace("''", "");
    (!plain.contains(['\'', '\\'])).then(|| name.replace("''", "'"))
}

/// Where its rows are; and why nobody can say where, if a change behind the proxy's back has taken the
/// shard key away.
fn placement(stored: &StoredRelation, columns: &[Column]) -> (Placement, Option<String>) {
    let (attnum, stored_type, colocation) = match &stored.placement {
        None => return (Placement::Local, None),
        Some(StoredPlacement::Reference) => return (Placement::Reference, None),
        Some(StoredPlacement::Schema { colocation }) => {
            let colocation = *colocation;
            return (Placement::Schema { colocation }, None);
        }
        Some(StoredPlacement::Distributed {
            key,
            key_type,
            colocation,
        }) => (*key, *key_type, *colocation),
    };
    let at = stored
        .columns
        .iter()
        .position(|column| column.attnum == attnum);
    let column = at.map(|at| &columns[at]);
    let key_type = stored_type.key_type();
    let reason = match column.map(Column::key_type) {
        None => Some("the column was dropped"),
        Some(Err(reason)) => Some(reason),
        Some(Ok(now)) if now != key_type => Some("its type was changed"),
        Some(Ok(_)) => None,
    };
    let placement = Placement::Distributed {
        // No column has that name.
        key: column.map_or_else(String::new, |column| column.name.clone()),
        key_type,
        colocation,
    };
    let unusable = reason.map(|why| format!("Its shard key is not usable: {why}."));
    (placement, unusable)
}

fn column_names(relation: &StoredRelation, attnums: &[i16]) -> Vec<String> {
    let name = |attnum| {
        relation
            .columns
            .iter()
            .find(|column| column.attnum == attnum)
    };
    attnums
        .iter()
        .filter_map(|attnum| Some(name(*attnum)?.name.clone()))
        .collect()
}

fn foreign_keys(stored: Vec<StoredForeignKey>, relations: &[StoredRelation]) -> Vec<ForeignKey> {
    let by_oid: HashMap<u32, &StoredRelation> = relations
        .iter()
        .map(|relation| (relation.oid, relation))
        .collect();
    let name = |relation: &StoredRelation| QualifiedName {
        schema: relation.schema.clone(),
        name: relation.name.clone(),
    };
    let read = |stored: StoredForeignKey| {
        let table = by_oid.get(&stored.table)?;
        let referenced = by_oid.get(&stored.referenced_table)?;
        Some(ForeignKey {
            columns: column_names(table, &stored.columns),
            table: name(table),
            referenced_columns: column_names(referenced, &stored.referenced_columns),
            referenced_table: name(referenced),
            name: stored.name,
        })
    };
    stored.into_iter().filter_map(read).collect()
}

/// Those whose table and column are still there.
fn unique_indexes(document: &Document, relations: &[StoredRelation]) -> Vec<UniqueIndex> {
    let read = |stored: &StoredUniqueIndex| {
        let table = relations.iter().find(|one| one.oid == stored.relation)?;
        Some(UniqueIndex {
            id: stored.id,
            name: stored.name.clone(),
            table: table.qualified_name(),
            column: column_names(table, &[stored.column]).pop()?,
        })
    };
    let indexes = document.unique_indexes.iter().flatten();
    indexes.filter_map(read).collect()
}

/// The tables with indexes, and all that lead there by foreign keys.
fn indexed(
    indexes: &[UniqueIndex],
    document: &Document,
    relations: &[StoredRelation],
) -> HashSet<QualifiedName> {
    let mut found: HashSet<QualifiedName> =
        indexes.iter().map(|index| index.table.clone()).collect();
    let names: HashMap<u32, QualifiedName> = relations
        .iter()
        .map(|relation| (relation.oid, relation.qualified_name()))
        .collect();
    let mut size = 0;
    while size != found.len() {
        size = found.len();
        for (table, referenced) in document.cascades.iter().flatten() {
            if let (Some(table), Some(referenced)) = (names.get(table), names.get(referenced))
                && found.contains(table)
            {
                found.insert(referenced.clone());
            }
        }
    }
    found
}

fn names(relations: &HashMap<u32, Relation>, declared: HashSet<u32>) -> Names {
    let mut placed = HashMap::new();
    let mut local = HashSet::new();
    for relation in relations.values() {
        let name = &relation.name.name;
        let phrase = match &relation.placement {
            Placement::Distributed { .. } | Placement::Schema { .. } => {
                format!("distributed table \"{name}\"")
            }
            Placement::Reference => format!("reference table \"{name}\""),
            Placement::Local if relation.reads_placed => {
                format!("view \"{name}\", which reads placed tables")
            }
            Placement::Local => {
                local.insert(name.to_lowercase());
                continue;
            }
        };
        placed.insert(name.to_lowercase(), phrase);
    }
    Names {
        placed,
        local,
        declared,
    }
}

/// What the relation's own rules and policies make unsafe: writes, reads.
fn own_dangers(stored: &StoredRelation, relation: &Relation) -> (Option<String>, Option<String>) {
    let name = &relation.name.name;
    let placed = relation.placement != Placement::Local;
    let leads_away = stored.rules && stored.reads_placed;
    let rules = (stored.rules && placed || leads_away)
        .then(|| format!("Table \"{name}\" has a rule, which could reach rows of other shards."));
    let row_security = (stored.row_security && placed).then(|| {
        format!("Row level security is enabled on \"{name}\"; policies see one shard's rows.")
    });
    (rules.or_else(|| row_security.clone()), row_security)
}

/// Keeps the first reason.
fn mark(reason: &mut Option<String>, why: impl FnOnce() -> String) {
    if reason.is_none() {
        *reason = Some(why());
    }
}

fn mark_foreign_keys(relations: &mut HashMap<u32, Relation>, foreign_keys: &[ForeignKey]) {
    let placements: HashMap<QualifiedName, Placement> = relations
        .values()
        .map(|relation| (relation.name.clone(), relation.placement.clone()))
        .collect();
    let by_name: HashMap<QualifiedName, u32> = relations
        .values()
        .map(|relation| (relation.name.clone(), relation.oid))
        .collect();
    for foreign_key in foreign_keys {
        let from = &placements[&foreign_key.table];
        let to = &placements[&foreign_key.referenced_table];
        if let Some(reason) = foreign_key_danger(foreign_key, from, to)
            && let Some(relation) = relations.get_mut(&by_name[&foreign_key.table])
        {
            mark(&mut relation.unsafe_writes, || reason);
        }
    }
}

/// A server checks a foreign key against its own rows. Why those are not all that count.
fn foreign_key_danger(key: &ForeignKey, from: &Placement, to: &Placement) -> Option<String> {
    let (name, referenced) = (&key.name, &key.referenced_table.name);
    match (from, to) {
        (Placement::Local, Placement::Local) | (_, Placement::Reference) => None,
        (
            Placement::Local | Placement::Reference,
            Placement::Distributed { .. } | Placement::Schema { .. },
        ) => Some(format!(
            "Foreign key \"{name}\" references distributed table \"{referenced}\"."
        )),
        (_, Placement::Local) => Some(format!(
            "Foreign key \"{name}\" references local table \"{referenced}\"."
        )),
        (Placement::Schema { colocation: from }, Placement::Schema { colocation: to })
            if from == to =>
        {
            None
        }
        (Placement::Schema { .. }, _) | (_, Placement::Schema { .. }) => Some(format!(
            "Foreign key \"{name}\" references table \"{referenced}\", which is on another shard."
        )),
        (
            Placement::Distributed {
                key: from_key,
                colocation: from_group,
                ..
            },
            Placement::Distributed {
                key: to_key,
                colocation: to_group,
                ..
            },
        ) => {
            let mut pairs = key.columns.iter().zip(&key.referenced_columns);
            let joined = pairs.any(|(column, other)| column == from_key && other == to_key);
            (from_group != to_group || !joined).then(|| {
                format!(
                    "Foreign key \"{name}\" to \"{referenced}\" does not join the shard keys of two colocated tables."
                )
            })
        }
    }
}

fn mark_trigger(
    relations: &mut HashMap<u32, Relation>,
    trigger: &Trigger,
    functions: &[Function],
    verdicts: &HashMap<u32, FunctionSafety>,
    names: &Names,
) {
    let Some(relation) = relations.get_mut(&trigger.relation) else {
        return;
    };
    let placed = relation.placement != Placement::Local;
    let function = functions
        .iter()
        .find(|function| function.oid == trigger.function);
    let danger = match verdicts.get(&trigger.function) {
        Some(FunctionSafety::Unsafe(why)) => Some(why.clone()),
        Some(FunctionSafety::HomeOnly(why)) if placed => Some(why.clone()),
        Some(FunctionSafety::HomeOnly(_) | FunctionSafety::Safe) | None => None,
    };
    let declared = names.declared.contains(&trigger.function);
    let moves_key = || match &relation.placement {
        Placement::Distributed { key, .. } if trigger.changes_rows() && !declared => {
            let named = trigger
                .arguments
                .split("\\000")
                .any(|argument| argument == key);
            named
                .then(|| format!("It is given the shard key \"{key}\"."))
                .or_else(|| function.and_then(|function| safety::moves_key(function, key)))
        }
        Placement::Distributed { .. }
        | Placement::Schema { .. }
        | Placement::Reference
        | Placement::Local => None,
    };
    if let Some(why) = danger.or_else(moves_key) {
        let name = &trigger.name;
        mark(&mut relation.unsafe_writes, || {
            format!("Trigger \"{name}\" is not safe. {why}")
        });
    }
}

/// What a function does to the relation whose view, rule, default, check, index or policy calls
/// it.
fn mark_call(relation: &mut Relation, safety: Option<&FunctionSafety>) {
    let placed = relation.placement != Placement::Local;
    let why = match safety {
        Some(FunctionSafety::Unsafe(why)) => why,
        Some(FunctionSafety::HomeOnly(why)) if placed => why,
        Some(FunctionSafety::HomeOnly(_) | FunctionSafety::Safe) | None => return,
    };
    mark(&mut relation.unsafe_writes, || why.clone());
    if relation.kind == RelationKind::View {
        mark(&mut relation.unsafe_reads, || why.clone());
    }
}

/// A view is no safer to read than the views it reads, and of no more use than a table.
fn mark_views(relations: &mut HashMap<u32, Relation>, view_reads: &[(u32, u32)]) {
    let mut again = true;
    while again {
        again = false;
        for (view, read) in view_reads {
            let reason = relations.get(read).and_then(|read| match read.kind {
                _ if read.unusable.is_some() => read.unusable.clone(),
                RelationKind::View => read.unsafe_reads.clone(),
                _ => None,
            });
            if let (Some(reason), Some(view)) = (reason, relations.get_mut(view))
                && view.unsafe_reads.is_none()
            {
                view.unsafe_reads = Some(reason);
                again = true;
            }
        }
    }
}

fn functions_by_name(
    functions: &[Function],
    verdicts: &HashMap<u32, FunctionSafety>,
) -> HashMap<String, FunctionSafety> {
    let mut by_name: HashMap<String, FunctionSafety> = HashMap::new();
    for function in functions {
        let safety = &verdicts[&function.oid];
        let entry = by_name
            .entry(function.name.clone())
            .or_insert(FunctionSafety::Safe);
        if safety::rank(safety) > safety::rank(entry) {
            *entry = safety.clone();
        }
    }
    by_name
}

fn operators(
    stored: Vec<(String, u32)>,
    verdicts: &HashMap<u32, FunctionSafety>,
) -> HashMap<String, FunctionSafety> {
    let mut operators: HashMap<String, FunctionSafety> = HashMap::new();
    for (name, function) in stored {
        let Some(safety) = verdicts.get(&function) else {
            continue;
        };
        if *safety == FunctionSafety::Safe {
            continue;
        }
        let entry = operators.entry(name).or_insert(FunctionSafety::Safe);
        if safety::rank(safety) > safety::rank(entry) {
            *entry = safety.clone();
        }
    }
    operators
}

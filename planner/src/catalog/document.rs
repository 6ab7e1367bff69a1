//! From the catalog document to a [`Catalog`].
//!
//! The document says what exists; everything concluded from it is concluded here, so that the SQL
//! stays short and a conclusion can be tested without a server.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use news::News;
use reach::Objects;

use super::{
    Catalog, Change, Column, DocumentError, ForeignKey, FunctionSafety, KeyType, Placement,
    QualifiedName, Ranges, Relation, RelationKind, Shard, ShardId, Split, UniqueIndex, defines,
    names::StoredNames,
    portable,
    residue::{self, Residues, Routes, Rows, Sources},
    safety::{self, Names, Verdicts},
};
use crate::{key, ring::Ring};

mod differences;
mod news;
mod reach;
mod temporary;

pub use temporary::Temporary;
pub(crate) use temporary::is_schema as is_temporary_schema;

/// Has the values of global unique indexes, which nobody names.
const INDEX_SCHEMA: &str = "automator67_index";

/// Objects from here on are not built in.
const FIRST_USER_OID: u32 = 16384;

/// `automator67.catalog_document()`. Lists without members are null.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(crate) struct Document {
    epoch: u64,
    shards: Option<Vec<Shard>>,
    ring: Option<Vec<(i64, ShardId)>>,
    schemas: Option<Vec<String>>,
    domains: Option<Vec<(u32, u32)>>,
    #[serde(default, deserialize_with = "shared", serialize_with = "whole")]
    relations: Option<Vec<Arc<StoredRelation>>>,
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
    /// What code behind relations and types reads and calls.
    #[serde(default)]
    reach: StoredReach,
    /// What names mean.
    #[serde(default)]
    names: StoredNames,
    /// Something could not be read, because somebody holds a lock.
    #[serde(default)]
    incomplete: bool,
    /// It is not a document in whole.
    #[serde(skip_serializing)]
    news: Option<News>,
}

/// The part of the document that [`reach`] needs. Lists without members are null.
#[derive(Debug, Clone, Default, Deserialize, Serialize)]
struct StoredReach {
    /// Table with a policy -> relation that the policy reads.
    policy_reads: Option<Vec<(u32, u32)>>,
    /// Types that run code where a value is made of them: oid, name, function.
    types: Option<Vec<(u32, String, u32)>>,
    /// Triggers for each row that have a transition table: table, name.
    transitions: Option<Vec<(u32, String)>>,
    /// Foreign keys that were not checked for the rows there are: table, name.
    not_valid: Option<Vec<(u32, String)>>,
}

/// A colocation group that is not split by hash.
#[derive(Debug, Clone, Deserialize, Serialize)]
struct StoredSplit {
    group: u32,
    method: StoredMethod,
    key_type: Option<StoredKeyType>,
    shard: Option<ShardId>,
    /// First values of ranges; of the first one it is null.
    ranges: Option<Vec<(Option<String>, ShardId)>>,
    entries: Option<Vec<(String, ShardId)>>,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "lowercase")]
enum StoredMethod {
    Range,
    Directory,
    Schema,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
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
#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
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

#[derive(Debug, Clone, Deserialize, Serialize)]
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

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
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

#[derive(Debug, Clone, Deserialize, Serialize)]
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
#[derive(Debug, Clone, Copy, PartialEq, Deserialize, Serialize)]
enum Identity {
    #[serde(rename = "a")]
    Always,
    #[serde(rename = "d")]
    ByDefault,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct StoredForeignKey {
    name: String,
    table: u32,
    columns: Vec<i16>,
    referenced_table: u32,
    referenced_columns: Vec<i16>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
struct StoredUniqueIndex {
    id: u32,
    name: String,
    relation: u32,
    column: i16,
}

/// A function that is not built in.
#[derive(Debug, Clone, Deserialize, Serialize)]
pub(super) struct Function {
    pub oid: u32,
    pub name: String,
    pub language: String,
    /// The extension it belongs to.
    pub extension: Option<String>,
    /// Of functions in SQL and PL/pgSQL; none of those that could not be read.
    pub body: Option<String>,
}

#[derive(Debug, Clone, Deserialize, Serialize)]
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

/// Bits of [`Trigger::events`] (`src/include/catalog/pg_trigger.h`).
const ROW: i32 = 1;
const BEFORE: i32 = 2;
const EVENTS: [(i32, Change); 4] = [
    (4, Change::Insert),
    (8, Change::Delete),
    (16, Change::Update),
    (32, Change::Truncate),
];

impl Trigger {
    /// Runs before a row is inserted or updated and may change it.
    fn changes_rows(&self) -> bool {
        let stores = |change| self.is_fired_by(change);
        self.events & (ROW | BEFORE) == ROW | BEFORE
            && (stores(Change::Insert) || stores(Change::Update))
    }

    fn is_fired_by(&self, change: Change) -> bool {
        self.changes().any(|one| one == change)
    }

    fn changes(&self) -> impl Iterator<Item = Change> {
        let fires = |(bit, _): &(i32, Change)| self.events & bit != 0;
        EVENTS.into_iter().filter(fires).map(|(_, change)| change)
    }

    /// Keeps a global unique index.
    fn is_ours(&self) -> bool {
        self.name.starts_with("a67_")
    }
}

fn shared<'de, D: Deserializer<'de>>(
    reader: D,
) -> Result<Option<Vec<Arc<StoredRelation>>>, D::Error> {
    let relations = Option::<Vec<StoredRelation>>::deserialize(reader)?;
    Ok(relations.map(|list| list.into_iter().map(Arc::new).collect()))
}

fn whole<S: Serializer>(
    relations: &Option<Vec<Arc<StoredRelation>>>,
    writer: S,
) -> Result<S::Ok, S::Error> {
    writer.collect_seq(relations.iter().flatten().map(Arc::as_ref))
}

/// Reads a document and draws all conclusions.
pub(super) fn load(json: &str) -> Result<Catalog, DocumentError> {
    let document: Document = serde_json::from_str(json)?;
    match document.news {
        None => Ok(conclude(document)),
        Some(_) => Err(DocumentError::Part),
    }
}

/// Reads what is new since the snapshot `known`, or a document in whole. `None`: only a document in
/// whole says what is new.
pub(super) fn load_newer(json: &str, known: &Catalog) -> Result<Option<Catalog>, DocumentError> {
    let mut document: Document = serde_json::from_str(json)?;
    let Some(news) = document.news.take() else {
        return Ok(Some(conclude(document)));
    };
    let known = known.document.as_deref();
    let newer = known.and_then(|known| news.add_to(known, document.epoch));
    Ok(newer.map(|document| Catalog {
        of_news: true,
        ..conclude(document)
    }))
}

/// See [`Catalog::differences`].
pub(super) fn differences(one: &Catalog, other: &Catalog) -> Vec<String> {
    match (&one.document, &other.document) {
        (Some(one), Some(other)) => differences::differences(one, other),
        (None, None) => Vec::new(),
        (Some(_), None) | (None, Some(_)) => vec!["one has no document".to_owned()],
    }
}

/// See [`Catalog::since`].
pub(super) fn since(known: &Catalog) -> Option<u64> {
    let document = known.document.as_deref()?;
    document.takes_news().then_some(document.epoch)
}

fn conclude(mut document: Document) -> Catalog {
    let kept = Arc::new(document.clone());
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
    let declared: HashSet<u32> = declared.into_iter().collect();
    let functions = document.functions.take().unwrap_or_default();
    let unseen_code = unseen_code(&document, &functions, &declared);
    let names = names(&relations, declared, &document);
    let calls = document.function_calls.take().unwrap_or_default();
    let lasting: HashSet<String> = names
        .local
        .iter()
        .chain(names.placed.keys())
        .cloned()
        .collect();
    let definers = defines::definers(&functions, &calls, &lasting, &names.declared);
    let objects = Objects {
        document: &document,
        stored: &stored,
        foreign_keys: &foreign_keys,
        functions: &functions,
        calls: &calls,
        definers: &definers,
    };
    let Verdicts {
        safety: verdicts,
        telling,
    } = objects.judge(&mut relations, names);

    let has_number_views = note_number_views(&mut document, &mut relations);
    let casts = casts(&document, &verdicts);
    let unsafe_event_trigger = unsafe_event_trigger(&document, &verdicts);
    let overloads = document.names.overloads(&functions, &verdicts);
    let residues = residues(&document, &stored, &functions, &calls);
    let unique_indexes = unique_indexes(&document, &stored);
    let indexed = indexed(&unique_indexes, &document, &stored);
    let placed = |relation: &Relation| relation.placement != Placement::Local;
    Catalog {
        document: Some(kept),
        of_news: false,
        unseen_code: unseen_code || !definers.is_empty(),
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
        overloads,
        hiding: document.names.hiding(),
        has_number_views,
        casts,
        unsafe_event_trigger,
        unsafe_functions: unsafe_by_oid(&verdicts),
        types: types(document.reach.types.unwrap_or_default(), &verdicts),
        definers,
        telling: functions
            .iter()
            .filter(|one| telling.contains(&one.oid))
            .map(|one| one.name.clone())
            .collect(),
        volatile_functions: document.volatile_functions.into_iter().flatten().collect(),
        aggregates: document.aggregates.into_iter().flatten().collect(),
        operators: operators(document.operators.unwrap_or_default(), &verdicts),
        relations: relations
            .into_values()
            .map(|relation| (relation.name.clone(), relation))
            .collect(),
        foreign_keys,
        schemas: document.schemas.unwrap_or_default(),
    }
}

/// See [`Catalog::unseen_code`].
fn unseen_code(document: &Document, functions: &[Function], declared: &HashSet<u32>) -> bool {
    let names = &document.names;
    let of_users = |function: &u32| {
        *function == safety::TEMPORARY || functions.iter().any(|one| one.oid == *function)
    };
    let mut operators = document.operators.iter().flatten();
    !declared.is_empty()
        || names.event_triggers.iter().flatten().next().is_some()
        || names.casts.iter().flatten().next().is_some()
        || operators.any(|(_, function)| of_users(function))
}

fn residues(
    document: &Document,
    stored: &[Arc<StoredRelation>],
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
                    relation.unusable.get_or_insert_with(|| {
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
        reads_numbers: false,
        unsafe_writes: None,
        unsafe_reads: None,
        statement_triggers: Vec::new(),
        unusable: unusable.or_else(|| unreadable(stored)),
        inherits: stored.inherits,
    }
}

/// A view that leads to placed tables, and nobody knows how.
fn unreadable(stored: &StoredRelation) -> Option<String> {
    let view = matches!(stored.kind, StoredKind::View | StoredKind::MaterializedView);
    (view && stored.reads_placed && stored.view.is_none()).then(unread_definition)
}

fn unread_definition() -> String {
    "Its definition could not be read: somebody holds a lock on a table in it.".to_owned()
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

fn foreign_keys(
    stored: Vec<StoredForeignKey>,
    relations: &[Arc<StoredRelation>],
) -> Vec<ForeignKey> {
    let by_oid: HashMap<u32, &StoredRelation> = relations
        .iter()
        .map(|relation| (relation.oid, relation.as_ref()))
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
fn unique_indexes(document: &Document, relations: &[Arc<StoredRelation>]) -> Vec<UniqueIndex> {
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
    relations: &[Arc<StoredRelation>],
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

fn names(relations: &HashMap<u32, Relation>, declared: HashSet<u32>, document: &Document) -> Names {
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
    let types = document.reach.types.iter().flatten();
    Names {
        placed,
        local,
        declared,
        has_parts: relations.values().any(|one| {
            let placement = &one.placement;
            !matches!(placement, Placement::Local | Placement::Reference)
        }),
        dangerous_reads: HashMap::new(),
        dangerous_writes: HashMap::new(),
        types: types
            .map(|(_, name, function)| (name.to_lowercase(), *function))
            .collect(),
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

fn unsafe_by_oid(verdicts: &HashMap<u32, FunctionSafety>) -> HashMap<u32, String> {
    let why = |(oid, safety): (&u32, &FunctionSafety)| match safety {
        FunctionSafety::Unsafe(why) => Some((*oid, why.clone())),
        FunctionSafety::HomeOnly(_) | FunctionSafety::Safe => None,
    };
    verdicts.iter().filter_map(why).collect()
}

fn types(
    stored: Vec<(u32, String, u32)>,
    verdicts: &HashMap<u32, FunctionSafety>,
) -> HashMap<String, FunctionSafety> {
    let named = stored
        .into_iter()
        .map(|(_, name, function)| (name, function));
    operators(named.collect(), verdicts)
}

/// Gives views the texts by which they read numbers that every shard has of its own. Whether there are
/// such views.
fn note_number_views(document: &mut Document, relations: &mut HashMap<u32, Relation>) -> bool {
    let views = document.names.number_views.take();
    let mut any = false;
    for (oid, text) in views.into_iter().flatten() {
        let Some(relation) = relations.get_mut(&oid) else {
            continue;
        };
        any = true;
        relation.reads_numbers = true;
        if text.is_none() {
            relation.unusable.get_or_insert_with(unread_definition);
        }
        relation.view_definition = relation.view_definition.take().or(text);
    }
    any
}

/// Casts between built-in types, by the names of what they make.
fn casts(
    document: &Document,
    verdicts: &HashMap<u32, FunctionSafety>,
) -> HashMap<String, FunctionSafety> {
    let casts = document.names.casts.iter().flatten();
    let of_built_in = casts.filter(|(source, target, ..)| source.max(target) < &FIRST_USER_OID);
    let named = of_built_in.map(|(_, _, target, function)| (target.clone(), *function));
    operators(named.collect(), verdicts)
}

fn unsafe_event_trigger(
    document: &Document,
    verdicts: &HashMap<u32, FunctionSafety>,
) -> Option<(String, String)> {
    let triggers = document.names.event_triggers.iter().flatten();
    let mut unsafe_ones = triggers.filter_map(|(name, function)| match verdicts.get(function)? {
        FunctionSafety::Unsafe(why) => Some((name.clone(), why.clone())),
        FunctionSafety::HomeOnly(_) | FunctionSafety::Safe => None,
    });
    unsafe_ones.next()
}

/// The least safe function behind each name, where one is not safe.
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

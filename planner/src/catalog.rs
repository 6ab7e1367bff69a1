//! An immutable snapshot of what exists and where it lives.
//!
//! The home shard computes it as one JSON document (`automator67.catalog_document()`, see the
//! proxy's migrations), so a snapshot is always from one point in time, also inside a
//! transaction that has just changed tables.

use std::{
    collections::{HashMap, HashSet},
    sync::Arc,
};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::{
    key::{self, KeyValue},
    ring::Ring,
};

mod defines;
mod document;
mod keys;
mod names;
mod portable;
mod residue;
mod safety;
mod split;

pub use document::Temporary;
pub(crate) use document::is_temporary_schema;
pub(crate) use names::ObjectKind;
pub use names::{Hiding, Overload};
pub(crate) use residue::Reader;
pub use residue::{MadeSettings, Residue, Residues, custom_names, is_custom_name};
pub use split::{Owner, Ranges, Split};

/// A shard's number, as in `automator67.shard`.
pub type ShardId = u32;

/// `schema.name`, both as Postgres stores them (unquoted, case folded).
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord, Deserialize)]
pub struct QualifiedName {
    /// Schema.
    pub schema: String,
    /// Name.
    pub name: String,
}

/// How a key value is read and hashed: by value, not by spelling.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum KeyType {
    /// int2, int4, int8: hashed as an int8, big endian.
    Integer,
    /// text, varchar: hashed as UTF-8 bytes.
    Text,
    /// uuid: 16 bytes.
    Uuid,
    /// date: days since 2000-01-01 as int8.
    Date,
    /// timestamp: microseconds since 2000-01-01 as int8.
    Timestamp,
    /// timestamptz: microseconds since 2000-01-01 UTC as int8.
    TimestampTz,
}

/// The snapshot. Cheap to share (`Arc<Catalog>`), never changed.
#[derive(Debug, Clone, Default)]
pub struct Catalog {
    /// Grows by one with every change that commits.
    pub epoch: u64,
    /// All shards, by id.
    pub shards: Vec<Shard>,
    /// Which shard a token belongs to.
    pub ring: Ring,
    /// Colocation groups whose rows are not split by hash.
    pub splits: HashMap<u32, Split>,
    /// Schemas whose tables are all on one shard, and their group.
    pub tenants: HashMap<String, u32>,
    /// Every table, view, sequence and foreign table of the home shard outside the system schemas.
    pub relations: HashMap<QualifiedName, Relation>,
    /// User-defined functions, procedures and aggregates, by unqualified name: the least safe
    /// overload counts. Of extensions' functions only those that are not safe are listed.
    pub functions: HashMap<String, FunctionSafety>,
    /// Of names in `functions` the functions one by one, where they can be told apart.
    pub overloads: HashMap<String, Vec<Overload>>,
    /// Objects of users that a search path may find in the place of built-in ones.
    pub hiding: Hiding,
    /// Some view has [`Relation::reads_numbers`].
    pub has_number_views: bool,
    /// Casts from and to built-in types whose function is not [`FunctionSafety::Safe`], by the name of
    /// the type that they make.
    pub casts: HashMap<String, FunctionSafety>,
    /// An event trigger whose function may read or write placed tables, on every shard: its name, and
    /// why.
    pub unsafe_event_trigger: Option<(String, String)>,
    /// Why functions are [`FunctionSafety::Unsafe`], by their oids.
    pub unsafe_functions: HashMap<u32, String>,
    /// Unqualified names of functions that change the schema, and the command they do it by. They
    /// would do it on one shard.
    pub definers: HashMap<String, String>,
    /// Unqualified names of functions that send notifications, whatever they were declared to be.
    pub telling: HashSet<String>,
    /// User-defined types with checks, defaults or casts that are not [`FunctionSafety::Safe`], by
    /// unqualified name.
    pub types: HashMap<String, FunctionSafety>,
    /// Unqualified names of functions that are not built in and have a volatile overload.
    pub volatile_functions: HashSet<String>,
    /// Unqualified names of all aggregates, built in or not.
    pub aggregates: HashSet<String>,
    /// User-defined operators, by unqualified name, whose function is not [`FunctionSafety::Safe`].
    pub operators: HashMap<String, FunctionSafety>,
    /// All foreign keys between relations of the snapshot.
    pub foreign_keys: Vec<ForeignKey>,
    /// Unique indexes over all shards, on columns that are not the shard key.
    pub unique_indexes: Vec<UniqueIndex>,
    /// Tables with such an index, and those whose foreign keys lead a change there.
    pub indexed: HashSet<QualifiedName>,
    /// Schemas that exist on the home shard, to resolve unqualified names through `search_path`.
    pub schemas: Vec<String>,
    /// True when some relation is distributed or a reference table: only then can a statement
    /// need more than the home shard.
    pub has_placed_relations: bool,
    /// Somebody's lock kept some definitions from being read: a later snapshot may know more.
    pub incomplete: bool,
    /// What statements may leave in a server session, by the names in them.
    pub residues: Residues,
    /// Built-in functions and relations of the home shard that nobody has judged, see
    /// [`crate::builtins::unjudged`]: the server is newer than this version.
    pub unjudged: HashSet<String>,
    /// Code of users may change the schema while a statement runs that does not name it, or that
    /// nobody has looked into: event triggers, casts, operators, functions declared safe.
    pub unseen_code: bool,
    /// It was not read in whole, but put together of one before it and of what was new.
    pub of_news: bool,
    /// What it was concluded from.
    pub(crate) document: Option<Arc<document::Document>>,
}

/// A server that holds a share of the rows.
#[derive(Debug, Clone, PartialEq, Deserialize, Serialize)]
pub struct Shard {
    /// Its number.
    pub id: ShardId,
    /// Its name in messages: `shard1`.
    pub name: String,
    /// The home shard: catalog, local tables, sequences.
    pub home: bool,
}

/// A relation of the home shard.
#[derive(Debug, Clone)]
pub struct Relation {
    /// Its name.
    pub name: QualifiedName,
    /// `pg_class.oid` on the home shard.
    pub oid: u32,
    /// Table, view ...
    pub kind: RelationKind,
    /// Where its rows are.
    pub placement: Placement,
    /// Columns in order, without dropped ones.
    pub columns: Vec<Column>,
    /// Column names of the primary key, in key order; empty when none.
    pub primary_key: Vec<String>,
    /// For views: the query as `pg_get_viewdef` prints it with an empty `search_path` (all names
    /// qualified), without the final semicolon.
    pub view_definition: Option<String>,
    /// For views and materialized views: the query reads, directly or through other views, a
    /// distributed or reference table. The rows of a materialized view are on the home shard all
    /// the same: only REFRESH reads the placed table.
    pub reads_placed: bool,
    /// Of a view: its query reads, directly or through other views, numbers that every shard has of its
    /// own, as `reltuples`. Its text is then in `view_definition`, too.
    pub reads_numbers: bool,
    /// A trigger, rule, default or check on it, or a foreign key to a table whose rows are
    /// elsewhere, makes writes unsafe.
    pub unsafe_writes: Option<Danger>,
    /// Reading it could read other tables behind the proxy's back (a view that calls an unsafe
    /// function, a policy that reads a distributed table, a placed table under row level security).
    pub unsafe_reads: Option<Danger>,
    /// Triggers of a distributed table that are to see a statement's rows all at once: a server shows
    /// them its own.
    pub statement_triggers: Vec<StatementTrigger>,
    /// Nobody can say where its rows are, or what its query reads: why, as a sentence for the error's
    /// detail. Statements that name it are refused; it can be dropped and undistributed.
    pub unusable: Option<String>,
    /// It is a parent or a child of another table, by inheritance or as a partition, so it cannot
    /// be placed.
    pub inherits: bool,
}

/// What code or keys behind a relation would do unseen.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Danger {
    /// Why, as a sentence for the error's detail.
    pub why: String,
    /// What helps, as a sentence.
    pub hint: String,
}

/// A trigger for each statement, or one with a transition table.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct StatementTrigger {
    /// Its name.
    pub name: String,
    /// What fires it.
    pub changes: Vec<Change>,
}

/// A kind of change of rows.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Change {
    /// New rows.
    Insert,
    /// Rows with other values.
    Update,
    /// Rows less.
    Delete,
    /// All rows less.
    Truncate,
}

/// What a relation is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelationKind {
    /// Ordinary table.
    Table,
    /// Partitioned table.
    Partitioned,
    /// View.
    View,
    /// Materialized view (its rows are on the home shard).
    MaterializedView,
    /// Sequence.
    Sequence,
    /// Foreign table (reached from the home shard).
    Foreign,
}

/// Where a table's rows are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Placement {
    /// On the home shard (also views: they are judged by what they expand to).
    Local,
    /// A full copy on every shard.
    Reference,
    /// Split by the values of a column: by their hash, or as [`Catalog::splits`] says of the group.
    Distributed {
        /// The shard key.
        key: String,
        /// How its values are hashed.
        key_type: KeyType,
        /// Tables with the same group and key type keep equal keys together.
        colocation: u32,
    },
    /// All of them on the shard of the table's schema.
    Schema {
        /// Tables with the same group are on the same shard.
        colocation: u32,
    },
}

/// A column.
#[derive(Debug, Clone)]
pub struct Column {
    /// Its name.
    pub name: String,
    /// `pg_type.oid`.
    pub type_oid: u32,
    /// `format_type(oid, typmod)`, schema-qualified where needed.
    pub sql_type: String,
    /// ` COLLATE "x"` when not the type's default, else empty.
    pub collate: String,
    /// NOT NULL.
    pub not_null: bool,
    /// The default as `pg_get_expr` prints it with an empty `search_path`.
    pub default: Option<String>,
    /// GENERATED ALWAYS AS (...), STORED or VIRTUAL. Such a column has no `default`.
    pub generated: bool,
    /// Identity: `Some(true)` is GENERATED ALWAYS.
    pub identity_always: Option<bool>,
    /// The sequence of an identity column, or the one that a default of exactly
    /// `nextval('...'::regclass)` draws from (so also that of a serial column); quoted and
    /// qualified.
    pub sequence: Option<String>,
    /// Values travel in COPY BINARY between any two servers: a built-in type that carries no
    /// OIDs of user-defined types.
    pub portable_binary: bool,
    /// Its collation takes different strings for equal.
    pub nondeterministic: bool,
}

/// A foreign key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ForeignKey {
    /// The constraint's name.
    pub name: String,
    /// The referencing table.
    pub table: QualifiedName,
    /// Its columns.
    pub columns: Vec<String>,
    /// The referenced table.
    pub referenced_table: QualifiedName,
    /// The columns there, in the same order.
    pub referenced_columns: Vec<String>,
}

/// A unique index over all shards.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct UniqueIndex {
    /// Its number, which its parts on the shards are named by.
    pub id: u32,
    /// Its name in messages.
    pub name: String,
    /// The table.
    pub table: QualifiedName,
    /// The column.
    pub column: String,
}

/// Where a function may run.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum FunctionSafety {
    /// Anywhere: its body names no relation, changes nothing, and runs no dynamic SQL; or it was
    /// declared safe.
    Safe,
    /// In statements that run on the home shard: it reads or writes local tables, sequences or
    /// other state of one server. Why, as a sentence for the error's detail.
    HomeOnly(String),
    /// Nowhere while relations are placed: it may read or write them behind the proxy's back.
    /// Why, as a sentence for the error's detail.
    Unsafe(String),
}

/// Why a catalog document was not understood.
#[derive(Debug, Error)]
pub enum DocumentError {
    /// Not the JSON that `automator67.catalog_document()` gives.
    #[error("the catalog document is malformed: {0}")]
    Json(#[from] serde_json::Error),
    /// What is new since another, where nothing is known of that.
    #[error("the catalog document is not there in whole")]
    Part,
}

impl Catalog {
    /// Reads what `automator67.catalog_document()` gives.
    pub fn from_document(json: &str) -> Result<Catalog, DocumentError> {
        document::load(json)
    }

    /// The epoch since which [`Catalog::newer`] reads what is new. `None`: it reads nothing but the
    /// whole.
    pub fn since(&self) -> Option<u64> {
        document::since(self)
    }

    /// Reads what `automator67.newer_document()` gives, asked with [`Catalog::since`]. `None`: the whole
    /// document is to be read.
    pub fn newer(&self, json: &str) -> Result<Option<Catalog>, DocumentError> {
        document::load_newer(json, self)
    }

    /// What the documents of two snapshots say differently, whatever the order they say it in.
    pub fn differences(&self, other: &Catalog) -> Vec<String> {
        document::differences(self, other)
    }

    /// The relation of this name.
    pub fn relation(&self, name: &QualifiedName) -> Option<&Relation> {
        self.relations.get(name)
    }

    /// The relation that a name in a statement means: that of the given schema, or of the first
    /// schema on the search path that has one. `pg_catalog` and temporary tables, which come
    /// before the search path, are the caller's.
    pub fn resolve(
        &self,
        search_path: &[String],
        schema: Option<&str>,
        name: &str,
    ) -> Option<&Relation> {
        let find = |schema: &str| {
            self.relations.get(&QualifiedName {
                schema: schema.to_owned(),
                name: name.to_owned(),
            })
        };
        match schema {
            Some(schema) => find(schema),
            None => search_path.iter().find_map(|schema| find(schema)),
        }
    }

    /// The shard of this number.
    pub fn shard(&self, id: ShardId) -> Option<&Shard> {
        self.shards.iter().find(|shard| shard.id == id)
    }

    /// The shard that a key's row belongs to in a colocation group. Rows without a key are at home.
    pub fn owner(&self, group: u32, value: &KeyValue) -> Owner {
        match self.splits.get(&group) {
            Some(Split::Whole(shard)) => Owner::Shard(*shard),
            _ if *value == KeyValue::Null => Owner::Shard(self.home()),
            Some(Split::Ranges(ranges)) => Owner::of(ranges.shard_of(value)),
            Some(Split::Directory { key_type, entries }) => {
                let canonical = key::canonical(*key_type, value);
                match entries.get(&canonical) {
                    Some(shard) => Owner::Shard(*shard),
                    None => Owner::Unassigned(canonical),
                }
            }
            None => Owner::of(self.ring.shard_of(key::token(value))),
        }
    }

    /// The shard that has all rows of a group's tables, if one has.
    pub fn whole(&self, group: u32) -> Option<ShardId> {
        match self.splits.get(&group) {
            Some(Split::Whole(shard)) => Some(*shard),
            _ => None,
        }
    }

    /// Tables of a colocation group, by name.
    pub fn members(&self, group: u32) -> Vec<&Relation> {
        let mut members: Vec<&Relation> = self
            .relations
            .values()
            .filter(|relation| relation.placement.group() == Some(group))
            .collect();
        members.sort_by(|one, other| one.name.cmp(&other.name));
        members
    }

    /// The home shard's number; 1 before any shard is registered.
    pub fn home(&self) -> ShardId {
        self.shards
            .iter()
            .find(|shard| shard.home)
            .map_or(1, |shard| shard.id)
    }
}

impl Placement {
    /// The colocation group of a table that is split or on its schema's shard.
    pub fn group(&self) -> Option<u32> {
        match self {
            Placement::Distributed { colocation, .. } | Placement::Schema { colocation } => {
                Some(*colocation)
            }
            Placement::Local | Placement::Reference => None,
        }
    }
}

impl Relation {
    /// The column of this name.
    pub fn column(&self, name: &str) -> Option<&Column> {
        self.columns.iter().find(|column| column.name == name)
    }
}

impl Column {
    /// How its values hash if it is a shard key; otherwise why it cannot be one, to follow
    /// "cannot distribute by this column: ".
    pub fn key_type(&self) -> Result<KeyType, &'static str> {
        let Some(key_type) = key::key_type_of(self.type_oid) else {
            return Err(
                "a shard key is a smallint, integer, bigint, text, varchar, uuid, date, timestamp or timestamptz",
            );
        };
        if self.nondeterministic {
            return Err("its collation is nondeterministic: equal values can have different bytes");
        }
        let timestamp = matches!(key_type, KeyType::Timestamp | KeyType::TimestampTz);
        // Storing rounds to the precision: the stored value is not the one the client sent.
        if timestamp && self.sql_type.contains('(') && !self.sql_type.contains("(6)") {
            return Err("a timestamp with a precision changes values when they are stored");
        }
        if self.generated {
            return Err("it is a generated column");
        }
        Ok(key_type)
    }
}

#[cfg(test)]
mod tests;

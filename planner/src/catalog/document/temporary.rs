//! The objects of one session that no other session sees, those in its `pg_temp`, which live on its
//! connection to the home shard. The session reads them from there
//! (`proxy/src/session/temporary.rs`); they are judged by the same walk as everything else.

use std::collections::{HashMap, HashSet};

use serde::Deserialize;

use super::{
    super::{Catalog, Danger, DocumentError, Relation},
    StoredRelation,
    reach::{DECLARE, danger, is_split},
    relation,
};

const SCHEMA: &str = "pg_temp";
const READS_PLACED: &str =
    "Create a view that is not temporary, use WITH, or undistribute the table.";

/// Them.
#[derive(Debug, Clone, Default)]
pub struct Temporary {
    relations: Vec<Relation>,
    /// Names of indexes.
    indexes: HashSet<String>,
    /// Names of types, those of rows of relations left out.
    types: HashSet<String>,
}

/// What a session reads of itself. Lists without members are null.
#[derive(Debug, Default, Deserialize)]
struct Document {
    relations: Option<Vec<StoredRelation>>,
    indexes: Option<Vec<String>>,
    types: Option<Vec<String>>,
    /// What code behind a relation calls: its oid, when, and the function.
    calls: Option<Vec<(u32, Runs, u32)>>,
    /// What it reads or writes: its oid, when, and the relation.
    uses: Option<Vec<(u32, Runs, u32)>>,
}

/// When code behind a relation runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Runs {
    /// With what writes to it.
    Write,
    /// And with what reads it.
    Read,
}

impl Temporary {
    /// Reads what a session has found, and judges it by what the catalog knows now.
    pub fn read(json: &str, catalog: &Catalog) -> Result<Temporary, DocumentError> {
        let document: Document = serde_json::from_str(json)?;
        let stored = document.relations.unwrap_or_default();
        let mut relations: HashMap<u32, Relation> = stored
            .iter()
            .map(|stored| (stored.oid, relation(stored, &HashMap::new())))
            .collect();
        for (oid, runs, function) in document.calls.iter().flatten() {
            let why = catalog.unsafe_functions.get(function);
            if let (Some(relation), Some(why)) = (relations.get_mut(oid), why) {
                mark(relation, *runs, danger(why.clone(), DECLARE));
            }
        }
        for (oid, runs, used) in document.uses.iter().flatten() {
            let used = catalog.relations.values().find(|one| one.oid == *used);
            if let (Some(relation), Some(used)) = (relations.get_mut(oid), used) {
                mark_use(relation, *runs, used);
            }
        }
        Ok(Temporary {
            relations: relations.into_values().collect(),
            indexes: document.indexes.into_iter().flatten().collect(),
            types: document.types.into_iter().flatten().collect(),
        })
    }

    /// None.
    pub fn is_empty(&self) -> bool {
        self.relations.is_empty() && self.indexes.is_empty() && self.types.is_empty()
    }

    /// Names of tables, views and sequences.
    pub fn names(&self) -> impl Iterator<Item = &str> {
        self.relations.iter().map(|one| one.name.name.as_str())
    }

    /// A relation that a name in a statement means: they come before all schemas, unless the search
    /// path names theirs.
    pub(crate) fn resolve(
        &self,
        catalog: &Catalog,
        search_path: &[String],
        schema: &str,
        name: &str,
    ) -> Option<&Relation> {
        self.is_meant(catalog, search_path, schema, name)
            .then_some(())?;
        self.relations.iter().find(|one| one.name.name == name)
    }

    /// The same for relations of all kinds, indexes among them.
    pub(crate) fn has_relation(
        &self,
        catalog: &Catalog,
        search_path: &[String],
        schema: &str,
        name: &str,
    ) -> bool {
        let known = self.indexes.contains(name) || self.names().any(|one| one == name);
        known && self.is_meant(catalog, search_path, schema, name)
    }

    /// The same for types.
    pub(crate) fn has_type(&self, schema: &str, name: &str) -> bool {
        let element = name.strip_prefix('_').unwrap_or(name);
        let known = |name: &str| self.types.contains(name) || self.names().any(|one| one == name);
        (schema.is_empty() || is_schema(schema)) && (known(name) || known(element))
    }

    fn is_meant(
        &self,
        catalog: &Catalog,
        search_path: &[String],
        schema: &str,
        name: &str,
    ) -> bool {
        if !schema.is_empty() {
            return is_schema(schema);
        }
        let before = search_path.iter().position(|one| is_schema(one));
        let before = &search_path[..before.unwrap_or(0)];
        catalog.resolve(before, None, name).is_none()
    }
}

/// `pg_temp`, or its name on one server.
pub(crate) fn is_schema(name: &str) -> bool {
    let number = name.strip_prefix(SCHEMA);
    number.is_some_and(|rest| rest.is_empty() || rest.starts_with('_'))
}

fn mark(relation: &mut Relation, runs: Runs, danger: Danger) {
    if runs == Runs::Read {
        relation.unsafe_reads.get_or_insert_with(|| danger.clone());
    }
    relation.unsafe_writes.get_or_insert(danger);
}

fn mark_use(relation: &mut Relation, runs: Runs, used: &Relation) {
    if is_split(used) {
        let why = format!(
            "It uses the distributed table or view \"{}\".",
            used.name.name
        );
        mark(relation, runs, danger(why, READS_PLACED));
    }
    if let Some(found) = &used.unsafe_reads {
        mark(relation, runs, found.clone());
    }
    if let Some(found) = &used.unsafe_writes {
        mark(relation, Runs::Write, found.clone());
    }
}

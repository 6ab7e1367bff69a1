//! What is new since a snapshot, where only some relations have changed: new ones, new columns, new
//! constraints, and nothing dropped. Everything else is what it was, so the new document is the old one
//! with the entries of those relations in their place, and the same is concluded from it.

use std::{collections::HashMap, sync::Arc};

use serde::Deserialize;

use super::{Document, FIRST_USER_OID, StoredColumn, StoredForeignKey, StoredRelation, shared};

/// The part of the document that is there where all the rest is not, see `automator67.changes_since()`.
/// Lists without members are null.
#[derive(Debug, Clone, Deserialize)]
pub(super) struct News {
    /// The epoch of the document that this is to be added to.
    since: u64,
    #[serde(deserialize_with = "shared")]
    relations: Option<Vec<Arc<StoredRelation>>>,
    foreign_keys: Option<Vec<StoredForeignKey>>,
    follows: Option<Vec<(u32, u32)>>,
    looks_up: Option<Vec<(u32, u32)>>,
    not_valid: Option<Vec<(u32, String)>>,
}

impl News {
    /// The document of `epoch`. `None`: `known` is of another epoch, or something in it depends on these
    /// relations in a way that is not told here.
    pub(super) fn add_to(self, known: &Document, epoch: u64) -> Option<Document> {
        let relations = self.relations.unwrap_or_default();
        let told = |one: &Arc<StoredRelation>| known.is_told_by(one);
        if known.epoch != self.since || !known.takes_news() || !relations.iter().all(told) {
            return None;
        }
        let mut document = known.clone();
        document.epoch = epoch;
        document.put(relations);
        document.add_foreign_keys(self.foreign_keys.unwrap_or_default());
        document.routes.add(
            self.follows.unwrap_or_default(),
            self.looks_up.unwrap_or_default(),
        );
        let not_valid = document.reach.not_valid.get_or_insert_default();
        for key in self.not_valid.unwrap_or_default() {
            if !not_valid.contains(&key) {
                not_valid.push(key);
            }
        }
        Some(document)
    }
}

impl Document {
    /// It can be added to: what could not be read may be there by now, and global unique indexes follow
    /// the definitions of their tables.
    pub(super) fn takes_news(&self) -> bool {
        let mut indexes = self.unique_indexes.iter().flatten();
        !self.incomplete && indexes.next().is_none()
    }

    /// Nothing but its own entry, and its foreign keys, says something of the relation that may have
    /// changed.
    fn is_told_by(&self, relation: &StoredRelation) -> bool {
        let oid = relation.oid;
        let mut calls = self.relation_calls.iter().flatten();
        let mut relations = self.relations.iter().flatten();
        let before = relations.find(|one| one.oid == oid);
        let before = before.map_or(&[][..], |one| &one.columns);
        // Values of other types may run code.
        let mut new = relation.columns.iter().filter(|column| {
            let same =
                |one: &StoredColumn| one.attnum == column.attnum && one.type_oid == column.type_oid;
            !before.iter().any(same)
        });
        calls.all(|(owner, _)| *owner != oid)
            && !self.routes.calls_of(oid)
            && new.all(|column| column.type_oid < FIRST_USER_OID)
    }

    fn put(&mut self, changed: Vec<Arc<StoredRelation>>) {
        let relations = self.relations.get_or_insert_default();
        let places: HashMap<u32, usize> = relations
            .iter()
            .enumerate()
            .map(|(place, relation)| (relation.oid, place))
            .collect();
        for relation in changed {
            match places.get(&relation.oid) {
                Some(place) => relations[*place] = relation,
                None => relations.push(relation),
            }
        }
    }

    fn add_foreign_keys(&mut self, changed: Vec<StoredForeignKey>) {
        let known = self.foreign_keys.get_or_insert_default();
        for key in changed {
            let is_it = |one: &StoredForeignKey| one.table == key.table && one.name == key.name;
            if !known.iter().any(is_it) {
                known.push(key);
            }
        }
    }
}

#[cfg(test)]
mod tests;

//! One row by its value.

use super::KeySource;
use crate::catalog::KeyType;

/// A value to be looked up in a global unique index.
#[derive(Debug, Clone, PartialEq)]
pub struct IndexLookup {
    /// [`UniqueIndex::id`](crate::catalog::UniqueIndex::id)
    pub index: u32,
    /// How the value is read and hashed.
    pub key_type: KeyType,
    /// The value.
    pub source: KeySource,
}

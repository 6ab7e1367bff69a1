//! One bucket space over many object stores.

pub mod catalog;
pub mod chunk;
pub mod keys;

//! One bucket space over many object stores.

pub mod breaker;
pub mod catalog;
pub mod chunk;
pub mod keys;
pub mod placement;
pub mod provider;

//! One bucket space over many object stores.

pub mod breaker;
pub mod catalog;
pub mod chunk;
pub mod download;
pub mod fleet;
pub mod keys;
pub mod placement;
pub mod provider;
pub mod upload;

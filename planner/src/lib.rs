//! SQL text and a catalog snapshot in, a plan out. No sockets, no clock, no spawned task.
//!
//! - [`normalise`]: literals -> slots, the key of the plan cache
//! - [`plan`]: what a statement becomes
//! - [`catalog`], [`ring`], [`key`]: where rows live
//! - `parse` -> `statement` -> `route` | `insert` | `gather` | `ddl` ...: how it becomes that

pub mod catalog;
pub mod key;
pub mod normalise;
pub mod plan;
pub mod ring;

mod statement;

pub use statement::{Context, Reach, plan};

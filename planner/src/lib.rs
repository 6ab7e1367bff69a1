//! SQL text and a catalog snapshot in, a plan out. No sockets, no clock, no spawned task.
//!
//! - [`budget`]: what planning may cost
//! - [`normalise`]: literals -> slots, the key of the plan cache
//! - [`mod@plan`]: what a statement becomes
//! - [`catalog`], [`ring`], [`key`]: where rows live
//! - [`builtins`]: what belongs to one server, and what is the same on all
//! - [`names`]: what a statement has to do with a table
//! - `parse` -> `statement` -> `route` | `write` | `insert` | `scatter` | `gather` | `ddl` | `copy` |
//!   `session` ...: how it becomes that
//! - `analysis`, `scope`, `facts`: one walk over the tree, the names, and what is proved

pub mod budget;
pub mod builtins;
pub mod catalog;
pub mod key;
pub mod names;
pub mod normalise;
pub mod plan;
pub mod ring;
pub mod sequences;

mod admin;
mod analysis;
mod asker;
mod clock;
mod copy;
mod cursor;
mod ddl;
mod explain;
mod facts;
mod filter;
mod functions;
mod gather;
mod hiding;
mod holes;
mod insert;
mod maintenance;
mod once;
mod own_schemas;
mod parse;
mod rights;
mod route;
mod scatter;
mod scope;
mod session;
mod sizes;
mod splice;
mod sql;
mod statement;
mod steps;
mod table_as;
mod tree;
mod unique;
mod views;
mod write;

pub use own_schemas::OwnSchemas;
pub use parse::STACK_BYTES;
pub use rights::explainable;
pub use statement::{Context, Reach, Tier, plan};

#[cfg(test)]
mod tests;

//! Speaks Postgres to clients and to shards.
//!
//! A SELECT goes: [`listener`] -> `login` -> `session` -> `frame` -> planner -> `session/execute`
//! -> `pool` -> `server`, and its rows come back through `server/relay`.
//!
//! [`order`] compares values as Postgres does, to merge sorted rows of several shards.

mod copy_rows;
mod deadlock;
mod error;
mod failpoint;
pub mod frame;
mod gate;
mod guc;
pub mod listener;
mod lobby;
mod log_budget;
mod login;
mod memory;
mod message;
mod neighbours;
pub mod order;
mod plan_cache;
mod planners;
mod pool;
mod process;
mod requirements;
mod scram;
mod sequences;
mod server;
mod session;
pub mod settings;
mod shard;
mod shard_auth;
mod store;
mod telemetry;
mod tls;
mod two_phase;
mod types;
mod wire;
mod wrong_passwords;

pub use listener::{Proxy, StartError};

/// What the fuzz targets call.
#[doc(hidden)]
pub mod fuzzing {
    pub use automator67_planner::plan::CopyFormat;

    pub mod copy_rows {
        pub use crate::copy_rows::*;
    }
    pub mod message {
        pub use crate::message::*;
    }
    pub mod scram {
        pub use crate::scram::*;
    }
}

//! Starts real servers and talks to them byte by byte.
//!
//! - [`postgres`] finds the binaries and runs a plain cluster.
//! - [`automator`] builds and runs `automator67 dev` and `automator67 serve`.
//! - [`wire`] is a client that shows every message, [`batch`] puts messages together.
//! - [`answer`] is what a statement answered, in a form that can be compared.
//! - [`pair`] runs two proxies on shards that a test kills, [`bank`] keeps books of transfers on
//!   them, [`history`] checks what transactions saw.
//! - [`generate`] makes statements from a seed, over a schema of its own.
//! - [`changes`] makes writes and transactions from a seed, over a schema of its own.
//! - [`cases`] reads the case files of `tests/sql`, [`play`] runs them on one server.
//! - [`given`] reads seeds and numbers from the environment.
//! - [`checks`] runs many checks on one set of servers.
//! - [`tpcc`] fills the nine TPC-C tables and runs its transactions.
//! - [`tpch`] fills the eight TPC-H tables.
//! - [`wait`] waits for conditions.

pub mod answer;
pub mod automator;
pub mod bank;
pub mod batch;
pub mod cases;
pub mod changes;
pub mod checks;
pub mod generate;
pub mod given;
pub mod history;
pub mod isolation;
pub mod pair;
pub mod play;
pub mod postgres;
pub mod process;
pub mod tpcc;
pub mod tpch;
pub mod wait;
pub mod wire;

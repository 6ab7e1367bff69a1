//! The one test binary. Each module starts the servers it needs.

mod arrows;
mod bank;
mod batches;
mod bounds;
mod changes;
mod clean;
mod commits;
mod corpus;
mod deadlocks;
mod drivers;
mod faults;
mod frames;
mod generated;
mod history;
mod inserts;
mod isolation;
mod kernels;
mod logins;
mod moves;
mod planning;
mod rights;
mod sequences;
mod sessions;
mod tpcc;
mod unique;
mod volumes;

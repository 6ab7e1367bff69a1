//! The one test binary. Each module starts the servers it needs.

mod arrows;
mod corpus;
mod deadlocks;
mod drivers;
mod faults;
mod frames;
mod generated;
mod kernels;
mod moves;
mod sessions;
mod volumes;

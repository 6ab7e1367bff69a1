//! The one test binary. Each module starts the servers it needs.

mod arrows;
mod corpus;
mod frames;

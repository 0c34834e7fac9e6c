//! What to place where and when: pure functions from state to decisions with reasons. No clock, no I/O, no data path.

pub mod placement;
mod ranks;

pub use ranks::HeatRanks;

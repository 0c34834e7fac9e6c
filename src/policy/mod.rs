//! What to place where and when: pure functions from state to decisions with reasons. No clock, no I/O, no data path.

pub mod glob;
pub mod placement;
pub mod profiles;
mod ranks;
pub mod rules;
pub mod whatif;

pub use ranks::HeatRanks;

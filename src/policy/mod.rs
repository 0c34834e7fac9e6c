//! What to place where and when: pure functions from state to decisions with reasons. No clock, no I/O, no data path.
//!
//! [`placement`] plans moves of blocks by heat; [`gate`] decides whose prediction of heat is believed and how much of the fast tier stages recent
//! misses ([`staging`]); [`yielding`] how hard background work may go; [`coalescing`] when records leave the log; [`cadence`] when the next snapshot is due; [`ranked`] is the hottest blocks within a budget, which both the gate's shadows and the replay of traces are made of.

pub mod cadence;
pub mod coalescing;
pub mod gate;
pub mod glob;
pub mod placement;
pub mod profiles;
pub mod ranked;
mod ranks;
pub mod rules;
pub mod staging;
pub mod whatif;
pub mod yielding;

pub use ranks::HeatRanks;

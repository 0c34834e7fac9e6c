//! Long jobs, where a decision meets an effect: adopting a directory, giving it back, checking and dumping what is on disk.
//!
//! A job may be cut off anywhere and be run again; it goes on where it stopped. The volume's phase in tier 0's identity says where that is.

pub mod adopt;
mod attributes;
mod backing;
mod mirror;
mod mounts;
mod protect;
mod survey;
mod watch;

pub use backing::TierPlan;
pub use watch::{Progress, Watch};

//! Long jobs, where a decision meets an effect: adopting a directory, giving it back, migrating blocks, checking and dumping what is on disk,
//! replaying traces and predicting for other programs, keeping full segments of the log, taking snapshots, keeping them and going back to them.
//!
//! Adoption and release may be cut off anywhere and be run again; they go on where they stopped. The volume's phase in tier 0's identity
//! says where that is.

pub mod adopt;
mod anchor;
mod attributes;
mod background;
mod backing;
pub mod cadence;
pub mod check;
pub mod clone;
pub mod doctor;
pub mod dump;
pub mod events;
pub mod forecaster;
mod home;
pub mod hooks;
pub mod hydrate;
pub mod log_archive;
mod manifest;
pub mod mend;
pub mod migrate;
mod mirror;
mod mounts;
pub mod orphans;
pub mod pace;
mod plant;
pub mod predict;
pub mod protect;
pub mod relations;
pub mod release;
pub mod replay;
pub mod restore;
pub mod rollback;
pub mod shown;
pub mod snapshot;
mod streams;
mod survey;
mod watch;

pub use backing::TierPlan;
pub use watch::{Progress, Watch};

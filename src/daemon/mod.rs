//! The life of a volume's process: settings, mount, threads, service notifications, shutdown.

mod callers;
pub mod clones;
pub mod holders;
mod launch;
mod lifecycle;
mod mountpoint;
mod path_rules;
mod patience;
mod process;
pub mod quantity;
mod reader;
pub mod render;
mod served;
mod service;
pub mod settings;
mod signals;
pub mod snapshots;
mod view;
mod watchdog;

pub use launch::launch;
pub use lifecycle::{MountAs, engine_options, engine_tiers, run, tier_plans};
pub use mountpoint::clear_mountpoint;
pub use served::{Control, Served, StartControl};
pub use view::View;

//! The control interface: HTTP with JSON over a unix socket. The only room with tokio, in a thread of its own, so that nothing here can
//! hold up the data plane; calls into the engine run on its blocking threads.

pub mod client;
mod errands;
mod events;
mod insight;
pub mod metrics;
mod placement;
pub mod protocol;
mod server;
mod snapshots;
mod socket;

pub use server::start;

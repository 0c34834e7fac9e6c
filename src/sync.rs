//! What threads meet at: locks, atomics, threads.
//!
//! What is checked in every interleaving takes them from here and nowhere else (`tests/tidy.rs`): `tests/interleavings` compiles the same
//! sources once more with primitives in this place whose schedule it decides.

pub use parking_lot::{Condvar, Mutex, RwLock};
pub use std::sync::atomic;
pub use std::thread;

//! What threads meet at: locks, atomics, threads.
//!
//! Rooms whose interleavings are checked take them from here and nowhere else: `tests/interleavings` compiles the same sources once more with
//! primitives in this place whose schedule it decides.

pub use parking_lot::{Condvar, Mutex, RwLock};
pub use std::sync::atomic;
pub use std::thread;

//! Small rooms of the engine under every interleaving of a few threads.
//!
//! The modules below are the daemon's own sources, compiled once more over the locks, atomics and threads of [`sync`], which let the checker
//! decide who goes on. [`schedule`] tries every order in which the threads can pass those points, up to a number of preemptions: whoever is not
//! blocked is interrupted at most so often, and whenever a thread blocks, each of the others goes on in turn. A deadlock, a lost
//! wake-up (timers do not fire unless a check says how often) and a panic are failures.
//!
//! What this does not see: memory orderings weaker than sequential consistency, more threads or preemptions than a check says, and whatever
//! is not among these modules. The modules' own unit tests come along, and run here once more as the tests that they are.

mod commits;
mod images;
mod pools;
mod punches;
mod schedule;
mod sync;
mod wakes;

// What the modules under check import from the crate that is the same in both.
use heatfs::{device, error, ondisk, units};

#[allow(dead_code, reason = "the checks use a part")]
#[path = "../../src/volume/claims.rs"]
mod claims;
#[allow(dead_code, unused_imports, reason = "the checks use a part")]
#[path = "../../src/log/mod.rs"]
mod log;
#[allow(dead_code, reason = "the checks use a part")]
#[path = "../../src/fuse/pool.rs"]
mod pool;
#[allow(dead_code, reason = "the checks use a part")]
#[path = "../../src/volume/readers.rs"]
mod readers;
#[path = "../../src/volume/wake.rs"]
mod wake;

//! The engine against a plain model, on the simulated device: any operations, coalescing, checkpoints, moves and reopening in between; a
//! crash at every device operation; faults.

mod clones;
mod clones_crash;
mod crash;
mod damage;
mod descriptors;
mod direct;
mod faults;
mod fragments;
mod harness;
mod leaving;
mod many;
mod marks;
mod marks_crash;
mod marks_rules;
mod marks_threads;
mod meanwhile;
mod model;
mod opening;
mod replaced;
mod rescue;
mod rollback_crash;
mod rules;
mod threads;
mod zeros;

//! The command line from outside: exit codes, lines, JSON. No project code but the binary.
//!
//! Tests that mount say so and pass where there is no FUSE, unless `HEATFS_REQUIRE_ALL` is set: then they fail.

mod bench;
mod cadence;
mod clones;
mod doctor;
mod lmdb;
mod mounting;
mod postgres;
mod rollback;
mod secrets;
mod snapshots;
mod traces;
mod unfinished;
mod usage;
mod volume;

//! heatfs keeps a database's data directory on several tiers at once.
//!
//! ```text
//!   main, cli            the command line and its rendering
//!   control              HTTP/JSON over a unix socket: protocol, server, client, metrics, events
//!   daemon               lifecycle: settings, mount, threads, service notifications, shutdown
//!   fuse, namespace      FUSE operations; inodes, names, attributes
//!   jobs                 adopt, release, migrate, snapshot, cadence, restore, rollback, check, replay: where a decision meets an effect
//!   policy               placement, rules, profiles, the gate and coalescing decide; they own no data path and read no clock
//!   heat                 the recorder of misses and writes; the forecast of heat
//!   volume               the engine: read, write, sync, truncate by file id
//!   log, tier, repository  the write log; tier identity and object files; snapshots as content-addressed objects
//!   ondisk               every format, with its golden bytes
//!   device               backing files behind one small trait: the real one and a simulated one
//!   units, error, sync   ids, units, the error type; locks and atomics
//! ```
//!
//! Imports run downwards only (`tests/tidy.rs` holds the ranks).
//!
//! **A write** becomes a record in the open group of the log and an extent of the file's overlay; no system call.
//! **fsync** closes the group and writes it with one direct, synchronous write; whoever finds no group in flight writes it.
//! **A read** lays the overlay over the base: a block's image in the object file of the tier that the block map names.
//! **Coalescing** applies durable records to the base behind the scenes; **a checkpoint** makes base, map and sizes durable in one
//! transaction and only then frees old images and recycles log segments. **The mover** copies blocks between tiers as
//! heat asks, and flips the map if nobody wrote meanwhile. After a crash the log is replayed into the overlay: nothing is copied at start.
//!
//! What is *not* here: the engine (`volume` and below) knows no FUSE, no user paths, no async; policy does no I/O;
//! `unsafe` is confined to `device::sys`, `sys_home` and `sys_uring`.

pub mod cli;
pub mod control;
pub mod daemon;
pub mod device;
pub mod error;
pub mod fuse;
pub mod heat;
pub mod jobs;
pub mod log;
pub mod namespace;
pub mod ondisk;
pub mod policy;
pub mod repository;
pub mod sync;
pub mod tier;
pub mod units;
pub mod volume;

//! The recorder: which blocks are read from devices and written, how often, lately.
//!
//! The engine calls a [`Recorder`] for every page-cache miss and every write; it counts per block, and
//! folds the counts into decaying sums every now and then ([`Recorder::roll`]). Whoever places blocks asks for
//! the *heat*: accesses predicted for the next epoch. Sequential streams are not counted, because a scan says nothing about what
//! is read next and a disk serves it well; writes count by a weight, and records of log files not at all, because they die in the log.
//!
//! [`forecast`] predicts the next epoch from the accesses of past ones, which it hears of through a bounded queue; [`Recorder::expecting`] makes what
//! it says the heat of blocks, until it is asked to forget it.
//!
//! Memory is bounded at every moment: counts live in chunks of 256 blocks, made when one is touched, dropped when cold, and dropped
//! coldest first at the limit (`table.rs`); of a chunk with few blocks that matter only those take room (`chunk.rs`). The state may be lost at any time; it is kept in a file only so that a restart need not learn again.

mod chunk;
mod expected;
mod feed;
mod file;
pub mod forecast;
mod maintenance;
mod recorder;
mod streams;
mod table;
#[cfg(test)]
mod tests;
mod trace;

pub use chunk::CHUNK_BLOCKS;
pub use expected::Expecting;
pub use feed::Event;
pub use file::HEAT_FILE;
pub use maintenance::maintaining;
pub use recorder::{Evidence, FileHeat, Fragmented, HeatSettings, Recorder, RecorderStatus, SlowMiss};
pub use streams::Streams;
pub use trace::{TakenTrace, TraceRecord, TracedOperation};

/// Shares out the memory for heat, in bytes: what the recorder's counters may take, and what the forecast may. Of 128 MiB for a TiB the counters of a tenth of
/// its blocks fit the first part, their records and everybody's shards the second.
pub fn share_memory(bytes: u64) -> (u64, u64) {
    let counters = bytes / 32 * 5;
    (counters, bytes - counters)
}

//! The engine: read, write, sync and truncate by file id. It knows no FUSE, no user paths, no async.
//!
//! API skeleton; the engine's author replaces the bodies.
#![allow(unused_variables, clippy::todo)]

use crate::device::{Device, Space};
use crate::error::Result;
use crate::units::{BlockNo, FileId, TierId, WallNs};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// What a volume is opened with. All of it comes from the settings file; the engine has no defaults of its own but these.
#[derive(Clone, Debug)]
pub struct Options {
    pub block_bytes: u32,
    /// Size of one log segment, in bytes; a multiple of 1 MiB. Fixed when the volume is created.
    pub segment_bytes: u64,
    /// Number of log segments. Fixed when the volume is created.
    pub segments: u32,
    /// Recent log payloads kept in memory, in bytes.
    pub payload_cache_bytes: u64,
}

/// May this call wait for a slow device or for log space?
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Wait {
    /// Answer `Error::WouldWait` instead of waiting (FUSE workers).
    Never,
    Allowed,
}

/// One tier as the engine sees it: fastest first.
#[derive(Clone)]
pub struct Tier {
    pub name: String,
    pub device: Arc<dyn Device>,
    /// Bytes of block images that may lie here (budget); None: the device's own space less `reserve_bytes`.
    pub budget_bytes: Option<u64>,
    pub reserve_bytes: u64,
}

/// A file known to the engine. Cheap to clone the Arc; the namespace holds one per live node.
pub struct File {
    id: FileId,
}

impl File {
    pub fn id(&self) -> FileId {
        self.id
    }
}

/// What the engine knows better than home: everything else of an inode is home's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileAttr {
    pub size_bytes: u64,
    /// In 512-byte units, from map and overlay.
    pub blocks_512: u64,
    /// None: the engine has not seen a write or truncate since home's own mtime/ctime were set; home's times are right.
    pub mtime: Option<WallNs>,
    pub ctime: Option<WallNs>,
}

/// Called by the engine with files whose data are durably gone (their grave entries may go).
pub type GoneListener = Box<dyn Fn(&[FileId]) + Send + Sync>;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    Data,
    Hole,
}

pub struct Volume {}

impl Volume {
    /// Creates state and log of a new volume on prepared tiers (see room `tier` for identity).
    pub fn create(tiers: &[Tier], options: &Options) -> Result<()> {
        todo!()
    }
    /// Opens and recovers. Serves at once; spawns no threads (see [`Volume::start_threads`]).
    pub fn open(tiers: Vec<Tier>, options: Options) -> Result<Arc<Volume>> {
        todo!()
    }
    /// Committer, coalescer, checkpointer.
    pub fn start_threads(self: &Arc<Self>) -> Result<()> {
        todo!()
    }
    pub fn on_gone(&self, listener: GoneListener) {
        todo!()
    }
    /// A fresh id, never issued before, below the durably reserved limit (R10).
    pub fn issue_file_id(&self) -> Result<FileId> {
        todo!()
    }
    /// The file with this id; an id the engine has no record of is an empty file (created, never written).
    /// `Untrusted` for an id that was never issued.
    pub fn file(&self, id: FileId) -> Result<Arc<File>> {
        todo!()
    }
    /// Tells the engine that files of this path (relative to the mount, '/'-separated) behave like logs (records left to die), by name.
    /// Called by the namespace at create, lookup and rename.
    pub fn note_path(&self, file: &File, path: &str) {
        todo!()
    }
    /// All of `data` at `offset`, atomically in log order. Grows the file. With `Wait::Never` never blocks.
    pub fn write(&self, file: &Arc<File>, offset: u64, data: &[u8], wait: Wait) -> Result<()> {
        todo!()
    }
    /// Fills `buf` from `offset`; returns bytes before end of file. `sequential`: the caller's view, not counted as heat.
    pub fn read(&self, file: &Arc<File>, offset: u64, buf: &mut [u8], wait: Wait) -> Result<usize> {
        todo!()
    }
    pub fn set_size(&self, file: &Arc<File>, size_bytes: u64) -> Result<()> {
        todo!()
    }
    /// FALLOC_FL_PUNCH_HOLE | KEEP_SIZE.
    pub fn punch_hole(&self, file: &Arc<File>, offset: u64, len: u64) -> Result<()> {
        todo!()
    }
    /// FALLOC_FL_ZERO_RANGE.
    pub fn zero_range(&self, file: &Arc<File>, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        todo!()
    }
    /// Plain fallocate: reserves space, grows the file unless `keep_size`.
    pub fn allocate(&self, file: &Arc<File>, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        todo!()
    }
    /// Calls `done` once every record of `file` up to now is durable; may call it on this thread (leader commit) or on another.
    pub fn sync(&self, file: &Arc<File>, done: Box<dyn FnOnce(Result<()>) + Send>) {
        todo!()
    }
    /// The whole log, waiting.
    pub fn sync_log(&self) -> Result<()> {
        todo!()
    }
    /// lseek(SEEK_DATA / SEEK_HOLE); None: ENXIO.
    pub fn seek(&self, file: &File, offset: u64, what: Seek) -> Option<u64> {
        todo!()
    }
    pub fn attr(&self, file: &File) -> FileAttr {
        todo!()
    }
    /// utimensat: home has been told, the engine's own times give way (mtime: the new one, None = unchanged).
    pub fn set_times(&self, file: &File, mtime: Option<WallNs>) {
        todo!()
    }
    /// The last name is gone (home's grave holds it) and nobody has it open: data, records and map entries go after the next checkpoint.
    pub fn remove(&self, id: FileId) -> Result<()> {
        todo!()
    }
    /// statfs over all tiers.
    pub fn space(&self) -> Space {
        todo!()
    }
    pub fn checkpoint(&self) -> Result<()> {
        todo!()
    }
    /// Coalesces everything that is durable (settle).
    pub fn coalesce_all(&self) -> Result<()> {
        todo!()
    }
    /// Coalesce, checkpoint, mark clean; further calls fail.
    pub fn shut_down(&self) -> Result<()> {
        todo!()
    }
    /// Copies a block's base to a tier and flips the map if nobody wrote it meanwhile. Ok(false): refused (busy, changed, no room).
    pub fn move_block(&self, file: &Arc<File>, block: BlockNo, to: TierId) -> Result<bool> {
        todo!()
    }
    pub fn status(&self) -> VolumeStatus {
        todo!()
    }
}

/// Everything `status`, `tiers`, `top` and the metrics show of the engine.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct VolumeStatus {
    /// None: healthy. Otherwise why the volume is read-only.
    pub read_only: Option<String>,
    /// Why the volume is degraded; empty when it is not.
    pub degraded: Vec<String>,
    pub files: u64,
    pub tiers: Vec<TierStatus>,
    pub log: LogStatus,
    pub counters: Counters,
    pub overlay_extents: u64,
    pub map_memory_bytes: u64,
    pub overlay_memory_bytes: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct TierStatus {
    pub name: String,
    pub path: String,
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub budget_bytes: u64,
    pub used_bytes: u64,
    /// Blocks whose current image is here.
    pub blocks: u64,
    /// Clean copies of blocks that live on a faster tier.
    pub copies: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct LogStatus {
    pub size_bytes: u64,
    pub used_bytes: u64,
    /// Bytes of records that are in no base yet.
    pub live_bytes: u64,
    pub segments: u32,
    pub free_segments: u32,
    pub durable_lsn: u64,
    pub next_lsn: u64,
}

/// Monotonic counters since the daemon started.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct Counters {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub write_bytes: u64,
    pub syncs: u64,
    pub log_groups: u64,
    pub log_written_bytes: u64,
    /// Total time of the log's group writes, in microseconds.
    pub log_group_us: u64,
    pub log_payload_bytes: u64,
    /// Reads answered from the overlay: in memory, and from the log.
    pub reads_from_payload_cache: u64,
    pub reads_from_log: u64,
    /// Base reads per tier (device calls), bytes per tier, microseconds per tier in total.
    pub base_reads: Vec<u64>,
    pub base_read_bytes: Vec<u64>,
    pub base_read_us: Vec<u64>,
    pub base_writes: Vec<u64>,
    pub base_write_bytes: Vec<u64>,
    pub coalesced_blocks: u64,
    pub promoted_blocks: u64,
    pub demoted_blocks: u64,
    pub demoted_by_flip_blocks: u64,
    pub checkpoints: u64,
    pub checkpoint_us: u64,
    pub writer_waits: u64,
}

/// What the engine tells whoever watches accesses (the heat recorder). Called on the data path: must be cheap and never block on I/O.
pub trait AccessObserver: Send + Sync {
    fn on_read_miss(
        &self,
        file: FileId,
        first: BlockNo,
        last: BlockNo,
        offset: u64,
        len: u32,
        tier: Option<TierId>,
        latency_us: u32,
    );
    fn on_write(&self, file: FileId, offset: u64, len: u32, is_log_file: bool);
    fn on_file_gone(&self, file: FileId);
}

impl Volume {
    pub fn set_observer(&self, observer: Arc<dyn AccessObserver>) {
        todo!()
    }
    pub fn files(&self) -> Vec<FileId> {
        todo!()
    }
    /// Runs of blocks with the same location: first block, count, tier (None: a hole or only in the log).
    pub fn block_map(&self, file: &File) -> Vec<(BlockNo, u64, Option<TierId>)> {
        todo!()
    }
}

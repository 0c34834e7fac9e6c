//! The engine: read, write, sync and truncate by file id. It knows no FUSE, no user paths, no async.
//!
//! # How bytes travel
//! A change becomes a record in the log and an extent in its file's overlay ([`io`]). The coalescer applies durable extents to
//! the base and takes them out of the overlay ([`coalesce`]); the mover copies base images between tiers ([`relocate`]) and drops those of zeros ([`zeros`]); a checkpoint makes base,
//! map and sizes durable, and only then frees old images and log segments ([`checkpoint`]). Opening replays the log ([`open`]).
//! A snapshot's moment is a mark in the log ([`marks`]); what it needs is kept before it changes ([`preserve`]), read from
//! there ([`asof`]), and found again by the next mount ([`resume`]). A volume that was made of a snapshot has blocks in a repository, and brings
//! them to its tiers ([`source`]). What a tier cannot read may be in the last snapshot ([`rescue`]). One that was rolled back to a snapshot is made of it anew, beside what it was ([`rollback`]).
//!
//! # Locks, in the order in which they are taken
//! 1. `checkpointing`: one checkpoint at a time.
//! 2. **block claim** (`claims`): whoever changes a block's base or its place holds the claim on (file, block) from before it reads the
//!    map until after the flip. Coalescer, mover and punch exclude each other with it; the foreground never takes it. Held across I/O.
//! 3. `gate`: read-held for each flip, write-held while a checkpoint freezes its set, so that a flip is in one checkpoint or the next (R4).
//! 4. `appends`, read-held around 5 by whoever logs a record.
//! 5. a file's own lock (`File`): size, overlay, map. Held for memory operations and for the append of a record (so that log order is the order
//!    of the file's changes), never across device I/O.
//! 6. leaves: what was read of the repository lately, the log's state, `window`, `vacated`, `touched`, `lost_writes`, the table of files, pending marks and the files that have layers, staging's table.
//!
//! One mark ends at a time (`ending`, after 2 and before 4); one batch is staged at a time (`writing`, after 2, held across I/O, no other lock within).
//!
//! Readers take only 5 and count themselves in [`readers`]; recycling a segment and punching an old image wait for readers that began earlier.
//!
//! # Why a flip is safe
//! Bytes leave the overlay only together with the flip that makes the base current, under the file's lock, and only if they are
//! still the newest; a truncate meanwhile raises `cuts` and the flip into a new place is given up. Until the next checkpoint is durable, the extents
//! applied (`window`) stay in the log, the old image stays where it was (`vacated`), and so a crash or a failed sync goes back to them (I2, R5, R8).

mod asof;
mod blockmap;
mod changes;
mod checkpoint;
mod claims;
mod coalesce;
mod direct;
mod file;
mod fragments;
mod inspect;
mod io;
mod layers;
pub mod log_paths;
mod marks;
mod open;
mod overlay;
mod preserve;
mod readers;
mod relocate;
mod rescue;
mod reserve;
mod resize;
mod resume;
mod rollback;
mod sealed;
mod source;
mod space;
mod staging;
mod state;
mod status;
mod survey;
mod sweep;
mod threads;
mod wake;
mod zeros;

pub use asof::FileAt;
pub use blockmap::{Home, Place};
pub use direct::DirectRead;
pub use file::File;
pub use inspect::{Finding, Severity};
pub use marks::{MARKS_MAX, Mark, MarkListener};
pub use open::{Recovery, Run};
pub use readers::{Readers, Reading};
pub use rescue::SnapshotStore;
pub use reserve::ReserveStatus;
pub use resize::Seek;
pub use source::{ClonedFile, Hydrated, Lineage, SourceSnapshot};
pub use state::{Fate, Meta, Rollback};
pub use status::{Activity, Counters, LogLoad, LogStatus, MarkStatus, RollbackStatus, TierStatus, VolumeStatus};

use crate::device::Device;
use crate::error::{Error, Result};
use crate::log::{Geometry, Log};
use crate::ondisk::sourced::SourceRow;
use crate::tier::objects::Objects;
use crate::units::{BlockNo, FileId, TierId, WallNs};
use claims::Claim;
use overlay::{Extent, Ledger};
use parking_lot::{Mutex, RwLock};
use state::StoredFile;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};

/// Files that stay in memory even when nobody uses them.
const FILES_IN_MEMORY: usize = 20_000;

/// What a volume is opened with.
#[derive(Clone, Debug)]
pub struct Options {
    /// Unit of placement, in bytes: a power of two from 4 KiB to 1 MiB. Fixed when the volume is created.
    pub block_bytes: u32,
    /// Size of one log segment, in bytes, a multiple of 64 KiB. Fixed when the volume is created.
    pub segment_bytes: u64,
    /// Number of log segments, at least 4. Fixed when the volume is created.
    pub segments: u32,
    /// Recent log payloads kept in memory, in bytes.
    pub payload_cache_bytes: u64,
    /// Share of the log, 0 to 1, above which the oldest records are coalesced.
    pub coalesce_at_fill: f64,
    /// Longest time between checkpoints, in seconds.
    pub checkpoint_interval_s: u64,
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
    /// Bytes of block images that may lie here; None: the device's own space less `reserve_bytes`.
    pub budget_bytes: Option<u64>,
    pub reserve_bytes: u64,
}

/// What the engine knows better than home: everything else of an inode is home's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub struct FileAttr {
    pub size_bytes: u64,
    /// In 512-byte units, from map and promises.
    pub blocks_512: u64,
    /// None: the engine has not seen a write or truncate since home's own time was set; home's is right.
    pub mtime: Option<WallNs>,
    pub ctime: Option<WallNs>,
}

/// Called by the engine with files whose data are durably gone (their grave entries may go).
pub type GoneListener = Box<dyn Fn(&[FileId]) + Send + Sync>;

/// Hears under which path a file is met, and answers whether that is a log's, besides those known by name anyway.
pub type PathListener = Box<dyn Fn(FileId, &str) -> bool + Send + Sync>;

/// Hears of accesses: the recorder of heat. Called on the data path: must be quick and never block.
pub trait AccessObserver: Send + Sync {
    #[expect(clippy::too_many_arguments, reason = "a struct for the call would be built on every miss")]
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
    /// A user read, wherever the bytes came from.
    fn on_read(&self, _file: FileId, _offset: u64, _len: u64) {}
    /// A user read met so many records of a block one by one in the log.
    fn on_fragments(&self, _file: FileId, _block: BlockNo, _records: u16) {}
    fn on_sync(&self, _file: FileId) {}
    /// A user set the size.
    fn on_size(&self, _file: FileId, _size_bytes: u64) {}
}

/// Extents applied to a block's base since the last durable checkpoint, and where the block was before.
struct Applied {
    file: FileId,
    block: BlockNo,
    /// The map entry before the first change of this checkpoint period.
    prior: Place,
    pieces: Vec<Extent>,
    /// The tier written to, if any.
    wrote: Option<TierId>,
}

/// Places that no map entry names any more but that durable state may still name: not to be written, punched after the next checkpoint.
#[derive(Default)]
struct Vacated {
    current: HashSet<(FileId, BlockNo, TierId)>,
    frozen: HashSet<(FileId, BlockNo, TierId)>,
}

pub struct Volume {
    options: Options,
    tiers: Vec<Tier>,
    objects: Vec<Objects>,
    log: Log,
    state: state::State,
    meta: Mutex<Meta>,
    next_file_id: AtomicU64,
    files: RwLock<HashMap<FileId, Arc<File>>>,
    dirty: Mutex<Vec<FileId>>,
    gone: Mutex<Vec<FileId>>,
    on_gone: RwLock<Option<GoneListener>>,
    path_listener: RwLock<Option<PathListener>>,
    observer: RwLock<Option<Arc<dyn AccessObserver>>>,
    space: space::SpaceBook,
    /// Weight of extents in the overlay per log slot: what each segment is still needed for.
    live: Vec<AtomicI64>,
    /// Blocks that have had records in each slot's segment: where to look for extents when the segment is to be freed.
    touched: Vec<Mutex<Vec<(FileId, BlockNo, BlockNo)>>>,
    claims: claims::Claims,
    /// Segments below this one hold nothing any more for slow tiers, except what could not be coalesced then.
    slow_drained: AtomicU64,
    /// Fill of the log at which coalescing begins, as bits.
    coalesce_at_fill_bits: AtomicU64,
    /// A miss on the slowest tier of several keeps its blocks' images; with this, also those of its 64 KiB neighbourhood.
    reads_around: AtomicBool,
    gate: RwLock<()>,
    /// Read-held from the append of a record until its extent counts as live; a freeze waits for it.
    appends: RwLock<()>,
    window: Mutex<Vec<Applied>>,
    vacated: Mutex<Vacated>,
    checkpointing: Mutex<()>,
    /// How often each tier has lost writes that it had accepted: what was written before and is not flipped yet does not count (R8).
    losses: Vec<AtomicU64>,
    /// A writer gives up after this long without any progress of the log.
    log_full_wait_ms: AtomicU64,
    /// Goes up when files leave memory: a load that began before may be out of date.
    unloads: AtomicU64,
    /// As many files in memory are a reason to look for those that nobody uses.
    files_wanted: AtomicUsize,
    /// Tiers whose sync failed in the checkpoint under way.
    lost_writes: Mutex<BTreeSet<TierId>>,
    readers: Arc<readers::Readers>,
    marks: marks::Marks,
    staging: staging::Staging,
    source: source::Source,
    /// Where what tiers cannot read may be found.
    snapshots: RwLock<Option<Arc<dyn SnapshotStore>>>,
    /// Of the root before, while a rollback is open: counted at the mount, and nobody writes there.
    kept_blocks: AtomicU64,
    counters: status::Live,
    /// Troubles that do not stop the volume, by subject, with the time they began.
    degraded: Mutex<BTreeMap<String, (WallNs, String)>>,
    /// Last failure of a tier's writes: it is left alone for a while.
    backoff: Mutex<HashMap<TierId, std::time::Instant>>,
    closed: AtomicBool,
    /// The last mount did not end in order.
    after_crash: bool,
    maintenance: threads::Maintenance,
}

/// Taken before a base is written, compared when the block is flipped.
#[derive(Clone, Copy)]
struct Wrote {
    tier: TierId,
    losses: u64,
}

/// Keeps `live` in step with an overlay.
struct LiveLedger<'a> {
    volume: &'a Volume,
}

impl LiveLedger<'_> {
    fn cell(&self, extent: &Extent) -> Option<&AtomicI64> {
        let geometry = self.volume.geometry();
        self.volume.live.get(geometry.slot(geometry.segment_of(extent.source.address())))
    }
}

impl Ledger for LiveLedger<'_> {
    fn added(&mut self, extent: &Extent) {
        if let Some(cell) = self.cell(extent) {
            cell.fetch_add(i64::try_from(extent.weight()).unwrap_or(i64::MAX), Ordering::AcqRel);
        }
    }
    fn removed(&mut self, extent: &Extent) {
        if let Some(cell) = self.cell(extent) {
            cell.fetch_sub(i64::try_from(extent.weight()).unwrap_or(i64::MAX), Ordering::AcqRel);
        }
    }
}

/// What a file's trouble is listed under.
fn file_subject(id: FileId) -> String {
    format!("file {id}")
}

impl Volume {
    pub fn block_bytes(&self) -> u64 {
        u64::from(self.options.block_bytes)
    }

    pub fn tier_count(&self) -> usize {
        self.tiers.len()
    }

    pub fn tier_name(&self, tier: TierId) -> &str {
        self.tiers.get(tier.index()).map_or("?", |tier| tier.name.as_str())
    }

    pub fn volume_id(&self) -> uuid::Uuid {
        self.meta.lock().volume
    }

    fn geometry(&self) -> Geometry {
        self.log.geometry()
    }

    fn ledger(&self) -> LiveLedger<'_> {
        LiveLedger { volume: self }
    }

    fn block_of(&self, offset: u64) -> BlockNo {
        BlockNo(offset / self.block_bytes())
    }

    fn block_start(&self, block: BlockNo) -> u64 {
        block.0 * self.block_bytes()
    }

    /// Is this the last of the tiers? With one tier that is the fastest too.
    fn is_slowest(&self, tier: TierId) -> bool {
        tier.index() + 1 == self.tiers.len()
    }

    fn objects(&self, tier: TierId) -> Result<&Objects> {
        self.objects.get(tier.index()).ok_or_else(|| Error::NotFound(format!("no tier {tier}")))
    }

    fn claim(&self, file: FileId, block: BlockNo) -> Option<Claim<'_>> {
        self.claims.claim(file, block)
    }

    /// Is what was read of this block from the slowest tier still in memory, so that promoting it needs no device read?
    pub fn has_image(&self, file: FileId, block: BlockNo) -> bool {
        self.claims.has_image(file, block)
    }

    /// Largest block whose image is kept when it is missed.
    pub fn image_block_bytes_max(&self) -> u64 {
        io::NEIGHBOURHOOD_BYTES
    }

    /// Makes a small miss on the slowest tier read its whole 64 KiB neighbourhood: worth it while faster tiers have room.
    pub fn read_around_misses(&self, around: bool) {
        self.reads_around.store(around, Ordering::Relaxed);
    }

    fn about_to_write(&self, tier: TierId) -> Wrote {
        Wrote { tier, losses: self.losses_of(tier) }
    }

    fn losses_of(&self, tier: TierId) -> u64 {
        self.losses.get(tier.index()).map_or(0, |losses| losses.load(Ordering::Acquire))
    }

    /// Has the tier failed a sync since? Then the bytes may be gone although no later sync says so. The caller holds `gate`.
    fn was_lost(&self, wrote: Wrote) -> bool {
        self.losses_of(wrote.tier) != wrote.losses
    }

    /// How long a writer waits for log room while nothing drains the log, before it gets `LogFull`.
    pub fn set_log_full_wait(&self, wait: std::time::Duration) {
        self.log_full_wait_ms.store(u64::try_from(wait.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }

    /// Registers who hears of files whose data are durably gone.
    pub fn on_gone(&self, listener: GoneListener) {
        *self.on_gone.write() = Some(listener);
    }

    /// Registers who hears of paths, and knows further logs' paths; counts for files met from now on.
    pub fn on_path(&self, listener: PathListener) {
        *self.path_listener.write() = Some(listener);
    }

    /// Registers who hears of accesses.
    pub fn set_observer(&self, observer: Arc<dyn AccessObserver>) {
        *self.observer.write() = Some(observer);
    }

    /// Turns the volume read-only until it is opened again, because something that belongs to it failed to become durable (I5).
    pub fn stop_writing(&self, error: &Error) {
        self.log.fail_for(error);
    }

    fn check_writable(&self) -> Result<()> {
        if self.closed.load(Ordering::Acquire) {
            return Err(Error::ReadOnly { why: "the volume is shut down".to_string() });
        }
        match self.log.failure() {
            None => Ok(()),
            Some(why) => Err(Error::ReadOnly { why }),
        }
    }

    /// A fresh id, never issued before, below the durably reserved limit (R10).
    pub fn issue_file_id(&self) -> Result<FileId> {
        loop {
            let limit = self.meta.lock().file_id_limit;
            let next = self.next_file_id.load(Ordering::Acquire);
            if next < limit {
                if self.next_file_id.compare_exchange(next, next + 1, Ordering::AcqRel, Ordering::Acquire).is_ok() {
                    return Ok(FileId(next));
                }
            } else {
                self.check_writable()?;
                self.checkpoint_despite_tiers()?;
            }
        }
    }

    /// The file with this id; an id without a record is an empty file (created, never written).
    /// `Untrusted` for an id that was never issued.
    pub fn file(&self, id: FileId) -> Result<Arc<File>> {
        if let Some(file) = self.files.read().get(&id) {
            return Ok(file.clone());
        }
        if id.0 == 0 || id.0 >= self.meta.lock().file_id_limit {
            return Err(Error::Untrusted { file: id, why: "its id was never issued by this volume".to_string() });
        }
        loop {
            let unloads = self.unloads.load(Ordering::Acquire);
            let loaded = self.load_file(id)?;
            let mut files = self.files.write();
            // Somebody may have loaded, changed and dropped it meanwhile: then this is what it was before.
            if self.unloads.load(Ordering::Acquire) == unloads {
                let file = files.entry(id).or_insert(loaded).clone();
                let many = files.len() > self.files_wanted.load(Ordering::Relaxed);
                drop(files);
                if many {
                    self.make_room_in_memory();
                }
                return Ok(file);
            }
        }
    }

    fn load_file(&self, id: FileId) -> Result<Arc<File>> {
        let mut inner = file::Inner::default();
        let mut log_file = false;
        let mut source = None;
        if let Some(StoredFile { row, chunks, source: sourced }) = self.state.file(id)? {
            (inner.size_bytes, inner.mtime, inner.ctime, log_file) =
                (row.size_bytes, row.mtime, row.ctime, row.log_file);
            if let Some(SourceRow { file, ranges }) = sourced {
                inner.map.set_stored(ranges);
                source = Some(file);
            }
            for (index, bytes) in chunks {
                inner.map.load_chunk(index, &bytes);
            }
            if self.marks.epoch() != 0 {
                self.state.changes_of(id, &mut inner.changes)?;
            }
            inner.recount();
            inner.allocated = inner.promised_blocks > 0;
        }
        Ok(Arc::new(File::new(id, source, inner, log_file)))
    }

    fn list_dirty(&self, file: &File) {
        if file.list_dirty() {
            self.dirty.lock().push(file.id());
        }
    }

    /// Tells how a file is called (relative to the mount), so that log files are known by name. Called at create, lookup and rename.
    pub fn note_path(&self, file: &File, path: &str) {
        let further = self.path_listener.read().as_ref().is_some_and(|hears| hears(file.id(), path));
        file.set_named_log(log_paths::is_log_path(path) || further);
    }

    fn degrade(&self, subject: &str, why: String) {
        let mut degraded = self.degraded.lock();
        if !degraded.contains_key(subject) {
            tracing::warn!(subject, why, "degraded");
        }
        degraded.entry(subject.to_string()).or_insert((crate::device::clock::wall_now(), why));
    }

    /// The file's records could be applied again, or it is gone.
    fn restore_health_of_file(&self, id: FileId) {
        if !self.degraded.lock().is_empty() {
            self.restore_health(&file_subject(id));
        }
    }

    fn restore_health(&self, subject: &str) {
        if self.degraded.lock().remove(subject).is_some() {
            tracing::info!(subject, "healthy again");
        }
    }
}

//! Counting accesses under a microsecond, from many threads, in bounded memory.

use super::chunk::{CHUNK_BLOCKS, CHUNK_BLOCKS_U64, Chunk};
use super::expected::{Expectations, Expecting};
use super::feed::{Event, Feed};
use super::forecast::Access;
use super::maintenance::is_maintaining;
use super::streams::Streams;
use super::table::{ChunkKey, ChunkTable, LOCKS, chunks_of, lock_of};
use super::trace::{TakenTrace, TracedOperation, Tracer};
use crate::error::Result;
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::AccessObserver;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::{Mutex, RwLock};
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU32, AtomicU64, Ordering};

/// Missed blocks waiting to be looked at; more are left to the next plan.
const MISSES_QUEUED: usize = 4096;
/// Fragmented blocks waiting to be looked at; others are met again.
const FRAGMENTED_QUEUED: usize = 1024;
/// What is known of a file beyond its blocks takes at most this share of all memory, and so much per file, in a table that is half empty after it has grown.
const FILES_ONE_IN: u64 = 4;
const FILE_COST_BYTES: u64 = 2 * (size_of::<FileState>() as u64 + 9);
/// Files whose streams are remembered, per lock, however much memory there is.
const FILES_PER_LOCK: usize = 8192;
/// What a file's sum takes, twice while the next one is made.
const SUM_COST_BYTES: u64 = 2 * 2 * (size_of::<FileSum>() as u64 + 9);

#[derive(Clone, Debug, PartialEq)]
pub struct HeatSettings {
    /// Unit of counting: the volume's block, in bytes.
    pub block_bytes: u32,
    /// Epochs after which an access counts half. An epoch is the unit of time that heat is expressed in, typically five minutes; the
    /// caller rolls as often as it likes, by fractions of one. Blocks near a tier's cut are read minutes apart, so a
    /// memory of less than half an hour sees only noise there.
    pub half_life_epochs: f32,
    /// What a write counts, a read miss being 1. A write is paid when it is coalesced: a seek on a disk, behind the scenes and partly
    /// absorbed by the disk's cache, so it is worth less than a reader's wait.
    pub write_weight: f32,
    /// Memory for all of it, in bytes; the coldest chunks go when it is reached.
    pub memory_bytes: u64,
}

impl HeatSettings {
    pub fn with_block_bytes(block_bytes: u32) -> HeatSettings {
        HeatSettings { block_bytes, half_life_epochs: 8.0, write_weight: 0.5, memory_bytes: 128 << 20 }
    }
}

/// A block that was just missed on a slow tier: its image is in memory for a moment, so this is when promoting it is cheap.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct SlowMiss {
    pub file: FileId,
    pub block: BlockNo,
    pub tier: TierId,
}

/// A block of which a read has met so many records one by one in the log.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Fragmented {
    pub file: FileId,
    pub block: BlockNo,
    pub records: u16,
}

/// What is known of a file as a whole, as of the last roll.
#[derive(Clone, Copy, Debug, Default)]
struct FileSum {
    /// Decayed sum over the file's blocks.
    past: f32,
    /// Blocks of the file, as last told; 0: not yet.
    blocks: u64,
}

/// What is known of a file's accesses beyond its blocks.
struct FileState {
    reads: Streams,
    writes: Streams,
    log_file: bool,
    /// Roll when last touched, for forgetting.
    touched: u32,
}

/// What a block's heat comes from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Evidence {
    /// Accesses per epoch that its own past makes likely.
    pub own: f32,
    /// Accesses per epoch that are likely for any block of its file.
    pub from_file: f32,
    /// Reads and writes since the latest plan.
    pub reads: u16,
    pub writes: u16,
    /// Accesses in the next epoch that the forecast expects; None while plain decay places the block.
    pub expected: Option<f32>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct RecorderStatus {
    /// Weight of the past, in epochs: grows towards the half-life / ln 2.
    pub exposure_epochs: f32,
    pub rolls: u32,
    pub chunks: u64,
    pub memory_bytes: u64,
    pub memory_limit_bytes: u64,
    pub counted_reads: u64,
    pub counted_writes: u64,
    pub sequential_accesses: u64,
    /// Accesses of backups, vacuum and the like, which are no heat.
    pub maintenance_accesses: u64,
    /// Misses on slow tiers not queued because the queue was full.
    pub misses_dropped: u64,
    /// Chunks dropped because of the memory limit.
    pub chunks_evicted: u64,
    /// Accesses that the forecast did not hear of because its queue was full.
    pub feed_dropped: u64,
    /// Memory of what the forecast expects of blocks.
    pub expected_bytes: u64,
    /// Memory of the queues to the forecast and to the mover.
    #[serde(default)]
    pub queues_bytes: u64,
}

/// See the module's head. Share it by `Arc`: it is the engine's [`AccessObserver`].
pub struct Recorder {
    settings: HeatSettings,
    pub(super) chunks: ChunkTable,
    files: Vec<Mutex<HashMap<FileId, FileState>>>,
    sums: Mutex<HashMap<FileId, FileSum>>,
    /// Files removed in this epoch: their chunks go at its end, not on the data path. Ids are never reused.
    gone: Mutex<HashSet<FileId>>,
    rolls: AtomicU32,
    /// Decayed length of the past, in epochs: what a decayed sum is divided by to give accesses per epoch, so that a young
    /// recorder is not biased towards zero.
    pub(super) exposure: Mutex<f32>,
    misses_from_tier: AtomicU8,
    misses_out: Sender<SlowMiss>,
    misses_in: Receiver<SlowMiss>,
    fragmented_out: Sender<Fragmented>,
    fragmented_in: Receiver<Fragmented>,
    feed: Feed,
    tracer: Tracer,
    expected: RwLock<Option<Arc<Expectations>>>,
    counted_reads: AtomicU64,
    counted_writes: AtomicU64,
    sequential: AtomicU64,
    maintenance: AtomicU64,
    misses_dropped: AtomicU64,
}

impl Recorder {
    pub fn new(settings: HeatSettings) -> Recorder {
        let (misses_out, misses_in) = bounded(MISSES_QUEUED);
        let (fragmented_out, fragmented_in) = bounded(FRAGMENTED_QUEUED);
        Recorder {
            chunks: ChunkTable::new(
                settings.write_weight,
                usize::try_from(settings.memory_bytes).unwrap_or(usize::MAX),
            ),
            settings,
            files: (0..LOCKS).map(|_| Mutex::default()).collect(),
            sums: Mutex::default(),
            gone: Mutex::default(),
            rolls: AtomicU32::new(0),
            exposure: Mutex::new(0.0),
            misses_from_tier: AtomicU8::new(u8::MAX),
            misses_out,
            misses_in,
            fragmented_out,
            fragmented_in,
            feed: Feed::new(),
            tracer: Tracer::new(),
            expected: RwLock::default(),
            counted_reads: AtomicU64::new(0),
            counted_writes: AtomicU64::new(0),
            sequential: AtomicU64::new(0),
            maintenance: AtomicU64::new(0),
            misses_dropped: AtomicU64::new(0),
        }
    }

    pub fn settings(&self) -> &HeatSettings {
        &self.settings
    }

    /// Blocks that are missed on tier `from` or a slower one are queued from now on.
    pub fn queue_misses(&self, from: TierId) {
        self.misses_from_tier.store(from.0, Ordering::Relaxed);
    }

    /// The queue of misses.
    pub fn misses(&self) -> Receiver<SlowMiss> {
        self.misses_in.clone()
    }

    /// Takes the fragmented blocks that were met since the last time; a bounded number.
    pub fn fragmented(&self) -> impl Iterator<Item = Fragmented> + '_ {
        self.fragmented_in.try_iter().take(FRAGMENTED_QUEUED)
    }

    /// Begins to record a trace of at most so many records. `Busy` while another one is recorded.
    pub fn start_trace(&self, records_max: u64) -> Result<()> {
        self.tracer.start(records_max)
    }

    /// Takes what was recorded since the last time, at most so many records.
    pub fn take_trace(&self, most: usize) -> TakenTrace {
        self.tracer.take(most)
    }

    pub fn stop_trace(&self) {
        self.tracer.stop();
    }

    /// From now on accesses are queued for [`Recorder::events`], or no longer.
    pub fn listen(&self, listened_to: bool) {
        self.feed.listen(listened_to);
    }

    /// Takes what was queued.
    pub fn events(&self) -> impl Iterator<Item = Event> + '_ {
        self.feed.take()
    }

    /// Events that are queued.
    pub fn events_waiting(&self) -> usize {
        self.feed.waiting()
    }

    /// Begins to tell what is expected of blocks.
    pub fn expecting(&self) -> Expecting<'_> {
        Expecting::new(self)
    }

    /// A chunk's past as accesses per epoch.
    pub(super) fn own_past(&self, file: FileId, number: u64) -> Option<[f32; CHUNK_BLOCKS]> {
        let exposure = self.exposure();
        let pasts = self.chunks.read((file, number), Chunk::pasts)?;
        Some(pasts.map(|past| past / exposure))
    }

    pub(super) fn publish(&self, expectations: Expectations) {
        *self.expected.write() = Some(Arc::new(expectations));
    }

    /// Heat is plain decay again.
    pub fn expect_nothing(&self) {
        *self.expected.write() = None;
    }

    fn expected(&self) -> Option<Arc<Expectations>> {
        self.expected.read().clone()
    }

    fn exposure(&self) -> f32 {
        self.exposure.lock().max(1e-6)
    }

    /// Folds the counts since the last roll, `epochs` long, into the decayed sums and forgets what is cold.
    pub fn roll(&self, epochs: f32) {
        let decay = 0.5f32.powf(epochs / self.settings.half_life_epochs.max(0.01));
        let gone = std::mem::take(&mut *self.gone.lock());
        let mut sums: HashMap<FileId, FileSum> = HashMap::new();
        self.chunks.retain(|key, chunk| {
            if gone.contains(&key.0) {
                return false;
            }
            let sum = chunk.roll(decay, self.settings.write_weight);
            if sum > 0.0 {
                sums.entry(key.0).or_default().past += sum;
            }
            sum > 0.0
        });
        {
            let mut old = self.sums.lock();
            for (file, sum) in &mut sums {
                sum.blocks = old.get(file).map_or(0, |known| known.blocks);
            }
            *old = sums;
        }
        let mut exposure = self.exposure.lock();
        *exposure = *exposure * decay + epochs;
        drop(exposure);
        let roll = self.rolls.fetch_add(1, Ordering::Relaxed) + 1;
        self.forget_files(roll);
        let left = self.settings.memory_bytes.saturating_sub(self.files_bytes());
        self.chunks.set_limit(usize::try_from(left).unwrap_or(usize::MAX));
    }

    /// A file that was not touched for sixteen rolls has no stream worth keeping; when many are known, neither have others.
    fn forget_files(&self, roll: u32) {
        let many = self.files_per_lock() / 2;
        for files in &self.files {
            let mut files = files.lock();
            files.retain(|_, state| state.log_file || roll.saturating_sub(state.touched) < 16);
            if files.len() > many {
                files.retain(|_, state| state.touched == roll || state.log_file);
            }
            if files.len() > many {
                files.clear();
            }
            files.shrink_to(256);
        }
    }

    /// How many files each lock may know.
    fn files_per_lock(&self) -> usize {
        let memory = self.settings.memory_bytes / FILES_ONE_IN / LOCKS as u64;
        usize::try_from(memory / FILE_COST_BYTES).unwrap_or(usize::MAX).clamp(16, FILES_PER_LOCK)
    }

    /// Memory of what is known of files beyond their blocks.
    fn files_bytes(&self) -> u64 {
        let files: usize = self.files.iter().map(|files| files.lock().len()).sum();
        let sums = self.sums.lock().len();
        u64::try_from(files).unwrap_or(0) * FILE_COST_BYTES + u64::try_from(sums).unwrap_or(0) * SUM_COST_BYTES
    }

    /// Runs `action` on a file's state, unless the table is full.
    fn with_file<R>(&self, file: FileId, action: impl FnOnce(&mut FileState) -> R) -> Option<R> {
        let mut files = self.files.get(lock_of(file, 0))?.lock();
        if files.len() >= self.files_per_lock() && !files.contains_key(&file) {
            return None;
        }
        let state = files.entry(file).or_insert_with(|| FileState {
            reads: Streams::new(),
            writes: Streams::new(),
            log_file: false,
            touched: 0,
        });
        state.touched = self.rolls.load(Ordering::Relaxed);
        Some(action(state))
    }

    /// Runs `action` on the counters of each block of a range, with the block's index in its chunk.
    fn with_blocks(
        &self,
        file: FileId,
        first: BlockNo,
        last: BlockNo,
        mut action: impl FnMut(&mut Chunk, u8, BlockNo),
    ) {
        for (number, blocks) in chunks_of(first, last) {
            self.chunks.change((file, number), |chunk| {
                blocks.for_each(|block| action(chunk, index_of(block), BlockNo(block)));
            });
        }
    }

    /// The heat of a block at this moment, accesses since the last roll included: accesses per epoch.
    pub fn block_heat(&self, file: FileId, block: BlockNo) -> f32 {
        let index = index_of(block.0);
        let known = |chunk: &Chunk| chunk.past(index) + chunk.present(index, self.settings.write_weight);
        let sum = self.chunks.read((file, block.0 / CHUNK_BLOCKS_U64), known).unwrap_or(0.0);
        let estimate = self.estimate(file);
        let own = sum / estimate.exposure;
        estimate.prior() + self.expected().map_or(own, |expected| expected.heat(file, block, own))
    }

    /// What the heat of a block comes from.
    pub fn evidence(&self, file: FileId, block: BlockNo) -> Evidence {
        let index = index_of(block.0);
        let key = (file, block.0 / CHUNK_BLOCKS_U64);
        let known = self.chunks.read(key, |chunk| (chunk.past(index), chunk.counts(index)));
        let (past, (reads, writes)) = known.unwrap_or_default();
        let estimate = self.estimate(file);
        let expected = self.expected().and_then(|expected| expected.of(file, block));
        Evidence { own: past / estimate.exposure, from_file: estimate.prior(), reads, writes, expected }
    }

    /// The heat of a file's blocks as of the last roll, for a caller who walks them. `blocks`: how many the file has.
    pub fn file_heat(&self, file: FileId, blocks: u64) -> FileHeat<'_> {
        if let Some(sum) = self.sums.lock().get_mut(&file) {
            sum.blocks = blocks;
        }
        FileHeat { recorder: self, file, estimate: self.estimate(file), expected: self.expected() }
    }

    fn estimate(&self, file: FileId) -> Estimate {
        let exposure = self.exposure();
        let sum = self.sums.lock().get(&file).copied().unwrap_or_default();
        let mean = if sum.blocks == 0 { None } else { Some(sum.past / exposure / count_f32(sum.blocks)) };
        Estimate { exposure, mean }
    }

    /// Every file with heat: its id, accesses per epoch over all its blocks, and its blocks as last told.
    pub fn warm_files(&self) -> Vec<(FileId, f32, u64)> {
        let exposure = self.exposure();
        self.sums.lock().iter().map(|(file, sum)| (*file, sum.past / exposure, sum.blocks)).collect()
    }

    /// Do the engine's hints say that this file is a log?
    pub fn is_log_file(&self, file: FileId) -> bool {
        let Some(shard) = self.files.get(lock_of(file, 0)) else { return false };
        shard.lock().get(&file).is_some_and(|state| state.log_file)
    }

    pub fn status(&self) -> RecorderStatus {
        RecorderStatus {
            exposure_epochs: self.exposure(),
            rolls: self.rolls.load(Ordering::Relaxed),
            chunks: u64::try_from(self.chunks.len()).unwrap_or(u64::MAX),
            memory_bytes: u64::try_from(self.chunks.bytes()).unwrap_or(u64::MAX).saturating_add(self.files_bytes()),
            memory_limit_bytes: self.settings.memory_bytes,
            counted_reads: self.counted_reads.load(Ordering::Relaxed),
            counted_writes: self.counted_writes.load(Ordering::Relaxed),
            sequential_accesses: self.sequential.load(Ordering::Relaxed),
            maintenance_accesses: self.maintenance.load(Ordering::Relaxed),
            misses_dropped: self.misses_dropped.load(Ordering::Relaxed),
            chunks_evicted: self.chunks.shed(),
            feed_dropped: self.feed.dropped(),
            expected_bytes: self.expected().map_or(0, |expected| expected.memory_bytes()),
            queues_bytes: Feed::BYTES
                + MISSES_QUEUED as u64 * (size_of::<SlowMiss>() as u64 + 8)
                + FRAGMENTED_QUEUED as u64 * (size_of::<Fragmented>() as u64 + 8),
        }
    }

    /// Puts back what [`super::file`] read.
    pub(super) fn insert(&self, key: ChunkKey, chunk: Chunk) {
        let sum: f32 = chunk.pasts().iter().sum();
        self.chunks.change(key, |known| *known = chunk);
        self.sums.lock().entry(key.0).or_default().past += sum;
    }
}

impl AccessObserver for Recorder {
    fn on_read_miss(
        &self,
        file: FileId,
        first: BlockNo,
        last: BlockNo,
        offset: u64,
        len: u32,
        tier: Option<TierId>,
        _latency_us: u32,
    ) {
        if is_maintaining() {
            self.maintenance.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let is_sequential = self.with_file(file, |state| state.reads.note(offset, u64::from(len))) == Some(true);
        let access = Access { file, offset, len: u64::from(len), is_write: false, is_sequential };
        self.feed.put(Event::Access { access, tier });
        if is_sequential {
            self.sequential.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counted_reads.fetch_add(1, Ordering::Relaxed);
        let slow = tier.filter(|tier| tier.0 >= self.misses_from_tier.load(Ordering::Relaxed));
        self.with_blocks(file, first, last, |chunk, index, block| {
            chunk.count_read(index);
            if let Some(tier) = slow
                && self.misses_out.try_send(SlowMiss { file, block, tier }).is_err()
            {
                self.misses_dropped.fetch_add(1, Ordering::Relaxed);
            }
        });
    }

    fn on_write(&self, file: FileId, offset: u64, len: u32, is_log_file: bool) {
        self.tracer.note(TracedOperation::Write, file, offset, u64::from(len));
        if is_maintaining() {
            self.maintenance.fetch_add(1, Ordering::Relaxed);
            return;
        }
        let sequential = self.with_file(file, |state| {
            state.log_file = is_log_file;
            state.writes.note(offset, u64::from(len))
        });
        if is_log_file || len == 0 {
            return;
        }
        let is_sequential = sequential == Some(true);
        let access = Access { file, offset, len: u64::from(len), is_write: true, is_sequential };
        self.feed.put(Event::Access { access, tier: None });
        if is_sequential {
            self.sequential.fetch_add(1, Ordering::Relaxed);
            return;
        }
        self.counted_writes.fetch_add(1, Ordering::Relaxed);
        let block_bytes = u64::from(self.settings.block_bytes.max(1));
        let last = offset.saturating_add(u64::from(len) - 1) / block_bytes;
        self.with_blocks(file, BlockNo(offset / block_bytes), BlockNo(last), |chunk, index, _| {
            chunk.count_write(index)
        });
    }

    fn on_read(&self, file: FileId, offset: u64, len: u64) {
        self.tracer.note(TracedOperation::Read, file, offset, len);
    }

    fn on_fragments(&self, file: FileId, block: BlockNo, records: u16) {
        if !is_maintaining() {
            // One that finds the queue full is met again.
            let _ = self.fragmented_out.try_send(Fragmented { file, block, records });
        }
    }

    fn on_sync(&self, file: FileId) {
        self.tracer.note(TracedOperation::Sync, file, 0, 0);
    }

    fn on_size(&self, file: FileId, size_bytes: u64) {
        self.tracer.note(TracedOperation::Truncate, file, size_bytes, 0);
        self.feed.put(Event::Cut { file, size_bytes });
    }

    fn on_file_gone(&self, file: FileId) {
        if let Some(shard) = self.files.get(lock_of(file, 0)) {
            shard.lock().remove(&file);
        }
        self.gone.lock().insert(file);
        self.feed.put(Event::Gone(file));
    }
}

/// How many accesses a file's mean is worth as evidence about a block. Small, because a database's pages differ widely.
const PRIOR_ACCESSES: f32 = 0.1;

/// From a decayed sum to accesses per epoch: a block's own record, plus what its file's mean makes likely for any of its blocks. So a
/// block never seen in a busy table is worth more than one in a table nobody reads, and the less the longer it was not seen.
#[derive(Clone, Copy, Debug)]
struct Estimate {
    exposure: f32,
    /// Accesses per epoch of the file's average block; None: not known yet.
    mean: Option<f32>,
}

impl Estimate {
    /// The prior part is the mean of a gamma posterior with [`PRIOR_ACCESSES`] around the file's mean and nothing seen. What was seen is not drawn
    /// towards the mean: one hot block in a large cold file is no accident.
    fn prior(&self) -> f32 {
        match self.mean {
            Some(mean) if mean > 0.0 => PRIOR_ACCESSES / (self.exposure + PRIOR_ACCESSES / mean),
            _ => 0.0,
        }
    }
}

/// The heat of one file's blocks, see [`Recorder::file_heat`].
pub struct FileHeat<'a> {
    recorder: &'a Recorder,
    file: FileId,
    estimate: Estimate,
    expected: Option<Arc<Expectations>>,
}

impl FileHeat<'_> {
    /// Calls `each` with runs of equal heat (first block, blocks, accesses per epoch) that cover `count` blocks from `first`.
    pub fn runs(&self, first: BlockNo, count: u64, mut each: impl FnMut(BlockNo, u64, f32)) {
        let end = first.0.saturating_add(count);
        let prior = self.estimate.prior();
        let mut run = (first.0, 0.0f32);
        let mut block = first.0;
        while block < end {
            let number = block / CHUNK_BLOCKS_U64;
            let chunk_end = end.min((number + 1) * CHUNK_BLOCKS_U64);
            let Some(heats) = self.heats(number) else {
                close(&mut run, block, 0.0, prior, &mut each);
                block = chunk_end;
                continue;
            };
            while block < chunk_end {
                let value = heats.get(usize::from(index_of(block))).copied().unwrap_or(0.0);
                close(&mut run, block, value, prior, &mut each);
                block += 1;
            }
        }
        if end > run.0 {
            each(BlockNo(run.0), end - run.0, run.1 + prior);
        }
    }

    /// Heats of a chunk's blocks but for what its file's mean makes likely; None: nothing is known. A copy, so that no lock is held while the caller works.
    fn heats(&self, number: u64) -> Option<[f32; CHUNK_BLOCKS]> {
        let known = self.recorder.chunks.read((self.file, number), Chunk::pasts);
        let own = known.map(|past| past.map(|past| past / self.estimate.exposure));
        let Some(expected) = self.expected.as_ref().filter(|expected| expected.covers(self.file, number)) else {
            return own;
        };
        let mut heats = own.unwrap_or([0.0; CHUNK_BLOCKS]);
        expected.apply(self.file, number, &mut heats);
        Some(heats)
    }
}

/// Ends a run of blocks of equal heat where another one begins.
fn close(run: &mut (u64, f32), block: u64, value: f32, prior: f32, each: &mut impl FnMut(BlockNo, u64, f32)) {
    if run.1 != value {
        if block > run.0 {
            each(BlockNo(run.0), block - run.0, run.1 + prior);
        }
        *run = (block, value);
    }
}

fn index_of(block: u64) -> u8 {
    u8::try_from(block % CHUNK_BLOCKS_U64).unwrap_or(0)
}

/// Exact below 2^24 and close enough above: it only scales a mean.
#[allow(clippy::cast_precision_loss)]
fn count_f32(count: u64) -> f32 {
    count as f32
}

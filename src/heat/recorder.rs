//! Counting accesses under a microsecond, from many threads, in bounded memory.

use super::chunk::{CHUNK_BLOCKS, CHUNK_BLOCKS_U64, Chunk};
use super::expected::{Expectations, Expecting};
use super::feed::{Event, Feed};
use super::forecast::Access;
use super::maintenance::is_maintaining;
use super::streams::Streams;
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

/// Locks over which files and chunks are spread.
const SHARDS: usize = 64;
/// Missed blocks waiting to be looked at; more are left to the next plan.
const MISSES_QUEUED: usize = 4096;
/// Files whose streams are remembered, per lock.
const FILES_PER_SHARD: usize = 4096;
/// Bytes that one chunk takes, its place in the table included.
const CHUNK_COST_BYTES: u64 = 2048 + 64;

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
    /// Memory for counters, in bytes; the coldest chunks go when it is reached.
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
}

pub(super) type ChunkKey = (FileId, u64);

/// See the module's head. Share it by `Arc`: it is the engine's [`AccessObserver`].
pub struct Recorder {
    settings: HeatSettings,
    pub(super) chunks: Vec<Mutex<HashMap<ChunkKey, Box<Chunk>>>>,
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
    feed: Feed,
    tracer: Tracer,
    expected: RwLock<Option<Arc<Expectations>>>,
    counted_reads: AtomicU64,
    counted_writes: AtomicU64,
    sequential: AtomicU64,
    maintenance: AtomicU64,
    misses_dropped: AtomicU64,
    evicted: AtomicU64,
}

impl Recorder {
    pub fn new(settings: HeatSettings) -> Recorder {
        let (misses_out, misses_in) = bounded(MISSES_QUEUED);
        Recorder {
            settings,
            chunks: (0..SHARDS).map(|_| Mutex::default()).collect(),
            files: (0..SHARDS).map(|_| Mutex::default()).collect(),
            sums: Mutex::default(),
            gone: Mutex::default(),
            rolls: AtomicU32::new(0),
            exposure: Mutex::new(0.0),
            misses_from_tier: AtomicU8::new(u8::MAX),
            misses_out,
            misses_in,
            feed: Feed::new(),
            tracer: Tracer::new(),
            expected: RwLock::default(),
            counted_reads: AtomicU64::new(0),
            counted_writes: AtomicU64::new(0),
            sequential: AtomicU64::new(0),
            maintenance: AtomicU64::new(0),
            misses_dropped: AtomicU64::new(0),
            evicted: AtomicU64::new(0),
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
        let shard = self.chunks.get(self.shard_of(file, number))?;
        let past = shard.lock().get(&(file, number)).map(|chunk| chunk.past)?;
        Some(past.map(|past| past / exposure))
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
        let mut kept: Vec<f32> = Vec::new();
        for shard in &self.chunks {
            let mut shard = shard.lock();
            shard.retain(|key, chunk| {
                if gone.contains(&key.0) {
                    return false;
                }
                let sum = chunk.roll(decay, self.settings.write_weight);
                if sum > 0.0 {
                    sums.entry(key.0).or_default().past += sum;
                    kept.push(sum);
                }
                sum > 0.0
            });
        }
        self.evict(kept);
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
    }

    /// Drops the coldest chunks beyond the memory limit; `sums` are those of all chunks.
    fn evict(&self, mut sums: Vec<f32>) {
        let limit = usize::try_from(self.settings.memory_bytes / CHUNK_COST_BYTES).unwrap_or(usize::MAX).max(1);
        if sums.len() <= limit {
            return;
        }
        let excess = sums.len() - limit;
        let (_, cut, _) = sums.select_nth_unstable_by(excess - 1, f32::total_cmp);
        let cut = *cut;
        let mut left = excess;
        for shard in &self.chunks {
            shard.lock().retain(|_, chunk| {
                let drop = left > 0 && chunk.past.iter().sum::<f32>() <= cut;
                left -= usize::from(drop);
                !drop
            });
        }
        self.evicted.fetch_add(u64::try_from(excess - left).unwrap_or(0), Ordering::Relaxed);
    }

    /// A file that was not touched for sixteen rolls has no stream worth keeping; at the limit, neither have others.
    fn forget_files(&self, roll: u32) {
        for shard in &self.files {
            let mut shard = shard.lock();
            shard.retain(|_, state| state.log_file || roll.saturating_sub(state.touched) < 16);
            if shard.len() > FILES_PER_SHARD {
                shard.retain(|_, state| state.touched == roll || state.log_file);
            }
            if shard.len() > FILES_PER_SHARD {
                shard.clear();
            }
            shard.shrink_to(256);
        }
    }

    fn shard_of(&self, file: FileId, chunk: u64) -> usize {
        let mixed = (file.0 ^ chunk.rotate_left(32)).wrapping_mul(0x9e37_79b9_7f4a_7c15);
        usize::try_from(mixed >> 58).unwrap_or(0) % SHARDS
    }

    /// Runs `action` on a file's state, unless the table is full.
    fn with_file<R>(&self, file: FileId, action: impl FnOnce(&mut FileState) -> R) -> Option<R> {
        let mut shard = self.files.get(self.shard_of(file, 0))?.lock();
        if shard.len() >= 2 * FILES_PER_SHARD && !shard.contains_key(&file) {
            return None;
        }
        let state = shard.entry(file).or_insert_with(|| FileState {
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
        mut action: impl FnMut(&mut Chunk, usize, BlockNo),
    ) {
        let mut block = first.0;
        while block <= last.0 {
            let number = block / CHUNK_BLOCKS_U64;
            let end = last.0.min(number * CHUNK_BLOCKS_U64 + CHUNK_BLOCKS_U64 - 1);
            if let Some(shard) = self.chunks.get(self.shard_of(file, number)) {
                let mut shard = shard.lock();
                let chunk = shard.entry((file, number)).or_insert_with(Chunk::new);
                for one in block..=end {
                    action(chunk, index_of(one), BlockNo(one));
                }
            }
            block = end + 1;
        }
    }

    /// The heat of a block at this moment, accesses since the last roll included: accesses per epoch.
    pub fn block_heat(&self, file: FileId, block: BlockNo) -> f32 {
        let number = block.0 / CHUNK_BLOCKS_U64;
        let Some(shard) = self.chunks.get(self.shard_of(file, number)) else { return 0.0 };
        let index = index_of(block.0);
        let sum = shard.lock().get(&(file, number)).map_or(0.0, |chunk| {
            chunk.past.get(index).copied().unwrap_or(0.0) + chunk.present(index, self.settings.write_weight)
        });
        let estimate = self.estimate(file);
        let own = sum / estimate.exposure;
        estimate.prior() + self.expected().map_or(own, |expected| expected.heat(file, block, own))
    }

    /// What the heat of a block comes from.
    pub fn evidence(&self, file: FileId, block: BlockNo) -> Evidence {
        let number = block.0 / CHUNK_BLOCKS_U64;
        let index = index_of(block.0);
        let shard = self.chunks.get(self.shard_of(file, number));
        let counted = shard.and_then(|shard| shard.lock().get(&(file, number)).map(|chunk| chunk.counts(index)));
        let estimate = self.estimate(file);
        let past = shard.and_then(|shard| shard.lock().get(&(file, number)).map(|chunk| chunk.past[index]));
        let (reads, writes) = counted.unwrap_or_default();
        let expected = self.expected().and_then(|expected| expected.of(file, block));
        Evidence { own: past.unwrap_or(0.0) / estimate.exposure, from_file: estimate.prior(), reads, writes, expected }
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
        let Some(shard) = self.files.get(self.shard_of(file, 0)) else { return false };
        shard.lock().get(&file).is_some_and(|state| state.log_file)
    }

    pub fn status(&self) -> RecorderStatus {
        let chunks: usize = self.chunks.iter().map(|shard| shard.lock().len()).sum();
        let chunks = u64::try_from(chunks).unwrap_or(u64::MAX);
        RecorderStatus {
            exposure_epochs: self.exposure(),
            rolls: self.rolls.load(Ordering::Relaxed),
            chunks,
            memory_bytes: chunks.saturating_mul(CHUNK_COST_BYTES),
            memory_limit_bytes: self.settings.memory_bytes,
            counted_reads: self.counted_reads.load(Ordering::Relaxed),
            counted_writes: self.counted_writes.load(Ordering::Relaxed),
            sequential_accesses: self.sequential.load(Ordering::Relaxed),
            maintenance_accesses: self.maintenance.load(Ordering::Relaxed),
            misses_dropped: self.misses_dropped.load(Ordering::Relaxed),
            chunks_evicted: self.evicted.load(Ordering::Relaxed),
            feed_dropped: self.feed.dropped(),
            expected_bytes: self.expected().map_or(0, |expected| expected.memory_bytes()),
        }
    }

    /// Puts back what [`super::file`] read.
    pub(super) fn insert(&self, key: ChunkKey, chunk: Box<Chunk>) {
        let sum: f32 = chunk.past.iter().sum();
        if let Some(shard) = self.chunks.get(self.shard_of(key.0, key.1)) {
            shard.lock().insert(key, chunk);
            self.sums.lock().entry(key.0).or_default().past += sum;
        }
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

    fn on_sync(&self, file: FileId) {
        self.tracer.note(TracedOperation::Sync, file, 0, 0);
    }

    fn on_size(&self, file: FileId, size_bytes: u64) {
        self.tracer.note(TracedOperation::Truncate, file, size_bytes, 0);
        self.feed.put(Event::Cut { file, size_bytes });
    }

    fn on_file_gone(&self, file: FileId) {
        if let Some(shard) = self.files.get(self.shard_of(file, 0)) {
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
                let value = heats.get(index_of(block)).copied().unwrap_or(0.0);
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
        let shard = self.recorder.chunks.get(self.recorder.shard_of(self.file, number))?;
        let known = shard.lock().get(&(self.file, number)).map(|chunk| chunk.past);
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

fn index_of(block: u64) -> usize {
    usize::try_from(block % CHUNK_BLOCKS_U64).unwrap_or(0)
}

/// Exact below 2^24 and close enough above: it only scales a mean.
#[allow(clippy::cast_precision_loss)]
fn count_f32(count: u64) -> f32 {
    count as f32
}

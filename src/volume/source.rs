//! A volume that was made of a snapshot: its blocks are in a repository until they are brought to a tier.
//!
//! Such a block is like one on a very slow tier that nobody writes to. Reads go there for what the overlay does not cover; whoever coalesces into it
//! writes a full image to a tier; zeros over all of it make it a hole. The space of its image is promised from the beginning, so that neither that nor hydrating
//! ever finds the tiers full (I10). Its bytes never change where they are, so a flip is safe at any moment at which the block's claim is held (R6): what
//! came over it meanwhile lies in the overlay.
//!
//! What is there is told file by file, as ranges ([`crate::ondisk::sourced`]): making the volume costs a row a file, whatever it holds. The first checkpoint
//! that finds no block left in the repository takes the rows away, and from then on the volume is one like any other.

use super::blockmap::{Home, Place, within};
use super::relocate::RUN_BYTES_MAX;
use super::state::{Changes, Meta, Parent, State, VERSION_SOURCED};
use super::status::count;
use super::{Applied, Claim, File, Tier, Volume, Wrote};
use crate::device::{AlignedBuf, clock};
use crate::error::{Error, Result};
use crate::ondisk::rows::{FileRow, MAP_CHUNK_BLOCKS};
use crate::ondisk::sourced::SourceRow;
use crate::units::{BlockNo, FileId, TierId};
use parking_lot::Mutex;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};
use uuid::Uuid;

/// Runs that readers had to fetch and nobody has hydrated yet: the oldest are forgotten.
const WANTED_MAX: usize = 4096;
/// What the health report calls a repository that cannot be read.
const SUBJECT: &str = "repository";

/// The snapshot that a volume was made of. Called by readers, the coalescer and whoever hydrates, from any thread; may take long, never on a thread that must
/// not wait.
pub trait SourceSnapshot: Send + Sync {
    /// Fills `buf` with bytes of a file of the snapshot, each of them verified (I8); zeros past the file's end.
    fn read(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()>;
    /// Is there nothing but holes in `start..end`?
    fn is_hole(&self, file: FileId, start: u64, end: u64) -> Result<bool>;
}

/// One file of a snapshot, as a new volume takes it over.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ClonedFile {
    pub file: FileId,
    pub size_bytes: u64,
    /// Its id in the snapshot.
    pub source: FileId,
    /// Ranges of bytes outside of which there are only holes, as (start, end), ascending.
    pub data: Vec<(u64, u64)>,
}

/// What a new volume takes over from the snapshot that it is made of.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Lineage {
    pub files: Vec<ClonedFile>,
    /// The engine's name of the snapshot's mark. With it, and if files have the ids of the snapshot, the volume's first snapshot holds only what changed since.
    pub mark: Option<Uuid>,
}

/// What was brought to the tiers.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Hydrated {
    /// Blocks that are in the repository no longer.
    pub blocks: u64,
    /// Bytes written for them; holes and zeros need none.
    pub bytes: u64,
}

/// The engine's view of the repository.
#[derive(Default)]
pub(super) struct Source {
    snapshot: Option<Arc<dyn SourceSnapshot>>,
    /// Blocks of all files that are in the repository.
    blocks: AtomicI64,
    /// Readers that wait for it now.
    waiting: AtomicU64,
    /// What they have read, oldest first: to be hydrated next, while it is in somebody's cache.
    wanted: Mutex<VecDeque<(FileId, BlockNo, u64)>>,
}

/// What an image from the repository is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Bytes,
    /// Written, and nothing but zeros: no image, but its space stays promised.
    Zeros,
    Hole,
}

impl Source {
    pub fn new(snapshot: Option<Arc<dyn SourceSnapshot>>) -> Source {
        Source { snapshot, ..Source::default() }
    }

    pub fn is_open(&self) -> bool {
        self.snapshot.is_some()
    }

    pub fn add(&self, blocks: i64) {
        self.blocks.fetch_add(blocks, Ordering::AcqRel);
    }

    pub fn blocks(&self) -> u64 {
        u64::try_from(self.blocks.load(Ordering::Acquire)).unwrap_or(0)
    }
}

/// What durable state has to say of files whose bytes are in a snapshot. Errors: `Invalid` for a file twice.
pub(super) fn rows_of(files: &[ClonedFile], meta: &mut Meta) -> Result<Changes> {
    let block_bytes = u64::from(meta.block_bytes);
    let mut changes = Changes::default();
    let mut seen = std::collections::HashSet::new();
    for file in files {
        if file.file.0 == 0 || !seen.insert(file.file) {
            return Err(Error::Invalid(format!("file {} of the snapshot is no file or is there twice", file.file)));
        }
        meta.file_id_limit = meta.file_id_limit.max(file.file.0 + 1);
        changes.rows.push((file.file, FileRow { size_bytes: file.size_bytes, ..FileRow::default() }));
        let blocks = file.data.iter().map(|(start, end)| (start / block_bytes, end.div_ceil(block_bytes)));
        let row = SourceRow::new(file.source, blocks);
        if !row.ranges.is_empty() {
            changes.sources.push((file.file, row));
        }
    }
    if !changes.sources.is_empty() {
        meta.version = VERSION_SOURCED;
    }
    Ok(changes)
}

/// Counts a reader as waiting.
struct Waiting<'a>(&'a AtomicU64);

impl Drop for Waiting<'_> {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Volume {
    /// Makes a volume that was just created, and was never opened, one whose files are those of a snapshot; in one transaction. Their bytes stay in the
    /// repository. Errors: `Invalid` for a file twice.
    pub fn import_snapshot(fastest: &Tier, lineage: &Lineage) -> Result<()> {
        let (state, mut meta) = State::open(&fastest.device)?;
        let changes = rows_of(&lineage.files, &mut meta)?;
        if let Some(snapshot) = lineage.mark {
            (meta.marked.epoch, meta.marked.floor) = (2, 1);
            meta.marked.parents = vec![Parent { snapshot, epoch: 1 }];
        }
        state.commit(&meta, &changes)
    }

    /// Counts blocks in the repository, where no chunk of a map says what they are.
    pub(super) fn count_sources(&self) -> Result<()> {
        let mut rows: HashMap<FileId, Vec<(u64, u64)>> = HashMap::new();
        let mut blocks = 0;
        self.state.for_each_source(&mut |id, row| {
            blocks += row.ranges.iter().map(|(first, end)| end - first).sum::<u64>();
            rows.insert(id, row.ranges);
        })?;
        if rows.is_empty() {
            return Ok(());
        }
        let chunk = MAP_CHUNK_BLOCKS as u64;
        self.state.for_each_chunk(&mut |id, index, _| {
            let first = u64::from(index) * chunk;
            let ranges = rows.get(&id).map(Vec::as_slice).unwrap_or_default();
            blocks -= within(ranges, first, first + chunk).map(|(first, end)| end - first).sum::<u64>();
        })?;
        self.count_place(Place::REPOSITORY, i64::try_from(blocks).unwrap_or(i64::MAX));
        Ok(())
    }

    /// Bytes of blocks that are in the repository: 0 for any volume that was not made of a snapshot, and for one that needs it no longer.
    pub fn bytes_in_repository(&self) -> u64 {
        self.source.blocks() * self.block_bytes()
    }

    /// Does durable state still say of files that they are in the repository? False only after a checkpoint that found no block there: from then on nobody
    /// will ever ask for it again.
    pub fn needs_repository(&self) -> bool {
        self.meta.lock().needs_repository()
    }

    /// Do readers wait for the repository at this moment?
    pub fn readers_wait_for_repository(&self) -> bool {
        self.source.waiting.load(Ordering::Relaxed) > 0
    }

    /// Files that durable state says to be in the repository in whole or in part, in order; those that have left it since are among them.
    pub fn files_in_repository(&self) -> Result<Vec<FileId>> {
        let mut files = Vec::new();
        self.state.for_each_source(&mut |id, _| files.push(id))?;
        Ok(files)
    }

    /// Blocks of a file that are in the repository.
    pub fn blocks_in_repository(&self, file: &File) -> u64 {
        file.read().stored_blocks
    }

    /// The first block from `from` on that is in the repository.
    pub fn next_in_repository(&self, file: &File, from: BlockNo) -> Option<BlockNo> {
        let inner = file.read();
        if inner.stored_blocks == 0 || inner.removed {
            return None;
        }
        let mut blocks = inner.map.range(from, inner.map.end());
        blocks.find(|(_, place)| *place == Place::REPOSITORY).map(|(block, _)| block)
    }

    /// What a reader has just fetched from the repository, and is worth hydrating next: file, first block, blocks.
    pub fn take_wanted(&self) -> Option<(FileId, BlockNo, u64)> {
        self.source.wanted.lock().pop_front()
    }

    /// Reads bytes of blocks that are in the repository.
    pub(super) fn read_stored(&self, file: &File, start: u64, out: &mut [u8]) -> Result<()> {
        let read = match (&self.source.snapshot, file.source()) {
            (Some(snapshot), Some(id)) => snapshot.read(id, start, out),
            (None, _) => Err(Error::NotFound("the repository is not open".to_owned())),
            (_, None) => Err(Error::NotFound("the file was not in the snapshot".to_owned())),
        };
        count(&self.counters.repository_reads, 1);
        match read {
            Ok(()) => {
                count(&self.counters.repository_read_bytes, out.len() as u64);
                if !self.degraded.lock().is_empty() {
                    self.restore_health(SUBJECT);
                }
                Ok(())
            }
            Err(cause) => {
                count(&self.counters.repository_errors, 1);
                let subject = match &cause {
                    Error::Corrupt { .. } => damage_subject(file.id()),
                    _ => SUBJECT.to_owned(),
                };
                let end = start + out.len() as u64;
                let error = Error::Source { file: file.id(), start, end, cause: Box::new(cause) };
                self.degrade(&subject, error.to_string());
                Err(error)
            }
        }
    }

    /// As [`Volume::read_stored`], for a reader: it is heard of, and what it fetched is hydrated next.
    pub(super) fn read_stored_observed(&self, file: &File, start: u64, out: &mut [u8]) -> Result<()> {
        let began = clock::monotonic_now();
        self.source.waiting.fetch_add(1, Ordering::Relaxed);
        let waiting = Waiting(&self.source.waiting);
        self.read_stored(file, start, out)?;
        drop(waiting);
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        count(&self.counters.repository_read_us, took_us);
        let (first, last) = (self.block_of(start), self.block_of(start + out.len() as u64 - 1));
        {
            let mut wanted = self.source.wanted.lock();
            if wanted.len() >= WANTED_MAX {
                wanted.pop_front();
            }
            wanted.push_back((file.id(), first, last.0 - first.0 + 1));
        }
        if let Some(observer) = self.observer.read().as_ref() {
            let (len, us) = (u32::try_from(out.len()).unwrap_or(u32::MAX), u32::try_from(took_us).unwrap_or(u32::MAX));
            observer.on_read_miss(file.id(), first, last, start, len, None, us);
        }
        Ok(())
    }

    /// Brings up to `count` adjacent blocks, those from `first` on that are in the repository, to the fastest tier that has room for them: at most 256 KiB with one
    /// read. None: they are not there, somebody is at them, or a place waits for its punch. A block is flipped only if nobody has changed its base or
    /// place meanwhile.
    pub fn hydrate(&self, file: &Arc<File>, first: BlockNo, count: u64) -> Result<Hydrated> {
        self.hydrate_to(file, first, count, None)
    }

    /// As [`Volume::hydrate`], to this tier only.
    pub(super) fn hydrate_to(
        &self,
        file: &Arc<File>,
        first: BlockNo,
        blocks: u64,
        to: Option<TierId>,
    ) -> Result<Hydrated> {
        self.check_writable()?;
        // Objects of a file that is removed meanwhile go when this is over.
        let _reading = self.readers.enter();
        let most = (RUN_BYTES_MAX / self.block_bytes()).max(1).min(blocks.max(1));
        let mut claims: Vec<Claim<'_>> = Vec::new();
        for block in (first.0..first.0 + most).map(BlockNo) {
            let Some(claim) = self.claim(file.id(), block) else { break };
            let inner = file.read();
            if inner.removed || inner.map.get(block) != Place::REPOSITORY {
                break;
            }
            claims.push(claim);
        }
        let mut done = Hydrated::default();
        if claims.is_empty() {
            return Ok(done);
        }
        let block_bytes = usize::try_from(self.block_bytes()).unwrap_or(usize::MAX);
        let mut image = AlignedBuf::zeroed(claims.len() * block_bytes);
        self.read_stored(file, self.block_start(first), &mut image)?;
        let mut kinds = Vec::with_capacity(claims.len());
        for (block, bytes) in (first.0..).map(BlockNo).zip(image.chunks(block_bytes)) {
            kinds.push(self.kind_of(file, block, bytes)?);
        }
        let mut at = 0;
        while let Some(kind) = kinds.get(at).copied() {
            let alike = kinds.iter().skip(at).take_while(|other| **other == kind).count();
            let bytes = image.get(at * block_bytes..(at + alike) * block_bytes).unwrap_or_default();
            let block = BlockNo(first.0 + at as u64);
            done.add(match kind {
                Kind::Bytes => self.place_stored(file, block, bytes, to)?,
                Kind::Zeros => self.flip_stored(file, block, alike as u64, Home::Promised, None),
                Kind::Hole => self.flip_stored(file, block, alike as u64, Home::Hole, None),
            });
            at += alike;
        }
        if file.read().stored_blocks == 0 && !self.degraded.lock().is_empty() {
            self.restore_health(&damage_subject(file.id()));
        }
        count(&self.counters.hydrated_blocks, done.blocks);
        count(&self.counters.hydrated_bytes, done.bytes);
        Ok(done)
    }

    fn kind_of(&self, file: &File, block: BlockNo, bytes: &[u8]) -> Result<Kind> {
        if bytes.iter().any(|byte| *byte != 0) {
            return Ok(Kind::Bytes);
        }
        let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
        let hole = match (&self.source.snapshot, file.source()) {
            (Some(snapshot), Some(id)) => snapshot.is_hole(id, start, end).map_err(|cause| Error::Source {
                file: file.id(),
                start,
                end,
                cause: Box::new(cause),
            })?,
            _ => false,
        };
        Ok(if hole { Kind::Hole } else { Kind::Zeros })
    }

    /// Writes images to the fastest tiers that take them. The caller holds the claims.
    fn place_stored(&self, file: &Arc<File>, first: BlockNo, images: &[u8], to: Option<TierId>) -> Result<Hydrated> {
        let (mut done, mut rest, mut block) = (Hydrated::default(), images, first);
        let block_bytes = usize::try_from(self.block_bytes()).unwrap_or(usize::MAX);
        while !rest.is_empty() {
            let tiers = to.map_or_else(|| self.tiers_for_first_image(file, block), |tier| vec![tier]);
            let mut placed = Hydrated::default();
            for tier in tiers {
                let open = |block: &u64| !self.is_vacated(file.id(), BlockNo(*block), tier);
                let blocks = (block.0..).take(rest.len() / block_bytes).take_while(open).count();
                let free = usize::try_from(self.space.free_blocks(tier)).unwrap_or(0);
                let part = rest.get(..blocks.min(free) * block_bytes).unwrap_or_default();
                placed = self.write_stored(file, block, part, tier);
                if placed.blocks > 0 {
                    break;
                }
            }
            if placed.blocks == 0 {
                return Ok(done);
            }
            rest = rest.get(usize::try_from(placed.blocks).unwrap_or(0) * block_bytes..).unwrap_or_default();
            block = BlockNo(block.0 + placed.blocks);
            done.add(placed);
        }
        Ok(done)
    }

    fn write_stored(&self, file: &Arc<File>, first: BlockNo, images: &[u8], tier: TierId) -> Hydrated {
        let (start, len) = (self.block_start(first), images.len() as u64);
        if len == 0 {
            return Hydrated::default();
        }
        let wrote = self.about_to_write(tier);
        let written = self.write_image(file.id(), tier, start, images, self.used_of(file, start, len));
        match self.note_tier_writes(tier, written) {
            Ok(()) => {
                let flipped = self.flip_stored(file, first, len / self.block_bytes(), Home::Tier(tier), Some(wrote));
                Hydrated { bytes: flipped.blocks * self.block_bytes(), ..flipped }
            }
            Err(error) => {
                tracing::debug!(%error, tier = self.tier_name(tier), "a hydrated image goes to the next tier");
                Hydrated::default()
            }
        }
    }

    /// The caller holds the claims, under which the blocks were found in the repository.
    fn flip_stored(&self, file: &Arc<File>, first: BlockNo, blocks: u64, home: Home, wrote: Option<Wrote>) -> Hydrated {
        let _flip = self.gate.read();
        let mut inner = file.write();
        if inner.removed || wrote.is_some_and(|wrote| self.was_lost(wrote)) {
            return Hydrated::default();
        }
        for block in (first.0..first.0 + blocks).map(BlockNo) {
            let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
            // What was written over a hole keeps its promise.
            let written = home == Home::Hole && inner.overlay.range(start, end).next().is_some();
            let new = Place { home: if written { Home::Promised } else { home }, copy: None };
            self.set_place(file.id(), &mut inner, block, new);
            let wrote = wrote.map(|wrote| wrote.tier);
            let prior = Place::REPOSITORY;
            self.window.lock().push(Applied { file: file.id(), block, prior, pieces: Vec::new(), wrote });
        }
        drop(inner);
        self.list_dirty(file);
        Hydrated { blocks, bytes: 0 }
    }
}

impl Hydrated {
    fn add(&mut self, more: Hydrated) {
        self.blocks += more.blocks;
        self.bytes += more.bytes;
    }
}

/// What damage of a file in the repository is listed under.
fn damage_subject(id: FileId) -> String {
    format!("file {id} in the repository")
}

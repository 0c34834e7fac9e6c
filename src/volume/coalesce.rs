//! The coalescer: applies durable extents to the base, and takes them out of the overlay.
//!
//! Only bytes of durable records are applied (I2), and payloads are verified as they are read (I8). A block that stays where it
//! is gets its covered 4 KiB runs written; a block without an image, or with one in the repository, gets a full image on the fastest tier that has room. A block whose bytes
//! are all zeros becomes a hole by a map flip.

use super::blockmap::{Home, Place};
use super::overlay::{Extent, Source};
use super::space::Held;
use super::status::count;
use super::{Applied, File, Volume, Wrote};
use crate::device::{AlignedBuf, clock};
use crate::error::{Error, Result};
use crate::log::Stretch;
use crate::units::{BlockNo, FileId, PAGE, PAGE_BYTES, TierId};
use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

/// A tier whose writes failed is left alone for this long.
const BACKOFF: Duration = Duration::from_secs(5);
/// One in this many blocks of a tier's budget is kept free of first images, so that heat finds room for promotions.
const FREE_SHARE_FOR_HEAT: u64 = 20;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Outcome {
    /// Applied, or nothing durable was outstanding.
    Done,
    /// Somebody else is at this block, a place waits for its punch, or no tier has room now.
    Later,
}

/// One thread's way through blocks to coalesce.
struct Sweep {
    /// Of blocks on the fastest tier only records below this address are applied; later ones may still die in the log.
    before: u64,
    log: Stretch,
}

/// A block to coalesce.
pub(super) struct Listed {
    pub file: Arc<File>,
    pub block: BlockNo,
    /// Address of its oldest record.
    oldest: u64,
}

/// What one coalescing of a block is about.
struct Gathered {
    pieces: Vec<Extent>,
    place: Place,
    cuts: u64,
    size_bytes: u64,
}

impl Volume {
    /// Applies what is durable of one block. The caller does not hold the claim.
    fn coalesce_block(&self, file: &Arc<File>, block: BlockNo, sweep: &mut Sweep) -> Result<Outcome> {
        let Some(_claim) = self.claim(file.id(), block) else { return Ok(Outcome::Later) };
        // What was cut or overwritten meanwhile must not be recycled, nor the objects of a removed file be made again.
        let _reading = self.readers.enter();
        let Some(gathered) = self.outstanding(file, block, sweep.before) else { return Ok(Outcome::Done) };
        if !self.preserve(&[(file.clone(), gathered.pieces.clone())])? {
            return Ok(Outcome::Later);
        }
        let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
        let zeros = gathered.pieces.iter().filter(|piece| matches!(piece.source, Source::Zeros(_)));
        if zeros.map(Extent::len).sum::<u64>() == end - start {
            return Ok(self.flip(file, block, gathered, Place::HOLE, None));
        }
        match gathered.place.home {
            Home::Tier(tier) => {
                if self.in_backoff(tier) {
                    return self.place_elsewhere(file, block, gathered, tier, sweep);
                }
                let images = self.images_in_place(file, tier, &gathered, sweep)?;
                let wrote = self.about_to_write(tier);
                let written =
                    images.iter().try_for_each(|(from, image)| self.write_base(file.id(), tier, *from, image));
                match self.note_tier_writes(tier, written) {
                    Ok(()) => Ok(self.flip(file, block, gathered, Place::on(tier), Some(wrote))),
                    Err(_) => self.place_elsewhere(file, block, gathered, tier, sweep),
                }
            }
            Home::Hole | Home::Promised => {
                let image = AlignedBuf::zeroed(usize::try_from(end - start).unwrap_or(0));
                self.write_full_image(file, block, gathered, image, sweep)
            }
            Home::Repository => {
                let mut image = AlignedBuf::zeroed(usize::try_from(end - start).unwrap_or(0));
                if gathered.pieces.iter().map(Extent::len).sum::<u64>() < end - start {
                    self.read_stored(file, start, &mut image)?;
                }
                self.write_full_image(file, block, gathered, image, sweep)
            }
        }
    }

    /// The durable extents of a block, as they are now; of a block on the fastest tier those below `before`. None: nothing to do.
    fn outstanding(&self, file: &File, block: BlockNo, before: u64) -> Option<Gathered> {
        let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
        let durable = self.log.durable_address();
        let inner = file.read();
        if inner.removed {
            return None;
        }
        let place = inner.map.get(block);
        let limit = if place.tier() == Some(TierId::FASTEST) { durable.min(before) } else { durable };
        let pieces: Vec<Extent> =
            inner.overlay.range(start, end).filter(|piece| piece.source.address() < limit).collect();
        (!pieces.is_empty()).then_some(Gathered { pieces, place, cuts: inner.cuts, size_bytes: inner.size_needed() })
    }

    /// What coalescing this block would write now; of a block on the fastest tier what lies below `before` in the log.
    pub(super) fn durable_pieces(&self, file: &File, block: BlockNo, before: u64) -> Vec<Extent> {
        self.outstanding(file, block, before).map_or_else(Vec::new, |gathered| gathered.pieces)
    }

    /// The 4 KiB runs that the pieces touch, each with its new bytes; reads only where a run is not covered whole.
    fn images_in_place(
        &self,
        file: &Arc<File>,
        tier: TierId,
        gathered: &Gathered,
        sweep: &mut Sweep,
    ) -> Result<Vec<(u64, AlignedBuf)>> {
        let mut images = Vec::new();
        let mut runs: Vec<(u64, u64)> = Vec::new();
        for piece in &gathered.pieces {
            let (from, to) = (piece.start / PAGE_BYTES * PAGE_BYTES, piece.end.next_multiple_of(PAGE_BYTES));
            match runs.last_mut() {
                Some(last) if last.1 >= from => last.1 = last.1.max(to),
                _ => runs.push((from, to)),
            }
        }
        for (from, to) in runs {
            let pieces: Vec<Extent> = gathered.pieces.iter().filter_map(|piece| piece.clipped(from, to)).collect();
            let mut image = AlignedBuf::zeroed(usize::try_from(to - from).unwrap_or(0));
            if pieces.iter().map(Extent::len).sum::<u64>() < to - from {
                self.read_edges(file, tier, from, &pieces, &mut image)?;
            }
            self.overlay_onto(&mut image, from, &pieces, &mut sweep.log)?;
            images.push((from, image));
        }
        Ok(images)
    }

    /// What lies beneath a run of pages that are not all covered. Those that are need not be readable: writing them is what heals a bad sector.
    fn read_edges(
        &self,
        file: &Arc<File>,
        tier: TierId,
        start: u64,
        pieces: &[Extent],
        image: &mut AlignedBuf,
    ) -> Result<()> {
        let Err(error) = self.read_base(file, tier, start, image) else { return Ok(()) };
        if !matches!(error, Error::Io { .. }) {
            return Err(error);
        }
        for (page, bytes) in (start..).step_by(PAGE).zip(image.chunks_mut(PAGE)) {
            let within = pieces.iter().filter_map(|piece| piece.clipped(page, page + PAGE_BYTES));
            if within.map(|piece| piece.len()).sum::<u64>() < PAGE_BYTES {
                self.read_base(file, tier, page, bytes)?;
            }
        }
        Ok(())
    }

    /// The block's tier takes no writes now. While the log has room its records wait for the tier to come back; then the block
    /// gets a full image on another tier, so that one broken tier does not fill the log for all.
    fn place_elsewhere(
        &self,
        file: &Arc<File>,
        block: BlockNo,
        gathered: Gathered,
        broken: TierId,
        sweep: &mut Sweep,
    ) -> Result<Outcome> {
        if self.log_fill() < self.options.coalesce_at_fill || self.space.unpromised_blocks() < 1 {
            return Ok(Outcome::Later);
        }
        let mut image = AlignedBuf::zeroed(usize::try_from(self.block_bytes()).unwrap_or(0));
        self.read_base(file, broken, self.block_start(block), &mut image)?;
        self.write_full_image(file, block, gathered, image, sweep)
    }

    fn overlay_onto(&self, image: &mut [u8], image_start: u64, pieces: &[Extent], log: &mut Stretch) -> Result<()> {
        for piece in pieces {
            let from = usize::try_from(piece.start - image_start).unwrap_or(usize::MAX);
            let to = usize::try_from(piece.end - image_start).unwrap_or(usize::MAX);
            let Some(target) = image.get_mut(from..to) else { continue };
            match piece.source {
                Source::Zeros(_) => target.fill(0),
                Source::Log(position) => self.log.read_along(log, position, target)?,
            }
        }
        Ok(())
    }

    /// Lays the pieces over `image` and writes it to the fastest tier that takes it.
    fn write_full_image(
        &self,
        file: &Arc<File>,
        block: BlockNo,
        gathered: Gathered,
        mut image: AlignedBuf,
        sweep: &mut Sweep,
    ) -> Result<Outcome> {
        let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
        self.overlay_onto(&mut image, start, &gathered.pieces, &mut sweep.log)?;
        let image_end = gathered.size_bytes.max(gathered.pieces.last().map_or(0, |piece| piece.end)).clamp(start, end);
        for tier in self.tiers_for_first_image(file, block) {
            let wrote = self.about_to_write(tier);
            let written = self.write_image(file.id(), tier, start, &image, image_end - start);
            match self.note_tier_writes(tier, written) {
                Ok(()) => return Ok(self.flip(file, block, gathered, Place::on(tier), Some(wrote))),
                Err(error) => tracing::debug!(%error, tier = self.tier_name(tier), "an image goes to the next tier"),
            }
        }
        Ok(Outcome::Later)
    }

    /// Writes a full image to a place that the map does not name (R3): `used` bytes of `image`, and zeros behind them if the object already
    /// reaches there.
    pub(super) fn write_image(&self, file: FileId, tier: TierId, start: u64, image: &[u8], used: u64) -> Result<()> {
        let reaches = self.object_bytes(file, tier)?;
        let pages = usize::try_from(used.next_multiple_of(PAGE_BYTES)).unwrap_or(image.len());
        let len = if reaches <= start { pages.min(image.len()) } else { image.len() };
        self.write_base(file, tier, start, image.get(..len).unwrap_or(image))
    }

    /// Length of a file's object on a tier; 0 when there is none.
    pub(super) fn object_bytes(&self, file: FileId, tier: TierId) -> Result<u64> {
        let objects = self.objects(tier)?;
        let Some(object) = objects.get(file, false)? else { return Ok(0) };
        object.len().map_err(|e| Error::io("read length of", objects.full(&crate::tier::objects::object_path(file)), e))
    }

    /// Tiers that may take a first image, best first: those with room to spare, then those with any.
    pub(super) fn tiers_for_first_image(&self, file: &File, block: BlockNo) -> Vec<TierId> {
        let all: Vec<TierId> = (0..self.tiers.len()).filter_map(|tier| u8::try_from(tier).ok()).map(TierId).collect();
        let open = |tier: &TierId| !self.in_backoff(*tier) && !self.is_vacated(file.id(), block, *tier);
        let spare =
            |tier: TierId| if file.is_log_file() { 0 } else { self.space.budget_blocks(tier) / FREE_SHARE_FOR_HEAT };
        let roomy = |tier: &TierId| self.space.free_blocks(*tier) > i64::try_from(spare(*tier)).unwrap_or(i64::MAX);
        let mut chosen: Vec<TierId> = all.iter().copied().filter(|tier| open(tier) && roomy(tier)).collect();
        let tight = all.iter().copied().filter(|tier| open(tier) && !roomy(tier) && self.space.free_blocks(*tier) > 0);
        chosen.extend(tight.collect::<Vec<_>>());
        chosen
    }

    pub(super) fn write_base(&self, file: FileId, tier: TierId, start: u64, image: &[u8]) -> Result<()> {
        let objects = self.objects(tier)?;
        let Some(object) = objects.get(file, true)? else { return Ok(()) };
        object
            .write_all_at(image, start)
            .map_err(|e| Error::io("write", objects.full(&crate::tier::objects::object_path(file)), e))?;
        if let Some(counters) = self.counters.tiers.get(tier.index()) {
            count(&counters.writes, 1);
            count(&counters.write_bytes, image.len() as u64);
        }
        Ok(())
    }

    /// Makes the base current: takes the applied pieces out of the overlay and sets the block's place, in one step.
    /// Gives up a flip to a new place if bytes were cut away meanwhile.
    fn flip(
        &self,
        file: &Arc<File>,
        block: BlockNo,
        gathered: Gathered,
        place: Place,
        wrote: Option<Wrote>,
    ) -> Outcome {
        let _flip = self.gate.read();
        if wrote.is_some_and(|wrote| self.was_lost(wrote)) {
            return Outcome::Later;
        }
        let mut inner = file.write();
        if inner.removed {
            return Outcome::Done;
        }
        let moved = gathered.place.tier() != place.tier() || gathered.place.home == Home::Repository;
        if moved && inner.cuts != gathered.cuts {
            return Outcome::Later;
        }
        // A write meanwhile may lie over a run of zeros that would make a hole: its promise has to stay.
        for piece in &gathered.pieces {
            inner.overlay.remove_same(piece, &mut self.ledger());
        }
        let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
        let still_written = inner.overlay.range(start, end).next().is_some();
        let place =
            if place == Place::HOLE && still_written { Place { home: Home::Promised, copy: None } } else { place };
        self.set_place(file.id(), &mut inner, block, place);
        drop(inner);
        let (file_id, prior) = (file.id(), gathered.place);
        self.window.lock().push(Applied {
            file: file_id,
            block,
            prior,
            pieces: gathered.pieces,
            wrote: wrote.map(|wrote| wrote.tier),
        });
        self.list_dirty(file);
        count(&self.counters.coalesced_blocks, 1);
        Outcome::Done
    }

    /// Changes a block's entry in the map, with everything that is counted by it. The caller holds claim, gate and the file's lock.
    pub(super) fn set_place(&self, file: FileId, inner: &mut super::file::Inner, block: BlockNo, new: Place) {
        let old = inner.map.get(block);
        if old == new {
            return;
        }
        inner.map.set(block, new);
        self.count_place(old, -1);
        self.count_place(new, 1);
        for (place, by) in [(new, 1), (old, -1)] {
            let counter = match place.home {
                Home::Tier(_) => &mut inner.image_blocks,
                Home::Promised => &mut inner.promised_blocks,
                Home::Repository => &mut inner.stored_blocks,
                Home::Hole => continue,
            };
            *counter = counter.saturating_add_signed(by);
        }
        for tier in [old.tier(), old.copy].into_iter().flatten().filter(|&tier| !new.names(tier)) {
            self.vacate(file, block, tier);
        }
    }

    /// A place that no map entry names is to be freed after the next checkpoint. The caller holds the claim.
    pub(super) fn vacate(&self, file: FileId, block: BlockNo, tier: TierId) {
        if self.vacated.lock().current.insert((file, block, tier)) {
            self.space.add(tier, Held::Vacated, 1);
        }
    }

    pub(super) fn count_place(&self, place: Place, by: i64) {
        match place.home {
            Home::Tier(tier) => self.space.add(tier, Held::Image, by),
            Home::Promised => self.space.promise_again(by),
            Home::Repository => {
                self.space.promise_again(by);
                self.source.add(by);
            }
            Home::Hole => {}
        }
        if let Some(tier) = place.copy {
            self.space.add(tier, Held::Copy, by);
        }
    }

    pub(super) fn is_vacated(&self, file: FileId, block: BlockNo, tier: TierId) -> bool {
        let vacated = self.vacated.lock();
        let key = (file, block, tier);
        vacated.current.contains(&key) || vacated.frozen.contains(&key)
    }

    pub(super) fn in_backoff(&self, tier: TierId) -> bool {
        let backoff = self.backoff.lock();
        backoff.get(&tier).is_some_and(|&since| clock::monotonic_now().duration_since(since) < BACKOFF)
    }

    /// Keeps book of a tier's write errors: the volume is degraded, the tier is left alone for a while, the records stay in the log.
    /// Errors of payloads or of reading are passed on, not blamed on the tier.
    pub(super) fn note_tier_writes(&self, tier: TierId, written: Result<()>) -> Result<()> {
        let subject = format!("tier {}", self.tier_name(tier));
        match &written {
            Ok(()) => self.restore_health(&subject),
            Err(error @ Error::Io { .. }) => {
                self.backoff.lock().insert(tier, clock::monotonic_now());
                self.degrade(&subject, error.to_string());
            }
            Err(_) => {}
        }
        written
    }

    /// Coalesces these blocks, slow tiers in (file, offset) order, each tier on a thread of its own when `parallel`. Of blocks on the
    /// fastest tier only records below the address `before` are applied. Returns how many blocks stay.
    pub(super) fn coalesce_blocks(
        &self,
        mut blocks: Vec<(FileId, BlockNo)>,
        before: u64,
        parallel: bool,
    ) -> Result<u64> {
        blocks.sort_unstable();
        blocks.dedup();
        let mut by_tier: BTreeMap<TierId, Vec<Listed>> = BTreeMap::new();
        let mut last: Option<Arc<File>> = None;
        for (id, block) in blocks {
            let file = match last.take() {
                Some(file) if file.id() == id => file,
                _ => self.file(id)?,
            };
            let inner = file.read();
            let tier = inner.map.get(block).tier().unwrap_or(TierId::FASTEST);
            let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
            let oldest = inner.overlay.range(start, end).map(|piece| piece.source.address()).min().unwrap_or(u64::MAX);
            drop(inner);
            by_tier.entry(tier).or_default().push(Listed { file: file.clone(), block, oldest });
            last = Some(file);
        }
        if let Some(fastest) = by_tier.get_mut(&TierId::FASTEST) {
            fastest.sort_by_key(|listed| listed.oldest);
        }
        if !parallel || by_tier.len() < 2 {
            return by_tier.values().map(|blocks| self.coalesce_list(blocks, before)).sum();
        }
        std::thread::scope(|scope| {
            let workers: Vec<_> =
                by_tier.values().map(|blocks| scope.spawn(|| self.coalesce_list(blocks, before))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap_or(Ok(0))).sum()
        })
    }

    fn coalesce_list(&self, blocks: &[Listed], before: u64) -> Result<u64> {
        let mut later = 0;
        let mut sweep = Sweep { before, log: Stretch::default() };
        self.preserve_ahead(blocks, before)?;
        for Listed { file, block, .. } in blocks {
            if self.log.failure().is_some() {
                return self.check_writable().map(|()| 0);
            }
            match self.coalesce_block(file, *block, &mut sweep) {
                Ok(Outcome::Done) => self.restore_health_of_file(file.id()),
                Ok(Outcome::Later) => later += 1,
                Err(error @ Error::ReadOnly { .. }) => return Err(error),
                Err(error) => {
                    later += 1;
                    self.degrade(&super::file_subject(file.id()), error.to_string());
                }
            }
        }
        Ok(later)
    }

    /// Blocks with live records in the segment that lie on a tier, or on none yet, for which `wanted` says yes.
    pub(super) fn touched_blocks(
        &self,
        segment_seq: u64,
        wanted: impl Fn(Option<TierId>) -> bool,
    ) -> Vec<(FileId, BlockNo)> {
        let Some(list) = self.touched.get(self.geometry().slot(segment_seq)) else { return Vec::new() };
        let list = list.lock().clone();
        let mut blocks = Vec::new();
        for (id, first, last) in list {
            // A file with extents is in memory; one that is gone must not be made again by looking for it.
            let Some(file) = self.files.read().get(&id).cloned() else { continue };
            let inner = file.read();
            // A run of zeros reaches as far as there are images, whatever the record said.
            let (start, end) = (self.block_start(first), self.block_start(last) + self.block_bytes());
            for extent in inner.overlay.range(start, end) {
                if self.geometry().segment_of(extent.source.address()) == segment_seq {
                    let (from, to) = (self.block_of(extent.start), self.block_of(extent.end - 1));
                    let on_wanted = |block: &BlockNo| wanted(inner.map.get(*block).tier());
                    blocks.extend((from.0..=to.0).map(BlockNo).filter(on_wanted).map(|block| (id, block)));
                }
            }
        }
        blocks.sort_unstable();
        blocks.dedup();
        blocks
    }

    /// Coalesces everything that was written before the call (settle); what is written meanwhile may stay. `progress` hears (blocks done, blocks in all).
    pub fn coalesce_all(&self, progress: &mut dyn FnMut(u64, u64)) -> Result<()> {
        self.sync_log()?;
        let asked_for = self.log.durable_address();
        for _ in 0..8 {
            self.sync_log()?;
            let files: Vec<Arc<File>> = self.files.read().values().cloned().collect();
            let mut blocks = Vec::new();
            for file in &files {
                let inner = file.read();
                for extent in inner.overlay.iter().filter(|extent| extent.source.address() < asked_for) {
                    let (from, to) = (self.block_of(extent.start), self.block_of(extent.end - 1));
                    blocks.extend((from.0..=to.0).map(|block| (file.id(), BlockNo(block))));
                }
            }
            if blocks.is_empty() {
                return Ok(());
            }
            let total = blocks.len() as u64;
            let mut later = 0;
            for (index, chunk) in blocks.chunks(1024).enumerate() {
                later += self.coalesce_blocks(chunk.to_vec(), u64::MAX, true)?;
                progress((index as u64 * 1024 + chunk.len() as u64).min(total), total);
            }
            if later > 0 {
                // Places that wait for their punch are free after a checkpoint.
                self.checkpoint()?;
            }
        }
        Err(Error::Busy("some blocks could not be coalesced; `status` says why".to_string()))
    }
}

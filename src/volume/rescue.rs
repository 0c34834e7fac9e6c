//! Base bytes that a tier cannot read, where they are elsewhere, too: in a clean copy on another tier, or in the newest published snapshot.
//!
//! A clean copy holds the same bytes as the base, whatever lies over both (R6). Of the snapshot the change map tells which pages of a file have not changed since
//! its mark (R16); such a page holds now what the snapshot holds. If nothing of it lies in the overlay either, its base is that page, and so the snapshot's bytes,
//! verified by their names (I8), may be answered in place of those that the device lost. Everything else stays an error: a page that changed since, whether or not
//! another snapshot is pending; one with records that are in no base yet, since what lies beneath them is older than the snapshot, and a pending mark may want
//! just that; a volume that does not know its parent any more; a repository that fails.
//!
//! What was rescued is then written again where it belongs: a disk takes a bad sector out when it is written. This is no change of the base: whoever holds
//! the block's claim knows that the base is these bytes, so that a crash in between leaves them or the bad sector, and the next checkpoint syncs the tier as after
//! any other write (R6, R8). Where nothing can be written, the block moves to another tier.

use super::blockmap::{Home, Place};
use super::state::Parent;
use super::status::count;
use super::{Applied, File, Volume};
use crate::device::AlignedBuf;
use crate::error::{Error, Result};
use crate::ondisk::changes::CHANGE_PAGE_BYTES;
use crate::units::{FileId, PAGE_BYTES, TierId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// Published snapshots, as far as they can be read. Called from any thread that may wait; may take long.
pub trait SnapshotStore: Send + Sync {
    /// Fills `buf` with bytes of a file of the snapshot whose mark has this name, each of them verified (I8); zeros past the file's end. Errors: the snapshot or
    /// the file in it is not there, or cannot be read.
    fn read(&self, mark: Uuid, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()>;
}

/// Where bytes were found, and so how long they are those of the base.
#[derive(Clone, Copy)]
enum Found {
    /// In the copy that the map named together with the base.
    Copy(Place),
    Snapshot(Parent),
}

/// Bytes of one block and of one page of the change map.
struct Rescued {
    start: u64,
    bytes: AlignedBuf,
    found: Found,
}

impl Volume {
    /// Registers where published snapshots are, for what tiers cannot read.
    pub fn rescue_from(&self, snapshots: Arc<dyn SnapshotStore>) {
        *self.snapshots.write() = Some(snapshots);
    }

    /// Might some of the `len` bytes that a tier could not read be elsewhere? Cheap, and waits for nothing.
    pub(super) fn may_rescue(&self, file: &File, tier: TierId, start: u64, len: usize) -> bool {
        let parent = self.newest_parent().filter(|_| self.snapshots.read().is_some());
        self.pages_of(start, start + len as u64).any(|(from, to)| {
            self.copy_of(file, tier, from).is_some() || parent.is_some_and(|it| self.is_as_at(file, tier, it, from, to))
        })
    }

    /// Base bytes of one tier, or, where it cannot read them, the same bytes from elsewhere. True: some are from there. Errors: the tier's own.
    pub(super) fn read_or_rescue(&self, file: &Arc<File>, tier: TierId, start: u64, out: &mut [u8]) -> Result<bool> {
        match self.read_object(file.id(), tier, start, out) {
            Ok(()) => Ok(false),
            Err(error @ Error::Io { .. }) => self.rescue(file, tier, start, out, error),
            Err(error) => Err(error),
        }
    }

    /// After reading these bytes failed with `error`, which is the answer unless all of them are found. True: some are from elsewhere.
    pub(super) fn rescue(
        &self,
        file: &Arc<File>,
        tier: TierId,
        start: u64,
        out: &mut [u8],
        error: Error,
    ) -> Result<bool> {
        let end = start + out.len() as u64;
        if !self.may_rescue(file, tier, start, out.len()) {
            return Err(error);
        }
        let mut rescued = Vec::new();
        for (from, to) in self.pages_of(start, end) {
            let mut bytes = AlignedBuf::zeroed(usize::try_from(to - from).unwrap_or(0));
            let found = match self.read_object(file.id(), tier, from, &mut bytes) {
                Ok(()) => None,
                Err(_) => match self.find(file, tier, from, &mut bytes, &error) {
                    Some(found) => Some(found),
                    None => return Err(error),
                },
            };
            let (first, last) = (from.max(start), to.min(end));
            let at = |offset: u64, base: u64| usize::try_from(offset - base).unwrap_or(usize::MAX);
            let source = bytes.get(at(first, from)..at(last, from)).unwrap_or_default();
            out.get_mut(at(first, start)..at(last, start)).unwrap_or_default().copy_from_slice(source);
            rescued.extend(found.map(|found| Rescued { start: from, bytes, found }));
        }
        if rescued.is_empty() {
            return Ok(false);
        }
        self.note_rescue(file, tier, &error);
        rescued.iter().for_each(|page| self.write_again(file, tier, page));
        Ok(true)
    }

    /// Fills `bytes`, which lie within one block and one page of the change map.
    fn find(&self, file: &File, tier: TierId, start: u64, bytes: &mut [u8], error: &Error) -> Option<Found> {
        self.read_copy(file, tier, start, bytes).or_else(|| self.read_captured(file, tier, start, bytes, error))
    }

    fn copy_of(&self, file: &File, tier: TierId, start: u64) -> Option<(Place, TierId)> {
        let place = file.read().map.get(self.block_of(start));
        place.copy.filter(|_| place.home == Home::Tier(tier)).map(|copy| (place, copy))
    }

    /// The copy is one still when it has been read, and its tier has lost nothing: then it was one all along, since the caller counts as a reader.
    fn read_copy(&self, file: &File, tier: TierId, start: u64, bytes: &mut [u8]) -> Option<Found> {
        let (place, copy) = self.copy_of(file, tier, start)?;
        let losses: Vec<u64> = self.losses.iter().map(|losses| losses.load(Ordering::Acquire)).collect();
        self.read_object(file.id(), copy, start, bytes).ok()?;
        let stands = self.copy_of(file, tier, start) == Some((place, copy)) && !self.may_have_lost(&losses);
        stands.then_some(Found::Copy(place))
    }

    fn read_captured(&self, file: &File, tier: TierId, start: u64, bytes: &mut [u8], error: &Error) -> Option<Found> {
        let (parent, snapshots) = (self.newest_parent()?, self.snapshots.read().clone()?);
        if !self.is_as_at(file, tier, parent, start, start + bytes.len() as u64) {
            return None;
        }
        match snapshots.read(parent.snapshot, file.id(), start, bytes) {
            Ok(()) => Some(Found::Snapshot(parent)),
            Err(cause) => {
                tracing::warn!("{error}; nor can the last snapshot be read: {cause}");
                None
            }
        }
    }

    /// The newest snapshot that changes are told against.
    fn newest_parent(&self) -> Option<Parent> {
        self.meta.lock().marked.parents.last().copied()
    }

    /// The range in pieces of one block and one page of the change map each, out to whole pages of the device.
    fn pages_of(&self, start: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + use<> {
        let unit = CHANGE_PAGE_BYTES.min(self.block_bytes());
        let (first, end) = (start / PAGE_BYTES * PAGE_BYTES, end.next_multiple_of(PAGE_BYTES));
        (first / unit..end.div_ceil(unit)).map(move |page| ((page * unit).max(first), ((page + 1) * unit).min(end)))
    }

    /// Is the base in `start..end`, within one block and one page of the change map, on this tier, and what the file holds there now, and what it held at the
    /// parent's mark?
    fn is_as_at(&self, file: &File, tier: TierId, parent: Parent, start: u64, end: u64) -> bool {
        let inner = file.read();
        let here = inner.map.get(self.block_of(start)).home == Home::Tier(tier) && !inner.removed;
        let page = start / CHANGE_PAGE_BYTES * CHANGE_PAGE_BYTES;
        let page_end = end.next_multiple_of(CHANGE_PAGE_BYTES);
        let applied = inner.overlay.range(page, page_end).next().is_none();
        let unchanged = !inner.changes.is_changed_in(parent.epoch, page, page_end);
        drop(inner);
        // A parent that is forgotten meanwhile takes with it what is known of changes since.
        here && applied && unchanged && self.meta.lock().marked.parents.contains(&parent)
    }

    fn note_rescue(&self, file: &File, tier: TierId, error: &Error) {
        if let Some(counters) = self.counters.tiers.get(tier.index()) {
            count(&counters.reads_rescued, 1);
        }
        let why = format!(
            "{error}; another tier or the last snapshot had the bytes of file {}: look at the device",
            file.id()
        );
        self.degrade(&self.rescues_of(tier), why);
    }

    pub(super) fn rescues_of(&self, tier: TierId) -> String {
        format!("what tier {} could not read", self.tier_name(tier))
    }

    /// Puts bytes back where they belong. What does not succeed is left to whoever reads there next.
    fn write_again(&self, file: &Arc<File>, tier: TierId, page: &Rescued) {
        let (block, end) = (self.block_of(page.start), page.start + page.bytes.len() as u64);
        // Whoever moves or coalesces the block, and read it for that, needs nothing of this.
        let Some(claim) = self.claim(file.id(), block) else { return };
        // Under the claim nobody else changes the base: what it is here it is until the write is over, whatever comes over it meanwhile.
        let stands = match page.found {
            Found::Copy(place) => file.read().map.get(block) == place,
            Found::Snapshot(parent) => self.is_as_at(file, tier, parent, page.start, end),
        };
        if !stands || self.check_writable().is_err() {
            return;
        }
        if !self.in_backoff(tier) && self.write_in_place(file, tier, page) {
            return;
        }
        drop(claim);
        let others = self.tiers_for_first_image(file, block).into_iter().filter(|other| *other != tier);
        if others.into_iter().any(|other| matches!(self.move_block(file, block, other), Ok(true))) {
            self.note_written_again(tier);
        }
    }

    /// The caller holds the claim, under which the base was found to be these bytes. False: they cannot be read back, since not every device mends itself.
    fn write_in_place(&self, file: &File, tier: TierId, page: &Rescued) -> bool {
        let wrote = self.about_to_write(tier);
        let written = self.write_base(file.id(), tier, page.start, &page.bytes);
        let mut seen = AlignedBuf::zeroed(page.bytes.len());
        let taken = self.note_tier_writes(tier, written).is_ok()
            && self.read_object(file.id(), tier, page.start, &mut seen).is_ok();
        if !taken || *seen != *page.bytes {
            return false;
        }
        let block = self.block_of(page.start);
        let _flip = self.gate.read();
        if !self.was_lost(wrote) {
            let prior = file.read().map.get(block);
            let (file, wrote) = (file.id(), Some(tier));
            self.window.lock().push(Applied { file, block, prior, pieces: Vec::new(), wrote });
            self.note_written_again(tier);
        }
        self.list_dirty(file);
        true
    }

    fn note_written_again(&self, tier: TierId) {
        if let Some(counters) = self.counters.tiers.get(tier.index()) {
            count(&counters.pages_rewritten, 1);
        }
    }
}

//! Capture before destroy (I4): what a pending mark still needs is kept before it changes.
//!
//! The foreground keeps where the bytes are (`keep`): a few entries of a layer, no I/O. The coalescer saves what a layer expects in the base before it writes
//! there, and log pressure saves what a layer has in the oldest segments; both by one synced write of a batch that says itself what it
//! holds, before the base is written or the segment recycled (R15). What cannot be saved costs the oldest mark its life, never a writer his write.

use super::blockmap::Home;
use super::coalesce::Listed;
use super::file::Inner;
use super::marks::KeptLedger;
use super::overlay::{Before, Extent};
use super::{Claim, File, Volume};
use crate::error::{Error, Result};
use crate::ondisk::staged::StagedEntry;
use crate::units::{BlockNo, FileId};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Blocks whose bytes go into one batch.
pub(super) const BLOCKS_PER_BATCH: usize = 64;
/// Bytes from the log that go into one batch, about.
const LOG_BATCH_BYTES: u64 = 4 << 20;

/// Bytes that a layer expects in a base which is about to change.
struct Wanted {
    file: Arc<File>,
    epoch: u32,
    start: u64,
    end: u64,
    home: Home,
}

/// Bytes that a layer has in a log segment which is about to go.
struct Pinned {
    file: Arc<File>,
    epoch: u32,
    kept: Extent<Before>,
}

impl Volume {
    /// A file is about to change for the first time since the newest mark: its layer begins. False: no mark needs anything of this file.
    /// The caller holds `appends` and the file's lock.
    pub(super) fn begin_change(&self, file: FileId, inner: &mut Inner) -> bool {
        let newest = self.marks.newest_for(file);
        if newest == 0 {
            return false;
        }
        if inner.layers.newest_epoch() < newest {
            inner.layers.begin(newest, inner.size_bytes, inner.mtime);
            self.marks.files.lock().insert(file);
        }
        // Replay comes by records again whose changes a later layer knows of already.
        !self.marks.is_replaying() || inner.layers.of(newest).is_some()
    }

    /// Bytes in `start..end` are about to change: where they are as of the newest mark is kept. The caller holds `appends` and the file's lock.
    pub(super) fn keep(&self, file: FileId, inner: &mut Inner, start: u64, end: u64) {
        if !self.begin_change(file, inner) {
            return;
        }
        let layer = match self.marks.is_replaying() {
            true => inner.layers.of(self.marks.newest_for(file)),
            false => inner.layers.newest(),
        };
        let Some(layer) = layer else { return };
        let end = end.min(layer.size_bytes);
        let mut ledger = self.kept_ledger();
        for (from, to) in layer.kept.gaps(start, end.max(start)) {
            let mut at = from;
            for extent in inner.overlay.range(from, to) {
                self.keep_base(&inner.map, at, extent.start, &mut layer.kept, &mut ledger);
                let kept = Extent { start: extent.start, end: extent.end, source: Before::from(extent.source) };
                layer.kept.insert_beneath(kept, &mut ledger);
                at = extent.end;
            }
            self.keep_base(&inner.map, at, to, &mut layer.kept, &mut ledger);
        }
    }

    /// Keeps that `start..end` is in the base, or zeros where there is none.
    fn keep_base(
        &self,
        map: &super::blockmap::BlockMap,
        start: u64,
        end: u64,
        kept: &mut super::overlay::Overlay<Before>,
        ledger: &mut KeptLedger<'_>,
    ) {
        if start >= end {
            return;
        }
        let block_bytes = self.block_bytes();
        let mut runs: Vec<Extent<Before>> = Vec::new();
        for (block, place) in map.range(self.block_of(start), BlockNo(end.div_ceil(block_bytes))) {
            if !place.home.has_bytes() {
                continue;
            }
            let (from, to) = (self.block_start(block).max(start), (self.block_start(block) + block_bytes).min(end));
            match runs.last_mut() {
                Some(run) if run.end == from => run.end = to,
                _ => runs.push(Extent { start: from, end: to, source: Before::Base }),
            }
        }
        runs.into_iter().for_each(|run| kept.insert_beneath(run, ledger));
        kept.insert_beneath(Extent { start, end, source: Before::Zeros }, ledger);
    }

    /// Counts bytes as changed in this epoch. The caller holds `appends` and the file's lock.
    pub(super) fn note_change(&self, inner: &mut Inner, start: u64, end: u64) {
        let epoch = self.marks.epoch();
        if epoch != 0 {
            inner.changes.touch(start, end, epoch, self.marks.floor());
        }
    }

    /// Saves what layers expect in the base where `pieces` are about to be written. False: not now, since the tier is losing writes. The
    /// caller holds the claims and counts as a reader.
    pub(super) fn preserve(&self, blocks: &[(Arc<File>, Vec<Extent>)]) -> Result<bool> {
        loop {
            let mut wanted = Vec::new();
            for (file, pieces) in blocks {
                self.wanted_of(file, pieces, &mut wanted);
            }
            let Some(first) = wanted.first() else { return Ok(true) };
            match self.save_base(&wanted) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                // Without the repository nothing can be written over what is there: the mark need not die for it.
                Err(error @ (Error::ReadOnly { .. } | Error::Source { .. })) => return Err(error),
                // Without a mark nobody reads the layers that are left: whoever ended it is about to take them away. With one that cannot be ended the base
                // stays as it is.
                Err(error) if !self.fail_oldest_mark(&Volume::why_not_saved(first.file.id(), &error)) => {
                    return Ok(!self.marks.any());
                }
                Err(_) => {}
            }
        }
    }

    fn wanted_of(&self, file: &Arc<File>, pieces: &[Extent], wanted: &mut Vec<Wanted>) {
        let inner = file.read();
        if inner.layers.is_empty() {
            return;
        }
        for (epoch, start, end) in inner.layers.expected_in_base(pieces) {
            let mut at = start;
            while at < end {
                let block = self.block_of(at);
                let stop = (self.block_start(block) + self.block_bytes()).min(end);
                let home = inner.map.get(block).home;
                // Also where there is no image any more: blocks of zeros lose theirs without a write.
                wanted.push(Wanted { file: file.clone(), epoch, start: at, end: stop, home });
                at = stop;
            }
        }
    }

    fn save_base(&self, wanted: &[Wanted]) -> Result<bool> {
        let losses: Vec<u64> = self.losses.iter().map(|losses| losses.load(Ordering::Acquire)).collect();
        let len: u64 = wanted.iter().map(|piece| piece.end - piece.start).sum();
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        let (mut entries, mut rest) = (Vec::new(), data.as_mut_slice());
        for piece in wanted {
            let (out, behind) = rest.split_at_mut(usize::try_from(piece.end - piece.start).unwrap_or(0));
            match piece.home {
                Home::Tier(tier) => drop(self.read_base(&piece.file, tier, piece.start, out)?),
                Home::Repository => self.read_stored(&piece.file, piece.start, out)?,
                Home::Hole | Home::Promised => {}
            }
            rest = behind;
            let (file, start, end) = (piece.file.id(), piece.start, piece.end);
            entries.push(StagedEntry { file, start, end, at: 0, epoch: piece.epoch, of_base: true });
        }
        if self.may_have_lost(&losses) {
            return Ok(false);
        }
        let written = self.stage(entries, &data)?;
        let mut at = written.address;
        for piece in wanted {
            let (staged, mut ledger) = (Before::Staged(at), self.kept_ledger());
            piece.file.write().layers.replace_base_of(piece.epoch, piece.start, piece.end, staged, &mut ledger);
            self.list_dirty(&piece.file);
            at += piece.end - piece.start;
        }
        self.staging.let_go(&written);
        Ok(true)
    }

    /// Has a tier lost writes since, or are lost ones not undone yet? Then what was read from a base may be what was lost.
    pub(super) fn may_have_lost(&self, losses: &[u64]) -> bool {
        !self.lost_writes.lock().is_empty()
            || self.losses.iter().zip(losses).any(|(now, before)| now.load(Ordering::Acquire) != *before)
    }

    /// Mover and staging use only unpromised space (I10).
    fn stage(&self, entries: Vec<StagedEntry>, data: &[u8]) -> Result<super::staging::Written> {
        self.check_writable()?;
        let blocks = (data.len() as u64).div_ceil(self.block_bytes());
        if self.space.unpromised_blocks() < i64::try_from(blocks).unwrap_or(i64::MAX) {
            return Err(Error::NoSpace);
        }
        self.staging.write(entries, data)
    }

    /// Saves ahead what the coalescing of these blocks is going to overwrite: one sync for many blocks instead of one for each.
    pub(super) fn preserve_ahead(&self, blocks: &[Listed], before: u64) -> Result<()> {
        if !self.marks.any() {
            return Ok(());
        }
        for batch in blocks.chunks(BLOCKS_PER_BATCH) {
            let _reading = self.readers.enter();
            let (mut claims, mut pieces): (Vec<Claim<'_>>, Vec<_>) = (Vec::new(), Vec::new());
            for Listed { file, block, .. } in batch.iter().filter(|listed| !listed.file.read().layers.is_empty()) {
                let Some(claim) = self.claim(file.id(), *block) else { continue };
                claims.push(claim);
                pieces.push((file.clone(), self.durable_pieces(file, *block, before)));
            }
            self.preserve(&pieces)?;
        }
        Ok(())
    }

    /// Takes what layers have in log segments before this one into staging, so that the segments may go. What cannot be saved fails the oldest mark.
    pub(super) fn unpin_log(&self, before_segment: u64) -> Result<()> {
        while self.marks.pinned_log_bytes.load(Ordering::Relaxed) > 0 {
            // Segments stay while this reads.
            let _reading = self.readers.enter();
            let pinned = self.pinned_before(before_segment);
            let Some(first) = pinned.first() else { return Ok(()) };
            match self.save_log(&pinned) {
                Ok(()) => {}
                Err(error @ Error::ReadOnly { .. }) => return Err(error),
                Err(error) if !self.fail_oldest_mark(&Volume::why_not_saved(first.file.id(), &error)) => return Ok(()),
                Err(_) => {}
            }
        }
        Ok(())
    }

    fn pinned_before(&self, before_segment: u64) -> Vec<Pinned> {
        let ids: Vec<FileId> = self.marks.files.lock().iter().copied().collect();
        let (mut pinned, mut bytes) = (Vec::new(), 0);
        for id in ids {
            let Some(file) = self.files.read().get(&id).cloned() else { continue };
            let inner = file.read();
            for layer in inner.layers.iter() {
                for kept in layer.kept.iter() {
                    let Before::Log(address) = kept.source else { continue };
                    if self.geometry().segment_of(address) < before_segment && bytes < LOG_BATCH_BYTES {
                        bytes += kept.len();
                        pinned.push(Pinned { file: file.clone(), epoch: layer.epoch, kept });
                    }
                }
            }
        }
        pinned
    }

    fn save_log(&self, pinned: &[Pinned]) -> Result<()> {
        let len: u64 = pinned.iter().map(|piece| piece.kept.len()).sum();
        let mut data = vec![0; usize::try_from(len).unwrap_or(0)];
        let (mut entries, mut rest) = (Vec::new(), data.as_mut_slice());
        for Pinned { file, epoch, kept } in pinned {
            let (out, behind) = rest.split_at_mut(usize::try_from(kept.len()).unwrap_or(0));
            if let Before::Log(position) = kept.source {
                self.log.read(position, out)?;
            }
            rest = behind;
            entries.push(StagedEntry {
                file: file.id(),
                start: kept.start,
                end: kept.end,
                at: 0,
                epoch: *epoch,
                of_base: false,
            });
        }
        let written = self.stage(entries, &data)?;
        let mut at = written.address;
        for Pinned { file, epoch, kept } in pinned {
            file.write().layers.replace_log(*epoch, kept, at, &mut self.kept_ledger());
            self.list_dirty(file);
            at += kept.len();
        }
        self.staging.let_go(&written);
        Ok(())
    }
}

//! Reading a mark: files, bytes and changes as of its moment. For captures: no heat, no caches disturbed, any number of threads.

use super::file::Inner;
use super::io::{Piece, PlannedPiece};
use super::marks::Mark;
use super::overlay::{Before, Source};
use super::{File, Volume};
use crate::error::{Error, Result};
use crate::units::{FileId, WallNs};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use uuid::Uuid;

/// A read is tried again when a base was changed or lost meanwhile; so often.
const READ_ATTEMPTS: u32 = 100;

/// A file as of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileAt {
    pub file: FileId,
    pub size_bytes: u64,
    /// None: home's is right.
    pub mtime: Option<WallNs>,
}

impl Inner {
    /// Size and modification time as of the mark.
    fn attributes_at(&self, mark: &Mark) -> (u64, Option<WallNs>) {
        match self.layers.from(mark.epoch).first() {
            Some(layer) => (layer.size_bytes, layer.mtime),
            // Removed before the mark, since a removal after it leaves a layer.
            None if self.removed => (0, None),
            None => (self.size_bytes, self.mtime),
        }
    }
}

impl Volume {
    /// No lock of a file is waited for under that of the table.
    pub(super) fn files_in_memory(&self) -> Vec<Arc<File>> {
        self.files.read().values().cloned().collect()
    }

    /// Every file that the engine knew at the mark, by id: those of size 0 have no data; files that were never written are perhaps not listed.
    pub fn files_at(&self, mark: &Mark) -> Result<Vec<FileAt>> {
        self.check_mark(mark)?;
        let mut found = BTreeMap::new();
        let in_memory = |found: &mut BTreeMap<FileId, FileAt>| {
            for entry in self.files_in_memory() {
                let (size_bytes, mtime) = entry.read().attributes_at(mark);
                found.insert(entry.id(), FileAt { file: entry.id(), size_bytes, mtime });
            }
        };
        in_memory(&mut found);
        // Not in memory then: at rest, so that durable state is right; or changed since, and then it has a layer and is in memory now.
        self.state.for_each_row(&mut |file, row| {
            found.entry(file).or_insert(FileAt { file, size_bytes: row.size_bytes, mtime: row.mtime });
        })?;
        in_memory(&mut found);
        mark.check()?;
        Ok(found.into_values().filter(|at| at.file.0 < mark.file_id_limit).collect())
    }

    /// One file as of the mark; size 0 if it had never been written.
    pub fn file_at(&self, mark: &Mark, file: FileId) -> Result<FileAt> {
        self.check_mark(mark)?;
        if file.0 >= mark.file_id_limit {
            return Ok(FileAt { file, size_bytes: 0, mtime: None });
        }
        let (size_bytes, mtime) = self.file(file)?.read().attributes_at(mark);
        mark.check()?;
        Ok(FileAt { file, size_bytes, mtime })
    }

    /// Fills `buf` with the file's bytes as of the mark, and returns how many there are before its end as of then.
    pub fn read_at(&self, mark: &Mark, file: FileId, offset: u64, buf: &mut [u8]) -> Result<usize> {
        self.check_mark(mark)?;
        if file.0 >= mark.file_id_limit {
            return Ok(0);
        }
        for _ in 0..READ_ATTEMPTS {
            let losses: Vec<u64> = self.losses.iter().map(|losses| losses.load(Ordering::Acquire)).collect();
            let _reading = self.readers.enter();
            let file = self.file(file)?;
            let (len, pieces) = self.plan_at(mark, &file, offset, buf.len());
            for piece in &pieces {
                let from = usize::try_from(piece.start - offset).unwrap_or(0);
                let to = usize::try_from(piece.end - offset).unwrap_or(0);
                let Some(out) = buf.get_mut(from..to) else { continue };
                match piece.piece {
                    Piece::Zeros => out.fill(0),
                    Piece::Log(position) => self.log.read(position, out)?,
                    Piece::Base(tier) => drop(self.read_base(&file, tier, piece.start, out)?),
                    // It never changes there: as of the plan it was the base.
                    Piece::Repository => self.read_stored(&file, piece.start, out)?,
                    Piece::Staged(address) => self.staging.read(address, out)?,
                }
            }
            // A base may have been overwritten since it was planned to be read; then what was there has been saved first, and the plan is another one.
            let stands = self.plan_at(mark, &file, offset, buf.len()).1 == pieces;
            // A mark that was given up meanwhile keeps nothing: what was read may be newer than it.
            mark.check()?;
            let based = pieces.iter().any(|piece| matches!(piece.piece, Piece::Base(_)));
            if !based || (stands && !self.may_have_lost(&losses)) {
                return Ok(len);
            }
            std::thread::yield_now();
        }
        Err(Error::Busy(format!("file {file}: its tier keeps changing or losing writes; try again")))
    }

    /// Layers from the mark's on, then the file as it is.
    fn plan_at(&self, mark: &Mark, file: &File, offset: u64, wanted: usize) -> (usize, Vec<PlannedPiece>) {
        let inner = file.read();
        let end = inner.attributes_at(mark).0.min(offset.saturating_add(wanted as u64));
        if offset >= end {
            return (0, Vec::new());
        }
        let mut pieces = Vec::new();
        let mut open = vec![(offset, end)];
        for layer in inner.layers.from(mark.epoch) {
            let mut still_open = Vec::new();
            for (start, end) in open {
                for kept in layer.kept.range(start, end) {
                    let piece = match kept.source {
                        Before::Base => {
                            self.plan_base(&inner, kept.start, kept.end, &mut pieces);
                            continue;
                        }
                        Before::Log(position) => Piece::Log(position),
                        Before::Staged(address) => Piece::Staged(address),
                        Before::Zeros => Piece::Zeros,
                    };
                    pieces.push(PlannedPiece { start: kept.start, end: kept.end, piece });
                }
                still_open.extend(layer.kept.gaps(start, end));
            }
            open = still_open;
        }
        for (start, end) in open {
            self.plan_now(&inner, start, end, &mut pieces);
        }
        (usize::try_from(end - offset).unwrap_or(wanted), pieces)
    }

    /// The first range at or after `offset` that is no hole as of the mark, by blocks; in doubt it is data. None: only holes follow.
    pub fn data_at(&self, mark: &Mark, file: FileId, offset: u64) -> Result<Option<(u64, u64)>> {
        self.check_mark(mark)?;
        if file.0 >= mark.file_id_limit {
            return Ok(None);
        }
        let file = self.file(file)?;
        let inner = file.read();
        let size = inner.attributes_at(mark).0;
        let mut at = offset;
        let mut found: Option<(u64, u64)> = None;
        while at < size {
            let block = self.block_of(at);
            let stop = (self.block_start(block) + self.block_bytes()).min(size);
            let data = self.has_data_at(&inner, mark, self.block_start(block), stop);
            match (&mut found, data) {
                (None, true) => found = Some((at, stop)),
                (Some(range), true) => range.1 = stop,
                (Some(_), false) => break,
                (None, false) => {
                    at = self.next_entry_at(&inner, mark, stop, size);
                    continue;
                }
            }
            at = stop;
        }
        drop(inner);
        mark.check()?;
        Ok(found)
    }

    fn has_data_at(&self, inner: &Inner, mark: &Mark, start: u64, end: u64) -> bool {
        let mut open = vec![(start, end)];
        for layer in inner.layers.from(mark.epoch) {
            let kept_data =
                |&(start, end): &(u64, u64)| layer.kept.range(start, end).any(|kept| kept.source != Before::Zeros);
            if open.iter().any(kept_data) {
                return true;
            }
            open = open.into_iter().flat_map(|(start, end)| layer.kept.gaps(start, end)).collect();
        }
        open.into_iter().any(|(start, end)| {
            let logged = inner.overlay.range(start, end).any(|extent| matches!(extent.source, Source::Log(_)));
            let image = inner.map.get(self.block_of(start)).home.has_bytes();
            logged || (image && !inner.overlay.gaps(start, end).is_empty())
        })
    }

    /// The next offset from `at` on at which there may be anything as of the mark; `size` when there is none.
    fn next_entry_at(&self, inner: &Inner, mark: &Mark, at: u64, size: u64) -> u64 {
        let kept = inner.layers.from(mark.epoch).iter().filter_map(|layer| {
            layer.kept.range(at, size).find(|kept| kept.source != Before::Zeros).map(|kept| kept.start)
        });
        kept.min().unwrap_or(size).min(self.next_entry(inner, at, size)).clamp(at, size.max(at))
    }

    /// Is this snapshot one that changes can be told against? Otherwise the next one is a full one (R16).
    pub fn knows_parent(&self, parent: Uuid) -> bool {
        self.parent_epoch(parent).is_some()
    }

    fn parent_epoch(&self, parent: Uuid) -> Option<u32> {
        let meta = self.meta.lock();
        meta.marked.parents.iter().find(|known| known.snapshot == parent).map(|known| known.epoch)
    }

    /// Files that changed between the parent and the mark, by id. None: the parent is not known, everything may have changed.
    pub fn changed_files(&self, mark: &Mark, parent: Uuid) -> Result<Option<Vec<FileId>>> {
        self.check_mark(mark)?;
        let Some(epoch) = self.parent_epoch(parent) else { return Ok(None) };
        let mut changed = BTreeSet::new();
        let in_memory = |changed: &mut BTreeSet<FileId>| {
            for file in self.files_in_memory() {
                if file.read().changes.is_changed_since(epoch) {
                    changed.insert(file.id());
                }
            }
        };
        in_memory(&mut changed);
        self.state.for_each_change(&mut |file, row| {
            if super::changes::row_is_needed(row, epoch) {
                changed.insert(file);
            }
        })?;
        in_memory(&mut changed);
        if self.parent_epoch(parent).is_none() {
            return Ok(None); // forgotten meanwhile, and its changes with it
        }
        Ok(Some(changed.into_iter().filter(|file| file.0 < mark.file_id_limit).collect()))
    }

    /// Pages of 8 KiB that may have changed between the parent and the mark: those that did, and some more. None: the parent is not known, all may have.
    /// Pages behind the end that the file had at the parent, and not listed, are zeros.
    pub fn changed_pages(&self, mark: &Mark, parent: Uuid, file: FileId) -> Result<Option<Vec<Range<u64>>>> {
        self.check_mark(mark)?;
        let Some(epoch) = self.parent_epoch(parent) else { return Ok(None) };
        if file.0 >= mark.file_id_limit {
            return Ok(Some(Vec::new()));
        }
        let file = self.file(file)?;
        let inner = file.read();
        let (size, _) = inner.attributes_at(mark);
        let pages = inner.changes.since(epoch, size);
        drop(inner);
        Ok(self.parent_epoch(parent).map(|_| pages))
    }
}

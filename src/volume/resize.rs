//! Size and holes: truncate, punch, zero-range, allocate, seek. A cut takes extents out of the overlay and lays zeros over images that
//! still hold the old bytes; the base follows at coalescing (R3).

use super::blockmap::{Home, Place};
use super::file::{File, Inner};
use super::io::FILE_BYTES_MAX;
use super::overlay::{Extent, Source};
use super::{FileAttr, Volume};
use crate::device::{Space, clock};
use crate::error::{Error, Result};
use crate::log::Append;
use crate::ondisk::changes::CHANGE_PAGE_BYTES;
use crate::ondisk::group::{RecordKind, TIER_UNSET};
use crate::units::{BlockNo, FileId, Lsn, TierId, WallNs};
use std::sync::Arc;
use std::sync::atomic::Ordering;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Seek {
    Data,
    Hole,
}

/// What happens to promises without an image in a cut.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(super) enum Promises {
    Release,
    Keep,
}

impl Volume {
    /// ftruncate: `size_bytes` is the new size.
    pub fn set_size(&self, file: &Arc<File>, size_bytes: u64) -> Result<()> {
        if size_bytes > FILE_BYTES_MAX {
            return Err(Error::Invalid(format!("size {size_bytes} is past the largest file")));
        }
        let cut_bytes = |inner: &Inner| inner.size_bytes.saturating_sub(size_bytes);
        self.log_and_apply(file, RecordKind::Truncate, size_bytes, cut_bytes, |inner, lsn| {
            if size_bytes < inner.size_bytes {
                self.apply_zeros(file.id(), inner, size_bytes, u64::MAX, lsn, Promises::Release);
            }
            self.resize(inner, size_bytes);
            inner.touch(clock::wall_now());
        })?;
        if let Some(observer) = self.observer.read().as_ref() {
            observer.on_size(file.id(), size_bytes);
        }
        Ok(())
    }

    /// fallocate(PUNCH_HOLE | KEEP_SIZE).
    pub fn punch_hole(&self, file: &Arc<File>, offset: u64, len: u64) -> Result<()> {
        let end = range_end(offset, len)?;
        self.log_and_apply(
            file,
            RecordKind::Punch,
            offset,
            |_| len,
            |inner, lsn| {
                self.apply_zeros(file.id(), inner, offset, end, lsn, Promises::Release);
                inner.touch(clock::wall_now());
            },
        )
    }

    /// fallocate(ZERO_RANGE), with KEEP_SIZE or without.
    pub fn zero_range(&self, file: &Arc<File>, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = range_end(offset, len)?;
        self.log_and_apply(
            file,
            RecordKind::Punch,
            offset,
            |_| len,
            |inner, lsn| {
                self.apply_zeros(file.id(), inner, offset, end, lsn, Promises::Keep);
                inner.touch(clock::wall_now());
            },
        )?;
        self.allocate(file, offset, len, keep_size)
    }

    /// Plain fallocate: promises space, grows the file unless `keep_size`.
    pub fn allocate(&self, file: &Arc<File>, offset: u64, len: u64, keep_size: bool) -> Result<()> {
        let end = range_end(offset, len)?;
        self.check_room_for_state()?;
        let promise = || {
            let mut inner = file.write();
            let promised = self.promise_holes(&mut inner, offset, end)?;
            inner.allocated |= !promised.is_empty();
            Ok(())
        };
        match promise() {
            Err(Error::NoSpace) => {
                self.checkpoint_for_room()?;
                promise()?;
            }
            other => other?,
        }
        self.list_dirty(file);
        if keep_size || end <= file.size_bytes() {
            return Ok(());
        }
        self.log_and_apply(
            file,
            RecordKind::Size,
            end,
            |_| 0,
            |inner, _| {
                self.resize(inner, inner.size_bytes.max(end));
                inner.touch(clock::wall_now());
            },
        )
    }

    /// Logs a record without payload and applies it, both under the file's lock. Waits for log space.
    fn log_and_apply(
        &self,
        file: &Arc<File>,
        kind: RecordKind,
        offset: u64,
        length: impl Fn(&Inner) -> u64,
        apply: impl Fn(&mut Inner, Lsn),
    ) -> Result<()> {
        let mut patience = self.patience();
        loop {
            let append = self.appends.read();
            self.check_writable()?;
            let mut inner = file.write();
            let length = length(&inner);
            let (let_die, tier, score) = (false, TIER_UNSET, 0);
            let record = Append { kind, file: file.id(), offset, length, payload: &[], let_die, tier, score };
            match self.log.append(&record) {
                Ok(appended) => {
                    self.begin_change(file.id(), &mut inner);
                    apply(&mut inner, appended.lsn);
                    file.set_last_lsn(appended.lsn);
                    drop(inner);
                    // Before a freeze may come in between: it would move the redo point past this record, but not write the row.
                    self.list_dirty(file);
                    drop(append);
                    return Ok(());
                }
                Err(Error::LogFull) => {
                    drop((inner, append));
                    self.wait_for_log_room(&mut patience)?;
                }
                Err(error) => return Err(error),
            }
        }
    }

    /// Bytes in `start..end` read as zeros from now on: nothing newer is left, and images that hold old bytes there are covered with zeros.
    pub(super) fn apply_zeros(
        &self,
        file: FileId,
        inner: &mut Inner,
        start: u64,
        end: u64,
        lsn: Lsn,
        promises: Promises,
    ) {
        self.keep(file, inner, start, end);
        let logged: Vec<(u64, u64)> =
            inner.overlay.range(start, end).map(|extent| (extent.start, extent.end)).collect();
        logged.into_iter().for_each(|(from, to)| self.note_change(inner, from, to));
        inner.cuts += 1;
        inner.overlay.cut(start, end, &mut self.ledger());
        let block_bytes = self.block_bytes();
        let end = end.min(inner.map.end().0 * block_bytes);
        let mut runs: Vec<Extent> = Vec::new();
        let mut released = Vec::new();
        for (block, place) in inner.map.range(self.block_of(start), BlockNo(end.div_ceil(block_bytes))) {
            let (from, stop) = (self.block_start(block).max(start), (self.block_start(block) + block_bytes).min(end));
            match place.home {
                Home::Tier(_) | Home::Repository => match runs.last_mut() {
                    Some(run) if run.end == from => run.end = stop,
                    _ => runs.push(Extent { start: from, end: stop, source: Source::Zeros(lsn.0) }),
                },
                Home::Promised if stop - from == block_bytes && promises == Promises::Release => released.push(block),
                Home::Promised | Home::Hole => {}
            }
        }
        self.take_back_promises(inner, &released);
        for run in runs {
            self.note_change(inner, run.start, run.end);
            self.note_touched(lsn, file, self.block_of(run.start), self.block_of(run.end - 1));
            inner.overlay.insert(run, &mut self.ledger());
        }
    }

    /// Sets the size. The page that held the old end, and the one that holds the new one, are not what they were.
    pub(super) fn resize(&self, inner: &mut Inner, size_bytes: u64) {
        let old = std::mem::replace(&mut inner.size_bytes, size_bytes);
        for end in [old, size_bytes] {
            if old != size_bytes && !end.is_multiple_of(CHANGE_PAGE_BYTES) {
                self.note_change(inner, end - 1, end);
            }
        }
    }

    /// lseek(SEEK_DATA / SEEK_HOLE) by block: a block is a hole only if no tier and no record has it. None: past the end (ENXIO).
    pub fn seek(&self, file: &File, offset: u64, what: Seek) -> Option<u64> {
        let inner = file.read();
        let size = inner.size_bytes;
        if offset >= size {
            return None;
        }
        let mut at = offset;
        while at < size {
            let block = self.block_of(at);
            let stop = (self.block_start(block) + self.block_bytes()).min(size);
            let data = self.has_data(&inner, block);
            if !data && what == Seek::Data {
                at = self.next_entry(&inner, stop, size);
                continue;
            }
            if data == (what == Seek::Data) {
                return Some(at);
            }
            at = stop;
        }
        (what == Seek::Hole).then_some(size)
    }

    /// The next offset from `at` on at which the map or the overlay has anything; `size` when there is none.
    pub(super) fn next_entry(&self, inner: &Inner, at: u64, size: u64) -> u64 {
        let mapped =
            inner.map.range(self.block_of(at), BlockNo(u64::MAX)).next().map(|(block, _)| self.block_start(block));
        let logged = inner.overlay.range(at, size).next().map(|extent| extent.start);
        [mapped, logged].into_iter().flatten().min().unwrap_or(size).clamp(at, size.max(at))
    }

    fn has_data(&self, inner: &Inner, block: BlockNo) -> bool {
        let (start, end) = (self.block_start(block), self.block_start(block) + self.block_bytes());
        if inner.overlay.range(start, end).any(|extent| matches!(extent.source, Source::Log(_))) {
            return true;
        }
        let zeros: u64 = inner.overlay.range(start, end).map(|extent| extent.len()).sum();
        inner.map.get(block).home.has_bytes() && zeros < end - start
    }

    /// Size, blocks and times as the engine knows them.
    pub fn attr(&self, file: &File) -> FileAttr {
        let inner = file.read();
        let bytes = (inner.image_blocks + inner.promised_blocks + inner.stored_blocks) * self.block_bytes();
        // A promise covers a whole block; a small file still uses no more than its pages, unless it asked for more.
        let bytes = if inner.allocated { bytes } else { bytes.min(inner.size_bytes.next_multiple_of(4096)) };
        FileAttr { size_bytes: inner.size_bytes, blocks_512: bytes / 512, mtime: inner.mtime, ctime: inner.ctime }
    }

    /// utimensat and the like: home has been told. `mtime` is the new one (None: unchanged); the change time is now.
    pub fn set_times(&self, file: &Arc<File>, mtime: Option<WallNs>) -> Result<()> {
        let Some(mtime) = mtime else {
            let mut inner = file.write();
            inner.ctime = Some(clock::wall_now());
            inner.row_dirty = true;
            drop(inner);
            self.list_dirty(file);
            return Ok(());
        };
        let bits = u64::from_le_bytes(mtime.0.to_le_bytes());
        self.log_and_apply(
            file,
            RecordKind::Times,
            bits,
            |_| 0,
            |inner, _| {
                inner.mtime = Some(mtime);
                inner.ctime = Some(clock::wall_now());
                inner.row_dirty = true;
            },
        )
    }

    /// statfs over all tiers: what the budgets allow, less what is held and promised.
    pub fn space(&self) -> Space {
        let blocks = |n: i64| u64::try_from(n).unwrap_or(0) * self.block_bytes();
        let total = (0..self.tiers.len())
            .filter_map(|t| u8::try_from(t).ok())
            .map(|t| self.space.budget_blocks(TierId(t)))
            .sum::<u64>();
        Space { total_bytes: total * self.block_bytes(), available_bytes: blocks(self.space.unpromised_blocks()) }
    }

    /// The last name is gone (home's grave holds it) and nobody has it open: data, records and map entries go with the next checkpoint, or with
    /// the one after the last pending mark that needs them.
    pub fn remove(&self, id: FileId) -> Result<()> {
        self.check_writable()?;
        let file = self.file(id)?;
        let _flip = self.gate.read();
        let _append = self.appends.read();
        let mut inner = file.write();
        if std::mem::replace(&mut inner.removed, true) {
            return Ok(());
        }
        self.keep(id, &mut inner, 0, u64::MAX);
        self.drop_content(&mut inner);
        match inner.layers.is_empty() {
            true => self.gone.lock().push(id),
            // The mark's end sends it after. Until home has forgotten the name for good, nothing of it may be missing.
            false => self.marks.names_went.store(true, Ordering::Release),
        }
        drop(inner);
        self.list_dirty(&file);
        if let Some(observer) = self.observer.read().as_ref() {
            observer.on_file_gone(file.id());
        }
        Ok(())
    }
}

impl Volume {
    /// Of a removed file: its records and promises are needed by nobody but its layers.
    pub(super) fn drop_content(&self, inner: &mut Inner) {
        inner.cuts += 1;
        inner.overlay.cut(0, u64::MAX, &mut self.ledger());
        let blocks: Vec<(BlockNo, Place)> = inner.map.iter().collect();
        for (block, place) in blocks {
            if place.home == Home::Promised {
                self.take_back_promises(inner, &[block]);
            }
        }
    }
}

fn range_end(offset: u64, len: u64) -> Result<u64> {
    match offset.checked_add(len) {
        Some(end) if len > 0 && end <= FILE_BYTES_MAX => Ok(end),
        _ => Err(Error::Invalid(format!("range {offset}+{len} is empty or past the largest file"))),
    }
}

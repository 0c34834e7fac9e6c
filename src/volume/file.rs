//! One file as the engine knows it: size, times, overlay and block map under one lock that is never held across I/O.

use super::blockmap::{BlockMap, Home};
use super::changes::ChangeMap;
use super::layers::Layers;
use super::overlay::Overlay;
use crate::ondisk::rows::FileRow;
use crate::units::{BlockNo, FileId, Lsn, WallNs};
use parking_lot::{RwLock, RwLockReadGuard, RwLockWriteGuard};
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};

/// Writes that continue where the last one ended, each followed by a sync, before a file counts as a log by behaviour.
const LOG_STREAK: u32 = 64;

pub struct File {
    id: FileId,
    /// Its id in the snapshot that the volume was made of, if it was there.
    source: Option<FileId>,
    inner: RwLock<Inner>,
    last_lsn: AtomicU64,
    /// In the list of files that the next checkpoint has to look at.
    listed_dirty: AtomicBool,
    /// Recognised as a log by its name; by its behaviour.
    named_log: AtomicBool,
    behaves_as_log: AtomicBool,
    streak_end: AtomicU64,
    streak: AtomicU32,
    written_since_sync: AtomicBool,
}

#[derive(Default)]
pub(super) struct Inner {
    pub size_bytes: u64,
    pub mtime: Option<WallNs>,
    pub ctime: Option<WallNs>,
    pub overlay: Overlay,
    pub map: BlockMap,
    /// What it was at pending marks.
    pub layers: Layers,
    pub changes: ChangeMap,
    /// Blocks whose home is a tier, and blocks that are promised and nowhere.
    pub image_blocks: u64,
    pub promised_blocks: u64,
    /// Blocks that are in the repository.
    pub stored_blocks: u64,
    /// fallocate promised blocks, perhaps past the end.
    pub allocated: bool,
    /// Goes up whenever bytes are cut away (truncate, punch): a coalescer that gathered bytes before must not flip them in after.
    pub cuts: u64,
    pub row_dirty: bool,
    /// The last name is gone and so is the last handle.
    pub removed: bool,
}

impl File {
    pub(super) fn new(id: FileId, source: Option<FileId>, inner: Inner, let_die: bool) -> File {
        File {
            id,
            source,
            inner: RwLock::new(inner),
            last_lsn: AtomicU64::new(0),
            listed_dirty: AtomicBool::new(false),
            named_log: AtomicBool::new(let_die),
            behaves_as_log: AtomicBool::new(false),
            streak_end: AtomicU64::new(u64::MAX),
            streak: AtomicU32::new(0),
            written_since_sync: AtomicBool::new(false),
        }
    }

    pub fn id(&self) -> FileId {
        self.id
    }

    pub(super) fn source(&self) -> Option<FileId> {
        self.source
    }

    pub fn size_bytes(&self) -> u64 {
        self.inner.read().size_bytes
    }

    /// LSN of the newest record of this file.
    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.last_lsn.load(Ordering::Acquire))
    }

    pub(super) fn set_last_lsn(&self, lsn: Lsn) {
        self.last_lsn.store(lsn.0, Ordering::Release);
    }

    pub(super) fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.inner.read()
    }

    pub(super) fn write(&self) -> RwLockWriteGuard<'_, Inner> {
        self.inner.write()
    }

    /// Are this file's records left to die in the log (pg_wal, redo logs, journals)?
    pub fn is_log_file(&self) -> bool {
        self.named_log.load(Ordering::Relaxed) || self.behaves_as_log.load(Ordering::Relaxed)
    }

    pub(super) fn set_named_log(&self, named: bool) {
        self.named_log.store(named, Ordering::Relaxed);
    }

    /// True if the file was not yet on the checkpoint's list; the caller puts it there.
    pub(super) fn list_dirty(&self) -> bool {
        !self.listed_dirty.load(Ordering::Relaxed) && !self.listed_dirty.swap(true, Ordering::AcqRel)
    }

    /// The next checkpoint has to look at it.
    pub(super) fn is_listed_dirty(&self) -> bool {
        self.listed_dirty.load(Ordering::Acquire)
    }

    pub(super) fn unlist_dirty(&self) {
        self.listed_dirty.store(false, Ordering::Release);
    }

    /// A write of `offset..end` happened. It continues the streak if it starts where the last one ended or rewrites the last page.
    pub(super) fn note_write(&self, offset: u64, end: u64) {
        let last_end = self.streak_end.swap(end, Ordering::Relaxed);
        let continues = offset <= last_end && end >= last_end && last_end.saturating_sub(offset) < 64 * 1024;
        self.written_since_sync.store(true, Ordering::Relaxed);
        if !continues {
            self.streak.store(0, Ordering::Relaxed);
            self.behaves_as_log.store(false, Ordering::Relaxed);
        }
    }

    /// A sync happened: a long enough streak of written-in-sequence-and-synced makes a log file.
    pub(super) fn note_sync(&self) {
        if self.written_since_sync.swap(false, Ordering::Relaxed)
            && self.streak.fetch_add(1, Ordering::Relaxed) + 1 >= LOG_STREAK
        {
            self.behaves_as_log.store(true, Ordering::Relaxed);
        }
    }
}

impl Inner {
    pub fn row(&self, log_file: bool) -> FileRow {
        FileRow { size_bytes: self.size_bytes, mtime: self.mtime, ctime: self.ctime, log_file }
    }

    /// Counts blocks after a map was loaded.
    pub fn recount(&mut self) {
        let counts = self.map.counts();
        (self.image_blocks, self.promised_blocks) = (counts.images, counts.promised);
        self.stored_blocks = counts.stored;
    }

    pub fn touch(&mut self, now: WallNs) {
        self.mtime = Some(now);
        self.ctime = Some(now);
        self.row_dirty = true;
    }

    /// Nothing of it is only in memory.
    pub fn is_at_rest(&self) -> bool {
        let clean = !self.map.is_dirty() && !self.changes.is_dirty() && !self.row_dirty;
        clean && self.overlay.is_empty() && self.layers.is_empty() && !self.layers.is_dirty() && !self.removed
    }

    /// Bytes of images from here on are needed by nobody, neither now nor for a mark.
    pub fn size_needed(&self) -> u64 {
        self.layers.size_needed(self.size_bytes)
    }

    pub fn has_hole(&self, block: BlockNo) -> bool {
        self.map.get(block).home == Home::Hole
    }
}

//! Pending marks across a mount: what was kept for them is found again, and nothing of it is lost to a crash.
//!
//! A mark is pending as long as its file is in staging; that file goes, durably, before anything kept for the mark does. Layers are rows of durable
//! state, as of the last checkpoint, and replay makes the rest of them again: a record after a marker keeps what was there before it. Only
//! bases may be newer than that; what was in them was saved first, by a batch that says of which mark it is. The bytes of a file as of a mark never
//! change, so it does not matter how often or in what order this is put together.

use super::marks::Mark;
use super::overlay::{Before, Extent, Origin};
use super::{File, Volume};
use crate::error::{Error, Result};
use crate::ondisk::kept::KeptRow;
use crate::units::{FileId, Lsn};
use std::collections::BTreeSet;
use std::sync::Arc;

impl Volume {
    /// Before replay: the marks whose files are there, and their layers as durable state has them.
    /// Returns the files that had been removed and are kept.
    pub(super) fn load_marks(&self) -> Result<Vec<FileId>> {
        let published = self.meta.lock().marked.parents.clone();
        for pending in self.staging.pending_marks()? {
            if published.iter().any(|parent| parent.snapshot == pending.snapshot) {
                self.staging.forget_mark(pending.epoch)?;
                continue;
            }
            self.marks.resume(Arc::new(Mark::from_file(&pending)));
        }
        let pending = self.marks.pending_epochs();
        self.staging.clear_images(&pending)?;
        match pending.is_empty() {
            true => self.staging.clear()?,
            false => self.staging.load()?,
        }
        let mut rows = Vec::new();
        self.state.for_each_layer(&mut |file, epoch, row| rows.push((file, epoch, row)))?;
        let (mut files, mut removed): (BTreeSet<FileId>, BTreeSet<FileId>) = Default::default();
        for (id, epoch, row) in rows {
            let file = self.file_for_replay(id)?;
            self.load_layer(&file, epoch, &row);
            files.insert(id);
            removed.extend(row.removed.then_some(id));
        }
        for id in files {
            let file = self.file_for_replay(id)?;
            let mut inner = file.write();
            // The layers of marks that have ended since; a layer is the newest first, so that it finds its heir.
            let ended: Vec<u32> =
                inner.layers.iter().map(|layer| layer.epoch).filter(|epoch| !pending.contains(epoch)).collect();
            for epoch in ended.into_iter().rev() {
                inner.layers.end(epoch, &pending, &mut self.kept_ledger());
            }
            if !inner.layers.is_empty() {
                self.marks.files.lock().insert(id);
            } else {
                removed.remove(&id);
            }
            drop(inner);
            self.list_dirty(&file);
        }
        Ok(removed.into_iter().collect())
    }

    fn load_layer(&self, file: &File, epoch: u32, row: &KeptRow) {
        let mut inner = file.write();
        inner.layers.begin(epoch, row.size_bytes, row.mtime);
        let Some(layer) = inner.layers.newest() else { return };
        for &(start, end, origin) in &row.extents {
            layer.kept.insert(Extent { start, end, source: Before::unpack(origin) }, &mut self.kept_ledger());
        }
    }

    /// During replay: the marks that the record at `lsn` comes after are those that it may have to keep something for.
    pub(super) fn replay_reaches(&self, lsn: Lsn) {
        self.marks.activate(Some(lsn));
    }

    /// After replay: bases that are newer than a mark were saved before; what cannot be found again fails the marks.
    /// `removed`: what [`Volume::load_marks`] returned; replay has brought them back.
    pub(super) fn join_staged(&self, removed: &[FileId]) -> Result<()> {
        self.marks.activate(None);
        for &id in removed {
            let file = self.file_for_replay(id)?;
            let mut inner = file.write();
            inner.removed = true;
            self.drop_content(&mut inner);
        }
        let pending = self.marks.pending_epochs();
        let mut saved = self.staging.take_saved_bases();
        saved.sort_by_key(|entry| entry.epoch);
        for entry in saved {
            // A mark that ended since has left what it kept to the one before it.
            let Some(&epoch) = pending.iter().rev().find(|&&epoch| epoch <= entry.epoch) else { continue };
            let Some(file) = self.files.read().get(&entry.file).cloned() else { continue };
            let staged = Before::Staged(entry.at);
            file.write().layers.replace_base_of(epoch, entry.start, entry.end, staged, &mut self.kept_ledger());
        }
        if let Some(why) = self.missing_for_marks() {
            while self.fail_oldest_mark(&why) {}
        }
        Ok(())
    }

    /// Does a layer point at staged bytes that are not there?
    fn missing_for_marks(&self) -> Option<String> {
        let ids: Vec<FileId> = self.marks.files.lock().iter().copied().collect();
        for id in ids {
            let Some(file) = self.files.read().get(&id).cloned() else { continue };
            let inner = file.read();
            for kept in inner.layers.iter().flat_map(|layer| layer.kept.iter()) {
                if let Before::Staged(address) = kept.source
                    && !self.staging.holds(address, kept.len())
                {
                    return Some(format!("staged bytes of file {id} at {} are not there any more", kept.start));
                }
            }
        }
        None
    }

    /// The volume ends in order, with an empty log: what pending marks have there goes to staging.
    pub(super) fn leave_marks_pending(&self) -> Result<()> {
        self.sync_log()?;
        for mark in self.pending_marks() {
            match self.wait_for_mark(&mark) {
                Ok(()) | Err(Error::SnapshotFailed { .. }) => {}
                Err(error) => return Err(error),
            }
        }
        self.unpin_log(u64::MAX)
    }
}

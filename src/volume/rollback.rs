//! Rolling back: the volume becomes a snapshot by one transaction, and what it was stays beside it until that is confirmed or undone.
//!
//! The snapshot's files get ids that were never issued, so that the two roots share nothing: no row, no chunk of a map, no object. Whose a file is is told by its
//! id alone ([`Rollback::first_file`]). So the switch only adds rows; undoing or confirming it is a word in the volume's row, and then the removal of all files on
//! one side of that id, as often as it takes. The price is that nothing of the old files is used again, though most of their blocks may be what the snapshot has.
//!
//! The log is empty at the switch and nobody writes to the old root after it, so that each record from then on is of the new one.

use super::source::{ClonedFile, rows_of};
use super::state::{Fate, Rollback, State};
use super::status::RollbackStatus;
use super::{Tier, Volume};
use crate::error::{Error, Result};
use crate::units::{FileId, WallNs};
use std::sync::atomic::Ordering;

impl Volume {
    /// Rolls a volume back that nobody has open and that was shut down: from this transaction on it is made of `files` of the snapshot, whose ids must never have been
    /// issued. It knows no parent any more for a next snapshot: the files of those are others (R16). Errors: `Busy` if it was rolled back before, or needs
    /// a repository still; `Invalid`.
    pub fn roll_back(fastest: &Tier, files: &[ClonedFile], snapshot: &str, at: WallNs) -> Result<Rollback> {
        let (state, mut meta) = State::open(&fastest.device)?;
        if meta.rollback.is_some() || meta.needs_repository() {
            return Err(Error::Busy("the volume was made of a snapshot, and has not settled since".to_owned()));
        }
        if !meta.clean {
            return Err(Error::Busy("the volume was not shut down: its log may hold what no base has".to_owned()));
        }
        let first_file = FileId(meta.file_id_limit);
        if let Some(issued) = files.iter().find(|file| file.file < first_file) {
            return Err(Error::Invalid(format!(
                "file {} of the snapshot has an id that was issued before",
                issued.file
            )));
        }
        let changes = rows_of(files, &mut meta)?;
        meta.marked.parents.clear();
        let rollback = Rollback { first_file, snapshot: snapshot.to_owned(), at, fate: Fate::Open };
        meta.rollback = Some(rollback.clone());
        state.commit(&meta, &changes)?;
        Ok(rollback)
    }

    /// Decides on a rollback of a volume that nobody has open: from this transaction on there is no way back. Errors: `NotFound` without one, `Busy` if it was
    /// decided the other way.
    pub fn decide_rollback(fastest: &Tier, fate: Fate) -> Result<()> {
        let (state, mut meta) = State::open(&fastest.device)?;
        match &mut meta.rollback {
            None => return Err(Error::NotFound("the volume was not rolled back".to_owned())),
            Some(rollback) if rollback.fate == fate => return Ok(()),
            Some(rollback) if rollback.fate == Fate::Open => rollback.fate = fate,
            Some(_) => return Err(Error::Busy("what becomes of the rollback was decided already".to_owned())),
        }
        if fate == Fate::Undone {
            // What was published meanwhile is of files that go.
            meta.marked.parents.clear();
        }
        state.commit(&meta, &Default::default())
    }

    /// Removes what goes, now that it is decided: rows, records and objects; may be repeated. That the objects are gone is durable only with [`Volume::end_rollback`].
    /// Errors: also `Busy` if something could not be removed.
    pub fn drop_losing_root(&self) -> Result<()> {
        for id in self.losing_files()? {
            self.remove(id)?;
        }
        self.checkpoint()?;
        // The first one frees what the maps name; the second finds that nothing is in the repository.
        self.checkpoint()?;
        match self.losing_files()?.first() {
            None => Ok(()),
            Some(id) => Err(Error::Busy(format!("file {id} is to go with a rollback, and is still there"))),
        }
    }

    /// Files on the side that goes of which there is a row, a record or an object.
    fn losing_files(&self) -> Result<Vec<FileId>> {
        let Some(rollback) = self.rollback() else { return Ok(Vec::new()) };
        let limit = self.meta.lock().file_id_limit;
        let mut ids = self.state.file_ids()?;
        ids.extend(self.files.read().keys().copied());
        for objects in &self.objects {
            ids.extend(objects.list()?);
        }
        ids.sort_unstable();
        ids.dedup();
        // An object of a file that was never issued is for `check` to name.
        ids.retain(|id| id.0 > 0 && id.0 < limit && rollback.is_going(*id));
        Ok(ids)
    }

    /// The last step, of a volume that nobody has open: all that was to be done is made durable, what was removed included, and the volume is one like any other.
    pub fn end_rollback(tiers: &[Tier]) -> Result<()> {
        for tier in tiers {
            tier.device.sync_all().map_err(|e| Error::io("sync", tier.device.path(), e))?;
        }
        let Some(fastest) = tiers.first() else { return Ok(()) };
        let (state, mut meta) = State::open(&fastest.device)?;
        if meta.rollback.take().is_some_and(|rollback| rollback.fate == Fate::Open) {
            return Err(Error::Busy("the rollback is neither confirmed nor undone".to_owned()));
        }
        state.commit(&meta, &Default::default())
    }

    /// As long as there are two roots.
    pub fn rollback(&self) -> Option<Rollback> {
        self.meta.lock().rollback.clone()
    }

    /// Is it a file of what the volume was before it was rolled back? Nobody may meet one: it is neither read nor written until that is undone.
    pub fn is_set_aside(&self, file: FileId) -> bool {
        self.meta.lock().rollback.as_ref().is_some_and(|rollback| rollback.is_from_before(file))
    }

    pub(super) fn rollback_status(&self) -> Option<RollbackStatus> {
        let rollback = self.rollback()?;
        let kept_bytes = self.kept_blocks.load(Ordering::Relaxed) * self.block_bytes();
        Some(RollbackStatus { snapshot: rollback.snapshot, at: rollback.at, kept_bytes })
    }
}

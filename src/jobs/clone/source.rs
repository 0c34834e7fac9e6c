//! The snapshot behind a clone, as the engine reads it: opened when it is first needed, and anew after it failed, since a repository may be on a disk that
//! comes back.

use super::note::CloneNote;
use crate::error::{Error, Result};
use crate::jobs::snapshot::{Reopening, SnapshotContent, open_repository};
use crate::repository::SnapshotId;
use crate::units::FileId;
use crate::volume::SourceSnapshot;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// A snapshot in a repository that may come and go.
pub struct RepositorySource {
    note: CloneNote,
    /// Where the repository may be if it is not where it was: what the settings say.
    elsewhere: Option<(PathBuf, Option<PathBuf>)>,
    content: Reopening<(), SnapshotContent>,
}

impl RepositorySource {
    /// Opens nothing yet. `elsewhere`: directory and key file of the repository that the settings name.
    pub fn new(note: CloneNote, elsewhere: Option<(PathBuf, Option<PathBuf>)>) -> RepositorySource {
        RepositorySource { note, elsewhere, content: Reopening::default() }
    }

    pub fn note(&self) -> &CloneNote {
        &self.note
    }

    /// Opens the repository if it is not open. Errors: what keeps it from being read, with the path at which it was when the clone was made.
    pub fn open(&self) -> Result<()> {
        self.opened().map(drop)
    }

    /// Nothing needs the snapshot any more: lets it go. May be repeated.
    pub fn let_go(&self) -> Result<()> {
        match self.opened()?.repository.drop_ref(&self.note.reference) {
            Err(Error::NotFound(_)) => Ok(()),
            dropped => dropped,
        }
    }

    fn opened(&self) -> Result<Arc<SnapshotContent>> {
        self.content.get((), || self.find())
    }

    fn find(&self) -> Result<SnapshotContent> {
        let first = self.open_at(&self.note.repository, self.note.key_file.as_deref());
        match (&self.elsewhere, first) {
            (Some((path, key_file)), Err(first)) => {
                self.open_at(path, key_file.as_deref().or(self.note.key_file.as_deref())).map_err(|_| first)
            }
            (_, first) => first,
        }
    }

    fn open_at(&self, path: &Path, key_file: Option<&Path>) -> Result<SnapshotContent> {
        let repository = open_repository(path, key_file)?;
        if repository.id() != self.note.repository_id {
            return Err(Error::Invalid(format!(
                "{}: this is another repository ({}) than the one that the clone was made from ({})",
                path.display(),
                repository.id(),
                self.note.repository_id
            )));
        }
        let id: SnapshotId = self.note.snapshot.parse()?;
        let root = repository.snapshot(id)?.root;
        Ok(SnapshotContent::new(repository, root))
    }

    /// Reads from the snapshot; what failed is opened anew by the next one.
    fn with<T>(&self, read: impl FnOnce(&SnapshotContent) -> Result<T>) -> Result<T> {
        let opened = self.opened()?;
        read(&opened).inspect_err(|_| self.content.forget(&opened))
    }
}

impl SourceSnapshot for RepositorySource {
    fn read(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.with(|content| content.read(file, offset, buf))
    }

    fn is_hole(&self, file: FileId, start: u64, end: u64) -> Result<bool> {
        self.with(|content| content.is_hole(file, start, end))
    }
}

//! The files of a snapshot in an open repository, as the engine reads them; and published snapshots by the names of their marks.

use super::mark_of;
use super::reopening::Reopening;
use crate::error::{Error, Result};
use crate::repository::{FileState, Repository, Root};
use crate::units::FileId;
use crate::volume::{SnapshotStore, SourceSnapshot};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// What is known of files is forgotten when there are so many.
const FILES_KNOWN_MAX: usize = 1 << 17;

/// See the module's head.
pub struct SnapshotContent {
    pub repository: Repository,
    root: Root,
    files: Mutex<HashMap<FileId, FileState>>,
}

impl SnapshotContent {
    pub fn new(repository: Repository, root: Root) -> SnapshotContent {
        SnapshotContent { repository, root, files: Mutex::default() }
    }

    fn state(&self, file: FileId) -> Result<FileState> {
        if let Some(state) = self.files.lock().get(&file) {
            return Ok(*state);
        }
        let state = self.repository.reopen(&self.root).file(file)?.state;
        let mut files = self.files.lock();
        if files.len() >= FILES_KNOWN_MAX {
            files.clear();
        }
        files.insert(file, state);
        Ok(state)
    }
}

impl SourceSnapshot for SnapshotContent {
    fn read(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let filled = self.repository.content(file, self.state(file)?).read(offset, buf)?;
        buf.get_mut(filled..).unwrap_or_default().fill(0);
        Ok(())
    }

    fn is_hole(&self, file: FileId, start: u64, end: u64) -> Result<bool> {
        let content = self.repository.content(file, self.state(file)?);
        let mut at = start;
        while at < end {
            match content.run(at)? {
                None => return Ok(true),
                Some(run) if !run.hole => return Ok(false),
                Some(run) => at = run.end,
            }
        }
        Ok(true)
    }
}

/// Opens a volume's repository.
pub type OpenRepository = Box<dyn Fn() -> Result<Repository> + Send + Sync>;

/// The published snapshots of a volume: its repository is opened when one is first asked for, and anew after it failed.
pub struct PublishedSnapshots {
    open: OpenRepository,
    /// By its mark.
    latest: Reopening<Uuid, SnapshotContent>,
}

impl PublishedSnapshots {
    /// Opens nothing yet.
    pub fn new(open: OpenRepository) -> PublishedSnapshots {
        PublishedSnapshots { open, latest: Reopening::default() }
    }

    /// Lets go of a repository that nobody has asked for in so long: its disk may be one that is taken away.
    pub fn close_idle(&self, after: Duration) {
        self.latest.close_idle(after);
    }

    fn opened(&self, mark: Uuid) -> Result<Arc<SnapshotContent>> {
        self.latest.get(mark, || self.find(mark))
    }

    fn find(&self, mark: Uuid) -> Result<SnapshotContent> {
        let repository = (self.open)()?;
        let root = repository.snapshots()?.into_iter().rev().find(|root| mark_of(root) == Some(mark));
        let missing =
            || Error::NotFound("the snapshot that the volume last published is not in its repository".to_owned());
        Ok(SnapshotContent::new(repository, root.ok_or_else(missing)?))
    }
}

impl SnapshotStore for PublishedSnapshots {
    /// What fails is tried once more with a repository that is opened anew: it may have been pruned, or have gone and come back.
    fn read(&self, mark: Uuid, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let content = self.opened(mark)?;
        if content.read(file, offset, buf).is_ok() {
            return Ok(());
        }
        self.latest.forget(&content);
        let content = self.opened(mark)?;
        content.read(file, offset, buf).inspect_err(|_| self.latest.forget(&content))
    }
}

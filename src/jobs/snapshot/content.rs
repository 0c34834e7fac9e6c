//! The files of a snapshot in an open repository, as the engine reads them; and published snapshots by the names of their marks.

use super::mark_of;
use crate::device::clock::{Instant, monotonic_now};
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
/// Between two tries to open a repository that failed: whoever asks meanwhile hears what the last one said.
const RETRY: Duration = Duration::from_secs(1);

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
    now: Mutex<Now>,
}

#[derive(Default)]
struct Now {
    /// By its mark, and when it was last asked for.
    opened: Option<(Uuid, Arc<SnapshotContent>, Instant)>,
    /// When opening failed last, for which mark, and why.
    failed: Option<(Instant, Uuid, String)>,
}

impl PublishedSnapshots {
    /// Opens nothing yet.
    pub fn new(open: OpenRepository) -> PublishedSnapshots {
        PublishedSnapshots { open, now: Mutex::default() }
    }

    /// Lets go of a repository that nobody has asked for in so long: its disk may be one that is taken away.
    pub fn close_idle(&self, after: Duration) {
        let mut now = self.now.lock();
        if now.opened.as_ref().is_some_and(|(.., asked)| asked.elapsed() >= after) {
            now.opened = None;
        }
    }

    /// The lock is held while the repository is opened: whoever comes meanwhile would only do the same.
    fn opened(&self, mark: Uuid) -> Result<Arc<SnapshotContent>> {
        let mut now = self.now.lock();
        if let Some((_, opened, asked)) = now.opened.as_mut().filter(|(known, ..)| *known == mark) {
            *asked = monotonic_now();
            return Ok(Arc::clone(opened));
        }
        if let Some((at, _, why)) = now.failed.as_ref().filter(|(_, known, _)| *known == mark)
            && at.elapsed() < RETRY
        {
            return Err(Error::NotFound(why.clone()));
        }
        match self.find(mark) {
            Ok(content) => {
                let content = Arc::new(content);
                *now = Now { opened: Some((mark, Arc::clone(&content), monotonic_now())), failed: None };
                Ok(content)
            }
            Err(error) => {
                *now = Now { opened: None, failed: Some((monotonic_now(), mark, error.to_string())) };
                Err(error)
            }
        }
    }

    fn find(&self, mark: Uuid) -> Result<SnapshotContent> {
        let repository = (self.open)()?;
        let root = repository.snapshots()?.into_iter().rev().find(|root| mark_of(root) == Some(mark));
        let missing =
            || Error::NotFound("the snapshot that the volume last published is not in its repository".to_owned());
        Ok(SnapshotContent::new(repository, root.ok_or_else(missing)?))
    }

    fn forget(&self, content: &Arc<SnapshotContent>) {
        let mut now = self.now.lock();
        if now.opened.as_ref().is_some_and(|(_, current, _)| Arc::ptr_eq(current, content)) {
            now.opened = None;
        }
    }
}

impl SnapshotStore for PublishedSnapshots {
    /// What fails is tried once more with a repository that is opened anew: it may have been pruned, or have gone and come back.
    fn read(&self, mark: Uuid, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()> {
        let content = self.opened(mark)?;
        if content.read(file, offset, buf).is_ok() {
            return Ok(());
        }
        self.forget(&content);
        let content = self.opened(mark)?;
        content.read(file, offset, buf).inspect_err(|_| self.forget(&content))
    }
}

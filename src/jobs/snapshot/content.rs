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

#[cfg(test)]
mod tests {
    use super::{PublishedSnapshots, RETRY};
    use crate::device::real::RealDevice;
    use crate::error::{Error, Result};
    use crate::jobs::snapshot::{LABEL_MARK, open_repository};
    use crate::repository::{
        Consistency, InitOptions, PACK_BYTES, Repository, SnapshotId, SnapshotMeta, WriterOptions,
    };
    use crate::units::{FileId, Lsn, WallNs};
    use crate::volume::SnapshotStore;
    use std::collections::BTreeMap;
    use std::path::{Path, PathBuf};
    use std::time::Duration;
    use uuid::Uuid;

    const FILE: FileId = FileId(7);
    const PAGE: usize = 8192;

    /// A snapshot of one file whose pages hold `byte`, `byte + 1` and so on.
    fn store(repository: &Repository, mark: Uuid, byte: u8) -> SnapshotId {
        let volume = Uuid::from_u128(1);
        let (parent, search_repository, parent_of_other_volume) = (None, false, false);
        let options = WriterOptions { volume, parent, now: WallNs(1), search_repository, parent_of_other_volume };
        let writer = repository.begin(options).expect("begun");
        let mut update = writer.file(FILE, 20 * PAGE as u64, 8192).expect("a file");
        for (page, byte) in (byte..).take(20).enumerate() {
            let bytes: Vec<u8> = (0..PAGE).map(|at| byte.wrapping_add((at % 97) as u8)).collect();
            update.put((page * PAGE) as u64, &bytes).expect("stored");
        }
        update.finish().expect("stored");
        let names = writer.end_namespace(writer.namespace()).expect("no names");
        let labels = BTreeMap::from([(LABEL_MARK.to_owned(), mark.to_string())]);
        let (lsn, taken, consistency) = (Lsn(1), WallNs(1), Consistency::Crash);
        let meta = SnapshotMeta { lsn, epoch: 1, taken, consistency, labels, backup_label: Vec::new() };
        writer.commit(names, meta).expect("published").id
    }

    fn published(path: &Path) -> PublishedSnapshots {
        let path = path.to_owned();
        PublishedSnapshots::new(Box::new(move || open_repository(&path, None)))
    }

    fn page(snapshots: &PublishedSnapshots, mark: u128, file: FileId, page: usize) -> Result<(u8, u8)> {
        let mut buf = vec![0xee; PAGE];
        snapshots.read(Uuid::from_u128(mark), file, (page * PAGE) as u64, &mut buf)?;
        Ok((buf[0], buf[PAGE - 1].wrapping_sub(((PAGE - 1) % 97) as u8)))
    }

    fn files_below(path: &Path) -> Vec<PathBuf> {
        let entries = std::fs::read_dir(path).expect("readable").map(|entry| entry.expect("an entry").path());
        entries.flat_map(|entry| if entry.is_dir() { files_below(&entry) } else { vec![entry] }).collect()
    }

    #[test]
    fn a_published_snapshot_is_read_by_its_mark_or_not_at_all() {
        let directory = tempfile::tempdir().expect("a directory");
        let device = RealDevice::open(directory.path()).expect("a device");
        let options = InitOptions { key: None, pack_bytes: PACK_BYTES, now: WallNs(0) };
        let repository = Repository::init(device, &options).expect("a repository");
        store(&repository, Uuid::from_u128(1), 10);
        let second = store(&repository, Uuid::from_u128(2), 50);
        let snapshots = published(directory.path());
        assert_eq!(page(&snapshots, 1, FILE, 3).expect("there"), (13, 13));
        assert_eq!(page(&snapshots, 2, FILE, 3).expect("there"), (53, 53));
        assert_eq!(
            page(&snapshots, 2, FILE, 20).expect("past the end"),
            (0, 0_u8.wrapping_sub(((PAGE - 1) % 97) as u8))
        );
        assert!(matches!(page(&snapshots, 2, FileId(8), 0), Err(Error::NotFound(_))), "a file that was not there");
        assert!(matches!(page(&snapshots, 3, FILE, 0), Err(Error::NotFound(_))), "a mark without a snapshot");
        snapshots.close_idle(Duration::ZERO);
        assert_eq!(page(&snapshots, 2, FILE, 4).expect("opened again"), (54, 54));
        repository.delete(second).expect("deleted");
        snapshots.close_idle(Duration::ZERO);
        assert!(matches!(page(&snapshots, 2, FILE, 3), Err(Error::NotFound(_))));
        assert_eq!(page(&snapshots, 1, FILE, 3).expect("the other is there"), (13, 13));
    }

    /// I8: whatever rots in the repository, what is read is what was stored, or an error.
    #[test]
    fn a_rotten_repository_gives_the_right_bytes_or_none() {
        let directory = tempfile::tempdir().expect("a directory");
        let device = RealDevice::open(directory.path()).expect("a device");
        let options = InitOptions { key: None, pack_bytes: PACK_BYTES, now: WallNs(0) };
        store(&Repository::init(device, &options).expect("a repository"), Uuid::from_u128(1), 10);
        let mut refused = 0;
        for path in files_below(directory.path()) {
            let whole = std::fs::read(&path).expect("readable");
            for at in (0..whole.len()).step_by(whole.len() / 40 + 1) {
                let mut rotten = whole.clone();
                rotten[at] ^= 4;
                std::fs::write(&path, rotten).expect("rots");
                for number in [0, 7, 19] {
                    match page(&published(directory.path()), 1, FILE, number) {
                        Ok(bytes) => assert_eq!(bytes, (10 + number as u8, 10 + number as u8), "{path:?} at {at}"),
                        Err(_) => refused += 1,
                    }
                }
            }
            std::fs::write(&path, whole).expect("as before");
        }
        assert!(refused > 20, "only {refused} reads were refused");
    }

    /// A repository that is not there is not asked for again and again by everybody who reads; one that comes back is.
    #[test]
    fn a_repository_that_is_gone_is_left_alone_for_a_while() {
        let directory = tempfile::tempdir().expect("a directory");
        let (path, away) = (directory.path().join("repo"), directory.path().join("away"));
        std::fs::create_dir(&path).expect("made");
        let device = RealDevice::open(&path).expect("a device");
        let options = InitOptions { key: None, pack_bytes: PACK_BYTES, now: WallNs(0) };
        store(&Repository::init(device, &options).expect("a repository"), Uuid::from_u128(1), 10);
        let snapshots = published(&path);
        std::fs::rename(&path, &away).expect("gone");
        assert!(page(&snapshots, 1, FILE, 0).is_err());
        std::fs::rename(&away, &path).expect("back");
        assert!(page(&snapshots, 1, FILE, 0).is_err(), "what the last try said");
        std::thread::sleep(RETRY);
        assert_eq!(page(&snapshots, 1, FILE, 0).expect("back"), (10, 10));
    }
}

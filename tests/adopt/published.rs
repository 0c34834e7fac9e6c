//! Published snapshots as a volume asks for them: by the names of their marks, and the right bytes or none.

use heatfs::device::real::RealDevice;
use heatfs::error::{Error, Result};
use heatfs::jobs::snapshot::{PublishedSnapshots, open_repository};
use heatfs::repository::{
    Consistency, Entry, EntryKind, InitOptions, PACK_BYTES, Repository, SnapshotId, SnapshotMeta, WriterOptions,
};
use heatfs::units::{FileId, Lsn, WallNs};
use heatfs::volume::SnapshotStore;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;
use uuid::Uuid;

const FILE: FileId = FileId(7);
const PAGE: usize = 8192;
/// [`PublishedSnapshots`] asks again after a second.
const RETRY: Duration = Duration::from_millis(1100);

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
    let mut names = writer.namespace();
    let (kind, time) = (EntryKind::File { file: FILE }, WallNs(1));
    let (mode, uid, gid, xattrs, link) = (0o600, 0, 0, Vec::new(), 0);
    let entry = Entry { kind, mode, uid, gid, atime: time, mtime: time, ctime: time, xattrs, link };
    names.add(b"file", &entry).expect("named");
    let names = writer.end_namespace(names).expect("ended");
    let labels = BTreeMap::from([("heatfs.mark".to_owned(), mark.to_string())]);
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
    assert_eq!(page(&snapshots, 2, FILE, 20).expect("past the end"), (0, 0_u8.wrapping_sub(((PAGE - 1) % 97) as u8)));
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

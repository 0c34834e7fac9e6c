//! Snapshots of plain directories in a repository, as a volume would have taken them.

use crate::lab::{Entry as Was, Lab, snapshot};
use heatfs::device::real::RealDevice;
use heatfs::repository::{
    Consistency, Entry, EntryKind, InitOptions, PACK_BYTES, Repository, SnapshotId, SnapshotMeta, WriterOptions,
};
use heatfs::units::{FileId, Lsn, WallNs};
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

fn entry(was: &Was, kind: EntryKind) -> Entry {
    let time = WallNs(was.modified.0 * 1_000_000_000 + was.modified.1);
    let xattrs = was.xattrs.iter().map(|(name, value)| (name.clone().into_bytes(), value.clone())).collect();
    let (uid, gid) = was.owner;
    Entry { kind, mode: was.mode, uid, gid, atime: time, mtime: time, ctime: time, xattrs, link: 0 }
}

fn kind(top: &Path, path: &Path, was: &Was, ids: &mut HashMap<u64, FileId>) -> EntryKind {
    match was.kind {
        libc::S_IFDIR => EntryKind::Directory,
        libc::S_IFLNK => EntryKind::Symlink { target: was.content.clone() },
        libc::S_IFIFO => EntryKind::Fifo,
        libc::S_IFCHR => EntryKind::CharDevice { rdev: was.device },
        _ => {
            let inode = fs::symlink_metadata(top.join(path)).unwrap().ino();
            let next = FileId(ids.len() as u64 + 7);
            EntryKind::File { file: *ids.entry(inode).or_insert(next) }
        }
    }
}

/// A repository at `repo`.
pub fn init(lab: &Lab) -> Repository {
    fs::create_dir(lab.path("repo")).unwrap();
    let device = RealDevice::open(lab.path("repo")).unwrap();
    let how = InitOptions { key: None, pack_bytes: PACK_BYTES, now: WallNs(0) };
    Repository::init(device, &how).unwrap()
}

/// Stores what is in a directory, as a snapshot of the volume; and tells what that is.
pub fn store(repository: &Repository, was: &Path, volume: Uuid) -> (SnapshotId, BTreeMap<PathBuf, Was>) {
    let before = snapshot(was);
    let how =
        WriterOptions { volume, parent: None, now: WallNs(1), search_repository: false, parent_of_other_volume: false };
    let writer = repository.begin(how).unwrap();
    let (mut names, mut ids) = (writer.namespace(), HashMap::new());
    // As a namespace sorts: with zero bytes for slashes.
    let mut sorted: Vec<_> = before.iter().collect();
    sorted.sort_by_key(|(path, _)| {
        path.as_os_str().as_bytes().iter().map(|b| if *b == b'/' { 0 } else { *b }).collect::<Vec<_>>()
    });
    for (path, was_there) in sorted {
        let kind = kind(was, path, was_there, &mut ids);
        if let EntryKind::File { file } = kind
            && writer.parent_file(file).unwrap().is_none()
        {
            let mut update = writer.file(file, was_there.content.len() as u64, 8192).unwrap();
            // What is sparse in the directory is so in the snapshot.
            for (number, page) in was_there.content.chunks(8192).enumerate() {
                if page.iter().any(|byte| *byte != 0) {
                    update.put(number as u64 * 8192, page).unwrap();
                }
            }
            update.finish().unwrap();
        }
        names.add(path.as_os_str().as_bytes(), &entry(was_there, kind)).unwrap();
    }
    let names = writer.end_namespace(names).unwrap();
    let meta = SnapshotMeta {
        lsn: Lsn(1),
        epoch: 1,
        taken: WallNs(1),
        consistency: Consistency::Crash,
        labels: BTreeMap::new(),
        backup_label: Vec::new(),
    };
    (writer.commit(names, meta).unwrap().id, before)
}

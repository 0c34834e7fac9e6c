//! Making a volume of a snapshot in a repository, cut off at every step, and releasing it as plain files.

use crate::lab::{CutAt, Entry as Was, Lab, TIERS, assert_same, fill, options, snapshot};
use heatfs::device::real::RealDevice;
use heatfs::error::Result;
use heatfs::jobs::clone::{ClonePlan, CloneReport, attempt, clone, source_of};
use heatfs::jobs::{TierPlan, Watch};
use heatfs::repository::{
    Consistency, Entry, EntryKind, InitOptions, PACK_BYTES, Repository, SnapshotId, SnapshotMeta, WriterOptions,
};
use heatfs::units::{FileId, Lsn, WallNs};
use heatfs::volume::Volume;
use std::collections::{BTreeMap, HashMap};
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// A repository with a snapshot of something of everything, and what that is.
struct Stored {
    lab: Lab,
    repository: Repository,
    snapshot: SnapshotId,
    before: BTreeMap<PathBuf, Was>,
}

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

fn stored() -> Stored {
    let lab = Lab::fast();
    let was = lab.path("was");
    fs::create_dir(&was).unwrap();
    fill(&was);
    let before = snapshot(&was);
    fs::create_dir(lab.path("repo")).unwrap();
    let device = RealDevice::open(lab.path("repo")).unwrap();
    let how = InitOptions { key: None, pack_bytes: PACK_BYTES, now: WallNs(0) };
    let repository = Repository::init(device, &how).unwrap();
    let volume = Uuid::from_u128(0xabc);
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
        let kind = kind(&was, path, was_there, &mut ids);
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
    let snapshot = writer.commit(names, meta).unwrap().id;
    Stored { lab, repository, snapshot, before }
}

impl Stored {
    fn plan(&self) -> ClonePlan {
        ClonePlan {
            directory: self.lab.data(),
            tiers: self.lab.tiers(),
            options: options(),
            snapshot: self.snapshot,
            repository: self.lab.path("repo"),
            key_file: None,
        }
    }

    fn clone(&self, watch: &mut dyn Watch) -> Result<CloneReport> {
        clone(&self.repository, &self.plan(), watch)
    }

    fn refs(&self) -> usize {
        self.repository.refs().unwrap().len()
    }

    fn assert_untouched(&self, when: &str) {
        for name in TIERS {
            assert_eq!(fs::read_dir(self.lab.path(name)).unwrap().count(), 0, "{when}: {name}");
        }
        assert_eq!(self.refs(), 0, "{when}");
    }
}

#[test]
fn a_clone_is_released_as_what_the_snapshot_holds() {
    let stored = stored();
    let report = stored.clone(&mut ()).unwrap();
    assert_eq!((report.files, report.names), (5, stored.before.len() as u64));
    assert_eq!((stored.refs(), fs::metadata(stored.lab.data()).unwrap().mode() & 0o777), (1, 0o500));
    let source = source_of(&*RealDevice::open(stored.lab.path("nvme")).unwrap(), None).unwrap().expect("noted");
    assert_eq!(source.note().bytes, report.in_repository_bytes);
    assert!(report.in_repository_bytes < 12 << 20, "{report:?}");
    let found = stored.lab.check(true);
    assert_eq!(found.findings, vec![], "nothing is wrong with a clone");
    stored.lab.release().unwrap();
    assert_same(&snapshot(&stored.lab.data()), &stored.before, "released");
    stored.assert_untouched("released");
}

/// A crash at any step: the same command makes it anew; and before it is done nothing but that command takes it for a volume.
#[test]
fn r18_a_clone_cut_off_anywhere_is_made_anew() {
    let mut cut = 0;
    loop {
        let stored = stored();
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = attempt(&stored.repository, &stored.plan(), &mut watch);
        let at = format!("cut at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if outcome.is_err() {
            if stored.lab.path("nvme/heatfs.tier").exists() {
                let refused = stored.lab.release().unwrap_err().to_string();
                assert!(refused.contains("heatfs clone"), "{at}: {refused}");
            }
            stored.clone(&mut ()).unwrap_or_else(|e| panic!("{at}: {e}"));
        }
        assert_eq!(stored.refs(), 1, "{at}: one clone, one ref");
        stored.lab.release().unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_same(&snapshot(&stored.lab.data()), &stored.before, &at);
        stored.assert_untouched(&at);
        if outcome.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 20, "only {cut} steps");
}

/// A failure at any step leaves nothing: no name, no ref.
#[test]
fn r18_a_clone_that_fails_is_undone() {
    let mut cut = 0;
    loop {
        let stored = stored();
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = stored.clone(&mut watch);
        let at = format!("failed at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if outcome.is_ok() {
            break;
        }
        stored.assert_untouched(&at);
        let left = fs::read_dir(stored.lab.data()).map_or(0, Iterator::count);
        assert_eq!(left, 0, "{at}");
        cut += 1;
    }
    assert!(cut > 20, "only {cut} steps");
}

#[test]
fn a_snapshot_that_does_not_fit_is_refused() {
    let stored = stored();
    let small = |plan: TierPlan| TierPlan { budget_bytes: Some(64 << 10), ..plan };
    let plan = ClonePlan { tiers: stored.lab.tiers().into_iter().map(small).collect(), ..stored.plan() };
    let refused = clone(&stored.repository, &plan, &mut ()).unwrap_err().to_string();
    assert!(refused.contains("room for"), "{refused}");
    stored.assert_untouched("refused");
}

/// R18, I9: what a clone needs outlives the deletion of every other snapshot; the ref goes only with the last block.
#[test]
fn a_release_without_the_repository_changes_nothing() {
    let stored = stored();
    stored.clone(&mut ()).unwrap();
    assert!(stored.repository.delete(stored.snapshot).is_err_and(|e| e.to_string().contains("in use")));
    fs::rename(stored.lab.path("repo"), stored.lab.path("away")).unwrap();
    let refused = stored.lab.release().unwrap_err().to_string();
    assert!(refused.contains("repo"), "{refused}");
    assert!(stored.lab.check(true).findings.iter().all(|found| found.what.contains("repository")));
    fs::rename(stored.lab.path("away"), stored.lab.path("repo")).unwrap();
    stored.lab.release().unwrap();
    assert_same(&snapshot(&stored.lab.data()), &stored.before, "released in the end");
    stored.repository.delete(stored.snapshot).unwrap();
}

/// A program that does not know of repositories must not take such a volume for one with holes: the version says so until nothing is there.
#[test]
fn the_state_of_a_clone_is_of_a_later_version_until_it_is_hydrated() {
    let stored = stored();
    stored.clone(&mut ()).unwrap();
    let tiers = || {
        let tier = |plan: TierPlan| heatfs::volume::Tier {
            name: plan.name,
            device: RealDevice::open(&plan.path).unwrap(),
            budget_bytes: None,
            reserve_bytes: 0,
        };
        stored.lab.tiers().into_iter().map(tier).collect::<Vec<_>>()
    };
    assert_eq!(Volume::peek(&tiers()[0]).unwrap().version, 2);
    let source = source_of(&*tiers()[0].device, None).unwrap().expect("noted");
    let (volume, _) = Volume::open_with(tiers(), options(), Some(std::sync::Arc::new(source))).unwrap();
    for id in volume.files_in_repository().unwrap() {
        let file = volume.file(id).unwrap();
        while let Some(block) = volume.next_in_repository(&file, heatfs::units::BlockNo(0)) {
            volume.hydrate(&file, block, 4).unwrap();
        }
    }
    volume.shut_down().unwrap();
    drop(volume);
    assert_eq!(Volume::peek(&tiers()[0]).unwrap().version, 1);
}

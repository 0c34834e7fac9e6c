//! Making a volume of a snapshot in a repository, cut off at every step, and releasing it as plain files.

use crate::lab::{CutAt, Entry as Was, Lab, TIERS, assert_same, fill, options, snapshot};
use crate::stored::{init, store};
use heatfs::device::real::RealDevice;
use heatfs::error::Result;
use heatfs::jobs::clone::{ClonePlan, CloneReport, attempt, clone, source_of};
use heatfs::jobs::{TierPlan, Watch};
use heatfs::repository::{Repository, SnapshotId};
use heatfs::volume::Volume;
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;
use uuid::Uuid;

/// A repository with a snapshot of something of everything, and what that is.
struct Stored {
    lab: Lab,
    repository: Repository,
    snapshot: SnapshotId,
    before: BTreeMap<PathBuf, Was>,
}

fn stored() -> Stored {
    let lab = Lab::fast();
    let was = lab.path("was");
    fs::create_dir(&was).unwrap();
    fill(&was);
    let repository = init(&lab);
    let (snapshot, before) = store(&repository, &was, Uuid::from_u128(0xabc));
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

//! Somebody owns the directory that root restores into, or adopts, and does his worst at each moment that he could: he puts links in the place of directories, and tries
//! to read what is being written.
//!
//! He has the user id of nobody, for file access only, on the thread that does the work: between two reads of the repository, so that no race has to be won.

use crate::lab::{Lab, assert_same, fill, options, snapshot};
use crate::opening::Opening;
use crate::stored::{init, store};
use heatfs::device::Device;
use heatfs::device::real::RealDevice;
use heatfs::error::Result;
use heatfs::jobs::Watch;
use heatfs::jobs::adopt::{AdoptPlan, adopt};
use heatfs::jobs::restore::{InPlacePlan, RestorePlan, restore, restore_in_place};
use heatfs::jobs::snapshot::Tally;
use heatfs::repository::{Repository, SnapshotId};
use nix::unistd::{Uid, setfsuid};
use std::fs::{self, Permissions};
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use uuid::Uuid;

const NOBODY: u32 = 65534;

pub fn is_root() -> bool {
    let root = nix::unistd::geteuid().is_root();
    if !root {
        println!("NOT RUN: only root can restore for others");
        assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "HEATFS_REQUIRE_ALL is set");
    }
    root
}

pub fn as_nobody<T>(work: impl FnOnce() -> T) -> T {
    setfsuid(Uid::from_raw(NOBODY));
    let done = work();
    setfsuid(Uid::from_raw(0));
    done
}

struct Scene {
    lab: Lab,
    snapshot: SnapshotId,
    before: std::collections::BTreeMap<PathBuf, crate::lab::Entry>,
}

/// A snapshot of something of everything, in a lab that everybody may enter; beside it `outside`, which is everybody's to write to, and empty.
fn scene() -> Scene {
    let lab = Lab::fast();
    fs::set_permissions(lab.path(""), Permissions::from_mode(0o755)).unwrap();
    fs::create_dir(lab.path("was")).unwrap();
    fill(&lab.path("was"));
    fs::create_dir(lab.path("outside")).unwrap();
    let repository = init(&lab);
    let (snapshot, before) = store(&repository, &lab.path("was"), Uuid::from_u128(0xabc));
    Scene { lab, snapshot, before }
}

impl Scene {
    /// The repository on a disk that the attacker is told of.
    fn watched(&self, occasion: impl Fn() + Send + Sync + 'static) -> Repository {
        let disk: Arc<dyn Device> = RealDevice::open(self.lab.path("repo")).unwrap();
        let open = Box::new(move |disk: &dyn Device, path: &str, mode| {
            occasion();
            disk.open(path, mode)
        });
        Repository::open(Arc::new(Opening { device: disk, open }), None).unwrap()
    }

    /// A directory of the attacker's own, in one of his own.
    fn his(&self) -> PathBuf {
        let into = self.lab.path("his/into");
        fs::create_dir_all(&into).unwrap();
        for dir in [self.lab.path("his"), into.clone()] {
            chown(&dir, Some(NOBODY), Some(NOBODY)).unwrap();
        }
        into
    }

    fn assert_nothing_outside(&self) {
        let there: Vec<_> =
            fs::read_dir(self.lab.path("outside")).unwrap().map(|entry| entry.unwrap().path()).collect();
        assert!(there.is_empty(), "written outside: {there:?}");
    }
}

/// Puts links to `outside` where directories are, as far as he may; and reads what he can.
fn attack(into: &Path, outside: &Path, secrets_read: &AtomicUsize) {
    as_nobody(|| {
        for name in ["base", "base/1", "empty dir"] {
            let aside = into.join(format!("{}.aside", name.replace('/', " ")));
            if fs::rename(into.join(name), &aside).is_ok() {
                let _ = symlink(outside, into.join(name));
            }
        }
        for name in ["base/1/16384", "base/1/16385", "PG_VERSION", "sparse", "base.aside/1/16384"] {
            if fs::read(into.join(name)).is_ok_and(|bytes| bytes.iter().any(|byte| *byte != 0)) {
                secrets_read.fetch_add(1, Ordering::Relaxed);
            }
        }
    });
}

#[test]
fn a_restore_into_a_directory_of_others_is_not_led_out_of_it_nor_read_before_it_is_done() {
    if !is_root() {
        return;
    }
    let scene = scene();
    let (into, outside) = (scene.his(), scene.lab.path("outside"));
    let counts = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let (told, there) = (Arc::clone(&counts), into.clone());
    let repository = scene.watched(move || {
        let is_under_way = there.join("base").symlink_metadata().is_ok();
        told[0].fetch_add(usize::from(is_under_way), Ordering::Relaxed);
        attack(&there, &outside, &told[1]);
    });
    let plan = RestorePlan { only: Vec::new(), into: into.clone(), streams: 1 };
    restore(&repository.snapshot(scene.snapshot).unwrap(), &plan, &Tally::default()).unwrap();
    assert!(counts[0].load(Ordering::Relaxed) > 0, "he had no occasion");
    assert_eq!(counts[1].load(Ordering::Relaxed), 0, "files were read before they had their modes");
    assert_same(&snapshot(&into), &scene.before, "restored");
    scene.assert_nothing_outside();
}

/// He owns the directory above, and so he can put a link in the place of the whole.
#[test]
fn a_restore_whose_directory_is_replaced_goes_on_in_the_one_that_it_began_in() {
    if !is_root() {
        return;
    }
    let scene = scene();
    let (into, outside) = (scene.his(), scene.lab.path("outside"));
    let (there, aside) = (into.clone(), scene.lab.path("his/aside"));
    let moved_to = aside.clone();
    let repository = scene.watched(move || {
        // Before there is something in it, the one that he puts there is the one that was asked for.
        if there.join("base").symlink_metadata().is_ok() {
            as_nobody(|| {
                if fs::rename(&there, &aside).is_ok() {
                    symlink(&outside, &there).unwrap();
                }
            });
        }
    });
    let plan = RestorePlan { only: Vec::new(), into: into.clone(), streams: 1 };
    restore(&repository.snapshot(scene.snapshot).unwrap(), &plan, &Tally::default()).unwrap();
    assert!(into.is_symlink(), "he had no occasion");
    assert_same(&snapshot(&moved_to), &scene.before, "restored");
    scene.assert_nothing_outside();
}

#[test]
fn a_restore_in_place_of_others_is_not_led_out_nor_read_before_it_is_done() {
    if !is_root() {
        return;
    }
    let scene = scene();
    let (into, outside) = (scene.his(), scene.lab.path("outside"));
    // What is there is his, and everybody may read it; what comes is not.
    fs::create_dir_all(into.join("base/1")).unwrap();
    for name in ["base", "base/1", "base/1/16384", "base/1/16385", "PG_VERSION"] {
        let path = into.join(name);
        if !path.exists() {
            fs::write(&path, vec![0; 9000]).unwrap();
        }
        chown(&path, Some(NOBODY), Some(NOBODY)).unwrap();
    }
    let counts = Arc::new([const { AtomicUsize::new(0) }; 2]);
    let (told, there) = (Arc::clone(&counts), into.clone());
    let repository = scene.watched(move || {
        // Before it begins it is all his.
        told[0].fetch_add(1, Ordering::Relaxed);
        attack(&there, &outside, &told[1]);
    });
    let plan = InPlacePlan { into: into.clone(), streams: 1, delete: true, dry_run: false };
    restore_in_place(&repository.snapshot(scene.snapshot).unwrap(), &plan, &Tally::default()).unwrap();
    assert!(counts[0].load(Ordering::Relaxed) > 0, "he had no occasion");
    assert_eq!(counts[1].load(Ordering::Relaxed), 0, "files were read before they had their modes");
    assert_same(&snapshot(&into), &scene.before, "restored");
    scene.assert_nothing_outside();
}

/// The control file of another server was put aside: `global` was a link to its directory.
#[test]
fn a_restore_in_place_leaves_what_a_link_in_the_place_of_a_directory_leads_to() {
    let lab = Lab::fast();
    let was = lab.path("was");
    fs::create_dir_all(was.join("global")).unwrap();
    fs::write(was.join("global/pg_control"), "ours").unwrap();
    let other = lab.path("other server/global");
    fs::create_dir_all(&other).unwrap();
    fs::write(other.join("pg_control"), "theirs").unwrap();
    let into = lab.path("into");
    fs::create_dir(&into).unwrap();
    symlink(&other, into.join("global")).unwrap();
    let untouched = snapshot(&lab.path("other server"));
    let repository = init(&lab);
    let (id, before) = store(&repository, &was, Uuid::from_u128(0xabc));
    let plan = InPlacePlan { into: into.clone(), streams: 1, delete: false, dry_run: false };
    restore_in_place(&repository.snapshot(id).unwrap(), &plan, &Tally::default()).unwrap();
    assert_same(&snapshot(&lab.path("other server")), &untouched, "the other server");
    assert_same(&snapshot(&into), &before, "restored");
}

/// Puts a link to somebody else's directory in the place of the one that is adopted, just before it is taken.
struct Swap {
    data: PathBuf,
    target: PathBuf,
}

impl Watch for Swap {
    fn step(&mut self, what: &'static str) -> Result<()> {
        if what == "take directory" {
            fs::rename(&self.data, self.data.with_extension("aside")).unwrap();
            symlink(&self.target, &self.data).unwrap();
        }
        Ok(())
    }
}

#[test]
fn an_adoption_does_not_take_what_a_link_leads_to() {
    let lab = Lab::fast();
    for name in ["data", "victim"] {
        fs::create_dir(lab.path(name)).unwrap();
        fill(&lab.path(name));
    }
    let untouched = snapshot(&lab.path("victim"));
    let plan = AdoptPlan { directory: lab.data(), tiers: lab.tiers(), home: None, origin: None, options: options() };
    let mut swap = Swap { data: lab.data(), target: lab.path("victim") };
    let refused = adopt(&plan, &mut swap).unwrap_err().to_string();
    assert!(refused.contains("became something else"), "{refused}");
    assert_same(&snapshot(&lab.path("victim")), &untouched, "the victim");
    assert!(lab.data().is_symlink(), "what was taken is back");
}

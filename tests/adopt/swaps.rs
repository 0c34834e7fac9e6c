//! Somebody owns the directory above the one that root adopts, clones to or releases, or above the tiers. Before any single step of the work he puts a link in the place of what is his,
//! to where he may not write: nothing may be written, removed or changed there.
//!
//! He has the user id of nobody, for file access only, on the thread that does the work, so that no race has to be won.

use crate::attacks::{as_nobody, is_root};
use crate::lab::{Entry, Lab, TIERS, assert_same, bytes, fill, options, snapshot};
use crate::stored::{init, store};
use heatfs::device::real::RealDevice;
use heatfs::device::sys;
use heatfs::error::Result;
use heatfs::jobs::adopt::{AdoptPlan, adopt};
use heatfs::jobs::clone::{ClonePlan, clone};
use heatfs::jobs::release::{ReleasePlan, release};
use heatfs::jobs::rollback::{RollbackPlan, confirm, roll_back, undo};
use heatfs::jobs::{TierPlan, Watch};
use heatfs::repository::{Repository, SnapshotId};
use std::collections::BTreeMap;
use std::fs::{self, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use uuid::Uuid;

const NOBODY: u32 = 65534;

/// What he puts a link in the place of.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Place {
    /// The directory above the database's.
    Above,
    /// The database's directory.
    Directory,
    /// The directory above the tiers.
    Tiers,
}

/// What is in the directory that his links lead to.
#[derive(Clone, Copy, PartialEq, Debug)]
enum Outside {
    Nothing,
    /// Something of each name that heatfs could touch.
    Decoys,
    /// For the database's directory one of the same names, with nothing special about it.
    Alike,
}

struct Scene {
    lab: Lab,
    kind: Outside,
    outside: BTreeMap<PathBuf, Entry>,
    /// What the database's directory held.
    before: BTreeMap<PathBuf, Entry>,
}

impl Scene {
    fn new(outside: Outside) -> Scene {
        let lab = Lab::fast();
        fs::set_permissions(lab.path(""), Permissions::from_mode(0o755)).unwrap();
        for name in ["his", "his/above", "his/tiers"] {
            fs::create_dir(lab.path(name)).unwrap();
            chown(lab.path(name), Some(NOBODY), Some(NOBODY)).unwrap();
        }
        for name in TIERS {
            fs::create_dir(lab.path("his/tiers").join(name)).unwrap();
        }
        fs::create_dir(lab.path("his/above/data")).unwrap();
        fill(&lab.path("his/above/data"));
        let before = snapshot(&lab.path("his/above/data"));
        fs::create_dir(lab.path("outside")).unwrap();
        match outside {
            Outside::Nothing => {}
            Outside::Decoys => decoys(&lab.path("outside")),
            Outside::Alike => fill(&lab.path("outside/data")),
        }
        Scene { kind: outside, outside: snapshot(&lab.path("outside")), lab, before }
    }

    fn tiers(&self) -> Vec<TierPlan> {
        let mut tiers = self.lab.tiers();
        tiers.iter_mut().for_each(|tier| tier.path = self.lab.path("his/tiers").join(&tier.name));
        tiers
    }

    fn adoption(&self) -> AdoptPlan {
        AdoptPlan { directory: self.lab.path("his/above/data"), tiers: self.tiers(), ..self.lab.adoption() }
    }

    fn release_plan(&self) -> ReleasePlan {
        ReleasePlan { directory: self.lab.path("his/above/data"), tiers: self.tiers(), ..self.lab.release_plan() }
    }

    /// Puts the link there, if he may.
    fn swap(&self, place: Place) -> bool {
        let (name, target) = match place {
            Place::Above => ("his/above", "outside"),
            Place::Directory => ("his/above/data", "outside/data"),
            Place::Tiers => ("his/tiers", "outside"),
        };
        let path = self.lab.path(name);
        as_nobody(|| {
            let gone = fs::rename(&path, path.with_extension("aside"));
            // After it was taken there is nothing to put aside.
            (gone.is_ok() || path.symlink_metadata().is_err()) && symlink(self.lab.path(target), &path).is_ok()
        })
    }

    fn assert_untouched(&self, when: &str) {
        assert_same(&snapshot(&self.lab.path("outside")), &self.outside, when);
        let data = self.lab.path("outside/data");
        if data.exists() && self.can_be_immutable() {
            assert_eq!(
                is_immutable(&data),
                self.kind == Outside::Decoys,
                "{when}: what was immutable is no more, or now is"
            );
        }
    }

    fn can_be_immutable(&self) -> bool {
        let probe = self.lab.path("probe");
        fs::create_dir_all(&probe).unwrap();
        make_immutable(&probe);
        is_immutable(&probe)
    }
}

fn decoys(outside: &Path) {
    let roots = ["home/tree", "home/tree.new", "home/tree.before", "home/tree.gone"];
    let directories = ["home/grave", "objects/00", "log", "staging", "releasing/tree", "adopting/tree"];
    for name in roots.iter().chain(&directories) {
        let dir = outside.join("nvme").join(name);
        fs::create_dir_all(&dir).unwrap();
        fs::write(dir.join("precious"), "x").unwrap();
    }
    for name in ["state.redb", "heat.bin", "pins.json", "clone.json", "heatfs.tier", "heatfs.lock"] {
        fs::write(outside.join("nvme").join(name), "x").unwrap();
    }
    // What a link leads to is empty, so that a directory could be put in its place; and immutable, so that somebody would have to clear that.
    fs::create_dir(outside.join("data")).unwrap();
    make_immutable(&outside.join("data"));
}

fn make_immutable(path: &Path) {
    let open = File::open(path).unwrap();
    let flags = sys::inode_flags(open.as_fd()).unwrap_or(0);
    // Where that cannot be, the rest is tested all the same.
    let _ = sys::set_inode_flags(open.as_fd(), flags | sys::INODE_IMMUTABLE);
}

fn is_immutable(path: &Path) -> bool {
    let open = File::open(path).unwrap();
    sys::inode_flags(open.as_fd()).is_ok_and(|flags| flags & sys::INODE_IMMUTABLE != 0)
}

/// Before the step of a number he has his occasion; after it his link stays.
struct Occasion<'a> {
    scene: &'a Scene,
    place: Place,
    left: usize,
    swapped: bool,
    seen: Vec<&'static str>,
}

impl Watch for Occasion<'_> {
    fn step(&mut self, what: &'static str) -> Result<()> {
        self.seen.push(what);
        if self.left == 0 {
            self.swapped = self.scene.swap(self.place);
        }
        self.left = self.left.wrapping_sub(1);
        Ok(())
    }
}

/// Does `work` again and again, each time with his link put there before another step. Returns before which he could.
fn at_each_step(
    place: Place,
    prepare: impl Fn(&Scene),
    work: impl Fn(&Scene, &mut dyn Watch) -> Result<()>,
    then: impl Fn(&Scene, Result<()>, &str),
) -> Vec<&'static str> {
    let mut done = Vec::new();
    // Of tiers there is nothing to be made where nothing is.
    let outsides: &[Outside] = match place {
        Place::Tiers => &[Outside::Decoys],
        Place::Above => &[Outside::Nothing, Outside::Decoys],
        Place::Directory => &[Outside::Nothing, Outside::Decoys, Outside::Alike],
    };
    for outside in outsides.iter().copied() {
        let attempt = |left: usize| {
            let scene = Scene::new(outside);
            prepare(&scene);
            let mut watch = Occasion { scene: &scene, place, left, swapped: false, seen: Vec::new() };
            let outcome = work(&scene, &mut watch);
            let (swapped, seen) = (watch.swapped, watch.seen);
            (scene, outcome, swapped, seen)
        };
        let (_, undisturbed, _, steps) = attempt(usize::MAX);
        undisturbed.unwrap();
        for (at, step) in steps.iter().enumerate() {
            // Steps that are taken for each name are all the same.
            if at > 0 && steps[at - 1] == *step {
                continue;
            }
            let (scene, outcome, swapped, _) = attempt(at);
            let when = format!("{place:?} swapped before step {at}, {step}; {outside:?} outside");
            scene.assert_untouched(&when);
            if swapped {
                done.push(*step);
                then(&scene, outcome, &when);
            }
        }
    }
    done
}

fn adopted(scene: &Scene) {
    adopt(&scene.adoption(), &mut ()).unwrap();
}

fn released(scene: &Scene, watch: &mut dyn Watch) -> Result<()> {
    release(&scene.release_plan(), watch).map(drop)
}

fn has_adopted(scene: &Scene, watch: &mut dyn Watch) -> Result<()> {
    adopt(&scene.adoption(), watch).map(drop)
}

#[test]
fn a_release_below_a_directory_of_others_is_not_led_out_of_it() {
    if !is_root() {
        return;
    }
    let then = |scene: &Scene, outcome: Result<()>, when: &str| {
        outcome.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_same(&snapshot(&scene.lab.path("his/above.aside/data")), &scene.before, when);
    };
    let swaps = at_each_step(Place::Above, adopted, released, then);
    assert!(swaps.contains(&"coalesce") && swaps.contains(&"unprotect") && swaps.contains(&"swap"), "{swaps:?}");
}

#[test]
fn a_release_does_not_follow_a_link_in_the_place_of_its_directory() {
    if !is_root() {
        return;
    }
    // He may, where the directory cannot be made immutable, or was not there.
    let prepare = |scene: &Scene| {
        adopted(scene);
        let _ = std::process::Command::new("chattr").arg("-i").arg(scene.lab.path("his/above/data")).status();
    };
    let swaps = at_each_step(Place::Directory, prepare, released, |scene, outcome, when| {
        if let Err(error) = outcome {
            assert!(
                error.to_string().contains(&scene.lab.path("his/above/data").display().to_string()),
                "{when}: {error}"
            );
            fs::remove_file(scene.lab.path("his/above/data")).unwrap();
            release(&scene.release_plan(), &mut ()).unwrap_or_else(|error| panic!("{when}, again: {error}"));
            assert_same(&snapshot(&scene.lab.path("his/above/data")), &scene.before, when);
        }
    });
    assert!(swaps.contains(&"unprotect") && swaps.contains(&"swap"), "{swaps:?}");
}

#[test]
fn a_release_stays_in_its_tiers_whatever_is_put_in_the_place_of_the_directory_above_them() {
    if !is_root() {
        return;
    }
    let then = |scene: &Scene, outcome: Result<()>, when: &str| {
        outcome.unwrap_or_else(|error| panic!("{when}: {error}"));
        assert_same(&snapshot(&scene.lab.path("his/above/data")), &scene.before, when);
        for name in TIERS {
            let left = fs::read_dir(scene.lab.path("his/tiers.aside").join(name)).unwrap().count();
            assert_eq!(left, 0, "{when}: {name} is empty again");
        }
    };
    let swaps = at_each_step(Place::Tiers, adopted, released, then);
    assert!(swaps.contains(&"rename object") && swaps.contains(&"remove home"), "{swaps:?}");
}

#[test]
fn an_adoption_below_a_directory_of_others_is_not_led_out_of_it() {
    if is_root() {
        let swaps = at_each_step(
            Place::Above,
            |_| {},
            has_adopted,
            |scene, outcome, when| {
                comes_back(scene, outcome, "above", when);
            },
        );
        assert!(swaps.contains(&"take directory") && swaps.contains(&"mount point attributes"), "{swaps:?}");
    }
}

#[test]
fn an_adoption_stays_in_its_tiers_whatever_is_put_in_the_place_of_the_directory_above_them() {
    if is_root() {
        let swaps = at_each_step(
            Place::Tiers,
            |_| {},
            has_adopted,
            |scene, outcome, when| {
                comes_back(scene, outcome, "tiers", when);
            },
        );
        assert!(swaps.contains(&"engine") && swaps.contains(&"make mount point"), "{swaps:?}");
    }
}

#[test]
fn an_adoption_does_not_follow_a_link_in_the_place_of_its_directory() {
    if is_root() {
        let swaps = at_each_step(Place::Directory, |_| {}, has_adopted, |_, _, _| {});
        assert!(swaps.contains(&"take directory") && swaps.contains(&"make mount point"), "{swaps:?}");
    }
}

/// The snapshot that is stored of the scene.
fn stored(scene: &Scene) -> (Repository, SnapshotId) {
    let repository = Repository::open(RealDevice::open(scene.lab.path("repo")).unwrap(), None).unwrap();
    let snapshot = repository.snapshots().unwrap()[0].id;
    (repository, snapshot)
}

fn only_in_the_repository(scene: &Scene) {
    let data = scene.lab.path("his/above/data");
    store(&init(&scene.lab), &data, Uuid::from_u128(0xabc));
    fs::remove_dir_all(data).unwrap();
}

fn has_cloned(scene: &Scene, watch: &mut dyn Watch) -> Result<()> {
    let (repository, snapshot) = stored(scene);
    let plan = ClonePlan {
        directory: scene.lab.path("his/above/data"),
        tiers: scene.tiers(),
        options: options(),
        snapshot,
        repository: scene.lab.path("repo"),
        key_file: None,
    };
    clone(&repository, &plan, watch).map(drop)
}

#[test]
fn a_clone_below_a_directory_of_others_is_not_led_out_of_it() {
    if is_root() {
        let then = |scene: &Scene, outcome, when: &str| comes_back(scene, outcome, "above", when);
        let swaps = at_each_step(Place::Above, only_in_the_repository, has_cloned, then);
        assert!(swaps.contains(&"identities") && swaps.contains(&"mount point"), "{swaps:?}");
    }
}

#[test]
fn a_clone_does_not_follow_a_link_in_the_place_of_its_directory() {
    if !is_root() {
        return;
    }
    let swaps = at_each_step(Place::Directory, only_in_the_repository, has_cloned, |scene, outcome, when| {
        let data = scene.lab.path("his/above/data");
        if let Err(error) = outcome {
            assert!(error.to_string().contains(&data.display().to_string()), "{when}: {error}");
            fs::remove_file(&data).unwrap();
            has_cloned(scene, &mut ()).unwrap_or_else(|error| panic!("{when}, again: {error}"));
            release(&scene.release_plan(), &mut ()).unwrap_or_else(|error| panic!("{when}, released: {error}"));
            assert_same(&snapshot(&data), &scene.before, when);
        }
    });
    assert!(swaps.contains(&"identities") && swaps.contains(&"mount point"), "{swaps:?}");
}

#[test]
fn a_clone_stays_in_its_tiers_whatever_is_put_in_the_place_of_the_directory_above_them() {
    if is_root() {
        let then = |scene: &Scene, outcome, when: &str| comes_back(scene, outcome, "tiers", when);
        let swaps = at_each_step(Place::Tiers, only_in_the_repository, has_cloned, then);
        assert!(swaps.contains(&"engine") && swaps.contains(&"root"), "{swaps:?}");
    }
}

/// A volume, and a snapshot of what it was some time ago.
fn adopted_and_stored(scene: &Scene) {
    let was = scene.lab.path("was");
    fs::create_dir(&was).unwrap();
    fill(&was);
    fs::write(was.join("base/1/16384"), bytes(9, 200_000)).unwrap();
    fs::remove_file(was.join("sparse")).unwrap();
    let volume = adopt(&scene.adoption(), &mut ()).unwrap().volume;
    store(&init(&scene.lab), &was, volume);
}

fn has_rolled_back(scene: &Scene, watch: &mut dyn Watch) -> Result<()> {
    let (repository, snapshot) = stored(scene);
    let repository_at = scene.lab.path("repo");
    let plan =
        RollbackPlan { tiers: scene.tiers(), options: options(), snapshot, repository: repository_at, key_file: None };
    roll_back(&repository, &plan, watch).map(drop)
}

fn rolled_back(scene: &Scene) {
    adopted_and_stored(scene);
    has_rolled_back(scene, &mut ()).unwrap();
}

/// The volume is what is wanted, and nothing is left of the other root.
fn ends_as(scene: &Scene, want: &BTreeMap<PathBuf, Entry>, when: &str) {
    let home = scene.lab.path("his/tiers/nvme/home");
    for name in ["tree.new", "tree.before", "tree.gone"] {
        assert!(!home.join(name).exists(), "{when}: {name}");
    }
    release(&scene.release_plan(), &mut ()).unwrap_or_else(|error| panic!("{when}, released: {error}"));
    assert_same(&snapshot(&scene.lab.path("his/above/data")), want, when);
}

#[test]
fn a_rollback_stays_in_its_tiers_whatever_is_put_in_the_place_of_the_directory_above_them() {
    if !is_root() {
        return;
    }
    let swaps = at_each_step(Place::Tiers, adopted_and_stored, has_rolled_back, |scene, outcome, when| {
        outcome.unwrap_or_else(|error| panic!("{when}: {error}"));
        put_back(scene, "tiers");
        confirm(&scene.tiers(), &options(), &mut ()).unwrap_or_else(|error| panic!("{when}, confirmed: {error}"));
        ends_as(scene, &snapshot(&scene.lab.path("was")), when);
    });
    assert!(swaps.contains(&"rest") && swaps.contains(&"make root") && swaps.contains(&"switch"), "{swaps:?}");
}

#[test]
fn the_end_of_a_rollback_stays_in_its_tiers_whatever_is_put_in_the_place_of_the_directory_above_them() {
    if !is_root() {
        return;
    }
    let has_confirmed = |scene: &Scene, watch: &mut dyn Watch| confirm(&scene.tiers(), &options(), watch).map(drop);
    let swaps = at_each_step(Place::Tiers, rolled_back, has_confirmed, |scene, outcome, when| {
        outcome.unwrap_or_else(|error| panic!("{when}: {error}"));
        put_back(scene, "tiers");
        ends_as(scene, &snapshot(&scene.lab.path("was")), when);
    });
    assert!(swaps.contains(&"give up") && swaps.contains(&"remove names"), "{swaps:?}");
    let has_undone = |scene: &Scene, watch: &mut dyn Watch| undo(&scene.tiers(), &options(), watch).map(drop);
    let swaps = at_each_step(Place::Tiers, rolled_back, has_undone, |scene, outcome, when| {
        outcome.unwrap_or_else(|error| panic!("{when}: {error}"));
        put_back(scene, "tiers");
        ends_as(scene, &scene.before, when);
    });
    assert!(swaps.contains(&"switch back") && swaps.contains(&"remove names"), "{swaps:?}");
}

fn put_back(scene: &Scene, aside: &str) {
    let place = scene.lab.path("his").join(aside);
    fs::remove_file(&place).unwrap();
    fs::rename(place.with_extension("aside"), &place).unwrap();
}

/// He puts back what he put aside, and all is as it would have been.
fn comes_back(scene: &Scene, made: Result<()>, aside: &str, when: &str) {
    made.unwrap_or_else(|error| panic!("{when}: {error}"));
    put_back(scene, aside);
    release(&scene.release_plan(), &mut ()).unwrap_or_else(|error| panic!("{when}, released: {error}"));
    assert_same(&snapshot(&scene.lab.path("his/above/data")), &scene.before, when);
}

/// He needs no race where he has had all the time that the files were on the tiers.
#[test]
fn a_release_does_not_go_where_a_link_leads_since() {
    if !is_root() {
        return;
    }
    for outside in [Outside::Nothing, Outside::Decoys] {
        let scene = Scene::new(outside);
        adopted(&scene);
        assert!(scene.swap(Place::Above));
        let refused = release(&scene.release_plan(), &mut ()).unwrap_err().to_string();
        let to = format!(
            "--to {}",
            scene.lab.path("outside/data").canonicalize().unwrap_or(scene.lab.path("outside/data")).display()
        );
        assert!(refused.contains("were adopted from") && refused.contains(&to), "{refused}");
        scene.assert_untouched("refused");
        let said = ReleasePlan { directory: scene.lab.path("elsewhere"), elsewhere: true, ..scene.release_plan() };
        release(&said, &mut ()).unwrap();
        assert_same(&snapshot(&scene.lab.path("elsewhere")), &scene.before, "released elsewhere");
    }
}

//! Rolling a volume back, confirming and undoing it, each cut off at every step: what is served afterwards is the volume or the snapshot, whole, and what is
//! released at last is what it should be to the last attribute.

use crate::lab::{CutAt, Entry as Was, Lab, TIERS, assert_same, bytes, fill, options, snapshot};
use crate::stored::{init, store};
use heatfs::device::real::RealDevice;
use heatfs::error::{Error, Result};
use heatfs::jobs::check::CheckReport;
use heatfs::jobs::clone::source_of;
use heatfs::jobs::rollback::{RollbackPlan, RollbackReport, SettledReport, attempt, confirm, finish, roll_back, undo};
use heatfs::jobs::{TierPlan, Watch, orphans};
use heatfs::namespace::{Namespace, ROOT_INODE};
use heatfs::repository::{Repository, SnapshotId};
use heatfs::tier::identity::{Locks, Place, VolumeIdentity, begin_run, mark_stopped};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Meta, Severity, SourceSnapshot, Tier, Volume, Wait};
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Regular files by name.
type Contents = BTreeMap<String, Vec<u8>>;

/// An adopted volume, and a snapshot of what it was some time ago.
struct Rolled {
    lab: Lab,
    repository: Repository,
    snapshot: SnapshotId,
    now: BTreeMap<PathBuf, Was>,
    was: BTreeMap<PathBuf, Was>,
}

fn contents_of(tree: &BTreeMap<PathBuf, Was>) -> Contents {
    let files = tree.iter().filter(|(_, entry)| entry.kind == libc::S_IFREG);
    files.map(|(path, entry)| (path.to_str().unwrap().to_owned(), entry.content.clone())).collect()
}

fn rolled() -> Rolled {
    let lab = Lab::fast();
    for dir in ["was", "data"] {
        fs::create_dir(lab.path(dir)).unwrap();
        fill(&lab.path(dir));
    }
    // What happened since: dropped, made, renamed and changed.
    let data = lab.data();
    fs::remove_file(data.join("sparse")).unwrap();
    fs::write(data.join("base/1/20000"), bytes(9, 200_000)).unwrap();
    fs::rename(data.join("empty"), data.join("base/empty")).unwrap();
    fs::write(data.join("base/1/16384"), bytes(3, 150_001)).unwrap();
    let now = snapshot(&data);
    let volume = lab.adopt().unwrap().volume;
    let repository = init(&lab);
    let (snapshot, was) = store(&repository, &lab.path("was"), volume);
    Rolled { lab, repository, snapshot, now, was }
}

impl Rolled {
    fn plan(&self) -> RollbackPlan {
        RollbackPlan {
            tiers: self.lab.tiers(),
            options: options(),
            snapshot: self.snapshot,
            repository: self.lab.path("repo"),
            key_file: None,
        }
    }

    fn roll_back(&self) -> Result<RollbackReport> {
        roll_back(&self.repository, &self.plan(), &mut ())
    }

    /// And somebody works on it, who is killed every other time rather than stopped.
    fn roll_back_and_work(&self, time: usize, work: impl FnOnce(&Served)) {
        self.roll_back().unwrap();
        let served = self.mount();
        work(&served);
        match time.is_multiple_of(2) {
            true => served.crash(),
            false => served.stop(),
        }
    }

    fn confirm(&self, watch: &mut dyn Watch) -> Result<SettledReport> {
        confirm(&self.lab.tiers(), &options(), watch)
    }

    fn undo(&self, watch: &mut dyn Watch) -> Result<SettledReport> {
        undo(&self.lab.tiers(), &options(), watch)
    }

    fn tiers(&self) -> Vec<Tier> {
        let tier = |plan: TierPlan| Tier {
            name: plan.name,
            device: RealDevice::open(&plan.path).unwrap(),
            budget_bytes: None,
            reserve_bytes: 0,
        };
        self.lab.tiers().into_iter().map(tier).collect()
    }

    fn meta(&self) -> Meta {
        Volume::peek(&self.tiers()[0]).unwrap()
    }

    fn refs(&self) -> usize {
        self.repository.refs().unwrap().len()
    }

    fn home(&self, name: &str) -> PathBuf {
        self.lab.path("nvme/home").join(name)
    }

    fn mount(&self) -> Served {
        Served::new(self)
    }

    /// What a mount shows.
    fn shown(&self) -> Contents {
        let served = self.mount();
        let contents = served.contents();
        served.stop();
        contents
    }

    /// Names in home besides the volume's.
    fn other_trees(&self) -> Vec<&str> {
        ["tree.new", "tree.before", "tree.gone"].into_iter().filter(|name| self.home(name).exists()).collect()
    }

    fn objects(&self) -> Vec<FileId> {
        let mut ids: Vec<FileId> = Vec::new();
        for tier in TIERS {
            for dir in fs::read_dir(self.lab.path(tier).join("objects")).unwrap() {
                let names = fs::read_dir(dir.unwrap().path()).unwrap().map(|entry| entry.unwrap().file_name());
                ids.extend(names.map(|name| FileId(u64::from_str_radix(name.to_str().unwrap(), 16).unwrap())));
            }
        }
        ids
    }

    /// One root, nothing left of another, and plain files at last.
    fn assert_ends_as(&self, want: &BTreeMap<PathBuf, Was>, at: &str) {
        assert_shown(&self.shown(), &contents_of(want), at);
        assert_eq!((self.meta().rollback, self.other_trees()), (None, vec![]), "{at}");
        assert_eq!(no_damage(self.lab.check(true), at), 0, "{at}");
        self.lab.release().unwrap_or_else(|error| panic!("{at}: {error}"));
        assert_same(&snapshot(&self.lab.data()), want, at);
        for name in TIERS {
            assert_eq!(fs::read_dir(self.lab.path(name)).unwrap().count(), 0, "{at}: {name}");
        }
        assert_eq!(self.refs(), 0, "{at}");
    }
}

fn assert_shown(got: &Contents, want: &Contents, at: &str) {
    let names = |contents: &Contents| contents.keys().cloned().collect::<Vec<_>>();
    assert_eq!(names(got), names(want), "{at}");
    let other: Vec<_> = got.iter().filter(|(name, content)| want[*name] != **content).map(|(name, _)| name).collect();
    assert!(other.is_empty(), "{at}: {other:?} have another content");
}

/// The number of findings, none of which is damage.
fn no_damage(report: CheckReport, at: &str) -> usize {
    assert!(report.findings.iter().all(|found| found.severity == Severity::Notice), "{at}: {report:?}");
    report.findings.len()
}

/// A volume as the daemon opens it, but without a mount.
struct Served {
    places: Vec<Place>,
    id: VolumeIdentity,
    volume: Arc<Volume>,
    namespace: Arc<Namespace>,
    _locks: Locks,
}

impl Served {
    fn new(rolled: &Rolled) -> Served {
        let listed: Vec<_> = TIERS.iter().map(|name| ((*name).to_owned(), rolled.lab.path(name))).collect();
        let places = Place::open_all(&listed).unwrap();
        let locks = Locks::take(&listed).unwrap();
        let id = begin_run(&places).unwrap();
        let home = rolled.lab.path("nvme/home");
        finish(&home, &rolled.tiers(), &options(), &mut ()).unwrap();
        let source = source_of(&*places[0].device, None).unwrap();
        let source = source.map(|source| Arc::new(source) as Arc<dyn SourceSnapshot>);
        let (volume, recovery) = Volume::open_with(rolled.tiers(), options(), source).unwrap();
        let namespace = Namespace::open(&home, Arc::clone(&volume), id.volume).unwrap();
        if !recovery.was_clean {
            orphans::free(&home.join("tree"), id.volume, &volume, recovery.file_id_limit_before).unwrap();
        }
        Served { places, id, volume, namespace, _locks: locks }
    }

    fn contents(&self) -> Contents {
        let mut found = Contents::new();
        self.namespace
            .walk(&mut |visit| {
                if let Some(file) = &visit.file {
                    found.insert(visit.path.to_owned(), self.read(*file.as_ref().expect("an identity that fits")));
                }
                Ok(())
            })
            .unwrap();
        found
    }

    fn read(&self, file: FileId) -> Vec<u8> {
        let file = self.volume.file(file).unwrap();
        let mut content = vec![0; usize::try_from(file.size_bytes()).unwrap()];
        let read = self.volume.read(&file, 0, &mut content, Wait::Allowed).unwrap();
        assert_eq!(read, content.len());
        content
    }

    fn write(&self, name: &str, offset: u64, bytes: &[u8]) {
        let (_, file) = self.namespace.file_at(name).unwrap();
        self.volume.write(&file, offset, bytes, Wait::Allowed).unwrap();
        self.volume.sync_log().unwrap();
    }

    fn hydrate(&self) {
        for id in self.volume.files_in_repository().unwrap() {
            let file = self.volume.file(id).unwrap();
            while let Some(block) = self.volume.next_in_repository(&file, BlockNo(0)) {
                self.volume.hydrate(&file, block, 4).unwrap();
            }
        }
    }

    fn stop(self) {
        self.namespace.close();
        self.volume.shut_down().unwrap();
        mark_stopped(&self.places, &self.id).unwrap();
    }

    /// Ends without a word.
    fn crash(self) {}
}

fn refused<T>(outcome: Result<T>, words: &str) -> Error {
    let error = outcome.err().unwrap_or_else(|| panic!("not refused: {words}"));
    assert!(error.to_string().contains(words) && !error.to_string().contains('\n'), "{words:?} is missing in: {error}");
    error
}

#[test]
fn r19_a_volume_rolled_back_and_confirmed_is_the_snapshot() {
    let rolled = rolled();
    let before = rolled.objects();
    let report = rolled.roll_back().unwrap();
    assert_eq!((report.files, report.names), (5, rolled.was.len() as u64));
    assert_eq!(rolled.objects(), before, "nothing was moved, nothing removed");
    assert_eq!(rolled.refs(), 1);
    let served = rolled.mount();
    assert_shown(&served.contents(), &contents_of(&rolled.was), "rolled back");
    let status = served.volume.status();
    let kept = status.rollback.unwrap();
    assert_eq!(kept.snapshot, rolled.snapshot.to_string());
    assert!(kept.kept_bytes >= 350_000 && status.in_repository_bytes > 0, "{kept:?}");
    served.stop();
    let report = rolled.lab.check(true);
    assert!(report.findings.iter().any(|found| found.what.contains("rolled back")), "{report:?}");
    assert_eq!(no_damage(report, "rolled back"), 1);
    rolled.confirm(&mut ()).unwrap();
    assert!(rolled.objects().iter().all(|id| !before.contains(id)), "its space is free");
    rolled.assert_ends_as(&rolled.was, "confirmed");
}

#[test]
fn r19_an_undone_rollback_leaves_the_volume_as_it_was() {
    let rolled = rolled();
    let before = rolled.objects();
    rolled.roll_back().unwrap();
    let served = rolled.mount();
    served.write("base/1/16384", 1000, b"after the rollback");
    served.hydrate();
    served.volume.coalesce_all(&mut |_, _| {}).unwrap();
    served.stop();
    assert!(rolled.objects().len() > before.len());
    rolled.undo(&mut ()).unwrap();
    assert_eq!((rolled.objects(), rolled.refs()), (before, 0));
    rolled.assert_ends_as(&rolled.now, "undone");
}

/// A crash at any step: what is mounted next is the volume or the snapshot, whole; a volume that was not rolled back holds nothing of it, and can be. With and
/// without a mount before the next command.
#[test]
fn r19_a_rollback_cut_off_anywhere_leaves_the_volume_or_the_snapshot() {
    let (mut cut, mut outcomes, mut ended) = (0, [0, 0], false);
    while !ended {
        for is_mounted in [false, true] {
            let rolled = rolled();
            let mut watch = CutAt { left: cut, seen: Vec::new() };
            ended = attempt(&rolled.repository, &rolled.plan(), &mut watch).is_ok();
            let at = format!("cut at step {cut}, {}, mounted: {is_mounted}", watch.seen.last().unwrap_or(&""));
            let is_back = rolled.meta().rollback.is_some();
            outcomes[usize::from(is_back)] += 1;
            assert!(no_damage(rolled.lab.check(true), &at) <= 1, "{at}");
            if is_mounted {
                let want = if is_back { &rolled.was } else { &rolled.now };
                assert_shown(&rolled.shown(), &contents_of(want), &at);
            }
            match (is_back, cut % 2) {
                (false, 0) => {
                    rolled.assert_ends_as(&rolled.now, &at);
                    continue;
                }
                (false, _) => _ = rolled.roll_back().unwrap_or_else(|error| panic!("{at}: {error}")),
                (true, _) => {}
            }
            assert_eq!(rolled.refs(), 1, "{at}");
            let outcome = if is_mounted { rolled.confirm(&mut ()) } else { rolled.undo(&mut ()) };
            outcome.unwrap_or_else(|error| panic!("{at}: {error}"));
            rolled.assert_ends_as(if is_mounted { &rolled.was } else { &rolled.now }, &at);
        }
        cut += 1;
    }
    assert!(outcomes[0] > 40 && outcomes[1] == 4, "{outcomes:?}");
}

/// A failure at any step before the switch leaves nothing: no name, no ref, no note.
#[test]
fn r19_a_rollback_that_fails_is_cleared_away() {
    let mut cut = 0;
    loop {
        let rolled = rolled();
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = roll_back(&rolled.repository, &rolled.plan(), &mut watch);
        let at = format!("failed at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if outcome.is_ok() || rolled.meta().rollback.is_some() {
            break;
        }
        assert_eq!((rolled.refs(), rolled.other_trees()), (0, vec![]), "{at}");
        assert!(!rolled.lab.path("nvme/clone.json").exists(), "{at}");
        if cut % 4 == 0 {
            rolled.assert_ends_as(&rolled.now, &at);
        }
        cut += 1;
    }
    assert!(cut > 20, "only {cut} steps");
}

/// What the volume was is removed only after that is durably decided, and then all of it; what stays is untouched, records of the log included.
#[test]
fn r19_a_confirmation_cut_off_anywhere_goes_on() {
    let (mut cut, mut undecided) = (0, 0);
    loop {
        let rolled = rolled();
        let before = rolled.objects();
        rolled.roll_back_and_work(cut, |served| served.write("base/1/16385", 100, b"acknowledged"));
        let mut want = contents_of(&rolled.was);
        for name in ["base/1/16385", "a second name"] {
            want.get_mut(name).unwrap()[100..112].copy_from_slice(b"acknowledged");
        }
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = rolled.confirm(&mut watch);
        let at = format!("cut at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if watch.seen.last() == Some(&"decide") {
            assert_eq!(rolled.objects(), before, "{at}");
            assert_shown(&rolled.shown(), &want, &at);
            rolled.undo(&mut ()).unwrap();
            rolled.assert_ends_as(&rolled.now, &at);
            undecided += 1;
        } else {
            assert!(no_damage(rolled.lab.check(true), &at) <= 1, "{at}");
            assert_shown(&rolled.shown(), &want, &at);
            assert!(rolled.objects().iter().all(|id| !before.contains(id)), "{at}");
            assert_eq!((rolled.meta().rollback, rolled.other_trees()), (None, vec![]), "{at}");
            refused(rolled.undo(&mut ()), "not rolled back");
        }
        if outcome.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 5 && undecided == 1, "{cut} steps");
}

#[test]
fn r19_an_undoing_cut_off_anywhere_goes_on() {
    let (mut cut, mut undecided) = (0, 0);
    loop {
        let rolled = rolled();
        let before = rolled.objects();
        rolled.roll_back_and_work(cut, |served| {
            served.write("base/1/16385", 100, b"goes");
            served.hydrate();
        });
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = rolled.undo(&mut watch);
        let at = format!("cut at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if watch.seen.last() == Some(&"decide") {
            assert_eq!(rolled.shown()["base/1/16385"][100..104], *b"goes", "{at}");
            rolled.undo(&mut ()).unwrap();
            undecided += 1;
        }
        assert!(no_damage(rolled.lab.check(true), &at) <= 1, "{at}");
        if cut % 3 == 0 {
            assert_shown(&rolled.shown(), &contents_of(&rolled.now), &at);
            assert_eq!(rolled.objects(), before, "{at}");
        }
        rolled.assert_ends_as(&rolled.now, &at);
        if outcome.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 5 && undecided == 1, "{cut} steps");
}

/// After a kill, content without a name is freed. The root before has no names that the mount meets, and must stay all the same.
#[test]
fn r19_a_crash_while_rolled_back_frees_nothing_of_the_volume_before() {
    let rolled = rolled();
    let before = rolled.objects();
    rolled.roll_back().unwrap();
    for _ in 0..2 {
        let served = rolled.mount();
        served.write("PG_VERSION", 0, b"17");
        served.volume.checkpoint().unwrap();
        served.crash();
    }
    let served = rolled.mount();
    served.volume.sweep_abandoned().unwrap();
    served.volume.checkpoint().unwrap();
    // The mover may move them: they are blocks like any other.
    let object = *before.first().unwrap();
    let file = served.volume.file(object).unwrap();
    assert!(served.volume.move_block(&file, BlockNo(0), TierId(2)).unwrap());
    served.stop();
    rolled.undo(&mut ()).unwrap();
    rolled.assert_ends_as(&rolled.now, "undone after crashes");
}

/// Before it is rolled back a volume that crashed is recovered: what it had acknowledged is what an undoing brings back, and nothing is left over.
#[test]
fn r19_a_volume_that_crashed_is_rolled_back_and_undone() {
    let mut rolled = rolled();
    let served = rolled.mount();
    served.write("base/1/20000", 0, b"acknowledged");
    // A file that reached the log and not home.
    let lost = served.volume.file(served.volume.issue_file_id().unwrap()).unwrap();
    served.volume.write(&lost, 0, &bytes(1, 100_000), Wait::Allowed).unwrap();
    served.volume.sync_log().unwrap();
    let modified = |served: &Served| {
        let (_, file) = served.namespace.file_at("base/1/20000").unwrap();
        served.volume.attr(&file).mtime.unwrap()
    };
    served.crash();
    rolled.roll_back().unwrap();
    assert!(!rolled.objects().contains(&lost.id()), "it has no name, and is gone");
    rolled.undo(&mut ()).unwrap();
    let served = rolled.mount();
    let mtime = modified(&served);
    served.stop();
    let entry = rolled.now.get_mut(Path::new("base/1/20000")).unwrap();
    entry.content[..12].copy_from_slice(b"acknowledged");
    entry.modified = (mtime.0.div_euclid(1_000_000_000), mtime.0.rem_euclid(1_000_000_000));
    rolled.assert_ends_as(&rolled.now, "recovered, rolled back and undone");
}

/// R16: files have other ids than those of every snapshot taken before, so none of these is a parent, neither after the rollback nor after its undoing.
#[test]
fn r16_no_snapshot_is_a_parent_across_a_rollback() {
    let rolled = rolled();
    let published = |served: &Served, name: u128| {
        let mark = served.volume.mark(Uuid::from_u128(name)).unwrap();
        served.volume.wait_for_mark(&mark).unwrap();
        served.volume.publish_mark(&mark, None).unwrap();
    };
    let knows = |served: &Served, name: u128| served.volume.knows_parent(Uuid::from_u128(name));
    let served = rolled.mount();
    published(&served, 1);
    assert!(knows(&served, 1));
    served.stop();
    rolled.roll_back().unwrap();
    let served = rolled.mount();
    assert!(!knows(&served, 1));
    published(&served, 2);
    assert!(knows(&served, 2), "the next one is told against it");
    served.stop();
    rolled.undo(&mut ()).unwrap();
    let served = rolled.mount();
    assert!(!knows(&served, 1) && !knows(&served, 2));
    served.stop();
    rolled.roll_back().unwrap();
    let served = rolled.mount();
    published(&served, 3);
    served.stop();
    rolled.confirm(&mut ()).unwrap();
    let served = rolled.mount();
    assert!(knows(&served, 3), "confirming changes no file that stays");
    served.stop();
}

/// Should the names of the old root ever be where the volume's are, their files give errors, never bytes.
#[test]
fn r19_files_of_the_volume_before_are_not_served_as_the_volume() {
    let rolled = rolled();
    rolled.roll_back().unwrap();
    fs::rename(rolled.home("tree"), rolled.home("aside")).unwrap();
    fs::rename(rolled.home("tree.before"), rolled.home("tree")).unwrap();
    fs::rename(rolled.home("aside"), rolled.home("tree.before")).unwrap();
    let damages = rolled.lab.check(false).findings.into_iter().filter(|found| found.severity == Severity::Damage);
    assert!(damages.map(|found| found.what).any(|what| what.contains("before it was rolled back")));
    let served = rolled.mount();
    let linked = served.namespace.lookup(ROOT_INODE, OsStr::new("PG_VERSION")).unwrap();
    assert!(served.namespace.open_file(linked.node.inode).is_err());
    assert_eq!(served.namespace.stats().untrusted_files, 1);
}

#[test]
fn what_cannot_be_rolled_back_is_refused_and_nothing_is_changed() {
    let rolled = rolled();
    rolled.mount().stop();
    let before = rolled.objects();
    let unchanged = |when: &str| {
        assert_eq!((rolled.refs(), rolled.other_trees(), rolled.meta().rollback), (0, vec![], None), "{when}");
        assert_eq!(rolled.objects(), before, "{when}");
        assert_shown(&rolled.shown(), &contents_of(&rolled.now), when);
    };
    refused(rolled.confirm(&mut ()), "not rolled back");
    refused(rolled.undo(&mut ()), "not rolled back");
    let (foreign, _) = store(&rolled.repository, &rolled.lab.path("was"), Uuid::from_u128(5));
    let plan = RollbackPlan { snapshot: foreign, ..rolled.plan() };
    refused(roll_back(&rolled.repository, &plan, &mut ()), "another volume");
    let full = |plan: TierPlan| TierPlan { budget_bytes: Some(1 << 20), ..plan };
    let plan = RollbackPlan { tiers: rolled.lab.tiers().into_iter().map(full).collect(), ..rolled.plan() };
    refused(roll_back(&rolled.repository, &plan, &mut ()), "room for");
    unchanged("refused");
    let served = rolled.mount();
    refused(rolled.roll_back(), "in use");
    served.stop();
    unchanged("refused while it was served");

    rolled.roll_back().unwrap();
    refused(rolled.roll_back(), "--undo");
    refused(rolled.lab.release(), "--confirm");
    assert_eq!(rolled.refs(), 1, "the snapshot is held still");
    rolled.confirm(&mut ()).unwrap();
    refused(rolled.roll_back(), "still in the repository");
    let served = rolled.mount();
    served.hydrate();
    served.stop();
    // The mount that would have let the snapshot go did not: the next rollback does.
    rolled.roll_back().unwrap();
    assert_eq!(rolled.refs(), 1);
    rolled.undo(&mut ()).unwrap();
    assert_shown(&rolled.shown(), &contents_of(&rolled.was), "undone");
}

/// Undoing and confirming need nothing of the repository.
#[test]
fn r19_a_rollback_is_undone_without_the_repository() {
    let rolled = rolled();
    rolled.roll_back().unwrap();
    let (repo, away) = (rolled.lab.path("repo"), rolled.lab.path("away"));
    fs::rename(&repo, &away).unwrap();
    let report = rolled.undo(&mut ()).unwrap();
    assert!(report.warnings.iter().any(|warning| warning.contains("still held")), "{report:?}");
    assert_shown(&rolled.shown(), &contents_of(&rolled.now), "undone");
    fs::rename(&away, &repo).unwrap();
    // A daemon's hydrator would let it go; so does a release.
    rolled.assert_ends_as(&rolled.now, "undone without the repository");
}

/// What cannot be told is found out while there is a way back: a job that has failed must not have been done.
#[test]
fn r19_damaged_pins_are_found_before_the_volume_is_rolled_back() {
    let rolled = rolled();
    fs::write(rolled.lab.path("nvme/pins.json"), b"{}").unwrap();
    refused(rolled.roll_back(), "pins");
    assert_eq!((rolled.refs(), rolled.other_trees(), rolled.meta().rollback), (0, vec![], None));
    fs::remove_file(rolled.lab.path("nvme/pins.json")).unwrap();
    rolled.assert_ends_as(&rolled.now, "refused");
}

/// Runs it without root's rights to the files of others, and to directories that deny writing.
fn as_ordinary_user(lab: Lab, work: impl FnOnce(Lab) + Send) {
    const USER: u32 = 65534;
    let own = |path: &Path| std::os::unix::fs::chown(path, Some(USER), Some(USER));
    ["", "nvme", "sata", "hdd"].into_iter().for_each(|name| _ = own(&lab.path(name)));
    std::thread::scope(|scope| {
        let worker = scope.spawn(|| {
            // For this thread and those that it starts.
            nix::unistd::setfsgid(USER.into());
            nix::unistd::setfsuid(USER.into());
            work(lab);
        });
        worker.join().unwrap();
    });
}

/// Only root removes names from a directory that its owner may not write to. The volume of an ordinary user could neither settle nor be mounted ever after.
#[test]
fn r19_an_ordinary_user_removes_a_root_with_directories_that_deny_writing() {
    as_ordinary_user(Lab::fast(), |lab| {
        let deny = |tree: &Path| {
            for denied in ["denied/below", "denied"] {
                fs::set_permissions(tree.join(denied), fs::Permissions::from_mode(0o500)).unwrap();
            }
        };
        for dir in ["was", "data"] {
            fs::create_dir_all(lab.path(dir).join("denied/below")).unwrap();
            fs::write(lab.path(dir).join("denied/below/file"), dir).unwrap();
        }
        let now = snapshot(&lab.data());
        let volume = lab.adopt().unwrap().volume;
        deny(&lab.path("nvme/home/tree"));
        deny(&lab.path("was"));
        let repository = init(&lab);
        let (snapshot, was) = store(&repository, &lab.path("was"), volume);
        let rolled = Rolled { lab, repository, snapshot, now, was };
        let mut names = CutAt { left: usize::MAX, seen: Vec::new() };
        attempt(&rolled.repository, &rolled.plan(), &mut names).unwrap();
        rolled.undo(&mut ()).unwrap();
        assert_shown(&rolled.shown(), &contents_of(&rolled.now), "undone");
        let left = names.seen.iter().position(|step| *step == "roll back").unwrap();
        roll_back(&rolled.repository, &rolled.plan(), &mut CutAt { left, seen: Vec::new() }).unwrap_err();
        assert_eq!(rolled.other_trees(), Vec::<&str>::new(), "failed");
        rolled.roll_back().unwrap();
        rolled.confirm(&mut ()).unwrap();
        assert_shown(&rolled.shown(), &contents_of(&rolled.was), "confirmed");
        assert_eq!(rolled.other_trees(), Vec::<&str>::new(), "confirmed");
    });
}

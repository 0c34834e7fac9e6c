//! Adopting real directories and giving them back: what comes back is what went in, byte for byte and attribute for attribute, also when
//! either is cut off at any of its steps and run again. And what `check` and `dump` say in between.

mod attacks;
mod clones;
mod full;
mod inspect;
mod lab;
#[path = "../engine/opening.rs"]
mod opening;
mod published;
mod rollback;
mod stored;
mod swaps;

use heatfs::error::{Error, Result};
use heatfs::jobs::Watch;
use heatfs::jobs::adopt::{AdoptPlan, adopt, attempt, undo};
use heatfs::jobs::protect::MARKER;
use heatfs::jobs::release::{ReleasePlan, release};
use heatfs::units::{BlockNo, TierId};
use heatfs::volume::{Options, Wait};
use lab::{CutAt, Lab, TIERS, assert_same, filled, filled_in, get_xattr, options, set_xattr, snapshot};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

#[test]
fn a_directory_goes_in_and_comes_out_the_same() {
    let (lab, before) = filled();
    let report = lab.adopt().unwrap();
    assert_eq!((report.files, report.origin.as_str(), report.resumed), (5, "nvme", false));
    assert_eq!(report.not_covered, [format!("{} -> /no/such/place", lab.data().join("leaving").display())]);
    assert!(report.warnings.iter().any(|warning| warning.contains("on one filesystem")));
    // Nothing to start on where the directory was, nor in home.
    let left: Vec<_> = fs::read_dir(lab.data()).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(left.is_empty() || left == [MARKER], "{left:?}");
    assert_eq!(fs::metadata(lab.data()).unwrap().mode() & 0o777, 0o500);
    let home = lab.path("nvme").join("home");
    assert_eq!(fs::metadata(&home).unwrap().mode() & 0o777, 0o700);
    assert_eq!(fs::metadata(home.join("tree")).unwrap().mode() & 0o777, 0o777);
    assert!(home.join("NOT-A-DATABASE").exists());
    assert_eq!(fs::metadata(home.join("tree/base/1/16384")).unwrap().len(), 0, "names only");
    let report = lab.release().unwrap();
    assert_eq!((report.files, report.resumed), (5, false));
    assert_same(&snapshot(&lab.data()), &before, "after release");
    for name in TIERS {
        assert_eq!(fs::read_dir(lab.path(name)).unwrap().count(), 0, "{name} is empty again");
    }
}

#[test]
fn the_engine_serves_what_was_adopted_and_what_it_changed_comes_out() {
    let (lab, mut want) = filled();
    lab.adopt().unwrap();
    lab.serve(|volume| {
        let read = |name: &str, len: usize| {
            let file = volume.file(lab.id_of(name)).unwrap();
            let mut buf = vec![0; len];
            let got = volume.read(&file, 0, &mut buf, Wait::Allowed).unwrap();
            buf.truncate(got);
            buf
        };
        for (path, entry) in want.iter().filter(|(_, entry)| entry.kind == libc::S_IFREG) {
            let name = path.to_str().unwrap();
            assert!(read(name, entry.content.len() + 10) == entry.content, "{name}");
        }
        let file = volume.file(lab.id_of("base/1/16384")).unwrap();
        volume.write(&file, 100_000, b"changed", Wait::Allowed).unwrap();
        volume.write(&file, 1_000_000, b"grown", Wait::Allowed).unwrap();
        volume.coalesce_all(&mut |_, _| {}).unwrap();
        for block in 0..3 {
            volume.move_block(&file, BlockNo(block), TierId(2)).unwrap();
        }
        let sparse = volume.file(lab.id_of("sparse")).unwrap();
        volume.punch_hole(&sparse, 5 << 20, 65536).unwrap();
        volume.set_size(&sparse, (5 << 20) + 100).unwrap();
    });
    let grown = want.get_mut(Path::new("base/1/16384")).unwrap();
    grown.content.resize(1_000_005, 0);
    grown.content[100_000..100_007].copy_from_slice(b"changed");
    grown.content[1_000_000..].copy_from_slice(b"grown");
    let sparse = want.get_mut(Path::new("sparse")).unwrap();
    sparse.content.truncate((5 << 20) + 100);
    sparse.content[5 << 20..].fill(0);
    lab.release().unwrap();
    let got = snapshot(&lab.data());
    for name in ["base/1/16384", "sparse"] {
        let times = got[Path::new(name)].modified;
        assert_ne!(times, want[Path::new(name)].modified, "{name} was modified");
        want.get_mut(Path::new(name)).unwrap().modified = times;
    }
    assert_same(&got, &want, "after release");
    assert!(fs::metadata(lab.data().join("sparse")).unwrap().blocks() * 512 < 200_000, "holes stay holes");
}

/// Adoption cut off at every step; then it goes on, or is undone if nothing was renamed yet.
#[test]
fn r29_an_adoption_cut_off_anywhere_goes_on_or_is_undone() {
    let mut steps = 1;
    let mut cut = 0;
    while cut < steps {
        let (lab, before) = filled_in(Lab::fast());
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = attempt(&lab.adoption(), &mut watch);
        let at = format!("cut at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if outcome.is_ok() {
            assert!(watch.seen.len() == cut, "{at}");
            break;
        }
        steps = cut + 2;
        if cut % 3 == 0 {
            undo(&lab.adoption()).unwrap_or_else(|e| panic!("{at}: {e}"));
            if !lab.path("nvme").join("heatfs.tier").exists() {
                assert_same(&snapshot(&lab.data()), &before, &format!("{at}, undone"));
                for name in TIERS {
                    assert_eq!(fs::read_dir(lab.path(name)).unwrap().count(), 0, "{at}: {name}");
                }
            }
        }
        lab.adopt().unwrap_or_else(|e| panic!("{at}: {e}"));
        lab.serve(|_| {});
        lab.release().unwrap_or_else(|e| panic!("{at}: {e}"));
        assert_same(&snapshot(&lab.data()), &before, &at);
        cut += 1;
    }
    assert!(cut > 50, "only {cut} steps");
}

/// Cut off once some of many files are in durable state and the others are not.
struct CutAmongImports {
    durable: bool,
}

impl Watch for CutAmongImports {
    fn step(&mut self, what: &'static str) -> Result<()> {
        if self.durable && what == "import" {
            return Err(Error::Busy("cut off".to_owned()));
        }
        self.durable |= what == "checkpoint on the way";
        Ok(())
    }
}

#[test]
fn an_adoption_of_many_files_goes_on_after_those_that_are_durable() {
    let lab = Lab::fast();
    for dir in 0..45 {
        let dir = lab.data().join(dir.to_string());
        fs::create_dir_all(&dir).unwrap();
        (0..100).for_each(|file| fs::write(dir.join(file.to_string()), format!("{} {file}", dir.display())).unwrap());
    }
    let before = snapshot(&lab.data());
    let mut watch = CutAmongImports { durable: false };
    assert!(attempt(&lab.adoption(), &mut watch).is_err() && watch.durable);
    let report = lab.adopt().unwrap();
    assert_eq!((report.files, report.resumed), (4500, true));
    lab.serve(|volume| assert_eq!(volume.files().len(), 4500));
    assert_eq!(lab.check(true).findings.len(), 0);
    lab.release().unwrap();
    assert_same(&snapshot(&lab.data()), &before, "after release");
}

/// Release cut off at every step; while the volume is still in service, it may be mounted again in between.
#[test]
fn r14_a_release_cut_off_anywhere_goes_on() {
    let mut cut = 0;
    loop {
        let (lab, before) = filled_in(Lab::fast());
        lab.adopt().unwrap();
        lab.serve(|volume| {
            let file = volume.file(lab.id_of("base/1/16384")).unwrap();
            assert!(volume.move_block(&file, BlockNo(1), TierId(1)).unwrap());
        });
        let mut watch = CutAt { left: cut, seen: Vec::new() };
        let outcome = release(&lab.release_plan(), &mut watch);
        let at = format!("cut at step {cut}, {}", watch.seen.last().unwrap_or(&""));
        if outcome.is_err() {
            let again = lab.release().unwrap_or_else(|e| panic!("{at}: {e}"));
            assert_eq!(again.directory, lab.data().canonicalize().unwrap());
        }
        assert_same(&snapshot(&lab.data()), &before, &at);
        for name in TIERS {
            assert_eq!(fs::read_dir(lab.path(name)).unwrap().count(), 0, "{at}: {name}");
        }
        if outcome.is_ok() {
            break;
        }
        cut += 1;
    }
    assert!(cut > 50, "only {cut} steps");
}

fn refused(lab: &Lab, plan: &AdoptPlan, words: &[&str]) {
    let before = lab.everything();
    let why = adopt(plan, &mut ()).expect_err("refused").to_string();
    for word in words {
        assert!(why.contains(word), "{word:?} is missing in: {why}");
    }
    assert!(!why.contains('\n'), "{why}");
    let mut after = lab.everything();
    // Probing a filesystem touches the directory.
    for name in TIERS {
        let times = before[Path::new(name)].modified;
        after.get_mut(Path::new(name)).unwrap().modified = times;
    }
    assert_same(&after, &before, &why);
}

#[test]
fn a_directory_in_use_is_refused_naming_the_process() {
    let (lab, _) = filled();
    let mut child = std::process::Command::new("sleep").arg("60").current_dir(lab.data().join("base")).spawn().unwrap();
    let pid = child.id().to_string();
    refused(&lab, &lab.adoption(), &["is in use by", &pid, "sleep", "working directory"]);
    child.kill().unwrap();
    child.wait().unwrap();
    let file = fs::File::open(lab.data().join("base/1/16384")).unwrap();
    let mut child = std::process::Command::new("sleep").arg("60").stdin(file).spawn().unwrap();
    refused(&lab, &lab.adoption(), &["is in use by", &child.id().to_string(), "open file"]);
    fs::write(lab.data().join("postmaster.pid"), format!("{}\n/x\n", child.id())).unwrap();
    refused(&lab, &lab.adoption(), &["postmaster.pid", &child.id().to_string()]);
    child.kill().unwrap();
    child.wait().unwrap();
    lab.adopt().unwrap();
}

#[test]
fn wrong_tiers_are_refused_and_nothing_is_changed() {
    let (lab, _) = filled();
    let with = |index: usize, path: PathBuf| {
        let mut plan = lab.adoption();
        plan.tiers[index].path = path;
        plan
    };
    fs::create_dir(lab.data().join("inside tier")).unwrap();
    refused(&lab, &with(1, lab.data().join("inside tier")), &["overlap", "`sata`"]);
    refused(&lab, &with(1, lab.path("nvme")), &["overlap", "`nvme`", "`sata`"]);
    refused(&lab, &with(2, lab.path("missing")), &["`hdd`", "does not exist"]);
    refused(&lab, &AdoptPlan { home: Some("hdd".into()), ..lab.adoption() }, &["--home hdd", "`nvme`"]);
    refused(&lab, &AdoptPlan { origin: Some("tape".into()), ..lab.adoption() }, &["`tape`", "nvme, sata, hdd"]);
    refused(&lab, &AdoptPlan { directory: lab.data().join("PG_VERSION"), ..lab.adoption() }, &["not a directory"]);
    fs::write(lab.path("hdd").join("precious"), "x").unwrap();
    refused(&lab, &lab.adoption(), &["`hdd`", "not empty", "precious"]);
    fs::remove_file(lab.path("hdd").join("precious")).unwrap();
    let mut small = lab.adoption();
    small.tiers.iter_mut().for_each(|tier| tier.budget_bytes = Some(1000));
    refused(&lab, &small, &["budgets"]);
    let huge = AdoptPlan { options: Options { segments: 1 << 30, ..options() }, ..lab.adoption() };
    refused(&lab, &huge, &["MiB are free", "`nvme`"]);
    refused(&lab, &AdoptPlan { directory: PathBuf::from("/proc"), ..lab.adoption() }, &["mount point", "subdirectory"]);
    lab.adopt().unwrap();
    let again = lab.adopt().unwrap_err().to_string();
    assert!(again.contains("mount it"), "{again}");
    let other = AdoptPlan { directory: lab.path("other"), ..lab.adoption() };
    let taken = adopt(&other, &mut ()).unwrap_err().to_string();
    assert!(taken.contains("already belongs to the volume of"), "{taken}");
    lab.release().unwrap();
}

#[test]
fn adopting_across_filesystems_is_refused_naming_the_tiers() {
    let Ok(elsewhere) = tempfile::tempdir_in("/dev/shm") else { return };
    let (lab, _) = filled();
    if fs::metadata(elsewhere.path()).unwrap().dev() == fs::metadata(lab.data()).unwrap().dev() {
        return;
    }
    let plan = AdoptPlan { directory: elsewhere.path().join("data"), ..lab.adoption() };
    refused(&lab, &plan, &["across filesystems", "`nvme`", "`sata`", "`hdd`"]);
    assert!(!elsewhere.path().join("data").exists());
}

#[test]
fn names_outside_the_directory_are_warned_of() {
    let (lab, _) = filled();
    fs::hard_link(lab.data().join("empty"), lab.path("outside")).unwrap();
    let report = lab.adopt().unwrap();
    assert!(report.warnings.iter().any(|warning| warning.starts_with("1 file(s) have further names outside")));
}

#[test]
fn a_missing_or_empty_directory_is_adopted_too() {
    let lab = Lab::new();
    assert_eq!(lab.adopt().unwrap().files, 0);
    lab.release().unwrap();
    assert_eq!(fs::read_dir(lab.data()).unwrap().count(), 0);
    fs::write(lab.data().join("works"), "as before").unwrap();
}

#[test]
fn an_early_failure_is_undone() {
    let (lab, before) = filled();
    let mut watch = CutAt { left: 20, seen: Vec::new() };
    adopt(&lab.adoption(), &mut watch).unwrap_err();
    assert!(watch.seen.contains(&"take directory"));
    assert_same(&snapshot(&lab.data()), &before, "undone");
    assert_eq!(fs::read_dir(lab.path("nvme")).unwrap().count(), 0);
}

#[test]
fn r10_foreign_ids_are_left_behind_on_the_way_in_and_out() {
    let (lab, before) = filled();
    set_xattr(&lab.data().join("PG_VERSION"), "user.heatfs.id", b"of some other volume");
    lab.adopt().unwrap();
    lab.serve(|_| {});
    lab.release().unwrap();
    assert_same(&snapshot(&lab.data()), &before, "without the foreign id");
}

#[test]
fn r10_a_copy_made_behind_the_mount_stops_release_until_accepted() {
    let (lab, before) = filled();
    lab.adopt().unwrap();
    let tree = lab.path("nvme").join("home/tree");
    let id = get_xattr(&tree.join("PG_VERSION"), "user.heatfs.id").unwrap();
    fs::write(tree.join("copy"), "put there").unwrap();
    set_xattr(&tree.join("copy"), "user.heatfs.id", &id);
    let why = lab.release().unwrap_err().to_string();
    assert!(why.contains("copy") && why.contains("copied behind the mount"), "{why}");
    let accepted = ReleasePlan { accept_untrusted: true, ..lab.release_plan() };
    assert_eq!(release(&accepted, &mut ()).unwrap().untrusted.len(), 1);
    let mut got = snapshot(&lab.data());
    let copy = got.remove(Path::new("copy")).unwrap();
    assert_eq!((copy.content.as_slice(), copy.xattrs.len()), (b"put there".as_slice(), 0));
    got.get_mut(Path::new("")).unwrap().modified = before[Path::new("")].modified;
    assert_same(&got, &before, "besides the copy");
}

#[test]
fn release_is_refused_while_a_daemon_holds_the_volume() {
    let (lab, _) = filled();
    lab.adopt().unwrap();
    lab.serve(|_| {
        let why = lab.release().unwrap_err().to_string();
        assert!(why.contains(&format!("in use by process {}", std::process::id())), "{why}");
    });
    lab.release().unwrap();
}

//! Adopting real directories and giving them back: what comes back is what went in, byte for byte and attribute for attribute, also when
//! either is cut off at any of its steps and run again.

use heatfs::error::{Error, Result};
use heatfs::jobs::adopt::{AdoptPlan, AdoptReport, adopt, attempt, undo};
use heatfs::jobs::protect::MARKER;
use heatfs::jobs::release::{ReleasePlan, ReleaseReport, release};
use heatfs::jobs::{TierPlan, Watch};
use heatfs::tier::identity::{Locks, Place, begin_run, mark_stopped};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Options, Tier, Volume, Wait};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

const TIERS: [&str; 3] = ["nvme", "sata", "hdd"];

struct Lab {
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is immutable could not be removed with the rest.
        let _ = std::process::Command::new("chattr").args(["-R", "-f", "-i"]).arg(self.dir.path()).status();
    }
}

/// Stops at the k-th step.
struct CutAt {
    left: usize,
    seen: Vec<&'static str>,
}

impl Watch for CutAt {
    fn step(&mut self, what: &'static str) -> Result<()> {
        self.seen.push(what);
        if self.left == 0 {
            return Err(Error::Busy(format!("cut off at {what}")));
        }
        self.left -= 1;
        Ok(())
    }
}

fn options() -> Options {
    Options {
        block_bytes: 65536,
        segment_bytes: 256 << 10,
        segments: 8,
        payload_cache_bytes: 1 << 20,
        coalesce_at_fill: 0.5,
        checkpoint_interval_s: 3600,
    }
}

impl Lab {
    fn new() -> Lab {
        let lab = Lab { dir: tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap() };
        for name in TIERS {
            fs::create_dir(lab.path(name)).unwrap();
        }
        lab
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn data(&self) -> PathBuf {
        self.path("data")
    }

    fn tiers(&self) -> Vec<TierPlan> {
        let plan = |name: &&str| TierPlan {
            name: (*name).to_owned(),
            path: self.path(name),
            budget_bytes: None,
            reserve_bytes: 0,
        };
        TIERS.iter().map(plan).collect()
    }

    fn adoption(&self) -> AdoptPlan {
        AdoptPlan { directory: self.data(), tiers: self.tiers(), home: None, origin: None, options: options() }
    }

    fn release_plan(&self) -> ReleasePlan {
        ReleasePlan {
            directory: self.data(),
            tiers: self.tiers(),
            origin: None,
            accept_untrusted: false,
            options: options(),
        }
    }

    fn adopt(&self) -> Result<AdoptReport> {
        adopt(&self.adoption(), &mut ())
    }

    fn release(&self) -> Result<ReleaseReport> {
        release(&self.release_plan(), &mut ())
    }

    /// Everything that tiers and the directory hold, to see that a refusal changed nothing.
    fn everything(&self) -> BTreeMap<PathBuf, Entry> {
        snapshot(self.dir.path())
    }

    /// Runs the engine on the volume, as a daemon would.
    fn serve(&self, work: impl FnOnce(&Arc<Volume>)) {
        let listed: Vec<_> = TIERS.iter().map(|name| ((*name).to_owned(), self.path(name))).collect();
        let places = Place::open_all(&listed).unwrap();
        let _locks = Locks::take(&listed).unwrap();
        let id = begin_run(&places).unwrap();
        let tier = |place: &Place| Tier {
            name: place.name.clone(),
            device: place.device.clone(),
            budget_bytes: None,
            reserve_bytes: 0,
        };
        let (volume, _) = Volume::open(places.iter().map(tier).collect(), options()).unwrap();
        work(&volume);
        volume.shut_down().unwrap();
        mark_stopped(&places, &id).unwrap();
    }

    fn id_of(&self, name: &str) -> FileId {
        let path = self.path("nvme").join("home/tree").join(name);
        let value = get_xattr(&path, "user.heatfs.id").unwrap();
        heatfs::ondisk::file_id::FileIdentity::decode(&value, name).unwrap().file
    }
}

/// What must come back.
#[derive(Clone, PartialEq, Eq, Debug)]
struct Entry {
    kind: u32,
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    device: u64,
    names: u64,
    content: Vec<u8>,
    xattrs: Vec<(String, Vec<u8>)>,
}

fn snapshot(top: &Path) -> BTreeMap<PathBuf, Entry> {
    let mut found = BTreeMap::new();
    let mut pending = vec![top.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).unwrap();
        let kind = meta.file_type();
        let content = if meta.is_file() {
            fs::read(&path).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().to_string_lossy().into_owned().into_bytes()
        } else {
            Vec::new()
        };
        if meta.is_dir() {
            pending.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
        }
        let entry = Entry {
            kind: meta.mode() & libc::S_IFMT,
            mode: meta.mode() & 0o7777,
            owner: (meta.uid(), meta.gid()),
            modified: (meta.mtime(), meta.mtime_nsec()),
            device: if kind.is_char_device() || kind.is_block_device() { meta.rdev() } else { 0 },
            names: if meta.is_dir() { 0 } else { meta.nlink() },
            content,
            xattrs: xattrs(&path),
        };
        found.insert(path.strip_prefix(top).unwrap().to_owned(), entry);
    }
    found
}

fn o_path(path: &Path) -> std::os::fd::OwnedFd {
    use nix::fcntl::OFlag;
    nix::fcntl::open(path, OFlag::O_PATH | OFlag::O_NOFOLLOW, Mode::empty()).unwrap()
}

fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65536];
    let name = CString::new(name).unwrap();
    let len = heatfs::device::sys_home::get_xattr(&o_path(path), &name, &mut value).ok()?;
    value.truncate(len);
    Some(value)
}

fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    heatfs::device::sys_home::set_xattr(&o_path(path), &CString::new(name).unwrap(), value, 0).unwrap();
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = heatfs::device::sys_home::list_xattr(&o_path(path), &mut names).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<_> = names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .map(|name| (name.clone(), get_xattr(path, &name).unwrap()))
        .collect();
    found.sort();
    found
}

fn set_mtime(path: &Path, seconds: i64) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    let time = nix::sys::time::TimeSpec::new(seconds, 123_456_789);
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, UtimensatFlags::NoFollowSymlink).unwrap();
}

fn is_root() -> bool {
    nix::unistd::geteuid().is_root()
}

/// user::rw- user:12345:r-- group::r-- mask::r-- other::---
const ACL: [u8; 44] = [
    2, 0, 0, 0, 1, 0, 6, 0, 255, 255, 255, 255, 2, 0, 4, 0, 0x39, 0x30, 0, 0, 4, 0, 4, 0, 255, 255, 255, 255, 16, 0, 4,
    0, 255, 255, 255, 255, 32, 0, 0, 0, 255, 255, 255, 255,
];

fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_mul(31).wrapping_add((at % 251) as u8)).collect()
}

/// Something of everything.
fn fill(data: &Path) {
    fs::create_dir_all(data.join("base/1")).unwrap();
    fs::create_dir_all(data.join("empty dir")).unwrap();
    fs::write(data.join("base/1/16384"), bytes(1, 300_000)).unwrap();
    fs::write(data.join("base/1/16385"), bytes(2, 8192)).unwrap();
    fs::write(data.join("PG_VERSION"), "16\n").unwrap();
    fs::write(data.join("empty"), "").unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"start", 0).unwrap();
    sparse.write_all_at(b"late", 5 << 20).unwrap();
    sparse.set_len(7 << 20).unwrap();
    fs::hard_link(data.join("base/1/16385"), data.join("a second name")).unwrap();
    symlink("base/1", data.join("inside")).unwrap();
    symlink("/no/such/place", data.join("leaving")).unwrap();
    mknod(&data.join("pipe"), SFlag::S_IFIFO, Mode::from_bits_truncate(0o640), 0).unwrap();
    set_xattr(&data.join("PG_VERSION"), "user.note", b"kept");
    set_xattr(&data.join("base"), "user.dir", b"kept too");
    fs::set_permissions(data.join("PG_VERSION"), fs::Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(data.join("empty dir"), fs::Permissions::from_mode(0o1731)).unwrap();
    set_xattr(&data.join("base/1/16384"), "system.posix_acl_access", &ACL);
    if is_root() {
        std::os::unix::fs::chown(data.join("empty"), Some(12345), Some(54321)).unwrap();
        std::os::unix::fs::lchown(data.join("leaving"), Some(12345), Some(54321)).unwrap();
        fs::set_permissions(data.join("empty"), fs::Permissions::from_mode(0o4755)).unwrap();
        mknod(&data.join("null"), SFlag::S_IFCHR, Mode::from_bits_truncate(0o600), nix::sys::stat::makedev(1, 3))
            .unwrap();
    }
    fs::set_permissions(data, fs::Permissions::from_mode(0o700)).unwrap();
    for (name, time) in
        [("leaving", 5), ("sparse", 1_000_000), ("base/1/16384", -7), ("base/1", 77), ("base", 78), ("", 79)]
    {
        set_mtime(&data.join(name), time);
    }
}

fn filled() -> (Lab, BTreeMap<PathBuf, Entry>) {
    let lab = Lab::new();
    fs::create_dir(lab.data()).unwrap();
    fill(&lab.data());
    let before = snapshot(&lab.data());
    (lab, before)
}

fn assert_same(got: &BTreeMap<PathBuf, Entry>, want: &BTreeMap<PathBuf, Entry>, when: &str) {
    for (path, entry) in want {
        let found = got.get(path).unwrap_or_else(|| panic!("{when}: {} is missing", path.display()));
        let text = |e: &Entry| format!("{:?}", Entry { content: Vec::new(), ..e.clone() });
        assert_eq!(text(found), text(entry), "{when}: {}", path.display());
        assert!(found.content == entry.content, "{when}: {} has another content", path.display());
    }
    let extra: Vec<_> = got.keys().filter(|path| !want.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{when}: {extra:?}");
}

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
        let (lab, before) = filled();
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

/// Release cut off at every step; while the volume is still in service, it may be mounted again in between.
#[test]
fn r14_a_release_cut_off_anywhere_goes_on() {
    let mut cut = 0;
    loop {
        let (lab, before) = filled();
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

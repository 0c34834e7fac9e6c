//! Three tiers and a directory on a real filesystem, and what must come back.

use heatfs::device::real::RealDevice;
use heatfs::error::{Error, Result};
use heatfs::jobs::adopt::{AdoptPlan, AdoptReport, adopt};
use heatfs::jobs::check::{CheckReport, check};
use heatfs::jobs::release::{ReleasePlan, ReleaseReport, release};
use heatfs::jobs::{TierPlan, Watch};
use heatfs::tier::identity::{Locks, Place, begin_run, mark_stopped};
use heatfs::units::FileId;
use heatfs::volume::{Options, Tier, Volume};
use nix::sys::stat::{Mode, SFlag, mknod};
use std::collections::BTreeMap;
use std::ffi::CString;
use std::fs;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;

pub const TIERS: [&str; 3] = ["nvme", "sata", "hdd"];

pub struct Lab {
    dir: tempfile::TempDir,
}

impl Drop for Lab {
    fn drop(&mut self) {
        // What is immutable could not be removed with the rest.
        let _ = std::process::Command::new("chattr").args(["-R", "-f", "-i"]).arg(self.dir.path()).status();
    }
}

/// Stops at the k-th step.
pub struct CutAt {
    pub left: usize,
    pub seen: Vec<&'static str>,
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

pub fn options() -> Options {
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
    pub fn new() -> Lab {
        Lab::on(Path::new(env!("CARGO_TARGET_TMPDIR")))
    }

    /// In memory, where the kernel's tmpfs can do all that heatfs needs: for tests that run a job many times.
    pub fn fast() -> Lab {
        let memory = Path::new("/dev/shm");
        let able = RealDevice::at(memory).and_then(|device| device.probe());
        if able.is_ok_and(|able| able.user_xattr && able.punch) { Lab::on(memory) } else { Lab::new() }
    }

    fn on(parent: &Path) -> Lab {
        let lab = Lab { dir: tempfile::tempdir_in(parent).unwrap() };
        for name in TIERS {
            fs::create_dir(lab.path(name)).unwrap();
        }
        lab
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn tiers(&self) -> Vec<TierPlan> {
        let plan = |name: &&str| TierPlan {
            name: (*name).to_owned(),
            path: self.path(name),
            budget_bytes: None,
            reserve_bytes: 0,
        };
        TIERS.iter().map(plan).collect()
    }

    pub fn adoption(&self) -> AdoptPlan {
        AdoptPlan { directory: self.data(), tiers: self.tiers(), home: None, origin: None, options: options() }
    }

    pub fn release_plan(&self) -> ReleasePlan {
        ReleasePlan {
            directory: self.data(),
            elsewhere: false,
            tiers: self.tiers(),
            origin: None,
            accept_untrusted: false,
            options: options(),
        }
    }

    pub fn adopt(&self) -> Result<AdoptReport> {
        adopt(&self.adoption(), &mut ())
    }

    pub fn check(&self, deep: bool) -> CheckReport {
        check(&self.tiers(), &options(), deep).unwrap()
    }

    pub fn release(&self) -> Result<ReleaseReport> {
        release(&self.release_plan(), &mut ())
    }

    /// Everything that tiers and the directory hold, to see that a refusal changed nothing.
    pub fn everything(&self) -> BTreeMap<PathBuf, Entry> {
        snapshot(self.dir.path())
    }

    /// Runs the engine on the volume, as a daemon would, and stops it cleanly.
    pub fn serve(&self, work: impl FnOnce(&Arc<Volume>)) {
        self.run(work, true);
    }

    /// As [`Lab::serve`], but ends without a word.
    pub fn crash(&self, work: impl FnOnce(&Arc<Volume>)) {
        self.run(work, false);
    }

    fn run(&self, work: impl FnOnce(&Arc<Volume>), stop: bool) {
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
        if stop {
            volume.shut_down().unwrap();
            mark_stopped(&places, &id).unwrap();
        }
    }

    pub fn id_of(&self, name: &str) -> FileId {
        let path = self.path("nvme").join("home/tree").join(name);
        let value = get_xattr(&path, "user.heatfs.id").unwrap();
        heatfs::ondisk::file_id::FileIdentity::decode(&value, name).unwrap().file
    }
}

/// What must come back.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub kind: u32,
    pub mode: u32,
    pub owner: (u32, u32),
    pub modified: (i64, i64),
    pub device: u64,
    pub names: u64,
    pub content: Vec<u8>,
    pub xattrs: Vec<(String, Vec<u8>)>,
}

pub fn snapshot(top: &Path) -> BTreeMap<PathBuf, Entry> {
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

pub fn get_xattr(path: &Path, name: &str) -> Option<Vec<u8>> {
    let mut value = vec![0; 65536];
    let name = CString::new(name).unwrap();
    let len = heatfs::device::sys_home::get_xattr(o_path(path), &name, &mut value).ok()?;
    value.truncate(len);
    Some(value)
}

pub fn set_xattr(path: &Path, name: &str, value: &[u8]) {
    heatfs::device::sys_home::set_xattr(o_path(path), &CString::new(name).unwrap(), value, 0).unwrap();
}

fn xattrs(path: &Path) -> Vec<(String, Vec<u8>)> {
    let mut names = vec![0; 65536];
    let len = heatfs::device::sys_home::list_xattr(o_path(path), &mut names).unwrap_or(0);
    let names = names[..len].split(|byte| *byte == 0).filter(|name| !name.is_empty());
    let mut found: Vec<_> = names
        .map(|name| String::from_utf8_lossy(name).into_owned())
        .map(|name| (name.clone(), get_xattr(path, &name).unwrap()))
        .collect();
    found.sort();
    found
}

pub fn set_mtime(path: &Path, seconds: i64) {
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

pub fn bytes(seed: u8, len: usize) -> Vec<u8> {
    (0..len).map(|at| seed.wrapping_mul(31).wrapping_add((at % 251) as u8)).collect()
}

/// Something of everything.
pub fn fill(data: &Path) {
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

pub fn filled() -> (Lab, BTreeMap<PathBuf, Entry>) {
    filled_in(Lab::new())
}

pub fn filled_in(lab: Lab) -> (Lab, BTreeMap<PathBuf, Entry>) {
    fs::create_dir(lab.data()).unwrap();
    fill(&lab.data());
    let before = snapshot(&lab.data());
    (lab, before)
}

pub fn assert_same(got: &BTreeMap<PathBuf, Entry>, want: &BTreeMap<PathBuf, Entry>, when: &str) {
    for (path, entry) in want {
        let found = got.get(path).unwrap_or_else(|| panic!("{when}: {} is missing", path.display()));
        let text = |e: &Entry| format!("{:?}", Entry { content: Vec::new(), ..e.clone() });
        assert_eq!(text(found), text(entry), "{when}: {}", path.display());
        assert!(found.content == entry.content, "{when}: {} has another content", path.display());
    }
    let extra: Vec<_> = got.keys().filter(|path| !want.contains_key(*path)).collect();
    assert!(extra.is_empty(), "{when}: {extra:?}");
}

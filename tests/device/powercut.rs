//! Real filesystems on disks that lose their caches: the tier lab, where it is (the directory `shared` beside the repository, or
//! `HEATFS_SHARED`). Elsewhere the test says that it was not run, and passes, unless `HEATFS_REQUIRE_ALL` is set.

use heatfs::device::real::RealDevice;
use heatfs::device::{AlignedBuf, OpenMode};
use heatfs::error::Error;
use heatfs::namespace::{Caller, Namespace, ROOT_INODE, RenameMode};
use heatfs::volume::{Options, Tier, Volume, Wait};
use std::ffi::OsStr;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;
use uuid::Uuid;

const PAGES: u64 = 64;
const CALLER: Caller = Caller { uid: 0, gid: 0, pid: 1 };

/// The name that has to be there, and what makes it so.
type Work<'a> = (&'a str, &'a dyn Fn(&Namespace));

struct Lab {
    program: PathBuf,
    dir: tempfile::TempDir,
}

impl Lab {
    fn new() -> Result<Lab, String> {
        let beside = || Path::new(env!("CARGO_MANIFEST_DIR")).join("../shared");
        let shared = std::env::var_os("HEATFS_SHARED").map_or_else(beside, PathBuf::from);
        let program = shared.join("tierlab/tierlab");
        if !program.exists() {
            return Err(format!("no tier lab at {}", program.display()));
        }
        if !nix::unistd::geteuid().is_root() {
            return Err("the tier lab needs root".to_owned());
        }
        Ok(Lab { program, dir: tempfile::tempdir_in("/var/tmp").expect("a temporary directory") })
    }

    fn run(&self, filesystem: &str, words: &[&str]) {
        let mut command = Command::new("bash");
        command.arg(&self.program).arg("-C").arg(self.dir.path()).args(words).env("TIERLAB_FS", filesystem);
        for disk in ["NVME", "SATA", "HDD"] {
            command.env(format!("TIERLAB_SIZE_{disk}"), "512M");
        }
        let output = command.output().expect("the lab runs");
        assert!(output.status.success(), "{words:?}: {}", String::from_utf8_lossy(&output.stderr));
    }

    fn disk(&self) -> PathBuf {
        self.dir.path().join("mnt/nvme")
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        let mut purge = Command::new("bash");
        purge.arg(&self.program).arg("purge").arg(self.dir.path()).output().ok();
    }
}

/// A volume whose home alone lies on a disk: the log stays well, whatever happens to it.
struct HomeOnDisk {
    volume: Arc<Volume>,
    namespace: Arc<Namespace>,
    _log: tempfile::TempDir,
}

impl HomeOnDisk {
    fn new(home: &Path) -> HomeOnDisk {
        for directory in ["home/tree", "home/grave"] {
            std::fs::create_dir_all(home.join(directory)).expect("made");
        }
        let log = tempfile::tempdir_in("/var/tmp").expect("a temporary directory");
        let tier = |name: &str, path: &Path| {
            let device = RealDevice::open(path).expect("a device");
            Tier { name: name.to_owned(), device, budget_bytes: None, reserve_bytes: 0 }
        };
        let tiers = || vec![tier("fast", log.path()), tier("home", home)];
        let options = Options {
            block_bytes: 64 << 10,
            segment_bytes: 4 << 20,
            segments: 4,
            payload_cache_bytes: 1 << 20,
            coalesce_at_fill: 0.5,
            checkpoint_interval_s: 600,
        };
        Volume::create(&tiers(), &options, Uuid::from_u128(7), &mut |_| {}).expect("created");
        let (volume, _) = Volume::open(tiers(), options).expect("opened");
        let namespace = Namespace::open(&home.join("home"), Arc::clone(&volume), volume.volume_id()).expect("home");
        HomeOnDisk { volume, namespace, _log: log }
    }
}

/// The lab; None, and said so, where it cannot be had.
fn lab_or_say_so() -> Option<Lab> {
    Lab::new()
        .inspect_err(|reason| {
            assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: {reason}");
            eprintln!("\n*** NOT RUN: {reason} ***\n");
        })
        .ok()
}

/// Once a filesystem has shut down, the kernel answers the fsync of a directory with success, although nothing is durable.
#[test]
fn a_directory_of_a_failed_disk_is_never_called_durable() {
    let Some(lab) = lab_or_say_so() else { return };
    let dir = lab.dir.path().to_str().expect("UTF-8");
    for filesystem in ["xfs", "ext4"] {
        lab.run(filesystem, &["up", dir]);
        {
            let device = RealDevice::open(lab.disk()).expect("a device");
            device.create_dir_all("names").expect("made");
            device.sync_dir("names").expect("synced");
            device.open("names/new", OpenMode { create: true, ..OpenMode::default() }).expect("opens");
            lab.run(filesystem, &["fail", "nvme"]);
            for attempt in 1..=3 {
                assert!(device.sync_dir("names").is_err(), "{filesystem}, attempt {attempt}");
            }
        }
        lab.run(filesystem, &["purge", dir]);
    }
}

/// I5: what home was asked to make durable may be gone for good then, so nothing is acknowledged any more, neither names nor bytes.
#[test]
fn i5_a_volume_whose_home_fails_to_sync_is_read_only() {
    let Some(lab) = lab_or_say_so() else { return };
    let dir = lab.dir.path().to_str().expect("UTF-8");
    for filesystem in ["xfs", "ext4"] {
        lab.run(filesystem, &["up", dir]);
        {
            let HomeOnDisk { volume, namespace, .. } = &HomeOnDisk::new(&lab.disk());
            let create =
                |name: &str| namespace.create(ROOT_INODE, OsStr::new(name), CALLER, 0o600, 0).expect("created").node;
            let root = namespace.open_directory(ROOT_INODE).expect("opened");
            namespace.sync_home(&create("before")).expect("synced");
            namespace.sync_directory(&root).expect("synced");
            let node = create("after");
            lab.run(filesystem, &["fail", "nvme"]);
            for attempt in 1..=3 {
                assert!(namespace.sync_directory(&root).is_err(), "{filesystem}, attempt {attempt}");
                assert!(namespace.sync_home(&node).is_err(), "{filesystem}, attempt {attempt}");
            }
            let file = node.file().expect("a regular file");
            assert!(matches!(volume.write(file, 0, b"x", Wait::Allowed), Err(Error::ReadOnly { .. })), "{filesystem}");
            assert!(volume.status().read_only.is_some_and(|why| why.contains("home/tree")), "{filesystem}");
        }
        lab.run(filesystem, &["purge", dir]);
    }
}

/// R10: what the sync of a file, or of its directory, answered for is there after a power cut: a new name with the directories above it that are new themselves, one
/// more name, another name. A cut for each, since one sync may cover more than it was asked for.
#[test]
fn r10_names_that_were_synced_survive_a_power_cut() {
    let Some(lab) = lab_or_say_so() else { return };
    let dir = lab.dir.path().to_str().expect("UTF-8");
    let create = |namespace: &Namespace, directory: u64, name: &str| {
        namespace.create(directory, OsStr::new(name), CALLER, 0o600, 0).expect("created").node
    };
    let new = |namespace: &Namespace| {
        let make = |above: u64, name: &str| {
            namespace.make_directory(above, OsStr::new(name), CALLER, 0o700, 0).expect("made").node.inode
        };
        namespace.sync_home(&create(namespace, make(make(ROOT_INODE, "new"), "below"), "file")).expect("synced");
    };
    let linked = |namespace: &Namespace| {
        let first = create(namespace, ROOT_INODE, "first");
        namespace.sync_home(&first).expect("synced");
        namespace.link(first.inode, ROOT_INODE, OsStr::new("second")).expect("linked");
        namespace.sync_home(&first).expect("synced");
    };
    let renamed = |namespace: &Namespace| {
        let file = create(namespace, ROOT_INODE, "temporary");
        namespace.sync_home(&file).expect("synced");
        let (from, to) = (OsStr::new("temporary"), OsStr::new("renamed"));
        namespace.rename(ROOT_INODE, from, ROOT_INODE, to, RenameMode::Replace).expect("renamed");
        namespace.sync_home(&file).expect("synced");
    };
    let listed = |namespace: &Namespace| {
        create(namespace, ROOT_INODE, "listed");
        namespace.sync_directory(&namespace.open_directory(ROOT_INODE).expect("opened")).expect("synced");
    };
    let works: [Work<'_>; 4] =
        [("new/below/file", &new), ("second", &linked), ("renamed", &renamed), ("listed", &listed)];
    for filesystem in ["xfs", "ext4"] {
        lab.run(filesystem, &["up", dir]);
        for (name, work) in works {
            {
                let home = HomeOnDisk::new(&lab.disk());
                RealDevice::open(lab.disk()).and_then(|device| device.sync_all()).expect("synced");
                work(&home.namespace);
                lab.run(filesystem, &["powercut", "drop"]);
            }
            assert!(lab.disk().join("home/tree").join(name).exists(), "{filesystem}: {name} is gone");
        }
        assert!(!lab.disk().join("home/tree/temporary").exists(), "{filesystem}: it was renamed");
        lab.run(filesystem, &["purge", dir]);
    }
}

/// On xfs, `syncfs` does not flush the disk when there is no metadata to write, and a block that is written twice within a tick of the clock makes
/// none: a checkpoint took what was only in the disk's cache for durable, and a power cut took it away.
#[test]
fn what_a_device_has_synced_survives_a_power_cut() {
    let Some(lab) = lab_or_say_so() else { return };
    let dir = lab.dir.path().to_str().expect("UTF-8");
    for filesystem in ["xfs", "ext4"] {
        lab.run(filesystem, &["up", dir]);
        for round in 1..=4_u8 {
            {
                let device = RealDevice::open(lab.disk()).expect("a device");
                let mode = OpenMode { create: true, direct: true, ..OpenMode::default() };
                let file = device.open("base", mode).expect("opens");
                let mut page = AlignedBuf::zeroed(4096);
                page.fill(round);
                for number in 0..PAGES {
                    file.write_all_at(&page, number * 4096).expect("writes");
                    device.sync_all().expect("syncs");
                }
            }
            lab.run(filesystem, &["powercut", "drop"]);
            let bytes = std::fs::read(lab.disk().join("base")).expect("readable");
            let lost = bytes.chunks(4096).filter(|page| page.iter().any(|byte| *byte != round)).count();
            assert_eq!(
                (bytes.len() as u64, lost),
                (PAGES * 4096, 0),
                "{filesystem}, round {round}: pages lost after a sync"
            );
        }
        lab.run(filesystem, &["purge", dir]);
    }
}

//! Real filesystems on disks that lose their caches: the tier lab, where it is (the directory `shared` beside the repository, or
//! `HEATFS_SHARED`). Elsewhere the test says that it was not run, and passes, unless `HEATFS_REQUIRE_ALL` is set.

use heatfs::device::real::RealDevice;
use heatfs::device::{AlignedBuf, OpenMode};
use std::path::{Path, PathBuf};
use std::process::Command;

const PAGES: u64 = 64;

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

/// On xfs, `syncfs` does not flush the disk when there is no metadata to write, and a block that is written twice within a tick of the clock makes
/// none: a checkpoint took what was only in the disk's cache for durable, and a power cut took it away.
#[test]
fn what_a_device_has_synced_survives_a_power_cut() {
    let lab = match Lab::new() {
        Ok(lab) => lab,
        Err(reason) => {
            assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: {reason}");
            eprintln!("\n*** NOT RUN: {reason} ***\n");
            return;
        }
    };
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

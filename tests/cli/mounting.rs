//! `mount.heatfs`, as mount(8), fstab and suites that cycle a mount call it.

use super::bench::{Bench, complaint, pattern, read, wait_until};
use std::fs;
use std::process::Command;

/// The binary under the name of the helper, about this volume.
fn mount_heatfs(bench: &Bench, options: &str) -> Command {
    let helper = bench.path("mount.heatfs");
    if !helper.exists() {
        std::os::unix::fs::symlink(env!("CARGO_BIN_EXE_heatfs"), &helper).unwrap();
    }
    let mut command = Command::new(helper);
    command.arg(bench.config()).arg(bench.data()).args(["-n", "-o", options]);
    command.env("HEATFS__SOCKET", bench.socket()).env_remove("JOURNAL_STREAM");
    command
}

fn mounted(bench: &Bench) {
    let output =
        mount_heatfs(bench, "rw,noatime,nofail,_netdev,x-systemd.after=a.mount,user=root,noexec").output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    assert!(bench.is_mounted(), "mounted when the helper returns");
}

fn unmount(bench: &Bench) {
    assert!(Command::new("umount").arg(bench.data()).status().unwrap().success());
}

#[test]
fn a_mount_is_cycled_and_shows_its_source() {
    let Some(bench) = Bench::new() else { return };
    bench.adopt();
    mounted(&bench);
    let mounts = fs::read_to_string("/proc/self/mounts").unwrap();
    let wanted = format!("{} {} fuse.heatfs ", bench.config().display(), bench.data().display());
    let line = mounts.lines().find(|line| line.starts_with(&wanted)).unwrap_or_else(|| panic!("{mounts}"));
    assert!(line.contains("noexec") && line.contains("noatime"), "{line}");
    assert!(bench.ok(&["status"]).contains("healthy"));
    let line = complaint(&mount_heatfs(&bench, "rw").output().unwrap(), 1);
    assert!(line.contains("is mounted already"), "{line}");
    for round in 0..4 {
        let name = format!("round-{round}");
        fs::write(bench.data().join(&name), pattern(700_000)).unwrap();
        // Not synced: `umount` is a clean stop. The next mount waits until the last daemon has ended.
        unmount(&bench);
        mounted(&bench);
        assert_eq!(read(&bench.data().join(&name)), pattern(700_000));
    }
    assert_eq!(read(&bench.data().join("base/1/table")), pattern(3_000_001));
    unmount(&bench);
    assert!(wait_until(60, || bench.heatfs(&["release"]).output().unwrap().status.success()), "the daemon has ended");
}

#[test]
fn what_cannot_be_mounted_is_refused_in_one_line() {
    let Some(bench) = Bench::new() else { return };
    bench.adopt();
    for (options, wanted) in [("ro", "option ro"), ("rw,sync", "option sync")] {
        let line = complaint(&mount_heatfs(&bench, options).output().unwrap(), 2);
        assert!(line.contains(wanted), "{line}");
    }
    let elsewhere = bench.heatfs(&["mount-helper"]).arg(bench.config()).arg("/mnt").output().unwrap();
    assert!(complaint(&elsewhere, 2).contains("is to be mounted on"));
    let unknown = bench.heatfs(&["mount-helper", "no-such-volume"]).arg(bench.data()).output().unwrap();
    assert!(complaint(&unknown, 2).contains("/etc/heatfs/no-such-volume.toml"));
    fs::rename(bench.path("sata"), bench.path("away")).unwrap();
    let line = complaint(&mount_heatfs(&bench, "rw").output().unwrap(), 1);
    assert!(line.contains("sata"), "the daemon's own words: {line}");
    assert!(!bench.is_mounted());
    fs::rename(bench.path("away"), bench.path("sata")).unwrap();
    mounted(&bench);
    bench.ok(&["stop"]);
    assert!(!bench.is_mounted());
}

//! The host: FUSE, the kernel, limits, clock, memory.

use super::Verdict;
use crate::device::clock;
use nix::sys::resource::{Resource, getrlimit};
use std::fs::{self, File};
use std::path::Path;

/// The oldest kernel that the tests run on.
const KERNEL_TESTED: (u32, u32) = (6, 1);
/// The oldest kernel with what cannot be done without (copy_file_range between files, FUSE cached listings).
const KERNEL_OLDEST: (u32, u32) = (5, 4);
/// Base files, home's nodes, connections: fewer work, but are opened and closed all the time.
const FILES_ENOUGH: u64 = 65_536;
const MEMORY_ENOUGH_KIB: u64 = 512 << 10;
/// 2024-01-01, in nanoseconds since 1970.
const CLOCK_EARLIEST_NS: i64 = 1_704_067_200_000_000_000;

pub(super) fn examine() -> Vec<Verdict> {
    let is_root = nix::unistd::geteuid().is_root();
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let meminfo = fs::read_to_string("/proc/meminfo").unwrap_or_default();
    vec![
        fuse_device(File::options().read(true).write(true).open("/dev/fuse").err()),
        fusermount(is_root),
        kernel(release.trim()),
        open_files(getrlimit(Resource::RLIMIT_NOFILE).map_or(0, |(_, hard)| hard)),
        memory(&meminfo),
        clock_is_set(clock::wall_now().0),
    ]
}

fn fuse_device(error: Option<std::io::Error>) -> Verdict {
    match error {
        None => Verdict::ok("fuse", "/dev/fuse can be opened"),
        Some(error) => Verdict::fail(
            "fuse",
            format!("/dev/fuse: {error}"),
            "load the module (modprobe fuse); in a container, pass the device",
        ),
    }
}

fn fusermount(is_root: bool) -> Verdict {
    let dirs = std::env::var_os("PATH").unwrap_or_default();
    let found = std::env::split_paths(&dirs).any(|dir| dir.join("fusermount3").is_file());
    let others = fs::read_to_string("/etc/fuse.conf").unwrap_or_default();
    let others = others.lines().any(|line| line.trim() == "user_allow_other");
    match (found, is_root) {
        (false, false) => {
            Verdict::fail("fusermount3", "not found", "install the package fuse3: only it lets ordinary users mount")
        }
        (false, true) => Verdict::ok("fusermount3", "not found; root does not need it"),
        (true, false) if !others => Verdict::warn(
            "fusermount3",
            "found; other users, a server's too, will not see the mount",
            "set user_allow_other in /etc/fuse.conf, or mount as root",
        ),
        (true, _) => Verdict::ok("fusermount3", "found"),
    }
}

fn kernel(release: &str) -> Verdict {
    let found = format!("Linux {release}");
    let mut numbers = release.split(['.', '-']).map_while(|part| part.parse::<u32>().ok());
    let version = (numbers.next().unwrap_or(0), numbers.next().unwrap_or(0));
    if version < KERNEL_OLDEST {
        Verdict::fail("kernel", found, "5.4 is the oldest that can work")
    } else if version < KERNEL_TESTED {
        Verdict::warn("kernel", found, "6.1 is the oldest that heatfs is tested on")
    } else {
        Verdict::ok("kernel", found)
    }
}

fn open_files(limit: u64) -> Verdict {
    let found = format!("at most {limit} open files");
    match limit < FILES_ENOUGH {
        true => Verdict::warn(
            "limits",
            found,
            "raise the hard limit (LimitNOFILE=1048576 in the unit): files are closed and opened again all the time",
        ),
        false => Verdict::ok("limits", found),
    }
}

fn memory(meminfo: &str) -> Verdict {
    let line = meminfo.lines().find_map(|line| line.strip_prefix("MemAvailable:"));
    let available_kib = line.and_then(|rest| rest.split_ascii_whitespace().next()?.parse::<u64>().ok());
    match available_kib {
        None => Verdict::warn("memory", "/proc/meminfo does not say what is available", "is /proc mounted?"),
        Some(kib) if kib < MEMORY_ENOUGH_KIB => {
            let advice = "leave the daemon 256 MiB, and more for a large volume: some 16 MiB a TiB for the map, 128 MiB for heat";
            Verdict::warn("memory", format!("{} MiB available", kib >> 10), advice)
        }
        Some(kib) => Verdict::ok("memory", format!("{} MiB available", kib >> 10)),
    }
}

fn clock_is_set(wall_ns: i64) -> Verdict {
    match wall_ns < CLOCK_EARLIEST_NS {
        true => {
            Verdict::fail("clock", "it is before 2024", "set it: times of files and names of snapshots come from it")
        }
        false => Verdict::ok("clock", "set"),
    }
}

/// The rotating kind, as far as the kernel says; None for what is no block device.
pub(super) fn rotates(device: u64) -> Option<bool> {
    let (major, minor) = (nix::sys::stat::major(device), nix::sys::stat::minor(device));
    let below = format!("/sys/dev/block/{major}:{minor}");
    // A partition has its queue one level up.
    let queues = ["queue/rotational", "../queue/rotational"];
    let text = queues.iter().find_map(|queue| fs::read_to_string(Path::new(&below).join(queue)).ok())?;
    Some(text.trim() == "1")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::jobs::doctor::Level;

    #[test]
    fn what_would_hurt_is_told_from_what_is_well() {
        assert_eq!(kernel("6.12.3-amd64").level, Level::Ok);
        assert_eq!(kernel("6.1.0").level, Level::Ok);
        assert_eq!(kernel("5.15.0-91-generic").level, Level::Warn);
        assert_eq!(kernel("4.19.0").level, Level::Fail);
        assert_eq!(kernel("").level, Level::Fail);
        assert_eq!(open_files(1024).level, Level::Warn);
        assert_eq!(open_files(1 << 20).level, Level::Ok);
        assert_eq!(memory("MemTotal: 1 kB\nMemAvailable:   100000 kB\n").level, Level::Warn);
        assert_eq!(memory("MemAvailable:   8000000 kB\n").level, Level::Ok);
        assert_eq!(memory("").level, Level::Warn);
        assert_eq!(clock_is_set(0).level, Level::Fail);
        assert_eq!(clock_is_set(clock::wall_now().0).level, Level::Ok);
        assert_eq!(fuse_device(Some(std::io::ErrorKind::NotFound.into())).level, Level::Fail);
        assert!(fuse_device(None).advice.is_empty());
    }
}

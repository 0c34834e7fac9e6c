//! The mountpoint before and after: a dead mount of an earlier daemon is cleared, but never under a process that still holds it.

use super::holders::{describe, holders, is_dead, mount_at};
use super::settings::Settings;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use std::path::Path;
use std::process::{Command, Stdio};

/// Clears what a killed daemon left mounted. Errors: `Busy` while a daemon serves it or a process holds it.
pub fn clear_mountpoint(settings: &Settings) -> Result<()> {
    let point = settings.mount_path();
    match mount_at(&point)? {
        Some(_) if !is_dead(&point) => {
            Err(Error::Busy(format!("{} is mounted: stop the daemon first (heatfs stop)", point.display())))
        }
        Some(_) => clear(&point),
        None => Ok(()),
    }
}

/// Leaves `point` a directory on which nothing is mounted. Errors: `Busy` naming who holds a dead mount or what is mounted; `Io` for a path
/// that is no directory.
pub(super) fn clear(point: &Path) -> Result<()> {
    // A few layers may lie on each other, one per crash.
    for _ in 0..16 {
        let Some(mount) = mount_at(point)? else { return require_directory(point) };
        let shown = point.display();
        if !is_dead(point) {
            return Err(Error::Busy(format!(
                "mountpoint {shown}: {} ({}) is mounted there already",
                mount.fs_type, mount.source
            )));
        }
        let holding = holders(&mount);
        if !holding.is_empty() {
            return Err(Error::Busy(format!(
                "mountpoint {shown}: the mount of a daemon that is gone is still held by {}: end them first",
                describe(&holding)
            )));
        }
        tracing::warn!("mountpoint {shown}: clearing the mount of a daemon that is gone");
        unmount(point, true)?;
    }
    Err(Error::Busy(format!("mountpoint {}: it stays mounted, however often it is unmounted", point.display())))
}

fn require_directory(point: &Path) -> Result<()> {
    let stat =
        point.metadata().map_err(|error| Error::io("examining mountpoint", point.display().to_string(), error))?;
    match stat.is_dir() {
        true => Ok(()),
        false => Err(Error::Invalid(format!("mount = \"{}\": it is not a directory", point.display()))),
    }
}

/// Unmounts; with `detach` even what is busy, which then lives on until it is let go. Errors: `Busy` when it is in use.
pub(super) fn unmount(point: &Path, detach: bool) -> Result<()> {
    let flags = if detach { MntFlags::MNT_DETACH } else { MntFlags::empty() };
    let shown = point.display();
    match umount2(point, flags | MntFlags::UMOUNT_NOFOLLOW) {
        Ok(()) => Ok(()),
        Err(Errno::EBUSY) => Err(Error::Busy(format!("{shown} is in use"))),
        Err(Errno::EPERM) => by_fusermount(point, detach),
        Err(errno) => Err(Error::io("unmounting", shown.to_string(), errno.into())),
    }
}

/// Ordinary users unmount by the setuid program of libfuse.
fn by_fusermount(point: &Path, detach: bool) -> Result<()> {
    let flags = if detach { "-uz" } else { "-u" };
    let output = Command::new("fusermount3")
        .args([flags, "--"])
        .arg(point)
        .stdin(Stdio::null())
        .output()
        .map_err(|error| Error::io("running fusermount3 for", point.display().to_string(), error))?;
    let said = String::from_utf8_lossy(&output.stderr);
    match output.status.success() {
        true => Ok(()),
        false if said.contains("busy") => Err(Error::Busy(format!("{} is in use", point.display()))),
        false => Err(Error::Busy(format!("unmounting {}: {}", point.display(), said.trim()))),
    }
}

#[cfg(test)]
mod tests {
    use super::clear;
    use std::path::Path;

    #[test]
    fn what_cannot_be_a_mountpoint_is_named() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        clear(dir.path()).expect("a plain directory");
        let file = dir.path().join("file");
        std::fs::write(&file, "x").expect("written");
        assert!(clear(&file).expect_err("refused").to_string().contains("not a directory"));
        assert!(clear(&dir.path().join("none")).expect_err("refused").to_string().contains("none"));
        let proc = clear(Path::new("/proc")).expect_err("refused").to_string();
        assert!(proc.contains("proc") && proc.contains("mounted there already"), "{proc}");
    }
}

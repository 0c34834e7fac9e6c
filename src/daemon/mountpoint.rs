//! The mountpoint before and after: a dead mount of an earlier daemon is cleared, but never under a process that still holds it.

use super::holders::{describe, holders, is_dead, mount_at};
use super::settings::Settings;
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, umount2};
use nix::sys::stat::{Mode, fchmod, fstat};
use std::os::fd::OwnedFd;
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
        false => Err(Error::Invalid(format!("mountpoint {}: it is not a directory", point.display()))),
    }
}

/// A mountpoint that its owner may write to, for as long as mounting takes: fusermount3 insists on that, while an adopted directory
/// without its mount is kept read-only. Root mounts by itself and needs none of this.
pub(super) struct Opened {
    directory: OwnedFd,
    mode: Mode,
}

impl Opened {
    /// None: nothing had to be changed.
    pub(super) fn for_mounting(point: &Path) -> Result<Option<Opened>> {
        if nix::unistd::geteuid().is_root() {
            return Ok(None);
        }
        let io = |action, errno: Errno| Error::io(action, point.display().to_string(), errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC;
        let directory = open(point, flags, Mode::empty()).map_err(|errno| io("opening mountpoint", errno))?;
        let stat = fstat(&directory).map_err(|errno| io("examining mountpoint", errno))?;
        let mode = Mode::from_bits_truncate(stat.st_mode);
        if mode.contains(Mode::S_IWUSR) {
            return Ok(None);
        }
        fchmod(&directory, mode | Mode::S_IWUSR).map_err(|errno| io("making writable for mounting", errno))?;
        Ok(Some(Opened { directory, mode }))
    }
}

impl Drop for Opened {
    /// Through the descriptor: by now the path leads to the mount.
    fn drop(&mut self) {
        if let Err(errno) = fchmod(&self.directory, self.mode) {
            tracing::warn!("the mountpoint stays writable for its owner beneath the mount: {errno}");
        }
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

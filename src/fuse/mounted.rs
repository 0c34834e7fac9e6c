//! A mount of ours: seeing whether it is still there, and taking it away without ever pulling it from under somebody.

use crate::device::sys_home::{read_kernel_file, write_kernel_file};
use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::mount::{MntFlags, umount2};
use parking_lot::{Condvar, Mutex};
use std::mem::ManuallyDrop;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

/// Whether the session is over: after any kind of unmount, ours or somebody's.
#[derive(Default)]
pub struct Ended {
    over: Mutex<bool>,
    changed: Condvar,
}

impl Ended {
    pub fn tell(&self) {
        *self.over.lock() = true;
        self.changed.notify_all();
    }

    fn is_over(&self) -> bool {
        *self.over.lock()
    }

    fn wait(&self) {
        let mut over = self.over.lock();
        while !*over {
            self.changed.wait(&mut over);
        }
    }
}

/// A filesystem being served. Dropping it unmounts if nobody uses it, and otherwise leaves it with a warning.
pub struct Mounted {
    mountpoint: PathBuf,
    /// `major:minor` of the mount, which tells it from others at the same path.
    device: Option<String>,
    ended: Arc<Ended>,
    /// Never dropped: the library would unmount whatever is at that path by then.
    _session: ManuallyDrop<fuser::BackgroundSession>,
}

impl Mounted {
    pub(super) fn new(mountpoint: PathBuf, ended: Arc<Ended>, session: fuser::BackgroundSession) -> Mounted {
        let device = top_mount(&mountpoint);
        Mounted { mountpoint, device, ended, _session: ManuallyDrop::new(session) }
    }

    pub fn mountpoint(&self) -> &Path {
        &self.mountpoint
    }

    /// Waits until the session is over: unmounted by us, or by somebody else (a clean stop just the same). All requests are answered then.
    pub fn wait(&self) {
        self.ended.wait();
    }

    pub fn is_over(&self) -> bool {
        self.ended.is_over()
    }

    /// Unmounts if nobody uses the filesystem. Errors: `Busy`, and then everything goes on as before.
    pub fn try_unmount(&self) -> Result<()> {
        self.leave(MntFlags::empty())
    }

    /// Unmounts and waits until the last request is answered. Errors: `Busy`.
    pub fn unmount(&self) -> Result<()> {
        self.try_unmount()?;
        self.wait();
        Ok(())
    }

    /// Takes the mount away from under its users, whose open files fail from now on. Only when a person asked for it.
    pub fn force_unmount(&self) -> Result<()> {
        self.leave(MntFlags::MNT_FORCE | MntFlags::MNT_DETACH)
    }

    fn leave(&self, flags: MntFlags) -> Result<()> {
        let text = || self.mountpoint.display().to_string();
        if self.ended.is_over() {
            return Ok(());
        }
        if self.device.is_some() && top_mount(&self.mountpoint) != self.device {
            return Err(Error::Busy(format!("{}: something else is mounted over it", text())));
        }
        match umount2(&self.mountpoint, flags) {
            Ok(()) => Ok(()),
            Err(Errno::EBUSY) => Err(Error::Busy(format!("{}: files or directories in it are in use", text()))),
            // Gone between two looks.
            Err(Errno::EINVAL | Errno::ENOENT) => Ok(()),
            Err(Errno::EPERM) => self.leave_as_user(flags.contains(MntFlags::MNT_DETACH)),
            Err(errno) => Err(Error::io("unmount", text(), errno.into())),
        }
    }

    /// Ordinary users unmount through the setuid program that mounted for them.
    fn leave_as_user(&self, lazily: bool) -> Result<()> {
        let path = || self.mountpoint.display().to_string();
        let option = if lazily { "-uz" } else { "-u" };
        let output = Command::new("fusermount3")
            .arg(option)
            .arg("--")
            .arg(&self.mountpoint)
            .output()
            .map_err(|error| Error::io("run fusermount3 for", path(), error))?;
        if output.status.success() {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        Err(Error::Busy(format!("{}: {said}", path())))
    }

    /// Sets how far the kernel reads ahead; a hint, so a refusal is only told.
    pub(super) fn set_read_ahead(&self, kibibytes: u32) {
        let Some(device) = &self.device else { return };
        let path = format!("/sys/class/bdi/{device}/read_ahead_kb");
        if let Err(error) = write_kernel_file(&path, &kibibytes.to_string()) {
            tracing::info!("read-ahead stays the kernel's: {path}: {error}");
        }
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        if let Err(error) = self.try_unmount() {
            tracing::warn!("{error}; left mounted");
        }
    }
}

/// `major:minor` of the topmost mount at a path.
fn top_mount(path: &Path) -> Option<String> {
    top_mount_in(&read_kernel_file("/proc/self/mountinfo").ok()?, path)
}

fn top_mount_in(mountinfo: &str, path: &Path) -> Option<String> {
    let wanted = escape(path.to_str()?);
    let fields = mountinfo.lines().map(|line| line.split(' ').collect::<Vec<_>>());
    let mut ours = fields.filter(|fields| fields.get(4) == Some(&wanted.as_str()));
    ours.next_back().map(|fields| fields[2].to_owned())
}

/// As the kernel writes paths in mountinfo.
fn escape(path: &str) -> String {
    path.replace('\\', "\\134").replace(' ', "\\040").replace('\t', "\\011").replace('\n', "\\012")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_topmost_mount_counts() {
        let info = "1 0 8:1 / / rw - ext4 /dev/a rw\n\
                    2 1 0:50 / /mnt/a\\040b rw - fuse.heatfs heatfs:x rw\n\
                    3 2 0:51 / /mnt/a\\040b rw - tmpfs t rw\n";
        assert_eq!(top_mount_in(info, Path::new("/mnt/a b")).as_deref(), Some("0:51"));
        assert_eq!(top_mount_in(info, Path::new("/mnt")), None);
    }
}

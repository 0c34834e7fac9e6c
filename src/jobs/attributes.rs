//! Everything of a file but its name and content: owner, mode, times, extended attributes and ACLs, read from one file and given to another.
//!
//! Our own attributes ([`XATTR_PREFIX`]) are never among them: they are neither copied into home nor out of it (R10).

use crate::device::sys_home;
use crate::error::{Error, Result};
use crate::ondisk::file_id::XATTR_PREFIX;
use crate::units::WallNs;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag};
use nix::sys::stat::{Mode, UtimensatFlags};
use nix::sys::time::TimeSpec;
use std::ffi::{CStr, CString};
use std::fs::{self, Metadata, Permissions};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

const ACL_PREFIX: &[u8] = b"system.posix_acl_";
/// The policy of the machine decides on these; where it refuses the old label, its own is right.
const LABEL: &[u8] = b"security.selinux";

/// What [`Attributes::read`] found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Attributes {
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub accessed: WallNs,
    pub modified: WallNs,
    symlink: bool,
    /// Sorted by name.
    xattrs: Vec<(CString, Vec<u8>)>,
}

impl Attributes {
    /// Of the thing itself, if it is a symbolic link.
    pub fn read(path: &Path) -> Result<Attributes> {
        let meta = fs::symlink_metadata(path).map_err(|e| io("stat", path, e))?;
        let fd = open_path(path)?;
        let mut xattrs = Vec::new();
        for name in list(&fd, path)? {
            let value =
                grow(|buf| sys_home::get_xattr(&fd, &name, buf)).map_err(|e| io("get attribute of", path, e.into()))?;
            xattrs.push((name, value));
        }
        xattrs.sort();
        Ok(Attributes {
            mode: meta.mode() & 0o7777,
            uid: meta.uid(),
            gid: meta.gid(),
            accessed: WallNs(wall(meta.atime(), meta.atime_nsec())),
            modified: modified(&meta),
            symlink: meta.is_symlink(),
            xattrs,
        })
    }

    /// Of something that is yet to be made. `owner`: user and group; `times`: of access and modification. Errors: `Invalid` for a name of an attribute
    /// that cannot be.
    pub fn of(
        mode: u32,
        owner: (u32, u32),
        times: (WallNs, WallNs),
        symlink: bool,
        xattrs: &[(Vec<u8>, Vec<u8>)],
    ) -> Result<Attributes> {
        let named = |(name, value): &(Vec<u8>, Vec<u8>)| match CString::new(name.as_slice()) {
            Ok(name) => Ok((name, value.clone())),
            Err(_) => Err(Error::Invalid(format!("attribute name {:?}", String::from_utf8_lossy(name)))),
        };
        Ok(Attributes {
            mode,
            uid: owner.0,
            gid: owner.1,
            accessed: times.0,
            modified: times.1,
            symlink,
            xattrs: xattrs.iter().map(named).collect::<Result<_>>()?,
        })
    }

    /// Is it the same but for the time of access?
    pub fn is_like(&self, other: &Attributes) -> bool {
        let sorted = |attributes: &Attributes| {
            let mut xattrs = attributes.xattrs.clone();
            xattrs.retain(|(name, _)| name.to_bytes() != LABEL);
            xattrs.sort();
            xattrs
        };
        let what = |one: &Attributes| (one.uid, one.gid, one.modified, one.symlink);
        // The mode of a link says nothing.
        let modes = self.symlink || self.mode == other.mode;
        modes && what(self) == what(other) && sorted(self) == sorted(other)
    }

    /// Leaves the ACLs out: with them the mode would mean something else.
    pub fn drop_acls(&mut self) {
        self.xattrs.retain(|(name, _)| !name.to_bytes().starts_with(ACL_PREFIX));
    }

    /// Makes `path` have these. May be repeated.
    pub fn apply(&self, path: &Path) -> Result<()> {
        let meta = fs::symlink_metadata(path).map_err(|e| io("stat", path, e))?;
        if (meta.uid(), meta.gid()) != (self.uid, self.gid) {
            std::os::unix::fs::lchown(path, Some(self.uid), Some(self.gid))
                .map_err(|e| io("change owner of", path, e))?;
        }
        let chmod = |mode| fs::set_permissions(path, Permissions::from_mode(mode)).map_err(|e| io("chmod", path, e));
        if !self.symlink {
            // An owner who is not root needs the permission to write for setting `user.` attributes. Nobody else needs any yet: where there is an ACL the
            // group's bits are its mask, and would mean more without it.
            chmod(self.mode & 0o700 | 0o600)?;
        }
        let fd = open_path(path)?;
        for name in list(&fd, path)? {
            if self.xattrs.iter().all(|(kept, _)| *kept != name) {
                remove(&fd, &name, path)?;
            }
        }
        self.xattrs.iter().try_for_each(|(name, value)| set(&fd, name, value, path))?;
        if !self.symlink {
            // Last, since setting an ACL changes the mode.
            chmod(self.mode)?;
        }
        let times = (spec(self.accessed), spec(self.modified));
        nix::sys::stat::utimensat(AT_FDCWD, path, &times.0, &times.1, UtimensatFlags::NoFollowSymlink)
            .map_err(|e| io("set times of", path, e.into()))
    }
}

/// Sets one of our own attributes.
pub(super) fn mark(path: &Path, name: &str, value: &[u8]) -> Result<()> {
    let name = CString::new(name).map_err(|_| Error::Invalid(format!("attribute name {name:?}")))?;
    set(&open_path(path)?, &name, value, path)
}

/// The value of one of our own attributes, if it is there.
pub(super) fn read_mark(path: &Path, name: &str) -> Result<Option<Vec<u8>>> {
    let name = CString::new(name).map_err(|_| Error::Invalid(format!("attribute name {name:?}")))?;
    let fd = open_path(path)?;
    match grow(|buf| sys_home::get_xattr(&fd, &name, buf)) {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENODATA | Errno::EOPNOTSUPP) => Ok(None),
        Err(e) => Err(io("get attribute of", path, e.into())),
    }
}

/// Takes all of our own attributes off.
pub(super) fn unmark(path: &Path) -> Result<()> {
    let fd = open_path(path)?;
    let ours = |name: &CString| name.to_bytes().starts_with(XATTR_PREFIX.as_bytes());
    list_all(&fd, path)?.iter().filter(|name| ours(name)).try_for_each(|name| remove(&fd, name, path))
}

/// Modification time.
pub(super) fn modified(meta: &Metadata) -> WallNs {
    WallNs(wall(meta.mtime(), meta.mtime_nsec()))
}

/// Sets the modification time and leaves the access time.
pub(super) fn set_modified(path: &Path, time: WallNs) -> Result<()> {
    nix::sys::stat::utimensat(AT_FDCWD, path, &TimeSpec::UTIME_OMIT, &spec(time), UtimensatFlags::NoFollowSymlink)
        .map_err(|e| io("set times of", path, e.into()))
}

fn wall(seconds: i64, nanoseconds: i64) -> i64 {
    seconds.saturating_mul(1_000_000_000).saturating_add(nanoseconds)
}

fn spec(time: WallNs) -> TimeSpec {
    TimeSpec::new(time.0.div_euclid(1_000_000_000), time.0.rem_euclid(1_000_000_000))
}

fn io(action: &'static str, path: &Path, e: std::io::Error) -> Error {
    Error::io(action, path.display().to_string(), e)
}

fn open_path(path: &Path) -> Result<OwnedFd> {
    let flags = OFlag::O_PATH | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
    nix::fcntl::open(path, flags, Mode::empty()).map_err(|e| io("open", path, e.into()))
}

/// Names of all attributes but ours.
fn list(fd: &OwnedFd, path: &Path) -> Result<Vec<CString>> {
    let mut names = list_all(fd, path)?;
    names.retain(|name| !name.to_bytes().starts_with(XATTR_PREFIX.as_bytes()));
    Ok(names)
}

fn list_all(fd: &OwnedFd, path: &Path) -> Result<Vec<CString>> {
    let names = match grow(|buf| sys_home::list_xattr(fd, buf)) {
        Err(Errno::EOPNOTSUPP) => return Ok(Vec::new()),
        names => names.map_err(|e| io("list attributes of", path, e.into()))?,
    };
    let names = names.split(|byte| *byte == 0).filter(|name| !name.is_empty());
    Ok(names.filter_map(|name| CString::new(name).ok()).collect())
}

fn set(fd: &OwnedFd, name: &CStr, value: &[u8], path: &Path) -> Result<()> {
    match sys_home::set_xattr(fd, name, value, 0) {
        Err(Errno::EOPNOTSUPP | Errno::EPERM | Errno::EACCES) if name.to_bytes() == LABEL => Ok(()),
        result => result.map_err(|e| io("set attribute of", path, e.into())),
    }
}

fn remove(fd: &OwnedFd, name: &CStr, path: &Path) -> Result<()> {
    match sys_home::remove_xattr(fd, name) {
        Ok(()) | Err(Errno::ENODATA) => Ok(()),
        Err(_) if name.to_bytes() == LABEL => Ok(()),
        Err(e) => Err(io("remove attribute of", path, e.into())),
    }
}

/// Reads a value whose length is not known beforehand.
fn grow(read: impl Fn(&mut [u8]) -> nix::Result<usize>) -> nix::Result<Vec<u8>> {
    let mut value = vec![0; 256];
    loop {
        match read(&mut value) {
            Ok(len) => {
                value.truncate(len);
                return Ok(value);
            }
            Err(Errno::ERANGE) if value.len() < 1 << 17 => value.resize(value.len() * 4, 0),
            Err(e) => return Err(e),
        }
    }
}

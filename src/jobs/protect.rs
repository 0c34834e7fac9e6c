//! The directory while its files are heatfs's: an empty mount point on which no database starts and none is made by mistake.

use super::anchor::{Anchor, Spot};
use super::attributes::Attributes;
use super::backing::{exists, remove_file, sync_dir};
use crate::device::sys;
use crate::error::{Error, Result};
use serde::Serialize;
use std::fs::{self, DirBuilder, File, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::{DirBuilderExt, PermissionsExt};
use std::path::Path;

/// Lies in the directory where it cannot be made immutable; `initdb` and its like refuse a directory that is not empty.
pub const MARKER: &str = "HEATFS-IS-NOT-MOUNTED-HERE";

/// How the directory is protected while heatfs is not mounted on it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protection {
    /// Empty, mode 0500 and immutable (chattr +i).
    Immutable,
    /// Mode 0500, with a file named [`MARKER`].
    Marker,
}

/// Makes the directory, with owner, times and label of the root that is to be mounted there; nobody may enter or write. May be repeated.
pub(super) fn make_mount_point(spot: &Spot, mut attributes: Attributes) -> Result<()> {
    let made = DirBuilder::new().mode(0o700).create(spot.path());
    match made {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            return Err(Error::io("create", spot.path().display().to_string(), e));
        }
        _ => {}
    }
    attributes.mode = 0o500;
    attributes.drop_acls();
    attributes.apply(Anchor::of_name(spot)?.path())?;
    sync_dir(spot.parent().path())
}

/// Protects an empty directory. May be repeated.
pub(super) fn protect(spot: &Spot) -> Result<Protection> {
    let held = Anchor::of_name(spot)?;
    protect_held(held.path()).map_err(|error| held.named(error))
}

fn protect_held(directory: &Path) -> Result<Protection> {
    let io = |action, e| Error::io(action, directory.display().to_string(), e);
    let open = File::open(directory).map_err(|e| io("open", e))?;
    if is_immutable(&open) {
        return Ok(Protection::Immutable);
    }
    let chmod = |mode| fs::set_permissions(directory, Permissions::from_mode(mode)).map_err(|e| io("chmod", e));
    let marker = directory.join(MARKER);
    chmod(0o700)?;
    remove_file(&marker)?;
    chmod(0o500)?;
    let flags = sys::inode_flags(open.as_fd());
    if flags.and_then(|flags| sys::set_inode_flags(open.as_fd(), flags | sys::INODE_IMMUTABLE)).is_ok() {
        open.sync_all().map_err(|e| io("sync", e))?;
        return Ok(Protection::Immutable);
    }
    chmod(0o700)?;
    let text = "The files of this directory are kept by heatfs, which is not mounted at the moment.\n\
                Do not create a database here: mount the volume (heatfs daemon), or take the files back (heatfs release).\n";
    let write = || fs::write(&marker, text).and_then(|()| File::open(&marker)?.sync_all());
    write().map_err(|e| Error::io("write", marker.display().to_string(), e))?;
    chmod(0o500)?;
    open.sync_all().map_err(|e| io("sync", e))?;
    Ok(Protection::Marker)
}

/// Makes a protected directory an ordinary empty one. Nothing happens when there is none.
pub(super) fn unprotect(spot: &Spot) -> Result<()> {
    if !exists(spot.path())? {
        return Ok(());
    }
    let held = Anchor::of_name(spot)?;
    unprotect_held(held.path()).map_err(|error| held.named(error))
}

fn unprotect_held(directory: &Path) -> Result<()> {
    let io = |action, e| Error::io(action, directory.display().to_string(), e);
    let open = File::open(directory).map_err(|e| io("open", e))?;
    if is_immutable(&open) {
        let flags = sys::inode_flags(open.as_fd()).map_err(|e| io("get flags of", e))?;
        sys::set_inode_flags(open.as_fd(), flags & !sys::INODE_IMMUTABLE)
            .map_err(|e| io("clear immutable flag of", e))?;
    }
    if exists(&directory.join(MARKER))? {
        fs::set_permissions(directory, Permissions::from_mode(0o700)).map_err(|e| io("chmod", e))?;
        remove_file(&directory.join(MARKER))?;
    }
    Ok(())
}

/// How a directory is protected at the moment.
pub(super) fn protection_of(spot: &Spot) -> Result<Protection> {
    let held = Anchor::of_name(spot)?;
    let open = File::open(held.path());
    let open = open.map_err(|e| Error::io("open", spot.shown().display().to_string(), e))?;
    Ok(if is_immutable(&open) { Protection::Immutable } else { Protection::Marker })
}

fn is_immutable(directory: &File) -> bool {
    sys::inode_flags(directory.as_fd()).is_ok_and(|flags| flags & sys::INODE_IMMUTABLE != 0)
}

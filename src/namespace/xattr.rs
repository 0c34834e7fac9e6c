//! Extended attributes and ACLs: home's, except that ours cannot be seen or touched through the mount.

use super::credentials::Caller;
use super::fault::Outcome;
use super::node::{PRIVILEGES_UNKNOWN, ROOT_INODE};
use super::{Changes, Namespace};
use crate::device::sys_home;
use crate::ondisk::file_id::XATTR_PREFIX;
use nix::errno::Errno;
use nix::sys::stat::fstat;
use std::ffi::{CString, OsStr};
use std::os::unix::ffi::OsStrExt;
use std::sync::atomic::Ordering;

/// Setting it may change the mode.
const XATTR_ACCESS_ACL: &[u8] = b"system.posix_acl_access";

impl Namespace {
    /// The value; `ENODATA` for ours.
    pub fn get_xattr(&self, inode: u64, name: &OsStr) -> Outcome<Vec<u8>> {
        if is_hidden(name.as_bytes()) {
            return Err(Errno::ENODATA.into());
        }
        let node = self.node(inode)?;
        let name = c_name(name)?;
        let fd = node.fd()?;
        Ok(read_growing(|buf| sys_home::get_xattr(&fd, &name, buf))?)
    }

    /// All names, each ended by NUL; without ours.
    pub fn list_xattr(&self, inode: u64) -> Outcome<Vec<u8>> {
        let node = self.node(inode)?;
        let fd = node.fd()?;
        Ok(without_hidden(&read_growing(|buf| sys_home::list_xattr(&fd, buf))?))
    }

    /// `EPERM` for ours.
    pub fn set_xattr(&self, inode: u64, caller: Caller, name: &OsStr, value: &[u8], flags: i32) -> Outcome<()> {
        if is_hidden(name.as_bytes()) {
            return Err(Errno::EPERM.into());
        }
        let node = self.node(inode)?;
        let changing = self.changing();
        changing.inode(&node);
        sys_home::set_xattr(node.fd()?, &c_name(name)?, value, flags)?;
        node.privileges.store(PRIVILEGES_UNKNOWN, Ordering::Relaxed);
        self.note_change(&node, &[]);
        if name.as_bytes() == XATTR_ACCESS_ACL {
            self.after_access_acl(inode, caller)?;
        }
        Ok(())
    }

    /// `EPERM` for ours.
    pub fn remove_xattr(&self, inode: u64, name: &OsStr) -> Outcome<()> {
        if is_hidden(name.as_bytes()) {
            return Err(Errno::EPERM.into());
        }
        let node = self.node(inode)?;
        let changing = self.changing();
        changing.inode(&node);
        sys_home::remove_xattr(node.fd()?, &c_name(name)?)?;
        self.note_change(&node, &[]);
        Ok(())
    }

    /// An access ACL also sets the permission bits. The daemon's home keeps a setgid bit that it would take from a caller outside the
    /// file's group, so it is taken here; and the mode that the mount's root shows is kept apart from home's.
    fn after_access_acl(&self, inode: u64, caller: Caller) -> Outcome<()> {
        let node = self.node(inode)?;
        let stat = fstat(node.fd()?)?;
        let mode = stat.st_mode & 0o7777;
        let loses_setgid = mode & libc::S_ISGID != 0 && caller.uid != 0 && !caller.is_in_group(stat.st_gid);
        let shows_own_mode = inode == ROOT_INODE && self.root_mode.lock().is_some();
        if loses_setgid || shows_own_mode {
            let mode = if loses_setgid { mode & !libc::S_ISGID } else { mode };
            self.change(inode, caller, Changes { mode: Some(mode), ..Changes::default() })?;
        }
        Ok(())
    }
}

pub(super) fn is_hidden(name: &[u8]) -> bool {
    name.starts_with(XATTR_PREFIX.as_bytes())
}

fn without_hidden(names: &[u8]) -> Vec<u8> {
    let mut shown = Vec::with_capacity(names.len());
    for name in names.split_inclusive(|byte| *byte == 0) {
        if !is_hidden(name) {
            shown.extend_from_slice(name);
        }
    }
    shown
}

fn c_name(name: &OsStr) -> Outcome<CString> {
    Ok(CString::new(name.as_bytes()).map_err(|_| Errno::EINVAL)?)
}

/// Reads a value whose length may change between asking for it and reading it.
pub(super) fn read_growing(read: impl Fn(&mut [u8]) -> nix::Result<usize>) -> nix::Result<Vec<u8>> {
    let mut value = vec![0; 256];
    loop {
        match read(&mut value) {
            Ok(length) => {
                value.truncate(length);
                return Ok(value);
            }
            Err(Errno::ERANGE) => {
                let needed = read(&mut [])?;
                value.resize(needed.max(value.len()) + 64, 0);
            }
            Err(errno) => return Err(errno),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ours_are_left_out_of_lists() {
        let names = b"user.a\0user.heatfs.id\0system.posix_acl_access\0user.heatfs.root-mode\0";
        assert_eq!(without_hidden(names), b"user.a\0system.posix_acl_access\0");
        assert!(without_hidden(b"").is_empty());
    }
}

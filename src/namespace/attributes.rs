//! Attributes: the one function through which all of them leave (R20), and what changes them.

use super::credentials::Caller;
use super::fault::{Fault, Outcome};
use super::node::{Content, Node, PRIVILEGES_NONE, PRIVILEGES_UNKNOWN, ROOT_INODE};
use super::{Namespace, XATTR_CAPABILITY};
use crate::device::sys_home;
use crate::error::Error;
use crate::ondisk::file_id::{XATTR_ROOT_MODE, encode_root_mode};
use crate::units::WallNs;
use crate::volume::{FileAttr, Wait};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::sys::stat::{FchmodatFlags, FileStat, Mode, fchmodat, fstat};
use nix::unistd::{Gid, Uid, fchownat};
use std::ffi::CString;
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// A time of an inode, as stat(2) has it; wider than [`WallNs`], because home may hold any year.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Default)]
pub struct Time {
    pub seconds: i64,
    pub nanoseconds: u32,
}

const NS_PER_S: i64 = 1_000_000_000;

impl From<WallNs> for Time {
    fn from(wall: WallNs) -> Time {
        Time {
            seconds: wall.0.div_euclid(NS_PER_S),
            nanoseconds: u32::try_from(wall.0.rem_euclid(NS_PER_S)).unwrap_or(0),
        }
    }
}

impl Time {
    /// Clamped to the years that 64 bits of nanoseconds can name (1677 to 2262).
    pub fn to_wall(self) -> WallNs {
        WallNs(self.seconds.saturating_mul(NS_PER_S).saturating_add(i64::from(self.nanoseconds)))
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum TimeChange {
    Now,
    To(Time),
}

/// stat(2) of the mount.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Attributes {
    pub inode: u64,
    pub size_bytes: u64,
    pub blocks_512: u64,
    pub access: Time,
    pub modification: Time,
    pub change: Time,
    /// Type and permission bits.
    pub mode: u32,
    pub links: u32,
    pub uid: u32,
    pub gid: u32,
    /// In the kernel's 32-bit encoding.
    pub device: u32,
}

/// What setattr asks for; None: unchanged. All None is the kernel's way to say that set-id bits and capabilities must go.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Changes {
    pub mode: Option<u32>,
    pub uid: Option<u32>,
    pub gid: Option<u32>,
    pub size_bytes: Option<u64>,
    pub access: Option<TimeChange>,
    pub modification: Option<TimeChange>,
}

impl Namespace {
    /// The only source of attributes: home's stat, overlaid by what the engine knows better.
    pub fn attributes(&self, node: &Node) -> Outcome<Attributes> {
        let buried = node.buried.lock();
        let stat = fstat(node.fd()?)?;
        let engine = node.file().map(|file| self.volume.attr(file));
        let mut shown = overlay(&stat, engine, *buried);
        if node.inode == ROOT_INODE
            && let Some(mode) = *self.root_mode.lock()
        {
            shown.mode = (shown.mode & libc::S_IFMT) | mode;
        }
        Ok(shown)
    }

    pub fn change(&self, inode: u64, caller: Caller, changes: Changes) -> Outcome<Attributes> {
        let node = self.node(inode)?;
        let changing = self.changing();
        changing.inode(&node);
        if changes.mode.is_some() || changes.uid.is_some() || changes.gid.is_some() || changes == Changes::default() {
            self.change_owner_and_mode(&node, changes)?;
        }
        if let Some(size_bytes) = changes.size_bytes {
            self.resize(&node, caller, size_bytes)?;
        }
        if changes.access.is_some() || changes.modification.is_some() {
            self.change_times(&node, changes.access, changes.modification)?;
        }
        self.attributes(&node)
    }

    /// Owner first: home takes set-id bits away when the owner changes, and a mode asked for together with it comes after.
    fn change_owner_and_mode(&self, node: &Arc<Node>, changes: Changes) -> Outcome<()> {
        let changes_owner = changes.uid.is_some() || changes.gid.is_some();
        if changes_owner || changes.mode.is_none() {
            let (uid, gid) = (changes.uid.map(Uid::from_raw), changes.gid.map(Gid::from_raw));
            // Changing neither is how home is told to take set-id bits and file capabilities away.
            fchownat(node.fd()?, c"", uid, gid, AtFlags::AT_EMPTY_PATH)?;
        }
        if let Some(mode) = changes.mode {
            self.change_mode(node, mode & 0o7777)?;
        }
        node.privileges.store(PRIVILEGES_UNKNOWN, Ordering::Relaxed);
        self.note_change(node, &[]);
        Ok(())
    }

    /// After every change of home's inode: a sync must cover it, with these directories, and the change time must move on. Home's clock may run some
    /// milliseconds behind the engine's, so that the engine has to be told where it has a change time of its own.
    pub(super) fn note_change(&self, node: &Node, directories: &[&Arc<Node>]) {
        node.mark_changed(directories);
        if let Some(file) = node.file()
            && self.volume.attr(file).ctime.is_some()
            && let Err(error) = self.volume.set_times(file, None)
        {
            tracing::warn!("change time of file {}: {error}", file.id());
        }
    }

    fn change_mode(&self, node: &Arc<Node>, mode: u32) -> Outcome<()> {
        if node.inode == ROOT_INODE {
            let mut root_mode = self.root_mode.lock();
            if root_mode.is_some() {
                let name = CString::new(XATTR_ROOT_MODE).map_err(|_| Errno::EINVAL)?;
                sys_home::set_xattr(node.fd()?, &name, encode_root_mode(mode).as_bytes(), 0)?;
                *root_mode = Some(mode);
                return Ok(());
            }
        }
        let fd = node.fd()?;
        let path = sys_home::descriptor_path(&fd);
        let mode = Mode::from_bits_truncate(mode);
        Ok(fchmodat(AT_FDCWD, path.as_c_str(), mode, FchmodatFlags::FollowSymlink)?)
    }

    fn resize(&self, node: &Arc<Node>, caller: Caller, size_bytes: u64) -> Outcome<()> {
        let file = self.content(node)?;
        if size_bytes > super::FILE_BYTES_MAX {
            return Err(Errno::EFBIG.into());
        }
        // The kernel's flag for "the caller may not keep set-id bits" does not reach us for truncates; root is who may.
        if caller.uid != 0 {
            self.drop_privileges(node)?;
        }
        Ok(self.volume.set_size(file, size_bytes)?)
    }

    fn change_times(
        &self,
        node: &Arc<Node>,
        access: Option<TimeChange>,
        modification: Option<TimeChange>,
    ) -> Outcome<()> {
        sys_home::set_times(node.fd()?, timespec(access), timespec(modification))?;
        if let Some(file) = node.file() {
            // Read back: "now" is home's clock, and home may round.
            let modified = match modification {
                Some(_) => Some(times(&fstat(node.fd()?)?).1.to_wall()),
                None => None,
            };
            self.volume.set_times(file, modified)?;
        }
        self.note_change(node, &[]);
        Ok(())
    }

    /// Takes set-id bits and file capabilities away, as a write by somebody who may not keep them demands. One load when there are none.
    pub fn drop_privileges(&self, node: &Arc<Node>) -> Outcome<()> {
        if node.privileges.load(Ordering::Relaxed) == PRIVILEGES_NONE {
            return Ok(());
        }
        let stat = fstat(node.fd()?)?;
        let mut keep = stat.st_mode & 0o7777 & !libc::S_ISUID;
        if stat.st_mode & libc::S_IXGRP != 0 {
            // Without group execution the setgid bit is no privilege but a mark for mandatory locks.
            keep &= !libc::S_ISGID;
        }
        let changing = self.changing();
        changing.inode(node);
        if keep != stat.st_mode & 0o7777 {
            self.change_mode(node, keep)?;
            self.note_change(node, &[]);
        }
        if stat.st_mode & 0o111 != 0 {
            match sys_home::remove_xattr(node.fd()?, XATTR_CAPABILITY) {
                Ok(()) => self.note_change(node, &[]),
                Err(Errno::ENODATA | Errno::EOPNOTSUPP | Errno::EPERM) => {}
                Err(errno) => return Err(errno.into()),
            }
        }
        node.privileges.store(PRIVILEGES_NONE, Ordering::Relaxed);
        Ok(())
    }

    /// The engine's file of a node that must have content.
    pub fn content<'n>(&self, node: &'n Node) -> Outcome<&'n Arc<crate::volume::File>> {
        match &node.content {
            Content::File(file) => Ok(file),
            Content::Home => Err(Errno::EINVAL.into()),
            Content::Untrusted(_) => Err(Errno::EIO.into()),
        }
    }

    /// Every byte the caller wrote is in the log when this returns: for renames over another file (R11).
    pub(super) fn flush(&self, node: &Node) -> Outcome<()> {
        let Some(file) = node.file() else { return Ok(()) };
        let (tell, told) = crossbeam_channel::bounded(1);
        // The receiver can only be gone after the time below, when nobody asks any more.
        self.volume.sync(file, Box::new(move |outcome| drop(tell.send(outcome))));
        match told.recv_timeout(super::LOG_WAIT_MAX) {
            Ok(outcome) => Ok(outcome?),
            Err(_) => Err(Fault::Engine(Error::ReadOnly { why: "the log does not answer".to_owned() })),
        }
    }

    /// Writes on behalf of an application.
    pub fn write(&self, node: &Node, offset: u64, data: &[u8], wait: Wait) -> Outcome<()> {
        let file = self.content(node)?;
        let end = offset.checked_add(data.len() as u64);
        if end.is_none_or(|end| end > super::FILE_BYTES_MAX) {
            return Err(Errno::EFBIG.into());
        }
        Ok(self.volume.write(file, offset, data, wait)?)
    }
}

fn overlay(stat: &FileStat, engine: Option<FileAttr>, buried: bool) -> Attributes {
    let (access, modification, change) = times(stat);
    let links = stat.st_nlink.saturating_sub(u64::from(buried));
    let home = Attributes {
        inode: stat.st_ino,
        size_bytes: u64::try_from(stat.st_size).unwrap_or(0),
        blocks_512: u64::try_from(stat.st_blocks).unwrap_or(0),
        access,
        modification,
        change,
        mode: stat.st_mode,
        links: u32::try_from(links).unwrap_or(u32::MAX),
        uid: stat.st_uid,
        gid: stat.st_gid,
        // The kernel's and the C library's encodings agree in the low 32 bits.
        device: u32::try_from(stat.st_rdev & u64::from(u32::MAX)).unwrap_or(0),
    };
    let Some(engine) = engine else { return home };
    Attributes {
        size_bytes: engine.size_bytes,
        blocks_512: engine.blocks_512,
        modification: engine.mtime.map_or(modification, Time::from),
        // Links, modes and owners change in home, bytes in the engine: the later of both is the last change of the inode.
        change: engine.ctime.map_or(change, |engine| change.max(Time::from(engine))),
        ..home
    }
}

pub(super) fn times(stat: &FileStat) -> (Time, Time, Time) {
    let time = |seconds, nanoseconds| Time { seconds, nanoseconds: u32::try_from(nanoseconds).unwrap_or(0) };
    (
        time(stat.st_atime, stat.st_atime_nsec),
        time(stat.st_mtime, stat.st_mtime_nsec),
        time(stat.st_ctime, stat.st_ctime_nsec),
    )
}

fn timespec(change: Option<TimeChange>) -> libc::timespec {
    match change {
        None => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_OMIT },
        Some(TimeChange::Now) => libc::timespec { tv_sec: 0, tv_nsec: libc::UTIME_NOW },
        Some(TimeChange::To(time)) => libc::timespec { tv_sec: time.seconds, tv_nsec: i64::from(time.nanoseconds) },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_before_1970_round_trip() {
        for wall in [0, 1, -1, -NS_PER_S, -NS_PER_S - 1, 1_700_000_000_123_456_789] {
            assert_eq!(Time::from(WallNs(wall)).to_wall(), WallNs(wall));
        }
        assert_eq!(Time { seconds: i64::MAX, nanoseconds: 5 }.to_wall(), WallNs(i64::MAX));
    }

    /// R20: a size taken from home would shrink the kernel's idea of a file whose bytes the engine holds.
    #[test]
    fn r20_the_engine_overlays_home() {
        let scratch = tempfile::NamedTempFile::new().unwrap();
        let stat = fstat(scratch.as_file()).unwrap();
        let home_change = times(&stat).2;
        let engine = FileAttr { size_bytes: 77, blocks_512: 8, mtime: Some(WallNs(5)), ctime: Some(WallNs(6)) };
        let shown = overlay(&stat, Some(engine), false);
        assert_eq!((shown.size_bytes, shown.blocks_512, shown.links), (77, 8, 1));
        assert_eq!(shown.modification, Time { seconds: 0, nanoseconds: 5 });
        assert_eq!(shown.change, home_change, "the later change wins");
        assert_eq!(overlay(&stat, Some(engine), true).links, 0, "the grave's name does not count");
        let unwritten = overlay(&stat, Some(FileAttr::default()), false);
        assert_eq!(unwritten.modification, times(&stat).1, "home's time holds until the engine knows better");
    }
}

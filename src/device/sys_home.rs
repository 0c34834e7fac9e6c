//! System calls on home, the directory tree behind the mount, that no crate wraps: directory streams with their cookies,
//! extended attributes and times of O_PATH descriptors, and the credentials of one thread.
//!
//! An O_PATH descriptor names an inode without opening it. What has no call of its own for such descriptors goes through
//! `/proc/self/fd/N`, which leads to the inode itself, whatever its names are by now.
#![allow(unsafe_code)]

use nix::errno::Errno;
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, AsRawFd, FromRawFd, OwnedFd};

/// The type of a time that the FUSE library speaks; named here because only this room may name clocks' types.
pub type KernelTime = std::time::SystemTime;
/// 1970, as the FUSE library wants it.
pub const KERNEL_EPOCH: KernelTime = std::time::UNIX_EPOCH;

/// `/proc/self/fd/N`: a path that leads to the inode of a descriptor.
pub fn descriptor_path(fd: impl AsFd) -> CString {
    // The text holds digits and slashes only, so there is never a NUL in it; an empty path would answer ENOENT.
    CString::new(format!("/proc/self/fd/{}", fd.as_fd().as_raw_fd())).unwrap_or_default()
}

/// Reads entries of an open directory into `buf` in the kernel's `linux_dirent64` layout; 0 at the end.
pub fn read_entries(dir: impl AsFd, buf: &mut [u8]) -> nix::Result<usize> {
    // SAFETY: the pointer and length are those of `buf`, which the kernel fills with at most that many bytes.
    let read = unsafe { libc::syscall(libc::SYS_getdents64, dir.as_fd().as_raw_fd(), buf.as_mut_ptr(), buf.len()) };
    length(read as isize)
}

/// The value of an extended attribute: its length, or `ERANGE` when `buf` is too small (an empty `buf` asks for the length).
pub fn get_xattr(fd: impl AsFd, name: &CStr, buf: &mut [u8]) -> nix::Result<usize> {
    let path = descriptor_path(&fd);
    // SAFETY: both strings end in NUL and live through the call; pointer and length are those of `buf`.
    let got = unsafe { libc::getxattr(path.as_ptr(), name.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    length(got)
}

/// Sets an extended attribute; `flags` are XATTR_CREATE and XATTR_REPLACE.
pub fn set_xattr(fd: impl AsFd, name: &CStr, value: &[u8], flags: i32) -> nix::Result<()> {
    let path = descriptor_path(&fd);
    // SAFETY: both strings end in NUL and live through the call; pointer and length are those of `value`.
    let done = unsafe { libc::setxattr(path.as_ptr(), name.as_ptr(), value.as_ptr().cast(), value.len(), flags) };
    Errno::result(done).map(drop)
}

/// The names of all extended attributes, each ended by NUL; an empty `buf` asks for the length.
pub fn list_xattr(fd: impl AsFd, buf: &mut [u8]) -> nix::Result<usize> {
    let path = descriptor_path(&fd);
    // SAFETY: the path ends in NUL and lives through the call; pointer and length are those of `buf`.
    let got = unsafe { libc::listxattr(path.as_ptr(), buf.as_mut_ptr().cast(), buf.len()) };
    length(got)
}

pub fn remove_xattr(fd: impl AsFd, name: &CStr) -> nix::Result<()> {
    let path = descriptor_path(&fd);
    // SAFETY: both strings end in NUL and live through the call.
    let done = unsafe { libc::removexattr(path.as_ptr(), name.as_ptr()) };
    Errno::result(done).map(drop)
}

/// Sets access and modification time of the inode behind `fd` (O_PATH or not); UTIME_NOW and UTIME_OMIT as in utimensat(2).
pub fn set_times(fd: impl AsFd, access: libc::timespec, modification: libc::timespec) -> nix::Result<()> {
    let times = [access, modification];
    // SAFETY: the empty path ends in NUL; `times` holds the two values that the call reads.
    let done = unsafe { libc::utimensat(fd.as_fd().as_raw_fd(), c"".as_ptr(), times.as_ptr(), libc::AT_EMPTY_PATH) };
    Errno::result(done).map(drop)
}

/// Sets the ids that this thread's file system calls run under, group first. Only this thread changes: the calls are made without
/// the C library, which would change all threads for the related calls.
pub fn set_thread_ids(uid: u32, gid: u32) {
    // SAFETY: plain integers; the calls cannot fail in a way that leaves memory changed.
    unsafe {
        libc::syscall(libc::SYS_setfsgid, gid);
        libc::syscall(libc::SYS_setfsuid, uid);
    }
}

/// The file system user id of this thread (asking for the impossible id changes nothing and answers the present one).
pub fn thread_uid() -> u32 {
    // SAFETY: plain integers.
    let uid = unsafe { libc::syscall(libc::SYS_setfsuid, u32::MAX) };
    u32::try_from(uid).unwrap_or(u32::MAX)
}

#[repr(C)]
struct CapabilityHeader {
    version: u32,
    pid: i32,
}

#[repr(C)]
#[derive(Clone, Copy, Default)]
struct CapabilitySet {
    effective: u32,
    permitted: u32,
    inheritable: u32,
}

const CAPABILITY_VERSION_3: u32 = 0x2008_0522;

/// Gives this thread the effective use of all its permitted capabilities: leaving user id 0 takes those about files away, but the caller's
/// permissions were already checked, against groups that only the kernel knows.
pub fn regain_capabilities() -> nix::Result<()> {
    let mut header = CapabilityHeader { version: CAPABILITY_VERSION_3, pid: 0 };
    let mut sets = [CapabilitySet::default(); 2];
    // SAFETY: version 3 reads the header and writes exactly two sets.
    Errno::result(unsafe { libc::syscall(libc::SYS_capget, &raw mut header, sets.as_mut_ptr()) })?;
    for set in &mut sets {
        set.effective = set.permitted;
    }
    // SAFETY: version 3 reads the header and exactly two sets.
    Errno::result(unsafe { libc::syscall(libc::SYS_capset, &raw mut header, sets.as_ptr()) }).map(drop)
}

/// Reads a file of /proc or /sys.
pub fn read_kernel_file(path: &str) -> std::io::Result<String> {
    std::fs::read_to_string(path)
}

/// Writes a setting of /proc or /sys.
pub fn write_kernel_file(path: &str, text: &str) -> std::io::Result<()> {
    std::fs::write(path, text)
}

fn length(returned: isize) -> nix::Result<usize> {
    usize::try_from(returned).map_err(|_| Errno::last())
}

/// A name for an inode that needs no descriptor and survives renames: what name_to_handle_at(2) gives.
pub struct InodeHandle {
    kind: i32,
    bytes: Box<[u8]>,
}

const HANDLE_BYTES_MAX: usize = 128;

/// `struct file_handle` with room for the longest handle.
#[repr(C)]
struct RawHandle {
    length: u32,
    kind: i32,
    bytes: [u8; HANDLE_BYTES_MAX],
}

impl InodeHandle {
    /// The handle of an open inode (O_PATH or not).
    pub fn of(fd: impl AsFd) -> nix::Result<InodeHandle> {
        let mut raw = RawHandle { length: HANDLE_BYTES_MAX as u32, kind: 0, bytes: [0; HANDLE_BYTES_MAX] };
        let mut mount_id: libc::c_int = 0;
        // SAFETY: the empty path ends in NUL; `raw` has the kernel's layout and room for as many bytes as it says.
        let done = unsafe {
            libc::name_to_handle_at(
                fd.as_fd().as_raw_fd(),
                c"".as_ptr(),
                (&raw mut raw).cast(),
                &raw mut mount_id,
                libc::AT_EMPTY_PATH,
            )
        };
        Errno::result(done)?;
        let length = usize::try_from(raw.length).unwrap_or(0).min(HANDLE_BYTES_MAX);
        Ok(InodeHandle { kind: raw.kind, bytes: raw.bytes[..length].into() })
    }

    /// Opens the inode with O_PATH. `filesystem` is any directory on it that is open for reading. `ESTALE` when the inode is gone; `EPERM` without
    /// CAP_DAC_READ_SEARCH.
    pub fn open(&self, filesystem: impl AsFd) -> nix::Result<OwnedFd> {
        let mut raw = RawHandle { length: 0, kind: self.kind, bytes: [0; HANDLE_BYTES_MAX] };
        raw.length = u32::try_from(self.bytes.len()).map_err(|_| Errno::EINVAL)?;
        raw.bytes[..self.bytes.len()].copy_from_slice(&self.bytes);
        let flags = libc::O_PATH | libc::O_NOFOLLOW | libc::O_CLOEXEC;
        // SAFETY: `raw` has the kernel's layout and outlives the call.
        let fd = unsafe { libc::open_by_handle_at(filesystem.as_fd().as_raw_fd(), (&raw mut raw).cast(), flags) };
        let fd = Errno::result(fd)?;
        // SAFETY: the call just made this descriptor, and nobody else knows it.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }
}

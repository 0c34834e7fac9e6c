//! The one module with `unsafe`: system calls that no crate wraps, and views of aligned memory.
#![allow(unsafe_code)]

use std::ffi::CStr;
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd};

/// Views a slice of plain pages as bytes.
pub(super) fn pages_as_bytes<T: Copy>(pages: &[T]) -> &[u8] {
    // SAFETY: T is a `repr(C)` array of u8 without padding (only `aligned::Page` is passed), so every byte is
    // initialised; length and lifetime are those of the slice.
    unsafe { std::slice::from_raw_parts(pages.as_ptr().cast(), std::mem::size_of_val(pages)) }
}

/// Views a slice of plain pages as mutable bytes.
pub(super) fn pages_as_bytes_mut<T: Copy>(pages: &mut [T]) -> &mut [u8] {
    // SAFETY: as above; any byte pattern is a valid page, and the borrow is exclusive.
    unsafe { std::slice::from_raw_parts_mut(pages.as_mut_ptr().cast(), std::mem::size_of_val(pages)) }
}

/// Asks the kernel not to let this process's memory reclaim wait for I/O through itself (PR_SET_IO_FLUSHER, CAP_SYS_RESOURCE).
/// Errors: EPERM without the capability, EINVAL before Linux 5.6.
pub fn set_io_flusher() -> std::io::Result<()> {
    const PR_SET_IO_FLUSHER: libc::c_int = 57;
    // SAFETY: this prctl takes four plain integers and touches no memory of ours.
    let result = unsafe { libc::prctl(PR_SET_IO_FLUSHER, 1, 0, 0, 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error()) }
}

/// Makes the C library take allocations of `bytes` or more from the kernel and give them back when freed, whatever it has learned: else
/// large buffers that come and go leave holes in its heaps that nobody gets back. False where the allocator is another one.
pub fn return_large_allocations(bytes: i32) -> bool {
    #[cfg(target_env = "gnu")]
    // What is smaller stays in the heaps, rather than being trimmed and faulted in again at every turn.
    // SAFETY: both take two integers; may be called at any time.
    return unsafe {
        libc::mallopt(libc::M_MMAP_THRESHOLD, bytes) == 1
            && libc::mallopt(libc::M_TRIM_THRESHOLD, bytes.saturating_mul(4)) == 1
    };
    #[cfg(not(target_env = "gnu"))]
    return bytes < 0;
}

/// Has threads share so many of the C library's heaps: it makes eight for each processor otherwise. False where the allocator is another one.
pub fn limit_heaps(heaps: i32) -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes two integers; may be called at any time.
    return unsafe { libc::mallopt(libc::M_ARENA_MAX, heaps) == 1 };
    #[cfg(not(target_env = "gnu"))]
    return heaps < 0;
}

/// Keeps memory out of swap until it is given back to the kernel. Errors: EPERM, and ENOMEM beyond RLIMIT_MEMLOCK.
pub fn lock_memory(bytes: &[u8]) -> io::Result<()> {
    // SAFETY: locking changes nothing about the contents of memory, and the range is that of a live slice.
    let result = unsafe { libc::mlock(bytes.as_ptr().cast(), bytes.len()) };
    if result == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Gives the kernel back what is free in the C library's heaps: threads that come and go leave much of it, each in a heap of its own. It takes
/// milliseconds, in which a thread may wait for its heap. False where there was nothing, or the allocator is another one.
pub fn return_free_memory() -> bool {
    #[cfg(target_env = "gnu")]
    // SAFETY: takes an integer; may be called at any time, by any thread.
    return unsafe { libc::malloc_trim(0) == 1 };
    #[cfg(not(target_env = "gnu"))]
    return false;
}

/// Starts write-back of a range of the file's dirty pages and does not wait for it. A length of 0 means to the end.
pub(super) fn start_range_writeback(fd: BorrowedFd<'_>, offset: i64, len: i64) -> io::Result<()> {
    // SAFETY: no pointers; the descriptor is open for as long as it is borrowed.
    let rc = unsafe { libc::sync_file_range(fd.as_raw_fd(), offset, len, libc::SYNC_FILE_RANGE_WRITE) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Sets an extended attribute of an open file, replacing an older value.
pub fn set_xattr(fd: BorrowedFd<'_>, name: &CStr, value: &[u8]) -> io::Result<()> {
    // SAFETY: `name` ends with a NUL, `value` is valid for `value.len()` bytes, and both are only read.
    let rc = unsafe { libc::fsetxattr(fd.as_raw_fd(), name.as_ptr(), value.as_ptr().cast(), value.len(), 0) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// Flag of an inode: it can be neither changed nor removed nor given names (chattr +i).
pub const INODE_IMMUTABLE: libc::c_int = 0x10;

/// The flags of an inode (chattr). Errors: `Unsupported` or ENOTTY where the filesystem has none.
pub fn inode_flags(fd: BorrowedFd<'_>) -> io::Result<libc::c_int> {
    let mut flags: libc::c_int = 0;
    // SAFETY: the call writes one int, whatever its name says, and `flags` is one.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_GETFLAGS, &raw mut flags) };
    if rc == 0 { Ok(flags) } else { Err(io::Error::last_os_error()) }
}

/// Replaces the flags of an inode; needs CAP_LINUX_IMMUTABLE for [`INODE_IMMUTABLE`].
pub fn set_inode_flags(fd: BorrowedFd<'_>, flags: libc::c_int) -> io::Result<()> {
    // SAFETY: the call reads one int, whatever its name says, and `flags` is one.
    let rc = unsafe { libc::ioctl(fd.as_raw_fd(), libc::FS_IOC_SETFLAGS, &raw const flags) };
    if rc == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
}

/// (device, inode) of what a path leads to, as the kernel knows it: a network or FUSE server that does not answer is not asked.
pub fn known_inode(path: &CStr) -> io::Result<(u64, u64)> {
    let stat = statx(path, libc::AT_STATX_DONT_SYNC | libc::AT_NO_AUTOMOUNT, libc::STATX_INO)?;
    Ok((libc::makedev(stat.stx_dev_major, stat.stx_dev_minor), stat.stx_ino))
}

/// Is the thing itself (not what a symbolic link leads to) immutable or append-only? Where the filesystem cannot tell: no.
pub fn is_unchangeable(path: &CStr) -> io::Result<bool> {
    let attributes = (libc::STATX_ATTR_IMMUTABLE | libc::STATX_ATTR_APPEND) as u64;
    let stat = statx(path, libc::AT_SYMLINK_NOFOLLOW, 0)?;
    Ok(stat.stx_attributes & attributes != 0)
}

fn statx(path: &CStr, flags: libc::c_int, wanted: libc::c_uint) -> io::Result<libc::statx> {
    let mut stat = std::mem::MaybeUninit::<libc::statx>::zeroed();
    // SAFETY: `path` ends with a NUL; `stat` is a whole statx for the call to fill.
    let rc = unsafe { libc::statx(libc::AT_FDCWD, path.as_ptr(), flags, wanted, stat.as_mut_ptr()) };
    if rc != 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: all-zero bytes are a valid statx, and the call has filled it.
    Ok(unsafe { stat.assume_init() })
}

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

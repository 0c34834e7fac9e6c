//! The one module with `unsafe`: system calls that no crate wraps, and views of aligned memory.
#![allow(unsafe_code)]

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

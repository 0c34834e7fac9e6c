//! Backing files behind one small trait, so that everything above runs on real disks and on a simulated one.
//!
//! A [`Device`] is one backing directory (a tier path). All paths are relative to it, with `/` between components
//! and without `.` or `..`; the empty path is the directory itself, where a directory is asked for. Offsets and lengths are in bytes. Nothing here retries, caches or interprets: what the
//! backing filesystem says is what the caller hears.
//!
//! Durability contract, which the simulated device enforces at its weakest:
//! - file bytes and lengths are durable after [`BackingFile::sync_data`] or [`Device::sync_all`], or when written by a handle opened
//!   with `dsync`; before that each 4 KiB (or 512 B) of them may or may not survive a crash, in any order
//! - names (create, rename, remove) are durable after [`Device::sync_dir`] of their directory or [`Device::sync_all`]

use std::io;
use std::os::fd::BorrowedFd;
use std::sync::Arc;

/// How a backing file is opened. Handles can be read and written unless the mode says otherwise.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct OpenMode {
    /// Create when absent.
    pub create: bool,
    /// With `create`: fail with `AlreadyExists` when present.
    pub exclusive: bool,
    /// Bypass the page cache where the backing can; buffers, offsets and lengths must then be multiples of 4 KiB
    /// and buffers page aligned (see [`AlignedBuf`]). Where the backing cannot, the handle is buffered.
    pub direct: bool,
    /// Every write is durable when it returns (O_DSYNC).
    pub dsync: bool,
    /// The handle can only be read, which also works where nothing may be written.
    pub read_only: bool,
}

/// One open backing file. All calls take positions; there is no cursor. Safe to share between threads.
#[expect(clippy::len_without_is_empty, reason = "the length is that of the file at this moment, not of a collection")]
pub trait BackingFile: Send + Sync {
    /// Reads at most `buf.len()` bytes; fewer only at the end of the file (callers treat the rest as zeros).
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize>;
    /// Writes all of `buf` or fails; after a failure any part may have been written.
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()>;
    /// Makes written bytes and the length durable (fdatasync).
    fn sync_data(&self) -> io::Result<()>;
    /// Starts write-back of a range without waiting; a hint that may do nothing.
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Reserves space for a range (fallocate); the length grows when needed. `Unsupported` where the backing cannot.
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()>;
    /// Frees the space of a range, which then reads as zeros; the length stays. `Unsupported` where the backing cannot.
    fn punch(&self, offset: u64, len: u64) -> io::Result<()>;
    /// The first range at or after `offset` that is not a hole, as (start, end); None when only holes follow. What holds no space may
    /// be reported as data, never the other way round.
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>>;
    fn len(&self) -> io::Result<u64>;
    /// For whoever reads it in a way of its own: only where reads bypass the page cache, and what [`BackingFile::read_at`] does is no more than reading.
    fn descriptor(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn set_len(&self, len: u64) -> io::Result<()>;
}

/// Room on the filesystem behind a device, in bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Space {
    pub total_bytes: u64,
    /// What a non-privileged writer may still allocate.
    pub available_bytes: u64,
}

/// One backing directory.
pub trait Device: Send + Sync {
    /// Where this is, for messages.
    fn path(&self) -> String;
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>>;
    /// Creates a directory and its missing parents; no error when it is there.
    fn create_dir_all(&self, path: &str) -> io::Result<()>;
    /// Renames a file, and replaces the target if there is one. The simulated device knows no renames of directories.
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    /// Swaps the names of two files in one step; durable as a rename is. Where the backing cannot, the first replaces the second.
    fn exchange(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename(from, to)
    }
    /// As [`Device::rename`], but fails with `AlreadyExists` when the target is there: of several callers one wins. Atomic.
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove_file(&self, path: &str) -> io::Result<()>;
    /// Names in a directory, sorted; without `.` and `..`.
    fn list(&self, path: &str) -> io::Result<Vec<String>>;
    fn exists(&self, path: &str) -> io::Result<bool>;
    /// Makes the names in one directory durable.
    fn sync_dir(&self, path: &str) -> io::Result<()>;
    /// Makes everything on this device's filesystem durable (syncfs, and the disk's own cache), through a descriptor held since the device was opened, so that
    /// a write-back error since then is reported (R8).
    fn sync_all(&self) -> io::Result<()>;
    fn space(&self) -> io::Result<Space>;
}

mod aligned;
pub mod clock;
pub mod host;
mod path;
pub mod real;
pub mod sim;
pub mod sys;
pub mod sys_home;
pub mod sys_uring;
pub mod witness;

pub use aligned::AlignedBuf;

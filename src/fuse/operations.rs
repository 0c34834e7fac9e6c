//! What a transport asks of the filesystem: the seam between the FUSE library and everything else, so that another transport (requests over
//! io_uring, say) is one more adapter.
//!
//! What can wait for a device takes a `done` that may be called on any thread, also before the call returns. What cannot answers at once.
//! A [`Linked`] hands one reference to the kernel, which gives it back through `forget`.

use crate::namespace::{Attributes, Caller, Capacity, Changes, Entry, Linked, Outcome, RenameMode, Special};
use crate::volume::DirectRead;
use std::ffi::{OsStr, OsString};
use std::path::Path;

/// Modes of fallocate(2) that a FUSE filesystem can be asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Allocation {
    Reserve { keep_size: bool },
    PunchHole,
    ZeroRange { keep_size: bool },
}

pub trait Operations: Send + Sync + 'static {
    fn lookup(&self, parent: u64, name: &OsStr) -> Outcome<Linked>;
    fn forget(&self, inode: u64, references: u64);
    fn attributes(&self, inode: u64) -> Outcome<Attributes>;
    fn change(
        &self,
        inode: u64,
        caller: Caller,
        changes: Changes,
        done: impl FnOnce(Outcome<Attributes>) + Send + 'static,
    );

    fn create(&self, parent: u64, name: &OsStr, caller: Caller, mode: u32, umask: u32) -> Outcome<Linked>;
    fn make_directory(&self, parent: u64, name: &OsStr, caller: Caller, mode: u32, umask: u32) -> Outcome<Linked>;
    fn make_special(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        mode: u32,
        umask: u32,
        special: Special,
    ) -> Outcome<Linked>;
    fn make_symlink(&self, parent: u64, name: &OsStr, caller: Caller, target: &Path) -> Outcome<Linked>;
    fn link(&self, inode: u64, parent: u64, name: &OsStr) -> Outcome<Linked>;
    fn unlink(&self, parent: u64, name: &OsStr) -> Outcome<()>;
    fn remove_directory(&self, parent: u64, name: &OsStr) -> Outcome<()>;
    fn rename(&self, parent: u64, name: &OsStr, to: u64, to_name: &OsStr, mode: RenameMode) -> Outcome<()>;
    fn read_link(&self, inode: u64) -> Outcome<OsString>;

    /// Opens a regular file; the answer is the handle.
    fn open(&self, inode: u64) -> Outcome<u64>;
    /// Creates and opens; with `exclusive` an existing name is an error, else it is opened.
    fn create_open(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        mode: u32,
        umask: u32,
        exclusive: bool,
    ) -> Outcome<(Linked, u64)>;
    fn release(&self, inode: u64);
    /// `done` gets the bytes before the end of the file. `maintains`: whoever reads says nothing about what will be read next.
    fn read(
        &self,
        inode: u64,
        offset: u64,
        size: usize,
        maintains: bool,
        done: impl FnOnce(Outcome<&[u8]>) + Send + 'static,
    );
    /// A read that a transport may make by itself, if it can; else None, and [`Operations::read`] is asked. Whoever holds one must not wait for others.
    fn direct_read(&self, inode: u64, offset: u64, size: usize) -> Option<DirectRead> {
        let _ = (inode, offset, size);
        None
    }
    /// `drops_privileges`: the writer may not leave set-id bits and file capabilities behind.
    fn write(
        &self,
        inode: u64,
        offset: u64,
        data: &[u8],
        drops_privileges: bool,
        maintains: bool,
        done: impl FnOnce(Outcome<()>) + Send + 'static,
    );
    /// Must never be answered with ENOSYS: the kernel would report success for ever after.
    fn sync(&self, inode: u64, done: impl FnOnce(Outcome<()>) + Send + 'static);
    fn allocate(
        &self,
        inode: u64,
        offset: u64,
        length: u64,
        how: Allocation,
        done: impl FnOnce(Outcome<()>) + Send + 'static,
    );
    /// lseek(2) with SEEK_DATA (`data`) or SEEK_HOLE.
    fn seek(&self, inode: u64, offset: u64, data: bool) -> Outcome<u64>;

    fn open_directory(&self, inode: u64) -> Outcome<u64>;
    /// Hands entries from `cookie` on to `take` until it answers false.
    fn read_directory(&self, handle: u64, cookie: i64, take: &mut dyn FnMut(&Entry) -> bool) -> Outcome<()>;
    fn release_directory(&self, handle: u64);
    /// As [`Operations::sync`].
    fn sync_directory(&self, handle: u64, done: impl FnOnce(Outcome<()>) + Send + 'static);

    fn capacity(&self) -> Outcome<Capacity>;
    fn get_xattr(&self, inode: u64, name: &OsStr) -> Outcome<Vec<u8>>;
    fn list_xattr(&self, inode: u64) -> Outcome<Vec<u8>>;
    fn set_xattr(&self, inode: u64, caller: Caller, name: &OsStr, value: &[u8], flags: i32) -> Outcome<()>;
    fn remove_xattr(&self, inode: u64, name: &OsStr) -> Outcome<()>;

    /// No request comes after this.
    fn close(&self);
}

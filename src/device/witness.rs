//! Who tells whether a filesystem and its disk still do what they are asked for: a file without a name, whose sync cannot be wrong.
//!
//! Two calls say yes where nothing happened. `syncfs` on xfs flushes the disk's own cache only as a part of writing its journal, so with no change
//! of metadata since (a block written twice within a tick of the clock makes none) what was written stays in that cache, and a power cut takes it.
//! And the fsync of a directory answers with success once its filesystem has shut down after an error: on xfs as soon as the failed change is given up,
//! on ext4 from the second call on. The sync of a regular file, however clean it is, flushes the disk, and fails on a filesystem that is shut down.

use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::fdatasync;
use std::os::fd::{AsFd, OwnedFd};

/// To be asked after such a call, before anybody hears that it went well.
pub struct Witness {
    file: OwnedFd,
}

impl Witness {
    /// On the filesystem of this directory. Errors: `EOPNOTSUPP`, `EISDIR` or `ENOENT` where files without a name cannot be made.
    pub fn of(directory: impl AsFd) -> nix::Result<Witness> {
        let flags = OFlag::O_TMPFILE | OFlag::O_RDWR | OFlag::O_CLOEXEC;
        Ok(Witness { file: openat(directory, ".", flags, Mode::from_bits_truncate(0o600))? })
    }

    /// The disk's cache is flushed. Errors: the filesystem has shut down, or the disk fails: the call before counts for nothing.
    pub fn ask(&self) -> nix::Result<()> {
        fdatasync(&self.file)
    }
}

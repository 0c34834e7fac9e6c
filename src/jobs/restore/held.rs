//! The directory that a restore fills, held so that nobody else reaches what is made in it before it is done.
//!
//! Who restores is often root, and the directory, or the one that it is in, often belongs to a user. Paths would then lead where that user wants: a directory just made is
//! renamed, a link put in its place, and what root writes next goes through it. And a file that only its owner may read must not be readable by others while it is filled.
//! Both are ruled out by the directory itself: it is opened once, and named through that descriptor (`/proc/self/fd/N`), whatever happens to its name; and it belongs to
//! us and is closed to others until it gets its own attributes, last of all.

use crate::error::{Error, Result};
use crate::jobs::anchor::Anchor;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{Mode, fchmod, fstat};
use nix::unistd::{Gid, Uid, fchown, geteuid};
use std::path::Path;

pub(super) struct Held {
    /// Open for reading: owner and mode are changed through it.
    anchor: Anchor,
    /// Owner, group and mode that it had.
    was: (u32, u32, u32),
}

impl Held {
    /// `directory` is there. Errors: `Io` for one that is not ours to close.
    pub fn take(directory: &Path) -> Result<Held> {
        let io = |action, errno: Errno| Error::io(action, directory.display().to_string(), errno.into());
        let flags = OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_NOFOLLOW | OFlag::O_CLOEXEC;
        let descriptor = open(directory, flags, Mode::empty()).map_err(|e| io("open", e))?;
        let stat = fstat(&descriptor).map_err(|e| io("stat", e))?;
        let held = Held {
            anchor: Anchor::new(descriptor, directory.to_owned()),
            was: (stat.st_uid, stat.st_gid, stat.st_mode & 0o7777),
        };
        let me = geteuid();
        if me.is_root() && stat.st_uid != 0 {
            // Its owner could open it again.
            held.own(0, stat.st_gid).map_err(|e| io("change owner of", e))?;
        }
        match held.mode(0o700) {
            // A directory of others that we may write to: we cannot do more there than they.
            Err(Errno::EPERM) if !me.is_root() => Ok(held),
            closed => closed.map(|()| held).map_err(|e| io("chmod", e)),
        }
    }

    /// Where to work: below this path nothing leads elsewhere.
    pub fn path(&self) -> &Path {
        self.anchor.path()
    }

    /// Gives it back as it was: when nothing was restored, or something whose attributes are not the directory's.
    pub fn let_go(&self) -> Result<()> {
        let (uid, gid, mode) = self.was;
        let io = |errno: Errno| Error::io("give back", self.anchor.shown().display().to_string(), errno.into());
        let now = fstat(self.anchor.descriptor()).map_err(io)?;
        if now.st_uid != uid {
            self.own(uid, gid).map_err(io)?;
        }
        if now.st_mode & 0o7777 == mode { Ok(()) } else { self.mode(mode).map_err(io) }
    }

    /// An error of what was done below, with the path as the user knows it.
    pub fn named(&self, error: Error) -> Error {
        self.anchor.named(error)
    }

    fn own(&self, uid: u32, gid: u32) -> nix::Result<()> {
        fchown(self.anchor.descriptor(), Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)))
    }

    fn mode(&self, mode: u32) -> nix::Result<()> {
        fchmod(self.anchor.descriptor(), Mode::from_bits_truncate(mode))
    }
}

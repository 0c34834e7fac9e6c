//! Descriptors of inodes, when there are more inodes than the process may have descriptors.
//!
//! Each node keeps an O_PATH descriptor while there are few; beyond a share of the process's limit new nodes keep a handle instead, and open
//! their inode for each use (about 2 us). A handle does not hold the inode: one that loses its last name is pinned before, by a
//! descriptor, so that its number is not reused while the kernel knows it. Handles need privileges and a backing filesystem that has them; without
//! either, every node keeps its descriptor and the process's limit is the limit.

use crate::device::sys_home::InodeHandle;
use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

/// How many descriptors nodes may keep; shared by all of them.
pub struct Budget {
    kept: AtomicU64,
    kept_max: u64,
    /// Where handles are opened; None where they cannot be.
    filesystem: Option<OwnedFd>,
}

impl Budget {
    /// `tree` is home's root, open for reading. Half of the process's descriptors stay for everything else.
    pub fn new(tree: OwnedFd) -> Budget {
        let limit = getrlimit(Resource::RLIMIT_NOFILE).map_or(1024, |(soft, _)| soft);
        Budget::with_limit(tree, limit / 2)
    }

    fn with_limit(tree: OwnedFd, kept_max: u64) -> Budget {
        let works = InodeHandle::of(&tree).and_then(|handle| handle.open(&tree));
        if let Err(errno) = &works {
            tracing::info!("inodes cannot be opened by handle ({errno}): each known one needs a descriptor");
        }
        Budget { kept: AtomicU64::new(0), kept_max, filesystem: works.is_ok().then_some(tree) }
    }

    pub fn kept(&self) -> u64 {
        self.kept.load(Ordering::Relaxed)
    }
}

/// A node's way to its inode.
pub struct Descriptor {
    budget: Arc<Budget>,
    kept: OnceLock<OwnedFd>,
    handle: Option<InodeHandle>,
}

/// A descriptor for one use.
pub enum Held<'d> {
    Kept(&'d OwnedFd),
    Opened(OwnedFd),
}

impl AsFd for Held<'_> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        match self {
            Held::Kept(fd) => fd.as_fd(),
            Held::Opened(fd) => fd.as_fd(),
        }
    }
}

impl Descriptor {
    pub fn new(budget: Arc<Budget>, fd: OwnedFd) -> Descriptor {
        let is_full = budget.kept() >= budget.kept_max && budget.filesystem.is_some();
        let handle = if is_full { InodeHandle::of(&fd).ok() } else { None };
        let descriptor = Descriptor { budget, kept: OnceLock::new(), handle };
        if descriptor.handle.is_none() {
            descriptor.keep(fd);
        }
        descriptor
    }

    fn keep(&self, fd: OwnedFd) {
        if self.kept.set(fd).is_ok() {
            self.budget.kept.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// `ESTALE`: the inode went away behind the mount.
    pub fn get(&self) -> nix::Result<Held<'_>> {
        match (self.kept.get(), &self.handle, &self.budget.filesystem) {
            (Some(fd), _, _) => Ok(Held::Kept(fd)),
            (None, Some(handle), Some(filesystem)) => handle.open(filesystem).map(Held::Opened),
            (None, _, _) => Err(Errno::ESTALE),
        }
    }

    /// Holds the inode from now on, whatever happens to its names.
    pub fn pin(&self) -> nix::Result<()> {
        if let Held::Opened(fd) = self.get()? {
            self.keep(fd);
        }
        Ok(())
    }
}

impl Drop for Descriptor {
    fn drop(&mut self) {
        if self.kept.get().is_some() {
            self.budget.kept.fetch_sub(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::fcntl::{OFlag, open};
    use nix::sys::stat::{Mode, fstat};

    #[test]
    fn beyond_the_limit_inodes_are_found_by_handle_and_can_be_pinned() {
        let scratch = tempfile::tempdir().unwrap();
        let tree = open(scratch.path(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let budget = Arc::new(Budget::with_limit(tree, 1));
        if budget.filesystem.is_none() {
            eprintln!("NOT RUN: handles need root");
            return;
        }
        let make = |name: &str| {
            let path = scratch.path().join(name);
            std::fs::write(&path, b"").unwrap();
            Descriptor::new(Arc::clone(&budget), open(&path, OFlag::O_PATH, Mode::empty()).unwrap())
        };
        let (first, second) = (make("first"), make("second"));
        assert!(matches!(first.get().unwrap(), Held::Kept(_)));
        assert!(matches!(second.get().unwrap(), Held::Opened(_)));
        let inode = fstat(second.get().unwrap()).unwrap().st_ino;
        std::fs::rename(scratch.path().join("second"), scratch.path().join("renamed")).unwrap();
        assert_eq!(fstat(second.get().unwrap()).unwrap().st_ino, inode);
        second.pin().unwrap();
        assert_eq!(budget.kept(), 2);
        std::fs::remove_file(scratch.path().join("renamed")).unwrap();
        assert_eq!(fstat(second.get().unwrap()).unwrap().st_nlink, 0);
        drop((first, second));
        assert_eq!(budget.kept(), 0);
        let third = make("third");
        assert!(matches!(third.get().unwrap(), Held::Kept(_)));
        let lost = make("lost");
        std::fs::remove_file(scratch.path().join("lost")).unwrap();
        assert_eq!(lost.get().err(), Some(Errno::ESTALE));
    }
}

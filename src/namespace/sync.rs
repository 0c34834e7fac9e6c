//! Making home durable: names, attributes and identities of one node, before an fsync of it is acknowledged (R10, R11).

use super::Namespace;
use super::directory::Stream;
use super::fault::Outcome;
use super::node::{Node, Pending};
use crate::device::sys_home;
use crate::error::Error;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::Mode;
use nix::unistd::{fsync, syncfs};
use std::collections::HashSet;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// Nodes that the kernel forgot with unsynced changes; beyond this many home is synced as a whole.
const LEFT_UNSYNCED_MAX: usize = 100_000;

impl Namespace {
    /// Whether an fsync of this node has to wait for home.
    pub fn is_home_pending(&self, node: &Node) -> bool {
        node.pending().is_some()
    }

    /// Syncs home's inode, the directories whose entries changed with it, and theirs, as far up as they are new. What was covered is
    /// marked only after all of it is durable, so a second sync at the same time does the same work rather than trust a first one that still runs.
    pub fn sync_home(&self, node: &Arc<Node>) -> Outcome<()> {
        let mut covered: Vec<(Arc<Node>, u64)> = Vec::new();
        let mut seen = HashSet::new();
        let mut todo = vec![Arc::clone(node)];
        while let Some(next) = todo.pop() {
            if !seen.insert(next.inode) {
                continue;
            }
            // A directory named by another node is synced even when nothing is pending on it: the entry itself is the change.
            let Pending { upto, directories } = next.pending().unwrap_or(Pending { upto: 0, directories: Vec::new() });
            self.durable(fsync(reopen(&next)?))?;
            todo.extend(directories);
            covered.push((next, upto));
        }
        self.durable(self.witness.ask())?;
        for (node, upto) in covered {
            node.mark_synced(upto);
        }
        Ok(())
    }

    /// Makes the entries of an open directory durable.
    pub fn sync_directory(&self, directory: &Stream) -> Outcome<()> {
        let synced = fsync(reopen(directory.node())?);
        self.durable(synced.and_then(|()| self.witness.ask()))
    }

    /// What a sync of home answered. What it was asked to write may be gone for good once it failed, so it is not asked again (I5).
    fn durable(&self, synced: nix::Result<()>) -> Outcome<()> {
        synced.map_err(|errno| {
            self.volume.stop_writing(&Error::io("sync", &self.tree_path, errno.into()));
            errno.into()
        })
    }

    /// After nodes were forgotten: bounds the memory of those that still had something to sync.
    pub(super) fn sync_if_many_left(&self) {
        if self.table.left_unsynced_count() < LEFT_UNSYNCED_MAX {
            return;
        }
        let covered = self.table.left_unsynced();
        let sync = |root| self.durable(syncfs(root).and_then(|()| self.witness.ask()));
        match reopen(&self.root).and_then(sync) {
            Ok(()) => {
                for inode in covered {
                    self.table.take_left_unsynced(inode);
                }
            }
            Err(fault) => tracing::error!("sync {}: {fault:?}", self.tree_path),
        }
    }
}

/// A descriptor of the node's inode that can be synced; O_PATH ones cannot.
pub(super) fn reopen(node: &Node) -> Outcome<OwnedFd> {
    let fd = node.fd()?;
    let path = sys_home::descriptor_path(&fd);
    let flags = OFlag::O_CLOEXEC | OFlag::O_NONBLOCK | OFlag::O_NOCTTY;
    match open(path.as_c_str(), flags | OFlag::O_RDONLY, Mode::empty()) {
        // As an ordinary user the owner may have kept reading from himself.
        Err(Errno::EACCES) => Ok(open(path.as_c_str(), flags | OFlag::O_WRONLY, Mode::empty())?),
        opened => Ok(opened?),
    }
}

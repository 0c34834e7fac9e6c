//! Nodes: the inodes of home that the kernel knows, each with a way to it ([`descriptors`](super::descriptors)), and the table that holds them.
//!
//! A node lives as long as the kernel holds a lookup on it or somebody has it open; because an inode without names is held by a descriptor,
//! its number cannot be reused meanwhile, and so serves as the key. Hard links share the node, so size, times and link
//! count are right through all names. References are counted up under the table's read lock and down under its write lock, so that a node
//! cannot be found and leave at the same time.

use super::descriptors::{Descriptor, Held};
use crate::units::FileId;
use crate::volume::File;
use parking_lot::{Mutex, RwLock};
use std::collections::{HashMap, HashSet};
use std::ffi::OsString;
use std::sync::Arc;
use std::sync::atomic::{AtomicU8, AtomicU64, Ordering};

/// The kernel's number for the mount's root, whatever home's inode number is.
pub const ROOT_INODE: u64 = 1;

/// What the engine has to do with an inode.
pub enum Content {
    /// Directories, symbolic links, devices, pipes, sockets: all of it is home's.
    Home,
    /// A regular file whose identity was verified.
    File(Arc<File>),
    /// A regular file whose identity is missing or wrong: it has names and attributes, but no content that could be trusted (R10).
    Untrusted(String),
}

/// Where a node was last seen: its parent's key and its name there.
#[derive(Clone, Debug)]
pub struct Place {
    pub parent: u64,
    pub name: OsString,
}

/// Home changes of a node that no sync of home has covered yet.
#[derive(Default)]
struct Unsynced {
    /// Number of the latest change.
    changed: u64,
    /// Latest change known to be durable.
    synced: u64,
    /// Directories whose entries changed with this node, and with which change.
    directories: Vec<(u64, Arc<Node>)>,
}

/// What a sync has to cover, as of one moment.
pub struct Pending {
    pub upto: u64,
    pub directories: Vec<Arc<Node>>,
}

pub struct Node {
    /// Key in the table, and the number that the kernel knows.
    pub inode: u64,
    descriptor: Descriptor,
    pub content: Content,
    references: AtomicU64,
    /// True once the last name is gone and only the grave holds the inode. The lock is held across every change of the number of names, so that
    /// link counts shown are never of a moment in between.
    pub buried: Mutex<bool>,
    pub place: Mutex<Option<Place>>,
    unsynced: Mutex<Unsynced>,
    /// Whether set-id bits or file capabilities may have to go at a write.
    pub privileges: AtomicU8,
}

/// Values of [`Node::privileges`].
pub const PRIVILEGES_UNKNOWN: u8 = 0;
pub const PRIVILEGES_NONE: u8 = 1;

impl Node {
    pub fn new(inode: u64, descriptor: Descriptor, content: Content, place: Option<Place>) -> Node {
        Node {
            inode,
            descriptor,
            content,
            references: AtomicU64::new(0),
            buried: Mutex::new(false),
            place: Mutex::new(place),
            unsynced: Mutex::default(),
            privileges: AtomicU8::new(PRIVILEGES_UNKNOWN),
        }
    }

    /// Home's inode, for one use.
    pub fn fd(&self) -> nix::Result<Held<'_>> {
        self.descriptor.get()
    }

    /// See [`Descriptor::pin`].
    pub fn pin(&self) -> nix::Result<()> {
        self.descriptor.pin()
    }

    pub fn file(&self) -> Option<&Arc<File>> {
        match &self.content {
            Content::File(file) => Some(file),
            Content::Home | Content::Untrusted(_) => None,
        }
    }

    /// Notes that home's inode changed, and the entries of these directories with it: the next sync must cover them (R11).
    pub fn mark_changed(&self, directories: &[&Arc<Node>]) {
        let mut unsynced = self.unsynced.lock();
        unsynced.changed += 1;
        let change = unsynced.changed;
        for directory in directories {
            match unsynced.directories.iter_mut().find(|(_, known)| Arc::ptr_eq(known, directory)) {
                Some(known) => known.0 = change,
                None => unsynced.directories.push((change, Arc::clone(directory))),
            }
        }
    }

    /// None: everything of this node in home is durable.
    pub fn pending(&self) -> Option<Pending> {
        let unsynced = self.unsynced.lock();
        (unsynced.changed != unsynced.synced).then(|| Pending {
            upto: unsynced.changed,
            directories: unsynced.directories.iter().map(|(_, directory)| Arc::clone(directory)).collect(),
        })
    }

    /// Every change up to `upto` is durable.
    pub fn mark_synced(&self, upto: u64) {
        let mut unsynced = self.unsynced.lock();
        unsynced.synced = unsynced.synced.max(upto);
        unsynced.directories.retain(|(change, _)| *change > upto);
    }
}

const SHARDS: usize = 16;

/// All nodes. Sharded, because every request of every worker passes here.
pub struct Table {
    shards: [RwLock<HashMap<u64, Arc<Node>>>; SHARDS],
    inode_of: RwLock<HashMap<FileId, u64>>,
    /// Inodes that left the table while home had unsynced changes of theirs: a later sync through a new node must still cover them (R10).
    left_unsynced: Mutex<HashSet<u64>>,
}

impl Table {
    pub fn new(root: Arc<Node>) -> Table {
        let table = Table {
            shards: std::array::from_fn(|_| RwLock::default()),
            inode_of: RwLock::default(),
            left_unsynced: Mutex::default(),
        };
        table.acquire(root.inode, || root);
        table
    }

    fn shard(&self, inode: u64) -> &RwLock<HashMap<u64, Arc<Node>>> {
        // Inode numbers are handed out in sequence, so their low bits spread well.
        let at = usize::try_from(inode % SHARDS as u64).unwrap_or(0);
        &self.shards[at]
    }

    pub fn get(&self, inode: u64) -> Option<Arc<Node>> {
        self.shard(inode).read().get(&inode).cloned()
    }

    /// The node with this number with one more reference, if there is one.
    pub fn acquire_known(&self, inode: u64) -> Option<Arc<Node>> {
        let shard = self.shard(inode).read();
        let node = shard.get(&inode)?;
        node.references.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(node))
    }

    /// The node with this number with one more reference; `make` provides it when there is none.
    pub fn acquire(&self, inode: u64, make: impl FnOnce() -> Arc<Node>) -> Arc<Node> {
        let mut shard = self.shard(inode).write();
        let node = shard.entry(inode).or_insert_with(make);
        if let Some(file) = node.file() {
            self.inode_of.write().insert(file.id(), inode);
        }
        node.references.fetch_add(1, Ordering::Relaxed);
        Arc::clone(node)
    }

    /// Gives references back. The node, if it left the table.
    pub fn release(&self, inode: u64, references: u64) -> Option<Arc<Node>> {
        if inode == ROOT_INODE {
            return None;
        }
        let mut shard = self.shard(inode).write();
        let held = shard.get(&inode)?.references.load(Ordering::Relaxed);
        let left = held.saturating_sub(references);
        if left > 0 {
            shard.get(&inode)?.references.store(left, Ordering::Relaxed);
            return None;
        }
        let node = shard.remove(&inode)?;
        if let Some(file) = node.file() {
            self.inode_of.write().remove(&file.id());
        }
        if node.pending().is_some() && !*node.buried.lock() {
            self.left_unsynced.lock().insert(inode);
        }
        Some(node)
    }

    /// Whether this inode left the table with unsynced changes; it is the new node's matter from now on.
    pub fn take_left_unsynced(&self, inode: u64) -> bool {
        self.left_unsynced.lock().remove(&inode)
    }

    pub fn left_unsynced_count(&self) -> usize {
        self.left_unsynced.lock().len()
    }

    /// A moment's list of [`Self::take_left_unsynced`] candidates, to be dropped once home as a whole is durable.
    pub fn left_unsynced(&self) -> Vec<u64> {
        self.left_unsynced.lock().iter().copied().collect()
    }

    pub fn by_file(&self, id: FileId) -> Option<Arc<Node>> {
        let inode = self.inode_of.read().get(&id).copied()?;
        self.get(inode)
    }

    pub fn count(&self) -> u64 {
        self.shards.iter().map(|shard| shard.read().len() as u64).sum()
    }

    pub fn all(&self) -> Vec<Arc<Node>> {
        self.shards.iter().flat_map(|shard| shard.read().values().cloned().collect::<Vec<_>>()).collect()
    }
}

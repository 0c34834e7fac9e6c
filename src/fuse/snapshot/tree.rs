//! The names of a snapshot as numbered nodes, and what is read through them. Knows no FUSE.
//!
//! A node is made when its name is first met and stays as long as the mount: the snapshot bounds how many there are. Names of one file share a node.

use crate::error::{Error, Result};
use crate::namespace::{Attributes, ROOT_INODE};
use crate::repository::{Entry, EntryKind, FileContent, FileState, Repository, Root, Snapshot, SnapshotId};
use crate::units::FileId;
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

/// What makes two names one thing.
#[derive(Clone, PartialEq, Eq, Hash)]
enum Identity {
    File(FileId),
    Link(u64),
    Path(Vec<u8>),
}

impl Identity {
    fn of(path: &[u8], entry: &Entry) -> Identity {
        Identity::shared(entry).unwrap_or_else(|| Identity::Path(path.to_vec()))
    }

    /// None: no other name can lead there.
    fn shared(entry: &Entry) -> Option<Identity> {
        match entry.kind {
            EntryKind::File { file } => Some(Identity::File(file)),
            EntryKind::Directory => None,
            _ => (entry.link != 0).then_some(Identity::Link(entry.link)),
        }
    }
}

/// A file, directory or anything else that a name leads to.
pub struct Node {
    pub inode: u64,
    /// The name by which it was first met; empty for the root.
    pub path: Vec<u8>,
    pub entry: Entry,
    /// Read when it is first asked for: a listing needs it of no file.
    state: OnceLock<FileState>,
}

impl Node {
    /// Type and permission bits.
    pub fn mode(&self) -> u32 {
        let kind = match self.entry.kind {
            EntryKind::File { .. } => libc::S_IFREG,
            EntryKind::Directory => libc::S_IFDIR,
            EntryKind::Symlink { .. } => libc::S_IFLNK,
            EntryKind::CharDevice { .. } => libc::S_IFCHR,
            EntryKind::BlockDevice { .. } => libc::S_IFBLK,
            EntryKind::Fifo => libc::S_IFIFO,
            EntryKind::Socket => libc::S_IFSOCK,
        };
        kind | (self.entry.mode & 0o7777)
    }

    pub fn shown(&self) -> String {
        format!("/{}", String::from_utf8_lossy(&self.path))
    }
}

#[derive(Default)]
struct Nodes {
    /// By inode number less [`ROOT_INODE`].
    all: Vec<Arc<Node>>,
    inodes: HashMap<Identity, u64>,
}

/// A name in a directory.
pub struct Listed {
    pub name: Vec<u8>,
    pub node: Arc<Node>,
}

/// A snapshot to be looked at. May be shared by threads.
pub struct Tree {
    repository: Arc<Repository>,
    pub root: Root,
    /// Of what has more than one name, how many.
    links: HashMap<Identity, u32>,
    nodes: Mutex<Nodes>,
}

impl Tree {
    /// Reads all names once, because only that tells how many a file has. Errors: `NotFound`; `Corrupt` for names that cannot be read.
    pub fn open(repository: Arc<Repository>, id: SnapshotId) -> Result<Tree> {
        let snapshot = repository.snapshot(id)?;
        let top = snapshot.lookup(b"")?;
        let top = top.ok_or_else(|| Error::NotFound(format!("snapshot {id}: it has no root directory")))?;
        let mut links: HashMap<Identity, u32> = HashMap::new();
        let mut names = snapshot.walk(b"")?;
        while let Some((_, entry)) = names.next()? {
            if let Some(shared) = Identity::shared(&entry) {
                *links.entry(shared).or_default() += 1;
            }
        }
        drop(names);
        links.retain(|_, count| *count > 1);
        links.shrink_to_fit();
        let root = snapshot.root;
        let tree = Tree { repository, root, links, nodes: Mutex::default() };
        tree.node_of(Vec::new(), top);
        Ok(tree)
    }

    fn snapshot(&self) -> Snapshot<'_> {
        self.repository.reopen(&self.root)
    }

    fn node_of(&self, path: Vec<u8>, entry: Entry) -> Arc<Node> {
        let identity = Identity::of(&path, &entry);
        let mut nodes = self.nodes.lock();
        if let Some(known) = nodes.inodes.get(&identity).and_then(|inode| nodes.get(*inode)) {
            return known;
        }
        let inode = ROOT_INODE + nodes.all.len() as u64;
        let node = Arc::new(Node { inode, path, entry, state: OnceLock::new() });
        nodes.all.push(Arc::clone(&node));
        nodes.inodes.insert(identity, inode);
        node
    }

    /// By a number that was given out before.
    pub fn node(&self, inode: u64) -> Option<Arc<Node>> {
        self.nodes.lock().get(inode)
    }

    /// What a name in a directory leads to.
    pub fn child(&self, directory: &Node, name: &[u8]) -> Result<Option<Arc<Node>>> {
        let mut path = directory.path.clone();
        if !path.is_empty() {
            path.push(b'/');
        }
        path.extend_from_slice(name);
        let known = {
            let nodes = self.nodes.lock();
            nodes.inodes.get(&Identity::Path(path.clone())).and_then(|inode| nodes.get(*inode))
        };
        if known.is_some() {
            return Ok(known);
        }
        let entry = self.snapshot().lookup(&path)?;
        Ok(entry.map(|entry| self.node_of(path, entry)))
    }

    /// All names of a directory in order, with `.` and `..` in front.
    pub fn list(&self, directory: &Arc<Node>) -> Result<Vec<Listed>> {
        let path = &directory.path;
        let above = path.iter().rposition(|byte| *byte == b'/').unwrap_or(0);
        let above = Identity::Path(path[..above].to_vec());
        let parent = {
            let nodes = self.nodes.lock();
            nodes.inodes.get(&above).and_then(|inode| nodes.get(*inode))
        };
        let parent = parent.unwrap_or_else(|| Arc::clone(directory));
        let mut listed = vec![
            Listed { name: b".".to_vec(), node: Arc::clone(directory) },
            Listed { name: b"..".to_vec(), node: parent },
        ];
        let prefix = if path.is_empty() { 0 } else { path.len() + 1 };
        let snapshot = self.snapshot();
        let mut names = snapshot.list(path)?;
        while let Some((path, entry)) = names.next()? {
            let name = path.get(prefix..).unwrap_or_default().to_vec();
            listed.push(Listed { name, node: self.node_of(path, entry) });
        }
        Ok(listed)
    }

    /// stat(2) of a node. Directories have one link, which programs that walk trees take for "not counted".
    pub fn attributes(&self, node: &Node) -> Result<Attributes> {
        let entry = &node.entry;
        let (size_bytes, device) = match &entry.kind {
            EntryKind::File { file } => (self.state(node, *file)?.size, 0),
            EntryKind::Symlink { target } => (target.len() as u64, 0),
            EntryKind::CharDevice { rdev } | EntryKind::BlockDevice { rdev } => (0, *rdev),
            EntryKind::Directory | EntryKind::Fifo | EntryKind::Socket => (0, 0),
        };
        let links = Identity::shared(entry).and_then(|shared| self.links.get(&shared).copied());
        Ok(Attributes {
            inode: node.inode,
            size_bytes,
            blocks_512: size_bytes.div_ceil(512),
            access: entry.atime.into(),
            modification: entry.mtime.into(),
            change: entry.ctime.into(),
            mode: node.mode(),
            links: links.unwrap_or(1),
            uid: entry.uid,
            gid: entry.gid,
            device: u32::try_from(device & u64::from(u32::MAX)).unwrap_or(0),
        })
    }

    fn state(&self, node: &Node, file: FileId) -> Result<FileState> {
        if let Some(state) = node.state.get() {
            return Ok(*state);
        }
        let state = self.snapshot().file(file)?.state;
        Ok(*node.state.get_or_init(|| state))
    }

    fn content(&self, node: &Node) -> Result<FileContent<'_>> {
        match node.entry.kind {
            EntryKind::File { file } => Ok(self.repository.content(file, self.state(node, file)?)),
            _ => Err(Error::Invalid(format!("{} is no regular file", node.shown()))),
        }
    }

    /// At most `size` bytes, fewer only at the end of the file; each was checked against the name of its object (I8).
    pub fn read(&self, node: &Node, offset: u64, size: usize) -> Result<Vec<u8>> {
        let content = self.content(node)?;
        let left = usize::try_from(content.size().saturating_sub(offset)).unwrap_or(usize::MAX);
        let mut bytes = vec![0; size.min(left)];
        let read = content.read(offset, &mut bytes)?;
        bytes.truncate(read);
        Ok(bytes)
    }

    /// Where data (or a hole: the end of a file is one) begins, from `offset` on. None: nowhere.
    pub fn seek(&self, node: &Node, offset: u64, data: bool) -> Result<Option<u64>> {
        let content = self.content(node)?;
        if offset >= content.size() {
            return Ok(None);
        }
        let mut at = offset;
        while let Some(run) = content.run(at)? {
            if run.hole != data {
                return Ok(Some(at));
            }
            at = run.end;
        }
        Ok((!data).then_some(content.size()))
    }
}

impl Nodes {
    fn get(&self, inode: u64) -> Option<Arc<Node>> {
        let index = usize::try_from(inode.checked_sub(ROOT_INODE)?).ok()?;
        self.all.get(index).cloned()
    }
}

//! The namespace: names, attributes and identities of home's tree, joined with the engine's content.
//!
//! Home (`home/tree`) is an ordinary directory tree whose regular files hold no data: their content is the engine's, named by the file id in
//! a hidden extended attribute. Everything POSIX defines about names, owners, modes, ACLs and links is left to the backing
//! filesystem, reached by `*at()` calls on descriptors or handles held per node; only sizes, blocks and the times of writes come from the engine.
//!
//! What must hold:
//! - one node per inode, hence per file id, however many names it has ([`node`])
//! - no regular file ever has a name before its identity is on it: files are made nameless (O_TMPFILE), marked, then linked ([`names`])
//! - no regular file loses its last name before the grave holds it ([`grave`])
//! - an identity that does not fit makes the file's content unreachable, never empty (R10)
//! - all attributes leave through one function ([`attributes`], R20)
//! - a sync covers every change of home that the node saw (R11, [`sync`])
//!
//! Knows no FUSE: [`crate::fuse`] adapts it.

mod attributes;
mod credentials;
mod descriptors;
mod directory;
mod fault;
mod grave;
mod image;
mod names;
mod node;
mod sync;
mod walk;
mod xattr;

pub use attributes::{Attributes, Changes, Time, TimeChange};
pub use credentials::Caller;
pub use directory::{Entry, Stream};
pub use fault::{Fault, Outcome};
pub use image::Image;
pub use names::{Linked, RenameMode, Special};
pub use node::{Node, ROOT_INODE};
pub use walk::Visit;

use crate::device::sys_home;
use crate::device::witness::Witness;
use crate::error::{Error, Result};
use crate::ondisk::file_id::{FILE_ID_BYTES, FileIdentity, XATTR_FILE_ID, XATTR_ROOT_MODE, decode_root_mode};
use crate::units::FileId;
use crate::volume::{File, Volume};
use credentials::Daemon;
use descriptors::{Budget, Descriptor};
use grave::Grave;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::stat::{FileStat, Mode, fstat};
use node::{Content, Place, Table};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Largest file: what ext4 holds in one object file, rounded down to whole blocks. Beyond it EFBIG.
pub const FILE_BYTES_MAX: u64 = (1 << 44) - (1 << 20);
/// How long a rename waits for the log before it gives up with EIO.
const LOG_WAIT_MAX: Duration = Duration::from_secs(60);
const XATTR_CAPABILITY: &CStr = c"security.capability";

/// What `status` shows of the namespace.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct NamespaceStats {
    /// Inodes that the kernel knows.
    pub nodes: u64,
    /// Descriptors that they keep; beyond half of the process's limit inodes are found by handle.
    pub node_descriptors: u64,
    /// Files without trust since the mount (counted when met).
    pub untrusted_files: u64,
}

/// Room and inodes, for statfs.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Capacity {
    pub total_bytes: u64,
    pub available_bytes: u64,
    pub inodes: u64,
    pub free_inodes: u64,
    pub name_bytes_max: u32,
}

pub struct Namespace {
    volume: Arc<Volume>,
    volume_id: Uuid,
    daemon: Daemon,
    tree_path: String,
    root: Arc<Node>,
    root_device: u64,
    root_inode: u64,
    /// The mode that the mount's root shows, where home's own differs from it (see [`XATTR_ROOT_MODE`]).
    root_mode: Mutex<Option<u32>>,
    budget: Arc<Budget>,
    table: Table,
    grave: Arc<Grave>,
    imaging: image::Imaging,
    /// Asked after syncs of home's directories.
    witness: Witness,
    untrusted_files: std::sync::atomic::AtomicU64,
}

impl Namespace {
    /// Opens `home/tree` and `home/grave`, and settles the grave. `volume_id` is what identities of this volume's files carry. Errors: what is missing in home, what the backing filesystem lacks.
    pub fn open(home: &Path, volume: Arc<Volume>, volume_id: Uuid) -> Result<Arc<Namespace>> {
        let tree = home.join("tree");
        let tree_path = tree.display().to_string();
        let io = |action, errno: Errno| Error::io(action, tree_path.clone(), errno.into());
        let fd = open(&tree, OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| io("open", errno))?;
        let stat = fstat(&fd).map_err(|errno| io("stat", errno))?;
        let witness = make_witness(&fd, &tree_path)?;
        let root_mode = read_root_mode(&fd, &tree_path)?;
        let grave = Arc::new(Grave::open(home)?);
        let removed = grave.settle(&volume)?;
        if removed > 0 {
            tracing::info!("{removed} files without a name are being removed");
        }
        let hidden = Arc::clone(&grave);
        volume.on_gone(Box::new(move |gone| gone.iter().for_each(|id| hidden.unbury(*id))));
        let listing = directory::open_entries(&fd).map_err(|errno| io("open", errno))?;
        let budget = Arc::new(Budget::new(listing));
        let root = Arc::new(Node::new(ROOT_INODE, Descriptor::new(Arc::clone(&budget), fd), Content::Home, None));
        Ok(Arc::new(Namespace {
            volume_id,
            volume,
            daemon: Daemon::current(),
            root_device: stat.st_dev,
            root_inode: stat.st_ino,
            root_mode: Mutex::new(root_mode),
            budget,
            table: Table::new(Arc::clone(&root)),
            root,
            grave,
            imaging: image::Imaging::default(),
            witness,
            tree_path,
            untrusted_files: Default::default(),
        }))
    }

    pub fn volume(&self) -> &Arc<Volume> {
        &self.volume
    }

    /// The node with this number. `ESTALE`: nobody holds a lookup on it.
    pub fn node(&self, inode: u64) -> Outcome<Arc<Node>> {
        self.table.get(inode).ok_or(Fault::Home(Errno::ESTALE))
    }

    /// Takes one more reference on a known node, for an open handle.
    pub fn hold(&self, inode: u64) -> Outcome<Arc<Node>> {
        self.table.acquire_known(inode).ok_or(Fault::Home(Errno::ESTALE))
    }

    /// Opens a regular file's content: an error says at once that it cannot be trusted.
    pub fn open_file(&self, inode: u64) -> Outcome<Arc<Node>> {
        let node = self.hold(inode)?;
        if let Content::Untrusted(why) = &node.content {
            tracing::error!("open {}: {why}", self.describe(&node));
            self.release(inode, 1);
            return Err(Errno::EIO.into());
        }
        Ok(node)
    }

    /// Gives back references (lookups or open handles). The last one of a file without a name lets the engine remove it.
    pub fn release(&self, inode: u64, references: u64) {
        let Some(node) = self.table.release(inode, references) else { return };
        self.bury_for_good(&node);
        self.sync_if_many_left();
    }

    fn bury_for_good(&self, node: &Node) {
        let Some(file) = node.file() else { return };
        if *node.buried.lock()
            && let Err(error) = self.volume.remove(file.id())
        {
            tracing::warn!("remove file {}: {error}", file.id());
        }
    }

    /// After the last request: files that lost their names while open are removed now rather than at the next mount.
    pub fn close(&self) {
        self.table.all().iter().for_each(|node| self.bury_for_good(node));
    }

    pub fn stats(&self) -> NamespaceStats {
        NamespaceStats {
            nodes: self.table.count(),
            node_descriptors: self.budget.kept(),
            untrusted_files: self.untrusted_files.load(std::sync::atomic::Ordering::Relaxed),
        }
    }

    /// Room over all tiers; inodes are home's.
    pub fn capacity(&self) -> Outcome<Capacity> {
        let space = self.volume.space();
        let home = nix::sys::statvfs::fstatvfs(self.root.fd()?)?;
        Ok(Capacity {
            total_bytes: space.total_bytes,
            available_bytes: space.available_bytes,
            inodes: home.files(),
            free_inodes: home.files_available(),
            name_bytes_max: u32::try_from(home.name_max()).unwrap_or(255),
        })
    }

    /// The node's path from the mount's root, if its parents are known.
    fn path_of_node(&self, node: &Node) -> Option<String> {
        const DEPTH_MAX: usize = 4096;
        let mut components = Vec::new();
        let mut place = node.place.lock().clone();
        for _ in 0..DEPTH_MAX {
            let Some(Place { parent, name }) = place else { break };
            components.push(name.to_string_lossy().into_owned());
            if parent == ROOT_INODE {
                components.reverse();
                return Some(components.join("/"));
            }
            place = self.table.get(parent)?.place.lock().clone();
        }
        None
    }

    fn describe(&self, node: &Node) -> String {
        match self.path_of_node(node) {
            Some(path) => format!("{}/{path}", self.tree_path),
            None => format!("{} (inode {})", self.tree_path, node.inode),
        }
    }

    /// The path of a file that the kernel knows at this moment, relative to the mount's root; one of them if it has several.
    pub fn path_of(&self, id: FileId) -> Option<String> {
        self.path_of_node(&*self.table.by_file(id)?)
    }

    /// What the engine has to do with an inode just met (R10).
    fn content_of(&self, fd: &OwnedFd, stat: &FileStat, describe: impl FnOnce() -> String) -> Content {
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Content::Home;
        }
        match self.identify(fd, stat) {
            Ok(file) => Content::File(file),
            Err(why) => {
                self.untrusted_files.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
                tracing::error!("{}: {why}; reading and writing it gives EIO", describe());
                Content::Untrusted(why)
            }
        }
    }

    fn identify(&self, fd: &OwnedFd, stat: &FileStat) -> std::result::Result<Arc<File>, String> {
        let id = read_identity(fd, self.volume_id, stat.st_ino)?;
        // The mount never writes to home's files. Which content is meant only the user can say (R13).
        if stat.st_size != 0 {
            return Err(format!(
                "{} bytes were written to it behind the mount; truncate it there to 0 bytes to have the mount's content back",
                stat.st_size
            ));
        }
        if self.volume.is_set_aside(id) {
            return Err("it belongs to what the volume was before it was rolled back".to_owned());
        }
        self.volume.file(id).map_err(|error| error.to_string())
    }
}

/// The file id that an inode of home carries, or why it has none that counts.
fn read_identity(fd: impl AsFd, volume_id: Uuid, inode: u64) -> std::result::Result<FileId, String> {
    let name = CString::new(XATTR_FILE_ID).map_err(|error| error.to_string())?;
    let mut bytes = [0; 2 * FILE_ID_BYTES];
    let length = match sys_home::get_xattr(fd, &name, &mut bytes) {
        Ok(length) => length,
        Err(Errno::ENODATA) => return Err("it has no identity: it was not made through the mount".to_owned()),
        Err(errno) => return Err(format!("its identity cannot be read: {errno}")),
    };
    FileIdentity::decode(&bytes[..length], "home").and_then(|identity| identity.verify(volume_id, inode)).map_err(
        |error| match error {
            Error::Untrusted { why, .. } => why,
            other => other.to_string(),
        },
    )
}

/// Files are made without a name first; a backing filesystem that cannot do that cannot be home.
fn make_witness(tree: &OwnedFd, path: &str) -> Result<Witness> {
    Witness::of(tree).map_err(|errno| match errno {
        Errno::EOPNOTSUPP | Errno::EISDIR | Errno::ENOENT => Error::Invalid(format!(
            "home {path}: its filesystem cannot create files without a name (O_TMPFILE); use ext4, xfs or btrfs"
        )),
        errno => Error::io("create a file in", path, errno.into()),
    })
}

fn read_root_mode(tree: &OwnedFd, path: &str) -> Result<Option<u32>> {
    let name = CString::new(XATTR_ROOT_MODE).map_err(|error| Error::Invalid(error.to_string()))?;
    let mut bytes = [0; 16];
    match sys_home::get_xattr(tree, &name, &mut bytes) {
        Ok(length) => decode_root_mode(&bytes[..length], path).map(Some),
        Err(Errno::ENODATA) => Ok(None),
        Err(errno) => Err(Error::io("read attribute of", path, errno.into())),
    }
}

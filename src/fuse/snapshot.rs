//! A snapshot as a filesystem that can only be read, served from the repository on demand.
//!
//! Nothing in it ever changes, so the kernel may keep everything it was told: names, attributes, pages, listings. It refuses writers by itself, because the
//! mount is read-only; should somebody mount it anew without that, what the library answers by default is a refusal too.

mod tree;

use super::adapter::{BLOCK_BYTES, TTL, UNKNOWN, file_attr, file_type, reply_xattr};
use super::mounted::{Ended, Mounted};
use crate::error::{Error, Result};
use crate::namespace::{Attributes, Fault};
use crate::repository::{EntryKind, Repository, SnapshotId};
use fuser::{
    Errno, FileHandle, Filesystem, FopenFlags, Generation, INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner,
    MountOption, OpenAccMode, OpenFlags, PollEvents, PollFlags, PollNotifier, ReplyAttr, ReplyData, ReplyDirectory,
    ReplyDirectoryPlus, ReplyEmpty, ReplyEntry, ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyXattr,
    Request, Session, SessionACL,
};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tree::{Listed, Node, Tree};

/// Readers wait for the repository's disk and for decompression.
const THREADS: usize = 4;
/// Most pages of a repository come in frames of several; who reads a snapshot mostly reads on.
const READ_AHEAD_KB: u32 = 1024;
/// Largest READ.
const READ_BYTES_MAX: u32 = 1 << 20;
const NAME_BYTES_MAX: u32 = 255;

const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);
const OPENED_DIRECTORY: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_CACHE_DIR);

const WANTED: [InitFlags; 8] = [
    InitFlags::FUSE_PARALLEL_DIROPS,
    InitFlags::FUSE_DO_READDIRPLUS,
    InitFlags::FUSE_READDIRPLUS_AUTO,
    InitFlags::FUSE_ASYNC_DIO,
    InitFlags::FUSE_CACHE_SYMLINKS,
    InitFlags::FUSE_EXPLICIT_INVAL_DATA,
    InitFlags::FUSE_NO_EXPORT_SUPPORT,
    InitFlags::FUSE_POSIX_ACL,
];

/// Mounts a snapshot and serves it on threads of its own. Mounted by root everybody may use it, and the kernel checks permissions. Set-id bits and device
/// nodes are shown and have no effect: a repository gives no privileges. Errors: `NotFound` for the snapshot.
pub fn mount_snapshot(repository: Arc<Repository>, id: SnapshotId, mountpoint: &Path) -> Result<Mounted> {
    let io = |action, error| Error::io(action, mountpoint.display().to_string(), error);
    let mountpoint = mountpoint.canonicalize().map_err(|error| io("find mountpoint", error))?;
    let ended = Arc::new(Ended::default());
    let view = View {
        tree: Tree::open(repository, id)?,
        listings: Mutex::default(),
        handles: AtomicU64::new(0),
        ended: Arc::clone(&ended),
    };
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("heatfs-snapshot:{id}")),
        // Not the variant of that name: the library keeps that one from the kernel when it mounts by itself.
        MountOption::CUSTOM("subtype=heatfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::RO,
        MountOption::NoSuid,
        MountOption::NoDev,
        MountOption::NoAtime,
    ];
    config.acl = if nix::unistd::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(THREADS);
    config.clone_fd = true;
    let session =
        Session::new(view, &mountpoint, &config).and_then(Session::spawn).map_err(|error| io("mount", error))?;
    let mounted = Mounted::new(mountpoint, ended, session);
    mounted.set_read_ahead(READ_AHEAD_KB);
    Ok(mounted)
}

struct View {
    tree: Tree,
    /// What open directories list, by handle.
    listings: Mutex<HashMap<u64, Arc<Vec<Listed>>>>,
    handles: AtomicU64,
    ended: Arc<Ended>,
}

/// Whatever the repository cannot give is an error of I/O, said once, here; the error names the object or where it lies.
fn failed(node: &Node, doing: &str, error: &Error) -> Errno {
    tracing::error!("{doing} {}: {error}", node.shown());
    Errno::EIO
}

impl View {
    fn node(&self, inode: INodeNo) -> std::result::Result<Arc<Node>, Errno> {
        self.tree.node(inode.0).ok_or(Errno::ESTALE)
    }

    fn looked_up(&self, parent: INodeNo, name: &OsStr) -> std::result::Result<fuser::FileAttr, Errno> {
        let parent = self.node(parent)?;
        let found = self.tree.child(&parent, name.as_bytes());
        let found = found.map_err(|error| failed(&parent, "looking up a name in", &error))?;
        let found = found.ok_or(Errno::ENOENT)?;
        self.attr(&found)
    }

    fn attr(&self, node: &Node) -> std::result::Result<fuser::FileAttr, Errno> {
        let attributes = self.tree.attributes(node).map_err(|error| failed(node, "attributes of", &error))?;
        Ok(file_attr(&attributes))
    }

    fn listing(&self, handle: FileHandle) -> Option<Arc<Vec<Listed>>> {
        self.listings.lock().get(&handle.0).cloned()
    }

    /// True: there is no room, the entry comes again.
    fn add_plus(&self, offset: u64, listed: &Listed, reply: &mut ReplyDirectoryPlus) -> bool {
        let name = OsStr::from_bytes(&listed.name);
        let inode = INodeNo(listed.node.inode);
        match self.attr(&listed.node) {
            Ok(attr) => reply.add(inode, offset, name, &TTL, &attr, Generation(0)),
            // One file that cannot be read hides no other: its name and type are known, and who wants more asks again, since this is kept for no time.
            Err(_) => {
                let bare = file_attr(&Attributes { inode: inode.0, mode: listed.node.mode(), ..UNKNOWN });
                reply.add(inode, offset, name, &Duration::ZERO, &bare, Generation(0))
            }
        }
    }

    fn xattr(&self, inode: INodeNo, name: &OsStr) -> std::result::Result<Vec<u8>, nix::errno::Errno> {
        let node = self.tree.node(inode.0).ok_or(nix::errno::Errno::ESTALE)?;
        let found = node.entry.xattrs.iter().find(|(stored, _)| stored == name.as_bytes());
        found.map(|(_, value)| value.clone()).ok_or(nix::errno::Errno::ENODATA)
    }
}

impl Filesystem for View {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for flag in WANTED {
            // What a kernel does not offer only makes it slower, but for ACLs, which it then takes for ordinary attributes.
            if config.add_capabilities(flag).is_err() {
                tracing::info!("the kernel does not offer {flag:?}");
            }
        }
        // The size of reads follows from that of writes. A refusal leaves the library's own.
        if config.set_max_write(READ_BYTES_MAX).is_err() {
            tracing::info!("reads are smaller than {READ_BYTES_MAX} bytes");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.ended.tell();
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        match self.looked_up(parent, name) {
            Ok(attr) => reply.entry(&TTL, &attr, Generation(0)),
            Err(errno) => reply.error(errno),
        }
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.node(ino).and_then(|node| self.attr(&node)) {
            Ok(attr) => reply.attr(&TTL, &attr),
            Err(errno) => reply.error(errno),
        }
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.node(ino) {
            Ok(node) => match &node.entry.kind {
                EntryKind::Symlink { target } => reply.data(target),
                _ => reply.error(Errno::EINVAL),
            },
            Err(errno) => reply.error(errno),
        }
    }

    fn open(&self, _req: &Request, _ino: INodeNo, flags: OpenFlags, reply: ReplyOpen) {
        match flags.acc_mode() {
            OpenAccMode::O_RDONLY => reply.opened(FileHandle(0), OPENED),
            _ => reply.error(Errno::EROFS),
        }
    }

    fn read(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Ok(size) = usize::try_from(size) else { return reply.error(Errno::EINVAL) };
        let read = self.node(ino).and_then(|node| {
            let doing = || format!("reading {size} bytes at {offset} of");
            self.tree.read(&node, offset, size).map_err(|error| failed(&node, &doing(), &error))
        });
        match read {
            Ok(bytes) => reply.data(&bytes),
            Err(errno) => reply.error(errno),
        }
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let data = match whence {
            libc::SEEK_DATA => true,
            libc::SEEK_HOLE => false,
            _ => return reply.error(Errno::EINVAL),
        };
        let found = self.node(ino).and_then(|node| {
            let found = self.tree.seek(&node, offset, data).map_err(|error| failed(&node, "seeking in", &error))?;
            i64::try_from(found.ok_or(Errno::ENXIO)?).map_err(|_| Errno::EOVERFLOW)
        });
        match found {
            Ok(at) => reply.offset(at),
            Err(errno) => reply.error(errno),
        }
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsync(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        reply.ok();
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        let listed = self
            .node(ino)
            .and_then(|node| self.tree.list(&node).map_err(|error| failed(&node, "listing directory", &error)));
        match listed {
            Ok(listed) => {
                let handle = self.handles.fetch_add(1, Ordering::Relaxed);
                self.listings.lock().insert(handle, Arc::new(listed));
                reply.opened(FileHandle(handle), OPENED_DIRECTORY);
            }
            Err(errno) => reply.error(errno),
        }
    }

    /// An entry's offset is that of the next: its place in the listing, counted from 1.
    fn readdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let Some(listing) = self.listing(fh) else { return reply.error(Errno::EBADF) };
        for (next, listed) in (1..).zip(listing.iter()).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            let kind = file_type(listed.node.mode());
            if reply.add(INodeNo(listed.node.inode), next, kind, OsStr::from_bytes(&listed.name)) {
                break;
            }
        }
        reply.ok();
    }

    fn readdirplus(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let Some(listing) = self.listing(fh) else { return reply.error(Errno::EBADF) };
        for (next, listed) in (1..).zip(listing.iter()).skip(usize::try_from(offset).unwrap_or(usize::MAX)) {
            if self.add_plus(next, listed, &mut reply) {
                break;
            }
        }
        reply.ok();
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.listings.lock().remove(&fh.0);
        reply.ok();
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let stats = &self.tree.root.stats;
        let blocks = stats.logical_bytes.div_ceil(u64::from(BLOCK_BYTES));
        reply.statfs(blocks, 0, 0, stats.names, 0, BLOCK_BYTES, NAME_BYTES_MAX, BLOCK_BYTES);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.xattr(ino, name).map_err(Fault::Home), size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        let names = self.tree.node(ino.0).ok_or(Fault::Home(nix::errno::Errno::ESTALE)).map(|node| {
            let names = node.entry.xattrs.iter().map(|(name, _)| [name.as_slice(), &[0]].concat());
            names.collect::<Vec<_>>().concat()
        });
        reply_xattr(names, size, reply);
    }

    fn ioctl(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _flags: IoctlFlags,
        _cmd: u32,
        _in_data: &[u8],
        _out_size: u32,
        reply: ReplyIoctl,
    ) {
        reply.error(Errno::ENOTTY);
    }

    /// ENOSYS on purpose, which the kernel remembers: files are always ready.
    fn poll(
        &self,
        _req: &Request,
        _ino: INodeNo,
        _fh: FileHandle,
        _ph: PollNotifier,
        _events: PollEvents,
        _flags: PollFlags,
        reply: ReplyPoll,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

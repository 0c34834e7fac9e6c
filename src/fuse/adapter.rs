//! The fuser library's requests, turned into [`Operations`] and back. Nothing is decided here but what the protocol asks for.

use super::Maintains;
use super::errno::{Doing, errno};
use super::operations::{Allocation, Operations};
use crate::device::sys_home::{KERNEL_EPOCH, KernelTime};
use crate::namespace::{
    Attributes, Caller, Changes, Entry, Fault, Linked, Outcome, RenameMode, Special, Time, TimeChange,
};
use fuser::{
    BsdFileFlags, CopyFileRangeFlags, Errno, FileAttr, FileHandle, FileType, Filesystem, FopenFlags, Generation,
    INodeNo, InitFlags, IoctlFlags, KernelConfig, LockOwner, OpenFlags, PollEvents, PollFlags, PollNotifier,
    RenameFlags, ReplyAttr, ReplyCreate, ReplyData, ReplyDirectory, ReplyDirectoryPlus, ReplyEmpty, ReplyEntry,
    ReplyIoctl, ReplyLseek, ReplyOpen, ReplyPoll, ReplyStatfs, ReplyWrite, ReplyXattr, Request, TimeOrNow, WriteFlags,
};
use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

/// How long the kernel may keep what it was told: long, because everything changes through it.
pub(super) const TTL: Duration = Duration::from_secs(3600);
/// The preferred size of I/O (st_blksize), and the unit of statfs.
pub(super) const BLOCK_BYTES: u32 = 4096;
/// Largest WRITE and READ: what the kernel's default of 256 pages per request allows.
const WRITE_BYTES_MAX: u32 = 1 << 20;
/// The page cache outlives closing, because nobody else writes; and close has nothing to tell us.
pub(super) const OPENED: FopenFlags = FopenFlags::FOPEN_KEEP_CACHE.union(FopenFlags::FOPEN_NOFLUSH);

/// Asked for one by one, since kernels differ. Not asked for: the writeback cache (the daemon would lose order and time of writes), AUTO_INVAL_DATA,
/// locks (kernel-local ones suffice), ATOMIC_O_TRUNC (truncates come as SETATTR).
const WANTED: [(InitFlags, &str); 10] = [
    (InitFlags::FUSE_PARALLEL_DIROPS, "parallel directory operations"),
    (InitFlags::FUSE_DO_READDIRPLUS, "readdirplus"),
    (InitFlags::FUSE_READDIRPLUS_AUTO, "adaptive readdirplus"),
    (InitFlags::FUSE_ASYNC_DIO, "asynchronous direct I/O"),
    (InitFlags::FUSE_HANDLE_KILLPRIV_V2, "set-id bits dropped by the daemon"),
    (InitFlags::FUSE_CACHE_SYMLINKS, "cached symbolic links"),
    (InitFlags::FUSE_EXPLICIT_INVAL_DATA, "explicit invalidation"),
    (InitFlags::FUSE_NO_EXPORT_SUPPORT, "no NFS export"),
    (InitFlags::FUSE_DONT_MASK, "umask left to the daemon"),
    (InitFlags::FUSE_POSIX_ACL, "POSIX ACLs"),
];

pub struct Adapter<O> {
    operations: Arc<O>,
    max_background: u16,
    maintains: Maintains,
    /// Called once when the session is over.
    ended: Option<Box<dyn FnOnce() + Send + Sync>>,
}

impl<O: Operations> Adapter<O> {
    pub fn new(
        operations: Arc<O>,
        max_background: u16,
        maintains: Maintains,
        ended: Box<dyn FnOnce() + Send + Sync>,
    ) -> Adapter<O> {
        Adapter { operations, max_background, maintains, ended: Some(ended) }
    }
}

fn caller(request: &Request) -> Caller {
    Caller { uid: request.uid(), gid: request.gid(), pid: request.pid() }
}

fn number(fault: &Fault, doing: Doing) -> Errno {
    Errno::from_i32(errno(fault, doing))
}

fn kernel_time(time: Time) -> KernelTime {
    let fraction = Duration::from_nanos(u64::from(time.nanoseconds));
    let seconds = Duration::from_secs(time.seconds.unsigned_abs());
    let whole = if time.seconds < 0 { KERNEL_EPOCH.checked_sub(seconds) } else { KERNEL_EPOCH.checked_add(seconds) };
    whole.and_then(|whole| whole.checked_add(fraction)).unwrap_or(KERNEL_EPOCH)
}

fn time_change(change: TimeOrNow) -> TimeChange {
    match change {
        TimeOrNow::Now => TimeChange::Now,
        TimeOrNow::SpecificTime(time) => TimeChange::To(match time.duration_since(KERNEL_EPOCH) {
            Ok(after) => {
                Time { seconds: i64::try_from(after.as_secs()).unwrap_or(i64::MAX), nanoseconds: after.subsec_nanos() }
            }
            // The library subtracts the fraction from times before 1970 where the kernel meant it added: undo exactly that.
            Err(before) => Time {
                seconds: i64::try_from(before.duration().as_secs()).map_or(i64::MIN, |seconds| -seconds),
                nanoseconds: before.duration().subsec_nanos(),
            },
        }),
    }
}

pub(super) fn file_type(mode: u32) -> FileType {
    match mode & libc::S_IFMT {
        libc::S_IFDIR => FileType::Directory,
        libc::S_IFLNK => FileType::Symlink,
        libc::S_IFIFO => FileType::NamedPipe,
        libc::S_IFCHR => FileType::CharDevice,
        libc::S_IFBLK => FileType::BlockDevice,
        libc::S_IFSOCK => FileType::Socket,
        _ => FileType::RegularFile,
    }
}

pub(super) fn file_attr(attributes: &Attributes) -> FileAttr {
    FileAttr {
        ino: INodeNo(attributes.inode),
        size: attributes.size_bytes,
        blocks: attributes.blocks_512,
        atime: kernel_time(attributes.access),
        mtime: kernel_time(attributes.modification),
        ctime: kernel_time(attributes.change),
        crtime: KERNEL_EPOCH,
        kind: file_type(attributes.mode),
        perm: u16::try_from(attributes.mode & 0o7777).unwrap_or(0),
        nlink: attributes.links,
        uid: attributes.uid,
        gid: attributes.gid,
        rdev: attributes.device,
        blksize: BLOCK_BYTES,
        flags: 0,
    }
}

fn reply_empty(outcome: Outcome<()>, doing: Doing, reply: ReplyEmpty) {
    match outcome {
        Ok(()) => reply.ok(),
        Err(fault) => reply.error(number(&fault, doing)),
    }
}

fn reply_entry(outcome: Outcome<Linked>, doing: Doing, reply: ReplyEntry) {
    match outcome {
        Ok(linked) => reply.entry(&TTL, &file_attr(&linked.attributes), Generation(0)),
        Err(fault) => reply.error(number(&fault, doing)),
    }
}

fn reply_open(outcome: Outcome<u64>, flags: FopenFlags, reply: ReplyOpen) {
    match outcome {
        Ok(handle) => reply.opened(FileHandle(handle), flags),
        Err(fault) => reply.error(number(&fault, Doing::Reading)),
    }
}

/// A size of 0 asks how large the answer is.
pub(super) fn reply_xattr(outcome: Outcome<Vec<u8>>, size: u32, reply: ReplyXattr) {
    let value = match outcome {
        Ok(value) => value,
        Err(fault) => return reply.error(number(&fault, Doing::Reading)),
    };
    match u32::try_from(value.len()) {
        Ok(length) if size == 0 => reply.size(length),
        Ok(length) if length <= size => reply.data(&value),
        Ok(_) | Err(_) => reply.error(Errno::ERANGE),
    }
}

impl<O: Operations> Adapter<O> {
    /// The type of an entry whose backing filesystem does not tell it in listings.
    fn entry_type(&self, directory: u64, entry: &Entry) -> FileType {
        match entry.kind {
            libc::DT_DIR => FileType::Directory,
            libc::DT_REG => FileType::RegularFile,
            libc::DT_LNK => FileType::Symlink,
            libc::DT_FIFO => FileType::NamedPipe,
            libc::DT_CHR => FileType::CharDevice,
            libc::DT_BLK => FileType::BlockDevice,
            libc::DT_SOCK => FileType::Socket,
            _ if entry.is_dot() => FileType::Directory,
            _ => match self.operations.lookup(directory, &entry.name) {
                Ok(linked) => {
                    self.operations.forget(linked.node.inode, 1);
                    file_type(linked.attributes.mode)
                }
                Err(_) => FileType::RegularFile,
            },
        }
    }

    /// True: there is no room, the entry comes again.
    fn add_plus(&self, directory: u64, entry: &Entry, reply: &mut ReplyDirectoryPlus) -> bool {
        let offset = entry.cookie.cast_unsigned();
        if entry.is_dot() {
            // The kernel takes no reference on these two; only their number and type are used.
            let dot = Attributes { inode: entry.inode, mode: libc::S_IFDIR, ..UNKNOWN };
            return reply.add(INodeNo(entry.inode), offset, &entry.name, &TTL, &file_attr(&dot), Generation(0));
        }
        // An entry that cannot be looked up went away since it was listed.
        let Ok(linked) = self.operations.lookup(directory, &entry.name) else { return false };
        let attr = file_attr(&linked.attributes);
        let full = reply.add(attr.ino, offset, &entry.name, &TTL, &attr, Generation(0));
        if full {
            self.operations.forget(linked.node.inode, 1);
        }
        full
    }
}

/// Where only number and type count.
pub(super) const UNKNOWN: Attributes = Attributes {
    inode: 0,
    size_bytes: 0,
    blocks_512: 0,
    access: Time { seconds: 0, nanoseconds: 0 },
    modification: Time { seconds: 0, nanoseconds: 0 },
    change: Time { seconds: 0, nanoseconds: 0 },
    mode: 0,
    links: 1,
    uid: 0,
    gid: 0,
    device: 0,
};

impl<O: Operations> Filesystem for Adapter<O> {
    fn init(&mut self, _req: &Request, config: &mut KernelConfig) -> std::io::Result<()> {
        for (flag, name) in WANTED {
            if config.add_capabilities(flag).is_err() {
                tracing::info!("the kernel does not offer: {name}");
            }
        }
        // Each of these answers the nearest value it would take, which is then what stays set by the library.
        if config.set_max_write(WRITE_BYTES_MAX).is_err()
            || config.set_max_background(self.max_background).is_err()
            || config.set_congestion_threshold(self.max_background / 4 * 3).is_err()
        {
            tracing::warn!("the FUSE library refused a limit; its own is used");
        }
        Ok(())
    }

    fn destroy(&mut self) {
        self.operations.close();
        if let Some(ended) = self.ended.take() {
            ended();
        }
    }

    fn lookup(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEntry) {
        reply_entry(self.operations.lookup(parent.0, name), Doing::Reading, reply);
    }

    fn forget(&self, _req: &Request, ino: INodeNo, nlookup: u64) {
        self.operations.forget(ino.0, nlookup);
    }

    fn getattr(&self, _req: &Request, ino: INodeNo, _fh: Option<FileHandle>, reply: ReplyAttr) {
        match self.operations.attributes(ino.0) {
            Ok(attributes) => reply.attr(&TTL, &file_attr(&attributes)),
            Err(fault) => reply.error(number(&fault, Doing::Reading)),
        }
    }

    fn setattr(
        &self,
        req: &Request,
        ino: INodeNo,
        mode: Option<u32>,
        uid: Option<u32>,
        gid: Option<u32>,
        size: Option<u64>,
        atime: Option<TimeOrNow>,
        mtime: Option<TimeOrNow>,
        _ctime: Option<KernelTime>,
        _fh: Option<FileHandle>,
        _crtime: Option<KernelTime>,
        _chgtime: Option<KernelTime>,
        _bkuptime: Option<KernelTime>,
        _flags: Option<BsdFileFlags>,
        reply: ReplyAttr,
    ) {
        let changes = Changes {
            mode,
            uid,
            gid,
            size_bytes: size,
            access: atime.map(time_change),
            modification: mtime.map(time_change),
        };
        self.operations.change(ino.0, caller(req), changes, move |changed| match changed {
            Ok(attributes) => reply.attr(&TTL, &file_attr(&attributes)),
            Err(fault) => reply.error(number(&fault, Doing::Changing)),
        });
    }

    fn readlink(&self, _req: &Request, ino: INodeNo, reply: ReplyData) {
        match self.operations.read_link(ino.0) {
            Ok(target) => reply.data(target.as_bytes()),
            Err(fault) => reply.error(number(&fault, Doing::Reading)),
        }
    }

    fn mknod(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, rdev: u32, reply: ReplyEntry) {
        let kind = mode & libc::S_IFMT;
        let made = if kind == libc::S_IFREG || kind == 0 {
            self.operations.create(parent.0, name, caller(req), mode, umask)
        } else {
            let special = Special { kind, device: rdev };
            self.operations.make_special(parent.0, name, caller(req), mode, umask, special)
        };
        reply_entry(made, Doing::Changing, reply);
    }

    fn mkdir(&self, req: &Request, parent: INodeNo, name: &OsStr, mode: u32, umask: u32, reply: ReplyEntry) {
        reply_entry(self.operations.make_directory(parent.0, name, caller(req), mode, umask), Doing::Changing, reply);
    }

    fn unlink(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.operations.unlink(parent.0, name), Doing::Changing, reply);
    }

    fn rmdir(&self, _req: &Request, parent: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.operations.remove_directory(parent.0, name), Doing::Changing, reply);
    }

    fn symlink(&self, req: &Request, parent: INodeNo, link_name: &OsStr, target: &Path, reply: ReplyEntry) {
        reply_entry(self.operations.make_symlink(parent.0, link_name, caller(req), target), Doing::Changing, reply);
    }

    fn rename(
        &self,
        _req: &Request,
        parent: INodeNo,
        name: &OsStr,
        newparent: INodeNo,
        newname: &OsStr,
        flags: RenameFlags,
        reply: ReplyEmpty,
    ) {
        let mode = if flags.is_empty() {
            RenameMode::Replace
        } else if flags == RenameFlags::RENAME_NOREPLACE {
            RenameMode::NoReplace
        } else if flags == RenameFlags::RENAME_EXCHANGE {
            RenameMode::Exchange
        } else {
            return reply.error(Errno::EINVAL);
        };
        reply_empty(self.operations.rename(parent.0, name, newparent.0, newname, mode), Doing::Changing, reply);
    }

    fn link(&self, _req: &Request, ino: INodeNo, newparent: INodeNo, newname: &OsStr, reply: ReplyEntry) {
        reply_entry(self.operations.link(ino.0, newparent.0, newname), Doing::Changing, reply);
    }

    fn open(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply_open(self.operations.open(ino.0), OPENED, reply);
    }

    fn create(
        &self,
        req: &Request,
        parent: INodeNo,
        name: &OsStr,
        mode: u32,
        umask: u32,
        flags: i32,
        reply: ReplyCreate,
    ) {
        let exclusive = flags & libc::O_EXCL != 0;
        match self.operations.create_open(parent.0, name, caller(req), mode, umask, exclusive) {
            Ok((linked, handle)) => {
                reply.created(&TTL, &file_attr(&linked.attributes), Generation(0), FileHandle(handle), OPENED);
            }
            Err(fault) => reply.error(number(&fault, Doing::Changing)),
        }
    }

    fn read(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        size: u32,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyData,
    ) {
        let Ok(size) = usize::try_from(size) else { return reply.error(Errno::EINVAL) };
        self.operations.read(ino.0, offset, size, (self.maintains)(req.pid()), move |read| match read {
            Ok(bytes) => reply.data(bytes),
            Err(fault) => reply.error(number(&fault, Doing::Reading)),
        });
    }

    /// The handle is of no interest: pages written back from a shared mapping arrive with any of the file's.
    fn write(
        &self,
        req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        data: &[u8],
        write_flags: WriteFlags,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        reply: ReplyWrite,
    ) {
        let Ok(size) = u32::try_from(data.len()) else { return reply.error(Errno::EINVAL) };
        let drops_privileges = write_flags.contains(WriteFlags::FUSE_WRITE_KILL_SUIDGID);
        let maintains = (self.maintains)(req.pid());
        self.operations.write(ino.0, offset, data, drops_privileges, maintains, move |written| match written {
            Ok(()) => reply.written(size),
            Err(fault) => reply.error(number(&fault, Doing::Changing)),
        });
    }

    fn flush(&self, _req: &Request, _ino: INodeNo, _fh: FileHandle, _lock_owner: LockOwner, reply: ReplyEmpty) {
        // Every write was answered when it was in the log's buffer: nothing is left to say at close.
        reply.ok();
    }

    fn release(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        _flags: OpenFlags,
        _lock_owner: Option<LockOwner>,
        _flush: bool,
        reply: ReplyEmpty,
    ) {
        self.operations.release(ino.0);
        reply.ok();
    }

    fn fsync(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.operations.sync(ino.0, move |synced| reply_empty(synced, Doing::Syncing, reply));
    }

    fn opendir(&self, _req: &Request, ino: INodeNo, _flags: OpenFlags, reply: ReplyOpen) {
        reply_open(self.operations.open_directory(ino.0), FopenFlags::empty(), reply);
    }

    fn readdir(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectory) {
        let listed = self.operations.read_directory(fh.0, offset.cast_signed(), &mut |entry| {
            let kind = self.entry_type(ino.0, entry);
            !reply.add(INodeNo(entry.inode), entry.cookie.cast_unsigned(), kind, &entry.name)
        });
        match listed {
            Ok(()) => reply.ok(),
            Err(fault) => reply.error(number(&fault, Doing::Reading)),
        }
    }

    fn readdirplus(&self, _req: &Request, ino: INodeNo, fh: FileHandle, offset: u64, mut reply: ReplyDirectoryPlus) {
        let listed = self
            .operations
            .read_directory(fh.0, offset.cast_signed(), &mut |entry| !self.add_plus(ino.0, entry, &mut reply));
        match listed {
            Ok(()) => reply.ok(),
            Err(fault) => reply.error(number(&fault, Doing::Reading)),
        }
    }

    fn releasedir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _flags: OpenFlags, reply: ReplyEmpty) {
        self.operations.release_directory(fh.0);
        reply.ok();
    }

    fn fsyncdir(&self, _req: &Request, _ino: INodeNo, fh: FileHandle, _datasync: bool, reply: ReplyEmpty) {
        self.operations.sync_directory(fh.0, move |synced| reply_empty(synced, Doing::Syncing, reply));
    }

    fn statfs(&self, _req: &Request, _ino: INodeNo, reply: ReplyStatfs) {
        let capacity = match self.operations.capacity() {
            Ok(capacity) => capacity,
            Err(fault) => return reply.error(number(&fault, Doing::Reading)),
        };
        let unit = u64::from(BLOCK_BYTES);
        let available = capacity.available_bytes / unit;
        reply.statfs(
            capacity.total_bytes / unit,
            available,
            available,
            capacity.inodes,
            capacity.free_inodes,
            BLOCK_BYTES,
            capacity.name_bytes_max,
            BLOCK_BYTES,
        );
    }

    fn setxattr(
        &self,
        req: &Request,
        ino: INodeNo,
        name: &OsStr,
        value: &[u8],
        flags: i32,
        _position: u32,
        reply: ReplyEmpty,
    ) {
        reply_empty(self.operations.set_xattr(ino.0, caller(req), name, value, flags), Doing::Changing, reply);
    }

    fn getxattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, size: u32, reply: ReplyXattr) {
        reply_xattr(self.operations.get_xattr(ino.0, name), size, reply);
    }

    fn listxattr(&self, _req: &Request, ino: INodeNo, size: u32, reply: ReplyXattr) {
        reply_xattr(self.operations.list_xattr(ino.0), size, reply);
    }

    fn removexattr(&self, _req: &Request, ino: INodeNo, name: &OsStr, reply: ReplyEmpty) {
        reply_empty(self.operations.remove_xattr(ino.0, name), Doing::Changing, reply);
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

    fn fallocate(
        &self,
        _req: &Request,
        ino: INodeNo,
        _fh: FileHandle,
        offset: u64,
        length: u64,
        mode: i32,
        reply: ReplyEmpty,
    ) {
        let keep_size = mode & libc::FALLOC_FL_KEEP_SIZE != 0;
        let how = match mode & !libc::FALLOC_FL_KEEP_SIZE {
            0 => Allocation::Reserve { keep_size },
            libc::FALLOC_FL_ZERO_RANGE => Allocation::ZeroRange { keep_size },
            libc::FALLOC_FL_PUNCH_HOLE if keep_size => Allocation::PunchHole,
            _ => return reply.error(Errno::EOPNOTSUPP),
        };
        self.operations.allocate(ino.0, offset, length, how, move |allocated| {
            reply_empty(allocated, Doing::Changing, reply);
        });
    }

    fn lseek(&self, _req: &Request, ino: INodeNo, _fh: FileHandle, offset: i64, whence: i32, reply: ReplyLseek) {
        let Ok(offset) = u64::try_from(offset) else { return reply.error(Errno::ENXIO) };
        let found = match whence {
            libc::SEEK_DATA => self.operations.seek(ino.0, offset, true),
            libc::SEEK_HOLE => self.operations.seek(ino.0, offset, false),
            _ => return reply.error(Errno::EINVAL),
        };
        match found.map(i64::try_from) {
            Ok(Ok(at)) => reply.offset(at),
            Ok(Err(_)) => reply.error(Errno::EOVERFLOW),
            Err(fault) => reply.error(number(&fault, Doing::Reading)),
        }
    }

    /// ENOSYS on purpose, which the kernel remembers: files are always ready, and it need not ask.
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

    /// ENOSYS on purpose, which the kernel remembers: it then copies through its page cache, where pages that a shared mapping
    /// dirtied are seen. A copy inside the daemon would miss them.
    fn copy_file_range(
        &self,
        _req: &Request,
        _ino_in: INodeNo,
        _fh_in: FileHandle,
        _offset_in: u64,
        _ino_out: INodeNo,
        _fh_out: FileHandle,
        _offset_out: u64,
        _len: u64,
        _flags: CopyFileRangeFlags,
        reply: ReplyWrite,
    ) {
        reply.error(Errno::ENOSYS);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The library hands times before 1970 over with the fraction on the wrong side; both directions must come out right.
    #[test]
    fn times_before_1970_survive_the_library() {
        let time = Time { seconds: -2, nanoseconds: 800_000_000 };
        let as_library_decodes = KERNEL_EPOCH - Duration::new(2, 800_000_000);
        assert_eq!(time_change(TimeOrNow::SpecificTime(as_library_decodes)), TimeChange::To(time));
        let shown = kernel_time(time);
        assert_eq!(KERNEL_EPOCH.duration_since(shown).unwrap(), Duration::new(1, 200_000_000));
    }

    #[test]
    fn device_types_and_modes_are_told_apart() {
        assert_eq!(file_type(libc::S_IFSOCK | 0o755), FileType::Socket);
        assert_eq!(file_type(libc::S_IFREG | 0o4755), FileType::RegularFile);
    }
}

//! The filesystem as transports see it: the namespace, the engine, and who may wait where.
//!
//! Workers try everything without waiting first. What would wait goes to one of three pools (reads, writes, syncs), separate so that
//! readers of a slow tier never stand before writers that wait for log space, nor either before a commit.

use super::operations::{Allocation, Operations};
use super::pool::Pool;
use crate::device::AlignedBuf;
use crate::error::Error;
use crate::heat::maintaining;
use crate::namespace::{
    Attributes, Caller, Capacity, Changes, Entry, Fault, Linked, Namespace, Outcome, RenameMode, Special, Stream,
};
use crate::volume::{DirectRead, Seek, Wait};
use nix::errno::Errno;
use parking_lot::RwLock;
use std::cell::RefCell;
use std::collections::HashMap;
use std::ffi::{OsStr, OsString};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

/// Limits of the pools.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Slots {
    /// Reads of slow tiers at once. Fast reads never wait behind them: with 4 slots a fast read waited 3.9 s for 16 slow ones, with 64 0.2 ms.
    pub reads: usize,
    /// Writers waiting for log space.
    pub writes: usize,
    /// Syncs of home at once.
    pub syncs: usize,
}

impl Default for Slots {
    fn default() -> Slots {
        Slots { reads: 64, writes: 16, syncs: 8 }
    }
}

/// Parked requests are bounded by the kernel's background requests and the applications' threads; this is where a worker starts to wait.
const READS_QUEUED_MAX: usize = 1024;
/// Each holds a copy of its data, at most 1 MiB.
const WRITES_QUEUED_MAX: usize = 128;
const SYNCS_QUEUED_MAX: usize = 1024;

/// What `status` shows of the front.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, serde::Serialize, serde::Deserialize)]
pub struct FrontStats {
    pub open_files: u64,
    pub open_directories: u64,
    pub parked_reads: u64,
    pub parked_writes: u64,
    pub parked_syncs: u64,
}

pub struct Front {
    namespace: Arc<Namespace>,
    reads: Pool,
    writes: Pool,
    syncs: Pool,
    directories: RwLock<HashMap<u64, Arc<Stream>>>,
    open_files: AtomicU64,
    /// Workers reading the fastest tier or the log at this moment, and how many may: one stays free for what needs no device. Handing a
    /// read over to the pool costs two more switches of threads, as much as a fast device takes to answer.
    reading: AtomicUsize,
    reading_max: usize,
    /// Handles are numbers never used again: a late request with an old one must not meet a new directory.
    next_handle: AtomicU64,
}

thread_local! {
    /// One read buffer per thread, kept at the largest size seen.
    static BUFFER: RefCell<AlignedBuf> = RefCell::new(AlignedBuf::default());
}

impl Front {
    /// `workers`: how many threads will call this.
    pub fn new(namespace: Arc<Namespace>, slots: Slots, workers: usize) -> Front {
        Front {
            namespace,
            reads: Pool::new("heatfs-read", slots.reads, READS_QUEUED_MAX),
            writes: Pool::new("heatfs-write", slots.writes, WRITES_QUEUED_MAX),
            syncs: Pool::new("heatfs-sync", slots.syncs, SYNCS_QUEUED_MAX),
            directories: RwLock::default(),
            open_files: AtomicU64::new(0),
            reading: AtomicUsize::new(0),
            reading_max: workers.saturating_sub(1).max(1),
            next_handle: AtomicU64::new(1),
        }
    }

    pub fn stats(&self) -> FrontStats {
        FrontStats {
            open_files: self.open_files.load(Ordering::Relaxed),
            open_directories: self.directories.read().len() as u64,
            parked_reads: self.reads.parked(),
            parked_writes: self.writes.parked(),
            parked_syncs: self.syncs.parked(),
        }
    }

    fn handle(&self) -> u64 {
        self.next_handle.fetch_add(1, Ordering::Relaxed)
    }

    fn directory(&self, handle: u64) -> Outcome<Arc<Stream>> {
        self.directories.read().get(&handle).cloned().ok_or(Fault::Home(Errno::EBADF))
    }

    /// Calls that have no way to say "would wait": here while nobody waits for the log, in the pool once somebody does, so that
    /// they cannot take all workers away from readers.
    fn run_change(&self, change: impl FnOnce() + Send + 'static) {
        if self.writes.parked() > 0 { self.writes.submit(change) } else { change() }
    }

    fn opened(&self) -> u64 {
        self.open_files.fetch_add(1, Ordering::Relaxed);
        self.handle()
    }
}

/// Reads into this thread's buffer; `Err(done)` when it would wait.
fn read_now<D: FnOnce(Outcome<&[u8]>)>(
    namespace: &Namespace,
    inode: u64,
    offset: u64,
    size: usize,
    wait: Wait,
    done: D,
) -> std::result::Result<(), D> {
    let read = |buf: &mut [u8]| -> Outcome<usize> {
        let node = namespace.node(inode)?;
        let file = namespace.content(&node)?;
        Ok(namespace.volume().read(file, offset, buf, wait)?)
    };
    BUFFER.with_borrow_mut(|buffer| {
        if buffer.len() < size {
            buffer.resize(size);
        }
        match read(&mut buffer[..size]) {
            Ok(filled) => done(Ok(&buffer[..filled])),
            Err(Fault::Engine(Error::WouldWait)) if wait == Wait::Never => return Err(done),
            Err(fault) => done(Err(fault)),
        }
        Ok(())
    })
}

fn write_now(namespace: &Namespace, inode: u64, offset: u64, data: &[u8], wait: Wait) -> Outcome<()> {
    let node = namespace.node(inode)?;
    namespace.write(&node, offset, data, wait)
}

impl Operations for Front {
    fn lookup(&self, parent: u64, name: &OsStr) -> Outcome<Linked> {
        self.namespace.lookup(parent, name)
    }

    fn forget(&self, inode: u64, references: u64) {
        self.namespace.release(inode, references);
    }

    fn attributes(&self, inode: u64) -> Outcome<Attributes> {
        let node = self.namespace.node(inode)?;
        self.namespace.attributes(&node)
    }

    fn change(
        &self,
        inode: u64,
        caller: Caller,
        changes: Changes,
        done: impl FnOnce(Outcome<Attributes>) + Send + 'static,
    ) {
        if changes.size_bytes.is_none() {
            return done(self.namespace.change(inode, caller, changes));
        }
        let namespace = Arc::clone(&self.namespace);
        self.run_change(move || done(namespace.change(inode, caller, changes)));
    }

    fn create(&self, parent: u64, name: &OsStr, caller: Caller, mode: u32, umask: u32) -> Outcome<Linked> {
        self.namespace.create(parent, name, caller, mode, umask)
    }

    fn make_directory(&self, parent: u64, name: &OsStr, caller: Caller, mode: u32, umask: u32) -> Outcome<Linked> {
        self.namespace.make_directory(parent, name, caller, mode, umask)
    }

    fn make_special(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        mode: u32,
        umask: u32,
        special: Special,
    ) -> Outcome<Linked> {
        self.namespace.make_special(parent, name, caller, mode, umask, special)
    }

    fn make_symlink(&self, parent: u64, name: &OsStr, caller: Caller, target: &Path) -> Outcome<Linked> {
        self.namespace.make_symlink(parent, name, caller, target)
    }

    fn link(&self, inode: u64, parent: u64, name: &OsStr) -> Outcome<Linked> {
        self.namespace.link(inode, parent, name)
    }

    fn unlink(&self, parent: u64, name: &OsStr) -> Outcome<()> {
        self.namespace.unlink(parent, name)
    }

    fn remove_directory(&self, parent: u64, name: &OsStr) -> Outcome<()> {
        self.namespace.remove_directory(parent, name)
    }

    fn rename(&self, parent: u64, name: &OsStr, to: u64, to_name: &OsStr, mode: RenameMode) -> Outcome<()> {
        self.namespace.rename(parent, name, to, to_name, mode)
    }

    fn read_link(&self, inode: u64) -> Outcome<OsString> {
        self.namespace.read_link(inode)
    }

    fn open(&self, inode: u64) -> Outcome<u64> {
        self.namespace.open_file(inode)?;
        Ok(self.opened())
    }

    fn create_open(
        &self,
        parent: u64,
        name: &OsStr,
        caller: Caller,
        mode: u32,
        umask: u32,
        exclusive: bool,
    ) -> Outcome<(Linked, u64)> {
        let linked = match self.namespace.create(parent, name, caller, mode, umask) {
            // Made behind the kernel's back since it looked; without O_EXCL that one is meant.
            Err(Fault::Home(Errno::EEXIST)) if !exclusive => self.namespace.lookup(parent, name)?,
            created => created?,
        };
        let inode = linked.node.inode;
        match self.open(inode) {
            Ok(handle) => Ok((linked, handle)),
            Err(fault) => {
                self.namespace.release(inode, 1);
                Err(fault)
            }
        }
    }

    fn release(&self, inode: u64) {
        self.open_files.fetch_sub(1, Ordering::Relaxed);
        self.namespace.release(inode, 1);
    }

    fn read(
        &self,
        inode: u64,
        offset: u64,
        size: usize,
        maintains: bool,
        done: impl FnOnce(Outcome<&[u8]>) + Send + 'static,
    ) {
        let may_read_here = self.reading.fetch_add(1, Ordering::Relaxed) < self.reading_max;
        let read = if may_read_here {
            maintaining(maintains, || read_now(&self.namespace, inode, offset, size, Wait::Never, done))
        } else {
            Err(done)
        };
        self.reading.fetch_sub(1, Ordering::Relaxed);
        let Err(done) = read else { return };
        let namespace = Arc::clone(&self.namespace);
        self.reads.submit(move || {
            // Where waiting is allowed there is always an answer.
            let _ = maintaining(maintains, || read_now(&namespace, inode, offset, size, Wait::Allowed, done));
        });
    }

    fn direct_read(&self, inode: u64, offset: u64, size: usize) -> Option<DirectRead> {
        let node = self.namespace.node(inode).ok()?;
        let file = self.namespace.content(&node).ok()?;
        self.namespace.volume().direct_read(file, offset, size)
    }

    fn write(
        &self,
        inode: u64,
        offset: u64,
        data: &[u8],
        drops_privileges: bool,
        maintains: bool,
        done: impl FnOnce(Outcome<()>) + Send + 'static,
    ) {
        if drops_privileges && let Err(fault) = self.drop_privileges(inode) {
            return done(Err(fault));
        }
        match maintaining(maintains, || write_now(&self.namespace, inode, offset, data, Wait::Never)) {
            Err(Fault::Engine(Error::WouldWait | Error::LogFull)) => {}
            written => return done(written),
        }
        let namespace = Arc::clone(&self.namespace);
        let data = data.to_vec();
        self.writes.submit(move || {
            done(maintaining(maintains, || write_now(&namespace, inode, offset, &data, Wait::Allowed)));
        });
    }

    fn sync(&self, inode: u64, done: impl FnOnce(Outcome<()>) + Send + 'static) {
        let node = match self.namespace.node(inode) {
            Ok(node) => node,
            Err(fault) => return done(Err(fault)),
        };
        let namespace = Arc::clone(&self.namespace);
        let sync_log = move |node: &crate::namespace::Node, done: Box<dyn FnOnce(Outcome<()>) + Send>| match namespace
            .content(node)
        {
            Ok(file) => namespace.volume().sync(file, Box::new(|synced| done(synced.map_err(Fault::from)))),
            Err(fault) => done(Err(fault)),
        };
        if !self.namespace.is_home_pending(&node) {
            return sync_log(&node, Box::new(done));
        }
        let namespace = Arc::clone(&self.namespace);
        self.syncs.submit(move || match namespace.sync_home(&node) {
            Ok(()) => sync_log(&node, Box::new(done)),
            Err(fault) => done(Err(fault)),
        });
    }

    fn allocate(
        &self,
        inode: u64,
        offset: u64,
        length: u64,
        how: Allocation,
        done: impl FnOnce(Outcome<()>) + Send + 'static,
    ) {
        let namespace = Arc::clone(&self.namespace);
        self.run_change(move || done(allocate_now(&namespace, inode, offset, length, how)));
    }

    fn seek(&self, inode: u64, offset: u64, data: bool) -> Outcome<u64> {
        let node = self.namespace.node(inode)?;
        let file = self.namespace.content(&node)?;
        let what = if data { Seek::Data } else { Seek::Hole };
        self.namespace.volume().seek(file, offset, what).ok_or(Fault::Home(Errno::ENXIO))
    }

    fn open_directory(&self, inode: u64) -> Outcome<u64> {
        let stream = Arc::new(self.namespace.open_directory(inode)?);
        let handle = self.handle();
        self.directories.write().insert(handle, stream);
        Ok(handle)
    }

    fn read_directory(&self, handle: u64, cookie: i64, take: &mut dyn FnMut(&Entry) -> bool) -> Outcome<()> {
        Ok(self.directory(handle)?.read(cookie, take)?)
    }

    fn release_directory(&self, handle: u64) {
        self.directories.write().remove(&handle);
    }

    fn sync_directory(&self, handle: u64, done: impl FnOnce(Outcome<()>) + Send + 'static) {
        let namespace = Arc::clone(&self.namespace);
        match self.directory(handle) {
            Ok(stream) => self.syncs.submit(move || done(namespace.sync_directory(&stream))),
            Err(fault) => done(Err(fault)),
        }
    }

    fn capacity(&self) -> Outcome<Capacity> {
        self.namespace.capacity()
    }

    fn get_xattr(&self, inode: u64, name: &OsStr) -> Outcome<Vec<u8>> {
        self.namespace.get_xattr(inode, name)
    }

    fn list_xattr(&self, inode: u64) -> Outcome<Vec<u8>> {
        self.namespace.list_xattr(inode)
    }

    fn set_xattr(&self, inode: u64, caller: Caller, name: &OsStr, value: &[u8], flags: i32) -> Outcome<()> {
        self.namespace.set_xattr(inode, caller, name, value, flags)
    }

    fn remove_xattr(&self, inode: u64, name: &OsStr) -> Outcome<()> {
        self.namespace.remove_xattr(inode, name)
    }

    fn close(&self) {
        for pool in [&self.reads, &self.writes, &self.syncs] {
            pool.close();
        }
        self.directories.write().clear();
        self.namespace.close();
    }
}

impl Front {
    fn drop_privileges(&self, inode: u64) -> Outcome<()> {
        let node = self.namespace.node(inode)?;
        self.namespace.drop_privileges(&node)
    }
}

fn allocate_now(namespace: &Namespace, inode: u64, offset: u64, length: u64, how: Allocation) -> Outcome<()> {
    let node = namespace.node(inode)?;
    let file = namespace.content(&node)?;
    let end = offset.checked_add(length);
    if end.is_none_or(|end| end > crate::namespace::FILE_BYTES_MAX) && how != Allocation::PunchHole {
        return Err(Errno::EFBIG.into());
    }
    let volume = namespace.volume();
    match how {
        Allocation::Reserve { keep_size } => volume.allocate(file, offset, length, keep_size)?,
        Allocation::PunchHole => volume.punch_hole(file, offset, length)?,
        Allocation::ZeroRange { keep_size } => volume.zero_range(file, offset, length, keep_size)?,
    }
    Ok(())
}

//! A simulated world of disks, for proving what happens when they lie, fill up, fail or lose power.
//!
//! A [`SimWorld`] holds [`SimDevice`]s that share one count of operations: everything that changes or syncs something
//! (writes, syncs, lengths, punches, allocations, names; not reads). A test runs its work once to count, then once per operation with a
//! crash or a fault there: [`SimWorld::fork`] makes starting again from a prepared state cheap. [`SimWorld::recover`] is the power
//! coming back, and may be asked of one crashed world several times with different luck.
//!
//! What survives a crash is the least that [`super`] promises:
//! - bytes: what was synced; of each later change of a file whatever the [`Survival`] says, whole 4 KiB units (or 512 B, see
//!   [`SimWorld::tear_sectors`]), in any order; changes of length, punches and allocations whole or not at all
//! - names: what was synced; of the later ones the first few, in the order in which they were made
//! - the operation that the crash interrupts counts as made and not synced, also on a dsync handle
//!
//! Everything follows from the seeds as long as one thread works at a time.

mod coin;
mod content;
mod file;
mod inode;
mod names;

use super::{BackingFile, Device, OpenMode, Space, path};
use crate::units::{PAGE, PAGE_BYTES};
use coin::Coin;
use inode::Inode;
use names::{Entry, Names};
use parking_lot::{Mutex, MutexGuard};
use std::collections::BTreeMap;
use std::io;
use std::sync::Arc;

const SECTOR: usize = 512;
/// What a device without a limit says it has.
const ENDLESS_BYTES: u64 = 1 << 40;

/// What goes wrong at one operation. The world goes on afterwards.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Fault {
    /// Fails with EIO and changes nothing; what a sync was to write stays unsynced.
    Eio,
    /// Fails with ENOSPC and changes nothing.
    Enospc,
    /// A write puts down a part from its start and then fails with EIO; other operations fail as with `Eio`.
    ShortThenEio,
    /// A sync fails with EIO, and as on Linux the unsynced bytes count as clean from then on: they are still read, but not
    /// durable, and no later sync writes them. Other operations fail as with `Eio`.
    SyncError,
}

/// What becomes of unsynced changes in a crash.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Survival {
    None,
    All,
    /// Each fares by chance.
    Seed(u64),
}

/// Calls that reached one device, and their bytes.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Traffic {
    pub reads: u64,
    pub read_bytes: u64,
    pub writes: u64,
    pub written_bytes: u64,
    /// Of files, of directories and of the whole device.
    pub syncs: u64,
}

/// A write that reached a device.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Written {
    /// Syncs of the device before it.
    pub syncs: u64,
    /// Which file: numbered in the order in which they were made.
    pub inode: u64,
    pub offset: u64,
}

/// Simulated devices with one operation counter and one fate. Cloning gives another handle on the same world.
#[derive(Clone)]
pub struct SimWorld {
    state: Arc<Mutex<World>>,
}

#[derive(Clone)]
struct World {
    seed: u64,
    tear_bytes: usize,
    operations: u64,
    faults: BTreeMap<u64, Fault>,
    crash_at: Option<u64>,
    crashed: bool,
    devices: Vec<Disk>,
}

type Action = Box<dyn FnOnce() + Send>;

/// The state of one device.
#[derive(Clone, Default)]
struct Disk {
    name: String,
    names: Names,
    inodes: BTreeMap<u64, Inode>,
    next_inode: u64,
    /// Pages of all files that have a name or an open handle.
    used_pages: u64,
    capacity_bytes: Option<u64>,
    traffic: Traffic,
    /// None: nobody wants to know.
    written: Option<Vec<Written>>,
    reads_fail: bool,
    writes_fail: bool,
    syncs_fail: bool,
    after_sync: Arc<Mutex<Option<Action>>>,
}

/// Which faults apply to an operation.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    Write,
    /// Anything else that changes.
    Change,
    Sync,
}

/// How an operation that was counted goes on.
enum Start {
    Normal,
    /// A number from the seed says how short.
    Short(u64),
    LosingUnsynced,
    Crashing,
}

impl Start {
    /// What the caller hears after the operation's effects took place.
    fn finish(self) -> io::Result<()> {
        match self {
            Start::Normal => Ok(()),
            Start::Short(_) | Start::LosingUnsynced => Err(eio()),
            Start::Crashing => Err(crashed()),
        }
    }
}

impl SimWorld {
    /// An empty world. The seed decides how faults play out.
    pub fn new(seed: u64) -> SimWorld {
        SimWorld::from(World {
            seed,
            tear_bytes: PAGE,
            operations: 0,
            faults: BTreeMap::new(),
            crash_at: None,
            crashed: false,
            devices: Vec::new(),
        })
    }

    fn from(world: World) -> SimWorld {
        SimWorld { state: Arc::new(Mutex::new(world)) }
    }

    /// The device of this name; an empty one is made when there is none.
    pub fn device(&self, name: &str) -> Arc<SimDevice> {
        let mut world = self.state.lock();
        let index = world.devices.iter().position(|disk| disk.name == name).unwrap_or_else(|| {
            world.devices.push(Disk { name: name.to_owned(), ..Disk::default() });
            world.devices.len() - 1
        });
        Arc::new(SimDevice { state: self.state.clone(), index })
    }

    /// From now on a crash tears writes at 512 B, not 4 KiB.
    pub fn tear_sectors(&self) {
        self.state.lock().tear_bytes = SECTOR;
    }

    /// Operations so far, failed ones included. The next one has this number.
    pub fn operations(&self) -> u64 {
        self.state.lock().operations
    }

    /// The operation with this number meets a fault.
    pub fn fail_at(&self, operation: u64, fault: Fault) {
        self.state.lock().faults.insert(operation, fault);
    }

    /// The operation with this number is interrupted by the end of the world: every call after it fails on every device.
    pub fn crash_at(&self, operation: u64) {
        self.state.lock().crash_at = Some(operation);
    }

    pub fn crashed(&self) -> bool {
        self.state.lock().crashed
    }

    /// An independent copy of everything, pending faults included; open handles stay with the original.
    pub fn fork(&self) -> SimWorld {
        let mut world = self.state.lock().clone();
        world.devices.iter_mut().for_each(Disk::close_all);
        SimWorld::from(world)
    }

    /// The world after a power cut at this moment: the same devices with what survived. Counts from 0, without faults.
    pub fn recover(&self, survival: Survival) -> SimWorld {
        self.recover_each(|_| survival)
    }

    /// As [`SimWorld::recover`], with luck chosen by the name of the device.
    pub fn recover_each(&self, survival: impl Fn(&str) -> Survival) -> SimWorld {
        let world = self.state.lock();
        let after = |disk: &Disk| disk.after_crash(survival(&disk.name), world.seed, world.tear_bytes);
        SimWorld::from(World {
            seed: world.seed,
            tear_bytes: world.tear_bytes,
            operations: 0,
            faults: BTreeMap::new(),
            crash_at: None,
            crashed: false,
            devices: world.devices.iter().map(after).collect(),
        })
    }
}

impl World {
    /// Counts an operation and says how it goes.
    fn begin(&mut self, device: usize, kind: Kind) -> io::Result<Start> {
        self.alive()?;
        let operation = self.operations;
        self.operations += 1;
        if self.crash_at.is_some_and(|at| operation >= at) {
            self.crashed = true;
            return Ok(Start::Crashing);
        }
        let disk = &mut self.devices[device];
        disk.traffic.syncs += u64::from(kind == Kind::Sync);
        match (kind, self.faults.remove(&operation)) {
            (Kind::Sync, Some(Fault::SyncError)) => Ok(Start::LosingUnsynced),
            (Kind::Write, Some(Fault::ShortThenEio)) => Ok(Start::Short(Coin::new(self.seed ^ operation).next())),
            (_, Some(Fault::Enospc)) => Err(enospc()),
            (_, Some(_)) => Err(eio()),
            (Kind::Sync, None) if disk.syncs_fail => Ok(Start::LosingUnsynced),
            (Kind::Write | Kind::Change, None) if disk.writes_fail => Err(eio()),
            (_, None) => Ok(Start::Normal),
        }
    }

    fn alive(&self) -> io::Result<()> {
        if self.crashed { Err(crashed()) } else { Ok(()) }
    }
}

impl Disk {
    fn inode(&mut self, inode: u64) -> &mut Inode {
        self.inodes.get_mut(&inode).expect("a file with an open handle is never dropped")
    }

    fn total_bytes(&self) -> u64 {
        self.capacity_bytes.unwrap_or(ENDLESS_BYTES)
    }

    fn available_bytes(&self) -> u64 {
        self.total_bytes().saturating_sub(self.used_pages * PAGE_BYTES)
    }

    /// A file has lost its name or a handle: its space is free when that was the last.
    fn release(&mut self, inode: u64) {
        let Some(file) = self.inodes.get(&inode) else { return };
        if !file.is_dead() {
            return;
        }
        self.used_pages -= file.content().pages();
        self.sweep();
    }

    /// Drops files that no name, no handle and no crash can bring back.
    fn sweep(&mut self) {
        if self.names.pending() == 0 && self.inodes.values().any(Inode::is_dead) {
            let reachable = self.names.files();
            self.inodes.retain(|inode, file| !file.is_dead() || reachable.contains(inode));
        }
    }

    fn close_all(&mut self) {
        let open: Vec<u64> = self.inodes.iter().filter(|(_, f)| f.handles > 0).map(|(inode, _)| *inode).collect();
        for inode in open {
            self.inode(inode).handles = 0;
            self.release(inode);
        }
    }

    fn after_crash(&self, survival: Survival, world_seed: u64, tear_bytes: usize) -> Disk {
        let seed = if let Survival::Seed(seed) = survival { seed } else { 0 };
        let mut coin = Coin::named(world_seed ^ seed.rotate_left(32), &self.name);
        let survivors = match survival {
            Survival::None => 0,
            Survival::All => self.names.pending(),
            Survival::Seed(_) => {
                let choices = self.names.pending() as u64 + 1;
                usize::try_from(coin.below(choices)).unwrap_or(0)
            }
        };
        let names = self.names.after_crash(survivors);
        let survive = |inode: u64| Some((inode, self.inodes.get(&inode)?.after_crash(survival, tear_bytes, &mut coin)));
        let inodes: BTreeMap<u64, Inode> = names.files().into_iter().filter_map(survive).collect();
        Disk {
            name: self.name.clone(),
            names,
            used_pages: inodes.values().map(|file| file.content().pages()).sum(),
            inodes,
            next_inode: self.next_inode,
            capacity_bytes: self.capacity_bytes,
            ..Disk::default()
        }
    }
}

/// One device of a [`SimWorld`].
pub struct SimDevice {
    state: Arc<Mutex<World>>,
    index: usize,
}

impl SimDevice {
    /// Limits the device; what is allocated beyond it already stays.
    pub fn set_capacity(&self, bytes: u64) {
        self.disk(|disk| disk.capacity_bytes = Some(bytes));
    }

    /// From now on every read fails with EIO, or none does.
    pub fn break_reads(&self, broken: bool) {
        self.disk(|disk| disk.reads_fail = broken);
    }

    /// From now on everything that changes bytes, lengths or names fails with EIO, or nothing does.
    pub fn break_writes(&self, broken: bool) {
        self.disk(|disk| disk.writes_fail = broken);
    }

    /// From now on every sync fails as with [`Fault::SyncError`], or none does.
    pub fn break_syncs(&self, broken: bool) {
        self.disk(|disk| disk.syncs_fail = broken);
    }

    /// Runs `action` once, right after the next sync of a file of this device, before its caller hears of it: what somebody else may do just then.
    pub fn after_next_sync(&self, action: impl FnOnce() + Send + 'static) {
        *self.disk(|disk| Arc::clone(&disk.after_sync)).lock() = Some(Box::new(action));
    }

    /// Reads of any of these bytes of a file fail with EIO until all of them have been written over. Survives crashes.
    pub fn break_range(&self, path: &str, offset: u64, len: u64) -> io::Result<()> {
        self.disk(|disk| {
            let inode = disk.names.expect_file(path)?;
            disk.inode(inode).bad.push(offset..offset + len);
            Ok(())
        })
    }

    /// Every write since this was called first or last.
    pub fn take_written(&self) -> Vec<Written> {
        self.disk(|disk| disk.written.replace(Vec::new())).unwrap_or_default()
    }

    pub fn traffic(&self) -> Traffic {
        self.disk(|disk| disk.traffic)
    }

    fn disk<T>(&self, call: impl FnOnce(&mut Disk) -> T) -> T {
        call(&mut self.state.lock().devices[self.index])
    }

    /// The device's state for a call that is no operation, while the world stands.
    fn look<T>(&self, call: impl FnOnce(&Disk) -> io::Result<T>) -> io::Result<T> {
        let world = self.state.lock();
        world.alive()?;
        call(&world.devices[self.index])
    }

    /// Renames a file if what is at the target may be replaced.
    fn rename_if(&self, from: &str, to: &str, allowed: impl Fn(Option<Entry>) -> bool) -> io::Result<()> {
        path::check(from)?;
        path::check(to)?;
        let mut world = self.state.lock();
        world.alive()?;
        let names = &world.devices[self.index].names;
        let moved = names.expect_file(from)?;
        names.expect_dir(names::parent(to))?;
        let target = names.find(to)?;
        if !allowed(target) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let replaced = match target {
            Some(Entry::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Entry::File(inode)) if inode == moved => return Ok(()),
            Some(Entry::File(inode)) => Some(inode),
            None => None,
        };
        let start = self.begin(&mut world, Kind::Change)?;
        let disk = &mut world.devices[self.index];
        disk.names.rename(from, to);
        if let Some(inode) = replaced {
            disk.inode(inode).named = false;
            disk.release(inode);
        }
        start.finish()
    }

    fn begin(&self, world: &mut MutexGuard<'_, World>, kind: Kind) -> io::Result<Start> {
        world.begin(self.index, kind)
    }
}

impl Device for SimDevice {
    fn path(&self) -> String {
        self.disk(|disk| format!("sim:{}", disk.name))
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        path::check(path)?;
        let mut world = self.state.lock();
        world.alive()?;
        let inode = match world.devices[self.index].names.find(path)? {
            Some(Entry::Dir) => return Err(io::ErrorKind::IsADirectory.into()),
            Some(Entry::File(_)) if mode.create && mode.exclusive => return Err(io::ErrorKind::AlreadyExists.into()),
            Some(Entry::File(inode)) => inode,
            None if !mode.create => return Err(io::ErrorKind::NotFound.into()),
            None => {
                world.devices[self.index].names.expect_dir(names::parent(path))?;
                let start = self.begin(&mut world, Kind::Change)?;
                let disk = &mut world.devices[self.index];
                disk.next_inode += 1;
                let inode = disk.next_inode;
                disk.inodes.insert(inode, Inode::created());
                disk.names.add(path, Entry::File(inode));
                start.finish()?;
                inode
            }
        };
        world.devices[self.index].inode(inode).handles += 1;
        Ok(Arc::new(file::SimFile { state: self.state.clone(), device: self.index, inode, mode }))
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        path::check_dir(path)?;
        let mut world = self.state.lock();
        world.alive()?;
        let ends = path.match_indices('/').map(|(at, _)| at).chain([path.len()]);
        for dir in ends.map(|end| &path[..end]) {
            match world.devices[self.index].names.find(dir)? {
                Some(Entry::Dir) => {}
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => {
                    let start = self.begin(&mut world, Kind::Change)?;
                    world.devices[self.index].names.add(dir, Entry::Dir);
                    start.finish()?;
                }
            }
        }
        Ok(())
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_if(from, to, |_| true)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.rename_if(from, to, |target| target.is_none())
    }

    fn remove_file(&self, path: &str) -> io::Result<()> {
        path::check(path)?;
        let mut world = self.state.lock();
        world.alive()?;
        let inode = world.devices[self.index].names.expect_file(path)?;
        let start = self.begin(&mut world, Kind::Change)?;
        let disk = &mut world.devices[self.index];
        disk.names.remove(path);
        disk.inode(inode).named = false;
        disk.release(inode);
        start.finish()
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        path::check_dir(path)?;
        self.look(|disk| disk.names.list(path))
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        path::check_dir(path)?;
        // A path through a file names nothing.
        self.look(|disk| Ok(disk.names.find(path).is_ok_and(|entry| entry.is_some())))
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        path::check_dir(path)?;
        let mut world = self.state.lock();
        world.alive()?;
        world.devices[self.index].names.expect_dir(path)?;
        let start = self.begin(&mut world, Kind::Sync)?;
        if let Start::Normal = start {
            let disk = &mut world.devices[self.index];
            disk.names.sync_dir(path);
            disk.sweep();
        }
        start.finish()
    }

    fn sync_all(&self) -> io::Result<()> {
        let mut world = self.state.lock();
        let start = self.begin(&mut world, Kind::Sync)?;
        let disk = &mut world.devices[self.index];
        match start {
            Start::Normal => {
                disk.inodes.values_mut().for_each(Inode::sync);
                disk.names.sync_all();
                disk.sweep();
            }
            Start::LosingUnsynced => disk.inodes.values_mut().for_each(Inode::lose_unsynced),
            Start::Short(_) | Start::Crashing => {}
        }
        start.finish()
    }

    fn space(&self) -> io::Result<Space> {
        self.look(|disk| Ok(Space { total_bytes: disk.total_bytes(), available_bytes: disk.available_bytes() }))
    }
}

fn eio() -> io::Error {
    io::Error::from_raw_os_error(libc::EIO)
}

fn enospc() -> io::Error {
    io::Error::from_raw_os_error(libc::ENOSPC)
}

fn crashed() -> io::Error {
    io::Error::other("the simulated machine has crashed")
}

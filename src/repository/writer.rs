//! Taking a snapshot into the repository.
//!
//! Order of durability: packs, then the index segments that name them, then (when something was borrowed through the index) the lease with what
//! was borrowed, then the root. A crash anywhere before the root's rename leaves garbage that prune removes, and no snapshot.

use super::Repository;
use super::file::{FileState, FileUpdate};
use super::generations::{self, Generations};
use super::ids::{LeaseId, ObjectId, ObjectRef, PackId, SnapshotId};
use super::lease::{self, Lease};
use super::namespace::{Names, NamespaceWriter};
use super::pack::Class;
use super::root::{self, Root, SnapshotMeta, SnapshotStats};
use super::sink::Sink;
use super::small::{Kind, io_error};
use super::table::{self, Cursor, NodeSink, TableBuilder};
use crate::error::{Error, Result};
use crate::units::{FileId, WallNs};
use parking_lot::Mutex;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

/// What a writer session is about.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct WriterOptions {
    pub volume: Uuid,
    /// The last published snapshot of the same volume; None for a first or a full one.
    pub parent: Option<SnapshotId>,
    pub now: WallNs,
    /// Look for each new object in the whole repository, not only at the same place in the parent. Costs a filter's probe per
    /// segment and object; finds what was there in other files, other volumes, and in a capture that broke off.
    pub search_repository: bool,
    /// The parent is another volume's: the one that this volume was made of, whose files have the same ids.
    pub parent_of_other_volume: bool,
}

/// Bytes that a file refers to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Stored {
    /// Nothing but zeros: a flag, no object.
    Zero,
    Object(ObjectRef),
}

/// A session that stores one snapshot. Shared by threads. Dropping it without [`Writer::commit`] gives everything up.
pub struct Writer<'r> {
    pub(super) repository: &'r Repository,
    pub(super) sink: Sink<'r>,
    options: WriterOptions,
    lease: Mutex<Lease>,
    /// Nodes of the parent's tables, which are not stored again.
    parent_nodes: HashMap<ObjectId, ObjectRef>,
    borrowed: Mutex<BTreeSet<PackId>>,
    changed: Mutex<BTreeMap<FileId, FileState>>,
    pub(super) counters: Counters,
}

#[derive(Default)]
pub(super) struct Counters {
    pub given_pages: AtomicU64,
    pub given_bytes: AtomicU64,
    pub new_pages: AtomicU64,
    pub new_raw_bytes: AtomicU64,
}

impl<'r> Writer<'r> {
    pub(super) fn begin(repository: &'r Repository, options: WriterOptions) -> Result<Writer<'r>> {
        repository.check_writable()?;
        let store = &repository.store;
        let (volume, any_volume) = (options.volume, options.parent_of_other_volume);
        let find = |id| {
            let parent = root::find(&store.small, id)?;
            if parent.volume != volume && !any_volume {
                return Err(Error::Invalid(format!("parent {id} is of volume {}, not of {volume}", parent.volume)));
            }
            Ok(parent)
        };
        let parent = options.parent.map(find).transpose()?;
        let generation = Generations::load(store.small.device.as_ref())?.current();
        let mut lease = Lease {
            id: LeaseId::random()?,
            generation,
            volume: options.volume,
            began: options.now,
            parent: options.parent,
            names: parent.as_ref().and_then(|parent| parent.names),
            files: parent.as_ref().and_then(|parent| parent.files),
            borrowed: Vec::new(),
        };
        lease::establish(&store.small, &mut lease, false)?;
        // What a parent of the same generation borrowed is not in any seal yet: from here on this lease vouches for it too.
        if let Some(parent) =
            parent.filter(|parent| parent.generation >= lease.generation && !parent.borrowed.is_empty())
        {
            lease.borrowed = parent.borrowed;
            lease::establish(&store.small, &mut lease, false)?;
        }
        if options.search_repository {
            store.index.refresh(&store.small)?;
        }
        // From here on the parent's trees stay; they did until now only if its root still counts.
        let borrowed = lease.borrowed.iter().copied().collect();
        let writer = Writer {
            repository,
            sink: Sink::new(store, lease.id, lease.generation, repository.format.pack_bytes),
            lease: Mutex::new(lease),
            parent_nodes: HashMap::new(),
            borrowed: Mutex::new(borrowed),
            changed: Mutex::default(),
            counters: Counters::default(),
            options,
        };
        writer.options.parent.map(find).transpose()?;
        writer.with_parent_nodes()
    }

    /// Only inner nodes are read for it.
    fn with_parent_nodes(mut self) -> Result<Writer<'r>> {
        let store = &self.repository.store;
        let (names, files) = {
            let lease = self.lease.lock();
            (lease.names, lease.files)
        };
        let mut known = HashMap::new();
        for root in [names, files].into_iter().flatten() {
            let mut waiting = vec![(root, table::load(store, &root)?.level)];
            while let Some((object, level)) = waiting.pop() {
                known.insert(object.id, object);
                if level > 0 {
                    let node = table::load(store, &object)?;
                    let children = node.children().map_err(|why| table::NodeSource::malformed(store, &object, why))?;
                    waiting.extend(children.into_iter().map(|child| (child, node.level - 1)));
                }
            }
        }
        self.parent_nodes = known;
        Ok(self)
    }

    /// How many packs this session shares with others by way of the index.
    pub fn borrowed_packs(&self) -> usize {
        self.borrowed.lock().len()
    }

    pub fn lease(&self) -> LeaseId {
        self.lease.lock().id
    }

    /// Stores bytes of one slot or page and says where; for [`FileUpdate::place`]. Several threads may do so at once.
    pub fn store(&self, bytes: &[u8]) -> Result<Stored> {
        self.counters.given_pages.fetch_add(1, Ordering::Relaxed);
        self.counters.given_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if is_zero(bytes) {
            return Ok(Stored::Zero);
        }
        self.store_named(self.repository.store.keys().object_id(bytes), bytes).map(Stored::Object)
    }

    pub(super) fn store_named(&self, id: ObjectId, bytes: &[u8]) -> Result<ObjectRef> {
        if let Some(known) = self.sink.recent(&id) {
            return Ok(known);
        }
        if self.options.search_repository
            && let Some(found) = self.search(&id)?
        {
            return Ok(found);
        }
        self.counters.new_pages.fetch_add(1, Ordering::Relaxed);
        self.counters.new_raw_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        self.sink.put(Class::Data, id, bytes)
    }

    /// Borrowing is noted, so that commit can make sure that no prune took the pack meanwhile.
    fn search(&self, id: &ObjectId) -> Result<Option<ObjectRef>> {
        let store = &self.repository.store;
        let view = store.index.view(&store.small)?;
        for place in view.find(id)? {
            // The index knows half of the id; and what is damaged is better stored again.
            if store.at_place(id, &place).is_ok() {
                self.borrowed.lock().insert(place.pack);
                return Ok(Some(ObjectRef { id: *id, place }));
            }
        }
        Ok(None)
    }

    /// The new content of a file, built on what the parent has of it. Files that are not updated stay as they are in the parent.
    ///
    /// `page_bytes`: 4, 8, 16 or 64 KiB; what the parent says wins, see [`FileUpdate::page_bytes`].
    pub fn file(&self, file: FileId, size: u64, page_bytes: u32) -> Result<FileUpdate<'_>> {
        let before = self.parent_file(file)?;
        FileUpdate::new(self, file, before, size, page_bytes)
    }

    /// What the parent has of a file.
    pub fn parent_file(&self, file: FileId) -> Result<Option<FileState>> {
        let files = self.lease.lock().files;
        FileState::find(&self.repository.store, files.as_ref(), file)
    }

    pub(super) fn set_file(&self, file: FileId, state: FileState) {
        self.changed.lock().insert(file, state);
    }

    /// The names of the snapshot: all of them, in order of paths. Give it to [`Writer::end_namespace`].
    pub fn namespace(&self) -> NamespaceWriter<'_> {
        NamespaceWriter::new(self)
    }

    /// Makes a finished namespace of what was added.
    pub fn end_namespace(&self, names: NamespaceWriter<'_>) -> Result<Names> {
        names.finish()
    }

    /// Makes durable what was stored so far. If the capture breaks off later, the next one finds it in the repository, if it searches.
    pub fn flush(&self) -> Result<()> {
        self.sink.flush()?;
        self.renew()
    }

    /// Tells prunes that this writer is alive. Errors: `Overtaken`.
    pub fn renew(&self) -> Result<()> {
        let small = &self.repository.store.small;
        let mut lease = self.lease.lock();
        let current = Generations::load(small.device.as_ref())?.current();
        if current == lease.generation && !lease::is_fenced(small, lease.id)? {
            return Ok(());
        }
        self.renew_locked(&mut lease)
    }

    fn renew_locked(&self, lease: &mut Lease) -> Result<()> {
        lease::establish(&self.repository.store.small, lease, true)?;
        self.sink.set_generation(lease.generation);
        Ok(())
    }

    /// Publishes the snapshot. Every regular file of the namespace must be in the parent or have been updated; files that no name
    /// leads to are left out. Durable when this returns. Errors: `Overtaken` when a prune has taken what this snapshot needs: then nothing was
    /// published, and the capture has to start again.
    pub fn commit(self, names: Names, meta: SnapshotMeta) -> Result<Root> {
        let mut stats = SnapshotStats::default();
        let files = self.file_table(&names, &mut stats)?;
        self.sink.flush()?;
        let borrowed: Vec<PackId> = self.borrowed.lock().iter().copied().collect();
        let mut lease = self.lease.lock();
        lease.borrowed.clone_from(&borrowed);
        if !borrowed.is_empty() {
            self.renew_locked(&mut lease)?;
        }
        stats.names = names.entries;
        stats.given_pages = self.counters.given_pages.load(Ordering::Relaxed);
        stats.given_bytes = self.counters.given_bytes.load(Ordering::Relaxed);
        stats.new_pages = self.counters.new_pages.load(Ordering::Relaxed);
        stats.new_raw_bytes = self.counters.new_raw_bytes.load(Ordering::Relaxed);
        stats.stored_bytes = self.sink.stored_bytes.load(Ordering::Relaxed);
        let root = Root {
            id: SnapshotId::random(meta.taken)?,
            generation: lease.generation,
            volume: self.options.volume,
            parent: self.options.parent,
            meta,
            stats,
            names: names.root,
            files,
            borrowed,
        };
        let root = self.publish(root, &mut lease)?;
        drop(lease);
        Ok(root)
    }

    /// Writes the root until it counts.
    fn publish(&self, mut root: Root, lease: &mut Lease) -> Result<Root> {
        let small = &self.repository.store.small;
        let device = small.device.as_ref();
        loop {
            self.refuse_condemned(lease)?;
            if lease::is_fenced(small, lease.id)? {
                return Err(lease::overtaken(lease));
            }
            root.generation = lease.generation;
            small.replace(Kind::Root, &root.id.path(), root.generation, &root)?;
            let generations = Generations::load(device)?;
            if generations.current() == lease.generation {
                return Ok(root);
            }
            // Closed meanwhile: the root counts only if the prune saw it in time, and who knows before the seal is there.
            if let Some(seal) = generations::last_seal(small)?
                && seal.generation >= root.generation
                && seal.roots.contains(&root.id)
            {
                return Ok(root);
            }
            let path = root.id.path();
            match device.remove_file(&path) {
                // A prune that came later has found that it does not count.
                Err(error) if error.kind() == std::io::ErrorKind::NotFound => {}
                removed => removed.map_err(|e| io_error(device, "remove", &path, e))?,
            }
            device.sync_dir("snapshots").map_err(|e| io_error(device, "sync directory", "snapshots", e))?;
            root.id = SnapshotId::random(root.meta.taken)?;
            self.renew_locked(lease)?;
        }
    }

    /// The lease says what was borrowed, and durably so. A plan that came before may condemn it; one that comes now will see the lease.
    fn refuse_condemned(&self, lease: &Lease) -> Result<()> {
        if lease.borrowed.is_empty() {
            return Ok(());
        }
        match super::plan::condemned_of(&self.repository.store.small, &lease.borrowed)? {
            Some(pack) => Err(Error::Overtaken(format!(
                "pack {pack}, which this snapshot shares, was condemned by a prune meanwhile: start the snapshot again"
            ))),
            None => Ok(()),
        }
    }

    /// The parent's table with what changed, of the files that have names.
    fn file_table(&self, names: &Names, stats: &mut SnapshotStats) -> Result<Option<ObjectRef>> {
        let store = &self.repository.store;
        let parent_files = self.lease.lock().files;
        let changed = std::mem::take(&mut *self.changed.lock());
        let mut before = Cursor::seek(store, parent_files.as_ref(), &[])?;
        let mut old = before.next()?;
        let mut table = TableBuilder::new(self);
        for file in &names.files {
            let key = file.0.to_be_bytes();
            while old.as_ref().is_some_and(|(k, _)| k.as_slice() < key.as_slice()) {
                old = before.next()?;
            }
            let inherited = || old.as_ref().filter(|(k, _)| *k == key).map(|(_, value)| FileState::decode(value));
            let state = match changed.get(file) {
                Some(state) => *state,
                None => match inherited() {
                    Some(state) => state.map_err(|why| Error::Invalid(why.0.to_owned()))?,
                    None => return Err(Error::Invalid(format!("file {file} has a name but no content"))),
                },
            };
            stats.files += 1;
            stats.logical_bytes += state.size;
            table.push(&key, &state.encode())?;
        }
        table.finish()
    }

    fn release_lease(&self) {
        let small = &self.repository.store.small;
        let path = self.lease.lock().path();
        // A lease that stays only keeps prune from some packs until it is fenced.
        if let Err(error) = small.device.remove_file(&path) {
            tracing::debug!("{path} stays: {error}");
        }
    }
}

impl Drop for Writer<'_> {
    fn drop(&mut self) {
        self.release_lease();
    }
}

impl NodeSink for Writer<'_> {
    fn put_node(&self, bytes: &[u8]) -> Result<ObjectRef> {
        let id = self.repository.store.keys().object_id(bytes);
        if let Some(known) = self.parent_nodes.get(&id).copied().or_else(|| self.sink.recent(&id)) {
            return Ok(known);
        }
        self.sink.put(Class::Meta, id, bytes)
    }
}

/// Compares by words; most pages differ from zero in the first.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    let words = bytes.chunks_exact(16);
    let tail = words.remainder();
    words.clone().map(|word| u128::from_le_bytes(word.try_into().unwrap_or([1; 16]))).all(|word| word == 0)
        && tail.iter().all(|byte| *byte == 0)
}

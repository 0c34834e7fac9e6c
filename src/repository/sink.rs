//! Where a writer's objects go: one open pack for pages and one for nodes, shared by all its threads.
//!
//! Large objects are hashed and compressed by the thread that brings them, outside of any lock; small ones gather in an open frame.
//! A full pack is finished and synced by the thread that filled it, while the others go on in the next.

use super::ids::{Generation, LeaseId, ObjectId, ObjectRef, PackId, Place};
use super::index;
use super::pack::{self, Class, FRAME_RAW_BYTES, ObjectEntry, PackHeader, PackWriter};
use super::segment::{Entry, SegmentWriter, prefix};
use super::small::{io_error, naming_error};
use super::store::Store;
use crate::error::{Error, Result};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap, VecDeque};
use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};

/// Objects of this session that later equal ones find again without the index.
const RECENT_MAX: usize = 1 << 17;
/// Entries of finished packs kept until they become a segment: 16 MiB.
const PENDING_ENTRIES_MAX: usize = 1 << 18;
/// Objects of this size are a frame of their own.
const OWN_FRAME_BYTES: usize = FRAME_RAW_BYTES / 2;

pub struct Sink<'s> {
    pub store: &'s Store,
    lease: LeaseId,
    pack_bytes: u64,
    generation: Mutex<Generation>,
    data: Mutex<OpenPack>,
    meta: Mutex<OpenPack>,
    recent: Mutex<Recent>,
    finished: Mutex<Finished>,
    pub stored_bytes: AtomicU64,
    /// The first write that failed: what was promised to be in a frame may not be.
    failure: OnceLock<Error>,
}

#[derive(Default)]
struct OpenPack {
    pack: Option<PackWriter>,
    frame: Option<OpenFrame>,
}

struct OpenFrame {
    number: u32,
    raw: Vec<u8>,
    objects: Vec<ObjectEntry>,
}

#[derive(Default)]
struct Recent {
    places: HashMap<ObjectId, Place>,
    order: VecDeque<ObjectId>,
}

#[derive(Default)]
struct Finished {
    pending: Vec<Entry>,
    dirs: BTreeSet<String>,
}

impl<'s> Sink<'s> {
    pub fn new(store: &'s Store, lease: LeaseId, generation: Generation, pack_bytes: u64) -> Sink<'s> {
        Sink {
            store,
            lease,
            pack_bytes,
            generation: Mutex::new(generation),
            data: Mutex::default(),
            meta: Mutex::default(),
            recent: Mutex::default(),
            finished: Mutex::default(),
            stored_bytes: AtomicU64::new(0),
            failure: OnceLock::new(),
        }
    }

    /// Packs that are begun from now on belong to this generation.
    pub fn set_generation(&self, generation: Generation) {
        *self.generation.lock() = generation;
    }

    pub fn recent(&self, id: &ObjectId) -> Option<ObjectRef> {
        self.recent.lock().places.get(id).map(|place| ObjectRef { id: *id, place: *place })
    }

    /// Stores an object that is not known yet.
    pub fn put(&self, class: Class, id: ObjectId, bytes: &[u8]) -> Result<ObjectRef> {
        self.refuse_broken()?;
        let place = self.place(class, id, bytes).inspect_err(|error| self.break_off(error))?;
        let mut recent = self.recent.lock();
        if recent.places.insert(id, place).is_none() {
            recent.order.push_back(id);
        }
        if recent.order.len() > RECENT_MAX
            && let Some(oldest) = recent.order.pop_front()
        {
            recent.places.remove(&oldest);
        }
        Ok(ObjectRef { id, place })
    }

    fn place(&self, class: Class, id: ObjectId, bytes: &[u8]) -> Result<Place> {
        let len = u32::try_from(bytes.len()).map_err(|_| Error::Invalid("an object is too large".to_owned()))?;
        let own_frame = (bytes.len() >= OWN_FRAME_BYTES).then(|| pack::compress(bytes));
        let mut open = self.open_pack(class).lock();
        self.ensure_pack(&mut open, class)?;
        let OpenPack { pack: Some(pack), frame: open_frame } = &mut *open else {
            return Err(Error::Invalid("no pack is open".to_owned()));
        };
        let entry = |frame, start| ObjectEntry { id, frame, start, len };
        let placed = if let Some(packed) = own_frame {
            let number = pack.begin_frame();
            pack.write_frame(self.store.keys(), number, packed, &[entry(number, 0)])?;
            entry(number, 0)
        } else {
            if open_frame.as_ref().is_some_and(|frame| frame.raw.len() + bytes.len() > FRAME_RAW_BYTES) {
                self.end_frame(pack, open_frame)?;
            }
            let begin = || OpenFrame { number: pack.begin_frame(), raw: Vec::new(), objects: Vec::new() };
            let frame = open_frame.get_or_insert_with(begin);
            let placed = entry(frame.number, u32::try_from(frame.raw.len()).unwrap_or(u32::MAX));
            frame.raw.extend_from_slice(bytes);
            frame.objects.push(placed);
            placed
        };
        let place = placed.place(pack.id());
        let full = pack.bytes() >= self.pack_bytes;
        let ended = if full { self.take_pack(&mut open)? } else { None };
        drop(open);
        ended.map_or(Ok(()), |pack| self.finish_pack(pack))?;
        Ok(place)
    }

    fn open_pack(&self, class: Class) -> &Mutex<OpenPack> {
        match class {
            Class::Data => &self.data,
            Class::Meta => &self.meta,
        }
    }

    fn ensure_pack(&self, open: &mut OpenPack, class: Class) -> Result<()> {
        if open.pack.is_none() {
            let pack = PackId::random(*self.generation.lock())?;
            let header = PackHeader { repository: self.store.repository, pack, lease: self.lease, class };
            open.pack = Some(PackWriter::create(self.store.small.device.as_ref(), header)?);
        }
        Ok(())
    }

    fn end_frame(&self, pack: &mut PackWriter, open: &mut Option<OpenFrame>) -> Result<()> {
        match open.take() {
            Some(frame) => {
                pack.write_frame(self.store.keys(), frame.number, pack::compress(&frame.raw), &frame.objects)
            }
            None => Ok(()),
        }
    }

    fn take_pack(&self, open: &mut OpenPack) -> Result<Option<PackWriter>> {
        let OpenPack { pack, frame } = open;
        if let Some(pack) = pack {
            self.end_frame(pack, frame)?;
        }
        Ok(pack.take())
    }

    fn finish_pack(&self, pack: PackWriter) -> Result<()> {
        let (id, contents, bytes) = pack.finish()?;
        self.stored_bytes.fetch_add(bytes, Ordering::Relaxed);
        let entries =
            contents.objects.iter().map(|object| Entry { prefix: prefix(&object.id), place: object.place(id) });
        let mut finished = self.finished.lock();
        finished.dirs.insert(id.dir());
        finished.pending.extend(entries);
        if finished.pending.len() >= PENDING_ENTRIES_MAX { self.publish(&mut finished) } else { Ok(()) }
    }

    /// Lists a finished pack, that somebody wrote, in the next segment.
    pub fn list_again(&self, pack: PackId, contents: &pack::Contents) -> Result<()> {
        let place = |object: &ObjectEntry| Entry { prefix: prefix(&object.id), place: object.place(pack) };
        let mut finished = self.finished.lock();
        finished.pending.extend(contents.objects.iter().map(place));
        if finished.pending.len() >= PENDING_ENTRIES_MAX { self.publish(&mut finished) } else { Ok(()) }
    }

    /// Makes all packs so far durable and known to the index. Later packs may follow.
    pub fn flush(&self) -> Result<()> {
        self.refuse_broken()?;
        for class in [Class::Data, Class::Meta] {
            let ended = self.take_pack(&mut self.open_pack(class).lock()).inspect_err(|error| self.break_off(error))?;
            ended.map_or(Ok(()), |pack| self.finish_pack(pack)).inspect_err(|error| self.break_off(error))?;
        }
        self.publish(&mut self.finished.lock()).inspect_err(|error| self.break_off(error))
    }

    fn break_off(&self, error: &Error) {
        let _ = self.failure.set(error.repeated());
    }

    /// Errors: what the first write that failed said, whichever thread met it; its kind decides what becomes of the snapshot.
    fn refuse_broken(&self) -> Result<()> {
        self.failure.get().map_or(Ok(()), |error| Err(error.repeated()))
    }

    /// A segment names only packs that are durable with their names.
    fn publish(&self, finished: &mut Finished) -> Result<()> {
        let device = self.store.small.device.as_ref();
        for dir in std::mem::take(&mut finished.dirs) {
            device.sync_dir(&dir).map_err(|e| io_error(device, "sync directory", &dir, e))?;
        }
        let mut entries = std::mem::take(&mut finished.pending);
        if entries.is_empty() {
            return Ok(());
        }
        entries.sort_unstable();
        write_segment(self.store, *self.generation.lock(), &entries, &self.stored_bytes)
    }
}

/// Writes sorted entries as a new segment, durably.
fn write_segment(store: &Store, generation: Generation, entries: &[Entry], stored: &AtomicU64) -> Result<()> {
    let device = store.small.device.as_ref();
    let name = index::segment_name(generation, index::next_sequence(device)?)?;
    let (part, path) = (format!("index/{name}.part"), format!("index/{name}"));
    let mut writer = SegmentWriter::create(device, &part, store.repository, entries.len() as u64)?;
    entries.iter().try_for_each(|entry| writer.push(*entry))?;
    stored.fetch_add(writer.finish()?, Ordering::Relaxed);
    device.rename(&part, &path).map_err(|e| naming_error(device, &path, e))?;
    device.sync_dir("index").map_err(|e| io_error(device, "sync directory", "index", e))
}

//! The content of one file: what a snapshot's table says of it, and building it anew from the parent's and what changed.

use super::content::{self, Inner, LEAF_BYTES, Leaf, Piece, SLOT_BYTES, Slot, level_of};
use super::ids::{ObjectId, ObjectRef};
use super::read;
use super::store::Store;
use super::table::{self, NodeSink};
use super::writer::{Stored, Writer, is_zero};
use crate::error::{Error, Result};
use crate::ondisk::bytes::{Decoded, Malformed, Reader};
use crate::units::FileId;
use std::collections::BTreeMap;
use std::sync::atomic::Ordering;

/// A row of the table of files (key: file id, big-endian).
///
/// Size u64, binary logarithm of the page size u8, level of the root u8, 1 if there is a root else 0 u8, object reference (52) of the root.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct FileState {
    pub size: u64,
    pub page_bytes: u32,
    pub level: u8,
    /// None: nothing but holes.
    pub root: Option<ObjectRef>,
}

impl FileState {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = self.size.to_le_bytes().to_vec();
        let shift = u8::try_from(self.page_bytes.trailing_zeros()).unwrap_or(0);
        out.extend_from_slice(&[shift, self.level, u8::from(self.root.is_some())]);
        if let Some(root) = &self.root {
            root.put(&mut out);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Decoded<FileState> {
        let mut r = Reader::new(bytes);
        let size = r.u64()?;
        let [shift, level, has_root] = r.array()?;
        let root = if has_root == 1 { Some(ObjectRef::take(&mut r)?) } else { None };
        if !(12..=16).contains(&shift) || level > content::LEVEL_MAX || has_root > 1 || r.remaining() > 0 {
            return Err(Malformed("a row of the table of files that does not make sense"));
        }
        Ok(FileState { size, page_bytes: 1 << shift, level, root })
    }

    pub(super) fn find(store: &Store, files: Option<&ObjectRef>, file: FileId) -> Result<Option<FileState>> {
        let value = table::get(store, files, &file.0.to_be_bytes())?;
        let decode = |(root, value): (&ObjectRef, Vec<u8>)| {
            FileState::decode(&value).map_err(|why| table::NodeSource::malformed(store, root, why))
        };
        files.zip(value).map(decode).transpose()
    }
}

/// A file's new content in the making: the parent's, then in ascending order what changed. Nothing else is read.
///
/// ```text
/// cut (if the file was truncated) -> put, place, hole ... by ascending offsets -> finish
/// ```
pub struct FileUpdate<'w> {
    writer: &'w Writer<'w>,
    file: FileId,
    before: Option<FileState>,
    size: u64,
    page_bytes: u32,
    /// Of the parent's content, what lies before this still counts.
    keep: u64,
    /// The leaf that `keep` falls into has to be cut, and was not yet.
    cut_waits: bool,
    /// Changes must begin here or later.
    position: u64,
    leaf: Option<OpenLeaf>,
    changes: Vec<(u64, Option<ObjectRef>)>,
    compare: bool,
}

struct OpenLeaf {
    number: u64,
    before: Leaf,
    now: Leaf,
}

impl<'w> FileUpdate<'w> {
    pub(super) fn new(
        writer: &'w Writer<'w>,
        file: FileId,
        before: Option<FileState>,
        size: u64,
        page_bytes: u32,
    ) -> Result<FileUpdate<'w>> {
        if ![4096, 8192, 16384, 65536].contains(&page_bytes) || i64::try_from(size).is_err() {
            return Err(Error::Invalid(format!("file {file}: pages of {page_bytes} bytes, size {size}")));
        }
        let page_bytes = before.map_or(page_bytes, |before| before.page_bytes);
        let mut update = FileUpdate {
            writer,
            file,
            before,
            size,
            page_bytes,
            keep: u64::MAX,
            cut_waits: false,
            position: 0,
            leaf: None,
            changes: Vec::new(),
            compare: false,
        };
        update.cut(size);
        Ok(update)
    }

    /// The unit of identity of this file: what the first snapshot of it chose.
    pub fn page_bytes(&self) -> u32 {
        self.page_bytes
    }

    /// Does the parent have this file?
    pub fn has_parent(&self) -> bool {
        self.before.is_some()
    }

    /// The file was at some time since the parent no longer than this: what the parent has beyond is gone. Before any change is given;
    /// that the file is shorter now than in the parent needs not be said.
    pub fn cut(&mut self, len: u64) {
        debug_assert!(self.position == 0, "cut after changes");
        let before = self.before.map_or(0, |before| before.size);
        let keep = self.keep.min(len);
        if keep < before {
            self.keep = keep;
            self.cut_waits = !keep.is_multiple_of(LEAF_BYTES);
        }
    }

    /// From now on what is given may be what the parent has: it is compared, at the price of reading the parent's copy from the
    /// repository. Without it, only equal names are found: of slots that were and are given whole, and of pages that had changed before.
    pub fn compare(&mut self, compare: bool) {
        self.compare = compare;
    }

    /// Bytes that changed: whole pages, but for the last of the file.
    pub fn put(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        self.advance(offset, bytes.len() as u64)?;
        let (mut at, mut rest) = (offset, bytes);
        while !rest.is_empty() {
            let room = usize::try_from(SLOT_BYTES - at % SLOT_BYTES).unwrap_or(0);
            let (now, later) = rest.split_at(room.min(rest.len()));
            self.put_in_slot(at, now)?;
            at += now.len() as u64;
            rest = later;
        }
        Ok(())
    }

    /// As [`FileUpdate::put`], for bytes of one whole slot or one page that [`Writer::store`] took before.
    pub fn place(&mut self, offset: u64, len: u32, stored: Stored) -> Result<()> {
        self.advance(offset, len.into())?;
        let whole = self.is_whole_slot(offset, len.into());
        if !whole && len > self.page_bytes {
            return Err(self.refuse(offset, len.into(), "is neither a slot nor a page"));
        }
        let piece = match stored {
            Stored::Zero => Piece::Zero,
            Stored::Object(object) => Piece::Data { object, valid: len },
        };
        self.set(offset, whole, piece)
    }

    /// A range without data: whole pages, but for the last of the file.
    pub fn hole(&mut self, offset: u64, len: u64) -> Result<()> {
        self.advance(offset, len)?;
        let (mut at, end) = (offset, offset + len);
        while at < end {
            let whole = at % SLOT_BYTES == 0 && (end - at >= SLOT_BYTES || end == self.size);
            let step = if whole { SLOT_BYTES } else { self.page_bytes.into() };
            self.set(at, whole, Piece::Hole)?;
            at += step.min(end - at);
        }
        Ok(())
    }

    /// The new content; the writer has noted it for the snapshot.
    pub fn finish(mut self) -> Result<FileState> {
        self.open_cut_leaf()?;
        self.close_leaf()?;
        let level = level_of(self.size);
        let old = self.before.and_then(|before| Some(Old { object: before.root?, level: before.level }));
        let rebuild = Rebuild { writer: self.writer, leaves_kept: self.keep.div_ceil(LEAF_BYTES) };
        let old = rebuild.lowered(old, level)?;
        let root = rebuild.node(level, 0, old, &self.changes)?;
        let state = FileState { size: self.size, page_bytes: self.page_bytes, level, root };
        self.writer.set_file(self.file, state);
        Ok(state)
    }

    fn refuse(&self, offset: u64, len: u64, why: &str) -> Error {
        Error::Invalid(format!("file {}: range of {len} bytes at {offset} {why}", self.file))
    }

    fn advance(&mut self, offset: u64, len: u64) -> Result<()> {
        let end = offset.checked_add(len).filter(|end| *end <= self.size);
        let Some(end) = end else { return Err(self.refuse(offset, len, "ends beyond the file")) };
        let page = u64::from(self.page_bytes);
        if !offset.is_multiple_of(page) || !(end.is_multiple_of(page) || end == self.size) {
            return Err(self.refuse(offset, len, "does not consist of pages"));
        }
        if offset < self.position {
            return Err(self.refuse(offset, len, "comes after a later one"));
        }
        self.position = end;
        Ok(())
    }

    fn is_whole_slot(&self, offset: u64, len: u64) -> bool {
        offset.is_multiple_of(SLOT_BYTES) && (len == SLOT_BYTES || (offset + len == self.size && len < SLOT_BYTES))
    }

    fn put_in_slot(&mut self, offset: u64, bytes: &[u8]) -> Result<()> {
        let whole = self.is_whole_slot(offset, bytes.len() as u64);
        if self.compare
            && let Some(changed) = self.pages_that_differ(offset, bytes)?
        {
            let few = changed.len() * 2 <= bytes.len().div_ceil(self.page_len());
            if few || !whole {
                return changed.into_iter().try_for_each(|page| self.put_page(offset, bytes, page));
            }
        }
        if whole {
            return self.put_piece(offset, bytes, true);
        }
        (0..bytes.len().div_ceil(self.page_len())).try_for_each(|page| self.put_page(offset, bytes, page))
    }

    fn page_len(&self) -> usize {
        usize::try_from(self.page_bytes).unwrap_or(usize::MAX)
    }

    /// One page of the bytes of a slot, of which the first is at `offset`.
    fn put_page(&mut self, offset: u64, bytes: &[u8], page: usize) -> Result<()> {
        let start = page * self.page_len();
        let end = (start + self.page_len()).min(bytes.len());
        self.put_piece(offset + start as u64, &bytes[start..end], false)
    }

    fn put_piece(&mut self, offset: u64, bytes: &[u8], whole: bool) -> Result<()> {
        let counters = &self.writer.counters;
        counters.given_pages.fetch_add(1, Ordering::Relaxed);
        counters.given_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if is_zero(bytes) {
            return self.set(offset, whole, Piece::Zero);
        }
        let id = self.writer.repository.store.keys().object_id(bytes);
        let valid = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        let known = self.known(offset, whole, &id, valid)?;
        let object = match known {
            Some(object) => object,
            None => self.writer.store_named(id, bytes)?,
        };
        self.set(offset, whole, Piece::Data { object, valid })
    }

    /// The same bytes at the same place in the parent.
    fn known(&mut self, offset: u64, whole: bool, id: &ObjectId, valid: u32) -> Result<Option<ObjectRef>> {
        let page = self.page_of(offset);
        let slot = self.slot(offset)?;
        let piece = if whole { Some(&slot.base) } else { slot.pages.get(&page) };
        Ok(match piece {
            Some(Piece::Data { object, valid: v }) if object.id == *id && *v == valid => Some(*object),
            _ => None,
        })
    }

    /// Which pages of these bytes are not the parent's; None where the parent has none.
    fn pages_that_differ(&mut self, offset: u64, bytes: &[u8]) -> Result<Option<Vec<usize>>> {
        let page_bytes = self.page_bytes;
        let store = &self.writer.repository.store;
        let slot = self.slot(offset)?.clone();
        if slot.objects().next().is_none() {
            return Ok(None);
        }
        let mut old = vec![0; bytes.len()];
        let within = u32::try_from(offset % SLOT_BYTES).unwrap_or(0);
        read::slot(store, &slot, page_bytes, within, &mut old)?;
        let pages = old.chunks(self.page_len()).zip(bytes.chunks(self.page_len())).enumerate();
        Ok(Some(pages.filter(|(_, (old, new))| old != new).map(|(page, _)| page).collect()))
    }

    fn page_of(&self, offset: u64) -> u8 {
        u8::try_from(offset % SLOT_BYTES / u64::from(self.page_bytes)).unwrap_or(0)
    }

    fn set(&mut self, offset: u64, whole: bool, piece: Piece) -> Result<()> {
        let page = self.page_of(offset);
        let slot = self.slot(offset)?;
        if whole {
            *slot = Slot { base: piece, pages: BTreeMap::new() };
        } else {
            slot.pages.insert(page, piece);
        }
        Ok(())
    }

    fn slot(&mut self, offset: u64) -> Result<&mut Slot> {
        let number = offset / LEAF_BYTES;
        if self.leaf.as_ref().is_none_or(|leaf| leaf.number != number) {
            self.open_leaf(number)?;
        }
        let slot = u8::try_from(offset % LEAF_BYTES / SLOT_BYTES).unwrap_or(0);
        match &mut self.leaf {
            Some(leaf) => Ok(leaf.now.slots.entry(slot).or_insert(Slot::HOLE)),
            None => Err(Error::Invalid("no leaf is open".to_owned())),
        }
    }

    fn open_leaf(&mut self, number: u64) -> Result<()> {
        if self.keep / LEAF_BYTES < number {
            self.open_cut_leaf()?;
        }
        self.close_leaf()?;
        let before = match self.before {
            Some(before) => read::leaf(&self.writer.repository.store, &before, number)?,
            None => None,
        };
        let before = before.unwrap_or_default();
        let mut now = before.clone();
        let start = number * LEAF_BYTES;
        if self.keep < start + LEAF_BYTES {
            let keep = self.keep.saturating_sub(start);
            for (slot, content) in &mut now.slots {
                let keep = keep.saturating_sub(u64::from(*slot) * SLOT_BYTES).min(SLOT_BYTES);
                if keep < SLOT_BYTES {
                    content.cut(u32::try_from(keep).unwrap_or(0), self.page_bytes);
                }
            }
            self.cut_waits &= self.keep / LEAF_BYTES != number;
        }
        self.leaf = Some(OpenLeaf { number, before, now });
        Ok(())
    }

    fn open_cut_leaf(&mut self) -> Result<()> {
        if self.cut_waits {
            self.cut_waits = false;
            let number = self.keep / LEAF_BYTES;
            if self.leaf.as_ref().is_none_or(|leaf| leaf.number < number) {
                self.open_leaf(number)?;
            }
        }
        Ok(())
    }

    fn close_leaf(&mut self) -> Result<()> {
        let Some(OpenLeaf { number, before, mut now }) = self.leaf.take() else { return Ok(()) };
        let pages = u8::try_from(SLOT_BYTES / u64::from(self.page_bytes)).unwrap_or(u8::MAX);
        now.slots.values_mut().for_each(|slot| slot.tidy(pages));
        now.slots.retain(|_, slot| !slot.is_hole());
        if now == before {
            return Ok(());
        }
        let object = if now.slots.is_empty() { None } else { Some(self.writer.put_node(&now.encode())?) };
        self.changes.push((number, object));
        Ok(())
    }
}

/// A node of the parent's tree.
#[derive(Clone, Copy)]
struct Old {
    object: ObjectRef,
    level: u8,
}

/// Builds the inner nodes above changed leaves.
struct Rebuild<'w> {
    writer: &'w Writer<'w>,
    /// Leaves of the parent that are not wholly cut off.
    leaves_kept: u64,
}

impl Rebuild<'_> {
    /// The part of an old tree that a lower tree can hold: its first child, and again.
    fn lowered(&self, old: Option<Old>, level: u8) -> Result<Option<Old>> {
        let mut old = old;
        while let Some(Old { object, level: top }) = old.filter(|old| old.level > level) {
            let inner = self.writer.repository.store.inner(&object)?;
            old = inner.children.get(&0).map(|child| Old { object: *child, level: top - 1 });
        }
        Ok(old)
    }

    /// The node of `level` with this number, counted among its kind. `old` is lower than `level` where the file has outgrown its tree.
    fn node(
        &self,
        level: u8,
        number: u64,
        old: Option<Old>,
        changes: &[(u64, Option<ObjectRef>)],
    ) -> Result<Option<ObjectRef>> {
        let leaves = content::span(level) / LEAF_BYTES;
        let (first, end) = (number * leaves, (number + 1).saturating_mul(leaves));
        let old = old.filter(|_| first < self.leaves_kept);
        if level == 0 {
            return Ok(changes.first().map_or(old.map(|old| old.object), |(_, leaf)| *leaf));
        }
        let kept_whole = old.is_none_or(|old| old.level == level && end <= self.leaves_kept);
        if changes.is_empty() && kept_whole {
            return Ok(old.map(|old| old.object));
        }
        let before = match old {
            Some(old) if old.level == level => self.writer.repository.store.inner(&old.object)?.children,
            Some(old) => BTreeMap::from([(0, old.object)]),
            None => BTreeMap::new(),
        };
        let below = leaves / 64;
        let child_old = |child: u8| {
            let object = *before.get(&child)?;
            let level = old.map_or(level - 1, |old| if old.level == level { level - 1 } else { old.level });
            Some(Old { object, level })
        };
        let changed = changes.iter().filter_map(|(leaf, _)| u8::try_from((leaf - first) / below).ok());
        let numbers: std::collections::BTreeSet<u8> = before.keys().copied().chain(changed).collect();
        let mut children = BTreeMap::new();
        for child in numbers {
            let child_number = number * 64 + u64::from(child);
            let of_child = |leaf: u64| (leaf / below) == child_number;
            let from = changes.partition_point(|(leaf, _)| *leaf / below < child_number);
            let to = changes.partition_point(|(leaf, _)| *leaf / below < child_number || of_child(*leaf));
            if let Some(object) = self.node(level - 1, child_number, child_old(child), &changes[from..to])? {
                children.insert(child, object);
            }
        }
        if children.is_empty() {
            return Ok(None);
        }
        if let Some(old) = old.filter(|old| old.level == level && children == before) {
            return Ok(Some(old.object));
        }
        self.writer.put_node(&Inner { level, children }.encode()).map(Some)
    }
}

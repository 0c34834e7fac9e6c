//! Reading the content of files, and comparing it.

use super::content::{self, LEAF_BYTES, Leaf, Piece, SLOT_BYTES, Slot};
use super::file::FileState;
use super::ids::{ObjectId, ObjectRef};
use super::store::Store;
use crate::error::{Error, Result};
use crate::units::FileId;
use parking_lot::Mutex;
use std::sync::Arc;

/// The leaf with this number; None where the tree has a hole.
pub fn leaf(store: &Store, state: &FileState, number: u64) -> Result<Option<Leaf>> {
    let Some(mut at) = state.root else { return Ok(None) };
    if number >= content::span(state.level) / LEAF_BYTES {
        return Ok(None);
    }
    for level in (1..=state.level).rev() {
        let inner = store.inner(&at)?;
        let below = content::span(level - 1) / LEAF_BYTES;
        let child = u8::try_from(number / below % 64).unwrap_or(0);
        match inner.children.get(&child) {
            Some(object) => at = *object,
            None => return Ok(None),
        }
    }
    store.leaf(&at).map(Some)
}

/// Bytes of a slot from `within` on.
pub fn slot(store: &Store, slot: &Slot, page_bytes: u32, within: u32, buf: &mut [u8]) -> Result<()> {
    buf.fill(0);
    let mut base: Option<Arc<Vec<u8>>> = None;
    let mut done = 0;
    while done < buf.len() {
        let at = within + u32::try_from(done).unwrap_or(0);
        let in_page = at % page_bytes;
        let n = usize::try_from(page_bytes - in_page).unwrap_or(0).min(buf.len() - done);
        let target = &mut buf[done..done + n];
        match slot.pages.get(&u8::try_from(at / page_bytes).unwrap_or(0)) {
            Some(Piece::Data { object, valid }) => copy(&store.object(object)?, *valid, in_page, target),
            Some(Piece::Hole | Piece::Zero) => {}
            None => {
                if let Piece::Data { object, valid } = &slot.base {
                    let bytes = match &base {
                        Some(bytes) => bytes.clone(),
                        None => base.insert(store.object(object)?).clone(),
                    };
                    copy(&bytes, *valid, at, target);
                }
            }
        }
        done += n;
    }
    Ok(())
}

fn copy(bytes: &[u8], valid: u32, from: u32, target: &mut [u8]) {
    let valid = usize::try_from(valid).unwrap_or(0).min(bytes.len());
    let from = usize::try_from(from).unwrap_or(usize::MAX).min(valid);
    let n = target.len().min(valid - from);
    target[..n].copy_from_slice(&bytes[from..from + n]);
}

/// Ranges of a slot that some objects are needed for.
pub fn ranges_of(slot: &Slot, objects: &[ObjectId], page_bytes: u32) -> Vec<(u32, u32)> {
    let mut ranges: Vec<(u32, u32)> = Vec::new();
    let pages = u32::try_from(SLOT_BYTES).unwrap_or(0) / page_bytes;
    for page in 0..if objects.is_empty() { 0 } else { pages } {
        let piece = slot.pages.get(&u8::try_from(page).unwrap_or(0)).unwrap_or(&slot.base);
        if matches!(piece, Piece::Data { object, .. } if objects.contains(&object.id)) {
            let (start, end) = (page * page_bytes, (page + 1) * page_bytes);
            match ranges.last_mut() {
                Some(last) if last.1 == start => last.1 = end,
                _ => ranges.push((start, end)),
            }
        }
    }
    ranges
}

/// A run of bytes of one kind.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Run {
    pub start: u64,
    pub end: u64,
    /// Never written, or punched: to be restored as a hole.
    pub hole: bool,
}

/// The content of one file of a snapshot. Safe to share between threads.
pub struct FileContent<'s> {
    store: &'s Store,
    pub file: FileId,
    pub state: FileState,
    /// Readers mostly go on where they were.
    last: Mutex<Option<(u64, Arc<Leaf>)>>,
}

impl<'s> FileContent<'s> {
    pub(super) fn new(store: &'s Store, file: FileId, state: FileState) -> FileContent<'s> {
        FileContent { store, file, state, last: Mutex::new(None) }
    }

    pub fn size(&self) -> u64 {
        self.state.size
    }

    /// Reads at most `buf.len()` bytes; fewer only at the end of the file. Every byte is checked against the name it is stored under.
    pub fn read(&self, offset: u64, buf: &mut [u8]) -> Result<usize> {
        let available = usize::try_from(self.state.size.saturating_sub(offset)).unwrap_or(usize::MAX);
        let total = buf.len().min(available);
        let mut done = 0;
        while done < total {
            let at = offset + done as u64;
            let within = at % SLOT_BYTES;
            let n = usize::try_from(SLOT_BYTES - within).unwrap_or(0).min(total - done);
            let target = &mut buf[done..done + n];
            let leaf = self.leaf(at / LEAF_BYTES)?;
            match leaf.slots.get(&slot_number(at)) {
                Some(content) => {
                    let within = u32::try_from(within).unwrap_or(0);
                    slot(self.store, content, self.state.page_bytes, within, target)?;
                }
                None => target.fill(0),
            }
            done += n;
        }
        Ok(total)
    }

    /// Calls for each run of pages, within the slot that `offset` lies in, whose bytes are not those of `local`, which begins at `offset` and does not leave the
    /// slot: with their offset and the right bytes. Bytes that have the names of those stored are not read.
    pub fn differences(&self, offset: u64, local: &[u8], call: &mut dyn FnMut(u64, &[u8]) -> Result<()>) -> Result<()> {
        let leaf = self.leaf(offset / LEAF_BYTES)?;
        let hole = Slot::HOLE;
        let content = leaf.slots.get(&slot_number(offset)).unwrap_or(&hole);
        if offset.is_multiple_of(SLOT_BYTES) && self.is_stored(content, local) {
            return Ok(());
        }
        let mut right = vec![0; local.len()];
        let filled = self.read(offset, &mut right)?;
        right.truncate(filled);
        let page = usize::try_from(self.state.page_bytes).unwrap_or(usize::MAX).max(1);
        let (mut at, mut open): (usize, Option<usize>) = (0, None);
        while at < right.len() {
            // Pages of the file, also when this begins within one.
            let skew = usize::try_from(offset % self.state.page_bytes as u64).unwrap_or(0);
            let stop = ((at + skew) / page * page + page - skew).min(right.len());
            let same = local.get(at..stop) == right.get(at..stop);
            match (same, open) {
                (false, None) => open = Some(at),
                (true, Some(from)) => {
                    call(offset + from as u64, &right[from..at])?;
                    open = None;
                }
                _ => {}
            }
            at = stop;
        }
        open.map_or(Ok(()), |from| call(offset + from as u64, &right[from..]))
    }

    /// Does a slot hold these bytes, as far as names can tell? False also where they cannot.
    fn is_stored(&self, slot: &Slot, local: &[u8]) -> bool {
        let holds = |piece: &Piece, bytes: &[u8]| match piece {
            Piece::Hole | Piece::Zero => bytes.iter().all(|byte| *byte == 0),
            Piece::Data { object, valid } => {
                let len = usize::try_from(object.place.len).unwrap_or(usize::MAX);
                *valid == object.place.len
                    && bytes.len() >= len
                    && bytes[len..].iter().all(|byte| *byte == 0)
                    && self.store.keys().object_id(&bytes[..len]) == object.id
            }
        };
        if slot.pages.is_empty() {
            return holds(&slot.base, local);
        }
        let page = usize::try_from(self.state.page_bytes).unwrap_or(usize::MAX).max(1);
        (0u8..).zip(local.chunks(page)).all(|(number, bytes)| match slot.pages.get(&number) {
            Some(piece) => holds(piece, bytes),
            None => matches!(slot.base, Piece::Hole | Piece::Zero) && holds(&slot.base, bytes),
        })
    }

    /// Ranges of bytes outside of which there are only holes, as (start, end), ascending: in steps of leaves, and only what the nodes above leaves say. A tree
    /// without gaps costs one node, whatever it holds.
    pub fn data_ranges(&self) -> Result<Vec<(u64, u64)>> {
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        let mut waiting: Vec<(ObjectRef, u8, u64)> = Vec::new();
        waiting.extend(self.state.root.map(|root| (root, self.state.level, 0)));
        while let Some((object, level, start)) = waiting.pop() {
            let end = start.saturating_add(content::span(level)).min(self.state.size);
            let inner = if level == 0 { None } else { Some(self.store.inner(&object)?) };
            let step = content::span(level.saturating_sub(1));
            let wanted = end.saturating_sub(start).div_ceil(step);
            match inner {
                Some(inner) if (inner.children.len() as u64) < wanted => {
                    let children = inner.children.iter().rev();
                    waiting
                        .extend(children.map(|(number, child)| (*child, level - 1, start + u64::from(*number) * step)));
                }
                _ => match ranges.last_mut() {
                    Some(last) if last.1 == start => last.1 = end,
                    _ if start < end => ranges.push((start, end)),
                    _ => {}
                },
            }
        }
        Ok(ranges)
    }

    /// The run of data or hole that `offset` lies in, from there on; runs of data end at borders of leaves at the latest, so ask again.
    /// None at the end of the file.
    pub fn run(&self, offset: u64) -> Result<Option<Run>> {
        if offset >= self.state.size {
            return Ok(None);
        }
        let mut end = offset;
        let hole = self.is_hole(offset)?;
        let page = u64::from(self.state.page_bytes);
        let leaf_end = (offset / LEAF_BYTES + 1) * LEAF_BYTES;
        while end < leaf_end.min(self.state.size) && self.is_hole(end)? == hole {
            let step = if self.slot_is_plain(end)? { SLOT_BYTES } else { page };
            end = (end / step + 1) * step;
        }
        Ok(Some(Run { start: offset, end: end.min(self.state.size), hole }))
    }

    fn is_hole(&self, offset: u64) -> Result<bool> {
        let leaf = self.leaf(offset / LEAF_BYTES)?;
        let Some(slot) = leaf.slots.get(&slot_number(offset)) else { return Ok(true) };
        let page = u8::try_from(offset % SLOT_BYTES / u64::from(self.state.page_bytes)).unwrap_or(0);
        Ok(*slot.pages.get(&page).unwrap_or(&slot.base) == Piece::Hole)
    }

    fn slot_is_plain(&self, offset: u64) -> Result<bool> {
        let leaf = self.leaf(offset / LEAF_BYTES)?;
        Ok(leaf.slots.get(&slot_number(offset)).is_none_or(|slot| slot.pages.is_empty()))
    }

    fn leaf(&self, number: u64) -> Result<Arc<Leaf>> {
        if let Some((last, leaf)) = self.last.lock().as_ref()
            && *last == number
        {
            return Ok(leaf.clone());
        }
        let leaf = Arc::new(leaf(self.store, &self.state, number)?.unwrap_or_default());
        *self.last.lock() = Some((number, leaf.clone()));
        Ok(leaf)
    }
}

fn slot_number(offset: u64) -> u8 {
    u8::try_from(offset % LEAF_BYTES / SLOT_BYTES).unwrap_or(0)
}

/// Calls for each range of pages that may differ between two contents, in order. Equal subtrees are not read, and no page is.
pub fn changed_ranges(
    store: &Store,
    before: Option<&FileState>,
    after: Option<&FileState>,
    call: &mut dyn FnMut(u64, u64) -> Result<()>,
) -> Result<()> {
    let level = before.map_or(0, |state| state.level).max(after.map_or(0, |state| state.level));
    let size = before.map_or(0, |state| state.size).max(after.map_or(0, |state| state.size));
    let page_bytes = after.or(before).map_or(SLOT_BYTES, |state| state.page_bytes.into());
    if let (Some(before), Some(after)) = (before, after)
        && before.page_bytes != after.page_bytes
    {
        return call(0, size);
    }
    let mut compare = Compare { store, page_bytes, size, open: None, call };
    let side = |state: Option<&FileState>| state.and_then(|state| Some((state.root?, state.level)));
    compare.nodes(level, 0, side(before), side(after))?;
    compare.flush()?;
    // What lies beyond the shorter of the two, but for holes, has been told; the rest is a matter of sizes.
    Ok(())
}

struct Compare<'a> {
    store: &'a Store,
    page_bytes: u64,
    size: u64,
    open: Option<(u64, u64)>,
    call: &'a mut dyn FnMut(u64, u64) -> Result<()>,
}

impl Compare<'_> {
    /// A node and its level; lower than `level` where a tree is not as tall.
    fn nodes(&mut self, level: u8, start: u64, a: Option<(ObjectRef, u8)>, b: Option<(ObjectRef, u8)>) -> Result<()> {
        if a.map(|a| (a.0.id, a.1)) == b.map(|b| (b.0.id, b.1)) {
            return Ok(());
        }
        if level == 0 {
            let leaf = |side: Option<(ObjectRef, u8)>| match side {
                Some((object, _)) => self.store.leaf(&object),
                None => Ok(Leaf::default()),
            };
            let (a, b) = (leaf(a)?, leaf(b)?);
            return self.leaves(start, &a, &b);
        }
        let (a, b) = (self.children(level, a)?, self.children(level, b)?);
        let numbers: std::collections::BTreeSet<u8> = a.keys().chain(b.keys()).copied().collect();
        for child in numbers {
            let start = start + u64::from(child) * content::span(level - 1);
            self.nodes(level - 1, start, a.get(&child).copied(), b.get(&child).copied())?;
        }
        Ok(())
    }

    fn children(
        &self,
        level: u8,
        side: Option<(ObjectRef, u8)>,
    ) -> Result<std::collections::BTreeMap<u8, (ObjectRef, u8)>> {
        match side {
            None => Ok(Default::default()),
            Some((object, own)) if own < level => Ok([(0, (object, own))].into()),
            Some((object, _)) => {
                let inner = self.store.inner(&object)?;
                Ok(inner.children.into_iter().map(|(number, child)| (number, (child, level - 1))).collect())
            }
        }
    }

    fn leaves(&mut self, start: u64, a: &Leaf, b: &Leaf) -> Result<()> {
        let numbers: std::collections::BTreeSet<u8> = a.slots.keys().chain(b.slots.keys()).copied().collect();
        let hole = Slot::HOLE;
        for number in numbers {
            let (a, b) = (a.slots.get(&number).unwrap_or(&hole), b.slots.get(&number).unwrap_or(&hole));
            let start = start + u64::from(number) * SLOT_BYTES;
            for page in 0..SLOT_BYTES / self.page_bytes {
                let key = u8::try_from(page).unwrap_or(0);
                let within = page * self.page_bytes..(page + 1) * self.page_bytes;
                if !same_bytes(effective(a, key), effective(b, key), &within) {
                    self.range(start + within.start)?;
                }
            }
        }
        Ok(())
    }

    fn range(&mut self, offset: u64) -> Result<()> {
        let end = (offset + self.page_bytes).min(self.size);
        match &mut self.open {
            Some((_, open_end)) if *open_end == offset => *open_end = end,
            _ => {
                self.flush()?;
                self.open = Some((offset, end));
            }
        }
        Ok(())
    }

    fn flush(&mut self) -> Result<()> {
        match self.open.take() {
            Some((start, end)) if start < end => (self.call)(start, end),
            _ => Ok(()),
        }
    }
}

fn effective(slot: &Slot, page: u8) -> (Piece, bool) {
    slot.pages.get(&page).map_or((slot.base, true), |piece| (*piece, false))
}

/// Do both say the same of a page? Where an object lies makes no difference to its bytes; whether it is base or page does, and how
/// much of it counts within the page.
fn same_bytes((a, a_base): (Piece, bool), (b, b_base): (Piece, bool), page: &std::ops::Range<u64>) -> bool {
    match (a, b) {
        (Piece::Data { object: a, valid: v }, Piece::Data { object: b, valid: w }) => {
            let counts = |valid: u32| if a_base { u64::from(valid).clamp(page.start, page.end) } else { valid.into() };
            a.id == b.id && counts(v) == counts(w) && a_base == b_base
        }
        (Piece::Data { .. }, _) | (_, Piece::Data { .. }) => false,
        (a, b) => a == b,
    }
}

/// The error for a file that a snapshot does not have.
pub fn no_such_file(file: FileId, snapshot: impl std::fmt::Display) -> Error {
    Error::NotFound(format!("file {file}: snapshot {snapshot} has none"))
}

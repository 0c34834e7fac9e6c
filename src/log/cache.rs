//! Recent groups in memory: the log's own buffers, kept after they are written until the budget asks for their room.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Mutex, RwLock};
use crate::units::PAGE;
use bytes::{Buf, BytesMut};
use std::collections::VecDeque;
use std::sync::{Arc, OnceLock};

/// Memory is taken in pieces of this size, in bytes, and handed to one group after the other: groups differ in size, and one allocation for each
/// would leave holes as large as the cache itself.
const PIECE_BYTES: usize = 2 << 20;
/// A piece with what its alignment takes and a rest that stays behind as its handle.
const ALLOCATED_BYTES: usize = PIECE_BYTES + 2 * PAGE;

/// The pieces in use, oldest first. A piece whose groups are all gone is used again: fresh memory costs a page fault for
/// every page that a writer touches first, which is more than copying the page.
#[derive(Default)]
pub(super) struct Pieces {
    handles: Mutex<VecDeque<BytesMut>>,
    /// It was told that a piece could not be locked.
    swappable: OnceLock<()>,
}

impl Pieces {
    /// At least `len` zeroed bytes on a page boundary.
    fn take(&self, len: usize) -> BytesMut {
        if len > PIECE_BYTES {
            return aligned(BytesMut::zeroed(len + PAGE), len).0;
        }
        let mut handles = self.handles.lock();
        // Groups leave in the order in which they came: if the oldest piece is in use, so are the others.
        let free = handles.front_mut().is_some_and(|oldest| oldest.try_reclaim(ALLOCATED_BYTES));
        let mut bytes = if free { handles.pop_front().unwrap_or_default() } else { BytesMut::new() };
        bytes.resize(ALLOCATED_BYTES, 0);
        if !free {
            self.lock(&bytes);
        }
        let (piece, mut handle) = aligned(bytes, PIECE_BYTES);
        handle.clear();
        handles.push_back(handle);
        piece
    }

    /// Whoever waits for memory may wait for a commit: its bytes must not lie in swap. Where that is not permitted it is said, once.
    fn lock(&self, bytes: &[u8]) {
        if let Err(error) = crate::device::sys::lock_memory(bytes)
            && self.swappable.set(()).is_ok()
        {
            tracing::warn!(
                "log buffers may be swapped out ({error}): the limit of locked memory is too low (LimitMEMLOCK)"
            );
        }
    }
}

/// Cuts `len` bytes on a page boundary out of the front; returns them and what is behind.
fn aligned(mut bytes: BytesMut, len: usize) -> (BytesMut, BytesMut) {
    let to_boundary = bytes.as_ptr().align_offset(PAGE).min(PAGE);
    bytes.advance(to_boundary);
    let rest = bytes.split_off(len);
    (bytes, rest)
}

/// Zeroed memory on page boundaries, of which a group has used the front.
pub(super) struct Pages {
    bytes: BytesMut,
    used: usize,
    pieces: Arc<Pieces>,
}

impl Pages {
    pub fn from(pieces: &Arc<Pieces>) -> Pages {
        Pages { bytes: pieces.take(PAGE), used: 0, pieces: Arc::clone(pieces) }
    }

    /// Makes at least `len` bytes, whole pages, usable.
    pub fn grow(&mut self, len: usize) {
        if len > self.bytes.len() {
            let mut larger = self.pieces.take(len);
            larger[..self.used].copy_from_slice(&self.bytes[..self.used]);
            self.bytes = larger;
        }
        self.used = self.used.max(len);
    }

    /// Gives up what is not used, for the next group.
    pub fn split_rest(&mut self) -> Pages {
        Pages { bytes: self.bytes.split_off(self.used), used: 0, pieces: Arc::clone(&self.pieces) }
    }
}

impl std::ops::Deref for Pages {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.used).unwrap_or_default()
    }
}

impl std::ops::DerefMut for Pages {
    fn deref_mut(&mut self) -> &mut [u8] {
        self.bytes.get_mut(..self.used).unwrap_or_default()
    }
}

/// A group's bytes: the header page, then payload pages. Written by appends while open, by the commit once, then only read.
pub(super) struct Group {
    /// Address of the header page.
    pub start: u64,
    pub buf: RwLock<Pages>,
}

impl Group {
    /// `buf`: what the group before left, or new.
    pub fn new(start: u64, mut buf: Pages) -> Group {
        buf.grow(PAGE);
        Group { start, buf: RwLock::new(buf) }
    }
}

pub(super) struct PayloadCache {
    budget_bytes: u64,
    used_bytes: AtomicU64,
    /// Ascending by start address.
    groups: RwLock<VecDeque<Arc<Group>>>,
}

impl PayloadCache {
    pub fn new(budget_bytes: u64) -> PayloadCache {
        PayloadCache { budget_bytes, used_bytes: AtomicU64::new(0), groups: RwLock::default() }
    }

    /// Adds the group that is being opened.
    pub fn push(&self, group: Arc<Group>, durable_address: u64) {
        self.groups.write().push_back(group);
        self.evict(durable_address);
    }

    /// Tells that a group has its final size.
    pub fn account(&self, bytes: u64) {
        self.used_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    /// Drops the oldest groups over the budget; never one that is not durable, since the device does not have it yet.
    fn evict(&self, durable_address: u64) {
        if self.used_bytes.load(Ordering::Relaxed) <= self.budget_bytes {
            return;
        }
        let mut groups = self.groups.write();
        while self.used_bytes.load(Ordering::Relaxed) > self.budget_bytes
            && groups.front().is_some_and(|group| group.start < durable_address)
        {
            if let Some(group) = groups.pop_front() {
                self.used_bytes.fetch_sub(group.buf.read().len() as u64, Ordering::Relaxed);
            }
        }
    }

    /// Copies payload bytes at an address if its group is here.
    pub fn read(&self, position: u64, out: &mut [u8]) -> bool {
        let group = {
            let groups = self.groups.read();
            let after = groups.partition_point(|group| group.start <= position);
            let Some(group) = after.checked_sub(1).and_then(|index| groups.get(index)) else { return false };
            group.clone()
        };
        let buf = group.buf.read();
        let Ok(at) = usize::try_from(position - group.start) else { return false };
        let Some(bytes) = buf.get(at..at + out.len()) else { return false };
        out.copy_from_slice(bytes);
        true
    }

    pub fn used_bytes(&self) -> u64 {
        self.used_bytes.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn groups_share_pieces_on_page_boundaries_and_keep_apart() {
        let mut rest = Pages::from(&Arc::default());
        let mut groups = Vec::new();
        for group in 0u8..200 {
            let pages = Group::new(0, rest);
            let mut buf = pages.buf.write();
            let len = (1 + usize::from(group) % 90) * PAGE;
            buf.grow(len);
            assert!(buf.iter().all(|byte| *byte == 0), "group {group} begins with zeros");
            assert_eq!((buf.len(), buf.as_ptr().align_offset(PAGE)), (len, 0));
            buf.fill(group);
            rest = buf.split_rest();
            drop(buf);
            groups.push(pages);
        }
        for (group, pages) in (0u8..).zip(&groups) {
            assert!(pages.buf.read().iter().all(|byte| *byte == group), "group {group}");
        }
    }

    #[test]
    fn a_group_that_outgrows_its_piece_keeps_its_bytes() {
        let pages = Group::new(0, Pages::from(&Arc::default()));
        let mut buf = pages.buf.write();
        buf.fill(7);
        buf.grow(PIECE_BYTES + PAGE);
        assert!(buf[..PAGE].iter().all(|byte| *byte == 7) && buf[PAGE..].iter().all(|byte| *byte == 0));
        assert_eq!((buf.len(), buf.as_ptr().align_offset(PAGE)), (PIECE_BYTES + PAGE, 0));
    }

    #[test]
    fn a_piece_is_used_again_once_its_groups_are_gone_and_not_before() {
        let pieces = Arc::default();
        let first = Group::new(0, Pages::from(&pieces));
        first.buf.write().fill(9);
        let address = first.buf.read().as_ptr();
        let second = Group::new(0, Pages::from(&pieces));
        assert_ne!(second.buf.read().as_ptr(), address, "the first group is still there");
        drop(first);
        let third = Group::new(0, Pages::from(&pieces));
        assert_eq!(third.buf.read().as_ptr(), address, "its memory is used again");
        assert!(third.buf.read().iter().all(|byte| *byte == 0), "nothing of the old group is left");
        assert_eq!(pieces.handles.lock().len(), 2);
    }
}

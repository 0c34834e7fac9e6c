//! Recent groups in memory: the log's own buffers, kept after they are written until the budget asks for their room.

use crate::device::AlignedBuf;
use crate::units::PAGE;
use parking_lot::RwLock;
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

/// A group's bytes: the header page, then payload pages. Written by appends while open, by the commit once, then only read.
pub(super) struct Group {
    /// Address of the header page.
    pub start: u64,
    pub buf: RwLock<AlignedBuf>,
}

impl Group {
    pub fn new(start: u64) -> Group {
        Group { start, buf: RwLock::new(AlignedBuf::zeroed(PAGE)) }
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

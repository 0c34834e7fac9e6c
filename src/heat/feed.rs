//! What the forecast is fed from: a bounded queue of accesses, in the order in which they were seen.
//!
//! The data path only puts a copy of an access into the queue; whoever forecasts takes them out now and then, on a thread of its own. While nobody
//! listens nothing is queued, and what does not fit is counted and let go: heat is a share of many accesses, so a few of them do not matter.

use super::forecast::Access;
use crate::units::{FileId, TierId};
use crossbeam_channel::{Receiver, Sender, bounded};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

/// Accesses waiting to be taken: 2 MiB, or 32,768 accesses between two looks.
const QUEUED_MAX: usize = 32_768;

/// One thing that happened to a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Event {
    /// It was read from a tier or written (then `tier` says nothing).
    Access { access: Access, tier: Option<TierId> },
    /// It was cut or extended to a new size.
    Cut { file: FileId, size_bytes: u64 },
    /// It was removed.
    Gone(FileId),
}

/// See the module's head.
pub(super) struct Feed {
    listened_to: AtomicBool,
    into: Sender<Event>,
    out: Receiver<Event>,
    dropped: AtomicU64,
}

impl Feed {
    /// Memory of the queue: each place has a word of its own.
    pub(super) const BYTES: u64 = QUEUED_MAX as u64 * (size_of::<Event>() as u64 + 8);

    pub(super) fn new() -> Feed {
        let (into, out) = bounded(QUEUED_MAX);
        Feed { listened_to: AtomicBool::new(false), into, out, dropped: AtomicU64::new(0) }
    }

    pub(super) fn listen(&self, listened_to: bool) {
        self.listened_to.store(listened_to, Ordering::Relaxed);
    }

    pub(super) fn put(&self, event: Event) {
        if self.listened_to.load(Ordering::Relaxed) && self.into.try_send(event).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// What has been queued so far; no more than the queue holds, however much comes meanwhile.
    pub(super) fn take(&self) -> impl Iterator<Item = Event> + '_ {
        self.out.try_iter().take(QUEUED_MAX)
    }

    /// Events that wait at this moment.
    pub(super) fn waiting(&self) -> usize {
        self.out.len()
    }

    pub(super) fn dropped(&self) -> u64 {
        self.dropped.load(Ordering::Relaxed)
    }
}

//! Readers hold back whoever destroys: a segment is recycled, an old image punched, only after every read that
//! might have resolved to it is over.
//!
//! Two counters and an epoch: a reader counts itself under the current epoch, a destroyer advances the epoch and waits for the old
//! counter to reach zero. Readers never wait.

use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::time::Duration;

#[derive(Default)]
pub struct Readers {
    epoch: AtomicU64,
    counts: [AtomicU64; 2],
    /// One destroyer at a time.
    turn: Mutex<()>,
    left: Condvar,
    left_lock: Mutex<()>,
}

/// A read in progress.
pub struct Reading<'a> {
    readers: &'a Readers,
    side: usize,
}

/// A read in progress, wherever it goes.
pub struct OwnedReading {
    readers: Arc<Readers>,
    side: usize,
}

impl Readers {
    pub fn enter(&self) -> Reading<'_> {
        Reading { readers: self, side: self.count_in() }
    }

    /// As [`Readers::enter`], for a read that outlives the call which began it.
    pub fn enter_owned(self: &Arc<Readers>) -> OwnedReading {
        OwnedReading { side: self.count_in(), readers: Arc::clone(self) }
    }

    fn count_in(&self) -> usize {
        loop {
            let epoch = self.epoch.load(Ordering::SeqCst);
            let side = usize::from(epoch & 1 == 1);
            if let Some(count) = self.counts.get(side) {
                count.fetch_add(1, Ordering::SeqCst);
            }
            // If the epoch moved in between, the destroyer may not have seen this count.
            if self.epoch.load(Ordering::SeqCst) == epoch {
                return side;
            }
            self.leave(side);
        }
    }

    fn leave(&self, side: usize) {
        let Some(count) = self.counts.get(side) else { return };
        if count.fetch_sub(1, Ordering::SeqCst) == 1 && usize::from(self.epoch.load(Ordering::SeqCst) & 1 == 1) != side
        {
            drop(self.left_lock.lock());
            self.left.notify_all();
        }
    }

    /// Returns when every read that began before this call is over.
    pub fn wait_for_earlier(&self) {
        let _turn = self.turn.lock();
        let old = self.epoch.fetch_add(1, Ordering::SeqCst);
        let side = usize::from(old & 1 == 1);
        let mut lock = self.left_lock.lock();
        while self.counts.get(side).is_some_and(|count| count.load(Ordering::SeqCst) > 0) {
            // The time-out only guards against a missed notification; it is not how this normally ends.
            self.left.wait_for(&mut lock, Duration::from_millis(10));
        }
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        self.readers.leave(self.side);
    }
}

impl Drop for OwnedReading {
    fn drop(&mut self) {
        self.readers.leave(self.side);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicBool;

    #[test]
    fn a_destroyer_waits_for_earlier_reads_and_not_for_later_ones() {
        let readers = Arc::new(Readers::default());
        readers.wait_for_earlier();
        let early = readers.enter();
        let passed = Arc::new(AtomicBool::new(false));
        let destroyer = std::thread::spawn({
            let (readers, passed) = (readers.clone(), passed.clone());
            move || {
                readers.wait_for_earlier();
                passed.store(true, Ordering::SeqCst);
            }
        });
        while readers.epoch.load(Ordering::SeqCst) != 2 {
            std::thread::yield_now();
        }
        let _late = readers.enter();
        assert!(!passed.load(Ordering::SeqCst), "the destroyer passed a read that it had to wait for");
        drop(early);
        destroyer.join().expect("the destroyer returns although a later read goes on");
    }
}

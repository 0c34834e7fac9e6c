//! Nothing that is being read is punched (`volume/readers.rs`).

use crate::readers::Readers;
use crate::schedule::{Bounds, check};
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::thread::spawn;
use std::sync::Arc;

/// A block whose image moves from place to place; what it leaves is punched.
#[derive(Default)]
struct Block {
    readers: Readers,
    place: AtomicU64,
    punched: [AtomicBool; 4],
}

impl Block {
    /// As every read of the engine: counts itself, looks the place up, reads there.
    fn read(&self) {
        let _reading = self.readers.enter();
        let place = self.place.load(Ordering::Acquire);
        let punched = self.punched[place as usize].load(Ordering::Acquire);
        assert!(!punched, "place {place} was punched under a read");
    }

    /// As a flip and the checkpoint behind it: the map first, then the wait, then the punch.
    fn move_on(&self) {
        let old = self.place.fetch_add(1, Ordering::AcqRel);
        self.readers.wait_for_earlier();
        self.punched[old as usize].store(true, Ordering::Release);
    }
}

/// Without timers: a missed notification is a deadlock here.
#[test]
fn what_is_being_read_is_never_punched() {
    check(Bounds { preemptions: 3, timers: 0 }, || {
        let block = Arc::new(Block::default());
        let readers = [(); 2].map(|()| {
            let block = Arc::clone(&block);
            spawn(move || block.read())
        });
        block.move_on();
        block.move_on();
        for reader in readers {
            reader.join().expect("the reader");
        }
    });
}

#[test]
fn two_destroyers_wait_for_their_own_readers() {
    check(Bounds { preemptions: 3, timers: 0 }, || {
        let block = Arc::new(Block::default());
        let other = Arc::clone(&block);
        let destroyer = spawn(move || other.move_on());
        let other = Arc::clone(&block);
        let reader = spawn(move || {
            other.read();
            other.read();
        });
        block.move_on();
        reader.join().expect("the reader");
        destroyer.join().expect("the destroyer");
    });
}

//! Maintenance misses no call, rests however often it is called, and ends when it is told to (`volume/wake.rs`).

use crate::schedule::{Bounds, check, timers_left};
use crate::sync::atomic::{AtomicU64, Ordering};
use crate::sync::thread::spawn;
use crate::sync::{Condvar, Mutex};
use crate::wake::Wake;
use std::sync::Arc;
use std::time::{Duration, Instant};

#[derive(Default)]
struct Maintenance {
    wake: Wake,
    asked: AtomicU64,
    seen: Mutex<u64>,
    round: Condvar,
}

impl Maintenance {
    /// As the thread of the engine: a round looks at everything that was asked before it.
    fn run(&self) {
        while !self.wake.is_stopping() {
            self.wake.wait(Duration::from_secs(1));
            *self.seen.lock() = self.asked.load(Ordering::Acquire);
            self.round.notify_all();
        }
    }

    fn ask(&self) {
        self.asked.fetch_add(1, Ordering::AcqRel);
        self.wake.call();
    }
}

/// Without timers: a call that leads to no round leaves this waiting for one, which is a deadlock.
#[test]
fn every_call_is_followed_by_a_round() {
    check(Bounds { preemptions: 4, timers: 0 }, || {
        let maintenance = Arc::new(Maintenance::default());
        let other = Arc::clone(&maintenance);
        let thread = spawn(move || other.run());
        let other = Arc::clone(&maintenance);
        let caller = spawn(move || other.ask());
        maintenance.ask();
        caller.join().expect("the caller");
        let mut seen = maintenance.seen.lock();
        while *seen < 2 {
            maintenance.round.wait(&mut seen);
        }
        drop(seen);
        maintenance.wake.stop();
        thread.join().expect("maintenance");
    });
}

#[test]
fn a_rest_lasts_until_its_time_is_up_or_a_stop() {
    for timers in 0..2 {
        check(Bounds { preemptions: 3, timers }, move || {
            let maintenance = Arc::new(Maintenance::default());
            let other = Arc::clone(&maintenance);
            let thread = spawn(move || {
                other.wake.rest(Instant::now());
                assert!(other.wake.is_stopping() || timers_left() < timers, "a call cut the rest short");
            });
            maintenance.ask();
            maintenance.ask();
            maintenance.wake.stop();
            thread.join().expect("maintenance");
        });
    }
}

//! How maintenance is called, rests and is stopped.

use crate::sync::atomic::{AtomicBool, Ordering};
use crate::sync::{Condvar, Mutex};
use std::time::{Duration, Instant};

#[derive(Default)]
pub(super) struct Wake {
    stop: AtomicBool,
    is_called: Mutex<bool>,
    change: Condvar,
}

impl Wake {
    /// Whoever waits goes on; whoever is at work will not wait before the next round.
    pub fn call(&self) {
        *self.is_called.lock() = true;
        self.change.notify_one();
    }

    /// Ends waits and rests for good.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Release);
        self.call();
    }

    pub fn is_stopping(&self) -> bool {
        self.stop.load(Ordering::Acquire)
    }

    /// Until somebody calls, or has called since the last wait; at most for `tick`.
    pub fn wait(&self, tick: Duration) {
        let mut is_called = self.is_called.lock();
        if !*is_called {
            self.change.wait_for(&mut is_called, tick);
        }
        *is_called = false;
    }

    /// Until then, whoever calls meanwhile.
    pub fn rest(&self, until: Instant) {
        let mut is_called = self.is_called.lock();
        while !self.is_stopping() && !self.change.wait_until(&mut is_called, until).timed_out() {}
    }
}

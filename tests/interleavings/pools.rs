//! Jobs are neither lost nor held up by slow ones while threads are left (`fuse/pool.rs`).

use crate::pool::Pool;
use crate::schedule::{Bounds, check};
use crate::sync::thread::spawn;
use crate::sync::{Condvar, Mutex};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

/// Passed only by `parties` together.
struct Meeting {
    missing: Mutex<usize>,
    complete: Condvar,
}

impl Meeting {
    fn of(parties: usize) -> Arc<Meeting> {
        Arc::new(Meeting { missing: Mutex::new(parties), complete: Condvar::new() })
    }

    fn join(&self) {
        let mut missing = self.missing.lock();
        *missing -= 1;
        if *missing == 0 {
            drop(missing);
            return self.complete.notify_all();
        }
        while *missing > 0 {
            self.complete.wait(&mut missing);
        }
    }
}

#[test]
fn slow_jobs_hold_up_nobody_while_threads_are_left() {
    check(Bounds { preemptions: 2, timers: 0 }, || {
        let pool = Pool::new("checked", 2, 4);
        // A thread may be idle, or busy with this, when the others come.
        pool.submit(|| {});
        let meeting = Meeting::of(2);
        for _ in 0..2 {
            let meeting = Arc::clone(&meeting);
            pool.submit(move || meeting.join());
        }
        pool.close();
        assert_eq!(pool.parked(), 0);
    });
}

#[test]
fn no_job_is_lost_however_the_pool_is_closed() {
    check(Bounds { preemptions: 1, timers: 0 }, || {
        let pool = Arc::new(Pool::new("checked", 1, 1));
        let done = Arc::new(AtomicUsize::new(0));
        let submit = |jobs: usize| {
            let (pool, done) = (Arc::clone(&pool), Arc::clone(&done));
            move || {
                for _ in 0..jobs {
                    let done = Arc::clone(&done);
                    pool.submit(move || {
                        done.fetch_add(1, Ordering::Relaxed);
                    });
                }
            }
        };
        // The queue has one place: two may wait for room, and find the pool closed when they come to it.
        let submitter = spawn(submit(1));
        let other = Arc::clone(&pool);
        let closer = spawn(move || other.close());
        submit(2)();
        submitter.join().expect("submitted");
        closer.join().expect("closed");
        assert_eq!(done.load(Ordering::Relaxed), 3);
        assert_eq!(pool.parked(), 0);
    });
}

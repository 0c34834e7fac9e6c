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
        let meeting = Meeting::of(3);
        for _ in 0..2 {
            let meeting = Arc::clone(&meeting);
            pool.submit(move || meeting.join());
        }
        // Both run at once, before anything else tells the threads of work.
        meeting.join();
        pool.close();
        assert_eq!(pool.parked(), 0);
    });
}

/// A pool of one thread and one place in the queue.
struct Narrow {
    pool: Pool,
    done: AtomicUsize,
}

impl Narrow {
    fn new() -> Arc<Narrow> {
        Arc::new(Narrow { pool: Pool::new("checked", 1, 1), done: AtomicUsize::new(0) })
    }

    fn submit(self: &Arc<Narrow>, jobs: usize) {
        for _ in 0..jobs {
            let narrow = Arc::clone(self);
            self.pool.submit(move || {
                narrow.done.fetch_add(1, Ordering::Relaxed);
            });
        }
    }

    fn assert_done(&self, jobs: usize) {
        assert_eq!(self.done.load(Ordering::Relaxed), jobs);
        assert_eq!(self.pool.parked(), 0);
    }
}

/// Two may wait for room when the pool is closed.
#[test]
fn no_job_is_lost_however_the_pool_is_closed() {
    check(Bounds { preemptions: 1, timers: 0 }, || {
        let narrow = Narrow::new();
        let other = Arc::clone(&narrow);
        let submitter = spawn(move || other.submit(1));
        let other = Arc::clone(&narrow);
        let closer = spawn(move || other.pool.close());
        narrow.submit(2);
        submitter.join().expect("submitted");
        closer.join().expect("closed");
        narrow.assert_done(3);
    });
}

/// The pool is closed only when all are through: nothing but a job that is taken makes room.
#[test]
fn whoever_waits_for_room_is_told_of_it() {
    check(Bounds { preemptions: 1, timers: 0 }, || {
        let narrow = Narrow::new();
        let other = Arc::clone(&narrow);
        let submitter = spawn(move || other.submit(2));
        narrow.submit(2);
        submitter.join().expect("submitted");
        narrow.pool.close();
        narrow.assert_done(4);
    });
}

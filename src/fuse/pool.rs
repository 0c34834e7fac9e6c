//! Threads for requests that must wait for a device, so that the workers reading from the kernel never do.
//!
//! Threads are made when a job finds none idle, up to a limit, and stay. The queue is bounded; a worker that finds it full waits, which
//! is the last resort of backpressure: it takes as many waiting requests as slots and queue together to get there.

use crate::sync::thread::{self, JoinHandle};
use crate::sync::{Condvar, Mutex};
use std::collections::VecDeque;
use std::sync::Arc;

type Job = Box<dyn FnOnce() + Send>;

pub struct Pool {
    shared: Arc<Shared>,
    name: &'static str,
    threads_max: usize,
    queue_max: usize,
}

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    work: Condvar,
    room: Condvar,
}

#[derive(Default)]
struct State {
    jobs: VecDeque<Job>,
    threads: Vec<JoinHandle<()>>,
    idle: usize,
    running: u64,
    closed: bool,
}

impl Pool {
    pub fn new(name: &'static str, threads_max: usize, queue_max: usize) -> Pool {
        Pool { shared: Arc::default(), name, threads_max: threads_max.max(1), queue_max: queue_max.max(1) }
    }

    /// Runs the job on a thread of the pool; here and now if the pool is closed or no thread can be made.
    pub fn submit(&self, job: impl FnOnce() + Send + 'static) {
        let mut state = self.shared.state.lock();
        while state.jobs.len() >= self.queue_max && !state.closed {
            self.shared.room.wait(&mut state);
        }
        if state.closed {
            drop(state);
            return job();
        }
        if state.idle <= state.jobs.len() && state.threads.len() < self.threads_max {
            let shared = Arc::clone(&self.shared);
            match thread::Builder::new().name(self.name.to_owned()).spawn(move || shared.serve()) {
                Ok(thread) => state.threads.push(thread),
                Err(error) if state.threads.is_empty() => {
                    tracing::warn!("cannot start a thread {}: {error}", self.name);
                    drop(state);
                    return job();
                }
                Err(_) => {}
            }
        }
        state.jobs.push_back(Box::new(job));
        drop(state);
        self.shared.work.notify_one();
    }

    /// Jobs waiting or running.
    pub fn parked(&self) -> u64 {
        let state = self.shared.state.lock();
        state.running + state.jobs.len() as u64
    }

    /// Finishes what is queued and ends the threads.
    pub fn close(&self) {
        let threads = {
            let mut state = self.shared.state.lock();
            state.closed = true;
            std::mem::take(&mut state.threads)
        };
        self.shared.work.notify_all();
        self.shared.room.notify_all();
        for thread in threads {
            if thread.join().is_err() {
                tracing::error!("a thread {} panicked", self.name);
            }
        }
    }
}

impl Shared {
    fn serve(&self) {
        let mut state = self.state.lock();
        loop {
            if let Some(job) = state.jobs.pop_front() {
                state.running += 1;
                drop(state);
                self.room.notify_one();
                job();
                state = self.state.lock();
                state.running -= 1;
            } else if state.closed {
                return;
            } else {
                state.idle += 1;
                self.work.wait(&mut state);
                state.idle -= 1;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::Barrier;
    use std::sync::atomic::{AtomicUsize, Ordering};

    #[test]
    fn slow_jobs_do_not_hold_up_others_while_threads_are_left() {
        let pool = Pool::new("test", 4, 8);
        let together = Arc::new(Barrier::new(4));
        for _ in 0..4 {
            let together = Arc::clone(&together);
            // Ends only if all four run at once.
            pool.submit(move || {
                together.wait();
            });
        }
        pool.close();
        assert_eq!(pool.parked(), 0);
    }

    #[test]
    fn closing_finishes_what_is_queued() {
        let pool = Pool::new("test", 2, 1000);
        let done = Arc::new(AtomicUsize::new(0));
        for _ in 0..500 {
            let done = Arc::clone(&done);
            pool.submit(move || {
                done.fetch_add(1, Ordering::Relaxed);
            });
        }
        pool.close();
        assert_eq!(done.load(Ordering::Relaxed), 500);
    }
}

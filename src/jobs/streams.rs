//! Several threads at one list of tasks, each with a buffer to read into: captures and restores.

use crate::error::{Error, Result};
use std::sync::atomic::{AtomicBool, Ordering};

/// What is read at once, in bytes: whole slots of the repository.
const READ_BYTES: u64 = 256 * 1024;
/// Buffers that a task has at hand, in one.
const BUFFERS: u64 = 4;

/// Works on all tasks, `streams` at once but at least one. The first error ends it.
pub(super) fn run<Task: Send>(
    tasks: Vec<Task>,
    streams: usize,
    work: impl Fn(&Task, &mut [u8]) -> Result<()> + Sync,
) -> Result<()> {
    let failed = AtomicBool::new(false);
    let (give, take) = crossbeam_channel::unbounded();
    for task in tasks {
        // The receiver lives until the end of this call.
        let _ = give.send(task);
    }
    drop(give);
    let stream = || -> Result<()> {
        let mut buf = vec![0; usize::try_from(BUFFERS * READ_BYTES).unwrap_or(0)];
        for task in &take {
            if failed.load(Ordering::Relaxed) {
                return Ok(());
            }
            let done = work(&task, &mut buf);
            if done.is_err() {
                failed.store(true, Ordering::Relaxed);
                return done;
            }
        }
        Ok(())
    };
    together((0..streams.max(1)).map(|_| &stream))
}

/// Runs each on a thread of its own and waits for all. Errors: the first of them, in their order.
pub(super) fn together<Work: FnOnce() -> Result<()> + Send>(works: impl Iterator<Item = Work>) -> Result<()> {
    std::thread::scope(|scope| {
        let threads: Vec<_> = works.map(|work| scope.spawn(work)).collect();
        let outcomes = threads
            .into_iter()
            .map(|thread| thread.join().unwrap_or_else(|_| Err(Error::Invalid("a stream died".to_owned()))));
        outcomes.collect::<Vec<_>>().into_iter().collect()
    })
}

/// Where a read that begins at `at` ends, so that the next ones begin on whole buffers.
pub(super) fn read_end(at: u64, end: u64) -> u64 {
    ((at / READ_BYTES + 1) * READ_BYTES).min(end)
}

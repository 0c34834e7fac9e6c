//! What the process asks of the kernel before it serves: each thing where permitted, and said when not. A filesystem's daemon
//! must not be the one that the OOM killer picks, nor wait in memory reclaim for pages that only it can write.

use crate::device::clock::monotonic_now;
use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use std::num::NonZero;
use std::time::{Duration, Instant};
use tracing::{debug, warn};

/// Descriptors wanted: base files of all tiers, home's nodes, connections.
const FILES_WANTED: u64 = 1 << 20;

/// Allocations of this size, in bytes, go back to the kernel when freed: pieces of log buffers are twice as large.
const LARGE_ALLOCATION_BYTES: i32 = 1 << 20;

/// Heaps that threads share, at least: each keeps free memory of its own, and there are more threads than processors to run them.
const HEAPS_MIN: usize = 4;

/// How often what is free in the heaps goes back to the kernel: it stands beside a database that has better use for it.
const FREE_MEMORY_EVERY: Duration = Duration::from_secs(60);

/// When free memory was given back last.
pub(super) struct FreeMemory {
    returned_at: Instant,
}

impl FreeMemory {
    pub(super) fn new() -> FreeMemory {
        FreeMemory { returned_at: monotonic_now() }
    }

    /// How often [`FreeMemory::return_sometimes`] wants to be called.
    pub(super) fn interval(&self) -> Duration {
        FREE_MEMORY_EVERY
    }

    pub(super) fn return_sometimes(&mut self) {
        if self.returned_at.elapsed() >= FREE_MEMORY_EVERY {
            self.returned_at = monotonic_now();
            crate::device::sys::return_free_memory();
        }
    }
}

/// Bounds the heap's waste, raises the limit of open files, protects against the OOM killer, marks this process as one that flushes I/O.
pub(super) fn prepare() {
    let processors = std::thread::available_parallelism().map_or(HEAPS_MIN, NonZero::get);
    if !crate::device::sys::return_large_allocations(LARGE_ALLOCATION_BYTES)
        || !crate::device::sys::limit_heaps(i32::try_from(processors.max(HEAPS_MIN)).unwrap_or(i32::MAX))
    {
        debug!("the allocator keeps its own mind about large buffers and heaps");
    }
    raise_file_limit();
    if let Err(error) = write_oom_score() {
        warn!("oom_score_adj stays as it is ({error}): under memory pressure the kernel may kill this daemon");
    }
    if let Err(error) = crate::device::sys::set_io_flusher() {
        warn!("PR_SET_IO_FLUSHER is not permitted ({error}): memory reclaim may wait for this daemon");
    }
}

fn raise_file_limit() {
    let raised = getrlimit(Resource::RLIMIT_NOFILE).and_then(|(_, hard)| {
        let wanted = hard.max(FILES_WANTED);
        // Only root may raise the hard limit; everybody may go up to it.
        setrlimit(Resource::RLIMIT_NOFILE, wanted, wanted)
            .map(|()| wanted)
            .or_else(|_| setrlimit(Resource::RLIMIT_NOFILE, hard, hard).map(|()| hard))
    });
    match raised {
        Ok(limit) if limit < FILES_WANTED => warn!("at most {limit} open files are allowed; {FILES_WANTED} are wanted"),
        Ok(limit) => debug!("open files: {limit}"),
        Err(error) => warn!("the limit of open files stays as it is: {error}"),
    }
}

fn write_oom_score() -> Result<(), Errno> {
    let file = open("/proc/self/oom_score_adj", OFlag::O_WRONLY | OFlag::O_CLOEXEC, Mode::empty())?;
    nix::unistd::write(&file, b"-1000").map(|_| ())
}

#[cfg(test)]
mod tests {
    /// Bytes of anonymous memory.
    #[cfg(target_env = "gnu")]
    fn anonymous() -> usize {
        let status = std::fs::read_to_string("/proc/self/status").unwrap();
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).unwrap();
        line.trim_end_matches("kB").trim().parse::<usize>().unwrap() << 10
    }

    /// A thread's heap is kept from shrinking by what is still used at its end; what is free below goes back all the same.
    #[cfg(target_env = "gnu")]
    #[test]
    fn what_is_free_in_the_heaps_of_threads_goes_back() {
        const PIECES: usize = 1024;
        const PIECE_BYTES: usize = 64 << 10;
        let kept: Vec<Vec<u8>> = std::thread::spawn(|| {
            let pieces: Vec<Vec<u8>> = (0..PIECES).map(|_| vec![1; PIECE_BYTES]).collect();
            pieces.into_iter().enumerate().filter(|(at, _)| at % 64 == 63).map(|(_, piece)| piece).collect()
        })
        .join()
        .unwrap();
        let before = anonymous();
        assert!(crate::device::sys::return_free_memory());
        let after = anonymous();
        assert!(before - after > PIECES * PIECE_BYTES / 2, "{before} bytes before, {after} after");
        assert!(kept.iter().flatten().all(|byte| *byte == 1));
    }
}

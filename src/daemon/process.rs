//! What the process asks of the kernel before it serves: each thing where permitted, and said when not. A filesystem's daemon
//! must not be the one that the OOM killer picks, nor wait in memory reclaim for pages that only it can write.

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::Mode;
use tracing::{debug, warn};

/// Descriptors wanted: base files of all tiers, home's nodes, connections.
const FILES_WANTED: u64 = 1 << 20;

/// Allocations of this size, in bytes, go back to the kernel when freed: pieces of log buffers are twice as large.
const LARGE_ALLOCATION_BYTES: i32 = 1 << 20;

/// Bounds the heap's waste, raises the limit of open files, protects against the OOM killer, marks this process as one that flushes I/O.
pub(super) fn prepare() {
    if !crate::device::sys::return_large_allocations(LARGE_ALLOCATION_BYTES) {
        debug!("the allocator keeps its own mind about large buffers");
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

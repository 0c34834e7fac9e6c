//! Requests over io_uring: one system call per request instead of two.
//!
//! The kernel has a queue of requests for each processor. Here are workers for each queue, every one with a ring of its own and some slots
//! in it. What databases do all day they serve by themselves, and a read of the fastest tier's pages is made by the ring; all else goes over a bridge to the fuser library, which thinks that it reads the
//! device. The kernel must have it switched on (the parameter `enable_uring` of its module fuse).
//!
//! ```text
//!   worker     a thread, its ring, and the requests served here
//!   bridge     the rest: to the library and back
//!   mailbox    answers from other threads on their way to the worker
//!   abi        layouts
//! ```

#[doc(hidden)]
pub mod abi;
mod bridge;
mod mailbox;
mod worker;

use super::Maintains;
use super::adapter::Adapter;
use super::operations::Operations;
use crate::device::sys_home::read_kernel_file;
use crate::device::sys_uring::FuseRing;
use bridge::Bridge;
use mailbox::Mailbox;
use nix::fcntl::{OFlag, open};
use nix::mount::{MntFlags, MsFlags, umount2};
use nix::sys::eventfd::{EfdFlags, EventFd};
use nix::sys::stat::{Mode, stat};
use parking_lot::Mutex;
use std::io;
use std::num::NonZeroUsize;
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;
use worker::Worker;

/// The library's threads, for what is passed on to it.
const LIBRARY_THREADS: usize = 4;

/// Workers of each processor's queue. They run on any: bound to their own, each waits for the server that runs there.
const WORKERS_PER_QUEUE: usize = 2;
/// Requests that may be under way at once, all workers together: as many as the kernel has in the background.
const SLOTS_MAX: usize = 1024;

/// Is it switched on in the kernel, and may this process use it?
pub fn is_available() -> bool {
    let enabled = read_kernel_file("/sys/module/fuse/parameters/enable_uring").is_ok_and(|value| value.trim() == "Y");
    enabled && nix::unistd::geteuid().is_root() && queues().is_some()
}

/// The kernel's queues: one for each processor that there could be.
fn queues() -> Option<u16> {
    let possible = read_kernel_file("/sys/devices/system/cpu/possible").ok()?;
    let last = possible.trim().rsplit([',', '-']).next()?;
    last.parse::<u16>().ok()?.checked_add(1)
}

pub struct Mount<'a> {
    pub source: &'a str,
    pub everybody: bool,
    pub no_exec: bool,
    pub context: Option<&'a str>,
    pub maintains: Maintains,
}

/// Mounts, and serves on threads of its own until the filesystem is gone. After an error nothing is mounted.
pub fn serve<O: Operations>(
    operations: Arc<O>,
    library: Adapter<O>,
    mountpoint: &Path,
    mount: &Mount<'_>,
) -> io::Result<fuser::BackgroundSession> {
    let device = Arc::new(open("/dev/fuse", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())?);
    let (bridge, library_end) = Bridge::new(Arc::clone(&device), LIBRARY_THREADS)?;
    mount_device(&device, mountpoint, mount)?;
    start(operations, library, mount, device, bridge, library_end).inspect_err(|_| {
        // A mount that nobody serves would hold up whoever looks at it (R28). It fails only where somebody else was faster.
        let _ = umount2(mountpoint, MntFlags::MNT_DETACH);
    })
}

fn start<O: Operations>(
    operations: Arc<O>,
    library: Adapter<O>,
    mount: &Mount<'_>,
    device: Arc<OwnedFd>,
    bridge: Arc<Bridge>,
    library_end: OwnedFd,
) -> io::Result<fuser::BackgroundSession> {
    let workers: Workers = Arc::default();
    let reading = (Arc::clone(&bridge), Arc::clone(&workers));
    spawn("heatfs-fuse".to_owned(), move || {
        let (bridge, workers) = reading;
        bridge.read_device();
        let started = std::mem::take(&mut *workers.lock());
        for worker in started {
            // A worker that panicked has told so.
            let _ = worker.join();
        }
        bridge.end();
    })?;
    let start =
        Starting { operations, maintains: Arc::clone(&mount.maintains), device, bridge: Arc::clone(&bridge), workers };
    spawn("heatfs-answers".to_owned(), move || bridge.read_answers(|payload_bytes| start.start(payload_bytes)))?;
    let mut config = fuser::Config::default();
    config.n_threads = Some(LIBRARY_THREADS);
    config.acl = if mount.everybody { fuser::SessionACL::All } else { fuser::SessionACL::Owner };
    fuser::Session::from_fd(library, library_end, config.acl, config).and_then(fuser::Session::spawn)
}

type Workers = Arc<Mutex<Vec<JoinHandle<()>>>>;

struct Starting<O> {
    operations: Arc<O>,
    maintains: Maintains,
    device: Arc<OwnedFd>,
    bridge: Arc<Bridge>,
    workers: Workers,
}

impl<O: Operations> Starting<O> {
    /// The kernel holds all requests back until each queue has a slot, or a slot is refused.
    fn start(self, payload_bytes: Option<usize>) {
        let (Some(payload_bytes), Some(queues)) = (payload_bytes.and_then(NonZeroUsize::new), queues()) else {
            return tracing::warn!("the kernel does not take requests over io_uring; the device is used");
        };
        let cores = std::thread::available_parallelism().map_or(1, usize::from);
        let slots_max = (SLOTS_MAX / (cores * WORKERS_PER_QUEUE)).max(16);
        let mut workers = self.workers.lock();
        for queue in 0..queues {
            // Each queue has to have one, though its processor may never come.
            let count = if usize::from(queue) < cores { WORKERS_PER_QUEUE } else { 1 };
            for number in 0..count {
                match self.start_worker(queue, number, slots_max, payload_bytes) {
                    Ok(worker) => workers.push(worker),
                    Err(error) => tracing::error!("start a worker: {error}"),
                }
            }
        }
    }

    fn start_worker(
        &self,
        queue: u16,
        number: usize,
        slots_max: usize,
        payload_bytes: NonZeroUsize,
    ) -> io::Result<JoinHandle<()>> {
        let bell = Arc::new(EventFd::from_flags(EfdFlags::EFD_CLOEXEC)?);
        let worker = Worker {
            queue,
            payload_bytes,
            slots_max,
            operations: Arc::clone(&self.operations),
            maintains: Arc::clone(&self.maintains),
            bridge: Arc::clone(&self.bridge),
            mailbox: Arc::new(Mailbox::new(Arc::clone(&bell))),
        };
        let device = Arc::clone(&self.device);
        spawn(format!("heatfs-{queue}-{number}"), move || {
            let run = || -> io::Result<()> {
                worker.run(&mut FuseRing::new(device, bell, u32::try_from(slots_max).unwrap_or(1))?)
            };
            if let Err(error) = run() {
                tracing::error!("requests over io_uring, queue {queue}: {error}");
            }
        })
    }
}

fn spawn(name: String, run: impl FnOnce() + Send + 'static) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(name).spawn(run)
}

fn mount_device(device: &OwnedFd, mountpoint: &Path, mount: &Mount<'_>) -> io::Result<()> {
    let mode = stat(mountpoint)?.st_mode & libc::S_IFMT;
    let mut options = format!("fd={},rootmode={mode:o},user_id=0,group_id=0,default_permissions", device.as_raw_fd());
    if mount.everybody {
        options.push_str(",allow_other");
    }
    if let Some(context) = mount.context {
        options.push(',');
        options.push_str(&super::context_option(context));
    }
    let mut flags = MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOATIME;
    if mount.no_exec {
        flags |= MsFlags::MS_NOEXEC;
    }
    nix::mount::mount(Some(mount.source), mountpoint, Some("fuse.heatfs"), flags, Some(options.as_str()))?;
    Ok(())
}

//! The FUSE front: mounting, and the requests of the kernel on their way to namespace and engine.
//!
//! ```text
//!   adapter      fuser's requests and replies             (replaceable: another transport is another adapter)
//!   operations   the trait between
//!   front        who may wait where; handles; pools
//!   errno        errors to numbers
//! ```
//!
//! The kernel runs write-through with its page cache kept across opens: every write() reaches the engine in order, and cached reads never
//! come here. It may keep names and attributes for an hour, because nothing changes but through it.

mod adapter;
mod errno;
mod front;
mod mounted;
mod operations;
mod pool;

pub use front::{Front, FrontStats, Slots};
pub use mounted::Mounted;
pub use operations::{Allocation, Operations};

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use adapter::Adapter;
use fuser::{MountOption, Session, SessionACL};
use mounted::Ended;
use std::path::Path;
use std::sync::Arc;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Options {
    /// The volume's name, shown as the mount's source `heatfs:NAME`.
    pub name: String,
    /// Threads reading requests from the kernel; None: four per core, between 8 and 32.
    pub workers: Option<usize>,
    pub slots: Slots,
    /// Read-ahead of the mount in KiB.
    pub read_ahead_kb: u32,
}

impl Default for Options {
    fn default() -> Options {
        Options { name: "volume".to_owned(), workers: None, slots: Slots::default(), read_ahead_kb: 128 }
    }
}

fn workers(wanted: Option<usize>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    wanted.unwrap_or((4 * cores).clamp(8, 32)).max(1)
}

/// A mount and the front that serves it.
pub struct Served {
    pub mounted: Mounted,
    pub front: Arc<Front>,
}

/// Mounts the namespace and serves it on threads of its own. As root everybody may use it, and the kernel checks permissions; as an ordinary user
/// only that user may.
pub fn mount(namespace: Arc<Namespace>, mountpoint: &Path, options: &Options) -> Result<Served> {
    let path = || mountpoint.display().to_string();
    let mountpoint = mountpoint.canonicalize().map_err(|error| Error::io("find mountpoint", path(), error))?;
    let front = Arc::new(Front::new(namespace, options.slots));
    let ended = Arc::new(Ended::default());
    let tell = Arc::clone(&ended);
    let adapter = Adapter::new(Arc::clone(&front), Box::new(move || tell.tell()));
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName(format!("heatfs:{}", options.name)),
        MountOption::Subtype("heatfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    config.acl = if nix::unistd::geteuid().is_root() { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(workers(options.workers));
    config.clone_fd = true;
    let session = Session::new(adapter, &mountpoint, &config)
        .and_then(Session::spawn)
        .map_err(|error| Error::io("mount", path(), error))?;
    let mounted = Mounted::new(mountpoint, ended, session);
    mounted.set_read_ahead(options.read_ahead_kb);
    Ok(Served { mounted, front })
}

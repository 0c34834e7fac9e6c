//! The FUSE front: mounting, and the requests of the kernel on their way to namespace and engine.
//!
//! ```text
//!   adapter      fuser's requests and replies             (replaceable: another transport is another adapter)
//!   operations   the trait between
//!   front        who may wait where; handles; pools
//!   errno        errors to numbers
//!   ring         requests over io_uring, where the kernel has it switched on
//!   snapshot     a filesystem of its own: a snapshot, read from the repository
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
#[doc(hidden)]
pub mod ring;
mod snapshot;

pub use front::{Front, FrontStats, Slots};
pub use mounted::Mounted;
pub use operations::{Allocation, Operations};
pub use snapshot::mount_snapshot;

use crate::error::{Error, Result};
use crate::namespace::Namespace;
use adapter::Adapter;
use fuser::{MountOption, Session, SessionACL};
use mounted::Ended;
use std::path::Path;
use std::sync::Arc;

/// Does a process, by its number, only maintain what others use?
pub type Maintains = Arc<dyn Fn(u32) -> bool + Send + Sync>;

#[derive(Clone)]
pub struct Options {
    /// What /proc/mounts shows as the mount's source.
    pub source: String,
    /// Nothing on the mount may be executed.
    pub no_exec: bool,
    /// Threads reading requests from the kernel; None: one more than cores, from 3 to 16 (measured on 2 cores: few serve one writer twice as fast as 8).
    pub workers: Option<usize>,
    pub slots: Slots,
    /// Read-ahead of the mount in KiB.
    pub read_ahead_kb: u32,
    /// Requests that the kernel may have in flight in the background.
    pub max_background: u16,
    /// Other users may use the mount; None: if it is root who mounts.
    pub everybody: Option<bool>,
    /// SELinux context of all files; of letters, digits, and `_.-:,`.
    pub context: Option<String>,
    /// Take requests over io_uring where the kernel offers it.
    pub io_uring: bool,
    /// Whose accesses are no heat.
    pub maintains: Maintains,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            source: "heatfs:volume".to_owned(),
            no_exec: false,
            workers: None,
            slots: Slots::default(),
            read_ahead_kb: 128,
            max_background: 1024,
            everybody: None,
            context: None,
            io_uring: false,
            maintains: Arc::new(|_| false),
        }
    }
}

impl Options {
    /// Errors: `Invalid` for what this machine cannot do, of which the kernel would only say that an argument is invalid.
    pub fn check(&self) -> Result<()> {
        let has_selinux = || Path::new("/sys/fs/selinux/enforce").exists();
        match &self.context {
            Some(context) if !has_selinux() => Err(Error::Invalid(format!(
                "fuse.context = \"{context}\": SELinux is not enabled in this kernel; \"\" is allowed"
            ))),
            _ => Ok(()),
        }
    }
}

fn workers(wanted: Option<usize>) -> usize {
    let cores = std::thread::available_parallelism().map_or(1, usize::from);
    wanted.unwrap_or(cores.clamp(2, 15) + 1).max(1)
}

fn library_config(options: &Options, everybody: bool, workers: usize) -> fuser::Config {
    let mut config = fuser::Config::default();
    config.mount_options = vec![
        MountOption::FSName(options.source.clone()),
        // Not the variant of that name: the library keeps that one from the kernel when it mounts by itself.
        MountOption::CUSTOM("subtype=heatfs".to_owned()),
        MountOption::DefaultPermissions,
        MountOption::NoAtime,
    ];
    if options.no_exec {
        config.mount_options.push(MountOption::NoExec);
    }
    config.mount_options.extend(options.context.as_deref().map(context_option).map(MountOption::CUSTOM));
    config.acl = if everybody { SessionACL::All } else { SessionACL::Owner };
    config.n_threads = Some(workers);
    config.clone_fd = true;
    config
}

/// In quotes: categories have commas.
fn context_option(context: &str) -> String {
    format!("context=\"{context}\"")
}

/// A mount and the front that serves it.
pub struct Served {
    pub mounted: Mounted,
    pub front: Arc<Front>,
}

/// Mounts the namespace and serves it on threads of its own. Mounted by root everybody may use it, unless the options say otherwise, and the kernel
/// checks permissions; mounted by an ordinary user only that user may.
pub fn mount(namespace: Arc<Namespace>, mountpoint: &Path, options: &Options) -> Result<Served> {
    let path = || mountpoint.display().to_string();
    let mountpoint = mountpoint.canonicalize().map_err(|error| Error::io("find mountpoint", path(), error))?;
    let over_ring = options.io_uring && ring::is_available();
    if options.io_uring && !over_ring {
        tracing::warn!(
            "requests come through /dev/fuse: io_uring needs root, and `enable_uring` of the kernel's module fuse (Linux 6.14)"
        );
    }
    // A worker of a ring has nothing else to do while it reads.
    let workers = if over_ring { usize::MAX } else { workers(options.workers) };
    let front = Arc::new(Front::new(namespace, options.slots, workers));
    let ended = Arc::new(Ended::default());
    let tell = Arc::clone(&ended);
    let adapter = Adapter::new(
        Arc::clone(&front),
        options.max_background,
        Arc::clone(&options.maintains),
        Box::new(move || tell.tell()),
    );
    let everybody = options.everybody.unwrap_or_else(|| nix::unistd::geteuid().is_root());
    let session = match over_ring {
        true => {
            let wanted = ring::Mount {
                source: &options.source,
                everybody,
                no_exec: options.no_exec,
                context: options.context.as_deref(),
                maintains: Arc::clone(&options.maintains),
            };
            ring::serve(Arc::clone(&front), adapter, &mountpoint, &wanted)
        }
        false => {
            Session::new(adapter, &mountpoint, &library_config(options, everybody, workers)).and_then(Session::spawn)
        }
    };
    let session = session.map_err(|error| Error::io("mount", path(), error))?;
    let mounted = Mounted::new(mountpoint, ended, session);
    mounted.set_read_ahead(options.read_ahead_kb);
    Ok(Served { mounted, front })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_context_reaches_the_kernel_whole() {
        let options = Options { context: Some("u:object_r:t:s0:c0,c1".to_owned()), ..Options::default() };
        let config = library_config(&options, true, 1);
        let wanted = MountOption::CUSTOM("context=\"u:object_r:t:s0:c0,c1\"".to_owned());
        assert!(config.mount_options.contains(&wanted), "{:?}", config.mount_options);
        let none = library_config(&Options::default(), true, 1);
        assert!(!format!("{:?}", none.mount_options).contains("context"));
    }
}

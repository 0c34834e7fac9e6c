//! Acting as the caller while home creates an inode, so that owner, group, setgid inheritance, umask and default ACLs come out as the
//! backing filesystem defines them.
//!
//! The kernel has already checked the caller's permissions (`default_permissions`), with the caller's supplementary groups, which do not
//! travel with requests. So only the file system ids of the thread change; its capabilities stay, or a caller who may write by a
//! supplementary group would be refused here. The umask is per thread too: each thread that creates leaves the process's shared `fs_struct` once.

use crate::device::sys_home;
use nix::sched::{CloneFlags, unshare};
use nix::sys::stat::{Mode, umask};
use std::cell::Cell;
use std::marker::PhantomData;

/// Who asks, as the request says.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Caller {
    pub uid: u32,
    pub gid: u32,
    /// As seen from the daemon; 0 when the caller lives in another pid namespace.
    pub pid: u32,
}

impl Caller {
    /// Supplementary groups do not travel with requests; they are read from the process, which is slow and therefore only for rare questions.
    pub fn is_in_group(&self, gid: u32) -> bool {
        if self.gid == gid {
            return true;
        }
        let status = sys_home::read_kernel_file(&format!("/proc/{}/status", self.pid)).unwrap_or_default();
        let groups = status.lines().find_map(|line| line.strip_prefix("Groups:")).unwrap_or_default();
        groups.split_whitespace().any(|group| group.parse() == Ok(gid))
    }
}

/// Whom the daemon itself runs as.
#[derive(Clone, Copy, Debug)]
pub struct Daemon {
    pub uid: u32,
    pub gid: u32,
    /// May take on the ids of others.
    pub privileged: bool,
}

impl Daemon {
    pub fn current() -> Daemon {
        let uid = nix::unistd::geteuid();
        Daemon { uid: uid.as_raw(), gid: nix::unistd::getegid().as_raw(), privileged: uid.is_root() }
    }
}

thread_local! {
    /// Whether this thread has an umask of its own.
    static OWN_UMASK: Cell<bool> = const { Cell::new(false) };
}

/// While this lives, the thread creates as the caller. Not to be held across anything but the creating call: the engine writes its
/// own files on these threads, too.
pub struct Acting {
    daemon: Daemon,
    switched: bool,
    previous_umask: Option<Mode>,
    /// Thread state must be restored on the thread that changed it.
    _not_send: PhantomData<*const ()>,
}

impl Acting {
    /// The guard, and the mode to create with.
    pub fn begin(daemon: Daemon, caller: Caller, mode: u32, mask: u32) -> (Acting, u32) {
        let previous_umask = has_own_umask().then(|| umask(Mode::from_bits_truncate(mask & 0o777)));
        let mode = if previous_umask.is_some() { mode } else { mode & !(mask & 0o777) };
        let switched = daemon.privileged && (caller.uid != daemon.uid || caller.gid != daemon.gid);
        if switched {
            sys_home::set_thread_ids(caller.uid, caller.gid);
            if caller.uid != 0 && sys_home::regain_capabilities().is_err() {
                tracing::warn!("cannot keep capabilities while acting as user {}", caller.uid);
            }
        }
        (Acting { daemon, switched, previous_umask, _not_send: PhantomData }, mode)
    }
}

impl Drop for Acting {
    fn drop(&mut self) {
        if self.switched {
            sys_home::set_thread_ids(self.daemon.uid, self.daemon.gid);
        }
        if let Some(previous) = self.previous_umask {
            umask(previous);
        }
    }
}

/// False where the system refuses: then the umask is applied by hand, and default ACLs are masked by it as well.
fn has_own_umask() -> bool {
    OWN_UMASK.with(|own| {
        if !own.get() {
            own.set(unshare(CloneFlags::CLONE_FS).is_ok());
        }
        own.get()
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The guard must give the thread back as it was, or the engine's next file would belong to some user.
    #[test]
    fn acting_as_the_caller_ends_with_the_guard() {
        let daemon = Daemon::current();
        if !daemon.privileged {
            eprintln!("not run: acting as another user needs root");
            return;
        }
        std::thread::spawn(move || {
            let before = umask(Mode::from_bits_truncate(0o022));
            umask(before);
            let (acting, mode) = Acting::begin(daemon, Caller { uid: 12, gid: 34, pid: 0 }, 0o666, 0o027);
            assert_eq!((sys_home::thread_uid(), mode), (12, 0o666));
            drop(acting);
            assert_eq!(sys_home::thread_uid(), daemon.uid);
            assert_eq!(umask(before), before);
        })
        .join()
        .unwrap();
    }
}

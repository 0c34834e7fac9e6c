//! From the library's errors to the numbers that applications see.

use crate::error::Error;
use crate::namespace::Fault;

/// What the application was doing: a read-only volume answers writers and syncers differently.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Doing {
    Reading,
    Changing,
    Syncing,
}

/// The errno for a refusal. What the backing devices or the engine's structures did wrong is logged here, once.
pub fn errno(fault: &Fault, doing: Doing) -> i32 {
    match fault {
        Fault::Home(errno) => *errno as i32,
        Fault::Engine(error) => of_engine(error, doing),
    }
}

fn of_engine(error: &Error, doing: Doing) -> i32 {
    let number = match error {
        Error::Io { source, .. } => source.raw_os_error().unwrap_or(libc::EIO),
        Error::Corrupt { .. } | Error::WrongTier { .. } | Error::State { .. } | Error::Untrusted { .. } => libc::EIO,
        // Whatever kept the repository from being read (it may be gone, ENOENT): the file is there.
        Error::Source { .. } | Error::SnapshotFailed { .. } | Error::Unfinished { .. } => libc::EIO,
        Error::ReadOnly { .. } => match doing {
            Doing::Changing => libc::EROFS,
            // What was written before cannot become durable any more: the caller must not take this for a property of the mount.
            Doing::Syncing | Doing::Reading => libc::EIO,
        },
        Error::NoSpace => libc::ENOSPC,
        // Both only where waiting was allowed and has ended: the log could not be drained.
        Error::LogFull => libc::ENOSPC,
        Error::WouldWait => libc::EAGAIN,
        Error::Invalid(_) => libc::EINVAL,
        Error::Busy(_) | Error::Overtaken(_) => libc::EBUSY,
        Error::NotFound(_) => libc::ENOENT,
    };
    if number == libc::EIO || doing == Doing::Syncing {
        tracing::error!("{error}");
    }
    number
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::errno::Errno;

    #[test]
    fn a_read_only_volume_refuses_writes_and_fails_syncs() {
        let read_only = || Fault::Engine(Error::ReadOnly { why: "test".to_owned() });
        assert_eq!(errno(&read_only(), Doing::Changing), libc::EROFS);
        assert_eq!(errno(&read_only(), Doing::Syncing), libc::EIO);
        assert_eq!(errno(&Fault::Home(Errno::ENOTEMPTY), Doing::Changing), libc::ENOTEMPTY);
    }
}

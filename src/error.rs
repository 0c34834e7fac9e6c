//! The one error type of the library. Each variant names what happened and where; `fuse` maps it to an errno with
//! an exhaustive match, the command line prints its one line.

use crate::units::FileId;
use std::io;
use thiserror::Error;

pub type Result<T> = std::result::Result<T, Error>;

#[derive(Debug, Error)]
pub enum Error {
    /// A system call on a backing path failed.
    #[error("{action} {path}: {source}")]
    Io {
        action: &'static str,
        path: String,
        #[source]
        source: io::Error,
    },
    /// Bytes on disk do not decode or do not match their checksum.
    #[error("corrupt {what} in {path} at offset {offset}: {why}")]
    Corrupt { what: &'static str, path: String, offset: u64, why: String },
    /// A tier path is missing, foreign, swapped or stale (I7).
    #[error("tier `{tier}` at {path}: {why}")]
    WrongTier { tier: String, path: String, why: String },
    /// The log failed; the volume accepts nothing more until it is mounted again (I5).
    #[error("volume is read-only since a log failure: {why}")]
    ReadOnly { why: String },
    /// No tier has room for new blocks (I10).
    #[error("no space left on any tier")]
    NoSpace,
    /// The log has no room at this moment; the caller may wait.
    #[error("the write log is full")]
    LogFull,
    /// A snapshot in the making was given up: the engine says why.
    #[error("the snapshot was given up: {why}")]
    SnapshotFailed { why: String },
    /// A snapshot's moment is over and kept, but not in the repository yet.
    #[error("the snapshot is taken, but not stored yet: {why}. What it needs is kept, and storing it is tried again")]
    Unfinished { why: String },
    /// The call would have to wait for a slow device or for log space; call again where waiting is allowed.
    #[error("would wait")]
    WouldWait,
    /// This file may not be touched: its identity or content was changed behind the mount (R10, R13).
    #[error("file {file}: {why}")]
    Untrusted { file: FileId, why: String },
    /// Bytes of a file that are in a repository still, and cannot be read there.
    #[error("file {file}, bytes {start} to {end}, which are in the repository: {cause}")]
    Source { file: FileId, start: u64, end: u64, cause: Box<Error> },
    /// A request that makes no sense: the text names the argument, the value, and what is allowed.
    #[error("{0}")]
    Invalid(String),
    /// The volume is in use, or something is in use that must not be.
    #[error("{0}")]
    Busy(String),
    /// Work on a repository was overtaken by a prune or fenced; what it wrote is void: start again.
    #[error("{0}")]
    Overtaken(String),
    /// The thing asked for is not there.
    #[error("{0}")]
    NotFound(String),
    /// The state database refused.
    #[error("state database {path}: {why}")]
    State { path: String, why: String },
}

impl Error {
    pub fn io(action: &'static str, path: impl Into<String>, source: io::Error) -> Error {
        Error::Io { action, path: path.into(), source }
    }

    /// The same failure for another caller: what is tried again later, or at once, stays what it is, anything else keeps its words.
    pub fn repeated(&self) -> Error {
        match self {
            Error::Io { action, path, source } => {
                let source = source
                    .raw_os_error()
                    .map_or_else(|| io::Error::new(source.kind(), source.to_string()), io::Error::from_raw_os_error);
                Error::Io { action, path: path.clone(), source }
            }
            Error::Overtaken(why) => Error::Overtaken(why.clone()),
            other => Error::Invalid(other.to_string()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_is_tried_again_like_the_first() {
        let full = Error::io("write", "/repo/packs/1", io::Error::from_raw_os_error(libc::ENOSPC));
        let again = full.repeated();
        assert!(matches!(&again, Error::Io { source, .. } if source.raw_os_error() == Some(libc::ENOSPC)), "{again}");
        assert_eq!(again.to_string(), full.to_string());
        let own = Error::io("write", "/repo/packs/1", io::Error::other("half of it")).repeated();
        assert!(matches!(&own, Error::Io { source, .. } if source.to_string() == "half of it"), "{own}");
        assert!(matches!(Error::Overtaken("a prune".to_owned()).repeated(), Error::Overtaken(_)));
    }
}

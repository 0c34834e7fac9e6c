//! Who follows a long job.

use crate::error::Result;

/// How far a job is. Totals are 0 while they are not known.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Progress {
    pub files_done: u64,
    pub files: u64,
    pub bytes_done: u64,
    pub bytes: u64,
}

/// Told what a job does.
pub trait Watch {
    /// A new part of the job begins: one line for people.
    fn begin(&mut self, _what: &str) {}
    fn progress(&mut self, _progress: Progress) {}
    /// Called before each single change on disk. An error stops the job there; every such place is one where it may be cut off.
    fn step(&mut self, _what: &'static str) -> Result<()> {
        Ok(())
    }
}

/// Follows nothing.
impl Watch for () {}

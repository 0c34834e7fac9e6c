//! Identities and units that every room shares: the bottom of the house.
//!
//! Ids are newtypes, so that a file id can never be passed for a block number; quantities carry their unit in
//! the name. Nothing here does I/O or holds state.

use serde::{Deserialize, Serialize};
use std::fmt;

/// Smallest unit of device I/O and of log payload alignment, in bytes.
pub const PAGE_BYTES: u64 = 4096;
/// [`PAGE_BYTES`] for indexing in memory.
pub const PAGE: usize = 4096;
/// Default unit of placement, in bytes.
pub const DEFAULT_BLOCK_BYTES: u32 = 64 * 1024;

/// A regular file of a volume: issued once, never reused, independent of path and inode number.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct FileId(pub u64);

/// Index of a block (the unit of placement) within its file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct BlockNo(pub u64);

/// A tier of the volume: 0 is the fastest. At most [`TierId::MAX_TIERS`].
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Serialize, Deserialize)]
pub struct TierId(pub u8);

impl TierId {
    /// A location is stored in four bits, of which 0 says "hole".
    pub const MAX_TIERS: usize = 14;
    pub const FASTEST: TierId = TierId(0);
    pub fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// Log sequence number: the virtual byte address of a record header in the log.
/// Address = segment sequence number x segment bytes + offset, so it grows for ever and also says where to read.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct Lsn(pub u64);

/// Wall-clock time in nanoseconds since the epoch (negative before 1970).
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default, Serialize, Deserialize)]
pub struct WallNs(pub i64);

impl fmt::Display for FileId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:016x}", self.0)
    }
}
impl fmt::Display for BlockNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for TierId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}
impl fmt::Display for Lsn {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:#x}", self.0)
    }
}

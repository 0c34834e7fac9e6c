//! What requests and answers look like in memory: the few that are served here. Source: `include/uapi/linux/fuse.h`.

use super::super::adapter::{BLOCK_BYTES, TTL};
use crate::namespace::Attributes;
use zerocopy::{FromBytes, Immutable, IntoBytes, KnownLayout};

pub const LOOKUP: u32 = 1;
pub const GETATTR: u32 = 3;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const RELEASE: u32 = 18;
pub const FSYNC: u32 = 20;

/// `FUSE_INIT_EXT` of the first flags: there are second ones.
const INIT_EXTENDED: u32 = 1 << 30;
/// `FUSE_OVER_IO_URING`, of the second flags.
const OVER_IO_URING: u32 = 1 << 9;
/// `FUSE_WRITE_KILL_SUIDGID`
pub const WRITE_KILLS_PRIVILEGES: u32 = 1 << 2;

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
pub struct InHeader {
    /// Of all of the request, this header included.
    pub length: u32,
    pub opcode: u32,
    pub unique: u64,
    pub node: u64,
    pub uid: u32,
    pub gid: u32,
    pub pid: u32,
    pub extensions_and_padding: u32,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
pub struct OutHeader {
    pub length: u32,
    /// 0, or the negative of an errno.
    pub error: i32,
    pub unique: u64,
}

/// Of READ and of WRITE.
#[derive(FromBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
pub struct Transfer {
    pub handle: u64,
    pub offset: u64,
    pub size: u32,
    pub transfer_flags: u32,
    pub lock_owner: u64,
    pub open_flags: u32,
    pub padding: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Written {
    pub size: u32,
    pub padding: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct Opened {
    pub handle: u64,
    pub flags: u32,
    pub backing: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
struct Attr {
    inode: u64,
    size: u64,
    blocks: u64,
    seconds: [i64; 3],
    nanoseconds: [u32; 3],
    mode: u32,
    links: u32,
    uid: u32,
    gid: u32,
    device: u32,
    block_bytes: u32,
    flags: u32,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct AttrOut {
    valid_seconds: u64,
    valid_nanoseconds: u32,
    padding: u32,
    attr: Attr,
}

#[derive(IntoBytes, Immutable)]
#[repr(C)]
pub struct EntryOut {
    node: u64,
    generation: u64,
    entry_valid_seconds: u64,
    attr_valid_seconds: u64,
    entry_valid_nanoseconds: u32,
    attr_valid_nanoseconds: u32,
    attr: Attr,
}

#[derive(FromBytes, IntoBytes, KnownLayout, Immutable, Clone, Copy)]
#[repr(C)]
struct InitOut {
    version: [u32; 2],
    max_readahead: u32,
    flags: u32,
    background: [u16; 2],
    max_write: u32,
    time_granularity: u32,
    max_pages: u16,
    map_alignment: u16,
    flags2: u32,
    rest: [u32; 7],
}

impl From<&Attributes> for Attr {
    fn from(attributes: &Attributes) -> Attr {
        let times = [attributes.access, attributes.modification, attributes.change];
        Attr {
            inode: attributes.inode,
            size: attributes.size_bytes,
            blocks: attributes.blocks_512,
            seconds: times.map(|time| time.seconds),
            nanoseconds: times.map(|time| time.nanoseconds),
            mode: attributes.mode,
            links: attributes.links,
            uid: attributes.uid,
            gid: attributes.gid,
            device: attributes.device,
            block_bytes: BLOCK_BYTES,
            flags: 0,
        }
    }
}

impl From<&Attributes> for AttrOut {
    fn from(attributes: &Attributes) -> AttrOut {
        AttrOut { valid_seconds: TTL.as_secs(), valid_nanoseconds: 0, padding: 0, attr: attributes.into() }
    }
}

impl From<&Attributes> for EntryOut {
    fn from(attributes: &Attributes) -> EntryOut {
        EntryOut {
            node: attributes.inode,
            generation: 0,
            entry_valid_seconds: TTL.as_secs(),
            attr_valid_seconds: TTL.as_secs(),
            entry_valid_nanoseconds: 0,
            attr_valid_nanoseconds: 0,
            attr: attributes.into(),
        }
    }
}

/// The header of a message as it is read from the kernel, and what follows.
pub fn split_request(message: &[u8]) -> Option<(InHeader, &[u8])> {
    InHeader::read_from_prefix(message).ok()
}

pub fn split_answer(message: &[u8]) -> Option<(OutHeader, &[u8])> {
    OutHeader::read_from_prefix(message).ok()
}

/// Says in an answer to INIT that requests may come over io_uring. Tells the largest payload of a request then, in bytes; None if this is no answer that can take it.
pub fn take_uring(init: &mut [u8]) -> Option<usize> {
    let (out, _) = InitOut::mut_from_prefix(init).ok()?;
    out.flags |= INIT_EXTENDED;
    out.flags2 |= OVER_IO_URING;
    let pages = u32::from(out.max_pages) * 4096;
    usize::try_from(pages.max(out.max_write).max(8192)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layouts_are_those_of_the_kernel() {
        let sizes = [size_of::<InHeader>(), size_of::<OutHeader>(), size_of::<Transfer>(), size_of::<Written>()];
        assert_eq!(sizes, [40, 16, 40, 8]);
        let sizes = [size_of::<Opened>(), size_of::<AttrOut>(), size_of::<EntryOut>(), size_of::<InitOut>()];
        assert_eq!(sizes, [16, 104, 128, 64]);
    }

    #[test]
    fn an_answer_to_init_takes_io_uring() {
        let mut answer = [0_u8; 64];
        answer[20..24].copy_from_slice(&(1_u32 << 20).to_ne_bytes());
        assert_eq!(take_uring(&mut answer), Some(1 << 20));
        assert_eq!(answer[12..16], INIT_EXTENDED.to_ne_bytes());
        assert_eq!(answer[32..36], OVER_IO_URING.to_ne_bytes());
        assert_eq!(take_uring(&mut answer[..24]), None);
    }
}

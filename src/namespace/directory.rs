//! Directory streams of home: entries with the backing filesystem's own cookies, so that a stream can go on after entries came and went.

use super::node::Node;
use crate::device::sys_home;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::Mode;
use nix::unistd::{Whence, lseek64};
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::ffi::{OsStr, OsString};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::sync::Arc;

/// One entry. `cookie` is the position *after* it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Entry {
    pub inode: u64,
    pub cookie: i64,
    /// DT_* of dirent(5); DT_UNKNOWN where the backing does not tell.
    pub kind: u8,
    pub name: OsString,
}

impl Entry {
    pub fn is_dot(&self) -> bool {
        self.name == "." || self.name == ".."
    }
}

const BATCH_BYTES: usize = 32 * 1024;
/// Offsets of `linux_dirent64`: inode, cookie, record length, type, name.
const COOKIE_AT: usize = 8;
const LENGTH_AT: usize = 16;
const KIND_AT: usize = 18;
const NAME_AT: usize = 19;

/// An open directory. A descriptor is held only between the first entry and the last: programs keep thousands of directories open just to
/// come back to them.
pub struct Stream {
    node: Arc<Node>,
    at: Mutex<Position>,
}

/// Where the stream stands: entries read but not handed out, and the cookie before them.
#[derive(Default)]
struct Position {
    listing: Option<OwnedFd>,
    next: i64,
    ready: VecDeque<Entry>,
}

impl Position {
    /// Reads the next batch; false at the end.
    fn fill(&mut self, node: &Node) -> nix::Result<bool> {
        let listing = match self.listing.take() {
            Some(listing) => listing,
            None => {
                let listing = open_entries(node.fd()?)?;
                lseek64(&listing, self.next, Whence::SeekSet)?;
                listing
            }
        };
        let mut buf = vec![0; BATCH_BYTES];
        let filled = sys_home::read_entries(&listing, &mut buf)?;
        parse(&buf[..filled], &mut self.ready);
        if filled > 0 {
            self.listing = Some(listing);
        }
        Ok(filled > 0)
    }
}

impl Stream {
    pub fn new(node: Arc<Node>) -> Stream {
        Stream { node, at: Mutex::default() }
    }

    /// Hands entries from `cookie` on (0: the start) to `take` until it says that it has no room (false; that entry comes again) or the directory ends.
    pub fn read(&self, cookie: i64, mut take: impl FnMut(&Entry) -> bool) -> nix::Result<()> {
        let mut at = self.at.lock();
        if at.next != cookie || cookie == 0 {
            *at = Position { next: cookie, ..Position::default() };
        }
        loop {
            while let Some(entry) = at.ready.front() {
                if !take(entry) {
                    return Ok(());
                }
                at.next = entry.cookie;
                at.ready.pop_front();
            }
            if !at.fill(&self.node)? {
                return Ok(());
            }
        }
    }

    pub(super) fn node(&self) -> &Node {
        &self.node
    }
}

/// A directory's own descriptor for listing it.
pub fn open_entries(directory: impl AsFd) -> nix::Result<OwnedFd> {
    openat(directory, c".", OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
}

/// All entries of an open directory but `.` and `..`.
pub fn entries(fd: impl AsFd) -> nix::Result<Vec<Entry>> {
    let mut all = VecDeque::new();
    let mut buf = vec![0; BATCH_BYTES];
    lseek64(&fd, 0, Whence::SeekSet)?;
    loop {
        match sys_home::read_entries(&fd, &mut buf)? {
            0 => break,
            filled => parse(&buf[..filled], &mut all),
        }
    }
    all.retain(|entry| !entry.is_dot());
    Ok(all.into())
}

fn parse(mut bytes: &[u8], into: &mut VecDeque<Entry>) {
    while let (Some(inode), Some(cookie), Some(length)) =
        (word(bytes, 0), word(bytes, COOKIE_AT), bytes.get(LENGTH_AT..KIND_AT))
    {
        let length = usize::from(u16::from_ne_bytes([length[0], length[1]]));
        let Some(record) = bytes.get(..length).filter(|record| record.len() > NAME_AT) else { break };
        let name = &record[NAME_AT..];
        let name = &name[..name.iter().position(|byte| *byte == 0).unwrap_or(name.len())];
        into.push_back(Entry {
            inode: u64::from_ne_bytes(inode),
            cookie: i64::from_ne_bytes(cookie),
            kind: record[KIND_AT],
            name: OsStr::from_bytes(name).to_owned(),
        });
        bytes = &bytes[length..];
    }
}

fn word(bytes: &[u8], at: usize) -> Option<[u8; 8]> {
    bytes.get(at..at + 8)?.try_into().ok()
}

/// Home's answer to a name that must be one component of a path.
pub fn check_component(name: &OsStr) -> nix::Result<()> {
    match name.as_bytes() {
        b"" | b"." | b".." => Err(Errno::EINVAL),
        bytes if bytes.contains(&b'/') => Err(Errno::EINVAL),
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::namespace::descriptors::{Budget, Descriptor};
    use crate::namespace::node::{Content, ROOT_INODE};
    use nix::fcntl::open;

    #[test]
    fn a_stream_goes_on_from_any_cookie() {
        let scratch = tempfile::tempdir().unwrap();
        for at in 0..2000 {
            std::fs::write(scratch.path().join(format!("name-{at:04}-{}", "x".repeat(at % 40))), b"").unwrap();
        }
        let fd = open(scratch.path(), OFlag::O_RDONLY | OFlag::O_DIRECTORY, Mode::empty()).unwrap();
        let listing = open_entries(&fd).unwrap();
        let descriptor = Descriptor::new(Arc::new(Budget::new(listing)), fd);
        let stream = Stream::new(Arc::new(Node::new(ROOT_INODE, descriptor, Content::Home, None)));
        let (mut seen, mut cookie) = (Vec::new(), 0);
        loop {
            let mut room = 7;
            let before = seen.len();
            stream
                .read(cookie, |entry| {
                    if room == 0 {
                        return false;
                    }
                    room -= 1;
                    cookie = entry.cookie;
                    seen.push(entry.name.clone());
                    true
                })
                .unwrap();
            if seen.len() == before {
                break;
            }
        }
        assert_eq!(seen.len(), 2002);
        seen.sort();
        seen.dedup();
        assert_eq!(seen.len(), 2002);
        let mut first = Vec::new();
        stream
            .read(0, |entry| {
                first.push(entry.name.clone());
                first.len() < 3
            })
            .unwrap();
        assert_eq!(first.len(), 3, "a rewound stream starts again");
        assert_eq!(entries(open_entries(stream.node.fd().unwrap()).unwrap()).unwrap().len(), 2000);
        assert!(stream.at.lock().listing.is_some());
        stream.read(0, |_| true).unwrap();
        assert!(stream.at.lock().listing.is_none(), "a stream read to its end holds no descriptor");
    }
}

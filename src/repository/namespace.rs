//! Names of a snapshot: what a directory tree was, without the bytes of its files.
//!
//! A table whose keys are paths with zero bytes for slashes, so that everything below a directory follows it at once, and that keys sort by
//! components. The root directory has the empty key. Values are postcard of [`Entry`]. A directory that did not change is the same run of keys
//! and values, hence the same nodes.

use super::ids::ObjectRef;
use super::table::{self, Cursor, NodeSource, TableBuilder};
use crate::error::{Error, Result};
use crate::ondisk::bytes::Malformed;
use crate::units::{FileId, WallNs};
use serde::{Deserialize, Serialize};

/// What a name leads to.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum EntryKind {
    /// Names with the same file are hard links of each other. The content is found by the file, in the table of files.
    File {
        file: FileId,
    },
    Directory,
    /// The target may be any bytes but zero.
    Symlink {
        target: Vec<u8>,
    },
    CharDevice {
        rdev: u64,
    },
    BlockDevice {
        rdev: u64,
    },
    Fifo,
    Socket,
}

/// One name with its attributes.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Entry {
    pub kind: EntryKind,
    /// Permission bits, with setuid, setgid and sticky; not the type.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub atime: WallNs,
    pub mtime: WallNs,
    pub ctime: WallNs,
    /// Names and values, in order of names; ACLs are among them, as the kernel stores them.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Identity of a hard link that is no regular file: names with the same number are one thing. 0: no other name.
    pub link: u64,
}

/// Takes the names of a snapshot, in order of paths: a directory comes before what it contains, siblings ascend by bytes.
pub struct NamespaceWriter<'a> {
    table: TableBuilder<'a>,
    files: Vec<FileId>,
}

impl<'a> NamespaceWriter<'a> {
    pub(super) fn new(sink: &'a dyn table::NodeSink) -> NamespaceWriter<'a> {
        NamespaceWriter { table: TableBuilder::new(sink), files: Vec::new() }
    }

    /// `path` is relative to the root of the volume, with slashes; empty for the root itself.
    pub fn add(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        let shown = || String::from_utf8_lossy(path).into_owned();
        let wrong = |e: postcard::Error| Error::Invalid(format!("cannot encode the entry of `{}`: {e}", shown()));
        let value = postcard::to_stdvec(entry).map_err(wrong)?;
        if let EntryKind::File { file } = entry.kind {
            self.files.push(file);
        }
        self.table.push(&key(path)?, &value)
    }

    pub(super) fn finish(self) -> Result<Names> {
        let mut files = self.files;
        files.sort_unstable();
        files.dedup();
        Ok(Names { entries: self.table.entries, root: self.table.finish()?, files })
    }
}

/// A finished namespace.
pub struct Names {
    pub(super) root: Option<ObjectRef>,
    pub(super) entries: u64,
    /// All regular files, ascending.
    pub(super) files: Vec<FileId>,
}

fn key(path: &[u8]) -> Result<Vec<u8>> {
    let proper = |name: &[u8]| !name.is_empty() && name != b"." && name != b".." && !name.contains(&0);
    if !path.is_empty() && !path.split(|byte| *byte == b'/').all(proper) {
        return Err(Error::Invalid(format!("`{}` is no path within a volume", String::from_utf8_lossy(path))));
    }
    Ok(path.iter().map(|byte| if *byte == b'/' { 0 } else { *byte }).collect())
}

pub(super) fn path_of(key: &[u8]) -> Vec<u8> {
    key.iter().map(|byte| if *byte == 0 { b'/' } else { *byte }).collect()
}

pub(super) fn decode(source: &dyn NodeSource, root: &ObjectRef, value: &[u8]) -> Result<Entry> {
    postcard::from_bytes(value).map_err(|_| source.malformed(root, Malformed("an entry that does not decode")))
}

pub(super) fn lookup(source: &dyn NodeSource, root: Option<&ObjectRef>, path: &[u8]) -> Result<Option<Entry>> {
    let value = table::get(source, root, &key(path)?)?;
    root.zip(value).map(|(root, value)| decode(source, root, &value)).transpose()
}

/// Walks names in order of paths.
pub struct Walk<'a> {
    source: &'a dyn NodeSource,
    root: Option<ObjectRef>,
    cursor: Cursor<'a>,
    /// Keys must begin with this.
    below: Vec<u8>,
    only_children: bool,
}

impl<'a> Walk<'a> {
    /// Everything below a directory, or only what is in it. The directory itself is not among it.
    pub(super) fn new(
        source: &'a dyn NodeSource,
        root: Option<ObjectRef>,
        dir: &[u8],
        only_children: bool,
    ) -> Result<Walk<'a>> {
        let mut below = key(dir)?;
        if !below.is_empty() {
            below.push(0);
        }
        let from = if below.is_empty() { vec![1] } else { below.clone() };
        Ok(Walk { source, root, cursor: Cursor::seek(source, root.as_ref(), &from)?, below, only_children })
    }

    /// The next path and its entry.
    #[expect(
        clippy::should_implement_trait,
        reason = "each step may fail; an iterator of results would go on after an error"
    )]
    pub fn next(&mut self) -> Result<Option<(Vec<u8>, Entry)>> {
        loop {
            let (Some(root), Some((key, value))) = (self.root, self.cursor.next()?) else { return Ok(None) };
            let Some(rest) = key.strip_prefix(self.below.as_slice()) else { return Ok(None) };
            if self.only_children
                && let Some(end) = rest.iter().position(|byte| *byte == 0)
            {
                // Below a child: go on behind all of it.
                let mut behind = key[..self.below.len() + end].to_vec();
                behind.push(1);
                self.cursor = Cursor::seek(self.source, self.root.as_ref(), &behind)?;
                continue;
            }
            return Ok(Some((path_of(&key), decode(self.source, &root, &value)?)));
        }
    }
}

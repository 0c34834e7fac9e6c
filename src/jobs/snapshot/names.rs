//! The names of a snapshot: the namespace's image, as the repository keeps it.

use super::pages::PageFiles;
use crate::error::{Error, Result};
use crate::repository::{self, Entry, EntryKind, NamespaceWriter, Writer};
use crate::units::{FileId, WallNs};
use crate::volume::{FileAt, Mark};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

/// An inode as of the moment: everything but its names. Of a regular file size and the time of the last write are the engine's to tell.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inode {
    /// The same for all names of one inode.
    pub number: u64,
    /// Type and permission bits.
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub access: WallNs,
    pub modification: WallNs,
    /// Of a device node.
    pub device: u64,
    /// Where a symbolic link leads.
    pub target: Option<Vec<u8>>,
    /// Attributes and ACLs, sorted by name, without ours.
    pub xattrs: Vec<(Vec<u8>, Vec<u8>)>,
    /// Of a regular file, or why its identity does not count (R10).
    pub file: Option<std::result::Result<FileId, String>>,
}

impl Inode {
    pub fn is_directory(&self) -> bool {
        self.mode & libc::S_IFMT == libc::S_IFDIR
    }
}

/// One name met by [`Moment::walk`].
pub struct ImageEntry<'a> {
    /// From the volume's root, without a leading slash; empty for the root itself. Bytes: names need not be text.
    pub path: &'a [u8],
    pub inode: &'a Inode,
}

/// A namespace that goes on changing, and can be walked as of one moment. It lies in a room above.
pub trait Names: Sync {
    /// Prepares for the moment. Errors: `Busy` while another one is being walked.
    fn begin(&self) -> Result<Box<dyn Moment>>;
}

/// The namespace of one moment (R17).
pub trait Moment {
    /// The moment is while `mark` runs.
    fn take(&self, mark: &dyn Fn() -> Result<Arc<Mark>>) -> Result<Arc<Mark>>;
    /// Visits the root and everything below, a directory before its entries, entries by name (as bytes). After the moment.
    fn walk(&self, visit: &mut dyn FnMut(&ImageEntry<'_>) -> Result<()>) -> Result<()>;
}

/// What the names of a snapshot come to: the repository's own table of them, and the files that they lead to, each once.
pub(super) struct Listing<'a> {
    names: NamespaceWriter<'a>,
    files: &'a HashMap<FileId, FileAt>,
    /// Takes note of the files that it wants to look at.
    pages: PageFiles,
    listed: HashSet<FileId>,
    named: Vec<FileAt>,
}

/// All names of a snapshot, written.
pub(super) struct Listed {
    pub names: repository::Names,
    pub files: Vec<FileAt>,
    pub pages: PageFiles,
}

impl<'a> Listing<'a> {
    /// `files`: those that the volume knows as of the mark.
    pub fn new(writer: &'a Writer<'_>, files: &'a HashMap<FileId, FileAt>) -> Listing<'a> {
        let (pages, listed, named) = (PageFiles::default(), HashSet::new(), Vec::new());
        Listing { names: writer.namespace(), files, pages, listed, named }
    }

    /// The next name, in order of paths.
    pub fn add(&mut self, path: &[u8], entry: &Entry) -> Result<()> {
        if let EntryKind::File { file } = entry.kind
            && self.listed.insert(file)
        {
            self.pages.meet(path, file);
            // Without a row it was made and never written.
            self.named.push(self.files.get(&file).cloned().unwrap_or(FileAt { file, size_bytes: 0, mtime: None }));
        }
        self.names.add(path, entry)
    }

    pub fn finish(self, writer: &Writer<'_>) -> Result<Listed> {
        Ok(Listed { names: writer.end_namespace(self.names)?, files: self.named, pages: self.pages })
    }
}

/// Walks the names of the moment.
pub(super) fn walk(
    moment: &dyn Moment,
    files: &HashMap<FileId, FileAt>,
    visit: &mut dyn FnMut(&[u8], &Entry) -> Result<()>,
) -> Result<()> {
    moment.walk(&mut |met| visit(met.path, &entry_of(met, files)?))
}

fn entry_of(met: &ImageEntry<'_>, files: &HashMap<FileId, FileAt>) -> Result<Entry> {
    let inode = met.inode;
    let (access, modification) = (inode.access, inode.modification);
    let kind = kind_of(met)?;
    let written = match kind {
        EntryKind::File { file } => files.get(&file).and_then(|file| file.mtime),
        _ => None,
    };
    let mtime: WallNs = written.unwrap_or(modification);
    Ok(Entry {
        // Listing a directory changes its access time: with it every snapshot would differ from the last.
        atime: if kind == EntryKind::Directory { modification } else { access },
        kind,
        mode: inode.mode & 0o7777,
        uid: inode.uid,
        gid: inode.gid,
        mtime,
        ctime: mtime,
        xattrs: inode.xattrs.clone(),
        link: 0,
    })
}

fn kind_of(met: &ImageEntry<'_>) -> Result<EntryKind> {
    let inode = met.inode;
    let path = || String::from_utf8_lossy(met.path).into_owned();
    Ok(match inode.mode & libc::S_IFMT {
        libc::S_IFREG => match &inode.file {
            Some(Ok(file)) => EntryKind::File { file: *file },
            Some(Err(why)) => return Err(Error::Untrusted { file: FileId(0), why: format!("{}: {why}", path()) }),
            None => return Err(Error::Untrusted { file: FileId(0), why: format!("{}: it has no identity", path()) }),
        },
        libc::S_IFDIR => EntryKind::Directory,
        libc::S_IFLNK => EntryKind::Symlink { target: inode.target.clone().unwrap_or_default() },
        libc::S_IFCHR => EntryKind::CharDevice { rdev: inode.device },
        libc::S_IFBLK => EntryKind::BlockDevice { rdev: inode.device },
        libc::S_IFIFO => EntryKind::Fifo,
        libc::S_IFSOCK => EntryKind::Socket,
        other => return Err(Error::Invalid(format!("{}: a file of an unknown type ({other:o})", path()))),
    })
}

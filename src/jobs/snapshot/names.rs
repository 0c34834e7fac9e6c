//! The names of a snapshot: the namespace's image, as the repository keeps it.

use crate::error::{Error, Result};
use crate::namespace::{Image, ImageEntry};
use crate::repository::{Entry, EntryKind, Names, Writer};
use crate::units::{FileId, WallNs};
use crate::volume::FileAt;
use std::collections::{HashMap, HashSet};

/// Writes all names, and lists the files that they lead to, each once.
pub(super) fn write(
    image: &Image,
    writer: &Writer<'_>,
    files: &HashMap<FileId, FileAt>,
) -> Result<(Names, Vec<FileAt>)> {
    let mut names = writer.namespace();
    let mut listed: HashSet<FileId> = HashSet::new();
    let mut named = Vec::new();
    image.walk(&mut |met| {
        let entry = entry_of(met, files)?;
        if let EntryKind::File { file } = entry.kind
            && listed.insert(file)
        {
            // Without a row it was made and never written.
            named.push(files.get(&file).cloned().unwrap_or(FileAt { file, size_bytes: 0, mtime: None }));
        }
        names.add(met.path, &entry)
    })?;
    Ok((writer.end_namespace(names)?, named))
}

fn entry_of(met: &ImageEntry<'_>, files: &HashMap<FileId, FileAt>) -> Result<Entry> {
    let inode = met.inode;
    let (access, modification) = (inode.access.to_wall(), inode.modification.to_wall());
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

//! Paths and files for those who are not the kernel: `explain`, `heat`, `check`, the jobs.

use super::directory::{check_component, entries, open_entries};
use super::{Namespace, read_identity};
use crate::error::{Error, Result};
use crate::units::FileId;
use crate::volume::File;
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{FileStat, Mode, fstat};
use std::ffi::OsStr;
use std::os::fd::OwnedFd;
use std::sync::Arc;

/// One inode of home met by [`Namespace::walk`].
pub struct Visit<'a> {
    /// Relative to the mount's root, without a leading slash.
    pub path: &'a str,
    /// Regular files: their id, or why their identity does not count. None for everything else.
    pub file: Option<std::result::Result<FileId, String>>,
    /// Home's own attributes; a regular file's size and times are the engine's to tell.
    pub stat: &'a FileStat,
}

const O_NODE: OFlag = OFlag::O_PATH.union(OFlag::O_NOFOLLOW).union(OFlag::O_CLOEXEC);

impl Namespace {
    /// The regular file at a path relative to the mount's root. Symbolic links are not followed. Errors: `NotFound`, `Invalid` for
    /// something that is no regular file or a path that leaves the root, `Untrusted`.
    pub fn file_at(&self, path: &str) -> Result<(FileId, Arc<File>)> {
        let io = |errno: Errno| match errno {
            Errno::ENOENT | Errno::ENOTDIR => Error::NotFound(format!("{path}: no such file in the volume")),
            other => Error::io("open", path, other.into()),
        };
        let mut fd = openat(self.root.fd().map_err(io)?, c".", O_NODE, Mode::empty()).map_err(io)?;
        for component in path.split('/').filter(|component| !component.is_empty() && *component != ".") {
            check_component(OsStr::new(component))
                .map_err(|_| Error::Invalid(format!("{path}: `{component}` is not allowed in a path")))?;
            fd = openat(&fd, component, O_NODE, Mode::empty()).map_err(io)?;
        }
        let stat = fstat(&fd).map_err(io)?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Error::Invalid(format!("{path}: not a regular file")));
        }
        let id = read_identity(&fd, self.volume_id, stat.st_ino)
            .map_err(|why| Error::Untrusted { file: FileId(0), why: format!("{path}: {why}") })?;
        Ok((id, self.volume.file(id)?))
    }

    /// Visits everything below the root, parents before children; a hard-linked file once per name. Entries that vanish meanwhile are passed over.
    pub fn walk(&self, visit: &mut dyn FnMut(&Visit) -> Result<()>) -> Result<()> {
        // Paths rather than descriptors wait here: a wide tree would exhaust descriptors.
        let mut todo = vec![String::new()];
        while let Some(directory) = todo.pop() {
            let io = |errno: Errno| Error::io("list", format!("{}/{directory}", self.tree_path), errno.into());
            let Some(opened) = present(self.open_path(&directory).and_then(open_entries)).map_err(io)? else {
                continue;
            };
            for entry in entries(&opened).map_err(io)? {
                let Some(fd) = present(openat(&opened, entry.name.as_os_str(), O_NODE, Mode::empty())).map_err(io)?
                else {
                    continue;
                };
                let stat = fstat(&fd).map_err(io)?;
                let name = entry.name.to_string_lossy();
                let path = if directory.is_empty() { name.into_owned() } else { format!("{directory}/{name}") };
                let kind = stat.st_mode & libc::S_IFMT;
                let file = (kind == libc::S_IFREG).then(|| read_identity(&fd, self.volume_id, stat.st_ino));
                visit(&Visit { path: &path, file, stat: &stat })?;
                if kind == libc::S_IFDIR {
                    todo.push(path);
                }
            }
        }
        Ok(())
    }

    fn open_path(&self, path: &str) -> nix::Result<OwnedFd> {
        let mut at = openat(self.root.fd()?, c".", O_NODE, Mode::empty())?;
        for component in path.split('/').filter(|component| !component.is_empty()) {
            at = openat(&at, component, O_NODE | OFlag::O_DIRECTORY, Mode::empty())?;
        }
        Ok(at)
    }
}

/// None for what vanished, or changed its type, between two looks.
fn present<T>(outcome: nix::Result<T>) -> nix::Result<Option<T>> {
    match outcome {
        Ok(value) => Ok(Some(value)),
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(None),
        Err(errno) => Err(errno),
    }
}

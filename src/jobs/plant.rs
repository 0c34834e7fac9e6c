//! Makes the names of a snapshot below a directory: of restores, and of the home of clones. Regular files are made empty; what they hold, and
//! what else the caller gives them, is the caller's.

use super::attributes::Attributes;
use crate::error::{Error, Result};
use crate::repository::{Entry, EntryKind};
use crate::units::FileId;
use nix::sys::stat::{Mode, SFlag, mknod};
use std::collections::HashMap;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

/// A regular file that was made: its attributes are given to it when it is filled.
pub(super) struct Planted {
    pub file: FileId,
    pub path: PathBuf,
    pub attributes: Attributes,
}

/// Makes names in the order of paths.
#[derive(Default)]
pub(super) struct Planter {
    /// Where each file has its first name.
    links: HashMap<FileId, PathBuf>,
    pub files: Vec<Planted>,
    directories: Vec<(PathBuf, Attributes)>,
}

/// What a snapshot says is a path must not lead out of the directory.
pub(super) fn safe(path: &[u8]) -> Result<&Path> {
    let path = Path::new(OsStr::from_bytes(path));
    let inside = path.components().all(|component| matches!(component, std::path::Component::Normal(_)));
    if inside {
        return Ok(path);
    }
    Err(Error::Invalid(format!("the snapshot names {}, which leads out of the directory", path.display())))
}

pub(super) fn attributes(entry: &Entry) -> Result<Attributes> {
    let is_link = matches!(entry.kind, EntryKind::Symlink { .. });
    Attributes::of(entry.mode, (entry.uid, entry.gid), (entry.atime, entry.mtime), is_link, &entry.xattrs)
}

impl Planter {
    /// A directory that is there already, and gets its attributes with the others.
    pub fn adopt_directory(&mut self, path: &Path, entry: &Entry) -> Result<()> {
        self.directories.push((path.to_owned(), attributes(entry)?));
        Ok(())
    }

    /// Where the file has its first name, if it has one.
    pub fn first_name(&self, file: FileId) -> Option<&Path> {
        self.links.get(&file).map(PathBuf::as_path)
    }

    /// A file that is there already: later names of it are links to this one.
    pub fn adopt_file(&mut self, file: FileId, path: &Path) {
        self.links.insert(file, path.to_owned());
    }

    pub fn make(&mut self, path: &Path, entry: &Entry) -> Result<()> {
        let io = |action, error| Error::io(action, path.display().to_string(), error);
        let attributes = attributes(entry)?;
        let node = |kind: SFlag, rdev: u64| {
            mknod(path, kind, Mode::from_bits_truncate(0o600), rdev).map_err(|errno| io("create", errno.into()))
        };
        match &entry.kind {
            EntryKind::Directory => {
                fs::DirBuilder::new().mode(0o700).create(path).map_err(|error| io("create", error))?;
                self.directories.push((path.to_owned(), attributes));
                return Ok(());
            }
            EntryKind::File { file } => {
                if let Some(first) = self.links.get(file) {
                    return fs::hard_link(first, path).map_err(|error| io("link", error));
                }
                File::options()
                    .write(true)
                    .create_new(true)
                    .mode(0o600)
                    .open(path)
                    .map_err(|error| io("create", error))?;
                self.links.insert(*file, path.to_owned());
                self.files.push(Planted { file: *file, path: path.to_owned(), attributes });
                return Ok(());
            }
            EntryKind::Symlink { target } => {
                std::os::unix::fs::symlink(OsStr::from_bytes(target), path).map_err(|error| io("create", error))?;
            }
            EntryKind::CharDevice { rdev } => node(SFlag::S_IFCHR, *rdev)?,
            EntryKind::BlockDevice { rdev } => node(SFlag::S_IFBLK, *rdev)?,
            EntryKind::Fifo => node(SFlag::S_IFIFO, 0)?,
            EntryKind::Socket => node(SFlag::S_IFSOCK, 0)?,
        }
        attributes.apply(path)
    }

    /// Gives directories their attributes: last of all, since filling them changes their times.
    pub fn finish_directories(&self) -> Result<()> {
        self.directories.iter().rev().try_for_each(|(path, attributes)| attributes.apply(path))
    }
}

#[cfg(test)]
mod tests {
    use super::safe;

    #[test]
    fn names_that_lead_out_are_refused() {
        for inside in ["a", "a/b", "a..", ".a", "..a/b"] {
            assert_eq!(safe(inside.as_bytes()).expect("inside").to_str(), Some(inside));
        }
        for out in ["..", "/etc/passwd", "a/../b", "../a", "a/..", "/"] {
            assert!(safe(out.as_bytes()).is_err(), "{out}");
        }
    }
}

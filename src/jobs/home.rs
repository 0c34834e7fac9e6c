//! A walk over home's regular files and their identities.

use super::attributes::read_mark;
use super::survey::read_dir;
use crate::error::{Error, Result};
use crate::ondisk::file_id::{FileIdentity, XATTR_FILE_ID};
use crate::units::FileId;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// One name of a regular file.
pub(super) struct HomeFile {
    /// Below home's root.
    pub relative: PathBuf,
    pub id: FileId,
    pub meta: Metadata,
}

/// A file whose identity does not fit.
pub(super) struct Strange {
    pub relative: PathBuf,
    pub why: Error,
}

impl From<Strange> for Error {
    fn from(strange: Strange) -> Error {
        match strange.why {
            Error::Untrusted { file, why } => {
                Error::Untrusted { file, why: format!("{}: {why}", strange.relative.display()) }
            }
            other => other,
        }
    }
}

/// Calls `visit` with every name of every regular file below `tree`, in a fixed order.
pub(super) fn for_each(
    tree: &Path,
    volume: Uuid,
    visit: &mut dyn FnMut(std::result::Result<HomeFile, Strange>) -> Result<()>,
) -> Result<()> {
    walk(tree, volume, false, visit)
}

/// As [`for_each`], while the tree is being changed: what is gone when it is met is left out.
pub(super) fn for_each_live(
    tree: &Path,
    volume: Uuid,
    visit: &mut dyn FnMut(std::result::Result<HomeFile, Strange>) -> Result<()>,
) -> Result<()> {
    walk(tree, volume, true, visit)
}

fn walk(
    tree: &Path,
    volume: Uuid,
    live: bool,
    visit: &mut dyn FnMut(std::result::Result<HomeFile, Strange>) -> Result<()>,
) -> Result<()> {
    let mut pending = vec![tree.to_owned()];
    while let Some(dir) = pending.pop() {
        let paths = match read_dir(&dir) {
            Err(e) if live && is_gone(&e) => continue,
            paths => paths?,
        };
        for path in paths {
            let meta = match fs::symlink_metadata(&path) {
                Err(e) if live && e.kind() == std::io::ErrorKind::NotFound => continue,
                meta => meta.map_err(|e| Error::io("stat", path.display().to_string(), e))?,
            };
            if meta.is_dir() {
                pending.push(path);
            } else if meta.is_file() {
                let relative = path.strip_prefix(tree).unwrap_or(&path).to_owned();
                visit(match identify(&path, volume, &meta) {
                    Err(e) if live && is_gone(&e) => continue,
                    Ok(id) => Ok(HomeFile { relative, id, meta }),
                    Err(why) => Err(Strange { relative, why }),
                })?;
            }
        }
    }
    Ok(())
}

fn is_gone(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::NotFound)
}

/// The id of one file of home. Errors: `Untrusted`, `Corrupt`, `NotFound` if it carries none.
pub(super) fn identify(path: &Path, volume: Uuid, meta: &Metadata) -> Result<FileId> {
    let shown = path.display().to_string();
    match read_mark(path, XATTR_FILE_ID)? {
        Some(bytes) => FileIdentity::decode(&bytes, &shown)?.verify(volume, meta.ino()),
        None => Err(Error::NotFound(format!("{shown} carries no {XATTR_FILE_ID}: it was put there behind the mount"))),
    }
}

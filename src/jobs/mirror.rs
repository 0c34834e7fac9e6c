//! Makes a directory tree that looks like another: what happens with regular files is the caller's.
//!
//! May be repeated after an interruption: what is there already is brought into shape.

use super::attributes::Attributes;
use super::backing::{exists, remove_file};
use super::survey::read_dir;
use super::watch::Watch;
use crate::error::{Error, Result};
use std::fs::{self, Metadata};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

/// Puts a regular file of the source to a place of the target; attributes are given to it afterwards.
pub(super) trait PlaceFile {
    fn place(&mut self, from: &Path, to: &Path, meta: &Metadata, watch: &mut dyn Watch) -> Result<()>;
    /// The attributes that the placed file gets.
    fn attributes(&mut self, from: &Path, to: &Path) -> Result<Attributes>;
}

/// Mirrors everything below `from` in `to`, which is made if absent; directories get their attributes last, since filling them changes
/// their times. The attributes of `from` itself are returned and not yet given to `to`.
pub(super) fn mirror(from: &Path, to: &Path, files: &mut dyn PlaceFile, watch: &mut dyn Watch) -> Result<Attributes> {
    let top = Attributes::read(from)?;
    make_dir(to)?;
    let mut filled: Vec<(PathBuf, Attributes)> = Vec::new();
    let mut pending = vec![(from.to_owned(), to.to_owned())];
    while let Some((from, to)) = pending.pop() {
        for source in read_dir(&from)? {
            let Some(name) = source.file_name() else { continue };
            let target = to.join(name);
            let meta = fs::symlink_metadata(&source).map_err(|e| Error::io("stat", source.display().to_string(), e))?;
            watch.step("mirror")?;
            if meta.is_dir() {
                filled.push((target.clone(), Attributes::read(&source)?));
                make_dir(&target)?;
                pending.push((source, target));
                continue;
            }
            let attributes = if meta.is_file() {
                files.place(&source, &target, &meta, watch)?;
                files.attributes(&source, &target)?
            } else {
                place_other(&source, &target, &meta)?;
                Attributes::read(&source)?
            };
            watch.step("attributes")?;
            attributes.apply(&target)?;
        }
    }
    for (dir, attributes) in filled.iter().rev() {
        watch.step("directory attributes")?;
        attributes.apply(dir)?;
    }
    Ok(top)
}

fn make_dir(path: &Path) -> Result<()> {
    match fs::DirBuilder::new().mode(0o700).create(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::io("create", path.display().to_string(), e))
        }
        _ => Ok(()),
    }
}

/// A symbolic link, pipe, socket or device like `source`.
fn place_other(source: &Path, target: &Path, meta: &Metadata) -> Result<()> {
    if exists(target)? {
        remove_file(target)?;
    }
    let io = |action, e| Error::io(action, target.display().to_string(), e);
    if meta.is_symlink() {
        let leads_to = fs::read_link(source).map_err(|e| Error::io("read link", source.display().to_string(), e))?;
        return std::os::unix::fs::symlink(leads_to, target).map_err(|e| io("create", e));
    }
    use nix::sys::stat::{Mode, SFlag, mknod};
    let kind = match meta.file_type() {
        t if t.is_fifo() => SFlag::S_IFIFO,
        t if t.is_socket() => SFlag::S_IFSOCK,
        t if t.is_char_device() => SFlag::S_IFCHR,
        _ => SFlag::S_IFBLK,
    };
    mknod(target, kind, Mode::from_bits_truncate(0o600), meta.rdev()).map_err(|e| io("create", e.into()))
}

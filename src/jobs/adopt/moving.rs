//! The directory's files become objects, and the engine is told what they hold.

use crate::error::{Error, Result};
use crate::jobs::attributes::{modified, unmark};
use crate::jobs::backing::{Backing, exists, make_private_dir};
use crate::jobs::home::{self, HomeFile};
use crate::jobs::survey::read_dir;
use crate::jobs::watch::{Progress, Watch};
use crate::tier::identity::VolumeIdentity;
use crate::tier::objects::{object_dir, object_path};
use crate::units::FileId;
use crate::volume::Volume;
use nix::errno::Errno;
use nix::unistd::{Whence, lseek};
use std::collections::HashSet;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::Path;

/// What is imported stays in memory until a checkpoint.
const FILES_PER_CHECKPOINT: u64 = 4096;

/// Moves and imports every file of home; what an earlier try did is skipped. Durable when this returns. The number of files and their bytes.
pub(super) fn files(
    taken: &Path,
    backing: &Backing,
    id: &VolumeIdentity,
    volume: &Volume,
    watch: &mut dyn Watch,
) -> Result<(u64, u64)> {
    watch.begin("moving files to their objects");
    let origin = backing.path(id.origin);
    let mut moved = HashSet::new();
    let mut progress = Progress::default();
    home::for_each(&backing.tree(), id.volume, &mut |file| {
        let file = file?;
        let object = origin.join(object_path(file.id));
        move_one(&taken.join(&file.relative), &object, origin, &file, watch)?;
        if moved.insert(file.id) {
            watch.step("object attributes")?;
            unmark(&object)?;
            // The engine opens it for writing, whatever the file's own mode, which home keeps, says.
            fs::set_permissions(&object, Permissions::from_mode(0o600))
                .map_err(|e| Error::io("chmod", object.display().to_string(), e))?;
            progress.files_done += 1;
            watch.progress(progress);
        }
        Ok(())
    })?;
    watch.step("sync objects")?;
    backing.sync_all()?;
    watch.begin("importing");
    let known: HashSet<FileId> = volume.files().into_iter().collect();
    let mut progress = Progress { files: progress.files_done, ..Progress::default() };
    let mut imported = HashSet::new();
    home::for_each(&backing.tree(), id.volume, &mut |file| {
        let file = file?;
        if !imported.insert(file.id) {
            return Ok(());
        }
        let object = origin.join(object_path(file.id));
        let bytes = fs::metadata(&object).map_err(|e| Error::io("stat", object.display().to_string(), e))?.len();
        if !known.contains(&file.id) {
            watch.step("import")?;
            volume.import_file(file.id, bytes, modified(&file.meta), id.origin, &extents(&object, bytes)?)?;
        }
        progress.files_done += 1;
        progress.bytes_done += bytes;
        watch.progress(progress);
        if progress.files_done.is_multiple_of(FILES_PER_CHECKPOINT) {
            watch.step("checkpoint on the way")?;
            volume.checkpoint()?;
        }
        Ok(())
    })?;
    watch.step("checkpoint")?;
    volume.checkpoint()?;
    Ok((progress.files_done, progress.bytes_done))
}

/// One name of a file: the first becomes the object, further ones go.
fn move_one(name: &Path, object: &Path, origin: &Path, file: &HomeFile, watch: &mut dyn Watch) -> Result<()> {
    match (exists(name)?, exists(object)?) {
        (true, false) => {
            watch.step("move file")?;
            make_private_dir(&origin.join(object_dir(file.id)))?;
            fs::rename(name, object).map_err(|e| Error::io("rename", name.display().to_string(), e))
        }
        (true, true) => {
            let inode = |path: &Path| fs::symlink_metadata(path).map(|meta| (meta.dev(), meta.ino()));
            let same = inode(name).and_then(|name| Ok(name == inode(object)?));
            if !same.map_err(|e| Error::io("stat", name.display().to_string(), e))? {
                return Err(Error::Untrusted {
                    file: file.id,
                    why: format!("both {} and {} hold it", name.display(), object.display()),
                });
            }
            watch.step("drop link")?;
            fs::remove_file(name).map_err(|e| Error::io("remove", name.display().to_string(), e))
        }
        (false, true) => Ok(()),
        (false, false) => Err(Error::Untrusted {
            file: file.id,
            why: format!("neither {} nor {} is there any more", name.display(), object.display()),
        }),
    }
}

/// Ranges (offset, length) of a file that hold data; all of it where the filesystem cannot tell.
fn extents(path: &Path, bytes: u64) -> Result<Vec<(u64, u64)>> {
    let io = |e| Error::io("seek", path.display().to_string(), e);
    let file = File::open(path).map_err(io)?;
    let seek = |offset: u64, whence| {
        let offset = i64::try_from(offset).map_err(|_| io(Errno::EOVERFLOW.into()))?;
        match lseek(&file, offset, whence) {
            Ok(found) => Ok(Some(u64::try_from(found).unwrap_or(0))),
            Err(Errno::ENXIO) => Ok(None),
            Err(e) => Err(io(e.into())),
        }
    };
    let mut found = Vec::new();
    let mut at = 0;
    while at < bytes {
        let Some(start) = seek(at, Whence::SeekData)? else { break };
        let end = seek(start, Whence::SeekHole)?.unwrap_or(bytes).min(bytes);
        if end <= start {
            break;
        }
        found.push((start, end - start));
        at = end;
    }
    Ok(found)
}

/// Removes what is left of the directory: directories, links, pipes, sockets and devices, all of which home has. Errors: `Busy` for a regular
/// file, which somebody must have made meanwhile.
pub(super) fn remove_emptied(taken: &Path) -> Result<()> {
    if !exists(taken)? {
        return Ok(());
    }
    let mut directories = vec![taken.to_owned()];
    let mut next = 0;
    while let Some(dir) = directories.get(next).cloned() {
        next += 1;
        for entry in read_dir(&dir)? {
            let io = |action, e| Error::io(action, entry.display().to_string(), e);
            let meta = fs::symlink_metadata(&entry).map_err(|e| io("stat", e))?;
            if meta.is_dir() {
                directories.push(entry);
            } else if meta.is_file() {
                return Err(Error::Busy(format!("{} was made during the adoption: move it away", entry.display())));
            } else {
                fs::remove_file(&entry).map_err(|e| io("remove", e))?;
            }
        }
    }
    for dir in directories.iter().rev() {
        fs::remove_dir(dir).map_err(|e| Error::io("remove", dir.display().to_string(), e))?;
    }
    Ok(())
}

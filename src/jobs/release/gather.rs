//! Every file whole in one object, with its length, its holes and its modification time.

use crate::error::{Error, Result};
use crate::jobs::attributes::{modified, set_modified};
use crate::jobs::backing::{Backing, make_private_dir};
use crate::jobs::home::{HomeFile, for_each};
use crate::jobs::watch::{Progress, Watch};
use crate::tier::objects::{object_dir, object_path};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::{File, Volume};
use nix::fcntl::{FallocateFlags, fallocate};
use std::collections::HashSet;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Refuses files whose identity does not fit, unless they are accepted; the number of them.
pub(super) fn refuse_strange(tree: &Path, volume: Uuid, accept: bool) -> Result<usize> {
    let mut strange = Vec::new();
    let mut seen = std::collections::HashMap::new();
    for_each(tree, volume, &mut |file| {
        match file {
            Ok(file) => {
                use std::os::unix::fs::MetadataExt;
                let inode = file.meta.ino();
                if *seen.entry(file.id).or_insert(inode) != inode {
                    return Err(Error::Untrusted {
                        file: file.id,
                        why: format!("{}: a second file has the same identity", file.relative.display()),
                    });
                }
            }
            Err(found) => strange.push(Error::from(found).to_string()),
        }
        Ok(())
    })?;
    match strange.first() {
        Some(first) if !accept => Err(Error::Invalid(format!(
            "{} file(s) in home are not the mount's own, and what they held is not known: {first}. Remove them, or accept that they are given back as home has them",
            strange.len()
        ))),
        _ => Ok(strange.len()),
    }
}

/// Gathers all files of home on `origin`, durably. Errors: `Invalid` if there is no room.
pub(super) fn all(
    backing: &Backing,
    origin: TierId,
    volume_id: Uuid,
    volume: &Arc<Volume>,
    watch: &mut dyn Watch,
) -> Result<()> {
    watch.begin("coalescing");
    watch.step("coalesce")?;
    volume.coalesce_all(&mut |_, _| {})?;
    volume.checkpoint()?;
    let files = home_files(&backing.tree(), volume_id)?;
    let mut progress = Progress { files: files.len() as u64, ..Progress::default() };
    progress.bytes = refuse_without_room(backing, origin, &files, volume)?;
    watch.begin("gathering");
    for file in &files {
        watch.step("gather")?;
        let engine_file = volume.file(file.id)?;
        volume.gather(&engine_file, origin, &mut |blocks| {
            progress.bytes_done += blocks * volume.block_bytes();
            watch.progress(progress);
        })?;
        progress.files_done += 1;
        watch.progress(progress);
    }
    watch.step("checkpoint")?;
    volume.checkpoint()?;
    // Deferred punches of the checkpoint before are done by the next one.
    volume.checkpoint()?;
    watch.begin("finishing files");
    for file in &files {
        watch.step("finish object")?;
        let engine_file = volume.file(file.id)?;
        finish(backing.path(origin), origin, file, &engine_file, volume)?;
    }
    Ok(())
}

/// One entry for each file of home, whatever the number of its names.
fn home_files(tree: &Path, volume: Uuid) -> Result<Vec<HomeFile>> {
    let mut files = Vec::new();
    let mut seen: HashSet<FileId> = HashSet::new();
    for_each(tree, volume, &mut |file| {
        if let Ok(file) = file
            && seen.insert(file.id)
        {
            files.push(file);
        }
        Ok(())
    })?;
    Ok(files)
}

/// Bytes that will be moved. Errors: `Invalid`, with what is missing, if they do not fit.
fn refuse_without_room(backing: &Backing, origin: TierId, files: &[HomeFile], volume: &Volume) -> Result<u64> {
    let mut blocks = 0;
    for file in files {
        let known = volume.file(file.id)?;
        blocks += volume.blocks_in_repository(&known);
        let map = volume.block_map(&known);
        blocks += map.iter().filter(|run| run.2.is_some_and(|tier| tier != origin)).map(|run| run.1).sum::<u64>();
    }
    let needed = blocks * volume.block_bytes();
    let device = &backing.places[origin.index()].device;
    let space = device.space().map_err(|e| Error::io("stat the filesystem of", device.path(), e))?;
    if needed > space.available_bytes {
        return Err(Error::Invalid(format!(
            "release brings {} MiB to tier `{}` at {}, where {} MiB are free: {} MiB are missing",
            needed.div_ceil(1 << 20),
            backing.name(origin),
            device.path(),
            space.available_bytes >> 20,
            (needed - space.available_bytes).div_ceil(1 << 20)
        )));
    }
    Ok(needed)
}

/// Makes the object exactly what the file is. What durable state calls a hole may hold an old image still.
fn finish(tier: &Path, origin: TierId, file: &HomeFile, engine_file: &Arc<File>, volume: &Volume) -> Result<()> {
    let object = tier.join(object_path(file.id));
    let io = |action, e| Error::io(action, object.display().to_string(), e);
    make_private_dir(&tier.join(object_dir(file.id)))?;
    let open = std::fs::File::options().write(true).create(true).truncate(false).open(&object);
    let open = open.map_err(|e| io("open", e))?;
    let attributes = volume.attr(engine_file);
    let bytes = attributes.size_bytes;
    if volume.blocks_in_repository(engine_file) > 0 {
        return Err(Error::Busy(format!("blocks of file {} are in the repository still", file.id)));
    }
    let mut next = BlockNo(0);
    let mut holes = Vec::new();
    for (first, count, place, _) in volume.block_map(engine_file) {
        match place {
            Some(tier) if tier != origin => {
                return Err(Error::Busy(format!("block {first} of file {} was not gathered", file.id)));
            }
            Some(_) => {
                holes.push((next, first));
                next = BlockNo(first.0 + count);
            }
            None => {}
        }
    }
    let block = volume.block_bytes();
    holes.push((next, BlockNo(bytes.div_ceil(block).max(next.0))));
    open.set_len(bytes).map_err(|e| io("set length of", e))?;
    for (from, to) in holes.into_iter().filter(|(from, to)| from < to && from.0 * block < bytes) {
        let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
        let signed = |blocks: u64| i64::try_from(blocks * block);
        let range = signed(from.0).and_then(|at| Ok((at, signed(to.0 - from.0)?)));
        let (at, len) = range.map_err(|_| io("punch", std::io::ErrorKind::FileTooLarge.into()))?;
        fallocate(&open, flags, at, len).map_err(|e| io("punch", e.into()))?;
    }
    drop(open);
    set_modified(&object, attributes.mtime.unwrap_or_else(|| modified(&file.meta)))
}

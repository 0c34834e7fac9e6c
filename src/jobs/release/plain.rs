//! Objects become plain files again, in a tree that looks like home's.

use crate::error::{Error, Result};
use crate::jobs::attributes::{Attributes, modified, read_mark, unmark};
use crate::jobs::backing::exists;
use crate::jobs::home::identify;
use crate::jobs::mirror::{PlaceFile, mirror};
use crate::jobs::watch::{Progress, Watch};
use crate::ondisk::file_id::{XATTR_ROOT_MODE, decode_root_mode};
use crate::tier::objects::object_path;
use std::collections::HashMap;
use std::fs::{self, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Builds `tree`, or goes on building it. Returns files, bytes and the files that were taken as home has them.
pub(super) fn tree(
    home: &Path,
    tree: &Path,
    origin: &Path,
    volume: Uuid,
    watch: &mut dyn Watch,
) -> Result<(u64, u64, Vec<String>)> {
    let mut files =
        PlainFiles { origin, volume, linked: HashMap::new(), progress: Progress::default(), untrusted: Vec::new() };
    let mut root = mirror(home, tree, &mut files, watch)?;
    watch.step("root attributes")?;
    if let Some(mode) = read_mark(home, XATTR_ROOT_MODE)? {
        root.mode = decode_root_mode(&mode, &home.display().to_string())?;
    }
    root.apply(tree)?;
    Ok((files.progress.files_done, files.progress.bytes_done, files.untrusted))
}

struct PlainFiles<'a> {
    origin: &'a Path,
    volume: Uuid,
    /// Where files with several names have their first one in the new tree, by inode number in home.
    linked: HashMap<u64, PathBuf>,
    progress: Progress,
    untrusted: Vec<String>,
}

impl PlaceFile for PlainFiles<'_> {
    fn place(&mut self, from: &Path, to: &Path, meta: &Metadata, watch: &mut dyn Watch) -> Result<()> {
        let io = |action, e| Error::io(action, to.display().to_string(), e);
        if let Some(first) = self.linked.get(&meta.ino()) {
            return match fs::hard_link(first, to) {
                Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => Err(io("link", e)),
                _ => Ok(()),
            };
        }
        match identify(from, self.volume, meta) {
            Ok(id) => {
                let object = self.origin.join(object_path(id));
                // An object that is not there was renamed before an interruption.
                if exists(&object)? {
                    watch.step("rename object")?;
                    fs::rename(&object, to).map_err(|e| io("rename object to", e))?;
                } else if !exists(to)? {
                    return Err(Error::Untrusted {
                        file: id,
                        why: format!("neither {} nor {} is there any more", object.display(), to.display()),
                    });
                }
            }
            Err(why) => {
                self.untrusted.push(why.to_string());
                fs::copy(from, to).map_err(|e| io("copy to", e))?;
            }
        }
        unmark(to)?;
        if meta.nlink() > 1 {
            self.linked.insert(meta.ino(), to.to_owned());
        }
        self.progress.files_done += 1;
        self.progress.bytes_done += fs::symlink_metadata(to).map_err(|e| io("stat", e))?.len();
        watch.progress(self.progress);
        Ok(())
    }

    /// Home's, but for the modification time, which the object carries.
    fn attributes(&mut self, from: &Path, to: &Path) -> Result<Attributes> {
        let meta = fs::symlink_metadata(to).map_err(|e| Error::io("stat", to.display().to_string(), e))?;
        let mut attributes = Attributes::read(from)?;
        attributes.modified = modified(&meta);
        Ok(attributes)
    }
}

//! Home, built after the directory's likeness: empty files with fresh ids.

use crate::error::{Error, Result};
use crate::jobs::attributes::{Attributes, mark};
use crate::jobs::mirror::{PlaceFile, mirror};
use crate::jobs::survey::Survey;
use crate::jobs::watch::{Progress, Watch};
use crate::ondisk::file_id::{FileIdentity, XATTR_FILE_ID, XATTR_ROOT_MODE, encode_root_mode};
use crate::volume::Volume;
use std::collections::HashMap;
use std::fs::{self, File, Metadata};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Databases refuse a data directory that others may write to; home's root has this mode, below a directory that nobody may enter.
const ROOT_MODE_ON_DISK: u32 = 0o777;

/// Builds `tree`, which must not be there yet.
pub(super) fn home(taken: &Path, tree: &Path, volume: &Volume, survey: &Survey, watch: &mut dyn Watch) -> Result<()> {
    let progress = Progress { files: survey.files, ..Progress::default() };
    let mut files = HomeFiles { volume, linked: HashMap::new(), progress };
    let root = mirror(taken, tree, &mut files, watch)?;
    watch.step("root attributes")?;
    seal_root(tree, root)
}

/// Gives home's root the attributes that the mount shows, but for the mode, which it shows by another attribute.
pub(in crate::jobs) fn seal_root(tree: &Path, mut root: Attributes) -> Result<()> {
    let mode = std::mem::replace(&mut root.mode, ROOT_MODE_ON_DISK);
    root.apply(tree)?;
    mark(tree, XATTR_ROOT_MODE, encode_root_mode(mode).as_bytes())
}

struct HomeFiles<'a> {
    volume: &'a Volume,
    /// Where files with several names have their first one in home, by (device, inode number) in the directory.
    linked: HashMap<(u64, u64), PathBuf>,
    progress: Progress,
}

impl PlaceFile for HomeFiles<'_> {
    fn place(&mut self, _from: &Path, to: &Path, meta: &Metadata, watch: &mut dyn Watch) -> Result<()> {
        let inode = (meta.dev(), meta.ino());
        if let Some(first) = self.linked.get(&inode) {
            return fs::hard_link(first, to).map_err(|e| Error::io("link", to.display().to_string(), e));
        }
        let io = |action, e| Error::io(action, to.display().to_string(), e);
        let file = File::options().write(true).create_new(true).open(to).map_err(|e| io("create", e))?;
        let home_inode = file.metadata().map_err(|e| io("stat", e))?.ino();
        watch.step("file id")?;
        let id = FileIdentity { volume: self.volume.volume_id(), file: self.volume.issue_file_id()?, home_inode };
        mark(to, XATTR_FILE_ID, &id.encode())?;
        if meta.nlink() > 1 {
            self.linked.insert(inode, to.to_owned());
        }
        self.progress.files_done += 1;
        watch.progress(self.progress);
        Ok(())
    }

    fn attributes(&mut self, from: &Path, _to: &Path) -> Result<Attributes> {
        Attributes::read(from)
    }
}

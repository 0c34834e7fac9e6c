//! What a snapshot holds, for whoever makes a volume's files of it: names, sizes, and where data is; no leaf and no page is read. And the tree of home that comes of it.

use super::adopt;
use super::attributes::mark;
use super::backing::make_private_dir;
use super::plant::{Planted, Planter, attributes, safe};
use super::streams;
use super::watch::{Progress, Watch};
use crate::error::{Error, Result};
use crate::ondisk::file_id::{FileIdentity, XATTR_FILE_ID};
use crate::repository::{Entry, EntryKind, FileState, Repository, Snapshot};
use crate::units::FileId;
use crate::volume::ClonedFile;
use std::collections::{BTreeMap, HashSet};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use uuid::Uuid;

/// Threads that give files of home their attributes.
const STREAMS: usize = 4;

/// Names and files of a snapshot.
#[derive(Default)]
pub(super) struct Manifest {
    /// The root first, with an empty path; each directory before what is in it.
    pub names: Vec<(Vec<u8>, Entry)>,
    /// Of regular files that have a name, by their id in the snapshot, which is also the volume's until [`Manifest::renumber`] says otherwise.
    pub files: Vec<ClonedFile>,
    /// Blocks that are no holes.
    pub blocks: u64,
}

impl Manifest {
    /// Errors: `NotFound` for a file without content, `Invalid` for a path that leads out.
    pub fn read(snapshot: &Snapshot<'_>, repository: &Repository, block_bytes: u64) -> Result<Manifest> {
        let mut manifest = Manifest::default();
        let root = snapshot.lookup(b"")?;
        let root = root.ok_or_else(|| Error::NotFound(format!("snapshot {} has no root directory", snapshot.id())))?;
        manifest.names.push((Vec::new(), root));
        let mut walk = snapshot.walk(b"")?;
        while let Some((path, entry)) = walk.next()? {
            safe(&path)?;
            manifest.names.push((path, entry));
        }
        let file_of = |(_, entry): &(Vec<u8>, Entry)| match entry.kind {
            EntryKind::File { file } => Some(file),
            _ => None,
        };
        let named: HashSet<FileId> = manifest.names.iter().filter_map(file_of).collect();
        let mut files: BTreeMap<FileId, FileState> = BTreeMap::new();
        snapshot.files(&mut |file, state| {
            if named.contains(&file) {
                files.insert(file, state);
            }
            Ok(())
        })?;
        if let Some(missing) = named.iter().find(|file| !files.contains_key(file)) {
            return Err(Error::NotFound(format!("file {missing}: snapshot {} has none", snapshot.id())));
        }
        for (file, state) in files {
            let data = repository.content(file, state).data_ranges()?;
            let mut next = 0;
            for (start, end) in &data {
                let (first, stop) = ((start / block_bytes).max(next), end.div_ceil(block_bytes));
                manifest.blocks += stop.saturating_sub(first);
                next = next.max(stop);
            }
            manifest.files.push(ClonedFile { file, size_bytes: state.size, source: file, data });
        }
        Ok(manifest)
    }

    /// Sizes of all files.
    pub fn bytes(&self) -> u64 {
        self.files.iter().map(|file| file.size_bytes).sum()
    }

    /// Gives the files ids from `first` on, in their order.
    pub fn renumber(&mut self, first: FileId) {
        for (file, id) in self.files.iter_mut().zip(first.0..) {
            file.file = FileId(id);
        }
    }

    /// Makes the tree, which is not there yet, with files of `volume` in it that hold nothing. Returns how many files there are.
    pub fn plant(&self, tree: &Path, volume: Uuid, watch: &mut dyn Watch) -> Result<u64> {
        make_private_dir(tree)?;
        let mut planter = Planter::default();
        for (path, entry) in self.names.iter().skip(1) {
            watch.step("name")?;
            planter.make(&tree.join(safe(path)?), entry)?;
        }
        let planted = std::mem::take(&mut planter.files);
        let count = planted.len() as u64;
        watch.progress(Progress { files_done: count, files: count, ..Progress::default() });
        watch.step("attributes")?;
        streams::run(planted, STREAMS, |planted, _| self.identify(planted, volume))?;
        planter.finish_directories()?;
        watch.step("root")?;
        adopt::seal_root(tree, attributes(&self.names[0].1)?)?;
        Ok(count)
    }

    fn identify(&self, planted: &Planted, volume: Uuid) -> Result<()> {
        let shown = || planted.path.display().to_string();
        let known = self.files.binary_search_by_key(&planted.file, |file| file.source);
        let file = known.ok().and_then(|at| self.files.get(at));
        let file = file.ok_or_else(|| Error::NotFound(format!("{}: the snapshot has no content of it", shown())))?.file;
        let home_inode = fs::symlink_metadata(&planted.path).map_err(|e| Error::io("stat", shown(), e))?.ino();
        mark(&planted.path, XATTR_FILE_ID, &FileIdentity { volume, file, home_inode }.encode())?;
        planted.attributes.apply(&planted.path)
    }
}

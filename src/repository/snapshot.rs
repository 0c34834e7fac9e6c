//! A snapshot as readers see it.

use super::Repository;
use super::file::FileState;
use super::ids::SnapshotId;
use super::namespace::{self, Entry, Walk};
use super::read::{self, FileContent};
use super::root::Root;
use super::table::{self, NodeSource};
use crate::error::Result;
use crate::units::FileId;

/// An open snapshot. What it reads stays as long as its root, or a ref to it, is there.
pub struct Snapshot<'r> {
    repository: &'r Repository,
    pub root: Root,
}

/// One difference between two snapshots.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct NameChange {
    pub path: Vec<u8>,
    pub before: Option<Entry>,
    pub after: Option<Entry>,
}

impl<'r> Snapshot<'r> {
    pub(super) fn new(repository: &'r Repository, root: Root) -> Snapshot<'r> {
        Snapshot { repository, root }
    }

    pub fn id(&self) -> SnapshotId {
        self.root.id
    }

    /// What a path leads to; the empty path is the root of the volume. Symlinks are not followed.
    pub fn lookup(&self, path: &[u8]) -> Result<Option<Entry>> {
        namespace::lookup(&self.repository.store, self.root.names.as_ref(), path)
    }

    /// All names below a directory (the empty path: of the volume), in order of paths, directories before their contents.
    pub fn walk(&self, dir: &[u8]) -> Result<Walk<'_>> {
        Walk::new(&self.repository.store, self.root.names, dir, false)
    }

    /// The names in one directory, as full paths.
    pub fn list(&self, dir: &[u8]) -> Result<Walk<'_>> {
        Walk::new(&self.repository.store, self.root.names, dir, true)
    }

    /// The content of a file. Errors: `NotFound`.
    pub fn file(&self, file: FileId) -> Result<FileContent<'_>> {
        let store = &self.repository.store;
        let state = FileState::find(store, self.root.files.as_ref(), file)?;
        let state = state.ok_or_else(|| read::no_such_file(file, self.root.id))?;
        Ok(FileContent::new(store, file, state))
    }

    /// Calls for every file, by ascending id, with what the table says of it.
    pub fn files(&self, call: &mut dyn FnMut(FileId, FileState) -> Result<()>) -> Result<()> {
        let store = &self.repository.store;
        table::diff(store, None, self.root.files.as_ref(), &mut |key, _, after| {
            let (file, _, after) = self.row(key, None, after)?;
            after.map_or(Ok(()), |state| call(file, state))
        })
    }

    /// Calls for every file whose content or size differs from that in an earlier snapshot of this repository, by ascending
    /// id. Which pages: [`Snapshot::changed_pages`].
    pub fn changed_files(
        &self,
        before: &Snapshot<'_>,
        call: &mut dyn FnMut(FileId, Option<FileState>, Option<FileState>) -> Result<()>,
    ) -> Result<()> {
        let store = &self.repository.store;
        table::diff(store, before.root.files.as_ref(), self.root.files.as_ref(), &mut |key, old, new| {
            let (file, old, new) = self.row(key, old, new)?;
            call(file, old, new)
        })
    }

    /// Calls for each range (start, end) of pages that differs between two contents, in order; nothing but nodes that differ is read.
    pub fn changed_pages(
        &self,
        before: Option<&FileState>,
        after: Option<&FileState>,
        call: &mut dyn FnMut(u64, u64) -> Result<()>,
    ) -> Result<()> {
        read::changed_ranges(&self.repository.store, before, after, call)
    }

    /// Calls for every path whose entry differs from that in an earlier snapshot, in order of paths.
    pub fn changed_names(&self, before: &Snapshot<'_>, call: &mut dyn FnMut(NameChange) -> Result<()>) -> Result<()> {
        let store = &self.repository.store;
        let decode = |value: Option<&[u8]>, root: Option<&super::ids::ObjectRef>| {
            value.zip(root).map(|(value, root)| namespace::decode(store, root, value)).transpose()
        };
        table::diff(store, before.root.names.as_ref(), self.root.names.as_ref(), &mut |key, old, new| {
            let before = decode(old, before.root.names.as_ref())?;
            call(NameChange { path: namespace::path_of(key), before, after: decode(new, self.root.names.as_ref())? })
        })
    }

    fn row(
        &self,
        key: &[u8],
        old: Option<&[u8]>,
        new: Option<&[u8]>,
    ) -> Result<(FileId, Option<FileState>, Option<FileState>)> {
        let store = &self.repository.store;
        let malformed = |why| match &self.root.files {
            Some(root) => store.malformed(root, why),
            None => read::no_such_file(FileId(0), self.root.id),
        };
        let file = key.try_into().map(u64::from_be_bytes).unwrap_or(u64::MAX);
        let decode = |value: Option<&[u8]>| value.map(FileState::decode).transpose().map_err(malformed);
        Ok((FileId(file), decode(old)?, decode(new)?))
    }
}

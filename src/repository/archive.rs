//! The archive: cold packs move to another directory, on a cheaper disk, and are read from there.
//!
//! `archive` in the repository says where that is; a file of the same name there says whose it is. Packs of data go whose every use is by snapshots taken
//! before a given time; packs of trees stay, so that listing, comparing and pruning need no archive. A pack is copied, its every object verified, synced and
//! named there before it goes here, so whatever cuts that off, it is in one place at least. What a later snapshot shares with an old one may be in the archive too.
//!
//! Prune takes packs from both, but writes none anew that is archived: it goes when nothing in it is used. Without the archive nothing is deleted, verified or archived, and what has to be read from it is an error.

use super::ids::{Generation, PackId};
use super::index::list_packs;
use super::lease;
use super::mark::{Marks, Usage};
use super::pack::{Class, PackHeader, PackReader};
use super::root::Root;
use super::shelf::Far;
use super::small::{Kind, SmallObjects, create_file, io_error};
use super::{Repository, read_only};
use crate::device::{AlignedBuf, Device, OpenMode};
use crate::error::{Error, Result};
use crate::units::WallNs;
use serde::{Deserialize, Serialize};
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use uuid::Uuid;

/// In the repository: a [`Note`]. In the archive: a [`Mark`].
const FILE: &str = "archive";
const COPY_BYTES: usize = 1 << 20;

/// Where a repository's archive is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Note {
    path: String,
}

/// Whose archive this is.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
struct Mark {
    repository: Uuid,
}

/// Opens the directory of an archive.
pub(super) type OpenFar<'a> = &'a dyn Fn(&str) -> io::Result<Arc<dyn Device>>;

/// What to archive, and where.
pub struct ArchiveOptions {
    /// The archive's directory, and the path by which it is found again.
    pub archive: Arc<dyn Device>,
    pub path: String,
    /// What only snapshots taken before this use is cold.
    pub before: WallNs,
    /// Say what would go, and change nothing.
    pub dry_run: bool,
}

/// What was moved.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize)]
pub struct ArchiveReport {
    pub packs: u64,
    pub bytes: u64,
    /// Packs that stay because something in them is damaged.
    pub damaged: Vec<String>,
}

impl Repository {
    /// Finds the archive, if there is to be one. That it is not there is no error yet.
    pub(super) fn find_archive(&self, open: OpenFar<'_>) {
        let path = match self.store.small.read::<Note>(Kind::Archive, FILE) {
            Ok(None) => return,
            Ok(Some(Note { path })) => path,
            // What needs no archive can be read all the same.
            Err(error) => {
                let path = "an unknown place".to_owned();
                return self.shelf.set_far(Far::Away { path, why: error.to_string() });
            }
        };
        let far = match open(&path).map_err(|e| e.to_string()).and_then(|far| self.check_mark(&far).map(|()| far)) {
            Ok(device) => Far::Here { path, device },
            Err(why) => {
                tracing::warn!("the archive of the repository {} at {path} cannot be used: {why}", self.path());
                Far::Away { path, why }
            }
        };
        self.shelf.set_far(far);
    }

    fn check_mark(&self, far: &Arc<dyn Device>) -> std::result::Result<(), String> {
        let small = SmallObjects { device: Arc::clone(far), keys: Arc::clone(&self.store.small.keys) };
        match small.read::<Mark>(Kind::Archive, FILE) {
            Ok(Some(mark)) if mark.repository == self.id() => Ok(()),
            Ok(Some(_)) => Err("it is the archive of another repository".to_owned()),
            Ok(None) => Err("there is no archive".to_owned()),
            Err(error) => Err(error.to_string()),
        }
    }

    /// Errors: `NotFound` when packs may be where nobody can look.
    pub(super) fn require_archive(&self) -> Result<()> {
        match self.shelf.far() {
            Far::Away { path, why } => Err(Error::NotFound(format!(
                "the archive of the repository {} at {path} cannot be used: {why}; bring it back, or name the directory where it is now with `heatfs repo archive --to`",
                self.path()
            ))),
            Far::None | Far::Here { .. } => Ok(()),
        }
    }

    /// Where the archive is, whether or not it can be reached.
    pub fn archive_path(&self) -> Option<String> {
        match self.shelf.far() {
            Far::None => None,
            Far::Here { path, .. } | Far::Away { path, .. } => Some(path),
        }
    }

    /// Packs that are in the archive alone.
    pub(super) fn archived_packs(&self) -> Result<HashSet<PackId>> {
        let Far::Here { device: far, .. } = self.shelf.far() else { return Ok(HashSet::new()) };
        let near = list_packs(self.shelf.near.as_ref())?;
        Ok(list_packs(far.as_ref())?.into_iter().filter(|pack| !near.contains(pack)).collect())
    }

    /// Moves cold packs to the archive, which is made if there was none. `progress`: bytes moved, bytes to move. Errors: `Busy` for a directory that is
    /// something else, or while another one is the archive.
    pub fn archive(&self, options: &ArchiveOptions, progress: &mut dyn FnMut(u64, u64)) -> Result<ArchiveReport> {
        self.check_writable()?;
        self.refuse_other_archive(options)?;
        if !options.dry_run {
            self.attach(options)?;
        }
        let (near, far) = (self.shelf.near.as_ref(), options.archive.as_ref());
        let cold = self.cold(options.before)?;
        let total = cold.iter().map(|(_, bytes)| bytes).sum();
        let mut report = ArchiveReport::default();
        for (pack, bytes) in cold {
            if !options.dry_run {
                if let Err(error) = self.verify_objects(pack) {
                    report.damaged.push(error.to_string());
                    continue;
                }
                copy(near, far, pack)?;
                near.remove_file(&pack.path()).map_err(|e| io_error(near, "remove", &pack.path(), e))?;
                near.sync_dir(&pack.dir()).map_err(|e| io_error(near, "sync directory", &pack.dir(), e))?;
            }
            (report.packs, report.bytes) = (report.packs + 1, report.bytes + bytes);
            progress(report.bytes, total);
        }
        Ok(report)
    }

    fn refuse_other_archive(&self, options: &ArchiveOptions) -> Result<()> {
        let (far, path) = (&options.archive, &options.path);
        let is_ours = self.check_mark(far).is_ok();
        match self.shelf.far() {
            // It was moved as a whole, with its mark, and the old one is gone.
            Far::None | Far::Away { .. } if is_ours => return Ok(()),
            Far::Here { path: known, .. } if known == *path => return Ok(()),
            Far::Here { path: known, .. } => {
                return Err(Error::Busy(format!(
                    "the archive of the repository {} is {} already: move all of it, and then name its new directory",
                    self.path(),
                    known
                )));
            }
            Far::Away { .. } => return self.require_archive(),
            Far::None => {}
        }
        let names = far.list("").map_err(|e| io_error(far.as_ref(), "list", "", e))?;
        match names.iter().find(|name| !["lost+found", "packs", "tmp"].contains(&name.as_str())) {
            Some(strange) => Err(Error::Busy(format!("{path} is not empty: `{strange}` is in it"))),
            None => Ok(()),
        }
    }

    /// From here on packs are looked for there, too: before the first one goes.
    fn attach(&self, options: &ArchiveOptions) -> Result<()> {
        let far = options.archive.as_ref();
        for dir in PackId::dirs().chain(["tmp".to_owned()]) {
            far.create_dir_all(&dir).map_err(|e| io_error(far, "create", &dir, e))?;
        }
        for dir in ["packs", ""] {
            far.sync_dir(dir).map_err(|e| io_error(far, "sync directory", dir, e))?;
        }
        let small = &self.store.small;
        let mark = small.encode(Kind::Archive, &Mark { repository: self.id() })?;
        create_file(far, FILE, Generation(0), &mark)?;
        let note = Note { path: options.path.clone() };
        if small.read::<Note>(Kind::Archive, FILE)?.as_ref() != Some(&note) {
            small.replace(Kind::Archive, FILE, Generation(0), &note)?;
        }
        self.shelf.set_far(Far::Here { path: options.path.clone(), device: Arc::clone(&options.archive) });
        Ok(())
    }

    /// Packs of data here that only old snapshots use, with their bytes, in the order of their names.
    fn cold(&self, before: WallNs) -> Result<Vec<(PackId, u64)>> {
        let (store, near) = (&self.store, self.shelf.near.as_ref());
        // Leases first: what is none any more by then is a root.
        let leases = lease::list(&store.small)?;
        let view = store.index.refresh(&store.small)?;
        let listed: HashSet<PackId> = view.segments.iter().flat_map(|segment| segment.packs.iter().copied()).collect();
        let mut marks = Marks::new(store, view);
        let (recent, old): (Vec<Root>, Vec<Root>) =
            self.snapshots()?.into_iter().partition(|root| root.meta.taken >= before);
        recent.iter().try_for_each(|root| marks.root(root))?;
        for (lease, _) in &leases {
            marks.tables(lease.names.as_ref(), lease.files.as_ref())?;
        }
        let recent = marks.usage()?;
        old.iter().try_for_each(|root| marks.root(root))?;
        let all = marks.usage()?;
        let live = |of: &HashMap<PackId, Usage>, pack| of.get(&pack).is_some_and(|usage| usage.live_bytes > 0);
        let mut packs: Vec<PackId> = list_packs(near)?.into_iter().filter(|pack| listed.contains(pack)).collect();
        packs.sort_unstable();
        let mut cold = Vec::new();
        for pack in packs.into_iter().filter(|pack| live(&all, *pack) && !live(&recent, *pack)) {
            let header = PackReader::header(near, pack)?;
            let moves = |header: PackHeader| {
                header.class == Class::Data && !leases.iter().any(|(lease, _)| lease.id == header.lease)
            };
            if header.is_some_and(moves) {
                let bytes = near.open(&pack.path(), read_only()).and_then(|file| file.len());
                cold.push((pack, bytes.map_err(|e| io_error(near, "look at", &pack.path(), e))?));
            }
        }
        Ok(cold)
    }

    /// Reads every object of a pack from the disk. Errors: `Corrupt`.
    fn verify_objects(&self, pack: PackId) -> Result<()> {
        self.store.forget();
        let (_, contents) = self.store.contents(pack)?;
        contents.objects.iter().try_for_each(|entry| self.store.at_place(&entry.id, &entry.place(pack)).map(drop))
    }
}

/// A copy of the pack is durable there, and what is there is what is here, when this returns.
fn copy(near: &dyn Device, far: &dyn Device, pack: PackId) -> Result<()> {
    let (path, temporary) = (pack.path(), format!("tmp/{pack}"));
    let reading = |e| io_error(near, "read", &path, e);
    let writing = |e| io_error(far, "write", &temporary, e);
    let from = near.open(&path, read_only()).map_err(reading)?;
    let to = far.open(&temporary, OpenMode { create: true, ..OpenMode::default() }).map_err(writing)?;
    let len = from.len().map_err(reading)?;
    to.set_len(len).map_err(writing)?;
    let (mut bytes, mut again) = (AlignedBuf::zeroed(COPY_BYTES), AlignedBuf::zeroed(COPY_BYTES));
    for verify in [false, true] {
        let mut at = 0;
        while at < len {
            let take = usize::try_from(len - at).unwrap_or(COPY_BYTES).min(COPY_BYTES);
            let piece = bytes.get_mut(..take).unwrap_or_default();
            let got = from.read_at(piece, at).map_err(reading)?;
            if got < take {
                return Err(reading(io::ErrorKind::UnexpectedEof.into()));
            }
            if verify {
                let copied = again.get_mut(..take).unwrap_or_default();
                if to.read_at(copied, at).map_err(writing)? < take || copied != piece {
                    return Err(writing(io::Error::other("what was written is not what is read")));
                }
            } else {
                to.write_all_at(piece, at).map_err(writing)?;
            }
            at += take as u64;
        }
        if !verify {
            to.sync_data().map_err(writing)?;
        }
    }
    far.rename(&temporary, &path).map_err(|e| io_error(far, "name", &path, e))?;
    far.sync_dir(&pack.dir()).map_err(|e| io_error(far, "sync directory", &pack.dir(), e))
}

//! Restore in place: a directory becomes what a snapshot holds, and only what differs is written.
//!
//! Each page of the directory is compared with the snapshot, mostly by its hash, so that the repository is read only where they differ. What the directory has
//! and the snapshot has not is left alone and told, unless it is to be removed: whoever restores a database wants to be asked before a file goes.
//!
//! Nobody may use the directory meanwhile. PostgreSQL's control file is put aside first and comes back last: should this be cut off, no server starts on a half
//! of each; run again, it goes on.

use super::super::attributes::Attributes;
use super::super::backing::{exists, remove_file, remove_tree, rename_durably};
use super::super::mounts::Mounts;
use super::super::plant::{Planted, Planter, attributes, safe};
use super::super::snapshot::Tally;
use super::super::streams;
use super::super::survey::{Survey, read_dir, refuse_if_postmaster_runs, refuse_if_used};
use super::held::Held;
use crate::error::{Error, Result};
use crate::repository::{Entry, EntryKind, FileContent, SLOT_BYTES, Snapshot};
use crate::units::FileId;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::unistd::{Whence, lseek};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::fs::{self, File, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};

/// Without it PostgreSQL does not start.
const CONTROL: &str = "global/pg_control";
const CONTROL_ASIDE: &str = "global/pg_control.heatfs-restore";
/// Names that a report lists.
const LISTED_MAX: usize = 50;

/// What to bring back, and how.
#[derive(Clone, Debug)]
pub struct InPlacePlan {
    /// A directory that is there.
    pub into: PathBuf,
    /// Files compared at once, at least 1.
    pub streams: usize,
    /// Remove what the snapshot does not have.
    pub delete: bool,
    /// Only tell.
    pub dry_run: bool,
}

/// What was done, or would be.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct InPlaceReport {
    pub into: PathBuf,
    pub dry_run: bool,
    /// Files compared, and their sizes.
    pub files: u64,
    pub bytes: u64,
    /// Files with other bytes or another length, and bytes written to them; of holes only the length counts.
    pub changed_files: u64,
    pub written_bytes: u64,
    /// Names made, or made anew because something else was there.
    pub made: u64,
    /// Names whose owner, mode, times or attributes were set.
    pub attributes: u64,
    /// Names that the snapshot does not have: removed if that was asked for, else left.
    pub extra: u64,
    pub removed: bool,
    /// The first of them.
    pub extra_names: Vec<String>,
}

/// Counts of the streams.
#[derive(Default)]
struct Counts {
    changed_files: AtomicU64,
    written_bytes: AtomicU64,
    attributes: AtomicU64,
}

/// Errors: `Busy` for a directory that is used, or where something else is in the way and nothing is to be removed; `Corrupt` for what the repository cannot give back.
pub fn restore_in_place(snapshot: &Snapshot<'_>, plan: &InPlacePlan, tally: &Tally) -> Result<InPlaceReport> {
    let into = fs::canonicalize(&plan.into).map_err(|e| Error::io("find", plan.into.display().to_string(), e))?;
    if !into.is_dir() {
        return Err(Error::Invalid(format!("{} is not a directory", into.display())));
    }
    let names = names_of(snapshot)?;
    let was = Attributes::read(&into)?;
    if plan.dry_run {
        refuse_busy(&into)?;
        return bring(&names, Restoring::new(snapshot, plan, into.clone(), into, was), tally);
    }
    let held = Held::take(&into)?;
    // Looked at only now, when nobody else can come to anything in it any more.
    if let Err(busy) = refuse_busy(&into) {
        held.let_go()?;
        return Err(busy);
    }
    let restoring = Restoring::new(snapshot, plan, into, held.path().to_owned(), was);
    bring(&names, restoring, tally).map_err(|error| held.named(error))
}

fn bring(names: &BTreeMap<PathBuf, Entry>, mut restoring: Restoring<'_>, tally: &Tally) -> Result<InPlaceReport> {
    for entry in names.values() {
        if let EntryKind::File { file } = entry.kind {
            *restoring.links.entry(file).or_default() += 1;
        }
    }
    restoring.clear_extra(names)?;
    let control = names.contains_key(Path::new(CONTROL));
    restoring.put_control_aside(control)?;
    for (path, entry) in names {
        restoring.place(path, entry)?;
    }
    restoring.compare(tally)?;
    restoring.finish(control)
}

fn refuse_busy(into: &Path) -> Result<()> {
    refuse_if_postmaster_runs(into)?;
    let mounts = Mounts::read()?;
    if let Some(point) = mounts.below(into).next() {
        let (into, point) = (into.display(), point.display());
        return Err(Error::Invalid(format!("{point} is mounted inside {into}: unmount it first")));
    }
    refuse_if_used(&Survey::of(into, into, &mounts)?, into)
}

fn names_of(snapshot: &Snapshot<'_>) -> Result<BTreeMap<PathBuf, Entry>> {
    let missing = || Error::NotFound(format!("snapshot {} has no root directory", snapshot.id()));
    let mut names = BTreeMap::from([(PathBuf::new(), snapshot.lookup(b"")?.ok_or_else(missing)?)]);
    let mut walk = snapshot.walk(b"")?;
    while let Some((path, entry)) = walk.next()? {
        names.insert(safe(&path)?.to_owned(), entry);
    }
    Ok(names)
}

struct Restoring<'a> {
    snapshot: &'a Snapshot<'a>,
    plan: &'a InPlacePlan,
    /// Where it is worked.
    into: PathBuf,
    /// What the directory itself was before it was held.
    was: Attributes,
    report: InPlaceReport,
    /// Names of each file in the snapshot.
    links: HashMap<FileId, u64>,
    /// Inodes that are a file's already.
    claimed: HashMap<(u64, u64), FileId>,
    planter: Planter,
    /// That were there before.
    directories: Vec<(PathBuf, Attributes)>,
    /// Files that were there before.
    tasks: Vec<Planted>,
}

fn stat(path: &Path) -> Result<Option<Metadata>> {
    match fs::symlink_metadata(path) {
        Ok(meta) => Ok(Some(meta)),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
        // Something else is where a directory should be: then this is not there.
        Err(e) if e.kind() == std::io::ErrorKind::NotADirectory => Ok(None),
        Err(e) => Err(Error::io("stat", path.display().to_string(), e)),
    }
}

impl<'a> Restoring<'a> {
    /// `named`: the directory as it is told.
    fn new(snapshot: &'a Snapshot<'a>, plan: &'a InPlacePlan, named: PathBuf, into: PathBuf, was: Attributes) -> Self {
        Restoring {
            snapshot,
            plan,
            into,
            was,
            report: InPlaceReport { into: named, dry_run: plan.dry_run, ..InPlaceReport::default() },
            links: HashMap::new(),
            claimed: HashMap::new(),
            planter: Planter::default(),
            directories: Vec::new(),
            tasks: Vec::new(),
        }
    }

    /// Where a name of the snapshot is while this is under way.
    fn path_of(&self, relative: &Path) -> PathBuf {
        if relative == Path::new(CONTROL) && !self.plan.dry_run {
            return self.into.join(CONTROL_ASIDE);
        }
        if relative.as_os_str().is_empty() { self.into.clone() } else { self.into.join(relative) }
    }

    /// What the snapshot does not have, and directories in the place of something else.
    fn clear_extra(&mut self, names: &BTreeMap<PathBuf, Entry>) -> Result<()> {
        let (mut extra, mut pending) = (Vec::new(), vec![PathBuf::new()]);
        while let Some(dir) = pending.pop() {
            for path in read_dir(&self.path_of(&dir))? {
                let relative = path.strip_prefix(&self.into).unwrap_or(&path).to_owned();
                let Some(meta) = stat(&path)? else { continue };
                match names.get(&relative) {
                    Some(Entry { kind: EntryKind::Directory, .. }) if meta.is_dir() => pending.push(relative),
                    Some(_) if !meta.is_dir() => {}
                    None if relative == Path::new(CONTROL_ASIDE) => {}
                    found => {
                        if found.is_some() && !self.plan.delete && !self.plan.dry_run {
                            return Err(Error::Busy(format!(
                                "{} is a directory where the snapshot has something else: --delete removes it with all that is in it",
                                path.display()
                            )));
                        }
                        extra.push(relative);
                    }
                }
            }
        }
        extra.sort();
        self.report.extra = extra.len() as u64;
        let shown = |path: &PathBuf| path.to_string_lossy().into_owned();
        self.report.extra_names = extra.iter().take(LISTED_MAX).map(shown).collect();
        self.report.removed = self.plan.delete;
        if self.plan.delete && !self.plan.dry_run {
            for relative in &extra {
                let path = self.into.join(relative);
                match stat(&path)?.is_some_and(|meta| meta.is_dir()) {
                    true => remove_tree(&path)?,
                    false => remove_file(&path)?,
                }
            }
        }
        Ok(())
    }

    fn put_control_aside(&self, wanted: bool) -> Result<()> {
        let (control, aside) = (self.into.join(CONTROL), self.into.join(CONTROL_ASIDE));
        let parent = self.into.join("global");
        // A link may lead to the directory of another server.
        let is_ours = stat(&parent)?.is_some_and(|meta| meta.is_dir());
        if !wanted || self.plan.dry_run || !is_ours || !exists(&control)? {
            return Ok(());
        }
        // The directory is not to look changed for this.
        let was = Attributes::read(&parent)?;
        rename_durably(&control, &aside)?;
        was.apply(&parent)
    }

    /// Makes a name if it is not there as it should be. Its bytes come later.
    fn place(&mut self, relative: &Path, entry: &Entry) -> Result<()> {
        let path = self.path_of(relative);
        let there = stat(&path)?;
        if let (Some(meta), true) = (&there, relative.as_os_str().is_empty())
            && meta.is_dir()
        {
            let was = self.was.clone();
            self.adopt_directory(path, attributes(entry)?, &was);
            return Ok(());
        }
        match (&entry.kind, &there) {
            (EntryKind::Directory, Some(meta)) if meta.is_dir() => {
                let was = Attributes::read(&path)?;
                self.adopt_directory(path, attributes(entry)?, &was);
                return Ok(());
            }
            (EntryKind::File { file }, Some(meta)) if meta.is_file() && self.is_right_inode(*file, meta, &path) => {
                if self.claimed.insert((meta.dev(), meta.ino()), *file).is_none() {
                    self.planter.adopt_file(*file, &path);
                    self.tasks.push(Planted { file: *file, path, attributes: attributes(entry)? });
                }
                return Ok(());
            }
            (kind, Some(meta)) if is_same_node(kind, meta, &path) => {
                return self.set_attributes(&path, &attributes(entry)?);
            }
            _ => {}
        }
        self.report.made += 1;
        if self.plan.dry_run {
            if let EntryKind::File { file } = entry.kind
                && self.planter.first_name(file).is_none()
            {
                let content = self.snapshot.file(file)?;
                self.planter.adopt_file(file, &path);
                self.report.files += 1;
                self.report.bytes += content.size();
                self.report.changed_files += 1;
                self.report.written_bytes += content.size();
            }
            return Ok(());
        }
        if there.is_some() {
            remove_file(&path)?;
        }
        self.planter.make(&path, entry)
    }

    /// May this inode become the file? Not if it is another's already, if the file has another one, or if it has names that are none of the snapshot's: what is
    /// written here must not be seen there.
    fn is_right_inode(&self, file: FileId, meta: &Metadata, path: &Path) -> bool {
        if let Some(owner) = self.claimed.get(&(meta.dev(), meta.ino())) {
            return *owner == file;
        }
        let first_name = self.planter.first_name(file);
        first_name.is_none_or(|first| first == path) && meta.nlink() <= self.links.get(&file).copied().unwrap_or(1)
    }

    /// A directory that is there gets its attributes last, since what is done in it changes its times.
    fn adopt_directory(&mut self, path: PathBuf, wanted: Attributes, was: &Attributes) {
        if !wanted.is_like(was) {
            self.report.attributes += 1;
        }
        self.directories.push((path, wanted));
    }

    fn set_attributes(&mut self, path: &Path, wanted: &Attributes) -> Result<()> {
        if !wanted.is_like(&Attributes::read(path)?) {
            self.report.attributes += 1;
            if !self.plan.dry_run {
                wanted.apply(path)?;
            }
        }
        Ok(())
    }

    /// Brings the bytes of all files to what they should be.
    fn compare(&mut self, tally: &Tally) -> Result<()> {
        let (mut tasks, made) = (std::mem::take(&mut self.tasks), std::mem::take(&mut self.planter.files));
        let fresh: HashSet<FileId> = made.iter().map(|planted| planted.file).collect();
        tasks.extend(made);
        for task in &tasks {
            self.report.files += 1;
            self.report.bytes += self.snapshot.file(task.file)?.size();
        }
        tally.expect(self.report.bytes);
        let counts = Counts::default();
        let (snapshot, dry_run) = (self.snapshot, self.plan.dry_run);
        streams::run(tasks, self.plan.streams, |task, _| {
            let content = snapshot.file(task.file)?;
            let written = Delta { content: &content, path: &task.path, dry_run, tally }.bring()?;
            if let Some(bytes) = written {
                counts.changed_files.fetch_add(1, Ordering::Relaxed);
                counts.written_bytes.fetch_add(bytes, Ordering::Relaxed);
            }
            // Before anything was written its times were as they were.
            if written.is_some() && !dry_run || !task.attributes.is_like(&Attributes::read(&task.path)?) {
                if !fresh.contains(&task.file) && written.is_none() {
                    counts.attributes.fetch_add(1, Ordering::Relaxed);
                }
                if !dry_run {
                    task.attributes.apply(&task.path)?;
                }
            }
            Ok(())
        })?;
        self.report.changed_files += counts.changed_files.into_inner();
        self.report.written_bytes += counts.written_bytes.into_inner();
        self.report.attributes += counts.attributes.into_inner();
        Ok(())
    }

    fn finish(self, control: bool) -> Result<InPlaceReport> {
        if self.plan.dry_run {
            return Ok(self.report);
        }
        self.sync()?;
        if control {
            rename_durably(&self.into.join(CONTROL_ASIDE), &self.into.join(CONTROL))?;
        }
        // Last of all, since names in them have changed.
        self.planter.finish_directories()?;
        for (path, wanted) in self.directories.iter().rev() {
            if !wanted.is_like(&Attributes::read(path)?) {
                wanted.apply(path)?;
            }
        }
        self.sync()?;
        Ok(self.report)
    }

    fn sync(&self) -> Result<()> {
        let sync = || nix::unistd::syncfs(&File::open(&self.into)?).map_err(std::io::Error::from);
        sync().map_err(|error| Error::io("sync the filesystem of", self.into.display().to_string(), error))
    }
}

/// A link, pipe, socket or device as the snapshot has it.
fn is_same_node(kind: &EntryKind, meta: &Metadata, path: &Path) -> bool {
    let node = meta.file_type();
    match kind {
        EntryKind::Symlink { target } => {
            fs::read_link(path).is_ok_and(|leads_to| leads_to.as_os_str().as_bytes() == target.as_slice())
        }
        EntryKind::CharDevice { rdev } => node.is_char_device() && meta.rdev() == *rdev,
        EntryKind::BlockDevice { rdev } => node.is_block_device() && meta.rdev() == *rdev,
        EntryKind::Fifo => node.is_fifo(),
        EntryKind::Socket => node.is_socket(),
        EntryKind::File { .. } | EntryKind::Directory => false,
    }
}

/// One file and what it should hold.
struct Delta<'a> {
    content: &'a FileContent<'a>,
    path: &'a Path,
    dry_run: bool,
    tally: &'a Tally,
}

impl Delta<'_> {
    fn io(&self, action: &'static str, error: std::io::Error) -> Error {
        Error::io(action, self.path.display().to_string(), error)
    }

    /// Bytes written, or that would be; None: it was as it should be.
    fn bring(&self) -> Result<Option<u64>> {
        let file = File::options().read(true).write(!self.dry_run).open(self.path);
        let file = file.map_err(|e| self.io("open", e))?;
        let length = file.metadata().map_err(|e| self.io("stat", e))?.len();
        let size = self.content.size();
        let mut written = (length != size).then_some(0);
        if length != size && !self.dry_run {
            file.set_len(size).map_err(|e| self.io("set length of", e))?;
        }
        let mut at = 0;
        while let Some(run) = self.content.run(at)? {
            let more =
                if run.hole { self.clear(&file, run.start, run.end)? } else { self.fill(&file, run.start, run.end)? };
            if more > 0 {
                written = Some(written.unwrap_or(0) + more);
            }
            self.tally.done(run.end - at);
            at = run.end;
        }
        Ok(written)
    }

    /// Slot by slot, of each the pages that differ.
    fn fill(&self, file: &File, start: u64, end: u64) -> Result<u64> {
        let (mut at, mut written) = (start, 0);
        while at < end {
            let stop = ((at / SLOT_BYTES + 1) * SLOT_BYTES).min(end);
            let mut local = vec![0; usize::try_from(stop - at).unwrap_or(0)];
            let mut filled = 0;
            while filled < local.len() {
                match file.read_at(&mut local[filled..], at + filled as u64) {
                    Ok(0) => break,
                    Ok(more) => filled += more,
                    Err(e) if e.kind() == std::io::ErrorKind::Interrupted => {}
                    Err(e) => return Err(self.io("read", e)),
                }
            }
            self.content.differences(at, &local, &mut |offset, bytes| {
                written += bytes.len() as u64;
                match self.dry_run {
                    true => Ok(()),
                    false => file.write_all_at(bytes, offset).map_err(|e| self.io("write", e)),
                }
            })?;
            at = stop;
        }
        Ok(written)
    }

    /// A hole of the snapshot: what is there goes, if it is anything but zeros.
    fn clear(&self, file: &File, start: u64, end: u64) -> Result<u64> {
        let (mut at, mut cleared) = (start, 0);
        let offset = |bytes: u64| i64::try_from(bytes).map_err(|_| self.io("seek", Errno::EOVERFLOW.into()));
        while at < end {
            let from = match lseek(file, offset(at)?, Whence::SeekData) {
                Ok(found) => u64::try_from(found).unwrap_or(end).max(at),
                Err(Errno::ENXIO) => return Ok(cleared),
                Err(e) => return Err(self.io("seek", e.into())),
            };
            let stop = (from + SLOT_BYTES).min(end);
            if from >= end {
                return Ok(cleared);
            }
            let mut local = vec![0; usize::try_from(stop - from).unwrap_or(0)];
            let filled = file.read_at(&mut local, from).map_err(|e| self.io("read", e))?;
            local.truncate(filled);
            if local.iter().any(|byte| *byte != 0) {
                cleared += stop - from;
                if !self.dry_run {
                    let flags = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
                    match fallocate(file, flags, offset(from)?, offset(stop - from)?) {
                        Ok(()) => {}
                        Err(Errno::EOPNOTSUPP) => {
                            local.fill(0);
                            file.write_all_at(&local, from).map_err(|e| self.io("write", e))?;
                        }
                        Err(e) => return Err(self.io("punch", e.into())),
                    }
                }
            }
            at = stop;
        }
        Ok(cleared)
    }
}

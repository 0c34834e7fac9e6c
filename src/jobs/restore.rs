//! Restore: a snapshot, or a part of it, as plain files in a directory.
//!
//! Names are made first, one after the other, in the order of paths; bytes follow in several streams. Attributes come after the bytes, those of
//! directories last of all, since filling them changes their times. Everything is durable when [`restore`] returns.

mod held;
mod in_place;

pub use in_place::{InPlacePlan, InPlaceReport, restore_in_place};

use self::held::Held;
use super::plant::{Planted, Planter, safe};
use super::snapshot::Tally;
use super::streams;
use crate::error::{Error, Result};
use crate::repository::{Entry, EntryKind, Snapshot};
use std::fs::{self, File};
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};

/// What to restore, and where.
#[derive(Clone, Debug)]
pub struct RestorePlan {
    /// Path within the snapshot; empty: all of it.
    pub only: Vec<u8>,
    /// Absent, or an empty directory. Of a single file: the directory that it is put into.
    pub into: PathBuf,
    /// Files restored at once, at least 1.
    pub streams: usize,
}

/// What was restored.
#[derive(Clone, Debug, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct RestoreReport {
    pub into: PathBuf,
    pub names: u64,
    pub files: u64,
    /// Sizes of the files.
    pub bytes: u64,
}

/// Errors: `NotFound` for a path that the snapshot does not have, `Busy` for a directory that is not empty, `Corrupt` with object and
/// offset for what the repository cannot give back (I8). A failed restore leaves what it has made.
pub fn restore(snapshot: &Snapshot<'_>, plan: &RestorePlan, tally: &Tally) -> Result<RestoreReport> {
    let wanted = || format!("{} in snapshot {}", String::from_utf8_lossy(&plan.only), snapshot.id());
    let top = snapshot.lookup(&plan.only)?.ok_or_else(|| Error::NotFound(format!("{}: no such path", wanted())))?;
    let held = make_empty(&plan.into)?;
    let is_directory = top.kind == EntryKind::Directory;
    let restored = fill(snapshot, plan, &top, held.path(), tally).map_err(|error| held.named(error));
    if !is_directory {
        held.let_go()?;
    }
    restored
}

/// All of it, below `into`.
fn fill(snapshot: &Snapshot<'_>, plan: &RestorePlan, top: &Entry, into: &Path, tally: &Tally) -> Result<RestoreReport> {
    let mut report = RestoreReport { into: plan.into.clone(), names: 1, ..RestoreReport::default() };
    let mut planter = Planter::default();
    if top.kind == EntryKind::Directory {
        planter.adopt_directory(into, top)?;
        let mut walk = snapshot.walk(&plan.only)?;
        while let Some((path, entry)) = walk.next()? {
            let below = path.strip_prefix(plan.only.as_slice()).unwrap_or(&path);
            let below = below.strip_prefix(b"/").unwrap_or(below);
            planter.make(&into.join(safe(below)?), &entry)?;
            report.names += 1;
        }
    } else {
        let name = plan.only.rsplit(|byte| *byte == b'/').next().unwrap_or_default();
        planter.make(&into.join(safe(name)?), top)?;
    }
    report.files = planter.files.len() as u64;
    for task in &planter.files {
        report.bytes += snapshot.file(task.file)?.size();
    }
    tally.expect(report.bytes);
    streams::run(std::mem::take(&mut planter.files), plan.streams, |task, buf| {
        fill_file(snapshot, task, buf, tally).and_then(|()| task.attributes.apply(&task.path))
    })?;
    planter.finish_directories()?;
    let io = |error| Error::io("sync the filesystem of", into.display().to_string(), error);
    let directory = File::open(into).map_err(io)?;
    nix::unistd::syncfs(&directory).map_err(|errno| io(errno.into()))?;
    Ok(report)
}

/// The directory, made if it was not there, and held.
fn make_empty(into: &Path) -> Result<Held> {
    let io = |action, error| Error::io(action, into.display().to_string(), error);
    let there = match fs::DirBuilder::new().mode(0o700).create(into) {
        Ok(()) => into.to_owned(),
        // A link that was there before may well be meant.
        Err(error) if error.kind() == std::io::ErrorKind::AlreadyExists => {
            fs::canonicalize(into).map_err(|error| io("find", error))?
        }
        Err(error) => return Err(io("create", error)),
    };
    let held = Held::take(&there)?;
    // Looked at only now, when nobody else can put anything into it.
    let listed = fs::read_dir(held.path()).map(|mut names| names.next().is_none());
    match listed.map_err(|error| io("list", error)) {
        Ok(true) => Ok(held),
        other => {
            held.let_go()?;
            other.and(Err(Error::Busy(format!(
                "{} is not empty: a restore wants an empty directory, or one that does not exist yet",
                into.display()
            ))))
        }
    }
}

/// Holes stay holes.
fn fill_file(snapshot: &Snapshot<'_>, task: &Planted, buf: &mut [u8], tally: &Tally) -> Result<()> {
    let io = |action, error| Error::io(action, task.path.display().to_string(), error);
    let content = snapshot.file(task.file)?;
    let to = File::options().write(true).open(&task.path).map_err(|error| io("open", error))?;
    to.set_len(content.size()).map_err(|error| io("set length of", error))?;
    let mut at = 0;
    while let Some(run) = content.run(at)? {
        let mut from = run.start;
        while !run.hole && from < run.end {
            let stop = streams::read_end(from, run.end);
            let part = &mut buf[..usize::try_from(stop - from).unwrap_or(0)];
            let read = content.read(from, part)?;
            to.write_all_at(&part[..read], from).map_err(|error| io("write", error))?;
            from = stop;
        }
        tally.done(run.end - at);
        at = run.end;
    }
    Ok(())
}

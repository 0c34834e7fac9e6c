//! Snapshots of a running volume: the moment, the names, the bytes behind them, into the repository.
//!
//! [`take`] begins a writer, then takes the mark and the moment of the namespace together; from there on nothing holds up the foreground. Names
//! are written while they are walked, bytes by several streams at once: only pages that changed since the parent, if the volume still knows
//! it; else everything, compared with what the parent has. The root makes the snapshot exist; then the volume may count from it.
//!
//! Once the names are kept beside the mark ([`image`]) the snapshot needs neither this daemon nor this moment any more: [`resume`] goes on with it
//! after a crash, or when the repository works again.

mod capture;
mod content;
mod image;
mod names;
mod pages;
mod reopening;

pub use content::{PublishedSnapshots, SnapshotContent};
pub use names::{ImageEntry, Inode, Moment, Names};
pub use pages::{BadPage, PageReport};
pub(super) use reopening::Reopening;

use crate::device::clock::{Instant, monotonic_now, wall_now};
use crate::device::real::RealDevice;
use crate::error::{Error, Result};
use crate::jobs::hooks::{BackupLabel, Hooks};
use crate::jobs::pace::Pace;
use crate::repository::{Consistency, Repository, Root, SnapshotMeta, Writer, WriterOptions};
use crate::units::FileId;
use crate::volume::{FileAt, Mark, Volume};
use image::{Head, ImageReader, ImageWriter};
use names::{Listed, Listing};
use pages::Pages;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

/// Label under which a snapshot notes the engine's name of its mark: by it the volume knows what changed since.
const LABEL_MARK: &str = "heatfs.mark";
/// Label under which it notes what was found of its pages' checksums, as JSON.
const LABEL_PAGES: &str = "heatfs.pages";
/// Label under which it notes what failed of the hooks after the moment.
const LABEL_TROUBLE: &str = "heatfs.trouble";
/// Labels that start with this are ours.
pub const LABEL_PREFIX: &str = "heatfs.";
/// Longest key and value of a label, in bytes.
const LABEL_BYTES_MAX: usize = 256;

/// Bytes to do and done, for whoever shows progress.
#[derive(Default)]
pub struct Tally {
    pub total_bytes: AtomicU64,
    pub done_bytes: AtomicU64,
}

impl Tally {
    pub fn remaining_bytes(&self) -> u64 {
        self.total_bytes.load(Ordering::Relaxed).saturating_sub(self.done_bytes.load(Ordering::Relaxed))
    }

    pub(super) fn expect(&self, bytes: u64) {
        self.total_bytes.fetch_add(bytes, Ordering::Relaxed);
    }

    pub(super) fn done(&self, bytes: u64) {
        self.done_bytes.fetch_add(bytes, Ordering::Relaxed);
    }
}

/// What a snapshot is taken of, and into what.
pub struct Source<'a> {
    pub volume: &'a Arc<Volume>,
    pub names: &'a dyn Names,
    pub repository: &'a Repository,
    /// Files captured at once, at least 1.
    pub streams: usize,
    /// What is done around the moment.
    pub hooks: &'a Hooks,
    /// What keeps the capture out of the way of the volume's users.
    pub pace: Pace,
}

/// One snapshot in short, as commands show it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SnapshotInfo {
    pub id: String,
    pub volume: String,
    pub parent: Option<String>,
    /// Nanoseconds since 1970.
    pub taken_ns: i64,
    pub lsn: u64,
    /// `crash`: as after a power cut; `app`: the database took part.
    pub consistency: String,
    pub labels: BTreeMap<String, String>,
    pub files: u64,
    pub logical_bytes: u64,
    /// Bytes of pages that had changed since the parent, and were read: all, without a parent.
    #[serde(default)]
    pub changed_bytes: u64,
    /// Bytes of changed pages that were neither zero nor in the repository already, before compression.
    pub new_bytes: u64,
    /// What it added to the repository.
    pub stored_bytes: u64,
    /// PostgreSQL's checksums of its pages; None: no cluster in it has any.
    #[serde(default)]
    pub pages: Option<PageReport>,
    /// What PostgreSQL said of its backup mode.
    #[serde(default)]
    pub backup_label: Option<BackupLabel>,
    /// What failed after the moment was taken, of what was to be done for the database.
    #[serde(default)]
    pub trouble: Option<String>,
}

/// What a snapshot says about the checksums of its pages.
fn page_report(root: &Root) -> Option<PageReport> {
    serde_json::from_str(root.meta.labels.get(LABEL_PAGES)?).ok()
}

impl SnapshotInfo {
    pub fn of(root: &Root) -> SnapshotInfo {
        let labels = root.meta.labels.iter().filter(|(key, _)| !key.starts_with(LABEL_PREFIX));
        SnapshotInfo {
            id: root.id.to_string(),
            volume: root.volume.to_string(),
            parent: root.parent.map(|parent| parent.to_string()),
            taken_ns: root.meta.taken.0,
            lsn: root.meta.lsn.0,
            consistency: match root.meta.consistency {
                Consistency::Crash => "crash".to_owned(),
                Consistency::App => "app".to_owned(),
            },
            labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            files: root.stats.files,
            logical_bytes: root.stats.logical_bytes,
            changed_bytes: root.stats.given_bytes,
            new_bytes: root.stats.new_raw_bytes,
            stored_bytes: root.stats.stored_bytes,
            pages: page_report(root),
            // One that does not read is not worth more here than none: `restore` says what is wrong with it.
            backup_label: BackupLabel::decode(&root.meta.backup_label).ok().flatten(),
            trouble: root.meta.labels.get(LABEL_TROUBLE).cloned(),
        }
    }
}

/// Opens the repository in a directory. Errors: `NotFound` without one, `Invalid` for a wrong key or a format of the future.
pub fn open_repository(path: &Path, key_file: Option<&Path>) -> Result<Repository> {
    let device = RealDevice::open(path).map_err(|e| Error::io("open repository", path.display().to_string(), e))?;
    Repository::open(device, read_key(key_file)?.as_deref())
}

/// The key in a file, if one is named.
pub fn read_key(key_file: Option<&Path>) -> Result<Option<Vec<u8>>> {
    let read = |path: &Path| std::fs::read(path).map_err(|e| Error::io("read key file", path.display().to_string(), e));
    key_file.map(read).transpose()
}

/// Errors: `Invalid` for labels that are ours, empty or too long.
pub fn check_labels(labels: &BTreeMap<String, String>) -> Result<()> {
    for (key, value) in labels {
        if key.is_empty() || key.len() > LABEL_BYTES_MAX || value.len() > LABEL_BYTES_MAX {
            return Err(Error::Invalid(format!(
                "label `{key}`: a key of 1 to {LABEL_BYTES_MAX} bytes and a value of at most as many are allowed"
            )));
        }
        if key.starts_with(LABEL_PREFIX) {
            return Err(Error::Invalid(format!(
                "label `{key}`: keys that begin with `{LABEL_PREFIX}` are heatfs's own"
            )));
        }
    }
    Ok(())
}

/// Takes a snapshot and returns when it is durable in the repository. Errors: `Unfinished` when the repository failed and the mark is left for [`resume`].
pub fn take(source: &Source<'_>, labels: BTreeMap<String, String>, tally: &Tally) -> Result<Root> {
    check_labels(&labels)?;
    let broke_off = broke_off(source)?;
    // What was stored meanwhile is found again.
    until_not_overtaken(|attempt| take_once(source, labels.clone(), tally, broke_off || attempt > 0))
}

/// Goes on with a snapshot whose mark is pending since an earlier mount, or since the repository failed. Errors: as [`take`]; after any other than
/// `Unfinished` the mark is given up.
pub fn resume(source: &Source<'_>, mark: &Arc<Mark>, tally: &Tally) -> Result<Root> {
    let pending = Pending { volume: source.volume, mark: mark.clone(), kept: true };
    let outcome = until_not_overtaken(|_| go_on(source, mark, tally));
    pending.end(source.repository, outcome)
}

/// A prune may take what was to be shared: then it begins again.
fn until_not_overtaken(mut attempt: impl FnMut(u32) -> Result<Root>) -> Result<Root> {
    let mut attempts = 0;
    loop {
        match attempt(attempts) {
            Err(Error::Overtaken(why)) => tracing::info!("the snapshot begins again: {why}"),
            outcome => return outcome,
        }
        attempts += 1;
    }
}

/// Is there a lease of this volume? One snapshot is taken at a time, so it was left by one that broke off.
fn broke_off(source: &Source<'_>) -> Result<bool> {
    let own = source.volume.volume_id();
    Ok(source.repository.leases()?.iter().any(|(lease, _)| lease.volume == own))
}

/// The snapshot that changes are told against: the latest of this volume that it still knows, else the latest, to be compared with.
struct Parent {
    root: Option<Root>,
    mark: Option<Uuid>,
}

/// The engine's name of a snapshot's mark.
pub(super) fn mark_of(root: &Root) -> Option<Uuid> {
    root.meta.labels.get(LABEL_MARK)?.parse().ok()
}

/// `mark`: of the snapshot to be made, if it was taken before; a parent is older.
fn find_parent(source: &Source<'_>, mark: Option<&Mark>) -> Result<Parent> {
    let mut roots = source.repository.snapshots()?;
    let own = source.volume.volume_id();
    let newer = |root: &Root| mark.is_some_and(|mark| root.meta.epoch >= u64::from(mark.epoch));
    roots.retain(|root| root.volume != own || !newer(root));
    let mark = |root: &Root| mark_of(root).filter(|mark| source.volume.knows_parent(*mark));
    // Also the snapshot that the volume was made of, if it is here.
    roots.retain(|root| root.volume == own || mark(root).is_some());
    match roots.iter().rev().find(|root| mark(root).is_some()) {
        Some(root) => Ok(Parent { mark: mark(root), root: Some(root.clone()) }),
        None => Ok(Parent { root: roots.pop(), mark: None }),
    }
}

/// A mark in use. It ends with this, unless it is left for [`resume`].
struct Pending<'a> {
    volume: &'a Volume,
    mark: Arc<Mark>,
    /// All that [`resume`] needs is kept.
    kept: bool,
}

impl Pending<'_> {
    /// Leaves the mark pending if it is the repository that failed, or if the volume has ended.
    fn end(self, repository: &Repository, outcome: Result<Root>) -> Result<Root> {
        let (kept, failed) = (self.kept, self.mark.failure().is_some());
        match outcome {
            Err(Error::Io { path, action, source }) if kept && !failed && path.starts_with(&repository.path()) => {
                std::mem::forget(self);
                Err(Error::Unfinished { why: Error::Io { path, action, source }.to_string() })
            }
            Err(Error::ReadOnly { why }) if kept && !failed => {
                std::mem::forget(self);
                Err(Error::Unfinished { why })
            }
            outcome => outcome,
        }
    }
}

impl Drop for Pending<'_> {
    fn drop(&mut self) {
        self.volume.release_mark(&self.mark);
    }
}

/// `broke_off`: an earlier attempt may have stored much of this already.
fn take_once(source: &Source<'_>, labels: BTreeMap<String, String>, tally: &Tally, broke_off: bool) -> Result<Root> {
    let began = monotonic_now();
    let parent = find_parent(source, None)?;
    let writer = begin_writer(source, &parent, broke_off)?;
    let held = source.hooks.hold()?;
    let moment = source.names.begin()?;
    let taken = moment.take(&|| source.volume.mark(Uuid::new_v4()));
    let around = held.let_go();
    let mut pending = Pending { volume: source.volume, mark: taken?, kept: false };
    let backup_label = around.label.map(|label| label.encode());
    let head = Head { labels, backup_label, trouble: around.trouble };
    let capture = Attempt { source, writer, parent, mark: &pending.mark.clone(), tally, began };
    let outcome = capture.first(moment, head, &mut pending.kept);
    pending.end(source.repository, outcome)
}

/// As [`take_once`], for a moment that is over: what was said then, and the names, are kept beside the mark.
fn go_on(source: &Source<'_>, mark: &Mark, tally: &Tally) -> Result<Root> {
    let began = monotonic_now();
    let name = mark.snapshot.to_string();
    let stored =
        source.repository.snapshots()?.into_iter().find(|root| root.meta.labels.get(LABEL_MARK) == Some(&name));
    if let Some(root) = stored {
        publish(source.volume, mark, &root);
        return Ok(root);
    }
    let kept = source.volume.image(mark)?;
    let kept =
        kept.ok_or_else(|| Error::SnapshotFailed { why: "it was cut off before its names were kept".to_owned() })?;
    let (head, mut rows) = ImageReader::open(&kept)?;
    let parent = find_parent(source, Some(mark))?;
    let writer = begin_writer(source, &parent, true)?;
    let files = files_of(source.volume, mark)?;
    let mut listing = Listing::new(&writer, &files);
    while let Some((path, entry)) = rows.next()? {
        listing.add(&path, &entry)?;
    }
    let listed = listing.finish(&writer)?;
    Attempt { source, writer, parent, mark, tally, began }.store(listed, head)
}

fn begin_writer<'r>(source: &Source<'r>, parent: &Parent, broke_off: bool) -> Result<Writer<'r>> {
    let volume = source.volume.volume_id();
    source.repository.begin(WriterOptions {
        volume,
        parent: parent.root.as_ref().map(|root| root.id),
        now: wall_now(),
        search_repository: parent.mark.is_none() || broke_off,
        parent_of_other_volume: parent.root.as_ref().is_some_and(|root| root.volume != volume),
    })
}

fn files_of(volume: &Volume, mark: &Mark) -> Result<HashMap<FileId, FileAt>> {
    Ok(volume.files_at(mark)?.into_iter().map(|file| (file.file, file)).collect())
}

/// The snapshot exists. If the volume cannot note it, the next one compares with it instead.
fn publish(volume: &Volume, mark: &Mark, root: &Root) {
    if let Err(error) = volume.publish_mark(mark, None) {
        tracing::warn!("snapshot {}: the next one will read everything: {error}", root.id);
    }
}

/// One attempt to store a snapshot whose moment is over.
struct Attempt<'a> {
    source: &'a Source<'a>,
    writer: Writer<'a>,
    parent: Parent,
    mark: &'a Mark,
    tally: &'a Tally,
    began: Instant,
}

impl Attempt<'_> {
    /// Walks the names, and keeps them for [`resume`]: `kept` says whether that is done.
    fn first(self, moment: Box<dyn Moment>, head: Head, kept: &mut bool) -> Result<Root> {
        let volume = self.source.volume;
        volume.wait_for_mark(self.mark)?;
        let files = files_of(volume, self.mark)?;
        let mut listing = Listing::new(&self.writer, &files);
        let mut image = ImageWriter::begin(&head)?;
        names::walk(&*moment, &files, &mut |path, entry| {
            image.add(path, entry)?;
            listing.add(path, entry)
        })?;
        drop(moment);
        let listed = listing.finish(&self.writer)?;
        match image.finish().and_then(|image| volume.keep_image(self.mark, &image)) {
            Ok(()) => *kept = true,
            Err(error) => tracing::warn!("the snapshot under way would not outlive this daemon: {error}"),
        }
        self.store(listed, head)
    }

    /// Captures the bytes and publishes the snapshot.
    fn store(self, listed: Listed, head: Head) -> Result<Root> {
        let Attempt { source, writer, parent, mark, tally, began } = self;
        let rested_before = source.pace.rested();
        let named_after = began.elapsed();
        let read = |file, at, buf: &mut [u8]| source.volume.read_at(mark, file, at, buf);
        let pages = Pages::open(listed.pages, parent.root.as_ref().and_then(page_report).as_ref(), &read)?;
        let (parent_mark, kept_at) = (parent.mark, Mutex::new(monotonic_now()));
        capture::Capture { source, writer: &writer, mark, parent: parent_mark, tally, pages: &pages, kept_at }
            .run(listed.files)?;
        let captured_after = began.elapsed();
        let mut labels = head.labels;
        labels.insert(LABEL_MARK.to_owned(), mark.snapshot.to_string());
        if let Some(report) = pages.report() {
            // Plain data: encoding it cannot fail.
            labels.insert(LABEL_PAGES.to_owned(), serde_json::to_string(&report).unwrap_or_default());
        }
        if let Some(trouble) = head.trouble {
            labels.insert(LABEL_TROUBLE.to_owned(), trouble);
        }
        let root = writer.commit(
            listed.names,
            SnapshotMeta {
                lsn: mark.lsn,
                epoch: u64::from(mark.epoch),
                taken: mark.wall,
                consistency: if head.backup_label.is_some() { Consistency::App } else { Consistency::Crash },
                labels,
                backup_label: head.backup_label.unwrap_or_default(),
            },
        )?;
        publish(source.volume, mark, &root);
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        tracing::info!(
            id = %root.id,
            names_ms = millis(named_after),
            bytes_ms = millis(captured_after.saturating_sub(named_after)),
            of_that_all_streams_rested_ms = millis(source.pace.rested().saturating_sub(rested_before)),
            publish_ms = millis(began.elapsed().saturating_sub(captured_after)),
            "snapshot captured"
        );
        Ok(root)
    }
}

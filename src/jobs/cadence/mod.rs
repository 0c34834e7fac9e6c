//! The keeper of a volume's snapshots: takes them, when asked or by the calendar, one at a time; deletes what no rule keeps; prunes and verifies the
//! repository within their budgets; and remembers how all that went.
//!
//! One thread does what is scheduled, so nothing of it ever overlaps. When it is due, it is due: a failure is told, retried ever more rarely, and counts
//! until a snapshot succeeds. What is known is read from the repository, not from a file of our own: when the last snapshot was taken, and when
//! which pack was verified. So a daemon that was down goes on where the repository is, and a repository that comes back is looked at anew.
//!
//! Retention and prune look at no clock: retention compares snapshots with each other, and prune goes by generations, so either may run
//! beside other writers of the repository.

mod calendar;
mod status;
mod thread;

pub use calendar::Calendar;
pub use status::SnapshotsStatus;

use super::events::{Events, What};
use super::hooks::{HookSettings, Hooks};
use super::pace::Pace;
use super::relations::Relations;
use super::snapshot::{self, Names, PageReport, PublishedSnapshots, SnapshotInfo, Source, Tally, open_repository};
use crate::device::clock::{monotonic_now, wall_now};
use crate::error::{Error, Result};
use crate::repository::{Repository, Retention, Root, SnapshotId, Verdict, judge};
use crate::units::WallNs;
use crate::volume::{SnapshotStore, Volume};
use crossbeam_channel::Sender;
use parking_lot::Mutex;
use std::collections::BTreeMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Wrong pages that are logged with the names of their relations.
const PAGES_LOGGED: usize = 20;

/// Why a snapshot is taken.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Reason {
    Request,
    Schedule,
    /// It was begun before, and something came in between.
    Resume,
}

impl Reason {
    pub fn as_str(self) -> &'static str {
        match self {
            Reason::Request => "request",
            Reason::Schedule => "schedule",
            Reason::Resume => "resume",
        }
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct SnapshotSettings {
    /// The repository's directory; None: no snapshots are taken.
    pub repository: Option<PathBuf>,
    /// What an encrypted repository was made with.
    pub key_file: Option<PathBuf>,
    /// Files captured at once.
    pub streams: usize,
    /// Share of its time that each stream works while others need the machine.
    pub busy_share: f64,
    /// What all streams together read at most.
    pub bytes_per_second: u64,
    /// Bytes on the fastest tier for what a snapshot still needs and the volume has to overwrite.
    pub staging_bytes: u64,
    /// When snapshots are taken without being asked for; empty: never.
    pub calendar: Calendar,
    pub keep: Retention,
    /// Least time between two prunes.
    pub prune_every: Duration,
    /// 0: nothing is verified without being asked for.
    pub verify_bytes_per_day: u64,
    pub hooks: HookSettings,
}

impl SnapshotSettings {
    fn open_repository(&self) -> Result<Repository> {
        let none =
            || Error::Invalid("this volume has no repository: set `snapshot.repository` in its settings".to_owned());
        open_repository(self.repository.as_ref().ok_or_else(none)?, self.key_file.as_deref())
    }
}

/// Whose snapshots are kept, as hooks hear it.
pub struct Subject {
    pub name: String,
    pub mount: PathBuf,
}

/// See the head of this file.
pub struct Keeper {
    pub settings: SnapshotSettings,
    subject: Subject,
    pub events: Arc<Events>,
    volume: Arc<Volume>,
    names: Box<dyn Names + Send>,
    /// For what the volume's tiers cannot read.
    published: Arc<PublishedSnapshots>,
    /// Whoever takes a snapshot holds it.
    alone: Mutex<()>,
    status: Mutex<SnapshotsStatus>,
    /// Dropped, the thread ends.
    running: Mutex<Option<Sender<Infallible>>>,
}

impl Keeper {
    pub fn new(
        settings: SnapshotSettings,
        subject: Subject,
        volume: Arc<Volume>,
        names: Box<dyn Names + Send>,
        events: Arc<Events>,
    ) -> Arc<Keeper> {
        let status = SnapshotsStatus {
            repository: settings.repository.as_ref().map(|path| path.display().to_string()),
            schedule: settings.calendar.texts().to_vec(),
            ..SnapshotsStatus::default()
        };
        let own = settings.clone();
        let published = Arc::new(PublishedSnapshots::new(Box::new(move || own.open_repository())));
        if settings.repository.is_some() {
            volume.rescue_from(Arc::clone(&published) as Arc<dyn SnapshotStore>);
        }
        Arc::new(Keeper {
            settings,
            subject,
            events,
            volume,
            names,
            published,
            alone: Mutex::new(()),
            status: Mutex::new(status),
            running: Mutex::new(None),
        })
    }

    /// Begins to keep to the schedule.
    pub fn start(self: &Arc<Keeper>) -> Result<()> {
        if self.settings.repository.is_none() {
            return Ok(());
        }
        let (run, stopped) = crossbeam_channel::bounded(0);
        *self.running.lock() = Some(run);
        let keeper = Arc::clone(self);
        std::thread::Builder::new()
            .name("snapshots".to_owned())
            .spawn(move || thread::run(&keeper, &stopped))
            .map(drop)
            .map_err(|error| Error::io("starting thread for", "snapshots", error))
    }

    /// Nothing more is begun. What is under way is not waited for: every crash leaves the repository sound.
    pub fn stop(&self) {
        drop(self.running.lock().take());
    }

    pub fn status(&self) -> SnapshotsStatus {
        self.status.lock().clone()
    }

    pub fn volume_id(&self) -> Uuid {
        self.volume.volume_id()
    }

    /// The volume's repository. Errors: `Invalid` when it has none; whatever keeps it from being opened.
    pub fn repository(&self) -> Result<Repository> {
        self.settings.open_repository()
    }

    /// Takes a snapshot, and returns when it is durable in the repository. One that is not stored yet comes first. Errors: `Busy` while another one is
    /// taken or cannot be stored yet; `Unfinished` when the repository failed, and it is stored later.
    pub fn take(
        &self,
        repository: &Repository,
        reason: Reason,
        labels: BTreeMap<String, String>,
        tally: &Tally,
    ) -> Result<Root> {
        let Some(_alone) = self.alone.try_lock() else {
            return Err(Error::Busy("a snapshot is being taken already".to_owned()));
        };
        self.finish_pending(repository).map_err(|error| match error {
            Error::Unfinished { why } => {
                Error::Busy(format!("none is taken while an earlier snapshot is not stored yet: {why}"))
            }
            error => error,
        })?;
        self.attempt(repository, reason, |source| snapshot::take(source, labels, tally))
    }

    /// Stores what was taken and is not stored yet. What keeps it from that is told. Errors: `Unfinished` when that has to wait, and whatever keeps the repository from being opened.
    fn finish(&self) -> Result<()> {
        let Some(_alone) = self.alone.try_lock() else { return Ok(()) };
        if self.volume.pending_marks().is_empty() {
            // Stored, or given up by the volume for want of room, which is told of there.
            self.status.lock().unfinished = None;
            return Ok(());
        }
        let opened = self.repository().inspect_err(|error| {
            tracing::warn!("a snapshot waits for the repository: {error}");
            self.status.lock().unfinished = Some(error.to_string());
        });
        self.finish_pending(&opened?)
    }

    /// Nobody else is at work on a mark: `alone` is held.
    fn finish_pending(&self, repository: &Repository) -> Result<()> {
        for mark in self.volume.pending_marks() {
            tracing::info!(mark = %mark.snapshot, "going on with a snapshot that is not stored yet");
            let tally = Tally::default();
            let resumed = self.attempt(repository, Reason::Resume, |source| snapshot::resume(source, &mark, &tally));
            // After any other error it is given up, and that was told.
            if let Err(error @ Error::Unfinished { .. }) = resumed {
                return Err(error);
            }
        }
        self.status.lock().unfinished = None;
        Ok(())
    }

    fn attempt(
        &self,
        repository: &Repository,
        reason: Reason,
        work: impl FnOnce(&Source<'_>) -> Result<Root>,
    ) -> Result<Root> {
        let settings = &self.settings;
        let _running = Running::begin(self);
        self.events.publish(What::SnapshotStarted { reason: reason.as_str().to_owned() });
        self.volume.set_staging_limit(settings.staging_bytes);
        let hooks = self.hooks(reason);
        let begun = monotonic_now();
        let source = Source {
            volume: &self.volume,
            names: &*self.names,
            repository,
            streams: settings.streams,
            pace: Pace::new(Arc::clone(&self.volume), settings.busy_share, settings.bytes_per_second),
            hooks: &hooks,
        };
        let outcome = work(&source);
        let elapsed_ms = u64::try_from(begun.elapsed().as_millis()).unwrap_or(u64::MAX);
        match &outcome {
            Ok(root) => {
                self.succeeded(root, reason, elapsed_ms);
                hooks.done(&root.id.to_string());
            }
            Err(error) => {
                if let Error::Unfinished { .. } = error {
                    self.status.lock().unfinished = Some(error.to_string());
                }
                self.failed(&error.to_string(), reason);
            }
        }
        outcome
    }

    fn succeeded(&self, root: &Root, reason: Reason, elapsed_ms: u64) {
        let info = SnapshotInfo::of(root);
        tracing::info!(id = %root.id, stored_bytes = root.stats.stored_bytes, elapsed_ms, "snapshot");
        {
            let mut status = self.status.lock();
            status.taken += 1;
            status.failures_in_row = 0;
            status.last_success_ns = Some(root.meta.taken);
            status.last_success = Some(info.id.clone());
            status.last_elapsed_ms = elapsed_ms;
            status.elapsed_ms += elapsed_ms;
            status.read_bytes += root.stats.given_bytes;
            status.new_bytes += root.stats.new_raw_bytes;
            status.stored_bytes += root.stats.stored_bytes;
            status.repository_bytes = status.repository_bytes.map(|bytes| bytes + root.stats.stored_bytes);
            status.repository_snapshots += 1;
        }
        self.note_pages(&info.id, info.pages.as_ref());
        self.events.publish(What::SnapshotFinished {
            snapshot: info.id,
            reason: reason.as_str().to_owned(),
            stored_bytes: root.stats.stored_bytes,
            elapsed_ms,
        });
    }

    /// What the latest snapshot says about its pages.
    fn note_pages(&self, snapshot: &str, pages: Option<&PageReport>) {
        let first = pages.and_then(|pages| pages.named.first());
        let first = first.map(|page| format!("block {} of {}", page.block, page.path));
        {
            let mut status = self.status.lock();
            status.checked_pages += pages.map_or(0, |pages| pages.checked);
            status.bad_pages = pages.map_or(0, |pages| pages.bad);
            status.first_bad_page.clone_from(&first);
        }
        let Some(pages) = pages.filter(|pages| pages.bad > 0) else { return };
        let relations = Relations::read(&self.subject.mount);
        for page in pages.named.iter().take(PAGES_LOGGED) {
            let relation =
                relations.name_of(&page.path).unwrap_or_else(|| "a relation without a known name".to_owned());
            tracing::error!(
                "snapshot {snapshot}: the checksum of block {} of {} ({relation}) is wrong, on the volume too",
                page.block,
                page.path
            );
        }
        let (snapshot, first) = (snapshot.to_owned(), first.unwrap_or_default());
        self.events.publish(What::PagesDamaged { snapshot, pages: pages.bad, first });
    }

    /// There is no snapshot, whether it was begun or not.
    fn failed(&self, error: &str, reason: Reason) {
        tracing::error!("snapshot ({}): {error}", reason.as_str());
        {
            let mut status = self.status.lock();
            status.failed += 1;
            status.failures_in_row += u32::from(reason == Reason::Schedule);
            status.last_failure_ns = Some(wall_now());
            status.last_failure = Some(error.to_owned());
        }
        self.events.publish(What::SnapshotFailed { reason: reason.as_str().to_owned(), error: error.to_owned() });
        self.hooks(reason).failure(error);
    }

    fn hooks(&self, reason: Reason) -> Hooks {
        let (Subject { name, mount }, events) = (&self.subject, Arc::clone(&self.events));
        Hooks::new(&self.settings.hooks, name, mount.clone(), reason.as_str(), events)
    }
}

/// While a snapshot is taken, however that ends.
struct Running<'k>(&'k Keeper);

impl Running<'_> {
    fn begin(keeper: &Keeper) -> Running<'_> {
        keeper.status.lock().running = true;
        Running(keeper)
    }
}

impl Drop for Running<'_> {
    fn drop(&mut self) {
        self.0.status.lock().running = false;
    }
}

/// What the rules say of each snapshot of one volume, newest first.
pub fn judged(repository: &Repository, volume: Uuid, keep: &Retention) -> Result<Vec<Verdict>> {
    let mut pins: BTreeMap<SnapshotId, Vec<String>> = BTreeMap::new();
    for named in repository.refs()? {
        pins.entry(named.target).or_default().push(named.name);
    }
    let roots = repository.snapshots()?;
    let own = roots.iter().filter(|root| root.volume == volume);
    let taken: Vec<(SnapshotId, WallNs)> = own.map(|root| (root.id, root.meta.taken)).collect();
    Ok(judge(&taken, &pins, keep))
}

#[cfg(test)]
mod tests {
    use super::judged;
    use crate::device::real::RealDevice;
    use crate::repository::{
        Consistency, InitOptions, Keep, PACK_BYTES, RefKind, Repository, Retention, Root, SnapshotMeta, WriterOptions,
    };
    use crate::units::{Lsn, WallNs};
    use std::collections::BTreeMap;
    use uuid::Uuid;

    const HOUR_NS: i64 = 3600 * 1_000_000_000;

    fn take(repository: &Repository, volume: Uuid, hour: i64) -> Root {
        let taken = WallNs(hour * HOUR_NS);
        let options =
            WriterOptions { volume, parent: None, now: taken, search_repository: false, parent_of_other_volume: false };
        let writer = repository.begin(options).expect("begun");
        let names = writer.end_namespace(writer.namespace()).expect("no names");
        let meta = SnapshotMeta {
            lsn: Lsn(0),
            epoch: 0,
            taken,
            consistency: Consistency::Crash,
            labels: BTreeMap::new(),
            backup_label: Vec::new(),
        };
        writer.commit(names, meta).expect("stored")
    }

    /// Two volumes may share a repository, each with rules of its own.
    #[test]
    fn only_the_volumes_own_snapshots_are_judged() {
        let dir = tempfile::tempdir().expect("a directory");
        let device = RealDevice::open(dir.path()).expect("a device");
        let options = InitOptions { key: None, pack_bytes: PACK_BYTES, now: WallNs(0) };
        let repository = Repository::init(device, &options).expect("a repository");
        let (own, other) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let taken: Vec<Root> = (0..4).map(|hour| take(&repository, own, hour)).collect();
        (0..4).for_each(|hour| drop(take(&repository, other, hour + 10)));
        repository.set_ref("kept", RefKind::Pin, taken[0].id, "").expect("pinned");
        let keep = Retention { last: 1, ..Retention::default() };
        let verdicts = judged(&repository, own, &keep).expect("judged");
        let found: Vec<_> = verdicts.iter().map(|verdict| (verdict.id, verdict.keep.as_slice())).collect();
        assert_eq!(
            found,
            [
                (taken[3].id, &[Keep::Last][..]),
                (taken[2].id, &[]),
                (taken[1].id, &[]),
                (taken[0].id, &[Keep::Pinned("kept".to_owned())]),
            ]
        );
        let all = judged(&repository, own, &Retention::default()).expect("judged");
        assert!(all.iter().all(|verdict| !verdict.keep.is_empty()), "without rules all stay");
    }
}

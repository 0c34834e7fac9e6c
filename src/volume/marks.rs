//! Marks: the moments of snapshots in the log (I6). Taking one is an append and a few stores, whatever the volume holds.
//!
//! A mark pending means: what it needs stays readable ([`super::layers`], [`super::preserve`]) until it is published or given up. A mark also ends an
//! epoch of changes ([`super::changes`]). Pending marks outlive their mount ([`super::resume`]), those excepted that nobody had waited for. A mark that costs too much is failed, loudly, before a writer is held up or refused: always the oldest.

use super::overlay::{Before, Extent, Ledger};
use super::state::Parent;
use super::status::{MarkStatus, count};
use super::{File, Volume, file_subject};
use crate::device::clock;
use crate::error::{Error, Result};
use crate::log::Append;
use crate::ondisk::group::{RecordKind, TIER_UNSET};
use crate::ondisk::mark::PendingMark;
use crate::ondisk::note::Marker;
use crate::units::{FileId, Lsn, WallNs};
use parking_lot::{Mutex, RwLock};
use std::collections::{BTreeMap, HashSet};
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU32, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};
use uuid::Uuid;

/// Pending marks, at most.
pub const MARKS_MAX: usize = 8;
/// Snapshots that may still be parents, at most: beyond, the oldest is forgotten.
const PARENTS_MAX: usize = 64;
/// What the health report calls a mark that was given up.
const SUBJECT: &str = "snapshots";
const STALL_BUCKETS: usize = 24;

/// The moment of one snapshot: it holds every record with an LSN up to `lsn`, and none after.
#[derive(Debug)]
pub struct Mark {
    pub snapshot: Uuid,
    /// Changes up to the mark are counted in this epoch or earlier ones.
    pub epoch: u32,
    pub lsn: Lsn,
    pub wall: WallNs,
    pub(super) file_id_limit: u64,
    /// Its file is in staging: it outlives its mount. Changed under `ending`.
    noted: AtomicBool,
    ended: AtomicBool,
    failure: OnceLock<String>,
}

impl Mark {
    pub(super) fn from_file(file: &PendingMark) -> Mark {
        Mark {
            snapshot: file.snapshot,
            epoch: file.epoch,
            lsn: file.lsn,
            wall: file.wall,
            file_id_limit: file.file_id_limit,
            noted: AtomicBool::new(true),
            ended: AtomicBool::new(false),
            failure: OnceLock::new(),
        }
    }

    /// Why the engine gave this mark up, if it did.
    pub fn failure(&self) -> Option<String> {
        self.failure.get().cloned()
    }

    pub(super) fn check(&self) -> Result<()> {
        match (self.failure.get(), self.ended.load(Ordering::Acquire)) {
            (Some(why), _) => Err(Error::SnapshotFailed { why: why.clone() }),
            (None, true) => Err(Error::SnapshotFailed { why: "its mark has been released".to_string() }),
            (None, false) => Ok(()),
        }
    }
}

/// Hears of marks that the engine gave up, and why.
pub type MarkListener = Box<dyn Fn(&Mark, &str) + Send + Sync>;

#[derive(Default)]
pub(super) struct Marks {
    /// Epoch of the newest pending mark; 0: none is pending, and nothing is kept. Changed under `appends`, write-held.
    newest: AtomicU32,
    /// Files from this id on are younger than every pending mark.
    file_id_limit: AtomicU64,
    /// What changes are counted under; 0: nothing was ever marked, and nothing is counted.
    epoch: AtomicU32,
    /// Nobody asks about changes up to here.
    floor: AtomicU32,
    pending: Mutex<BTreeMap<u32, Arc<Mark>>>,
    /// One mark ends at a time.
    ending: Mutex<()>,
    /// Files with a layer; changed under the file's lock.
    pub(super) files: Mutex<HashSet<FileId>>,
    pub(super) pinned_log_bytes: AtomicI64,
    pub(super) staged_bytes: AtomicI64,
    /// A file was removed and is kept for a mark: the next checkpoint makes its end durable in home.
    pub(super) names_went: AtomicBool,
    listener: RwLock<Option<MarkListener>>,
    taken: AtomicU64,
    failed: AtomicU64,
    replaying: AtomicBool,
    stall_us_max: AtomicU64,
    /// By powers of two of microseconds.
    stalls: [AtomicU64; STALL_BUCKETS],
}

impl Marks {
    /// 0 when none is pending.
    pub fn newest_for(&self, file: FileId) -> u32 {
        match self.newest.load(Ordering::Acquire) {
            0 => 0,
            newest if file.0 < self.file_id_limit.load(Ordering::Acquire) => newest,
            _ => 0,
        }
    }

    pub fn any(&self) -> bool {
        self.newest.load(Ordering::Acquire) != 0
    }

    pub fn epoch(&self) -> u32 {
        self.epoch.load(Ordering::Acquire)
    }

    pub fn floor(&self) -> u32 {
        self.floor.load(Ordering::Acquire)
    }

    /// From durable state, and while replay goes from marker to marker.
    pub fn count_under(&self, epoch: u32, floor: u32) {
        self.epoch.store(epoch, Ordering::Release);
        self.floor.store(floor, Ordering::Release);
    }

    pub fn oldest(&self) -> Option<Arc<Mark>> {
        self.pending.lock().first_key_value().map(|(_, mark)| mark.clone())
    }

    pub fn pending_ids(&self) -> Vec<Uuid> {
        self.pending.lock().values().map(|mark| mark.snapshot).collect()
    }

    pub fn pending_epochs(&self) -> Vec<u32> {
        self.pending.lock().keys().copied().collect()
    }

    /// A mark that an earlier mount left.
    pub fn resume(&self, mark: Arc<Mark>) {
        self.pending.lock().insert(mark.epoch, mark);
    }

    pub fn is_replaying(&self) -> bool {
        self.replaying.load(Ordering::Relaxed)
    }

    /// Replay has come to this record: only marks before it are as if pending. None: replay is over.
    pub fn activate(&self, reached: Option<Lsn>) {
        let pending = self.pending.lock();
        self.replaying.store(reached.is_some(), Ordering::Relaxed);
        let before = pending.values().rev().find(|mark| reached.is_none_or(|lsn| mark.lsn < lsn));
        let (epoch, limit) = before.map_or((0, 0), |mark| (mark.epoch, mark.file_id_limit));
        self.file_id_limit.store(limit, Ordering::Release);
        self.newest.store(epoch, Ordering::Release);
    }

    fn set_newest(&self, pending: &BTreeMap<u32, Arc<Mark>>) {
        let (epoch, limit) = pending.last_key_value().map_or((0, 0), |(&epoch, mark)| (epoch, mark.file_id_limit));
        self.file_id_limit.store(limit, Ordering::Release);
        self.newest.store(epoch, Ordering::Release);
    }

    fn note_stall(&self, us: u64) {
        self.stall_us_max.fetch_max(us, Ordering::Relaxed);
        let bucket = (u64::BITS - us.leading_zeros()) as usize;
        if let Some(bucket) = self.stalls.get(bucket.min(STALL_BUCKETS - 1)) {
            count(bucket, 1);
        }
    }

    /// Upper bound of the bucket that the 99th of 100 stalls falls into.
    fn stall_us_p99(&self) -> u64 {
        let counts: Vec<u64> = self.stalls.iter().map(|bucket| bucket.load(Ordering::Relaxed)).collect();
        let rank = (counts.iter().sum::<u64>() * 99).div_ceil(100);
        let mut seen = 0;
        for (bucket, count) in counts.iter().enumerate() {
            seen += count;
            if seen >= rank && rank > 0 {
                return 1 << bucket;
            }
        }
        0
    }
}

/// Keeps the log's and the staging files' books in step with layers.
pub(super) struct KeptLedger<'a> {
    volume: &'a Volume,
}

impl KeptLedger<'_> {
    fn count(&self, extent: &Extent<Before>, by: i64) {
        let volume = self.volume;
        match extent.source {
            Before::Log(address) => {
                let geometry = volume.geometry();
                if let Some(cell) = volume.live.get(geometry.slot(geometry.segment_of(address))) {
                    cell.fetch_add(by, Ordering::AcqRel);
                }
                volume.marks.pinned_log_bytes.fetch_add(by, Ordering::Relaxed);
            }
            Before::Staged(address) => {
                volume.staging.count(address, by);
                volume.marks.staged_bytes.fetch_add(by, Ordering::Relaxed);
            }
            Before::Zeros | Before::Base => {}
        }
    }
}

impl Ledger<Before> for KeptLedger<'_> {
    fn added(&mut self, extent: &Extent<Before>) {
        self.count(extent, i64::try_from(extent.len()).unwrap_or(i64::MAX));
    }
    fn removed(&mut self, extent: &Extent<Before>) {
        self.count(extent, -i64::try_from(extent.len()).unwrap_or(i64::MAX));
    }
}

impl Volume {
    pub(super) fn kept_ledger(&self) -> KeptLedger<'_> {
        KeptLedger { volume: self }
    }

    /// Marks this moment for a snapshot: every write that has returned is in it, none that begins later (I6). Waits for log room as a writer does.
    /// `Busy` when too many are pending, or when this snapshot has a mark already.
    pub fn mark(&self, snapshot: Uuid) -> Result<Arc<Mark>> {
        let mut patience = self.patience();
        loop {
            match self.try_mark(snapshot) {
                Err(Error::LogFull) => self.wait_for_log_room(&mut patience)?,
                marked => return marked,
            }
        }
    }

    fn try_mark(&self, snapshot: Uuid) -> Result<Arc<Mark>> {
        self.check_writable()?;
        let began = clock::monotonic_now();
        let no_appends = self.appends.write();
        self.check_writable()?;
        let mut pending = self.marks.pending.lock();
        if pending.len() >= MARKS_MAX {
            return Err(Error::Busy(format!("{MARKS_MAX} snapshots are being captured already")));
        }
        if pending.values().any(|mark| mark.snapshot == snapshot) {
            return Err(Error::Busy(format!("snapshot {snapshot} is being captured already")));
        }
        let epoch = self.marks.epoch().max(1);
        let file_id_limit = self.next_file_id.load(Ordering::Acquire);
        let payload = Marker { snapshot, epoch, file_id_limit }.encode();
        let appended = self.log.append(&Append {
            kind: RecordKind::Note,
            file: FileId(0),
            offset: 0,
            length: payload.len() as u64,
            payload: &payload,
            let_die: false,
            tier: TIER_UNSET,
            score: 0,
        })?;
        let mark = Arc::new(Mark {
            snapshot,
            epoch,
            lsn: appended.lsn,
            wall: clock::wall_now(),
            file_id_limit,
            noted: AtomicBool::new(false),
            ended: AtomicBool::new(false),
            failure: OnceLock::new(),
        });
        pending.insert(epoch, mark.clone());
        self.marks.epoch.store(epoch + 1, Ordering::Release);
        self.marks.set_newest(&pending);
        drop((pending, no_appends));
        count(&self.marks.taken, 1);
        self.marks.note_stall(u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        Ok(mark)
    }

    /// Returns when the mark's group is durable: before that, what it holds may never have been (R16). From then on the mark outlives its mount.
    pub fn wait_for_mark(&self, mark: &Mark) -> Result<()> {
        self.log.sync_wait(mark.lsn)?;
        let _one = self.marks.ending.lock();
        mark.check()?;
        if !mark.noted.load(Ordering::Acquire) {
            let Mark { snapshot, lsn, wall, file_id_limit, epoch, .. } = *mark;
            let volume = self.volume_id();
            // Also when it fails half-way there may be a file, which then has to go with the mark.
            mark.noted.store(true, Ordering::Release);
            self.staging.note_mark(&PendingMark { volume, snapshot, lsn, wall, file_id_limit, epoch })?;
        }
        Ok(())
    }

    /// Keeps `image` beside the mark until it ends, durably: what whoever captures needs to go on in another mount. After [`Volume::wait_for_mark`].
    /// Errors: `SnapshotFailed` when it is too large for that.
    pub fn keep_image(&self, mark: &Mark, image: &[u8]) -> Result<()> {
        let _one = self.marks.ending.lock();
        mark.check()?;
        self.staging.keep_image(mark.epoch, mark.snapshot, image)
    }

    /// What was kept beside the mark; None: nothing, or nothing whole.
    pub fn image(&self, mark: &Mark) -> Result<Option<Vec<u8>>> {
        self.staging.image(mark.epoch, mark.snapshot)
    }

    /// Oldest first.
    pub fn pending_marks(&self) -> Vec<Arc<Mark>> {
        self.marks.pending.lock().values().cloned().collect()
    }

    /// Registers who hears of marks that the engine gives up.
    pub fn on_mark_failed(&self, listener: MarkListener) {
        *self.marks.listener.write() = Some(listener);
    }

    /// Bytes that saved data of pending marks may take on the fastest tier.
    pub fn set_staging_limit(&self, bytes: u64) {
        self.staging.set_limit(bytes);
    }

    /// How much of the room is used that is there for saving what pending marks need, 0 to 1: at 1 the oldest of them is given up. Cheap.
    pub fn mark_room_used(&self) -> f64 {
        if !self.marks.any() {
            return 0.0;
        }
        #[allow(clippy::cast_precision_loss, reason = "a share needs no more")]
        let share = |used: u64, limit: u64| (used as f64 / limit.max(1) as f64).min(1.0);
        share(self.staging.used_bytes(), self.staging.limit_bytes())
    }

    /// The snapshot is published: from now on it may be a parent, durably so. `oldest_parent`: no older one will be asked for again, None: none
    /// older than this. Then the mark is released.
    pub fn publish_mark(&self, mark: &Mark, oldest_parent: Option<Uuid>) -> Result<()> {
        self.check_mark(mark)?;
        self.check_writable()?;
        {
            let _one = self.checkpointing.lock();
            let mut meta = self.meta.lock().clone();
            let marked = &mut meta.marked;
            marked.parents.push(Parent { snapshot: mark.snapshot, epoch: mark.epoch });
            marked.parents.sort_unstable_by_key(|parent| parent.epoch);
            let asked = marked.parents.iter().find(|parent| Some(parent.snapshot) == oldest_parent);
            let floor = asked.map_or(mark.epoch, |parent| parent.epoch);
            let surplus = marked.parents.len().saturating_sub(PARENTS_MAX);
            let floor = floor.max(marked.parents.get(surplus).map_or(0, |parent| parent.epoch));
            marked.floor = marked.floor.max(floor);
            let floor = marked.floor;
            marked.parents.retain(|parent| parent.epoch >= floor);
            marked.pending.retain(|pending| *pending != mark.snapshot);
            marked.epoch = self.marks.epoch();
            // Whoever asks about a forgotten parent has to hear so before its changes go.
            self.meta.lock().marked.parents.retain(|parent| parent.epoch >= floor);
            if let Err(error) = self.state.forget_changes(&meta, floor) {
                // Whether the transaction is durable is unknown: from here on only a new mount can tell (I5).
                self.log.fail_for(&error);
                return Err(error);
            }
            *self.meta.lock() = meta;
            self.marks.floor.store(floor, Ordering::Release);
            for file in self.files_in_memory() {
                file.write().changes.forget(floor);
            }
        }
        self.restore_health(SUBJECT);
        self.release_mark(mark);
        Ok(())
    }

    /// Ends a mark without publishing it: nothing is kept for it any more. One that has ended already is left alone.
    pub fn release_mark(&self, mark: &Mark) {
        mark.ended.store(true, Ordering::Release);
        self.end_mark(mark);
    }

    /// False: it could not be ended, and goes on being pending.
    fn end_mark(&self, mark: &Mark) -> bool {
        let _one = self.marks.ending.lock();
        if !self.marks.pending.lock().contains_key(&mark.epoch) {
            return true;
        }
        if mark.noted.load(Ordering::Acquire)
            && let Err(error) = self.staging.forget_mark(mark.epoch)
        {
            // The next mount will take it for pending: nothing that it needs may change any more (I5).
            self.log.fail_for(&error);
            return false;
        }
        let pending: Vec<u32> = {
            // Whoever keeps something for this mark has done so when this is held, and nobody does after.
            let _no_appends = self.appends.write();
            let mut pending = self.marks.pending.lock();
            pending.remove(&mark.epoch);
            self.marks.set_newest(&pending);
            pending.keys().copied().collect()
        };
        let ids: Vec<FileId> = self.marks.files.lock().iter().copied().collect();
        for id in ids {
            let Some(file) = self.files.read().get(&id).cloned() else { continue };
            let mut inner = file.write();
            inner.layers.end(mark.epoch, &pending, &mut self.kept_ledger());
            if inner.layers.is_empty() && self.marks.files.lock().remove(&id) && inner.removed {
                self.gone.lock().push(id);
            }
            drop(inner);
            self.list_dirty(&file);
        }
        true
    }

    /// Gives up the oldest pending mark, loudly. False: there is none that could be.
    pub(super) fn fail_oldest_mark(&self, why: &str) -> bool {
        let Some(mark) = self.marks.oldest() else { return false };
        if mark.failure.set(why.to_string()).is_ok() {
            tracing::error!(snapshot = %mark.snapshot, why, "a snapshot is given up");
            count(&self.marks.failed, 1);
            self.degrade(SUBJECT, format!("snapshot {} was given up: {why}", mark.snapshot));
            if let Some(listener) = self.marks.listener.read().as_ref() {
                listener(&mark, why);
            }
        }
        // Perhaps somebody else is about to, and then it has ended when this returns.
        self.end_mark(&mark)
    }

    /// No tier has room: gives up a mark if marks hold any.
    pub(super) fn fail_mark_for_space(&self) -> bool {
        let holds = self.marks.any() && (self.staging.used_bytes() > 0 || self.files_kept_for_marks() > 0);
        holds && self.fail_oldest_mark("no tier has room, and what is kept for the snapshot takes some")
    }

    /// May this mark be read?
    pub(super) fn check_mark(&self, mark: &Mark) -> Result<()> {
        mark.check()?;
        if mark.lsn.0 >= self.log.durable_address() {
            return Err(Error::Invalid(format!(
                "snapshot {}: capture begins only after the mark is durable",
                mark.snapshot
            )));
        }
        Ok(())
    }

    /// Files that are gone for everybody but a mark.
    fn files_kept_for_marks(&self) -> usize {
        let is_kept = |file: &Arc<File>| {
            let inner = file.read();
            inner.removed && !inner.layers.is_empty()
        };
        self.files_in_memory().iter().filter(|file| is_kept(file)).count()
    }

    pub(super) fn mark_status(&self) -> MarkStatus {
        let bytes = |cell: &AtomicI64| u64::try_from(cell.load(Ordering::Relaxed)).unwrap_or(0);
        let get = |cell: &AtomicU64| cell.load(Ordering::Relaxed);
        let pending = self.pending_marks();
        MarkStatus {
            pending: pending.len() as u64,
            oldest_wall: pending.first().map(|mark| mark.wall),
            kept_files: self.marks.files.lock().len() as u64,
            pinned_log_bytes: bytes(&self.marks.pinned_log_bytes),
            staged_bytes: bytes(&self.marks.staged_bytes),
            staging_used_bytes: self.staging.used_bytes(),
            staging_limit_bytes: self.staging.limit_bytes(),
            taken: get(&self.marks.taken),
            failed: get(&self.marks.failed),
            stall_us_max: get(&self.marks.stall_us_max),
            stall_us_p99: self.marks.stall_us_p99(),
            stalls: self.marks.stalls.iter().map(get).collect(),
        }
    }

    /// A file's staged or kept bytes could not be saved: named like other trouble of files.
    pub(super) fn why_not_saved(file: FileId, error: &Error) -> String {
        format!("{} cannot be saved for it: {error}", file_subject(file))
    }
}

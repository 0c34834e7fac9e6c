//! Rolling a volume back: it becomes what a snapshot holds, in the time that names take, and what it was is kept until that is confirmed or undone.
//!
//! 1. The volume, which nobody has mounted, is brought to rest: its log is applied to the tiers, and it is shut down. What speaks against it is found out by then.
//! 2. A note says which snapshot in which repository it will need, a ref there holds it (R18), and a second root is made in home, of files with ids that were
//!    never issued. All of that is nobody's until the next step, and is cleared away if it does not come.
//! 3. One transaction in state: the volume is made of the new files, whose bytes are in the repository, as those of a clone are. From here on it is rolled back.
//! 4. The roots change names in home.
//!
//! Undoing and confirming are one transaction each, after which the files, objects and names of one root are removed. What a transaction decided [`finish`] does; it is called by
//! whoever is about to use a volume, and may be cut off anywhere (R19).

mod roots;

use super::adopt::HOME_ENTRY_BYTES;
use super::backing::{Backing, TierPlan};
use super::clone::{self, CloneNote};
use super::manifest::Manifest;
use super::migrate::pins;
use super::mounts::Mounts;
use super::orphans;
use super::watch::Watch;
use crate::device::Device;
use crate::device::clock::wall_now;
use crate::error::{Error, Result};
use crate::repository::{RefKind, Repository, Snapshot, SnapshotId};
use crate::tier::identity::{Locks, VolumeIdentity, begin_run, mark_stopped, verify_all};
use crate::units::{FileId, WallNs};
use crate::volume::{Fate, Options, Rollback, SourceSnapshot, Tier, Volume};
use roots::Roots;
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// What holds a snapshot for a volume that was rolled back is called this and the volume's id.
const REFERENCE_PREFIX: &str = "rollback-";

/// Which volume, and to what.
#[derive(Clone, Debug)]
pub struct RollbackPlan {
    /// Fastest first.
    pub tiers: Vec<TierPlan>,
    pub options: Options,
    pub snapshot: SnapshotId,
    /// The repository's directory, and its key.
    pub repository: PathBuf,
    pub key_file: Option<PathBuf>,
}

/// What the volume is now.
#[derive(Clone, Debug, Serialize)]
pub struct RollbackReport {
    pub volume: Uuid,
    pub snapshot: String,
    /// When the snapshot was taken.
    pub taken: WallNs,
    /// The ref that holds the snapshot until everything is on the tiers.
    pub reference: String,
    pub names: u64,
    pub files: u64,
    /// Sizes of the files.
    pub bytes: u64,
    /// What is in the repository, in whole blocks.
    pub in_repository_bytes: u64,
    pub warnings: Vec<String>,
}

/// How a rollback ended.
#[derive(Clone, Debug, Serialize)]
pub struct SettledReport {
    pub volume: Uuid,
    /// That it had been rolled back to.
    pub snapshot: String,
    pub warnings: Vec<String>,
}

/// Rolls a volume back that is not mounted. Errors: `Invalid`, `Busy` for what speaks against it, and then nothing has changed. After any other error the volume is what
/// it was, too, unless all but the names was done: then it is rolled back, and the next mount or command gives them.
pub fn roll_back(repository: &Repository, plan: &RollbackPlan, watch: &mut dyn Watch) -> Result<RollbackReport> {
    let stopped = Stopped::take(&plan.tiers, &plan.options, watch)?;
    let rolled = Rolling::new(repository, plan, &stopped)?.run(watch).inspect_err(|_| {
        if let Err(error) = stopped.clear_away() {
            tracing::warn!("clearing away a rollback that failed: {}", stopped.backing.named(error));
        }
    });
    rolled.map_err(|error| stopped.backing.named(error))
}

/// As [`roll_back`], but a failure leaves everything as it is, as a crash would.
pub fn attempt(repository: &Repository, plan: &RollbackPlan, watch: &mut dyn Watch) -> Result<RollbackReport> {
    let stopped = Stopped::take(&plan.tiers, &plan.options, watch)?;
    Rolling::new(repository, plan, &stopped)?.run(watch).map_err(|error| stopped.backing.named(error))
}

/// Gives up what the volume was before it was rolled back. It must not be mounted. Errors: `NotFound` if it was not rolled back.
pub fn confirm(tiers: &[TierPlan], options: &Options, watch: &mut dyn Watch) -> Result<SettledReport> {
    settle(tiers, options, Fate::Confirmed, watch)
}

/// The volume becomes what it was before it was rolled back; what was written since goes. It must not be mounted. Errors: `NotFound` if it was not
/// rolled back.
pub fn undo(tiers: &[TierPlan], options: &Options, watch: &mut dyn Watch) -> Result<SettledReport> {
    settle(tiers, options, Fate::Undone, watch)
}

fn settle(tiers: &[TierPlan], options: &Options, fate: Fate, watch: &mut dyn Watch) -> Result<SettledReport> {
    let stopped = Stopped::take(tiers, options, watch)?;
    let Some(rollback) = &stopped.rollback else {
        return Err(Error::NotFound(format!(
            "the volume of {} is not rolled back, or that was confirmed or undone already",
            stopped.id.directory
        )));
    };
    watch.step("decide")?;
    Volume::decide_rollback(&stopped.backing.fastest()?, fate)?;
    finish_stopped(&stopped.backing, options, watch)?;
    let mut warnings = Vec::new();
    if fate == Fate::Undone
        && let Err(error) = let_go(stopped.home_device(), None, watch)
    {
        warnings.push(format!("the snapshot is still held in the repository, the next mount tries again: {error}"));
    }
    Ok(SettledReport { volume: stopped.id.volume, snapshot: rollback.snapshot.clone(), warnings })
}

/// Does what was decided about a rollback and not done, and clears away what one left that did not come about. Returns the rollback that is neither confirmed nor
/// undone, if there is one. The caller holds the volume's locks, and has begun a run of it. `home`: the directory in the fastest tier.
pub fn finish(home: &Path, tiers: &[Tier], options: &Options, watch: &mut dyn Watch) -> Result<Option<Rollback>> {
    let fastest = fastest_of(tiers)?;
    let roots = Roots::of(home);
    // R9: the names must not be more durable than the transaction that they follow.
    fastest.device.sync_all().map_err(|e| Error::io("sync the filesystem of", fastest.device.path(), e))?;
    let Some(rollback) = Volume::peek(fastest)?.rollback else {
        watch.step("clear")?;
        roots.clear()?;
        return Ok(None);
    };
    match rollback.fate {
        Fate::Open => {
            watch.step("switch")?;
            roots.switch()?;
            return Ok(Some(rollback));
        }
        Fate::Confirmed => {
            watch.begin("removing what the volume was before");
            watch.step("give up")?;
            roots.give_up_before()?;
        }
        Fate::Undone => {
            watch.begin("removing what the volume was rolled back to");
            watch.step("switch back")?;
            roots.switch_back()?;
        }
    }
    drop_losing_root(tiers, options, rollback.fate, watch)?;
    watch.step("remove names")?;
    roots.clear()?;
    watch.step("end")?;
    Volume::end_rollback(tiers)?;
    Ok(None)
}

/// As [`finish`], for a job that holds the locks of a volume which nobody runs.
pub(super) fn finish_stopped(backing: &Backing, options: &Options, watch: &mut dyn Watch) -> Result<Option<Rollback>> {
    let home = backing.home();
    let finished = match is_unfinished(&home, &backing.fastest()?) {
        Ok(true) => in_run(backing, Rest::AsBefore, || finish(&home, &backing.engine_tiers(), options, watch)),
        Ok(false) => Ok(Volume::peek(&backing.fastest()?)?.rollback),
        Err(error) => Err(error),
    };
    finished.map_err(|error| backing.named(error))
}

/// How a run leaves the volume.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Rest {
    Clean,
    /// What is in the log may be there still.
    AsBefore,
}

fn in_run<T>(backing: &Backing, rest: Rest, work: impl FnOnce() -> Result<T>) -> Result<T> {
    let id = begin_run(&backing.places)?;
    let done = work()?;
    if rest == Rest::Clean || id.clean {
        backing.sync_all()?;
        mark_stopped(&backing.places, &id)?;
    }
    Ok(done)
}

/// Is there anything that [`finish`] would do?
pub(super) fn is_unfinished(home: &Path, fastest: &Tier) -> Result<bool> {
    let decided = Volume::peek(fastest)?.rollback.is_some_and(|rollback| rollback.fate != Fate::Open);
    Ok(decided || Roots::of(home).are_unsettled()?)
}

/// Where the names are that the volume had before it was rolled back.
pub(super) fn tree_before(home: &Path) -> PathBuf {
    Roots::of(home).before
}

/// One line, for commands that cannot do with two roots.
pub(super) fn refuse_open(rollback: Option<&Rollback>) -> Result<()> {
    let Some(rollback) = rollback else { return Ok(()) };
    Err(Error::Busy(format!(
        "the volume was rolled back to snapshot {}, and what it was before is kept: `heatfs rollback --confirm` gives that up, `--undo` brings it back",
        rollback.snapshot
    )))
}

fn fastest_of(tiers: &[Tier]) -> Result<&Tier> {
    tiers.first().ok_or_else(|| Error::Invalid("a volume has at least one tier".to_owned()))
}

fn drop_losing_root(tiers: &[Tier], options: &Options, fate: Fate, watch: &mut dyn Watch) -> Result<()> {
    watch.step("open")?;
    let source = clone::source_of(fastest_of(tiers)?.device.as_ref(), None)?;
    let source = source.map(|source| Arc::new(source) as Arc<dyn SourceSnapshot>);
    let (volume, recovery) = Volume::open_with(tiers.to_vec(), options.clone(), source)?;
    give_up_marks(&volume);
    watch.step("drop")?;
    volume.drop_losing_root()?;
    watch.step("engine down")?;
    match fate == Fate::Undone || recovery.was_clean {
        true => volume.shut_down(),
        // What is in the log is of the root that stays. Applying it may need the repository: the next mount replays it.
        false => volume.shut_down_quickly(),
    }
}

/// Snapshots in the making end here, as with a mount: nobody goes on with them.
fn give_up_marks(volume: &Volume) {
    volume.pending_marks().iter().for_each(|mark| volume.release_mark(mark));
}

/// The repository's snapshot is needed no longer, if one was.
fn let_go(device: &dyn Device, elsewhere: Option<(PathBuf, Option<PathBuf>)>, watch: &mut dyn Watch) -> Result<()> {
    if let Some(source) = clone::source_of(device, elsewhere)? {
        watch.step("let the snapshot go")?;
        source.let_go()?;
        CloneNote::remove(device)?;
    }
    Ok(())
}

/// A volume that nobody has mounted, and nobody can as long as this is there.
struct Stopped {
    backing: Backing,
    id: VolumeIdentity,
    rollback: Option<Rollback>,
    _locks: Locks,
}

impl Stopped {
    /// Finishes what was cut off. Errors: `Busy` while it is mounted, `WrongTier`.
    fn take(tiers: &[TierPlan], options: &Options, watch: &mut dyn Watch) -> Result<Stopped> {
        let backing = Backing::open(tiers)?;
        verify_all(&backing.places)?.require_ready()?;
        let locks = backing.lock()?;
        // It may have changed since it was read: now nobody else can.
        let id = verify_all(&backing.places)?;
        id.require_ready()?;
        if Mounts::read()?.is_mount_point(Path::new(&id.directory)) {
            return Err(Error::Busy(format!("{} is mounted: stop the daemon first (heatfs stop)", id.directory)));
        }
        let rollback = finish_stopped(&backing, options, watch)?;
        Ok(Stopped { backing, id, rollback, _locks: locks })
    }

    fn home_device(&self) -> &dyn Device {
        self.backing.places[0].device.as_ref()
    }

    /// Undoes what a rollback did before its transaction; nothing happens after it.
    fn clear_away(&self) -> Result<()> {
        if Volume::peek(&self.backing.fastest()?)?.rollback.is_some() {
            return Ok(());
        }
        Roots::of(&self.backing.home()).clear()?;
        let_go(self.home_device(), None, &mut ())
    }
}

/// Steps 1 to 4.
struct Rolling<'a> {
    repository: &'a Repository,
    snapshot: Snapshot<'a>,
    plan: &'a RollbackPlan,
    stopped: &'a Stopped,
    block_bytes: u64,
    manifest: Manifest,
    warnings: Vec<String>,
}

impl<'a> Rolling<'a> {
    /// What can be found out without touching the volume.
    fn new(repository: &'a Repository, plan: &'a RollbackPlan, stopped: &'a Stopped) -> Result<Rolling<'a>> {
        let snapshot = repository.snapshot(plan.snapshot)?;
        refuse_open(stopped.rollback.as_ref())?;
        let meta = Volume::peek(&stopped.backing.fastest()?)?;
        if meta.needs_repository() {
            return Err(Error::Busy(
                "blocks of the volume are still in the repository that it was made from: serve it until `heatfs status` shows none there".to_owned(),
            ));
        }
        if snapshot.root.volume != stopped.id.volume {
            return Err(Error::Invalid(format!(
                "snapshot {} is of another volume ({}, not {}): `heatfs clone` makes a volume of it",
                plan.snapshot, snapshot.root.volume, stopped.id.volume
            )));
        }
        let block_bytes = u64::from(meta.block_bytes);
        let manifest = Manifest::read(&snapshot, repository, block_bytes)?;
        let warnings = warnings(stopped)?;
        Ok(Rolling { repository, snapshot, plan, stopped, block_bytes, manifest, warnings })
    }

    fn run(mut self, watch: &mut dyn Watch) -> Result<RollbackReport> {
        let (stopped, fastest) = (self.stopped, self.stopped.backing.fastest()?);
        watch.begin("bringing the log to the tiers");
        watch.step("rest")?;
        let available = in_run(&stopped.backing, Rest::Clean, || self.bring_to_rest())?;
        self.refuse_without_room(available)?;
        let reference = format!("{REFERENCE_PREFIX}{}", stopped.id.volume);
        self.hold_snapshot(&reference, watch)?;
        watch.begin("making the names");
        let meta = Volume::peek(&fastest)?;
        self.manifest.renumber(FileId(meta.file_id_limit));
        let roots = Roots::of(&stopped.backing.home());
        watch.step("make root")?;
        let files = self.manifest.plant(&roots.new, stopped.id.volume, watch)?;
        watch.step("sync")?;
        stopped.backing.sync_all()?;
        watch.step("roll back")?;
        let snapshot = self.plan.snapshot.to_string();
        Volume::roll_back(&fastest, &self.manifest.files, &snapshot, wall_now())?;
        watch.step("switch")?;
        roots.switch()?;
        Ok(RollbackReport {
            volume: stopped.id.volume,
            snapshot,
            taken: self.snapshot.root.meta.taken,
            reference,
            names: self.manifest.names.len() as u64,
            files,
            bytes: self.manifest.bytes(),
            in_repository_bytes: self.manifest.blocks * self.block_bytes,
            warnings: self.warnings,
        })
    }

    /// Step 1. Returns the room that is promised to nobody.
    fn bring_to_rest(&self) -> Result<u64> {
        let (backing, id) = (&self.stopped.backing, &self.stopped.id);
        let (volume, recovery) = Volume::open(backing.engine_tiers(), self.plan.options.clone())?;
        give_up_marks(&volume);
        if !recovery.was_clean {
            // After this there is no mount that would look for them.
            orphans::free(&backing.tree(), id.volume, &volume, recovery.file_id_limit_before)?;
        }
        volume.shut_down()?;
        volume.refresh_budgets()?;
        Ok(volume.space().available_bytes)
    }

    /// Everything is going to be on the tiers, beside what is there: its space is promised from the beginning (I10).
    fn refuse_without_room(&self, available: u64) -> Result<()> {
        let names = self.manifest.names.len() as u64 * HOME_ENTRY_BYTES;
        let needed = self.manifest.blocks * self.block_bytes + names;
        let device = self.stopped.home_device();
        let space = device.space().map_err(|e| Error::io("stat the filesystem of", device.path(), e))?;
        if needed <= available && names <= space.available_bytes {
            return Ok(());
        }
        Err(Error::Busy(format!(
            "snapshot {} needs {} MiB beside what the volume holds, and the tiers have room for {} MiB: `heatfs restore --in-place` on the mounted volume writes only what differs",
            self.plan.snapshot,
            needed.div_ceil(1 << 20),
            available >> 20
        )))
    }

    /// The note first: a mount that finds it and needs nothing of the repository lets the snapshot go, so that a ref never stays behind.
    fn hold_snapshot(&self, reference: &str, watch: &mut dyn Watch) -> Result<()> {
        let (stopped, plan) = (self.stopped, self.plan);
        let_go(stopped.home_device(), Some((plan.repository.clone(), plan.key_file.clone())), watch)?;
        watch.begin("holding the snapshot");
        let note = CloneNote {
            repository: plan.repository.clone(),
            repository_id: self.repository.id(),
            key_file: plan.key_file.clone(),
            snapshot: plan.snapshot.to_string(),
            reference: reference.to_owned(),
            bytes: self.manifest.blocks * self.block_bytes,
        };
        watch.step("note")?;
        note.save(stopped.home_device())?;
        watch.step("hold the snapshot")?;
        let why = format!("of the volume at {}, rolled back", stopped.id.directory);
        self.repository.set_ref(reference, RefKind::InUse, plan.snapshot, &why)
    }
}

fn warnings(stopped: &Stopped) -> Result<Vec<String>> {
    let pinned = pins::load(stopped.home_device())?.len();
    let line = format!("{pinned} pins are of files as they were before: pin again what is to stay on a tier");
    Ok(if pinned > 0 { vec![line] } else { Vec::new() })
}

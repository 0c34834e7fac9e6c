//! Giving the directory back: plain files at the old place, as the mount showed them.
//!
//! 1. While the volume is in service: everything is coalesced, every file is gathered whole in one object on the tier that shares
//!    the directory's filesystem, and the object gets the file's length, holes and modification time. Checkpoint, empty log. Up to here nothing is lost by mounting again instead.
//! 2. Phase `ReleaseBuild`: from now on the engine is not needed. A tree like home's is made beside the objects (`releasing/tree`), each
//!    object is renamed to its name in it, and all attributes are home's.
//! 3. Everything is synced; phase `ReleaseSwap`: the tree takes the place of the empty directory by one rename.
//! 4. Phase `ReleaseRemove`: home, log, state, objects and identities go, tier 0's identity last.
//!
//! A release that was cut off goes on when it is run again.

mod gather;
mod plain;

use super::anchor::Spot;
use super::backing::{
    Backing, TierPlan, exists, make_private_dir, remove_engine_files, remove_log_archive, remove_tree, rename_durably,
};
use super::clone::{self, CloneNote};
use super::mounts::Mounts;
use super::protect;
use super::rollback;
use super::watch::Watch;
use crate::error::{Error, Result};
use crate::ondisk::identity::Phase;
use crate::tier::identity::{VolumeIdentity, begin_run, mark_stopped, set_phase, verify_all};
use crate::units::TierId;
use crate::volume::{Options, SourceSnapshot, Volume};
use serde::Serialize;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// In the origin tier while a release is under way.
const RELEASING: &str = "releasing";

/// What to give back, and where.
#[derive(Clone, Debug)]
pub struct ReleasePlan {
    /// Where the files go: the empty directory they were adopted from, or another empty or missing one.
    pub directory: PathBuf,
    /// It may be another one. Else it must be where it was: somebody may have put a link in its way since.
    pub elsewhere: bool,
    /// Fastest first.
    pub tiers: Vec<TierPlan>,
    /// The tier to gather the files on, which must share the directory's filesystem; None: the one they came from, or else the fastest such tier.
    pub origin: Option<String>,
    /// Go on in spite of files whose identity does not fit; they are given back as home has them.
    pub accept_untrusted: bool,
    pub options: Options,
}

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct ReleaseReport {
    pub volume: Uuid,
    pub directory: PathBuf,
    pub files: u64,
    pub bytes: u64,
    /// Files whose identity did not fit, given back as home had them.
    pub untrusted: Vec<String>,
    /// An earlier release that had been cut off was finished.
    pub resumed: bool,
}

/// Releases a volume that is not mounted. Errors: `Busy` while it is; `Invalid` with the bytes that are missing; `Untrusted`.
pub fn release(plan: &ReleasePlan, watch: &mut dyn Watch) -> Result<ReleaseReport> {
    let spot = Spot::of(&super::adopt::resolve(&plan.directory)?)?;
    let backing = Backing::open(&plan.tiers)?;
    let told = |error| backing.named(spot.named(error));
    let mut report = give_back(plan, &backing, &spot, watch).map_err(told)?;
    report.untrusted.iter_mut().for_each(|line| *line = backing.in_line(line));
    Ok(report)
}

fn give_back(plan: &ReleasePlan, backing: &Backing, spot: &Spot, watch: &mut dyn Watch) -> Result<ReleaseReport> {
    let mut id = identify(backing, spot.shown())?;
    let _locks = backing.lock()?;
    let resumed = id.phase != Phase::Ready;
    let mounts = Mounts::read()?;
    if mounts.is_mount_point(spot.shown()) {
        return Err(Error::Busy(format!("{} is mounted: stop the daemon first", spot.shown().display())));
    }
    if id.phase == Phase::Ready {
        // Both may have changed since they were read: now nobody else can.
        id = verify_all(&backing.places)?;
        id.require_ready()?;
        refuse_led_away(plan, spot, &id)?;
        rollback::finish_stopped(backing, &plan.options, watch)
            .and_then(|open| rollback::refuse_open(open.as_ref()))?;
        id.origin = choose_origin(plan, backing, spot, id.origin, &mounts)?;
        id.directory = spot.shown().to_string_lossy().into_owned();
        refuse_occupied(spot)?;
        prepare(plan, backing, &mut id, watch)?;
    }
    let release = Release { backing, spot, releasing: backing.path(id.origin).join(RELEASING) };
    let (mut files, mut bytes, mut untrusted) = (0, 0, Vec::new());
    if id.phase == Phase::ReleaseBuild {
        (files, bytes, untrusted) = release.build(&mut id, watch)?;
    }
    if id.phase == Phase::ReleaseSwap {
        release.swap(&mut id, watch)?;
    }
    release.remove(watch)?;
    Ok(ReleaseReport { volume: id.volume, directory: spot.shown().to_owned(), files, bytes, untrusted, resumed })
}

/// The files were adopted from one place, and go to another only if that was said: while they were here, the owner of a directory on the way there had all the
/// time that he wanted to put a link in its place.
fn refuse_led_away(plan: &ReleasePlan, spot: &Spot, id: &VolumeIdentity) -> Result<()> {
    if plan.elsewhere || Path::new(&id.directory) == spot.shown() {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "the files were adopted from {}, and {} leads to {}: say `--to {}` if they are to go there",
        id.directory,
        plan.directory.display(),
        spot.shown().display(),
        spot.shown().display()
    )))
}

/// The volume and how far a release of it has come.
fn identify(backing: &Backing, directory: &Path) -> Result<VolumeIdentity> {
    let Some(first) = backing.places[0].identity()? else { return verify_all(&backing.places) };
    match first.phase {
        Phase::Ready => return verify_all(&backing.places),
        Phase::AdoptBuild | Phase::AdoptMove | Phase::CloneBuild => verify_all(&backing.places)?.require_ready()?,
        Phase::ReleaseBuild | Phase::ReleaseSwap | Phase::ReleaseRemove => {}
    }
    if Path::new(&first.directory) != directory {
        return Err(Error::Busy(format!("a release to {} was interrupted: finish that first", first.directory)));
    }
    let id = VolumeIdentity {
        volume: first.volume,
        incarnation: first.incarnation,
        phase: first.phase,
        clean: true,
        origin: first.origin,
        directory: first.directory,
    };
    // When all are being removed, some may be gone already; a foreign one must still not be touched.
    for place in &backing.places {
        match place.identity()? {
            Some(found) if found.volume != id.volume => return verify_all(&backing.places),
            None if id.phase != Phase::ReleaseRemove => return verify_all(&backing.places),
            _ => {}
        }
    }
    Ok(id)
}

fn choose_origin(
    plan: &ReleasePlan,
    backing: &Backing,
    spot: &Spot,
    before: TierId,
    mounts: &Mounts,
) -> Result<TierId> {
    let (directory, parent) = (spot.shown(), spot.parent().shown());
    let near = backing.on_mount_of(parent, mounts)?;
    let wanted = plan.origin.as_ref().map(|name| backing.by_name(name)).transpose()?;
    let chosen = match wanted {
        Some(id) => near.contains(&id).then_some(id),
        None if near.contains(&before) => Some(before),
        None => near.first().copied(),
    };
    chosen.ok_or_else(|| {
        Error::Invalid(format!(
            "{} is on the filesystem mounted at {}, where {} is: files are renamed out of a tier, not copied. There are: {}",
            directory.display(),
            mounts.of(parent).display(),
            plan.origin.as_ref().map_or("no tier".to_owned(), |name| format!("tier `{name}` not")),
            backing.describe(mounts)
        ))
    })
}

/// The directory must be what adoption left, or empty.
fn refuse_occupied(spot: &Spot) -> Result<()> {
    if !exists(spot.path())? {
        return Ok(());
    }
    let directory = spot.shown();
    let entries = super::survey::read_dir(spot.path())?;
    match entries.iter().find(|path| !path.ends_with(protect::MARKER)) {
        None => Ok(()),
        Some(entry) => Err(Error::Busy(format!("{} is not empty: {} is in it", directory.display(), entry.display()))),
    }
}

/// Step 1.
fn prepare(plan: &ReleasePlan, backing: &Backing, id: &mut VolumeIdentity, watch: &mut dyn Watch) -> Result<()> {
    let strange = gather::refuse_strange(&backing.tree(), id.volume, plan.accept_untrusted)?;
    tracing::debug!("{strange} files are given back as home has them");
    watch.step("raise")?;
    let (origin, directory) = (id.origin, id.directory.clone());
    *id = begin_run(&backing.places)?;
    watch.step("open")?;
    let source = clone::source_of(backing.places[0].device.as_ref(), None)?.map(Arc::new);
    let reads = source.clone().map(|source| source as Arc<dyn SourceSnapshot>);
    let (volume, _) = Volume::open_with(backing.engine_tiers(), plan.options.clone(), reads)?;
    if let Some(source) = source.as_ref().filter(|_| volume.bytes_in_repository() > 0) {
        // Before anything is moved.
        source.open()?;
    }
    // Snapshots in the making end here: what is kept for them goes with the volume.
    volume.pending_marks().iter().for_each(|mark| volume.release_mark(mark));
    gather::all(backing, origin, id.volume, &volume, watch)?;
    watch.step("engine down")?;
    volume.shut_down()?;
    drop(volume);
    backing.sync_all()?;
    if let Some(source) = source {
        watch.step("let the snapshot go")?;
        if let Err(error) = source.let_go() {
            // Nothing needs it any more; the volume must not stay for that.
            tracing::warn!("the ref {} stays in the repository: {error}", source.note().reference);
        }
        CloneNote::remove(backing.places[0].device.as_ref())?;
    }
    watch.step("stopped")?;
    mark_stopped(&backing.places, id)?;
    (id.origin, id.directory) = (origin, directory);
    watch.step("phase: build")?;
    set_phase(&backing.places, id, Phase::ReleaseBuild)
}

struct Release<'a> {
    backing: &'a Backing,
    spot: &'a Spot,
    releasing: PathBuf,
}

impl Release<'_> {
    fn tree(&self) -> PathBuf {
        self.releasing.join("tree")
    }

    /// Step 2. Returns files, bytes and the files whose identity did not fit.
    fn build(&self, id: &mut VolumeIdentity, watch: &mut dyn Watch) -> Result<(u64, u64, Vec<String>)> {
        watch.begin("making plain files");
        watch.step("make releasing")?;
        make_private_dir(&self.releasing)?;
        let done = plain::tree(&self.backing.tree(), &self.tree(), self.backing.path(id.origin), id.volume, watch)?;
        watch.step("sync tree")?;
        self.backing.sync_all()?;
        watch.step("phase: swap")?;
        set_phase(&self.backing.places, id, Phase::ReleaseSwap)?;
        Ok(done)
    }

    /// Step 3.
    fn swap(&self, id: &mut VolumeIdentity, watch: &mut dyn Watch) -> Result<()> {
        if exists(&self.tree())? {
            watch.step("unprotect")?;
            protect::unprotect(self.spot)?;
            watch.step("swap")?;
            rename_durably(&self.tree(), self.spot.path())?;
        }
        watch.step("phase: remove")?;
        set_phase(&self.backing.places, id, Phase::ReleaseRemove)
    }

    /// Step 4.
    fn remove(&self, watch: &mut dyn Watch) -> Result<()> {
        watch.begin("removing what heatfs kept");
        remove_tree(&self.releasing)?;
        for tier in self.backing.ids() {
            watch.step("remove objects")?;
            remove_tree(&self.backing.path(tier).join("objects"))?;
            remove_log_archive(self.backing.path(tier))?;
        }
        watch.step("remove home")?;
        remove_tree(&self.backing.home())?;
        watch.step("remove engine")?;
        remove_engine_files(self.backing.path(TierId::FASTEST))?;
        watch.step("remove identities")?;
        self.backing.remove_identities()
    }
}

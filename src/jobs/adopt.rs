//! Adopting a directory: its files become the volume's without a byte being copied.
//!
//! 1. Everything that speaks against it is found out first; nothing is changed until all of that has passed.
//! 2. The tiers get their identity in phase `AdoptBuild`, then log and state. The directory is renamed, whole, into its tier
//!    (`adopting/tree`, below a directory that only we may enter): from one moment to the next a database finds nothing to start on, never half of it.
//! 3. `home/tree` is built after its likeness: empty files with fresh ids, and all attributes. Until here a failure is undone.
//! 4. Home is synced and the phase becomes `AdoptMove`. Each file is renamed to its object; what it holds is told to the engine; checkpoint.
//! 5. The directory is made again as an empty, protected mount point, everything is synced, and the phase becomes `Ready`.
//!
//! An adoption that was cut off goes on when it is run again: step 3 starts anew, 4 skips what is done.

mod build;
mod moving;
mod plan;

use super::anchor::Spot;
use super::backing::{Backing, exists, make_private_dir, remove_tree, rename_durably, sync_dir};
use super::protect::{self, Protection};
use super::survey;
use super::watch::{Progress, Watch};
use crate::error::{Error, Result};
use crate::ondisk::identity::Phase;
use crate::tier::identity::{VolumeIdentity, complete, initialise, set_phase, verify_all};
use crate::units::TierId;
use crate::volume::Volume;
use plan::Checked;
use serde::Serialize;
use std::fs;
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub(super) use build::seal_root;
pub use plan::AdoptPlan;
pub(super) use plan::{HOME_ENTRY_BYTES, judge_tiers, refuse_mount_point, resolve};

/// In the origin tier while an adoption is under way.
const ADOPTING: &str = "adopting";
/// Inside [`ADOPTING`]: the directory did not exist before.
const MADE: &str = "made";

/// What was done.
#[derive(Clone, Debug, Serialize)]
pub struct AdoptReport {
    pub volume: Uuid,
    /// Absolute, without symbolic links.
    pub directory: PathBuf,
    /// The tier that the files lie on now.
    pub origin: String,
    pub files: u64,
    pub bytes: u64,
    /// Symbolic links that lead out of the directory: what is behind them stays where it is.
    pub not_covered: Vec<String>,
    pub warnings: Vec<String>,
    pub protection: Protection,
    /// An earlier adoption that had been cut off was finished.
    pub resumed: bool,
}

/// Adopts a directory. A failure before files are renamed is undone. Errors: `Invalid`, `Busy`, `WrongTier` for what speaks against it.
pub fn adopt(plan: &AdoptPlan, watch: &mut dyn Watch) -> Result<AdoptReport> {
    let checked = plan::check(plan)?;
    let adopted = checked.backing.lock().and_then(|_locks| {
        run(plan, &checked, watch).inspect_err(|_| {
            if let Err(e) = undo_locked(&checked.backing, &checked.spot) {
                tracing::warn!("undoing the adoption of {}: {}", checked.spot.shown().display(), checked.named(e));
            }
        })
    });
    adopted.map_err(|error| checked.named(error))
}

/// As [`adopt`], but a failure leaves everything as it is, as a crash would.
pub fn attempt(plan: &AdoptPlan, watch: &mut dyn Watch) -> Result<AdoptReport> {
    let checked = plan::check(plan)?;
    let adopted = checked.backing.lock().and_then(|_locks| run(plan, &checked, watch));
    adopted.map_err(|error| checked.named(error))
}

fn run(plan: &AdoptPlan, checked: &Checked, watch: &mut dyn Watch) -> Result<AdoptReport> {
    let mut id = match &checked.unfinished {
        Some(id) => {
            complete(&checked.backing.places, id)?;
            verify_all(&checked.backing.places)?
        }
        None => {
            watch.step("identities")?;
            let text = checked.spot.shown().to_string_lossy();
            initialise(&checked.backing.places, Uuid::new_v4(), &text, checked.origin, Phase::AdoptBuild)?
        }
    };
    let adoption = Adoption { plan, checked, adopting: checked.backing.path(id.origin).join(ADOPTING) };
    if id.phase == Phase::AdoptBuild {
        adoption.build(&mut id, watch)?;
    }
    let (files, bytes) = adoption.finish(&mut id, watch)?;
    Ok(AdoptReport {
        volume: id.volume,
        directory: checked.spot.shown().to_owned(),
        origin: checked.backing.name(id.origin).to_owned(),
        files,
        bytes,
        not_covered: checked.not_covered.clone(),
        warnings: checked.warnings.clone(),
        protection: protect::protection_of(&checked.spot)?,
        resumed: checked.unfinished.is_some(),
    })
}

struct Adoption<'a> {
    plan: &'a AdoptPlan,
    checked: &'a Checked,
    /// Holds `tree`, the directory as it was.
    adopting: PathBuf,
}

impl Adoption<'_> {
    fn backing(&self) -> &Backing {
        &self.checked.backing
    }

    fn taken(&self) -> PathBuf {
        self.adopting.join("tree")
    }

    /// Steps 2 and 3.
    fn build(&self, id: &mut VolumeIdentity, watch: &mut dyn Watch) -> Result<()> {
        let backing = self.backing();
        watch.begin("making the log and the state");
        watch.step("clear")?;
        clear_fastest(backing)?;
        watch.step("engine")?;
        let total = self.plan.options.segment_bytes * u64::from(self.plan.options.segments);
        Volume::create(&backing.engine_tiers(), &self.plan.options, id.volume, &mut |bytes_done| {
            watch.progress(Progress { bytes_done, bytes: total, ..Progress::default() });
        })?;
        watch.begin("taking the directory");
        self.take(watch)?;
        watch.begin("building home");
        make_home(backing)?;
        let (volume, _) = Volume::open(backing.engine_tiers(), self.plan.options.clone())?;
        build::home(&self.taken(), &backing.tree(), &volume, &self.checked.survey, watch)?;
        watch.step("sync home")?;
        volume.shut_down()?;
        drop(volume);
        backing.sync_all()?;
        watch.step("phase: move")?;
        set_phase(&backing.places, id, Phase::AdoptMove)
    }

    /// Renames the directory into its tier, and looks once more for processes that slipped in.
    fn take(&self, watch: &mut dyn Watch) -> Result<()> {
        let (spot, taken) = (&self.checked.spot, self.taken());
        watch.step("make adopting")?;
        make_private_dir(&self.adopting)?;
        if exists(&taken)? {
            return refuse_replaced(spot.shown(), &taken);
        }
        if !exists(spot.path())? {
            watch.step("make directory")?;
            let made = self.adopting.join(MADE);
            fs::write(&made, b"").map_err(|e| Error::io("write", made.display().to_string(), e))?;
            make_private_dir(&taken)?;
            return sync_dir(&self.adopting);
        }
        watch.step("take directory")?;
        rename_durably(spot.path(), &taken)?;
        refuse_replaced(spot.shown(), &taken)?;
        // By the path that the kernel tells of those who use it.
        let told = self.backing().shown(self.checked.origin).join(ADOPTING).join("tree");
        survey::refuse_if_used(&self.checked.survey, &told)
    }

    /// Steps 4 and 5. Returns files and bytes.
    fn finish(&self, id: &mut VolumeIdentity, watch: &mut dyn Watch) -> Result<(u64, u64)> {
        let backing = self.backing();
        let (volume, _) = Volume::open(backing.engine_tiers(), self.plan.options.clone())?;
        let done = moving::files(&self.taken(), backing, id, &volume, watch)?;
        watch.step("engine down")?;
        volume.shut_down()?;
        drop(volume);
        watch.step("remove leftovers")?;
        moving::remove_emptied(&self.taken())?;
        remove_tree(&self.adopting)?;
        self.make_mount_point(watch)?;
        protect::protect(&self.checked.spot)?;
        watch.step("sync")?;
        backing.sync_all()?;
        watch.step("phase: ready")?;
        set_phase(&backing.places, id, Phase::Ready)?;
        Ok(done)
    }

    /// The directory anew, empty, with the old one's owner and label.
    fn make_mount_point(&self, watch: &mut dyn Watch) -> Result<()> {
        let spot = &self.checked.spot;
        watch.step("make mount point")?;
        if exists(spot.path())? && protect::protection_of(spot)? == Protection::Immutable {
            return Ok(());
        }
        watch.step("mount point attributes")?;
        protect::make_mount_point(spot, super::attributes::Attributes::read(&self.backing().tree())?)
    }
}

/// Whoever owns the directory above could have put a link in its place after it was looked at: what that leads to is nobody's to take.
fn refuse_replaced(directory: &Path, taken: &Path) -> Result<()> {
    let meta = fs::symlink_metadata(taken).map_err(|e| Error::io("stat", taken.display().to_string(), e))?;
    if meta.is_dir() {
        return Ok(());
    }
    Err(Error::Busy(format!("{} became something else while it was being adopted", directory.display())))
}

pub(super) fn make_home(backing: &Backing) -> Result<()> {
    let home = backing.home();
    make_private_dir(&home.join("grave"))?;
    let note = home.join("NOT-A-DATABASE");
    let text = "This directory belongs to heatfs: names and attributes of a volume's files, without their contents.\n\
                No database can run on it. Mount the volume (heatfs daemon), or take the files back (heatfs release).\n";
    fs::write(&note, text).map_err(|e| Error::io("write", note.display().to_string(), e))
}

/// What adoption and the engine make on the fastest tier besides objects.
pub(super) fn clear_fastest(backing: &Backing) -> Result<()> {
    remove_tree(&backing.home())?;
    super::backing::remove_engine_files(backing.path(TierId::FASTEST))
}

/// Undoes an adoption that has not begun to rename files; nothing happens in any other phase.
pub fn undo(plan: &AdoptPlan) -> Result<()> {
    let backing = Backing::open(&plan.tiers)?;
    let spot = Spot::of(&plan::resolve(&plan.directory)?)?;
    let undone = backing.lock().and_then(|_locks| undo_locked(&backing, &spot));
    undone.map_err(|error| backing.named(spot.named(error)))
}

fn undo_locked(backing: &Backing, spot: &Spot) -> Result<()> {
    let Some(first) = backing.places[0].identity()? else { return backing.remove_stray_locks() };
    if first.phase != Phase::AdoptBuild || Path::new(&first.directory) != spot.shown() {
        return Ok(());
    }
    let adopting = backing.path(first.origin).join(ADOPTING);
    let taken = adopting.join("tree");
    if exists(&adopting.join(MADE))? {
        remove_tree(&taken)?;
    } else if exists(&taken)? {
        protect::unprotect(spot)?;
        rename_durably(&taken, spot.path())?;
    }
    remove_tree(&adopting)?;
    clear_fastest(backing)?;
    for tier in backing.ids() {
        super::backing::remove_empty_objects(backing.path(tier))?;
    }
    backing.remove_identities()
}

//! Making a volume of a snapshot: its names in home, and of its files only where their bytes are.
//!
//! 1. Everything that speaks against it is found out first; nothing is changed until all of that has passed.
//! 2. The tiers get their identity in phase `CloneBuild`; a ref in the repository holds the snapshot from now on (R18), and a note on the fastest tier says
//!    which it is. Then log and state are made, home is built, and the engine is told in one transaction which files are in the repository.
//! 3. The directory becomes an empty, protected mount point, everything is synced, and the phase becomes `Ready`.
//!
//! A failure is undone; what a crash left is cleared away when the clone is made again, under the same id. The cost is that of names, whatever the files hold.

mod note;
mod source;

use super::adopt;
use super::anchor::Spot;
use super::backing::{Backing, TierPlan, exists, remove_empty_objects};
use super::manifest::Manifest;
use super::mounts::Mounts;
use super::plant::attributes;
use super::protect::{self, Protection};
use super::survey::read_dir;
use super::watch::{Progress, Watch};
use crate::device::Device;
use crate::error::{Error, Result};
use crate::ondisk::identity::Phase;
use crate::repository::{RefKind, Repository, Snapshot, SnapshotId};
use crate::tier::identity::{VolumeIdentity, complete, initialise, set_phase, verify_all};
use crate::units::TierId;
use crate::volume::{Lineage, Options, Volume};
use serde::Serialize;
use std::path::{Path, PathBuf};
use uuid::Uuid;

pub use note::{CLONE_FILE, CloneNote};
pub use source::RepositorySource;

/// What holds a snapshot for a clone is called this and the volume's id.
const REFERENCE_PREFIX: &str = "clone-";

/// What to make, and of what.
#[derive(Clone, Debug)]
pub struct ClonePlan {
    /// Where it will be mounted: absent, or an empty directory.
    pub directory: PathBuf,
    /// Empty paths, fastest first.
    pub tiers: Vec<TierPlan>,
    pub options: Options,
    pub snapshot: SnapshotId,
    /// The repository's directory, and its key.
    pub repository: PathBuf,
    pub key_file: Option<PathBuf>,
}

/// What was made.
#[derive(Clone, Debug, Serialize)]
pub struct CloneReport {
    pub volume: Uuid,
    /// Absolute, without symbolic links.
    pub directory: PathBuf,
    pub snapshot: String,
    /// The ref that holds the snapshot until everything is on the tiers.
    pub reference: String,
    pub names: u64,
    pub files: u64,
    /// Sizes of the files.
    pub bytes: u64,
    /// What is in the repository, in whole blocks.
    pub in_repository_bytes: u64,
    pub warnings: Vec<String>,
    pub protection: Protection,
}

/// Makes a clone. Errors: `Invalid`, `Busy`, `WrongTier` for what speaks against it, and then nothing has changed.
pub fn clone(repository: &Repository, plan: &ClonePlan, watch: &mut dyn Watch) -> Result<CloneReport> {
    let snapshot = repository.snapshot(plan.snapshot)?;
    let checked = Checked::new(&snapshot, repository, plan)?;
    let made = checked.backing.lock().and_then(|_locks| {
        Making { repository, snapshot: &snapshot, plan, checked: &checked }.run(watch).inspect_err(|_| {
            if let Err(error) = undo(repository, &checked) {
                tracing::warn!("undoing the clone at {}: {}", checked.spot.shown().display(), checked.named(error));
            }
        })
    });
    made.map_err(|error| checked.named(error))
}

/// As [`clone`], but a failure leaves everything as it is, as a crash would.
pub fn attempt(repository: &Repository, plan: &ClonePlan, watch: &mut dyn Watch) -> Result<CloneReport> {
    let snapshot = repository.snapshot(plan.snapshot)?;
    let checked = Checked::new(&snapshot, repository, plan)?;
    let making = Making { repository, snapshot: &snapshot, plan, checked: &checked };
    let made = checked.backing.lock().and_then(|_locks| making.run(watch));
    made.map_err(|error| checked.named(error))
}

/// What a volume was made of, if it still needs that or has not let it go yet. `elsewhere`: directory and key file of the repository in the settings.
pub fn source_of(
    fastest: &dyn Device,
    elsewhere: Option<(PathBuf, Option<PathBuf>)>,
) -> Result<Option<RepositorySource>> {
    Ok(CloneNote::load(fastest)?.map(|note| RepositorySource::new(note, elsewhere)))
}

/// A plan that nothing speaks against.
struct Checked {
    /// Where the directory is, or is to be.
    spot: Spot,
    backing: Backing,
    /// The tier that shares a filesystem with the directory, if one does.
    origin: TierId,
    manifest: Manifest,
    lineage: Lineage,
    warnings: Vec<String>,
    /// A clone that was cut off.
    unfinished: Option<VolumeIdentity>,
}

impl Checked {
    fn new(snapshot: &Snapshot<'_>, repository: &Repository, plan: &ClonePlan) -> Result<Checked> {
        let directory = adopt::resolve(&plan.directory)?;
        let spot = Spot::of(&directory)?;
        let backing = Backing::open(&plan.tiers)?;
        backing.refuse_overlap(&directory)?;
        backing.refuse_overlap(&plan.repository)?;
        let mounts = Mounts::read()?;
        adopt::refuse_mount_point(&directory, &mounts)?;
        let unfinished = unfinished(&backing, &directory)?;
        if unfinished.is_none() {
            backing.places.iter().try_for_each(|place| place.require_empty())?;
            refuse_occupied(&directory)?;
        }
        let parent = directory.parent().unwrap_or(Path::new("/"));
        let origin = backing.on_mount_of(parent, &mounts)?.first().copied().unwrap_or(TierId::FASTEST);
        let manifest = Manifest::read(snapshot, repository, u64::from(plan.options.block_bytes))?;
        let mut checked = Checked {
            spot,
            backing,
            origin,
            lineage: Lineage { files: manifest.files.clone(), mark: super::snapshot::mark_of(&snapshot.root) },
            manifest,
            warnings: Vec::new(),
            unfinished,
        };
        if checked.unfinished.is_none() {
            let judged = adopt::judge_tiers(&checked.backing, &plan.options, checked.manifest.names.len() as u64);
            checked.warnings = judged.map_err(|error| checked.named(error))?;
        }
        checked.refuse_without_room(plan)?;
        Ok(checked)
    }

    /// An error with all paths as people know them.
    fn named(&self, error: Error) -> Error {
        self.backing.named(self.spot.named(error))
    }

    /// Everything is going to be on the tiers: its space is promised from the beginning (I10).
    fn refuse_without_room(&self, plan: &ClonePlan) -> Result<()> {
        let needed = self.manifest.blocks * u64::from(plan.options.block_bytes);
        let log = plan.options.segment_bytes * u64::from(plan.options.segments);
        let mut room = 0;
        for (tier, (place, plan)) in self.backing.ids().zip(self.backing.places.iter().zip(&plan.tiers)) {
            let space = place.device.space();
            let space = space.map_err(|e| Error::io("stat the filesystem of", place.device.path(), e))?;
            let taken = plan.reserve_bytes + if tier == TierId::FASTEST { log } else { 0 };
            let free = space.available_bytes.saturating_sub(taken);
            room += plan.budget_bytes.map_or(free, |budget| budget.min(free));
        }
        if needed <= room || self.unfinished.is_some() {
            return Ok(());
        }
        Err(Error::Invalid(format!(
            "snapshot {} needs {} MiB, and the tiers have room for {} MiB: a clone comes to be on them as a whole",
            plan.snapshot,
            needed.div_ceil(1 << 20),
            room >> 20
        )))
    }
}

/// What a clone that was cut off left, if it did.
fn unfinished(backing: &Backing, directory: &Path) -> Result<Option<VolumeIdentity>> {
    let Some(first) = backing.places[0].identity()? else { return Ok(None) };
    if first.phase != Phase::CloneBuild {
        let (name, path) = (backing.name(TierId::FASTEST), backing.shown(TierId::FASTEST));
        let (path, directory) = (path.display(), &first.directory);
        return Err(Error::Busy(format!("tier `{name}` at {path} already belongs to the volume of {directory}")));
    }
    if Path::new(&first.directory) != directory {
        return Err(Error::Busy(format!("a clone to {} was interrupted: finish that first", first.directory)));
    }
    Ok(Some(VolumeIdentity {
        volume: first.volume,
        incarnation: first.incarnation,
        phase: first.phase,
        clean: true,
        origin: first.origin,
        directory: first.directory,
    }))
}

fn refuse_occupied(directory: &Path) -> Result<()> {
    if !exists(directory)? {
        return Ok(());
    }
    match read_dir(directory)?.first() {
        None => Ok(()),
        Some(entry) => {
            let (directory, entry) = (directory.display(), entry.display());
            Err(Error::Busy(format!("{directory} is not empty ({entry} is in it): a clone wants an empty directory")))
        }
    }
}

/// The ref that holds a snapshot for this volume.
pub fn reference_of(volume: Uuid) -> String {
    format!("{REFERENCE_PREFIX}{volume}")
}

struct Making<'a> {
    repository: &'a Repository,
    snapshot: &'a Snapshot<'a>,
    plan: &'a ClonePlan,
    checked: &'a Checked,
}

impl Making<'_> {
    fn run(&self, watch: &mut dyn Watch) -> Result<CloneReport> {
        let backing = &self.checked.backing;
        let mut id = self.begin(watch)?;
        let volume = id.volume;
        watch.begin("holding the snapshot");
        watch.step("hold the snapshot")?;
        let note = format!("of the clone at {}", self.checked.spot.shown().display());
        self.repository.set_ref(&reference_of(volume), RefKind::InUse, self.plan.snapshot, &note)?;
        let block_bytes = u64::from(self.plan.options.block_bytes);
        let note = CloneNote {
            repository: self.plan.repository.clone(),
            repository_id: self.repository.id(),
            key_file: self.plan.key_file.clone(),
            snapshot: self.plan.snapshot.to_string(),
            reference: reference_of(volume),
            bytes: self.checked.manifest.blocks * block_bytes,
        };
        watch.step("note")?;
        note.save(backing.places[0].device.as_ref())?;
        watch.begin("making the log and the state");
        watch.step("engine")?;
        let total = self.plan.options.segment_bytes * u64::from(self.plan.options.segments);
        Volume::create(&backing.engine_tiers(), &self.plan.options, volume, &mut |bytes_done| {
            watch.progress(Progress { bytes_done, bytes: total, ..Progress::default() });
        })?;
        watch.begin("making the names");
        let files = self.home(volume, watch)?;
        watch.step("import")?;
        Volume::import_snapshot(&backing.fastest()?, &self.checked.lineage)?;
        self.mount_point(watch)?;
        watch.step("sync")?;
        backing.sync_all()?;
        watch.step("phase: ready")?;
        set_phase(&backing.places, &mut id, Phase::Ready)?;
        Ok(CloneReport {
            volume,
            directory: self.checked.spot.shown().to_owned(),
            snapshot: self.snapshot.id().to_string(),
            reference: reference_of(volume),
            names: self.checked.manifest.names.len() as u64,
            files,
            bytes: self.checked.manifest.bytes(),
            in_repository_bytes: self.checked.manifest.blocks * block_bytes,
            warnings: self.checked.warnings.clone(),
            protection: protect::protection_of(&self.checked.spot)?,
        })
    }

    /// The tiers' identities; what an earlier try left is cleared away.
    fn begin(&self, watch: &mut dyn Watch) -> Result<VolumeIdentity> {
        let (checked, places) = (self.checked, &self.checked.backing.places);
        watch.step("identities")?;
        match &checked.unfinished {
            Some(id) => {
                complete(places, id)?;
                let id = verify_all(places)?;
                adopt::clear_fastest(&checked.backing)?;
                Ok(id)
            }
            None => {
                let directory = checked.spot.shown().to_string_lossy();
                initialise(places, Uuid::new_v4(), &directory, checked.origin, Phase::CloneBuild)
            }
        }
    }

    /// Returns how many files there are.
    fn home(&self, volume: Uuid, watch: &mut dyn Watch) -> Result<u64> {
        adopt::make_home(&self.checked.backing)?;
        self.checked.manifest.plant(&self.checked.backing.tree(), volume, watch)
    }

    fn mount_point(&self, watch: &mut dyn Watch) -> Result<()> {
        let spot = &self.checked.spot;
        watch.step("mount point")?;
        protect::unprotect(spot)?;
        protect::make_mount_point(spot, attributes(&self.checked.manifest.names[0].1)?)?;
        protect::protect(spot).map(drop)
    }
}

/// Undoes a clone that has not become one; nothing happens to a volume in any other phase.
fn undo(repository: &Repository, checked: &Checked) -> Result<()> {
    let backing = &checked.backing;
    let Some(first) = backing.places[0].identity()? else { return backing.remove_stray_locks() };
    if first.phase != Phase::CloneBuild {
        return Ok(());
    }
    protect::unprotect(&checked.spot)?;
    adopt::clear_fastest(backing)?;
    for tier in backing.ids() {
        remove_empty_objects(backing.path(tier))?;
    }
    match repository.drop_ref(&reference_of(first.volume)) {
        Ok(()) | Err(Error::NotFound(_)) => {}
        Err(error) => return Err(error),
    }
    backing.remove_identities()
}

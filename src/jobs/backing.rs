//! The tiers of a volume as a job sees them: directories on real filesystems, opened once.

use super::anchor::Anchor;
use super::log_archive::ARCHIVE_DIR;
use super::mounts::Mounts;
use super::survey::read_dir;
use crate::device::real::{Capabilities, RealDevice};
use crate::error::{Error, Result};
use crate::ondisk::identity::NAME_MAX_BYTES;
use crate::tier::identity::{IDENTITY_FILE, LOCK_FILE, Locks, Place};
use crate::units::TierId;
use crate::volume::Tier;
use std::fs::{self, File, Permissions};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// What a volume keeps on the fastest tier besides its directories.
const VOLUME_FILES: [&str; 10] = [
    "state.redb",
    "state.reserve",
    "heat.bin",
    "heat.bin.new",
    "pins.json",
    "pins.json.new",
    "forecast.bin",
    "forecast.bin.new",
    "clone.json",
    "clone.json.new",
];

/// One tier of a plan, as the user named it; a plan lists them fastest first.
#[derive(Clone, Debug)]
pub struct TierPlan {
    pub name: String,
    pub path: PathBuf,
    /// Bytes that block images may take; None: what the filesystem has, less `reserve_bytes`.
    pub budget_bytes: Option<u64>,
    pub reserve_bytes: u64,
}

/// The tiers of a plan, opened. Paths lead through the descriptors of the tiers, wherever their names lead meanwhile: errors of what is done by them are to be
/// [`Backing::named`].
pub(super) struct Backing {
    plans: Vec<TierPlan>,
    /// What the plan's paths led to when it was opened; the devices are these directories, too.
    anchors: Vec<Anchor>,
    pub places: Vec<Place>,
}

impl Backing {
    /// Errors: `Invalid` for names and paths that cannot be, `WrongTier` for a path that is missing.
    pub fn open(plans: &[TierPlan]) -> Result<Backing> {
        check_names(plans)?;
        let (mut anchors, mut places) = (Vec::with_capacity(plans.len()), Vec::with_capacity(plans.len()));
        for plan in plans {
            let anchor = Anchor::behind(&plan.path).map_err(|e| Place::cannot_open(&plan.name, &plan.path, &e))?;
            places.push(Place::open(&plan.name, &plan.path, anchor.path())?);
            anchors.push(anchor);
        }
        for (index, path) in anchors.iter().map(Anchor::shown).enumerate() {
            for (other, other_path) in anchors.iter().map(Anchor::shown).enumerate().skip(index + 1) {
                if path.starts_with(other_path) || other_path.starts_with(path) {
                    return Err(Error::Invalid(format!(
                        "tiers `{}` ({}) and `{}` ({}) overlap: give each a directory of its own",
                        plans[index].name,
                        path.display(),
                        plans[other].name,
                        other_path.display()
                    )));
                }
            }
        }
        Ok(Backing { plans: plans.to_vec(), anchors, places })
    }

    /// An error with the tiers' paths as people know them.
    pub fn named(&self, error: Error) -> Error {
        self.anchors.iter().fold(error, |error, anchor| anchor.named(error))
    }

    /// A text with the tiers' paths as people know them.
    pub fn in_line(&self, line: &str) -> String {
        self.anchors.iter().fold(line.to_owned(), |line, anchor| anchor.in_line(&line))
    }

    /// Refuses a directory that holds a tier or lies in one, of this volume or of another.
    pub fn refuse_overlap(&self, directory: &Path) -> Result<()> {
        for (plan, path) in self.plans.iter().zip(self.anchors.iter().map(Anchor::shown)) {
            if path.starts_with(directory) || directory.starts_with(path) {
                return Err(Error::Invalid(format!(
                    "tier `{}` at {} and the directory {} overlap: heatfs mounted there would hide its own tier",
                    plan.name,
                    path.display(),
                    directory.display()
                )));
            }
        }
        match directory.ancestors().find(|above| above.join(IDENTITY_FILE).exists()) {
            None => Ok(()),
            Some(above) => Err(Error::Invalid(format!(
                "{} lies inside {}, which is a tier of a heatfs volume",
                directory.display(),
                above.display()
            ))),
        }
    }

    /// Where to work.
    pub fn path(&self, tier: TierId) -> &Path {
        self.anchors[tier.index()].path()
    }

    /// Absolute and without symbolic links, for people and for comparisons.
    pub fn shown(&self, tier: TierId) -> &Path {
        self.anchors[tier.index()].shown()
    }

    pub fn name(&self, tier: TierId) -> &str {
        &self.plans[tier.index()].name
    }

    pub fn budget(&self, tier: TierId) -> Option<u64> {
        self.plans[tier.index()].budget_bytes
    }

    pub fn ids(&self) -> impl DoubleEndedIterator<Item = TierId> + ExactSizeIterator + use<> {
        (0..u8::try_from(self.anchors.len()).unwrap_or(u8::MAX)).map(TierId)
    }

    pub fn by_name(&self, name: &str) -> Result<TierId> {
        let names = || self.plans.iter().map(|plan| plan.name.as_str()).collect::<Vec<_>>().join(", ");
        let found = self.ids().find(|id| self.name(*id) == name);
        found.ok_or_else(|| Error::Invalid(format!("no tier is named `{name}`; there are: {}", names())))
    }

    /// Where names and attributes lie.
    pub fn home(&self) -> PathBuf {
        self.path(TierId::FASTEST).join("home")
    }

    /// The mount's root, as home has it.
    pub fn tree(&self) -> PathBuf {
        self.home().join("tree")
    }

    pub fn lock(&self) -> Result<Locks> {
        let listed: Vec<(String, &Path)> = self.ids().map(|id| (self.name(id).to_owned(), self.path(id))).collect();
        Locks::take(&listed).map_err(|error| self.named(error))
    }

    pub fn engine_tiers(&self) -> Vec<Tier> {
        let tiers = self.plans.iter().zip(&self.places);
        tiers
            .map(|(plan, place)| Tier {
                name: plan.name.clone(),
                device: Arc::clone(&place.device),
                budget_bytes: plan.budget_bytes,
                reserve_bytes: plan.reserve_bytes,
            })
            .collect()
    }

    pub fn fastest(&self) -> Result<Tier> {
        let fastest = self.engine_tiers().into_iter().next();
        fastest.ok_or_else(|| Error::Invalid("a volume has at least one tier".to_owned()))
    }

    /// The paths are nobody's again. Tier 0 last: its phase is what tells that there is something to finish.
    pub fn remove_identities(&self) -> Result<()> {
        for (place, anchor) in self.places.iter().zip(&self.anchors).rev() {
            place.remove_identity()?;
            remove_file(&anchor.path().join(LOCK_FILE))?;
        }
        Ok(())
    }

    /// Removes the lock files, which the caller holds, from paths that are nobody's.
    pub fn remove_stray_locks(&self) -> Result<()> {
        for (place, anchor) in self.places.iter().zip(&self.anchors) {
            if place.identity()?.is_none() {
                remove_file(&anchor.path().join(LOCK_FILE))?;
            }
        }
        Ok(())
    }

    /// Makes everything on every tier durable.
    pub fn sync_all(&self) -> Result<()> {
        self.places.iter().try_for_each(|place| {
            place.device.sync_all().map_err(|e| Error::io("sync the filesystem of", place.device.path(), e))
        })
    }

    /// What each tier's filesystem can do. Errors: `WrongTier` for one that lacks what heatfs cannot do without.
    pub fn probe(&self) -> Result<Vec<Capabilities>> {
        let mut found = Vec::with_capacity(self.plans.len());
        for (plan, anchor) in self.plans.iter().zip(&self.anchors) {
            let shown = anchor.shown().display().to_string();
            let wrong = |why: String| Error::WrongTier { tier: plan.name.clone(), path: shown.clone(), why };
            let device = RealDevice::at(anchor.path()).map_err(|e| Error::io("open", shown.clone(), e))?;
            let able = device.probe().map_err(|e| match e.kind() {
                std::io::ErrorKind::ReadOnlyFilesystem => wrong("the filesystem is mounted read-only".to_owned()),
                _ => Error::io("probe", shown.clone(), e),
            })?;
            for (has, what) in [(able.user_xattr, "extended attributes (user_xattr)"), (able.punch, "hole punching")] {
                if !has {
                    return Err(wrong(format!("its filesystem ({}) has no {what}, which heatfs needs", able.fs_type)));
                }
            }
            found.push(able);
        }
        Ok(found)
    }

    /// Tiers between which and `directory` a rename is possible.
    pub fn on_mount_of(&self, directory: &Path, mounts: &Mounts) -> Result<Vec<TierId>> {
        let device = |path: &Path| {
            let meta = fs::metadata(path).map_err(|e| Error::io("stat", path.display().to_string(), e));
            meta.map(|meta| meta.dev()).map_err(|error| self.named(error))
        };
        let (wanted, point) = (device(directory)?, mounts.of(directory));
        let mut found = Vec::new();
        for id in self.ids() {
            if device(self.path(id))? == wanted && mounts.of(self.shown(id)) == point {
                found.push(id);
            }
        }
        Ok(found)
    }

    /// `name at path (on mount), ...` for messages.
    pub fn describe(&self, mounts: &Mounts) -> String {
        let one = |id| {
            let path = self.shown(id);
            format!("`{}` at {} (filesystem mounted at {})", self.name(id), path.display(), mounts.of(path).display())
        };
        self.ids().map(one).collect::<Vec<_>>().join(", ")
    }
}

fn check_names(plans: &[TierPlan]) -> Result<()> {
    if plans.is_empty() || plans.len() > TierId::MAX_TIERS {
        return Err(Error::Invalid(format!("{} tiers given; 1 to {} are allowed", plans.len(), TierId::MAX_TIERS)));
    }
    for (index, plan) in plans.iter().enumerate() {
        let proper = |c: char| c.is_ascii_alphanumeric() || c == '-' || c == '_';
        if plan.name.is_empty() || plan.name.len() > NAME_MAX_BYTES || !plan.name.chars().all(proper) {
            return Err(Error::Invalid(format!(
                "tier name `{}`: 1 to {NAME_MAX_BYTES} letters, digits, `-` and `_` are allowed",
                plan.name
            )));
        }
        if plans[..index].iter().any(|other| other.name == plan.name) {
            return Err(Error::Invalid(format!("two tiers are named `{}`", plan.name)));
        }
    }
    Ok(())
}

/// Makes a directory that only its owner may enter; no error when it is there.
pub(super) fn make_private_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.map_err(|e| Error::io("create", path.display().to_string(), e))
}

/// Makes the names in a directory durable.
pub(super) fn sync_dir(path: &Path) -> Result<()> {
    let sync = || File::open(path)?.sync_all();
    sync().map_err(|e| Error::io("sync", path.display().to_string(), e))
}

/// Moves a name, and makes both directories durable.
pub(super) fn rename_durably(from: &Path, to: &Path) -> Result<()> {
    fs::rename(from, to).map_err(|e| Error::io("rename", format!("{} to {}", from.display(), to.display()), e))?;
    for parent in [to.parent(), from.parent()].into_iter().flatten() {
        sync_dir(parent)?;
    }
    Ok(())
}

/// Removes a directory tree of ours; nothing happens when there is none.
pub(super) fn remove_tree(path: &Path) -> Result<()> {
    let removed = match fs::remove_dir_all(path) {
        // Its directories have the modes of the user's; one that denies writing keeps its names from anybody but root, its owner included.
        Err(e) if e.kind() == std::io::ErrorKind::PermissionDenied => {
            open_directories(path)?;
            fs::remove_dir_all(path)
        }
        removed => removed,
    };
    match removed {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path.display().to_string(), e)),
        _ => Ok(()),
    }
}

/// Lets the owner of a tree do anything in each of its directories.
fn open_directories(tree: &Path) -> Result<()> {
    let mut pending = vec![tree.to_owned()];
    while let Some(path) = pending.pop() {
        let meta = fs::symlink_metadata(&path).map_err(|e| Error::io("stat", path.display().to_string(), e))?;
        if meta.is_dir() {
            let opened = fs::set_permissions(&path, Permissions::from_mode(0o700));
            opened.map_err(|e| Error::io("chmod", path.display().to_string(), e))?;
            pending.extend(read_dir(&path)?);
        }
    }
    Ok(())
}

/// Removes one file of ours; nothing happens when there is none.
pub(super) fn remove_file(path: &Path) -> Result<()> {
    match fs::remove_file(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", path.display().to_string(), e)),
        _ => Ok(()),
    }
}

/// Is there something of this name (a dangling symbolic link counts)?
pub(super) fn exists(path: &Path) -> Result<bool> {
    match fs::symlink_metadata(path) {
        Ok(_) => Ok(true),
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(false),
        Err(e) => Err(Error::io("stat", path.display().to_string(), e)),
    }
}

/// Removes the log, the state and what was saved for snapshots in the making from the fastest tier.
pub(super) fn remove_engine_files(fastest: &Path) -> Result<()> {
    remove_tree(&fastest.join("log"))?;
    remove_tree(&fastest.join("staging"))?;
    VOLUME_FILES.iter().try_for_each(|name| remove_file(&fastest.join(name)))
}

/// Removes archived segments of the log from a tier.
pub(super) fn remove_log_archive(tier: &Path) -> Result<()> {
    remove_tree(&tier.join(ARCHIVE_DIR))
}

/// Removes the directories of objects from a tier. Errors: `Busy` if there still are objects in them.
pub(super) fn remove_empty_objects(tier: &Path) -> Result<()> {
    let objects = tier.join("objects");
    if !exists(&objects)? {
        return Ok(());
    }
    for dir in read_dir(&objects)? {
        remove_dir(&dir)?;
    }
    remove_dir(&objects)
}

fn remove_dir(path: &Path) -> Result<()> {
    fs::remove_dir(path).map_err(|e| Error::io("remove", path.display().to_string(), e))
}

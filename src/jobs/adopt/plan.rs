//! What speaks against an adoption, found out before anything is changed.

use crate::error::{Error, Result};
use crate::jobs::anchor::Spot;
use crate::jobs::backing::{Backing, TierPlan, exists};
use crate::jobs::mounts::Mounts;
use crate::jobs::survey::{Survey, refuse_if_postmaster_runs, refuse_if_used};
use crate::ondisk::identity::Phase;
use crate::tier::identity::VolumeIdentity;
use crate::units::TierId;
use crate::volume::Options;
use nix::unistd::{AccessFlags, access};
use std::fs;
use std::path::{Path, PathBuf};

/// An inode with its attributes and its part of a directory, at most; for judging whether home fits.
pub(in crate::jobs) const HOME_ENTRY_BYTES: u64 = 4096;
/// Room for the state besides home and log.
const STATE_BYTES: u64 = 64 << 20;

/// What to adopt, and onto what.
#[derive(Clone, Debug)]
pub struct AdoptPlan {
    /// Made if it does not exist.
    pub directory: PathBuf,
    /// Fastest first.
    pub tiers: Vec<TierPlan>,
    /// Where home is to lie; None: the fastest tier, the only one where it may.
    pub home: Option<String>,
    /// The tier that the files come to lie on, which must share the directory's filesystem; None: the fastest such tier whose budget
    /// they fit.
    pub origin: Option<String>,
    pub options: Options,
}

/// A plan that nothing speaks against.
pub(super) struct Checked {
    /// Where the directory is, or is to be.
    pub spot: Spot,
    pub backing: Backing,
    pub origin: TierId,
    pub survey: Survey,
    pub not_covered: Vec<String>,
    pub warnings: Vec<String>,
    /// An adoption that was cut off and goes on.
    pub unfinished: Option<VolumeIdentity>,
}

impl Checked {
    /// An error with all paths as people know them.
    pub fn named(&self, error: Error) -> Error {
        self.backing.named(self.spot.named(error))
    }
}

/// Changes nothing. Errors: `Invalid`, `Busy`, `WrongTier`, in one line each.
pub(super) fn check(plan: &AdoptPlan) -> Result<Checked> {
    let directory = resolve(&plan.directory)?;
    let spot = Spot::of(&directory)?;
    let backing = Backing::open(&plan.tiers)?;
    backing.refuse_overlap(&directory)?;
    refuse_other_home(plan, &backing)?;
    let mounts = Mounts::read()?;
    refuse_mount_point(&directory, &mounts)?;
    let unfinished = unfinished(&backing, &directory)?;
    // What an adoption that was cut off has moved already is looked at where it lies now.
    let taken = unfinished.as_ref().map(|id| backing.shown(id.origin).join(super::ADOPTING).join("tree"));
    let lies_at = match (&unfinished, taken) {
        (Some(id), _) if id.phase == Phase::AdoptMove => backing.shown(TierId::FASTEST).join("home/tree"),
        (_, Some(taken)) if exists(&taken)? => taken,
        _ => directory.clone(),
    };
    let survey = if exists(&lies_at)? { Survey::of(&lies_at, &directory, &mounts)? } else { Survey::default() };
    refuse_if_postmaster_runs(&lies_at)?;
    refuse_if_used(&survey, &lies_at)?;
    let origin = match &unfinished {
        Some(id) => id.origin,
        None => choose_origin(plan, &backing, &directory, &survey, &mounts)?,
    };
    let mut warnings = Vec::new();
    if unfinished.is_none() {
        for place in &backing.places {
            place.require_empty()?;
        }
        refuse_unmovable(&directory)?;
        warnings = judge_adopted(plan, &backing, origin, &survey)?;
    }
    let not_covered = survey.leaving.clone();
    Ok(Checked { spot, backing, origin, survey, not_covered, warnings, unfinished })
}

/// The path without symbolic links, whether or not something is there.
pub(in crate::jobs) fn resolve(directory: &Path) -> Result<PathBuf> {
    const LINKS_MAX: u32 = 40;
    let io = |e| Error::io("resolve", directory.display().to_string(), e);
    let mut path = std::path::absolute(directory).map_err(io)?;
    for _ in 0..LINKS_MAX {
        let (Some(parent), Some(name)) = (path.parent(), path.file_name()) else { break };
        let real = fs::canonicalize(parent).map_err(io)?.join(name);
        match fs::read_link(&real) {
            Ok(target) => path = real.parent().unwrap_or(Path::new("/")).join(target),
            Err(_) => return check_kind(real),
        }
    }
    Err(Error::Invalid(format!("{} cannot be adopted: it is the root or a loop of links", directory.display())))
}

fn check_kind(directory: PathBuf) -> Result<PathBuf> {
    if directory.to_str().is_none() {
        return Err(Error::Invalid(format!("{}: only paths in UTF-8 can be adopted", directory.display())));
    }
    if exists(&directory)? && !directory.is_dir() {
        return Err(Error::Invalid(format!("{} is not a directory", directory.display())));
    }
    Ok(directory)
}

fn refuse_other_home(plan: &AdoptPlan, backing: &Backing) -> Result<()> {
    let Some(home) = &plan.home else { return Ok(()) };
    if backing.by_name(home)? == TierId::FASTEST {
        return Ok(());
    }
    Err(Error::Invalid(format!(
        "--home {home}: home lies on the fastest tier, `{}`, or creating files would be as slow as `{home}`; list `{home}` first",
        backing.name(TierId::FASTEST)
    )))
}

pub(in crate::jobs) fn refuse_mount_point(directory: &Path, mounts: &Mounts) -> Result<()> {
    if !mounts.is_mount_point(directory) {
        return Ok(());
    }
    let shown = directory.display();
    Err(Error::Invalid(format!(
        "{shown} is a mount point, and a filesystem's root cannot be renamed: move its contents into a subdirectory \
         (mkdir {shown}/data && mv {shown}/* {shown}/data) and adopt that, with a tier such as {shown}/heatfs beside it"
    )))
}

/// What an adoption that was cut off left, if it did.
fn unfinished(backing: &Backing, directory: &Path) -> Result<Option<VolumeIdentity>> {
    let Some(first) = backing.places[0].identity()? else { return Ok(None) };
    let other = |what: String| {
        let (name, path) = (backing.name(TierId::FASTEST), backing.shown(TierId::FASTEST));
        Err(Error::Busy(format!("tier `{name}` at {} {what}", path.display())))
    };
    if Path::new(&first.directory) != directory {
        return other(format!("already belongs to the volume of {}", first.directory));
    }
    match first.phase {
        Phase::AdoptBuild | Phase::AdoptMove => {}
        Phase::Ready => return other(format!("already holds the files of {}: mount it", first.directory)),
        Phase::ReleaseBuild | Phase::ReleaseSwap | Phase::ReleaseRemove => {
            return other("is being released: finish that with `heatfs release`".to_owned());
        }
        Phase::CloneBuild => return other("is half a clone: finish that with `heatfs clone`".to_owned()),
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

/// The tier that the files come to lie on.
fn choose_origin(
    plan: &AdoptPlan,
    backing: &Backing,
    directory: &Path,
    survey: &Survey,
    mounts: &Mounts,
) -> Result<TierId> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    let beside = if exists(directory)? { directory } else { parent };
    let near = backing.on_mount_of(beside, mounts)?;
    let wanted = plan.origin.as_ref().map(|name| backing.by_name(name)).transpose()?;
    let fits = |id: &TierId| backing.budget(*id).is_none_or(|budget| budget >= survey.allocated_bytes);
    let chosen = match wanted {
        Some(id) => near.contains(&id).then_some(id),
        None => near.iter().find(|id| fits(id)).or(near.last()).copied(),
    };
    chosen.ok_or_else(|| {
        Error::Invalid(format!(
            "adopting across filesystems: {} is on the filesystem mounted at {}, and its files are renamed into a tier, not copied. Put {} there. There are: {}",
            directory.display(),
            mounts.of(beside).display(),
            plan.origin.as_ref().map_or("one tier".to_owned(), |name| format!("tier `{name}`")),
            backing.describe(mounts)
        ))
    })
}

/// The directory is renamed out of its parent, and made there again.
fn refuse_unmovable(directory: &Path) -> Result<()> {
    let parent = directory.parent().unwrap_or(Path::new("/"));
    let writable = |path: &Path| access(path, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    match [parent, directory].into_iter().find(|path| path.exists() && !writable(path)) {
        None => Ok(()),
        Some(path) => Err(Error::Invalid(format!(
            "{} cannot be moved: no permission to write to {}",
            directory.display(),
            path.display()
        ))),
    }
}

/// Errors: a tier that cannot serve. What is only worth a warning is returned.
fn judge_adopted(plan: &AdoptPlan, backing: &Backing, origin: TierId, survey: &Survey) -> Result<Vec<String>> {
    let mut warnings = judge_tiers(backing, &plan.options, survey.entries())?;
    let budgets: Option<u64> = backing.ids().map(|id| backing.budget(id)).sum();
    if budgets.is_some_and(|budgets| budgets < survey.allocated_bytes) {
        return Err(Error::Invalid(format!(
            "{} holds {} MiB, more than the budgets of all tiers together",
            plan.directory.display(),
            survey.allocated_bytes >> 20
        )));
    }
    if backing.budget(origin).is_some_and(|budget| budget < survey.allocated_bytes) {
        let name = backing.name(origin);
        warnings.push(format!("tier `{name}` is over its budget until the mover has taken blocks off it"));
    }
    if survey.linked_outside > 0 {
        warnings.push(format!(
            "{} file(s) have further names outside of {}: whoever writes there changes the volume behind its back",
            survey.linked_outside,
            plan.directory.display()
        ));
    }
    Ok(warnings)
}

/// Can these tiers be a volume's, with this log and so many names? What is only worth a warning is returned.
pub(in crate::jobs) fn judge_tiers(backing: &Backing, options: &Options, entries: u64) -> Result<Vec<String>> {
    let able = backing.probe()?;
    let mut warnings = Vec::new();
    for (tier, found) in backing.ids().zip(&able) {
        let before = backing.ids().zip(&able).take(tier.index());
        for (other, _) in before.filter(|(_, other)| other.fs_device == found.fs_device) {
            let (first, second) = (backing.name(other), backing.name(tier));
            warnings.push(format!(
                "tiers `{first}` and `{second}` are on one filesystem: moving blocks between them gains nothing"
            ));
        }
        for (has, what) in [(found.direct_io, "direct I/O"), (found.allocate, "reserving space")] {
            if !has {
                warnings.push(format!(
                    "tier `{}`: its filesystem ({}) has no {what}",
                    backing.name(tier),
                    found.fs_type
                ));
            }
        }
    }
    let log_bytes = options.segment_bytes.saturating_mul(u64::from(options.segments));
    let needed = log_bytes + STATE_BYTES + entries * HOME_ENTRY_BYTES;
    let fastest = &backing.places[0];
    let space = fastest.device.space().map_err(|e| Error::io("stat the filesystem of", fastest.device.path(), e))?;
    if space.available_bytes < needed {
        return Err(Error::Invalid(format!(
            "tier `{}` at {}: the log ({} MiB) and home need {} MiB, {} MiB are free there; a smaller log takes less",
            fastest.name,
            fastest.device.path(),
            log_bytes >> 20,
            needed.div_ceil(1 << 20),
            space.available_bytes >> 20
        )));
    }
    Ok(warnings)
}

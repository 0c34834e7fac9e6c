//! Right tiers only (I7): who a tier path is, and that it is not older than it should be.
//!
//! Every tier path holds `heatfs.tier`. A mount reads all of them before anything else and refuses with one line that says which path
//! and why: a path without one is a disk that is not mounted, never an empty tier.
//!
//! **Incarnations.** Each mount raises the incarnation on all tiers before anything is served, so that a tier restored from an old
//! copy, or left out of a mount, is found to be older. A crash in the middle of raising must not look like that, so the order is:
//!
//! 1. tier 0 is written with its old incarnation n and the mark `Raising`;
//! 2. every other tier is written with n + 1;
//! 3. tier 0 is written with n + 1 and `Running`.
//!
//! Only while tier 0 says `Raising` may the others have either n or n + 1: nothing was served in between, so both are current.
//! A clean stop marks the others `Stopped` first and tier 0 last; so if tier 0 says `Stopped`, another tier that says `Running` is a copy
//! made while the volume was mounted. (A copy made in the same incarnation as a crash cannot be told from the original.)
//!
//! Identity files are replaced by a rename, so that a crash leaves the old or the new one. Where the filesystem can, the two change places: the old one stays as the
//! spare that the next is written over, so that a start needs no room, however full others made the filesystem.

use crate::device::real::RealDevice;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::ondisk::identity::{IDENTITY_MAX_BYTES, Phase, Run, TierIdentity};
use crate::units::TierId;
use nix::fcntl::{Flock, FlockArg};
use serde::Serialize;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use uuid::Uuid;

/// Name of the identity file in a tier path.
pub const IDENTITY_FILE: &str = "heatfs.tier";
/// Name of the lock file in a tier path.
pub const LOCK_FILE: &str = "heatfs.lock";
/// The next identity while it is written; then what the last one was, for its room.
const NEW_IDENTITY_FILE: &str = "heatfs.tier.new";

/// A tier path and the name that the settings give it. A volume's places are listed fastest first.
#[derive(Clone)]
pub struct Place {
    pub name: String,
    pub device: Arc<dyn Device>,
}

/// What all tiers of a volume agree on.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub struct VolumeIdentity {
    pub volume: Uuid,
    pub incarnation: u64,
    pub phase: Phase,
    /// The last run ended with [`mark_stopped`].
    pub clean: bool,
    /// The tier that shares a filesystem with `directory`.
    pub origin: TierId,
    /// The directory that was adopted.
    pub directory: String,
}

impl Place {
    /// Opens the directories of the settings. Errors: `WrongTier` for one that is missing or no directory.
    pub fn open_all<P: AsRef<Path>>(tiers: &[(String, P)]) -> Result<Vec<Place>> {
        tiers.iter().map(|(name, path)| Place::open(name, path.as_ref(), path.as_ref())).collect()
    }

    /// Opens the directory that `through` leads to, and tells of it as `path`. Errors: as [`Place::open_all`].
    pub fn open(name: &str, path: &Path, through: &Path) -> Result<Place> {
        match RealDevice::named(through, path) {
            Ok(device) => Ok(Place { name: name.to_owned(), device: Arc::new(device) }),
            Err(e) => Err(Place::cannot_open(name, path, &e)),
        }
    }

    /// What is said of a path that cannot be opened as a directory.
    pub fn cannot_open(name: &str, path: &Path, e: &io::Error) -> Error {
        Error::WrongTier {
            tier: name.to_owned(),
            path: path.display().to_string(),
            why: match e.kind() {
                io::ErrorKind::NotFound => "the path does not exist; is the disk mounted?".to_owned(),
                _ => format!("cannot be opened as a directory: {e}"),
            },
        }
    }

    fn wrong(&self, why: impl Into<String>) -> Error {
        Error::WrongTier { tier: self.name.clone(), path: self.device.path(), why: why.into() }
    }

    fn io(&self, action: &'static str, e: io::Error) -> Error {
        match e.kind() {
            io::ErrorKind::ReadOnlyFilesystem => self.wrong("the filesystem is mounted read-only"),
            _ => Error::io(action, format!("{}/{IDENTITY_FILE}", self.device.path()), e),
        }
    }

    /// The identity found here; None if there is none. Errors: `Corrupt`, `WrongTier` for a read-only filesystem, `Io`.
    pub fn identity(&self) -> Result<Option<TierIdentity>> {
        let file = match self.device.open(IDENTITY_FILE, OpenMode::default()) {
            Ok(file) => file,
            Err(e) if e.kind() == io::ErrorKind::NotFound => return Ok(None),
            Err(e) => return Err(self.io("open", e)),
        };
        let mut bytes = vec![0; IDENTITY_MAX_BYTES + 1];
        let len = file.read_at(&mut bytes, 0).map_err(|e| self.io("read", e))?;
        let path = format!("{}/{IDENTITY_FILE}", self.device.path());
        TierIdentity::decode(&bytes[..len], &path).map(Some)
    }

    /// Replaces the identity; durable when this returns.
    fn write_identity(&self, identity: &TierIdentity) -> Result<()> {
        let bytes = identity.encode()?;
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let write = || {
            let file = self.device.open(NEW_IDENTITY_FILE, mode)?;
            file.write_all_at(&bytes, 0)?;
            file.set_len(bytes.len() as u64)?;
            file.sync_data()?;
            match self.device.exists(IDENTITY_FILE)? {
                true => self.device.exchange(NEW_IDENTITY_FILE, IDENTITY_FILE)?,
                false => self.device.rename(NEW_IDENTITY_FILE, IDENTITY_FILE)?,
            }
            self.device.sync_dir("")
        };
        write().map_err(|e| self.io("write", e))
    }

    /// Removes the identity; the last step of leaving.
    pub fn remove_identity(&self) -> Result<()> {
        for name in [NEW_IDENTITY_FILE, IDENTITY_FILE] {
            match self.device.remove_file(name) {
                Err(e) if e.kind() != io::ErrorKind::NotFound => return Err(self.io("remove", e)),
                _ => {}
            }
        }
        self.device.sync_dir("").map_err(|e| self.io("sync", e))
    }

    /// Refuses a path that holds anything but what an interrupted start of ours left.
    pub fn require_empty(&self) -> Result<()> {
        if let Some(found) = self.identity()? {
            return Err(self.wrong(format!(
                "already holds tier `{}` of volume {} ({})",
                found.name, found.volume, found.directory
            )));
        }
        let ours = ["lost+found", LOCK_FILE, NEW_IDENTITY_FILE];
        let names = self.device.list("").map_err(|e| self.io("list", e))?;
        match names.iter().find(|name| !ours.contains(&name.as_str())) {
            None => Ok(()),
            Some(name) => {
                Err(self.wrong(format!("is not empty (it holds `{name}`); a new tier needs an empty directory")))
            }
        }
    }
}

/// Makes empty paths the tiers of a new volume in its first phase. Nothing is written unless all are empty.
pub fn initialise(
    places: &[Place],
    volume: Uuid,
    directory: &str,
    origin: TierId,
    phase: Phase,
) -> Result<VolumeIdentity> {
    for place in places {
        place.require_empty()?;
    }
    let id = VolumeIdentity { volume, incarnation: 0, phase, clean: true, origin, directory: directory.to_owned() };
    // Tier 0 first: its phase tells a later try that the others may be half made.
    for index in 0..places.len() {
        write_tier(places, index, &id, id.incarnation, Run::Stopped)?;
    }
    Ok(id)
}

/// Finishes an [`initialise`] that was cut off: writes the identities that are missing. Errors: `WrongTier` for a path that is no longer empty.
pub fn complete(places: &[Place], id: &VolumeIdentity) -> Result<()> {
    for (index, place) in places.iter().enumerate() {
        if place.identity()?.is_none() {
            place.require_empty()?;
            write_tier(places, index, id, id.incarnation, Run::Stopped)?;
        }
    }
    Ok(())
}

/// Reads every tier and checks that together they are one volume, each in its place and none older than the others (I7).
/// Changes nothing. Errors: `WrongTier`, `Corrupt`, `Invalid` for a wrong number of tiers.
pub fn verify_all(places: &[Place]) -> Result<VolumeIdentity> {
    let mut found = Vec::with_capacity(places.len());
    for place in places {
        let identity = place.identity()?;
        found.push(identity.ok_or_else(|| {
            place.wrong(format!("no {IDENTITY_FILE} here; is the disk mounted? (Or was the volume released?)"))
        })?);
    }
    let (Some(first), Some(fastest)) = (found.first(), places.first()) else {
        return Err(Error::Invalid("a volume needs at least one tier".to_owned()));
    };
    for (place, identity) in places.iter().zip(&found) {
        if identity.volume != first.volume {
            return Err(place.wrong(format!(
                "belongs to volume {} ({}), but tier `{}` at {} belongs to volume {} ({})",
                identity.volume,
                identity.directory,
                fastest.name,
                fastest.device.path(),
                first.volume,
                first.directory
            )));
        }
    }
    for (index, (place, identity)) in places.iter().zip(&found).enumerate() {
        verify_position(places, &found, index, place, identity)?;
    }
    for (place, identity) in places.iter().zip(&found).skip(1) {
        verify_age(fastest, first, place, identity)?;
    }
    Ok(VolumeIdentity {
        volume: first.volume,
        incarnation: first.incarnation,
        phase: first.phase,
        clean: first.run == Run::Stopped,
        origin: first.origin,
        directory: first.directory.clone(),
    })
}

/// Is this tier where it belongs, under its own name?
fn verify_position(
    places: &[Place],
    found: &[TierIdentity],
    index: usize,
    place: &Place,
    identity: &TierIdentity,
) -> Result<()> {
    if identity.tier.index() != index {
        let own = places.iter().zip(found).nth(identity.tier.index());
        let own = match own {
            Some((other, holds)) => format!(
                "; the path of tier {}, {}, holds tier {} (`{}`)",
                identity.tier,
                other.device.path(),
                holds.tier,
                holds.name
            ),
            None => String::new(),
        };
        return Err(place.wrong(format!(
            "is listed as tier {index} but holds tier {} (`{}`) of this volume{own}: swapped?",
            identity.tier, identity.name
        )));
    }
    if usize::from(identity.tiers) != places.len() {
        return Err(place.wrong(format!("its volume has {} tiers, but {} are listed", identity.tiers, places.len())));
    }
    if identity.name != place.name {
        return Err(place.wrong(format!("is named `{}` in its volume", identity.name)));
    }
    Ok(())
}

/// Is this tier as recent as tier 0? The rules are in the head of this module.
fn verify_age(fastest: &Place, first: &TierIdentity, place: &Place, identity: &TierIdentity) -> Result<()> {
    let older = |older: &Place, than: &Place, by: u64| {
        older.wrong(format!(
            "is out of date: tier `{}` at {} has been mounted {by} time(s) since; is this an old copy?",
            than.name,
            than.device.path()
        ))
    };
    let newest = first.incarnation.saturating_add(u64::from(first.run == Run::Raising));
    if identity.incarnation < first.incarnation {
        return Err(older(place, fastest, first.incarnation - identity.incarnation));
    }
    if identity.incarnation > newest {
        return Err(older(fastest, place, identity.incarnation - first.incarnation));
    }
    if first.run == Run::Stopped && identity.run != Run::Stopped {
        return Err(place.wrong(format!(
            "is out of date: it was mounted when this was written, but tier `{}` at {} has been stopped cleanly since; is this an old copy?",
            fastest.name,
            fastest.device.path()
        )));
    }
    Ok(())
}

/// Verifies all tiers, requires a volume in service, and raises the incarnation durably on all of them: to be called before anything
/// is read from or written to them. Errors: as [`verify_all`], and `Busy` for an unfinished adoption or release.
pub fn begin_run(places: &[Place]) -> Result<VolumeIdentity> {
    let mut id = verify_all(places)?;
    id.require_ready()?;
    let raised = id.incarnation + 1;
    write_tier(places, 0, &id, id.incarnation, Run::Raising)?;
    for index in 1..places.len() {
        write_tier(places, index, &id, raised, Run::Running)?;
    }
    write_tier(places, 0, &id, raised, Run::Running)?;
    id.incarnation = raised;
    Ok(id)
}

/// Marks a clean stop; to be called when everything else is durable.
pub fn mark_stopped(places: &[Place], id: &VolumeIdentity) -> Result<()> {
    for index in (0..places.len()).rev() {
        write_tier(places, index, id, id.incarnation, Run::Stopped)?;
    }
    Ok(())
}

/// Did the volume's last run end with [`mark_stopped`]? The fastest tier is marked last and so can say it alone, also while another is gone.
/// None: there is no volume. Errors: as [`Place::identity`].
pub fn ended_cleanly(fastest: &Place) -> Result<Option<bool>> {
    Ok(fastest.identity()?.map(|identity| identity.run == Run::Stopped))
}

/// Durably notes how far an adoption or release has come. Not to be called during a run.
pub fn set_phase(places: &[Place], id: &mut VolumeIdentity, phase: Phase) -> Result<()> {
    id.phase = phase;
    write_tier(places, 0, id, id.incarnation, Run::Stopped)
}

fn write_tier(places: &[Place], index: usize, id: &VolumeIdentity, incarnation: u64, run: Run) -> Result<()> {
    let too_many = || Error::Invalid(format!("at most {} tiers are allowed", TierId::MAX_TIERS));
    let tiers = u8::try_from(places.len()).ok().filter(|&n| usize::from(n) <= TierId::MAX_TIERS);
    let tier = u8::try_from(index).map_err(|_| too_many())?;
    let identity = TierIdentity {
        volume: id.volume,
        incarnation,
        tier: TierId(tier),
        tiers: tiers.ok_or_else(too_many)?,
        phase: id.phase,
        run,
        origin: id.origin,
        name: places[index].name.clone(),
        directory: id.directory.clone(),
    };
    places[index].write_identity(&identity)
}

impl VolumeIdentity {
    /// Errors: `Busy`, saying which command finishes what was begun.
    pub fn require_ready(&self) -> Result<()> {
        let unfinished = match self.phase {
            Phase::Ready => return Ok(()),
            Phase::AdoptBuild | Phase::AdoptMove => "adopt",
            Phase::CloneBuild => {
                let directory = &self.directory;
                return Err(Error::Busy(format!("`heatfs clone` to {directory} was interrupted: run it again")));
            }
            Phase::ReleaseBuild | Phase::ReleaseSwap | Phase::ReleaseRemove => "release",
        };
        Err(Error::Busy(format!(
            "`heatfs {unfinished}` of {} was interrupted: run it again, it goes on where it stopped",
            self.directory
        )))
    }
}

/// Holds every tier of a volume for one process: an flock on `heatfs.lock` in each path, which names the holder. Released when dropped, or when
/// the process ends in whatever way.
pub struct Locks {
    _held: Vec<Flock<File>>,
}

impl Locks {
    /// To be called after [`verify_all`], since it creates the lock file where it is missing. Errors: `Busy` naming the holder.
    pub fn take<P: AsRef<Path>>(tiers: &[(String, P)]) -> Result<Locks> {
        let mut held = Vec::with_capacity(tiers.len());
        for (name, path) in tiers {
            held.push(take_one(name, &path.as_ref().join(LOCK_FILE))?);
        }
        Ok(Locks { _held: held })
    }

    /// The process that holds a tier path, by what it wrote; None if nobody does.
    pub fn holder(tier_path: &Path) -> Option<String> {
        let mut file = File::open(tier_path.join(LOCK_FILE)).ok()?;
        let text = read_holder(&mut file);
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(_) => None,
            Err(_) => Some(text),
        }
    }
}

fn take_one(name: &str, path: &PathBuf) -> Result<Flock<File>> {
    let shown = path.display().to_string();
    let file = File::options().read(true).write(true).create(true).truncate(false).open(path);
    let mut file = file.map_err(|e| match e.kind() {
        io::ErrorKind::ReadOnlyFilesystem => Error::WrongTier {
            tier: name.to_owned(),
            path: shown.clone(),
            why: "the filesystem is mounted read-only".to_owned(),
        },
        _ => Error::io("open", shown.clone(), e),
    })?;
    let holder = read_holder(&mut file);
    let mut lock = Flock::lock(file, FlockArg::LockExclusiveNonblock).map_err(|(_, errno)| match errno {
        nix::errno::Errno::EWOULDBLOCK => {
            Error::Busy(format!("tier `{name}` is in use by process {holder} (lock {shown})"))
        }
        errno => Error::io("lock", shown.clone(), errno.into()),
    })?;
    let mut write = || -> io::Result<()> {
        let line = format!("{}\n", std::process::id());
        lock.rewind()?;
        // Over what was there: that needs no room.
        lock.write_all(line.as_bytes())?;
        lock.set_len(line.len() as u64)
    };
    write().map_err(|e| Error::io("write", shown.clone(), e))?;
    Ok(lock)
}

fn read_holder(file: &mut File) -> String {
    let mut text = String::new();
    match file.take(32).read_to_string(&mut text) {
        // Behind the first line may be the rest of a longer one of before.
        Ok(_) => text.lines().next().filter(|line| !line.is_empty()).unwrap_or("(unknown)").to_owned(),
        Err(_) => "(unknown)".to_owned(),
    }
}

#[cfg(test)]
mod tests;

//! Checks what is on disk: every structure, checksums, and what they say of each other. Each finding says what is wrong and which files it touches.
//!
//! Nothing is repaired, but a deep look at the daemon's own volume is a reader like any other: what a tier cannot read, and another one or the last snapshot has, is written again. [`check`] is for a volume that nobody has mounted; it opens it as a mount would, which replays the log in memory. [`examine`] is for
//! the daemon's own volume.

use super::backing::{Backing, TierPlan, exists};
use super::clone::{self, CLONE_FILE};
use super::home::{HomeFile, for_each, for_each_live};
use super::mounts::Mounts;
use super::rollback;
use crate::error::{Error, Result};
use crate::heat::{HeatSettings, Recorder};
use crate::jobs::attributes::read_mark;
use crate::jobs::migrate::pins;
use crate::ondisk::file_id::{XATTR_ROOT_MODE, decode_root_mode};
use crate::ondisk::identity::Phase;
use crate::tier::identity::{Locks, VolumeIdentity, verify_all};
use crate::tier::objects::{object_path, parse_object_name};
use crate::units::FileId;
use crate::volume::{Options, Severity, SourceSnapshot, Volume};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, HashSet};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::Arc;
use uuid::Uuid;

/// Something that is not as it should be.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    pub file: Option<FileId>,
    /// The file's names, relative to the mount's root.
    pub paths: Vec<String>,
    pub what: String,
}

/// What was looked at and what was found.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct CheckReport {
    /// None if the identities are not those of one volume.
    pub volume: Option<Uuid>,
    /// Regular files in home.
    pub files: u64,
    /// Records of the log that are in no base yet (offline only).
    pub records: u64,
    /// Worst first.
    pub findings: Vec<Finding>,
}

impl CheckReport {
    /// None: nothing was found.
    pub fn worst(&self) -> Option<Severity> {
        self.findings.iter().map(|finding| finding.severity).max()
    }

    fn add(&mut self, severity: Severity, file: Option<FileId>, what: String) {
        self.findings.push(Finding { severity, file, paths: Vec::new(), what });
    }

    fn damage(&mut self, what: impl ToString) {
        self.add(Severity::Damage, None, what.to_string());
    }

    fn notice(&mut self, what: impl ToString) {
        self.add(Severity::Notice, None, what.to_string());
    }
}

/// Checks a volume that is not mounted. What is wrong is in the report. Errors: only what keeps it from being looked at, `Busy` while it is mounted.
pub fn check(tiers: &[TierPlan], options: &Options, deep: bool) -> Result<CheckReport> {
    let backing = match Backing::open(tiers) {
        Err(e @ Error::WrongTier { .. }) => {
            let mut report = CheckReport::default();
            report.damage(e);
            return Ok(report);
        }
        backing => backing?,
    };
    let mut report = check_opened(&backing, options, deep).map_err(|error| backing.named(error))?;
    report.findings.iter_mut().for_each(|finding| finding.what = backing.in_line(&finding.what));
    Ok(report)
}

/// Of the directories that were opened; paths in what is told lead through their descriptors.
fn check_opened(backing: &Backing, options: &Options, deep: bool) -> Result<CheckReport> {
    let mut report = CheckReport::default();
    let id = match verify_all(&backing.places) {
        Ok(id) => id,
        Err(e) => {
            report.damage(e);
            return Ok(report);
        }
    };
    report.volume = Some(id.volume);
    let _locks: Locks = backing.lock()?;
    if let Err(unfinished) = id.require_ready() {
        report.notice(unfinished);
        return Ok(report);
    }
    if rollback::is_unfinished(&backing.home(), &backing.fastest()?).unwrap_or(false) {
        report.notice("a rollback, or the end of one, was cut off: the next mount finishes it");
        return Ok(finished(report));
    }
    check_small_files(backing, &id, &mut report);
    check_object_names(backing, &mut report)?;
    check_directory(&id, &mut report)?;
    let source = source(backing, &mut report);
    match Volume::open_with(backing.engine_tiers(), options.clone(), source) {
        Ok((volume, recovery)) => {
            report.records = recovery.records_replayed;
            let examined = look(&volume, id.volume, &backing.home(), deep, Looking::Offline, &mut report);
            // An empty log is left as empty as it was found; any other is the next mount's.
            if recovery.was_clean {
                volume.shut_down()?;
            }
            examined?;
        }
        Err(e) => report.damage(e),
    }
    Ok(finished(report))
}

/// The snapshot that the volume was made of, if blocks are still in it and it can be read.
fn source(backing: &Backing, report: &mut CheckReport) -> Option<Arc<dyn SourceSnapshot>> {
    let tiers = backing.engine_tiers();
    let needed =
        tiers.first().and_then(|fastest| Volume::peek(fastest).ok()).is_some_and(|meta| meta.needs_repository());
    let source = match clone::source_of(backing.places[0].device.as_ref(), None) {
        Ok(source) => source.filter(|_| needed),
        Err(e) => {
            report.damage(e);
            return None;
        }
    };
    match source {
        None if needed => report.damage(format!("{CLONE_FILE} is missing: it says in which repository blocks are")),
        None => {}
        Some(source) => match source.open() {
            Ok(()) => return Some(Arc::new(source)),
            Err(error) => report.notice(format!("what is still in the repository was not looked at: {error}")),
        },
    }
    None
}

/// Checks the volume that this process serves from `home`.
pub fn examine(volume: &Arc<Volume>, home: &Path, deep: bool) -> Result<CheckReport> {
    let id = volume.volume_id();
    let mut report = CheckReport { volume: Some(id), ..CheckReport::default() };
    look(volume, id, home, deep, Looking::Online, &mut report)?;
    Ok(finished(report))
}

fn finished(mut report: CheckReport) -> CheckReport {
    report.findings.sort_by_key(|finding| std::cmp::Reverse(finding.severity));
    report
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Looking {
    Offline,
    Online,
}

/// The engine's structures, home's, and each against the other.
fn look(
    volume: &Arc<Volume>,
    id: Uuid,
    home: &Path,
    deep: bool,
    looking: Looking,
    report: &mut CheckReport,
) -> Result<()> {
    let found = volume.check(deep)?;
    let mut names = look_at_home(volume, id, &home.join("tree"), looking, report)?;
    report.files = names.len() as u64;
    look_at_root_before(volume, id, home, looking, &mut names, report)?;
    let graves = look_at_grave(&home.join("grave"), looking, report)?;
    if looking == Looking::Offline {
        for file in volume.files().into_iter().filter(|file| !names.contains_key(file) && !graves.contains(file)) {
            report.add(
                Severity::Notice,
                Some(file),
                format!("file {file} has content but no name: it goes when the volume is next mounted"),
            );
        }
    }
    for finding in found {
        report.add(finding.severity, finding.file, finding.what);
    }
    for finding in &mut report.findings {
        let paths = finding.file.and_then(|file| names.get(&file));
        finding.paths = paths.cloned().unwrap_or_default();
    }
    Ok(())
}

/// Of a volume that was rolled back: the names that it had before are files of its own, and none of the others'.
fn look_at_root_before(
    volume: &Volume,
    id: Uuid,
    home: &Path,
    looking: Looking,
    names: &mut BTreeMap<FileId, Vec<String>>,
    report: &mut CheckReport,
) -> Result<()> {
    let Some(rollback) = volume.rollback() else { return Ok(()) };
    for (file, paths) in names.iter().filter(|(file, _)| rollback.is_from_before(**file)) {
        let what = format!("{} is a file of what the volume was before it was rolled back", paths.join(", "));
        report.add(Severity::Damage, Some(*file), what);
    }
    let shown = |path: String| format!("{path} (before the rollback)");
    for (file, paths) in look_at_home(volume, id, &rollback::tree_before(home), looking, report)? {
        if !rollback.is_from_before(file) {
            let what = format!("{} is a file made by the rollback or after it", shown(paths.join(", ")));
            report.add(Severity::Damage, Some(file), what);
        }
        names.entry(file).or_default().extend(paths.into_iter().map(shown));
    }
    let bytes = volume.status().rollback.map_or(0, |rollback| rollback.kept_bytes);
    report.notice(format!(
        "the volume was rolled back to snapshot {}, and what it was before takes {} MiB until that is confirmed",
        rollback.snapshot,
        bytes.div_ceil(1 << 20)
    ));
    Ok(())
}

/// Names by file. Finds identities that do not fit, that are there twice, and bytes in home.
fn look_at_home(
    volume: &Volume,
    id: Uuid,
    tree: &Path,
    looking: Looking,
    report: &mut CheckReport,
) -> Result<BTreeMap<FileId, Vec<String>>> {
    let mut names: BTreeMap<FileId, Vec<String>> = BTreeMap::new();
    let mut inodes: HashMap<FileId, u64> = HashMap::new();
    let shown = tree.display().to_string();
    match read_mark(tree, XATTR_ROOT_MODE)? {
        None => {
            report.notice(format!("{shown}: {XATTR_ROOT_MODE} is missing; the mount's root shows the mode of home's"))
        }
        Some(mode) => {
            decode_root_mode(&mode, &shown).map_or_else(|e| report.damage(e), |_| ());
        }
    }
    let mut visit = |file: std::result::Result<HomeFile, super::home::Strange>| {
        let file = match file {
            Ok(file) => file,
            Err(strange) => {
                let path = strange.relative.display().to_string();
                report.findings.push(Finding {
                    severity: Severity::Damage,
                    file: None,
                    paths: vec![path],
                    what: Error::from(strange).to_string(),
                });
                return Ok(());
            }
        };
        let path = file.relative.display().to_string();
        if *inodes.entry(file.id).or_insert(file.meta.ino()) != file.meta.ino() {
            report.add(Severity::Damage, Some(file.id), format!("{path}: another file has the same identity"));
        } else if let Err(e) = volume.file(file.id) {
            report.add(Severity::Damage, Some(file.id), format!("{path}: {e}"));
        }
        if file.meta.blocks() > 0 && file.meta.len() > 0 {
            report.add(
                Severity::Notice,
                Some(file.id),
                format!("{path} was written behind the mount: what lies in home is not what the mount shows"),
            );
        }
        names.entry(file.id).or_default().push(path);
        Ok(())
    };
    match looking {
        Looking::Offline => for_each(tree, id, &mut visit)?,
        Looking::Online => for_each_live(tree, id, &mut visit)?,
    }
    Ok(names)
}

/// Files without a name that are kept until their data are gone.
fn look_at_grave(grave: &Path, looking: Looking, report: &mut CheckReport) -> Result<HashSet<FileId>> {
    let mut buried = HashSet::new();
    for path in super::survey::read_dir(grave)? {
        let name = path.file_name().and_then(|name| name.to_str()).unwrap_or_default();
        match parse_object_name(name) {
            Some(id) => _ = buried.insert(id),
            None => report.notice(format!("{}: not a file id", path.display())),
        }
    }
    if looking == Looking::Offline && !buried.is_empty() {
        report.notice(format!("{} removed file(s) wait in {} for the next mount", buried.len(), grave.display()));
    }
    Ok(buried)
}

/// Heat and pins.
fn check_small_files(backing: &Backing, id: &VolumeIdentity, report: &mut CheckReport) {
    let tiers = backing.engine_tiers();
    let Some(fastest) = tiers.first() else { return };
    if let Err(e) = pins::load(fastest.device.as_ref()) {
        report.damage(e);
    }
    let Ok(meta) = Volume::peek(fastest) else { return };
    let recorder = Recorder::new(HeatSettings::with_block_bytes(meta.block_bytes));
    if let Err(e) = recorder.load(fastest.device.as_ref(), id.volume.as_bytes()) {
        report.notice(format!("{e}; heat is learnt again"));
    }
}

/// Whatever lies in the directories of objects and is none.
fn check_object_names(backing: &Backing, report: &mut CheckReport) -> Result<()> {
    for tier in backing.ids() {
        let objects = backing.path(tier).join("objects");
        if !exists(&objects)? {
            report.damage(format!("tier `{}`: {} is missing", backing.name(tier), objects.display()));
            continue;
        }
        for dir in super::survey::read_dir(&objects)? {
            let entries = if dir.is_dir() { super::survey::read_dir(&dir)? } else { vec![dir] };
            for entry in entries {
                let name = entry.file_name().and_then(|name| name.to_str()).unwrap_or_default();
                let place = parse_object_name(name).map(|id| backing.path(tier).join(object_path(id)));
                if place.as_deref() != Some(entry.as_path()) {
                    report.notice(format!("{} is no object of heatfs", entry.display()));
                }
            }
        }
    }
    Ok(())
}

/// The place of the mount.
fn check_directory(id: &VolumeIdentity, report: &mut CheckReport) -> Result<()> {
    let directory = Path::new(&id.directory);
    if id.phase != Phase::Ready || Mounts::read()?.is_mount_point(directory) {
        return Ok(());
    }
    let Ok(entries) = super::survey::read_dir(directory) else {
        report.notice(format!("{} does not exist: there is nothing to mount on", directory.display()));
        return Ok(());
    };
    if let Some(entry) = entries.iter().find(|entry| !entry.ends_with(super::protect::MARKER)) {
        let what = format!("{} was made where the volume is mounted: the mount hides it", entry.display());
        report.notice(what);
    }
    Ok(())
}

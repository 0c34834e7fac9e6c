//! What is done with snapshots that there are: pin, delete, prune, verify, compare, copy.

use super::args::{Choice, KeepRules, Storage};
use super::progress::{bytes_bar, drawn_on};
use super::snapshot::{find, open};
use super::{out, show};
use crate::daemon::quantity::rounded_bytes;
use crate::device::clock::wall_now;
use crate::error::Error;
use crate::jobs::mend::{MendSources, mend};
use crate::jobs::shown;
use crate::jobs::snapshot::{SnapshotInfo, open_repository};
use crate::repository::{
    CopyBase, EntryKind, Keep, NameChange, PruneOptions, Ref, RefKind, Repository, Retention, Snapshot, SnapshotId,
    VerifyOptions, VerifyReport, judge,
};
use crate::units::WallNs;
use anyhow::{Result, bail};
use serde::Serialize;
use std::collections::BTreeMap;
use std::fmt::Write;
use std::path::{Path, PathBuf};
use uuid::Uuid;

/// Names of pins that nobody gave a name.
const PIN_PREFIX: &str = "pin-";

pub(super) fn pin(
    volume: &Choice,
    storage: &Storage,
    id: &str,
    name: Option<String>,
    note: &str,
    as_json: bool,
) -> Result<()> {
    let repository = open(volume, storage)?;
    let id = find(&repository, id)?;
    let name = name.unwrap_or_else(|| format!("{PIN_PREFIX}{id}"));
    repository.set_ref(&name, RefKind::Pin, id, note)?;
    match as_json {
        true => out::json(&serde_json::json!({ "snapshot": id.to_string(), "name": name })),
        false => out::text(&format!("snapshot {id} is kept until `heatfs snapshot unpin {name}`\n")),
    }
}

pub(super) fn unpin(volume: &Choice, storage: &Storage, name: &str, force: bool, as_json: bool) -> Result<()> {
    let repository = open(volume, storage)?;
    if let Some(Ref { kind: RefKind::InUse, note, .. }) = repository.find_ref(name)?
        && !force
    {
        let why = format!("`{name}` is no pin: the snapshot is in use ({note}). If that is gone for good, use --force");
        return Err(Error::Busy(why).into());
    }
    repository.drop_ref(name)?;
    match as_json {
        true => out::json(&serde_json::json!({ "name": name })),
        false => out::text(&format!("`{name}` keeps nothing any more\n")),
    }
}

pub(super) fn delete(volume: &Choice, storage: &Storage, names: &[String], as_json: bool) -> Result<()> {
    let repository = open(volume, storage)?;
    shown::clear_abandoned(&repository);
    // All are found before one goes.
    let ids = names.iter().map(|name| find(&repository, name)).collect::<Result<Vec<_>>>()?;
    ids.iter().try_for_each(|id| repository.delete(*id))?;
    let deleted: Vec<String> = ids.iter().map(ToString::to_string).collect();
    match as_json {
        true => out::json(&serde_json::json!({ "deleted": deleted })),
        false => {
            out::text(&format!("deleted {}; `heatfs snapshot prune` gives their space back\n", deleted.join(", ")))
        }
    }
}

#[derive(Serialize)]
struct Pruned {
    dry_run: bool,
    kept: Vec<Kept>,
    /// Snapshots that no rule keeps.
    deleted: Vec<String>,
    bytes_freed: u64,
    bytes_rewritten: u64,
    packs: u64,
}

#[derive(Serialize)]
struct Kept {
    snapshot: String,
    because: Vec<String>,
}

/// Judges the snapshots of each volume by the rules, deletes those that none keeps, and frees what is not used.
pub(super) fn prune(volume: &Choice, storage: &Storage, rules: &KeepRules, dry_run: bool, as_json: bool) -> Result<()> {
    let repository = open(volume, storage)?;
    let (kept, deleted) = judged(&repository, &rules.retention())?;
    let options = PruneOptions::default();
    let mut pruned = Pruned {
        dry_run,
        kept,
        deleted: deleted.iter().map(ToString::to_string).collect(),
        bytes_freed: 0,
        bytes_rewritten: 0,
        packs: 0,
    };
    if dry_run {
        let plan = repository.plan_prune(&options, &deleted)?;
        (pruned.bytes_freed, pruned.bytes_rewritten) = (plan.bytes_freed, plan.bytes_rewritten);
        pruned.packs = plan.condemned.len() as u64;
    } else {
        deleted.iter().try_for_each(|id| repository.delete(*id))?;
        let report = repository.prune(&options)?;
        (pruned.bytes_freed, pruned.bytes_rewritten) = (report.bytes_deleted, report.bytes_rewritten);
        pruned.packs = report.packs_deleted;
    }
    if as_json { out::json(&pruned) } else { out::text(&pruned_text(&pruned)) }
}

fn judged(repository: &Repository, retention: &Retention) -> Result<(Vec<Kept>, Vec<SnapshotId>)> {
    let mut pins: BTreeMap<SnapshotId, Vec<String>> = BTreeMap::new();
    for named in repository.refs()? {
        pins.entry(named.target).or_default().push(named.name);
    }
    let mut of_volume: BTreeMap<Uuid, Vec<(SnapshotId, WallNs)>> = BTreeMap::new();
    for root in repository.snapshots()? {
        of_volume.entry(root.volume).or_default().push((root.id, root.meta.taken));
    }
    let (mut kept, mut deleted) = (Vec::new(), Vec::new());
    for snapshots in of_volume.values() {
        for verdict in judge(snapshots, &pins, retention) {
            match verdict.keep.as_slice() {
                [] => deleted.push(verdict.id),
                reasons => {
                    kept.push(Kept { snapshot: verdict.id.to_string(), because: reasons.iter().map(reason).collect() })
                }
            }
        }
    }
    Ok((kept, deleted))
}

pub(super) fn reason(keep: &Keep) -> String {
    match keep {
        Keep::Last => "among the last".to_owned(),
        Keep::Hourly => "hourly".to_owned(),
        Keep::Daily => "daily".to_owned(),
        Keep::Weekly => "weekly".to_owned(),
        Keep::Monthly => "monthly".to_owned(),
        Keep::Yearly => "yearly".to_owned(),
        Keep::Pinned(name) => format!("pinned as {name}"),
        Keep::NoRule => "no rule was given".to_owned(),
    }
}

fn pruned_text(pruned: &Pruned) -> String {
    let mut text = String::new();
    // Writing to a String cannot fail.
    for kept in &pruned.kept {
        let _ = writeln!(text, "keep    {}  {}", kept.snapshot, kept.because.join(", "));
    }
    for id in &pruned.deleted {
        let _ = writeln!(text, "delete  {id}");
    }
    let (would, freed) = (if pruned.dry_run { "would free" } else { "freed" }, rounded_bytes(pruned.bytes_freed));
    let _ = writeln!(text, "{would} {freed} in {} packs", pruned.packs);
    if pruned.bytes_rewritten > 0 {
        let again = rounded_bytes(pruned.bytes_rewritten);
        let _ = writeln!(text, "what is still used of them is written anew: {again}");
    }
    text
}

#[derive(Serialize)]
struct Verified {
    packs_verified: u64,
    packs_total: u64,
    bytes_read: u64,
    objects_verified: u64,
    damage: Vec<String>,
    hurt: Vec<HurtSnapshot>,
}

#[derive(Serialize)]
struct HurtSnapshot {
    snapshot: String,
    /// Names or the list of files cannot be read whole.
    tables: bool,
    files: Vec<String>,
}

/// Fails when something is damaged.
pub(super) fn verify(
    volume: &Choice,
    storage: &Storage,
    budget_bytes: Option<u64>,
    one_in: u32,
    as_json: bool,
) -> Result<()> {
    let repository = open(volume, storage)?;
    let whole = budget_bytes.is_none() && one_in == 1;
    let options = VerifyOptions { now: wall_now(), budget_bytes, one_in, walk_trees: whole };
    let bar = bytes_bar("verifying");
    let report = repository.verify(&options, &mut drawn_on(&bar));
    bar.finish_and_clear();
    let verified = verified(report?);
    match as_json {
        true => out::json(&verified)?,
        false => out::text(&verified_text(&verified))?,
    }
    if verified.damage.is_empty() && verified.hurt.is_empty() {
        return Ok(());
    }
    bail!("{}: {} objects are damaged, in {} snapshots", repository.path(), verified.damage.len(), verified.hurt.len())
}

/// Fails when something stays lost. `from`: another repository and its key file.
pub(super) fn repair(
    volume: &Choice,
    storage: &Storage,
    from: (Option<&Path>, Option<&Path>),
    live: Option<PathBuf>,
    as_json: bool,
) -> Result<()> {
    let repository = open(volume, storage)?;
    let other = from.0.map(|path| open_repository(path, from.1)).transpose()?;
    let mounted = || volume.settings().ok().map(|settings| settings.mount).filter(|path| path.is_dir());
    let live = live.or_else(mounted);
    let sources = MendSources { live: live.as_deref(), copies: other.as_ref() };
    let bar = bytes_bar("verifying");
    let mended = mend(&repository, &sources, wall_now(), &mut drawn_on(&bar));
    bar.finish_and_clear();
    let mended = mended?;
    match as_json {
        true => out::json(&mended)?,
        false => {
            let index =
                mended.index_rebuilt.map(|listed| format!("the index was damaged: made again, {listed} objects\n"));
            let lines = mended.left.iter().map(|line| format!("{line}\n")).collect::<String>();
            let counts = format!("{} of {} lost objects are stored again\n", mended.mended, mended.lost);
            out::text(&format!("{}{lines}{counts}", index.unwrap_or_default()))?;
        }
    }
    if mended.mended == mended.lost {
        return Ok(());
    }
    let left = mended.lost - mended.mended;
    bail!("{}: {left} objects stay lost: neither live files nor copies have their bytes", repository.path())
}

fn verified(report: VerifyReport) -> Verified {
    let path = |path: &Vec<u8>| String::from_utf8_lossy(path).into_owned();
    let hurt = report.hurt.iter().map(|hurt| HurtSnapshot {
        snapshot: hurt.snapshot.to_string(),
        tables: hurt.tables,
        files: hurt
            .files
            .iter()
            .map(|file| match file.paths.as_slice() {
                [] => format!("file {}", file.file),
                paths => paths.iter().map(path).collect::<Vec<_>>().join(", "),
            })
            .collect(),
    });
    Verified {
        packs_verified: report.packs_verified,
        packs_total: report.packs_total,
        bytes_read: report.bytes_read,
        objects_verified: report.objects_verified,
        hurt: hurt.collect(),
        damage: report.damage,
    }
}

fn verified_text(verified: &Verified) -> String {
    let mut text = format!(
        "verified {} of {} packs, {}, {} objects\n",
        verified.packs_verified,
        verified.packs_total,
        rounded_bytes(verified.bytes_read),
        verified.objects_verified
    );
    // Writing to a String cannot fail.
    for damage in &verified.damage {
        let _ = writeln!(text, "damaged   {damage}");
    }
    for hurt in &verified.hurt {
        let tables = if hurt.tables { "its list of files; " } else { "" };
        let _ = writeln!(text, "affected  snapshot {}: {tables}{}", hurt.snapshot, hurt.files.join(", "));
    }
    text
}

#[derive(Serialize)]
struct Change {
    path: String,
    /// `added`, `removed` or `changed`.
    kind: &'static str,
    /// Of a changed file: bytes of pages that differ.
    changed_bytes: Option<u64>,
}

pub(super) fn diff(volume: &Choice, storage: &Storage, before: &str, after: &str, as_json: bool) -> Result<()> {
    let repository = open(volume, storage)?;
    let before = repository.snapshot(find(&repository, before)?)?;
    let after = repository.snapshot(find(&repository, after)?)?;
    let changes = changes(&before, &after)?;
    if as_json {
        return out::json(&changes);
    }
    if changes.is_empty() {
        return out::text("no difference\n");
    }
    let row = |change: &Change| {
        vec![change.path.clone(), change.kind.to_owned(), change.changed_bytes.map_or_else(String::new, rounded_bytes)]
    };
    out::text(&show::table(&["path", "", "pages"], changes.iter().map(row).collect()))
}

/// Names that came, went or changed, and files of the same name with other bytes.
fn changes(before: &Snapshot<'_>, after: &Snapshot<'_>) -> Result<Vec<Change>> {
    let mut changed: BTreeMap<crate::units::FileId, u64> = BTreeMap::new();
    let mut states = Vec::new();
    after.changed_files(before, &mut |file, old, new| {
        states.push((file, old, new));
        Ok(())
    })?;
    for (file, old, new) in &states {
        let mut bytes = 0;
        after.changed_pages(old.as_ref(), new.as_ref(), &mut |start, end| {
            bytes += end - start;
            Ok(())
        })?;
        changed.insert(*file, bytes);
    }
    let mut found: BTreeMap<Vec<u8>, Change> = BTreeMap::new();
    let shown = |path: &[u8]| String::from_utf8_lossy(path).into_owned();
    after.changed_names(before, &mut |change| {
        let kind = match &change {
            NameChange { before: None, .. } => "added",
            NameChange { after: None, .. } => "removed",
            _ => "changed",
        };
        found.insert(change.path.clone(), Change { path: shown(&change.path), kind, changed_bytes: None });
        Ok(())
    })?;
    let mut names = after.walk(b"")?;
    while let Some((path, entry)) = names.next()? {
        if let EntryKind::File { file } = entry.kind
            && let Some(bytes) = changed.get(&file)
        {
            found
                .entry(path.clone())
                .or_insert_with(|| Change { path: shown(&path), kind: "changed", changed_bytes: None })
                .changed_bytes = Some(*bytes);
        }
    }
    Ok(found.into_values().collect())
}

pub(super) fn copy(
    volume: &Choice,
    storage: &Storage,
    id: &str,
    to: &Path,
    to_key_file: Option<&Path>,
    as_json: bool,
) -> Result<()> {
    let from = open(volume, storage)?;
    let to = open_repository(to, to_key_file)?;
    if from.id() == to.id() {
        return Err(Error::Invalid("a snapshot is copied to another repository than its own".to_owned()).into());
    }
    let id = find(&from, id)?;
    let base = copy_base(&from, &to, id)?;
    let bar = bytes_bar("copying");
    let copied = from.copy_to(id, &to, base, wall_now(), &mut |bytes| bar.set_position(bytes));
    bar.finish_and_clear();
    let copied = SnapshotInfo::of(&copied?);
    match as_json {
        true => out::json(&copied),
        false => out::text(&format!("snapshot {id} is {} in {}\n", copied.id, to.path())),
    }
}

/// The latest ancestor that the other repository has a copy of.
fn copy_base(from: &Repository, to: &Repository, id: SnapshotId) -> Result<Option<CopyBase>> {
    let mut copies: BTreeMap<String, SnapshotId> = BTreeMap::new();
    for root in to.snapshots()? {
        if let Some(origin) = root.meta.labels.get(crate::repository::COPIED_FROM) {
            copies.insert(origin.clone(), root.id);
        }
    }
    let mut ancestor = from.snapshot(id)?.root.parent;
    while let Some(here) = ancestor {
        if let Some(there) = copies.get(&format!("{}/{here}", from.id())) {
            return Ok(Some(CopyBase { here, there: *there }));
        }
        ancestor = match from.snapshot(here) {
            Ok(snapshot) => snapshot.root.parent,
            Err(Error::NotFound(_)) => None,
            Err(error) => return Err(error.into()),
        };
    }
    Ok(None)
}

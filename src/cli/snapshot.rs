//! `snapshot`, `restore` and `repo`.

use super::archive;
use super::args::{Choice, Repo, RepoCommand, Restore, SnapshotCommand, Storage};
use super::names::Names;
use super::progress::{self, bytes_bar};
use super::{keeping, out, schedule, show};
use crate::control::protocol::{self, JobReply, SnapshotRequest};
use crate::daemon::quantity::{rounded_bytes, show_span};
use crate::device::clock::wall_now;
use crate::device::real::RealDevice;
use crate::error::Error;
use crate::jobs::hooks::{BackupLabel, place_label};
use crate::jobs::restore::{InPlacePlan, InPlaceReport, RestorePlan, RestoreReport, restore, restore_in_place};
use crate::jobs::snapshot::{SnapshotInfo, Tally, open_repository, read_key};
use crate::repository::{InitOptions, PACK_BYTES, Repository, Root, Snapshot, SnapshotId};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(200);

/// The repository that was named, or the one in the volume's settings.
pub(super) fn open(volume: &Choice, storage: &Storage) -> Result<Repository> {
    Ok(open_with_place(volume, storage)?.0)
}

/// As [`open`], with its directory and its key file.
pub(super) fn open_with_place(volume: &Choice, storage: &Storage) -> Result<(Repository, PathBuf, Option<PathBuf>)> {
    if let Some(path) = &storage.repository {
        let repository = open_repository(path, storage.key_file.as_deref())?;
        return Ok((repository, path.clone(), storage.key_file.clone()));
    }
    let settings = volume.settings()?.snapshot;
    let Some(path) = settings.repository else {
        return Err(Error::Invalid(
            "no repository: name one with --repository, or set `snapshot.repository` in the settings".to_owned(),
        )
        .into());
    };
    let key_file = storage.key_file.clone().or(settings.key_file);
    Ok((open_repository(&path, key_file.as_deref())?, path, key_file))
}

/// A snapshot by its name, by the unique beginning of it, or `latest`.
pub(super) fn find(repository: &Repository, name: &str) -> Result<SnapshotId> {
    let roots = repository.snapshots()?;
    let none = || Error::NotFound(format!("snapshot `{name}`: there is none in {}", repository.path()));
    if name == "latest" {
        return Ok(roots.last().ok_or_else(none)?.id);
    }
    let wanted = name.to_ascii_uppercase();
    let fits: Vec<&Root> = roots.iter().filter(|root| root.id.to_string().starts_with(&wanted)).collect();
    match fits.as_slice() {
        [only] => Ok(only.id),
        [] => Err(none().into()),
        several => {
            Err(Error::Invalid(format!("snapshot `{name}`: {} begin like this; give more of it", several.len())).into())
        }
    }
}

pub(super) fn run(volume: &Choice, command: SnapshotCommand, as_json: bool) -> Result<()> {
    match command {
        SnapshotCommand::Create { labels } => create(volume, labels.into_iter().collect(), as_json),
        SnapshotCommand::List { storage } => {
            let roots = open(volume, &storage)?.snapshots()?;
            let found: Vec<SnapshotInfo> = roots.iter().map(SnapshotInfo::of).collect();
            if as_json { out::json(&found) } else { out::text(&list(&found)) }
        }
        SnapshotCommand::Diff { before, after, storage } => keeping::diff(volume, &storage, &before, &after, as_json),
        SnapshotCommand::Pin { id, name, note, storage } => keeping::pin(volume, &storage, &id, name, &note, as_json),
        SnapshotCommand::Unpin { name, force, storage } => keeping::unpin(volume, &storage, &name, force, as_json),
        SnapshotCommand::Delete { ids, storage } => keeping::delete(volume, &storage, &ids, as_json),
        SnapshotCommand::Prune { keep, dry_run, storage } => keeping::prune(volume, &storage, &keep, dry_run, as_json),
        SnapshotCommand::Verify { budget, one_in, storage } => {
            keeping::verify(volume, &storage, budget, one_in, as_json)
        }
        SnapshotCommand::Schedule { storage } => schedule::run(volume, &storage, as_json),
        SnapshotCommand::Show { id, storage } => {
            let repository = open(volume, &storage)?;
            let found = SnapshotInfo::of(&repository.snapshot(find(&repository, &id)?)?.root);
            if as_json { out::json(&found) } else { out::text(&details(&found, &mut relation_names(volume, &found))) }
        }
    }
}

fn create(volume: &Choice, labels: std::collections::BTreeMap<String, String>, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    let started: JobReply = client.post(protocol::SNAPSHOTS, &SnapshotRequest { labels })?;
    let ended = progress::follow(&client, started)?;
    let taken: SnapshotInfo =
        serde_json::from_value(ended.result.unwrap_or_default()).context("the daemon's answer about the snapshot")?;
    match as_json {
        true => out::json(&taken),
        false => {
            let mut text = format!(
                "snapshot {}: {} in {} files, {} new, {} stored, in {}\n",
                taken.id,
                rounded_bytes(taken.logical_bytes),
                taken.files,
                rounded_bytes(taken.new_bytes),
                rounded_bytes(taken.stored_bytes),
                show_span(Duration::from_millis(ended.elapsed_ms))
            );
            if let Some(pages) = taken.pages.as_ref().filter(|pages| pages.bad > 0) {
                text += &format!("{} pages in it have a wrong checksum: `heatfs snapshot show latest`\n", pages.bad);
            }
            if let Some(trouble) = &taken.trouble {
                text += &format!("{trouble}\n");
            }
            out::text(&text)
        }
    }
}

fn age(taken_ns: i64) -> String {
    let passed = wall_now().0.saturating_sub(taken_ns);
    show_span(Duration::from_secs(u64::try_from(passed).unwrap_or(0) / 1_000_000_000))
}

fn labels(info: &SnapshotInfo) -> String {
    let shown: Vec<String> = info.labels.iter().map(|(key, value)| format!("{key}={value}")).collect();
    shown.join(" ")
}

fn list(found: &[SnapshotInfo]) -> String {
    if found.is_empty() {
        return "no snapshots\n".to_owned();
    }
    let row = |info: &SnapshotInfo| {
        vec![
            info.id.clone(),
            age(info.taken_ns),
            info.files.to_string(),
            rounded_bytes(info.logical_bytes),
            rounded_bytes(info.new_bytes),
            rounded_bytes(info.stored_bytes),
            labels(info),
        ]
    };
    show::table(&["snapshot", "age", "files", "size", "new", "stored", "labels"], found.iter().map(row).collect())
}

/// Wrong pages that are named.
const PAGES_SHOWN: usize = 20;

/// What is to be said of pages and of the database's part in it.
fn findings(info: &SnapshotInfo, names: &mut dyn FnMut(&str) -> Option<String>) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if let Some(label) = &info.backup_label {
        let (from, to) = (&label.first_wal, &label.stop_lsn);
        rows.push((
            "backup label",
            format!("PostgreSQL's; with it recovery needs WAL from file {from} to {to} at least"),
        ));
    }
    if let Some(trouble) = &info.trouble {
        rows.push(("trouble", trouble.clone()));
    }
    let Some(pages) = &info.pages else { return rows };
    rows.push((
        "page sums",
        format!("{} pages verified when it was taken, {} in it are wrong", pages.checked, pages.bad),
    ));
    for page in pages.named.iter().take(PAGES_SHOWN) {
        let relation = names(&page.path).map(|name| format!(" ({name})")).unwrap_or_default();
        rows.push(("wrong page", format!("block {} of {}{relation}", page.block, page.path)));
    }
    let more = pages.bad.saturating_sub(PAGES_SHOWN as u64);
    if more > 0 {
        rows.push(("", format!("and {more} more")));
    }
    rows
}

fn details(info: &SnapshotInfo, names: &mut dyn FnMut(&str) -> Option<String>) -> String {
    let rows = [
        ("snapshot", info.id.clone()),
        ("taken", format!("{} ago", age(info.taken_ns))),
        ("volume", info.volume.clone()),
        ("parent", info.parent.clone().unwrap_or_else(|| "none: a full snapshot".to_owned())),
        ("consistency", info.consistency.clone()),
        ("size", format!("{} in {} files", rounded_bytes(info.logical_bytes), info.files)),
        ("new", rounded_bytes(info.new_bytes)),
        ("stored", rounded_bytes(info.stored_bytes)),
        ("labels", labels(info)),
    ];
    rows.into_iter().chain(findings(info, names)).map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

/// Names of relations, from the mount if the volume's settings say where that is.
fn relation_names(volume: &Choice, info: &SnapshotInfo) -> impl FnMut(&str) -> Option<String> + use<> {
    let wanted = info.pages.as_ref().is_some_and(|pages| pages.bad > 0);
    let mount = volume.settings().ok().filter(|_| wanted).map(|settings| settings.mount.display().to_string());
    let mut names = mount.map(|mount| Names::of_mount(&mount));
    move |path| names.as_mut().and_then(|names| names.relation(path))
}

pub(super) fn repo(volume: &Choice, request: Repo, as_json: bool) -> Result<()> {
    match request.command {
        RepoCommand::Init { dir, key_file } => {
            std::fs::create_dir_all(&dir).with_context(|| format!("create {}", dir.display()))?;
            let device = RealDevice::open(&dir).with_context(|| format!("open {}", dir.display()))?;
            let key = read_key(key_file.as_deref())?;
            let options = InitOptions { key: key.as_deref(), pack_bytes: PACK_BYTES, now: wall_now() };
            let repository = Repository::init(device, &options)?;
            let kind = if repository.encrypted() { "an encrypted repository" } else { "a repository" };
            match as_json {
                true => out::json(&serde_json::json!({ "id": repository.id(), "encrypted": repository.encrypted() })),
                false => out::text(&format!("{} is {kind} now; set `snapshot.repository` to it\n", dir.display())),
            }
        }
        RepoCommand::Check { storage } => keeping::verify(volume, &storage, None, 1, as_json),
        RepoCommand::Repair { from, from_key_file, live, storage } => {
            keeping::repair(volume, &storage, (from.as_deref(), from_key_file.as_deref()), live, as_json)
        }
        RepoCommand::Copy { id, to, to_key_file, storage } => {
            keeping::copy(volume, &storage, &id, &to, to_key_file.as_deref(), as_json)
        }
        RepoCommand::Archive(request) => archive::run(volume, &request, as_json),
        RepoCommand::Stats { storage } => {
            let repository = open(volume, &storage)?;
            let stats = repository.stats()?;
            let archived = repository.archive_path().map_or_else(String::new, |path| {
                format!(
                    "{} packs of {} are in the archive at {path}\n",
                    stats.archived_packs,
                    rounded_bytes(stats.archived_bytes)
                )
            });
            match as_json {
                true => out::json(&stats),
                false => out::text(&format!(
                    "{} snapshots of {} in all, {} pins and names, {} writers at work\n{} packs of {}, index {} ({} in memory)\n{archived}",
                    stats.snapshots,
                    rounded_bytes(stats.logical_bytes),
                    stats.refs,
                    stats.writers,
                    stats.packs,
                    rounded_bytes(stats.pack_bytes),
                    rounded_bytes(stats.index_bytes),
                    rounded_bytes(stats.index_memory_bytes)
                )),
            }
        }
    }
}

/// Errors: `NotFound` when it was taken without backup mode.
fn label_of(snapshot: &Snapshot<'_>) -> Result<BackupLabel> {
    let label = BackupLabel::decode(&snapshot.root.meta.backup_label)?;
    let none = format!(
        "snapshot {}: it has no backup label, since it was taken without `snapshot.postgresql`; without --backup-label it can be restored",
        snapshot.id()
    );
    Ok(label.ok_or(Error::NotFound(none))?)
}

pub(super) fn restore_into(volume: &Choice, request: &Restore, as_json: bool) -> Result<()> {
    let repository = open(volume, &request.storage)?;
    let snapshot = repository.snapshot(find(&repository, &request.id)?)?;
    let label = match request.backup_label {
        true => Some(label_of(&snapshot)?),
        false => None,
    };
    let label_in = |dir: &Path| label.as_ref().map_or(Ok(()), |label| place_label(dir, label));
    let into = std::path::absolute(&request.dir).with_context(|| format!("path {}", request.dir.display()))?;
    let streams = request.streams;
    if request.in_place {
        let plan = InPlacePlan { into, streams, delete: request.delete, dry_run: request.dry_run };
        let report = shown("comparing", |tally| restore_in_place(&snapshot, &plan, tally))?;
        if !report.dry_run {
            label_in(&report.into)?;
        }
        return match as_json {
            true => out::json(&report),
            false => out::text(&in_place_text(&snapshot.id(), &report)),
        };
    }
    let only = request.path.as_deref().unwrap_or("").trim_matches('/').as_bytes().to_vec();
    let plan = RestorePlan { only, into, streams };
    let report: RestoreReport = shown("restoring", |tally| restore(&snapshot, &plan, tally))?;
    label_in(&report.into)?;
    match as_json {
        true => out::json(&report),
        false => out::text(&format!(
            "restored snapshot {} to {}: {} in {} files\n",
            snapshot.id(),
            report.into.display(),
            rounded_bytes(report.bytes),
            report.files
        )),
    }
}

/// Does the work while a bar shows how far it is.
fn shown<T>(what: &'static str, work: impl FnOnce(&Tally) -> crate::error::Result<T>) -> crate::error::Result<T> {
    let (tally, ended) = (Arc::new(Tally::default()), Arc::new(AtomicBool::new(false)));
    let shown = std::thread::spawn({
        let (tally, ended) = (Arc::clone(&tally), Arc::clone(&ended));
        move || {
            let bar = bytes_bar(what);
            while !ended.load(Ordering::Relaxed) {
                bar.set_length(tally.total_bytes.load(Ordering::Relaxed));
                bar.set_position(tally.done_bytes.load(Ordering::Relaxed));
                std::thread::park_timeout(POLL);
            }
            bar.finish_and_clear();
        }
    });
    let done = work(&tally);
    ended.store(true, Ordering::Relaxed);
    shown.thread().unpark();
    // It only draws: nothing of the work depends on it.
    let _ = shown.join();
    done
}

fn in_place_text(id: &SnapshotId, report: &InPlaceReport) -> String {
    let (is, would) = match report.dry_run {
        true => (format!("{} would become", report.into.display()), "would be "),
        false => (format!("{} is", report.into.display()), ""),
    };
    let mut text = format!(
        "{is} snapshot {id}: of {} in {} files {} in {} files {would}written, {} names {would}made, attributes of {} {would}set\n",
        rounded_bytes(report.bytes),
        report.files,
        rounded_bytes(report.written_bytes),
        report.changed_files,
        report.made,
        report.attributes
    );
    if report.extra == 0 {
        return text;
    }
    let fate = match (report.removed, report.dry_run) {
        (true, false) => "removed",
        (true, true) => "would be removed",
        (false, _) => "left; --delete removes them",
    };
    // Writing to a String cannot fail.
    let _ = writeln!(text, "{} names that the snapshot does not have: {fate}", report.extra);
    for name in &report.extra_names {
        let _ = writeln!(text, "  {name}");
    }
    text
}

//! `repo archive`: cold packs to another directory.

use super::args::{Archive, Choice};
use super::out;
use super::progress::{bytes_bar, drawn_on};
use super::snapshot::open;
use crate::daemon::quantity::rounded_bytes;
use crate::device::clock::wall_now;
use crate::device::real::RealDevice;
use crate::error::Error;
use crate::repository::{ArchiveOptions, ArchiveReport};
use crate::units::WallNs;
use anyhow::{Context, Result, bail};
use serde::Serialize;
use std::path::Path;

#[derive(Serialize)]
struct Archived {
    dry_run: bool,
    archive: String,
    #[serde(flatten)]
    report: ArchiveReport,
}

pub(super) fn run(volume: &Choice, request: &Archive, as_json: bool) -> Result<()> {
    let repository = open(volume, &request.storage)?;
    let Some(path) = request.to.clone().or_else(|| repository.archive_path().map(Into::into)) else {
        let why = "the repository has no archive: name a directory for it with --to DIR";
        return Err(Error::Invalid(why.to_owned()).into());
    };
    let path = std::path::absolute(&path).with_context(|| format!("path {}", path.display()))?;
    refuse_within(&path, Path::new(&repository.path()))?;
    if request.to.is_some() && !request.dry_run {
        std::fs::create_dir_all(&path).with_context(|| format!("create {}", path.display()))?;
    }
    let archive = RealDevice::open(&path).map_err(|e| Error::io("open archive", path.display().to_string(), e))?;
    let age_ns = i64::try_from(request.older_than.as_nanos()).unwrap_or(i64::MAX);
    let options = ArchiveOptions {
        archive,
        path: path.display().to_string(),
        before: WallNs(wall_now().0.saturating_sub(age_ns)),
        dry_run: request.dry_run,
    };
    let bar = bytes_bar("archiving");
    let report = repository.archive(&options, &mut drawn_on(&bar));
    bar.finish_and_clear();
    let archived = Archived { dry_run: request.dry_run, archive: options.path, report: report? };
    match as_json {
        true => out::json(&archived)?,
        false => out::text(&text(&archived))?,
    }
    let damaged = &archived.report.damaged;
    match damaged.first() {
        Some(first) => bail!("{} packs stay, since something in them is damaged: {first}", damaged.len()),
        None => Ok(()),
    }
}

fn refuse_within(archive: &Path, repository: &Path) -> Result<()> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    if real(archive).starts_with(real(repository)) {
        let (archive, repository) = (archive.display(), repository.display());
        return Err(Error::Invalid(format!("--to {archive}: it lies in the repository {repository}")).into());
    }
    Ok(())
}

fn text(archived: &Archived) -> String {
    let (report, archive) = (&archived.report, &archived.archive);
    let (would, bytes) = (if archived.dry_run { "would go" } else { "went" }, rounded_bytes(report.bytes));
    format!("{} packs with {bytes} {would} to {archive}\n", report.packs)
}

//! `clone`: a volume of a snapshot, at once.

use super::args::{Choice, Clone};
use super::new_volume::{self, LogSizes, Prospect, absolute, drop_in};
use super::progress::Follower;
use super::snapshot::{find, open_with_place};
use super::{out, volume};
use crate::daemon::quantity::rounded_bytes;
use crate::daemon::settings::Settings;
use crate::daemon::{engine_options, tier_plans};
use crate::jobs::clone::{ClonePlan, CloneReport, clone};
use anyhow::Result;
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;

/// What `--json` prints.
#[derive(Serialize)]
struct Cloned<'a> {
    name: &'a str,
    settings_file: &'a Path,
    /// For the unit of the server that uses the directory.
    drop_in: &'a str,
    #[serde(flatten)]
    report: &'a CloneReport,
}

pub(super) fn run(choice: &Choice, request: &Clone, as_json: bool) -> Result<()> {
    let (repository, path, key_file) = open_with_place(choice, &request.storage)?;
    let snapshot = find(&repository, &request.id)?;
    let (repository_path, key_file) = (absolute(&path)?, key_file.as_deref().map(absolute).transpose()?);
    let log = LogSizes { log_bytes: request.log_size, segment_bytes: request.segment_size };
    let stored = Some((repository_path.clone(), key_file.clone()));
    let essentials = new_volume::essentials(&request.volume, &log, &request.dir, stored)?;
    let prospect = Prospect::new(&essentials, request.volume.config_out.as_deref())?;
    let settings = &prospect.settings;
    let plan = ClonePlan {
        directory: settings.mount.clone(),
        tiers: tier_plans(settings)?,
        options: engine_options(settings),
        snapshot,
        repository: repository_path,
        key_file,
    };
    let mut follower = Follower::new("cloning");
    let report = prospect.make(|| clone(&repository, &plan, &mut follower))?;
    follower.finish();
    let (file, drop_in) = (&prospect.file, drop_in(&settings.name, &report.directory));
    match as_json {
        true => out::json(&Cloned { name: &settings.name, settings_file: file, drop_in: &drop_in, report: &report }),
        false => out::text(&advice(settings, file, &report, &plan.repository)),
    }
}

fn advice(settings: &Settings, file: &Path, report: &CloneReport, repository: &Path) -> String {
    let mut text = format!(
        "snapshot {} is a volume at {}: {} files, {}, all of it in {} still\nsettings   {}\n",
        report.snapshot,
        report.directory.display(),
        report.files,
        rounded_bytes(report.bytes),
        repository.display(),
        file.display()
    );
    // Writing to a String cannot fail.
    for warning in &report.warnings {
        let _ = writeln!(text, "warning    {warning}");
    }
    let _ = writeln!(text, "held by    the ref {} until everything is on the tiers", report.reference);
    let name = &settings.name;
    let serve = match file == volume::default_settings_file(name) && nix::unistd::geteuid().is_root() {
        true => format!("systemctl enable --now heatfs@{name}"),
        false => format!("heatfs daemon --config {}", file.display()),
    };
    let _ = writeln!(text, "\nServe it:   {serve}");
    text
}

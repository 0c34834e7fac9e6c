//! `clone`: a volume of a snapshot, at once.

use super::adopt::{absolute, drop_in, name_of, refuse_other_settings, write_settings};
use super::args::{Choice, Clone};
use super::progress::Follower;
use super::snapshot::{find, open_with_place};
use super::{out, volume};
use crate::daemon::quantity::rounded_bytes;
use crate::daemon::render::Essentials;
use crate::daemon::settings::Settings;
use crate::daemon::{engine_options, tier_plans};
use crate::error::Error;
use crate::jobs::clone::{ClonePlan, CloneReport, clone};
use anyhow::{Context, Result};
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
    let mount = absolute(&request.dir)?;
    for (name, _) in &request.budgets {
        if !request.tiers.iter().any(|(tier, _)| tier == name) {
            return Err(Error::Invalid(format!("--budget {name}: there is no tier of this name")).into());
        }
    }
    let budget = |name: &str| request.budgets.iter().find(|(tier, _)| tier == name).map(|(_, bytes)| *bytes);
    let tiers = request.tiers.iter().map(|(name, path)| Ok((name.clone(), absolute(path)?, budget(name))));
    let essentials = Essentials {
        name: request.name.clone().unwrap_or_else(|| name_of(&mount)),
        tiers: tiers.collect::<Result<_>>()?,
        mount,
        block_bytes: request.block_size,
        log_bytes: request.log_size,
        segment_bytes: request.segment_size,
        repository: Some((absolute(&path)?, key_file.as_deref().map(absolute).transpose()?)),
    };
    let text = essentials.to_toml();
    let settings = Settings::parse(&text, &[])?;
    let file = request.config_out.clone().unwrap_or_else(|| volume::default_settings_file(&settings.name));
    let file = std::path::absolute(&file).with_context(|| format!("settings file {}", file.display()))?;
    refuse_other_settings(&file, &settings)?;
    let (repository_path, key_file) = essentials.repository.unwrap_or_default();
    let plan = ClonePlan {
        directory: settings.mount.clone(),
        tiers: tier_plans(&settings)?,
        options: engine_options(&settings),
        snapshot,
        repository: repository_path,
        key_file,
    };
    // Written before anything is made: a settings file that cannot be written must not be found out about afterwards.
    let waiting = file.with_extension("toml.new");
    write_settings(&waiting, &text)?;
    let mut follower = Follower::new("cloning");
    let report = clone(&repository, &plan, &mut follower).inspect_err(|_| {
        // Nothing was made, so there is nothing to describe.
        let _ = std::fs::remove_file(&waiting);
    })?;
    follower.finish();
    std::fs::rename(&waiting, &file)
        .with_context(|| format!("renaming {} to {}", waiting.display(), file.display()))?;
    let drop_in = drop_in(&settings.name, &report.directory);
    match as_json {
        true => out::json(&Cloned { name: &settings.name, settings_file: &file, drop_in: &drop_in, report: &report }),
        false => out::text(&advice(&settings, &file, &report, &plan.repository)),
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

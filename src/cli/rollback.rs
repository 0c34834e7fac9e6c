//! `rollback`: the volume becomes a snapshot, and that is confirmed or undone.

use super::args::{Choice, Rollback};
use super::events::moment;
use super::progress::Follower;
use super::snapshot::{find, open_with_place};
use super::{new_volume::absolute, out};
use crate::daemon::quantity::rounded_bytes;
use crate::daemon::settings::Settings;
use crate::daemon::{clear_mountpoint, engine_options, tier_plans};
use crate::jobs::rollback::{RollbackPlan, RollbackReport, SettledReport, confirm, roll_back, undo};
use anyhow::Result;
use std::fmt::Write;

pub(super) fn run(volume: &Choice, request: &Rollback, as_json: bool) -> Result<()> {
    let settings = volume.settings()?;
    // A daemon that was killed leaves its mount behind; one that lives is told of as such.
    clear_mountpoint(&settings)?;
    match &request.id {
        Some(id) => begin(volume, &settings, request, id, as_json),
        None => end(&settings, request.confirm, as_json),
    }
}

fn begin(volume: &Choice, settings: &Settings, request: &Rollback, id: &str, as_json: bool) -> Result<()> {
    let (repository, path, key_file) = open_with_place(volume, &request.storage)?;
    let plan = RollbackPlan {
        tiers: tier_plans(settings)?,
        options: engine_options(settings),
        snapshot: find(&repository, id)?,
        repository: absolute(&path)?,
        key_file: key_file.as_deref().map(absolute).transpose()?,
    };
    let mut follower = Follower::new("rolling back");
    let report = roll_back(&repository, &plan, &mut follower)?;
    follower.finish();
    match as_json {
        true => out::json(&report),
        false => out::text(&advice(settings, &report, &plan)),
    }
}

fn end(settings: &Settings, confirmed: bool, as_json: bool) -> Result<()> {
    let (tiers, options) = (tier_plans(settings)?, engine_options(settings));
    let mut follower = Follower::new("settling");
    let report = match confirmed {
        true => confirm(&tiers, &options, &mut follower)?,
        false => undo(&tiers, &options, &mut follower)?,
    };
    follower.finish();
    match as_json {
        true => out::json(&report),
        false => out::text(&summary(settings, &report, confirmed)),
    }
}

fn with_warnings(mut text: String, warnings: &[String]) -> String {
    for warning in warnings {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "warning    {warning}");
    }
    text
}

fn advice(settings: &Settings, report: &RollbackReport, plan: &RollbackPlan) -> String {
    let text = format!(
        "volume {} is as it was at {} (snapshot {}): {} files, {}, all of it in {} still\n",
        settings.name,
        moment(report.taken),
        report.snapshot,
        report.files,
        rounded_bytes(report.bytes),
        plan.repository.display()
    );
    let text = with_warnings(text, &report.warnings);
    format!(
        "{text}held by    the ref {} until everything is on the tiers\n\
         kept       what the volume was before: `heatfs rollback --undo` brings it back, `heatfs rollback --confirm` gives up its space\n",
        report.reference
    )
}

fn summary(settings: &Settings, report: &SettledReport, confirmed: bool) -> String {
    let name = &settings.name;
    let text = match confirmed {
        true => {
            format!("volume {name} stays what snapshot {} made of it; what it was before is gone\n", report.snapshot)
        }
        false => format!("volume {name} is what it was before it was rolled back to snapshot {}\n", report.snapshot),
    };
    with_warnings(text, &report.warnings)
}

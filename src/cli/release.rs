//! `release`: gives the directory back.

use super::args::{Choice, Release};
use super::out;
use super::progress::Follower;
use crate::daemon::quantity::rounded_bytes;
use crate::daemon::{clear_mountpoint, engine_options, tier_plans};
use crate::jobs::release::{ReleasePlan, ReleaseReport, release};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;

pub(super) fn run(volume: &Choice, request: &Release, as_json: bool) -> Result<()> {
    let file = volume.settings_file()?;
    let settings = volume.settings()?;
    // A daemon that was killed leaves its mount behind; one that lives is told of as such.
    clear_mountpoint(&settings)?;
    let directory = match &request.to {
        Some(dir) => std::path::absolute(dir).with_context(|| format!("path {}", dir.display()))?,
        None => settings.mount_path(),
    };
    let plan = ReleasePlan {
        directory,
        elsewhere: request.to.is_some(),
        tiers: tier_plans(&settings)?,
        origin: request.origin.clone(),
        accept_untrusted: request.accept_untrusted,
        options: engine_options(&settings),
    };
    let mut follower = Follower::new("releasing");
    let report = release(&plan, &mut follower)?;
    follower.finish();
    match as_json {
        true => out::json(&report),
        false => out::text(&summary(&report, &file)),
    }
}

fn summary(report: &ReleaseReport, file: &Path) -> String {
    let mut text = format!(
        "{} {}: {} files, {}\n",
        if report.resumed { "finished the interrupted release of" } else { "released" },
        report.directory.display(),
        report.files,
        rounded_bytes(report.bytes)
    );
    // Writing to a String cannot fail.
    for path in &report.untrusted {
        let _ = writeln!(text, "not trusted {path}: given back as home had it");
    }
    let _ = writeln!(text, "The volume is gone; its settings in {} can be removed.", file.display());
    let _ = writeln!(
        text,
        "A server whose unit was told to depend on it starts again once that drop-in is gone (`systemctl revert`)."
    );
    text
}

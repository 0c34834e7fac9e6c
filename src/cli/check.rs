//! `check`: through the daemon if it runs, else on disk.

use super::args::Choice;
use super::{out, progress};
use crate::control::client::{Client, ClientError};
use crate::control::protocol::{self, CheckRequest, JobReply};
use crate::daemon::{clear_mountpoint, engine_options, tier_plans};
use crate::jobs::check::{CheckReport, Finding, check};
use crate::volume::Severity;
use anyhow::{Context, Result, bail};
use std::fmt::Write;

pub(super) fn run(volume: &Choice, deep: bool, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    let found = match client.post::<JobReply>(protocol::CHECK, &CheckRequest { deep }) {
        Ok(started) => online(&client, started)?,
        Err(ClientError::Unreachable { .. }) if volume.socket.is_none() => offline(volume, deep)?,
        Err(error) => return Err(error.into()),
    };
    report(&found, as_json)
}

fn online(client: &Client, started: JobReply) -> Result<CheckReport> {
    let ended = progress::follow(client, started)?;
    serde_json::from_value(ended.result.unwrap_or_default()).context("reading the daemon's findings")
}

fn offline(volume: &Choice, deep: bool) -> Result<CheckReport> {
    let settings = volume.settings()?;
    clear_mountpoint(&settings)?;
    Ok(check(&tier_plans(&settings)?, &engine_options(&settings), deep)?)
}

/// Errors when there is damage, so that the exit code says it.
fn report(found: &CheckReport, as_json: bool) -> Result<()> {
    let damages = found.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
    match as_json {
        true => out::json(found)?,
        false => out::text(&describe(found, damages))?,
    }
    match damages {
        0 => Ok(()),
        1 => bail!("1 damage found"),
        many => bail!("{many} damages found"),
    }
}

fn describe(found: &CheckReport, damages: usize) -> String {
    let mut text = String::new();
    for Finding { severity, paths, what, .. } in &found.findings {
        let severity = match severity {
            Severity::Damage => "damage",
            Severity::Notice => "notice",
        };
        // Writing to a String cannot fail.
        let _ = match paths.is_empty() {
            true => writeln!(text, "{severity}  {what}"),
            false => writeln!(text, "{severity}  {}: {what}", paths.join(", ")),
        };
    }
    let notices = found.findings.len() - damages;
    let _ = writeln!(text, "{} files checked: {damages} damages, {notices} notices", found.files);
    text
}

#[cfg(test)]
mod tests {
    use super::{CheckReport, Finding, Severity, describe, report};

    #[test]
    fn damage_is_an_error() {
        let clean = CheckReport { files: 3, ..CheckReport::default() };
        assert!(describe(&clean, 0).contains("3 files checked: 0 damages"));
        let what = "its image is gone".to_owned();
        let finding = Finding { severity: Severity::Damage, file: None, paths: vec!["base/1".into()], what };
        let damaged = CheckReport { findings: vec![finding], ..clean };
        assert!(describe(&damaged, 1).starts_with("damage  base/1: its image is gone"));
        assert!(report(&damaged, true).is_err());
    }
}

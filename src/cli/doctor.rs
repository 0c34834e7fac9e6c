//! `doctor`: what was found of the host and the tiers.

use super::args::Choice;
use super::out;
use crate::daemon::settings::Settings;
use crate::jobs::doctor::{Level, Verdict, examine};
use anyhow::{Result, bail};
use std::fmt::Write;
use std::path::PathBuf;

/// What to do about settings with a password that everybody may read.
pub(super) const HIDE_PASSWORD: &str = "`chmod o-r` takes that away";

pub(super) fn run(volume: &Choice, tiers: &[(String, PathBuf)], as_json: bool) -> Result<()> {
    // Without settings there is still the host to look at; but settings that were named must be right.
    let settings = match tiers.is_empty() && (volume.config.is_some() || volume.settings_file().is_ok()) {
        true => Some(volume.settings()?),
        false => None,
    };
    let mut verdicts = examine(&settings.as_ref().map_or_else(|| tiers.to_vec(), Settings::tier_paths))?;
    if let Some(settings) = settings
        && let Some(found) = settings.readable_password(&volume.settings_file()?)
    {
        let (subject, advice) = ("settings".to_owned(), HIDE_PASSWORD.to_owned());
        verdicts.push(Verdict { level: Level::Warn, subject, found, advice });
    }
    match as_json {
        true => out::json(&serde_json::json!({ "verdicts": verdicts }))?,
        false => out::text(&describe(&verdicts))?,
    }
    match verdicts.iter().filter(|verdict| verdict.level == Level::Fail).count() {
        0 => Ok(()),
        1 => bail!("1 check failed"),
        many => bail!("{many} checks failed"),
    }
}

fn describe(verdicts: &[Verdict]) -> String {
    let wide = verdicts.iter().map(|verdict| verdict.subject.len()).max().unwrap_or(0);
    let mut text = String::new();
    for Verdict { level, subject, found, advice } in verdicts {
        let level = match level {
            Level::Ok => "ok",
            Level::Warn => "warn",
            Level::Fail => "fail",
        };
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{level:<4}  {subject:<wide$}  {found}");
        if !advice.is_empty() {
            let _ = writeln!(text, "      {:<wide$}  -> {advice}", "");
        }
    }
    text
}

//! `doctor`: what was found of the host and the tiers.

use super::args::Choice;
use super::out;
use crate::jobs::doctor::{Level, Verdict, examine};
use anyhow::{Result, bail};
use std::fmt::Write;
use std::path::PathBuf;

pub(super) fn run(volume: &Choice, tiers: &[(String, PathBuf)], as_json: bool) -> Result<()> {
    let named = match tiers.is_empty() {
        false => tiers.to_vec(),
        // Without settings there is still the host to look at; but settings that were named must be right.
        true if volume.config.is_none() && volume.settings_file().is_err() => Vec::new(),
        true => volume.settings()?.tiers.into_iter().map(|tier| (tier.name, tier.path)).collect(),
    };
    let verdicts = examine(&named)?;
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

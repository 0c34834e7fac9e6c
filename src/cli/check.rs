//! `check`: through the daemon if it runs.

use super::args::Choice;
use super::{out, progress};
use crate::control::client::Client;
use crate::control::protocol::{self, CheckReply, CheckRequest, JobReply};
use crate::volume::Severity;
use anyhow::{Context, Result, bail};
use std::fmt::Write;

pub(super) fn run(volume: &Choice, deep: bool, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    report(&online(&client, deep)?, as_json)
}

fn online(client: &Client, deep: bool) -> Result<CheckReply> {
    let started: JobReply = client.post(protocol::CHECK, &CheckRequest { deep })?;
    let ended = progress::follow(client, started)?;
    serde_json::from_value(ended.result.unwrap_or_default()).context("reading the daemon's findings")
}

/// Errors when there is damage, so that the exit code says it.
fn report(reply: &CheckReply, as_json: bool) -> Result<()> {
    let damages = reply.findings.iter().filter(|finding| finding.severity == Severity::Damage).count();
    match as_json {
        true => out::json(reply)?,
        false => out::text(&describe(reply, damages))?,
    }
    match damages {
        0 => Ok(()),
        1 => bail!("1 damage found"),
        many => bail!("{many} damages found"),
    }
}

fn describe(reply: &CheckReply, damages: usize) -> String {
    let mut text = String::new();
    for finding in &reply.findings {
        let severity = match finding.severity {
            Severity::Damage => "damage",
            Severity::Notice => "notice",
        };
        let path = finding.path.as_ref().map(|path| format!("{path}: ")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{severity}  {path}{}", finding.what);
    }
    let _ =
        writeln!(text, "{} files checked: {damages} damaged, {} notices", reply.files, reply.findings.len() - damages);
    text
}

#[cfg(test)]
mod tests {
    use super::{CheckReply, Severity, describe, report};
    use crate::control::protocol::CheckFinding;

    #[test]
    fn damage_is_an_error() {
        let clean = CheckReply { files: 3, findings: vec![] };
        assert!(describe(&clean, 0).contains("3 files checked: 0 damaged"));
        let finding =
            CheckFinding { severity: Severity::Damage, path: Some("base/1".into()), what: "its image is gone".into() };
        let damaged = CheckReply { files: 3, findings: vec![finding] };
        assert!(describe(&damaged, 1).starts_with("damage  base/1: its image is gone"));
        assert!(report(&damaged, true).is_err());
    }
}

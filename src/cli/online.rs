//! Commands that are a request to the daemon and a rendering of its answer.

use super::args::Choice;
use super::names::Names;
use super::{out, progress, show};
use crate::control::client::{Client, ClientError, query_value};
use crate::control::protocol::{
    self, DoneReply, ExplainReply, Health, JobReply, PinRequest, StatusReply, StopRequest, TiersReply,
};
use crate::daemon::quantity::{parse_bytes, rounded_bytes, show_span};
use crate::daemon::settings::Settings;
use crate::error::Error;
use crate::jobs::migrate::{JournalEntry, Outcome};
use crate::tier::identity::{self, Locks, Place};
use crate::units::WallNs;
use anyhow::{Result, anyhow};
use serde::Serialize;
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// How often a stop is asked about.
const POLL: Duration = Duration::from_millis(100);
/// Reasons of the model that are told.
const REASONS_SHOWN: usize = 4;

pub(super) fn status(volume: &Choice, as_json: bool) -> Result<()> {
    let status: StatusReply = volume.client()?.get(protocol::STATUS)?;
    match as_json {
        true => out::json(&status)?,
        false => out::text(&show::status(&status))?,
    }
    match status.health {
        Health::Healthy => Ok(()),
        Health::Degraded | Health::ReadOnly => Err(anyhow!("volume {} is {}", status.name, status.health)),
    }
}

pub(super) fn tiers(volume: &Choice, as_json: bool) -> Result<()> {
    let reply: TiersReply = volume.client()?.get(protocol::TIERS)?;
    match as_json {
        true => out::json(&reply),
        false => out::text(&show::tiers(&reply.tiers)),
    }
}

fn done(reply: &DoneReply, as_json: bool) -> Result<()> {
    match as_json {
        true => out::json(reply),
        false => out::text(&format!("{}\n", reply.message)),
    }
}

fn post_done(client: &Client, target: &str, request: &impl Serialize, as_json: bool) -> Result<()> {
    done(&client.post(target, request)?, as_json)
}

pub(super) fn checkpoint(volume: &Choice, as_json: bool) -> Result<()> {
    post_done(&volume.client()?, protocol::CHECKPOINT, &serde_json::json!({}), as_json)
}

pub(super) fn stop(volume: &Choice, force: bool, no_wait: bool, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    let begun: DoneReply = client.post(protocol::STOP, &StopRequest { force })?;
    if no_wait {
        return done(&begun, as_json);
    }
    let mut told = String::new();
    loop {
        std::thread::sleep(POLL);
        let waiting_for = match client.get::<StatusReply>(protocol::STATUS) {
            Ok(status) => status.stopping.unwrap_or_default(),
            // The socket goes last.
            Err(ClientError::Unreachable { .. }) => break,
            // It may go in the middle of an answer.
            Err(ClientError::Garbled { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        if waiting_for != told && !waiting_for.is_empty() {
            eprintln!("{waiting_for}");
            told = waiting_for;
        }
    }
    if volume.settings().ok().and_then(|settings| ended_cleanly(&settings)) == Some(false) {
        return Err(anyhow!(
            "the daemon has ended, but not cleanly: its log says why. Nothing acknowledged is lost; the next start replays the log"
        ));
    }
    done(&DoneReply { message: "stopped".to_owned() }, as_json)
}

/// Did the daemon that is gone leave everything on the tiers? None where that cannot be told: the fastest cannot be looked at, or is in use again.
fn ended_cleanly(settings: &Settings) -> Option<bool> {
    let fastest = Place::open_all(settings.tier_paths().get(..1)?).ok()?;
    let clean = identity::ended_cleanly(fastest.first()?).ok()??;
    Locks::holder(&settings.tiers.first()?.path).is_none().then_some(clean)
}

pub(super) fn settle(volume: &Choice, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    let started: JobReply = client.post(protocol::SETTLE, &serde_json::json!({}))?;
    let ended = progress::follow(&client, started)?;
    match as_json {
        true => out::json(&ended),
        false => out::text(&format!(
            "settled {} in {}\n",
            rounded_bytes(ended.done_bytes),
            show_span(Duration::from_millis(ended.elapsed_ms))
        )),
    }
}

/// As the daemon wants it: absolute if it exists from here, else as typed, which the daemon takes as relative to the mount.
pub(super) fn wire_path(path: &Path) -> String {
    let absolute = match path.symlink_metadata() {
        Ok(_) => path.canonicalize().or_else(|_| std::path::absolute(path)).ok(),
        Err(_) => None,
    };
    absolute.as_deref().unwrap_or(path).to_string_lossy().into_owned()
}

pub(super) fn pin(volume: &Choice, path: &Path, tier: Option<String>, as_json: bool) -> Result<()> {
    post_done(&volume.client()?, protocol::PIN, &PinRequest { path: wire_path(path), tier }, as_json)
}

pub(super) fn unpin(volume: &Choice, path: &Path, as_json: bool) -> Result<()> {
    post_done(&volume.client()?, protocol::UNPIN, &PinRequest { path: wire_path(path), tier: None }, as_json)
}

/// `PATH:OFFSET`, unless a file of exactly that name exists.
fn split_place(place: &str) -> Result<(&str, u64)> {
    match place.rsplit_once(':') {
        Some((path, offset)) if Path::new(place).symlink_metadata().is_err() => {
            let bytes =
                parse_bytes(offset).map_err(|allowed| Error::Invalid(format!("offset `{offset}`: {allowed}")))?;
            Ok((path, bytes))
        }
        _ => Ok((place, 0)),
    }
}

pub(super) fn explain(volume: &Choice, place: &str, as_json: bool) -> Result<()> {
    let (path, offset) = split_place(place)?;
    let path = query_value(&wire_path(Path::new(path)));
    let reply: ExplainReply = volume.client()?.get(&format!("{}?path={path}&offset={offset}", protocol::EXPLAIN))?;
    match as_json {
        true => out::json(&reply),
        false => out::text(&explanation(&reply)),
    }
}

fn explanation(reply: &ExplainReply) -> String {
    let found = &reply.explanation;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        let _ = writeln!(text, "{name:<12}{value}"); // Into a String: it cannot fail.
    };
    let (start, end) = (found.block.0 * reply.block_bytes, (found.block.0 + 1) * reply.block_bytes);
    line("file", format!("{} ({}, id {})", reply.path, rounded_bytes(reply.size_bytes), found.file));
    if let Some(relation) = Names::of_mount(&reply.mount).relation(&reply.path) {
        line("relation", relation);
    }
    line(
        "block",
        format!("{}, bytes {start} to {}", found.block, end.min(reply.size_bytes).saturating_sub(1).max(start)),
    );
    line("is on", found.tier.clone().unwrap_or_else(|| "no tier: a hole, or only in the log so far".to_owned()));
    line(
        "heat",
        format!(
            "{:.3} accesses expected in {} s; hotter than {:.1} % of all blocks",
            found.heat,
            reply.epoch_s,
            found.temperature * 100.0
        ),
    );
    let evidence = &found.evidence;
    line(
        "",
        format!(
            "{:.3} from its own past, {:.3} as any block of this file; {} reads and {} writes since the latest plan",
            evidence.own, evidence.from_file, evidence.reads, evidence.writes
        ),
    );
    if let Some(expected) = evidence.expected {
        line(
            "",
            format!(
                "{expected:.3} expected by the forecast, which counts instead of its past but for what was seen since"
            ),
        );
    }
    line("heat by", format!("{}: {}", found.believed, found.believed_because));
    for reason in found.mattered.iter().take(REASONS_SHOWN) {
        line("", format!("{:+.3} accesses by {}", reason.accesses, reason.what));
    }
    if let Some(tier) = &found.pinned_to {
        line("pinned to", tier.clone());
    }
    line("rule", found.rule.clone().unwrap_or_else(|| "none: heat decides".to_owned()));
    if let Some(tier) = &found.belongs_on {
        line("belongs on", tier.clone());
    }
    if let Some(tier) = &found.copy_on {
        line("copy on", format!("{tier}: going there costs nothing"));
    }
    line("why", found.why.clone());
    for (name, tier) in reply.tiers.iter().zip(&found.tiers) {
        let room = format!("room for {} blocks, {} more in exchange", tier.room_blocks, tier.slack_blocks);
        line("budget", format!("{name}: from {:.3} accesses on a block belongs there; {room}", tier.cut));
    }
    if let Some(other) = &found.exchanged_with {
        let path = reply.exchanged_path.clone().unwrap_or_else(|| format!("(gone) {}", other.file));
        line("in exchange", format!("{path} block {}, {:.3} accesses per epoch", other.block, other.heat));
    }
    line("next review", format!("in {} s", found.next_review_s));
    for entry in &found.history {
        line("decided", decision(entry, &reply.tiers));
    }
    text
}

fn decision(entry: &JournalEntry, tiers: &[String]) -> String {
    let name = |tier: crate::units::TierId| tiers.get(tier.index()).map_or("?", String::as_str);
    let outcome = outcome(entry.outcome);
    format!("{}: {} to {}: {}; {outcome}", ago(entry.at), name(entry.from), name(entry.to), entry.reason)
}

pub(super) fn outcome(outcome: Outcome) -> &'static str {
    match outcome {
        Outcome::Moved => "moved",
        Outcome::Refused => "given up: it was written meanwhile, or there was no room",
        Outcome::Failed => "failed",
    }
}

pub(super) fn ago(at: WallNs) -> String {
    let passed = crate::device::clock::wall_now().0.saturating_sub(at.0);
    format!("{} ago", show_span(Duration::from_nanos(u64::try_from(passed).unwrap_or(0))))
}

#[cfg(test)]
mod tests {
    use super::split_place;

    #[test]
    fn places() {
        assert_eq!(split_place("base/5/1259").expect("split"), ("base/5/1259", 0));
        assert_eq!(split_place("base/5/1259:8192").expect("split"), ("base/5/1259", 8192));
        assert_eq!(split_place("a:b:1MiB").expect("split"), ("a:b", 1 << 20));
        let error = split_place("base/5/1259:much").expect_err("refused").to_string();
        assert!(error.contains("`much`"), "{error}");
    }
}

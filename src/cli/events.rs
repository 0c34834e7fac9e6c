//! `events`: what happened to the volume, and what happens.

use super::args::Choice;
use super::out;
use crate::control::protocol::{self, EventLine};
use crate::daemon::quantity::{rounded_bytes, show_span};
use crate::jobs::events::{Event, What};
use crate::units::WallNs;
use anyhow::{Context, Result, bail};
use jiff::Timestamp;
use jiff::tz::TimeZone;
use std::time::Duration;

/// Prints the latest events, and with `follow` those that come, until the daemon ends.
pub(super) fn run(volume: &Choice, follow: bool, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    let target = if follow { format!("{}?follow=true", protocol::EVENTS) } else { protocol::EVENTS.to_owned() };
    let mut ended = None;
    client.lines::<anyhow::Error>(&target, &mut |line| {
        match serde_json::from_str(line).with_context(|| format!("an event: {line}"))? {
            EventLine::Event(event) if as_json => out::text(&format!("{}\n", serde_json::to_string(&event)?))?,
            EventLine::Event(event) => out::text(&format!("{}  {}\n", moment(event.at_ns), text(&event)))?,
            EventLine::Ended { ended: why } => ended = Some(why),
        }
        Ok(())
    })?;
    match ended {
        Some(why) => bail!("events: {why}"),
        None => Ok(()),
    }
}

/// A moment in the local time of the machine.
pub(super) fn moment(at: WallNs) -> String {
    match Timestamp::from_nanosecond(at.0.into()) {
        Ok(at) => at.to_zoned(TimeZone::system()).strftime("%Y-%m-%d %H:%M:%S").to_string(),
        Err(_) => format!("{} ns since 1970", at.0),
    }
}

fn text(event: &Event) -> String {
    match &event.what {
        What::Mounted { mount } => format!("mounted on {mount}"),
        What::Stopping => "stopping".to_owned(),
        What::HealthChanged { health, reasons } if reasons.is_empty() => health.clone(),
        What::HealthChanged { health, reasons } => format!("{health}: {}", reasons.join("; ")),
        What::SnapshotStarted { reason } => format!("snapshot begun ({reason})"),
        What::SnapshotFinished { snapshot, reason, stored_bytes, elapsed_ms } => {
            let (stored, span) = (rounded_bytes(*stored_bytes), show_span(Duration::from_millis(*elapsed_ms)));
            format!("snapshot {snapshot} ({reason}): {stored} stored in {span}")
        }
        What::SnapshotFailed { reason, error } => format!("snapshot failed ({reason}): {error}"),
        What::PagesDamaged { snapshot, pages, first } => {
            format!("snapshot {snapshot}: {pages} pages with a wrong checksum, as on the volume: {first}")
        }
        What::SnapshotDeleted { snapshot } => format!("snapshot {snapshot} deleted: no rule keeps it"),
        What::PruneFinished { packs, freed_bytes } => {
            format!("pruned: {} freed in {packs} packs", rounded_bytes(*freed_bytes))
        }
        What::PruneFailed { error } => format!("prune failed: {error}"),
        What::Verified { packs, read_bytes } => {
            format!("verified {packs} packs of the repository, {}", rounded_bytes(*read_bytes))
        }
        What::VerifyFinding { damage } => format!("damaged in the repository: {damage}"),
        What::VerifyFailed { error } => format!("verification failed: {error}"),
        What::HookFailed { hook, error } => format!("hook {hook} failed: {error}"),
    }
}

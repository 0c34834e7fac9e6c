//! `snapshot schedule`: what is to come of snapshots, and how it went so far.

use super::args::{Choice, Storage};
use super::events::moment;
use super::keeping::reason;
use super::{out, snapshot};
use crate::control::protocol::{self, ScheduleReply};
use crate::daemon::quantity::{rounded_bytes, show_span};
use crate::error::Error;
use crate::jobs::cadence::{SnapshotsStatus, judged};
use crate::repository::{PruneOptions, SnapshotId, Verdict};
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;
use uuid::Uuid;

#[derive(Serialize)]
struct Schedule {
    #[serde(flatten)]
    reply: ScheduleReply,
    retention: DryRun,
}

/// What retention and prune would do if they ran now.
#[derive(Serialize)]
struct DryRun {
    kept: Vec<Kept>,
    deleted: Vec<String>,
    bytes_freed: u64,
}

#[derive(Serialize)]
struct Kept {
    snapshot: String,
    because: Vec<String>,
}

pub(super) fn run(volume: &Choice, storage: &Storage, as_json: bool) -> Result<()> {
    let reply: ScheduleReply = volume.client()?.get(protocol::SCHEDULE)?;
    let retention = dry_run(volume, storage, &reply)?;
    let schedule = Schedule { reply, retention };
    if as_json { out::json(&schedule) } else { out::text(&text(&schedule)) }
}

fn dry_run(volume: &Choice, storage: &Storage, reply: &ScheduleReply) -> Result<DryRun> {
    let repository = snapshot::open(volume, storage)?;
    let id: Uuid = reply.volume.parse().map_err(|_| Error::Invalid(format!("volume `{}`: no id", reply.volume)))?;
    let verdicts = judged(&repository, id, &reply.keep)?;
    let (kept, deleted): (Vec<Verdict>, Vec<Verdict>) =
        verdicts.into_iter().partition(|verdict| !verdict.keep.is_empty());
    let deleted: Vec<SnapshotId> = deleted.iter().map(|verdict| verdict.id).collect();
    let plan = repository.plan_prune(&PruneOptions::default(), &deleted)?;
    let because = |verdict: &Verdict| verdict.keep.iter().map(reason).collect();
    Ok(DryRun {
        kept: kept.iter().map(|one| Kept { snapshot: one.id.to_string(), because: because(one) }).collect(),
        deleted: deleted.iter().map(ToString::to_string).collect(),
        bytes_freed: plan.bytes_freed,
    })
}

fn text(schedule: &Schedule) -> String {
    let (reply, retention) = (&schedule.reply, &schedule.retention);
    let status = &reply.status;
    let mut rows = vec![(
        "schedule",
        match status.schedule.as_slice() {
            [] => "none: `snapshot.schedule` is not set".to_owned(),
            texts => texts.join(", "),
        },
    )];
    rows.extend(reply.upcoming_ns.iter().map(|at| ("next", moment(*at))));
    rows.extend(history(status));
    let every = show_span(Duration::from_secs(reply.prune_every_s));
    rows.push(("prune", format!("after a scheduled snapshot that deletes others, at most once in {every}")));
    rows.push((
        "verify",
        match reply.verify_bytes_per_day {
            0 => "not by itself: `snapshot.verify.bytes_per_day` is 0".to_owned(),
            bytes => format!("{} a day", rounded_bytes(bytes)),
        },
    ));
    rows.extend(retention.kept.iter().map(|one| ("keep", format!("{}  {}", one.snapshot, one.because.join(", ")))));
    rows.extend(retention.deleted.iter().map(|id| ("delete", id.clone())));
    rows.push(("would free", rounded_bytes(retention.bytes_freed)));
    rows.iter().map(|(name, value)| format!("{name:<14}{value}\n")).collect()
}

/// How it went so far.
pub(super) fn history(status: &SnapshotsStatus) -> Vec<(&'static str, String)> {
    let mut rows = Vec::new();
    if status.running {
        rows.push(("now", "a snapshot is being taken".to_owned()));
    }
    if let (Some(at), Some(id)) = (status.last_success_ns, &status.last_success) {
        rows.push(("last success", format!("{}: {id}", moment(at))));
    }
    if let (Some(at), Some(why)) = (status.last_failure_ns, &status.last_failure) {
        rows.push(("last failure", format!("{}: {why}", moment(at))));
    }
    rows
}

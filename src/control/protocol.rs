//! What goes over the control socket: the JSON of each request and answer, shared by server and client.
//!
//! Answers with a status other than 200 carry an [`ErrorReply`]. Sizes are bytes; fields say their unit otherwise.

use crate::daemon::quantity::rounded_bytes;
use crate::heat::TakenTrace;
use crate::jobs::cadence::SnapshotsStatus;
use crate::jobs::events::Event;
use crate::jobs::forecaster::ForecastStatus;
use crate::jobs::hydrate::HydrationStatus;
use crate::jobs::log_archive::LogArchiveStatus;
use crate::jobs::migrate::{Explanation, HeatRange, JournalEntry, Moment, MoverStatus, WhatIf};
use crate::policy::placement::{Reason, TierOutlook};
use crate::repository::Retention;
use crate::units::{TierId, WallNs};
use crate::volume::{Counters, LogStatus, TierStatus, VolumeStatus};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap};

pub const STATUS: &str = "/v1/status";
pub const TIERS: &str = "/v1/tiers";
pub const TOP: &str = "/v1/top";
pub const HEAT: &str = "/v1/heat";
pub const EXPLAIN: &str = "/v1/explain";
pub const WHY: &str = "/v1/why";
pub const PLAN: &str = "/v1/plan";
pub const WHAT_IF: &str = "/v1/whatif";
pub const HISTORY: &str = "/v1/history";
pub const PIN: &str = "/v1/pin";
pub const UNPIN: &str = "/v1/unpin";
pub const CHECK: &str = "/v1/check";
pub const SETTLE: &str = "/v1/settle";
pub const CHECKPOINT: &str = "/v1/checkpoint";
pub const TRACE: &str = "/v1/trace";
pub const TRACE_START: &str = "/v1/trace/start";
pub const TRACE_STOP: &str = "/v1/trace/stop";
pub const STOP: &str = "/v1/stop";
pub const SNAPSHOTS: &str = "/v1/snapshots";
pub const SCHEDULE: &str = "/v1/schedule";
pub const EVENTS: &str = "/v1/events";
pub const JOBS: &str = "/v1/jobs";
pub const METRICS: &str = "/metrics";

/// One line: what is wrong with the request, or what failed.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct ErrorReply {
    pub error: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum Health {
    Healthy,
    /// It serves, but something is wrong; the reasons say what.
    Degraded,
    /// The log failed: reads are served, writes are refused until the daemon is started again.
    ReadOnly,
}

impl std::fmt::Display for Health {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Health::Healthy => "healthy",
            Health::Degraded => "degraded",
            Health::ReadOnly => "read-only",
        })
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct StatusReply {
    pub name: String,
    pub version: String,
    pub mount: String,
    pub pid: u32,
    pub uptime_s: u64,
    pub health: Health,
    /// Why it is not healthy; empty when it is.
    pub reasons: Vec<String>,
    /// While stopping: what it waits for.
    pub stopping: Option<String>,
    /// Inodes that the kernel knows at this moment.
    pub nodes: u64,
    /// Files whose identity or content cannot be trusted, met since the mount.
    pub untrusted_files: u64,
    /// What would be lost if the fastest tier died now: blocks that lie nowhere else, by the latest plan, and the log's live records.
    pub only_on_fastest_bytes: u64,
    /// What is odd about placement, but keeps nothing from working.
    pub warnings: Vec<String>,
    pub volume: VolumeStatus,
    pub mover: MoverStatus,
    #[serde(default)]
    pub snapshots: SnapshotsStatus,
    /// Of a clone.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub hydration: Option<HydrationStatus>,
    /// Where full segments of the log are kept.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub log_archive: Option<LogArchiveStatus>,
}

impl StatusReply {
    /// Bytes that exist on the fastest tier only.
    pub fn only_on_fastest(volume: &VolumeStatus, mover: &MoverStatus, block_bytes: u64) -> u64 {
        let blocks = match (mover.tiers.first(), volume.tiers.first()) {
            (Some(fastest), _) => fastest.sole_blocks,
            // Nothing has been planned yet: copies are not told apart, so all count.
            (None, fastest) => fastest.map_or(0, |fastest| fastest.blocks),
        };
        blocks * block_bytes + volume.log.live_bytes
    }

    /// Pins that a tier cannot hold.
    pub fn warn(volume: &VolumeStatus, mover: &MoverStatus, block_bytes: u64) -> Vec<String> {
        let too_many = |(tier, known): (&TierStatus, &TierOutlook)| {
            let pinned = known.pinned_blocks * block_bytes;
            (pinned > tier.budget_bytes).then(|| {
                format!(
                    "{} are pinned to {}, which may hold {}: the rest stays where it is",
                    rounded_bytes(pinned),
                    tier.name,
                    rounded_bytes(tier.budget_bytes)
                )
            })
        };
        volume.tiers.iter().zip(&mover.tiers).filter_map(too_many).collect()
    }

    /// Health and its reasons, from what the engine, the namespace and the keeper of snapshots say.
    pub fn judge(volume: &VolumeStatus, untrusted_files: u64, snapshots: &SnapshotsStatus) -> (Health, Vec<String>) {
        let mut reasons = volume.degraded.clone();
        reasons.extend(snapshots.complaints());
        if untrusted_files > 0 {
            reasons.push(format!(
                "{untrusted_files} files cannot be trusted (see the daemon's log); reading them gives EIO"
            ));
        }
        match &volume.read_only {
            Some(why) => {
                reasons.insert(0, why.clone());
                (Health::ReadOnly, reasons)
            }
            None if reasons.is_empty() => (Health::Healthy, reasons),
            None => (Health::Degraded, reasons),
        }
    }
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TiersReply {
    pub tiers: Vec<TierStatus>,
}

/// Counters at one moment; rates come from two of them.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TopReply {
    /// On the daemon's monotonic clock.
    pub uptime_us: u64,
    pub counters: Counters,
    pub tiers: Vec<TierStatus>,
    pub log: LogStatus,
}

/// `/v1/heat?path=P`: a file, the files of a directory, or without a path the whole volume. Paths are absolute below the mount, or relative to it.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct HeatQuery {
    #[serde(default)]
    pub path: String,
    /// At most so many files, hottest first.
    pub files: Option<usize>,
    /// Stretches that each file is divided into.
    pub stretches: Option<u64>,
    /// The shards as well, if the path is a file's.
    #[serde(default)]
    pub shards: bool,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeatReply {
    pub mount: String,
    /// Names of the tiers, fastest first.
    pub tiers: Vec<String>,
    pub block_bytes: u32,
    /// Blocks of a cold shard.
    pub shard_blocks: u64,
    pub epoch_s: u64,
    pub forecast: ForecastStatus,
    /// Hottest first.
    pub files: Vec<HeatFile>,
    /// Files that were left out.
    pub more_files: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeatFile {
    /// Relative to the mount.
    pub path: String,
    /// The database's name for it. The command line fills it in, which may read the mount.
    #[serde(default)]
    pub relation: Option<String>,
    pub blocks: u64,
    /// Predicted accesses per epoch, of all blocks together.
    pub heat: f64,
    /// Equal stretches.
    pub ranges: Vec<HeatRange>,
    /// If asked for: what heat is kept by, in order. Where the file is hot one block each, elsewhere runs of `shard_blocks`, or several such runs without any heat.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub shards: Vec<HeatRange>,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct ExplainQuery {
    pub path: String,
    /// In bytes.
    #[serde(default)]
    pub offset: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExplainReply {
    /// Relative to the mount.
    pub path: String,
    pub offset: u64,
    pub size_bytes: u64,
    pub block_bytes: u64,
    /// Names of the tiers, fastest first: what the ids in the history stand for.
    pub tiers: Vec<String>,
    /// Path of the file that the block changed places with, if it did.
    pub exchanged_path: Option<String>,
    pub mount: String,
    pub epoch_s: u64,
    pub explanation: Explanation,
}

/// `/v1/why?path=P`: decisions about a file, the files of a directory, or all, newest first.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhyQuery {
    #[serde(default)]
    pub path: String,
    /// At most so many entries.
    pub count: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyReply {
    pub mount: String,
    /// Names of the tiers, fastest first.
    pub tiers: Vec<String>,
    pub block_bytes: u64,
    pub entries: Vec<WhyEntry>,
}

/// A decision about neighbouring blocks.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhyEntry {
    /// Relative to the mount.
    pub path: String,
    /// From the entry's block on.
    pub blocks: u64,
    pub entry: JournalEntry,
}

/// How heat and tiers were over time.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HistoryReply {
    /// Names of the tiers, fastest first.
    pub tiers: Vec<String>,
    /// Oldest first; the last one is now.
    pub moments: Vec<Moment>,
    /// Paths relative to the mount, by file id.
    pub paths: HashMap<String, String>,
}

/// `/v1/plan`: what the next plan would do.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PlanQuery {
    /// At most so many moves, those that save most first.
    pub count: Option<usize>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlanReply {
    /// Names of the tiers, fastest first.
    pub tiers: Vec<String>,
    pub epoch_s: u64,
    pub due_in_s: u64,
    pub blocks: usize,
    pub copied_bytes: u64,
    /// Latency of an epoch's expected accesses as things are, and what of it the plan saves, in microseconds.
    pub cost_us: f64,
    pub saved_us: f64,
    pub moves: Vec<PlannedMove>,
    /// Moves that were left out.
    pub more_moves: usize,
}

/// Blocks of one file that would go the same way for the same kind of reason.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct PlannedMove {
    /// Relative to the mount.
    pub path: String,
    pub from: TierId,
    pub to: TierId,
    pub blocks: u64,
    pub copied_bytes: u64,
    /// Latency saved per epoch, in microseconds; negative for a demotion.
    pub saved_us: f64,
    /// Of the first of them.
    pub reason: Reason,
}

/// `/v1/whatif?changes=nvme=+1073741824,sata=0`: budgets in bytes, absolute or with a sign.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct WhatIfQuery {
    #[serde(default)]
    pub changes: String,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhatIfReply {
    /// Names of the tiers, fastest first.
    pub tiers: Vec<String>,
    pub epoch_s: u64,
    pub found: WhatIf,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct PinRequest {
    /// A file or a directory.
    pub path: String,
    /// None: the fastest tier. Not allowed when unpinning.
    #[serde(default)]
    pub tier: Option<String>,
}

/// Starts an errand whose result is a [`crate::jobs::check::CheckReport`].
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct CheckRequest {
    /// Also read every block and every live record.
    #[serde(default)]
    pub deep: bool,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum JobState {
    Running,
    Done,
    Failed,
}

/// A long errand, polled at `/v1/jobs/ID`.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct JobReply {
    pub id: u64,
    pub kind: String,
    pub state: JobState,
    /// Bytes done of `total_bytes`; an estimate, since the volume is written meanwhile.
    pub done_bytes: u64,
    pub total_bytes: u64,
    pub elapsed_ms: u64,
    /// Why it failed.
    pub error: Option<String>,
    /// What it found, when it found something to say.
    pub result: Option<serde_json::Value>,
}

/// POST `/v1/snapshots`: takes one.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct SnapshotRequest {
    #[serde(default)]
    pub labels: BTreeMap<String, String>,
}

/// `/v1/schedule`: when the next snapshots are due, and how the last ones went.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ScheduleReply {
    /// The volume's id, as snapshots name it.
    pub volume: String,
    pub status: SnapshotsStatus,
    pub upcoming_ns: Vec<WallNs>,
    pub keep: Retention,
    pub prune_every_s: u64,
    pub verify_bytes_per_day: u64,
}

/// `/v1/events?follow=true`: the latest events, and with `follow` those that come. One [`EventLine`] per line; empty lines mean nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct EventsQuery {
    #[serde(default)]
    pub follow: bool,
}

#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(untagged)]
pub enum EventLine {
    /// The last line, when the daemon ends it.
    Ended {
        ended: String,
    },
    Event(Event),
}

/// Begins to record a trace of accesses, taken bit by bit from `/v1/trace`.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct TraceRequest {
    /// At most so many records.
    pub records: u64,
}

/// The end of a recording.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct TracedFiles {
    /// What was not taken yet.
    pub rest: TakenTrace,
    /// Paths relative to the mount, by the number that records name the file by.
    pub paths: HashMap<u64, String>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct StopRequest {
    /// Detach the mount even while it is busy.
    #[serde(default)]
    pub force: bool,
}

/// A request was carried out; one line about it.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct DoneReply {
    pub message: String,
}

#[cfg(test)]
mod tests {
    use super::{ErrorReply, Health, JobReply, JobState, StatusReply, StopRequest};
    use crate::jobs::cadence::SnapshotsStatus;
    use crate::jobs::log_archive::LogArchiveStatus;
    use crate::jobs::migrate::MoverStatus;
    use crate::volume::VolumeStatus;

    #[test]
    fn health_is_judged() {
        let (healthy, fine) = (VolumeStatus::default(), SnapshotsStatus::default());
        let late = SnapshotsStatus { failures_in_row: 1, ..SnapshotsStatus::default() };
        assert_eq!(StatusReply::judge(&healthy, 0, &late).0, Health::Degraded);
        assert_eq!(StatusReply::judge(&healthy, 0, &fine), (Health::Healthy, vec![]));
        let degraded = VolumeStatus { degraded: vec!["tier hdd: EIO".into()], ..VolumeStatus::default() };
        assert_eq!(StatusReply::judge(&degraded, 0, &fine), (Health::Degraded, vec!["tier hdd: EIO".into()]));
        assert_eq!(StatusReply::judge(&healthy, 2, &fine).0, Health::Degraded);
        let read_only = VolumeStatus { read_only: Some("log: EIO".into()), ..degraded };
        let (health, reasons) = StatusReply::judge(&read_only, 0, &fine);
        assert_eq!((health, reasons.len(), reasons[0].as_str()), (Health::ReadOnly, 2, "log: EIO"));
    }

    #[test]
    fn messages_survive_the_wire() {
        let job = JobReply {
            id: 7,
            kind: "settle".into(),
            state: JobState::Failed,
            done_bytes: 1,
            total_bytes: 2,
            elapsed_ms: 3,
            error: Some("no space left on any tier".into()),
            result: None,
        };
        let text = serde_json::to_string(&job).expect("encodes");
        assert_eq!(serde_json::from_str::<JobReply>(&text).expect("decodes"), job);
        assert!(text.contains("\"failed\""), "{text}");
        assert_eq!(serde_json::to_string(&Health::ReadOnly).expect("encodes"), "\"read-only\"");
        assert_eq!(serde_json::from_str::<StopRequest>("{}").expect("decodes"), StopRequest { force: false });
        assert!(serde_json::from_str::<StopRequest>("{\"farce\": true}").is_err());
        let status = StatusReply {
            name: "pg".into(),
            version: "0".into(),
            mount: "/m".into(),
            pid: 1,
            uptime_s: 2,
            health: Health::Degraded,
            reasons: vec!["x".into()],
            stopping: None,
            nodes: 3,
            untrusted_files: 0,
            only_on_fastest_bytes: 0,
            warnings: vec![],
            volume: VolumeStatus::default(),
            mover: MoverStatus::default(),
            snapshots: SnapshotsStatus::default(),
            hydration: None,
            log_archive: Some(LogArchiveStatus::default()),
        };
        let value = serde_json::to_value(&status).expect("encodes");
        let back: StatusReply = serde_json::from_value(value.clone()).expect("decodes");
        assert_eq!(serde_json::to_value(back).expect("encodes"), value);
        assert_eq!(serde_json::to_value(ErrorReply { error: "e".into() }).expect("encodes")["error"], "e");
    }
}

//! The volume's state as Prometheus text. Labels are names of tiers and of predictors, so the number of series is bounded.

use super::protocol::{Health, StatusReply};
use crate::units::WallNs;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::Histogram;
use prometheus_client::registry::Registry;
use std::fmt;
use std::sync::atomic::AtomicU64;

type Labels = Vec<(&'static str, String)>;
type Level = Gauge<f64, AtomicU64>;

/// All metrics of one moment.
pub fn text(status: &StatusReply) -> Result<String, fmt::Error> {
    let mut registry = Registry::with_prefix("heatfs");
    health(&mut registry, status);
    mover(&mut registry, status);
    forecast(&mut registry, status);
    tiers(&mut registry, status);
    log(&mut registry, status);
    marks(&mut registry, status);
    snapshots(&mut registry, status);
    stalls(&mut registry, status);
    counters(&mut registry, status);
    hydration(&mut registry, status);
    log_archive(&mut registry, status);
    let mut text = String::new();
    encode(&mut text, &registry)?;
    Ok(text)
}

fn level(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let gauge = Level::default();
    gauge.set(approximate(value));
    registry.register(name, help, gauge);
}

fn count(registry: &mut Registry, name: &str, help: &str, value: u64) {
    let counter = Counter::<u64>::default();
    counter.inc_by(value);
    registry.register(name, help, counter);
}

/// Prometheus knows only doubles; above 2^53 the last digits do not matter.
#[expect(clippy::cast_precision_loss)]
fn approximate(value: u64) -> f64 {
    value as f64
}

fn health(registry: &mut Registry, status: &StatusReply) {
    let info = Family::<Labels, Level>::default();
    info.get_or_create(&vec![("version", status.version.clone())]).set(1.0);
    registry.register("build", "Always 1; the label says which version serves", info);
    level(registry, "healthy", "1: healthy, 0: degraded or read-only", u64::from(status.health == Health::Healthy));
    level(
        registry,
        "read_only",
        "1: the log failed and writes are refused",
        u64::from(status.health == Health::ReadOnly),
    );
    level(registry, "uptime_seconds", "Since the daemon mounted the volume", status.uptime_s);
    level(registry, "nodes", "Inodes that the kernel knows", status.nodes);
    level(registry, "files", "Files of the volume", status.volume.files);
    level(registry, "untrusted_files", "Files met whose identity or content cannot be trusted", status.untrusted_files);
    level(registry, "overlay_extents", "Extents written and in no base yet", status.volume.overlay_extents);
    level(registry, "overlay_memory_bytes", "Memory of the overlay", status.volume.overlay_memory_bytes);
    level(registry, "map_memory_bytes", "Memory of the block map", status.volume.map_memory_bytes);
    let reserve = status.volume.state_reserve;
    level(registry, "state_reserve_bytes", "Room kept for the volume's own state", reserve.held_bytes);
    level(registry, "state_reserve_wanted_bytes", "What that should be", reserve.whole_bytes);
    let rollback = status.volume.rollback.as_ref();
    let (open, kept) = (u64::from(rollback.is_some()), rollback.map_or(0, |rollback| rollback.kept_bytes));
    level(registry, "rollback_open", "1: the volume was rolled back, which is neither confirmed nor undone", open);
    level(registry, "rollback_kept_bytes", "What the volume was before that takes so much", kept);
}

fn hydration(registry: &mut Registry, status: &StatusReply) {
    let counters = &status.volume.counters;
    let left = status.volume.in_repository_bytes;
    level(registry, "in_repository_bytes", "Of a clone: blocks that are still in the repository", left);
    for (name, help, value) in [
        ("repository_reads", "Reads of the repository that the volume was made from", counters.repository_reads),
        ("repository_read_bytes", "Bytes read from it", counters.repository_read_bytes),
        ("repository_read_microseconds", "Time that readers waited for it", counters.repository_read_us),
        ("repository_errors", "Reads of it that failed", counters.repository_errors),
        ("hydrated_blocks", "Blocks brought from it to a tier ahead of need", counters.hydrated_blocks),
        ("hydrated_bytes", "Bytes written for that", counters.hydrated_bytes),
    ] {
        count(registry, name, help, value);
    }
    if let Some(hydration) = &status.hydration {
        let total = hydration.total_bytes;
        level(registry, "clone_bytes", "Of a clone: what was in the repository at first", total);
        let rate = hydration.bytes_per_second;
        level(registry, "hydration_bytes_per_second", "How fast blocks leave the repository", rate);
        let failed = hydration.failed;
        level(registry, "hydration_failed_blocks", "Blocks that could not be read there in the last pass", failed);
    }
}

fn log_archive(registry: &mut Registry, status: &StatusReply) {
    let Some(archive) = &status.log_archive else { return };
    level(
        registry,
        "log_archive_segments",
        "Full segments of the log that are kept on the slowest tier",
        archive.segments,
    );
    level(registry, "log_archive_bytes", "What they take", archive.bytes);
    count(registry, "log_archive_missed_segments", "Segments that could not be kept", archive.missed_segments);
}

fn tiers(registry: &mut Registry, status: &StatusReply) {
    let of_tier = |value: fn(&crate::volume::TierStatus) -> u64| {
        let family = Family::<Labels, Level>::default();
        for tier in &status.volume.tiers {
            family.get_or_create(&vec![("tier", tier.name.clone())]).set(approximate(value(tier)));
        }
        family
    };
    registry.register("tier_total_bytes", "Size of the backing filesystem", of_tier(|tier| tier.total_bytes));
    registry.register("tier_available_bytes", "Room on the backing filesystem", of_tier(|tier| tier.available_bytes));
    registry.register("tier_budget_bytes", "What may be stored on the tier", of_tier(|tier| tier.budget_bytes));
    registry.register("tier_used_bytes", "What is stored on the tier", of_tier(|tier| tier.used_bytes));
    registry.register("tier_blocks", "Blocks whose current image is on the tier", of_tier(|tier| tier.blocks));
    registry.register("tier_copies", "Valid copies of blocks that are on a faster tier", of_tier(|tier| tier.copies));
    let counters = &status.volume.counters;
    let per_tier = |values: &[u64]| {
        let family = Family::<Labels, Counter<u64>>::default();
        for (tier, value) in status.volume.tiers.iter().zip(values) {
            family.get_or_create(&vec![("tier", tier.name.clone())]).inc_by(*value);
        }
        family
    };
    registry.register("base_reads", "Reads of a tier that applications waited for", per_tier(&counters.base_reads));
    registry.register("base_read_bytes", "Bytes of these reads", per_tier(&counters.base_read_bytes));
    registry.register("base_read_microseconds", "Time in these reads", per_tier(&counters.base_read_us));
    let reads = per_tier(&counters.background_reads);
    registry.register("background_reads", "Reads of a tier by moves, snapshots and checks", reads);
    registry.register("background_read_bytes", "Bytes of these reads", per_tier(&counters.background_read_bytes));
    registry.register("base_read_errors", "Reads that a tier's device failed", per_tier(&counters.base_read_errors));
    registry.register(
        "base_reads_rescued",
        "Failed reads of a tier that a copy or the last snapshot answered",
        per_tier(&counters.base_reads_rescued),
    );
    registry.register(
        "base_pages_rewritten",
        "Pages written again after that",
        per_tier(&counters.base_pages_rewritten),
    );
    registry.register("base_writes", "Writes to a tier's device", per_tier(&counters.base_writes));
    registry.register("base_write_bytes", "Bytes written to a tier's device", per_tier(&counters.base_write_bytes));
}

fn mover(registry: &mut Registry, status: &StatusReply) {
    let mover = &status.mover;
    for (name, help, value) in [
        ("mover_plans", "Plans of placement", u64::from(mover.plans)),
        ("mover_moved_blocks", "Blocks moved between tiers", mover.moved_blocks),
        ("mover_moved_bytes", "Bytes moved between tiers", mover.moved_bytes),
        (
            "mover_refused_moves",
            "Moves given up because the block was written meanwhile or had no room",
            mover.refused_moves,
        ),
        ("mover_failed_moves", "Moves that failed", mover.failed_moves),
        ("mover_fast_lane_moves", "Blocks promoted between plans", mover.fast_lane_moves),
        (
            "coalesced_early_blocks",
            "Blocks coalesced because their records were read one by one",
            mover.coalesced_early,
        ),
        ("mover_paused_microseconds", "Time the mover waited because commits were slow", mover.paused_us),
    ] {
        count(registry, name, help, value);
    }
    level(
        registry,
        "only_on_fastest_tier_bytes",
        "Blocks and log records that would be lost with the fastest tier",
        status.only_on_fastest_bytes,
    );
    let coalesce_at = Level::default();
    coalesce_at.set(mover.coalesce_at_fill);
    registry.register("coalesce_at_fill", "Share of the log in use from which records go to their blocks", coalesce_at);
    level(registry, "pinned_files", "Files pinned to a tier", mover.pinned_files);
    let looked_at = mover.compaction.looked_at_bytes;
    level(registry, "compaction_looked_at_bytes", "Bytes of the slowest tier that compaction has read", looked_at);
    let passes = u64::from(mover.compaction.passes);
    level(registry, "compaction_passes", "Passes of compaction over the slowest tier since the mount", passes);
    level(registry, "heat_memory_bytes", "Memory of the counters of heat", mover.recorder.memory_bytes);
}

fn forecast(registry: &mut Registry, status: &StatusReply) {
    let forecast = &status.mover.forecast;
    let (hits, chosen) = (Family::<Labels, Level>::default(), Family::<Labels, Level>::default());
    for one in &forecast.contenders {
        let label = vec![("way", one.name.clone())];
        if let Some(share) = one.hits {
            hits.get_or_create(&label).set(share);
        }
        let is_used = one.chosen && forecast.off.is_none();
        chosen.get_or_create(&label).set(if is_used { 1.0 } else { 0.0 });
    }
    registry.register(
        "gate_hit_share",
        "Share of misses that each way of filling the fastest tier would have hit",
        hits,
    );
    registry.register("gate_chosen", "1: this way is used", chosen);
    if let Some(share) = forecast.real_hits {
        let real = Level::default();
        real.set(share);
        registry.register("gate_real_hit_share", "Share of misses that the fastest tier served", real);
    }
    level(registry, "forecast_running", "1: heat is forecast, 0: it is plain decay", u64::from(forecast.off.is_none()));
    level(registry, "forecast_memory_bytes", "Memory of the forecast's records", forecast.memory_bytes);
    level(
        registry,
        "staged_blocks",
        "Blocks on the fastest tier because they were just missed",
        forecast.staged_blocks,
    );
    for (name, help, value) in [
        ("gate_switches", "Changes of the way that is used", u64::from(forecast.switches)),
        ("forecast_epochs", "Epochs that the forecast has seen", forecast.epochs),
        ("forecast_cpu_milliseconds", "Processor time of the forecast", forecast.cpu_ms),
        ("forecast_dropped_accesses", "Accesses that the forecast did not hear of", status.mover.recorder.feed_dropped),
        ("mover_staged_moves", "Blocks staged because they were missed", status.mover.staged_moves),
    ] {
        count(registry, name, help, value);
    }
}

fn log(registry: &mut Registry, status: &StatusReply) {
    let log = &status.volume.log;
    level(registry, "log_size_bytes", "Size of the write log", log.size_bytes);
    level(registry, "log_used_bytes", "The log in use", log.used_bytes);
    level(registry, "log_live_bytes", "Records that are in no base yet", log.live_bytes);
    level(registry, "log_free_segments", "Segments ready to be written", log.free_segments.into());
}

fn marks(registry: &mut Registry, status: &StatusReply) {
    let marks = &status.volume.marks;
    level(registry, "marks_pending", "Snapshots in the making", marks.pending);
    level(registry, "marks_pinned_log_bytes", "Records that only snapshots in the making need", marks.pinned_log_bytes);
    level(registry, "marks_staged_bytes", "Bytes saved for snapshots in the making", marks.staged_bytes);
    level(registry, "marks_staging_used_bytes", "What the files with those bytes take", marks.staging_used_bytes);
    level(registry, "marks_stall_max_microseconds", "Longest time that a mark held writers up", marks.stall_us_max);
    level(registry, "change_memory_bytes", "Memory of the map of changed pages", status.volume.change_memory_bytes);
    count(registry, "marks_taken", "Snapshots begun", marks.taken);
    count(registry, "marks_failed", "Snapshots that the engine gave up", marks.failed);
}

/// From the engine's own buckets, by powers of two: each stall counts as the end of its bucket, so the sum is an upper bound.
fn stalls(registry: &mut Registry, status: &StatusReply) {
    let stalls = &status.volume.marks.stalls;
    let end_us = |bucket: usize| approximate(1u64.checked_shl(u32::try_from(bucket).unwrap_or(63)).unwrap_or(u64::MAX));
    let histogram = Histogram::new((0..stalls.len()).map(end_us).collect::<Vec<_>>());
    for (bucket, count) in stalls.iter().enumerate() {
        (0..*count).for_each(|_| histogram.observe(end_us(bucket)));
    }
    registry.register("marks_stall_microseconds", "How long marks held writers up", histogram);
}

/// Seconds since 1970, as Prometheus has its moments; absent where there was none.
fn moment(registry: &mut Registry, name: &str, help: &str, at: Option<WallNs>) {
    if let Some(at) = at {
        level(registry, name, help, u64::try_from(at.0 / 1_000_000_000).unwrap_or(0));
    }
}

fn snapshots(registry: &mut Registry, status: &StatusReply) {
    let of = &status.snapshots;
    if of.repository.is_none() {
        return;
    }
    for (name, help, value) in [
        ("snapshots_taken", "Snapshots stored in the repository", of.taken),
        ("snapshots_failed", "Snapshots that were begun, or due, and failed", of.failed),
        ("snapshots_deleted", "Snapshots deleted because no rule keeps them", of.deleted),
        ("snapshot_milliseconds", "Time from the beginning of snapshots to their being stored", of.elapsed_ms),
        ("snapshot_read_bytes", "Bytes read of the volume for snapshots", of.read_bytes),
        ("snapshot_new_bytes", "Of these, neither zero nor in the repository before", of.new_bytes),
        ("snapshot_stored_bytes", "Bytes that snapshots added to the repository", of.stored_bytes),
        ("snapshot_checked_pages", "Pages whose PostgreSQL checksum was verified", of.checked_pages),
        ("prunes", "Prunes of the repository", of.prunes),
        ("prunes_failed", "Prunes that failed", of.prune_failures),
        ("pruned_bytes", "Bytes that prunes freed", of.pruned_bytes),
        ("verified_packs", "Packs of the repository that were read and checked", of.verified_packs),
        ("verified_bytes", "Bytes of these", of.verified_bytes),
        ("verifications_failed", "Verifications that could not be done", of.verify_failures),
    ] {
        count(registry, name, help, value);
    }
    for (name, help, value) in [
        ("snapshot_running", "1: a snapshot is being taken", u64::from(of.running)),
        ("snapshot_failures_in_row", "Scheduled snapshots that failed since one succeeded", of.failures_in_row.into()),
        ("snapshot_last_duration_milliseconds", "How long the last snapshot took", of.last_elapsed_ms),
        ("snapshot_bad_pages", "Pages with a wrong checksum in the latest snapshot", of.bad_pages),
        ("repository_damaged_packs", "Packs that were damaged when they were verified last", of.damaged_packs),
        ("repository_snapshots", "Snapshots in the repository", of.repository_snapshots),
    ] {
        level(registry, name, help, value);
    }
    if let Some(bytes) = of.repository_bytes {
        level(registry, "repository_bytes", "Size of the repository's packs and index", bytes);
    }
    for (name, help, at) in [
        ("snapshot_last_success_timestamp_seconds", "When the latest snapshot was taken", of.last_success_ns),
        ("snapshot_last_failure_timestamp_seconds", "When a snapshot failed last", of.last_failure_ns),
        ("snapshot_next_timestamp_seconds", "When the next snapshot is due", of.next_ns),
        ("repository_last_verified_timestamp_seconds", "When a pack was verified last", of.last_verified_ns),
    ] {
        moment(registry, name, help, at);
    }
}

fn counters(registry: &mut Registry, status: &StatusReply) {
    let counters = &status.volume.counters;
    for (name, help, value) in [
        ("reads", "Reads that missed the kernel's page cache", counters.reads),
        ("read_bytes", "Bytes of those reads", counters.read_bytes),
        ("writes", "Writes", counters.writes),
        ("write_bytes", "Bytes written by users of the mount", counters.write_bytes),
        ("syncs", "fsync and fdatasync calls", counters.syncs),
        ("log_groups", "Device writes of the log", counters.log_groups),
        ("log_written_bytes", "Bytes written to the log, headers and padding included", counters.log_written_bytes),
        ("log_payload_bytes", "Bytes of payload written to the log", counters.log_payload_bytes),
        (
            "log_replaced_bytes",
            "Bytes that newer ones replaced before they were written to the log",
            counters.log_replaced_bytes,
        ),
        (
            "reads_from_payload_cache",
            "Reads answered from recent payloads in memory",
            counters.reads_from_payload_cache,
        ),
        ("reads_from_log", "Reads answered from the log", counters.reads_from_log),
        ("coalesced_blocks", "Blocks whose records were applied to their base", counters.coalesced_blocks),
        ("premigrated_blocks", "Blocks copied to the slowest tier ahead of sinking there", counters.premigrated_blocks),
        ("zero_blocks", "Blocks that lost their image because it was nothing but zeros", counters.zero_blocks),
        ("promoted_blocks", "Blocks moved to a faster tier", counters.promoted_blocks),
        ("demoted_blocks", "Blocks moved to a slower tier", counters.demoted_blocks),
        ("demoted_by_flip_blocks", "Of those, blocks that had a valid copy there", counters.demoted_by_flip_blocks),
        (
            "moved_from_memory_blocks",
            "Blocks promoted from what a reader had just read, without reading the slow tier again",
            counters.moved_from_memory_blocks,
        ),
        ("checkpoints", "Checkpoints", counters.checkpoints),
        ("checkpoint_microseconds", "Time in checkpoints", counters.checkpoint_us),
        ("writer_waits", "Writes that waited for room in the log", counters.writer_waits),
    ] {
        count(registry, name, help, value);
    }
}

#[cfg(test)]
mod tests {
    use super::text;
    use crate::control::protocol::{Health, StatusReply};
    use crate::jobs::cadence::SnapshotsStatus;
    use crate::jobs::log_archive::LogArchiveStatus;
    use crate::jobs::migrate::MoverStatus;
    use crate::units::WallNs;
    use crate::volume::{Counters, LogStatus, MarkStatus, TierStatus, VolumeStatus};

    #[test]
    fn text_for_prometheus() {
        let tier = |name: &str, used_bytes| TierStatus { name: name.into(), used_bytes, ..TierStatus::default() };
        let counters = Counters { reads: 12, base_reads: vec![3, 4], ..Counters::default() };
        let volume = VolumeStatus {
            marks: MarkStatus { stalls: vec![0, 0, 2, 1], ..MarkStatus::default() },
            tiers: vec![tier("nvme", 4096), tier("hdd", 0)],
            log: LogStatus { used_bytes: 77, ..LogStatus::default() },
            counters,
            ..VolumeStatus::default()
        };
        let status = StatusReply {
            name: "pg".into(),
            version: "9.9".into(),
            mount: "/m".into(),
            pid: 1,
            uptime_s: 5,
            health: Health::Degraded,
            reasons: vec![],
            stopping: None,
            nodes: 0,
            untrusted_files: 0,
            only_on_fastest_bytes: 8192,
            warnings: vec![],
            volume,
            mover: MoverStatus::default(),
            snapshots: SnapshotsStatus {
                repository: Some("/r".into()),
                taken: 4,
                bad_pages: 2,
                last_success_ns: Some(WallNs(1_700_000_000_500_000_000)),
                ..SnapshotsStatus::default()
            },
            hydration: None,
            log_archive: Some(LogArchiveStatus { segments: 9, ..LogArchiveStatus::default() }),
        };
        let text = text(&status).expect("encoded");
        for line in [
            "# TYPE heatfs_reads counter",
            "heatfs_reads_total 12",
            "heatfs_tier_used_bytes{tier=\"nvme\"} 4096.0",
            "heatfs_base_reads_total{tier=\"hdd\"} 4",
            "heatfs_log_used_bytes 77.0",
            "heatfs_healthy 0.0",
            "heatfs_only_on_fastest_tier_bytes 8192.0",
            "heatfs_marks_stall_microseconds_bucket{le=\"4.0\"} 2",
            "heatfs_marks_stall_microseconds_count 3",
            "heatfs_snapshots_taken_total 4",
            "heatfs_snapshot_bad_pages 2.0",
            "heatfs_log_archive_segments 9.0",
            "heatfs_snapshot_last_success_timestamp_seconds 1700000000.0",
            "heatfs_build{version=\"9.9\"} 1.0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line} is not in\n{text}");
        }
    }
}

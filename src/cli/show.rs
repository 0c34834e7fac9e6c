//! Tables and lines for people.

use super::events::moment;
use crate::control::protocol::StatusReply;
use crate::daemon::quantity::{rounded_bytes, show_span};
use crate::jobs::cadence::SnapshotsStatus;
use crate::jobs::forecaster::ForecastStatus;
use crate::jobs::hydrate::HydrationStatus;
use crate::jobs::log_archive::LogArchiveStatus;
use crate::volume::{Counters, RollbackStatus, TierStatus};
use comfy_table::{CellAlignment, Table, TableStyle};
use std::fmt::Write;
use std::time::Duration;

/// A table without rules; columns after the first are numbers and aligned right, but for words.
pub(super) fn table(header: &[&str], rows: Vec<Vec<String>>) -> String {
    let mut table = Table::new();
    table.load_style(TableStyle::new()).set_header(header.to_vec());
    for row in rows {
        table.add_row(row);
    }
    for (column, name) in table.column_iter_mut().zip(header).skip(1) {
        if !["path", "chosen at the end"].contains(name) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
    format!("{}\n", table.trim_fmt())
}

/// `part` of `whole` in percent, with one decimal; a dash when there is no whole.
pub(super) fn share(part: u64, whole: u64) -> String {
    if whole == 0 {
        return "-".to_owned();
    }
    let tenths = u128::from(part) * 1000 / u128::from(whole);
    format!("{}.{} %", tenths / 10, tenths % 10)
}

pub(super) fn tiers(tiers: &[TierStatus]) -> String {
    let row = |tier: &TierStatus| {
        vec![
            tier.name.clone(),
            rounded_bytes(tier.used_bytes),
            rounded_bytes(tier.budget_bytes),
            share(tier.used_bytes, tier.budget_bytes),
            tier.blocks.to_string(),
            tier.copies.to_string(),
            rounded_bytes(tier.available_bytes),
            tier.path.clone(),
        ]
    };
    let header = ["tier", "used", "budget", "full", "blocks", "copies", "room on device", "path"];
    table(&header, tiers.iter().map(row).collect())
}

pub(super) fn status(status: &StatusReply) -> String {
    let volume = &status.volume;
    let mut text = String::new();
    let mut line = |name: &str, value: String| {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<12}{value}");
    };
    line("volume", format!("{} on {}", status.name, status.mount));
    line("health", status.health.to_string());
    for reason in &status.reasons {
        line("", reason.clone());
    }
    if let Some(waiting) = &status.stopping {
        line("stopping", waiting.clone());
    }
    line(
        "daemon",
        format!(
            "pid {}, up {}, version {}",
            status.pid,
            show_span(Duration::from_secs(status.uptime_s)),
            status.version
        ),
    );
    line("files", format!("{} ({} known to the kernel)", volume.files, status.nodes));
    let log = &volume.log;
    let fill = share(log.used_bytes, log.size_bytes);
    line(
        "log",
        format!(
            "{} of {} in use ({fill}), {} not in a base yet",
            rounded_bytes(log.used_bytes),
            rounded_bytes(log.size_bytes),
            rounded_bytes(log.live_bytes)
        ),
    );
    made_of(status, &mut line);
    if let Some(fastest) = volume.tiers.first() {
        let only = rounded_bytes(status.only_on_fastest_bytes);
        line(
            "at risk",
            format!("{only} of content exist on {} alone: blocks without a copy, records of the log", fastest.name),
        );
    }
    for warning in &status.warnings {
        line("warning", warning.clone());
    }
    if let Some(value) = snapshots(&status.snapshots) {
        line("snapshots", value);
    }
    if let Some(archive) = &status.log_archive {
        line("log archive", log_archive(archive));
    }
    line(
        "memory",
        format!(
            "map {}, overlay {}",
            rounded_bytes(volume.map_memory_bytes),
            rounded_bytes(volume.overlay_memory_bytes)
        ),
    );
    for (name, value) in counters(&volume.counters).into_iter().chain(forecast(&status.mover.forecast)) {
        line(name, value);
    }
    text + &tiers(&volume.tiers)
}

/// How much of the log is kept, and what is missing.
fn log_archive(archive: &LogArchiveStatus) -> String {
    let mut text = format!("{} segments in {}", archive.segments, rounded_bytes(archive.bytes));
    if archive.missed_segments > 0 {
        text += &format!(", {} missing since the mount", archive.missed_segments);
    }
    if let Some(why) = &archive.failure {
        text += &format!("; the latest: {why}");
    }
    text
}

/// Whether there are any, how old the latest is, and when the next one comes.
fn snapshots(status: &SnapshotsStatus) -> Option<String> {
    status.repository.as_ref()?;
    let mut text = match status.last_success_ns {
        Some(at) => format!("the latest of {}", moment(at)),
        None => "none so far".to_owned(),
    };
    if status.running {
        text += ", one is being taken";
    }
    if let Some(next) = status.next_ns {
        text += &format!(", the next at {}", moment(next));
    }
    if let (Some(at), true) = (status.last_failure_ns, status.last_failure_ns > status.last_success_ns) {
        let why = status.last_failure.as_deref().unwrap_or_default();
        text += &format!("; failed at {}: {why}", moment(at));
    }
    Some(text)
}

/// Of a volume that was made of a snapshot, or rolled back to one.
fn made_of(status: &StatusReply, line: &mut impl FnMut(&str, String)) {
    if let Some(rollback) = &status.volume.rollback {
        line("rolled back", rolled_back(rollback));
    }
    if let Some(clone) = &status.hydration {
        line("repository", hydration(clone));
        if let Some(why) = &clone.holding {
            line("", format!("the snapshot is still held by {}: {why}", clone.reference));
        }
    }
}

/// What is still to be decided.
fn rolled_back(rollback: &RollbackStatus) -> String {
    format!(
        "to snapshot {} at {}; what the volume was before takes {}: `heatfs rollback --confirm` gives that up, `--undo` brings it back",
        rollback.snapshot,
        moment(rollback.at),
        rounded_bytes(rollback.kept_bytes)
    )
}

/// How far a clone is on its way from the repository.
fn hydration(clone: &HydrationStatus) -> String {
    let (total, from) = (rounded_bytes(clone.total_bytes), format!("{} ({})", clone.repository, clone.snapshot));
    if clone.left_bytes == 0 {
        return format!("all of {total} brought from {from}");
    }
    let left = format!("{} of {total} still in {from}", rounded_bytes(clone.left_bytes));
    let damaged = match clone.failed {
        0 => String::new(),
        failed => format!("; {failed} blocks cannot be read there"),
    };
    match clone.eta_s {
        Some(seconds) => {
            let (rate, eta) = (rounded_bytes(clone.bytes_per_second), show_span(Duration::from_secs(seconds)));
            format!("{left}, {rate}/s, {eta} left{damaged}")
        }
        None => format!("{left}{damaged}"),
    }
}

/// A share in percent, with one decimal; a dash when it is not known.
pub(super) fn percent(share: Option<f64>) -> String {
    share.map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
}

/// Who is believed about heat, and how the others do.
pub(super) fn forecast(forecast: &ForecastStatus) -> Vec<(&'static str, String)> {
    let mut lines = vec![("heat by", format!("{}: {}", forecast.believed(), forecast.because()))];
    if forecast.off.is_some() {
        return lines;
    }
    let scores = forecast.contenders.iter().filter(|one| one.hits.is_some()).take(5);
    let scores: Vec<String> = scores.map(|one| format!("{} {}", one.name, percent(one.hits))).collect();
    if !scores.is_empty() {
        let real = percent(forecast.real_hits);
        lines.push(("hits", format!("really {real}; would have been: {}", scores.join(", "))));
    }
    if forecast.barred_epochs > 0 {
        lines.push(("", format!("plain decay for {} more epochs at least", forecast.barred_epochs)));
    }
    if forecast.staging_blocks > 0 {
        lines.push(("staging", format!("{} of {} blocks", forecast.staged_blocks, forecast.staging_blocks)));
    }
    lines.push((
        "shards",
        format!(
            "{} with a record for each block, {} with one for all; {}",
            forecast.fine_shards,
            forecast.merged_shards,
            rounded_bytes(forecast.memory_bytes)
        ),
    ));
    lines.push(("model", format!("{}; {} epochs; {}", forecast.model, forecast.epochs, forecast.memory)));
    lines
}

fn counters(counters: &Counters) -> Vec<(&'static str, String)> {
    vec![
        ("reads", format!("{} ({})", counters.reads, rounded_bytes(counters.read_bytes))),
        (
            "writes",
            format!("{} ({}), {} waited", counters.writes, rounded_bytes(counters.write_bytes), counters.writer_waits),
        ),
        (
            "syncs",
            format!(
                "{} in {} log writes ({})",
                counters.syncs,
                counters.log_groups,
                rounded_bytes(counters.log_written_bytes)
            ),
        ),
        ("coalesced", format!("{} blocks", counters.coalesced_blocks)),
        (
            "moved",
            format!(
                "{} blocks up, {} down ({} without copying), {} copied ahead of going down",
                counters.promoted_blocks,
                counters.demoted_blocks,
                counters.demoted_by_flip_blocks,
                counters.premigrated_blocks
            ),
        ),
        ("compacted", format!("{} blocks of zeros lost their image", counters.zero_blocks)),
        (
            "checkpoints",
            format!("{} in {}", counters.checkpoints, show_span(Duration::from_micros(counters.checkpoint_us))),
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::{share, tiers};
    use crate::volume::TierStatus;

    #[test]
    fn shares() {
        assert_eq!(share(1, 3), "33.3 %");
        assert_eq!(share(0, 0), "-");
        assert_eq!(share(u64::MAX, u64::MAX), "100.0 %");
    }

    #[test]
    fn tier_rows() {
        let tier =
            TierStatus { name: "nvme".into(), used_bytes: 3 << 30, budget_bytes: 4 << 30, ..TierStatus::default() };
        let text = tiers(&[tier]);
        assert!(text.contains("nvme") && text.contains("3.0 GiB") && text.contains("75.0 %"), "{text}");
    }
}

//! `top`: what happened in the last interval, redrawn.

use super::{out, show};
use crate::control::client::Client;
use crate::control::protocol::{self, TopReply};
use crate::daemon::quantity::rounded_bytes;
use anyhow::Result;
use serde::Serialize;
use std::time::Duration;

/// Rates of one interval.
#[derive(Debug, Serialize)]
struct Rates {
    seconds: f64,
    reads_per_s: f64,
    read_bytes_per_s: f64,
    writes_per_s: f64,
    write_bytes_per_s: f64,
    syncs_per_s: f64,
    log_writes_per_s: f64,
    log_bytes_per_s: f64,
    /// Bytes written to the log per byte that users wrote.
    log_amplification: Option<f64>,
    coalesced_blocks_per_s: f64,
    moved_blocks_per_s: f64,
    writer_waits: u64,
    log_used_bytes: u64,
    log_size_bytes: u64,
    /// Reads answered from memory or the log, before any tier.
    overlay_reads_per_s: f64,
    tiers: Vec<TierRates>,
}

#[derive(Debug, Serialize)]
struct TierRates {
    name: String,
    reads_per_s: f64,
    read_bytes_per_s: f64,
    mean_read_us: Option<f64>,
    /// Of all device reads.
    hit_share: Option<f64>,
    write_bytes_per_s: f64,
    used_bytes: u64,
    budget_bytes: u64,
}

pub(super) fn run(client: &Client, once: bool, interval_s: u64, as_json: bool) -> Result<()> {
    let mut before: TopReply = client.get(protocol::TOP)?;
    loop {
        std::thread::sleep(Duration::from_secs(interval_s));
        let now: TopReply = client.get(protocol::TOP)?;
        let rates = rates(&before, &now);
        match (as_json, once) {
            (true, true) => out::json(&rates)?,
            (true, false) => out::text(&format!("{}\n", serde_json::to_string(&rates)?))?,
            (false, true) => out::text(&draw(&rates))?,
            // Home and clear: no screen of our own is needed.
            (false, false) => out::text(&format!("\x1b[H\x1b[2J{}", draw(&rates)))?,
        }
        if once {
            return Ok(());
        }
        before = now;
    }
}

/// Counters as numbers to divide; digits beyond 2^53 do not matter.
#[expect(clippy::cast_precision_loss)]
fn real(value: u64) -> f64 {
    value as f64
}

fn ratio(part: u64, whole: u64) -> Option<f64> {
    (whole > 0).then(|| real(part) / real(whole))
}

fn rates(before: &TopReply, now: &TopReply) -> Rates {
    let seconds = (real(now.uptime_us.saturating_sub(before.uptime_us)) / 1e6).max(1e-3);
    let (old, new) = (&before.counters, &now.counters);
    let per_s = |old: u64, new: u64| real(new.saturating_sub(old)) / seconds;
    let change = |old: &[u64], new: &[u64], tier: usize| {
        let at = |values: &[u64]| values.get(tier).copied().unwrap_or(0);
        at(new).saturating_sub(at(old))
    };
    let all_reads: u64 = (0..now.tiers.len()).map(|tier| change(&old.base_reads, &new.base_reads, tier)).sum();
    let tiers = now.tiers.iter().enumerate().map(|(index, tier)| {
        let reads = change(&old.base_reads, &new.base_reads, index);
        TierRates {
            name: tier.name.clone(),
            reads_per_s: real(reads) / seconds,
            read_bytes_per_s: real(change(&old.base_read_bytes, &new.base_read_bytes, index)) / seconds,
            mean_read_us: ratio(change(&old.base_read_us, &new.base_read_us, index), reads),
            hit_share: ratio(reads, all_reads),
            write_bytes_per_s: real(change(&old.base_write_bytes, &new.base_write_bytes, index)) / seconds,
            used_bytes: tier.used_bytes,
            budget_bytes: tier.budget_bytes,
        }
    });
    let overlay = |counters: &crate::volume::Counters| counters.reads_from_payload_cache + counters.reads_from_log;
    Rates {
        seconds,
        reads_per_s: per_s(old.reads, new.reads),
        read_bytes_per_s: per_s(old.read_bytes, new.read_bytes),
        writes_per_s: per_s(old.writes, new.writes),
        write_bytes_per_s: per_s(old.write_bytes, new.write_bytes),
        syncs_per_s: per_s(old.syncs, new.syncs),
        log_writes_per_s: per_s(old.log_groups, new.log_groups),
        log_bytes_per_s: per_s(old.log_written_bytes, new.log_written_bytes),
        log_amplification: ratio(
            new.log_written_bytes.saturating_sub(old.log_written_bytes),
            new.write_bytes.saturating_sub(old.write_bytes),
        ),
        coalesced_blocks_per_s: per_s(old.coalesced_blocks, new.coalesced_blocks),
        moved_blocks_per_s: per_s(old.promoted_blocks + old.demoted_blocks, new.promoted_blocks + new.demoted_blocks),
        writer_waits: new.writer_waits.saturating_sub(old.writer_waits),
        log_used_bytes: now.log.used_bytes,
        log_size_bytes: now.log.size_bytes,
        overlay_reads_per_s: per_s(overlay(old), overlay(new)),
        tiers: tiers.collect(),
    }
}

/// A rate of bytes, never negative, as a size.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn size(bytes_per_s: f64) -> String {
    format!("{}/s", rounded_bytes(bytes_per_s as u64))
}

fn draw(rates: &Rates) -> String {
    let optional = |value: Option<f64>, digits: usize, unit: &str| match value {
        Some(value) => format!("{value:.digits$}{unit}"),
        None => "-".to_owned(),
    };
    let head = format!(
        "reads   {:>9.0}/s {:>14}   from overlay {:.0}/s\nwrites  {:>9.0}/s {:>14}   waited {}\nsyncs   {:>9.0}/s {:>9.0} log writes/s {}   amplification {}\nblocks  {:>9.0}/s coalesced, {:.0}/s moved\nlog     {} of {} in use ({})\n",
        rates.reads_per_s,
        size(rates.read_bytes_per_s),
        rates.overlay_reads_per_s,
        rates.writes_per_s,
        size(rates.write_bytes_per_s),
        rates.writer_waits,
        rates.syncs_per_s,
        rates.log_writes_per_s,
        size(rates.log_bytes_per_s),
        optional(rates.log_amplification, 2, ""),
        rates.coalesced_blocks_per_s,
        rates.moved_blocks_per_s,
        rounded_bytes(rates.log_used_bytes),
        rounded_bytes(rates.log_size_bytes),
        show::share(rates.log_used_bytes, rates.log_size_bytes),
    );
    let row = |tier: &TierRates| {
        vec![
            tier.name.clone(),
            format!("{:.0}/s", tier.reads_per_s),
            size(tier.read_bytes_per_s),
            optional(tier.mean_read_us, 0, " us"),
            optional(tier.hit_share.map(|share| share * 100.0), 1, " %"),
            size(tier.write_bytes_per_s),
            show::share(tier.used_bytes, tier.budget_bytes),
        ]
    };
    let header = ["tier", "reads", "read", "mean read", "share of reads", "written", "full"];
    head + &show::table(&header, rates.tiers.iter().map(row).collect())
}

#[cfg(test)]
mod tests {
    use super::{draw, rates};
    use crate::control::protocol::TopReply;
    use crate::volume::{Counters, LogStatus, TierStatus};

    fn moment(uptime_us: u64, reads: u64, per_tier: [u64; 2]) -> TopReply {
        let tier = |name: &str| TierStatus { name: name.into(), ..TierStatus::default() };
        let counters = Counters {
            reads,
            base_reads: per_tier.to_vec(),
            base_read_us: per_tier.map(|reads| reads * 50).to_vec(),
            ..Counters::default()
        };
        TopReply { uptime_us, counters, tiers: vec![tier("nvme"), tier("hdd")], log: LogStatus::default() }
    }

    #[test]
    fn rates_of_an_interval() {
        let rates = rates(&moment(1_000_000, 100, [10, 10]), &moment(3_000_000, 300, [40, 20]));
        assert_eq!(rates.reads_per_s, 100.0);
        assert_eq!(rates.tiers[0].reads_per_s, 15.0);
        assert_eq!(rates.tiers[0].hit_share, Some(0.75));
        assert_eq!(rates.tiers[1].mean_read_us, Some(50.0));
        assert_eq!(rates.log_amplification, None);
        let text = draw(&rates);
        assert!(text.contains("75.0 %") && text.contains("100/s"), "{text}");
    }
}

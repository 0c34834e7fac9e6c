//! `why`, `plan`, `whatif`: decisions made, decisions to come, and other budgets.

use super::args::Choice;
use super::names::Names;
use super::online::{ago, outcome, wire_path};
use super::{out, show};
use crate::control::client::query_value;
use crate::control::protocol::{self, PlanReply, WhatIfReply, WhyReply};
use crate::daemon::quantity::{parse_bytes, rounded_bytes};
use crate::policy::whatif::Expectation;
use crate::units::TierId;
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;

/// A budget to imagine: `nvme=+200G`, `nvme=-50G`, `sata=1T`.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct BudgetChange {
    tier: String,
    /// `+`, `-`, or nothing for an absolute size.
    sign: String,
    bytes: u64,
}

pub(super) fn budget_change(text: &str) -> Result<BudgetChange, String> {
    let wanted = || "NAME=SIZE, NAME=+SIZE or NAME=-SIZE is wanted, such as nvme=+200GiB".to_owned();
    let (tier, size) = text.split_once('=').filter(|(tier, _)| !tier.is_empty()).ok_or_else(wanted)?;
    let (sign, size) = match size.split_at_checked(1) {
        Some((sign @ ("+" | "-"), size)) => (sign, size),
        _ => ("", size),
    };
    let bytes = parse_bytes(size).ok().filter(|bytes| i64::try_from(*bytes).is_ok()).ok_or_else(wanted)?;
    Ok(BudgetChange { tier: tier.to_owned(), sign: sign.to_owned(), bytes })
}

fn name(tiers: &[String], tier: TierId) -> &str {
    tiers.get(tier.index()).map_or("?", String::as_str)
}

pub(super) fn why(volume: &Choice, path: Option<&Path>, count: Option<usize>, as_json: bool) -> Result<()> {
    let mut target = format!("{}?path={}", protocol::WHY, query_value(&path.map(wire_path).unwrap_or_default()));
    if let Some(count) = count {
        let _ = write!(target, "&count={count}");
    }
    let reply: WhyReply = volume.client()?.get(&target)?;
    match as_json {
        true => out::json(&reply),
        false => out::text(&decisions(&reply, &mut Names::of_mount(&reply.mount))),
    }
}

fn decisions(reply: &WhyReply, names: &mut Names) -> String {
    if reply.entries.is_empty() {
        return "no decision is remembered: nothing was moved since the daemon started\n".to_owned();
    }
    let mut text = String::new();
    for one in &reply.entries {
        let entry = &one.entry;
        let place = match one.blocks {
            1 => format!("block {}", entry.block),
            blocks => format!("blocks {} to {}", entry.block, entry.block.0 + blocks - 1),
        };
        let size = rounded_bytes(one.blocks * reply.block_bytes);
        let (from, to) = (name(&reply.tiers, entry.from), name(&reply.tiers, entry.to));
        let copied = if entry.flip { ", a copy was there already" } else { "" };
        let relation = names.relation(&one.path).map(|name| format!("{name}, ")).unwrap_or_default();
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{}  {relation}{} {place} ({size}): {from} to {to}{copied}", ago(entry.at), one.path);
        let _ = writeln!(text, "    {}; {}", entry.reason, outcome(entry.outcome));
    }
    text
}

pub(super) fn plan(volume: &Choice, count: Option<usize>, as_json: bool) -> Result<()> {
    let wish = count.map(|count| format!("?count={count}")).unwrap_or_default();
    let reply: PlanReply = volume.client()?.get(&format!("{}{wish}", protocol::PLAN))?;
    match as_json {
        true => out::json(&reply),
        false => out::text(&planned(&reply)),
    }
}

/// Microseconds as a time that people can compare.
fn millis(us: f64) -> String {
    match us.abs() {
        small if small < 1000.0 => format!("{us:.0} us"),
        middle if middle < 1e6 => format!("{:.1} ms", us / 1e3),
        _ => format!("{:.1} s", us / 1e6),
    }
}

fn planned(reply: &PlanReply) -> String {
    if reply.blocks == 0 {
        return format!("the next plan (due in {} s) would move nothing\n", reply.due_in_s);
    }
    let mut text = format!(
        "the next plan (due in {} s) would move {} blocks and copy {}\nwaiting for the devices, expected in {} s: {} now, {} less afterwards\n",
        reply.due_in_s,
        reply.blocks,
        rounded_bytes(reply.copied_bytes),
        reply.epoch_s,
        millis(reply.cost_us),
        millis(reply.saved_us)
    );
    for one in &reply.moves {
        let (from, to) = (name(&reply.tiers, one.from), name(&reply.tiers, one.to));
        let saved = if one.saved_us < 0.0 { "costs" } else { "saves" };
        // Writing to a String cannot fail.
        let _ = writeln!(
            text,
            "{}: {} blocks from {from} to {to}, {} copied, {saved} {}\n    {}",
            one.path,
            one.blocks,
            rounded_bytes(one.copied_bytes),
            millis(one.saved_us.abs()),
            one.reason
        );
    }
    if reply.more_moves > 0 {
        let _ = writeln!(text, "and {} more (--count N shows more)", reply.more_moves);
    }
    text
}

pub(super) fn what_if(volume: &Choice, changes: &[BudgetChange], as_json: bool) -> Result<()> {
    let changes: Vec<String> =
        changes.iter().map(|change| format!("{}={}{}", change.tier, change.sign, change.bytes)).collect();
    let target = format!("{}?changes={}", protocol::WHAT_IF, query_value(&changes.join(",")));
    let reply: WhatIfReply = volume.client()?.get(&target)?;
    match as_json {
        true => out::json(&reply),
        false => out::text(&expectations(&reply)),
    }
}

fn expectations(reply: &WhatIfReply) -> String {
    let found = &reply.found;
    if found.accesses <= 0.0 {
        return "no accesses are recorded yet: ask again when the database has worked for a while\n".to_owned();
    }
    let percent = |expected: &Expectation, tier: usize| {
        expected.shares.get(tier).map_or_else(|| "-".to_owned(), |share| format!("{:.1} %", share * 100.0))
    };
    let bytes = |all: &[u64], tier: usize| all.get(tier).copied().map(rounded_bytes).unwrap_or_default();
    let mut rows: Vec<Vec<String>> = reply
        .tiers
        .iter()
        .enumerate()
        .map(|(tier, name)| {
            vec![
                name.clone(),
                bytes(&found.budget_bytes, tier),
                percent(&found.now, tier),
                percent(&found.settled, tier),
                bytes(&found.changed_bytes, tier),
                percent(&found.changed, tier),
            ]
        })
        .collect();
    let latency = |expected: &Expectation| millis(expected.latency_us);
    let (now, settled, changed) = (latency(&found.now), latency(&found.settled), latency(&found.changed));
    rows.push(vec!["mean latency".into(), String::new(), now, settled, String::new(), changed]);
    let header = ["accesses served by", "budget", "now", "settled", "changed budget", "then"];
    let mut text = format!(
        "expected from recorded heat: {:.0} accesses that miss the page cache in {} s\n{}",
        found.accesses,
        reply.epoch_s,
        show::table(&header, rows)
    );
    let fastest = reply.tiers.first().map(String::as_str).unwrap_or_default();
    let points = found.curve.iter().map(|(size, share)| vec![rounded_bytes(*size), format!("{:.1} %", share * 100.0)]);
    let _ = write!(text, "\n{}", show::table(&[&format!("{fastest} of"), "would serve"], points.collect()));
    text
}

#[cfg(test)]
mod tests {
    use super::{BudgetChange, budget_change, expectations, millis, planned};
    use crate::control::protocol::{PlanReply, PlannedMove, WhatIfReply};
    use crate::jobs::migrate::WhatIf;
    use crate::policy::placement::Reason;
    use crate::policy::whatif::Expectation;
    use crate::units::TierId;

    #[test]
    fn changes_are_read() {
        let change = |tier: &str, sign: &str, bytes| BudgetChange { tier: tier.into(), sign: sign.into(), bytes };
        assert_eq!(budget_change("nvme=+200G"), Ok(change("nvme", "+", 200 << 30)));
        assert_eq!(budget_change("sata=-1.5TiB"), Ok(change("sata", "-", 3 << 39)));
        assert_eq!(budget_change("sata=4096"), Ok(change("sata", "", 4096)));
        for wrong in ["nvme", "=1G", "nvme=", "nvme=+", "nvme=++1", "nvme=much"] {
            assert!(budget_change(wrong).is_err_and(|line| line.contains("NAME=+SIZE")), "{wrong}");
        }
        assert_eq!([millis(12.0), millis(-2500.0), millis(3e6)], ["12 us", "-2.5 ms", "3.0 s"]);
    }

    #[test]
    fn words() {
        let tiers = vec!["nvme".to_owned(), "hdd".to_owned()];
        let one = PlannedMove {
            path: "base/5/16385".into(),
            from: TierId(1),
            to: TierId(0),
            blocks: 3,
            copied_bytes: 3 << 16,
            saved_us: 24_000.0,
            reason: Reason::Room { heat: 1.0 },
        };
        let reply = PlanReply {
            tiers: tiers.clone(),
            epoch_s: 300,
            due_in_s: 7,
            blocks: 3,
            copied_bytes: 3 << 16,
            cost_us: 1e6,
            saved_us: 24_000.0,
            moves: vec![one],
            more_moves: 2,
        };
        let text = planned(&reply);
        let wanted = "base/5/16385: 3 blocks from hdd to nvme, 192.0 KiB copied, saves 24.0 ms";
        assert!(text.contains(wanted) && text.contains("and 2 more") && text.contains("there was room"), "{text}");
        let served = |shares: [f64; 2]| Expectation { shares: shares.to_vec(), latency_us: 1234.0 };
        let found = WhatIf {
            accesses: 500.0,
            budget_bytes: vec![1 << 30, 1 << 40],
            changed_bytes: vec![2 << 30, 1 << 40],
            now: served([0.5, 0.5]),
            settled: served([0.75, 0.25]),
            changed: served([0.875, 0.125]),
            curve: vec![(1 << 29, 0.25)],
        };
        let text = expectations(&WhatIfReply { tiers, epoch_s: 300, found });
        let wanted = ["50.0 %", "75.0 %", "87.5 %", "1.2 ms", "2.0 GiB", "512.0 MiB"];
        assert!(wanted.iter().all(|part| text.contains(part)), "{text}");
    }
}

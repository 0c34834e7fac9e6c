//! `report`: one page for a browser, with everything in it: it loads nothing, so it can be kept and mailed.
//!
//! The page is well-formed XML too, which is how its test knows that every element is closed.

mod charts;

use super::args::Choice;
use super::names::Names;
use super::online::{ago, outcome};
use super::{out, show};
use crate::control::client::query_value;
use crate::control::protocol::{self, DoneReply, HistoryReply, StatusReply, WhyReply};
use crate::daemon::quantity::{rounded_bytes, show_span};
use anyhow::{Context, Result};
use std::fmt::Write;
use std::path::Path;
use std::time::Duration;

/// Decisions listed.
const DECISIONS: usize = 100;
const STYLE: &str = "body{font:14px/1.5 system-ui,sans-serif;margin:2em auto;max-width:1100px;padding:0 1em;color:#222;background:#fff}\
h1{font-size:1.5em}h2{font-size:1.15em;margin-top:2em}table{border-collapse:collapse;width:100%}\
td,th{text-align:left;padding:.2em .8em .2em 0;border-bottom:1px solid #ddd;vertical-align:top}td.n{text-align:right}\
svg{width:100%;height:auto}text{font:11px system-ui,sans-serif;fill:#444}.key{display:inline-block;width:.9em;height:.9em;margin:0 .3em 0 1em}\
p.say{color:#555}";

pub(super) fn run(volume: &Choice, file: &Path, as_json: bool) -> Result<()> {
    let client = volume.client()?;
    let status: StatusReply = client.get(protocol::STATUS)?;
    let history: HistoryReply = client.get(protocol::HISTORY)?;
    let why: WhyReply = client.get(&format!("{}?path={}&count={DECISIONS}", protocol::WHY, query_value("")))?;
    let mut names = Names::of_mount(&status.mount);
    let text = page(&status, &history, &why, &mut names);
    std::fs::write(file, text).with_context(|| format!("writing {}", file.display()))?;
    let done = DoneReply { message: format!("wrote {}", file.display()) };
    match as_json {
        true => out::json(&done),
        false => out::text(&format!("{}\n", done.message)),
    }
}

/// Text between tags.
fn escaped(text: &str) -> String {
    let safe = |c: char| match c {
        '&' => "&amp;".to_owned(),
        '<' => "&lt;".to_owned(),
        '>' => "&gt;".to_owned(),
        '"' => "&quot;".to_owned(),
        c if c.is_control() => "\u{fffd}".to_owned(),
        c => c.to_string(),
    };
    text.chars().map(safe).collect()
}

fn page(status: &StatusReply, history: &HistoryReply, why: &WhyReply, names: &mut Names) -> String {
    let title = escaped(&format!("heatfs: {}", status.name));
    let mut text = format!(
        "<!DOCTYPE html>\n<html lang=\"en\"><head><meta charset=\"utf-8\"/><title>{title}</title><style>{STYLE}</style></head>\n<body><h1>{title}</h1>\n"
    );
    // Writing to a String cannot fail.
    let _ = writeln!(
        text,
        "<p>{} on {}; up {}; {} of content exist on the fastest tier alone.</p>",
        escaped(&status.health.to_string()),
        escaped(&status.mount),
        show_span(Duration::from_secs(status.uptime_s)),
        rounded_bytes(status.only_on_fastest_bytes)
    );
    for note in status.reasons.iter().chain(&status.warnings) {
        let _ = writeln!(text, "<p><b>{}</b></p>", escaped(note));
    }
    text += &tiers(status);
    text +=
        "<h2>Reads served by each tier</h2><p class=\"say\">Reads that missed the page cache, in each interval.</p>\n";
    text += &charts::legend(&history.tiers);
    text += &charts::served(history);
    text += "<h2>How full the tiers are</h2>\n";
    text += &charts::legend(&history.tiers);
    text += &charts::occupancy(history);
    text += &forecast(status);
    text += "<h2>Heat over time</h2><p class=\"say\">The hottest files; each row is a stretch of the file, from its beginning at the top. \
             The darker, the hotter its hottest block is among all blocks.</p>\n";
    for file in charts::hottest(history) {
        let path = history.paths.get(&file.to_string()).cloned().unwrap_or_else(|| format!("(gone) {file}"));
        let relation = names.relation(&path).map(|name| format!("{name}, ")).unwrap_or_default();
        let _ = writeln!(text, "<div>{}{}</div>", escaped(&relation), escaped(&path));
        text += &charts::heat(history, file);
    }
    text += &decisions(why, names);
    text + "</body></html>\n"
}

fn tiers(status: &StatusReply) -> String {
    let mut text = "<h2>Tiers</h2><table><tr><th>tier</th><th>used</th><th>budget</th><th>full</th><th>blocks</th><th>reads so far</th></tr>\n".to_owned();
    for (at, tier) in status.volume.tiers.iter().enumerate() {
        let reads = status.volume.counters.base_reads.get(at).copied().unwrap_or(0);
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{}</td><td>{reads}</td></tr>",
            escaped(&tier.name),
            rounded_bytes(tier.used_bytes),
            rounded_bytes(tier.budget_bytes),
            show::share(tier.used_bytes, tier.budget_bytes),
            tier.blocks,
        );
    }
    text + "</table>\n"
}

/// Who is believed about heat, and what each would have hit.
fn forecast(status: &StatusReply) -> String {
    let forecast = &status.mover.forecast;
    let mut text = format!(
        "<h2>Whose heat is believed</h2><p>{}: {}. {}</p>\n",
        escaped(&forecast.believed()),
        escaped(&forecast.because()),
        escaped(&format!("Model: {}; {} epochs; {}.", forecast.model, forecast.epochs, forecast.memory))
    );
    if forecast.contenders.iter().all(|one| one.hits.is_none()) {
        return text;
    }
    text += "<p class=\"say\">Share of reads that missed the page cache which the fastest tier served, and which it would have served by each way of filling it.</p>\n";
    text += "<table><tr><th>way</th><th>hits</th></tr>\n";
    let _ = writeln!(text, "<tr><td>really</td><td>{}</td></tr>", show::percent(forecast.real_hits));
    for one in &forecast.contenders {
        let name = if one.chosen { format!("<b>{}</b>", escaped(&one.name)) } else { escaped(&one.name) };
        let _ = writeln!(text, "<tr><td>{name}</td><td>{}</td></tr>", show::percent(one.hits));
    }
    text + "</table>\n"
}

fn decisions(why: &WhyReply, names: &mut Names) -> String {
    let mut text = "<h2>Decisions</h2>\n".to_owned();
    if why.entries.is_empty() {
        return text + "<p>Nothing was moved since the daemon started.</p>\n";
    }
    text += "<table><tr><th>when</th><th>what</th><th>from, to</th><th>why</th></tr>\n";
    let tier = |tier: crate::units::TierId| why.tiers.get(tier.index()).map_or("?", String::as_str);
    for one in &why.entries {
        let entry = &one.entry;
        let relation = names.relation(&one.path).map(|name| format!("{name}, ")).unwrap_or_default();
        let what =
            format!("{relation}{} block {} ({})", one.path, entry.block, rounded_bytes(one.blocks * why.block_bytes));
        let _ = writeln!(
            text,
            "<tr><td>{}</td><td>{}</td><td>{} to {}</td><td>{}; {}</td></tr>",
            escaped(&ago(entry.at)),
            escaped(&what),
            escaped(tier(entry.from)),
            escaped(tier(entry.to)),
            escaped(&entry.reason.to_string()),
            escaped(outcome(entry.outcome))
        );
    }
    text + "</table>\n"
}

#[cfg(test)]
mod tests {
    use super::{escaped, page};
    use crate::cli::names::Names;
    use crate::control::protocol::{Health, HistoryReply, StatusReply, WhyEntry, WhyReply};
    use crate::jobs::migrate::{FileMoment, JournalEntry, Moment, MoverStatus, Outcome};
    use crate::policy::placement::Reason;
    use crate::units::{BlockNo, FileId, TierId, WallNs};
    use crate::volume::{TierStatus, VolumeStatus};
    use std::collections::HashMap;

    /// Every element that is opened is closed, in order.
    fn assert_balanced(text: &str) {
        let mut open = Vec::new();
        for tag in text.split('<').skip(1) {
            let (tag, rest) = tag.split_once('>').unwrap_or_else(|| panic!("`<{tag}` does not end"));
            assert!(!rest.contains('>'), "a bare > after <{tag}>");
            let name = tag.split([' ', '/']).find(|part| !part.is_empty()).unwrap_or_default();
            match tag {
                _ if tag.starts_with('!') || tag.ends_with('/') => {}
                _ if tag.starts_with('/') => assert_eq!(open.pop(), Some(name), "<{tag}>"),
                _ => open.push(name),
            }
        }
        assert!(open.is_empty(), "not closed: {open:?}");
    }

    #[test]
    fn a_page_is_whole_and_loads_nothing() {
        let tier = |name: &str| TierStatus { name: name.into(), budget_bytes: 1 << 30, ..TierStatus::default() };
        let status = StatusReply {
            name: "pg <main>".into(),
            version: "0".into(),
            mount: "/nowhere/data".into(),
            pid: 1,
            uptime_s: 2,
            health: Health::Healthy,
            reasons: vec![],
            stopping: None,
            nodes: 3,
            untrusted_files: 0,
            only_on_fastest_bytes: 4096,
            warnings: vec!["a < b & \"c\"".into()],
            volume: VolumeStatus { tiers: vec![tier("nvme"), tier("hdd")], ..VolumeStatus::default() },
            mover: MoverStatus::default(),
            snapshots: Default::default(),
            hydration: None,
            log_archive: None,
        };
        let moment = |at: i64| Moment {
            at: WallNs(at * 30_000_000_000),
            used_bytes: vec![1 << 20, 1 << 29],
            budget_bytes: vec![1 << 30, 1 << 30],
            reads: vec![at.unsigned_abs() * 10, at.unsigned_abs() * at.unsigned_abs()],
            files: vec![FileMoment { file: FileId(7), heat: 3.0, cells: vec![0, 255, u8::try_from(at * 20).unwrap()] }],
        };
        let tiers = vec!["nvme".to_owned(), "hdd".to_owned()];
        let paths = HashMap::from([(FileId(7).to_string(), "base/5/<16385>".to_owned())]);
        let entry = JournalEntry {
            at: WallNs(0),
            file: FileId(7),
            block: BlockNo(3),
            from: TierId(1),
            to: TierId(0),
            reason: Reason::Room { heat: 2.0 },
            outcome: Outcome::Moved,
            plan: 4,
            flip: false,
        };
        let entries = vec![WhyEntry { path: "base/5/<16385>".into(), blocks: 2, entry }];
        let why = WhyReply { mount: "/nowhere/data".into(), tiers: tiers.clone(), block_bytes: 65_536, entries };
        for moments in [vec![], vec![moment(1)], (0..12).map(moment).collect()] {
            let history = HistoryReply { tiers: tiers.clone(), moments, paths: paths.clone() };
            let text = page(&status, &history, &why, &mut Names::of_mount("/nowhere/data"));
            assert_balanced(&text);
            for foreign in ["http:", "https:", "src=", "url(", "@import", "<script", "href="] {
                assert!(!text.contains(foreign), "{foreign}");
            }
            assert!(text.contains("pg &lt;main&gt;") && text.contains("a &lt; b &amp; &quot;c&quot;"));
            assert!(!text.contains("NaN") && !text.contains("inf "), "{text}");
        }
        assert_eq!(escaped("a\u{1}b"), "a\u{fffd}b");
    }
}

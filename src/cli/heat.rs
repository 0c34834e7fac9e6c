//! `heat`: a map in the terminal. Each cell is a stretch of a file; the darker, the hotter its hottest block.

use super::names::Names;
use super::{online, out, show};
use crate::control::client::{Client, query_value};
use crate::control::protocol::{self, HeatFile, HeatReply};
use crate::jobs::migrate::HeatRange;
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;

/// From cold to hot, by rank among all blocks.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
const UNPLACED: char = ' ';
/// Cells of one file's row.
const WIDTH: u64 = 64;

pub(super) fn run(client: &Client, path: Option<&Path>, files: Option<usize>, as_json: bool) -> Result<()> {
    let mut target = format!("{}?stretches={WIDTH}", protocol::HEAT);
    if let Some(path) = path {
        let _ = write!(target, "&path={}", query_value(&online::wire_path(path)));
    }
    if let Some(files) = files {
        let _ = write!(target, "&files={files}");
    }
    let mut reply: HeatReply = client.get(&target)?;
    let mut names = Names::of_mount(&reply.mount);
    for file in &mut reply.files {
        file.relation = names.relation(&file.path);
    }
    match as_json {
        true => out::json(&reply),
        false => out::text(&draw(&reply)),
    }
}

fn draw(reply: &HeatReply) -> String {
    let mut text =
        format!("hot {} cold; accesses per epoch of {} s\n", SHADES.iter().rev().collect::<String>(), reply.epoch_s);
    for (name, value) in show::forecast(&reply.forecast) {
        // Writing to a String cannot fail.
        let _ = writeln!(text, "{name:<8}{value}");
    }
    for file in &reply.files {
        // Writing to a String cannot fail.
        let relation = file.relation.as_ref().map(|name| format!("{name}, ")).unwrap_or_default();
        let _ = writeln!(text, "\n{relation}{} ({} blocks, {:.2})", file.path, file.blocks, file.heat);
        let _ = writeln!(text, "  heat {}", file.ranges.iter().map(shade).collect::<String>());
        let _ =
            writeln!(text, "  tier {}  {}", file.ranges.iter().map(mostly_on).collect::<String>(), shares(file, reply));
    }
    if reply.more_files > 0 {
        let _ = writeln!(text, "\nand {} more files (--files N shows more)", reply.more_files);
    }
    text
}

fn shade(range: &HeatRange) -> char {
    if range.tiers.iter().sum::<u64>() == 0 {
        return UNPLACED;
    }
    let steps = [0.2, 0.4, 0.6, 0.8];
    let level = steps.iter().filter(|step| range.hottest >= **step).count();
    SHADES.get(level).copied().unwrap_or(UNPLACED)
}

/// The tier that holds most of a stretch: 0 is the fastest; 14 tiers fit one hexadecimal digit.
fn mostly_on(range: &HeatRange) -> char {
    let most = range.tiers.iter().enumerate().max_by_key(|(index, blocks)| (**blocks, usize::MAX - index));
    match most {
        Some((index, blocks)) if *blocks > 0 => {
            u32::try_from(index).ok().and_then(|digit| char::from_digit(digit, 16)).unwrap_or('?')
        }
        _ => UNPLACED,
    }
}

/// Blocks per tier: `0 nvme 12, 2 hdd 400`.
fn shares(file: &HeatFile, reply: &HeatReply) -> String {
    let on_tier = |index: usize| file.ranges.iter().filter_map(|range| range.tiers.get(index)).sum::<u64>();
    let named: Vec<String> = reply
        .tiers
        .iter()
        .enumerate()
        .map(|(index, name)| (index, name, on_tier(index)))
        .filter(|(_, _, blocks)| *blocks > 0)
        .map(|(index, name, blocks)| format!("{index:x} {name} {blocks}"))
        .collect();
    named.join(", ")
}

#[cfg(test)]
mod tests {
    use super::{draw, mostly_on, shade};
    use crate::control::protocol::{HeatFile, HeatReply};
    use crate::jobs::forecaster::ForecastStatus;
    use crate::jobs::migrate::HeatRange;
    use crate::units::BlockNo;

    fn range(hottest: f32, tiers: [u64; 3]) -> HeatRange {
        let blocks = tiers.iter().sum::<u64>().max(1);
        HeatRange {
            first: BlockNo(0),
            blocks,
            temperature: hottest,
            hottest,
            heat: 1.0,
            tiers: tiers.to_vec(),
            unplaced: 0,
        }
    }

    #[test]
    fn cells() {
        assert_eq!(shade(&range(0.0, [1, 0, 0])), '·');
        assert_eq!(shade(&range(1.0, [1, 0, 0])), '█');
        assert_eq!(shade(&range(1.0, [0, 0, 0])), ' ');
        assert_eq!(mostly_on(&range(0.5, [1, 5, 2])), '1');
        assert_eq!(mostly_on(&range(0.5, [2, 2, 0])), '0');
    }

    #[test]
    fn rows() {
        let file = HeatFile {
            path: "base/5/1259".into(),
            relation: Some("shop.pg_catalog.pg_class".into()),
            blocks: 3,
            heat: 4.5,
            ranges: vec![range(1.0, [1, 0, 0]), range(0.1, [0, 0, 2])],
        };
        let tiers = ["nvme", "sata", "hdd"].map(str::to_owned).to_vec();
        let text = draw(&HeatReply {
            mount: "/m".into(),
            tiers,
            block_bytes: 65536,
            epoch_s: 300,
            forecast: ForecastStatus::default(),
            files: vec![file],
            more_files: 2,
        });
        assert!(
            text.contains("\nshop.pg_catalog.pg_class, base/5/1259 (3 blocks, 4.50)")
                && text.contains("heat █·")
                && text.contains("tier 02  0 nvme 1, 2 hdd 2"),
            "{text}"
        );
    }
}

//! `heat`: a map in the terminal. Each cell is a stretch of a file; the darker, the hotter its hottest block. Of one file the shards are shown as well: a
//! line for each run of shards of one size, hot ones a cell per block.

use super::names::Names;
use super::{online, out, show};
use crate::control::client::{Client, query_value};
use crate::control::protocol::{self, HeatFile, HeatReply};
use crate::daemon::quantity::rounded_bytes;
use crate::jobs::migrate::HeatRange;
use anyhow::Result;
use std::fmt::Write;
use std::path::Path;

/// From cold to hot, by rank among all blocks.
const SHADES: [char; 5] = ['·', '░', '▒', '▓', '█'];
const UNPLACED: char = ' ';
/// Cells of one file's row.
const WIDTH: u64 = 64;
/// Lines of shards that are shown, hottest first.
const LINES: usize = 40;

pub(super) fn run(client: &Client, path: Option<&Path>, files: Option<usize>, as_json: bool) -> Result<()> {
    let mut target = format!("{}?stretches={WIDTH}", protocol::HEAT);
    if let Some(path) = path {
        let _ = write!(target, "&shards=true&path={}", query_value(&online::wire_path(path)));
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
        draw_shards(&mut text, file, reply);
    }
    if reply.more_files > 0 {
        let _ = writeln!(text, "\nand {} more files (--files N shows more)", reply.more_files);
    }
    text
}

/// Shards of one size that follow one another, at most a line full of them.
struct Line<'a> {
    each_blocks: u64,
    shards: &'a [HeatRange],
}

impl Line<'_> {
    fn hottest(&self) -> f32 {
        self.shards.iter().map(|shard| shard.hottest).fold(0.0, f32::max)
    }

    /// Mean of its blocks.
    fn temperature(&self) -> f64 {
        let blocks: u64 = self.shards.iter().map(placed).sum();
        let sum: f64 = self.shards.iter().map(|shard| f64::from(shard.temperature) * number(placed(shard))).sum();
        sum / number(blocks.max(1))
    }

    /// One cell each; a stretch of many cold shards takes as many as there is place for.
    fn cells(&self) -> String {
        let cells = |shard: &HeatRange| {
            let count = (shard.blocks / self.each_blocks.max(1)).clamp(1, WIDTH);
            std::iter::repeat_n(shade(shard), usize::try_from(count).unwrap_or(1))
        };
        self.shards.iter().flat_map(cells).take(usize::try_from(WIDTH).unwrap_or(64)).collect()
    }
}

fn placed(range: &HeatRange) -> u64 {
    range.tiers.iter().sum()
}

/// For means: exact below 2^52.
#[allow(clippy::cast_precision_loss)]
fn number(count: u64) -> f64 {
    count as f64
}

/// Cuts shards into lines: where their size changes, where a part of the file lies on no tier, where a line is full.
fn lines(shards: &[HeatRange], shard_blocks: u64) -> Vec<Line<'_>> {
    let size = |shard: &HeatRange| if shard.blocks == 1 { 1 } else { shard_blocks.max(1) };
    let mut lines = Vec::new();
    let mut rest = shards;
    while let Some(first) = rest.first() {
        let (each_blocks, mut cells) = (size(first), 0);
        // A line of blocks ends where their shard ends.
        let end =
            if each_blocks == 1 { (first.first.0 / shard_blocks.max(1) + 1) * shard_blocks.max(1) } else { u64::MAX };
        let mut next = first.first.0;
        let taken = rest.iter().take_while(|shard| {
            cells += shard.blocks.div_ceil(each_blocks);
            let follows = shard.first.0 == next && size(shard) == each_blocks && next < end;
            next = shard.first.0 + shard.blocks;
            follows && (cells <= WIDTH || shard.first == first.first)
        });
        let (line, after) = rest.split_at(taken.count().max(1));
        lines.push(Line { each_blocks, shards: line });
        rest = after;
    }
    lines
}

/// The hottest lines, in the order of the file.
fn draw_shards(text: &mut String, file: &HeatFile, reply: &HeatReply) {
    let lines = lines(&file.shards, reply.shard_blocks);
    if lines.is_empty() {
        return;
    }
    let mut by_heat: Vec<usize> = (0..lines.len()).collect();
    by_heat.sort_by(|a, b| lines[*b].hottest().total_cmp(&lines[*a].hottest()).then(a.cmp(b)));
    by_heat.truncate(LINES);
    by_heat.sort_unstable();
    let bytes = |blocks: u64| rounded_bytes(blocks.saturating_mul(u64::from(reply.block_bytes)));
    let _ = writeln!(text, "\n  {:>10}  {:>9}  {:>9}  temperature", "offset", "size", "shards of");
    for line in by_heat.iter().filter_map(|at| lines.get(*at)) {
        let Some(first) = line.shards.first() else { continue };
        let blocks: u64 = line.shards.iter().map(|shard| shard.blocks).sum();
        let (offset, size, each) = (bytes(first.first.0), bytes(blocks), bytes(line.each_blocks));
        let _ = writeln!(text, "  {offset:>10}  {size:>9}  {each:>9}  {:.2} {}", line.temperature(), line.cells());
    }
    if lines.len() > LINES {
        let _ = writeln!(text, "  and {} colder lines (--json shows all shards)", lines.len() - LINES);
    }
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
    use super::{draw, draw_shards, lines, mostly_on, shade};
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
            shards: Vec::new(),
        };
        let text = draw(&reply(vec![file]));
        assert!(
            text.contains("\nshop.pg_catalog.pg_class, base/5/1259 (3 blocks, 4.50)")
                && text.contains("heat █·")
                && text.contains("tier 02  0 nvme 1, 2 hdd 2"),
            "{text}"
        );
    }

    fn shard(first: u64, blocks: u64, hottest: f32) -> HeatRange {
        HeatRange { first: BlockNo(first), blocks, ..range(hottest, [0, 0, blocks]) }
    }

    #[test]
    fn lines_of_shards() {
        let hot = (64..128).map(|block| shard(block, 1, if block == 70 { 0.95 } else { 0.1 }));
        let warm = (128..192).map(|block| shard(block, 1, 0.5));
        let mut shards = vec![shard(0, 64, 0.0)];
        shards.extend(hot.chain(warm));
        // Cold to the end, with a part between that lies nowhere; longer than a line is wide.
        shards.extend([shard(192, 64 * 100, 0.0), shard(64_000, 64, 0.3)]);
        let found: Vec<(u64, u64, usize)> = lines(&shards, 64)
            .iter()
            .map(|line| (line.shards[0].first.0, line.each_blocks, line.shards.len()))
            .collect();
        assert_eq!(found, [(0, 64, 1), (64, 1, 64), (128, 1, 64), (192, 64, 1), (64_000, 64, 1)]);
        assert_eq!(lines(&shards, 64)[3].cells().chars().count(), 64);
        let file = HeatFile { path: "t".into(), relation: None, blocks: 64_064, heat: 4.5, ranges: Vec::new(), shards };
        let mut text = String::new();
        draw_shards(&mut text, &file, &reply(Vec::new()));
        let rows: Vec<&str> = text.lines().filter(|line| line.contains("MiB")).collect();
        assert_eq!(rows.len(), 5, "{text}");
        assert!(rows[1].contains("4.0 MiB") && rows[1].contains("64.0 KiB  0.11 ······█···"), "{text}");
        assert!(rows[4].contains("0.30 ░") && !text.contains("colder"), "{text}");
    }

    fn reply(files: Vec<HeatFile>) -> HeatReply {
        HeatReply {
            mount: "/m".into(),
            tiers: ["nvme", "sata", "hdd"].map(str::to_owned).to_vec(),
            block_bytes: 65536,
            shard_blocks: 64,
            epoch_s: 300,
            forecast: ForecastStatus::default(),
            files,
            more_files: 2,
        }
    }
}

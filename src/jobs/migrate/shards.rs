//! A file's shards: where it is hot and uneven block by block, elsewhere in runs of 64 blocks, which of 64 KiB are 4 MiB.

use super::Mover;
use super::view::HeatRange;
use crate::error::Result;
use crate::policy::HeatRanks;
use crate::units::{BlockNo, FileId, TierId};
use std::collections::BTreeMap;

/// Blocks of a cold shard.
pub const SHARD_BLOCKS: u64 = 64;
/// Shards that are told block by block, hottest first; more of them are told as a whole.
const SPLIT_MAX: usize = 1024;

/// A part of a file that has blocks on tiers.
struct Part {
    whole: HeatRange,
    /// Are its blocks known one by one?
    is_fine: bool,
    /// Blocks of another heat than the first.
    is_uneven: bool,
    heat: f32,
}

impl Mover {
    /// The shards of a file in order, but for parts that lie on no tier. Shards are split where the forecast keeps a record of each block; where it
    /// has no say, because it is off or busy, where blocks differ. Neighbours without any heat that lie on one tier are one.
    pub fn shards(&self, file: FileId) -> Result<Vec<HeatRange>> {
        let known = self.volume.file(file)?;
        let runs: Vec<(BlockNo, u64, TierId)> = self
            .volume
            .block_map(&known)
            .into_iter()
            .filter_map(|(first, count, tier, _)| Some((first, count, tier?)))
            .collect();
        let heats = self.recorder.file_heat(file, runs.iter().map(|run| run.1).sum());
        let ranks = self.outlook.lock().ranks.clone();
        let fine = self.forecaster.fine_shards(file);
        let end = runs.iter().map(|(first, count, _)| first.0 + count).max().unwrap_or(0);
        let mut parts: BTreeMap<u64, Part> = BTreeMap::new();
        for (first, count, tier) in &runs {
            heats.runs(*first, *count, |first, count, heat| {
                each_part(first, count, SHARD_BLOCKS, |number, blocks| {
                    let is_fine = fine.as_ref().is_some_and(|fine| fine.contains(&number));
                    let part = parts.entry(number).or_insert_with(|| Part {
                        whole: self.range(number * SHARD_BLOCKS, SHARD_BLOCKS.min(end - number * SHARD_BLOCKS)),
                        is_fine,
                        is_uneven: false,
                        heat,
                    });
                    part.is_uneven |= part.heat != heat;
                    part.whole.add(blocks, Some(*tier), heat, ranks.temperature(heat));
                });
            });
        }
        let splits = |part: &Part| if fine.is_some() { part.is_fine } else { part.is_uneven };
        let mut split: Vec<(u64, f32)> =
            parts.iter().filter(|(_, part)| splits(part)).map(|(number, part)| (*number, part.whole.hottest)).collect();
        split.sort_by(|a, b| b.1.total_cmp(&a.1).then(a.0.cmp(&b.0)));
        split.truncate(SPLIT_MAX);
        let mut shards: BTreeMap<u64, HeatRange> = BTreeMap::new();
        for (number, _) in &split {
            parts.remove(number);
        }
        for part in parts.into_values() {
            shards.insert(part.whole.first.0, part.whole);
        }
        let split: Vec<u64> = split.into_iter().map(|(number, _)| number).collect();
        self.blocks_of(&split, &runs, &ranks, file, &mut shards);
        Ok(joined(shards.into_values()))
    }

    /// Adds the blocks of the shards that are split.
    fn blocks_of(
        &self,
        split: &[u64],
        runs: &[(BlockNo, u64, TierId)],
        ranks: &HeatRanks,
        file: FileId,
        shards: &mut BTreeMap<u64, HeatRange>,
    ) {
        let split: std::collections::BTreeSet<u64> = split.iter().copied().collect();
        let heats = self.recorder.file_heat(file, runs.iter().map(|run| run.1).sum());
        for (first, count, tier) in runs {
            each_part(*first, *count, SHARD_BLOCKS, |number, blocks| {
                if !split.contains(&number) {
                    return;
                }
                let begin = first.0.max(number * SHARD_BLOCKS);
                heats.runs(BlockNo(begin), blocks, |from, count, heat| {
                    for block in from.0..from.0 + count {
                        let mut one = self.range(block, 1);
                        one.add(1, Some(*tier), heat, ranks.temperature(heat));
                        shards.insert(block, one);
                    }
                });
            });
        }
    }

    fn range(&self, first: u64, blocks: u64) -> HeatRange {
        HeatRange {
            first: BlockNo(first),
            blocks,
            temperature: 0.0,
            hottest: 0.0,
            heat: 0.0,
            tiers: vec![0; self.tier_names.len()],
            unplaced: 0,
        }
    }
}

/// Takes the mean of what was summed, and joins neighbours without heat that lie wholly on the same tier.
fn joined(shards: impl Iterator<Item = HeatRange>) -> Vec<HeatRange> {
    let mut all: Vec<HeatRange> = Vec::new();
    for mut shard in shards {
        shard.finish();
        shard.unplaced = shard.blocks.saturating_sub(shard.tiers.iter().sum());
        if let Some(last) = all.last_mut()
            && is_joined(last, &shard)
        {
            last.blocks += shard.blocks;
            last.unplaced += shard.unplaced;
            last.tiers.iter_mut().zip(&shard.tiers).for_each(|(blocks, more)| *blocks += more);
        } else {
            all.push(shard);
        }
    }
    all
}

fn is_joined(left: &HeatRange, right: &HeatRange) -> bool {
    let only = |range: &HeatRange| {
        let mut used = range.tiers.iter().enumerate().filter(|(_, blocks)| **blocks > 0).map(|(tier, _)| tier);
        used.next().filter(|_| used.next().is_none())
    };
    left.hottest == 0.0
        && right.hottest == 0.0
        && left.blocks.is_multiple_of(SHARD_BLOCKS)
        && right.blocks > 1
        && left.first.0 + left.blocks == right.first.0
        && only(left).is_some()
        && only(left) == only(right)
}

/// Calls `each` with the number of every part of so many blocks that a run touches, and with how many blocks of the run lie in it.
fn each_part(first: BlockNo, count: u64, part_blocks: u64, mut each: impl FnMut(u64, u64)) {
    let end = first.0.saturating_add(count);
    let mut block = first.0;
    while block < end {
        let number = block / part_blocks;
        let until = end.min((number + 1) * part_blocks);
        each(number, until - block);
        block = until;
    }
}

//! The blocks' records, by file and by shard of 64 neighbouring blocks: memory is taken and given back by the shard.

use super::record::{BlockRecord, Coarse, DECAYS, SEASON_BINS, Season};
use crate::units::{BlockNo, FileId};
use std::collections::BTreeMap;

/// Blocks per shard: 4 MiB of 64 KiB blocks.
pub(super) const SHARD_BLOCKS: usize = 64;
const SHARD_BLOCKS_U64: u64 = 64;
/// Blocks that one access may touch: whatever is larger is cut. No kernel sends a request of 64 MiB, but a trace may claim one.
const ACCESS_BLOCKS_MAX: u64 = 1024;

/// What kind of thing a file holds, as far as its name tells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Default)]
pub enum FileClass {
    Heap,
    Index,
    Catalog,
    /// Free-space and visibility maps.
    Map,
    Log,
    Temporary,
    #[default]
    Other,
}

impl FileClass {
    /// The class of a name used in traces; what is not known is other.
    pub fn named(name: &str) -> FileClass {
        match name {
            "heap" => FileClass::Heap,
            "index" => FileClass::Index,
            "catalog" => FileClass::Catalog,
            "map" => FileClass::Map,
            "wal" | "log" => FileClass::Log,
            "temp" => FileClass::Temporary,
            _ => FileClass::Other,
        }
    }
}

/// One read or write of a file.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Access {
    pub file: FileId,
    pub offset: u64,
    pub len: u64,
    pub is_write: bool,
    /// It goes on where one of the file's latest streams ended.
    pub is_sequential: bool,
}

impl Access {
    /// The blocks it touches; none when it is empty.
    pub fn blocks(&self, block_bytes: u32) -> impl Iterator<Item = BlockNo> + use<> {
        let block_bytes = u64::from(block_bytes.max(1));
        let first = self.offset / block_bytes;
        let last = self.offset.saturating_add(self.len.saturating_sub(1)) / block_bytes;
        let count = if self.len == 0 { 0 } else { (last - first).saturating_add(1).min(ACCESS_BLOCKS_MAX) };
        (first..first.saturating_add(count)).map(BlockNo)
    }
}

pub(super) struct Shard {
    pub(super) records: [BlockRecord; SHARD_BLOCKS],
    pub(super) seasons: Option<Box<[Season; SHARD_BLOCKS]>>,
}

impl Shard {
    fn new() -> Box<Shard> {
        Box::new(Shard { records: [BlockRecord::default(); SHARD_BLOCKS], seasons: None })
    }

    /// What was seen of each block in a part of the cycle is drawn towards this epoch's count, by `weight`.
    pub(super) fn note_season(&mut self, bin: usize, weight: f32) {
        if self.seasons.is_none() && self.records.iter().all(|record| record.accesses() == 0.0) {
            return;
        }
        let seasons = self.seasons.get_or_insert_with(|| Box::new([[Coarse::default(); SEASON_BINS]; SHARD_BLOCKS]));
        for (season, record) in seasons.iter_mut().zip(&self.records) {
            if let Some(known) = season.get_mut(bin) {
                *known = Coarse::new((1.0 - weight) * known.get() + weight * record.accesses());
            }
        }
    }

    pub(super) fn is_cold(&self) -> bool {
        let out_of_season = |seasons: &[Season; SHARD_BLOCKS]| {
            seasons.iter().all(|season| season.iter().all(|known| known.get() < 0.05))
        };
        self.records.iter().all(BlockRecord::is_cold) && self.seasons.as_deref().is_none_or(out_of_season)
    }
}

#[derive(Default)]
pub(super) struct FileHistory {
    pub(super) class: FileClass,
    /// The last block that was ever touched.
    pub(super) tail: u64,
    pub(super) shards: BTreeMap<u64, Box<Shard>>,
}

/// All files with records, in the order of their ids.
#[derive(Default)]
pub(super) struct History {
    pub(super) files: BTreeMap<FileId, FileHistory>,
}

impl History {
    pub(super) fn count(&mut self, access: &Access, block_bytes: u32) {
        let history = self.files.entry(access.file).or_default();
        for BlockNo(block) in access.blocks(block_bytes) {
            history.tail = history.tail.max(block);
            let shard = history.shards.entry(block / SHARD_BLOCKS_U64).or_insert_with(Shard::new);
            if let Some(record) = shard.records.get_mut(place_in_shard(block)) {
                record.count(access.is_write, access.is_sequential);
            }
        }
    }

    /// Forgets the blocks that lie wholly beyond a file's new size.
    pub(super) fn truncate(&mut self, file: FileId, blocks: u64) {
        let Some(history) = self.files.get_mut(&file) else { return };
        let first_gone = blocks.div_ceil(SHARD_BLOCKS_U64);
        history.shards.split_off(&first_gone);
        if let Some(shard) = history.shards.get_mut(&(blocks / SHARD_BLOCKS_U64)) {
            for record in shard.records.iter_mut().skip(place_in_shard(blocks)) {
                *record = BlockRecord::default();
            }
        }
        history.tail = history.tail.min(blocks.saturating_sub(1));
    }

    pub(super) fn record(&self, file: FileId, block: BlockNo) -> Option<&BlockRecord> {
        let shard = self.files.get(&file)?.shards.get(&(block.0 / SHARD_BLOCKS_U64))?;
        shard.records.get(place_in_shard(block.0))
    }

    pub(super) fn end_epoch(&mut self, factors: &[f32; DECAYS]) {
        for shard in self.files.values_mut().flat_map(|history| history.shards.values_mut()) {
            shard.records.iter_mut().for_each(|record| record.end_epoch(factors));
        }
    }

    pub(super) fn note_season(&mut self, bin: usize, weight: f32) {
        for shard in self.files.values_mut().flat_map(|history| history.shards.values_mut()) {
            shard.note_season(bin, weight);
        }
    }

    /// Clears the counters, and drops shards that are as good as never touched, and beyond `shards_max` the coldest.
    pub(super) fn begin_epoch(&mut self, shards_max: usize) {
        let mut sums = Vec::new();
        for history in self.files.values_mut() {
            for shard in history.shards.values_mut() {
                shard.records.iter_mut().for_each(BlockRecord::begin_epoch);
            }
            history.shards.retain(|_, shard| !shard.is_cold());
            sums.extend(history.shards.values().map(|shard| sum_of(shard)));
        }
        if sums.len() > shards_max {
            let mut excess = sums.len() - shards_max;
            let (_, cut, _) = sums.select_nth_unstable_by(excess - 1, f32::total_cmp);
            let cut = *cut;
            for history in self.files.values_mut() {
                history.shards.retain(|_, shard| {
                    let goes = excess > 0 && sum_of(shard) <= cut;
                    excess -= usize::from(goes);
                    !goes
                });
            }
        }
    }

    pub(super) fn shards(&self) -> usize {
        self.files.values().map(|history| history.shards.len()).sum()
    }
}

/// Accesses per epoch by the longest memory, over all blocks of a shard.
fn sum_of(shard: &Shard) -> f32 {
    shard.records.iter().map(|record| record.decayed(DECAYS - 1)).sum()
}

fn place_in_shard(block: u64) -> usize {
    usize::try_from(block % SHARD_BLOCKS_U64).unwrap_or(0)
}

/// Number of a shard's first block.
pub(super) fn first_block(shard: u64) -> u64 {
    shard.saturating_mul(SHARD_BLOCKS_U64)
}

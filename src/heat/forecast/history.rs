//! The blocks' records, by file and by shard of 64 neighbouring blocks: 4 MiB of 64 KiB blocks.
//!
//! A shard is fine, with a record for each block, as long as memory allows. When it does not, the coldest fine shards are merged into one record
//! each, a hundredth of the memory; a merged shard splits again when it is hotter than the typical fine one by [`SPLIT_MARGIN`], and a shard that has just been split
//! or merged stays so for [`REST_EPOCHS`]. Merged shards beyond their own limit are forgotten, coldest first.

use super::MERGED_COST_BYTES;
use super::merged::{Merged, MergedShards};
use super::record::{BlockRecord, DECAYS, Season};
use crate::units::{BlockNo, FileId};
use std::collections::{BTreeMap, BTreeSet};

/// Blocks per shard: 4 MiB of 64 KiB blocks.
pub(super) const SHARD_BLOCKS: usize = 64;
const SHARD_BLOCKS_U64: u64 = 64;
const SHARD_BLOCKS_U16: u16 = 64;
/// How much hotter than the middle of the fine shards a merged one must be to split when memory is short.
const SPLIT_MARGIN: f32 = 1.25;
/// Epochs that a shard stays as it is after it was split or merged.
pub(super) const REST_EPOCHS: u8 = 8;
/// Merged shards for each fine one that memory is for: with a tenth of a volume fine, all the rest fits, and some.
pub(super) const MERGED_PER_FINE: usize = 10;
/// Merged shards far from others take more than their share: so much in all.
const FAR_BYTES: usize = 64 << 10;
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
    /// As traces name it.
    pub fn name(self) -> &'static str {
        match self {
            FileClass::Heap => "heap",
            FileClass::Index => "index",
            FileClass::Catalog => "catalog",
            FileClass::Map => "map",
            FileClass::Log => "wal",
            FileClass::Temporary => "temp",
            FileClass::Other => "other",
        }
    }

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
    /// Epochs for which it is not merged.
    rests: u8,
}

impl Shard {
    pub(super) fn new() -> Box<Shard> {
        Box::new(Shard { records: [BlockRecord::default(); SHARD_BLOCKS], seasons: None, rests: 0 })
    }

    /// Each block gets its part of what is known of all.
    fn split(merged: &Merged) -> Box<Shard> {
        let mut shard = Shard::new();
        shard.records = [merged.record.part(SHARD_BLOCKS_U16); SHARD_BLOCKS];
        shard.rests = REST_EPOCHS;
        shard
    }

    fn merge(&self) -> Merged {
        let mut record = BlockRecord::default();
        self.records.iter().for_each(|one| record.absorb(one));
        Merged::resting(record)
    }

    /// What was seen of each block in a part of the cycle is drawn towards this epoch's count, by `weight`.
    pub(super) fn note_season(&mut self, bin: usize, weight: f32) {
        if self.seasons.is_none() && self.records.iter().all(|record| record.accesses() == 0.0) {
            return;
        }
        let seasons = self.seasons.get_or_insert_with(|| Box::new([Season::default(); SHARD_BLOCKS]));
        for (season, record) in seasons.iter_mut().zip(&self.records) {
            season.set(bin, (1.0 - weight) * season.get(bin) + weight * record.accesses());
        }
    }

    pub(super) fn is_cold(&self) -> bool {
        let out_of_season = |seasons: &[Season; SHARD_BLOCKS]| {
            seasons.iter().all(|season| season.all().iter().all(|known| *known < 0.05))
        };
        self.records.iter().all(BlockRecord::is_cold) && self.seasons.as_deref().is_none_or(out_of_season)
    }
}

/// A shard's place among others when some are to be split and some merged.
#[derive(Clone, Copy)]
struct Standing {
    is_resting: bool,
    heat: f32,
    file: FileId,
    number: u64,
    is_merged: bool,
}

#[derive(Default)]
pub(super) struct FileHistory {
    pub(super) class: FileClass,
    /// The last block that was ever touched.
    pub(super) tail: u64,
    pub(super) shards: BTreeMap<u64, Box<Shard>>,
    pub(super) merged: MergedShards,
}

/// All files with records, in the order of their ids.
pub(super) struct History {
    pub(super) files: BTreeMap<FileId, FileHistory>,
    /// Fine shards, never fewer than there are, and how many there may be.
    fine: usize,
    fine_max: usize,
}

impl History {
    pub(super) fn new(fine_max: usize) -> History {
        History { files: BTreeMap::new(), fine: 0, fine_max }
    }

    /// After files were put in.
    pub(super) fn recount(&mut self) {
        self.fine = self.shards();
    }

    pub(super) fn count(&mut self, access: &Access, block_bytes: u32, times: u16) {
        let history = self.files.entry(access.file).or_default();
        for BlockNo(block) in access.blocks(block_bytes) {
            history.tail = history.tail.max(block);
            let number = block / SHARD_BLOCKS_U64;
            if let Some(merged) = history.merged.get_mut(number) {
                merged.record.count(access.is_write, access.is_sequential, times);
                continue;
            }
            // Also within an epoch there are never more than memory is for.
            let is_new = !history.shards.contains_key(&number);
            if is_new && self.fine >= self.fine_max {
                let merged = history.merged.get_or_insert(number, Merged::of(BlockRecord::default()));
                merged.record.count(access.is_write, access.is_sequential, times);
                continue;
            }
            self.fine += usize::from(is_new);
            let shard = history.shards.entry(number).or_insert_with(Shard::new);
            if let Some(record) = shard.records.get_mut(place_in_shard(block)) {
                record.count(access.is_write, access.is_sequential, times);
            }
        }
    }

    /// Forgets the blocks that lie wholly beyond a file's new size.
    pub(super) fn truncate(&mut self, file: FileId, blocks: u64) {
        let Some(history) = self.files.get_mut(&file) else { return };
        let first_gone = blocks.div_ceil(SHARD_BLOCKS_U64);
        history.shards.split_off(&first_gone);
        history.merged.truncate(first_gone);
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
        for merged in self.files.values_mut().flat_map(|history| history.merged.iter_mut()) {
            merged.record.end_epoch(factors);
        }
    }

    pub(super) fn note_season(&mut self, bin: usize, weight: f32) {
        for shard in self.files.values_mut().flat_map(|history| history.shards.values_mut()) {
            shard.note_season(bin, weight);
        }
    }

    /// Clears the counters, forgets shards that are as good as never touched, and merges and splits so that no more are fine than may be.
    pub(super) fn begin_epoch(&mut self) {
        let fine_max = self.fine_max;
        for history in self.files.values_mut() {
            for shard in history.shards.values_mut() {
                shard.records.iter_mut().for_each(BlockRecord::begin_epoch);
                shard.rests = shard.rests.saturating_sub(1);
            }
            for merged in history.merged.iter_mut() {
                merged.begin_epoch();
            }
            history.shards.retain(|_, shard| !shard.is_cold());
            history.merged.retain(|merged| !merged.record.is_cold());
        }
        self.exchange(fine_max);
        self.recount();
        self.forget_cold(fine_max.saturating_mul(MERGED_PER_FINE));
    }

    /// The hottest merged shards become fine, and the coldest fine ones beyond the limit merged: those that have rested first. One is merged before
    /// another one is split, so that there are never more fine shards than memory is for, and each split takes the memory that a merge has given back.
    fn exchange(&mut self, fine_max: usize) {
        let mut hot = self.hot(fine_max);
        let excess = (self.shards() + hot.len()).saturating_sub(fine_max);
        let mut colder = if excess > 0 { self.coldest(&hot, excess) } else { Vec::new() };
        // One that would be merged again at once is not split, but rests as if it had been.
        let stay: BTreeSet<(FileId, u64)> =
            colder.iter().filter(|shard| shard.is_merged).map(|shard| (shard.file, shard.number)).collect();
        colder.retain(|shard| !shard.is_merged);
        for shard in hot.extract_if(.., |shard| stay.contains(&(shard.file, shard.number))) {
            let merged = self.files.get_mut(&shard.file).and_then(|history| history.merged.get_mut(shard.number));
            merged.into_iter().for_each(Merged::rest);
        }
        let free = fine_max.saturating_sub(self.shards());
        let mut hot = hot.into_iter();
        hot.by_ref().take(free).for_each(|shard| self.split(&shard));
        for shard in colder {
            self.merge(&shard);
            if let Some(hotter) = hot.next() {
                self.split(&hotter);
            }
        }
    }

    /// The merged shards that are to be fine, hottest first: all while there is room, else those that are clearly hotter than the middle of the fine ones.
    fn hot(&self, fine_max: usize) -> Vec<Standing> {
        let mut fine: Vec<f32> =
            self.files.values().flat_map(|file| file.shards.values()).map(|shard| sum_of(shard)).collect();
        let room = fine_max.saturating_sub(fine.len());
        let middle = fine.len() / 2;
        let cut = match fine.is_empty() {
            true => 0.0,
            false => SPLIT_MARGIN * *fine.select_nth_unstable_by(middle, f32::total_cmp).1,
        };
        let mut hot: Vec<Standing> = Vec::new();
        for (id, history) in &self.files {
            let rested = history.merged.iter().filter(|(_, merged)| !merged.is_resting());
            let standing = |(number, merged): (u64, &Merged)| Standing {
                is_resting: true,
                heat: merged.record.decayed(DECAYS - 1),
                file: *id,
                number,
                is_merged: true,
            };
            hot.extend(rested.map(standing).filter(|shard| room > 0 || shard.heat > cut));
        }
        hot.sort_unstable_by(|a, b| b.heat.total_cmp(&a.heat).then((a.file, a.number).cmp(&(b.file, b.number))));
        let wanted = (0..).zip(&hot).take(fine_max).take_while(|(at, shard)| *at < room || shard.heat > cut).count();
        hot.truncate(wanted);
        hot
    }

    /// The coldest of the fine shards and of those that are `hot` enough to become fine: so many, in order.
    fn coldest(&self, hot: &[Standing], most: usize) -> Vec<Standing> {
        let mut all: Vec<Standing> = hot.to_vec();
        for (id, history) in &self.files {
            all.extend(history.shards.iter().map(|(number, shard)| Standing {
                is_resting: shard.rests > 0,
                heat: sum_of(shard),
                file: *id,
                number: *number,
                is_merged: false,
            }));
        }
        let order = |a: &Standing, b: &Standing| {
            a.is_resting
                .cmp(&b.is_resting)
                .then(a.heat.total_cmp(&b.heat))
                .then((a.file, a.number).cmp(&(b.file, b.number)))
        };
        all.sort_unstable_by(order);
        all.truncate(most);
        all
    }

    fn split(&mut self, shard: &Standing) {
        let Some(history) = self.files.get_mut(&shard.file) else { return };
        if let Some(merged) = history.merged.remove(shard.number) {
            history.shards.insert(shard.number, Shard::split(&merged));
        }
    }

    fn merge(&mut self, shard: &Standing) {
        let Some(history) = self.files.get_mut(&shard.file) else { return };
        if let Some(fine) = history.shards.remove(&shard.number) {
            history.merged.insert(shard.number, fine.merge());
        }
    }

    /// Merged shards beyond what memory is for are forgotten, coldest first: those that lie far from others take more than their share of it.
    fn forget_cold(&mut self, most: usize) {
        self.keep_warmest(most);
        while let (bytes, limit) =
            (self.merged_bytes(), most.saturating_mul(MERGED_COST_BYTES).saturating_add(FAR_BYTES))
            && bytes > limit
        {
            let known = self.merged_shards();
            self.keep_warmest((known.saturating_mul(limit) / bytes).min(known - 1));
        }
    }

    fn keep_warmest(&mut self, most: usize) {
        let mut sums: Vec<f32> = self.merged().map(|merged| merged.record.decayed(DECAYS - 1)).collect();
        if sums.len() <= most {
            return;
        }
        let mut excess = sums.len() - most;
        let (_, cut, _) = sums.select_nth_unstable_by(excess - 1, f32::total_cmp);
        let cut = *cut;
        for history in self.files.values_mut() {
            history.merged.retain(|merged| {
                let goes = excess > 0 && merged.record.decayed(DECAYS - 1) <= cut;
                excess -= usize::from(goes);
                !goes
            });
        }
    }

    /// Memory of all merged shards.
    pub(super) fn merged_bytes(&self) -> usize {
        self.files.values().map(|history| history.merged.bytes()).sum()
    }

    fn merged(&self) -> impl Iterator<Item = &Merged> {
        self.files.values().flat_map(|history| history.merged.iter().map(|(_, merged)| merged))
    }

    /// Fine shards.
    pub(super) fn shards(&self) -> usize {
        self.files.values().map(|history| history.shards.len()).sum()
    }

    pub(super) fn merged_shards(&self) -> usize {
        self.files.values().map(|history| history.merged.len()).sum()
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

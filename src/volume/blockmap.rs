//! The block map of one file: one byte per block, in chunks of 512 that exist only where something is, and in memory only as far as something is.
//!
//! 16 MiB of RAM per TiB at 64 KiB blocks, 16 bytes for a small file. The low four bits say where the block's image is, the high four where a clean copy lies.
//!
//! In a volume that was made of a snapshot a file also has ranges of blocks whose bytes are in the repository. A chunk that does not exist is in the
//! repository as far as a range reaches, so that a whole file there costs a few bytes; a chunk that does is right about each of its blocks.

use crate::ondisk::rows::MAP_CHUNK_BLOCKS;
use crate::units::{BlockNo, TierId};
use std::collections::BTreeSet;

const PROMISED: u8 = 15;
/// No image on any tier, and a copy on a tier that cannot be: a volume has at most 14.
const REPOSITORY: u8 = 0xf0;

/// Where a block's current image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// No image: the base reads as zeros.
    Hole,
    /// No image yet, but its space is promised (I10).
    Promised,
    Tier(TierId),
    /// In the snapshot that the volume was made of; space for its image is promised.
    Repository,
}

impl Home {
    /// Are there bytes of it, wherever?
    pub fn has_bytes(self) -> bool {
        matches!(self, Home::Tier(_) | Home::Repository)
    }
}

/// A block's entry in the map.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Place {
    pub home: Home,
    /// A tier that holds the same bytes as `home`, so that moving there is a map flip.
    pub copy: Option<TierId>,
}

impl Place {
    pub const HOLE: Place = Place { home: Home::Hole, copy: None };
    pub const REPOSITORY: Place = Place { home: Home::Repository, copy: None };

    pub fn on(tier: TierId) -> Place {
        Place { home: Home::Tier(tier), copy: None }
    }

    /// Does this entry need the image on `tier`?
    pub fn names(self, tier: TierId) -> bool {
        self.home == Home::Tier(tier) || self.copy == Some(tier)
    }

    pub fn tier(self) -> Option<TierId> {
        match self.home {
            Home::Tier(tier) => Some(tier),
            Home::Hole | Home::Promised | Home::Repository => None,
        }
    }

    pub fn to_byte(self) -> u8 {
        let low = match self.home {
            Home::Hole => 0,
            Home::Promised => PROMISED,
            Home::Tier(tier) => tier.0 + 1,
            Home::Repository => return REPOSITORY,
        };
        low | self.copy.map_or(0, |tier| tier.0 + 1) << 4
    }

    pub fn from_byte(byte: u8) -> Place {
        if byte == REPOSITORY {
            return Place::REPOSITORY;
        }
        let home = match byte & 15 {
            0 => Home::Hole,
            PROMISED => Home::Promised,
            tier => Home::Tier(TierId(tier - 1)),
        };
        let copy = (byte >> 4).checked_sub(1).map(TierId);
        Place { home, copy }
    }
}

/// Entries of a chunk; those behind are holes. Its length is a power of two from [`CHUNK_BYTES_MIN`] to [`MAP_CHUNK_BLOCKS`].
type Chunk = Box<[u8]>;
const CHUNK_BYTES_MIN: usize = 16;

/// As many of the bytes as have to be kept.
fn kept(bytes: &[u8]) -> Chunk {
    let used = bytes.iter().rposition(|&byte| byte != 0).map_or(0, |last| last + 1);
    resized(bytes.get(..used).unwrap_or_default(), used)
}

/// Room for at least `len` entries.
fn resized(bytes: &[u8], len: usize) -> Chunk {
    let mut chunk = vec![0; len.next_power_of_two().clamp(CHUNK_BYTES_MIN, MAP_CHUNK_BLOCKS)].into_boxed_slice();
    if let Some(start) = chunk.get_mut(..bytes.len()) {
        start.copy_from_slice(bytes);
    }
    chunk
}

/// How many blocks of a map are what.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Counts {
    pub images: u64,
    pub promised: u64,
    pub stored: u64,
}

#[derive(Default)]
pub struct BlockMap {
    chunks: Vec<Option<Chunk>>,
    /// Chunks changed since the last checkpoint began.
    dirty: BTreeSet<u32>,
    /// Blocks, as (first, one past the last), that are in the repository where there is no chunk; ascending.
    stored: Vec<(u64, u64)>,
}

const CHUNK: u64 = MAP_CHUNK_BLOCKS as u64;

fn split(block: BlockNo) -> (usize, usize) {
    (usize::try_from(block.0 / CHUNK).unwrap_or(usize::MAX), usize::try_from(block.0 % CHUNK).unwrap_or(0))
}

/// The parts of `ranges` that lie within `first..end`.
pub(super) fn within(ranges: &[(u64, u64)], first: u64, end: u64) -> impl Iterator<Item = (u64, u64)> + '_ {
    let from = ranges.partition_point(|range| range.1 <= first);
    ranges
        .iter()
        .skip(from)
        .take_while(move |range| range.0 < end)
        .map(move |range| (range.0.max(first), range.1.min(end)))
}

impl BlockMap {
    /// Blocks that are in the repository, as (first, one past the last), ascending. For a map without chunks.
    pub fn set_stored(&mut self, ranges: Vec<(u64, u64)>) {
        self.stored = ranges;
    }

    /// What a block is where there is no chunk.
    fn default_of(&self, block: BlockNo) -> Place {
        match within(&self.stored, block.0, block.0 + 1).next() {
            Some(_) => Place::REPOSITORY,
            None => Place::HOLE,
        }
    }

    pub fn get(&self, block: BlockNo) -> Place {
        let (chunk, at) = split(block);
        match self.chunks.get(chunk) {
            Some(Some(entries)) => Place::from_byte(entries.get(at).copied().unwrap_or(0)),
            Some(None) | None => self.default_of(block),
        }
    }

    pub fn set(&mut self, block: BlockNo, place: Place) {
        let (chunk, at) = split(block);
        if self.chunks.get(chunk).is_none_or(Option::is_none) {
            if place == self.default_of(block) {
                return;
            }
            let filled = self.default_chunk(chunk as u64);
            if chunk >= self.chunks.len() {
                self.chunks.resize_with(chunk + 1, || None);
            }
            if let Some(slot) = self.chunks.get_mut(chunk) {
                *slot = Some(filled);
            }
        }
        let Some(Some(entries)) = self.chunks.get_mut(chunk) else { return };
        if at >= entries.len() {
            *entries = resized(entries, at + 1);
        }
        if let Some(byte) = entries.get_mut(at) {
            *byte = place.to_byte();
        }
        self.dirty.extend(u32::try_from(chunk));
    }

    /// What a chunk is that does not exist.
    fn default_chunk(&self, chunk: u64) -> Chunk {
        let mut filled = [0; MAP_CHUNK_BLOCKS];
        for (first, end) in within(&self.stored, chunk * CHUNK, (chunk + 1) * CHUNK) {
            let (from, to) =
                (split(BlockNo(first)).1, usize::try_from(end - chunk * CHUNK).unwrap_or(MAP_CHUNK_BLOCKS));
            filled.get_mut(from..to).unwrap_or_default().fill(REPOSITORY);
        }
        kept(&filled)
    }

    /// How many blocks are what; chunks that do not exist cost nothing.
    pub fn counts(&self) -> Counts {
        let mut counts = Counts::default();
        for byte in self.chunks.iter().flatten().flat_map(|chunk| chunk.iter()).filter(|byte| **byte != 0) {
            match Place::from_byte(*byte).home {
                Home::Tier(_) => counts.images += 1,
                Home::Promised => counts.promised += 1,
                Home::Repository => counts.stored += 1,
                Home::Hole => {}
            }
        }
        let absent = |chunk: &u64| self.chunks.get(*chunk as usize).is_none_or(Option::is_none);
        for &(first, end) in &self.stored {
            let chunks = (first / CHUNK..end.div_ceil(CHUNK)).filter(absent);
            counts.stored += chunks.map(|chunk| end.min((chunk + 1) * CHUNK) - first.max(chunk * CHUNK)).sum::<u64>();
        }
        counts
    }

    /// Loads a chunk from durable state.
    pub fn load_chunk(&mut self, index: u32, bytes: &[u8; MAP_CHUNK_BLOCKS]) {
        let index = index as usize;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.chunks.get_mut(index) {
            *slot = Some(kept(bytes));
        }
    }

    /// One past the last block that may have an entry.
    pub fn end(&self) -> BlockNo {
        let stored = self.stored.last().map_or(0, |range| range.1);
        BlockNo((self.chunks.len() as u64 * CHUNK).max(stored))
    }

    /// Blocks with an entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockNo, Place)> + '_ {
        self.range(BlockNo(0), self.end())
    }

    /// Blocks with an entry in `first..end`, in order; gaps cost next to nothing.
    pub fn range(&self, first: BlockNo, end: BlockNo) -> impl Iterator<Item = (BlockNo, Place)> + '_ {
        let (from, to) = (first.0 / CHUNK, end.0.min(self.end().0).div_ceil(CHUNK));
        (from..to.max(from))
            .flat_map(|chunk| {
                let there = self.chunks.get(chunk as usize).and_then(Option::as_ref);
                let entries = there.into_iter().flat_map(move |bytes| {
                    let blocks = (chunk * CHUNK..).map(BlockNo).zip(bytes.iter());
                    blocks.filter(|(_, byte)| **byte != 0).map(|(block, &byte)| (block, Place::from_byte(byte)))
                });
                let absent = if there.is_none() { self.stored.as_slice() } else { &[] };
                let stored = within(absent, chunk * CHUNK, (chunk + 1) * CHUNK)
                    .flat_map(|(first, end)| (first..end).map(|block| (BlockNo(block), Place::REPOSITORY)));
                entries.chain(stored)
            })
            .filter(move |(block, _)| *block >= first && *block < end)
    }

    /// The changed chunks and their bytes; they count as clean from now on.
    pub fn take_dirty(&mut self) -> Vec<(u32, [u8; MAP_CHUNK_BLOCKS])> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|index| {
                let chunk = self.chunks.get(index as usize)?.as_ref()?;
                let mut bytes = [0; MAP_CHUNK_BLOCKS];
                bytes.get_mut(..chunk.len())?.copy_from_slice(chunk);
                Some((index, bytes))
            })
            .collect()
    }

    /// A checkpoint failed: these chunks are not in durable state after all.
    pub fn mark_dirty(&mut self, chunks: impl IntoIterator<Item = u32>) {
        self.dirty.extend(chunks);
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn memory_bytes(&self) -> usize {
        let filled: usize = self.chunks.iter().flatten().map(|chunk| chunk.len()).sum();
        let stored = self.stored.capacity() * size_of::<(u64, u64)>();
        self.chunks.capacity() * size_of::<Option<Chunk>>() + filled + stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_byte_is_a_place_and_back() {
        for byte in 0..=255u8 {
            assert_eq!(Place::from_byte(byte).to_byte(), byte);
        }
    }

    #[test]
    fn remembers_what_is_set_and_tells_what_changed() {
        let mut map = BlockMap::default();
        map.set(BlockNo(700), Place::on(TierId(2)));
        map.set(BlockNo(3), Place { home: Home::Tier(TierId(0)), copy: Some(TierId(1)) });
        assert_eq!(map.get(BlockNo(700)), Place::on(TierId(2)));
        assert_eq!(map.get(BlockNo(1 << 40)), Place::HOLE);
        assert_eq!(map.iter().map(|(block, _)| block.0).collect::<Vec<_>>(), [3, 700]);
        let dirty = map.take_dirty();
        assert_eq!(dirty.iter().map(|(index, _)| *index).collect::<Vec<_>>(), [0, 1]);
        let mut loaded = BlockMap::default();
        for (index, bytes) in dirty {
            loaded.load_chunk(index, &bytes);
        }
        assert_eq!(loaded.get(BlockNo(3)).copy, Some(TierId(1)));
        assert!(!loaded.is_dirty() && !map.is_dirty());
    }

    /// What many small files cost, and that a chunk grown step by step is the chunk it would be at once.
    #[test]
    fn a_small_file_takes_few_bytes_and_grows() {
        let mut map = BlockMap::default();
        map.set(BlockNo(0), Place::on(TierId(1)));
        assert!(map.memory_bytes() <= 96, "{}", map.memory_bytes());
        for last in [1, 15, 16, 100, 511, 512, 1535] {
            map.set(BlockNo(last), Place::on(TierId(2)));
            assert_eq!(map.get(BlockNo(last)), Place::on(TierId(2)));
            assert_eq!(map.get(BlockNo(last + 1)), Place::HOLE);
        }
        let mut loaded = BlockMap::default();
        for (index, bytes) in map.take_dirty() {
            loaded.load_chunk(index, &bytes);
        }
        assert_eq!(loaded.iter().collect::<Vec<_>>(), map.iter().collect::<Vec<_>>());
        assert_eq!((loaded.counts(), loaded.counts().images), (map.counts(), 8));
        assert!(loaded.memory_bytes() <= map.memory_bytes());
    }

    #[test]
    fn a_file_in_the_repository_is_a_range_until_a_chunk_changes() {
        let mut map = BlockMap::default();
        map.set_stored(vec![(2, 1000), (5000, 5001)]);
        assert_eq!(map.counts(), Counts { stored: 999, ..Counts::default() });
        assert!(map.memory_bytes() < 100 && !map.is_dirty());
        assert_eq!((map.get(BlockNo(1)), map.get(BlockNo(2))), (Place::HOLE, Place::REPOSITORY));
        assert_eq!((map.get(BlockNo(999)), map.get(BlockNo(1000))), (Place::REPOSITORY, Place::HOLE));
        assert_eq!((map.iter().count(), map.end()), (999, BlockNo(5001)));
        assert_eq!(
            map.range(BlockNo(998), BlockNo(6000)).map(|(block, _)| block.0).collect::<Vec<_>>(),
            [998, 999, 5000]
        );
        map.set(BlockNo(3), Place::REPOSITORY);
        assert!(!map.is_dirty(), "what says nothing new makes no chunk");
        map.set(BlockNo(3), Place::HOLE);
        map.set(BlockNo(4), Place::on(TierId(1)));
        assert_eq!(map.counts(), Counts { images: 1, promised: 0, stored: 997 });
        let dirty = map.take_dirty();
        assert_eq!(dirty.len(), 1);
        let mut loaded = BlockMap::default();
        loaded.set_stored(vec![(2, 1000), (5000, 5001)]);
        loaded.load_chunk(0, &dirty[0].1);
        assert_eq!(loaded.iter().collect::<Vec<_>>(), map.iter().collect::<Vec<_>>());
        assert_eq!(loaded.counts(), map.counts());
        assert_eq!(loaded.get(BlockNo(3)), Place::HOLE);
    }
}

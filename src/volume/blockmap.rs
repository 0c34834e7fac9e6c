//! The block map of one file: one byte per block, in chunks of 512 that exist only where something is.
//!
//! 16 MiB of RAM per TiB at 64 KiB blocks. The low four bits say where the block's image is, the high four where a clean copy lies.

use crate::ondisk::rows::MAP_CHUNK_BLOCKS;
use crate::units::{BlockNo, TierId};
use std::collections::BTreeSet;

const PROMISED: u8 = 15;

/// Where a block's current image is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Home {
    /// No image: the base reads as zeros.
    Hole,
    /// No image yet, but its space is promised (I10).
    Promised,
    Tier(TierId),
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
            Home::Hole | Home::Promised => None,
        }
    }

    pub fn to_byte(self) -> u8 {
        let low = match self.home {
            Home::Hole => 0,
            Home::Promised => PROMISED,
            Home::Tier(tier) => tier.0 + 1,
        };
        low | self.copy.map_or(0, |tier| tier.0 + 1) << 4
    }

    pub fn from_byte(byte: u8) -> Place {
        let home = match byte & 15 {
            0 => Home::Hole,
            PROMISED => Home::Promised,
            tier => Home::Tier(TierId(tier - 1)),
        };
        let copy = (byte >> 4).checked_sub(1).map(TierId);
        Place { home, copy }
    }
}

type Chunk = Box<[u8; MAP_CHUNK_BLOCKS]>;

#[derive(Default)]
pub struct BlockMap {
    chunks: Vec<Option<Chunk>>,
    /// Chunks changed since the last checkpoint began.
    dirty: BTreeSet<u32>,
}

fn split(block: BlockNo) -> (usize, usize) {
    let blocks = MAP_CHUNK_BLOCKS as u64;
    (usize::try_from(block.0 / blocks).unwrap_or(usize::MAX), usize::try_from(block.0 % blocks).unwrap_or(0))
}

impl BlockMap {
    pub fn get(&self, block: BlockNo) -> Place {
        let (chunk, at) = split(block);
        let byte = self.chunks.get(chunk).and_then(Option::as_ref).and_then(|chunk| chunk.get(at));
        byte.map_or(Place::HOLE, |&byte| Place::from_byte(byte))
    }

    pub fn set(&mut self, block: BlockNo, place: Place) {
        let (chunk, at) = split(block);
        if chunk >= self.chunks.len() {
            if place == Place::HOLE {
                return;
            }
            self.chunks.resize_with(chunk + 1, || None);
        }
        let Some(slot) = self.chunks.get_mut(chunk) else { return };
        let entry = slot.get_or_insert_with(|| Box::new([0; MAP_CHUNK_BLOCKS]));
        if let Some(byte) = entry.get_mut(at) {
            *byte = place.to_byte();
        }
        self.dirty.extend(u32::try_from(chunk));
    }

    /// Loads a chunk from durable state.
    pub fn load_chunk(&mut self, index: u32, bytes: &[u8; MAP_CHUNK_BLOCKS]) {
        let index = index as usize;
        if index >= self.chunks.len() {
            self.chunks.resize_with(index + 1, || None);
        }
        if let Some(slot) = self.chunks.get_mut(index) {
            *slot = Some(Box::new(*bytes));
        }
    }

    /// One past the last block that may have an entry.
    pub fn end(&self) -> BlockNo {
        BlockNo((self.chunks.len() * MAP_CHUNK_BLOCKS) as u64)
    }

    /// Blocks with an entry, in order.
    pub fn iter(&self) -> impl Iterator<Item = (BlockNo, Place)> + '_ {
        self.chunks.iter().enumerate().filter_map(|(index, chunk)| chunk.as_ref().map(|chunk| (index, chunk))).flat_map(
            |(index, chunk)| {
                chunk
                    .iter()
                    .enumerate()
                    .filter(|(_, byte)| **byte != 0)
                    .map(move |(at, &byte)| (BlockNo((index * MAP_CHUNK_BLOCKS + at) as u64), Place::from_byte(byte)))
            },
        )
    }

    /// Blocks with an entry in `first..end`, in order; gaps cost next to nothing.
    pub fn range(&self, first: BlockNo, end: BlockNo) -> impl Iterator<Item = (BlockNo, Place)> + '_ {
        let from = split(first).0;
        let chunks =
            self.chunks.iter().enumerate().skip(from).filter_map(|(index, chunk)| Some((index, chunk.as_ref()?)));
        chunks
            .take_while(move |(index, _)| ((index * MAP_CHUNK_BLOCKS) as u64) < end.0)
            .flat_map(|(index, chunk)| {
                chunk
                    .iter()
                    .enumerate()
                    .filter(|(_, byte)| **byte != 0)
                    .map(move |(at, &byte)| (BlockNo((index * MAP_CHUNK_BLOCKS + at) as u64), Place::from_byte(byte)))
            })
            .filter(move |(block, _)| *block >= first && *block < end)
    }

    /// The changed chunks and their bytes; they count as clean from now on.
    pub fn take_dirty(&mut self) -> Vec<(u32, [u8; MAP_CHUNK_BLOCKS])> {
        std::mem::take(&mut self.dirty)
            .into_iter()
            .filter_map(|index| {
                let chunk = self.chunks.get(index as usize)?.as_ref()?;
                Some((index, **chunk))
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
        let filled = self.chunks.iter().flatten().count();
        self.chunks.capacity() * size_of::<Option<Chunk>>() + filled * MAP_CHUNK_BLOCKS
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
}

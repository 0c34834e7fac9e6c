//! What the believed predictor expects of each block, as of the end of the latest epoch, while that predictor is not the recorder's own decay.
//!
//! The heat of a block is then what is expected, and what has been seen beyond that: its own past at this moment less its own past when the
//! forecast was made. So a block that is expected to cool cools at once, one that is expected to warm is warm before its hour, and one that nobody expected
//! to be read rises as it does with plain decay.

use super::chunk::{CHUNK_BLOCKS, CHUNK_BLOCKS_U64};
use super::forecast::Half;
use crate::units::{BlockNo, FileId};
use std::collections::HashMap;

/// Blocks of one entry: a shard of the forecast.
pub(super) const SHARD_BLOCKS: usize = 64;
const SHARD_BLOCKS_U64: u64 = 64;

#[derive(Clone, Copy, Debug, Default)]
struct Expected {
    /// Accesses in the next epoch.
    heat: Half,
    /// Accesses per epoch by the block's own past when this was expected.
    own: Half,
}

/// File and number of a shard.
type ShardKey = (FileId, u64);
type ShardExpected = Box<[Expected; SHARD_BLOCKS]>;

/// 256 bytes for each shard with a score.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    shards: HashMap<ShardKey, ShardExpected>,
}

impl Expectations {
    /// `own` gives a chunk's past in accesses per epoch. Blocks of one shard come one after another in `expected`, (block, accesses in the next epoch).
    pub(super) fn new(
        expected: impl Iterator<Item = (FileId, BlockNo, f32)>,
        own: impl Fn(FileId, u64) -> Option<[f32; CHUNK_BLOCKS]>,
    ) -> Expectations {
        let mut expectations = Expectations::default();
        let mut latest: Option<(ShardKey, ShardExpected)> = None;
        for (file, block, heat) in expected {
            let key = (file, block.0 / SHARD_BLOCKS_U64);
            if latest.as_ref().is_none_or(|(known, _)| *known != key) {
                expectations.shards.extend(latest.take());
                latest = Some((key, known_of(key, &own)));
            }
            let place = usize::try_from(block.0 % SHARD_BLOCKS_U64).unwrap_or(0);
            if let Some(one) = latest.as_mut().and_then(|(_, shard)| shard.get_mut(place)) {
                one.heat = Half::new(heat);
            }
        }
        expectations.shards.extend(latest);
        expectations
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let each = size_of::<[Expected; SHARD_BLOCKS]>() + size_of::<ShardKey>() + 2 * size_of::<usize>();
        u64::try_from(self.shards.len() * each).unwrap_or(u64::MAX)
    }

    /// What is expected of one block; None where nothing was.
    pub(super) fn of(&self, file: FileId, block: BlockNo) -> Option<f32> {
        self.find(file, block).map(|one| one.heat.get())
    }

    /// A block's heat, from what its own past says at this moment.
    pub(super) fn heat(&self, file: FileId, block: BlockNo, own: f32) -> f32 {
        self.find(file, block).map_or(own, |one| one.heat.get() + (own - one.own.get()).max(0.0))
    }

    fn find(&self, file: FileId, block: BlockNo) -> Option<&Expected> {
        let shard = self.shards.get(&(file, block.0 / SHARD_BLOCKS_U64))?;
        shard.get(usize::try_from(block.0 % SHARD_BLOCKS_U64).unwrap_or(0))
    }

    /// Replaces what the own past of a chunk's blocks says by their heat.
    pub(super) fn apply(&self, file: FileId, chunk: u64, past: &mut [f32; CHUNK_BLOCKS]) {
        let first = chunk.saturating_mul(CHUNK_BLOCKS_U64) / SHARD_BLOCKS_U64;
        for (number, heats) in (first..).zip(past.chunks_mut(SHARD_BLOCKS)) {
            let Some(shard) = self.shards.get(&(file, number)) else { continue };
            for (heat, one) in heats.iter_mut().zip(shard.iter()) {
                *heat = one.heat.get() + (*heat - one.own.get()).max(0.0);
            }
        }
    }

    /// Is anything expected of a chunk's blocks?
    pub(super) fn covers(&self, file: FileId, chunk: u64) -> bool {
        let first = chunk.saturating_mul(CHUNK_BLOCKS_U64) / SHARD_BLOCKS_U64;
        (first..first + CHUNK_BLOCKS_U64 / SHARD_BLOCKS_U64).any(|number| self.shards.contains_key(&(file, number)))
    }
}

/// A shard of which nothing is expected so far.
fn known_of(key: ShardKey, own: &impl Fn(FileId, u64) -> Option<[f32; CHUNK_BLOCKS]>) -> ShardExpected {
    let mut shard = Box::new([Expected::default(); SHARD_BLOCKS]);
    let first = key.1.saturating_mul(SHARD_BLOCKS_U64);
    if let Some(past) = own(key.0, first / CHUNK_BLOCKS_U64) {
        let skip = usize::try_from(first % CHUNK_BLOCKS_U64).unwrap_or(0);
        for (one, own) in shard.iter_mut().zip(past.iter().skip(skip)) {
            one.own = Half::new(*own);
        }
    }
    shard
}

const _: () = assert!(CHUNK_BLOCKS.is_multiple_of(SHARD_BLOCKS));

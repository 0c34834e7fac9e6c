//! What the believed predictor expects of each block, as of the end of the latest epoch, while that predictor is not the recorder's own decay.
//!
//! The heat of a block is then what is expected, and what has been seen beyond that: its own past at this moment less its own past when the
//! forecast was made. So a block that is expected to cool cools at once, one that is expected to warm is warm before its hour, and one that nobody expected
//! to be read rises as it does with plain decay.

use super::chunk::{CHUNK_BLOCKS, CHUNK_BLOCKS_U64};
use super::forecast::{Coarse, Half};
use super::recorder::Recorder;
use crate::units::{BlockNo, FileId};
use std::collections::HashMap;

/// Blocks of one entry: a shard of the forecast.
pub(super) const SHARD_BLOCKS: usize = 64;
const SHARD_BLOCKS_U64: u64 = 64;
/// Half a step of a [`Coarse`] number.
const OWN_ERROR: f32 = 0.026;

/// Of each block of a shard.
#[derive(Debug)]
struct Expected {
    /// Accesses in the next epoch.
    heat: [Half; SHARD_BLOCKS],
    /// Accesses per epoch by the block's own past when this was expected.
    own: [Coarse; SHARD_BLOCKS],
}

/// File and number of a shard.
type ShardKey = (FileId, u64);

impl Expected {
    /// The heat of a block of which its own past says this much now.
    fn heat(&self, place: usize, own: f32) -> Option<f32> {
        let (heat, then) = (self.heat.get(place)?.get(), self.own.get(place)?.get());
        // What was seen then is known to some percent only: so much more is nothing new.
        let more = own - then * (1.0 + OWN_ERROR);
        Some(heat + more.max(0.0))
    }
}

/// 192 bytes for each shard with a score.
#[derive(Debug, Default)]
pub(super) struct Expectations {
    shards: HashMap<ShardKey, Box<Expected>>,
}

impl Expectations {
    /// Of a shard's blocks the first is expected by itself; `own` is the past of its chunk, in accesses per epoch.
    fn begin(key: ShardKey, own: Option<[f32; CHUNK_BLOCKS]>) -> Box<Expected> {
        let mut shard =
            Box::new(Expected { heat: [Half::default(); SHARD_BLOCKS], own: [Coarse::default(); SHARD_BLOCKS] });
        if let Some(past) = own {
            let first = key.1.saturating_mul(SHARD_BLOCKS_U64);
            let skip = usize::try_from(first % CHUNK_BLOCKS_U64).unwrap_or(0);
            for (known, own) in shard.own.iter_mut().zip(past.iter().skip(skip)) {
                *known = Coarse::new(*own);
            }
        }
        shard
    }

    pub(super) fn memory_bytes(&self) -> u64 {
        let each = size_of::<Expected>() + size_of::<ShardKey>() + 2 * size_of::<usize>();
        u64::try_from(self.shards.len() * each).unwrap_or(u64::MAX)
    }

    /// What is expected of one block; None where nothing was.
    pub(super) fn of(&self, file: FileId, block: BlockNo) -> Option<f32> {
        let (shard, place) = self.find(file, block)?;
        shard.heat.get(place).map(|heat| heat.get())
    }

    /// A block's heat, from what its own past says at this moment.
    pub(super) fn heat(&self, file: FileId, block: BlockNo, own: f32) -> f32 {
        self.find(file, block).and_then(|(shard, place)| shard.heat(place, own)).unwrap_or(own)
    }

    /// A block's shard, and its place there.
    fn find(&self, file: FileId, block: BlockNo) -> Option<(&Expected, usize)> {
        let shard = self.shards.get(&(file, block.0 / SHARD_BLOCKS_U64))?;
        Some((shard, usize::try_from(block.0 % SHARD_BLOCKS_U64).unwrap_or(0)))
    }

    /// Replaces what the own past of a chunk's blocks says by their heat.
    pub(super) fn apply(&self, file: FileId, chunk: u64, past: &mut [f32; CHUNK_BLOCKS]) {
        let first = chunk.saturating_mul(CHUNK_BLOCKS_U64) / SHARD_BLOCKS_U64;
        for (number, heats) in (first..).zip(past.chunks_mut(SHARD_BLOCKS)) {
            let Some(shard) = self.shards.get(&(file, number)) else { continue };
            for (place, heat) in heats.iter_mut().enumerate() {
                *heat = shard.heat(place, *heat).unwrap_or(*heat);
            }
        }
    }

    /// Is anything expected of a chunk's blocks?
    pub(super) fn covers(&self, file: FileId, chunk: u64) -> bool {
        let first = chunk.saturating_mul(CHUNK_BLOCKS_U64) / SHARD_BLOCKS_U64;
        (first..first + CHUNK_BLOCKS_U64 / SHARD_BLOCKS_U64).any(|number| self.shards.contains_key(&(file, number)))
    }
}

/// Expectations that are being told; nothing counts before they are published.
pub struct Expecting<'a> {
    recorder: &'a Recorder,
    expectations: Expectations,
    latest: Option<(ShardKey, Box<Expected>)>,
}

impl<'a> Expecting<'a> {
    pub(super) fn new(recorder: &'a Recorder) -> Expecting<'a> {
        Expecting { recorder, expectations: Expectations::default(), latest: None }
    }

    /// `heat`: accesses in the next epoch. Blocks of one shard of 64 come one after another.
    pub fn expect(&mut self, file: FileId, block: BlockNo, heat: f32) {
        let key = (file, block.0 / SHARD_BLOCKS_U64);
        if self.latest.as_ref().is_none_or(|(known, _)| *known != key) {
            self.expectations.shards.extend(self.latest.take());
            let own = self.recorder.own_past(file, block.0 / CHUNK_BLOCKS_U64);
            self.latest = Some((key, Expectations::begin(key, own)));
        }
        let place = usize::try_from(block.0 % SHARD_BLOCKS_U64).unwrap_or(0);
        if let Some(known) = self.latest.as_mut().and_then(|(_, shard)| shard.heat.get_mut(place)) {
            *known = Half::new(heat);
        }
    }

    /// From now on heat is what was told here, and what is seen beyond that. What was not named is expected to be cold if a block of its shard was, and
    /// else left to its own past.
    pub fn publish(mut self) {
        self.expectations.shards.extend(self.latest.take());
        self.recorder.publish(self.expectations);
    }
}

const _: () = assert!(CHUNK_BLOCKS.is_multiple_of(SHARD_BLOCKS));

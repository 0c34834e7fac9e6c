//! A trace cut into epochs, with the blocks that it touches numbered.

use super::clairvoyant::{Order, futures};
use super::trace::{Operation, Trace};
use crate::heat::Streams;
use crate::heat::forecast::{Access, EpochClock, FileClass, Predictor, Scores};
use crate::policy::ranked::place;
use crate::units::{BlockNo, FileId};
use std::cell::OnceCell;
use std::collections::{BTreeMap, HashMap};
use std::ops::Range;

/// Epochs of a trace.
pub(super) const EPOCHS: usize = 100;
/// Epochs that fill the tiers and are not counted.
pub(super) const EPOCHS_BEFORE: usize = 30;

/// One record, told apart.
pub(super) struct Touch {
    pub(super) access: Access,
    pub(super) truncates_to: Option<u64>,
    /// Where in [`Timeline::touched`] its blocks are.
    touched: Range<usize>,
}

pub(super) struct Timeline {
    /// By number.
    pub(super) blocks: Vec<(FileId, BlockNo)>,
    pub(super) classes: BTreeMap<FileId, FileClass>,
    numbers: HashMap<(FileId, BlockNo), u32>,
    touches: Vec<Touch>,
    touched: Vec<u32>,
    epochs: Vec<Range<usize>>,
    epoch_ms: u64,
    period_ms: u64,
    futures: [OnceCell<Vec<Vec<f32>>>; 3],
}

impl Timeline {
    pub(super) fn new(trace: &Trace, block_bytes: u32) -> Timeline {
        let first_ms = trace.records.iter().map(|record| record.ts_ms).min().unwrap_or(0);
        let last_ms = trace.records.iter().map(|record| record.ts_ms).max().unwrap_or(0);
        let mut timeline = Timeline {
            blocks: Vec::new(),
            classes: trace.classes.clone(),
            numbers: HashMap::new(),
            touches: Vec::new(),
            touched: Vec::new(),
            epochs: Vec::new(),
            epoch_ms: (last_ms - first_ms) / (EPOCHS as u64) + 1,
            period_ms: trace.period_ms,
            futures: Default::default(),
        };
        let mut streams: HashMap<(FileId, bool), Streams> = HashMap::new();
        let mut ends = vec![0usize; EPOCHS];
        let mut latest = 0usize;
        for (at, record) in trace.records.iter().enumerate() {
            // A clock that jumps back does not reopen an epoch.
            latest = latest.max(match trace.has_classes {
                true => usize::try_from((record.ts_ms - first_ms) / timeline.epoch_ms).unwrap_or(0),
                false => at * EPOCHS / trace.records.len(),
            });
            let is_write = record.operation == Operation::Write;
            let mut access =
                Access { file: record.file, offset: record.offset, len: record.len, is_write, is_sequential: false };
            match record.operation {
                Operation::Sync => continue,
                Operation::Truncate => timeline.push(access, Some(record.offset), block_bytes),
                Operation::Read | Operation::Write => {
                    let stream = streams.entry((record.file, is_write)).or_default();
                    access.is_sequential = stream.note(record.offset, record.len);
                    timeline.push(access, None, block_bytes);
                }
            }
            ends[latest.min(EPOCHS - 1)] = timeline.touches.len();
        }
        let mut start = 0;
        for end in ends {
            timeline.epochs.push(start..end.max(start));
            start = end.max(start);
        }
        timeline
    }

    fn push(&mut self, access: Access, truncates_to: Option<u64>, block_bytes: u32) {
        let start = self.touched.len();
        if truncates_to.is_none() {
            for block in access.blocks(block_bytes) {
                let next = u32::try_from(self.blocks.len()).unwrap_or(u32::MAX);
                let number = *self.numbers.entry((access.file, block)).or_insert(next);
                if number == next {
                    self.blocks.push((access.file, block));
                }
                self.touched.push(number);
            }
        }
        self.touches.push(Touch { access, truncates_to, touched: start..self.touched.len() });
    }

    pub(super) fn epoch(&self, number: usize) -> &[Touch] {
        self.epochs.get(number).and_then(|range| self.touches.get(range.clone())).unwrap_or_default()
    }

    /// Numbers of the blocks that a record touches.
    pub(super) fn touched(&self, touch: &Touch) -> &[u32] {
        self.touched.get(touch.touched.clone()).unwrap_or_default()
    }

    pub(super) fn clock(&self, number: usize) -> EpochClock {
        EpochClock { number: number as u64, epoch_ms: self.epoch_ms, period_ms: self.period_ms }
    }

    /// Scores by predictor, then by block.
    pub(super) fn score_table(&self, scores: &Scores) -> Vec<Vec<f32>> {
        let mut table: Vec<Vec<f32>> = Predictor::all().map(|_| vec![0.0; self.blocks.len()]).collect();
        for scored in &scores.blocks {
            let Some(number) = self.numbers.get(&(scored.file, scored.block)) else { continue };
            for (values, score) in table.iter_mut().zip(scored.scores) {
                values[place(*number)] = score;
            }
        }
        table
    }

    /// What a clairvoyant order thinks each block is worth at the end of an epoch.
    pub(super) fn future(&self, order: Order, number: usize) -> &[f32] {
        let known = self.futures.get(order.index());
        let all = known.map(|known| known.get_or_init(|| futures(order, &self.counts(), self.blocks.len())));
        all.and_then(|all| all.get(number)).map_or(&[], Vec::as_slice)
    }

    /// Non-sequential accesses by epoch: block and count.
    fn counts(&self) -> Vec<Vec<(u32, f32)>> {
        let count_epoch = |number| {
            let mut counts: BTreeMap<u32, f32> = BTreeMap::new();
            let touches = self.epoch(number).iter().filter(|touch| !touch.access.is_sequential);
            touches.flat_map(|touch| self.touched(touch)).for_each(|block| *counts.entry(*block).or_default() += 1.0);
            counts.into_iter().collect()
        };
        (0..EPOCHS).map(count_epoch).collect()
    }
}

//! The rows that the forest is grown from: a sample of every epoch's blocks, with what the next epoch brought.

use super::features::Features;
use super::forest::Row;
use super::history::History;
use super::{BlockScores, PLAIN_DECAY, PREDICTORS, features::count_f32};
use crate::units::{BlockNo, FileId};
use std::collections::{HashMap, VecDeque};

/// Epochs that are remembered.
const EPOCHS: usize = 24;
/// Rows of all epochs together.
const ROWS: usize = 16_384;
/// Of which so many are of blocks with heat.
const ACTIVE_PERCENT: usize = 80;
/// Errors this many times their mean mean that the world has changed.
const JUMP: f32 = 2.0;
/// Plain decay from which a block counts as active, relative to the mean.
const ACTIVE_SCORE: f32 = 0.05;

/// Has a block heat?
pub(super) fn is_active(scored: &BlockScores) -> bool {
    scored.scores[PLAIN_DECAY] >= ACTIVE_SCORE
}

/// The blocks of an epoch that are to be learned from, found while all are scored.
pub(super) struct Sample {
    /// Place of the next block that is offered.
    at: u32,
    /// Rank in the draw by place.
    wanted: HashMap<u32, usize>,
    /// By rank in the draw.
    waiting: Vec<Option<Waiting>>,
}

impl Sample {
    /// The next block that was scored. `is_predicted`: the model's score is its own.
    pub(super) fn offer(&mut self, scored: &BlockScores, features: &Features, is_predicted: bool) {
        let rank = self.wanted.get(&self.at).copied();
        self.at = self.at.saturating_add(1);
        if let Some(waiting) = rank.and_then(|rank| self.waiting.get_mut(rank)) {
            let predicted = is_predicted.then(|| scored.scores[PREDICTORS - 1].ln_1p());
            *waiting = Some(Waiting { file: scored.file, block: scored.block, features: *features, predicted });
        }
    }
}

/// A sampled block that waits for its outcome.
pub(super) struct Waiting {
    file: FileId,
    block: BlockNo,
    features: Features,
    predicted: Option<f32>,
}

pub(super) struct Training {
    pub(super) state: u64,
    pub(super) epochs: VecDeque<Vec<Row>>,
    pub(super) waiting: Vec<Waiting>,
    pub(super) mean_rate: f32,
    /// Mean error of the model, decayed; None: not known yet.
    pub(super) error: Option<f32>,
}

impl Training {
    pub(super) fn new(seed: u64) -> Training {
        // Zero is a fixed point of the generator.
        Training { state: seed | 1 << 63, epochs: VecDeque::new(), waiting: Vec::new(), mean_rate: 1.0, error: None }
    }

    /// What became of the blocks that were sampled an epoch ago. True when the model has been much more wrong than usual.
    pub(super) fn learn_outcomes(&mut self, history: &History) -> bool {
        let (mut error, mut judged) = (0.0f32, 0usize);
        let mut rows = Vec::with_capacity(self.waiting.len());
        for waiting in self.waiting.drain(..) {
            let count = history.record(waiting.file, waiting.block).map_or(0.0, |record| record.accesses());
            let outcome = (count / self.mean_rate).ln_1p();
            rows.push(Row { features: waiting.features, outcome });
            if let Some(predicted) = waiting.predicted {
                error += (predicted - outcome).powi(2);
                judged += 1;
            }
        }
        if !rows.is_empty() {
            self.epochs.push_back(rows);
        }
        if self.epochs.len() > EPOCHS {
            self.epochs.pop_front();
        }
        if judged == 0 {
            return false;
        }
        let error = error / count_f32(judged);
        let usual = self.error.unwrap_or(error);
        self.error = Some(0.8 * usual + 0.2 * error);
        error > JUMP * usual
    }

    /// Draws the epoch's sample, from the places of blocks with heat and of the others in the order in which they will be scored.
    pub(super) fn draw_sample(&mut self, mut active: Vec<u32>, mut others: Vec<u32>) -> Sample {
        let wanted = ROWS / EPOCHS;
        let from_active = self.draw(&mut active, wanted * ACTIVE_PERCENT / 100);
        let from_others = self.draw(&mut others, wanted - wanted * ACTIVE_PERCENT / 100);
        let drawn = active.into_iter().take(from_active).chain(others.into_iter().take(from_others));
        let wanted: HashMap<u32, usize> = drawn.enumerate().map(|(rank, place)| (place, rank)).collect();
        Sample { at: 0, waiting: wanted.iter().map(|_| None).collect(), wanted }
    }

    /// The sampled blocks' outcomes come with the next epoch.
    pub(super) fn wait_for(&mut self, sample: Sample, mean_rate: f32) {
        self.mean_rate = mean_rate;
        self.waiting = sample.waiting.into_iter().flatten().collect();
    }

    /// Epochs whose outcomes are known.
    pub(super) fn epochs(&self) -> usize {
        self.epochs.len()
    }

    /// Shuffles `count` of the places to the front; returns how many there were.
    fn draw(&mut self, places: &mut [u32], count: usize) -> usize {
        let count = count.min(places.len());
        for at in 0..count {
            let left = u64::try_from(places.len() - at).unwrap_or(1);
            let other = at + usize::try_from(self.next() % left).unwrap_or(0);
            places.swap(at, other);
        }
        count
    }

    /// xorshift64*.
    fn next(&mut self) -> u64 {
        self.state ^= self.state << 13;
        self.state ^= self.state >> 7;
        self.state ^= self.state << 17;
        self.state.wrapping_mul(0x2545_f491_4f6c_dd1d) >> 16
    }

    pub(super) fn rows(&self) -> impl Iterator<Item = &Row> {
        self.epochs.iter().flatten()
    }
}

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

/// The blocks of an epoch that are to be learned from, found while all are scored. Blocks with heat are numbered in the order in which they come, and so are
/// the others; what was drawn are numbers.
pub(super) struct Sample {
    active: Drawn,
    others: Drawn,
    /// By rank in the draw.
    waiting: Vec<Option<Waiting>>,
}

/// Numbers that were drawn.
struct Drawn {
    /// The next block's number.
    at: u32,
    /// Rank in the draw by number.
    wanted: HashMap<u32, usize>,
}

impl Drawn {
    /// The numbers in the order in which they were drawn, the first of which has this rank.
    fn of(numbers: Vec<u32>, first_rank: usize) -> Drawn {
        let wanted = numbers.into_iter().zip(first_rank..).collect();
        Drawn { at: 0, wanted }
    }

    /// The rank of the next block, if it was drawn.
    fn next(&mut self) -> Option<usize> {
        let rank = self.wanted.get(&self.at).copied();
        self.at = self.at.saturating_add(1);
        rank
    }
}

impl Sample {
    /// The next block that was scored. `is_predicted`: the model's score is its own.
    pub(super) fn offer(&mut self, scored: &BlockScores, features: &Features, is_predicted: bool) {
        let rank = if is_active(scored) { self.active.next() } else { self.others.next() };
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

    /// Draws the epoch's sample: of so many blocks with heat, and so many others, that will be scored.
    pub(super) fn draw_sample(&mut self, active: u32, others: u32) -> Sample {
        let wanted = ROWS / EPOCHS;
        let of_active = wanted * ACTIVE_PERCENT / 100;
        let active = self.draw(active, of_active);
        let others = self.draw(others, wanted - of_active);
        let (of_active, all) = (active.len(), active.len() + others.len());
        Sample {
            active: Drawn::of(active, 0),
            others: Drawn::of(others, of_active),
            waiting: (0..all).map(|_| None).collect(),
        }
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

    /// Draws `wanted` of the numbers below `count`, as a shuffle of all would, of which only the places that have changed are kept.
    fn draw(&mut self, count: u32, wanted: usize) -> Vec<u32> {
        let wanted = u32::try_from(wanted).unwrap_or(u32::MAX).min(count);
        let mut moved: HashMap<u32, u32> = HashMap::new();
        let drawn = (0..wanted).map(|at| {
            let left = u64::from(count - at);
            let other = at + u32::try_from(self.next() % left).unwrap_or(0);
            let number = moved.get(&other).copied().unwrap_or(other);
            let here = moved.get(&at).copied().unwrap_or(at);
            moved.insert(other, here);
            number
        });
        drawn.collect()
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

//! Three simulated tiers: what lies where, what is hit, what is moved.

use super::epochs::EPOCHS_BEFORE;
use crate::policy::ranked::{RankedSet, Turnover};
use crate::policy::staging::Staging;

/// Latency of an access, fastest tier first.
const LATENCIES_MS: [f64; 3] = [0.1, 0.3, 8.0];
/// The second tier is so many times as large as the fastest.
const MIDDLE_TO_FAST: usize = 3;

/// Sizes in blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct TiersShape {
    pub(super) fast_blocks: usize,
    middle_blocks: usize,
}

impl TiersShape {
    /// A fast tier for a percentage of `blocks`, at least one.
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, clippy::cast_precision_loss)]
    pub(super) fn new(blocks: usize, fast_percent: f64) -> TiersShape {
        let fast_blocks = ((blocks as f64 * fast_percent / 100.0) as usize).max(1);
        TiersShape { fast_blocks, middle_blocks: fast_blocks * MIDDLE_TO_FAST }
    }

    fn turnovers(&self) -> [Turnover; 2] {
        [Turnover::of(self.fast_blocks), Turnover::of(self.middle_blocks)]
    }
}

/// Sums over the epochs that count.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Report {
    pub(super) accesses: f64,
    pub(super) hits: f64,
    pub(super) latency_ms: f64,
    pub(super) moved_blocks: u64,
    pub(super) staged_blocks: u64,
    pub(super) budget_blocks: u64,
}

pub(super) struct Tiers {
    shape: TiersShape,
    placed: RankedSet,
    middle: RankedSet,
    staging: Staging<u32>,
    counts: bool,
    report: Report,
}

impl Tiers {
    pub(super) fn new(shape: TiersShape) -> Tiers {
        Tiers {
            shape,
            placed: RankedSet::default(),
            middle: RankedSet::default(),
            staging: Staging::new(0),
            counts: false,
            report: Report::default(),
        }
    }

    pub(super) fn shape(&self) -> TiersShape {
        self.shape
    }

    /// Blocks that stage from the first access on.
    pub(super) fn begin_with_staging(&mut self, blocks: usize) {
        self.staging.set_capacity(blocks);
    }

    /// A non-sequential access; true when the fastest tier has the block.
    pub(super) fn access(&mut self, block: u32) -> bool {
        let is_hit = self.placed.contains(block) || self.staging.access(block);
        let staged = !is_hit && self.staging.admit(block);
        if self.counts {
            let tier = if is_hit { 0 } else { 2 - usize::from(self.middle.contains(block)) };
            self.report.accesses += 1.0;
            self.report.hits += f64::from(u8::from(is_hit));
            self.report.latency_ms += LATENCIES_MS[tier];
            self.report.staged_blocks += u64::from(staged);
        }
        is_hit
    }

    /// Moves towards what the scores ask for, at the end of an epoch.
    pub(super) fn end_epoch(&mut self, number: usize, scores: &[f32], staging_blocks: usize) {
        let [fast, middle] = self.shape.turnovers();
        let mut moved = 0usize;
        let entered = self.placed.follow(scores, self.shape.fast_blocks - staging_blocks, fast, |_| true);
        for block in &entered {
            // What is staged lies there already.
            moved += usize::from(!self.staging.remove(*block));
            self.middle.remove(*block);
        }
        self.staging.set_capacity(staging_blocks);
        let placed = &self.placed;
        moved += self.middle.follow(scores, self.shape.middle_blocks, middle, |block| !placed.contains(block)).len();
        if self.counts {
            self.report.moved_blocks += u64::try_from(moved).unwrap_or(0);
            self.report.budget_blocks += u64::try_from(fast.blocks_max + middle.blocks_max).unwrap_or(0);
        }
        self.counts = number + 1 >= EPOCHS_BEFORE;
    }

    pub(super) fn report(&self) -> Report {
        self.report
    }
}

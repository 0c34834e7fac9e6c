//! Replaying a trace of accesses against simulated tiers: what would each way of placing blocks have hit, and at what price?
//!
//! Three tiers: the fastest holds [`Conditions::fast_percent`] of the blocks that the trace touches, the second three times as many, the slowest the rest. A trace is a
//! hundred epochs, of equal time for a database's files and of equal accesses for block devices, whose time stamps are often none; the
//! first thirty fill the tiers and are not counted. Each epoch at most a tenth of each fast set is replaced. Sequential accesses are neither
//! heat nor hits. The forecast, the gate, the staging cache and the ranked sets are the product's own.

mod clairvoyant;
mod epochs;
#[cfg(test)]
mod tests;
mod tiers;
mod trace;

pub(super) use trace::refuse_endless;
pub use trace::{Operation, Record, TRACE_HEADER, Trace};

use crate::error::{Error, Result};
use crate::heat::forecast::{DECAYS, Forecast, ForecastSettings, Predictor, Scores};
use crate::policy::gate::{Contender, Gate, GateStatus};
use crate::policy::ranked::place;
use crate::units::DEFAULT_BLOCK_BYTES;
use clairvoyant::Order;
use epochs::Timeline;
use serde::Serialize;
use std::fmt;
use std::str::FromStr;
use tiers::{Report, Tiers, TiersShape};

/// Unit of placement in replays.
pub const BLOCK_BYTES: u32 = DEFAULT_BLOCK_BYTES;

/// A way of placing blocks.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Policy {
    /// Heat with a half-life of 8 epochs.
    Decay,
    /// The best of the bank of decays, by the gate.
    Bank,
    /// The forest, ungated; plain decay until there is one.
    Model,
    /// The best of bank and model, by the gate.
    Gate,
    /// The whole fast tier stages misses.
    S3Fifo,
    /// What heatfs does: bank, model and staging shares, by the gate.
    Shipped,
    /// The best of three orders that know the future, within the same budget.
    Oracle,
}

impl Policy {
    pub const ALL: [Policy; 7] =
        [Policy::Decay, Policy::Bank, Policy::Model, Policy::Gate, Policy::S3Fifo, Policy::Shipped, Policy::Oracle];

    pub fn name(self) -> &'static str {
        match self {
            Policy::Decay => "decay",
            Policy::Bank => "bank",
            Policy::Model => "model",
            Policy::Gate => "gate",
            Policy::S3Fifo => "s3fifo",
            Policy::Shipped => "shipped",
            Policy::Oracle => "oracle",
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

impl FromStr for Policy {
    type Err = Error;

    fn from_str(text: &str) -> Result<Policy> {
        Policy::ALL.into_iter().find(|policy| policy.name() == text).ok_or_else(|| {
            let names = Policy::ALL.map(Policy::name).join(", ");
            Error::Invalid(format!("no policy `{text}`: there are {names}"))
        })
    }
}

#[derive(Clone, Debug)]
pub struct Conditions {
    /// Sizes of the fastest tier, in percent of the blocks that the trace touches.
    pub fast_percent: Vec<f64>,
    pub policies: Vec<Policy>,
    pub seed: u64,
}

/// What one policy did on a fast tier of one size, over the epochs that count.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Outcome {
    pub policy: &'static str,
    /// Size of the fastest tier in percent.
    pub fast: f64,
    /// Share of non-sequential accesses that found their block on the fastest tier.
    pub hits: f64,
    /// Mean latency of non-sequential accesses.
    pub latency_ms: f64,
    /// Written by moves to the two faster tiers.
    pub moved_bytes: u64,
    /// What moves may have written in this time.
    pub budget_bytes: u64,
    /// Written to the fastest tier behind misses that had read the block anyway.
    pub staged_bytes: u64,
    /// The gate at the end, where there is one.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub gate: Option<GateStatus>,
}

/// Runs every policy on every size of the fast tier: in the order of the sizes, then of the policies.
pub fn replay(trace: &Trace, conditions: &Conditions) -> Vec<Outcome> {
    let timeline = Timeline::new(trace, BLOCK_BYTES);
    let mut runs: Vec<Run> = Vec::new();
    for percent in &conditions.fast_percent {
        let shape = TiersShape::new(timeline.blocks.len(), *percent);
        for policy in &conditions.policies {
            runs.extend(Driver::of(*policy).into_iter().map(|driver| Run::new(*policy, *percent, driver, shape)));
        }
    }
    let mut forecast = Forecast::new(ForecastSettings { seed: conditions.seed, ..ForecastSettings::default() });
    timeline.classes.iter().for_each(|(file, class)| forecast.note_class(*file, *class));
    for number in 0..epochs::EPOCHS {
        for touch in timeline.epoch(number) {
            if let Some(size) = touch.truncates_to {
                forecast.truncate(touch.access.file, size);
            } else {
                forecast.observe(&touch.access);
            }
            if touch.access.is_sequential || touch.truncates_to.is_some() {
                continue;
            }
            for block in timeline.touched(touch) {
                let (file, at) = timeline.blocks[place(*block)];
                for run in &mut runs {
                    let is_hit = run.tiers.access(*block);
                    if let Driver::Gated(gate) = &mut run.driver {
                        gate.observe_real(file, at, is_hit);
                    }
                }
            }
        }
        let scores = forecast.end_epoch(timeline.clock(number));
        let table = timeline.score_table(&scores);
        for run in &mut runs {
            run.end_epoch(&timeline, number, &scores, &table);
        }
    }
    outcomes(runs)
}

/// Of several runs of one policy (the clairvoyant ones) the best counts.
fn outcomes(runs: Vec<Run>) -> Vec<Outcome> {
    let mut outcomes: Vec<Outcome> = Vec::new();
    for run in runs {
        let outcome = run.outcome();
        match outcomes.last_mut() {
            Some(last) if last.policy == outcome.policy && last.fast == outcome.fast => {
                if outcome.hits > last.hits {
                    *last = outcome;
                }
            }
            _ => outcomes.push(outcome),
        }
    }
    outcomes
}

/// Who says where blocks belong.
enum Driver {
    Fixed(Contender),
    Gated(Box<Gate>),
    Clairvoyant(Order),
}

impl Driver {
    fn of(policy: Policy) -> Vec<Driver> {
        let bank = || (0..DECAYS).map(Predictor::Decay);
        let gated = |contenders| vec![Driver::Gated(Box::new(Gate::new(contenders)))];
        match policy {
            Policy::Decay => vec![Driver::Fixed(Contender::PLAIN)],
            Policy::Bank => gated(Contender::of(bank(), 0)),
            Policy::Model => vec![Driver::Fixed(Contender { predictor: Predictor::Model, staging_percent: 0 })],
            Policy::Gate => gated(Contender::of(Predictor::all(), 0)),
            Policy::S3Fifo => vec![Driver::Fixed(Contender { staging_percent: 100, ..Contender::PLAIN })],
            Policy::Shipped => gated(Contender::all()),
            Policy::Oracle => Order::ALL.into_iter().map(Driver::Clairvoyant).collect(),
        }
    }
}

/// One policy on one size of the fast tier.
struct Run {
    policy: Policy,
    fast_percent: f64,
    driver: Driver,
    tiers: Tiers,
}

impl Run {
    fn new(policy: Policy, fast_percent: f64, driver: Driver, shape: TiersShape) -> Run {
        let mut tiers = Tiers::new(shape);
        if let Driver::Fixed(contender) = &driver {
            tiers.begin_with_staging(contender.staging_blocks(shape.fast_blocks));
        }
        Run { policy, fast_percent, driver, tiers }
    }

    /// `table`: scores by predictor, then by block.
    fn end_epoch(&mut self, timeline: &Timeline, number: usize, scores: &Scores, table: &[Vec<f32>]) {
        let capacity = self.tiers.shape().fast_blocks;
        let contender = match &mut self.driver {
            Driver::Fixed(contender) => *contender,
            Driver::Gated(gate) => {
                gate.end_epoch(scores, capacity);
                gate.choice()
            }
            Driver::Clairvoyant(order) => {
                self.tiers.end_epoch(number, timeline.future(*order, number), 0);
                return;
            }
        };
        if let Some(scores) = table.get(contender.predictor.index()) {
            self.tiers.end_epoch(number, scores, contender.staging_blocks(capacity));
        }
    }

    fn outcome(self) -> Outcome {
        let Report { accesses, hits, latency_ms, moved_blocks, staged_blocks, budget_blocks } = self.tiers.report();
        let bytes = |blocks: u64| blocks * u64::from(BLOCK_BYTES);
        Outcome {
            policy: self.policy.name(),
            fast: self.fast_percent,
            hits: hits / accesses.max(1.0),
            latency_ms: latency_ms / accesses.max(1.0),
            moved_bytes: bytes(moved_blocks),
            budget_bytes: bytes(budget_blocks),
            staged_bytes: bytes(staged_blocks),
            gate: match self.driver {
                Driver::Gated(gate) => Some(gate.status()),
                Driver::Fixed(_) | Driver::Clairvoyant(_) => None,
            },
        }
    }
}

//! What the forecast shows of itself.

use super::{ForecasterSettings, Inner};
use crate::heat::Recorder;
use crate::policy::gate::Standing;
use serde::{Deserialize, Serialize};

/// How one way of filling the fastest tier would have done.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct ContenderStatus {
    pub name: String,
    /// Share of readers' misses of the page cache that it would have hit, decayed; None until it may be judged.
    pub hits: Option<f64>,
    pub chosen: bool,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct ForecastStatus {
    /// Why nothing is forecast and heat is plain decay; None while it is.
    pub off: Option<String>,
    /// What became of the memory of the last run.
    pub memory: String,
    /// The contender that is believed, and why.
    pub choice: String,
    pub reason: String,
    pub epochs: u64,
    pub since_epoch: u64,
    pub switches: u32,
    /// Epochs until something other than plain decay may be chosen, after a choice has failed.
    pub barred_epochs: u64,
    /// Share of readers' misses that the fastest tier really served, decayed as the contenders' are.
    pub real_hits: Option<f64>,
    /// Best first.
    pub contenders: Vec<ContenderStatus>,
    /// Share of the fastest tier that stages misses, in percent; blocks that it holds at most, and holds.
    pub staging_percent: u8,
    pub staging_blocks: u64,
    pub staged_blocks: u64,
    /// One in so many blocks is in the gate's sample.
    pub sampled_one_in: u64,
    pub model: String,
    /// Accesses heard of, and those that others stand for because there were many.
    pub heard: u64,
    pub skipped: u64,
    pub memory_bytes: u64,
    /// Shards of 64 blocks with a record for each block, and those with one for all.
    pub fine_shards: u64,
    pub merged_shards: u64,
    /// Processor time of the forecast, and its share of one core since it began.
    pub cpu_ms: u64,
    pub cpu_share: f64,
}

impl ForecastStatus {
    /// Who is believed about the heat of blocks.
    pub fn believed(&self) -> String {
        if self.off.is_some() { "plain decay".to_owned() } else { self.choice.clone() }
    }

    /// Why.
    pub fn because(&self) -> String {
        match &self.off {
            Some(why) => format!("there is no forecast: {why}"),
            None => self.reason.clone(),
        }
    }
}

pub(super) fn of(inner: &Inner, settings: &ForecasterSettings, recorder: &Recorder) -> ForecastStatus {
    let gate = inner.gate.status();
    let known = |one: &Standing| ContenderStatus {
        name: one.contender.to_string(),
        hits: one.hits,
        chosen: one.contender == gate.choice,
    };
    let mut contenders: Vec<ContenderStatus> = gate.standings.iter().map(known).collect();
    contenders.sort_by(|a, b| b.hits.unwrap_or(-1.0).total_cmp(&a.hits.unwrap_or(-1.0)).then(a.name.cmp(&b.name)));
    let beside = recorder.status();
    let lasted = inner.began.elapsed().as_secs_f64();
    ForecastStatus {
        off: inner.failure.clone(),
        memory: inner.memory.clone().unwrap_or_else(|| "what was saved is not read yet".to_owned()),
        choice: gate.choice.to_string(),
        reason: gate.reason.to_string(),
        epochs: gate.epochs,
        since_epoch: gate.since_epoch,
        switches: gate.switches,
        barred_epochs: gate.barred_epochs,
        real_hits: gate.real_hits,
        contenders,
        staging_percent: if settings.staging && inner.failure.is_none() { gate.choice.staging_percent } else { 0 },
        staging_blocks: 0,
        staged_blocks: 0,
        sampled_one_in: gate.sampled_one_in,
        model: inner.forecast.model_words(),
        heard: inner.heard,
        skipped: inner.skipped,
        memory_bytes: inner.forecast.memory_bytes()
            + inner.gate.memory_bytes()
            + beside.expected_bytes
            + beside.queues_bytes,
        fine_shards: inner.forecast.shards() as u64,
        merged_shards: inner.forecast.merged_shards() as u64,
        cpu_ms: u64::try_from(inner.cpu.as_millis()).unwrap_or(u64::MAX),
        cpu_share: if lasted > 0.0 { inner.cpu.as_secs_f64() / lasted } else { 0.0 },
    }
}

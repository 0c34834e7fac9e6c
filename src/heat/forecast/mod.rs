//! Predicted heat: what each block is expected to be accessed in the next epoch, by a bank of decays and by a model of the volume's own past.
//!
//! [`Forecast::observe`] counts an access; [`Forecast::end_epoch`] closes an epoch and gives every block that matters its scores, by each
//! [`Predictor`]. Nothing here decides: which predictor is believed is the gate's business (`policy::gate`), which keeps score of all of them.
//!
//! The model is a forest (`forest.rs`) that is grown anew every [`REFIT_EVERY_EPOCHS`] epochs, or when its errors jump, from rows sampled in
//! the latest epochs: a block's features at the end of one epoch, and what the next brought. It is deterministic: no clock, no thread, one seed.
//! Whatever goes wrong with it is a [`ModelState`], never a failure: the bank of decays always has an answer.

mod features;
mod forest;
mod history;
mod record;
mod season;
#[cfg(test)]
mod tests;
mod training;

pub use forest::ModelError;
pub use history::{Access, FileClass};
pub use record::{DECAYS, HALF_LIVES_EPOCHS, PLAIN_DECAY};

use crate::units::{BlockNo, FileId};
use features::{FEATURES, Features, Surroundings, count_f32, visit};
use forest::Forest;
use history::History;
use record::{NEVER, decay_factors};
use season::Seasons;
use serde::{Deserialize, Serialize};
use std::fmt;
use training::Training;

/// Epochs before the first forest.
pub const MODEL_EPOCHS_MIN: u64 = 10;
/// Epochs between two forests.
pub const REFIT_EVERY_EPOCHS: u64 = 8;
/// All predictors: the bank of decays, and the model last.
pub const PREDICTORS: usize = DECAYS + 1;

/// Who predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predictor {
    /// One of the bank of decays, by its place in [`HALF_LIVES_EPOCHS`].
    Decay(usize),
    Model,
}

impl Predictor {
    pub const PLAIN: Predictor = Predictor::Decay(PLAIN_DECAY);

    pub fn all() -> impl Iterator<Item = Predictor> {
        (0..DECAYS).map(Predictor::Decay).chain([Predictor::Model])
    }

    /// Place among [`BlockScores::scores`].
    pub fn index(self) -> usize {
        match self {
            Predictor::Decay(decay) => decay.min(DECAYS - 1),
            Predictor::Model => DECAYS,
        }
    }
}

impl fmt::Display for Predictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Predictor::Decay(decay) => write!(f, "decay{}", HALF_LIVES_EPOCHS.get(*decay).copied().unwrap_or_default()),
            Predictor::Model => f.write_str("model"),
        }
    }
}

/// What a block is expected to be accessed in the next epoch, relative to the mean block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockScores {
    pub file: FileId,
    pub block: BlockNo,
    /// By [`Predictor::index`]; the model's is that of plain decay while there is no model.
    pub scores: [f32; PREDICTORS],
}

/// Whether the model is to be reckoned with.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ModelState {
    /// Not enough epochs yet.
    Learning,
    Ready,
    Failed(ModelError),
}

/// All blocks with a score, by file and block; what is not named scores 0.
#[derive(Clone, Debug, PartialEq)]
pub struct Scores {
    pub blocks: Vec<BlockScores>,
    pub model: ModelState,
}

/// When an epoch was. Jumps of the clock only make its place in a cycle wrong, for as long as they last.
#[derive(Clone, Copy, Debug, Default)]
pub struct EpochClock {
    pub number: u64,
    pub epoch_ms: u64,
    /// Length of a known cycle; 0: none is known.
    pub period_ms: u64,
}

#[derive(Clone, Copy, Debug)]
pub struct ForecastSettings {
    pub block_bytes: u32,
    pub seed: u64,
    /// Shards of 64 blocks that are remembered; the coldest go beyond that.
    pub shards_max: usize,
}

impl Default for ForecastSettings {
    /// 128 MiB of records, for 340 GiB of shards touched lately; as much again where a cycle is known.
    fn default() -> Self {
        ForecastSettings { block_bytes: crate::units::DEFAULT_BLOCK_BYTES, seed: 1, shards_max: 87_000 }
    }
}

/// See the module's head.
pub struct Forecast {
    settings: ForecastSettings,
    factors: [f32; DECAYS],
    history: History,
    seasons: Seasons,
    training: Training,
    forest: Option<Forest>,
    /// Why there is no forest, once there should be one.
    failure: Option<ModelError>,
    epochs: u64,
}

impl Forecast {
    pub fn new(settings: ForecastSettings) -> Forecast {
        Forecast {
            settings,
            factors: decay_factors(),
            history: History::default(),
            seasons: Seasons::default(),
            training: Training::new(settings.seed),
            forest: None,
            failure: None,
            epochs: 0,
        }
    }

    pub fn observe(&mut self, access: &Access) {
        self.history.count(access, self.settings.block_bytes);
    }

    pub fn note_class(&mut self, file: FileId, class: FileClass) {
        self.history.files.entry(file).or_default().class = class;
    }

    /// A file now ends at `bytes`.
    pub fn truncate(&mut self, file: FileId, bytes: u64) {
        self.history.truncate(file, bytes.div_ceil(u64::from(self.settings.block_bytes.max(1))));
    }

    pub fn forget(&mut self, file: FileId) {
        self.history.files.remove(&file);
    }

    /// Shards of 64 blocks with records.
    pub fn shards(&self) -> usize {
        self.history.shards()
    }

    /// Ends the epoch that ran and predicts the next one.
    pub fn end_epoch(&mut self, clock: EpochClock) -> Scores {
        self.epochs += 1;
        let jumped = self.training.learn_outcomes(&self.history);
        self.history.end_epoch(&self.factors);
        let moment = self.seasons.end_epoch(&mut self.history, clock);
        let around = Surroundings { mean_rate: self.mean_rate(), moment };
        if self.epochs >= MODEL_EPOCHS_MIN
            && (jumped || self.epochs.is_multiple_of(REFIT_EVERY_EPOCHS) || self.is_due())
        {
            self.refit();
        }
        let (mut blocks, mut values) = (Vec::new(), Vec::<Features>::new());
        for (file, history) in &self.history.files {
            visit(history, &around, |block, shard, index, features| {
                let mut scores = [0.0; PREDICTORS];
                if let Some(record) = shard.records.get(index) {
                    for (decay, score) in scores.iter_mut().take(DECAYS).enumerate() {
                        *score = record.decayed(decay) / around.mean_rate;
                    }
                }
                scores[DECAYS] = scores[PLAIN_DECAY];
                blocks.push(BlockScores { file: *file, block: BlockNo(block), scores });
                values.push(features);
            });
        }
        let outcomes = self.predict(&values);
        if let Some(outcomes) = &outcomes {
            for (block, outcome) in blocks.iter_mut().zip(outcomes) {
                block.scores[DECAYS] = outcome.exp_m1().max(0.0);
            }
        }
        self.training.sample(&blocks, &values, outcomes.is_some(), around.mean_rate);
        self.history.begin_epoch(self.settings.shards_max);
        Scores { blocks, model: self.model_state() }
    }

    /// Mean accesses per epoch of a block that was ever accessed.
    fn mean_rate(&self) -> f32 {
        let records =
            self.history.files.values().flat_map(|file| file.shards.values()).flat_map(|shard| &shard.records);
        let (mut known, mut rate) = (0usize, 0.0f32);
        for record in records.filter(|record| record.age() != NEVER) {
            known += 1;
            rate += record.decayed(PLAIN_DECAY);
        }
        (rate / count_f32(known.max(1))).max(1e-6)
    }

    fn is_due(&self) -> bool {
        self.forest.is_none() && self.failure.is_none()
    }

    fn refit(&mut self) {
        match Forest::grow(self.training.rows(), self.settings.seed) {
            Ok(forest) => (self.forest, self.failure) = (Some(forest), None),
            Err(error) => (self.forest, self.failure) = (None, Some(error)),
        }
    }

    /// None without a usable forest; one that answers nonsense is dropped.
    fn predict(&mut self, values: &[Features]) -> Option<Vec<f32>> {
        let answer = self.forest.as_ref()?.predict(values.as_flattened().to_vec());
        answer.map_err(|error| (self.forest, self.failure) = (None, Some(error))).ok()
    }

    fn model_state(&self) -> ModelState {
        match (&self.forest, &self.failure) {
            (Some(_), _) => ModelState::Ready,
            (None, Some(error)) => ModelState::Failed(error.clone()),
            (None, None) => ModelState::Learning,
        }
    }

    /// The model's bytes, to be kept across restarts; None while there is no model.
    pub fn save_model(&self) -> Result<Option<Vec<u8>>, ModelError> {
        self.forest.as_ref().map(Forest::encode).transpose()
    }

    /// Takes a saved model. An error says why it is unusable; then a new one is grown as soon as there are epochs to learn from.
    pub fn load_model(&mut self, bytes: &[u8]) -> Result<(), ModelError> {
        self.forest = Some(Forest::decode(bytes)?);
        self.failure = None;
        Ok(())
    }
}

const _: () = assert!(FEATURES > DECAYS);

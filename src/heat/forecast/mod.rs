//! Predicted heat: what each block is expected to be accessed in the next epoch, by a bank of decays and by a model of the volume's own past.
//!
//! [`Forecast::observe`] counts an access; [`Forecast::close_epoch`] closes an epoch and [`Forecast::score`] gives every block that matters its scores, by each
//! [`Predictor`]; [`Forecast::end_epoch`] does both for callers who want them all at once. Nothing here decides: which predictor is believed is the gate's business (`policy::gate`), which keeps score of all of them.
//!
//! The model is a forest (`forest.rs`) that is grown anew every [`REFIT_EVERY_EPOCHS`] epochs, or when its errors jump, from rows sampled in
//! the latest epochs: a block's features at the end of one epoch, and what the next brought. It is deterministic: no clock, no thread, one seed.
//! Whatever goes wrong with it is a [`ModelState`], never a failure: the bank of decays always has an answer.

mod features;
mod forest;
mod history;
mod merged;
mod reasons;
mod record;
mod saved;
mod season;
#[cfg(test)]
mod tests;
mod training;

pub use forest::ModelError;
pub use history::{Access, FileClass};
pub use reasons::Mattered;
pub(super) use record::{Coarse, Half};
pub use record::{DECAYS, HALF_LIVES_EPOCHS, PLAIN_DECAY};

use crate::units::{BlockNo, FileId};
use features::{FEATURES, Features, Moment, Surroundings, count_f32, visit};
use forest::Forest;
use history::{History, Shard};
use record::{NEVER, decay_factors};
use season::Seasons;
use serde::{Deserialize, Serialize};
use std::fmt;
use training::{Sample, Training, is_active};

/// Epochs before the first forest.
pub const MODEL_EPOCHS_MIN: u64 = 10;
/// Epochs between two forests.
pub const REFIT_EVERY_EPOCHS: u64 = 8;
/// Epochs of outcomes that a forest must at least be grown from, so that what was learned before a restart is not given up for less.
const EPOCHS_TO_GROW_FROM: usize = 8;
/// Blocks scored at once: what bounds the memory of scoring, 1 MiB.
const BATCH_BLOCKS: usize = 4096;
/// Records and seasons of a fine shard, with its place in a tree.
const FINE_COST_BYTES: u64 = 64 * (24 + 18) + 96;
/// What each merged one may take: what it takes among neighbours.
const MERGED_COST_BYTES: usize = 28;
/// What the recorder keeps of what is expected of a fine shard. There are two of it while the next epoch's is made, when a forest has been grown and what that
/// took is free again.
const EXPECTED_COST_BYTES: u64 = 64 * 3 + 48;
/// A file with records; a row to learn from.
const FILE_COST_BYTES: u64 = 160;
const ROW_COST_BYTES: u64 = size_of::<forest::Row>() as u64;
/// The forest, and what growing the next one takes meanwhile: an order of all rows by each feature, and the features as a matrix.
const FOREST_COST_BYTES: u64 = 10 << 20;
/// Forest, batch, rows, the gate's shadows and the queues: what is needed however many shards there are.
const BESIDE_BYTES: u64 = 25 << 20;
/// Features and scores of a batch, and the matrix that the forest is asked with.
const BATCH_COST_BYTES: u64 = (BATCH_BLOCKS * (2 * size_of::<Features>() + size_of::<BlockScores>())) as u64;
/// All predictors: the bank of decays, the cycle, and the model last.
pub const PREDICTORS: usize = DECAYS + 2;
/// Places of those among scores.
const CYCLE: usize = DECAYS;
const MODEL: usize = DECAYS + 1;
/// How much of the cycle's prediction is what was seen at this time of the last cycles; the rest is a short memory.
const CYCLE_SHARE: f32 = 0.75;
/// That memory's place in the bank: a half-life of 2 epochs.
const CYCLE_DECAY: usize = 1;

/// Who predicts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Predictor {
    /// One of the bank of decays, by its place in [`HALF_LIVES_EPOCHS`].
    Decay(usize),
    /// What the same part of a known cycle brought before; plain decay where none is known.
    Cycle,
    Model,
}

impl Predictor {
    pub const PLAIN: Predictor = Predictor::Decay(PLAIN_DECAY);

    pub fn all() -> impl Iterator<Item = Predictor> {
        (0..DECAYS).map(Predictor::Decay).chain([Predictor::Cycle, Predictor::Model])
    }

    /// Place among [`BlockScores::scores`].
    pub fn index(self) -> usize {
        match self {
            Predictor::Decay(decay) => decay.min(DECAYS - 1),
            Predictor::Cycle => CYCLE,
            Predictor::Model => MODEL,
        }
    }
}

impl fmt::Display for Predictor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Predictor::Decay(decay) => write!(f, "decay{}", HALF_LIVES_EPOCHS.get(*decay).copied().unwrap_or_default()),
            Predictor::Cycle => f.write_str("cycle"),
            Predictor::Model => f.write_str("model"),
        }
    }
}

/// What a block is expected to be accessed in the next epoch, relative to the mean block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockScores {
    pub file: FileId,
    pub block: BlockNo,
    /// Share of writes among its accesses.
    pub write_share: f32,
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
    /// Shards of 64 blocks of which each block is remembered; of colder ones only the whole is.
    pub shards_max: usize,
}

impl ForecastSettings {
    /// Fine shards whose records, with seasons, fit so many bytes with the merged ones that may be beside them and everything else.
    pub fn shards_in(memory_bytes: u64) -> usize {
        let memory_bytes = memory_bytes - BESIDE_BYTES.min(memory_bytes / 4);
        let each = FINE_COST_BYTES + EXPECTED_COST_BYTES + (MERGED_COST_BYTES * history::MERGED_PER_FINE) as u64;
        usize::try_from(memory_bytes / each).unwrap_or(usize::MAX).max(1)
    }
}

impl Default for ForecastSettings {
    /// 128 MiB of records, for 340 GiB of shards touched lately; three quarters of that again where a cycle is known.
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
    /// Of the epoch that was closed last.
    around: Surroundings,
    /// A forest may be grown at this moment: growing one takes time that the caller may not have.
    may_grow: bool,
}

impl Forecast {
    pub fn new(settings: ForecastSettings) -> Forecast {
        Forecast {
            settings,
            factors: decay_factors(),
            history: History::new(settings.shards_max),
            seasons: Seasons::default(),
            training: Training::new(settings.seed),
            forest: None,
            failure: None,
            epochs: 0,
            around: Surroundings { mean_rate: 1.0, moment: Moment::default() },
            may_grow: true,
        }
    }

    pub fn observe(&mut self, access: &Access) {
        self.observe_many(access, 1);
    }

    /// An access that stands for `times` like it.
    pub fn observe_many(&mut self, access: &Access, times: u16) {
        self.history.count(access, self.settings.block_bytes, times);
    }

    /// With `false`, no forest is grown until further notice; the one in use stays.
    pub fn let_grow(&mut self, may_grow: bool) {
        self.may_grow = may_grow;
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

    /// Shards of 64 blocks with a record for each block.
    pub fn shards(&self) -> usize {
        self.history.shards()
    }

    /// Numbers of a file's shards with a record for each block.
    pub fn fine_shards(&self, file: FileId) -> impl Iterator<Item = u64> + '_ {
        self.history.files.get(&file).into_iter().flat_map(|history| history.shards.keys().copied())
    }

    /// Shards with one record for all their blocks.
    pub fn merged_shards(&self) -> usize {
        self.history.merged_shards()
    }

    /// Ends the epoch that ran and predicts the next one.
    pub fn end_epoch(&mut self, clock: EpochClock) -> Scores {
        self.close_epoch(clock);
        let mut blocks = Vec::new();
        let model = self.score(&mut |scored| blocks.push(*scored));
        Scores { blocks, model }
    }

    /// Ends the epoch that ran, and grows a new forest when it is time to. [`Forecast::score`] follows.
    pub fn close_epoch(&mut self, clock: EpochClock) -> ModelState {
        self.epochs += 1;
        let jumped = self.training.learn_outcomes(&self.history);
        self.history.end_epoch(&self.factors);
        let moment = self.seasons.end_epoch(&mut self.history, clock);
        self.around = Surroundings { mean_rate: self.mean_rate(), moment };
        if self.epochs >= MODEL_EPOCHS_MIN
            && self.may_grow
            && self.training.epochs() >= EPOCHS_TO_GROW_FROM
            && (jumped || self.epochs.is_multiple_of(REFIT_EVERY_EPOCHS) || self.is_due())
        {
            self.refit();
        }
        self.model_state()
    }

    /// Mean accesses per epoch of a block, which scores are relative to.
    pub fn mean_accesses(&self) -> f32 {
        self.around.mean_rate
    }

    /// Tells every block with a score, by file and block, and begins the next epoch. The state that is returned is worse than the one before when the
    /// model failed on the way: then some of its scores were plain decay's.
    pub fn score(&mut self, each: &mut dyn FnMut(&BlockScores)) -> ModelState {
        let around = self.around;
        let mut sample = self.draw_sample(&around);
        let files = std::mem::take(&mut self.history.files);
        let (mut blocks, mut values) = (Vec::new(), Vec::<Features>::new());
        for (file, history) in &files {
            visit(history, &around, |block, shard, index, features| {
                blocks.push(scores_of(*file, block, shard, index, &around));
                values.push(features);
                if blocks.len() == BATCH_BLOCKS {
                    self.score_batch(&mut blocks, &mut values, &mut sample, each);
                }
            });
        }
        self.score_batch(&mut blocks, &mut values, &mut sample, each);
        self.history.files = files;
        self.training.wait_for(sample, around.mean_rate);
        self.history.begin_epoch();
        self.model_state()
    }

    /// Which of the blocks that will be scored become rows to learn from.
    fn draw_sample(&mut self, around: &Surroundings) -> Sample {
        let (mut active, mut others) = (0u32, 0u32);
        for (file, history) in &self.history.files {
            visit(history, around, |block, shard, index, _| {
                let scored = scores_of(*file, block, shard, index, around);
                let counted = if is_active(&scored) { &mut active } else { &mut others };
                *counted = counted.saturating_add(1);
            });
        }
        self.training.draw_sample(active, others)
    }

    fn score_batch(
        &mut self,
        blocks: &mut Vec<BlockScores>,
        values: &mut Vec<Features>,
        sample: &mut Sample,
        each: &mut dyn FnMut(&BlockScores),
    ) {
        let outcomes = self.predict(values);
        if let Some(outcomes) = &outcomes {
            for (block, outcome) in blocks.iter_mut().zip(outcomes) {
                block.scores[MODEL] = outcome.exp_m1().max(0.0);
            }
        }
        for (block, features) in blocks.iter().zip(values.iter()) {
            sample.offer(block, features, outcomes.is_some());
            each(block);
        }
        blocks.clear();
        values.clear();
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

    /// About what all of it takes, in bytes: records, rows to learn from, the forest, and what scoring and growing another forest need for a moment.
    pub fn memory_bytes(&self) -> u64 {
        let of = |count: usize, each: u64| u64::try_from(count).unwrap_or(u64::MAX).saturating_mul(each);
        of(self.shards(), FINE_COST_BYTES)
            .saturating_add(of(self.history.merged_bytes(), 1))
            .saturating_add(of(self.history.files.len(), FILE_COST_BYTES))
            .saturating_add(of(self.training.rows().count(), ROW_COST_BYTES))
            .saturating_add(if self.training.epochs() < EPOCHS_TO_GROW_FROM { 0 } else { FOREST_COST_BYTES })
            .saturating_add(BATCH_COST_BYTES)
    }

    /// How the model is, in words.
    pub fn model_words(&self) -> String {
        match self.model_state() {
            ModelState::Learning if self.epochs < MODEL_EPOCHS_MIN => {
                format!("none yet: {} of {MODEL_EPOCHS_MIN} epochs seen", self.epochs)
            }
            ModelState::Learning => "none yet".to_owned(),
            ModelState::Ready => "ready".to_owned(),
            ModelState::Failed(error) => error.to_string(),
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

/// A block's scores by the bank; the model's is plain decay's so far.
fn scores_of(file: FileId, block: u64, shard: &Shard, index: usize, around: &Surroundings) -> BlockScores {
    let mut scored = BlockScores { file, block: BlockNo(block), write_share: 0.0, scores: [0.0; PREDICTORS] };
    if let Some(record) = shard.records.get(index) {
        for (decay, score) in scored.scores.iter_mut().take(DECAYS).enumerate() {
            *score = record.decayed(decay) / around.mean_rate;
        }
        scored.write_share = record.write_share();
    }
    let plain = scored.scores[PLAIN_DECAY];
    scored.scores[MODEL] = plain;
    scored.scores[CYCLE] = around.moment.bins.map_or(plain, |[next, _]| {
        let seen = shard.seasons.as_ref().and_then(|seasons| seasons.get(index)).map_or(0.0, |season| season.get(next));
        CYCLE_SHARE * seen / around.mean_rate + (1.0 - CYCLE_SHARE) * scored.scores[CYCLE_DECAY]
    });
    scored
}

const _: () = assert!(FEATURES > DECAYS);

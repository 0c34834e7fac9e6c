//! Who is believed: every way of filling the fast tier is scored by what it would have hit, and the best is used.
//!
//! A [`Contender`] is a predictor and a share of the fast tier that stages recent misses instead. The [`Gate`] plays all of them in the shadow of the
//! real tier, on a sample of blocks picked by hash, each with the sample's part of the tier and of the budget of moves. Their hits decay by
//! [`DECAY`] per epoch. Another contender is chosen only when it hits [`MARGIN`] more and leads in a longer memory as well; plain decay with no staging is the
//! default and keeps ties. The model contends only while it answers, and is left at once when it does not.
//!
//! A shadow is not the real tier, whose moves have more to obey. So the real tier is held against plain decay's shadow too: a choice under which it hits
//! less than plain decay would have is given up, and plain decay used for [`BARRED_EPOCHS`] at least.
//!
//! All blocks of a small volume are in the sample; it is thinned by halves as the volume grows, so memory and time are bounded.

#[cfg(test)]
mod tests;

use super::ranked::{RankedSet, Turnover, place};
use super::staging::{BlockHash, Staging, table_bytes};
use crate::heat::forecast::{MODEL_EPOCHS_MIN, ModelState, Predictor, Scores};
use crate::units::{BlockNo, FileId};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fmt;

/// What an epoch's hits count in the next one.
pub const DECAY: f64 = 0.8;
/// The same for the longer memory, in which a contender must not be behind: most leads of a few epochs are noise, and following them costs moves.
pub const LASTING_DECAY: f64 = 0.95;
/// Advantage from which another contender is chosen.
pub const MARGIN: f64 = 0.01;
/// Shares of the fast tier that may stage misses, in percent.
pub const STAGING_PERCENTS: [u8; 5] = [0, 10, 20, 40, 100];
/// Blocks in the sample above which it is halved.
const SAMPLE_MAX: usize = 32_768;
/// The same in a volume, whose forecast has a budget of memory: twice as many blocks halve the sample at once, not at the end of the epoch.
const SAMPLE_IN_VOLUME: usize = 16_384;
/// Accesses to sampled blocks within one epoch above which the sample is halved: each is looked up in all shadows.
const ACCESSES_MAX: f64 = 200_000.0;
/// Epochs that a choice is given before the real tier is held against plain decay's shadow, and how much less it may hit. The real tier is replaced by a
/// tenth per epoch, so it takes ten to become what was chosen; blamed earlier, a choice pays for the one before it.
const GUARD_AFTER_EPOCHS: u64 = 12;
const GUARD_MARGIN: f64 = 0.02;
/// Epochs that a gate of a volume in use looks on before it chooses.
const FIRST_CHOICE_EPOCHS: u64 = 4;
/// Epochs of plain decay after a choice has failed in the real tier.
pub const BARRED_EPOCHS: u64 = 16;

/// One way of filling the fast tier.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Contender {
    pub predictor: Predictor,
    pub staging_percent: u8,
}

impl Contender {
    /// Plain decay, nothing staged.
    pub const PLAIN: Contender = Contender { predictor: Predictor::PLAIN, staging_percent: 0 };

    /// Everything that heatfs may choose from.
    pub fn all() -> Vec<Contender> {
        let placed = STAGING_PERCENTS.into_iter().filter(|percent| *percent < 100);
        let mut all: Vec<Contender> = placed.flat_map(|percent| Contender::of(Predictor::all(), percent)).collect();
        all.push(Contender { staging_percent: 100, ..Contender::PLAIN });
        all
    }

    /// Some predictors with one staging share.
    pub fn of(predictors: impl Iterator<Item = Predictor>, staging_percent: u8) -> Vec<Contender> {
        predictors.map(|predictor| Contender { predictor, staging_percent }).collect()
    }

    /// Blocks of a fast tier's `capacity` that stage.
    pub fn staging_blocks(&self, capacity: usize) -> usize {
        capacity * usize::from(self.staging_percent) / 100
    }
}

impl fmt::Display for Contender {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.staging_percent {
            100 => write!(f, "staging only"),
            0 => write!(f, "{}", self.predictor),
            percent => write!(f, "{} with {percent} % staging", self.predictor),
        }
    }
}

/// Why the present choice was made.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// Plain decay, because nothing has shown to be better.
    Default,
    /// It hit more than what was used before; shares of all accesses, decayed.
    Better { hits: f64, than: f64 },
    /// The model in use has no answer any more.
    ModelLost { why: String },
    /// With the choice before, the real tier hit less than plain decay would have.
    Worse { hits: f64, than: f64 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Default => f.write_str("nothing has shown to be better than plain decay"),
            Reason::Better { hits, than } => {
                write!(f, "would have hit {:.1} % of accesses, the choice before {:.1} %", hits * 100.0, than * 100.0)
            }
            Reason::ModelLost { why } => f.write_str(why),
            Reason::Worse { hits, than } => {
                let (hits, than) = (hits * 100.0, than * 100.0);
                write!(
                    f,
                    "with the choice before {hits:.1} % of accesses were hits, and {than:.1} % would have been with plain decay"
                )
            }
        }
    }
}

/// A contender's standing: hits as a share of accesses, decayed; None until it may be judged.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Standing {
    pub contender: Contender,
    pub hits: Option<f64>,
}

/// What the gate shows of itself.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct GateStatus {
    pub choice: Contender,
    pub reason: Reason,
    pub epochs: u64,
    pub since_epoch: u64,
    pub switches: u32,
    /// One in so many blocks is in the sample.
    pub sampled_one_in: u64,
    /// What the real tier hit; None before anything is known of it.
    pub real_hits: Option<f64>,
    /// Epochs until something other than plain decay may be chosen again, after a choice has failed in the real tier.
    pub barred_epochs: u64,
    pub standings: Vec<Standing>,
}

/// What is kept of a gate across restarts.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct SavedGate {
    epochs: u64,
    choice: Contender,
    reason: Reason,
    since_epoch: u64,
    switches: u32,
    barred_until: u64,
    real: [Tally; 2],
    /// Recent and lasting.
    tallies: Vec<(Contender, [Tally; 2])>,
}

/// A contender's fast tier, in the small.
struct Shadow {
    contender: Contender,
    placed: RankedSet,
    staging: Staging<u32>,
    /// Of the running epoch.
    hits: f64,
    recent: Tally,
    lasting: Tally,
}

/// Hits and accesses, decayed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Tally {
    hits: f64,
    accesses: f64,
}

impl Tally {
    fn add(&mut self, hits: f64, accesses: f64, decay: f64) {
        self.hits = decay * self.hits + hits;
        self.accesses = decay * self.accesses + accesses;
    }

    fn is_sound(&self) -> bool {
        let whole = 0.0..f64::MAX;
        whole.contains(&self.hits) && whole.contains(&self.accesses) && self.hits <= self.accesses
    }

    fn share(&self) -> Option<f64> {
        (self.accesses > 0.0).then(|| self.hits / self.accesses)
    }
}

/// See the module's head.
pub struct Gate {
    shadows: Vec<Shadow>,
    /// Numbers of the sampled blocks.
    numbers: HashMap<(FileId, BlockNo), u32, BlockHash>,
    sampled_one_in: u64,
    accesses: f64,
    /// Numbered blocks are no longer all in the sample.
    has_strangers: bool,
    /// Free places are filled at once, as the real tier's are.
    fills_at_once: bool,
    /// The real tier's accesses and hits of the running epoch, and before.
    real_epoch: Tally,
    real: [Tally; 2],
    barred_until: u64,
    epochs: u64,
    choice: Contender,
    reason: Reason,
    since_epoch: u64,
    switches: u32,
}

impl Gate {
    /// Plain decay contends whether named or not.
    pub fn new(mut contenders: Vec<Contender>) -> Gate {
        if !contenders.contains(&Contender::PLAIN) {
            contenders.push(Contender::PLAIN);
        }
        let shadow = |contender| Shadow {
            contender,
            placed: RankedSet::default(),
            staging: Staging::new(0),
            hits: 0.0,
            recent: Tally::default(),
            lasting: Tally::default(),
        };
        Gate {
            shadows: contenders.into_iter().map(shadow).collect(),
            numbers: HashMap::default(),
            sampled_one_in: 1,
            accesses: 0.0,
            has_strangers: false,
            fills_at_once: false,
            real_epoch: Tally::default(),
            real: [Tally::default(); 2],
            barred_until: 0,
            epochs: 0,
            choice: Contender::PLAIN,
            reason: Reason::Default,
            since_epoch: 0,
            switches: 0,
        }
    }

    /// A gate for a volume whose fastest tier is in use already: its shadows start full, and it looks on for a while before it chooses. Otherwise
    /// whatever fills fastest would win the first epochs, and move everything.
    pub fn of_volume(contenders: Vec<Contender>) -> Gate {
        Gate { fills_at_once: true, ..Gate::new(contenders) }
    }

    pub fn choice(&self) -> Contender {
        self.choice
    }

    /// Is a block in the sample?
    pub fn samples(&self, file: FileId, block: BlockNo) -> bool {
        hash_of(file, block).is_multiple_of(self.sampled_one_in)
    }

    /// Memory of the shadows and the sample, in bytes.
    pub fn memory_bytes(&self) -> u64 {
        let of = |shadow: &Shadow| shadow.placed.memory_bytes() + shadow.staging.memory_bytes();
        let shadows: usize = self.shadows.iter().map(of).sum();
        let numbers = table_bytes::<((FileId, BlockNo), u32)>(self.numbers.capacity());
        u64::try_from(shadows + numbers).unwrap_or(u64::MAX)
    }

    /// Notes a non-sequential access to a block.
    pub fn observe(&mut self, file: FileId, block: BlockNo) {
        if !self.samples(file, block) {
            return;
        }
        if self.is_crowded(self.numbers.len()) {
            self.halve();
            self.thin_out();
            if !self.samples(file, block) {
                return;
            }
        }
        let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
        let number = *self.numbers.entry((file, block)).or_insert(next);
        self.accesses += 1.0;
        for shadow in &mut self.shadows {
            if shadow.placed.contains(number) || shadow.staging.access(number) {
                shadow.hits += 1.0;
            } else {
                shadow.staging.admit(number);
            }
        }
    }

    /// The same, and whether the real tier had the block.
    pub fn observe_real(&mut self, file: FileId, block: BlockNo, is_hit: bool) {
        if self.samples(file, block) {
            self.real_epoch.accesses += 1.0;
            self.real_epoch.hits += if is_hit { 1.0 } else { 0.0 };
        }
        self.observe(file, block);
    }

    /// Ends the epoch: scores the contenders, chooses, and lets each prepare for the next epoch. `capacity`: blocks of the real fast tier.
    pub fn end_epoch(&mut self, scores: &Scores, capacity: usize) {
        self.judge(&scores.model);
        self.prepare(scores, capacity);
    }

    /// Ends the epoch and chooses; [`Gate::prepare`] follows.
    pub fn judge(&mut self, model: &ModelState) {
        self.epochs += 1;
        let has_model = *model == ModelState::Ready && self.epochs >= MODEL_EPOCHS_MIN;
        for shadow in &mut self.shadows {
            let contends = has_model || shadow.contender.predictor != Predictor::Model;
            // The epoch in which the model appears was played by plain decay's scores, and so is a fair start.
            if contends {
                shadow.recent.add(shadow.hits, self.accesses, DECAY);
                shadow.lasting.add(shadow.hits, self.accesses, LASTING_DECAY);
            } else {
                (shadow.recent, shadow.lasting) = (Tally::default(), Tally::default());
            }
            shadow.hits = 0.0;
        }
        for (tally, decay) in self.real.iter_mut().zip([DECAY, LASTING_DECAY]) {
            tally.add(self.real_epoch.hits, self.real_epoch.accesses, decay);
        }
        self.real_epoch = Tally::default();
        self.choose(has_model, model);
    }

    /// Lets each contender prepare for the next epoch. Of `scores` only the sampled blocks count.
    pub fn prepare(&mut self, scores: &Scores, capacity: usize) {
        self.thin_out();
        self.accesses = 0.0;
        let by_predictor = self.scores_of_sample(scores);
        let sample_capacity = capacity / usize::try_from(self.sampled_one_in).unwrap_or(usize::MAX);
        for shadow in &mut self.shadows {
            let staging = shadow.contender.staging_blocks(sample_capacity);
            let Some(scores) = by_predictor.get(shadow.contender.predictor.index()) else { continue };
            let mut turnover = Turnover::of(sample_capacity);
            if self.fills_at_once {
                let free = (sample_capacity - staging).saturating_sub(shadow.placed.len());
                turnover.blocks_max = turnover.blocks_max.max(free);
            }
            let entered = shadow.placed.follow(scores, sample_capacity - staging, turnover, |_| true);
            for block in entered {
                shadow.staging.remove(block);
            }
            shadow.staging.set_capacity(staging);
        }
    }

    /// The real tier hits clearly less than plain decay would have, lately and in a longer memory.
    fn failure(&self) -> Option<Reason> {
        let plain = self.shadows.iter().find(|shadow| shadow.contender == Contender::PLAIN)?;
        let [recent, lasting] = self.real.map(|tally| tally.share());
        let behind = |real: f64, plain: Option<f64>| plain.is_some_and(|plain| real < plain * (1.0 - GUARD_MARGIN));
        let tried = self.choice != Contender::PLAIN && self.epochs >= self.since_epoch + GUARD_AFTER_EPOCHS;
        let (hits, lasting) = (recent?, lasting?);
        (tried && behind(hits, plain.recent.share()) && behind(lasting, plain.lasting.share()))
            .then(|| Reason::Worse { hits, than: plain.recent.share().unwrap_or(0.0) })
    }

    fn choose(&mut self, has_model: bool, model: &ModelState) {
        if self.choice.predictor == Predictor::Model && !has_model {
            let why = match model {
                ModelState::Failed(error) => error.to_string(),
                ModelState::Learning | ModelState::Ready => "there is no model yet".to_owned(),
            };
            self.switch(Contender::PLAIN, Reason::ModelLost { why });
        }
        if let Some(reason) = self.failure() {
            self.switch(Contender::PLAIN, reason);
            self.barred_until = self.epochs + BARRED_EPOCHS;
        }
        if self.epochs < self.barred_until || (self.fills_at_once && self.epochs < FIRST_CHOICE_EPOCHS) {
            return;
        }
        let (plain, _) = self.standing_of(Contender::PLAIN);
        let present = self.standing_of(self.choice).0;
        if self.choice != Contender::PLAIN && plain >= present {
            self.switch(Contender::PLAIN, Reason::Default);
        }
        let present = present.max(plain);
        let (_, lasting) = self.standing_of(self.choice);
        let leads = |shadow: &&Shadow| shadow.lasting.share().is_some_and(|share| share > lasting);
        let leading = self.shadows.iter().filter(leads);
        let standing = leading.filter_map(|shadow| Some((shadow.contender, shadow.recent.share()?)));
        // Of equals the first named.
        let best = standing.reduce(|best, other| if other.1 > best.1 { other } else { best });
        if let Some((contender, hits)) = best.filter(|(_, hits)| *hits > present * (1.0 + MARGIN)) {
            self.switch(contender, Reason::Better { hits, than: present });
        }
    }

    /// A contender's shares of hits in the recent and in the longer memory; 0 for one that does not contend.
    fn standing_of(&self, contender: Contender) -> (f64, f64) {
        let shadow = self.shadows.iter().find(|shadow| shadow.contender == contender);
        let share = |tally: Option<Tally>| tally.and_then(|tally| tally.share()).unwrap_or(0.0);
        (share(shadow.map(|shadow| shadow.recent)), share(shadow.map(|shadow| shadow.lasting)))
    }

    fn switch(&mut self, to: Contender, reason: Reason) {
        if self.choice != to {
            tracing::debug!(%to, %reason, "another way of filling the fast tier");
            self.switches += 1;
            self.since_epoch = self.epochs;
        }
        (self.choice, self.reason) = (to, reason);
    }

    /// Are so many sampled blocks more than there should ever be?
    pub fn is_crowded(&self, blocks: usize) -> bool {
        self.fills_at_once && blocks >= 2 * SAMPLE_IN_VOLUME
    }

    /// From now on half as many blocks are in the sample; those that fell out are forgotten with the next epoch's beginning.
    pub fn halve(&mut self) {
        self.sampled_one_in = self.sampled_one_in.saturating_mul(2);
        self.has_strangers = true;
    }

    /// Halves the sample until it fits. The shadows start anew, their scores stay.
    fn thin_out(&mut self) {
        let halvings = if self.accesses > ACCESSES_MAX { 1 } else { 0 };
        let one_in = self.sampled_one_in << halvings;
        let most = if self.fills_at_once { SAMPLE_IN_VOLUME } else { SAMPLE_MAX };
        if self.numbers.len() <= most && one_in == self.sampled_one_in && !self.has_strangers {
            return;
        }
        self.has_strangers = false;
        self.sampled_one_in = one_in;
        self.numbers.retain(|(file, block), _| hash_of(*file, *block).is_multiple_of(one_in));
        while self.numbers.len() > most {
            self.sampled_one_in *= 2;
            let one_in = self.sampled_one_in;
            self.numbers.retain(|(file, block), _| hash_of(*file, *block).is_multiple_of(one_in));
        }
        let mut old: Vec<((FileId, BlockNo), u32)> = self.numbers.drain().collect();
        old.sort_unstable();
        let mut renumbered: HashMap<u32, u32> = HashMap::new();
        for (new, (key, number)) in (0u32..).zip(old) {
            renumbered.insert(number, new);
            self.numbers.insert(key, new);
        }
        for shadow in &mut self.shadows {
            let mut kept: Vec<f32> = vec![0.0; self.numbers.len()];
            let stays = shadow.placed.members().iter().filter_map(|number| renumbered.get(number));
            stays.for_each(|number| kept[place(*number)] = 1.0);
            let all = Turnover { blocks_max: usize::MAX, hysteresis: 0.0 };
            shadow.placed = RankedSet::default();
            shadow.placed.follow(&kept, kept.len(), all, |_| true);
            shadow.staging = Staging::new(0);
        }
    }

    /// Scores of the sampled blocks by predictor, then by number. Sampled blocks that are scored but were never accessed get a number.
    fn scores_of_sample(&mut self, scores: &Scores) -> Vec<Vec<f32>> {
        let mut found = Vec::new();
        for scored in &scores.blocks {
            if hash_of(scored.file, scored.block).is_multiple_of(self.sampled_one_in) {
                let next = u32::try_from(self.numbers.len()).unwrap_or(u32::MAX);
                found.push((*self.numbers.entry((scored.file, scored.block)).or_insert(next), scored));
            }
        }
        let mut by_predictor: Vec<Vec<f32>> = Predictor::all().map(|_| vec![0.0; self.numbers.len()]).collect();
        for (number, scored) in found {
            for (values, score) in by_predictor.iter_mut().zip(scored.scores) {
                values[place(number)] = score;
            }
        }
        by_predictor
    }

    /// What a restart should not lose.
    pub fn saved(&self) -> SavedGate {
        SavedGate {
            epochs: self.epochs,
            choice: self.choice,
            reason: self.reason.clone(),
            since_epoch: self.since_epoch,
            switches: self.switches,
            barred_until: self.barred_until,
            real: self.real,
            tallies: self.shadows.iter().map(|shadow| (shadow.contender, [shadow.recent, shadow.lasting])).collect(),
        }
    }

    /// Goes on where another gate was. A choice that does not contend here is not taken over, nor figures that are none.
    pub fn resume(&mut self, saved: SavedGate) {
        let sound = |tallies: &[Tally; 2]| tallies.iter().all(Tally::is_sound);
        for (contender, tallies) in saved.tallies {
            let shadow = self.shadows.iter_mut().find(|shadow| shadow.contender == contender);
            if let Some(shadow) = shadow.filter(|_| sound(&tallies)) {
                [shadow.recent, shadow.lasting] = tallies;
            }
        }
        if sound(&saved.real) {
            self.real = saved.real;
        }
        self.epochs = saved.epochs;
        self.barred_until = saved.barred_until.min(saved.epochs.saturating_add(BARRED_EPOCHS));
        if self.shadows.iter().any(|shadow| shadow.contender == saved.choice) {
            (self.choice, self.reason) = (saved.choice, saved.reason);
            (self.since_epoch, self.switches) = (saved.since_epoch.min(saved.epochs), saved.switches);
        }
    }

    pub fn status(&self) -> GateStatus {
        let standings =
            self.shadows.iter().map(|shadow| Standing { contender: shadow.contender, hits: shadow.recent.share() });
        GateStatus {
            choice: self.choice,
            reason: self.reason.clone(),
            epochs: self.epochs,
            since_epoch: self.since_epoch,
            switches: self.switches,
            sampled_one_in: self.sampled_one_in,
            real_hits: self.real[0].share(),
            barred_epochs: self.barred_until.saturating_sub(self.epochs),
            standings: standings.collect(),
        }
    }
}

/// Neighbours fall apart, and halving the sample keeps a subset.
fn hash_of(file: FileId, block: BlockNo) -> u64 {
    let mixed = (file.0.rotate_left(32) ^ block.0).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    (mixed ^ (mixed >> 29)).wrapping_mul(0xbf58_476d_1ce4_e5b9) >> 32
}

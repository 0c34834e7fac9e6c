//! The forecast of a running volume: one thread that hears of accesses, and at the end of each epoch says what the next one will bring.
//!
//! The recorder's queue feeds the forecast and the gate. At an epoch's end the gate chooses whom to believe; if that is anything but plain decay, the
//! expected accesses become the heat of blocks ([`Recorder::expecting`]), which the mover plans with as always, within its budgets, pins and rests.
//! The same choice says how much of the fastest tier stages misses. What was learned is kept in a losable file (`saved.rs`).
//!
//! Nothing depends on this thread. When it fails, whatever the reason, heat is plain decay, nothing is staged any more, and the status says why.
//! It keeps to 2 % of a core: it looks at the queue a few times a second, lets a busy volume's accesses stand for several, grows no forest that it has not
//! earned the time for, and makes epochs longer on volumes whose blocks take long to score.

mod saved;
mod status;
#[cfg(test)]
mod tests;

pub use saved::FORECAST_FILE;
pub use status::{ContenderStatus, ForecastStatus};

use crate::device::Device;
use crate::device::clock::{Instant, monotonic_now, thread_cpu_time, wall_now};
use crate::heat::forecast::{
    BlockScores, EpochClock, FileClass, Forecast, ForecastSettings, Mattered, ModelError, ModelState, Predictor, Scores,
};
use crate::heat::{Event, Expecting, Recorder};
use crate::policy::gate::{Contender, Gate};
use crate::policy::staging::Staging;
use crate::units::{BlockNo, FileId, TierId, WallNs};
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

/// How often the queue of accesses is looked at.
pub(super) const LOOK_EVERY: Duration = Duration::from_millis(250);
/// Accesses of one look that are all counted; of more, each stands for several.
const COUNTED_PER_LOOK: usize = 4096;
/// Accesses by readers of one look that the gate is told of.
const JUDGED_PER_LOOK: usize = 1024;
/// An epoch lasts at least so many times as long as ending one took: with growing forests, 2 % of a core.
const EPOCH_TIMES: u32 = 100;
/// A forest is grown when the last one's time is at most one in so many of the time that has passed since.
const GROWTH_TIMES: u32 = 100;
/// Time between two saves of what was learned.
const SAVE_EVERY: Duration = Duration::from_secs(900);

#[derive(Clone, Debug, PartialEq)]
pub struct ForecasterSettings {
    /// Without, heat is plain decay.
    pub enabled: bool,
    /// Unit of time of heat, which is what is predicted.
    pub epoch: Duration,
    /// Length of a cycle that the load may have, a day for most; zero: none.
    pub period: Duration,
    /// May a share of the fastest tier stage misses?
    pub staging: bool,
    /// Memory for the records of blocks and all that learning from them takes, in bytes.
    pub memory_bytes: u64,
    /// What a write counts, a read being 1.
    pub write_weight: f32,
}

impl Default for ForecasterSettings {
    fn default() -> Self {
        ForecasterSettings {
            enabled: true,
            epoch: Duration::from_secs(300),
            period: Duration::from_secs(86_400),
            staging: true,
            memory_bytes: 104 << 20,
            write_weight: 0.5,
        }
    }
}

/// How long a question waits for the model.
const PATIENCE: Duration = Duration::from_millis(200);

/// A staged block.
pub(super) type Staged = Staging<(FileId, BlockNo)>;

/// See the module's head.
pub struct Forecaster {
    settings: ForecasterSettings,
    recorder: Arc<Recorder>,
    home: Arc<dyn Device>,
    volume_id: [u8; 16],
    inner: Mutex<Inner>,
    /// Blocks of the fastest tier that heat may place, as the mover last saw it.
    capacity: AtomicUsize,
    /// Which blocks are staged. The mover admits and moves them; accesses are noted here.
    pub(super) staging: Mutex<Staged>,
    /// Classes of files that were not heard yet.
    classes: Mutex<HashMap<FileId, FileClass>>,
    shown: Mutex<ForecastStatus>,
}

struct Inner {
    forecast: Forecast,
    gate: Gate,
    /// Why nothing is forecast any more.
    failure: Option<String>,
    /// What became of the saved file; None: nobody has looked yet.
    memory: Option<String>,
    began: Instant,
    epoch_began: Instant,
    saved_at: Instant,
    /// What ending the last epoch took, but for growing a forest.
    end_took: Duration,
    grown_at: Instant,
    growing_took: Duration,
    /// Time of the thread's processor at all looks.
    cpu: Duration,
    /// Accesses that were taken from the queue, and those that others stand for.
    heard: u64,
    skipped: u64,
}

impl Forecaster {
    /// The first look takes what the last run learned from `home`, if there is anything: a mount does not wait for that. `settings` and `volume_id` as for
    /// the mover.
    pub fn open(
        recorder: Arc<Recorder>,
        home: Arc<dyn Device>,
        volume_id: [u8; 16],
        settings: ForecasterSettings,
    ) -> Arc<Forecaster> {
        let now = monotonic_now();
        let block_bytes = recorder.settings().block_bytes;
        let inner = Inner {
            forecast: Forecast::new(forecast_settings(&settings, block_bytes)),
            gate: Gate::of_volume(contenders(&settings)),
            failure: (!settings.enabled).then(|| "it is switched off, or there is only one tier".to_owned()),
            memory: None,
            began: now,
            epoch_began: now,
            saved_at: now,
            end_took: Duration::ZERO,
            grown_at: now,
            growing_took: Duration::ZERO,
            cpu: Duration::ZERO,
            heard: 0,
            skipped: 0,
        };
        recorder.listen(settings.enabled);
        let forecaster = Forecaster {
            settings,
            recorder,
            home,
            volume_id,
            inner: Mutex::new(inner),
            capacity: AtomicUsize::new(0),
            staging: Mutex::new(Staging::telling(0)),
            classes: Mutex::default(),
            shown: Mutex::default(),
        };
        forecaster.show(&forecaster.inner.lock());
        Arc::new(forecaster)
    }

    /// How many blocks of the fastest tier heat may place.
    pub fn set_capacity(&self, blocks: u64) {
        self.capacity.store(usize::try_from(blocks).unwrap_or(usize::MAX), Ordering::Relaxed);
    }

    /// How many of those should stage misses.
    pub(super) fn staging_blocks(&self) -> usize {
        let percent = self.shown.lock().staging_percent;
        self.capacity.load(Ordering::Relaxed).saturating_mul(usize::from(percent)) / 100
    }

    /// As if the gate had chosen so much staging.
    #[cfg(test)]
    pub(super) fn stage_percent(&self, percent: u8) {
        self.shown.lock().staging_percent = percent;
    }

    /// What kind of thing these files hold; heard at the next look.
    pub(super) fn note_classes(&self, classes: HashMap<FileId, FileClass>) {
        if self.settings.enabled {
            self.classes.lock().extend(classes);
        }
    }

    /// One look at the queue; ends the epoch when it is over. Whatever panics in there ends the forecast, and nothing else.
    pub fn look(&self) {
        self.run(|inner| {
            self.hear(inner);
            let least = inner.end_took.saturating_mul(EPOCH_TIMES);
            if inner.epoch_began.elapsed() >= self.settings.epoch.max(least) {
                self.end_epoch(inner);
            }
        });
    }

    /// Looks at the queue, whatever the time.
    pub fn hear_now(&self) {
        self.run(|inner| self.hear(inner));
    }

    /// Looks at the queue and ends the epoch, whatever the time.
    pub fn end_epoch_now(&self) {
        self.run(|inner| {
            self.hear(inner);
            self.end_epoch(inner);
        });
    }

    fn run(&self, step: impl FnOnce(&mut Inner)) {
        let began = thread_cpu_time();
        let mut inner = self.inner.lock();
        if inner.failure.is_some() {
            return;
        }
        let looked = catch_unwind(AssertUnwindSafe(|| {
            if inner.memory.is_none() {
                self.remember(&mut inner);
            }
            step(&mut inner);
        }));
        if let Err(panic) = looked {
            let said = panic.downcast_ref::<&str>().map(|said| (*said).to_owned());
            let said = said.or_else(|| panic.downcast_ref::<String>().cloned()).unwrap_or_default();
            self.give_up(&mut inner, format!("an internal error ended it: {said}"));
        }
        inner.cpu += thread_cpu_time().saturating_sub(began);
        self.show(&inner);
    }

    /// Takes what the last run learned.
    fn remember(&self, inner: &mut Inner) {
        let block_bytes = self.recorder.settings().block_bytes;
        inner.memory = Some(match saved::load(&*self.home, &self.volume_id, block_bytes, inner) {
            Ok(said) => said,
            Err(error) => {
                // What was half read is worth nothing.
                inner.forecast = Forecast::new(forecast_settings(&self.settings, block_bytes));
                inner.gate = Gate::of_volume(contenders(&self.settings));
                tracing::warn!(%error, "what the forecast had learned is lost; learning anew");
                format!("learning anew: {error}")
            }
        });
    }

    /// From now on heat is plain decay.
    fn give_up(&self, inner: &mut Inner, why: String) {
        tracing::error!("the forecast ends: {why}; blocks are placed by plain decay");
        inner.failure = Some(why);
        self.recorder.listen(false);
        self.recorder.expect_nothing();
    }

    /// Counts what was queued.
    fn hear(&self, inner: &mut Inner) {
        let waiting = self.recorder.events_waiting();
        let every = waiting.div_ceil(COUNTED_PER_LOOK).max(1);
        let judge_every = waiting.div_ceil(JUDGED_PER_LOOK).max(1);
        let times = u16::try_from(every).unwrap_or(u16::MAX);
        let block_bytes = self.recorder.settings().block_bytes;
        for (file, class) in std::mem::take(&mut *self.classes.lock()) {
            inner.forecast.note_class(file, class);
        }
        let mut staging = self.staging.lock();
        for (at, event) in self.recorder.events().enumerate() {
            let (access, tier) = match event {
                Event::Gone(file) => {
                    inner.forecast.forget(file);
                    continue;
                }
                Event::Cut { file, size_bytes } => {
                    inner.forecast.truncate(file, size_bytes);
                    continue;
                }
                Event::Access { access, tier } => (access, tier),
            };
            inner.heard += 1;
            if at.is_multiple_of(every) {
                inner.forecast.observe_many(&access, times);
            } else {
                inner.skipped += 1;
            }
            let Some(tier) = tier.filter(|_| !access.is_sequential) else { continue };
            let is_hit = tier == TierId::FASTEST;
            for block in access.blocks(block_bytes) {
                if is_hit && staging.capacity() > 0 {
                    staging.access((access.file, block));
                }
                if at.is_multiple_of(judge_every) {
                    inner.gate.observe_real(access.file, block, is_hit);
                }
            }
        }
    }

    /// Ends the epoch: whom to believe, and what is expected of each block.
    fn end_epoch(&self, inner: &mut Inner) {
        let now = monotonic_now();
        let lasted = now.duration_since(std::mem::replace(&mut inner.epoch_began, now));
        let began = thread_cpu_time();
        let earned = inner.grown_at.elapsed() >= inner.growing_took.saturating_mul(GROWTH_TIMES);
        inner.forecast.let_grow(earned);
        let clock = epoch_clock(wall_now(), self.settings.epoch, self.settings.period);
        let model = inner.forecast.close_epoch(clock);
        let closing_took = thread_cpu_time().saturating_sub(began);
        inner.gate.judge(&model);
        let believed = inner.gate.choice();
        let (sampled, expecting, after) = self.score(inner, believed, lasted);
        // A model that failed while it was asked is not believed; the gate hears of it at the next epoch's end.
        let lost = believed.predictor == Predictor::Model && after != ModelState::Ready;
        match expecting.filter(|_| !lost) {
            Some(expecting) => expecting.publish(),
            None => self.recorder.expect_nothing(),
        }
        let capacity = self.capacity.load(Ordering::Relaxed);
        inner.gate.prepare(&Scores { blocks: sampled, model: after }, capacity);
        let took = thread_cpu_time().saturating_sub(began);
        // Growing a forest is most of what closing an epoch ever takes, and is paid for apart.
        if earned && closing_took > took / 2 {
            (inner.grown_at, inner.growing_took) = (now, closing_took);
        }
        inner.end_took = took.saturating_sub(closing_took);
        if inner.saved_at.elapsed() >= SAVE_EVERY {
            self.save_inner(inner);
        }
    }

    /// All blocks' scores: those of the gate's sample, and what the believed predictor expects, in accesses per epoch of the settings' length, unless it is
    /// plain decay.
    fn score(
        &self,
        inner: &mut Inner,
        believed: Contender,
        lasted: Duration,
    ) -> (Vec<BlockScores>, Option<Expecting<'_>>, ModelState) {
        let Inner { forecast, gate, .. } = inner;
        let epochs = (lasted.as_secs_f32() / self.settings.epoch.as_secs_f32().max(1e-3)).max(1e-3);
        let unit = forecast.mean_accesses() / epochs;
        let discount = 1.0 - self.settings.write_weight.clamp(0.0, 1.0);
        let mut expecting = (believed.predictor != Predictor::PLAIN).then(|| self.recorder.expecting());
        let mut sampled: Vec<BlockScores> = Vec::new();
        let state = forecast.score(&mut |scored| {
            if gate.samples(scored.file, scored.block) {
                sampled.push(*scored);
            }
            while gate.is_crowded(sampled.len()) {
                gate.halve();
                sampled.retain(|kept| gate.samples(kept.file, kept.block));
            }
            if let Some(expecting) = &mut expecting {
                let score = scored.scores.get(believed.predictor.index()).copied().unwrap_or_default();
                expecting.expect(scored.file, scored.block, score * unit * (1.0 - discount * scored.write_share));
            }
        });
        (sampled, expecting, state)
    }

    /// Saves what was learned, for the next run.
    pub(super) fn save(&self) {
        let mut inner = self.inner.lock();
        // What was not read yet must not be written over.
        if inner.failure.is_none() && inner.memory.is_some() {
            self.save_inner(&mut inner);
        }
    }

    fn save_inner(&self, inner: &mut Inner) {
        inner.saved_at = monotonic_now();
        let block_bytes = self.recorder.settings().block_bytes;
        if let Err(error) = saved::save(&*self.home, &self.volume_id, block_bytes, inner) {
            tracing::warn!(%error, "cannot save what the forecast has learned");
        }
    }

    pub fn status(&self) -> ForecastStatus {
        let mut status = self.shown.lock().clone();
        let staging = self.staging.lock();
        (status.staging_blocks, status.staged_blocks) = (staging.capacity() as u64, staging.len() as u64);
        status
    }

    /// What mattered for what the model expects of a block; nothing while something else is believed, or the model is busy.
    pub fn reasons(&self, file: FileId, block: BlockNo) -> Vec<Mattered> {
        let Some(inner) = self.inner.try_lock_for(PATIENCE) else { return Vec::new() };
        match inner.gate.choice().predictor {
            Predictor::Model => inner.forecast.reasons(file, block),
            _ => Vec::new(),
        }
    }

    /// The shards of a file whose blocks are known one by one; None: the forecast is off, or busy.
    pub(super) fn fine_shards(&self, file: FileId) -> Option<BTreeSet<u64>> {
        let inner = self.inner.try_lock_for(PATIENCE)?;
        inner.failure.is_none().then(|| inner.forecast.fine_shards(file).collect())
    }

    fn show(&self, inner: &Inner) {
        *self.shown.lock() = status::of(inner, &self.settings, &self.recorder);
    }
}

fn forecast_settings(settings: &ForecasterSettings, block_bytes: u32) -> ForecastSettings {
    ForecastSettings {
        block_bytes,
        shards_max: ForecastSettings::shards_in(settings.memory_bytes),
        ..ForecastSettings::default()
    }
}

fn contenders(settings: &ForecasterSettings) -> Vec<Contender> {
    let mut all = Contender::all();
    all.retain(|contender| settings.staging || contender.staging_percent == 0);
    all
}

/// The epoch that has just ended, by the wall clock. A clock that jumps is wrong about the place in the cycle for as long as it is wrong; how long an
/// epoch lasts is none of its business.
fn epoch_clock(now: WallNs, epoch: Duration, period: Duration) -> EpochClock {
    let millis = |span: Duration| u64::try_from(span.as_millis()).unwrap_or(u64::MAX);
    let epoch_ms = millis(epoch).max(1);
    let now_ms = u64::try_from(now.0.max(0) / 1_000_000).unwrap_or(0);
    EpochClock { number: now_ms.saturating_sub(epoch_ms / 2) / epoch_ms, epoch_ms, period_ms: millis(period) }
}

/// Why the model has no answer, in words.
fn model_words(model: &Result<(), ModelError>) -> String {
    match model {
        Ok(()) => String::new(),
        Err(error) => format!("; {error}, a new one will be grown"),
    }
}

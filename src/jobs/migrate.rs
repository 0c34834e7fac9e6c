//! The mover: takes heat and the block map, asks the policy, and relocates blocks behind everybody's back.
//!
//! One thread plans and has each plan carried out by a worker per source tier, in file and offset order, so that a disk reads forwards
//! and a slow tier never delays another. A second thread serves the fast lane: blocks that were just missed on the slowest tier and
//! are worth promoting before the next plan. Both share one byte budget, step back while commits are slow, and never run on
//! anybody's read or write. Whatever the engine refuses (a block written meanwhile, no room) is simply decided anew later.

mod compact;
mod early;
mod execute;
mod history;
mod insight;
mod journal;
pub(super) mod pins;
mod rules;
mod shards;
mod stage;
#[cfg(test)]
mod tests;
mod view;

pub use compact::Compaction;
pub use history::{FileMoment, Moment};
pub use insight::{Counterpart, Preview, WhatIf};
pub use journal::{JournalEntry, Outcome};
pub use pins::PINS_FILE;
pub use rules::FileRules;
pub use shards::SHARD_BLOCKS;
pub use view::{Explanation, HeatMap, HeatRange, MoverStatus, WarmFile};

use crate::device::Device;
use crate::device::clock::{Instant, monotonic_now};
use crate::error::{Error, Result};
use crate::heat::Recorder;
use crate::jobs::background::Background;
use crate::jobs::forecaster::{Forecaster, ForecasterSettings, LOOK_EVERY};
use crate::jobs::pace::{Backoff, TokenBucket};
use crate::policy::HeatRanks;
use crate::policy::coalescing::{BlockThresholds, Watch};
use crate::policy::placement::{
    BlockRun, Blocks, Decision, Pin, PlacementSettings, PlacementState, Plan, TierOutlook, TierState, part_of, plan,
};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::{TierStatus, Volume, VolumeStatus};
use history::History;
use journal::Journal;
use parking_lot::Mutex;
use pins::Pins;
use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

#[derive(Clone, Debug)]
pub struct MoverSettings {
    /// Limits of a plan; `bytes_per_plan` is overridden by `bytes_per_second` times the time until the next plan.
    pub placement: PlacementSettings,
    /// Unit of time of heat.
    pub epoch: Duration,
    /// Time between plans while there is much to gain, and when there is not.
    pub plan_every_min: Duration,
    pub plan_every_max: Duration,
    /// What the mover may copy.
    pub bytes_per_second: u64,
    /// What compaction of the slowest tier may read; 0: there is none.
    pub compact_bytes_per_second: u64,
    /// Time between saves of the heat.
    pub save_every: Duration,
    /// Decisions remembered for `explain`.
    pub journal_entries: usize,
    /// What is said about paths; whoever meets a file's name tells it.
    pub rules: Arc<FileRules>,
    /// Its epoch is overridden by the one above.
    pub forecast: ForecasterSettings,
}

impl Default for MoverSettings {
    fn default() -> Self {
        MoverSettings {
            placement: PlacementSettings::default(),
            epoch: Duration::from_secs(300),
            plan_every_min: Duration::from_secs(5),
            plan_every_max: Duration::from_secs(60),
            bytes_per_second: 64 << 20,
            compact_bytes_per_second: 0,
            save_every: Duration::from_secs(180),
            journal_entries: 16_384,
            rules: Arc::default(),
            forecast: ForecasterSettings::default(),
        }
    }
}

/// Share of the predicted latency that a plan must save to be followed by another one soon.
const MUCH_TO_GAIN: f64 = 0.01;
/// What tiers are taken for until they are measured, in microseconds per read: first, between, last.
const UNMEASURED_US: [f32; 3] = [100.0, 300.0, 8000.0];
/// Between two plans passes this many times what making one took, so that planning a large volume takes 2 % of a core.
const PLAN_TIMES_BETWEEN: u32 = 50;
/// Readers in a tier, on average, from which it counts as busy: it has hardly a moment to itself.
const BUSY_READERS: f64 = 0.5;
/// Share of a tier that must be free for misses to bring their neighbourhood along.
const ROOM_SHARE: f32 = 1.0 / 64.0;
/// Reads between two plans from which a measured latency is trusted.
const MEASURED_READS: u64 = 20;

/// What the latest plan left behind, and the books kept since.
struct Outlook {
    number: u32,
    tiers: Vec<TierOutlook>,
    ranks: HeatRanks,
    cost_us: f64,
    gain_us: f64,
    decisions: u64,
    bytes: u64,
    plan_us: u64,
    /// When the next plan is made, and the time from one to the next.
    due: Instant,
    every: Duration,
    /// Blocks moved in the latest plans, with the plan's number.
    moved: BTreeMap<(FileId, BlockNo), u32>,
}

/// Latency and use per tier, from the engine's counters.
#[derive(Default)]
struct Measured {
    reads: Vec<u64>,
    micros: Vec<u64>,
    latency_us: Vec<f32>,
    /// When and at what time spent in reads each tier's use was last looked at.
    looked_at: Option<(Instant, Vec<u64>)>,
    /// Readers that were in the tier at any moment, on average.
    readers: Vec<f64>,
}

#[derive(Clone, Copy, Debug, Default)]
struct Tally {
    moved: u64,
    moved_bytes: u64,
    refused: u64,
    failed: u64,
    fast_lane: u64,
    staged: u64,
    coalesced_early: u64,
    paused_us: u64,
}

/// See the module's head. [`Mover::start`] runs it; [`Mover::run_plan`] is one step of it, for tests and for `settle`-like commands.
pub struct Mover {
    volume: Arc<Volume>,
    recorder: Arc<Recorder>,
    forecaster: Arc<Forecaster>,
    home: Arc<dyn Device>,
    volume_id: [u8; 16],
    settings: MoverSettings,
    tier_names: Vec<String>,
    pins: Mutex<Pins>,
    outlook: Mutex<Outlook>,
    measured: Mutex<Measured>,
    journal: Mutex<Journal>,
    history: Mutex<History>,
    compacted: Mutex<Compaction>,
    tally: Mutex<Tally>,
    bucket: TokenBucket,
    backoff: Mutex<(Backoff, Instant, bool)>,
    rolled_at: Mutex<Instant>,
    log_watch: Mutex<Watch>,
    thresholds: Mutex<BlockThresholds>,
    opened_at: Instant,
    background: Background,
}

impl Mover {
    /// Loads heat and what the forecast has learned (both losable) and pins (not: `Corrupt` when damaged) from `home`, the fastest tier's device. `recorder` must be the one that observes
    /// `volume`, for which `volume_id` is the identity.
    pub fn open(
        volume: Arc<Volume>,
        recorder: Arc<Recorder>,
        home: Arc<dyn Device>,
        volume_id: [u8; 16],
        settings: MoverSettings,
    ) -> Result<Arc<Mover>> {
        let pins = pins::load(&*home)?;
        if let Err(error) = recorder.load(&*home, &volume_id) {
            tracing::warn!(%error, "heat of the last run is lost; learning anew");
        }
        let tier_names: Vec<String> = volume.status().tiers.into_iter().map(|tier| tier.name).collect();
        let forecast = ForecasterSettings {
            epoch: settings.epoch,
            // Between one tier and itself there is nothing to choose.
            enabled: settings.forecast.enabled && tier_names.len() > 1,
            ..settings.forecast.clone()
        };
        let forecaster = Forecaster::open(Arc::clone(&recorder), Arc::clone(&home), volume_id, forecast);
        let now = monotonic_now();
        let outlook = Outlook {
            number: 0,
            tiers: Vec::new(),
            ranks: HeatRanks::default(),
            cost_us: 0.0,
            gain_us: 0.0,
            decisions: 0,
            bytes: 0,
            plan_us: 0,
            due: now,
            every: settings.plan_every_min,
            moved: BTreeMap::new(),
        };
        Ok(Arc::new(Mover {
            volume,
            recorder,
            forecaster,
            home,
            volume_id,
            tier_names,
            pins: Mutex::new(pins),
            outlook: Mutex::new(outlook),
            measured: Mutex::default(),
            journal: Mutex::new(Journal::new(settings.journal_entries)),
            history: Mutex::default(),
            tally: Mutex::default(),
            compacted: Mutex::default(),
            bucket: TokenBucket::new(settings.bytes_per_second),
            backoff: Mutex::new((Backoff::default(), now, false)),
            rolled_at: Mutex::new(now),
            log_watch: Mutex::default(),
            thresholds: Mutex::default(),
            opened_at: now,
            background: Background::default(),
            settings,
        }))
    }

    /// Starts the planning thread, the fast lane, compaction and the forecast. `learn_paths` runs before the first plan: it tells the rules of files met by nobody yet.
    pub fn start(self: &Arc<Self>, learn_paths: impl FnOnce() + Send + 'static) -> Result<()> {
        let (planner, lane, forecast) = (Arc::clone(self), Arc::clone(self), Arc::clone(self));
        let compactor = Arc::clone(self);
        self.background.spawn("heatfs-mover", move || {
            learn_paths();
            planner.plan_loop();
        })?;
        self.background.spawn("heatfs-fastlane", move || lane.fast_lane())?;
        self.background.spawn("heatfs-compact", move || compactor.compact_loop())?;
        self.background.spawn("heatfs-forecast", move || {
            while !forecast.background.sleep(LOOK_EVERY) {
                forecast.watch_log();
                forecast.coalesce_read_blocks();
                forecast.forecaster.look();
            }
        })
    }

    /// Stops the threads, waits for them, and saves the heat and what the forecast has learned. Nothing is moved any more.
    pub fn stop(&self) {
        self.background.stop();
        self.save_heat();
        self.forecaster.save();
    }

    /// Has coalescing begin early enough for the rate at which the log is written.
    fn watch_log(&self) {
        let load = self.volume.log_load();
        let threshold = self.log_watch.lock().threshold(self.opened_at.elapsed(), &load);
        self.volume.set_coalesce_at_fill(threshold);
    }

    /// What counts accesses.
    pub fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    /// What says which blocks will be read.
    pub fn forecaster(&self) -> &Forecaster {
        &self.forecaster
    }

    fn save_heat(&self) {
        if let Err(error) = self.recorder.save(&*self.home, &self.volume_id) {
            tracing::warn!(%error, "cannot save the heat");
        }
    }

    fn plan_loop(&self) {
        let mut every = self.settings.plan_every_min;
        let mut saved_at = monotonic_now();
        while !self.background.is_stopping() {
            let began = monotonic_now();
            let promoted = self.promoted_by_misses();
            let made = self.run_plan(every);
            self.keep_history();
            // Misses that were promoted take room, which the next plan makes again.
            let busy = made.gain_us > MUCH_TO_GAIN * made.cost_us || self.promoted_by_misses() > promoted;
            every = if busy { self.settings.plan_every_min } else { every.mul_f32(1.5) }
                .clamp(self.settings.plan_every_min, self.settings.plan_every_max)
                .max(Duration::from_micros(self.outlook.lock().plan_us) * PLAN_TIMES_BETWEEN);
            if saved_at.elapsed() >= self.settings.save_every {
                self.save_heat();
                self.settings.rules.forget_gone(|| self.volume.files().into_iter().collect());
                saved_at = monotonic_now();
            }
            let rest = every.saturating_sub(began.elapsed());
            {
                let mut outlook = self.outlook.lock();
                (outlook.due, outlook.every) = (monotonic_now() + rest, every);
            }
            if self.background.sleep(rest) {
                return;
            }
        }
    }

    /// Blocks that were promoted because they were missed.
    fn promoted_by_misses(&self) -> u64 {
        let tally = self.tally.lock();
        tally.fast_lane + tally.staged
    }

    /// Rolls the heat, plans, and carries the plan out within about `time`. Returns the plan.
    pub fn run_plan(&self, time: Duration) -> Plan {
        let now = monotonic_now();
        let since = now.duration_since(std::mem::replace(&mut *self.rolled_at.lock(), now));
        self.recorder.roll(since.as_secs_f32() / self.settings.epoch.as_secs_f32().max(0.001));
        let made = self.make_plan(time);
        // What costs nothing makes room for misses, who should not wait for the rest of the plan.
        let (flips, copies): (Vec<Decision>, Vec<Decision>) = made.decisions.iter().partition(|decision| decision.flip);
        if !flips.is_empty() {
            self.carry_out(&flips, now + time);
        }
        self.carry_out(&copies, now + time);
        self.premigrate(&made.cooling, now + time);
        made
    }

    fn carry_out(&self, decisions: &[Decision], deadline: Instant) {
        self.execute(decisions, deadline);
        if let Err(error) = self.make_room() {
            tracing::warn!(%error, "cannot make room for the next plan");
        }
        self.count_room();
    }

    /// Brings the books of room up to what the engine says.
    fn count_room(&self) {
        let block_bytes = self.block_bytes();
        let status = self.volume.status();
        let mut outlook = self.outlook.lock();
        for (known, tier) in outlook.tiers.iter_mut().zip(&status.tiers) {
            let (budget_blocks, free_blocks) = (tier.budget_bytes / block_bytes, tier.free_bytes() / block_bytes);
            known.count(budget_blocks, tier.blocks, free_blocks, &self.settings.placement);
        }
    }

    /// What moved away occupies its old place until a checkpoint, and clean copies occupy the slowest tier: where either leaves the next
    /// plan little to work with, it goes.
    fn make_room(&self) -> Result<()> {
        let status = self.volume.status();
        let block_bytes = self.block_bytes();
        let Some((slowest, faster)) = status.tiers.split_last() else { return Ok(()) };
        let waiting = |tier: &TierStatus| tier.used_bytes.saturating_sub((tier.blocks + tier.copies) * block_bytes);
        let slack = 1.0 - self.settings.placement.low_watermark;
        if faster.iter().any(|tier| waiting(tier) > part_of(tier.budget_bytes, slack / 8.0)) {
            self.volume.checkpoint()?;
        }
        let free = slowest.budget_bytes.saturating_sub(slowest.used_bytes);
        let wanted = part_of(slowest.budget_bytes, slack);
        if slowest.copies > 0 && free + waiting(slowest) < wanted {
            let tier = TierId(u8::try_from(faster.len()).unwrap_or(u8::MAX));
            self.volume.drop_copies(tier, (wanted - free).div_ceil(block_bytes))?;
        }
        Ok(())
    }

    fn make_plan(&self, time: Duration) -> Plan {
        let began = monotonic_now();
        let status = self.volume.status();
        self.measured.lock().update(&status);
        let tiers = self.tier_states(&status);
        let number = {
            let mut outlook = self.outlook.lock();
            outlook.number += 1;
            let oldest = outlook.number.saturating_sub(self.settings.placement.residency_plans);
            outlook.moved.retain(|_, plan| *plan >= oldest);
            outlook.number
        };
        let block_bytes = self.block_bytes();
        self.forecaster.note_classes(self.settings.rules.take_classes());
        self.follow_staging_share(&tiers);
        let made = self.ask_policy(number, time, &tiers);
        self.keep_hot_staged(&made.tiers);
        let mut outlook = self.outlook.lock();
        outlook.tiers.clone_from(&made.tiers);
        outlook.ranks = made.ranks.clone();
        outlook.cost_us = made.cost_us;
        outlook.gain_us = made.gain_us;
        outlook.decisions = u64::try_from(made.decisions.len()).unwrap_or(u64::MAX);
        outlook.bytes = made.bytes;
        outlook.plan_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let roomy = |(tier, state): (&TierOutlook, &TierState)| {
            tier.room_blocks * block_bytes > part_of(state.budget_bytes, ROOM_SHARE)
        };
        let room = made.tiers.iter().zip(&tiers).rev().skip(1).any(roomy);
        drop(outlook);
        if let Some(slowest) = tiers.len().checked_sub(1).filter(|slowest| *slowest > 0) {
            // Each miss is looked at by the fast lane, against the cut of the plan: while its image is in memory, promoting it costs little.
            self.recorder.queue_misses(TierId(u8::try_from(slowest).unwrap_or(u8::MAX)));
            self.volume.read_around_misses(room);
        }
        made
    }

    /// What the policy would do about the blocks as they lie, as plan `number`, with the bytes that may be copied in `time`.
    fn ask_policy(&self, number: u32, time: Duration, tiers: &[TierState]) -> Plan {
        let settings = PlacementSettings {
            bytes_per_plan: self.settings.bytes_per_second.saturating_mul(time.as_secs().max(1)),
            staging_blocks: self.forecaster.staging.lock().capacity() as u64,
            ..self.settings.placement.clone()
        };
        let blocks = VolumeBlocks::new(self);
        plan(&PlacementState { number, block_bytes: self.block_bytes(), tiers, blocks: &blocks }, &settings)
    }

    fn block_bytes(&self) -> u64 {
        u64::from(self.recorder.settings().block_bytes)
    }

    fn tier_states(&self, status: &VolumeStatus) -> Vec<TierState> {
        let measured = self.measured.lock();
        let last = status.tiers.len().saturating_sub(1);
        let images_kept = self.block_bytes() <= self.volume.image_block_bytes_max();
        let states = status.tiers.iter().enumerate().map(|(at, tier)| TierState {
            budget_bytes: tier.budget_bytes,
            free_bytes: tier.free_bytes(),
            latency_us: measured.latency_us.get(at).copied().unwrap_or_default(),
            is_busy: images_kept
                && at == last
                && measured.readers.get(at).is_some_and(|readers| *readers > BUSY_READERS),
        });
        states.collect()
    }

    /// Pins a file to a tier; durable when it returns. The mover brings its blocks there. `Invalid` when a rule says otherwise.
    pub fn pin(&self, file: FileId, tier: &str) -> Result<()> {
        let Some(wanted) = self.tier_named(tier) else {
            let names = self.tier_names.join(", ");
            return Err(Error::Invalid(format!("no tier `{tier}`: this volume has {names}")));
        };
        let may = match self.settings.rules.by_rule(file) {
            Some(Pin::To(to)) => to == wanted,
            Some(Pin::Within(bounds)) => bounds.promoted && bounds.allows(wanted),
            Some(Pin::None | Pin::LogFile | Pin::Catalog | Pin::Staged) | None => true,
        };
        if !may {
            let rule = self.settings.rules.describe(file).unwrap_or_default();
            return Err(Error::Invalid(format!("it cannot be pinned to {tier}: {rule} says otherwise")));
        }
        self.change_pins(|pins| pins.insert(file, tier.to_owned()) != Some(tier.to_owned()))
    }

    /// Removes a pin; durable when it returns. False: there was none.
    pub fn unpin(&self, file: FileId) -> Result<bool> {
        let was_pinned = self.pins.lock().contains_key(&file);
        self.change_pins(|pins| pins.remove(&file).is_some())?;
        Ok(was_pinned)
    }

    /// All pins: file and tier name.
    pub fn pins(&self) -> Vec<(FileId, String)> {
        self.pins.lock().iter().map(|(file, tier)| (*file, tier.clone())).collect()
    }

    /// A pin counts only once it is on disk, so a failed save leaves things as they were.
    fn change_pins(&self, change: impl FnOnce(&mut Pins) -> bool) -> Result<()> {
        let mut pins = self.pins.lock();
        let mut changed = pins.clone();
        if change(&mut changed) {
            pins::save(&*self.home, &changed)?;
            *pins = changed;
        }
        Ok(())
    }

    fn tier_named(&self, name: &str) -> Option<TierId> {
        let index = self.tier_names.iter().position(|known| known == name)?;
        u8::try_from(index).ok().map(TierId)
    }

    /// A rule of the settings comes first, then what a user pinned by hand, then a profile.
    fn pin_of(&self, file: FileId) -> Pin {
        let by_hand = || self.pins.lock().get(&file).and_then(|name| self.tier_named(name)).map(Pin::To);
        let by_rule = self.settings.rules.by_rule(file).or_else(by_hand);
        match by_rule.or_else(|| self.settings.rules.by_profile(file)) {
            Some(pin) => pin,
            None if self.recorder.is_log_file(file) => Pin::LogFile,
            None => Pin::None,
        }
    }
}

impl Measured {
    /// Latency of each tier: measured where it was read from since the last time, never faster than a tier above it.
    fn update(&mut self, status: &VolumeStatus) {
        let tiers = status.tiers.len();
        if self.latency_us.len() != tiers {
            let guess = |tier| match tier {
                0 => UNMEASURED_US[0],
                last if last + 1 == tiers => UNMEASURED_US[2],
                _ => UNMEASURED_US[1],
            };
            self.latency_us = (0..tiers).map(guess).collect();
            (self.reads, self.micros) = (vec![0; tiers], vec![0; tiers]);
        }
        let counted = status.counters.base_reads.iter().zip(&status.counters.base_read_us);
        for (tier, (reads, micros)) in counted.enumerate().take(tiers) {
            let more = reads.saturating_sub(self.reads[tier]);
            if more >= MEASURED_READS {
                let mean = micros.saturating_sub(self.micros[tier]) / more;
                let mean = f32::from(u16::try_from(mean).unwrap_or(u16::MAX));
                self.latency_us[tier] = 0.7 * self.latency_us[tier] + 0.3 * mean;
                (self.reads[tier], self.micros[tier]) = (*reads, *micros);
            }
        }
        let now = monotonic_now();
        let micros = status.counters.base_read_us.clone();
        if let Some((then, before)) = self.looked_at.take() {
            let elapsed = now.duration_since(then).max(Duration::from_micros(1));
            let spent = |(now, before): (&u64, &u64)| Duration::from_micros(now.saturating_sub(*before));
            self.readers = micros.iter().zip(&before).map(|pair| spent(pair).div_duration_f64(elapsed)).collect();
        }
        self.looked_at = Some((now, micros));
        for tier in 1..tiers {
            self.latency_us[tier] = self.latency_us[tier].max(self.latency_us[tier - 1] * 1.1);
        }
    }
}

/// The volume's blocks as the policy wants to see them: the map's runs, split where heat or the last move differs.
struct VolumeBlocks<'a> {
    mover: &'a Mover,
    /// As of the start of the plan, so that both visits see the same.
    marks: BTreeMap<(FileId, BlockNo), Mark>,
}

/// What sets a block apart from its neighbours.
#[derive(Clone, Copy, Default)]
struct Mark {
    moved: Option<u32>,
    is_staged: bool,
}

impl VolumeBlocks<'_> {
    fn new(mover: &Mover) -> VolumeBlocks<'_> {
        let mut marks: BTreeMap<(FileId, BlockNo), Mark> = BTreeMap::new();
        for (key, plan) in &mover.outlook.lock().moved {
            marks.entry(*key).or_default().moved = Some(*plan);
        }
        for key in mover.forecaster.staging.lock().staged() {
            marks.entry(key).or_default().is_staged = true;
        }
        VolumeBlocks { mover, marks }
    }

    /// Splits a run at blocks that were moved lately or are staged.
    fn split(&self, run: BlockRun, each: &mut dyn FnMut(&BlockRun)) {
        let end = run.first.0 + run.count;
        let mut next = run.first.0;
        for ((_, block), mark) in self.marks.range((run.file, run.first)..(run.file, BlockNo(end))) {
            if block.0 > next {
                each(&BlockRun { first: BlockNo(next), count: block.0 - next, ..run });
            }
            let heat_places = matches!(run.pin, Pin::None | Pin::Within(_));
            let pin = if mark.is_staged && heat_places && run.tier == TierId::FASTEST { Pin::Staged } else { run.pin };
            each(&BlockRun { first: *block, count: 1, moved: mark.moved, pin, ..run });
            next = block.0 + 1;
        }
        if end > next {
            each(&BlockRun { first: BlockNo(next), count: end - next, ..run });
        }
    }
}

impl Blocks for VolumeBlocks<'_> {
    fn visit(&self, each: &mut dyn FnMut(&BlockRun)) {
        let visited = self.mover.volume.for_each_block_map(&mut |id, runs| {
            let blocks = runs.iter().filter(|run| run.2.is_some()).map(|run| run.1).sum();
            let heat = self.mover.recorder.file_heat(id, blocks);
            let pin = self.mover.pin_of(id);
            for (first, count, tier, copy) in runs {
                let Some(tier) = tier else { continue };
                heat.runs(first, count, |first, count, heat| {
                    self.split(BlockRun { file: id, first, count, tier, copy, heat, moved: None, pin }, each);
                });
            }
            ControlFlow::Continue(())
        });
        if let Err(error) = visited {
            tracing::warn!(%error, "cannot look at where all blocks lie; the plan is of those that were seen");
        }
    }
}

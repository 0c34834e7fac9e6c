//! Which block belongs on which tier: [`plan`] looks at all of them now and then and names the moves that save most.
//!
//! Tiers are ordered fastest first, all blocks have one size, so the ideal is simple: hottest first into the fastest tier until it is full, and so on.
//! What is hard is to get there cheaply. A move must pay: the latency it saves within [`PlacementSettings::horizon_epochs`] must exceed
//! what the copying costs the devices. Free room on a fast tier is filled with whatever has been read at all; a full tier
//! takes a block only in exchange for a colder one, with a margin (hysteresis), and blocks rest after a move. Above its high
//! watermark a tier gives up its coldest blocks, first those that still have a valid copy further down, since that costs nothing.
//!
//! Physical room is counted one way only: a block that leaves frees its old image after the next checkpoint, so a plan never counts on
//! that space. That also bounds what a plan may replace to the slack above the low watermark.
//!
//! Blocks are visited twice, as runs, and never all kept: the first pass counts heats in a histogram, which gives each tier's cut; the second
//! collects the hottest and coldest per tier in heaps as large as the byte budget.

mod pin;
mod survey;
#[cfg(test)]
mod tests;

pub use pin::{Bounds, Pin};

use super::ranks::HeatRanks;
use crate::units::{BlockNo, FileId, TierId};
use serde::{Deserialize, Serialize};
use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashSet, VecDeque};
use std::fmt;
use survey::Survey;

#[derive(Clone, Debug, PartialEq)]
pub struct PlacementSettings {
    /// A tier is filled up to this share of its budget.
    pub low_watermark: f32,
    /// Above this share of its budget a tier gives up blocks, down to the low watermark.
    pub high_watermark: f32,
    /// A block displaces another if it is hotter by this share.
    pub hysteresis: f32,
    /// Plans for which a block stays after a move.
    pub residency_plans: u32,
    /// Bytes that one plan may copy.
    pub bytes_per_plan: u64,
    /// Epochs over which a move must save what it costs.
    pub horizon_epochs: f32,
    /// Accesses per epoch from which a block is worth filling free room with.
    pub fill_heat_min: f32,
    /// Share of the fastest tier that is log files', as far as there are any: nothing else takes it, and beyond it they are blocks like others.
    ///
    /// A log's block is hardly ever read, and written once more after its record at most, in sequence, which a disk does as fast as others; so a block
    /// of it here saves nothing but a wait in a flood of writes. Two hundredths hold twice PostgreSQL's `max_wal_size` on a tier of 100 GiB.
    /// In the simulation of pgbench a fast tier that gives a tenth away needs 11 % more reads of the slowest tier, with two hundredths 3 %.
    pub log_share: f32,
    /// The same for catalogs that a profile recognises.
    pub catalog_share: f32,
    /// Share of a full tier's blocks, the coldest, that get a copy on the slowest tier ahead of sinking there; the tier is then relieved without copying.
    pub premigrated_share: f32,
    /// Blocks of the fastest tier that are for staged misses, whether there are any or not.
    pub staging_blocks: u64,
}

impl Default for PlacementSettings {
    fn default() -> Self {
        PlacementSettings {
            low_watermark: 0.95,
            high_watermark: 0.98,
            hysteresis: 0.15,
            residency_plans: 2,
            bytes_per_plan: 256 << 20,
            horizon_epochs: 8.0,
            fill_heat_min: 1.0 / 1024.0,
            log_share: 0.02,
            catalog_share: 0.05,
            premigrated_share: 0.02,
            staging_blocks: 0,
        }
    }
}

/// One tier at the moment of planning.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct TierState {
    /// Bytes that block images may take.
    pub budget_bytes: u64,
    /// Bytes that can be written now: images that wait for a checkpoint to be freed are not free.
    pub free_bytes: u64,
    /// Mean time of reading one block at random, as measured.
    pub latency_us: f32,
    /// Readers wait in line for this device, and what they read is in memory for a moment. Promoting a block then costs a read that somebody
    /// else waits for and saves one at most, so it is left to the block's next miss, which brings it for nothing (R24).
    pub is_busy: bool,
}

/// Neighbouring blocks of a file that are alike in everything that placement looks at.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct BlockRun {
    pub file: FileId,
    pub first: BlockNo,
    pub count: u64,
    pub tier: TierId,
    /// A slower tier where a valid copy lies.
    pub copy: Option<TierId>,
    /// Predicted accesses per block in the next epoch.
    pub heat: f32,
    /// Number of the plan that moved it last, if that may matter.
    pub moved: Option<u32>,
    pub pin: Pin,
}

/// All blocks that lie on a tier, in any order, the same at each visit.
pub trait Blocks {
    fn visit(&self, each: &mut dyn FnMut(&BlockRun));
}

/// All that a plan is made from.
pub struct PlacementState<'a> {
    /// Number of this plan.
    pub number: u32,
    pub block_bytes: u64,
    /// Fastest first.
    pub tiers: &'a [TierState],
    pub blocks: &'a dyn Blocks,
}

/// Why a block is moved. Heats are accesses per epoch.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case", tag = "kind")]
pub enum Reason {
    /// A user pinned the file to the target tier.
    Pinned,
    /// The file is a log.
    LogFile,
    /// The file is a catalog that a profile recognises.
    Catalog,
    /// A rule forbids the tier that it was on.
    Forbidden,
    /// The target tier had room.
    Room { heat: f32 },
    /// It is hotter than what it displaces, and reaches the tier's cut.
    Hotter { heat: f32, than: f32, cut: f32 },
    /// Something hotter needed its place.
    Displaced { heat: f32, by: f32 },
    /// It was just missed, and the staging share of the fastest tier keeps it for a while.
    Staged,
    /// It was staged, and not asked for often enough to stay.
    Unstaged,
    /// The tier was above its high watermark.
    Watermark { heat: f32, used_share: f32 },
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Reason::Pinned => write!(f, "pinned by a user"),
            Reason::Catalog => write!(f, "catalogs belong on the fastest tier"),
            Reason::Forbidden => write!(f, "a rule forbids the tier that it was on"),
            Reason::LogFile => write!(f, "log files belong on the fastest tier"),
            Reason::Staged => write!(f, "it was just missed, and is kept for a while in case it is asked for again"),
            Reason::Unstaged => write!(f, "it was staged after a miss, and not asked for again often enough to stay"),
            Reason::Room { heat } => write!(f, "there was room, and {heat:.3} accesses are expected per epoch"),
            Reason::Hotter { heat, than, cut } => {
                write!(
                    f,
                    "{heat:.3} accesses are expected per epoch, {than:.3} of the block that made room (from {cut:.3} on one belongs there)"
                )
            }
            Reason::Displaced { heat, by } => {
                write!(f, "its {heat:.3} accesses per epoch gave way to {by:.3} of another block")
            }
            Reason::Watermark { heat, used_share } => {
                write!(
                    f,
                    "the tier was {:.1} % full, and with {heat:.3} accesses per epoch it was among the coldest",
                    used_share * 100.0
                )
            }
        }
    }
}

/// One move to make. Promotion when `to` is faster than `from`, else demotion.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Decision {
    pub file: FileId,
    pub block: BlockNo,
    pub from: TierId,
    pub to: TierId,
    pub reason: Reason,
    /// Latency saved per epoch, in microseconds; negative for a demotion.
    pub gain_us: f32,
    /// The target already holds a valid copy: nothing is copied.
    pub flip: bool,
}

/// What is known about a tier's room between plans.
#[derive(Clone, Copy, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TierOutlook {
    /// Heat that a block needs to belong here or higher.
    pub cut: f32,
    /// Blocks until the low watermark, after the plan.
    pub room_blocks: u64,
    /// Blocks that could be written until the high watermark, after the plan.
    pub slack_blocks: u64,
    /// Blocks mapped here, before the plan.
    pub blocks: u64,
    /// Of these, blocks that have no copy on another tier.
    pub sole_blocks: u64,
    /// Blocks anywhere that a user or a rule wants here.
    pub pinned_blocks: u64,
    /// Blocks that are kept free here for logs and catalogs, which lie elsewhere so far.
    pub reserved_blocks: u64,
    /// Predicted accesses per epoch to the blocks mapped here, and of these to blocks that heat does not place.
    pub heat: f64,
    pub pinned_heat: f64,
    pub latency_us: f32,
}

impl TierOutlook {
    /// What can be added to a tier with a budget of `budget_blocks`, of which `blocks` are mapped and `free_blocks` can be written.
    pub fn count(&mut self, budget_blocks: u64, blocks: u64, free_blocks: u64, settings: &PlacementSettings) {
        let taken = blocks + self.reserved_blocks;
        let until = |watermark| part_of(budget_blocks, watermark).saturating_sub(taken).min(free_blocks);
        self.blocks = blocks;
        self.room_blocks = until(settings.low_watermark);
        self.slack_blocks = until(settings.high_watermark);
    }
}

#[derive(Clone, Debug, Default)]
pub struct Plan {
    /// In the order in which they are best made: what makes room comes first.
    pub decisions: Vec<Decision>,
    pub tiers: Vec<TierOutlook>,
    pub ranks: HeatRanks,
    /// Latency of all predicted accesses of an epoch as things are, in microseconds.
    pub cost_us: f64,
    /// Of that, what the decisions save.
    pub gain_us: f64,
    /// Bytes that the decisions copy.
    pub bytes: u64,
    /// Blocks that will sink soon and have no copy below, coldest first, as far as bytes are left.
    pub cooling: Vec<(FileId, BlockNo)>,
}

/// The moves that save most, within the settings' limits. See the module's head.
pub fn plan(state: &PlacementState<'_>, settings: &PlacementSettings) -> Plan {
    let survey = Survey::take(state, settings);
    let mut picker = Picker::new(state, settings, survey);
    picker.collect(state.blocks);
    picker.place_pinned();
    picker.relieve();
    picker.promote();
    picker.finish()
}

/// Where a block that was just missed on tier `from` should go at once, without waiting for the next plan.
pub fn immediate(
    heat: f32,
    from: TierId,
    tiers: &[TierOutlook],
    settings: &PlacementSettings,
) -> Option<(TierId, Reason)> {
    let source = tiers.get(from.index())?;
    for (to, tier) in (0u8..).map(TierId).zip(tiers).take(from.index()) {
        if tier.room_blocks > 0 && heat >= settings.fill_heat_min {
            return Some((to, Reason::Room { heat }));
        }
        let saved_us = heat * (source.latency_us - tier.latency_us) * settings.horizon_epochs;
        let hot = heat > tier.cut * (1.0 + settings.hysteresis) && saved_us > source.latency_us + tier.latency_us;
        if tier.slack_blocks > 0 && hot {
            return Some((to, Reason::Hotter { heat, than: tier.cut, cut: tier.cut }));
        }
    }
    None
}

/// A block that may move.
#[derive(Clone, Copy, Debug)]
struct Candidate {
    file: FileId,
    block: BlockNo,
    tier: TierId,
    copy: Option<TierId>,
    heat: f32,
    /// Its residency is over.
    rested: bool,
    pin: Pin,
}

/// Sorts by heat, then by place. The bits of floats that are not negative sort like the floats.
type Key = (u32, Reverse<(FileId, BlockNo)>);

impl Candidate {
    fn key(&self) -> Key {
        (self.heat.max(0.0).to_bits(), Reverse((self.file, self.block)))
    }
}

struct ByHeat<const HOTTEST: bool>(Candidate);

impl<const HOTTEST: bool> ByHeat<HOTTEST> {
    /// Largest first to go: the coldest where the hottest are kept, and the other way round.
    fn order(&self) -> (u32, (FileId, BlockNo)) {
        let (bits, Reverse(place)) = self.0.key();
        (if HOTTEST { !bits } else { bits }, place)
    }
}
impl<const HOTTEST: bool> PartialEq for ByHeat<HOTTEST> {
    fn eq(&self, other: &Self) -> bool {
        self.order() == other.order()
    }
}
impl<const HOTTEST: bool> Eq for ByHeat<HOTTEST> {}
impl<const HOTTEST: bool> PartialOrd for ByHeat<HOTTEST> {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl<const HOTTEST: bool> Ord for ByHeat<HOTTEST> {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        self.order().cmp(&other.order())
    }
}

/// Keeps the hottest (or coldest) candidates offered to it, up to a limit.
struct Best<const HOTTEST: bool> {
    limit: usize,
    heap: BinaryHeap<ByHeat<HOTTEST>>,
}

impl<const HOTTEST: bool> Best<HOTTEST> {
    fn new(limit: usize) -> Self {
        Best { limit, heap: BinaryHeap::new() }
    }

    /// Offers blocks of a run in order; stops at the first one not taken, since the rest would not be either.
    fn offer(&mut self, run: &BlockRun, rested: bool) {
        let heat = if run.heat.is_finite() { run.heat.max(0.0) } else { 0.0 };
        for block in (run.first.0..run.first.0.saturating_add(run.count)).map(BlockNo) {
            let BlockRun { file, tier, copy, pin, .. } = *run;
            let entry = ByHeat(Candidate { file, block, tier, copy, heat, rested, pin });
            if self.heap.len() < self.limit {
                self.heap.push(entry);
            } else if let Some(mut last) = self.heap.peek_mut()
                && entry < *last
            {
                *last = entry;
            } else {
                return;
            }
        }
    }

    /// Best first.
    fn into_sorted(self) -> Vec<Candidate> {
        self.heap.into_sorted_vec().into_iter().map(|entry| entry.0).collect()
    }
}

/// Makes the decisions, and keeps the books of room and bytes while it does.
struct Picker<'a> {
    tiers: &'a [TierState],
    settings: &'a PlacementSettings,
    number: u32,
    block_bytes: u64,
    survey: Survey,
    /// Blocks mapped per tier, with the decisions so far.
    mapped: Vec<u64>,
    /// Blocks that can still be written per tier.
    free: Vec<u64>,
    bytes_left: u64,
    misplaced: Vec<Candidate>,
    hot: Vec<Candidate>,
    cold: Vec<VecDeque<Candidate>>,
    moved: HashSet<(FileId, BlockNo)>,
    plan: Plan,
}

impl<'a> Picker<'a> {
    fn new(state: &PlacementState<'a>, settings: &'a PlacementSettings, survey: Survey) -> Picker<'a> {
        let block_bytes = state.block_bytes.max(1);
        Picker {
            tiers: state.tiers,
            settings,
            number: state.number,
            block_bytes,
            mapped: survey.tiers.iter().map(|tier| tier.blocks).collect(),
            free: state.tiers.iter().map(|tier| tier.free_bytes / block_bytes).collect(),
            survey,
            bytes_left: settings.bytes_per_plan,
            misplaced: Vec::new(),
            hot: Vec::new(),
            cold: Vec::new(),
            moved: HashSet::new(),
            plan: Plan::default(),
        }
    }

    fn watermark(&self, tier: usize, share: f32) -> u64 {
        self.tiers.get(tier).map_or(0, |tier| part_of(tier.budget_bytes, share) / self.block_bytes)
    }

    /// Blocks mapped on a tier, and those that it has to hold free for misses.
    fn held(&self, tier: usize) -> u64 {
        self.mapped[tier] + if tier == 0 { self.survey.staging_left } else { 0 }
    }

    /// Blocks that `tier` may take up to its low watermark, now, besides what is reserved.
    fn room(&self, tier: usize) -> u64 {
        let taken = self.mapped[tier] + self.survey.tiers[tier].reserved_blocks;
        let below = self.watermark(tier, self.settings.low_watermark).saturating_sub(taken);
        below.min(self.free[tier])
    }

    /// Blocks of free space on `tier` that exchanges leave to misses: what one of those saves is a wait for a device that is busy.
    fn reserve(&self, tier: usize) -> u64 {
        let between =
            self.watermark(tier, self.settings.high_watermark) - self.watermark(tier, self.settings.low_watermark);
        if self.tiers.iter().skip(tier + 1).any(|slower| slower.is_busy) { between / 2 } else { 0 }
    }

    fn latency(&self, tier: TierId) -> f32 {
        self.tiers.get(tier.index()).map_or(0.0, |tier| tier.latency_us)
    }

    /// The second pass.
    fn collect(&mut self, blocks: &dyn Blocks) {
        let tiers = self.tiers.len();
        let budget = usize::try_from(self.settings.bytes_per_plan / self.block_bytes).unwrap_or(usize::MAX);
        let mut hot: Vec<Best<true>> = (0..tiers).map(|_| Best::new(budget)).collect();
        let mut cold: Vec<Best<false>> = (0..tiers)
            .map(|tier| {
                let excess = self.held(tier).saturating_sub(self.watermark(tier, self.settings.low_watermark));
                Best::new(budget.saturating_add(usize::try_from(excess).unwrap_or(0).min(budget)))
            })
            .collect();
        let mut pinned = Best::<true>::new(budget);
        let (number, settings) = (self.number, self.settings);
        let mut kept = self.survey.reserves.map(|reserve| reserve.limit_blocks);
        blocks.visit(&mut |run| {
            let tier = run.tier.index();
            if tier >= tiers {
                return;
            }
            let rested = run.moved.is_none_or(|moved| number.saturating_sub(moved) >= settings.residency_plans);
            match run.pin {
                Pin::None => {
                    if tier > 0 && rested && run.heat >= settings.fill_heat_min {
                        hot[tier].offer(run, rested);
                    }
                    if tier + 1 < tiers {
                        cold[tier].offer(run, rested);
                    }
                }
                Pin::To(to) => {
                    if to != run.tier && to.index() < tiers {
                        pinned.offer(run, rested);
                    }
                }
                Pin::Within(bounds) => {
                    if !bounds.allows(run.tier) {
                        pinned.offer(run, rested);
                        return;
                    }
                    if tier > 0 && rested && bounds.promoted && run.heat >= settings.fill_heat_min {
                        hot[tier].offer(run, rested);
                    }
                    // What may not be everywhere below would stop an exchange that counts on its sinking.
                    let below = (run.tier.0 + 1..).map(TierId).take_while(|to| to.index() < tiers);
                    if tier + 1 < tiers && bounds.demoted && below.into_iter().all(|to| bounds.allows(to)) {
                        cold[tier].offer(run, rested);
                    }
                }
                Pin::Staged => {}
                Pin::LogFile | Pin::Catalog if run.tier != TierId::FASTEST => {
                    pinned.offer(run, rested);
                    if run.pin == Pin::Catalog && rested && run.heat >= settings.fill_heat_min {
                        hot[tier].offer(run, rested);
                    }
                }
                Pin::LogFile | Pin::Catalog => {
                    // What the reserve does not hold is a block like any other.
                    let Some(kept) = run.pin.reserve().and_then(|at| kept.get_mut(at)) else { return };
                    let within = run.count.min(*kept);
                    *kept -= within;
                    if within < run.count && tiers > 1 {
                        let first = BlockNo(run.first.0 + within);
                        cold[tier].offer(&BlockRun { first, count: run.count - within, ..*run }, rested);
                    }
                }
            }
        });
        self.misplaced = pinned.into_sorted();
        self.hot = hot.into_iter().flat_map(Best::into_sorted).collect();
        self.cold = cold.into_iter().map(|cold| cold.into_sorted().into()).collect();
    }

    /// Books a move; the caller has checked that it fits.
    fn decide(&mut self, block: &Candidate, to: TierId, reason: Reason) {
        let flip = block.copy == Some(to);
        if !flip {
            self.free[to.index()] = self.free[to.index()].saturating_sub(1);
            self.bytes_left = self.bytes_left.saturating_sub(self.block_bytes);
            self.plan.bytes += self.block_bytes;
        }
        self.mapped[block.tier.index()] = self.mapped[block.tier.index()].saturating_sub(1);
        self.mapped[to.index()] += 1;
        let gain_us = block.heat * (self.latency(block.tier) - self.latency(to));
        self.plan.gain_us += f64::from(gain_us);
        self.moved.insert((block.file, block.block));
        let Candidate { file, block, tier: from, .. } = *block;
        self.plan.decisions.push(Decision { file, block, from, to, reason, gain_us, flip });
    }

    fn place_pinned(&mut self) {
        let mut left = self.survey.reserves.map(|reserve| reserve.left());
        for block in std::mem::take(&mut self.misplaced) {
            let (to, reason) = match block.pin {
                Pin::None | Pin::Staged => continue,
                Pin::To(to) => (to, Reason::Pinned),
                Pin::LogFile => (TierId::FASTEST, Reason::LogFile),
                Pin::Catalog => (TierId::FASTEST, Reason::Catalog),
                Pin::Within(bounds) => match bounds.nearest(block.tier, self.tiers.len()) {
                    Some(to) => (to, Reason::Forbidden),
                    None => continue,
                },
            };
            let copied = block.copy != Some(to);
            if copied && (self.free[to.index()] == 0 || self.bytes_left < self.block_bytes) {
                continue;
            }
            if let Some(left) = block.pin.reserve().and_then(|at| left.get_mut(at)) {
                if *left == 0 {
                    continue;
                }
                *left -= 1;
                let fastest = &mut self.survey.tiers[to.index()];
                fastest.reserved_blocks = fastest.reserved_blocks.saturating_sub(1);
            }
            self.decide(&block, to, reason);
        }
    }

    /// Brings tiers above their high watermark down to the low one, coldest blocks first, and tiers in between as far as it costs
    /// nothing, so that there is room for what is missed next. The slower tiers first: the faster ones sink into their room.
    fn relieve(&mut self) {
        for tier in (0..self.tiers.len().saturating_sub(1)).rev() {
            let budget = self.watermark(tier, 1.0);
            let must = self.held(tier) > self.watermark(tier, self.settings.high_watermark);
            let used_share = share(self.held(tier), budget);
            let need = self.held(tier).saturating_sub(self.watermark(tier, self.settings.low_watermark));
            let need = usize::try_from(need).unwrap_or(usize::MAX);
            let considered = self.cold[tier].len().min(need.saturating_mul(2));
            let mut coldest: Vec<Candidate> = self.cold[tier].drain(..considered).collect();
            // Blocks with a copy below go first, then blocks that have rested, each coldest first.
            coldest.sort_by_key(|block| (block.copy.is_none(), !block.rested, block.heat.to_bits()));
            let mut taken = 0;
            for block in &coldest {
                if taken == need {
                    break;
                }
                if let Some(to) = self.lower_place(block).filter(|to| must || block.copy == Some(*to)) {
                    self.decide(block, to, Reason::Watermark { heat: block.heat, used_share });
                    taken += 1;
                }
            }
            coldest.retain(|block| !self.moved.contains(&(block.file, block.block)));
            coldest.sort_by_key(Candidate::key);
            coldest.into_iter().rev().for_each(|block| self.cold[tier].push_front(block));
        }
    }

    /// Where a block can sink to: to a tier with room where it belongs, else to its copy, else to the next tier with room, else to any with
    /// space at all.
    fn lower_place(&self, block: &Candidate) -> Option<TierId> {
        if let Some(copy) = block.copy.filter(|copy| *copy > block.tier && copy.index() < self.tiers.len()) {
            let mut between = (block.tier.0 + 1..copy.0).map(TierId);
            let belongs = |to: &TierId| self.belongs(block, *to) && self.room(to.index()) > 0;
            return Some(between.find(|to| self.bytes_left >= self.block_bytes && belongs(to)).unwrap_or(copy));
        }
        if self.bytes_left < self.block_bytes {
            return None;
        }
        let below = || (0u8..).map(TierId).take(self.tiers.len()).skip(block.tier.index() + 1);
        below().find(|tier| self.room(tier.index()) > 0).or_else(|| below().find(|tier| self.free[tier.index()] > 0))
    }

    fn promote(&mut self) {
        let mut hot = std::mem::take(&mut self.hot);
        let saved_us = |block: &Candidate| {
            let wanted = self.wanted(block.heat).min(block.tier);
            block.heat * (self.latency(block.tier) - self.latency(wanted))
        };
        let place = |block: &Candidate| (block.tier, block.file, block.block);
        hot.sort_by(|a, b| saved_us(b).total_cmp(&saved_us(a)).then(place(a).cmp(&place(b))));
        for block in hot {
            if self.bytes_left < self.block_bytes {
                break;
            }
            if self.moved.contains(&(block.file, block.block)) || self.tiers[block.tier.index()].is_busy {
                continue;
            }
            let wanted = self.wanted(block.heat);
            for to in (0u8..).map(TierId).take(block.tier.index()) {
                if !block.pin.allows(to) {
                    continue;
                }
                if self.room(to.index()) > 0 {
                    self.decide(&block, to, Reason::Room { heat: block.heat });
                    break;
                }
                if to >= wanted && self.exchange(&block, to) {
                    break;
                }
            }
        }
    }

    /// Is a block hot enough for this tier, though perhaps not for the one it is on?
    fn belongs(&self, block: &Candidate, tier: TierId) -> bool {
        self.survey.tiers.get(tier.index()).is_some_and(|tier| block.heat > tier.cut)
    }

    /// The tier where a block of this heat belongs.
    fn wanted(&self, heat: f32) -> TierId {
        let faster = self.survey.tiers.iter().take_while(|tier| heat < tier.cut).count();
        TierId(u8::try_from(faster.min(self.tiers.len().saturating_sub(1))).unwrap_or(u8::MAX))
    }

    /// Promotes `block` to the full tier `to`: that tier's coldest block sinks, and if need be the next tier's, down at most to the place that
    /// `block` leaves. False, and nothing decided, when that would not pay or not fit.
    fn exchange(&mut self, block: &Candidate, to: TierId) -> bool {
        if self.free[to.index()] <= self.reserve(to.index()) {
            return false;
        }
        let mut sinking: Vec<(Candidate, TierId)> = Vec::new();
        let (mut copies, mut at) = (1u64, to);
        let mut gain_us = block.heat * (self.latency(block.tier) - self.latency(to));
        let mut cost_us = self.latency(block.tier) + self.latency(to);
        let mut hotter = block.heat / (1.0 + self.settings.hysteresis);
        loop {
            let Some(victim) = self.coldest(at).filter(|victim| victim.heat < hotter) else { return false };
            let Some((target, chained)) = self.sink(&victim, block.tier) else { return false };
            gain_us -= victim.heat * (self.latency(target) - self.latency(at));
            if victim.copy != Some(target) {
                copies += 1;
                cost_us += self.latency(at) + self.latency(target);
            }
            hotter = victim.heat;
            sinking.push((victim, target));
            at = target;
            if !chained {
                break;
            }
        }
        if copies * self.block_bytes > self.bytes_left || gain_us * self.settings.horizon_epochs <= cost_us {
            return false;
        }
        let than = sinking.first().map_or(0.0, |(victim, _)| victim.heat);
        for (victim, target) in sinking.into_iter().rev() {
            self.decide(&victim, target, Reason::Displaced { heat: victim.heat, by: block.heat });
        }
        let cut = self.survey.tiers.get(to.index()).map_or(0.0, |tier| tier.cut);
        self.decide(block, to, Reason::Hotter { heat: block.heat, than, cut });
        true
    }

    /// Where a victim goes, and whether that tier is full and must itself give up a colder block. `floor`: the tier that the promoted block leaves.
    fn sink(&self, victim: &Candidate, floor: TierId) -> Option<(TierId, bool)> {
        let copy = victim.copy.filter(|copy| *copy > victim.tier && copy.index() < self.tiers.len());
        if let Some(copy) = copy.filter(|_| !(victim.tier.0 + 1..=floor.0).any(|to| self.belongs(victim, TierId(to)))) {
            return Some((copy, false));
        }
        for target in (victim.tier.0 + 1..=floor.0).map(TierId) {
            if self.free[target.index()] <= self.reserve(target.index()) {
                continue;
            }
            if target == floor || self.room(target.index()) > 0 {
                return Some((target, false));
            }
            if self.cold[target.index()]
                .iter()
                .find(|next| self.may_sink(next))
                .is_some_and(|next| next.heat < victim.heat)
            {
                return Some((target, true));
            }
        }
        copy.map(|copy| (copy, false))
    }

    fn may_sink(&self, block: &Candidate) -> bool {
        block.rested && !self.moved.contains(&(block.file, block.block))
    }

    /// The coldest block of a tier that may sink.
    fn coldest(&mut self, tier: TierId) -> Option<Candidate> {
        loop {
            let first = *self.cold.get(tier.index())?.front()?;
            if self.may_sink(&first) {
                return Some(first);
            }
            self.cold[tier.index()].pop_front();
        }
    }

    /// What full tiers will give up next, unless it lies on the slowest tier already. That tier keeps its slack: a copy is worth less than room.
    fn cooling(&self) -> Vec<(FileId, BlockNo)> {
        let Some(last) = self.tiers.len().checked_sub(1) else { return Vec::new() };
        let slack = self.watermark(last, 1.0) - self.watermark(last, self.settings.low_watermark);
        let mut left = (self.bytes_left / self.block_bytes).min(self.free[last].saturating_sub(2 * slack));
        let mut cooling = Vec::new();
        for tier in (0..last).filter(|tier| self.room(*tier) == 0) {
            let next = part_of(self.watermark(tier, 1.0), self.settings.premigrated_share);
            let coldest = self.cold.get(tier).into_iter().flatten().filter(|block| self.may_sink(block));
            for block in coldest.take(usize::try_from(next).unwrap_or(0)).filter(|block| block.copy.is_none()) {
                if left == 0 {
                    return cooling;
                }
                left -= 1;
                cooling.push((block.file, block.block));
            }
        }
        cooling
    }

    fn finish(mut self) -> Plan {
        self.plan.cooling = self.cooling();
        let outlook = (0..self.tiers.len()).map(|tier| {
            let mut outlook = self.survey.tiers[tier];
            let blocks = outlook.blocks;
            outlook.count(self.watermark(tier, 1.0), self.mapped[tier], self.free[tier], self.settings);
            outlook.blocks = blocks;
            outlook
        });
        self.plan.tiers = outlook.collect();
        self.plan.ranks = self.survey.ranks;
        self.plan.cost_us = self.survey.cost_us;
        self.plan
    }
}

/// `share` of a number of bytes; shares come from settings, so 24 bits of precision are plenty.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
pub fn part_of(bytes: u64, share: f32) -> u64 {
    (f64::from(share.clamp(0.0, 1.0)) * blocks_f64(bytes)) as u64
}

#[allow(clippy::cast_precision_loss)]
fn blocks_f64(count: u64) -> f64 {
    count as f64
}

#[allow(clippy::cast_precision_loss)]
fn share(part: u64, whole: u64) -> f32 {
    part as f32 / whole.max(1) as f32
}

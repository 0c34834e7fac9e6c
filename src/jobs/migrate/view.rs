//! What the mover tells people: where a block is and why, how hot a file is, how the mover is doing.

use super::compact::Compaction;
use super::insight::Counterpart;
use super::journal::JournalEntry;
use super::{Mover, Tally};
use crate::error::Result;
use crate::heat::forecast::Mattered;
use crate::heat::{Evidence, RecorderStatus};
use crate::jobs::forecaster::ForecastStatus;
use crate::policy::placement::{Pin, TierOutlook};
use crate::units::{BlockNo, FileId, TierId};
use serde::{Deserialize, Serialize};

/// Where a block is, why, and what was decided about it.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Explanation {
    pub file: FileId,
    pub block: BlockNo,
    /// Name of the tier; None: a hole, or so far only in the log.
    pub tier: Option<String>,
    /// Predicted accesses per epoch.
    pub heat: f32,
    /// What the heat comes from.
    pub evidence: Evidence,
    /// Who is believed about the heat, and why.
    pub believed: String,
    pub believed_because: String,
    /// What the model goes by, if it is believed: the weightiest first.
    #[serde(default)]
    pub mattered: Vec<Mattered>,
    /// Rank among all blocks: 0 is coldest, 1 hottest.
    pub temperature: f32,
    pub pinned_to: Option<String>,
    /// The rule or profile that decides about the file, in words.
    pub rule: Option<String>,
    pub log_file: bool,
    /// Name of the tier where heat or pin would have it.
    pub belongs_on: Option<String>,
    /// Heat from which blocks belong on each tier or a faster one, by the latest plan.
    pub cuts: Vec<f32>,
    /// Room per tier, by the latest plan.
    pub tiers: Vec<TierOutlook>,
    /// A valid copy lies on this tier too: going there costs nothing.
    pub copy_on: Option<String>,
    /// The block that made room for it, or the one that it gave way to.
    pub exchanged_with: Option<Counterpart>,
    /// Seconds until a plan looks at it again and may move it.
    pub next_review_s: u64,
    /// One sentence for people.
    pub why: String,
    /// What was decided about it lately, oldest first.
    pub history: Vec<JournalEntry>,
}

/// A stretch of a file.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeatRange {
    pub first: BlockNo,
    pub blocks: u64,
    /// Mean rank of the blocks that lie on a tier, 0..=1.
    pub temperature: f32,
    /// Rank of the hottest one.
    pub hottest: f32,
    /// Predicted accesses per epoch, of all blocks together.
    pub heat: f64,
    /// Blocks per tier, fastest first.
    pub tiers: Vec<u64>,
    /// Holes, and blocks that are so far only in the log.
    pub unplaced: u64,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct HeatMap {
    pub file: FileId,
    pub block_bytes: u32,
    pub blocks: u64,
    pub ranges: Vec<HeatRange>,
}

/// A file and what it is worth.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WarmFile {
    pub file: FileId,
    /// Predicted accesses per epoch, of all its blocks.
    pub heat: f32,
    pub blocks: u64,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
pub struct MoverStatus {
    pub plans: u32,
    /// Duration of the latest plan, in microseconds.
    pub plan_us: u64,
    pub planned_moves: u64,
    pub planned_bytes: u64,
    /// Latency of an epoch's predicted accesses, and what of it the latest plan saves, in microseconds.
    pub cost_us: f64,
    pub gain_us: f64,
    pub tiers: Vec<TierOutlook>,
    pub moved_blocks: u64,
    pub moved_bytes: u64,
    pub refused_moves: u64,
    pub failed_moves: u64,
    pub fast_lane_moves: u64,
    /// Blocks that were staged because they were missed.
    pub staged_moves: u64,
    /// Blocks whose records were read one by one, and went to their place before the log's fill asked for it.
    #[serde(default)]
    pub coalesced_early: u64,
    /// Time spent waiting because commits were slow.
    pub paused_us: u64,
    pub log_latency_us: f64,
    pub log_latency_baseline_us: f64,
    #[serde(default)]
    pub compaction: Compaction,
    pub pinned_files: u64,
    /// Fill of the log from which records go to their blocks, and the rate of log writes that it was made for.
    pub coalesce_at_fill: f64,
    pub log_bytes_per_second: f64,
    pub recorder: RecorderStatus,
    pub forecast: ForecastStatus,
    /// The latest decisions, oldest first.
    pub recent: Vec<JournalEntry>,
}

/// Decisions shown by [`Mover::status`].
const RECENT: usize = 32;

impl Mover {
    /// Where a block is and why. `NotFound` and the like when the engine does not know the file.
    pub fn explain(&self, file: FileId, block: BlockNo) -> Result<Explanation> {
        let known = self.volume.file(file)?;
        let runs = self.volume.block_map(&known);
        let covers = |first: BlockNo, count: u64| block >= first && block.0 - first.0 < count;
        let run = runs.iter().find(|(first, count, _, _)| covers(*first, *count));
        let (tier, copy) = run.map_or((None, None), |run| (run.2, run.3));
        let heat = self.recorder.block_heat(file, block);
        let (temperature, tiers, moved) = {
            let outlook = self.outlook.lock();
            (outlook.ranks.temperature(heat), outlook.tiers.clone(), outlook.moved.get(&(file, block)).copied())
        };
        let cuts: Vec<f32> = tiers.iter().map(|tier| tier.cut).collect();
        let pin = self.pin_of(file);
        let wanted = match pin {
            Pin::To(tier) => Some(tier),
            Pin::LogFile | Pin::Catalog => Some(TierId::FASTEST),
            Pin::None | Pin::Within(_) | Pin::Staged if cuts.is_empty() => None,
            Pin::None | Pin::Within(_) | Pin::Staged => {
                u8::try_from(cuts.iter().take_while(|cut| heat < **cut).count()).ok().map(TierId)
            }
        };
        let history = self.journal.lock().of(file, block);
        let forecast = self.forecaster.status();
        let belongs_on = wanted.and_then(|tier| self.name_of(tier));
        Ok(Explanation {
            why: self.reason_for(tier, pin, wanted, heat, &history),
            tier: tier.and_then(|tier| self.name_of(tier)),
            pinned_to: if let Pin::To(tier) = pin { self.name_of(tier) } else { None },
            rule: self.settings.rules.describe(file),
            log_file: self.recorder.is_log_file(file),
            evidence: self.recorder.evidence(file, block),
            believed: forecast.believed(),
            believed_because: forecast.because(),
            mattered: self.forecaster.reasons(file, block),
            copy_on: copy.and_then(|tier| self.name_of(tier)),
            exchanged_with: self.counterpart(&history, tier),
            next_review_s: self.next_review_s(moved),
            file,
            block,
            heat,
            temperature,
            belongs_on,
            cuts,
            tiers,
            history,
        })
    }

    fn name_of(&self, tier: TierId) -> Option<String> {
        self.tier_names.get(tier.index()).cloned()
    }

    fn reason_for(
        &self,
        tier: Option<TierId>,
        pin: Pin,
        wanted: Option<TierId>,
        heat: f32,
        history: &[JournalEntry],
    ) -> String {
        let name = |tier| self.name_of(tier).unwrap_or_else(|| format!("tier {tier}"));
        let Some(tier) = tier else { return "a hole, or so far only in the log".to_owned() };
        match (pin, wanted) {
            (Pin::To(to), _) if to == tier => return format!("pinned to {}", name(to)),
            (Pin::To(to), _) => return format!("pinned to {}, not moved there yet", name(to)),
            (Pin::LogFile, _) if tier == TierId::FASTEST => return "a log file, on the fastest tier".to_owned(),
            (Pin::Catalog, _) if tier == TierId::FASTEST => return "a catalog, on the fastest tier".to_owned(),
            (Pin::LogFile, _) => {
                return "a log file; the fastest tier's reserve for logs has no room for it".to_owned();
            }
            (Pin::Within(bounds), _) if !bounds.allows(tier) => {
                return format!("a rule keeps it off {}, not moved away yet", name(tier));
            }
            (Pin::Within(bounds), Some(wanted)) if wanted < tier && !bounds.promoted => {
                return format!("a rule excludes it from promotion; heat {heat:.3} would have it on {}", name(wanted));
            }
            _ => {}
        }
        if let Some(last) = history.iter().rfind(|entry| entry.to == tier && entry.outcome == super::Outcome::Moved) {
            return format!("moved from {} to {}: {}", name(last.from), name(last.to), last.reason);
        }
        match wanted {
            Some(wanted) if wanted == tier => format!("heat {heat:.3} accesses per epoch belongs on {}", name(tier)),
            Some(wanted) => format!(
                "written there; heat {heat:.3} accesses per epoch belongs on {}, and a move has not paid yet",
                name(wanted)
            ),
            None => "written there; nothing planned yet".to_owned(),
        }
    }

    /// The temperatures of a file in about `buckets` equal stretches.
    pub fn heat_map(&self, file: FileId, buckets: u64) -> Result<HeatMap> {
        let known = self.volume.file(file)?;
        let runs = self.volume.block_map(&known);
        let blocks = runs.iter().map(|(first, count, _, _)| first.0 + count).max().unwrap_or(0);
        let stretch = blocks.div_ceil(buckets.max(1)).max(1);
        let tiers = self.tier_names.len();
        let mut ranges: Vec<HeatRange> = (0..blocks.div_ceil(stretch))
            .map(|at| HeatRange {
                first: BlockNo(at * stretch),
                blocks: stretch.min(blocks - at * stretch),
                temperature: 0.0,
                hottest: 0.0,
                heat: 0.0,
                tiers: vec![0; tiers],
                unplaced: 0,
            })
            .collect();
        let ranks = self.outlook.lock().ranks.clone();
        let placed = runs.iter().filter(|run| run.2.is_some()).map(|run| run.1).sum();
        let heats = self.recorder.file_heat(file, placed);
        for (first, count, tier, _) in runs {
            heats.runs(first, count, |first, count, heat| {
                let temperature = ranks.temperature(heat);
                spread(&mut ranges, stretch, first, count, |range, blocks| range.add(blocks, tier, heat, temperature));
            });
        }
        ranges.iter_mut().for_each(HeatRange::finish);
        Ok(HeatMap { file, block_bytes: self.recorder.settings().block_bytes, blocks, ranges })
    }

    /// The files with the most predicted accesses, hottest first.
    pub fn warm_files(&self, count: usize) -> Vec<WarmFile> {
        let mut files: Vec<WarmFile> = self
            .recorder
            .warm_files()
            .into_iter()
            .map(|(file, heat, blocks)| WarmFile { file, heat, blocks })
            .collect();
        files.sort_by(|a, b| b.heat.total_cmp(&a.heat).then(a.file.cmp(&b.file)));
        files.truncate(count);
        files
    }

    pub fn status(&self) -> MoverStatus {
        let Tally { moved, moved_bytes, refused, failed, fast_lane, staged, coalesced_early, paused_us } =
            *self.tally.lock();
        let (log_latency_us, log_latency_baseline_us) = self.backoff.lock().0.latencies_us();
        let outlook = self.outlook.lock();
        MoverStatus {
            plans: outlook.number,
            plan_us: outlook.plan_us,
            planned_moves: outlook.decisions,
            planned_bytes: outlook.bytes,
            cost_us: outlook.cost_us,
            gain_us: outlook.gain_us,
            tiers: outlook.tiers.clone(),
            moved_blocks: moved,
            moved_bytes,
            refused_moves: refused,
            failed_moves: failed,
            fast_lane_moves: fast_lane,
            staged_moves: staged,
            coalesced_early,
            paused_us,
            log_latency_us,
            log_latency_baseline_us,
            compaction: *self.compacted.lock(),
            pinned_files: u64::try_from(self.pins.lock().len()).unwrap_or(u64::MAX),
            coalesce_at_fill: self.volume.coalesce_at_fill(),
            log_bytes_per_second: self.log_watch.lock().bytes_per_second(),
            recorder: self.recorder.status(),
            forecast: self.forecaster.status(),
            recent: self.journal.lock().latest(RECENT),
        }
    }
}

impl HeatRange {
    /// Adds blocks of one heat; `temperature` is summed here and divided at the end.
    pub(super) fn add(&mut self, blocks: u64, tier: Option<TierId>, heat: f32, temperature: f32) {
        let Some(here) = tier.and_then(|tier| self.tiers.get_mut(tier.index())) else {
            self.unplaced += blocks;
            return;
        };
        *here += blocks;
        self.temperature += temperature * count_f32(blocks);
        self.hottest = self.hottest.max(temperature);
        self.heat += f64::from(heat) * f64::from(count_f32(blocks));
    }

    /// All blocks were added.
    pub(super) fn finish(&mut self) {
        self.temperature /= count_f32(self.tiers.iter().sum::<u64>().max(1));
    }
}

/// Calls `each` for every range that a run of blocks touches, with how many of them.
fn spread(
    ranges: &mut [HeatRange],
    stretch: u64,
    first: BlockNo,
    count: u64,
    mut each: impl FnMut(&mut HeatRange, u64),
) {
    let end = first.0 + count;
    let mut block = first.0;
    while block < end {
        let at = block / stretch;
        let until = end.min((at + 1) * stretch);
        if let Some(range) = usize::try_from(at).ok().and_then(|at| ranges.get_mut(at)) {
            each(range, until - block);
        }
        block = until;
    }
}

/// For means: exact below 2^24, close enough above.
#[allow(clippy::cast_precision_loss)]
fn count_f32(count: u64) -> f32 {
    count as f32
}

//! Cycles: which part of a known period an epoch lies in.

use super::EpochClock;
use super::features::Moment;
use super::history::History;
use super::record::SEASON_BINS;

/// Cycles that a week has.
const CYCLES_PER_WEEK: u64 = 7;

/// How often each part of the cycle was seen, so that the first time counts in full.
#[derive(Default)]
pub(super) struct Seasons {
    pub(super) seen: [u32; SEASON_BINS],
    pub(super) period_ms: u64,
}

impl Seasons {
    /// Adds the epoch that ended to each block's season; returns where the next one lies.
    pub(super) fn end_epoch(&mut self, history: &mut History, clock: EpochClock) -> Moment {
        if clock.period_ms == 0 || clock.epoch_ms == 0 || clock.epoch_ms > clock.period_ms {
            return Moment::default();
        }
        if self.period_ms != clock.period_ms {
            (self.seen, self.period_ms) = ([0; SEASON_BINS], clock.period_ms);
            history.files.values_mut().for_each(|file| file.shards.values_mut().for_each(|shard| shard.seasons = None));
        }
        let bin = bin_of(middle_ms(clock, 0), clock.period_ms);
        if let Some(seen) = self.seen.get_mut(bin) {
            *seen = seen.saturating_add(1);
            history.note_season(bin, if *seen == 1 { 1.0 } else { 0.5 });
        }
        let next_ms = middle_ms(clock, 1);
        let cycle = (next_ms / clock.period_ms) % CYCLES_PER_WEEK;
        Moment {
            bins: Some([bin_of(next_ms, clock.period_ms), bin_of(middle_ms(clock, 2), clock.period_ms)]),
            phase: share(next_ms % clock.period_ms, clock.period_ms),
            day_of_week: share(cycle, CYCLES_PER_WEEK),
        }
    }
}

/// The middle of the epoch `ahead` of the one that ended, since epoch 0 began.
fn middle_ms(clock: EpochClock, ahead: u64) -> u64 {
    clock.number.saturating_add(ahead).saturating_mul(clock.epoch_ms).saturating_add(clock.epoch_ms / 2)
}

fn bin_of(at_ms: u64, period_ms: u64) -> usize {
    let bins = u128::try_from(SEASON_BINS).unwrap_or(1);
    let bin = u128::from(at_ms % period_ms) * bins / u128::from(period_ms);
    usize::try_from(bin).unwrap_or(0)
}

/// A place in a cycle: 24 bits are plenty.
#[allow(clippy::cast_precision_loss)]
fn share(part: u64, whole: u64) -> f32 {
    part as f32 / whole as f32
}

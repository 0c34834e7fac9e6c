//! How heat and tiers were over time, for the report: a bounded number of moments that always reach back to the start.
//!
//! When there are too many, every second one goes and the time between two doubles. So the first hour is seen to the half minute, the first
//! weeks to the hours, and memory stays under a quarter of a MiB.

use super::Mover;
use crate::device::clock::{monotonic_now, wall_now};
use crate::units::{FileId, WallNs};
use serde::{Deserialize, Serialize};
use std::time::{Duration, Instant};

/// Moments kept.
const MOMENTS_MAX: usize = 128;
/// Files of one moment, hottest first.
const FILES: usize = 24;
/// Stretches of a file.
const CELLS: u64 = 16;
/// Time between the first moments.
const EVERY_FIRST: Duration = Duration::from_secs(30);

/// One look at the volume.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Moment {
    pub at: WallNs,
    pub used_bytes: Vec<u64>,
    pub budget_bytes: Vec<u64>,
    /// Reads of each tier since the daemon started.
    pub reads: Vec<u64>,
    pub files: Vec<FileMoment>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct FileMoment {
    pub file: FileId,
    /// Predicted accesses per epoch.
    pub heat: f32,
    /// Rank among all blocks of the hottest block of each stretch of the file: 0 is coldest, 255 hottest.
    pub cells: Vec<u8>,
}

#[derive(Debug)]
pub(super) struct History {
    every: Duration,
    due: Option<Instant>,
    moments: Vec<Moment>,
}

impl Default for History {
    fn default() -> History {
        History { every: EVERY_FIRST, due: None, moments: Vec::new() }
    }
}

impl History {
    fn push(&mut self, moment: Moment) {
        if self.moments.len() >= MOMENTS_MAX {
            let mut keep = false;
            self.moments.retain(|_| {
                keep = !keep;
                keep
            });
            self.every *= 2;
        }
        self.moments.push(moment);
    }
}

impl Mover {
    /// Looks at the volume, if it is time to.
    pub(super) fn keep_history(&self) {
        let now = monotonic_now();
        {
            let mut history = self.history.lock();
            if history.due.is_some_and(|due| now < due) {
                return;
            }
            history.due = Some(now + history.every);
        }
        let moment = self.moment();
        self.history.lock().push(moment);
    }

    fn moment(&self) -> Moment {
        let status = self.volume.status();
        let files = self.warm_files(FILES).into_iter().filter_map(|warm| {
            let map = self.heat_map(warm.file, CELLS).ok()?;
            let cells = map.ranges.iter().map(|range| rank_of_255(range.hottest)).collect();
            Some(FileMoment { file: warm.file, heat: warm.heat, cells })
        });
        Moment {
            at: wall_now(),
            files: files.collect(),
            used_bytes: status.tiers.iter().map(|tier| tier.used_bytes).collect(),
            budget_bytes: status.tiers.iter().map(|tier| tier.budget_bytes).collect(),
            reads: status.counters.base_reads,
        }
    }

    /// What is remembered, oldest first, and how things are now.
    pub fn history(&self) -> Vec<Moment> {
        let mut moments = self.history.lock().moments.clone();
        moments.push(self.moment());
        moments
    }
}

/// A share from 0 to 1 in 255 steps.
#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn rank_of_255(share: f32) -> u8 {
    (share.clamp(0.0, 1.0) * 255.0) as u8
}

#[cfg(test)]
mod tests {
    use super::{EVERY_FIRST, History, MOMENTS_MAX, Moment, rank_of_255};
    use crate::units::WallNs;

    #[test]
    fn history_is_bounded_and_reaches_back() {
        let mut history = History::default();
        for at in 0..1000 {
            let empty = || Vec::new();
            let (used_bytes, budget_bytes, reads) = (empty(), empty(), empty());
            history.push(Moment { at: WallNs(at), used_bytes, budget_bytes, reads, files: Vec::new() });
        }
        assert!(history.moments.len() <= MOMENTS_MAX && history.every >= 8 * EVERY_FIRST);
        assert_eq!((history.moments[0].at, history.moments.last().unwrap().at), (WallNs(0), WallNs(999)));
        assert!(history.moments.is_sorted_by_key(|moment| moment.at));
        assert_eq!([rank_of_255(0.0), rank_of_255(1.0), rank_of_255(f32::NAN)], [0, 255, 0]);
    }
}

//! Carrying out decisions, one block at a time.

use super::journal::{JournalEntry, Outcome};
use super::{Mover, Tally};
use crate::device::clock::{Instant, monotonic_now, wall_now};
use crate::error::Error;
use crate::heat::HotMiss;
use crate::policy::placement::{Decision, Reason, immediate};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::File;
use crossbeam_channel::RecvTimeoutError;
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

/// Time between two looks at the log's latency.
const LATENCY_SAMPLE: Duration = Duration::from_millis(250);
/// Longest rest before one block is moved all the same, so that a volume that is always busy still gets its blocks placed.
const REST_MAX: Duration = Duration::from_secs(1);
/// Hot misses taken from the queue at once, to be moved in file and offset order.
const LANE_BATCH: usize = 64;
/// How long the fast lane waits for a miss before it looks whether to stop.
const LANE_WAIT: Duration = Duration::from_millis(200);

impl Mover {
    /// Carries out decisions until `deadline`: one worker per source tier, then whatever was refused once more, since
    /// what one worker moved away may have made room for another.
    pub(super) fn execute(&self, decisions: &[Decision], deadline: Instant) {
        let refused = Mutex::new(Vec::new());
        self.run_workers(decisions, deadline, Some(&refused));
        let again = refused.into_inner();
        self.run_workers(&again, deadline, None);
    }

    fn run_workers(&self, decisions: &[Decision], deadline: Instant, refused: Option<&Mutex<Vec<Decision>>>) {
        let sources: BTreeSet<TierId> = decisions.iter().map(|decision| decision.from).collect();
        std::thread::scope(|scope| {
            for source in sources {
                let mut work: Vec<Decision> = decisions.iter().filter(|one| one.from == source).copied().collect();
                // What makes room comes first; then as it lies on the device.
                work.sort_by_key(|one| (one.to < one.from, one.file, one.block));
                scope.spawn(move || self.work(&work, deadline, refused));
            }
        });
    }

    fn work(&self, decisions: &[Decision], deadline: Instant, refused: Option<&Mutex<Vec<Decision>>>) {
        let mut open: Option<Arc<File>> = None;
        for decision in decisions {
            if monotonic_now() >= deadline || self.stopped() {
                return;
            }
            let bytes = if decision.flip { 0 } else { u64::from(self.recorder.settings().block_bytes) };
            if self.wait_for_turn(bytes) {
                return;
            }
            let outcome = self.move_one(&mut open, decision);
            match (outcome, refused) {
                (Outcome::Refused, Some(refused)) => refused.lock().push(*decision),
                // A failing device will not get better within this plan.
                (Outcome::Failed, _) => return self.record(decision, outcome),
                _ => self.record(decision, outcome),
            }
            std::thread::yield_now();
        }
    }

    /// Keeps to the byte budget and gives way to commits; true when stopped meanwhile.
    fn wait_for_turn(&self, bytes: u64) -> bool {
        let wait = self.bucket.take(bytes);
        if !wait.is_zero() && self.sleep(wait) {
            return true;
        }
        let began = monotonic_now();
        while self.must_rest() && began.elapsed() < REST_MAX {
            if self.sleep(Duration::from_millis(20)) {
                return true;
            }
        }
        let rested = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        if rested > 1000 {
            self.tally.lock().paused_us += rested;
        }
        false
    }

    fn must_rest(&self) -> bool {
        let mut backoff = self.backoff.lock();
        if backoff.1.elapsed() >= LATENCY_SAMPLE {
            let counters = self.volume.status().counters;
            backoff.2 = backoff.0.sample(counters.log_groups, counters.log_group_us);
            backoff.1 = monotonic_now();
        }
        backoff.2
    }

    fn move_one(&self, open: &mut Option<Arc<File>>, decision: &Decision) -> Outcome {
        let file = match open.take().filter(|file| file.id() == decision.file) {
            Some(file) => file,
            None => match self.volume.file(decision.file) {
                Ok(file) => file,
                Err(_) => return Outcome::Refused,
            },
        };
        let moved = self.volume.move_block(&file, decision.block, decision.to);
        *open = Some(file);
        match moved {
            Ok(true) => {
                let mut outlook = self.outlook.lock();
                let number = outlook.number;
                outlook.moved.insert((decision.file, decision.block), number);
                Outcome::Moved
            }
            Ok(false) | Err(Error::NoSpace | Error::Untrusted { .. } | Error::WouldWait) => Outcome::Refused,
            Err(error) => {
                tracing::warn!(%error, file = %decision.file, block = %decision.block, to = %decision.to, "cannot move a block");
                Outcome::Failed
            }
        }
    }

    fn record(&self, decision: &Decision, outcome: Outcome) {
        {
            let mut tally = self.tally.lock();
            let Tally { moved, moved_bytes, refused, failed, .. } = &mut *tally;
            match outcome {
                Outcome::Moved if decision.flip => *moved += 1,
                Outcome::Moved => {
                    *moved += 1;
                    *moved_bytes += u64::from(self.recorder.settings().block_bytes);
                }
                Outcome::Refused => *refused += 1,
                Outcome::Failed => *failed += 1,
            }
        }
        let Decision { file, block, from, to, reason, .. } = *decision;
        self.journal.lock().push(JournalEntry { at: wall_now(), file, block, from, to, reason, outcome });
    }

    /// Promotes blocks that were just missed on the slowest tier, as far as the latest plan left room for them.
    pub(super) fn fast_lane(&self) {
        let misses = self.recorder.hot_misses();
        let mut open = None;
        while !self.stopped() {
            let first = match misses.recv_timeout(LANE_WAIT) {
                Ok(miss) => miss,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let place = |miss: HotMiss| (miss.tier, miss.file, miss.block);
            let mut batch = BTreeSet::from([place(first)]);
            batch.extend(misses.try_iter().take(LANE_BATCH).map(place));
            for (from, file, block) in batch {
                let Some((to, reason)) = self.lane_target(from, file, block) else { continue };
                if self.wait_for_turn(u64::from(self.recorder.settings().block_bytes)) {
                    return;
                }
                let decision = Decision { file, block, from, to, reason, gain_us: 0.0, flip: false };
                let outcome = self.move_one(&mut open, &decision);
                self.tally.lock().fast_lane += u64::from(outcome == Outcome::Moved);
                self.record(&decision, outcome);
            }
        }
    }

    /// Where a missed block should go now, with the room for it taken from the plan's books.
    fn lane_target(&self, from: TierId, file: FileId, block: BlockNo) -> Option<(TierId, Reason)> {
        let heat = self.recorder.block_heat(file, block);
        let mut outlook = self.outlook.lock();
        if outlook.moved.contains_key(&(file, block)) {
            return None;
        }
        let (to, reason) = immediate(heat, from, &outlook.tiers, &self.settings.placement)?;
        let tier = outlook.tiers.get_mut(to.index())?;
        tier.room_blocks = tier.room_blocks.saturating_sub(1);
        tier.slack_blocks = tier.slack_blocks.saturating_sub(1);
        drop(outlook);
        // A pin is the planner's business.
        self.pins.lock().get(&file).is_none().then_some((to, reason))
    }
}

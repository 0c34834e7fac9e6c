//! Carrying out decisions, a short run of blocks at a time.

use super::journal::{JournalEntry, Outcome};
use super::{Mover, Tally};
use crate::device::clock::{Instant, monotonic_now, wall_now};
use crate::error::Error;
use crate::heat::SlowMiss;
use crate::policy::placement::{Decision, Pin, Reason, immediate};
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
/// Bytes copied with one read and one write (R24).
const RUN_BYTES: u64 = 256 * 1024;
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
        let block_bytes = self.block_bytes();
        let mut open: Option<Arc<File>> = None;
        let mut left = decisions;
        while let Some(first) = left.first() {
            if monotonic_now() >= deadline || self.background.is_stopping() {
                return;
            }
            let adjacent = adjacent(left, RUN_BYTES / block_bytes);
            let copied = if first.flip { 0 } else { adjacent as u64 * block_bytes };
            if self.wait_for_turn(copied) {
                return;
            }
            let (moved, outcome) = self.move_adjacent(&mut open, first, adjacent);
            for decision in left.iter().take(moved) {
                self.record(decision, Outcome::Moved);
            }
            left = left.get(moved..).unwrap_or_default();
            // The engine ends a run early at a block that it would not move with it; only a run of none is a refusal.
            if moved == 0 {
                match (outcome, refused) {
                    (Outcome::Refused, Some(refused)) => refused.lock().push(*first),
                    // A failing device will not get better within this plan.
                    (Outcome::Failed, _) => return self.record(first, outcome),
                    _ => self.record(first, outcome),
                }
                left = left.get(1..).unwrap_or_default();
            }
            std::thread::yield_now();
        }
    }

    /// Copies what will sink soon ahead of that, in what time the plan has left.
    pub(super) fn premigrate(&self, cooling: &[(FileId, BlockNo)], deadline: Instant) {
        let most = usize::try_from(RUN_BYTES / self.block_bytes().max(1)).unwrap_or(1).max(1);
        let mut left: Vec<(FileId, BlockNo)> = cooling.to_vec();
        left.sort_unstable();
        let mut left = left.as_slice();
        while let Some((file, first)) = left.first().copied() {
            if monotonic_now() >= deadline || self.background.is_stopping() {
                return;
            }
            let alike = |(at, one): &(u64, &(FileId, BlockNo))| one.0 == file && one.1.0 == first.0 + at;
            let run = (0u64..).zip(left).take(most).take_while(alike).count();
            if self.wait_for_turn(run as u64 * self.block_bytes()) {
                return;
            }
            let copied = self.volume.file(file).and_then(|open| self.volume.copy_down(&open, first, run as u64));
            if let Err(error) = &copied {
                tracing::debug!(%error, %file, block = %first, "a copy ahead of sinking was not made");
            }
            // What was refused in the middle of a run is not tried again in this plan.
            left = left.get(run..).unwrap_or_default();
        }
    }

    /// Keeps to the byte budget and gives way to commits; true when stopped meanwhile.
    pub(super) fn wait_for_turn(&self, bytes: u64) -> bool {
        let wait = self.bucket.take(bytes);
        if !wait.is_zero() && self.background.sleep(wait) {
            return true;
        }
        let began = monotonic_now();
        while self.must_rest() && began.elapsed() < REST_MAX {
            if self.background.sleep(Duration::from_millis(20)) {
                return true;
            }
        }
        let rested = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        if rested > 1000 {
            self.tally.lock().paused_us += rested;
        }
        false
    }

    pub(super) fn must_rest(&self) -> bool {
        let mut backoff = self.backoff.lock();
        if backoff.1.elapsed() >= LATENCY_SAMPLE {
            let counters = self.volume.status().counters;
            backoff.2 = backoff.0.sample(counters.log_groups, counters.log_group_us);
            backoff.1 = monotonic_now();
        }
        backoff.2
    }

    /// Moves up to `count` blocks from the one that `first` names on; how many it moved.
    pub(super) fn move_adjacent(
        &self,
        open: &mut Option<Arc<File>>,
        first: &Decision,
        count: usize,
    ) -> (usize, Outcome) {
        let file = match open.take().filter(|file| file.id() == first.file) {
            Some(file) => file,
            None => match self.volume.file(first.file) {
                Ok(file) => file,
                Err(_) => return (0, Outcome::Refused),
            },
        };
        let moved = self.volume.move_run(&file, first.block, count as u64, first.to);
        *open = Some(file);
        match moved {
            Ok(0) | Err(Error::NoSpace | Error::Untrusted { .. } | Error::WouldWait) => (0, Outcome::Refused),
            Ok(moved) => {
                let mut outlook = self.outlook.lock();
                let number = outlook.number;
                let blocks = (first.block.0..first.block.0 + moved).map(|block| ((first.file, BlockNo(block)), number));
                outlook.moved.extend(blocks);
                (usize::try_from(moved).unwrap_or(count).min(count), Outcome::Moved)
            }
            Err(error) => {
                let Decision { file, block, to, .. } = first;
                tracing::warn!(%error, %file, %block, %to, "cannot move a block");
                (0, Outcome::Failed)
            }
        }
    }

    pub(super) fn record(&self, decision: &Decision, outcome: Outcome) {
        {
            let mut tally = self.tally.lock();
            let Tally { moved, moved_bytes, refused, failed, .. } = &mut *tally;
            match outcome {
                Outcome::Moved if decision.flip => *moved += 1,
                Outcome::Moved => {
                    *moved += 1;
                    *moved_bytes += self.block_bytes();
                }
                Outcome::Refused => *refused += 1,
                Outcome::Failed => *failed += 1,
            }
        }
        let Decision { file, block, from, to, reason, flip, .. } = *decision;
        let plan = self.outlook.lock().number;
        self.journal.lock().push(JournalEntry { at: wall_now(), file, block, from, to, reason, outcome, plan, flip });
    }

    /// Promotes blocks that were just missed on the slowest tier, as far as the latest plan left room for them.
    pub(super) fn fast_lane(&self) {
        let misses = self.recorder.misses();
        let mut open = None;
        while !self.background.is_stopping() {
            let first = match misses.recv_timeout(LANE_WAIT) {
                Ok(miss) => miss,
                Err(RecvTimeoutError::Timeout) => continue,
                Err(RecvTimeoutError::Disconnected) => return,
            };
            let place = |miss: SlowMiss| (miss.tier, miss.file, miss.block);
            let mut batch = BTreeSet::from([place(first)]);
            batch.extend(misses.try_iter().take(LANE_BATCH).map(place));
            for (from, file, block) in batch {
                let target = self.lane_target(from, file, block);
                if target.is_none_or(|(to, _)| to != TierId::FASTEST) && self.stages(from, file, block) {
                    match self.stage(&mut open, from, file, block) {
                        true => return,
                        false => continue,
                    }
                }
                let Some((to, reason)) = target else { continue };
                // Where there is room, what was read around it comes along.
                let (first, count) = match reason {
                    Reason::Room { .. } => self.with_neighbours(file, block),
                    _ => (block, 1),
                };
                if self.wait_for_turn(count * self.block_bytes()) {
                    return;
                }
                let decision = |block| Decision { file, block, from, to, reason, gain_us: 0.0, flip: false };
                let (moved, outcome) =
                    self.move_adjacent(&mut open, &decision(first), usize::try_from(count).unwrap_or(1));
                self.book(to, moved as u64);
                self.tally.lock().fast_lane += moved as u64;
                for at in 0..moved.max(1) as u64 {
                    self.record(&decision(BlockNo(first.0 + at)), outcome);
                }
            }
        }
    }

    /// The missed block and the blocks beside it that are in memory too: first and count.
    fn with_neighbours(&self, file: FileId, block: BlockNo) -> (BlockNo, u64) {
        let most = RUN_BYTES / self.block_bytes().max(1);
        let at_hand = |block: &u64| self.volume.has_image(file, BlockNo(*block));
        let first = (block.0.saturating_sub(most / 2)..block.0).rev().take_while(at_hand).last().unwrap_or(block.0);
        let last = (block.0 + 1..first + most).take_while(at_hand).last().unwrap_or(block.0);
        (BlockNo(first), last - first + 1)
    }

    /// Takes blocks that were moved between plans from the plan's books.
    fn book(&self, to: TierId, blocks: u64) {
        if let Some(tier) = self.outlook.lock().tiers.get_mut(to.index()) {
            tier.room_blocks = tier.room_blocks.saturating_sub(blocks);
            tier.slack_blocks = tier.slack_blocks.saturating_sub(blocks);
        }
    }

    /// Where a missed block should go now, as far as the plan's books say that there is room for it.
    fn lane_target(&self, from: TierId, file: FileId, block: BlockNo) -> Option<(TierId, Reason)> {
        let heat = self.recorder.block_heat(file, block);
        let outlook = self.outlook.lock();
        if outlook.moved.contains_key(&(file, block)) {
            return None;
        }
        let (to, reason) = immediate(heat, from, &outlook.tiers, &self.settings.placement)?;
        drop(outlook);
        // A pin is the planner's business.
        let may = match self.pin_of(file) {
            Pin::To(_) => false,
            Pin::Within(bounds) => bounds.promoted && bounds.allows(to),
            Pin::None | Pin::LogFile | Pin::Catalog | Pin::Staged => true,
        };
        may.then_some((to, reason))
    }
}

/// How many decisions from the first on move neighbouring blocks the same way, at most `most`.
fn adjacent(decisions: &[Decision], most: u64) -> usize {
    let Some(first) = decisions.first() else { return 0 };
    let alike = |(offset, one): &(u64, &Decision)| {
        let place = (one.file, one.from, one.to, one.flip);
        place == (first.file, first.from, first.to, first.flip) && one.block.0 == first.block.0 + offset
    };
    let run = (0u64..most.max(1)).zip(decisions).take_while(alike).count();
    if first.flip { 1 } else { run }
}

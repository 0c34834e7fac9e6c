//! Compaction of the slowest tier: while nobody else needs the machine every block there is looked at, slowly, and those of nothing but zeros lose
//! their image. So a table that was filled up with empty pages costs no disk, and nobody waits for a disk to read zeros.
//!
//! Only who asks for it gets it: the room goes to others on that disk, since it stays promised, and files that were filled with zeros ahead have an image
//! made again by the first write.

use super::Mover;
use crate::device::clock::{Instant, monotonic_now};
use crate::error::{Error, Result};
use crate::jobs::pace::{Pace, TokenBucket};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::Run;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

/// From the end of one pass to the next: zeros come rarely, and looking for them reads the whole tier.
const PASS_EVERY: Duration = Duration::from_secs(7 * 86_400);
/// From the mount to the first pass.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(600);
/// How long a pass waits before it looks again whether the machine is idle.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
/// Reads, writes and syncs in a second with which a volume still counts as idle.
const IDLE_REQUESTS: f64 = 10.0;
/// Share of the time in which the machine is felt for; work is done only while it is free.
const FELT_SHARE: f64 = 0.05;
/// Bytes looked at with one read (R24).
const PIECE_BYTES: u64 = 256 * 1024;

/// What compaction has done since the mount.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Compaction {
    /// Passes over the whole tier.
    pub passes: u32,
    pub looked_at_bytes: u64,
    /// Of blocks that lost their image.
    pub dropped_bytes: u64,
}

/// Is nobody there: no users, no snapshot in the making, no blocks on their way from a repository, and a processor with time to spare?
struct Idleness<'a> {
    mover: &'a Mover,
    pace: Pace,
    /// When users were last looked at, their requests until then, and whether there were few.
    users: Mutex<(Instant, u64, bool)>,
}

impl<'a> Idleness<'a> {
    fn new(mover: &'a Mover) -> Idleness<'a> {
        let pace = Pace::new(Arc::clone(&mover.volume), FELT_SHARE, u64::MAX);
        let requests = mover.volume.activity().requests;
        Idleness { mover, pace, users: Mutex::new((monotonic_now(), requests, false)) }
    }

    fn now(&self) -> bool {
        let volume = &self.mover.volume;
        self.users_are_away() && self.pace.is_free() && !volume.needs_repository() && volume.pending_marks().is_empty()
    }

    fn users_are_away(&self) -> bool {
        let mut users = self.users.lock();
        let (since, before, _) = *users;
        let passed = since.elapsed();
        if passed >= LOOK_AGAIN {
            let requests = self.mover.volume.activity().requests;
            let more = u32::try_from(requests - before).map_or(f64::INFINITY, f64::from);
            *users = (monotonic_now(), requests, more <= IDLE_REQUESTS * passed.as_secs_f64());
        }
        users.2
    }
}

impl Mover {
    /// Passes over the slowest tier until the mover is stopped.
    pub(super) fn compact_loop(&self) {
        let rate = self.settings.compact_bytes_per_second;
        if rate == 0 {
            return;
        }
        let (bucket, idleness) = (TokenBucket::new(rate), Idleness::new(self));
        let wait = |bytes: u64| {
            while !idleness.now() {
                if self.background.sleep(LOOK_AGAIN) {
                    return true;
                }
            }
            self.background.sleep(bucket.take(bytes))
        };
        let mut rest = FIRST_PASS_AFTER;
        while !self.background.sleep(rest) {
            self.compact(&wait);
            rest = PASS_EVERY;
        }
    }

    /// One pass. `wait` is told how many bytes are about to be looked at; it returns true when the pass is to end.
    pub fn compact(&self, wait: &dyn Fn(u64) -> bool) {
        let Some(slowest) = self.tier_names.len().checked_sub(1).filter(|slowest| *slowest > 0) else { return };
        let slowest = TierId(u8::try_from(slowest).unwrap_or(u8::MAX));
        let mut is_whole = true;
        let visited = self.volume.for_each_block_map(&mut |file, runs| {
            let outcome = self.compact_file(file, &runs, slowest, wait);
            is_whole &= outcome.is_continue();
            outcome
        });
        match visited {
            Ok(()) if is_whole => self.compacted.lock().passes += 1,
            Ok(()) => {}
            Err(error) => tracing::debug!(%error, "compaction ends"),
        }
    }

    fn compact_file(&self, id: FileId, runs: &[Run], slowest: TierId, wait: &dyn Fn(u64) -> bool) -> ControlFlow<()> {
        let (block_bytes, piece) = (self.block_bytes(), (PIECE_BYTES / self.block_bytes()).max(1));
        for (first, count, ..) in runs.iter().filter(|run| run.2 == Some(slowest)) {
            let end = first.0 + count;
            for from in (first.0..end).step_by(usize::try_from(piece).unwrap_or(1)) {
                let blocks = piece.min(end - from);
                if wait(blocks * block_bytes) {
                    return ControlFlow::Break(());
                }
                match self.compact_piece(id, BlockNo(from), blocks) {
                    Ok(()) => {}
                    Err(error @ Error::ReadOnly { .. }) => {
                        tracing::debug!(%error, "compaction ends");
                        return ControlFlow::Break(());
                    }
                    Err(error) => tracing::debug!(%error, file = %id, "compaction passes over what it cannot read"),
                }
            }
        }
        ControlFlow::Continue(())
    }

    fn compact_piece(&self, id: FileId, first: BlockNo, blocks: u64) -> Result<()> {
        let (looked_at, dropped) = self.volume.drop_zeros(&self.volume.file(id)?, first, blocks)?;
        let mut compacted = self.compacted.lock();
        compacted.looked_at_bytes += looked_at * self.block_bytes();
        compacted.dropped_bytes += dropped * self.block_bytes();
        Ok(())
    }
}

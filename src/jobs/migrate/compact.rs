//! Compaction of the slowest tier: while nobody else needs the machine every block there is looked at, slowly, and those of nothing but zeros lose
//! their image. So a table that was filled up with empty pages costs no disk, and nobody waits for a disk to read zeros.

use super::Mover;
use crate::error::Error;
use crate::jobs::pace::{Pace, TokenBucket};
use crate::units::{BlockNo, FileId, TierId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::time::Duration;

/// From the end of one pass to the next: zeros come rarely, and looking for them reads the whole tier.
const PASS_EVERY: Duration = Duration::from_secs(7 * 86_400);
/// From the mount to the first pass.
const FIRST_PASS_AFTER: Duration = Duration::from_secs(600);
/// How long a pass waits before it looks again whether the machine is free.
const LOOK_AGAIN: Duration = Duration::from_secs(1);
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

impl Mover {
    /// Passes over the slowest tier until the mover is stopped.
    pub(super) fn compact_loop(&self) {
        let rate = self.settings.compact_bytes_per_second;
        if rate == 0 {
            return;
        }
        let (bucket, pace) = (TokenBucket::new(rate), Pace::new(Arc::clone(&self.volume), FELT_SHARE, u64::MAX));
        let wait = |bytes: u64| {
            while !pace.is_free() {
                if self.sleep(LOOK_AGAIN) {
                    return true;
                }
            }
            self.sleep(bucket.take(bytes))
        };
        let mut rest = FIRST_PASS_AFTER;
        while !self.sleep(rest) {
            self.compact(&wait);
            rest = PASS_EVERY;
        }
    }

    /// One pass. `wait` is told how many bytes are about to be looked at; it returns true when the pass is to end.
    pub fn compact(&self, wait: &dyn Fn(u64) -> bool) {
        let Some(slowest) = self.tier_names.len().checked_sub(1).filter(|slowest| *slowest > 0) else { return };
        let slowest = TierId(u8::try_from(slowest).unwrap_or(u8::MAX));
        for file in self.volume.files() {
            match self.compact_file(file, slowest, wait) {
                Ok(false) => {}
                Ok(true) => return,
                Err(error @ Error::ReadOnly { .. }) => {
                    tracing::debug!(%error, "compaction ends");
                    return;
                }
                // Whoever reads there for a user tells of it.
                Err(error) => tracing::debug!(%error, %file, "compaction passes over the rest of a file"),
            }
        }
        self.compacted.lock().passes += 1;
    }

    /// Ok(true): `wait` has ended the pass.
    fn compact_file(&self, id: FileId, slowest: TierId, wait: &dyn Fn(u64) -> bool) -> crate::error::Result<bool> {
        let file = match self.volume.file(id) {
            // It went since the list was made.
            Err(Error::NotFound(_)) => return Ok(false),
            file => file?,
        };
        let (block_bytes, piece) = (self.block_bytes(), (PIECE_BYTES / self.block_bytes()).max(1));
        for (first, count, tier, _) in self.volume.block_map(&file) {
            let end = if tier == Some(slowest) { first.0 + count } else { first.0 };
            for from in (first.0..end).step_by(usize::try_from(piece).unwrap_or(1)) {
                let blocks = piece.min(end - from);
                if wait(blocks * block_bytes) {
                    return Ok(true);
                }
                let (looked_at, dropped) = self.volume.drop_zeros(&file, BlockNo(from), blocks)?;
                let mut compacted = self.compacted.lock();
                compacted.looked_at_bytes += looked_at * block_bytes;
                compacted.dropped_bytes += dropped * block_bytes;
            }
        }
        Ok(false)
    }
}

//! Taking records of blocks that are read out of the log before its fill asks for it.

use super::Mover;
use crate::heat::Fragmented;
use crate::policy::coalescing::Seen;
use std::collections::BTreeSet;

/// Blocks coalesced at one look: 4 MiB of 64 KiB blocks.
const BLOCKS_PER_LOOK: usize = 64;

impl Mover {
    /// Coalesces the blocks whose records have cost their readers enough, a few at a look, and none while commits are slower than usual.
    pub(super) fn coalesce_read_blocks(&self) {
        let mut due = BTreeSet::new();
        for Fragmented { file, block, records } in self.recorder.fragmented() {
            if !self.volume.gains_by_coalescing(file, block) {
                continue;
            }
            let evidence = self.recorder.evidence(file, block);
            let expected = evidence.expected.unwrap_or(evidence.own);
            let seen = Seen { expected, reads: evidence.reads, writes: evidence.writes };
            if self.thresholds.lock().is_reached((file, block), records, seen) {
                due.insert((file, block));
            }
            // The others are met again by the next reads, if there are any.
            if due.len() >= BLOCKS_PER_LOOK {
                break;
            }
        }
        if due.is_empty() || self.must_rest() {
            return;
        }
        match self.volume.coalesce_early(&due) {
            Ok(blocks) => self.tally.lock().coalesced_early += blocks,
            Err(error) => tracing::debug!(%error, "blocks whose records are read one by one stay in the log"),
        }
    }
}

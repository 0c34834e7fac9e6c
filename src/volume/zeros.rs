//! Blocks that are nothing but zeros need no image: they read as zeros without one, and their space stays promised (I10).
//!
//! Only whole blocks give up their image. A hole within an image would be filled again by the next write there, and the backing filesystem might have no room
//! left for it by then; a block without an image has a promise that is counted, like one that was allocated and never written.

use super::blockmap::{Home, Place};
use super::relocate::RUN_BYTES_MAX;
use super::{Applied, File, Volume, Wrote, status};
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::units::BlockNo;
use std::sync::Arc;

impl Volume {
    /// Looks at up to `count` adjacent blocks, those on the same tier as the first, with one read of at most 256 KiB, and takes the images of those that are
    /// nothing but zeros. What is in the overlay stays there. The places are freed by the next checkpoint. Returns how many blocks were looked at, and
    /// how many lost their image; (0, 0) when the first has none, or somebody is at it.
    pub fn drop_zeros(&self, file: &Arc<File>, first: BlockNo, count: u64) -> Result<(u64, u64)> {
        self.check_writable()?;
        if self.is_set_aside(file.id()) {
            return Ok((0, 0));
        }
        let most = (RUN_BYTES_MAX / self.block_bytes()).max(1).min(count.max(1));
        // Objects of a file that is removed meanwhile go when this is over.
        let _reading = self.readers.enter();
        let Home::Tier(tier) = file.read().map.get(first).home else { return Ok((0, 0)) };
        let mut claims = Vec::new();
        for block in (first.0..first.0 + most).map(BlockNo) {
            let Some(claim) = self.claim(file.id(), block) else { break };
            let inner = file.read();
            if inner.removed || inner.map.get(block).home != Home::Tier(tier) {
                break;
            }
            claims.push(claim);
        }
        if claims.is_empty() {
            return Ok((0, 0));
        }
        let seen = self.about_to_write(tier);
        let block_bytes = usize::try_from(self.block_bytes()).unwrap_or(usize::MAX);
        let mut image = AlignedBuf::zeroed(claims.len() * block_bytes);
        let start = self.block_start(first);
        if self.read_base(file, tier, start, &mut image)? {
            // It came from elsewhere. Now that nobody is at the blocks, another read has it written where it belongs.
            drop(claims);
            self.read_base(file, tier, start, &mut image)?;
            return Ok((most, 0));
        }
        let there = self.object_bytes(file.id(), tier)?;
        let blocks = (first.0..).map(BlockNo).zip(image.chunks(block_bytes));
        // What lies past an object's end reads as zeros, but an image that was written begins before it: somebody has cut the object short.
        let zeros: Vec<BlockNo> = blocks
            .filter(|(block, bytes)| self.block_start(*block) < there && bytes.iter().all(|byte| *byte == 0))
            .map(|(block, _)| block)
            .collect();
        // Until the next checkpoint both the place and the promise take room.
        let fits = self.space.unpromised_blocks() >= i64::try_from(zeros.len()).unwrap_or(i64::MAX);
        let dropped = if fits && !zeros.is_empty() { self.flip_to_promise(file, &zeros, seen) } else { 0 };
        status::count(&self.counters.zero_blocks, dropped);
        Ok((claims.len() as u64, dropped))
    }

    /// The caller holds the claims, under which the blocks were found to be zeros where they are.
    fn flip_to_promise(&self, file: &Arc<File>, blocks: &[BlockNo], seen: Wrote) -> u64 {
        let _flip = self.gate.read();
        let mut inner = file.write();
        // A tier that lost writes since may have shown what it does not have any more.
        if inner.removed || self.was_lost(seen) || self.lost_writes.lock().contains(&seen.tier) {
            return 0;
        }
        for &block in blocks {
            let prior = inner.map.get(block);
            self.set_place(file.id(), &mut inner, block, Place { home: Home::Promised, copy: None });
            self.window.lock().push(Applied { file: file.id(), block, prior, pieces: Vec::new(), wrote: None });
        }
        drop(inner);
        self.list_dirty(file);
        blocks.len() as u64
    }
}

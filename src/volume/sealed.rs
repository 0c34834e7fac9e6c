//! Reading segments of the log that are full, for who keeps copies of them.

use super::Volume;
use crate::device::AlignedBuf;
use crate::error::Result;
use crate::units::TierId;
use std::ops::Range;

impl Volume {
    /// Sequence numbers of the segments that are full, durable and still in use.
    pub fn sealed_segments(&self) -> Range<u64> {
        self.log.sealed_segments()
    }

    /// The segment that records go to; None before the first record.
    pub fn head_segment(&self) -> Option<u64> {
        self.log.segments_in_use().1.checked_sub(1)?;
        Some(self.log.head_segment_seq())
    }

    /// What lies free on the slowest tier and is promised to nobody (I10), in bytes.
    pub fn spare_bytes(&self) -> u64 {
        let slowest = TierId(u8::try_from(self.tiers.len().saturating_sub(1)).unwrap_or(u8::MAX));
        let blocks = self.space.free_blocks(slowest).min(self.space.unpromised_blocks());
        u64::try_from(blocks).unwrap_or(0) * self.block_bytes()
    }

    pub fn segment_bytes(&self) -> u64 {
        self.geometry().segment_bytes
    }

    /// Reads a segment piece by piece; `each` gets them in order. Ok(false) when the segment's slot may have been used again meanwhile: then what `each` got is
    /// nothing. Waits for nobody, and nobody waits for it.
    pub fn read_segment(&self, segment_seq: u64, each: &mut dyn FnMut(&[u8]) -> Result<()>) -> Result<bool> {
        const PIECE_BYTES: usize = 1 << 20;
        let mut at = 0;
        while at < self.geometry().segment_bytes {
            let len =
                usize::try_from(self.geometry().segment_bytes - at).map_or(PIECE_BYTES, |left| left.min(PIECE_BYTES));
            let mut piece = AlignedBuf::zeroed(len);
            if !self.log.read_sealed(segment_seq, at, &mut piece)? {
                return Ok(false);
            }
            each(&piece)?;
            at += len as u64;
        }
        Ok(true)
    }
}

//! Reading payloads back from the segments.
//!
//! Who goes through the log in the order of addresses (the coalescer) finds the next payloads close behind the last: one read of
//! a stretch of the log brings many of them.

use super::Log;
use crate::device::AlignedBuf;
use crate::error::{Error, Result};
use crate::sync::atomic::Ordering;
use crate::units::{PAGE, PAGE_BYTES};

/// How much is read at once, in bytes, for whoever reads on.
const STRETCH_BYTES: u64 = 256 * 1024;

/// Consecutive pages of the log in memory, for one sweep over addresses that grow. What it holds of a segment is right as long as a
/// record of that segment is live: addresses are never used twice.
#[derive(Default)]
pub struct Stretch {
    /// Address of the first page.
    start: u64,
    pages: AlignedBuf,
    /// Where the last payload read ended; 0: nothing was read yet.
    reached: u64,
}

impl Stretch {
    fn holds(&self, start: u64, end: u64) -> bool {
        start >= self.start && end <= self.start + self.pages.len() as u64
    }
}

impl Log {
    /// As [`Log::read`], with whatever the last stretch already brought.
    pub fn read_along(&self, stretch: &mut Stretch, position: u64, buf: &mut [u8]) -> Result<()> {
        if self.cache.read(position, buf) {
            self.counters.reads_from_cache.fetch_add(1, Ordering::Relaxed);
            return Ok(());
        }
        let start = position / PAGE_BYTES * PAGE_BYTES;
        let end = (position + buf.len() as u64).next_multiple_of(PAGE_BYTES);
        if !stretch.holds(start, end) {
            let reads_on = stretch.reached > 0 && (stretch.reached..stretch.reached + STRETCH_BYTES).contains(&end);
            let ahead = if reads_on { (start + STRETCH_BYTES).min(self.end_of_segment(start)) } else { end };
            // Behind the durable address lies what the slot held before; a bad sector ahead is not this payload's trouble.
            match self.read_pages(start, ahead.min(self.durable_address()).max(end), stretch) {
                Err(_) if ahead > end => self.read_pages(start, end, stretch)?,
                read => read?,
            }
        }
        stretch.reached = end;
        let from = usize::try_from(start - stretch.start).unwrap_or(usize::MAX);
        let to = usize::try_from(end - stretch.start).unwrap_or(usize::MAX);
        // Never out of range, since the read covered it; but bytes that were not copied must not pass for read ones (I8).
        let missing = || Error::NotFound(format!("bytes {start} to {end} of the log"));
        let pages = stretch.pages.get(from..to).ok_or_else(missing)?;
        self.verify_pages(start, pages)?;
        let skip = usize::try_from(position - start).unwrap_or(0);
        buf.copy_from_slice(pages.get(skip..skip + buf.len()).ok_or_else(missing)?);
        Ok(())
    }

    fn end_of_segment(&self, address: u64) -> u64 {
        (self.geometry.segment_of(address) + 1) * self.geometry.segment_bytes
    }

    /// On an error the stretch is empty.
    fn read_pages(&self, start: u64, end: u64, stretch: &mut Stretch) -> Result<()> {
        self.counters.reads_from_device.fetch_add(1, Ordering::Relaxed);
        let seq = self.geometry.segment_of(start);
        let slot = self.geometry.slot(seq);
        let (Some(file), Some(path)) = (self.slots.get(slot), self.slot_paths.get(slot)) else {
            return Err(Error::NotFound(format!("no log segment {seq}")));
        };
        stretch.start = start;
        stretch.pages.resize(usize::try_from(end - start).unwrap_or(0));
        if let Err(error) = file.read_at(&mut stretch.pages, start % self.geometry.segment_bytes) {
            stretch.pages.resize(0);
            return Err(Error::io("read log segment", path, error));
        }
        Ok(())
    }

    /// Every page against its checksum, every time: what was read ahead may have been damaged as well.
    fn verify_pages(&self, start: u64, pages: &[u8]) -> Result<()> {
        let offset = start % self.geometry.segment_bytes;
        let slot = self.geometry.slot(self.geometry.segment_of(start));
        let (Some(path), Some(crcs)) = (self.slot_paths.get(slot), self.page_crcs.get(slot)) else {
            return Err(Error::NotFound(format!("no log slot {slot}")));
        };
        let crcs = crcs.read();
        let first = usize::try_from(offset / PAGE_BYTES).unwrap_or(0);
        for (index, page) in pages.chunks_exact(PAGE).enumerate() {
            if crcs.get(first + index).copied() != Some(crc32c::crc32c(page)) {
                let offset = offset + (index * PAGE) as u64;
                let why = "payload does not match its checksum".to_string();
                return Err(Error::Corrupt { what: "log payload", path: path.clone(), offset, why });
            }
        }
        Ok(())
    }
}

//! The bytes of a snapshot: several files at once, of each only what changed.

use super::pages::Pages;
use super::{Source, Tally};
use crate::device::clock::{Instant, monotonic_now};
use crate::error::{Error, Result};
use crate::jobs::streams;
use crate::repository::{FileUpdate, Writer};
use crate::units::FileId;
use crate::volume::{FileAt, Mark};
use parking_lot::Mutex;
use std::collections::HashSet;
use std::ops::Range;
use std::time::Duration;
use uuid::Uuid;

/// Unit of identity, and of the engine's knowledge of changes, in bytes.
const PAGE_BYTES: u64 = 8192;
/// Pages read at once by each stream, at most, and what is not worth another reader.
const READS_AT_ONCE: usize = 8;
const READS_MIN: usize = 4;
/// Time after which what was stored is made durable.
const KEEP_EVERY: Duration = Duration::from_secs(60);

pub(super) struct Capture<'a> {
    pub source: &'a Source<'a>,
    pub writer: &'a Writer<'a>,
    pub mark: &'a Mark,
    /// The parent's mark, if the volume knows what changed since.
    pub parent: Option<Uuid>,
    pub tally: &'a Tally,
    pub pages: &'a Pages,
    /// When what was stored was last made durable.
    pub kept_at: Mutex<Instant>,
}

/// What has to be read of a file.
enum Task {
    /// Everything; what the parent has, if it has the file, is compared.
    Whole(FileAt),
    Changed(FileAt, Vec<Range<u64>>),
}

impl Capture<'_> {
    /// Captures all these files. The first error ends it.
    pub fn run(&self, files: Vec<FileAt>) -> Result<()> {
        let changed = match self.parent {
            Some(parent) => self.source.volume.changed_files(self.mark, parent)?,
            None => None,
        };
        let changed: Option<HashSet<FileId>> = changed.map(|files| files.into_iter().collect());
        let mut tasks = Vec::new();
        for file in files {
            tasks.extend(self.task(file, changed.as_ref())?);
        }
        streams::run(tasks, self.source.streams, |task, buf| match task {
            Task::Whole(file) => self.whole(file, buf),
            Task::Changed(file, pages) => self.changed(file, pages, buf),
        })
    }

    /// What there is to do for a file; None: the parent's will do.
    fn task(&self, file: FileAt, changed: Option<&HashSet<FileId>>) -> Result<Option<Task>> {
        let task = match (changed, self.parent, self.writer.parent_file(file.file)?) {
            (Some(changed), Some(parent), Some(_)) => {
                if !changed.contains(&file.file) {
                    return Ok(None);
                }
                match self.source.volume.changed_pages(self.mark, parent, file.file)? {
                    Some(pages) => Task::Changed(file, pages),
                    None => Task::Whole(file),
                }
            }
            _ => Task::Whole(file),
        };
        self.tally.expect(match &task {
            Task::Whole(file) => file.size_bytes,
            Task::Changed(_, pages) => pages.iter().map(|pages| pages.end - pages.start).sum::<u64>() * PAGE_BYTES,
        });
        Ok(Some(task))
    }

    /// Counts what was stored, and makes it durable now and then: a capture that breaks off was not for nothing, and prunes see that this one lives.
    fn stored(&self, bytes: u64) -> Result<()> {
        self.tally.done(bytes);
        let Some(mut kept_at) = self.kept_at.try_lock().filter(|at| at.elapsed() >= KEEP_EVERY) else { return Ok(()) };
        self.writer.flush()?;
        *kept_at = monotonic_now();
        Ok(())
    }

    fn update(&self, file: &FileAt) -> Result<FileUpdate<'_>> {
        self.writer.file(file.file, file.size_bytes, u32::try_from(PAGE_BYTES).unwrap_or(u32::MAX))
    }

    fn whole(&self, file: &FileAt, buf: &mut [u8]) -> Result<()> {
        let in_parent = self.writer.parent_file(file.file)?.is_some();
        let mut update = self.update(file)?;
        update.compare(in_parent);
        let mut at = 0;
        while let Some((start, end)) = self.source.volume.data_at(self.mark, file.file, at)? {
            let start = start / PAGE_BYTES * PAGE_BYTES;
            let end = end.next_multiple_of(PAGE_BYTES).min(file.size_bytes);
            self.gap(&mut update, in_parent, at, start)?;
            self.copy(file, &mut update, start.max(at), end, buf)?;
            at = end;
        }
        self.gap(&mut update, in_parent, at, file.size_bytes)?;
        update.finish().map(drop)
    }

    /// A hole, which matters only where the parent may have something.
    fn gap(&self, update: &mut FileUpdate<'_>, in_parent: bool, start: u64, end: u64) -> Result<()> {
        if start >= end {
            return Ok(());
        }
        self.tally.done(end - start);
        if in_parent { update.hole(start, end - start) } else { Ok(()) }
    }

    fn changed(&self, file: &FileAt, pages: &[Range<u64>], buf: &mut [u8]) -> Result<()> {
        let mut update = self.update(file)?;
        for batch in batches(pages, file.size_bytes, buf.len()) {
            let bytes = batch.iter().map(|range| range.end - range.start).sum();
            self.source.pace.work(bytes, || {
                let mut parts = parts_of(&batch, buf);
                self.read_scattered(file, &mut parts)?;
                parts.iter().try_for_each(|(at, part)| update.put(*at, part))
            })?;
            self.stored(bytes)?;
        }
        update.finish().map(drop)
    }

    /// Pages far from each other cost a device's latency each: several are asked for at once, unless others need the machine.
    fn read_scattered(&self, file: &FileAt, parts: &mut [Part<'_>]) -> Result<()> {
        let share = parts.len().div_ceil(READS_AT_ONCE).max(READS_MIN);
        let read = |parts: &mut [Part<'_>]| parts.iter_mut().try_for_each(|(at, part)| self.read(file, *at, part));
        if parts.len() <= share || !self.source.pace.is_free() {
            return read(parts);
        }
        streams::together(parts.chunks_mut(share).map(|parts| || read(parts)))
    }

    fn copy(&self, file: &FileAt, update: &mut FileUpdate<'_>, start: u64, end: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = start;
        while at < end {
            // Whole slots, so that the repository sees them whole.
            let stop = streams::read_end(at, end);
            let part = &mut buf[..usize::try_from(stop - at).unwrap_or(0)];
            self.source.pace.work(stop - at, || {
                self.read(file, at, part)?;
                update.put(at, part)
            })?;
            self.stored(stop - at)?;
            at = stop;
        }
        Ok(())
    }

    fn read(&self, file: &FileAt, at: u64, part: &mut [u8]) -> Result<()> {
        let filled = self.source.volume.read_at(self.mark, file.file, at, part)?;
        if filled < part.len() {
            let why = format!("only {filled} of {} bytes at {at} could be read for the snapshot", part.len());
            return Err(Error::Untrusted { file: file.file, why });
        }
        self.pages.check(file.file, at, part);
        Ok(())
    }
}

/// Bytes of a file, and where they begin in it.
type Part<'b> = (u64, &'b mut [u8]);

/// Ranges of pages as ranges of bytes of the file, in batches that fit the buffer; a longer range is cut on whole buffers.
fn batches(pages: &[Range<u64>], size_bytes: u64, buffer: usize) -> Vec<Vec<Range<u64>>> {
    let (mut batches, mut batch, mut room) = (Vec::new(), Vec::new(), buffer as u64);
    for range in pages {
        let (mut at, end) = (range.start * PAGE_BYTES, (range.end * PAGE_BYTES).min(size_bytes));
        while at < end {
            let stop = streams::read_end(at, end);
            if stop - at > room {
                batches.push(std::mem::take(&mut batch));
                room = buffer as u64;
            }
            room -= stop - at;
            batch.push(at..stop);
            at = stop;
        }
    }
    if !batch.is_empty() {
        batches.push(batch);
    }
    batches
}

/// A place in the buffer for each range of a batch.
fn parts_of<'b>(batch: &[Range<u64>], mut buf: &'b mut [u8]) -> Vec<Part<'b>> {
    let mut parts = Vec::with_capacity(batch.len());
    for range in batch {
        let (part, rest) = buf.split_at_mut(usize::try_from(range.end - range.start).unwrap_or(0));
        parts.push((range.start, part));
        buf = rest;
    }
    parts
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn batches_hold_every_page_once_in_order_and_fit_the_buffer() {
        let buffer = 256 * 1024;
        // scattered pages, a range longer than the buffer, and one that the file's end cuts off
        let pages: Vec<Range<u64>> = (0..100).map(|page| page * 2..page * 2 + 1).chain([300..390, 400..402]).collect();
        let size = 401 * PAGE_BYTES + 17;
        let batches = batches(&pages, size, buffer);
        let mut expected: Vec<u64> = pages.iter().flat_map(|range| range.clone()).collect();
        let mut buf = vec![0; buffer];
        for batch in &batches {
            assert!(!batch.is_empty());
            let parts = parts_of(batch, &mut buf);
            for (range, (at, part)) in batch.iter().zip(parts) {
                assert_eq!((range.start, range.end - range.start), (at, part.len() as u64));
                for page in range.start / PAGE_BYTES..range.end.div_ceil(PAGE_BYTES) {
                    assert_eq!(expected.remove(0), page);
                }
                assert!(range.end % PAGE_BYTES == 0 || range.end == size);
            }
        }
        assert!(expected.is_empty(), "{expected:?}");
        assert!(batches.len() <= 100 * 8 / 256 + 1 + 5, "{} batches", batches.len());
    }

    #[test]
    fn pages_beyond_the_end_are_none() {
        assert!(batches(std::slice::from_ref(&(10..12)), 5 * PAGE_BYTES, 1 << 18).is_empty());
    }
}

//! The bytes of a snapshot: several files at once, of each only what changed.

use super::pages::Pages;
use super::{Source, Tally};
use crate::error::{Error, Result};
use crate::jobs::streams;
use crate::repository::{FileUpdate, Writer};
use crate::units::FileId;
use crate::volume::{FileAt, Mark};
use std::collections::HashSet;
use std::ops::Range;
use uuid::Uuid;

/// Unit of identity, and of the engine's knowledge of changes, in bytes.
const PAGE_BYTES: u64 = 8192;

pub(super) struct Capture<'a> {
    pub source: &'a Source<'a>,
    pub writer: &'a Writer<'a>,
    pub mark: &'a Mark,
    /// The parent's mark, if the volume knows what changed since.
    pub parent: Option<Uuid>,
    pub tally: &'a Tally,
    pub pages: &'a Pages,
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
        for range in pages {
            let (start, end) = (range.start * PAGE_BYTES, (range.end * PAGE_BYTES).min(file.size_bytes));
            self.copy(file, &mut update, start, end, buf)?;
        }
        update.finish().map(drop)
    }

    fn copy(&self, file: &FileAt, update: &mut FileUpdate<'_>, start: u64, end: u64, buf: &mut [u8]) -> Result<()> {
        let mut at = start;
        while at < end {
            // Whole slots, so that the repository sees them whole.
            let stop = streams::read_end(at, end);
            let part = &mut buf[..usize::try_from(stop - at).unwrap_or(0)];
            let filled = self.source.volume.read_at(self.mark, file.file, at, part)?;
            if filled < part.len() {
                let why = format!("only {filled} of {} bytes at {at} could be read for the snapshot", part.len());
                return Err(Error::Untrusted { file: file.file, why });
            }
            self.pages.check(file.file, at, part);
            update.put(at, part)?;
            self.tally.done(stop - at);
            at = stop;
        }
        Ok(())
    }
}

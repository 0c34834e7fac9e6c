//! One segment instead of many, without what is deleted.

use super::super::generations::Final;
use super::super::index;
use super::super::mark::Marks;
use super::super::segment::{BLOCK_ENTRIES, Entry, Segment, SegmentWriter};
use super::super::small::{io_error, naming_error};
use super::{Round, SEGMENTS_MAX};
use crate::error::Result;
use std::cmp::Reverse;
use std::collections::BinaryHeap;

/// Reads the entries of one segment in order; holds one block.
struct Entries<'s> {
    segment: &'s Segment,
    block: usize,
    entries: std::vec::IntoIter<Entry>,
    number: usize,
}

impl Entries<'_> {
    fn next(&mut self) -> Result<Option<(Entry, usize)>> {
        loop {
            if let Some(entry) = self.entries.next() {
                self.number += 1;
                return Ok(Some((entry, self.number - 1)));
            }
            if self.block == self.segment.blocks() {
                return Ok(None);
            }
            self.entries = self.segment.block(self.block)?.into_iter();
            self.number = self.block * BLOCK_ENTRIES;
            self.block += 1;
        }
    }
}

impl Round<'_> {
    /// Merges the segments that were marked in when there are many, or when one names a pack that goes. Where there is no room for
    /// it, the final list alone keeps the index from naming what is gone, until the next prune.
    pub(super) fn merge_segments(&self, marks: &Marks<'_>, last: &mut Final) -> Result<()> {
        let segments = &marks.view.segments;
        let stale = |segment: &Segment| {
            segment.packs.iter().any(|pack| last.delete.contains(pack) || !marks.view.packs.contains(pack))
        };
        if segments.len() <= SEGMENTS_MAX && !segments.iter().any(|segment| stale(segment)) {
            return Ok(());
        }
        let device = self.small.device.as_ref();
        let space = device.space().map_err(|e| io_error(device, "ask for the space of", "", e))?;
        let bytes: u64 = segments.iter().map(|segment| segment.bytes).sum();
        if space.available_bytes < bytes * 2 {
            return Ok(());
        }
        let highest = segments.iter().map(|segment| index::sequence(segment.name.trim_start_matches("index/"))).max();
        let name = index::segment_name(self.generation.next(), highest.unwrap_or(0))?;
        let (part, path) = (format!("index/{name}.part"), format!("index/{name}"));
        let entries = segments.iter().map(|segment| segment.entries).sum();
        let mut writer = SegmentWriter::create(device, &part, self.repository.id(), entries)?;
        self.merge(marks, last, &mut writer)?;
        writer.finish()?;
        device.rename(&part, &path).map_err(|e| naming_error(device, &path, e))?;
        device.sync_dir("index").map_err(|e| io_error(device, "sync directory", "index", e))?;
        let names = segments.iter().filter_map(|segment| segment.name.strip_prefix("index/"));
        last.absorbed = names.map(str::to_owned).collect();
        last.segment = Some(name);
        Ok(())
    }

    fn merge(&self, marks: &Marks<'_>, last: &Final, writer: &mut SegmentWriter) -> Result<()> {
        let begin = |segment| Entries { segment, block: 0, entries: Vec::new().into_iter(), number: 0 };
        let mut sources: Vec<Entries<'_>> = marks.view.segments.iter().map(|segment| begin(segment)).collect();
        let mut heap = BinaryHeap::new();
        for (index, source) in sources.iter_mut().enumerate() {
            heap.extend(source.next()?.map(|(entry, number)| Reverse((entry, index, number))));
        }
        // Entries of one name, each with whether it is the copy in use.
        let mut same: Vec<(Entry, bool)> = Vec::new();
        while let Some(Reverse((entry, index, number))) = heap.pop() {
            heap.extend(sources[index].next()?.map(|(entry, number)| Reverse((entry, index, number))));
            if same.first().is_some_and(|(first, _)| first.prefix != entry.prefix) {
                self.put_same(&mut same, writer)?;
            }
            if marks.view.packs.contains(&entry.place.pack) && !last.delete.contains(&entry.place.pack) {
                same.push((entry, marks.is_live(index, number)));
            }
        }
        self.put_same(&mut same, writer)
    }

    /// Of several copies only the one in use is listed further, so that it is found first; and those of writers still at work.
    fn put_same(&self, same: &mut Vec<(Entry, bool)>, writer: &mut SegmentWriter) -> Result<()> {
        let one_lives = same.iter().any(|(_, live)| *live);
        same.dedup_by(|later, first| {
            first.1 |= later.0 == first.0 && later.1;
            later.0 == first.0
        });
        for (entry, live) in same.drain(..) {
            if live || !one_lives || entry.place.pack.generation() > self.generation {
                writer.push(entry)?;
            }
        }
        Ok(())
    }
}

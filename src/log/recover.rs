//! Following the chain after a stop of any kind.
//!
//! From the redo point each group names its predecessor by checksum. The chain goes on either behind the last group in its segment, or at the
//! beginning of a later segment; a mount begins a segment of its own, so a segment begun by a later mount
//! outranks what an earlier one left torn. The chain ends at the first group that does not verify:
//! - nothing later of this chain is found: a torn tail, never acknowledged
//! - a later group of this chain exists: corruption, and the mount is refused (R7)
//! - the chain ends before what the state knows to be durable: a gap, refused (R2)
//!
//! Only headers are read, from summaries where segments were sealed, and the payloads of the very last group.

use super::{Geometry, SegmentStart, segments};
use crate::device::{AlignedBuf, BackingFile, Device};
use crate::error::{Error, Result};
use crate::ondisk::group::{GroupHeader, MAGIC};
use crate::ondisk::summary::{SummaryGroup, Trailer, decode_body};
use crate::units::{PAGE, PAGE_BYTES};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::Arc;
use uuid::Uuid;

/// Bytes read at once when the rest of a segment is searched.
const SCAN_BYTES: usize = 1 << 20;

/// Where replay begins, as durable state knows it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct RedoPoint {
    pub segment_seq: u64,
    /// Sequence number of the first group to replay, whether or not it exists yet.
    pub first_group_seq: u64,
    pub previous_checksum: u64,
    /// Every group below this was durable when the state was written: the chain must reach it.
    pub durable_group_seq: u64,
}

impl RedoPoint {
    /// The redo point of a log that was never written. Segment numbers begin at 1, so that no address is 0.
    pub const BEGINNING: RedoPoint =
        RedoPoint { segment_seq: 1, first_group_seq: 1, previous_checksum: 0, durable_group_seq: 1 };
}

/// What [`Log::open`](super::Log::open) needs to go on where the chain ended.
#[derive(Debug)]
pub struct Replayed {
    pub groups: u64,
    pub(super) next_segment_seq: u64,
    pub(super) tail_segment_seq: u64,
    pub(super) next_group_seq: u64,
    pub(super) previous_checksum: u64,
    pub(super) starts: VecDeque<SegmentStart>,
    pub(super) page_crcs: Vec<Vec<u32>>,
}

struct Scanner<'a> {
    volume: Uuid,
    geometry: Geometry,
    files: &'a [Arc<dyn BackingFile>],
    paths: &'a [String],
    /// Segments whose first group decodes, by segment number.
    firsts: BTreeMap<u64, SummaryGroup>,
    /// The same by (previous checksum, group number): where the chain may go on.
    begins: HashMap<(u64, u64), Vec<u64>>,
    /// Summaries of sealed segments, loaded when reached.
    summary: Option<(u64, HashMap<u64, SummaryGroup>)>,
}

/// Follows the chain from `redo` and hands each group, in order, with the address of its header, to `apply`. Changes nothing.
pub fn recover(
    device: &Arc<dyn Device>,
    geometry: Geometry,
    volume: Uuid,
    redo: RedoPoint,
    apply: &mut dyn FnMut(u64, &GroupHeader) -> Result<()>,
) -> Result<Replayed> {
    let (files, paths) = segments::open_slots(device, geometry)?;
    let mut scanner = Scanner {
        volume,
        geometry,
        files: &files,
        paths: &paths,
        firsts: BTreeMap::new(),
        begins: HashMap::new(),
        summary: None,
    };
    scanner.find_segments()?;
    let mut out = Replayed {
        groups: 0,
        next_segment_seq: redo.segment_seq,
        tail_segment_seq: redo.segment_seq,
        next_group_seq: redo.first_group_seq,
        previous_checksum: redo.previous_checksum,
        starts: VecDeque::new(),
        page_crcs: vec![Vec::new(); files.len()],
    };
    let mut at: Option<(u64, u64)> = None;
    let mut incarnation = 0;
    // A group is applied once its successor is known, since the last one has to prove its payloads first.
    let mut pending: Option<SummaryGroup> = None;
    while let Some(found) = scanner.successor(at, out.next_group_seq, out.previous_checksum, redo.segment_seq)? {
        if let Some(group) = pending.take() {
            scanner.accept(&group, &mut out, apply)?;
        }
        at = Some((found.header.segment_seq, found.header.offset + found.header.total_len()));
        incarnation = found.header.incarnation;
        out.next_group_seq = found.header.group_seq + 1;
        out.previous_checksum = found.checksum;
        pending = Some(found);
    }
    if let Some(last) = pending {
        if scanner.payloads_verify(&last)? {
            scanner.accept(&last, &mut out, apply)?;
        } else {
            out.next_group_seq = last.header.group_seq;
            out.previous_checksum = last.header.previous_checksum;
        }
    }
    scanner.refuse_gap(&redo, &out)?;
    scanner.refuse_successor(at.map_or(redo.segment_seq, |(seq, _)| seq), out.next_group_seq, incarnation)?;
    out.next_segment_seq = scanner.firsts.keys().last().map_or(redo.segment_seq, |&seq| redo.segment_seq.max(seq + 1));
    Ok(out)
}

impl Scanner<'_> {
    fn path(&self, segment_seq: u64) -> String {
        self.paths.get(self.geometry.slot(segment_seq)).cloned().unwrap_or_default()
    }

    fn read(&self, slot: usize, offset: u64, len: usize) -> Result<AlignedBuf> {
        let mut buf = AlignedBuf::zeroed(len);
        if let (Some(file), Some(path)) = (self.files.get(slot), self.paths.get(slot)) {
            file.read_at(&mut buf, offset).map_err(|e| Error::io("read log segment", path, e))?;
        }
        Ok(buf)
    }

    /// A group header of this volume that says it lies at this place.
    fn header_at(&self, slot: usize, offset: u64) -> Result<Option<SummaryGroup>> {
        let page = self.read(slot, offset, PAGE)?;
        let Ok((header, checksum)) = GroupHeader::decode(&page) else { return Ok(None) };
        let here = header.volume == self.volume
            && header.offset == offset
            && self.geometry.slot(header.segment_seq) == slot
            && offset + header.total_len() <= self.geometry.segment_bytes;
        Ok(here.then(|| SummaryGroup { page_crc: crc32c::crc32c(&page), header, checksum }))
    }

    fn find_segments(&mut self) -> Result<()> {
        for slot in 0..self.files.len() {
            if let Some(first) = self.header_at(slot, 0)? {
                let key = (first.header.previous_checksum, first.header.group_seq);
                self.begins.entry(key).or_default().push(first.header.segment_seq);
                self.firsts.insert(first.header.segment_seq, first);
            }
        }
        Ok(())
    }

    /// The group that follows: behind `at` in its segment, or first of a later segment, whichever a later mount wrote.
    fn successor(
        &mut self,
        at: Option<(u64, u64)>,
        group_seq: u64,
        previous: u64,
        from: u64,
    ) -> Result<Option<SummaryGroup>> {
        let behind = match at {
            Some((segment_seq, offset)) if offset + PAGE_BYTES <= self.geometry.segment_bytes => {
                self.group_at(segment_seq, offset)?.filter(|group| {
                    group.header.segment_seq == segment_seq
                        && group.header.group_seq == group_seq
                        && group.header.previous_checksum == previous
                })
            }
            _ => None,
        };
        let after = at.map_or(from, |(segment_seq, _)| segment_seq + 1);
        let begin = self
            .begins
            .get(&(previous, group_seq))
            .into_iter()
            .flatten()
            .filter(|&&seq| seq >= after)
            .filter_map(|seq| self.firsts.get(seq))
            .max_by_key(|first| (first.header.incarnation, first.header.segment_seq));
        Ok(match (behind, begin) {
            (Some(behind), Some(begin)) if begin.header.incarnation > behind.header.incarnation => Some(begin.clone()),
            (Some(behind), _) => Some(behind),
            (None, begin) => begin.cloned(),
        })
    }

    fn group_at(&mut self, segment_seq: u64, offset: u64) -> Result<Option<SummaryGroup>> {
        if self.summary.as_ref().is_none_or(|(seq, _)| *seq != segment_seq) {
            let groups = self.load_summary(segment_seq)?.unwrap_or_default();
            self.summary = Some((segment_seq, groups.into_iter().map(|group| (group.header.offset, group)).collect()));
        }
        if let Some(group) = self.summary.as_mut().and_then(|(_, groups)| groups.remove(&offset)) {
            return Ok(Some(group));
        }
        self.header_at(self.geometry.slot(segment_seq), offset)
    }

    fn load_summary(&self, segment_seq: u64) -> Result<Option<Vec<SummaryGroup>>> {
        let slot = self.geometry.slot(segment_seq);
        let page = self.read(slot, self.geometry.segment_bytes - PAGE_BYTES, PAGE)?;
        let Ok(trailer) = Trailer::decode(&page) else { return Ok(None) };
        let body_end = trailer.body_offset.checked_add(trailer.body_bytes);
        if trailer.volume != self.volume
            || trailer.segment_seq != segment_seq
            || trailer.body_offset % PAGE_BYTES != 0
            || body_end.is_none_or(|end| end > self.geometry.segment_bytes - PAGE_BYTES)
        {
            return Ok(None);
        }
        let len = usize::try_from(trailer.body_bytes).unwrap_or(0);
        let pages = self.read(slot, trailer.body_offset, len.next_multiple_of(PAGE))?;
        let body = pages.get(..len).unwrap_or_default();
        if *blake3::hash(body).as_bytes() != trailer.body_hash {
            return Ok(None);
        }
        Ok(decode_body(&trailer, body).ok())
    }

    fn payloads_verify(&self, group: &SummaryGroup) -> Result<bool> {
        let len = usize::try_from(group.header.total_len()).unwrap_or(0);
        let buf = self.read(self.geometry.slot(group.header.segment_seq), group.header.offset, len)?;
        let crcs = buf.chunks_exact(PAGE).skip(1).map(crc32c::crc32c);
        Ok(crcs.eq(group.header.payload_crcs.iter().copied()))
    }

    fn accept(
        &self,
        group: &SummaryGroup,
        out: &mut Replayed,
        apply: &mut dyn FnMut(u64, &GroupHeader) -> Result<()>,
    ) -> Result<()> {
        let header = &group.header;
        if header.offset == 0 {
            out.starts.push_back(SegmentStart {
                segment_seq: header.segment_seq,
                first_group_seq: header.group_seq,
                previous_checksum: header.previous_checksum,
            });
        }
        if let Some(crcs) = out.page_crcs.get_mut(self.geometry.slot(header.segment_seq)) {
            let first = usize::try_from(header.offset / PAGE_BYTES).unwrap_or(0);
            crcs.resize(crcs.len().max(first), 0);
            crcs.truncate(first);
            crcs.push(group.page_crc);
            crcs.extend_from_slice(&header.payload_crcs);
        }
        out.groups += 1;
        apply(header.segment_seq * self.geometry.segment_bytes + header.offset, header)
    }

    fn refuse_gap(&self, redo: &RedoPoint, out: &Replayed) -> Result<()> {
        if out.next_group_seq >= redo.durable_group_seq {
            return Ok(());
        }
        let why = format!(
            "the log's chain ends before group {}, but groups up to {} were durable; the segment is damaged or missing",
            out.next_group_seq,
            redo.durable_group_seq - 1
        );
        let segment_seq = out.starts.back().map_or(redo.segment_seq, |start| start.segment_seq);
        Err(Error::Corrupt { what: "write log", path: self.path(segment_seq), offset: 0, why })
    }

    /// R7: after the end of the chain nothing later of the same chain may be found.
    fn refuse_successor(&self, segment_seq: u64, end_group_seq: u64, incarnation: u64) -> Result<()> {
        let later =
            |group: &SummaryGroup| group.header.group_seq > end_group_seq && group.header.incarnation >= incarnation;
        let slot = self.geometry.slot(segment_seq);
        for chunk_at in (0..self.geometry.segment_bytes).step_by(SCAN_BYTES) {
            let len =
                usize::try_from(self.geometry.segment_bytes - chunk_at).map_or(SCAN_BYTES, |left| left.min(SCAN_BYTES));
            for (index, page) in self.read(slot, chunk_at, len)?.chunks_exact(PAGE).enumerate() {
                let offset = chunk_at + (index * PAGE) as u64;
                if page.starts_with(&MAGIC)
                    && let Some(group) = self.header_at(slot, offset)?
                    && group.header.segment_seq == segment_seq
                    && later(&group)
                {
                    return Err(self.broken(segment_seq, offset, end_group_seq, group.header.group_seq));
                }
            }
        }
        self.refuse_headless(segment_seq, end_group_seq, &later)?;
        match self.firsts.values().find(|first| first.header.segment_seq > segment_seq && later(first)) {
            Some(first) => Err(self.broken(first.header.segment_seq, 0, end_group_seq, first.header.group_seq)),
            None => Ok(()),
        }
    }

    /// A later segment whose first header is damaged is not known as a segment: its second group gives it away. A group
    /// is at most half of [`SCAN_BYTES`], so that the second one begins in the first piece.
    fn refuse_headless(&self, segment_seq: u64, end: u64, later: &dyn Fn(&SummaryGroup) -> bool) -> Result<()> {
        let known: Vec<usize> = self.firsts.keys().map(|&seq| self.geometry.slot(seq)).collect();
        for slot in (0..self.files.len()).filter(|slot| !known.contains(slot)) {
            let len = usize::try_from(self.geometry.segment_bytes).map_or(SCAN_BYTES, |len| len.min(SCAN_BYTES));
            for (index, page) in self.read(slot, 0, len)?.chunks_exact(PAGE).enumerate() {
                let offset = (index * PAGE) as u64;
                if page.starts_with(&MAGIC)
                    && let Some(group) = self.header_at(slot, offset)?
                    && group.header.segment_seq > segment_seq
                    && later(&group)
                {
                    return Err(self.broken(group.header.segment_seq, 0, end, group.header.group_seq));
                }
            }
        }
        Ok(())
    }

    fn broken(&self, segment_seq: u64, offset: u64, missing: u64, found: u64) -> Error {
        let why = format!("group {missing} of the log is damaged, but the later group {found} is here");
        Error::Corrupt { what: "write log", path: self.path(segment_seq), offset, why }
    }
}

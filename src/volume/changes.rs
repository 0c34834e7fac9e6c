//! When the pages of a file changed last: what an incremental snapshot has to read, known without reading anything (R16).
//!
//! An epoch ends with every marker; a page carries the epoch of its last change. Kept as runs of pages with one epoch, four bytes each, in pieces
//! of 32 MiB of the file, and only for changes that some snapshot may still ask about: at most 128 runs a piece, 16 MiB of memory per
//! TiB of file however it is written. Where a piece would need more, neighbouring runs become one: too much may be called changed, never too little.

use crate::ondisk::bytes::Malformed;
use crate::ondisk::changes::{self, CHANGE_PAGE_BYTES, PIECE_PAGES, PageRun};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const RUNS_MAX: usize = 128;
/// What is left after runs were joined, so that joining is rare.
const RUNS_JOINED_TO: usize = 96;
const AGE_MAX: u32 = 255;

#[derive(Default)]
struct Piece {
    base_epoch: u32,
    /// Packed [`PageRun`]s; their order as numbers is their order in the file.
    runs: Vec<u32>,
}

#[derive(Default)]
pub struct ChangeMap {
    pieces: BTreeMap<u32, Piece>,
    /// Pieces changed since the last checkpoint began.
    dirty: BTreeSet<u32>,
}

impl ChangeMap {
    /// Bytes in `start..end` changed in `epoch`. `floor`: nobody will ask about changes up to this epoch.
    pub fn touch(&mut self, start: u64, end: u64, epoch: u32, floor: u32) {
        if start >= end {
            return;
        }
        let (mut page, last) = (start / CHANGE_PAGE_BYTES, (end - 1) / CHANGE_PAGE_BYTES);
        let pages = u64::from(PIECE_PAGES);
        while page <= last {
            let (index, piece_end) = (page / pages, (page / pages + 1) * pages);
            let stop = last.min(piece_end - 1);
            let Ok(index) = u32::try_from(index) else { return };
            let within = |page: u64| u32::try_from(page % pages).unwrap_or(0);
            if self.pieces.entry(index).or_default().touch(within(page), within(stop), epoch, floor) {
                self.dirty.insert(index);
            }
            page = piece_end;
        }
    }

    /// Pages that changed after `epoch`, in order, up to the page that holds byte `end - 1`.
    pub fn since(&self, epoch: u32, end: u64) -> Vec<Range<u64>> {
        let end_page = end.div_ceil(CHANGE_PAGE_BYTES);
        let mut out: Vec<Range<u64>> = Vec::new();
        for (&index, piece) in &self.pieces {
            let start = u64::from(index) * u64::from(PIECE_PAGES);
            for run in piece.runs_after(epoch) {
                let range = start + u64::from(run.first)..(start + u64::from(run.last) + 1).min(end_page);
                if range.is_empty() {
                    continue;
                }
                match out.last_mut() {
                    Some(last) if last.end == range.start => last.end = range.end,
                    _ => out.push(range),
                }
            }
        }
        out
    }

    /// Did anything in `start..end` change after `epoch`?
    pub fn is_changed_in(&self, epoch: u32, start: u64, end: u64) -> bool {
        let (mut page, end) = (start / CHANGE_PAGE_BYTES, end.div_ceil(CHANGE_PAGE_BYTES));
        let pages = u64::from(PIECE_PAGES);
        while page < end {
            let (piece_start, stop) = (page / pages * pages, end.min((page / pages + 1) * pages));
            let piece = u32::try_from(page / pages).ok().and_then(|index| self.pieces.get(&index));
            let hit =
                |run: PageRun| piece_start + u64::from(run.first) < stop && piece_start + u64::from(run.last) >= page;
            if piece.is_some_and(|piece| piece.runs_after(epoch).any(hit)) {
                return true;
            }
            page = stop;
        }
        false
    }

    pub fn is_changed_since(&self, epoch: u32) -> bool {
        !self.since(epoch, u64::MAX).is_empty()
    }

    /// Forgets what changed up to `floor`. Its rows in durable state are forgotten by whoever moves the floor.
    pub fn forget(&mut self, floor: u32) {
        self.pieces.retain(|_, piece| {
            let base = piece.base_epoch;
            piece.runs.retain(|&run| base.saturating_add(PageRun::unpack(run).age) > floor);
            !piece.runs.is_empty()
        });
    }

    pub fn load_piece(&mut self, index: u32, bytes: &[u8]) -> Result<(), Malformed> {
        let (base_epoch, runs) = changes::decode(bytes)?;
        self.pieces.insert(index, Piece { base_epoch, runs });
        Ok(())
    }

    /// The changed pieces as rows; they count as clean from now on.
    pub fn take_dirty(&mut self) -> Vec<(u32, Vec<u8>)> {
        let rows = std::mem::take(&mut self.dirty).into_iter().filter_map(|index| {
            let piece = self.pieces.get(&index)?;
            Some((index, changes::encode(piece.base_epoch, &piece.runs)))
        });
        rows.collect()
    }

    /// A checkpoint failed: these pieces are not in durable state after all.
    pub fn mark_dirty(&mut self, index: u32) {
        self.dirty.insert(index);
    }

    pub fn is_dirty(&self) -> bool {
        !self.dirty.is_empty()
    }

    pub fn memory_bytes(&self) -> usize {
        self.pieces.values().map(|piece| size_of::<Piece>() + 16 + piece.runs.capacity() * size_of::<u32>()).sum()
    }
}

/// Does a row of durable state tell of anything after `floor`? One that cannot be read is kept for whoever reads it to report.
pub fn row_is_needed(bytes: &[u8], floor: u32) -> bool {
    changes::decode(bytes)
        .map_or(true, |(base, runs)| runs.iter().any(|&run| base.saturating_add(PageRun::unpack(run).age) > floor))
}

impl Piece {
    /// Pages that changed after this epoch, in order.
    fn runs_after(&self, epoch: u32) -> impl Iterator<Item = PageRun> {
        let runs = self.runs.iter().map(|&run| PageRun::unpack(run));
        runs.filter(move |run| self.base_epoch.saturating_add(run.age) > epoch)
    }

    /// True if anything is different now.
    fn touch(&mut self, first: u32, last: u32, epoch: u32, floor: u32) -> bool {
        if self.is_known(first, last, epoch) {
            return false;
        }
        self.make_room_for(epoch, floor);
        let age = epoch.saturating_sub(self.base_epoch).clamp(1, AGE_MAX);
        let run_at = |runs: &[u32], at: usize| runs.get(at).map(|&run| PageRun::unpack(run));
        // The neighbours are taken along, so that runs that touch become one.
        let from = self.runs.partition_point(|&run| PageRun::unpack(run).last < first).saturating_sub(1);
        let to = (self.runs.partition_point(|&run| PageRun::unpack(run).first <= last) + 1).min(self.runs.len());
        let mut joined = Joined::default();
        let mut at = first;
        for run in (from..to).filter_map(|index| run_at(&self.runs, index)) {
            if run.first < first {
                joined.push(PageRun { last: run.last.min(first - 1), ..run });
            }
            let (inside, inside_last) = (run.first.max(first), run.last.min(last));
            if inside <= inside_last && run.age >= age {
                joined.push_between(at, inside, age);
                joined.push(PageRun { first: inside, last: inside_last, ..run });
                at = inside_last + 1;
            }
            if run.last > last {
                joined.push_between(at, last + 1, age);
                at = last + 1;
                joined.push(PageRun { first: run.first.max(last + 1), ..run });
            }
        }
        joined.push_between(at, last + 1, age);
        self.runs.splice(from..to, joined.sorted());
        // A touch adds two runs at most.
        if self.runs.len() + 2 > RUNS_MAX {
            self.join_closest();
        }
        true
    }

    /// Is every page of the range known to have changed in `epoch` or later?
    fn is_known(&self, first: u32, last: u32, epoch: u32) -> bool {
        let mut at = first;
        let from = self.runs.partition_point(|&run| PageRun::unpack(run).last < first);
        for run in self.runs.iter().skip(from).map(|&run| PageRun::unpack(run)) {
            if run.first > at || self.base_epoch.saturating_add(run.age) < epoch {
                return false;
            }
            if run.last >= last {
                return true;
            }
            at = run.last + 1;
        }
        false
    }

    /// Ages are one byte: when `epoch` is too far from the base, the base moves up, and what is older than it counts as a little newer than it is.
    fn make_room_for(&mut self, epoch: u32, floor: u32) {
        if self.runs.is_empty() {
            self.base_epoch = floor.max(epoch.saturating_sub(AGE_MAX / 2)).min(epoch.saturating_sub(1));
        }
        if epoch.saturating_sub(self.base_epoch) <= AGE_MAX {
            return;
        }
        let (old, new) = (self.base_epoch, floor.max(epoch - AGE_MAX / 2).min(epoch - 1));
        let moved = self.runs.iter().map(|&run| PageRun::unpack(run)).filter(|run| old.saturating_add(run.age) > floor);
        self.runs =
            moved.map(|run| PageRun { age: (old + run.age).saturating_sub(new).max(1), ..run }.pack()).collect();
        self.base_epoch = new;
    }

    /// Joins neighbours over the narrowest gaps until few enough runs are left.
    fn join_closest(&mut self) {
        let runs: Vec<PageRun> = self.runs.iter().map(|&run| PageRun::unpack(run)).collect();
        let mut gaps: Vec<(u32, usize)> =
            runs.iter().zip(runs.iter().skip(1)).map(|(a, b)| b.first - a.last).zip(1..).collect();
        gaps.sort_unstable();
        let joined: BTreeSet<usize> =
            gaps.into_iter().map(|(_, index)| index).take(runs.len() - RUNS_JOINED_TO).collect();
        let mut out: Vec<PageRun> = Vec::with_capacity(RUNS_JOINED_TO);
        for (index, run) in runs.into_iter().enumerate() {
            match out.last_mut() {
                Some(last) if joined.contains(&index) => (last.last, last.age) = (run.last, last.age.max(run.age)),
                _ => out.push(run),
            }
        }
        self.runs = Vec::with_capacity(RUNS_MAX);
        self.runs.extend(out.into_iter().map(PageRun::pack));
    }
}

/// Runs that become one where they touch and are of one age.
#[derive(Default)]
struct Joined {
    runs: Vec<PageRun>,
}

impl Joined {
    fn push(&mut self, run: PageRun) {
        match self.runs.last_mut() {
            Some(last) if last.age == run.age && last.last + 1 == run.first => last.last = run.last,
            _ => self.runs.push(run),
        }
    }

    /// Pages from `first` up to before `end`, if there are any.
    fn push_between(&mut self, first: u32, end: u32, age: u32) {
        if first < end {
            self.push(PageRun { first, last: end - 1, age });
        }
    }

    fn sorted(self) -> impl Iterator<Item = u32> {
        self.runs.into_iter().map(PageRun::pack)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    const PAGE: u64 = CHANGE_PAGE_BYTES;

    fn pages(map: &ChangeMap, epoch: u32) -> BTreeSet<u64> {
        map.since(epoch, u64::MAX / 2).into_iter().flatten().collect()
    }

    #[test]
    fn pages_are_known_by_their_last_change() {
        let mut map = ChangeMap::default();
        map.touch(0, 10 * PAGE, 1, 0);
        map.touch(3 * PAGE + 5, 4 * PAGE + 1, 2, 0);
        assert_eq!(pages(&map, 1), (3..5).collect());
        assert_eq!(pages(&map, 0), (0..10).collect());
        let known: BTreeSet<u64> = map.since(0, 2 * PAGE + 1).into_iter().flatten().collect();
        assert_eq!(known, (0..3).collect(), "not past the end of the file");
        assert_eq!(pages(&map, 2), BTreeSet::new());
        map.forget(1);
        assert_eq!(pages(&map, 0), (3..5).collect());
        map.touch(4094 * PAGE, 4098 * PAGE, 3, 1);
        assert_eq!(pages(&map, 2), (4094..4098).collect(), "across pieces");
    }

    #[test]
    fn what_is_written_again_in_an_epoch_changes_nothing() {
        let mut map = ChangeMap::default();
        map.touch(0, 4 * PAGE, 5, 0);
        assert_eq!(map.take_dirty().len(), 1);
        map.touch(PAGE, 3 * PAGE, 5, 0);
        map.touch(0, 4 * PAGE, 4, 0);
        assert!(!map.is_dirty());
    }

    #[test]
    fn memory_is_bounded_and_joining_only_widens() {
        let mut map = ChangeMap::default();
        for page in (0..4096).step_by(5) {
            map.touch(page * PAGE, page * PAGE + 1, 1, 0);
        }
        assert!(map.pieces[&0].runs.len() <= RUNS_MAX);
        let known = pages(&map, 0);
        assert!((0..4096).step_by(5).all(|page| known.contains(&page)));
        assert!(map.memory_bytes() <= 600, "{} bytes for 32 MiB", map.memory_bytes());
    }

    /// Two percent of the pages, as in the budget: nothing is widened.
    #[test]
    fn sparse_changes_stay_exact() {
        let mut map = ChangeMap::default();
        let touched: BTreeSet<u64> = (0..82).map(|n| n * 2654435761u64 % 4096).collect();
        for &page in &touched {
            map.touch(page * PAGE, page * PAGE + 1, 1, 0);
        }
        assert_eq!(pages(&map, 0), touched);
    }

    proptest! {
        /// Against an array of epochs: never less, and with few runs nothing more; through rows and back.
        #[test]
        fn agrees_with_an_array(touches in proptest::collection::vec((0..60u64, 1..12u64, 0..9u32), 1..50), jump in prop_oneof![Just(1u32), Just(100), Just(400)]) {
            let mut map = ChangeMap::default();
            let mut model = [0u32; 80];
            let mut epoch = 1;
            for (first, count, step) in touches {
                epoch += u32::from(step == 0) * jump;
                // Replay may touch with an epoch that is past.
                let at = if step == 8 { epoch.saturating_sub(1).max(1) } else { epoch };
                map.touch(first * PAGE, (first + count) * PAGE, at, 0);
                for page in first..first + count {
                    model[page as usize] = model[page as usize].max(at);
                }
                if step == 7 {
                    let mut loaded = ChangeMap::default();
                    for index in map.pieces.keys().copied().collect::<Vec<_>>() {
                        map.mark_dirty(index);
                    }
                    for (index, bytes) in map.take_dirty() {
                        loaded.load_piece(index, &bytes).unwrap();
                    }
                    map = loaded;
                }
                for since in [0, epoch.saturating_sub(1), epoch.saturating_sub(100), epoch] {
                    let known = pages(&map, since);
                    for page in 0..80u64 {
                        let changed = model[page as usize] > since;
                        prop_assert!(known.contains(&page) || !changed, "page {page} since {since} is missing");
                        prop_assert!(!known.contains(&page) || changed || jump > 1, "page {page} since {since} is not changed");
                        prop_assert_eq!(map.is_changed_in(since, page * PAGE, (page + 1) * PAGE), known.contains(&page));
                        let next = page + 3;
                        prop_assert_eq!(map.is_changed_in(since, page * PAGE, next * PAGE - 1), (page..next).any(|page| known.contains(&page)));
                    }
                }
            }
        }
    }
}

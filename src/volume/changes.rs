//! When the pages of a file changed last: what an incremental snapshot has to read, known without reading anything (R16).
//!
//! An epoch ends with every marker; a page carries the epoch of its last change. Kept as runs of pages with one epoch, four bytes each, in pieces
//! of 32 MiB of the file, and only for changes that some snapshot may still ask about. A piece with more than 128 runs has a bit for each page instead, 512 bytes for each of at
//! most two epochs: so 16 MiB of memory are enough for a TiB of file however it is written, and twice that while a snapshot of all of it is in the making. Where there are more epochs,
//! the older ones become one: too much may be called changed lately, never too little.

use crate::ondisk::bytes::Malformed;
use crate::ondisk::changes::{self, CHANGE_PAGE_BYTES, LAYER_WORDS, LAYERS_MAX, Layer, PIECE_PAGES, PageRun, Pages};
use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

const RUNS_MAX: usize = 128;
/// As few runs of a piece with layers are runs again.
const RUNS_AGAIN: usize = 64;
const AGE_MAX: u32 = 255;

struct Piece {
    base_epoch: u32,
    pages: Pages,
}

impl Default for Piece {
    fn default() -> Piece {
        Piece { base_epoch: 0, pages: Pages::Runs(Vec::new()) }
    }
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
            let within = |page: u64| u32::try_from(page - piece_start).unwrap_or(0);
            if piece.is_some_and(|piece| piece.is_changed_in(epoch, within(page), within(stop - 1))) {
                return true;
            }
            page = stop;
        }
        false
    }

    pub fn is_changed_since(&self, epoch: u32) -> bool {
        self.pieces.values().any(|piece| piece.is_changed_in(epoch, 0, PIECE_PAGES - 1))
    }

    /// Forgets what changed up to `floor`. Its rows in durable state are forgotten by whoever moves the floor.
    pub fn forget(&mut self, floor: u32) {
        self.pieces.retain(|_, piece| {
            piece.forget(floor);
            !piece.is_empty()
        });
    }

    pub fn load_piece(&mut self, index: u32, bytes: &[u8]) -> Result<(), Malformed> {
        let (base_epoch, pages) = changes::decode(bytes)?;
        self.pieces.insert(index, Piece { base_epoch, pages });
        Ok(())
    }

    /// The changed pieces as rows; they count as clean from now on.
    pub fn take_dirty(&mut self) -> Vec<(u32, Vec<u8>)> {
        let rows = std::mem::take(&mut self.dirty).into_iter().filter_map(|index| {
            let piece = self.pieces.get(&index)?;
            Some((index, changes::encode(piece.base_epoch, &piece.pages)))
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
        let of = |piece: &Piece| match &piece.pages {
            Pages::Runs(runs) => runs.capacity() * size_of::<u32>(),
            Pages::Layers(layers) => {
                layers.capacity() * size_of::<Layer>() + layers.len() * size_of::<[u64; LAYER_WORDS]>()
            }
        };
        self.pieces.values().map(|piece| size_of::<Piece>() + 16 + of(piece)).sum()
    }
}

/// Does a row of durable state tell of anything after `floor`? One that cannot be read is kept for whoever reads it to report.
pub fn row_is_needed(bytes: &[u8], floor: u32) -> bool {
    changes::decode(bytes).map_or(true, |(base, pages)| base.saturating_add(pages.age()) > floor)
}

impl Piece {
    fn is_empty(&self) -> bool {
        match &self.pages {
            Pages::Runs(runs) => runs.is_empty(),
            Pages::Layers(layers) => layers.is_empty(),
        }
    }

    /// Pages that changed after this epoch, in order.
    fn runs_after(&self, epoch: u32) -> Vec<PageRun> {
        let is_after = |age: u32| self.base_epoch.saturating_add(age) > epoch;
        match &self.pages {
            Pages::Runs(runs) => runs.iter().map(|&run| PageRun::unpack(run)).filter(|run| is_after(run.age)).collect(),
            Pages::Layers(layers) => {
                let mut joined = Joined::default();
                for page in 0..PIECE_PAGES {
                    // A page may be in both: the younger one counts.
                    if let Some(layer) = layers.iter().rev().find(|layer| has(layer, page))
                        && is_after(layer.age)
                    {
                        joined.push(PageRun { first: page, last: page, age: layer.age });
                    }
                }
                joined.runs
            }
        }
    }

    /// Did one of these pages change after this epoch?
    fn is_changed_in(&self, epoch: u32, first: u32, last: u32) -> bool {
        let is_after = |age: u32| self.base_epoch.saturating_add(age) > epoch;
        match &self.pages {
            Pages::Runs(runs) => {
                let from = runs.partition_point(|&run| PageRun::unpack(run).last < first);
                let here = runs.iter().skip(from).map(|&run| PageRun::unpack(run)).take_while(|run| run.first <= last);
                here.into_iter().any(|run| is_after(run.age))
            }
            Pages::Layers(layers) => layers
                .iter()
                .filter(|layer| is_after(layer.age))
                .any(|layer| (first..=last).any(|page| has(layer, page))),
        }
    }

    /// True if anything is different now.
    fn touch(&mut self, first: u32, last: u32, epoch: u32, floor: u32) -> bool {
        if self.is_known(first, last, epoch) {
            return false;
        }
        self.make_room_for(epoch, floor);
        let age = epoch.saturating_sub(self.base_epoch).clamp(1, AGE_MAX);
        match &mut self.pages {
            Pages::Runs(runs) => touch_runs(runs, first, last, age),
            Pages::Layers(layers) => touch_layers(layers, first, last, age),
        }
        // A touch adds two runs at most.
        let is_full = |pages: &Pages| matches!(pages, Pages::Runs(runs) if runs.len() + 2 > RUNS_MAX);
        if is_full(&self.pages) {
            self.forget(floor);
        }
        if is_full(&self.pages) {
            self.make_layers();
        }
        true
    }

    /// Is every page of the range known to have changed in `epoch` or later?
    fn is_known(&self, first: u32, last: u32, epoch: u32) -> bool {
        let is_late = |age: u32| self.base_epoch.saturating_add(age) >= epoch;
        match &self.pages {
            Pages::Runs(runs) => {
                let mut at = first;
                let from = runs.partition_point(|&run| PageRun::unpack(run).last < first);
                for run in runs.iter().skip(from).map(|&run| PageRun::unpack(run)) {
                    if run.first > at || !is_late(run.age) {
                        return false;
                    }
                    if run.last >= last {
                        return true;
                    }
                    at = run.last + 1;
                }
                false
            }
            Pages::Layers(layers) => {
                let is_late = |page| layers.iter().any(|layer| is_late(layer.age) && has(layer, page));
                (first..=last).all(is_late)
            }
        }
    }

    /// Drops what changed up to `floor`.
    fn forget(&mut self, floor: u32) {
        let base = self.base_epoch;
        match &mut self.pages {
            Pages::Runs(runs) => runs.retain(|&run| base.saturating_add(PageRun::unpack(run).age) > floor),
            Pages::Layers(layers) => layers.retain(|layer| base.saturating_add(layer.age) > floor),
        }
        if let Pages::Layers(layers) = &self.pages
            && runs_at_most(layers, RUNS_AGAIN)
        {
            self.pages = Pages::Runs(self.runs_after(floor).into_iter().map(PageRun::pack).collect());
        }
    }

    /// Ages are one byte: when `epoch` is too far from the base, the base moves up, and what is older than it counts as a little newer than it is.
    fn make_room_for(&mut self, epoch: u32, floor: u32) {
        if self.is_empty() {
            self.base_epoch = floor.max(epoch.saturating_sub(AGE_MAX / 2)).min(epoch.saturating_sub(1));
        }
        if epoch.saturating_sub(self.base_epoch) <= AGE_MAX {
            return;
        }
        let (old, new) = (self.base_epoch, floor.max(epoch - AGE_MAX / 2).min(epoch - 1));
        self.forget(floor);
        let moved = |age: u32| old.saturating_add(age).saturating_sub(new).max(1);
        match &mut self.pages {
            Pages::Runs(runs) => {
                for packed in runs.iter_mut() {
                    let run = PageRun::unpack(*packed);
                    *packed = PageRun { age: moved(run.age), ..run }.pack();
                }
            }
            Pages::Layers(layers) => {
                layers.iter_mut().for_each(|layer| layer.age = moved(layer.age));
                join_alike(layers);
            }
        }
        self.base_epoch = new;
    }

    /// From runs to a bit for each page: the youngest epoch by itself, all others as the youngest of them.
    fn make_layers(&mut self) {
        let Pages::Runs(runs) = &self.pages else { return };
        let runs: Vec<PageRun> = runs.iter().map(|&run| PageRun::unpack(run)).collect();
        let mut ages: Vec<u32> = runs.iter().map(|run| run.age).collect();
        ages.sort_unstable();
        ages.dedup();
        let first = ages.len().saturating_sub(LAYERS_MAX);
        let mut layers: Vec<Layer> = Vec::with_capacity(LAYERS_MAX);
        layers.extend(ages.iter().skip(first).map(|&age| Layer { age, bits: Box::new([0; LAYER_WORDS]) }));
        for run in runs {
            // What is older than all layers counts as changed in the oldest of them.
            let layer = layers.iter_mut().find(|layer| layer.age >= run.age);
            layer.into_iter().for_each(|layer| set(layer, run.first, run.last));
        }
        self.pages = Pages::Layers(layers);
    }
}

/// Pages changed at this age; what is younger stays so.
fn touch_runs(runs: &mut Vec<u32>, first: u32, last: u32, age: u32) {
    let run_at = |runs: &[u32], at: usize| runs.get(at).map(|&run| PageRun::unpack(run));
    // The neighbours are taken along, so that runs that touch become one.
    let from = runs.partition_point(|&run| PageRun::unpack(run).last < first).saturating_sub(1);
    let to = (runs.partition_point(|&run| PageRun::unpack(run).first <= last) + 1).min(runs.len());
    let mut joined = Joined::default();
    let mut at = first;
    for run in (from..to).filter_map(|index| run_at(runs, index)) {
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
    runs.splice(from..to, joined.sorted());
}

/// As [`touch_runs`]. Where there is a layer too many, the two oldest become one: what is in the older one counts as changed in the other.
fn touch_layers(layers: &mut Vec<Layer>, first: u32, last: u32, age: u32) {
    let at = layers.partition_point(|layer| layer.age < age);
    if layers.get(at).is_none_or(|layer| layer.age != age) {
        if at == 0 && layers.len() >= LAYERS_MAX {
            // Older than all that is known: as the oldest layer, then.
            layers.iter_mut().take(1).for_each(|oldest| set(oldest, first, last));
            return;
        }
        layers.insert(at, Layer { age, bits: Box::new([0; LAYER_WORDS]) });
    }
    layers.iter_mut().skip(at).take(1).for_each(|layer| set(layer, first, last));
    if layers.len() > LAYERS_MAX {
        let oldest = layers.remove(0);
        layers.iter_mut().take(1).for_each(|next| add(next, &oldest));
    }
}

/// Layers of one age become one.
fn join_alike(layers: &mut Vec<Layer>) {
    while let Some(at) = layers.windows(2).position(|pair| pair[0].age == pair[1].age) {
        let older = layers.remove(at);
        layers.iter_mut().skip(at).take(1).for_each(|layer| add(layer, &older));
    }
}

fn add(layer: &mut Layer, other: &Layer) {
    layer.bits.iter_mut().zip(other.bits.iter()).for_each(|(word, more)| *word |= more);
}

fn place_of(page: u32) -> (usize, u64) {
    (usize::try_from(page / 64).unwrap_or(usize::MAX), 1 << (page % 64))
}

fn has(layer: &Layer, page: u32) -> bool {
    let (word, bit) = place_of(page);
    layer.bits.get(word).is_some_and(|known| known & bit != 0)
}

fn set(layer: &mut Layer, first: u32, last: u32) {
    for page in first..=last {
        let (word, bit) = place_of(page);
        layer.bits.iter_mut().skip(word).take(1).for_each(|known| *known |= bit);
    }
}

/// Are there at most so many runs of pages?
fn runs_at_most(layers: &[Layer], most: usize) -> bool {
    let starts = |layer: &Layer| -> u32 {
        let before = |at: usize| at.checked_sub(1).and_then(|at| layer.bits.get(at)).map_or(0, |word| word >> 63);
        layer.bits.iter().enumerate().map(|(at, word)| (word & !(word << 1 | before(at))).count_ones()).sum()
    };
    let runs: u32 = layers.iter().map(starts).sum();
    usize::try_from(runs).unwrap_or(usize::MAX) <= most
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

    /// However many pages change in one epoch, none is widened: an index of which every tenth page is written must not be stored as a whole.
    #[test]
    fn dense_changes_stay_exact_in_bounded_memory() {
        let mut map = ChangeMap::default();
        let touched: BTreeSet<u64> = (0..4096).step_by(2).chain([4095]).collect();
        for &page in &touched {
            map.touch(page * PAGE, page * PAGE + 1, 1, 0);
        }
        assert_eq!(pages(&map, 0), touched);
        assert!(map.memory_bytes() <= 680, "{} bytes for 32 MiB", map.memory_bytes());
        // And while a snapshot is in the making.
        let later: BTreeSet<u64> = (0..4096).step_by(3).collect();
        for &page in &later {
            map.touch(page * PAGE, page * PAGE + 1, 2, 0);
        }
        assert_eq!(pages(&map, 1), later);
        assert_eq!(pages(&map, 0), &touched | &later);
        assert!(map.memory_bytes() <= 1200, "{} bytes for 32 MiB", map.memory_bytes());
        map.forget(1);
        assert_eq!(pages(&map, 0), later);
        // Of more epochs only the older ones are confused, and never called older than they are.
        for epoch in 3..9 {
            map.touch(u64::from(epoch) * PAGE, u64::from(epoch) * PAGE + 1, epoch, 1);
            assert_eq!(pages(&map, epoch - 1), [u64::from(epoch)].into());
        }
        assert!(pages(&map, 7).is_superset(&[8].into()) && pages(&map, 1).is_superset(&later));
        map.forget(9);
        assert!(map.pieces.is_empty());
    }

    #[test]
    fn few_pages_that_are_left_are_runs_again() {
        let mut map = ChangeMap::default();
        (0..4096).step_by(2).for_each(|page| map.touch(page * PAGE, page * PAGE + 1, 1, 0));
        map.touch(7 * PAGE, 9 * PAGE, 2, 0);
        map.forget(1);
        assert_eq!(pages(&map, 0), [7, 8].into());
        assert!(matches!(&map.pieces[&0].pages, Pages::Runs(runs) if runs.len() == 1));
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
        /// The same with more runs than a piece has room for: never less, and of the youngest two epochs nothing more.
        #[test]
        fn many_runs_agree_with_an_array(touches in proptest::collection::vec((0..400u64, 1..3u64, 0..30u32), 300..700), steps in 1..4u32) {
            let mut map = ChangeMap::default();
            let mut model = [0u32; 404];
            let mut epoch = 1;
            for (first, count, step) in touches {
                epoch += u32::from(step == 0 && epoch < 1 + steps);
                let at = if step == 1 { epoch.saturating_sub(1).max(1) } else { epoch };
                map.touch(first * PAGE, (first + count) * PAGE, at, 0);
                for page in first..first + count {
                    model[page as usize] = model[page as usize].max(at);
                }
                if step == 2 {
                    map.mark_dirty(0);
                    let mut loaded = ChangeMap::default();
                    for (index, bytes) in map.take_dirty() {
                        loaded.load_piece(index, &bytes).unwrap();
                    }
                    map = loaded;
                }
            }
            for since in 0..=epoch {
                let known = pages(&map, since);
                prop_assert_eq!(map.is_changed_since(since), !known.is_empty());
                for page in 0..404u64 {
                    let changed = model[page as usize] > since;
                    prop_assert!(known.contains(&page) || !changed, "page {page} since {since} is missing");
                    let exact = since + 1 >= epoch || since == 0;
                    prop_assert!(!known.contains(&page) || changed || !exact, "page {page} since {since} is not changed");
                    prop_assert_eq!(map.is_changed_in(since, page * PAGE, (page + 1) * PAGE), known.contains(&page));
                }
            }
        }

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
                    prop_assert_eq!(map.is_changed_since(since), !known.is_empty());
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

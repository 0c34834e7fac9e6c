//! What a file was at pending marks: bytes, size and time that newer changes have covered since.
//!
//! A layer belongs to a mark, and holds what was there before each change after it, the first change of a byte winning; a file gets its layer when it is first
//! changed after the mark, so that taking a mark costs nothing. A file as of a mark is the layer of that mark, over the layers of later marks, over the
//! file as it is now: what nobody changed is read from where it is. So the coalescer may go on applying the newest bytes to the base, as
//! long as it first saves what a layer still expects there (`Before::Base`): see [`super::preserve`].

use super::overlay::{Before, Extent, Ledger, Origin, Overlay};
use crate::ondisk::kept::KeptRow;
use crate::units::WallNs;

pub struct Layer {
    /// Of the mark: everything here is as it was at that mark, and at each earlier one that has no layer between.
    pub epoch: u32,
    pub size_bytes: u64,
    pub mtime: Option<WallNs>,
    pub kept: Overlay<Before>,
}

/// The layers of a file, ascending by epoch.
#[derive(Default)]
pub struct Layers {
    list: Vec<Layer>,
    /// Changed since the last checkpoint began.
    dirty: bool,
}

impl Layers {
    pub fn is_empty(&self) -> bool {
        self.list.is_empty()
    }

    /// 0 when there is none.
    pub fn newest_epoch(&self) -> u32 {
        self.list.last().map_or(0, |layer| layer.epoch)
    }

    /// Begins the layer of the newest mark.
    pub fn begin(&mut self, epoch: u32, size_bytes: u64, mtime: Option<WallNs>) {
        self.dirty = true;
        self.list.push(Layer { epoch, size_bytes, mtime, kept: Overlay::default() });
    }

    pub fn newest(&mut self) -> Option<&mut Layer> {
        self.dirty = true;
        self.list.last_mut()
    }

    /// The layer of exactly this mark.
    pub fn of(&mut self, epoch: u32) -> Option<&mut Layer> {
        let at = self.list.binary_search_by_key(&epoch, |layer| layer.epoch).ok()?;
        self.dirty = true;
        self.list.get_mut(at)
    }

    pub fn is_dirty(&self) -> bool {
        self.dirty
    }

    pub fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// All layers as rows, by epoch, if any has changed; they count as clean from now on.
    /// `removed`: the file itself is gone.
    pub fn take_dirty(&mut self, removed: bool) -> Option<Vec<(u32, Vec<u8>)>> {
        let row = |layer: &Layer| {
            let extents = layer.kept.iter().map(|kept| (kept.start, kept.end, kept.source.pack())).collect();
            let row = KeptRow { size_bytes: layer.size_bytes, mtime: layer.mtime, removed, extents };
            (layer.epoch, row.encode())
        };
        std::mem::take(&mut self.dirty).then(|| self.list.iter().map(row).collect())
    }

    /// The layers that a view as of `epoch` goes through, first the one that wins.
    pub fn from(&self, epoch: u32) -> &[Layer] {
        let first = self.list.partition_point(|layer| layer.epoch < epoch);
        self.list.get(first..).unwrap_or_default()
    }

    pub fn iter(&self) -> impl Iterator<Item = &Layer> {
        self.list.iter()
    }

    /// The largest size that any layer or the file itself has: bytes of the base beyond it are needed by nobody.
    pub fn size_needed(&self, size_bytes: u64) -> u64 {
        self.list.iter().map(|layer| layer.size_bytes).fold(size_bytes, u64::max)
    }

    /// Ranges inside `pieces` that layers still expect in the base: epoch of the layer, first byte, end.
    pub fn expected_in_base<O>(&self, pieces: &[Extent<O>]) -> Vec<(u32, u64, u64)> {
        let mut ranges = Vec::new();
        for layer in &self.list {
            for piece in pieces {
                let kept = layer.kept.range(piece.start, piece.end).filter(|kept| kept.source == Before::Base);
                ranges.extend(kept.map(|kept| (layer.epoch, kept.start, kept.end)));
            }
        }
        ranges
    }

    /// What layers expect in the base between `start` and `end` is at `instead` from now on.
    pub fn replace_base(&mut self, start: u64, end: u64, instead: Before, ledger: &mut impl Ledger<Before>) {
        let epochs: Vec<u32> = self.list.iter().map(|layer| layer.epoch).collect();
        for epoch in epochs {
            self.replace_base_of(epoch, start, end, instead, ledger);
        }
    }

    /// As [`Layers::replace_base`], for the layer of one mark.
    pub fn replace_base_of(
        &mut self,
        epoch: u32,
        start: u64,
        end: u64,
        instead: Before,
        ledger: &mut impl Ledger<Before>,
    ) {
        if let Some(layer) = self.of(epoch) {
            let of_base: Vec<Extent<Before>> =
                layer.kept.range(start, end).filter(|kept| kept.source == Before::Base).collect();
            for kept in of_base {
                let whole = Extent { start, end, source: instead };
                if let Some(part) = whole.clipped(kept.start, kept.end) {
                    layer.kept.insert(part, ledger);
                }
            }
        }
    }

    /// What the layer of `epoch` has from the log at exactly `kept` is at `instead` from now on, where it still is so.
    pub fn replace_log(&mut self, epoch: u32, kept: &Extent<Before>, instead: u64, ledger: &mut impl Ledger<Before>) {
        if let Some(layer) = self.of(epoch) {
            let same: Vec<Extent<Before>> = layer.kept.same(kept).collect();
            for piece in same {
                let source = Before::Staged(instead + (piece.start - kept.start));
                layer.kept.insert(Extent { source, ..piece }, ledger);
            }
        }
    }

    /// The mark of `epoch` needs nothing any more; `pending` are those that do, ascending. What an earlier one still sees through this layer goes to it.
    pub fn end(&mut self, epoch: u32, pending: &[u32], ledger: &mut impl Ledger<Before>) {
        let Ok(at) = self.list.binary_search_by_key(&epoch, |layer| layer.epoch) else { return };
        self.dirty = true;
        let below = at.checked_sub(1).and_then(|below| self.list.get(below)).map_or(0, |layer| layer.epoch);
        let heir = pending.iter().rev().copied().find(|&mark| mark > below && mark < epoch);
        if let (Some(heir), Some(layer)) = (heir, self.list.get_mut(at)) {
            layer.epoch = heir;
            return;
        }
        let ended = self.list.remove(at);
        let needed = pending.iter().any(|&mark| mark <= below);
        if let (true, Some(layer)) = (needed, at.checked_sub(1).and_then(|below| self.list.get_mut(below))) {
            for kept in ended.kept.iter() {
                // The earlier mark sees no more than its own size.
                if let Some(kept) = kept.clipped(0, layer.size_bytes) {
                    layer.kept.insert_beneath(kept, ledger);
                }
            }
        }
        // Only now, so that a segment in use never looks unused in between.
        for kept in ended.kept.iter() {
            ledger.removed(&kept);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    const LEN: usize = 120;

    #[derive(Default)]
    struct Pins(HashMap<u64, i64>);
    impl Ledger<Before> for Pins {
        fn added(&mut self, extent: &Extent<Before>) {
            if let Before::Log(address) = extent.source {
                *self.0.entry(address / 1000).or_default() += i64::try_from(extent.len()).unwrap();
            }
        }
        fn removed(&mut self, extent: &Extent<Before>) {
            if let Before::Log(address) = extent.source {
                *self.0.entry(address / 1000).or_default() -= i64::try_from(extent.len()).unwrap();
            }
        }
    }

    /// A byte: which record, and which byte of it.
    type Byte = u64;

    #[derive(Clone, Debug)]
    enum Op {
        Change(usize, usize),
        Mark,
        EndNth(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            6 => (0..100usize, 1..20usize).prop_map(|(at, len)| Op::Change(at, len)),
            1 => Just(Op::Mark),
            1 => (0..4usize).prop_map(Op::EndNth),
        ]
    }

    /// As of each pending mark, byte for byte; `live` is what is there now.
    fn view(layers: &Layers, epoch: u32, live: &[Byte]) -> Vec<Byte> {
        let mut out: Vec<Option<Byte>> = vec![None; LEN];
        for layer in layers.from(epoch) {
            for kept in layer.kept.iter() {
                for at in kept.start..kept.end {
                    let Before::Log(address) = kept.source.advanced_by(at - kept.start) else {
                        panic!("only log here")
                    };
                    out[at as usize].get_or_insert(address);
                }
            }
        }
        out.iter().zip(live).map(|(kept, &live)| kept.unwrap_or(live)).collect()
    }

    trait AdvancedBy {
        fn advanced_by(self, bytes: u64) -> Self;
    }
    impl AdvancedBy for Before {
        fn advanced_by(self, bytes: u64) -> Before {
            Extent { start: 0, end: bytes + 1, source: self }.clipped(bytes, bytes + 1).expect("not empty").source
        }
    }

    proptest! {
        /// I6: whatever marks begin and end in between, each pending one sees what was there at its moment; and nothing stays pinned.
        #[test]
        fn every_mark_sees_its_moment(ops in proptest::collection::vec(op(), 1..80)) {
            let mut live: Vec<Byte> = (0..LEN as u64).map(|at| 1_000_000 + at).collect();
            let (mut layers, mut pins) = (Layers::default(), Pins::default());
            let mut marks: Vec<(u32, Vec<Byte>)> = Vec::new();
            let mut epoch = 0;
            for (n, op) in ops.iter().enumerate() {
                match *op {
                    Op::Change(at, len) => {
                        if let Some((newest, _)) = marks.last() {
                            if layers.newest_epoch() < *newest {
                                layers.begin(*newest, LEN as u64, None);
                            }
                            let layer = layers.newest().unwrap();
                            for (byte, &was) in (at as u64..).zip(&live[at..at + len]) {
                                let extent = Extent { start: byte, end: byte + 1, source: Before::Log(was) };
                                layer.kept.insert_beneath(extent, &mut pins);
                            }
                        }
                        for (byte, now) in live[at..at + len].iter_mut().zip((n as u64 + 1) * 1000..) {
                            *byte = now;
                        }
                    }
                    Op::Mark => {
                        epoch += 1;
                        marks.push((epoch, live.clone()));
                    }
                    Op::EndNth(nth) if !marks.is_empty() => {
                        let (ended, _) = marks.remove(nth % marks.len());
                        let pending: Vec<u32> = marks.iter().map(|(epoch, _)| *epoch).collect();
                        layers.end(ended, &pending, &mut pins);
                    }
                    Op::EndNth(_) => {}
                }
                for (epoch, then) in &marks {
                    prop_assert_eq!(&view(&layers, *epoch, &live), then);
                }
                let mut weights: HashMap<u64, i64> = HashMap::new();
                for kept in layers.iter().flat_map(|layer| layer.kept.iter()) {
                    let Before::Log(address) = kept.source else { panic!("only log here") };
                    *weights.entry(address / 1000).or_default() += i64::try_from(kept.len()).unwrap();
                }
                pins.0.retain(|_, weight| *weight != 0);
                prop_assert_eq!(&weights, &pins.0);
                prop_assert!(!marks.is_empty() || layers.is_empty());
            }
        }
    }

    #[test]
    fn what_is_expected_in_the_base_is_found_and_replaced() {
        let (mut layers, mut pins) = (Layers::default(), Pins::default());
        layers.begin(1, 100, None);
        let base = |start, end| Extent { start, end, source: Before::Base };
        layers.newest().expect("begun").kept.insert(base(10, 30), &mut pins);
        layers.newest().expect("begun").kept.insert(base(40, 50), &mut pins);
        let pieces =
            [Extent { start: 0, end: 20, source: Before::Zeros }, Extent { start: 25, end: 45, source: Before::Zeros }];
        assert_eq!(layers.expected_in_base(&pieces), [(1, 10, 20), (1, 25, 30), (1, 40, 45)]);
        layers.replace_base(10, 20, Before::Staged(500), &mut pins);
        let kept: Vec<_> = layers.iter().flat_map(|layer| layer.kept.iter()).collect();
        assert_eq!(kept[0], Extent { start: 10, end: 20, source: Before::Staged(500) });
        assert_eq!(layers.expected_in_base(&pieces), [(1, 25, 30), (1, 40, 45)]);
    }
}

//! The overlay: which bytes of a file are newer in the log than in its base.
//!
//! Extents never overlap; an insertion cuts what it covers. An extent either points at payload in the log or says "zeros".
//! Memory: 24 bytes of entry plus the tree's own third, for 8 KiB pages about 16 bytes per 4 KiB page.

use std::collections::BTreeMap;

const ZERO_BIT: u64 = 1 << 63;

/// Where the bytes of an extent are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Source {
    /// Payload at this log address (of the extent's first byte).
    Log(u64),
    /// Zeros, since the record with this LSN.
    Zeros(u64),
}

impl Source {
    /// An address that belongs to the segment, and to the group, that the extent needs.
    pub fn address(self) -> u64 {
        match self {
            Source::Log(address) | Source::Zeros(address) => address,
        }
    }

    fn advanced(self, bytes: u64) -> Source {
        match self {
            Source::Log(address) => Source::Log(address + bytes),
            zeros => zeros,
        }
    }
}

#[derive(Clone, Copy)]
struct Packed {
    end: u64,
    source: u64,
}

/// A piece of the overlay.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Extent {
    pub start: u64,
    pub end: u64,
    pub source: Source,
}

impl Extent {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// What an extent holds back in its segment: bytes of payload, or one for a run of zeros.
    pub fn weight(&self) -> u64 {
        match self.source {
            Source::Log(_) => self.len(),
            Source::Zeros(_) => 1,
        }
    }

    /// The part inside `start..end`, if any.
    pub fn clipped(&self, start: u64, end: u64) -> Option<Extent> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        (from < to).then(|| Extent { start: from, end: to, source: self.source.advanced(from - self.start) })
    }
}

/// Hears which extents come and go, to keep count of what each log segment still holds.
pub trait Ledger {
    fn added(&mut self, extent: &Extent);
    fn removed(&mut self, extent: &Extent);
}

#[derive(Default)]
pub struct Overlay {
    extents: BTreeMap<u64, Packed>,
}

impl Overlay {
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// The extents that touch `start..end`, clipped to it, in order.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = Extent> + '_ {
        let before = self.extents.range(..start).next_back().map(|(&s, &p)| unpack(s, p));
        before
            .into_iter()
            .chain(self.extents.range(start..end.max(start)).map(|(&s, &p)| unpack(s, p)))
            .filter_map(move |extent| extent.clipped(start, end))
    }

    /// All extents.
    pub fn iter(&self) -> impl Iterator<Item = Extent> + '_ {
        self.extents.iter().map(|(&s, &p)| unpack(s, p))
    }

    /// Lays an extent over everything there.
    pub fn insert(&mut self, extent: Extent, ledger: &mut impl Ledger) {
        if extent.is_empty() {
            return;
        }
        self.cut(extent.start, extent.end, ledger);
        self.put(extent, ledger);
    }

    /// Lays an extent under everything there: only gaps are filled. For extents that are older than all others.
    pub fn insert_beneath(&mut self, extent: Extent, ledger: &mut impl Ledger) {
        let covered: Vec<Extent> = self.range(extent.start, extent.end).collect();
        let mut at = extent.start;
        for cover in covered.iter().copied().chain(std::iter::once(Extent { start: extent.end, ..extent })) {
            if let Some(gap) = extent.clipped(at, cover.start) {
                self.put(gap, ledger);
            }
            at = cover.end;
        }
    }

    /// Takes away what is left of `extent` exactly as it was: parts that something newer covers meanwhile stay.
    pub fn remove_same(&mut self, extent: &Extent, ledger: &mut impl Ledger) {
        let same: Vec<Extent> = self
            .range(extent.start, extent.end)
            .filter(|piece| piece.source == extent.source.advanced(piece.start - extent.start))
            .collect();
        for piece in same {
            self.cut(piece.start, piece.end, ledger);
        }
    }

    /// Takes away everything in `start..end`.
    pub fn cut(&mut self, start: u64, end: u64, ledger: &mut impl Ledger) {
        let mut first = self.extents.range(..start).next_back().map(|(&s, &p)| unpack(s, p)).filter(|e| e.end > start);
        loop {
            let Some(found) =
                first.take().or_else(|| self.extents.range(start..end).next().map(|(&s, &p)| unpack(s, p)))
            else {
                return;
            };
            self.extents.remove(&found.start);
            // What is left is counted before what was there is discounted, so that a segment in use never looks unused in between.
            if let Some(left) = found.clipped(found.start, start) {
                self.put(left, ledger);
            }
            let right = found.clipped(end, found.end);
            if let Some(right) = right {
                self.put(right, ledger);
            }
            ledger.removed(&found);
            if right.is_some() {
                return;
            }
        }
    }

    fn put(&mut self, extent: Extent, ledger: &mut impl Ledger) {
        ledger.added(&extent);
        let source = match extent.source {
            Source::Log(address) => address,
            Source::Zeros(address) => address | ZERO_BIT,
        };
        self.extents.insert(extent.start, Packed { end: extent.end, source });
    }
}

fn unpack(start: u64, packed: Packed) -> Extent {
    let source = if packed.source & ZERO_BIT == 0 {
        Source::Log(packed.source)
    } else {
        Source::Zeros(packed.source & !ZERO_BIT)
    };
    Extent { start, end: packed.end, source }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::HashMap;

    #[derive(Default)]
    struct Weights(HashMap<u64, i64>);
    impl Ledger for Weights {
        fn added(&mut self, extent: &Extent) {
            *self.0.entry(extent.source.address() / 1000).or_default() += i64::try_from(extent.weight()).unwrap();
        }
        fn removed(&mut self, extent: &Extent) {
            *self.0.entry(extent.source.address() / 1000).or_default() -= i64::try_from(extent.weight()).unwrap();
        }
    }

    #[derive(Clone, Debug)]
    enum Op {
        Insert(u64, u64, bool),
        Beneath(u64, u64),
        Cut(u64, u64),
        RemoveNth(usize),
    }

    fn op() -> impl Strategy<Value = Op> {
        prop_oneof![
            4 => (0..100u64, 1..40u64, any::<bool>()).prop_map(|(a, l, z)| Op::Insert(a, l, z)),
            1 => (0..100u64, 1..60u64).prop_map(|(a, l)| Op::Beneath(a, l)),
            1 => (0..100u64, 1..40u64).prop_map(|(a, l)| Op::Cut(a, l)),
            2 => (0..200usize).prop_map(Op::RemoveNth),
        ]
    }

    proptest! {
        /// Byte for byte the same as an array of "which source, which byte of it", and the ledger never drifts.
        #[test]
        fn agrees_with_a_byte_array(ops in proptest::collection::vec(op(), 1..60)) {
            let mut model: Vec<Option<(u64, bool)>> = vec![None; 200];
            let mut overlay = Overlay::default();
            let mut ledger = Weights::default();
            let mut inserted = Vec::new();
            for (n, op) in ops.iter().enumerate() {
                let base = (n as u64 + 1) * 1000;
                match *op {
                    Op::Insert(start, len, zeros) => {
                        let source = if zeros { Source::Zeros(base) } else { Source::Log(base) };
                        let extent = Extent { start, end: start + len, source };
                        overlay.insert(extent, &mut ledger);
                        inserted.push(extent);
                        for at in start..start + len {
                            model[at as usize] = Some((if zeros { base } else { base + at - start }, zeros));
                        }
                    }
                    Op::Beneath(start, len) => {
                        overlay.insert_beneath(Extent { start, end: start + len, source: Source::Log(base) }, &mut ledger);
                        for at in start..start + len {
                            model[at as usize].get_or_insert((base + at - start, false));
                        }
                    }
                    Op::Cut(start, len) => {
                        overlay.cut(start, start + len, &mut ledger);
                        model[start as usize..(start + len) as usize].fill(None);
                    }
                    Op::RemoveNth(n) if !inserted.is_empty() => {
                        let extent = inserted[n % inserted.len()];
                        overlay.remove_same(&extent, &mut ledger);
                        for at in extent.start..extent.end {
                            let was = match extent.source {
                                Source::Log(address) => (address + at - extent.start, false),
                                Source::Zeros(address) => (address, true),
                            };
                            if model[at as usize] == Some(was) {
                                model[at as usize] = None;
                            }
                        }
                    }
                    Op::RemoveNth(_) => {}
                }
                let mut seen = vec![None; 200];
                let mut weights: HashMap<u64, i64> = HashMap::new();
                for extent in overlay.iter() {
                    *weights.entry(extent.source.address() / 1000).or_default() += i64::try_from(extent.weight()).unwrap();
                    for at in extent.start..extent.end {
                        prop_assert!(seen[at as usize].is_none(), "extents overlap");
                        seen[at as usize] = Some(match extent.source {
                            Source::Log(address) => (address + at - extent.start, false),
                            Source::Zeros(address) => (address, true),
                        });
                    }
                }
                prop_assert_eq!(&seen, &model);
                ledger.0.retain(|_, weight| *weight != 0);
                prop_assert_eq!(&weights, &ledger.0);
            }
        }
    }
}

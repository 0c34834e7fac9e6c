//! The overlay: which bytes of a file are newer in the log than in its base.
//!
//! Extents never overlap; an insertion cuts what it covers. An extent either points at payload in the log or says "zeros".
//! Memory: 24 bytes of entry plus the tree's own third, for 8 KiB pages about 16 bytes per 4 KiB page.

use std::collections::BTreeMap;
use std::marker::PhantomData;

const ZERO_BIT: u64 = 1 << 63;
const BASE_BIT: u64 = 1 << 62;

/// Where the bytes of an extent come from, in one number.
pub trait Origin: Copy + PartialEq {
    /// The origin of the byte that lies this far behind.
    fn advanced(self, bytes: u64) -> Self;
    fn pack(self) -> u64;
    fn unpack(packed: u64) -> Self;
}

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
}

impl Origin for Source {
    fn advanced(self, bytes: u64) -> Source {
        match self {
            Source::Log(address) => Source::Log(address + bytes),
            zeros => zeros,
        }
    }

    fn pack(self) -> u64 {
        match self {
            Source::Log(address) => address,
            Source::Zeros(address) => address | ZERO_BIT,
        }
    }

    fn unpack(packed: u64) -> Source {
        match packed & ZERO_BIT {
            0 => Source::Log(packed),
            _ => Source::Zeros(packed & !ZERO_BIT),
        }
    }
}

/// Where bytes as of a mark are that newer ones have covered since (see [`super::layers`]).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Before {
    /// Payload at this log address.
    Log(u64),
    Zeros,
    /// Still in the base, wherever the map says that it lies.
    Base,
    /// At this address of the staging files, where they went before the base or the log lost them.
    Staged(u64),
}

impl Origin for Before {
    fn advanced(self, bytes: u64) -> Before {
        match self {
            Before::Log(address) => Before::Log(address + bytes),
            Before::Staged(address) => Before::Staged(address + bytes),
            same => same,
        }
    }

    fn pack(self) -> u64 {
        match self {
            Before::Log(address) => address,
            Before::Zeros => ZERO_BIT,
            Before::Base => BASE_BIT,
            Before::Staged(address) => address | ZERO_BIT | BASE_BIT,
        }
    }

    fn unpack(packed: u64) -> Before {
        match (packed & ZERO_BIT != 0, packed & BASE_BIT != 0) {
            (false, false) => Before::Log(packed),
            (true, false) => Before::Zeros,
            (false, true) => Before::Base,
            (true, true) => Before::Staged(packed & !(ZERO_BIT | BASE_BIT)),
        }
    }
}

impl From<Source> for Before {
    fn from(source: Source) -> Before {
        match source {
            Source::Log(address) => Before::Log(address),
            Source::Zeros(_) => Before::Zeros,
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
pub struct Extent<O = Source> {
    pub start: u64,
    pub end: u64,
    pub source: O,
}

impl Extent {
    /// What an extent holds back in its segment: bytes of payload, or one for a run of zeros.
    pub fn weight(&self) -> u64 {
        match self.source {
            Source::Log(_) => self.len(),
            Source::Zeros(_) => 1,
        }
    }
}

impl<O: Origin> Extent<O> {
    pub fn len(&self) -> u64 {
        self.end - self.start
    }

    pub fn is_empty(&self) -> bool {
        self.start >= self.end
    }

    /// The part inside `start..end`, if any.
    pub fn clipped(&self, start: u64, end: u64) -> Option<Extent<O>> {
        let (from, to) = (self.start.max(start), self.end.min(end));
        (from < to).then(|| Extent { start: from, end: to, source: self.source.advanced(from - self.start) })
    }
}

/// Hears which extents come and go, to keep count of what each log segment still holds.
pub trait Ledger<O = Source> {
    fn added(&mut self, extent: &Extent<O>);
    fn removed(&mut self, extent: &Extent<O>);
}

pub struct Overlay<O = Source> {
    extents: BTreeMap<u64, Packed>,
    origin: PhantomData<O>,
}

impl<O> Default for Overlay<O> {
    fn default() -> Overlay<O> {
        Overlay { extents: BTreeMap::new(), origin: PhantomData }
    }
}

impl<O: Origin> Overlay<O> {
    pub fn is_empty(&self) -> bool {
        self.extents.is_empty()
    }

    pub fn len(&self) -> usize {
        self.extents.len()
    }

    /// The extents that touch `start..end`, clipped to it, in order.
    pub fn range(&self, start: u64, end: u64) -> impl Iterator<Item = Extent<O>> + '_ {
        let before = self.extents.range(..start).next_back().map(|(&s, &p)| unpack(s, p));
        before
            .into_iter()
            .chain(self.extents.range(start..end.max(start)).map(|(&s, &p)| unpack(s, p)))
            .filter_map(move |extent| extent.clipped(start, end))
    }

    /// All extents.
    pub fn iter(&self) -> impl Iterator<Item = Extent<O>> + '_ {
        self.extents.iter().map(|(&s, &p)| unpack(s, p))
    }

    /// Lays an extent over everything there.
    pub fn insert(&mut self, extent: Extent<O>, ledger: &mut impl Ledger<O>) {
        if extent.is_empty() {
            return;
        }
        self.cut(extent.start, extent.end, ledger);
        self.put(extent, ledger);
    }

    /// Lays an extent under everything there: only gaps are filled. For extents that are older than all others.
    pub fn insert_beneath(&mut self, extent: Extent<O>, ledger: &mut impl Ledger<O>) {
        let covered: Vec<Extent<O>> = self.range(extent.start, extent.end).collect();
        let mut at = extent.start;
        for cover in covered.iter().copied().chain(std::iter::once(Extent { start: extent.end, ..extent })) {
            if let Some(gap) = extent.clipped(at, cover.start) {
                self.put(gap, ledger);
            }
            at = cover.end;
        }
    }

    /// What of `start..end` no extent covers, in order.
    pub fn gaps(&self, start: u64, end: u64) -> Vec<(u64, u64)> {
        let mut gaps = Vec::new();
        let mut at = start;
        for extent in self.range(start, end) {
            if at < extent.start {
                gaps.push((at, extent.start));
            }
            at = extent.end;
        }
        if at < end {
            gaps.push((at, end));
        }
        gaps
    }

    /// What is left of `extent` exactly as it was: parts that something newer covers are passed over.
    pub fn same(&self, extent: &Extent<O>) -> impl Iterator<Item = Extent<O>> + '_ {
        let extent = *extent;
        self.range(extent.start, extent.end)
            .filter(move |piece| piece.source == extent.source.advanced(piece.start - extent.start))
    }

    /// Takes away what is left of `extent` exactly as it was: parts that something newer covers meanwhile stay.
    pub fn remove_same(&mut self, extent: &Extent<O>, ledger: &mut impl Ledger<O>) {
        let same: Vec<Extent<O>> = self.same(extent).collect();
        for piece in same {
            self.cut(piece.start, piece.end, ledger);
        }
    }

    /// Takes away everything in `start..end`.
    pub fn cut(&mut self, start: u64, end: u64, ledger: &mut impl Ledger<O>) {
        let mut first: Option<Extent<O>> =
            self.extents.range(..start).next_back().map(|(&s, &p)| unpack(s, p)).filter(|e: &Extent<O>| e.end > start);
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

    fn put(&mut self, extent: Extent<O>, ledger: &mut impl Ledger<O>) {
        ledger.added(&extent);
        self.extents.insert(extent.start, Packed { end: extent.end, source: extent.source.pack() });
    }
}

fn unpack<O: Origin>(start: u64, packed: Packed) -> Extent<O> {
    Extent { start, end: packed.end, source: O::unpack(packed.source) }
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

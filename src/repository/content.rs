//! The content of one file as a tree, whose unchanged parts snapshots share.
//!
//! A file is cut into slots of 64 KiB, 64 slots make a leaf (4 MiB), 64 leaves or inner nodes an inner node: level 1 spans 256 MiB,
//! level 2 16 GiB, level 7 all that 63 bits can say. A tree is as tall as its last byte demands; subtrees of nothing but holes are absent.
//!
//! A slot is a base and pages over it. The base is what was stored when the slot was written whole: one object of up to 64 KiB. Pages that changed
//! since are objects of their own: identity per page, without the 58 bytes of a clean page in each leaf. When every page has been replaced,
//! the base is left out. Depth is one, so restoring never walks a chain. `valid` says how many bytes of an object still count, so that cutting a
//! file needs no byte of it; what lies beyond reads as zero.
//!
//! Leaf: `L`, version 1, count of slots u8, zero u8; per slot: number u8, base piece, count of pages u8, per page: number u8, piece.
//! Piece: 0 hole; 1 zeros; 2 then object reference (52) and valid bytes u32.
//! Inner node: `I`, version 1, level u8, count u8; per child: number u8, object reference (52).

use super::ids::ObjectRef;
use crate::ondisk::bytes::{Malformed, Reader};
use std::collections::BTreeMap;

/// Bytes of a slot.
pub const SLOT_BYTES: u64 = 64 * 1024;
const LEAF_SLOTS: u64 = 64;
const FANOUT: u64 = 64;
/// Bytes of a file that one leaf spans.
pub const LEAF_BYTES: u64 = SLOT_BYTES * LEAF_SLOTS;
/// Levels above the leaves that offsets of 63 bits can need.
pub const LEVEL_MAX: u8 = 7;

/// Where bytes of a slot come from.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Piece {
    /// Never written, or punched.
    Hole,
    /// Written, and nothing but zeros.
    Zero,
    /// The first `valid` bytes of an object; zeros behind them.
    Data { object: ObjectRef, valid: u32 },
}

/// One slot: pages win over the base.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Slot {
    pub base: Piece,
    /// By number of the page in the slot.
    pub pages: BTreeMap<u8, Piece>,
}

/// Slots by number; those that are absent are holes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Leaf {
    pub slots: BTreeMap<u8, Slot>,
}

/// Children by number; those that are absent are holes.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Inner {
    pub level: u8,
    pub children: BTreeMap<u8, ObjectRef>,
}

/// Bytes that a node of this level spans; level 0 is a leaf.
pub fn span(level: u8) -> u64 {
    LEAF_BYTES.saturating_mul(FANOUT.saturating_pow(u32::from(level)))
}

/// The lowest level whose root spans a file of this size.
pub fn level_of(size: u64) -> u8 {
    (0..LEVEL_MAX).find(|level| span(*level) >= size).unwrap_or(LEVEL_MAX)
}

impl Slot {
    pub const HOLE: Slot = Slot { base: Piece::Hole, pages: BTreeMap::new() };

    pub fn is_hole(&self) -> bool {
        self.base == Piece::Hole && self.pages.values().all(|piece| *piece == Piece::Hole)
    }

    /// Leaves out what pages hide: a base that shows nowhere, pages that say what the base says.
    pub fn tidy(&mut self, pages_per_slot: u8) {
        if self.pages.len() == usize::from(pages_per_slot) {
            let all = |piece: Piece| self.pages.values().all(|page| *page == piece);
            let base = if all(Piece::Zero) { Piece::Zero } else { Piece::Hole };
            self.base = base;
        }
        let base = self.base;
        if matches!(base, Piece::Hole | Piece::Zero) {
            self.pages.retain(|_, piece| *piece != base);
        }
    }

    /// Forgets everything at and beyond this offset in the slot.
    pub fn cut(&mut self, keep: u32, page_bytes: u32) {
        self.base = cut_piece(self.base, keep);
        let first_gone = keep.div_ceil(page_bytes);
        self.pages.retain(|page, _| u32::from(*page) < first_gone);
        if let (Some(within), Ok(page)) = (keep.checked_rem(page_bytes), u8::try_from(keep / page_bytes))
            && within > 0
            && let Some(piece) = self.pages.get_mut(&page)
        {
            *piece = cut_piece(*piece, within);
        }
        // Zeros that were written beyond the cut are gone too, so they count as written only where something is left.
        if keep == 0 {
            self.base = Piece::Hole;
        }
    }

    /// All objects the slot refers to.
    pub fn objects(&self) -> impl Iterator<Item = ObjectRef> + '_ {
        std::iter::once(&self.base).chain(self.pages.values()).filter_map(|piece| match piece {
            Piece::Data { object, .. } => Some(*object),
            Piece::Hole | Piece::Zero => None,
        })
    }
}

fn cut_piece(piece: Piece, keep: u32) -> Piece {
    match piece {
        Piece::Data { object, valid } if keep > 0 => Piece::Data { object, valid: valid.min(keep) },
        Piece::Data { .. } => Piece::Hole,
        other => other,
    }
}

impl Leaf {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![b'L', 1, count(self.slots.len()), 0];
        for (number, slot) in &self.slots {
            out.push(*number);
            put_piece(&mut out, slot.base);
            out.push(count(slot.pages.len()));
            for (page, piece) in &slot.pages {
                out.push(*page);
                put_piece(&mut out, *piece);
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Leaf, Malformed> {
        let mut r = Reader::new(bytes);
        let [kind, version, slots, zero] = r.array()?;
        if (kind, version, zero) != (b'L', 1, 0) {
            return Err(Malformed("no leaf of a version that this program knows"));
        }
        let mut leaf = Leaf::default();
        for _ in 0..slots {
            let (number, base, pages) = (r.u8()?, take_piece(&mut r)?, r.u8()?);
            let page = |r: &mut Reader<'_>| Ok((r.u8()?, take_piece(r)?));
            let pages = (0..pages).map(|_| page(&mut r)).collect::<Result<_, Malformed>>()?;
            if u64::from(number) >= LEAF_SLOTS || leaf.slots.insert(number, Slot { base, pages }).is_some() {
                return Err(Malformed("a slot that a leaf cannot have"));
            }
        }
        if r.remaining() == 0 { Ok(leaf) } else { Err(Malformed("bytes behind the end of a leaf")) }
    }
}

impl Inner {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![b'I', 1, self.level, count(self.children.len())];
        for (number, child) in &self.children {
            out.push(*number);
            child.put(&mut out);
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Inner, Malformed> {
        let mut r = Reader::new(bytes);
        let [kind, version, level, count] = r.array()?;
        if (kind, version) != (b'I', 1) || level == 0 || level > LEVEL_MAX {
            return Err(Malformed("no inner node of a version that this program knows"));
        }
        let mut children = BTreeMap::new();
        for _ in 0..count {
            let number = r.u8()?;
            if u64::from(number) >= FANOUT || children.insert(number, ObjectRef::take(&mut r)?).is_some() {
                return Err(Malformed("a child that a node cannot have"));
            }
        }
        if r.remaining() == 0 {
            Ok(Inner { level, children })
        } else {
            Err(Malformed("bytes behind the end of a node"))
        }
    }
}

fn count(n: usize) -> u8 {
    u8::try_from(n).unwrap_or(u8::MAX)
}

fn put_piece(out: &mut Vec<u8>, piece: Piece) {
    match piece {
        Piece::Hole => out.push(0),
        Piece::Zero => out.push(1),
        Piece::Data { object, valid } => {
            out.push(2);
            object.put(out);
            out.extend_from_slice(&valid.to_le_bytes());
        }
    }
}

fn take_piece(r: &mut Reader<'_>) -> Result<Piece, Malformed> {
    match r.u8()? {
        0 => Ok(Piece::Hole),
        1 => Ok(Piece::Zero),
        2 => Ok(Piece::Data { object: ObjectRef::take(r)?, valid: r.u32()? }),
        _ => Err(Malformed("unknown kind of piece")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::repository::ids::{ObjectId, PackId, Place};

    fn data(n: u8, valid: u32) -> Piece {
        let place = Place { pack: PackId(u64::from(n)), frame: 1, start: 2, len: 8192 };
        Piece::Data { object: ObjectRef { id: ObjectId([n; 32]), place }, valid }
    }

    fn sample() -> Leaf {
        let pages = BTreeMap::from([(1, data(2, 8192)), (3, Piece::Zero), (4, Piece::Hole)]);
        Leaf {
            slots: BTreeMap::from([
                (0, Slot { base: data(1, 65536), pages }),
                (63, Slot { base: Piece::Zero, ..Slot::HOLE }),
            ]),
        }
    }

    #[test]
    fn golden_bytes() {
        let leaf = sample().encode();
        assert_eq!((leaf.len(), crc32c::crc32c(&leaf)), (128, 1_153_367_606), "the format changed: raise the version");
        assert_eq!(Leaf::decode(&leaf), Ok(sample()));
        let Piece::Data { object, .. } = data(9, 1) else { unreachable!("made so") };
        let inner = Inner { level: 2, children: BTreeMap::from([(5, object)]) };
        let bytes = inner.encode();
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (57, 1_424_636_411), "the format changed: raise the version");
        assert_eq!(Inner::decode(&bytes), Ok(inner));
    }

    #[test]
    fn damaged_nodes_never_panic_and_cut_ones_never_decode() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let _ = (Leaf::decode(&bad), Inner::decode(&bad));
        }
        for len in 0..good.len() {
            assert!(Leaf::decode(&good[..len]).is_err());
        }
    }

    #[test]
    fn cutting_keeps_what_lies_before() {
        let mut slot = sample().slots[&0].clone();
        slot.cut(8192 + 100, 8192);
        assert_eq!(slot.base, data(1, 8292));
        assert_eq!(slot.pages, BTreeMap::from([(1, data(2, 100))]));
        slot.cut(0, 8192);
        assert!(slot.is_hole());
    }

    #[test]
    fn a_hidden_base_is_left_out() {
        let mut slot = Slot { base: data(1, 65536), pages: (0..8).map(|page| (page, data(page + 2, 8192))).collect() };
        slot.tidy(8);
        assert_eq!((slot.base, slot.pages.len()), (Piece::Hole, 8));
        let mut zeros = Slot { base: data(1, 65536), pages: (0..8).map(|page| (page, Piece::Zero)).collect() };
        zeros.tidy(8);
        assert_eq!(zeros, Slot { base: Piece::Zero, ..Slot::HOLE });
    }

    #[test]
    fn levels_span_their_sizes() {
        assert_eq!([0, 1, LEAF_BYTES, LEAF_BYTES + 1, 1 << 40, i64::MAX as u64].map(level_of), [0, 0, 0, 1, 3, 7]);
    }
}

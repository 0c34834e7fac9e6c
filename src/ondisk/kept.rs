//! A row of the `layers` table: what one file was at one pending mark, as far as newer changes have covered it.
//!
//! Key (file id, epoch of the mark). Value:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version 1 |
//! | 1 | 1 | flags: 1 modification time set, 2 the file was removed |
//! | 2 | 6 | zero |
//! | 8 | 8 | size of the file |
//! | 16 | 8 | modification time, ns |
//! | 24 | 24 x extents | first byte u64, end u64, origin u64; in order, without overlap |
//!
//! The two highest bits of an origin say what it is: 0 log address, 1 still in the base, 2 zeros, 3 address in staging. redb checks its own pages.

use super::bytes::{Malformed, Reader, put};
use crate::units::WallNs;

const FIXED_LEN: usize = 24;
const EXTENT_LEN: usize = 24;

/// First byte, end, packed origin.
pub type KeptExtent = (u64, u64, u64);

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KeptRow {
    pub size_bytes: u64,
    pub mtime: Option<WallNs>,
    /// The file has lost its last name, and is kept for the mark.
    pub removed: bool,
    pub extents: Vec<KeptExtent>,
}

impl KeptRow {
    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![0; FIXED_LEN + self.extents.len() * EXTENT_LEN];
        put(&mut out, 0, &[1, u8::from(self.mtime.is_some()) | u8::from(self.removed) << 1]);
        put(&mut out, 8, &self.size_bytes.to_le_bytes());
        put(&mut out, 16, &self.mtime.unwrap_or_default().0.to_le_bytes());
        for (index, (start, end, origin)) in self.extents.iter().enumerate() {
            for (field, value) in [start, end, origin].into_iter().enumerate() {
                put(&mut out, FIXED_LEN + index * EXTENT_LEN + field * 8, &value.to_le_bytes());
            }
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<KeptRow, Malformed> {
        let mut r = Reader::new(bytes);
        let (version, flags) = (r.u8()?, r.u8()?);
        if version != 1 || flags > 3 || r.take(6)?.iter().any(|&byte| byte != 0) {
            return Err(Malformed("unknown version of a row of kept bytes"));
        }
        let (size_bytes, mtime) = (r.u64()?, WallNs(r.i64()?));
        let mut extents = Vec::with_capacity(r.remaining() / EXTENT_LEN);
        let mut next = 0;
        while r.remaining() > 0 {
            let (start, end, origin) = (r.u64()?, r.u64()?, r.u64()?);
            if start < next || end <= start {
                return Err(Malformed("kept extents are out of order"));
            }
            next = end;
            extents.push((start, end, origin));
        }
        Ok(KeptRow { size_bytes, mtime: (flags & 1 != 0).then_some(mtime), removed: flags & 2 != 0, extents })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> KeptRow {
        KeptRow {
            size_bytes: 0x0102,
            mtime: Some(WallNs(3)),
            removed: false,
            extents: vec![(0, 5, 1 << 63), (5, 9, 77)],
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        assert_eq!(bytes[..24], [1, 1, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[48..], [5, 0, 0, 0, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0, 0, 0, 77, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(KeptRow::decode(&bytes), Ok(sample()));
    }

    #[test]
    fn any_flipped_bit_decodes_to_an_error_or_to_ordered_extents() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            let Ok(row) = KeptRow::decode(&bad) else { continue };
            assert!(row.extents.windows(2).all(|pair| pair[0].1 <= pair[1].0), "bit {bit}");
        }
        assert!(KeptRow::decode(&good[..30]).is_err());
    }
}

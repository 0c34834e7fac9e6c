//! Row of the `sources` table, key file id: which parts of a file were in a snapshot when the volume was made of it.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | version (1) |
//! | 1 | 3 | zero |
//! | 4 | 4 | number of ranges |
//! | 8 | 8 | the file's id in the snapshot |
//! | 16 | 16 each | first block u64, one past the last block u64; ascending, apart from each other |
//!
//! A block inside a range has its bytes in the snapshot as long as the `map` table has no row for its chunk; where there is a row, the row is right. So a file
//! of any size is one row, and a map row comes to be only with the first change of its chunk.

use super::bytes::{Decoded, Malformed, Reader};
use crate::units::FileId;

/// More ranges than this are joined over their gaps: blocks in a gap are zeros in the snapshot too.
pub const RANGES_MAX: usize = 1024;

const VERSION: u8 = 1;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SourceRow {
    /// The file's id in the snapshot.
    pub file: FileId,
    /// Blocks, as (first, one past the last).
    pub ranges: Vec<(u64, u64)>,
}

impl SourceRow {
    /// `ranges` ascend; those that touch become one, and the smallest gaps are closed until there are few enough.
    pub fn new(file: FileId, ranges: impl IntoIterator<Item = (u64, u64)>) -> SourceRow {
        let mut kept: Vec<(u64, u64)> = Vec::new();
        for (first, end) in ranges.into_iter().filter(|(first, end)| first < end) {
            match kept.last_mut() {
                Some(last) if last.1 >= first => last.1 = last.1.max(end),
                _ => kept.push((first, end)),
            }
        }
        if kept.len() > RANGES_MAX {
            let mut gaps: Vec<u64> = kept.windows(2).map(|pair| pair[1].0 - pair[0].1).collect();
            gaps.sort_unstable();
            let closed = gaps.get(kept.len() - RANGES_MAX - 1).copied().unwrap_or(u64::MAX);
            let mut joined: Vec<(u64, u64)> = Vec::new();
            for (first, end) in kept {
                match joined.last_mut() {
                    Some(last) if first - last.1 <= closed => last.1 = end,
                    _ => joined.push((first, end)),
                }
            }
            kept = joined;
        }
        SourceRow { file, ranges: kept }
    }

    pub fn encode(&self) -> Vec<u8> {
        let mut out = vec![VERSION, 0, 0, 0];
        out.extend_from_slice(&u32::try_from(self.ranges.len()).unwrap_or(u32::MAX).to_le_bytes());
        out.extend_from_slice(&self.file.0.to_le_bytes());
        for (first, end) in &self.ranges {
            out.extend_from_slice(&first.to_le_bytes());
            out.extend_from_slice(&end.to_le_bytes());
        }
        out
    }

    pub fn decode(bytes: &[u8]) -> Decoded<SourceRow> {
        let mut r = Reader::new(bytes);
        if r.u8()? != VERSION {
            return Err(Malformed("unknown version of a row of sources"));
        }
        let (zero, count, file) = (r.array::<3>()?, r.u32()?, r.u64()?);
        if zero != [0; 3] || file == 0 || r.remaining() != count as usize * 16 {
            return Err(Malformed("a row of sources that does not make sense"));
        }
        let mut ranges: Vec<(u64, u64)> = Vec::new();
        for _ in 0..count {
            let (first, end) = (r.u64()?, r.u64()?);
            if first >= end || ranges.last().is_some_and(|last| first <= last.1) {
                return Err(Malformed("ranges of a row of sources that do not ascend"));
            }
            ranges.push((first, end));
        }
        Ok(SourceRow { file: FileId(file), ranges })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let row = SourceRow::new(FileId(0x0102), [(0, 3), (3, 5), (9, 10)]);
        let bytes = row.encode();
        assert_eq!(bytes[..16], [1, 0, 0, 0, 2, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes[16..32], [0, 0, 0, 0, 0, 0, 0, 0, 5, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(bytes.len(), 48);
        assert_eq!(SourceRow::decode(&bytes), Ok(row));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            if let Ok(decoded) = SourceRow::decode(&bad) {
                assert_eq!(decoded.encode(), bad, "bit {bit}");
            }
        }
        for len in 0..bytes.len() {
            assert!(SourceRow::decode(&bytes[..len]).is_err());
        }
    }

    #[test]
    fn too_many_ranges_lose_their_smallest_gaps_and_no_block() {
        let many = (0..5000u64).map(|n| (n * 10, n * 10 + 1 + n % 8));
        let row = SourceRow::new(FileId(1), many.clone());
        assert!(row.ranges.len() <= RANGES_MAX && row.ranges.len() > 1, "{}", row.ranges.len());
        for (first, end) in many {
            assert!(row.ranges.iter().any(|range| range.0 <= first && end <= range.1));
        }
        assert_eq!(SourceRow::decode(&row.encode()), Ok(row));
    }
}

//! The head of an archived log segment, `log-archive/<sequence>.seg.lz4` on the slowest tier. One LZ4 frame with a checksum of its content follows: the
//! segment as it was in its slot.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HFSARC\0\x01` |
//! | 8 | 16 | volume id |
//! | 24 | 8 | sequence number of the segment |
//! | 32 | 8 | bytes of the segment |
//! | 40 | 8 | wall-clock time of the archiving, ns |
//! | 48 | 8 | bytes of the frame |
//! | 56 | 8 | checksum of these bytes with this field zero (first 8 bytes of BLAKE3) |

use super::bytes::{Malformed, Reader, put};
use super::checksum64;
use crate::units::WallNs;
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HFSARC\0\x01";
pub const HEAD_LEN: usize = 64;
const CHECKSUM_AT: usize = 56;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ArchivedHead {
    pub volume: Uuid,
    pub segment_seq: u64,
    pub segment_bytes: u64,
    pub wall: WallNs,
    pub packed_bytes: u64,
}

impl ArchivedHead {
    pub fn encode(&self) -> [u8; HEAD_LEN] {
        let mut out = [0; HEAD_LEN];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, self.volume.as_bytes());
        put(&mut out, 24, &self.segment_seq.to_le_bytes());
        put(&mut out, 32, &self.segment_bytes.to_le_bytes());
        put(&mut out, 40, &self.wall.0.to_le_bytes());
        put(&mut out, 48, &self.packed_bytes.to_le_bytes());
        let checksum = checksum64(&out);
        put(&mut out, CHECKSUM_AT, &checksum.to_le_bytes());
        out
    }

    /// `bytes` begins with the head.
    pub fn decode(bytes: &[u8]) -> Result<ArchivedHead, Malformed> {
        let head = bytes.get(..HEAD_LEN).ok_or(Malformed("too short for an archived segment"))?;
        let mut r = Reader::new(head);
        if r.array::<8>()? != MAGIC {
            return Err(Malformed("no archived segment"));
        }
        let volume = Uuid::from_bytes(r.array()?);
        let (segment_seq, segment_bytes, wall) = (r.u64()?, r.u64()?, WallNs(r.i64()?));
        let (packed_bytes, checksum) = (r.u64()?, r.u64()?);
        let mut copy = head.to_vec();
        put(&mut copy, CHECKSUM_AT, &[0; 8]);
        if checksum64(&copy) != checksum {
            return Err(Malformed("the checksum of an archived segment's head does not match"));
        }
        Ok(ArchivedHead { volume, segment_seq, segment_bytes, wall, packed_bytes })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let (volume, wall) = (Uuid::from_u128(1), WallNs(-4));
        let head = ArchivedHead { volume, segment_seq: 2, segment_bytes: 3 << 20, wall, packed_bytes: 5 };
        let bytes = head.encode();
        assert_eq!(bytes[..24], *b"HFSARC\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
        assert_eq!(bytes[24..48], *b"\x02\0\0\0\0\0\0\0\0\0\x30\0\0\0\0\0\xfc\xff\xff\xff\xff\xff\xff\xff");
        assert_eq!(bytes[48..56], *b"\x05\0\0\0\0\0\0\0");
        let mut behind = bytes.to_vec();
        behind.extend_from_slice(b"what follows");
        assert_eq!(ArchivedHead::decode(&behind), Ok(head));
        for bit in 0..bytes.len() * 8 {
            let mut hurt = bytes;
            hurt[bit / 8] ^= 1 << (bit % 8);
            assert!(ArchivedHead::decode(&hurt).is_err(), "bit {bit}");
        }
        (0..HEAD_LEN).for_each(|len| assert!(ArchivedHead::decode(&bytes[..len]).is_err()));
    }
}

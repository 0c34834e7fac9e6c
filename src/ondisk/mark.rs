//! The file of a pending mark, `staging/<epoch>.mark`: as long as it is there, everything is kept for the mark, also across mounts.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HFSMRK\0\x01` |
//! | 8 | 16 | volume id |
//! | 24 | 16 | snapshot id |
//! | 40 | 8 | LSN of the marker |
//! | 48 | 8 | wall-clock time of the mark, ns |
//! | 56 | 8 | file ids below this had been issued |
//! | 64 | 4 | epoch |
//! | 68 | 4 | zero |
//! | 72 | 8 | checksum of these bytes with this field zero (first 8 bytes of BLAKE3) |

use super::bytes::{Malformed, Reader, put};
use super::checksum64;
use crate::units::{Lsn, WallNs};
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HFSMRK\0\x01";
pub const MARK_LEN: usize = 80;
const CHECKSUM_AT: usize = 72;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PendingMark {
    pub volume: Uuid,
    pub snapshot: Uuid,
    pub lsn: Lsn,
    pub wall: WallNs,
    pub file_id_limit: u64,
    pub epoch: u32,
}

impl PendingMark {
    pub fn encode(&self) -> [u8; MARK_LEN] {
        let mut out = [0; MARK_LEN];
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, self.volume.as_bytes());
        put(&mut out, 24, self.snapshot.as_bytes());
        put(&mut out, 40, &self.lsn.0.to_le_bytes());
        put(&mut out, 48, &self.wall.0.to_le_bytes());
        put(&mut out, 56, &self.file_id_limit.to_le_bytes());
        put(&mut out, 64, &self.epoch.to_le_bytes());
        let checksum = checksum64(&out);
        put(&mut out, CHECKSUM_AT, &checksum.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<PendingMark, Malformed> {
        let mut r = Reader::new(bytes);
        if bytes.len() != MARK_LEN || r.array::<8>()? != MAGIC {
            return Err(Malformed("no pending mark"));
        }
        let (volume, snapshot) = (Uuid::from_bytes(r.array()?), Uuid::from_bytes(r.array()?));
        let (lsn, wall, file_id_limit) = (Lsn(r.u64()?), WallNs(r.i64()?), r.u64()?);
        let (epoch, zero, checksum) = (r.u32()?, r.u32()?, r.u64()?);
        let mut copy = bytes.to_vec();
        put(&mut copy, CHECKSUM_AT, &[0; 8]);
        if checksum64(&copy) != checksum || zero != 0 || epoch == 0 {
            return Err(Malformed("the checksum of a pending mark does not match"));
        }
        Ok(PendingMark { volume, snapshot, lsn, wall, file_id_limit, epoch })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let (volume, snapshot) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let mark = PendingMark { volume, snapshot, lsn: Lsn(3), wall: WallNs(-4), file_id_limit: 5, epoch: 6 };
        let bytes = mark.encode();
        assert_eq!(bytes[..24], *b"HFSMRK\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
        assert_eq!(bytes[56..72], [5, 0, 0, 0, 0, 0, 0, 0, 6, 0, 0, 0, 0, 0, 0, 0]);
        assert_eq!(PendingMark::decode(&bytes), Ok(mark));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(PendingMark::decode(&bad).is_err(), "bit {bit} went unnoticed");
        }
    }
}

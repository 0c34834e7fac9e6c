//! Payload of a log record of kind `Note`: so far the marker of a snapshot.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 1 | kind: 1 marker |
//! | 1 | 3 | zero |
//! | 4 | 4 | epoch of changes that the marker ends |
//! | 8 | 16 | snapshot id |
//! | 24 | 8 | file ids below this had been issued |
//!
//! The record's checksum is its group's.

use super::bytes::{Malformed, Reader, put};
use uuid::Uuid;

pub const MARKER_LEN: usize = 32;

/// Every record before this one is in the snapshot, none after.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Marker {
    pub snapshot: Uuid,
    pub epoch: u32,
    pub file_id_limit: u64,
}

impl Marker {
    pub fn encode(&self) -> [u8; MARKER_LEN] {
        let mut out = [0; MARKER_LEN];
        put(&mut out, 0, &[1]);
        put(&mut out, 4, &self.epoch.to_le_bytes());
        put(&mut out, 8, self.snapshot.as_bytes());
        put(&mut out, 24, &self.file_id_limit.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<Marker, Malformed> {
        let mut r = Reader::new(bytes);
        if r.u8()? != 1 || r.take(3)?.iter().any(|&byte| byte != 0) || bytes.len() != MARKER_LEN {
            return Err(Malformed("unknown kind of note"));
        }
        let (epoch, snapshot, file_id_limit) = (r.u32()?, Uuid::from_bytes(r.array()?), r.u64()?);
        match epoch {
            0 => Err(Malformed("a marker of epoch 0")),
            _ => Ok(Marker { snapshot, epoch, file_id_limit }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let marker = Marker { snapshot: Uuid::from_u128(0x0102), epoch: 3, file_id_limit: 0x0405 };
        let bytes = marker.encode();
        assert_eq!(bytes[..8], [1, 0, 0, 0, 3, 0, 0, 0]);
        assert_eq!(bytes[22..], [1, 2, 5, 4, 0, 0, 0, 0, 0, 0]);
        assert_eq!(Marker::decode(&bytes), Ok(marker));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Marker::decode(&bad) != Ok(marker), "bit {bit} went unnoticed");
        }
        assert!(Marker::decode(&bytes[..31]).is_err());
    }
}

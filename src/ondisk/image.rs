//! The file of a pending mark's image, `staging/<epoch>.image`: what whoever captures needs to go on after a crash. What is in it is his.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HFSIMG\0\x01` |
//! | 8 | 16 | volume id |
//! | 24 | 16 | snapshot id |
//! | 40 | 8 | length of the content |
//! | 48 | 8 | checksum of the whole file with this field zero (first 8 bytes of BLAKE3) |
//! | 56 | 8 | zero |
//! | 64 | n | content |

use super::bytes::{Malformed, Reader, put};
use super::checksum64;
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HFSIMG\0\x01";
pub const HEADER_LEN: usize = 64;
const CHECKSUM_AT: usize = 48;

/// The file of `content`, kept for a snapshot of a volume.
pub fn encode(volume: Uuid, snapshot: Uuid, content: &[u8]) -> Vec<u8> {
    let mut out = vec![0; HEADER_LEN];
    out.extend_from_slice(content);
    put(&mut out, 0, &MAGIC);
    put(&mut out, 8, volume.as_bytes());
    put(&mut out, 24, snapshot.as_bytes());
    put(&mut out, 40, &(content.len() as u64).to_le_bytes());
    let checksum = checksum64(&out);
    put(&mut out, CHECKSUM_AT, &checksum.to_le_bytes());
    out
}

/// Whose it is (volume, snapshot), and the content. `bytes` may go on behind its end.
pub fn decode(bytes: &[u8]) -> Result<(Uuid, Uuid, Vec<u8>), Malformed> {
    let mut r = Reader::new(bytes);
    if r.array::<8>()? != MAGIC {
        return Err(Malformed("no image of a mark"));
    }
    let (volume, snapshot) = (Uuid::from_bytes(r.array()?), Uuid::from_bytes(r.array()?));
    let (len, checksum, zero) = (r.u64()?, r.u64()?, r.u64()?);
    let end = usize::try_from(len).ok().and_then(|len| len.checked_add(HEADER_LEN));
    let Some(whole) = end.and_then(|end| bytes.get(..end)) else {
        return Err(Malformed("the image of a mark is cut short"));
    };
    let mut copy = whole.to_vec();
    put(&mut copy, CHECKSUM_AT, &[0; 8]);
    if checksum64(&copy) != checksum || zero != 0 {
        return Err(Malformed("the checksum of a mark's image does not match"));
    }
    Ok((volume, snapshot, copy.split_off(HEADER_LEN)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let (volume, snapshot) = (Uuid::from_u128(1), Uuid::from_u128(2));
        let bytes = encode(volume, snapshot, b"names");
        assert_eq!(bytes[..24], *b"HFSIMG\0\x01\0\0\0\0\0\0\0\0\0\0\0\0\0\0\0\x01");
        assert_eq!(bytes[40..48], 5u64.to_le_bytes());
        assert_eq!(bytes[56..], *b"\0\0\0\0\0\0\0\0names");
        assert_eq!(decode(&bytes), Ok((volume, snapshot, b"names".to_vec())));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(decode(&bad).is_err(), "bit {bit} went unnoticed");
        }
        for len in 0..bytes.len() {
            assert!(decode(&bytes[..len]).is_err(), "cut short to {len}");
        }
    }
}

//! The `format` file: what a repository is. Written last when a repository is made, so that a directory without it is none.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HEATREPO` |
//! | 8 | 4 | version |
//! | 12 | 4 | length of the whole file |
//! | 16 | 24 | feature bits: compat, ro_compat, incompat, u64 each |
//! | 40 | 16 | id of the repository (uuid) |
//! | 56 | 8 | made at, nanoseconds since the epoch |
//! | 64 | 8 | bytes at which a pack is ended |
//! | 72 | n | master key: 32 bytes, or 72 sealed by the key file's key when `incompat` says encrypted |
//! | 72 + n | 4 | CRC-32C of everything before |
//!
//! Feature bits follow ext4: an unknown `compat` bit is ignored, an unknown `ro_compat` bit allows reading only, an unknown
//! `incompat` bit refuses the repository by the bit's number.

use crate::error::{Error, Result};
use crate::ondisk::bytes::{Decoded, Malformed, Reader};
use crate::units::WallNs;
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HEATREPO";
pub const VERSION: u32 = 1;
pub const PATH: &str = "format";
const FIXED_BYTES: usize = 72;
const MASTER_BYTES_MAX: usize = 256;

/// Frames of packs, and roots, are encrypted.
pub const INCOMPAT_ENCRYPTED: u64 = 1;
const KNOWN_INCOMPAT: u64 = INCOMPAT_ENCRYPTED;
const KNOWN_RO_COMPAT: u64 = 0;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Format {
    pub compat: u64,
    pub ro_compat: u64,
    pub incompat: u64,
    pub id: Uuid,
    pub made: WallNs,
    pub pack_bytes: u64,
    pub master: Vec<u8>,
}

impl Format {
    pub fn encrypted(&self) -> bool {
        self.incompat & INCOMPAT_ENCRYPTED != 0
    }

    /// A feature that this program does not know says that writing would harm.
    pub fn read_only(&self) -> bool {
        self.ro_compat & !KNOWN_RO_COMPAT != 0
    }

    pub fn encode(&self) -> Vec<u8> {
        let length = u32::try_from(FIXED_BYTES + self.master.len() + 4).unwrap_or(u32::MAX);
        let mut out = Vec::new();
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&length.to_le_bytes());
        for bits in [self.compat, self.ro_compat, self.incompat] {
            out.extend_from_slice(&bits.to_le_bytes());
        }
        out.extend_from_slice(self.id.as_bytes());
        out.extend_from_slice(&self.made.0.to_le_bytes());
        out.extend_from_slice(&self.pack_bytes.to_le_bytes());
        out.extend_from_slice(&self.master);
        let crc = crc32c::crc32c(&out);
        out.extend_from_slice(&crc.to_le_bytes());
        out
    }

    /// `path` is only for messages. Errors: `Corrupt`, and `Invalid` for what a later version wrote.
    pub fn decode(bytes: &[u8], path: &str) -> Result<Format> {
        let corrupt = |why: &str| Error::Corrupt {
            what: "repository format",
            path: path.to_owned(),
            offset: 0,
            why: why.to_owned(),
        };
        let mut r = Reader::new(bytes);
        let malformed = |Malformed(why)| corrupt(why);
        if r.array::<8>().map_err(malformed)? != MAGIC {
            return Err(corrupt("not a heatfs repository"));
        }
        let version = r.u32().map_err(malformed)?;
        let body_len = bytes.len().checked_sub(4).ok_or_else(|| corrupt("ends too early"))?;
        let (body, crc) = bytes.split_at(body_len);
        let sound = crc == crc32c::crc32c(body).to_le_bytes();
        // A later version may well lie about its checksum in our eyes, but then its number is what to say.
        if version > VERSION && (sound || version < 1000) {
            return Err(Error::Invalid(format!(
                "{path}: the repository has format version {version}; this program knows up to {VERSION}: use a newer heatfs"
            )));
        }
        if !sound || version != VERSION {
            return Err(corrupt("checksum mismatch"));
        }
        let format = Format::decode_fields(&mut r, bytes.len()).map_err(malformed)?;
        let unknown = format.incompat & !KNOWN_INCOMPAT;
        if unknown != 0 {
            return Err(Error::Invalid(format!(
                "{path}: the repository uses the incompatible feature bit {}, which this program does not know: use a newer heatfs",
                unknown.trailing_zeros()
            )));
        }
        Ok(format)
    }

    fn decode_fields(r: &mut Reader<'_>, len: usize) -> Decoded<Format> {
        let master_len = len.checked_sub(FIXED_BYTES + 4).filter(|n| *n <= MASTER_BYTES_MAX);
        let master_len = master_len.ok_or(Malformed("length out of bounds"))?;
        if usize::try_from(r.u32()?) != Ok(len) {
            return Err(Malformed("length does not match"));
        }
        let (compat, ro_compat, incompat) = (r.u64()?, r.u64()?, r.u64()?);
        let (id, made, pack_bytes) = (Uuid::from_bytes(r.array()?), WallNs(r.i64()?), r.u64()?);
        let master = r.take(master_len)?.to_vec();
        Ok(Format { compat, ro_compat, incompat, id, made, pack_bytes, master })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> Format {
        Format {
            compat: 0,
            ro_compat: 0,
            incompat: 0,
            id: Uuid::from_u128(0x1122_3344),
            made: WallNs(5),
            pack_bytes: 64 << 20,
            master: vec![9; 32],
        }
    }

    #[test]
    fn golden_bytes() {
        let bytes = sample().encode();
        assert_eq!(bytes.len(), 108);
        assert_eq!(crc32c::crc32c(&bytes[..104]), 3_825_219_418, "the format changed: raise the version");
        assert_eq!(Format::decode(&bytes, "f").expect("decodes"), sample());
    }

    #[test]
    fn every_flipped_bit_and_every_cut_is_an_error() {
        let good = sample().encode();
        for bit in 0..good.len() * 8 {
            let mut bad = good.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Format::decode(&bad, "f").is_err(), "bit {bit}");
        }
        for len in 0..good.len() {
            assert!(Format::decode(&good[..len], "f").is_err(), "{len} bytes");
        }
    }

    #[test]
    fn what_a_later_version_wrote_is_refused_by_name() {
        let mut future = sample().encode();
        future[8] = 2;
        let message = Format::decode(&future, "r/format").expect_err("refused").to_string();
        assert!(message.contains("format version 2") && message.contains("newer heatfs"), "{message}");
        let format = Format { incompat: 1 << 7, ..sample() };
        let message = Format::decode(&format.encode(), "r/format").expect_err("refused").to_string();
        assert!(message.contains("feature bit 7"), "{message}");
        let format = Format { compat: 1 << 9, ro_compat: 1, ..sample() };
        assert!(Format::decode(&format.encode(), "f").expect("readable").read_only());
    }
}

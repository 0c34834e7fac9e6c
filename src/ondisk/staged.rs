//! A batch of saved bytes in a staging file: what pending snapshots still need and base or log are about to lose. Bytes and the note of what they are
//! become durable together.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HFSSTG\0\x01` |
//! | 8 | 16 | volume id |
//! | 24 | 8 | incarnation: the mount that wrote it |
//! | 32 | 8 | bytes of the batch, whole pages |
//! | 40 | 4 | entries |
//! | 44 | 4 | where the data begin, a multiple of 4096 |
//! | 48 | 32 | BLAKE3 of the batch with this field zero |
//! | 80 | 40 x entries | entries |
//! | .. | | zeros, then the data, zeros up to a whole page |
//!
//! An entry: file id u64, first byte u64, end u64, offset of its data in the batch u64, epoch of the mark u32, from where u32 (1: the base, 0: the log).

use super::bytes::{Malformed, Reader, put};
use crate::units::{FileId, PAGE};
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HFSSTG\0\x01";
const HASH_AT: usize = 48;
const FIXED_LEN: usize = 80;
const ENTRY_LEN: usize = 40;

/// Some bytes of a file as of a mark.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct StagedEntry {
    pub file: FileId,
    pub start: u64,
    pub end: u64,
    /// Where the bytes begin in the batch; the encoder sets it.
    pub at: u64,
    pub epoch: u32,
    /// They were in the base; otherwise in the log.
    pub of_base: bool,
}

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Batch {
    pub volume: Uuid,
    pub incarnation: u64,
    pub entries: Vec<StagedEntry>,
}

/// Where the data of a batch with so many entries begin.
pub fn data_offset(entries: usize) -> usize {
    (FIXED_LEN + entries * ENTRY_LEN).next_multiple_of(PAGE)
}

/// Bytes of a batch, whole pages.
pub fn batch_len(entries: usize, data_bytes: usize) -> usize {
    data_offset(entries) + data_bytes.next_multiple_of(PAGE)
}

impl Batch {
    /// Fills `out`, of [`batch_len`] zeroed bytes whose data are already in place.
    pub fn encode_into(&self, out: &mut [u8]) {
        let at = data_offset(self.entries.len());
        put(out, 0, &MAGIC);
        put(out, 8, self.volume.as_bytes());
        put(out, 24, &self.incarnation.to_le_bytes());
        put(out, 32, &(out.len() as u64).to_le_bytes());
        put(out, 40, &u32::try_from(self.entries.len()).unwrap_or(u32::MAX).to_le_bytes());
        put(out, 44, &u32::try_from(at).unwrap_or(u32::MAX).to_le_bytes());
        let mut data_at = at as u64;
        for (index, entry) in self.entries.iter().enumerate() {
            let place = FIXED_LEN + index * ENTRY_LEN;
            for (field, value) in [entry.file.0, entry.start, entry.end, data_at].into_iter().enumerate() {
                put(out, place + field * 8, &value.to_le_bytes());
            }
            put(out, place + 32, &entry.epoch.to_le_bytes());
            put(out, place + 36, &u32::from(entry.of_base).to_le_bytes());
            data_at += entry.end - entry.start;
        }
        let hash = blake3::hash(out);
        put(out, HASH_AT, hash.as_bytes());
    }

    /// Bytes of the batch that begins with these.
    pub fn len_of(head: &[u8]) -> Result<u64, Malformed> {
        let mut r = Reader::new(head);
        if r.array::<8>()? != MAGIC {
            return Err(Malformed("no staged batch"));
        }
        r.take(24)?;
        match r.u64()? {
            len if len >= PAGE as u64 && len.is_multiple_of(PAGE as u64) => Ok(len),
            _ => Err(Malformed("a staged batch is whole pages")),
        }
    }

    /// Decodes and verifies a whole batch.
    pub fn decode(bytes: &[u8]) -> Result<Batch, Malformed> {
        if Batch::len_of(bytes)? != bytes.len() as u64 {
            return Err(Malformed("the staged batch is cut short"));
        }
        let mut copy = bytes.to_vec();
        put(&mut copy, HASH_AT, &[0; 32]);
        let mut r = Reader::new(bytes);
        r.take(8)?;
        let (volume, incarnation) = (Uuid::from_bytes(r.array()?), r.u64()?);
        r.take(8)?;
        let (count, data_at) = (r.u32()?, r.u32()?);
        if *blake3::hash(&copy).as_bytes() != r.array::<32>()? {
            return Err(Malformed("the hash of the staged batch does not match"));
        }
        let mut entries = Vec::new();
        for _ in 0..count {
            let (file, start, end, at) = (FileId(r.u64()?), r.u64()?, r.u64()?, r.u64()?);
            let (epoch, of_base) = (r.u32()?, r.u32()?);
            let data_end = end.checked_sub(start).and_then(|len| at.checked_add(len));
            if at < u64::from(data_at) || data_end.is_none_or(|end| end > bytes.len() as u64) || of_base > 1 {
                return Err(Malformed("staged bytes lie outside of their batch"));
            }
            entries.push(StagedEntry { file, start, end, at, epoch, of_base: of_base == 1 });
        }
        Ok(Batch { volume, incarnation, entries })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> (Batch, Vec<u8>) {
        let entry = |file, start, end, at| StagedEntry { file: FileId(file), start, end, at, epoch: 5, of_base: true };
        let entries = vec![entry(1, 100, 103, 4096), entry(2, 0, 4, 4099)];
        let batch = Batch { volume: Uuid::from_u128(9), incarnation: 3, entries };
        let mut bytes = vec![0; batch_len(2, 7)];
        put(&mut bytes, data_offset(2), b"abcdefg");
        batch.encode_into(&mut bytes);
        (batch, bytes)
    }

    #[test]
    fn golden_bytes() {
        let (batch, bytes) = sample();
        assert_eq!(bytes.len(), 8192);
        assert_eq!(Batch::decode(&bytes), Ok(batch));
        assert_eq!(crc32c::crc32c(&bytes), 0xc31f_399c, "the format changed: raise the version");
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (_, bytes) = sample();
        for bit in (0..bytes.len() * 8).filter(|bit| *bit < 200 * 8 || bit % 97 == 0) {
            let mut bad = bytes.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Batch::decode(&bad).is_err(), "bit {bit} went unnoticed");
        }
        assert!(Batch::decode(&bytes[..4096]).is_err());
    }
}

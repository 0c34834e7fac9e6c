//! Values in the state database. redb checks its own pages; a row has a version and a fixed length.
//!
//! `files` table, key file id: 32 bytes: version u8 = 1, flags u8 (1: mtime set, 2: ctime set, 4: log file), 6 zero bytes, size u64, mtime i64, ctime i64.
//! `map` table, key (file id, chunk): [`MAP_CHUNK_BLOCKS`] bytes, one per block: low four bits where the block lives, high four
//! bits where a clean copy lies (0 none, 1..=14 tier + 1, low 15: promised, no image yet; 0xf0: in the repository, see `ondisk::sourced`).
//! `meta` table, key text: see `volume::state`.

use super::bytes::{Malformed, Reader, put};
use crate::units::WallNs;

/// Blocks in one row of the block map.
pub const MAP_CHUNK_BLOCKS: usize = 512;
pub const FILE_ROW_LEN: usize = 32;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FileRow {
    pub size_bytes: u64,
    pub mtime: Option<WallNs>,
    pub ctime: Option<WallNs>,
    pub log_file: bool,
}

impl FileRow {
    pub fn encode(&self) -> [u8; FILE_ROW_LEN] {
        let mut out = [0; FILE_ROW_LEN];
        let flags = u8::from(self.mtime.is_some()) | u8::from(self.ctime.is_some()) << 1 | u8::from(self.log_file) << 2;
        put(&mut out, 0, &[1, flags]);
        put(&mut out, 8, &self.size_bytes.to_le_bytes());
        put(&mut out, 16, &self.mtime.unwrap_or_default().0.to_le_bytes());
        put(&mut out, 24, &self.ctime.unwrap_or_default().0.to_le_bytes());
        out
    }

    pub fn decode(bytes: &[u8]) -> Result<FileRow, Malformed> {
        let mut r = Reader::new(bytes);
        if bytes.len() != FILE_ROW_LEN || r.u8()? != 1 {
            return Err(Malformed("unknown version of a file row"));
        }
        let flags = r.u8()?;
        if flags > 7 || r.take(6)?.iter().any(|&b| b != 0) {
            return Err(Malformed("unknown flags in a file row"));
        }
        let (size_bytes, mtime, ctime) = (r.u64()?, WallNs(r.i64()?), WallNs(r.i64()?));
        Ok(FileRow {
            size_bytes,
            mtime: (flags & 1 != 0).then_some(mtime),
            ctime: (flags & 2 != 0).then_some(ctime),
            log_file: flags & 4 != 0,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let row = FileRow { size_bytes: 0x0102, mtime: Some(WallNs(3)), ctime: None, log_file: true };
        let bytes = row.encode();
        assert_eq!(bytes[..12], [1, 5, 0, 0, 0, 0, 0, 0, 2, 1, 0, 0]);
        assert_eq!(FileRow::decode(&bytes), Ok(row));
        for bit in 0..bytes.len() * 8 {
            let mut bad = bytes;
            bad[bit / 8] ^= 1 << (bit % 8);
            let _ = FileRow::decode(&bad);
        }
        assert!(FileRow::decode(&bytes[..31]).is_err());
    }
}

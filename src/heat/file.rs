//! `heat.bin`: the recorder's memory across restarts. Losable: a missing, torn, older or foreign file means learning again.
//!
//! Little-endian:
//! ```text
//!  0  magic "HTFSHEAT"             8
//!  8  version = 1                  u32
//! 12  block bytes                  u32
//! 16  volume id                    16
//! 32  exposure in epochs           f32 as bits u32
//! 36  chunks                       u32
//! 40  CRC32C of 0..40              u32
//! 44  chunks, each:
//!       file id                    u64
//!       chunk number               u64
//!       entries                    u32   1..=256
//!       entries: index in chunk    u8, decayed sum f32 as bits u32
//!     CRC32C of all of 44..        u32
//! ```

use super::chunk::{CHUNK_BLOCKS, Chunk};
use super::recorder::Recorder;
use super::table::ChunkKey;
use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::units::FileId;
use std::io;

/// Name of the file in the fastest tier's path.
pub const HEAT_FILE: &str = "heat.bin";
const HEAT_FILE_NEW: &str = "heat.bin.new";
const MAGIC: &[u8; 8] = b"HTFSHEAT";
const VERSION: u32 = 1;
const HEADER: usize = 44;
/// A file larger than this is not ours: the recorder's own limit keeps it far below.
const BYTES_MAX: u64 = 1 << 30;

impl Recorder {
    /// Writes the decayed sums to [`HEAT_FILE`] of `device`, replacing the old file at once.
    pub fn save(&self, device: &dyn Device, volume: &[u8; 16]) -> Result<()> {
        let fail = |action| move |source| Error::io(action, format!("{}/{HEAT_FILE_NEW}", device.path()), source);
        let file =
            device.open(HEAT_FILE_NEW, OpenMode { create: true, ..OpenMode::default() }).map_err(fail("open"))?;
        file.set_len(0).map_err(fail("truncate"))?;
        self.write(&*file, volume).map_err(fail("write"))?;
        file.sync_data().map_err(fail("sync"))?;
        device.rename(HEAT_FILE_NEW, HEAT_FILE).map_err(fail("rename"))
    }

    /// Loads [`HEAT_FILE`] of `device`; Ok(false) when there is none. An error means that the file is unusable, and the recorder unchanged.
    pub fn load(&self, device: &dyn Device, volume: &[u8; 16]) -> Result<bool> {
        let path = format!("{}/{HEAT_FILE}", device.path());
        let fail = |action| move |source| Error::io(action, format!("{}/{HEAT_FILE}", device.path()), source);
        if !device.exists(HEAT_FILE).map_err(fail("look up"))? {
            return Ok(false);
        }
        let file = device.open(HEAT_FILE, OpenMode::default()).map_err(fail("open"))?;
        let len = file.len().map_err(fail("stat"))?;
        let corrupt =
            |offset, why: &str| Error::Corrupt { what: "heat", path: path.clone(), offset, why: why.to_owned() };
        if len > BYTES_MAX {
            return Err(corrupt(0, "too large"));
        }
        let mut bytes = vec![0u8; usize::try_from(len).unwrap_or(0)];
        let read = file.read_at(&mut bytes, 0).map_err(fail("read"))?;
        bytes.truncate(read);
        let (exposure, chunks) =
            decode(&bytes, self.settings().block_bytes, volume).map_err(|(offset, why)| corrupt(offset, why))?;
        for (key, chunk) in chunks {
            self.insert(key, chunk);
        }
        *self.exposure.lock() = exposure;
        Ok(true)
    }

    /// In pieces, since all at once would take half as much memory as the counters.
    fn write(&self, file: &dyn BackingFile, volume: &[u8; 16]) -> io::Result<()> {
        let (mut chunks, mut at, mut sum) = (0u32, HEADER as u64, 0);
        self.chunks.by_lock(|behind| {
            let mut piece = Vec::new();
            chunks += behind.iter().map(|(key, chunk)| u32::from(encode(*key, chunk, &mut piece))).sum::<u32>();
            sum = crc32c::crc32c_append(sum, &piece);
            file.write_all_at(&piece, at)?;
            at += piece.len() as u64;
            io::Result::Ok(())
        })?;
        file.write_all_at(&sum.to_le_bytes(), at)?;
        let mut head = Vec::with_capacity(HEADER);
        head.extend_from_slice(MAGIC);
        head.extend_from_slice(&VERSION.to_le_bytes());
        head.extend_from_slice(&self.settings().block_bytes.to_le_bytes());
        head.extend_from_slice(volume);
        head.extend_from_slice(&self.exposure.lock().to_bits().to_le_bytes());
        head.extend_from_slice(&chunks.to_le_bytes());
        head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
        file.write_all_at(&head, 0)
    }
}

/// Appends a chunk with any past; false if it has none.
fn encode((file, number): ChunkKey, chunk: &Chunk, into: &mut Vec<u8>) -> bool {
    let entries = (0u8..=255).zip(chunk.pasts()).filter(|(_, past)| *past > 0.0);
    let count = u32::try_from(entries.clone().count()).unwrap_or(0);
    if count == 0 {
        return false;
    }
    into.extend_from_slice(&file.0.to_le_bytes());
    into.extend_from_slice(&number.to_le_bytes());
    into.extend_from_slice(&count.to_le_bytes());
    for (index, past) in entries {
        into.push(index);
        into.extend_from_slice(&past.to_bits().to_le_bytes());
    }
    true
}

type Decoded = (f32, Vec<(ChunkKey, Chunk)>);

/// Offset and reason when the bytes are not a heat file of this volume.
fn decode(bytes: &[u8], block_bytes: u32, volume: &[u8; 16]) -> std::result::Result<Decoded, (u64, &'static str)> {
    let mut head = Cursor { bytes, at: 0 };
    if head.array::<8>()? != *MAGIC {
        return Err((0, "no magic"));
    }
    let (version, block, id) = (head.u32()?, head.u32()?, head.array::<16>()?);
    let (exposure, chunks) = (f32::from_bits(head.u32()?), head.u32()?);
    let covered = bytes.get(..head.at).ok_or((0, "too short"))?;
    if crc32c::crc32c(covered) != head.u32()? {
        return Err((0, "header checksum"));
    }
    if version != VERSION {
        return Err((8, "unknown version"));
    }
    if block != block_bytes || id != *volume {
        return Err((12, "of another volume or block size"));
    }
    if !exposure.is_finite() || exposure < 0.0 {
        return Err((32, "an exposure that is no number"));
    }
    let body = bytes.get(HEADER..bytes.len().saturating_sub(4)).ok_or((44, "too short"))?;
    let mut tail = Cursor { bytes, at: HEADER + body.len() };
    if crc32c::crc32c(body) != tail.u32()? {
        return Err((44, "body checksum"));
    }
    let mut cursor = Cursor { bytes: body, at: 0 };
    let mut decoded = Vec::new();
    for _ in 0..chunks {
        let key = (FileId(cursor.u64()?), cursor.u64()?);
        let entries = cursor.u32()?;
        if usize::try_from(entries).unwrap_or(usize::MAX) > CHUNK_BLOCKS {
            return Err((44, "too many entries in a chunk"));
        }
        let mut chunk = Chunk::new();
        for _ in 0..entries {
            let [index] = cursor.array::<1>()?;
            let past = f32::from_bits(cursor.u32()?);
            if !past.is_finite() || past < 0.0 {
                return Err((44, "a heat that is no number"));
            }
            chunk.set_past(index, past);
        }
        decoded.push((key, chunk));
    }
    Ok((exposure, decoded))
}

struct Cursor<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Cursor<'_> {
    fn array<const N: usize>(&mut self) -> std::result::Result<[u8; N], (u64, &'static str)> {
        let end = self.at + N;
        let field = self.bytes.get(self.at..end).and_then(|field| field.try_into().ok());
        self.at = end;
        field.ok_or((u64::try_from(end).unwrap_or(u64::MAX), "too short"))
    }
    fn u32(&mut self) -> std::result::Result<u32, (u64, &'static str)> {
        self.array().map(u32::from_le_bytes)
    }
    fn u64(&mut self) -> std::result::Result<u64, (u64, &'static str)> {
        self.array().map(u64::from_le_bytes)
    }
}

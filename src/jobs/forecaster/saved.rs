//! `forecast.bin`: what the forecast and the gate have learned. Losable: a missing, torn, damaged, older or foreign file means learning again.
//!
//! Little-endian:
//! ```text
//!  0  magic "HTFSFCST"             8
//!  8  version = 1                  u32
//! 12  block bytes                  u32
//! 16  volume id                    16
//! 32  bytes of the gate            u32
//! 36  CRC32C of 0..36              u32
//! 40  the gate, as JSON of `policy::gate::SavedGate`
//!     the forecast, see `heat/forecast/saved.rs`
//!     CRC32C of all from 40 on     u32
//! ```

use super::{Inner, model_words};
use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use std::io::{self, Read, Write};
use std::sync::Arc;

/// Name of the file in the fastest tier's path.
pub const FORECAST_FILE: &str = "forecast.bin";
const FORECAST_FILE_NEW: &str = "forecast.bin.new";
const MAGIC: &[u8; 8] = b"HTFSFCST";
const VERSION: u32 = 1;
const HEADER: usize = 40;
/// Bytes of a gate that is believed.
const GATE_BYTES_MAX: u32 = 1 << 20;
/// Read and written at once.
const PIECE_BYTES: usize = 1 << 20;

/// Replaces the file at once.
pub(super) fn save(device: &dyn Device, volume: &[u8; 16], block_bytes: u32, inner: &Inner) -> Result<()> {
    let fail = |action| move |source| Error::io(action, format!("{}/{FORECAST_FILE_NEW}", device.path()), source);
    let file =
        device.open(FORECAST_FILE_NEW, OpenMode { create: true, ..OpenMode::default() }).map_err(fail("open"))?;
    file.set_len(0).map_err(fail("truncate"))?;
    let gate = serde_json::to_vec(&inner.gate.saved())
        .map_err(|error| Error::Invalid(format!("the gate's state cannot be encoded: {error}")))?;
    let mut head = Vec::with_capacity(HEADER);
    head.extend_from_slice(MAGIC);
    head.extend_from_slice(&VERSION.to_le_bytes());
    head.extend_from_slice(&block_bytes.to_le_bytes());
    head.extend_from_slice(volume);
    head.extend_from_slice(&u32::try_from(gate.len()).unwrap_or(u32::MAX).to_le_bytes());
    head.extend_from_slice(&crc32c::crc32c(&head).to_le_bytes());
    file.write_all_at(&head, 0).map_err(fail("write"))?;
    let writer = Writer { file: Arc::clone(&file), at: HEADER as u64, checksum: 0 };
    let mut out = io::BufWriter::with_capacity(PIECE_BYTES, writer);
    let written = out.write_all(&gate).and_then(|()| inner.forecast.save(&mut out)).and_then(|()| out.flush());
    written.map_err(fail("write"))?;
    let Writer { at, checksum, .. } = out.into_inner().map_err(|error| fail("write")(error.into_error()))?;
    file.write_all_at(&checksum.to_le_bytes(), at).map_err(fail("write"))?;
    file.sync_data().map_err(fail("sync"))?;
    device.rename(FORECAST_FILE_NEW, FORECAST_FILE).map_err(fail("rename"))
}

/// Takes the file into `inner`, and says in words what was found. After an error `inner` must be made anew.
pub(super) fn load(device: &dyn Device, volume: &[u8; 16], block_bytes: u32, inner: &mut Inner) -> Result<String> {
    let path = format!("{}/{FORECAST_FILE}", device.path());
    let fail = |action| move |source| Error::io(action, format!("{}/{FORECAST_FILE}", device.path()), source);
    if !device.exists(FORECAST_FILE).map_err(fail("look up"))? {
        return Ok("nothing was saved yet".to_owned());
    }
    let file = device.open(FORECAST_FILE, OpenMode::default()).map_err(fail("open"))?;
    let len = file.len().map_err(fail("stat"))?;
    let corrupt = |offset: usize, why: String| Error::Corrupt {
        what: "forecast",
        path: path.clone(),
        offset: u64::try_from(offset).unwrap_or(u64::MAX),
        why,
    };
    let mut head = [0u8; HEADER];
    if file.read_at(&mut head, 0).map_err(fail("read"))? < HEADER || len < HEADER as u64 + 4 {
        return Err(corrupt(0, "too short".to_owned()));
    }
    let gate_bytes = judge_head(&head, volume, block_bytes).map_err(|(at, why)| corrupt(at, why.to_owned()))?;
    let reader = Reader { file, at: HEADER as u64, end: len - 4, checksum: 0 };
    let mut from = io::BufReader::with_capacity(PIECE_BYTES, reader);
    let taken = take(&mut from, gate_bytes, inner).map_err(|error| match error.kind() {
        io::ErrorKind::InvalidData | io::ErrorKind::UnexpectedEof => corrupt(HEADER, error.to_string()),
        _ => fail("read")(error),
    })?;
    let mut reader = from.into_inner();
    // The rest, if any, counts towards the checksum too.
    io::copy(&mut reader, &mut io::sink()).map_err(fail("read"))?;
    let mut sum = [0u8; 4];
    reader.file.read_at(&mut sum, reader.end).map_err(fail("read"))?;
    match u32::from_le_bytes(sum) == reader.checksum {
        true => Ok(taken),
        false => Err(corrupt(HEADER, "checksum".to_owned())),
    }
}

fn take(from: &mut impl Read, gate_bytes: u32, inner: &mut Inner) -> io::Result<String> {
    let mut gate = vec![0; usize::try_from(gate_bytes).unwrap_or(0)];
    from.read_exact(&mut gate)?;
    let gate = serde_json::from_slice(&gate).map_err(|error| io::Error::new(io::ErrorKind::InvalidData, error))?;
    let model = inner.forecast.load(from)?;
    inner.gate.resume(gate);
    if let Err(error) = &model {
        tracing::warn!(%error, "a new model will be grown");
    }
    Ok(format!("goes on where the last run ended{}", model_words(&model)))
}

/// Bytes of the gate; or offset and reason when this is no file of this volume.
fn judge_head(
    head: &[u8; HEADER],
    volume: &[u8; 16],
    block_bytes: u32,
) -> std::result::Result<u32, (usize, &'static str)> {
    let field = |at: usize| {
        let bytes = head.get(at..at + 4).and_then(|field| field.try_into().ok());
        bytes.map(u32::from_le_bytes).unwrap_or_default()
    };
    if !head.starts_with(MAGIC) {
        return Err((0, "no magic"));
    }
    if field(36) != crc32c::crc32c(&head[..36]) {
        return Err((36, "header checksum"));
    }
    if field(8) != VERSION {
        return Err((8, "unknown version"));
    }
    if field(12) != block_bytes || head[16..32] != *volume {
        return Err((12, "of another volume or block size"));
    }
    match field(32) {
        bytes if bytes <= GATE_BYTES_MAX => Ok(bytes),
        _ => Err((32, "a gate that is too large")),
    }
}

/// Appends to a file, with the checksum of what was written.
struct Writer {
    file: Arc<dyn BackingFile>,
    at: u64,
    checksum: u32,
}

impl Write for Writer {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.file.write_all_at(bytes, self.at)?;
        self.checksum = crc32c::crc32c_append(self.checksum, bytes);
        self.at += bytes.len() as u64;
        Ok(bytes.len())
    }
    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Reads a file up to `end`, with the checksum of what was read.
struct Reader {
    file: Arc<dyn BackingFile>,
    at: u64,
    end: u64,
    checksum: u32,
}

impl Read for Reader {
    fn read(&mut self, bytes: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX).min(bytes.len());
        let part = bytes.get_mut(..left).unwrap_or_default();
        let read = if part.is_empty() { 0 } else { self.file.read_at(part, self.at)? };
        self.checksum = crc32c::crc32c_append(self.checksum, part.get(..read).unwrap_or_default());
        self.at += read as u64;
        Ok(read)
    }
}

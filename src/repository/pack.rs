//! Packs: the files that hold objects. Self-describing, so that the index can be made again from them.
//!
//! ```text
//! header (64 bytes) | frame | frame | ... | table of contents | trailer (64 bytes)
//! ```
//!
//! Header: magic `HEATPACK`, version u32, class u8 (1 data, 2 meta), three zero bytes, repository id (16), pack id u64, lease of its writer
//! (16), four zero bytes, CRC-32C u32 of the 60 bytes before.
//!
//! Frame: stored bytes u32, raw bytes u32, encoding u8 (0 as is, 1 LZ4 block), three zero bytes, CRC-32C u32 of the 12 bytes before and the
//! stored bytes; then the stored bytes. They are sealed when the repository is encrypted, with (pack id, frame number) as their place.
//!
//! Table of contents: count of frames u32, count of objects u32; per frame: offset u32, stored bytes with the frame's header u32, raw bytes u32;
//! per object: id (32), frame u32, start u32, length u32.
//!
//! Trailer: offset of the table u64, its bytes u64, version u32, zero u32, BLAKE3 of header and table (32), magic `HEATPEND`.
//!
//! Objects of less than half of [`FRAME_RAW_BYTES`] share frames: the frame is the unit of compression, the object that of identity.
//! Frames are numbered in the order in which they are begun, so that an object's place is known before its frame is full.

use super::ids::{LeaseId, ObjectId, PackId, Place};
use super::keys::Keys;
use super::small::io_error;
use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::ondisk::bytes::{Decoded, Malformed, Reader};
use std::sync::Arc;
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"HEATPACK";
const END_MAGIC: [u8; 8] = *b"HEATPEND";
const VERSION: u32 = 1;
pub const HEADER_BYTES: usize = 64;
const TRAILER_BYTES: usize = 64;
const FRAME_HEADER_BYTES: usize = 16;
/// A frame is ended before it holds more than this; a single object may be larger.
pub const FRAME_RAW_BYTES: usize = 64 * 1024;
/// Nothing larger is ever a frame, so nothing larger is believed.
const FRAME_RAW_BYTES_MAX: u32 = 1 << 20;

/// What a pack holds: pages, or nodes of trees. Apart, because trees are read alone. A repair puts nodes into packs of data, too.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Class {
    Data,
    Meta,
}

impl Class {
    fn number(self) -> u8 {
        match self {
            Class::Data => 1,
            Class::Meta => 2,
        }
    }
}

/// Who wrote which pack.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct PackHeader {
    pub repository: Uuid,
    pub pack: PackId,
    pub lease: LeaseId,
    pub class: Class,
}

impl PackHeader {
    pub fn encode(&self) -> [u8; HEADER_BYTES] {
        let mut out = Vec::with_capacity(HEADER_BYTES);
        out.extend_from_slice(&MAGIC);
        out.extend_from_slice(&VERSION.to_le_bytes());
        out.extend_from_slice(&[self.class.number(), 0, 0, 0]);
        out.extend_from_slice(self.repository.as_bytes());
        out.extend_from_slice(&self.pack.0.to_le_bytes());
        out.extend_from_slice(&self.lease.0.to_le_bytes());
        out.extend_from_slice(&[0; 4]);
        out.extend_from_slice(&crc32c::crc32c(&out).to_le_bytes());
        let mut bytes = [0; HEADER_BYTES];
        bytes.copy_from_slice(&out);
        bytes
    }

    pub fn decode(bytes: &[u8]) -> Decoded<PackHeader> {
        let mut r = Reader::new(bytes);
        if bytes.len() != HEADER_BYTES || r.array::<8>()? != MAGIC {
            return Err(Malformed("no pack header"));
        }
        if crc32c::crc32c(&bytes[..60]).to_le_bytes() != bytes[60..] {
            return Err(Malformed("checksum of the header does not match"));
        }
        if r.u32()? != VERSION {
            return Err(Malformed("a version of packs that this program does not know"));
        }
        let class = match r.array::<4>()? {
            [1, 0, 0, 0] => Class::Data,
            [2, 0, 0, 0] => Class::Meta,
            _ => return Err(Malformed("unknown class")),
        };
        let (repository, pack) = (Uuid::from_bytes(r.array()?), PackId(r.u64()?));
        Ok(PackHeader { repository, pack, lease: LeaseId(u128::from_le_bytes(r.array()?)), class })
    }
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct FrameEntry {
    pub offset: u32,
    /// With the frame's header.
    pub stored: u32,
    pub raw: u32,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ObjectEntry {
    pub id: ObjectId,
    pub frame: u32,
    pub start: u32,
    pub len: u32,
}

impl ObjectEntry {
    pub fn place(&self, pack: PackId) -> Place {
        Place { pack, frame: self.frame, start: self.start, len: self.len }
    }
}

/// What a pack holds.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Contents {
    pub frames: Vec<FrameEntry>,
    pub objects: Vec<ObjectEntry>,
}

impl Contents {
    fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(8 + self.frames.len() * 12 + self.objects.len() * 44);
        out.extend_from_slice(&count(self.frames.len()));
        out.extend_from_slice(&count(self.objects.len()));
        for frame in &self.frames {
            for field in [frame.offset, frame.stored, frame.raw] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        for object in &self.objects {
            out.extend_from_slice(&object.id.0);
            for field in [object.frame, object.start, object.len] {
                out.extend_from_slice(&field.to_le_bytes());
            }
        }
        out
    }

    fn decode(bytes: &[u8]) -> Decoded<Contents> {
        let mut r = Reader::new(bytes);
        let (frames, objects) = (r.u32()?, r.u32()?);
        let wanted = u64::from(frames) * 12 + u64::from(objects) * 44;
        if wanted != r.remaining() as u64 {
            return Err(Malformed("counts of the table do not match its length"));
        }
        let frame = |r: &mut Reader<'_>| Ok(FrameEntry { offset: r.u32()?, stored: r.u32()?, raw: r.u32()? });
        let frames = (0..frames).map(|_| frame(&mut r)).collect::<Decoded<_>>()?;
        let object = |r: &mut Reader<'_>| {
            Ok(ObjectEntry { id: ObjectId(r.array()?), frame: r.u32()?, start: r.u32()?, len: r.u32()? })
        };
        let objects = (0..objects).map(|_| object(&mut r)).collect::<Decoded<_>>()?;
        Ok(Contents { frames, objects })
    }
}

fn count(n: usize) -> [u8; 4] {
    u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes()
}

fn frame_place(pack: PackId, frame: u32) -> [u8; 12] {
    let mut place = [0; 12];
    place[..8].copy_from_slice(&pack.0.to_le_bytes());
    place[8..].copy_from_slice(&frame.to_le_bytes());
    place
}

/// Raw bytes compressed when that helps; not yet sealed, so it needs no place.
pub struct Packed {
    encoding: u8,
    raw: u32,
    bytes: Vec<u8>,
}

/// Compresses the bytes of a frame.
pub fn compress(raw: &[u8]) -> Packed {
    let bytes = lz4_flex::block::compress(raw);
    let raw_len = u32::try_from(raw.len()).unwrap_or(u32::MAX);
    // Less than one in sixteen is not worth the time of every later read.
    if bytes.len() + raw.len() / 16 < raw.len() {
        Packed { encoding: 1, raw: raw_len, bytes }
    } else {
        Packed { encoding: 0, raw: raw_len, bytes: raw.to_vec() }
    }
}

pub(super) fn encode_frame(keys: &Keys, pack: PackId, frame: u32, packed: Packed) -> Result<Vec<u8>> {
    let stored = keys.seal(&frame_place(pack, frame), packed.bytes)?;
    let mut out = Vec::with_capacity(FRAME_HEADER_BYTES + stored.len());
    out.extend_from_slice(&count(stored.len()));
    out.extend_from_slice(&packed.raw.to_le_bytes());
    out.extend_from_slice(&[packed.encoding, 0, 0, 0]);
    let crc = crc32c::crc32c_append(crc32c::crc32c(&out), &stored);
    out.extend_from_slice(&crc.to_le_bytes());
    out.extend_from_slice(&stored);
    Ok(out)
}

/// The raw bytes of a frame as it lies in the file.
pub(super) fn decode_frame(keys: &Keys, pack: PackId, frame: u32, bytes: &[u8]) -> Decoded<Vec<u8>> {
    let (header, stored) = bytes.split_at_checked(FRAME_HEADER_BYTES).ok_or(Malformed("ends too early"))?;
    let mut r = Reader::new(header);
    let (stored_len, raw, [encoding, zeros @ ..], crc) = (r.u32()?, r.u32()?, r.array::<4>()?, r.u32()?);
    if usize::try_from(stored_len) != Ok(stored.len()) || raw > FRAME_RAW_BYTES_MAX || zeros != [0; 3] {
        return Err(Malformed("no frame header"));
    }
    if crc32c::crc32c_append(crc32c::crc32c(&header[..12]), stored) != crc {
        return Err(Malformed("checksum of the frame does not match"));
    }
    let opened = keys.open(&frame_place(pack, frame), stored).ok_or(Malformed("frame does not decrypt"))?;
    let raw = usize::try_from(raw).unwrap_or(0);
    match encoding {
        0 if opened.len() == raw => Ok(opened.into_owned()),
        1 => {
            let bytes =
                lz4_flex::block::decompress(&opened, raw).map_err(|_| Malformed("frame does not decompress"))?;
            if bytes.len() == raw { Ok(bytes) } else { Err(Malformed("frame has another length")) }
        }
        _ => Err(Malformed("unknown encoding of a frame")),
    }
}

/// A pack being written. Frames go to the file as they are given; the table is kept until the end.
pub struct PackWriter {
    file: Arc<dyn BackingFile>,
    path: String,
    header: PackHeader,
    end: u64,
    contents: Contents,
}

impl PackWriter {
    pub fn create(device: &dyn Device, header: PackHeader) -> Result<PackWriter> {
        let path = header.pack.path();
        let failed = |e| io_error(device, "create", &path, e);
        let mode = OpenMode { create: true, exclusive: true, ..OpenMode::default() };
        let file = device.open(&path, mode).map_err(failed)?;
        file.write_all_at(&header.encode(), 0).map_err(failed)?;
        Ok(PackWriter {
            file,
            path: format!("{}/{path}", device.path()),
            header,
            end: HEADER_BYTES as u64,
            contents: Contents::default(),
        })
    }

    pub fn id(&self) -> PackId {
        self.header.pack
    }

    /// Bytes so far.
    pub fn bytes(&self) -> u64 {
        self.end
    }

    /// Takes the next number for a frame that is to be written later.
    pub fn begin_frame(&mut self) -> u32 {
        self.contents.frames.push(FrameEntry::default());
        u32::try_from(self.contents.frames.len() - 1).unwrap_or(u32::MAX)
    }

    /// Writes a frame that was begun, with the objects in it.
    pub fn write_frame(&mut self, keys: &Keys, frame: u32, packed: Packed, objects: &[ObjectEntry]) -> Result<()> {
        let raw = packed.raw;
        let bytes = encode_frame(keys, self.header.pack, frame, packed)?;
        self.file.write_all_at(&bytes, self.end).map_err(|e| Error::io("write", self.path.clone(), e))?;
        let offset = u32::try_from(self.end).map_err(|_| Error::Invalid("a pack is full".to_owned()))?;
        let index = usize::try_from(frame).unwrap_or(usize::MAX);
        if let Some(entry) = self.contents.frames.get_mut(index) {
            *entry = FrameEntry { offset, stored: u32::try_from(bytes.len()).unwrap_or(u32::MAX), raw };
        }
        self.contents.objects.extend_from_slice(objects);
        self.end += bytes.len() as u64;
        Ok(())
    }

    /// Writes table and trailer, and syncs the file; its name is for the caller to sync.
    pub fn finish(self) -> Result<(PackId, Contents, u64)> {
        let failed = |e| Error::io("write", self.path.clone(), e);
        let table = self.contents.encode();
        let mut tail = table.clone();
        tail.extend_from_slice(&self.end.to_le_bytes());
        tail.extend_from_slice(&(table.len() as u64).to_le_bytes());
        tail.extend_from_slice(&VERSION.to_le_bytes());
        tail.extend_from_slice(&[0; 4]);
        tail.extend_from_slice(&hash_of(&self.header.encode(), &table));
        tail.extend_from_slice(&END_MAGIC);
        self.file.write_all_at(&tail, self.end).map_err(failed)?;
        self.file.sync_data().map_err(failed)?;
        Ok((self.header.pack, self.contents, self.end + tail.len() as u64))
    }
}

pub(super) fn hash_of(header: &[u8], table: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(header).update(table).finalize().as_bytes()
}

/// A pack open for reading.
pub struct PackReader {
    file: Arc<dyn BackingFile>,
    path: String,
    pub header: PackHeader,
    pub frames: Vec<FrameEntry>,
    table: (u64, u64),
}

impl PackReader {
    /// Reads header, trailer and table. `NotFound` in the error when there is no such pack.
    pub fn open(device: &dyn Device, pack: PackId) -> Result<(PackReader, Contents)> {
        let name = pack.path();
        let path = format!("{}/{name}", device.path());
        let failed = |e| io_error(device, "read", &name, e);
        let file = device.open(&name, OpenMode { read_only: true, ..OpenMode::default() }).map_err(failed)?;
        let bytes = file.len().map_err(failed)?;
        let mut header = [0; HEADER_BYTES];
        let n = file.read_at(&mut header, 0).map_err(failed)?;
        let corrupt = |offset: u64, Malformed(why): Malformed| damaged(&path, offset, why);
        let header_fields = PackHeader::decode(&header[..n]).map_err(|e| corrupt(0, e))?;
        if header_fields.pack != pack {
            return Err(damaged(&path, 0, "the header names another pack"));
        }
        let at = bytes.saturating_sub(TRAILER_BYTES as u64);
        let mut trailer = [0; TRAILER_BYTES];
        let n = file.read_at(&mut trailer, at).map_err(failed)?;
        let (table_at, table_len, hash) = decode_trailer(&trailer[..n], bytes).map_err(|e| corrupt(at, e))?;
        let mut table = vec![0; usize::try_from(table_len).unwrap_or(0)];
        let n = file.read_at(&mut table, table_at).map_err(failed)?;
        if n != table.len() || hash_of(&header, &table) != hash {
            return Err(damaged(&path, table_at, "hash of the table of contents does not match"));
        }
        let contents = Contents::decode(&table).map_err(|e| corrupt(table_at, e))?;
        let frames = contents.frames.clone();
        Ok((PackReader { file, path, header: header_fields, frames, table: (table_at, table_len) }, contents))
    }

    /// The header alone, also of a pack that was never finished; None where it does not read.
    pub fn header(device: &dyn Device, pack: PackId) -> Result<Option<PackHeader>> {
        let name = pack.path();
        let mut header = [0; HEADER_BYTES];
        let read = device
            .open(&name, OpenMode { read_only: true, ..OpenMode::default() })
            .and_then(|file| file.read_at(&mut header, 0));
        match read {
            Ok(n) => Ok(PackHeader::decode(&header[..n]).ok().filter(|header| header.pack == pack)),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(e) => Err(io_error(device, "read", &name, e)),
        }
    }

    /// The raw bytes of a frame.
    pub fn frame(&self, keys: &Keys, frame: u32) -> Result<Vec<u8>> {
        let index = usize::try_from(frame).unwrap_or(usize::MAX);
        let entry = self.frames.get(index).ok_or_else(|| damaged(&self.path, 0, "there is no such frame"))?;
        let offset = u64::from(entry.offset);
        if offset + u64::from(entry.stored) > self.table.0 {
            return Err(damaged(&self.path, offset, "the frame reaches into the table of contents"));
        }
        let mut bytes = vec![0; usize::try_from(entry.stored).unwrap_or(0)];
        let n = self.file.read_at(&mut bytes, offset).map_err(|e| Error::io("read", self.path.clone(), e))?;
        bytes.truncate(n);
        decode_frame(keys, self.header.pack, frame, &bytes).map_err(|Malformed(why)| damaged(&self.path, offset, why))
    }

    /// For messages about an object in this pack.
    pub fn damage(&self, frame: u32, why: &str) -> Error {
        let entry = usize::try_from(frame).ok().and_then(|index| self.frames.get(index));
        damaged(&self.path, entry.map_or(0, |entry| u64::from(entry.offset)), why)
    }
}

fn decode_trailer(bytes: &[u8], file_bytes: u64) -> Decoded<(u64, u64, [u8; 32])> {
    let mut r = Reader::new(bytes);
    let (at, len, version, zero, hash) = (r.u64()?, r.u64()?, r.u32()?, r.u32()?, r.array::<32>()?);
    if r.array::<8>()? != END_MAGIC || zero != 0 {
        return Err(Malformed("no trailer: the pack was never finished"));
    }
    if version != VERSION {
        return Err(Malformed("a version of packs that this program does not know"));
    }
    if at.checked_add(len).and_then(|end| end.checked_add(TRAILER_BYTES as u64)) != Some(file_bytes) {
        return Err(Malformed("the trailer's lengths do not add up"));
    }
    Ok((at, len, hash))
}

fn damaged(path: &str, offset: u64, why: &str) -> Error {
    Error::Corrupt { what: "pack", path: path.to_owned(), offset, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sim::SimWorld;

    fn header() -> PackHeader {
        let repository = Uuid::from_u128(0x0102_0304);
        PackHeader { repository, pack: PackId(0x55), lease: LeaseId(0x66), class: Class::Meta }
    }

    fn written() -> (Arc<dyn Device>, Keys, Vec<u8>) {
        let device: Arc<dyn Device> = SimWorld::new(1).device("repository");
        device.create_dir_all("packs/5").expect("directory");
        let keys = Keys::new(&[3; 32], false);
        let mut pack = PackWriter::create(device.as_ref(), header()).expect("created");
        let object = |bytes: &[u8], frame, start| ObjectEntry {
            id: keys.object_id(bytes),
            frame,
            start,
            len: u32::try_from(bytes.len()).expect("short"),
        };
        let (a, b) = (pack.begin_frame(), pack.begin_frame());
        pack.write_frame(&keys, b, compress(&[7; 300]), &[object(&[7; 300], b, 0)]).expect("written");
        pack.write_frame(&keys, a, compress(b"onetwo"), &[object(b"one", a, 0), object(b"two", a, 3)])
            .expect("written");
        pack.finish().expect("finished");
        let bytes = crate::repository::small::read_file(device.as_ref(), "packs/5/0000000000000055");
        (device, keys, bytes.expect("read").expect("there"))
    }

    #[test]
    fn golden_bytes() {
        let (device, keys, bytes) = written();
        assert_eq!((bytes.len(), crc32c::crc32c(&bytes)), (343, 246_648_908), "the format changed: raise the version");
        let (pack, contents) = PackReader::open(device.as_ref(), PackId(0x55)).expect("opens");
        assert_eq!(pack.header, header());
        assert_eq!(pack.frame(&keys, 0).expect("a frame"), b"onetwo");
        assert_eq!(pack.frame(&keys, 1).expect("a frame"), [7; 300]);
        assert_eq!(contents.objects.len(), 3);
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let (device, keys, good) = written();
        let file = device.open("packs/5/0000000000000055", OpenMode::default()).expect("opens");
        for bit in 0..good.len() * 8 {
            let byte = [good[bit / 8] ^ 1 << (bit % 8)];
            file.write_all_at(&byte, (bit / 8) as u64).expect("written");
            let read = PackReader::open(device.as_ref(), PackId(0x55)).and_then(|(pack, _)| {
                [0, 1].map(|frame| pack.frame(&keys, frame)).into_iter().collect::<Result<Vec<_>>>()
            });
            assert!(matches!(read, Err(Error::Corrupt { .. })), "bit {bit}");
            file.write_all_at(&[good[bit / 8]], (bit / 8) as u64).expect("written");
        }
    }
}

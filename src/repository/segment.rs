//! Index segments: which object lies where, sorted by name. Immutable.
//!
//! ```text
//! header (64) | blocks of 4 KiB | tail: packs, fences, filter | trailer (64)
//! ```
//!
//! Header: magic `HEATINDX`, version u32, zero u32, repository id (16), entries u64, packs u32, blocks u32, filter words u32, eight zero bytes,
//! CRC-32C u32 of the 60 bytes before.
//!
//! Block: up to 127 entries of 32 bytes, then at 4064 their count u32, zeros, and at 4092 CRC-32C of the bytes before. Entry: first 16 bytes of the
//! object id, number of the pack in the tail's list u32, frame u32, start u32, length u32.
//!
//! Tail: pack ids (u64 each), fences (the number that the first 8 bytes of each block's first entry are, big-endian, as u64), filter words (u64 each).
//! Trailer: offset of the tail u64, its bytes u64, eight zero bytes, BLAKE3 of header and tail (32), magic `HEATIEND`.
//!
//! Only the tail is kept in memory: 8 bytes per 127 entries and a Bloom filter of 8 bits an entry, 17 MiB for a TiB in slots of 64 KiB. The
//! filter answers nearly all questions about new bytes; the others cost one read of 4 KiB.

use super::ids::{ObjectId, PackId, Place};
use super::small::io_error;
use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::ondisk::bytes::{Decoded, Malformed, Reader, put};
use std::collections::HashMap;
use std::sync::Arc;
use uuid::Uuid;

const MAGIC: [u8; 8] = *b"HEATINDX";
const END_MAGIC: [u8; 8] = *b"HEATIEND";
const VERSION: u32 = 1;
const HEADER_BYTES: usize = 64;
const TRAILER_BYTES: usize = 64;
const BLOCK_BYTES: usize = 4096;
const ENTRY_BYTES: usize = 32;
pub const BLOCK_ENTRIES: usize = 127;
const COUNT_AT: usize = BLOCK_ENTRIES * ENTRY_BYTES;
const CRC_AT: usize = BLOCK_BYTES - 4;
const FILTER_BITS_PER_ENTRY: u64 = 8;
const FILTER_PROBES: u32 = 5;

/// The part of an object's id that the index holds; a match is confirmed by the hash of the bytes themselves.
pub type Prefix = [u8; 16];

pub fn prefix(id: &ObjectId) -> Prefix {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p, ..] = id.0;
    [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p]
}

/// One entry, its pack by name.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Entry {
    pub prefix: Prefix,
    pub place: Place,
}

/// Writes a segment from entries in order.
pub struct SegmentWriter {
    file: Arc<dyn BackingFile>,
    path: String,
    repository: Uuid,
    packs: Vec<PackId>,
    numbers: HashMap<PackId, u32>,
    block: Vec<Entry>,
    blocks: Vec<u8>,
    end: u64,
    entries: u64,
    fences: Vec<u64>,
    filter: Vec<u64>,
}

/// Blocks are written in batches of this much.
const BATCH_BYTES: usize = 256 * 1024;

impl SegmentWriter {
    /// `entries_max` sizes the filter.
    pub fn create(device: &dyn Device, path: &str, repository: Uuid, entries_max: u64) -> Result<SegmentWriter> {
        let mode = OpenMode { create: true, exclusive: true, ..OpenMode::default() };
        let file = device.open(path, mode).map_err(|e| io_error(device, "create", path, e))?;
        let words = (entries_max * FILTER_BITS_PER_ENTRY).div_ceil(64).max(1);
        Ok(SegmentWriter {
            file,
            path: format!("{}/{path}", device.path()),
            repository,
            packs: Vec::new(),
            numbers: HashMap::new(),
            block: Vec::with_capacity(BLOCK_ENTRIES),
            blocks: Vec::new(),
            end: HEADER_BYTES as u64,
            entries: 0,
            fences: Vec::new(),
            filter: vec![0; usize::try_from(words).unwrap_or(1)],
        })
    }

    pub fn push(&mut self, entry: Entry) -> Result<()> {
        for bit in filter_bits(&entry.prefix, self.filter.len()) {
            self.filter[bit / 64] |= 1 << (bit % 64);
        }
        self.block.push(entry);
        self.entries += 1;
        if self.block.len() == BLOCK_ENTRIES { self.end_block() } else { Ok(()) }
    }

    fn end_block(&mut self) -> Result<()> {
        let Some(first) = self.block.first() else { return Ok(()) };
        self.fences.push(fence(&first.prefix));
        let mut bytes = vec![0; BLOCK_BYTES];
        for (index, entry) in self.block.iter().enumerate() {
            let next = u32::try_from(self.packs.len()).unwrap_or(u32::MAX);
            let number = *self.numbers.entry(entry.place.pack).or_insert(next);
            if number == next {
                self.packs.push(entry.place.pack);
            }
            let at = index * ENTRY_BYTES;
            put(&mut bytes, at, &entry.prefix);
            for (field, value) in [number, entry.place.frame, entry.place.start, entry.place.len].iter().enumerate() {
                put(&mut bytes, at + 16 + field * 4, &value.to_le_bytes());
            }
        }
        put(&mut bytes, COUNT_AT, &u32::try_from(self.block.len()).unwrap_or(0).to_le_bytes());
        let crc = crc32c::crc32c(&bytes[..CRC_AT]);
        put(&mut bytes, CRC_AT, &crc.to_le_bytes());
        self.blocks.extend_from_slice(&bytes);
        self.block.clear();
        if self.blocks.len() >= BATCH_BYTES { self.flush() } else { Ok(()) }
    }

    fn flush(&mut self) -> Result<()> {
        self.file.write_all_at(&self.blocks, self.end).map_err(|e| Error::io("write", self.path.clone(), e))?;
        self.end += self.blocks.len() as u64;
        self.blocks.clear();
        Ok(())
    }

    /// Durable when this returns, but for its name, which is for the caller to sync. Returns its bytes.
    pub fn finish(mut self) -> Result<u64> {
        self.end_block()?;
        self.flush()?;
        let header = self.header();
        let mut tail = Vec::new();
        self.packs.iter().for_each(|pack| tail.extend_from_slice(&pack.0.to_le_bytes()));
        self.fences.iter().chain(&self.filter).for_each(|word| tail.extend_from_slice(&word.to_le_bytes()));
        let hash = hash_of(&header, &tail);
        let tail_bytes = tail.len() as u64;
        tail.extend_from_slice(&self.end.to_le_bytes());
        tail.extend_from_slice(&tail_bytes.to_le_bytes());
        tail.extend_from_slice(&[0; 8]);
        tail.extend_from_slice(&hash);
        tail.extend_from_slice(&END_MAGIC);
        let write = || {
            self.file.write_all_at(&tail, self.end)?;
            self.file.write_all_at(&header, 0)?;
            self.file.sync_data()
        };
        write().map_err(|e| Error::io("write", self.path.clone(), e))?;
        Ok(self.end + tail.len() as u64)
    }

    fn header(&self) -> [u8; HEADER_BYTES] {
        let mut out = [0; HEADER_BYTES];
        let count = |n: usize| u32::try_from(n).unwrap_or(u32::MAX).to_le_bytes();
        put(&mut out, 0, &MAGIC);
        put(&mut out, 8, &VERSION.to_le_bytes());
        put(&mut out, 16, self.repository.as_bytes());
        put(&mut out, 32, &self.entries.to_le_bytes());
        put(&mut out, 40, &count(self.packs.len()));
        put(&mut out, 44, &count(self.fences.len()));
        put(&mut out, 48, &count(self.filter.len()));
        let crc = crc32c::crc32c(&out[..60]);
        put(&mut out, 60, &crc.to_le_bytes());
        out
    }
}

pub(super) fn hash_of(header: &[u8], tail: &[u8]) -> [u8; 32] {
    *blake3::Hasher::new().update(header).update(tail).finalize().as_bytes()
}

fn fence(prefix: &Prefix) -> u64 {
    let [a, b, c, d, e, f, g, h, ..] = *prefix;
    u64::from_be_bytes([a, b, c, d, e, f, g, h])
}

/// The prefix is chance already, so its bytes serve as hashes.
fn filter_bits(prefix: &Prefix, words: usize) -> impl Iterator<Item = usize> {
    let [.., a, b, c, d, e, f, g, h] = *prefix;
    let (first, step) = (fence(prefix), u64::from_le_bytes([a, b, c, d, e, f, g, h]) | 1);
    let bits = (words as u64) * 64;
    (0..FILTER_PROBES).map(move |probe| {
        let bit = first.wrapping_add(step.wrapping_mul(u64::from(probe))) % bits.max(1);
        usize::try_from(bit).unwrap_or(0)
    })
}

/// A segment open for questions.
pub struct Segment {
    file: Arc<dyn BackingFile>,
    /// Relative to the repository.
    pub name: String,
    path: String,
    pub entries: u64,
    pub packs: Vec<PackId>,
    fences: Vec<u64>,
    filter: Vec<u64>,
    pub bytes: u64,
}

impl Segment {
    pub fn open(device: &dyn Device, name: &str, repository: Uuid) -> Result<Segment> {
        let path = format!("{}/{name}", device.path());
        let failed = |e| io_error(device, "read", name, e);
        let file = device.open(name, OpenMode { read_only: true, ..OpenMode::default() }).map_err(failed)?;
        let bytes = file.len().map_err(failed)?;
        let mut header = [0; HEADER_BYTES];
        let n = file.read_at(&mut header, 0).map_err(failed)?;
        let corrupt = |at: u64, Malformed(why): Malformed| damaged(&path, at, why);
        let [entries, packs, fences, words] = counts(&header[..n], repository).map_err(|e| corrupt(0, e))?;
        let at = bytes.saturating_sub(TRAILER_BYTES as u64);
        let tail_bytes = (packs + fences + words) * 8;
        let tail_at = HEADER_BYTES as u64 + fences * BLOCK_BYTES as u64;
        let entries_max = fences * BLOCK_ENTRIES as u64;
        // Both are believed from here on: by the size of a prune's marks, and by every question.
        if tail_at + tail_bytes + TRAILER_BYTES as u64 != bytes || entries > entries_max || words == 0 {
            return Err(damaged(&path, 0, "the counts do not match the file's length"));
        }
        let mut tail = vec![0; usize::try_from(tail_bytes).unwrap_or(0) + TRAILER_BYTES];
        let n = file.read_at(&mut tail, tail_at).map_err(failed)?;
        let (tail, trailer) = tail[..n].split_at(n.saturating_sub(TRAILER_BYTES));
        if trailer.len() != TRAILER_BYTES || trailer[24..56] != hash_of(&header, tail) || trailer[56..] != END_MAGIC {
            return Err(damaged(&path, at, "hash of the tail does not match"));
        }
        let stated = [tail_at.to_le_bytes(), tail_bytes.to_le_bytes(), [0; 8]].concat();
        if trailer[..24] != stated {
            return Err(damaged(&path, at, "the trailer's lengths do not add up"));
        }
        let mut words_of_tail =
            tail.chunks_exact(8).map(|word| u64::from_le_bytes(word.try_into().unwrap_or_default()));
        let mut take = |n: u64| words_of_tail.by_ref().take(usize::try_from(n).unwrap_or(0)).collect::<Vec<u64>>();
        let packs = take(packs).into_iter().map(PackId).collect();
        let (fences, filter) = (take(fences), take(words));
        Ok(Segment { file, name: name.to_owned(), path, entries, packs, fences, filter, bytes })
    }

    /// Places of objects with this prefix; nearly always none or one.
    pub fn find(&self, wanted: &Prefix) -> Result<Vec<Place>> {
        Ok(self.find_numbered(wanted)?.into_iter().map(|(_, place)| place).collect())
    }

    /// As [`Segment::find`], each with the number of its entry in the segment.
    pub fn find_numbered(&self, wanted: &Prefix) -> Result<Vec<(usize, Place)>> {
        if filter_bits(wanted, self.filter.len()).any(|bit| self.filter[bit / 64] >> (bit % 64) & 1 == 0) {
            return Ok(Vec::new());
        }
        let key = fence(wanted);
        // The block before the first fence that is not below the key may still end with it.
        let first = self.fences.partition_point(|fence| *fence < key).saturating_sub(1);
        let mut found = Vec::new();
        for block in first..self.fences.len() {
            if self.fences[block] > key {
                break;
            }
            let entries = self.block(block)?;
            let numbered = entries.iter().enumerate().filter(|(_, entry)| entry.prefix == *wanted);
            found.extend(numbered.map(|(index, entry)| (block * BLOCK_ENTRIES + index, entry.place)));
        }
        Ok(found)
    }

    pub fn blocks(&self) -> usize {
        self.fences.len()
    }

    /// The entries of one block, in order.
    pub fn block(&self, block: usize) -> Result<Vec<Entry>> {
        let at = (HEADER_BYTES + block * BLOCK_BYTES) as u64;
        let mut bytes = vec![0; BLOCK_BYTES];
        let n = self.file.read_at(&mut bytes, at).map_err(|e| Error::io("read", self.path.clone(), e))?;
        if n != BLOCK_BYTES || crc32c::crc32c(&bytes[..CRC_AT]).to_le_bytes() != bytes[CRC_AT..] {
            return Err(damaged(&self.path, at, "checksum of the block does not match"));
        }
        self.decode_block(&bytes).map_err(|Malformed(why)| damaged(&self.path, at, why))
    }

    fn decode_block(&self, bytes: &[u8]) -> Decoded<Vec<Entry>> {
        let count = usize::try_from(Reader::new(&bytes[COUNT_AT..]).u32()?).unwrap_or(usize::MAX);
        if count > BLOCK_ENTRIES {
            return Err(Malformed("more entries than a block holds"));
        }
        let mut r = Reader::new(bytes);
        let entry = |r: &mut Reader<'_>| {
            let (prefix, number) = (r.array()?, r.u32()?);
            let pack = usize::try_from(number).ok().and_then(|number| self.packs.get(number));
            let pack = *pack.ok_or(Malformed("a pack that the segment does not list"))?;
            Ok(Entry { prefix, place: Place { pack, frame: r.u32()?, start: r.u32()?, len: r.u32()? } })
        };
        (0..count).map(|_| entry(&mut r)).collect()
    }

    /// Bytes of memory that the segment holds.
    pub fn memory_bytes(&self) -> usize {
        8 * (self.packs.len() + self.fences.len() + self.filter.len())
    }
}

/// Entries, packs, blocks and filter words as the header says.
fn counts(header: &[u8], repository: Uuid) -> Decoded<[u64; 4]> {
    let mut r = Reader::new(header);
    if header.len() != HEADER_BYTES || r.array::<8>()? != MAGIC {
        return Err(Malformed("no index segment"));
    }
    if crc32c::crc32c(&header[..60]).to_le_bytes() != header[60..] {
        return Err(Malformed("checksum of the header does not match"));
    }
    let (version, _zero) = (r.u32()?, r.u32()?);
    if version != VERSION {
        return Err(Malformed("a version of segments that this program does not know"));
    }
    if r.array::<16>()? != *repository.as_bytes() {
        return Err(Malformed("a segment of another repository"));
    }
    Ok([r.u64()?, r.u32()?.into(), r.u32()?.into(), r.u32()?.into()])
}

fn damaged(path: &str, offset: u64, why: &str) -> Error {
    Error::Corrupt { what: "index segment", path: path.to_owned(), offset, why: why.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::device::sim::SimWorld;

    fn entry(n: u64) -> Entry {
        let mut prefix = [0; 16];
        prefix.copy_from_slice(&blake3::hash(&n.to_le_bytes()).as_bytes()[..16]);
        let frame = u32::try_from(n).expect("small");
        Entry { prefix, place: Place { pack: PackId(n % 5), frame, start: 3, len: 4 } }
    }

    fn segment(n: u64) -> (Arc<dyn Device>, Segment) {
        let device: Arc<dyn Device> = SimWorld::new(1).device("repository");
        let repository = Uuid::from_u128(7);
        let mut entries: Vec<Entry> = (0..n).map(entry).collect();
        entries.sort();
        let mut writer = SegmentWriter::create(device.as_ref(), "segment", repository, n).expect("created");
        entries.into_iter().try_for_each(|entry| writer.push(entry)).expect("pushed");
        writer.finish().expect("finished");
        let segment = Segment::open(device.as_ref(), "segment", repository).expect("opens");
        (device, segment)
    }

    #[test]
    fn finds_what_is_there_and_nothing_else() {
        for n in [0, 1, 127, 128, 5000] {
            let (_, segment) = segment(n);
            assert_eq!(segment.entries, n);
            for wanted in 0..n {
                let entry = entry(wanted);
                assert_eq!(segment.find(&entry.prefix).expect("found"), [entry.place]);
            }
            let strangers =
                (n..n + 1000).filter(|other| !segment.find(&entry(*other).prefix).expect("asked").is_empty());
            assert_eq!(strangers.count(), 0);
        }
    }

    #[test]
    fn memory_stays_within_its_bound() {
        let (_, segment) = segment(20_000);
        // 32 MiB per TiB in slots of 64 KiB are 2 bytes an entry.
        assert!(segment.memory_bytes() as u64 <= 2 * segment.entries, "{} bytes", segment.memory_bytes());
    }

    /// A filter without a word was asked for its first bit, and a count without bounds was what a prune made room for.
    #[test]
    fn counts_that_cannot_be_are_refused_though_every_checksum_fits() {
        let (device, _) = segment(3);
        let good = crate::repository::small::read_file(device.as_ref(), "segment").expect("read").expect("there");
        let refused = |name: &str, mut bytes: Vec<u8>| {
            crate::repository::fuzzing::repair("segment", &mut bytes);
            let file = device.open(name, OpenMode { create: true, ..OpenMode::default() }).expect("made");
            file.write_all_at(&bytes, 0).expect("written");
            let read = Segment::open(device.as_ref(), name, Uuid::from_u128(7));
            matches!(read, Err(Error::Corrupt { .. }))
        };
        assert!(!refused("same", good.clone()));
        let mut endless = good.clone();
        endless[32..40].copy_from_slice(&u64::MAX.to_le_bytes());
        assert!(refused("endless", endless));
        let mut unfiltered = good;
        let words = usize::try_from(u32::from_le_bytes(unfiltered[48..52].try_into().expect("four"))).expect("few");
        unfiltered[48..52].copy_from_slice(&[0; 4]);
        let end = unfiltered.len() - TRAILER_BYTES;
        unfiltered.drain(end - 8 * words..end);
        assert!(refused("unfiltered", unfiltered));
    }

    #[test]
    fn golden_bytes_and_flipped_bits() {
        let (device, _) = segment(3);
        let good = crate::repository::small::read_file(device.as_ref(), "segment").expect("read").expect("there");
        assert_eq!((good.len(), crc32c::crc32c(&good)), (4264, 3_212_950_028), "the format changed: raise the version");
        let file = device.open("segment", OpenMode::default()).expect("opens");
        for bit in 0..good.len() * 8 {
            let byte = [good[bit / 8] ^ 1 << (bit % 8)];
            file.write_all_at(&byte, (bit / 8) as u64).expect("written");
            let read =
                Segment::open(device.as_ref(), "segment", Uuid::from_u128(7)).and_then(|segment| segment.block(0));
            assert!(matches!(read, Err(Error::Corrupt { .. })), "bit {bit}");
            file.write_all_at(&[good[bit / 8]], (bit / 8) as u64).expect("written");
        }
    }
}

//! A log group: a 4 KiB header page, then payload pages. One group is one write to the device.
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HFSGRP\0\x01` (the last byte is the version) |
//! | 8 | 2 | record count |
//! | 10 | 2 | payload pages |
//! | 12 | 4 | bytes of inline payload, at the end of the page |
//! | 16 | 16 | volume id |
//! | 32 | 8 | incarnation: the mount that wrote it |
//! | 40 | 8 | segment sequence number |
//! | 48 | 8 | own offset in the segment |
//! | 56 | 8 | group sequence number |
//! | 64 | 8 | checksum of the previous group's header |
//! | 72 | 8 | wall-clock time at commit, ns |
//! | 80 | 8 | checksum of this page with this field zero (first 8 bytes of BLAKE3) |
//! | 88 | 40 x records | record headers |
//! | .. | 4 x payload pages | CRC-32C of each payload page |
//! | .. | | zeros, then inline payloads up to the end of the page |
//!
//! A record header is 40 bytes: kind u8, flags u8, tier u8, score u8, inline offset u16 (0: payload in pages), payload page u16,
//! file id u64, offset u64, length u64, reserved u64 (zero).
//!
//! The checksum of the previous header chains groups across segments: replay follows it and nothing else.

use super::bytes::{Malformed, Reader, put};
use super::checksum64;
use crate::units::{FileId, PAGE, PAGE_BYTES, WallNs};
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HFSGRP\0\x01";
pub const FIXED_LEN: usize = 88;
pub const RECORD_LEN: usize = 40;
const CHECKSUM_AT: usize = 80;

/// What a record does to its file.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum RecordKind {
    /// `length` bytes at `offset`; the file grows to hold them.
    Data,
    /// The size becomes `offset`; `length` is the size before.
    Truncate,
    /// `length` bytes at `offset` read as zeros; the size stays.
    Punch,
    /// The size becomes at least `offset`.
    Size,
    /// Bytes for jobs and the control plane; no file content.
    Note,
    /// The modification time was set to `offset`, nanoseconds as a signed number.
    Times,
}

impl RecordKind {
    fn code(self) -> u8 {
        match self {
            RecordKind::Data => 1,
            RecordKind::Truncate => 2,
            RecordKind::Punch => 3,
            RecordKind::Size => 4,
            RecordKind::Note => 5,
            RecordKind::Times => 6,
        }
    }
    fn from_code(code: u8) -> Result<RecordKind, Malformed> {
        Ok(match code {
            1 => RecordKind::Data,
            2 => RecordKind::Truncate,
            3 => RecordKind::Punch,
            4 => RecordKind::Size,
            5 => RecordKind::Note,
            6 => RecordKind::Times,
            _ => return Err(Malformed("unknown record kind")),
        })
    }
}

/// Record flag: left to die in the log while there is room (files written in sequence or recycled).
pub const FLAG_LET_DIE: u8 = 1;
/// No tier was asked for when the record was written.
pub const TIER_UNSET: u8 = 0xff;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct RecordHeader {
    pub kind: RecordKind,
    pub flags: u8,
    /// The tier on which the block lay when it was written, or [`TIER_UNSET`].
    pub tier: u8,
    /// Access score of the block when it was written, 0..=255.
    pub score: u8,
    /// Offset of the payload in the header page, 0 when it is in payload pages or there is none.
    pub inline_offset: u16,
    /// First payload page, counted from the page after the header.
    pub payload_page: u16,
    pub file: FileId,
    pub offset: u64,
    pub length: u64,
}

impl RecordHeader {
    pub fn encode(&self) -> [u8; RECORD_LEN] {
        let mut out = [0; RECORD_LEN];
        put(&mut out, 0, &[self.kind.code(), self.flags, self.tier, self.score]);
        put(&mut out, 4, &self.inline_offset.to_le_bytes());
        put(&mut out, 6, &self.payload_page.to_le_bytes());
        put(&mut out, 8, &self.file.0.to_le_bytes());
        put(&mut out, 16, &self.offset.to_le_bytes());
        put(&mut out, 24, &self.length.to_le_bytes());
        out
    }

    pub fn decode(reader: &mut Reader<'_>) -> Result<RecordHeader, Malformed> {
        let kind = RecordKind::from_code(reader.u8()?)?;
        let (flags, tier, score) = (reader.u8()?, reader.u8()?, reader.u8()?);
        let (inline_offset, payload_page) = (reader.u16()?, reader.u16()?);
        let (file, offset, length) = (FileId(reader.u64()?), reader.u64()?, reader.u64()?);
        if reader.u64()? != 0 {
            return Err(Malformed("reserved field of a record is not zero"));
        }
        let range = kind != RecordKind::Times;
        if range && offset.checked_add(length).is_none_or(|end| end > i64::MAX.unsigned_abs()) {
            return Err(Malformed("record reaches past the largest file"));
        }
        Ok(RecordHeader { kind, flags, tier, score, inline_offset, payload_page, file, offset, length })
    }

    /// Where the payload begins, in bytes from the beginning of its group.
    pub fn payload_offset(&self) -> u64 {
        match self.inline_offset {
            0 => (1 + u64::from(self.payload_page)) * PAGE_BYTES,
            inline => u64::from(inline),
        }
    }

    /// Pages of payload that this record owns.
    pub fn payload_pages(&self) -> u64 {
        match self.kind {
            RecordKind::Data | RecordKind::Note if self.inline_offset == 0 => self.length.div_ceil(4096),
            _ => 0,
        }
    }
}

/// A group header: everything but the payloads.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct GroupHeader {
    pub volume: Uuid,
    pub incarnation: u64,
    pub segment_seq: u64,
    pub offset: u64,
    pub group_seq: u64,
    pub previous_checksum: u64,
    pub wall: WallNs,
    pub inline_bytes: u32,
    pub records: Vec<RecordHeader>,
    pub payload_crcs: Vec<u32>,
}

impl GroupHeader {
    /// Bytes of the group in the log.
    pub fn total_len(&self) -> u64 {
        (1 + self.payload_crcs.len() as u64) * 4096
    }

    /// Does a header with this content fit into its page?
    pub fn fits(records: usize, payload_pages: usize, inline_bytes: usize) -> bool {
        FIXED_LEN + records * RECORD_LEN + payload_pages * 4 + inline_bytes <= PAGE
    }

    /// Fills `page` (4096 bytes, inline payloads already at its end) and returns the header's checksum.
    pub fn encode_into(&self, page: &mut [u8]) -> u64 {
        let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
        put(page, 0, &MAGIC);
        put(page, 8, &count(self.records.len()));
        put(page, 10, &count(self.payload_crcs.len()));
        put(page, 12, &self.inline_bytes.to_le_bytes());
        put(page, 16, self.volume.as_bytes());
        put(page, 32, &self.incarnation.to_le_bytes());
        put(page, 40, &self.segment_seq.to_le_bytes());
        put(page, 48, &self.offset.to_le_bytes());
        put(page, 56, &self.group_seq.to_le_bytes());
        put(page, 64, &self.previous_checksum.to_le_bytes());
        put(page, 72, &self.wall.0.to_le_bytes());
        put(page, CHECKSUM_AT, &[0; 8]);
        let mut at = FIXED_LEN;
        for record in &self.records {
            put(page, at, &record.encode());
            at += RECORD_LEN;
        }
        for crc in &self.payload_crcs {
            put(page, at, &crc.to_le_bytes());
            at += 4;
        }
        let checksum = checksum64(page);
        put(page, CHECKSUM_AT, &checksum.to_le_bytes());
        checksum
    }

    /// Decodes and verifies a header page; returns the header and its checksum.
    pub fn decode(page: &[u8]) -> Result<(GroupHeader, u64), Malformed> {
        if page.len() != PAGE {
            return Err(Malformed("a header is one page"));
        }
        let mut r = Reader::new(page);
        if r.array::<8>()? != MAGIC {
            return Err(Malformed("no group header"));
        }
        let (records, pages, inline_bytes) = (r.u16()?, r.u16()?, r.u32()?);
        let volume = Uuid::from_bytes(r.array()?);
        let (incarnation, segment_seq, offset, group_seq, previous_checksum) =
            (r.u64()?, r.u64()?, r.u64()?, r.u64()?, r.u64()?);
        let wall = WallNs(r.i64()?);
        let checksum = r.u64()?;
        let mut copy = page.to_vec();
        put(&mut copy, CHECKSUM_AT, &[0; 8]);
        if checksum64(&copy) != checksum {
            return Err(Malformed("header checksum does not match"));
        }
        let inline_len = usize::try_from(inline_bytes).map_err(|_| Malformed("inline payload too long"))?;
        if !GroupHeader::fits(usize::from(records), usize::from(pages), inline_len) {
            return Err(Malformed("header says more than fits into its page"));
        }
        let records = decode_records(&mut r, records, u64::from(pages), inline_len)?;
        let payload_crcs = (0..pages).map(|_| r.u32()).collect::<Result<Vec<_>, _>>()?;
        let header = GroupHeader {
            volume,
            incarnation,
            segment_seq,
            offset,
            group_seq,
            previous_checksum,
            wall,
            inline_bytes,
            records,
            payload_crcs,
        };
        Ok((header, checksum))
    }
}

fn decode_records(r: &mut Reader<'_>, count: u16, pages: u64, inline: usize) -> Result<Vec<RecordHeader>, Malformed> {
    let mut records = Vec::with_capacity(usize::from(count));
    for _ in 0..count {
        let record = RecordHeader::decode(r)?;
        if u64::from(record.payload_page) + record.payload_pages() > pages {
            return Err(Malformed("payload lies outside of its group"));
        }
        if record.inline_offset != 0 {
            let at = usize::from(record.inline_offset);
            if at < PAGE - inline || record.length > (PAGE - at.min(PAGE)) as u64 {
                return Err(Malformed("inline payload lies outside of its page"));
            }
        }
        records.push(record);
    }
    Ok(records)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sample() -> GroupHeader {
        let data = RecordHeader {
            kind: RecordKind::Data,
            flags: FLAG_LET_DIE,
            tier: 1,
            score: 7,
            inline_offset: 0,
            payload_page: 0,
            file: FileId(0x1122),
            offset: 8192,
            length: 5000,
        };
        let inline = RecordHeader { inline_offset: 4090, length: 6, offset: 1, flags: 0, ..data };
        let truncate = RecordHeader { kind: RecordKind::Truncate, length: 99, offset: 3, flags: 0, ..data };
        GroupHeader {
            volume: Uuid::from_u128(0x0102_0304_0506_0708_090a_0b0c_0d0e_0f10),
            incarnation: 3,
            segment_seq: 4,
            offset: 12288,
            group_seq: 77,
            previous_checksum: 0xfeed,
            wall: WallNs(-5),
            inline_bytes: 6,
            records: vec![data, inline, truncate],
            payload_crcs: vec![0xaabb_ccdd, 0x1234_5678],
        }
    }

    fn encoded() -> Vec<u8> {
        let mut page = vec![0; PAGE];
        page[4090..].copy_from_slice(b"inline");
        sample().encode_into(&mut page);
        page
    }

    #[test]
    fn golden_bytes() {
        let page = encoded();
        assert_eq!(&page[..16], b"HFSGRP\0\x01\x03\0\x02\0\x06\0\0\0");
        assert_eq!(&page[88..96], &[1, 1, 1, 7, 0, 0, 0, 0]);
        assert_eq!(crc32c::crc32c(&page), 0xe750_6bbe, "the format changed: raise the version");
    }

    #[test]
    fn decodes_what_it_encoded() {
        let (header, checksum) = GroupHeader::decode(&encoded()).expect("decodes");
        assert_eq!(header, sample());
        assert_eq!(checksum.to_le_bytes(), encoded()[80..88]);
    }

    /// Times have any length, since they are no range; with a payload in the page the sum ran over.
    #[test]
    fn an_inline_payload_of_any_length_is_refused_without_a_panic() {
        let mut header = sample();
        header.records[1] = RecordHeader { kind: RecordKind::Times, length: u64::MAX, ..header.records[1] };
        let mut page = vec![0; PAGE];
        header.encode_into(&mut page);
        assert!(GroupHeader::decode(&page).is_err());
    }

    #[test]
    fn every_flipped_bit_is_noticed() {
        let page = encoded();
        for bit in 0..page.len() * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(GroupHeader::decode(&bad).is_err(), "bit {bit} went unnoticed");
        }
    }
}

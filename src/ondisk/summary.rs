//! A segment summary: all record headers of a sealed segment, written behind its last group, so that a
//! remount reads one run of bytes per segment instead of one header per group.
//!
//! The last page of the segment is the trailer:
//!
//! | offset | bytes | field |
//! | --- | --- | --- |
//! | 0 | 8 | magic `HFSSUM\0\x01` |
//! | 8 | 16 | volume id |
//! | 24 | 8 | segment sequence number |
//! | 32 | 8 | offset of the body in the segment |
//! | 40 | 8 | bytes of the body |
//! | 48 | 8 | offset where the groups end |
//! | 56 | 32 | BLAKE3 of the body |
//! | 88 | 8 | checksum of this page with this field zero |
//!
//! The body is, for each group: incarnation u64, offset u64, group sequence u64, previous checksum u64, checksum u64, wall i64, CRC-32C of the header
//! page u32, record count u16, payload pages u16, then record headers and page checksums as in the group (`ondisk::group`).
//! A summary that does not verify is ignored: the group headers are still there.

use super::bytes::{Malformed, Reader, put};
use super::checksum64;
use super::group::{GroupHeader, RecordHeader};
use crate::units::{PAGE, WallNs};
use uuid::Uuid;

pub const MAGIC: [u8; 8] = *b"HFSSUM\0\x01";
const CHECKSUM_AT: usize = 88;
const GROUP_FIXED_LEN: usize = 56;

#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Trailer {
    pub volume: Uuid,
    pub segment_seq: u64,
    pub body_offset: u64,
    pub body_bytes: u64,
    pub groups_end: u64,
    pub body_hash: [u8; 32],
}

impl Trailer {
    pub fn encode(&self) -> Vec<u8> {
        let mut page = vec![0; PAGE];
        put(&mut page, 0, &MAGIC);
        put(&mut page, 8, self.volume.as_bytes());
        put(&mut page, 24, &self.segment_seq.to_le_bytes());
        put(&mut page, 32, &self.body_offset.to_le_bytes());
        put(&mut page, 40, &self.body_bytes.to_le_bytes());
        put(&mut page, 48, &self.groups_end.to_le_bytes());
        put(&mut page, 56, &self.body_hash);
        let checksum = checksum64(&page);
        put(&mut page, CHECKSUM_AT, &checksum.to_le_bytes());
        page
    }

    pub fn decode(page: &[u8]) -> Result<Trailer, Malformed> {
        let mut r = Reader::new(page);
        if r.array::<8>()? != MAGIC || page.len() != PAGE {
            return Err(Malformed("no summary"));
        }
        let trailer = Trailer {
            volume: Uuid::from_bytes(r.array()?),
            segment_seq: r.u64()?,
            body_offset: r.u64()?,
            body_bytes: r.u64()?,
            groups_end: r.u64()?,
            body_hash: r.array()?,
        };
        let checksum = r.u64()?;
        let mut copy = page.to_vec();
        put(&mut copy, CHECKSUM_AT, &[0; 8]);
        if checksum64(&copy) != checksum {
            return Err(Malformed("summary checksum does not match"));
        }
        Ok(trailer)
    }
}

/// One group of a summary: its header, its checksum, and the CRC-32C of its header page.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct SummaryGroup {
    pub header: GroupHeader,
    pub checksum: u64,
    pub page_crc: u32,
}

/// Bytes that a group takes in a summary body.
pub fn group_len(records: usize, payload_pages: usize) -> usize {
    GROUP_FIXED_LEN + records * super::group::RECORD_LEN + payload_pages * 4
}

/// Appends a group to a body.
pub fn push_group(body: &mut Vec<u8>, header: &GroupHeader, checksum: u64, page_crc: u32) {
    let count = |n: usize| u16::try_from(n).unwrap_or(u16::MAX).to_le_bytes();
    for field in [header.incarnation, header.offset, header.group_seq, header.previous_checksum, checksum] {
        body.extend_from_slice(&field.to_le_bytes());
    }
    body.extend_from_slice(&header.wall.0.to_le_bytes());
    body.extend_from_slice(&page_crc.to_le_bytes());
    body.extend_from_slice(&count(header.records.len()));
    body.extend_from_slice(&count(header.payload_crcs.len()));
    for record in &header.records {
        body.extend_from_slice(&record.encode());
    }
    for crc in &header.payload_crcs {
        body.extend_from_slice(&crc.to_le_bytes());
    }
}

/// Decodes a body whose hash has been verified against `trailer`.
pub fn decode_body(trailer: &Trailer, body: &[u8]) -> Result<Vec<SummaryGroup>, Malformed> {
    let mut r = Reader::new(body);
    let mut groups = Vec::new();
    while r.remaining() > 0 {
        let (incarnation, offset, group_seq) = (r.u64()?, r.u64()?, r.u64()?);
        let (previous_checksum, checksum) = (r.u64()?, r.u64()?);
        let wall = WallNs(r.i64()?);
        let (page_crc, records, pages) = (r.u32()?, r.u16()?, r.u16()?);
        let records = (0..records).map(|_| RecordHeader::decode(&mut r)).collect::<Result<Vec<_>, _>>()?;
        let payload_crcs = (0..pages).map(|_| r.u32()).collect::<Result<Vec<_>, _>>()?;
        let header = GroupHeader {
            volume: trailer.volume,
            incarnation,
            segment_seq: trailer.segment_seq,
            offset,
            group_seq,
            previous_checksum,
            wall,
            inline_bytes: 0,
            records,
            payload_crcs,
        };
        groups.push(SummaryGroup { header, checksum, page_crc });
    }
    Ok(groups)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ondisk::group::RecordKind;
    use crate::units::FileId;

    fn sample() -> (Trailer, Vec<u8>, GroupHeader) {
        let record = RecordHeader {
            kind: RecordKind::Data,
            flags: 0,
            tier: 0,
            score: 0,
            inline_offset: 0,
            payload_page: 0,
            file: FileId(9),
            offset: 4096,
            length: 4096,
        };
        let header = GroupHeader {
            volume: Uuid::from_u128(5),
            incarnation: 1,
            segment_seq: 2,
            offset: 0,
            group_seq: 3,
            previous_checksum: 4,
            wall: WallNs(6),
            inline_bytes: 0,
            records: vec![record],
            payload_crcs: vec![7],
        };
        let mut body = Vec::new();
        push_group(&mut body, &header, 8, 9);
        let trailer = Trailer {
            volume: Uuid::from_u128(5),
            segment_seq: 2,
            body_offset: 8192,
            body_bytes: body.len() as u64,
            groups_end: 8192,
            body_hash: *blake3::hash(&body).as_bytes(),
        };
        (trailer, body, header)
    }

    #[test]
    fn golden_bytes() {
        let (trailer, body, header) = sample();
        assert_eq!(body.len(), group_len(1, 1));
        assert_eq!(crc32c::crc32c(&body), 0xda6d_01ff, "the format changed: raise the version");
        assert_eq!(crc32c::crc32c(&trailer.encode()), 0xdc32_46f0, "the format changed: raise the version");
        let groups = decode_body(&trailer, &body).expect("decodes");
        assert_eq!(groups, vec![SummaryGroup { header, checksum: 8, page_crc: 9 }]);
    }

    #[test]
    fn every_flipped_bit_of_the_trailer_is_noticed() {
        let page = sample().0.encode();
        assert_eq!(Trailer::decode(&page), Ok(sample().0));
        for bit in 0..page.len() * 8 {
            let mut bad = page.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert!(Trailer::decode(&bad).is_err(), "bit {bit} went unnoticed");
        }
    }

    #[test]
    fn a_body_with_any_flipped_bit_never_panics() {
        let (trailer, body, _) = sample();
        for bit in 0..body.len() * 8 {
            let mut bad = body.clone();
            bad[bit / 8] ^= 1 << (bit % 8);
            assert_ne!(*blake3::hash(&bad).as_bytes(), trailer.body_hash);
            let _ = decode_body(&trailer, &bad);
        }
    }
}

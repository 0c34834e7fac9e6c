//! What lies on the tiers: the log, rows of the state, identities, marks, staged bytes. The first byte says which decoder, the second whether checksums
//! are put right first. What a decoder takes, it takes again when that is encoded, and has the same then.

#![allow(clippy::ptr_arg, reason = "all have the type of those that change the length")]

use heatfs::ondisk::archived::{ArchivedHead, HEAD_LEN};
use heatfs::ondisk::bytes::Reader;
use heatfs::ondisk::changes;
use heatfs::ondisk::checksum64;
use heatfs::ondisk::file_id::{FileIdentity, decode_root_mode};
use heatfs::ondisk::group::{GroupHeader, RecordHeader, RecordKind};
use heatfs::ondisk::identity::{Phase, Run, TierIdentity};
use heatfs::ondisk::image;
use heatfs::ondisk::kept::KeptRow;
use heatfs::ondisk::mark::PendingMark;
use heatfs::ondisk::note::Marker;
use heatfs::ondisk::rows::FileRow;
use heatfs::ondisk::sourced::SourceRow;
use heatfs::ondisk::staged::{Batch, StagedEntry, batch_len};
use heatfs::ondisk::summary::{Trailer, decode_body, push_group};
use heatfs::units::{FileId, Lsn, TierId, WallNs};
use uuid::Uuid;

const PAGE: usize = 4096;
const VOLUME: Uuid = Uuid::from_u128(0x1234);

/// Name, and what feeds it.
type Decoder = (&'static str, fn(&mut Vec<u8>, bool));
const DECODERS: [Decoder; 16] = [
    ("group", group),
    ("summary", summary),
    ("summary-body", summary_body),
    ("record", record),
    ("file-row", file_row),
    ("changes", changes),
    ("kept", kept),
    ("mark", mark),
    ("note", note),
    ("sourced", sourced),
    ("staged", staged),
    ("identity", identity),
    ("file-id", file_id),
    ("root-mode", root_mode),
    ("image", mark_image),
    ("archived", archived),
];

pub fn feed(data: &[u8]) {
    let [which, repaired, bytes @ ..] = data else { return };
    DECODERS[usize::from(*which) % DECODERS.len()].1(&mut bytes.to_vec(), repaired % 2 == 1);
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at + field.len()) {
        place.copy_from_slice(field);
    }
}

fn repair64(bytes: &mut [u8], at: usize) {
    put(bytes, at, &[0; 8]);
    let sum = checksum64(bytes);
    put(bytes, at, &sum.to_le_bytes());
}

fn repair_crc(bytes: &mut [u8]) {
    let at = bytes.len().saturating_sub(4);
    let crc = crc32c::crc32c(&bytes[..at]);
    put(bytes, at, &crc.to_le_bytes());
}

fn group(bytes: &mut Vec<u8>, repaired: bool) {
    bytes.resize(PAGE, 0);
    if repaired {
        repair64(bytes, 80);
    }
    if let Ok((header, _)) = GroupHeader::decode(bytes) {
        let mut page = bytes.clone();
        header.encode_into(&mut page);
        assert_eq!(GroupHeader::decode(&page).expect("what was just encoded").0, header);
        assert!(header.total_len() >= PAGE as u64);
    }
}

fn summary(bytes: &mut Vec<u8>, repaired: bool) {
    bytes.resize(PAGE, 0);
    if repaired {
        repair64(bytes, 88);
    }
    if let Ok(trailer) = Trailer::decode(bytes) {
        assert_eq!(Trailer::decode(&trailer.encode()), Ok(trailer));
    }
}

fn trailer() -> Trailer {
    Trailer { volume: VOLUME, segment_seq: 1, body_offset: 0, body_bytes: 0, groups_end: 0, body_hash: [0; 32] }
}

fn summary_body(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(groups) = decode_body(&trailer(), bytes) {
        let mut again = Vec::new();
        groups.iter().for_each(|group| push_group(&mut again, &group.header, group.checksum, group.page_crc));
        assert_eq!(decode_body(&trailer(), &again), Ok(groups));
    }
}

fn record(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(record) = RecordHeader::decode(&mut Reader::new(bytes)) {
        record.payload_pages();
        assert_eq!(RecordHeader::decode(&mut Reader::new(&record.encode())), Ok(record));
    }
}

fn file_row(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(row) = FileRow::decode(bytes) {
        assert_eq!(FileRow::decode(&row.encode()), Ok(row));
    }
}

fn changes(bytes: &mut Vec<u8>, _: bool) {
    if let Ok((base, pages)) = changes::decode(bytes) {
        assert_eq!(changes::decode(&changes::encode(base, &pages)), Ok((base, pages)));
    }
}

fn kept(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(row) = KeptRow::decode(bytes) {
        assert_eq!(KeptRow::decode(&row.encode()), Ok(row));
    }
}

fn mark(bytes: &mut Vec<u8>, repaired: bool) {
    if repaired {
        repair64(bytes, 72);
    }
    if let Ok(mark) = PendingMark::decode(bytes) {
        assert_eq!(PendingMark::decode(&mark.encode()), Ok(mark));
    }
}

fn archived(bytes: &mut Vec<u8>, repaired: bool) {
    if repaired && let Some(head) = bytes.get_mut(..HEAD_LEN) {
        repair64(head, 56);
    }
    if let Ok(head) = ArchivedHead::decode(bytes) {
        assert_eq!(ArchivedHead::decode(&head.encode()), Ok(head));
    }
}

fn mark_image(bytes: &mut Vec<u8>, repaired: bool) {
    if repaired {
        let content = (bytes.len() as u64).saturating_sub(image::HEADER_LEN as u64);
        put(bytes, 40, &content.to_le_bytes());
        repair64(bytes, 48);
    }
    if let Ok((volume, snapshot, content)) = image::decode(bytes) {
        assert_eq!(image::decode(&image::encode(volume, snapshot, &content)), Ok((volume, snapshot, content)));
    }
}

fn note(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(marker) = Marker::decode(bytes) {
        assert_eq!(Marker::decode(&marker.encode()), Ok(marker));
    }
}

fn sourced(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(row) = SourceRow::decode(bytes) {
        assert_eq!(SourceRow::decode(&row.encode()), Ok(row));
    }
}

fn staged(bytes: &mut Vec<u8>, repaired: bool) {
    if repaired {
        bytes.resize(bytes.len().next_multiple_of(PAGE), 0);
        let len = bytes.len() as u64;
        put(bytes, 32, &len.to_le_bytes());
        put(bytes, 48, &[0; 32]);
        let hash = blake3::hash(bytes);
        put(bytes, 48, hash.as_bytes());
    }
    let len = Batch::len_of(bytes);
    if let Ok(batch) = Batch::decode(bytes) {
        assert_eq!(len, Ok(bytes.len() as u64));
        for entry in &batch.entries {
            assert!(entry.at + (entry.end - entry.start) <= bytes.len() as u64);
        }
    }
}

fn identity(bytes: &mut Vec<u8>, repaired: bool) {
    if repaired {
        let len = u32::try_from(bytes.len()).unwrap_or(u32::MAX);
        put(bytes, 12, &len.to_le_bytes());
        repair_crc(bytes);
    }
    if let Ok(identity) = TierIdentity::decode(bytes, "tier")
        && let Ok(again) = identity.encode()
    {
        assert_eq!(TierIdentity::decode(&again, "tier").expect("what was just encoded"), identity);
    }
}

fn file_id(bytes: &mut Vec<u8>, repaired: bool) {
    if repaired {
        repair_crc(bytes);
    }
    if let Ok(identity) = FileIdentity::decode(bytes, "file") {
        assert_eq!(identity.encode(), bytes[..]);
        assert_eq!(identity.verify(VOLUME, 7).is_ok(), identity.volume == VOLUME && identity.home_inode == 7);
    }
}

fn root_mode(bytes: &mut Vec<u8>, _: bool) {
    if let Ok(mode) = decode_root_mode(bytes, "root") {
        assert!(mode <= 0o7777);
    }
}

pub fn seeds() -> Vec<(String, Vec<u8>)> {
    let record = RecordHeader {
        kind: RecordKind::Data,
        flags: 1,
        tier: 1,
        score: 7,
        inline_offset: 0,
        payload_page: 0,
        file: FileId(0x1122),
        offset: 8192,
        length: 5000,
    };
    let inline = RecordHeader { inline_offset: 4090, length: 6, offset: 1, ..record };
    let truncate = RecordHeader { kind: RecordKind::Truncate, length: 99, offset: 3, ..record };
    let times = RecordHeader { kind: RecordKind::Times, ..truncate };
    let header = GroupHeader {
        volume: VOLUME,
        incarnation: 3,
        segment_seq: 4,
        offset: 4096,
        group_seq: 5,
        previous_checksum: 6,
        wall: WallNs(7),
        inline_bytes: 6,
        records: vec![record, inline, truncate, times],
        payload_crcs: vec![1, 2],
    };
    let (mut page, mut body) = (vec![0; PAGE], Vec::new());
    let sum = header.encode_into(&mut page);
    push_group(&mut body, &header, sum, 9);
    let identity = TierIdentity {
        volume: VOLUME,
        incarnation: 3,
        tier: TierId(1),
        tiers: 3,
        phase: Phase::Ready,
        run: Run::Running,
        origin: TierId(2),
        name: "sata".to_owned(),
        directory: "/srv/data".to_owned(),
    };
    let mark =
        PendingMark { volume: VOLUME, snapshot: VOLUME, lsn: Lsn(9), wall: WallNs(8), file_id_limit: 7, epoch: 6 };
    let archived = ArchivedHead { volume: VOLUME, segment_seq: 9, segment_bytes: 8, wall: WallNs(7), packed_bytes: 6 };
    let row = FileRow { size_bytes: 9, mtime: Some(WallNs(3)), ctime: None, log_file: true };
    let kept = KeptRow { size_bytes: 9, mtime: Some(WallNs(1)), removed: true, extents: vec![(0, 10, 5), (10, 20, 6)] };
    let entry = StagedEntry { file: FileId(3), start: 10, end: 20, at: 0, epoch: 4, of_base: true };
    let mut batch = vec![0; batch_len(2, 20)];
    Batch { volume: VOLUME, incarnation: 1, entries: vec![entry, entry] }.encode_into(&mut batch);
    let file_id = FileIdentity { volume: VOLUME, file: FileId(5), home_inode: 7 };
    let bytes: Vec<(&str, Vec<u8>)> = vec![
        ("group", page),
        ("summary", trailer().encode()),
        ("summary-body", body),
        ("record", record.encode().to_vec()),
        ("file-row", row.encode().to_vec()),
        (
            "changes",
            changes::encode(4, &changes::Pages::Runs(vec![changes::PageRun { first: 1, last: 9, age: 3 }.pack()])),
        ),
        ("kept", kept.encode()),
        ("mark", mark.encode().to_vec()),
        ("note", Marker { snapshot: VOLUME, epoch: 3, file_id_limit: 9 }.encode().to_vec()),
        ("sourced", SourceRow::new(FileId(4), [(1, 5), (9, 12)]).encode()),
        ("staged", batch),
        ("identity", identity.encode().expect("short enough")),
        ("file-id", file_id.encode().to_vec()),
        ("root-mode", b"0700".to_vec()),
        ("image", image::encode(VOLUME, VOLUME, b"content")),
        ("archived", archived.encode().to_vec()),
    ];
    let number = |name: &str| DECODERS.iter().position(|known| known.0 == name).expect("a decoder") as u8;
    bytes.into_iter().map(|(name, bytes)| (name.to_owned(), [vec![number(name), 1], bytes].concat())).collect()
}

//! A door for `fuzz/` and `tests/fuzzing`, which feed every decoder with bytes that nobody wrote: to those of this room, which are nobody else's
//! business. Nothing else uses it.
//!
//! Nearly all formats carry a checksum, which a mutation would hardly ever satisfy; so there is also [`repair`], and what lies behind the checksum is met, too.

use super::content::{Inner, Leaf, Piece, Slot};
use super::file::FileState;
use super::format::Format;
use super::generations::{Final, Seal};
use super::ids::{Generation, LeaseId, ObjectId, ObjectRef, PackId, Place, SnapshotId};
use super::keys::Keys;
use super::lease::Lease;
use super::namespace::{Entry, EntryKind};
use super::pack::{self, Class, ObjectEntry, PackHeader, PackReader, PackWriter};
use super::plan::Plan;
use super::refs::{Ref, RefKind, Stored};
use super::root::{Consistency, Root, SnapshotMeta, SnapshotStats};
use super::segment::{self, Segment, SegmentWriter};
use super::small::{Kind, SmallObjects};
use super::table::Node;
use super::verify::Ledger;
use crate::device::sim::{SimDevice, SimWorld};
use crate::device::{Device, OpenMode};
use crate::error::Result;
use crate::units::{Lsn, WallNs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

/// What [`decode`], [`repair`] and [`seeds`] know.
pub const DECODERS: [&str; 18] = [
    "format",
    "pack",
    "frame",
    "segment",
    "root",
    "lease",
    "fence",
    "ref",
    "seal",
    "final",
    "ledger",
    "plan",
    "leaf",
    "inner",
    "node",
    "file",
    "entry",
    "pack-header",
];

const REPOSITORY: Uuid = Uuid::from_u128(0x1234);
const FRAMES_READ: usize = 4;

fn keys() -> Keys {
    Keys::new(&[3; 32], false)
}

fn file(device: &SimDevice, path: &str, bytes: &[u8]) -> Result<()> {
    let failed = |e| super::small::io_error(device, "write", path, e);
    let parent = path.rsplit_once('/').map_or("", |(parent, _)| parent);
    device.create_dir_all(parent).map_err(failed)?;
    let file = device.open(path, OpenMode { create: true, ..OpenMode::default() }).map_err(failed)?;
    file.write_all_at(bytes, 0).map_err(failed)
}

/// Did the decoder of this name take the bytes? False for an unknown name, too. What it takes it gives back the same when that is encoded again.
pub fn decode(decoder: &str, bytes: &[u8]) -> bool {
    match decoder {
        "format" => {
            let again = |format: Format| Format::decode(&format.encode(), "format").is_ok_and(|same| same == format);
            Format::decode(bytes, "format").map(again).inspect(|same| assert!(same, "another format")).is_ok()
        }
        "pack-header" => PackHeader::decode(bytes).is_ok(),
        "frame" => pack::decode_frame(&keys(), PackId(5), 1, bytes).is_ok(),
        "pack" => decode_pack(bytes).is_ok(),
        "segment" => decode_segment(bytes).is_ok(),
        "plan" => Plan::decode(bytes, "plan").is_ok(),
        "leaf" => {
            let again = |leaf: Leaf| Leaf::decode(&leaf.encode()).is_ok_and(|same| same == leaf);
            Leaf::decode(bytes).map(again).inspect(|same| assert!(same, "another leaf")).is_ok()
        }
        "inner" => {
            let again = |inner: Inner| Inner::decode(&inner.encode()).is_ok_and(|same| same == inner);
            Inner::decode(bytes).map(again).inspect(|same| assert!(same, "another node")).is_ok()
        }
        "node" => Node::decode(bytes).is_ok_and(|node| node.level == 0 || node.children().is_ok()),
        "file" => {
            let again = |state: FileState| FileState::decode(&state.encode()).is_ok_and(|same| same == state);
            FileState::decode(bytes).map(again).inspect(|same| assert!(same, "another file")).is_ok()
        }
        "entry" => postcard::from_bytes::<Entry>(bytes).is_ok(),
        _ => decode_small(decoder, bytes),
    }
}

fn decode_small(decoder: &str, bytes: &[u8]) -> bool {
    let small = small();
    let path = "object";
    match decoder {
        "root" => small.decode::<Root>(Kind::Root, path, bytes).is_ok(),
        "lease" => small.decode::<Lease>(Kind::Lease, path, bytes).is_ok(),
        "fence" => small.decode::<Generation>(Kind::Fence, path, bytes).is_ok(),
        "ref" => small.decode::<Stored>(Kind::Ref, path, bytes).is_ok(),
        "seal" => small.decode::<Seal>(Kind::Seal, path, bytes).is_ok(),
        "final" => small.decode::<Final>(Kind::Final, path, bytes).is_ok(),
        "ledger" => small.decode::<Ledger>(Kind::Ledger, path, bytes).is_ok(),
        _ => false,
    }
}

fn small() -> SmallObjects {
    SmallObjects { device: SimWorld::new(1).device("repository"), keys: Arc::new(keys()) }
}

fn decode_pack(bytes: &[u8]) -> Result<()> {
    let device = SimWorld::new(1).device("repository");
    let named = bytes.get(32..40).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes);
    file(&device, &PackId(named).path(), bytes)?;
    PackReader::header(device.as_ref(), PackId(named))?;
    let (reader, contents) = PackReader::open(device.as_ref(), PackId(named))?;
    for (frame, _) in (0..).zip(contents.frames.iter().take(FRAMES_READ)) {
        reader.frame(&keys(), frame)?;
    }
    Ok(())
}

fn decode_segment(bytes: &[u8]) -> Result<()> {
    let device = SimWorld::new(1).device("repository");
    file(&device, "index/1", bytes)?;
    let segment = Segment::open(device.as_ref(), "index/1", REPOSITORY)?;
    segment.find(&[7; 16])?;
    (0..segment.blocks()).try_for_each(|block| segment.block(block).map(drop))
}

/// Puts the checksums of the decoder's format right, where the bytes are long enough to have them.
pub fn repair(decoder: &str, bytes: &mut Vec<u8>) {
    match decoder {
        "format" => {
            let len = u32::try_from(bytes.len()).unwrap_or(0).to_le_bytes();
            put(bytes, 12, &len);
            let body = bytes.len().saturating_sub(4);
            let crc = crc32c::crc32c(&bytes[..body]).to_le_bytes();
            put(bytes, body, &crc);
        }
        "pack-header" => repair_header(bytes),
        "frame" => {
            let len = u32::try_from(bytes.len().saturating_sub(16)).unwrap_or(0).to_le_bytes();
            put(bytes, 0, &len);
            if let Some((header, stored)) = bytes.split_at_checked(16) {
                let crc = crc32c::crc32c_append(crc32c::crc32c(&header[..12]), stored).to_le_bytes();
                put(bytes, 12, &crc);
            }
        }
        "pack" => repair_pack(bytes),
        "segment" => repair_segment(bytes),
        "plan" => {
            let hash = blake3::hash(bytes).to_hex();
            bytes.extend_from_slice(hash.as_bytes());
            bytes.push(b'\n');
        }
        "leaf" | "inner" | "node" | "file" | "entry" => {}
        _ => repair_small(bytes),
    }
}

fn put(bytes: &mut [u8], at: usize, field: &[u8]) {
    if let Some(place) = bytes.get_mut(at..at.saturating_add(field.len())) {
        place.copy_from_slice(field);
    }
}

fn repair_header(bytes: &mut [u8]) {
    if let Some(head) = bytes.get(..60) {
        let crc = crc32c::crc32c(head).to_le_bytes();
        put(bytes, 60, &crc);
    }
}

fn repair_pack(bytes: &mut [u8]) {
    repair_header(bytes);
    let Some(end) = bytes.len().checked_sub(64) else { return };
    let field = |at: usize| bytes.get(at..at + 8).and_then(|field| field.try_into().ok()).map_or(0, u64::from_le_bytes);
    let at = usize::try_from(field(end)).unwrap_or(usize::MAX);
    let Some(table) = bytes.get(at..end) else { return };
    let len = (table.len() as u64).to_le_bytes();
    let hash = bytes.get(..64).map(|header| pack::hash_of(header, table)).unwrap_or_default();
    put(bytes, end + 8, &len);
    put(bytes, end + 24, &hash);
}

fn repair_segment(bytes: &mut [u8]) {
    const BLOCK: usize = 4096;
    repair_header(bytes);
    let Some(end) = bytes.len().checked_sub(64) else { return };
    let field = |at: usize| bytes.get(at..at + 4).and_then(|field| field.try_into().ok()).map_or(0, u32::from_le_bytes);
    let fences = usize::try_from(field(44)).unwrap_or(usize::MAX);
    let tail_at = fences.saturating_mul(BLOCK).saturating_add(64);
    let Some(tail) = bytes.get(tail_at..end) else { return };
    let lengths = [tail_at as u64, tail.len() as u64, 0].map(u64::to_le_bytes).concat();
    let hash = bytes.get(..64).map(|header| segment::hash_of(header, tail)).unwrap_or_default();
    put(bytes, end, &lengths);
    put(bytes, end + 24, &hash);
    for block in bytes.get_mut(64..tail_at).unwrap_or_default().chunks_exact_mut(BLOCK) {
        let crc = crc32c::crc32c(&block[..BLOCK - 4]).to_le_bytes();
        put(block, BLOCK - 4, &crc);
    }
}

fn repair_small(bytes: &mut [u8]) {
    let len = u32::try_from(bytes.len().saturating_sub(24)).unwrap_or(0).to_le_bytes();
    put(bytes, 12, &len);
    if let Some((header, payload)) = bytes.split_at_checked(24) {
        let sum = super::small::check(&header[..16], payload);
        put(bytes, 16, &sum);
    }
}

/// What the encoders write, small: where mutations begin.
pub fn seeds() -> Result<Vec<(&'static str, Vec<u8>)>> {
    let object = ObjectRef { id: ObjectId([9; 32]), place: Place { pack: PackId(5), frame: 1, start: 2, len: 3 } };
    let format = Format {
        compat: 0,
        ro_compat: 0,
        incompat: 0,
        id: REPOSITORY,
        made: WallNs(5),
        pack_bytes: 64 << 20,
        master: vec![9; 32],
    };
    let data = Piece::Data { object, valid: 100 };
    let slot = Slot { base: data, pages: BTreeMap::from([(1, Piece::Zero), (3, data)]) };
    let leaf = Leaf { slots: BTreeMap::from([(0, slot.clone()), (7, Slot { base: Piece::Hole, ..slot })]) };
    let entry = Entry {
        kind: EntryKind::Symlink { target: b"elsewhere".to_vec() },
        mode: 0o640,
        uid: 1,
        gid: 2,
        atime: WallNs(3),
        mtime: WallNs(4),
        ctime: WallNs(5),
        xattrs: vec![(b"user.a".to_vec(), b"b".to_vec())],
        link: 0,
    };
    let entry = postcard::to_stdvec(&entry).unwrap_or_default();
    let frame = pack::encode_frame(&keys(), PackId(5), 1, pack::compress(&[7; 9000]))?;
    let mut seeds = vec![
        ("format", format.encode()),
        ("frame", frame),
        ("leaf", leaf.encode()),
        ("inner", Inner { level: 1, children: BTreeMap::from([(0, object), (9, object)]) }.encode()),
        ("node", node(&[(b"a", &entry), (b"b\0c", &entry)])),
        ("file", FileState { size: 70_000, page_bytes: 8192, level: 0, root: Some(object) }.encode()),
        ("entry", entry),
        ("plan", Plan::default().encode()?),
    ];
    seeds.extend(seeds_of_small_objects(object)?);
    let (pack, segment) = seeds_of_files()?;
    seeds.push(("pack-header", pack.get(..64).unwrap_or_default().to_vec()));
    seeds.extend([("pack", pack), ("segment", segment)]);
    Ok(seeds)
}

/// As `table.rs` writes a node of level 0.
fn node(entries: &[(&[u8], &[u8])]) -> Vec<u8> {
    let mut out = vec![b'T', 1, 0, 0];
    out.extend_from_slice(&u32::try_from(entries.len()).unwrap_or(0).to_le_bytes());
    for (key, value) in entries {
        out.extend_from_slice(&u16::try_from(key.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(key);
        out.extend_from_slice(&u32::try_from(value.len()).unwrap_or(0).to_le_bytes());
        out.extend_from_slice(value);
    }
    out
}

fn seeds_of_small_objects(object: ObjectRef) -> Result<Vec<(&'static str, Vec<u8>)>> {
    let small = small();
    let (generation, id) = (Generation(1), SnapshotId(2));
    let meta = SnapshotMeta {
        lsn: Lsn(1),
        epoch: 2,
        taken: WallNs(3),
        consistency: Consistency::App,
        labels: BTreeMap::from([("by".to_owned(), "hand".to_owned())]),
        backup_label: b"label".to_vec(),
    };
    let root = Root {
        id,
        generation,
        volume: REPOSITORY,
        parent: Some(SnapshotId(1)),
        meta,
        stats: SnapshotStats::default(),
        names: Some(object),
        files: Some(object),
        borrowed: vec![PackId(5)],
    };
    let lease = Lease {
        id: LeaseId(3),
        generation,
        volume: REPOSITORY,
        began: WallNs(4),
        parent: None,
        names: Some(object),
        files: None,
        borrowed: vec![PackId(5)],
    };
    let pin = Ref { name: "kept".to_owned(), kind: RefKind::Pin, target: id, note: String::new() };
    let last = Final { generation, delete: BTreeSet::from([PackId(5)]), ..Final::default() };
    Ok(vec![
        ("root", small.encode(Kind::Root, &root)?),
        ("lease", small.encode(Kind::Lease, &lease)?),
        ("fence", small.encode(Kind::Fence, &generation)?),
        ("ref", small.encode(Kind::Ref, &Stored { named: Some(pin) })?),
        ("seal", small.encode(Kind::Seal, &Seal { generation, roots: BTreeSet::from([id]) })?),
        ("final", small.encode(Kind::Final, &last)?),
        ("ledger", small.encode(Kind::Ledger, &Ledger::default())?),
    ])
}

/// A pack and an index segment.
fn seeds_of_files() -> Result<(Vec<u8>, Vec<u8>)> {
    let device = SimWorld::new(1).device("repository");
    let header = PackHeader { repository: REPOSITORY, pack: PackId(0x55), lease: LeaseId(0x66), class: Class::Meta };
    file(&device, &format!("{}-none", header.pack.path()), b"")?;
    let mut writer = PackWriter::create(device.as_ref(), header)?;
    let (first, second) = (writer.begin_frame(), writer.begin_frame());
    let entry = |frame, start| ObjectEntry { id: ObjectId([9; 32]), frame, start, len: 3 };
    writer.write_frame(&keys(), second, pack::compress(&[7; 300]), &[entry(second, 0)])?;
    writer.write_frame(&keys(), first, pack::compress(b"onetwo"), &[entry(first, 0), entry(first, 3)])?;
    let pack = writer.finish()?.0;
    let place = |start| Place { pack, frame: 0, start, len: 10 };
    file(&device, "index/none", b"")?;
    let mut writer = SegmentWriter::create(device.as_ref(), "index/1", REPOSITORY, 3)?;
    for (number, start) in [(1, 0), (2, 10), (3, 20)] {
        writer.push(segment::Entry { prefix: [number; 16], place: place(start) })?;
    }
    writer.finish()?;
    Ok((whole(&device, &pack.path())?, whole(&device, "index/1")?))
}

fn whole(device: &SimDevice, path: &str) -> Result<Vec<u8>> {
    let read = super::small::read_file(device, path)?;
    Ok(read.unwrap_or_default())
}

//! The archive of a volume on simulated devices.

use super::{ARCHIVE_DIR, LogArchive, LogArchiveSettings, SUFFIX, segments, unpack};
use crate::device::sim::{SimWorld, Survival};
use crate::device::{Device, OpenMode};
use crate::error::Error;
use crate::volume::{File, Options, Tier, Volume, Wait};
use std::io::Read;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(61);
const SEGMENT: u64 = 256 << 10;
const DAY: Duration = Duration::from_secs(86_400);

fn options() -> Options {
    Options {
        block_bytes: 16 * 1024,
        segment_bytes: SEGMENT,
        segments: 8,
        payload_cache_bytes: 64 << 10,
        coalesce_at_fill: 0.5,
        checkpoint_interval_s: 3600,
    }
}

struct House {
    world: SimWorld,
    volume: Arc<Volume>,
    file: Arc<File>,
}

/// What does not get shorter by packing.
fn noise(seed: u64, len: usize) -> Vec<u8> {
    let mut bytes = Vec::new();
    blake3::Hasher::new().update(&seed.to_le_bytes()).finalize_xof().take(len as u64).read_to_end(&mut bytes).unwrap();
    bytes
}

impl House {
    fn open(world: SimWorld) -> House {
        let tier = |name: &str| Tier {
            name: name.to_owned(),
            device: world.device(name),
            budget_bytes: Some(64 << 20),
            reserve_bytes: 0,
        };
        let tiers: Vec<Tier> = ["nvme", "hdd"].into_iter().map(tier).collect();
        if !world.device("nvme").exists("state.redb").unwrap() {
            Volume::create(&tiers, &options(), ID, &mut |_| {}).unwrap();
        }
        let volume = Volume::open(tiers, options()).unwrap().0;
        let file = volume.file(volume.issue_file_id().unwrap()).unwrap();
        House { world, volume, file }
    }

    fn new() -> House {
        House::open(SimWorld::new(61))
    }

    fn archive(&self, bytes_max: u64, keep: Duration) -> Arc<LogArchive> {
        let settings = LogArchiveSettings { bytes_max, keep };
        let archive = LogArchive::new(Arc::clone(&self.volume), ID, self.world.device("hdd"), settings);
        archive.find().unwrap();
        archive
    }

    /// So many segments of log, nothing of which is in its place.
    fn write_segments(&self, count: u64) {
        let head = || self.volume.head_segment().unwrap_or(0);
        let wanted = self.volume.sealed_segments().end.max(head()) + count;
        let mut page = 0u64;
        while head() < wanted {
            let mut bytes = noise(page, 2048);
            bytes.resize(4096, 7);
            self.volume.write(&self.file, page * 4096, &bytes, Wait::Allowed).unwrap();
            self.volume.sync_log().unwrap();
            page += 1;
        }
    }

    /// All slots but the head's may be used again.
    fn recycle(&self) {
        self.volume.coalesce_all(&mut |_, _| {}).unwrap();
        self.volume.checkpoint().unwrap();
    }

    fn slot(&self, segment_seq: u64) -> Vec<u8> {
        let mut bytes = Vec::new();
        let whole = self.volume.read_segment(segment_seq, &mut |piece| {
            bytes.extend_from_slice(piece);
            Ok(())
        });
        assert!(whole.unwrap(), "segment {segment_seq} is in use");
        bytes
    }

    fn kept(&self) -> Vec<u64> {
        segments(&*self.world.device("hdd")).unwrap()
    }
}

#[test]
fn full_segments_outlive_their_slots() {
    let house = House::new();
    let archive = house.archive(64 << 20, DAY);
    house.write_segments(3);
    let sealed = house.volume.sealed_segments();
    assert_eq!(sealed.end - sealed.start, 3);
    let slots: Vec<Vec<u8>> = sealed.clone().map(|segment_seq| house.slot(segment_seq)).collect();
    archive.look();
    house.recycle();
    assert!(house.volume.sealed_segments().is_empty());
    archive.look();
    assert_eq!(house.kept(), sealed.clone().collect::<Vec<_>>());
    for (segment_seq, slot) in sealed.zip(&slots) {
        assert!(unpack(&*house.world.device("hdd"), segment_seq).unwrap() == *slot, "segment {segment_seq}");
    }
    let status = archive.status();
    assert_eq!((status.segments, status.missed_segments, status.unpacked_bytes), (3, 0, 3 * SEGMENT));
    assert!(status.bytes > 0 && status.bytes < 3 * SEGMENT, "{status:?}");
}

#[test]
fn what_was_used_again_first_is_counted_and_a_new_mount_goes_on() {
    let house = House::new();
    let archive = house.archive(64 << 20, DAY);
    house.write_segments(1);
    archive.look();
    house.write_segments(3);
    house.recycle();
    archive.look();
    assert_eq!((archive.status().segments, archive.status().missed_segments), (1, 3));
    house.write_segments(2);
    archive.look();
    archive.stop();
    // Both, and the one that was being written.
    assert_eq!((archive.status().segments, archive.status().missed_segments), (4, 3));
    let kept = house.kept();
    drop(archive);
    let House { world, volume, file } = house;
    volume.shut_down_quickly().unwrap();
    drop((volume, file));

    let house = House::open(world.recover(Survival::All));
    let archive = house.archive(64 << 20, DAY);
    assert_eq!(archive.status().segments, 4);
    house.write_segments(1);
    archive.look();
    assert_eq!(house.kept().iter().filter(|segment_seq| kept.contains(segment_seq)).count(), 4, "{:?}", house.kept());
    assert!(house.kept().len() > 4 && archive.status().missed_segments == 0, "{:?}", house.kept());
}

#[test]
fn the_oldest_go_when_it_is_too_much_and_what_is_too_old_goes() {
    let house = House::new();
    let archive = house.archive(SEGMENT + SEGMENT / 2, DAY);
    house.write_segments(5);
    let sealed = house.volume.sealed_segments();
    archive.look();
    let kept = house.kept();
    assert!(!kept.is_empty() && kept.len() < 5, "{kept:?}");
    assert_eq!(kept.last(), Some(&(sealed.end - 1)), "the newest is there");
    assert!(archive.status().bytes <= SEGMENT + SEGMENT / 2);
    drop(archive);
    let archive = house.archive(2 * SEGMENT, Duration::ZERO);
    house.write_segments(1);
    archive.look();
    assert!(house.kept().is_empty() && archive.status().segments == 0, "{:?}", house.kept());
}

#[test]
fn blocks_come_first_where_there_is_little_room() {
    let house = House::new();
    let archive = house.archive(64 << 20, DAY);
    house.write_segments(2);
    archive.look();
    assert_eq!(archive.status().segments, 2);
    // All that is left is promised to a file: what is there goes, and nothing comes.
    let left = house.volume.space().available_bytes - 3 * SEGMENT;
    house.volume.allocate(&house.file, 32 << 20, left, false).unwrap();
    house.write_segments(2);
    archive.look();
    let status = archive.status();
    assert_eq!((status.segments, status.missed_segments), (0, 2));
    assert!(status.failure.is_some_and(|why| why.contains("no space")), "{:?}", archive.status());
    assert!(house.kept().is_empty());
}

#[test]
fn what_is_damaged_is_named_and_never_shown_as_something_else() {
    let house = House::new();
    let archive = house.archive(64 << 20, DAY);
    house.write_segments(1);
    archive.look();
    let device = house.world.device("hdd");
    let [segment_seq] = house.kept()[..] else { panic!("one is kept: {:?}", house.kept()) };
    let segment = unpack(&*device, segment_seq).unwrap();
    let file = device.open(&format!("{ARCHIVE_DIR}/{segment_seq:020}{SUFFIX}"), OpenMode::default()).unwrap();
    let len = file.len().unwrap();
    for at in (0..len).step_by(97) {
        let mut byte = [0];
        file.read_at(&mut byte, at).unwrap();
        file.write_all_at(&[byte[0] ^ 0x10], at).unwrap();
        match unpack(&*device, segment_seq) {
            Ok(same) => assert!(same == segment, "a flipped bit at {at} went unnoticed"),
            Err(error) => assert!(matches!(error, Error::Corrupt { .. }), "{error}"),
        }
        file.write_all_at(&byte, at).unwrap();
    }
    file.set_len(len / 2).unwrap();
    assert!(matches!(unpack(&*device, segment_seq), Err(Error::Corrupt { .. })));
    file.set_len(0).unwrap();
    drop(archive);
    assert_eq!(house.archive(64 << 20, DAY).status().segments, 0, "what cannot be read does not count");
}

#[test]
fn a_crash_anywhere_leaves_whole_segments_or_none() {
    let prepare = || {
        let house = House::new();
        let archive = house.archive(64 << 20, DAY);
        house.write_segments(3);
        (house, archive)
    };
    let (house, archive) = prepare();
    let before = house.world.operations();
    archive.look();
    let operations = house.world.operations() - before;
    assert!(operations > 10);
    for operation in 0..=operations {
        for survival in [Survival::None, Survival::All] {
            let (house, archive) = prepare();
            let sealed = house.volume.sealed_segments();
            let slots: Vec<Vec<u8>> = sealed.clone().map(|segment_seq| house.slot(segment_seq)).collect();
            house.world.crash_at(house.world.operations() + operation);
            archive.look();
            let world = house.world.recover(survival);
            let device = world.device("hdd");
            for segment_seq in segments(&*device).unwrap() {
                let at = usize::try_from(segment_seq - sealed.start).unwrap();
                assert!(unpack(&*device, segment_seq).unwrap() == slots[at], "operation {operation}");
            }
        }
    }
}

use super::chunk::Chunk;
use super::{HEAT_FILE, HeatSettings, Recorder};
use crate::device::{Device, OpenMode};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::AccessObserver;

const BLOCK: u64 = 65_536;
const FILE: FileId = FileId(3);

fn recorder() -> Recorder {
    Recorder::new(HeatSettings { half_life_epochs: 1.0, ..HeatSettings::with_block_bytes(65_536) })
}

/// One page-cache miss of 8 KiB at the start of a block.
fn miss(recorder: &Recorder, file: FileId, block: u64) {
    recorder.on_read_miss(file, BlockNo(block), BlockNo(block), block * BLOCK, 8192, Some(TierId(2)), 8000);
}

fn heat(recorder: &Recorder, file: FileId, block: u64) -> f32 {
    recorder.block_heat(file, BlockNo(block))
}

fn real_device() -> (tempfile::TempDir, crate::device::real::RealDevice) {
    let dir = tempfile::tempdir().unwrap();
    let device = crate::device::real::RealDevice::at(dir.path()).unwrap();
    (dir, device)
}

#[test]
fn heat_decays_by_half_per_half_life_and_is_per_epoch() {
    let recorder = recorder();
    for _ in 0..16 {
        miss(&recorder, FILE, 5);
        miss(&recorder, FILE, 900);
    }
    recorder.roll(1.0);
    assert!((heat(&recorder, FILE, 5) - 16.0).abs() < 0.01, "16 accesses in the one epoch there was");
    recorder.roll(1.0);
    // Half the sum over one and a half epochs' worth of exposure.
    assert!((heat(&recorder, FILE, 5) - 8.0 / 1.5).abs() < 0.01);
    for _ in 0..40 {
        recorder.roll(1.0);
    }
    assert_eq!(heat(&recorder, FILE, 5), 0.0);
    assert_eq!(recorder.status().chunks, 0, "cold chunks are dropped");
}

#[test]
fn many_short_rolls_are_one_long_one() {
    let (often, once) = (recorder(), recorder());
    for _ in 0..100 {
        miss(&often, FILE, 1);
        miss(&often, FILE, 8);
        often.roll(0.01);
    }
    for _ in 0..100 {
        miss(&once, FILE, 1);
        miss(&once, FILE, 8);
    }
    once.roll(1.0);
    let (a, b) = (heat(&often, FILE, 1), heat(&once, FILE, 1));
    assert!((a - b).abs() / b < 0.02, "{a} {b}");
}

#[test]
fn scans_and_log_files_are_no_heat_and_writes_count_by_weight() {
    let recorder = recorder();
    for page in 0..8000u64 {
        let block = BlockNo(page * 8192 / BLOCK);
        recorder.on_read_miss(FILE, block, block, page * 8192, 8192, Some(TierId(2)), 100);
    }
    assert_eq!(recorder.status().counted_reads, 1);
    let log = FileId(9);
    for i in 0..100u64 {
        recorder.on_write(log, i * 7919 * 8192, 8192, true);
        recorder.on_write(FILE, (1 << 30) + (i % 2) * 5 * BLOCK, 8192, false);
    }
    assert!(recorder.is_log_file(log) && !recorder.is_log_file(FILE));
    recorder.roll(1.0);
    assert_eq!(heat(&recorder, log, 0), 0.0);
    assert!((heat(&recorder, FILE, (1 << 30) / BLOCK) - 25.0).abs() < 0.5);
}

#[test]
fn a_read_over_several_blocks_counts_for_each() {
    let recorder = recorder();
    recorder.on_read_miss(FILE, BlockNo(254), BlockNo(258), 254 * BLOCK, 300_000, Some(TierId(0)), 10);
    for block in 254..=258 {
        assert!(heat(&recorder, FILE, block) > 0.0);
    }
    assert_eq!(heat(&recorder, FILE, 253), 0.0);
    assert_eq!(heat(&recorder, FILE, 259), 0.0);
}

#[test]
fn runs_cover_exactly_what_was_asked_for() {
    let recorder = recorder();
    for block in [0u64, 1, 255, 256, 700, 2000] {
        miss(&recorder, FILE, block);
        miss(&recorder, FILE, block + 1_000_000);
        miss(&recorder, FILE, block);
    }
    recorder.roll(1.0);
    let heats = recorder.file_heat(FILE, 10_000);
    for (first, count) in [(0u64, 10_000u64), (1, 1), (255, 2), (300, 100), (699, 3), (1999, 8001), (5, 0)] {
        let mut next = first;
        heats.runs(BlockNo(first), count, |at, blocks, heat| {
            assert_eq!(at.0, next);
            assert!(blocks > 0);
            for block in at.0..at.0 + blocks {
                let hot = [0, 1, 255, 256, 700, 2000].contains(&block);
                assert_eq!(heat > 0.1, hot, "block {block} heat {heat}");
            }
            next += blocks;
        });
        assert_eq!(next, first + count);
    }
}

#[test]
fn a_block_never_seen_in_a_busy_file_is_worth_more_than_one_in_an_idle_file() {
    let recorder = recorder();
    let (busy, idle) = (FileId(1), FileId(2));
    for block in 0..500 {
        miss(&recorder, busy, block * 2);
    }
    miss(&recorder, idle, 0);
    recorder.roll(1.0);
    let unseen = |file| {
        let mut heat = 0.0;
        recorder.file_heat(file, 1000).runs(BlockNo(1), 1, |_, _, one| heat = one);
        heat
    };
    assert!(unseen(busy) > 5.0 * unseen(idle) && unseen(idle) > 0.0);
    assert!(unseen(busy) < heat(&recorder, busy, 0) / 5.0);
    assert_eq!(unseen(FileId(77)), 0.0);
}

/// Memory once grew without any bound until the next roll, and was handed back in pieces too small for others: with each 4 MiB of a TiB touched, twice as
/// much was resident as the books said.
#[test]
fn memory_is_bounded_at_every_moment_and_the_hottest_stay() {
    let limit = 200 * 2112;
    let settings = HeatSettings { memory_bytes: limit, ..HeatSettings::with_block_bytes(65_536) };
    let recorder = Recorder::new(settings);
    for block in 0..100u64 {
        (0..20).for_each(|_| miss(&recorder, FILE, block * 256 * 7));
    }
    for chunk in 0..20_000u64 {
        miss(&recorder, FileId(4), chunk * 256);
        miss(&recorder, FileId(4), chunk * 256 + 100);
        if chunk % 64 == 0 {
            let status = recorder.status();
            assert!(status.memory_bytes <= limit + 4096, "{} of {limit}", status.memory_bytes);
        }
    }
    let status = recorder.status();
    assert!(status.chunks > 1000 && status.chunks_evicted + status.chunks == 20_100, "{status:?}");
    recorder.roll(1.0);
    assert!(recorder.status().memory_bytes <= limit);
    let left = (0..100).filter(|block| heat(&recorder, FILE, block * 256 * 7) > 10.0).count();
    assert_eq!(left, 100, "the hottest stay");
    // Where every block matters a chunk takes eight bytes for each.
    (0..200u64).for_each(|block| miss(&recorder, FileId(5), (block * 7 % 200) + 256));
    recorder.roll(1.0);
    let pasts: Vec<f32> = (0..256).map(|block| heat(&recorder, FileId(5), block + 256)).collect();
    assert!(pasts[..200].iter().all(|heat| *heat > 0.4) && pasts[201..].iter().all(|heat| *heat < 0.4), "{pasts:?}");
}

#[test]
fn a_chunk_counts_alike_whether_its_blocks_are_listed_or_not() {
    let (mut chunk, mut model) = (Chunk::new(), [0f32; 256]);
    let (mut most, mut last) = (0, usize::MAX);
    for epoch in 0..60u32 {
        // More and more blocks, then a few.
        let blocks = if epoch < 30 { epoch * 9 } else { 5 };
        let mut present = [0f32; 256];
        for block in (0..blocks.min(256)).map(|block| u8::try_from(block * 37 % 256).unwrap()) {
            chunk.count_read(block);
            chunk.count_write(block);
            present[usize::from(block)] = 1.5;
        }
        let sum: f32 = model.iter().chain(&present).sum();
        assert!((chunk.sum(0.5) - sum).abs() < 0.01, "epoch {epoch}: {} for {sum}", chunk.sum(0.5));
        let rolled = chunk.roll(0.5, 0.5);
        for (past, present) in model.iter_mut().zip(present) {
            *past = *past * 0.5 + present;
            *past = if *past < 1.0 / 1024.0 { 0.0 } else { *past };
        }
        assert_eq!(chunk.pasts(), model, "epoch {epoch}");
        assert!((rolled - model.iter().sum::<f32>()).abs() < 0.01 && chunk.counts(37) == (0, 0));
        (most, last) = (most.max(chunk.bytes()), chunk.bytes());
    }
    assert!(most == 2048 && last < 200, "{most} {last}");
}

#[test]
fn files_are_forgotten_but_for_logs() {
    let recorder = recorder();
    for file in 0..600_000u64 {
        recorder.on_write(FileId(file), 0, 1, true);
    }
    recorder.roll(1.0);
    miss(&recorder, FILE, 1);
    recorder.on_file_gone(FILE);
    recorder.roll(1.0);
    assert_eq!(recorder.status().chunks, 0, "counters of a removed file go");
}

#[test]
fn misses_on_slow_tiers_are_queued() {
    let recorder = recorder();
    recorder.queue_misses(TierId(2));
    for _ in 0..2 {
        miss(&recorder, FILE, 10);
        recorder.on_read_miss(FILE, BlockNo(50), BlockNo(50), 50 * BLOCK, 8192, Some(TierId(1)), 300);
        recorder.on_read_miss(FILE, BlockNo(90), BlockNo(90), 90 * BLOCK, 8192, None, 1);
    }
    let queued: Vec<BlockNo> = recorder.misses().try_iter().map(|miss| miss.block).collect();
    assert_eq!(queued, [BlockNo(10), BlockNo(10)]);
    for i in 0..20_000 {
        miss(&recorder, FILE, i % 1000 * 3);
    }
    assert!(recorder.status().misses_dropped > 0, "the queue is bounded");
}

#[test]
fn counting_takes_less_than_a_microsecond() {
    let recorder = recorder();
    let began = crate::device::clock::monotonic_now();
    let rounds = 200_000u32;
    for i in 0..u64::from(rounds) {
        miss(&recorder, FILE, i.wrapping_mul(7919) % 160_000);
    }
    let each = began.elapsed() / rounds;
    // The tests' build is not the fast one and shares its cores; the release build takes a tenth of this.
    assert!(each < std::time::Duration::from_micros(5), "{each:?}");
}

#[test]
fn heat_survives_a_restart_and_damage_only_loses_it() {
    let (_dir, device) = real_device();
    let id = [7u8; 16];
    let saved = recorder();
    assert!(!saved.load(&device, &id).unwrap());
    for block in [1u64, 300, 301, 70_000] {
        miss(&saved, FILE, block);
        miss(&saved, FileId(u64::MAX), block);
    }
    saved.roll(0.5);
    saved.save(&device, &id).unwrap();
    saved.save(&device, &id).unwrap();
    let loaded = recorder();
    assert!(loaded.load(&device, &id).unwrap());
    for block in [0u64, 1, 300, 301, 302, 70_000] {
        assert_eq!(heat(&loaded, FILE, block), heat(&saved, FILE, block));
    }
    assert!(recorder().load(&device, &[8; 16]).is_err(), "of another volume");
    let file = device.open(HEAT_FILE, OpenMode::default()).unwrap();
    let len = file.len().unwrap();
    let mut bytes = vec![0; usize::try_from(len).unwrap()];
    file.read_at(&mut bytes, 0).unwrap();
    for at in 0..bytes.len() {
        let flipped = [bytes[at] ^ 0x10];
        file.write_all_at(&flipped, u64::try_from(at).unwrap()).unwrap();
        assert!(recorder().load(&device, &id).is_err(), "byte {at}");
        file.write_all_at(&bytes[at..=at], u64::try_from(at).unwrap()).unwrap();
    }
    for cut in 0..len {
        file.set_len(cut).unwrap();
        assert!(recorder().load(&device, &id).is_err(), "cut at {cut}");
        file.write_all_at(&bytes, 0).unwrap();
    }
    assert!(recorder().load(&device, &id).unwrap());
}

#[test]
fn golden_bytes_of_heat() {
    let (_dir, device) = real_device();
    let recorder = recorder();
    let mut chunk = Chunk::new();
    chunk.set_past(5, 1.5);
    recorder.insert((FileId(0x0102), 3), chunk);
    *recorder.exposure.lock() = 0.5;
    recorder.save(&device, b"0123456789abcdef").unwrap();
    let file = device.open(HEAT_FILE, OpenMode::default()).unwrap();
    let mut bytes = vec![0; 200];
    let len = file.read_at(&mut bytes, 0).unwrap();
    let hex: String = bytes[..len].iter().map(|byte| format!("{byte:02x}")).collect();
    assert_eq!(
        hex,
        concat!(
            "48544653484541540100000000000100303132333435363738396162636465660000003f01000000ebfd3f74",
            "0201000000000000030000000000000001000000050000c03fe9c0f45d"
        )
    );
}

#[test]
fn what_is_expected_is_the_heat_until_it_is_forgotten() {
    let recorder = recorder();
    let (cooling, warming, unknown) = (5u64, 300u64, 5000u64);
    for _ in 0..20 {
        miss(&recorder, FILE, cooling);
        miss(&recorder, FILE, unknown);
    }
    recorder.roll(1.0);
    let plain = [cooling, warming, unknown].map(|block| heat(&recorder, FILE, block));
    let mut expecting = recorder.expecting();
    expecting.expect(FILE, BlockNo(cooling), 0.0);
    expecting.expect(FILE, BlockNo(warming), 7.0);
    expecting.publish();
    assert!(heat(&recorder, FILE, cooling) < 0.2 && (heat(&recorder, FILE, warming) - 7.0).abs() < 0.2);
    assert_eq!(heat(&recorder, FILE, unknown), plain[2], "what nothing was said of is left to its past");
    let mut seen = std::collections::BTreeMap::new();
    recorder.file_heat(FILE, 6000).runs(BlockNo(0), 6000, |first, count, heat| {
        seen.extend((first.0..first.0 + count).map(|block| (block, heat)));
    });
    for block in [cooling, warming, unknown, 1] {
        let difference = (seen[&block] - heat(&recorder, FILE, block)).abs();
        assert!(difference < 0.2, "the planner sees block {block} alike: {difference}");
    }
    // Twenty more reads of a block that was to cool count as they would have without.
    (0..20).for_each(|_| miss(&recorder, FILE, cooling));
    assert!(heat(&recorder, FILE, cooling) > 15.0);
    assert_eq!(recorder.evidence(FILE, BlockNo(warming)).expected, Some(7.0));
    recorder.roll(1.0);
    recorder.expect_nothing();
    assert!(heat(&recorder, FILE, warming) < 0.2 && heat(&recorder, FILE, cooling) > 10.0);
}

#[test]
fn the_feed_is_bounded_and_silent_without_a_listener() {
    let recorder = recorder();
    miss(&recorder, FILE, 1);
    assert_eq!(recorder.events().count(), 0);
    recorder.listen(true);
    miss(&recorder, FILE, 2);
    recorder.on_write(FILE, 1 << 20, 4096, false);
    recorder.on_write(FileId(8), 0, 4096, true);
    recorder.on_file_gone(FILE);
    let events: Vec<super::Event> = recorder.events().collect();
    assert_eq!(events.len(), 3, "log files are no heat: {events:?}");
    assert!(matches!(events[0], super::Event::Access { tier: Some(TierId(2)), access } if !access.is_write));
    assert_eq!(events[2], super::Event::Gone(FILE));
    (0..50_000).for_each(|block| miss(&recorder, FILE, block * 3));
    assert!(recorder.events_waiting() < 50_000 && recorder.status().feed_dropped > 0);
}

#[test]
fn maintenance_is_no_heat() {
    let recorder = recorder();
    recorder.listen(true);
    super::maintaining(true, || {
        (0..50).for_each(|block| miss(&recorder, FILE, block * 3));
        recorder.on_write(FILE, 1 << 30, 8192, false);
    });
    miss(&recorder, FILE, 7);
    recorder.roll(1.0);
    assert!(heat(&recorder, FILE, 3) < heat(&recorder, FILE, 7) / 2.0);
    let status = recorder.status();
    assert_eq!((status.maintenance_accesses, status.counted_reads, recorder.events().count()), (51, 1, 1));
}

//! The mover on a real engine over simulated devices.

use crate::device::Device;
use crate::device::clock::monotonic_now;
use crate::device::sim::{SimWorld, Survival};
use crate::error::Error;
use crate::heat::{HeatSettings, Recorder};
use crate::jobs::migrate::{Mover, MoverSettings, Outcome, PINS_FILE};
use crate::jobs::pace::Backoff;
use crate::policy::placement::{PlacementSettings, Reason};
use crate::units::{BlockNo, FileId, TierId};
use crate::volume::{AccessObserver, File, Options, Tier, Volume, Wait};
use std::sync::Arc;
use std::time::Duration;

const BLOCK: u64 = 16 * 1024;
const BUDGETS: [u64; 3] = [100 * BLOCK, 100 * BLOCK, 4096 * BLOCK];
const PLAN_TIME: Duration = Duration::from_secs(20);
const ID: [u8; 16] = [7; 16];

fn tiers(world: &SimWorld) -> Vec<Tier> {
    let tier = |(name, budget): (&str, u64)| Tier {
        name: name.to_owned(),
        device: world.device(name),
        budget_bytes: Some(budget),
        reserve_bytes: 0,
    };
    ["nvme", "sata", "hdd"].into_iter().zip(BUDGETS).map(tier).collect()
}

fn options() -> Options {
    Options {
        block_bytes: 16 * 1024,
        segment_bytes: 1 << 20,
        segments: 16,
        payload_cache_bytes: 1 << 20,
        coalesce_at_fill: 0.5,
        checkpoint_interval_s: 3600,
    }
}

struct House {
    world: SimWorld,
    volume: Arc<Volume>,
    recorder: Arc<Recorder>,
    mover: Arc<Mover>,
}

impl House {
    fn open(world: SimWorld) -> House {
        House::open_with(world, MoverSettings::default())
    }

    fn open_with(world: SimWorld, settings: MoverSettings) -> House {
        let (volume, _) = Volume::open(tiers(&world), options()).unwrap();
        let recorder = Arc::new(Recorder::new(HeatSettings::with_block_bytes(16 * 1024)));
        volume.set_observer(recorder.clone());
        // An epoch of a second, so that what a test reads is worth moving.
        let placement = PlacementSettings { low_watermark: 0.8, high_watermark: 0.96, ..settings.placement.clone() };
        let settings = MoverSettings { epoch: Duration::from_secs(1), placement, ..settings };
        let mover = Mover::open(volume.clone(), recorder.clone(), world.device("nvme"), ID, settings).unwrap();
        House { world, volume, recorder, mover }
    }

    fn new() -> House {
        let world = SimWorld::new(1);
        Volume::create(&tiers(&world), &options(), uuid::Uuid::from_u128(7), &mut |_| {}).unwrap();
        House::open(world)
    }

    /// A file of so many blocks, coalesced: the fastest tiers fill up first.
    fn file(&self, blocks: u64) -> Arc<File> {
        let file = self.volume.file(self.volume.issue_file_id().unwrap()).unwrap();
        for block in 0..blocks {
            self.volume.write(&file, block * BLOCK, &pattern(block), Wait::Allowed).unwrap();
            if block % 64 == 63 {
                self.volume.coalesce_all(&mut |_, _| {}).unwrap();
            }
        }
        self.volume.coalesce_all(&mut |_, _| {}).unwrap();
        self.volume.checkpoint().unwrap();
        file
    }

    fn tier_of(&self, file: &File, block: u64) -> Option<u8> {
        let runs = self.volume.block_map(file);
        runs.iter().find(|run| block >= run.0.0 && block < run.0.0 + run.1).and_then(|run| run.2).map(|tier| tier.0)
    }

    /// Misses of single pages, in an order that is no stream.
    fn heat_up(&self, file: &File, blocks: &[u64], times: u32) {
        for time in 0..u64::from(times) {
            for block in blocks {
                let offset = block * BLOCK + (time % 2) * 8192;
                let (block, tier) = (BlockNo(*block), self.tier_of(file, *block).map(TierId));
                self.recorder.on_read_miss(file.id(), block, block, offset + 1, 4096, tier, 100);
            }
        }
    }

    fn assert_content(&self, file: &Arc<File>, blocks: u64) {
        let mut bytes = vec![0; BLOCK as usize];
        for block in 0..blocks {
            self.volume.read(file, block * BLOCK, &mut bytes, Wait::Allowed).unwrap();
            assert!(bytes == pattern(block), "block {block}");
        }
    }
}

fn pattern(block: u64) -> Vec<u8> {
    (0..BLOCK).map(|at| (block * 31 + at / 512) as u8 | 1).collect()
}

#[test]
fn hot_blocks_rise_cold_ones_sink_and_explain_says_why() {
    let house = House::new();
    let file = house.file(600);
    assert_eq!((house.tier_of(&file, 0), house.tier_of(&file, 599)), (Some(0), Some(2)), "the first come lie fastest");
    let hot: Vec<u64> = (0..40).map(|i| 300 + (i * 7) % 299).collect();
    // A plan replaces no more than is free until the next checkpoint: a twentieth of a tier that first images filled.
    for _ in 0..20 {
        house.heat_up(&file, &hot, 50);
        house.mover.run_plan(PLAN_TIME);
    }
    for block in &hot {
        assert_eq!(house.tier_of(&file, *block), Some(0), "block {block}");
    }
    house.assert_content(&file, 600);
    for tier in house.volume.status().tiers {
        assert!(tier.used_bytes <= tier.budget_bytes, "{tier:?}");
    }
    let told = house.mover.explain(file.id(), BlockNo(hot[0])).unwrap();
    assert_eq!(told.tier.as_deref(), Some("nvme"));
    assert!(told.temperature > 0.9 && told.heat > 1.0, "{told:?}");
    let last = told.history.last().unwrap();
    assert!(
        last.outcome == Outcome::Moved && matches!(last.reason, Reason::Hotter { .. } | Reason::Room { .. }),
        "{last:?}"
    );
    assert!(told.why.contains("to nvme: "), "{}", told.why);
    let map = house.mover.heat_map(file.id(), 10).unwrap();
    assert_eq!(map.ranges.len(), 10);
    assert_eq!(map.ranges.iter().map(|range| range.tiers.iter().sum::<u64>()).sum::<u64>(), 600);
    assert!(map.ranges[9].hottest > map.ranges[0].hottest);
    let status = house.mover.status();
    assert!(status.moved_blocks >= 80 && status.failed_moves == 0 && !status.recent.is_empty(), "{status:?}");
    assert_eq!(house.mover.warm_files(5)[0].file, file.id());
    assert!(house.volume.check(true).unwrap().is_empty());
}

#[test]
fn shards_are_split_where_a_file_is_hot_and_cover_what_lies_on_tiers() {
    let house = House::new();
    let file = house.file(600);
    // What was only written in sequence is forgotten with the epoch; the first block of the stream is not.
    house.mover.forecaster().end_epoch_now();
    house.heat_up(&file, &[70, 90, 71], 50);
    house.mover.run_plan(PLAN_TIME);
    house.mover.forecaster().hear_now();
    let shards = house.mover.shards(file.id()).unwrap();
    let ends: Vec<u64> = shards.iter().map(|shard| shard.first.0 + shard.blocks).collect();
    assert!(shards[1..].iter().zip(&ends).all(|(shard, end)| shard.first.0 == *end), "{shards:?}");
    assert_eq!(shards.iter().map(|shard| shard.tiers.iter().sum::<u64>()).sum::<u64>(), 600);
    let single: Vec<u64> = shards.iter().filter(|shard| shard.blocks == 1).map(|shard| shard.first.0).collect();
    assert!((64..128).all(|block| single.contains(&block)), "what was read is known block by block: {single:?}");
    assert!(single.iter().all(|block| *block < 128), "and nothing else but the stream's beginning: {single:?}");
    let of = |block: u64| shards.iter().find(|shard| shard.first.0 == block).unwrap();
    assert!(of(70).temperature > 0.9 && of(70).temperature > of(80).temperature, "{:?}", of(70));
    assert!(shards.iter().all(|shard| (0.0..=1.0).contains(&shard.temperature) && shard.temperature <= shard.hottest));
}

#[test]
fn compaction_takes_the_images_of_zeros_from_the_slowest_tier() {
    let house = House::new();
    let file = house.file(600);
    let mut expected: Vec<Vec<u8>> = (0..600).map(pattern).collect();
    for block in [5u64, 300, 301, 420, 599] {
        expected[block as usize].fill(0);
        house.volume.write(&file, block * BLOCK, &expected[block as usize], Wait::Allowed).unwrap();
    }
    house.volume.coalesce_all(&mut |_, _| {}).unwrap();
    assert_eq!((house.tier_of(&file, 5), house.tier_of(&file, 420)), (Some(0), Some(2)));
    let looked_at = std::cell::Cell::new(0);
    house.mover.compact(&|bytes| {
        looked_at.set(looked_at.get() + bytes);
        looked_at.get() > 100 * BLOCK
    });
    let status = house.mover.status().compaction;
    assert!(status.passes == 0 && status.looked_at_bytes <= 100 * BLOCK, "a pass that ends early is none: {status:?}");
    house.mover.compact(&|_| false);
    let status = house.mover.status().compaction;
    assert_eq!((status.passes, status.dropped_bytes), (1, 4 * BLOCK), "those below alone: {status:?}");
    assert_eq!((house.tier_of(&file, 5), house.tier_of(&file, 420)), (Some(0), None));
    house.volume.checkpoint().unwrap();
    for (block, expected) in expected.iter().enumerate() {
        let mut bytes = vec![0xee; BLOCK as usize];
        house.volume.read(&file, block as u64 * BLOCK, &mut bytes, Wait::Allowed).unwrap();
        assert!(bytes == *expected, "block {block}");
    }
    assert!(house.volume.check(true).unwrap().is_empty());
}

#[test]
fn what_was_promoted_sinks_again_for_free() {
    let house = House::new();
    let file = house.file(600);
    let (first, second): (Vec<u64>, Vec<u64>) = ((200..400).collect(), (400..600).collect());
    for (hot, times) in [(&first, 20), (&second, 400)] {
        for _ in 0..30 {
            house.heat_up(&file, hot, times);
            house.mover.run_plan(PLAN_TIME);
        }
        let risen = hot.iter().filter(|block| house.tier_of(&file, **block) != Some(2)).count();
        assert!(risen > 120, "{risen} of {} rose: {:?} {:?}", hot.len(), house.mover.status(), house.volume.status());
    }
    let flips = house.volume.status().counters.demoted_by_flip_blocks;
    assert!(flips > 60, "blocks with a copy on the slow tier go back without copying: {flips}");
    house.assert_content(&file, 600);
}

/// Misses on the slowest tier, one after another, as the fast lane serves them.
fn stage(house: &House, file: &Arc<File>, blocks: impl Iterator<Item = u64>) -> u64 {
    let mut open = None;
    let mut staged = 0;
    for block in blocks.map(BlockNo) {
        if house.mover.stages(TierId(2), file.id(), block) {
            assert!(!house.mover.stage(&mut open, TierId(2), file.id(), block), "not stopped");
            staged += u64::from(house.tier_of(file, block.0) == Some(0));
        }
    }
    staged
}

/// The share is made free, and what left it is really gone.
fn make_room_to_stage(house: &House) {
    for _ in 0..4 {
        house.mover.run_plan(PLAN_TIME);
        house.volume.checkpoint().unwrap();
    }
    house.mover.run_plan(PLAN_TIME);
}

#[test]
fn a_miss_is_staged_leaves_by_a_flip_and_rests_before_it_comes_again() {
    let house = House::new();
    let file = house.file(600);
    house.mover.forecaster().stage_percent(20);
    make_room_to_stage(&house);
    let first: Vec<u64> = (400..416).collect();
    assert_eq!(stage(&house, &file, first.iter().copied()), 16, "{:?}", house.mover.status());
    assert!(!house.mover.stages(TierId(2), file.id(), BlockNo(400)), "it is there already");
    let before = house.volume.status().counters;
    // As many others push them out again, and nothing is copied for that.
    let staged = stage(&house, &file, 500..508);
    assert!(staged > 0);
    let after = house.volume.status().counters;
    assert_eq!(after.demoted_by_flip_blocks - before.demoted_by_flip_blocks, staged);
    assert_eq!(after.base_writes[2], before.base_writes[2], "nothing is written to the slow tier");
    let left: Vec<u64> = first.iter().copied().filter(|block| house.tier_of(&file, *block) == Some(2)).collect();
    assert_eq!(left.len() as u64, staged);
    assert!(left.iter().all(|block| !house.mover.stages(TierId(2), file.id(), BlockNo(*block))), "they rest");
    // A pinned file is not staged, a block whose file is gone does no harm, and without a share all go down.
    house.mover.pin(file.id(), "hdd").unwrap();
    assert!(!house.mover.stages(TierId(2), file.id(), BlockNo(550)));
    house.mover.unpin(file.id()).unwrap();
    house.mover.forecaster().stage_percent(0);
    house.mover.run_plan(PLAN_TIME);
    assert!((500..508).all(|block| house.tier_of(&file, block) != Some(0)));
    house.assert_content(&file, 600);
    assert!(house.volume.check(true).unwrap().is_empty());
}

#[test]
fn a_staged_block_that_is_written_is_placed_like_any_other() {
    let house = House::new();
    let file = house.file(600);
    house.mover.forecaster().stage_percent(20);
    make_room_to_stage(&house);
    assert_eq!(stage(&house, &file, [450].into_iter()), 1);
    house.volume.write(&file, 450 * BLOCK, &pattern(450), Wait::Allowed).unwrap();
    house.volume.coalesce_all(&mut |_, _| {}).unwrap();
    house.mover.forecaster().stage_percent(0);
    house.mover.run_plan(PLAN_TIME);
    house.assert_content(&file, 600);
    assert!(house.volume.check(true).unwrap().is_empty());
}

#[test]
fn pins_are_durable_and_obeyed() {
    let house = House::new();
    let file = house.file(60);
    assert!(matches!(house.mover.pin(file.id(), "tape"), Err(Error::Invalid(why)) if why.contains("nvme, sata, hdd")));
    house.mover.pin(file.id(), "hdd").unwrap();
    house.mover.pin(FileId(4711), "nvme").unwrap();
    assert!(house.mover.unpin(FileId(4711)).unwrap() && !house.mover.unpin(FileId(4711)).unwrap());
    house.mover.run_plan(PLAN_TIME);
    assert!((0..60).all(|block| house.tier_of(&file, block) == Some(2)));
    house.heat_up(&file, &[3, 9, 27], 1000);
    house.mover.run_plan(PLAN_TIME);
    assert_eq!(house.tier_of(&file, 27), Some(2), "heat does not beat a pin");
    house.assert_content(&file, 60);
    let id = file.id();
    let after = house.world.recover(Survival::None);
    drop(house);
    let house = House::open(after);
    assert_eq!(house.mover.pins(), [(id, "hdd".to_owned())]);
    assert_eq!(house.mover.explain(id, BlockNo(1)).unwrap().pinned_to.as_deref(), Some("hdd"));
}

#[test]
fn a_pin_that_cannot_be_written_is_not_made_and_damaged_pins_are_named() {
    let house = House::new();
    let file = house.file(4);
    house.mover.pin(file.id(), "sata").unwrap();
    house.world.device("nvme").break_writes(true);
    assert!(house.mover.pin(file.id(), "hdd").is_err());
    assert_eq!(house.mover.pins(), [(file.id(), "sata".to_owned())]);
    house.world.device("nvme").break_writes(false);
    let device = house.world.device("nvme");
    let pins = device.open(PINS_FILE, Default::default()).unwrap();
    pins.write_all_at(b"heatfs nips", 11).unwrap();
    let again = Mover::open(house.volume.clone(), house.recorder.clone(), device, ID, MoverSettings::default());
    assert!(matches!(again.err(), Some(Error::Corrupt { what: "pins", .. })));
}

#[test]
fn a_failing_tier_stops_its_worker_and_nothing_is_lost() {
    let house = House::new();
    let file = house.file(400);
    house.heat_up(&file, &(210..260).map(|i| i * 3 % 190 + 210).collect::<Vec<_>>(), 30);
    house.world.device("hdd").break_reads(true);
    house.mover.run_plan(PLAN_TIME);
    assert!(house.mover.status().failed_moves > 0);
    house.world.device("hdd").break_reads(false);
    house.assert_content(&file, 400);
}

/// R24: as long as commits are slow the mover rests before each of its turns; it goes on, since they may be slow for another reason.
#[test]
fn r24_the_mover_rests_while_commits_are_slow() {
    let house = House::new();
    let file = house.file(400);
    let never = monotonic_now() + Duration::from_secs(86_400);
    let rested_us = |slow: bool, first: u64| {
        *house.mover.backoff.lock() = (Backoff::default(), never, slow);
        let (before, hot) = (house.mover.status(), (first..first + 20).collect::<Vec<u64>>());
        house.heat_up(&file, &hot, 50);
        house.mover.run_plan(PLAN_TIME);
        let after = house.mover.status();
        assert!(after.moved_blocks > before.moved_blocks, "{after:?}");
        after.paused_us - before.paused_us
    };
    let (slow, quick) = (rested_us(true, 220), rested_us(false, 320));
    assert!(slow >= 400_000 && quick == 0, "{slow} us while commits are slow, {quick} us else");
}

#[test]
fn threads_move_under_load_and_heat_survives_a_restart() {
    let world = SimWorld::new(3);
    Volume::create(&tiers(&world), &options(), uuid::Uuid::from_u128(7), &mut |_| {}).unwrap();
    let quick = MoverSettings { plan_every_min: Duration::from_millis(50), ..MoverSettings::default() };
    let house = House::open_with(world, quick);
    let file = house.file(600);
    house.volume.start_threads().unwrap();
    house.mover.start(|| {}).unwrap();
    let hot: Vec<u64> = (0..30).map(|i| 310 + (i * 7) % 280).collect();
    let mut bytes = vec![0; BLOCK as usize];
    let mut rewritten = 0;
    for round in 0..20_000u64 {
        let block = hot[(round * 17 % 30) as usize];
        house.volume.read(&file, block * BLOCK, &mut bytes, Wait::Allowed).unwrap();
        assert!(bytes == pattern(block), "block {block}");
        if round % 10 == 0 {
            house.volume.write(&file, block * BLOCK, &pattern(block), Wait::Allowed).unwrap();
            rewritten += 1;
        }
        if round % 50 == 0 {
            std::thread::sleep(Duration::from_millis(10));
        }
        if rewritten > 20 && hot.iter().all(|block| house.tier_of(&file, *block) == Some(0)) {
            break;
        }
    }
    house.mover.stop();
    assert!(hot.iter().all(|block| house.tier_of(&file, *block) == Some(0)), "{:?}", house.mover.status());
    house.assert_content(&file, 600);
    house.volume.shut_down().unwrap();
    let heat = house.recorder.block_heat(file.id(), BlockNo(hot[0]));
    let house = House::open(house.world.recover(Survival::All));
    let again = house.recorder.block_heat(file.id(), BlockNo(hot[0]));
    assert!(again > 0.0 && (again - heat).abs() / heat < 0.2, "{heat} {again}");
}

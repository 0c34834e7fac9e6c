//! Blocks of nothing but zeros lose their image, and nothing else.

use crate::crash::enumerate_with;
use crate::harness::{BLOCK, Harness, Model, Op, Random};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::device::{Device, OpenMode};
use heatfs::tier::objects::object_path;
use heatfs::units::{BlockNo, TierId};
use heatfs::volume::{File, Volume, Wait};
use std::sync::Arc;
use uuid::Uuid;

const HDD: TierId = TierId(2);

/// Four blocks on the slowest tier, the second and third of zeros.
fn prepared(seed: u64) -> (Harness, Arc<File>) {
    let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    for (block, byte) in [1u8, 0, 0, 4].into_iter().enumerate() {
        volume.write(&file, block as u64 * BLOCK, &vec![byte; BLOCK as usize], Wait::Allowed).expect("writes");
    }
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.move_run(&file, BlockNo(0), 4, HDD).expect("moves");
    volume.checkpoint().expect("checkpoints");
    (harness, file)
}

fn block(volume: &Volume, file: &Arc<File>, number: u64) -> Vec<u8> {
    let mut buf = vec![0xee; BLOCK as usize];
    assert_eq!(volume.read(file, number * BLOCK, &mut buf, Wait::Allowed).expect("readable"), buf.len());
    buf
}

/// I10: the image goes, its space stays promised, and whoever writes there again finds it.
#[test]
fn zeros_lose_their_image_and_keep_their_space() {
    let (harness, file) = prepared(1);
    let volume = harness.volume();
    let (before, free, blocks_512) = (volume.status(), volume.space().available_bytes, volume.attr(&file).blocks_512);
    assert_eq!(volume.drop_zeros(&file, BlockNo(0), 4).expect("looks"), (4, 2));
    assert_eq!(volume.drop_zeros(&file, BlockNo(1), 1).expect("looks"), (0, 0), "there is nothing any more");
    assert_eq!(volume.drop_zeros(&file, BlockNo(3), 4).expect("looks"), (1, 0));
    volume.checkpoint().expect("checkpoints");
    let after = volume.status();
    assert_eq!(after.tiers[2].blocks, before.tiers[2].blocks - 2);
    assert_eq!(after.tiers[2].used_bytes, before.tiers[2].used_bytes - 2 * BLOCK, "the places are free again");
    assert_eq!((volume.space().available_bytes, volume.attr(&file).blocks_512), (free, blocks_512), "and promised");
    assert_eq!(after.counters.zero_blocks, 2);
    let reads = harness.world.device("hdd").traffic().reads;
    assert_eq!((block(volume, &file, 1), block(volume, &file, 2)), (vec![0; BLOCK as usize], vec![0; BLOCK as usize]));
    assert_eq!(harness.world.device("hdd").traffic().reads, reads, "no device is asked for zeros");
    // All that is not promised is taken; the block can be written to all the same.
    volume.allocate(&file, 1 << 30, volume.space().available_bytes, true).expect("takes the rest");
    volume.write(&file, 2 * BLOCK + 5, &[9; 10], Wait::Allowed).expect("has its space");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    let mut expected = vec![0; BLOCK as usize];
    expected[5..15].fill(9);
    let cut = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
    let file = cut.volume().file(cut.ids[0]).expect("known");
    assert_eq!(block(cut.volume(), &file, 2), expected);
    assert_eq!((block(cut.volume(), &file, 0)[7], block(cut.volume(), &file, 3)[7]), (1, 4));
    assert!(cut.volume().check(true).expect("checks").is_empty());
}

/// I6: what a mark expects in the base it finds, after the image went and another one came.
#[test]
fn a_mark_keeps_zeros_without_an_image() {
    let (harness, file) = prepared(2);
    let volume = harness.volume();
    let mark = volume.mark(Uuid::from_u128(5)).expect("marks");
    volume.wait_for_mark(&mark).expect("durable");
    volume.write(&file, BLOCK + 100, &[7; 200], Wait::Allowed).expect("writes");
    assert_eq!(volume.drop_zeros(&file, BlockNo(1), 2).expect("looks"), (2, 2));
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    let mut seen = vec![0xee; 4 * BLOCK as usize];
    volume.read_at(&mark, harness.ids[0], 0, &mut seen).expect("readable");
    let expected: Vec<u8> = [1u8, 0, 0, 4].into_iter().flat_map(|byte| vec![byte; BLOCK as usize]).collect();
    assert!(seen == expected, "as of the mark");
    assert_eq!(block(volume, &file, 1)[150], 7);
    volume.release_mark(&mark);
}

/// R8: zeros whose image was written and then lost come back from the log, though the block had lost the image before that was known.
#[test]
fn zeros_of_a_tier_that_lost_them_stay_zeros() {
    let (harness, file) = prepared(3);
    let volume = harness.volume();
    volume.write(&file, 0, &vec![0; BLOCK as usize], Wait::Allowed).expect("writes");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    assert_eq!(volume.drop_zeros(&file, BlockNo(0), 1).expect("looks"), (1, 1));
    let device = harness.world.device("hdd");
    device.break_syncs(true);
    volume.checkpoint().expect_err("the tier lost its writes");
    device.break_syncs(false);
    assert_eq!(block(volume, &file, 0), vec![0; BLOCK as usize]);
    volume.checkpoint().expect("the next one goes through");
    let cut = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
    let file = cut.volume().file(cut.ids[0]).expect("known");
    assert_eq!(block(cut.volume(), &file, 0), vec![0; BLOCK as usize]);
}

/// What lies past the end of an object that somebody has cut short is not called zeros: it is missing.
#[test]
fn blocks_past_the_end_of_an_object_keep_their_image() {
    let (harness, file) = prepared(7);
    let path = object_path(harness.ids[0]);
    let object = harness.world.device("hdd").open(&path, OpenMode::default()).expect("opens");
    object.set_len(2 * BLOCK).expect("cuts");
    assert_eq!(harness.volume().drop_zeros(&file, BlockNo(1), 2).expect("looks"), (2, 1));
    assert_eq!(harness.volume().drop_zeros(&file, BlockNo(2), 1).expect("looks"), (1, 0));
}

#[test]
fn random_operations_with_zeros_agree_with_the_model() {
    let mut dropped = 0;
    for seed in 0..40 {
        let mut random = Random(seed ^ 0x2e05);
        let mut harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
        let mut model = Model::default();
        for index in 0..150 {
            let op = random.zeros_op(true);
            if matches!(op, Op::Reopen { .. }) {
                dropped += harness.volume().status().counters.zero_blocks;
            }
            harness.run(index, &op).unwrap_or_else(|error| panic!("seed {seed}: {op:?}: {error}"));
            model.apply(index, &op);
            assert!(harness.contents().expect("readable") == model, "seed {seed} after operation {index} {op:?}");
        }
        dropped += harness.volume().status().counters.zero_blocks;
        assert!(harness.volume().check(true).expect("checks").is_empty(), "seed {seed}");
    }
    assert!(dropped > 100, "only {dropped} blocks lost an image: too few to show anything");
}

#[test]
fn crash_points_of_workloads_with_zeros_recover_to_a_prefix() {
    let short: u64 = (0..16).map(|seed| enumerate_with(seed, 16, 1, |random| random.zeros_op(true))).sum();
    let long: u64 = (300..318).map(|seed| enumerate_with(seed, 80, 5, |random| random.zeros_op(true))).sum();
    println!("{short} and {long} crash points");
    assert!(short >= 1_500 && long >= 1_000, "only {short} and {long} crash points were tried");
}

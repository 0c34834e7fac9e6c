//! Volumes of many files: memory holds those in use, the rest is found again as it was.

use crate::harness::{BLOCK, options, tiers};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Volume, Wait};
use std::ops::ControlFlow;
use std::sync::Arc;

/// As many as may stay although nobody uses them.
const KEPT_FILES: u64 = 20_000;

fn volume() -> Arc<Volume> {
    let world = SimWorld::new(41);
    let tiers = tiers(&world);
    Volume::create(&tiers, &options(), uuid::Uuid::from_u128(41), &mut |_| {}).expect("a volume is made");
    Volume::open(tiers, options()).expect("it opens").0
}

fn write(volume: &Volume, id: FileId, block: u64, byte: u8) {
    let file = volume.file(id).expect("known");
    volume.write(&file, block * BLOCK, &[byte; 100], Wait::Allowed).expect("is written");
}

fn settle(volume: &Volume) {
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
}

/// Reading does not make a checkpoint due, and yet files that nobody uses any more leave; what is not in durable state yet stays.
#[test]
fn looking_at_every_file_keeps_few_in_memory() {
    let volume = volume();
    let ids: Vec<FileId> = (0..KEPT_FILES + 5000).map(|_| volume.issue_file_id().expect("an id")).collect();
    write(&volume, ids[7], 3, 7);
    settle(&volume);
    write(&volume, ids[8], 0, 8);
    let held = volume.file(ids[9]).expect("known");
    for id in &ids {
        volume.file(*id).expect("known");
    }
    assert!(volume.status().files <= KEPT_FILES + 1, "{} files", volume.status().files);
    assert!(Arc::ptr_eq(&held, &volume.file(ids[9]).expect("known")), "what is in use stays");
    for (id, block, byte) in [(ids[7], 3, 7), (ids[8], 0, 8)] {
        let mut buf = [0; 100];
        let file = volume.file(id).expect("known");
        volume.read(&file, block * BLOCK, &mut buf, Wait::Allowed).expect("readable");
        assert_eq!(buf, [byte; 100]);
    }
}

/// R8: a checkpoint that failed has made nothing durable, sizes neither: files whose size it was to write stay in memory, whoever looks at others.
#[test]
fn a_size_that_no_checkpoint_has_written_stays() {
    let world = SimWorld::new(42);
    let tiers = tiers(&world);
    Volume::create(&tiers, &options(), uuid::Uuid::from_u128(42), &mut |_| {}).expect("a volume is made");
    let (volume, _) = Volume::open(tiers, options()).expect("it opens");
    let ids: Vec<FileId> = (0..KEPT_FILES + 10).map(|_| volume.issue_file_id().expect("an id")).collect();
    write(&volume, ids[0], 0, 1);
    write(&volume, ids[1], 0, 2);
    settle(&volume);
    volume.set_size(&volume.file(ids[1]).expect("known"), 77_000).expect("grows");
    volume.sync_log().expect("durable");
    // Something of the slowest tier waits for its sync, which fails.
    assert!(volume.move_block(&volume.file(ids[0]).expect("known"), BlockNo(0), TierId(2)).expect("moves"));
    world.device("hdd").break_syncs(true);
    volume.checkpoint().expect_err("a tier failed its sync");
    world.device("hdd").break_syncs(false);
    ids.iter().for_each(|id| drop(volume.file(*id).expect("known")));
    let size = |volume: &Volume| volume.attr(&volume.file(ids[1]).expect("known")).size_bytes;
    assert_eq!(size(&volume), 77_000);
    settle(&volume);
    volume.shut_down_quickly().expect("ends");
    drop(volume);
    let world = world.recover(Survival::None);
    let (volume, _) = Volume::open(crate::harness::tiers(&world), options()).expect("it opens");
    assert_eq!(size(&volume), 77_000);
}

/// What the planner goes by: all maps, of files in memory and not, in order, and none is loaded for it.
#[test]
fn every_block_map_is_seen_without_loading_files() {
    let volume = volume();
    let ids: Vec<FileId> = (0..6000).map(|_| volume.issue_file_id().expect("an id")).collect();
    for (at, id) in ids.iter().enumerate().filter(|(at, _)| at % 3 != 0) {
        write(&volume, *id, (at % 5) as u64, 1);
    }
    // Its map has several chunks, and it is not alone in its portion.
    (0..4).for_each(|chunk| write(&volume, ids[3001], chunk * Volume::map_chunk_blocks() as u64 + 9, 2));
    settle(&volume);
    let expected = |except: &[FileId]| -> Vec<(FileId, Vec<_>)> {
        let runs = ids.iter().map(|id| (*id, volume.block_map(&volume.file(*id).expect("known"))));
        runs.filter(|(id, runs)| !runs.is_empty() && !except.contains(id)).collect()
    };
    let seen = || {
        let mut seen = Vec::new();
        let mut visit = |id, runs: Vec<_>| {
            seen.extend((!runs.is_empty()).then_some((id, runs)));
            ControlFlow::Continue(())
        };
        volume.for_each_block_map(&mut visit).expect("readable");
        seen
    };
    let all = expected(&[]);
    let mut visited = 0;
    let mut second = |_, _| {
        visited += 1;
        if visited == 2 { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    volume.for_each_block_map(&mut second).expect("readable");
    assert_eq!(visited, 2, "whoever breaks off hears of no more");
    assert_eq!(seen(), all);
    // 20,000 others drive them out.
    (0..KEPT_FILES).for_each(|_| drop(volume.file(volume.issue_file_id().expect("an id")).expect("known")));
    volume.checkpoint().expect("checkpoints");
    let loaded = volume.status().files;
    assert_eq!(seen(), all);
    assert_eq!(volume.status().files, loaded, "looking loads nothing");
    // What changed since the last checkpoint is told as it is.
    let moved = volume.file(ids[1]).expect("known");
    volume.move_block(&moved, BlockNo(1), TierId(2)).expect("moves");
    let now = seen();
    let entry = now.iter().find(|(id, _)| *id == ids[1]).expect("there");
    assert_eq!((entry.1[0].0, entry.1[0].2), (BlockNo(1), Some(TierId(2))));
    assert_eq!(now.len(), all.len());
}

//! One test for each rule of the design that can be shown below FUSE and is not the subject of another file here (R7: `damage`, R8, I5, I10: `faults`).

use crate::harness::{BLOCK, Glimpse, Harness, Random, options, tiers};
use heatfs::device::Device;
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::error::Error;
use heatfs::tier::objects::object_path;
use heatfs::units::{BlockNo, FileId, TierId, WallNs};
use heatfs::volume::{File, Seek, Volume, Wait};
use std::collections::{BTreeMap, HashSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

const NVME: TierId = TierId(0);
const HDD: TierId = TierId(2);

fn opened(seed: u64) -> Harness {
    Harness::new(SimWorld::new(seed)).expect("a new volume opens")
}

fn file(harness: &Harness, n: usize) -> Arc<File> {
    harness.volume().file(harness.ids[n]).expect("known")
}

fn write(harness: &Harness, n: usize, offset: u64, byte: u8, len: u64) {
    let data = vec![byte; usize::try_from(len).expect("small")];
    harness.volume().write(&file(harness, n), offset, &data, Wait::Allowed).expect("writes");
}

fn read(harness: &Harness, n: usize, offset: u64, len: u64) -> Vec<u8> {
    let mut buf = vec![0xee; usize::try_from(len).expect("small")];
    let got = harness.volume().read(&file(harness, n), offset, &mut buf, Wait::Allowed).expect("readable");
    buf.truncate(got);
    buf
}

fn settle(harness: &Harness) {
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
    harness.volume().checkpoint().expect("checkpoints");
}

/// Settles, and moves the log on by two segments, so that after a crash no record covers what a base should hold.
fn settle_and_pass(harness: &Harness) {
    settle(harness);
    (0..2 * options().segment_bytes / BLOCK).for_each(|block| write(harness, 2, block * BLOCK, 4, BLOCK));
    settle(harness);
    harness.volume().set_size(&file(harness, 2), 0).expect("truncates");
    settle(harness);
}

fn place(harness: &Harness, n: usize, block: u64) -> (Option<TierId>, Option<TierId>) {
    let map = harness.volume().block_map(&file(harness, n));
    let run = map.into_iter().find(|run| run.0.0 <= block && block < run.0.0 + run.1);
    run.map_or((None, None), |run| (run.2, run.3))
}

fn after_cut(harness: &Harness, survival: Survival) -> Harness {
    Harness::open(harness.world.recover(survival), harness.ids.clone()).expect("opens after a power cut")
}

/// I1, R1: a write reaches no base before a sync, and no tier but the fastest is touched by a sync.
#[test]
fn a_write_touches_only_the_log() {
    let harness = opened(1);
    write(&harness, 0, 0, 1, BLOCK);
    settle(&harness);
    harness.volume().move_block(&file(&harness, 0), BlockNo(0), HDD).expect("moves");
    harness.volume().checkpoint().expect("checkpoints");
    let before = (harness.world.device("hdd").traffic(), harness.world.device("nvme").traffic());
    write(&harness, 0, 0, 2, 5000);
    assert_eq!(harness.world.device("nvme").traffic(), before.1, "a write makes no call at all");
    harness.volume().sync_log().expect("syncs");
    assert_eq!(harness.world.device("hdd").traffic(), before.0, "a sync never waits for a slow tier");
    assert_eq!(harness.world.device("nvme").traffic().writes, before.1.writes + 1, "a sync is one write");
    assert_eq!(harness.world.device("nvme").traffic().syncs, before.1.syncs);
}

/// I2: of a block's records only those are applied that are durable. Others may come at any time; here while old bytes are being saved for a mark.
#[test]
fn what_is_not_durable_yet_is_not_applied() {
    let harness = opened(27);
    write(&harness, 0, 0, 1, BLOCK);
    settle_and_pass(&harness);
    let mark = harness.volume().mark(uuid::Uuid::from_u128(1)).expect("a mark is taken");
    harness.volume().wait_for_mark(&mark).expect("durable");
    write(&harness, 0, 0, 2, 4096);
    let (volume, changed) = (Arc::clone(harness.volume()), file(&harness, 0));
    harness.world.device("nvme").after_next_sync(move || {
        volume.write(&changed, 8192, &[3; 4096], Wait::Allowed).expect("writes");
    });
    let mut applied = None;
    harness.volume().coalesce_all(&mut |_, _| applied = Some(harness.world.fork())).expect("coalesces");
    assert_eq!(read(&harness, 0, 8192, 4096), [3; 4096], "the action ran");
    let world = applied.expect("something was coalesced").recover(Survival::All);
    let cut = Harness::open(world, harness.ids.clone()).expect("opens after a power cut");
    assert_eq!(read(&cut, 0, 0, 4096), [2; 4096]);
    assert_eq!(read(&cut, 0, 8192, 4096), [1; 4096], "it was never durable");
}

/// R2: segments go round many times; what is in the oldest one is coalesced before it is used again, and a mount in
/// the middle of it finds the chain.
#[test]
fn a_log_that_goes_round_keeps_everything() {
    let mut harness = opened(2);
    let mut expected = vec![0u8; 40 * 8192];
    // Written once, so that there is something to lose in the oldest segment.
    let mut once = Vec::new();
    let mut written_to = 0;
    for round in 0..1500u64 {
        let (slot, byte) = (round * 7 % 40, u8::try_from(round % 251 + 1).expect("small"));
        write(&harness, 0, slot * 8192, byte, 8192);
        expected[slot as usize * 8192..][..8192].fill(byte);
        if round % 8 == 0 {
            write(&harness, 1, once.len() as u64, byte, 4096);
            once.resize(once.len() + 4096, byte);
        }
        if round % 100 == 99 {
            harness.volume().sync_log().expect("syncs");
            written_to = harness.volume().status().log.next_lsn;
            harness = after_cut(&harness, Survival::Seed(round));
            let size = file(&harness, 0).size_bytes() as usize;
            assert_eq!(read(&harness, 0, 0, 1 << 20), expected[..size], "round {round}");
            assert!(read(&harness, 1, 0, 1 << 20) == once, "round {round}");
        }
    }
    let rounds = written_to / harness.volume().status().log.size_bytes;
    assert!(rounds > 6, "the log went round only {rounds} times");
}

/// R3: bytes that a truncate cut away never come back when the file grows again, wherever old images lie, and neither do those of
/// an image that a crash left where the map knows no block.
#[test]
fn cut_bytes_never_come_back() {
    let harness = opened(3);
    write(&harness, 0, 0, 9, 3 * BLOCK);
    settle(&harness);
    harness.volume().move_block(&file(&harness, 0), BlockNo(1), HDD).expect("moves");
    harness.volume().set_size(&file(&harness, 0), 100).expect("truncates");
    harness.volume().set_size(&file(&harness, 0), 3 * BLOCK).expect("grows");
    let mut expected = vec![0; 3 * BLOCK as usize];
    expected[..100].fill(9);
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK), expected);
    write(&harness, 0, 2 * BLOCK + 50, 8, 1);
    expected[2 * BLOCK as usize + 50] = 8;
    harness.volume().sync_log().expect("syncs");
    assert_eq!(read(&after_cut(&harness, Survival::All), 0, 0, 4 * BLOCK), expected);
    settle(&harness);
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK), expected);
    assert_eq!(read(&after_cut(&harness, Survival::None), 0, 0, 4 * BLOCK), expected);
}

/// R3: a place that the map does not name may hold anything after a crash: the image written there is a full one, zeros included.
#[test]
fn an_abandoned_image_is_covered_whole() {
    let harness = opened(4);
    write(&harness, 0, 0, 9, 2 * BLOCK);
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces: the object holds nines, the durable map nothing");
    harness.volume().set_size(&file(&harness, 0), 0).expect("truncates");
    harness.volume().sync_log().expect("syncs");
    let harness = after_cut(&harness, Survival::All);
    assert_eq!(place(&harness, 0, 0), (None, None));
    write(&harness, 0, 0, 1, 10);
    settle(&harness);
    harness.volume().set_size(&file(&harness, 0), BLOCK).expect("grows");
    let mut expected = vec![0; BLOCK as usize];
    expected[..10].fill(1);
    assert_eq!(read(&harness, 0, 0, BLOCK), expected);
    settle(&harness);
    assert_eq!(read(&after_cut(&harness, Survival::None), 0, 0, BLOCK), expected);
}

/// R4: what is flipped while a checkpoint syncs belongs to the next one: this one has not made it durable, and frees nothing that it needs.
#[test]
fn a_checkpoint_freezes_its_set_before_the_first_sync() {
    let harness = opened(4);
    (0..2).for_each(|block| write(&harness, 0, block * BLOCK, 1, BLOCK));
    settle(&harness);
    (0..2).for_each(|block| {
        assert!(harness.volume().move_block(&file(&harness, 0), BlockNo(block), HDD).expect("moves"));
    });
    harness.volume().checkpoint().expect("checkpoints");
    write(&harness, 1, 0, 5, BLOCK);
    settle_and_pass(&harness);
    write(&harness, 0, 0, 2, 4096);
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
    let (volume, changed, moved) = (Arc::clone(harness.volume()), file(&harness, 0), file(&harness, 1));
    let segment_bytes = options().segment_bytes;
    harness.world.device("hdd").after_next_sync(move || {
        volume.write(&changed, BLOCK, &[3; 4096], Wait::Allowed).expect("writes");
        // The record's segment is not the last one.
        for at in 0..2 * segment_bytes / BLOCK {
            volume.write(&changed, (2 + at) * BLOCK, &[4; BLOCK as usize], Wait::Allowed).expect("writes");
        }
        volume.sync_log().expect("syncs");
        volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
        assert!(volume.move_block(&moved, BlockNo(0), HDD).expect("moves"));
    });
    harness.volume().checkpoint().expect("checkpoints");
    assert_eq!(read(&harness, 0, BLOCK, 1), [3], "the action ran");
    for survival in [Survival::None, Survival::All, Survival::Seed(4)] {
        let after = after_cut(&harness, survival);
        assert_eq!(read(&after, 0, 0, 4096), vec![2; 4096], "{survival:?}");
        assert_eq!(read(&after, 0, BLOCK, 4096), vec![3; 4096], "{survival:?}");
        assert_eq!(read(&after, 0, 2 * BLOCK, 4096), vec![4; 4096], "{survival:?}");
        assert_eq!(read(&after, 1, 0, BLOCK), vec![5; BLOCK as usize], "{survival:?}: its old image was freed");
    }
}

/// R5: an old image is punched only after a checkpoint, nothing is written to its place before, and then its space is free.
#[test]
fn an_old_image_goes_after_the_checkpoint_and_not_before() {
    let harness = opened(5);
    write(&harness, 0, 0, 9, 8 * BLOCK);
    settle_and_pass(&harness);
    let used = |harness: &Harness| harness.world.device("nvme").space().expect("space").available_bytes;
    let available = used(&harness);
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 8, HDD).expect("moves"), 8);
    assert_eq!(
        harness.volume().move_run(&file(&harness, 0), BlockNo(0), 8, NVME).expect("refuses"),
        0,
        "the place still waits"
    );
    assert!(used(&harness) <= available, "nothing was punched yet");
    let cut = after_cut(&harness, Survival::All);
    assert_eq!(place(&cut, 0, 0).0, Some(NVME), "durable state has the old place");
    assert_eq!(read(&cut, 0, 0, 8 * BLOCK), vec![9; 8 * BLOCK as usize]);
    let halfway = Glimpse::at_next_sync(&harness.world, "hdd");
    harness.volume().checkpoint().expect("checkpoints");
    let cut = Harness::open(halfway.world().recover(Survival::All), harness.ids.clone()).expect("opens");
    assert_eq!(read(&cut, 0, 0, 8 * BLOCK), vec![9; 8 * BLOCK as usize], "before state is durable nothing is punched");
    assert!(used(&harness) >= available + 7 * BLOCK, "the old images are punched");
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 8, NVME).expect("moves"), 8);
    assert_eq!(read(&harness, 0, 0, 8 * BLOCK), vec![9; 8 * BLOCK as usize]);
}

/// R6: a promoted block leaves its lower copy; demoting it unchanged copies nothing, and coalescing into it invalidates the copy.
#[test]
fn a_copy_is_used_while_it_is_valid_and_never_after() {
    let harness = opened(6);
    write(&harness, 0, 0, 9, BLOCK);
    settle(&harness);
    let to = |tier| harness.volume().move_block(&file(&harness, 0), BlockNo(0), tier).expect("moves");
    assert!(to(HDD));
    harness.volume().checkpoint().expect("checkpoints");
    assert!(to(NVME));
    assert_eq!(place(&harness, 0, 0), (Some(NVME), Some(HDD)));
    harness.volume().checkpoint().expect("checkpoints");
    let before = harness.world.device("hdd").traffic().writes;
    assert!(to(HDD), "back by a flip");
    assert_eq!(harness.world.device("hdd").traffic().writes, before, "nothing was copied");
    harness.volume().checkpoint().expect("checkpoints");
    assert!(to(NVME), "promoted again, across a checkpoint");
    write(&harness, 0, 10, 7, 100);
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
    assert_eq!(place(&harness, 0, 0), (Some(NVME), None), "the copy is out of date");
    assert!(!to(HDD), "and its place waits for the punch");
    harness.volume().checkpoint().expect("checkpoints");
    assert!(to(HDD));
    let mut expected = vec![9; BLOCK as usize];
    expected[10..110].fill(7);
    assert_eq!(read(&harness, 0, 0, BLOCK), expected);
    settle(&harness);
    assert_eq!(read(&after_cut(&harness, Survival::None), 0, 0, BLOCK), expected);
}

/// A copy made ahead of sinking is as good as one that a promotion left, and what was written since makes it void.
#[test]
fn a_copy_made_ahead_spares_one_later() {
    let harness = opened(8);
    write(&harness, 0, 0, 9, 4 * BLOCK);
    settle(&harness);
    write(&harness, 0, 3 * BLOCK, 5, 10);
    let volume = harness.volume();
    assert_eq!(volume.copy_down(&file(&harness, 0), BlockNo(0), 4).expect("copies"), 3, "a block with records waits");
    assert_eq!(volume.copy_down(&file(&harness, 0), BlockNo(0), 4).expect("refuses"), 0, "they have copies");
    assert_eq!(place(&harness, 0, 2), (Some(NVME), Some(HDD)));
    let written = harness.world.device("hdd").traffic().writes;
    volume.checkpoint().expect("checkpoints");
    assert!(volume.flip_down(&file(&harness, 0), BlockNo(0)).expect("flips"));
    assert!(!volume.flip_down(&file(&harness, 0), BlockNo(3)).expect("refuses"), "no copy, no flip");
    assert_eq!(harness.world.device("hdd").traffic().writes, written, "nothing was copied again");
    write(&harness, 0, BLOCK, 6, 10);
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    assert_eq!(place(&harness, 0, 1), (Some(NVME), None), "the copy is out of date");
    assert!(!volume.flip_down(&file(&harness, 0), BlockNo(1)).expect("refuses"));
    let mut expected = vec![9; 4 * BLOCK as usize];
    expected[3 * BLOCK as usize..3 * BLOCK as usize + 10].fill(5);
    expected[BLOCK as usize..BLOCK as usize + 10].fill(6);
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK), expected);
    settle(&harness);
    assert_eq!(read(&after_cut(&harness, Survival::None), 0, 0, 4 * BLOCK), expected);
}

/// R6: copies that were dropped are gone after a checkpoint, and their blocks are untouched.
#[test]
fn dropped_copies_free_their_space() {
    let harness = opened(7);
    write(&harness, 0, 0, 9, 4 * BLOCK);
    settle(&harness);
    harness.volume().move_run(&file(&harness, 0), BlockNo(0), 4, HDD).expect("moves");
    harness.volume().checkpoint().expect("checkpoints");
    harness.volume().move_run(&file(&harness, 0), BlockNo(0), 4, NVME).expect("moves");
    harness.volume().checkpoint().expect("checkpoints");
    assert_eq!(harness.volume().status().tiers[2].copies, 4);
    assert_eq!(harness.volume().drop_copies(HDD, 3).expect("drops"), 3);
    harness.volume().checkpoint().expect("checkpoints");
    let hdd = &harness.volume().status().tiers[2];
    assert_eq!((hdd.copies, hdd.used_bytes), (1, BLOCK));
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK), vec![9; 4 * BLOCK as usize]);
}

/// R9: a mount syncs every tier before it serves.
#[test]
fn a_mount_syncs_every_tier() {
    let harness = opened(8);
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop(harness);
    let syncs = |world: &SimWorld| ["nvme", "sata", "hdd"].map(|name| world.device(name).traffic().syncs);
    let before = syncs(&world);
    let harness = Harness::open(world.clone(), ids).expect("opens");
    let after = syncs(&world);
    assert!(before.iter().zip(after).all(|(before, after)| after > *before), "{before:?} {after:?}");
    drop(harness);
}

/// R10: ids are never issued twice, whatever a crash takes, and an id that was never issued is refused.
#[test]
fn file_ids_are_never_reused() {
    let mut harness = opened(9);
    let mut seen: HashSet<FileId> = harness.ids.iter().copied().collect();
    for round in 0..6 {
        for _ in 0..30_000 {
            assert!(seen.insert(harness.volume().issue_file_id().expect("an id")), "an id was issued twice");
        }
        let survival = [Survival::None, Survival::All, Survival::Seed(round)][round as usize % 3];
        harness = after_cut(&harness, survival);
    }
    assert!(matches!(harness.volume().file(FileId(1 << 40)), Err(Error::Untrusted { .. })));
    assert!(matches!(harness.volume().file(FileId(0)), Err(Error::Untrusted { .. })));
}

/// R12, I2: a removed file's objects go after the checkpoint that forgets it, the listener hears of it then and not before; what a
/// crash in between leaves behind is found as orphans and can be freed.
#[test]
fn a_removed_file_goes_whole_and_only_after_a_checkpoint() {
    let harness = opened(10);
    let heard = Arc::new(AtomicU64::new(0));
    let listener = heard.clone();
    harness.volume().on_gone(Box::new(move |ids| {
        listener.fetch_add(ids.len() as u64, Ordering::SeqCst);
    }));
    write(&harness, 0, 0, 9, 4 * BLOCK);
    settle_and_pass(&harness);
    harness.volume().move_block(&file(&harness, 0), BlockNo(1), HDD).expect("moves");
    harness.volume().checkpoint().expect("checkpoints");
    write(&harness, 0, 0, 8, 100);
    let limit = harness.volume().meta().file_id_limit;
    let path = object_path(harness.ids[0]);
    harness.volume().remove(harness.ids[0]).expect("removes");
    assert!(harness.world.device("hdd").exists(&path).expect("looks") && heard.load(Ordering::SeqCst) == 0);
    let cut = after_cut(&harness, Survival::All);
    assert_eq!(read(&cut, 0, BLOCK, 10), vec![9; 10], "before the checkpoint a crash brings it back");
    let halfway = Glimpse::at_next_sync(&harness.world, "nvme");
    harness.volume().checkpoint().expect("checkpoints");
    let cut = Harness::open(halfway.world().recover(Survival::All), harness.ids.clone()).expect("opens");
    assert_eq!(read(&cut, 0, BLOCK, 10), vec![9; 10], "so does one within it, until state is durable");
    assert_eq!(heard.load(Ordering::SeqCst), 1);
    for tier in ["nvme", "hdd"] {
        assert!(!harness.world.device(tier).exists(&path).expect("looks"));
    }
    assert_eq!(harness.volume().status().tiers.iter().map(|tier| tier.used_bytes).sum::<u64>(), 0);
    // The removal of the objects was not synced: a power cut brings them back, without a file.
    let cut = after_cut(&harness, Survival::None);
    let known: HashSet<FileId> = cut.ids[1..].iter().copied().collect();
    // Made since, by somebody who has not come to name it yet.
    let new = cut.volume().file(cut.volume().issue_file_id().expect("an id")).expect("known");
    cut.volume().write(&new, 0, &[7; 100], Wait::Allowed).expect("writes");
    let orphans = cut.volume().orphans(&known, limit);
    assert_eq!(orphans, vec![cut.ids[0]]);
    cut.volume().remove(cut.ids[0]).expect("removes");
    cut.volume().checkpoint().expect("checkpoints");
    assert!(!cut.world.device("hdd").exists(&path).expect("looks"));
    assert_eq!(cut.volume().check(true).expect("checks"), vec![]);
}

/// R20: holes are what no tier and no record has; looking for data in a file of terabytes with one byte takes no time.
#[test]
fn seeking_and_cutting_sparse_files_takes_no_time() {
    let harness = opened(11);
    let end = (1u64 << 44) - (2 << 20);
    write(&harness, 0, end, 9, 1);
    write(&harness, 0, 5 * BLOCK, 9, 1);
    let volume = harness.volume();
    let began = std::time::Instant::now();
    for settled in [false, true] {
        let file = file(&harness, 0);
        assert_eq!(volume.seek(&file, 0, Seek::Data), Some(5 * BLOCK));
        assert_eq!(volume.seek(&file, 5 * BLOCK + 3, Seek::Hole), Some(6 * BLOCK));
        assert_eq!(volume.seek(&file, 6 * BLOCK, Seek::Data), Some(end / BLOCK * BLOCK), "settled: {settled}");
        assert_eq!(volume.seek(&file, end + 5, Seek::Data), None);
        settle(&harness);
    }
    assert!(matches!(volume.allocate(&file(&harness, 1), 0, 1 << 43, true), Err(Error::NoSpace)));
    volume.punch_hole(&file(&harness, 0), 1, end + 100).expect("punches");
    volume.set_size(&file(&harness, 0), 1 << 43).expect("truncates");
    assert_eq!(volume.seek(&file(&harness, 0), 0, Seek::Data), None);
    assert!(began.elapsed().as_secs() < 5, "{:?}", began.elapsed());
}

/// R22: an object's length is never the file's, and a block that grows past its image reads zeros in between.
#[test]
fn the_length_of_an_object_means_nothing() {
    let harness = opened(12);
    write(&harness, 0, 0, 9, 100);
    settle(&harness);
    harness.volume().set_size(&file(&harness, 0), 3 * BLOCK + 5).expect("grows");
    let mut expected = vec![0; 3 * BLOCK as usize + 5];
    expected[..100].fill(9);
    assert_eq!(read(&harness, 0, 0, 1 << 20), expected);
    settle(&harness);
    let cut = after_cut(&harness, Survival::None);
    assert_eq!(read(&cut, 0, 0, 1 << 20), expected);
}

/// R23: coalescing in place writes the 4 KiB runs that were covered, once, however often they were written.
#[test]
fn coalescing_in_place_writes_only_what_changed() {
    let harness = opened(13);
    write(&harness, 0, 0, 9, 8 * BLOCK);
    settle(&harness);
    harness.volume().move_run(&file(&harness, 0), BlockNo(0), 8, HDD).expect("moves");
    harness.volume().checkpoint().expect("checkpoints");
    let before = harness.world.device("hdd").traffic();
    for byte in 1..50 {
        write(&harness, 0, 3 * BLOCK + 100, byte, 1000);
        write(&harness, 0, 3 * BLOCK + 8192, byte, 4096);
    }
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
    let after = harness.world.device("hdd").traffic();
    assert_eq!((after.writes - before.writes, after.written_bytes - before.written_bytes), (2, 8192));
    assert_eq!(after.reads - before.reads, 1, "only the page that was not covered whole is read");
}

/// R23: in whatever order pages were written, a slow tier gets them file by file and each file from its beginning.
#[test]
fn r23_a_slow_tier_is_drained_in_the_order_of_its_files() {
    const BLOCKS: u64 = 16;
    const PAGES: u64 = BLOCKS * BLOCK / 4096;
    let harness = opened(23);
    for n in 0..3 {
        write(&harness, n, 0, 1, BLOCKS * BLOCK);
        settle(&harness);
        assert_eq!(harness.volume().move_run(&file(&harness, n), BlockNo(0), BLOCKS, HDD).expect("moves"), BLOCKS);
    }
    harness.volume().checkpoint().expect("checkpoints");
    let disk = harness.world.device("hdd");
    disk.take_written();
    let (mut random, mut rounds) = (Random(23), BTreeMap::new());
    for _ in 0..2000 {
        let n = usize::try_from(random.below(3)).expect("small");
        write(&harness, n, random.below(PAGES) * 4096, 2, 4096);
        for written in disk.take_written() {
            rounds.entry(written.syncs).or_insert_with(Vec::new).push((written.inode, written.offset));
        }
    }
    assert!(rounds.len() > 5, "the log was drained {} times", rounds.len());
    assert!(rounds.values().any(|places| places.len() > 10), "many pages at a time: {rounds:?}");
    for places in rounds.values() {
        assert!(places.is_sorted(), "{places:?}");
    }
}

/// Who settles waits for what was written before, not for a writer to rest.
#[test]
fn settling_ends_while_somebody_writes() {
    let harness = opened(24);
    write(&harness, 0, 0, 1, BLOCK);
    let mut written = 0;
    let settled = harness.volume().coalesce_all(&mut |_, _| {
        write(&harness, 1, written * BLOCK, 2, 4096);
        written += 1;
    });
    settled.expect("what was there is coalesced");
    assert!(written > 0);
    let tier = harness.volume().block_map(&file(&harness, 0)).first().and_then(|run| run.2);
    assert_eq!(tier, Some(NVME), "what was written before has an image");
}

/// R24: a mover's call is at most 256 KiB, whatever is asked for.
#[test]
fn a_move_is_bounded() {
    let harness = opened(14);
    write(&harness, 0, 0, 9, 40 * BLOCK);
    settle(&harness);
    let before = harness.world.device("hdd").traffic();
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 40, HDD).expect("moves"), (256 << 10) / BLOCK);
    let after = harness.world.device("hdd").traffic();
    assert_eq!((after.writes - before.writes, after.written_bytes - before.written_bytes), (1, 256 << 10));
}

/// The latency of a tier is that of reads somebody waited for: moves, which nobody waits for, would make every tier look fast.
#[test]
fn reads_of_the_volumes_own_work_are_counted_apart() {
    let harness = opened(14);
    write(&harness, 0, 0, 9, 4 * BLOCK);
    settle(&harness);
    let counters = || harness.volume().status().counters;
    let before = counters();
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 4, HDD).expect("moves"), 4);
    let moved = counters();
    assert_eq!((moved.base_reads.clone(), moved.base_read_us.clone()), (before.base_reads, before.base_read_us));
    assert!(moved.background_read_bytes[0] >= before.background_read_bytes[0] + 4 * BLOCK);
    let mut page = [0; 4096];
    harness.volume().read(&file(&harness, 0), 0, &mut page, Wait::Allowed).expect("reads");
    let read = counters();
    assert_eq!(read.base_reads.iter().sum::<u64>(), moved.base_reads.iter().sum::<u64>() + 1);
    assert_eq!(read.background_reads, moved.background_reads);
}

/// R25: payloads in memory stay within their budget, whatever is written.
#[test]
fn the_payload_cache_keeps_its_budget() {
    let harness = opened(15);
    for round in 0..600u64 {
        write(&harness, 0, round % 50 * 8192, 9, 8192);
        if round % 3 == 0 {
            harness.volume().sync_log().expect("syncs");
        }
        let cached = harness.volume().status().payload_cache_bytes;
        assert!(cached <= options().payload_cache_bytes + (40 << 10), "{cached} bytes");
    }
}

/// R26: a checkpoint syncs only the tiers that were written.
#[test]
fn a_checkpoint_leaves_idle_tiers_alone() {
    let harness = opened(16);
    let before = harness.world.device("hdd").traffic();
    write(&harness, 0, 0, 9, 3 * BLOCK);
    settle(&harness);
    assert_eq!(harness.world.device("hdd").traffic(), before);
}

/// R27: modification times survive a crash and a checkpoint; replay does not touch what was not written since.
#[test]
fn modification_times_survive() {
    let harness = opened(17);
    let mtime = |harness: &Harness, n| harness.volume().attr(&file(harness, n)).mtime;
    write(&harness, 0, 0, 9, 100);
    write(&harness, 1, 0, 9, 100);
    harness.volume().set_times(&file(&harness, 1), Some(WallNs(12_345))).expect("sets");
    harness.volume().sync_log().expect("syncs");
    let written = mtime(&harness, 0).expect("set by the write");
    let cut = after_cut(&harness, Survival::None);
    let replayed = mtime(&cut, 0).expect("restored");
    assert!(replayed >= written && replayed.0 - written.0 < 60_000_000_000, "{written:?} {replayed:?}");
    assert_eq!(mtime(&cut, 1), Some(WallNs(12_345)));
    harness.volume().checkpoint().expect("checkpoints");
    let cut = after_cut(&harness, Survival::None);
    assert_eq!(
        (mtime(&cut, 0), mtime(&cut, 1)),
        (Some(written), Some(WallNs(12_345))),
        "a checkpoint keeps times exactly"
    );
}

/// Adopt and release: a file whose bytes lie in its object already is served from there, and gathered where it is asked for.
#[test]
fn an_imported_file_is_served_moved_and_gathered() {
    let harness = opened(18);
    let id = harness.volume().issue_file_id().expect("an id");
    let device = harness.world.device("sata");
    device.create_dir_all(&heatfs::tier::objects::object_dir(id)).expect("creates");
    let mode = heatfs::device::OpenMode { create: true, ..Default::default() };
    let mut expected = vec![5u8; 5 * BLOCK as usize + 777];
    expected[BLOCK as usize..3 * BLOCK as usize].fill(0);
    let object = device.open(&object_path(id), mode).expect("creates");
    object.write_all_at(&expected[..BLOCK as usize], 0).expect("writes");
    object.write_all_at(&expected[3 * BLOCK as usize..], 3 * BLOCK).expect("writes");
    device.sync_all().expect("syncs");
    let size = expected.len() as u64;
    let data = [(0, BLOCK), (3 * BLOCK, size - 3 * BLOCK)];
    harness.volume().import_file(id, size, WallNs(77), TierId(1), &data).expect("imports");
    harness.volume().checkpoint().expect("checkpoints");
    let mut harness = after_cut(&harness, Survival::None);
    harness.ids[0] = id;
    assert_eq!(read(&harness, 0, 0, 1 << 20), expected);
    assert_eq!(harness.volume().attr(&file(&harness, 0)).mtime, Some(WallNs(77)));
    write(&harness, 0, 4 * BLOCK + 9, 6, 20);
    expected[4 * BLOCK as usize + 9..][..20].fill(6);
    harness.volume().move_block(&file(&harness, 0), BlockNo(0), NVME).expect("moves");
    settle(&harness);
    assert_eq!(read(&harness, 0, 0, 1 << 20), expected);
    for to in [HDD, TierId(1), NVME] {
        let mut moved = 0;
        harness.volume().gather(&file(&harness, 0), to, &mut |blocks| moved += blocks).expect("gathers");
        assert!(moved > 0 && harness.volume().block_map(&file(&harness, 0)).iter().all(|run| run.2 == Some(to)));
        harness.volume().checkpoint().expect("checkpoints");
        assert_eq!(read(&after_cut(&harness, Survival::None), 0, 0, 1 << 20), expected);
    }
}

/// Files that nobody uses leave memory after a checkpoint, and come back as they were.
#[test]
fn files_at_rest_leave_memory_and_come_back() {
    let harness = opened(19);
    write(&harness, 0, 0, 9, 3 * BLOCK);
    write(&harness, 1, 100, 8, 10);
    settle(&harness);
    harness.volume().move_block(&file(&harness, 0), BlockNo(1), HDD).expect("moves");
    write(&harness, 2, 0, 7, 100);
    let issue = |_| harness.volume().file(harness.volume().issue_file_id().expect("an id")).expect("an empty file");
    let used: Vec<Arc<File>> = (0..20_100).map(issue).collect();
    drop(used);
    harness.volume().checkpoint().expect("checkpoints");
    let files = harness.volume().status().files;
    assert_eq!(files, 1, "only the file with records stays");
    assert_eq!(read(&harness, 0, 0, 1 << 20), vec![9; 3 * BLOCK as usize]);
    assert_eq!(place(&harness, 0, 1).0, Some(HDD));
    assert_eq!(read(&harness, 1, 100, 100), vec![8; 10]);
    write(&harness, 1, 105, 6, 10);
    harness.volume().sync_log().expect("syncs");
    let cut = after_cut(&harness, Survival::None);
    assert_eq!(read(&cut, 1, 100, 100), [vec![8; 5], vec![6; 10]].concat());
    assert_eq!(read(&cut, 2, 0, 200), vec![7; 100]);
}

/// A clean end leaves nothing to replay; a quick one leaves the log; afterwards every call fails.
#[test]
fn ends_clean_and_quick() {
    for clean in [true, false] {
        let harness = opened(20);
        write(&harness, 0, 0, 9, 50_000);
        if clean { harness.volume().shut_down() } else { harness.volume().shut_down_quickly() }.expect("ends");
        let again = file(&harness, 0);
        assert!(matches!(harness.volume().write(&again, 0, &[1], Wait::Allowed), Err(Error::ReadOnly { .. })));
        assert!(matches!(harness.volume().set_size(&again, 0), Err(Error::ReadOnly { .. })));
        let world = harness.world.recover(Survival::None);
        let (volume, recovery) = Volume::open(tiers(&world), options()).expect("opens");
        assert_eq!((recovery.was_clean, recovery.records_replayed == 0), (clean, clean));
        let file = volume.file(harness.ids[0]).expect("known");
        let mut buf = vec![0; 60_000];
        assert_eq!(volume.read(&file, 0, &mut buf, Wait::Allowed).expect("readable"), 50_000);
        assert_eq!(buf[..50_000], vec![9; 50_000]);
    }
}

/// R24: what a reader has just waited for is promoted without reading the slow tier again, its neighbourhood too where there is room, but
/// never once the base has changed since.
#[test]
fn a_slow_miss_is_promoted_from_memory_unless_its_base_changed() {
    let harness = opened(24);
    let (volume, hdd) = (harness.volume(), harness.world.device("hdd"));
    write(&harness, 0, 0, 1, 4 * BLOCK);
    settle(&harness);
    volume.move_run(&file(&harness, 0), BlockNo(0), 4, HDD).expect("moves");
    volume.checkpoint().expect("checkpoints");

    let before = hdd.traffic().reads;
    assert_eq!(read(&harness, 0, BLOCK + 4096, 100), [1; 100]);
    assert_eq!(hdd.traffic().reads, before + 1);
    assert!(volume.has_image(file(&harness, 0).id(), BlockNo(1)));
    assert!(volume.move_block(&file(&harness, 0), BlockNo(1), NVME).expect("moves"));
    assert_eq!(hdd.traffic().reads, before + 1, "the image was in memory");
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK), [1; 4 * BLOCK as usize]);

    read(&harness, 0, 2 * BLOCK, 4096);
    write(&harness, 0, 2 * BLOCK, 2, BLOCK);
    settle(&harness);
    assert_eq!(place(&harness, 0, 2).0, Some(HDD), "coalesced in place");
    assert!(volume.move_block(&file(&harness, 0), BlockNo(2), NVME).expect("moves"));
    assert_eq!(read(&harness, 0, 2 * BLOCK, BLOCK), [2; BLOCK as usize], "an image of before is not used");

    volume.read_around_misses(true);
    let before = hdd.traffic().reads;
    read(&harness, 0, 3 * BLOCK, 4096);
    assert_eq!(hdd.traffic().reads, before + 1);
    assert!(!volume.has_image(file(&harness, 0).id(), BlockNo(2)), "it lies elsewhere now");
    assert!(volume.has_image(file(&harness, 0).id(), BlockNo(3)));
    volume.read_around_misses(false);
}

/// A file that outgrows the fast tier goes on in the next one, block by block, and stays whole and readable.
#[test]
fn a_growing_file_spills_block_by_block() {
    let world = SimWorld::new(25);
    let budgets = [8 * BLOCK, 8 * BLOCK, 256 * BLOCK];
    let small = || {
        let mut tiers = tiers(&world);
        tiers.iter_mut().zip(budgets).for_each(|(tier, budget)| tier.budget_bytes = Some(budget));
        tiers
    };
    Volume::create(&small(), &options(), uuid::Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(small(), options()).expect("opens");
    let file = volume.file(volume.issue_file_id().expect("issues")).expect("known");
    let blocks = 100u64;
    for block in 0..blocks {
        let data = vec![u8::try_from(block + 1).expect("small"); BLOCK as usize];
        volume.write(&file, block * BLOCK, &data, Wait::Allowed).expect("a full fast tier refuses nobody");
    }
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    let mut on = [0u64; 3];
    for run in volume.block_map(&file) {
        on[run.2.expect("coalesced").index()] += run.1;
    }
    assert!(on[0] > 0 && on[0] <= 8 && on[1] > 0 && on[1] <= 8, "{on:?}");
    assert_eq!(on.iter().sum::<u64>(), blocks);
    let mut buf = vec![0; BLOCK as usize];
    for block in 0..blocks {
        volume.read(&file, block * BLOCK, &mut buf, Wait::Allowed).expect("readable");
        assert!(buf.iter().all(|byte| u64::from(*byte) == block + 1), "block {block}");
    }
}

/// What a crash left where no map names it is found and freed; what a map names is not touched.
#[test]
fn a_sweep_frees_what_a_crash_left_behind() {
    let harness = opened(26);
    write(&harness, 0, 0, 5, 6 * BLOCK);
    settle(&harness);
    harness.volume().move_run(&file(&harness, 0), BlockNo(0), 2, HDD).expect("moves");
    harness.volume().checkpoint().expect("checkpoints");
    harness.volume().move_run(&file(&harness, 0), BlockNo(3), 2, HDD).expect("moves, and no checkpoint follows");
    let harness = after_cut(&harness, Survival::All);
    let object = object_path(file(&harness, 0).id());
    let data = |device: &str| {
        let object = harness.world.device(device).open(&object, heatfs::device::OpenMode::default()).expect("opens");
        let (mut at, mut bytes) = (0, 0);
        while let Some((from, to)) = object.next_data(at).expect("seeks") {
            (at, bytes) = (to, bytes + to - from);
        }
        bytes
    };
    assert_eq!(place(&harness, 0, 3).0, Some(NVME), "the flip was lost");
    assert_eq!(data("hdd"), 4 * BLOCK, "its image was not");
    let nvme = data("nvme");
    assert_eq!(harness.volume().sweep_abandoned().expect("sweeps"), 2);
    assert_eq!(harness.volume().sweep_abandoned().expect("sweeps"), 0, "each is listed once");
    assert!(
        !harness.volume().move_block(&file(&harness, 0), BlockNo(3), HDD).expect("refuses"),
        "it waits for its punch"
    );
    harness.volume().checkpoint().expect("checkpoints");
    assert_eq!((data("hdd"), data("nvme")), (2 * BLOCK, nvme));
    assert!(harness.volume().move_block(&file(&harness, 0), BlockNo(3), HDD).expect("moves"));
    assert_eq!(read(&harness, 0, 0, 6 * BLOCK), [5; 6 * BLOCK as usize]);
    assert!(harness.volume().check(true).expect("checks").is_empty());
}

//! One test for each rule about marks that is not the subject of the comparison with the model.

use crate::harness::{BLOCK, FILES, Harness, Model, Op, Random, TIERS, options, tiers};
use crate::marks::{Marked, Run, by_id, check_mark};
use heatfs::device::sim::{Fault, SimWorld, Survival};
use heatfs::device::{Device, OpenMode};
use heatfs::error::Error;
use heatfs::ondisk::staged::Batch;
use heatfs::tier::objects::object_path;
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{File, MARKS_MAX, Mark, Tier, Volume, Wait};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use uuid::Uuid;

const HDD: TierId = TierId(2);
const PAGE: u64 = 8192;

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

fn settle(harness: &Harness) {
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
    harness.volume().checkpoint().expect("checkpoints");
}

fn mark(harness: &Harness, snapshot: u128) -> Arc<Mark> {
    let mark = harness.volume().mark(Uuid::from_u128(snapshot)).expect("a mark is taken");
    harness.volume().wait_for_mark(&mark).expect("durable");
    mark
}

fn read_at(harness: &Harness, mark: &Mark, n: usize, offset: u64, len: u64) -> Vec<u8> {
    let mut buf = vec![0xee; usize::try_from(len).expect("small")];
    let got = harness.volume().read_at(mark, harness.ids[n], offset, &mut buf).expect("readable");
    buf.truncate(got);
    buf
}

fn changed(harness: &Harness, mark: &Mark, parent: u128, n: usize) -> Option<Vec<u64>> {
    let pages = harness.volume().changed_pages(mark, Uuid::from_u128(parent), harness.ids[n]).expect("known");
    pages.map(|pages| pages.into_iter().flatten().collect())
}

/// R16: before the marker is durable nothing of the mark can be read: a crash could still make it something that never was.
#[test]
fn capture_begins_only_after_the_mark_is_durable() {
    let harness = opened(1);
    write(&harness, 0, 0, 1, 100);
    let mark = harness.volume().mark(Uuid::from_u128(1)).expect("a mark is taken");
    let id = harness.ids[0];
    assert!(matches!(harness.volume().read_at(&mark, id, 0, &mut [0; 10]), Err(Error::Invalid(_))));
    assert!(matches!(harness.volume().files_at(&mark), Err(Error::Invalid(_))));
    assert!(matches!(harness.volume().publish_mark(&mark, None), Err(Error::Invalid(_))));
    harness.volume().wait_for_mark(&mark).expect("durable");
    assert_eq!(read_at(&harness, &mark, 0, 0, 10), vec![1; 10]);
}

/// I6: taking a mark is one record and no other work, however many files there are; and a mark that nobody writes after keeps nothing.
#[test]
fn a_mark_costs_one_record() {
    let harness = opened(2);
    let ids: Vec<FileId> = (0..500).map(|_| harness.volume().issue_file_id().expect("an id")).collect();
    for &id in &ids {
        let file = harness.volume().file(id).expect("known");
        harness.volume().write(&file, 0, &[1; 10], Wait::Allowed).expect("writes");
    }
    let traffic = TIERS.map(|tier| harness.world.device(tier).traffic());
    let mark = harness.volume().mark(Uuid::from_u128(1)).expect("a mark is taken");
    assert_eq!(TIERS.map(|tier| harness.world.device(tier).traffic()), traffic, "no call reaches a device");
    assert_eq!(harness.volume().status().marks.kept_files, 0);
    harness.volume().wait_for_mark(&mark).expect("durable");
    settle(&harness);
    let marks = harness.volume().status().marks;
    assert_eq!((marks.kept_files, marks.pinned_log_bytes, marks.staged_bytes), (0, 0, 0), "nothing changed after it");
    assert_eq!(harness.volume().files_at(&mark).expect("known").len(), ids.len());
}

/// Exactly the pages that changed are told, after coalescing, a checkpoint and a kill -9 as well; and only against published parents.
#[test]
fn changes_are_exact_and_survive() {
    let mut harness = opened(3);
    write(&harness, 0, 0, 1, 100 * PAGE);
    write(&harness, 1, 0, 1, 10 * PAGE);
    let first = mark(&harness, 1);
    assert_eq!(changed(&harness, &first, 99, 0), None, "an unknown parent: full");
    write(&harness, 0, 7 * PAGE + 100, 2, 10);
    harness.volume().publish_mark(&first, None).expect("publishes");
    write(&harness, 0, 50 * PAGE - 1, 2, 2);
    settle(&harness);
    write(&harness, 0, 90 * PAGE, 2, PAGE);
    harness.volume().sync_log().expect("syncs");
    for reopened in [false, true] {
        if reopened {
            harness = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
        }
        let second = mark(&harness, 2);
        write(&harness, 1, 0, 3, 100);
        assert_eq!(changed(&harness, &second, 1, 0), Some(vec![7, 49, 50, 90]), "reopened: {reopened}");
        harness.volume().release_mark(&second);
        let third = mark(&harness, 3);
        assert_eq!(changed(&harness, &third, 1, 1), Some(vec![0]));
        assert_eq!(changed(&harness, &third, 2, 1), None, "a mark that was never published is no parent");
        harness.volume().release_mark(&third);
    }
    let fourth = mark(&harness, 4);
    harness.volume().publish_mark(&fourth, None).expect("publishes");
    let fifth = mark(&harness, 5);
    assert_eq!(changed(&harness, &fifth, 1, 0), None, "forgotten: out of the window");
    assert_eq!(changed(&harness, &fifth, 4, 0), Some(vec![]), "nothing changed since");
    assert_eq!(harness.volume().changed_files(&fifth, Uuid::from_u128(4)).expect("known"), Some(vec![]));
}

/// R16: cuts and sizes count as changes.
#[test]
fn cuts_count_as_changes() {
    let harness = opened(4);
    write(&harness, 0, 0, 1, 20 * PAGE);
    write(&harness, 2, 0, 1, 10 * PAGE + 100);
    settle(&harness);
    // In no base yet.
    write(&harness, 1, 0, 1, 20 * PAGE);
    let first = mark(&harness, 1);
    harness.volume().publish_mark(&first, None).expect("publishes");
    harness.volume().punch_hole(&file(&harness, 0), 3 * PAGE, 2 * PAGE).expect("punches");
    harness.volume().set_size(&file(&harness, 0), 18 * PAGE + 5).expect("truncates");
    harness.volume().set_size(&file(&harness, 0), 20 * PAGE).expect("grows");
    harness.volume().punch_hole(&file(&harness, 1), 3 * PAGE, 2 * PAGE).expect("punches");
    harness.volume().set_size(&file(&harness, 2), 12 * PAGE + 100).expect("grows");
    let second = mark(&harness, 2);
    assert_eq!(changed(&harness, &second, 1, 0), Some(vec![3, 4, 18, 19]));
    assert_eq!(changed(&harness, &second, 1, 1), Some(vec![3, 4]));
    assert_eq!(changed(&harness, &second, 1, 2), Some(vec![10, 12]), "pages with the old and with the new end");
}

/// I4, R15: before a base changes under a mark, its old bytes are durable in staging, with a note of what they are: wherever the crash falls, the base has
/// the old bytes, or staging does.
#[test]
fn old_bytes_are_durable_in_staging_before_the_base_changes() {
    let harness = opened(5);
    write(&harness, 0, 0, 1, 2 * BLOCK);
    settle(&harness);
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 2, HDD).expect("moves"), 2);
    // With an empty log, so that the old bytes are in the base alone.
    harness.volume().shut_down().expect("ends");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop(harness);
    let (mut from_staging, mut overwritten) = (0, 0);
    for at in world.operations().. {
        let world = world.fork();
        let harness = Harness::open(world.clone(), ids.clone()).expect("opens");
        let mark = mark(&harness, 1);
        write(&harness, 0, 100, 2, 50);
        write(&harness, 0, BLOCK + 9000, 2, 6000);
        harness.volume().sync_log().expect("syncs");
        world.crash_at(at.max(world.operations()));
        let ended = harness.volume().coalesce_all(&mut |_, _| {});
        assert!(world.crashed() || mark.failure().is_none(), "{:?}", mark.failure());
        drop(harness);
        // The tier of the base keeps everything it was given; that of staging only what was synced.
        let after = world.recover_each(|tier| if tier == "hdd" { Survival::All } else { Survival::None });
        for (start, len) in [(100u64, 50usize), (BLOCK + 9000, 6000)] {
            let object =
                after.device("hdd").open(&object_path(ids[0]), OpenMode::default()).expect("the base is there");
            let mut base = vec![0; len];
            object.read_at(&mut base, start).expect("readable");
            if base != vec![1; len] {
                overwritten += 1;
                let saved = staged(&after, ids[0], start, len);
                assert_eq!(saved, Some(vec![1; len]), "crash at {at}: the old bytes are nowhere");
                from_staging += 1;
            }
        }
        let after = Harness::open(after, ids.clone()).expect("opens");
        let mark = &after.volume().pending_marks()[0];
        assert!(read_at(&after, mark, 0, 0, 3 * BLOCK) == vec![1; 2 * BLOCK as usize], "crash at {at}: read after it");
        if ended.is_ok() && !world.crashed() {
            break;
        }
    }
    assert!(overwritten >= 4 && from_staging == overwritten, "{overwritten} overwritten, {from_staging} in staging");
}

/// What verified batches in staging say of a range.
fn staged(world: &SimWorld, id: FileId, start: u64, len: usize) -> Option<Vec<u8>> {
    let device = world.device("nvme");
    let mut found = None;
    for name in device.list("staging").unwrap_or_default() {
        let file = device.open(&format!("staging/{name}"), OpenMode::default()).expect("opens");
        let mut bytes = vec![0; usize::try_from(file.len().expect("length")).expect("small")];
        file.read_at(&mut bytes, 0).expect("readable");
        let mut rest = bytes.as_slice();
        while let Ok(batch_len) = Batch::len_of(rest) {
            let Some((bytes, behind)) = rest.split_at_checked(usize::try_from(batch_len).expect("small")) else {
                break;
            };
            let Ok(batch) = Batch::decode(bytes) else { break };
            for entry in batch.entries.iter().filter(|entry| entry.file == id) {
                if entry.start <= start && start + len as u64 <= entry.end {
                    let at = usize::try_from(entry.at + start - entry.start).expect("small");
                    found = Some(bytes[at..at + len].to_vec());
                }
            }
            rest = behind;
        }
    }
    found
}

/// A full log or a full staging area costs the oldest mark its life, loudly, and never a writer his write; the younger one goes on as long as there is room.
#[test]
fn a_mark_is_failed_before_a_writer_waits() {
    let harness = opened(6);
    write(&harness, 0, 0, 1, 20 * BLOCK);
    settle(&harness);
    let heard = Arc::new(AtomicU64::new(0));
    let listener = heard.clone();
    harness.volume().on_mark_failed(Box::new(move |mark, why| {
        assert!(why.contains("staging"), "{why}");
        listener.fetch_add(u64::from(mark.epoch), Ordering::SeqCst);
    }));
    harness.volume().set_staging_limit(14 * BLOCK);
    let first = mark(&harness, 1);
    write(&harness, 0, 0, 2, 10 * BLOCK);
    let second = mark(&harness, 2);
    for round in 0..40 {
        write(&harness, 0, 8 * BLOCK, 3 + round, 10 * BLOCK);
    }
    settle(&harness);
    assert_eq!(heard.load(Ordering::SeqCst), 1, "the oldest was failed, once");
    assert!(first.failure().is_some_and(|why| why.contains("staging")), "{:?}", first.failure());
    let failed = harness.volume().read_at(&first, harness.ids[0], 0, &mut [0; 10]);
    assert!(matches!(failed, Err(Error::SnapshotFailed { .. })), "{failed:?}");
    assert_eq!(second.failure(), None);
    let mut expected = vec![2; 10 * BLOCK as usize];
    expected.resize(20 * BLOCK as usize, 1);
    assert!(read_at(&harness, &second, 0, 0, 30 * BLOCK) == expected);
    let status = harness.volume().status();
    assert!(status.degraded.iter().any(|trouble| trouble.contains("given up")), "{:?}", status.degraded);
    assert_eq!((status.marks.failed, status.marks.pending), (1, 1));
    harness.volume().publish_mark(&second, None).expect("publishes");
    assert_eq!(harness.volume().status().degraded, Vec::<String>::new());
}

/// No tier has room: what is kept of a removed file for a mark goes before a writer is refused.
#[test]
fn a_mark_is_failed_before_a_writer_is_refused() {
    let harness = opened(7);
    let volume = harness.volume();
    let fill = |n: usize, byte: u8| -> u64 {
        let data = vec![byte; 1 << 20];
        let mut at = 0;
        while volume.write(&file(&harness, n), at, &data, Wait::Allowed).is_ok() {
            at += data.len() as u64;
        }
        at
    };
    let filled = fill(0, 1);
    assert!(filled > 100 << 20, "the volume takes {filled}");
    settle(&harness);
    let mark = mark(&harness, 1);
    volume.remove(harness.ids[0]).expect("removes");
    volume.checkpoint().expect("checkpoints");
    assert_eq!(read_at(&harness, &mark, 0, 0, 10), vec![1; 10], "kept for the mark");
    let again = fill(1, 2);
    assert!(mark.failure().is_some_and(|why| why.contains("room")), "{:?}", mark.failure());
    assert!(again + (8 << 20) > filled, "only {again} of {filled} could be written again");
}

/// I10: what was promised to a writer is not taken to save something for a mark: that fails then.
#[test]
fn staging_takes_no_promised_room() {
    let world = SimWorld::new(13);
    let small = || -> Vec<_> {
        tiers(&world).into_iter().map(|tier| Tier { budget_bytes: Some(10 * BLOCK), ..tier }).collect()
    };
    Volume::create(&small(), &options(), Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(small(), options()).expect("opens");
    let new = || volume.file(volume.issue_file_id().expect("an id")).expect("known");
    let (there, promised) = (new(), new());
    let write = |file: &Arc<File>, blocks: u64, byte: u8| {
        let data = [byte; BLOCK as usize];
        (0..blocks).try_for_each(|block| volume.write(file, block * BLOCK, &data, Wait::Allowed)).expect("fits");
    };
    for (room, fails) in [(1, false), (0, true)] {
        write(&there, 10, 1);
        volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
        volume.checkpoint().expect("checkpoints");
        write(&promised, 20 - room, 2);
        let mark = volume.mark(Uuid::from_u128(u128::from(room))).expect("a mark is taken");
        volume.wait_for_mark(&mark).expect("durable");
        write(&there, 1, 3);
        volume.coalesce_all(&mut |_, _| {}).expect("what was promised fits");
        assert_eq!(mark.failure().is_some(), fails, "{room} free: {:?}", mark.failure());
        volume.release_mark(&mark);
        volume.checkpoint().expect("checkpoints");
    }
}

/// A removed file is whole for its mark, through checkpoints and moves, and goes after the mark: R12's listener hears of it then.
#[test]
fn a_removed_file_stays_for_its_mark() {
    let harness = opened(8);
    let volume = harness.volume();
    let heard = Arc::new(AtomicU64::new(0));
    let listener = heard.clone();
    volume.on_gone(Box::new(move |ids| {
        listener.fetch_add(ids.len() as u64, Ordering::SeqCst);
    }));
    write(&harness, 0, 0, 1, 3 * BLOCK);
    settle(&harness);
    write(&harness, 0, BLOCK + 10, 2, 100);
    write(&harness, 1, 0, 5, 100);
    let (first, second) = (mark(&harness, 1), mark(&harness, 2));
    volume.remove(harness.ids[0]).expect("removes");
    let young = volume.issue_file_id().expect("an id");
    volume.write(&volume.file(young).expect("known"), 0, &[7; 5000], Wait::Allowed).expect("writes");
    volume.remove(young).expect("removes");
    settle(&harness);
    assert_eq!(heard.load(Ordering::SeqCst), 1, "the file that no mark knows is gone");
    for mark in [&first, &second] {
        let mut expected = vec![1; 3 * BLOCK as usize];
        expected[BLOCK as usize + 10..][..100].fill(2);
        assert!(read_at(&harness, mark, 0, 0, 4 * BLOCK) == expected);
        assert_eq!(volume.read_at(mark, young, 0, &mut [0; 10]).expect("nothing"), 0);
        assert!(volume.files_at(mark).expect("known").iter().all(|at| at.file != young));
        volume.release_mark(mark);
        volume.checkpoint().expect("checkpoints");
    }
    assert_eq!(heard.load(Ordering::SeqCst), 2, "gone after the last mark");
    assert!(!harness.world.device("nvme").exists(&object_path(harness.ids[0])).expect("looks"));
}

/// I2: a removed file is kept for a mark; its name may come back in a crash until home was synced, and then it is whole.
#[test]
fn a_removal_under_a_mark_syncs_home_before_anything_goes() {
    let harness = opened(9);
    write(&harness, 0, 0, 1, 3 * BLOCK);
    settle(&harness);
    mark(&harness, 1);
    harness.world.device("nvme").create_dir_all("home").expect("a directory");
    harness.world.device("nvme").sync_all().expect("syncs");
    harness.world.device("nvme").create_dir_all("home/later").expect("a change of names in home");
    harness.volume().remove(harness.ids[0]).expect("removes");
    harness.volume().checkpoint().expect("checkpoints");
    let after = harness.world.recover(Survival::None);
    assert!(after.device("nvme").exists("home/later").expect("looks"), "home was synced with the checkpoint");
}

/// What was cut off since the mark is moved along with its block.
#[test]
fn a_move_takes_along_what_only_a_mark_needs() {
    let harness = opened(10);
    write(&harness, 0, 0, 1, 2 * BLOCK);
    settle(&harness);
    let mark = mark(&harness, 1);
    harness.volume().set_size(&file(&harness, 0), 100).expect("truncates");
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 2, HDD).expect("moves"), 2);
    harness.volume().checkpoint().expect("checkpoints");
    assert_eq!(read_at(&harness, &mark, 0, 0, 3 * BLOCK), vec![1; 2 * BLOCK as usize]);
}

/// R8: a tier that loses what it had accepted takes nothing from a mark.
#[test]
fn lost_writes_are_not_lost_to_a_mark() {
    let harness = opened(11);
    write(&harness, 0, 0, 1, 2 * BLOCK);
    settle(&harness);
    assert_eq!(harness.volume().move_run(&file(&harness, 0), BlockNo(0), 2, HDD).expect("moves"), 2);
    harness.volume().checkpoint().expect("checkpoints");
    write(&harness, 0, 0, 2, 2 * BLOCK);
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces: the twos are in the base, unsynced");
    let mark = mark(&harness, 1);
    write(&harness, 0, 0, 3, BLOCK + 100);
    harness.world.device("hdd").break_syncs(true);
    assert!(harness.volume().checkpoint().is_err(), "the twos are lost");
    harness.world.device("hdd").break_syncs(false);
    assert_eq!(read_at(&harness, &mark, 0, 0, 3 * BLOCK), vec![2; 2 * BLOCK as usize]);
    harness.volume().checkpoint().expect("checkpoints");
    assert_eq!(read_at(&harness, &mark, 0, 0, 3 * BLOCK), vec![2; 2 * BLOCK as usize]);
    assert_eq!(mark.failure(), None);
    // What the base lost is gone with the power; the mark has it from the log.
    let after = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
    let resumed = &after.volume().pending_marks()[0];
    assert_eq!(read_at(&after, resumed, 0, 0, 3 * BLOCK), vec![2; 2 * BLOCK as usize]);
}

#[test]
fn marks_are_bounded_and_each_snapshot_has_one() {
    let harness = opened(12);
    let marks: Vec<_> = (0..MARKS_MAX as u128).map(|snapshot| mark(&harness, snapshot)).collect();
    assert!(matches!(harness.volume().mark(Uuid::from_u128(100)), Err(Error::Busy(_))));
    harness.volume().release_mark(&marks[3]);
    harness.volume().release_mark(&marks[3]);
    assert!(matches!(harness.volume().mark(Uuid::from_u128(1)), Err(Error::Busy(_))));
    mark(&harness, 100);
    assert_eq!(harness.volume().pending_marks().len(), MARKS_MAX);
    assert!(matches!(
        harness.volume().read_at(&marks[3], harness.ids[0], 0, &mut [0]),
        Err(Error::SnapshotFailed { .. })
    ));
}

/// Marks that were waited for outlive their mount, whether it ends in order or not; others are named as failed, and leave nothing behind.
#[test]
fn pending_marks_outlive_their_mount() {
    for clean in [false, true] {
        let harness = opened(13);
        write(&harness, 0, 0, 1, 4 * BLOCK);
        settle(&harness);
        let (published, pending) = (mark(&harness, 1), mark(&harness, 2));
        harness.volume().publish_mark(&published, None).expect("publishes");
        write(&harness, 0, 0, 2, 4 * BLOCK);
        settle(&harness);
        write(&harness, 0, BLOCK, 3, BLOCK);
        assert!(harness.volume().status().marks.staged_bytes > 0);
        let unwaited = harness.volume().mark(Uuid::from_u128(3)).expect("a mark is taken");
        match clean {
            true => harness.volume().shut_down().expect("ends"),
            false => harness.volume().sync_log().expect("syncs"),
        }
        let world = harness.world.recover(Survival::All);
        let (volume, recovery) = Volume::open(crate::harness::tiers(&world), crate::harness::options()).expect("opens");
        assert!(recovery.pending_snapshots.contains(&pending.snapshot), "{recovery:?}");
        assert!(!recovery.pending_snapshots.contains(&published.snapshot), "{recovery:?}");
        assert_eq!(recovery.failed_snapshots.contains(&unwaited.snapshot), !clean, "{recovery:?}");
        assert!(volume.knows_parent(published.snapshot) && !volume.knows_parent(pending.snapshot));
        let marks = volume.pending_marks();
        let mut buf = vec![0; 5 * BLOCK as usize];
        let got = volume.read_at(&marks[0], harness.ids[0], 0, &mut buf).expect("readable");
        assert!(buf[..got] == vec![1; 4 * BLOCK as usize], "clean: {clean}");
        marks.iter().for_each(|mark| volume.release_mark(mark));
        volume.checkpoint().expect("checkpoints");
        assert_eq!(world.device("nvme").list("staging").expect("lists"), Vec::<String>::new());
    }
}

/// Staged bytes that are not there any more, or are damaged, fail the mark, and nothing else.
#[test]
fn damaged_staging_fails_the_mark() {
    let harness = opened(14);
    write(&harness, 0, 0, 1, 4 * BLOCK);
    settle(&harness);
    mark(&harness, 1);
    write(&harness, 0, 0, 2, 4 * BLOCK);
    settle(&harness);
    let world = harness.world.recover(Survival::All);
    let name = &world.device("nvme").list("staging").expect("lists")[0];
    assert!(name.ends_with(".mark"), "{name}");
    let staged = world.device("nvme").open("staging/00000001.staged", OpenMode::default()).expect("opens");
    staged.write_all_at(b"damage", 5000).expect("writes");
    let harness = Harness::open(world, harness.ids.clone()).expect("opens all the same");
    assert_eq!(harness.volume().pending_marks().len(), 0);
    assert_eq!(harness.volume().status().marks.failed, 1);
    assert!(harness.contents().expect("readable").files[0] == vec![2; 4 * BLOCK as usize]);
}

/// I8: staged bytes that are damaged while the mark is pending are an error to its reader, never handed out.
#[test]
fn damaged_staging_is_never_read_as_a_mark() {
    let harness = opened(14);
    write(&harness, 0, 0, 1, 4 * BLOCK);
    settle(&harness);
    let mark = mark(&harness, 1);
    write(&harness, 0, 0, 2, 4 * BLOCK);
    settle(&harness);
    assert_eq!(read_at(&harness, &mark, 0, 0, 4 * BLOCK), vec![1; 4 * BLOCK as usize]);
    let staged = harness.world.device("nvme").open("staging/00000001.staged", OpenMode::default()).expect("opens");
    staged.write_all_at(b"damage", 5000).expect("writes");
    let (mut refused, mut buf) = (0, [0; 4096]);
    for page in 0..4 * BLOCK / 4096 {
        match harness.volume().read_at(&mark, harness.ids[0], page * 4096, &mut buf) {
            Ok(_) => assert_eq!(buf, [1; 4096], "page {page}"),
            Err(error) => {
                assert!(matches!(error, Error::Corrupt { .. }), "{error}");
                refused += 1;
            }
        }
    }
    assert_eq!(refused, 1);
    assert_eq!(harness.contents().expect("readable").files[0], vec![2; 4 * BLOCK as usize]);
}

/// A fault at every operation of a workload with marks: writers notice nothing that they would not without marks, and a mark is right or failed.
#[test]
fn a_fault_anywhere_leaves_a_mark_right_or_failed() {
    let (mut faults, mut failed) = (0, 0);
    for seed in 600..616 {
        let mut random = Random(seed);
        let ops: Vec<Op> = (0..40).map(|_| random.op(false)).filter(|op| !matches!(op, Op::Allocate { .. })).collect();
        let harness = opened(seed);
        harness.volume().checkpoint().expect("checkpoints");
        let (world, ids) = (harness.world.clone(), harness.ids.clone());
        drop(harness);
        let mut at = world.operations() + seed % 5;
        loop {
            let fault = [Fault::Eio, Fault::Enospc, Fault::SyncError, Fault::ShortThenEio][at as usize % 4];
            let world = world.fork();
            let harness = Harness::open(world.clone(), ids.clone()).expect("opens");
            world.fail_at(at.max(world.operations()), fault);
            failed += run_with_fault(harness, &ops, &format!("seed {seed}, {fault:?} at operation {at}"));
            if world.operations() <= at {
                break;
            }
            faults += 1;
            at += 3;
        }
    }
    assert!(faults > 300 && failed > 0, "{faults} faults, {failed} marks failed");
}

/// Returns how many marks failed.
fn run_with_fault(mut harness: Harness, ops: &[Op], what: &str) -> u64 {
    let mut model = Model::default();
    let mut pending: Vec<Marked> = Vec::new();
    for (index, op) in ops.iter().enumerate() {
        if index % 9 == 4
            && let Ok(mark) = harness.volume().mark(Uuid::from_u128(index as u128))
        {
            pending.push(Marked::new(mark, by_id(&harness.ids, &model)));
        }
        if harness.run(index, op).is_ok() {
            model.apply(index, op);
        }
        if harness.volume().status().read_only.is_some() {
            break;
        }
        assert!(harness.contents().expect("readable") == model, "{what}: contents after operation {index}");
        if harness.volume().sync_log().is_err() {
            break;
        }
        for marked in &pending {
            // A mark that was given up, or could not be noted for the next mount, is right in saying so.
            if harness.volume().wait_for_mark(&marked.mark).is_err() {
                continue;
            }
            check_mark(harness.volume(), marked, what);
        }
    }
    pending.iter().map(|marked| u64::from(marked.mark.failure().is_some())).sum()
}

/// A long run with marks beside it, and nothing is left over.
#[test]
fn marks_leave_nothing_behind() {
    let mut run = Run::new(77);
    for index in 0..600 {
        run.step(index);
    }
    run.check("at the end");
    run.finish("at the end");
    assert!(run.harness.ids.len() == FILES);
}

//! A fault at every device operation of a workload: what was acknowledged is there, what failed failed cleanly; a broken log stops
//! the volume, a broken tier only degrades it.

use crate::harness::{BLOCK, FILES, Harness, Model, Op, Random, options, tiers};
use heatfs::device::Device;
use heatfs::device::sim::{Fault, SimWorld, Survival};
use heatfs::error::{Error, Result};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Severity, Volume, Wait};
use std::sync::Arc;

fn damage(volume: &Volume) -> Vec<heatfs::volume::Finding> {
    let findings = volume.check(true).expect("the check runs");
    findings.into_iter().filter(|finding| finding.severity == Severity::Damage).collect()
}

fn read_only(volume: &Volume) -> bool {
    volume.status().read_only.is_some()
}

/// What a run with one fault came to.
struct Ran {
    world: SimWorld,
    model: Model,
    /// Contents after each operation.
    begun: Vec<Model>,
    acknowledged: usize,
    stopped: bool,
}

/// Runs the workload with a fault at one operation. None: the fault was never reached.
fn run(world: &SimWorld, ids: &[FileId], ops: &[Op], at: u64, fault: Fault) -> Option<Ran> {
    let world = world.fork();
    let mut harness = Harness::open(world.clone(), ids.to_vec()).expect("opens before the fault");
    world.fail_at(at, fault);
    let (mut model, mut begun, mut acknowledged) = (Model::default(), vec![Model::default()], 0);
    for (index, op) in ops.iter().enumerate() {
        let result = harness.run(index, op);
        let mut after = model.clone();
        after.apply(index, op);
        if let (Op::Checkpoint, Err(Error::State { .. })) = (op, &result) {
            assert!(read_only(harness.volume()), "nobody knows what is durable, and the volume goes on");
        }
        match result {
            Ok(()) => model = after,
            Err(_) if matches!(op, Op::Write { .. }) => {
                // A write of several records may have come half way: the workload of this test keeps to one record.
                assert_eq!(
                    harness.contents().expect("readable"),
                    model,
                    "a write that failed left something, operation {index}"
                );
            }
            Err(_) => assert_eq!(harness.contents().expect("readable"), model, "{op:?} failed and changed contents"),
        }
        begun.push(model.clone());
        if harness.run(index, &Op::Sync { file: 0 }).is_ok()
            && !read_only(harness.volume())
            && harness.volume().sync_log().is_ok()
        {
            acknowledged = begun.len() - 1;
        }
        assert_eq!(
            harness.contents().expect("contents stay readable"),
            model,
            "operation {index} {op:?}, fault {fault:?} at {at}"
        );
        if read_only(harness.volume()) {
            break;
        }
    }
    let stopped = read_only(harness.volume());
    let reached = world.operations() > at;
    drop(harness);
    reached.then_some(Ran { world, model, begun, acknowledged, stopped })
}

fn check_after(ran: &Ran, ids: &[FileId], survival: Survival, what: &str) {
    let harness =
        Harness::open(ran.world.recover(survival), ids.to_vec()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
    let allowed = ran.begun.iter().skip(ran.acknowledged).any(|model| *model == seen);
    assert!(allowed, "{what}: acknowledged contents are gone");
    if !ran.stopped {
        assert_eq!(seen, ran.model, "{what}: the log did not fail, everything was synced");
    }
    assert_eq!(damage(harness.volume()), vec![], "{what}");
}

fn enumerate(seed: u64, ops_count: usize, fault: Fault) -> u64 {
    let mut random = Random(seed);
    let ops: Vec<Op> = (0..ops_count).map(|_| random.op(false)).collect();
    let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
    harness.volume().checkpoint().expect("the first checkpoint");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop(harness);
    let probe = world.fork();
    drop(Harness::open(probe.clone(), ids.clone()).expect("opens"));
    let mut points = 0;
    for at in probe.operations().. {
        let Some(ran) = run(&world, &ids, &ops, at, fault) else { break };
        for survival in [Survival::None, Survival::All, Survival::Seed(at)] {
            check_after(&ran, &ids, survival, &format!("seed {seed}, {fault:?} at operation {at}, then {survival:?}"));
        }
        points += 1;
    }
    points
}

/// I1, I3, I5: whatever single operation fails, contents are those of the operations that succeeded, now and after a power cut.
#[test]
fn a_fault_at_every_operation_loses_nothing_acknowledged() {
    let mut points = 0;
    for seed in 0..12 {
        for fault in [Fault::Eio, Fault::Enospc, Fault::ShortThenEio, Fault::SyncError] {
            points += enumerate(seed, 30, fault);
        }
    }
    println!("{points} faults");
    assert!(points >= 500, "only {points} faults were tried");
}

fn opened(seed: u64) -> Harness {
    Harness::new(SimWorld::new(seed)).expect("a new volume opens")
}

fn write(harness: &Harness, file: usize, offset: u64, byte: u8, len: usize) -> Result<()> {
    let volume = harness.volume();
    volume.write(&volume.file(harness.ids[file])?, offset, &vec![byte; len], Wait::Allowed)
}

fn sync(harness: &Harness, file: usize) -> Result<()> {
    let (sender, receiver) = std::sync::mpsc::channel();
    let volume = harness.volume();
    volume
        .sync(&volume.file(harness.ids[file])?, Box::new(move |result| sender.send(result).expect("the test listens")));
    receiver.recv().expect("a sync is always answered")
}

fn read(harness: &Harness, file: usize, offset: u64, len: usize) -> Vec<u8> {
    let volume = harness.volume();
    let mut buf = vec![0xee; len];
    let got = volume
        .read(&volume.file(harness.ids[file]).expect("known"), offset, &mut buf, Wait::Allowed)
        .expect("readable");
    buf.truncate(got);
    buf
}

fn settle(harness: &Harness) {
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
    harness.volume().checkpoint().expect("checkpoints");
}

/// I5: after a failed log write the volume is read-only for good, later syncs fail although the device works again, and a new mount
/// finds what was acknowledged. With the committer running nothing may follow the failed group into the log either: a group
/// behind a gap would make the next mount take the log for corrupt.
#[test]
fn a_failed_log_write_stops_the_volume_for_good() {
    for threads in [false, true] {
        let harness = opened(5);
        write(&harness, 0, 0, 1, 5000).expect("writes");
        sync(&harness, 0).expect("syncs");
        if threads {
            harness.volume().start_threads().expect("threads start");
        }
        write(&harness, 0, 0, 2, 5000).expect("writes");
        harness.world.device("nvme").break_writes(true);
        assert!(matches!(sync(&harness, 0), Err(Error::ReadOnly { .. } | Error::Io { .. })));
        harness.world.device("nvme").break_writes(false);
        assert!(matches!(sync(&harness, 0), Err(Error::ReadOnly { .. })), "a later sync must not succeed");
        assert!(matches!(write(&harness, 1, 0, 3, 100), Err(Error::ReadOnly { .. })));
        assert!(matches!(harness.volume().checkpoint(), Err(Error::ReadOnly { .. })));
        assert!(matches!(harness.volume().shut_down(), Err(Error::ReadOnly { .. })));
        let before: Vec<_> =
            ["nvme", "sata", "hdd"].iter().map(|name| harness.world.device(name).traffic().writes).collect();
        std::thread::sleep(std::time::Duration::from_millis(if threads { 400 } else { 0 }));
        let after: Vec<_> =
            ["nvme", "sata", "hdd"].iter().map(|name| harness.world.device(name).traffic().writes).collect();
        assert_eq!(before, after, "after the failure nothing is written");
        let (world, ids) = (harness.world.clone(), harness.ids.clone());
        drop(harness);
        let again = Harness::open(world.recover(Survival::All), ids).expect("a new mount opens");
        assert_eq!(read(&again, 0, 0, 6000), vec![1; 5000]);
        write(&again, 0, 0, 4, 10).expect("the new mount writes");
        sync(&again, 0).expect("and syncs");
    }
}

/// R8: a sync error drops accepted writes for good, as on Linux; what had been coalesced is written again from the log, so that
/// the next successful checkpoint is true. Both for images in place and for first images.
#[test]
fn a_sync_error_followed_by_a_success_loses_nothing() {
    for first_image in [false, true] {
        let harness = opened(6);
        if !first_image {
            write(&harness, 0, 0, 1, 3 * BLOCK as usize).expect("writes");
            settle(&harness);
        }
        write(&harness, 0, 4096, 2, 20_000).expect("writes");
        harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
        harness.world.device("nvme").break_syncs(true);
        harness.volume().checkpoint().expect_err("the checkpoint fails with the sync");
        harness.world.device("nvme").break_syncs(false);
        if read_only(harness.volume()) {
            panic!("a tier's sync error is no failure of the log");
        }
        let expected = read(&harness, 0, 0, 100_000);
        // The log goes on, and what it was lost from is recycled: no replay brings it back.
        for at in 0..options().segment_bytes / BLOCK * 2 {
            write(&harness, 2, at * BLOCK, 3, BLOCK as usize).expect("writes");
        }
        harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
        harness.volume().checkpoint().expect("the next checkpoint succeeds");
        let again = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
        assert_eq!(read(&again, 0, 0, 100_000), expected, "first image: {first_image}");
        assert_eq!(&expected[4096..24_096], &vec![2; 20_000][..]);
    }
}

/// R8: a block that was moved to a tier whose sync failed is where it was before, and moves again later.
#[test]
fn a_move_whose_sync_failed_is_taken_back() {
    let harness = opened(7);
    write(&harness, 0, 0, 9, BLOCK as usize).expect("writes");
    settle(&harness);
    let file = harness.volume().file(harness.ids[0]).expect("known");
    assert!(harness.volume().move_block(&file, BlockNo(0), TierId(2)).expect("moves"));
    write(&harness, 0, 100, 8, 50).expect("writes");
    harness.volume().coalesce_all(&mut |_, _| {}).expect("coalesces on the new tier");
    harness.world.device("hdd").break_syncs(true);
    harness.volume().checkpoint().expect_err("the sync of the disk fails");
    harness.world.device("hdd").break_syncs(false);
    let degraded = harness.volume().status().degraded;
    assert!(degraded.iter().any(|line| line.starts_with("syncs of tier hdd")), "{degraded:?}");
    assert_eq!(harness.volume().block_map(&file)[0].2, Some(TierId(0)), "the block is back where durable state has it");
    let mut expected = vec![9; BLOCK as usize];
    expected[100..150].fill(8);
    assert_eq!(read(&harness, 0, 0, BLOCK as usize), expected);
    drop(file);
    harness.volume().checkpoint().expect("succeeds");
    let again = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
    assert_eq!(read(&again, 0, 0, BLOCK as usize), expected);
}

/// Failure policy: EIO on a lower tier while coalescing leaves records in the log, says degraded, and heals by itself.
#[test]
fn a_tier_broken_for_a_while_degrades_and_heals() {
    let harness = opened(8);
    write(&harness, 0, 0, 1, BLOCK as usize).expect("writes");
    settle(&harness);
    let file = harness.volume().file(harness.ids[0]).expect("known");
    assert!(harness.volume().move_block(&file, BlockNo(0), TierId(1)).expect("moves"));
    harness.volume().checkpoint().expect("checkpoints");
    write(&harness, 0, 10, 2, 100).expect("writes");
    harness.world.device("sata").break_writes(true);
    harness.volume().coalesce_all(&mut |_, _| {}).expect_err("the block cannot be coalesced");
    assert!(
        harness.volume().status().degraded.iter().any(|line| line.contains("sata")),
        "{:?}",
        harness.volume().status().degraded
    );
    assert!(!read_only(harness.volume()));
    write(&harness, 1, 0, 3, 100).expect("other files go on");
    sync(&harness, 1).expect("and sync");
    assert_eq!(read(&harness, 0, 10, 100), vec![2; 100], "the records stay");
    harness.world.device("sata").break_writes(false);
    std::thread::sleep(std::time::Duration::from_millis(5200));
    harness.volume().coalesce_all(&mut |_, _| {}).expect("the tier is used again");
    assert!(harness.volume().status().degraded.is_empty(), "{:?}", harness.volume().status().degraded);
    drop(file);
    let again = Harness::open(harness.world.recover(Survival::All), harness.ids.clone()).expect("opens");
    assert_eq!(read(&again, 0, 10, 100), vec![2; 100]);
}

/// A disk is unplugged and plugged in again while the volume works: only reads of what lies there fail; writes to those very
/// blocks, syncs and other tiers go on, and nothing is lost, whether the power goes too or not.
#[test]
fn a_tier_that_is_gone_for_a_while_costs_its_own_reads_alone() {
    let harness = opened(12);
    for n in 0..2 {
        write(&harness, n, 0, 1, 2 * BLOCK as usize).expect("writes");
    }
    settle(&harness);
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    assert_eq!(volume.move_run(&file, BlockNo(0), 2, TierId(2)).expect("moves"), 2);
    volume.checkpoint().expect("checkpoints");
    let plug = |out: bool| {
        let disk = harness.world.device("hdd");
        disk.break_reads(out);
        disk.break_writes(out);
        disk.break_syncs(out);
    };
    plug(true);
    write(&harness, 0, 100, 2, 50).expect("the log takes it");
    sync(&harness, 0).expect("and is durable");
    write(&harness, 1, 0, 3, BLOCK as usize).expect("other files go on");
    sync(&harness, 1).expect("and sync");
    let mut buf = vec![0; 4096];
    let error = volume.read(&file, BLOCK, &mut buf, Wait::Allowed).expect_err("what lies there cannot be read");
    assert!(matches!(error, Error::Io { .. }), "{error}");
    assert_eq!(read(&harness, 0, 100, 50), vec![2; 50], "what is in the log can");
    drop(volume.coalesce_all(&mut |_, _| {}));
    drop(volume.checkpoint());
    assert!(volume.status().degraded.iter().any(|line| line.contains("hdd")), "{:?}", volume.status().degraded);
    assert!(!read_only(volume));
    let mut expected = vec![1; 2 * BLOCK as usize];
    expected[100..150].fill(2);
    let (while_out, ids) = (harness.world.recover(Survival::None), harness.ids.clone());
    plug(false);
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(30);
    while volume.coalesce_all(&mut |_, _| {}).and_then(|()| volume.checkpoint()).is_err() {
        assert!(std::time::Instant::now() < deadline, "the tier is used again");
        std::thread::yield_now();
    }
    assert_eq!(read(&harness, 0, 0, expected.len()), expected);
    for world in [while_out, harness.world.recover(Survival::None)] {
        for device in ["nvme", "sata", "hdd"] {
            world.device(device).break_reads(false);
            world.device(device).break_writes(false);
            world.device(device).break_syncs(false);
        }
        let again = Harness::open(world, ids.clone()).expect("opens");
        assert_eq!(read(&again, 0, 0, expected.len()), expected);
        assert_eq!(read(&again, 1, 0, BLOCK as usize), vec![3; BLOCK as usize]);
    }
}

/// One tier that takes no writes any more does not fill the log for all: under pressure its blocks get images elsewhere.
#[test]
fn a_tier_broken_for_ever_does_not_stop_the_others() {
    let harness = opened(9);
    write(&harness, 0, 0, 1, 4 * BLOCK as usize).expect("writes");
    settle(&harness);
    let file = harness.volume().file(harness.ids[0]).expect("known");
    assert_eq!(harness.volume().move_run(&file, BlockNo(0), 4, TierId(2)).expect("moves"), 4);
    harness.volume().checkpoint().expect("checkpoints");
    harness.world.device("hdd").break_writes(true);
    for round in 0..400 {
        if round < 60 {
            write(&harness, 0, round * 1000, 2, 1000).expect("writes");
        }
        write(&harness, 1, round * 8192, 3, 8192).expect("the log never fills for good");
        sync(&harness, 1).expect("and sync");
    }
    let elsewhere = harness.volume().block_map(&file).iter().any(|run| run.2 != Some(TierId(2)));
    assert!(elsewhere, "blocks with records left the broken tier");
    let expected: Vec<u8> = [vec![2; 60_000], vec![1; 4 * BLOCK as usize - 60_000]].concat();
    assert_eq!(read(&harness, 0, 0, expected.len()), expected);
    drop(file);
    let again = Harness::open(harness.world.recover(Survival::All), harness.ids.clone()).expect("opens");
    assert_eq!(read(&again, 0, 0, expected.len()), expected);
}

/// A disk that goes just after it got its first blocks, before a checkpoint knew of them: they are taken back once, and from then
/// on it holds up nobody, however long it is gone.
#[test]
fn a_tier_that_goes_with_an_object_just_made_does_not_fill_the_log() {
    let harness = opened(13);
    write(&harness, 0, 0, 1, 2 * BLOCK as usize).expect("writes");
    settle(&harness);
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    assert_eq!(volume.move_run(&file, BlockNo(0), 2, TierId(1)).expect("moves"), 2);
    let disk = harness.world.device("sata");
    disk.break_reads(true);
    disk.break_writes(true);
    disk.break_syncs(true);
    volume.checkpoint().expect_err("what was moved there cannot be made durable");
    volume.checkpoint().expect("it was taken back: there is nothing left to make durable there");
    for round in 0..400 {
        write(&harness, 1, round * 8192, 3, 8192).expect("the log never fills");
        sync(&harness, 1).expect("and syncs");
    }
    let again = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
    assert_eq!(read(&again, 0, 0, 2 * BLOCK as usize), vec![1; 2 * BLOCK as usize]);
}

/// A writer that finds no room, while a checkpoint that would make some fails at a tier, hears of room, not of that tier (I10).
#[test]
fn a_writer_without_room_is_told_so_whatever_a_checkpoint_meets() {
    let harness = opened(14);
    write(&harness, 0, 0, 1, 2 * BLOCK as usize).expect("writes");
    settle(&harness);
    let volume = harness.volume();
    let file = volume.file(harness.ids[0]).expect("known");
    assert_eq!(volume.move_run(&file, BlockNo(0), 2, TierId(2)).expect("moves"), 2);
    harness.world.device("hdd").break_syncs(true);
    let (mut at, mut bytes) = (0, 64 * BLOCK);
    let refused = loop {
        match write(&harness, 1, at, 3, usize::try_from(bytes).expect("small")) {
            Ok(()) => at += bytes,
            Err(Error::NoSpace) if bytes > 4096 => bytes /= 2,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::NoSpace | Error::LogFull), "{refused}");
}

/// Others fill the filesystem of the fastest tier to the last byte: writers hear ENOSPC while there is still room for what state has to
/// note, so that the volume never stops; what was acknowledged is there, and with room again writes go on (R22).
#[test]
fn r22_a_filesystem_that_others_fill_does_not_stop_the_volume() {
    const PER_CHUNK: u64 = BLOCK * heatfs::ondisk::rows::MAP_CHUNK_BLOCKS as u64;
    let harness = opened(15);
    write(&harness, 0, 0, 1, BLOCK as usize).expect("writes");
    settle(&harness);
    let disk = harness.world.device("nvme");
    let space = disk.space().expect("is told");
    disk.set_capacity(space.total_bytes - space.available_bytes);
    let volume = harness.volume();
    // Each makes a row of state that was not there before.
    let mut acknowledged = 0;
    let refused = loop {
        assert!(acknowledged < 100_000, "state takes its room from somewhere else");
        match write(&harness, 1, acknowledged * PER_CHUNK, 7, 100) {
            Ok(()) => sync(&harness, 1).expect("what was taken can be made durable"),
            Err(error) => break error,
        }
        acknowledged += 1;
        if acknowledged % 64 == 0 {
            volume.checkpoint().expect("state has room");
            volume.keep_room_for_state();
        }
    };
    assert!(matches!(refused, Error::NoSpace), "{refused}");
    volume.checkpoint().expect("and for what the log holds, too");
    volume.keep_room_for_state();
    assert!(!read_only(volume));
    let degraded = volume.status().degraded;
    assert!(degraded.iter().any(|line| line.contains("make room")), "{degraded:?}");
    assert!(degraded.iter().any(|line| line.starts_with("writes: refused")), "{degraded:?}");
    let file = volume.file(harness.ids[0]).expect("known");
    assert!(volume.move_block(&file, BlockNo(0), TierId(2)).expect("moves"), "what goes down makes room");
    drop(file);
    let check = |harness: &Harness| {
        assert_eq!(read(harness, 0, 0, BLOCK as usize), vec![1; BLOCK as usize]);
        for at in (0..acknowledged).step_by(97).chain([acknowledged - 1]) {
            assert_eq!(read(harness, 1, at * PER_CHUNK, 100), vec![7; 100]);
        }
    };
    check(&harness);
    check(&Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens on a full disk"));
    disk.set_capacity(1 << 40);
    volume.keep_room_for_state();
    write(&harness, 2, 50, 8, 100).expect("writes go on");
    let degraded = volume.status().degraded;
    assert!(!degraded.iter().any(|line| line.contains("make room") || line.starts_with("writes")), "{degraded:?}");
    check(&harness);
}

/// A log that nothing can drain gives a writer a clear error within a bound, with and without threads; it never hangs.
#[test]
fn a_log_that_cannot_be_drained_ends_in_an_error() {
    for threads in [false, true] {
        let harness = opened(10);
        write(&harness, 0, 0, 1, BLOCK as usize).expect("writes");
        settle(&harness);
        if threads {
            harness.volume().set_log_full_wait(std::time::Duration::from_millis(700));
            harness.volume().start_threads().expect("threads start");
        }
        let (done, ended) = std::sync::mpsc::channel();
        let volume = harness.volume().clone();
        let (id, world) = (harness.ids[1], harness.world.clone());
        // Payloads that cannot be read any more can neither be coalesced nor dropped.
        let writer = std::thread::spawn(move || {
            let file = volume.file(id).expect("known");
            for round in 0..2000u64 {
                world.device("nvme").break_reads(true);
                if let Err(error) = volume.write(&file, round * 8192, &[7; 8192], Wait::Allowed) {
                    return drop(done.send(error));
                }
            }
        });
        let error = ended.recv_timeout(std::time::Duration::from_secs(60)).expect("the writer ends with an error");
        assert!(matches!(error, Error::LogFull), "{error}");
        writer.join().expect("the writer ends");
        harness.world.device("nvme").break_reads(false);
        let mut patience = 200;
        while write(&harness, 2, 0, 5, 5000).is_err() {
            patience -= 1;
            assert!(patience > 0, "the log is drained when the device reads again");
            std::thread::sleep(std::time::Duration::from_millis(50));
        }
        assert!(read(&harness, 1, 0, 8192) == vec![7; 8192]);
        if threads {
            harness.volume().shut_down_quickly().expect("ends");
        }
    }
}

/// I10: a full volume says NoSpace at write and never at sync; what was accepted can always be coalesced; space comes back
/// after truncate or remove and a checkpoint.
#[test]
fn a_full_volume_says_so_at_write_and_recovers() {
    let world = SimWorld::new(11);
    Volume::create(&tiers(&world), &options(), uuid::Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let small = || -> Vec<_> {
        tiers(&world).into_iter().map(|tier| heatfs::volume::Tier { budget_bytes: Some(10 * BLOCK), ..tier }).collect()
    };
    let (volume, _) = Volume::open(small(), options()).expect("opens");
    let ids: Vec<FileId> = (0..FILES).map(|_| volume.issue_file_id().expect("an id")).collect();
    let file = volume.file(ids[0]).expect("known");
    let fill = |file: &Arc<heatfs::volume::File>| {
        let mut written = 0;
        loop {
            match volume.write(file, written * BLOCK, &[6; BLOCK as usize], Wait::Allowed) {
                Ok(()) => written += 1,
                Err(Error::NoSpace) => return written,
                Err(error) => panic!("{error}"),
            }
        }
    };
    for how in 0..3 {
        let target = if how == 2 { volume.file(ids[1]).expect("known") } else { file.clone() };
        assert_eq!(fill(&target), 30, "round {how}");
        volume.sync_log().expect("a sync is never refused for space");
        volume.write(&target, 5, &[7; 100], Wait::Allowed).expect("overwriting takes no space");
        volume.coalesce_all(&mut |_, _| {}).expect("what was promised fits");
        volume.checkpoint().expect("checkpoints");
        assert_eq!(volume.status().promised_bytes, 0);
        assert!(matches!(volume.allocate(&target, 100 * BLOCK, 1 << 43, true), Err(Error::NoSpace)));
        match how {
            0 => volume.set_size(&target, 0).expect("truncates"),
            1 => volume.remove(ids[0]).expect("removes"),
            _ => {}
        }
        if how == 0 {
            volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
        }
        volume.checkpoint().expect("checkpoints");
    }
    let held = || volume.status().tiers.iter().map(|tier| tier.used_bytes).sum::<u64>();
    assert_eq!(held(), 30 * BLOCK);
    volume.remove(ids[1]).expect("removes");
    assert_eq!(fill(&volume.file(ids[2]).expect("known")), 30, "who finds no room makes what a checkpoint frees");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    assert_eq!(held(), 30 * BLOCK);
}

/// I10: what was promised to a writer is not taken by a move, though the tier has room; nor by a copy that is made ahead of one.
#[test]
fn i10_a_move_takes_no_promised_room() {
    let world = SimWorld::new(12);
    let small = || -> Vec<_> {
        tiers(&world).into_iter().map(|tier| heatfs::volume::Tier { budget_bytes: Some(10 * BLOCK), ..tier }).collect()
    };
    Volume::create(&small(), &options(), uuid::Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(small(), options()).expect("opens");
    let new = || volume.file(volume.issue_file_id().expect("an id")).expect("known");
    let (there, promised) = (new(), new());
    let write = |file: &Arc<heatfs::volume::File>, blocks: u64| {
        (0..blocks).try_for_each(|block| volume.write(file, block * BLOCK, &[6; BLOCK as usize], Wait::Allowed))
    };
    write(&there, 10).expect("fits");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    write(&promised, 18).expect("fits");
    assert_eq!(volume.move_run(&there, BlockNo(0), 4, TierId(2)).expect("refuses"), 0);
    assert_eq!(volume.copy_down(&there, BlockNo(0), 4).expect("refuses"), 0);
    assert_eq!(volume.move_run(&there, BlockNo(0), 2, TierId(2)).expect("moves"), 2, "two are promised to nobody");
    volume.coalesce_all(&mut |_, _| {}).expect("what was promised fits");
}

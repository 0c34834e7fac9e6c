//! Real threads: writers, readers and syncers with the committer, maintenance, a mover and checkpoints running beside them. One writer per file
//! keeps the model of that file; at the end, and after another mount, contents are the model's.

use crate::harness::{BLOCK, Harness, Random, options, tiers};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Options, Severity, Volume, Wait};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const FILE_BYTES: u64 = 24 * BLOCK;

/// Fails the test instead of hanging it.
fn within(limit: Duration, what: &str, body: impl FnOnce() + Send + 'static) {
    let (done, ended) = std::sync::mpsc::channel();
    let thread = std::thread::spawn(move || {
        body();
        done.send(()).expect("the test waits");
    });
    match ended.recv_timeout(limit) {
        Ok(()) => {}
        Err(std::sync::mpsc::RecvTimeoutError::Timeout) => panic!("{what}: a deadlock"),
        Err(_) => std::panic::resume_unwind(thread.join().expect_err("the body panicked")),
    }
}

fn sync(volume: &Volume, id: FileId) {
    let (sender, receiver) = std::sync::mpsc::channel();
    let file = volume.file(id).expect("known");
    volume.sync(&file, Box::new(move |result| sender.send(result).expect("the writer listens")));
    receiver.recv_timeout(Duration::from_secs(60)).expect("a sync is answered").expect("a sync succeeds");
}

/// Writes, cuts and syncs one file, and compares what it reads as it goes. Returns what the file must contain.
fn writer(volume: &Volume, id: FileId, seed: u64, rounds: u64) -> Vec<u8> {
    let mut random = Random(seed);
    let mut model: Vec<u8> = Vec::new();
    let file = volume.file(id).expect("known");
    for round in 0..rounds {
        let (offset, len) = (random.below(FILE_BYTES), 1 + random.below(12_000));
        let byte = u8::try_from(1 + round % 255).expect("small");
        match random.below(20) {
            0 => {
                volume.set_size(&file, offset).expect("truncates");
                model.resize(usize::try_from(offset).expect("small"), 0);
            }
            1 => {
                volume.punch_hole(&file, offset, len).expect("punches");
                let end = model.len().min(usize::try_from(offset + len).expect("small"));
                if let Some(hole) = model.get_mut(usize::try_from(offset).expect("small")..end) {
                    hole.fill(0);
                }
            }
            2..=5 => sync(volume, id),
            _ => {
                let data = vec![byte; usize::try_from(len).expect("small")];
                volume.write(&file, offset, &data, Wait::Allowed).expect("writes");
                let end = usize::try_from(offset + len).expect("small");
                model.resize(model.len().max(end), 0);
                model[end - data.len()..end].copy_from_slice(&data);
            }
        }
        if round % 7 == 0 {
            compare(volume, id, &model, round);
        }
    }
    sync(volume, id);
    model
}

fn compare(volume: &Volume, id: FileId, model: &[u8], round: u64) {
    let file = volume.file(id).expect("known");
    let mut buf = vec![0xee; model.len() + 10];
    let got = volume.read(&file, 0, &mut buf, Wait::Allowed).expect("readable");
    assert_eq!(got, model.len(), "size in round {round}");
    let differs = buf.iter().zip(model).position(|(a, b)| a != b);
    assert_eq!(differs, None, "round {round} of file {id}");
}

fn mover(volume: &Volume, ids: &[FileId], stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed);
    while !stop.load(Ordering::Relaxed) {
        let id = ids[usize::try_from(random.below(ids.len() as u64)).expect("small")];
        let file = volume.file(id).expect("known");
        let to = TierId(u8::try_from(random.below(3)).expect("small"));
        volume.move_run(&file, BlockNo(random.below(24)), 1 + random.below(4), to).expect("moves or refuses");
        volume.copy_down(&file, BlockNo(random.below(24)), 1 + random.below(4)).expect("copies or refuses");
        volume.drop_zeros(&file, BlockNo(random.below(24)), 1 + random.below(4)).expect("looks or refuses");
        if random.below(10) == 0 {
            volume.drop_copies(to, 3).expect("drops copies");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
}

fn reader(volume: &Volume, ids: &[FileId], stop: &AtomicBool, seed: u64) {
    let mut random = Random(seed);
    let mut buf = vec![0; 20_000];
    while !stop.load(Ordering::Relaxed) {
        let id = ids[usize::try_from(random.below(ids.len() as u64)).expect("small")];
        let file = volume.file(id).expect("known");
        volume
            .read(&file, random.below(FILE_BYTES), &mut buf, Wait::Allowed)
            .expect("never an error on a healthy volume");
        volume.check(random.below(20) == 0).expect("the check runs beside everything");
        std::thread::sleep(Duration::from_micros(300));
    }
}

fn all_at_once(seed: u64, failing_syncs: bool) {
    let world = SimWorld::new(seed);
    let options = Options { checkpoint_interval_s: 1, ..options() };
    Volume::create(&tiers(&world), &options, uuid::Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(tiers(&world), options.clone()).expect("opens");
    let ids: Vec<FileId> = (0..4).map(|_| volume.issue_file_id().expect("an id")).collect();
    volume.start_threads().expect("threads start");
    let stop = Arc::new(AtomicBool::new(false));
    let models: Vec<Vec<u8>> = std::thread::scope(|scope| {
        let writers: Vec<_> = ids
            .iter()
            .zip(seed..)
            .map(|(&id, seed)| {
                let volume = volume.clone();
                scope.spawn(move || writer(&volume, id, seed * 77, 700))
            })
            .collect();
        let (ids, volume, stop, world) = (&ids, &volume, &stop, &world);
        scope.spawn(move || mover(volume, ids, stop, seed + 1));
        scope.spawn(move || reader(volume, ids, stop, seed + 2));
        scope.spawn(move || {
            let mut random = Random(seed + 3);
            while !stop.load(Ordering::Relaxed) {
                // The disk loses what it had accepted now and then: the checkpoint fails, blocks go back, nobody notices.
                world.device("hdd").break_syncs(failing_syncs && random.below(3) == 0);
                world.device("sata").break_syncs(failing_syncs && random.below(3) == 0);
                let result = volume.checkpoint();
                assert!(result.is_ok() || failing_syncs, "{result:?}");
                std::thread::sleep(Duration::from_millis(5));
            }
            world.device("hdd").break_syncs(false);
            world.device("sata").break_syncs(false);
        });
        let models = writers.into_iter().map(|writer| writer.join()).collect::<Vec<_>>();
        stop.store(true, Ordering::Relaxed);
        models.into_iter().map(|model| model.unwrap_or_else(|panic| std::panic::resume_unwind(panic))).collect()
    });
    for (&id, model) in ids.iter().zip(&models) {
        compare(&volume, id, model, u64::MAX);
    }
    let findings = volume.check(true).expect("checks");
    assert_eq!(findings, vec![]);
    finish(&volume, &world, &ids, &models);
}

/// After a power cut that keeps nothing unsynced the next mount says the same; and so does the one after a clean end.
fn finish(volume: &Arc<Volume>, world: &SimWorld, ids: &[FileId], models: &[Vec<u8>]) {
    let cut = world.recover(Survival::None);
    volume.shut_down().expect("ends");
    let clean = world.recover(Survival::All);
    for (world, was_clean) in [(cut, false), (clean, true)] {
        let (volume, recovery) = Volume::open(tiers(&world), options()).expect("opens again");
        assert_eq!(recovery.was_clean, was_clean);
        for (&id, model) in ids.iter().zip(models) {
            compare(&volume, id, model, u64::MAX);
        }
        assert_eq!(volume.check(true).expect("checks").iter().filter(|f| f.severity == Severity::Damage).count(), 0);
    }
}

/// I1, I3, and no deadlock: everything at once on a healthy volume.
#[test]
fn everything_at_once_agrees_with_the_models() {
    for seed in 1..4 {
        within(Duration::from_secs(150), "everything at once", move || all_at_once(seed, false));
    }
}

/// R8 under load: the slow tiers fail their syncs, and lose what they had accepted, again and again.
#[test]
fn everything_at_once_with_failing_syncs_agrees_with_the_models() {
    for seed in 11..14 {
        within(Duration::from_secs(150), "failing syncs", move || all_at_once(seed, true));
    }
}

/// I1: concurrent syncers are all answered, and what was answered survives a power cut (group commit with leader and committer).
#[test]
fn concurrent_syncs_are_answered_and_durable() {
    within(Duration::from_secs(60), "syncers", || {
        let harness = Harness::new(SimWorld::new(21)).expect("opens");
        harness.volume().start_threads().expect("threads start");
        let volume = harness.volume().clone();
        std::thread::scope(|scope| {
            for (n, &id) in harness.ids.iter().enumerate() {
                let (volume, world, ids) = (&volume, &harness.world, &harness.ids);
                scope.spawn(move || {
                    let file = volume.file(id).expect("known");
                    for round in 1..=500u64 {
                        volume.write(&file, (round - 1) * 100, &[9; 100], Wait::Allowed).expect("writes");
                        sync(volume, id);
                        if round % 25 == 0 {
                            let cut = Harness::open(world.recover(Survival::None), ids.clone()).expect("opens");
                            let there = cut.contents().expect("readable").files[n].len();
                            assert!(there as u64 == round * 100, "{there} bytes after {round} syncs");
                        }
                    }
                });
            }
        });
        let again = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
        for content in again.contents().expect("readable").files {
            assert_eq!(content, vec![9; 50_000]);
        }
        volume.shut_down().expect("ends");
    });
}

/// What nobody syncs is durable soon, by a timer of 100 ms: no program that only writes loses more than that.
#[test]
fn what_nobody_syncs_becomes_durable_by_itself() {
    assert!(heatfs::log::FLUSH_INTERVAL <= Duration::from_millis(100));
    let harness = Harness::new(SimWorld::new(77)).expect("opens");
    let volume = harness.volume();
    volume.start_threads().expect("threads start");
    let file = volume.file(harness.ids[0]).expect("known");
    volume.write(&file, 100, &[5; 6000], Wait::Allowed).expect("writes");
    let deadline = std::time::Instant::now() + Duration::from_secs(60);
    while volume.status().counters.log_groups == 0 {
        assert!(std::time::Instant::now() < deadline, "nobody wrote the log");
        std::thread::yield_now();
    }
    let again = Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens");
    let file = again.volume().file(harness.ids[0]).expect("known");
    let mut bytes = vec![0; 6000];
    again.volume().read(&file, 100, &mut bytes, Wait::Allowed).expect("reads");
    assert_eq!(bytes, vec![5; 6000]);
    volume.shut_down().expect("ends");
}

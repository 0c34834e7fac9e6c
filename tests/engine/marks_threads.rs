//! Marks beside real threads: writers, mover, maintenance and checkpoints go on while captures read.

use crate::harness::{BLOCK, Random, options, tiers};
use crate::marks::{Contents, Marked, check_changes, check_mark};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{Options, Volume, Wait};
use parking_lot::{Mutex, RwLock};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;
use uuid::Uuid;

const FILE_BYTES: u64 = 20 * BLOCK;
const ROUNDS: u128 = 1000;

fn opened(seed: u64) -> (SimWorld, Arc<Volume>, Vec<FileId>) {
    let world = SimWorld::new(seed);
    let options = Options { checkpoint_interval_s: 1, ..options() };
    Volume::create(&tiers(&world), &options, Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(tiers(&world), options).expect("opens");
    let ids = (0..4).map(|_| volume.issue_file_id().expect("an id")).collect();
    volume.start_threads().expect("threads start");
    (world, volume, ids)
}

/// What a file must contain, and whether somebody is between the volume and the model: a mark then would have two right answers.
struct Models {
    still: RwLock<()>,
    files: Vec<Mutex<Vec<u8>>>,
}

impl Models {
    fn then(&self, ids: &[FileId]) -> Contents {
        let all = ids.iter().zip(&self.files).map(|(&id, content)| (id, content.lock().clone()));
        all.filter(|(_, content)| !content.is_empty()).collect()
    }
}

fn writer(volume: &Volume, id: FileId, n: usize, models: &Models, stop: &AtomicBool) {
    let mut random = Random(n as u64 * 31 + 5);
    let file = volume.file(id).expect("known");
    let mut round = 0u64;
    while !stop.load(Ordering::Relaxed) {
        round += 1;
        let (offset, len) = (random.below(FILE_BYTES), 1 + random.below(12_000));
        let _still = models.still.read();
        let mut model = models.files[n].lock();
        match random.below(25) {
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
            _ => {
                let data = vec![u8::try_from(1 + round % 255).expect("small"); usize::try_from(len).expect("small")];
                volume.write(&file, offset, &data, Wait::Allowed).expect("writes");
                let end = usize::try_from(offset + len).expect("small");
                let len = model.len().max(end);
                model.resize(len, 0);
                model[end - data.len()..end].copy_from_slice(&data);
            }
        }
    }
}

fn disturb(volume: &Volume, world: &SimWorld, ids: &[FileId], stop: &AtomicBool, failing_syncs: bool) {
    let mut random = Random(99);
    while !stop.load(Ordering::Relaxed) {
        let file = volume.file(ids[usize::try_from(random.below(4)).expect("small")]).expect("known");
        let to = TierId(u8::try_from(random.below(3)).expect("small"));
        volume.move_run(&file, BlockNo(random.below(20)), 1 + random.below(4), to).expect("moves or refuses");
        if random.below(8) == 0 {
            world.device("hdd").break_syncs(failing_syncs && random.below(3) == 0);
            world.device("sata").break_syncs(failing_syncs && random.below(3) == 0);
            let result = volume.checkpoint();
            assert!(result.is_ok() || failing_syncs, "{result:?}");
        }
        if random.below(8) == 0 {
            volume.drop_copies(to, 3).expect("drops copies");
        }
        std::thread::sleep(Duration::from_micros(200));
    }
    world.device("hdd").break_syncs(false);
    world.device("sata").break_syncs(false);
}

/// Takes marks, reads them while everything goes on, and publishes or drops them.
fn capture(volume: &Volume, ids: &[FileId], models: &Models, seed: u64, rounds: u128) {
    let mut random = Random(seed);
    let mut pending: Vec<Marked> = Vec::new();
    let mut parent: Option<(Uuid, Contents)> = None;
    for round in 1..=rounds {
        let taken = {
            let _still = models.still.write();
            let mark = volume.mark(Uuid::from_u128(round)).expect("a mark is taken");
            Marked::new(mark, models.then(ids))
        };
        pending.push(taken);
        for marked in &pending {
            let what = format!("seed {seed}, round {round}");
            assert_eq!(marked.mark.failure(), None, "{what}");
            check_mark(volume, marked, &what);
            if let Some((parent, before)) = parent.as_ref().filter(|(parent, _)| *parent < marked.mark.snapshot) {
                check_changes(volume, marked, *parent, before, &what);
            }
        }
        while pending.len() > usize::try_from(random.below(3)).expect("small") {
            let nth = usize::try_from(random.below(pending.len() as u64)).expect("small");
            let Marked { mark, then, .. } = pending.remove(nth);
            if random.below(2) == 0 {
                volume.release_mark(&mark);
            } else {
                volume.publish_mark(&mark, None).expect("publishes");
                if volume.knows_parent(mark.snapshot) {
                    parent = Some((mark.snapshot, then));
                }
            }
        }
    }
    pending.iter().for_each(|marked| volume.release_mark(&marked.mark));
}

fn captures_beside_everything(seed: u64, failing_syncs: bool) {
    let (world, volume, ids) = opened(seed);
    let models = Models { still: RwLock::new(()), files: ids.iter().map(|_| Mutex::default()).collect() };
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (n, &id) in ids.iter().enumerate() {
            let (volume, models, stop) = (&volume, &models, &stop);
            scope.spawn(move || writer(volume, id, n, models, stop));
        }
        scope.spawn(|| disturb(&volume, &world, &ids, &stop, failing_syncs));
        let captured =
            std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| capture(&volume, &ids, &models, seed, 60)));
        stop.store(true, Ordering::Relaxed);
        captured.unwrap_or_else(|panic| std::panic::resume_unwind(panic));
    });
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    let marks = volume.status().marks;
    assert_eq!((marks.kept_files, marks.pinned_log_bytes, marks.staged_bytes), (0, 0, 0), "{marks:?}");
    for (&id, content) in ids.iter().zip(&models.files) {
        let content = content.lock();
        let mut buf = vec![0xee; content.len() + 10];
        let got = volume.read(&volume.file(id).expect("known"), 0, &mut buf, Wait::Allowed).expect("readable");
        assert!(buf[..got] == content[..], "file {id}");
    }
    assert_eq!(volume.check(true).expect("checks"), vec![]);
    volume.shut_down().expect("ends");
}

/// I4, I6: captures read their moment while writers, mover, coalescer and checkpoints go on.
#[test]
fn captures_beside_everything_see_their_moment() {
    for seed in 1..4 {
        captures_beside_everything(seed, false);
    }
}

/// R8: the same while slow tiers lose what they had accepted.
#[test]
fn captures_beside_failing_syncs_see_their_moment() {
    for seed in 11..14 {
        captures_beside_everything(seed, true);
    }
}

/// I6 without anybody's help: each writer counts up in its own file, first in one page, then in another. A mark holds every count that had returned
/// before it began, none that began after it returned, and never the second page ahead of the first.
#[test]
fn a_mark_cuts_between_writes() {
    let (_world, volume, ids) = opened(21);
    let counts: Vec<[AtomicU64; 2]> = ids.iter().map(|_| Default::default()).collect();
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for (&id, [begun, done]) in ids.iter().zip(&counts) {
            let (volume, stop) = (&volume, &stop);
            scope.spawn(move || {
                let file = volume.file(id).expect("known");
                let mut count = 0u64;
                while !stop.load(Ordering::SeqCst) {
                    count += 1;
                    begun.store(count, Ordering::SeqCst);
                    for page in [0, 5] {
                        volume.write(&file, page * 8192, &count.to_le_bytes(), Wait::Allowed).expect("writes");
                    }
                    done.store(count, Ordering::SeqCst);
                }
            });
        }
        for round in 0..ROUNDS {
            let before: Vec<u64> = counts.iter().map(|[_, done]| done.load(Ordering::SeqCst)).collect();
            let mark = volume.mark(Uuid::from_u128(round)).expect("a mark is taken");
            let after: Vec<u64> = counts.iter().map(|[begun, _]| begun.load(Ordering::SeqCst)).collect();
            volume.wait_for_mark(&mark).expect("durable");
            for ((&id, before), after) in ids.iter().zip(before).zip(after) {
                let count = |page: u64| {
                    let mut bytes = [0; 8];
                    let got = volume.read_at(&mark, id, page * 8192, &mut bytes).expect("readable");
                    if got == 8 { u64::from_le_bytes(bytes) } else { 0 }
                };
                let (first, second) = (count(0), count(5));
                assert!(first >= before && first <= after, "round {round}: {first} of {before}..={after}");
                assert!(
                    second >= before && (second == first || second + 1 == first),
                    "round {round}: {first}, {second}"
                );
            }
            volume.release_mark(&mark);
        }
        stop.store(true, Ordering::SeqCst);
    });
    let marks = volume.status().marks;
    println!(
        "300 marks beside four writers: at most {} us, 99 of 100 within {} us",
        marks.stall_us_max, marks.stall_us_p99
    );
    assert_eq!(u128::from(marks.taken), ROUNDS);
    volume.shut_down().expect("ends");
}

/// I6: exactly the records up to the marker, not one that is logged a moment later: so the mark reads the same when a mount has made it again from the log.
#[test]
fn a_mark_is_the_same_when_it_is_found_again() {
    for seed in 0..25 {
        let (world, volume, ids) = opened(seed);
        let stop = AtomicBool::new(false);
        let read = |volume: &Volume, mark: &heatfs::volume::Mark| -> Vec<Vec<u8>> {
            let count = |&id: &FileId| {
                let mut bytes = vec![0; 8];
                let got = volume.read_at(mark, id, 0, &mut bytes).expect("readable");
                bytes.truncate(got);
                bytes
            };
            ids.iter().map(count).collect()
        };
        let seen: Vec<(Uuid, Vec<Vec<u8>>)> = std::thread::scope(|scope| {
            for &id in &ids {
                let (volume, stop) = (&volume, &stop);
                scope.spawn(move || {
                    let file = volume.file(id).expect("known");
                    for count in 1u64.. {
                        volume.write(&file, 0, &count.to_le_bytes(), Wait::Allowed).expect("writes");
                        if stop.load(Ordering::Relaxed) {
                            break;
                        }
                    }
                });
            }
            let written = |n: usize| volume.file(ids[n]).expect("known").last_lsn();
            let marks: Vec<_> = (0..8)
                .map(|n| {
                    // Somebody is in the middle of writing.
                    let before: Vec<_> = (0..ids.len()).map(written).collect();
                    while (0..ids.len()).filter(|&n| written(n) > before[n]).count() < 2 {
                        std::hint::spin_loop();
                    }
                    volume.mark(Uuid::from_u128(n)).expect("a mark is taken")
                })
                .collect();
            stop.store(true, Ordering::Relaxed);
            let seen = marks.iter().map(|mark| {
                volume.wait_for_mark(mark).expect("durable");
                (mark.snapshot, read(&volume, mark))
            });
            seen.collect()
        });
        volume.sync_log().expect("syncs");
        let (again, _) = Volume::open(tiers(&world.recover(Survival::All)), options()).expect("opens again");
        let found: Vec<_> = again.pending_marks().iter().map(|mark| (mark.snapshot, read(&again, mark))).collect();
        assert_eq!(found, seen, "seed {seed}");
        volume.shut_down().expect("ends");
    }
}

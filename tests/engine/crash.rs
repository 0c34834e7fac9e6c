//! Crash at every device operation of a workload, with several choices of what survives; recover; compare with what was acknowledged.
//!
//! The promise: what is there after a crash is the state after some prefix of the operations, and the prefix contains every operation that a
//! completed sync covered.

use crate::harness::{Acknowledged, Harness, Model, Op, Random};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::units::FileId;

/// A run that ended in a crash: how far it came.
struct Ended {
    world: SimWorld,
    ids: Vec<FileId>,
    /// Operations begun (the last one may have been cut short).
    begun: usize,
    /// Operations covered by an acknowledged sync.
    acknowledged: usize,
}

fn run_until_crash(world: &SimWorld, ids: &[FileId], ops: &[Op], crash_at: u64) -> Option<Ended> {
    let world = world.fork();
    world.crash_at(crash_at);
    let mut harness = match Harness::open(world.clone(), ids.to_vec()) {
        Ok(harness) => harness,
        Err(_) => return Some(Ended { world, ids: ids.to_vec(), begun: 0, acknowledged: 0 }),
    };
    let mut acknowledged = Acknowledged::after(&Model::default());
    for (index, op) in ops.iter().enumerate() {
        let result = harness.run(index, op);
        acknowledged.asked(index, op);
        match result {
            Ok(()) => acknowledged.succeeded(index, op),
            Err(error) if !world.crashed() => panic!("operation {index} {op:?} failed without a crash: {error}"),
            Err(_) => {}
        }
        if world.crashed() {
            return Some(Ended { world, ids: ids.to_vec(), begun: index + 1, acknowledged: acknowledged.count });
        }
    }
    None
}

fn check_recovery(ended: &Ended, ops: &[Op], survival: Survival, what: &str) {
    check_world(ended.world.recover(survival), ended, ops, what);
}

fn check_world(recovered: SimWorld, ended: &Ended, ops: &[Op], what: &str) {
    let harness = Harness::open(recovered, ended.ids.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut model = Model::default();
    let mut matches = ended.acknowledged == 0 && model == seen;
    for (index, op) in ops.iter().enumerate().take(ended.begun) {
        model.apply(index, op);
        matches |= index + 1 >= ended.acknowledged && model == seen;
    }
    assert!(
        matches,
        "{what}: contents are no prefix that holds the {} acknowledged of {} operations",
        ended.acknowledged, ended.begun
    );
    harness.volume().sweep_abandoned().unwrap_or_else(|error| panic!("{what}: {error}"));
    harness.volume().checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(
        harness.contents().expect("readable") == seen,
        "{what}: freeing what the crash left behind changed contents"
    );
    let findings = harness.volume().check(true).expect("the check runs");
    let damage: Vec<_> = findings.iter().filter(|f| f.severity == heatfs::volume::Severity::Damage).collect();
    assert!(damage.is_empty(), "{what}: {damage:?}");
}

/// A new volume with a checkpoint, and a workload.
fn prepared(seed: u64, ops_count: usize, reopen: bool) -> (SimWorld, Vec<FileId>, Vec<Op>) {
    prepared_with(seed, ops_count, |random| random.op(reopen))
}

fn prepared_with(seed: u64, ops_count: usize, op: impl Fn(&mut Random) -> Op) -> (SimWorld, Vec<FileId>, Vec<Op>) {
    let mut random = Random(seed);
    let ops: Vec<Op> = (0..ops_count).map(|_| op(&mut random)).collect();
    let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
    harness.volume().checkpoint().expect("the first checkpoint");
    (harness.world.clone(), harness.ids.clone(), ops)
}

/// Crashes at every `step`-th operation; returns how many crash points were tried.
fn enumerate(seed: u64, ops_count: usize, step: u64) -> u64 {
    enumerate_with(seed, ops_count, step, |random| random.op(true))
}

/// The same for a workload of other operations.
pub fn enumerate_with(seed: u64, ops_count: usize, step: u64, op: impl Fn(&mut Random) -> Op) -> u64 {
    let (world, ids, ops) = prepared_with(seed, ops_count, op);
    let mut points = 0;
    let mut at = world.operations() + seed % step;
    while let Some(ended) = run_until_crash(&world, &ids, &ops, at) {
        for survival in [Survival::None, Survival::All, Survival::Seed(at)] {
            check_recovery(&ended, &ops, survival, &format!("seed {seed}, crash at operation {at}, {survival:?}"));
            points += 1;
        }
        at += step;
    }
    points
}

#[test]
fn every_crash_point_of_small_workloads_recovers_to_a_prefix() {
    let points: u64 = (0..40).map(|seed| enumerate(seed, 14, 1)).sum();
    println!("{points} crash points");
    assert!(points >= 5_000, "only {points} crash points were tried");
}

#[test]
fn many_crash_points_of_long_workloads_recover_to_a_prefix() {
    let points: u64 = (1000..1030).map(|seed| enumerate(seed, 80, 4)).sum();
    println!("{points} crash points");
    assert!(points >= 5_000, "only {points} crash points were tried");
}

/// As many crash points as `HEATFS_CRASH_POINTS` asks for, of workloads by seeds from `HEATFS_CRASH_SEED` on; a line for each seed, so that
/// a log of it can be kept and gone on with. Without these a few seeds that no other test has.
#[test]
fn a_campaign_of_crash_points_loses_nothing() {
    let number = |name: &str, default: u64| match std::env::var(name) {
        Ok(text) => text.parse().unwrap_or_else(|_| panic!("{name}={text} is no number")),
        Err(_) => default,
    };
    let (wanted, first) = (number("HEATFS_CRASH_POINTS", 500), number("HEATFS_CRASH_SEED", 10_000));
    let (mut points, mut seed) = (0, first);
    while points < wanted {
        // Short workloads at every operation, long ones at some of them.
        let (ops, step) = [(14, 1), (40, 3), (80, 4), (200, 11)][usize::try_from(seed % 4).expect("small")];
        points += enumerate(seed, ops, step);
        println!("seed {seed}: {points} crash points so far");
        seed += 1;
    }
}

/// Crashes in the middle of recovery, at each of its operations, and recovers from what that left.
fn check_recovery_of_recovery(ended: &Ended, ops: &[Op], survival: Survival, what: &str) -> u64 {
    let cut = ended.world.recover(survival);
    let mut points = 0;
    for at in 0.. {
        let world = cut.fork();
        world.crash_at(at);
        let opened = Harness::open(world.clone(), ended.ids.clone());
        if !world.crashed() {
            return points;
        }
        drop(opened);
        let again = Ended { world, ids: ended.ids.clone(), begun: ended.begun, acknowledged: ended.acknowledged };
        check_recovery(&again, ops, Survival::Seed(at), &format!("{what}, then at operation {at} of recovery"));
        points += 1;
    }
    points
}

/// A power cut during recovery is just another power cut.
#[test]
fn crashes_during_recovery_recover_too() {
    let mut points = 0;
    for seed in 200..212 {
        let (world, ids, ops) = prepared(seed, 40, true);
        let mut at = world.operations() + seed % 11;
        while let Some(ended) = run_until_crash(&world, &ids, &ops, at) {
            let survival = [Survival::None, Survival::All, Survival::Seed(at)][usize::try_from(at % 3).expect("small")];
            points += check_recovery_of_recovery(
                &ended,
                &ops,
                survival,
                &format!("seed {seed}, crash at operation {at}, {survival:?}"),
            );
            at += 23;
        }
    }
    println!("{points} crash points in recovery");
    assert!(points >= 500, "only {points} crash points were tried");
}

/// Home, log and tiers lose power each in its own way: one keeps all, one nothing, one some, in all combinations; writes tear at 512 B.
#[test]
fn devices_that_lose_different_things_recover() {
    let mut points = 0;
    for seed in 300..312 {
        let (world, ids, ops) = prepared(seed, 40, true);
        world.tear_sectors();
        let mut at = world.operations() + seed % 5;
        while let Some(ended) = run_until_crash(&world, &ids, &ops, at) {
            for luck in 0..4u64 {
                let fate = |name: &str| match (at + luck + name.len() as u64 * (1 + luck)) % 3 {
                    0 => Survival::None,
                    1 => Survival::All,
                    _ => Survival::Seed(at),
                };
                let recovered = ended.world.recover_each(fate);
                check_world(recovered, &ended, &ops, &format!("seed {seed}, crash at operation {at}, luck {luck}"));
                points += 1;
            }
            at += 5;
        }
    }
    println!("{points} crash points with separate fates");
    assert!(points >= 1000, "only {points} crash points were tried");
}

/// R2: the log goes round while it is full: what is recycled was needed by nobody, wherever the crash falls.
#[test]
fn crashes_under_log_pressure_recover() {
    let mut points = 0;
    for seed in 400..404 {
        let mut random = Random(seed);
        let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
        let (world, ids) = (harness.world.clone(), harness.ids.clone());
        drop(harness);
        let ops: Vec<Op> = (0..700)
            .map(|_| match random.op(false) {
                Op::Coalesce | Op::Checkpoint => Op::Sync { file: 0 },
                Op::Punch { file, offset, .. } | Op::Truncate { file, size: offset } if random.below(4) > 0 => {
                    Op::Write { file, offset, len: 8192 }
                }
                op => op,
            })
            .collect();
        let mut whole = Harness::open(world.fork(), ids.clone()).expect("opens");
        for (index, op) in ops.iter().enumerate() {
            whole.run(index, op).expect("runs");
        }
        let log = whole.volume().status().log;
        assert!(log.next_lsn > 2 * log.size_bytes, "the log went round only to {} of {}", log.next_lsn, log.size_bytes);
        let total = whole.world.operations();
        drop(whole);
        let mut at = total / 2 + seed % 7;
        while let Some(ended) = run_until_crash(&world, &ids, &ops, at) {
            check_recovery(
                &ended,
                &ops,
                Survival::Seed(at),
                &format!("seed {seed}, crash at operation {at} of {total}"),
            );
            points += 1;
            at += 7;
        }
    }
    println!("{points} crash points under log pressure");
    assert!(points >= 120, "only {points} crash points were tried");
}

/// R12, I2: a file is removed while the volume works; wherever the crash falls, the others are whole, the removed one is as it was
/// or gone, and freeing the orphans leaves nothing of it.
#[test]
fn crashes_around_a_removal_recover() {
    let mut points = 0;
    for seed in 500..512 {
        let (world, ids, ops) = prepared(seed, 24, false);
        for at in world.operations().. {
            let crashing = world.fork();
            crashing.crash_at(at);
            let removing = |heard: &std::sync::Arc<std::sync::atomic::AtomicBool>| -> heatfs::error::Result<bool> {
                let mut harness = Harness::open(crashing.clone(), ids.clone())?;
                let heard = heard.clone();
                harness.volume().on_gone(Box::new(move |_| heard.store(true, std::sync::atomic::Ordering::SeqCst)));
                for (index, op) in ops.iter().enumerate() {
                    harness.run(index, op)?;
                }
                harness.volume().sync_log()?;
                harness.volume().remove(ids[0])?;
                harness.volume().checkpoint()?;
                harness.volume().coalesce_all(&mut |_, _| {})?;
                harness.volume().checkpoint()?;
                Ok(true)
            };
            let heard = std::sync::Arc::default();
            let ended = removing(&heard);
            let gone = heard.load(std::sync::atomic::Ordering::SeqCst);
            for survival in [Survival::None, Survival::All, Survival::Seed(at)] {
                check_removal(
                    &crashing.recover(survival),
                    &ids,
                    gone,
                    &format!("seed {seed}, crash at operation {at}, {survival:?}"),
                );
                points += 1;
            }
            if ended.is_ok() && !crashing.crashed() {
                break;
            }
        }
    }
    println!("{points} crash points around removals");
    assert!(points >= 1000, "only {points} crash points were tried");
}

fn check_removal(world: &SimWorld, ids: &[FileId], gone: bool, what: &str) {
    let harness = Harness::open(world.clone(), ids.to_vec()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let volume = harness.volume();
    let limit = volume.meta().file_id_limit;
    let damage = |volume: &heatfs::volume::Volume| {
        let findings = volume.check(true).expect("the check runs");
        findings.into_iter().filter(|f| f.severity == heatfs::volume::Severity::Damage).collect::<Vec<_>>()
    };
    assert_eq!(damage(volume), vec![], "{what}");
    if gone {
        let known = ids[1..].iter().copied().collect();
        for orphan in volume.orphans(&known, limit) {
            volume.remove(orphan).expect("removes");
        }
        volume.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
        let left: Vec<_> = volume.check(true).expect("the check runs");
        assert_eq!(left, vec![], "{what}: something of the removed file is left");
        assert_eq!(volume.orphans(&known, limit), vec![], "{what}");
    }
}

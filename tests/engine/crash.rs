//! Crash at every device operation of a workload, with several choices of what survives; recover; compare with what was acknowledged.
//!
//! The promise: what is there after a crash is the state after some prefix of the operations, and the prefix contains every operation that a
//! completed sync covered.

use crate::harness::{FILES, Harness, Model, Op, Random};
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
    let mut acknowledged = 0;
    let mut last_op_of = [0; FILES];
    let mut model = Model::default();
    for (index, op) in ops.iter().enumerate() {
        let result = harness.run(index, op);
        let before = model.clone();
        model.apply(index, op);
        for file in 0..FILES {
            // An operation that changes nothing (an allocation within the file) leaves no record that a sync would wait for.
            if model.files[file] != before.files[file] {
                last_op_of[file] = index + 1;
            }
        }
        match (result, op) {
            (Ok(()), Op::Sync { file }) => acknowledged = acknowledged.max(last_op_of[*file]),
            (Ok(()), Op::Reopen { .. }) => acknowledged = index,
            (Ok(()), _) => {}
            (Err(_), _) if world.crashed() => {
                return Some(Ended { world, ids: ids.to_vec(), begun: index + 1, acknowledged });
            }
            (Err(error), _) => panic!("operation {index} {op:?} failed without a crash: {error}"),
        }
        if world.crashed() {
            return Some(Ended { world, ids: ids.to_vec(), begun: index + 1, acknowledged });
        }
    }
    None
}

fn check_recovery(ended: &Ended, ops: &[Op], survival: Survival, what: &str) {
    let recovered = ended.world.recover(survival);
    let harness = Harness::open(recovered, ended.ids.clone()).unwrap_or_else(|error| panic!("{what}: {error}"));
    let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut model = Model::default();
    let mut matches = ended.acknowledged == 0 && model == seen;
    for (index, op) in ops.iter().enumerate().take(ended.begun) {
        model.apply(index, op);
        matches |= index + 1 >= ended.acknowledged && model == seen;
    }
    assert!(matches, "{what}: contents are no prefix that holds the {} acknowledged of {} operations", ended.acknowledged, ended.begun);
    let findings = harness.volume().check(true).expect("the check runs");
    let damage: Vec<_> = findings.iter().filter(|f| f.severity == heatfs::volume::Severity::Damage).collect();
    assert!(damage.is_empty(), "{what}: {damage:?}");
}

/// Crashes at every `step`-th operation; returns how many crash points were tried.
fn enumerate(seed: u64, ops_count: usize, step: u64) -> u64 {
    let mut random = Random(seed);
    let ops: Vec<Op> = (0..ops_count).map(|_| random.op(true)).collect();
    let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
    harness.volume().checkpoint().expect("the first checkpoint");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop(harness);
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

//! Crash at every device operation of a workload on a volume that was made of a snapshot: reads, writes, hydration, checkpoints. What is there afterwards is
//! the state after some prefix of the operations that holds everything acknowledged, whatever is in the repository and whatever is not.

use crate::clones::{Memory, ids, make, snapshot};
use crate::harness::{Acknowledged, Harness, Model, Op, Random};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::volume::Severity;
use std::sync::Arc;

struct Start {
    world: SimWorld,
    memory: Arc<Memory>,
    base: Model,
    ops: Vec<Op>,
}

struct Ended {
    world: SimWorld,
    begun: usize,
    acknowledged: usize,
}

impl Start {
    fn new(seed: u64, count: usize) -> Start {
        let mut random = Random(seed);
        let (memory, base) = snapshot(seed);
        let world = SimWorld::new(seed);
        make(&world, &base).expect("a clone is made");
        Start { world, memory, base, ops: (0..count).map(|_| random.clone_op(true)).collect() }
    }

    /// None: it came to its end before the crash.
    fn run_until_crash(&self, crash_at: u64) -> Option<Ended> {
        let world = self.world.fork();
        world.crash_at(crash_at);
        let ended = |begun, acknowledged| Some(Ended { world: world.clone(), begun, acknowledged });
        let Ok(mut harness) = Harness::open_with(world.clone(), ids(), Some(self.memory.clone())) else {
            return ended(0, 0);
        };
        let mut acknowledged = Acknowledged::after(&self.base);
        for (index, op) in self.ops.iter().enumerate() {
            let result = harness.run(index, op);
            acknowledged.asked(index, op);
            match result {
                Ok(()) => acknowledged.succeeded(index, op),
                Err(error) if !world.crashed() => panic!("operation {index} {op:?} failed: {error}"),
                Err(_) => {}
            }
            if world.crashed() {
                return ended(index + 1, acknowledged.count);
            }
        }
        None
    }

    fn check(&self, recovered: SimWorld, ended: &Ended, what: &str) {
        let mut harness = Harness::open_with(recovered, ids(), Some(self.memory.clone()))
            .unwrap_or_else(|error| panic!("{what}: {error}"));
        let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
        let mut model = self.base.clone();
        let mut matches = ended.acknowledged == 0 && model == seen;
        for (index, op) in self.ops.iter().enumerate().take(ended.begun) {
            model.apply(index, op);
            matches |= index + 1 >= ended.acknowledged && model == seen;
        }
        assert!(matches, "{what}: no prefix that holds the {} acknowledged of {}", ended.acknowledged, ended.begun);
        let volume = harness.volume();
        volume.sweep_abandoned().unwrap_or_else(|error| panic!("{what}: {error}"));
        for id in volume.files_in_repository().expect("readable") {
            let file = volume.file(id).expect("known");
            while let Some(block) = volume.next_in_repository(&file, heatfs::units::BlockNo(0)) {
                let done = volume.hydrate(&file, block, 4).unwrap_or_else(|error| panic!("{what}: {error}"));
                if done.blocks == 0 {
                    // Its place waits for its punch.
                    volume.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
                }
            }
        }
        assert_eq!(volume.bytes_in_repository(), 0, "{what}");
        volume.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(!volume.needs_repository(), "{what}");
        harness.run(0, &Op::Reopen { clean: false }).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(harness.contents().expect("readable") == seen, "{what}: hydrating changed contents");
        let findings = harness.volume().check(true).expect("the check runs");
        let damage: Vec<_> = findings.iter().filter(|found| found.severity == Severity::Damage).collect();
        assert!(damage.is_empty(), "{what}: {damage:?}");
    }

    fn enumerate(&self, seed: u64, step: u64) -> u64 {
        let (mut points, mut at) = (0, self.world.operations() + seed % step);
        while let Some(ended) = self.run_until_crash(at) {
            for survival in [Survival::None, Survival::All, Survival::Seed(at)] {
                let what = format!("seed {seed}, crash at operation {at}, {survival:?}");
                self.check(ended.world.recover(survival), &ended, &what);
                points += 1;
            }
            at += step;
        }
        points
    }
}

#[test]
fn every_crash_point_of_small_workloads_on_a_clone_recovers_to_a_prefix() {
    let points: u64 = (0..16).map(|seed| Start::new(seed, 14).enumerate(seed, 1)).sum();
    println!("{points} crash points");
    assert!(points >= 2_000, "only {points} crash points were tried");
}

#[test]
fn crash_points_of_long_workloads_on_a_clone_recover_to_a_prefix() {
    let points: u64 = (100..112).map(|seed| Start::new(seed, 80).enumerate(seed, 7)).sum();
    println!("{points} crash points");
    assert!(points >= 1_000, "only {points} crash points were tried");
}

/// Home, log and tiers lose power each in its own way, and writes tear.
#[test]
fn devices_of_a_clone_that_lose_different_things_recover() {
    let mut points = 0;
    for seed in 300..312 {
        let start = Start::new(seed, 40);
        start.world.tear_sectors();
        let mut at = start.world.operations() + seed % 5;
        while let Some(ended) = start.run_until_crash(at) {
            let fate = |name: &str| match (at + name.len() as u64) % 3 {
                0 => Survival::None,
                1 => Survival::All,
                _ => Survival::Seed(at),
            };
            start.check(ended.world.recover_each(fate), &ended, &format!("seed {seed}, crash at operation {at}"));
            points += 1;
            at += 5;
        }
    }
    println!("{points} crash points with separate fates");
    assert!(points >= 300, "only {points} crash points were tried");
}

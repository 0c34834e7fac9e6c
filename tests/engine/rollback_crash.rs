//! Crash at every device operation of a rollback, of work on what it made, and of its confirmation or undoing. What is there afterwards is the volume as it was, or the
//! snapshot with some prefix of the operations that holds everything acknowledged; and as long as nothing is decided, both.

use crate::clones::{Memory, ids, snapshot};
use crate::harness::{Acknowledged, FILES, Harness, Model, Op, Random, options, tiers};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::error::Result;
use heatfs::units::{FileId, WallNs};
use heatfs::volume::{ClonedFile, Fate, Severity, SourceSnapshot, Volume};
use std::sync::Arc;

/// How far a run had come for certain when it was cut off.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
enum Stage {
    AsItWas,
    RolledBack,
    Deciding,
    Decided,
}

struct Start {
    world: SimWorld,
    /// What the volume is before.
    now: Model,
    old: Vec<FileId>,
    new: Vec<FileId>,
    memory: Arc<Memory>,
    snapshot: Model,
    ops: Vec<Op>,
    fate: Fate,
}

struct Ended {
    world: SimWorld,
    stage: Stage,
    begun: usize,
    acknowledged: usize,
}

impl Start {
    fn new(seed: u64, count: usize, fate: Fate) -> Start {
        let mut random = Random(seed);
        let (memory, snapshot) = snapshot(seed);
        let world = SimWorld::new(seed);
        let mut harness = Harness::new(world.clone()).expect("a volume is made");
        let mut now = Model::default();
        for index in 0..15 {
            let op = random.op(false);
            harness.run(index, &op).expect("it works");
            now.apply(index, &op);
        }
        harness.volume().shut_down().expect("it shuts down");
        let old = harness.ids.clone();
        drop(harness);
        let first = Volume::peek(&tiers(&world)[0]).expect("readable").file_id_limit;
        let new = (first..).map(FileId).take(FILES).collect();
        let ops = (0..count).map(|_| random.clone_op(true)).collect();
        Start { world, now, old, new, memory, snapshot, ops, fate }
    }

    fn roll_back(&self, world: &SimWorld) -> Result<()> {
        let file = |((content, id), source): ((&Vec<u8>, &FileId), FileId)| {
            let size_bytes = content.len() as u64;
            ClonedFile { file: *id, size_bytes, source, data: vec![(0, size_bytes)] }
        };
        let files: Vec<_> = self.snapshot.files.iter().zip(&self.new).zip(ids()).map(file).collect();
        Volume::roll_back(&tiers(world)[0], &files, "the snapshot", WallNs(7)).map(drop)
    }

    fn open(&self, world: &SimWorld, ids: &[FileId]) -> Result<Harness> {
        Harness::open_with(world.clone(), ids.to_vec(), Some(self.memory.clone()))
    }

    /// What a job does once it is decided; also with nothing but the devices.
    fn finish(&self, world: &SimWorld) -> Result<()> {
        let source = Some(self.memory.clone() as Arc<dyn SourceSnapshot>);
        let (volume, recovery) = Volume::open_with(tiers(world), options(), source)?;
        volume.drop_losing_root()?;
        if volume.rollback().is_some_and(|rollback| rollback.fate == Fate::Undone) || recovery.was_clean {
            volume.shut_down()?;
        } else {
            volume.shut_down_quickly()?;
        }
        drop(volume);
        Volume::end_rollback(&tiers(world))
    }

    /// None: it came to its end before the crash.
    fn run_until_crash(&self, crash_at: u64) -> Option<Ended> {
        let world = self.world.fork();
        world.crash_at(crash_at);
        let (mut stage, mut begun, mut acknowledged) = (Stage::AsItWas, 0, 0);
        match self.run(&world, &mut stage, &mut begun, &mut acknowledged) {
            Ok(()) if !world.crashed() => None,
            Err(error) if !world.crashed() => panic!("{stage:?} failed: {error}"),
            _ => Some(Ended { world, stage, begun, acknowledged }),
        }
    }

    fn run(&self, world: &SimWorld, stage: &mut Stage, begun: &mut usize, acknowledged: &mut usize) -> Result<()> {
        self.roll_back(world)?;
        *stage = Stage::RolledBack;
        let mut harness = self.open(world, &self.new)?;
        let mut covered = Acknowledged::after(&self.snapshot);
        for (index, op) in self.ops.iter().enumerate() {
            *begun = index + 1;
            let result = harness.run(index, op);
            covered.asked(index, op);
            result?;
            covered.succeeded(index, op);
            *acknowledged = covered.count;
        }
        // Every other volume was killed rather than stopped.
        if self.ops.len().is_multiple_of(2) {
            harness.volume().shut_down()?;
            *acknowledged = self.ops.len();
        }
        drop(harness);
        *stage = Stage::Deciding;
        Volume::decide_rollback(&tiers(world)[0], self.fate)?;
        *stage = Stage::Decided;
        self.finish(world)
    }

    fn is_prefix(&self, seen: &Model, ended: &Ended) -> bool {
        let mut model = self.snapshot.clone();
        let mut matches = ended.acknowledged == 0 && model == *seen;
        for (index, op) in self.ops.iter().enumerate().take(ended.begun) {
            model.apply(index, op);
            matches |= index + 1 >= ended.acknowledged && model == *seen;
        }
        matches
    }

    fn check(&self, recovered: &SimWorld, ended: &Ended, what: &str) {
        let peek = || Volume::peek(&tiers(recovered)[0]).unwrap_or_else(|error| panic!("{what}: {error}")).rollback;
        match (peek().map(|rollback| rollback.fate), ended.stage) {
            (None, Stage::AsItWas) => self.check_settled(recovered, ended, Fate::Undone, what),
            (Some(Fate::Open), Stage::AsItWas | Stage::RolledBack | Stage::Deciding) => {
                self.check_open(&recovered.fork(), ended, what);
                for fate in [Fate::Undone, Fate::Confirmed] {
                    let (world, what) = (recovered.fork(), format!("{what}, then {fate:?}"));
                    Volume::decide_rollback(&tiers(&world)[0], fate).unwrap_or_else(|error| panic!("{what}: {error}"));
                    self.finish(&world).unwrap_or_else(|error| panic!("{what}: {error}"));
                    self.check_settled(&world, ended, fate, &what);
                }
            }
            (Some(fate), Stage::Deciding | Stage::Decided) if fate == self.fate => {
                self.finish(recovered).unwrap_or_else(|error| panic!("{what}: {error}"));
                self.check_settled(recovered, ended, fate, what);
            }
            (None, Stage::Decided) => self.check_settled(recovered, ended, self.fate, what),
            (found, stage) => panic!("{what}: {found:?} after {stage:?}"),
        }
    }

    /// Both are there.
    fn check_open(&self, world: &SimWorld, ended: &Ended, what: &str) {
        let mut harness = self.open(world, &self.new).unwrap_or_else(|error| panic!("{what}: {error}"));
        let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(self.is_prefix(&seen, ended), "{what}: no prefix of {} from {}", ended.begun, ended.acknowledged);
        // A mount that finds no names of the old files frees them not.
        let limit = harness.volume().meta().file_id_limit;
        let known = self.new.iter().copied().collect();
        assert_eq!(harness.volume().orphans(&known, limit), vec![], "{what}");
        harness.volume().sweep_abandoned().expect("objects are readable");
        harness.volume().checkpoint().expect("it checkpoints");
        harness.ids.clone_from(&self.old);
        assert!(harness.contents().expect("readable") == self.now, "{what}: the volume before has changed");
    }

    /// One is there, and nothing of the other.
    fn check_settled(&self, world: &SimWorld, ended: &Ended, fate: Fate, what: &str) {
        let staying = if fate == Fate::Undone { &self.old } else { &self.new };
        let mut harness = self.open(world, staying).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(harness.volume().rollback(), None, "{what}");
        let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
        match fate {
            Fate::Undone => {
                assert!(seen == self.now, "{what}: the volume before has changed");
                assert!(!harness.volume().needs_repository(), "{what}");
            }
            _ => assert!(
                self.is_prefix(&seen, ended),
                "{what}: no prefix of {} from {}",
                ended.begun,
                ended.acknowledged
            ),
        }
        let limit = harness.volume().meta().file_id_limit;
        let known = staying.iter().copied().collect();
        assert_eq!(harness.volume().orphans(&known, limit), vec![], "{what}");
        assert!(harness.volume().issue_file_id().expect("issues") >= self.new[0], "{what}: ids are never issued again");
        harness.run(0, &Op::Reopen { clean: true }).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(harness.contents().expect("readable") == seen, "{what}");
        let findings = harness.volume().check(true).expect("the check runs");
        let damage: Vec<_> = findings.iter().filter(|found| found.severity == Severity::Damage).collect();
        assert!(damage.is_empty(), "{what}: {damage:?}");
    }

    fn enumerate(&self, seed: u64, step: u64) -> [u64; 4] {
        let (mut points, mut at) = ([0; 4], self.world.operations() + seed % step);
        while let Some(ended) = self.run_until_crash(at) {
            for survival in [Survival::None, Survival::All, Survival::Seed(at)] {
                let what = format!("seed {seed}, crash at operation {at}, {:?}, {survival:?}", ended.stage);
                self.check(&ended.world.recover(survival), &ended, &what);
                points[ended.stage as usize] += 1;
            }
            at += step;
        }
        points
    }
}

fn enumerate(fate: Fate, step: u64) -> [u64; 4] {
    let mut points = [0; 4];
    for seed in 0..3 {
        let count = 6 + usize::try_from(seed % 5).expect("small");
        for (sum, more) in points.iter_mut().zip(Start::new(seed, count, fate).enumerate(seed, step)) {
            *sum += more;
        }
    }
    println!("crash points by stage: {points:?}");
    points
}

#[test]
fn every_crash_point_of_a_rollback_and_its_confirmation_leaves_one_volume_whole() {
    let points = enumerate(Fate::Confirmed, 1);
    assert!(points.iter().all(|count| *count >= 100), "{points:?}");
}

#[test]
fn every_crash_point_of_a_rollback_and_its_undoing_leaves_one_volume_whole() {
    let points = enumerate(Fate::Undone, 1);
    assert!(points.iter().all(|count| *count >= 100), "{points:?}");
}

/// What cannot be right is refused, and changes nothing.
#[test]
fn a_volume_that_is_not_at_rest_or_has_two_roots_is_not_rolled_back() {
    let start = Start::new(1, 0, Fate::Undone);
    let fastest = &tiers(&start.world)[0];
    let refused = |outcome: Result<()>, words: &str| {
        let error = outcome.expect_err("refused").to_string();
        assert!(error.contains(words), "{error}");
    };
    refused(Volume::decide_rollback(fastest, Fate::Undone), "not rolled back");
    let issued = ClonedFile { file: start.old[0], size_bytes: 1, source: FileId(1), data: vec![(0, 1)] };
    refused(Volume::roll_back(fastest, &[issued], "x", WallNs(1)).map(drop), "issued before");
    drop(start.open(&start.world, &start.old).expect("it opens"));
    refused(start.roll_back(&start.world), "not shut down");
    start.open(&start.world, &start.old).expect("it opens").volume().shut_down().expect("it shuts down");
    let limit = Volume::peek(fastest).expect("readable").file_id_limit;
    let start = Start { new: (limit..).map(FileId).take(FILES).collect(), ..start };
    start.roll_back(&start.world).expect("it is rolled back");
    refused(start.roll_back(&start.world), "has not settled");
    refused(Volume::end_rollback(&tiers(&start.world)), "neither confirmed nor undone");
    Volume::decide_rollback(fastest, Fate::Confirmed).expect("it is decided");
    refused(Volume::decide_rollback(fastest, Fate::Undone), "decided already");
}

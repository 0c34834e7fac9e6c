//! Marks against the model: whatever happens to the volume, each pending mark reads as the volume was at its moment, and what is told of changes
//! holds every page that differs from a published parent.

use crate::harness::{BLOCK, FILES, Harness, Model, Op, Random, options, tiers};
use heatfs::device::sim::SimWorld;
use heatfs::units::FileId;
use heatfs::volume::{Mark, Volume};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use uuid::Uuid;

pub const PAGE: usize = 8192;
pub type Contents = BTreeMap<FileId, Vec<u8>>;

/// A mark and what the model said at its moment.
pub struct Marked {
    pub mark: Arc<Mark>,
    pub then: Contents,
    /// Files without a name that a crash has brought back: they may be listed.
    pub nameless: BTreeSet<FileId>,
}

impl Marked {
    pub fn new(mark: Arc<Mark>, then: Contents) -> Marked {
        Marked { mark, then, nameless: BTreeSet::new() }
    }
}

/// Contents by id, of those files that have any.
pub fn by_id(ids: &[FileId], model: &Model) -> Contents {
    let all = ids.iter().copied().zip(model.files.iter().cloned());
    all.filter(|(_, content)| !content.is_empty()).collect()
}

/// I6: the mark reads as the model was.
pub fn check_mark(volume: &Volume, marked: &Marked, what: &str) {
    volume.wait_for_mark(&marked.mark).expect("the mark becomes durable");
    let files = volume.files_at(&marked.mark).unwrap_or_else(|error| panic!("{what}: {error}"));
    let sizes: BTreeMap<FileId, u64> = files
        .iter()
        .filter(|at| at.size_bytes > 0 && !marked.nameless.contains(&at.file))
        .map(|at| (at.file, at.size_bytes))
        .collect();
    let expected: BTreeMap<FileId, u64> = marked.then.iter().map(|(&id, then)| (id, then.len() as u64)).collect();
    assert_eq!(sizes, expected, "{what}: files and sizes at mark {}", marked.mark.epoch);
    for (&id, then) in &marked.then {
        let mut buf = vec![0xee; then.len() + 50];
        let got = volume.read_at(&marked.mark, id, 0, &mut buf).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert_eq!(got, then.len(), "{what}: file {id} at mark {}", marked.mark.epoch);
        let differs = buf.iter().zip(then).position(|(a, b)| a != b);
        assert_eq!(differs, None, "{what}: file {id} at mark {}", marked.mark.epoch);
        check_data_ranges(volume, &marked.mark, id, then, what);
    }
}

/// What is called a hole is zeros.
fn check_data_ranges(volume: &Volume, mark: &Mark, id: FileId, then: &[u8], what: &str) {
    let mut at = 0;
    while let Some((start, end)) = volume.data_at(mark, id, at as u64).expect("ranges are known") {
        let (start, end) = (start as usize, end as usize);
        assert!(start >= at && start < end && end <= then.len(), "{what}: data from {start} to {end} of file {id}");
        assert!(then[at..start].iter().all(|byte| *byte == 0), "{what}: data in a hole before {start} of file {id}");
        at = end;
    }
    assert!(then[at.min(then.len())..].iter().all(|byte| *byte == 0), "{what}: data in the last hole of file {id}");
}

/// R16: every page that differs is told. `parent`: what the parent's files contained.
pub fn check_changes(volume: &Volume, marked: &Marked, parent: Uuid, before: &Contents, what: &str) {
    let changed = volume.changed_files(&marked.mark, parent).expect("changes are known").expect("the parent is known");
    for (id, then) in &marked.then {
        let empty = Vec::new();
        let before = before.get(id).unwrap_or(&empty);
        let pages = volume.changed_pages(&marked.mark, parent, *id).expect("known").expect("the parent is known");
        for page in 0..then.len().div_ceil(PAGE) {
            let of = |content: &[u8]| {
                let mut bytes = content.iter().skip(page * PAGE).take(PAGE).copied().collect::<Vec<u8>>();
                bytes.resize(PAGE, 0);
                bytes
            };
            let told = changed.contains(id) && pages.iter().any(|range| range.contains(&(page as u64)));
            assert!(told || of(then) == of(before), "{what}: page {page} of file {id} changed since {parent}");
        }
    }
}

/// A run of random operations with up to three marks pending.
pub struct Run {
    pub harness: Harness,
    pub model: Model,
    pub pending: Vec<Marked>,
    pub parents: BTreeMap<Uuid, Contents>,
    pub random: Random,
    removed: BTreeSet<FileId>,
    next_snapshot: u128,
}

impl Run {
    pub fn new(seed: u64) -> Run {
        let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
        Run::over(harness, seed)
    }

    pub fn over(harness: Harness, seed: u64) -> Run {
        let random = Random(seed.wrapping_mul(77));
        let (pending, parents, removed) = (Vec::new(), BTreeMap::new(), BTreeSet::new());
        Run { harness, model: Model::default(), pending, parents, random, removed, next_snapshot: 1 }
    }

    pub fn then(&self) -> Contents {
        by_id(&self.harness.ids, &self.model)
    }

    pub fn take_mark(&mut self) {
        let snapshot = Uuid::from_u128(self.next_snapshot);
        self.next_snapshot += 1;
        let mark = self.harness.volume().mark(snapshot).expect("a mark is taken");
        self.pending.push(Marked::new(mark, self.then()));
    }

    /// Ends one of the pending marks, half of them as published.
    pub fn end_mark(&mut self) {
        let nth = self.random.below(self.pending.len() as u64) as usize;
        let Marked { mark, then, .. } = self.pending.remove(nth);
        if self.random.below(2) == 0 {
            return self.harness.volume().release_mark(&mark);
        }
        self.harness.volume().wait_for_mark(&mark).expect("durable");
        let oldest = self.parents.keys().next().copied().filter(|_| self.random.below(3) > 0);
        self.harness.volume().publish_mark(&mark, oldest).expect("publishes");
        self.parents.insert(mark.snapshot, then);
        self.parents.retain(|parent, _| self.harness.volume().knows_parent(*parent));
    }

    /// The last name of a file goes, and another file comes.
    pub fn remove(&mut self, n: usize) {
        let volume = self.harness.volume().clone();
        volume.remove(self.harness.ids[n]).expect("removes");
        self.removed.insert(self.harness.ids[n]);
        self.harness.ids[n] = volume.issue_file_id().expect("an id");
        self.model.files[n].clear();
    }

    /// Marks that were waited for outlive their mount.
    pub fn reopen(&mut self, index: usize, clean: bool) {
        for marked in &self.pending {
            self.harness.volume().wait_for_mark(&marked.mark).expect("durable");
        }
        self.harness.run(index, &Op::Reopen { clean }).expect("reopens");
        let resumed = self.harness.volume().pending_marks();
        assert_eq!(resumed.len(), self.pending.len(), "marks after a mount");
        for (marked, mark) in self.pending.iter_mut().zip(resumed) {
            assert_eq!(mark.snapshot, marked.mark.snapshot);
            marked.mark = mark;
            // Those that were removed before the mark, that is.
            marked.nameless.extend(self.removed.iter().filter(|id| !marked.then.contains_key(id)));
        }
        // What was removed shortly before the stop is back, without a name.
        let volume = self.harness.volume();
        let known = self.harness.ids.iter().copied().collect();
        for orphan in volume.orphans(&known, volume.meta().file_id_limit) {
            volume.remove(orphan).expect("removes");
        }
        let forgotten = self.parents.keys().find(|parent| !self.harness.volume().knows_parent(**parent));
        assert_eq!(forgotten, None, "a published parent is forgotten by a mount");
    }

    pub fn step(&mut self, index: usize) {
        match self.random.below(40) {
            0..=2 if self.pending.len() < 3 => self.take_mark(),
            3 | 4 if !self.pending.is_empty() => self.end_mark(),
            5 => {
                let n = self.random.below(FILES as u64) as usize;
                self.remove(n);
            }
            6 if self.random.below(3) == 0 => {
                let clean = self.random.below(2) == 0;
                self.reopen(index, clean);
            }
            _ => {
                let op = self.random.op(false);
                self.harness.run(index, &op).unwrap_or_else(|error| panic!("operation {index} {op:?}: {error}"));
                self.model.apply(index, &op);
            }
        }
    }

    pub fn check(&self, what: &str) {
        let volume = self.harness.volume();
        assert!(self.harness.contents().expect("readable") == self.model, "{what}: contents are not the model's");
        for marked in &self.pending {
            assert_eq!(marked.mark.failure(), None, "{what}");
            check_mark(volume, marked, what);
            for (parent, before) in self.parents.iter().filter(|(parent, _)| **parent < marked.mark.snapshot) {
                if volume.knows_parent(*parent) {
                    check_changes(volume, marked, *parent, before, what);
                }
            }
        }
    }

    /// With all marks released nothing is kept for them any more.
    pub fn finish(&mut self, what: &str) {
        for marked in std::mem::take(&mut self.pending) {
            self.harness.volume().release_mark(&marked.mark);
        }
        let volume = self.harness.volume();
        volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
        volume.checkpoint().expect("checkpoints");
        let marks = volume.status().marks;
        let kept =
            (marks.pending, marks.kept_files, marks.pinned_log_bytes, marks.staged_bytes, marks.staging_used_bytes);
        assert_eq!(kept, (0, 0, 0, 0, 0), "{what}");
        assert_eq!(volume.status().log.live_bytes, 0, "{what}: something still holds the log");
        assert!(self.harness.contents().expect("readable") == self.model, "{what}");
        assert_eq!(volume.check(true).expect("the check runs"), vec![], "{what}");
    }
}

/// I6, I4, R15, R16: random operations, moves, coalescing and checkpoints, with marks pending.
#[test]
fn pending_marks_agree_with_the_model_of_their_moment() {
    let (mut marks, mut staged) = (0, 0);
    for seed in 0..120 {
        let result = std::panic::catch_unwind(|| {
            let mut run = Run::new(seed);
            let mut staged = 0;
            for index in 0..150 {
                run.step(index);
                if run.random.below(3) == 0 {
                    run.check(&format!("after operation {index}"));
                }
                staged += u64::from(run.harness.volume().status().marks.staged_bytes > 0);
            }
            run.finish("at the end");
            (run.next_snapshot, staged)
        });
        let (taken, staging) = result.unwrap_or_else(|_| panic!("seed {seed} fails"));
        marks += taken;
        staged += staging;
    }
    assert!(marks > 500 && staged > 300, "{marks} marks, {staged} moments with staged bytes: too few to show anything");
}

/// R15: with a log that goes round while marks are pending, what they need of it moves to staging, and no mark is lost.
#[test]
fn marks_outlive_their_log_segments() {
    for seed in 500..512 {
        let mut run = Run::new(seed);
        let mut index = 0;
        for round in 0..3 {
            run.take_mark();
            let until = run.harness.volume().status().log.next_lsn + 3 * options().segment_bytes * 6;
            while run.harness.volume().status().log.next_lsn < until {
                let file = run.random.below(FILES as u64) as usize;
                let op = match run.random.below(30) {
                    0 => Op::Truncate { file, size: run.random.below(200_000) },
                    1 => Op::Punch { file, offset: run.random.below(200_000), len: 20_000 },
                    2 => Op::Move { file, block: run.random.below(13), count: 2, to: (seed % 3) as u8 },
                    _ => Op::Write { file, offset: run.random.below(24) * 8192, len: 8192 },
                };
                run.harness.run(index, &op).unwrap_or_else(|error| panic!("{op:?}: {error}"));
                run.model.apply(index, &op);
                index += 1;
            }
            run.check(&format!("seed {seed}, round {round}"));
        }
        let marks = run.harness.volume().status().marks;
        assert!(marks.staged_bytes > 0 && marks.failed == 0, "{marks:?}");
        while !run.pending.is_empty() {
            run.end_mark();
            run.check(&format!("seed {seed}, with {} marks", run.pending.len()));
        }
        run.finish(&format!("seed {seed}"));
    }
}

/// Also in small blocks, where a block is a page.
#[test]
fn marks_on_a_volume_of_small_blocks() {
    let world = SimWorld::new(3);
    let small = heatfs::volume::Options { block_bytes: 8192, ..options() };
    Volume::create(&tiers(&world), &small, Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(tiers(&world), small).expect("opens");
    let ids = (0..FILES).map(|_| volume.issue_file_id().expect("an id")).collect();
    drop(volume);
    let mut run = Run::over(Harness::open(world, ids).expect("opens"), 3);
    assert_eq!(run.harness.volume().block_bytes(), 8192);
    for index in 0..1500 {
        run.step(index);
        if index % 10 == 0 {
            run.check(&format!("after operation {index}"));
        }
    }
    run.finish("at the end");
    assert_ne!(BLOCK, 8192);
}

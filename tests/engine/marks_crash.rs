//! Crashes with marks pending: the volume loses nothing by them, a published parent stays one, and what is told of changes since holds every page that
//! really changed, whatever survived.

use crate::harness::{FILES, Harness, Model, Op, Random};
use crate::marks::{Contents, Marked, by_id, check_changes, check_mark};
use heatfs::device::Device;
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::units::FileId;
use heatfs::volume::Mark;
use std::collections::{BTreeMap, BTreeSet};
use uuid::Uuid;

#[derive(Clone, Copy, Debug)]
enum Step {
    Op(Op),
    Mark,
    Wait,
    Publish,
    Release,
}

/// How far a run came before its crash.
struct Ended {
    world: SimWorld,
    begun: usize,
    acknowledged: usize,
    /// Contents at every mark that was taken, and which of them were acknowledged as published.
    marked: BTreeMap<Uuid, Contents>,
    published: Vec<Uuid>,
    /// Marks that were waited for and not ended.
    waited: BTreeSet<Uuid>,
    /// Of these, marks whose image is kept.
    kept: BTreeSet<Uuid>,
    /// Marks whose end was acknowledged.
    ended: BTreeSet<Uuid>,
}

/// What is kept beside a mark: longer than a page, and of this mark alone.
fn image_of(mark: &Mark) -> Vec<u8> {
    mark.snapshot.as_bytes().repeat(300)
}

fn steps(seed: u64, count: usize) -> Vec<Step> {
    let mut random = Random(seed);
    (0..count)
        .map(|_| match random.below(12) {
            0 | 1 => Step::Mark,
            2 => Step::Publish,
            3 if random.below(2) == 0 => Step::Release,
            4 => Step::Wait,
            _ => Step::Op(random.op(false)),
        })
        .collect()
}

fn take(harness: &Harness, step: usize, pending: &mut Vec<Marked>, then: Contents) -> heatfs::error::Result<()> {
    let mark = harness.volume().mark(Uuid::from_u128(step as u128))?;
    pending.push(Marked::new(mark, then));
    Ok(())
}

/// None: the whole workload ran without reaching the crash.
fn run_until_crash(world: &SimWorld, ids: &[FileId], steps: &[Step], crash_at: u64) -> Option<Ended> {
    let world = world.fork();
    world.crash_at(crash_at);
    let (marked, published) = (BTreeMap::new(), Vec::new());
    let (waited, kept, released) = (BTreeSet::new(), BTreeSet::new(), BTreeSet::new());
    let mut ended =
        Ended { world: world.clone(), begun: 0, acknowledged: 0, marked, published, waited, kept, ended: released };
    let Ok(mut harness) = Harness::open(world.clone(), ids.to_vec()) else { return Some(ended) };
    let (mut model, mut pending) = (Model::default(), Vec::new());
    for (index, step) in steps.iter().enumerate() {
        ended.begun = index + 1;
        let result = match step {
            Step::Op(op) => {
                let result = harness.run(index, op);
                model.apply(index, op);
                result
            }
            Step::Mark if pending.len() < 3 => {
                ended.marked.insert(Uuid::from_u128(index as u128), by_id(ids, &model));
                take(&harness, index, &mut pending, by_id(ids, &model))
            }
            Step::Publish if !pending.is_empty() => {
                let Marked { mark, .. } = pending.remove(0);
                ended.waited.remove(&mark.snapshot);
                ended.kept.remove(&mark.snapshot);
                let volume = harness.volume();
                let result = volume.wait_for_mark(&mark).and_then(|()| volume.publish_mark(&mark, None));
                if result.is_ok() {
                    // A mark that is durable makes all before it durable.
                    ended.acknowledged = ended.acknowledged.max(mark.snapshot.as_u128() as usize);
                    ended.published.push(mark.snapshot);
                    ended.ended.insert(mark.snapshot);
                }
                result
            }
            Step::Release if !pending.is_empty() => {
                let Marked { mark, .. } = pending.remove(0);
                ended.waited.remove(&mark.snapshot);
                ended.kept.remove(&mark.snapshot);
                harness.volume().release_mark(&mark);
                ended.ended.extend((!world.crashed()).then_some(mark.snapshot));
                Ok(())
            }
            Step::Wait if !pending.is_empty() => {
                let mark = &pending[pending.len() - 1].mark;
                let result = harness.volume().wait_for_mark(mark);
                let kept = result.is_ok().then(|| harness.volume().keep_image(mark, &image_of(mark)));
                if result.is_ok() {
                    ended.waited.insert(mark.snapshot);
                }
                if matches!(kept, Some(Ok(()))) {
                    ended.kept.insert(mark.snapshot);
                }
                result.and(kept.unwrap_or(Ok(())))
            }
            Step::Mark | Step::Wait | Step::Publish | Step::Release => Ok(()),
        };
        if world.crashed() {
            return Some(ended);
        }
        result.unwrap_or_else(|error| panic!("step {index} {step:?} failed without a crash: {error}"));
    }
    None
}

fn check_recovery(ended: &Ended, ids: &[FileId], steps: &[Step], survival: Survival, what: &str) {
    let harness = Harness::open(ended.world.recover(survival), ids.to_vec()).unwrap_or_else(|e| panic!("{what}: {e}"));
    let volume = harness.volume();
    let seen = harness.contents().unwrap_or_else(|error| panic!("{what}: {error}"));
    let mut model = Model::default();
    let mut matches = ended.acknowledged == 0 && model == seen;
    for (index, step) in steps.iter().enumerate().take(ended.begun) {
        if let Step::Op(op) = step {
            model.apply(index, op);
        }
        matches |= index + 1 >= ended.acknowledged && model == seen;
    }
    assert!(matches, "{what}: contents are no prefix of what was written");
    // I4: marks that were waited for are pending as before, and read as they did.
    let resumed = volume.pending_marks();
    for snapshot in &ended.waited {
        assert!(resumed.iter().any(|mark| mark.snapshot == *snapshot), "{what}: {snapshot} is not pending any more");
    }
    for mark in resumed {
        assert!(!ended.ended.contains(&mark.snapshot), "{what}: {} is pending again", mark.snapshot);
        let image = volume.image(&mark).unwrap_or_else(|error| panic!("{what}: {error}"));
        assert!(image.is_some() || !ended.kept.contains(&mark.snapshot), "{what}: an image is lost");
        assert!(image.is_none_or(|image| image == image_of(&mark)), "{what}: an image is not what was kept");
        let then = ended.marked[&mark.snapshot].clone();
        let marked = Marked::new(mark, then);
        check_mark(volume, &marked, what);
    }
    // Whoever published a later one just before the crash may have sent it away.
    let newest = ended.published.iter().max();
    let known = |parent: &Uuid| ended.marked.range(*parent..).any(|(later, _)| volume.knows_parent(*later));
    assert!(newest.is_none_or(known), "{what}: a published parent is forgotten");
    let mark = volume.mark(Uuid::from_u128(1 << 100)).unwrap_or_else(|error| panic!("{what}: {error}"));
    let marked = Marked::new(mark, by_id(ids, &seen));
    check_mark(volume, &marked, what);
    for (parent, before) in ended.marked.iter().filter(|(parent, _)| volume.knows_parent(**parent)) {
        check_changes(volume, &marked, *parent, before, what);
    }
    volume.coalesce_all(&mut |_, _| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    for mark in volume.pending_marks() {
        let then = ended.marked.get(&mark.snapshot).unwrap_or(&marked.then).clone();
        check_mark(volume, &Marked::new(mark.clone(), then), what);
        volume.release_mark(&mark);
    }
    volume.sweep_abandoned().unwrap_or_else(|error| panic!("{what}: {error}"));
    volume.coalesce_all(&mut |_, _| {}).unwrap_or_else(|error| panic!("{what}: {error}"));
    volume.checkpoint().unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(harness.contents().expect("readable") == seen, "{what}: settling changed contents");
    let staging = harness.world.device("nvme").list("staging").unwrap_or_default();
    assert!(!staging.iter().any(|name| name.ends_with(".image")), "{what}: {staging:?}");
    assert_eq!(volume.check(true).expect("the check runs"), vec![], "{what}");
}

/// Crashes at every `step`-th operation.
fn enumerate(seed: u64, count: usize, step: u64) -> (u64, u64) {
    let steps = steps(seed, count);
    let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
    harness.volume().checkpoint().expect("the first checkpoint");
    let (world, ids) = (harness.world.clone(), harness.ids.clone());
    drop(harness);
    assert_eq!(ids.len(), FILES);
    let (mut points, mut with_parent) = (0, 0);
    let mut at = world.operations() + seed % step;
    while let Some(ended) = run_until_crash(&world, &ids, &steps, at) {
        for survival in [Survival::None, Survival::All, Survival::Seed(at)] {
            let what = format!("seed {seed}, crash at operation {at}, {survival:?}");
            check_recovery(&ended, &ids, &steps, survival, &what);
            points += 1;
            with_parent += u64::from(!ended.published.is_empty());
        }
        at += step;
    }
    (points, with_parent)
}

#[test]
fn every_crash_point_with_marks_recovers_and_knows_its_changes() {
    let (mut points, mut with_parent) = (0, 0);
    for seed in 0..40 {
        let (all, parents) = enumerate(seed, 20, 1);
        (points, with_parent) = (points + all, with_parent + parents);
    }
    println!("{points} crash points, {with_parent} with a parent");
    assert!(points >= 5_000 && with_parent >= 800, "only {points} crash points, {with_parent} with a parent");
}

#[test]
fn crash_points_of_long_workloads_with_marks_recover() {
    let (mut points, mut with_parent) = (0, 0);
    for seed in 1000..1016 {
        let (all, parents) = enumerate(seed, 90, 7);
        (points, with_parent) = (points + all, with_parent + parents);
    }
    println!("{points} crash points, {with_parent} with a parent");
    assert!(points >= 1_000 && with_parent >= 800, "only {points} crash points, {with_parent} with a parent");
}

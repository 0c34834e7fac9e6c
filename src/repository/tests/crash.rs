//! A crash at every operation of the disk, with several choices of what survives.

use super::capture::{change, random_model};
use super::lab::{Model, Random, check, new_repository, options, repository_on, take};
use super::prune::{assert_index_names_no_deleted_pack, settle};
use crate::device::sim::{SimWorld, Survival};
use crate::error::Error;
use crate::repository::{PruneOptions, Repository, SnapshotId};
use std::collections::BTreeMap;

/// Snapshots that are known to be complete, by name.
pub type Known = BTreeMap<SnapshotId, Model>;

/// Every snapshot that is listed must be whole: one of those acknowledged, or the one that was being made.
pub fn check_all(repository: &Repository, known: &Known, pending: Option<&Model>, what: &str) -> usize {
    let roots = repository.snapshots().unwrap_or_else(|e| panic!("{what}: {e}"));
    for root in &roots {
        let snapshot = repository.snapshot(root.id).unwrap_or_else(|e| panic!("{what}: {e}"));
        let model = known.get(&root.id).or(pending).unwrap_or_else(|| panic!("{what}: an unknown snapshot"));
        check(&snapshot, model).unwrap_or_else(|e| panic!("{what}: snapshot {}: {e}", root.id));
    }
    roots.len()
}

pub fn survivals(at: u64) -> [Survival; 3] {
    [Survival::None, Survival::All, Survival::Seed(at)]
}

#[test]
fn making_a_repository_can_be_interrupted_anywhere() {
    for at in 0.. {
        let world = SimWorld::new(at);
        world.crash_at(at);
        let made = new_repository(world.device("repository"));
        if !world.crashed() {
            made.expect("made");
            assert!(at > 20, "only {at} operations");
            return;
        }
        for survival in survivals(at) {
            let device = world.recover(survival).device("repository");
            match Repository::open(device.clone(), None) {
                Ok(_) => {}
                Err(Error::NotFound(_)) => drop(new_repository(device).expect("made again")),
                Err(error) => panic!("crash at {at}, {survival:?}: {error}"),
            }
        }
    }
}

/// A repository with a few snapshots of a volume, and the volume with its next changes.
pub fn prepared(seed: u64, snapshots: i64) -> (SimWorld, Known, Option<SnapshotId>, Model) {
    let mut random = Random(seed);
    let world = SimWorld::new(seed);
    let repository = repository_on(&world);
    let mut model = random_model(&mut random);
    let (mut known, mut parent) = (Known::new(), None);
    for number in 0..snapshots {
        let root = take(&repository, &model, parent, number).expect("taken");
        parent = Some(root.id);
        model = model.settled();
        known.insert(root.id, model.clone());
        change(&mut model, &mut random);
    }
    (world, known, parent, model)
}

#[test]
fn a_crash_at_every_operation_of_a_capture_leaves_a_snapshot_or_nothing() {
    let mut points = 0;
    for seed in 0..60 {
        let (world, known, parent, model) = prepared(seed, 2);
        for at in 0.. {
            let world = world.fork();
            world.crash_at(world.operations() + at);
            let repository = Repository::open(world.device("repository"), None).expect("opens");
            let taken = take(&repository, &model, parent, 9);
            let crashed = world.crashed();
            assert!(crashed || taken.is_ok(), "seed {seed}: {:?}", taken.err());
            for survival in survivals(at) {
                let what = format!("seed {seed}, crash at {at}, {survival:?}");
                let world = world.recover(survival);
                let repository = Repository::open(world.device("repository"), None).expect("opens");
                let settled = model.settled();
                let count = check_all(&repository, &known, Some(&settled), &what);
                assert!(taken.is_err() || count == known.len() + 1, "{what}: an acknowledged snapshot is gone");
                assert!(count >= known.len(), "{what}: an older snapshot is gone");
                // What is left behind is in nobody's way.
                let again = take(&repository, &model, parent, 10).unwrap_or_else(|e| panic!("{what}: {e}"));
                check(&repository.snapshot(again.id).expect("there"), &settled)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                points += 1;
            }
            if !crashed {
                break;
            }
        }
    }
    println!("{points} crash points");
    assert!(points >= 4000, "only {points} crash points");
}

#[test]
fn a_crash_at_every_operation_of_a_prune_loses_nothing() {
    let mut points = 0;
    for seed in 0..14 {
        let (world, mut known, parent, model) = prepared(seed + 100, 5);
        {
            // Every second snapshot goes; one capture has died.
            let repository = Repository::open(world.device("repository"), None).expect("opens");
            let doomed: Vec<SnapshotId> = known.keys().copied().step_by(2).filter(|id| Some(*id) != parent).collect();
            for id in doomed {
                repository.delete(id).expect("deleted");
                known.remove(&id);
            }
            let writer = repository.begin(options(parent)).expect("begun");
            writer.store(&Random(seed).page()).expect("stored");
            writer.flush().expect("flushed");
            std::mem::forget(writer);
        }
        let options = PruneOptions { give_up_after: 1, live_percent_min: 90, ..PruneOptions::default() };
        for at in 0.. {
            let world = world.fork();
            world.crash_at(world.operations() + at);
            let repository = Repository::open(world.device("repository"), None).expect("opens");
            let pruned = repository.prune(&options).and_then(|_| repository.prune(&options));
            let crashed = world.crashed();
            assert!(crashed || pruned.is_ok(), "seed {seed}: {:?}", pruned.err());
            for survival in survivals(at) {
                let what = format!("seed {seed}, crash at {at}, {survival:?}");
                let world = world.recover(survival);
                let repository = Repository::open(world.device("repository"), None).expect("opens");
                assert_eq!(check_all(&repository, &known, None, &what), known.len(), "{what}");
                assert_index_names_no_deleted_pack(&repository, &what);
                // Another capture, the next prune, and all is still there; and the garbage is gone.
                let root = take(&repository, &model, parent, 10).unwrap_or_else(|e| panic!("{what}: {e}"));
                settle(&repository, &options).unwrap_or_else(|e| panic!("{what}: {e}"));
                let settled = model.settled();
                repository.forget();
                assert_eq!(check_all(&repository, &known, Some(&settled), &what), known.len() + 1, "{what}");
                check(&repository.snapshot(root.id).expect("there"), &settled)
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                points += 1;
            }
            if !crashed {
                break;
            }
        }
    }
    println!("{points} crash points");
    assert!(points >= 4000, "only {points} crash points");
}

/// A power cut, a prune that is cut off as well, and only then one that ends.
#[test]
fn crashes_of_resumed_prunes_lose_nothing() {
    let (world, mut known, parent, _) = prepared(300, 4);
    let repository = Repository::open(world.device("repository"), None).expect("opens");
    let first = *known.keys().next().expect("there are some");
    assert_ne!(Some(first), parent);
    repository.delete(first).expect("deleted");
    known.remove(&first);
    let options = PruneOptions { live_percent_min: 100, ..PruneOptions::default() };
    let mut points = 0;
    for at in (0..).step_by(3) {
        let world = world.fork();
        world.crash_at(world.operations() + at);
        let pruned = Repository::open(world.device("repository"), None).expect("opens").prune(&options);
        if pruned.is_ok() {
            break;
        }
        let cut = world.recover(Survival::Seed(at));
        for again in (0..).step_by(2) {
            let world = cut.fork();
            world.crash_at(world.operations() + again);
            let pruned = Repository::open(world.device("repository"), None).expect("opens").prune(&options);
            let world = world.recover(Survival::Seed(again));
            let repository = Repository::open(world.device("repository"), None).expect("opens");
            let what = format!("crash at {at}, then at {again}");
            assert_eq!(check_all(&repository, &known, None, &what), known.len(), "{what}");
            repository.prune(&options).unwrap_or_else(|e| panic!("{what}: {e}"));
            repository.forget();
            assert_eq!(check_all(&repository, &known, None, &what), known.len(), "{what}");
            points += 1;
            if pruned.is_ok() {
                break;
            }
        }
    }
    println!("{points} crash points");
    assert!(points >= 300, "only {points} crash points");
}

#[test]
fn a_deletion_that_was_cut_off_is_finished_or_taken_back() {
    let (world, known, _, _) = prepared(400, 3);
    let doomed = *known.keys().next().expect("there are some");
    for at in 0.. {
        let world = world.fork();
        world.crash_at(world.operations() + at);
        let deleted = Repository::open(world.device("repository"), None).expect("opens").delete(doomed);
        for survival in survivals(at) {
            let world = world.recover(survival);
            let repository = Repository::open(world.device("repository"), None).expect("opens");
            repository.prune(&PruneOptions::default()).expect("pruned");
            let left = check_all(&repository, &known, None, "after the prune");
            assert!(left + 1 >= known.len() && (deleted.is_err() || left < known.len()), "crash at {at}");
        }
        if deleted.is_ok() {
            return;
        }
    }
}

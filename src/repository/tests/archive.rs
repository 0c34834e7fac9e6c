//! Cold packs in another directory: found there, missed when it is gone, never lost on the way.

use super::crash::{Known, check_all, survivals};
use super::lab::{Model, PAGE, Random, check, repository_on, take};
use super::prune::{assert_index_names_no_deleted_pack, settle};
use crate::device::sim::SimWorld;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::repository::index::list_packs;
use crate::repository::{ArchiveOptions, ArchiveReport, PruneOptions, Repository, SnapshotId, VerifyOptions};
use crate::units::WallNs;
use std::io;
use std::sync::Arc;

const PATH: &str = "/archive";

/// A repository with snapshots that share little, the latest of them, and the volume with its next changes.
fn aged(seed: u64, snapshots: i64) -> (SimWorld, Known, Option<SnapshotId>, Model) {
    let (mut random, world) = (Random(seed), SimWorld::new(seed));
    let repository = repository_on(&world);
    let (mut model, mut known, mut parent) = (Model::default(), Known::new(), None);
    for number in 0..=snapshots {
        for file in 1..4 {
            for page in 0..6 + random.below(6) {
                model.write(file, page * PAGE, &random.page());
            }
        }
        // This one stays as it is.
        if number == 0 {
            model.write(9, 0, &random.page());
        }
        if number < snapshots {
            let root = take(&repository, &model, parent, number).expect("taken");
            parent = Some(root.id);
            model = model.settled();
            known.insert(root.id, model.clone());
        }
    }
    (world, known, parent, model)
}

fn open(world: &SimWorld) -> Repository {
    Repository::open_with(world.device("repository"), None, &|_| Ok(world.device("archive") as Arc<dyn Device>))
        .expect("opens")
}

fn open_without(world: &SimWorld) -> Repository {
    Repository::open_with(world.device("repository"), None, &|_| Err(io::ErrorKind::NotFound.into())).expect("opens")
}

/// Everything that only snapshots before the `before`-th use.
fn archive(repository: &Repository, world: &SimWorld, before: i64, dry_run: bool) -> Result<ArchiveReport> {
    let options = ArchiveOptions {
        archive: world.device("archive"),
        path: PATH.to_owned(),
        before: WallNs(before * 1_000_000_000),
        dry_run,
    };
    repository.archive(&options, &mut |_, _| {})
}

fn packs(world: &SimWorld, device: &str) -> usize {
    list_packs(world.device(device).as_ref()).map_or(0, |packs| packs.len())
}

#[test]
fn cold_packs_go_and_are_read_from_where_they_are() {
    let (world, known, parent, model) = aged(7, 5);
    let repository = open(&world);
    let before = packs(&world, "repository");
    let would = archive(&repository, &world, 4, true).expect("told");
    assert_eq!((packs(&world, "repository"), packs(&world, "archive")), (before, 0), "a dry run changes nothing");
    let report = archive(&repository, &world, 4, false).expect("archived");
    assert!(report.packs > 0 && report.damaged.is_empty(), "{report:?}");
    assert_eq!((would.packs, would.bytes), (report.packs, report.bytes));
    assert_eq!(packs(&world, "archive") as u64, report.packs);
    assert_eq!(packs(&world, "repository") as u64, before as u64 - report.packs);
    assert_eq!(archive(&repository, &world, 4, false).expect("nothing is left").packs, 0);
    let stats = repository.stats().expect("counted");
    assert_eq!((stats.archived_packs, stats.archived_bytes, stats.packs), (report.packs, report.bytes, before as u64));

    let repository = open(&world);
    assert_eq!(check_all(&repository, &known, None, "from both"), known.len());
    assert_eq!(repository.verify(&VerifyOptions::full(WallNs(1)), &mut |_, _| {}).expect("verified").damage.len(), 0);
    let root = take(&repository, &model, parent, 9).expect("snapshots go on");
    check(&repository.snapshot(root.id).expect("there"), &model.settled()).expect("whole");
    // Neither is anything brought back by a prune, nor is it in its way.
    let eager = PruneOptions { live_percent_min: 100, ..PruneOptions::default() };
    settle(&repository, &eager).expect("pruned");
    assert_eq!(packs(&world, "archive") as u64, report.packs);
    for id in known.keys().filter(|id| Some(**id) != parent) {
        repository.delete(*id).expect("deleted");
    }
    settle(&repository, &eager).expect("pruned");
    assert!(packs(&world, "archive") < usize::try_from(report.packs).expect("few"), "what nobody uses goes there, too");
    assert_index_names_no_deleted_pack(&repository, "after the prune");
    repository.forget();
    check(&repository.snapshot(root.id).expect("there"), &model.settled()).expect("whole");
}

#[test]
fn an_archive_that_is_gone_is_missed_not_taken_for_empty() {
    let (world, known, parent, _) = aged(8, 5);
    archive(&open(&world), &world, 4, false).expect("archived");
    let repository = open_without(&world);
    assert_eq!(repository.archive_path().as_deref(), Some(PATH));
    assert_eq!(repository.snapshots().expect("listed").len(), known.len());
    let newest = parent.expect("there are some");
    check(&repository.snapshot(newest).expect("there"), &known[&newest]).expect("the newest needs no archive");
    let old = known.iter().filter(|(id, _)| **id != newest);
    let said: Vec<String> =
        old.filter_map(|(id, model)| check(&repository.snapshot(*id).expect("there"), model).err()).collect();
    assert!(!said.is_empty(), "nothing that old snapshots need went");
    let said = said.concat();
    assert!(said.contains("archive at /archive"), "{said}");
    let wants_it = |outcome: Result<()>, what: &str| match outcome {
        Err(Error::NotFound(why)) => assert!(why.contains(PATH) && why.contains("--to"), "{what}: {why}"),
        other => panic!("{what}: {other:?}"),
    };
    wants_it(repository.prune(&PruneOptions::default()).map(drop), "prune");
    wants_it(repository.plan_prune(&PruneOptions::default(), &[]).map(drop), "plan");
    wants_it(repository.verify(&VerifyOptions::full(WallNs(1)), &mut |_, _| {}).map(drop), "verify");
    let elsewhere = SimWorld::new(9);
    wants_it(archive(&repository, &elsewhere, 4, false).map(drop), "another directory, which is empty");
    let note = world.device("repository").open("archive", OpenMode::default()).expect("there");
    note.write_all_at(b"X", 3).expect("damaged");
    let blind = open(&world);
    check(&blind.snapshot(newest).expect("there"), &known[&newest]).expect("the newest needs no archive");
    assert!(blind.prune(&PruneOptions::default()).expect_err("refused").to_string().contains("note about an archive"));
    note.write_all_at(b"T", 3).expect("mended");
    // Where all of it was moved to.
    archive(&repository, &world, 4, false).expect("it is known by its mark");
    assert_eq!(check_all(&repository, &known, None, "back again"), known.len());
}

#[test]
fn another_directory_is_refused() {
    let (world, _, _, _) = aged(10, 3);
    let repository = open(&world);
    archive(&repository, &world, 2, false).expect("archived");
    let options = ArchiveOptions {
        archive: SimWorld::new(11).device("archive"),
        path: "/another".to_owned(),
        before: WallNs(0),
        dry_run: false,
    };
    let refused = repository.archive(&options, &mut |_, _| {}).expect_err("there is one already");
    assert!(refused.to_string().contains("/archive already"), "{refused}");
    let full = SimWorld::new(12);
    full.device("archive").create_dir_all("pictures").expect("made");
    let (fresh, _, _, _) = aged(13, 3);
    let refused = archive(&open(&fresh), &full, 2, false).expect_err("it is somebody else's");
    assert!(refused.to_string().contains("pictures"), "{refused}");
    let refused = archive(&open(&fresh), &world, 2, false).expect_err("it is another repository's");
    assert!(refused.to_string().contains("archive"), "{refused}");
}

/// I9: whatever cuts it off, each pack is in one place at least, and it is gone on with.
#[test]
fn a_crash_at_every_operation_of_an_archiving_loses_nothing() {
    let mut points = 0;
    for seed in 0..6 {
        let (world, known, parent, model) = aged(seed + 500, 4);
        for at in 0.. {
            let world = world.fork();
            let repository = open(&world);
            world.crash_at(world.operations() + at);
            let moved = archive(&repository, &world, 3, false);
            let crashed = world.crashed();
            assert!(crashed || moved.is_ok(), "seed {seed}: {:?}", moved.err());
            for survival in survivals(at) {
                let what = format!("seed {seed}, crash at {at}, {survival:?}");
                let world = world.recover(survival);
                let repository = open(&world);
                assert_eq!(check_all(&repository, &known, None, &what), known.len(), "{what}");
                archive(&repository, &world, 3, false).unwrap_or_else(|e| panic!("{what}: {e}"));
                let root = take(&repository, &model, parent, 10).unwrap_or_else(|e| panic!("{what}: {e}"));
                settle(&repository, &PruneOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
                let repository = open(&world);
                assert_eq!(check_all(&repository, &known, Some(&model.settled()), &what), known.len() + 1, "{what}");
                check(&repository.snapshot(root.id).expect("there"), &model.settled())
                    .unwrap_or_else(|e| panic!("{what}: {e}"));
                points += 1;
            }
            if !crashed {
                break;
            }
        }
    }
    println!("{points} crash points");
    assert!(points >= 800, "only {points} crash points");
}

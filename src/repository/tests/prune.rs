//! Prune beside writers, on full disks, and what it gives back.

use super::capture::{change, random_model};
use super::crash::{check_all, prepared};
use super::lab::{Model, PAGE, Random, VOLUME, check, meta, options, repository_on, take, take_with};
use crate::device::sim::SimWorld;
use crate::device::{Device, OpenMode};
use crate::error::{Error, Result};
use crate::repository::index::list_packs;
use crate::repository::small::read_file;
use crate::repository::{
    PruneOptions, Reason, RefKind, Repository, Stored, WriterOptions, generations::Generations, root, segment::Segment,
};
use crate::units::{FileId, WallNs};
use std::collections::BTreeSet;
use std::sync::atomic::{AtomicBool, Ordering};

pub fn settle(repository: &Repository, options: &PruneOptions) -> Result<()> {
    repository.prune(options)?;
    repository.prune(options).map(drop)
}

pub fn assert_index_names_no_deleted_pack(repository: &Repository, what: &str) {
    let store = &repository.store;
    let packs = list_packs(store.small.device.as_ref()).expect("listed");
    let view = store.index.refresh(&store.small).expect("an index");
    for segment in &view.segments {
        for block in 0..segment.blocks() {
            for entry in segment.block(block).expect("readable") {
                for place in view.find_prefix(&entry.prefix).expect("found") {
                    assert!(packs.contains(&place.pack), "{what}: the index names {}, which is gone", place.pack);
                }
            }
        }
    }
}

fn stored_bytes(repository: &Repository) -> u64 {
    let device = &repository.store.small.device;
    let len = |path: &str| device.open(path, OpenMode::default()).and_then(|f| f.len()).expect("a length");
    list_packs(device.as_ref()).expect("listed").iter().map(|pack| len(&pack.path())).sum()
}

fn chain(repository: &Repository, seed: u64, snapshots: i64) -> Vec<(crate::repository::Root, Model)> {
    let mut random = Random(seed);
    let mut model = random_model(&mut random);
    let mut taken: Vec<(crate::repository::Root, Model)> = Vec::new();
    for number in 0..snapshots {
        let parent = taken.last().map(|(root, _)| root.id);
        let root = take(repository, &model, parent, number).expect("taken");
        model = model.settled();
        taken.push((root, model.clone()));
        change(&mut model, &mut random);
    }
    taken
}

#[test]
fn what_no_snapshot_uses_is_given_back_and_the_rest_stays() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let taken = chain(&repository, 5, 12);
    let before = stored_bytes(&repository);
    for (root, _) in &taken[..11] {
        repository.delete(root.id).expect("deleted");
    }
    let plan = repository.plan_prune(&PruneOptions::default(), &[]).expect("planned");
    assert!(plan.bytes_freed > 0 && !plan.condemned.is_empty());
    let report = repository.prune(&PruneOptions::default()).expect("pruned");
    assert_eq!(report.plan.condemned, plan.condemned, "a dry run says what is done");
    settle(&repository, &PruneOptions::default()).expect("pruned");
    let after = stored_bytes(&repository);
    let (last, model) = &taken[11];
    check(&repository.snapshot(last.id).expect("there"), model).expect("whole");
    let logical = last.stats.logical_bytes;
    assert!(after < before && after < logical * 2 + 200_000, "{before} -> {after} bytes for {logical}");
    assert_index_names_no_deleted_pack(&repository, "after the prune");
    let segments = repository.store.index.refresh(&repository.store.small).expect("an index").segments.len();
    assert!(segments <= 17, "{segments} segments");
}

#[test]
fn the_segments_themselves_name_no_deleted_pack_when_there_was_room_to_merge_them() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let taken = chain(&repository, 6, 6);
    for (root, _) in &taken[..5] {
        repository.delete(root.id).expect("deleted");
    }
    let report = repository.prune(&PruneOptions::default()).expect("pruned");
    assert!(report.packs_deleted > 0);
    let device = repository.store.small.device.clone();
    let packs = list_packs(device.as_ref()).expect("listed");
    for name in device.list("index").expect("listed") {
        let segment = Segment::open(device.as_ref(), &format!("index/{name}"), repository.id()).expect("opens");
        assert!(segment.packs.iter().all(|pack| packs.contains(pack)), "{name}");
    }
}

#[test]
fn many_small_packs_are_gathered() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let mut model = Model::default();
    let mut random = Random(3);
    model.write(1, 0, &random.page());
    let mut parent = None;
    for number in 0..20 {
        parent = Some(take(&repository, &model, parent, number).expect("taken").id);
        model = model.settled();
        model.write(1, 0, &random.page());
    }
    let before = list_packs(repository.store.small.device.as_ref()).expect("listed").len();
    let report = repository.prune(&PruneOptions::default()).expect("pruned");
    assert!(report.plan.condemned.values().all(|condemned| condemned.reason == Reason::Small));
    let after = list_packs(repository.store.small.device.as_ref()).expect("listed").len();
    assert!(before >= 40 && after <= 4, "{before} -> {after} packs");
    assert_eq!(repository.snapshots().expect("listed").len(), 20);
}

#[test]
fn a_snapshot_that_is_named_stays() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let taken = chain(&repository, 7, 3);
    let id = taken[0].0.id;
    repository.set_ref("pin-law", RefKind::Pin, id, "until 2030").expect("named");
    assert!(matches!(repository.delete(id), Err(Error::Busy(_))));
    settle(&repository, &PruneOptions::default()).expect("pruned");
    check(&repository.snapshot(id).expect("there"), &taken[0].1).expect("whole");
    repository.set_ref("pin-law", RefKind::Pin, taken[1].0.id, "another").expect("moved");
    assert_eq!(repository.refs().expect("listed").len(), 1);
    repository.delete(id).expect("deleted");
    assert!(matches!(repository.set_ref("late", RefKind::Tag, id, ""), Err(Error::NotFound(_))));
    repository.drop_ref("pin-law").expect("dropped");
    assert!(repository.refs().expect("listed").is_empty());
    assert!(matches!(repository.drop_ref("pin-law"), Err(Error::NotFound(_))));
}

/// R18: what a writer at work has stored, and its parent, stay, even when the parent is deleted meanwhile; and its snapshot
/// counts though the generation it began in was sealed without it.
#[test]
fn a_writer_at_work_keeps_what_it_needs() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let taken = chain(&repository, 8, 3);
    let (parent, model) = taken.last().expect("there is one");
    let writer = repository.begin(options(Some(parent.id))).expect("begun");
    let mut changed = model.clone();
    let bytes = Random(77).page();
    changed.write(99, 0, &bytes);
    let mut update = writer.file(FileId(99), bytes.len() as u64, PAGE as u32).expect("a file");
    update.put(0, &bytes).expect("put");
    update.finish().expect("finished");
    writer.flush().expect("flushed");
    for (root, _) in &taken {
        repository.delete(root.id).expect("deleted");
    }
    settle(&repository, &PruneOptions::default()).expect("pruned");
    let names = super::lab::names_of(&writer, &changed).expect("names");
    let root = writer.commit(names, meta(9)).expect("published");
    settle(&repository, &PruneOptions::default()).expect("pruned");
    repository.forget();
    check(&repository.snapshot(root.id).expect("there"), &changed).expect("whole");
}

/// A writer that slept across prunes that gave it up finds out, and publishes nothing.
#[test]
fn a_writer_that_was_given_up_finds_out() {
    for rounds in 1..8 {
        let world = SimWorld::new(1);
        let repository = repository_on(&world);
        let writer = repository.begin(options(None)).expect("begun");
        let bytes = Random(77).page();
        let mut model = Model::default();
        model.write(1, 0, &bytes);
        let mut update = writer.file(FileId(1), bytes.len() as u64, PAGE as u32).expect("a file");
        update.put(0, &bytes).expect("put");
        update.finish().expect("finished");
        let fence = PruneOptions { fence: vec![writer.lease()], give_up_after: 0, ..PruneOptions::default() };
        assert_eq!(repository.prune(&fence).expect("pruned").fenced, [writer.lease().to_string()]);
        for _ in 1..rounds {
            repository.prune(&PruneOptions::default()).expect("pruned");
        }
        let names = super::lab::names_of(&writer, &model).expect("names");
        let result = writer.commit(names, meta(9));
        assert!(matches!(result, Err(Error::Overtaken(_))), "after {rounds} prunes: {result:?}");
        assert!(repository.snapshots().expect("listed").is_empty());
    }
}

/// R18: a root that was written too late for the seal of its generation does not count, whoever asks.
/// I9: a pack that cannot be found while it prunes, and is brought back later, costs nothing that it leads to.
#[test]
fn a_pack_that_is_away_during_a_prune_takes_nothing_with_it() {
    let (world, mut known, parent, _) = prepared(400, 5);
    let repository = Repository::open(world.device("repository"), None).expect("opens");
    let doomed = *known.keys().find(|id| Some(**id) != parent).expect("there are some");
    repository.delete(doomed).expect("deleted");
    known.remove(&doomed);
    let options = PruneOptions { live_percent_min: 100, ..PruneOptions::default() };
    let (mut refused, mut pruned) = (0, 0);
    for pack in list_packs(world.device("repository").as_ref()).expect("listed") {
        let world = world.fork();
        let device = world.device("repository");
        let bytes = read_file(device.as_ref(), &pack.path()).expect("read").expect("there");
        device.remove_file(&pack.path()).expect("taken away");
        let repository = Repository::open(world.device("repository"), None).expect("opens");
        match settle(&repository, &options) {
            Ok(()) => pruned += 1,
            Err(error) => {
                assert!(error.to_string().contains("prune cannot tell"), "{error}");
                refused += 1;
            }
        }
        let file = device.open(&pack.path(), OpenMode { create: true, ..OpenMode::default() }).expect("made");
        file.write_all_at(&bytes, 0).expect("brought back");
        let repository = Repository::open(device, None).expect("opens");
        assert_eq!(check_all(&repository, &known, None, &format!("pack {pack}")), known.len());
    }
    assert!(refused > 0 && pruned > 0, "{refused} refused, {pruned} pruned");
}

#[test]
fn a_root_missing_from_its_seal_is_void() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let taken = chain(&repository, 9, 1);
    let small = &repository.store.small;
    settle(&repository, &PruneOptions::default()).expect("pruned");
    // As a writer that slept between its last look at the generations and the rename.
    let late = root::Root { id: crate::repository::SnapshotId(5), ..taken[0].0.clone() };
    small.replace(crate::repository::small::Kind::Root, &late.id.path(), late.generation, &late).expect("written");
    assert_eq!(repository.snapshots().expect("listed").len(), 1);
    assert!(matches!(repository.snapshot(late.id), Err(Error::NotFound(_))));
    repository.prune(&PruneOptions::default()).expect("pruned");
    assert!(!small.device.exists(&late.id.path()).expect("asked"), "void roots are cleared away");
}

/// The borrower found pages by the index in a pack that no snapshot uses any more. Before the plan it keeps the pack; after it, it gives up.
#[test]
fn borrowed_packs_stay_or_their_borrower_gives_up() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let mut model = Model::default();
    let bytes = Random(1).page();
    model.write(1, 0, &bytes);
    let root = take(&repository, &model, None, 1).expect("taken");
    repository.delete(root.id).expect("deleted");
    let borrow = || {
        let writer = repository.begin(options(None)).expect("begun");
        let mut update = writer.file(FileId(1), bytes.len() as u64, PAGE as u32).expect("a file");
        update.put(0, &bytes).expect("put");
        assert!(matches!(writer.store(&bytes), Ok(Stored::Object(_))));
        update.finish().expect("finished");
        writer
    };
    let writer = borrow();
    let late = borrow();
    assert_eq!(writer.borrowed_packs(), 1);
    let names = super::lab::names_of(&writer, &model).expect("names");
    let published = writer.commit(names, meta(2)).expect("published");
    settle(&repository, &PruneOptions::default()).expect("pruned");
    repository.forget();
    check(&repository.snapshot(published.id).expect("there"), &model).expect("what was borrowed stays");
    repository.delete(published.id).expect("deleted");
    settle(&repository, &PruneOptions { give_up_after: 0, ..PruneOptions::default() }).expect("pruned");
    let names = super::lab::names_of(&late, &model).expect("names");
    assert!(matches!(late.commit(names, meta(3)), Err(Error::Overtaken(_))));
    assert!(repository.snapshots().expect("listed").is_empty());
    let again = take_with(&repository, &model, options(None), 4).expect("taken again");
    check(&repository.snapshot(again.id).expect("there"), &model).expect("whole");
}

#[test]
fn a_full_repository_fails_a_capture_and_is_pruned_nevertheless() {
    let world = SimWorld::new(1);
    let device = world.device("repository");
    device.set_capacity(4 << 20);
    let repository = repository_on(&world);
    repository.prune(&PruneOptions::default()).expect("makes its reserve");
    let mut random = Random(2);
    let mut roots = Vec::new();
    let mut number = 0;
    let full = loop {
        let mut model = Model::default();
        (0..40).for_each(|page| model.write(1, page * PAGE, &random.page()));
        match take(&repository, &model, None, number) {
            Ok(root) => roots.push((root, model)),
            Err(error) => break error,
        }
        number += 1;
    };
    assert!(matches!(&full, Error::Io { source, .. } if source.kind() == std::io::ErrorKind::StorageFull), "{full}");
    // To the last page.
    let filler =
        device.open("snapshots/filler", crate::device::OpenMode { create: true, ..Default::default() }).expect("made");
    for page in 0.. {
        if filler.write_all_at(&[1; 4096], page * 4096).is_err() {
            break;
        }
    }
    for (root, _) in &roots[1..] {
        repository.delete(root.id).expect("deleted");
    }
    let report = repository.prune(&PruneOptions { give_up_after: 1, ..PruneOptions::default() }).expect("pruned");
    assert!(report.bytes_deleted > 1 << 20, "{report:?}");
    check(&repository.snapshot(roots[0].0.id).expect("there"), &roots[0].1).expect("whole");
    let root = take(&repository, &roots[0].1, None, 99).expect("there is room again");
    check(&repository.snapshot(root.id).expect("there"), &roots[0].1).expect("whole");
}

/// Two volumes store, one deletes, one prunes, all at once; everything that was acknowledged and not deleted is whole at the end.
#[test]
fn prunes_race_with_writers_of_two_volumes() {
    for seed in 0..6 {
        let world = SimWorld::new(seed);
        let repository = repository_on(&world);
        let stop = AtomicBool::new(false);
        let store = |volume: u128| {
            let mut random = Random(seed * 1000 + u64::try_from(volume).expect("small"));
            let mut model = random_model(&mut random);
            let (mut parent, mut kept) = (None, Vec::new());
            for number in 0..12 {
                let wish = WriterOptions {
                    volume: uuid::Uuid::from_u128(volume),
                    parent,
                    now: WallNs(0),
                    search_repository: number % 2 == 0,
                    parent_of_other_volume: false,
                };
                let root = loop {
                    match take_with(&repository, &model, wish.clone(), number) {
                        Ok(root) => break root,
                        Err(Error::Overtaken(_)) => {}
                        Err(error) => panic!("seed {seed}, volume {volume}, snapshot {number}: {error}"),
                    }
                };
                if let Some(old) = parent
                    && number % 3 != 0
                {
                    repository.delete(old).expect("deleted");
                    kept.pop();
                }
                parent = Some(root.id);
                model = model.settled();
                kept.push((root.id, model.clone()));
                change(&mut model, &mut random);
            }
            kept
        };
        let kept = std::thread::scope(|scope| {
            let writers = [scope.spawn(|| store(1)), scope.spawn(|| store(2))];
            let pruner = scope.spawn(|| {
                let options = PruneOptions { live_percent_min: 90, give_up_after: 0, ..PruneOptions::default() };
                while !stop.load(Ordering::Acquire) {
                    repository.prune(&options).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
                }
            });
            let kept = writers.map(|writer| writer.join());
            // Whatever became of them: or else the pruner would go on for ever.
            stop.store(true, Ordering::Release);
            pruner.join().expect("the pruner ends");
            kept.map(|kept| kept.expect("the writer ends"))
        });
        settle(&repository, &PruneOptions::default()).expect("pruned");
        repository.forget();
        let expected: BTreeSet<_> = kept.iter().flatten().map(|(id, _)| *id).collect();
        let there: BTreeSet<_> = repository.snapshots().expect("listed").iter().map(|root| root.id).collect();
        assert_eq!(there, expected, "seed {seed}");
        for (id, model) in kept.iter().flatten() {
            check(&repository.snapshot(*id).expect("there"), model).unwrap_or_else(|e| panic!("seed {seed}: {e}"));
        }
        assert_index_names_no_deleted_pack(&repository, "at the end");
    }
}

#[test]
fn two_prunes_at_once_do_no_harm() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let taken = chain(&repository, 10, 8);
    for (root, _) in taken.iter().step_by(2) {
        repository.delete(root.id).expect("deleted");
    }
    std::thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| {
                for _ in 0..5 {
                    match repository.prune(&PruneOptions::default()) {
                        Ok(_) | Err(Error::Overtaken(_)) => {}
                        Err(error) => panic!("{error}"),
                    }
                }
            });
        }
    });
    settle(&repository, &PruneOptions::default()).expect("pruned");
    repository.forget();
    for (root, model) in taken.iter().skip(1).step_by(2) {
        check(&repository.snapshot(root.id).expect("there"), model).expect("whole");
    }
    let generations = Generations::load(repository.store.small.device.as_ref()).expect("listed");
    assert_eq!(generations.unfinished(), None);
    assert_eq!(VOLUME, taken[0].0.volume);
}

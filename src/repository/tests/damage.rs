//! Damage, wrong keys, disks that refuse: a named error, the rest still readable, and repair.

use super::lab::{Model, PAGE, Random, VOLUME, check, meta, names_of, new_repository, options, repository_on, take};
use crate::device::sim::SimWorld;
use crate::device::{Device, OpenMode};
use crate::error::Error;
use crate::repository::index::list_packs;
use crate::repository::pack::{PackWriter, compress};
use crate::repository::{
    CopyBase, InitOptions, PruneOptions, Repository, VerifyOptions, WriterOptions, plan, small::Kind,
};
use crate::units::{FileId, WallNs};
use std::sync::Arc;

const KEY: &[u8] = b"0123456789abcdef0123456789abcdef and more";

fn model(seed: u64) -> Model {
    let mut random = Random(seed);
    let mut model = Model::default();
    for file in 1..=3 {
        (0..12).for_each(|page| model.write(file, page * PAGE, &random.page()));
    }
    model
}

fn flip(device: &dyn Device, path: &str, at: u64) {
    let file = device.open(path, OpenMode::default()).expect("opens");
    let mut byte = [0];
    file.read_at(&mut byte, at).expect("read");
    file.write_all_at(&[byte[0] ^ 0x10], at).expect("written");
}

fn len(device: &dyn Device, path: &str) -> u64 {
    device.open(path, OpenMode::default()).and_then(|file| file.len()).expect("a length")
}

#[test]
fn an_encrypted_repository_opens_with_its_key_only_and_shows_nothing() {
    let world = SimWorld::new(1);
    let device: Arc<dyn Device> = world.device("repository");
    let init = InitOptions { key: Some(KEY), pack_bytes: 128 << 10, now: WallNs(0) };
    let repository = Repository::init(device.clone(), &init).expect("made");
    let mut secret = model(1);
    secret.write(1, 0, &b"MOST-SECRET-".repeat(500));
    let root = take(&repository, &secret, None, 1).expect("taken");
    let again = Repository::open(device.clone(), Some(KEY)).expect("opens");
    check(&again.snapshot(root.id).expect("there"), &secret).expect("whole");
    for (key, expected) in
        [(None, "key file is needed"), (Some(&KEY[1..]), "wrong key"), (Some(&KEY[..9]), "at least 32")]
    {
        let error = Repository::open(device.clone(), key).err().expect("refused").to_string();
        assert!(error.contains(expected), "{error}");
    }
    for pack in list_packs(device.as_ref()).expect("listed") {
        let bytes = crate::repository::small::read_file(device.as_ref(), &pack.path()).expect("read").expect("there");
        assert!(!bytes.windows(12).any(|window| window == b"MOST-SECRET-"));
    }
    let bytes = crate::repository::small::read_file(device.as_ref(), &root.id.path()).expect("read").expect("there");
    assert!(!bytes.windows(9).any(|window| window == b"START WAL"));
}

#[test]
fn a_flipped_bit_in_any_object_is_a_named_error_or_harmless() {
    let world = SimWorld::new(1);
    let first = model(1);
    let (root, parent) = {
        let repository = repository_on(&world);
        let parent = take(&repository, &first, None, 1).expect("taken");
        let mut second = first.settled();
        second.write(1, 0, &Random(9).page());
        (take(&repository, &second, Some(parent.id), 2).expect("taken"), parent)
    };
    let mut second = first.clone();
    second.write(1, 0, &Random(9).page());
    let device = world.device("repository");
    let mut paths: Vec<String> = list_packs(device.as_ref()).expect("listed").iter().map(|pack| pack.path()).collect();
    paths.extend(device.list("index").expect("listed").iter().map(|name| format!("index/{name}")));
    paths.extend(["format".to_owned(), root.id.path(), parent.id.path()]);
    let (mut noticed, mut tried) = (0, 0);
    for path in paths {
        let step = (len(device.as_ref(), &path) / 40).max(1);
        for at in (0..len(device.as_ref(), &path)).step_by(usize::try_from(step).expect("small")) {
            let world = world.fork();
            flip(world.device("repository").as_ref(), &path, at);
            tried += 1;
            let read = Repository::open(world.device("repository"), None).and_then(|repository| {
                repository.snapshots()?;
                let model_of = [(root.id, &second), (parent.id, &first)];
                for (id, model) in model_of {
                    let snapshot = repository.snapshot(id)?;
                    match check(&snapshot, model) {
                        Ok(()) => {}
                        Err(text) if text.starts_with("corrupt ") && text.contains("at offset") => noticed += 1,
                        Err(text) => panic!("{path} at {at}: {text}"),
                    }
                }
                Ok(())
            });
            match read {
                Ok(()) => {}
                Err(Error::Corrupt { .. } | Error::Invalid(_)) => noticed += 1,
                Err(error) => panic!("{path} at {at}: {error}"),
            }
        }
    }
    assert!(noticed * 3 > tried, "{noticed} of {tried} flips were noticed while reading");
}

#[test]
fn verification_finds_every_flip_in_a_pack_and_names_what_is_hurt() {
    let world = SimWorld::new(1);
    let first = model(1);
    let root = take(&repository_on(&world), &first, None, 1).expect("taken");
    let device = world.device("repository");
    for pack in list_packs(device.as_ref()).expect("listed") {
        let bytes = len(device.as_ref(), &pack.path());
        for at in (0..bytes).step_by(usize::try_from(bytes / 25).expect("small").max(1)) {
            let world = world.fork();
            flip(world.device("repository").as_ref(), &pack.path(), at);
            let repository = Repository::open(world.device("repository"), None).expect("opens");
            let report = repository.verify(&VerifyOptions::full(WallNs(5)), &mut |_, _| {}).expect("verified");
            assert!(!report.damage.is_empty(), "{pack} at {at}");
            assert!(report.damage[0].contains(&pack.to_string()), "{}", report.damage[0]);
            let whole = check(&repository.snapshot(root.id).expect("there"), &first).is_ok();
            assert_eq!(whole, report.hurt.is_empty(), "{pack} at {at}: {report:?}");
        }
    }
}

#[test]
fn a_missing_pack_hurts_what_it_held_and_is_repaired_from_elsewhere() {
    let world = SimWorld::new(1);
    let first = model(1);
    let repository = repository_on(&world);
    let root = take(&repository, &first, None, 1).expect("taken");
    let device = world.device("repository");
    let packs = list_packs(device.as_ref()).expect("listed");
    for pack in packs {
        let world = world.fork();
        world.device("repository").remove_file(&pack.path()).expect("removed");
        let repository = Repository::open(world.device("repository"), None).expect("opens");
        let error = check(&repository.snapshot(root.id).expect("there"), &first).expect_err("hurt");
        assert!(error.contains("the pack is missing") && error.contains(&pack.to_string()), "{error}");
        let mut offer = |object: &crate::repository::ObjectRef| {
            // Another repository of the same key: here the world before.
            let whole = Repository::open(device.clone(), None).expect("opens");
            whole.object(object).ok().map(|bytes| bytes.to_vec())
        };
        // A lost node hides what lies below it, so repair may need a turn per level.
        for _ in 0..6 {
            let report = repository.verify(&VerifyOptions::full(WallNs(5)), &mut |_, _| {}).expect("verified");
            if report.lost.is_empty() {
                break;
            }
            assert!(!report.hurt.is_empty());
            let left = repository.repair(&report.lost, WallNs(6), &mut offer).expect("repaired");
            assert!(left.is_empty(), "{left:?}");
        }
        check(&repository.snapshot(root.id).expect("there"), &first).expect("whole again");
        repository.prune(&PruneOptions::default()).expect("pruned");
        repository.forget();
        check(&repository.snapshot(root.id).expect("there"), &first).expect("still whole");
    }
}

#[test]
fn repair_takes_no_other_bytes_than_those_that_were_lost() {
    let world = SimWorld::new(1);
    let first = model(1);
    let repository = repository_on(&world);
    take(&repository, &first, None, 1).expect("taken");
    let pack = *list_packs(world.device("repository").as_ref()).expect("listed").iter().next().expect("there is one");
    world.device("repository").remove_file(&pack.path()).expect("removed");
    let report = repository.verify(&VerifyOptions::full(WallNs(5)), &mut |_, _| {}).expect("verified");
    let lost = report.lost;
    let left = repository.repair(&lost, WallNs(6), &mut |_| Some(vec![1; PAGE])).expect("asked");
    assert_eq!(left, lost);
}

#[test]
fn the_ledger_takes_turns() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    take(&repository, &model(1), None, 1).expect("taken");
    let packs = list_packs(world.device("repository").as_ref()).expect("listed").len() as u64;
    assert!(packs >= 3);
    let mut seen = 0;
    for day in 1..=packs {
        let options = VerifyOptions {
            now: WallNs(i64::try_from(day).expect("small")),
            budget_bytes: Some(1),
            one_in: 1,
            walk_trees: false,
        };
        let report = repository.verify(&options, &mut |_, _| {}).expect("verified");
        assert_eq!(report.packs_verified, 1, "one at a time, however small the budget");
        seen += 1;
        assert_eq!(report.oldest.is_some(), seen == packs, "day {day}");
    }
    let options = VerifyOptions { now: WallNs(99), budget_bytes: None, one_in: 2, walk_trees: true };
    let report = repository.verify(&options, &mut |_, _| {}).expect("verified");
    assert!(report.packs_verified < packs && report.damage.is_empty() && report.hurt.is_empty());
}

/// A sound pack's entries survive the loss of the whole index.
#[test]
fn a_lost_or_damaged_index_is_made_again() {
    let world = SimWorld::new(1);
    let first = model(1);
    let root = take(&repository_on(&world), &first, None, 1).expect("taken");
    let device = world.device("repository");
    let names = device.list("index").expect("listed");
    for damage in [true, false] {
        let world = world.fork();
        let device = world.device("repository");
        for name in &names {
            let path = format!("index/{name}");
            if damage { flip(device.as_ref(), &path, 100) } else { device.remove_file(&path).expect("removed") }
        }
        let repository = Repository::open(device.clone(), None).expect("opens");
        check(&repository.snapshot(root.id).expect("there"), &first).expect("reading needs no index");
        let report = repository.prune(&PruneOptions::default());
        assert!(damage != report.is_ok(), "{report:?}");
        check(&repository.snapshot(root.id).expect("there"), &first).expect("nothing was lost");
        assert!(repository.rebuild_index(WallNs(3)).expect("made again") >= 9);
        repository.prune(&PruneOptions { live_percent_min: 101, ..PruneOptions::default() }).expect("pruned");
        repository.forget();
        check(&repository.snapshot(root.id).expect("there"), &first).expect("all of it was moved");
    }
}

#[test]
fn a_repository_that_cannot_be_written_to_is_read() {
    let world = SimWorld::new(1);
    let first = model(1);
    let root = take(&repository_on(&world), &first, None, 1).expect("taken");
    let device = world.device("repository");
    device.break_writes(true);
    let repository = Repository::open(device.clone(), None).expect("opens");
    check(&repository.snapshot(root.id).expect("there"), &first).expect("whole");
    assert!(matches!(take(&repository, &first, None, 2), Err(Error::Io { .. })));
    assert!(matches!(repository.prune(&PruneOptions::default()), Err(Error::Io { .. })));
    let report = repository.verify(&VerifyOptions::full(WallNs(5)), &mut |_, _| {}).expect("verified");
    assert!(report.damage.is_empty());
    device.break_writes(false);
    take(&repository, &first, None, 3).expect("and written to when that works again");
}

#[test]
fn after_a_failed_write_a_writer_publishes_nothing() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let first = model(1);
    let writer = repository.begin(options(None)).expect("begun");
    let mut update = writer.file(FileId(1), first.files[&1].len() as u64, PAGE as u32).expect("a file");
    world.device("repository").break_writes(true);
    assert!(update.put(0, &first.files[&1]).is_err());
    world.device("repository").break_writes(false);
    // Another thread that meets it says why, too: a repository that has failed is one to wait for, not a reason to give the snapshot up.
    let again = writer.store(&Random(7).page()).expect_err("broken");
    assert!(matches!(again, Error::Io { .. }), "{again}");
    assert!(matches!(writer.flush(), Err(Error::Io { .. })));
    assert!(names_of(&writer, &Model::default()).and_then(|names| writer.commit(names, meta(1))).is_err());
    assert!(repository.snapshots().expect("listed").is_empty());
}

#[test]
fn parents_are_of_the_same_volume_and_there() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let root = take(&repository, &model(1), None, 1).expect("taken");
    let other = WriterOptions { volume: uuid::Uuid::from_u128(99), ..options(Some(root.id)) };
    let error = repository.begin(other).err().expect("refused").to_string();
    assert!(error.contains(&VOLUME.to_string()), "{error}");
    repository.delete(root.id).expect("deleted");
    assert!(matches!(repository.begin(options(Some(root.id))), Err(Error::NotFound(_))));
    assert!(repository.leases().expect("listed").is_empty(), "refused writers leave no lease");
}

#[test]
fn a_copy_in_another_repository_is_the_same_snapshot() {
    let world = SimWorld::new(1);
    let from = repository_on(&world);
    let to = new_repository(world.device("second")).expect("made");
    let mut volume = model(1);
    let first = take(&from, &volume, None, 1).expect("taken");
    volume = volume.settled();
    volume.truncate(2, 5000);
    volume.write(1, 3 * PAGE, &Random(50).page());
    volume.write(7, 10 * PAGE, &Random(51).page());
    let second = take(&from, &volume, Some(first.id), 2).expect("taken");
    let first_there = from.copy_to(first.id, &to, None, WallNs(1), &mut |_| {}).expect("copied");
    let mut read = 0;
    let base = CopyBase { here: first.id, there: first_there.id };
    let second_there = from.copy_to(second.id, &to, Some(base), WallNs(2), &mut |bytes| read = bytes).expect("copied");
    check(&to.snapshot(first_there.id).expect("there"), &model(1)).expect("whole");
    check(&to.snapshot(second_there.id).expect("there"), &volume).expect("whole");
    // Eleven pages of the new file, and one each of the others.
    assert!(read <= 13 * PAGE as u64, "{read} bytes were read");
    assert!(second_there.meta.labels[crate::repository::COPIED_FROM].contains(&second.id.to_string()));
    let full = from.copy_to(second.id, &to, None, WallNs(3), &mut |_| {}).expect("copied");
    check(&to.snapshot(full.id).expect("there"), &volume).expect("whole");
}

#[test]
fn a_damaged_plan_or_seal_stops_prune_by_name() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let root = take(&repository, &model(1), None, 1).expect("taken");
    repository.prune(&PruneOptions::default()).expect("pruned");
    let device = world.device("repository");
    flip(device.as_ref(), "gc/00000001-seal", 30);
    let error = repository.snapshot(root.id).err().expect("noticed").to_string();
    assert!(error.contains("gc/00000001-seal"), "{error}");
    flip(device.as_ref(), "gc/00000001-seal", 30);
    flip(device.as_ref(), "gc/00000001-plan", 3);
    assert!(plan::read(&repository.store.small, crate::repository::Generation(1)).is_err());
    let seal = repository.store.small.read::<crate::repository::generations::Seal>(Kind::Seal, "gc/00000001-seal");
    assert_eq!(seal.expect("read").expect("there").roots.len(), 1);
}

/// I8: a pack whose checksums are all right, but whose bytes are not those that its objects are named after, as a faulty machine or an
/// intruder would write it.
#[test]
fn bytes_that_are_not_what_their_name_says_are_never_read() {
    let world = SimWorld::new(1);
    let first = model(1);
    let repository = repository_on(&world);
    let root = take(&repository, &first, None, 1).expect("taken");
    let device = world.device("repository");
    let keys = &repository.store.small.keys;
    let mut forged = 0;
    for pack in list_packs(device.as_ref()).expect("listed") {
        let world = world.fork();
        let device = world.device("repository");
        let (reader, contents) = repository.store.contents(pack).expect("opens");
        device.remove_file(&pack.path()).expect("removed");
        let mut writer = PackWriter::create(device.as_ref(), reader.header).expect("created");
        for number in 0..u32::try_from(reader.frames.len()).expect("few") {
            let mut raw = reader.frame(keys, number).expect("a frame");
            let last = raw.len() - 1;
            raw[last] ^= 1;
            assert_eq!(writer.begin_frame(), number);
            let objects: Vec<_> = contents.objects.iter().filter(|object| object.frame == number).copied().collect();
            writer.write_frame(keys, number, compress(&raw), &objects).expect("written");
        }
        writer.finish().expect("finished");
        let repository = Repository::open(device.clone(), None).expect("opens");
        let error = check(&repository.snapshot(root.id).expect("there"), &first).expect_err("noticed");
        assert!(error.contains("the bytes are not those of object"), "{error}");
        let report = repository.verify(&VerifyOptions::full(WallNs(5)), &mut |_, _| {}).expect("verified");
        assert!(!report.damage.is_empty() && !report.hurt.is_empty());
        forged += 1;
    }
    assert!(forged >= 3);
}

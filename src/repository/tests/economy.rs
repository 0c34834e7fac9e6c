//! What a snapshot costs: bytes stored, bytes read, memory; and that equal things are stored once.

use super::lab::{Model, PAGE, Random, check, entry, meta, names_of, options, repository_on, take};
use crate::device::real::RealDevice;
use crate::device::sim::SimWorld;
use crate::repository::{EntryKind, InitOptions, PACK_BYTES, Repository, Run, Stored};
use crate::units::{FileId, WallNs};
use std::collections::BTreeSet;

fn volume(pages: usize) -> Model {
    let mut random = Random(4);
    let mut model = Model::default();
    for file in 1..=4 {
        for page in 0..pages {
            let mut bytes = random.page();
            bytes[2000..6000].fill(0);
            model.write(file, page * PAGE, &bytes);
        }
    }
    model
}

/// The acceptance of the format: what did not change is neither read nor written.
#[test]
fn a_snapshot_without_changes_writes_less_than_16_kib_and_reads_no_page() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let model = volume(300).settled();
    let first = take(&repository, &volume(300), None, 1).expect("taken");
    let device = world.device("repository");
    let before = device.traffic();
    let second = take(&repository, &model, Some(first.id), 2).expect("taken");
    let after = device.traffic();
    let written = after.written_bytes - before.written_bytes;
    assert!(written < 16 * 1024, "{written} bytes");
    assert_eq!((second.stats.stored_bytes, second.stats.new_pages), (0, 0));
    let read = after.read_bytes - before.read_bytes;
    assert!(read < 128 * 1024, "{read} bytes were read");
    check(&repository.snapshot(second.id).expect("there"), &model).expect("whole");
}

#[test]
fn an_incremental_stores_little_more_than_the_changed_pages() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let mut model = volume(2000);
    let mut random = Random(8);
    let mut parent = take(&repository, &model, None, 1).expect("taken").id;
    for number in 2..8 {
        model = model.settled();
        for _ in 0..2000 * 4 / 50 {
            model.write(1 + random.below(4) as u64, random.below(2000) * PAGE, &random.page());
        }
        let changed = model.dirty.values().map(BTreeSet::len).sum::<usize>() * PAGE;
        let root = take(&repository, &model, Some(parent), number).expect("taken");
        let (stored, changed) = (root.stats.stored_bytes, changed as u64);
        assert!(stored * 10 <= changed * 12, "snapshot {number}: {stored} bytes for {changed} changed");
        assert_eq!(root.stats.new_raw_bytes, changed);
        parent = root.id;
    }
    check(&repository.snapshot(parent).expect("there"), &model.settled()).expect("whole");
}

#[test]
fn equal_pages_are_stored_once_and_zeros_not_at_all() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let writer = repository.begin(options(None)).expect("begun");
    let page = Random(1).page();
    let Stored::Object(first) = writer.store(&page).expect("stored") else { panic!("no object") };
    assert_eq!(writer.store(&page).expect("stored"), Stored::Object(first));
    assert_eq!(writer.store(&[0; PAGE]).expect("stored"), Stored::Zero);
    writer.flush().expect("flushed");
    std::mem::forget(writer);
    // The capture has died; the next one finds what it had stored.
    let again = Repository::open(world.device("repository"), None).expect("opens");
    let writer = again.begin(options(None)).expect("begun");
    let Stored::Object(found) = writer.store(&page).expect("stored") else { panic!("no object") };
    assert_eq!((found.id, writer.borrowed_packs()), (first.id, 1));
}

/// A widened change map gives pages that did not change.
#[test]
fn what_is_given_without_having_changed_is_not_stored_again() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let mut model = volume(64);
    let first = take(&repository, &model, None, 1).expect("taken");
    model = model.settled();
    model.write(1, 5 * PAGE, &Random(3).page());
    let second = take(&repository, &model, Some(first.id), 2).expect("taken");
    let model = model.settled();
    for compare in [true, false] {
        let mut wish = options(Some(second.id));
        wish.search_repository = false;
        let writer = repository.begin(wish).expect("begun");
        for (file, content) in &model.files {
            let mut update = writer.file(FileId(*file), content.len() as u64, PAGE as u32).expect("a file");
            update.compare(compare);
            update.put(0, content).expect("put");
            let before = writer.parent_file(FileId(*file)).expect("read");
            let after = update.finish().expect("finished");
            assert!(Some(after) == before || (!compare && *file == 1), "file {file}, compare {compare}");
        }
        let names = names_of(&writer, &model).expect("names");
        let root = writer.commit(names, meta(3)).expect("published");
        // Without comparing, the one slot of pages over a base is stored whole.
        assert_eq!(root.stats.new_raw_bytes, if compare { 0 } else { 65536 });
        check(&repository.snapshot(root.id).expect("there"), &model).expect("whole");
    }
}

#[test]
fn changed_files_pages_and_names_are_told_from_roots_alone() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let mut model = volume(600);
    let first = take(&repository, &model, None, 1).expect("taken");
    model = model.settled();
    model.write(2, 100 * PAGE, &Random(5).page());
    model.write(2, 101 * PAGE, &Random(6).page());
    model.write(2, 590 * PAGE, &Random(7).page());
    model.truncate(3, 10 * PAGE);
    model.files.remove(&4);
    model.write(9, 0, b"new");
    let second = take(&repository, &model, Some(first.id), 2).expect("taken");
    repository.forget();
    let device = world.device("repository");
    let (a, b) = (repository.snapshot(first.id).expect("there"), repository.snapshot(second.id).expect("there"));
    let before = device.traffic().read_bytes;
    let mut told = Vec::new();
    b.changed_files(&a, &mut |file, old, new| {
        let mut ranges = Vec::new();
        b.changed_pages(old.as_ref(), new.as_ref(), &mut |start, end| {
            ranges.push((start / PAGE as u64, end.div_ceil(PAGE as u64)));
            Ok(())
        })?;
        told.push((file.0, ranges));
        Ok(())
    })
    .expect("compared");
    let expected = [(2, vec![(100, 102), (590, 591)]), (3, vec![(10, 600)]), (4, vec![(0, 600)]), (9, vec![(0, 1)])];
    assert_eq!(told, expected);
    let mut names = Vec::new();
    b.changed_names(&a, &mut |change| {
        names.push((
            String::from_utf8_lossy(&change.path).into_owned(),
            change.before.is_some(),
            change.after.is_some(),
        ));
        Ok(())
    })
    .expect("compared");
    assert_eq!(names, [("base/00004".to_owned(), true, false), ("base/00009".to_owned(), false, true)]);
    let read = device.traffic().read_bytes - before;
    assert!(read < 400_000, "{read} bytes were read to compare {} bytes", 2400 * PAGE);
}

#[test]
fn a_sparse_file_of_a_tebibyte_costs_its_pages() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let page = Random(1).page();
    let (size, at) = (1_u64 << 40, (1_u64 << 39) + 8192);
    let writer = repository.begin(options(None)).expect("begun");
    let mut update = writer.file(FileId(1), size, 8192).expect("a file");
    update.put(at, &page).expect("put");
    update.hole(size - 16384, 8192).expect("a hole");
    update.put(size - 8192, &[0; 8192]).expect("put");
    update.finish().expect("finished");
    let mut model = Model::default();
    model.files.insert(1, Vec::new());
    let names = names_of(&writer, &model).expect("names");
    let root = writer.commit(names, meta(1)).expect("published");
    assert!(root.stats.stored_bytes < 32 * 1024, "{} bytes", root.stats.stored_bytes);
    let snapshot = repository.snapshot(root.id).expect("there");
    let content = snapshot.file(FileId(1)).expect("there");
    let mut buf = vec![1; 3 * 8192];
    content.read(at - 8192, &mut buf).expect("read");
    assert!(
        buf[..8192].iter().all(|b| *b == 0) && buf[8192..16384] == page[..] && buf[16384..].iter().all(|b| *b == 0)
    );
    assert_eq!(content.run(at).expect("asked"), Some(Run { start: at, end: at + 8192, hole: false }));
    let last = Run { start: size - 8192, end: size, hole: false };
    assert_eq!(content.run(size - 8192).expect("asked"), Some(last), "written zeros are no hole");
    assert!(content.run(size - 16384).expect("asked").expect("a run").hole);
    // Shrinking lowers the tree, growing raises it again, and nothing comes back.
    let mut parent = root.id;
    for size in [at + 100, 1 << 30, 1 << 40] {
        let writer = repository.begin(options(Some(parent))).expect("begun");
        writer.file(FileId(1), size, 8192).expect("a file").finish().expect("finished");
        let names = names_of(&writer, &model).expect("names");
        parent = writer.commit(names, meta(1)).expect("published").id;
    }
    let snapshot = repository.snapshot(parent).expect("there");
    let content = snapshot.file(FileId(1)).expect("there");
    let mut buf = vec![1; 8192];
    content.read(at, &mut buf).expect("read");
    assert!(buf.iter().all(|b| *b == 0), "what was cut off stays gone");
}

#[test]
fn many_names_stream_through_and_change_shares_the_rest() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let mut parent = None;
    for round in 0..2 {
        let writer = repository.begin(options(parent)).expect("begun");
        let mut names = writer.namespace();
        names.add(b"", &entry(EntryKind::Directory)).expect("added");
        for dir in 0..20 {
            names.add(format!("d{dir:02}").as_bytes(), &entry(EntryKind::Directory)).expect("added");
            for file in 0..1000 {
                let mut entry = entry(EntryKind::File { file: FileId(dir * 1000 + file + 1) });
                entry.mode += u32::from(round == 1 && dir == 7 && file == 500);
                names.add(format!("d{dir:02}/f{file:04}").as_bytes(), &entry).expect("added");
            }
        }
        let names = writer.end_namespace(names).expect("names");
        if parent.is_none() {
            for file in 1..=20_000 {
                writer.file(FileId(file), 0, 8192).expect("a file").finish().expect("finished");
            }
        }
        let root = writer.commit(names, meta(round)).expect("published");
        assert!(parent.is_none() || root.stats.stored_bytes < 16 * 1024, "{} bytes", root.stats.stored_bytes);
        parent = Some(root.id);
    }
    let snapshot = repository.snapshot(parent.expect("taken")).expect("there");
    let mut list = snapshot.list(b"").expect("listed");
    let mut dirs = Vec::new();
    while let Some((path, _)) = list.next().expect("next") {
        dirs.push(path);
    }
    assert_eq!((dirs.len(), dirs[19].as_slice()), (20, b"d19".as_slice()));
    let mut walk = snapshot.walk(b"d07").expect("walked");
    let mut count = 0;
    while walk.next().expect("next").is_some() {
        count += 1;
    }
    assert_eq!(count, 1000);
    assert_eq!(snapshot.lookup(b"d07/f0500").expect("asked").expect("there").mode, 0o641);
    assert_eq!(snapshot.lookup(b"d07/nothing").expect("asked"), None);
}

#[test]
fn names_out_of_order_and_strange_ones_are_refused() {
    let world = SimWorld::new(1);
    let repository = repository_on(&world);
    let writer = repository.begin(options(None)).expect("begun");
    let mut names = writer.namespace();
    let dir = entry(EntryKind::Directory);
    names.add(b"a", &dir).expect("added");
    names.add(b"a/x", &dir).expect("children before the next sibling, whatever its name");
    names.add(b"a b", &dir).expect("added");
    for wrong in [b"a/y".as_slice(), b"a b", b"b//c", b"../c", b"c\0"] {
        assert!(names.add(wrong, &dir).is_err(), "{}", String::from_utf8_lossy(wrong));
    }
    let file = entry(EntryKind::File { file: FileId(5) });
    names.add(b"z", &file).expect("added");
    let names = writer.end_namespace(names).expect("names");
    let error = writer.commit(names, meta(1)).expect_err("a file without content").to_string();
    assert!(error.contains("0000000000000005"), "{error}");
}

/// Also the one test on a real disk.
#[test]
fn several_threads_store_into_one_snapshot() {
    let dir = tempfile::tempdir().expect("a directory");
    let device = RealDevice::open(dir.path()).expect("a device");
    let init = InitOptions { key: Some(&[7; 32]), pack_bytes: PACK_BYTES, now: WallNs(0) };
    let repository = Repository::init(device.clone(), &init).expect("made");
    let model = volume(100);
    let writer = repository.begin(options(None)).expect("begun");
    std::thread::scope(|scope| {
        for (file, content) in &model.files {
            let writer = &writer;
            scope.spawn(move || {
                let mut update = writer.file(FileId(*file), content.len() as u64, PAGE as u32).expect("a file");
                update.put(0, content).expect("put");
                update.finish().expect("finished");
            });
        }
    });
    let names = names_of(&writer, &model).expect("names");
    let root = writer.commit(names, meta(1)).expect("published");
    assert!(Repository::init(device.clone(), &init).is_err(), "not twice");
    let repository = Repository::open(device, Some(&[7; 32])).expect("opens");
    check(&repository.snapshot(root.id).expect("there"), &model).expect("whole");
    repository.prune(&crate::repository::PruneOptions::default()).expect("pruned");
    let stats = repository.stats().expect("counted");
    assert_eq!((stats.snapshots, stats.writers, stats.logical_bytes), (1, 0, 400 * PAGE as u64));
}

//! One party stops before each of its operations in turn, the other does all of its work, and the first goes on: every way in which
//! a writer and a prune can overtake each other once.

use super::capture::{change, random_model};
use super::lab::{Model, Random, check, options, repository_on, take};
use super::prune::{assert_index_names_no_deleted_pack, settle};
use crate::device::sim::SimWorld;
use crate::device::{BackingFile, Device, OpenMode, Space};
use crate::error::Error;
use crate::repository::{PruneOptions, Repository, SnapshotId};
use parking_lot::Mutex;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

type Action = Box<dyn FnOnce() + Send>;

/// Counts operations, and does something before one of them.
struct Stopping {
    left: AtomicU64,
    action: Mutex<Option<Action>>,
}

impl Stopping {
    fn step(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 0
            && let Some(action) = self.action.lock().take()
        {
            action();
        }
    }
}

struct StoppingDevice(Arc<dyn Device>, Arc<Stopping>);
struct StoppingFile(Arc<dyn BackingFile>, Arc<Stopping>);

impl Device for StoppingDevice {
    fn path(&self) -> String {
        self.0.path()
    }
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        self.1.step();
        Ok(Arc::new(StoppingFile(self.0.open(path, mode)?, self.1.clone())))
    }
    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        self.1.step();
        self.0.create_dir_all(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.step();
        self.0.rename(from, to)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.1.step();
        self.0.rename_new(from, to)
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.1.step();
        self.0.remove_file(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.1.step();
        self.0.list(path)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.1.step();
        self.0.exists(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.1.step();
        self.0.sync_dir(path)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn space(&self) -> io::Result<Space> {
        self.0.space()
    }
}

impl BackingFile for StoppingFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.1.step();
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.1.step();
        self.0.sync_data()
    }
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.start_writeback(offset, len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch(offset, len)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.0.next_data(offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

/// A repository whose user is stopped before its operation `at`, and whether that was reached.
fn stopping(world: &SimWorld, at: u64, action: impl FnOnce() + Send + 'static) -> (Repository, Arc<Stopping>) {
    let stop = Arc::new(Stopping { left: AtomicU64::new(u64::MAX), action: Mutex::new(Some(Box::new(action))) });
    let device = Arc::new(StoppingDevice(world.device("repository"), stop.clone()));
    let repository = Repository::open(device, None).expect("opens");
    stop.left.store(at, Ordering::Release);
    (repository, stop)
}

/// Snapshots, of which one is deleted but its pages still lie there; and a volume that brings some of these pages back, so that it borrows.
fn prepared(seed: u64) -> (SimWorld, Vec<(SnapshotId, Model)>, Model) {
    let mut random = Random(seed);
    let world = SimWorld::new(seed);
    let repository = repository_on(&world);
    let mut gone = Model::default();
    (0..20).for_each(|page| gone.write(50, page * super::lab::PAGE, &random.page()));
    let doomed = take(&repository, &gone, None, 0).expect("taken");
    let mut model = random_model(&mut random);
    let mut known: Vec<(SnapshotId, Model)> = Vec::new();
    for number in 1..4 {
        let root = take(&repository, &model, known.last().map(|(id, _)| *id), number).expect("taken");
        model = model.settled();
        known.push((root.id, model.clone()));
        change(&mut model, &mut random);
    }
    repository.delete(doomed.id).expect("deleted");
    repository.delete(known.remove(0).0).expect("deleted");
    model.write(60, 0, &gone.files[&50]);
    (world, known, model)
}

fn check_known(repository: &Repository, known: &[(SnapshotId, Model)], what: &str) {
    repository.forget();
    for (id, model) in known {
        let snapshot = repository.snapshot(*id).unwrap_or_else(|e| panic!("{what}: {e}"));
        check(&snapshot, model).unwrap_or_else(|e| panic!("{what}: {e}"));
    }
    assert_eq!(repository.snapshots().expect("listed").len(), known.len(), "{what}");
    assert_index_names_no_deleted_pack(repository, what);
}

/// The stopped writer, and what the prunes beside it are told to do with it.
fn writer_stopped_everywhere(prunes: usize, options_of: fn() -> PruneOptions) -> (u64, u64) {
    let (mut finished, mut overtaken) = (0, 0);
    for seed in 0..3 {
        let (world, known, model) = prepared(seed);
        for at in 0.. {
            let world = world.fork();
            let pruned = world.clone();
            let prune = move || {
                let repository = Repository::open(pruned.device("repository"), None).expect("opens");
                for _ in 0..prunes {
                    repository.prune(&options_of()).expect("pruned");
                }
            };
            let (repository, stop) = stopping(&world, at, prune);
            let what = format!("seed {seed}, stopped at {at} for {prunes} prunes");
            let mut known = known.clone();
            let taken = take(&repository, &model, Some(known[1].0), 9);
            let was_stopped = stop.action.lock().take().is_none();
            match taken {
                Ok(root) => {
                    known.push((root.id, model.settled()));
                    finished += 1;
                }
                Err(Error::Overtaken(_)) => overtaken += 1,
                Err(error) => panic!("{what}: {error}"),
            }
            check_known(&repository, &known, &what);
            settle(&repository, &PruneOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            check_known(&repository, &known, &what);
            if !was_stopped {
                break;
            }
        }
    }
    (finished, overtaken)
}

#[test]
fn a_writer_stopped_anywhere_while_a_prune_runs_stores_a_whole_snapshot_or_none() {
    let (finished, overtaken) =
        writer_stopped_everywhere(1, || PruneOptions { live_percent_min: 95, ..PruneOptions::default() });
    println!("{finished} finished, {overtaken} overtaken");
    assert!(finished > 100 && overtaken > 20, "{finished} finished, {overtaken} overtaken");
}

#[test]
fn a_writer_stopped_anywhere_while_prunes_give_it_up_finds_out_or_had_finished() {
    for prunes in [1, 2, 7] {
        let (finished, overtaken) =
            writer_stopped_everywhere(prunes, || PruneOptions { give_up_after: 1, ..PruneOptions::default() });
        println!("{prunes} prunes: {finished} finished, {overtaken} overtaken");
        assert!(prunes == 1 || overtaken > 100, "{finished} finished, {overtaken} overtaken");
    }
}

#[test]
fn a_prune_stopped_anywhere_while_a_snapshot_is_stored_leaves_it_whole() {
    let mut points = 0;
    for seed in 0..3 {
        let (world, known, model) = prepared(seed);
        for at in 0.. {
            let world = world.fork();
            let (beside, parent, volume) = (world.clone(), known[1].0, model.clone());
            let stored = Arc::new(Mutex::new(None));
            let note = stored.clone();
            let store = move || {
                let repository = Repository::open(beside.device("repository"), None).expect("opens");
                let wish = options(Some(parent));
                let taken = super::lab::take_with(&repository, &volume, wish, 9);
                // The parent goes as soon as there is a child.
                if taken.is_ok() {
                    repository.delete(parent).expect("deleted");
                }
                *note.lock() = Some(taken);
            };
            let (repository, _) = stopping(&world, at, store);
            let what = format!("seed {seed}, stopped at {at}");
            let prune = PruneOptions { live_percent_min: 95, ..PruneOptions::default() };
            repository.prune(&prune).unwrap_or_else(|e| panic!("{what}: {e}"));
            let taken = stored.lock().take();
            let mut known = known.clone();
            match taken {
                Some(Ok(root)) => {
                    known.pop();
                    known.push((root.id, model.settled()));
                }
                Some(Err(Error::Overtaken(_))) => {}
                Some(Err(error)) => panic!("{what}: {error}"),
                None => break,
            }
            check_known(&repository, &known, &what);
            settle(&repository, &PruneOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
            check_known(&repository, &known, &what);
            points += 1;
        }
    }
    println!("{points} points");
    assert!(points > 300, "only {points} points");
}

/// A prune that sleeps while others end its round, and more: what it decided then is void.
#[test]
fn a_prune_that_slept_deletes_nothing_by_its_old_lists() {
    let mut overtaken = 0;
    let (world, known, model) = prepared(7);
    for at in 0.. {
        let world = world.fork();
        let (beside, parent, volume) = (world.clone(), known[1].0, model.clone());
        let stored = Arc::new(Mutex::new(None));
        let note = stored.clone();
        let others = move || {
            let repository = Repository::open(beside.device("repository"), None).expect("opens");
            repository.prune(&PruneOptions::default()).expect("pruned");
            let taken = take(&repository, &volume, Some(parent), 9).expect("taken");
            settle(&repository, &PruneOptions { live_percent_min: 95, ..PruneOptions::default() }).expect("pruned");
            *note.lock() = Some(taken);
        };
        let (repository, _) = stopping(&world, at, others);
        let what = format!("stopped at {at}");
        match repository.prune(&PruneOptions { live_percent_min: 95, ..PruneOptions::default() }) {
            Ok(_) => {}
            Err(Error::Overtaken(_)) => overtaken += 1,
            // A file of a round that others have cleared away.
            Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => overtaken += 1,
            Err(error) => panic!("{what}: {error}"),
        }
        let Some(root) = stored.lock().take() else { break };
        let mut known = known.clone();
        known.push((root.id, model.settled()));
        check_known(&repository, &known, &what);
        settle(&repository, &PruneOptions::default()).unwrap_or_else(|e| panic!("{what}: {e}"));
        check_known(&repository, &known, &what);
    }
    assert!(overtaken > 0);
}

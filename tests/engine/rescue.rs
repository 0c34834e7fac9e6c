//! What a tier cannot read and the last snapshot has: the right bytes or an error, never older ones.

use crate::harness::{BLOCK, FILES, Harness, Model, Op, Random, TIERS};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::error::{Error, Result};
use heatfs::tier::objects::object_path;
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{File, Mark, Severity, SnapshotStore, Volume, Wait};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use uuid::Uuid;

const PAGE: u64 = 4096;
const HDD: TierId = TierId(2);

type Files = HashMap<FileId, Vec<u8>>;

/// A repository in memory.
#[derive(Default)]
struct Repository {
    snapshots: Mutex<HashMap<Uuid, Files>>,
    /// Nothing can be read.
    gone: AtomicBool,
    /// Every chunk is damaged.
    rotten: AtomicBool,
    reads: AtomicU64,
    /// Called once, when a read begins and when it is about to return.
    before: Mutex<Option<Box<dyn FnOnce() + Send>>>,
    after: Mutex<Option<Box<dyn FnOnce() + Send>>>,
}

impl SnapshotStore for Repository {
    fn read(&self, mark: Uuid, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        let before = self.before.lock().take();
        before.into_iter().for_each(|before| before());
        if self.gone.load(Ordering::SeqCst) {
            return Err(Error::io("open repository", "/gone", std::io::ErrorKind::NotFound.into()));
        }
        if self.rotten.load(Ordering::SeqCst) {
            // As far as it came.
            buf.fill(0xbb);
            let why = "the bytes are not those of the object".to_owned();
            return Err(Error::Corrupt { what: "pack", path: "/packs/0".to_owned(), offset, why });
        }
        let snapshots = self.snapshots.lock();
        let missing = |what: &str| Error::NotFound(what.to_owned());
        let files = snapshots.get(&mark).ok_or_else(|| missing("no such snapshot"))?;
        let content = files.get(&file).ok_or_else(|| missing("no such file"))?;
        buf.fill(0);
        let from = usize::try_from(offset).expect("small").min(content.len());
        let to = (from + buf.len()).min(content.len());
        buf[..to - from].copy_from_slice(&content[from..to]);
        drop(snapshots);
        let after = self.after.lock().take();
        after.into_iter().for_each(|after| after());
        Ok(())
    }
}

struct Lab {
    harness: Harness,
    repository: Arc<Repository>,
}

impl Lab {
    fn new(seed: u64) -> Lab {
        let harness = Harness::new(SimWorld::new(seed)).expect("a new volume opens");
        Lab { harness, repository: Arc::default() }.attached()
    }

    fn attached(self) -> Lab {
        self.volume().rescue_from(self.repository.clone());
        self
    }

    /// After a power cut.
    fn recovered(&self, survival: Survival) -> Lab {
        let world = self.harness.world.recover(survival);
        let harness = Harness::open(world, self.harness.ids.clone()).expect("opens");
        Lab { harness, repository: self.repository.clone() }.attached()
    }

    fn volume(&self) -> &Arc<Volume> {
        self.harness.volume()
    }

    fn file(&self) -> Arc<File> {
        self.volume().file(self.harness.ids[0]).expect("known")
    }

    fn write(&self, offset: u64, byte: u8, len: u64) {
        let data = vec![byte; usize::try_from(len).expect("small")];
        self.volume().write(&self.file(), offset, &data, Wait::Allowed).expect("writes");
    }

    fn settle(&self) {
        self.volume().coalesce_all(&mut |_, _| {}).expect("coalesces");
        self.volume().checkpoint().expect("checkpoints");
    }

    /// Four blocks, each page with a byte of its own, on the slowest tier.
    fn filled(self) -> Lab {
        (0..4 * BLOCK / PAGE).for_each(|page| self.write(page * PAGE, self.byte(page * PAGE), PAGE));
        self.settle();
        assert_eq!(self.volume().move_run(&self.file(), BlockNo(0), 4, HDD).expect("moves"), 4);
        self.volume().checkpoint().expect("checkpoints");
        self
    }

    fn byte(&self, offset: u64) -> u8 {
        u8::try_from(offset / PAGE + 1).expect("small")
    }

    fn mark(&self, snapshot: u128) -> Arc<Mark> {
        let mark = self.volume().mark(Uuid::from_u128(snapshot)).expect("a mark is taken");
        self.volume().wait_for_mark(&mark).expect("durable");
        mark
    }

    /// Stores what there is at the mark. Errors: what cannot be read.
    fn capture(&self, mark: &Mark) -> Result<()> {
        let mut files = Files::new();
        for at in self.volume().files_at(mark)? {
            let mut content = vec![0; usize::try_from(at.size_bytes).expect("small")];
            self.volume().read_at(mark, at.file, 0, &mut content)?;
            files.insert(at.file, content);
        }
        self.repository.snapshots.lock().insert(mark.snapshot, files);
        Ok(())
    }

    fn snapshot(&self, snapshot: u128) {
        let mark = self.mark(snapshot);
        self.capture(&mark).expect("everything can be read");
        self.volume().publish_mark(&mark, None).expect("publishes");
    }

    fn break_page(&self, tier: TierId, offset: u64) {
        let path = object_path(self.harness.ids[0]);
        self.harness.world.device(TIERS[tier.index()]).break_range(&path, offset, PAGE).expect("breaks");
    }

    fn read(&self, offset: u64, len: u64) -> Result<Vec<u8>> {
        let mut buf = vec![0xee; usize::try_from(len).expect("small")];
        let got = self.volume().read(&self.file(), offset, &mut buf, Wait::Allowed)?;
        buf.truncate(got);
        Ok(buf)
    }

    fn assert_page(&self, offset: u64, byte: u8) {
        let page = self.read(offset, PAGE).unwrap_or_else(|error| panic!("the page at {offset} can be read: {error}"));
        assert_eq!(page, vec![byte; PAGE as usize], "the page at {offset}");
    }

    fn assert_lost(&self, offset: u64) {
        let error = self.read(offset, PAGE).expect_err("EIO");
        assert!(matches!(error, Error::Io { .. }), "{error}");
    }

    /// Reads that were rescued, and pages written again.
    fn rescued(&self) -> (u64, u64) {
        let counters = self.volume().status().counters;
        (counters.base_reads_rescued.iter().sum(), counters.base_pages_rewritten.iter().sum())
    }

    fn asked(&self) -> u64 {
        self.repository.reads.load(Ordering::SeqCst)
    }
}

/// A bad sector used to be an error though the last snapshot had its bytes. They are answered, and written again where they were.
#[test]
fn what_is_as_in_the_last_snapshot_is_read_from_there_and_written_again() {
    let lab = Lab::new(1).filled();
    lab.snapshot(1);
    let bad = BLOCK + PAGE;
    lab.break_page(HDD, bad);
    let all: Vec<u8> = (0..4 * BLOCK).map(|at| lab.byte(at)).collect();
    assert_eq!(lab.read(0, 4 * BLOCK).expect("readable"), all);
    assert_eq!((lab.rescued(), lab.asked()), ((1, 1), 1), "one page, and no other");
    let status = lab.volume().status();
    assert!(status.counters.base_read_errors[2] > 0);
    let told = |line: &String| line.contains("hdd") && line.contains("snapshot") && line.contains("device");
    assert!(status.degraded.iter().any(told), "{:?}", status.degraded);
    assert_eq!(lab.read(bad + 5, 10).expect("readable"), vec![lab.byte(bad); 10]);
    assert_eq!(lab.asked(), 1, "it is where it belongs");
    assert_eq!(lab.volume().check(true).expect("checks"), vec![]);
    assert!(lab.volume().status().degraded.is_empty(), "everything was read");
    lab.volume().checkpoint().expect("syncs what was written");
    let lab = lab.recovered(Survival::None);
    lab.repository.gone.store(true, Ordering::SeqCst);
    assert_eq!(lab.read(0, 4 * BLOCK).expect("durable"), all);
}

/// The front must never wait for a repository: it is told to hand over, but only if there is something to be had.
#[test]
fn a_read_that_may_not_wait_is_not_answered_from_a_snapshot() {
    let lab = Lab::new(2);
    (0..4).for_each(|page| lab.write(page * PAGE, 7, PAGE));
    lab.settle();
    lab.snapshot(1);
    lab.break_page(TierId::FASTEST, 0);
    let mut buf = [0; 100];
    let answer = lab.volume().read(&lab.file(), 0, &mut buf, Wait::Never);
    assert!(matches!(answer, Err(Error::WouldWait)), "{answer:?}");
    assert_eq!(lab.asked(), 0);
    lab.volume().read(&lab.file(), 0, &mut buf, Wait::Allowed).expect("from the snapshot");
    assert_eq!(buf, [7; 100]);
    lab.volume().read(&lab.file(), 0, &mut buf, Wait::Never).expect("written again");
    lab.write(0, 8, PAGE);
    lab.settle();
    lab.break_page(TierId::FASTEST, 0);
    let answer = lab.volume().read(&lab.file(), 0, &mut buf, Wait::Never);
    assert!(matches!(answer, Err(Error::Io { .. })), "{answer:?}");
}

/// R16: a page that changed is not what the snapshot has, however it changed and wherever the change is.
#[test]
fn what_changed_since_the_last_snapshot_is_an_error() {
    type Change = fn(&Lab);
    let changes: [(&str, Change); 6] = [
        ("written and applied", |lab| {
            lab.write(BLOCK, 99, PAGE);
            lab.settle();
        }),
        ("written beside, in the same page of the change map", |lab| {
            lab.write(BLOCK + PAGE, 99, 1);
            lab.settle();
        }),
        ("a part of it written, in the log only", |lab| lab.write(BLOCK + 10, 99, 10)),
        ("cut, and grown again", |lab| {
            lab.volume().set_size(&lab.file(), BLOCK + 100).expect("cuts");
            lab.volume().set_size(&lab.file(), 4 * BLOCK).expect("grows");
        }),
        ("punched in part", |lab| lab.volume().punch_hole(&lab.file(), BLOCK + 1, PAGE - 2).expect("punches")),
        ("written, and in a snapshot that is not published", |lab| {
            lab.write(BLOCK, 99, PAGE);
            lab.settle();
            lab.capture(&lab.mark(2)).expect("readable");
        }),
    ];
    for (what, change) in changes {
        let lab = Lab::new(3).filled();
        lab.snapshot(1);
        change(&lab);
        lab.volume().sync_log().expect("syncs");
        let newest = lab.read(BLOCK, PAGE).expect("readable");
        lab.break_page(HDD, BLOCK);
        lab.break_page(HDD, 3 * BLOCK);
        lab.assert_lost(BLOCK);
        let before = lab.rescued();
        if !what.starts_with("cut") {
            lab.assert_page(3 * BLOCK, lab.byte(3 * BLOCK));
            assert_eq!(lab.rescued(), (before.0 + 1, before.1 + 1), "{what}: another page is as it was");
        }
        assert_eq!(before, (0, 0), "{what}");
        // After a power cut, too; what the log still has is read from there.
        match lab.recovered(Survival::All).read(BLOCK, PAGE) {
            Ok(seen) => assert!(seen == newest, "{what}: after a power cut"),
            Err(error) => assert!(matches!(error, Error::Io { .. }), "{what}: {error}"),
        }
    }
}

/// A snapshot is one to go by from its publishing on, and so is what it holds.
#[test]
fn a_newer_snapshot_has_the_newer_bytes() {
    let lab = Lab::new(4).filled();
    lab.snapshot(1);
    lab.write(BLOCK, 99, PAGE);
    lab.settle();
    let second = lab.mark(2);
    lab.capture(&second).expect("readable");
    lab.break_page(HDD, BLOCK);
    lab.assert_lost(BLOCK);
    lab.volume().publish_mark(&second, None).expect("publishes");
    lab.assert_page(BLOCK, 99);
    assert_eq!(lab.rescued(), (1, 1));
}

/// Without a snapshot, without its repository, and when that is damaged, it is the device's error; and nothing is written.
#[test]
fn without_a_copy_that_can_be_read_it_is_an_error() {
    let lab = Lab::new(5).filled();
    lab.break_page(HDD, BLOCK);
    lab.assert_lost(BLOCK);
    assert_eq!(lab.asked(), 0, "nothing was ever published");
    lab.write(BLOCK, lab.byte(BLOCK), PAGE);
    lab.settle();
    lab.snapshot(1);
    lab.break_page(HDD, BLOCK);
    for broken in [&lab.repository.gone, &lab.repository.rotten] {
        broken.store(true, Ordering::SeqCst);
        lab.assert_lost(BLOCK);
        broken.store(false, Ordering::SeqCst);
    }
    let kept = std::mem::take(&mut *lab.repository.snapshots.lock());
    lab.assert_lost(BLOCK);
    assert_eq!((lab.rescued(), lab.asked()), ((0, 0), 3));
    *lab.repository.snapshots.lock() = kept;
    lab.assert_page(BLOCK, lab.byte(BLOCK));
    let other = Harness::open(lab.recovered(Survival::All).harness.world.fork(), lab.harness.ids.clone());
    drop(other.expect("a volume without a repository opens"));
}

/// What was moved is a whole image, and the copy that could not be read is not kept as one.
#[test]
fn a_move_takes_the_snapshots_bytes_along() {
    let lab = Lab::new(6).filled();
    lab.snapshot(1);
    lab.break_page(HDD, BLOCK + PAGE);
    assert_eq!(lab.volume().move_run(&lab.file(), BlockNo(0), 4, TierId::FASTEST).expect("moves"), 4);
    assert_eq!(lab.rescued(), (1, 0), "whoever moves a block need not mend the old place");
    lab.repository.gone.store(true, Ordering::SeqCst);
    let all: Vec<u8> = (0..4 * BLOCK).map(|at| lab.byte(at)).collect();
    assert_eq!(lab.read(0, 4 * BLOCK).expect("readable"), all);
    assert!(!lab.volume().flip_down(&lab.file(), BlockNo(1)).expect("asked"), "there is no copy to go back to");
    lab.volume().checkpoint().expect("checkpoints");
    assert_eq!(lab.recovered(Survival::None).read(0, 4 * BLOCK).expect("durable"), all);
}

/// A bad sector beneath a block that has a clean copy on another tier used to be an error all the same. The copy needs no snapshot, and holds what lies beneath
/// newer records, too.
#[test]
fn a_clean_copy_on_another_tier_is_used() {
    let lab = Lab::new(15).filled();
    assert_eq!(lab.volume().move_run(&lab.file(), BlockNo(0), 4, TierId::FASTEST).expect("moves"), 4);
    lab.volume().checkpoint().expect("checkpoints");
    let mut expected: Vec<u8> = (0..4 * BLOCK).map(|at| lab.byte(at)).collect();
    lab.break_page(TierId::FASTEST, BLOCK);
    let mut page = [0; PAGE as usize];
    let answer = lab.volume().read(&lab.file(), BLOCK, &mut page, Wait::Never);
    assert!(matches!(answer, Err(Error::WouldWait)), "{answer:?}");
    assert_eq!(lab.read(0, 4 * BLOCK).expect("readable"), expected);
    assert_eq!(lab.rescued(), (1, 1));
    assert_eq!(lab.volume().check(true).expect("checks"), vec![]);
    lab.break_page(TierId::FASTEST, 2 * BLOCK);
    lab.write(2 * BLOCK + 100, 77, 100);
    expected[2 * BLOCK as usize + 100..][..100].fill(77);
    assert_eq!(lab.read(0, 4 * BLOCK).expect("readable"), expected, "beneath a record, too");
    lab.break_page(TierId::FASTEST, 2 * BLOCK);
    lab.settle();
    assert_eq!(lab.read(0, 4 * BLOCK).expect("readable"), expected);
    lab.break_page(TierId::FASTEST, 2 * BLOCK);
    lab.assert_lost(2 * BLOCK);
    lab.assert_lost(2 * BLOCK);
    assert_eq!(lab.asked(), 0, "and a copy that is older than the base is none");
    lab.write(2 * BLOCK, 78, PAGE);
    lab.settle();
    lab.recovered(Survival::None).assert_page(2 * BLOCK, 78);
}

/// A place that takes no writes either is left for another tier.
#[test]
fn what_cannot_be_written_again_moves_away() {
    let lab = Lab::new(7).filled();
    lab.snapshot(1);
    lab.break_page(HDD, BLOCK);
    lab.harness.world.device("hdd").break_writes(true);
    lab.assert_page(BLOCK, lab.byte(BLOCK));
    assert_eq!(lab.rescued().1, 1);
    let there = lab.volume().block_map(&lab.file()).into_iter().find(|(first, ..)| *first == BlockNo(1));
    assert_eq!(there.and_then(|(_, _, tier, _)| tier), Some(TierId::FASTEST));
    lab.repository.gone.store(true, Ordering::SeqCst);
    lab.assert_page(BLOCK, lab.byte(BLOCK));
    lab.harness.world.device("hdd").break_writes(false);
    lab.settle();
    lab.recovered(Survival::None).assert_page(BLOCK, lab.byte(BLOCK));
}

/// A snapshot used to fail on a sector that the one before it had in full.
#[test]
fn a_capture_goes_on_over_what_its_parent_has() {
    let lab = Lab::new(8).filled();
    lab.snapshot(1);
    lab.write(0, 50, PAGE);
    lab.settle();
    lab.break_page(HDD, 2 * BLOCK);
    lab.snapshot(2);
    let content = lab.repository.snapshots.lock()[&Uuid::from_u128(2)][&lab.harness.ids[0]].clone();
    let expected: Vec<u8> = (0..4 * BLOCK).map(|at| if at < PAGE { 50 } else { lab.byte(at) }).collect();
    assert_eq!(content, expected);
}

/// A mark older than the last published one wants bytes that are older than that one's.
#[test]
fn a_mark_before_the_last_snapshot_never_gets_newer_bytes() {
    let lab = Lab::new(9).filled();
    let old = lab.mark(1);
    lab.write(BLOCK, 99, PAGE);
    lab.snapshot(2);
    lab.break_page(HDD, BLOCK);
    lab.break_page(HDD, 2 * BLOCK);
    let mut page = vec![0; PAGE as usize];
    let read = |page: &mut Vec<u8>, at| lab.volume().read_at(&old, lab.harness.ids[0], at, page);
    assert!(matches!(read(&mut page, BLOCK), Err(Error::Io { .. })), "records lie over it");
    assert_eq!(read(&mut page, 2 * BLOCK).expect("the same at both"), PAGE as usize);
    assert_eq!(page, vec![lab.byte(2 * BLOCK); PAGE as usize]);
    lab.assert_page(BLOCK, 99);
}

/// What is written while the snapshot is read is not written over.
#[test]
fn a_write_while_the_snapshot_is_read_wins() {
    for steps in 0..3 {
        let lab = Lab::new(13).filled();
        lab.snapshot(1);
        lab.break_page(HDD, BLOCK);
        let (volume, file) = (lab.volume().clone(), lab.file());
        *lab.repository.after.lock() = Some(Box::new(move || {
            volume.write(&file, BLOCK, &[99; PAGE as usize], Wait::Allowed).expect("writes");
            if steps > 0 {
                // A checkpoint would wait for this very reader.
                volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
            }
            if steps > 1 {
                let mark = volume.mark(Uuid::from_u128(2)).expect("a mark is taken");
                volume.wait_for_mark(&mark).expect("durable");
                volume.publish_mark(&mark, None).expect("publishes");
            }
        }));
        let seen = lab.read(BLOCK, PAGE).expect("from the snapshot, or newer");
        assert!([vec![lab.byte(BLOCK); PAGE as usize], vec![99; PAGE as usize]].contains(&seen), "{}", seen[0]);
        lab.assert_page(BLOCK, 99);
        lab.settle();
        lab.assert_page(BLOCK, 99);
        lab.recovered(Survival::None).assert_page(BLOCK, 99);
    }
}

/// A reader is not told of a sector that nobody needs any more.
#[test]
fn a_read_that_fails_where_somebody_has_written_meanwhile_is_made_again() {
    let lab = Lab::new(14).filled();
    lab.snapshot(1);
    lab.break_page(HDD, BLOCK);
    let (volume, file, repository) = (lab.volume().clone(), lab.file(), lab.repository.clone());
    *lab.repository.before.lock() = Some(Box::new(move || {
        volume.write(&file, BLOCK, &[99; PAGE as usize], Wait::Allowed).expect("writes");
        repository.gone.store(true, Ordering::SeqCst);
    }));
    lab.assert_page(BLOCK, 99);
}

/// A deep check is a reader as well: it tells of the sector, and mends it.
#[test]
fn a_deep_check_tells_and_mends() {
    let lab = Lab::new(10).filled();
    lab.snapshot(1);
    lab.break_page(HDD, BLOCK);
    lab.write(3 * BLOCK, 99, PAGE);
    lab.settle();
    lab.break_page(HDD, 3 * BLOCK);
    let found = lab.volume().check(true).expect("checks");
    let severities: Vec<Severity> = found.iter().map(|finding| finding.severity).collect();
    assert_eq!(severities, [Severity::Notice, Severity::Damage], "{found:?}");
    lab.write(3 * BLOCK, 98, PAGE);
    lab.settle();
    assert_eq!(lab.volume().check(true).expect("checks"), vec![]);
    assert!(lab.volume().status().degraded.is_empty(), "{:?}", lab.volume().status().degraded);
}

/// A write over a bad sector whose edges lie in pages beside it could not be applied: all pages that it touches were read, and the log could not be drained past
/// it. Only those that are not written whole have to be read.
#[test]
fn a_bad_sector_that_is_written_over_whole_is_not_read() {
    let lab = Lab::new(11).filled();
    lab.break_page(HDD, BLOCK + PAGE);
    lab.write(BLOCK + 100, 77, 2 * PAGE);
    lab.settle();
    let mut expected = vec![lab.byte(BLOCK); 100];
    expected.resize(100 + 2 * PAGE as usize, 77);
    expected.resize(3 * PAGE as usize, lab.byte(BLOCK + 2 * PAGE));
    assert_eq!(lab.read(BLOCK, 3 * PAGE).expect("readable"), expected);
    lab.break_page(HDD, BLOCK);
    lab.write(BLOCK + 100, 78, PAGE);
    lab.volume().coalesce_all(&mut |_, _| {}).expect_err("what lies beside the written bytes is lost");
}

/// A crash at any operation of mending leaves the bytes, or what is needed to find them again.
#[test]
fn a_crash_while_mending_loses_nothing() {
    let lab = Lab::new(12).filled();
    lab.snapshot(1);
    lab.write(0, 50, PAGE);
    lab.break_page(HDD, BLOCK + PAGE);
    lab.break_page(HDD, 2 * BLOCK);
    lab.volume().sync_log().expect("syncs");
    let expected: Vec<u8> = (0..4 * BLOCK).map(|at| if at < PAGE { 50 } else { lab.byte(at) }).collect();
    let before = lab.recovered(Survival::All).harness.world.fork();
    let mut operation = 0;
    loop {
        let world = before.fork();
        world.crash_at(operation);
        let mended = Harness::open(world.clone(), lab.harness.ids.clone()).and_then(|harness| {
            let lab = Lab { harness, repository: lab.repository.clone() }.attached();
            assert!(lab.read(0, 4 * BLOCK).is_ok_and(|seen| seen == expected) || world.crashed());
            lab.volume().checkpoint()?;
            lab.volume().coalesce_all(&mut |_, _| {})?;
            lab.volume().checkpoint()
        });
        for survival in [Survival::None, Survival::All, Survival::Seed(operation)] {
            let harness = Harness::open(world.recover(survival), lab.harness.ids.clone()).expect("opens");
            let after = Lab { harness, repository: lab.repository.clone() }.attached();
            assert_eq!(after.read(0, 4 * BLOCK).expect("found again"), expected, "crash at {operation}");
        }
        if !world.crashed() {
            mended.expect("nothing fails without a crash");
            break;
        }
        operation += 1;
    }
    assert!(operation > 10, "only {operation} operations");
}

/// Random operations, snapshots and bad sectors: every page reads as the model says, or not at all.
fn compare(seed: u64) -> (u64, u64) {
    let mut random = Random(seed);
    let mut lab = Lab::new(seed);
    let (mut model, mut rescued, mut lost) = (Model::default(), 0, 0);
    let mut snapshots = 0;
    for index in 0..150 {
        let op = random.op(true);
        match op {
            Op::Reopen { .. } => {
                lab.volume().sync_log().expect("syncs");
                rescued += lab.rescued().0;
                lab = lab.recovered(Survival::All);
            }
            _ => {
                let mut after = model.clone();
                match (lab.harness.run(index, &op), after.apply(index, &op)) {
                    // What lies over a part of a bad page keeps the log from being drained.
                    (Err(Error::LogFull), true) => break,
                    (Err(error), true) => panic!("operation {index} {op:?}: {error}"),
                    // What else fails says so, and changes nothing.
                    (_, _) => model = after,
                }
            }
        }
        if random.below(8) == 0 {
            snapshots += 1;
            let mark = lab.mark(snapshots);
            if lab.capture(&mark).is_ok() {
                lab.volume().publish_mark(&mark, None).expect("publishes");
            } else {
                lab.volume().release_mark(&mark);
            }
        }
        if random.below(4) == 0 {
            let id = lab.harness.ids[usize::try_from(random.below(FILES as u64)).expect("small")];
            let device = lab.harness.world.device(TIERS[usize::try_from(random.below(3)).expect("small")]);
            // Where there is no object there is nothing to break.
            let _ = device.break_range(&object_path(id), random.below(50) * PAGE, PAGE);
        }
        if random.below(6) == 0 {
            lost += read_all(&lab, &model, &format!("seed {seed}, operation {index} {op:?}"));
        }
    }
    lost += read_all(&lab, &model, &format!("seed {seed}, the end"));
    (rescued + lab.rescued().0, lost)
}

/// Returns how many pages could not be read.
fn read_all(lab: &Lab, model: &Model, when: &str) -> u64 {
    let mut lost = 0;
    for (n, content) in model.files.iter().enumerate() {
        let file = lab.volume().file(lab.harness.ids[n]).expect("known");
        for (page, expected) in content.chunks(PAGE as usize).enumerate() {
            let mut buf = vec![0xee; PAGE as usize];
            match lab.volume().read(&file, page as u64 * PAGE, &mut buf, Wait::Allowed) {
                Ok(got) => assert!(buf[..got] == *expected, "{when}: page {page} of file {n}"),
                Err(Error::Io { .. }) => lost += 1,
                Err(error) => panic!("{when}: page {page} of file {n}: {error}"),
            }
        }
    }
    lost
}

#[test]
fn under_random_bad_sectors_pages_are_right_or_errors() {
    let (mut rescued, mut lost) = (0, 0);
    for seed in 0..60 {
        let (more_rescued, more_lost) = compare(seed);
        (rescued, lost) = (rescued + more_rescued, lost + more_lost);
    }
    assert!(rescued > 50 && lost > 10, "{rescued} reads were rescued, {lost} were not");
}

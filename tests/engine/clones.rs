//! Volumes that were made of a snapshot: what is in the repository is read from there, written over, cut, snapshotted and hydrated, and always
//! reads as the model says.

use crate::harness::{BLOCK, FILES, Harness, Model, Op, Random};
use heatfs::device::sim::SimWorld;
use heatfs::error::{Error, Result};
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{ClonedFile, File, Seek, Severity, SourceSnapshot, Volume, Wait};
use parking_lot::Mutex;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use uuid::Uuid;

/// A snapshot in memory. Zeroed blocks of the first file are holes, those of others zeros that were written.
pub struct Memory {
    files: Vec<Vec<u8>>,
    /// Nothing can be read.
    gone: AtomicBool,
    /// File and offset of a damaged byte.
    damaged: Mutex<Option<(FileId, u64)>>,
    reads: AtomicU64,
    /// Called while a read is under way.
    during: Mutex<Option<Box<dyn FnMut() + Send>>>,
}

impl SourceSnapshot for Memory {
    fn read(&self, file: FileId, offset: u64, buf: &mut [u8]) -> Result<()> {
        self.reads.fetch_add(1, Ordering::SeqCst);
        if self.gone.load(Ordering::SeqCst) {
            return Err(Error::io("open repository", "/gone", std::io::ErrorKind::NotFound.into()));
        }
        let end = offset + buf.len() as u64;
        if let Some((id, at)) = *self.damaged.lock()
            && id == file
            && offset <= at
            && at < end
        {
            let why = "the bytes are not those of the object".to_owned();
            return Err(Error::Corrupt { what: "pack", path: "/packs/0".to_owned(), offset: at, why });
        }
        let content = &self.files[usize::try_from(file.0 - 1).expect("small")];
        buf.fill(0);
        let from = usize::try_from(offset).expect("small").min(content.len());
        let to = usize::try_from(end).expect("small").min(content.len());
        buf[..to - from].copy_from_slice(&content[from..to]);
        if let Some(during) = self.during.lock().as_mut() {
            during();
        }
        Ok(())
    }

    fn is_hole(&self, file: FileId, _start: u64, _end: u64) -> Result<bool> {
        Ok(file == FileId(1))
    }
}

/// Some blocks of bytes, some of zeros, with an end within a block.
pub fn snapshot(seed: u64) -> (Arc<Memory>, Model) {
    let mut random = Random(seed ^ 0xc10e);
    let mut model = Model::default();
    for content in &mut model.files {
        content.resize(usize::try_from(150_000 + random.below(60_000)).expect("small"), 0);
        for (block, bytes) in content.chunks_mut(BLOCK as usize).enumerate() {
            if random.below(4) > 0 {
                bytes.iter_mut().for_each(|byte| *byte = u8::try_from(1 + random.below(255)).expect("a byte"));
            } else if block % 2 == 0 && bytes.len() > 200 {
                bytes[100..200].fill(7);
            }
        }
    }
    let memory = Memory {
        files: model.files.to_vec(),
        gone: AtomicBool::new(false),
        damaged: Mutex::new(None),
        reads: AtomicU64::new(0),
        during: Mutex::new(None),
    };
    (Arc::new(memory), model)
}

pub fn ids() -> Vec<FileId> {
    (1..=FILES as u64).map(FileId).collect()
}

pub fn make(world: &SimWorld, model: &Model) -> Result<()> {
    let file = |(content, id): (&Vec<u8>, FileId)| {
        let size_bytes = content.len() as u64;
        ClonedFile { file: id, size_bytes, source: id, data: vec![(0, size_bytes)] }
    };
    Harness::make_clone(world, model.files.iter().zip(ids()).map(file).collect())
}

fn opened(seed: u64) -> (Harness, Arc<Memory>, Model) {
    let (memory, model) = snapshot(seed);
    let world = SimWorld::new(seed);
    make(&world, &model).expect("a clone is made");
    let harness = Harness::open_with(world, ids(), Some(memory.clone())).expect("a clone opens");
    (harness, memory, model)
}

fn file(harness: &Harness, n: usize) -> Arc<File> {
    harness.volume().file(harness.ids[n]).expect("known")
}

fn read(harness: &Harness, n: usize, offset: u64, len: u64) -> Result<Vec<u8>> {
    let mut buf = vec![0xee; usize::try_from(len).expect("small")];
    let got = harness.volume().read(&file(harness, n), offset, &mut buf, Wait::Allowed)?;
    buf.truncate(got);
    Ok(buf)
}

fn hydrate_all(volume: &Volume) {
    for id in volume.files_in_repository().expect("the rows are readable") {
        let file = volume.file(id).expect("known");
        while let Some(block) = volume.next_in_repository(&file, BlockNo(0)) {
            assert!(volume.hydrate(&file, block, 4).expect("hydrates").blocks > 0, "nobody else is at it");
        }
    }
}

fn damage(volume: &Volume) -> Vec<String> {
    let findings = volume.check(true).expect("the check runs");
    findings.into_iter().filter(|found| found.severity == Severity::Damage).map(|found| found.what).collect()
}

#[test]
fn a_new_clone_reads_as_the_snapshot_and_copies_nothing() {
    let (harness, memory, model) = opened(1);
    let volume = harness.volume();
    let blocks: u64 = model.files.iter().map(|content| (content.len() as u64).div_ceil(BLOCK)).sum();
    assert_eq!(volume.bytes_in_repository(), blocks * BLOCK);
    assert_eq!(volume.status().promised_bytes, blocks * BLOCK, "the space of their images is promised");
    assert_eq!(memory.reads.load(Ordering::SeqCst), 0);
    assert_eq!(harness.contents().expect("readable"), model);
    assert!(volume.status().tiers.iter().all(|tier| tier.blocks == 0), "reading places nothing");
    let attr = volume.attr(&file(&harness, 0));
    assert_eq!(attr.size_bytes, model.files[0].len() as u64);
    assert_eq!(attr.blocks_512 * 512, (model.files[0].len() as u64).next_multiple_of(4096));
    assert_eq!(volume.seek(&file(&harness, 0), 0, Seek::Data), Some(0), "what is in the repository is data (R20)");
    assert_eq!(volume.seek(&file(&harness, 0), 0, Seek::Hole), Some(model.files[0].len() as u64));
    assert!(volume.issue_file_id().expect("issues").0 > FILES as u64, "ids of the snapshot are not issued again");
}

/// The front must never wait: it is told to hand over.
#[test]
fn a_read_that_may_not_wait_is_not_answered_from_the_repository() {
    let (harness, memory, _) = opened(2);
    let mut buf = [0; 100];
    let answer = harness.volume().read(&file(&harness, 0), 0, &mut buf, Wait::Never);
    assert!(matches!(answer, Err(Error::WouldWait)));
    assert_eq!(memory.reads.load(Ordering::SeqCst), 0);
    harness.volume().write(&file(&harness, 0), 0, &[1; 100], Wait::Never).expect("a write needs no base");
    harness.volume().read(&file(&harness, 0), 0, &mut buf, Wait::Never).expect("the overlay covers it");
}

fn compare(seed: u64, ops: &[Op]) {
    let (mut harness, _, mut model) = opened(seed);
    for (index, op) in ops.iter().enumerate() {
        harness.run(index, op).unwrap_or_else(|error| panic!("operation {index} {op:?}: {error}"));
        model.apply(index, op);
        let seen = harness.contents().expect("contents are readable");
        for n in 0..FILES {
            assert_eq!(seen.files[n].len(), model.files[n].len(), "size of file {n} after operation {index} {op:?}");
            let differs = seen.files[n].iter().zip(&model.files[n]).position(|(a, b)| a != b);
            assert_eq!(differs, None, "file {n} after operation {index} {op:?}");
        }
    }
    assert_eq!(damage(harness.volume()), Vec::<String>::new());
    let volume = harness.volume();
    hydrate_all(volume);
    assert_eq!(volume.bytes_in_repository(), 0);
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    assert!(!volume.needs_repository());
    assert_eq!(harness.contents().expect("readable"), model);
    let promised: u64 = volume.status().promised_bytes;
    harness.run(0, &Op::Reopen { clean: true }).expect("reopens");
    assert_eq!(
        harness.volume().status().promised_bytes,
        promised,
        "what is promised is counted alike by the next mount"
    );
    assert_eq!(harness.contents().expect("readable"), model);
}

#[test]
fn random_operations_on_a_clone_agree_with_the_model() {
    for seed in 0..60 {
        let mut random = Random(seed);
        let ops: Vec<Op> = (0..120).map(|_| random.clone_op(true)).collect();
        let result = std::panic::catch_unwind(|| compare(seed, &ops));
        assert!(result.is_ok(), "seed {seed} fails");
    }
}

/// The location is part of the map: what was hydrated stays so, what was not is read from the repository, over a clean stop and a kill.
#[test]
fn hydration_goes_on_where_it_was_and_then_nothing_needs_the_repository() {
    let (mut harness, memory, model) = opened(3);
    let all = harness.volume().bytes_in_repository();
    harness.volume().hydrate(&file(&harness, 1), BlockNo(0), 4).expect("hydrates");
    assert_eq!(harness.volume().bytes_in_repository(), all - 4 * BLOCK);
    harness.volume().checkpoint().expect("checkpoints");
    for clean in [false, true] {
        harness.run(0, &Op::Reopen { clean }).expect("reopens");
        assert_eq!(harness.volume().bytes_in_repository(), all - 4 * BLOCK);
        assert!(harness.volume().needs_repository());
    }
    hydrate_all(harness.volume());
    assert!(harness.volume().needs_repository(), "until a checkpoint a crash goes back to the repository");
    harness.volume().checkpoint().expect("checkpoints");
    assert!(!harness.volume().needs_repository());
    memory.gone.store(true, Ordering::SeqCst);
    let harness = Harness::open(harness.world.clone(), ids()).expect("opens without the repository");
    assert_eq!(harness.contents().expect("readable"), model);
    assert_eq!(damage(harness.volume()), Vec::<String>::new());
}

/// What a reader fetched is told to whoever hydrates, once.
#[test]
fn what_was_read_is_wanted_next() {
    let (harness, ..) = opened(4);
    read(&harness, 2, 3 * BLOCK + 5, BLOCK).expect("readable");
    assert_eq!(harness.volume().take_wanted(), Some((FileId(3), BlockNo(3), 2)));
    assert_eq!(harness.volume().take_wanted(), None);
}

/// R6: bytes that are written or cut while a block is being hydrated win.
#[test]
fn a_write_and_a_cut_during_hydration_win() {
    let (harness, memory, mut model) = opened(5);
    let (volume, target) = (harness.volume().clone(), file(&harness, 0));
    let (writing, cut) = ((volume.clone(), target.clone()), AtomicBool::new(false));
    *memory.during.lock() = Some(Box::new(move || {
        if !cut.swap(true, Ordering::SeqCst) {
            writing.0.write(&writing.1, 100, &[0xaa; 300], Wait::Allowed).expect("writes");
            writing.0.set_size(&writing.1, 2 * BLOCK + 10).expect("cuts");
            writing.0.set_size(&writing.1, 3 * BLOCK).expect("grows");
        }
    }));
    let done = volume.hydrate(&target, BlockNo(0), 4).expect("hydrates");
    *memory.during.lock() = None;
    assert_eq!(done.blocks, 4);
    model.files[0][100..400].fill(0xaa);
    model.files[0].truncate(2 * BLOCK as usize + 10);
    model.files[0].resize(3 * BLOCK as usize, 0);
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK).expect("readable"), model.files[0]);
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    assert_eq!(read(&harness, 0, 0, 4 * BLOCK).expect("readable"), model.files[0]);
}

/// A file that is removed while a block of it is being hydrated is gone, with its space and what was promised for it.
#[test]
fn a_removal_during_hydration_leaves_nothing() {
    let (harness, memory, model) = opened(6);
    let (volume, target) = (harness.volume().clone(), file(&harness, 1));
    let removing = volume.clone();
    *memory.during.lock() = Some(Box::new(move || removing.remove(FileId(2)).expect("removes")));
    assert_eq!(volume.hydrate(&target, BlockNo(0), 4).expect("gives up").blocks, 0);
    *memory.during.lock() = None;
    drop(target);
    volume.checkpoint().expect("checkpoints");
    volume.sweep_abandoned().expect("sweeps");
    volume.checkpoint().expect("checkpoints");
    let left: u64 = [0, 2].map(|n: usize| (model.files[n].len() as u64).div_ceil(BLOCK)).iter().sum();
    assert_eq!((volume.bytes_in_repository(), volume.status().promised_bytes), (left * BLOCK, left * BLOCK));
    assert_eq!(volume.files_in_repository().expect("readable"), [FileId(1), FileId(3)]);
    assert_eq!(volume.check(true).expect("checks"), vec![]);
}

/// The repository is gone: reads of what is there fail, by name; everything else goes on, nothing reads as zeros; and it heals.
#[test]
fn without_the_repository_only_its_blocks_fail() {
    let (harness, memory, model) = opened(7);
    let volume = harness.volume();
    volume.hydrate(&file(&harness, 1), BlockNo(0), 2).expect("hydrates");
    memory.gone.store(true, Ordering::SeqCst);
    let refused = read(&harness, 1, 2 * BLOCK, 10).expect_err("it is in the repository").to_string();
    assert!(refused.contains("0000000000000002") && refused.contains("/gone"), "{refused}");
    assert_eq!(read(&harness, 1, 0, 2 * BLOCK).expect("on a tier"), model.files[1][..2 * BLOCK as usize]);
    volume.write(&file(&harness, 1), 2 * BLOCK, &[5; 10], Wait::Allowed).expect("writes go on");
    volume.sync_log().expect("syncs go on");
    assert_eq!(read(&harness, 1, 2 * BLOCK, 10).expect("the overlay has it"), [5; 10]);
    volume.coalesce_all(&mut |_, _| {}).expect_err("it would need the rest of the block");
    volume.write(&file(&harness, 1), 3 * BLOCK, &[6; BLOCK as usize], Wait::Allowed).expect("writes");
    volume.checkpoint().expect("checkpoints go on");
    assert!(volume.hydrate(&file(&harness, 0), BlockNo(0), 1).is_err());
    assert!(
        volume.status().degraded.iter().any(|why| why.starts_with("repository: ")),
        "{:?}",
        volume.status().degraded
    );
    memory.gone.store(false, Ordering::SeqCst);
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    let mut expected = model.files[1].clone();
    expected[2 * BLOCK as usize..][..10].fill(5);
    expected[3 * BLOCK as usize..][..BLOCK as usize].fill(6);
    assert_eq!(read(&harness, 1, 0, 1 << 20).expect("readable"), expected);
    assert_eq!(volume.status().degraded, Vec::<String>::new(), "it is well again");
}

/// I8: a damaged object is an error for what is in it, named, and never zeros; the blocks beside it are hydrated all the same, and overwriting it heals.
#[test]
fn damage_in_the_repository_is_an_error_for_that_range_only() {
    let (harness, memory, model) = opened(8);
    let volume = harness.volume();
    *memory.damaged.lock() = Some((FileId(3), BLOCK + 50));
    assert!(read(&harness, 2, BLOCK, 100).is_err_and(|error| error.to_string().contains("/packs/0")));
    assert_eq!(read(&harness, 2, BLOCK + 60, 100).expect("beside it"), model.files[2][BLOCK as usize + 60..][..100]);
    assert!(volume.hydrate(&file(&harness, 2), BlockNo(0), 4).is_err());
    for block in [0, 2, 3] {
        assert_eq!(volume.hydrate(&file(&harness, 2), BlockNo(block), 1).expect("hydrates").blocks, 1);
    }
    assert!(volume.hydrate(&file(&harness, 2), BlockNo(1), 1).is_err());
    assert!(read(&harness, 2, BLOCK, 100).is_err(), "it stays where it is");
    assert!(damage(volume).iter().any(|what| what.contains("/packs/0")), "a deep check names it");
    volume.write(&file(&harness, 2), BLOCK, &[9; BLOCK as usize], Wait::Allowed).expect("writes");
    volume.coalesce_all(&mut |_, _| {}).expect("what is covered whole needs no base");
    assert_eq!(read(&harness, 2, BLOCK, 100).expect("healed"), [9; 100]);
}

/// R3: cut bytes never come back from the repository, and a hole is said, not inferred, where the file was in it.
#[test]
fn cut_bytes_never_come_back_from_the_repository() {
    let (mut harness, _, mut model) = opened(9);
    let target = file(&harness, 0);
    harness.volume().set_size(&target, 100).expect("cuts");
    harness.volume().set_size(&target, 5 * BLOCK).expect("grows");
    harness.volume().punch_hole(&file(&harness, 1), BLOCK, 2 * BLOCK).expect("punches");
    model.files[0].truncate(100);
    model.files[0].resize(5 * BLOCK as usize, 0);
    model.files[1][BLOCK as usize..3 * BLOCK as usize].fill(0);
    drop(target);
    for clean in [false, true, true] {
        assert_eq!(harness.contents().expect("readable"), model);
        harness.run(0, &Op::Reopen { clean }).expect("reopens");
    }
    assert_eq!(harness.contents().expect("readable"), model);
    assert_eq!(harness.volume().seek(&file(&harness, 1), BLOCK, Seek::Data), Some(3 * BLOCK), "punched is a hole");
    assert_eq!(harness.volume().blocks_in_repository(&file(&harness, 0)), 0, "the rest of the first block was written");
}

/// A snapshot of a clone: pages as of its moment, whether they are in the repository, on a tier or covered by newer ones; and told
/// against the snapshot that the clone was made of, nothing but what was written has changed.
#[test]
fn a_mark_on_a_clone_sees_its_moment() {
    let (harness, _, mut model) = opened(10);
    let volume = harness.volume();
    volume.write(&file(&harness, 0), BLOCK + 5, &[1; 200], Wait::Allowed).expect("writes");
    model.files[0][BLOCK as usize + 5..][..200].fill(1);
    let mark = volume.mark(Uuid::from_u128(77)).expect("marks");
    volume.wait_for_mark(&mark).expect("durable");
    let parent = Uuid::from_u128(9);
    assert!(volume.knows_parent(parent));
    assert_eq!(volume.changed_files(&mark, parent).expect("known"), Some(vec![FileId(1)]));
    let pages = volume.changed_pages(&mark, parent, FileId(1)).expect("known").expect("told against the parent");
    assert_eq!(pages.iter().map(|run| (run.start, run.end)).collect::<Vec<_>>(), [(2, 3)]);
    volume.hydrate(&file(&harness, 1), BlockNo(0), 3).expect("hydrates");
    volume.write(&file(&harness, 0), 10, &[2; 9000], Wait::Allowed).expect("writes");
    volume.write(&file(&harness, 1), BLOCK, &[3; 100], Wait::Allowed).expect("writes");
    volume.set_size(&file(&harness, 2), 50).expect("cuts");
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    hydrate_all(volume);
    for (id, content) in harness.ids.iter().zip(&model.files) {
        let mut seen = vec![0xee; content.len()];
        assert_eq!(volume.read_at(&mark, *id, 0, &mut seen).expect("readable"), content.len());
        assert!(seen == *content, "file {id} as of the mark");
    }
    volume.release_mark(&mark);
}

/// I6: a block of zeros was written to after a mark, then brought from the repository, for which its place is flipped and nothing is written. Coalescing found no
/// image in its way then and saved nothing, though the mark's layer expected the zeros in the base: it read the newer bytes.
#[test]
fn a_mark_keeps_the_zeros_that_hydration_did_not_write() {
    let (harness, _, model) = opened(10);
    let volume = harness.volume();
    let mut tried = 0;
    for (n, content) in model.files.iter().enumerate() {
        let zeros = content.chunks_exact(BLOCK as usize).position(|bytes| bytes.iter().all(|byte| *byte == 0));
        let Some(block) = zeros.map(|block| block as u64) else { continue };
        let mark = volume.mark(Uuid::from_u128(80 + n as u128)).expect("marks");
        volume.wait_for_mark(&mark).expect("durable");
        volume.write(&file(&harness, n), block * BLOCK + 100, &[5; 300], Wait::Allowed).expect("writes");
        assert_eq!(volume.hydrate(&file(&harness, n), BlockNo(block), 1).expect("hydrates").blocks, 1);
        volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
        let mut seen = vec![0xee; BLOCK as usize];
        volume.read_at(&mark, harness.ids[n], block * BLOCK, &mut seen).expect("readable");
        assert!(seen.iter().all(|byte| *byte == 0), "file {n}, block {block} as of the mark");
        volume.release_mark(&mark);
        tried += 1;
    }
    assert!(tried > 0, "the snapshot has no block of zeros");
}

/// R8: what a tier lost goes back to the repository, and is hydrated again.
#[test]
fn what_a_failed_sync_lost_goes_back_to_the_repository() {
    let (harness, _, model) = opened(11);
    let volume = harness.volume();
    let before = volume.bytes_in_repository();
    let device = harness.world.device("nvme");
    volume.hydrate(&file(&harness, 1), BlockNo(0), 4).expect("hydrates");
    assert_eq!(volume.bytes_in_repository(), before - 4 * BLOCK);
    device.break_syncs(true);
    volume.checkpoint().expect_err("the tier lost its writes");
    device.break_syncs(false);
    // Zeros and holes were only flipped: no tier had anything of them to lose.
    let blocks = model.files[1].chunks(BLOCK as usize).take(4);
    let written = blocks.filter(|block| block.iter().any(|byte| *byte != 0)).count() as u64;
    assert!(written > 0);
    assert_eq!(volume.bytes_in_repository(), before - (4 - written) * BLOCK);
    assert_eq!(harness.contents().expect("readable"), model);
    volume.checkpoint().expect("the next one goes through");
    assert_eq!(harness.contents().expect("readable"), model);
}

/// I10: nobody is promised what the blocks in the repository will need, and they go to the next tier when one is full.
#[test]
fn hydration_finds_its_room() {
    let (harness, ..) = opened(12);
    let volume = harness.volume();
    let space = volume.space();
    let free = space.available_bytes;
    assert!(matches!(volume.allocate(&file(&harness, 0), 1 << 30, free + BLOCK, true), Err(Error::NoSpace)));
    volume.allocate(&file(&harness, 0), 1 << 30, free, true).expect("all the rest may be taken");
    hydrate_all(volume);
    assert_eq!(volume.bytes_in_repository(), 0);
}

/// A removed file's blocks are hydrated no more, and a tier that is full is passed over.
#[test]
fn a_volume_without_a_snapshot_hydrates_nothing() {
    let harness = Harness::new(SimWorld::new(13)).expect("a new volume opens");
    harness.volume().write(&file(&harness, 0), 0, &[1; 100], Wait::Allowed).expect("writes");
    assert!(!harness.volume().needs_repository());
    assert_eq!(harness.volume().next_in_repository(&file(&harness, 0), BlockNo(0)), None);
    assert_eq!(harness.volume().hydrate(&file(&harness, 0), BlockNo(0), 1).expect("nothing to do").blocks, 0);
    assert_eq!(harness.volume().tier_name(TierId(0)), "nvme");
}

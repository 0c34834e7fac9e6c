//! Records that are read one by one in the log: who is told, and that they can go to their place before the log's fill asks for it.

use crate::harness::{BLOCK, options, tiers};
use heatfs::device::sim::SimWorld;
use heatfs::units::{BlockNo, FileId, TierId};
use heatfs::volume::{AccessObserver, File, Volume, Wait};
use parking_lot::Mutex;
use std::collections::BTreeSet;
use std::sync::Arc;

const PAGE: u64 = 4096;

/// What reads have met.
#[derive(Default)]
struct Met(Mutex<Vec<(BlockNo, u16)>>);

impl AccessObserver for Met {
    fn on_read_miss(&self, _: FileId, _: BlockNo, _: BlockNo, _: u64, _: u32, _: Option<TierId>, _: u32) {}
    fn on_write(&self, _: FileId, _: u64, _: u32, _: bool) {}
    fn on_file_gone(&self, _: FileId) {}
    fn on_fragments(&self, _: FileId, block: BlockNo, records: u16) {
        self.0.lock().push((block, records));
    }
}

fn volume() -> (Arc<Volume>, Arc<Met>) {
    let world = SimWorld::new(51);
    let tiers = tiers(&world);
    Volume::create(&tiers, &options(), uuid::Uuid::from_u128(51), &mut |_| {}).expect("a volume is made");
    let volume = Volume::open(tiers, options()).expect("it opens").0;
    let met = Arc::new(Met::default());
    volume.set_observer(met.clone());
    (volume, met)
}

/// Two blocks whose pages were written last first, so that no record continues another; page `n` is full of `n`.
fn pages_in_no_order(volume: &Volume) -> (FileId, Arc<File>) {
    let id = volume.issue_file_id().expect("an id");
    let file = volume.file(id).expect("known");
    for page in (0..2 * BLOCK / PAGE).rev() {
        let byte = u8::try_from(page).expect("few");
        volume.write(&file, page * PAGE, &[byte; 4096], Wait::Allowed).expect("is written");
    }
    volume.sync_log().expect("durable");
    (id, file)
}

fn read_all(volume: &Volume, file: &Arc<File>) -> Vec<u8> {
    let mut bytes = vec![0; usize::try_from(2 * BLOCK).expect("small")];
    assert_eq!(volume.read(file, 0, &mut bytes, Wait::Allowed).expect("readable"), bytes.len());
    bytes
}

fn expected() -> Vec<u8> {
    (0..2 * BLOCK / PAGE).flat_map(|page| [u8::try_from(page).expect("few"); 4096]).collect()
}

#[test]
fn who_reads_records_one_by_one_is_heard_and_nobody_else() {
    let (volume, met) = volume();
    let (id, file) = pages_in_no_order(&volume);
    let mut page = [0; 4096];
    volume.read(&file, 3 * PAGE, &mut page, Wait::Allowed).expect("readable");
    assert!(met.0.lock().is_empty(), "a page that one read finds costs nothing more");
    assert_eq!(read_all(&volume, &file), expected());
    let records = u16::try_from(BLOCK / PAGE).expect("few");
    assert_eq!(*met.0.lock(), [(BlockNo(0), records), (BlockNo(1), records)]);

    // Of one block only: the other one still lies in the log.
    assert!(volume.gains_by_coalescing(id, BlockNo(0)) && !volume.gains_by_coalescing(FileId(u64::MAX), BlockNo(0)));
    assert_eq!(volume.coalesce_early(&BTreeSet::from([(id, BlockNo(0))])).expect("coalesces"), 1);
    met.0.lock().clear();
    assert_eq!(read_all(&volume, &file), expected());
    assert_eq!(*met.0.lock(), [(BlockNo(1), records)]);
}

#[test]
fn a_block_of_a_slow_tier_gains_nothing() {
    let (volume, met) = volume();
    let (id, file) = pages_in_no_order(&volume);
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    volume.checkpoint().expect("checkpoints");
    assert!(volume.move_block(&file, BlockNo(1), TierId(2)).expect("moves"));
    for page in (0..2 * BLOCK / PAGE).rev() {
        let byte = u8::try_from(page).expect("few");
        volume.write(&file, page * PAGE, &[byte; 4096], Wait::Allowed).expect("is written");
    }
    volume.sync_log().expect("durable");
    assert!(volume.gains_by_coalescing(id, BlockNo(0)));
    assert!(!volume.gains_by_coalescing(id, BlockNo(1)), "the log is read sooner than a slow tier");
    assert_eq!(read_all(&volume, &file), expected());
    assert_eq!(met.0.lock().len(), 2, "both are met all the same");
}

//! R25: bytes that are written again while their record is in the open group are changed there.

use crate::harness::Harness;
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::units::WallNs;
use heatfs::volume::{File, Wait};
use std::sync::Arc;

fn opened(seed: u64) -> Harness {
    Harness::new(SimWorld::new(seed)).expect("a new volume opens")
}

fn file(harness: &Harness, n: usize) -> Arc<File> {
    harness.volume().file(harness.ids[n]).expect("known")
}

fn write(harness: &Harness, n: usize, offset: u64, byte: u8, len: usize) {
    harness.volume().write(&file(harness, n), offset, &vec![byte; len], Wait::Allowed).expect("writes");
}

fn read(harness: &Harness, n: usize, offset: u64, len: usize) -> Vec<u8> {
    let mut buf = vec![0xee; len];
    let got = harness.volume().read(&file(harness, n), offset, &mut buf, Wait::Allowed).expect("readable");
    buf.truncate(got);
    buf
}

fn after_cut(harness: &Harness) -> Harness {
    Harness::open(harness.world.recover(Survival::None), harness.ids.clone()).expect("opens after a power cut")
}

/// A page that is written again before its group is closed is logged once, and nobody can tell: neither a reader, nor a mark between, nor a crash.
#[test]
fn a_page_that_is_written_again_at_once_is_logged_once() {
    let harness = opened(31);
    let logged = |harness: &Harness| {
        let counters = harness.volume().status().counters;
        (counters.log_payload_bytes, counters.log_replaced_bytes)
    };
    for byte in 1..=100 {
        write(&harness, 0, 8192, byte, 4096);
    }
    write(&harness, 0, 8192 + 100, 101, 50);
    assert_eq!(logged(&harness), (4096, 99 * 4096 + 50));
    // Small payloads lie in the header page.
    (1..=9).for_each(|byte| write(&harness, 1, 0, byte, 100));
    assert_eq!(logged(&harness), (4096 + 100, 99 * 4096 + 50 + 8 * 100));
    let mut expected = vec![100; 4096];
    expected[100..150].fill(101);
    assert_eq!(read(&harness, 0, 8192, 4096), expected);

    let mark = harness.volume().mark(uuid::Uuid::from_u128(1)).expect("a mark is taken");
    write(&harness, 0, 8192, 102, 4096);
    write(&harness, 0, 8192, 103, 4096);
    assert_eq!(logged(&harness).1, 100 * 4096 + 50 + 8 * 100, "what is before the mark stays");
    write(&harness, 0, 10_240, 104, 4096);
    let ranges_before = logged(&harness).1;
    write(&harness, 0, 8192, 105, 4096);
    assert_eq!(logged(&harness).1, ranges_before, "bytes of two records are not changed in place");
    harness.volume().wait_for_mark(&mark).expect("durable");
    let mut then = vec![0; 4096];
    harness.volume().read_at(&mark, harness.ids[0], 8192, &mut then).expect("the mark is readable");
    assert_eq!(then, expected);

    let cut = after_cut(&harness);
    assert_eq!(read(&cut, 0, 8192, 4096), [105; 4096], "the mark's group holds all of it");
    assert_eq!(read(&cut, 0, 12_288, 2048), [104; 2048]);
    assert_eq!(read(&cut, 1, 0, 100), [9; 100]);
    let before = logged(&harness);
    write(&harness, 0, 8192, 106, 4096);
    assert_eq!(logged(&harness), (before.0 + 4096, before.1), "a group that is written does not change any more");
    let cut = after_cut(&harness);
    assert_eq!(read(&cut, 0, 8192, 4096), [105; 4096]);
}

/// R27: times set after a write are older than what is written next, though the same bytes are in the open group already.
#[test]
fn a_write_after_times_were_set_is_newer_than_they_are() {
    let harness = opened(32);
    write(&harness, 0, 0, 1, 4096);
    harness.volume().set_times(&file(&harness, 0), Some(WallNs(12_345))).expect("sets");
    write(&harness, 0, 0, 2, 4096);
    harness.volume().sync_log().expect("syncs");
    let cut = after_cut(&harness);
    assert_eq!(read(&cut, 0, 0, 4096), [2; 4096]);
    let mtime = cut.volume().attr(&file(&cut, 0)).mtime.expect("set by the write");
    assert!(mtime > WallNs(12_345), "{mtime:?}");
}

//! Errors, full devices and failed syncs of the simulated world.

use crate::{CREATE, LOG, bytes, content, errno, kind, page, sim};
use heatfs::device::sim::{Fault, SimWorld, Survival};
use heatfs::device::{AlignedBuf, Device};
use std::io::ErrorKind;

#[test]
fn an_error_hits_the_chosen_operation_alone() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    let next = world.operations();
    world.fail_at(next + 1, Fault::Eio);
    world.fail_at(next + 2, Fault::Enospc);
    world.fail_at(next + 4, Fault::Eio);
    f.write_all_at(b"one", 0).unwrap();
    assert_eq!(errno(f.write_all_at(b"two", 0)), libc::EIO);
    assert_eq!(errno(f.allocate(0, 100)), libc::ENOSPC);
    f.write_all_at(b"four", 0).unwrap();
    assert_eq!(errno(d.rename("f", "g")), libc::EIO);
    assert_eq!(content(&*d, "f"), b"four");
    assert_eq!(world.operations(), next + 5);
}

#[test]
fn short_writes_leave_a_beginning() {
    let mut lengths = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let world = SimWorld::new(seed);
        let f = world.device("d").open("f", CREATE).unwrap();
        world.fail_at(world.operations(), Fault::ShortThenEio);
        assert_eq!(errno(f.write_all_at(&[1; 5000], 0)), libc::EIO);
        let written = bytes(&*f);
        assert!(written.len() < 5000 && written.iter().all(|b| *b == 1));
        lengths.insert(written.len());
    }
    assert!(lengths.len() > 5, "{lengths:?}");
}

#[test]
fn a_failed_sync_loses_what_it_was_to_write_and_the_next_one_does_not_help() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(b"old", 0).unwrap();
    d.sync_all().unwrap();
    f.write_all_at(b"new", 0).unwrap();
    world.fail_at(world.operations(), Fault::SyncError);
    assert_eq!(errno(f.sync_data()), libc::EIO);
    f.sync_data().unwrap();
    d.sync_all().unwrap();
    assert_eq!(bytes(&*f), b"new");
    assert_eq!(content(&*world.recover(Survival::All).device("d"), "f"), b"old");
    f.write_all_at(b"new", 0).unwrap();
    f.sync_data().unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"new");
}

#[test]
fn a_plain_error_of_a_sync_leaves_everything_for_the_next_one() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(b"new", 0).unwrap();
    world.fail_at(world.operations(), Fault::Eio);
    assert_eq!(errno(d.sync_all()), libc::EIO);
    d.sync_all().unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"new");
}

#[test]
fn a_failed_sync_of_the_device_loses_all_files_but_not_dsync_writes() {
    let (world, d) = sim();
    let (f, log) = (d.open("f", CREATE).unwrap(), d.open("log", LOG).unwrap());
    d.sync_all().unwrap();
    f.write_all_at(b"f", 0).unwrap();
    d.open("log", CREATE).unwrap().write_all_at(&[1; 8192], 0).unwrap();
    log.write_all_at(&page(2), 0).unwrap();
    d.break_syncs(true);
    assert_eq!(errno(d.sync_all()), libc::EIO);
    assert_eq!(errno(f.sync_data()), libc::EIO);
    d.break_syncs(false);
    d.sync_all().unwrap();
    let after = world.recover(Survival::All).device("d");
    assert_eq!((content(&*after, "f"), content(&*after, "log")), (vec![], vec![2; 4096]));
}

#[test]
fn a_device_can_stop_reading_or_writing() {
    let (_, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(b"x", 0).unwrap();
    d.break_reads(true);
    assert_eq!(errno(f.read_at(&mut [0], 0)), libc::EIO);
    d.break_reads(false);
    d.break_writes(true);
    assert_eq!(errno(f.write_all_at(b"y", 0)), libc::EIO);
    assert_eq!(errno(d.remove_file("f")), libc::EIO);
    assert_eq!(errno(d.create_dir_all("a")), libc::EIO);
    d.sync_all().unwrap();
    d.break_writes(false);
    assert_eq!(content(&*d, "f"), b"x");
}

#[test]
fn bad_spots_fail_until_written_over() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(&[1; 12_288], 0).unwrap();
    d.sync_all().unwrap();
    d.break_range("f", 4096, 4096).unwrap();
    let f = world.recover(Survival::None).device("d").open("f", CREATE).unwrap();
    let mut buf = [0; 4096];
    assert_eq!(f.read_at(&mut buf, 0).unwrap(), 4096);
    assert_eq!(errno(f.read_at(&mut buf, 1)), libc::EIO);
    f.write_all_at(&[2; 100], 4096).unwrap();
    assert_eq!(errno(f.read_at(&mut buf, 8191)), libc::EIO);
    f.write_all_at(&[2; 4096], 4096).unwrap();
    assert_eq!(f.read_at(&mut buf, 4096).unwrap(), 4096);
}

#[test]
fn a_full_device_says_so_and_frees_what_is_freed() {
    let (world, d) = sim();
    d.set_capacity(4 * 4096);
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(&[1; 10_000], 0).unwrap();
    assert_eq!(d.space().unwrap().available_bytes, 4096);
    assert_eq!(errno(f.write_all_at(&[2; 4096], 10_000)), 0, "three pages hold 10000 bytes, the fourth has room");
    assert_eq!(errno(f.write_all_at(&[2; 1], 16_384)), libc::ENOSPC);
    f.write_all_at(&[3; 4096], 0).expect("what is allocated can be overwritten");
    assert_eq!(errno(f.allocate(0, 20_000)), libc::ENOSPC);
    f.punch(0, 4096).unwrap();
    let g = d.open("g", CREATE).unwrap();
    g.allocate(0, 4096).unwrap();
    assert_eq!(d.space().unwrap().available_bytes, 0);
    g.write_all_at(&[1; 4096], 0).expect("reserved space is there");
    d.remove_file("g").unwrap();
    assert_eq!(d.space().unwrap().available_bytes, 0, "an open file keeps its space");
    drop(g);
    assert_eq!(d.space().unwrap().available_bytes, 4096);
    d.sync_all().unwrap();
    assert_eq!(world.recover(Survival::None).device("d").space().unwrap(), d.space().unwrap());
    f.set_len(0).unwrap();
    assert_eq!(d.space().unwrap().available_bytes, 4 * 4096);
}

#[test]
fn direct_handles_refuse_what_the_kernel_would() {
    let (_, d) = sim();
    let f = d.open("f", LOG).unwrap();
    let mut buf = AlignedBuf::zeroed(8192);
    assert_eq!(kind(f.write_all_at(&buf[..100], 0)), ErrorKind::InvalidInput);
    assert_eq!(kind(f.write_all_at(&buf[..4096], 512)), ErrorKind::InvalidInput);
    assert_eq!(kind(f.write_all_at(&buf[512..4608], 0)), ErrorKind::InvalidInput);
    assert_eq!(kind(f.read_at(&mut buf[..4000], 0)), ErrorKind::InvalidInput);
    f.write_all_at(&buf[4096..], 0).unwrap();
}

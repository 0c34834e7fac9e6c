//! What a crash of the simulated world may take, and what it may not.

use crate::{CREATE, LOG, bytes, content, kind, page, sim};
use heatfs::device::sim::{SimWorld, Survival};
use heatfs::device::{AlignedBuf, Device};

#[test]
fn synced_bytes_and_names_survive() {
    let (world, d) = sim();
    d.create_dir_all("a").unwrap();
    let f = d.open("a/f", CREATE).unwrap();
    f.write_all_at(b"kept", 0).unwrap();
    f.sync_data().unwrap();
    d.sync_dir("a").unwrap();
    d.sync_dir("").unwrap();
    let after = world.recover(Survival::None);
    assert_eq!(content(&*after.device("d"), "a/f"), b"kept");
    assert_eq!(after.operations(), 0);
}

#[test]
fn what_is_not_synced_is_lost_or_kept_by_choice() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(&[1; 8192], 0).unwrap();
    d.sync_all().unwrap();
    f.write_all_at(&[2; 12_288], 0).unwrap();
    f.punch(0, 4096).unwrap();
    f.set_len(10_000).unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), [1; 8192]);
    let live = bytes(&*f);
    assert_eq!(content(&*world.recover(Survival::All).device("d"), "f"), live);
    assert_eq!(live, [vec![0; 4096], vec![2; 5904]].concat());
}

#[test]
fn a_file_sync_is_not_a_directory_sync() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(b"bytes", 0).unwrap();
    f.sync_data().unwrap();
    assert!(!world.recover(Survival::None).device("d").exists("f").unwrap());
    d.sync_dir("").unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"bytes");
}

#[test]
fn a_directory_sync_is_not_a_file_sync() {
    let (world, d) = sim();
    d.open("f", CREATE).unwrap().write_all_at(b"bytes", 0).unwrap();
    d.sync_dir("").unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"");
}

#[test]
fn a_directory_needs_its_parent_synced() {
    let (world, d) = sim();
    d.create_dir_all("a").unwrap();
    d.open("a/f", CREATE).unwrap();
    d.sync_dir("a").unwrap();
    assert!(!world.recover(Survival::None).device("d").exists("a/f").unwrap());
    d.sync_dir("").unwrap();
    assert!(world.recover(Survival::None).device("d").exists("a/f").unwrap());
}

#[test]
fn one_sync_covers_one_file() {
    let (world, d) = sim();
    let (f, g) = (d.open("f", CREATE).unwrap(), d.open("g", CREATE).unwrap());
    d.sync_dir("").unwrap();
    f.write_all_at(b"f", 0).unwrap();
    g.write_all_at(b"g", 0).unwrap();
    f.sync_data().unwrap();
    f.write_all_at(b"later", 0).unwrap();
    let after = world.recover(Survival::None).device("d");
    assert_eq!((content(&*after, "f"), content(&*after, "g")), (b"f".to_vec(), vec![]));
}

#[test]
fn dsync_writes_are_durable_at_once_and_older_ones_do_not_undo_them() {
    let (world, d) = sim();
    let (log, plain) = (d.open("f", LOG).unwrap(), d.open("f", CREATE).unwrap());
    d.sync_all().unwrap();
    plain.write_all_at(&[1; 8192], 0).unwrap();
    log.write_all_at(&page(2), 0).unwrap();
    for seed in 0..64 {
        let after = content(&*world.recover(Survival::Seed(seed)).device("d"), "f");
        assert_eq!(after[..4096], [2; 4096], "seed {seed}");
        assert!(after.len() == 4096 || after[4096..] == [1; 4096], "seed {seed}");
    }
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), [2; 4096]);
}

#[test]
fn writes_are_torn_between_pages_and_reordered() {
    let outcomes = torn_outcomes(false, 4096);
    // Four pages of two writes each: old, first or second; all of them occur somewhere.
    for at in 0..4 {
        for value in 1..=3 {
            assert!(outcomes.iter().any(|o| o[at] == value), "page {at} never has value {value}");
        }
    }
    let late_only = |o: &Vec<u8>| o[0] == 1 && o[1] == 3;
    assert!(outcomes.iter().any(late_only), "the later write never survives where the earlier does not");
    assert!(outcomes.iter().any(|o| o.iter().all(|v| *v == 3)), "the later write never survives whole");
    assert!(outcomes.iter().any(|o| o.iter().all(|v| *v == 1)), "nothing is ever lost whole");
}

#[test]
fn sectors_can_be_torn_too() {
    let outcomes = torn_outcomes(true, 512);
    assert!(outcomes.iter().any(|o| o[..8].iter().any(|v| *v != o[0])), "no page was ever torn within");
}

/// Overwrites four pages of 1s with 2s and then 3s, and gives the value of each unit after many crashes.
fn torn_outcomes(sectors: bool, unit: usize) -> Vec<Vec<u8>> {
    let (world, d) = sim();
    if sectors {
        world.tear_sectors();
    }
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(&[1; 16_384], 0).unwrap();
    d.sync_all().unwrap();
    f.write_all_at(&[2; 16_384], 0).unwrap();
    f.write_all_at(&[3; 16_384], 0).unwrap();
    let outcome = |seed| {
        let after = content(&*world.recover(Survival::Seed(seed)).device("d"), "f");
        let units = after.chunks(unit).map(|c| {
            assert!(c.iter().all(|b| *b == c[0]), "torn within {unit} bytes");
            c[0]
        });
        units.collect()
    };
    (0..200).map(outcome).collect()
}

#[test]
fn lengths_and_holes_survive_whole_or_not_at_all() {
    let (world, d) = sim();
    let f = d.open("f", CREATE).unwrap();
    f.write_all_at(&[1; 16_384], 0).unwrap();
    d.sync_all().unwrap();
    f.punch(0, 8192).unwrap();
    f.set_len(12_288).unwrap();
    f.allocate(0, 20_480).unwrap();
    let mut seen = std::collections::BTreeSet::new();
    for seed in 0..100 {
        let after = content(&*world.recover(Survival::Seed(seed)).device("d"), "f");
        assert!(after[..8192] == [0; 8192] || after[..8192] == [1; 8192]);
        seen.insert((after[0], after.len(), after.get(12_288).copied()));
    }
    let lengths: Vec<usize> = seen.iter().map(|s| s.1).collect();
    assert!([12_288, 16_384, 20_480].iter().all(|len| lengths.contains(len)), "{seen:?}");
    assert!(seen.iter().any(|s| s.0 == 0) && seen.iter().any(|s| s.0 == 1), "{seen:?}");
}

#[test]
fn names_survive_as_a_prefix() {
    let (world, d) = sim();
    for name in ["f0", "f1", "f2", "f3"] {
        d.open(name, CREATE).unwrap();
    }
    d.rename("f0", "g").unwrap();
    d.remove_file("f1").unwrap();
    let histories: [&[&str]; 7] = [
        &[],
        &["f0"],
        &["f0", "f1"],
        &["f0", "f1", "f2"],
        &["f0", "f1", "f2", "f3"],
        &["f1", "f2", "f3", "g"],
        &["f2", "f3", "g"],
    ];
    let mut seen = [false; 7];
    for seed in 0..200 {
        let names = world.recover(Survival::Seed(seed)).device("d").list("").unwrap();
        let at = histories.iter().position(|h| *h == names).unwrap_or_else(|| panic!("{names:?} never was"));
        seen[at] = true;
    }
    assert_eq!(seen, [true; 7]);
}

#[test]
fn a_rename_is_never_half_done() {
    let (world, d) = sim();
    for dir in ["a", "b"] {
        d.create_dir_all(dir).unwrap();
    }
    d.open("a/f", CREATE).unwrap();
    d.sync_all().unwrap();
    d.rename("a/f", "b/f").unwrap();
    let names = |world: &SimWorld| {
        let d = world.recover(Survival::None).device("d");
        (d.exists("a/f").unwrap(), d.exists("b/f").unwrap())
    };
    d.sync_dir("a").unwrap();
    assert_eq!(names(&world), (true, false), "only the directory that got the name makes a rename durable");
    d.open("a/g", CREATE).unwrap();
    d.sync_dir("a").unwrap();
    assert_eq!(names(&world), (false, true), "a later name in the same directory brings the rename with it");
}

#[test]
fn replaced_and_removed_files_come_back_unless_synced() {
    let (world, d) = sim();
    d.open("f", CREATE).unwrap().write_all_at(b"old", 0).unwrap();
    d.open("new", CREATE).unwrap().write_all_at(b"new", 0).unwrap();
    d.sync_all().unwrap();
    d.rename("new", "f").unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"old");
    d.sync_dir("").unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"new");
    d.remove_file("f").unwrap();
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), b"new");
    d.sync_all().unwrap();
    assert!(d.list("").unwrap().is_empty());
}

#[test]
fn after_a_crash_every_call_fails_on_every_device() {
    let world = SimWorld::new(3);
    let (d, e) = (world.device("d"), world.device("e"));
    let f = d.open("f", CREATE).unwrap();
    let g = e.open("g", CREATE).unwrap();
    d.sync_all().unwrap();
    e.sync_all().unwrap();
    world.crash_at(world.operations());
    assert!(!world.crashed());
    f.write_all_at(&[1; 4096], 0).unwrap_err();
    assert!(world.crashed());
    let mut buf = [0; 10];
    g.read_at(&mut buf, 0).unwrap_err();
    g.write_all_at(&buf, 0).unwrap_err();
    g.len().unwrap_err();
    g.sync_data().unwrap_err();
    g.start_writeback(0, 1).unwrap_err();
    e.list("").unwrap_err();
    e.exists("g").unwrap_err();
    e.space().unwrap_err();
    kind(e.open("g", CREATE));
    e.sync_all().unwrap_err();
    e.rename("g", "h").unwrap_err();
    assert!(content(&*world.recover(Survival::None).device("d"), "f").is_empty());
    assert_eq!(content(&*world.recover(Survival::All).device("d"), "f"), [1; 4096]);
}

#[test]
fn a_dsync_write_that_the_crash_hits_is_torn() {
    let (world, d) = sim();
    let log = d.open("f", LOG).unwrap();
    d.sync_all().unwrap();
    let mut group = AlignedBuf::zeroed(8 * 4096);
    group.fill(1);
    log.write_all_at(&group, 0).unwrap();
    world.crash_at(world.operations());
    group.fill(2);
    log.write_all_at(&group, 0).unwrap_err();
    let after = |seed| content(&*world.recover(Survival::Seed(seed)).device("d"), "f");
    let torn = (0..50).filter(|seed| after(*seed).contains(&1) && after(*seed).contains(&2)).count();
    assert!(torn > 10, "torn {torn} times of 50");
    assert_eq!(content(&*world.recover(Survival::None).device("d"), "f"), [1; 8 * 4096]);
}

#[test]
fn each_device_can_have_luck_of_its_own() {
    let world = SimWorld::new(1);
    for name in ["a", "b"] {
        world.device(name).open("f", CREATE).unwrap();
    }
    let after = world.recover_each(|name| if name == "a" { Survival::All } else { Survival::None });
    assert!(after.device("a").exists("f").unwrap() && !after.device("b").exists("f").unwrap());
}

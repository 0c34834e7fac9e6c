//! What every device promises, on a real directory and on a simulated one; then what the simulated one does to those who
//! rely on more.

use heatfs::device::real::RealDevice;
use heatfs::device::sim::{Fault, SimDevice, SimWorld, Survival};
use heatfs::device::{AlignedBuf, BackingFile, Device, OpenMode};
use std::io::{self, ErrorKind};
use std::sync::Arc;

const CREATE: OpenMode = OpenMode { create: true, exclusive: false, direct: false, dsync: false };
const LOG: OpenMode = OpenMode { create: true, exclusive: false, direct: true, dsync: true };

/// Runs each function on a real device and on a simulated one.
macro_rules! conformance {
    ($($name:ident),* $(,)?) => {
        mod on_real {
            $(#[test]
            fn $name() {
                let dir = tempfile::tempdir().expect("a temporary directory");
                super::promises::$name(&*heatfs::device::real::RealDevice::open(dir.path()).expect("a device"));
            })*
        }
        mod on_sim {
            $(#[test]
            fn $name() {
                super::promises::$name(&*heatfs::device::sim::SimWorld::new(1).device("d"));
            })*
        }
    };
}

conformance!(
    reads_what_was_written,
    reads_stop_at_the_end,
    direct_handles_work_on_whole_pages,
    handles_share_one_file,
    lengths_cut_and_extend,
    punched_ranges_read_as_zeros,
    allocation_extends_and_keeps_bytes,
    open_modes_are_kept,
    names_can_be_listed,
    rename_replaces,
    open_files_outlive_their_names,
    directories_are_made_with_their_parents,
    missing_things_are_named_errors,
    paths_stay_below_the_device,
    syncs_succeed,
    space_is_reported,
);

mod promises {
    use super::*;

    pub fn reads_what_was_written(d: &dyn Device) {
        let f = d.open("f", CREATE).unwrap();
        let data: Vec<u8> = (0..20_000u32).map(|i| (i % 251) as u8).collect();
        f.write_all_at(&data, 1000).unwrap();
        f.write_all_at(&[7; 3], 4095).unwrap();
        let mut expected = vec![0; 21_000];
        expected[1000..].copy_from_slice(&data);
        expected[4095..4098].fill(7);
        assert_eq!(bytes(&*f), expected);
        f.write_all_at(&[], 90_000).unwrap();
        assert_eq!(f.len().unwrap(), 21_000);
    }

    pub fn reads_stop_at_the_end(d: &dyn Device) {
        let f = d.open("f", CREATE).unwrap();
        f.write_all_at(&[1; 5000], 0).unwrap();
        let mut buf = [9; 8192];
        assert_eq!(f.read_at(&mut buf, 4000).unwrap(), 1000);
        assert_eq!(buf[..1001], [&[1; 1000][..], &[9]].concat());
        assert_eq!(f.read_at(&mut buf, 5000).unwrap(), 0);
        assert_eq!(f.read_at(&mut buf, 1 << 40).unwrap(), 0);
    }

    pub fn direct_handles_work_on_whole_pages(d: &dyn Device) {
        let f = d.open("f", LOG).unwrap();
        let mut page = AlignedBuf::zeroed(8192);
        page.fill(5);
        f.write_all_at(&page, 4096).unwrap();
        f.set_len(10_000).unwrap();
        let mut back = AlignedBuf::zeroed(16384);
        assert_eq!(f.read_at(&mut back, 0).unwrap(), 10_000);
        assert_eq!(back[..4096], [0; 4096]);
        assert_eq!(back[4096..10_000], [5; 5904]);
    }

    pub fn handles_share_one_file(d: &dyn Device) {
        let log = d.open("f", LOG).unwrap();
        let plain = d.open("f", OpenMode::default()).unwrap();
        let mut page = AlignedBuf::zeroed(4096);
        page.fill(1);
        log.write_all_at(&page, 0).unwrap();
        assert_eq!(bytes(&*plain), [1; 4096]);
        plain.write_all_at(&[2; 10], 0).unwrap();
        plain.sync_data().unwrap();
        assert_eq!(log.read_at(&mut page, 0).unwrap(), 4096);
        assert_eq!(page[..11], [2, 2, 2, 2, 2, 2, 2, 2, 2, 2, 1]);
    }

    pub fn lengths_cut_and_extend(d: &dyn Device) {
        let f = d.open("f", CREATE).unwrap();
        f.write_all_at(&[3; 10_000], 0).unwrap();
        f.set_len(5000).unwrap();
        f.set_len(9000).unwrap();
        assert_eq!(bytes(&*f), [vec![3; 5000], vec![0; 4000]].concat());
        f.set_len(0).unwrap();
        assert_eq!(f.len().unwrap(), 0);
        f.set_len(4096).unwrap();
        assert_eq!(bytes(&*f), [0; 4096]);
    }

    pub fn punched_ranges_read_as_zeros(d: &dyn Device) {
        let cases =
            [(0, 4096), (4096, 8192), (100, 50), (100, 8000), (4000, 200), (4096, 100), (12_000, 50_000), (7, 0)];
        for (offset, len) in cases {
            let f = d.open("f", CREATE).unwrap();
            f.set_len(0).unwrap();
            f.write_all_at(&[3; 16_384], 0).unwrap();
            f.punch(offset, len).unwrap();
            let mut expected = vec![3; 16_384];
            let end = (offset + len).min(16_384) as usize;
            expected[offset as usize..end].fill(0);
            assert_eq!(bytes(&*f), expected, "punch {offset}+{len}");
        }
    }

    pub fn allocation_extends_and_keeps_bytes(d: &dyn Device) {
        let f = d.open("f", CREATE).unwrap();
        f.write_all_at(&[3; 100], 0).unwrap();
        f.allocate(0, 20_000).unwrap();
        assert_eq!(bytes(&*f), [vec![3; 100], vec![0; 19_900]].concat());
        f.allocate(0, 10).unwrap();
        assert_eq!(f.len().unwrap(), 20_000);
    }

    pub fn open_modes_are_kept(d: &dyn Device) {
        assert_eq!(kind(d.open("f", OpenMode::default())), ErrorKind::NotFound);
        let exclusive = OpenMode { exclusive: true, ..LOG };
        d.open("f", exclusive).unwrap();
        assert_eq!(kind(d.open("f", exclusive)), ErrorKind::AlreadyExists);
        d.open("f", LOG).unwrap();
        d.open("f", OpenMode { exclusive: true, ..OpenMode::default() })
            .expect("exclusive means nothing without create");
        assert_eq!(kind(d.open("no/f", CREATE)), ErrorKind::NotFound);
        assert_eq!(kind(d.open("f/g", CREATE)), ErrorKind::NotADirectory);
        d.create_dir_all("dir").unwrap();
        assert_eq!(kind(d.open("dir", OpenMode::default())), ErrorKind::IsADirectory);
    }

    pub fn names_can_be_listed(d: &dyn Device) {
        d.create_dir_all("a/sub").unwrap();
        d.create_dir_all("ab").unwrap();
        for name in ["a/z", "a/b", "a/sub/deep", "a-b", "ab/f"] {
            d.open(name, CREATE).unwrap();
        }
        assert_eq!(d.list("a").unwrap(), ["b", "sub", "z"]);
        assert_eq!(d.list("a/sub").unwrap(), ["deep"]);
        assert_eq!(d.list("").unwrap(), ["a", "a-b", "ab"]);
        assert!(d.exists("").unwrap() && d.exists("a").unwrap() && d.exists("a/sub/deep").unwrap());
        assert!(!d.exists("a/nothing").unwrap() && !d.exists("none/f").unwrap() && !d.exists("a/b/f").unwrap());
    }

    pub fn rename_replaces(d: &dyn Device) {
        d.create_dir_all("x").unwrap();
        d.create_dir_all("y").unwrap();
        d.open("x/f", CREATE).unwrap().write_all_at(b"new", 0).unwrap();
        let old = d.open("y/g", CREATE).unwrap();
        old.write_all_at(b"old", 0).unwrap();
        d.rename("x/f", "y/g").unwrap();
        assert_eq!(content(d, "y/g"), b"new");
        assert_eq!(bytes(&*old), b"old");
        assert!(d.list("x").unwrap().is_empty());
        d.rename("y/g", "y/g").unwrap();
        assert_eq!(content(d, "y/g"), b"new");
        assert_eq!(kind(d.rename("y/g", "x")), ErrorKind::IsADirectory);
        assert_eq!(kind(d.rename("y/g", "z/g")), ErrorKind::NotFound);
        assert_eq!(kind(d.rename("y/none", "x/g")), ErrorKind::NotFound);
    }

    pub fn open_files_outlive_their_names(d: &dyn Device) {
        let f = d.open("f", CREATE).unwrap();
        f.write_all_at(b"one", 0).unwrap();
        d.remove_file("f").unwrap();
        assert!(!d.exists("f").unwrap());
        d.open("f", CREATE).unwrap().write_all_at(b"two", 0).unwrap();
        f.write_all_at(b"!", 3).unwrap();
        f.sync_data().unwrap();
        assert_eq!(bytes(&*f), b"one!");
        assert_eq!(content(d, "f"), b"two");
    }

    pub fn directories_are_made_with_their_parents(d: &dyn Device) {
        d.create_dir_all("a/b/c").unwrap();
        d.create_dir_all("a/b/c").unwrap();
        d.create_dir_all("").unwrap();
        assert_eq!(d.list("a/b").unwrap(), ["c"]);
        d.open("a/f", CREATE).unwrap();
        assert_eq!(kind(d.create_dir_all("a/f")), ErrorKind::NotADirectory);
        assert_eq!(kind(d.create_dir_all("a/f/g")), ErrorKind::NotADirectory);
    }

    pub fn missing_things_are_named_errors(d: &dyn Device) {
        assert_eq!(kind(d.remove_file("none")), ErrorKind::NotFound);
        assert_eq!(kind(d.list("none")), ErrorKind::NotFound);
        assert_eq!(kind(d.sync_dir("none")), ErrorKind::NotFound);
        d.open("f", CREATE).unwrap();
        assert_eq!(kind(d.list("f")), ErrorKind::NotADirectory);
        assert_eq!(kind(d.sync_dir("f")), ErrorKind::NotADirectory);
        d.create_dir_all("dir").unwrap();
        assert_eq!(kind(d.remove_file("dir")), ErrorKind::IsADirectory);
    }

    pub fn paths_stay_below_the_device(d: &dyn Device) {
        for path in ["", "/", "/f", "..", "../f", "a/../f", "a//f", "f/", ".", "./f", "a/.", "f\0"] {
            assert_eq!(kind(d.open(path, CREATE)), ErrorKind::InvalidInput, "{path:?}");
            assert_eq!(kind(d.remove_file(path)), ErrorKind::InvalidInput, "{path:?}");
            assert_eq!(kind(d.rename(path, "g")), ErrorKind::InvalidInput, "{path:?}");
            assert_eq!(kind(d.rename("g", path)), ErrorKind::InvalidInput, "{path:?}");
            if !path.is_empty() {
                assert_eq!(kind(d.create_dir_all(path)), ErrorKind::InvalidInput, "{path:?}");
                assert_eq!(kind(d.list(path)), ErrorKind::InvalidInput, "{path:?}");
                assert_eq!(kind(d.exists(path)), ErrorKind::InvalidInput, "{path:?}");
                assert_eq!(kind(d.sync_dir(path)), ErrorKind::InvalidInput, "{path:?}");
            }
        }
    }

    pub fn syncs_succeed(d: &dyn Device) {
        d.create_dir_all("a").unwrap();
        let f = d.open("a/f", CREATE).unwrap();
        f.write_all_at(&[1; 100_000], 0).unwrap();
        f.start_writeback(0, 100_000).unwrap();
        f.start_writeback(5, 0).unwrap();
        f.sync_data().unwrap();
        d.sync_dir("a").unwrap();
        d.sync_dir("").unwrap();
        d.sync_all().unwrap();
    }

    pub fn space_is_reported(d: &dyn Device) {
        let space = d.space().unwrap();
        assert!(space.available_bytes > 0 && space.available_bytes <= space.total_bytes, "{space:?}");
    }
}

#[test]
fn a_real_device_knows_what_its_filesystem_can_do() {
    let dir = tempfile::tempdir().unwrap();
    let device = RealDevice::at(dir.path()).unwrap();
    let found = device.probe().unwrap();
    assert!(!found.fs_type.is_empty() && found.fs_device != 0, "{found:?}");
    assert!(device.list("").unwrap().is_empty(), "the probe left something behind");
}

#[test]
fn a_real_device_stays_in_its_directory_when_that_is_moved() {
    let dir = tempfile::tempdir().unwrap();
    let (old, new) = (dir.path().join("old"), dir.path().join("new"));
    std::fs::create_dir(&old).unwrap();
    let device = RealDevice::open(&old).unwrap();
    std::fs::rename(&old, &new).unwrap();
    std::fs::create_dir(&old).unwrap();
    device.open("f", CREATE).unwrap().write_all_at(b"here", 0).unwrap();
    assert_eq!(std::fs::read(new.join("f")).unwrap(), b"here");
    assert!(!old.join("f").exists());
}

#[test]
fn a_real_device_is_an_existing_directory() {
    let dir = tempfile::tempdir().unwrap();
    assert_eq!(kind(RealDevice::open(dir.path().join("none"))), ErrorKind::NotFound);
    std::fs::write(dir.path().join("file"), b"").unwrap();
    assert_eq!(kind(RealDevice::open(dir.path().join("file"))), ErrorKind::NotADirectory);
}

#[test]
fn a_real_device_follows_no_link_out() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
    let device = RealDevice::open(dir.path()).unwrap();
    assert!(device.open("link", OpenMode::default()).is_err());
    assert!(device.exists("link").unwrap());
}

mod crashes {
    use super::*;

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
}

mod faults {
    use super::*;

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
}

mod worlds {
    use super::*;

    #[test]
    fn operations_count_what_changes_or_syncs() {
        let world = SimWorld::new(1);
        let (d, e) = (world.device("d"), world.device("e"));
        d.create_dir_all("a/b").unwrap();
        d.create_dir_all("a/b").unwrap();
        assert_eq!(world.operations(), 2);
        let f = d.open("a/f", CREATE).unwrap();
        d.open("a/f", CREATE).unwrap();
        assert_eq!(world.operations(), 3);
        f.write_all_at(b"x", 0).unwrap();
        f.read_at(&mut [0], 0).unwrap();
        f.start_writeback(0, 1).unwrap();
        f.set_len(10).unwrap();
        f.punch(0, 1).unwrap();
        f.allocate(0, 1).unwrap();
        f.sync_data().unwrap();
        assert_eq!(world.operations(), 8);
        d.sync_dir("a").unwrap();
        d.rename("a/f", "g").unwrap();
        d.remove_file("g").unwrap();
        e.sync_all().unwrap();
        assert_eq!(world.operations(), 12);
        let traffic = d.traffic();
        assert_eq!((traffic.reads, traffic.read_bytes, traffic.writes, traffic.written_bytes), (1, 1, 1, 1));
        assert_eq!((traffic.syncs, e.traffic().syncs), (2, 1));
    }

    #[test]
    fn the_same_seeds_give_the_same_fate() {
        let run = |seed| {
            let world = SimWorld::new(seed);
            let d = world.device("d");
            let f = d.open("f", CREATE).unwrap();
            d.sync_all().unwrap();
            for i in 0..50u8 {
                f.write_all_at(&[i; 6000], u64::from(i % 7) * 3000).unwrap();
            }
            let outcomes = (0..20).map(|s| content(&*world.recover(Survival::Seed(s)).device("d"), "f"));
            outcomes.collect::<Vec<_>>()
        };
        assert_eq!(run(7), run(7));
        assert_ne!(run(7), run(8));
    }

    #[test]
    fn forks_go_their_own_ways() {
        let (world, d) = sim();
        let f = d.open("f", CREATE).unwrap();
        f.write_all_at(b"base", 0).unwrap();
        d.open("gone", CREATE).unwrap().allocate(0, 4096).unwrap();
        let gone = d.open("gone", CREATE).unwrap();
        d.remove_file("gone").unwrap();
        let fork = world.fork();
        assert_eq!(fork.operations(), world.operations());
        f.write_all_at(b"here", 0).unwrap();
        let g = fork.device("d");
        assert_eq!(content(&*g, "f"), b"base");
        g.remove_file("f").unwrap();
        assert_eq!(content(&*d, "f"), b"here");
        assert_eq!(g.space().unwrap().available_bytes, 1 << 40, "open files of the original hold no space in the fork");
        drop(gone);
    }

    #[test]
    fn threads_may_share_a_world() {
        let (world, d) = sim();
        std::thread::scope(|scope| {
            for t in 0..4u8 {
                let d: &SimDevice = &d;
                scope.spawn(move || {
                    let f = d.open(&format!("f{t}"), CREATE).unwrap();
                    for i in 0..100 {
                        f.write_all_at(&[t; 4096], i * 4096).unwrap();
                        f.sync_data().unwrap();
                    }
                });
            }
        });
        assert_eq!(world.operations(), 4 * 201);
        d.sync_all().unwrap();
        assert_eq!(content(&*world.recover(Survival::None).device("d"), "f3"), vec![3; 409_600]);
    }

    /// A log in miniature: numbered pages, each acknowledged when its dsync write returns. At every crash point and with
    /// several kinds of luck, what was acknowledged is there. Also the measure of how much enumeration costs.
    #[test]
    fn every_crash_point_of_a_small_log_keeps_what_was_acknowledged() {
        let base = SimWorld::new(11);
        let d = base.device("fast");
        d.open("log", LOG).unwrap().write_all_at(&AlignedBuf::zeroed(1 << 20), 0).unwrap();
        d.sync_all().unwrap();
        let work = |world: &SimWorld| -> u8 {
            let log = world.device("fast").open("log", LOG).expect("nothing has crashed yet");
            let acknowledged = (1..=100u8).take_while(|i| log.write_all_at(&page(*i), u64::from(*i) * 4096).is_ok());
            acknowledged.last().unwrap_or(0)
        };
        let counted = base.fork();
        assert_eq!(work(&counted), 100);
        let mut points = 0;
        for at in base.operations()..=counted.operations() {
            let world = base.fork();
            world.crash_at(at);
            let acknowledged = work(&world);
            let lucks = (0..8).map(Survival::Seed).chain([Survival::None, Survival::All]);
            for luck in lucks {
                let after = content(&*world.recover(luck).device("fast"), "log");
                for i in 1..=acknowledged {
                    assert_eq!(after[usize::from(i) * 4096], i, "crash at {at}, {luck:?}");
                }
                points += 1;
            }
        }
        assert_eq!(points, 101 * 10);
    }
}

fn sim() -> (SimWorld, Arc<SimDevice>) {
    let world = SimWorld::new(42);
    let device = world.device("d");
    (world, device)
}

fn page(value: u8) -> AlignedBuf {
    let mut page = AlignedBuf::zeroed(4096);
    page.fill(value);
    page
}

fn bytes(file: &dyn BackingFile) -> Vec<u8> {
    let mut bytes = vec![0xEE; usize::try_from(file.len().unwrap()).unwrap()];
    assert_eq!(file.read_at(&mut bytes, 0).unwrap(), bytes.len());
    bytes
}

fn content(device: &dyn Device, path: &str) -> Vec<u8> {
    bytes(&*device.open(path, OpenMode::default()).unwrap())
}

fn kind<T>(result: io::Result<T>) -> ErrorKind {
    result.err().expect("this must fail").kind()
}

/// 0 for success.
fn errno<T>(result: io::Result<T>) -> i32 {
    result.err().map_or(0, |e| e.raw_os_error().expect("an error of the system"))
}

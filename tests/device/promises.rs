//! What every device promises.

use crate::{CREATE, LOG, bytes, content, kind};
use heatfs::device::{AlignedBuf, Device, OpenMode};
use std::io::ErrorKind;

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

pub fn data_is_told_from_holes(d: &dyn Device) {
    let f = d.open("f", CREATE).unwrap();
    assert_eq!(f.next_data(0).unwrap(), None);
    f.write_all_at(&[1; 8192], 65536).unwrap();
    f.write_all_at(&[2; 100], 1 << 20).unwrap();
    assert_eq!(f.next_data(0).unwrap(), Some((65536, 65536 + 8192)));
    assert_eq!(f.next_data(65536 + 4096).unwrap(), Some((65536 + 4096, 65536 + 8192)));
    assert_eq!(f.next_data(65536 + 8192).unwrap(), Some((1 << 20, (1 << 20) + 100)));
    assert_eq!(f.next_data((1 << 20) + 100).unwrap(), None);
    f.punch(65536, 8192).unwrap();
    assert_eq!(f.next_data(0).unwrap(), Some((1 << 20, (1 << 20) + 100)));
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
    let cases = [(0, 4096), (4096, 8192), (100, 50), (100, 8000), (4000, 200), (4096, 100), (12_000, 50_000), (7, 0)];
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
    d.open("f", OpenMode { exclusive: true, ..OpenMode::default() }).expect("exclusive means nothing without create");
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

pub fn a_new_name_is_taken_once(d: &dyn Device) {
    d.open("a", CREATE).unwrap().write_all_at(&[1], 0).unwrap();
    d.open("b", CREATE).unwrap().write_all_at(&[2], 0).unwrap();
    d.rename_new("a", "c").unwrap();
    assert_eq!(kind(d.rename_new("b", "c")), ErrorKind::AlreadyExists);
    assert_eq!(kind(d.rename_new("nothing", "e")), ErrorKind::NotFound);
    assert_eq!(d.list("").unwrap(), ["b", "c"]);
    assert_eq!(content(d, "c"), [1]);
}

pub fn handles_for_reading_change_nothing(d: &dyn Device) {
    d.open("f", CREATE).unwrap().write_all_at(&[1; 10], 0).unwrap();
    let f = d.open("f", OpenMode { read_only: true, ..OpenMode::default() }).unwrap();
    assert_eq!(bytes(&*f), [1; 10]);
    assert!(f.write_all_at(&[2], 0).is_err());
    assert!(f.set_len(3).is_err());
    assert_eq!(bytes(&*f), [1; 10]);
}

//! What every device promises, on a real directory and on a simulated one; then what the simulated one does to those who
//! rely on more.

mod crashes;
mod faults;
mod powercut;
mod promises;
mod worlds;

use heatfs::device::real::RealDevice;
use heatfs::device::sim::{SimDevice, SimWorld};
use heatfs::device::{AlignedBuf, BackingFile, Device, OpenMode};
use std::io::{self, ErrorKind};
use std::sync::Arc;

const CREATE: OpenMode = OpenMode { create: true, exclusive: false, direct: false, dsync: false, read_only: false };
const LOG: OpenMode = OpenMode { create: true, exclusive: false, direct: true, dsync: true, read_only: false };

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
    data_is_told_from_holes,
    punched_ranges_read_as_zeros,
    allocation_extends_and_keeps_bytes,
    open_modes_are_kept,
    names_can_be_listed,
    rename_replaces,
    a_new_name_is_taken_once,
    handles_for_reading_change_nothing,
    open_files_outlive_their_names,
    directories_are_made_with_their_parents,
    missing_things_are_named_errors,
    paths_stay_below_the_device,
    syncs_succeed,
    space_is_reported,
);

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

/// procfs has no direct I/O: opening with O_DIRECT is EINVAL there.
#[test]
fn a_real_device_without_direct_io_is_buffered() {
    let process = RealDevice::open("/proc/self").unwrap();
    let file = process.open("comm", OpenMode { direct: true, ..OpenMode::default() }).unwrap();
    let mut name = [0; 100];
    assert!(file.read_at(&mut name[1..], 0).unwrap() > 0);
}

#[test]
fn a_real_device_follows_no_link_out() {
    let dir = tempfile::tempdir().unwrap();
    std::os::unix::fs::symlink("/dev/null", dir.path().join("link")).unwrap();
    let device = RealDevice::open(dir.path()).unwrap();
    assert!(device.open("link", OpenMode::default()).is_err());
    assert!(device.exists("link").unwrap());
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

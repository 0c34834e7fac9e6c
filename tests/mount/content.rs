//! Bytes, sizes and durability.

use crate::server::Mount;
use nix::errno::Errno;
use nix::fcntl::{FallocateFlags, fallocate};
use nix::sys::mman::{MapFlags, MsFlags, ProtFlags, mmap, msync, munmap};
use nix::unistd::{Whence, lseek};
use std::fs::{self, File, OpenOptions};
use std::io::{Read, Seek, SeekFrom, Write};
use std::num::NonZeroUsize;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};

fn read_write(path: &std::path::Path) -> File {
    OpenOptions::new().read(true).write(true).create(true).truncate(false).open(path).unwrap()
}

#[test]
fn bytes_written_are_read_and_sizes_follow_at_once() {
    let Some(mount) = Mount::start() else { return };
    let path = mount.path("file");
    let file = read_write(&path);
    let other = read_write(&path);
    let mut expected = Vec::new();
    for at in 0..200_usize {
        let piece = vec![u8::try_from(at % 251).unwrap(); 1000 + at * 37];
        file.write_all_at(&piece, expected.len() as u64).unwrap();
        expected.extend_from_slice(&piece);
        assert_eq!(other.metadata().unwrap().len(), expected.len() as u64);
        assert_eq!(lseek(&other, 0, Whence::SeekEnd).unwrap(), i64::try_from(expected.len()).unwrap());
    }
    assert!(fs::read(&path).unwrap() == expected);
    file.set_len(12345).unwrap();
    expected.truncate(12345);
    file.set_len(1 << 20).unwrap();
    expected.resize(1 << 20, 0);
    assert!(fs::read(&path).unwrap() == expected, "what a truncate cut off reads as zeros after growing");
    assert!(file.metadata().unwrap().blocks() > 0);
    let missing = file.write_at(b"x", (1 << 44) + 5).unwrap_err();
    assert_eq!(missing.raw_os_error(), Some(libc::EFBIG));
}

#[test]
fn content_survives_unmount_and_the_page_cache() {
    let Some(mut mount) = Mount::start() else { return };
    let big: Vec<u8> = (0..3_000_000_u32).map(|at| u8::try_from(at % 253).unwrap()).collect();
    fs::write(mount.path("big"), &big).unwrap();
    fs::create_dir(mount.path("directory")).unwrap();
    fs::write(mount.path("directory/small"), b"small").unwrap();
    let before = fs::metadata(mount.path("big")).unwrap();
    mount.unmount();
    assert!(fs::read_dir(mount.path("")).unwrap().next().is_none(), "nothing is mounted");
    mount.restart();
    assert!(fs::read(mount.path("big")).unwrap() == big);
    assert_eq!(fs::read(mount.path("directory/small")).unwrap(), b"small");
    let after = fs::metadata(mount.path("big")).unwrap();
    assert_eq!((after.mtime(), after.mtime_nsec()), (before.mtime(), before.mtime_nsec()));
    assert_eq!((after.len(), after.ino()), (before.len(), before.ino()));
}

#[test]
fn mappings_shared_and_private() {
    let Some(mount) = Mount::start() else { return };
    let path = mount.path("mapped");
    let file = read_write(&path);
    file.set_len(3 * 65536 + 100).unwrap();
    file.write_all_at(b"before", 70_000).unwrap();
    let length = NonZeroUsize::new(3 * 65536 + 100).unwrap();
    let both = ProtFlags::PROT_READ | ProtFlags::PROT_WRITE;
    unsafe {
        let shared = mmap(None, length, both, MapFlags::MAP_SHARED, &file, 0).unwrap();
        let private = mmap(None, length, both, MapFlags::MAP_PRIVATE, &file, 0).unwrap();
        let at = |map: std::ptr::NonNull<libc::c_void>, offset| map.cast::<u8>().as_ptr().add(offset);
        assert_eq!(*at(shared, 70_000), b'b');
        *at(private, 5) = 9;
        *at(shared, 3 * 65536 + 50) = 7;
        *at(shared, 4096) = 8;
        drop(file);
        // The mapping writes on after the last descriptor is closed.
        *at(shared, 8192) = 6;
        msync(shared, length.get(), MsFlags::MS_SYNC).unwrap();
        munmap(private, length.get()).unwrap();
        *at(shared, 12288) = 5;
        munmap(shared, length.get()).unwrap();
    }
    let content = fs::read(&path).unwrap();
    assert_eq!((content[5], content[3 * 65536 + 50], content[4096], content[8192], content[12288]), (0, 7, 8, 6, 5));
    assert_eq!(&content[70_000..70_006], b"before");
}

#[test]
fn holes_and_data_are_told_apart() {
    let Some(mount) = Mount::start() else { return };
    let file = read_write(&mount.path("sparse"));
    file.write_all_at(&[1; 4096], 1 << 20).unwrap();
    file.set_len(4 << 20).unwrap();
    let seek = |offset, whence| lseek(&file, offset, whence);
    let data = seek(0, Whence::SeekData).unwrap();
    assert!(data <= 1 << 20 && data > 0, "data starts at {data}");
    let hole = seek(1 << 20, Whence::SeekHole).unwrap();
    assert!(((1 << 20) + 4096..=2 << 20).contains(&hole), "hole starts at {hole}");
    assert_eq!(seek(3 << 20, Whence::SeekData).unwrap_err(), Errno::ENXIO);
    assert_eq!(seek(5 << 20, Whence::SeekHole).unwrap_err(), Errno::ENXIO);
    assert!(file.metadata().unwrap().blocks() < 1024);
}

#[test]
fn fallocate_modes() {
    let Some(mount) = Mount::start() else { return };
    let file = read_write(&mount.path("reserved"));
    let size = || file.metadata().unwrap().len();
    fallocate(&file, FallocateFlags::empty(), 0, 1 << 20).unwrap();
    assert_eq!(size(), 1 << 20);
    fallocate(&file, FallocateFlags::FALLOC_FL_KEEP_SIZE, 1 << 20, 1 << 20).unwrap();
    assert_eq!(size(), 1 << 20);
    file.write_all_at(&[7; 200_000], 0).unwrap();
    let punch = FallocateFlags::FALLOC_FL_PUNCH_HOLE | FallocateFlags::FALLOC_FL_KEEP_SIZE;
    fallocate(&file, punch, 5000, 100_000).unwrap();
    fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 150_000, 10).unwrap();
    let zero_beyond = fallocate(&file, FallocateFlags::FALLOC_FL_ZERO_RANGE, 1 << 20, 4096);
    zero_beyond.unwrap();
    assert_eq!(size(), (1 << 20) + 4096);
    let mut content = vec![1; 200_000];
    file.read_exact_at(&mut content, 0).unwrap();
    let expected = |at: usize| if (5000..105_000).contains(&at) || (150_000..150_010).contains(&at) { 0 } else { 7 };
    assert!((0..200_000).all(|at| content[at] == expected(at)));
    let collapse = fallocate(&file, FallocateFlags::FALLOC_FL_COLLAPSE_RANGE, 0, 65536);
    assert_eq!(collapse.unwrap_err(), Errno::EOPNOTSUPP);
}

/// The kernel turns "not implemented" into success for ever, so that syncs reach the log is not to be assumed.
#[test]
fn every_kind_of_sync_reaches_the_log() {
    let Some(mut mount) = Mount::start() else { return };
    let path = mount.path("synced");
    let file = read_write(&path);
    let mut last = mount.syncs();
    let mut step = |mount: &mut Mount, what: &str| {
        let now = mount.syncs();
        assert!(now > last, "{what} did not reach the log");
        last = now;
    };
    for round in 0..3 {
        file.write_all_at(b"data", round * 100).unwrap();
        file.sync_data().unwrap();
        step(&mut mount, "fdatasync");
        file.write_all_at(b"data", round * 100).unwrap();
        file.sync_all().unwrap();
        step(&mut mount, "fsync");
    }
    let synchronous = OpenOptions::new().write(true).custom_flags(libc::O_DSYNC).open(&path).unwrap();
    synchronous.write_all_at(b"data", 0).unwrap();
    step(&mut mount, "O_DSYNC");
    let direct = OpenOptions::new().write(true).custom_flags(libc::O_SYNC | libc::O_DIRECT).open(&path).unwrap();
    let page = heatfs::device::AlignedBuf::zeroed(4096);
    direct.write_all_at(&page, 0).unwrap();
    step(&mut mount, "O_SYNC with O_DIRECT");
    File::open(mount.path("")).unwrap().sync_all().unwrap();
}

#[test]
fn direct_and_appending_handles() {
    let Some(mount) = Mount::start() else { return };
    let path = mount.path("mixed");
    let direct = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .custom_flags(libc::O_DIRECT)
        .open(&path)
        .unwrap();
    let mut pages = heatfs::device::AlignedBuf::zeroed(1 << 20);
    pages.fill(3);
    direct.write_all_at(&pages, 0).unwrap();
    let buffered = read_write(&path);
    buffered.write_all_at(b"buffered", 5000).unwrap();
    pages.fill(0);
    direct.read_exact_at(&mut pages, 0).unwrap();
    assert_eq!((&pages[5000..5008], pages[4999], pages[(1 << 20) - 1]), (b"buffered".as_slice(), 3, 3));
    let mut appending: Vec<File> = (0..2).map(|_| OpenOptions::new().append(true).open(&path).unwrap()).collect();
    for at in 0..10 {
        appending[at % 2].write_all(b"0123456789").unwrap();
    }
    let mut tail = String::new();
    let mut reader = File::open(&path).unwrap();
    reader.seek(SeekFrom::Start(1 << 20)).unwrap();
    reader.read_to_string(&mut tail).unwrap();
    assert_eq!(tail, "0123456789".repeat(10));
    let truncated = OpenOptions::new().write(true).truncate(true).open(&path).unwrap();
    assert_eq!(truncated.metadata().unwrap().len(), 0);
}

#[test]
fn copies_within_the_mount_see_mapped_pages() {
    let Some(mount) = Mount::start() else { return };
    let from = read_write(&mount.path("from"));
    from.set_len(65536).unwrap();
    let length = NonZeroUsize::new(65536).unwrap();
    unsafe {
        let map =
            mmap(None, length, ProtFlags::PROT_READ | ProtFlags::PROT_WRITE, MapFlags::MAP_SHARED, &from, 0).unwrap();
        map.cast::<u8>().as_ptr().add(100).write(42);
        // The standard library uses copy_file_range between files.
        let mut to = read_write(&mount.path("to"));
        assert_eq!(std::io::copy(&mut &from, &mut to).unwrap(), 65536);
        munmap(map, 65536).unwrap();
    }
    assert_eq!(fs::read(mount.path("to")).unwrap()[100], 42);
}

/// Many threads on many and on shared files; every byte checked.
#[test]
fn many_threads() {
    let Some(mount) = Mount::start() else { return };
    let shared = read_write(&mount.path("shared"));
    std::thread::scope(|scope| {
        for thread in 0..12_u64 {
            let (mount, shared) = (&mount, &shared);
            scope.spawn(move || {
                let name = |at: u64| mount.path(&format!("t{thread}-{at}"));
                for at in 0..40 {
                    let content =
                        vec![u8::try_from(thread * 20 + at % 7).unwrap(); 3000 + usize::try_from(at).unwrap() * 501];
                    fs::write(name(at), &content).unwrap();
                    shared.write_all_at(&content[..1000], (at * 12 + thread) * 1000).unwrap();
                    if at % 8 == 0 {
                        shared.sync_data().unwrap();
                    }
                    assert!(fs::read(name(at)).unwrap() == content);
                    if at % 3 == 0 {
                        fs::rename(name(at), name(at + 1000)).unwrap();
                        fs::remove_file(name(at + 1000)).unwrap();
                    }
                }
            });
        }
    });
    let content = fs::read(mount.path("shared")).unwrap();
    for at in 0..40_u64 {
        for thread in 0..12_u64 {
            let start = usize::try_from((at * 12 + thread) * 1000).unwrap();
            let expected = u8::try_from(thread * 20 + at % 7).unwrap();
            assert!(content[start..start + 1000].iter().all(|byte| *byte == expected));
        }
    }
    assert_eq!(fs::read_dir(mount.path("")).unwrap().count(), 1 + 12 * (40 - 14));
}

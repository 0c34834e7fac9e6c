//! Reads that the caller makes itself, on a real directory: what they are offered for, what they answer, and what waits for them.

use heatfs::device::AlignedBuf;
use heatfs::device::real::RealDevice;
use heatfs::units::{BlockNo, TierId};
use heatfs::volume::{DirectRead, File, Tier, Volume, Wait};
use std::io;
use std::os::unix::fs::FileExt;
use std::sync::Arc;
use std::time::Duration;

const BLOCK: usize = 16 * 1024;
const PAGE: usize = 4096;

struct Lab {
    volume: Arc<Volume>,
    file: Arc<File>,
    _directory: tempfile::TempDir,
}

/// A file of four blocks that lie on the fastest tier. None, after saying why, where reads cannot bypass the page cache.
fn lab() -> Option<Lab> {
    let directory = tempfile::tempdir().unwrap();
    let tiers = ["fast", "slow"].map(|name| {
        std::fs::create_dir(directory.path().join(name)).unwrap();
        let device = RealDevice::open(directory.path().join(name)).unwrap();
        Tier { name: name.to_owned(), device, budget_bytes: None, reserve_bytes: 0 }
    });
    if !RealDevice::at(directory.path()).unwrap().probe().unwrap().direct_io {
        eprintln!("NOT RUN: needs a directory for temporary files whose filesystem has direct I/O");
        return None;
    }
    Volume::create(&tiers, &super::harness::options(), uuid::Uuid::from_u128(7), &mut |_| {}).unwrap();
    let (volume, _) = Volume::open(tiers.into(), super::harness::options()).unwrap();
    let file = volume.file(volume.issue_file_id().unwrap()).unwrap();
    for block in 0..4 {
        volume.write(&file, (block * BLOCK) as u64, &[b'a' + block as u8; BLOCK], Wait::Allowed).unwrap();
    }
    volume.coalesce_all(&mut |_, _| {}).unwrap();
    volume.checkpoint().unwrap();
    Some(Lab { volume, file, _directory: directory })
}

impl Lab {
    fn offered(&self, offset: usize, size: usize) -> Option<DirectRead> {
        self.volume.direct_read(&self.file, offset as u64, size)
    }

    fn reads(&self) -> (u64, u64) {
        let counters = self.volume.status().counters;
        (counters.reads, counters.base_reads[0])
    }
}

fn make(read: &DirectRead, buf: &mut AlignedBuf) -> io::Result<usize> {
    let from = std::fs::File::from(read.descriptor().unwrap().try_clone_to_owned().unwrap());
    from.read_at(&mut buf[..read.length()], read.offset())
}

#[test]
fn whole_pages_of_the_fastest_tier_are_offered_and_nothing_else_is() {
    let Some(lab) = lab() else { return };
    let before = lab.reads();
    let read = lab.offered(BLOCK - PAGE, 2 * PAGE).expect("pages of two blocks beside each other");
    let mut buf = AlignedBuf::zeroed(2 * PAGE);
    let outcome = make(&read, &mut buf);
    assert_eq!(read.finish(&mut buf, outcome).unwrap(), 2 * PAGE);
    assert_eq!((buf[0], buf[PAGE]), (b'a', b'b'));
    assert_eq!(lab.reads(), (before.0 + 1, before.1 + 1), "counted as any other read");

    assert!(lab.offered(PAGE / 2, PAGE).is_none(), "half pages");
    assert!(lab.offered(4 * BLOCK, PAGE).is_none(), "past the end");
    let to_the_end = lab.offered(4 * BLOCK - PAGE, 8 * PAGE).expect("up to the end");
    assert_eq!(to_the_end.length(), PAGE);
    drop(to_the_end);
    lab.volume.write(&lab.file, 100, b"newer", Wait::Allowed).unwrap();
    assert!(lab.offered(0, PAGE).is_none(), "newer bytes are in the log");
    assert!(lab.offered(PAGE, PAGE).is_some());
    assert!(lab.volume.move_block(&lab.file, BlockNo(2), TierId(1)).unwrap());
    assert!(lab.offered(2 * BLOCK, PAGE).is_none(), "on a slower tier");
    assert!(lab.offered(2 * BLOCK - PAGE, 2 * PAGE).is_none(), "on two tiers");
    lab.volume.punch_hole(&lab.file, (3 * BLOCK) as u64, BLOCK as u64).unwrap();
    assert!(lab.offered(3 * BLOCK, PAGE).is_none(), "a hole");
    lab.volume.shut_down().unwrap();
}

#[test]
fn what_went_wrong_is_read_again_or_told() {
    let Some(lab) = lab() else { return };
    let mut buf = AlignedBuf::zeroed(2 * PAGE);
    for passing in [Ok(PAGE), Ok(0), Err(io::ErrorKind::Interrupted.into()), Err(io::ErrorKind::WouldBlock.into())] {
        buf.fill(0xff);
        assert_eq!(lab.offered(BLOCK, 2 * PAGE).unwrap().finish(&mut buf, passing).unwrap(), 2 * PAGE);
        assert!(buf[..2 * PAGE].iter().all(|byte| *byte == b'b'));
    }
    let failed = lab.offered(BLOCK, PAGE).unwrap().finish(&mut buf, Err(io::Error::from_raw_os_error(libc::EIO)));
    let told = failed.expect_err("nothing is made up").to_string();
    assert!(told.contains("objects/"), "{told}");
    assert_eq!(lab.volume.status().counters.base_read_errors[0], 1);
    assert_eq!(lab.volume.status().degraded.len(), 1, "and the volume says so");
    lab.volume.shut_down().unwrap();
}

/// The old image of a block that moved stays until whoever was offered it has read it.
#[test]
fn what_is_being_read_is_not_punched() {
    let Some(lab) = lab() else { return };
    let read = lab.offered(BLOCK, PAGE).unwrap();
    assert!(lab.volume.move_block(&lab.file, BlockNo(1), TierId(1)).unwrap());
    let (tell, told) = crossbeam_channel::bounded(1);
    let volume = Arc::clone(&lab.volume);
    let checkpoint = std::thread::spawn(move || tell.send(volume.checkpoint()).unwrap());
    // It gets as far as it can.
    assert!(
        told.recv_timeout(Duration::from_millis(500)).is_err(),
        "a checkpoint passed a read that it had to wait for"
    );
    let mut buf = AlignedBuf::zeroed(PAGE);
    let outcome = make(&read, &mut buf);
    assert_eq!(read.finish(&mut buf, outcome).unwrap(), PAGE);
    assert!(buf[..PAGE].iter().all(|byte| *byte == b'b'), "the image as it was");
    told.recv().unwrap().unwrap();
    checkpoint.join().unwrap();
    lab.volume.shut_down().unwrap();
}

//! Requests over io_uring. The other tests run so with `HEATFS_TEST_IO_URING=1`.

use crate::server::Mount;
use nix::fcntl::{PosixFadviseAdvice, posix_fadvise};
use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::FileExt;

const WRITERS: u8 = 8;
const PAGE: usize = 8192;

/// What workers serve themselves, what goes over the bridge to the library, requests larger than most, and more of them at once than there are workers.
#[test]
fn everything_works_over_io_uring() {
    let Some(mut mount) = Mount::start_over_io_uring() else { return };
    fs::create_dir(mount.path("many")).unwrap();
    std::thread::scope(|scope| {
        for writer in 0..WRITERS {
            let mount = &mount;
            scope.spawn(move || {
                let path = mount.path(&format!("many/{writer}"));
                let mut file = File::options().create_new(true).read(true).write(true).open(&path).unwrap();
                file.write_all(&vec![writer; 3 << 20]).unwrap();
                for page in 0..40_u64 {
                    let filled = [writer ^ 0x55; PAGE];
                    file.write_all_at(&filled, page * 3 * PAGE as u64).unwrap();
                    file.sync_data().unwrap();
                    let mut read = [0; PAGE];
                    file.read_exact_at(&mut read, page * 3 * PAGE as u64).unwrap();
                    assert_eq!(read, filled);
                }
                let renamed = mount.path(&format!("many/renamed-{writer}"));
                fs::rename(&path, &renamed).unwrap();
                fs::hard_link(&renamed, &path).unwrap();
                assert_eq!(fs::metadata(&path).unwrap().len(), 3 << 20);
                assert!(fs::metadata(mount.path("many/none")).is_err());
            });
        }
    });
    assert_eq!(fs::read_dir(mount.path("many")).unwrap().count(), usize::from(WRITERS) * 2);
    let check = |mount: &Mount| {
        for writer in 0..WRITERS {
            let bytes = fs::read(mount.path(&format!("many/{writer}"))).unwrap();
            assert_eq!(bytes.len(), 3 << 20);
            for (page, bytes) in bytes.chunks(PAGE).enumerate() {
                let wanted = if page % 3 == 0 && page < 120 { writer ^ 0x55 } else { writer };
                assert!(bytes.iter().all(|byte| *byte == wanted), "writer {writer}, page {page}");
            }
        }
    };
    check(&mount);
    // Once more from the fastest tier, by all at once: the kernel reads into the slots of the ring.
    assert_eq!(mount.ask("checkpoint"), "done");
    let count: u64 = mount.ask("base reads").parse().unwrap();
    std::thread::scope(|scope| {
        for reader in 0..WRITERS {
            let mount = &mount;
            scope.spawn(move || {
                let file = File::open(mount.path(&format!("many/{reader}"))).unwrap();
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_DONTNEED).unwrap();
                posix_fadvise(&file, 0, 0, PosixFadviseAdvice::POSIX_FADV_RANDOM).unwrap();
                for page in (0..(3 << 20) / PAGE).map(|n| n * 97 % ((3 << 20) / PAGE)) {
                    let mut read = [0; PAGE];
                    file.read_exact_at(&mut read, (page * PAGE) as u64).unwrap();
                    let wanted = if page % 3 == 0 && page < 120 { reader ^ 0x55 } else { reader };
                    assert!(read.iter().all(|byte| *byte == wanted), "reader {reader}, page {page}");
                }
            });
        }
    });
    let made = mount.ask("base reads").parse::<u64>().unwrap() - count;
    assert!(made >= u64::from(WRITERS) * 384, "{made} reads of the tier");
    mount.kill_and_restart();
    check(&mount);
    mount.unmount();
}

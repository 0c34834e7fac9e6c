//! A tier as slow as a busy disk, and that nobody stands behind its readers but they themselves.

use crate::server::Mount;
use heatfs::device::real::RealDevice;
use heatfs::device::{BackingFile, Device, OpenMode, Space};
use std::fs::{self, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

const READ_TIME: Duration = Duration::from_millis(200);

struct SlowDevice(Arc<dyn Device>);
struct SlowFile(Arc<dyn BackingFile>);

pub fn open(path: &Path) -> Arc<dyn Device> {
    Arc::new(SlowDevice(RealDevice::open(path).unwrap()))
}

impl Device for SlowDevice {
    fn path(&self) -> String {
        self.0.path()
    }
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        Ok(Arc::new(SlowFile(self.0.open(path, mode)?)))
    }
    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        self.0.create_dir_all(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename(from, to)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.0.rename_new(from, to)
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.0.remove_file(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.0.list(path)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.0.exists(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.0.sync_dir(path)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.0.sync_all()
    }
    fn space(&self) -> io::Result<Space> {
        self.0.space()
    }
}

impl BackingFile for SlowFile {
    fn read_at(&self, buf: &mut [u8], offset: u64) -> io::Result<usize> {
        std::thread::sleep(READ_TIME);
        self.0.read_at(buf, offset)
    }
    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(buf, offset)
    }
    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }
    fn start_writeback(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.start_writeback(offset, len)
    }
    fn allocate(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.allocate(offset, len)
    }
    fn punch(&self, offset: u64, len: u64) -> io::Result<()> {
        self.0.punch(offset, len)
    }
    fn next_data(&self, offset: u64) -> io::Result<Option<(u64, u64)>> {
        self.0.next_data(offset)
    }
    fn len(&self) -> io::Result<u64> {
        self.0.len()
    }
    fn set_len(&self, len: u64) -> io::Result<()> {
        self.0.set_len(len)
    }
}

fn direct(path: &Path) -> fs::File {
    OpenOptions::new().read(true).write(true).custom_flags(libc::O_DIRECT).open(path).unwrap()
}

/// More readers of the slow tier than there are workers, for seconds: everything else must go on at its own speed.
#[test]
fn slow_reads_do_not_hold_up_others() {
    const BLOCKS: u64 = 64;
    let Some(mut mount) = Mount::start() else { return };
    let slow = mount.path("slow");
    fs::write(&slow, vec![5; usize::try_from(BLOCKS * 65536).unwrap()]).unwrap();
    fs::write(mount.path("fast"), vec![6; 1 << 20]).unwrap();
    assert_eq!(mount.ask("demote slow"), BLOCKS.to_string());
    let stop = AtomicBool::new(false);
    let mut taken = Vec::new();
    std::thread::scope(|scope| {
        for reader in 0..40 {
            let (slow, stop) = (&slow, &stop);
            scope.spawn(move || {
                let file = direct(slow);
                let mut page = heatfs::device::AlignedBuf::zeroed(8192);
                for at in 0.. {
                    file.read_exact_at(&mut page, (reader * 7 + at) % BLOCKS * 65536).unwrap();
                    assert!(page.iter().all(|byte| *byte == 5));
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                }
            });
        }
        std::thread::sleep(READ_TIME);
        let fast = direct(&mount.path("fast"));
        let mut page = heatfs::device::AlignedBuf::zeroed(8192);
        let began = Instant::now();
        for at in 0.. {
            if began.elapsed() > Duration::from_secs(2) {
                break;
            }
            let step = Instant::now();
            fast.read_exact_at(&mut page, at % 128 * 8192).unwrap();
            fast.write_all_at(&page, at % 128 * 8192).unwrap();
            fast.sync_data().unwrap();
            fs::metadata(mount.path("fast")).unwrap();
            taken.push(step.elapsed());
        }
        stop.store(true, Ordering::Relaxed);
    });
    // The median: a loaded machine has slow moments of its own, but a worker that waits for the slow tier has nothing else.
    taken.sort();
    let median = taken[taken.len() / 2];
    assert!(median < READ_TIME / 2, "the fast file had to wait {median:?}");
}

//! Group commit (`log/commit.rs`): every sync is answered once, when its record and all before it are on the device, or with the reason why not.

use crate::device::{BackingFile, Device, OpenMode, Space};
use crate::log::{Append, Geometry, Log, RedoPoint, recover};
use crate::ondisk::group::RecordKind;
use crate::schedule::{Bounds, check, timers_left};
use crate::sync::thread::{JoinHandle, spawn};
use crate::sync::{Condvar, Mutex, pause};
use crate::units::{FileId, Lsn};
use std::io;
use std::sync::Arc;
use uuid::Uuid;

const GEOMETRY: Geometry = Geometry { segment_bytes: 256 << 10, segments: 4 };

/// A device that holds nothing but the log's slots.
struct Slots {
    files: Vec<Arc<Slot>>,
}

struct Slot {
    number: u64,
    device: Arc<Written>,
}

/// What reached the device; a plain lock, since the checker is not to interleave the bookkeeping.
#[derive(Default)]
struct Written {
    ranges: std::sync::Mutex<Vec<(u64, u64, u64)>>,
    /// Writes that succeed; those after fail.
    writes_left: std::sync::Mutex<Option<usize>>,
    failed: std::sync::atomic::AtomicBool,
}

impl Written {
    /// Is the record's header page there?
    fn holds(&self, lsn: Lsn) -> bool {
        let (slot, offset) = (GEOMETRY.slot(GEOMETRY.segment_of(lsn.0)) as u64, lsn.0 % GEOMETRY.segment_bytes);
        let ranges = self.ranges.lock().expect("ranges");
        ranges.iter().any(|&(at, start, end)| at == slot && (start..end).contains(&offset))
    }
}

impl BackingFile for Slot {
    fn read_at(&self, buf: &mut [u8], _: u64) -> io::Result<usize> {
        buf.fill(0);
        Ok(buf.len())
    }

    fn write_all_at(&self, buf: &[u8], offset: u64) -> io::Result<()> {
        pause();
        use std::sync::atomic::Ordering::Relaxed;
        assert!(!self.device.failed.load(Relaxed), "something was written after a failed write");
        let mut left = self.device.writes_left.lock().expect("writes left");
        if *left == Some(0) {
            self.device.failed.store(true, Relaxed);
            return Err(io::Error::from_raw_os_error(5));
        }
        *left = left.map(|left| left - 1);
        drop(left);
        self.device.ranges.lock().expect("ranges").push((self.number, offset, offset + buf.len() as u64));
        pause();
        Ok(())
    }

    fn sync_data(&self) -> io::Result<()> {
        Ok(())
    }

    fn start_writeback(&self, _: u64, _: u64) -> io::Result<()> {
        Ok(())
    }

    fn allocate(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn punch(&self, _: u64, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn next_data(&self, _: u64) -> io::Result<Option<(u64, u64)>> {
        Ok(None)
    }

    fn len(&self) -> io::Result<u64> {
        Ok(GEOMETRY.segment_bytes)
    }

    fn set_len(&self, _: u64) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

impl Device for Slots {
    fn path(&self) -> String {
        "slots".to_owned()
    }

    fn open(&self, path: &str, _: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        let number = path.trim_start_matches("log/").trim_end_matches(".seg").parse::<usize>();
        let file = number.ok().and_then(|number| self.files.get(number)).ok_or(io::ErrorKind::NotFound)?;
        Ok(file.clone())
    }

    fn create_dir_all(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn rename_new(&self, _: &str, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn remove_file(&self, _: &str) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn list(&self, _: &str) -> io::Result<Vec<String>> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn exists(&self, _: &str) -> io::Result<bool> {
        Err(io::ErrorKind::Unsupported.into())
    }

    fn sync_dir(&self, _: &str) -> io::Result<()> {
        Ok(())
    }

    fn sync_all(&self) -> io::Result<()> {
        Ok(())
    }

    fn space(&self) -> io::Result<Space> {
        Ok(Space::default())
    }
}

/// A log, and what its users were answered.
struct Bench {
    log: Log,
    written: Arc<Written>,
    /// Records in the order of the log, and for each what its syncs were answered.
    records: std::sync::Mutex<Vec<(Lsn, Vec<bool>)>>,
    asked: Mutex<usize>,
    answered: Condvar,
}

impl Bench {
    fn new(writes_left: Option<usize>) -> Arc<Bench> {
        let written = Arc::new(Written { writes_left: writes_left.into(), ..Written::default() });
        let file = |number| Arc::new(Slot { number, device: Arc::clone(&written) });
        let device: Arc<dyn Device> = Arc::new(Slots { files: (0..u64::from(GEOMETRY.segments)).map(file).collect() });
        let replayed = recover(&device, GEOMETRY, Uuid::nil(), RedoPoint::BEGINNING, &mut |_, _| Ok(()));
        let log = Log::open(&device, GEOMETRY, Uuid::nil(), 1, 0, replayed.expect("an empty log")).expect("opened");
        Arc::new(Bench {
            log,
            written,
            records: std::sync::Mutex::default(),
            asked: Mutex::new(0),
            answered: Condvar::new(),
        })
    }

    /// Appends a record. None when the log has failed.
    fn append(&self) -> Option<Lsn> {
        let record = Append {
            kind: RecordKind::Data,
            file: FileId(1),
            offset: 0,
            length: 8,
            payload: b"8 bytes.",
            let_die: false,
            tier: 0,
            score: 0,
        };
        let lsn = self.log.append(&record).ok()?.lsn;
        self.records.lock().expect("records").push((lsn, Vec::new()));
        Some(lsn)
    }

    /// Asks for durability; the answer may come later.
    fn sync(self: &Arc<Bench>, lsn: Lsn) {
        *self.asked.lock() += 1;
        let bench = Arc::clone(self);
        let done = move |result: crate::error::Result<()>| {
            bench.note(lsn, result.is_ok());
            *bench.asked.lock() -= 1;
            bench.answered.notify_all();
        };
        self.log.sync(lsn, Box::new(done));
    }

    fn note(&self, lsn: Lsn, durable: bool) {
        let mut records = self.records.lock().expect("records");
        for (record, answers) in records.iter_mut() {
            if durable && *record <= lsn {
                assert!(self.written.holds(*record), "{lsn:?} was acknowledged before {record:?} was written");
            }
            if *record == lsn {
                answers.push(durable);
            }
        }
    }

    fn wait_for_answers(&self) {
        let mut asked = self.asked.lock();
        while *asked > 0 {
            self.answered.wait(&mut asked);
        }
    }

    /// Appends a record and asks for durability, unless the log has failed.
    fn write(self: &Arc<Bench>) {
        if let Some(lsn) = self.append() {
            self.sync(lsn);
        }
    }

    /// Waits for the writer and every answer, then stops the committer.
    fn end(&self, writer: JoinHandle<()>, committer: JoinHandle<()>) {
        writer.join().expect("the writer");
        self.wait_for_answers();
        self.log.stop();
        committer.join().expect("the committer");
    }

    fn writer(self: &Arc<Bench>) -> JoinHandle<()> {
        let bench = Arc::clone(self);
        spawn(move || bench.write())
    }

    fn committer(self: &Arc<Bench>) -> JoinHandle<()> {
        let bench = Arc::clone(self);
        spawn(move || bench.log.run_committer())
    }

    /// Each record's one answer; fails if there are more or less.
    fn answers(&self) -> Vec<bool> {
        let records = self.records.lock().expect("records");
        let one = |(lsn, answers): &(Lsn, Vec<bool>)| match answers.as_slice() {
            [answer] => *answer,
            _ => panic!("{lsn:?} was answered {} times", answers.len()),
        };
        records.iter().map(one).collect()
    }
}

#[test]
fn leaders_alone_answer_every_sync_once_it_is_durable() {
    check(Bounds { preemptions: 2, timers: 0 }, || {
        let bench = Bench::new(None);
        let writers = [bench.writer(), bench.writer()];
        bench.write();
        for writer in writers {
            writer.join().expect("the writer");
        }
        assert_eq!(bench.answers(), [true; 3]);
    });
}

/// No timers: whatever a leader leaves to the committer wakes it.
#[test]
fn leaders_and_committer_lose_no_wake_up() {
    check(Bounds { preemptions: 2, timers: 0 }, || {
        let bench = Bench::new(None);
        let committer = bench.committer();
        let writer = bench.writer();
        bench.write();
        bench.end(writer, committer);
        assert_eq!(bench.answers(), [true; 2]);
    });
}

#[test]
fn a_stop_at_any_time_leaves_nobody_waiting() {
    check(Bounds { preemptions: 2, timers: 0 }, || {
        let bench = Bench::new(None);
        let committer = bench.committer();
        let writer = bench.writer();
        bench.write();
        bench.log.stop();
        writer.join().expect("the writer");
        committer.join().expect("the committer");
        assert_eq!(bench.answers(), [true; 2]);
    });
}

#[test]
fn after_a_failed_write_everybody_is_told_and_nothing_is_written() {
    for writes_left in 0..2 {
        check(Bounds { preemptions: 2, timers: 0 }, move || {
            let bench = Bench::new(Some(writes_left));
            let committer = bench.committer();
            let writer = bench.writer();
            bench.write();
            bench.end(writer, committer);
            let answers = bench.answers();
            // Whether there was a second write depends on whether both records came into one group.
            assert!(
                writes_left > 0 || answers.iter().all(|durable| !durable),
                "acknowledged although nothing was written"
            );
            if bench.written.failed.load(std::sync::atomic::Ordering::Relaxed) {
                assert!(bench.append().is_none(), "a failed log takes nothing more");
            }
        });
    }
}

#[test]
fn a_failure_from_outside_of_the_log_leaves_nobody_waiting() {
    check(Bounds { preemptions: 2, timers: 0 }, || {
        let bench = Bench::new(None);
        let committer = bench.committer();
        let writer = bench.writer();
        bench.log.fail_for(&crate::error::Error::NotFound("a checkpoint's transaction".to_owned()));
        bench.write();
        bench.end(writer, committer);
        bench.answers();
    });
}

#[test]
fn a_group_that_nobody_waits_for_is_written_when_its_time_is_up() {
    check(Bounds { preemptions: 3, timers: 1 }, || {
        let bench = Bench::new(None);
        let lsn = bench.append().expect("appended");
        let committer = bench.committer();
        bench.log.stop();
        committer.join().expect("the committer");
        assert!(timers_left() == 1 || bench.written.holds(lsn), "the time was up, and nothing was written");
    });
}

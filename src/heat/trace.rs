//! A bounded trace of what users do with files, for replaying it elsewhere.
//!
//! One recording at a time: it ends after the records that were asked for, when it is stopped, or when nobody has taken records for
//! [`FORGOTTEN_AFTER`]. What does not fit the queue between two takings is counted and let go. While nothing is recorded an access costs one look at a flag.

use crate::device::clock::{Instant, monotonic_now};
use crate::error::{Error, Result};
use crate::units::FileId;
use crossbeam_channel::{Receiver, Sender, bounded};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

/// Records waiting to be taken: 3 MiB.
const QUEUED_MAX: usize = 65_536;
/// A recording that nobody takes from ends after this long.
const FORGOTTEN_AFTER: Duration = Duration::from_secs(30);

/// What was done. The letters are those of traces.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum TracedOperation {
    #[serde(rename = "R")]
    Read,
    #[serde(rename = "W")]
    Write,
    #[serde(rename = "S")]
    Sync,
    /// The offset is the new size.
    #[serde(rename = "T")]
    Truncate,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TraceRecord {
    /// Since the recording began.
    pub at_ms: u64,
    pub operation: TracedOperation,
    pub file: u64,
    pub offset: u64,
    pub len: u64,
}

/// What was recorded since the last taking.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct TakenTrace {
    pub records: Vec<TraceRecord>,
    /// Records lost so far because they were not taken in time.
    pub dropped: u64,
    /// More may come.
    pub goes_on: bool,
}

/// See the module's head.
pub(super) struct Tracer {
    is_on: AtomicBool,
    left: AtomicU64,
    dropped: AtomicU64,
    /// When it began, and when somebody last took from it.
    times: Mutex<(Instant, Instant)>,
    into: Sender<TraceRecord>,
    out: Receiver<TraceRecord>,
}

impl Tracer {
    pub(super) fn new() -> Tracer {
        let (into, out) = bounded(QUEUED_MAX);
        let now = monotonic_now();
        let times = Mutex::new((now, now));
        Tracer { is_on: AtomicBool::new(false), left: AtomicU64::new(0), dropped: AtomicU64::new(0), times, into, out }
    }

    /// `Busy` while another recording goes on.
    pub(super) fn start(&self, records_max: u64) -> Result<()> {
        let mut times = self.times.lock();
        if self.is_on.load(Ordering::Acquire) && times.1.elapsed() < FORGOTTEN_AFTER {
            return Err(Error::Busy("a trace is being recorded already".to_owned()));
        }
        self.out.try_iter().for_each(drop);
        self.left.store(records_max, Ordering::Relaxed);
        self.dropped.store(0, Ordering::Relaxed);
        *times = (monotonic_now(), monotonic_now());
        self.is_on.store(records_max > 0, Ordering::Release);
        Ok(())
    }

    pub(super) fn stop(&self) {
        self.is_on.store(false, Ordering::Release);
    }

    pub(super) fn take(&self, most: usize) -> TakenTrace {
        self.times.lock().1 = monotonic_now();
        let goes_on = self.is_on.load(Ordering::Acquire);
        let records = self.out.try_iter().take(most).collect();
        TakenTrace { records, dropped: self.dropped.load(Ordering::Relaxed), goes_on: goes_on || !self.out.is_empty() }
    }

    pub(super) fn note(&self, operation: TracedOperation, file: FileId, offset: u64, len: u64) {
        if self.is_on.load(Ordering::Relaxed) {
            self.note_now(operation, file, offset, len);
        }
    }

    #[cold]
    fn note_now(&self, operation: TracedOperation, file: FileId, offset: u64, len: u64) {
        let (began, taken) = *self.times.lock();
        let left = self.left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1));
        if left.is_err() || taken.elapsed() >= FORGOTTEN_AFTER {
            return self.stop();
        }
        let at_ms = u64::try_from(began.elapsed().as_millis()).unwrap_or(u64::MAX);
        if self.into.try_send(TraceRecord { at_ms, operation, file: file.0, offset, len }).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_asked_for_is_recorded_in_order_and_no_more() {
        let tracer = Tracer::new();
        tracer.note(TracedOperation::Read, FileId(1), 0, 1);
        tracer.start(3).unwrap();
        assert!(matches!(tracer.start(3), Err(Error::Busy(_))));
        for offset in 0..5 {
            tracer.note(TracedOperation::Write, FileId(7), offset, 8);
        }
        let taken = tracer.take(2);
        assert_eq!(taken.records.iter().map(|one| one.offset).collect::<Vec<_>>(), [0, 1]);
        assert!(taken.goes_on && taken.dropped == 0);
        let taken = tracer.take(100);
        assert_eq!((taken.records.len(), taken.goes_on), (1, false), "three were asked for");
        assert!(taken.records[0].at_ms < 60_000 && taken.records[0].operation == TracedOperation::Write);
        tracer.start(1 << 40).unwrap();
        for offset in 0..2 * QUEUED_MAX as u64 {
            tracer.note(TracedOperation::Sync, FileId(7), offset, 0);
        }
        assert_eq!(tracer.take(1).dropped, QUEUED_MAX as u64, "the queue is bounded");
        tracer.stop();
        assert!(!tracer.take(usize::MAX).goes_on);
    }
}

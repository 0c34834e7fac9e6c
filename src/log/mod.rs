//! The write log: every change of bytes enters here, and a sync is one direct, synchronous write of one group.
//!
//! **Addresses.** The log is a virtual byte sequence; address = segment sequence number x segment bytes + offset. Segment `s` lies in slot
//! file `s % segments`, so segments are recycled strictly in order. An [`Lsn`] is the address of a record header; payload positions are addresses
//! too, so an overlay extent needs no more than one number to find its bytes.
//!
//! **Groups.** Appends go into the open group's buffer. Whoever asks for durability while no group is in flight closes it and
//! writes it (leader commit); otherwise the request joins the waiters, and the committer thread goes on as soon as the write in flight completes: no
//! artificial delay. A group is also closed when it holds enough payload, so that a bulk load never stands before somebody's commit,
//! and by a timer, because `sync()` sends nothing to a FUSE daemon. One group is in flight at any time: only the last can be torn.
//!
//! **Failure (I5).** After a failed write nothing is written again; every later sync gets the error.
//!
//! **Payloads** are read from recent groups in memory (bounded), else from the slot file, and verified against the CRC-32C of their pages.
//!
//! Lock order: `state` before nothing else of the log; group buffers and the payload cache are leaves.

mod cache;
mod commit;
mod recover;
mod segments;
mod stretch;

pub use recover::{RedoPoint, Replayed, recover};
pub use segments::create;
pub use stretch::Stretch;

use crate::device::{BackingFile, Device};
use crate::error::{Error, Result};
use crate::ondisk::group::{FLAG_LET_DIE, GroupHeader, RecordHeader, RecordKind};
use crate::ondisk::summary;
use crate::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use crate::sync::{Condvar, Mutex, RwLock};
use crate::units::{FileId, Lsn, PAGE, PAGE_BYTES};
use cache::{Group, PayloadCache};
use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Payloads below this go into the header page when it has room.
const INLINE_MAX_BYTES: usize = 2048;
/// A group never stays open longer than this with records in it (R: `syncfs` sends nothing).
pub const FLUSH_INTERVAL: Duration = Duration::from_millis(100);
/// Closed groups that wait for the device: beyond this, writers wait.
const CLOSED_BYTES_MAX: usize = 8 << 20;
const RECORDS_MAX: usize = (PAGE - crate::ondisk::group::FIXED_LEN) / crate::ondisk::group::RECORD_LEN;

/// The shape of a log, fixed when the volume is made.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Geometry {
    pub segment_bytes: u64,
    pub segments: u32,
}

impl Geometry {
    /// Most payload pages of a group: 640 KiB (more would not find room for its records in the header), less in the small segments of tests.
    fn group_pages_max(self) -> usize {
        usize::try_from(self.segment_bytes / PAGE_BYTES / 8).map_or(160, |pages| pages.clamp(8, 160))
    }
    /// Largest payload of one record, in bytes: 256 KiB.
    pub fn record_bytes_max(self) -> usize {
        (self.group_pages_max() / 2).min(64) * PAGE
    }
    pub fn slot(self, segment_seq: u64) -> usize {
        usize::try_from(segment_seq % u64::from(self.segments)).unwrap_or(0)
    }
    pub fn segment_of(self, address: u64) -> u64 {
        address / self.segment_bytes
    }
    pub fn size_bytes(self) -> u64 {
        self.segment_bytes * u64::from(self.segments)
    }
}

/// One record to append. `payload` is empty for kinds without one; `length` is its length for kinds with one.
pub struct Append<'a> {
    pub kind: RecordKind,
    pub file: FileId,
    pub offset: u64,
    pub length: u64,
    pub payload: &'a [u8],
    pub let_die: bool,
    pub tier: u8,
    pub score: u8,
}

/// Where a record went.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Appended {
    pub lsn: Lsn,
    /// Address of the first payload byte; the LSN when there is no payload.
    pub position: u64,
}

pub type Done = Box<dyn FnOnce(Result<()>) + Send>;

struct Waiter {
    lsn: Lsn,
    done: Done,
}

/// Where a segment's chain begins: what a redo point needs to know.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct SegmentStart {
    segment_seq: u64,
    first_group_seq: u64,
    previous_checksum: u64,
}

struct OpenGroup {
    group: Arc<Group>,
    records: Vec<RecordHeader>,
    /// Records before this one stay as they are: a mark's note, or a file's times, came after them.
    settled_records: usize,
    inline_bytes: usize,
    payload_pages: usize,
}

struct ClosedGroup {
    group: Arc<Group>,
    records: Vec<RecordHeader>,
    inline_bytes: usize,
    payload_pages: usize,
}

struct State {
    /// The segment that groups go to, and where in it the next one begins. None until the first append of this mount.
    head: Option<(u64, u64)>,
    /// Sequence number of the next segment to open.
    next_segment_seq: u64,
    /// Oldest segment that is not recycled.
    tail_segment_seq: u64,
    /// Bytes that the summary of the head segment will need.
    summary_bytes: u64,
    open: Option<OpenGroup>,
    /// Memory for the next group: what the latest one left.
    unused: Option<cache::Pages>,
    closed: VecDeque<ClosedGroup>,
    closed_bytes: usize,
    in_flight: bool,
    /// The committer thread exists: leaders write one group and leave the rest to it.
    committer: bool,
    waiters: Vec<Waiter>,
    stop: bool,
}

/// What only the thread that commits touches: the chain.
struct Chain {
    next_group_seq: u64,
    previous_checksum: u64,
    /// Segments from the tail on, with the beginning of their chain.
    starts: VecDeque<SegmentStart>,
    /// The summary of the segment being written.
    summary: Option<(u64, Vec<u8>, u64)>,
    /// Complete summaries not yet on disk: (segment, body, end of groups).
    unsealed: VecDeque<(u64, Vec<u8>, u64)>,
}

/// Monotonic counters of the log.
#[derive(Default)]
pub struct LogCounters {
    pub groups: AtomicU64,
    pub written_bytes: AtomicU64,
    pub payload_bytes: AtomicU64,
    /// Of payloads that newer bytes have replaced before they were written.
    pub replaced_bytes: AtomicU64,
    pub commit_us: AtomicU64,
    pub reads_from_cache: AtomicU64,
    pub reads_from_device: AtomicU64,
}

pub struct Log {
    pub counters: LogCounters,
    volume: Uuid,
    incarnation: u64,
    geometry: Geometry,
    slots: Vec<Arc<dyn BackingFile>>,
    slot_paths: Vec<String>,
    /// CRC-32C of every page of every slot that holds part of a group: 1/1024 of the log in memory.
    page_crcs: Vec<RwLock<Vec<u32>>>,
    cache: PayloadCache,
    /// Memory of groups.
    pieces: Arc<cache::Pieces>,
    state: Mutex<State>,
    chain: Mutex<Chain>,
    work: Condvar,
    room: Condvar,
    /// Every record with an address below this is durable.
    durable: AtomicU64,
    /// LSN of the last appended record.
    last_lsn: AtomicU64,
    failed: AtomicBool,
    failure: Mutex<Option<String>>,
}

impl Log {
    /// Opens the log for appending after [`recover`] has followed it.
    pub fn open(
        device: &Arc<dyn Device>,
        geometry: Geometry,
        volume: Uuid,
        incarnation: u64,
        payload_cache_bytes: u64,
        replayed: Replayed,
    ) -> Result<Log> {
        let (slots, slot_paths) = segments::open_slots(device, geometry)?;
        let durable = replayed.next_segment_seq * geometry.segment_bytes;
        Ok(Log {
            counters: LogCounters::default(),
            volume,
            incarnation,
            geometry,
            slots,
            slot_paths,
            page_crcs: replayed.page_crcs.into_iter().map(RwLock::new).collect(),
            cache: PayloadCache::new(payload_cache_bytes),
            pieces: Arc::default(),
            state: Mutex::new(State {
                head: None,
                next_segment_seq: replayed.next_segment_seq,
                tail_segment_seq: replayed.tail_segment_seq,
                summary_bytes: 0,
                open: None,
                unused: None,
                closed: VecDeque::new(),
                closed_bytes: 0,
                in_flight: false,
                committer: false,
                waiters: Vec::new(),
                stop: false,
            }),
            chain: Mutex::new(Chain {
                next_group_seq: replayed.next_group_seq,
                previous_checksum: replayed.previous_checksum,
                starts: replayed.starts,
                summary: None,
                unsealed: VecDeque::new(),
            }),
            work: Condvar::new(),
            room: Condvar::new(),
            durable: AtomicU64::new(durable),
            last_lsn: AtomicU64::new(0),
            failed: AtomicBool::new(false),
            failure: Mutex::new(None),
        })
    }

    pub fn geometry(&self) -> Geometry {
        self.geometry
    }

    /// Records below this address are durable.
    pub fn durable_address(&self) -> u64 {
        self.durable.load(Ordering::Acquire)
    }

    pub fn last_lsn(&self) -> Lsn {
        Lsn(self.last_lsn.load(Ordering::Acquire))
    }

    /// Why the log failed, if it did (I5).
    pub fn failure(&self) -> Option<String> {
        if !self.failed.load(Ordering::Acquire) {
            return None;
        }
        self.failure.lock().clone()
    }

    fn check_alive(&self) -> Result<()> {
        match self.failure() {
            None => Ok(()),
            Some(why) => Err(Error::ReadOnly { why }),
        }
    }

    /// Adds a record to the open group. `LogFull` when no segment is free or too many groups wait for the device: see [`Log::wait_for_room`].
    /// The caller holds the file's lock, so that the order of records is the order of the file's changes.
    pub fn append(&self, append: &Append<'_>) -> Result<Appended> {
        self.check_alive()?;
        let pages = append.payload.len().div_ceil(PAGE);
        debug_assert!(pages * PAGE <= self.geometry.record_bytes_max() + PAGE, "callers split payloads");
        let mut state = self.state.lock();
        if state.open.as_ref().is_some_and(|open| !Log::has_room(open, append.payload.len(), self.geometry)) {
            self.close_open(&mut state);
        }
        if state.open.is_none() {
            self.open_group(&mut state)?;
        }
        let Some(open) = state.open.as_mut() else { return Err(Error::LogFull) };
        let appended = open.push(append);
        self.last_lsn.store(appended.lsn.0, Ordering::Release);
        self.counters.payload_bytes.fetch_add(append.payload.len() as u64, Ordering::Relaxed);
        // With groups waiting for the device already, a larger group serves a bulk load better than one more small one.
        if open.payload_pages * PAGE >= self.geometry.record_bytes_max() && state.closed.is_empty() {
            self.close_open(&mut state);
            self.work.notify_one();
        }
        Ok(appended)
    }

    /// Puts newer bytes in the place of some that were appended at `position` (R25). A group becomes durable as one, so no crash can tell the difference.
    /// False where that cannot be: the record is not in the open group any more, or a note or times came after it. What came before a mark must stay, and a
    /// write after times were set makes newer ones. The caller holds the file's lock, and nothing newer covers these bytes of it.
    pub fn replace(&self, position: u64, bytes: &[u8]) -> Result<bool> {
        self.check_alive()?;
        if position < self.durable_address() {
            return Ok(false);
        }
        let mut state = self.state.lock();
        let replaced = state.open.as_mut().is_some_and(|open| open.replace(position, bytes));
        drop(state);
        if replaced {
            self.counters.replaced_bytes.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        }
        Ok(replaced)
    }

    fn has_room(open: &OpenGroup, payload_len: usize, geometry: Geometry) -> bool {
        let records = open.records.len() + 1;
        if goes_inline(payload_len) && GroupHeader::fits(records, open.payload_pages, open.inline_bytes + payload_len) {
            return true;
        }
        let pages = open.payload_pages + payload_len.div_ceil(PAGE);
        pages <= geometry.group_pages_max() && GroupHeader::fits(records, pages, open.inline_bytes)
    }

    /// Moves the open group to the queue of the committer. Its address is settled already.
    fn close_open(&self, state: &mut State) {
        let Some(open) = state.open.take() else { return };
        let len = (1 + open.payload_pages) * PAGE;
        if let Some((_, offset)) = state.head.as_mut() {
            *offset += len as u64;
        }
        let group_len = summary::group_len(open.records.len(), open.payload_pages);
        state.summary_bytes += group_len as u64;
        state.closed_bytes += len;
        let OpenGroup { group, records, inline_bytes, payload_pages, .. } = open;
        state.unused = Some(group.buf.write().split_rest());
        state.closed.push_back(ClosedGroup { group, records, inline_bytes, payload_pages });
    }

    fn open_group(&self, state: &mut State) -> Result<()> {
        if state.closed_bytes > CLOSED_BYTES_MAX {
            return Err(Error::LogFull);
        }
        let group_max = (1 + self.geometry.group_pages_max() as u64) * PAGE_BYTES;
        let summary_max = summary::group_len(RECORDS_MAX, self.geometry.group_pages_max()) as u64;
        let fits = |offset: u64, summary_bytes: u64| {
            offset + group_max + (summary_bytes + summary_max).next_multiple_of(PAGE_BYTES) + PAGE_BYTES
                <= self.geometry.segment_bytes
        };
        let (segment_seq, offset) = match state.head {
            Some((seq, offset)) if fits(offset, state.summary_bytes) => (seq, offset),
            _ => {
                // The last free segment is left to the recovery of the next mount, which begins a segment of its own.
                let spare = u64::from(state.head.is_some());
                if state.next_segment_seq - state.tail_segment_seq + spare >= u64::from(self.geometry.segments) {
                    return Err(Error::LogFull);
                }
                let seq = state.next_segment_seq;
                state.next_segment_seq += 1;
                state.summary_bytes = 0;
                state.head = Some((seq, 0));
                (seq, 0)
            }
        };
        let start = segment_seq * self.geometry.segment_bytes + offset;
        let room = state.unused.take().unwrap_or_else(|| cache::Pages::from(&self.pieces));
        let group = Arc::new(Group::new(start, room));
        self.cache.push(group.clone(), self.durable_address());
        state.open =
            Some(OpenGroup { group, records: Vec::new(), settled_records: 0, inline_bytes: 0, payload_pages: 0 });
        Ok(())
    }

    /// Calls `done` once the record at `lsn` and all before it are durable: at once, on this thread after writing the
    /// group, or later on another thread.
    pub fn sync(&self, lsn: Lsn, done: Done) {
        if let Err(error) = self.check_alive() {
            return done(Err(error));
        }
        if lsn.0 < self.durable_address() || lsn.0 == 0 {
            return done(Ok(()));
        }
        let mut state = self.state.lock();
        state.waiters.push(Waiter { lsn, done });
        if state.in_flight {
            return;
        }
        state.in_flight = true;
        drop(state);
        self.lead();
    }

    /// Waits until the record at `lsn` is durable.
    pub fn sync_wait(&self, lsn: Lsn) -> Result<()> {
        let (sender, receiver) = crossbeam_channel::bounded(1);
        self.sync(lsn, Box::new(move |result| drop(sender.send(result))));
        receiver.recv().map_err(|_| Error::ReadOnly { why: "the committer is gone".to_string() })?
    }

    /// Reads payload bytes at `position`, which one record owns, verified against their checksums.
    pub fn read(&self, position: u64, buf: &mut [u8]) -> Result<()> {
        self.read_along(&mut Stretch::default(), position, buf)
    }
}

fn goes_inline(payload_len: usize) -> bool {
    payload_len > 0 && payload_len <= INLINE_MAX_BYTES
}

impl OpenGroup {
    /// Adds a record that fits ([`Log::has_room`]).
    fn push(&mut self, append: &Append<'_>) -> Appended {
        let index = self.records.len();
        let header_at = crate::ondisk::group::FIXED_LEN + index * crate::ondisk::group::RECORD_LEN;
        let lsn = Lsn(self.group.start + header_at as u64);
        let len = append.payload.len();
        let mut inline_offset = 0;
        let mut payload_page = 0;
        let mut position = lsn.0;
        if len > 0 {
            let inline = goes_inline(len) && GroupHeader::fits(index + 1, self.payload_pages, self.inline_bytes + len);
            let at = if inline {
                self.inline_bytes += len;
                inline_offset = PAGE - self.inline_bytes;
                inline_offset
            } else {
                payload_page = self.payload_pages;
                self.payload_pages += len.div_ceil(PAGE);
                (1 + payload_page) * PAGE
            };
            let mut buf = self.group.buf.write();
            buf.grow((1 + self.payload_pages) * PAGE);
            crate::ondisk::bytes::put(&mut buf, at, append.payload);
            position = self.group.start + at as u64;
        }
        self.records.push(RecordHeader {
            kind: append.kind,
            flags: if append.let_die { FLAG_LET_DIE } else { 0 },
            tier: append.tier,
            score: append.score,
            inline_offset: u16::try_from(inline_offset).unwrap_or(0),
            payload_page: u16::try_from(payload_page).unwrap_or(0),
            file: append.file,
            offset: append.offset,
            length: append.length,
        });
        if matches!(append.kind, RecordKind::Note | RecordKind::Times) {
            self.settled_records = self.records.len();
        }
        Appended { lsn, position }
    }

    /// As [`Log::replace`].
    fn replace(&self, position: u64, bytes: &[u8]) -> bool {
        let Some(start) = position.checked_sub(self.group.start) else { return false };
        let end = start + bytes.len() as u64;
        let holds = |record: &RecordHeader| {
            let first = record.payload_offset();
            record.kind == RecordKind::Data && first <= start && end <= first + record.length
        };
        let found = self.records.iter().skip(self.settled_records).rev().any(holds);
        if let (true, Ok(at)) = (found, usize::try_from(start)) {
            crate::ondisk::bytes::put(&mut self.group.buf.write(), at, bytes);
        }
        found
    }
}

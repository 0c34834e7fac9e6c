//! Full segments of the log, kept for a while: each is packed and written to the slowest tier before its slot is used again, for who asks later what was
//! written where, and when (`heatfs dump log-archive`).
//!
//! Nobody waits for it. A segment whose slot was used again first, or for which the tier has no room, is missing, and counted.

use super::background::Background;
use super::pace::Pace;
use crate::device::clock::{monotonic_now, wall_now};
use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::ondisk::archived::{ArchivedHead, HEAD_LEN};
use crate::units::WallNs;
use crate::volume::Volume;
use lz4_flex::frame::{BlockMode, FrameDecoder, FrameEncoder, FrameInfo};
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::io::{self, Read, Write};
use std::sync::Arc;
use std::time::Duration;
use uuid::Uuid;

/// Where archived segments lie on the slowest tier.
pub(super) const ARCHIVE_DIR: &str = "log-archive";
const SUFFIX: &str = ".seg.lz4";
/// How often it looks for full segments.
const LOOK_EVERY: Duration = Duration::from_secs(1);
/// Share of its time that it works while others need the machine.
const BUSY_SHARE: f64 = 0.1;
/// How long stopping may take: what is not archived by then is missing.
const STOP_MAX: Duration = Duration::from_secs(10);
/// Bytes written at once.
const PIECE_BYTES: usize = 1 << 20;
/// No more than this is left to one sync: readers of a disk wait behind it.
const UNSYNCED_MAX: usize = 4 << 20;
/// An archive is only written while the tier has room for so many whole segments beyond it: blocks come first.
const SPARE_SEGMENTS: u64 = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogArchiveSettings {
    /// What all of it may take; the oldest go.
    pub bytes_max: u64,
    /// How long a segment is kept.
    pub keep: Duration,
}

/// What `status` shows.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogArchiveStatus {
    /// Segments in the archive, and what they take.
    pub segments: u64,
    pub bytes: u64,
    /// Of segments that were archived since the mount.
    pub unpacked_bytes: u64,
    /// Segments that are missing since the mount: their slots were used again first, or there was no room.
    pub missed_segments: u64,
    /// Why the latest one could not be written.
    pub failure: Option<String>,
}

/// A segment in the archive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Archived {
    bytes: u64,
    wall: WallNs,
}

/// What became of a segment.
enum Outcome {
    Kept(Archived),
    /// Its slot was used again.
    Gone,
    /// There was no time for it.
    Ended,
}

#[derive(Default)]
struct Books {
    /// By sequence number.
    segments: BTreeMap<u64, Archived>,
    /// The first that has not been looked at; None: nor has the directory.
    next: Option<u64>,
    unpacked_bytes: u64,
    missed: u64,
    failure: Option<String>,
}

/// See the module's head.
pub struct LogArchive {
    volume: Arc<Volume>,
    id: Uuid,
    device: Arc<dyn Device>,
    settings: LogArchiveSettings,
    pace: Pace,
    books: Mutex<Books>,
    background: Background,
}

impl LogArchive {
    /// `device`: the slowest tier's, which the first round looks at and not the mount, since there may be thousands of segments.
    pub fn new(
        volume: Arc<Volume>,
        id: Uuid,
        device: Arc<dyn Device>,
        settings: LogArchiveSettings,
    ) -> Arc<LogArchive> {
        let pace = Pace::new(Arc::clone(&volume), BUSY_SHARE, u64::MAX);
        Arc::new(LogArchive {
            volume,
            id,
            device,
            settings,
            pace,
            books: Mutex::default(),
            background: Background::default(),
        })
    }

    /// Makes the directory, and looks at what is there. What was archived before, and is this volume's, counts; what is damaged is named in the log and left alone.
    fn find(&self) -> Result<()> {
        let make = || {
            self.device.create_dir_all(ARCHIVE_DIR)?;
            self.device.sync_dir("")
        };
        make().map_err(|error| Error::io("create", format!("{}/{ARCHIVE_DIR}", self.device.path()), error))?;
        let mut found = BTreeMap::new();
        for segment_seq in segments(&*self.device)? {
            match read_head(&*self.device, segment_seq) {
                Ok(head) if head.volume == self.id => {
                    found.insert(segment_seq, Archived { bytes: file_bytes(&head), wall: head.wall });
                }
                Ok(_) => tracing::warn!("{} is another volume's", shown(&*self.device, segment_seq)),
                Err(error) => tracing::warn!(%error, "an archived segment cannot be used"),
            }
        }
        let mut books = self.books.lock();
        // The last one may have been archived before it was full: it is once more, if it is still there. What went by while nothing was archived is not missing.
        let last = found.keys().next_back().copied().unwrap_or(0);
        books.next = Some(last.max(self.volume.sealed_segments().start));
        books.segments = found;
        Ok(())
    }

    /// Begins in the background.
    pub fn start(self: &Arc<Self>) -> Result<()> {
        let archive = Arc::clone(self);
        self.background.spawn("heatfs-logarch", move || {
            while !archive.background.sleep(LOOK_EVERY) {
                archive.look();
            }
        })
    }

    /// Stops, and archives what has not been yet, the segment that is being written included, as far as time allows. Nobody writes to the volume any more.
    pub fn stop(&self) {
        self.background.stop();
        if self.volume.sync_log().is_err() {
            return;
        }
        let until = monotonic_now() + STOP_MAX;
        let ends = || monotonic_now() >= until;
        self.catch_up(&ends);
        let next = self.books.lock().next;
        if let Some(head) = self.volume.head_segment().filter(|head| next == Some(*head)) {
            self.take(head, &ends);
        }
    }

    /// One round: archives what is full, and lets go what is old.
    pub fn look(&self) {
        self.catch_up(&|| self.background.is_stopping());
    }

    fn catch_up(&self, ends: &dyn Fn() -> bool) {
        let is_known = self.books.lock().next.is_some();
        if !is_known && let Err(error) = self.find() {
            return self.failed(&error);
        }
        let sealed = self.volume.sealed_segments();
        let first = {
            let mut books = self.books.lock();
            let wanted = books.next.unwrap_or(sealed.start);
            books.missed += sealed.start.saturating_sub(wanted);
            *books.next.insert(wanted.max(sealed.start))
        };
        for segment_seq in first..sealed.end {
            if !self.take(segment_seq, ends) {
                return;
            }
        }
        if let Err(error) = self.expire(0) {
            self.failed(&error);
        }
    }

    fn failed(&self, error: &Error) {
        tracing::warn!(%error, "the log is not archived");
        self.books.lock().failure = Some(error.to_string());
    }

    /// False when it was to end before it was through.
    fn take(&self, segment_seq: u64, ends: &dyn Fn() -> bool) -> bool {
        let outcome = self.archive(segment_seq, ends);
        if !matches!(outcome, Ok(Outcome::Kept(_))) {
            // What was begun is written anew next time, or never.
            let _ = self.device.remove_file(&new_path());
        }
        let mut books = self.books.lock();
        match outcome {
            Ok(Outcome::Ended) => return false,
            Ok(Outcome::Kept(archived)) => {
                books.segments.insert(segment_seq, archived);
                books.unpacked_bytes += self.volume.segment_bytes();
                books.failure = None;
            }
            Ok(Outcome::Gone) => books.missed += 1,
            Err(error) => {
                tracing::warn!(%error, segment_seq, "a log segment is not archived");
                books.missed += 1;
                books.failure = Some(error.to_string());
            }
        }
        books.next = Some(segment_seq + 1);
        true
    }

    fn archive(&self, segment_seq: u64, ends: &dyn Fn() -> bool) -> Result<Outcome> {
        let segment_bytes = self.volume.segment_bytes();
        self.expire(segment_bytes)?;
        if self.is_short_of_room() {
            return Err(Error::NoSpace);
        }
        let fail = |action| {
            let path = format!("{}/{}", self.device.path(), new_path());
            move |error| Error::io(action, path, error)
        };
        let mode = OpenMode { create: true, ..OpenMode::default() };
        let file = self.device.open(&new_path(), mode).map_err(fail("open"))?;
        file.set_len(0).map_err(fail("truncate"))?;
        let out = Pieces { file: &*file, buf: Vec::with_capacity(PIECE_BYTES), at: HEAD_LEN as u64, unsynced: 0 };
        let frame = FrameInfo::new().content_checksum(true).block_mode(BlockMode::Independent);
        let mut packed = FrameEncoder::with_frame_info(frame, out);
        let mut has_ended = false;
        let is_whole = self.volume.read_segment(segment_seq, &mut |piece| {
            has_ended = has_ended || ends();
            if has_ended {
                return Ok(());
            }
            let mut write = || packed.write_all(piece);
            let written = if self.background.is_stopping() { write() } else { self.pace.work(0, write) };
            written.map_err(fail("write"))
        })?;
        if has_ended || !is_whole {
            return Ok(if has_ended { Outcome::Ended } else { Outcome::Gone });
        }
        let mut out = packed.finish().map_err(|error| fail("write")(io::Error::other(error)))?;
        out.flush().map_err(fail("write"))?;
        let (wall, packed_bytes) = (wall_now(), out.at - HEAD_LEN as u64);
        let head = ArchivedHead { volume: self.id, segment_seq, segment_bytes, wall, packed_bytes };
        file.write_all_at(&head.encode(), 0).map_err(fail("write"))?;
        file.sync_data().map_err(fail("sync"))?;
        let publish = || {
            self.device.rename(&new_path(), &path_of(segment_seq))?;
            self.device.sync_dir(ARCHIVE_DIR)
        };
        publish().map_err(fail("rename"))?;
        Ok(Outcome::Kept(Archived { bytes: file_bytes(&head), wall }))
    }

    /// Blocks come first (I10): room that is promised to them is none.
    fn is_short_of_room(&self) -> bool {
        self.volume.spare_bytes() < self.volume.segment_bytes().saturating_mul(SPARE_SEGMENTS)
    }

    /// Removes the oldest while they are too old, or take so much that `more` has no place beside them, or blocks need the room.
    fn expire(&self, more: u64) -> Result<()> {
        let keep_ns = i64::try_from(self.settings.keep.as_nanos()).unwrap_or(i64::MAX);
        let too_old = wall_now().0.saturating_sub(keep_ns);
        loop {
            let (oldest, bytes) = {
                let books = self.books.lock();
                let bytes: u64 = books.segments.values().map(|archived| archived.bytes).sum();
                (books.segments.first_key_value().map(|(segment_seq, archived)| (*segment_seq, *archived)), bytes)
            };
            let Some((segment_seq, archived)) = oldest else { return Ok(()) };
            let fits = bytes.saturating_add(more) <= self.settings.bytes_max;
            if archived.wall.0 >= too_old && fits && !self.is_short_of_room() {
                return Ok(());
            }
            match self.device.remove_file(&path_of(segment_seq)) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => {
                    return Err(Error::io("remove", shown(&*self.device, segment_seq), error));
                }
                _ => {}
            }
            self.books.lock().segments.remove(&segment_seq);
        }
    }

    pub fn status(&self) -> LogArchiveStatus {
        let books = self.books.lock();
        LogArchiveStatus {
            segments: books.segments.len() as u64,
            bytes: books.segments.values().map(|archived| archived.bytes).sum(),
            unpacked_bytes: books.unpacked_bytes,
            missed_segments: books.missed,
            failure: books.failure.clone(),
        }
    }
}

/// Writes to a file in pieces, from its beginning on.
struct Pieces<'a> {
    file: &'a dyn BackingFile,
    buf: Vec<u8>,
    at: u64,
    unsynced: usize,
}

impl Write for Pieces<'_> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.buf.extend_from_slice(bytes);
        if self.buf.len() >= PIECE_BYTES {
            self.flush()?;
        }
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        self.file.write_all_at(&self.buf, self.at)?;
        self.at += self.buf.len() as u64;
        self.unsynced += self.buf.len();
        self.buf.clear();
        if self.unsynced >= UNSYNCED_MAX {
            self.file.sync_data()?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// Of one that is being written.
fn new_path() -> String {
    format!("{ARCHIVE_DIR}/new")
}

/// The whole file of an archived segment.
fn file_bytes(head: &ArchivedHead) -> u64 {
    head.packed_bytes.saturating_add(HEAD_LEN as u64)
}

fn path_of(segment_seq: u64) -> String {
    format!("{ARCHIVE_DIR}/{segment_seq:020}{SUFFIX}")
}

fn shown(device: &dyn Device, segment_seq: u64) -> String {
    format!("{}/{}", device.path(), path_of(segment_seq))
}

/// Sequence numbers of the archived segments on a tier, oldest first; none where there is no archive.
pub(super) fn segments(device: &dyn Device) -> Result<Vec<u64>> {
    let fail = |error| Error::io("list", format!("{}/{ARCHIVE_DIR}", device.path()), error);
    if !device.exists(ARCHIVE_DIR).map_err(fail)? {
        return Ok(Vec::new());
    }
    let names = device.list(ARCHIVE_DIR).map_err(fail)?;
    // What is not named as we name it is not ours.
    let is_ours = |(number, name): &(u64, &String)| path_of(*number) == format!("{ARCHIVE_DIR}/{name}");
    let numbered = names.iter().filter_map(|name| Some((name.strip_suffix(SUFFIX)?.parse().ok()?, name)));
    Ok(numbered.filter(is_ours).map(|(number, _)| number).collect())
}

fn open(device: &dyn Device, segment_seq: u64) -> Result<Arc<dyn BackingFile>> {
    let opened = device.open(&path_of(segment_seq), OpenMode::default());
    opened.map_err(|error| Error::io("open", shown(device, segment_seq), error))
}

/// The head of an archived segment. Errors: `Corrupt` for what is no such head, that of another segment, or of another length.
pub(super) fn read_head(device: &dyn Device, segment_seq: u64) -> Result<ArchivedHead> {
    let file = open(device, segment_seq)?;
    let fail = |error| Error::io("read", shown(device, segment_seq), error);
    let mut bytes = [0; HEAD_LEN];
    let read = file.read_at(&mut bytes, 0).map_err(fail)?;
    let head = ArchivedHead::decode(bytes.get(..read).unwrap_or_default());
    let head = head.map_err(|why| corrupt(device, segment_seq, why.0))?;
    if head.segment_seq != segment_seq {
        return Err(corrupt(device, segment_seq, "the head of another segment"));
    }
    if file_bytes(&head) != file.len().map_err(fail)? {
        return Err(corrupt(device, segment_seq, "not as long as its head says"));
    }
    Ok(head)
}

/// An archived segment, unpacked. Errors: `Corrupt` when it is not what was written.
pub(super) fn unpack(device: &dyn Device, segment_seq: u64) -> Result<Vec<u8>> {
    let head = read_head(device, segment_seq)?;
    let file = open(device, segment_seq)?;
    let mut packed = vec![0; usize::try_from(head.packed_bytes).unwrap_or(0)];
    file.read_at(&mut packed, HEAD_LEN as u64).map_err(|error| Error::io("read", shown(device, segment_seq), error))?;
    let mut segment = Vec::new();
    // No more than was packed, whatever the frame says.
    let mut frame = FrameDecoder::new(packed.as_slice()).take(head.segment_bytes.saturating_add(1));
    match frame.read_to_end(&mut segment) {
        Ok(_) if segment.len() as u64 == head.segment_bytes => Ok(segment),
        Ok(_) => Err(corrupt(device, segment_seq, "not as long as the segment was")),
        Err(error) => Err(corrupt(device, segment_seq, &error.to_string())),
    }
}

fn corrupt(device: &dyn Device, segment_seq: u64, why: &str) -> Error {
    Error::Corrupt { what: "archived segment", path: shown(device, segment_seq), offset: 0, why: why.to_owned() }
}

#[cfg(test)]
mod tests;

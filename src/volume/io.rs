//! Read, write and sync: the foreground. Never holds a lock across device I/O.

use super::blockmap::Home;
use super::file::Inner;
use super::overlay::{Extent, Source};
use super::status::count;
use super::{File, Volume, Wait};
use crate::device::{AlignedBuf, clock};
use crate::error::{Error, Result};
use crate::log::{Append, Done};
use crate::ondisk::group::{RecordKind, TIER_UNSET};
use crate::tier::objects::object_path;
use crate::units::{BlockNo, FileId, Lsn, PAGE_BYTES, TierId};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

/// Largest file: 16 TiB, like ext4; the block map keeps 8 bytes for every 512 blocks before the last.
pub const FILE_BYTES_MAX: u64 = (1 << 44) - (1 << 20);
/// What a small miss on the slowest tier reads while faster tiers have room, in bytes (R24).
pub(super) const NEIGHBOURHOOD_BYTES: u64 = 64 * 1024;
/// So often a read that failed is planned anew when its bytes lie elsewhere by then.
const REPLANS_MAX: u32 = 4;
/// How long a writer waits for log space before it looks again.
const ROOM_WAIT: Duration = Duration::from_millis(50);
/// How long a writer waits in all while nothing drains the log, unless [`Volume::set_log_full_wait`] says otherwise: longer
/// than a slow disk takes for a quarter of the log's oldest segment, short enough for a human to notice.
pub(super) const LOG_FULL_WAIT_MS: u64 = 120_000;
/// Without threads: rounds of making room that may free nothing, one of them for places that wait for their punch.
const FUTILE_ROUNDS_MAX: u32 = 3;

/// A writer's wait for log room: it ends when the log stands still for too long.
pub(super) struct Patience {
    /// (oldest segment, durable address) when the log last moved.
    seen: (u64, u64),
    since: Instant,
    rounds: u32,
}

/// A piece of a read: where its bytes come from.
#[derive(PartialEq, Eq)]
pub(super) enum Piece {
    Log(u64),
    Base(TierId),
    Repository,
    Zeros,
    /// Saved for a mark.
    Staged(u64),
}

#[derive(PartialEq, Eq)]
pub(super) struct PlannedPiece {
    pub start: u64,
    pub end: u64,
    pub piece: Piece,
}

impl Volume {
    /// Writes all of `data` at `offset`; the file grows to hold it. With `Wait::Never` answers `WouldWait` instead of blocking; the
    /// call may then be repeated as a whole. `NoSpace` when no tier has room (I10).
    pub fn write(&self, file: &Arc<File>, offset: u64, data: &[u8], wait: Wait) -> Result<()> {
        let end = offset.checked_add(data.len() as u64).filter(|&end| end <= FILE_BYTES_MAX);
        let Some(end) = end else {
            return Err(Error::Invalid(format!("offset {offset} is past the largest file")));
        };
        self.check_room_for_state()?;
        let max = self.geometry().record_bytes_max() as u64;
        let mut at = offset;
        let mut forced_checkpoint = false;
        let mut patience = self.patience();
        while at < end {
            // All but the first record begin on a page, so that payload pages line up with file pages.
            let take = (max - at % PAGE_BYTES).min(end - at);
            let from = usize::try_from(at - offset).unwrap_or(0);
            let bytes = data.get(from..from + usize::try_from(take).unwrap_or(0)).unwrap_or_default();
            match self.write_record(file, at, bytes) {
                Ok(()) => at += take,
                Err(Error::LogFull | Error::NoSpace) if wait == Wait::Never => return Err(Error::WouldWait),
                Err(Error::LogFull) => self.wait_for_log_room(&mut patience)?,
                Err(Error::NoSpace) if !forced_checkpoint => {
                    forced_checkpoint = true;
                    self.checkpoint_for_room()?;
                }
                // What a mark holds back is given up before a writer is refused.
                Err(Error::NoSpace) if self.fail_mark_for_space() => self.checkpoint_for_room()?,
                Err(error) => return Err(error),
            }
        }
        count(&self.counters.writes, 1);
        count(&self.counters.write_bytes, data.len() as u64);
        if let Some(observer) = self.observer.read().as_ref() {
            observer.on_write(file.id(), offset, u32::try_from(data.len()).unwrap_or(u32::MAX), file.is_log_file());
        }
        Ok(())
    }

    /// Refuses whoever would make state grow while it has little room (R22).
    pub(super) fn check_room_for_state(&self) -> Result<()> {
        if self.state.reserve().is_short() { Err(Error::NoSpace) } else { Ok(()) }
    }

    /// A checkpoint for a writer who found no room. What fails there is not his: then there is no more room than before.
    pub(super) fn checkpoint_for_room(&self) -> Result<()> {
        match self.checkpoint_despite_tiers() {
            Err(Error::Io { .. }) => self.check_writable().and(Err(Error::NoSpace)),
            other => other,
        }
    }

    /// One record: promise space, log, lay over.
    fn write_record(&self, file: &Arc<File>, offset: u64, bytes: &[u8]) -> Result<()> {
        let end = offset + bytes.len() as u64;
        let _append = self.appends.read();
        self.check_writable()?;
        let mut inner = file.write();
        if self.replace_logged(&inner, offset, bytes)? {
            // Size, changes and what marks need are as the record left them; a checkpoint may have taken the time since.
            inner.touch(clock::wall_now());
            drop(inner);
            file.note_write(offset, end);
            self.list_dirty(file);
            return Ok(());
        }
        let promised = self.promise_holes(&mut inner, offset, end)?;
        let place = inner.map.get(self.block_of(offset));
        let appended = self.log.append(&Append {
            kind: RecordKind::Data,
            file: file.id(),
            offset,
            length: bytes.len() as u64,
            payload: bytes,
            let_die: file.is_log_file(),
            tier: place.tier().map_or(TIER_UNSET, |tier| tier.0),
            score: 0,
        });
        let appended = match appended {
            Ok(appended) => appended,
            Err(error) => {
                self.take_back_promises(&mut inner, &promised);
                return Err(error);
            }
        };
        self.keep(file.id(), &mut inner, offset, end);
        self.note_change(&mut inner, offset, end);
        let extent = Extent { start: offset, end, source: Source::Log(appended.position) };
        inner.overlay.insert(extent, &mut self.ledger());
        let size = inner.size_bytes.max(end);
        self.resize(&mut inner, size);
        inner.touch(clock::wall_now());
        file.set_last_lsn(appended.lsn);
        drop(inner);
        file.note_write(offset, end);
        self.note_touched(appended.lsn, file.id(), self.block_of(offset), self.block_of(end - 1));
        self.list_dirty(file);
        Ok(())
    }

    /// Bytes that all lie in one record of the log's open group are changed there: a page that is written again and again between two syncs is logged once.
    fn replace_logged(&self, inner: &Inner, offset: u64, bytes: &[u8]) -> Result<bool> {
        let end = offset + bytes.len() as u64;
        let mut newest = inner.overlay.range(offset, end);
        match (newest.next(), newest.next()) {
            (Some(Extent { start, end: until, source: Source::Log(position) }), None)
                if (start, until) == (offset, end) =>
            {
                self.log.replace(position, bytes)
            }
            _ => Ok(false),
        }
    }

    /// Promises every hole in `start..end`; returns the blocks that were promised now.
    pub(super) fn promise_holes(&self, inner: &mut Inner, start: u64, end: u64) -> Result<Vec<BlockNo>> {
        let (first, last) = (self.block_of(start), self.block_of(end - 1));
        // A range that cannot fit whatever is in it is refused before its blocks are listed.
        let held = inner.image_blocks
            + inner.promised_blocks
            + inner.stored_blocks
            + u64::try_from(self.space.unpromised_blocks()).unwrap_or(0);
        if last.0 - first.0 > held {
            return Err(Error::NoSpace);
        }
        let holes: Vec<BlockNo> = (first.0..=last.0).map(BlockNo).filter(|&block| inner.has_hole(block)).collect();
        if holes.is_empty() {
            return Ok(holes);
        }
        if !self.space.promise(i64::try_from(holes.len()).unwrap_or(i64::MAX)) {
            return Err(Error::NoSpace);
        }
        for &block in &holes {
            let place = inner.map.get(block);
            inner.map.set(block, super::Place { home: Home::Promised, ..place });
        }
        inner.promised_blocks += holes.len() as u64;
        Ok(holes)
    }

    pub(super) fn take_back_promises(&self, inner: &mut Inner, blocks: &[BlockNo]) {
        for &block in blocks {
            let place = inner.map.get(block);
            inner.map.set(block, super::Place { home: Home::Hole, ..place });
        }
        inner.promised_blocks -= blocks.len() as u64;
        self.space.unpromise(i64::try_from(blocks.len()).unwrap_or(i64::MAX));
    }

    pub(super) fn note_touched(&self, lsn: Lsn, file: FileId, first: BlockNo, last: BlockNo) {
        let geometry = self.geometry();
        let Some(list) = self.touched.get(geometry.slot(geometry.segment_of(lsn.0))) else { return };
        let mut list = list.lock();
        if let Some((last_file, from, to)) = list.last_mut()
            && *last_file == file
            && first.0 >= from.0
            && first.0 <= to.0 + 1
        {
            to.0 = to.0.max(last.0);
            return;
        }
        list.push((file, first, last));
    }

    /// The log as a writer sees it that is about to wait for room.
    pub(super) fn patience(&self) -> Patience {
        Patience { seen: (0, 0), since: clock::monotonic_now(), rounds: 0 }
    }

    /// The log is full: waits for the coalescer, or does its work here when no threads run. `LogFull` when nothing has
    /// drained the log for too long: a tier that fails for ever must not hang a writer for ever.
    pub(super) fn wait_for_log_room(&self, patience: &mut Patience) -> Result<()> {
        count(&self.counters.writer_waits, 1);
        self.check_writable()?;
        let now = clock::monotonic_now();
        let seen = (self.log.segments_in_use().0, self.log.durable_address());
        if seen != patience.seen {
            *patience = Patience { seen, since: now, rounds: 0 };
        }
        patience.rounds += 1;
        if self.maintenance.is_running() {
            if now.duration_since(patience.since).as_millis()
                > u128::from(self.log_full_wait_ms.load(Ordering::Relaxed))
            {
                return Err(Error::LogFull);
            }
            self.wake_maintenance();
            self.log.wait_for_room(ROOM_WAIT);
            return Ok(());
        }
        if patience.rounds > FUTILE_ROUNDS_MAX {
            return Err(Error::LogFull);
        }
        self.log.flush_closed()?;
        self.make_log_room(super::threads::Drain::Oldest)
    }

    /// Fills `buf` from `offset` and returns how many bytes there are before the end of the file (the rest of `buf` is untouched).
    /// With `Wait::Never` answers `WouldWait` when a slow tier or a repository would have to be read.
    pub fn read(&self, file: &Arc<File>, offset: u64, buf: &mut [u8], wait: Wait) -> Result<usize> {
        let reading = self.readers.enter();
        let mut attempts = 0;
        let (len, pieces) = loop {
            let (len, pieces) = self.plan_read(file, offset, buf.len());
            match self.read_pieces(file, offset, buf, &pieces, wait) {
                Ok(()) => break (len, pieces),
                // Moved away from what cannot be read, or written over.
                Err(Error::Io { .. })
                    if attempts < REPLANS_MAX && self.plan_read(file, offset, buf.len()).1 != pieces =>
                {
                    attempts += 1;
                }
                Err(error) => return Err(error),
            }
        };
        drop(reading);
        self.note_fragments(file, &pieces);
        self.note_read(file.id(), offset, len);
        Ok(len)
    }

    fn read_pieces(
        &self,
        file: &Arc<File>,
        offset: u64,
        buf: &mut [u8],
        pieces: &[PlannedPiece],
        wait: Wait,
    ) -> Result<()> {
        let slow = |piece: &PlannedPiece| match piece.piece {
            Piece::Base(tier) => tier != TierId::FASTEST,
            Piece::Repository => true,
            Piece::Log(_) | Piece::Zeros | Piece::Staged(_) => false,
        };
        if wait == Wait::Never && pieces.iter().any(slow) {
            return Err(Error::WouldWait);
        }
        for piece in pieces {
            let from = usize::try_from(piece.start - offset).unwrap_or(0);
            let to = usize::try_from(piece.end - offset).unwrap_or(0);
            let Some(out) = buf.get_mut(from..to) else { continue };
            match piece.piece {
                Piece::Zeros => out.fill(0),
                Piece::Log(position) => self.log.read(position, out)?,
                Piece::Base(tier) => self.read_base_observed(file, tier, piece.start, out, wait)?,
                Piece::Repository => self.read_stored_observed(file, piece.start, out)?,
                Piece::Staged(address) => self.staging.read(address, out)?,
            }
        }
        Ok(())
    }

    /// Keeps book of a read that was answered.
    pub(super) fn note_read(&self, file: FileId, offset: u64, len: usize) {
        count(&self.counters.reads, 1);
        count(&self.counters.read_bytes, len as u64);
        if let Some(observer) = self.observer.read().as_ref() {
            observer.on_read(file, offset, len as u64);
        }
    }

    /// Overlay where it covers, else base by the map, else hole (I3).
    pub(super) fn plan_read(&self, file: &File, offset: u64, wanted: usize) -> (usize, Vec<PlannedPiece>) {
        let inner = file.read();
        let end = inner.size_bytes.min(offset.saturating_add(wanted as u64));
        if offset >= end {
            return (0, Vec::new());
        }
        let mut pieces: Vec<PlannedPiece> = Vec::new();
        self.plan_now(&inner, offset, end, &mut pieces);
        (usize::try_from(end - offset).unwrap_or(wanted), pieces)
    }

    pub(super) fn plan_now(&self, inner: &Inner, start: u64, end: u64, pieces: &mut Vec<PlannedPiece>) {
        let mut at = start;
        for extent in inner.overlay.range(start, end) {
            self.plan_base(inner, at, extent.start, pieces);
            let piece = match extent.source {
                Source::Log(position) => Piece::Log(position),
                Source::Zeros(_) => Piece::Zeros,
            };
            pieces.push(PlannedPiece { start: extent.start, end: extent.end, piece });
            at = extent.end;
        }
        self.plan_base(inner, at, end, pieces);
    }

    pub(super) fn plan_base(&self, inner: &Inner, start: u64, end: u64, pieces: &mut Vec<PlannedPiece>) {
        let mut at = start;
        while at < end {
            let block = self.block_of(at);
            let stop = (self.block_start(block) + self.block_bytes()).min(end);
            let piece = match inner.map.get(block).home {
                Home::Tier(tier) => Piece::Base(tier),
                Home::Repository => Piece::Repository,
                Home::Hole | Home::Promised => Piece::Zeros,
            };
            match (pieces.last_mut(), &piece) {
                (Some(last), Piece::Base(_) | Piece::Repository) if last.end == at && last.piece == piece => {
                    last.end = stop;
                }
                _ => pieces.push(PlannedPiece { start: at, end: stop, piece }),
            }
            at = stop;
        }
    }

    fn read_base_observed(&self, file: &Arc<File>, tier: TierId, start: u64, out: &mut [u8], wait: Wait) -> Result<()> {
        let began = clock::monotonic_now();
        let read = match tier != TierId::FASTEST && self.is_slowest(tier) {
            true => self.read_slowest(file, tier, start, out),
            false => self.read_object(file.id(), tier, start, out),
        };
        match read {
            Err(Error::Io { .. }) if wait == Wait::Never && self.may_rescue(file, tier, start, out.len()) => {
                return Err(Error::WouldWait);
            }
            Err(error @ Error::Io { .. }) if wait == Wait::Allowed => drop(self.rescue(file, tier, start, out, error)?),
            read => read?,
        }
        self.note_miss(file.id(), tier, start, out.len(), began);
        Ok(())
    }

    /// Keeps book of a read of one tier that an application waited for since `began`.
    pub(super) fn note_miss(&self, file: FileId, tier: TierId, start: u64, len: usize, began: Instant) {
        let took_us = u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX);
        if let Some(counters) = self.counters.tiers.get(tier.index()) {
            count(&counters.reads, 1);
            count(&counters.read_bytes, len as u64);
            count(&counters.read_us, took_us);
        }
        if let Some(observer) = self.observer.read().as_ref() {
            let (first, last) = (self.block_of(start), self.block_of(start + len as u64 - 1));
            let (len, us) = (u32::try_from(len).unwrap_or(u32::MAX), u32::try_from(took_us).unwrap_or(u32::MAX));
            observer.on_read_miss(file, first, last, start, len, Some(tier), us);
        }
    }

    /// Reads whole blocks around what is asked for, and keeps their images for whoever promotes them next (R24).
    fn read_slowest(&self, file: &File, tier: TierId, start: u64, out: &mut [u8]) -> Result<()> {
        let end = start + out.len() as u64;
        let unit = NEIGHBOURHOOD_BYTES / self.block_bytes();
        if end - start > NEIGHBOURHOOD_BYTES || unit == 0 {
            return self.read_object(file.id(), tier, start, out); // a stream, or blocks too large to read for a page
        }
        let (first, last) = (self.block_of(start), self.block_of(end - 1));
        let (from, to) = match self.reads_around.load(Ordering::Relaxed) {
            true => (first.0 / unit * unit, last.0 / unit * unit + unit),
            false => (first.0, last.0 + 1),
        };
        let expected = self.claims.expect_images(file.id(), tier, from..to);
        // Only from here on is an image of what the map names now sure to be taken away by whoever changes that.
        let blocks = {
            let inner = file.read();
            let here = |block: &u64| inner.map.get(BlockNo(*block)).tier() == Some(tier);
            let below = (from..first.0).rev().take_while(here).last().unwrap_or(first.0);
            let above = (last.0 + 1..to).take_while(here).last().unwrap_or(last.0);
            (first.0..=last.0).all(|block| here(&block)).then_some(below..above + 1)
        };
        // Moved since the read was planned: the old image stays until this read is over, but is not worth keeping.
        let Some(blocks) = blocks else { return self.read_object(file.id(), tier, start, out) };
        let image_start = self.block_start(BlockNo(blocks.start));
        let len = (blocks.end - blocks.start) * self.block_bytes();
        let mut image = AlignedBuf::zeroed(usize::try_from(len).unwrap_or(0));
        if self.read_object(file.id(), tier, image_start, &mut image).is_err() {
            // A page that nobody asked for may be what cannot be read.
            return self.read_object(file.id(), tier, start, out);
        }
        let skip = usize::try_from(start - image_start).unwrap_or(0);
        out.copy_from_slice(image.get(skip..skip + out.len()).unwrap_or_default());
        self.claims.keep_images(&expected, BlockNo(blocks.start), &image);
        Ok(())
    }

    /// Reads base bytes of one tier for the volume's own work: moves, snapshots, checks. Counted apart from what applications wait for. True: the tier could not
    /// read some of them, and another one or the last snapshot had them.
    pub(super) fn read_base(&self, file: &Arc<File>, tier: TierId, start: u64, out: &mut [u8]) -> Result<bool> {
        let rescued = self.read_or_rescue(file, tier, start, out)?;
        if let Some(counters) = self.counters.tiers.get(tier.index()) {
            count(&counters.background_reads, 1);
            count(&counters.background_read_bytes, out.len() as u64);
        }
        Ok(rescued)
    }

    /// What lies past the end of the object reads as zeros; a missing object is an error.
    pub(super) fn read_object(&self, file: FileId, tier: TierId, start: u64, out: &mut [u8]) -> Result<()> {
        let objects = self.objects(tier)?;
        let Some(object) = objects.get(file, false)? else {
            let why = "the block map names this object, but it does not exist".to_string();
            let path = objects.full(&object_path(file));
            return Err(Error::Corrupt { what: "object", path, offset: start, why });
        };
        let aligned = start.is_multiple_of(PAGE_BYTES)
            && (out.len() as u64).is_multiple_of(PAGE_BYTES)
            && (out.as_ptr().addr() as u64).is_multiple_of(PAGE_BYTES);
        if aligned {
            let got = object.read_at(out, start).map_err(|e| self.object_unreadable(tier, file, e))?;
            out.get_mut(got..).unwrap_or_default().fill(0);
            return Ok(());
        }
        let from = start / PAGE_BYTES * PAGE_BYTES;
        let to = (start + out.len() as u64).next_multiple_of(PAGE_BYTES);
        let mut pages = AlignedBuf::zeroed(usize::try_from(to - from).unwrap_or(0));
        let got = object.read_at(&mut pages, from).map_err(|e| self.object_unreadable(tier, file, e))?;
        pages.get_mut(got..).unwrap_or_default().fill(0);
        let skip = usize::try_from(start - from).unwrap_or(0);
        out.copy_from_slice(pages.get(skip..skip + out.len()).unwrap_or_default());
        Ok(())
    }

    /// Keeps book of a failed read: it is counted, and the volume is degraded until a deep check finds everything readable.
    pub(super) fn object_unreadable(&self, tier: TierId, file: FileId, error: std::io::Error) -> Error {
        if let Some(counters) = self.counters.tiers.get(tier.index()) {
            count(&counters.read_errors, 1);
        }
        let path = object_path(file);
        let path = self.objects(tier).map_or_else(|_| path.clone(), |objects| objects.full(&path));
        let error = Error::io("read", path, error);
        self.degrade(&self.reads_of(tier), error.to_string());
        error
    }

    /// Before everything is read: what fails again will say so again.
    pub(super) fn forget_read_failures(&self) {
        for tier in (0..=u8::MAX).map(TierId).take(self.tiers.len()) {
            self.restore_health(&self.reads_of(tier));
            self.restore_health(&self.rescues_of(tier));
        }
    }

    fn reads_of(&self, tier: TierId) -> String {
        format!("reads of tier {}", self.tier_name(tier))
    }

    /// Calls `done` once every record of `file` up to now is durable (I1); perhaps on this thread, perhaps on another.
    pub fn sync(&self, file: &Arc<File>, done: Done) {
        count(&self.counters.syncs, 1);
        file.note_sync();
        if let Some(observer) = self.observer.read().as_ref() {
            observer.on_sync(file.id());
        }
        if self.closed.load(Ordering::Acquire) {
            return done(self.check_writable());
        }
        self.log.sync(file.last_lsn(), done);
    }

    /// Waits until the whole log is durable.
    pub fn sync_log(&self) -> Result<()> {
        self.log.sync_all()
    }
}

//! Creating, opening and closing a volume; replay.
//!
//! Replay applies the records from the redo point on, in order, to the overlay: no byte is copied. Base and map may already
//! contain some of them; applying them again gives the same bytes, since the log holds every later record of the same range too.

use super::blockmap::{BlockMap, Home, Place};
use super::overlay::{Extent, Source};
use super::resize::Promises;
use super::source::{Source as StoredIn, SourceSnapshot};
use super::space::{Held, SpaceBook};
use super::staging::Staging;
use super::state::{Changes, Marked, Meta, State, StoredFile, VERSION};
use super::{FILES_IN_MEMORY, File, Options, Tier, Volume, marks, status, threads};
use crate::error::{Error, Result};
use crate::log::{self, Geometry, Log, RedoPoint};
use crate::ondisk::group::{FIXED_LEN, GroupHeader, RECORD_LEN, RecordHeader, RecordKind};
use crate::ondisk::note::{MARKER_LEN, Marker};
use crate::ondisk::rows::{FileRow, MAP_CHUNK_BLOCKS};
use crate::tier::objects::Objects;
use crate::units::{BlockNo, FileId, Lsn, TierId, WallNs};
use parking_lot::{Mutex, RwLock};
use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, AtomicUsize, Ordering};
use uuid::Uuid;

/// File ids reserved at each mount.
const FILE_IDS_AHEAD: u64 = 1 << 16;
/// What is degraded when the fastest tier's filesystem is full, and when state has little room left.
const ROOM_FOR_STATE: &str = "room for state";
const WRITES: &str = "writes";

/// One in this many bytes of the fastest tier may hold what is saved for snapshots in the making, or as much as the log has.
const STAGING_SHARE: u64 = 16;

/// What a mount found.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Recovery {
    /// The last mount ended in order: the log was empty.
    pub was_clean: bool,
    pub groups_replayed: u64,
    pub records_replayed: u64,
    /// File ids below this may have been issued before this mount (R12).
    pub file_id_limit_before: u64,
    /// Snapshots in the making whose marks are pending as before.
    pub pending_snapshots: Vec<Uuid>,
    /// Snapshots in the making that the last mount took with it; the next one is incremental all the same. One that was given up shortly before may be
    /// among them.
    pub failed_snapshots: Vec<Uuid>,
}

fn check_options(options: &Options, tiers: usize) -> Result<()> {
    let block = options.block_bytes;
    if !block.is_power_of_two() || !(4096..=1 << 20).contains(&block) {
        return Err(Error::Invalid(format!("block size {block}: allowed are powers of two from 4 KiB to 1 MiB")));
    }
    if options.segments < 4 || !options.segment_bytes.is_multiple_of(64 << 10) || options.segment_bytes < 256 << 10 {
        let (segments, bytes) = (options.segments, options.segment_bytes);
        return Err(Error::Invalid(format!(
            "log of {segments} segments of {bytes} bytes: allowed are at least 4 segments, each a multiple of 64 KiB and at least 256 KiB"
        )));
    }
    if tiers == 0 || tiers > TierId::MAX_TIERS {
        return Err(Error::Invalid(format!("{tiers} tiers: allowed are 1 to {}", TierId::MAX_TIERS)));
    }
    Ok(())
}

fn geometry_of(meta: &Meta) -> Geometry {
    Geometry { segment_bytes: meta.segment_bytes, segments: meta.segments }
}

fn lsn_of(group_address: u64, record: usize) -> Lsn {
    Lsn(group_address + (FIXED_LEN + record * RECORD_LEN) as u64)
}

struct ReplayGroup {
    address: u64,
    wall: WallNs,
    records: Vec<RecordHeader>,
}

impl Volume {
    /// Creates the log and the state of a new volume on the fastest tier. `progress` hears bytes of log written.
    pub fn create(tiers: &[Tier], options: &Options, volume: Uuid, progress: &mut dyn FnMut(u64)) -> Result<()> {
        check_options(options, tiers.len())?;
        for tier in tiers {
            tier.device.create_dir_all("objects").map_err(|e| Error::io("create", tier.device.path(), e))?;
        }
        let Some(fastest) = tiers.first() else { return Ok(()) };
        let geometry = Geometry { segment_bytes: options.segment_bytes, segments: options.segments };
        log::create(&fastest.device, geometry, progress)?;
        let meta = Meta {
            version: VERSION,
            volume,
            block_bytes: options.block_bytes,
            segment_bytes: options.segment_bytes,
            segments: options.segments,
            tiers: tiers.iter().map(|tier| tier.name.clone()).collect(),
            file_id_limit: 1,
            redo: RedoPoint::BEGINNING,
            checkpoint_wall: WallNs(i64::MIN),
            mounts: 0,
            clean: true,
            marked: Marked::default(),
            rollback: None,
        };
        State::create(&fastest.device, &meta)?;
        for tier in tiers {
            tier.device.sync_all().map_err(|e| Error::io("sync", tier.device.path(), e))?;
        }
        Ok(())
    }

    /// What durable state says of a volume, without opening it.
    pub fn peek(fastest: &Tier) -> Result<Meta> {
        State::open(&fastest.device).map(|(_, meta)| meta)
    }

    /// Opens and recovers. Serves at once; spawns no threads (see [`Volume::start_threads`]). What is fixed at creation is taken from the
    /// volume, not from `options`.
    pub fn open(tiers: Vec<Tier>, options: Options) -> Result<(Arc<Volume>, Recovery)> {
        Volume::open_with(tiers, options, None)
    }

    /// As [`Volume::open`], of a volume that was made of `source`, from which it reads what it has not brought to its tiers. Without it those
    /// reads fail, and nothing else does.
    pub fn open_with(
        tiers: Vec<Tier>,
        mut options: Options,
        source: Option<Arc<dyn SourceSnapshot>>,
    ) -> Result<(Arc<Volume>, Recovery)> {
        let Some(fastest) = tiers.first() else {
            return Err(Error::Invalid("a volume has at least one tier".to_string()));
        };
        // R9: a kill -9 may have been followed by a power cut that is still to come: nothing is served before it is durable.
        for tier in &tiers {
            tier.device.sync_all().map_err(|e| Error::io("sync", tier.device.path(), e))?;
        }
        let (state, meta) = State::open(&fastest.device)?;
        let names: Vec<&str> = tiers.iter().map(|tier| tier.name.as_str()).collect();
        if meta.tiers != names {
            let why = format!("the volume's tiers are {:?}, fastest first, but {names:?} were given", meta.tiers);
            return Err(Error::Invalid(why));
        }
        (options.block_bytes, options.segment_bytes, options.segments) =
            (meta.block_bytes, meta.segment_bytes, meta.segments);
        check_options(&options, tiers.len())?;
        let mut groups = Vec::new();
        let geometry = geometry_of(&meta);
        let replayed =
            log::recover(&fastest.device, geometry, meta.volume, meta.redo, &mut |address, header: &GroupHeader| {
                groups.push(ReplayGroup { address, wall: header.wall, records: header.records.clone() });
                Ok(())
            })?;
        let mut recovery = Recovery {
            was_clean: meta.clean && groups.is_empty(),
            groups_replayed: replayed.groups,
            records_replayed: groups.iter().map(|group| group.records.len() as u64).sum(),
            file_id_limit_before: meta.file_id_limit,
            failed_snapshots: Vec::new(),
            pending_snapshots: Vec::new(),
        };
        let mounts = meta.mounts + 1;
        let log = Log::open(&fastest.device, geometry, meta.volume, mounts, options.payload_cache_bytes, replayed)?;
        let space = fastest.device.space().map_err(|e| Error::io("read space of", fastest.device.path(), e))?;
        let limit = geometry.size_bytes().max(space.total_bytes / STAGING_SHARE);
        let staging = Staging::new(fastest.device.clone(), meta.volume, mounts, limit);
        let mut volume = Volume::assemble(tiers, options, state, meta, log, staging);
        volume.source = StoredIn::new(source);
        volume.after_crash = !recovery.was_clean;
        volume.count_space()?;
        let removed = volume.load_marks()?;
        recovery.failed_snapshots = volume.replay(&groups)?;
        volume.join_staged(&removed)?;
        recovery.pending_snapshots = volume.marks.pending_ids();
        recovery.failed_snapshots.retain(|snapshot| !recovery.pending_snapshots.contains(snapshot));
        volume.keep_room_for_state();
        volume.refresh_budgets()?;
        volume.begin_mount(mounts)?;
        volume.leave_room_for_next_recovery()?;
        Ok((Arc::new(volume), recovery))
    }

    fn assemble(tiers: Vec<Tier>, options: Options, state: State, meta: Meta, log: Log, staging: Staging) -> Volume {
        let (slots, tiers_len) = (meta.segments as usize, tiers.len());
        let claims = super::claims::Claims::new(options.block_bytes);
        let marks = marks::Marks::default();
        marks.count_under(meta.marked.epoch, meta.marked.floor);
        let coalesce_at_fill = options.coalesce_at_fill;
        Volume {
            marks,
            staging,
            source: StoredIn::default(),
            kept_blocks: AtomicU64::new(0),
            objects: tiers.iter().map(|tier| Objects::new(tier.device.clone())).collect(),
            space: SpaceBook::new(tiers.len(), u64::from(options.block_bytes)),
            counters: status::Live::new(tiers.len()),
            options,
            tiers,
            log,
            state,
            next_file_id: AtomicU64::new(meta.file_id_limit),
            meta: Mutex::new(meta),
            files: RwLock::default(),
            dirty: Mutex::default(),
            gone: Mutex::default(),
            on_gone: RwLock::new(None),
            path_listener: RwLock::new(None),
            observer: RwLock::new(None),
            snapshots: RwLock::new(None),
            live: (0..slots).map(|_| AtomicI64::new(0)).collect(),
            touched: (0..slots).map(|_| Mutex::default()).collect(),
            claims,
            slow_drained: AtomicU64::new(0),
            coalesce_at_fill_bits: AtomicU64::new(coalesce_at_fill.to_bits()),
            reads_around: AtomicBool::new(false),
            gate: RwLock::new(()),
            appends: RwLock::new(()),
            window: Mutex::default(),
            vacated: Mutex::default(),
            checkpointing: Mutex::new(()),
            losses: (0..tiers_len).map(|_| AtomicU64::new(0)).collect(),
            log_full_wait_ms: AtomicU64::new(super::io::LOG_FULL_WAIT_MS),
            unloads: AtomicU64::new(0),
            files_wanted: AtomicUsize::new(FILES_IN_MEMORY),
            lost_writes: Mutex::default(),
            readers: Arc::default(),
            degraded: Mutex::default(),
            backoff: Mutex::new(HashMap::new()),
            closed: AtomicBool::new(false),
            after_crash: false,
            maintenance: threads::Maintenance::default(),
        }
    }

    /// Counts what durable state has on each tier.
    fn count_space(&self) -> Result<()> {
        self.count_sources()?;
        let rollback = self.rollback();
        let mut kept_blocks = 0;
        self.state.for_each_chunk(&mut |id, _, bytes| {
            let is_kept = rollback.as_ref().is_some_and(|rollback| rollback.is_from_before(id));
            for &byte in bytes.iter().filter(|&&byte| byte != 0) {
                self.count_place(Place::from_byte(byte), 1);
                kept_blocks += u64::from(is_kept);
            }
        })?;
        self.kept_blocks.store(kept_blocks, Ordering::Relaxed);
        Ok(())
    }

    /// Returns the snapshots whose marks were pending.
    fn replay(&self, groups: &[ReplayGroup]) -> Result<Vec<Uuid>> {
        let checkpoint_wall = self.meta.lock().checkpoint_wall;
        let markers = self.markers(groups)?;
        let marked = self.meta.lock().marked.clone();
        let last_epoch = markers.last().map_or(0, |(_, marker)| marker.epoch + 1).max(marked.epoch);
        let mut ahead = markers.iter().peekable();
        let mut highest = 0;
        for group in groups {
            for (index, record) in group.records.iter().enumerate() {
                let lsn = lsn_of(group.address, index);
                highest = highest.max(record.file.0);
                while ahead.peek().is_some_and(|(at, _)| *at < lsn) {
                    ahead.next();
                }
                // A change belongs to the epoch that the next marker ends.
                let epoch = ahead.peek().map_or(last_epoch, |(_, marker)| marker.epoch);
                self.marks.count_under(epoch, marked.floor);
                self.replay_reaches(lsn);
                if record.kind != RecordKind::Note {
                    let touch = (group.wall > checkpoint_wall).then_some(group.wall);
                    self.replay_record(group.address, lsn, record, touch)?;
                }
            }
        }
        // R10: ids in the log lie below the durable limit, or the log is not this volume's.
        if highest >= self.meta.lock().file_id_limit {
            let why = format!("the log has records of file {}, which was never issued", FileId(highest));
            return Err(Error::Corrupt { what: "write log", path: "log".to_string(), offset: 0, why });
        }
        self.marks.count_under(last_epoch, marked.floor);
        let mut failed = marked.pending;
        failed.extend(markers.iter().map(|(_, marker)| marker.snapshot));
        failed.sort_unstable();
        failed.dedup();
        failed.retain(|snapshot| marked.parents.iter().all(|parent| parent.snapshot != *snapshot));
        Ok(failed)
    }

    /// The markers of snapshots in the log, in order.
    fn markers(&self, groups: &[ReplayGroup]) -> Result<Vec<(Lsn, Marker)>> {
        let mut markers = Vec::new();
        for group in groups {
            for (index, record) in group.records.iter().enumerate() {
                if record.kind != RecordKind::Note || record.length != MARKER_LEN as u64 {
                    continue;
                }
                let mut payload = [0; MARKER_LEN];
                self.log.read(group.address + record.payload_offset(), &mut payload)?;
                let marker = Marker::decode(&payload).map_err(|error| Error::Corrupt {
                    what: "marker of a snapshot",
                    path: "log".to_string(),
                    offset: group.address,
                    why: error.0.to_string(),
                })?;
                markers.push((lsn_of(group.address, index), marker));
            }
        }
        Ok(markers)
    }

    fn replay_record(&self, group_address: u64, lsn: Lsn, record: &RecordHeader, touch: Option<WallNs>) -> Result<()> {
        let file = self.file_for_replay(record.file)?;
        let mut inner = file.write();
        let end = record.offset.saturating_add(record.length);
        self.begin_change(record.file, &mut inner);
        match record.kind {
            RecordKind::Data if record.length > 0 => {
                let position = group_address + record.payload_offset();
                self.promise_holes_again(&mut inner, record.offset, end);
                self.keep(record.file, &mut inner, record.offset, end);
                self.note_change(&mut inner, record.offset, end);
                let extent = Extent { start: record.offset, end, source: Source::Log(position) };
                inner.overlay.insert(extent, &mut self.ledger());
                let size = inner.size_bytes.max(end);
                self.resize(&mut inner, size);
                self.note_touched(lsn, record.file, self.block_of(record.offset), self.block_of(end - 1));
            }
            RecordKind::Truncate => {
                if record.length > 0 {
                    self.apply_zeros(record.file, &mut inner, record.offset, u64::MAX, lsn, Promises::Release);
                }
                self.resize(&mut inner, record.offset);
            }
            RecordKind::Punch => {
                self.apply_zeros(record.file, &mut inner, record.offset, end, lsn, Promises::Release);
            }
            RecordKind::Size => {
                let size = inner.size_bytes.max(record.offset);
                self.resize(&mut inner, size);
            }
            RecordKind::Times => {
                if touch.is_some() {
                    inner.mtime = Some(WallNs(i64::from_le_bytes(record.offset.to_le_bytes())));
                    inner.ctime = touch;
                }
            }
            RecordKind::Data | RecordKind::Note => {}
        }
        if let (Some(wall), true) = (touch, record.kind != RecordKind::Times) {
            inner.touch(wall);
        }
        file.set_last_lsn(lsn);
        drop(inner);
        self.list_dirty(&file);
        Ok(())
    }

    pub(super) fn file_for_replay(&self, id: FileId) -> Result<Arc<File>> {
        if let Some(file) = self.files.read().get(&id) {
            return Ok(file.clone());
        }
        let loaded = self.load_file(id)?;
        Ok(self.files.write().entry(id).or_insert(loaded).clone())
    }

    fn promise_holes_again(&self, inner: &mut super::file::Inner, start: u64, end: u64) {
        for block in (self.block_of(start).0..=self.block_of(end - 1).0).map(BlockNo) {
            if inner.has_hole(block) {
                let place = inner.map.get(block);
                inner.map.set(block, Place { home: Home::Promised, ..place });
                inner.promised_blocks += 1;
                self.space.promise_again(1);
            }
        }
    }

    /// Marks the mount in durable state, with a new range of file ids (R10).
    fn begin_mount(&self, mounts: u64) -> Result<()> {
        let mut meta = self.meta.lock();
        meta.mounts = mounts;
        meta.clean = false;
        meta.marked.epoch = self.marks.epoch();
        meta.marked.pending.clear();
        meta.file_id_limit = self.next_file_id.load(Ordering::Acquire) + FILE_IDS_AHEAD;
        self.state.commit(&meta, &Changes::default())
    }

    /// A log without a free segment could not take the next mount's records: it is drained first.
    fn leave_room_for_next_recovery(&self) -> Result<()> {
        let (_, in_use) = self.log.segments_in_use();
        if in_use + 2 > u64::from(self.geometry().segments) {
            tracing::info!("the log is full; coalescing before serving");
            self.make_log_room(super::threads::Drain::Oldest)?;
        }
        Ok(())
    }

    /// Takes the tiers' budgets from their settings and from what the backing filesystems have left.
    pub fn refresh_budgets(&self) -> Result<()> {
        for (index, tier) in self.tiers.iter().enumerate() {
            let id = TierId(u8::try_from(index).unwrap_or(u8::MAX));
            let space = tier.device.space().map_err(|e| Error::io("read space of", tier.device.path(), e))?;
            self.space.refresh_budget(id, tier, space);
        }
        Ok(())
    }

    /// Fills up the room that is kept for state, and says so when others leave too little of it.
    pub fn keep_room_for_state(&self) {
        let path = self.tiers[0].device.path();
        let lacking = match self.state.keep_room(self.geometry().size_bytes()) {
            Err(error) => Some(error.to_string()),
            Ok(()) if self.state.reserve().status().is_whole() => None,
            Ok(()) => Some(format!(
                "others fill the filesystem of {path}, and what is kept there for the volume's own state goes; make room there"
            )),
        };
        match lacking {
            Some(why) => self.degrade(ROOM_FOR_STATE, why),
            None => self.restore_health(ROOM_FOR_STATE),
        }
        match self.state.reserve().is_short() {
            true => self.degrade(WRITES, format!("refused (ENOSPC) until there is room on the filesystem of {path}")),
            false => self.restore_health(WRITES),
        }
    }

    /// Adopting: the file's bytes already lie in its object on `tier`; `data` names the ranges that are not holes. Durable after a checkpoint.
    pub fn import_file(
        &self,
        id: FileId,
        size_bytes: u64,
        mtime: WallNs,
        tier: TierId,
        data: &[(u64, u64)],
    ) -> Result<()> {
        let file = self.file(id)?;
        let _flip = self.gate.read();
        let mut inner = file.write();
        inner.size_bytes = size_bytes;
        inner.mtime = Some(mtime);
        inner.row_dirty = true;
        for &(offset, len) in data.iter().filter(|(_, len)| *len > 0) {
            self.note_change(&mut inner, offset, offset + len);
            for block in (self.block_of(offset).0..=self.block_of(offset + len - 1).0).map(BlockNo) {
                self.set_place(id, &mut inner, block, Place::on(tier));
            }
        }
        drop(inner);
        self.list_dirty(&file);
        Ok(())
    }

    /// Coalesces everything, checkpoints, marks the volume clean; every later call fails. After a log failure nothing is changed (I5).
    pub fn shut_down(&self) -> Result<()> {
        self.stop_threads();
        if self.closed.load(Ordering::Acquire) {
            return Ok(());
        }
        self.check_writable()?;
        let last = self.log.last_lsn();
        self.leave_marks_pending()?;
        self.coalesce_all(&mut |_, _| {})?;
        self.checkpoint()?;
        self.checkpoint()?;
        self.closed.store(true, Ordering::Release);
        // Whoever was about to append has done so, or sees `closed`.
        drop(self.appends.write());
        if self.log.last_lsn() != last {
            tracing::warn!("somebody wrote while the volume was shut down; the next mount replays it");
            return self.sync_log();
        }
        let mut meta = self.meta.lock();
        meta.redo = self.log.redo_point_behind_all();
        meta.clean = true;
        self.state.commit(&meta, &Changes::default())
    }

    /// Ends without coalescing: flushes the log and checkpoints; the next mount replays the rest.
    pub fn shut_down_quickly(&self) -> Result<()> {
        self.stop_threads();
        if !self.closed.load(Ordering::Acquire) {
            self.checkpoint()?;
            self.closed.store(true, Ordering::Release);
        }
        Ok(())
    }

    pub fn meta(&self) -> Meta {
        self.meta.lock().clone()
    }

    /// Blocks and tiers of a file, as runs.
    pub fn block_map(&self, file: &File) -> Vec<Run> {
        runs_of(&file.read().map)
    }

    /// What durable state says of one file, without opening the volume, which nobody may have open.
    pub fn peek_file(fastest: &Tier, id: FileId) -> Result<Option<(FileRow, Vec<Run>)>> {
        let (state, _) = State::open(&fastest.device)?;
        let Some(StoredFile { row, chunks, source }) = state.file(id)? else { return Ok(None) };
        let mut map = BlockMap::default();
        map.set_stored(source.map(|source| source.ranges).unwrap_or_default());
        for (index, bytes) in chunks {
            map.load_chunk(index, &bytes);
        }
        Ok(Some((row, runs_of(&map))))
    }

    /// All files in durable state, without opening the volume, which nobody may have open.
    pub fn peek_files(fastest: &Tier) -> Result<Vec<(FileId, FileRow)>> {
        let (state, _) = State::open(&fastest.device)?;
        let row = |id| Ok(state.file(id)?.map(|found| (id, found.row)));
        let rows: Result<Vec<_>> = state.file_ids()?.into_iter().map(row).collect();
        Ok(rows?.into_iter().flatten().collect())
    }

    /// Blocks that one row of the stored map covers; for messages and tests.
    pub const fn map_chunk_blocks() -> usize {
        MAP_CHUNK_BLOCKS
    }

    pub(super) fn held_bytes(&self, tier: TierId, held: Held) -> u64 {
        self.space.count(tier, held) * self.block_bytes()
    }
}

/// Some blocks in a row that lie alike: first block, blocks, tier or None for a hole, tier with a clean copy.
pub type Run = (BlockNo, u64, Option<TierId>, Option<TierId>);

pub(super) fn runs_of(map: &BlockMap) -> Vec<Run> {
    let mut runs: Vec<Run> = Vec::new();
    for (block, place) in map.iter() {
        let (tier, copy) = (place.tier(), place.copy);
        match runs.last_mut() {
            Some((first, count, t, c)) if first.0 + *count == block.0 && *t == tier && *c == copy => *count += 1,
            _ => runs.push((block, 1, tier, copy)),
        }
    }
    runs
}

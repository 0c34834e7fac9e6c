//! Checkpoint: base, map, sizes and the redo point become durable together; only then old images and log segments are freed.
//!
//! freeze the set -> flush the log -> sync what was written to the tiers (and home, if names went) -> one state transaction -> wait for earlier
//! readers -> recycle segments, punch vacated places, remove the objects of files that are gone. What is flipped after the
//! freeze belongs to the next checkpoint (R4).
//!
//! If a sync fails, everything written to that tier since the last durable checkpoint is un-applied (R8): its extents return to the overlay beneath
//! newer ones, its blocks to the places where durable state has them. They are written again from the log before a later sync counts.

use super::space::Held;
use super::state::Changes;
use super::status::count;
use super::{Applied, Claim, FILES_IN_MEMORY, File, Volume};
use crate::device::clock;
use crate::error::{Error, Result};
use crate::tier::objects::{object_dir, object_path};
use crate::units::{BlockNo, FileId, TierId, WallNs};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// Up to this many files are synced one by one; beyond, the whole backing filesystem.
const FILES_SYNCED_SINGLY: usize = 64;
/// File ids reserved ahead.
const FILE_IDS_AHEAD: u64 = 1 << 16;
/// What is degraded while checkpoints fail.
const SUBJECT: &str = "checkpoint";

/// What one checkpoint makes durable.
struct Frozen {
    window: Vec<Applied>,
    gone: Vec<FileId>,
    dirty: Vec<FileId>,
    changes: Changes,
    /// Oldest segment with a live record.
    redo_segment: u64,
    wall: WallNs,
    /// A file without a name is kept for a mark: home forgets it with this checkpoint.
    names_went: bool,
    /// Staging files that nothing points into any more.
    unneeded: Vec<u64>,
}

impl Volume {
    /// Makes everything up to now durable in base and state, and frees what that supersedes.
    pub fn checkpoint(&self) -> Result<()> {
        let _one = self.checkpointing.lock();
        self.check_writable()?;
        let began = clock::monotonic_now();
        let frozen = self.freeze()?;
        if let Err(error) = self.make_durable(&frozen) {
            self.thaw(frozen, &error);
            return Err(error);
        }
        self.restore_health(SUBJECT);
        self.free_superseded(frozen);
        count(&self.counters.checkpoints, 1);
        count(&self.counters.checkpoint_us, u64::try_from(began.elapsed().as_micros()).unwrap_or(u64::MAX));
        Ok(())
    }

    /// A checkpoint for who needs what it frees. A tier that fails its sync is asked no more once what it lost was taken back (R8), so that
    /// after one failure of each tier there is nobody left to fail.
    pub(super) fn checkpoint_despite_tiers(&self) -> Result<()> {
        let mut result = self.checkpoint();
        for _ in &self.tiers {
            match result {
                Err(Error::Io { .. }) => result = self.checkpoint(),
                _ => break,
            }
        }
        result
    }

    /// Is there anything that a checkpoint would make durable or free?
    pub(super) fn checkpoint_due(&self) -> bool {
        !self.window.lock().is_empty()
            || !self.gone.lock().is_empty()
            || !self.dirty.lock().is_empty()
            || self.marks.names_went.load(Ordering::Acquire)
            || self.staging.has_unneeded()
    }

    fn freeze(&self) -> Result<Frozen> {
        let _gate = self.gate.write();
        let wall = clock::wall_now();
        // No layer points there any more, and once the rows below are durable no row does.
        let unneeded = self.staging.unneeded();
        let redo_segment = {
            let _no_appends = self.appends.write();
            self.oldest_live_segment()
        };
        let window = std::mem::take(&mut *self.window.lock());
        {
            let mut vacated = self.vacated.lock();
            let current = std::mem::take(&mut vacated.current);
            vacated.frozen.extend(current);
        }
        let gone = std::mem::take(&mut *self.gone.lock());
        let names_went = self.marks.names_went.swap(false, Ordering::AcqRel) || !gone.is_empty();
        let dirty = std::mem::take(&mut *self.dirty.lock());
        let mut changes = Changes { gone: gone.clone(), ..Changes::default() };
        for &id in &dirty {
            // What is not in memory has nothing to write.
            let Some(file) = self.files.read().get(&id).cloned() else { continue };
            file.unlist_dirty();
            let mut inner = file.write();
            if inner.removed && inner.layers.is_empty() {
                continue;
            }
            inner.row_dirty = false;
            changes.rows.push((id, inner.row(file.is_log_file())));
            changes.chunks.extend(inner.map.take_dirty().into_iter().map(|(index, bytes)| (id, index, bytes)));
            let removed = inner.removed;
            changes.layers.extend(inner.layers.take_dirty(removed).map(|rows| (id, rows)));
            changes.pages.extend(inner.changes.take_dirty().into_iter().map(|(index, row)| (id, index, row)));
        }
        // No flip is under way, and none goes back there once this checkpoint is durable.
        changes.forget_sources = self.needs_repository() && self.bytes_in_repository() == 0;
        Ok(Frozen { window, gone, dirty, changes, redo_segment, wall, names_went, unneeded })
    }

    fn oldest_live_segment(&self) -> u64 {
        let (tail, in_use) = self.log.segments_in_use();
        let head = self.log.head_segment_seq();
        let live =
            |seq: &u64| self.live.get(self.geometry().slot(*seq)).is_some_and(|cell| cell.load(Ordering::Acquire) > 0);
        (tail..tail + in_use).find(live).unwrap_or(head).min(head)
    }

    fn make_durable(&self, frozen: &Frozen) -> Result<()> {
        self.log.sync_all()?;
        for tier in (0..self.tiers.len()).filter_map(|tier| u8::try_from(tier).ok()).map(TierId) {
            let files: BTreeSet<FileId> = frozen
                .window
                .iter()
                .filter(|applied| applied.wrote == Some(tier))
                .map(|applied| applied.file)
                .collect();
            let names_went = tier == TierId::FASTEST && frozen.names_went;
            self.sync_tier(tier, &files, names_went)?;
        }
        let mut meta = self.meta.lock().clone();
        meta.redo = self.log.redo_point(frozen.redo_segment);
        let next = self.next_file_id.load(Ordering::Acquire);
        if next + FILE_IDS_AHEAD / 2 > meta.file_id_limit {
            meta.file_id_limit = next + FILE_IDS_AHEAD;
        }
        meta.checkpoint_wall = frozen.wall;
        meta.marked.epoch = self.marks.epoch();
        meta.marked.pending = self.marks.pending_ids();
        if frozen.changes.forget_sources {
            meta.version = super::state::VERSION;
        }
        if let Err(error) = self.state.commit(&meta, &frozen.changes) {
            // Whether the transaction is durable is unknown: from here on only a new mount can tell (I5).
            self.log.fail_for(&error);
            return Err(error);
        }
        *self.meta.lock() = meta;
        Ok(())
    }

    fn sync_tier(&self, tier: TierId, files: &BTreeSet<FileId>, names_went: bool) -> Result<()> {
        let objects = self.objects(tier)?;
        if files.is_empty() && !names_went {
            // Objects that were made there meanwhile, which nothing durable needs yet, must not hold up the others.
            return Ok(());
        }
        let fresh = objects.take_fresh();
        let synced = if names_went || files.len() > FILES_SYNCED_SINGLY || fresh.len() > FILES_SYNCED_SINGLY {
            objects.device().sync_all().map_err(|e| Error::io("sync", objects.device().path(), e))
        } else {
            self.sync_singly(tier, files, &fresh)
        };
        // A write that succeeds says nothing about syncs.
        let subject = format!("syncs of tier {}", self.tier_name(tier));
        match &synced {
            Ok(()) => self.restore_health(&subject),
            Err(error) => {
                self.degrade(&subject, error.to_string());
                objects.put_back_fresh(fresh);
                self.unapply_after_sync_error(tier);
            }
        }
        synced
    }

    fn sync_singly(&self, tier: TierId, files: &BTreeSet<FileId>, fresh: &BTreeSet<FileId>) -> Result<()> {
        let objects = self.objects(tier)?;
        for &id in files {
            if let Some(object) = objects.get(id, false)? {
                object.sync_data().map_err(|e| Error::io("sync", objects.full(&object_path(id)), e))?;
            }
        }
        let dirs: BTreeSet<String> = fresh.iter().map(|&id| object_dir(id)).collect();
        for dir in &dirs {
            objects.device().sync_dir(dir).map_err(|e| Error::io("sync", objects.full(dir), e))?;
        }
        if dirs.is_empty() {
            return Ok(());
        }
        objects.device().sync_dir("objects").map_err(|e| Error::io("sync", objects.full("objects"), e))
    }

    /// The tier lost writes that it had accepted: remembered until [`Volume::thaw`] has the whole window together again.
    /// What was written before and is flipped after this moment is refused; what was flipped before is in the window.
    fn unapply_after_sync_error(&self, tier: TierId) {
        let _no_flips = self.gate.write();
        if let Some(losses) = self.losses.get(tier.index()) {
            losses.fetch_add(1, Ordering::AcqRel);
        }
        self.lost_writes.lock().insert(tier);
        self.backoff.lock().insert(tier, clock::monotonic_now());
    }

    /// The checkpoint failed: what it would have made durable belongs to the next one.
    fn thaw(&self, frozen: Frozen, error: &Error) {
        self.degrade(SUBJECT, format!("{error}; nothing was freed, it is tried again"));
        {
            let mut window = self.window.lock();
            let later = std::mem::replace(&mut *window, frozen.window);
            window.extend(later);
        }
        self.marks.names_went.fetch_or(frozen.names_went, Ordering::AcqRel);
        self.gone.lock().extend(frozen.gone);
        for (id, _) in frozen.changes.rows {
            if let Ok(file) = self.file(id) {
                file.write().row_dirty = true;
            }
        }
        for (id, index, _) in frozen.changes.chunks {
            if let Ok(file) = self.file(id) {
                file.write().map.mark_dirty([index]);
            }
        }
        for (id, _) in frozen.changes.layers {
            if let Ok(file) = self.file(id) {
                file.write().layers.mark_dirty();
            }
        }
        for (id, index, _) in frozen.changes.pages {
            if let Ok(file) = self.file(id) {
                file.write().changes.mark_dirty(index);
            }
        }
        for id in frozen.dirty {
            if let Ok(file) = self.file(id) {
                self.list_dirty(&file);
            }
        }
        let lost = self.lost_writes.lock().clone();
        if !lost.is_empty() {
            self.unapply(&lost);
            // Only now: whoever reads a base for a mark meanwhile has to know that it may be what was lost.
            self.lost_writes.lock().clear();
        }
    }

    /// R8: blocks written to these tiers since the last durable checkpoint go back to where durable state has them.
    fn unapply(&self, lost: &BTreeSet<TierId>) {
        let hit: BTreeSet<(FileId, BlockNo)> = self
            .window
            .lock()
            .iter()
            .filter(|applied| applied.wrote.is_some_and(|tier| lost.contains(&tier)))
            .map(|applied| (applied.file, applied.block))
            .collect();
        // Nobody flips these blocks from here on, so that their histories are complete and stay so.
        let claims: Vec<Claim<'_>> = hit.iter().map(|&(file, block)| self.claim_waiting(file, block)).collect();
        let mut affected: BTreeMap<(FileId, BlockNo), Vec<Applied>> = BTreeMap::new();
        {
            let mut window = self.window.lock();
            for applied in std::mem::take(&mut *window) {
                let key = (applied.file, applied.block);
                if hit.contains(&key) { affected.entry(key).or_default().push(applied) } else { window.push(applied) }
            }
        }
        for ((id, block), history) in affected {
            if let Ok(file) = self.file(id) {
                self.unapply_block(&file, block, &history);
            }
        }
        drop(claims);
    }

    fn claim_waiting(&self, file: FileId, block: BlockNo) -> Claim<'_> {
        loop {
            // The holder is at most a few device calls away from letting go, and waits for no claim itself.
            if let Some(claim) = self.claim(file, block) {
                return claim;
            }
            std::thread::yield_now();
        }
    }

    /// The caller holds the claim.
    fn unapply_block(&self, file: &Arc<File>, block: BlockNo, history: &[Applied]) {
        let Some(prior) = history.first().map(|applied| applied.prior) else { return };
        let _flip = self.gate.read();
        let mut inner = file.write();
        if inner.removed {
            return;
        }
        for piece in history.iter().rev().flat_map(|applied| applied.pieces.iter()) {
            inner.overlay.insert_beneath(*piece, &mut self.ledger());
            // What a mark expects in the base is what was applied there last: anything later had it saved first.
            inner.layers.replace_base(piece.start, piece.end, piece.source.into(), &mut self.kept_ledger());
        }
        self.set_place(file.id(), &mut inner, block, prior);
        inner.cuts += 1;
        drop(inner);
        let mut vacated = self.vacated.lock();
        for tier in [prior.tier(), prior.copy].into_iter().flatten() {
            let key = (file.id(), block, tier);
            if vacated.current.remove(&key) | vacated.frozen.remove(&key) {
                self.space.add(tier, Held::Vacated, -1);
            }
        }
        drop(vacated);
        self.list_dirty(file);
    }

    fn free_superseded(&self, frozen: Frozen) {
        self.readers.wait_for_earlier();
        if let Err(error) = self.staging.remove(&frozen.unneeded) {
            tracing::warn!(%error, "a staging file that nobody needs could not be removed; the next mount does it");
        }
        let (tail, _) = self.log.segments_in_use();
        for seq in tail..frozen.redo_segment {
            if let Some(list) = self.touched.get(self.geometry().slot(seq)) {
                list.lock().clear();
            }
        }
        self.log.recycle_before(frozen.redo_segment);
        if let Err(error) = self.log.seal_complete() {
            tracing::warn!(%error, "a segment summary could not be written; a remount will read its group headers instead");
        }
        self.remove_gone(&frozen.gone);
        self.punch_vacated();
        self.drop_files_at_rest();
    }

    fn remove_gone(&self, gone: &[FileId]) {
        for &id in gone {
            let removed = {
                let mut files = self.files.write();
                self.unloads.fetch_add(1, Ordering::AcqRel);
                files.remove(&id)
            };
            if let Some(file) = removed {
                for (_, place) in file.read().map.iter() {
                    self.count_place(place, -1);
                }
            }
            let mut vacated = self.vacated.lock();
            let super::Vacated { current, frozen } = &mut *vacated;
            for set in [current, frozen] {
                set.retain(|(file, _, tier)| {
                    if *file == id {
                        self.space.add(*tier, Held::Vacated, -1);
                    }
                    *file != id
                });
            }
            drop(vacated);
            for objects in &self.objects {
                if let Err(error) = objects.remove(id) {
                    self.degrade(&super::file_subject(id), error.to_string());
                    continue;
                }
                self.restore_health_of_file(id);
            }
        }
        if let (false, Some(listener)) = (gone.is_empty(), self.on_gone.read().as_ref()) {
            listener(gone);
        }
    }

    /// Frees the space of images that neither durable state nor the map names any more (R5), adjacent ones together.
    fn punch_vacated(&self) {
        let mut places: Vec<(TierId, FileId, BlockNo)> =
            self.vacated.lock().frozen.iter().map(|&(file, block, tier)| (tier, file, block)).collect();
        places.sort_unstable();
        let mut at = 0;
        while let Some(&(tier, file, first)) = places.get(at) {
            let mut claims = Vec::new();
            while let Some(&(t, f, block)) = places.get(at) {
                let adjacent = t == tier && f == file && block.0 == first.0 + claims.len() as u64;
                if !adjacent {
                    break;
                }
                let Some(claim) = self.claim(file, block) else { break };
                claims.push(claim);
                at += 1;
            }
            if claims.is_empty() {
                // Somebody is at this block: its turn comes with the next checkpoint.
                at += 1;
                continue;
            }
            let count = claims.len() as u64;
            if let Err(error) = self.punch_run(tier, file, first, count) {
                self.degrade(&format!("tier {}", self.tier_name(tier)), error.to_string());
                continue;
            }
            let mut vacated = self.vacated.lock();
            for block in first.0..first.0 + count {
                if vacated.frozen.remove(&(file, BlockNo(block), tier)) {
                    self.space.add(tier, Held::Vacated, -1);
                }
            }
        }
    }

    fn punch_run(&self, tier: TierId, file: FileId, first: BlockNo, count: u64) -> Result<()> {
        let known = self.files.read().get(&file).cloned();
        if let Some(known) = known {
            let inner = known.read();
            for block in (first.0..first.0 + count).map(BlockNo) {
                assert!(!inner.map.get(block).names(tier), "a vacated place is named by the map");
            }
        }
        let objects = self.objects(tier)?;
        let Some(object) = objects.get(file, false)? else { return Ok(()) };
        object
            .punch(self.block_start(first), count * self.block_bytes())
            .map_err(|e| Error::io("punch", objects.full(&object_path(file)), e))
    }

    /// Files that nobody uses and that durable state has in full need no memory. While no checkpoint has taken what is dirty and not written it yet.
    fn drop_files_at_rest(&self) {
        let mut files = self.files.write();
        if files.len() > FILES_IN_MEMORY {
            self.unloads.fetch_add(1, Ordering::AcqRel);
            // Who has the only reference waits for no lock of the file.
            files.retain(|_, file| Arc::strong_count(file) > 1 || file.is_listed_dirty() || !file.read().is_at_rest());
        }
        // As many again may come before it is worth another look.
        self.files_wanted.store(FILES_IN_MEMORY.max(2 * files.len()), Ordering::Relaxed);
    }

    /// For who has brought many files into memory, where a checkpoint is long in coming: nothing may have changed.
    pub(super) fn make_room_in_memory(&self) {
        if let Some(_checkpointing) = self.checkpointing.try_lock() {
            self.drop_files_at_rest();
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::device::sim::{SimWorld, Survival};
    use crate::volume::{Options, Tier, Volume, Wait};
    use std::sync::Arc;
    use uuid::Uuid;

    const OPTIONS: Options = Options {
        block_bytes: 16 << 10,
        segment_bytes: 256 << 10,
        segments: 8,
        payload_cache_bytes: 64 << 10,
        coalesce_at_fill: 0.5,
        checkpoint_interval_s: 3600,
    };

    fn open(world: &SimWorld, new: bool) -> Arc<Volume> {
        let device = world.device("nvme");
        let tiers = vec![Tier { name: "nvme".to_owned(), device, budget_bytes: None, reserve_bytes: 0 }];
        if new {
            Volume::create(&tiers, &OPTIONS, Uuid::from_u128(71), &mut |_| {}).unwrap();
        }
        Volume::open(tiers, OPTIONS).unwrap().0
    }

    /// R25, R27: bytes replaced in the open group after a checkpoint has taken the file's row are newer than that row.
    #[test]
    fn a_time_that_a_checkpoint_has_not_seen_is_kept_by_the_next() {
        let world = SimWorld::new(71);
        let volume = open(&world, true);
        let id = volume.issue_file_id().unwrap();
        let file = volume.file(id).unwrap();
        volume.write(&file, 0, &[1; 4096], Wait::Allowed).unwrap();
        let frozen = volume.freeze().unwrap();
        let taken = volume.attr(&file).mtime.unwrap();
        while crate::device::clock::wall_now() <= taken {}
        volume.write(&file, 0, &[2; 4096], Wait::Allowed).unwrap();
        assert_eq!(volume.status().counters.log_replaced_bytes, 4096);
        let newer = volume.attr(&file).mtime.unwrap();
        volume.make_durable(&frozen).unwrap();
        volume.free_superseded(frozen);
        volume.checkpoint().unwrap();
        let cut = open(&world.recover(Survival::None), false);
        let file = cut.file(id).unwrap();
        assert!(
            taken < newer && cut.attr(&file).mtime >= Some(newer),
            "{taken:?} {newer:?} {:?}",
            cut.attr(&file).mtime
        );
    }
}

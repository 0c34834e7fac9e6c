//! Moving a block's base between tiers, without ever blocking a read or a write.
//!
//! Only base bytes are copied; what is in the overlay stays there. A promoted block leaves its lower copy valid, so that demoting it
//! again, as long as nobody coalesced into it, is a map flip (R6).

use super::blockmap::{Home, Place};
use super::space::Held;
use super::status;
use super::{Applied, File, Volume, Wrote};
use crate::device::AlignedBuf;
use crate::error::{Error, Result};
use crate::units::{BlockNo, TierId};
use std::sync::Arc;

/// Largest piece of mover I/O, in bytes (R24).
pub(super) const RUN_BYTES_MAX: u64 = 256 * 1024;

impl Volume {
    /// Moves one block's base to a tier. Ok(false): refused (no image, busy, no room, a place that waits for its punch).
    pub fn move_block(&self, file: &Arc<File>, block: BlockNo, to: TierId) -> Result<bool> {
        Ok(self.move_run(file, block, 1, to)? == 1)
    }

    /// Moves up to `count` adjacent blocks, those on the same tier as the first, with one read and one write of at most 256 KiB.
    /// Returns how many were moved; 0 when refused.
    pub fn move_run(&self, file: &Arc<File>, first: BlockNo, count: u64, to: TierId) -> Result<u64> {
        self.check_writable()?;
        self.objects(to)?;
        let most = (RUN_BYTES_MAX / self.block_bytes()).max(1).min(count.max(1));
        // Objects of a file that is removed meanwhile go when this is over.
        let _reading = self.readers.enter();
        let (from, removed) = {
            let inner = file.read();
            (inner.map.get(first), inner.removed)
        };
        if removed {
            return Ok(0);
        }
        let Home::Tier(source) = from.home else { return Ok(0) };
        if source == to || self.in_backoff(to) {
            return Ok(0);
        }
        if from.copy == Some(to) {
            return self.flip_to_copy(file, first, to);
        }
        let (mut claims, mut images) = (Vec::new(), Vec::new());
        for block in (first.0..first.0 + most).map(BlockNo) {
            let Some((claim, image)) = self.claims.claim_with_image(file.id(), block, Some(source)) else { break };
            let place = file.read().map.get(block);
            let same = place.home == Home::Tier(source) && place.copy != Some(to);
            if !same || self.is_vacated(file.id(), block, to) {
                break;
            }
            claims.push(claim);
            images.extend(image);
        }
        let blocks = claims.len() as u64;
        if blocks == 0 || !self.has_room_to_move(to, blocks) {
            return Ok(0);
        }
        let start = self.block_start(first);
        let mut image = AlignedBuf::zeroed(usize::try_from(blocks * self.block_bytes()).unwrap_or(0));
        let mut rescued = false;
        if images.len() == claims.len() {
            let parts = image.chunks_mut(usize::try_from(self.block_bytes()).unwrap_or(usize::MAX));
            parts.zip(&images).for_each(|(part, bytes)| part.copy_from_slice(bytes));
            status::count(&self.counters.moved_from_memory_blocks, blocks);
        } else {
            rescued = self.read_base(file, source, start, &mut image)?;
        }
        let wrote = self.about_to_write(to);
        let written = self.write_image(file.id(), to, start, &image, self.used_of(file, start, image.len() as u64));
        self.note_tier_writes(to, written)?;
        // A copy is kept where room is cheapest: on the slowest tier. What could not be read there is none.
        let keep_copy = to < source && self.is_slowest(source) && !rescued;
        Ok(self.flip_moved(file, first, blocks, source, wrote, keep_copy))
    }

    /// Bytes of a run that can be anything but zero: bytes past the file's size, now and at pending marks, are zeros to everybody,
    /// whatever an image says.
    pub(super) fn used_of(&self, file: &File, start: u64, len: u64) -> u64 {
        file.read().size_needed().saturating_sub(start).clamp(1, len)
    }

    /// Mover and staging use only unpromised space (I10).
    fn has_room_to_move(&self, to: TierId, blocks: u64) -> bool {
        let blocks = i64::try_from(blocks).unwrap_or(i64::MAX);
        // What goes down makes room there.
        let state_has_room = to != TierId::FASTEST || !self.state.reserve().is_short();
        state_has_room && self.space.free_blocks(to) >= blocks && self.space.unpromised_blocks() >= blocks
    }

    fn flip_moved(
        &self,
        file: &Arc<File>,
        first: BlockNo,
        blocks: u64,
        from: TierId,
        wrote: Wrote,
        keep_copy: bool,
    ) -> u64 {
        let to = wrote.tier;
        let _flip = self.gate.read();
        let mut inner = file.write();
        if inner.removed || self.was_lost(wrote) {
            return 0;
        }
        for block in (first.0..first.0 + blocks).map(BlockNo) {
            let prior = inner.map.get(block);
            // The bytes are the same, so a copy further down is as valid as before.
            let lower = prior.copy.filter(|copy| *copy > to);
            let new = Place { home: Home::Tier(to), copy: lower.or(keep_copy.then_some(from)) };
            self.set_place(file.id(), &mut inner, block, new);
            self.window.lock().push(Applied { file: file.id(), block, prior, pieces: Vec::new(), wrote: Some(to) });
        }
        drop(inner);
        self.list_dirty(file);
        status::count(if to < from { &self.counters.promoted_blocks } else { &self.counters.demoted_blocks }, blocks);
        blocks
    }

    /// The lower copy is still valid: nothing is copied.
    fn flip_to_copy(&self, file: &Arc<File>, block: BlockNo, to: TierId) -> Result<u64> {
        let Some(_claim) = self.claim(file.id(), block) else { return Ok(0) };
        let _flip = self.gate.read();
        let mut inner = file.write();
        let prior = inner.map.get(block);
        let Home::Tier(from) = prior.home else { return Ok(0) };
        if prior.copy != Some(to) || inner.removed {
            return Ok(0);
        }
        self.set_place(file.id(), &mut inner, block, Place::on(to));
        drop(inner);
        self.window.lock().push(Applied { file: file.id(), block, prior, pieces: Vec::new(), wrote: None });
        self.list_dirty(file);
        let counter = if to < from { &self.counters.promoted_blocks } else { &self.counters.demoted_blocks };
        status::count(counter, 1);
        status::count(&self.counters.demoted_by_flip_blocks, 1);
        Ok(1)
    }

    /// Gives up to `count` adjacent blocks, those that lie on the same tier as the first and have no records waiting, a valid copy on the slowest tier, so
    /// that taking them down later copies nothing. Returns how many got one; 0 when refused.
    pub fn copy_down(&self, file: &Arc<File>, first: BlockNo, count: u64) -> Result<u64> {
        self.check_writable()?;
        let to = TierId(u8::try_from(self.tiers.len().saturating_sub(1)).unwrap_or(u8::MAX));
        let most = (RUN_BYTES_MAX / self.block_bytes()).max(1).min(count.max(1));
        let _reading = self.readers.enter();
        let Home::Tier(source) = file.read().map.get(first).home else { return Ok(0) };
        if source == to || self.in_backoff(to) {
            return Ok(0);
        }
        let mut claims = Vec::new();
        for block in (first.0..first.0 + most).map(BlockNo) {
            let Some(claim) = self.claim(file.id(), block) else { break };
            let start = self.block_start(block);
            let fits = {
                let inner = file.read();
                let is_clean = inner.overlay.range(start, start + self.block_bytes()).next().is_none();
                is_clean && !inner.removed && inner.map.get(block) == Place::on(source)
            };
            if !fits || self.is_vacated(file.id(), block, to) {
                break;
            }
            claims.push(claim);
        }
        let blocks = claims.len() as u64;
        if blocks == 0 || !self.has_room_to_move(to, blocks) {
            return Ok(0);
        }
        let start = self.block_start(first);
        let mut image = AlignedBuf::zeroed(usize::try_from(blocks * self.block_bytes()).unwrap_or(0));
        self.read_base(file, source, start, &mut image)?;
        let wrote = self.about_to_write(to);
        let written = self.write_image(file.id(), to, start, &image, self.used_of(file, start, image.len() as u64));
        self.note_tier_writes(to, written)?;
        let _flip = self.gate.read();
        let mut inner = file.write();
        if inner.removed || self.was_lost(wrote) {
            return Ok(0);
        }
        for block in (first.0..first.0 + blocks).map(BlockNo) {
            let prior = inner.map.get(block);
            self.set_place(file.id(), &mut inner, block, Place { copy: Some(to), ..prior });
            self.window.lock().push(Applied { file: file.id(), block, prior, pieces: Vec::new(), wrote: Some(to) });
        }
        drop(inner);
        self.list_dirty(file);
        status::count(&self.counters.premigrated_blocks, blocks);
        Ok(blocks)
    }

    /// Takes a block down to its valid copy on a slower tier, without copying. Ok(false): there is none, or somebody is at the block.
    pub fn flip_down(&self, file: &Arc<File>, block: BlockNo) -> Result<bool> {
        self.check_writable()?;
        let _reading = self.readers.enter();
        let place = file.read().map.get(block);
        let Home::Tier(from) = place.home else { return Ok(false) };
        match place.copy.filter(|copy| *copy > from && !self.in_backoff(*copy)) {
            Some(copy) => Ok(self.flip_to_copy(file, block, copy)? == 1),
            None => Ok(false),
        }
    }

    /// Gives up clean copies on a tier until `blocks` places will be free after the next checkpoint. Returns how many were given up.
    pub fn drop_copies(&self, tier: TierId, blocks: u64) -> Result<u64> {
        let mut dropped = 0;
        for id in self.files() {
            if dropped >= blocks || self.space.count(tier, Held::Copy) == 0 {
                break;
            }
            let file = self.file(id)?;
            let candidates: Vec<BlockNo> =
                file.read().map.iter().filter(|(_, place)| place.copy == Some(tier)).map(|(block, _)| block).collect();
            for block in candidates.into_iter().take(usize::try_from(blocks - dropped).unwrap_or(0)) {
                let Some(_claim) = self.claim(id, block) else { continue };
                let _flip = self.gate.read();
                let mut inner = file.write();
                let prior = inner.map.get(block);
                if prior.copy == Some(tier) {
                    self.set_place(id, &mut inner, block, Place { copy: None, ..prior });
                    self.window.lock().push(Applied { file: id, block, prior, pieces: Vec::new(), wrote: None });
                    dropped += 1;
                }
                drop(inner);
                self.list_dirty(&file);
            }
        }
        Ok(dropped)
    }

    /// Brings every block of a file to one tier, coalesced, for `release`: budgets no longer count, only the room that the backing
    /// filesystem has. The volume must not be serving. `progress` hears blocks moved.
    pub fn gather(&self, file: &Arc<File>, to: TierId, progress: &mut dyn FnMut(u64)) -> Result<()> {
        self.space.lift_budgets();
        self.refresh_budgets()?;
        for attempt in 0..4 {
            let away: Vec<BlockNo> = file
                .read()
                .map
                .iter()
                .filter(|(_, place)| place.home.has_bytes() && place.tier() != Some(to))
                .map(|(block, _)| block)
                .collect();
            if away.is_empty() {
                return Ok(());
            }
            if attempt > 0 {
                self.checkpoint()?;
            }
            for block in away {
                // No lock of the file is held over what follows.
                let home = file.read().map.get(block).home;
                progress(match home {
                    Home::Repository => {
                        self.hydrate_to(file, block, RUN_BYTES_MAX / self.block_bytes(), Some(to))?.blocks
                    }
                    _ => self.move_run(file, block, 1, to)?,
                });
            }
        }
        let why = format!("file {} could not be gathered on tier `{}`: no room", file.id(), self.tier_name(to));
        Err(Error::Busy(why))
    }
}

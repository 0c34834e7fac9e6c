//! Looking at a volume: status, and a check of its structures against each other.

use super::blockmap::Home;
use super::space::Held;
use super::status::{LogStatus, TierStatus, VolumeStatus};
use super::{File, Volume};
use crate::error::Result;
use crate::units::{FileId, TierId};
use serde::{Deserialize, Serialize};
use std::sync::Arc;
use std::sync::atomic::Ordering;

/// How bad a finding is.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Severity {
    /// Costs space or time, no data.
    Notice,
    /// Data cannot be read, or are wrong.
    Damage,
}

/// Something that a check found.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Finding {
    pub severity: Severity,
    /// The file concerned, where it is one.
    pub file: Option<FileId>,
    pub what: String,
}

impl Volume {
    pub fn status(&self) -> VolumeStatus {
        let mut counters = self.counters.snapshot();
        let get = |counter: &std::sync::atomic::AtomicU64| counter.load(Ordering::Relaxed);
        let log = &self.log.counters;
        counters.log_groups = get(&log.groups);
        counters.log_written_bytes = get(&log.written_bytes);
        counters.log_payload_bytes = get(&log.payload_bytes);
        counters.log_replaced_bytes = get(&log.replaced_bytes);
        counters.log_group_us = get(&log.commit_us);
        counters.reads_from_payload_cache = get(&log.reads_from_cache);
        counters.reads_from_log = get(&log.reads_from_device);
        let files = self.files.read();
        let files_len = files.len() as u64;
        let (mut extents, mut map_memory, mut change_memory) = (0, 0, 0);
        for file in files.values() {
            let inner = file.read();
            extents += inner.overlay.len() as u64;
            map_memory += inner.map.memory_bytes() as u64;
            change_memory += inner.changes.memory_bytes() as u64;
        }
        drop(files);
        let marks = self.mark_status();
        let degraded = self.degraded.lock();
        VolumeStatus {
            read_only: self.log.failure(),
            degraded: degraded.iter().map(|(subject, (_, why))| format!("{subject}: {why}")).collect(),
            files: files_len,
            tiers: (0..self.tiers.len())
                .filter_map(|tier| u8::try_from(tier).ok())
                .map(|t| self.tier_status(TierId(t)))
                .collect(),
            log: self.log_status(),
            counters,
            overlay_extents: extents,
            map_memory_bytes: map_memory,
            // 24 bytes of entry and a third more for the tree.
            overlay_memory_bytes: extents * 32,
            payload_cache_bytes: self.log.payload_cache_bytes(),
            image_memory_bytes: self.claims.image_bytes(),
            promised_bytes: self.space.promised_blocks() * self.block_bytes(),
            in_repository_bytes: self.bytes_in_repository(),
            rollback: self.rollback_status(),
            state_reserve: self.state.reserve().status(),
            change_memory_bytes: change_memory,
            marks,
        }
    }

    fn tier_status(&self, id: TierId) -> TierStatus {
        let Some(tier) = self.tiers.get(id.index()) else { return TierStatus::default() };
        let space = tier.device.space().unwrap_or_default();
        TierStatus {
            name: tier.name.clone(),
            path: tier.device.path(),
            total_bytes: space.total_bytes,
            available_bytes: space.available_bytes,
            budget_bytes: self.space.budget_blocks(id) * self.block_bytes(),
            used_bytes: self.held_bytes(id, Held::Image)
                + self.held_bytes(id, Held::Copy)
                + self.held_bytes(id, Held::Vacated),
            blocks: self.space.count(id, Held::Image),
            copies: self.space.count(id, Held::Copy),
        }
    }

    fn log_status(&self) -> LogStatus {
        let geometry = self.geometry();
        let (_, in_use) = self.log.segments_in_use();
        let live = self.live.iter().map(|cell| u64::try_from(cell.load(Ordering::Relaxed)).unwrap_or(0)).sum();
        LogStatus {
            size_bytes: geometry.size_bytes(),
            used_bytes: in_use * geometry.segment_bytes,
            live_bytes: live,
            segments: geometry.segments,
            free_segments: geometry.segments.saturating_sub(u32::try_from(in_use).unwrap_or(u32::MAX)),
            durable_lsn: self.log.durable_address(),
            next_lsn: self.log.last_lsn().0,
        }
    }

    /// Compares map, objects and counts. `deep` also reads every block's base and every live log payload.
    pub fn check(&self, deep: bool) -> Result<Vec<Finding>> {
        let mut findings = Vec::new();
        if deep {
            self.forget_read_failures();
        }
        for id in self.files() {
            let file = self.file(id)?;
            self.check_file(&file, deep, &mut findings);
        }
        for objects in &self.objects {
            for id in objects.list()? {
                let known = self.state.file(id)?.is_some() || self.files.read().contains_key(&id);
                if !known {
                    let what =
                        format!("object {} belongs to no file", objects.full(&crate::tier::objects::object_path(id)));
                    findings.push(Finding { severity: Severity::Notice, file: Some(id), what });
                }
            }
        }
        Ok(findings)
    }

    fn check_file(&self, file: &Arc<File>, deep: bool, findings: &mut Vec<Finding>) {
        let _reading = self.readers.enter();
        let (places, extents): (Vec<_>, Vec<_>) = {
            let inner = file.read();
            (inner.map.iter().collect(), inner.overlay.iter().collect())
        };
        let file_id = Some(file.id());
        let mut found = |severity, what: String| findings.push(Finding { severity, file: file_id, what });
        let mut buf = vec![0; usize::try_from(self.block_bytes()).unwrap_or(0)];
        for (block, place) in places {
            let tier = match place.home {
                Home::Tier(tier) => tier,
                Home::Repository if deep && self.source.is_open() => {
                    if let Err(error) = self.read_stored(file, self.block_start(block), &mut buf) {
                        found(Severity::Damage, format!("block {block}: {error}"));
                    }
                    continue;
                }
                Home::Hole | Home::Promised | Home::Repository => continue,
            };
            if tier.index() >= self.tiers.len() {
                found(Severity::Damage, format!("block {block} is said to be on tier {tier}, which does not exist"));
                continue;
            }
            let start = self.block_start(block);
            let result = match (deep, self.objects(tier).and_then(|objects| objects.get(file.id(), false))) {
                (true, Ok(Some(_))) => self.read_base(file, tier, start, &mut buf),
                (_, Ok(None)) => {
                    found(
                        Severity::Damage,
                        format!(
                            "block {block} is said to be on tier `{}`, but the object is missing",
                            self.tier_name(tier)
                        ),
                    );
                    continue;
                }
                (_, other) => other.map(|_| false),
            };
            match result {
                Ok(false) => {}
                Ok(true) => {
                    let tier = self.tier_name(tier);
                    let what = format!(
                        "block {block} could not be read on tier `{tier}`; another tier or the last snapshot has its bytes"
                    );
                    found(Severity::Notice, what);
                }
                Err(error) => found(Severity::Damage, format!("block {block}: {error}")),
            }
        }
        for extent in extents.into_iter().filter(|_| deep) {
            if let super::overlay::Source::Log(position) = extent.source {
                let mut payload = vec![0; usize::try_from(extent.len()).unwrap_or(0)];
                if let Err(error) = self.log.read(position, &mut payload) {
                    found(Severity::Damage, format!("bytes {}..{}: {error}", extent.start, extent.end));
                }
            }
        }
    }

    /// Files that durable state, the log or an object knows but `known` does not, among ids issued before this mount (R12): what an
    /// unclean stop left behind. [`Volume::remove`] frees them. Never what the volume was before a rollback, whose names nobody meets.
    pub fn orphans(&self, known: &std::collections::HashSet<FileId>, limit_before: u64) -> Vec<FileId> {
        let mut ids = self.files();
        for objects in &self.objects {
            ids.extend(objects.list().unwrap_or_default());
        }
        ids.sort_unstable();
        ids.dedup();
        let rollback = self.rollback();
        let is_kept = |id: &FileId| rollback.as_ref().is_some_and(|rollback| rollback.is_from_before(*id));
        ids.retain(|id| id.0 > 0 && id.0 < limit_before && !known.contains(id) && !is_kept(id));
        ids
    }
}

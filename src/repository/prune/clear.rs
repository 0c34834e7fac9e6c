//! What a round leaves behind, and the reserve that lets a prune begin on a full disk.

use super::super::Repository;
use super::super::generations::{Final, Seal};
use super::super::ids::{Generation, LeaseId};
use super::super::lease::{self, GENERATIONS_MAX};
use super::super::root;
use super::super::small::{Kind, io_error};
use super::Round;
use crate::device::OpenMode;
use crate::error::Result;

/// Space that nobody else gets: enough for the lists of a prune.
const RESERVE: &str = "reserve";
const RESERVE_BYTES: u64 = 8 << 20;
/// Of a small disk no more than this share.
const RESERVE_SHARE: u64 = 100;
/// Temporary files older than this many generations belong to nobody.
const TEMPORARY_GENERATIONS: u32 = 2;

impl Round<'_> {
    /// Removes what no longer says anything: lists of earlier rounds, void roots, given-up leases, abandoned files.
    pub(super) fn clear(&self, seal: &Seal, last: &Final) -> Result<()> {
        let device = self.small.device.as_ref();
        let list = |dir: &str| device.list(dir).map_err(|e| io_error(device, "list", dir, e));
        for name in list("gc")? {
            if number(&name).is_some_and(|generation| generation < self.generation) {
                self.remove(&format!("gc/{name}"))?;
            }
        }
        for id in &last.forgotten {
            self.remove(&root::aside(*id))?;
        }
        for id in root::list_void(self.small, seal)? {
            self.remove(&id.path())?;
        }
        let abandoned = |name: &str| {
            number(name).is_some_and(|generation| generation.0 + TEMPORARY_GENERATIONS <= self.generation.0)
        };
        for name in list("tmp")?.iter().filter(|name| abandoned(name)) {
            self.remove(&format!("tmp/{name}"))?;
        }
        for name in list("index")?.iter().filter(|name| name.ends_with(".part") && abandoned(name)) {
            self.remove(&format!("index/{name}"))?;
        }
        self.clear_leases(&list("leases")?)
    }

    fn clear_leases(&self, names: &[String]) -> Result<()> {
        for id in names.iter().filter_map(|name| name.strip_suffix(".fence")?.parse::<LeaseId>().ok()) {
            let Some(held) = self.small.read::<Generation>(Kind::Fence, &lease::fence_path(id))? else { continue };
            if let Some(lease) = self.small.read::<lease::Lease>(Kind::Lease, &lease::path(id))?
                && lease.generation <= self.generation
            {
                self.remove(&lease::path(id))?;
            }
            // A writer that sleeps for longer gives itself up, by rule.
            if held.0 + GENERATIONS_MAX <= self.generation.0 {
                self.remove(&lease::fence_path(id))?;
            }
        }
        Ok(())
    }
}

fn number(name: &str) -> Option<Generation> {
    name.split_once('-')?.0.parse().ok().map(Generation)
}

impl Repository {
    /// Gives the reserve up when there is no room left for a prune's lists.
    pub(super) fn make_room(&self) -> Result<()> {
        let device = self.store.small.device.as_ref();
        let space = device.space().map_err(|e| io_error(device, "ask for the space of", "", e))?;
        let exists = device.exists(RESERVE).map_err(|e| io_error(device, "look for", RESERVE, e))?;
        if exists && space.available_bytes < reserve_bytes(space.total_bytes) {
            // Of two prunes one removes it.
            let _ = device.remove_file(RESERVE);
        }
        Ok(())
    }

    /// Makes the reserve, if there is room for it. That there is none is no failure of what was asked for.
    pub(super) fn keep_reserve(&self) {
        let device = self.store.small.device.as_ref();
        let keep = || {
            let space = device.space()?;
            let bytes = reserve_bytes(space.total_bytes);
            if device.exists(RESERVE)? || space.available_bytes < bytes * 2 {
                return Ok(());
            }
            let file = device.open(RESERVE, OpenMode { create: true, ..OpenMode::default() })?;
            file.allocate(0, bytes)
        };
        if let Err(error) = keep() {
            tracing::debug!("{}: no reserve for prunes: {error}", device.path());
        }
    }
}

fn reserve_bytes(total: u64) -> u64 {
    RESERVE_BYTES.min(total / RESERVE_SHARE).next_multiple_of(4096)
}

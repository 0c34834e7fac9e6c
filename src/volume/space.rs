//! Who holds how much of each tier (I10): images, clean copies, places that wait for their punch, and promises to writers.
//!
//! Counted in blocks. A write into a hole takes a promise against the sum of all tiers before its record is logged, so that a
//! lack of space is told by write(), never by fsync() or by the coalescer.

use super::Tier;
use crate::device::Space;
use crate::units::TierId;
use std::sync::atomic::{AtomicBool, AtomicI64, Ordering};

#[derive(Default)]
struct Use {
    images: AtomicI64,
    copies: AtomicI64,
    vacated: AtomicI64,
    /// What may lie here in all, in blocks; refreshed from the backing filesystem.
    budget: AtomicI64,
}

/// What a block on a tier is counted as.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Held {
    Image,
    Copy,
    Vacated,
}

pub struct SpaceBook {
    block_bytes: u64,
    tiers: Vec<Use>,
    promised: AtomicI64,
    /// Leaving: budgets no longer count, only what the backing filesystems have.
    lifted: AtomicBool,
}

impl SpaceBook {
    pub fn new(tiers: usize, block_bytes: u64) -> SpaceBook {
        SpaceBook {
            block_bytes,
            tiers: (0..tiers).map(|_| Use::default()).collect(),
            promised: AtomicI64::new(0),
            lifted: AtomicBool::new(false),
        }
    }

    /// Budgets do not count any more from the next refresh on.
    pub fn lift_budgets(&self) {
        self.lifted.store(true, Ordering::Relaxed);
    }

    fn cell(&self, tier: TierId, held: Held) -> Option<&AtomicI64> {
        self.tiers.get(tier.index()).map(|tier| match held {
            Held::Image => &tier.images,
            Held::Copy => &tier.copies,
            Held::Vacated => &tier.vacated,
        })
    }

    pub fn add(&self, tier: TierId, held: Held, blocks: i64) {
        if let Some(cell) = self.cell(tier, held) {
            cell.fetch_add(blocks, Ordering::Relaxed);
        }
    }

    pub fn count(&self, tier: TierId, held: Held) -> u64 {
        self.cell(tier, held).map_or(0, |cell| u64::try_from(cell.load(Ordering::Relaxed)).unwrap_or(0))
    }

    pub fn budget_blocks(&self, tier: TierId) -> u64 {
        self.tiers.get(tier.index()).map_or(0, |tier| u64::try_from(tier.budget.load(Ordering::Relaxed)).unwrap_or(0))
    }

    fn held(tier: &Use) -> i64 {
        [&tier.images, &tier.copies, &tier.vacated].iter().map(|cell| cell.load(Ordering::Relaxed)).sum()
    }

    /// Blocks that still fit on a tier; negative when it is over its budget.
    pub fn free_blocks(&self, tier: TierId) -> i64 {
        self.tiers.get(tier.index()).map_or(0, |tier| tier.budget.load(Ordering::Relaxed) - SpaceBook::held(tier))
    }

    /// Blocks that still fit anywhere and are promised to nobody.
    pub fn unpromised_blocks(&self) -> i64 {
        let free: i64 =
            self.tiers.iter().map(|tier| (tier.budget.load(Ordering::Relaxed) - SpaceBook::held(tier)).max(0)).sum();
        free - self.promised.load(Ordering::Relaxed)
    }

    /// Takes a promise; false when there is no room for it.
    pub fn promise(&self, blocks: i64) -> bool {
        self.promised.fetch_add(blocks, Ordering::Relaxed);
        if self.unpromised_blocks() < 0 {
            self.promised.fetch_sub(blocks, Ordering::Relaxed);
            return false;
        }
        true
    }

    /// Replay: the promise was given before the crash.
    pub fn promise_again(&self, blocks: i64) {
        self.promised.fetch_add(blocks, Ordering::Relaxed);
    }

    pub fn unpromise(&self, blocks: i64) {
        self.promised.fetch_sub(blocks, Ordering::Relaxed);
    }

    pub fn promised_blocks(&self) -> u64 {
        u64::try_from(self.promised.load(Ordering::Relaxed)).unwrap_or(0)
    }

    /// Takes the tier's budget from its setting and from what the backing filesystem has left.
    pub fn refresh_budget(&self, id: TierId, tier: &Tier, space: Space) {
        let Some(cell) = self.tiers.get(id.index()) else { return };
        let held = u64::try_from(SpaceBook::held(cell)).unwrap_or(0) * self.block_bytes;
        let backing = (space.available_bytes + held).saturating_sub(tier.reserve_bytes);
        let set = tier.budget_bytes.filter(|_| !self.lifted.load(Ordering::Relaxed));
        let bytes = set.map_or(backing, |budget| budget.min(backing));
        cell.budget.store(i64::try_from(bytes / self.block_bytes).unwrap_or(i64::MAX), Ordering::Relaxed);
    }
}

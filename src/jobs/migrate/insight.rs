//! What the mover tells about its decisions: those that it made, those that it would make now, and what other budgets would change.

use super::Mover;
use super::journal::JournalEntry;
use crate::error::{Error, Result};
use crate::policy::placement::{Plan, Reason};
use crate::policy::whatif::{Expectation, expect, settled};
use crate::units::{BlockNo, FileId, TierId};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// What the next plan would do.
#[derive(Clone, Debug)]
pub struct Preview {
    pub plan: Plan,
    /// Until the next plan is due.
    pub due_in: Duration,
}

/// Expected accesses with other budgets.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct WhatIf {
    /// Predicted accesses per epoch; where there are none, nothing else means anything.
    pub accesses: f64,
    pub budget_bytes: Vec<u64>,
    pub changed_bytes: Vec<u64>,
    /// As blocks lie at this moment.
    pub now: Expectation,
    /// When blocks have settled within the budgets that there are.
    pub settled: Expectation,
    /// When they have within the changed ones.
    pub changed: Expectation,
    /// Share that the fastest tier would serve with so many bytes, the other budgets as changed.
    pub curve: Vec<(u64, f64)>,
}

/// Sizes of the fastest tier on the curve, in eighths of its changed budget.
const CURVE_EIGHTHS: [u64; 8] = [1, 2, 4, 8, 12, 16, 32, 64];

/// The block on the other side of an exchange.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub struct Counterpart {
    pub file: FileId,
    pub block: BlockNo,
    pub heat: f32,
}

impl Mover {
    /// What a plan would do at this moment; nothing is moved or booked.
    pub fn preview(&self) -> Preview {
        let status = self.volume.status();
        let (number, every, due_in) = {
            let outlook = self.outlook.lock();
            (
                outlook.number + 1,
                outlook.every,
                outlook.due.saturating_duration_since(crate::device::clock::monotonic_now()),
            )
        };
        let tiers = self.tier_states(&status);
        Preview { plan: self.ask_policy(number, every, &tiers), due_in }
    }

    /// The latest decisions about any of these files that `wanted` accepts, newest first.
    pub fn decisions(&self, wanted: impl Fn(FileId) -> bool, count: usize) -> Vec<JournalEntry> {
        self.journal.lock().newest(wanted, count)
    }

    /// What the budgets `change` would give; it is told the index and the budget in bytes of each tier. `NotFound` before the first plan.
    pub fn what_if(&self, change: impl Fn(usize, u64) -> u64) -> Result<WhatIf> {
        let budget_bytes: Vec<u64> = self.volume.status().tiers.iter().map(|tier| tier.budget_bytes).collect();
        let changed_bytes: Vec<u64> = budget_bytes.iter().enumerate().map(|(at, bytes)| change(at, *bytes)).collect();
        let block_bytes = self.block_bytes().max(1);
        let outlook = self.outlook.lock();
        if outlook.tiers.len() != budget_bytes.len() {
            return Err(Error::NotFound("nothing has been planned yet: ask again in some seconds".to_owned()));
        }
        let low_watermark = self.settings.placement.low_watermark;
        let in_blocks = |bytes: &[u64]| bytes.iter().map(|bytes| bytes / block_bytes).collect::<Vec<u64>>();
        let with = |bytes: &[u64]| settled(&outlook.ranks, &outlook.tiers, &in_blocks(bytes), low_watermark);
        let heats: Vec<f64> = outlook.tiers.iter().map(|tier| tier.heat).collect();
        let curve = CURVE_EIGHTHS.iter().filter_map(|eighths| {
            let mut bytes = changed_bytes.clone();
            let fastest = bytes.first_mut()?;
            *fastest = (*fastest / 8).saturating_mul(*eighths);
            let size = *fastest;
            Some((size, with(&bytes).shares.first().copied()?))
        });
        Ok(WhatIf {
            accesses: heats.iter().sum(),
            now: expect(&heats, &outlook.tiers),
            settled: with(&budget_bytes),
            changed: with(&changed_bytes),
            curve: curve.collect(),
            budget_bytes,
            changed_bytes,
        })
    }

    /// What a block displaced when it came, or what displaced it: the entry of the same plan that names the same heat.
    pub(super) fn counterpart(&self, history: &[JournalEntry], tier: Option<TierId>) -> Option<Counterpart> {
        let last = history.iter().rfind(|entry| Some(entry.to) == tier && entry.outcome == super::Outcome::Moved)?;
        let found = self.journal.lock().find_in_plan(last.plan, |other| match (last.reason, other.reason) {
            (Reason::Hotter { heat, .. }, Reason::Displaced { by, .. }) => by == heat && other.from == last.to,
            (Reason::Displaced { by, .. }, Reason::Hotter { heat, .. }) => by == heat,
            _ => false,
        })?;
        let heat = match found.reason {
            Reason::Hotter { heat, .. } | Reason::Displaced { heat, .. } => heat,
            _ => 0.0,
        };
        Some(Counterpart { file: found.file, block: found.block, heat })
    }

    /// Seconds until the next plan, and until the plan that may move a block that was moved in plan `moved`.
    pub(super) fn next_review_s(&self, moved: Option<u32>) -> u64 {
        let outlook = self.outlook.lock();
        let due = outlook.due.saturating_duration_since(crate::device::clock::monotonic_now());
        let free_from = moved.map_or(0, |plan| plan + self.settings.placement.residency_plans);
        let further = free_from.saturating_sub(outlook.number + 1);
        (due + outlook.every * further).as_secs()
    }
}

//! The first pass over all blocks: what lies where, how hot it is, and where each tier's cut is.

use super::pin::RESERVES;
use super::{Pin, PlacementSettings, PlacementState, TierOutlook, TierState, blocks_f64, part_of};
use crate::policy::HeatRanks;
use crate::units::TierId;

pub(super) struct Survey {
    pub(super) ranks: HeatRanks,
    /// Per tier, as far as the first pass knows it.
    pub(super) tiers: Vec<TierOutlook>,
    pub(super) reserves: [ReserveUse; RESERVES],
    pub(super) cost_us: f64,
    /// Blocks of the fastest tier that wait for misses to be staged.
    pub(super) staging_left: u64,
}

/// Who lives in a reserve of the fastest tier.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct ReserveUse {
    pub(super) limit_blocks: u64,
    pub(super) blocks_here: u64,
    pub(super) blocks_elsewhere: u64,
}

impl ReserveUse {
    /// Blocks that may still come.
    pub(super) fn left(&self) -> u64 {
        self.limit_blocks.saturating_sub(self.blocks_here).min(self.blocks_elsewhere)
    }
}

impl Survey {
    pub(super) fn take(state: &PlacementState<'_>, settings: &PlacementSettings) -> Survey {
        let mut ranks = HeatRanks::default();
        let outlook = |tier: &TierState| TierOutlook { latency_us: tier.latency_us, ..TierOutlook::default() };
        let mut tiers: Vec<TierOutlook> = state.tiers.iter().map(outlook).collect();
        // Blocks that heat does not place, by the tier that has to hold them.
        let mut fixed = vec![0u64; tiers.len()];
        let fastest_bytes = state.tiers.first().map_or(0, |tier| tier.budget_bytes);
        let limit_blocks = |share| part_of(fastest_bytes, share) / state.block_bytes.max(1);
        let mut reserves = [settings.log_share, settings.catalog_share]
            .map(|share| ReserveUse { limit_blocks: limit_blocks(share), ..ReserveUse::default() });
        let mut cost_us = 0f64;
        let mut staged_blocks = 0u64;
        state.blocks.visit(&mut |run| {
            let Some(here) = tiers.get_mut(run.tier.index()) else { return };
            let heat = f64::from(run.heat.max(0.0)) * blocks_f64(run.count);
            here.blocks += run.count;
            here.sole_blocks += if run.copy.is_none() { run.count } else { 0 };
            here.heat += heat;
            here.pinned_heat += if run.pin == Pin::None { 0.0 } else { heat };
            cost_us += heat * f64::from(here.latency_us);
            match run.pin {
                Pin::None => ranks.add(run.heat, run.count),
                Pin::To(tier) => {
                    if let (Some(fixed), Some(there)) = (fixed.get_mut(tier.index()), tiers.get_mut(tier.index())) {
                        *fixed += run.count;
                        there.pinned_blocks += run.count;
                    }
                }
                Pin::Within(bounds) if !bounds.promoted || (!bounds.demoted && run.tier == TierId::FASTEST) => {
                    fixed[run.tier.index()] += run.count;
                }
                Pin::Within(_) => ranks.add(run.heat, run.count),
                Pin::Staged => staged_blocks += run.count,
                Pin::LogFile | Pin::Catalog => {
                    let Some(reserve) = run.pin.reserve().and_then(|at| reserves.get_mut(at)) else { return };
                    if run.tier == TierId::FASTEST {
                        reserve.blocks_here += run.count;
                    } else {
                        reserve.blocks_elsewhere += run.count;
                        fixed[run.tier.index()] += run.count;
                    }
                }
            }
        });
        for reserve in &reserves {
            if let (Some(fastest), Some(fixed)) = (tiers.first_mut(), fixed.first_mut()) {
                fastest.reserved_blocks += reserve.left();
                *fixed += reserve.blocks_here.min(reserve.limit_blocks) + reserve.left();
            }
        }
        let staging_left = settings.staging_blocks.saturating_sub(staged_blocks);
        if let (Some(fastest), Some(fixed)) = (tiers.first_mut(), fixed.first_mut()) {
            fastest.reserved_blocks += staging_left;
            *fixed += settings.staging_blocks.max(staged_blocks);
        }
        let mut capacity = 0u64;
        for ((outlook, tier), fixed) in tiers.iter_mut().zip(state.tiers).zip(&fixed) {
            let target = part_of(tier.budget_bytes, settings.low_watermark) / state.block_bytes.max(1);
            capacity += target.saturating_sub(*fixed);
            outlook.cut = ranks.cut(capacity);
        }
        Survey { ranks, tiers, reserves, cost_us, staging_left }
    }
}

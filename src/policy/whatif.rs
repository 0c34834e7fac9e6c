//! What other budgets would give: the distribution of recorded heat is a miss-ratio curve, since the hottest blocks that fit a tier are
//! the ones that placement ends up with there.

use super::HeatRanks;
use super::placement::{TierOutlook, part_of};
use serde::{Deserialize, Serialize};

/// Where accesses go, and how long they take on average.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct Expectation {
    /// Share of the accesses that each tier serves, fastest first.
    pub shares: Vec<f64>,
    /// Mean latency of an access, in microseconds.
    pub latency_us: f64,
}

/// From predicted accesses per tier.
pub fn expect(heats: &[f64], tiers: &[TierOutlook]) -> Expectation {
    let all: f64 = heats.iter().sum();
    if all <= 0.0 {
        return Expectation { shares: vec![0.0; heats.len()], latency_us: 0.0 };
    }
    let spent: f64 = heats.iter().zip(tiers).map(|(heat, tier)| heat * f64::from(tier.latency_us)).sum();
    Expectation { shares: heats.iter().map(|heat| heat / all).collect(), latency_us: spent / all }
}

/// Once blocks have settled in budgets of so many blocks. What heat does not place stays where it is.
pub fn settled(ranks: &HeatRanks, tiers: &[TierOutlook], budget_blocks: &[u64], low_watermark: f32) -> Expectation {
    let (mut capacity, mut served) = (0u64, 0f64);
    let last = tiers.len().saturating_sub(1);
    let heats = tiers.iter().zip(budget_blocks).enumerate().map(|(at, (tier, budget))| {
        let fixed = tier.pinned_blocks + tier.reserved_blocks;
        let blocks = part_of(*budget, low_watermark).saturating_sub(fixed);
        capacity = if at == last { u64::MAX } else { capacity.saturating_add(blocks) };
        let up_to_here = ranks.heat_of_hottest(capacity);
        let here = up_to_here - served;
        served = up_to_here;
        here + tier.pinned_heat
    });
    let heats: Vec<f64> = heats.collect();
    expect(&heats, tiers)
}

#[cfg(test)]
mod tests {
    use super::{expect, settled};
    use crate::policy::HeatRanks;
    use crate::policy::placement::TierOutlook;

    #[test]
    fn more_of_the_fast_tier_serves_more() {
        let mut ranks = HeatRanks::default();
        ranks.add(9.0, 10);
        ranks.add(1.0, 90);
        ranks.add(0.0, 1000);
        let tier = |latency_us| TierOutlook { latency_us, ..TierOutlook::default() };
        let tiers = [tier(100.0), tier(1000.0)];
        let small = settled(&ranks, &tiers, &[10, 0], 1.0);
        assert!((small.shares[0] - 0.5).abs() < 0.03 && (small.latency_us - 550.0).abs() < 30.0, "{small:?}");
        let mut before = 0.0;
        for budget in [0, 5, 10, 50, 100, 2000] {
            let found = settled(&ranks, &tiers, &[budget, 0], 1.0);
            assert!(found.shares[0] >= before && (found.shares.iter().sum::<f64>() - 1.0).abs() < 1e-9);
            before = found.shares[0];
        }
        assert!((before - 1.0).abs() < 1e-9);
        let pinned = TierOutlook { pinned_blocks: 10, pinned_heat: 5.0, ..tier(100.0) };
        let found = settled(&ranks, &[pinned, tier(1000.0)], &[10, 0], 1.0);
        assert!((found.shares[0] - 5.0 / 185.0).abs() < 0.005, "{found:?}");
        assert_eq!(expect(&[0.0, 0.0], &tiers).latency_us, 0.0);
    }
}

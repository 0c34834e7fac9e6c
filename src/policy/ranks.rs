//! How hot is hot: the distribution of heat over all blocks, in logarithmic buckets.
//!
//! Sixteen million blocks are neither sorted nor kept: their heats are counted in buckets 4.4 % wide, which is finer than the
//! hysteresis of placement, and a cut through the distribution is a bucket's edge.

/// Buckets per doubling of heat.
const PER_DOUBLING: f32 = 16.0;
/// Heat of the first bucket's lower edge; anything below is as cold as zero.
const LOWEST: f32 = 1.0 / 65_536.0;
/// Thirty-six doublings from [`LOWEST`], and bucket 0 for cold blocks.
const BUCKETS: usize = 36 * 16 + 1;

/// How many blocks have which heat.
#[derive(Clone, Debug)]
pub struct HeatRanks {
    counts: Vec<u64>,
    total: u64,
}

impl Default for HeatRanks {
    fn default() -> Self {
        HeatRanks { counts: vec![0; BUCKETS], total: 0 }
    }
}

impl HeatRanks {
    pub fn add(&mut self, heat: f32, blocks: u64) {
        if let Some(count) = self.counts.get_mut(bucket(heat)) {
            *count += blocks;
            self.total += blocks;
        }
    }

    /// Blocks counted.
    pub fn total(&self) -> u64 {
        self.total
    }

    /// Temperature: the share of blocks that are colder, half of the equally hot ones counted; 0 for blocks without heat.
    pub fn temperature(&self, heat: f32) -> f32 {
        let at = bucket(heat);
        if at == 0 || self.total == 0 {
            return 0.0;
        }
        let colder: u64 = self.counts.iter().take(at).sum();
        let equal = self.counts.get(at).copied().unwrap_or(0);
        share(2 * colder + equal, 2 * self.total)
    }

    /// Heat of the hottest `blocks` together: the middle of each bucket stands for what is in it.
    pub fn heat_of_hottest(&self, blocks: u64) -> f64 {
        let (mut left, mut heat) = (blocks, 0f64);
        for (at, count) in self.counts.iter().enumerate().skip(1).rev() {
            let taken = left.min(*count);
            let middle = f64::from(lower_edge(at)) * f64::from(0.5 / PER_DOUBLING).exp2();
            heat += middle * count_f64(taken);
            left -= taken;
        }
        heat
    }

    /// The heat that a block must reach to be among the hottest `blocks`; 0 when all blocks are. What is as hot as the last of these, within a
    /// bucket's width, reaches it too: of many equals, some belong there, and whoever exchanges blocks asks for a difference anyway.
    pub fn cut(&self, blocks: u64) -> f32 {
        let mut hotter = 0u64;
        for (at, count) in self.counts.iter().enumerate().rev() {
            hotter += count;
            if hotter > blocks {
                return if at == 0 { 0.0 } else { lower_edge(at) };
            }
        }
        0.0
    }
}

#[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss)]
fn bucket(heat: f32) -> usize {
    if heat.is_nan() || heat < LOWEST {
        return 0;
    }
    // A float-to-integer cast saturates, and the value is not negative here.
    let at = ((heat / LOWEST).log2() * PER_DOUBLING) as usize;
    at.min(BUCKETS - 2) + 1
}

fn lower_edge(bucket: usize) -> f32 {
    let steps = u16::try_from(bucket.saturating_sub(1)).unwrap_or(u16::MAX);
    LOWEST * (f32::from(steps) / PER_DOUBLING).exp2()
}

#[allow(clippy::cast_precision_loss)]
fn count_f64(count: u64) -> f64 {
    count as f64
}

/// A ratio for people and ranks: precision beyond 2^-24 does not matter.
#[allow(clippy::cast_precision_loss)]
fn share(part: u64, whole: u64) -> f32 {
    part as f32 / whole.max(1) as f32
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cut_lets_the_asked_for_blocks_pass_and_their_equals() {
        let mut ranks = HeatRanks::default();
        for i in 1..=1000u16 {
            ranks.add(f32::from(i) / 10.0, 1);
        }
        ranks.add(0.0, 5000);
        for wanted in [0u16, 1, 10, 250, 999, 1000] {
            let cut = ranks.cut(u64::from(wanted));
            let passing = (1..=1000u16).filter(|i| f32::from(*i) / 10.0 >= cut).count();
            assert!(passing >= usize::from(wanted), "{passing} pass a cut for {wanted}");
            assert!(passing <= usize::from(wanted) + 50, "{passing} pass a cut for {wanted}");
        }
        assert_eq!(ranks.cut(6000), 0.0);
        assert_eq!(ranks.cut(1001), 0.0, "a tier that takes a cold block has no cut");
    }

    #[test]
    fn temperature_is_a_rank() {
        let mut ranks = HeatRanks::default();
        ranks.add(0.0, 90);
        ranks.add(1.0, 9);
        ranks.add(100.0, 1);
        assert_eq!(ranks.temperature(0.0), 0.0);
        assert!((ranks.temperature(1.0) - 0.945).abs() < 1e-6);
        assert!((ranks.temperature(100.0) - 0.995).abs() < 1e-6);
        assert_eq!(ranks.temperature(f32::NAN), 0.0);
    }

    #[test]
    fn extremes_have_buckets() {
        for heat in [f32::INFINITY, f32::MAX, f32::MIN_POSITIVE, -1.0, LOWEST] {
            assert!(bucket(heat) < BUCKETS);
        }
        for at in 1..BUCKETS {
            assert!((bucket(lower_edge(at) * 1.001) == at) || at == BUCKETS - 1, "{at}");
        }
    }
}

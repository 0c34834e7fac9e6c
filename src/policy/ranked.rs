//! The hottest blocks within a budget: a set of bounded size that follows scores slowly, because what enters must be copied.

/// Limits of a [`RankedSet`]'s changes.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Turnover {
    /// Blocks that may enter per epoch.
    pub blocks_max: usize,
    /// A block displaces another if its score is higher by this share.
    pub hysteresis: f32,
}

impl Turnover {
    /// What heatfs allows: a tenth of a set per epoch (at least one block), for scores higher by 15 %.
    pub fn of(capacity: usize) -> Turnover {
        Turnover { blocks_max: (capacity / 10).max(usize::from(capacity > 0)), hysteresis: 0.15 }
    }
}

/// Members are small numbers: places in a table of blocks.
#[derive(Default)]
pub struct RankedSet {
    member: Vec<bool>,
    members: Vec<u32>,
}

impl RankedSet {
    pub fn contains(&self, block: u32) -> bool {
        self.member.get(place(block)).copied().unwrap_or(false)
    }

    pub fn len(&self) -> usize {
        self.members.len()
    }

    pub fn is_empty(&self) -> bool {
        self.members.is_empty()
    }

    pub fn members(&self) -> &[u32] {
        &self.members
    }

    /// Memory, in bytes.
    pub fn memory_bytes(&self) -> usize {
        self.member.capacity() + self.members.capacity() * size_of::<u32>()
    }

    pub fn remove(&mut self, block: u32) {
        if let Some(member) = self.member.get_mut(place(block)).filter(|member| **member) {
            *member = false;
            self.members.retain(|other| *other != block);
        }
    }

    /// Follows the scores: the coldest members leave where there are more than `capacity`, the hottest others enter free places, and
    /// displace colder members. Scores that are no numbers count as zero. Returns what entered; ties go to the smaller number.
    pub fn follow(
        &mut self,
        scores: &[f32],
        capacity: usize,
        turnover: Turnover,
        may_enter: impl Fn(u32) -> bool,
    ) -> Vec<u32> {
        let score = |block: &u32| scores.get(place(*block)).copied().filter(|score| *score > 0.0).unwrap_or(0.0);
        let hotter = |a: &u32, b: &u32| score(b).total_cmp(&score(a)).then(a.cmp(b));
        if self.members.len() > capacity {
            if capacity > 0 {
                self.members.select_nth_unstable_by(capacity, hotter);
            }
            for gone in self.members.drain(capacity..) {
                self.member[place(gone)] = false;
            }
        }
        if self.member.len() < scores.len() {
            self.member.resize(scores.len(), false);
        }
        let blocks_max = turnover.blocks_max.min(capacity);
        let mut entering: Vec<u32> = (0u32..)
            .zip(scores)
            .filter(|(block, value)| **value > 0.0 && !self.contains(*block) && may_enter(*block))
            .map(|(block, _)| block)
            .collect();
        keep_first(&mut entering, blocks_max, hotter);
        let free = capacity - self.members.len();
        let leaving_max = entering.len().saturating_sub(free).min(self.members.len());
        let mut leaving = self.members.clone();
        keep_first(&mut leaving, leaving_max, |a, b| hotter(b, a));
        let mut leaving = leaving.into_iter();
        let mut entered = Vec::new();
        let mut free = free;
        for block in entering {
            if free > 0 {
                free -= 1;
            } else {
                let Some(coldest) = leaving.next() else { break };
                if score(&block) <= score(&coldest) * (1.0 + turnover.hysteresis) {
                    break;
                }
                self.member[place(coldest)] = false;
            }
            entered.push(block);
        }
        let member = &self.member;
        self.members.retain(|block| member[place(*block)]);
        for block in &entered {
            self.member[place(*block)] = true;
        }
        self.members.extend(&entered);
        entered
    }
}

/// Sorts, and keeps the first `count`.
fn keep_first(blocks: &mut Vec<u32>, count: usize, order: impl Fn(&u32, &u32) -> std::cmp::Ordering) {
    if count < blocks.len() {
        if count > 0 {
            blocks.select_nth_unstable_by(count - 1, &order);
        }
        blocks.truncate(count);
    }
    blocks.sort_unstable_by(order);
}

/// Where a member stands in the table of blocks.
pub(crate) fn place(block: u32) -> usize {
    usize::try_from(block).unwrap_or(usize::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    const LOOSE: Turnover = Turnover { blocks_max: 100, hysteresis: 0.15 };

    #[test]
    fn only_the_budget_moves_and_only_for_a_clear_gain() {
        let mut set = RankedSet::default();
        let entered = set.follow(&[1.0, 5.0, 3.0, 0.0, 2.0], 3, Turnover { blocks_max: 2, hysteresis: 0.15 }, |_| true);
        assert_eq!(entered, [1, 2]);
        assert_eq!(set.follow(&[1.0, 5.0, 3.0, 0.0, 2.0], 3, LOOSE, |_| true), [4]);
        assert_eq!(set.follow(&[2.2, 5.0, 3.0, 0.0, 2.0], 3, LOOSE, |_| true), [0u32; 0]);
        assert_eq!(set.follow(&[2.4, 5.0, 3.0, 0.0, 2.0], 3, LOOSE, |_| true), [0]);
        assert!(!set.contains(4) && set.len() == 3);
    }

    #[test]
    fn shrinking_drops_the_coldest_and_odd_scores_never_enter() {
        let mut set = RankedSet::default();
        set.follow(&[1.0, 2.0, 3.0, f32::NAN, -1.0], 5, LOOSE, |block| block != 1);
        assert_eq!(set.members().len(), 2);
        set.follow(&[1.0, 2.0, 3.0], 1, LOOSE, |_| true);
        assert_eq!(set.members(), [2]);
        set.follow(&[1.0, 2.0, 3.0], 0, LOOSE, |_| true);
        assert!(set.is_empty());
        set.remove(9);
    }
}

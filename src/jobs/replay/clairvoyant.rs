//! Orders that know the future, to measure against: nobody can do much better within the same budget.

use super::epochs::EPOCHS;
use crate::policy::ranked::place;

/// What a block is worth at the end of an epoch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Accesses of the next epoch.
    Next,
    /// Accesses to come, halved every 4 epochs.
    Soon,
    /// Accesses to come, halved every 16 epochs.
    Later,
}

impl Order {
    pub(super) const ALL: [Order; 3] = [Order::Next, Order::Soon, Order::Later];

    fn factor(self) -> f32 {
        match self {
            Order::Next => 0.0,
            Order::Soon => 0.5f32.powf(1.0 / 4.0),
            Order::Later => 0.5f32.powf(1.0 / 16.0),
        }
    }

    pub(super) fn index(self) -> usize {
        match self {
            Order::Next => 0,
            Order::Soon => 1,
            Order::Later => 2,
        }
    }
}

/// What each block is worth at the end of each epoch, from the counts of all epochs.
pub(super) fn futures(order: Order, counts: &[Vec<(u32, f32)>], blocks: usize) -> Vec<Vec<f32>> {
    let mut worth = vec![0.0f32; blocks];
    let mut futures = vec![Vec::new(); EPOCHS];
    for (number, future) in futures.iter_mut().enumerate().rev() {
        worth.iter_mut().for_each(|worth| *worth *= order.factor());
        for (block, count) in counts.get(number + 1).into_iter().flatten() {
            if let Some(worth) = worth.get_mut(place(*block)) {
                *worth += count;
            }
        }
        future.clone_from(&worth);
    }
    futures
}

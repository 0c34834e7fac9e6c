//! Leases and roots as of one moment.
//!
//! What protects an object may move: from a lease to its root, from a root to the lease of a child, while the root is deleted. Who reads one list
//! after the other may miss it each time. Names in both lists are used once and never again: if they are the same before and after reading, then
//! all of them were there together at a moment in between.

use super::super::ids::{Generation, LeaseId, SnapshotId};
use super::super::lease::{self, Lease};
use super::super::root::{self, Root};
use super::super::small::SmallObjects;
use crate::error::{Error, Result};

/// More changes than this while looking are no accident.
const TRIES_MAX: usize = 1000;

pub(super) struct Survey {
    /// With each, whether it is fenced.
    pub leases: Vec<(Lease, bool)>,
    /// Those put aside included.
    pub roots: Vec<Root>,
}

impl Survey {
    pub(super) fn take(small: &SmallObjects) -> Result<Survey> {
        let mut before = Survey::read(small)?;
        for _ in 0..TRIES_MAX {
            let after = Survey::read(small)?;
            if before.names() == after.names() {
                return Ok(after);
            }
            before = after;
        }
        Err(Error::Busy("snapshots come and go faster than a prune can list them".to_owned()))
    }

    fn read(small: &SmallObjects) -> Result<Survey> {
        Ok(Survey { leases: lease::list(small)?, roots: root::list_with_aside(small)? })
    }

    /// A lease that was renewed, or says of more that it is borrowed, is another one here.
    fn names(&self) -> (Vec<(LeaseId, Generation, usize)>, Vec<SnapshotId>) {
        let leases = self.leases.iter().map(|(lease, _)| (lease.id, lease.generation, lease.borrowed.len())).collect();
        (leases, self.roots.iter().map(|root| root.id).collect())
    }

    /// The writers that a prune of this generation has not given up.
    pub(super) fn living(&self, generation: Generation) -> Vec<Lease> {
        let living = self.leases.iter().filter(|(lease, fenced)| !fenced || lease.generation > generation);
        living.map(|(lease, _)| lease.clone()).collect()
    }
}

//! Leases and roots, as good as of one moment.
//!
//! What protects an object may move: from a lease to its root, and from a root to the lease of a child, before the root is deleted. But a
//! root that is deleted during a round is only put aside until the next, and listed here all the same. So whatever was a root when the leases were
//! listed is found among the roots afterwards, and what was a lease is found among the leases. Only what had been put aside before
//! the generation was closed is left out: its children had their leases by then.

use super::super::ids::{Generation, SnapshotId};
use super::super::lease::{self, Lease};
use super::super::root::{self, Root};
use super::super::small::SmallObjects;
use crate::error::Result;
use std::collections::BTreeSet;

pub(super) struct Survey {
    /// With each, whether it is fenced.
    pub leases: Vec<(Lease, bool)>,
    pub roots: Vec<Root>,
}

impl Survey {
    pub(super) fn take(small: &SmallObjects, forgotten: &BTreeSet<SnapshotId>) -> Result<Survey> {
        let leases = lease::list(small)?;
        let mut roots = root::list_with_aside(small)?;
        roots.retain(|root| !forgotten.contains(&root.id));
        Ok(Survey { leases, roots })
    }

    /// The writers that a prune of this generation has not given up. One that renewed its lease before it could see the fence goes on.
    pub(super) fn living(&self, generation: Generation) -> Vec<Lease> {
        let living = self.leases.iter().filter(|(lease, fenced)| !fenced || lease.generation > generation);
        living.map(|(lease, _)| lease.clone()).collect()
    }
}

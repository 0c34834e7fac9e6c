//! What a repository holds, in numbers.

use super::index::list_packs;
use super::small::io_error;
use super::{Repository, read_only};
use crate::error::Result;
use serde::Serialize;
use std::io;

#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize)]
pub struct RepositoryStats {
    pub snapshots: u64,
    pub refs: u64,
    pub writers: u64,
    pub packs: u64,
    pub pack_bytes: u64,
    /// Of these, what lies in the archive alone.
    pub archived_packs: u64,
    pub archived_bytes: u64,
    pub index_segments: u64,
    pub index_bytes: u64,
    /// Entries of the index; the same object may be listed twice.
    pub index_entries: u64,
    pub index_memory_bytes: u64,
    /// Sum of the sizes of the files of all snapshots.
    pub logical_bytes: u64,
}

impl Repository {
    /// Costs a look at every pack's size.
    pub fn stats(&self) -> Result<RepositoryStats> {
        let small = &self.store.small;
        let device = small.device.as_ref();
        let roots = self.snapshots()?;
        let view = self.store.index.refresh(small)?;
        let packs = list_packs(device)?;
        let mut stats = RepositoryStats {
            snapshots: roots.len() as u64,
            refs: self.refs()?.len() as u64,
            writers: self.leases()?.len() as u64,
            packs: packs.len() as u64,
            index_segments: view.segments.len() as u64,
            index_bytes: view.segments.iter().map(|segment| segment.bytes).sum(),
            index_entries: view.segments.iter().map(|segment| segment.entries).sum(),
            index_memory_bytes: view.segments.iter().map(|segment| segment.memory_bytes() as u64).sum(),
            logical_bytes: roots.iter().map(|root| root.stats.logical_bytes).sum(),
            ..RepositoryStats::default()
        };
        let archived = self.archived_packs()?;
        for pack in packs {
            match device.open(&pack.path(), read_only()).and_then(|file| file.len()) {
                Ok(bytes) => {
                    stats.pack_bytes += bytes;
                    if archived.contains(&pack) {
                        stats.archived_packs += 1;
                        stats.archived_bytes += bytes;
                    }
                }
                Err(e) if e.kind() == io::ErrorKind::NotFound => stats.packs -= 1,
                Err(e) => return Err(io_error(device, "look at", &pack.path(), e)),
            }
        }
        Ok(stats)
    }
}

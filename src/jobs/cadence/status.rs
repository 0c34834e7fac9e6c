//! What the keeper of snapshots tells about itself: plain structs for `status`, `snapshot schedule` and the metrics.

use crate::units::WallNs;
use serde::{Deserialize, Serialize};

/// Snapshots, retention, prune and verification of a running volume. Counters begin with the daemon.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct SnapshotsStatus {
    /// None: no snapshots are taken.
    pub repository: Option<String>,
    /// The calendar's expressions; empty: only when somebody asks.
    pub schedule: Vec<String>,
    pub running: bool,
    /// Why a snapshot that is taken is not stored yet; None: there is none, or it is being stored for the first time.
    pub unfinished: Option<String>,
    pub next_ns: Option<WallNs>,
    pub taken: u64,
    pub failed: u64,
    /// Of this volume, whoever took it and whenever; None: there is none.
    pub last_success_ns: Option<WallNs>,
    pub last_success: Option<String>,
    pub last_failure_ns: Option<WallNs>,
    pub last_failure: Option<String>,
    /// Failures of scheduled snapshots since the last that succeeded.
    pub failures_in_row: u32,
    pub last_elapsed_ms: u64,
    pub elapsed_ms: u64,
    /// Bytes read of the volume; of these, what was new to the repository; and what was added to it.
    pub read_bytes: u64,
    pub new_bytes: u64,
    pub stored_bytes: u64,
    /// Pages whose checksum was verified.
    pub checked_pages: u64,
    /// Pages with a wrong checksum in the latest snapshot.
    pub bad_pages: u64,
    pub first_bad_page: Option<String>,
    /// Snapshots deleted because no rule keeps them.
    pub deleted: u64,
    pub prunes: u64,
    pub prune_failures: u64,
    pub last_prune_error: Option<String>,
    pub pruned_bytes: u64,
    pub verified_packs: u64,
    pub verified_bytes: u64,
    pub verify_failures: u64,
    pub last_verify_error: Option<String>,
    pub last_verified_ns: Option<WallNs>,
    /// Packs in which damage was found when they were verified last.
    pub damaged_packs: u64,
    pub damage: Option<String>,
    /// Packs and index, as of the last look; None: not looked yet.
    pub repository_bytes: Option<u64>,
    pub repository_snapshots: u64,
}

impl SnapshotsStatus {
    /// Why the volume is not healthy; empty when it is.
    pub fn complaints(&self) -> Vec<String> {
        let mut found = Vec::new();
        if self.failures_in_row > 0 {
            let (times, why) = (self.failures_in_row, self.last_failure.as_deref().unwrap_or("it is not known why"));
            found.push(format!("the scheduled snapshot failed ({times} in a row): {why}"));
        }
        found.extend(self.unfinished.clone());
        if self.bad_pages > 0 {
            let (count, first) = (self.bad_pages, self.first_bad_page.as_deref().unwrap_or("?"));
            found.push(format!(
                "{count} pages have a wrong checksum, the first is {first} (see `heatfs snapshot show latest`)"
            ));
        }
        if self.damaged_packs > 0 {
            let first = self.damage.as_deref().unwrap_or("see `heatfs repo check`");
            found.push(format!("the repository is damaged in {} packs: {first}", self.damaged_packs));
        }
        if let Some(error) = &self.last_prune_error {
            found.push(format!("the repository is not pruned: {error}"));
        }
        if let Some(error) = &self.last_verify_error {
            found.push(format!("the repository is not verified: {error}"));
        }
        found
    }
}

#[cfg(test)]
mod tests {
    use super::SnapshotsStatus;

    #[test]
    fn each_trouble_is_a_complaint_of_its_own() {
        let mut status = SnapshotsStatus { taken: 3, failed: 1, ..SnapshotsStatus::default() };
        assert!(status.complaints().is_empty(), "a failure that somebody asked for was told to them");
        status.failures_in_row = 2;
        status.last_failure = Some("the disk is gone".to_owned());
        status.bad_pages = 1;
        status.damaged_packs = 1;
        status.last_prune_error = Some("full".to_owned());
        status.last_verify_error = Some("gone".to_owned());
        let found = status.complaints();
        assert_eq!(found.len(), 5);
        assert!(found[0].contains("2 in a row") && found[0].contains("the disk is gone"), "{found:?}");
    }
}

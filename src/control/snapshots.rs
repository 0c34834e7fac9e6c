//! Requests about snapshots.

use super::errands::Errands;
use super::protocol::{JobReply, ScheduleReply, SnapshotRequest};
use crate::daemon::Served;
use crate::device::clock::wall_now;
use crate::error::{Error, Result};
use crate::jobs::cadence::Reason;
use crate::jobs::snapshot::{SnapshotInfo, Tally, check_labels};
use std::sync::Arc;

/// Moments to come that are told.
const UPCOMING: usize = 5;

/// Starts taking one; the job's result is a [`SnapshotInfo`].
pub(super) fn create(served: &Arc<Served>, errands: &Arc<Errands>, request: SnapshotRequest) -> Result<JobReply> {
    check_labels(&request.labels)?;
    let keeper = Arc::clone(&served.keeper);
    // Before the job: what is wrong with the repository is the answer to this request.
    let repository = keeper.repository()?;
    if keeper.status().running {
        return Err(Error::Busy("a snapshot is being taken already".to_owned()));
    }
    let tally = Arc::new(Tally::default());
    let asked = Arc::clone(&tally);
    let work = Box::new(move || {
        let root = keeper.take(&repository, Reason::Request, request.labels, &tally)?;
        serde_json::to_value(SnapshotInfo::of(&root))
            .map(Some)
            .map_err(|error| Error::Invalid(format!("snapshot: {error}")))
    });
    errands.start("snapshot", Box::new(move || asked.remaining_bytes()), work)
}

/// What is to come, and how it went so far.
pub(super) fn schedule(served: &Served) -> ScheduleReply {
    let settings = &served.keeper.settings;
    let status = served.keeper.status();
    // The next one may be in the past: then it is being tried.
    let upcoming = match status.next_ns {
        Some(next) => {
            let later = settings.calendar.upcoming(next.max(wall_now()), UPCOMING - 1);
            [vec![next], later].concat()
        }
        None => settings.calendar.upcoming(wall_now(), UPCOMING),
    };
    ScheduleReply {
        volume: served.keeper.volume_id().to_string(),
        status,
        upcoming_ns: upcoming,
        keep: settings.keep,
        prune_every_s: settings.prune_every.as_secs(),
        verify_bytes_per_day: settings.verify_bytes_per_day,
    }
}

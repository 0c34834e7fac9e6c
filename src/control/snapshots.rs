//! Requests about snapshots.

use super::errands::Errands;
use super::protocol::{JobReply, SnapshotRequest};
use crate::daemon::Served;
use crate::error::{Error, Result};
use crate::jobs::pace::Pace;
use crate::jobs::snapshot::{SnapshotInfo, Source, Tally, check_labels, open_repository, take};
use std::sync::Arc;

/// Starts taking one; the job's result is a [`SnapshotInfo`].
pub(super) fn create(served: &Arc<Served>, errands: &Arc<Errands>, request: SnapshotRequest) -> Result<JobReply> {
    let settings = served.settings.snapshot.clone();
    let Some(path) = settings.repository.clone() else {
        return Err(Error::Invalid(
            "this volume has no repository: set `snapshot.repository` in its settings".to_owned(),
        ));
    };
    check_labels(&request.labels)?;
    // Before the job: what is wrong with the repository is the answer to this request.
    let repository = open_repository(&path, settings.key_file.as_deref())?;
    served.volume.set_staging_limit(settings.staging_bytes);
    let (served, tally) = (Arc::clone(served), Arc::new(Tally::default()));
    let asked = Arc::clone(&tally);
    let work = Box::new(move || {
        let source = Source {
            volume: &served.volume,
            names: &served.namespace,
            repository: &repository,
            streams: settings.streams,
            pace: Pace::new(Arc::clone(&served.volume), settings.busy_share, settings.bytes_per_second),
        };
        let root = take(&source, request.labels, &tally)?;
        tracing::info!(id = %root.id, stored_bytes = root.stats.stored_bytes, "snapshot");
        serde_json::to_value(SnapshotInfo::of(&root))
            .map(Some)
            .map_err(|error| Error::Invalid(format!("snapshot: {error}")))
    });
    errands.start("snapshot", Box::new(move || asked.remaining_bytes()), work)
}

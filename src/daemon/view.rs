//! A snapshot shown at a directory, until somebody wants it gone. Like the daemon of a volume, without a volume.

use super::holders::{describe, holders, mount_at};
use super::served::Event;
use super::{mountpoint, signals};
use crate::error::{Error, Result};
use crate::fuse::{Mounted, mount_snapshot};
use crate::jobs::shown::Held;
use crate::repository::{Repository, SnapshotId};
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// How often a mount that is to go and is in use is looked at.
const RETRY: Duration = Duration::from_secs(1);

/// A mounted snapshot.
pub struct View {
    mounted: Arc<Mounted>,
    events: Receiver<Event>,
    /// As long as it is shown the snapshot is not deleted.
    _held: Option<Held>,
}

impl View {
    /// Mounts. To be called before any other thread exists (signals). Errors: `Busy` for a directory that is not empty or mounted already,
    /// `Invalid` for one that is none or lies in the repository, `NotFound` for the snapshot.
    pub fn open(repository: Repository, id: SnapshotId, point: &Path) -> Result<View> {
        let (events_in, events) = unbounded();
        signals::watch(events_in.clone())?;
        let point = prepared(&repository, point)?;
        let repository = Arc::new(repository);
        let held = Held::take(&repository, id, &point)?;
        let mounted = Arc::new(mount_snapshot(repository, id, &point)?);
        let waiting = Arc::clone(&mounted);
        std::thread::Builder::new()
            .name("unmounted".to_owned())
            .spawn(move || {
                waiting.wait();
                // Nobody listens when the view is through: then it does not matter.
                let _ = events_in.send(Event::Unmounted);
            })
            .map_err(|error| Error::io("starting thread for", point.display().to_string(), error))?;
        Ok(View { mounted, events, _held: held })
    }

    pub fn mountpoint(&self) -> &Path {
        self.mounted.mountpoint()
    }

    /// Until it is unmounted, by somebody or by a signal. While it is in use a signal waits, and a second one takes it away from its users: they only
    /// read.
    pub fn serve(&self) -> Result<()> {
        let mut stopping = false;
        loop {
            let event = match stopping {
                true => self.events.recv_timeout(RETRY),
                false => self.events.recv().map_err(|_| RecvTimeoutError::Disconnected),
            };
            match event {
                Ok(Event::Unmounted) | Err(RecvTimeoutError::Disconnected) => return Ok(()),
                Ok(Event::Stop { .. }) if stopping => return self.mounted.force_unmount(),
                Ok(Event::Stop { .. }) | Err(RecvTimeoutError::Timeout) => {
                    let left = self.mounted.try_unmount();
                    match left {
                        Ok(()) => self.mounted.wait(),
                        Err(error) if !stopping => {
                            tracing::warn!("{}; once more, and it is taken away", self.waiting_for(&error));
                        }
                        Err(_) => {}
                    }
                    stopping = true;
                }
            }
        }
    }

    fn waiting_for(&self, error: &Error) -> String {
        match mount_at(self.mountpoint()).map(|mount| mount.map_or_else(Vec::new, |mount| holders(&mount))) {
            Ok(holding) if !holding.is_empty() => format!("waiting for {}", describe(&holding)),
            _ => format!("waiting: {error}"),
        }
    }
}

/// The directory, empty and with nothing mounted on it. What a killed process left mounted is cleared.
fn prepared(repository: &Repository, point: &Path) -> Result<PathBuf> {
    let io = |action, error| Error::io(action, point.display().to_string(), error);
    let absolute = std::path::absolute(point).map_err(|error| io("path of mountpoint", error))?;
    // A dead mount has no canonical path.
    let point = absolute.canonicalize().unwrap_or(absolute);
    mountpoint::clear(&point)?;
    let stored = Path::new(&repository.path()).canonicalize().map_err(|error| io("find repository for", error))?;
    if point.starts_with(&stored) {
        return Err(Error::Invalid(format!("mountpoint {}: it lies in the repository", point.display())));
    }
    if point.read_dir().map_err(|error| io("list", error))?.next().is_some() {
        return Err(Error::Busy(format!("mountpoint {}: it is not empty", point.display())));
    }
    Ok(point)
}

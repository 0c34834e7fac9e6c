//! What holds a snapshot that is shown at a directory: a ref, as long as it is shown, so that nobody deletes what somebody reads.
//!
//! A process that was killed leaves its ref behind. Its name says of which host, which start of that host, and which process it is, so whoever shows or
//! deletes snapshots there clears it away. What another host left, `snapshot unpin --force` drops.

use crate::device::host::{self, Host};
use crate::error::Result;
use crate::repository::{RefKind, Repository, SnapshotId};
use std::path::Path;
use std::sync::Arc;

const PREFIX: &str = "mount-";

/// Drops its ref with itself.
pub struct Held {
    repository: Arc<Repository>,
    name: String,
}

impl Held {
    /// None, with a word in the journal: the repository cannot be written, and then nothing is deleted through this door either. Errors: `NotFound`
    /// for the snapshot.
    pub fn take(repository: &Arc<Repository>, id: SnapshotId, point: &Path) -> Result<Option<Held>> {
        repository.snapshot(id)?;
        clear_abandoned(repository);
        let Some(host) = host::this() else { return Ok(None) };
        let process = std::process::id();
        let name = name_of(&host, process);
        let note = format!("shown at {} by process {process} of {}", point.display(), host.name);
        match repository.set_ref(&name, RefKind::InUse, id, &note) {
            Ok(()) => Ok(Some(Held { repository: Arc::clone(repository), name })),
            Err(error) => {
                tracing::warn!("nothing keeps snapshot {id} from being deleted while it is shown: {error}");
                Ok(None)
            }
        }
    }
}

impl Drop for Held {
    fn drop(&mut self) {
        if let Err(error) = self.repository.drop_ref(&self.name) {
            tracing::warn!("`heatfs snapshot unpin --force {}` lets the snapshot go: {error}", self.name);
        }
    }
}

fn name_of(host: &Host, process: u32) -> String {
    format!("{}{}-{process}", prefix_of(host), host.start)
}

/// Of all refs of this host. Refs allow fewer characters than names of hosts.
fn prefix_of(host: &Host) -> String {
    let plain = |c: char| if c.is_ascii_alphanumeric() || ".-".contains(c) { c } else { '_' };
    format!("{PREFIX}{}:{}:", host.name.chars().take(40).map(plain).collect::<String>(), host.processes)
}

/// Drops the refs of processes of this host that are gone. What cannot be dropped stays: it keeps too much, never too little.
pub fn clear_abandoned(repository: &Repository) {
    let (Some(host), Ok(refs)) = (host::this(), repository.refs()) else { return };
    for name in refs.into_iter().filter(|named| named.kind == RefKind::InUse).map(|named| named.name) {
        if name.strip_prefix(&prefix_of(&host)).is_some_and(|rest| is_abandoned(&host, rest)) {
            repository.drop_ref(&name).ok();
        }
    }
}

/// `rest`: of a ref's name, after the host.
fn is_abandoned(host: &Host, rest: &str) -> bool {
    let Some((start, process)) = rest.rsplit_once('-') else { return false };
    start != host.start || process.parse().is_ok_and(|process| !host::process_lives(process))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_is_gone_is_abandoned() {
        let host = Host { name: "db 1".to_owned(), start: "0a1b2c3d".to_owned(), processes: 7 };
        let own = std::process::id();
        assert_eq!(name_of(&host, own), format!("mount-db_1:7:0a1b2c3d-{own}"));
        assert!(!is_abandoned(&host, &format!("0a1b2c3d-{own}")));
        assert!(is_abandoned(&host, "0a1b2c3d-4294967295"), "there is no such process");
        assert!(is_abandoned(&host, &format!("ffffffff-{own}")), "the host was started again");
        assert!(!is_abandoned(&host, "somebody") && !is_abandoned(&host, "0a1b2c3d-else"), "no name of ours");
    }
}

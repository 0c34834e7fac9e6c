//! The root of a snapshot: the one object whose name makes everything below it exist.

use super::generations;
use super::ids::{Generation, ObjectRef, PackId, SnapshotId};
use super::small::{Kind, SmallObjects, io_error};
use crate::error::{Error, Result};
use crate::units::{Lsn, WallNs};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use uuid::Uuid;

/// What the volume's bytes are fit for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum Consistency {
    /// As after a power cut: the database recovers from its own log.
    Crash,
    /// The database took part (backup mode); its label is stored with the snapshot.
    App,
}

/// What the taker of a snapshot says about it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct SnapshotMeta {
    /// The marker's place in the volume's log.
    pub lsn: Lsn,
    /// Of the volume, for finding what changed since.
    pub epoch: u64,
    pub taken: WallNs,
    pub consistency: Consistency,
    pub labels: BTreeMap<String, String>,
    /// What the database said when its backup mode ended; empty: it took no part. The repository does not look into it (`jobs::hooks` does).
    pub backup_label: Vec<u8>,
}

/// Sizes of a snapshot and of the work to store it.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct SnapshotStats {
    pub files: u64,
    pub names: u64,
    /// Sum of the sizes of all files.
    pub logical_bytes: u64,
    /// Pages and slots given to the writer.
    pub given_pages: u64,
    pub given_bytes: u64,
    /// Of these, what was neither zero nor known.
    pub new_pages: u64,
    pub new_raw_bytes: u64,
    /// Bytes of all files that this snapshot added to the repository.
    pub stored_bytes: u64,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Root {
    pub id: SnapshotId,
    pub generation: Generation,
    pub volume: Uuid,
    pub parent: Option<SnapshotId>,
    pub meta: SnapshotMeta,
    pub stats: SnapshotStats,
    /// Table of names.
    pub names: Option<ObjectRef>,
    /// Table of files.
    pub files: Option<ObjectRef>,
    /// Packs that the writer found objects in by the index, rather than in its parent or its own packs.
    pub borrowed: Vec<PackId>,
}

/// Ends the name of a root that is about to be deleted.
const ASIDE: &str = ".deleting";

/// Where a root lies that is about to be deleted.
pub fn aside(id: SnapshotId) -> String {
    format!("{}{ASIDE}", id.path())
}

/// Roots that are about to be deleted.
pub fn put_aside(small: &SmallObjects) -> Result<Vec<SnapshotId>> {
    Ok(names(small)?.iter().filter_map(|name| name.strip_suffix(ASIDE)?.parse().ok()).collect())
}

fn names(small: &SmallObjects) -> Result<Vec<String>> {
    let device = small.device.as_ref();
    device.list("snapshots").map_err(|e| io_error(device, "list", "snapshots", e))
}

/// All roots that count, and those put aside that would if they came back; for prune.
pub fn list_with_aside(small: &SmallObjects) -> Result<Vec<Root>> {
    let id = |name: &String| name.strip_suffix(ASIDE).unwrap_or(name).parse::<SnapshotId>().ok();
    let mut ids: Vec<SnapshotId> = names(small)?.iter().filter_map(id).collect();
    ids.dedup();
    let mut roots = Vec::new();
    for id in ids {
        // It may be put aside, or back, at this very moment.
        let (path, aside) = (id.path(), aside(id));
        for path in [&path, &aside, &path] {
            if let Some(root) = small.read::<Root>(Kind::Root, path)? {
                roots.push(root);
                break;
            }
        }
    }
    retain_counting(small, roots)
}

/// Roots that do not count: their writers came too late.
pub fn list_void(small: &SmallObjects, seal: &generations::Seal) -> Result<Vec<SnapshotId>> {
    let mut void = Vec::new();
    for id in names(small)?.iter().filter_map(|name| name.parse::<SnapshotId>().ok()) {
        let root = small.read::<Root>(Kind::Root, &id.path())?;
        void.extend(root.filter(|root| !counts(root, Some(seal))).map(|_| id));
    }
    Ok(void)
}

/// All roots that count, by name, oldest first.
pub fn list(small: &SmallObjects) -> Result<Vec<Root>> {
    let ids = names(small)?.into_iter().filter_map(|name| name.parse::<SnapshotId>().ok());
    let mut roots = Vec::new();
    for id in ids {
        roots.extend(small.read::<Root>(Kind::Root, &id.path())?);
    }
    retain_counting(small, roots)
}

/// The roots were read first: a seal that comes later lists all of these that were ever told to count.
fn retain_counting(small: &SmallObjects, mut roots: Vec<Root>) -> Result<Vec<Root>> {
    let seal = generations::last_seal(small)?;
    roots.retain(|root| counts(root, seal.as_ref()));
    Ok(roots)
}

/// A root of a sealed generation counts only if the seal lists it.
pub fn counts(root: &Root, seal: Option<&generations::Seal>) -> bool {
    seal.is_none_or(|seal| root.generation > seal.generation || seal.roots.contains(&root.id))
}

/// A root that counts.
pub fn find(small: &SmallObjects, id: SnapshotId) -> Result<Root> {
    let missing = || Error::NotFound(format!("snapshot {id}: there is none in {}", small.device.path()));
    let root: Root = small.read(Kind::Root, &id.path())?.ok_or_else(missing)?;
    if root.id != id {
        let why = format!("the root is that of snapshot {}", root.id);
        return Err(Error::Corrupt { what: "snapshot root", path: id.path(), offset: 0, why });
    }
    let seal = generations::last_seal(small)?;
    if counts(&root, seal.as_ref()) { Ok(root) } else { Err(missing()) }
}

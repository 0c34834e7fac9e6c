//! Leases: what protects the work of a writer from prune until its root is there.
//!
//! `leases/<id>` says in which generation the writer works, which trees it builds upon and which packs it borrowed from. It counts
//! from the moment at which the writer, after writing it, saw that its generation was not yet closed: then the close came later, and so did
//! the prune's look at the leases. A prune fences a writer that it gives up by creating `leases/<id>.fence`, looks at
//! the lease again, and gives up only what is still of an old generation; a writer that renews its lease looks for the fence after that. So
//! at most one of them goes on. No clock is asked.

use super::generations::Generations;
use super::ids::{Generation, LeaseId, ObjectRef, PackId, SnapshotId};
use super::small::{Kind, SmallObjects, io_error};
use crate::error::{Error, Result};
use crate::units::WallNs;
use serde::{Deserialize, Serialize};
use uuid::Uuid;

/// A writer that missed this many generations is given up by rule: fences older than that are cleared away.
pub const GENERATIONS_MAX: u32 = 4;

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Lease {
    pub id: LeaseId,
    pub generation: Generation,
    pub volume: Uuid,
    /// When the writer began; for people.
    pub began: WallNs,
    pub parent: Option<SnapshotId>,
    /// Tables of the parent, which stay even if the parent's root is deleted meanwhile.
    pub names: Option<ObjectRef>,
    pub files: Option<ObjectRef>,
    pub borrowed: Vec<PackId>,
}

impl Lease {
    pub fn path(&self) -> String {
        path(self.id)
    }
}

pub fn path(id: LeaseId) -> String {
    format!("leases/{id}")
}

pub fn fence_path(id: LeaseId) -> String {
    format!("leases/{id}.fence")
}

/// All leases there are; with each, whether it is fenced.
pub fn list(small: &SmallObjects) -> Result<Vec<(Lease, bool)>> {
    let device = small.device.as_ref();
    let names = device.list("leases").map_err(|e| io_error(device, "list", "leases", e))?;
    let mut leases = Vec::new();
    for id in names.iter().filter_map(|name| name.parse::<LeaseId>().ok()) {
        let fenced = is_fenced(small, id)?;
        leases.extend(small.read::<Lease>(Kind::Lease, &path(id))?.map(|lease| (lease, fenced)));
    }
    Ok(leases)
}

pub fn is_fenced(small: &SmallObjects, id: LeaseId) -> Result<bool> {
    let path = fence_path(id);
    small.device.exists(&path).map_err(|e| io_error(small.device.as_ref(), "look for", &path, e))
}

/// Writes the lease in the current generation, again until it counts. Errors: `Overtaken` when the writer was given up.
pub fn establish(small: &SmallObjects, lease: &mut Lease, renewal: bool) -> Result<()> {
    let device = small.device.as_ref();
    let held = lease.generation;
    loop {
        lease.generation = Generations::load(device)?.current();
        small.replace(Kind::Lease, &lease.path(), lease.generation, lease)?;
        let now = Generations::load(device)?.current();
        if renewal && (now.0 > held.0.saturating_add(GENERATIONS_MAX) || is_fenced(small, lease.id)?) {
            return Err(overtaken(lease));
        }
        if now == lease.generation {
            return Ok(());
        }
    }
}

pub fn overtaken(lease: &Lease) -> Error {
    Error::Overtaken(format!("the writer {} was given up by a prune: start the snapshot again", lease.id))
}

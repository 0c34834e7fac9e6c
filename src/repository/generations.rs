//! Generations: how prune and writers agree without a clock (R18).
//!
//! `gc/` holds, per prune, under the number of the generation that it ends:
//!
//! | object | says |
//! | --- | --- |
//! | `<n>-close` | generation n takes no new roots; the current one is n + 1 |
//! | `<n>-seal` | the roots of generations up to n, all of them: any other root of these generations is void |
//! | `<n>-plan` | what is condemned and what is rewritten, and why: JSON for people, with a checksum line |
//! | `<n>-final` | what is deleted at last, and which index segments no longer count |
//! | `<n>-done` | all of it is gone |
//!
//! Each is created only if absent and never changed. A root carries the generation of its writer's lease. A writer whose root came too late for the
//! seal finds so after it wrote the root (it looks for `close` then, and if that is there, for the seal), and writes the root again in the
//! next generation, provided that what it borrowed was not condemned meanwhile.

use super::ids::{Generation, PackId, SnapshotId};
use super::small::{Kind, SmallObjects, io_error};
use crate::device::Device;
use crate::error::Result;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// What `gc/` lists.
#[derive(Clone, Default, Debug)]
pub struct Generations {
    pub closed: BTreeSet<Generation>,
    pub sealed: BTreeSet<Generation>,
    pub planned: BTreeSet<Generation>,
    pub finals: BTreeSet<Generation>,
    pub done: BTreeSet<Generation>,
}

/// The roots that count among those of the generation and all before.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Seal {
    pub generation: Generation,
    pub roots: BTreeSet<SnapshotId>,
}

/// What a prune deletes at last.
#[derive(Clone, PartialEq, Eq, Debug, Default, Serialize, Deserialize)]
pub struct Final {
    pub generation: Generation,
    pub delete: BTreeSet<PackId>,
    /// Index segments (names in `index/`) whose entries a newer one holds.
    pub absorbed: BTreeSet<String>,
    /// The newer one, if any.
    pub segment: Option<String>,
    /// Packs that the plan condemned and that were borrowed before it was seen.
    pub kept: BTreeSet<PackId>,
    /// Snapshots that had been deleted before the generation was closed; their roots, put aside since, are removed.
    pub forgotten: BTreeSet<SnapshotId>,
}

pub fn path(generation: Generation, what: &str) -> String {
    format!("gc/{generation}-{what}")
}

impl Generations {
    pub fn load(device: &dyn Device) -> Result<Generations> {
        let mut generations = Generations::default();
        for name in device.list("gc").map_err(|e| io_error(device, "list", "gc", e))? {
            let Some((number, what)) = name.split_once('-') else { continue };
            let Ok(generation) = number.parse().map(Generation) else { continue };
            match what {
                "close" => generations.closed.insert(generation),
                "seal" => generations.sealed.insert(generation),
                "plan" => generations.planned.insert(generation),
                "final" => generations.finals.insert(generation),
                "done" => generations.done.insert(generation),
                _ => false,
            };
        }
        Ok(generations)
    }

    /// The generation that new roots belong to.
    pub fn current(&self) -> Generation {
        self.closed.last().map_or(Generation(1), |last| last.next())
    }

    /// A generation that was closed and whose prune is not finished.
    pub fn unfinished(&self) -> Option<Generation> {
        self.closed.last().copied().filter(|last| !self.done.contains(last))
    }
}

/// The newest seal; None before the first prune.
pub fn last_seal(small: &SmallObjects) -> Result<Option<Seal>> {
    newest(small, Kind::Seal, "seal", |generations| &generations.sealed)
}

/// The newest list of deletions.
pub fn last_final(small: &SmallObjects) -> Result<Option<Final>> {
    newest(small, Kind::Final, "final", |generations| &generations.finals)
}

/// An older one may be cleared away between listing and reading: then there is a newer one.
fn newest<T: DeserializeOwned>(
    small: &SmallObjects,
    kind: Kind,
    what: &str,
    of: impl Fn(&Generations) -> &BTreeSet<Generation>,
) -> Result<Option<T>> {
    let mut gone = None;
    loop {
        let generations = Generations::load(small.device.as_ref())?;
        let Some(last) = of(&generations).last().copied() else { return Ok(None) };
        let name = path(last, what);
        if let Some(found) = small.read(kind, &name)? {
            return Ok(Some(found));
        }
        if gone.replace(last) == Some(last) {
            return Err(io_error(small.device.as_ref(), "read", &name, std::io::ErrorKind::NotFound.into()));
        }
    }
}

//! Refs: names for snapshots. They hold what they name: a snapshot with a ref is not deleted.
//!
//! `refs/<name>/<number>` is created only if absent, and the highest number counts, so that of two who change a ref at once one comes later and
//! none is lost. A dropped ref is one that names nothing.
//!
//! Deleting a snapshot and naming it exclude each other without a lock: whoever makes a ref looks for the root afterwards, and whoever
//! deletes puts the root aside (`<id>.deleting`), looks for refs, and puts it back if there is one. It is removed by the next prune that
//! begins after that; a prune at work still counts it, since a child of it may just have begun.

use super::Repository;
use super::ids::SnapshotId;
use super::root;
use super::small::{Kind, io_error};
use crate::error::{Error, Result};
use serde::{Deserialize, Serialize};
use std::collections::BTreeSet;

/// Why a snapshot has a name.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub enum RefKind {
    /// A person, or the law, wants it kept.
    Pin,
    /// A name for people and scripts.
    Tag,
    /// Something works with it: a clone, an unfinished restore, a capture whose parent it is.
    InUse,
}

#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
pub struct Ref {
    pub name: String,
    pub kind: RefKind,
    pub target: SnapshotId,
    pub note: String,
}

#[derive(Serialize, Deserialize)]
pub(super) struct Stored {
    pub(super) named: Option<Ref>,
}

const NAME_BYTES_MAX: usize = 100;

impl Repository {
    /// Names a snapshot; a ref of this name is changed. Durable when this returns. Errors: `NotFound` when there is no such snapshot.
    pub fn set_ref(&self, name: &str, kind: RefKind, target: SnapshotId, note: &str) -> Result<()> {
        self.check_writable()?;
        root::find(&self.store.small, target)?;
        let named = Ref { name: name.to_owned(), kind, target, note: note.to_owned() };
        let before = self.find_ref(name)?;
        self.store_ref(name, Some(named))?;
        if let Err(error) = root::find(&self.store.small, target) {
            self.store_ref(name, before)?;
            return Err(error);
        }
        Ok(())
    }

    /// Forgets a name. Errors: `NotFound`.
    pub fn drop_ref(&self, name: &str) -> Result<()> {
        self.check_writable()?;
        if self.find_ref(name)?.is_none() {
            return Err(Error::NotFound(format!("ref `{name}`: there is none in {}", self.path())));
        }
        self.store_ref(name, None)
    }

    pub fn find_ref(&self, name: &str) -> Result<Option<Ref>> {
        check_name(name)?;
        loop {
            let Some(number) = self.ref_numbers(name)?.last().copied() else { return Ok(None) };
            // An older number may be cleared away meanwhile: then there is a newer one.
            if let Some(stored) = self.store.small.read::<Stored>(Kind::Ref, &path(name, number))? {
                return Ok(stored.named);
            }
        }
    }

    /// All refs, by name.
    pub fn refs(&self) -> Result<Vec<Ref>> {
        let device = self.store.small.device.as_ref();
        let names = device.list("refs").map_err(|e| io_error(device, "list", "refs", e))?;
        let found = names.iter().map(|name| self.find_ref(name)).collect::<Result<Vec<_>>>()?;
        Ok(found.into_iter().flatten().collect())
    }

    fn ref_numbers(&self, name: &str) -> Result<Vec<u32>> {
        let device = self.store.small.device.as_ref();
        let dir = format!("refs/{name}");
        match device.list(&dir) {
            Ok(names) => Ok(names.iter().filter_map(|number| number.parse().ok()).collect()),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(Vec::new()),
            Err(e) => Err(io_error(device, "list", &dir, e)),
        }
    }

    fn store_ref(&self, name: &str, named: Option<Ref>) -> Result<()> {
        check_name(name)?;
        let device = self.store.small.device.as_ref();
        let dir = format!("refs/{name}");
        device.create_dir_all(&dir).map_err(|e| io_error(device, "create", &dir, e))?;
        device.sync_dir("refs").map_err(|e| io_error(device, "sync directory", "refs", e))?;
        let stored = Stored { named };
        loop {
            let older = self.ref_numbers(name)?;
            let number = older.last().map_or(1, |last| last.saturating_add(1));
            let generation = super::generations::Generations::load(device)?.current();
            if self.store.small.create(Kind::Ref, &path(name, number), generation, &stored)? {
                for number in older {
                    // What stays does not count.
                    let _ = device.remove_file(&path(name, number));
                }
                return Ok(());
            }
        }
    }

    /// Deletes a snapshot; its space comes back with the next prune that begins. Errors: `Busy` when a ref names it, `NotFound`.
    pub fn delete(&self, id: SnapshotId) -> Result<()> {
        self.check_writable()?;
        let device = self.store.small.device.as_ref();
        self.refuse_if_named(id)?;
        root::find(&self.store.small, id)?;
        let (path, aside) = (id.path(), root::aside(id));
        device.rename(&path, &aside).map_err(|e| io_error(device, "rename", &path, e))?;
        self.sync_snapshots()?;
        self.refuse_if_named(id).or_else(|error| self.put_back(id).and(Err(error)))
    }

    /// Snapshots that are deleted, whose roots are still aside. Those that a crash left aside though they are named are put back.
    pub(super) fn deleted(&self) -> Result<BTreeSet<SnapshotId>> {
        let mut deleted = BTreeSet::new();
        for id in root::put_aside(&self.store.small)? {
            match self.refuse_if_named(id) {
                Err(Error::Busy(_)) => self.put_back(id)?,
                Err(error) => return Err(error),
                Ok(()) => {
                    deleted.insert(id);
                }
            }
        }
        Ok(deleted)
    }

    fn put_back(&self, id: SnapshotId) -> Result<()> {
        let device = self.store.small.device.as_ref();
        match device.rename(&root::aside(id), &id.path()) {
            // Two may put it back.
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(io_error(device, "rename", &root::aside(id), e)),
            _ => self.sync_snapshots(),
        }
    }

    pub(super) fn sync_snapshots(&self) -> Result<()> {
        let device = self.store.small.device.as_ref();
        device.sync_dir("snapshots").map_err(|e| io_error(device, "sync directory", "snapshots", e))
    }

    fn refuse_if_named(&self, id: SnapshotId) -> Result<()> {
        match self.refs()?.into_iter().find(|named| named.target == id) {
            Some(Ref { kind: RefKind::InUse, name, note, .. }) => {
                Err(Error::Busy(format!("snapshot {id} is in use: the ref `{name}` holds it ({note})")))
            }
            Some(named) => {
                Err(Error::Busy(format!("snapshot {id} is held by the ref `{}`: drop that first", named.name)))
            }
            None => Ok(()),
        }
    }
}

fn path(name: &str, number: u32) -> String {
    format!("refs/{name}/{number:08}")
}

fn check_name(name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || "-_.:@".contains(c);
    if name.is_empty() || name.len() > NAME_BYTES_MAX || name.starts_with('.') || !name.chars().all(allowed) {
        return Err(Error::Invalid(format!(
            "ref `{name}`: up to {NAME_BYTES_MAX} of A-Z a-z 0-9 - _ . : @ are allowed, and no dot at the start"
        )));
    }
    Ok(())
}

//! What snapshots use: one bit per entry of the index.
//!
//! An object's bit also says that what lies below it has been visited, so that shared trees are walked once and nothing else has to be remembered.

use super::content::Leaf;
use super::file::FileState;
use super::ids::{ObjectRef, PackId};
use super::index::View;
use super::root::Root;
use super::segment::{BLOCK_ENTRIES, prefix};
use super::store::Store;
use super::table::{self, NodeSource};
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::sync::Arc;

pub struct Marks<'s> {
    store: &'s Store,
    pub view: Arc<View>,
    /// Per segment of the view, a bit per entry.
    bits: Vec<Vec<u64>>,
    /// Packs that hold something in use which no segment lists.
    pub unlisted: HashSet<PackId>,
    /// Visited nodes that no segment lists.
    unlisted_nodes: HashSet<ObjectRef>,
    /// Objects in use that are nowhere.
    pub missing: u64,
}

/// Raw bytes of a pack's objects.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Usage {
    pub objects: u64,
    pub raw_bytes: u64,
    pub live_bytes: u64,
}

impl<'s> Marks<'s> {
    pub fn new(store: &'s Store, view: Arc<View>) -> Marks<'s> {
        let words = |entries: u64| usize::try_from(entries.div_ceil(64)).unwrap_or(0);
        let bits = view.segments.iter().map(|segment| vec![0; words(segment.entries)]).collect();
        Marks { store, view, bits, unlisted: HashSet::new(), unlisted_nodes: HashSet::new(), missing: 0 }
    }

    /// Marks everything that a snapshot uses. An error where a tree cannot be read: what lies below is not known then.
    pub fn root(&mut self, root: &Root) -> Result<()> {
        self.tables(root.names.as_ref(), root.files.as_ref())
    }

    pub fn tables(&mut self, names: Option<&ObjectRef>, files: Option<&ObjectRef>) -> Result<()> {
        let store = self.store;
        table::nodes(store, names, &mut |node| self.node(node))?;
        let mut waiting: Vec<ObjectRef> = files.copied().into_iter().collect();
        while let Some(object) = waiting.pop() {
            if !self.node(&object)? {
                continue;
            }
            let node = table::load(store, &object)?;
            if node.level > 0 {
                waiting.extend(node.children().map_err(|why| store.malformed(&object, why))?);
                continue;
            }
            for (_, value) in &node.entries {
                let state = FileState::decode(value).map_err(|why| store.malformed(&object, why))?;
                self.content(state)?;
            }
        }
        Ok(())
    }

    fn content(&mut self, state: FileState) -> Result<()> {
        let mut waiting: Vec<(ObjectRef, u8)> = state.root.map(|root| (root, state.level)).into_iter().collect();
        while let Some((object, level)) = waiting.pop() {
            if !self.node(&object)? {
                continue;
            }
            if level > 0 {
                let inner = self.store.inner(&object)?;
                waiting.extend(inner.children.values().map(|child| (*child, level - 1)));
            } else {
                let leaf: Leaf = self.store.leaf(&object)?;
                for object in leaf.slots.values().flat_map(|slot| slot.objects()) {
                    self.mark(&object)?;
                }
            }
        }
        Ok(())
    }

    /// As [`Marks::mark`], for what leads to others: what lies below one that is nowhere is not known, so that is an error.
    fn node(&mut self, object: &ObjectRef) -> Result<bool> {
        let missing = self.missing;
        let new = self.mark(object)?;
        if self.missing == missing {
            return Ok(new);
        }
        let pack = format!("{}/{}", self.store.small.device.path(), object.place.pack.path());
        let why = format!("the pack is missing, and tree node {} is nowhere else", object.id);
        Err(Error::Corrupt { what: "repository", path: pack, offset: 0, why })
    }

    /// False when it was marked before. Of several copies that of the newest segment counts, since a repair puts a sound one there.
    fn mark(&mut self, object: &ObjectRef) -> Result<bool> {
        let wanted = prefix(&object.id);
        for (segment, bits) in self.view.segments.iter().zip(&mut self.bits) {
            let found = segment.find_numbered(&wanted)?;
            let found = found.iter().find(|(_, place)| self.view.packs.contains(&place.pack));
            if let Some((number, _)) = found {
                let (word, bit) = (number / 64, 1 << (number % 64));
                let new = bits[word] & bit == 0;
                bits[word] |= bit;
                return Ok(new);
            }
        }
        if !self.unlisted_nodes.insert(*object) {
            return Ok(false);
        }
        if self.view.packs.contains(&object.place.pack) {
            self.unlisted.insert(object.place.pack);
            return Ok(true);
        }
        self.missing += 1;
        Ok(false)
    }

    pub fn is_live(&self, segment: usize, number: usize) -> bool {
        self.bits[segment][number / 64] >> (number % 64) & 1 == 1
    }

    /// What of each pack is in use.
    pub fn usage(&self) -> Result<HashMap<PackId, Usage>> {
        let mut usage: HashMap<PackId, Usage> = HashMap::new();
        for (index, segment) in self.view.segments.iter().enumerate() {
            for block in 0..segment.blocks() {
                for (at, entry) in segment.block(block)?.iter().enumerate() {
                    let pack = usage.entry(entry.place.pack).or_default();
                    let len = u64::from(entry.place.len);
                    pack.objects += 1;
                    pack.raw_bytes += len;
                    if self.is_live(index, block * BLOCK_ENTRIES + at) {
                        pack.live_bytes += len;
                    }
                }
            }
        }
        Ok(usage)
    }

    /// Is this very copy of an object in use?
    pub fn uses(&self, object: &ObjectRef) -> Result<bool> {
        let wanted = prefix(&object.id);
        for (index, segment) in self.view.segments.iter().enumerate() {
            for (number, place) in segment.find_numbered(&wanted)? {
                if place == object.place && self.is_live(index, number) {
                    return Ok(true);
                }
            }
        }
        Ok(false)
    }
}

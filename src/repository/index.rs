//! Which object lies where: the segments in `index/` that count.
//!
//! A segment counts unless the last list of deletions (`gc/<generation>-final`) says that a newer one has taken its entries over. Packs that the
//! same list condemns, or that are not there, are left out of the answers: so the index never names a deleted pack, even if a crash or a
//! writer that woke too late left a segment behind that does.

use super::generations;
use super::ids::{Generation, ObjectId, PackId, Place, random_bytes};
use super::segment::{Prefix, Segment, prefix};
use super::small::{SmallObjects, io_error};
use crate::device::Device;
use crate::error::{Error, Result};
use parking_lot::RwLock;
use std::collections::{HashMap, HashSet};
use std::io;
use std::sync::Arc;
use uuid::Uuid;

/// The index as it was when it was last looked at.
pub struct View {
    /// Newest first.
    pub segments: Vec<Arc<Segment>>,
    /// Packs that are there and not condemned.
    pub packs: HashSet<PackId>,
}

impl View {
    /// Places of an object, those of newer segments first.
    pub fn find(&self, id: &ObjectId) -> Result<Vec<Place>> {
        self.find_prefix(&prefix(id))
    }

    /// As [`View::find`], by what the index knows of an id.
    pub fn find_prefix(&self, wanted: &Prefix) -> Result<Vec<Place>> {
        let mut places = Vec::new();
        for segment in &self.segments {
            let found = segment.find(wanted)?;
            places.extend(found.into_iter().filter(|place| self.packs.contains(&place.pack)));
        }
        Ok(places)
    }
}

pub struct Index {
    repository: Uuid,
    view: RwLock<Option<Arc<View>>>,
}

impl Index {
    pub fn new(repository: Uuid) -> Index {
        Index { repository, view: RwLock::new(None) }
    }

    /// The index as last seen; read now if it never was.
    pub fn view(&self, small: &SmallObjects) -> Result<Arc<View>> {
        if let Some(view) = self.view.read().as_ref() {
            return Ok(view.clone());
        }
        self.refresh(small)
    }

    /// Looks again at what is there.
    pub fn refresh(&self, small: &SmallObjects) -> Result<Arc<View>> {
        let mut slot = self.view.write();
        let view = self.load(small, slot.as_deref());
        *slot = view.as_ref().ok().cloned();
        view
    }

    fn load(&self, small: &SmallObjects, before: Option<&View>) -> Result<Arc<View>> {
        let device = small.device.as_ref();
        let mut known: HashMap<String, Arc<Segment>> = HashMap::new();
        for segment in before.iter().flat_map(|view| &view.segments) {
            known.insert(segment.name.clone(), segment.clone());
        }
        // A prune between these steps only ever moves entries to segments that are listed afterwards: then look again.
        for _ in 0..16 {
            let deletions = generations::last_final(small)?;
            let mut packs = list_packs(device)?;
            let mut absorbed = HashSet::new();
            if let Some(deletions) = deletions {
                packs.retain(|pack| !deletions.delete.contains(pack));
                absorbed.extend(deletions.absorbed);
            }
            let mut names = device.list("index").map_err(|e| io_error(device, "list", "index", e))?;
            names.retain(|name| !name.ends_with(".part") && !absorbed.contains(name));
            names.sort_unstable_by_key(|name| std::cmp::Reverse((sequence(name), name.clone())));
            match self.open_all(device, &names, &known) {
                Ok(segments) => return Ok(Arc::new(View { segments, packs })),
                Err(Error::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
        }
        Err(Error::Busy("the index of the repository changes faster than it can be read".to_owned()))
    }

    fn open_all(
        &self,
        device: &dyn Device,
        names: &[String],
        known: &HashMap<String, Arc<Segment>>,
    ) -> Result<Vec<Arc<Segment>>> {
        let open = |name: &String| {
            let path = format!("index/{name}");
            match known.get(&path) {
                Some(segment) => Ok(segment.clone()),
                None => Segment::open(device, &path, self.repository).map(Arc::new),
            }
        };
        names.iter().map(open).collect()
    }
}

/// Segments are named generation, number, chance. The number grows, so that what a repair stored comes before what it replaces; a
/// segment that others were merged into takes the highest of theirs.
pub fn sequence(name: &str) -> u32 {
    name.split('-').nth(1).and_then(|number| number.parse().ok()).unwrap_or(0)
}

/// The name of a segment that is to be written: in `index/`.
pub fn segment_name(generation: Generation, sequence: u32) -> Result<String> {
    Ok(format!("{generation}-{sequence:010}-{:016x}", u64::from_le_bytes(random_bytes()?)))
}

/// The number of the next segment.
pub fn next_sequence(device: &dyn Device) -> Result<u32> {
    let names = device.list("index").map_err(|e| io_error(device, "list", "index", e))?;
    Ok(names.iter().map(|name| sequence(name)).max().unwrap_or(0).saturating_add(1))
}

/// All packs that are there, finished or not.
pub fn list_packs(device: &dyn Device) -> Result<HashSet<PackId>> {
    let mut packs = HashSet::new();
    for dir in PackId::dirs() {
        let names = device.list(&dir).map_err(|e| io_error(device, "list", &dir, e))?;
        packs.extend(names.iter().filter_map(|name| name.parse::<PackId>().ok()));
    }
    Ok(packs)
}

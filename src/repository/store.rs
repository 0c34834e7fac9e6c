//! Reading objects: by place, by index when the place no longer holds, always checked against the id (I8).

use super::cache::Cache;
use super::content::{Inner, Leaf};
use super::ids::{ObjectId, ObjectRef, PackId, Place};
use super::index::Index;
use super::keys::Keys;
use super::pack::{Contents, PackReader};
use super::small::SmallObjects;
use super::table::NodeSource;
use crate::error::{Error, Result};
use crate::ondisk::bytes::Malformed;
use parking_lot::Mutex;
use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use uuid::Uuid;

/// Decoded frames and verified objects kept for the next reader; a frame of pages serves several.
const FRAMES_CACHE_BYTES: usize = 8 << 20;
const OBJECTS_CACHE_BYTES: usize = 24 << 20;
/// Packs held open, each with 12 bytes per frame.
const OPEN_PACKS_MAX: usize = 64;

pub struct Store {
    pub small: SmallObjects,
    pub repository: Uuid,
    pub index: Index,
    open: Mutex<VecDeque<(PackId, Arc<PackReader>)>>,
    frames: Cache<(PackId, u32)>,
    objects: Cache<ObjectId>,
}

impl Store {
    pub fn new(small: SmallObjects, repository: Uuid) -> Store {
        Store {
            small,
            repository,
            index: Index::new(repository),
            open: Mutex::new(VecDeque::new()),
            frames: Cache::new(FRAMES_CACHE_BYTES),
            objects: Cache::new(OBJECTS_CACHE_BYTES),
        }
    }

    pub fn keys(&self) -> &Keys {
        &self.small.keys
    }

    /// The bytes of an object, which are those that it is named after.
    pub fn object(&self, object: &ObjectRef) -> Result<Arc<Vec<u8>>> {
        if let Some(bytes) = self.objects.get(&object.id) {
            return Ok(bytes);
        }
        let first_error = match self.at_place(&object.id, &object.place) {
            Ok(bytes) => return Ok(bytes),
            Err(error) => error,
        };
        // Moved by a prune, or damaged and stored again by a repair.
        for refresh in [false, true] {
            let view = if refresh { self.index.refresh(&self.small)? } else { self.index.view(&self.small)? };
            for place in view.find(&object.id)?.iter().filter(|place| **place != object.place || refresh) {
                if let Ok(bytes) = self.at_place(&object.id, place) {
                    return Ok(bytes);
                }
            }
        }
        Err(match first_error {
            Error::Io { path, source, .. } if source.kind() == io::ErrorKind::NotFound => Error::Corrupt {
                what: "repository",
                path,
                offset: 0,
                why: format!("the pack is missing, and object {} is nowhere else", object.id),
            },
            error => error,
        })
    }

    /// The object as it lies at one place.
    pub fn at_place(&self, id: &ObjectId, place: &Place) -> Result<Arc<Vec<u8>>> {
        let pack = self.pack(place.pack)?;
        let key = (place.pack, place.frame);
        let (frame, cached) = match self.frames.get(&key) {
            Some(frame) => (frame, true),
            None => (Arc::new(pack.frame(self.keys(), place.frame)?), false),
        };
        let range = usize::try_from(place.start).ok().zip(usize::try_from(place.len).ok());
        let bytes = range.and_then(|(start, len)| frame.get(start..start.checked_add(len)?));
        let bytes = bytes.ok_or_else(|| pack.damage(place.frame, "the frame is shorter than an object in it"))?;
        if self.keys().object_id(bytes) != *id {
            return Err(pack.damage(place.frame, &format!("the bytes are not those of object {id}")));
        }
        let whole = bytes.len() == frame.len();
        let bytes = if whole { frame.clone() } else { Arc::new(bytes.to_vec()) };
        if !whole && !cached {
            self.frames.insert(key, frame);
        }
        self.objects.insert(*id, bytes.clone());
        Ok(bytes)
    }

    fn pack(&self, pack: PackId) -> Result<Arc<PackReader>> {
        {
            let mut open = self.open.lock();
            if let Some(at) = open.iter().position(|(id, _)| *id == pack)
                && let Some(found) = open.remove(at)
            {
                open.push_back(found.clone());
                return Ok(found.1);
            }
        }
        let (reader, _) = self.contents(pack)?;
        let mut open = self.open.lock();
        if open.len() >= OPEN_PACKS_MAX {
            open.pop_front();
        }
        open.push_back((pack, reader.clone()));
        Ok(reader)
    }

    /// Opens a pack afresh, with its table.
    pub fn contents(&self, pack: PackId) -> Result<(Arc<PackReader>, Contents)> {
        let (reader, contents) = PackReader::open(self.small.device.as_ref(), pack)?;
        if reader.header.repository != self.repository {
            return Err(reader.damage(0, "a pack of another repository"));
        }
        Ok((Arc::new(reader), contents))
    }

    /// Forgets what was read, so that the next read sees the disk.
    pub fn forget(&self) {
        self.open.lock().clear();
        self.frames.clear();
        self.objects.clear();
    }

    pub fn leaf(&self, object: &ObjectRef) -> Result<Leaf> {
        Leaf::decode(&self.object(object)?).map_err(|why| self.malformed(object, why))
    }

    pub fn inner(&self, object: &ObjectRef) -> Result<Inner> {
        Inner::decode(&self.object(object)?).map_err(|why| self.malformed(object, why))
    }
}

impl NodeSource for Store {
    fn node(&self, object: &ObjectRef) -> Result<Arc<Vec<u8>>> {
        self.object(object)
    }

    fn malformed(&self, object: &ObjectRef, Malformed(why): Malformed) -> Error {
        Error::Corrupt {
            what: "tree node",
            path: format!("{}/{}", self.small.device.path(), object.place.pack.path()),
            offset: 0,
            why: format!("object {}: {why}", object.id),
        }
    }
}

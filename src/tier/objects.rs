//! Object files: one sparse file per file that has blocks on a tier, block at its own offset.
//!
//! Descriptors are the engine's own (R21), opened once with direct I/O where the backing can, kept in a bounded table.

use crate::device::{BackingFile, Device, OpenMode};
use crate::error::{Error, Result};
use crate::units::FileId;
use parking_lot::Mutex;
use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;

/// Open descriptors per tier.
const OPEN_MAX: usize = 1024;

/// Path of a file's object below a tier's root.
pub fn object_path(id: FileId) -> String {
    format!("objects/{:02x}/{id}", id.0 & 0xff)
}

/// The directory of [`object_path`].
pub fn object_dir(id: FileId) -> String {
    format!("objects/{:02x}", id.0 & 0xff)
}

/// The file id of an object's name.
pub fn parse_object_name(name: &str) -> Option<FileId> {
    (name.len() == 16).then(|| u64::from_str_radix(name, 16).ok().map(FileId)).flatten()
}

#[derive(Default)]
struct Open {
    files: HashMap<FileId, (Arc<dyn BackingFile>, u64)>,
    clock: u64,
}

impl Open {
    fn close_older_half(&mut self) {
        let mut ages: Vec<u64> = self.files.values().map(|(_, used)| *used).collect();
        if ages.is_empty() {
            return;
        }
        let middle = ages.len() / 2;
        let (_, median, _) = ages.select_nth_unstable(middle);
        let median = *median;
        self.files.retain(|_, (_, used)| *used > median);
    }
}

fn is_out_of_descriptors(error: &Error) -> bool {
    matches!(error, Error::Io { source, .. } if matches!(source.raw_os_error(), Some(libc::EMFILE | libc::ENFILE)))
}

/// The object files of one tier.
pub struct Objects {
    device: Arc<dyn Device>,
    open: Mutex<Open>,
    /// Objects created since the last sync of their names.
    fresh: Mutex<BTreeSet<FileId>>,
}

impl Objects {
    pub fn new(device: Arc<dyn Device>) -> Objects {
        Objects { device, open: Mutex::default(), fresh: Mutex::default() }
    }

    pub fn device(&self) -> &Arc<dyn Device> {
        &self.device
    }

    /// The object of a file; None when it does not exist and `create` is false.
    pub fn get(&self, id: FileId, create: bool) -> Result<Option<Arc<dyn BackingFile>>> {
        let mut open = self.open.lock();
        open.clock += 1;
        let now = open.clock;
        if let Some((file, used)) = open.files.get_mut(&id) {
            *used = now;
            return Ok(Some(file.clone()));
        }
        drop(open);
        let opened = match self.open_or_create(id, create) {
            // Fewer descriptors are allowed than are wanted here: older ones make way.
            Err(error) if is_out_of_descriptors(&error) => {
                self.open.lock().close_older_half();
                self.open_or_create(id, create)?
            }
            opened => opened?,
        };
        let Some(file) = opened else { return Ok(None) };
        let mut open = self.open.lock();
        if open.files.len() >= OPEN_MAX {
            open.close_older_half();
        }
        Ok(Some(open.files.entry(id).or_insert((file, now)).0.clone()))
    }

    fn open_or_create(&self, id: FileId, create: bool) -> Result<Option<Arc<dyn BackingFile>>> {
        let path = object_path(id);
        let mode = OpenMode { direct: true, ..OpenMode::default() };
        match self.device.open(&path, mode) {
            Ok(file) => return Ok(Some(file)),
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => return Err(Error::io("open", self.full(&path), e)),
            Err(_) if !create => return Ok(None),
            Err(_) => {}
        }
        let dir = object_dir(id);
        self.device.create_dir_all(&dir).map_err(|e| Error::io("create", self.full(&dir), e))?;
        // Held across the creation: a sync of names meanwhile would take the entry before there is a name to sync.
        let mut fresh = self.fresh.lock();
        fresh.insert(id);
        let mode = OpenMode { create: true, ..mode };
        self.device.open(&path, mode).map(Some).map_err(|e| Error::io("create", self.full(&path), e))
    }

    /// Objects created since the last call: their names need a sync.
    pub fn take_fresh(&self) -> BTreeSet<FileId> {
        std::mem::take(&mut *self.fresh.lock())
    }

    /// The sync of these names failed.
    pub fn put_back_fresh(&self, fresh: BTreeSet<FileId>) {
        self.fresh.lock().extend(fresh);
    }

    /// Closes and removes a file's object, if there is one.
    pub fn remove(&self, id: FileId) -> Result<()> {
        self.open.lock().files.remove(&id);
        let path = object_path(id);
        match self.device.remove_file(&path) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(Error::io("remove", self.full(&path), e)),
            _ => Ok(()),
        }
    }

    /// Ids of all objects on this tier.
    pub fn list(&self) -> Result<Vec<FileId>> {
        let mut ids = Vec::new();
        for dir in self.list_dir("objects")? {
            let dir = format!("objects/{dir}");
            ids.extend(self.list_dir(&dir)?.iter().filter_map(|name| parse_object_name(name)));
        }
        Ok(ids)
    }

    fn list_dir(&self, dir: &str) -> Result<Vec<String>> {
        match self.device.list(dir) {
            Ok(names) => Ok(names),
            // What is no directory is none of ours; `check` tells of it.
            Err(e) if matches!(e.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::NotADirectory) => {
                Ok(Vec::new())
            }
            Err(e) => Err(Error::io("list", self.full(dir), e)),
        }
    }

    pub fn full(&self, path: &str) -> String {
        format!("{}/{path}", self.device.path())
    }
}

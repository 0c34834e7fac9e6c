//! Two directories as one repository: its own, and the archive that cold packs are moved to.
//!
//! A pack is looked for in the repository's own directory first, then in the archive; while it moves it is in both. Everything else is in the
//! repository's own. An archive that is not there is never taken for an empty one: what may be in it is an error that says so.

use crate::device::{BackingFile, Device, OpenMode, Space};
use parking_lot::RwLock;
use std::io;
use std::sync::Arc;

const PACKS: &str = "packs/";

/// The archive of a repository.
#[derive(Clone)]
pub(super) enum Far {
    /// There is none.
    None,
    Here {
        path: String,
        device: Arc<dyn Device>,
    },
    /// There should be one at this path, but there is not, and why.
    Away {
        path: String,
        why: String,
    },
}

pub(super) struct Shelf {
    pub near: Arc<dyn Device>,
    far: RwLock<Far>,
}

impl Shelf {
    pub fn new(near: Arc<dyn Device>) -> Shelf {
        Shelf { near, far: RwLock::new(Far::None) }
    }

    pub fn far(&self) -> Far {
        self.far.read().clone()
    }

    pub fn set_far(&self, far: Far) {
        *self.far.write() = far;
    }

    /// Tries the archive where the repository's own directory has nothing.
    fn or_far<T>(
        &self,
        path: &str,
        near: io::Result<T>,
        far: impl FnOnce(&dyn Device) -> io::Result<T>,
    ) -> io::Result<T> {
        match near {
            Err(error) if error.kind() == io::ErrorKind::NotFound && path.starts_with(PACKS) => match self.far() {
                Far::None => Err(error),
                Far::Here { device, .. } => far(device.as_ref()),
                Far::Away { path, why } => Err(io::Error::new(
                    io::ErrorKind::NotConnected,
                    format!("it may be in the archive at {path}: {why}"),
                )),
            },
            near => near,
        }
    }
}

impl Device for Shelf {
    fn path(&self) -> String {
        self.near.path()
    }

    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        let near = self.near.open(path, mode);
        if mode.create { near } else { self.or_far(path, near, |far| far.open(path, mode)) }
    }

    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        self.near.create_dir_all(path)
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.near.rename(from, to)
    }

    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.near.rename_new(from, to)
    }

    /// A pack goes in both places.
    fn remove_file(&self, path: &str) -> io::Result<()> {
        let near = self.near.remove_file(path);
        match self.far() {
            Far::Here { device: far, .. } if path.starts_with(PACKS) => match (near, far.remove_file(path)) {
                (near, Err(error)) if error.kind() == io::ErrorKind::NotFound => near,
                (Err(error), far) if error.kind() == io::ErrorKind::NotFound => far,
                (near, far) => near.and(far),
            },
            _ => near,
        }
    }

    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        let mut names = self.near.list(path)?;
        if let (true, Far::Here { device: far, .. }) = (path.starts_with(PACKS), self.far()) {
            match far.list(path) {
                Ok(more) => names.extend(more),
                Err(error) if error.kind() == io::ErrorKind::NotFound => {}
                Err(error) => return Err(error),
            }
            names.sort_unstable();
            names.dedup();
        }
        Ok(names)
    }

    fn exists(&self, path: &str) -> io::Result<bool> {
        match self.near.exists(path)? {
            true => Ok(true),
            false => match self.far() {
                Far::Here { device: far, .. } if path.starts_with(PACKS) => far.exists(path),
                _ => Ok(false),
            },
        }
    }

    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.near.sync_dir(path)?;
        match self.far() {
            Far::Here { device: far, .. } if path.starts_with(PACKS) => match far.sync_dir(path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
                synced => synced,
            },
            _ => Ok(()),
        }
    }

    fn sync_all(&self) -> io::Result<()> {
        self.near.sync_all()
    }

    fn space(&self) -> io::Result<Space> {
        self.near.space()
    }
}

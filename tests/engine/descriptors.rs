//! A tier on which only so many files can be open at once.

use heatfs::device::sim::SimWorld;
use heatfs::device::{BackingFile, Device, OpenMode, Space};
use heatfs::tier::objects::Objects;
use heatfs::units::FileId;
use std::io;
use std::sync::{Arc, Mutex, Weak};

const ALLOWED: usize = 8;

struct Limited {
    device: Arc<dyn Device>,
    open: Mutex<Vec<Weak<dyn BackingFile>>>,
}

impl Device for Limited {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        let mut open = self.open.lock().expect("no panic holds it");
        open.retain(|file| file.strong_count() > 0);
        if open.len() >= ALLOWED {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let file = self.device.open(path, mode)?;
        open.push(Arc::downgrade(&file));
        Ok(file)
    }
    fn path(&self) -> String {
        self.device.path()
    }
    fn create_dir_all(&self, path: &str) -> io::Result<()> {
        self.device.create_dir_all(path)
    }
    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        self.device.rename(from, to)
    }
    fn rename_new(&self, from: &str, to: &str) -> io::Result<()> {
        self.device.rename_new(from, to)
    }
    fn remove_file(&self, path: &str) -> io::Result<()> {
        self.device.remove_file(path)
    }
    fn list(&self, path: &str) -> io::Result<Vec<String>> {
        self.device.list(path)
    }
    fn exists(&self, path: &str) -> io::Result<bool> {
        self.device.exists(path)
    }
    fn sync_dir(&self, path: &str) -> io::Result<()> {
        self.device.sync_dir(path)
    }
    fn sync_all(&self) -> io::Result<()> {
        self.device.sync_all()
    }
    fn space(&self) -> io::Result<Space> {
        self.device.space()
    }
}

/// R21: descriptors are a cache. Where fewer are allowed than the table would hold, older ones make way.
#[test]
fn objects_make_do_with_few_descriptors() {
    let device = SimWorld::new(21).device("nvme");
    let objects = Objects::new(Arc::new(Limited { device, open: Mutex::default() }));
    for round in 0..3 {
        for id in (1..=50).map(FileId) {
            let object = objects.get(id, true).expect("opens").expect("exists");
            assert_eq!(object.len().expect("known"), round);
            object.set_len(round + 1).expect("grows");
        }
    }
}

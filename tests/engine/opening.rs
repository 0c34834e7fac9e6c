//! A device that a test has a word in when a file of it is opened; all else is the device's own.

use heatfs::device::{BackingFile, Device, OpenMode, Space};
use std::io;
use std::sync::Arc;

/// Opens a file of the device in place of the device.
pub type Open = Box<dyn Fn(&dyn Device, &str, OpenMode) -> io::Result<Arc<dyn BackingFile>> + Send + Sync>;

pub struct Opening {
    pub device: Arc<dyn Device>,
    pub open: Open,
}

impl Device for Opening {
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        (self.open)(self.device.as_ref(), path, mode)
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

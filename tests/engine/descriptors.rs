//! A tier on which only so many files can be open at once.

use crate::opening::{Open, Opening};
use heatfs::device::sim::SimWorld;
use heatfs::device::{BackingFile, Device};
use heatfs::tier::objects::Objects;
use heatfs::units::FileId;
use std::io;
use std::sync::{Arc, Mutex, Weak};

const ALLOWED: usize = 8;

/// As many files of the device as are allowed are open at once, and no more.
fn limited(device: Arc<dyn Device>) -> Arc<dyn Device> {
    let open_now: Mutex<Vec<Weak<dyn BackingFile>>> = Mutex::default();
    let open: Open = Box::new(move |device, path, mode| {
        let mut open_now = open_now.lock().expect("no panic holds it");
        open_now.retain(|file| file.strong_count() > 0);
        if open_now.len() >= ALLOWED {
            return Err(io::Error::from_raw_os_error(libc::EMFILE));
        }
        let file = device.open(path, mode)?;
        open_now.push(Arc::downgrade(&file));
        Ok(file)
    });
    Arc::new(Opening { device, open })
}

/// R21: descriptors are a cache. Where fewer are allowed than the table would hold, older ones make way.
#[test]
fn objects_make_do_with_few_descriptors() {
    let device = SimWorld::new(21).device("nvme");
    let objects = Objects::new(limited(device));
    for round in 0..3 {
        for id in (1..=50).map(FileId) {
            let object = objects.get(id, true).expect("opens").expect("exists");
            assert_eq!(object.len().expect("known"), round);
            object.set_len(round + 1).expect("grows");
        }
    }
}

//! What others do while the first image of a block is being written.

use crate::harness::{BLOCK, options, tiers};
use heatfs::device::sim::SimWorld;
use heatfs::device::{BackingFile, Device, OpenMode, Space};
use heatfs::volume::{Volume, Wait};
use std::io;
use std::sync::{Arc, Mutex};

type Action = Box<dyn FnOnce() + Send>;

/// A device that does something once, when an object is looked for.
struct Occasion {
    device: Arc<dyn Device>,
    action: Arc<Mutex<Option<Action>>>,
}

impl Device for Occasion {
    fn path(&self) -> String {
        self.device.path()
    }
    fn open(&self, path: &str, mode: OpenMode) -> io::Result<Arc<dyn BackingFile>> {
        let action = self.action.lock().expect("nobody panicked").take_if(|_| path.starts_with("objects/"));
        if let Some(action) = action {
            action();
        }
        self.device.open(path, mode)
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

/// R3: a cut has no image to lay zeros over then, so what is being written must not become the block's base.
#[test]
fn bytes_cut_while_their_first_image_is_written_do_not_come_back() {
    let world = SimWorld::new(1);
    let action = Arc::new(Mutex::new(None));
    let with_occasions = || {
        let mut tiers = tiers(&world);
        let device = Occasion { device: tiers[0].device.clone(), action: action.clone() };
        tiers[0].device = Arc::new(device);
        tiers
    };
    Volume::create(&with_occasions(), &options(), uuid::Uuid::from_u128(7), &mut |_| {}).expect("creates");
    let (volume, _) = Volume::open(with_occasions(), options()).expect("opens");
    let file = volume.file(volume.issue_file_id().expect("an id")).expect("known");
    volume.write(&file, 0, &[9; BLOCK as usize], Wait::Allowed).expect("writes");
    let (cutting, cut) = (Arc::clone(&volume), Arc::clone(&file));
    *action.lock().expect("nobody panicked") = Some(Box::new(move || {
        cutting.set_size(&cut, 0).expect("truncates");
        cutting.set_size(&cut, BLOCK).expect("grows");
    }) as Action);
    volume.coalesce_all(&mut |_, _| {}).expect("coalesces");
    assert!(action.lock().expect("nobody panicked").is_none(), "the action ran");
    let mut read = [0xee; BLOCK as usize];
    volume.read(&file, 0, &mut read, Wait::Allowed).expect("readable");
    assert_eq!(read, [0; BLOCK as usize]);
    assert_eq!(volume.check(true).expect("checks"), vec![]);
}

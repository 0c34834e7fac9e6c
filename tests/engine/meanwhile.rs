//! What others do while the first image of a block is being written.

use crate::harness::{BLOCK, options, tiers};
use crate::opening::{Open, Opening};
use heatfs::device::Device;
use heatfs::device::sim::SimWorld;
use heatfs::volume::{Volume, Wait};
use std::sync::{Arc, Mutex};

type Action = Box<dyn FnOnce() + Send>;

/// The device does `action` once, when an object is looked for.
fn with_occasion(device: Arc<dyn Device>, action: &Arc<Mutex<Option<Action>>>) -> Arc<dyn Device> {
    let action = Arc::clone(action);
    let open: Open = Box::new(move |device, path, mode| {
        let action = action.lock().expect("nobody panicked").take_if(|_| path.starts_with("objects/"));
        if let Some(action) = action {
            action();
        }
        device.open(path, mode)
    });
    Arc::new(Opening { device, open })
}

/// R3: a cut has no image to lay zeros over then, so what is being written must not become the block's base.
#[test]
fn bytes_cut_while_their_first_image_is_written_do_not_come_back() {
    let world = SimWorld::new(1);
    let action = Arc::new(Mutex::new(None));
    let with_occasions = || {
        let mut tiers = tiers(&world);
        tiers[0].device = with_occasion(tiers[0].device.clone(), &action);
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

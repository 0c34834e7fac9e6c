//! Volumes whose fastest tier's filesystem others have filled to the last byte: a small one in memory, which only root can make.

use crate::attacks::is_root;
use crate::lab::{Lab, assert_same, bytes, filled_in, snapshot};
use heatfs::volume::Wait;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use std::fs::{self, File};
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};

const SIZE: &str = "size=96m,mode=755";

/// A filesystem of its own on a directory, as long as this is there.
struct Small(PathBuf);

impl Small {
    fn on(directory: PathBuf) -> Small {
        mount(None::<&str>, &directory, Some("tmpfs"), MsFlags::empty(), Some(SIZE)).unwrap();
        Small(directory)
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        umount2(&self.0, MntFlags::MNT_DETACH).unwrap();
    }
}

/// Writes until not a single byte is taken any more.
fn fill_up(path: &Path) {
    let mut file = File::options().create(true).append(true).open(path).unwrap();
    for piece in [vec![1; 1 << 20], vec![1; 4096], vec![1; 1]] {
        let full = loop {
            if let Err(error) = file.write_all(&piece) {
                break error;
            }
        };
        assert_eq!(full.kind(), ErrorKind::StorageFull);
    }
}

/// Each start and each stop writes who the tiers are, and who holds them: that takes no room which others could have taken.
#[test]
fn r22_a_volume_is_started_and_stopped_on_a_full_filesystem() {
    if !is_root() {
        return;
    }
    let (lab, before) = filled_in(Lab::fast());
    let _small = Small::on(lab.path("nvme"));
    lab.adopt().unwrap();
    lab.serve(|_| {});
    let others = lab.path("nvme").join("of others");
    fill_up(&others);
    let id = lab.id_of("base/1/16384");
    for round in 1..=3 {
        let look = |volume: &std::sync::Arc<heatfs::volume::Volume>| {
            let mut content = vec![0; 300_000];
            let read = volume.read(&volume.file(id).unwrap(), 0, &mut content, Wait::Allowed).unwrap();
            assert!(read == content.len() && content == bytes(1, 300_000), "round {round}");
            fill_up(&others);
        };
        lab.crash(look);
        lab.serve(look);
    }
    fs::remove_file(&others).unwrap();
    lab.release().unwrap();
    assert_same(&snapshot(&lab.data()), &before, "released");
    assert_eq!(fs::read_dir(lab.path("nvme")).unwrap().count(), 0, "nothing is left behind");
}

//! The grave: where a regular file's inode keeps a hidden name after its last one is gone.
//!
//! The inode (owner, mode, times) must outlive its names while somebody has it open and until the engine has durably dropped its data;
//! and after a crash the grave is what tells which files nobody can reach any more. An entry is `home/grave/<file id>`. It is made
//! *before* the last name goes, so that there is no moment at which the data belong to nobody, and removed when the engine says that the data are durably gone.

use super::fault::Outcome;
use crate::device::sys_home;
use crate::error::{Error, Result};
use crate::units::FileId;
use crate::volume::Volume;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, AtFlags, OFlag, open};
use nix::sys::stat::{Mode, fstatat};
use nix::unistd::{UnlinkatFlags, linkat, unlinkat};
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;

pub struct Grave {
    directory: OwnedFd,
    path: String,
}

impl Grave {
    pub fn open(home: &Path) -> Result<Grave> {
        let path = home.join("grave");
        let text = path.display().to_string();
        let directory = open(&path, OFlag::O_RDONLY | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(|errno| Error::io("open", text.clone(), errno.into()))?;
        Ok(Grave { directory, path: text })
    }

    /// Gives the inode of `fd` its hidden name.
    pub fn bury(&self, id: FileId, fd: impl AsFd) -> Outcome<()> {
        let inode = sys_home::descriptor_path(&fd);
        match linkat(AT_FDCWD, inode.as_c_str(), &self.directory, name(id).as_str(), AtFlags::AT_SYMLINK_FOLLOW) {
            // An earlier attempt was cut off after its first half; ids are never reused, so it is the same file.
            Ok(()) | Err(Errno::EEXIST) => Ok(()),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Takes the hidden name away. Nothing happens when there is none.
    pub fn unbury(&self, id: FileId) {
        match unlinkat(&self.directory, name(id).as_str(), UnlinkatFlags::NoRemoveDir) {
            Ok(()) | Err(Errno::ENOENT) => {}
            Err(errno) => tracing::warn!("remove {}/{}: {errno}", self.path, name(id)),
        }
    }

    /// At mount: files without any other name are handed to the engine for removal; of the others (a crash came between the hidden
    /// name and the loss of the last one) the hidden name goes. The number of files handed over.
    pub fn settle(&self, volume: &Volume) -> Result<u64> {
        let io = |action, errno: Errno| Error::io(action, self.path.clone(), errno.into());
        let mut removed = 0;
        for entry in super::directory::entries(&self.directory).map_err(|errno| io("list", errno))? {
            let Some(id) = entry.name.to_str().and_then(|text| u64::from_str_radix(text, 16).ok()).map(FileId) else {
                tracing::warn!("{}/{}: not a file id, left alone", self.path, entry.name.display());
                continue;
            };
            let stat = fstatat(&self.directory, entry.name.as_os_str(), AtFlags::AT_SYMLINK_NOFOLLOW)
                .map_err(|errno| io("stat", errno))?;
            if stat.st_nlink > 1 {
                self.unbury(id);
            } else {
                volume.remove(id)?;
                removed += 1;
            }
        }
        Ok(removed)
    }
}

fn name(id: FileId) -> String {
    id.to_string()
}

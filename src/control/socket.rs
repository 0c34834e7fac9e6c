//! The control socket as a file: never open to others for a moment, never taken from a daemon that lives.

use crate::error::{Error, Result};
use nix::sys::stat::{FchmodatFlags, Mode, fchmodat};
use std::io;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A listening socket; its file goes when this is dropped.
pub(super) struct Socket {
    path: PathBuf,
}

impl Socket {
    /// Binds with mode 0660. Errors: `Busy` when another daemon answers there; what the directory lacks.
    pub(super) fn bind(path: &Path) -> Result<(Socket, UnixListener)> {
        let shown = || path.display().to_string();
        if UnixStream::connect(path).is_ok() {
            return Err(Error::Busy(format!("control socket {}: another daemon answers there", shown())));
        }
        make_directory(path)?;
        // Bound under another name and renamed when its mode is right: with the umask it would be open, or closed, by chance.
        let hidden = path.with_extension(format!("{}.new", std::process::id()));
        remove(&hidden)?;
        let listener =
            UnixListener::bind(&hidden).map_err(|error| Error::io("binding control socket", shown(), error))?;
        let ready =
            fchmodat(nix::fcntl::AT_FDCWD, &hidden, Mode::from_bits_truncate(0o660), FchmodatFlags::FollowSymlink)
                .and_then(|()| nix::fcntl::renameat(nix::fcntl::AT_FDCWD, &hidden, nix::fcntl::AT_FDCWD, path));
        if let Err(errno) = ready {
            remove(&hidden)?;
            return Err(Error::io("binding control socket", shown(), errno.into()));
        }
        Ok((Socket { path: path.to_owned() }, listener))
    }
}

impl Drop for Socket {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path) {
            tracing::warn!("{error}");
        }
    }
}

fn make_directory(path: &Path) -> Result<()> {
    let Some(parent) = path.parent() else { return Ok(()) };
    match nix::unistd::mkdir(parent, Mode::from_bits_truncate(0o755)) {
        Ok(()) | Err(nix::errno::Errno::EEXIST) => Ok(()),
        Err(errno) => {
            Err(Error::io("creating directory of the control socket", parent.display().to_string(), errno.into()))
        }
    }
}

fn remove(path: &Path) -> Result<()> {
    match nix::unistd::unlink(path).map_err(io::Error::from) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            Err(Error::io("removing control socket", path.display().to_string(), error))
        }
        _ => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use super::Socket;
    use std::os::unix::fs::PermissionsExt;

    #[test]
    fn a_living_socket_is_not_taken_and_a_dead_one_is() {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let path = dir.path().join("sub/pg.sock");
        let (socket, listener) = Socket::bind(&path).expect("bound");
        assert_eq!(path.metadata().expect("stat").permissions().mode() & 0o777, 0o660);
        let error = Socket::bind(&path).err().expect("refused").to_string();
        assert!(error.contains("another daemon"), "{error}");
        // Killed: the file stays, nobody listens.
        std::mem::forget(socket);
        drop(listener);
        let (socket, _listener) = Socket::bind(&path).expect("taken over");
        drop(socket);
        assert!(!path.exists());
    }
}

//! Directories that jobs work in, opened once and named through their descriptors from then on.
//!
//! Who adopts and releases is often root, and the directory above the database's, or above a tier, often belongs to somebody else. He may rename what is in it and put a
//! link in its place at any moment, and paths would lead where he wants. `/proc/self/fd/N/.` is the directory that was opened, whatever happens to its name. What is
//! made in it is where it is, then, even if that is called otherwise by the end.

use crate::error::{Error, Result};
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use std::fs;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};

const NAMES_ONLY: OFlag = OFlag::O_PATH.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC);

/// A directory that is held.
pub(super) struct Anchor {
    descriptor: OwnedFd,
    /// As people know it.
    shown: PathBuf,
    /// Through the descriptor; as it is shown where there is no /proc.
    path: PathBuf,
}

impl Anchor {
    pub fn new(descriptor: OwnedFd, shown: PathBuf) -> Anchor {
        // With `.` it is the directory itself, for calls that do not follow links, too.
        let through = PathBuf::from(format!("/proc/self/fd/{}/.", descriptor.as_raw_fd()));
        let path = if through.is_dir() { through } else { shown.clone() };
        Anchor { descriptor, shown, path }
    }

    /// A directory by its path without symbolic links. Errors: `Busy` if there are some in it by now.
    pub fn at(directory: &Path) -> Result<Anchor> {
        let how = OpenHow::new().flags(NAMES_ONLY).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
        match openat2(AT_FDCWD, directory, how) {
            Ok(descriptor) => Ok(Anchor::new(descriptor, directory.to_owned())),
            Err(errno) => Err(not_held(directory, errno)),
        }
    }

    /// What a name in a held directory is, if it is a directory itself. Errors: `Busy` for anything else, a link to one included.
    pub fn of_name(spot: &Spot) -> Result<Anchor> {
        let opened = nix::fcntl::open(&spot.path, NAMES_ONLY | OFlag::O_NOFOLLOW, nix::sys::stat::Mode::empty());
        match opened {
            Ok(descriptor) => Ok(Anchor::new(descriptor, spot.shown.clone())),
            Err(errno) => Err(not_held(&spot.shown, errno)),
        }
    }

    /// What a path leads to, links followed; it is shown as the path without them.
    pub fn behind(path: &Path) -> std::io::Result<Anchor> {
        let descriptor = nix::fcntl::open(path, NAMES_ONLY, nix::sys::stat::Mode::empty())?;
        let named = fs::read_link(format!("/proc/self/fd/{}", descriptor.as_raw_fd()));
        let shown = named.or_else(|_| fs::canonicalize(path))?;
        Ok(Anchor::new(descriptor, shown))
    }

    /// Where to work: this leads nowhere else.
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn shown(&self) -> &Path {
        &self.shown
    }

    pub fn descriptor(&self) -> impl AsFd {
        &self.descriptor
    }

    /// A text with the directory as people know it.
    pub fn in_line(&self, line: &str) -> String {
        let (through, shown) = (self.path.display().to_string(), self.shown.display().to_string());
        let Some(short) = through.strip_suffix("/.") else { return line.to_owned() };
        let line = line.replace(&through, &shown);
        // The parent of a name in it lacks the `.`; another descriptor's number may begin like this one's.
        let mut parts = line.split(short);
        let mut text = parts.next().unwrap_or_default().to_owned();
        for part in parts {
            text.push_str(if part.starts_with(|c: char| c.is_ascii_digit()) { short } else { &shown });
            text.push_str(part);
        }
        text
    }

    /// An error of what was done in the directory, with its path as people know it.
    pub fn named(&self, error: Error) -> Error {
        let text = |text: String| self.in_line(&text);
        match error {
            Error::Io { action, path, source } => Error::Io { action, path: text(path), source },
            Error::Corrupt { what, path, offset, why } => {
                Error::Corrupt { what, path: text(path), offset, why: text(why) }
            }
            Error::WrongTier { tier, path, why } => Error::WrongTier { tier, path: text(path), why: text(why) },
            Error::Untrusted { file, why } => Error::Untrusted { file, why: text(why) },
            Error::State { path, why } => Error::State { path: text(path), why: text(why) },
            Error::Busy(line) => Error::Busy(text(line)),
            Error::Invalid(line) => Error::Invalid(text(line)),
            Error::NotFound(line) => Error::NotFound(text(line)),
            other => other,
        }
    }
}

fn not_held(directory: &Path, errno: Errno) -> Error {
    match errno {
        Errno::ELOOP | Errno::ENOTDIR => {
            Error::Busy(format!("{} became something else after it was looked at", directory.display()))
        }
        errno => Error::io("open", directory.display().to_string(), errno.into()),
    }
}

/// A name in a directory that is held, whether or not something has it.
pub(super) struct Spot {
    parent: Anchor,
    shown: PathBuf,
    path: PathBuf,
}

impl Spot {
    /// By its path without symbolic links.
    pub fn of(directory: &Path) -> Result<Spot> {
        let (Some(parent), Some(name)) = (directory.parent(), directory.file_name()) else {
            return Err(Error::Invalid(format!("{} is in no directory", directory.display())));
        };
        let parent = Anchor::at(parent)?;
        Ok(Spot { path: parent.path().join(name), shown: directory.to_owned(), parent })
    }

    /// For calls that do not follow a link of that name; for others there is [`Anchor::of_name`].
    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn shown(&self) -> &Path {
        &self.shown
    }

    pub fn parent(&self) -> &Anchor {
        &self.parent
    }

    pub fn named(&self, error: Error) -> Error {
        self.parent.named(error)
    }
}

#[cfg(test)]
mod tests {
    use super::{Anchor, Spot};
    use crate::error::Error;
    use std::fs;
    use std::os::unix::fs::symlink;

    #[test]
    fn what_is_held_stays_what_it_is_and_is_told_by_its_name() {
        let lab = tempfile::tempdir().unwrap();
        let top = lab.path().canonicalize().unwrap();
        fs::create_dir_all(top.join("a/b")).unwrap();
        fs::create_dir(top.join("outside")).unwrap();
        let spot = Spot::of(&top.join("a/b")).unwrap();
        let (held, parent) = (Anchor::of_name(&spot).unwrap(), Anchor::behind(&top.join("a")).unwrap());
        assert_eq!((held.shown(), parent.shown()), (top.join("a/b").as_path(), top.join("a").as_path()));
        fs::rename(top.join("a"), top.join("aside")).unwrap();
        symlink(top.join("outside"), top.join("a")).unwrap();
        fs::write(held.path().join("file"), "x").unwrap();
        fs::create_dir(spot.path().with_file_name("c")).unwrap();
        assert!(top.join("aside/b/file").exists() && top.join("aside/c").exists());
        assert_eq!(fs::read_dir(top.join("outside")).unwrap().count(), 0);
        let told = |path: &std::path::Path| {
            let error = Error::io("open", path.display().to_string(), std::io::ErrorKind::NotFound.into());
            spot.named(held.named(parent.named(error))).to_string()
        };
        assert!(told(&held.path().join("file")).contains(&top.join("a/b/file").display().to_string()));
        assert!(told(spot.path()).contains(&top.join("a/b").display().to_string()));
        assert!(told(spot.path().parent().unwrap()).contains(&format!("open {}: ", top.join("a").display())));
    }

    #[test]
    fn links_are_not_followed_where_none_were() {
        let lab = tempfile::tempdir().unwrap();
        let top = lab.path().canonicalize().unwrap();
        fs::create_dir(top.join("real")).unwrap();
        symlink("real", top.join("link")).unwrap();
        assert!(matches!(Anchor::at(&top.join("link")), Err(Error::Busy(_))));
        assert!(matches!(Spot::of(&top.join("link/below")), Err(Error::Busy(_))));
        assert!(matches!(Anchor::of_name(&Spot::of(&top.join("link")).unwrap()), Err(Error::Busy(_))));
        assert_eq!(Anchor::behind(&top.join("link")).unwrap().shown(), top.join("real"));
    }
}

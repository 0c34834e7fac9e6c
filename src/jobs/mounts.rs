//! Which mount a path is on: a rename between two mounts fails even where both show the same filesystem.

use crate::error::{Error, Result};
use std::ffi::OsString;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};

/// The mount points of this process's namespace, in the order in which they were mounted.
pub(super) struct Mounts(Vec<PathBuf>);

impl Mounts {
    pub fn read() -> Result<Mounts> {
        const MOUNTINFO: &str = "/proc/self/mountinfo";
        let text = std::fs::read(MOUNTINFO).map_err(|e| Error::io("read", MOUNTINFO, e))?;
        Ok(Mounts(text.split(|byte| *byte == b'\n').filter_map(mount_point).collect()))
    }

    pub fn is_mount_point(&self, path: &Path) -> bool {
        self.0.iter().any(|point| point == path)
    }

    /// The mount point that `path`, an absolute path without symbolic links, lies below.
    pub fn of<'a>(&'a self, path: &Path) -> &'a Path {
        let deepest = self.0.iter().filter(|point| path.starts_with(point)).max_by_key(|point| point.as_os_str().len());
        deepest.map_or(Path::new("/"), PathBuf::as_path)
    }

    /// Mount points strictly below `path`.
    pub fn below<'a>(&'a self, path: &'a Path) -> impl Iterator<Item = &'a PathBuf> {
        self.0.iter().filter(move |point| point.starts_with(path) && *point != path)
    }
}

/// The fifth field of a line, with its `\ooo` undone.
fn mount_point(line: &[u8]) -> Option<PathBuf> {
    let field = line.split(|byte| *byte == b' ').nth(4)?;
    let mut plain = Vec::with_capacity(field.len());
    let mut at = 0;
    while let Some(&byte) = field.get(at) {
        let octal = field.get(at + 1..at + 4).and_then(|digits| std::str::from_utf8(digits).ok());
        match octal.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(escaped) if byte == b'\\' => {
                plain.push(escaped);
                at += 4;
            }
            _ => {
                plain.push(byte);
                at += 1;
            }
        }
    }
    Some(PathBuf::from(OsString::from_vec(plain)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn points_with_blanks_are_read_and_the_deepest_counts() {
        let lines = [
            "1 0 8:1 / / rw - ext4 /dev/a rw",
            "2 1 8:2 / /srv/my\\040data rw shared:1 - ext4 /dev/b rw",
            "3 2 8:3 / /srv/my\\040data/wal rw - ext4 /dev/c rw",
        ];
        let mounts = Mounts(lines.iter().filter_map(|line| mount_point(line.as_bytes())).collect());
        assert_eq!(mounts.of(Path::new("/srv/my data/base")), Path::new("/srv/my data"));
        assert_eq!(mounts.of(Path::new("/srv/my data2")), Path::new("/"));
        assert!(mounts.is_mount_point(Path::new("/srv/my data/wal")));
        let below: Vec<_> = mounts.below(Path::new("/srv/my data")).collect();
        assert_eq!(below, [Path::new("/srv/my data/wal")]);
        assert!(Mounts::read().unwrap().is_mount_point(Path::new("/")));
    }
}

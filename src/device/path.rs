//! What a path relative to a device may look like: the same rule on real disks and on the simulated one.

use std::io;

/// Refuses what could leave the device's directory or name one thing in two ways: absolute paths and the components
/// `.`, `..` and the empty one.
pub(super) fn check(path: &str) -> io::Result<()> {
    let proper = |name: &str| !name.is_empty() && name != "." && name != ".." && !name.contains('\0');
    if path.split('/').all(proper) {
        return Ok(());
    }
    Err(io::Error::new(io::ErrorKind::InvalidInput, format!("`{path}` is not a path below a device")))
}

/// As [`check`], where the empty path stands for the device's own directory.
pub(super) fn check_dir(path: &str) -> io::Result<()> {
    if path.is_empty() { Ok(()) } else { check(path) }
}

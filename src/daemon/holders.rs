//! Mounts and who holds them, read from /proc alone: no call goes to the mount itself, which may be dead or be waiting for us.
//!
//! A mount has an id in each mount namespace; all its copies share the device number. A process holds it by a descriptor (fdinfo names
//! the mount id), a mapping (maps names the device), its working directory or its root (links, compared by path).

use crate::error::{Error, Result};
use std::collections::HashMap;
use std::fmt;
use std::path::{Path, PathBuf};

/// A mount of this process's namespace.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mount {
    pub id: u64,
    /// `major:minor`, as the kernel writes it in mountinfo.
    pub device: String,
    pub point: PathBuf,
    pub fs_type: String,
    pub source: String,
}

/// A process that keeps a mount from going.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Holder {
    pub pid: u32,
    pub command: String,
    /// What it holds: `descriptor`, `mapping`, `working directory`, `root`.
    pub by: &'static str,
}

impl fmt::Display for Holder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} ({}, {})", self.pid, self.command, self.by)
    }
}

/// The holders as one line, the first few by name.
pub fn describe(holders: &[Holder]) -> String {
    let named: Vec<String> = holders.iter().take(5).map(Holder::to_string).collect();
    match holders.len().saturating_sub(5) {
        0 => named.join(", "),
        more => format!("{} and {more} more", named.join(", ")),
    }
}

/// The topmost mount at exactly this path, if there is one.
pub fn mount_at(point: &Path) -> Result<Option<Mount>> {
    let text = read_text(Path::new("/proc/self/mountinfo"))
        .map_err(|error| Error::io("reading", "/proc/self/mountinfo", error))?;
    Ok(parse_mounts(&text).into_iter().rfind(|mount| mount.point == point))
}

/// Is the daemon behind a FUSE mount gone? Asked by statfs, because the kernel answers stat from attributes that it
/// keeps for an hour.
pub fn is_dead(point: &Path) -> bool {
    nix::sys::statvfs::statvfs(point) == Err(nix::errno::Errno::ENOTCONN)
}

/// All processes but this one that hold the mount, by pid. Processes that we may not look into are left out.
pub fn holders(mount: &Mount) -> Vec<Holder> {
    let own = std::process::id();
    let mut ids_of_namespace = HashMap::new();
    let Ok(entries) = Path::new("/proc").read_dir() else { return Vec::new() };
    let mut found: Vec<Holder> = entries
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .filter(|pid| *pid != own)
        .filter_map(|pid| {
            let process = PathBuf::from(format!("/proc/{pid}"));
            let by = held_by(&process, mount, &mut ids_of_namespace)?;
            let command = read_text(&process.join("comm")).unwrap_or_default();
            Some(Holder { pid, command: command.trim_end().to_owned(), by })
        })
        .collect();
    found.sort_by_key(|holder| holder.pid);
    found
}

fn held_by(process: &Path, mount: &Mount, ids_of_namespace: &mut HashMap<PathBuf, Vec<u64>>) -> Option<&'static str> {
    let namespace = process.join("ns/mnt").read_link().ok()?;
    let ids = ids_of_namespace.entry(namespace).or_insert_with(|| {
        let mounts = read_text(&process.join("mountinfo")).map(|text| parse_mounts(&text)).unwrap_or_default();
        mounts.into_iter().filter(|copy| copy.device == mount.device).map(|copy| copy.id).collect()
    });
    if ids.is_empty() {
        return None;
    }
    if has_descriptor(process, ids) {
        return Some("descriptor");
    }
    if has_mapping(process, &mount.device) {
        return Some("mapping");
    }
    let below = |link: &str| process.join(link).read_link().is_ok_and(|target| target.starts_with(&mount.point));
    match () {
        () if below("cwd") => Some("working directory"),
        () if below("root") => Some("root"),
        () => None,
    }
}

fn has_descriptor(process: &Path, ids: &[u64]) -> bool {
    let Ok(entries) = process.join("fdinfo").read_dir() else { return false };
    entries.flatten().any(|entry| {
        let text = read_text(&entry.path()).unwrap_or_default();
        let id = text.lines().find_map(|line| line.strip_prefix("mnt_id:")).and_then(|id| id.trim().parse().ok());
        id.is_some_and(|id: u64| ids.contains(&id))
    })
}

/// maps writes `major:minor` in hexadecimal, mountinfo in decimal.
fn has_mapping(process: &Path, device: &str) -> bool {
    let Some((major, minor)) = device.split_once(':') else { return false };
    let (Ok(major), Ok(minor)) = (major.parse::<u32>(), minor.parse::<u32>()) else { return false };
    let wanted = format!("{major:02x}:{minor:02x}");
    let maps = read_text(&process.join("maps")).unwrap_or_default();
    maps.lines().any(|line| line.split_ascii_whitespace().nth(3) == Some(wanted.as_str()))
}

fn parse_mounts(mountinfo: &str) -> Vec<Mount> {
    mountinfo.lines().filter_map(parse_mount).collect()
}

/// `36 35 98:0 /root /point options [optional fields] - type source super-options`
fn parse_mount(line: &str) -> Option<Mount> {
    let (before, after) = line.split_once(" - ")?;
    let mut fields = before.split(' ');
    let id = fields.next()?.parse().ok()?;
    let device = fields.nth(1)?.to_owned();
    let point = PathBuf::from(unescape(fields.nth(1)?));
    let mut after = after.split(' ');
    Some(Mount { id, device, point, fs_type: after.next()?.to_owned(), source: unescape(after.next()?) })
}

/// mountinfo writes blanks, tabs, line breaks and backslashes as `\ooo`.
fn unescape(text: &str) -> String {
    let mut parts = text.split('\\');
    let mut plain = parts.next().unwrap_or_default().to_owned();
    for part in parts {
        match part.get(..3).and_then(|octal| u8::from_str_radix(octal, 8).ok()) {
            Some(byte) => {
                plain.push(char::from(byte));
                plain.push_str(&part[3..]);
            }
            None => {
                plain.push('\\');
                plain.push_str(part);
            }
        }
    }
    plain
}

/// A file of /proc as text; what is not UTF-8 is replaced.
fn read_text(path: &Path) -> std::io::Result<String> {
    use nix::fcntl::{OFlag, open};
    let file = open(path, OFlag::O_RDONLY | OFlag::O_CLOEXEC, nix::sys::stat::Mode::empty())?;
    let mut bytes = Vec::new();
    let mut chunk = [0u8; 16384];
    loop {
        match nix::unistd::read(&file, &mut chunk)? {
            0 => return Ok(String::from_utf8_lossy(&bytes).into_owned()),
            count => bytes.extend_from_slice(&chunk[..count]),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::{Holder, describe, holders, mount_at, parse_mount, unescape};
    use std::path::Path;

    #[test]
    fn mountinfo_lines() {
        let line = r"71 28 0:52 / /srv/my\040data rw,nosuid,nodev,relatime shared:3 - fuse.heatfs pg rw,user_id=0";
        let mount = parse_mount(line).expect("parsed");
        assert_eq!((mount.id, mount.device.as_str(), mount.point.as_path()), (71, "0:52", Path::new("/srv/my data")));
        assert_eq!((mount.fs_type.as_str(), mount.source.as_str()), ("fuse.heatfs", "pg"));
        assert_eq!(parse_mount("garbage"), None);
        assert_eq!(unescape(r"a\134b\x"), r"a\b\x");
    }

    /// A child that sits in /proc holds that mount by its working directory and is found, with its name.
    #[test]
    fn a_working_directory_is_found() {
        let mut child =
            std::process::Command::new("sleep").arg("60").current_dir("/proc").spawn().expect("sleep starts");
        let mount = mount_at(Path::new("/proc")).expect("mountinfo is readable").expect("/proc is mounted");
        let found = holders(&mount).into_iter().find(|holder| holder.pid == child.id());
        child.kill().expect("killed");
        child.wait().expect("reaped");
        let found = found.expect("the child is found");
        assert_eq!(found.by, "working directory");
    }

    #[test]
    fn long_lists_are_cut() {
        let holder = |pid| Holder { pid, command: "postgres".into(), by: "descriptor" };
        assert_eq!(describe(&[holder(7)]), "7 (postgres, descriptor)");
        let many: Vec<Holder> = (1..=8).map(holder).collect();
        assert!(describe(&many).ends_with("and 3 more"));
    }
}

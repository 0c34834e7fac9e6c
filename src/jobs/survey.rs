//! What a directory holds and who uses it, found out before anything is changed.

use super::mounts::Mounts;
use crate::device::sys;
use crate::error::{Error, Result};
use std::collections::{HashMap, HashSet};
use std::ffi::CString;
use std::fs::{self, Metadata};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// The contents of a directory.
#[derive(Default)]
pub(super) struct Survey {
    pub directories: u64,
    pub files: u64,
    /// Symbolic links, pipes, sockets and devices.
    pub others: u64,
    /// Lengths of all files together.
    pub bytes: u64,
    /// What they occupy.
    pub allocated_bytes: u64,
    /// Symbolic links that lead out of the directory, as `link -> target`.
    pub leaving: Vec<String>,
    /// Files with names outside of the directory too.
    pub linked_outside: u64,
    /// (device, inode number) of everything found.
    inodes: HashSet<(u64, u64)>,
}

/// A process that has something of a directory open.
pub(super) struct User {
    pid: u32,
    command: String,
    how: &'static str,
}

impl Survey {
    pub fn entries(&self) -> u64 {
        self.directories + self.files + self.others
    }

    /// Walks `directory`, an absolute path without symbolic links; its users see it as `seen_as`. Errors: `Invalid` for what cannot be adopted: mounts below it, files that may
    /// not be changed, files of other owners when we are not root.
    pub fn of(directory: &Path, seen_as: &Path, mounts: &Mounts) -> Result<Survey> {
        let below: Vec<String> = mounts.below(directory).map(|point| point.display().to_string()).collect();
        if !below.is_empty() {
            return Err(Error::Invalid(format!(
                "other filesystems are mounted inside {}: {}. heatfs mounted over it would hide them: unmount them first, and mount them again inside the heatfs mount",
                directory.display(),
                below.join(", ")
            )));
        }
        let mut survey = Survey::default();
        survey.add(directory, directory, seen_as)?;
        let mut pending = vec![directory.to_owned()];
        let mut names_missing: HashMap<u64, u64> = HashMap::new();
        while let Some(dir) = pending.pop() {
            for entry in read_dir(&dir)? {
                let meta = survey.add(&entry, directory, seen_as)?;
                if meta.is_dir() {
                    pending.push(entry);
                } else if meta.is_file() && meta.nlink() > 1 {
                    *names_missing.entry(meta.ino()).or_insert(meta.nlink()) -= 1;
                }
            }
        }
        survey.linked_outside = names_missing.values().filter(|missing| **missing > 0).count() as u64;
        Ok(survey)
    }

    fn add(&mut self, path: &Path, top: &Path, seen_as: &Path) -> Result<Metadata> {
        let meta = fs::symlink_metadata(path).map_err(|e| Error::io("stat", path.display().to_string(), e))?;
        let new = self.inodes.insert((meta.dev(), meta.ino()));
        if meta.is_dir() {
            self.directories += 1;
        } else if meta.is_file() {
            if new {
                self.files += 1;
                self.bytes += meta.len();
                self.allocated_bytes += meta.blocks() * 512;
            }
        } else {
            self.others += 1;
        }
        if meta.is_symlink() {
            let target = fs::read_link(path).map_err(|e| Error::io("read link", path.display().to_string(), e))?;
            let link = seen_as.join(path.strip_prefix(top).unwrap_or(path));
            if leads_out(&link, &target, seen_as) {
                self.leaving.push(format!("{} -> {}", link.display(), target.display()));
            }
        } else if is_unchangeable(path)? {
            return Err(Error::Invalid(format!(
                "{} is immutable or append-only and cannot be moved: clear it with `chattr -i -a`",
                path.display()
            )));
        }
        let me = nix::unistd::geteuid();
        if !me.is_root() && meta.uid() != me.as_raw() {
            return Err(Error::Invalid(format!(
                "{} belongs to user {}; only root can adopt files of others",
                path.display(),
                meta.uid()
            )));
        }
        Ok(meta)
    }

    /// Processes that have an open file, a mapping, their working directory or their root in `directory`; by inode, so that those in
    /// containers, which see other paths, are found too. Processes that we may not look into are left out.
    pub fn users(&self, directory: &Path) -> Vec<User> {
        let own = std::process::id();
        let Ok(entries) = fs::read_dir("/proc") else { return Vec::new() };
        let pids = entries.filter_map(|entry| entry.ok()?.file_name().to_str()?.parse::<u32>().ok());
        let mut users: Vec<User> = pids.filter(|pid| *pid != own).filter_map(|pid| self.user(pid, directory)).collect();
        users.sort_by_key(|user| user.pid);
        users
    }

    fn user(&self, pid: u32, directory: &Path) -> Option<User> {
        let process = PathBuf::from(format!("/proc/{pid}"));
        let holds = |link: &Path| {
            // Not by stat: who holds a file of a mount whose daemon does not answer would hold us up, too.
            let path = CString::new(link.as_os_str().as_bytes()).unwrap_or_default();
            let inside = sys::known_inode(&path).is_ok_and(|inode| self.inodes.contains(&inode));
            inside || fs::read_link(link).is_ok_and(|target| target.starts_with(directory))
        };
        let open = || fs::read_dir(process.join("fd")).is_ok_and(|fds| fds.flatten().any(|fd| holds(&fd.path())));
        let how = if holds(&process.join("cwd")) {
            "working directory"
        } else if holds(&process.join("root")) || holds(&process.join("exe")) {
            "root or program"
        } else if open() {
            "open file"
        } else if self.maps(&process, directory) {
            "mapping"
        } else {
            return None;
        };
        let command = fs::read_to_string(process.join("comm")).unwrap_or_default();
        Some(User { pid, command: command.trim_end().to_owned(), how })
    }

    /// Lines are `range rights offset major:minor inode path`.
    fn maps(&self, process: &Path, directory: &Path) -> bool {
        let maps = fs::read(process.join("maps")).unwrap_or_default();
        let maps = String::from_utf8_lossy(&maps);
        maps.lines().any(|line| {
            let mut fields = line.split_ascii_whitespace();
            let device = fields.nth(3).and_then(|device| device.split_once(':'));
            let device = device.and_then(|(major, minor)| {
                let parse = |hex| u64::from_str_radix(hex, 16).ok();
                Some(nix::sys::stat::makedev(parse(major)?, parse(minor)?))
            });
            let inode = fields.next().and_then(|inode| inode.parse().ok());
            let path = line.find('/').map(|at| Path::new(&line[at..]));
            device.zip(inode).is_some_and(|inode| self.inodes.contains(&inode))
                || path.is_some_and(|path| path.starts_with(directory))
        })
    }
}

impl std::fmt::Display for User {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} ({}, {})", self.pid, self.command, self.how)
    }
}

/// Refuses a directory that somebody uses: `Busy`, naming them.
pub(super) fn refuse_if_used(survey: &Survey, directory: &Path) -> Result<()> {
    let users = survey.users(directory);
    if users.is_empty() {
        return Ok(());
    }
    let named: Vec<String> = users.iter().take(5).map(User::to_string).collect();
    let more = users.len().saturating_sub(5);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    Err(Error::Busy(format!("{} is in use by {}{more}: stop them first", directory.display(), named.join(", "))))
}

/// Refuses a PostgreSQL data directory whose server runs, even one that we may not look into.
pub(super) fn refuse_if_postmaster_runs(directory: &Path) -> Result<()> {
    let Ok(text) = fs::read_to_string(directory.join("postmaster.pid")) else { return Ok(()) };
    let pid = text.lines().next().and_then(|line| line.trim().parse().ok()).filter(|pid: &i32| *pid > 1);
    let Some(pid) = pid else { return Ok(()) };
    match nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), None) {
        Err(nix::errno::Errno::ESRCH) => Ok(()),
        Ok(()) | Err(_) => Err(Error::Busy(format!(
            "{} has a postmaster.pid of process {pid}, which is running: stop PostgreSQL first",
            directory.display()
        ))),
    }
}

/// Names in a directory with their paths, sorted, so that an interrupted walk is repeated in the same order.
pub(super) fn read_dir(dir: &Path) -> Result<Vec<PathBuf>> {
    let io = |e| Error::io("list", dir.display().to_string(), e);
    let mut paths = Vec::new();
    for entry in fs::read_dir(dir).map_err(io)? {
        paths.push(entry.map_err(io)?.path());
    }
    paths.sort();
    Ok(paths)
}

/// Judged by the text of the link, since what it leads to may not be there at the moment.
fn leads_out(link: &Path, target: &Path, top: &Path) -> bool {
    let Some(parent) = link.parent() else { return true };
    let mut at = PathBuf::new();
    for component in parent.join(target).components() {
        match component {
            std::path::Component::ParentDir => {
                at.pop();
            }
            other => at.push(other),
        }
    }
    !at.starts_with(top)
}

fn is_unchangeable(path: &Path) -> Result<bool> {
    let io = |e| Error::io("stat", path.display().to_string(), e);
    let name = CString::new(path.as_os_str().as_bytes()).map_err(|e| io(e.into()))?;
    sys::is_unchangeable(&name).map_err(io)
}

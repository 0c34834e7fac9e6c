//! The names of a simulated device: what calls see, what a crash leaves, and the operations between the two.

use std::collections::{BTreeMap, BTreeSet};
use std::io;

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Entry {
    Dir,
    File(u64),
}

/// A change of names that a directory sync has not made durable yet.
#[derive(Clone)]
enum NameOp {
    Add(String, Entry),
    Rename { from: String, to: String },
    Remove(String),
}

impl NameOp {
    /// The directory whose sync makes this durable by contract.
    fn owner(&self) -> &str {
        match self {
            NameOp::Add(path, _) | NameOp::Remove(path) | NameOp::Rename { to: path, .. } => parent(path),
        }
    }

    fn directories(&self) -> [&str; 2] {
        match self {
            NameOp::Add(path, _) | NameOp::Remove(path) => [parent(path), parent(path)],
            NameOp::Rename { from, to } => [parent(from), parent(to)],
        }
    }
}

/// Paths to entries; the device's own directory has none and is always there.
#[derive(Clone, Default)]
pub(super) struct Names {
    live: BTreeMap<String, Entry>,
    durable: BTreeMap<String, Entry>,
    /// Oldest first. Applied to `durable` in this order they give `live`.
    pending: Vec<NameOp>,
}

impl Names {
    /// The entry at a path; `NotADirectory` when the path leads through a file.
    pub(super) fn find(&self, path: &str) -> io::Result<Option<Entry>> {
        if path.is_empty() {
            return Ok(Some(Entry::Dir));
        }
        for (at, _) in path.match_indices('/') {
            match self.live.get(&path[..at]) {
                Some(Entry::Dir) => {}
                Some(Entry::File(_)) => return Err(io::ErrorKind::NotADirectory.into()),
                None => return Ok(None),
            }
        }
        Ok(self.live.get(path).copied())
    }

    /// Succeeds if the path is a directory.
    pub(super) fn expect_dir(&self, path: &str) -> io::Result<()> {
        match self.find(path)? {
            Some(Entry::Dir) => Ok(()),
            Some(Entry::File(_)) => Err(io::ErrorKind::NotADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    /// The file at a path.
    pub(super) fn expect_file(&self, path: &str) -> io::Result<u64> {
        match self.find(path)? {
            Some(Entry::File(inode)) => Ok(inode),
            Some(Entry::Dir) => Err(io::ErrorKind::IsADirectory.into()),
            None => Err(io::ErrorKind::NotFound.into()),
        }
    }

    pub(super) fn list(&self, dir: &str) -> io::Result<Vec<String>> {
        self.expect_dir(dir)?;
        let prefix = if dir.is_empty() { String::new() } else { format!("{dir}/") };
        let below = self.live.range(prefix.clone()..).map_while(|(path, _)| path.strip_prefix(&prefix));
        Ok(below.filter(|name| !name.contains('/')).map(str::to_owned).collect())
    }

    pub(super) fn add(&mut self, path: &str, entry: Entry) {
        self.push(NameOp::Add(path.to_owned(), entry));
    }

    pub(super) fn remove(&mut self, path: &str) {
        self.push(NameOp::Remove(path.to_owned()));
    }

    pub(super) fn rename(&mut self, from: &str, to: &str) {
        self.push(NameOp::Rename { from: from.to_owned(), to: to.to_owned() });
    }

    fn push(&mut self, op: NameOp) {
        apply(&mut self.live, &op);
        self.pending.push(op);
    }

    /// Makes the names in one directory durable, and no others than order demands: a filesystem's journal never has an
    /// operation without the earlier ones in the same directory, and never half a rename. The name of the directory itself
    /// is one of its parent's.
    pub(super) fn sync_dir(&mut self, dir: &str) {
        let mut needed: BTreeSet<String> = BTreeSet::new();
        let mut chosen = Vec::new();
        let mut left = Vec::new();
        for op in std::mem::take(&mut self.pending).into_iter().rev() {
            if op.owner() == dir || op.directories().iter().any(|d| needed.contains(*d)) {
                needed.extend(op.directories().map(str::to_owned));
                chosen.push(op);
            } else {
                left.push(op);
            }
        }
        chosen.iter().rev().for_each(|op| apply(&mut self.durable, op));
        left.reverse();
        self.pending = left;
    }

    pub(super) fn sync_all(&mut self) {
        self.keep(self.pending.len());
    }

    pub(super) fn pending(&self) -> usize {
        self.pending.len()
    }

    /// Makes the first `count` pending operations durable.
    fn keep(&mut self, count: usize) {
        for op in self.pending.drain(..count) {
            apply(&mut self.durable, &op);
        }
    }

    /// The names after a crash that the first `survivors` pending operations survived. Entries in directories that did not
    /// survive are gone with them.
    pub(super) fn after_crash(&self, survivors: usize) -> Names {
        let mut names = self.clone();
        names.keep(survivors);
        let mut reachable: BTreeMap<String, Entry> = BTreeMap::new();
        // In order of paths a directory comes before what is in it.
        for (path, entry) in names.durable {
            let dir = parent(&path);
            if dir.is_empty() || reachable.get(dir) == Some(&Entry::Dir) {
                reachable.insert(path, entry);
            }
        }
        Names { live: reachable.clone(), durable: reachable, pending: Vec::new() }
    }

    /// Every file that a name leads to, before or after a crash; complete only while nothing is pending.
    pub(super) fn files(&self) -> BTreeSet<u64> {
        let file = |entry: &Entry| match entry {
            Entry::File(inode) => Some(*inode),
            Entry::Dir => None,
        };
        self.live.values().chain(self.durable.values()).filter_map(file).collect()
    }
}

pub(super) fn parent(path: &str) -> &str {
    path.rsplit_once('/').map_or("", |(dir, _)| dir)
}

fn apply(names: &mut BTreeMap<String, Entry>, op: &NameOp) {
    match op {
        NameOp::Add(path, entry) => {
            names.insert(path.clone(), *entry);
        }
        NameOp::Remove(path) => {
            names.remove(path);
        }
        NameOp::Rename { from, to } => {
            if let Some(entry) = names.remove(from) {
                names.insert(to.clone(), entry);
            }
        }
    }
}

//! Who asks: processes whose accesses are no heat, told by their command line or control group.
//!
//! PostgreSQL's processes say in their title what they do, so a backend is looked at again after [`KNOWN_FOR`]. Looking costs two small reads of /proc; in
//! between, a lookup in a table.

use crate::device::clock::{Instant, monotonic_now};
use parking_lot::Mutex;
use std::collections::HashMap;
use std::fs;
use std::time::Duration;

/// How long a process is taken for what it was.
const KNOWN_FOR: Duration = Duration::from_secs(1);
/// Processes remembered.
const KNOWN_MAX: usize = 4096;

/// Backup programs and vacuum, as their command lines show them.
pub const MAINTENANCE: &[&str] = &[
    "pg_dump",
    "pg_basebackup",
    "pg_verifybackup",
    "pg_amcheck",
    "pgbackrest",
    "barman",
    "wal-g",
    "postgres: walsender",
    "autovacuum worker",
    " VACUUM",
    " CREATE INDEX",
    "mysqldump",
    "mariadb-dump",
    "mariabackup",
    "xtrabackup",
    "restic",
    "borg",
    "rsync",
];

/// See the module's head.
pub(super) struct Callers {
    patterns: Vec<String>,
    known: Mutex<HashMap<u32, (Instant, bool)>>,
}

impl Callers {
    pub(super) fn new(patterns: Vec<String>) -> Callers {
        Callers { patterns, known: Mutex::default() }
    }

    /// Does this process maintain? The kernel itself, number 0, does not.
    pub(super) fn maintains(&self, pid: u32) -> bool {
        if pid == 0 || self.patterns.is_empty() {
            return false;
        }
        let now = monotonic_now();
        if let Some((at, maintains)) = self.known.lock().get(&pid)
            && now.duration_since(*at) < KNOWN_FOR
        {
            return *maintains;
        }
        let maintains = self.looks_like_it(pid);
        let mut known = self.known.lock();
        if known.len() >= KNOWN_MAX {
            known.retain(|_, (at, _)| now.duration_since(*at) < KNOWN_FOR);
        }
        if known.len() < KNOWN_MAX {
            known.insert(pid, (now, maintains));
        }
        maintains
    }

    fn looks_like_it(&self, pid: u32) -> bool {
        let read = |name: &str| fs::read(format!("/proc/{pid}/{name}")).unwrap_or_default();
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).replace('\0', " ");
        let (command, group) = (text(read("cmdline")), text(read("cgroup")));
        self.patterns.iter().any(|pattern| command.contains(pattern) || group.contains(pattern))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    #[test]
    fn a_process_is_known_by_its_command() {
        let mut shell = Command::new("sh")
            .args(["-c", "echo ready; read nothing", "nightly", "backup"])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        // Before it says so it may still be this test, about to become the shell.
        let mut said = String::new();
        BufReader::new(shell.stdout.take().unwrap()).read_line(&mut said).unwrap();
        let callers = |pattern: &str| Callers::new(vec![pattern.to_owned()]);
        assert!(callers("nightly backup").maintains(shell.id()), "arguments are parted by spaces");
        assert!(!callers("pg_dump").maintains(shell.id()));
        assert!(!Callers::new(Vec::new()).maintains(shell.id()) && !callers("").maintains(0));
        drop(shell.stdin.take());
        shell.wait().unwrap();
        assert!(!callers("backup").maintains(shell.id()), "nobody there");
    }

    #[test]
    fn the_table_is_bounded() {
        let callers = Callers::new(vec!["no such command".to_owned()]);
        (1..2 * u32::try_from(KNOWN_MAX).unwrap()).for_each(|at| assert!(!callers.maintains(0x4000_0000 + at)));
        assert!(callers.known.lock().len() <= KNOWN_MAX);
    }
}

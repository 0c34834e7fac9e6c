//! The built-in hook for PostgreSQL 13 and later: backup mode around the moment of a snapshot.
//!
//! A snapshot needs no backup mode to be restored: it is atomic, and the server recovers on it as after a power cut. What backup mode adds is the label:
//! with it in place of `pg_control`'s own idea, and an archive of WAL, recovery may go on to any later moment, and a standby may begin from it.
//!
//! `psql` is driven rather than a client library linked: libpq reaches the server in whatever way it is set up (peer as another user, password
//! files, services, TLS), and a dozen crates are not needed for three statements. The session stays open from start to stop, because backup mode ends with it.

use super::{command, password};
use crate::error::{Error, Result};
use crossbeam_channel::{Receiver, RecvTimeoutError, unbounded};
use nix::unistd::User;
use parking_lot::Mutex;
use serde::{Deserialize, Serialize};
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::time::Duration;

/// The oldest version whose backup mode belongs to a session and that the pages' layout is known of.
const VERSION_MIN: u32 = 130_000;
/// From here on the functions are called `pg_backup_start` and `pg_backup_stop`.
const VERSION_RENAMED: u32 = 150_000;
/// How long `psql` may take to end by itself.
const FAREWELL: Duration = Duration::from_secs(5);
/// What `psql` complained is told up to here, in bytes.
const COMPLAINT_BYTES_MAX: usize = 2000;

#[derive(Clone, PartialEq, Eq)]
pub struct PostgresSettings {
    /// As `psql` takes it: `host=/var/run/postgresql user=postgres dbname=postgres`, or a URI.
    pub connection: String,
    /// The user that `psql` runs as; None: the daemon's.
    pub run_as: Option<String>,
    /// For each statement; the first one waits for a checkpoint.
    pub limit: Duration,
}

impl PostgresSettings {
    /// Why this connection cannot be taken, in one line that repeats nothing of it: a part that may be secret would be seen by everybody on the machine.
    pub fn exposed(connection: &str) -> Option<String> {
        password::exposed(connection)
    }

    pub fn has_password(&self) -> bool {
        password::split(&self.connection).1.is_some()
    }
}

/// Without the password: settings may be printed.
impl std::fmt::Debug for PostgresSettings {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let connection = password::split(&self.connection).0;
        let mut told = f.debug_struct("PostgresSettings");
        told.field("connection", &connection).field("run_as", &self.run_as).field("limit", &self.limit).finish()
    }
}

/// What PostgreSQL said when backup mode ended: stored with the snapshot, as JSON.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct BackupLabel {
    /// The data directory, relative to the volume's root; empty: it is the root.
    pub directory: String,
    /// The content of the file `backup_label`.
    pub backup_label: String,
    /// The content of the file `tablespace_map`; empty: there is none.
    pub tablespace_map: String,
    /// The first file of WAL that recovery needs.
    pub first_wal: String,
    /// Where in WAL the backup ended: recovery needs everything up to here.
    pub stop_lsn: String,
}

impl BackupLabel {
    /// From the bytes stored with a snapshot; None: none are stored.
    pub fn decode(bytes: &[u8]) -> Result<Option<BackupLabel>> {
        if bytes.is_empty() {
            return Ok(None);
        }
        let decoded = serde_json::from_slice(bytes);
        decoded.map(Some).map_err(|error| Error::Invalid(format!("the snapshot's backup label: {error}")))
    }

    pub fn encode(&self) -> Vec<u8> {
        // Plain texts: encoding them cannot fail.
        serde_json::to_vec(self).unwrap_or_default()
    }
}

/// A server in backup mode. Dropped, the session ends, and backup mode with it.
pub(super) struct Session {
    child: Child,
    answers: Receiver<String>,
    complaints: Arc<Mutex<String>>,
    /// Nothing is ever sent; it is disconnected when all complaints have been heard.
    heard: Receiver<()>,
    limit: Duration,
    version: u32,
    directory: String,
}

impl Session {
    /// Connects, and has the server begin. `mount`: where the volume is; the server's data directory must be there or below.
    pub(super) fn begin(settings: &PostgresSettings, mount: &Path) -> Result<Session> {
        let mut session = Session::connect(settings)?;
        let facts = session.ask(
            "SELECT current_setting('server_version_num') || chr(9) || encode(convert_to(current_setting('data_directory'), 'UTF8'), 'hex')",
        )?;
        let (version, directory) = facts.split_once('\t').unwrap_or((&facts, ""));
        session.version = version.parse().map_err(|_| failed(&format!("a strange version: {facts}")))?;
        if session.version < VERSION_MIN {
            return Err(failed("PostgreSQL 13 or later is wanted"));
        }
        session.directory = within(mount, &PathBuf::from(from_hex(directory)?))?;
        let start = match session.version >= VERSION_RENAMED {
            true => "SELECT pg_backup_start('heatfs', true)",
            false => "SELECT pg_start_backup('heatfs', true, false)",
        };
        session.ask(start)?;
        Ok(session)
    }

    fn connect(settings: &PostgresSettings) -> Result<Session> {
        let (connection, secret) = password::split(&settings.connection);
        let mut psql = Command::new("psql");
        // Neither the user's start file nor a password asked for; the first error ends it.
        psql.args(["-X", "-q", "-A", "-t", "-w", "-v", "ON_ERROR_STOP=1", "-d", &connection]);
        if let Some(secret) = secret {
            psql.env("PGPASSWORD", secret);
        }
        psql.env("PGCONNECT_TIMEOUT", settings.limit.as_secs().clamp(2, 30).to_string());
        psql.env("PGAPPNAME", "heatfs").env("PGCLIENTENCODING", "UTF8").current_dir("/").process_group(0);
        if let Some(name) = &settings.run_as {
            let user = User::from_name(name).ok().flatten();
            let user = user.ok_or_else(|| failed(&format!("snapshot.postgresql.run_as: there is no user `{name}`")))?;
            psql.uid(user.uid.as_raw()).gid(user.gid.as_raw()).env("HOME", user.dir).env("USER", name);
        }
        let spawned = psql.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| failed(&format!("running psql: {error}")))?;
        command::be_killable(&child);
        let (give, answers) = unbounded();
        let complaints = Arc::new(Mutex::new(String::new()));
        let (hearing, heard) = unbounded();
        if let (Some(out), Some(err)) = (child.stdout.take(), child.stderr.take()) {
            let complaints = Arc::clone(&complaints);
            std::thread::spawn(move || {
                hear(err, &complaints);
                drop(hearing);
            });
            std::thread::spawn(move || {
                // Ends when psql does, or nobody wants an answer any more.
                BufReader::new(out).lines().map_while(std::result::Result::ok).all(|line| give.send(line).is_ok())
            });
        }
        Ok(Session { child, answers, complaints, heard, limit: settings.limit, version: 0, directory: String::new() })
    }

    /// Has the server end backup mode. WAL is not waited for: whether it is archived is the archive's business.
    pub(super) fn end(mut self) -> Result<BackupLabel> {
        let stop = match self.version >= VERSION_RENAMED {
            true => "pg_backup_stop(false)",
            false => "pg_stop_backup(false, false)",
        };
        let answer = self.ask(&format!(
            "SELECT lsn || chr(9) || encode(convert_to(labelfile, 'UTF8'), 'hex') || chr(9) || \
             encode(convert_to(coalesce(spcmapfile, ''), 'UTF8'), 'hex') FROM {stop}"
        ))?;
        let mut parts = answer.split('\t');
        let mut part = || parts.next().ok_or_else(|| failed(&format!("a strange answer: {answer}")));
        let (stop_lsn, label, map) = (part()?.to_owned(), from_hex(part()?)?, from_hex(part()?)?);
        let first_wal = first_wal(&label);
        let directory = std::mem::take(&mut self.directory);
        Ok(BackupLabel { directory, backup_label: label, tablespace_map: map, first_wal, stop_lsn })
    }

    /// One statement with an answer of one row and one column.
    fn ask(&mut self, statement: &str) -> Result<String> {
        let sent = match &mut self.child.stdin {
            Some(stdin) => stdin.write_all(format!("{statement};\n").as_bytes()).and_then(|()| stdin.flush()),
            None => Ok(()),
        };
        if sent.is_err() {
            return Err(self.complaint());
        }
        match self.answers.recv_timeout(self.limit) {
            Ok(answer) => Ok(answer),
            Err(RecvTimeoutError::Disconnected) => Err(self.complaint()),
            Err(RecvTimeoutError::Timeout) => Err(failed(&format!("no answer within {} s", self.limit.as_secs()))),
        }
    }

    /// Why it ended.
    fn complaint(&mut self) -> Error {
        if !matches!(command::wait(&mut self.child, FAREWELL), Ok(Some(_))) {
            command::kill(&mut self.child);
        }
        // It has ended; what it wrote last may still be on its way.
        let _ = self.heard.recv_timeout(FAREWELL);
        let said = self.complaints.lock().trim().replace('\n', " ");
        failed(if said.is_empty() { "psql ended without a word" } else { &said })
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        // The end of its input is the end of the session.
        drop(self.child.stdin.take());
        if !matches!(command::wait(&mut self.child, FAREWELL), Ok(Some(_))) {
            command::kill(&mut self.child);
        }
    }
}

fn failed(why: &str) -> Error {
    Error::SnapshotFailed { why: format!("PostgreSQL: {why}") }
}

fn hear(from: impl Read, into: &Mutex<String>) {
    for line in BufReader::new(from).lines().map_while(std::result::Result::ok) {
        let mut text = into.lock();
        if text.len() < COMPLAINT_BYTES_MAX {
            text.push_str(&line);
            text.push('\n');
        }
    }
}

/// The data directory relative to the mount.
fn within(mount: &Path, directory: &Path) -> Result<String> {
    let real = |path: &Path| path.canonicalize().unwrap_or_else(|_| path.to_owned());
    let (mount, directory) = (real(mount), real(directory));
    match directory.strip_prefix(&mount) {
        Ok(below) => Ok(below.to_string_lossy().into_owned()),
        Err(_) => Err(failed(&format!(
            "the server's data directory is {}, which is not on this volume ({}): see snapshot.postgresql.connection",
            directory.display(),
            mount.display()
        ))),
    }
}

/// `START WAL LOCATION: 0/2000028 (file 000000010000000000000002)`.
fn first_wal(label: &str) -> String {
    let line = label.lines().find(|line| line.starts_with("START WAL LOCATION")).unwrap_or_default();
    let file = line.split_once("(file ").and_then(|(_, rest)| rest.split_once(')'));
    file.map(|(name, _)| name.to_owned()).unwrap_or_default()
}

fn from_hex(text: &str) -> Result<String> {
    let strange = || failed(&format!("a strange answer: {text}"));
    let digits: Vec<u8> = text
        .chars()
        .map(|digit| digit.to_digit(16).and_then(|digit| u8::try_from(digit).ok()))
        .collect::<Option<_>>()
        .ok_or_else(strange)?;
    let bytes = digits.chunks(2).map(|pair| pair.iter().fold(0, |byte, digit| byte << 4 | digit)).collect();
    String::from_utf8(bytes).map_err(|_| strange())
}

#[cfg(test)]
mod tests {
    use super::{BackupLabel, first_wal, from_hex, within};
    use std::path::Path;

    #[test]
    fn what_the_server_says_is_read() {
        let label = "START WAL LOCATION: 0/2000028 (file 000000010000000000000002)\nCHECKPOINT LOCATION: 0/2000060\n";
        assert_eq!(first_wal(label), "000000010000000000000002");
        assert_eq!(first_wal("something else"), "");
        assert_eq!(from_hex("68c3a4").expect("text"), "hä");
        assert!(from_hex("6x").is_err());
        assert_eq!(within(Path::new("/a/b"), Path::new("/a/b/c/d")).expect("below"), "c/d");
        assert_eq!(within(Path::new("/a/b"), Path::new("/a/b")).expect("the root itself"), "");
        let line = within(Path::new("/a/b"), Path::new("/a/bc")).expect_err("beside").to_string();
        assert!(line.contains("/a/bc") && line.contains("not on this volume"), "{line}");
    }

    #[test]
    fn a_label_survives_its_snapshot() {
        let label = BackupLabel { backup_label: "a\nb".into(), stop_lsn: "0/1".into(), ..BackupLabel::default() };
        assert_eq!(BackupLabel::decode(&label.encode()).expect("decodes"), Some(label));
        assert_eq!(BackupLabel::decode(b"").expect("nothing"), None);
        assert!(BackupLabel::decode(b"START WAL").is_err());
    }
}

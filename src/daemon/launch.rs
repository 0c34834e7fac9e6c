//! Starting a daemon in the background, for mount(8): the caller returns when the volume is mounted, or knows why it is not.

use super::MountAs;
use super::holders::{is_dead, mount_at};
use super::settings::Settings;
use crate::device::clock;
use crate::error::{Error, Result};
use crate::tier::identity::Locks;
use std::fs::File;
use std::io::{Read, Seek, SeekFrom};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

const POLL: Duration = Duration::from_millis(20);
/// How long a daemon whose mount is gone may take to end: `umount` returns before its last checkpoint.
const LAST_DAEMON_MAX: Duration = Duration::from_secs(120);
/// What is read of the words of a daemon that did not come up.
const WORDS_BYTES_MAX: usize = 64 << 10;

/// Starts a daemon of its own session and returns when the mount serves; however long replaying the log takes. Errors: `Busy` when it is mounted
/// already, or the daemon's own last words.
pub fn launch(settings: &Settings, settings_file: &Path, mount_as: &MountAs) -> Result<()> {
    let point = settings.mount_path();
    if mount_at(&point)?.is_some() && !is_dead(&point) {
        return Err(Error::Busy(format!("{} is mounted already", point.display())));
    }
    wait_for_the_last_daemon(settings)?;
    let mut words = Words::open(settings)?;
    let mut daemon = start(settings_file, mount_as, &words)?;
    let socket = settings.socket_path()?;
    loop {
        let ended = daemon.try_wait().map_err(|error| Error::io("waiting for", "the daemon", error))?;
        if let Some(status) = ended {
            return Err(words.complaint(status.code()));
        }
        if mount_at(&point)?.is_some() && UnixStream::connect(&socket).is_ok() {
            return Ok(());
        }
        std::thread::sleep(POLL);
    }
}

/// A tier's lock is let go last of all.
fn wait_for_the_last_daemon(settings: &Settings) -> Result<()> {
    let began = clock::monotonic_now();
    while let Some(holder) = settings.tiers.iter().find_map(|tier| Locks::holder(&tier.path)) {
        if clock::monotonic_now().duration_since(began) > LAST_DAEMON_MAX {
            return Err(Error::Busy(format!("the tiers are still in use by process {}", holder.trim())));
        }
        std::thread::sleep(POLL);
    }
    Ok(())
}

fn start(settings_file: &Path, mount_as: &MountAs, words: &Words) -> Result<Child> {
    let program = std::env::current_exe().map_err(|error| Error::io("finding", "this program", error))?;
    let mut command = Command::new(&program);
    command.arg("daemon").arg("--detached").arg("--config").arg(settings_file);
    if let Some(source) = &mount_as.source {
        command.arg("--source").arg(source);
    }
    if mount_as.no_exec {
        command.arg("--noexec");
    }
    command.current_dir("/").stdin(Stdio::null()).stdout(Stdio::null());
    if let Some(file) = &words.file {
        command
            .stderr(file.try_clone().map_err(|error| Error::io("opening", words.path.display().to_string(), error))?);
    }
    command.spawn().map_err(|error| Error::io("starting", program.display().to_string(), error))
}

/// Where the daemon's words go: to the journal, if this process's do; else to a file beside the control socket.
struct Words {
    path: PathBuf,
    /// None: to the journal.
    file: Option<File>,
    /// Words of earlier daemons.
    before_bytes: u64,
}

impl Words {
    fn open(settings: &Settings) -> Result<Words> {
        let path = settings.socket_path()?.with_extension("log");
        if std::env::var_os("JOURNAL_STREAM").is_some() {
            return Ok(Words { path, file: None, before_bytes: 0 });
        }
        let io = |action, error| Error::io(action, path.display().to_string(), error);
        if let Some(dir) = path.parent() {
            std::fs::create_dir_all(dir).map_err(|error| io("making the directory of", error))?;
        }
        let file = File::options().create(true).append(true).read(true).open(&path);
        let file = file.map_err(|error| io("opening", error))?;
        let before_bytes = file.metadata().map_err(|error| io("examining", error))?.len();
        Ok(Words { path, file: Some(file), before_bytes })
    }

    /// What the daemon said last. Settings that are wrong are the caller's error.
    fn complaint(&mut self, code: Option<i32>) -> Error {
        let mut said = Vec::new();
        if let Some(file) = &mut self.file {
            let read = file.seek(SeekFrom::Start(self.before_bytes));
            // Without them there is still the exit code to tell.
            let _ = read.and_then(|_| file.take(WORDS_BYTES_MAX as u64).read_to_end(&mut said));
        }
        let said = String::from_utf8_lossy(&said);
        let line =
            said.lines().rfind(|line| line.starts_with("heatfs: ")).and_then(|line| line.strip_prefix("heatfs: "));
        match (line, code) {
            (Some(line), Some(2)) => Error::Invalid(line.to_owned()),
            (Some(line), _) => Error::Busy(line.to_owned()),
            (None, Some(code)) => Error::Busy(format!("the daemon ended with exit code {code}; its log tells why")),
            (None, None) => Error::Busy("the daemon was killed".to_owned()),
        }
    }
}

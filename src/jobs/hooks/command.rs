//! A command run for a hook: no shell, a time limit, every line of its output in the journal.

use crate::device::clock::monotonic_now;
use nix::sys::signal::{Signal, killpg};
use nix::unistd::Pid;
use std::io::{BufRead, BufReader, Read};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

/// How often it is looked whether the command has ended.
const LOOK: Duration = Duration::from_millis(10);
/// Longest line that is logged, in bytes.
const LINE_BYTES_MAX: u64 = 1000;
/// Lines of one command that are logged.
const LINES_MAX: usize = 1000;

/// Runs a command to its end. The error says, in one line, how it failed.
pub(super) fn run(
    name: &'static str,
    argv: &[String],
    environment: &[(&str, String)],
    limit: Duration,
) -> Result<(), String> {
    let Some((program, arguments)) = argv.split_first() else { return Ok(()) };
    let mut child = Command::new(program)
        .args(arguments)
        .envs(environment.iter().map(|(key, value)| (*key, value)))
        .current_dir("/")
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        // Of its own, so that what it started goes with it.
        .process_group(0)
        .spawn()
        .map_err(|error| format!("{program}: {error}"))?;
    be_killable(&child);
    log_lines(name, child.stdout.take());
    log_lines(name, child.stderr.take());
    match wait(&mut child, limit) {
        Ok(Some(status)) if status.success() => Ok(()),
        Ok(Some(status)) => Err(format!("{program}: {status}")),
        Ok(None) => {
            kill(&mut child);
            Err(format!("{program}: ended by force: it took longer than {} s", limit.as_secs()))
        }
        Err(error) => Err(format!("{program}: {error}")),
    }
}

/// A daemon that the kernel spares when memory runs out does not mean its commands.
pub(super) fn be_killable(child: &Child) {
    // Where that cannot be said, there was nothing to take back.
    let _ = std::fs::write(format!("/proc/{}/oom_score_adj", child.id()), "0");
}

/// Waits for the end; None: the limit came first.
pub(super) fn wait(child: &mut Child, limit: Duration) -> std::io::Result<Option<ExitStatus>> {
    let begun = monotonic_now();
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if begun.elapsed() >= limit {
            return Ok(None);
        }
        std::thread::sleep(LOOK);
    }
}

/// Ends a command and what it started.
pub(super) fn kill(child: &mut Child) {
    if let Ok(group) = i32::try_from(child.id()) {
        // It may have ended at this moment.
        let _ = killpg(Pid::from_raw(group), Signal::SIGKILL);
    }
    let _ = child.wait();
}

/// In a thread of its own, which ends when nobody has the other end any more: a hook may leave a process behind.
fn log_lines(name: &'static str, from: Option<impl Read + Send + 'static>) {
    let Some(from) = from else { return };
    let logging = std::thread::Builder::new().name("hook output".to_owned()).spawn(move || {
        let mut from = BufReader::new(from);
        let (mut line, mut count) = (Vec::new(), 0);
        // What is not logged is read nevertheless, so that the command goes on.
        while (&mut from).take(LINE_BYTES_MAX).read_until(b'\n', &mut line).is_ok_and(|bytes| bytes > 0) {
            count += 1;
            if count <= LINES_MAX {
                tracing::info!("hook {name}: {}", String::from_utf8_lossy(&line).trim_end());
            }
            line.clear();
        }
    });
    if let Err(error) = logging {
        tracing::warn!("hook {name}: its output is lost: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::run;
    use std::time::{Duration, Instant};

    fn shell(script: &str, limit: Duration) -> Result<(), String> {
        let argv = ["/bin/sh".to_owned(), "-c".to_owned(), script.to_owned()];
        run("test", &argv, &[("HEATFS_HOOK", "a b".to_owned())], limit)
    }

    #[test]
    fn a_command_succeeds_or_says_how_it_failed() {
        let minute = Duration::from_secs(60);
        assert_eq!(shell("test \"$HEATFS_HOOK\" = 'a b' && test \"$PWD\" = /", minute), Ok(()));
        assert_eq!(run("test", &[], &[], minute), Ok(()), "no command is no hook");
        let failed = shell("exit 7", minute).expect_err("it failed");
        assert!(failed.contains("/bin/sh") && failed.contains('7'), "{failed}");
        let absent = run("test", &["/nonexistent/hook".to_owned()], &[], minute).expect_err("it is not there");
        assert!(absent.contains("/nonexistent/hook"), "{absent}");
    }

    /// More output than a pipe holds must not stop it.
    #[test]
    fn its_output_never_stops_it() {
        let much = "i=0; while [ $i -lt 3000 ]; do echo a line of output that is long enough to fill the pipe; i=$((i+1)); done";
        assert_eq!(shell(much, Duration::from_secs(60)), Ok(()));
    }

    #[test]
    fn a_command_that_takes_too_long_is_ended_with_what_it_started() {
        let dir = tempfile::tempdir().expect("a directory");
        let begun = Instant::now();
        let script = format!("sleep 600 & echo $! > {}/pid; wait", dir.path().display());
        let failed = shell(&script, Duration::from_secs(1)).expect_err("it takes too long");
        assert!(failed.contains("longer than 1 s"), "{failed}");
        assert!(begun.elapsed() < Duration::from_secs(300));
        let pid = std::fs::read_to_string(dir.path().join("pid")).expect("it began");
        let stat = std::path::PathBuf::from(format!("/proc/{}/stat", pid.trim()));
        let end = Instant::now() + Duration::from_secs(30);
        // Gone, or dead and waiting for whoever inherits it.
        while std::fs::read_to_string(&stat).is_ok_and(|stat| !stat.contains(") Z ")) {
            assert!(Instant::now() < end, "the sleeper lives on");
            std::thread::yield_now();
        }
    }
}

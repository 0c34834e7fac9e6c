//! A directory to adopt, tiers beside it, and the binary.

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::time::{Duration, Instant};

pub fn heatfs() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_heatfs"));
    for name in ["HEATFS_CONFIG", "HEATFS_SOCKET", "HEATFS_LOG", "JOURNAL_STREAM", "NOTIFY_SOCKET", "WATCHDOG_USEC"] {
        command.env_remove(name);
    }
    command.stdin(Stdio::null());
    command
}

/// One line on standard error, with the name in front; returned without it.
pub fn complaint(output: &Output, code: i32) -> String {
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert_eq!(output.status.code(), Some(code), "{said}");
    assert_eq!(said.lines().count(), 1, "one line is wanted:\n{said}");
    said.strip_prefix("heatfs: ").unwrap_or_else(|| panic!("{said}")).trim_end().to_owned()
}

pub fn wait_until(seconds: u64, mut what: impl FnMut() -> bool) -> bool {
    let end = Instant::now() + Duration::from_secs(seconds);
    while Instant::now() < end {
        if what() {
            return true;
        }
        std::thread::sleep(Duration::from_millis(50));
    }
    what()
}

/// Why mounts cannot be tested here; None when they can.
fn why_not_here() -> Option<&'static str> {
    if !nix::unistd::geteuid().is_root() {
        return Some("not root");
    }
    fs::File::options().read(true).write(true).open("/dev/fuse").is_err().then_some("/dev/fuse cannot be opened")
}

pub struct Bench {
    /// On the disk of the build: tmpfs has no extended attributes before Linux 6.6 and no direct I/O.
    root: tempfile::TempDir,
    /// Paths of sockets must be short.
    run: tempfile::TempDir,
    daemon: Option<Child>,
}

impl Bench {
    /// None, with a word about it, where mounts do not work.
    pub fn new() -> Option<Bench> {
        if let Some(reason) = why_not_here() {
            assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: {reason}");
            eprintln!("\n*** SKIPPED, nothing was tested: {reason} ***\n");
            return None;
        }
        let root = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
        for dir in ["nvme", "sata", "hdd"] {
            fs::create_dir(root.path().join(dir)).unwrap();
        }
        Some(Bench { root, run: tempfile::tempdir().unwrap(), daemon: None })
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.root.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    pub fn config(&self) -> PathBuf {
        self.path("volume.toml")
    }

    pub fn log(&self) -> String {
        fs::read_to_string(self.path("daemon.log")).unwrap_or_default()
    }

    /// A short path in a directory of this test's own.
    pub fn short_path(&self, name: &str) -> PathBuf {
        self.run.path().join(name)
    }

    pub fn socket(&self) -> PathBuf {
        self.run.path().join("s")
    }

    /// A command about this volume.
    pub fn heatfs(&self, args: &[&str]) -> Command {
        let mut command = heatfs();
        command.args(args).arg("--config").arg(self.config()).env("HEATFS__SOCKET", self.socket());
        command
    }

    /// Runs to success and gives back what it printed.
    pub fn ok(&self, args: &[&str]) -> String {
        let output = self.heatfs(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {}: {said}\n{}", output.status, self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    pub fn json(&self, args: &[&str]) -> serde_json::Value {
        let text = self.ok(&[args, &["--json"]].concat());
        serde_json::from_str(&text).unwrap_or_else(|error| panic!("{args:?}: {error}:\n{text}"))
    }

    pub fn adopt_command(&self) -> Command {
        let mut command = heatfs();
        command.arg("adopt").arg(self.data()).args([
            "--name",
            "bench",
            "--log-size",
            "64MiB",
            "--segment-size",
            "4MiB",
        ]);
        for name in ["nvme", "sata", "hdd"] {
            command.arg("--tier").arg(format!("{name}={}", self.path(name).display()));
        }
        command.arg("--config-out").arg(self.config());
        command
    }

    /// Some files, adopted.
    pub fn adopt(&self) {
        let data = self.data();
        fs::create_dir_all(data.join("base/1")).unwrap();
        fs::write(data.join("base/1/table"), pattern(3_000_001)).unwrap();
        fs::write(data.join("small"), b"hello").unwrap();
        std::os::unix::fs::symlink("small", data.join("link")).unwrap();
        let output = self.adopt_command().output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    }

    pub fn daemon_command(&self) -> Command {
        self.heatfs(&["daemon"])
    }

    pub fn start(&mut self) {
        self.start_with(&[]);
    }

    /// With further environment.
    pub fn start_with(&mut self, environment: &[(&str, &str)]) {
        self.start_until(environment, |output| output.status.success());
    }

    /// Although the volume is not healthy.
    pub fn start_anyway(&mut self) {
        self.start_until(&[], |output| output.status.success() || !output.stdout.is_empty());
    }

    fn start_until(&mut self, environment: &[(&str, &str)], good: impl Fn(&Output) -> bool) {
        let log = fs::File::options().create(true).append(true).open(self.path("daemon.log")).unwrap();
        let mut child =
            self.daemon_command().envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let answers = || good(&self.heatfs(&["status"]).output().unwrap());
        let up = wait_until(60, || answers() || child.try_wait().unwrap().is_some());
        assert!(up && child.try_wait().unwrap().is_none(), "the daemon does not serve:\n{}", self.log());
        self.daemon = Some(child);
    }

    pub fn pid(&self) -> u32 {
        self.daemon.as_ref().unwrap().id()
    }

    pub fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    /// The exit code of a daemon that is expected to end.
    pub fn ended(&mut self, seconds: u64) -> Option<i32> {
        let mut child = self.daemon.take().unwrap();
        let mut status = None;
        wait_until(seconds, || {
            status = child.try_wait().unwrap();
            status.is_some()
        });
        if status.is_none() {
            child.kill().unwrap();
            panic!("the daemon does not end:\n{}", self.log());
        }
        status.and_then(|status| status.code())
    }

    pub fn is_mounted(&self) -> bool {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap();
        mounts.contains(&format!(" {} ", self.data().display()))
    }

    /// A process whose working directory is the mount; killed when dropped.
    pub fn holder(&self) -> Holder {
        Holder(Command::new("sleep").arg("600").current_dir(self.data()).spawn().unwrap())
    }

    /// Speaks HTTP by hand: status code and body.
    pub fn http(&self, method: &str, target: &str, body: &str) -> (u16, String) {
        let mut stream = UnixStream::connect(self.socket()).unwrap();
        let length = body.len();
        write!(
            stream,
            "{method} {target} HTTP/1.1\r\nhost: x\r\nconnection: close\r\ncontent-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let (head, body) = answer.split_once("\r\n\r\n").unwrap();
        (head.split(' ').nth(1).unwrap().parse().unwrap(), body.to_owned())
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().ok();
            child.wait().ok();
        }
        if self.is_mounted() {
            nix::mount::umount2(&self.data(), nix::mount::MntFlags::MNT_DETACH).ok();
        }
        // The mountpoint of an adopted volume may be immutable.
        Command::new("chattr").arg("-i").arg(self.data()).stderr(Stdio::null()).status().ok();
    }
}

pub struct Holder(Child);

impl Holder {
    pub fn pid(&self) -> u32 {
        self.0.id()
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

pub fn pattern(len: usize) -> Vec<u8> {
    (0..len).map(|at| u8::try_from((at / 7 + at % 251) % 256).unwrap()).collect()
}

pub fn read(path: &Path) -> Vec<u8> {
    fs::read(path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

//! The mount under test, served by a process of its own: this test binary, started again. A process that maps files of a filesystem it serves
//! itself could wait for itself; and a process of its own can be killed.

use crate::slow;
use heatfs::device::real::RealDevice;
use heatfs::namespace::Namespace;
use heatfs::units::{BlockNo, TierId};
use heatfs::volume::{Options, Tier, Volume};
use std::io::{BufRead, BufReader, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::sync::Arc;
use uuid::Uuid;

const DIRECTORY: &str = "HEATFS_TEST_SERVE";
/// How many descriptors the server may have.
const DESCRIPTORS: &str = "HEATFS_TEST_DESCRIPTORS";
/// Requests are to come over io_uring; set for the tests themselves, all of them run so.
const IO_URING: &str = "HEATFS_TEST_IO_URING";
/// The ordinary user that the server runs as.
const USER: &str = "HEATFS_TEST_USER";

pub fn tiers(base: &Path) -> Vec<Tier> {
    let tier = |name: &str| Tier {
        name: name.to_owned(),
        device: if name == "slow" { slow::open(&base.join(name)) } else { RealDevice::open(base.join(name)).unwrap() },
        budget_bytes: None,
        reserve_bytes: 0,
    };
    vec![tier("fast"), tier("slow")]
}

pub fn options() -> Options {
    Options {
        block_bytes: 64 << 10,
        segment_bytes: 4 << 20,
        segments: 16,
        payload_cache_bytes: 16 << 20,
        coalesce_at_fill: 0.5,
        checkpoint_interval_s: 5,
    }
}

/// A new volume's directories and state below `base`.
pub fn create(base: &Path) {
    for directory in ["fast/home/tree", "fast/home/grave", "slow", "mnt"] {
        std::fs::create_dir_all(base.join(directory)).unwrap();
    }
    Volume::create(&tiers(base), &options(), Uuid::from_u128(0x1234), &mut |_| {}).unwrap();
}

pub fn open(base: &Path) -> (Arc<Volume>, Arc<Namespace>) {
    let (volume, _) = Volume::open(tiers(base), options()).unwrap();
    let namespace = Namespace::open(&base.join("fast/home"), Arc::clone(&volume), volume.volume_id()).unwrap();
    (volume, namespace)
}

/// The serving side: does nothing unless it was started as one.
pub fn serve() {
    let Some(base) = std::env::var_os(DIRECTORY).map(PathBuf::from) else { return };
    tracing_subscriber::fmt().with_writer(std::io::stderr).with_ansi(false).init();
    if let Some(limit) = std::env::var(DESCRIPTORS).ok().and_then(|limit| limit.parse().ok()) {
        nix::sys::resource::setrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE, limit, limit).unwrap();
    }
    if !base.join("fast").exists() {
        create(&base);
    }
    let (volume, namespace) = open(&base);
    volume.start_threads().unwrap();
    let options = heatfs::fuse::Options { io_uring: std::env::var_os(IO_URING).is_some(), ..Default::default() };
    let served = heatfs::fuse::mount(Arc::clone(&namespace), &base.join("mnt"), &options).unwrap();
    println!("@mounted");
    for line in std::io::stdin().lines().map_while(Result::ok) {
        match line.as_str() {
            "syncs" => println!("@{}", volume.status().counters.syncs),
            "base reads" => println!("@{}", volume.status().counters.base_reads.iter().sum::<u64>()),
            "checkpoint" => {
                volume.coalesce_all(&mut |_, _| {}).unwrap();
                volume.checkpoint().unwrap();
                println!("@done");
            }
            command if command.starts_with("demote ") => {
                let (_, file) = namespace.file_at(&command["demote ".len()..]).unwrap();
                println!("@{}", demote(&volume, &file));
            }
            "unmount" => match served.mounted.try_unmount() {
                Ok(()) => break,
                Err(error) => println!("@{error}"),
            },
            "wait" => break,
            "nodes" => println!("@{}", namespace.stats().nodes),
            other => println!("@unknown {other}"),
        }
    }
    served.mounted.wait();
    volume.shut_down().unwrap();
    println!("@ended");
}

/// Moves every block to the slow tier; how many went.
fn demote(volume: &Volume, file: &Arc<heatfs::volume::File>) -> u64 {
    volume.coalesce_all(&mut |_, _| {}).unwrap();
    let blocks = file.size_bytes().div_ceil(volume.block_bytes());
    (0..blocks).filter(|block| volume.move_block(file, BlockNo(*block), TierId(1)).unwrap()).count() as u64
}

/// The testing side.
pub struct Mount {
    pub base: tempfile::TempDir,
    child: Child,
    to: Option<ChildStdin>,
    from: BufReader<ChildStdout>,
}

impl Mount {
    /// None, after saying why, where no mount can be made.
    pub fn start() -> Option<Mount> {
        Mount::start_with(&[])
    }

    /// With this limit on the server's descriptors.
    pub fn start_with_descriptors(limit: u64) -> Option<Mount> {
        Mount::start_with(&[(DESCRIPTORS, limit.to_string())])
    }

    /// Served by an ordinary user, through the setuid program of the fuse3 package. Nobody else may enter, root included.
    pub fn start_as(uid: u32) -> Option<Mount> {
        use std::os::unix::fs::PermissionsExt;
        let opens = |path: &str| std::fs::metadata(path).is_ok_and(|shown| shown.permissions().mode() & 0o006 == 0o006);
        if !opens("/dev/fuse") {
            eprintln!("NOT RUN: needs a /dev/fuse that ordinary users may open");
            return None;
        }
        Mount::start_with(&[(USER, uid.to_string())])
    }

    /// None, after saying why, where the kernel does not offer it.
    pub fn start_over_io_uring() -> Option<Mount> {
        let path = "/sys/module/fuse/parameters/enable_uring";
        if std::fs::read_to_string(path).is_ok_and(|value| value.trim() == "Y") {
            return Mount::start_with(&[(IO_URING, "1".to_owned())]);
        }
        eprintln!("NOT RUN: needs a kernel with Y in {path}");
        None
    }

    fn start_with(environment: &[(&str, String)]) -> Option<Mount> {
        if !nix::unistd::geteuid().is_root() || !Path::new("/dev/fuse").exists() {
            eprintln!("NOT RUN: needs root and /dev/fuse");
            return None;
        }
        let base = tempfile::tempdir().unwrap();
        open_to_all(base.path());
        let (child, to, from) = spawn(base.path(), environment);
        let mut mount = Mount { base, child, to: Some(to), from };
        assert_eq!(mount.answer(), "mounted", "{}", mount.log());
        if environment.iter().all(|(name, _)| *name != USER) {
            open_to_all(&mount.path(""));
        }
        Some(mount)
    }

    /// A path in the mount.
    pub fn path(&self, relative: &str) -> PathBuf {
        self.base.path().join("mnt").join(relative)
    }

    /// A path in home, behind the mount.
    pub fn behind(&self, relative: &str) -> PathBuf {
        self.base.path().join("fast/home").join(relative)
    }

    pub fn ask(&mut self, what: &str) -> String {
        writeln!(self.to.as_mut().unwrap(), "{what}").unwrap();
        self.answer()
    }

    pub fn syncs(&mut self) -> u64 {
        self.ask("syncs").parse().unwrap()
    }

    fn answer(&mut self) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.from.read_line(&mut line).unwrap(), 0, "the server is gone: {}", self.log());
            // The test harness of the server prints around our lines, and before the first one on the same line.
            if let Some((_, answer)) = line.trim_end().split_once('@') {
                return answer.to_owned();
            }
        }
    }

    pub fn log(&self) -> String {
        std::fs::read_to_string(self.base.path().join("log.txt")).unwrap_or_default()
    }

    /// As after a crash of the daemon: killed, the dead mount removed, started again.
    pub fn kill_and_restart(&mut self) {
        self.child.kill().unwrap();
        self.child.wait().unwrap();
        nix::mount::umount2(&self.path(""), nix::mount::MntFlags::MNT_DETACH).unwrap();
        self.restart();
    }

    pub fn unmount(&mut self) {
        assert_eq!(self.ask("unmount"), "ended", "{}", self.log());
        assert!(self.child.wait().unwrap().success());
    }

    pub fn restart(&mut self) {
        // It holds the tiers until it is gone.
        self.child.wait().unwrap();
        let (child, to, from) = spawn(self.base.path(), &[]);
        (self.child, self.to, self.from) = (child, Some(to), from);
        assert_eq!(self.answer(), "mounted", "{}", self.log());
    }
}

impl Drop for Mount {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(Some(_))) {
            return;
        }
        if std::thread::panicking() {
            eprintln!("{}", self.log());
            let _ = self.child.kill();
            let _ = self.child.wait();
            let _ = nix::mount::umount2(&self.path(""), nix::mount::MntFlags::MNT_DETACH);
        } else {
            self.unmount();
        }
    }
}

fn spawn(base: &Path, environment: &[(&str, String)]) -> (Child, ChildStdin, BufReader<ChildStdout>) {
    let log = std::fs::OpenOptions::new().create(true).append(true).open(base.join("log.txt")).unwrap();
    let mut command = Command::new(std::env::current_exe().unwrap());
    if let Some((_, uid)) = environment.iter().find(|(name, _)| *name == USER) {
        let uid = uid.parse().unwrap();
        command.uid(uid).gid(uid);
    }
    let mut child = command
        .args(["--exact", "serve", "--nocapture", "--test-threads=1"])
        .env(DIRECTORY, base)
        .envs(environment.iter().cloned())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(log)
        .spawn()
        .unwrap();
    let (to, from) = (child.stdin.take().unwrap(), child.stdout.take().unwrap());
    (child, to, BufReader::new(from))
}

fn open_to_all(path: &Path) {
    use std::os::unix::fs::PermissionsExt;
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o777)).unwrap();
}

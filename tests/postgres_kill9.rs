//! kill -9 of the daemon at random moments beneath a working PostgreSQL: every commit that a client was told of is there
//! afterwards, every table and index is sound. Black box: the binary, PostgreSQL's own programs, nothing of the project's code.
//!
//! `HEATFS_KILL9_ROUNDS` (default 3) sets the number of kills. Where the machine cannot run it (no PostgreSQL, no FUSE, nobody
//! to run the server as) the test says so and passes, unless `HEATFS_REQUIRE_ALL` is set: then it fails.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

const CLIENTS: &str = "4";
const LEDGER_CLIENTS: usize = 2;
const PORT: &str = "54322";

#[test]
fn no_acknowledged_commit_is_lost_when_the_daemon_is_killed() {
    if let Some(reason) = why_not_here() {
        assert!(std::env::var_os("HEATFS_REQUIRE_ALL").is_none(), "cannot run: {reason}");
        eprintln!("\n*** SKIPPED, nothing was tested: {reason} ***\n");
        return;
    }
    let rounds =
        std::env::var("HEATFS_KILL9_ROUNDS").map_or(3, |text| text.parse().expect("HEATFS_KILL9_ROUNDS is a number"));
    let mut lab = Lab::new();
    lab.adopt_fresh_cluster();
    lab.start_daemon();
    lab.start_server();
    lab.fill();
    for round in 1..=rounds {
        let load = Load::start(&lab);
        let moment = Duration::from_millis(random_below(4000));
        thread::sleep(moment);
        lab.kill_daemon();
        let acknowledged = load.wait();
        lab.stop_server("QUIT");
        lab.detach();
        lab.start_daemon();
        if random_below(4) == 0 {
            lab.kill_while_the_server_recovers();
        }
        lab.start_server();
        eprintln!("round {round}: killed after {moment:?} of load, {acknowledged} commits acknowledged so far");
        lab.verify();
    }
    lab.stop_server("INT");
    lab.stop_daemon_cleanly();
    lab.run(lab.heatfs("release").arg("--config").arg(lab.config()), 120);
    lab.start_server();
    lab.verify();
    lab.stop_server("INT");
}

/// Why this machine cannot run the test; None when it can.
fn why_not_here() -> Option<String> {
    if postgres_bin().is_none() {
        return Some("no PostgreSQL server under /usr/lib/postgresql".into());
    }
    if let Err(error) = File::options().read(true).write(true).open("/dev/fuse") {
        return Some(format!("/dev/fuse: {error}"));
    }
    let may_act = Command::new(server_user()[0]).args(&server_user()[1..]).arg("true").status();
    if !may_act.is_ok_and(|status| status.success()) {
        return Some("PostgreSQL does not run as root, and there is no user postgres".into());
    }
    None
}

/// The newest PostgreSQL of this machine.
fn postgres_bin() -> Option<PathBuf> {
    let mut found: Vec<(u32, PathBuf)> = fs::read_dir("/usr/lib/postgresql")
        .ok()?
        .flatten()
        .filter_map(|entry| Some((entry.file_name().to_str()?.parse().ok()?, entry.path().join("bin"))))
        .filter(|(_, bin)| bin.join("postgres").exists())
        .collect();
    found.sort();
    found.pop().map(|(_, bin)| bin)
}

fn is_root() -> bool {
    let out = Command::new("id").arg("-u").output().expect("id runs");
    out.stdout == b"0\n"
}

/// Words before a command that make it run as the user who may run the server.
fn server_user() -> &'static [&'static str] {
    if is_root() { &["runuser", "-u", "postgres", "--"] } else { &["env"] }
}

/// Not a good random number, but another one in each round and run.
fn random_below(limit: u64) -> u64 {
    use std::hash::{BuildHasher, Hasher};
    std::collections::hash_map::RandomState::new().build_hasher().finish() % limit
}

fn wait_until(seconds: u64, mut condition: impl FnMut() -> bool) -> bool {
    let deadline = Instant::now() + Duration::from_secs(seconds);
    while !condition() {
        if Instant::now() > deadline {
            return false;
        }
        thread::sleep(Duration::from_millis(50));
    }
    true
}

/// A temporary directory with three tiers, a data directory, and whatever runs on it.
struct Lab {
    dir: PathBuf,
    bin: PathBuf,
    daemon: Option<Child>,
    /// The postmaster's process id.
    server: Option<String>,
}

impl Lab {
    fn new() -> Lab {
        let parent = std::env::var_os("TMPDIR").map_or_else(|| PathBuf::from("/var/tmp"), PathBuf::from);
        let dir = parent.join(format!("heatfs-kill9.{}", std::process::id()));
        for part in ["nvme", "sata", "hdd", "data", "run", "acknowledged"] {
            fs::create_dir_all(dir.join(part)).expect("temporary directory");
        }
        if is_root() {
            for part in ["data", "run"] {
                let chown = Command::new("chown").arg("postgres").arg(dir.join(part)).status().expect("chown runs");
                assert!(chown.success());
            }
        }
        Lab { dir, bin: postgres_bin().expect("checked by why_not_here"), daemon: None, server: None }
    }

    fn data(&self) -> PathBuf {
        self.dir.join("data")
    }

    fn config(&self) -> PathBuf {
        self.dir.join("volume.toml")
    }

    fn heatfs(&self, command: &str) -> Command {
        let mut heatfs = Command::new(env!("CARGO_BIN_EXE_heatfs"));
        // beside other volumes of this machine
        heatfs.arg(command).env("HEATFS__SOCKET", self.dir.join("heatfs.sock"));
        heatfs
    }

    /// One of PostgreSQL's programs, as the server's user, connected to this cluster.
    fn postgres(&self, program: &str) -> Command {
        let user = server_user();
        let mut command = Command::new(user[0]);
        command.args(&user[1..]).arg(self.bin.join(program)).current_dir(self.dir.join("run"));
        command.env("PGHOST", self.dir.join("run")).env("PGPORT", PORT).env("PGUSER", "postgres");
        command.env("PGDATABASE", "bench").env("LC_ALL", "C");
        command
    }

    /// Runs to success within the time, or panics with what it said.
    fn run(&self, command: &mut Command, seconds: u64) -> Output {
        let mut child = command
            .stdin(Stdio::null())
            .stdout(self.out("stdout"))
            .stderr(self.out("stderr"))
            .spawn()
            .expect("command starts");
        let mut status = None;
        let ended = wait_until(seconds, || {
            status = child.try_wait().expect("child can be waited for");
            status.is_some()
        });
        if !ended {
            drop(child.kill());
        }
        let said = |name| fs::read(self.dir.join(name)).expect("captured output");
        let output = Output { status: status.unwrap_or_default(), stdout: said("stdout"), stderr: said("stderr") };
        assert!(
            ended && output.status.success(),
            "{command:?} {}:\n{}{}",
            if ended { format!("failed, {}", output.status) } else { format!("did not end in {seconds} s") },
            String::from_utf8_lossy(&output.stdout),
            String::from_utf8_lossy(&output.stderr),
        );
        output
    }

    fn out(&self, name: &str) -> File {
        File::create(self.dir.join(name)).expect("file for output")
    }

    fn sql(&self, query: &str) -> String {
        let output = self.run(self.postgres("psql").args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-c", query]), 120);
        String::from_utf8(output.stdout).expect("UTF-8").trim().to_owned()
    }

    fn adopt_fresh_cluster(&self) {
        self.run(self.postgres("initdb").args(["-k", "-U", "postgres", "-A", "trust", "-D"]).arg(self.data()), 120);
        let mut settings =
            File::options().append(true).open(self.data().join("postgresql.conf")).expect("postgresql.conf");
        writeln!(settings, "listen_addresses = ''\nunix_socket_directories = '{}'", self.dir.join("run").display())
            .expect("written");
        writeln!(settings, "port = {PORT}\nrecovery_init_sync_method = fsync\ncheckpoint_timeout = 30s")
            .expect("written");
        drop(settings);
        let tier = |name: &str| format!("{name}={}", self.dir.join(name).display());
        let mut adopt = self.heatfs("adopt");
        adopt.arg(self.data()).args(["--tier", &tier("nvme"), "--tier", &tier("sata"), "--tier", &tier("hdd")]);
        // less than the database needs, so that blocks move while it works
        adopt.args(["--budget", "nvme=40M", "--budget", "sata=30M", "--log-size", "256M", "--name", "kill9"]);
        self.run(adopt.arg("--config-out").arg(self.config()), 120);
    }

    fn start_daemon(&mut self) {
        let log = File::options().create(true).append(true).open(self.dir.join("daemon.log")).expect("daemon.log");
        let mut command = self.heatfs("daemon");
        command.arg("--config").arg(self.config()).stdin(Stdio::null());
        command.stdout(log.try_clone().expect("descriptor")).stderr(log);
        let mut daemon = command.spawn().expect("daemon starts");
        let mut ended = None;
        let up = wait_until(60, || {
            ended = daemon.try_wait().expect("daemon can be waited for");
            ended.is_some() || (is_mount(&self.data()) && self.answers())
        });
        self.daemon = Some(daemon);
        assert!(up && ended.is_none(), "the daemon did not come up ({ended:?}):\n{}", self.tail_of("daemon.log"));
    }

    fn answers(&self) -> bool {
        let mut status = self.heatfs("status");
        status.arg("--config").arg(self.config()).stdout(Stdio::null()).stderr(Stdio::null());
        status.status().is_ok_and(|status| status.success())
    }

    fn tail_of(&self, name: &str) -> String {
        let text = fs::read_to_string(self.dir.join(name)).unwrap_or_default();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(20)..].join("\n")
    }

    fn kill_daemon(&mut self) {
        if let Some(mut daemon) = self.daemon.take() {
            drop(daemon.kill());
            drop(daemon.wait());
        }
    }

    fn stop_daemon_cleanly(&mut self) {
        self.run(self.heatfs("stop").arg("--config").arg(self.config()), 120);
        let mut daemon = self.daemon.take().expect("a daemon runs");
        let mut ended = None;
        wait_until(60, || {
            ended = daemon.try_wait().expect("daemon can be waited for");
            ended.is_some()
        });
        assert!(ended.is_some_and(|status| status.success()), "clean stop: {ended:?}\n{}", self.tail_of("daemon.log"));
        assert!(!is_mount(&self.data()), "still mounted after a clean stop");
    }

    /// Takes away the mount that a killed daemon leaves.
    fn detach(&self) {
        while is_mount(&self.data()) {
            assert!(unmount_lazily(&self.data()), "the dead mount does not go");
        }
    }

    fn start_server(&mut self) {
        let mut command = self.postgres("pg_ctl");
        command
            .arg("-D")
            .arg(self.data())
            .args(["-w", "-t", "120", "-l"])
            .arg(self.dir.join("run/server.log"))
            .arg("start");
        self.run(&mut command, 150);
        self.server = self.postmaster();
        assert!(self.server.is_some(), "the server runs and has no postmaster.pid");
    }

    /// The process that the data directory's lock file names.
    fn postmaster(&self) -> Option<String> {
        let text = fs::read_to_string(self.data().join("postmaster.pid")).ok()?;
        text.split_once('\n').map(|(pid, _)| pid.to_owned())
    }

    /// By signal, since the data directory may be gone; with the backends, which could hold the next server up.
    fn stop_server(&mut self, signal: &str) {
        let Some(server) = self.server.take() else { return };
        let listed = Command::new("pgrep").args(["-P", &server]).output().expect("pgrep runs").stdout;
        let mut family: Vec<String> = String::from_utf8_lossy(&listed).lines().map(str::to_owned).collect();
        family.push(server.clone());
        signal_all(signal, std::slice::from_ref(&server));
        let all_gone = || family.iter().all(|pid| !Path::new("/proc").join(pid).exists());
        if !wait_until(60, all_gone) {
            signal_all("KILL", &family);
            assert!(wait_until(30, all_gone), "the server does not end");
        }
    }

    fn kill_while_the_server_recovers(&mut self) {
        let stale = self.postmaster();
        let mut command = self.postgres("pg_ctl");
        command.arg("-D").arg(self.data()).args(["-W", "-l"]).arg(self.dir.join("run/server.log")).arg("start");
        self.run(&mut command, 30);
        assert!(
            wait_until(10, || self.postmaster().is_some_and(|pid| Some(pid) != stale)),
            "the server writes no postmaster.pid"
        );
        self.server = self.postmaster();
        thread::sleep(Duration::from_millis(random_below(500)));
        self.kill_daemon();
        self.stop_server("QUIT");
        self.detach();
        self.start_daemon();
    }

    fn fill(&self) {
        self.run(&mut self.postgres("createdb"), 60);
        self.run(self.postgres("pgbench").args(["-i", "-q", "-s", "5"]), 180);
        self.sql("create table ledger (id bigserial primary key, noted timestamptz default now())");
    }

    fn acknowledged(&self) -> PathBuf {
        self.dir.join("acknowledged")
    }

    fn verify(&self) {
        let script = self.dir.join("run/missing.sql");
        let mut text = "create temp table acknowledged (id bigint);\ncopy acknowledged from stdin;\n".to_owned();
        text.extend(acknowledged_ids(&self.acknowledged()).iter().map(|id| format!("{id}\n")));
        text.push_str("\\.\nselect count(*) from acknowledged left join ledger using (id) where ledger.id is null;\n");
        fs::write(&script, text).expect("script written");
        let output = self.run(self.postgres("psql").args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-f"]).arg(&script), 120);
        assert_eq!(String::from_utf8_lossy(&output.stdout).trim(), "0", "acknowledged commits are missing");
        // pgbench moves the same amount in four tables within one transaction
        let balances = self.sql(
            "select count(distinct total) from (select sum(abalance) as total from pgbench_accounts
             union all select sum(bbalance) from pgbench_branches union all select sum(tbalance) from pgbench_tellers
             union all select coalesce(sum(delta), 0) from pgbench_history) as totals",
        );
        assert_eq!(balances, "1", "pgbench's balances disagree");
        self.run(self.postgres("pg_amcheck").args(["--all", "--heapallindexed", "--install-missing"]), 180);
    }
}

impl Drop for Lab {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("daemon.log:\n{}\nserver.log:\n{}", self.tail_of("daemon.log"), self.tail_of("run/server.log"));
        }
        if let Some(server) = &self.server {
            signal_all("KILL", std::slice::from_ref(server));
        }
        self.kill_daemon();
        if is_mount(&self.data()) {
            unmount_lazily(&self.data());
        }
        if thread::panicking() && std::env::var_os("HEATFS_KEEP").is_some() {
            eprintln!("kept: {}", self.dir.display());
        } else if !is_mount(&self.data()) {
            // an adopted directory is immutable until it is released
            drop(Command::new("chattr").arg("-i").arg(self.data()).stderr(Stdio::null()).status());
            drop(fs::remove_dir_all(&self.dir));
        }
    }
}

fn signal_all(signal: &str, pids: &[String]) {
    drop(Command::new("kill").arg(format!("-{signal}")).args(pids).stderr(Stdio::null()).status());
}

fn unmount_lazily(dir: &Path) -> bool {
    let (program, argument) = if is_root() { ("umount", "-l") } else { ("fusermount3", "-uz") };
    Command::new(program).arg(argument).arg(dir).status().is_ok_and(|status| status.success())
}

fn is_mount(dir: &Path) -> bool {
    let mounts = fs::read_to_string("/proc/self/mounts").expect("/proc/self/mounts");
    mounts.lines().any(|line| line.split(' ').nth(1).is_some_and(|target| Path::new(target) == dir))
}

/// Every id that a client was told is committed, in all rounds so far.
fn acknowledged_ids(dir: &Path) -> Vec<u64> {
    let mut ids = Vec::new();
    for entry in fs::read_dir(dir).expect("folder of acknowledgements") {
        let text = fs::read_to_string(entry.expect("entry").path()).expect("acknowledgements");
        ids.extend(text.lines().map(|line| line.parse::<u64>().expect("an id a line")));
    }
    ids
}

/// pgbench, and clients that note each commit that was acknowledged.
struct Load {
    pgbench: Child,
    ledger: Vec<(Child, JoinHandle<()>)>,
    acknowledged: PathBuf,
}

impl Load {
    fn start(lab: &Lab) -> Load {
        let mut pgbench = lab.postgres("pgbench");
        pgbench
            .args(["-n", "-c", CLIENTS, "-T", "600"])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        Load {
            pgbench: pgbench.spawn().expect("pgbench starts"),
            ledger: (0..LEDGER_CLIENTS).map(|client| Load::ledger_client(lab, client)).collect(),
            acknowledged: lab.acknowledged(),
        }
    }

    /// psql prints an id only when the server has said that its transaction is committed.
    fn ledger_client(lab: &Lab, client: usize) -> (Child, JoinHandle<()>) {
        let path = lab.acknowledged().join(client.to_string());
        let noted = File::options().create(true).append(true).open(path).expect("file for acknowledgements");
        let mut psql = lab.postgres("psql");
        psql.args(["-qAtX", "-v", "ON_ERROR_STOP=1", "-f", "-"])
            .stdin(Stdio::piped())
            .stdout(noted)
            .stderr(Stdio::null());
        let mut child = psql.spawn().expect("psql starts");
        let mut stdin = child.stdin.take().expect("a pipe was asked for");
        // ends when psql does
        let feeder =
            thread::spawn(
                move || while stdin.write_all(b"insert into ledger default values returning id;\n").is_ok() {},
            );
        (child, feeder)
    }

    /// Until the server's end has ended them all; how many commits were acknowledged in all rounds.
    fn wait(mut self) -> usize {
        let mut all: Vec<&mut Child> = self.ledger.iter_mut().map(|(child, _)| child).collect();
        all.push(&mut self.pgbench);
        let ended =
            wait_until(30, || all.iter_mut().all(|child| child.try_wait().is_ok_and(|status| status.is_some())));
        for child in all {
            drop(child.kill());
            drop(child.wait());
        }
        assert!(ended, "clients still wait for the server, half a minute after the daemon was killed");
        for (_, feeder) in self.ledger {
            drop(feeder.join());
        }
        acknowledged_ids(&self.acknowledged).len()
    }
}

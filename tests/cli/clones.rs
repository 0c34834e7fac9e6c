//! Clones by their commands: there at once, written to, hydrated, snapshotted; without their repository; and let go.

use super::bench::{Bench, complaint, heatfs, pattern, read, wait_until};
use super::snapshots::{started, tree};
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};

/// So slow that a test sees most of a clone in the repository.
const SLOWLY: (&str, &str) = ("HEATFS__CLONE__BYTES_PER_SECOND", "64KiB");
const ANYWAY: (&str, &str) = ("HEATFS__CLONE__WITHOUT_REPOSITORY", "true");

/// A clone beside the volume of a bench.
struct Twin<'b> {
    bench: &'b Bench,
    name: &'static str,
    daemon: Option<Child>,
}

impl<'b> Twin<'b> {
    fn new(bench: &'b Bench, name: &'static str) -> Twin<'b> {
        for tier in ["nvme", "hdd"] {
            fs::create_dir_all(bench.path(&format!("{name}-{tier}"))).unwrap();
        }
        Twin { bench, name, daemon: None }
    }

    fn make_command(&self, snapshot: &str) -> Command {
        let mut command = heatfs();
        command.args(["clone", "--repository", self.bench.path("repo").to_str().unwrap(), snapshot]);
        command.arg(self.data()).args(["--log-size", "16MiB", "--segment-size", "4MiB"]);
        for tier in ["nvme", "hdd"] {
            command.arg("--tier").arg(format!("{tier}={}", self.tier(tier).display()));
        }
        command.arg("--config-out").arg(self.config());
        command
    }

    fn make(&self, snapshot: &str) -> serde_json::Value {
        let output = self.make_command(snapshot).arg("--json").output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        serde_json::from_slice(&output.stdout).unwrap()
    }

    fn tier(&self, tier: &str) -> PathBuf {
        self.bench.path(&format!("{}-{tier}", self.name))
    }

    fn data(&self) -> PathBuf {
        self.bench.path(self.name)
    }

    fn config(&self) -> PathBuf {
        self.bench.path(&format!("{}.toml", self.name))
    }

    fn log(&self) -> String {
        fs::read_to_string(self.bench.path(&format!("{}.log", self.name))).unwrap_or_default()
    }

    fn heatfs(&self, args: &[&str]) -> Command {
        let mut command = heatfs();
        command.args(args).arg("--config").arg(self.config());
        command.env("HEATFS__SOCKET", self.bench.short_path(self.name));
        command
    }

    fn ok(&self, args: &[&str]) -> String {
        let output = self.heatfs(args).output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{args:?}: {said}\n{}", self.log());
        String::from_utf8(output.stdout).unwrap()
    }

    fn json(&self, args: &[&str]) -> serde_json::Value {
        serde_json::from_str(&self.ok(&[args, &["--json"]].concat())).unwrap()
    }

    /// Whatever its health.
    fn status(&self) -> serde_json::Value {
        let output = self.heatfs(&["status", "--json"]).output().unwrap();
        serde_json::from_slice(&output.stdout).unwrap_or_default()
    }

    fn start(&mut self, environment: &[(&str, &str)]) {
        let log = self.bench.path(&format!("{}.log", self.name));
        let log = fs::File::options().create(true).append(true).open(log).unwrap();
        let mut command = self.heatfs(&["daemon"]);
        let mut child = command.envs(environment.iter().copied()).stdout(Stdio::null()).stderr(log).spawn().unwrap();
        let up = wait_until(60, || self.status()["pid"].is_u64() || child.try_wait().unwrap().is_some());
        assert!(up && child.try_wait().unwrap().is_none(), "the clone is not served:\n{}", self.log());
        self.daemon = Some(child);
    }

    /// Ends by itself, with one line.
    fn refused(&self, environment: &[(&str, &str)]) -> Output {
        self.heatfs(&["daemon"]).env("HEATFS_LOG", "off").envs(environment.iter().copied()).output().unwrap()
    }

    fn kill(&mut self) {
        let mut child = self.daemon.take().unwrap();
        child.kill().unwrap();
        child.wait().unwrap();
    }

    fn stop(&mut self) {
        self.ok(&["stop"]);
        let mut child = self.daemon.take().unwrap();
        assert!(wait_until(60, || child.try_wait().unwrap().is_some()), "{}", self.log());
        assert_eq!(child.wait().unwrap().code(), Some(0), "{}", self.log());
    }
}

impl Drop for Twin<'_> {
    fn drop(&mut self) {
        if let Some(mut child) = self.daemon.take() {
            child.kill().ok();
            child.wait().ok();
        }
        nix::mount::umount2(&self.data(), nix::mount::MntFlags::MNT_DETACH).ok();
        Command::new("chattr").arg("-i").arg(self.data()).stderr(Stdio::null()).status().ok();
    }
}

fn write_at(path: &Path, offset: u64, bytes: &[u8]) {
    fs::File::options().write(true).open(path).unwrap().write_all_at(bytes, offset).unwrap();
}

/// A volume with one snapshot; id and content of that.
fn with_snapshot() -> Option<(Bench, String)> {
    let bench = started()?;
    let data = bench.data();
    fs::hard_link(data.join("small"), data.join("base/another name")).unwrap();
    fs::set_permissions(data.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(data.join("base"), Some(12), Some(34)).unwrap();
    fs::write(data.join("empty"), b"").unwrap();
    fs::write(data.join("zeros"), vec![0; 300_000]).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"far out", 1 << 40).unwrap();
    sparse.write_all_at(b"near", 9 << 20).unwrap();
    sparse.set_len(9 << 20 | 100).unwrap();
    drop(sparse);
    let id = bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned();
    Some((bench, id))
}

#[test]
fn a_clone_is_there_at_once_and_comes_to_its_tiers() {
    let Some((bench, id)) = with_snapshot() else { return };
    let before = tree(&bench.data());
    write_at(&bench.data().join("base/1/table"), 0, b"after the snapshot");
    let mut twin = Twin::new(&bench, "twin");
    let made = twin.make(&id[..12]);
    assert_eq!(made["snapshot"], id.as_str());
    assert!(made["in_repository_bytes"].as_u64().unwrap() < 32 << 20, "a hole of 9 MiB costs little: {made}");
    twin.start(&[SLOWLY]);
    assert_eq!(tree(&twin.data()), before, "names, attributes and bytes are those of the snapshot");
    let status = twin.status();
    assert!(status["hydration"]["left_bytes"].as_u64().unwrap() > 1 << 20, "{status}");
    assert_eq!(status["health"], "healthy", "{status}");
    assert!(twin.ok(&["status"]).contains("still in"), "{}", twin.ok(&["status"]));

    // It lives on its own.
    write_at(&twin.data().join("base/1/table"), 100_000, &[9; 70_000]);
    fs::write(twin.data().join("new"), pattern(50_000)).unwrap();
    fs::File::options().write(true).open(twin.data().join("zeros")).unwrap().set_len(1000).unwrap();
    fs::rename(twin.data().join("small"), twin.data().join("renamed")).unwrap();
    let changed = tree(&twin.data());
    assert_eq!(&read(&bench.data().join("base/1/table"))[100_000..100_100], &pattern(3_000_001)[100_000..100_100]);

    // The snapshot is held, and prune leaves what it needs.
    let held = complaint(&bench.heatfs(&["snapshot", "delete", &id]).output().unwrap(), 1);
    assert!(held.contains("in use") && held.contains(twin.data().to_str().unwrap()), "{held}");
    let reference = made["reference"].as_str().unwrap();
    let held = complaint(&bench.heatfs(&["snapshot", "unpin", reference]).output().unwrap(), 1);
    assert!(held.contains("--force"), "{held}");
    bench.json(&["snapshot", "create"]);
    bench.ok(&["snapshot", "prune", "--keep-last", "1"]);
    assert_eq!(tree(&twin.data()), changed);

    // A kill in the middle, and a snapshot of the clone while blocks are in the repository: told against the one that it was made of.
    twin.kill();
    twin.start(&[SLOWLY]);
    assert_eq!(tree(&twin.data()), changed);
    let own = twin.json(&["snapshot", "create"]);
    assert_eq!(own["parent"], id.as_str(), "{own}");
    assert!(own["new_bytes"].as_u64().unwrap() < 200_000, "only what was written is new: {own}");
    twin.ok(&["restore", own["id"].as_str().unwrap(), bench.path("restored").to_str().unwrap()]);
    assert_eq!(tree(&bench.path("restored")), changed);
    twin.stop();

    twin.start(&[]);
    assert!(wait_until(60, || !twin.tier("nvme").join("clone.json").exists()), "{}", twin.log());
    let status = twin.status();
    assert_eq!(status["hydration"]["left_bytes"], 0, "{status}");
    assert_eq!(status["volume"]["in_repository_bytes"], 0, "{status}");
    let (code, metrics) = {
        let output = twin.heatfs(&["status", "--json"]).output().unwrap();
        (output.status.code(), String::from_utf8(output.stdout).unwrap())
    };
    assert!(code == Some(0) && metrics.contains("hydrated_bytes"), "{metrics}");
    assert_eq!(tree(&twin.data()), changed);
    twin.stop();
    // Nothing needs the snapshot, or the repository, any more.
    bench.ok(&["snapshot", "delete", &id]);
    bench.ok(&["snapshot", "prune"]);
    fs::rename(bench.path("repo"), bench.path("away")).unwrap();
    twin.start(&[]);
    assert_eq!(tree(&twin.data()), changed);
    assert_eq!(twin.status()["hydration"], serde_json::Value::Null);
    twin.stop();
    assert!(twin.ok(&["check", "--deep"]).contains("0 damages"));
    twin.ok(&["release"]);
    assert_eq!(tree(&twin.data()), changed, "plain files again");
}

#[test]
fn a_clone_without_its_repository_says_so_and_serves_the_rest() {
    let Some((bench, id)) = with_snapshot() else { return };
    let mut twin = Twin::new(&bench, "twin");
    twin.make(&id);
    let away = bench.path("away");
    fs::rename(bench.path("repo"), &away).unwrap();
    let line = complaint(&twin.refused(&[]), 1);
    assert!(line.contains(bench.path("repo").to_str().unwrap()) && line.contains("without_repository"), "{line}");
    assert!(!twin.data().join("small").exists(), "nothing is mounted");

    twin.start(&[SLOWLY, ANYWAY]);
    let small = twin.data().join("small");
    assert_eq!(small.metadata().unwrap().size(), 5, "names and sizes are home's");
    assert_eq!(fs::read(&small).unwrap_err().raw_os_error(), Some(libc::EIO), "never zeros");
    fs::write(twin.data().join("new"), b"written all the same").unwrap();
    assert_eq!(read(&twin.data().join("new")), b"written all the same");
    let status = twin.status();
    assert_eq!(status["health"], "degraded", "{status}");
    assert!(status["reasons"].to_string().contains("repository"), "{status}");

    // It comes back, and everything is well without a restart.
    fs::rename(&away, bench.path("repo")).unwrap();
    assert!(wait_until(30, || fs::read(&small).is_ok_and(|bytes| bytes == b"hello")), "{}", twin.log());
    assert!(wait_until(30, || twin.status()["health"] == "healthy"), "{}", twin.status());
    twin.stop();

    // The settings may name it elsewhere; another one is refused.
    fs::rename(bench.path("repo"), &away).unwrap();
    twin.start(&[SLOWLY, ("HEATFS__SNAPSHOT__REPOSITORY", away.to_str().unwrap())]);
    assert_eq!(read(&twin.data().join("base/1/table")), pattern(3_000_001));
    twin.stop();
    bench.ok(&["repo", "init", bench.path("repo").to_str().unwrap()]);
    assert!(complaint(&twin.refused(&[]), 1).contains("another repository"));
}

#[test]
fn damage_in_the_repository_hurts_only_what_lies_there() {
    let Some((bench, id)) = with_snapshot() else { return };
    let mut twin = Twin::new(&bench, "twin");
    twin.make(&id);
    let packs = fs::read_dir(bench.path("repo/packs")).unwrap();
    let packs = packs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let pack = packs.map(|pack| pack.unwrap().path()).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
    let middle = pack.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();

    twin.start(&[]);
    let table = fs::File::open(twin.data().join("base/1/table")).unwrap();
    let (mut bad, expected) = (0, pattern(3_000_001));
    for slot in 0..3_000_001u64.div_ceil(65_536) {
        let mut bytes = vec![0; 65_536.min(3_000_001 - usize::try_from(slot).unwrap() * 65_536)];
        match table.read_exact_at(&mut bytes, slot * 65_536) {
            Ok(()) => assert_eq!(bytes, expected[usize::try_from(slot).unwrap() * 65_536..][..bytes.len()]),
            Err(error) => {
                assert_eq!(error.raw_os_error(), Some(libc::EIO));
                bad += 1;
            }
        }
    }
    assert!((1..8).contains(&bad), "{bad} slots cannot be read");
    // Everything else comes; what is damaged stays, named, and keeps the snapshot.
    let left = || twin.status()["hydration"]["left_bytes"].as_u64().unwrap_or(u64::MAX);
    assert!(wait_until(60, || left() <= bad * 65_536), "{}", twin.status());
    assert!(
        wait_until(30, || twin.status()["hydration"]["failed"].as_u64() == Some(left() / 65_536)),
        "{}",
        twin.status()
    );
    let reasons = twin.status()["reasons"].to_string();
    assert!(reasons.contains(pack.file_name().unwrap().to_str().unwrap()), "{reasons}");
    drop(table);
    // Whoever writes it anew heals it.
    write_at(&twin.data().join("base/1/table"), 0, &expected);
    twin.ok(&["settle"]);
    assert!(wait_until(60, || !twin.tier("nvme").join("clone.json").exists()), "{}", twin.log());
    assert_eq!(read(&twin.data().join("base/1/table")), expected);
    twin.stop();
}

#[test]
fn what_no_clone_can_be_made_of_is_refused_in_one_line() {
    let Some((bench, id)) = with_snapshot() else { return };
    let twin = Twin::new(&bench, "twin");
    let refused = |command: &mut Command, code: i32| complaint(&command.output().unwrap(), code);
    assert!(refused(&mut twin.make_command("ZZZZ"), 1).contains("`ZZZZ`"));
    fs::create_dir(twin.data()).unwrap();
    fs::write(twin.data().join("mine"), b"").unwrap();
    assert!(refused(&mut twin.make_command(&id), 1).contains("not empty"));
    fs::remove_file(twin.data().join("mine")).unwrap();
    fs::write(twin.tier("hdd").join("mine"), b"").unwrap();
    assert!(refused(&mut twin.make_command(&id), 1).contains("`mine`"));
    fs::remove_file(twin.tier("hdd").join("mine")).unwrap();
    assert!(refused(twin.make_command(&id).args(["--budget", "ssd=1GiB"]), 2).contains("ssd"));
    let mut inside = twin.make_command(&id);
    inside.arg("--tier").arg(format!("in={}", bench.path("repo/tmp").display()));
    assert!(refused(&mut inside, 2).contains("overlap"));
    assert_eq!(bench.json(&["repo", "stats"])["refs"], 0, "what was refused holds nothing");
    assert_eq!(fs::read_dir(twin.tier("nvme")).unwrap().count(), 0);
    twin.make(&id);
    assert!(refused(&mut twin.make_command(&id), 1).contains("already"));
    assert_eq!(bench.json(&["repo", "stats"])["refs"], 1);
}

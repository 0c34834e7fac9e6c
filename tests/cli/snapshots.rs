//! Snapshots by their commands: taken of a running volume, listed, restored.

use super::bench::{Bench, complaint, pattern, read, wait_until};
use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Child;

/// Everything that a restore has to bring back.
#[derive(Debug, PartialEq)]
pub struct Thing {
    mode: u32,
    owner: (u32, u32),
    modified: (i64, i64),
    links: u64,
    content: Vec<u8>,
}

pub fn tree(root: &Path) -> BTreeMap<String, Thing> {
    let mut things = BTreeMap::new();
    let mut todo = vec![root.to_owned()];
    while let Some(path) = todo.pop() {
        let meta = path.symlink_metadata().unwrap();
        let content = if meta.is_file() {
            fs::read(&path).unwrap()
        } else if meta.is_symlink() {
            fs::read_link(&path).unwrap().into_os_string().into_encoded_bytes()
        } else {
            todo.extend(fs::read_dir(&path).unwrap().map(|entry| entry.unwrap().path()));
            Vec::new()
        };
        let name = path.strip_prefix(root).unwrap().to_str().unwrap().to_owned();
        things.insert(
            name,
            Thing {
                mode: meta.mode(),
                owner: (meta.uid(), meta.gid()),
                modified: (meta.mtime(), meta.mtime_nsec()),
                links: if meta.is_dir() { 0 } else { meta.nlink() },
                content,
            },
        );
    }
    things
}

pub fn started() -> Option<Bench> {
    let mut bench = Bench::new()?;
    bench.adopt();
    bench.ok(&["repo", "init", bench.path("repo").to_str().unwrap()]);
    let settings = fs::read_to_string(bench.config()).unwrap();
    let snapshot = format!("\n[snapshot]\nrepository = \"{}\"\n", bench.path("repo").display());
    fs::write(bench.config(), settings + &snapshot).unwrap();
    bench.start();
    Some(bench)
}

fn restored(bench: &Bench, id: &str, name: &str) -> BTreeMap<String, Thing> {
    let into = bench.path(name);
    bench.ok(&["restore", id, into.to_str().unwrap()]);
    tree(&into)
}

#[test]
fn a_snapshot_brings_back_what_was_there() {
    let Some(mut bench) = started() else { return };
    let data = bench.data();
    fs::write(data.join("sparse"), b"").unwrap();
    let sparse = fs::File::options().write(true).open(data.join("sparse")).unwrap();
    sparse.write_all_at(b"far out", 1 << 30).unwrap();
    fs::hard_link(data.join("small"), data.join("base/another name")).unwrap();
    fs::set_permissions(data.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    sparse.set_len(4 << 20).unwrap();
    sparse.write_all_at(&pattern(100_000), 1 << 20).unwrap();
    let before = tree(&data);
    let first = bench.json(&["snapshot", "create", "--label", "night=1"]);
    assert_eq!(first["labels"]["night"], "1");

    fs::File::options()
        .write(true)
        .open(data.join("base/1/table"))
        .unwrap()
        .write_all_at(&[7; 100], 1_000_000)
        .unwrap();
    fs::remove_file(data.join("small")).unwrap();
    fs::rename(data.join("base/1"), data.join("base/2")).unwrap();
    fs::write(data.join("base/2/new"), pattern(20_000)).unwrap();
    sparse.set_len(50_000).unwrap();
    let after = tree(&data);
    let second = bench.json(&["snapshot", "create"]);
    assert_eq!(second["parent"], first["id"]);
    // One page of the table, three of the new file, and no clean one.
    assert!(second["new_bytes"].as_u64().unwrap() <= 8192 + 3 * 8192, "{second}");
    let third = bench.json(&["snapshot", "create"]);
    assert!(third["new_bytes"] == 0 && third["stored_bytes"].as_u64().unwrap() < 16 << 10, "{third}");

    assert_eq!(restored(&bench, first["id"].as_str().unwrap(), "r1"), before);
    assert_eq!(restored(&bench, second["id"].as_str().unwrap(), "r2"), after);
    assert_eq!(restored(&bench, "latest", "r3"), after);
    assert!(bench.path("r1/sparse").metadata().unwrap().blocks() * 512 < 1 << 20, "holes stay holes");
    bench.ok(&["restore", "latest", bench.path("part").to_str().unwrap(), "--path", "base/2"]);
    assert_eq!(read(&bench.path("part/new")), pattern(20_000));

    // What changed while no snapshot was under way, and while nothing ran at all, is still known.
    fs::File::options().write(true).open(data.join("base/2/table")).unwrap().write_all_at(&[8; 9], 2_000_000).unwrap();
    drop(sparse);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    bench.start();
    let fourth = bench.json(&["snapshot", "create"]);
    assert_eq!(fourth["new_bytes"], 8192, "{fourth}");
    assert_eq!(restored(&bench, "latest", "r4"), tree(&data));

    let list = bench.json(&["snapshot", "list"]);
    assert_eq!(list.as_array().unwrap().len(), 4);
    assert!(bench.ok(&["snapshot", "list"]).contains("night=1"));
    assert!(bench.ok(&["snapshot", "show", "latest"]).contains(third["id"].as_str().unwrap()));
    bench.ok(&["repo", "stats"]);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}

#[test]
fn snapshots_are_kept_compared_copied_and_pruned() {
    let Some(mut bench) = started() else { return };
    let table = fs::File::options().write(true).open(bench.data().join("base/1/table")).unwrap();
    let mut ids = Vec::new();
    for round in 0u8..4 {
        table.write_all_at(&[round; 500_000], 1_000_000).unwrap();
        ids.push(bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned());
    }
    drop(table);
    fs::write(bench.data().join("new"), b"here").unwrap();
    let last = tree(&bench.data());
    ids.push(bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned());

    let diff = bench.json(&["snapshot", "diff", &ids[3]]);
    assert!(
        diff.as_array().unwrap().iter().any(|change| change["path"] == "new" && change["kind"] == "added"),
        "{diff}"
    );
    let diff = bench.json(&["snapshot", "diff", &ids[0], &ids[1]]);
    let table = diff.as_array().unwrap().iter().find(|change| change["path"] == "base/1/table").unwrap();
    // 500,000 bytes from 1,000,000 on touch 62 pages of 8 KiB.
    assert_eq!(table["changed_bytes"], 62 * 8192, "{diff}");

    bench.ok(&["snapshot", "pin", &ids[0], "--name", "keep", "--note", "the first"]);
    let line = complaint(&bench.heatfs(&["snapshot", "delete", &ids[0]]).output().unwrap(), 1);
    assert!(line.contains("keep"), "{line}");
    bench.ok(&["snapshot", "delete", &ids[1]]);
    let rules = ["snapshot", "prune", "--keep-last", "2"];
    let planned = bench.json(&[&rules[..], &["--dry-run"]].concat());
    assert_eq!(planned["deleted"], serde_json::json!([ids[2]]), "{planned}");
    assert_eq!(bench.json(&["snapshot", "list"]).as_array().unwrap().len(), 4, "a dry run deletes nothing");
    let pruned = bench.json(&rules);
    assert_eq!((&pruned["deleted"], pruned["kept"].as_array().unwrap().len()), (&planned["deleted"], 3), "{pruned}");
    assert!(pruned["bytes_freed"].as_u64().unwrap() > 0 && planned["bytes_freed"].as_u64().unwrap() > 0, "{planned}");
    assert_eq!(restored(&bench, &ids[4], "r4"), last);
    assert_eq!(read(&bench.path("r4/base/1/table"))[1_000_000], 3);
    bench.ok(&["restore", &ids[0], bench.path("r0").to_str().unwrap()]);
    assert_eq!(read(&bench.path("r0/base/1/table"))[1_000_000], 0);
    bench.ok(&["snapshot", "unpin", "keep"]);

    let other = bench.path("other");
    let other = other.to_str().unwrap();
    bench.ok(&["repo", "init", other]);
    bench.ok(&["repo", "copy", &ids[0], "--to", other]);
    bench.ok(&["repo", "copy", "latest", "--to", other]);
    bench.ok(&["restore", "latest", bench.path("r5").to_str().unwrap(), "--repository", other]);
    assert_eq!(tree(&bench.path("r5")), last);

    assert_eq!(bench.json(&["repo", "check"])["damage"], serde_json::json!([]));
    let pack =
        fs::read_dir(bench.path("other/packs")).unwrap().flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let pack = pack.map(|pack| pack.unwrap().path()).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
    let mut byte = [0];
    file.read_exact_at(&mut byte, 5000).unwrap();
    file.write_all_at(&[byte[0] ^ 1], 5000).unwrap();
    let found = bench.heatfs(&["repo", "check", "--repository", other]).output().unwrap();
    assert_eq!(found.status.code(), Some(1));
    assert!(String::from_utf8_lossy(&found.stdout).contains("damaged"), "{found:?}");
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}

/// A snapshot shown at a directory; unmounted when dropped.
struct Shown {
    child: Child,
    point: PathBuf,
}

fn is_mounted(point: &Path) -> bool {
    fs::read_to_string("/proc/self/mountinfo").unwrap().contains(&format!(" {} ", point.display()))
}

impl Shown {
    fn new(bench: &Bench, id: &str, name: &str) -> Shown {
        let point = bench.path(name);
        fs::create_dir(&point).unwrap();
        let log = fs::File::create(bench.path("mount.log")).unwrap();
        let mut command = bench.heatfs(&["mount", id, point.to_str().unwrap()]);
        let child = command.stdout(log.try_clone().unwrap()).stderr(log).spawn().unwrap();
        let mut shown = Shown { child, point };
        let up = wait_until(60, || is_mounted(&shown.point) || shown.child.try_wait().unwrap().is_some());
        assert!(up && is_mounted(&shown.point), "not mounted:\n{}", said(bench));
        shown
    }

    fn ended(&mut self) -> Option<i32> {
        wait_until(60, || self.child.try_wait().unwrap().is_some());
        self.child.try_wait().unwrap().expect("it goes on").code()
    }

    fn tell(&self, signal: nix::sys::signal::Signal) {
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(self.child.id().cast_signed()), signal).unwrap();
    }
}

impl Drop for Shown {
    fn drop(&mut self) {
        self.child.kill().ok();
        self.child.wait().ok();
        if is_mounted(&self.point) {
            nix::mount::umount2(&self.point, nix::mount::MntFlags::MNT_DETACH).ok();
        }
    }
}

fn said(bench: &Bench) -> String {
    fs::read_to_string(bench.path("mount.log")).unwrap()
}

#[test]
fn a_mounted_snapshot_shows_what_was_there() {
    let Some(mut bench) = started() else { return };
    let data = bench.data();
    fs::hard_link(data.join("small"), data.join("base/another name")).unwrap();
    fs::set_permissions(data.join("small"), fs::Permissions::from_mode(0o640)).unwrap();
    std::os::unix::fs::chown(data.join("base"), Some(12), Some(34)).unwrap();
    fs::write(data.join("empty"), b"").unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"far out", 6 << 20).unwrap();
    drop(sparse);
    // More names than one answer to the kernel holds.
    fs::create_dir(data.join("many")).unwrap();
    for number in 0..1500 {
        let name = format!("many/a file with a long name of its own {number:04}");
        fs::write(data.join(name), number.to_string()).unwrap();
    }
    let before = tree(&data);
    bench.json(&["snapshot", "create"]);
    fs::remove_dir_all(data.join("many")).unwrap();
    fs::write(data.join("base/1/table"), b"other").unwrap();
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());

    let mut shown = Shown::new(&bench, "latest", "shown");
    assert!(wait_until(10, || said(&bench).contains("snapshot ")), "one line when it is mounted");
    let point = shown.point.clone();
    assert_eq!(tree(&point), before);
    let inode = |name: &str| point.join(name).metadata().unwrap().ino();
    assert_eq!(inode("small"), inode("base/another name"));
    let table = fs::File::open(point.join("base/1/table")).unwrap();
    let mut middle = vec![0; 300_001];
    table.read_exact_at(&mut middle, 1_234_567).unwrap();
    assert_eq!(middle, pattern(3_000_001)[1_234_567..1_534_568]);
    assert_eq!(table.read_at(&mut middle, 3_000_000).unwrap(), 1);
    let names = fs::read_dir(point.join("many")).unwrap().map(|entry| entry.unwrap().file_name());
    let names: Vec<_> = names.collect();
    assert!(names.len() == 1500 && names.is_sorted(), "{names:?}");

    let refused = |outcome: std::io::Result<()>| outcome.unwrap_err().raw_os_error();
    assert_eq!(refused(fs::write(point.join("new"), b"")), Some(libc::EROFS));
    assert_eq!(refused(fs::File::options().write(true).open(point.join("small")).map(drop)), Some(libc::EROFS));
    assert_eq!(refused(fs::remove_file(point.join("small"))), Some(libc::EROFS));
    assert_eq!(refused(fs::rename(point.join("small"), point.join("x"))), Some(libc::EROFS));
    assert_eq!(refused(fs::create_dir(point.join("x"))), Some(libc::EROFS));
    let mode = fs::Permissions::from_mode(0o777);
    assert_eq!(refused(fs::set_permissions(point.join("small"), mode)), Some(libc::EROFS));
    assert_eq!(refused(fs::metadata(point.join("none")).map(drop)), Some(libc::ENOENT));

    // A signal waits for the open file.
    shown.tell(nix::sys::signal::Signal::SIGTERM);
    assert!(wait_until(20, || said(&bench).contains("waiting")), "{}", said(&bench));
    assert_eq!(table.read_at(&mut [0], 77).unwrap(), 1);
    drop(table);
    assert_eq!(shown.ended(), Some(0), "{}", said(&bench));
    assert!(!is_mounted(&point));
    let mut shown = Shown::new(&bench, "latest", "again");
    nix::mount::umount2(&shown.point, nix::mount::MntFlags::empty()).unwrap();
    assert_eq!(shown.ended(), Some(0), "{}", said(&bench));
}

/// Flips a byte in the largest pack of `repository`.
fn spoil_largest_pack(repository: &Path) {
    let dirs = fs::read_dir(repository.join("packs")).unwrap().map(|dir| dir.unwrap().path());
    let packs = dirs.flat_map(|dir| fs::read_dir(dir).unwrap().map(|pack| pack.unwrap().path()));
    let largest = packs.max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let file = fs::File::options().read(true).write(true).open(largest).unwrap();
    let (at, mut byte) = (file.metadata().unwrap().len() / 2, [0]);
    file.read_exact_at(&mut byte, at).unwrap();
    file.write_all_at(&[!byte[0]], at).unwrap();
}

/// What a repository has lost comes back from the volume's files, or from where snapshots were copied to.
#[test]
fn a_repository_is_mended_from_live_files_and_from_copies() {
    let Some(bench) = started() else { return };
    let (repo, copies) = (bench.path("repo"), bench.path("copies"));
    let noise = |seed: u64| -> Vec<u8> {
        let mut state = seed;
        std::iter::repeat_with(|| {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            (state >> 56) as u8
        })
        .take(3 << 20)
        .collect()
    };
    fs::write(bench.data().join("noise"), noise(1)).unwrap();
    bench.json(&["snapshot", "create"]);
    bench.ok(&["repo", "init", copies.to_str().unwrap()]);
    bench.ok(&["repo", "copy", "latest", "--to", copies.to_str().unwrap()]);
    let damaged = |bench: &Bench| bench.heatfs(&["repo", "check"]).output().unwrap().status.code() == Some(1);

    spoil_largest_pack(&repo);
    assert!(damaged(&bench));
    let mended = bench.json(&["repo", "repair"]);
    assert!(mended["lost"].as_u64().unwrap() > 0 && mended["mended"] == mended["lost"], "{mended}");
    bench.ok(&["restore", "latest", bench.path("first").to_str().unwrap()]);
    assert!(read(&bench.path("first/noise")) == noise(1));

    // The damaged pack goes with the next prune. Then the volume has other bytes than what is hurt again.
    bench.ok(&["snapshot", "prune"]);
    bench.ok(&["snapshot", "prune"]);
    assert!(!damaged(&bench));
    fs::write(bench.data().join("noise"), noise(2)).unwrap();
    spoil_largest_pack(&repo);
    assert!(damaged(&bench));
    let output = bench.heatfs(&["repo", "repair"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("stay lost"), "{said}");
    let mended = bench.json(&["repo", "repair", "--from", copies.to_str().unwrap()]);
    assert!(mended["lost"].as_u64().unwrap() > 0 && mended["mended"] == mended["lost"], "{mended}");
    bench.ok(&["restore", "latest", bench.path("second").to_str().unwrap()]);
    assert!(read(&bench.path("second/noise")) == noise(1));

    let segment = fs::read_dir(repo.join("index")).unwrap().next().unwrap().unwrap().path();
    fs::File::options().write(true).open(segment).unwrap().write_all_at(b"rotten", 20).unwrap();
    assert!(damaged(&bench));
    assert!(bench.json(&["repo", "repair"])["index_rebuilt"].as_u64().unwrap() > 0);
    bench.ok(&["restore", "latest", bench.path("third").to_str().unwrap()]);
    assert!(read(&bench.path("third/noise")) == noise(1));
}

/// Packs that only old snapshots use lie in another directory; without it they are missed, with it all is as before.
#[test]
fn cold_packs_are_archived() {
    let Some(bench) = started() else { return };
    let (data, archive) = (bench.data(), bench.path("cold"));
    fs::write(data.join("noise"), pattern(5_000_000)).unwrap();
    let first = bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned();
    let before = tree(&data);
    fs::write(data.join("noise"), pattern(4_000_000).iter().map(|byte| !byte).collect::<Vec<u8>>()).unwrap();
    fs::write(data.join("base/1/table"), b"other").unwrap();
    bench.json(&["snapshot", "create"]);
    let line = complaint(&bench.heatfs(&["repo", "archive"]).output().unwrap(), 2);
    assert!(line.contains("--to"), "{line}");
    let line = complaint(
        &bench.heatfs(&["repo", "archive", "--to", bench.path("repo/cold").to_str().unwrap()]).output().unwrap(),
        2,
    );
    assert!(line.contains("lies in the repository"), "{line}");
    let to = ["--to", archive.to_str().unwrap()];
    // All snapshots are younger than a day; of those that are not of this moment, the first's own pack is cold only when the second is not old.
    assert_eq!(bench.json(&[&["repo", "archive", "--older-than", "1d"], &to[..]].concat())["packs"], 0);
    let would = bench.json(&["repo", "archive", "--older-than", "0s", "--dry-run"]);
    assert!(would["packs"].as_u64().unwrap() > 0 && would["dry_run"] == true, "{would}");
    let went = bench.json(&["repo", "archive", "--older-than", "0s"]);
    assert_eq!((&went["packs"], &went["bytes"]), (&would["packs"], &would["bytes"]));
    let stats = bench.json(&["repo", "stats"]);
    assert_eq!(stats["archived_packs"], went["packs"], "{stats}");
    assert!(bench.ok(&["repo", "stats"]).contains("in the archive at"));
    assert_eq!(bench.json(&["repo", "check"])["damage"], serde_json::json!([]));

    let moved = bench.path("moved");
    fs::rename(&archive, &moved).unwrap();
    let output = bench.heatfs(&["restore", &first, bench.path("not").to_str().unwrap()]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("archive at") && said.contains("/cold"), "{said}");
    let output = bench.heatfs(&["repo", "check"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(output.status.code() == Some(1) && said.contains("--to"), "{said}");
    bench.json(&["repo", "archive", "--to", moved.to_str().unwrap()]);
    let mut found = restored(&bench, &first, "back");
    let mut wanted = before;
    // What the restored directory itself is depends on when it was made.
    found.remove("");
    wanted.remove("");
    assert!(found == wanted, "the old snapshot is whole");
    bench.json(&["snapshot", "create"]);
    bench.ok(&["snapshot", "delete", &first]);
    bench.ok(&["snapshot", "prune"]);
    bench.ok(&["snapshot", "prune"]);
    assert_eq!(bench.json(&["repo", "check"])["damage"], serde_json::json!([]));
}

/// What is shown is not deleted; what a killed process had shown may be.
#[test]
fn a_mounted_snapshot_is_held() {
    let Some(bench) = started() else { return };
    bench.json(&["snapshot", "create"]);
    let mut shown = Shown::new(&bench, "latest", "shown");
    let line = complaint(&bench.heatfs(&["snapshot", "delete", "latest"]).output().unwrap(), 1);
    assert!(line.contains("in use") && line.contains("shown at") && line.contains("/shown"), "{line}");
    shown.child.kill().unwrap();
    shown.child.wait().unwrap();
    bench.ok(&["snapshot", "delete", "latest"]);
    assert_eq!(bench.json(&["snapshot", "list"]), serde_json::json!([]));

    bench.json(&["snapshot", "create"]);
    let mut shown = Shown::new(&bench, "latest", "again");
    shown.tell(nix::sys::signal::Signal::SIGTERM);
    assert_eq!(shown.ended(), Some(0), "{}", said(&bench));
    let refs = fs::read_dir(bench.path("repo/refs")).unwrap().count();
    assert!(refs > 0, "it was held");
    bench.ok(&["snapshot", "delete", "latest"]);
}

#[test]
fn a_mounted_snapshot_names_what_is_damaged() {
    let Some(mut bench) = started() else { return };
    bench.json(&["snapshot", "create"]);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0), "{}", bench.log());
    let packs = fs::read_dir(bench.path("repo/packs")).unwrap();
    let packs = packs.flat_map(|dir| fs::read_dir(dir.unwrap().path()).unwrap());
    let pack = packs.map(|pack| pack.unwrap().path()).max_by_key(|pack| pack.metadata().unwrap().len()).unwrap();
    let file = fs::File::options().read(true).write(true).open(&pack).unwrap();
    let middle = pack.metadata().unwrap().len() / 2;
    let mut byte = [0];
    file.read_exact_at(&mut byte, middle).unwrap();
    file.write_all_at(&[byte[0] ^ 1], middle).unwrap();

    let mut shown = Shown::new(&bench, "latest", "shown");
    let error = fs::read(shown.point.join("base/1/table")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EIO));
    let log = said(&bench);
    let name = pack.file_name().unwrap().to_str().unwrap();
    assert!(log.lines().any(|line| line.contains("/base/1/table") && line.contains(name)), "{log}");
    shown.tell(nix::sys::signal::Signal::SIGINT);
    assert_eq!(shown.ended(), Some(0), "{}", said(&bench));
}

#[test]
fn what_cannot_be_is_refused_in_one_line() {
    let Some(mut bench) = started() else { return };
    bench.json(&["snapshot", "create"]);
    let refused = |args: &[&str], code: i32| complaint(&bench.heatfs(args).output().unwrap(), code);
    let full = bench.path("nvme");
    assert!(refused(&["restore", "latest", full.to_str().unwrap()], 1).contains("not empty"));
    let into = bench.path("nowhere");
    let into = into.to_str().unwrap();
    assert!(refused(&["restore", "0", into, "--path", "base/none"], 1).contains("base/none"));
    assert!(refused(&["restore", "ZZZZ", into], 1).contains("`ZZZZ`"));
    assert!(refused(&["mount", "latest", full.to_str().unwrap()], 1).contains("not empty"));
    assert!(refused(&["mount", "latest", into], 1).contains("nowhere"));
    assert!(refused(&["mount", "latest", bench.config().to_str().unwrap()], 2).contains("not a directory"));
    assert!(refused(&["mount", "latest", bench.data().to_str().unwrap()], 1).contains("mounted there already"));
    assert!(refused(&["mount", "latest", bench.path("repo/tmp").to_str().unwrap()], 2).contains("in the repository"));
    let empty = bench.path("empty");
    fs::create_dir(&empty).unwrap();
    assert!(refused(&["mount", "ZZZZ", empty.to_str().unwrap()], 1).contains("`ZZZZ`"));
    assert!(refused(&["snapshot", "create", "--label", "novalue"], 2).contains("KEY=VALUE"));
    assert!(refused(&["snapshot", "create", "--label", "heatfs.mark=1"], 2).contains("heatfs.mark"));
    assert!(refused(&["repo", "init", bench.path("repo").to_str().unwrap()], 1).contains("already"));
    assert!(refused(&["snapshot", "list", "--repository", "/nonexistent"], 1).contains("/nonexistent"));
    let (key, locked) = (bench.path("key"), bench.path("locked"));
    fs::write(&key, [5; 64]).unwrap();
    bench.ok(&["repo", "init", locked.to_str().unwrap(), "--key-file", key.to_str().unwrap()]);
    let line = refused(&["snapshot", "list", "--repository", locked.to_str().unwrap()], 2);
    assert!(line.contains("key"), "{line}");
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}

/// What it says that it did.
fn restore_in_place(bench: &Bench, id: &str, into: &Path, more: &[&str]) -> serde_json::Value {
    bench.json(&[&["restore", "--in-place", id, into.to_str().unwrap()], more].concat())
}

/// Something of everything that may differ from a snapshot.
fn spoil(into: &Path, elsewhere: &Path) {
    let open = |name: &str| fs::File::options().write(true).open(into.join(name)).unwrap();
    open("base/1/table").write_all_at(&[7; 10], 1_000_000).unwrap();
    open("sparse").write_all_at(&[7; 10], 1 << 20).unwrap();
    open("global/pg_control").set_len(100).unwrap();
    fs::remove_file(into.join("small")).unwrap();
    fs::write(into.join("small"), b"hello").unwrap();
    fs::remove_file(into.join("link")).unwrap();
    fs::create_dir(into.join("more")).unwrap();
    fs::write(into.join("more/standby.signal"), b"").unwrap();
    fs::set_permissions(into.join("base"), fs::Permissions::from_mode(0o755)).unwrap();
    fs::hard_link(into.join("base/1/table"), elsewhere).unwrap();
}

#[test]
fn a_restore_in_place_writes_only_what_differs() {
    let Some(mut bench) = started() else { return };
    let data = bench.data();
    fs::create_dir(data.join("global")).unwrap();
    fs::write(data.join("global/pg_control"), pattern(8192)).unwrap();
    fs::hard_link(data.join("small"), data.join("base/another name")).unwrap();
    let sparse = fs::File::create(data.join("sparse")).unwrap();
    sparse.write_all_at(b"far out", 6 << 20).unwrap();
    drop(sparse);
    let id = bench.json(&["snapshot", "create"])["id"].as_str().unwrap().to_owned();
    let before = tree(&data);
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
    let into = bench.path("plain");
    bench.ok(&["restore", &id, into.to_str().unwrap()]);
    let nothing = restore_in_place(&bench, &id, &into, &["--delete"]);
    for key in ["written_bytes", "changed_files", "made", "attributes", "extra"] {
        assert_eq!(nothing[key], 0, "{key}: {nothing}");
    }

    spoil(&into, &bench.path("elsewhere"));
    let spoilt = tree(&into);

    let told = restore_in_place(&bench, &id, &into, &["--dry-run"]);
    assert_eq!((&told["extra"], &told["extra_names"][0]), (&1.into(), &"more".into()), "{told}");
    assert!(told["written_bytes"].as_u64().unwrap() > 0 && told["dry_run"] == true, "{told}");
    assert_eq!(tree(&into), spoilt, "a dry run changes nothing");
    let user = std::process::Command::new("sleep").arg("600").current_dir(&into).spawn();
    let mut user = user.unwrap();
    let line = complaint(&bench.heatfs(&["restore", "--in-place", &id, into.to_str().unwrap()]).output().unwrap(), 1);
    user.kill().unwrap();
    user.wait().unwrap();
    assert!(line.contains("in use"), "{line}");
    assert_eq!(tree(&into), spoilt);

    // As if it had been cut off: no server starts without its control file.
    fs::rename(into.join("global/pg_control"), into.join("global/pg_control.heatfs-restore")).unwrap();
    let elsewhere = read(&bench.path("elsewhere"));
    let done = restore_in_place(&bench, &id, &into, &[]);
    // The table has a name outside and is made anew; else a page of the control file, and a slot that becomes a hole again.
    assert_eq!(done["extra"], 1, "{done}");
    assert!(done["written_bytes"].as_u64().unwrap() < 3_000_001 + 3 * 65_536, "{done}");
    assert_eq!(read(&bench.path("elsewhere")), elsewhere, "what has a name elsewhere is not written to");
    let mut after = tree(&into);
    assert!(after.remove("more").is_some() && after.remove("more/standby.signal").is_some());
    assert_eq!(after, before, "all but what the snapshot does not have");
    let done = restore_in_place(&bench, &id, &into, &["--delete"]);
    assert_eq!((&done["removed"], &done["written_bytes"]), (&true.into(), &0.into()), "{done}");
    assert_eq!(tree(&into), before);

    // One page of a file that is there: one page is written.
    fs::File::options().write(true).open(into.join("base/1/table")).unwrap().write_all_at(&[9], 2_000_000).unwrap();
    let done = restore_in_place(&bench, &id, &into, &[]);
    assert_eq!((&done["written_bytes"], &done["changed_files"]), (&8192.into(), &1.into()), "{done}");
    assert_eq!(tree(&into), before);
    fs::remove_dir_all(into.join("global")).unwrap();
    fs::remove_file(into.join("small")).unwrap();
    fs::create_dir(into.join("small")).unwrap();
    let refused = bench.heatfs(&["restore", "--in-place", &id, into.to_str().unwrap()]).output().unwrap();
    assert!(complaint(&refused, 1).contains("--delete"));
    restore_in_place(&bench, &id, &into, &["--delete"]);
    assert_eq!(tree(&into), before);
    let wrong = bench.heatfs(&["restore", &id, into.to_str().unwrap(), "--delete"]).output().unwrap();
    assert_eq!(wrong.status.code(), Some(2));
}

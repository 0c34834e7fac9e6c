//! Snapshots that are taken, but not stored when something comes in between: they are gone on with, as of their moment.

use super::bench::{Bench, wait_until};
use super::snapshots::{Thing, tree};
use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::{FileExt, symlink};
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

/// So slow that a capture of [`NOISE_BYTES`] is still under way when the test has done what it has to.
const SLOWLY: (&str, &str) = ("HEATFS__SNAPSHOT__BYTES_PER_SECOND", "1MiB");
const NOISE_BYTES: usize = 24 << 20;

/// An adopted directory with bytes that neither compress nor repeat, and settings with this repository.
fn adopted(repository: PathBuf) -> Option<Bench> {
    let bench = Bench::new()?;
    bench.adopt();
    fs::create_dir_all(&repository).unwrap();
    let text = fs::read_to_string(bench.config()).unwrap();
    fs::write(bench.config(), format!("{text}\n[snapshot]\nrepository = \"{}\"\n", repository.display())).unwrap();
    Some(bench)
}

fn fill(bench: &Bench) {
    let mut noise = vec![0; NOISE_BYTES];
    fs::File::open("/dev/urandom").unwrap().read_exact(&mut noise).unwrap();
    fs::create_dir(bench.data().join("dir")).unwrap();
    fs::write(bench.data().join("dir/noise"), &noise).unwrap();
    fs::hard_link(bench.data().join("dir/noise"), bench.data().join("dir/again")).unwrap();
}

/// The names are kept: from here on the snapshot depends on nobody.
fn wait_for_image(bench: &Bench) {
    let kept = || {
        let staging = fs::read_dir(bench.path("nvme/staging")).into_iter().flatten();
        staging.flatten().any(|entry| entry.path().extension().is_some_and(|ending| ending == "image"))
    };
    assert!(wait_until(60, kept), "no image is kept:\n{}", bench.log());
}

fn create(bench: &Bench) -> Child {
    let mut command = bench.heatfs(&["snapshot", "create", "--label", "why=cut-off"]);
    command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap()
}

/// Everything that a snapshot under way must not see.
fn change(bench: &Bench) {
    let data = bench.data();
    let noise = fs::File::options().write(true).open(data.join("dir/noise")).unwrap();
    for at in (0..NOISE_BYTES as u64).step_by(1 << 20) {
        noise.write_all_at(&[7; 8192], at).unwrap();
    }
    noise.set_len(NOISE_BYTES as u64 / 2).unwrap();
    noise.sync_all().unwrap();
    fs::remove_file(data.join("small")).unwrap();
    fs::rename(data.join("dir"), data.join("other")).unwrap();
    fs::create_dir(data.join("dir")).unwrap();
    fs::write(data.join("dir/noise"), b"another file").unwrap();
    fs::remove_file(data.join("link")).unwrap();
    symlink("elsewhere", data.join("link")).unwrap();
    fs::remove_file(data.join("base/1/table")).unwrap();
    let mut late = fs::File::create(data.join("late")).unwrap();
    late.write_all(b"made after the moment").unwrap();
    late.sync_all().unwrap();
    fs::File::open(&data).unwrap().sync_all().unwrap();
}

fn snapshots(bench: &Bench) -> Vec<serde_json::Value> {
    bench.json(&["snapshot", "list"]).as_array().unwrap().clone()
}

fn assert_restores(bench: &Bench, into: &str, wanted: &BTreeMap<String, Thing>) {
    bench.ok(&["restore", "latest", bench.path(into).to_str().unwrap()]);
    assert_same(&tree(&bench.path(into)), wanted);
}

/// As `assert_eq`, without printing megabytes.
fn assert_same(found: &BTreeMap<String, Thing>, wanted: &BTreeMap<String, Thing>) {
    assert_eq!(found.keys().collect::<Vec<_>>(), wanted.keys().collect::<Vec<_>>());
    for (name, thing) in wanted {
        assert!(found[name] == *thing, "{name} is not what it was");
    }
}

/// A crash while the bytes are being stored costs time, not the snapshot (R16, R17).
#[test]
fn a_snapshot_outlives_the_daemon_that_took_it() {
    let Some(place) = Bench::new() else { return };
    let repository = place.path("repo");
    let Some(mut bench) = adopted(repository.clone()) else { return };
    bench.ok(&["repo", "init", repository.to_str().unwrap()]);
    bench.start_with(&[SLOWLY]);
    fill(&bench);
    let then = tree(&bench.data());
    let mut command = create(&bench);
    wait_for_image(&bench);
    change(&bench);
    assert!(snapshots(&bench).is_empty(), "it was stored before it could be cut off: nothing was tested");
    bench.kill();
    assert!(!command.wait().unwrap().success());

    bench.start_anyway();
    assert!(wait_until(120, || snapshots(&bench).len() == 1), "{}", bench.log());
    assert_eq!(snapshots(&bench)[0]["labels"]["why"], "cut-off");
    assert_restores(&bench, "then", &then);
    let staging: Vec<_> =
        fs::read_dir(bench.path("nvme/staging")).unwrap().map(|entry| entry.unwrap().file_name()).collect();
    assert!(!staging.iter().any(|name| name.to_str().unwrap().ends_with("image")), "{staging:?}");

    // The next one counts from it.
    let now = tree(&bench.data());
    assert!(now.contains_key("late") && !now.contains_key("small"));
    bench.ok(&["snapshot", "create"]);
    assert_restores(&bench, "now", &now);
    assert!(bench.ok(&["status"]).contains("healthy"));
    assert_eq!(bench.json(&["repo", "check"])["damage"], serde_json::json!([]));
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}

/// A small filesystem in memory; unmounted when dropped.
struct Small(PathBuf);

impl Small {
    fn new(path: PathBuf) -> Small {
        fs::create_dir_all(&path).unwrap();
        let small = Small(path);
        small.mount("size=8m");
        small
    }

    fn mount(&self, options: &str) {
        let mounted =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(&self.0).status().unwrap();
        assert!(mounted.success());
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        Command::new("umount").arg("-l").arg(&self.0).status().ok();
    }
}

/// A repository that fails does not cost the moment: what it needs is kept, and stored when the repository works again.
#[test]
fn a_snapshot_waits_for_a_repository_that_is_full() {
    let Some(place) = Bench::new() else { return };
    let small = Small::new(place.path("small"));
    let repository = small.0.join("repo");
    let Some(mut bench) = adopted(repository.clone()) else { return };
    bench.ok(&["repo", "init", repository.to_str().unwrap()]);
    bench.start();
    fill(&bench);
    let then = tree(&bench.data());
    let output = bench.heatfs(&["snapshot", "create"]).output().unwrap();
    let said = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(1), "{said}");
    assert!(said.contains("not stored yet") && said.contains("No space left"), "{said}");
    let status = bench.heatfs(&["status"]).output().unwrap();
    assert_eq!(status.status.code(), Some(1), "not healthy");
    assert!(String::from_utf8_lossy(&status.stdout).contains("not stored yet"), "{status:?}");
    change(&bench);

    small.mount("remount,size=128m");
    assert!(wait_until(120, || snapshots(&bench).len() == 1), "{}", bench.log());
    assert_restores(&bench, "then", &then);
    assert!(
        wait_until(60, || bench.heatfs(&["status"]).output().unwrap().status.success()),
        "{}",
        bench.ok(&["status"])
    );
    bench.ok(&["stop"]);
    assert_eq!(bench.ended(60), Some(0));
}
